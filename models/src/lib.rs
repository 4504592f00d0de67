//! What do we see? Telemetry in, assessments out.
//!
//! Pure: no sockets, files, clock, OS randomness, async or environment. Time and seeds are
//! arguments. Must not know: policies, sessions' identities, what happens after an assessment.

pub mod detector;
pub mod event;
pub mod session;
pub mod sim;
pub mod time;

pub use detector::{Assessment, Detector, Evidence, Modality, Reason, TelemetryState};
pub use event::{Batch, DecodeError};
pub use session::Session;
pub use time::Timestamp;
