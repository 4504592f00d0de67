//! Listening to transmitters: their events arrive by push (RFC 8935) or are fetched (RFC 8936), are believed
//! once their signature is checked, and become incidents of which the transmitter is the author.
//!
//! Invariant: what is acknowledged is recorded, and an event that arrives twice is one incident. What is
//! genuine and not understood is acknowledged and counted: it would be no clearer the next time.

use super::set::{About, Kind, Person, SET_TYPE, Set};
use super::{Asked, shows_bearer};
use crate::clock;
use crate::config::{self, SignalMode, reference};
use crate::edge;
use crate::outbox::{Offered, Outbox};
use crate::proxy::identity::login::Login;
use crate::proxy::identity::signed::{self, Signatory, Unbelieved};
use crate::proxy::limits::network_of;
use crate::secret::InstallSecret;
use crate::shards::incident_id;
use bytes::Bytes;
use gaitway_models::Timestamp;
use gaitway_policies::engine::{Action, Mode};
use gaitway_policies::facts::Facts;
use gaitway_policies::{Identity, Incident, SessionId, TokenId};
use http::{HeaderValue, Response, StatusCode, header};
use metrics::counter;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// One for the process.
pub struct Receiver {
    transmitters: Vec<Transmitter>,
    secret: Arc<InstallSecret>,
    login: Option<Arc<Login>>,
    /// Tokens of the app name sessions, too.
    tokens_name_sessions: bool,
    outbox: Arc<Outbox>,
    /// How long a revocation lasts; longer than what it ends.
    life: Duration,
    /// Events that were dealt with, so that one that comes again costs nothing. The incident's number, made
    /// from the event, is what makes it safe.
    seen: Cache<TokenId, ()>,
    /// Senders that have shown a transmitter's bearer token, and events that were asked for.
    known: Door,
    /// Everybody else: what they send takes nothing from the known.
    strangers: Door,
}

struct Transmitter {
    settings: config::Receive,
    signatory: Signatory,
    push_bearer: Option<String>,
    poll: Option<Poll>,
}

struct Poll {
    url: reqwest::Url,
    bearer: String,
    http: reqwest::Client,
}

/// Why an event was not taken.
#[derive(Debug)]
enum Refused {
    /// It will be no better the next time: an error code of RFC 8935 §2.4 and what is wrong.
    Wrong(&'static str, &'static str),
    /// It may be sent again.
    Later(&'static str),
}

#[derive(Debug, thiserror::Error)]
#[error("signals.receive[{index}].{setting}: {why}")]
pub struct SignalError {
    index: usize,
    setting: &'static str,
    why: String,
}

impl Receiver {
    /// Begins to follow the transmitters' keys.
    pub fn start(
        config: &config::Config,
        secret: Arc<InstallSecret>,
        login: Option<Arc<Login>>,
        outbox: Arc<Outbox>,
    ) -> Result<Arc<Receiver>, SignalError> {
        let transmitters = config.signals.receive.iter().enumerate();
        let transmitters = transmitters.map(|(index, settings)| {
            Transmitter::start(settings).map_err(|(setting, why)| SignalError { index, setting, why })
        });
        let logins = config.identity.oidc.as_ref().map_or(0, |oidc| oidc.session_seconds);
        Ok(Arc::new(Receiver {
            transmitters: transmitters.collect::<Result<_, _>>()?,
            secret,
            login,
            tokens_name_sessions: config.identity.jwt.is_some() || config.identity.introspection.is_some(),
            outbox,
            life: Duration::from_secs(config.revocation.default_ttl_seconds.max(logins)),
            seen: Cache::new(SEEN_MAX),
            known: Door::default(),
            strangers: Door::default(),
        }))
    }

    /// One loop for each transmitter whose events are fetched.
    pub(super) fn start_polls(self: &Arc<Receiver>) -> JoinSet<()> {
        let mut polls = JoinSet::new();
        for index in 0..self.transmitters.len() {
            if self.transmitters[index].poll.is_some() {
                let receiver = Arc::clone(self);
                polls.spawn(async move { receiver.keep_polling(index).await });
            }
        }
        polls
    }

    /// RFC 8935: 202 once an event is recorded, 400 with a code for one that is wrong.
    pub(super) async fn take_push(&self, asked: &Asked<'_>) -> Response<Bytes> {
        let sender = self.sender(asked);
        let is_known = sender.as_ref().is_ok_and(|(from, _)| from.push_bearer.is_some());
        let door = if is_known { &self.known } else { &self.strangers };
        if !door.lets(asked.from, clock::now()) {
            count("none", "limit");
            return again(StatusCode::TOO_MANY_REQUESTS);
        }
        let taken = match sender {
            Ok((from, text)) => self.take(from, text).await,
            Err(refused) => Err(refused),
        };
        match taken {
            Ok(_) => edge::empty(StatusCode::ACCEPTED),
            Err(refused) => {
                door.note(&refused, clock::now());
                refused.answer()
            }
        }
    }

    /// Whose event it claims to be, and its token. Where a bearer token is set, it was shown.
    fn sender<'a>(&self, asked: &'a Asked<'_>) -> Result<(&Transmitter, &'a str), Refused> {
        let kind = asked.headers.get(header::CONTENT_TYPE).map(|kind| kind.as_bytes().to_ascii_lowercase());
        if !kind.is_some_and(|kind| kind.starts_with(b"application/secevent+jwt")) {
            return Err(Refused::Wrong("invalid_request", "the body is not application/secevent+jwt"));
        }
        let text = std::str::from_utf8(&asked.body).unwrap_or_default().trim();
        let issuer = signed::claimed_issuer(text)
            .ok_or(Refused::Wrong("invalid_request", "the body is no security event token"))?;
        let from = self.transmitters.iter().find(|transmitter| transmitter.settings.issuer == issuer);
        let from = from.ok_or(Refused::Wrong("invalid_issuer", "nobody here listens to this issuer"))?;
        if from.push_bearer.as_ref().is_some_and(|bearer| !shows_bearer(asked.headers, bearer)) {
            return Err(Refused::Wrong("authentication_failed", "the bearer token is missing or wrong"));
        }
        Ok((from, text))
    }

    /// Believes, records and carries out one event token; whether it is a new one.
    async fn take(&self, from: &Transmitter, text: &str) -> Result<bool, Refused> {
        let now = clock::now();
        from.signatory.glance(text, SET_TYPE, now)?;
        let claims = from.signatory.open(text, SET_TYPE, now).await?;
        let set = Set::read(&claims, now).map_err(|why| Refused::Wrong("invalid_request", why))?;
        let name = self.secret.token(&[b"set", from.settings.issuer.as_bytes(), set.jti.as_bytes()]);
        if self.seen.get(&name).is_some() {
            count("none", "repeated");
            return Ok(false);
        }
        for (index, event) in set.events.iter().enumerate() {
            let outcome = match event.kind {
                Kind::Verification => {
                    tracing::info!(issuer = from.settings.issuer, "a transmitter has verified its stream");
                    "verified"
                }
                Kind::Other => "unsupported",
                Kind::SessionRevoked | Kind::AccountDisabled if event.is_stale(now) => "stale",
                Kind::SessionRevoked | Kind::AccountDisabled => {
                    let part = u8::try_from(index).unwrap_or(u8::MAX);
                    self.act(from, (&name, part), event.kind, event.at, event.about.as_ref()).await?
                }
            };
            count(event.kind.as_str(), outcome);
        }
        self.seen.insert(name, ());
        Ok(true)
    }

    /// Ends whatever the event is about, or records that it would; says what became of it.
    async fn act(
        &self,
        from: &Transmitter,
        (name, part): (&TokenId, u8),
        kind: Kind,
        at: Timestamp,
        about: Option<&About>,
    ) -> Result<&'static str, Refused> {
        let Some(about) = about else {
            tracing::warn!(issuer = from.settings.issuer, "a security event's subject is not understood");
            return Ok("subject");
        };
        let Some(reached) = self.reach(from, about, at).await? else {
            tracing::warn!(
                issuer = from.settings.issuer,
                "a security event is about another issuer's people"
            );
            return Ok("foreign");
        };
        // Only a session can be meant where just one is named.
        let is_whole = matches!(about, About::Person(_));
        if kind == Kind::AccountDisabled && !is_whole {
            return Ok("subject");
        }
        if reached.is_empty() {
            return Ok("unknown");
        }
        let mut all_pardoned = true;
        for identity in reached {
            let incident = Incident {
                id: self.number(name, part, &identity.session),
                at,
                identity,
                rule: super::RULE.into(),
                action: if is_whole { Action::LogoutEverywhere } else { Action::Logout },
                mode: from.mode(),
                by: from.settings.issuer.clone(),
                reason: format!("The identity provider sent {}.", kind.as_str()),
                policy_version: String::new(),
                facts: Facts::default(),
                until: clock::now().plus(self.life),
            };
            let id = incident.id.clone();
            match self.outbox.offer(incident).await {
                Offered::Taken | Offered::Known => all_pardoned = false,
                Offered::Pardoned => {
                    tracing::info!(
                        issuer = from.settings.issuer,
                        event = kind.as_str(),
                        at_ms = at.0,
                        "a security event ends nothing: it tells of a moment before a pardon"
                    );
                    continue;
                }
                Offered::Later(why) => return Err(Refused::Later(why)),
            }
            if !self.outbox.is_carried_out(&id, CARRIED_OUT_WAIT).await {
                return Err(Refused::Later("the store does not answer"));
            }
        }
        Ok(match from.mode() {
            Mode::Enforce if all_pardoned => "pardoned",
            Mode::Enforce => "done",
            Mode::Shadow => "shadow",
        })
    }

    /// The incident's number for one session that this part of a token reaches: the same each time it comes, whatever
    /// others it reaches by then.
    fn number(&self, token: &TokenId, part: u8, session: &SessionId) -> String {
        let number = self.secret.token(&[b"signal", &token.0, &[part], &session.0]);
        let mut bytes = [0; 10];
        bytes.copy_from_slice(&number.0[..10]);
        incident_id("SG", &bytes)
    }

    /// The pseudonyms of what an event of this moment is about. `None`: the transmitter may not speak of it.
    async fn reach(
        &self,
        from: &Transmitter,
        about: &About,
        at: Timestamp,
    ) -> Result<Option<Vec<Identity>>, Refused> {
        let identity = |session, subject, token| Identity {
            session,
            subject,
            token,
            expires_at: None,
            issued_at: None,
            groups: Vec::new(),
        };
        Ok(match about {
            About::Person(person) if from.may_speak_of(&person.issuer) => {
                // An incident has a session; this one is nobody's.
                let nobody =
                    self.secret.session(&[b"signal", person.issuer.as_bytes(), person.sub.as_bytes()]);
                Some(vec![identity(
                    nobody,
                    Some(signed::subject(&self.secret, &person.issuer, &person.sub)),
                    None,
                )])
            }
            About::Session { sid, person } => {
                let issuer = person.as_ref().map_or(&from.settings.issuer, |person| &person.issuer);
                if !from.may_speak_of(issuer) {
                    return Ok(None);
                }
                let subject =
                    person.as_ref().map(|Person { issuer, sub }| signed::subject(&self.secret, issuer, sub));
                let mut sessions = self.sessions_at(issuer, sid, at).await?;
                if self.tokens_name_sessions {
                    sessions.push(signed::session(&self.secret, issuer, "sid", sid));
                }
                Some(sessions.into_iter().map(|session| identity(session, subject, None)).collect())
            }
            About::Token { issuer, jti } if from.may_speak_of(issuer) => {
                let token = signed::token(&self.secret, issuer, jti);
                Some(vec![identity(signed::session(&self.secret, issuer, "jti", jti), None, Some(token))])
            }
            About::Person(_) | About::Token { .. } => None,
        })
    }

    async fn sessions_at(&self, issuer: &str, sid: &str, at: Timestamp) -> Result<Vec<SessionId>, Refused> {
        let Some(login) = &self.login else { return Ok(Vec::new()) };
        login.sessions_at(issuer, sid, at).await.map_err(|_| Refused::Later("the logins cannot be looked up"))
    }
}

impl Transmitter {
    /// Errors name the setting.
    fn start(settings: &config::Receive) -> Result<Transmitter, (&'static str, String)> {
        let resolve = |setting: &'static str, text: Option<&String>| {
            let resolved = text.map(|text| reference::resolve(text).map(|text| text.into_owned()));
            resolved.transpose().map_err(|error| (setting, error.to_string()))
        };
        let signatory = Signatory::start(&settings.issuer, &settings.audience, &settings.jwks_url)
            .map_err(|error| ("jwks_url", error.to_string().trim_start_matches("jwks_url: ").to_owned()))?;
        let poll = match (&settings.poll_url, resolve("poll_bearer", settings.poll_bearer.as_ref())?) {
            (Some(url), Some(bearer)) => Some(Poll {
                url: url.parse().map_err(|_| ("poll_url", "is no address".to_owned()))?,
                bearer,
                http: reqwest::Client::builder()
                    .timeout(ANSWER_TIMEOUT)
                    // A redirect would let the answer choose who gets the bearer token.
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(|error| ("poll_url", error.to_string()))?,
            }),
            _ => None,
        };
        let push_bearer = resolve("push_bearer", settings.push_bearer.as_ref())?;
        Ok(Transmitter { settings: settings.clone(), signatory, push_bearer, poll })
    }

    fn mode(&self) -> Mode {
        match self.settings.mode {
            SignalMode::Shadow => Mode::Shadow,
            SignalMode::Enforce => Mode::Enforce,
        }
    }

    /// Otherwise anybody who may speak at all could end everybody's sessions.
    fn may_speak_of(&self, issuer: &str) -> bool {
        match self.settings.subject_issuers.as_slice() {
            [] => self.settings.issuer == issuer,
            named => named.iter().any(|named| named == issuer),
        }
    }
}

impl Refused {
    fn answer(&self) -> Response<Bytes> {
        let (code, why) = match self {
            Refused::Later(_) => return again(StatusCode::SERVICE_UNAVAILABLE),
            Refused::Wrong(code, why) => (*code, *why),
        };
        let status = match code {
            "authentication_failed" => StatusCode::UNAUTHORIZED,
            _ => StatusCode::BAD_REQUEST,
        };
        let body = serde_json::json!({"err": code, "description": why});
        let mut response = edge::json(status, &body.to_string());
        response.headers_mut().insert(header::CONTENT_LANGUAGE, HeaderValue::from_static("en"));
        response
    }
}

impl From<Unbelieved> for Refused {
    fn from(why: Unbelieved) -> Refused {
        match why {
            Unbelieved::KeysUnknown => Refused::Later("the transmitter's keys are not known yet"),
            // Keys change, and are fetched so often and no more: refused for good, a genuine event would be lost.
            Unbelieved::Refused("unknown_key") => Refused::Later("the key that signed it is not known yet"),
            Unbelieved::Refused(reason @ "signature") => Refused::Wrong("invalid_key", reason),
            Unbelieved::Refused(reason @ "issuer") => Refused::Wrong("invalid_issuer", reason),
            Unbelieved::Refused(reason @ "audience") => Refused::Wrong("invalid_audience", reason),
            Unbelieved::Refused(reason) => Refused::Wrong("invalid_request", reason),
        }
    }
}

// ---- fetching

/// RFC 8936 §2.2.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct PollRequest {
    max_events: usize,
    return_immediately: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ack: Vec<String>,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    set_errs: HashMap<String, SetError>,
}

#[derive(Serialize)]
struct SetError {
    err: &'static str,
    description: &'static str,
}

/// RFC 8936 §2.3.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PollAnswer {
    #[serde(default)]
    sets: HashMap<String, String>,
    #[serde(default)]
    more_available: bool,
}

impl Receiver {
    async fn keep_polling(&self, index: usize) {
        let from = &self.transmitters[index];
        let Some(poll) = &from.poll else { return };
        let pause = Duration::from_secs(from.settings.poll_seconds);
        let mut request = PollRequest::asking();
        let (mut failures, mut rounds) = (0u32, 0u32);
        loop {
            let wait = match poll.ask(&request).await {
                Ok(answer) => {
                    failures = 0;
                    counter!("gaitway_signals_polls_total", "outcome" => "ok").increment(1);
                    let is_new;
                    (request, is_new) = self.take_fetched(from, &answer).await;
                    rounds = if is_new { 0 } else { rounds.saturating_add(1) };
                    let owes_answer = !request.ack.is_empty() || !request.set_errs.is_empty();
                    next_poll(is_new && answer.more_available, owes_answer, rounds, pause)
                }
                Err(why) => {
                    failures = failures.saturating_add(1);
                    counter!("gaitway_signals_polls_total", "outcome" => "failed").increment(1);
                    if failures == 1 {
                        tracing::warn!(issuer = from.settings.issuer, %why, "security events cannot be fetched; trying again");
                    }
                    (pause * 2u32.pow(failures.min(6))).min(POLL_RETRY_MAX.max(pause))
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Deals with what was fetched: the next request, which says what became of it, and whether any was new.
    async fn take_fetched(&self, from: &Transmitter, answer: &PollAnswer) -> (PollRequest, bool) {
        let mut request = PollRequest::asking();
        let mut any_new = false;
        let is_sound = |name: &&String| name.len() <= JTI_BYTES_MAX;
        for name in answer.sets.keys().filter(is_sound).take(FETCHED_MAX) {
            match self.take(from, &answer.sets[name]).await {
                Ok(is_new) => {
                    any_new |= is_new;
                    request.ack.push(name.clone());
                }
                Err(refused) => {
                    self.known.note(&refused, clock::now());
                    // Not acknowledged, it comes again; those behind it need not wait for that.
                    if let Refused::Wrong(err, description) = refused {
                        request.set_errs.insert(name.clone(), SetError { err, description });
                    }
                }
            }
        }
        tracing::debug!(more = answer.more_available, "fetched security events");
        (request, any_new)
    }
}

/// How long until the next question, after so many `rounds` in a row that brought nothing new. What was dealt
/// with is answered soon; a transmitter that does not listen to that and sends the same again is asked ever
/// less often, up to the usual `pause`.
fn next_poll(is_more_there: bool, owes_answer: bool, rounds: u32, pause: Duration) -> Duration {
    match (is_more_there, owes_answer) {
        (true, _) => Duration::ZERO,
        (false, true) => (POLL_PAUSE_MIN * 2u32.pow(rounds.min(6))).min(pause),
        (false, false) => pause,
    }
}

impl PollRequest {
    fn asking() -> PollRequest {
        PollRequest { max_events: FETCHED_MAX, return_immediately: true, ..PollRequest::default() }
    }
}

impl Poll {
    async fn ask(&self, request: &PollRequest) -> Result<PollAnswer, String> {
        let plain = |error: reqwest::Error| error.without_url().to_string();
        let sent = self.http.post(self.url.clone()).bearer_auth(&self.bearer).json(request).send();
        let mut response = sent.await.map_err(plain)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("answered with status {}", response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(plain)? {
            if body.len() + chunk.len() > FETCHED_BYTES_MAX {
                return Err(format!("answered with more than {FETCHED_BYTES_MAX} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|_| "answered with something that is no list of events".into())
    }
}

// ---- limits

/// What one kind of senders may take up, of the log too.
#[derive(Default)]
struct Door {
    posts: Mutex<Posts>,
    /// The minute of the last line about a refusal.
    noted: AtomicU64,
}

impl Door {
    fn lets(&self, from: IpAddr, now: Timestamp) -> bool {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner).lets(from, now)
    }

    /// Counts a refusal. One a minute is told; how many there were, the metric tells.
    fn note(&self, refused: &Refused, now: Timestamp) {
        let (outcome, why) = match refused {
            Refused::Later(why) => ("later", why),
            Refused::Wrong(_, why) => ("refused", why),
        };
        count("none", outcome);
        let minute = now.0 / 60_000;
        if self.noted.swap(minute, Ordering::Relaxed) != minute {
            tracing::warn!(
                outcome,
                why,
                "a security event is not taken; others of this minute are only counted"
            );
        }
    }
}

/// Posts of the present minute.
#[derive(Default)]
struct Posts {
    minute: u64,
    of: HashMap<IpAddr, u32>,
    all: u32,
}

impl Posts {
    fn lets(&mut self, from: IpAddr, now: Timestamp) -> bool {
        let minute = now.0 / 60_000;
        if self.minute != minute {
            *self = Posts { minute, ..Posts::default() };
        }
        self.all = self.all.saturating_add(1);
        if self.all > POSTS_PER_MINUTE_MAX {
            return false;
        }
        // Bounded by the posts of all.
        let own = self.of.entry(network_of(from, 64)).or_default();
        *own += 1;
        if *own > POSTS_PER_ADDRESS_MAX {
            // Who is over their own limit takes nobody else's.
            self.all -= 1;
            return false;
        }
        true
    }
}

fn again(status: StatusCode) -> Response<Bytes> {
    let mut response = edge::plain(status, "try again\n");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

fn count(event: &'static str, outcome: &'static str) {
    counter!("gaitway_signals_received_total", "event" => event, "outcome" => outcome).increment(1);
}

/// An event that comes again after so many others costs one more look into the store.
const SEEN_MAX: usize = 10_000;
/// A provider that ends everybody's sessions sends a hundred a second and repeats what was refused.
const POSTS_PER_ADDRESS_MAX: u32 = 6_000;
/// Of all addresses, in a minute: each may cost a signature check of about 60 µs.
const POSTS_PER_MINUTE_MAX: u32 = 60_000;
/// How long a transmitter waits for its event to be recorded.
const CARRIED_OUT_WAIT: Duration = Duration::from_secs(3);
/// Events in one answer; the next request asks for more.
const FETCHED_MAX: usize = 50;
/// As many of the largest tokens that are looked at, and their names.
const FETCHED_BYTES_MAX: usize = 1024 * 1024;
/// Names of events are repeated to the transmitter; they are short.
const JTI_BYTES_MAX: usize = 512;
/// One question, from connecting to the last byte.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two questions, unless more is there: a transmitter that hears no acknowledgement is not asked as
/// fast as it answers. No pause in the settings is shorter.
const POLL_PAUSE_MIN: Duration = Duration::from_secs(1);
/// While a transmitter does not answer, it is asked at least this often.
const POLL_RETRY_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::outbox::OutboxLimits;
    use crate::revocation::Revocations;
    use crate::store::SqliteStore;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use http::{HeaderMap, Method};

    async fn receiver() -> Arc<Receiver> {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&folder.path().join("t.sqlite")).await.unwrap());
        let board = Revocations::start(&config::Revocation::default(), Vec::new()).await.unwrap();
        let outbox = Outbox::start(store, board, Vec::new(), OutboxLimits::default()).await;
        let mut config = Config::default();
        config.signals.receive = vec![config::Receive {
            issuer: "https://issuer.example".into(),
            jwks_url: "https://127.0.0.1:1/jwks".into(),
            push_bearer: Some("the provider knows us".into()),
            ..config::Receive::default()
        }];
        let secret = Arc::new(InstallSecret::from_text(&[7; 32], "test").unwrap());
        Receiver::start(&config, secret, None, outbox).unwrap()
    }

    #[tokio::test]
    async fn an_event_for_another_session_is_not_taken_for_the_firsts() {
        let receiver = receiver().await;
        let (event, another) = (TokenId([1; 16]), TokenId([2; 16]));
        let (first, second) = (SessionId([1; 16]), SessionId([2; 16]));
        let number = receiver.number(&event, 0, &second);
        assert_eq!(receiver.number(&event, 0, &second), number, "the first is over when it comes again");
        assert_ne!(receiver.number(&event, 0, &first), number);
        assert_ne!(receiver.number(&event, 1, &second), number);
        assert_ne!(receiver.number(&another, 0, &second), number);
    }

    #[tokio::test]
    async fn strangers_who_send_many_take_nothing_from_who_shows_the_bearer_token() {
        let receiver = receiver().await;
        let body = [r#"{"alg":"RS256"}"#, r#"{"iss":"https://issuer.example"}"#, "x"]
            .map(|part| URL_SAFE_NO_PAD.encode(part))
            .join(".");
        let push = async |bearer: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, "application/secevent+jwt".parse().unwrap());
            headers.insert(header::AUTHORIZATION, format!("Bearer {bearer}").parse().unwrap());
            let body = Bytes::from(body.clone());
            let from = IpAddr::from([192, 0, 2, 1]);
            let asked = Asked { method: &Method::POST, path: "", headers: &headers, from, body };
            receiver.take_push(&asked).await.status()
        };
        let mut refused = 0;
        // A minute may end meanwhile.
        while push("a guess").await == StatusCode::UNAUTHORIZED {
            refused += 1;
            assert!(refused < 4 * POSTS_PER_ADDRESS_MAX, "nothing limits strangers");
        }
        assert!(refused >= POSTS_PER_ADDRESS_MAX);
        assert_eq!(push("the provider knows us").await, StatusCode::BAD_REQUEST, "looked at");
    }

    #[test]
    fn one_address_over_its_limit_takes_nothing_from_others() {
        let mut posts = Posts::default();
        let (loud, quiet) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let now = Timestamp(60_000);
        let passed = (0..2 * POSTS_PER_MINUTE_MAX).filter(|_| posts.lets(loud, now)).count();
        assert_eq!(passed, POSTS_PER_ADDRESS_MAX as usize);
        assert!(posts.lets(quiet, now));
        assert!(posts.lets(loud, Timestamp(120_000)), "the next minute");
        let addresses = (0..=POSTS_PER_MINUTE_MAX).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()));
        assert_eq!(addresses.filter(|address| posts.lets(*address, Timestamp(180_000))).count(), 60_000);
        assert!(posts.of.len() <= POSTS_PER_MINUTE_MAX as usize);
    }

    #[test]
    fn a_transmitter_that_sends_the_same_again_is_asked_ever_less_often() {
        let pause = Duration::from_secs(10);
        assert_eq!(next_poll(true, true, 0, pause), Duration::ZERO, "more is there");
        assert_eq!(next_poll(false, true, 0, pause), Duration::from_secs(1), "the last of them");
        let waits = [1, 2, 3, 4, 100, u32::MAX].map(|rounds| next_poll(false, true, rounds, pause).as_secs());
        assert_eq!(waits, [2, 4, 8, 10, 10, 10]);
        assert_eq!(next_poll(false, false, 0, pause), pause);
        assert_eq!(next_poll(false, true, 9, Duration::from_secs(1)), Duration::from_secs(1));
    }
}
