//! People's profiles from one session to the next: read when a session begins to send, written once it
//! has ended well.
//!
//! Off the request path and bounded everywhere. Whatever fails here only means that a person is not
//! known: nobody is judged by it and the page flows. Profiles leave this process sealed under the
//! person's pseudonym, so that a store alone tells nothing and none can be put in another's place.
//! Must not know: how anybody is judged, what may be learnt.

use crate::clock;
use crate::config;
use crate::secret::InstallSecret;
use crate::store::{PROFILE_ROW_BYTES_MAX, ProfileRow, ProfileVersion, Store, StoreError};
use gaitway_models::Timestamp;
use gaitway_models::profile::{FORMAT_VERSION, PROFILE_BYTES_MAX, Profile, ProfileError};
use gaitway_policies::{Identity, Input, SessionId, SubjectId};
use metrics::counter;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Profiles asked for and not yet answered; a session more is asked for again at its next batch.
pub const LOADS_MAX: usize = 512;
/// Reads of the store at a time: incidents share its connections and come first.
const READS_MAX: usize = 2;
/// A person whose profile takes longer is not known for now.
const LOAD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a session goes on unknown before a load that failed is tried again.
pub const LOAD_RETRY: Duration = Duration::from_secs(60);
/// Lessons that wait to be written: 30 KB each as a rule, and four times that at most.
pub const LESSONS_MAX: usize = 256;
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A store may be away for about four minutes before the lesson at hand is lost.
const SAVE_ATTEMPTS_MAX: u32 = 12;
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// What sealing adds: a tag and a nonce.
const SEAL_BYTES: usize = 28;
const _: () = assert!(PROFILE_BYTES_MAX + SEAL_BYTES <= PROFILE_ROW_BYTES_MAX);

/// Reads, writes and forgets profiles, for all shards.
pub struct Profiles {
    store: Arc<dyn Store>,
    secret: Arc<InstallSecret>,
    retention: Duration,
    live_max: usize,
    waiting: Arc<Semaphore>,
    reads: Semaphore,
    lessons: mpsc::Sender<Lesson>,
    unwritten: Arc<AtomicUsize>,
    told_unreadable: AtomicBool,
}

/// What a session that ended well has taught.
struct Lesson {
    subject: SubjectId,
    profile: Box<Profile>,
    over: Option<ProfileVersion>,
}

/// What came of asking for a session's person.
pub struct Loaded {
    session: SessionId,
    subject: SubjectId,
    /// `None`: the store failed, or a newer version of Gaitway wrote it.
    found: Option<(Box<Profile>, Option<ProfileVersion>)>,
}

impl Profiles {
    /// Starts the writer on the current runtime.
    pub fn start(
        config: &config::Profiles,
        store: Arc<dyn Store>,
        secret: Arc<InstallSecret>,
    ) -> Arc<Profiles> {
        let (lessons, receiver) = mpsc::channel(LESSONS_MAX);
        let unwritten = Arc::new(AtomicUsize::new(0));
        let writer = Writer { store: store.clone(), secret: secret.clone(), unwritten: unwritten.clone() };
        tokio::spawn(writer.run(receiver));
        Arc::new(Profiles {
            store,
            secret,
            retention: config.retention(),
            live_max: config.live_max,
            waiting: Arc::new(Semaphore::new(LOADS_MAX)),
            reads: Semaphore::new(READS_MAX),
            lessons,
            unwritten,
            told_unreadable: AtomicBool::new(false),
        })
    }

    /// One of `shards` shards' end.
    pub fn register(self: &Arc<Self>, shards: usize) -> Register {
        let live_max = self.live_max.div_ceil(shards.max(1));
        Register { profiles: self.clone(), live_max, known: HashMap::new() }
    }

    /// Forgets a person in the store, so that no session anywhere writes them back; true if anything was
    /// known of them. Their live sessions still know them until the shards are told.
    pub async fn forget(&self, subject: SubjectId) -> Result<bool, StoreError> {
        let known = self.store.forget_profile(subject, clock::now()).await?;
        counter!("gaitway_profiles_forgotten_total").increment(u64::from(known));
        Ok(known)
    }

    /// Waits until every lesson handed over is written, as far as the store takes it in time.
    pub async fn drain(&self, deadline: Duration) {
        let drained = async {
            while self.unwritten() > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        if tokio::time::timeout(deadline, drained).await.is_err() {
            tracing::warn!(
                profile.lessons = self.unwritten(),
                "stopped before all that sessions taught was written"
            );
        }
    }

    /// Lessons handed over and not written yet.
    pub fn unwritten(&self) -> usize {
        self.unwritten.load(Ordering::Acquire)
    }

    async fn load(&self, session: SessionId, subject: SubjectId) -> Loaded {
        let read = async {
            let _place = self.reads.acquire().await.map_err(|error| error.to_string())?;
            self.store.profile(subject).await.map_err(|error| error.to_string())
        };
        let found = match tokio::time::timeout(LOAD_TIMEOUT, read).await {
            Ok(Ok(row)) => self.open(subject, row),
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed("no answer in time"),
        };
        Loaded { session, subject, found }
    }

    fn failed<T>(&self, error: &str) -> Option<T> {
        counter!("gaitway_profile_loads_total", "outcome" => "failed").increment(1);
        counter!("gaitway_store_errors_total").increment(1);
        tracing::debug!(error, "a person is not known for now: the store does not give their profile");
        None
    }

    fn open(
        &self,
        subject: SubjectId,
        row: Option<ProfileRow>,
    ) -> Option<(Box<Profile>, Option<ProfileVersion>)> {
        let version = row.as_ref().map(|row| row.version);
        let Some(sealed) = row.and_then(|row| row.bytes) else {
            counter!("gaitway_profile_loads_total", "outcome" => "missing").increment(1);
            return Some((Box::default(), version));
        };
        let opened = self.secret.unseal(&place(&subject), &sealed);
        let profile = match opened.as_deref().map(Profile::decode) {
            Some(Ok(profile)) => {
                counter!("gaitway_profile_loads_total", "outcome" => "loaded").increment(1);
                return Some((Box::new(profile), version));
            }
            // While replicas are updated one by one, the old must not write over what the new have learnt.
            Some(Err(ProfileError::Format(format))) if format > FORMAT_VERSION => {
                counter!("gaitway_profile_loads_total", "outcome" => "newer").increment(1);
                return None;
            }
            Some(Err(error)) => error.to_string(),
            None => "it was sealed with another secret, or for another person".into(),
        };
        counter!("gaitway_profile_loads_total", "outcome" => "unreadable").increment(1);
        if !self.told_unreadable.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                error = profile,
                "a profile cannot be read and its person is learnt anew; told once"
            );
        }
        Some((Box::default(), version))
    }

    fn learn(&self, lesson: Lesson) {
        self.unwritten.fetch_add(1, Ordering::AcqRel);
        if self.lessons.try_send(lesson).is_err() {
            self.unwritten.fetch_sub(1, Ordering::AcqRel);
            count_lesson("dropped");
        }
    }
}

fn place(subject: &SubjectId) -> [&[u8]; 2] {
    [b"profile", &subject.0]
}

fn count_lesson(outcome: &'static str) {
    counter!("gaitway_profile_lessons_total", "outcome" => outcome).increment(1);
}

struct Writer {
    store: Arc<dyn Store>,
    secret: Arc<InstallSecret>,
    unwritten: Arc<AtomicUsize>,
}

impl Writer {
    async fn run(self, mut lessons: mpsc::Receiver<Lesson>) {
        while let Some(lesson) = lessons.recv().await {
            count_lesson(self.save(lesson).await);
            self.unwritten.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// What became of it.
    async fn save(&self, lesson: Lesson) -> &'static str {
        let Lesson { subject, profile, over } = lesson;
        let Some(sealed) = self.secret.seal(&place(&subject), &profile.encode()) else { return "failed" };
        let mut wait = BACKOFF_FIRST;
        for attempt in 1..=SAVE_ATTEMPTS_MAX {
            let save = self.store.save_profile(subject, &sealed, over, clock::now());
            let error = match tokio::time::timeout(SAVE_TIMEOUT, save).await {
                Ok(Ok(true)) => return "saved",
                Ok(Ok(false)) => return "overtaken",
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".into(),
            };
            counter!("gaitway_store_errors_total").increment(1);
            if attempt == 1 {
                tracing::warn!(error, "what a session taught waits: the store does not take it");
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
        "failed"
    }
}

/// One shard's end: which of its sessions know their person.
pub struct Register {
    profiles: Arc<Profiles>,
    live_max: usize,
    known: HashMap<SessionId, Known>,
}

struct Known {
    subject: SubjectId,
    state: State,
}

enum State {
    Asked,
    Loaded { over: Option<ProfileVersion>, at: Timestamp },
    Failed { at: Timestamp },
    Forgotten,
}

impl Register {
    /// Telemetry of a session. Gives what is to be awaited elsewhere and handed to [`Register::take`],
    /// the first time a person is seen in it.
    pub fn see(
        &mut self,
        now: Timestamp,
        identity: &Identity,
    ) -> Option<impl Future<Output = Loaded> + use<>> {
        let (session, Some(subject)) = (identity.session, identity.subject) else { return None };
        match self.known.get(&session) {
            Some(Known { subject: known, state }) if *known == subject => match state {
                State::Failed { at } if now.since(*at) >= LOAD_RETRY => {}
                _ => return None,
            },
            Some(_) => {}
            None if self.known.len() >= self.live_max => {
                counter!("gaitway_profile_loads_total", "outcome" => "full").increment(1);
                return None;
            }
            None => {}
        }
        let profiles = self.profiles.clone();
        let Ok(place) = profiles.waiting.clone().try_acquire_owned() else {
            counter!("gaitway_profile_loads_total", "outcome" => "busy").increment(1);
            return None;
        };
        self.known.insert(session, Known { subject, state: State::Asked });
        Some(async move {
            let loaded = profiles.load(session, subject).await;
            drop(place);
            loaded
        })
    }

    /// Anything of a session. One that is somebody else's now, or nobody's, has lost its profile and is to ask
    /// anew when its person is back; who was forgotten in it stays so.
    pub fn seen_as(&mut self, identity: &Identity) {
        let Some(known) = self.known.get(&identity.session) else { return };
        if Some(known.subject) != identity.subject && !matches!(known.state, State::Forgotten) {
            self.known.remove(&identity.session);
        }
    }

    /// What the session is to be given, if it still waits for it.
    pub fn take(&mut self, now: Timestamp, loaded: Loaded) -> Option<Input> {
        let Loaded { session, subject, found } = loaded;
        let known = self.known.get_mut(&session)?;
        if known.subject != subject || !matches!(known.state, State::Asked) {
            return None;
        }
        let Some((profile, over)) = found else {
            known.state = State::Failed { at: now };
            return None;
        };
        known.state = State::Loaded { over, at: now };
        Some(Input::Profile { session, subject, profile })
    }

    /// The session ended well and has taught this.
    pub fn learnt(&mut self, now: Timestamp, session: SessionId, subject: SubjectId, profile: Box<Profile>) {
        match self.known.get(&session) {
            // Older, what is left of a person who was forgotten meanwhile may be gone from the store too.
            Some(Known { subject: known, state: State::Loaded { over, at } })
                if *known == subject && now.since(*at) < self.profiles.retention =>
            {
                self.profiles.learn(Lesson { subject, profile, over: *over });
            }
            _ => count_lesson("overtaken"),
        }
    }

    /// Sessions that knew the person and are to know them no longer.
    pub fn forget(&mut self, subject: SubjectId) -> Vec<SessionId> {
        let hit = self.known.iter_mut().filter(|(_, known)| known.subject == subject);
        hit.map(|(session, known)| {
            known.state = State::Forgotten;
            *session
        })
        .collect()
    }

    pub fn closed(&mut self, session: &SessionId) {
        self.known.remove(session);
    }
}
