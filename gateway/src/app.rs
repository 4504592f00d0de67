//! The composition root: opens every part, connects them, and takes them down again.
//!
//! Owns start, reload and shutdown. Decides nothing.

use crate::alert::{AlertSink, AppSink, ProviderSink};
use crate::config::Config;
use crate::edge::Edge;
use crate::edge::pages::Pages;
use crate::edge::sockets::Sockets;
use crate::ops::{InForce, ModelInForce, OpsState};
use crate::outbox::{Outbox, OutboxLimits};
use crate::profiles::Profiles;
use crate::proxy::Gateway;
use crate::proxy::country::Countries;
use crate::proxy::identity::login::{LOGGED_OUT, Login};
use crate::proxy::identity::named::Names;
use crate::proxy::identity::{Identifier, Namesakes};
use crate::proxy::limits::Connections;
use crate::proxy::listen::{Front, TlsFront};
use crate::proxy::rates::Rates;
use crate::proxy::upstream::Upstream;
use crate::recorder::Recorder;
use crate::revocation::{Change, PARDON_KEPT, Revocations, Scope};
use crate::secret::InstallSecret;
use crate::shards::{self, Shards};
use crate::signals::Signals;
use crate::signals::receive::Receiver;
use crate::signals::transmit::Transmitter;
use crate::standing::Standings;
use crate::vault::Vault;
use crate::{alert, clock, ops, store};
use anyhow::Context;
use arc_swap::ArcSwap;
use gaitway_models::artifact::{self, Artifact};
use gaitway_models::{Detector, Timestamp};
use gaitway_policies::engine::EngineLimits;
use gaitway_policies::policy::PolicyError;
use gaitway_policies::{Identity, Input, PolicySet};
use metrics::{counter, gauge};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, watch};
use tracing::{error, info, warn};

/// How long a pardon exempts a session from rules.
const PARDON: Duration = Duration::from_secs(24 * 3600);
/// How often the policy file is looked at.
const POLICY_POLL: Duration = Duration::from_secs(2);
/// How often is looked for what the policy's limits did, and how often one limit is told of.
const LIMITS_POLL: Duration = Duration::from_secs(1);
const LIMITS_TOLD_EVERY: Duration = Duration::from_secs(60);
/// How often the end of open connections is looked for while draining.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Runs the gateway until SIGTERM or SIGINT.
///
/// # Errors
/// Anything that makes a start pointless: an unusable data directory, policy, model, certificate or
/// address. A Redis or mail server that does not answer is no such thing.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let config = config.with_secrets()?;
    let secret = Arc::new(InstallSecret::load_or_create(&config.data)?);
    let policies = Arc::new(load_policies(config.policy.file.as_deref())?);
    let (detector, model) = load_detector("models.artifact", config.models.artifact.as_deref())?;
    let candidate = match config.models.candidate.as_deref() {
        Some(file) => Some(load_detector("models.candidate", Some(file))?),
        None => None,
    };
    let (candidate, beside) = candidate.unzip();
    let mut in_force = InForce::new(&policies, &policy_name(config.policy.file.as_deref()), model);
    in_force.candidate = beside;
    let tls = TlsFront::load(&config.tls)?;
    let connect_timeout = Duration::from_millis(config.limits.upstream_connect_timeout_ms);
    let upstream = Upstream::resolve(&config.upstream, connect_timeout).await?;
    let mut identifier = Identifier::start(&config.identity, secret.clone()).await?;
    if let Some(introspection) = &config.identity.introspection {
        let vault = Vault::open(&config.revocation, config.identity.verified_max, secret.clone())?;
        identifier = identifier.with_introspection(introspection, vault)?;
    }
    // Kept only where somebody must be told whose session ended.
    let names = match (&config.identity.jwt, &config.signals.transmit) {
        (Some(jwt), Some(_)) => {
            let vault = Vault::open(&config.revocation, config.identity.verified_max, secret.clone())?;
            let names = Arc::new(Names::new(vault, &jwt.subject_claim));
            identifier = identifier.with_names(names.clone());
            Some(names)
        }
        _ => None,
    };
    let identifier = Arc::new(if config.tls.certificate.is_some() {
        identifier.with_secure_cookies()
    } else {
        identifier
    });

    let pages = Pages::load(config.ops.help.clone(), config.ops.pages.as_deref()).context("ops.pages")?;
    let store = store::open(&config).await?;
    let known = store.active_revocations(clock::now()).await.context("reading known revocations")?;
    let pardons = store.pardons(clock::ago(PARDON_KEPT)).await.context("reading known pardons")?;
    let revocations = Revocations::start_with(&config.revocation, known, pardons).await?;
    let login = match &config.identity.oidc {
        Some(oidc) => {
            // A login, its place among those of its provider's session, a renewal and a logout token.
            let entries_max = oidc.sessions_max.saturating_mul(4);
            let vault = Arc::new(Vault::open(&config.revocation, entries_max, secret.clone())?);
            let prefix = &config.collector.path_prefix;
            Some(Login::start(oidc, prefix, secret.clone(), vault, revocations.clone()).await?)
        }
        None => None,
    };
    let routes = Arc::new(ArcSwap::new(policies.clone()));
    let mut sinks = alert::chosen(alert::sinks(&config.alerts)?, &routes);
    if let Some(login) = &login {
        sinks.push(Arc::new(ProviderSink::new(login.clone())));
    }
    let app_logout = match &config.revocation.app_logout {
        Some(settings) => Some(Arc::new(AppSink::new(settings, &config)?)),
        None => None,
    };
    sinks.extend(app_logout.iter().map(|sink| sink.clone() as Arc<dyn AlertSink>));
    let transmitter = match &config.signals.transmit {
        Some(settings) => {
            let (secret, store) = (secret.clone(), store.clone());
            Some(Transmitter::new(&config, settings, secret, store, login.clone(), names)?)
        }
        None => None,
    };
    sinks.extend(transmitter.iter().flat_map(Transmitter::sinks));
    let limits = OutboxLimits { profile_retention: config.profiles.retention(), ..OutboxLimits::default() };
    let outbox = Outbox::start(store.clone(), revocations.clone(), sinks, limits).await;

    let profiles = Profiles::start(&config.profiles, store.clone(), secret.clone());
    let knows_people = config.profiles.enabled && detector.knows_owners();
    if config.profiles.enabled && !knows_people {
        warn!(
            "profiles.enabled has no effect: this model does not know how people differ; let `gaitway learn` \
             make one of this site's recordings and name it in models.artifact"
        );
    }
    let receiver = match config.signals.receive.as_slice() {
        [] => None,
        _ => Some(Receiver::start(&config, secret.clone(), login.clone(), outbox.clone())?),
    };
    let signals = (receiver.is_some() || transmitter.is_some())
        .then(|| Signals::new(&config.collector.path_prefix, receiver, transmitter));

    let recorder = Recorder::start(&config.recording)?;
    let standings = Arc::new(Standings::new());
    let limits = EngineLimits {
        sessions_max: config.limits.sessions_max,
        session_idle_ms: config.limits.session_idle_ms,
        pardon_ms: u64::try_from(PARDON.as_millis())?,
        revocation_ms: config.revocation.default_ttl_seconds * 1000,
    };
    let shard_count = std::thread::available_parallelism().map_or(1, usize::from);
    let shards = Shards::start(
        shard_count,
        &shards::Parts {
            limits,
            policies,
            detector: Arc::new(detector),
            candidate: candidate.map(Arc::new),
            standings: standings.clone(),
            outbox: outbox.clone(),
            revocations: revocations.clone(),
            recorder: recorder.clone(),
            profiles: knows_people.then(|| profiles.clone()),
            trip: store.budget_trip().await.context("reading whether the logout budget was used up")?,
        },
    );
    let connections = Connections::new(&config);
    let namesakes = Namesakes::new(&config.identity, secret.clone());
    let edge = Arc::new(Edge::new(&config, secret, shards.clone(), standings.clone(), pages, login.clone()));
    let sockets = edge.sockets.clone();
    let rates = Arc::new(Rates::new(config.limits.rate_buckets_max)?);
    let gateway = Gateway::new(
        &config,
        upstream.clone(),
        identifier,
        login,
        app_logout,
        revocations.clone(),
        standings,
        shards.clone(),
        edge,
        (rates.clone(), Countries::load(config.proxy.country_file.as_deref())?),
        routes.clone(),
    )
    .with_signals(signals.clone());
    let front = Front::new(&config, gateway, connections.clone(), tls.clone());

    let listener = bind(config.listen, "listen").await?;
    let ops_listener = bind(config.ops.listen, "ops.listen").await?;
    let ops_state = OpsState::new(
        &config,
        shards.clone(),
        store,
        revocations.clone(),
        outbox.clone(),
        (profiles.clone(), namesakes),
        in_force.clone(),
    )?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(upstream.keep_resolving());
    tokio::spawn(tls.keep_reloading());
    tokio::spawn(keep_reloading_policies(
        config.policy.file.clone(),
        shards.clone(),
        routes,
        ops_state.clone(),
        in_force,
    ));
    tokio::spawn(keep_telling_limits(rates.clone(), ops_state.clone()));
    let changes = revocations.subscribe();
    tokio::spawn(end_revoked(
        changes,
        revocations.clone(),
        connections.clone(),
        sockets.clone(),
        shards.clone(),
    ));
    info!(
        listen = %listener.local_addr()?,
        ops = %ops_listener.local_addr()?,
        upstream = %config.upstream,
        "Gaitway is ready"
    );
    let ops_task = tokio::spawn(ops::serve(ops_listener, ops_state.clone(), until(stopping.clone())));
    let serving = tokio::spawn(front.clone().serve(listener, stopping));

    let _signals_tasks = signals.map(|signals| signals.start());

    wait_for_signal().await?;
    info!("shutting down");
    stop.send_replace(true);
    let _ = serving.await;
    sockets.drain();
    front.drain().await;
    let drain = Duration::from_millis(config.limits.drain_ms);
    let drained = tokio::time::timeout(drain, async {
        while connections.open() > 0 {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    });
    if drained.await.is_err() {
        warn!(connections = connections.open(), "closing connections that did not end in time");
    }
    outbox.drain(drain).await;
    profiles.drain(drain).await;
    for overrun in rates.take_overruns(Duration::ZERO) {
        ops_state.audit_limit(overrun).await;
    }
    if let Some(recorder) = recorder {
        tokio::task::spawn_blocking(move || recorder.finish()).await?;
    }
    ops_task.abort();
    Ok(())
}

async fn bind(address: std::net::SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{setting}: cannot listen on {address}"))
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn until(mut stopping: watch::Receiver<bool>) {
    // An error means the sender is gone, which is a shutdown too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn load_detector(setting: &str, file: Option<&Path>) -> anyhow::Result<(Detector, ModelInForce)> {
    let (name, bytes) = match file {
        None => ("the shipped model".to_owned(), gaitway_models::DEFAULT_MODEL.to_owned()),
        Some(file) => {
            let bytes =
                std::fs::read(file).with_context(|| format!("{setting}: cannot read {}", file.display()))?;
            (file.display().to_string(), bytes)
        }
    };
    let detector = Detector::load(&bytes).map_err(|error| anyhow::anyhow!("{setting}: {name}: {error}"))?;
    let card = Artifact::decode(&bytes)?.card;
    let model = ModelInForce { hash: artifact::short_hash(&bytes), calibrated: card.calibrated };
    Ok((detector, model))
}

fn policy_name(file: Option<&Path>) -> String {
    file.map_or_else(|| "shipped".to_owned(), |file| file.display().to_string())
}

/// The shipped policy, or a file with the snippets beside it that it imports.
fn load_policies(file: Option<&Path>) -> anyhow::Result<PolicySet> {
    let Some(file) = file else {
        return PolicySet::parse("default.yaml", gaitway_policies::DEFAULT)
            .map_err(|errors| refused(&errors));
    };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("policy.file: cannot read {}", file.display()))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let fetch = |place: &str| std::fs::read_to_string(folder.join(place)).map_err(|error| error.to_string());
    PolicySet::parse_with(&file.display().to_string(), &text, &fetch).map_err(|errors| refused(&errors))
}

fn refused(errors: &[PolicyError]) -> anyhow::Error {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("the policy has mistakes:\n{}", lines.join("\n"))
}

/// Takes up a changed policy file, on change and on SIGHUP. A bad file leaves the last good one.
async fn keep_reloading_policies(
    file: Option<PathBuf>,
    shards: Arc<Shards>,
    routes: Arc<ArcSwap<PolicySet>>,
    ops: Arc<OpsState>,
    mut in_force: InForce,
) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    let Some(file) = file else {
        // The shipped policy cannot change; a hang-up must still not end the process.
        while hangup.recv().await.is_some() {}
        return;
    };
    let changed_at = |file: &Path| std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
    let mut seen = changed_at(&file);
    gauge!("gaitway_policy_last_reload_successful").set(1.0);
    loop {
        let forced = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(POLICY_POLL) => false,
        };
        let now = changed_at(&file);
        if !forced && now == seen {
            continue;
        }
        seen = now;
        match load_policies(Some(&file)) {
            Ok(policies) => {
                info!(policy.version = policies.version(), "policy reloaded");
                counter!("gaitway_policy_reloads_total", "outcome" => "ok").increment(1);
                gauge!("gaitway_policy_last_reload_successful").set(1.0);
                let candidate = in_force.candidate.take();
                in_force = InForce::new(&policies, &policy_name(Some(&file)), in_force.model);
                in_force.candidate = candidate;
                ops.take_over(in_force.clone());
                let policies = Arc::new(policies);
                routes.store(policies.clone());
                shards.reload(policies).await;
            }
            Err(error) => {
                let reason = format!("{error:#}");
                ops.policy_refused(&reason);
                error!(error = reason, "keeping the last good policy");
                counter!("gaitway_policy_reloads_total", "outcome" => "failed").increment(1);
                gauge!("gaitway_policy_last_reload_successful").set(0.0);
            }
        }
    }
}

/// Writes into the audit trail what the policy's limits did, or would have done in shadow.
async fn keep_telling_limits(rates: Arc<Rates>, ops: Arc<OpsState>) {
    let mut poll = tokio::time::interval(LIMITS_POLL);
    loop {
        poll.tick().await;
        for overrun in rates.take_overruns(LIMITS_TOLD_EVERY) {
            ops.audit_limit(overrun).await;
        }
    }
}

/// Ends what is open for whoever is revoked, here or on another replica: telemetry sockets are told
/// where to go, then connections are cut.
async fn end_revoked(
    mut changes: broadcast::Receiver<Change>,
    revocations: Arc<Revocations>,
    connections: Arc<Connections>,
    sockets: Arc<Sockets>,
    shards: Arc<Shards>,
) {
    loop {
        match changes.recv().await {
            Ok(Change::Revoked(revocation)) => {
                let hit = |identity: &Identity| reaches(&revocation.scope, identity);
                sockets.end(|identity| hit(identity).then(|| revocation.incident.clone()));
                let cut = connections.cut(hit);
                counter!("gaitway_connections_cut_total").increment(cut as u64);
                // Who logs out has done nothing wrong: the session ends well, and teaches.
                if revocation.incident != LOGGED_OUT {
                    tell_shard(&shards, &revocation.scope, true, revocation.until).await;
                }
            }
            Ok(Change::Pardoned { scope, until }) => tell_shard(&shards, &scope, false, until).await,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // Some changes were missed: ask the board about everybody who is connected.
                let refusal = |identity: &Identity| revocations.check(identity, clock::now());
                sockets.end(|identity| refusal(identity).map(|refusal| refusal.incident));
                connections.cut(|identity| refusal(identity).is_some());
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Whether a revocation of this scope ends the identity's session.
fn reaches(scope: &Scope, identity: &Identity) -> bool {
    match *scope {
        Scope::Token(token) => identity.token == Some(token),
        Scope::Session(session) => identity.session == session,
        Scope::Subject { subject, before } => {
            identity.subject == Some(subject) && identity.issued_at.is_none_or(|issued_at| issued_at < before)
        }
    }
}

/// Waits for a full shard: a pardon that got lost would keep somebody out.
async fn tell_shard(shards: &Shards, scope: &Scope, revoked: bool, until: Timestamp) {
    if let Scope::Session(session) = *scope {
        shards.tell(&session, Input::Peer { session, revoked, until }).await;
    }
}
