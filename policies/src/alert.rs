//! Who is told of which decisions: the policy's `alerts`.
//!
//! Must not know: how anybody is told, or whether it worked.

use crate::engine::{Action, Incident, Mode};
use std::sync::Arc;

/// Most rows of `alerts`.
pub const ALERTS_MAX: usize = 32;

/// Ways to tell somebody; where each leads is the gateway's configuration.
pub const SINKS: &[&str] = &["log", "mail", "webhook"];

/// One row of the policy's `alerts`.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    pub name: Arc<str>,
    /// Of [`SINKS`].
    pub to: Vec<&'static str>,
    /// Empty: those that shut out, pardons, and a used-up budget.
    pub actions: Vec<Action>,
    /// `None`: all of them, and what operators do.
    pub rules: Option<Vec<String>>,
    /// Also what a rule in shadow would have done.
    pub shadow: bool,
    /// How long nothing more is told of a rule that was told of, in ms; 0: everything is told.
    pub cool_down_ms: u64,
}

impl Alert {
    /// Whether this row asks for the incident to be told.
    pub fn concerns(&self, incident: &Incident) -> bool {
        let grave =
            |action: Action| action.shuts_out() || matches!(action, Action::Pardon | Action::BudgetTrip);
        let action = match self.actions.as_slice() {
            [] => grave(incident.action),
            actions => actions.contains(&incident.action),
        };
        let rule = self.rules.as_ref().is_none_or(|rules| rules.contains(&incident.rule));
        // A used-up budget is no decision that could have been in shadow.
        let happened = incident.mode == Mode::Enforce || incident.action == Action::BudgetTrip;
        action && rule && (self.shadow || happened)
    }
}
