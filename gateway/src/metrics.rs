//! What Prometheus reads: the recorder, the description of every metric, and the process's own figures.
//!
//! Labels are bounded sets of our own words; never a session, person, address or path. A metric that
//! is not in the table below fails a test.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Counter,
    Gauge,
    Histogram,
}

/// One row of the table: name, shape, unit, meaning.
pub type Row = (&'static str, Shape, Option<Unit>, &'static str);

/// Every metric of the gateway. Names end in their unit; counters in `_total`.
#[rustfmt::skip] // One row a line.
pub const METRICS: &[Row] = &[
    ("gaitway_build_info", Shape::Gauge, None, "Always 1; the label names the version."),
    // Requests.
    ("gaitway_request_seconds", Shape::Histogram, Some(Unit::Seconds), "From a request's header to the end of its response; answered by the upstream or the gateway."),
    ("gaitway_responses_total", Shape::Counter, None, "Responses by class of status."),
    ("gaitway_requests_refused_total", Shape::Counter, None, "Requests answered by Gaitway instead of the app, by outcome."),
    ("gaitway_tarpits", Shape::Gauge, None, "Answers that a tarpit holds back now."),
    ("gaitway_rate_limited_total", Shape::Counter, None, "Requests over a limit of the policy, by limit and mode; those in shadow passed."),
    ("gaitway_rate_buckets_forgotten_total", Shape::Counter, None, "Buckets of rate limits given up before they were full, because the table was."),
    ("gaitway_framing_refused_total", Shape::Counter, None, "Ambiguous or malformed requests, by fault; nothing of them went upstream."),
    ("gaitway_proxy_errors_total", Shape::Counter, None, "Requests that failed, by side and kind."),
    ("gaitway_connections", Shape::Gauge, None, "Open visitors' connections."),
    ("gaitway_connections_refused_total", Shape::Counter, None, "Connections closed at once because of a limit."),
    ("gaitway_connections_cut_total", Shape::Counter, None, "Connections cut because their session was revoked."),
    ("gaitway_tls_handshakes_failed_total", Shape::Counter, None, "TLS handshakes that came to nothing."),
    ("gaitway_tls_reloads_total", Shape::Counter, None, "Reloads of certificate and key, by outcome."),
    // The collector.
    ("gaitway_injections_total", Shape::Counter, None, "Pages the collector's tag was to go into, by outcome."),
    ("gaitway_injection_skipped_total", Shape::Counter, None, "Responses left untouched, by reason."),
    ("gaitway_telemetry_sockets", Shape::Gauge, None, "Open telemetry sockets."),
    ("gaitway_telemetry_batches_total", Shape::Counter, None, "Batches accepted, by door: socket or beacon."),
    ("gaitway_telemetry_refused_total", Shape::Counter, None, "Telemetry connections or page tokens refused, by reason."),
    ("gaitway_telemetry_rejected_total", Shape::Counter, None, "Batches thrown away, by reason."),
    ("gaitway_browsers_dismissed_total", Shape::Counter, None, "Browsers told over their socket to go to the logout page."),
    // Identity.
    ("gaitway_tokens_verified_total", Shape::Counter, None, "Tokens whose signature was verified; cached ones are not counted again."),
    ("gaitway_tokens_rejected_total", Shape::Counter, None, "Tokens that do not count, by reason."),
    ("gaitway_introspections_total", Shape::Counter, None, "Questions to the issuer of opaque tokens, by answer."),
    ("gaitway_logins_total", Shape::Counter, None, "Logins at the OpenID provider, by what became of them."),
    ("gaitway_login_renewals_total", Shape::Counter, None, "Renewals of logins' tokens, by outcome."),
    ("gaitway_provider_logouts_total", Shape::Counter, None, "Back-channel logouts by the OpenID provider: done, refused or to be repeated."),
    ("gaitway_provider_requests_total", Shape::Counter, None, "Questions to the OpenID provider, by endpoint and outcome."),
    ("gaitway_own_cookies_rejected_total", Shape::Counter, None, "Gaitway's own cookies with a false signature."),
    ("gaitway_jwks_fetches_total", Shape::Counter, None, "Fetches of the key set, by outcome."),
    // Shared signals.
    ("gaitway_signals_received_total", Shape::Counter, None, "Security events taken or refused, by event and outcome."),
    ("gaitway_signals_polls_total", Shape::Counter, None, "Questions to transmitters for security events, by outcome."),
    ("gaitway_signals_fetched_total", Shape::Counter, None, "Security events that a receiver fetched, by stream and outcome; what is pushed counts as an alert."),
    ("gaitway_signals_dropped_total", Shape::Counter, None, "Security events dropped because their receiver did not fetch them, by stream."),
    // Decisions.
    ("gaitway_sessions", Shape::Gauge, None, "Live sessions."),
    ("gaitway_sessions_sampled", Shape::Gauge, None, "Of the most recently seen sessions, 2,000 at most, those in each state of telemetry."),
    ("gaitway_candidate_sessions_sampled", Shape::Gauge, None, "Of the sessions sampled, those whom the model in force and the candidate beside it call bot or person, by verdict."),
    ("gaitway_model_drift_state", Shape::Gauge, None, "1 for the state that the people who come are in, by model (live or candidate): unknown, steady or drifting from those who taught it. On this replica, since its start."),
    ("gaitway_model_drift_psi", Shape::Gauge, None, "Population stability index of the scores of people, by model and kind of input; not a number until enough was seen."),
    ("gaitway_model_drift_windows", Shape::Gauge, None, "Windows that drift is told from, the older the less, by model."),
    ("gaitway_model_unknown_share", Shape::Gauge, None, "Of these windows, the share of devices and kinds of input that nobody taught, by model."),
    ("gaitway_model_left_out_share", Shape::Gauge, None, "Share of windows that did not count because their session was called a bot, driven, played back or refused, by model."),
    ("gaitway_shard_inputs_shed_total", Shape::Counter, None, "Inputs not looked at because a shard was busy."),
    ("gaitway_incidents_total", Shape::Counter, None, "Incidents by action and mode; those in shadow only noted."),
    ("gaitway_challenges_total", Shape::Counter, None, "Answers to the challenge page, by outcome."),
    ("gaitway_budget_tripped", Shape::Gauge, None, "1 while the budget has put everything into shadow."),
    ("gaitway_replay_memory_shingles", Shape::Gauge, None, "Fingerprints of movement remembered to recognise it when it is played back; the oldest go when it is full."),
    ("gaitway_budget_trips_total", Shape::Counter, None, "Times the budget was reached."),
    ("gaitway_policy_reloads_total", Shape::Counter, None, "Reloads of the policy file, by outcome."),
    ("gaitway_policy_last_reload_successful", Shape::Gauge, None, "0 while the policy file holds mistakes and the last good one is in force."),
    // Carrying out.
    ("gaitway_outbox_depth", Shape::Gauge, None, "Incidents handed over and not carried out yet."),
    ("gaitway_outbox_unrecorded", Shape::Gauge, None, "Incidents waiting for a store that does not answer."),
    ("gaitway_outbox_steps_pending", Shape::Gauge, None, "Steps of recorded incidents that are still to be done."),
    ("gaitway_outbox_carried_out_seconds", Shape::Histogram, Some(Unit::Seconds), "From a decision to the login's end or return."),
    ("gaitway_outbox_board_errors_total", Shape::Counter, None, "Revocations and pardons the board did not take at once."),
    ("gaitway_store_errors_total", Shape::Counter, None, "Failed reads and writes of the store."),
    ("gaitway_alerts_total", Shape::Counter, None, "Alerts by sink and outcome."),
    ("gaitway_alert_delay_seconds", Shape::Histogram, Some(Unit::Seconds), "From a decision to the alert's delivery, by sink."),
    ("gaitway_mail_receivers_refused_total", Shape::Counter, None, "Receivers the mail server refused while it took the mail for others."),
    // Revocations.
    ("gaitway_revocations_active", Shape::Gauge, None, "Revocations in force on this replica's board; with those that replaced a pardon, until that would be forgotten."),
    ("gaitway_revocation_backend_up", Shape::Gauge, None, "1 while the shared backend answers; an embedded board is always up."),
    ("gaitway_revocation_queue", Shape::Gauge, None, "Changes that wait for the shared backend."),
    ("gaitway_revocation_propagation_seconds", Shape::Histogram, Some(Unit::Seconds), "From a decision on another replica to this replica's board."),
    ("gaitway_revocations_dropped_total", Shape::Counter, None, "Revocations the full board could not take."),
    ("gaitway_revocation_entries_unreadable_total", Shape::Counter, None, "Entries of the shared backend that this version cannot read."),
    // Profiles.
    ("gaitway_profiles", Shape::Gauge, None, "People of whom a profile is kept; counted every ten minutes."),
    ("gaitway_profile_loads_total", Shape::Counter, None, "Profiles asked for, by outcome: loaded, missing, unreadable (learnt anew), newer (written by a newer version, left alone), failed (the store; asked again), busy or full (too many at once)."),
    ("gaitway_profile_lessons_total", Shape::Counter, None, "What sessions taught, by outcome: saved, overtaken (another session or replica was first, or the person was forgotten), dropped (too many wait), failed (the store)."),
    ("gaitway_profiles_forgotten_total", Shape::Counter, None, "Profiles that operators had forgotten."),
    ("gaitway_profiles_expired_total", Shape::Counter, None, "Profiles deleted because no session had taught them anything for too long; what was left of forgotten ones included."),
    // Recordings.
    ("gaitway_recorded_bytes_total", Shape::Counter, Some(Unit::Bytes), "Bytes written to recordings."),
    ("gaitway_recorded_sessions_total", Shape::Counter, None, "Recordings of telemetry completed, one a session and day."),
    ("gaitway_recording_shed_total", Shape::Counter, None, "What should have been recorded and was not, by reason."),
    ("gaitway_recording_stopped", Shape::Gauge, None, "1 while nothing can be recorded: the disk is full or fails; traffic goes on."),
    // Operators and the process.
    ("gaitway_ops_login_failures_total", Shape::Counter, None, "Wrong operators' passwords."),
    ("process_resident_memory_bytes", Shape::Gauge, Some(Unit::Bytes), "Memory of the process that is in RAM."),
    ("process_open_fds", Shape::Gauge, None, "Open file descriptors."),
    ("process_max_fds", Shape::Gauge, None, "File descriptors the process may open."),
    ("process_cpu_seconds_total", Shape::Counter, Some(Unit::Seconds), "CPU time used, user and system."),
    ("process_start_time_seconds", Shape::Gauge, Some(Unit::Seconds), "Start of the process, seconds since 1970."),
];

/// Upper bounds of every histogram in seconds: from a memory read over a slow upstream to an alert
/// that waited for the mail server.
const SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 60.0, 600.0, 3600.0,
];

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("{0}")]
    Build(#[from] BuildError),
    #[error("metrics are already recorded in this process")]
    Running,
}

/// Starts recording. Before this call every metric macro does nothing.
pub fn install() -> Result<(), MetricsError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| MetricsError::Running)?;
    // Set once, together with the recorder.
    let _ = HANDLE.set(handle);
    describe();
    gauge!("gaitway_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(())
}

/// Everything recorded, in Prometheus' text format; empty before `install`.
pub fn render() -> String {
    let Some(handle) = HANDLE.get() else { return String::new() };
    measure_process();
    handle.render()
}

/// Folds raw histogram samples into buckets. To be called every few seconds: they pile up otherwise
/// while nobody scrapes.
pub fn upkeep() {
    if let Some(handle) = HANDLE.get() {
        handle.run_upkeep();
    }
}

fn describe() {
    for &(name, shape, unit, doc) in METRICS {
        match (shape, unit) {
            (Shape::Counter, Some(unit)) => describe_counter!(name, unit, doc),
            (Shape::Counter, None) => describe_counter!(name, doc),
            (Shape::Gauge, Some(unit)) => describe_gauge!(name, unit, doc),
            (Shape::Gauge, None) => describe_gauge!(name, doc),
            (Shape::Histogram, Some(unit)) => describe_histogram!(name, unit, doc),
            (Shape::Histogram, None) => describe_histogram!(name, doc),
        }
    }
}

/// docs/metrics.md.
pub fn reference() -> String {
    let mut out = String::from(
        "<!-- Written from the table in gateway/src/metrics.rs; a test keeps it current. -->\n\
         # Metrics\n\n\
         `GET /metrics` on the operators' listener. Labels are small fixed sets of words; none names a \
         session, a person, an address or a path.\n\n\
         | metric | type | meaning |\n|---|---|---|\n",
    );
    for (name, shape, _, doc) in METRICS {
        out += &format!("| `{name}` | {} | {doc} |\n", format!("{shape:?}").to_lowercase());
    }
    out
}

/// Reads the process's figures where the kernel shows them; what cannot be read is left out.
fn measure_process() {
    if let Some(bytes) = resident_bytes() {
        gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // Reading the directory holds one more descriptor open.
        gauge!("process_open_fds").set(entries.count().saturating_sub(1) as f64);
    }
    if let Some(limit) = fds_max() {
        gauge!("process_max_fds").set(limit);
    }
    if let Some((cpu_seconds, start_seconds)) = cpu_and_start() {
        counter!("process_cpu_seconds_total").absolute(cpu_seconds);
        gauge!("process_start_time_seconds").set(start_seconds);
    }
}

/// Memory in RAM, in bytes.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn fds_max() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// CPU seconds used so far, and when the process started, in seconds since 1970.
fn cpu_and_start() -> Option<(u64, f64)> {
    // The kernel counts in hundredths of a second towards programs, whatever its own clock.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name, in parentheses, may itself hold spaces; fields are counted after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let (user, system, start) = (field(11)?, field(12)?, field(19)?);
    let kernel = std::fs::read_to_string("/proc/stat").ok()?;
    let boot = kernel.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<u64>().ok()?;
    let started = boot as f64 + start as f64 / TICKS_PER_SECOND as f64;
    Some(((user + system) / TICKS_PER_SECOND, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_measured_and_described() {
        // The recorder is one per process; another test may have been first.
        let _ = install();
        let text = render();
        for &(name, shape, _, doc) in METRICS.iter().filter(|row| row.0.starts_with("process_")) {
            let shape = format!("{shape:?}").to_lowercase();
            assert!(text.contains(&format!("# TYPE {name} {shape}\n")), "{name}:\n{text}");
            assert!(text.contains(&format!("# HELP {name} {doc}")), "{name}:\n{text}");
        }
        assert!(resident_bytes().unwrap() > 1024 * 1024);
    }

    /// Every `counter!("name"` and its kin in this package's sources.
    fn recorded() -> Vec<(String, Shape)> {
        let macros =
            [("counter!(", Shape::Counter), ("gauge!(", Shape::Gauge), ("histogram!(", Shape::Histogram)];
        let mut found = Vec::new();
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let Ok(text) = std::fs::read_to_string(&path) else { continue };
                for (call, shape) in macros {
                    for part in text.split(call).skip(1) {
                        let name =
                            part.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                        found.extend(
                            name.filter(|name| name.contains('_')).map(|name| (name.to_owned(), shape)),
                        );
                    }
                }
            }
        }
        found
    }

    #[test]
    fn every_metric_that_is_recorded_is_described_as_what_it_is() {
        let recorded = recorded();
        assert!(recorded.len() > 20, "the sources are read wrongly: {recorded:?}");
        for (name, shape) in recorded {
            let row = METRICS.iter().find(|row| row.0 == name);
            assert_eq!(row.map(|row| row.1), Some(shape), "{name} belongs into the table in metrics.rs");
        }
    }

    #[test]
    fn the_reference_page_is_current() {
        expect_test::expect_file!["../../docs/metrics.md"].assert_eq(&reference());
    }

    #[test]
    fn names_say_their_shape_and_unit_and_are_described_once() {
        for (index, &(name, shape, unit, doc)) in METRICS.iter().enumerate() {
            assert_eq!(name.ends_with("_total"), shape == Shape::Counter, "{name}");
            let stem = name.trim_end_matches("_total");
            match unit {
                Some(Unit::Seconds) => assert!(stem.ends_with("_seconds"), "{name}"),
                Some(Unit::Bytes) => assert!(stem.ends_with("_bytes"), "{name}"),
                Some(_) | None => assert!(!stem.ends_with("_seconds") && !stem.ends_with("_bytes"), "{name}"),
            }
            assert!(doc.ends_with('.'), "{name}");
            assert!(METRICS[..index].iter().all(|row| row.0 != name), "{name} twice");
        }
    }
}
