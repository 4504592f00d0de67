//! Recorded sessions: an open JSON-lines format, one line whenever something about a session changed.
//!
//! The first line is `{"gaitway":"sessions","version":1}`. Every other line names a session and a
//! time in milliseconds, and the facts that changed, by the names policies use:
//! `{"session":"s_…","at":1800000000000,"user":"u_…","facts":{"bot.evidence":3.5,"evidence.seconds":12}}`.
//! `user` and `groups` stand on a session's first line; facts not named keep their last value. A line
//! with `"opened":TIME` begins a session anew: whatever was read of it before counts no more, and
//! facts not named have their defaults. Lines are in the order of time. Must not know: where lines
//! come from, what is decided over them.

use crate::facts::{FACTS, Fact, FactKind, FactValue, Facts, find};
use crate::identity::{Identity, SessionId, SubjectId};
use gaitway_models::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// First line of a recording.
pub const HEADER: &str = r#"{"gaitway":"sessions","version":1}"#;
/// Longest line, in bytes: all facts and 32 groups fit many times over.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Most sessions of one replay; each costs about a kilobyte while it is replayed.
pub const SESSIONS_MAX: usize = 4_000_000;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("line {0}: not a recording: the first line must be {HEADER}")]
    Header(usize),
    #[error("line {0}: longer than {LINE_BYTES_MAX} bytes")]
    TooLong(usize),
    #[error("line {line}: {problem}")]
    Malformed { line: usize, problem: String },
    #[error("line {line}: `{fact}` has a value of another type or out of its range")]
    Fact { line: usize, fact: String },
    #[error("line {line}: earlier than the line before; recordings are in the order of time")]
    Order { line: usize },
    #[error("line {0}: more than {SESSIONS_MAX} sessions")]
    TooManySessions(usize),
}

/// One line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    session: SessionId,
    at: u64,
    #[serde(default)]
    opened: Option<u64>,
    #[serde(default)]
    user: Option<SubjectId>,
    #[serde(default)]
    groups: Option<Vec<String>>,
    #[serde(default)]
    facts: Changes,
}

/// The facts of a line, by position in the table: names are looked up as they are read.
#[derive(Debug, Default)]
struct Changes(Vec<(usize, Value)>);

impl<'de> Deserialize<'de> for Changes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Changes, D::Error> {
        struct Pairs;
        impl<'de> serde::de::Visitor<'de> for Pairs {
            type Value = Changes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("facts by name")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Changes, A::Error> {
                let mut changes = Vec::with_capacity(4);
                while let Some(Name(fact)) = map.next_key()? {
                    changes.push((fact, map.next_value()?));
                }
                Ok(Changes(changes))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// A fact's name, read as its position.
struct Name(usize);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Name;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a fact")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Name, E> {
                find(text).map(Name).ok_or_else(|| E::custom(format_args!("unknown fact `{text}`")))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// What is known of a recorded session at some line.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub identity: Identity,
    pub facts: Facts,
    pub first: Timestamp,
    pub last: Timestamp,
}

/// Reads lines and keeps every session's latest facts.
#[derive(Default)]
pub struct Recording {
    line: usize,
    latest: Timestamp,
    sessions: HashMap<SessionId, Recorded>,
}

impl Recording {
    pub fn new() -> Recording {
        Recording::default()
    }

    /// Takes the next line; gives the session it speaks of, or `None` for a header or an empty line.
    pub fn read(&mut self, text: &str) -> Result<Option<&Recorded>, RecordError> {
        self.line += 1;
        let line = self.line;
        if text.len() > LINE_BYTES_MAX {
            return Err(RecordError::TooLong(line));
        }
        if text.trim().is_empty() {
            return Ok(None);
        }
        // Several recordings may follow each other, each with its header.
        if text.starts_with(r#"{"gaitway""#) {
            return if text.trim() == HEADER { Ok(None) } else { Err(RecordError::Header(line)) };
        }
        if line == 1 {
            return Err(RecordError::Header(line));
        }
        let read: Line = serde_json::from_str(text)
            .map_err(|error| RecordError::Malformed { line, problem: error.to_string() })?;
        let at = Timestamp(read.at);
        if at < self.latest {
            return Err(RecordError::Order { line });
        }
        self.latest = at;
        if self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(&read.session) {
            return Err(RecordError::TooManySessions(line));
        }
        let recorded = self.sessions.entry(read.session).or_insert_with(|| Recorded {
            identity: Identity {
                session: read.session,
                subject: None,
                token: None,
                expires_at: None,
                issued_at: None,
                groups: Vec::new(),
            },
            facts: Facts::default(),
            first: at,
            last: at,
        });
        recorded.last = at;
        if let Some(opened) = read.opened {
            // A line may tell of a session that opened long before the recording did.
            recorded.first = Timestamp(opened).min(at);
            recorded.facts = Facts::default();
            recorded.identity.subject = None;
            recorded.identity.groups = Vec::new();
        }
        if read.user.is_some() {
            recorded.identity.subject = read.user;
        }
        if let Some(groups) = read.groups {
            recorded.identity.groups = groups;
        }
        for (fact, value) in &read.facts.0 {
            if !set_json(&mut recorded.facts, &FACTS[*fact], value) {
                return Err(RecordError::Fact { line, fact: FACTS[*fact].name.into() });
            }
        }
        Ok(Some(recorded))
    }

    /// All sessions read so far.
    pub fn sessions(&self) -> &HashMap<SessionId, Recorded> {
        &self.sessions
    }
}

/// What a reader knows of a session before a line.
#[derive(Clone, Copy, Debug)]
pub enum Before<'f> {
    /// Nothing that counts: the line begins the session, which opened at this time.
    Opened(Timestamp),
    Known(&'f Facts),
}

/// Writes the line for `facts` at `at`: everything that differs from what is known `before`. `None` if
/// nothing differs. Addresses are not recorded.
pub fn line(identity: &Identity, at: Timestamp, facts: &Facts, before: Before<'_>) -> Option<String> {
    let usual = Facts::default();
    let (compared, opened) = match before {
        Before::Opened(opened) => (&usual, Some(opened)),
        Before::Known(facts) => (facts, None),
    };
    let mut changed = Map::new();
    for fact in FACTS.iter().filter(|fact| fact.tellable && !fact.name.starts_with("user.")) {
        // Age follows from the time of the first line.
        if fact.name == "session.age" {
            continue;
        }
        let value = (fact.get)(facts);
        if value != (fact.get)(compared) {
            changed.insert(fact.name.to_owned(), json(value));
        }
    }
    if changed.is_empty() && opened.is_none() {
        return None;
    }
    let mut line = Map::new();
    line.insert("session".into(), identity.session.to_string().into());
    line.insert("at".into(), at.0.into());
    if let Some(opened) = opened {
        line.insert("opened".into(), opened.0.into());
        if let Some(subject) = identity.subject {
            line.insert("user".into(), subject.to_string().into());
        }
        if !identity.groups.is_empty() {
            line.insert("groups".into(), identity.groups.clone().into());
        }
    }
    line.insert("facts".into(), changed.into());
    Some(Value::Object(line).to_string())
}

/// Sets one fact from JSON; false if the type is another or the value out of range.
fn set_json(facts: &mut Facts, fact: &Fact, value: &Value) -> bool {
    let texts: Vec<String>;
    let value = match (fact.kind, value) {
        (FactKind::Bool, Value::Bool(value)) => FactValue::Bool(*value),
        (FactKind::Int, Value::Number(number)) => match number.as_i64().filter(|whole| *whole >= 0) {
            Some(whole) => FactValue::Int(whole),
            None => return false,
        },
        (FactKind::Double { least, most }, Value::Number(number)) => match number.as_f64() {
            Some(number) if (least..=most).contains(&number) => FactValue::Double(number),
            _ => return false,
        },
        (FactKind::Text { .. }, Value::String(text)) => FactValue::Text(text),
        (FactKind::List, Value::Array(items)) => {
            texts = items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect();
            if texts.len() < items.len() {
                return false;
            }
            FactValue::List(&texts)
        }
        _ => return false,
    };
    (fact.set)(facts, value)
}

fn json(value: FactValue<'_>) -> Value {
    match value {
        FactValue::Bool(value) => value.into(),
        FactValue::Int(value) => value.into(),
        FactValue::Double(value) => value.into(),
        FactValue::Text(value) => value.into(),
        FactValue::List(values) => values.to_vec().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Vec<f64>, RecordError> {
        let mut recording = Recording::new();
        let mut evidence = Vec::new();
        for line in lines {
            if let Some(recorded) = recording.read(line)? {
                evidence.push(f64::from(recorded.facts.assessment.bot_evidence));
            }
        }
        Ok(evidence)
    }

    const SESSION: &str = "s_01010101010101010101010101010101";

    #[test]
    fn facts_keep_their_last_value() {
        let first = format!(r#"{{"session":"{SESSION}","at":1,"facts":{{"bot.evidence":2.5}}}}"#);
        let second = format!(r#"{{"session":"{SESSION}","at":2,"facts":{{"bot.score":0.5}}}}"#);
        assert_eq!(read(&[HEADER, &first, "", &second]).unwrap(), [2.5, 2.5]);
    }

    #[test]
    fn what_is_no_recording_is_refused_by_line() {
        let line = |facts: &str, at: u64| format!(r#"{{"session":"{SESSION}","at":{at},"facts":{facts}}}"#);
        assert_eq!(read(&["{}"]), Err(RecordError::Header(1)));
        assert_eq!(read(&[r#"{"gaitway":"sessions","version":2}"#]), Err(RecordError::Header(1)));
        for facts in
            [r#"{"bot.score":"x"}"#, r#"{"bot.score":7}"#, r#"{"bot.windows":-1}"#, r#"{"modality":"nose"}"#]
        {
            assert!(
                matches!(read(&[HEADER, &line(facts, 1)]), Err(RecordError::Fact { line: 2, .. })),
                "{facts}"
            );
        }
        let unknown = read(&[HEADER, &line(r#"{"bot.scor":1}"#, 1)]);
        assert!(
            matches!(unknown, Err(RecordError::Malformed { line: 2, problem }) if problem.contains("unknown fact `bot.scor`"))
        );
        assert_eq!(read(&[HEADER, &line("{}", 5), &line("{}", 4)]), Err(RecordError::Order { line: 3 }));
        assert!(matches!(read(&[HEADER, "{\"session\":"]), Err(RecordError::Malformed { line: 2, .. })));
        assert_eq!(read(&[HEADER, &"x".repeat(LINE_BYTES_MAX + 1)]), Err(RecordError::TooLong(2)));
    }

    #[test]
    fn a_written_line_reads_back_and_tells_only_changes() {
        let identity = Identity {
            session: SessionId([1; 16]),
            subject: Some(SubjectId([2; 16])),
            token: None,
            expires_at: None,
            issued_at: None,
            groups: vec!["staff".into()],
        };
        let mut facts = Facts { net_ip: "192.0.2.1".into(), route: "shop".into(), ..Facts::default() };
        facts.assessment.bot_evidence = 3.25;
        let first = line(&identity, Timestamp(1), &facts, Before::Opened(Timestamp(1))).unwrap();
        assert!(!first.contains("192.0.2.1"));
        assert_eq!(line(&identity, Timestamp(2), &facts, Before::Known(&facts)), None);
        let mut later = facts.clone();
        later.assessment.bot_score = Some(0.75);
        let second = line(&identity, Timestamp(2), &later, Before::Known(&facts)).unwrap();
        assert!(
            second.ends_with(r#""facts":{"bot.score":0.75},"session":"s_01010101010101010101010101010101"}"#)
        );
        let mut recording = Recording::new();
        recording.read(HEADER).unwrap();
        recording.read(&first).unwrap();
        let read = recording.read(&second).unwrap().unwrap();
        assert_eq!((read.identity.subject, read.identity.groups.len()), (identity.subject, 1));
        assert_eq!((read.facts.assessment.bot_evidence, read.facts.assessment.bot_score), (3.25, Some(0.75)));
    }

    #[test]
    fn a_session_that_opens_anew_starts_from_nothing() {
        let mut recording = Recording::new();
        let first = format!(r#"{{"session":"{SESSION}","at":1,"facts":{{"bot.evidence":2.5}}}}"#);
        let anew = format!(r#"{{"session":"{SESSION}","at":9,"opened":7,"facts":{{"bot.score":0.5}}}}"#);
        for line in [HEADER, &first, &anew] {
            recording.read(line).unwrap();
        }
        let recorded = recording.sessions().values().next().unwrap();
        assert_eq!(recorded.facts.assessment.bot_evidence, 0.0);
        assert_eq!((recorded.first, recorded.last), (Timestamp(7), Timestamp(9)));
    }
}
