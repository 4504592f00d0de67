//! `gaitway session`: the operators' API from the command line.
//!
//! Must not know: how sessions are judged. What the gateway answers is written for people as a table
//! and for programs, with `--json`, as it came.

use crate::ops::{self, Acted, Explained, Forgot, SessionDetail, SessionView, Sessions};
use crate::store::{IncidentRow, StepState};
use anyhow::Context;
use clap::{Args, Subcommand};
use gaitway_models::{Modality, PersonRange, TelemetryState, Timestamp};
use gaitway_policies::Standing;
use gaitway_policies::engine::{Action, Mode};
use reqwest::{Client, Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// List live sessions, most evidence first
    List {
        /// Sessions at most
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show one session, or the session of an incident, with its reasons
    Show {
        /// Session (s_…) or incident
        id: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Log a session out
    Revoke {
        /// Session (s_…)
        id: String,
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        reach: Reach,
    },
    /// Let a session in again, and no rule touch it for a while
    Pardon {
        /// Session (s_…) or incident, as the person sees it on the logout page
        id: String,
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        reach: Reach,
    },
    /// Forget what is kept of a person's hand; their live sessions teach nothing any more
    Forget {
        #[command(flatten)]
        whom: Whom,
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Whom {
    /// Name as the login has it (the token's `sub`)
    #[arg(long, value_name = "NAME", conflicts_with = "subject")]
    user: Option<String>,
    /// Only the person of this name at this issuer, "" for tokens without `iss` [default: every issuer of the
    /// gateway's settings; needed where they accept tokens without naming the issuer]
    #[arg(long, value_name = "ISSUER", requires = "user")]
    issuer: Option<String>,
    /// Pseudonym (u_…), as sessions and incidents show it
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
}

/// Where the gateway is and how to get in.
#[derive(Debug, Args)]
pub(crate) struct Reach {
    /// The operators' address of the gateway [default: http://127.0.0.1:9000]
    #[arg(long, value_name = "URL", env = "GAITWAY_OPS_LISTEN")]
    ops: Option<String>,
    /// The gateway's data directory, which holds the password it generated
    #[arg(long, value_name = "DIR", env = "GAITWAY_DATA", default_value = "data")]
    data: PathBuf,
    /// File with the operators' password
    #[arg(long, value_name = "FILE", env = "GAITWAY_OPS_PASSWORD_FILE")]
    password_file: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Act {
    /// Why; kept in the audit trail and shown in alerts
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// Your name, for the audit trail [default: the name you are logged in with]
    #[arg(long, value_name = "NAME", env = "USER")]
    by: Option<String>,
}

/// Why a call failed, with the exit code that says so.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the gateway cannot be reached at {0}: {1}")]
    Unreachable(String, String),
    #[error("{0}")]
    Password(String),
    #[error("{0}")]
    Unknown(String),
    #[error("{0}")]
    Other(String),
}

impl CallError {
    fn code(&self) -> u8 {
        match self {
            CallError::Other(_) => 1,
            CallError::Unreachable(..) => 3,
            CallError::Password(_) => 4,
            CallError::Unknown(_) => 5,
        }
    }
}

pub(crate) fn run(command: SessionCommand) -> anyhow::Result<ExitCode> {
    answer(carry_out(command))
}

fn answer(call: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(call) {
        Ok(text) => {
            super::print(&text);
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => match error.downcast_ref::<CallError>() {
            Some(call) => {
                super::complain(&call.to_string());
                Ok(ExitCode::from(call.code()))
            }
            None => Err(error),
        },
    }
}

/// What the rules say of a live session, as `gaitway policy explain` prints it.
pub(crate) fn explain(id: &str, reach: &Reach) -> anyhow::Result<ExitCode> {
    answer(async {
        let gateway = Gateway::new(reach, None)?;
        let answer = gateway.get(&["sessions", id, "explain"], &[]).await?;
        reach.print(answer, |explained: Explained| explained.text())
    })
}

/// Lets rules enforce again after the budget tripped.
pub(crate) fn reset_budget(act: &Act, reach: &Reach) -> anyhow::Result<ExitCode> {
    answer(async {
        let gateway = Gateway::new(reach, act.by.as_deref())?;
        gateway.post(&["budget", "reset"], &act.why).await?;
        Ok("rules enforce again\n".to_owned())
    })
}

async fn carry_out(command: SessionCommand) -> anyhow::Result<String> {
    match command {
        SessionCommand::List { limit, reach } => {
            let gateway = Gateway::new(&reach, None)?;
            let answer = gateway.get(&["sessions"], &[("limit", limit.to_string())]).await?;
            reach.print(answer, |sessions: Sessions| list(sessions))
        }
        SessionCommand::Show { id, reach } => {
            let gateway = Gateway::new(&reach, None)?;
            let id = match is_session(&id) {
                true => id,
                false => {
                    let row: IncidentRow = parse(gateway.get(&["incidents", &id], &[]).await?)?;
                    row.incident.identity.session.to_string()
                }
            };
            let answer = gateway.get(&["sessions", &id], &[]).await?;
            reach.print(answer, |detail: SessionDetail| show(&id, &detail))
        }
        SessionCommand::Revoke { id, act, reach } => {
            let gateway = Gateway::new(&reach, act.by.as_deref())?;
            let answer = gateway.post(&["sessions", &id, "revoke"], &act.why).await?;
            reach.print(answer, |acted: Acted| told(&acted, "logged out"))
        }
        SessionCommand::Pardon { id, act, reach } => {
            let gateway = Gateway::new(&reach, act.by.as_deref())?;
            let room = if is_session(&id) { "sessions" } else { "incidents" };
            let answer = gateway.post(&[room, &id, "pardon"], &act.why).await?;
            reach.print(answer, |acted: Acted| told(&acted, "pardoned"))
        }
        SessionCommand::Forget { whom, act, reach } => {
            let gateway = Gateway::new(&reach, act.by.as_deref())?;
            let body = serde_json::json!({
                "user": whom.user, "issuer": whom.issuer, "subject": whom.subject, "why": act.why,
            });
            let answer = gateway.post_json(&["profiles", "forget"], &body).await?;
            reach.print(answer, |forgot: Forgot| match forgot.known {
                0 => "no profile was found; if somebody of this name logs in at an issuer that the gateway's settings \
                      do not name (any more), say --issuer\n"
                    .into(),
                _ => "forgotten\n".into(),
            })
        }
    }
}

fn told(acted: &Acted, what: &str) -> String {
    let being = if acted.done { "is" } else { "is being" };
    format!("{} {being} {what}; incident {}\n", acted.session, acted.incident)
}

fn is_session(id: &str) -> bool {
    id.starts_with("s_")
}

impl Reach {
    /// The API's address: a URL, or an address and port as in `ops.listen`.
    fn url(&self) -> anyhow::Result<Url> {
        let text = self.ops.as_deref().unwrap_or("http://127.0.0.1:9000");
        let text = match text.contains("://") {
            true => text.to_owned(),
            // An address to listen on everywhere is reached on this machine.
            false => format!("http://{}", text.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")),
        };
        let url =
            Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        url.with_context(|| format!("--ops {text:?} is no address such as http://127.0.0.1:9000"))
    }

    fn password(&self) -> Result<String, CallError> {
        let generated = || self.data.join(ops::PASSWORD_FILE);
        let file = self.password_file.clone().unwrap_or_else(generated);
        let hint = "; say where it is with --password-file or --data";
        ops::read_password(&file).map_err(|error| CallError::Password(format!("{error}{hint}")))
    }

    fn print<T: DeserializeOwned>(
        &self,
        answer: serde_json::Value,
        table: impl FnOnce(T) -> String,
    ) -> anyhow::Result<String> {
        if self.json {
            return Ok(format!("{}\n", serde_json::to_string_pretty(&answer)?));
        }
        Ok(table(parse(answer)?))
    }
}

fn parse<T: DeserializeOwned>(answer: serde_json::Value) -> Result<T, CallError> {
    serde_json::from_value(answer).map_err(|error| {
        CallError::Other(format!("the gateway's answer is not understood, is it another version? ({error})"))
    })
}

struct Gateway {
    client: Client,
    url: Url,
    password: String,
    by: Option<String>,
}

impl Gateway {
    fn new(reach: &Reach, by: Option<&str>) -> anyhow::Result<Gateway> {
        let url = reach.url()?;
        let local = url.host_str().is_some_and(|host| {
            let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        });
        if url.scheme() == "http" && !local {
            super::complain("warning: the password travels unencrypted; use https beyond this machine");
        }
        // Neither a proxy from the environment nor a redirect shall see the password.
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(15))
            .build()?;
        Ok(Gateway { client, url, password: reach.password()?, by: by.map(str::to_owned) })
    }

    async fn get(&self, path: &[&str], query: &[(&str, String)]) -> anyhow::Result<serde_json::Value> {
        let mut url = self.api(path)?;
        for (name, value) in query {
            url.query_pairs_mut().append_pair(name, value);
        }
        Ok(self.send(self.client.request(Method::GET, url)).await?)
    }

    async fn post(&self, path: &[&str], why: &str) -> anyhow::Result<serde_json::Value> {
        self.post_json(path, &serde_json::json!({ "why": why })).await
    }

    async fn post_json(&self, path: &[&str], body: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        let request = self.client.request(Method::POST, self.api(path)?);
        Ok(self.send(request.json(body)).await?)
    }

    fn api(&self, path: &[&str]) -> anyhow::Result<Url> {
        let mut url = self.url.clone();
        let mut segments =
            url.path_segments_mut().map_err(|()| anyhow::anyhow!("--ops is no base address"))?;
        segments.pop_if_empty().push("api").extend(path);
        drop(segments);
        Ok(url)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<serde_json::Value, CallError> {
        let mut request = request.bearer_auth(&self.password);
        // A header holds ASCII; a name beyond it is written as the bytes it has.
        if let Some(by) = self.by.as_deref().and_then(|by| http::HeaderValue::from_bytes(by.as_bytes()).ok())
        {
            request = request.header(ops::OPERATOR_HEADER, by);
        }
        let unreachable = |error: reqwest::Error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            CallError::Unreachable(self.url.to_string(), cause.to_string())
        };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(unreachable)?;
        let json = serde_json::from_slice::<serde_json::Value>(&body);
        if let (true, Ok(json)) = (status.is_success(), &json) {
            return Ok(json.clone());
        }
        let told = json.ok().and_then(|json| json["error"].as_str().map(visible));
        let why = told.unwrap_or_else(|| {
            format!("{} answers {status}; is it a gateway's operators' address?", self.url)
        });
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS => CallError::Password(why),
            StatusCode::NOT_FOUND => CallError::Unknown(why),
            _ => CallError::Other(why),
        })
    }
}

fn list(mut answer: Sessions) -> String {
    answer.sessions.sort_by(|a, b| {
        let evidence = |view: &SessionView| view.summary.assessment.bot_evidence;
        evidence(b).total_cmp(&evidence(a))
    });
    let mut rows = vec![
        ["SESSION", "STANDING", "EVIDENCE", "SCORE", "INPUT", "TELEMETRY", "RULES", "LAST SEEN"]
            .map(String::from),
    ];
    for view in &answer.sessions {
        let assessment = &view.summary.assessment;
        let decision = view.summary.decisions.first();
        rows.push([
            view.summary.identity.session.to_string(),
            standing(view, answer.now),
            if assessment.windows == 0 { "-".into() } else { format!("{:.1}", assessment.bot_evidence) },
            assessment.bot_score.map_or_else(|| "-".into(), |score| format!("{:.0} %", score * 100.0)),
            modality(assessment.modality).into(),
            telemetry(assessment.telemetry).into(),
            decision.map_or_else(
                || "-".into(),
                |d| format!("{} ({})", action(d.action, d.mode), visible(&d.rule)),
            ),
            ago(view.summary.last_seen, answer.now),
        ]);
    }
    let mut out = table(&rows);
    if answer.sessions.is_empty() {
        out = "no live sessions\n".into();
    } else if answer.more {
        out += &format!("… more than {}; raise --limit to see them\n", answer.sessions.len());
    }
    out
}

fn show(id: &str, detail: &SessionDetail) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| out += &format!("{name:<12} {value}\n");
    line("session", visible(id));
    if let Some(view) = &detail.session {
        let SessionView { summary, .. } = view;
        let assessment = &summary.assessment;
        line("standing", standing(view, detail.now));
        line(
            "person",
            summary.identity.subject.map_or_else(|| "not signed in".into(), |subject| subject.to_string()),
        );
        line("first seen", ago(summary.opened, detail.now));
        line("last seen", ago(summary.last_seen, detail.now));
        line("requests", summary.requests.to_string());
        let seen = format!(
            "{}, {} events in {:.0} s of activity; telemetry {}",
            modality(assessment.modality),
            assessment.evidence.events,
            assessment.evidence.seconds,
            telemetry(assessment.telemetry)
        );
        line("input", seen);
        match assessment.bot_score {
            Some(score) => {
                let evidence = assessment.bot_evidence;
                line(
                    "evidence",
                    format!(
                        "{evidence:.1} for a bot; latest of {} windows {:.0} %",
                        assessment.windows,
                        score * 100.0
                    ),
                );
            }
            None => line("evidence", "not judged".into()),
        }
        for reason in &assessment.reasons {
            let unit =
                if reason.unit.is_empty() { String::new() } else { format!(" {}", visible(&reason.unit)) };
            let mut usual = format!(
                "here {}{unit}, usual {} to {}{unit}",
                reason.value, reason.usual_low, reason.usual_high
            );
            if let Some(PersonRange { low, high, sessions }) = reason.person {
                usual += &format!(", for this person {low} to {high}{unit} in {sessions} sessions");
            }
            line("  because", format!("{} ({usual})", visible(&reason.text)));
        }
        for decision in &summary.decisions {
            let said = format!(
                "{} {}: {}",
                visible(&decision.rule),
                action(decision.action, decision.mode),
                visible(&decision.reason)
            );
            line("rule", format!("{said} ({})", ago(decision.at, detail.now)));
        }
    } else {
        line("standing", "no longer live".into());
    }
    for row in &detail.incidents {
        let incident = &row.incident;
        let what = action(incident.action, incident.mode);
        line(
            "incident",
            format!(
                "{} {what} by {}: {} ({})",
                visible(&incident.id),
                visible(&incident.by),
                visible(&incident.reason),
                ago(incident.at, detail.now)
            ),
        );
        for step in row.steps.iter().filter(|step| step.state != StepState::Done) {
            line("", format!("{} is outstanding: {}", visible(&step.name), visible(&step.outcome)));
        }
        if let Some(pardon) = &row.pardoned {
            line("", format!("pardoned by {}: {}", visible(&pardon.who), visible(&pardon.why)));
        }
    }
    out
}

fn standing(view: &SessionView, now: Timestamp) -> String {
    if view.refused.is_some() {
        return "logged out".into();
    }
    if view.summary.pardoned_until.is_some_and(|until| until > now) {
        return "pardoned".into();
    }
    match &view.summary.standing {
        Standing::Allow => "allowed".into(),
        Standing::Tag { .. } => "tagged".into(),
        Standing::Throttle { requests_per_minute, .. } => format!("at most {requests_per_minute}/min"),
        Standing::Challenge => "asked for a check".into(),
        Standing::StepUp { .. } => "asked to sign in again".into(),
        Standing::Tarpit { .. } => "refused slowly".into(),
        Standing::Deny { .. } => "logged out".into(),
    }
}

/// What a rule did, or in shadow would have done.
fn action(action: Action, mode: Mode) -> &'static str {
    let (did, would) = match action {
        Action::Allow => ("let through", "would let through"),
        Action::Log => ("noted", "would note"),
        Action::Tag => ("tagged", "would tag"),
        Action::Throttle => ("slowed down", "would slow down"),
        Action::Challenge => ("asked for a check", "would ask for a check"),
        Action::StepUp => ("asked to sign in again", "would ask to sign in again"),
        Action::Logout => ("logged out", "would log out"),
        Action::LogoutEverywhere => ("logged out everywhere", "would log out everywhere"),
        Action::Deny => ("refused", "would refuse"),
        Action::Tarpit => ("refused slowly", "would refuse slowly"),
        Action::Pardon => ("pardoned", "would pardon"),
        Action::BudgetTrip => ("switched enforcement off", "spared the account"),
    };
    if mode == Mode::Shadow { would } else { did }
}

fn modality(modality: Modality) -> &'static str {
    match modality {
        Modality::None => "none",
        Modality::Mouse => "mouse",
        Modality::Touch => "touch",
        Modality::Keyboard => "keyboard",
        Modality::Mixed => "mixed",
    }
}

fn telemetry(telemetry: TelemetryState) -> &'static str {
    match telemetry {
        TelemetryState::Unexpected => "no page yet",
        TelemetryState::Missing => "none",
        TelemetryState::Gathering => "gathering",
        TelemetryState::Sufficient => "enough",
        TelemetryState::Damaged => "with gaps",
    }
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.since(at).as_secs();
    match seconds {
        0..=1 => "just now".into(),
        2..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Text from elsewhere on a terminal: control characters are shown, not obeyed.
fn visible(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::TestOps;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: SessionCommand,
    }

    /// What the command prints, or its exit code and message.
    async fn session(ops: &TestOps, line: &str) -> Result<String, (u8, String)> {
        let file = ops.password_file().display().to_string();
        let words = ["session"].into_iter().chain(line.split(' '));
        let reach = ["--ops", &ops.url(""), "--password-file", &file].map(str::to_owned);
        let line = Line::try_parse_from(words.map(str::to_owned).chain(reach)).unwrap();
        carry_out(line.command).await.map_err(|error| match error.downcast::<CallError>() {
            Ok(call) => (call.code(), call.to_string()),
            Err(error) => (1, error.to_string()),
        })
    }

    #[tokio::test]
    async fn sessions_are_listed_shown_revoked_and_pardoned() {
        let ops = TestOps::start().await;
        assert_eq!(session(&ops, "list").await.unwrap(), "no live sessions\n");
        let id = ops.visitor(1).await.session.to_string();
        let listed = session(&ops, "list").await.unwrap();
        let row = format!("{id}  allowed   -         -      none   gathering  -      just now");
        assert_eq!(listed.lines().nth(1), Some(row.as_str()), "{listed}");

        let acted = session(&ops, &format!("revoke {id} --why shared --by Ada")).await.unwrap();
        let incident = acted.trim_end().rsplit(' ').next().unwrap().to_owned();
        assert_eq!(acted, format!("{id} is logged out; incident {incident}\n"));
        let shown = session(&ops, &format!("show {incident}")).await.unwrap();
        assert!(shown.contains(&format!("session      {id}\nstanding     logged out\n")), "{shown}");
        assert!(shown.contains(&format!("{incident} logged out by Ada: shared")), "{shown}");

        let acted = session(&ops, &format!("pardon {incident} --why called --by Ada")).await.unwrap();
        assert!(acted.starts_with(&format!("{id} is pardoned; incident ")), "{acted}");
        assert!(session(&ops, &format!("show {id}")).await.unwrap().contains("standing     pardoned\n"));
        let json = session(&ops, "list --json").await.unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["sessions"][0]["identity"]["session"], id);
    }

    #[tokio::test]
    async fn a_person_is_forgotten_and_one_must_be_named() {
        let ops = TestOps::start().await;
        let (code, why) = session(&ops, "forget --user alice --why asked --by Ada").await.unwrap_err();
        assert!(code == 1 && why.contains("Say the issuer too"), "no issuer is configured: {why}");
        let nothing = "no profile was found; if somebody of this name logs in at an issuer that the gateway's settings \
                       do not name (any more), say --issuer\n";
        let line = "forget --user alice --issuer https://login --why asked --by Ada";
        assert_eq!(session(&ops, line).await.unwrap(), nothing);
        let subject = format!("u_{}", "0".repeat(32));
        let line = format!("forget --subject {subject} --why asked");
        assert_eq!(session(&ops, &line).await.unwrap(), nothing);
        let (code, why) = session(&ops, "forget --subject alice --why asked").await.unwrap_err();
        assert!(code == 1 && why.contains("u_ followed by 32"), "{why}");
        for wrong in ["--why x", "--why x --issuer i", "--why x --user a --subject b", "--user a"] {
            let words = ["session", "forget"].into_iter().chain(wrong.split(' '));
            assert!(Line::try_parse_from(words).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn each_failure_has_its_exit_code() {
        let ops = TestOps::start().await;
        let unknown = format!("show s_{}", "0".repeat(32));
        assert_eq!(session(&ops, &unknown).await.unwrap_err().0, 5);
        assert_eq!(session(&ops, "pardon NONE --why x").await.unwrap_err().0, 5);
        assert_eq!(session(&ops, "pardon ../status --why x").await.unwrap_err().0, 5);
        std::fs::write(ops.password_file(), "another password").unwrap();
        assert_eq!(session(&ops, "list").await.unwrap_err(), (4, "The password is wrong.".into()));
        std::fs::remove_file(ops.password_file()).unwrap();
        let (code, why) = session(&ops, "list").await.unwrap_err();
        assert_eq!(code, 4);
        assert!(why.contains("cannot be read") && why.contains("--password-file"), "{why}");
    }

    #[tokio::test]
    async fn a_gateway_that_is_not_there_is_named() {
        let ops = TestOps::start().await;
        // A port nobody listens on: bound and let go.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = ops.password_file().display().to_string();
        let reach = Reach {
            ops: Some(free.to_string()),
            data: "data".into(),
            password_file: Some(file.into()),
            json: false,
        };
        let error = carry_out(SessionCommand::List { limit: 1, reach }).await.unwrap_err();
        let call = error.downcast::<CallError>().unwrap();
        assert_eq!(call.code(), 3);
        assert!(
            call.to_string().starts_with(&format!("the gateway cannot be reached at http://{free}/: ")),
            "{call}"
        );
    }

    #[test]
    fn text_from_elsewhere_cannot_drive_the_terminal() {
        assert_eq!(visible("a\x1b[2Jb\r\nc\u{9b}d"), "a\\u{1b}[2Jb\\r\\nc\\u{9b}d");
    }

    #[test]
    fn an_address_to_listen_on_is_an_address_to_call() {
        for (ops, url) in [
            ("127.0.0.1:9000", "http://127.0.0.1:9000/"),
            ("0.0.0.0:9001", "http://127.0.0.1:9001/"),
            ("[::]:9001", "http://[::1]:9001/"),
            ("https://ops.example.com/gaitway", "https://ops.example.com/gaitway"),
        ] {
            let reach = Reach { ops: Some(ops.into()), data: "d".into(), password_file: None, json: false };
            assert_eq!(reach.url().unwrap().as_str(), url);
        }
        let reach = Reach { ops: Some("ftp://x".into()), data: "d".into(), password_file: None, json: false };
        assert!(reach.url().is_err());
    }
}
