//! Is it still the owner? One session against what is kept of its person, and what it may teach.
//!
//! Blocks of movement are judged as they are completed, and a few of them, spread over the session, are
//! held for the profile to learn from when it is over. A device the profile has not learnt is silent. Nothing
//! here exists for a session without a profile. Must not know: rules, how the session ended.

use crate::detector::ProfileState;
use crate::event::Event;
use crate::hand::{Hand, HandTracker};
use crate::owner::{Owner, Owners};
use crate::population::Device;
use crate::profile::{DEVICES_MAX, Ending, Learnt, Packed, Profile};
use crate::sequential::cusum;

/// Most blocks of one session held to learn from: eleven minutes of its active input.
pub const LESSON_BLOCKS_MAX: usize = 48;
/// Blocks kept until they are judged; more of them in one batch overwrite the oldest.
pub const BLOCKS_PENDING_MAX: usize = 3;

/// A session with a profile. With four devices and all blocks that are ever held it takes about 115 KB, with
/// one device about 75 KB.
#[derive(Clone, Debug)]
pub(crate) struct Doubt {
    profile: Profile,
    tracker: HandTracker,
    /// On which device the pending blocks are made.
    device: Device,
    pending: Vec<Hand>,
    /// The owner on each device met in this session.
    owners: Vec<(usize, Option<Owner>)>,
    lesson: Vec<(Device, Packed)>,
    /// Of the session's blocks one in so many is held.
    stride: u32,
    pub(crate) state: ProfileState,
    /// What the latest judged block says, nats for "somebody else".
    pub(crate) log_ratio: Option<f32>,
    pub(crate) judged: u32,
    pub(crate) completed: u32,
    pub(crate) evidence: f32,
}

impl Doubt {
    pub(crate) fn new(profile: Profile, device: Device) -> Doubt {
        Doubt {
            profile,
            tracker: HandTracker::default(),
            device,
            pending: Vec::new(),
            owners: Vec::new(),
            lesson: Vec::new(),
            stride: 1,
            completed: 0,
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
        }
    }

    /// Judges the blocks completed since the last call.
    pub(crate) fn judge(&mut self, owners: &Owners) {
        for block in std::mem::take(&mut self.pending) {
            self.hold(&block);
            let mice = self.profile.devices_of(self.device, &block).filter(|&at| self.profile.is_ready(at));
            let mice: Vec<usize> = mice.collect();
            if mice.is_empty() {
                self.state = ProfileState::Learning;
                continue;
            }
            self.state = ProfileState::Ready;
            let Some(log_ratio) = lowest_log_ratio(owners, &self.profile, &mut self.owners, mice, &block)
            else {
                continue;
            };
            self.evidence = cusum(self.evidence, log_ratio);
            self.log_ratio = Some(log_ratio);
            self.judged = self.judged.saturating_add(1);
        }
        debug_assert!(self.lesson.len() <= LESSON_BLOCKS_MAX && self.owners.len() <= DEVICES_MAX);
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
        self.stride = 1;
    }

    /// What is to be kept of the person; `None` if the session has taught nothing.
    pub(crate) fn learn(mut self, owners: &Owners, ending: Ending) -> Option<Profile> {
        let rest = std::mem::take(&mut self.pending).into_iter().chain(self.tracker.rest());
        rest.for_each(|block| self.hold(&block));
        let lesson: Vec<(Device, Hand)> =
            self.lesson.iter().map(|(device, block)| (*device, block.unpack())).collect();
        let learnt = self.profile.learn(owners, &lesson, ending);
        matches!(learnt, Learnt::Taken(_)).then_some(self.profile)
    }

    /// Holds every `stride`-th block; when there is no more room, every second of those held goes and the
    /// stride doubles, so that they are spread over the session however long it is.
    fn hold(&mut self, block: &Hand) {
        if self.completed.is_multiple_of(self.stride) {
            if self.lesson.len() == LESSON_BLOCKS_MAX {
                let mut is_kept = false;
                self.lesson.retain(|_| {
                    is_kept = !is_kept;
                    is_kept
                });
                self.stride = self.stride.saturating_mul(2);
            }
            if self.completed.is_multiple_of(self.stride) {
                self.lesson.push((self.device, Packed::new(block)));
            }
        }
        self.completed = self.completed.saturating_add(1);
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
    use crate::sequential::THRESHOLD_NATS_MIN;
    use crate::session::Session;
    use crate::sim::Visitor;
    use crate::time::Timestamp;

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
    fn what_is_held_is_spread_over_the_session_and_bounded() {
        let mut doubt = Doubt::new(Profile::default(), Device(0));
        for i in 0..1000u16 {
            let mut counts = *Hand::EMPTY.counts();
            counts[0] = i;
            doubt.hold(&Hand::of(counts));
            assert!(doubt.lesson.len() <= LESSON_BLOCKS_MAX);
        }
        let at: Vec<u16> = doubt.lesson.iter().map(|(_, block)| block.unpack().counts()[0]).collect();
        assert!(at.len() >= LESSON_BLOCKS_MAX / 2, "{at:?}");
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] == at[1]), "{at:?}");
        assert!(at[0] == 0 && at[at.len() - 1] > 900, "{at:?}");
    }
}
