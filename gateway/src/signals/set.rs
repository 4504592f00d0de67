//! A Security Event Token (RFC 8417) as OpenID Shared Signals 1.0 profiles it: what it says, and how one is
//! said.
//!
//! Pure: claims in, meaning out. What is not understood is told apart from what is wrong, because a
//! receiver acknowledges the one and refuses the other. Must not know: signatures, who is meant here.

use crate::revocation::PARDON_KEPT;
use gaitway_models::Timestamp;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The type in its header, in lower case and without `application/`.
pub const SET_TYPE: &str = "secevent+jwt";
pub const SESSION_REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
pub const ACCOUNT_DISABLED: &str = "https://schemas.openid.net/secevent/risc/event-type/account-disabled";
pub const VERIFICATION: &str = "https://schemas.openid.net/secevent/ssf/event-type/verification";

/// What a verified token says.
#[derive(Debug, PartialEq, Eq)]
pub struct Set {
    pub jti: String,
    pub events: Vec<Event>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: Kind,
    /// When it happened; never later than the token was issued.
    pub at: Timestamp,
    /// `None`: the subject is none that is understood.
    pub about: Option<About>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    SessionRevoked,
    AccountDisabled,
    Verification,
    Other,
}

/// Whom or what an event is about (RFC 9493).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    Person(Person),
    /// One session, by the name that the issuer of its tokens gives it (`sid`).
    Session {
        sid: String,
        person: Option<Person>,
    },
    /// One token, by its `jti`.
    Token {
        issuer: String,
        jti: String,
    },
}

/// `iss_sub`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub issuer: String,
    pub sub: String,
}

impl Set {
    /// Errors say what is wrong with the token; it will be no better the next time.
    pub fn read(claims: &Map<String, Value>, now: Timestamp) -> Result<Set, &'static str> {
        let jti = text(claims, "jti").ok_or("jti is missing or too long")?;
        let issued_at = date(claims, "iat")?.ok_or("iat is missing")?;
        if issued_at.since(now) > FUTURE_MAX {
            return Err("iat lies in the future");
        }
        let events = claims.get("events").and_then(Value::as_object).ok_or("events is no object")?;
        if events.is_empty() || events.len() > EVENTS_MAX {
            return Err("events has none or too many");
        }
        let happened_at = date(claims, "toe")?;
        let event = |(name, payload): (&String, &Value)| {
            let payload = payload.as_object().ok_or("an event is no object")?;
            let at = date(payload, "event_timestamp")?.or(happened_at).unwrap_or(issued_at);
            // Before 1.0 the subject stood within the event.
            let subject = claims.get("sub_id").or_else(|| payload.get("subject"));
            Ok(Event { kind: Kind::of(name), at: at.min(issued_at).min(now), about: subject.and_then(about) })
        };
        let events = events.iter().map(event).collect::<Result<Vec<Event>, &'static str>>()?;
        Ok(Set { jti: jti.to_owned(), events })
    }
}

impl Event {
    /// Whether it happened so long ago that what it tells is over. Its own time counts, not that of its token: told
    /// anew, it would outlive the pardon that answered it.
    pub fn is_stale(&self, now: Timestamp) -> bool {
        now.since(self.at) >= AGE_MAX
    }
}

impl Kind {
    fn of(name: &str) -> Kind {
        match name {
            SESSION_REVOKED => Kind::SessionRevoked,
            ACCOUNT_DISABLED => Kind::AccountDisabled,
            VERIFICATION => Kind::Verification,
            _ => Kind::Other,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::SessionRevoked => "session-revoked",
            Kind::AccountDisabled => "account-disabled",
            Kind::Verification => "verification",
            Kind::Other => "other",
        }
    }
}

/// `None` for a subject that is not understood. One that says more than is understood counts as such, too:
/// to leave a condition out would reach more sessions than were meant.
fn about(subject: &Value) -> Option<About> {
    let subject = subject.as_object()?;
    match subject.get("format")?.as_str()? {
        "iss_sub" => person(subject).map(About::Person),
        "jwt_id" => token(subject),
        // A complex subject is who and what all its members name together.
        "complex" => {
            let known = ["format", "user", "session", "tenant"];
            if !subject.keys().all(|member| known.contains(&member.as_str())) {
                return None;
            }
            let user = subject.get("user").map(|user| user.as_object());
            let person = user.flatten().and_then(person);
            match (subject.get("session"), user) {
                (Some(session), _) => match session.get("format")?.as_str()? {
                    "opaque" => {
                        Some(About::Session { sid: text(session.as_object()?, "id")?.to_owned(), person })
                    }
                    "jwt_id" => token(session.as_object()?),
                    _ => None,
                },
                // Within one tenant the person is less than the person everywhere.
                (None, Some(_)) if !subject.contains_key("tenant") => person.map(About::Person),
                (None, _) => None,
            }
        }
        // Opaque alone does not say whether it names a person or a session.
        _ => None,
    }
}

fn person(subject: &Map<String, Value>) -> Option<Person> {
    if subject.get("format")?.as_str()? != "iss_sub" {
        return None;
    }
    Some(Person { issuer: text(subject, "iss")?.to_owned(), sub: text(subject, "sub")?.to_owned() })
}

fn token(subject: &Map<String, Value>) -> Option<About> {
    Some(About::Token { issuer: text(subject, "iss")?.to_owned(), jti: text(subject, "jti")?.to_owned() })
}

fn text<'m>(members: &'m Map<String, Value>, name: &str) -> Option<&'m str> {
    let text = members.get(name)?.as_str()?;
    (1..=NAME_BYTES_MAX).contains(&text.len()).then_some(text)
}

/// A NumericDate.
fn date(members: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, &'static str> {
    let Some(value) = members.get(name) else { return Ok(None) };
    match value.as_f64() {
        Some(number) if number.is_finite() && (0.0..=SECONDS_MAX * 1000.0).contains(&number) => {
            // Some transmitters mean milliseconds, which nothing but the size tells.
            let ms = if number > SECONDS_MAX { number } else { number * 1000.0 };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the range")]
            Ok(Some(Timestamp(ms as u64)))
        }
        _ => Err("a date is no number of seconds"),
    }
}

/// The claims of a token with one event.
pub fn claims(
    (issuer, audience): (&str, &str),
    jti: &str,
    issued_at: Timestamp,
    subject: &Value,
    (name, payload): (&str, Value),
) -> Value {
    json!({
        "iss": issuer,
        "aud": audience,
        "jti": jti,
        "iat": issued_at.0 / 1000,
        "sub_id": subject,
        "events": { name: payload },
    })
}

/// Transmitters send one event a token; a few do no harm.
const EVENTS_MAX: usize = 8;
/// Names of people, sessions and tokens are short; addresses of issuers of this length exist.
const NAME_BYTES_MAX: usize = 512;
/// Whoever's clock is further ahead than this sends nonsense.
const FUTURE_MAX: Duration = Duration::from_secs(600);
/// Longer than receivers are down for, and no longer than pardons are kept.
const AGE_MAX: Duration = PARDON_KEPT;
/// The year 5138 in seconds; as milliseconds the year 1973, when nobody sent events.
const SECONDS_MAX: f64 = 100_000_000_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn set(claims: Value) -> Result<Set, &'static str> {
        Set::read(claims.as_object().unwrap(), NOW)
    }

    fn person() -> Person {
        Person { issuer: "https://login.example".into(), sub: "alice".into() }
    }

    #[test]
    fn subjects_mean_what_rfc_9493_says_and_nothing_wider() {
        let alice = json!({"format": "iss_sub", "iss": "https://login.example", "sub": "alice"});
        let session = json!({"format": "opaque", "id": "s1"});
        let check = |subject: Value, expected: Option<About>| {
            let claims =
                json!({"jti": "1", "iat": 1_800_000_000, "sub_id": subject, "events": {SESSION_REVOKED: {}}});
            assert_eq!(set(claims).unwrap().events[0].about, expected, "{subject}");
        };
        check(alice.clone(), Some(About::Person(person())));
        check(
            json!({"format": "complex", "user": alice, "session": session}),
            Some(About::Session { sid: "s1".into(), person: Some(person()) }),
        );
        check(
            json!({"format": "complex", "session": session, "tenant": {"format": "opaque", "id": "t"}}),
            Some(About::Session { sid: "s1".into(), person: None }),
        );
        check(json!({"format": "complex", "user": alice}), Some(About::Person(person())));
        let token = json!({"format": "jwt_id", "iss": "https://login.example", "jti": "j"});
        let meant = About::Token { issuer: "https://login.example".into(), jti: "j".into() };
        check(token.clone(), Some(meant.clone()));
        check(json!({"format": "complex", "user": alice, "session": token}), Some(meant));
        // Each of these, read for less than it says, would end somebody's other sessions.
        for subject in [
            json!({"format": "complex", "user": alice, "device": {"format": "opaque", "id": "d"}}),
            json!({"format": "complex", "user": alice, "tenant": {"format": "opaque", "id": "t"}}),
            json!({"format": "complex", "user": alice, "session": {"format": "saml_assertion_id"}}),
            json!({"format": "complex", "user": alice, "session": "s1"}),
            json!({"format": "complex", "user": {"format": "email", "email": "a@b.example"}}),
            json!({"format": "complex", "tenant": {"format": "opaque", "id": "t"}}),
            json!({"format": "complex"}),
            json!({"format": "opaque", "id": "42"}),
            json!({"format": "email", "email": "a@b.example"}),
            json!({"format": "iss_sub", "iss": "https://login.example", "sub": ""}),
            json!({"format": "iss_sub", "iss": "https://login.example", "sub": 5}),
            json!({"format": "iss_sub", "sub": "alice"}),
            json!({"format": "iss_sub", "iss": "x", "sub": "a".repeat(513)}),
            json!({"iss": "https://login.example", "sub": "alice"}),
            json!("alice"),
            json!(null),
        ] {
            check(subject, None);
        }
    }

    #[test]
    fn an_event_is_never_later_than_its_token_nor_than_now() {
        let at = |claims: Value| set(claims).unwrap().events[0].at;
        let of =
            |payload: Value, iat: u64| json!({"jti": "1", "iat": iat, "events": {SESSION_REVOKED: payload}});
        assert_eq!(
            at(of(json!({"event_timestamp": 1_799_999_000}), 1_800_000_000)),
            Timestamp(1_799_999_000_000)
        );
        assert_eq!(
            at(of(json!({"event_timestamp": 1_800_000_500}), 1_799_999_990)),
            Timestamp(1_799_999_990_000)
        );
        assert_eq!(at(of(json!({}), 1_800_000_500)), NOW);
        assert_eq!(
            at(of(json!({"event_timestamp": 1_799_999_000_500u64}), 1_800_000_000)),
            Timestamp(1_799_999_000_500)
        );
        let mut toe = of(json!({}), 1_800_000_000);
        toe["toe"] = json!(1_799_999_500.5);
        assert_eq!(at(toe), Timestamp(1_799_999_500_500));
    }

    #[test]
    fn what_is_no_event_token_is_refused() {
        let good = json!({"jti": "1", "iat": 1_800_000_000, "events": {VERIFICATION: {"state": "x"}}});
        assert_eq!(set(good.clone()).unwrap().events[0].kind, Kind::Verification);
        let many: Map<String, Value> = (0..9).map(|n| (n.to_string(), json!({}))).collect();
        for (member, value) in [
            ("jti", json!(null)),
            ("jti", json!(7)),
            ("jti", json!("")),
            ("iat", json!("1800000000")),
            ("iat", json!(null)),
            ("iat", json!(-1)),
            ("iat", json!(1_800_000_601)),
            ("toe", json!("now")),
            ("events", json!(null)),
            ("events", json!([])),
            ("events", json!({})),
            ("events", json!({SESSION_REVOKED: null})),
            ("events", json!({SESSION_REVOKED: {"event_timestamp": "1"}})),
            ("events", Value::Object(many)),
        ] {
            let mut claims = good.clone();
            claims[member] = value;
            assert!(set(claims.clone()).is_err(), "{claims}");
        }
    }

    #[test]
    fn what_happened_a_week_ago_is_stale_however_new_its_token() {
        let is_stale = |at: u64, iat: u64| {
            let events = json!({SESSION_REVOKED: {"event_timestamp": at}});
            set(json!({"jti": "1", "iat": iat, "events": events})).unwrap().events[0].is_stale(NOW)
        };
        let (now, week) = (1_800_000_000, 7 * 24 * 3600);
        assert!(!is_stale(now - week + 1, now - week + 1));
        assert!(is_stale(now - week, now - week));
        assert!(is_stale(now - week, now), "told anew");
    }
}
