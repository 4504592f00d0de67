//! Tokens that somebody signs who is no issuer of our people's own tokens, such as security events: whose
//! keys they are checked with, and what must hold of every one of them.
//!
//! Must not know: what the tokens are about.

use super::IdentityError;
use super::jwks::{Jwks, Keys, Timing};
use super::keys::KeySet;
use super::provider::{ALGORITHMS, KEY_WAIT, LEEWAY_MS, POLL, TOKEN_BYTES_MAX};
use super::token::{self, Claims, Rejection, Rules};
use crate::secret::InstallSecret;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gaitway_models::Timestamp;
use gaitway_policies::{SessionId, SubjectId, TokenId};
use serde_json::{Map, Value};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Whose signature is checked; its keys are followed until this is dropped.
pub struct Signatory {
    keys: Arc<Keys>,
    rules: Rules,
    /// Anybody may send a token that names a key of their own invention.
    key_waits: Semaphore,
    follower: tokio::task::JoinHandle<()>,
}

/// Why a token is not believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbelieved {
    /// No key could be fetched yet; that says nothing of the token.
    #[error("its keys are not known yet")]
    KeysUnknown,
    /// The reason, as metrics name it.
    #[error("{0}")]
    Refused(&'static str),
}

impl From<Rejection> for Unbelieved {
    fn from(rejection: Rejection) -> Unbelieved {
        Unbelieved::Refused(rejection.label())
    }
}

impl Signatory {
    /// Fetches the keys in the background: an address that does not answer is no reason not to start.
    pub fn start(issuer: &str, audience: &str, jwks_url: &str) -> Result<Signatory, IdentityError> {
        let jwks = Jwks::new(jwks_url, issuer, &ALGORITHMS, Timing::default())?;
        let keys = Arc::new(Keys::fixed(KeySet::empty()));
        let followed = Arc::clone(&keys);
        let follower = tokio::spawn(async move {
            let first = jwks.refresh(&followed).await;
            jwks.keep_fresh(followed, first).await;
        });
        let rules = Rules {
            algorithms: ALGORITHMS.to_vec(),
            issuer: Some(issuer.to_owned()),
            audience: Some(audience.to_owned()),
            session_claims: Vec::new(),
            subject_claim: "sub".into(),
            groups_claim: String::new(),
            leeway_ms: LEEWAY_MS,
            // RFC 8417 §2.2: a statement about the past does not expire.
            require_expiry: false,
            token_bytes_max: TOKEN_BYTES_MAX,
        };
        Ok(Signatory { keys, rules, key_waits: Semaphore::new(KEY_WAITS_MAX), follower })
    }

    /// Refuses what is plainly no token of this type from it for us. Costs no signature check, and proves
    /// nothing of what it lets pass.
    pub fn glance(&self, token: &str, kind: &str, now: Timestamp) -> Result<(), Unbelieved> {
        let typed = header(token).is_some_and(|header| header.contains_key("typ"));
        if !typed {
            return Err(Rejection::Type.into());
        }
        Ok(token::glance(token, &self.rules, &[kind], now)?)
    }

    /// The claims of a token that passed [`Signatory::glance`], once its signature is checked. A key that is
    /// not known is fetched first; where many wait for theirs, one more does not.
    pub async fn open(
        &self,
        token: &str,
        kind: &str,
        now: Timestamp,
    ) -> Result<Map<String, Value>, Unbelieved> {
        let mut opened = token::open(token, &self.keys.current(), &self.rules, &[kind], now);
        if matches!(opened, Err(Rejection::UnknownKey))
            && let Ok(_waiting) = self.key_waits.try_acquire()
        {
            opened = open(token, &self.keys, &self.rules, &[kind], now).await;
        }
        match opened {
            Ok(claims) => Ok(claims.all),
            Err(Rejection::UnknownKey) if self.keys.current().len() == 0 => Err(Unbelieved::KeysUnknown),
            Err(rejection) => Err(rejection.into()),
        }
    }
}

impl Drop for Signatory {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// The issuer a token claims to be of, which nothing proves yet.
pub fn claimed_issuer(token: &str) -> Option<String> {
    // Looked at before anybody is known, so never at more than a token can be.
    if token.len() > TOKEN_BYTES_MAX { None } else { token::claimed_issuer(token).ok() }
}

/// What a token says, which proves nothing where it was not verified before.
pub(super) fn payload(token: &str) -> Option<Map<String, Value>> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    part(token.split('.').nth(1)?)
}

fn header(token: &str) -> Option<Map<String, Value>> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    part(token.split('.').next()?)
}

fn part(text: &str) -> Option<Map<String, Value>> {
    token::distinct(&URL_SAFE_NO_PAD.decode(text).ok()?)
}

/// Verifies a token; one whose key is not known waits a moment for newer keys, as signers change theirs.
pub(super) async fn open(
    token: &str,
    keys: &Keys,
    rules: &Rules,
    types: &[&str],
    now: Timestamp,
) -> Result<Claims, Rejection> {
    let generation = keys.current().generation;
    let first = token::open(token, &keys.current(), rules, types, now);
    if !matches!(first, Err(Rejection::UnknownKey)) {
        return first;
    }
    keys.want();
    let changed = async {
        while keys.current().generation == generation {
            tokio::time::sleep(POLL).await;
        }
    };
    let _ = tokio::time::timeout(KEY_WAIT, changed).await;
    token::open(token, &keys.current(), rules, types, now)
}

// What another names, as we name it: the pseudonyms that a token of the same issuer has here.

pub fn subject(secret: &InstallSecret, issuer: &str, sub: &str) -> SubjectId {
    secret.subject(&[issuer.as_bytes(), &named(sub)])
}

pub fn session(secret: &InstallSecret, issuer: &str, claim: &str, value: &str) -> SessionId {
    secret.session(&[b"claim", issuer.as_bytes(), claim.as_bytes(), &named(value)])
}

pub fn token(secret: &InstallSecret, issuer: &str, jti: &str) -> TokenId {
    secret.token(&[b"jti", issuer.as_bytes(), &named(jti)])
}

/// As `token::name` marks a text.
fn named(text: &str) -> Vec<u8> {
    [b"t", text.as_bytes()].concat()
}

/// Tokens of one signer that wait for a key at the same time; after a change of keys the rest come again.
const KEY_WAITS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::issuer::{Issuer, NOW, NOW_SECONDS, rules};
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn only_so_many_tokens_wait_for_a_key_that_nobody_knows() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/jwks", nobody.local_addr().unwrap());
        let signatory = Signatory::start("https://issuer.example", "me", &address).unwrap();
        let token = Issuer::p256().token(r#"{"alg":"ES256","typ":"secevent+jwt","kid":"mine"}"#, "{}");
        let open = || Box::pin(signatory.open(&token, "secevent+jwt", NOW));
        let mut waiting: Vec<_> = (0..KEY_WAITS_MAX).map(|_| open()).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        assert_eq!(open().now_or_never().unwrap().unwrap_err(), Unbelieved::KeysUnknown);
        waiting.pop();
        assert!(open().now_or_never().is_none(), "there is room again");
    }

    #[test]
    fn what_another_names_has_the_pseudonyms_that_its_tokens_have() {
        let issuer = Issuer::secret();
        let algorithms = [jsonwebtoken::Algorithm::HS256];
        let keys = KeySet::from_text(&issuer.key_text(), &algorithms).unwrap();
        let secret = InstallSecret::from_text(&[7; 32], "test").unwrap();
        let text = issuer.honest(&format!(
            r#"{{"iss":"https://issuer.example","aud":"shop","sub":"alice","sid":"s1","jti":"j1","exp":{}}}"#,
            NOW_SECONDS + 60
        ));
        let known = token::verify(&text, &keys, &rules(&["HS256"]), &secret, NOW).unwrap().identity;
        assert_eq!(known.subject, Some(subject(&secret, "https://issuer.example", "alice")));
        assert_eq!(known.session, session(&secret, "https://issuer.example", "sid", "s1"));
        assert_eq!(known.token, Some(super::token(&secret, "https://issuer.example", "j1")));
    }
}
