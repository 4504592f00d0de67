//! N tasks, each owning one Engine; the only caller of Engine and the only writer of `standing`.

use gaitway_policies::SessionId;
use gaitway_policies::engine::{OperatorAction, SessionSummary};

pub struct Shards {}

#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error("no such session")]
    UnknownSession,
    #[error("the gateway is shutting down")]
    Closed,
}

impl Shards {
    /// Live sessions of all shards, most recently seen first.
    pub async fn sessions(&self, _limit: usize) -> Vec<SessionSummary> {
        todo!()
    }
    pub async fn session(&self, _id: SessionId) -> Option<SessionSummary> {
        todo!()
    }
    /// An operator revokes or pardons; returns the incident's id once it is on its way to the outbox.
    pub async fn operator(
        &self,
        _id: SessionId,
        _action: OperatorAction,
        _by: String,
        _why: String,
    ) -> Result<String, ShardError> {
        todo!()
    }
}
