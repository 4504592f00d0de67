//! Recordings as data: rows of text become the same events that browsers send.
//!
//! Must not know: where files lie, how they are packed, models.

use crate::event::{
    Batch, COALESCED_MAX, COORDINATE_MAX_PX, DELTA_MAX_PX, Event, EventKind, KeyClass, PAGE_CLOCK_MAX_US,
    PointerType,
};
use crate::session::{Session, Window};
use crate::time::Timestamp;
use thiserror::Error;

/// Most events of one recording; four hours of a restless hand.
pub const RECORDING_EVENTS_MAX: usize = 1_000_000;

/// One recorded session of a person or a bot.
#[derive(Clone, Debug)]
pub struct Recording {
    pub session: String,
    pub source: String,
    /// Who moved, or which device it was; unknown people of one device share a name.
    pub user: String,
    /// The bot's family; `None` is a person.
    pub family: Option<String>,
    pub licence: String,
    pub note: String,
    pub events: Vec<Event>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum DatasetError {
    #[error("line {line}: {what}")]
    Line { line: usize, what: &'static str },
    #[error("more than {RECORDING_EVENTS_MAX} events")]
    TooLong,
}

/// One row of `index.csv`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexRow {
    pub session: String,
    pub file: String,
    pub source: String,
    pub user: String,
    pub family: Option<String>,
    pub licence: String,
    pub note: String,
}

/// Reads `index.csv`: session, file, source, user, label, bot_family, licence, …, note.
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
    let mut rows = Vec::new();
    for (i, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let row = fields(line);
        let get = |at: usize| row.get(at).cloned().unwrap_or_default();
        let family = match get(label).as_str() {
            "human" => None,
            "bot" => Some(family.map(get).filter(|f| !f.is_empty()).unwrap_or_else(|| "unknown".into())),
            _ => return Err(DatasetError::Line { line: i + 1, what: "label is neither human nor bot" }),
        };
        rows.push(IndexRow {
            session: get(session),
            file: get(file),
            source: get(source),
            user: get(user),
            family,
            licence: licence.map(get).unwrap_or_default(),
            note: note.map(get).unwrap_or_default(),
        });
    }
    Ok(rows)
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

/// The evidence windows of a stretch of events, by the code that runs live.
pub fn windows(events: &[Event]) -> Vec<Window> {
    let mut session = Session::new(Timestamp(0));
    let mut windows = Vec::new();
    for batch in batches(events) {
        session.observe(Timestamp(batch.sent_at_us / 1000), 1, &batch);
        windows.extend(session.take_windows());
    }
    windows
}

/// Joins short recordings of one source, user and family, in order, each followed by a rest: ten
/// seconds of one person are no window, a minute of several short tasks is.
pub fn join_short(recordings: Vec<Recording>) -> Vec<Recording> {
    let mut joined: Vec<Recording> = Vec::new();
    let mut growing: Vec<usize> = Vec::new();
    for recording in recordings {
        if length_us(&recording.events) >= SHORT_US {
            joined.push(recording);
            continue;
        }
        let same = |a: &Recording| {
            (&a.source, &a.user, &a.family) == (&recording.source, &recording.user, &recording.family)
        };
        match growing.iter().position(|&i| same(&joined[i])) {
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
                if length_us(&whole.events) >= JOINED_US {
                    growing.remove(at);
                }
            }
            None => {
                growing.push(joined.len());
                joined.push(recording);
            }
        }
    }
    joined
}

fn length_us(events: &[Event]) -> u64 {
    match (events.first(), events.last()) {
        (Some(first), Some(last)) => last.at_us.saturating_sub(first.at_us),
        _ => 0,
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
        assert_eq!((rows[0].family.as_deref(), rows[0].note.as_str()), (None, "x, \"y\""));
        assert_eq!(rows[1].family.as_deref(), Some("linear"));
    }
}
