//! The operators' API: what the page and the command line read, and the two things they may do.
//!
//! Everything an operator does goes the way of every decision: an incident to the outbox, which
//! records, carries out and tells. Must not know: how a page looks, who may ask (see `door`).

use super::door::{Actor, Operator};
use super::{InForce, OpsState};
use crate::alert::letter;
use crate::clock;
use crate::revocation::{BoardHealth, Refusal as BoardRefusal};
use crate::shards::{ShardError, new_incident_id};
use crate::store::{AuditRecord, BUDGET_RESET, IncidentFilter, IncidentRow, StoreError};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use gaitway_models::drift::{Drift, DriftState};
use gaitway_models::{TelemetryState, Timestamp};
use gaitway_policies::budget::{Cap, SharedBudget};
use gaitway_policies::case::Said;
use gaitway_policies::engine::{Action, Mode, OperatorAction, SessionSummary};
use gaitway_policies::{Incident, SessionId, SubjectId};
use metrics::gauge;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Sessions of one answer unless asked for otherwise, and at most.
const SESSIONS_DEFAULT: usize = 300;
const SESSIONS_MAX: usize = 2_000;
/// Incidents or audit records of one answer unless asked for otherwise, and at most.
const ROWS_DEFAULT: u32 = 200;
const ROWS_MAX: u32 = 1_000;
/// The charts' time, and how often a moment of it is kept: a day of minutes.
const HISTORY_MS: u64 = 24 * 3_600_000;
const MOMENT_EVERY: Duration = Duration::from_secs(60);
pub const MOMENTS_MAX: usize = 24 * 60;
/// An operator's reason, in characters.
const WHY_CHARS_MAX: usize = 500;
/// Numbers of incidents are short; anything longer is none.
const INCIDENT_ID_BYTES_MAX: usize = 64;

/// How long an operator waits for a wish to be carried out; with store and board at hand it takes
/// milliseconds.
const CARRIED_OUT_WAIT: Duration = Duration::from_secs(3);

/// A refusal with one plain sentence.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    error: String,
}

impl Refusal {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Refusal {
        Refusal { status, error: error.into() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(serde_json::json!({ "error": self.error }))).into_response()
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        tracing::error!(error = %error, "the operators' page could not read or write the store");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "The store cannot be reached; the log says why.")
    }
}

/// A JSON body, with a plain sentence where it is none.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Refusal> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Body(body)),
            Err(JsonRejection::JsonDataError(error)) => {
                Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()))
            }
            Err(error) => Err(Refusal::new(error.status(), "The request's body is no JSON of this form.")),
        }
    }
}

/// What is happening now, for the strip at the top of the page.
#[derive(Serialize)]
pub struct Status {
    pub now: Timestamp,
    pub version: &'static str,
    pub started: Timestamp,
    pub in_force: Arc<InForce>,
    pub board: BoardHealth,
    pub budget: BudgetView,
    pub sessions: SessionCounts,
    /// How far the people who come have moved from those who taught the model in force; on this replica.
    pub drift: Drift,
    pub candidate_drift: Option<Drift>,
    /// Steps of incidents not carried out yet; `None` if the store does not answer.
    pub steps_pending: Option<u64>,
}

/// What is left of the policy's budget of logouts.
#[derive(Serialize)]
pub struct BudgetView {
    /// Set while the budget has put everything into shadow: since when, and by which cap.
    pub tripped: Option<TrippedView>,
    pub granted_within_hour: usize,
}

#[derive(Serialize)]
pub struct TrippedView {
    pub since: Timestamp,
    pub cap: Cap,
}

impl BudgetView {
    fn of(budget: &SharedBudget, now: Timestamp) -> BudgetView {
        BudgetView {
            tripped: budget.tripped().map(|(since, cap)| TrippedView { since, cap }),
            granted_within_hour: budget.granted_within_hour(now),
        }
    }
}

/// All live sessions, and what the most recently seen among them send.
#[derive(Serialize, Default)]
pub struct SessionCounts {
    pub live: usize,
    pub counted: usize,
    /// Were served a page with the collector.
    pub expected: usize,
    /// Of those, sent telemetry.
    pub seen: usize,
    /// Of those, enough to be judged.
    pub judged: usize,
}

impl SessionCounts {
    pub fn of(sessions: &[SessionSummary]) -> SessionCounts {
        let mut counts = SessionCounts { counted: sessions.len(), ..SessionCounts::default() };
        for session in sessions {
            let telemetry = session.assessment.telemetry;
            counts.expected += usize::from(telemetry != TelemetryState::Unexpected);
            counts.seen += usize::from(session.batches > 0);
            counts.judged += usize::from(telemetry == TelemetryState::Sufficient);
        }
        counts
    }
}

/// A session as operators see it.
#[derive(Serialize, Deserialize)]
pub struct SessionView {
    #[serde(flatten)]
    pub summary: SessionSummary,
    /// Set while the board refuses its requests, whoever decided that.
    pub refused: Option<RefusedView>,
}

#[derive(Serialize, Deserialize)]
pub struct RefusedView {
    pub incident: String,
    pub until: Timestamp,
}

impl SessionView {
    pub fn new(summary: SessionSummary, refused: Option<BoardRefusal>) -> SessionView {
        let refused = refused.map(|refused| RefusedView { incident: refused.incident, until: refused.until });
        SessionView { summary, refused }
    }
}

#[derive(Serialize, Deserialize)]
pub struct Sessions {
    pub now: Timestamp,
    pub sessions: Vec<SessionView>,
    /// There are more than this answer holds.
    pub more: bool,
}

#[derive(Serialize, Deserialize)]
pub struct SessionDetail {
    pub now: Timestamp,
    /// `None` if the session is no longer live; its incidents stay.
    pub session: Option<SessionView>,
    pub incidents: Vec<IncidentRow>,
}

/// What the rules say of a live session, rule by rule.
#[derive(Serialize, Deserialize)]
pub struct Explained {
    pub now: Timestamp,
    pub policy_version: String,
    pub session: SessionView,
    /// What the rules say at this moment; `none` if no rule holds.
    pub decision: String,
    pub rule: Option<String>,
    pub mode: Option<Mode>,
    pub reason: Option<String>,
    /// Every rule: whether it holds, its condition, and the facts it looks at.
    pub rules: Vec<String>,
}

impl Explained {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = match (&self.rule, &self.reason, self.mode) {
            (Some(rule), Some(reason), Some(mode)) => {
                format!("{} by rule {rule} ({}): {reason}\n", self.decision, letter::mode_name(mode))
            }
            _ => "none: no rule holds\n".to_owned(),
        };
        let summary = &self.session.summary;
        if let Some(refused) = &self.session.refused {
            text += &format!("refused by incident {}\n", refused.incident);
        }
        if summary.pardoned_until.is_some_and(|until| until > self.now) {
            text += "pardoned: no rule acts on it\n";
        }
        text += "\nfeatures against the usual range of people\n";
        for reason in &summary.assessment.reasons {
            text += &format!("  {}\n", letter::reason_line(reason));
        }
        if summary.assessment.reasons.is_empty() {
            text += "  nothing stood out so far\n";
        }
        text += &format!("\nrules of policy {}\n", self.policy_version);
        for rule in &self.rules {
            text += &format!("  {}\n", rule.replace('\n', "\n  "));
        }
        text
    }
}

/// One look at all sessions, a minute apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Moment {
    pub at: Timestamp,
    pub live: usize,
    /// Of the most recently seen: those with enough input to be judged.
    pub judged: usize,
    /// And those past the mark at which the model calls a session a bot.
    pub past: usize,
}

#[derive(Serialize)]
pub struct History {
    pub now: Timestamp,
    /// Oldest first, at most a day.
    pub moments: Vec<Moment>,
    /// Incidents of that time, newest first, at most a thousand.
    pub incidents: Vec<IncidentMark>,
}

/// As much of an incident as a chart shows.
#[derive(Serialize)]
pub struct IncidentMark {
    pub at: Timestamp,
    pub action: Action,
    pub mode: Mode,
}

#[derive(Serialize, Deserialize)]
pub struct Incidents {
    pub now: Timestamp,
    pub incidents: Vec<IncidentRow>,
}

#[derive(Serialize)]
pub struct Audit {
    pub now: Timestamp,
    pub records: Vec<AuditRecord>,
}

/// What came of a revocation or a pardon.
#[derive(Serialize, Deserialize)]
pub struct Acted {
    /// Number of the new incident.
    pub incident: String,
    pub session: SessionId,
    /// Recorded and in force. False: still on its way, which the outbox sees through.
    pub done: bool,
}

/// What came of forgetting a person.
#[derive(Serialize, Deserialize)]
pub struct Forgot {
    /// Everybody who may be meant, in pseudonym: one person may log in at several issuers.
    pub subjects: Vec<SubjectId>,
    /// Of how many of them something was known.
    pub known: usize,
}

/// Whom to forget: a pseudonym, or a name as the login names it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whom {
    subject: Option<SubjectId>,
    user: Option<String>,
    /// Only the person of this name at this issuer.
    issuer: Option<String>,
    why: String,
}

#[derive(Deserialize)]
pub struct Limit {
    limit: Option<usize>,
}

#[derive(Deserialize)]
pub struct Rows {
    limit: Option<u32>,
    session: Option<String>,
    /// Milliseconds since 1970.
    since: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Why {
    why: String,
}

impl Why {
    fn text(self) -> Result<String, Refusal> {
        let text: String = self.why.trim().chars().filter(|c| !c.is_control()).collect();
        match text.chars().count() {
            0 => Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Say why; the audit trail keeps it.")),
            length if length > WHY_CHARS_MAX => Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("The reason has {length} characters; at most {WHY_CHARS_MAX} are kept."),
            )),
            _ => Ok(text),
        }
    }
}

pub async fn status(State(state): State<Arc<OpsState>>, _operator: Operator) -> Json<Status> {
    let live = state.shards.budget().sessions();
    let sessions = state.shards.sessions(SESSIONS_MAX).await;
    let now = clock::now();
    let (drift, candidate_drift) = state.shards.drift();
    Json(Status {
        now,
        drift,
        candidate_drift,
        version: env!("CARGO_PKG_VERSION"),
        started: state.started,
        in_force: state.in_force.load_full(),
        board: state.revocations.health(),
        budget: BudgetView::of(state.shards.budget(), now),
        sessions: SessionCounts { live: live.max(sessions.len()), ..SessionCounts::of(&sessions) },
        steps_pending: state.store.pending().await.ok(),
    })
}

pub async fn sessions(
    State(state): State<Arc<OpsState>>,
    _operator: Operator,
    Query(limit): Query<Limit>,
) -> Json<Sessions> {
    let limit = limit.limit.unwrap_or(SESSIONS_DEFAULT).clamp(1, SESSIONS_MAX);
    let now = clock::now();
    let mut found = state.shards.sessions(limit + 1).await;
    let more = found.len() > limit;
    found.truncate(limit);
    let sessions = found.into_iter().map(|summary| view(&state, summary, now)).collect();
    Json(Sessions { now, sessions, more })
}

pub async fn session(
    State(state): State<Arc<OpsState>>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<SessionDetail>, Refusal> {
    let id = session_id(&id)?;
    let now = clock::now();
    let live = state.shards.session(id).await.map(|summary| view(&state, summary, now));
    let filter = IncidentFilter { session: Some(id), since: None, limit: ROWS_DEFAULT };
    let incidents = state.store.incidents(&filter).await?;
    if live.is_none() && incidents.is_empty() {
        return Err(unknown_session());
    }
    Ok(Json(SessionDetail { now, session: live, incidents }))
}

pub async fn explain(
    State(state): State<Arc<OpsState>>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<Explained>, Refusal> {
    let id = session_id(&id)?;
    let now = clock::now();
    let (Some(summary), Some(seen)) = (state.shards.session(id).await, state.shards.facts(id).await) else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "This session is not live."));
    };
    let (policies, facts) = *seen;
    let said = Said::over_facts(&policies, &facts);
    Ok(Json(Explained {
        now,
        policy_version: policies.version().to_owned(),
        session: view(&state, summary, now),
        decision: said.decision,
        rule: said.rule,
        mode: said.mode,
        reason: said.reason,
        rules: gaitway_policies::case::explain(&policies, &facts),
    }))
}

pub async fn history(
    State(state): State<Arc<OpsState>>,
    _operator: Operator,
) -> Result<Json<History>, Refusal> {
    let now = clock::now();
    let since = Timestamp(now.0.saturating_sub(HISTORY_MS));
    let filter = IncidentFilter { session: None, since: Some(since), limit: ROWS_MAX };
    let mark = |row: IncidentRow| {
        let Incident { at, action, mode, .. } = row.incident;
        IncidentMark { at, action, mode }
    };
    let incidents = state.store.incidents(&filter).await?.into_iter().map(mark).collect();
    let moments = state.history.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
    Ok(Json(History { now, moments, incidents }))
}

pub async fn revoke(
    State(state): State<Arc<OpsState>>,
    actor: Actor,
    Path(id): Path<String>,
    Body(why): Body<Why>,
) -> Result<Json<Acted>, Refusal> {
    let (session, why) = (session_id(&id)?, why.text()?);
    if state.shards.session(session).await.is_some() {
        return live_session(&state, session, OperatorAction::Revoke, actor.who, why).await;
    }
    let earlier = latest_incident(&state, session).await?.ok_or_else(unknown_session)?;
    Ok(Json(after_the_session(&state, earlier, Action::Logout, actor.who, why).await))
}

pub async fn pardon(
    State(state): State<Arc<OpsState>>,
    actor: Actor,
    Path(id): Path<String>,
    Body(why): Body<Why>,
) -> Result<Json<Acted>, Refusal> {
    let (session, why) = (session_id(&id)?, why.text()?);
    pardon_session(&state, session, None, actor.who, why).await
}

pub async fn pardon_incident(
    State(state): State<Arc<OpsState>>,
    actor: Actor,
    Path(id): Path<String>,
    Body(why): Body<Why>,
) -> Result<Json<Acted>, Refusal> {
    let why = why.text()?;
    let row = incident_row(&state, &id).await?;
    pardon_session(&state, row.incident.identity.session, Some(row.incident), actor.who, why).await
}

pub async fn incidents(
    State(state): State<Arc<OpsState>>,
    _operator: Operator,
    Query(rows): Query<Rows>,
) -> Result<Json<Incidents>, Refusal> {
    let session = rows.session.as_deref().map(session_id).transpose()?;
    let limit = rows.limit.unwrap_or(ROWS_DEFAULT).clamp(1, ROWS_MAX);
    let filter = IncidentFilter { session, since: rows.since.map(Timestamp), limit };
    Ok(Json(Incidents { now: clock::now(), incidents: state.store.incidents(&filter).await? }))
}

pub async fn incident(
    State(state): State<Arc<OpsState>>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<IncidentRow>, Refusal> {
    incident_row(&state, &id).await.map(Json)
}

pub async fn audit(
    State(state): State<Arc<OpsState>>,
    _operator: Operator,
    Query(rows): Query<Rows>,
) -> Result<Json<Audit>, Refusal> {
    let limit = rows.limit.unwrap_or(ROWS_DEFAULT).clamp(1, ROWS_MAX);
    Ok(Json(Audit { now: clock::now(), records: state.store.audit_trail(limit).await? }))
}

/// After the budget has put everything into shadow: an operator has looked, and rules may enforce again.
pub async fn reset_budget(
    State(state): State<Arc<OpsState>>,
    actor: Actor,
    Body(why): Body<Why>,
) -> Result<Json<serde_json::Value>, Refusal> {
    let why = why.text()?;
    // Before it is done: what trips the budget after this moment is remembered at the next start.
    state.audit(&actor.who, BUDGET_RESET, &why, None).await;
    state.shards.reset_budget(actor.who.clone()).await.map_err(|_| closing())?;
    Ok(Json(serde_json::json!({})))
}

/// Forgets a person's profile: in the store, so that no replica writes it back, and in live sessions here.
pub async fn forget(
    State(state): State<Arc<OpsState>>,
    actor: Actor,
    Body(whom): Body<Whom>,
) -> Result<Json<Forgot>, Refusal> {
    let why = Why { why: whom.why }.text()?;
    let subjects = match (whom.subject, whom.user.as_deref(), whom.issuer.as_deref()) {
        (Some(subject), None, None) => vec![subject],
        (None, Some(user), issuer) if !user.is_empty() => {
            state.namesakes.of(user, issuer).ok_or_else(|| {
                let how = "Say the issuer too (the `iss` of this person's tokens, or \"\" if they have none), or \
                           name a subject: the settings do not name the issuer of every token they accept.";
                Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, how)
            })?
        }
        _ => {
            let how = "Name either a subject (u_ and 32 digits) or a user, and an issuer only with a user.";
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, how));
        }
    };
    let mut known = 0;
    for subject in &subjects {
        known += usize::from(state.profiles.forget(*subject).await?);
        state.shards.forget_profile(*subject).await;
    }
    // Pseudonyms only: the name is not for the records.
    let whom: Vec<String> = subjects.iter().map(ToString::to_string).collect();
    state.audit(&actor.who, "forget", &format!("{why} ({})", whom.join(", ")), None).await;
    Ok(Json(Forgot { subjects, known }))
}

/// Sets the gauges of live sessions and of what they send.
pub async fn count_sessions(state: &OpsState) {
    const STATES: &[(TelemetryState, &str)] = &[
        (TelemetryState::Unexpected, "unexpected"),
        (TelemetryState::Missing, "missing"),
        (TelemetryState::Gathering, "gathering"),
        (TelemetryState::Sufficient, "sufficient"),
        (TelemetryState::Damaged, "damaged"),
    ];
    gauge!("gaitway_sessions").set(state.shards.budget().sessions() as f64);
    let sessions = state.shards.sessions(SESSIONS_MAX).await;
    for (telemetry, label) in STATES {
        let count = sessions.iter().filter(|session| session.assessment.telemetry == *telemetry).count();
        gauge!("gaitway_sessions_sampled", "telemetry" => *label).set(count as f64);
    }
    const VERDICTS: &[((bool, bool), &str)] = &[
        ((false, false), "both_person"),
        ((true, true), "both_bot"),
        ((true, false), "only_live_bot"),
        ((false, true), "only_candidate_bot"),
    ];
    for (verdicts, label) in VERDICTS {
        let count = sessions.iter().filter(|session| session.verdicts() == Some(*verdicts)).count();
        gauge!("gaitway_candidate_sessions_sampled", "verdict" => *label).set(count as f64);
    }
    count_drift(state);
    remember(state, &sessions);
}

/// Sets the gauges of drift, and tells the log once when the people are found to have moved, or to be back.
fn count_drift(state: &OpsState) {
    let (live, candidate) = state.shards.drift();
    if state.drifting.swap(live.state == DriftState::Drifting, Ordering::Relaxed)
        != (live.state == DriftState::Drifting)
    {
        tell_drift(&live);
    }
    for (model, drift) in [("live", Some(live)), ("candidate", candidate)] {
        let Some(drift) = drift else { continue };
        for (state, name) in DRIFT_STATES {
            let is = f64::from(u8::from(drift.state == *state));
            gauge!("gaitway_model_drift_state", "model" => model, "state" => *name).set(is);
        }
        for stratum in &drift.strata {
            let psi = stratum.psi.map_or(f64::NAN, f64::from);
            gauge!("gaitway_model_drift_psi", "model" => model, "input" => stratum.input).set(psi);
        }
        gauge!("gaitway_model_drift_windows", "model" => model).set(f64::from(drift.windows));
        gauge!("gaitway_model_unknown_share", "model" => model).set(f64::from(drift.unknown_share));
        gauge!("gaitway_model_left_out_share", "model" => model).set(f64::from(drift.left_out_share));
    }
}

const DRIFT_STATES: &[(DriftState, &str)] =
    &[(DriftState::Unknown, "unknown"), (DriftState::Steady, "steady"), (DriftState::Drifting, "drifting")];

fn tell_drift(drift: &Drift) {
    let unknown_share = drift.unknown_share;
    if drift.state == DriftState::Drifting {
        let psi = drift.strata.iter().filter_map(|stratum| stratum.psi).fold(0.0, f32::max);
        tracing::warn!(
            drift.psi = psi,
            drift.unknown_share = unknown_share,
            "the people who come have moved from those who taught the model: let `gaitway learn` make one of \
             recent recordings, and watch it as models.candidate"
        );
    } else {
        tracing::info!(
            drift.unknown_share = unknown_share,
            "the people who come are like those who taught the model"
        );
    }
}

/// Adds a moment to the history, once a minute.
fn remember(state: &OpsState, sessions: &[SessionSummary]) {
    let now = clock::now();
    let mut history = state.history.lock().unwrap_or_else(PoisonError::into_inner);
    if history.back().is_some_and(|last| now.since(last.at) < MOMENT_EVERY && last.at <= now) {
        return;
    }
    while history.len() >= MOMENTS_MAX {
        history.pop_front();
    }
    let is_past = |session: &&SessionSummary| {
        let assessment = &session.assessment;
        assessment.windows > 0 && assessment.bot_evidence >= assessment.bot_threshold
    };
    history.push_back(Moment {
        at: now,
        live: state.shards.budget().sessions().max(sessions.len()),
        judged: SessionCounts::of(sessions).judged,
        past: sessions.iter().filter(is_past).count(),
    });
}

fn view(state: &OpsState, summary: SessionSummary, now: Timestamp) -> SessionView {
    let refused = state.revocations.check(&summary.identity, now);
    SessionView::new(summary, refused)
}

/// Pardons a live session through its shard, so that rules leave it alone from now on; one that is
/// gone from memory through the outbox, so that its token is accepted again.
async fn pardon_session(
    state: &OpsState,
    session: SessionId,
    incident: Option<Incident>,
    who: String,
    why: String,
) -> Result<Json<Acted>, Refusal> {
    let Some(live) = state.shards.session(session).await else {
        let earlier = match incident {
            Some(incident) => incident,
            None => latest_incident(state, session).await?.ok_or_else(unknown_session)?,
        };
        return Ok(Json(after_the_session(state, earlier, Action::Pardon, who, why).await));
    };
    // The incident may have reached another token of this session than the one seen last.
    let other = incident.filter(|incident| incident.identity.token != live.identity.token);
    if let Some(earlier) = other {
        after_the_session(state, earlier, Action::Pardon, who.clone(), why.clone()).await;
    }
    live_session(state, session, OperatorAction::Pardon, who, why).await
}

async fn live_session(
    state: &OpsState,
    session: SessionId,
    action: OperatorAction,
    who: String,
    why: String,
) -> Result<Json<Acted>, Refusal> {
    match state.shards.operator(session, action, who, why).await {
        Ok(incident) => Ok(Json(acted(state, incident, session).await)),
        Err(ShardError::UnknownSession) => Err(unknown_session()),
        Err(ShardError::Closed) => Err(closing()),
    }
}

async fn latest_incident(state: &OpsState, session: SessionId) -> Result<Option<Incident>, Refusal> {
    let filter = IncidentFilter { session: Some(session), since: None, limit: 1 };
    Ok(state.store.incidents(&filter).await?.into_iter().next().map(|row| row.incident))
}

/// An operator's action on a session that no shard remembers: all that is known of it is an earlier
/// incident, whose identity the new one takes over.
async fn after_the_session(
    state: &OpsState,
    earlier: Incident,
    action: Action,
    who: String,
    why: String,
) -> Acted {
    let now = clock::now();
    let incident = Incident {
        id: new_incident_id("OP"),
        at: now,
        rule: "operator".into(),
        action,
        mode: Mode::Enforce,
        by: who,
        reason: why,
        until: now.plus(state.action_life),
        ..earlier
    };
    let (id, session) = (incident.id.clone(), incident.identity.session);
    state.outbox.submit(incident).await;
    acted(state, id, session).await
}

/// Waits a moment for the outbox, so that whoever looks next finds what was done.
async fn acted(state: &OpsState, incident: String, session: SessionId) -> Acted {
    let done = state.outbox.is_carried_out(&incident, CARRIED_OUT_WAIT).await;
    Acted { incident, session, done }
}

async fn incident_row(state: &OpsState, id: &str) -> Result<IncidentRow, Refusal> {
    let unknown = || Refusal::new(StatusCode::NOT_FOUND, "There is no incident with this number.");
    if id.len() > INCIDENT_ID_BYTES_MAX {
        return Err(unknown());
    }
    state.store.incident(id).await?.ok_or_else(unknown)
}

fn session_id(text: &str) -> Result<SessionId, Refusal> {
    text.parse()
        .map_err(|_| Refusal::new(StatusCode::NOT_FOUND, "This is no session's number (s_ and 32 digits)."))
}

fn unknown_session() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "There is no such session, live or in the records.")
}

fn closing() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "The gateway is shutting down.")
}
