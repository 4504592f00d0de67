//! What must survive a restart: incidents with their outstanding steps, and the audit trail.
//!
//! Must not know: what the steps do.

use async_trait::async_trait;
use gaitway_models::Timestamp;
use gaitway_policies::{Incident, SessionId};
use serde::{Deserialize, Serialize};

/// One thing still to do, or done, for an incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// `revoke`, `pardon`, `log`, or the name of an alert sink such as `mail`.
    pub name: String,
    pub state: StepState,
    pub attempts: u32,
    /// Not before this moment again.
    pub retry_at: Timestamp,
    /// Outcome in plain words; never an address or a secret.
    pub outcome: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    Pending,
    Done,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentRow {
    pub incident: Incident,
    pub steps: Vec<Step>,
    /// Who pardoned it, when and why, if somebody did.
    pub pardoned: Option<AuditRecord>,
}

/// Who did what, when and why. Append-only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub at: Timestamp,
    /// Operator's name, or `policy`.
    pub who: String,
    /// `revoke`, `pardon`, `login`, `reload` …
    pub what: String,
    pub session: Option<SessionId>,
    pub incident: Option<String>,
    pub why: String,
}

#[derive(Clone, Debug, Default)]
pub struct IncidentFilter {
    pub session: Option<SessionId>,
    pub since: Option<Timestamp>,
    /// At most this many, newest first.
    pub limit: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    #[error("the store holds a record this version cannot read: {0}")]
    Corrupt(String),
}

#[async_trait]
pub trait Store: Send + Sync {
    /// Records an incident and its steps in one transaction. Repeating the same id changes nothing.
    async fn record(&self, incident: &Incident, steps: &[Step]) -> Result<(), StoreError>;
    /// Incidents with a pending step due by `now`, oldest first.
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<IncidentRow>, StoreError>;
    async fn update_step(&self, incident: &str, step: &Step) -> Result<(), StoreError>;
    async fn incidents(&self, filter: &IncidentFilter) -> Result<Vec<IncidentRow>, StoreError>;
    async fn incident(&self, id: &str) -> Result<Option<IncidentRow>, StoreError>;
    async fn audit(&self, record: &AuditRecord) -> Result<(), StoreError>;
    async fn audit_trail(&self, limit: u32) -> Result<Vec<AuditRecord>, StoreError>;
    /// Enforced revocations still in force and not pardoned, for the board at start.
    async fn active_revocations(
        &self,
        now: Timestamp,
    ) -> Result<Vec<crate::revocation::Revocation>, StoreError>;
    /// Deletes incidents and audit records older than `before`; returns how many.
    async fn prune(&self, before: Timestamp) -> Result<u64, StoreError>;
}
