//! From facts to a decision: which rules speak, and which one acts.
//!
//! Allow rules come first and always win. Of the enforced rules that match, the strictest acts, and
//! the first of the strictest if several tie; so the order of a file never turns a logout into a tag.
//! Rules in shadow and `log` rules speak beside it. Must not know: sessions, time, budgets.

use crate::engine::Mode;
use crate::facts::Facts;
use crate::policy::{Measure, PolicySet};

/// What a policy says about some facts; numbers are positions in [`PolicySet::rules`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The allow rule that ended the matter.
    pub allowed: Option<usize>,
    /// The enforced rule that acts.
    pub acts: Option<usize>,
    /// Rules that are only told: in shadow, or `log`.
    pub told: Vec<usize>,
}

impl Decision {
    pub fn is_silent(&self) -> bool {
        self.acts.is_none() && self.told.is_empty()
    }
}

/// Reads every rule that applies on the route over `facts`. A condition whose arithmetic fails does not hold.
pub fn decide(policies: &PolicySet, facts: &Facts) -> Decision {
    let mut decision = Decision::default();
    for (index, rule) in policies.rules().iter().enumerate() {
        if !policies.applies(index, &facts.route) || rule.condition.holds(facts) != Ok(true) {
            continue;
        }
        if rule.measure == Measure::Allow {
            return Decision { allowed: Some(index), ..Decision::default() };
        }
        // Whoever has just shown to be a person is not asked again.
        if rule.measure == Measure::Challenge && facts.challenge_passed {
            continue;
        }
        if rule.mode == Mode::Shadow || rule.measure == Measure::Log {
            decision.told.push(index);
            continue;
        }
        let strictest = |acting: usize| policies.rules()[acting].measure.action() >= rule.measure.action();
        if !decision.acts.is_some_and(strictest) {
            decision.acts = Some(index);
        }
    }
    decision
}
