//! What must survive a restart: incidents with their outstanding steps, the audit trail, and people's
//! profiles where they are kept.
//!
//! Two databases hold the same tables: SQLite for one process, PostgreSQL for several replicas.
//! Both pass one conformance suite. Must not know: what the steps do.

mod postgres;
mod sql;
mod sqlite;

pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

use crate::revocation::{Pardon, Revocation, Scope};
use async_trait::async_trait;
use gaitway_models::Timestamp;
use gaitway_policies::engine::{Action, Mode};
use gaitway_policies::{Incident, SessionId, SubjectId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Opens the store the configuration names: PostgreSQL, or a SQLite file in the data directory,
/// which is created if absent. Brings an older schema up to date and refuses a newer one.
pub async fn open(config: &crate::config::Config) -> Result<Arc<dyn Store>, StoreError> {
    match &config.store.postgres {
        Some(address) => Ok(Arc::new(PostgresStore::open(address).await?)),
        None => Ok(Arc::new(SqliteStore::open(&config.data.join(SQLITE_FILE)).await?)),
    }
}

/// Name of the SQLite file in the data directory.
pub const SQLITE_FILE: &str = "gaitway.sqlite";

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

impl Step {
    /// A step that nobody has tried yet.
    pub fn pending(name: &str, retry_at: Timestamp) -> Step {
        Step { name: name.into(), state: StepState::Pending, attempts: 0, retry_at, outcome: String::new() }
    }
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
    /// `revoke`, `pardon`, `login`, `limit`, `would-logout` …
    pub what: String,
    pub session: Option<SessionId>,
    pub incident: Option<String>,
    pub why: String,
    /// Version of the policy whose rule or limit decided; `None` where a person did.
    pub policy_version: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct IncidentFilter {
    pub session: Option<SessionId>,
    pub since: Option<Timestamp>,
    /// At most this many, newest first.
    pub limit: u32,
}

/// What is kept of a person, opaque here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRow {
    /// `None`: forgotten, as far as the store is concerned for ever.
    pub bytes: Option<Vec<u8>>,
    pub version: ProfileVersion,
}

/// When a profile was written or forgotten; later changes have later versions, whatever the clocks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfileVersion(Timestamp);

/// Largest profile the store takes, sealed, in bytes; the tables say so too.
pub const PROFILE_ROW_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    #[error("the store holds a record this version cannot read: {0}")]
    Corrupt(String),
    /// Found when opening; says what to do. The gateway does not start on it.
    #[error("{0}")]
    Unusable(String),
}

#[async_trait]
pub trait Store: Send + Sync {
    /// Records an incident and its steps in one transaction, and with them its audit record if it
    /// deserves one (`audit_word`). Repeating the same id changes nothing.
    async fn record(&self, incident: &Incident, steps: &[Step]) -> Result<(), StoreError>;
    /// Incidents with a pending step due by `now`, due for longest first.
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<IncidentRow>, StoreError>;
    /// The same for one step only, so that a sink that is behind does not hide another's work.
    async fn due_for(&self, step: &str, now: Timestamp, limit: u32) -> Result<Vec<IncidentRow>, StoreError>;
    /// Takes the incident's pending step, if it is due by `now`, for this process alone until
    /// `until`; false if another process was quicker. A false "yes" costs a repeated alert, a false
    /// "no" a delayed one.
    async fn claim(
        &self,
        incident: &str,
        step: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, StoreError>;
    /// Makes every pending step due at `now`, whatever a process that is gone had claimed.
    async fn release(&self, now: Timestamp) -> Result<(), StoreError>;
    /// Steps not yet done or given up.
    async fn pending(&self) -> Result<u64, StoreError>;
    /// Whether other processes work on the same incidents.
    fn is_shared(&self) -> bool;
    async fn update_step(&self, incident: &str, step: &Step) -> Result<(), StoreError>;
    async fn incidents(&self, filter: &IncidentFilter) -> Result<Vec<IncidentRow>, StoreError>;
    async fn incident(&self, id: &str) -> Result<Option<IncidentRow>, StoreError>;
    async fn audit(&self, record: &AuditRecord) -> Result<(), StoreError>;
    /// The latest records, newest first.
    async fn audit_trail(&self, limit: u32) -> Result<Vec<AuditRecord>, StoreError>;
    /// Enforced revocations still in force and not pardoned, for the board at start.
    async fn active_revocations(&self, now: Timestamp) -> Result<Vec<Revocation>, StoreError>;
    /// What pardons later than `since` lifted, for the board at start.
    async fn pardons(&self, since: Timestamp) -> Result<Vec<Pardon>, StoreError>;
    /// Puts an event into a stream's queue, where it waits until its receiver fetches it. Repeating the same
    /// number changes nothing.
    async fn queue_signal(
        &self,
        stream: &str,
        jti: &str,
        at: Timestamp,
        sealed: &str,
    ) -> Result<(), StoreError>;
    /// Numbers and sealed texts of the events that wait longest, the oldest first.
    async fn signals(&self, stream: &str, limit: u32) -> Result<Vec<(String, String)>, StoreError>;
    /// Takes an event out of the queue; false if it was not there.
    async fn forget_signal(&self, stream: &str, jti: &str) -> Result<bool, StoreError>;
    /// Drops events older than `before`, and the oldest beyond `most`; returns how many.
    async fn trim_signals(&self, stream: &str, before: Timestamp, most: u32) -> Result<u64, StoreError>;
    /// Deletes incidents and audit records older than `before`; returns how many. Incidents with a
    /// pending step stay, so do revocations that ended later than `before`, their pardons, and what
    /// tripped the budget until it is reset.
    async fn prune(&self, before: Timestamp) -> Result<u64, StoreError>;
    /// What switched enforcement off for everybody, if no audit record says that it was reset since. A false
    /// "nothing" lets rules enforce again that nobody has looked at.
    async fn budget_trip(&self) -> Result<Option<BudgetTrip>, StoreError>;
    /// What is kept of a person; `None` if they were never written nor forgotten.
    async fn profile(&self, subject: SubjectId) -> Result<Option<ProfileRow>, StoreError>;
    /// Replaces the profile that was read as version `over` (`None`: there was none). False, and nothing
    /// changes, if it was written or forgotten since, here or by another replica: a false "yes" would
    /// bring back what somebody asked to forget, a false "no" costs a session's lesson.
    async fn save_profile(
        &self,
        subject: SubjectId,
        bytes: &[u8],
        over: Option<ProfileVersion>,
        now: Timestamp,
    ) -> Result<bool, StoreError>;
    /// Forgets a person and keeps sessions that still remember them from writing; true if anything was
    /// known.
    async fn forget_profile(&self, subject: SubjectId, now: Timestamp) -> Result<bool, StoreError>;
    /// Deletes profiles, and what is left of forgotten ones, not written since `before`; returns how many.
    async fn expire_profiles(&self, before: Timestamp) -> Result<u64, StoreError>;
    /// People of whom anything is known.
    async fn profiles(&self) -> Result<u64, StoreError>;
}

/// A used-up budget, as every version can read it: from columns, whatever the incident's body holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetTrip {
    /// Incident's number.
    pub incident: String,
    pub at: Timestamp,
    /// Names the cap that was reached.
    pub reason: String,
}

/// What the audit trail calls the reset of the budget by an operator.
pub const BUDGET_RESET: &str = "budget-reset";

/// What carrying out an incident means for the board of revocations. One definition for the outbox,
/// which does it, and for the store, which knows what is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoardEffect {
    /// Shadow decisions and actions that leave the login alone.
    None,
    Revoke,
    Pardon,
}

impl BoardEffect {
    pub fn of(incident: &Incident) -> BoardEffect {
        match (incident.action, incident.mode) {
            // A pardon comes from a person and only ever lets somebody in again: no shadow for it.
            (Action::Pardon, _) => BoardEffect::Pardon,
            (action, Mode::Enforce) if action.shuts_out() => BoardEffect::Revoke,
            _ => BoardEffect::None,
        }
    }
}

/// Whether an incident ends a login for good, and not only for a while.
pub fn ends_login(incident: &Incident) -> bool {
    BoardEffect::of(incident) == BoardEffect::Revoke && !is_for_a_while(incident.action)
}

fn is_for_a_while(action: Action) -> bool {
    matches!(action, Action::Deny | Action::Tarpit)
}

/// What the audit trail calls an incident: what shut somebody out or let them in again, a budget that
/// ran out, and what a rule would have done had it not been in shadow. `None`: it has no place there.
pub fn audit_word(incident: &Incident) -> Option<String> {
    match (BoardEffect::of(incident), incident.action, incident.mode) {
        (BoardEffect::Revoke, ..) => Some("revoke".into()),
        (BoardEffect::Pardon, ..) => Some("pardon".into()),
        (_, Action::BudgetTrip, _) => Some("budget-trip".into()),
        (_, Action::Allow | Action::Log, _) | (.., Mode::Enforce) => None,
        (_, action, Mode::Shadow) => Some(format!("would-{}", sql::word(&action))),
    }
}

/// The revocations an enforced incident asks for; none for shadow decisions and other actions.
pub fn revocations_of(incident: &Incident) -> Vec<Revocation> {
    if BoardEffect::of(incident) != BoardEffect::Revoke {
        return Vec::new();
    }
    let until = in_force_until(incident);
    scopes_of(incident)
        .into_iter()
        .map(|scope| Revocation { scope, incident: incident.id.clone(), decided_at: incident.at, until })
        .collect()
}

/// What an incident reaches. A pardon reaches for everything that may keep its person out.
pub fn scopes_of(incident: &Incident) -> Vec<Scope> {
    let identity = &incident.identity;
    let mut scopes = vec![Scope::Session(identity.session)];
    scopes.extend(identity.token.map(Scope::Token));
    if matches!(incident.action, Action::LogoutEverywhere | Action::Pardon) {
        // `before` is the moment of the decision and not of the attempt, so that repeating it later
        // does not reach a login made in between.
        scopes.extend(identity.subject.map(|subject| Scope::Subject { subject, before: incident.at }));
    }
    scopes
}

/// A revocation never ends before the token does, or the token would come back to life.
fn in_force_until(incident: &Incident) -> Timestamp {
    if is_for_a_while(incident.action) {
        return incident.until;
    }
    incident.identity.expires_at.map_or(incident.until, |expires| expires.max(incident.until))
}
