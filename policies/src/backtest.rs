//! Replays recorded sessions through the very engine that runs live, and says who would be shut out.
//!
//! A rule in shadow counts as "would have": the question is what a policy does once it enforces, and
//! what its own budget would say to that. Must not know: files, terminals, markup (see `report`).

use crate::budget::Cap;
use crate::engine::{Action, Effect, Engine, EngineLimits, Input, Mode};
use crate::identity::{SessionId, SubjectId};
use crate::policy::PolicySet;
use crate::record::{Recorded, Recording, SESSIONS_MAX};
use gaitway_models::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Sessions of a replay stay as long as those of a gateway with its usual settings.
const IDLE_MS: u64 = 30 * 60_000;
const TICK_MS: u64 = 1_000;

/// One policy over one recording.
pub struct Replay {
    engine: Engine,
    effects: Vec<Effect>,
    ticked: Timestamp,
    outcome: Outcome,
}

/// What a policy did to a recording.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    pub policy_version: String,
    pub sessions: usize,
    pub users: usize,
    /// Minutes from each session's first line to its last, summed.
    pub session_minutes: f64,
    /// Sessions shut out, or that would have been.
    pub out: BTreeMap<SessionId, Verdict>,
    /// How many sessions each rule spoke about, and of how many users.
    pub rules: BTreeMap<String, Tally>,
    /// When a cap of the budget was reached.
    pub trips: Vec<Trip>,
}

/// The first decision that shuts a session out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub user: Option<SubjectId>,
    pub rule: String,
    pub action: Action,
    pub mode: Mode,
    pub at: Timestamp,
    /// Seconds since the session's first line.
    pub second: f64,
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    pub action: Option<Action>,
    pub sessions: BTreeSet<SessionId>,
    pub enforced: usize,
    pub shadow: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trip {
    pub at: Timestamp,
    pub cap: Cap,
    pub allowed: u32,
    pub rule: String,
    /// The one account spared; none: the whole policy dropped to shadow.
    pub account: Option<SubjectId>,
}

/// How a new policy differs from the one that runs, session by session.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Shut out by the new policy only.
    pub newly: Vec<SessionId>,
    /// Shut out by the old policy only.
    pub spared: Vec<SessionId>,
    /// By both, but at another second, by another rule or action, or only one of them enforced.
    pub moved: Vec<SessionId>,
    /// By both, in the same way.
    pub same: usize,
}

impl Replay {
    pub fn new(policies: Arc<PolicySet>) -> Replay {
        let limits = EngineLimits {
            sessions_max: SESSIONS_MAX,
            session_idle_ms: IDLE_MS,
            pardon_ms: 0,
            revocation_ms: 24 * 3_600_000,
        };
        let outcome = Outcome { policy_version: policies.version().to_owned(), ..Outcome::default() };
        Replay {
            engine: Engine::replaying(0, limits, policies),
            effects: Vec::new(),
            ticked: Timestamp(0),
            outcome,
        }
    }

    /// Takes one line; lines come in the order of time.
    pub fn observe(&mut self, recorded: &Recorded) {
        let now = recorded.last;
        if now.0.saturating_sub(self.ticked.0) >= TICK_MS {
            self.ticked = now;
            self.engine.handle(&mut self.effects, now, Input::Tick);
            // Standings that end and sessions that close change no verdict.
            self.effects.clear();
        }
        let facts = Box::new(recorded.facts.clone());
        let input = Input::Observed { identity: recorded.identity.clone(), facts };
        self.engine.handle(&mut self.effects, now, input);
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Incident(incident) => {
                    let session = incident.identity.session;
                    let tally = self.outcome.rules.entry(incident.rule.clone()).or_default();
                    tally.action = Some(incident.action);
                    tally.sessions.insert(session);
                    match incident.mode {
                        Mode::Enforce => tally.enforced += 1,
                        Mode::Shadow => tally.shadow += 1,
                    }
                    if incident.action.shuts_out() {
                        self.outcome.out.entry(session).or_insert_with(|| Verdict {
                            user: incident.identity.subject,
                            rule: incident.rule,
                            action: incident.action,
                            mode: incident.mode,
                            at: now,
                            second: now.since(recorded.first).as_secs_f64(),
                            reason: incident.reason,
                        });
                    }
                }
                Effect::BudgetTripped { at, cap, allowed, account, rule, .. } => {
                    self.outcome.trips.push(Trip { at, cap, allowed, rule, account });
                }
                Effect::Stand { .. }
                | Effect::Forget { .. }
                | Effect::Learnt { .. }
                | Effect::BudgetReset { .. } => {}
            }
        }
    }

    pub fn finish(mut self, recording: &Recording) -> Outcome {
        let sessions = recording.sessions();
        self.outcome.sessions = sessions.len();
        self.outcome.users =
            sessions.values().filter_map(|recorded| recorded.identity.subject).collect::<BTreeSet<_>>().len();
        self.outcome.session_minutes =
            sessions.values().map(|recorded| recorded.last.since(recorded.first).as_secs_f64() / 60.0).sum();
        self.outcome
    }
}

impl Verdict {
    fn how(&self) -> (Timestamp, &str, Action, Mode) {
        (self.at, &self.rule, self.action, self.mode)
    }
}

impl Outcome {
    /// Users among those shut out.
    pub fn users_out(&self) -> BTreeSet<SubjectId> {
        self.out.values().filter_map(|verdict| verdict.user).collect()
    }

    pub fn difference(&self, old: &Outcome) -> Difference {
        let mut difference = Difference::default();
        for (session, verdict) in &self.out {
            match old.out.get(session) {
                None => difference.newly.push(*session),
                Some(before) if before.how() != verdict.how() => difference.moved.push(*session),
                Some(_) => difference.same += 1,
            }
        }
        difference.spared =
            old.out.keys().filter(|session| !self.out.contains_key(session)).copied().collect();
        difference
    }
}

#[cfg(test)]
mod tests;
