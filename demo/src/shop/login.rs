//! The shop's own login: a list of users, one password for all, and an HS256 token in a cookie.
//!
//! Knows its signing key and nothing else about sessions: a token is good until it expires, and the
//! shop has no way to take one back. That gap is what a gateway before it can close.

use anyhow::Context;
use axum::http::{HeaderMap, header};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Everybody's password; the login page says so.
pub const PASSWORD: &str = "demo";
/// Who may log in. `guest` is for whoever looks on.
pub const USERS: &[&str] = &[
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "mallory", "trudy", "oscar", "sybil",
    "eve", "chuck", "craig", "darth", "guest",
];
pub const FORGET: &str = "session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax";

const ISSUER: &str = "demo-shop";
const LIFETIME: Duration = Duration::from_secs(8 * 3600);

/// The secret that signs and verifies tokens.
#[derive(Clone)]
pub struct Key {
    sign: EncodingKey,
    verify: DecodingKey,
}

impl Key {
    /// Reads the secret from `path`; the first to come writes a random one there, for its owner only.
    pub fn read_or_create(path: &Path) -> anyhow::Result<Key> {
        let create = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match create {
            Ok(mut file) => {
                file.write_all(random_hex::<32>().as_bytes()).with_context(|| path.display().to_string())?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
        let secret = std::fs::read(path).with_context(|| path.display().to_string())?;
        anyhow::ensure!(secret.len() >= 32, "{}: shorter than 32 bytes", path.display());
        Ok(Key { sign: EncodingKey::from_secret(&secret), verify: DecodingKey::from_secret(&secret) })
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    sid: String,
    groups: Vec<String>,
    iat: u64,
    exp: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    UnknownUser,
    WrongPassword,
    Broken,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refused::UnknownUser => "We do not know this user.",
            Refused::WrongPassword => "That is not the password. (It is “demo”.)",
            Refused::Broken => "The login does not work at the moment.",
        })
    }
}

/// Checks the password and returns the cookie of a new session.
pub fn log_in(key: &Key, user: &str, password: &str) -> Result<String, Refused> {
    let user = USERS.iter().find(|known| **known == user).ok_or(Refused::UnknownUser)?;
    if password != PASSWORD {
        return Err(Refused::WrongPassword);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = Claims {
        iss: ISSUER.into(),
        sub: (*user).into(),
        sid: random_hex::<16>(),
        groups: vec![format!("customer:{user}")],
        iat: now.as_secs(),
        exp: (now + LIFETIME).as_secs(),
    };
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key.sign)
        .map_err(|_| Refused::Broken)?;
    Ok(format!("session={token}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax", LIFETIME.as_secs()))
}

/// The user of a request, if it carries a token that this shop signed and that has not expired.
pub fn user(key: &Key, headers: &HeaderMap) -> Option<&'static str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let token = cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == "session").then_some(value))?;
    let mut wanted = Validation::new(Algorithm::HS256);
    wanted.set_issuer(&[ISSUER]);
    let claims = jsonwebtoken::decode::<Claims>(token, &key.verify, &wanted).ok()?.claims;
    USERS.iter().find(|known| **known == claims.sub).copied()
}

/// `N` random bytes as text.
pub fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
