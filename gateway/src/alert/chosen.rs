//! A sink that is told what the policy's `alerts` choose for it; where they do not name it, what it
//! wants by itself.
//!
//! Must not know: how the sink tells.

use super::{AlertError, AlertSink};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use gaitway_models::Timestamp;
use gaitway_policies::alert::Alert;
use gaitway_policies::engine::Action;
use gaitway_policies::{Incident, PolicySet};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Pairs of alert and rule whose cool-down is remembered: every pair of the largest policy.
const TOLD_MAX: usize = 8_192;

pub struct Chosen {
    sink: Arc<dyn AlertSink>,
    policies: Arc<ArcSwap<PolicySet>>,
    /// When each alert last told of a rule.
    told: Mutex<HashMap<(Arc<str>, String), Timestamp>>,
}

impl Chosen {
    pub fn new(sink: Arc<dyn AlertSink>, policies: Arc<ArcSwap<PolicySet>>) -> Chosen {
        Chosen { sink, policies, told: Mutex::default() }
    }

    /// Whether the alert's cool-down for this rule is over; begins a new one.
    fn is_news(&self, alert: &Alert, incident: &Incident) -> bool {
        if alert.cool_down_ms == 0 {
            return true;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Arc::clone(&alert.name), incident.rule.clone());
        let cooling = told.get(&key).is_some_and(|at| {
            // A clock that was set back must not silence anybody.
            *at <= incident.at && incident.at.since(*at) < Duration::from_millis(alert.cool_down_ms)
        });
        if !cooling {
            if told.len() >= TOLD_MAX {
                // Names of policies long gone; forgetting tells once too often, never too seldom.
                told.clear();
            }
            told.insert(key, incident.at);
        }
        !cooling
    }
}

#[async_trait]
impl AlertSink for Chosen {
    fn name(&self) -> &'static str {
        self.sink.name()
    }

    fn wants(&self, incident: &Incident) -> bool {
        // Whoever chose what to hear of did not mean to miss that the policy has stopped enforcing.
        if incident.action == Action::BudgetTrip {
            return self.sink.wants(incident);
        }
        let policies = self.policies.load();
        let mut named = false;
        let mut wanted = false;
        for alert in policies.alerts().iter().filter(|alert| alert.to.contains(&self.name())) {
            named = true;
            wanted |= alert.concerns(incident) && self.is_news(alert, incident);
        }
        if named { wanted } else { self.sink.wants(incident) }
    }

    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError> {
        self.sink.deliver(incident).await
    }

    fn deliveries_per_hour_max(&self) -> Option<u32> {
        self.sink.deliveries_per_hour_max()
    }

    async fn deliver_digest(&self, incidents: &[Incident]) -> Result<(), AlertError> {
        self.sink.deliver_digest(incidents).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::LogSink;
    use gaitway_policies::engine::Mode;
    use gaitway_policies::facts::Facts;
    use gaitway_policies::{Identity, SessionId};

    fn incident(rule: &str, action: Action, at: u64) -> Incident {
        Incident {
            id: "A".into(),
            at: Timestamp(at),
            identity: Identity {
                session: SessionId([1; 16]),
                subject: None,
                token: None,
                expires_at: None,
                issued_at: None,
                groups: Vec::new(),
            },
            rule: rule.into(),
            action,
            mode: Mode::Enforce,
            by: "policy".into(),
            reason: String::new(),
            policy_version: String::new(),
            facts: Facts::default(),
            until: Timestamp(at),
        }
    }

    fn policies(alerts: &str) -> PolicySet {
        let rules = "rules: [{name: a, when: bot.automation, action: log}, {name: b, when: bot.automation, action: challenge}]";
        PolicySet::parse("p", &format!("{rules}\n{alerts}")).unwrap()
    }

    #[test]
    fn the_policy_in_force_chooses_and_a_rule_is_told_once_a_cool_down() {
        let in_force = Arc::new(ArcSwap::from_pointee(policies("alerts: [{name: x, to: mail}]")));
        let sink = Chosen::new(Arc::new(LogSink), in_force.clone());
        assert!(sink.wants(&incident("a", Action::Log, 0)), "a sink that is not named wants what it wants");

        in_force.store(Arc::new(policies(
            "alerts: [{name: x, to: log, actions: [challenge], cool_down: 1m}, {name: y, to: log, rules: [a]}]",
        )));
        assert!(!sink.wants(&incident("a", Action::Log, 0)));
        assert!(sink.wants(&incident("a", Action::Logout, 0)), "the other row has no cool-down");
        assert!(sink.wants(&incident("a", Action::Logout, 1)));
        for (at, expected) in [(1_000, true), (60_000, false), (61_000, true), (500, true), (600, false)] {
            assert_eq!(sink.wants(&incident("b", Action::Challenge, at)), expected, "at {at} ms");
        }
    }
}
