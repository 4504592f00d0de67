//! From a session's summary to an assessment: scores, evidence, modality, reasons.

use crate::session::Session;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// The running model: forest, calibration, feature ranges.
#[derive(Debug)]
pub struct Detector {}

/// What is known about a session now. Scores are `None` until there is evidence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Assessment {
    /// Calibrated probability that the latest evidence window came from a bot, 0 to 1.
    pub bot_score: Option<f32>,
    /// Evidence accumulated over the session for "bot" (CUSUM of clipped log-likelihood ratios, nats).
    /// Never moved by missing telemetry. No single window moves it by more than 2.
    pub bot_evidence: f32,
    /// Windows assessed so far.
    pub windows: u32,
    pub evidence: Evidence,
    pub modality: Modality,
    pub telemetry: TelemetryState,
    /// The strongest features behind the latest score, strongest first, at most five.
    pub reasons: Vec<Reason>,
    /// False while the model has not learnt this site: shows, never logs out by itself.
    pub calibrated: bool,
    /// Hash of the model artefact, 16 hex digits.
    pub model: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Seconds of active input (gaps over 1 s do not count).
    pub seconds: f32,
    pub events: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    #[default]
    None,
    Mouse,
    Touch,
    Keyboard,
    Mixed,
}

/// Missing telemetry is its own state and never evidence of guilt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TelemetryState {
    /// No page with a collector was served yet.
    #[default]
    Unexpected,
    /// A page with a collector was served, nothing arrived (ad blocker, no script, …).
    Missing,
    /// Batches arrive, too few to judge.
    Gathering,
    /// Enough evidence to judge.
    Sufficient,
    /// Batches with sequence gaps, clock drift or duplicates.
    Damaged,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    pub feature: String,
    pub unit: String,
    pub value: f32,
    /// Range usual for people (5th to 95th percentile of the training people).
    pub usual_low: f32,
    pub usual_high: f32,
    /// Contribution to the score by path attribution, signed, in probability.
    pub contribution: f32,
    /// One plain sentence for operators.
    pub text: String,
}

impl Detector {
    /// Loads a model file's bytes; refuses a hash, version or feature-table mismatch with a plain message.
    pub fn load(_artifact: &[u8]) -> Result<Detector, String> {
        todo!()
    }
    /// Assesses a session after new evidence. Updates the session's evidence ledger once per completed window.
    pub fn assess(&self, _now: Timestamp, _session: &mut Session) -> Assessment {
        todo!()
    }
}
