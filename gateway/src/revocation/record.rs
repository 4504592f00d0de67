//! One record of the board: what is known about one token, session or subject, and which of two
//! records counts. Also its text, as it stands in Redis.
//!
//! Invariant: any two replicas that have seen the same records, in any order and any number of times,
//! hold the same board, because the greater record always wins. Must not know: where records are kept.

use super::{Change, Pardon, Revocation, Scope};
use gaitway_models::Timestamp;
use gaitway_policies::{SessionId, SubjectId, TokenId};
use std::hash::{Hash, Hasher};

/// What a record is about. The moment of a subject revocation is not part of it: a later one replaces
/// an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Token(TokenId),
    Session(SessionId),
    Subject(SubjectId),
}

impl Key {
    pub(super) fn of(scope: &Scope) -> Key {
        match scope {
            Scope::Token(token) => Key::Token(*token),
            Scope::Session(session) => Key::Session(*session),
            Scope::Subject { subject, .. } => Key::Subject(*subject),
        }
    }

    pub(super) fn bytes(&self) -> &[u8; 16] {
        match self {
            Key::Token(TokenId(bytes)) | Key::Session(SessionId(bytes)) | Key::Subject(SubjectId(bytes)) => {
                bytes
            }
        }
    }

    pub(super) fn parse(text: &str) -> Option<Key> {
        match text.as_bytes().first()? {
            b't' => text.parse().ok().map(Key::Token),
            b's' => text.parse().ok().map(Key::Session),
            b'u' => text.parse().ok().map(Key::Subject),
            _ => None,
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Token(id) => id.fmt(f),
            Key::Session(id) => id.fmt(f),
            Key::Subject(id) => id.fmt(f),
        }
    }
}

/// Eight bytes of the pseudonym. It is a keyed hash already, so nobody outside can aim at a bucket.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = *self.bytes();
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// What is known about a key. The order of the fields is the order in which records are compared: the
/// later decision counts; of two in the same millisecond the pardon does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Record {
    pub(super) decided_at: Timestamp,
    pub(super) is_pardon: bool,
    /// Until when it is refused, or exempt.
    pub(super) until: Timestamp,
    /// Until when the record itself is kept. A pardon outlives the revocation it answers, so that a late
    /// copy of that one finds it; so does a revocation that replaced a pardon.
    pub(super) keep: Timestamp,
    /// Subjects only: tokens issued before this moment are meant.
    pub(super) before: Timestamp,
    pub(super) incident: Box<str>,
}

impl Record {
    pub(super) fn revoked(revocation: &Revocation) -> Record {
        let until = clamp(revocation.until);
        let before = before(&revocation.scope);
        let decided_at = clamp(revocation.decided_at);
        let incident = printable(&revocation.incident);
        Record { decided_at, is_pardon: false, until, keep: until, before, incident }
    }

    pub(super) fn pardoned(pardon: &Pardon, keep: Timestamp) -> Record {
        Record {
            decided_at: clamp(pardon.decided_at),
            is_pardon: true,
            until: clamp(pardon.until),
            keep: clamp(keep),
            before: before(&pardon.scope),
            incident: "".into(),
        }
    }

    /// Whether it is a pardon, or replaced one that would be kept for longer than it refuses.
    pub(super) fn follows_pardon(&self) -> bool {
        self.is_pardon || self.keep > self.until
    }

    pub(super) fn scope(&self, key: &Key) -> Scope {
        match *key {
            Key::Token(token) => Scope::Token(token),
            Key::Session(session) => Scope::Session(session),
            Key::Subject(subject) => Scope::Subject { subject, before: self.before },
        }
    }

    pub(super) fn revocation(&self, key: &Key) -> Revocation {
        Revocation {
            scope: self.scope(key),
            incident: self.incident.to_string(),
            decided_at: self.decided_at,
            until: self.until,
        }
    }

    pub(super) fn change(&self, key: &Key) -> Change {
        if self.is_pardon {
            Change::Pardoned { scope: self.scope(key), until: self.until }
        } else {
            Change::Revoked(self.revocation(key))
        }
    }

    /// Fixed-width decimal fields, so that comparing two texts byte by byte compares the records: the
    /// script in Redis relies on it.
    pub(super) fn encode(&self) -> String {
        format!(
            "{VERSION} {:015} {} {:015} {:015} {:015} {}",
            self.decided_at.0,
            u8::from(self.is_pardon),
            self.until.0,
            self.keep.0,
            self.before.0,
            self.incident,
        )
    }

    /// Reads what another replica wrote. `None` for anything else: an unknown record revokes nobody.
    pub(super) fn decode(text: &str) -> Option<Record> {
        let mut fields = text.splitn(7, ' ');
        if fields.next()? != VERSION {
            return None;
        }
        let mut number = |width: usize| {
            let field = fields.next()?;
            let is_number = field.len() == width && field.bytes().all(|byte| byte.is_ascii_digit());
            if is_number { field.parse::<u64>().ok() } else { None }
        };
        let decided_at = Timestamp(number(15)?);
        let is_pardon = match number(1)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let (until, keep, before) = (Timestamp(number(15)?), Timestamp(number(15)?), Timestamp(number(15)?));
        let incident = fields.next()?;
        if incident.len() > INCIDENT_BYTES_MAX || printable(incident).as_ref() != incident {
            return None;
        }
        Some(Record { decided_at, is_pardon, until, keep, before, incident: incident.into() })
    }
}

fn before(scope: &Scope) -> Timestamp {
    match scope {
        Scope::Subject { before, .. } => clamp(*before),
        Scope::Token(_) | Scope::Session(_) => Timestamp(0),
    }
}

/// The incident's number as it may stand in a record: no control characters, no spaces, short.
fn printable(incident: &str) -> Box<str> {
    let is_plain = |character: char| character.is_ascii_graphic();
    incident.chars().filter(|c| is_plain(*c)).take(INCIDENT_BYTES_MAX).collect::<String>().into()
}

/// Fifteen digits of milliseconds, past the year 9999.
pub(super) fn clamp(at: Timestamp) -> Timestamp {
    Timestamp(at.0.min(999_999_999_999_999))
}

const VERSION: &str = "1";
/// Incident numbers are for reading aloud; they have about a dozen characters.
const INCIDENT_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(decided_at: u64, is_pardon: bool, until: u64, incident: &str) -> Record {
        Record {
            decided_at: Timestamp(decided_at),
            is_pardon,
            until: Timestamp(until),
            keep: Timestamp(until),
            before: Timestamp(7),
            incident: incident.into(),
        }
    }

    #[test]
    fn a_record_survives_its_text() {
        for record in [
            record(0, false, 0, ""),
            record(1_800_000_000_000, true, 1_800_000_100_000, "G-7F3K-9Q"),
            record(999_999_999_999_999, false, 999_999_999_999_999, &"x".repeat(INCIDENT_BYTES_MAX)),
        ] {
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
    }

    #[test]
    fn texts_compare_as_their_records_do() {
        let mut records = Vec::new();
        for decided_at in [0, 9, 10, 99, 1_800_000_000_000] {
            for is_pardon in [false, true] {
                for until in [0, 5, 1_800_000_000_001] {
                    for incident in ["", "A", "B"] {
                        records.push(record(decided_at, is_pardon, until, incident));
                    }
                }
            }
        }
        for a in &records {
            for b in &records {
                assert_eq!(a.cmp(b), a.encode().cmp(&b.encode()), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_foreign_text_is_no_record() {
        let good = record(5, false, 9, "G-1").encode();
        assert!(Record::decode(&good).is_some());
        for text in [
            "",
            "1",
            "x",
            "1 2 3 4 5 6 7",
            &good[1..],
            &good[..good.len() - 4],
            &good.replacen('1', "2", 1),
            &good.replace(" 0 ", " 2 "),
            &good.replace(" 0 ", " + "),
            &good.replace("G-1", "G 1"),
            &good.replace("G-1", "G\n1"),
            &good.replace("G-1", "\u{fc}"),
            &good.replace("G-1", &"x".repeat(65)),
            &good.replace("000000000000005", "+00000000000005"),
            &good.replace("000000000000005", "5"),
        ] {
            assert_eq!(Record::decode(text), None, "{text:?}");
        }
    }

    #[test]
    fn an_incident_number_keeps_to_one_line() {
        let revocation = Revocation {
            scope: Scope::Session(SessionId([1; 16])),
            incident: format!("G-1\r\n 2{}", "x".repeat(100)),
            decided_at: Timestamp(u64::MAX),
            until: Timestamp(u64::MAX),
        };
        let record = Record::revoked(&revocation);
        assert!(record.incident.starts_with("G-12xxx"));
        assert_eq!(Record::decode(&record.encode()), Some(record));
    }

    #[test]
    fn keys_survive_their_text() {
        for key in [
            Key::Token(TokenId([1; 16])),
            Key::Session(SessionId([2; 16])),
            Key::Subject(SubjectId([255; 16])),
        ] {
            assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
        for text in
            ["", "s_", "x_00000000000000000000000000000000", "s_0000000000000000000000000000000g", "s"]
        {
            assert_eq!(Key::parse(text), None, "{text:?}");
        }
    }
}
