//! Telemetry WebSockets: admitted within limits, bound to one session and page, told at once when
//! their session ends.
//!
//! Bad input is counted and closes the socket; nothing a browser sends can panic it.

use crate::clock;
use crate::config::Limits;
use crate::shards::Shards;
use futures_util::{SinkExt, StreamExt};
use gaitway_models::event::BATCH_BYTES_MAX;
use gaitway_models::{Batch, Timestamp};
use gaitway_policies::{Identity, Input, SessionId};
use metrics::{counter, gauge};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

/// Bytes read from a socket at once. Idle sockets keep this much, busy ones rarely need more.
const READ_BUFFER_BYTES: usize = 1024;
/// Answers waiting for a peer that does not read; one that pings on without reading is dropped.
const WRITE_BUFFER_BYTES_MAX: usize = 4 * 1024;
/// A frame rate is judged over this long, so that a burst after a stall passes.
const RATE_WINDOW_SECONDS: f64 = 10.0;
/// Frame budgets kept at most; past it the ones of idle sessions are dropped.
const BUDGETS_MAX: usize = 100_000;
/// How long a told browser may take to leave before its socket is closed.
const LEAVE_GRACE: Duration = Duration::from_secs(5);

/// Close code: the session's telemetry is not wanted; the page stays silent.
const CLOSE_NOT_WANTED: u16 = 4403;

/// All open telemetry sockets.
pub struct Sockets {
    shards: Arc<Shards>,
    prefix: String,
    sockets_max: usize,
    per_session_max: usize,
    frames_per_second: f64,
    state: Mutex<State>,
    draining: tokio::sync::watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    open: HashMap<u64, Arc<Handle>>,
    per_session: HashMap<SessionId, u32>,
    budgets: HashMap<SessionId, Budget>,
}

struct Handle {
    identity: Arc<Identity>,
    /// The incident that ended the session.
    ended: Mutex<Option<String>>,
    wake: Notify,
}

impl Handle {
    fn end(&self, incident: String) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(incident);
        self.wake.notify_one();
    }
}

struct Budget {
    frames: f64,
    at: Timestamp,
}

/// The right to run one socket; gives its place back when dropped.
pub struct Ticket {
    sockets: Arc<Sockets>,
    id: u64,
    page: u64,
    handle: Arc<Handle>,
}

impl Sockets {
    pub fn new(limits: &Limits, shards: Arc<Shards>, prefix: String) -> Arc<Sockets> {
        Arc::new(Sockets {
            shards,
            prefix,
            sockets_max: limits.telemetry_sockets_max as usize,
            per_session_max: limits.telemetry_sockets_per_session_max as usize,
            frames_per_second: f64::from(limits.telemetry_frames_per_second_max),
            state: Mutex::default(),
            draining: tokio::sync::watch::Sender::new(false),
        })
    }

    /// Takes a place, or names the limit that is reached.
    pub fn admit(self: &Arc<Self>, identity: Arc<Identity>, page: u64) -> Result<Ticket, &'static str> {
        let mut state = self.state();
        if state.open.len() >= self.sockets_max {
            return Err("sockets_max");
        }
        let count = state.per_session.entry(identity.session).or_insert(0);
        if *count as usize >= self.per_session_max {
            return Err("sockets_per_session_max");
        }
        *count += 1;
        let id = state.next_id;
        state.next_id += 1;
        let handle = Arc::new(Handle { identity, ended: Mutex::default(), wake: Notify::new() });
        state.open.insert(id, handle.clone());
        gauge!("gaitway_telemetry_sockets").set(state.open.len() as f64);
        Ok(Ticket { sockets: self.clone(), id, page, handle })
    }

    /// Whether the session may send one more frame now.
    pub fn allow_frame(&self, session: SessionId, now: Timestamp) -> bool {
        let mut state = self.state();
        if state.budgets.len() >= BUDGETS_MAX && !state.budgets.contains_key(&session) {
            let State { budgets, per_session, .. } = &mut *state;
            budgets.retain(|session, _| per_session.contains_key(session));
            if budgets.len() >= BUDGETS_MAX {
                return false;
            }
        }
        let full = self.frames_per_second * RATE_WINDOW_SECONDS;
        let budget = state.budgets.entry(session).or_insert(Budget { frames: full, at: now });
        let refill = now.since(budget.at).as_secs_f64() * self.frames_per_second;
        budget.frames = (budget.frames + refill).min(full);
        budget.at = now;
        if budget.frames < 1.0 {
            return false;
        }
        budget.frames -= 1.0;
        true
    }

    /// Tells every socket whose identity `ends` names an incident for; returns how many.
    pub fn end(&self, ends: impl Fn(&Identity) -> Option<String>) -> usize {
        let state = self.state();
        let mut told = 0;
        for handle in state.open.values() {
            if let Some(incident) = ends(&handle.identity) {
                handle.end(incident);
                told += 1;
            }
        }
        told
    }

    pub fn open(&self) -> usize {
        self.state().open.len()
    }

    /// Closes every socket with "going away"; browsers reconnect to the next process.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.sockets.state();
        state.open.remove(&self.id);
        let session = self.handle.identity.session;
        if let Some(count) = state.per_session.get_mut(&session) {
            *count -= 1;
            if *count == 0 {
                state.per_session.remove(&session);
            }
        }
        gauge!("gaitway_telemetry_sockets").set(state.open.len() as f64);
    }
}

/// What a revoked page is told: go there.
pub fn go_message(prefix: &str, incident: &str) -> String {
    serde_json::json!({ "t": "go", "u": format!("{prefix}/bye?i={incident}") }).to_string()
}

impl Ticket {
    /// Makes the socket tell its page to leave as soon as it runs.
    pub fn end(&self, incident: String) {
        self.handle.end(incident);
    }

    /// Runs the socket to its end. The 101 response has been sent already.
    pub async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
            .max_message_size(Some(BATCH_BYTES_MAX))
            .max_frame_size(Some(BATCH_BYTES_MAX));
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        let mut draining = self.sockets.draining.subscribe();
        loop {
            tokio::select! {
                // In this order: nothing is read of a session that has ended.
                biased;
                () = self.handle.wake.notified() => return self.dismiss(socket).await,
                () = drained(&mut draining) => {
                    return close(&mut socket, CloseCode::Away).await;
                }
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(frame))) => {
                        if let Err((reason, code)) = self.on_frame(&frame) {
                            counter!("gaitway_telemetry_rejected_total", "reason" => reason).increment(1);
                            return close(&mut socket, code).await;
                        }
                    }
                    Some(Ok(Message::Text(_))) => {
                        counter!("gaitway_telemetry_rejected_total", "reason" => "text").increment(1);
                        return close(&mut socket, CloseCode::Unsupported).await;
                    }
                    // Pings are answered by the library as it is polled; they count as frames.
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                        if !self.sockets.allow_frame(self.handle.identity.session, clock::now()) {
                            counter!("gaitway_telemetry_rejected_total", "reason" => "rate").increment(1);
                            return close(&mut socket, CloseCode::Policy).await;
                        }
                    }
                    Some(Err(error)) => {
                        if matches!(error, tokio_tungstenite::tungstenite::Error::Capacity(_)) {
                            counter!("gaitway_telemetry_rejected_total", "reason" => "size").increment(1);
                            return close(&mut socket, CloseCode::Size).await;
                        }
                        return;
                    }
                    Some(Ok(Message::Close(_))) | None => return,
                },
            }
        }
    }

    fn on_frame(&self, frame: &[u8]) -> Result<(), (&'static str, CloseCode)> {
        let session = self.handle.identity.session;
        if !self.sockets.allow_frame(session, clock::now()) {
            return Err(("rate", CloseCode::Policy));
        }
        let batch = Batch::decode(frame).map_err(|_| ("decode", CloseCode::Invalid))?;
        counter!("gaitway_telemetry_batches_total", "door" => "socket").increment(1);
        let identity = Identity::clone(&self.handle.identity);
        self.sockets.shards.offer(&session, Input::Batch { identity, page: self.page, batch });
        Ok(())
    }

    /// The session ended: send the browser to the logout page, then close.
    async fn dismiss<S: AsyncRead + AsyncWrite + Unpin>(self, mut socket: WebSocketStream<S>) {
        let incident = self.handle.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        let message = go_message(&self.sockets.prefix, incident.as_deref().unwrap_or_default());
        let told = socket.send(Message::text(message)).await.is_ok();
        counter!("gaitway_browsers_dismissed_total").increment(1);
        if told {
            // The browser leaves by itself; telemetry it still sends is not read.
            let left = async { while let Some(Ok(_)) = socket.next().await {} };
            let _ = tokio::time::timeout(LEAVE_GRACE, left).await;
        }
        close(&mut socket, CloseCode::from(CLOSE_NOT_WANTED)).await;
    }
}

async fn close<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>, code: CloseCode) {
    let frame = CloseFrame { code, reason: "".into() };
    // A peer that does not take the close frame is dropped all the same.
    let _ = tokio::time::timeout(LEAVE_GRACE, socket.close(Some(frame))).await;
}

/// Resolves when the process begins to shut down.
async fn drained(draining: &mut tokio::sync::watch::Receiver<bool>) {
    // An error means the sender is gone, which is a shutdown too.
    let _ = draining.wait_for(|draining| *draining).await;
}
