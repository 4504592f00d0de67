//! Recordings as data: rows of text, or batches as they came over the wire, become the same events that
//! browsers send.
//!
//! Must not know: where files lie, how they are packed, models.

pub mod origin;

use crate::detector::Modality;
use crate::event::{
    Batch, COALESCED_MAX, COORDINATE_MAX_PX, DELTA_MAX_PX, DecodeError, Environment, Event, EventKind,
    KeyClass, PAGE_CLOCK_MAX_US, PointerType,
};
use crate::features;
use crate::population::Device;
use crate::session::{PAGES_MAX, Session, Window};
use crate::time::Timestamp;
use std::fmt::Write;
use thiserror::Error;

/// Most events of one recording; four hours of a restless hand.
pub const RECORDING_EVENTS_MAX: usize = 1_000_000;
/// Most batches of one recording: a day of one every two seconds.
pub const RECORDING_BATCHES_MAX: usize = 43_200;
/// What a recording of our own wire format starts with.
pub const WIRE_MAGIC: &[u8; 8] = b"GAITWAYT";

/// One recorded session of a person, a bot, or nobody knows whom.
#[derive(Clone, Debug)]
pub struct Recording {
    pub session: String,
    pub source: String,
    /// Who moved, or which device it was; unknown people of one device share a name.
    pub user: String,
    pub label: Label,
    /// The bot's family; `None` unless the label says bot.
    pub family: Option<String>,
    pub licence: String,
    pub note: String,
    pub marks: Marks,
    /// The browser, where it told.
    pub environment: Option<Environment>,
    pub events: Vec<Event>,
}

/// Who made a recording, as far as its index says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    Human,
    Bot,
    /// A session watched in shadow that nobody has labelled.
    #[default]
    Unknown,
}

impl Label {
    /// As written in an index; nothing for unknown.
    pub fn name(self) -> &'static str {
        match self {
            Label::Human => "human",
            Label::Bot => "bot",
            Label::Unknown => "",
        }
    }

    fn parse(text: &str) -> Option<Label> {
        [Label::Human, Label::Bot, Label::Unknown].into_iter().find(|label| label.name() == text)
    }
}

/// What a gateway noted beside a recording. The default says nothing: an index need not have these columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    /// When the session opened.
    pub opened: Option<Timestamp>,
    /// The browser said that a program drives it.
    pub automation: bool,
    /// The most page loads in a row that no gesture seen here can have caused.
    pub navigations_without_input: Option<u64>,
    /// Share of the movement that had been seen before, 0 to 1.
    pub replay: Option<f32>,
    /// What an operator said of the session.
    pub operator: Label,
    /// Name of the class of device, "" if unknown.
    pub device: String,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum DatasetError {
    #[error("line {line}: {what}")]
    Line { line: usize, what: &'static str },
    #[error("more than {RECORDING_EVENTS_MAX} events")]
    TooLong,
    #[error("it does not start with GAITWAYT: no recording of the gateway's own format")]
    Magic,
    #[error("batch {number}: {cause}")]
    Batch { number: usize, cause: DecodeError },
    #[error("batch {number} is cut off: the file ends too early")]
    CutOff { number: usize },
    #[error("more than {RECORDING_BATCHES_MAX} batches")]
    TooManyBatches,
    #[error("the pages of the session together last longer than one page may")]
    PagesTooLong,
}

/// One row of `index.csv`.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexRow {
    pub session: String,
    pub file: String,
    pub source: String,
    pub user: String,
    pub label: Label,
    pub family: Option<String>,
    pub licence: String,
    pub note: String,
    pub marks: Marks,
}

/// Reads `index.csv`: session, file, source, user, label, bot_family, licence, …, note, and by name, where
/// they are: opened (Unix ms), automation (0 or 1), navigations_without_input, replay, operator_label, device.
pub fn parse_index(text: &str) -> Result<Vec<IndexRow>, DatasetError> {
    let mut lines = text.lines().enumerate();
    let header = lines.next().map(|(_, line)| fields(line)).unwrap_or_default();
    let column = |name: &'static str| {
        let missing =
            DatasetError::Line { line: 1, what: "a column of session, file, source, user, label is missing" };
        header.iter().position(|field| field == name).ok_or(missing)
    };
    let [session, file, source, user, label] =
        [column("session")?, column("file")?, column("source")?, column("user")?, column("label")?];
    let optional = |name| header.iter().position(|field| field == name);
    let (family, licence, note) = (optional("bot_family"), optional("licence"), optional("note"));
    let [opened, automation, unprompted, replay, operator, device] =
        ["opened", "automation", "navigations_without_input", "replay", "operator_label", "device"]
            .map(optional);
    let mut rows = Vec::new();
    for (i, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let row = fields(line);
        let get = |at: usize| row.get(at).cloned().unwrap_or_default();
        let told = |at: Option<usize>| at.map(get).filter(|text| !text.is_empty());
        let fail = |what| DatasetError::Line { line: i + 1, what };
        let label = Label::parse(&get(label)).ok_or(fail("label is neither human nor bot, nor empty"))?;
        let replay = told(replay).map(|text| text.parse::<f32>().map_err(|_| fail("replay is not a number")));
        let replay = replay.transpose()?;
        if replay.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(fail("replay is not between 0 and 1"));
        }
        let whole = |at, what| told(at).map(|text| text.parse::<u64>().map_err(|_| fail(what))).transpose();
        let marks = Marks {
            opened: whole(opened, "opened is not a time in Unix milliseconds")?.map(Timestamp),
            automation: match told(automation).as_deref() {
                None | Some("0" | "false") => false,
                Some("1" | "true") => true,
                Some(_) => return Err(fail("automation is neither 0 nor 1")),
            },
            navigations_without_input: whole(unprompted, "navigations_without_input is not a whole number")?,
            replay,
            operator: Label::parse(&told(operator).unwrap_or_default())
                .ok_or(fail("operator_label is neither human nor bot, nor empty"))?,
            device: told(device).unwrap_or_default(),
        };
        rows.push(IndexRow {
            session: get(session),
            file: get(file),
            source: get(source),
            user: get(user),
            label,
            family: (label == Label::Bot).then(|| told(family).unwrap_or_else(|| "unknown".into())),
            licence: told(licence).unwrap_or_default(),
            note: told(note).unwrap_or_default(),
            marks,
        });
    }
    Ok(rows)
}

/// Appends one frame, as it came over the wire, to a recording that begins with [`WIRE_MAGIC`].
pub fn append_frame(recording: &mut Vec<u8>, frame: &[u8]) {
    // Writing to a vector cannot fail; prost only asks for room, and a vector always has it.
    let _ = prost::encode_length_delimiter(frame.len(), recording);
    recording.extend_from_slice(frame);
}

/// A recording of our own wire format, from batches.
pub fn encode_batches(batches: &[Batch]) -> Vec<u8> {
    let mut recording = WIRE_MAGIC.to_vec();
    batches.iter().for_each(|batch| append_frame(&mut recording, &batch.encode()));
    recording
}

/// The next frame of a recording, and what follows it; `None` where it is cut off.
pub fn split_frame(mut rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = prost::decode_length_delimiter(&mut rest).ok()?;
    rest.split_at_checked(length)
}

/// Reads a recording of our own wire format: [`WIRE_MAGIC`], then frames as they arrived, each after its
/// length as a protobuf varint.
pub fn parse_batches(bytes: &[u8]) -> Result<Vec<Batch>, DatasetError> {
    let mut rest = bytes.strip_prefix(WIRE_MAGIC).ok_or(DatasetError::Magic)?;
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let number = batches.len() + 1;
        if batches.len() == RECORDING_BATCHES_MAX {
            return Err(DatasetError::TooManyBatches);
        }
        let (frame, after) = split_frame(rest).ok_or(DatasetError::CutOff { number })?;
        batches.push(Batch::decode(frame).map_err(|cause| DatasetError::Batch { number, cause })?);
        rest = after;
    }
    Ok(batches)
}

/// Joins the pages of a session into one stretch of time: a page's clock starts at zero where the pages
/// before it were last heard of. Batches that came twice count once.
pub fn join_pages(batches: &[Batch]) -> Result<Vec<Event>, DatasetError> {
    struct Page {
        starts_us: u64,
        next_sequence: u32,
        sent_us: u64,
    }
    let mut pages: Vec<Page> = Vec::new();
    let mut heard_us = 0;
    let mut events: Vec<Event> = Vec::new();
    let mut before: Option<&Batch> = None;
    for batch in batches {
        if before.replace(batch) == Some(batch) {
            continue;
        }
        // A batch goes on with the page that waits for its number, of several the one heard of last.
        let waits = |page: &Page| page.next_sequence == batch.sequence && page.sent_us <= batch.sent_at_us;
        let skipped = |page: &Page| page.next_sequence < batch.sequence && page.sent_us <= batch.sent_at_us;
        let known = pages.iter().rposition(waits).or_else(|| pages.iter().rposition(skipped));
        let known = known.filter(|_| batch.sequence > 0).map(|at| pages.remove(at));
        let mut page = known.unwrap_or(Page { starts_us: heard_us, next_sequence: 0, sent_us: 0 });
        page.next_sequence = batch.sequence.saturating_add(1);
        page.sent_us = batch.sent_at_us;
        for event in &batch.events {
            if events.len() == RECORDING_EVENTS_MAX {
                return Err(DatasetError::TooLong);
            }
            events.push(Event { at_us: event.at_us + page.starts_us, ..*event });
        }
        let last = batch.events.iter().map(|event| event.at_us).max().unwrap_or(0).max(batch.sent_at_us);
        heard_us = heard_us.max(page.starts_us + last);
        if heard_us > PAGE_CLOCK_MAX_US {
            return Err(DatasetError::PagesTooLong);
        }
        if pages.len() == PAGES_MAX {
            pages.remove(0);
        }
        pages.push(page);
    }
    events.sort_by_key(|event| event.at_us);
    Ok(events)
}

/// Reads a session file: `t_ms,type,x,y,extra`, type one of move, down, up, wheel, scroll, keydown, keyup.
/// Times start at one second of page time. Rows of other types are passed over.
pub fn parse_session(text: &str) -> Result<Vec<Event>, DatasetError> {
    let mut events = Vec::new();
    let mut buttons_down = 0u32;
    for (i, line) in text.lines().enumerate().skip(1) {
        let fail = |what| DatasetError::Line { line: i + 1, what };
        let mut columns = line.splitn(5, ',');
        let mut next = || columns.next().unwrap_or("");
        let (time, kind, x, y, extra) = (next(), next(), next(), next(), next());
        let ms: f64 = time.parse().map_err(|_| fail("the time is not a number"))?;
        if !(0.0..=PAGE_CLOCK_MAX_US as f64 / 2e3).contains(&ms) {
            return Err(fail("the time is out of range"));
        }
        let coordinate = |text: &str| -> Result<f32, DatasetError> {
            let value: f32 = if text.is_empty() {
                0.0
            } else {
                text.parse().map_err(|_| fail("a place is not a number"))?
            };
            if value.abs() <= COORDINATE_MAX_PX as f32 {
                Ok(value)
            } else {
                Err(fail("a place is out of range"))
            }
        };
        let (x, y) = (coordinate(x)?, coordinate(y)?);
        let value = |key: &str| {
            extra.split(';').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
        };
        let whole = |key: &str| {
            value(key)
                .and_then(|v| v.parse::<f64>().ok())
                .map_or(0, |v| v as i32)
                .clamp(-DELTA_MAX_PX, DELTA_MAX_PX)
        };
        let pointer = PointerType::Mouse;
        let button = whole("b").clamp(0, 31) as u32;
        let kind = match kind {
            "move" => EventKind::PointerMove {
                pointer,
                x,
                y,
                movement_x: whole("mx"),
                movement_y: whole("my"),
                coalesced: whole("c").clamp(0, COALESCED_MAX as i32) as u32,
            },
            "down" => {
                buttons_down += 1;
                EventKind::PointerDown { pointer, x, y, button }
            }
            "up" if buttons_down == 0 => continue,
            "up" => {
                buttons_down -= 1;
                EventKind::PointerUp { pointer, x, y, button }
            }
            "wheel" => EventKind::Wheel { dx: whole("dx"), dy: whole("dy") },
            "scroll" => EventKind::Scroll { x: x as i32, y: y as i32 },
            "keydown" => EventKind::KeyDown { class: key_class(value("k")), repeat: whole("rp") == 1 },
            "keyup" => EventKind::KeyUp { class: key_class(value("k")) },
            _ => continue,
        };
        if events.len() == RECORDING_EVENTS_MAX {
            return Err(DatasetError::TooLong);
        }
        let at_us = ((ms * 10.0).round() as u64) * 100 + START_US;
        events.push(Event { at_us, trusted: value("tr") != Some("0"), kind });
    }
    // Recorders write a click's release in order of arrival, which may be a hair out of order of time.
    events.sort_by_key(|event| event.at_us);
    Ok(events)
}

/// Writes a session file, which [`parse_session`] reads back. Events it has no word for are left out.
pub fn format_session(events: &[Event]) -> String {
    let mut text = String::from("t_ms,type,x,y,extra\n");
    let start = events.first().map_or(0, |event| event.at_us);
    for event in events {
        let (mut word, mut extra) = ("", String::new());
        match event.kind {
            EventKind::PointerMove { movement_x, movement_y, coalesced, .. } => {
                (word, extra) = ("move", format!("c={coalesced};mx={movement_x};my={movement_y};"));
            }
            EventKind::PointerDown { button, .. } => (word, extra) = ("down", format!("b={button};")),
            EventKind::PointerUp { button, .. } => (word, extra) = ("up", format!("b={button};")),
            EventKind::Wheel { dx, dy } => (word, extra) = ("wheel", format!("dx={dx};dy={dy};")),
            EventKind::Scroll { .. } => word = "scroll",
            EventKind::KeyDown { class, repeat } => {
                (word, extra) = ("keydown", format!("k={};rp={};", key_letter(class), u8::from(repeat)));
            }
            EventKind::KeyUp { class } => (word, extra) = ("keyup", format!("k={};", key_letter(class))),
            EventKind::PointerCancel
            | EventKind::Click { .. }
            | EventKind::Focus
            | EventKind::Blur
            | EventKind::Visible
            | EventKind::Hidden
            | EventKind::Navigate => {}
        }
        if word.is_empty() {
            continue;
        }
        let place = match event.kind {
            EventKind::Scroll { x, y } => format!("{x},{y}"),
            _ => event.kind.position().map_or_else(|| ",".into(), |(x, y)| format!("{x},{y}")),
        };
        let ms = event.at_us.saturating_sub(start) as f64 / 1000.0;
        let trusted = u8::from(event.trusted);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{ms:.1},{word},{place},{extra}tr={trusted}");
    }
    text
}

/// How a recording is cut into sequences: stretches of action without a long gap.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// A gap longer than this ends a sequence.
    pub gap_us: u64,
    /// Sequences with fewer events are left out.
    pub events_min: usize,
    /// Only movement, buttons and wheel; keys and the page's own events are left out.
    pub pointer_only: bool,
}

impl Default for Cut {
    fn default() -> Cut {
        Cut { gap_us: 1_000_000, events_min: 50, pointer_only: true }
    }
}

/// Sequences of a recording, in order of time.
pub fn sequences(events: &[Event], cut: &Cut) -> Vec<Vec<Event>> {
    let is_pointer =
        |event: &&Event| event.kind.position().is_some() || matches!(event.kind, EventKind::Wheel { .. });
    let mut sequences: Vec<Vec<Event>> = Vec::new();
    let mut last = None;
    for event in events.iter().filter(|event| !cut.pointer_only || is_pointer(event)) {
        let gap = last.replace(event.at_us).map_or(u64::MAX, |last| event.at_us.saturating_sub(last));
        if gap > cut.gap_us {
            sequences.push(Vec::new());
        }
        if let Some(sequence) = sequences.last_mut() {
            sequence.push(*event);
        }
    }
    sequences.retain(|sequence| sequence.len() >= cut.events_min);
    sequences
}

/// Cuts events into batches as the collector does, one every two seconds of page time.
pub fn batches(events: &[Event]) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut from = 0;
    while from < events.len() {
        let end = (events[from].at_us / BATCH_US + 1) * BATCH_US;
        let most = (from + crate::event::BATCH_EVENTS_MAX).min(events.len());
        let to = from + events[from..most].iter().take_while(|event| event.at_us < end).count();
        batches.push(Batch {
            sequence: batches.len() as u32,
            sent_at_us: end,
            events: events[from..to].to_vec(),
            ..Batch::default()
        });
        from = to;
    }
    batches
}

/// A stretch of events, as the code that runs live sees it.
#[derive(Clone, Debug)]
pub struct Watched {
    pub windows: Vec<Window>,
    /// When each window was complete, seconds after the first event.
    pub seconds: Vec<f32>,
    pub modality: Modality,
}

/// Watches a stretch of events to its end.
pub fn watch(events: &[Event]) -> Watched {
    let mut session = Session::new(Timestamp(0));
    let start = events.first().map_or(0, |event| event.at_us);
    let (mut windows, mut seconds) = (Vec::new(), Vec::new());
    for batch in batches(events) {
        session.observe(Timestamp(batch.sent_at_us / 1000), 1, &batch);
        windows.extend(session.take_windows());
        seconds.resize(windows.len(), (batch.sent_at_us - start) as f32 / 1e6);
    }
    Watched { windows, seconds, modality: session.modality() }
}

/// The evidence windows of a stretch of events.
pub fn windows(events: &[Event]) -> Vec<Window> {
    watch(events).windows
}

/// The class of device of a recording: what its index says, else how often its pointer was heard.
pub fn device(marks: &Marks, windows: &[Window]) -> String {
    if !marks.device.is_empty() {
        return marks.device.clone();
    }
    let Some(at) = features::index("move_interval") else { return String::new() };
    let mut intervals: Vec<f32> = windows.iter().map(|window| window.short.features[at].exp()).collect();
    intervals.retain(|interval| interval.is_finite());
    intervals.sort_by(f32::total_cmp);
    let class = match intervals.get(intervals.len() / 2) {
        None => "no pointer that moves",
        Some(..10.0) => "a move every 10 ms or less",
        Some(..20.0) => "a move every 10 to 20 ms",
        Some(..60.0) => "a move every 20 to 60 ms",
        Some(_) => "a move every 60 ms or more",
    };
    class.into()
}

/// Joins short recordings of one source, user, family, device and label, in order, each followed by a rest: ten
/// seconds of one person are no window, a minute of several short tasks is.
pub fn join_short(recordings: Vec<Recording>) -> Vec<Recording> {
    join(recordings, |whole, _| length_us(&whole.events))
}

/// As [`join_short`], until each holds enough input whatever the rests between: of half a second at a time
/// the rests alone would soon be long enough, and no window ever full.
pub fn join_input(recordings: Vec<Recording>) -> Vec<Recording> {
    join(recordings, |_, input_us| input_us)
}

/// Joins until what was joined is long enough by `length`, given it and how long it is without its rests.
fn join(recordings: Vec<Recording>, length: fn(&Recording, u64) -> u64) -> Vec<Recording> {
    let mut joined: Vec<Recording> = Vec::new();
    let mut growing: Vec<usize> = Vec::new();
    // Microseconds that each of those holds, rests left out.
    let mut input: Vec<u64> = Vec::new();
    for recording in recordings {
        if length_us(&recording.events) >= SHORT_US {
            joined.push(recording);
            continue;
        }
        // What is known of one must hold of all: a pardon is of one session, a person has several devices.
        let key = |a: &Recording| (a.label, a.marks.operator, Device::of(a.environment));
        let same = |a: &Recording, b: &Recording| {
            (&a.source, &a.user, &a.family, &a.marks.device)
                == (&b.source, &b.user, &b.family, &b.marks.device)
                && key(a) == key(b)
        };
        match growing.iter().position(|&i| same(&joined[i], &recording)) {
            Some(at) => {
                let whole = &mut joined[growing[at]];
                let from = whole.events.last().map_or(0, |event| event.at_us) + REST_US;
                let start = recording.events.first().map_or(0, |event| event.at_us);
                whole.events.extend(
                    recording
                        .events
                        .iter()
                        .map(|event| Event { at_us: event.at_us - start + from, ..*event }),
                );
                input[at] += length_us(&recording.events);
                if length(whole, input[at]) >= JOINED_US {
                    growing.remove(at);
                    input.remove(at);
                }
            }
            None => {
                growing.push(joined.len());
                input.push(length_us(&recording.events));
                joined.push(recording);
            }
        }
    }
    joined
}

/// What the browser said of itself last.
pub fn environment(batches: &[Batch]) -> Option<Environment> {
    batches.iter().rev().find_map(|batch| batch.environment)
}

fn length_us(events: &[Event]) -> u64 {
    match (events.first(), events.last()) {
        (Some(first), Some(last)) => last.at_us.saturating_sub(first.at_us),
        _ => 0,
    }
}

fn key_letter(class: KeyClass) -> &'static str {
    match class {
        KeyClass::Unknown => "",
        KeyClass::Letter => "L",
        KeyClass::Digit => "D",
        KeyClass::Punctuation => "P",
        KeyClass::Space => "S",
        KeyClass::Enter => "E",
        KeyClass::Delete => "B",
        KeyClass::Tab => "T",
        KeyClass::Navigation => "N",
        KeyClass::Modifier => "M",
        KeyClass::Function => "F",
    }
}

fn key_class(letter: Option<&str>) -> KeyClass {
    match letter {
        Some("L") => KeyClass::Letter,
        Some("D") => KeyClass::Digit,
        Some("P") => KeyClass::Punctuation,
        Some("S") => KeyClass::Space,
        Some("E") => KeyClass::Enter,
        Some("B") => KeyClass::Delete,
        Some("T") => KeyClass::Tab,
        Some("N") => KeyClass::Navigation,
        Some("M") => KeyClass::Modifier,
        Some("F") => KeyClass::Function,
        _ => KeyClass::Unknown,
    }
}

/// Splits a line of comma-separated values; quotes may enclose a field and are doubled within.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.trim_end().chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                if let Some(field) = fields.last_mut() {
                    field.push('"');
                }
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            character => {
                if let Some(field) = fields.last_mut() {
                    field.push(character);
                }
            }
        }
    }
    fields
}

const START_US: u64 = 1_000_000;
const BATCH_US: u64 = 2_000_000;
const SHORT_US: u64 = 30_000_000;
const JOINED_US: u64 = 90_000_000;
const REST_US: u64 = 1_500_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::BATCH_BYTES_MAX;

    #[test]
    fn rows_become_the_events_a_browser_sends() {
        let text = "t_ms,type,x,y,extra\n0,move,5,6,c=2;tr=1;mx=1;my=-2\n10.5,down,5,6,b=0;tr=1\n90,up,5,6,b=0;tr=1\n\
                    100,keydown,,,k=L;rp=0;tr=1\n150,keyup,,,k=L;tr=0\n200,wheel,1,1,dx=0;dy=120\n210,scroll,0,120,\n220,type,,,\n";
        let events = parse_session(text).unwrap();
        let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
        let pointer = PointerType::Mouse;
        let (x, y, button) = (5.0, 6.0, 0);
        assert_eq!(
            kinds,
            [
                EventKind::PointerMove { pointer, x, y, movement_x: 1, movement_y: -2, coalesced: 2 },
                EventKind::PointerDown { pointer, x, y, button },
                EventKind::PointerUp { pointer, x, y, button },
                EventKind::KeyDown { class: KeyClass::Letter, repeat: false },
                EventKind::KeyUp { class: KeyClass::Letter },
                EventKind::Wheel { dx: 0, dy: 120 },
                EventKind::Scroll { x: 0, y: 120 },
            ]
        );
        assert_eq!(events[1].at_us, START_US + 10_500);
        assert!(!events[4].trusted);
        for batch in batches(&events) {
            assert_eq!(Batch::decode(&batch.encode()).unwrap(), batch);
        }
    }

    #[test]
    fn a_session_file_reads_back_as_it_was_written() {
        let mut visitor = crate::sim::Visitor::person(4);
        let events: Vec<Event> = (0..30).flat_map(|_| visitor.next_batch(2.0).events).collect();
        let text = format_session(&events);
        let read = parse_session(&text).unwrap();
        assert!(read.len() > 500);
        assert_eq!(format_session(&read), text);
        let clicks = events.iter().filter(|event| matches!(event.kind, EventKind::Click { .. })).count();
        let others = events.iter().filter(|event| {
            use EventKind::{Blur, Focus, Hidden, Navigate, PointerCancel, Visible};
            matches!(event.kind, Blur | Focus | Hidden | Navigate | PointerCancel | Visible)
        });
        assert_eq!(read.len() + clicks + others.count(), events.len());
    }

    #[test]
    fn sequences_end_at_gaps_and_short_ones_are_left_out() {
        let event = |at_ms: u64, kind| Event { at_us: at_ms * 1000, trusted: true, kind };
        let wheel = EventKind::Wheel { dx: 0, dy: 1 };
        let mut events: Vec<Event> = (0..60).map(|i| event(i * 100, wheel)).collect();
        events.extend((0..49).map(|i| event(7_000 + i * 100, wheel)));
        // A key in the gap does not bridge it.
        events.push(event(12_500, EventKind::KeyUp { class: KeyClass::Letter }));
        events.extend((0..50).map(|i| event(13_000 + i * 1_000, wheel)));
        let lengths = |cut: &Cut| sequences(&events, cut).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(&Cut::default()), [60, 50]);
        assert_eq!(lengths(&Cut { events_min: 1, ..Cut::default() }), [60, 49, 50]);
        assert_eq!(lengths(&Cut { pointer_only: false, ..Cut::default() }), [60, 100]);
    }

    #[test]
    fn recordings_of_another_device_or_label_are_not_joined() {
        let recording = |device: &str, operator| Recording {
            session: "s".into(),
            source: "here".into(),
            user: "u".into(),
            label: Label::Unknown,
            family: None,
            licence: String::new(),
            note: String::new(),
            marks: Marks { device: device.into(), operator, ..Marks::default() },
            environment: None,
            events: vec![Event { at_us: 0, trusted: true, kind: EventKind::Focus }],
        };
        let unknown = |device| recording(device, Label::Unknown);
        assert_eq!(join_input(vec![unknown("desk"), unknown("desk")]).len(), 1);
        assert_eq!(join_input(vec![unknown("desk"), unknown("lap")]).len(), 2);
        let mixed = [unknown("desk"), recording("desk", Label::Human), unknown("desk")];
        let joined = join_input(mixed.to_vec());
        let operators: Vec<_> = joined.iter().map(|r| (r.marks.operator, r.events.len())).collect();
        assert_eq!(operators, [(Label::Unknown, 2), (Label::Human, 1)]);
    }

    #[test]
    fn a_mistake_names_its_line() {
        let error =
            |row: &str| parse_session(&format!("t_ms,type,x,y,extra\n0,move,1,1,\n{row}\n")).unwrap_err();
        assert_eq!(error("x,move,1,1,"), DatasetError::Line { line: 3, what: "the time is not a number" });
        assert_eq!(error("-5,move,1,1,"), DatasetError::Line { line: 3, what: "the time is out of range" });
        assert_eq!(error("NaN,move,1,1,"), DatasetError::Line { line: 3, what: "the time is out of range" });
        assert_eq!(error("5,move,1e30,1,"), DatasetError::Line { line: 3, what: "a place is out of range" });
        assert!(parse_index("session,file\n").is_err());
    }

    #[test]
    fn the_index_reads_labels_families_and_quoted_notes() {
        let rows = parse_index(
            "session,file,source,user,label,bot_family,licence,note\na,f.gz,s,u,human,,MIT,\"x, \"\"y\"\"\"\nb,g.gz,s,u,bot,linear,MIT,\n",
        )
        .unwrap();
        assert_eq!(
            (rows[0].label, rows[0].family.as_deref(), rows[0].note.as_str()),
            (Label::Human, None, "x, \"y\"")
        );
        assert_eq!((rows[1].label, rows[1].family.as_deref()), (Label::Bot, Some("linear")));
        assert_eq!(rows[1].marks, Marks::default());
    }

    #[test]
    fn an_index_may_lack_labels_and_add_what_a_gateway_noted() {
        let head = "session,file,source,user,label,bot_family,device,opened,automation,replay,\
                    navigations_without_input,operator_label\n";
        let row = |row: &str| parse_index(&format!("{head}{row}\n")).map(|mut rows| rows.remove(0));
        let unknown = row("a,a.gwt,s,u,,,desktop,1700000000000,1,0.25,3,bot").unwrap();
        assert_eq!((unknown.label, unknown.family.as_deref()), (Label::Unknown, None));
        let marks = Marks {
            opened: Some(Timestamp(1_700_000_000_000)),
            automation: true,
            navigations_without_input: Some(3),
            replay: Some(0.25),
            operator: Label::Bot,
            device: "desktop".into(),
        };
        assert_eq!(unknown.marks, marks);
        assert_eq!(row("a,a.gwt,s,u,,,,,,,,").unwrap().marks, Marks::default());
        for wrong in
            ["a,f,s,u,robot,", "a,f,s,u,,,,x", "a,f,s,u,,,,,maybe", "a,f,s,u,,,,,,NaN", "a,f,s,u,,,,,,2"]
        {
            assert!(matches!(row(wrong), Err(DatasetError::Line { line: 2, .. })), "{wrong}");
        }
    }

    #[test]
    fn a_recording_of_the_wire_reads_back_as_it_was() {
        let mut visitor = crate::sim::Visitor::person(3);
        let sent: Vec<Batch> = (0..5).map(|_| visitor.next_batch(2.0)).collect();
        let recording = encode_batches(&sent);
        let read = parse_batches(&recording).unwrap();
        assert_eq!(read.len(), 5);
        assert_eq!(encode_batches(&read), recording);
        assert_eq!(parse_batches(b"GAITWAY1"), Err(DatasetError::Magic));
        let cut = &recording[..recording.len() - 3];
        assert_eq!(parse_batches(cut), Err(DatasetError::CutOff { number: 5 }));
        let mut large = WIRE_MAGIC.to_vec();
        append_frame(&mut large, &vec![0; BATCH_BYTES_MAX + 1]);
        let cause = DecodeError::TooLarge(BATCH_BYTES_MAX + 1);
        assert_eq!(parse_batches(&large), Err(DatasetError::Batch { number: 1, cause }));
        let many: Vec<u8> = WIRE_MAGIC
            .iter()
            .copied()
            .chain([2, 8, 1].into_iter().cycle().take(3 * (RECORDING_BATCHES_MAX + 1)))
            .collect();
        assert_eq!(parse_batches(&many), Err(DatasetError::TooManyBatches));
    }

    #[test]
    fn pages_follow_each_other_in_time_and_a_resent_batch_counts_once() {
        let batch = |sequence, sent_s: u64, at_s: &[u64]| Batch {
            sequence,
            sent_at_us: sent_s * 1_000_000,
            events: at_s
                .iter()
                .map(|s| Event { at_us: s * 1_000_000, trusted: true, kind: EventKind::Focus })
                .collect(),
            ..Batch::default()
        };
        let seconds = |batches: &[Batch]| -> Vec<u64> {
            join_pages(batches).unwrap().iter().map(|event| event.at_us / 1_000_000).collect()
        };
        let (first, second) = (batch(0, 2, &[1]), batch(1, 4, &[3]));
        assert_eq!(seconds(&[first.clone(), second.clone(), second.clone()]), [1, 3]);
        // The next page starts when the first was last heard of, and the first may still speak.
        assert_eq!(seconds(&[first.clone(), second, batch(0, 2, &[1]), batch(2, 9, &[8])]), [1, 3, 5, 8]);
        // A lost batch is no new page.
        assert_eq!(seconds(&[first, batch(4, 9, &[8])]), [1, 8]);
        let day = PAGE_CLOCK_MAX_US / 1_000_000;
        let long = [batch(0, day, &[1]), batch(0, 2, &[1])];
        assert_eq!(join_pages(&long), Err(DatasetError::PagesTooLong));
    }
}
