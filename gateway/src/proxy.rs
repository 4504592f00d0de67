//! pingora phases, top to bottom; short calls only.

pub mod csp;
pub mod forward;
pub mod framing;
pub mod identity;
pub mod inject;
pub mod limits;
