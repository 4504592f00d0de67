//! Is it still the owner? One session against what is kept of its person, and what it may teach.
//!
//! Blocks of movement are judged as they are completed, and a few of them and of the windows, spread over the
//! session, are held for the profile to learn from when it is over. A device the profile has not learnt is
//! silent. Nothing here exists for a session without a profile. Must not know: rules, how the session ended.

use crate::detector::{PersonRange, ProfileState};
use crate::event::Event;
use crate::habit::{Figures, WINDOWS_SESSION_MAX};
use crate::hand::{Hand, HandTracker};
use crate::owner::{Owner, Owners};
use crate::population::Device;
use crate::profile::{DEVICES_MAX, Ending, LEARNT_NATS_MAX, Learnt, Packed, Profile};
use crate::sequential::cusum;
use crate::session::WindowRow;
use crate::time::Timestamp;

/// Most blocks of one session held to learn from: eleven minutes of its active input.
pub const LESSON_BLOCKS_MAX: usize = 48;
/// Most windows held to learn from: twice what is taken of them, as every second goes when there is no room.
pub const LESSON_WINDOWS_MAX: usize = 2 * WINDOWS_SESSION_MAX;
/// Blocks kept until they are judged; more of them in one batch overwrite the oldest.
pub const BLOCKS_PENDING_MAX: usize = 3;

/// A session with a profile. With four devices and all blocks and windows that are ever held it takes about
/// 130 KB, with one device about 75 KB.
#[derive(Clone, Debug)]
pub(crate) struct Doubt {
    profile: Profile,
    tracker: HandTracker,
    /// On which device the pending blocks are made.
    device: Device,
    pending: Vec<Hand>,
    /// The owner on each device met in this session.
    owners: Vec<(usize, Option<Owner>)>,
    /// The profile's mice of the class that the latest block was made on.
    here: Vec<usize>,
    lesson: Spread<(Device, Packed), LESSON_BLOCKS_MAX>,
    windows: Spread<(Device, Figures), LESSON_WINDOWS_MAX>,
    /// The window under way began on another device, or before somebody vouched for the person.
    is_mixed: bool,
    pub(crate) state: ProfileState,
    /// What the latest judged block says, nats for "somebody else".
    pub(crate) log_ratio: Option<f32>,
    pub(crate) judged: u32,
    pub(crate) evidence: f32,
}

/// Some of a session's many, spread over it however long it is: every `stride`-th, and when there is no more
/// room every second of those held goes and the stride doubles.
#[derive(Clone, Debug)]
struct Spread<T, const MAX: usize> {
    held: Vec<T>,
    stride: u32,
    seen: u32,
}

impl<T, const MAX: usize> Spread<T, MAX> {
    const EMPTY: Self = Spread { held: Vec::new(), stride: 1, seen: 0 };

    fn hold(&mut self, one: impl FnOnce() -> T) {
        if self.seen.is_multiple_of(self.stride) {
            if self.held.len() == MAX {
                let mut is_kept = false;
                self.held.retain(|_| {
                    is_kept = !is_kept;
                    is_kept
                });
                self.stride = self.stride.saturating_mul(2);
            }
            if self.seen.is_multiple_of(self.stride) {
                self.held.push(one());
            }
        }
        self.seen = self.seen.saturating_add(1);
    }

    fn clear(&mut self) {
        self.held.clear();
        self.stride = 1;
    }
}

impl Doubt {
    pub(crate) fn new(profile: Profile, device: Device) -> Doubt {
        Doubt {
            profile,
            tracker: HandTracker::default(),
            device,
            pending: Vec::new(),
            owners: Vec::new(),
            here: Vec::new(),
            lesson: Spread::EMPTY,
            windows: Spread::EMPTY,
            is_mixed: false,
            state: ProfileState::Learning,
            log_ratio: None,
            judged: 0,
            evidence: 0.0,
        }
    }

    pub(crate) fn observe(&mut self, event: &Event) {
        if let Some(block) = self.tracker.observe(event) {
            if self.pending.len() == BLOCKS_PENDING_MAX {
                self.pending.remove(0);
            }
            self.pending.push(block);
        }
    }

    /// Another page or a gap: what follows does not continue what was.
    pub(crate) fn interrupt(&mut self) {
        self.tracker.interrupt();
    }

    /// The pointer is on another device from now on; a block of both is nobody's.
    pub(crate) fn set_device(&mut self, device: Device) {
        if self.device != device {
            self.device = device;
            self.tracker = HandTracker::default();
            self.pending.clear();
            self.here.clear();
            self.is_mixed = true;
        }
    }

    /// A window of ten seconds is complete.
    pub(crate) fn complete(&mut self, row: &WindowRow) {
        // A finger on the screen is not the mouse beside it.
        if !std::mem::take(&mut self.is_mixed) && row.support.touches == 0 {
            self.windows.hold(|| (self.device, Figures::of(&row.features)));
        }
    }

    /// What is usual of this person on the device in use.
    pub(crate) fn range(&self, feature: usize) -> Option<PersonRange> {
        self.profile.range(&self.here, feature)
    }

    /// Blocks completed.
    pub(crate) fn completed(&self) -> u32 {
        self.lesson.seen
    }

    /// Judges the blocks completed since the last call.
    pub(crate) fn judge(&mut self, owners: &Owners) {
        for block in std::mem::take(&mut self.pending) {
            self.hold(&block);
            self.here = self.profile.devices_of(self.device, &block).collect();
            let ready: Vec<usize> =
                self.here.iter().copied().filter(|&at| self.profile.is_ready(at)).collect();
            let are_all_ready = ready.len() == self.here.len();
            let says = lowest_log_ratio(owners, &self.profile, &mut self.owners, ready, &block);
            // Unlike every mouse that is known well, a block may come from one that is not yet.
            let Some(log_ratio) = says.filter(|says| are_all_ready || *says <= LEARNT_NATS_MAX) else {
                self.state = ProfileState::Learning;
                continue;
            };
            self.state = ProfileState::Ready;
            self.evidence = cusum(self.evidence, log_ratio);
            self.log_ratio = Some(log_ratio);
            self.judged = self.judged.saturating_add(1);
        }
        debug_assert!(self.lesson.held.len() <= LESSON_BLOCKS_MAX && self.owners.len() <= DEVICES_MAX);
        debug_assert!(self.evidence >= 0.0 && self.evidence.is_finite());
    }

    pub(crate) fn settle(&mut self) {
        self.evidence = 0.0;
    }

    /// What comes from now on is somebody's of whom more is known than of who came before.
    pub(crate) fn drop_lesson(&mut self) {
        self.tracker = HandTracker::default();
        self.pending.clear();
        self.lesson.clear();
        self.windows.clear();
        self.is_mixed = true;
    }

    /// What is to be kept of the person; `None` if the session has taught nothing.
    pub(crate) fn learn(mut self, owners: &Owners, opened: Timestamp, ending: Ending) -> Option<Profile> {
        let rest = std::mem::take(&mut self.pending).into_iter().chain(self.tracker.rest());
        rest.for_each(|block| self.hold(&block));
        let lesson: Vec<(Device, Hand)> =
            self.lesson.held.iter().map(|(device, block)| (*device, block.unpack())).collect();
        let learnt = self.profile.learn_session(owners, &lesson, &self.windows.held, opened, ending);
        matches!(learnt, Learnt::Taken(_)).then_some(self.profile)
    }

    fn hold(&mut self, block: &Hand) {
        let device = self.device;
        self.lesson.hold(|| (device, Packed::new(block)));
    }
}

/// What a block says of the likest of a person's mice; each is enrolled once.
pub(crate) fn lowest_log_ratio(
    owners: &Owners,
    profile: &Profile,
    enrolled: &mut Vec<(usize, Option<Owner>)>,
    mice: impl IntoIterator<Item = usize>,
    block: &Hand,
) -> Option<f32> {
    let says = mice.into_iter().filter_map(|at| {
        let known = enrolled.iter().position(|(of, _)| *of == at).unwrap_or_else(|| {
            enrolled.push((at, profile.owner(owners, at)));
            enrolled.len() - 1
        });
        Some(owners.log_ratio(enrolled[known].1.as_ref()?, block))
    });
    says.min_by(f32::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Assessment;
    use crate::event::{Batch, EventKind, PointerType};
    use crate::habit::SESSIONS_MIN;
    use crate::hand::BINS;
    use crate::profile::BLOCKS_READY;
    use crate::profile::tests::{DESK, by_other_mouse, known, owners, session};
    use crate::sequential::THRESHOLD_NATS_MIN;
    use crate::session::{Session, Support};
    use crate::sim::Visitor;

    /// What a person's first session leaves, and how their next is seen when its events are changed.
    fn next_session(change: impl Fn(usize, &mut Event) -> bool) -> (Assessment, Option<Profile>) {
        let detector = crate::owner::tests::detector();
        let mut visitor = Visitor::person(300);
        // A browser tells of itself at the beginning of every session.
        let first = Batch { events: Vec::new(), ..visitor.next_batch(2.0) };
        let mut watch = |profile, change: &dyn Fn(usize, &mut Event) -> bool| {
            let mut session = Session::new(Timestamp(0));
            session.set_profile(profile);
            session.observe(Timestamp(0), 0, &first);
            let mut assessment = Assessment::default();
            for i in 0..250 {
                let mut batch = visitor.next_batch(2.0);
                batch.sequence = i;
                let mut n = 0;
                batch.events.retain_mut(|event| {
                    n += 1;
                    change(n, event)
                });
                session.observe(Timestamp(batch.sent_at_us / 1000), 1, &batch);
                assessment = detector.assess(Timestamp(batch.sent_at_us / 1000), &mut session);
            }
            (assessment, detector.learn(&mut session, Ending::default()))
        };
        let (first, profile) = watch(Profile::default(), &|_, _| true);
        assert_eq!((first.profile, first.owner_score), (ProfileState::Learning, None));
        watch(profile.unwrap(), &change)
    }

    #[test]
    fn an_owner_is_known_again_and_the_second_session_teaches_too() {
        let (seen, profile) = next_session(|_, _| true);
        assert_eq!(seen.profile, ProfileState::Ready);
        assert!(seen.owner_score.is_some() && seen.owner_evidence < THRESHOLD_NATS_MIN, "{seen:?}");
        assert_eq!(profile.unwrap().sessions(), 2);
    }

    #[test]
    fn moves_heard_half_as_often_come_from_a_device_nobody_has_learnt() {
        let (seen, profile) =
            next_session(|n, event| n % 2 == 0 || !matches!(event.kind, EventKind::PointerMove { .. }));
        assert_eq!((seen.profile, seen.owner_score), (ProfileState::Learning, None));
        assert_eq!(seen.owner_evidence, 0.0);
        assert_eq!(profile.unwrap().sessions(), 2, "it is learnt beside the other");
    }

    #[test]
    fn a_finger_on_the_screen_says_nothing_of_a_hand_at_the_mouse() {
        let (seen, profile) = next_session(|_, event| {
            match &mut event.kind {
                EventKind::PointerMove { pointer, .. }
                | EventKind::PointerDown { pointer, .. }
                | EventKind::PointerUp { pointer, .. } => *pointer = PointerType::Touch,
                _ => {}
            }
            true
        });
        assert_eq!((seen.owner_score, seen.owner_evidence, profile), (None, 0.0, None));
    }

    #[test]
    fn a_window_keeps_its_own_screen_whatever_another_window_tells() {
        let mut visitor = Visitor::person(301);
        let mut session = Session::new(Timestamp(0));
        let mut told = [150, 200].map(|ratio| {
            let mut batch = Batch { events: Vec::new(), ..visitor.next_batch(2.0) };
            batch.environment = Visitor::person(301).next_batch(2.0).environment;
            batch.environment.as_mut().unwrap().pixel_ratio_percent = ratio;
            batch
        });
        let [first, second] = [0, 1].map(|i| Device::of(told[i].environment));
        assert_ne!(first, second);
        for (page, batch) in told.iter().enumerate() {
            session.observe(Timestamp(10_000), page as u64, batch);
        }
        session.set_profile(Profile::default());
        let device = |session: &Session| session.doubt.as_ref().unwrap().device;
        assert_eq!(device(&session), second);
        told[0].environment = None;
        told[0].sequence += 1;
        session.observe(Timestamp(10_000), 0, &told[0]);
        assert_eq!(device(&session), first);
    }

    #[test]
    fn a_reason_tells_this_persons_own_range_once_a_few_sessions_taught_it() {
        let detector = crate::owner::tests::detector();
        let mut visitor = Visitor::person(302);
        let environment = visitor.next_batch(2.0).environment;
        let mut watch = |profile: Profile, environment| {
            let mut session = Session::new(Timestamp(0));
            session.set_profile(profile);
            let mut assessment = Assessment::default();
            for i in 0..60 {
                let batch = Batch { environment, sequence: i, ..visitor.next_batch(2.0) };
                session.observe(Timestamp(batch.sent_at_us / 1000), 1, &batch);
                assessment = detector.assess(Timestamp(batch.sent_at_us / 1000), &mut session);
            }
            (assessment, detector.learn(&mut session, Ending::default()))
        };
        let told = |seen: &Assessment| seen.reasons.iter().filter(|reason| reason.person.is_some()).count();
        let mut profile = Profile::default();
        for n in 0..SESSIONS_MIN {
            let (seen, learnt) = watch(profile, environment);
            assert!(told(&seen) == 0 && !seen.reasons.is_empty(), "in session {n}: {seen:?}");
            profile = learnt.unwrap();
        }
        let (mut seen, _) = watch(profile.clone(), environment);
        assert!(told(&seen) > 0, "{seen:?}");
        let reason = seen.reasons.remove(seen.reasons.iter().position(|r| r.person.is_some()).unwrap());
        let PersonRange { low, high, sessions } = reason.person.unwrap();
        assert!(low <= high && sessions == SESSIONS_MIN as u32, "{reason:?}");
        assert!(reason.text.contains("people usually") && !reason.text.contains("this person"), "{reason:?}");
        let mut elsewhere = environment.unwrap();
        elsewhere.pixel_ratio_percent *= 2;
        let (seen, _) = watch(profile, Some(elsewhere));
        assert!(told(&seen) == 0 && !seen.reasons.is_empty(), "on another display: {seen:?}");
    }

    #[test]
    fn nobody_is_doubted_where_a_second_mouse_is_not_known_well_yet() {
        let owners = owners();
        let mut profile = known(&owners);
        let first = session(50, 900);
        let second = by_other_mouse(&first[0].1, [9; BINS]);
        let judged = |profile: &Profile, blocks: &[(Device, Hand)]| {
            let mut doubt = Doubt::new(profile.clone(), DESK);
            for (_, block) in blocks {
                doubt.pending.push(block.clone());
                doubt.judge(&owners);
            }
            (doubt.state, doubt.evidence)
        };
        let doubted = |(state, evidence)| state == ProfileState::Ready && evidence > 1.0;
        assert!(doubted(judged(&profile, &second)), "unlike the one mouse that is known");
        profile.keep_another_mouse(&second[..BLOCKS_READY - 1]);
        assert_eq!(judged(&profile, &second), (ProfileState::Learning, 0.0));
        assert_eq!(judged(&profile, &first).0, ProfileState::Ready, "the first mouse is known as before");
        let rest = profile.learn(&owners, &second, Ending::default());
        assert_eq!(rest, Learnt::Taken(second.len()), "what is missing needs nobody's word");
        let (state, evidence) = judged(&profile, &second);
        assert!(state == ProfileState::Ready && evidence == 0.0, "{evidence}");
        let mut people = (51..80).map(|seed| by_other_mouse(&first[0].1, *session(seed, 0)[0].1.counts()));
        assert!(people.any(|third| doubted(judged(&profile, &third))), "whoever is like neither is doubted");
    }

    #[test]
    fn a_window_of_two_screens_or_of_before_a_proof_teaches_nothing() {
        let mut doubt = Doubt::new(Profile::default(), Device(1));
        let row = WindowRow { features: [0.5; crate::features::FEATURE_COUNT], support: Support::default() };
        let mut held = |change: &dyn Fn(&mut Doubt), row: &WindowRow| {
            change(&mut doubt);
            doubt.complete(row);
            doubt.windows.held.len()
        };
        assert_eq!(held(&|_| (), &row), 1);
        assert_eq!(held(&|doubt| doubt.set_device(Device(2)), &row), 1);
        assert_eq!(held(&|doubt| doubt.set_device(Device(2)), &row), 2);
        assert_eq!(held(&Doubt::drop_lesson, &row), 0);
        assert_eq!(held(&|_| (), &row), 1);
        let finger = WindowRow { support: Support { touches: 1, ..Support::default() }, ..row };
        assert_eq!(held(&|_| (), &finger), 1);
    }

    #[test]
    fn what_is_held_is_spread_over_the_session_and_bounded() {
        let mut doubt = Doubt::new(Profile::default(), Device(0));
        for i in 0..1000u16 {
            let mut counts = *Hand::EMPTY.counts();
            counts[0] = i;
            doubt.hold(&Hand::of(counts));
            assert!(doubt.lesson.held.len() <= LESSON_BLOCKS_MAX);
        }
        let at: Vec<u16> = doubt.lesson.held.iter().map(|(_, block)| block.unpack().counts()[0]).collect();
        assert!(at.len() >= LESSON_BLOCKS_MAX / 2, "{at:?}");
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] == at[1]), "{at:?}");
        assert!(at[0] == 0 && at[at.len() - 1] > 900, "{at:?}");
    }
}
