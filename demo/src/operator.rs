//! The operator's view: what the gateway's own API says about sessions and incidents.
//!
//! A client like any other, with the ops password. Must not know: who of the visitors is a bot.

use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::time::Duration;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Operator {
    http: reqwest::Client,
    address: SocketAddr,
    password: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Session {
    pub identity: Identity,
    pub assessment: Assessment,
    pub standing: Standing,
    pub requests: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Identity {
    pub session: String,
    pub groups: Vec<String>,
}

impl Identity {
    /// The shop names its customer in a group, which is all the demo needs to tell sessions apart.
    pub fn user(&self) -> Option<&str> {
        self.groups.iter().find_map(|group| group.strip_prefix("customer:"))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Assessment {
    pub bot_score: Option<f32>,
    pub bot_evidence: f32,
    pub evidence: Evidence,
    pub telemetry: String,
    pub reasons: Vec<Reason>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Evidence {
    pub seconds: f32,
    pub events: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reason {
    pub text: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Standing {
    pub standing: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct IncidentRow {
    pub incident: Incident,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Incident {
    pub id: String,
    pub identity: Identity,
    pub action: String,
    pub mode: String,
    pub rule: String,
    pub reason: String,
}

impl Incident {
    /// The session was really ended.
    pub fn ends_the_session(&self) -> bool {
        self.mode == "enforce" && ["logout", "logout-everywhere", "deny"].contains(&self.action.as_str())
    }
}

impl Operator {
    pub fn new(address: SocketAddr, password: String) -> anyhow::Result<Operator> {
        let http = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).no_proxy().build()?;
        Ok(Operator { http, address, password })
    }

    pub async fn sessions(&self) -> anyhow::Result<Vec<Session>> {
        self.list("/api/sessions", "sessions").await
    }

    pub async fn incidents(&self) -> anyhow::Result<Vec<Incident>> {
        let rows: Vec<IncidentRow> = self.list("/api/incidents", "incidents").await?;
        Ok(rows.into_iter().map(|row| row.incident).collect())
    }

    async fn list<T: DeserializeOwned>(&self, path: &str, field: &str) -> anyhow::Result<Vec<T>> {
        let request = self.http.get(format!("http://{}{path}", self.address)).bearer_auth(&self.password);
        let answer = request.send().await.with_context(|| path.to_string())?.error_for_status()?;
        let mut body: serde_json::Value = answer.json().await.with_context(|| path.to_string())?;
        let rows = if body.is_array() { body } else { body[field].take() };
        serde_json::from_value(rows).with_context(|| format!("{path} answered in an unknown form"))
    }
}
