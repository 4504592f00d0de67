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
/// Sessions of one shard whose end the writer has not been told, 16 bytes each. Of more, it hears at midnight.
const ENDED_MAX: usize = 65_536;
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
        Tap { recorder: self.clone(), told: HashMap::new(), ended: Vec::new() }
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
    /// Closed sessions that the writer has not been told of, for want of room in its queue.
    ended: Vec<SessionId>,
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
        self.tell_ended();
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
        if self.told.remove(&session).is_some() && self.ended.len() < ENDED_MAX {
            self.ended.push(session);
        }
        self.tell_ended();
    }

    fn tell_ended(&mut self) {
        while let Some(session) = self.ended.last()
            && self.recorder.sender.try_send(Note::Closed(*session)).is_ok()
        {
            self.ended.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::folder::Row;
    use super::*;
    use gaitway_models::dataset;
    use gaitway_policies::identity::SubjectId;
    use std::path::Path;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn folder(root: &Path) -> Folder {
        let config = config::Recording { free_bytes_min: 0, ..config::Recording::default() };
        Folder::open(root, &config, crate::clock::now()).unwrap()
    }

    fn seen(number: u8, at: Timestamp) -> Seen {
        let identity = Identity {
            session: SessionId([number; 16]),
            subject: Some(SubjectId([number; 16])),
            token: None,
            expires_at: None,
            issued_at: None,
            groups: Vec::new(),
        };
        let batch = Some(Batch { sent_at_us: 1_000, ..Batch::default() });
        Seen { at, identity, opened: at, facts: Facts::default(), navigations_without_input: 0, batch }
    }

    #[test]
    fn the_end_of_a_session_reaches_the_writer_however_full_its_queue_was() {
        let (sender, notes) = sync_channel(1);
        let recorder = Arc::new(Recorder {
            sender,
            queued_bytes: Arc::default(),
            share: 1.0,
            routes: Vec::new(),
            thread: Mutex::new(None),
        });
        let mut tap = recorder.tap();
        for number in 0..3 {
            tap.told.insert(SessionId([number; 16]), Timestamp(1));
        }
        assert!(recorder.send(Note::Label(SessionId([9; 16]), Label::Human)), "now the queue is full");
        for number in 0..3 {
            tap.closed(SessionId([number; 16]));
        }
        let mut ended = Vec::new();
        for _ in 0..4 {
            if let Note::Closed(session) = notes.try_recv().unwrap() {
                ended.push(session.0[0]);
            }
            // Whatever is closed next, here nothing of note, brings the rest along.
            tap.closed(SessionId([8; 16]));
        }
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 2]);
        assert!(tap.ended.is_empty() && notes.try_recv().is_err());
    }

    #[test]
    fn a_session_whose_end_nobody_told_is_forgotten_after_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder(directory.path()));
        let monday = crate::clock::now();
        for (number, days, open) in [(1, 0, 1), (2, 1, 2), (2, 2, 1), (2, 3, 1)] {
            writer.on_seen(seen(number, monday.plus(DAY * days))).unwrap();
            assert_eq!(writer.open(), open, "{days} days later");
        }
    }

    #[test]
    fn recordings_of_another_version_are_left_to_it_and_a_torn_end_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let now = crate::clock::now();
        let ours = Batch { sent_at_us: 1_000, ..Batch::default() }.encode();
        let row = |name: &str| Row { name: name.into(), day: folder::day(now), ..Row::default() };
        let begin = |folder: &mut Folder, name: &str, frames: &[&[u8]], torn: &[u8]| {
            let mut bytes = Vec::new();
            frames.iter().for_each(|frame| dataset::append_frame(&mut bytes, frame));
            bytes.extend_from_slice(torn);
            folder.append_frames(&row(name), true, &bytes).unwrap();
        };
        // Field 1 is the version of the wire format: 99.
        let theirs: &[u8] = &[8, 99, 1, 2, 3];
        let mut before = folder(directory.path());
        begin(&mut before, "s_whole-1", &[&ours, &ours], &[]);
        begin(&mut before, "s_torn-1", &[&ours], &[100, 1, 2]);
        begin(&mut before, "s_zeros-1", &[&ours], &[0; 64]);
        begin(&mut before, "s_newer-1", &[&ours, theirs, &ours], &[100, 1, 2]);
        drop(before);
        let read = |name: &str| std::fs::read(directory.path().join(row(name).file())).unwrap();
        let newer = read("s_newer-1");
        for _ in 0..2 {
            drop(folder(directory.path()));
            assert_eq!(read("s_newer-1"), newer, "not a byte is touched");
            for (name, batches) in [("s_whole-1", 2), ("s_torn-1", 1), ("s_zeros-1", 1)] {
                assert_eq!(dataset::parse_batches(&read(name)).unwrap().len(), batches, "{name}");
            }
            let index = std::fs::read_to_string(directory.path().join("index.csv")).unwrap();
            let names: Vec<_> = index.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
            assert_eq!(names, ["s_whole-1", "s_torn-1", "s_zeros-1"], "each once");
            let open = std::fs::read_to_string(directory.path().join("open.csv")).unwrap();
            assert_eq!(open.lines().skip(1).count(), 1, "still there for whoever can read it");
        }
    }
}
