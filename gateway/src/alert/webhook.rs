//! The webhook sink: one signed POST an incident, as Standard Webhooks (standardwebhooks.com) has it.
//!
//! Pseudonyms and scores only: no addresses, tokens or groups. Errors name neither the address nor
//! what the receiver answered beyond its status.

use super::{AlertError, AlertSink, letter};
use crate::clock;
use crate::config::{Webhook, reference};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gaitway_policies::Incident;
use gaitway_policies::engine::{Action, Mode};
use hmac::{Hmac, Mac};
use reqwest::{Client, StatusCode, redirect};
use serde_json::json;
use sha2::Sha256;
use std::time::Duration;

/// From connecting to the end of the answer. A receiver that needs longer should take it and work later.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A shorter secret can be guessed.
const SECRET_BYTES_MIN: usize = 24;

pub struct WebhookSink {
    client: Client,
    url: reqwest::Url,
    key: Hmac<Sha256>,
    ops_url: Option<String>,
    shadow: bool,
}

impl WebhookSink {
    /// Checks every setting; opens no connection.
    pub fn new(webhook: &Webhook, ops_url: Option<&str>) -> Result<WebhookSink, AlertError> {
        let url = reqwest::Url::parse(&webhook.url)
            .map_err(|error| AlertError::Permanent(format!("alerts.webhook.url: {error}")))?;
        let secret = reference::resolve(&webhook.secret)
            .map_err(|error| AlertError::Permanent(format!("alerts.webhook.secret: {error}")))?;
        let secret = secret_bytes(&secret)?;
        let refused = |error: String| AlertError::Permanent(format!("alerts.webhook: {error}"));
        let mut client = Client::builder()
            .timeout(TIMEOUT)
            // A redirect would let an answer choose who is told.
            .redirect(redirect::Policy::none())
            .user_agent(concat!("gaitway/", env!("CARGO_PKG_VERSION")));
        if let Some(ca) = &webhook.ca {
            let pem = std::fs::read(ca).map_err(|error| refused(format!("ca: {error}")))?;
            let authority = reqwest::Certificate::from_pem(&pem)
                .map_err(|_| refused("ca is no PEM certificate".into()))?;
            client = client.tls_certs_only([authority]);
        }
        Ok(WebhookSink {
            client: client.build().map_err(|error| refused(error.to_string()))?,
            url,
            key: Hmac::new_from_slice(&secret).map_err(|error| refused(error.to_string()))?,
            ops_url: ops_url.map(str::to_owned),
            shadow: webhook.shadow,
        })
    }

    /// `v1,` and the signature of id, time and body.
    fn signature(&self, id: &str, seconds: u64, body: &str) -> String {
        let mut mac = self.key.clone();
        mac.update(format!("{id}.{seconds}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

#[async_trait]
impl AlertSink for WebhookSink {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn wants(&self, incident: &Incident) -> bool {
        incident.action == Action::BudgetTrip
            || incident.action.shuts_out() && (self.shadow || incident.mode == Mode::Enforce)
    }

    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError> {
        let body = body(incident, self.ops_url.as_deref());
        let seconds = clock::now().0 / 1_000;
        // The incident's own number, so that a repeated delivery can be told.
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &incident.id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", self.signature(&incident.id, seconds, &body))
            .body(body);
        let answer = request.send().await.map_err(|error| {
            let why = if error.is_timeout() { "no answer in time" } else { "cannot be reached" };
            AlertError::Temporary(format!("the webhook: {why}"))
        })?;
        let status = answer.status();
        let told = format!("the webhook answered {}", status.as_u16());
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(AlertError::Temporary(told)),
            status if status.is_server_error() => Err(AlertError::Temporary(told)),
            // Wrong credentials and the like are mended by hand, and then the alert is still wanted.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                Err(AlertError::Temporary(told))
            }
            _ => Err(AlertError::Permanent(told)),
        }
    }
}

fn body(incident: &Incident, ops_url: Option<&str>) -> String {
    let assessment = &incident.facts.assessment;
    let reasons: Vec<&str> = assessment.reasons.iter().take(5).map(|reason| reason.text.as_str()).collect();
    let link =
        ops_url.map(|ops| format!("{}/sessions/{}", ops.trim_end_matches('/'), incident.identity.session));
    json!({
        "type": "gaitway.incident",
        "timestamp": letter::time(incident.at),
        "data": {
            "id": incident.id,
            "headline": letter::headline(incident),
            "session": incident.identity.session,
            "subject": incident.identity.subject,
            "rule": incident.rule,
            "action": letter::action_name(incident.action),
            "mode": letter::mode_name(incident.mode),
            "by": incident.by,
            "reason": incident.reason,
            "reasons": reasons,
            "policy": incident.policy_version,
            "model": assessment.model,
            "bot_score": assessment.bot_score,
            "bot_evidence": assessment.bot_evidence,
            "until": letter::time(incident.until),
            "link": link,
        },
    })
    .to_string()
}

/// `whsec_` and base64, as the standard writes secrets, or the text's own bytes.
fn secret_bytes(text: &str) -> Result<Vec<u8>, AlertError> {
    let wrong = |why: &str| AlertError::Permanent(format!("alerts.webhook.secret: {why}"));
    let bytes = match text.strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| wrong("no base64 after whsec_"))?,
        None => text.as_bytes().to_vec(),
    };
    if bytes.len() < SECRET_BYTES_MIN {
        return Err(wrong(&format!("shorter than {SECRET_BYTES_MIN} bytes")));
    }
    Ok(bytes)
}
