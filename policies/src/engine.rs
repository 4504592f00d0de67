//! All sessions of one shard: the state machine from inputs to effects.

use crate::facts::Facts;
use crate::identity::{Identity, SessionId};
use crate::policy::PolicySet;
use gaitway_models::{Assessment, Batch, Detector, Timestamp, session::RequestSeen};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Most sessions a shard holds; past it the idlest is closed first.
    pub sessions_max: usize,
    /// A session without any input for this long is closed.
    pub session_idle_ms: u64,
    /// How long a pardon exempts a session from rules, in ms.
    pub pardon_ms: u64,
    /// How long a revocation lasts when the token does not say when it expires, in ms.
    pub revocation_ms: u64,
}

/// Everything that can happen to a shard.
#[derive(Clone, Debug)]
pub enum Input {
    /// A telemetry batch of one page view.
    Batch {
        identity: Identity,
        page: u64,
        batch: Batch,
    },
    /// One proxied request.
    Request {
        identity: Identity,
        request: RequestSeen,
        route: String,
        net_ip: String,
    },
    ChallengePassed {
        session: SessionId,
    },
    Operator {
        session: SessionId,
        action: OperatorAction,
        by: String,
        why: String,
    },
    /// Learnt from another replica through the revocation board.
    Peer {
        session: SessionId,
        revoked: bool,
        until: Timestamp,
    },
    /// Time passes; at least once a second.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorAction {
    Revoke,
    Pardon,
}

/// What the request path does with a session until told otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "standing")]
pub enum Standing {
    Allow,
    /// Header to the app.
    Tag {
        value: String,
    },
    /// Token bucket over the session's requests.
    Throttle {
        requests_per_minute: u32,
        burst: u32,
    },
    Challenge,
    /// Revoked: `incident` is the number shown to the person.
    Deny {
        incident: String,
    },
}

/// Everything a shard asks the world to do.
#[derive(Clone, Debug)]
pub enum Effect {
    Stand {
        session: SessionId,
        standing: Standing,
        until: Timestamp,
    },
    Incident(Box<Incident>),
    /// The session is gone; drop what is kept for it.
    Forget {
        session: SessionId,
    },
}

/// A decision that must be recorded, carried out and told. Arrives complete at the outbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Short, readable, unique: shown to the person and to operators.
    pub id: String,
    pub at: Timestamp,
    pub identity: Identity,
    pub rule: String,
    pub action: Action,
    pub mode: Mode,
    /// Who decided: "policy" or an operator's name.
    pub by: String,
    /// One plain sentence.
    pub reason: String,
    pub policy_version: String,
    pub facts: Facts,
    /// Until when a revocation or pardon holds.
    pub until: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Allow,
    Log,
    Tag,
    Throttle,
    Challenge,
    StepUp,
    Logout,
    LogoutEverywhere,
    Deny,
    Pardon,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Shadow,
    Enforce,
}

/// What operators see of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionSummary {
    pub identity: Identity,
    pub opened: Timestamp,
    pub last_seen: Timestamp,
    pub requests: u64,
    pub batches: u64,
    pub assessment: Assessment,
    pub standing: Standing,
    pub pardoned_until: Option<Timestamp>,
    /// Rules that matched, enforced or not, newest first, at most eight.
    pub decisions: Vec<DecisionSeen>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionSeen {
    pub at: Timestamp,
    pub rule: String,
    pub action: Action,
    pub mode: Mode,
    pub reason: String,
}

pub struct Engine {}

impl Engine {
    pub fn new(
        _shard: u8,
        _limits: EngineLimits,
        _policies: Arc<PolicySet>,
        _detector: Arc<Detector>,
    ) -> Engine {
        todo!()
    }
    pub fn handle(&mut self, _effects: &mut Vec<Effect>, _now: Timestamp, _input: Input) {
        todo!()
    }
    pub fn reload(&mut self, _policies: Arc<PolicySet>) {
        todo!()
    }
    /// Summaries, most recently seen first, at most `limit`.
    pub fn sessions(&self, _limit: usize) -> Vec<SessionSummary> {
        todo!()
    }
    pub fn session(&self, _session: &SessionId) -> Option<SessionSummary> {
        todo!()
    }
}
