//! A bounded running summary of one session's telemetry: O(1) time and memory an event.
//!
//! Input is cut into slices of ten seconds of *active* time, or eight clicks where a pointer only
//! jumps; each full slice completes an evidence window, as do the last three slices together. The
//! session keeps the windows nobody has looked at yet and the ledger of those the detector has, and, where
//! a person's profile was given, what is held against it. Must not know: forests, thresholds, who the
//! visitor is.

use crate::detector::{Evidence, Modality, TelemetryState};
use crate::doubt::Doubt;
use crate::drift::Tally;
use crate::event::{Batch, Environment, EventKind};
use crate::features::{self, Row};
use crate::flow::Flow;
use crate::population::Device;
use crate::profile::Profile;
use crate::replay::{Shingle, Shingles};
use crate::summary::{Summary, Tracker};
use crate::time::Timestamp;

/// Active input that completes a slice, microseconds.
pub const SLICE_ACTIVE_US: u64 = 10_000_000;
/// Slices in the long window: 30 s.
pub const SLICES_LONG: usize = 3;
/// Clicks that complete a slice of a pointer that hardly moves between them; such sessions never reach
/// ten active seconds.
pub const SLICE_CLICKS: u32 = 8;
/// Windows kept for the detector; more of them in one batch overwrite the oldest.
pub const WINDOWS_PENDING_MAX: usize = 3;
/// Pages of one session followed at a time; past it the longest silent one is forgotten.
pub const PAGES_MAX: usize = 8;
/// A page clock this far ahead of the gateway's is not believed, milliseconds: network delay can only
/// hold batches back.
pub const CLOCK_AHEAD_MAX_MS: i64 = 5_000;
/// Telemetry of a served page may take this long to arrive before it counts as missing.
pub const MISSING_AFTER_MS: u64 = 15_000;

/// One session: at most `SESSION_BYTES_MAX` bytes, nothing on the heap unless a profile was given.
#[derive(Clone, Debug)]
pub struct Session {
    opened: Timestamp,
    environment: Option<Environment>,
    pages: [Option<PageTrack>; PAGES_MAX],
    current_page: Option<u64>,
    tracker: Tracker,
    slice: Summary,
    /// The slices before, newest first.
    past: [Summary; SLICES_LONG - 1],
    past_len: usize,
    pending: [Window; WINDOWS_PENDING_MAX],
    pending_len: usize,
    active_us: u64,
    events: u64,
    batches: u64,
    dropped: u64,
    counts: InputCounts,
    /// One bit a batch, newest lowest: was it damaged?
    damage: u32,
    requests: RequestCounts,
    flow: Flow,
    shingles: Shingles,
    pub(crate) ledger: Ledger,
    pub(crate) doubt: Option<Box<Doubt>>,
}

/// Upper bound of `size_of::<Session>()`, checked by the compiler.
pub const SESSION_BYTES_MAX: usize = 8 * 1024;
const _: () = assert!(size_of::<Session>() <= SESSION_BYTES_MAX);

/// An evidence window, complete.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub short: WindowRow,
    /// The last 30 s, once there are as many.
    pub long: Option<WindowRow>,
}

/// The features of a window, and how much input they rest on.
#[derive(Clone, Copy, Debug)]
pub struct WindowRow {
    pub features: Row,
    pub support: Support,
}

/// How much of each kind of input a window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Support {
    pub moves: u32,
    pub strokes: u32,
    /// Steps of the 20 ms grid in motion.
    pub grid_steps: u32,
    pub clicks: u32,
    pub keys: u32,
    pub wheels: u32,
    pub touches: u32,
}

/// What the proxy saw of one request; no address, no path.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestSeen {
    /// A page load by the browser itself (Sec-Fetch-Dest: document, or Accept: text/html).
    pub navigation: bool,
    /// Keyed hash of the path, to count variety.
    pub path_hash: u64,
    /// The response carried the collector, so telemetry can be expected.
    pub collector_injected: bool,
    /// Body of the response as sent, bytes.
    pub response_bytes: u64,
}

/// Requests from the proxy's side.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestCounts {
    pub requests: u64,
    pub navigations: u64,
    pub injected: u64,
    pub first_injected: Option<Timestamp>,
}

/// Evidence the detector has gathered; moved only by completed windows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ledger {
    pub evidence: f32,
    /// Windows on which at least one expert spoke.
    pub scored: u32,
    pub score: Option<f32>,
    pub reasons: [Option<LedgerReason>; 5],
    pub tally: Tally,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct LedgerReason {
    pub feature: u8,
    pub value: f32,
    pub contribution: f32,
}

#[derive(Clone, Copy, Debug, Default)]
struct InputCounts {
    mouse: u32,
    touch: u32,
    keys: u32,
}

#[derive(Clone, Copy, Debug)]
struct PageTrack {
    page: u64,
    next_sequence: u32,
    /// Smallest (gateway clock − page clock) seen, milliseconds.
    offset_ms: i64,
    last_event_us: u64,
    /// A browser tells once a page, and windows may lie on screens of different scaling.
    device: Device,
    seen: Timestamp,
}

impl Session {
    pub fn new(opened: Timestamp) -> Session {
        Session {
            opened,
            environment: None,
            pages: [None; PAGES_MAX],
            current_page: None,
            tracker: Tracker::default(),
            slice: Summary::default(),
            past: [Summary::default(); SLICES_LONG - 1],
            past_len: 0,
            pending: [Window::EMPTY; WINDOWS_PENDING_MAX],
            pending_len: 0,
            active_us: 0,
            events: 0,
            batches: 0,
            dropped: 0,
            counts: InputCounts::default(),
            damage: 0,
            requests: RequestCounts::default(),
            flow: Flow::default(),
            shingles: Shingles::default(),
            ledger: Ledger::default(),
            doubt: None,
        }
    }

    /// Holds what follows against a person's profile, and keeps some of it to learn from.
    pub fn set_profile(&mut self, profile: Profile) {
        let current = self.pages.iter().flatten().find(|track| Some(track.page) == self.current_page);
        let device = current.map_or(Device::of(self.environment), |track| track.device);
        self.doubt = Some(Box::new(Doubt::new(profile, device)));
    }

    /// Keeps nothing of the person any longer.
    pub fn drop_profile(&mut self) {
        self.doubt = None;
    }

    /// Evidence for somebody else starts anew.
    pub fn settle_doubt(&mut self) {
        if let Some(doubt) = &mut self.doubt {
            doubt.settle();
        }
    }

    /// Teaches nothing of what was seen so far.
    pub fn drop_lesson(&mut self) {
        if let Some(doubt) = &mut self.doubt {
            doubt.drop_lesson();
        }
    }

    pub fn opened(&self) -> Timestamp {
        self.opened
    }

    /// Adds one batch of page `page`. Returns how many evidence windows it completed.
    ///
    /// A batch seen before (a resend after a lost connection) changes nothing but the damage record.
    pub fn observe(&mut self, now: Timestamp, page: u64, batch: &Batch) -> u32 {
        let Some(mut track) = self.admit(now, page, batch) else { return 0 };
        self.batches += 1;
        self.dropped += u64::from(batch.dropped);
        if batch.environment.is_some() {
            self.environment = batch.environment;
            track.device = Device::of(batch.environment);
        }
        if let Some(doubt) = &mut self.doubt {
            doubt.set_device(track.device);
        }
        let mut completed = 0;
        for event in &batch.events {
            let mut event = *event;
            if event.at_us + BACKWARDS_MAX_US < track.last_event_us {
                self.damage |= 1;
                self.interrupt();
                track.last_event_us = event.at_us;
            }
            // Browsers may report events of one frame a little out of order.
            event.at_us = event.at_us.max(track.last_event_us);
            track.last_event_us = event.at_us;
            let active_before = self.slice.active_us;
            self.tracker.observe(&mut self.slice, &event);
            self.shingles.observe(&event);
            if let Some(doubt) = &mut self.doubt {
                doubt.observe(&event);
            }
            self.active_us += self.slice.active_us - active_before;
            self.events += 1;
            self.count_input(&event.kind);
            if self.slice_is_full() {
                self.complete_slice();
                completed += 1;
            }
        }
        self.keep(track);
        self.check_invariants();
        completed
    }

    pub fn observe_request(&mut self, now: Timestamp, request: RequestSeen) {
        let sound = self.batches > 0 && self.damage & DAMAGE_WINDOW == 0;
        self.flow.observe_request(now, &request, sound);
        self.requests.requests += 1;
        if request.navigation {
            self.requests.navigations += 1;
        }
        if request.collector_injected {
            self.requests.injected += 1;
            self.requests.first_injected.get_or_insert(now);
        }
    }

    /// Rhythm, variety and volume of the requests.
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    pub fn requests(&self) -> RequestCounts {
        self.requests
    }

    pub fn environment(&self) -> Option<Environment> {
        self.environment
    }

    /// Input so far.
    pub fn evidence(&self) -> Evidence {
        Evidence { seconds: self.active_us as f32 / 1e6, events: self.events }
    }

    /// Kinds of input seen so far; a few stray events do not make a modality.
    pub fn modality(&self) -> Modality {
        let InputCounts { mouse, touch, keys } = self.counts;
        match (mouse >= MOUSE_EVENTS_MIN, touch >= TOUCH_EVENTS_MIN, keys >= KEY_EVENTS_MIN) {
            (false, false, false) => Modality::None,
            (true, false, false) => Modality::Mouse,
            (false, true, false) => Modality::Touch,
            (false, false, true) => Modality::Keyboard,
            _ => Modality::Mixed,
        }
    }

    /// Whether telemetry arrives as it should. Says nothing about guilt.
    pub fn telemetry(&self, now: Timestamp) -> TelemetryState {
        if self.batches == 0 {
            return match self.requests.first_injected {
                None => TelemetryState::Unexpected,
                Some(at) if now.0.saturating_sub(at.0) < MISSING_AFTER_MS => TelemetryState::Gathering,
                Some(_) => TelemetryState::Missing,
            };
        }
        if self.damage & DAMAGE_WINDOW != 0 {
            TelemetryState::Damaged
        } else if self.ledger.scored > 0 {
            TelemetryState::Sufficient
        } else {
            TelemetryState::Gathering
        }
    }

    /// Windows completed since the last call, oldest first.
    pub fn take_windows(&mut self) -> impl Iterator<Item = Window> + use<> {
        let windows = self.pending;
        let len = std::mem::take(&mut self.pending_len);
        windows.into_iter().take(len)
    }

    /// Fingerprints of movement completed since the last call, oldest first.
    pub fn take_shingles(&mut self) -> impl Iterator<Item = Shingle> + use<> {
        self.shingles.take()
    }

    /// Checks sequence and clock; `None` for a batch that must not be counted again.
    fn admit(&mut self, now: Timestamp, page: u64, batch: &Batch) -> Option<PageTrack> {
        self.damage <<= 1;
        let offset_ms = now.0 as i64 - (batch.sent_at_us / 1000) as i64;
        let known = self.pages.iter().flatten().find(|track| track.page == page).copied();
        let mut track = known.unwrap_or(PageTrack {
            page,
            next_sequence: batch.sequence,
            offset_ms,
            last_event_us: 0,
            device: Device::of(self.environment),
            seen: now,
        });
        if batch.sequence < track.next_sequence {
            self.damage |= 1;
            return None;
        }
        let gap = batch.sequence > track.next_sequence;
        let ahead = track.offset_ms - offset_ms > CLOCK_AHEAD_MAX_MS;
        let unborn =
            batch.events.last().is_some_and(|event| event.at_us > batch.sent_at_us + BACKWARDS_MAX_US);
        if gap || ahead || unborn {
            self.damage |= 1;
        }
        if gap || self.current_page != Some(page) {
            self.interrupt();
        }
        self.current_page = Some(page);
        track.next_sequence = batch.sequence.saturating_add(1);
        track.offset_ms = track.offset_ms.min(offset_ms);
        track.seen = now;
        Some(track)
    }

    /// Movement does not continue across pages, gaps and clocks that jump.
    fn interrupt(&mut self) {
        self.tracker.reset(&mut self.slice);
        self.shingles.reset();
        if let Some(doubt) = &mut self.doubt {
            doubt.interrupt();
        }
    }

    fn keep(&mut self, track: PageTrack) {
        let place = self.pages.iter().position(|held| held.is_some_and(|held| held.page == track.page));
        let oldest = || (0..PAGES_MAX).min_by_key(|&i| self.pages[i].map_or(0, |held| held.seen.0));
        if let Some(place) = place.or_else(oldest) {
            self.pages[place] = Some(track);
        }
    }

    fn count_input(&mut self, kind: &EventKind) {
        use crate::event::PointerType::{Pen, Touch};
        let counts = &mut self.counts;
        let count = match kind {
            EventKind::PointerMove { pointer: Touch | Pen, .. }
            | EventKind::PointerDown { pointer: Touch | Pen, .. }
            | EventKind::PointerUp { pointer: Touch | Pen, .. } => &mut counts.touch,
            EventKind::PointerMove { .. }
            | EventKind::PointerDown { .. }
            | EventKind::PointerUp { .. }
            | EventKind::Wheel { .. } => &mut counts.mouse,
            EventKind::KeyDown { .. } => &mut counts.keys,
            _ => return,
        };
        *count = count.saturating_add(1);
        self.flow.observe_gesture();
    }

    fn slice_is_full(&self) -> bool {
        self.slice.active_us >= SLICE_ACTIVE_US
            || self.slice.clicks >= SLICE_CLICKS && self.slice.moves < 4 * self.slice.clicks
    }

    fn complete_slice(&mut self) {
        // The stroke under way stays with the tracker and is counted where it ends.
        let slice = std::mem::take(&mut self.slice);
        let short = WindowRow::of(&slice);
        if let Some(doubt) = &mut self.doubt {
            doubt.complete(&short);
        }
        let mut long = None;
        if self.past_len == SLICES_LONG - 1 {
            let mut merged = slice;
            self.past.iter().for_each(|past| merged.merge(past));
            long = Some(WindowRow::of(&merged));
        }
        self.past.rotate_right(1);
        self.past[0] = slice;
        self.past_len = (self.past_len + 1).min(SLICES_LONG - 1);
        if self.pending_len == WINDOWS_PENDING_MAX {
            self.pending.rotate_left(1);
            self.pending_len -= 1;
        }
        self.pending[self.pending_len] = Window { short, long };
        self.pending_len += 1;
    }

    fn check_invariants(&self) {
        debug_assert!(self.pending_len <= WINDOWS_PENDING_MAX && self.past_len < SLICES_LONG);
        debug_assert!(!self.slice_is_full(), "a full slice completes at once");
        debug_assert!(self.ledger.evidence >= 0.0 && self.ledger.evidence.is_finite());
    }
}

impl Window {
    const EMPTY: Window = Window {
        short: WindowRow { features: [f32::NAN; features::FEATURE_COUNT], support: Support::NONE },
        long: None,
    };
}

impl WindowRow {
    fn of(summary: &Summary) -> WindowRow {
        WindowRow { features: features::row(summary), support: Support::of(summary) }
    }
}

impl Support {
    const NONE: Support =
        Support { moves: 0, strokes: 0, grid_steps: 0, clicks: 0, keys: 0, wheels: 0, touches: 0 };

    fn of(summary: &Summary) -> Support {
        Support {
            moves: summary.moves,
            strokes: summary.strokes() as u32,
            grid_steps: summary.grid_ln_speed.n() as u32,
            clicks: summary.clicks,
            keys: summary.key_downs,
            wheels: summary.wheels,
            touches: summary.touches,
        }
    }
}

/// Events of one frame may be reported this far out of order, microseconds; more is a clock that jumped.
const BACKWARDS_MAX_US: u64 = 250_000;
/// Damage is forgotten after sixteen good batches, about half a minute.
const DAMAGE_WINDOW: u32 = 0xFFFF;
const MOUSE_EVENTS_MIN: u32 = 8;
const TOUCH_EVENTS_MIN: u32 = 4;
const KEY_EVENTS_MIN: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, KeyClass, PointerType};
    use crate::sim::{BotKind, Visitor};

    const START: Timestamp = Timestamp(1_700_000_000_000);

    fn after(seconds: u64) -> Timestamp {
        Timestamp(START.0 + seconds * 1000)
    }

    /// Two seconds of a visitor at a time, as the gateway gets them.
    fn feed(session: &mut Session, visitor: &mut Visitor, batches: u64) -> u32 {
        (1..=batches).map(|i| session.observe(after(2 * i), 1, &visitor.next_batch(2.0))).sum()
    }

    #[test]
    fn ten_seconds_of_active_input_complete_a_window_and_thirty_a_long_one() {
        let mut session = Session::new(START);
        let completed = feed(&mut session, &mut Visitor::bot(BotKind::LinearEven, 1), 30);
        assert_eq!(completed, (session.evidence().seconds / 10.0) as u32);
        let windows: Vec<Window> = session.take_windows().collect();
        assert_eq!(windows.len(), WINDOWS_PENDING_MAX.min(completed as usize));
        assert!(windows.iter().all(|window| window.long.is_some()));
        assert_eq!(session.take_windows().count(), 0);
    }

    #[test]
    fn clicks_of_a_pointer_that_only_jumps_complete_windows_too() {
        let mut session = Session::new(START);
        assert!(feed(&mut session, &mut Visitor::bot(BotKind::Teleport, 1), 60) >= 2);
    }

    #[test]
    fn a_resent_batch_is_counted_once_and_marks_damage() {
        let mut visitor = Visitor::person(1);
        let (first, second) = (visitor.next_batch(2.0), visitor.next_batch(2.0));
        let mut session = Session::new(START);
        session.observe(after(2), 1, &first);
        session.observe(after(4), 1, &second);
        let events = session.evidence().events;
        assert_ne!(session.telemetry(after(4)), TelemetryState::Damaged);
        session.observe(after(4), 1, &second);
        assert_eq!(session.evidence().events, events);
        assert_eq!(session.telemetry(after(4)), TelemetryState::Damaged);
    }

    #[test]
    fn a_gap_in_the_sequence_is_damage_that_heals() {
        let mut visitor = Visitor::person(2);
        let mut session = Session::new(START);
        session.observe(after(2), 1, &visitor.next_batch(2.0));
        visitor.next_batch(2.0);
        session.observe(after(6), 1, &visitor.next_batch(2.0));
        assert_eq!(session.telemetry(after(6)), TelemetryState::Damaged);
        for i in 4..24 {
            session.observe(after(2 * i), 1, &visitor.next_batch(2.0));
        }
        assert_ne!(session.telemetry(after(50)), TelemetryState::Damaged);
    }

    #[test]
    fn a_page_clock_that_runs_ahead_is_damage() {
        let mut session = Session::new(START);
        let mut visitor = Visitor::person(3);
        session.observe(after(2), 1, &visitor.next_batch(2.0));
        // A minute of page time within two seconds.
        session.observe(after(4), 1, &visitor.next_batch(60.0));
        assert_eq!(session.telemetry(after(4)), TelemetryState::Damaged);
    }

    #[test]
    fn delayed_batches_are_not_damage() {
        let mut session = Session::new(START);
        let mut visitor = Visitor::person(3);
        session.observe(after(2), 1, &visitor.next_batch(2.0));
        session.observe(after(30), 1, &visitor.next_batch(2.0));
        session.observe(after(31), 1, &visitor.next_batch(2.0));
        assert_eq!(session.telemetry(after(31)), TelemetryState::Gathering);
    }

    #[test]
    fn missing_telemetry_is_a_state_of_its_own() {
        let mut session = Session::new(START);
        let page = |injected| RequestSeen {
            navigation: true,
            collector_injected: injected,
            ..RequestSeen::default()
        };
        session.observe_request(START, page(false));
        assert_eq!(session.telemetry(after(600)), TelemetryState::Unexpected);
        session.observe_request(after(600), page(true));
        assert_eq!(session.telemetry(after(601)), TelemetryState::Gathering);
        assert_eq!(session.telemetry(after(700)), TelemetryState::Missing);
        session.observe(after(701), 1, &Batch::default());
        assert_eq!(session.telemetry(after(701)), TelemetryState::Gathering);
    }

    #[test]
    fn modality_is_what_was_used_more_than_in_passing() {
        let check = |kinds: &[(EventKind, usize)], expect| {
            let mut session = Session::new(START);
            let kinds = kinds.iter().flat_map(|&(kind, times)| std::iter::repeat_n(kind, times));
            let events =
                kinds.enumerate().map(|(i, kind)| Event { at_us: i as u64 * 50_000, trusted: true, kind });
            let events: Vec<Event> = events.collect();
            session.observe(after(60), 1, &Batch { sent_at_us: 60_000_000, events, ..Batch::default() });
            assert_eq!(session.modality(), expect);
        };
        let moved = |pointer| EventKind::PointerMove {
            pointer,
            x: 1.0,
            y: 1.0,
            movement_x: 0,
            movement_y: 0,
            coalesced: 0,
        };
        let key = EventKind::KeyDown { class: KeyClass::Letter, repeat: false };
        check(&[], Modality::None);
        check(&[(moved(PointerType::Mouse), 3)], Modality::None);
        check(&[(moved(PointerType::Mouse), 20)], Modality::Mouse);
        check(&[(moved(PointerType::Touch), 20)], Modality::Touch);
        check(&[(key, 20)], Modality::Keyboard);
        check(&[(key, 20), (moved(PointerType::Mouse), 20)], Modality::Mixed);
    }

    #[test]
    fn many_pages_and_wild_clocks_stay_within_bounds() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let mut session = Session::new(START);
        for _ in 0..3_000 {
            let mut batch = Visitor::person(rng.random_range(0..4)).next_batch(1.0);
            batch.sequence = rng.random_range(0..u32::MAX);
            batch.sent_at_us = rng.random_range(0..crate::event::PAGE_CLOCK_MAX_US);
            for event in &mut batch.events {
                event.at_us = rng.random_range(0..crate::event::PAGE_CLOCK_MAX_US);
            }
            let now = Timestamp(rng.random_range(0..u64::MAX / 4));
            session.observe(now, rng.random_range(0..50), &batch);
            for window in session.take_windows() {
                assert!(window.short.features.iter().all(|value| value.is_finite() || value.is_nan()));
            }
        }
        assert!(session.evidence().seconds.is_finite());
    }
}
