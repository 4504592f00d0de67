//! The operators' side: page, API and metrics on a listener of their own.
//!
//! The page is static and public; everything it shows comes through the API, behind the door.
//! Must not know: how decisions are made or carried out.

mod api;
mod door;
mod listener;
#[cfg(test)]
pub(crate) mod tests;

pub use api::{
    Acted, Explained, Forgot, Incidents, RefusedView, SessionCounts, SessionDetail, SessionView, Sessions,
    Status,
};
pub use door::{OPERATOR_HEADER, PASSWORD_FILE, PasswordError, password_file, read_password};

use crate::clock;
use crate::config::Config;
use crate::outbox::Outbox;
use crate::profiles::Profiles;
use crate::proxy::identity::Namesakes;
use crate::proxy::rates::Overrun;
use crate::revocation::Revocations;
use crate::shards::Shards;
use crate::store::{AuditRecord, Store};
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use door::{Door, Password};
use gaitway_models::Timestamp;
use gaitway_policies::PolicySet;
use gaitway_policies::engine::{Action, Mode};
use gaitway_policies::policy::Rule;
use serde::Serialize;
use std::collections::VecDeque;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bodies are a name, a password or a sentence.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// How often histogram samples are folded and sessions counted, whether anybody scrapes or not.
const UPKEEP: Duration = Duration::from_secs(5);

/// Everything the operators' side reads and does.
pub struct OpsState {
    shards: Arc<Shards>,
    store: Arc<dyn Store>,
    revocations: Arc<Revocations>,
    /// For actions on sessions that no shard remembers; all others go through a shard.
    outbox: Arc<Outbox>,
    profiles: Arc<Profiles>,
    namesakes: Namesakes,
    in_force: ArcSwap<InForce>,
    /// How long an operator's action on a session that is no longer live holds at least.
    action_life: Duration,
    started: Timestamp,
    /// The last day, minute by minute; of this process alone.
    history: Mutex<VecDeque<api::Moment>>,
    door: Door,
    /// `/metrics` without a login.
    metrics_public: bool,
    /// Address under which operators reach the page, if it is not an IP address or localhost.
    ops_url: Option<String>,
    /// The model in force was last found to drift.
    drifting: AtomicBool,
    /// Set when the gateway drains: load balancers should send nobody here any more.
    draining: AtomicBool,
}

/// Which policy and model are in force.
#[derive(Clone, Debug, Serialize)]
pub struct InForce {
    pub policy_version: String,
    /// File, or `shipped`.
    pub policy_from: String,
    pub rules: Vec<RuleInForce>,
    /// Most logouts a minute before everything falls back to shadow.
    pub logouts_per_minute_max: u32,
    pub model: ModelInForce,
    /// The model that judges beside it, if one does.
    pub candidate: Option<ModelInForce>,
    /// Why the last change of the policy file was not taken over, if it was not.
    pub reload_error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct RuleInForce {
    pub name: String,
    pub action: Action,
    pub mode: Mode,
}

#[derive(Clone, Debug, Serialize)]
pub struct ModelInForce {
    /// Hash of the model file, in hexadecimal.
    pub hash: String,
    /// The model has learnt enough people of this site; until then it never logs anybody out.
    pub calibrated: bool,
}

impl InForce {
    /// `from`: the policy's file, or `shipped`.
    pub fn new(policies: &PolicySet, from: &str, model: ModelInForce) -> InForce {
        let rule = |rule: &Rule| RuleInForce {
            name: rule.name.to_string(),
            action: rule.measure.action(),
            mode: rule.mode,
        };
        InForce {
            policy_version: policies.version().to_owned(),
            policy_from: from.to_owned(),
            rules: policies.rules().iter().map(rule).collect(),
            logouts_per_minute_max: policies.budget.logouts_per_minute_max,
            model,
            candidate: None,
            reload_error: None,
        }
    }
}

impl OpsState {
    /// Reads the operators' password, or makes one in the data directory and says where it is.
    pub fn new(
        config: &Config,
        shards: Arc<Shards>,
        store: Arc<dyn Store>,
        revocations: Arc<Revocations>,
        outbox: Arc<Outbox>,
        (profiles, namesakes): (Arc<Profiles>, Namesakes),
        in_force: InForce,
    ) -> Result<Arc<OpsState>, PasswordError> {
        let password = Password::load(config)?;
        tracing::info!(
            password.file = %password.file.display(),
            password.generated = password.generated,
            "operators sign in with the password in this file"
        );
        Ok(Arc::new(OpsState {
            shards,
            store,
            revocations,
            outbox,
            profiles,
            namesakes,
            in_force: ArcSwap::from_pointee(in_force),
            action_life: Duration::from_secs(config.revocation.default_ttl_seconds),
            started: clock::now(),
            history: Mutex::new(VecDeque::with_capacity(api::MOMENTS_MAX)),
            door: Door::new(password),
            metrics_public: config.ops.metrics_public,
            ops_url: config.alerts.ops_url.clone(),
            drifting: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }))
    }

    /// Shows what is in force from now on: after a reload, or a new model.
    pub fn take_over(&self, in_force: InForce) {
        self.in_force.store(Arc::new(in_force));
    }

    /// Shows that the changed policy file was not taken over, and why; the last good one holds.
    pub fn policy_refused(&self, why: &str) {
        let mut in_force = InForce::clone(&self.in_force.load());
        in_force.reload_error = Some(why.to_owned());
        self.take_over(in_force);
    }

    /// Appends what a limit of the policy did, or would have done, to the audit trail.
    pub async fn audit_limit(&self, overrun: Overrun) {
        let what = match overrun.mode {
            Mode::Shadow => "would-limit",
            Mode::Enforce => "limit",
        };
        self.audit("policy", what, &overrun.to_string(), Some(overrun.policy_version)).await;
    }

    /// Appends to the audit trail; a store that does not answer is logged and does not stop operators.
    async fn audit(&self, who: &str, what: &str, why: &str, policy_version: Option<String>) {
        let record = AuditRecord {
            at: clock::now(),
            who: who.to_owned(),
            what: what.to_owned(),
            session: None,
            incident: None,
            why: why.to_owned(),
            policy_version,
        };
        if let Err(error) = self.store.audit(&record).await {
            tracing::error!(error = %error, "an audit record could not be written");
        }
    }
}

/// Serves operators. Once `shutdown` is ready, `/readyz` says that the gateway drains, and all else
/// goes on so that draining can be watched; the end is the caller's, who drops or aborts the task.
pub async fn serve(
    listener: tokio::net::TcpListener,
    state: Arc<OpsState>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let upkeep = {
        let state = state.clone();
        async move {
            let mut every = tokio::time::interval(UPKEEP);
            loop {
                every.tick().await;
                crate::metrics::upkeep();
                api::count_sessions(&state).await;
            }
        }
    };
    let drain = {
        let state = state.clone();
        async move {
            shutdown.await;
            state.draining.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
    };
    let service = router(state).into_make_service_with_connect_info::<listener::Peer>();
    let serving = axum::serve(listener::OpsListener::new(listener), service).into_future();
    tokio::select! {
        served = serving => served,
        () = upkeep => Ok(()),
        () = drain => Ok(()),
    }
}

/// Every route. The first group is public and holds nothing of anybody.
fn router(state: Arc<OpsState>) -> Router {
    let api = Router::new()
        .route("/login", post(door::log_in))
        .route("/logout", post(door::log_out))
        .route("/status", get(api::status))
        .route("/sessions", get(api::sessions))
        .route("/sessions/{id}", get(api::session))
        .route("/sessions/{id}/explain", get(api::explain))
        .route("/history", get(api::history))
        .route("/sessions/{id}/revoke", post(api::revoke))
        .route("/sessions/{id}/pardon", post(api::pardon))
        .route("/incidents", get(api::incidents))
        .route("/incidents/{id}", get(api::incident))
        .route("/incidents/{id}/pardon", post(api::pardon_incident))
        .route("/audit", get(api::audit))
        .route("/budget/reset", post(api::reset_budget))
        .route("/profiles/forget", post(api::forget))
        .fallback(|| async { api::Refusal::new(StatusCode::NOT_FOUND, "There is nothing here.") });
    page()
        .nest("/api", api)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(state.clone(), only_our_host))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .layer(middleware::map_response(with_headers))
        .with_state(state)
}

/// The page itself, without any data: markup, style and script.
pub fn page<S: Clone + Send + Sync + 'static>() -> Router<S> {
    fn asset<S: Clone + Send + Sync + 'static>(
        kind: &'static str,
        text: &'static str,
    ) -> axum::routing::MethodRouter<S> {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
    }
    Router::new()
        .route("/", asset("text/html; charset=utf-8", include_str!("ops/page.html")))
        // Where the links in alerts lead: the same page, which opens that session.
        .route("/sessions/{id}", asset("text/html; charset=utf-8", include_str!("ops/page.html")))
        .route("/page.css", asset("text/css; charset=utf-8", include_str!("ops/page.css")))
        .route("/page.js", asset("text/javascript; charset=utf-8", include_str!("ops/page.js")))
        .route("/icon.svg", asset("image/svg+xml", include_str!("ops/icon.svg")))
}

/// Refuses a page that has rebound its own name to this address.
async fn only_our_host(State(state): State<Arc<OpsState>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if door::host_is_ours(host, state.ops_url.as_deref()) {
        return next.run(request).await;
    }
    let text = "This name is not known as the address of the operators' page.\n\
                Set alerts.ops_url to the address you use, or reach it by IP address.\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

/// Nothing but our own script, style and API; no frames, no sniffing, nothing kept.
async fn with_headers(mut response: Response) -> Response {
    const HEADERS: &[(&str, &str)] = &[
        (
            "content-security-policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ];
    for &(name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// Ready means: visitors may be sent here. A lost store or Redis does not stop pages, so it does not
/// make a replica unready either; the page and the metrics show it.
async fn ready(State(state): State<Arc<OpsState>>) -> Response {
    if state.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    "ready\n".into_response()
}

async fn metrics(State(state): State<Arc<OpsState>>, mut request: Request) -> Result<Response, api::Refusal> {
    if !state.metrics_public {
        use axum::RequestExt;
        request.extract_parts_with_state::<door::Operator, _>(&state).await?;
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, crate::metrics::render()).into_response())
}
