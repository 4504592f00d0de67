//! How a hand moves a mouse, as counts: streaming, additive, of fixed size, for telling people apart.
//!
//! Where the feature table says a few numbers about a window, this keeps whole distributions (of
//! intervals, speeds by direction, turns, the shape of strokes, pauses, clicks), in which one person
//! differs from another more than a bot differs from a person. Intervals between events are among them
//! and belong to the device as much as to the hand: a person's new mouse looks a little like somebody
//! else. No place on the screen and no key is counted. Constant time and memory an event.
//! Must not know: whose hand it is, scores.

use crate::event::{Event, EventKind, PointerType};
use crate::summary::{ACTIVE_GAP_US, GRID_US, STILL_US};
use sha2::{Digest, Sha256};

/// Active input that completes a block of many moves, microseconds: 14 s.
pub const BLOCK_ACTIVE_US: u64 = 14_000_000;
/// Moves that are many. Work in which a pointer moves now and then makes longer blocks, as short ones would
/// hold little: at 60 a second 14 s hold 500, over a remote desktop 70.
pub const BLOCK_MOVES_FULL: u32 = 200;
/// Active input that completes any block, microseconds: 56 s.
pub const BLOCK_ACTIVE_MAX_US: u64 = 56_000_000;
/// A block with fewer moves (a page read by the wheel) says too little about a hand.
pub const BLOCK_MOVES_MIN: u32 = 100;

/// One block: how frequently each kind of movement occurred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hand {
    counts: [u16; BINS],
}

/// Each distribution's name and number of bins, in the order of [`Hand::counts`].
pub const GROUPS: [(&str, usize); 20] = [
    ("interval", 49),
    ("small_step", 49),
    ("heading_speed", 8 * SPEEDS),
    ("speed_change", 81),
    ("acceleration", 24),
    ("turn", 23),
    ("stroke_length", 16),
    ("stroke_duration", 14),
    ("stroke_straightness", 12),
    ("stroke_speed", 16),
    ("stroke_peak", 11),
    ("stroke_peak_at", 10),
    ("stroke_start", 14),
    ("stroke_end", 14),
    ("stroke_bow", 17),
    ("stroke_heading", 16),
    ("pause", 10),
    ("click_dwell", 16),
    ("click_before", 13),
    ("click_after", 13),
];

/// Counts of one block.
pub const BINS: usize = {
    let (mut bins, mut i) = (0, 0);
    while i < GROUPS.len() {
        bins += GROUPS[i].1;
        i += 1;
    }
    bins
};

impl Hand {
    pub const EMPTY: Hand = Hand { counts: [0; BINS] };

    pub fn of(counts: [u16; BINS]) -> Hand {
        Hand { counts }
    }

    pub fn counts(&self) -> &[u16; BINS] {
        &self.counts
    }

    /// Adds another block's counts: the same as one longer block.
    pub fn merge(&mut self, other: &Hand) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }

    /// Typical time between moves, milliseconds: the median. `None` without any.
    pub fn interval_ms(&self) -> Option<f32> {
        let first = FIRST[Group::Interval as usize];
        let counts = &self.counts[first..first + GROUPS[Group::Interval as usize].1];
        let n: u32 = counts.iter().map(|&count| u32::from(count)).sum();
        let mut seen = 0;
        let middle = counts.iter().position(|&count| {
            seen += u32::from(count);
            2 * seen >= n.max(1)
        })?;
        Some(if middle < FINE_MS { middle as f32 + 1.0 } else { COARSE_MIDDLE_MS[middle - FINE_MS] })
    }

    /// Adds one to bin `bin` of group `group`; what lies outside lands in the nearest bin.
    fn add(&mut self, group: Group, bin: usize) {
        let (first, bins) = (FIRST[group as usize], GROUPS[group as usize].1);
        let count = &mut self.counts[first + bin.min(bins - 1)];
        *count = count.saturating_add(1);
    }
}

/// Hash of what a block counts, 16 hex digits: blocks of another table cannot be compared.
pub fn table_hash() -> String {
    let mut hasher = Sha256::new();
    hasher.update(
        [BLOCK_ACTIVE_US, BLOCK_ACTIVE_MAX_US, BLOCK_MOVES_FULL.into()].map(u64::to_le_bytes).as_flattened(),
    );
    for (name, bins) in GROUPS {
        hasher.update(name);
        hasher.update((bins as u32).to_le_bytes());
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The blocks of a recording, by the code that runs live.
pub fn blocks(events: &[Event]) -> Vec<Hand> {
    let mut tracker = HandTracker::default();
    let mut blocks: Vec<Hand> = events.iter().filter_map(|event| tracker.observe(event)).collect();
    blocks.extend(tracker.rest());
    blocks
}

/// Turns events into blocks.
#[derive(Clone, Debug)]
pub struct HandTracker {
    hand: Hand,
    active_us: u64,
    moves: u32,
    last_input_us: Option<u64>,
    last_move: Option<(u64, f32, f32)>,
    stroke: Option<Stroke>,
    down_us: Option<u64>,
    up_us: Option<u64>,
}

impl Default for HandTracker {
    fn default() -> HandTracker {
        HandTracker {
            hand: Hand::EMPTY,
            active_us: 0,
            moves: 0,
            last_input_us: None,
            last_move: None,
            stroke: None,
            down_us: None,
            up_us: None,
        }
    }
}

impl HandTracker {
    /// Adds one event, in order of time; gives the block that it completes. Blocks with hardly any
    /// mouse movement are dropped.
    pub fn observe(&mut self, event: &Event) -> Option<Hand> {
        let at = event.at_us;
        let is_mouse = matches!(
            event.kind,
            EventKind::PointerMove { pointer: PointerType::Mouse, .. }
                | EventKind::PointerDown { pointer: PointerType::Mouse, .. }
                | EventKind::PointerUp { pointer: PointerType::Mouse, .. }
                | EventKind::Wheel { .. }
        );
        if !is_mouse {
            return None;
        }
        let gap = self.last_input_us.map(|last| at.saturating_sub(last));
        if let Some(gap) = gap {
            if gap >= STILL_US {
                self.hand.add(Group::Pause, bin(&PAUSE_MS, ms(gap)));
            }
            self.active_us += gap.min(ACTIVE_GAP_US);
        }
        if let Some(up) = self.up_us.take() {
            self.hand.add(Group::ClickAfter, bin(&CLICK_MS, ms(at.saturating_sub(up))));
        }
        self.last_input_us = Some(at);
        match event.kind {
            EventKind::PointerMove { x, y, .. } => self.observe_move(at, x, y),
            EventKind::PointerDown { .. } => {
                if let Some(gap) = gap {
                    self.hand.add(Group::ClickBefore, bin(&CLICK_MS, ms(gap)));
                }
                self.down_us = Some(at);
            }
            EventKind::PointerUp { .. } => {
                if let Some(down) = self.down_us.take() {
                    self.hand.add(Group::ClickDwell, bin(&DWELL_MS, ms(at.saturating_sub(down))));
                    self.up_us = Some(at);
                }
            }
            _ => {}
        }
        let is_full = self.active_us >= BLOCK_ACTIVE_US && self.moves >= BLOCK_MOVES_FULL;
        if is_full || self.active_us >= BLOCK_ACTIVE_MAX_US { self.take() } else { None }
    }

    /// What is left at the end of a session, if it is at least half a block.
    pub fn rest(&mut self) -> Option<Hand> {
        if 2 * self.active_us >= BLOCK_ACTIVE_US { self.take() } else { None }
    }

    /// Forgets what is under way: what follows has another clock or another place to move from. What was
    /// counted stays.
    pub fn interrupt(&mut self) {
        let (hand, active_us, moves) = (self.hand.clone(), self.active_us, self.moves);
        *self = HandTracker { hand, active_us, moves, ..HandTracker::default() };
    }

    fn take(&mut self) -> Option<Hand> {
        self.active_us = 0;
        let moves = std::mem::take(&mut self.moves);
        let hand = std::mem::replace(&mut self.hand, Hand::EMPTY);
        (moves >= BLOCK_MOVES_MIN).then_some(hand)
    }

    fn observe_move(&mut self, at: u64, x: f32, y: f32) {
        self.moves += 1;
        let Some((last_us, last_x, last_y)) = self.last_move.replace((at, x, y)) else {
            self.stroke = Some(Stroke::new(at, x, y));
            return;
        };
        let gap = at.saturating_sub(last_us);
        if gap > 0 && gap <= ACTIVE_GAP_US {
            self.hand.add(Group::Interval, interval_bin(ms(gap)));
        }
        if gap > STILL_US {
            if let Some(stroke) = self.stroke.take() {
                stroke.finish(&mut self.hand);
            }
            self.stroke = Some(Stroke::new(at, x, y));
            return;
        }
        let (dx, dy) = (x - last_x, y - last_y);
        if dx.abs() <= 3.0 && dy.abs() <= 3.0 {
            let cell = |d: f32| (d.round() + 3.0) as usize;
            self.hand.add(Group::SmallStep, cell(dx) * 7 + cell(dy));
        }
        if let Some(stroke) = &mut self.stroke {
            stroke.walk(&mut self.hand, at, x, y);
        }
    }
}

/// One movement between two standstills, on the 20 ms grid from its first event.
#[derive(Clone, Copy, Debug)]
struct Stroke {
    began_us: u64,
    at_us: u64,
    from: (f32, f32),
    at: (f32, f32),
    grid_us: u64,
    grid: (f32, f32),
    events: u32,
    steps: u32,
    latest: [(f32, f32); SMOOTHED],
    path: f32,
    /// Signed area between the path and its chord, px².
    area: f32,
    samples: u32,
    speeds: f32,
    peak: f32,
    peak_at: u32,
    start: f32,
    recent: [f32; ENDS],
    last: Option<Sample>,
}

/// A smoothed grid step: speed in px/s, its logarithm to base 2, heading.
#[derive(Clone, Copy, Debug)]
struct Sample {
    speed: f32,
    log: f32,
    heading: f32,
}

impl Stroke {
    fn new(at: u64, x: f32, y: f32) -> Stroke {
        Stroke {
            began_us: at,
            at_us: at,
            from: (x, y),
            at: (x, y),
            grid_us: at,
            grid: (x, y),
            events: 1,
            steps: 0,
            latest: [(0.0, 0.0); SMOOTHED],
            path: 0.0,
            area: 0.0,
            samples: 0,
            speeds: 0.0,
            peak: 0.0,
            peak_at: 0,
            start: 0.0,
            recent: [0.0; ENDS],
            last: None,
        }
    }

    /// Emits the grid points up to an event; at most five, as a longer gap has ended the stroke.
    fn walk(&mut self, hand: &mut Hand, at: u64, x: f32, y: f32) {
        self.events += 1;
        let span = (at.saturating_sub(self.at_us)) as f32;
        while span > 0.0 && self.grid_us + GRID_US <= at {
            self.grid_us += GRID_US;
            let share = self.grid_us.saturating_sub(self.at_us) as f32 / span;
            let place = (self.at.0 + (x - self.at.0) * share, self.at.1 + (y - self.at.1) * share);
            let (dx, dy) = (place.0 - self.grid.0, place.1 - self.grid.1);
            self.area += 0.5 * ((self.grid.0 - self.from.0) * dy - (self.grid.1 - self.from.1) * dx);
            self.path += dx.hypot(dy);
            self.grid = place;
            self.latest[self.steps as usize % SMOOTHED] = (dx, dy);
            self.steps += 1;
            if self.steps as usize >= SMOOTHED {
                let (sx, sy) = self.latest.iter().fold((0.0, 0.0), |(sx, sy), (dx, dy)| (sx + dx, sy + dy));
                self.sample(hand, sx / (SMOOTHED as f32 * GRID_S), sy / (SMOOTHED as f32 * GRID_S));
            }
        }
        (self.at_us, self.at) = (at, (x, y));
    }

    fn sample(&mut self, hand: &mut Hand, vx: f32, vy: f32) {
        let speed = vx.hypot(vy);
        let now = Sample { speed, log: speed.max(0.5).log2(), heading: vy.atan2(vx) };
        if speed > 10.0 {
            let octant = sector(now.heading, 8);
            let level = (((now.log - 3.0) / 0.75).max(0.0) as usize).min(SPEEDS - 1);
            hand.add(Group::HeadingSpeed, octant * SPEEDS + level);
        }
        if let Some(last) = self.last {
            let typical = 0.5 * (speed.max(15.0) + last.speed.max(15.0));
            hand.add(Group::Acceleration, bin(&ACCELERATION, (speed - last.speed) / GRID_S / typical));
            let level = |log: f32| (((log - 4.0) / 0.9).max(0.0) as usize).min(8);
            hand.add(Group::SpeedChange, level(last.log) * 9 + level(now.log));
            if speed > 40.0 && last.speed > 40.0 {
                let mut turn = now.heading - last.heading;
                if turn > std::f32::consts::PI {
                    turn -= std::f32::consts::TAU;
                } else if turn < -std::f32::consts::PI {
                    turn += std::f32::consts::TAU;
                }
                hand.add(Group::Turn, bin(&TURN_RAD, turn));
            }
        }
        if (self.samples as usize) < ENDS {
            self.start += speed;
        }
        self.recent[self.samples as usize % ENDS] = speed;
        if speed > self.peak {
            (self.peak, self.peak_at) = (speed, self.samples);
        }
        self.speeds += speed;
        self.samples += 1;
        self.last = Some(now);
    }

    fn finish(&self, hand: &mut Hand) {
        let duration_ms = ms(self.at_us.saturating_sub(self.began_us));
        if self.samples < 3 || self.events < 4 || duration_ms < 100.0 || self.path <= STROKE_PX_MIN {
            return;
        }
        let n = self.samples as f32;
        let mean = (self.speeds / n).max(1.0);
        let (dx, dy) = (self.at.0 - self.from.0, self.at.1 - self.from.1);
        let chord = dx.hypot(dy);
        let ends = self.samples.min(ENDS as u32) as f32;
        let end = self.recent.iter().sum::<f32>() / ends;
        let even = |value: f32, least: f32, step: f32| ((value - least) / step + 1.0).max(0.0) as usize;
        hand.add(Group::StrokeLength, even(self.path.log2(), 4.0, 0.5));
        hand.add(Group::StrokeDuration, even(duration_ms.log2(), 7.0, 0.4));
        hand.add(Group::StrokeStraightness, bin(&STRAIGHTNESS, chord / self.path));
        hand.add(Group::StrokeSpeed, even((self.path / duration_ms * 1000.0).log2(), 5.0, 0.5));
        hand.add(Group::StrokePeak, bin(&PEAK_RATIO, self.peak / mean));
        hand.add(Group::StrokePeakAt, (10.0 * self.peak_at as f32 / n) as usize);
        hand.add(Group::StrokeStart, even(((self.start / ends + 1.0) / mean).log2(), -4.0, 0.5));
        hand.add(Group::StrokeEnd, even(((end + 1.0) / mean).log2(), -4.0, 0.5));
        if chord > STROKE_PX_MIN {
            hand.add(Group::StrokeBow, bin(&BOW, self.area / (chord * chord)));
            hand.add(Group::StrokeHeading, sector(dy.atan2(dx), 16));
        }
    }
}

/// Position of each distribution in [`GROUPS`].
#[derive(Clone, Copy)]
enum Group {
    Interval,
    SmallStep,
    HeadingSpeed,
    SpeedChange,
    Acceleration,
    Turn,
    StrokeLength,
    StrokeDuration,
    StrokeStraightness,
    StrokeSpeed,
    StrokePeak,
    StrokePeakAt,
    StrokeStart,
    StrokeEnd,
    StrokeBow,
    StrokeHeading,
    Pause,
    ClickDwell,
    ClickBefore,
    ClickAfter,
}

/// First bin of each group.
const FIRST: [usize; GROUPS.len()] = {
    let mut first = [0; GROUPS.len()];
    let mut i = 1;
    while i < GROUPS.len() {
        first[i] = first[i - 1] + GROUPS[i - 1].1;
        i += 1;
    }
    first
};

/// How many of the edges a value has reached: one bin more than edges. NaN lands in the first.
fn bin(edges: &[f32], value: f32) -> usize {
    edges.partition_point(|&edge| value >= edge)
}

/// Whole milliseconds up to 40, where recorders differ, then coarser.
fn interval_bin(ms: f32) -> usize {
    if ms < FINE_MS as f32 + 0.5 { (ms - 0.5).max(0.0) as usize } else { FINE_MS + bin(&COARSE_EDGES_MS, ms) }
}

fn sector(heading: f32, sectors: usize) -> usize {
    ((heading / std::f32::consts::TAU + 1.0) * sectors as f32 + 0.5) as usize % sectors
}

fn ms(us: u64) -> f32 {
    us as f32 / 1000.0
}

const FINE_MS: usize = 40;
const COARSE_EDGES_MS: [f32; 8] = [50.0, 65.0, 80.0, 100.0, 130.0, 180.0, 260.0, 400.0];
/// What a bin beyond the fine ones stands for.
const COARSE_MIDDLE_MS: [f32; 9] = [45.0, 57.0, 72.0, 90.0, 114.0, 153.0, 216.0, 322.0, 500.0];
const GRID_S: f32 = GRID_US as f32 / 1e6;
/// Grid steps a velocity is averaged over.
const SMOOTHED: usize = 3;
/// Samples at each end of a stroke whose speed is set against its mean.
const ENDS: usize = 4;
/// Speed levels a direction: steps of three quarters of an octave from 8 px/s.
const SPEEDS: usize = 13;
const STROKE_PX_MIN: f32 = 12.0;
const PAUSE_MS: [f32; 9] = [120.0, 150.0, 190.0, 240.0, 300.0, 400.0, 520.0, 700.0, 1000.0];
const DWELL_MS: [f32; 15] =
    [40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 110.0, 120.0, 135.0, 150.0, 175.0, 210.0, 260.0, 400.0];
const CLICK_MS: [f32; 12] = [8.0, 16.0, 25.0, 40.0, 60.0, 90.0, 130.0, 180.0, 250.0, 350.0, 500.0, 800.0];
/// Change of speed relative to speed, 1/s.
const ACCELERATION: [f32; 23] = [
    -60.0, -40.0, -28.0, -20.0, -14.0, -10.0, -7.0, -5.0, -3.0, -1.5, -0.5, 0.0, 0.5, 1.5, 3.0, 5.0, 7.0,
    10.0, 14.0, 20.0, 28.0, 40.0, 60.0,
];
const TURN_RAD: [f32; 22] = [
    -2.6, -2.0, -1.5, -1.1, -0.8, -0.55, -0.37, -0.24, -0.15, -0.08, -0.03, 0.03, 0.08, 0.15, 0.24, 0.37,
    0.55, 0.8, 1.1, 1.5, 2.0, 2.6,
];
const STRAIGHTNESS: [f32; 11] = [0.3, 0.5, 0.65, 0.75, 0.82, 0.88, 0.92, 0.95, 0.97, 0.985, 0.995];
const PEAK_RATIO: [f32; 10] = [1.2, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0, 3.6, 5.0];
const BOW: [f32; 16] =
    [-0.5, -0.3, -0.2, -0.13, -0.08, -0.045, -0.02, -0.007, 0.007, 0.02, 0.045, 0.08, 0.13, 0.2, 0.3, 0.5];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Visitor;

    fn blocks(seed: u64, seconds: usize) -> Vec<Hand> {
        let (mut visitor, mut tracker) = (Visitor::person(seed), HandTracker::default());
        let mut blocks = Vec::new();
        for _ in 0..seconds / 2 {
            blocks.extend(visitor.next_batch(2.0).events.iter().filter_map(|event| tracker.observe(event)));
        }
        blocks
    }

    fn of(hand: &Hand, group: Group) -> u32 {
        let first = FIRST[group as usize];
        hand.counts[first..first + GROUPS[group as usize].1].iter().map(|&count| u32::from(count)).sum()
    }

    #[test]
    fn a_minute_of_a_person_fills_blocks_with_every_kind_of_movement() {
        let blocks = blocks(3, 120);
        assert!((3..=9).contains(&blocks.len()), "{} blocks", blocks.len());
        for group in [Group::Interval, Group::Turn, Group::StrokeLength, Group::Pause, Group::ClickDwell] {
            assert!(blocks.iter().any(|hand| of(hand, group) > 0), "{}", GROUPS[group as usize].0);
        }
    }

    #[test]
    fn every_group_has_the_bins_its_edges_make() {
        for (group, edges) in [
            (Group::Pause, PAUSE_MS.len()),
            (Group::ClickDwell, DWELL_MS.len()),
            (Group::ClickBefore, CLICK_MS.len()),
            (Group::ClickAfter, CLICK_MS.len()),
            (Group::Acceleration, ACCELERATION.len()),
            (Group::Turn, TURN_RAD.len()),
            (Group::StrokeStraightness, STRAIGHTNESS.len()),
            (Group::StrokePeak, PEAK_RATIO.len()),
            (Group::StrokeBow, BOW.len()),
        ] {
            assert_eq!(GROUPS[group as usize].1, edges + 1, "{}", GROUPS[group as usize].0);
        }
        assert_eq!((interval_bin(0.1), interval_bin(16.2), interval_bin(1e9)), (0, 15, 48));
        assert_eq!(GROUPS[Group::Interval as usize].1, FINE_MS + COARSE_MIDDLE_MS.len());
    }

    #[test]
    fn the_typical_interval_is_the_median_of_what_was_counted() {
        let moves = |step_ms: u64| {
            let mut tracker = HandTracker::default();
            let moved = |i: u64| EventKind::PointerMove {
                pointer: PointerType::Mouse,
                x: i as f32,
                y: 0.0,
                movement_x: 0,
                movement_y: 0,
                coalesced: 0,
            };
            let each = (0..4000).map(|i| Event { at_us: i * step_ms * 1000, trusted: true, kind: moved(i) });
            each.filter_map(|event| tracker.observe(&event)).next().unwrap()
        };
        assert_eq!([8, 17, 60].map(|ms| moves(ms).interval_ms()), [Some(8.0), Some(17.0), Some(57.0)]);
        assert_eq!(Hand::EMPTY.interval_ms(), None);
    }

    #[test]
    fn what_an_interruption_lies_between_is_counted_as_nothing() {
        let moved = |at_us, x| Event {
            at_us,
            trusted: true,
            kind: EventKind::PointerMove {
                pointer: PointerType::Mouse,
                x,
                y: 0.0,
                movement_x: 0,
                movement_y: 0,
                coalesced: 0,
            },
        };
        let mut tracker = HandTracker::default();
        tracker.observe(&moved(9_000_000, 5.0));
        let before = tracker.hand.clone();
        tracker.interrupt();
        tracker.observe(&moved(16_000, 900.0));
        assert_eq!((tracker.hand.clone(), tracker.active_us, tracker.moves), (before, 0, 2));
    }

    #[test]
    fn where_on_the_screen_does_not_matter() {
        let shifted = |by: f32| {
            let (mut visitor, mut tracker) = (Visitor::person(5), HandTracker::default());
            let mut blocks = Vec::new();
            for _ in 0..30 {
                for mut event in visitor.next_batch(2.0).events {
                    if let EventKind::PointerMove { x, y, .. } = &mut event.kind {
                        (*x, *y) = (x.round() + by, y.round() + by);
                    }
                    blocks.extend(tracker.observe(&event));
                }
            }
            blocks
        };
        assert_eq!(shifted(0.0), shifted(256.0));
    }

    #[test]
    fn touch_keys_and_a_pointer_at_rest_make_no_block() {
        let mut tracker = HandTracker::default();
        for i in 0..100 {
            let kind = EventKind::Wheel { dx: 0, dy: 100 };
            assert_eq!(tracker.observe(&Event { at_us: i * 900_000, trusted: true, kind }), None);
            let (pointer, x, y) = (PointerType::Touch, i as f32, 1.0);
            let kind = EventKind::PointerMove { pointer, x, y, movement_x: 0, movement_y: 0, coalesced: 0 };
            assert_eq!(tracker.observe(&Event { at_us: i * 900_000, trusted: true, kind }), None);
        }
        assert_eq!(tracker.rest(), None);
    }
}
