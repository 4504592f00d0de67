//! What do we see? Telemetry in, assessments out.
//!
//! Pure: no sockets, files, clock, OS randomness, async or environment. Time and seeds are
//! arguments. Must not know: policies, sessions' identities, what happens after an assessment.

pub mod artifact;
pub mod dataset;
pub mod detector;
pub mod doubt;
pub mod drift;
pub mod evaluate;
pub mod event;
pub mod features;
pub mod flow;
pub mod forest;
pub mod habit;
pub mod hand;
pub mod isolation;
mod linear;
pub mod owner;
pub mod population;
pub mod profile;
pub mod replay;
pub mod sequential;
pub mod session;
pub mod sim;
pub mod stats;
pub mod summary;
pub mod time;
pub mod train;
pub mod typing;

pub use detector::{
    Assessment, Detector, Evidence, Modality, PersonRange, ProfileState, Reason, TelemetryState,
};
pub use event::{Batch, DecodeError};
pub use profile::Profile;
pub use session::Session;
pub use time::Timestamp;

/// The shipped cold-start model, which knows no site: it shows, and never logs anyone out by itself.
/// `gaitway train` makes it, from the sources its card names.
pub static DEFAULT_MODEL: &[u8] = include_bytes!("../artifacts/default.model");
