//! Shared signals: security events told to and taken from identity providers (OpenID Shared Signals
//! Framework 1.0, CAEP 1.0), and the doors for both on the app's origin.
//!
//! Incidents go to the outbox as every decision does; nothing here ends a session by itself. Must not know:
//! the proxy in front of the doors, why a session ends.

pub mod receive;
mod set;
pub mod transmit;

use crate::edge;
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use receive::Receiver;
use std::net::IpAddr;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tokio::task::JoinSet;
use transmit::Transmitter;

/// The rule that incidents name which a transmitter's event made.
const RULE: &str = "signal";
/// Where the Shared Signals Framework has it: at the issuer's root, beside the app's own paths.
const DESCRIPTION: &str = "/.well-known/ssf-configuration";

/// One for the process, if signals are configured at all.
pub struct Signals {
    prefix: String,
    receiver: Option<Arc<Receiver>>,
    transmitter: Option<Arc<Transmitter>>,
}

/// A request to one of the doors. Nobody's session matters here: whoever comes is a program with a token of
/// its own, which is shown to nobody else.
pub struct Asked<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    pub from: IpAddr,
    pub body: Bytes,
}

impl Signals {
    pub fn new(
        prefix: &str,
        receiver: Option<Arc<Receiver>>,
        transmitter: Option<Arc<Transmitter>>,
    ) -> Arc<Signals> {
        Arc::new(Signals { prefix: format!("{prefix}/signals/"), receiver, transmitter })
    }

    /// Begins to fetch events, and sends verification events, whose receivers ask back at once: call it when
    /// the doors are open. The tasks end when what is returned is dropped.
    pub fn start(&self) -> [JoinSet<()>; 2] {
        let polls = self.receiver.as_ref().map(Receiver::start_polls).unwrap_or_default();
        let streams = self.transmitter.as_ref().map(Transmitter::start).unwrap_or_default();
        [polls, streams]
    }

    /// Whether a path is one of the doors.
    pub fn owns(&self, path: &str) -> bool {
        path.starts_with(&self.prefix) || path == DESCRIPTION && self.transmitter.is_some()
    }

    pub async fn answer(&self, asked: &Asked<'_>) -> Response<Bytes> {
        let is_get = matches!(*asked.method, Method::GET | Method::HEAD);
        let is_post = *asked.method == Method::POST;
        let door = asked.path.strip_prefix(&self.prefix).unwrap_or(asked.path);
        match (door, &self.transmitter, &self.receiver) {
            (DESCRIPTION, Some(transmitter), _) if is_get => transmitter.description(),
            ("jwks", Some(transmitter), _) if is_get => transmitter.jwks(),
            ("events", _, Some(receiver)) if is_post => receiver.take_push(asked).await,
            (door, Some(transmitter), _) if is_post && door.starts_with(POLL) => {
                transmitter.answer_poll(&door[POLL.len()..], asked).await
            }
            _ => edge::plain(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

/// Whether the request shows this bearer token.
fn shows_bearer(headers: &HeaderMap, bearer: &str) -> bool {
    let shown = headers.get(http::header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let (scheme, token) = shown.split_at(shown.len().min(BEARER.len()));
    scheme.eq_ignore_ascii_case(BEARER) && bool::from(token.ct_eq(bearer.as_bytes()))
}

const POLL: &str = "poll/";
const BEARER: &[u8] = b"Bearer ";
