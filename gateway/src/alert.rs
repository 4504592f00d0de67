//! How operators are told. A sink delivers one incident; retry is the outbox's.

use async_trait::async_trait;
use gaitway_policies::Incident;

#[derive(Debug, thiserror::Error)]
pub enum AlertError {
    /// Worth another try later.
    #[error("{0}")]
    Temporary(String),
    /// Trying again cannot help.
    #[error("{0}")]
    Permanent(String),
}

#[async_trait]
pub trait AlertSink: Send + Sync {
    /// Step name in the outbox; stable.
    fn name(&self) -> &'static str;
    /// Whether this sink wants the incident at all (shadow decisions, actions).
    fn wants(&self, incident: &Incident) -> bool;
    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError>;
}
