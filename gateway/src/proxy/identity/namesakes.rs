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
}

impl Namesakes {
    pub fn new(config: &config::Identity, secret: Arc<InstallSecret>) -> Namesakes {
        let believed = config.jwt.iter().flat_map(|jwt| jwt.believed());
        let oidc = config.oidc.iter().map(|oidc| oidc.issuer.clone());
        let introspection = config.introspection.iter().filter_map(|known| known.issuer.clone());
        let jwt = believed.filter_map(|(_, known)| known.issuer);
        let issuers = std::iter::once(String::new()).chain(jwt).chain(oidc).chain(introspection);
        Namesakes { secret, issuers: issuers.collect() }
    }

    /// Everybody of this name, at one issuer or at all that are known: as text, and as the number it may be.
    pub fn of(&self, name: &str, issuer: Option<&str>) -> Vec<SubjectId> {
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
        found
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
            assert!(namesakes.of(name, None).contains(&subject), "{issuer} {name}");
            assert!(namesakes.of(name, Some(issuer)).contains(&subject), "{issuer} {name}");
            assert!(!namesakes.of(name, Some("https://other")).contains(&subject));
        }
        assert_eq!(namesakes.of("alice", None).len(), 2);
    }
}
