//! The one place that reads the wall clock.

use gaitway_models::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The moment this long ago.
pub fn ago(span: Duration) -> Timestamp {
    Timestamp(now().0.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
}
