//! Writes down what passes: facts as they change, for back-tests, and telemetry as it came, for learning.
//!
//! Shards hand copies over and never wait; a thread of its own writes. Whatever goes wrong here costs
//! recordings, never traffic. Written are pseudonyms, facts and the timing of input: no addresses, no
//! paths, nothing typed. Must not know: how anything is judged, what recordings are used for.

mod folder;
mod writer;

pub use folder::FolderError;

use crate::config;
use folder::Folder;
use gaitway_models::{Batch, Timestamp};
use gaitway_policies::facts::Facts;
use gaitway_policies::{Engine, Identity, Input, SessionId};
use metrics::counter;
use std::collections::HashMap;
use std::mem::size_of;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use writer::Writer;

/// Copies that wait to be written, in bytes: a few seconds of ten thousand busy sessions.
const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Every copy counts for this much at least, its box and its strings included.
const NOTE_BYTES_MIN: usize = 512;
/// Room for all copies that fit by bytes, and for as many words that must not be lost: a session has
/// ended, a person is known.
const QUEUE_MAX: usize = 2 * QUEUE_BYTES_MAX / NOTE_BYTES_MIN;
/// Facts that only requests change are written this often at most.
const REQUESTS_EVERY: Duration = Duration::from_secs(1);

/// The handle: takes copies, samples, sheds when the writer is behind.
pub struct Recorder {
    sender: SyncSender<Note>,
    queued_bytes: Arc<AtomicUsize>,
    share: f64,
    routes: Vec<String>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What an operator says of a session, for whoever learns from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    Human,
}

impl Label {
    pub fn word(self) -> &'static str {
        match self {
            Label::Human => "human",
        }
    }
}

/// What the writer is told.
enum Note {
    Seen(Box<Seen>),
    Closed(SessionId),
    Label(SessionId, Label),
    End,
}

/// A session after one input.
struct Seen {
    at: Timestamp,
    identity: Identity,
    opened: Timestamp,
    facts: Facts,
    navigations_without_input: u64,
    batch: Option<Batch>,
}

impl Seen {
    /// Memory, roughly; the same at both ends of the queue.
    fn bytes(&self) -> usize {
        let events = self.batch.as_ref().map_or(0, |batch| batch.events.len());
        NOTE_BYTES_MIN + size_of::<Seen>() + events * size_of::<gaitway_models::event::Event>()
    }
}

impl Recorder {
    /// Opens the folder and starts the writer; `None` if nothing is to be recorded.
    ///
    /// # Errors
    /// A folder that cannot be used, or that another gateway records into.
    pub fn start(config: &config::Recording) -> Result<Option<Arc<Recorder>>, FolderError> {
        let Some(directory) = &config.directory else { return Ok(None) };
        let folder = Folder::open(directory, config, crate::clock::now())?;
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let writer = Writer::new(folder);
        let waiting = queued_bytes.clone();
        let thread = std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || writer.run(&receiver, &waiting))
            .map_err(|error| FolderError::new("start the writer of", directory, error))?;
        Ok(Some(Arc::new(Recorder {
            sender,
            queued_bytes,
            share: config.share,
            routes: config.routes.clone(),
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// What a shard hands copies over with.
    pub fn tap(self: &Arc<Recorder>) -> Tap {
        Tap { recorder: self.clone(), told: HashMap::new() }
    }

    /// Keeps what an operator knows of a session, recorded now or earlier.
    pub fn label(&self, session: SessionId, label: Label) {
        if self.samples(&session) {
            self.send(Note::Label(session, label));
        }
    }

    /// Writes what is left and closes all recordings. Blocks until that is done.
    pub fn finish(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A writer that is gone has nothing left to write.
            let _ = self.sender.send(Note::End);
            let _ = thread.join();
        }
    }

    /// A session's id is a keyed hash: its last bytes are as good as a coin, and the same every time.
    fn samples(&self, session: &SessionId) -> bool {
        let [.., a, b, c, d] = session.0;
        f64::from(u32::from_be_bytes([a, b, c, d])) < self.share * 2f64.powi(32)
    }

    fn offer(&self, seen: Seen) {
        let bytes = seen.bytes();
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUE_BYTES_MAX {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            counter!("gaitway_recording_shed_total", "reason" => "busy").increment(1);
        } else if !self.send(Note::Seen(Box::new(seen))) {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn send(&self, note: Note) -> bool {
        match self.sender.try_send(note) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                counter!("gaitway_recording_shed_total", "reason" => "busy").increment(1);
                false
            }
        }
    }
}

/// One shard's end of the recorder.
pub struct Tap {
    recorder: Arc<Recorder>,
    /// When the facts of a session were handed over last; as many entries as the shard has sessions.
    told: HashMap<SessionId, Timestamp>,
}

/// What an input leaves to be recorded once the engine has dealt with it.
pub struct Copied {
    session: SessionId,
    batch: Option<Batch>,
}

impl Tap {
    /// Copies what is worth keeping of an input, before the engine takes it.
    pub fn copy(&self, now: Timestamp, input: &Input) -> Option<Copied> {
        match input {
            Input::Batch { identity, batch, .. } if self.recorder.samples(&identity.session) => {
                Some(Copied { session: identity.session, batch: Some(batch.clone()) })
            }
            Input::Request { identity, .. } if self.recorder.samples(&identity.session) => {
                let told = self.told.get(&identity.session);
                // A clock that was set back tells once more than needed.
                let due = told.is_none_or(|at| now < *at || now.since(*at) >= REQUESTS_EVERY);
                due.then_some(Copied { session: identity.session, batch: None })
            }
            Input::Peer { session, revoked: false, .. } => {
                // Every pardon, made here or on another replica, comes by as one: somebody vouches for a person.
                self.recorder.label(*session, Label::Human);
                None
            }
            _ => None,
        }
    }

    /// Hands the copy over with what the session looks like now.
    pub fn tell(&mut self, now: Timestamp, copied: Copied, engine: &Engine) {
        let Copied { session, batch } = copied;
        let (Some(facts), Some(watched), Some(identity)) =
            (engine.facts(&session), engine.watched(&session), engine.identity(&session))
        else {
            return;
        };
        let routes = &self.recorder.routes;
        if !routes.is_empty() && !routes.contains(&facts.route) {
            return;
        }
        self.told.insert(session, now);
        self.recorder.offer(Seen {
            at: now,
            identity: identity.clone(),
            opened: watched.opened(),
            facts: facts.clone(),
            navigations_without_input: u64::from(watched.flow().unprompted_run()),
            batch,
        });
    }

    /// The engine has closed the session.
    pub fn closed(&mut self, session: SessionId) {
        if self.told.remove(&session).is_some() {
            self.recorder.send(Note::Closed(session));
        }
    }
}
