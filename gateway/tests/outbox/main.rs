//! What happens to an incident after it was decided: recorded, revoked, told.
//!
//! Everything outside the gateway is real here: SQLite files, a PostgreSQL server, an SMTP server,
//! processes that are killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests state expectations")]

mod crash;
mod incidents;
mod log_line;
mod mail;
mod outbox;
#[allow(dead_code, reason = "each of its two users needs a part of it")]
mod postgres;
mod profiles;
mod smtp;
mod stand_ins;
mod store;
mod webhook;
