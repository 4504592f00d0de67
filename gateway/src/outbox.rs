//! Carries out incidents: record, revoke, alert. In that order; each step may be repeated safely.
//!
//! Invariant: nothing here decides. An incident arrives complete and only gains outcomes.
