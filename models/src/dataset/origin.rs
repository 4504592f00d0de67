//! Recordings in the formats their makers publish: text in, events out.
//!
//! Each maker's columns, units and words are known here and nowhere else. Must not know: where files lie.

use super::{DatasetError, RECORDING_EVENTS_MAX, START_US};
use crate::event::{COORDINATE_MAX_PX, Event, EventKind, KeyClass, PAGE_CLOCK_MAX_US, PointerType};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Whose format it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Balabit Mouse Dynamics Challenge: `record timestamp,client timestamp,button,state,x,y`, seconds.
    Balabit,
    /// SapiMouse: `client timestamp,button,state,x,y`, milliseconds.
    Sapimouse,
    /// DELBOT-Mouse: `resolution:W,H` if it was kept, then `timestamp,action,x,y`, milliseconds.
    Delbot,
    /// Batches of the thesis: `{"mouseEvents": [{x_cor, y_cor, event, event_time, x_res, y_res}]}`, one a
    /// line or one in all.
    Batches,
}

/// Reads one session. Times start at one second of page time; a clock that runs back stands still.
pub fn parse(origin: Origin, text: &str) -> Result<Vec<Event>, DatasetError> {
    let mut session = Session { events: Vec::new(), origin_ms: None, at_us: START_US, down: 0 };
    match origin {
        Origin::Balabit => rows(text, "record timestamp", |row, fail| {
            let [_, seconds, button, state, x, y] = row[..] else {
                return Err(fail("six columns are needed"));
            };
            session.add(number(seconds, fail)? * 1000.0, button, state, (x, y), fail)
        })?,
        Origin::Sapimouse => rows(text, "client timestamp", |row, fail| {
            let [ms, button, state, x, y] = row[..] else { return Err(fail("five columns are needed")) };
            session.add(number(ms, fail)?, button, state, (x, y), fail)
        })?,
        Origin::Delbot => rows(text, "resolution:", |row, fail| {
            let [ms, action, x, y] = row[..] else { return Err(fail("four columns are needed")) };
            session.add(number(ms, fail)?, "Left", action.trim_end_matches("Touch"), (x, y), fail)
        })?,
        Origin::Batches => parse_batches(&mut session, text)?,
    }
    Ok(session.events)
}

/// Sessions of a typed phrase, by user and session, from a table as of CMU's keystroke benchmark (Killourhy and
/// Maxion, 2009): `subject` or `user`, `sessionIndex` if it was kept, `rep`, then for each key of the phrase
/// how long it was held (`H.key`) and from its press to the next one's (`DD.key.next`), seconds. Without
/// `sessionIndex`, fifty repetitions are a session, as in that study.
pub fn parse_phrases(text: &str) -> Result<BTreeMap<(String, u32), Vec<Event>>, DatasetError> {
    let fail = |line, what| DatasetError::Line { line, what };
    let mut lines = text.lines().enumerate();
    let header = lines.next().map_or("", |(_, line)| line.trim_start_matches('\u{feff}').trim_end());
    let header: Vec<&str> = header.split(',').map(|field| field.trim_matches('"')).collect();
    let column = |names: &[&str]| header.iter().position(|field| names.contains(field));
    let (Some(user), Some(rep)) = (column(&["subject", "user"]), column(&["rep"])) else {
        return Err(fail(1, "a column of subject (or user), rep is missing"));
    };
    let session = column(&["sessionIndex"]);
    let columns = |prefix: &str| -> Vec<(usize, &str)> {
        let named = header.iter().enumerate().filter_map(|(i, field)| Some((i, field.strip_prefix(prefix)?)));
        named.collect()
    };
    let (holds, presses) = (columns("H."), columns("DD."));
    if holds.len() < 2 || holds.len() != presses.len() + 1 {
        return Err(fail(
            1,
            "a phrase of n keys has n columns H.… and n - 1 columns DD.…, and at least two keys",
        ));
    }
    let mut sessions: BTreeMap<(String, u32), Vec<Event>> = BTreeMap::new();
    for (i, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let fail = |what| fail(i + 1, what);
        let row: Vec<&str> = line.trim_end().split(',').map(|field| field.trim_matches('"')).collect();
        if row.len() != header.len() {
            return Err(fail("the row is not as long as the header"));
        }
        let rep: u32 = row[rep].parse().map_err(|_| fail("rep is not a whole number"))?;
        let session = match session {
            None => rep / PHRASES_A_SESSION,
            Some(at) => row[at].parse().map_err(|_| fail("sessionIndex is not a whole number"))?,
        };
        let us = |column: usize| {
            let seconds = number(row[column], &fail)?;
            let within = (0.0..=PHRASE_S_MAX).contains(&seconds);
            within.then_some((seconds * 1e6) as u64).ok_or(fail("a time is not within 0 to 60 seconds"))
        };
        let events = sessions.entry((row[user].to_string(), session)).or_default();
        if events.len() + 2 * holds.len() > RECORDING_EVENTS_MAX {
            return Err(DatasetError::TooLong);
        }
        // When the phrase was begun is not told: a pause that ends what went before.
        let mut at_us = events.last().map_or(START_US, |last| last.at_us + PHRASE_PAUSE_US);
        let from = events.len();
        for (key, (held, name)) in holds.iter().enumerate() {
            let class = key_class(name);
            let (down, up) = (EventKind::KeyDown { class, repeat: false }, EventKind::KeyUp { class });
            events.push(Event { at_us, trusted: true, kind: down });
            events.push(Event { at_us: at_us + us(*held)?, trusted: true, kind: up });
            at_us += presses.get(key).map_or(Ok(0), |(press, _)| us(*press))?;
        }
        // A key is often let go after the next is down. Stable: of one time, a press stays before its release.
        events[from..].sort_by_key(|event| event.at_us);
    }
    Ok(sessions)
}

/// `Shift.r` is a letter typed with Shift, whose own times the study did not keep.
fn key_class(name: &str) -> KeyClass {
    match name.rsplit('.').next().unwrap_or_default() {
        "Return" | "Enter" => KeyClass::Enter,
        "space" => KeyClass::Space,
        "zero" | "one" | "two" | "three" | "four" | "five" | "six" | "seven" | "eight" | "nine" => {
            KeyClass::Digit
        }
        key if key.len() == 1 && key.as_bytes()[0].is_ascii_alphabetic() => KeyClass::Letter,
        key if key.len() == 1 && key.as_bytes()[0].is_ascii_digit() => KeyClass::Digit,
        _ => KeyClass::Punctuation,
    }
}

const PHRASES_A_SESSION: u32 = 50;
const PHRASE_PAUSE_US: u64 = 2_000_000;
/// Longest hold or flight of a key, seconds.
const PHRASE_S_MAX: f64 = 60.0;

type Fail<'f> = &'f dyn Fn(&'static str) -> DatasetError;

/// Calls `row` with the columns of every line but empty ones and a header that begins with `header`.
fn rows<'t>(
    text: &'t str,
    header: &str,
    mut row: impl FnMut(Vec<&'t str>, Fail<'_>) -> Result<(), DatasetError>,
) -> Result<(), DatasetError> {
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() || i == 0 && line.trim_start_matches('\u{feff}').starts_with(header) {
            continue;
        }
        row(line.split(',').map(str::trim).collect(), &|what| DatasetError::Line { line: i + 1, what })?;
    }
    Ok(())
}

fn parse_batches(session: &mut Session, text: &str) -> Result<(), DatasetError> {
    #[derive(Deserialize)]
    struct Packed {
        #[serde(rename = "mouseEvents")]
        events: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        x_cor: f64,
        y_cor: f64,
        event: String,
        event_time: String,
    }
    for batch in serde_json::Deserializer::from_str(text).into_iter::<Packed>() {
        let batch = batch.map_err(|error| DatasetError::Line {
            line: error.line(),
            what: "not a batch: {\"mouseEvents\": [{x_cor, y_cor, event, event_time, …}]} is needed",
        })?;
        for one in batch.events {
            // Where in the file an object stood is lost once it is read: the event's number is told instead.
            let number = session.events.len() + 1;
            let fail = |what| DatasetError::Line { line: number, what };
            let ms = date_ms(&one.event_time).ok_or(fail("event_time is not yyyy-MM-dd HH:mm:ss.SSS"))?;
            let (button, state) = match one.event.as_str() {
                "MOVE" => ("NoButton", "Move"),
                "LEFT_DOWN" => ("Left", "Pressed"),
                "LEFT_UP" => ("Left", "Released"),
                "RIGHT_DOWN" => ("Right", "Pressed"),
                "RIGHT_UP" => ("Right", "Released"),
                "SCROLL_PUSH" => ("Middle", "Pressed"),
                "SCROLL_PULL" => ("Middle", "Released"),
                "SCROLL_DOWN" => ("Scroll", "Down"),
                "SCROLL_UP" => ("Scroll", "Up"),
                _ => return Err(fail("an event is none of MOVE, LEFT_DOWN, … SCROLL_UP")),
            };
            session.add_at(ms, button, state, one.x_cor, one.y_cor, &fail)?;
        }
    }
    Ok(())
}

struct Session {
    events: Vec<Event>,
    origin_ms: Option<f64>,
    at_us: u64,
    /// Buttons down, one bit each: a release without a press was begun before the recording.
    down: u32,
}

impl Session {
    fn add(
        &mut self,
        ms: f64,
        button: &str,
        state: &str,
        place: (&str, &str),
        fail: Fail<'_>,
    ) -> Result<(), DatasetError> {
        self.add_at(ms, button, state, number(place.0, fail)?, number(place.1, fail)?, fail)
    }

    fn add_at(
        &mut self,
        ms: f64,
        button: &str,
        state: &str,
        x: f64,
        y: f64,
        fail: Fail<'_>,
    ) -> Result<(), DatasetError> {
        if self.events.len() == RECORDING_EVENTS_MAX {
            return Err(DatasetError::TooLong);
        }
        let since = (ms - *self.origin_ms.get_or_insert(ms)).max(0.0);
        if since > PAGE_CLOCK_MAX_US as f64 / 2e3 {
            return Err(fail("the time is out of range"));
        }
        // Some recorders write 65535 where the pointer left the screen.
        if x.abs() > COORDINATE_MAX_PX as f64 || y.abs() > COORDINATE_MAX_PX as f64 {
            return Err(fail("a place is out of range"));
        }
        self.at_us = self.at_us.max((since * 10.0).round() as u64 * 100 + START_US);
        let (x, y, pointer) = (x as f32, y as f32, PointerType::Mouse);
        let button = match button {
            "Right" => 2,
            "Middle" => 1,
            _ => 0,
        };
        let before = self.events.iter().rev().find_map(|event| event.kind.position());
        let moved = |at: f32, from: Option<f32>| from.map_or(0, |from| (at - from).round() as i32);
        let kind = match state {
            "Move" | "Drag" => EventKind::PointerMove {
                pointer,
                x,
                y,
                movement_x: moved(x, before.map(|place| place.0)),
                movement_y: moved(y, before.map(|place| place.1)),
                coalesced: 0,
            },
            "Pressed" => {
                self.down |= 1 << button;
                EventKind::PointerDown { pointer, x, y, button }
            }
            "Released" if self.down & 1 << button == 0 => return Ok(()),
            "Released" => {
                self.down &= !(1 << button);
                EventKind::PointerUp { pointer, x, y, button }
            }
            "Down" => EventKind::Wheel { dx: 0, dy: 120 },
            "Up" => EventKind::Wheel { dx: 0, dy: -120 },
            _ => return Err(fail("the action is none of Move, Drag, Pressed, Released, Down, Up")),
        };
        self.events.push(Event { at_us: self.at_us, trusted: true, kind });
        Ok(())
    }
}

fn number(text: &str, fail: Fail<'_>) -> Result<f64, DatasetError> {
    text.parse().ok().filter(|value: &f64| value.is_finite()).ok_or_else(|| fail("not a number"))
}

/// Milliseconds of `yyyy-MM-dd HH:mm:ss.SSS` since 1970; only differences matter, so any zone will do.
fn date_ms(text: &str) -> Option<f64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':').map(|part| part.parse::<f64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let is_date = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let is_time =
        (0.0..24.0).contains(&hour) && (0.0..60.0).contains(&minute) && (0.0..61.0).contains(&second);
    if !is_date || !is_time {
        return None;
    }
    // Years that begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    Some(((days as f64 * 24.0 + hour) * 60.0 + minute) * 60_000.0 + second * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(origin: Origin, text: &str, expect: &[(u64, &str)]) {
        let events = parse(origin, text).unwrap();
        let told = |event: &Event| {
            let word = match event.kind {
                EventKind::PointerMove { .. } => "move",
                EventKind::PointerDown { button: 2, .. } => "right down",
                EventKind::PointerDown { .. } => "down",
                EventKind::PointerUp { .. } => "up",
                EventKind::Wheel { dy: 120, .. } => "wheel down",
                _ => "other",
            };
            ((event.at_us - START_US) / 1000, word)
        };
        assert_eq!(events.iter().map(told).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn each_makers_format_becomes_the_same_events() {
        check(
            Origin::Balabit,
            "record timestamp,client timestamp,button,state,x,y\n0.0,0.5,NoButton,Move,399,962\n\
             0.3,0.609,Left,Pressed,399,962\n0.4,0.65,Left,Drag,400,962\n0.5,0.7,Left,Released,400,962\n\
             0.6,0.8,Scroll,Down,0,0\n",
            &[(0, "move"), (109, "down"), (150, "move"), (200, "up"), (300, "wheel down")],
        );
        check(
            Origin::Sapimouse,
            "client timestamp,button,state,x,y\n12,NoButton,Move,1,2\n28,Right,Pressed,3,4\n20,NoButton,Move,3,4\n",
            &[(0, "move"), (16, "right down"), (16, "move")],
        );
        check(
            Origin::Delbot,
            "resolution:1536,864\n9131.1,Pressed,717,361\n9151.1,MoveTouch,717.5,361\n9201.1,Released,717,361\n",
            &[(0, "down"), (20, "move"), (70, "up")],
        );
        let one = |event: &str, time: &str| {
            format!(
                "{{\"x_cor\":1,\"y_cor\":2,\"event\":\"{event}\",\"event_time\":\"{time}\",\"x_res\":9,\"y_res\":9}}"
            )
        };
        let (first, second) =
            (one("MOVE", "2020-02-29 23:59:59.900"), one("RIGHT_DOWN", "2020-03-01 00:00:00.100"));
        let batches = format!("{{\"mouseEvents\":[{first}]}}\n{{\"mouseEvents\":[{second}]}}");
        check(Origin::Batches, &batches, &[(0, "move"), (200, "right down")]);
    }

    #[test]
    fn a_typed_phrase_becomes_presses_and_releases_in_the_order_of_time() {
        let text = "subject,sessionIndex,rep,H.t,DD.t.five,UD.t.five,H.five,DD.five.Return,UD.five.Return,H.Return\n\
                    s002,1,1,0.15,0.1,-0.05,0.08,0.5,0.42,0.07\ns002,1,2,0.1,0.2,0.1,0.1,0.2,0.1,0.1\ns003,4,1,0.1,0.2,0.1,0.1,0.2,0.1,0.1\n";
        let sessions = parse_phrases(text).unwrap();
        let told = |event: &Event| {
            let (class, way) = match event.kind {
                EventKind::KeyDown { class, .. } => (class, "down"),
                EventKind::KeyUp { class } => (class, "up"),
                _ => panic!("not a key"),
            };
            ((event.at_us - START_US) / 1000, class, way)
        };
        let typed: Vec<_> = sessions[&("s002".to_string(), 1)].iter().map(told).collect();
        use KeyClass::{Digit, Enter, Letter};
        assert_eq!(
            typed[..7],
            [
                (0, Letter, "down"),
                (100, Digit, "down"),
                (150, Letter, "up"),
                (180, Digit, "up"),
                (600, Enter, "down"),
                (670, Enter, "up"),
                (2_670, Letter, "down"),
            ]
        );
        assert_eq!((typed.len(), sessions.len()), (12, 2));
        for (wrong, line, word) in [
            ("user,x\n", 1, "rep"),
            ("user,rep,H.a\n", 1, "keys"),
            ("user,rep,H.a,DD.a.b,H.b\na,1,0.1,0.1\n", 2, "as long"),
            ("user,rep,H.a,DD.a.b,H.b\na,1,0.1,0.1,0.1\na,2,0.1,-1,0.1\n", 3, "within"),
            ("user,rep,H.a,DD.a.b,H.b\na,1,NaN,0.1,0.1\n", 2, "number"),
        ] {
            let error = parse_phrases(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line {line}:")) && error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_mistake_names_its_line() {
        let line = |origin, text: &str| match parse(origin, text).unwrap_err() {
            DatasetError::Line { line, .. } => line,
            other => panic!("{other}"),
        };
        assert_eq!(line(Origin::Sapimouse, "client timestamp,button,state,x,y\n1,NoButton,Move,1\n"), 2);
        assert_eq!(
            line(Origin::Balabit, "record timestamp,x\n0,1,NoButton,Move,1,1\n0,NaN,NoButton,Move,1,1"),
            3
        );
        assert_eq!(line(Origin::Delbot, "1,Hover,1,1\n"), 1);
        assert_eq!(line(Origin::Delbot, "1,Move,1e9,1\n"), 1);
        assert_eq!(line(Origin::Batches, "{\"mouseEvents\":[]}\n{\"mouse\":[]}"), 2);
    }
}
