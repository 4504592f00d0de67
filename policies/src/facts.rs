//! The fixed, typed set of facts a rule may name, with defaults.
//! One table gives name, type, doc and default; CEL variables and the docs page come from it.

use gaitway_models::Assessment;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub assessment: Assessment,
    /// Seconds since the session opened.
    pub session_age_seconds: f64,
    /// Requests in the last minute.
    pub requests_per_minute: f64,
    /// Name of the policy route the request matched, "" before any request.
    pub route: String,
    pub user_groups: Vec<String>,
    /// Client address of the latest request, text form; used by rules, never logged.
    #[serde(skip)]
    pub net_ip: String,
    /// The session passed a challenge within the policy's pass time.
    pub challenge_passed: bool,
}
