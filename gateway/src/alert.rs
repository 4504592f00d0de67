//! How operators, the app, and the provider where people log in, are told. A sink delivers one incident, or several at once; retry is the outbox's.
//!
//! Must not know: the store, revocations, what else happens to an incident.

mod app;
mod chosen;
pub mod letter;
mod log;
mod mail;
mod provider;
mod webhook;

pub use app::AppSink;
pub use chosen::Chosen;
pub use log::LogSink;
pub use mail::MailSink;
pub use provider::ProviderSink;
pub use webhook::WebhookSink;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use gaitway_models::Timestamp;
use gaitway_policies::{Incident, PolicySet};
use std::sync::Arc;

/// The sinks the configuration asks for, the log first. Errors name the setting that is wrong.
pub fn sinks(config: &crate::config::Alerts) -> Result<Vec<Arc<dyn AlertSink>>, AlertError> {
    let mut sinks: Vec<Arc<dyn AlertSink>> = vec![Arc::new(LogSink)];
    if let Some(mail) = &config.mail {
        sinks.push(Arc::new(MailSink::new(mail, config)?));
    }
    if let Some(webhook) = &config.webhook {
        sinks.push(Arc::new(WebhookSink::new(webhook, config.ops_url.as_deref())?));
    }
    Ok(sinks)
}

/// The same sinks, told what the policy in force chooses for them.
pub fn chosen(sinks: Vec<Arc<dyn AlertSink>>, policies: &Arc<ArcSwap<PolicySet>>) -> Vec<Arc<dyn AlertSink>> {
    let choose = |sink| Arc::new(Chosen::new(sink, policies.clone())) as Arc<dyn AlertSink>;
    sinks.into_iter().map(choose).collect()
}

/// Outcomes are kept in the store and shown to operators: no addresses, no secrets.
#[derive(Debug, thiserror::Error)]
pub enum AlertError {
    /// Worth another try later.
    #[error("{0}")]
    Temporary(String),
    /// Trying again cannot help.
    #[error("{0}")]
    Permanent(String),
}

/// A way to tell operators. Delivery is at least once: after a crash between delivering and marking
/// it delivered, the same incident comes again, and a sink marks it so that the receiver can tell.
#[async_trait]
pub trait AlertSink: Send + Sync {
    /// Step name in the outbox; stable.
    fn name(&self) -> &'static str;
    /// Whether this sink wants the incident at all (shadow decisions, actions). Asked once an incident.
    fn wants(&self, incident: &Incident) -> bool;
    /// Whether this process has what it needs to deliver it. What it cannot deliver is left, untouched, to
    /// other replicas or for later; so this must become true at some age, if only for `deliver` to say why not.
    fn is_ready(&self, _incident: &Incident, _now: Timestamp) -> bool {
        true
    }
    /// Delivers one incident. Returns within two minutes whatever the other side does: the outbox
    /// never cuts a delivery off, because half a delivery can be worse than none.
    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError>;
    /// Most deliveries in any hour; past it incidents wait and go out together. `None`: no limit.
    fn deliveries_per_hour_max(&self) -> Option<u32> {
        None
    }
    /// Delivers several incidents as one message, oldest first.
    async fn deliver_digest(&self, incidents: &[Incident]) -> Result<(), AlertError> {
        for incident in incidents {
            self.deliver(incident).await?;
        }
        Ok(())
    }
}
