//! What issuers call the people and sessions behind our pseudonyms, for receivers of events that know them
//! by no other name. Kept sealed in the vault, as long as the token lives and no longer, and only where
//! somebody is told of ended sessions at all.
//!
//! Must not know: who is told.

use super::signed;
use crate::clock;
use crate::vault::{Kind, Vault, VaultError};
use gaitway_policies::{Identity, SessionId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// A session by the names of its issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub issuer: String,
    pub sub: String,
    pub sid: Option<String>,
    pub jti: Option<String>,
}

/// One for the process.
pub struct Names {
    vault: Arc<Vault>,
    subject_claim: String,
}

impl Names {
    pub fn new(vault: Vault, subject_claim: &str) -> Names {
        Names { vault: Arc::new(vault), subject_claim: subject_claim.to_owned() }
    }

    /// Remembers whose a verified token is. Never waits.
    pub(super) fn note(&self, identity: &Identity, token: &str) {
        let Some(claims) = signed::payload(token) else { return };
        let text = |claim: &str| claims.get(claim).and_then(|value| value.as_str()).map(str::to_owned);
        let (Some(issuer), Some(sub)) = (text("iss"), text(&self.subject_claim)) else { return };
        let named = Named { issuer, sub, sid: text("sid"), jti: text("jti") };
        let Ok(value) = serde_json::to_vec(&named) else { return };
        let until = identity.expires_at.unwrap_or_else(|| clock::now().plus(LIFE_WITHOUT_END));
        let (vault, session) = (Arc::clone(&self.vault), identity.session);
        tokio::spawn(async move {
            if let Err(error) = vault.put(Kind::Named, &session.0, &value, until).await {
                // Without it one session's end is told to nobody; its end here does not depend on it.
                tracing::debug!(%error, "a session's name at its issuer is not kept");
            }
        });
    }

    /// `None`: no token of the session was seen, or they have all ended.
    pub async fn of(&self, session: SessionId) -> Result<Option<Named>, VaultError> {
        let value = self.vault.get(Kind::Named, &session.0).await?;
        Ok(value.and_then(|value| serde_json::from_slice(&value).ok()))
    }
}

/// For tokens that never end.
const LIFE_WITHOUT_END: Duration = Duration::from_secs(24 * 3600);
