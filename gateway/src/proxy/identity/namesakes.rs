//! Whom operators may mean by a name: pseudonyms as the door would make them.
//!
//! Must not know: who of them exists, what is done with them.

use crate::config;
use crate::secret::InstallSecret;
use gaitway_policies::SubjectId;
use std::sync::Arc;

/// Names to pseudonyms, for every issuer that the settings name.
pub struct Namesakes {
    secret: Arc<InstallSecret>,
    /// "" for tokens that name none.
    issuers: Vec<String>,
    /// Tokens are believed whoever issued them, or none are: who is meant depends on an issuer unknown here.
    is_open: bool,
}

impl Namesakes {
    pub fn new(config: &config::Identity, secret: Arc<InstallSecret>) -> Namesakes {
        let jwt = config.jwt.iter().flat_map(|jwt| jwt.believed()).map(|(_, known)| known.issuer);
        let oidc = config.oidc.iter().map(|oidc| Some(oidc.issuer.clone()));
        let introspection = config.introspection.iter().map(|known| known.issuer.clone());
        let sources: Vec<Option<String>> = jwt.chain(oidc).chain(introspection).collect();
        let is_open = sources.is_empty() || sources.contains(&None);
        let issuers = std::iter::once(String::new()).chain(sources.into_iter().flatten()).collect();
        Namesakes { secret, issuers, is_open }
    }

    /// Everybody of this name, at one issuer or at all that are known: as text, and as the number it may be.
    /// `None`: the issuer must be said, since the settings do not name all.
    pub fn of(&self, name: &str, issuer: Option<&str>) -> Option<Vec<SubjectId>> {
        if issuer.is_none() && self.is_open {
            return None;
        }
        let all = self.issuers.iter().map(String::as_str);
        let issuers: Vec<&str> = issuer.map_or_else(|| all.collect(), |issuer| vec![issuer]);
        let kinds: &[&[u8]] = if name.parse::<i64>().is_ok() { &[b"t", b"n"] } else { &[b"t"] };
        let mut found: Vec<SubjectId> = issuers
            .iter()
            .flat_map(|issuer| {
                let of = |kind: &&[u8]| {
                    self.secret.subject(&[issuer.as_bytes(), &[kind, name.as_bytes()].concat()])
                };
                kinds.iter().map(of)
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::token;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_gives_the_pseudonym_that_a_login_of_that_name_gets() {
        let secret = Arc::new(InstallSecret::from_text(&[7; 32], "test").unwrap());
        let config = config::Identity {
            jwt: Some(config::Jwt { issuer: Some("https://login".into()), ..config::Jwt::default() }),
            ..config::Identity::default()
        };
        let namesakes = Namesakes::new(&config, secret.clone());
        let claimed = |value: serde_json::Value| {
            let claims = json!({ "sub": value }).as_object().unwrap().clone();
            token::name(&claims, "sub").unwrap().unwrap()
        };
        for (issuer, name, value) in [
            ("https://login", "alice", json!("alice")),
            ("", "alice", json!("alice")),
            ("https://login", "17", json!(17)),
            ("https://login", "17", json!("17")),
        ] {
            let subject = secret.subject(&[issuer.as_bytes(), &claimed(value)]);
            assert!(namesakes.of(name, None).unwrap().contains(&subject), "{issuer} {name}");
            assert!(namesakes.of(name, Some(issuer)).unwrap().contains(&subject), "{issuer} {name}");
            assert!(!namesakes.of(name, Some("https://other")).unwrap().contains(&subject));
        }
        assert_eq!(namesakes.of("alice", None).unwrap().len(), 2);
    }

    #[test]
    fn where_tokens_of_any_issuer_are_believed_a_name_alone_means_nobody() {
        let jwt = |issuer: Option<&str>| config::Identity {
            jwt: Some(config::Jwt { issuer: issuer.map(str::to_owned), ..config::Jwt::default() }),
            ..config::Identity::default()
        };
        let introspection = Some(config::Introspection::default());
        for (identity, is_open) in [
            (config::Identity::default(), true),
            (jwt(None), true),
            (jwt(Some("https://login")), false),
            (config::Identity { introspection, ..jwt(Some("https://login")) }, true),
        ] {
            let secret = Arc::new(InstallSecret::from_text(&[7; 32], "test").unwrap());
            let namesakes = Namesakes::new(&identity, secret.clone());
            assert_eq!(namesakes.of("alice", None).is_none(), is_open);
            let alice = secret.subject(&[b"https://any", b"talice"]);
            assert_eq!(namesakes.of("alice", Some("https://any")).unwrap(), [alice]);
        }
    }
}
