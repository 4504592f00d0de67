//! Who is calling: the app's token, the app's session cookie, or Gaitway's own cookie becomes an
//! `Identity` of pseudonyms. Memory only; keys are fetched elsewhere, in the background.
//!
//! Invariant: a token that is not verified gives nothing. Its sender is whoever their cookie says, and
//! the app decides about its own bad token. Must not know: policies, standings, revocations.

mod introspection;
mod jwks;
mod keys;
pub mod login;
pub mod named;
mod namesakes;
pub(crate) mod provider;
pub(crate) mod signed;
mod token;

use crate::secret::{InstallSecret, Purpose, SecretError};
use crate::vault::Vault;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gaitway_models::Timestamp;
use gaitway_policies::route::Sources;
use gaitway_policies::{Identity, SessionId};
use http::HeaderMap;
use introspection::Introspector;
use jwks::{Jwks, Keys, Timing};
use keys::KeySet;
use named::Names;
use quick_cache::sync::Cache;
use siphasher::sip128::{Hasher128, SipHasher24};
use std::borrow::Cow;
use std::hash::Hasher;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use token::{Rejection, Rules};
use tokio::task::JoinSet;

pub use introspection::Introspected;
pub use namesakes::Namesakes;

/// Turns request headers into callers. One for the process; cheap to call from every thread.
pub struct Identifier {
    jwt: Option<JwtSource>,
    introspector: Option<Introspector>,
    app_cookie: Option<String>,
    own_cookie: String,
    secure: bool,
    secret: Arc<InstallSecret>,
    fingerprints: Fingerprints,
    verified: Cache<CacheKey, Arc<Known>>,
    /// Session of a cookie → the token's identity seen together with it, since telemetry requests of a
    /// page carry the cookie but not the page's `Authorization` header.
    aliases: Cache<SessionId, Arc<Known>>,
    /// Keeps every issuer's keys fresh, each on its own; stopped when this is dropped.
    _refreshers: JoinSet<()>,
    /// Where somebody is told of sessions by the names their issuer gives them.
    names: Option<Arc<Names>>,
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub enum Caller {
    Known(Arc<Identity>),
    /// Nothing to know them by, so they get a cookie: the full value of a `Set-Cookie` header.
    New {
        identity: Arc<Identity>,
        set_cookie: String,
    },
}

impl Caller {
    pub fn identity(&self) -> &Arc<Identity> {
        match self {
            Caller::Known(identity) | Caller::New { identity, .. } => identity,
        }
    }
}

/// Everyone a request claims to be, with proof.
#[derive(Clone, Debug)]
pub struct Identified {
    pub caller: Caller,
    /// Further verified identities in the same request (a second token, a repeated cookie). Nearly
    /// always empty. The app may honour any of them, so the revocation board must be asked about each:
    /// otherwise a revoked token slips through behind a good one.
    pub others: Vec<Arc<Identity>>,
    /// Those of them, and the caller, that the address alone proves. Anybody can write a link: it speaks for
    /// its own request, ties no cookie to itself and costs nobody theirs.
    pub linked: Vec<Arc<Identity>>,
}

impl Identified {
    /// Adds the tokens whose issuer says they are active, before cookies and behind verified tokens.
    pub fn introspected(self, answers: &Introspected, sources: Sources) -> Identified {
        let Identified { mut caller, mut others, linked } = self;
        for identity in &answers.active {
            if !sources.introspection {
                others.push(Arc::clone(identity));
                continue;
            }
            let known = Caller::Known(Arc::clone(identity));
            if caller.identity().token.is_some() {
                others.push(Arc::clone(identity));
            } else if let Caller::Known(former) = std::mem::replace(&mut caller, known) {
                others.push(former);
            }
        }
        Identified { caller, others, linked }
    }

    /// Puts a login at the OpenID provider before whatever else the request carries.
    pub fn logged_in(mut self, login: &login::Session, sources: Sources) -> Identified {
        if !sources.oidc {
            self.others.push(Arc::clone(&login.identity));
            return self;
        }
        let caller = Caller::Known(Arc::clone(&login.identity));
        let mut others = self.others;
        if let Caller::Known(identity) = self.caller {
            others.push(identity);
        }
        Identified { caller, others, linked: self.linked }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{field}: {cause}")]
    Jwt { field: String, cause: Box<IdentityError> },
    #[error("algorithms: {0} is not known")]
    Algorithm(String),
    #[error("{0}")]
    Key(String),
    #[error("key_file {path}: {source}")]
    KeyFile { path: PathBuf, source: io::Error },
    #[error("key_env: the variable {0} is not set")]
    KeyVariable(String),
    #[error("jwks_url: {0}")]
    Jwks(String),
    #[error("{key}: {name:?} is not a cookie name")]
    CookieName { key: &'static str, name: String },
    #[error("identity.oidc: {0}")]
    Provider(String),
    #[error("identity.oidc.client_secret_file {path}: {source}")]
    ClientSecret { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl Identifier {
    /// Loads the keys. A JWKS address that does not answer is no reason not to start: its tokens are
    /// simply not verified until it does.
    pub async fn start(
        config: &crate::config::Identity,
        secret: Arc<InstallSecret>,
    ) -> Result<Identifier, IdentityError> {
        Identifier::start_with(config, secret, Timing::default()).await
    }

    async fn start_with(
        config: &crate::config::Identity,
        secret: Arc<InstallSecret>,
        timing: Timing,
    ) -> Result<Identifier, IdentityError> {
        let own_cookie = cookie_name("identity.cookie_name", &config.cookie_name)?;
        let app_cookie = match &config.app_cookie {
            Some(name) => Some(cookie_name("identity.app_cookie", name)?),
            None => None,
        };
        let mut refreshers = JoinSet::new();
        let jwt = match &config.jwt {
            Some(jwt) => Some(JwtSource::start(jwt, timing, &mut refreshers).await?),
            None => None,
        };
        Ok(Identifier {
            jwt,
            introspector: None,
            app_cookie,
            own_cookie,
            secure: config.cookie_secure,
            secret,
            fingerprints: Fingerprints::new()?,
            verified: Cache::new(config.verified_max),
            aliases: Cache::new(config.verified_max),
            _refreshers: refreshers,
            names: None,
        })
    }

    /// Remembers from now on what issuers call the sessions of their tokens.
    pub fn with_names(mut self, names: Arc<Names>) -> Identifier {
        self.names = Some(names);
        self
    }

    /// Marks own cookies `Secure` from now on; for listeners with TLS.
    pub fn with_secure_cookies(mut self) -> Identifier {
        self.secure = true;
        self
    }

    /// Asks the issuer of opaque tokens from now on.
    pub fn with_introspection(
        mut self,
        settings: &crate::config::Introspection,
        vault: Vault,
    ) -> Result<Identifier, IdentityError> {
        let secret = Arc::clone(&self.secret);
        self.introspector = Some(Introspector::new(settings, ANSWERS_MAX, vault, secret)?);
        Ok(self)
    }

    /// What the issuer of a request's opaque tokens says of them; waits for it where it was not asked
    /// lately. For [`Identified::introspected`].
    pub async fn introspect(&self, headers: &HeaderMap, now: Timestamp) -> Introspected {
        match &self.introspector {
            Some(introspector) => introspector.look(headers, now).await,
            None => Introspected::default(),
        }
    }

    /// Finds the caller by what `sources` allow: token in the cookie, token in the header or the query, the
    /// app's session cookie, our own cookie, and if there is none of them, a new session. What else is proved
    /// stands among the others; for `every` also our own cookie behind a better proof.
    pub fn identify(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        now: Timestamp,
        sources: Sources,
        every: bool,
    ) -> Identified {
        let mut found = Found::default();
        let mut others = Vec::new();
        if let Some(jwt) = &self.jwt {
            if let Some(name) = &jwt.cookie {
                for known in ends(cookies(headers, name)).filter_map(|value| self.verify(jwt, value, now)) {
                    match sources.jwt {
                        true => found.add(known),
                        false => others.push(Arc::clone(&known.identity)),
                    }
                }
            }
            let header = bearer_tokens(headers).filter(|_| jwt.header);
            for known in ends(header).filter_map(|value| self.verify(jwt, value, now)) {
                match sources.jwt {
                    true => found.add_header(known),
                    false => others.push(Arc::clone(&known.identity)),
                }
            }
            let parameters = jwt.query.iter().flat_map(|name| query_values(query.unwrap_or_default(), name));
            for known in ends(parameters).filter_map(|value| self.verify(jwt, value, now)) {
                let tokens = found.caller.iter().chain(&found.header).map(|token| &token.identity);
                let mut presented = tokens.chain(&found.others).chain(&others);
                if !presented.any(|identity| *identity == known.identity) {
                    found.linked.push(Arc::clone(&known.identity));
                }
                match sources.jwt && found.query.is_none() {
                    true => found.query = Some(known),
                    false => others.push(Arc::clone(&known.identity)),
                }
            }
        }
        let mut cookie_session = None;
        if let Some(name) = &self.app_cookie {
            for value in ends(cookies(headers, name)) {
                if let Some(known) = self.app_session(name, value) {
                    if !sources.app_cookie {
                        others.push(Arc::clone(&known.identity));
                        continue;
                    }
                    cookie_session.get_or_insert(known.identity.session);
                    found.add_fallback(known);
                }
            }
        }
        // Our own cookie matters only where nothing better speaks, or to tie it to a header's token.
        let is_needed = found.caller.is_none() && found.fallback.is_none();
        if is_needed || every {
            let own = ends(cookies(headers, &self.own_cookie)).find_map(|value| self.own_session(value));
            match own {
                Some(known) if is_needed => {
                    cookie_session = Some(known.identity.session);
                    found.fallback = Some(known);
                }
                Some(known) => others.push(Arc::clone(&known.identity)),
                None => {}
            }
        }
        let cookie_session = cookie_session.filter(|_| sources.jwt);
        found.others.append(&mut others);
        self.conclude(found, cookie_session, now)
    }

    fn conclude(&self, found: Found, cookie_session: Option<SessionId>, now: Timestamp) -> Identified {
        let Found { caller, header, query, fallback, mut others, linked } = found;
        let mut chosen = caller;
        if chosen.is_none() {
            match (&header, cookie_session) {
                (Some(header), Some(session)) => self.remember_alias(session, header),
                (None, Some(session)) => chosen = self.alias(session, now),
                (_, None) => {}
            }
            chosen = header.or(chosen);
        }
        if let Some(query) = query {
            match &chosen {
                None => chosen = Some(query),
                Some(_) => others.push(Arc::clone(&query.identity)),
            }
        }
        if let Some(fallback) = fallback {
            match &chosen {
                None => chosen = Some(fallback),
                Some(_) if self.app_cookie.is_some() => others.push(Arc::clone(&fallback.identity)),
                Some(_) => {}
            }
        }
        let caller = match chosen {
            Some(known) => Caller::Known(Arc::clone(&known.identity)),
            None => self.new_session(),
        };
        others.retain(|other| **other != **caller.identity());
        Identified { caller, others, linked }
    }

    /// Names of the cookies to expire when a session ends: the app's token, the app's session, our own.
    pub fn cookies_to_clear(&self) -> Vec<String> {
        let token = self.jwt.as_ref().and_then(|jwt| jwt.cookie.clone());
        let opaque = self.introspector.as_ref().and_then(|introspector| introspector.cookie());
        [token, opaque.map(str::to_owned), self.app_cookie.clone(), Some(self.own_cookie.clone())]
            .into_iter()
            .flatten()
            .collect()
    }

    fn verify(&self, jwt: &JwtSource, token: &str, now: Timestamp) -> Option<Arc<Known>> {
        // Before hashing: a header full of text must not cost a hash of it all.
        if token.is_empty() || token.len() > jwt.token_bytes_max {
            return None;
        }
        let token = &*percent_decoded(token);
        let key = self.fingerprints.of(Kind::Token, token.as_bytes());
        if let Some(known) = self.verified.get(&key)
            && jwt.is_current(&known)
            && known.is_valid(now)
        {
            return Some(known);
        }
        let rejected = |rejection: Rejection| {
            metrics::counter!("gaitway_tokens_rejected_total", "reason" => rejection.label()).increment(1);
        };
        let issuer = jwt.issuer_of(token).map_err(rejected).ok()?;
        let TrustedIssuer { rules, keys } = &jwt.issuers[issuer];
        let current = keys.current();
        match token::verify(token, &current, rules, &self.secret, now) {
            Ok(verified) => {
                metrics::counter!("gaitway_tokens_verified_total").increment(1);
                if let Some(names) = &self.names {
                    names.note(&verified.identity, token);
                }
                let known = Arc::new(Known {
                    identity: Arc::new(verified.identity),
                    valid_from: verified.valid_from,
                    valid_until: verified.valid_until,
                    issuer,
                    generation: current.generation,
                });
                self.verified.insert(key, Arc::clone(&known));
                Some(known)
            }
            Err(rejection) => {
                rejected(rejection);
                if rejection == Rejection::UnknownKey {
                    keys.want();
                }
                None
            }
        }
    }

    fn app_session(&self, name: &str, value: &str) -> Option<Arc<Known>> {
        if value.is_empty() || value.len() > APP_COOKIE_BYTES_MAX {
            return None;
        }
        let value = &*percent_decoded(value);
        let key = self.fingerprints.of(Kind::AppCookie, value.as_bytes());
        if let Some(known) = self.verified.get(&key) {
            return Some(known);
        }
        let session = self.secret.session(&[b"app-cookie", name.as_bytes(), value.as_bytes()]);
        let known = Arc::new(Known::without_end(session));
        self.verified.insert(key, Arc::clone(&known));
        Some(known)
    }

    fn own_session(&self, value: &str) -> Option<Arc<Known>> {
        let mut proof = [0; 32];
        let text = value.strip_prefix(OWN_COOKIE_VERSION)?;
        if URL_SAFE_NO_PAD.decode_slice(text, &mut proof) != Ok(32) {
            return None;
        }
        let key = self.fingerprints.of(Kind::OwnCookie, &proof);
        if let Some(known) = self.verified.get(&key) {
            return Some(known);
        }
        let (nonce, signature) = proof.split_at(16);
        if !self.secret.is_signed(Purpose::OwnCookie, nonce, signature) {
            metrics::counter!("gaitway_own_cookies_rejected_total").increment(1);
            return None;
        }
        let known = Arc::new(Known::without_end(self.secret.session(&[b"own-cookie", nonce])));
        self.verified.insert(key, Arc::clone(&known));
        Some(known)
    }

    fn new_session(&self) -> Caller {
        // Without randomness from the system nothing else here works either (TLS, for one); a session
        // that several visitors share for a moment is still better than an error page for all of them.
        let nonce: [u8; 16] = crate::secret::random().unwrap_or_default();
        let identity =
            Arc::clone(&Known::without_end(self.secret.session(&[b"own-cookie", &nonce])).identity);
        let mut proof = [0; 32];
        proof[..16].copy_from_slice(&nonce);
        proof[16..].copy_from_slice(&self.secret.sign(Purpose::OwnCookie, &nonce));
        let set_cookie = format!(
            "{}={OWN_COOKIE_VERSION}{}; Path=/; HttpOnly; SameSite=Lax{}",
            self.own_cookie,
            URL_SAFE_NO_PAD.encode(proof),
            if self.secure { "; Secure" } else { "" },
        );
        Caller::New { identity, set_cookie }
    }

    fn alias(&self, session: SessionId, now: Timestamp) -> Option<Arc<Known>> {
        let known = self.aliases.get(&session)?;
        let is_current = self.jwt.as_ref().is_some_and(|jwt| jwt.is_current(&known));
        (is_current && known.is_valid(now)).then_some(known)
    }

    fn remember_alias(&self, session: SessionId, known: &Arc<Known>) {
        // Reading first keeps the shard's write lock out of nearly every request.
        if !self.aliases.get(&session).is_some_and(|kept| Arc::ptr_eq(&kept, known)) {
            self.aliases.insert(session, Arc::clone(known));
        }
    }
}

struct JwtSource {
    cookie: Option<String>,
    header: bool,
    query: Option<String>,
    token_bytes_max: usize,
    /// Never empty.
    issuers: Vec<TrustedIssuer>,
}

struct TrustedIssuer {
    rules: Rules,
    keys: Arc<Keys>,
}

impl JwtSource {
    async fn start(
        config: &crate::config::Jwt,
        timing: Timing,
        refreshers: &mut JoinSet<()>,
    ) -> Result<JwtSource, IdentityError> {
        let cookie = match &config.cookie {
            Some(name) => Some(cookie_name("identity.jwt.cookie", name)?),
            None => None,
        };
        let believed = config.believed();
        let named = |field: &str| {
            let field = field.to_owned();
            move |cause| IdentityError::Jwt { field, cause: Box::new(cause) }
        };
        if cookie.is_none() && !config.header && config.query.is_none() {
            let nowhere = "neither a cookie, the header nor the query is looked at";
            return Err(named("identity.jwt")(IdentityError::Key(nowhere.into())));
        }
        // Together, for an issuer that is down takes its time to say nothing.
        let starts = believed.iter().map(async |(field, issuer)| {
            TrustedIssuer::start(config, issuer, timing).await.map_err(named(field))
        });
        let mut issuers = Vec::new();
        for (issuer, refresher) in futures_util::future::try_join_all(starts).await? {
            issuers.push(issuer);
            refresher.map(|refresher| refreshers.spawn(refresher));
        }
        let (header, query) = (config.header, config.query.clone());
        Ok(JwtSource { cookie, header, query, token_bytes_max: config.token_bytes_max, issuers })
    }

    /// Whose rules and keys a token is held against: its issuer's and no others.
    fn issuer_of(&self, token: &str) -> Result<usize, Rejection> {
        if self.issuers.len() == 1 {
            return Ok(0);
        }
        let claimed = token::claimed_issuer(token)?;
        let is_claimed = |issuer: &TrustedIssuer| issuer.rules.issuer.as_ref() == Some(&claimed);
        self.issuers.iter().position(is_claimed).ok_or(Rejection::Issuer)
    }

    /// Whether the keys that verified it are still its issuer's.
    fn is_current(&self, known: &Known) -> bool {
        self.issuers[known.issuer].keys.current().generation == known.generation
    }
}

/// Keeps keys fresh for as long as it runs.
type Refresher = futures_util::future::BoxFuture<'static, ()>;

impl TrustedIssuer {
    async fn start(
        config: &crate::config::Jwt,
        issuer: &crate::config::JwtIssuer,
        timing: Timing,
    ) -> Result<(TrustedIssuer, Option<Refresher>), IdentityError> {
        let mut algorithms = Vec::new();
        for name in &issuer.algorithms {
            algorithms.push(
                keys::parse_algorithm(name)
                    .ok_or_else(|| IdentityError::Algorithm(name.chars().take(32).collect()))?,
            );
        }
        if algorithms.is_empty() {
            return Err(IdentityError::Key("no algorithm is accepted".into()));
        }
        let (keys, refresher) = load_keys(issuer, &algorithms, timing).await?;
        let rules = Rules {
            algorithms,
            issuer: issuer.issuer.clone(),
            audience: issuer.audience.clone(),
            session_claims: config.session_claims.clone(),
            subject_claim: config.subject_claim.clone(),
            groups_claim: config.groups_claim.clone(),
            leeway_ms: issuer.leeway_seconds.unwrap_or(config.leeway_seconds).saturating_mul(1000),
            require_expiry: config.require_expiry,
            token_bytes_max: config.token_bytes_max,
        };
        Ok((TrustedIssuer { rules, keys }, refresher))
    }
}

async fn load_keys(
    config: &crate::config::JwtIssuer,
    algorithms: &[jsonwebtoken::Algorithm],
    timing: Timing,
) -> Result<(Arc<Keys>, Option<Refresher>), IdentityError> {
    match (&config.key_file, &config.key_env, &config.jwks_url) {
        (Some(path), None, None) => {
            let text = std::fs::read(path)
                .map_err(|source| IdentityError::KeyFile { path: path.clone(), source })?;
            let keys = Arc::new(Keys::fixed(KeySet::from_text(&text, algorithms)?));
            let follower =
                jwks::follow_file(path.clone(), algorithms.to_vec(), Arc::clone(&keys), timing.file);
            Ok((keys, Some(Box::pin(follower))))
        }
        (None, Some(variable), None) => {
            let text =
                std::env::var_os(variable).ok_or_else(|| IdentityError::KeyVariable(variable.clone()))?;
            let keys = KeySet::from_text(text.as_encoded_bytes(), algorithms)?;
            Ok((Arc::new(Keys::fixed(keys)), None))
        }
        (None, None, Some(url)) => {
            if algorithms.iter().any(|algorithm| keys::is_symmetric(*algorithm)) {
                return Err(IdentityError::Key(
                    "an HS algorithm needs a shared secret, which no JWKS address may publish; \
                     set algorithms to those of the issuer"
                        .into(),
                ));
            }
            let name = config.issuer.as_deref().unwrap_or_default();
            let jwks = Jwks::new(url, name, algorithms, timing)?;
            let keys = Arc::new(Keys::fixed(KeySet::empty()));
            let first = jwks.refresh(&keys).await;
            if let Err(reason) = &first {
                tracing::error!(issuer = name, %reason, "cannot fetch the issuer's keys at start; tokens are not verified until it works");
            }
            let refresher = jwks.keep_fresh(Arc::clone(&keys), first);
            Ok((keys, Some(Box::pin(refresher))))
        }
        _ => Err(IdentityError::Key("set exactly one of key_file, key_env and jwks_url".into())),
    }
}

/// An identity with the time it may be believed in.
struct Known {
    identity: Arc<Identity>,
    valid_from: Timestamp,
    valid_until: Timestamp,
    /// Who vouched for it, and which of their keys; nobody where it is no token.
    issuer: usize,
    generation: u64,
}

impl Known {
    fn without_end(session: SessionId) -> Known {
        let identity = Arc::new(Identity {
            session,
            subject: None,
            token: None,
            expires_at: None,
            issued_at: None,
            groups: Vec::new(),
        });
        Known {
            identity,
            valid_from: Timestamp(0),
            valid_until: Timestamp(u64::MAX),
            issuer: 0,
            generation: 0,
        }
    }

    fn is_valid(&self, now: Timestamp) -> bool {
        self.valid_from <= now && now < self.valid_until
    }
}

/// What one request's headers proved, in order of trust.
#[derive(Default)]
struct Found {
    /// First verified token of the token cookie.
    caller: Option<Arc<Known>>,
    /// First verified token of the `Authorization` header.
    header: Option<Arc<Known>>,
    /// First verified token of the query.
    query: Option<Arc<Known>>,
    /// The app's or our own cookie session, should no token be verified.
    fallback: Option<Arc<Known>>,
    others: Vec<Arc<Identity>>,
    linked: Vec<Arc<Identity>>,
}

impl Found {
    fn add(&mut self, known: Arc<Known>) {
        match &self.caller {
            None => self.caller = Some(known),
            Some(_) => self.others.push(Arc::clone(&known.identity)),
        }
    }

    fn add_header(&mut self, known: Arc<Known>) {
        if self.caller.is_some() || self.header.is_some() {
            self.others.push(Arc::clone(&known.identity));
        }
        self.header.get_or_insert(known);
    }

    fn add_fallback(&mut self, known: Arc<Known>) {
        match &self.fallback {
            None => self.fallback = Some(known),
            Some(_) => self.others.push(Arc::clone(&known.identity)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Token,
    AppCookie,
    OwnCookie,
}

/// What was presented, as a fingerprint that only this process can compute: the cache keeps no token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct CacheKey {
    kind: Kind,
    fingerprint: u128,
}

/// SipHash-2-4 with 128 bits of output under a key made at start. Two texts with one fingerprint would
/// let a forged token pass for a verified one; without the key nobody can look for such a pair, and a
/// guess succeeds once in 2^128. SHA-256 needs no key, but three times the time: more than a microsecond
/// for a token of 1 KiB.
struct Fingerprints(SipHasher24);

impl Fingerprints {
    fn new() -> Result<Fingerprints, SecretError> {
        Ok(Fingerprints(SipHasher24::new_with_key(&crate::secret::random()?)))
    }

    fn of(&self, kind: Kind, presented: &[u8]) -> CacheKey {
        let mut hasher = self.0;
        hasher.write(presented);
        CacheKey { kind, fingerprint: hasher.finish128().as_u128() }
    }
}

/// A value as most app servers read it: with `%XX` undone. Otherwise the same session, spelt another
/// way, would be another session here and the same one there.
fn percent_decoded(value: &str) -> Cow<'_, str> {
    if !value.contains('%') {
        return Cow::Borrowed(value);
    }
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match (byte, digit(tail.first()), digit(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                &tail[2..]
            }
            _ => {
                decoded.push(byte);
                tail
            }
        };
    }
    // What is no text afterwards is left as it came, as apps do.
    String::from_utf8(decoded).map_or(Cow::Borrowed(value), Cow::Owned)
}

/// Values of a cookie in the order sent. HTTP/2 may split the header into several.
fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(http::header::COOKIE)
        .into_iter()
        .flat_map(|header| header.as_bytes().split(|byte| *byte == b';'))
        .filter_map(move |pair| {
            let value = pair.trim_ascii_start().strip_prefix(name.as_bytes())?;
            let value = value.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
            let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
            std::str::from_utf8(value).ok()
        })
}

fn bearer_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(http::header::AUTHORIZATION).into_iter().filter_map(|header| {
        let header = header.to_str().ok()?.trim_ascii_start();
        let (scheme, token) = header.split_once([' ', '\t'])?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_ascii())
    })
}

/// Values of a parameter in the order sent, however its name is spelt; apps split at `&` or at `;` too.
fn query_values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query.split(['&', ';']).filter_map(move |pair| {
        let (key, value) = pair.split_once('=')?;
        (percent_decoded(key) == name).then_some(value)
    })
}

/// The first and the last few values. Verifying costs up to 60 µs each, so a header full of tokens must
/// not be worked through; and of a repeated cookie apps honour the first or the last.
fn ends<'a>(mut values: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let first: [Option<&str>; VALUES_EACH_END_MAX] = std::array::from_fn(|_| values.next());
    let mut last: [Option<&str>; VALUES_EACH_END_MAX] = [None; VALUES_EACH_END_MAX];
    for (n, value) in values.enumerate() {
        last[n % VALUES_EACH_END_MAX] = Some(value);
    }
    first.into_iter().chain(last).flatten()
}

/// RFC 6265 `token`.
fn cookie_name(key: &'static str, name: &str) -> Result<String, IdentityError> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !name.is_empty() && name.len() <= 128 && name.bytes().all(is_token) {
        Ok(name.to_owned())
    } else {
        Err(IdentityError::CookieName { key, name: name.chars().take(128).collect() })
    }
}

/// Answers about opaque tokens remembered, about 300 bytes each.
const ANSWERS_MAX: usize = 100_000;
/// First characters of our own cookie; a later format gets another number.
const OWN_COOKIE_VERSION: &str = "1.";
/// Longest opaque session cookie looked at. Browsers keep 4 KiB with the name.
const APP_COOKIE_BYTES_MAX: usize = 4096;
/// Two are legitimate (a cookie set for two paths); eight looked at in all.
const VALUES_EACH_END_MAX: usize = 4;

#[cfg(test)]
mod forgeries;
#[cfg(test)]
mod issuer;
#[cfg(test)]
mod tests;
