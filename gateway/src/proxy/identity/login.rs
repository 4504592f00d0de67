//! Logins at an OpenID provider (authorization code with PKCE): how one begins, what of its answer is
//! believed, where its tokens are kept, how they are renewed, and how it ends from either side.
//!
//! Invariant: tokens stay here and in the vault; a browser gets a signed random number, the app a name.
//! A provider that is down ends nobody's login. Must not know: pages, policies, how requests travel.

use super::named::Named;
use super::provider::{Ask, Provider, ProviderError, Tokens, client_secret};
use super::token::{self, Claims};
use super::{IdentityError, cookies};
use crate::clock;
use crate::config::{LoginRule, Oidc};
use crate::revocation::{Revocation, Revocations, Scope};
use crate::secret::{self, InstallSecret, Purpose};
use crate::vault::{Kind, Name, Vault, VaultError};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gaitway_models::Timestamp;
use gaitway_policies::{Identity, SessionId};
use http::{HeaderMap, HeaderValue};
use oauth2::{PkceCodeChallenge, RedirectUrl};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use subtle::ConstantTimeEq;

/// What stands in place of an incident's number where a person or their provider ended the login.
pub const LOGGED_OUT: &str = "logout";

/// One for the process.
pub struct Login {
    provider: Arc<Provider>,
    settings: Oidc,
    redirect: RedirectUrl,
    done: String,
    cookie: String,
    is_https: bool,
    secret: Arc<InstallSecret>,
    vault: Arc<Vault>,
    revocations: Arc<Revocations>,
    /// Logins seen lately, so that a request costs no question to Redis.
    live: Cache<SessionId, Arc<Session>>,
    follower: Option<tokio::task::JoinHandle<()>>,
}

/// A login in force.
pub struct Session {
    record: Record,
    pub identity: Arc<Identity>,
    user: Option<HeaderValue>,
    groups: Option<HeaderValue>,
    /// In ms: no attempt to renew it before this moment.
    renew_at: AtomicU64,
}

impl Session {
    /// What the app is told: the person's name, and their groups if there are any.
    pub fn told(&self) -> (Option<&HeaderValue>, Option<&HeaderValue>) {
        (self.user.as_ref(), self.groups.as_ref())
    }
}

/// What a request's login cookie stands for.
pub enum Presence {
    Absent,
    Present(Arc<Session>),
    /// There is a genuine cookie, and the store of logins does not answer.
    Unknown,
}

/// A redirect to the provider and the cookie that recognises the answer.
#[derive(Debug)]
pub struct Begun {
    pub location: String,
    pub set_cookies: Vec<String>,
}

pub struct Finished {
    /// A path on the app's origin.
    pub back: String,
    pub set_cookies: Vec<String>,
    /// It answered a wish for stronger or newer proof, and the session is still the same.
    pub stepped_up: bool,
    session: Arc<Session>,
    begun_at: Timestamp,
}

impl Finished {
    pub fn identity(&self) -> &Identity {
        &self.session.identity
    }

    /// Whether the proof is what is asked for by now: more may be asked for than when the login began.
    pub fn is_enough(&self, ask: &Ask, now: Timestamp) -> bool {
        is_sufficient(&self.session.record, ask, self.begun_at, now)
    }
}

/// Why a login did not come about.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// An answer nobody here waited for, or too late.
    #[error("expired")]
    Expired,
    /// The provider, or the person there, said no.
    #[error("refused")]
    Refused,
    #[error("unreachable")]
    Unreachable,
    /// A forged or mixed-up answer.
    #[error("invalid")]
    Invalid,
    /// Genuine, but older or weaker than what was asked for.
    #[error("insufficient")]
    Insufficient,
    /// The person's proof is older than the end of their sessions: they must give a new one.
    #[error("anew")]
    Anew(Box<Begun>),
}

impl LoginError {
    pub fn label(&self) -> &'static str {
        match self {
            LoginError::Expired => "expired",
            LoginError::Refused => "refused",
            LoginError::Unreachable => "unreachable",
            LoginError::Invalid => "invalid",
            LoginError::Insufficient => "insufficient",
            LoginError::Anew(_) => "anew",
        }
    }
}

/// Why a logout that a provider asked for was not carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogoutError {
    #[error("{0}")]
    Invalid(&'static str),
    #[error("the shared store does not answer")]
    Unreachable,
}

/// Why the provider could not be told.
#[derive(Debug, thiserror::Error)]
pub enum ProviderTold {
    #[error("{0}")]
    Later(String),
    #[error("{0}")]
    Never(String),
}

/// A login as the vault keeps it.
#[derive(Clone, Serialize, Deserialize)]
struct Record {
    subject: String,
    provider_session: Option<String>,
    user: String,
    groups: Vec<String>,
    acr: Option<String>,
    began_at: Timestamp,
    authenticated_at: Option<Timestamp>,
    /// The end, whatever the tokens say.
    until: Timestamp,
    id_token: String,
    access_token: String,
    refresh_token: Option<String>,
    /// When the access token should be replaced, and when it ends.
    access: Option<(Timestamp, Timestamp)>,
}

/// What is remembered of a login under way, sealed in a cookie: no memory of ours fills up with logins
/// that nobody finishes.
#[derive(Serialize, Deserialize)]
struct Pending {
    state: String,
    nonce: String,
    verifier: String,
    back: String,
    begun_at: Timestamp,
    ask: Ask,
    /// The session that asked for stronger proof.
    session: Option<SessionId>,
}

impl Login {
    /// A provider that does not answer is no reason not to start: nobody can log in until it does.
    pub async fn start(
        settings: &Oidc,
        prefix: &str,
        secret: Arc<InstallSecret>,
        vault: Arc<Vault>,
        revocations: Arc<Revocations>,
    ) -> Result<Arc<Login>, IdentityError> {
        let client_secret =
            client_secret(settings.client_secret_file.as_deref(), settings.client_secret_env.as_deref())?;
        let provider = Arc::new(Provider::new(&settings.issuer, &settings.client_id, client_secret)?);
        let origin = settings.public_url.trim_end_matches('/');
        let redirect = RedirectUrl::new(format!("{origin}{prefix}/login/callback"))
            .map_err(|error| IdentityError::Provider(error.to_string()))?;
        let is_https = origin.starts_with("https://");
        let cookie = super::cookie_name("identity.oidc.cookie_name", &settings.cookie_name)?;
        // The prefix keeps other hosts of the domain from setting it; browsers refuse it without TLS.
        let cookie = if is_https { format!("__Host-{cookie}") } else { cookie };
        let follower = tokio::spawn(Arc::clone(&provider).keep_known());
        provider.until_known(START_WAIT).await;
        Ok(Arc::new(Login {
            provider,
            redirect,
            done: format!("{origin}{prefix}/logout/done"),
            cookie,
            is_https,
            secret,
            vault,
            revocations,
            live: Cache::new(settings.sessions_max),
            settings: settings.clone(),
            follower: Some(follower),
        }))
    }

    /// Whether a request needs a login; `route`: what its policy route says.
    pub fn is_required(&self, route: Option<bool>, path: &str) -> bool {
        // A disguised path matches no route, so it must not be what an optional default lets through.
        route.unwrap_or(self.settings.login == LoginRule::Required)
            || gaitway_policies::route::is_ambiguous(path)
    }

    /// Name of the cookie that must not reach the app: to the app it is nothing, to a thief everything.
    pub fn cookie(&self) -> &str {
        &self.cookie
    }

    /// Where forms of ours may lead, besides our own origin: the provider's logout.
    pub fn provider_origin(&self) -> Option<String> {
        Some(self.provider.metadata()?.end_session.as_ref()?.origin().ascii_serialization())
    }

    /// Who is logged in. Memory only, unless the login is new to this process or its tokens have ended.
    pub async fn presence(self: &Arc<Self>, headers: &HeaderMap, now: Timestamp) -> Presence {
        let mut presence = Presence::Absent;
        for value in cookies(headers, &self.cookie).take(COOKIES_MAX) {
            let Some(id) = self.session_of(value) else { continue };
            match self.find(id, now).await {
                Presence::Absent => {}
                Presence::Present(session) => return self.fresh(id, session, now).await,
                Presence::Unknown => presence = Presence::Unknown,
            }
        }
        presence
    }

    /// Begins a login; `back` is where it shall end, the front page if it is no path of this origin. `None`:
    /// the provider has never answered yet.
    pub fn begin(
        &self,
        headers: &HeaderMap,
        back: &str,
        ask: &Ask,
        session: Option<SessionId>,
        now: Timestamp,
    ) -> Option<Begun> {
        let metadata = self.provider.metadata()?;
        let mut ask = ask.clone();
        let age_max = self.settings.authentication_age_seconds_max;
        if age_max > 0 {
            ask.age_seconds_max = Some(ask.age_seconds_max.map_or(age_max, |age| age.min(age_max)));
        }
        let fresh = || Some(URL_SAFE_NO_PAD.encode(secret::random::<24>().ok()?));
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let pending = Pending {
            state: fresh()?,
            nonce: fresh()?,
            verifier: verifier.secret().clone(),
            back: way_back(back).to_owned(),
            begun_at: now,
            ask,
            session,
        };
        let secrets = (pending.state.as_str(), pending.nonce.as_str(), challenge);
        let location = self.provider.login_address(
            &metadata,
            &self.redirect,
            &self.settings.scopes,
            secrets,
            &pending.ask,
        );
        let name = self.pending_name(&pending.state);
        let text = serde_json::to_vec(&pending).ok()?;
        let sealed = self.secret.seal(&[b"login-pending", name.as_bytes()], &text)?;
        let mut set_cookies = self.forget_pending(headers, PENDING_MAX - 1, &name);
        set_cookies.push(self.set_cookie(&name, &URL_SAFE_NO_PAD.encode(sealed), Some(PENDING_AGE)));
        Some(Begun { location: location.into(), set_cookies })
    }

    /// Ends a login that the provider has answered; `query` is what the browser brought back.
    pub async fn finish(
        self: &Arc<Self>,
        query: &str,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Finished, LoginError> {
        let answer = |name: &str| {
            form_urlencoded(query).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        let state = answer("state").ok_or(LoginError::Expired)?;
        let pending = self.pending(&state, headers, now).ok_or(LoginError::Expired)?;
        let metadata = self.provider.metadata().ok_or(LoginError::Unreachable)?;
        // RFC 9207: an answer of another provider, mixed in by whoever controls that one.
        match answer("iss") {
            Some(issuer) if issuer != self.provider.issuer() => return Err(LoginError::Invalid),
            None if metadata.names_itself => return Err(LoginError::Invalid),
            _ => {}
        }
        if answer("error").is_some() {
            return Err(LoginError::Refused);
        }
        let code = answer("code").ok_or(LoginError::Invalid)?;
        let tokens = self.provider.redeem(&self.redirect, &code, &pending.verifier).await;
        let tokens = tokens.map_err(|error| match error {
            ProviderError::Unreachable(_) => LoginError::Unreachable,
            ProviderError::Refused { .. } => LoginError::Refused,
            ProviderError::Unbelievable(_) => LoginError::Invalid,
        })?;
        let id_token = tokens.id.clone().ok_or(LoginError::Invalid)?;
        let claims = self.provider.id_token(&id_token, now).await.map_err(|rejection| {
            tracing::warn!(reason = rejection.label(), "an ID token is not believed");
            LoginError::Invalid
        })?;
        let nonce = claims.all.get("nonce").and_then(|nonce| nonce.as_str()).unwrap_or_default();
        if !bool::from(nonce.as_bytes().ct_eq(pending.nonce.as_bytes())) {
            return Err(LoginError::Invalid);
        }
        let mut record = self.record(&claims, id_token, tokens, now)?;
        if !is_sufficient(&record, &pending.ask, pending.begun_at, now) {
            // Some providers answer with the login they have, unless they are told to ask again.
            let again = pending.session.is_some() && !pending.ask.anew;
            let ask = Ask { anew: true, ..pending.ask };
            let begun =
                again.then(|| self.begin(headers, &pending.back, &ask, pending.session, now)).flatten();
            return Err(begun.map_or(LoginError::Insufficient, |begun| LoginError::Anew(Box::new(begun))));
        }
        if let (true, Some(at)) = (pending.ask.anew, record.authenticated_at)
            && at.plus(Duration::from_secs(1)) > pending.begun_at
        {
            // Providers count in whole seconds: what was proved because we asked was proved after we did.
            record.authenticated_at = Some(at.max(pending.begun_at));
        }
        let mut set_cookies = self.forget_pending(headers, 0, "");
        let (id, stepped_up) = match pending.session {
            None => {
                let proof: [u8; 16] = secret::random().map_err(|_| LoginError::Unreachable)?;
                set_cookies.push(self.set_cookie(&self.cookie, &self.signed(&proof), None));
                (self.id_of(&proof), false)
            }
            Some(wanted) => {
                // Stronger proof counts for the session that needs it, given by the person whose it is.
                let own = cookies(headers, &self.cookie).take(COOKIES_MAX);
                if !own.filter_map(|value| self.session_of(value)).any(|id| id == wanted) {
                    return Err(LoginError::Invalid);
                }
                let Presence::Present(known) = self.find(wanted, now).await else {
                    return Err(LoginError::Expired);
                };
                if known.record.subject != record.subject {
                    return Err(LoginError::Invalid);
                }
                record.until = known.record.until;
                (wanted, true)
            }
        };
        let session = Arc::new(self.session(id, record));
        // Whoever was logged out everywhere after proving who they are must prove it again.
        if self.revocations.check(&session.identity, now).is_some() {
            let ask = Ask { anew: true, ..pending.ask.clone() };
            if pending.ask.anew || stepped_up {
                return Err(LoginError::Insufficient);
            }
            let begun = self.begin(headers, &pending.back, &ask, None, now).ok_or(LoginError::Unreachable)?;
            return Err(LoginError::Anew(Box::new(begun)));
        }
        self.keep(id, &session).await.map_err(|_| LoginError::Unreachable)?;
        self.live.insert(id, Arc::clone(&session));
        Ok(Finished { back: pending.back, set_cookies, stepped_up, session, begun_at: pending.begun_at })
    }

    /// Ends the login here and on every replica, and says where the person ends it at the provider.
    pub async fn log_out(&self, headers: &HeaderMap, now: Timestamp) -> Begun {
        let mut id_token = None;
        for value in cookies(headers, &self.cookie).take(COOKIES_MAX) {
            let Some(id) = self.session_of(value) else { continue };
            if let Presence::Present(session) = self.find(id, now).await {
                self.end(id, session.record.until).await;
                id_token.get_or_insert_with(|| session.record.id_token.clone());
            }
        }
        let mut location = self.done.clone();
        if let (Some(id_token), Some(metadata)) = (id_token, self.provider.metadata())
            && let Some(mut address) = metadata.end_session.clone()
        {
            address
                .query_pairs_mut()
                .append_pair("id_token_hint", &id_token)
                .append_pair("client_id", self.provider.client_id())
                .append_pair("post_logout_redirect_uri", &self.done);
            location = address.into();
        }
        Begun { location, set_cookies: vec![self.set_cookie(&self.cookie, "", Some(Duration::ZERO))] }
    }

    /// Carries out a logout token (OpenID Connect Back-Channel Logout 1.0): one session of the provider,
    /// or everything of a person so far. `lets` is asked before a signature is checked, so that what is
    /// plainly none of the provider's takes nobody's turn.
    pub async fn log_out_by_provider(
        &self,
        form: &str,
        now: Timestamp,
        lets: impl FnOnce() -> bool,
    ) -> Result<(), LogoutError> {
        let refuse = LogoutError::Invalid;
        let text = form_urlencoded(form).find(|(key, _)| key == "logout_token").map(|(_, value)| value);
        let text = text.ok_or(refuse("no logout_token"))?;
        self.provider.glance_at_logout_token(&text, now).map_err(|why| refuse(why.label()))?;
        if !lets() {
            return Err(LogoutError::Unreachable);
        }
        let claims = self.provider.logout_token(&text, now).await.map_err(|why| refuse(why.label()))?;
        let all = &claims.all;
        let is_event = all.get("events").and_then(|events| events.get(LOGOUT_EVENT));
        if !is_event.is_some_and(serde_json::Value::is_object) || all.contains_key("nonce") {
            return Err(refuse("not a logout token"));
        }
        let issued_at = claims.issued_at.ok_or(refuse("no iat"))?;
        if now.since(issued_at) > LOGOUT_AGE || issued_at.since(now) > LOGOUT_AGE {
            return Err(refuse("too old"));
        }
        let text = |claim: &str| match all.get(claim) {
            None => Ok(None),
            Some(serde_json::Value::String(text)) if !text.is_empty() => Ok(Some(text.as_str())),
            Some(_) => Err(refuse("a claim of the wrong type")),
        };
        let (Some(jti), sid, sub) = (text("jti")?, text("sid")?, text("sub")?) else {
            return Err(refuse("no jti"));
        };
        if sid.is_none() && sub.is_none() {
            return Err(refuse("neither sid nor sub"));
        }
        let used = self.secret.token(&[b"logout", jti.as_bytes()]).0;
        let first = self.vault.put_first(Kind::Used, &used, b"", now.plus(LOGOUT_AGE * 3)).await;
        match first {
            Ok(true) => {}
            Ok(false) => return Err(refuse("used before")),
            Err(_) => return Err(LogoutError::Unreachable),
        }
        let done = match (sid, sub) {
            (Some(sid), _) => self.end_provider_session(sid, now).await,
            (None, Some(sub)) => self.end_subject(sub, now).await,
            (None, None) => Ok(()),
        };
        if done.is_err() {
            // It may be sent again, and must count then.
            let _ = self.vault.remove(Kind::Used, &used).await;
        }
        done.map_err(|_| LogoutError::Unreachable)
    }

    /// What the provider calls a login and its person.
    pub async fn named(&self, id: SessionId) -> Result<Option<Named>, VaultError> {
        let record = self.vault.get(Kind::Login, &id.0).await?;
        let record = record.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        Ok(record.map(|record| Named {
            issuer: self.provider.issuer().to_owned(),
            sub: record.subject,
            sid: record.provider_session,
            jti: None,
        }))
    }

    /// The sessions here of one session at the provider, if this is the provider's issuer, but for those that
    /// the provider let begin after the moment.
    pub async fn sessions_at(
        &self,
        issuer: &str,
        sid: &str,
        at: Timestamp,
    ) -> Result<Vec<SessionId>, VaultError> {
        let mut sessions = Vec::new();
        if issuer != self.provider.issuer() {
            return Ok(sessions);
        }
        for place in 0..PLACES {
            let id = self.vault.get(Kind::ProviderSession, &self.place(sid, place)).await?;
            let Some(id) = id.and_then(|id| <[u8; 16]>::try_from(id).ok()) else { continue };
            let record = self.vault.get(Kind::Login, &id).await?;
            let record = record.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
            // Providers tell the time in whole seconds.
            if record.is_none_or(|record| record.began_at.0 / 1000 <= at.0 / 1000) {
                sessions.push(SessionId(id));
            }
        }
        Ok(sessions)
    }

    /// Tells the provider that a login's tokens are no longer good (RFC 7009); whether it was told, which
    /// it is not if the login has no tokens to revoke or it takes no such news. They are read from the
    /// vault, the one place where they lie; nothing of them is in the outbox.
    pub async fn revoke_tokens(&self, id: SessionId) -> Result<bool, ProviderTold> {
        let record = self
            .vault
            .get(Kind::Login, &id.0)
            .await
            .map_err(|_| ProviderTold::Later("the logins cannot be looked up".into()))?;
        let Some(record) = record.and_then(|text| serde_json::from_slice::<Record>(&text).ok()) else {
            return Ok(false);
        };
        match record.refresh_token {
            Some(refresh) => self.provider.revoke(&refresh, "refresh_token").await,
            None => self.provider.revoke(&record.access_token, "access_token").await,
        }
    }

    // ---- sessions

    async fn end_provider_session(&self, sid: &str, now: Timestamp) -> Result<(), VaultError> {
        for place in 0..PLACES {
            let place = self.place(sid, place);
            let Some(id) = self.vault.get(Kind::ProviderSession, &place).await? else { continue };
            let Ok(id) = <[u8; 16]>::try_from(id) else { continue };
            let longest = now.plus(Duration::from_secs(self.settings.session_seconds));
            self.end(SessionId(id), longest).await;
            let _ = self.vault.remove(Kind::ProviderSession, &place).await;
        }
        Ok(())
    }

    async fn end_subject(&self, sub: &str, now: Timestamp) -> Result<(), VaultError> {
        let until = now.plus(Duration::from_secs(self.settings.session_seconds));
        let scope = Scope::Subject { subject: self.subject(sub), before: now };
        // In force here even where it could not be shared yet; it is queued then.
        let revocation = Revocation { scope, incident: LOGGED_OUT.into(), decided_at: now, until };
        let _ = self.revocations.revoke(revocation).await;
        Ok(())
    }

    /// The board ends it everywhere at once; the vault forgets its tokens.
    async fn end(&self, id: SessionId, until: Timestamp) {
        let revocation = Revocation {
            scope: Scope::Session(id),
            incident: LOGGED_OUT.into(),
            decided_at: clock::now(),
            until,
        };
        if let Err(error) = self.revocations.revoke(revocation).await {
            tracing::warn!(session.id = %id, %error, "a logout is in force here and not yet everywhere");
        }
        self.live.remove(&id);
        if let Err(error) = self.vault.remove(Kind::Login, &id.0).await {
            tracing::warn!(session.id = %id, %error, "a login that ended stays stored until it is over");
        }
    }

    async fn find(&self, id: SessionId, now: Timestamp) -> Presence {
        if let Some(session) = self.live.get(&id) {
            return if session.record.until > now { Presence::Present(session) } else { Presence::Absent };
        }
        match self.vault.get(Kind::Login, &id.0).await {
            Ok(Some(record)) => match serde_json::from_slice::<Record>(&record) {
                Ok(record) if record.until > now => {
                    let session = Arc::new(self.session(id, record));
                    self.live.insert(id, Arc::clone(&session));
                    Presence::Present(session)
                }
                Ok(_) | Err(_) => Presence::Absent,
            },
            Ok(None) => Presence::Absent,
            Err(_) => Presence::Unknown,
        }
    }

    async fn keep(&self, id: SessionId, session: &Session) -> Result<(), VaultError> {
        let record = &session.record;
        let text = serde_json::to_vec(record).map_err(|_| VaultError::Full)?;
        if let Some(sid) = &record.provider_session {
            self.remember_provider_session(sid, id, record.until).await?;
        }
        self.vault.put(Kind::Login, &id.0, &text, record.until).await
    }

    /// Each login of a provider's session has a place of its own, so that two at once lose neither.
    async fn remember_provider_session(
        &self,
        sid: &str,
        id: SessionId,
        until: Timestamp,
    ) -> Result<(), VaultError> {
        for place in 0..PLACES {
            let place = self.place(sid, place);
            if self.vault.put_first(Kind::ProviderSession, &place, &id.0, until).await? {
                return Ok(());
            }
            let holder = self.vault.get(Kind::ProviderSession, &place).await?;
            let Some(holder) = holder.and_then(|id| <[u8; 16]>::try_from(id).ok()) else { continue };
            if holder == id.0 {
                return Ok(());
            }
            if self.vault.get(Kind::Login, &holder).await?.is_none() {
                return self.vault.put(Kind::ProviderSession, &place, &id.0, until).await;
            }
        }
        // More logins than anybody has browsers: the first one goes.
        let first = self.place(sid, 0);
        if let Some(holder) = self.vault.get(Kind::ProviderSession, &first).await?
            && let Ok(holder) = <[u8; 16]>::try_from(holder)
        {
            self.end(SessionId(holder), until).await;
        }
        self.vault.put(Kind::ProviderSession, &first, &id.0, until).await
    }

    fn place(&self, sid: &str, place: u8) -> Name {
        self.secret.session(&[b"provider", self.provider.issuer().as_bytes(), sid.as_bytes(), &[place]]).0
    }

    fn session(&self, id: SessionId, record: Record) -> Session {
        let identity = Identity {
            session: id,
            subject: Some(self.subject(&record.subject)),
            token: None,
            expires_at: Some(record.until),
            // When the person proved who they are: what was revoked since is not made good by a login
            // that the provider gave them without asking.
            issued_at: Some(record.authenticated_at.unwrap_or(record.began_at)),
            groups: record.groups.clone(),
        };
        let renew_at = record.access.map_or(u64::MAX, |(renew_at, _)| renew_at.0);
        // A comma within a group would make two of it, one of them made up.
        let is_plain = |group: &&String| !group.contains(',') && !group.chars().any(char::is_control);
        let groups: Vec<&str> = record.groups.iter().filter(is_plain).map(String::as_str).collect();
        let groups = HeaderValue::from_bytes(groups.join(",").as_bytes()).ok();
        Session {
            user: HeaderValue::from_bytes(record.user.as_bytes()).ok(),
            groups: groups.filter(|groups| !groups.is_empty()),
            identity: Arc::new(identity),
            renew_at: AtomicU64::new(renew_at),
            record,
        }
    }

    /// The same pseudonym as that of a token of the same issuer for the same person.
    fn subject(&self, sub: &str) -> gaitway_policies::SubjectId {
        self.secret.subject(&[self.provider.issuer().as_bytes(), &[b"t", sub.as_bytes()].concat()])
    }

    fn record(
        &self,
        claims: &Claims,
        id_token: String,
        tokens: Tokens,
        now: Timestamp,
    ) -> Result<Record, LoginError> {
        let text = |claim: &str| claims.all.get(claim).and_then(|value| value.as_str());
        let subject = text("sub").filter(|sub| !sub.is_empty()).ok_or(LoginError::Invalid)?;
        let user = text(&self.settings.user_claim).filter(|user| {
            !user.is_empty() && user.len() <= USER_BYTES_MAX && !user.chars().any(char::is_control)
        });
        let Some(user) = user else {
            tracing::warn!(
                claim = self.settings.user_claim,
                "the ID token names no user the app could be told; see identity.oidc.user_claim"
            );
            return Err(LoginError::Invalid);
        };
        let until = now.plus(Duration::from_secs(self.settings.session_seconds));
        Ok(Record {
            subject: subject.to_owned(),
            provider_session: text("sid").map(str::to_owned),
            user: user.to_owned(),
            groups: token::groups(claims.all.get(&self.settings.groups_claim)),
            acr: text("acr").map(str::to_owned),
            began_at: now,
            authenticated_at: token::moment(&claims.all, "auth_time").map_err(|_| LoginError::Invalid)?,
            until,
            id_token,
            access: tokens.access_lasts.map(|lasts| access_times(now, lasts)),
            access_token: tokens.access,
            refresh_token: tokens.refresh,
        })
    }

    // ---- renewal

    /// Renews the tokens where they are about to end. A request waits for it only if they have ended: the
    /// provider may have ended the login with them.
    async fn fresh(self: &Arc<Self>, id: SessionId, session: Arc<Session>, now: Timestamp) -> Presence {
        let (Some((_, ends_at)), true) = (session.record.access, session.record.refresh_token.is_some())
        else {
            return Presence::Present(session);
        };
        let due = session.renew_at.load(Ordering::Acquire);
        let later = now.plus(RENEW_RETRY).0;
        if now.0 < due
            || session.renew_at.compare_exchange(due, later, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return Presence::Present(session);
        }
        let (login, known) = (Arc::clone(self), Arc::clone(&session));
        let renewal = tokio::spawn(async move { login.renew(id, known).await });
        if now < ends_at {
            return Presence::Present(session);
        }
        match tokio::time::timeout(RENEW_WAIT, renewal).await {
            Ok(Ok(renewed)) => renewed,
            Ok(Err(_)) | Err(_) => Presence::Present(session),
        }
    }

    async fn renew(&self, id: SessionId, session: Arc<Session>) -> Presence {
        let now = clock::now();
        // A refresh token works once, so of all replicas one tries at a time.
        let Ok(owner) = secret::random::<16>() else { return Presence::Present(session) };
        let until = now.plus(RENEWAL_LASTS_MAX);
        let Ok(true) = self.vault.put_first(Kind::Renewal, &id.0, &owner, until).await else {
            return Presence::Present(session);
        };
        let presence = self.renew_alone(id, session, now).await;
        // If it took longer than it may, somebody else's attempt is under way.
        if self.vault.get(Kind::Renewal, &id.0).await.is_ok_and(|held| held.as_deref() == Some(&owner[..])) {
            let _ = self.vault.remove(Kind::Renewal, &id.0).await;
        }
        presence
    }

    async fn renew_alone(&self, id: SessionId, session: Arc<Session>, now: Timestamp) -> Presence {
        match self.vault.get(Kind::Login, &id.0).await {
            Ok(Some(text)) => {
                // Another replica was quicker.
                if let Some(newer) = self.newer(id, &text, &session.record) {
                    return newer;
                }
            }
            Ok(None) => {
                if session.record.until <= now || self.revocations.check(&session.identity, now).is_some() {
                    self.live.remove(&id);
                    return Presence::Absent;
                }
                // A store that has forgotten a login has not ended it: whoever ends one says so on the board.
                if let Err(error) = self.keep(id, &session).await {
                    tracing::warn!(session.id = %id, %error, "a login that was forgotten is not stored yet");
                }
            }
            Err(_) => return Presence::Present(session),
        }
        let Some(refresh) = &session.record.refresh_token else { return Presence::Present(session) };
        let answer = self.provider.renew(&self.redirect, refresh).await;
        let (presence, outcome) = match answer {
            Ok(tokens) => match self.renewed(&session.record, tokens, now).await {
                Some(record) => (self.put_renewed(id, record).await, "ok"),
                None => (Presence::Present(session), "unbelievable"),
            },
            Err(ProviderError::Refused { is_over: true }) => self.refused_for_good(id, session).await,
            // The login stands: its provider's trouble is not the person's.
            Err(ProviderError::Refused { .. }) => (Presence::Present(session), "refused"),
            Err(ProviderError::Unreachable(_) | ProviderError::Unbelievable(_)) => {
                (Presence::Present(session), "unreachable")
            }
        };
        metrics::counter!("gaitway_login_renewals_total", "outcome" => outcome).increment(1);
        presence
    }

    /// The provider takes a refresh token no more: the login is over, unless the token was used up by
    /// somebody who has stored a newer one.
    async fn refused_for_good(&self, id: SessionId, session: Arc<Session>) -> (Presence, &'static str) {
        match self.vault.get(Kind::Login, &id.0).await {
            Ok(Some(text)) => {
                if let Some(newer) = self.newer(id, &text, &session.record) {
                    return (newer, "refused");
                }
            }
            Ok(None) => {}
            Err(_) => return (Presence::Present(session), "refused"),
        }
        tracing::info!(session.id = %id, "the provider ended a login");
        self.end(id, session.record.until).await;
        (Presence::Absent, "over")
    }

    /// The login as it is stored, if its tokens are newer than the `known` ones.
    fn newer(&self, id: SessionId, stored: &[u8], known: &Record) -> Option<Presence> {
        let stored: Record = serde_json::from_slice(stored).ok()?;
        // Tokens that say nothing of their end are never renewed, so nothing comes after them.
        let is_newer = match (stored.access, known.access) {
            (Some(stored), Some(known)) => stored > known,
            (stored, known) => stored.is_none() && known.is_some(),
        };
        is_newer.then(|| {
            let stored = Arc::new(self.session(id, stored));
            self.live.insert(id, Arc::clone(&stored));
            Presence::Present(stored)
        })
    }

    /// The record with new tokens; `None` if their ID token is proved to be of somebody else.
    async fn renewed(&self, known: &Record, tokens: Tokens, now: Timestamp) -> Option<Record> {
        let mut record = known.clone();
        if let Some(id_token) = tokens.id {
            // OpenID Connect Core §12.2: the same issuer, person and audience, now.
            match self.provider.id_token(&id_token, now).await {
                Ok(claims) => {
                    if claims.all.get("sub").and_then(|sub| sub.as_str()) != Some(&known.subject) {
                        return None;
                    }
                    record.id_token = id_token;
                }
                // The old refresh token is used up: without the new one the login would end for want of a
                // key. Who the person is stays as it was proved.
                Err(rejection) => {
                    tracing::warn!(reason = rejection.label(), "a renewal's ID token is not believed");
                }
            }
        }
        record.access_token = tokens.access;
        record.access = tokens.access_lasts.map(|lasts| access_times(now, lasts));
        if tokens.refresh.is_some() {
            record.refresh_token = tokens.refresh;
        }
        Some(record)
    }

    /// The old refresh token may be used up, so the new one is kept in memory whatever the vault says, and
    /// offered to the vault again.
    async fn put_renewed(&self, id: SessionId, record: Record) -> Presence {
        let session = Arc::new(self.session(id, record));
        self.live.insert(id, Arc::clone(&session));
        for attempt in 0..KEEP_ATTEMPTS_MAX {
            match self.keep(id, &session).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(session.id = %id, %error, attempt, "renewed tokens are not stored yet");
                    tokio::time::sleep(KEEP_RETRY * 2u32.pow(attempt)).await;
                }
            }
        }
        Presence::Present(session)
    }

    // ---- cookies

    fn signed(&self, proof: &[u8; 16]) -> String {
        let signature = self.secret.sign(Purpose::Login, proof);
        URL_SAFE_NO_PAD.encode([&proof[..], &signature].concat())
    }

    fn id_of(&self, proof: &[u8]) -> SessionId {
        self.secret.session(&[b"login", proof])
    }

    /// A genuine cookie's session; made-up ones cost no look into the vault.
    fn session_of(&self, value: &str) -> Option<SessionId> {
        let mut bytes = [0; 32];
        if URL_SAFE_NO_PAD.decode_slice(value, &mut bytes) != Ok(32) {
            return None;
        }
        let (proof, signature) = bytes.split_at(16);
        self.secret.is_signed(Purpose::Login, proof, signature).then(|| self.id_of(proof))
    }

    fn set_cookie(&self, name: &str, value: &str, age: Option<Duration>) -> String {
        let age = age.map_or_else(String::new, |age| format!("; Max-Age={}", age.as_secs()));
        let secure = if self.is_https { "; Secure" } else { "" };
        format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{age}{secure}")
    }

    /// Each login under way has a cookie of its own, so that two tabs do not confuse each other.
    fn pending_name(&self, state: &str) -> String {
        let cut: String = state.bytes().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{}_{cut}", self.cookie)
    }

    fn pending(&self, state: &str, headers: &HeaderMap, now: Timestamp) -> Option<Pending> {
        if state.len() > STATE_BYTES_MAX {
            return None;
        }
        let name = self.pending_name(state);
        let opened = cookies(headers, &name).take(COOKIES_MAX).find_map(|value| {
            let sealed = URL_SAFE_NO_PAD.decode(value).ok()?;
            let text = self.secret.unseal(&[b"login-pending", name.as_bytes()], &sealed)?;
            serde_json::from_slice::<Pending>(&text).ok()
        })?;
        let is_ours = bool::from(opened.state.as_bytes().ct_eq(state.as_bytes()));
        (is_ours && now.since(opened.begun_at) <= PENDING_AGE).then_some(opened)
    }

    /// Expires all but `keep` of the cookies of logins under way: many would fill the request header.
    fn forget_pending(&self, headers: &HeaderMap, keep: usize, but: &str) -> Vec<String> {
        let start = format!("{}_", self.cookie);
        let names = headers
            .get_all(http::header::COOKIE)
            .iter()
            .filter_map(|header| header.to_str().ok())
            .flat_map(|header| header.split(';'))
            .filter_map(|pair| pair.trim().split('=').next())
            .filter(|name| name.starts_with(&start) && *name != but);
        names
            .skip(keep)
            .take(COOKIES_MAX * 4)
            .map(|name| self.set_cookie(name, "", Some(Duration::ZERO)))
            .collect()
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
    }
}

/// Whether the proof is as new and as strong as it was asked for (RFC 9470 §6.2).
fn is_sufficient(record: &Record, ask: &Ask, begun_at: Timestamp, now: Timestamp) -> bool {
    let new_enough = match (ask.age_seconds_max, record.authenticated_at) {
        (None, _) => true,
        // What was proved because we asked is new, however long the person then stayed there.
        (Some(_), Some(at)) if ask.anew && at.plus(AGE_LEEWAY) >= begun_at => true,
        (Some(age), Some(at)) => now.since(at) <= Duration::from_secs(age) + AGE_LEEWAY,
        // OpenID Connect Core §2: with max_age in the request, auth_time must be in the answer.
        (Some(_), None) => false,
    };
    let strong_enough = ask.acr_values.as_ref().is_none_or(|values| {
        record.acr.as_ref().is_some_and(|acr| values.split(' ').any(|wanted| wanted == acr))
    });
    new_enough && strong_enough
}

/// Where a login leads back to.
fn way_back(back: &str) -> &str {
    if back.len() <= BACK_BYTES_MAX && is_local_path(back) { back } else { "/" }
}

/// A path on this origin: what a redirect may be pointed at.
pub(crate) fn is_local_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.starts_with("//")
        && !path.contains(['\\', '\r', '\n'])
        && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// When to replace an access token, and when it ends.
fn access_times(now: Timestamp, lasts: Duration) -> (Timestamp, Timestamp) {
    (now.plus(lasts - (lasts / 4).min(RENEW_BEFORE)), now.plus(lasts))
}

fn form_urlencoded(
    text: &str,
) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)> {
    oauth2::url::form_urlencoded::parse(text.as_bytes())
}

/// OpenID Connect Back-Channel Logout 1.0 §2.4.
const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// How long before or after its issue a logout token counts; far longer than a request travels.
const LOGOUT_AGE: Duration = Duration::from_secs(600);
/// How long a person may take at the provider, a forgotten password included.
const PENDING_AGE: Duration = Duration::from_secs(1800);
/// Logins under way in one browser.
const PENDING_MAX: usize = 4;
/// Copies of one cookie looked at: browsers send two if it was set for two paths.
const COOKIES_MAX: usize = 4;
/// Longest address returned to; a longer one ends at the front page.
const BACK_BYTES_MAX: usize = 1024;
/// Ours has 32.
const STATE_BYTES_MAX: usize = 64;
/// A name, not a text.
const USER_BYTES_MAX: usize = 256;
/// Logins of one session at the provider: browsers share none, profiles of one browser may.
const PLACES: u8 = 8;
/// Access tokens are replaced this long before their end, or a quarter of their life if that is shorter.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// After an attempt, whatever became of it, the next one waits so long.
const RENEW_RETRY: Duration = Duration::from_secs(10);
/// Longer than an attempt takes, with a provider and a vault that answer at the last moment: at most 5 s for
/// the tokens, 3 s for a key, 16 s of pauses between the tries to store them, and the tries themselves.
const RENEWAL_LASTS_MAX: Duration = Duration::from_secs(60);
/// How long a request waits for tokens that have ended.
const RENEW_WAIT: Duration = Duration::from_secs(3);
const KEEP_ATTEMPTS_MAX: u32 = 5;
const KEEP_RETRY: Duration = Duration::from_millis(500);
/// Clocks differ, and reading the answer takes a moment.
const AGE_LEEWAY: Duration = Duration::from_secs(60);
/// How long a start waits for the provider.
const START_WAIT: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_ends_on_a_path_of_this_origin() {
        for path in ["/", "/cart?item=1&n=2", "/a//b"] {
            assert_eq!(way_back(path), path);
        }
        let long = format!("/{}", "a".repeat(BACK_BYTES_MAX));
        for path in
            ["//evil.example/", "/\\evil", "/a\\b", "https://evil.example", "/a\r\nX: y", "", "/ä", &long]
        {
            assert_eq!(way_back(path), "/", "{path:?}");
        }
    }
}
