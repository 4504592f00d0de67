//! What a session teaches of its person, and when it must not: stories with simulated people, and a seeded
//! life in which sessions are given profiles, revoked, pardoned, asked and closed in any order.

use super::*;
use gaitway_models::artifact::Artifact;
use gaitway_models::hand;
use gaitway_models::population::Device;
use gaitway_models::sim::Visitor;
use gaitway_models::train::background::{Lesson, OwnerSession};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

const LIMITS: EngineLimits = EngineLimits {
    sessions_max: 4,
    session_idle_ms: 30 * 60_000,
    pardon_ms: 60 * 60_000,
    revocation_ms: 6 * 3_600_000,
};

/// A model that knows how 24 simulated people differ.
static DETECTOR: LazyLock<Arc<Detector>> = LazyLock::new(|| {
    let blocks = |seed| {
        let mut visitor = Visitor::person(seed);
        hand::blocks(&(0..110).flat_map(|_| visitor.next_batch(2.0).events).collect::<Vec<_>>())
    };
    let people: Vec<(String, Vec<hand::Hand>)> =
        (0..24).map(|seed| (format!("u{seed}"), blocks(seed))).collect();
    let sessions: Vec<OwnerSession> = people
        .iter()
        .map(|(user, blocks)| OwnerSession { user, device: Device::default(), blocks })
        .collect();
    let owners = Lesson::learn(&sessions, 1).unwrap().owners(0.05);
    let artifact =
        Artifact { owners: Some(owners), ..Artifact::decode(gaitway_models::DEFAULT_MODEL).unwrap() };
    Arc::new(Detector::load(&artifact.encode()).unwrap())
});

fn identity(n: u8, subject: Option<u8>) -> Identity {
    Identity {
        session: SessionId([n; 16]),
        subject: subject.map(|n| SubjectId([n; 16])),
        token: None,
        expires_at: None,
        issued_at: None,
        groups: Vec::new(),
    }
}

struct Story {
    engine: Engine,
    now: Timestamp,
    effects: Vec<Effect>,
}

impl Story {
    fn new() -> Story {
        let policies = Arc::new(PolicySet::parse("story", "mode: shadow\nrules: []\n").unwrap());
        let engine = Engine::new(0, LIMITS, policies, Arc::clone(&DETECTOR));
        Story { engine, now: Timestamp(1_800_000_000_000), effects: Vec::new() }
    }

    fn input(&mut self, input: Input) {
        self.engine.handle(&mut self.effects, self.now, input);
    }

    fn profile(&mut self, n: u8, profile: Profile) {
        let (session, subject) = (SessionId([n; 16]), SubjectId([n; 16]));
        self.input(Input::Profile { session, subject, profile: Box::new(profile) });
    }

    /// So many seconds of a visitor in session `n` of account `n`.
    fn moves(&mut self, n: u8, visitor: &mut Visitor, seconds: u64) {
        for _ in 0..seconds / 2 {
            self.now = self.now.plus(Duration::from_secs(2));
            let batch = visitor.next_batch(2.0);
            self.input(Input::Batch { identity: identity(n, Some(n)), page: 1, batch });
        }
    }

    /// Half an hour passes, and more.
    fn ends(&mut self) -> Option<(SubjectId, Profile)> {
        self.effects.clear();
        self.now = self.now.plus(Duration::from_hours(8));
        self.input(Input::Tick);
        self.input(Input::Tick);
        let learnt = self.effects.iter().position(|effect| matches!(effect, Effect::Learnt { .. }));
        let forgotten = self.effects.iter().position(|effect| matches!(effect, Effect::Forget { .. }));
        assert!(learnt.is_none_or(|learnt| learnt < forgotten.unwrap()));
        match self.effects.remove(learnt?) {
            Effect::Learnt { subject, profile, .. } => Some((subject, *profile)),
            other => unreachable!("{other:?}"),
        }
    }

    fn assessment(&self, n: u8) -> Assessment {
        self.engine.session(&SessionId([n; 16])).unwrap().assessment
    }
}

fn opened(n: u8, seed: u64) -> (Story, Visitor) {
    let (mut story, mut visitor) = (Story::new(), Visitor::person(seed));
    story.moves(n, &mut visitor, 2);
    (story, visitor)
}

/// What a person's first long session teaches.
fn known(seed: u64) -> Profile {
    let (mut story, mut visitor) = opened(1, seed);
    story.profile(1, Profile::default());
    story.moves(1, &mut visitor, 400);
    assert_eq!(
        story.assessment(1).profile,
        ProfileState::Learning,
        "nobody is judged in their first session"
    );
    story.ends().unwrap().1
}

#[test]
fn a_session_given_a_profile_teaches_it_when_it_ends_and_one_without_teaches_nothing() {
    let profile = known(40);
    assert!(profile.sessions() == 1 && profile.blocks() >= 8);
    let (mut story, mut visitor) = opened(1, 40);
    story.profile(1, profile.clone());
    story.moves(1, &mut visitor, 200);
    let seen = story.assessment(1);
    assert_eq!(seen.profile, ProfileState::Ready);
    assert!(seen.owner_score.is_some() && seen.owner_evidence < 6.0, "{seen:?}");
    let (subject, learnt) = story.ends().unwrap();
    assert_eq!((subject, learnt.sessions()), (SubjectId([1; 16]), 2));
    let (mut story, mut visitor) = opened(1, 40);
    story.moves(1, &mut visitor, 400);
    assert_eq!((story.assessment(1).profile, story.ends()), (ProfileState::Off, None));
}

#[test]
fn a_profile_goes_to_nobody_but_the_person_it_is_of() {
    let (mut story, mut visitor) = opened(1, 41);
    let session = SessionId([1; 16]);
    story.input(Input::Profile { session, subject: SubjectId([2; 16]), profile: Box::default() });
    story.moves(1, &mut visitor, 300);
    assert_eq!(story.ends(), None, "the session is another's");
    let (mut story, mut visitor) = opened(1, 41);
    story.profile(1, Profile::default());
    story.moves(1, &mut visitor, 300);
    story.input(Input::Batch { identity: identity(1, Some(9)), page: 1, batch: visitor.next_batch(2.0) });
    assert_eq!(story.assessment(1).profile, ProfileState::Off, "somebody else has logged in");
    assert_eq!(story.ends(), None);
}

#[test]
fn who_is_forgotten_in_the_midst_of_a_session_is_learnt_from_there_on() {
    let profile = known(46);
    let (mut story, mut visitor) = opened(1, 46);
    story.profile(1, profile);
    story.moves(1, &mut visitor, 200);
    assert_eq!(story.assessment(1).profile, ProfileState::Ready);
    story.profile(1, Profile::default());
    let seen = story.assessment(1);
    assert_eq!((seen.owner_score, seen.owner_evidence), (None, 0.0));
    assert_eq!(story.ends(), None, "what was seen before is forgotten too");
}

#[test]
fn what_ended_badly_teaches_nothing_and_a_pardon_makes_it_well() {
    let operator = |action| Input::Operator {
        session: SessionId([1; 16]),
        action,
        by: "ada".into(),
        why: "asked".into(),
    };
    let teaches = |actions: &[OperatorAction]| {
        let (mut story, mut visitor) = opened(1, 42);
        story.profile(1, Profile::default());
        story.moves(1, &mut visitor, 300);
        actions.iter().for_each(|action| story.input(operator(*action)));
        story.ends().is_some()
    };
    use OperatorAction::{Pardon, Revoke};
    assert!(teaches(&[]) && !teaches(&[Revoke]));
    assert!(teaches(&[Revoke, Pardon]) && !teaches(&[Revoke, Pardon, Revoke]));
}

#[test]
fn a_fresh_login_ends_the_doubt_and_lets_a_new_mouse_be_learnt() {
    let profile = known(43);
    // Somebody who moves otherwise, as the owner with another mouse may.
    let other = (60..90).find(|seed| {
        let (mut story, mut visitor) = opened(1, *seed);
        story.profile(1, profile.clone());
        story.moves(1, &mut visitor, 200);
        story.assessment(1).owner_evidence > 4.0
    });
    let seed = other.expect("of thirty strangers one is told apart");
    let learnt = |vouched: Option<bool>, seconds_after: u64| {
        let (mut story, mut visitor) = opened(1, seed);
        story.profile(1, profile.clone());
        story.moves(1, &mut visitor, 200);
        if let Some(vouched) = vouched {
            story.input(Input::StepUpPassed { session: SessionId([1; 16]), vouched });
            assert_eq!(story.assessment(1).owner_evidence, 0.0);
        }
        story.moves(1, &mut visitor, seconds_after);
        story.ends()
    };
    assert_eq!(learnt(None, 200), None, "a stranger's session teaches nothing");
    assert_eq!(learnt(Some(false), 200), None, "nor does it after a button was pressed");
    assert_eq!(learnt(Some(true), 20), None, "nor what came before the proof");
    assert_eq!(learnt(Some(true), 200).map(|(_, profile)| profile.sessions()), Some(2));

    // Nobody is known by one fresh login, nor by two in a row: it may have been stolen.
    let mut profile = profile;
    let mut doubts = Vec::new();
    for hours in [0, 2, 24, 24] {
        let (mut story, mut visitor) = (Story::new(), Visitor::person(seed));
        story.now = story.now.plus(Duration::from_hours(hours));
        story.moves(1, &mut visitor, 2);
        story.profile(1, profile.clone());
        story.moves(1, &mut visitor, 200);
        doubts.push(story.assessment(1).owner_evidence);
        story.input(Input::StepUpPassed { session: SessionId([1; 16]), vouched: true });
        story.moves(1, &mut visitor, 200);
        profile = story.ends().unwrap().1;
    }
    let least = gaitway_models::sequential::THRESHOLD_NATS_MIN;
    assert!(doubts[..3].iter().all(|nats| *nats > least) && doubts[3] < least, "{doubts:?}");
}

#[test]
fn a_pardon_speaks_for_what_was_seen_and_not_for_what_comes_after() {
    let profile = known(43);
    let pardon = || Input::Operator {
        session: SessionId([1; 16]),
        action: OperatorAction::Pardon,
        by: "ada".into(),
        why: "asked".into(),
    };
    let learnt = |automates_before: bool, automates_after: bool| {
        let (mut story, mut visitor) = opened(1, 43);
        story.profile(1, profile.clone());
        story.moves(1, &mut visitor, 200);
        let mut automate = |story: &mut Story, automated| {
            let mut batch = visitor.next_batch(2.0);
            batch.environment = Visitor::person(43).next_batch(2.0).environment;
            if let Some(environment) = &mut batch.environment {
                environment.automation = automated;
            }
            story.now = story.now.plus(Duration::from_secs(2));
            story.input(Input::Batch { identity: identity(1, Some(1)), page: 1, batch });
            assert_eq!(story.assessment(1).automation, automated);
        };
        automate(&mut story, automates_before);
        story.input(pardon());
        automate(&mut story, automates_before);
        automate(&mut story, false);
        automate(&mut story, automates_after);
        story.ends().is_some()
    };
    assert!(learnt(true, false), "the operator knew");
    assert!(!learnt(false, true) && !learnt(true, true), "nobody vouched for this");
}

#[test]
fn another_display_is_unknown_and_nobody_is_doubted_there() {
    let profile = known(44);
    for ratio in [150, 200] {
        let (mut story, mut visitor) = (Story::new(), Visitor::person(45));
        let give = |story: &mut Story, visitor: &mut Visitor| {
            let mut batch = visitor.next_batch(2.0);
            if let Some(environment) = &mut batch.environment {
                environment.pixel_ratio_percent = ratio;
            }
            story.now = story.now.plus(Duration::from_secs(2));
            story.input(Input::Batch { identity: identity(1, Some(1)), page: 1, batch });
        };
        give(&mut story, &mut visitor);
        story.profile(1, profile.clone());
        (0..150).for_each(|_| give(&mut story, &mut visitor));
        let seen = story.assessment(1);
        assert_eq!((seen.owner_score, seen.owner_evidence), (None, 0.0), "{ratio}");
        assert_eq!(seen.profile, ProfileState::Learning);
        let (_, learnt) = story.ends().unwrap();
        assert!(learnt.blocks() > profile.blocks(), "the new device is learnt beside the old");
    }
}

#[test]
fn whatever_happens_only_sessions_given_a_profile_teach_and_never_one_that_was_revoked() {
    let (mut learnt, mut revoked) = (0, 0);
    for seed in 0..12 {
        let first = live(seed);
        assert_eq!(first.0, live(seed).0, "seed {seed}: the same seed must give the same effects");
        learnt += first.0.iter().filter(|effect| matches!(effect, Effect::Learnt { .. })).count();
        revoked += first.1;
    }
    assert!(
        learnt >= 5 && revoked >= 5,
        "a simulation that never gets there proves nothing: {learnt} {revoked}"
    );
}

/// The effects of one seed, and how many sessions closed while revoked with a profile.
fn live(seed: u64) -> (Vec<Effect>, usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut story = Story::new();
    let mut visitors: BTreeMap<u8, Visitor> = BTreeMap::new();
    // What the outside knows of each open session: it was given a profile, it is revoked.
    let (mut given, mut revoked) = (BTreeSet::new(), BTreeSet::new());
    let (mut told, mut revoked_closed) = (Vec::new(), 0);
    for _ in 0..120 {
        let n = rng.random_range(0..6);
        let session = SessionId([n; 16]);
        let open = story.engine.session(&session).is_some();
        match rng.random_range(0..100) {
            0..60 => {
                let visitor =
                    visitors.entry(n).or_insert_with(|| Visitor::person(100 + u64::from(n) + 10 * seed));
                story.moves(n, visitor, 60);
            }
            // Again only for who is to be forgotten.
            60..80 if !given.contains(&session) || rng.random_range(0..8) == 0 => {
                story.profile(n, Profile::default());
                if open {
                    given.insert(session);
                }
            }
            80..86 => {
                let (by, why) = ("ada".into(), "asked".into());
                story.input(Input::Operator { session, action: OperatorAction::Revoke, by, why });
                revoked.insert(session);
            }
            86..90 => {
                let (by, why) = ("ada".into(), "asked".into());
                story.input(Input::Operator { session, action: OperatorAction::Pardon, by, why });
                revoked.remove(&session);
            }
            90..93 => story.input(Input::StepUpPassed { session, vouched: n % 2 == 0 }),
            60..80 => {}
            93..97 => {
                story.now = story.now.plus(Duration::from_mins(rng.random_range(1..60)));
                story.input(Input::Tick);
            }
            _ => {
                story.now = story.now.plus(Duration::from_hours(7));
                story.input(Input::Tick);
                story.input(Input::Tick);
            }
        }
        for effect in &story.effects {
            match effect {
                Effect::Learnt { session, subject, profile } => {
                    assert!(given.contains(session), "seed {seed}: nobody gave it a profile");
                    assert!(!revoked.contains(session), "seed {seed}: it was revoked");
                    assert_eq!(subject.0, session.0, "seed {seed}");
                    assert!(profile.sessions() > 0 && profile.blocks() > 0, "seed {seed}");
                }
                Effect::Forget { session } => {
                    revoked_closed += usize::from(given.remove(session) && revoked.contains(session));
                    revoked.remove(session);
                }
                _ => {}
            }
        }
        told.append(&mut story.effects);
    }
    (told, revoked_closed)
}
