//! Stories about the real binary in front of a real app: each test starts its own gateway, its own
//! app and whatever servers it needs on free ports, and ends them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what must hold by panicking"
)]

mod actions;
mod app;
mod commands;
mod connections;
mod decisions;
mod drift;
mod failover;
mod framing;
mod gateway;
mod introspection;
mod login;
#[path = "../outbox/postgres.rs"]
#[allow(dead_code, reason = "each of its two users needs a part of it")]
mod postgres;
mod profiles;
mod propagation;
mod proxying;
mod rates;
mod recording;
mod reload;
mod revocation;
mod routes;
mod servers;
mod signals;
mod telemetry;
mod tls;
