//! Telling receivers that a login was ended here: each event is a step of its incident in the outbox, is
//! signed, and is posted (RFC 8935) or waits in the store until it is fetched (RFC 8936).
//!
//! Invariant: shadow decisions are told to nobody, and an event that came from a transmitter is passed on to
//! nobody, or two gateways would tell each other for ever. Must not know: why a session ends.

use super::set::{self, SESSION_REVOKED, VERIFICATION};
use super::{Asked, shows_bearer};
use crate::alert::{AlertError, AlertSink};
use crate::clock;
use crate::config::{self, reference};
use crate::edge;
use crate::proxy::identity::login::Login;
use crate::proxy::identity::named::{Named, Names};
use crate::secret::InstallSecret;
use crate::store::{Store, StoreError, ends_login};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use gaitway_models::Timestamp;
use gaitway_policies::Incident;
use gaitway_policies::engine::Action;
use http::{HeaderValue, Response, StatusCode, header};
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use metrics::counter;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// One for the process.
pub struct Transmitter {
    issuer: String,
    key: Key,
    description: String,
    streams: Vec<Stream>,
    secret: Arc<InstallSecret>,
    store: Arc<dyn Store>,
    login: Option<Arc<Login>>,
    names: Option<Arc<Names>>,
}

/// What one receiver is told. Its configuration is the file's: receivers cannot change it.
struct Stream {
    settings: config::SignalReceiver,
    /// Name of its step in the outbox.
    step: &'static str,
    bearer: String,
    push: Option<(reqwest::Url, reqwest::Client)>,
    /// One request may be held open until there is something to fetch.
    held: Semaphore,
}

/// A signing key, and what receivers check it with.
struct Key {
    private: EncodingKey,
    header: Header,
    jwks: String,
}

#[derive(Debug, thiserror::Error)]
#[error("signals.transmit.{setting}: {why}")]
pub struct TransmitError {
    setting: String,
    why: String,
}

impl Transmitter {
    /// Reads key and bearer tokens; opens no connection.
    pub fn new(
        config: &config::Config,
        settings: &config::Transmit,
        secret: Arc<InstallSecret>,
        store: Arc<dyn Store>,
        login: Option<Arc<Login>>,
        names: Option<Arc<Names>>,
    ) -> Result<Arc<Transmitter>, TransmitError> {
        let refused = |setting: &str, why: String| TransmitError { setting: setting.to_owned(), why };
        let text = reference::resolve(&settings.key).map_err(|error| refused("key", error.to_string()))?;
        let key = Key::read(text.as_bytes()).map_err(|why| refused("key", why.into()))?;
        let streams = settings.receivers.iter().enumerate();
        let streams = streams.map(|(index, receiver)| {
            Stream::new(receiver)
                .map_err(|(setting, why)| refused(&format!("receivers[{index}].{setting}"), why))
        });
        let streams = streams.collect::<Result<Vec<Stream>, _>>()?;
        let issuer = settings.issuer.trim_end_matches('/').to_owned();
        let mut methods = Vec::new();
        methods.extend(streams.iter().any(|stream| stream.push.is_some()).then_some("urn:ietf:rfc:8935"));
        methods.extend(streams.iter().any(|stream| stream.push.is_none()).then_some("urn:ietf:rfc:8936"));
        let description = json!({
            "spec_version": "1_0",
            "issuer": issuer,
            "jwks_uri": format!("{issuer}{}/signals/jwks", config.collector.path_prefix),
            "delivery_methods_supported": methods,
            "authorization_schemes": [{"spec_urn": "urn:ietf:rfc:6750"}],
            "default_subjects": "ALL",
        });
        let description = description.to_string();
        Ok(Arc::new(Transmitter { issuer, key, description, streams, secret, store, login, names }))
    }

    /// One for each stream, for the outbox.
    pub fn sinks(self: &Arc<Transmitter>) -> Vec<Arc<dyn AlertSink>> {
        let sink = |index| Arc::new(StreamSink(Arc::clone(self), index)) as Arc<dyn AlertSink>;
        (0..self.streams.len()).map(sink).collect()
    }

    /// Verification events where they are wanted, and the end of events that nobody fetched.
    pub(super) fn start(self: &Arc<Transmitter>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for (index, stream) in self.streams.iter().enumerate() {
            let transmitter = Arc::clone(self);
            if stream.settings.verify {
                tasks.spawn(async move { transmitter.verify(index).await });
            }
        }
        let transmitter = Arc::clone(self);
        tasks.spawn(async move {
            loop {
                for stream in &transmitter.streams {
                    if let Err(error) = transmitter.trim(stream).await {
                        tracing::warn!(%error, "events that nobody fetched cannot be dropped now");
                    }
                }
                tokio::time::sleep(TRIM_EVERY).await;
            }
        });
        tasks
    }

    /// `/.well-known/ssf-configuration`.
    pub(super) fn description(&self) -> Response<Bytes> {
        edge::json(StatusCode::OK, &self.description)
    }

    pub(super) fn jwks(&self) -> Response<Bytes> {
        edge::json(StatusCode::OK, &self.key.jwks)
    }

    /// What an incident means to receivers.
    async fn event(&self, stream: &Stream, incident: &Incident) -> Result<(String, Value), AlertError> {
        let named = self.named(incident).await?.ok_or_else(|| {
            AlertError::Permanent("the name of the session's person at their issuer is not known".into())
        })?;
        let payload = json!({
            "event_timestamp": incident.at.0 / 1000,
            "initiating_entity": if incident.by == "policy" { "policy" } else { "admin" },
            "reason_admin": {"en": format!("Incident {}, rule {}", incident.id, incident.rule)},
        });
        let jti = self.jti(stream, incident.id.as_bytes());
        let subject = subject(&named, incident);
        let parties = (self.issuer.as_str(), stream.settings.audience.as_str());
        let mut claims = set::claims(parties, &jti, clock::now(), &subject, (SESSION_REVOKED, payload));
        claims["txn"] = json!(incident.id);
        Ok((jti, claims))
    }

    async fn named(&self, incident: &Incident) -> Result<Option<Named>, AlertError> {
        let session = incident.identity.session;
        let later = |_| AlertError::Temporary("the names of sessions cannot be looked up".into());
        if let Some(login) = &self.login
            && let Some(named) = login.named(session).await.map_err(later)?
        {
            return Ok(Some(named));
        }
        match &self.names {
            Some(names) => names.of(session).await.map_err(later),
            None => Ok(None),
        }
    }

    /// The same event of the same incident has the same number, so that a receiver knows a repeated one.
    fn jti(&self, stream: &Stream, of: &[u8]) -> String {
        let number = self.secret.token(&[b"signal-sent", stream.settings.name.as_bytes(), of]);
        format!("{:032x}", u128::from_be_bytes(number.0))
    }

    async fn deliver(&self, stream: &Stream, jti: &str, claims: &Value) -> Result<(), AlertError> {
        match &stream.push {
            Some(push) => stream.post(push, self.signed(claims)?).await,
            None => {
                let sealed = self.secret.seal(&place(stream, jti), claims.to_string().as_bytes());
                let sealed = sealed.ok_or_else(|| AlertError::Temporary("no randomness".into()))?;
                let sealed = STANDARD.encode(sealed);
                let queued = self.store.queue_signal(stream.step, jti, clock::now(), &sealed).await;
                queued.map_err(|error| AlertError::Temporary(error.to_string()))?;
                self.trim(stream).await.map_err(|error| AlertError::Temporary(error.to_string()))
            }
        }
    }

    fn signed(&self, claims: &Value) -> Result<String, AlertError> {
        jsonwebtoken::encode(&self.key.header, claims, &self.key.private)
            .map_err(|_| AlertError::Temporary("the event cannot be signed".into()))
    }

    async fn trim(&self, stream: &Stream) -> Result<(), StoreError> {
        if stream.push.is_some() {
            return Ok(());
        }
        let age = u64::try_from(WAITING_AGE.as_millis()).unwrap_or(u64::MAX);
        let before = Timestamp(clock::now().0.saturating_sub(age));
        let dropped = self.store.trim_signals(stream.step, before, WAITING_MAX).await?;
        if dropped > 0 {
            counter!("gaitway_signals_dropped_total", "stream" => stream.step).increment(dropped);
            tracing::error!(
                stream = stream.step,
                dropped,
                "events were dropped that their receiver did not fetch"
            );
        }
        Ok(())
    }

    async fn verify(&self, index: usize) {
        let stream = &self.streams[index];
        let Ok(chance) = crate::secret::random::<16>() else { return };
        let jti = self.jti(stream, &chance);
        let subject = json!({"format": "opaque", "id": stream.settings.name});
        let parties = (self.issuer.as_str(), stream.settings.audience.as_str());
        // Without a state, because no receiver asked for it.
        let event = (VERIFICATION, json!({}));
        let claims = set::claims(parties, &jti, clock::now(), &subject, event);
        for attempt in 0..VERIFY_ATTEMPTS_MAX {
            match self.deliver(stream, &jti, &claims).await {
                Ok(()) => {
                    tracing::info!(stream = stream.step, "a verification event was sent");
                    return;
                }
                Err(why) => {
                    tracing::warn!(stream = stream.step, %why, "a verification event was not taken");
                    tokio::time::sleep(VERIFY_RETRY * 2u32.pow(attempt)).await;
                }
            }
        }
    }
}

/// Whom and which session, never wider than what was ended.
fn subject(named: &Named, incident: &Incident) -> Value {
    let person = json!({"format": "iss_sub", "iss": named.issuer, "sub": named.sub});
    if incident.action == Action::LogoutEverywhere {
        return person;
    }
    let session = match (&named.sid, &named.jti) {
        (Some(sid), _) => json!({"format": "opaque", "id": sid}),
        (None, Some(jti)) => json!({"format": "jwt_id", "iss": named.issuer, "jti": jti}),
        // Its issuer has no name for it: ours says that it is one session and not all.
        (None, None) => json!({"format": "opaque", "id": incident.identity.session}),
    };
    json!({"format": "complex", "user": person, "session": session})
}

fn place<'p>(stream: &'p Stream, jti: &'p str) -> [&'p [u8]; 3] {
    [b"signal", stream.step.as_bytes(), jti.as_bytes()]
}

impl Key {
    fn read(pem: &[u8]) -> Result<Key, &'static str> {
        let (private, algorithm) = match (EncodingKey::from_ec_pem(pem), EncodingKey::from_rsa_pem(pem)) {
            (Ok(key), _) => (key, Algorithm::ES256),
            (_, Ok(key)) => (key, Algorithm::RS256),
            _ => return Err("is no PEM private key (PKCS #8) of P-256 or RSA"),
        };
        let unusable = "cannot be used: expected P-256, or RSA of at least 2048 bits";
        let mut jwk = Jwk::from_encoding_key(&private, algorithm).map_err(|_| unusable)?;
        let kid = jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| unusable)?;
        jwk.common.key_id = Some(kid.clone());
        let mut public = serde_json::to_value(jwk).map_err(|_| unusable)?;
        public["use"] = json!("sig");
        let mut header = Header::new(algorithm);
        header.typ = Some(set::SET_TYPE.to_owned());
        header.kid = Some(kid);
        // A key that cannot sign is better found now than at the first event.
        jsonwebtoken::encode(&header, &json!({}), &private).map_err(|_| unusable)?;
        Ok(Key { private, header, jwks: json!({"keys": [public]}).to_string() })
    }
}

impl Stream {
    /// Errors name the setting.
    fn new(settings: &config::SignalReceiver) -> Result<Stream, (&'static str, String)> {
        let bearer = reference::resolve(&settings.bearer).map_err(|error| ("bearer", error.to_string()))?;
        if HeaderValue::from_str(&bearer).is_err() {
            return Err(("bearer", "cannot stand in a header".into()));
        }
        let push = match &settings.push_url {
            Some(url) => Some((
                url.parse().map_err(|_| ("push_url", "is no address".to_owned()))?,
                client(settings).map_err(|why| ("ca", why))?,
            )),
            None => None,
        };
        // Names of steps are labels of metrics, too, and live as long as the process.
        let step = Box::leak(format!("signals.{}", settings.name).into_boxed_str());
        Ok(Stream {
            settings: settings.clone(),
            step,
            bearer: bearer.into_owned(),
            push,
            held: Semaphore::new(1),
        })
    }

    async fn post(
        &self,
        (url, http): &(reqwest::Url, reqwest::Client),
        token: String,
    ) -> Result<(), AlertError> {
        let request = http
            .post(url.clone())
            .bearer_auth(&self.bearer)
            .header(header::CONTENT_TYPE, "application/secevent+jwt")
            .header(header::ACCEPT, "application/json")
            .body(token);
        let mut answer = request.send().await.map_err(|error| {
            let why = if error.is_timeout() { "no answer in time" } else { "cannot be reached" };
            AlertError::Temporary(format!("the receiver: {why}"))
        })?;
        let status = answer.status().as_u16();
        match status {
            200..=299 => Ok(()),
            // RFC 8935 §2.3: a token that is wrong stays wrong; credentials and keys are mended by hand.
            400 => {
                let chunk = answer.chunk().await.ok().flatten().unwrap_or_default();
                let code = serde_json::from_slice::<Value>(&chunk).ok();
                let code = code.as_ref().and_then(|body| body.get("err")).and_then(Value::as_str);
                let told =
                    format!("the receiver refused the event: {}", plain_code(code.unwrap_or_default()));
                match code {
                    Some("invalid_request") => Err(AlertError::Permanent(told)),
                    _ => Err(AlertError::Temporary(told)),
                }
            }
            _ => Err(AlertError::Temporary(format!("the receiver answered {status}"))),
        }
    }
}

/// An error code, whatever a receiver calls one.
fn plain_code(code: &str) -> String {
    let known = |c: &char| c.is_ascii_alphanumeric() || "_-.".contains(*c);
    code.chars().filter(known).take(CODE_CHARS_MAX).collect()
}

fn client(settings: &config::SignalReceiver) -> Result<reqwest::Client, String> {
    let mut client = reqwest::Client::builder()
        .timeout(ANSWER_TIMEOUT)
        // A redirect would let an answer choose who is told, and who gets the bearer token.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("gaitway/", env!("CARGO_PKG_VERSION")));
    if let Some(ca) = &settings.ca {
        let pem = std::fs::read(ca).map_err(|error| error.to_string())?;
        let authority =
            reqwest::Certificate::from_pem(&pem).map_err(|_| "is no PEM certificate".to_owned())?;
        client = client.tls_certs_only([authority]);
    }
    client.build().map_err(|error| error.to_string())
}

/// A stream as the outbox sees it.
struct StreamSink(Arc<Transmitter>, usize);

#[async_trait]
impl AlertSink for StreamSink {
    fn name(&self) -> &'static str {
        self.0.streams[self.1].step
    }

    fn wants(&self, incident: &Incident) -> bool {
        is_told(incident)
    }

    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError> {
        let stream = &self.0.streams[self.1];
        let (jti, claims) = self.0.event(stream, incident).await?;
        self.0.deliver(stream, &jti, &claims).await
    }
}

/// Ends of logins that were carried out, of people who have a name.
fn is_told(incident: &Incident) -> bool {
    ends_login(incident) && incident.identity.subject.is_some() && incident.rule != super::RULE
}

// ---- fetched

/// RFC 8936 §2.2.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PollRequest {
    max_events: u32,
    return_immediately: bool,
    ack: Vec<String>,
    set_errs: Map<String, Value>,
}

impl Default for PollRequest {
    fn default() -> PollRequest {
        PollRequest {
            max_events: FETCHED_MAX,
            return_immediately: false,
            ack: Vec::new(),
            set_errs: Map::new(),
        }
    }
}

impl Transmitter {
    /// RFC 8936: what is acknowledged is forgotten, the next events are handed out; they stay until they are
    /// acknowledged.
    pub(super) async fn answer_poll(&self, name: &str, asked: &Asked<'_>) -> Response<Bytes> {
        let stream = self.streams.iter().find(|stream| stream.settings.name == name && stream.push.is_none());
        let Some(stream) = stream.filter(|stream| shows_bearer(asked.headers, &stream.bearer)) else {
            let mut response = edge::plain(StatusCode::UNAUTHORIZED, "refused\n");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        };
        let Ok(request) = serde_json::from_slice::<PollRequest>(&asked.body) else {
            return edge::plain(StatusCode::BAD_REQUEST, "expected a JSON object as RFC 8936 has it\n");
        };
        match self.poll(stream, &request).await {
            Ok(answer) => edge::json(StatusCode::OK, &answer.to_string()),
            Err(error) => {
                tracing::error!(%error, "a receiver cannot fetch its events now");
                edge::plain(StatusCode::SERVICE_UNAVAILABLE, "try again\n")
            }
        }
    }

    async fn poll(&self, stream: &Stream, request: &PollRequest) -> Result<Value, StoreError> {
        let count = |outcome: &'static str| {
            counter!("gaitway_signals_fetched_total", "stream" => stream.step, "outcome" => outcome)
                .increment(1);
        };
        for jti in &request.ack {
            if self.store.forget_signal(stream.step, jti).await? {
                count("acknowledged");
            }
        }
        for (jti, error) in &request.set_errs {
            if self.store.forget_signal(stream.step, jti).await? {
                let code = plain_code(error.get("err").and_then(Value::as_str).unwrap_or_default());
                tracing::error!(stream = stream.step, code, "a receiver refused an event");
                count("refused");
            }
        }
        let most = request.max_events.min(FETCHED_MAX);
        let mut waiting = self.store.signals(stream.step, most + 1).await?;
        if waiting.is_empty()
            && most > 0
            && !request.return_immediately
            && let Ok(_held) = stream.held.try_acquire()
        {
            let until = tokio::time::Instant::now() + HOLD;
            while waiting.is_empty() && tokio::time::Instant::now() < until {
                tokio::time::sleep(HOLD_POLL).await;
                waiting = self.store.signals(stream.step, most + 1).await?;
            }
        }
        let is_more = waiting.len() > most as usize;
        waiting.truncate(most as usize);
        let mut sets = Map::new();
        for (jti, sealed) in waiting {
            let opened = STANDARD.decode(sealed).ok();
            let opened = opened.and_then(|sealed| self.secret.unseal(&place(stream, &jti), &sealed));
            let claims = opened.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            match claims.map(|claims| self.signed(&claims)) {
                Some(Ok(token)) => {
                    sets.insert(jti, token.into());
                }
                Some(Err(error)) => tracing::error!(%error, "an event waits on"),
                // Of an installation with another secret: nobody can read it any more.
                None => {
                    self.store.forget_signal(stream.step, &jti).await?;
                    count("unreadable");
                }
            }
        }
        Ok(json!({"sets": sets, "moreAvailable": is_more}))
    }
}

/// Events handed out at a time; about 1 KiB each.
const FETCHED_MAX: u32 = 50;
/// How long a request is held open for the first event; shorter than proxies on the way have patience.
const HOLD: Duration = Duration::from_secs(20);
const HOLD_POLL: Duration = Duration::from_millis(500);
/// Events that wait for a receiver that does not fetch them: past it the oldest go.
const WAITING_MAX: u32 = 10_000;
/// As long as the outbox tries to tell anything.
const WAITING_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
const TRIM_EVERY: Duration = Duration::from_secs(3600);
/// From connecting to the end of the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Over a minute or so; the next start tries again.
const VERIFY_ATTEMPTS_MAX: u32 = 6;
const VERIFY_RETRY: Duration = Duration::from_secs(1);
/// Of a receiver's error code, in a log line.
const CODE_CHARS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use gaitway_policies::engine::Mode;
    use gaitway_policies::facts::Facts;
    use gaitway_policies::{Identity, SessionId, SubjectId};

    fn incident(action: Action, mode: Mode) -> Incident {
        Incident {
            id: "A".into(),
            at: Timestamp(1),
            identity: Identity {
                session: SessionId([1; 16]),
                subject: Some(SubjectId([2; 16])),
                token: None,
                expires_at: None,
                issued_at: None,
                groups: Vec::new(),
            },
            rule: "bots".into(),
            action,
            mode,
            by: "policy".into(),
            reason: String::new(),
            policy_version: String::new(),
            facts: Facts::default(),
            until: Timestamp(2),
        }
    }

    #[test]
    fn only_a_login_that_ended_for_good_here_is_told() {
        let check = |change: &dyn Fn(&mut Incident), expected: bool| {
            let mut changed = incident(Action::Logout, Mode::Enforce);
            change(&mut changed);
            assert_eq!(is_told(&changed), expected, "{changed:?}");
        };
        check(&|_| {}, true);
        check(&|incident| incident.action = Action::LogoutEverywhere, true);
        check(&|incident| incident.mode = Mode::Shadow, false);
        check(&|incident| incident.action = Action::Deny, false);
        check(&|incident| incident.action = Action::Tarpit, false);
        check(&|incident| incident.action = Action::Pardon, false);
        check(&|incident| incident.identity.subject = None, false);
        check(&|incident| incident.rule = super::super::RULE.into(), false);
    }

    #[test]
    fn one_session_is_told_of_as_one_whatever_its_issuer_calls_it() {
        let named = |sid: Option<&str>, jti: Option<&str>| Named {
            issuer: "https://login".into(),
            sub: "alice".into(),
            sid: sid.map(str::to_owned),
            jti: jti.map(str::to_owned),
        };
        let alice = json!({"format": "iss_sub", "iss": "https://login", "sub": "alice"});
        let check = |named: &Named, session: Value| {
            let told = subject(named, &incident(Action::Logout, Mode::Enforce));
            assert_eq!(told, json!({"format": "complex", "user": alice, "session": session}));
        };
        check(&named(Some("s"), Some("j")), json!({"format": "opaque", "id": "s"}));
        check(&named(None, Some("j")), json!({"format": "jwt_id", "iss": "https://login", "jti": "j"}));
        check(&named(None, None), json!({"format": "opaque", "id": SessionId([1; 16])}));
        let everywhere = incident(Action::LogoutEverywhere, Mode::Enforce);
        assert_eq!(subject(&named(Some("s"), None), &everywhere), alice);
    }

    #[test]
    fn a_receivers_words_reach_the_log_as_a_code_only() {
        assert_eq!(plain_code("invalid_key"), "invalid_key");
        assert_eq!(plain_code("a\n\u{1b}[31m b\"c"), "a31mbc");
        assert_eq!(plain_code(&"x".repeat(99)).len(), CODE_CHARS_MAX);
    }

    #[test]
    fn what_is_no_signing_key_is_none() {
        for text in ["", "hunter2", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(Key::read(text.as_bytes()).is_err(), "{text}");
        }
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
        assert!(Key::read(p384.as_bytes()).is_err(), "another curve");
        let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
        let key = Key::read(p256.as_bytes()).unwrap();
        let jwks: Value = serde_json::from_str(&key.jwks).unwrap();
        assert_eq!((&jwks["keys"][0]["crv"], &jwks["keys"][0]["use"]), (&json!("P-256"), &json!("sig")));
        assert!(jwks["keys"][0].get("d").is_none());
    }
}
