//! Profiles between a shard and a store that may be slow, down, full or told to forget.

use crate::incidents::until;
use crate::stand_ins::Switch;
use gaitway::config;
use gaitway::profiles::{LESSONS_MAX, LOAD_RETRY, LOADS_MAX, Loaded, Profiles, Register};
use gaitway::secret::InstallSecret;
use gaitway::store::SqliteStore;
use gaitway_models::profile::FORMAT_VERSION;
use gaitway_models::{Profile, Timestamp};
use gaitway_policies::{Identity, Input, SessionId, SubjectId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;

const ALICE: SubjectId = SubjectId([1; 16]);
const BOB: SubjectId = SubjectId([2; 16]);
const LONG: Duration = Duration::from_secs(30);

fn now() -> Timestamp {
    gaitway::clock::now()
}

fn login(session: u16, subject: SubjectId) -> Identity {
    let [low, high] = session.to_le_bytes();
    let mut id = [0; 16];
    (id[0], id[1]) = (low, high);
    Identity {
        session: SessionId(id),
        subject: Some(subject),
        token: None,
        expires_at: None,
        issued_at: None,
        groups: Vec::new(),
    }
}

struct Place {
    _directory: TempDir,
    switch: Arc<Switch>,
    secret: Arc<InstallSecret>,
    profiles: Arc<Profiles>,
}

impl Place {
    /// `stops` names the call at which the store stops for ever.
    async fn new(config: config::Profiles, stops: &'static str) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.sqlite")).await.unwrap();
        let switch = Switch::watched(Arc::new(store), move |call| call == stops);
        let secret = Arc::new(InstallSecret::from_text(&[7; 32], "test").unwrap());
        let profiles = Profiles::start(&config, switch.clone(), secret.clone());
        Place { _directory: directory, switch, secret, profiles }
    }

    async fn usual() -> Place {
        Place::new(config::Profiles::default(), "").await
    }

    /// What is kept of a person, opened.
    async fn kept(&self, subject: SubjectId) -> Option<Profile> {
        let bytes = self.switch.store.profile(subject).await.unwrap()?.bytes?;
        let opened = self.secret.unseal(&[b"profile", &subject.0], &bytes).unwrap();
        Some(Profile::decode(&opened).unwrap())
    }
}

/// A session that sends and is given its person's profile.
async fn begin(register: &mut Register, identity: &Identity) -> Loaded {
    register.see(now(), identity).expect("asked for").await
}

/// The same, up to the session's having it.
async fn open(register: &mut Register, identity: &Identity) {
    let loaded = begin(register, identity).await;
    assert!(matches!(register.take(now(), loaded), Some(Input::Profile { .. })));
}

fn learn(register: &mut Register, identity: &Identity) {
    register.learnt(now(), identity.session, identity.subject.unwrap(), Box::default());
}

#[tokio::test]
async fn what_a_session_taught_is_kept_sealed_for_its_person_alone() {
    let place = Place::usual().await;
    let mut register = place.profiles.register(1);
    let alice = login(1, ALICE);
    open(&mut register, &alice).await;
    assert!(register.see(now(), &alice).is_none(), "asked for once a session");
    learn(&mut register, &alice);
    place.profiles.drain(LONG).await;
    assert_eq!(place.kept(ALICE).await, Some(Profile::default()));
    let sealed = place.switch.store.profile(ALICE).await.unwrap().unwrap().bytes.unwrap();
    let plain = Profile::default().encode();
    assert!(!sealed.windows(8).any(|part| part == &plain[..8]), "not readable as it lies there");
    assert_eq!(place.secret.unseal(&[b"profile", &BOB.0], &sealed), None, "nor worth anything as another's");
    // A session after it reads that and goes on from there.
    register.closed(&alice.session);
    open(&mut register, &alice).await;
    learn(&mut register, &alice);
    place.profiles.drain(LONG).await;
    assert_ne!(place.switch.store.profile(ALICE).await.unwrap().unwrap().bytes.unwrap(), sealed, "anew");
}

#[tokio::test]
async fn a_profile_that_cannot_be_read_is_replaced_by_what_is_learnt_anew() {
    let place = Place::usual().await;
    place.switch.store.save_profile(ALICE, b"of another secret", None, now()).await.unwrap();
    let mut register = place.profiles.register(1);
    open(&mut register, &login(1, ALICE)).await;
    learn(&mut register, &login(1, ALICE));
    place.profiles.drain(LONG).await;
    assert_eq!(place.kept(ALICE).await, Some(Profile::default()));
}

#[tokio::test]
async fn a_profile_of_a_newer_version_is_neither_used_nor_replaced() {
    let place = Place::usual().await;
    let mut newer = Profile::default().encode();
    let format = newer.get_mut(b"GAITWAYP".len()).unwrap();
    assert_eq!(*format, FORMAT_VERSION);
    *format += 1;
    let sealed = place.secret.seal(&[b"profile", &ALICE.0], &newer).unwrap();
    place.switch.store.save_profile(ALICE, &sealed, None, now()).await.unwrap();
    let mut register = place.profiles.register(1);
    let loaded = begin(&mut register, &login(1, ALICE)).await;
    assert!(register.take(now(), loaded).is_none());
    learn(&mut register, &login(1, ALICE));
    place.profiles.drain(LONG).await;
    assert_eq!(place.switch.store.profile(ALICE).await.unwrap().unwrap().bytes, Some(sealed));
}

#[tokio::test]
async fn visitors_without_a_login_have_no_profile() {
    let place = Place::usual().await;
    let mut register = place.profiles.register(1);
    let visitor = Identity { subject: None, ..login(1, ALICE) };
    assert!(register.see(now(), &visitor).is_none());
}

#[tokio::test]
async fn a_store_that_fails_leaves_a_session_unknown_until_it_is_asked_again() {
    let place = Place::usual().await;
    let mut register = place.profiles.register(1);
    let alice = login(1, ALICE);
    place.switch.is_down.store(true, Ordering::SeqCst);
    let loaded = begin(&mut register, &alice).await;
    assert!(register.take(now(), loaded).is_none());
    learn(&mut register, &alice);
    assert!(register.see(now(), &alice).is_none(), "not at every batch");
    place.switch.is_down.store(false, Ordering::SeqCst);
    place.profiles.drain(LONG).await;
    assert_eq!(place.kept(ALICE).await, None, "what was learnt from nothing known is not kept");
    let loaded = register.see(now().plus(LOAD_RETRY), &alice).expect("asked again").await;
    assert!(register.take(now(), loaded).is_some());
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_not_waited_for() {
    let place = Place::new(config::Profiles::default(), "before profile").await;
    let mut register = place.profiles.register(1);
    let loads: Vec<_> = (0..20).map(|n| register.see(now(), &login(n, ALICE)).unwrap()).collect();
    for loaded in futures_util::future::join_all(loads).await {
        assert!(register.take(now(), loaded).is_none());
    }
}

#[tokio::test]
async fn loads_and_live_profiles_are_limited() {
    let place = Place::usual().await;
    let mut register = place.profiles.register(1);
    let sessions = u16::try_from(LOADS_MAX).unwrap();
    let loads: Vec<_> = (0..sessions).map(|n| register.see(now(), &login(n, ALICE)).unwrap()).collect();
    assert!(register.see(now(), &login(sessions, ALICE)).is_none());
    drop(loads);
    assert!(register.see(now(), &login(sessions, ALICE)).is_some(), "there is room again");

    let two = config::Profiles { live_max: 2, ..config::Profiles::default() };
    let place = Place::new(two, "").await;
    let mut register = place.profiles.register(1);
    open(&mut register, &login(1, ALICE)).await;
    open(&mut register, &login(2, BOB)).await;
    assert!(register.see(now(), &login(3, BOB)).is_none());
    register.closed(&login(1, ALICE).session);
    open(&mut register, &login(3, BOB)).await;
}

#[tokio::test]
async fn lessons_wait_for_a_store_that_is_full_and_are_written_then() {
    let place = Place::usual().await;
    let mut register = place.profiles.register(1);
    open(&mut register, &login(1, ALICE)).await;
    place.switch.is_full.store(true, Ordering::SeqCst);
    learn(&mut register, &login(1, ALICE));
    place.profiles.drain(Duration::from_millis(50)).await;
    assert_eq!(place.kept(ALICE).await, None);
    place.switch.is_full.store(false, Ordering::SeqCst);
    until("the lesson is written", || async { place.kept(ALICE).await.is_some() }).await;
}

#[tokio::test]
async fn lessons_beyond_what_may_wait_are_dropped() {
    let place = Place::new(config::Profiles::default(), "before save").await;
    let mut register = place.profiles.register(1);
    open(&mut register, &login(1, ALICE)).await;
    for _ in 0..LESSONS_MAX + 50 {
        learn(&mut register, &login(1, ALICE));
    }
    // One may be in the writer's hands.
    assert!((LESSONS_MAX..=LESSONS_MAX + 1).contains(&place.profiles.unwritten()));
}

#[tokio::test]
async fn who_is_forgotten_stays_forgotten_whatever_live_sessions_teach() {
    let place = Place::usual().await;
    let (mut here, mut elsewhere) = (place.profiles.register(1), place.profiles.register(1));
    let (one, two, three) = (login(1, ALICE), login(2, ALICE), login(3, ALICE));
    open(&mut here, &one).await;
    open(&mut elsewhere, &two).await;
    learn(&mut here, &one);
    place.profiles.drain(LONG).await;
    let late = begin(&mut here, &three).await;
    assert!(place.profiles.forget(ALICE).await.unwrap());
    let mut told = here.forget(ALICE);
    told.sort_unstable();
    assert_eq!(told, [one.session, three.session]);
    assert!(here.take(now(), late).is_none(), "what was under way comes to nothing");
    learn(&mut here, &one);
    // A shard that nobody told, as on another replica.
    learn(&mut elsewhere, &two);
    place.profiles.drain(LONG).await;
    assert_eq!(place.kept(ALICE).await, None);
    here.closed(&one.session);
    open(&mut here, &one).await;
    learn(&mut here, &one);
    place.profiles.drain(LONG).await;
    assert!(place.kept(ALICE).await.is_some(), "a login after it begins anew");
}

#[tokio::test]
async fn a_person_who_is_back_in_a_session_is_asked_for_anew_unless_forgotten_in_it() {
    let place = Place::usual().await;
    let mut register = place.profiles.register(1);
    let alice = login(1, ALICE);
    let nobody = Identity { subject: None, ..alice.clone() };
    open(&mut register, &alice).await;
    register.seen_as(&alice);
    assert!(register.see(now(), &alice).is_none(), "she has it");
    for other in [&nobody, &login(1, BOB)] {
        register.seen_as(other);
        learn(&mut register, &alice);
        assert_eq!(place.profiles.unwritten(), 0, "she is not there");
        open(&mut register, &alice).await;
    }
    register.forget(ALICE);
    register.seen_as(&nobody);
    assert!(register.see(now(), &alice).is_none());
}

#[tokio::test]
async fn a_session_that_changes_hands_never_gets_or_teaches_anothers_profile() {
    let place = Place::usual().await;
    let mut register = place.profiles.register(1);
    let late = begin(&mut register, &login(1, ALICE)).await;
    let loaded = begin(&mut register, &login(1, BOB)).await;
    assert!(register.take(now(), late).is_none());
    assert!(register.take(now(), loaded).is_some());
    learn(&mut register, &login(1, ALICE));
    place.profiles.drain(LONG).await;
    assert_eq!((place.kept(ALICE).await, place.kept(BOB).await), (None, None));
}
