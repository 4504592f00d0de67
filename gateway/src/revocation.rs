//! The board of revocations: a local set that the request path reads, and the backend that makes
//! it durable and shared.
//!
//! Must not know: why something is revoked.

use gaitway_models::Timestamp;
use gaitway_policies::{Identity, SessionId, SubjectId, TokenId};
use serde::{Deserialize, Serialize};

/// What a revocation reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Token(TokenId),
    Session(SessionId),
    /// Every token of the subject issued before the moment, so a refreshed one does not slip through.
    Subject {
        subject: SubjectId,
        before: Timestamp,
    },
}

/// One revocation. Idempotent: applying it twice changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revocation {
    pub scope: Scope,
    /// Number shown to the person and to operators.
    pub incident: String,
    pub decided_at: Timestamp,
    /// Never earlier than the token's own expiry.
    pub until: Timestamp,
}

/// A change of the board, from this process or another replica; also replayed after a gap.
#[derive(Clone, Debug)]
pub enum Change {
    Revoked(Revocation),
    Pardoned { scope: Scope, until: Timestamp },
}

/// Why the path must refuse.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub incident: String,
    pub until: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    #[error("revocation backend is unreachable")]
    Unreachable,
    #[error("the board is full ({0} entries); raise revocation.entries_max")]
    Full(usize),
}

/// For metrics and the ops page.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BoardHealth {
    pub backend: &'static str,
    pub connected: bool,
    pub entries: usize,
    /// Writes accepted here that the shared backend does not have yet.
    pub queued: usize,
}

pub struct Revocations {}

impl Revocations {
    /// Opens the board with what the store knows. A shared backend that does not answer is no reason
    /// not to start.
    pub async fn start(
        _config: &crate::config::Revocation,
        _initial: Vec<Revocation>,
    ) -> Result<std::sync::Arc<Revocations>, RevocationError> {
        todo!()
    }
    /// Memory only: called for every request. False "not revoked" lets a stolen token through;
    /// false "revoked" logs a person out.
    pub fn check(&self, _identity: &Identity, _now: Timestamp) -> Option<Refusal> {
        todo!()
    }
    /// Applies locally at once, then makes it durable and shared. Safe to repeat.
    pub async fn revoke(&self, _revocation: Revocation) -> Result<(), RevocationError> {
        todo!()
    }
    pub async fn pardon(&self, _scope: Scope, _until: Timestamp) -> Result<(), RevocationError> {
        todo!()
    }
    /// Every change applied to the local board, own and learnt.
    pub fn subscribe(&self) -> tokio::sync::broadcast::Receiver<Change> {
        todo!()
    }
    pub fn health(&self) -> BoardHealth {
        todo!()
    }
}
