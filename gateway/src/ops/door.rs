//! Who may operate: the password, logins of browsers, and a limit on guessing.
//!
//! The only way to an [`Operator`], and to an [`Actor`] who may also change things, is through here.
//! Must not know: what operators see or do.

use super::OpsState;
use super::api::{Body, Refusal};
use crate::clock;
use crate::config::Config;
use axum::Json;
use axum::extract::{ConnectInfo, FromRequestParts, State};
use axum::http::{HeaderMap, StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use gaitway_models::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq;

/// File in the data directory that a generated password is written to.
pub const PASSWORD_FILE: &str = "ops.password";
/// A password file is a line, not a document.
const PASSWORD_BYTES_MAX: usize = 1024;
/// Short passwords can be guessed within the limit on attempts over a few months.
const PASSWORD_BYTES_MIN: usize = 12;
/// 24 letters of a 32-letter alphabet: 120 bits.
const GENERATED_CHARS: usize = 24;
/// Letters that nobody confuses when reading them aloud.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

const COOKIE: &str = "gaitway_ops";
/// The second half of a login. Cookies do not know ports: without it, a login here would also be sent
/// to the app on another port of the same host. The page keeps it where only this origin reads.
const PAGE_HEADER: &str = "x-gaitway-page";
/// How a command line names its user.
pub const OPERATOR_HEADER: &str = "x-gaitway-operator";
/// A working day; then the password is asked for again.
const LOGIN_LIFE: Duration = Duration::from_secs(12 * 3600);
/// Browsers logged in at once; one more ends the oldest login.
const LOGINS_MAX: usize = 64;
/// Wrong passwords from one address (IPv6: one /64) within the window.
const FAILURES_PER_ADDRESS_MAX: u32 = 10;
/// Wrong passwords from everywhere within the window: a limit for guessers with many addresses.
const FAILURES_MAX: u32 = 1000;
const FAILURE_WINDOW: Duration = Duration::from_secs(300);
/// Addresses remembered; past it the oldest is forgotten, and the limit on all still holds.
const ADDRESSES_MAX: usize = 4096;
const OPERATOR_CHARS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("the operators' password file {} {why}", file.display())]
    File { file: PathBuf, why: String },
}

/// The operators' password, as a digest; the text itself is not kept.
pub struct Password {
    digest: [u8; 32],
    /// Where operators find it.
    pub file: PathBuf,
    /// Made by this start.
    pub generated: bool,
}

impl Password {
    /// Reads the configured file, or the one in the data directory, which is made if absent: mode
    /// 0600, and never shown anywhere.
    pub fn load(config: &Config) -> Result<Password, PasswordError> {
        let file = password_file(config);
        let mut generated = false;
        if config.ops.password_file.is_none() && !file.exists() {
            generated = generate(&config.data, &file)?;
        }
        let text = read_password(&file)?;
        Ok(Password { digest: Sha256::digest(text.as_bytes()).into(), file, generated })
    }

    /// Takes the same time whatever is wrong with the attempt.
    fn matches(&self, attempt: &str) -> bool {
        let attempt: [u8; 32] = Sha256::digest(attempt.as_bytes()).into();
        self.digest.ct_eq(&attempt).into()
    }
}

/// The configured password file, or the one in the data directory.
pub fn password_file(config: &Config) -> PathBuf {
    config.ops.password_file.clone().unwrap_or_else(|| config.data.join(PASSWORD_FILE))
}

/// The password in a file, without the line feed at its end.
pub fn read_password(file: &Path) -> Result<String, PasswordError> {
    let fail = |why: String| PasswordError::File { file: file.to_owned(), why };
    let opened = fs::File::open(file).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let mut text = String::new();
    // One more than the limit, so that a longer file is noticed and not cut.
    opened
        .take(PASSWORD_BYTES_MAX as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| fail(format!("cannot be read: {error}")))?;
    let text = text.trim_end_matches(['\r', '\n']);
    match text.len() {
        length if length > PASSWORD_BYTES_MAX => {
            Err(fail(format!("has more than {PASSWORD_BYTES_MAX} bytes")))
        }
        length if length < PASSWORD_BYTES_MIN => {
            Err(fail(format!("holds fewer than {PASSWORD_BYTES_MIN} characters; choose a longer one")))
        }
        _ if text.contains(char::is_control) => Err(fail("holds more than one line".into())),
        _ => Ok(text.to_owned()),
    }
}

/// True if this process made the file; false if another was quicker.
fn generate(data: &Path, file: &Path) -> Result<bool, PasswordError> {
    let fail = |error: std::io::Error| PasswordError::File {
        file: file.to_owned(),
        why: format!("cannot be written: {error}"),
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(fail)?;
    let mut text: String = rand::random::<[u8; GENERATED_CHARS]>()
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect();
    text.push('\n');
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Ok(mut opened) => {
            opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all()).map_err(fail).map(|()| true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(fail(error)),
    }
}

/// Everything that guards the operators' API.
pub struct Door {
    password: Password,
    logins: Mutex<HashMap<[u8; 32], Login>>,
    failures: Mutex<Failures>,
}

struct Login {
    who: String,
    /// Digest of the second half.
    page: [u8; 32],
    until: Timestamp,
}

#[derive(Default)]
struct Failures {
    of: HashMap<IpAddr, Window>,
    all: Window,
}

#[derive(Clone, Copy, Default)]
struct Window {
    since: Timestamp,
    count: u32,
}

impl Window {
    fn count(&self, now: Timestamp) -> u32 {
        if now.since(self.since) < FAILURE_WINDOW { self.count } else { 0 }
    }

    fn add(&mut self, now: Timestamp) {
        if self.count(now) == 0 {
            *self = Window { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
    }
}

/// What a browser gets when it logs in: the cookie and the page's half.
struct NewLogin {
    cookie: String,
    page: String,
}

impl Door {
    pub fn new(password: Password) -> Door {
        Door { password, logins: Mutex::default(), failures: Mutex::default() }
    }

    /// Compares a password within the limit on attempts.
    fn try_password(&self, from: IpAddr, attempt: &str, now: Timestamp) -> Result<(), Refusal> {
        let from = network(from);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let own = failures.of.get(&from).map_or(0, |window| window.count(now));
        if own >= FAILURES_PER_ADDRESS_MAX || failures.all.count(now) >= FAILURES_MAX {
            return Err(Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many wrong passwords. Wait five minutes and try again.",
            ));
        }
        if self.password.matches(attempt) {
            failures.of.remove(&from);
            return Ok(());
        }
        failures.all.add(now);
        if failures.of.len() >= ADDRESSES_MAX && !failures.of.contains_key(&from) {
            let oldest =
                failures.of.iter().min_by_key(|(_, window)| window.since).map(|(address, _)| *address);
            oldest.map(|address| failures.of.remove(&address));
        }
        failures.of.entry(from).or_default().add(now);
        tracing::warn!("an operator's password was wrong");
        metrics::counter!("gaitway_ops_login_failures_total").increment(1);
        Err(Refusal::new(StatusCode::UNAUTHORIZED, "The password is wrong."))
    }

    fn log_in(&self, who: String, now: Timestamp) -> NewLogin {
        let new =
            NewLogin { cookie: hex(&rand::random::<[u8; 32]>()), page: hex(&rand::random::<[u8; 32]>()) };
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.retain(|_, login| now < login.until);
        if logins.len() >= LOGINS_MAX {
            let oldest = logins.iter().min_by_key(|(_, login)| login.until).map(|(key, _)| *key);
            oldest.map(|key| logins.remove(&key));
        }
        let login = Login { who, page: digest(&new.page), until: now.plus(LOGIN_LIFE) };
        logins.insert(digest(&new.cookie), login);
        new
    }

    fn log_out(&self, cookie: &str) {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest(cookie));
    }

    /// Who is logged in with these two halves.
    fn who(&self, cookie: &str, page: &str, now: Timestamp) -> Option<String> {
        let logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        // The look-up is by digest, so its timing tells nothing about the cookie.
        let login = logins.get(&digest(cookie)).filter(|login| now < login.until)?;
        bool::from(login.page.ct_eq(&digest(page))).then(|| login.who.clone())
    }
}

/// Somebody who knows the password. May look.
pub struct Operator {
    pub who: String,
}

/// An operator whose request was meant: JSON, and from our own page if it came from a browser.
pub struct Actor {
    pub who: String,
}

impl FromRequestParts<Arc<OpsState>> for Operator {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<OpsState>) -> Result<Operator, Refusal> {
        let headers = &parts.headers;
        let now = clock::now();
        if let Some(bearer) = text(headers, header::AUTHORIZATION.as_str()) {
            let Some(password) = bearer.strip_prefix("Bearer ") else {
                return Err(Refusal::new(StatusCode::UNAUTHORIZED, "Use the password as a bearer token."));
            };
            state.door.try_password(peer(parts), password, now)?;
            let named =
                headers.get(OPERATOR_HEADER).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
            let who = named.and_then(name).unwrap_or_else(|| "operator".into());
            return Ok(Operator { who });
        }
        let page = text(headers, PAGE_HEADER).unwrap_or_default();
        let who = cookie(headers).and_then(|cookie| state.door.who(cookie, page, now));
        who.map(|who| Operator { who })
            .ok_or_else(|| Refusal::new(StatusCode::UNAUTHORIZED, "Please sign in."))
    }
}

impl FromRequestParts<Arc<OpsState>> for Actor {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<OpsState>) -> Result<Actor, Refusal> {
        meant(&parts.headers)?;
        let Operator { who } = Operator::from_request_parts(parts, state).await?;
        Ok(Actor { who })
    }
}

/// Refuses what another site's page could have made a browser send.
fn meant(headers: &HeaderMap) -> Result<(), Refusal> {
    let json = text(headers, header::CONTENT_TYPE.as_str())
        .is_some_and(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json"));
    if !json {
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Send JSON."));
    }
    let foreign = || Refusal::new(StatusCode::FORBIDDEN, "This request came from another site.");
    if text(headers, "sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return Err(foreign());
    }
    match text(headers, header::ORIGIN.as_str()) {
        Some(origin) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            let host = text(headers, header::HOST.as_str());
            if authority.is_some() && authority == host { Ok(()) } else { Err(foreign()) }
        }
        // Browsers always name the origin of a state-changing request; without one it is a program,
        // which has the password itself and no cookie.
        None if cookie(headers).is_none() => Ok(()),
        None => Err(foreign()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// For the audit trail: people share the password, but not their names.
    #[serde(default)]
    name: String,
    password: String,
}

#[derive(Serialize)]
struct LoggedIn {
    who: String,
    page: String,
}

pub async fn log_in(
    State(state): State<Arc<OpsState>>,
    ConnectInfo(peer): ConnectInfo<super::listener::Peer>,
    headers: HeaderMap,
    Body(credentials): Body<Credentials>,
) -> Result<Response, Refusal> {
    meant(&headers)?;
    let now = clock::now();
    state.door.try_password(peer.0.ip(), &credentials.password, now)?;
    let who = name(&credentials.name).unwrap_or_else(|| "operator".into());
    // A cookie from before is worth nothing after: no login can be planted.
    if let Some(old) = cookie(&headers) {
        state.door.log_out(old);
    }
    let new = state.door.log_in(who.clone(), now);
    state.audit(&who, "login", "signed in to the operators' page", None).await;
    let secure = text(&headers, header::ORIGIN.as_str()).is_some_and(|origin| origin.starts_with("https://"));
    let secure = if secure { "; Secure" } else { "" };
    let life = LOGIN_LIFE.as_secs();
    let set =
        format!("{COOKIE}={}; Path=/api/; HttpOnly; SameSite=Strict; Max-Age={life}{secure}", new.cookie);
    Ok(([(header::SET_COOKIE, set)], Json(LoggedIn { who, page: new.page })).into_response())
}

pub async fn log_out(State(state): State<Arc<OpsState>>, headers: HeaderMap, actor: Actor) -> Response {
    if let Some(cookie) = cookie(&headers) {
        state.door.log_out(cookie);
    }
    state.audit(&actor.who, "logout", "signed out of the operators' page", None).await;
    let set = format!("{COOKIE}=; Path=/api/; HttpOnly; SameSite=Strict; Max-Age=0");
    ([(header::SET_COOKIE, set)], Json(serde_json::json!({}))).into_response()
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
        .filter(|value| value.len() == 64)
}

/// A name fit for the audit trail, or nothing.
fn name(text: &str) -> Option<String> {
    // Marks of writing direction and zero width would let one name look like another.
    let deceptive =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let kept = text.trim().chars().filter(|c| !c.is_control() && !deceptive(*c));
    let name: String = kept.take(OPERATOR_CHARS_MAX).collect();
    (!name.is_empty()).then_some(name)
}

fn peer(parts: &Parts) -> IpAddr {
    let peer = parts.extensions.get::<ConnectInfo<super::listener::Peer>>();
    peer.map_or(IpAddr::from([0, 0, 0, 0]), |ConnectInfo(peer)| peer.0.ip())
}

/// One guesser commands a whole IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from(u128::from(six) & !u128::from(u64::MAX))),
        four => four,
    }
}

/// Whether a request that names `host` may be answered. A page that rebinds its own name to this
/// address names its own host; addresses and names that we know cannot be rebound.
pub fn host_is_ours(host: &str, ops_url: Option<&str>) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let own = ops_url.and_then(|url| url.parse::<axum::http::Uri>().ok());
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || own.is_some_and(|own| own.host().is_some_and(|own| own.eq_ignore_ascii_case(name)))
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
