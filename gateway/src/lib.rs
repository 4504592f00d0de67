//! Do it: all of Gaitway's contact with the world.
//!
//! Data moves one way: door → shard → effects → outbox. The request path only reads two in-memory
//! boards, `standing` and `revocation`.

pub mod alert;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod edge;
pub mod logging;
pub mod metrics;
pub mod ops;
pub mod outbox;
pub mod profiles;
pub mod proxy;
pub mod recorder;
pub mod revocation;
pub mod secret;
pub mod shards;
pub mod signals;
pub mod standing;
pub mod store;
pub mod vault;
