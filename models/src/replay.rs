//! Movement that has been seen before: a fingerprint of every few strokes, a bounded memory of such
//! fingerprints over all sessions, and how much of one session repeats what the memory holds.
//!
//! People never make the same movement twice; a recording does, whatever page, pace, size or mirror it is
//! played back with. One likeness is chance; likenesses in the same order and at the same distance are not.
//! A shingle is three successive sub-movements on the 20 ms grid, cut where speed dips. It is described by
//! log speed and turn at six places of each, relative to the shingle's own, so that place, size, pace and
//! rotation drop out. Memory is searched by locality-sensitive hashing (signs of random projections in
//! bands). Must not know: who the sessions belong to, what follows from a match.

use crate::event::{Event, EventKind, PointerType};
use crate::summary::{GRID_US, STILL_US};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Numbers in one fingerprint.
pub const DIMENSIONS: usize = 2 * SEGMENTS * POINTS + 4;
/// Shingles of one session that wait to be compared; a batch of two seconds makes four or five, and more than this are passed over.
pub const SHINGLES_PENDING_MAX: usize = 10;
/// Fingerprints remembered over all sessions, 16 MB: about twenty hours of pointers in motion, at some
/// two a second.
pub const MEMORY_SHINGLES: usize = 128 * 1024;
/// Possible repetitions followed at a time in one session.
pub const THREADS_MAX: usize = 16;

/// Three successive sub-movements, described.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shingle {
    /// Sixteenths of a usual deviation.
    shape: [i8; DIMENSIONS],
    /// Exact intervals and steps, hashed: equal only for a recording played back untouched.
    exact: u32,
    /// Where it ends, in grid steps of this session's pointer in motion.
    ends: u32,
    /// How long it is, in grid steps.
    steps: u16,
}

impl Shingle {
    /// Root mean square difference in usual deviations; unrelated movement differs by 1.3, and one pair in
    /// ten thousand by less than .3.
    fn distance(&self, other: &Shingle) -> f32 {
        let squares = |(a, b): (&i8, &i8)| (i32::from(*a) - i32::from(*b)).pow(2);
        let sum: i32 = self.shape.iter().zip(&other.shape).map(squares).sum();
        (sum as f32 / DIMENSIONS as f32).sqrt() / SHAPE_SCALE
    }
}

/// Cuts movement into sub-movements and describes every three of them. Constant memory.
#[derive(Clone, Debug)]
pub struct Shingles {
    last: Option<(u64, f32, f32)>,
    grid: (u64, f32, f32),
    recent: [(f32, f32); SMOOTHED],
    recent_len: usize,
    still: u32,
    /// Smoothed steps of the sub-movement under way.
    steps: [(f32, f32); SEGMENT_STEPS_MAX],
    len: usize,
    falling: bool,
    extreme: f32,
    extreme_at: usize,
    exact: u32,
    before: [Segment; SEGMENTS - 1],
    before_len: usize,
    motion: u32,
    pending: [Shingle; SHINGLES_PENDING_MAX],
    pending_len: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    steps: u16,
    points: [(f32, f32); POINTS],
    exact: u32,
}

impl Default for Shingles {
    fn default() -> Shingles {
        let none = Shingle { shape: [0; DIMENSIONS], exact: 0, ends: 0, steps: 0 };
        Shingles {
            last: None,
            grid: (0, 0.0, 0.0),
            recent: [(0.0, 0.0); SMOOTHED],
            recent_len: 0,
            still: 0,
            steps: [(0.0, 0.0); SEGMENT_STEPS_MAX],
            len: 0,
            falling: false,
            extreme: 0.0,
            extreme_at: 0,
            exact: HASH_START,
            before: [Segment::default(); SEGMENTS - 1],
            before_len: 0,
            motion: 0,
            pending: [none; SHINGLES_PENDING_MAX],
            pending_len: 0,
        }
    }
}

impl Shingles {
    /// Forgets the thread: another page, or a gap in what arrived. What was described stays.
    pub fn reset(&mut self) {
        let (motion, pending, pending_len) = (self.motion, self.pending, self.pending_len);
        *self = Shingles { motion, pending, pending_len, ..Shingles::default() };
    }

    /// Times must not run backwards.
    pub fn observe(&mut self, event: &Event) {
        let EventKind::PointerMove { pointer: PointerType::Mouse, x, y, .. } = event.kind else { return };
        let at = event.at_us;
        let Some((last, last_x, last_y)) = self.last.replace((at, x, y)) else {
            self.grid = (at, x, y);
            return;
        };
        let gap = at.saturating_sub(last);
        let (dx, dy) = (x - last_x, y - last_y);
        let mut from = last;
        // Remote desktops and busy pages tell of a move only now and then; after a rest the pointer starts slowly.
        let is_sparse = gap <= SPARSE_US && dx.hypot(dy) >= SPARSE_PX * gap as f32 / GRID_US as f32;
        if gap > STILL_US && !is_sparse {
            self.stop();
            if gap > PAUSE_US {
                self.before_len = 0;
            }
            if dx.hypot(dy) >= JUMP_PX {
                // It left the page and came back elsewhere: no movement to describe.
                self.grid = (at, x, y);
                return;
            }
            from = at - GRID_US;
            self.grid = (from, last_x, last_y);
        } else {
            hash(&mut self.exact, (gap / 100) as u32);
        }
        hash(&mut self.exact, (4.0 * dx) as i32 as u32);
        hash(&mut self.exact, (4.0 * dy) as i32 as u32);
        if at <= from {
            return;
        }
        let span = (at - from) as f32;
        while self.grid.0 + GRID_US <= at {
            self.grid.0 += GRID_US;
            let share = self.grid.0.saturating_sub(from) as f32 / span;
            let here = (last_x + dx * share, last_y + dy * share);
            let step = (here.0 - self.grid.1, here.1 - self.grid.2);
            (self.grid.1, self.grid.2) = here;
            self.step(step);
        }
    }

    /// Shingles completed since the last call, oldest first.
    pub fn take(&mut self) -> impl Iterator<Item = Shingle> + use<> {
        let pending = self.pending;
        pending.into_iter().take(std::mem::take(&mut self.pending_len))
    }

    fn step(&mut self, step: (f32, f32)) {
        if step.0.hypot(step.1) < STILL_PX {
            self.still += 1;
            if u64::from(self.still) * GRID_US == STILL_US {
                self.stop();
            }
            return;
        }
        self.still = 0;
        self.motion = self.motion.saturating_add(1);
        self.recent.rotate_left(1);
        self.recent[SMOOTHED - 1] = step;
        self.recent_len = (self.recent_len + 1).min(SMOOTHED);
        if self.recent_len < SMOOTHED {
            return;
        }
        if self.len == SEGMENT_STEPS_MAX {
            self.cut(SEGMENT_STEPS_MAX);
        }
        let sum = self.recent.iter().fold((0.0, 0.0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        let mean = (sum.0 / SMOOTHED as f32, sum.1 / SMOOTHED as f32);
        self.steps[self.len] = mean;
        self.len += 1;
        self.find_dip(mean.0.hypot(mean.1).max(0.01));
    }

    /// A sub-movement ends where speed dips: falls to .6 of the peak and rises by half again.
    fn find_dip(&mut self, speed: f32) {
        if self.len == 1 {
            (self.falling, self.extreme, self.extreme_at) = (false, speed, 0);
        }
        if !self.falling {
            if speed > self.extreme {
                self.extreme = speed;
            } else if speed < 0.6 * self.extreme {
                (self.falling, self.extreme, self.extreme_at) = (true, speed, self.len);
            }
        } else if speed < self.extreme {
            (self.extreme, self.extreme_at) = (speed, self.len);
        } else if speed > 1.5 * self.extreme {
            let dip = self.extreme_at;
            (self.falling, self.extreme) = (false, speed);
            if dip >= SEGMENT_STEPS_MIN {
                self.cut(dip);
            }
        }
    }

    fn stop(&mut self) {
        if self.len >= SEGMENT_STEPS_MIN {
            self.cut(self.len);
        }
        (self.len, self.recent_len, self.exact) = (0, 0, HASH_START);
    }

    /// Ends the sub-movement after `at` steps; those after it begin the next.
    fn cut(&mut self, at: usize) {
        let mut segment = Segment {
            steps: at as u16,
            exact: std::mem::replace(&mut self.exact, HASH_START),
            ..Segment::default()
        };
        let each = at as f32 / POINTS as f32;
        for (k, point) in segment.points.iter_mut().enumerate() {
            let (from, to) = (k as f32 * each, (k + 1) as f32 * each);
            for i in from as usize..(to.ceil() as usize).min(at) {
                let weight = (((i + 1) as f32).min(to) - (i as f32).max(from)) / each;
                *point = (point.0 + weight * self.steps[i].0, point.1 + weight * self.steps[i].1);
            }
        }
        self.steps.copy_within(at..self.len, 0);
        self.len -= at;
        self.extreme_at = 0;
        if self.before_len < SEGMENTS - 1 {
            self.before[self.before_len] = segment;
            self.before_len += 1;
            return;
        }
        let segments = [self.before[0], self.before[1], segment];
        self.before = [self.before[1], segment];
        if let Some(shingle) = describe(&segments, self.motion)
            && self.pending_len < SHINGLES_PENDING_MAX
        {
            self.pending[self.pending_len] = shingle;
            self.pending_len += 1;
        }
    }
}

/// `None` for movement too even to be told from other movement.
fn describe(segments: &[Segment; SEGMENTS], ends: u32) -> Option<Shingle> {
    let chord = |segment: &Segment| {
        let each = f32::from(segment.steps) / POINTS as f32;
        segment.points.iter().fold((0.0, 0.0), |(x, y), point| (x + each * point.0, y + each * point.1))
    };
    let middle = chord(&segments[1]);
    let heading = middle.1.atan2(middle.0);
    let points = || segments.iter().flat_map(|segment| segment.points);
    let ln_speed = |point: (f32, f32)| point.0.hypot(point.1).max(SPEED_MIN).ln();
    let n = (SEGMENTS * POINTS) as f32;
    let mean = points().map(ln_speed).sum::<f32>() / n;
    let variance = points().map(|point| (ln_speed(point) - mean).powi(2)).sum::<f32>() / n;
    if variance < LN_SPEED_SD_MIN * LN_SPEED_SD_MIN {
        return None;
    }
    let mut shape = [0i8; DIMENSIONS];
    let mut next = shape.iter_mut();
    let mut put = |value: f32| {
        if let Some(place) = next.next() {
            *place = (value * SHAPE_SCALE).clamp(-127.0, 127.0) as i8;
        }
    };
    for (i, point) in points().enumerate() {
        put(ln_speed(point) - mean - USUAL_LN_SPEED[i % POINTS]);
    }
    for (i, point) in points().enumerate() {
        // A cosine, so that a mirrored movement is the same movement.
        let turn = (point.1.atan2(point.0) - heading).cos();
        put(if i / POINTS == 1 { (turn - 0.92) / 0.3 } else { (turn + 0.1) / 0.8 });
    }
    let ln_length = |segment: &Segment| {
        let (x, y) = chord(segment);
        x.hypot(y).max(1.0).ln()
    };
    for outer in [0, 2] {
        put((f32::from(segments[outer].steps) / f32::from(segments[1].steps)).ln() / 0.6);
        put((ln_length(&segments[outer]) - ln_length(&segments[1])) / 1.8);
    }
    let mut exact = HASH_START;
    segments.iter().for_each(|segment| hash(&mut exact, segment.exact));
    let steps = segments.iter().map(|segment| segment.steps).sum();
    Some(Shingle { shape, exact, ends, steps })
}

/// How movement repeats what was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplayKind {
    /// Step for step and interval for interval.
    Exact,
    /// The same movement, at another time, pace, place or size.
    Shifted,
    /// The same movement with noise on top.
    Jittered,
}

impl ReplayKind {
    pub const ALL: [ReplayKind; 3] = [ReplayKind::Exact, ReplayKind::Shifted, ReplayKind::Jittered];

    pub fn name(self) -> &'static str {
        match self {
            ReplayKind::Exact => "exact",
            ReplayKind::Shifted => "shifted",
            ReplayKind::Jittered => "jittered",
        }
    }
}

/// One memory for all shards. A holder that panicked leaves it whole enough: at worst a likeness is missed.
#[derive(Clone)]
pub struct SharedMemory(Arc<Mutex<Memory>>);

impl SharedMemory {
    pub fn new(memory: Memory) -> SharedMemory {
        SharedMemory(Arc::new(Mutex::new(memory)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fingerprints of all sessions' movement, the oldest forgotten first; about 120 bytes each.
pub struct Memory {
    planes: Vec<[i8; DIMENSIONS]>,
    /// A ring: entry `number` lies at `number % capacity`.
    entries: Vec<Entry>,
    /// Number of the newest entry in each bucket of each band.
    heads: Vec<u64>,
    /// Number of the next entry. The first is 1, so that 0 is none.
    next: u64,
    capacity: usize,
    ttl_ms: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    session: u64,
    at: Timestamp,
    shingle: Shingle,
    /// The entry before in the same bucket of each band: older numbers, to where the ring was overwritten.
    older: [u64; BANDS],
}

impl Memory {
    /// Remembers at most `capacity` shingles, none for longer than `ttl_ms`.
    pub fn new(capacity: usize, ttl_ms: u64) -> Memory {
        // Any fixed directions will do: SplitMix64.
        let mut state = 0u64;
        let mut direction = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z >> 57) as i8 - 64
        };
        Memory {
            planes: (0..BANDS * BAND_BITS).map(|_| std::array::from_fn(|_| direction())).collect(),
            entries: Vec::new(),
            heads: vec![0; BANDS << BAND_BITS],
            next: 1,
            capacity: capacity.max(1),
            ttl_ms,
        }
    }

    /// Shingles held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Places in `heads` where the shape belongs, one a band.
    fn buckets(&self, shape: &[i8; DIMENSIONS]) -> [usize; BANDS] {
        std::array::from_fn(|band| {
            let planes = &self.planes[band * BAND_BITS..(band + 1) * BAND_BITS];
            let bucket = planes.iter().fold(0, |bucket, plane| {
                let dot: i32 = plane.iter().zip(shape).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                bucket << 1 | usize::from(dot >= 0)
            });
            band << BAND_BITS | bucket
        })
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        let is_held = number > 0 && number + self.capacity as u64 >= self.next;
        if is_held { self.entries.get((number as usize - 1) % self.capacity) } else { None }
    }

    /// Calls `found` for what is like `shingle`, newest first in each band; the same entry perhaps twice.
    fn search(
        &self,
        now: Timestamp,
        session: u64,
        shingle: &Shingle,
        buckets: &[usize; BANDS],
        mut found: impl FnMut(&Entry, f32),
    ) {
        for (band, &bucket) in buckets.iter().enumerate() {
            let mut number = self.heads[bucket];
            for _ in 0..PROBES_MAX {
                let Some(entry) = self.entry(number) else { break };
                number = entry.older[band];
                if now.0.saturating_sub(entry.at.0) > self.ttl_ms {
                    break;
                }
                // What this session did a moment ago overlaps with what it does now.
                if entry.session == session && entry.shingle.ends + OWN_STEPS_MIN > shingle.ends {
                    continue;
                }
                let distance = entry.shingle.distance(shingle);
                if distance <= LIKE_MAX {
                    found(entry, distance);
                }
            }
        }
    }

    fn insert(&mut self, now: Timestamp, session: u64, shingle: &Shingle, buckets: &[usize; BANDS]) {
        let number = self.next;
        self.next += 1;
        let older = buckets.map(|bucket| std::mem::replace(&mut self.heads[bucket], number));
        let entry = Entry { session, at: now, shingle: *shingle, older };
        match self.entries.get_mut((number as usize - 1) % self.capacity) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
    }
}

/// How much of one session repeats. Constant memory.
#[derive(Clone, Debug)]
pub struct Repetition {
    threads: [Thread; THREADS_MAX],
    /// By kind, one bit a cell of the latest movement, newest lowest: does it repeat?
    repeated: [u64; 3],
    /// Where the latest shingle ended.
    ends: u32,
}

/// A stretch of memory that the session may be repeating: likenesses in the same order and at the same distance.
#[derive(Clone, Copy, Debug, Default)]
struct Thread {
    session: u64,
    /// Where the latest likeness ends, there and here.
    there: u32,
    here: u32,
    /// Where the first began.
    from_there: u32,
    from_here: u32,
    likenesses: u32,
    exact: u32,
    /// Sum over the likenesses.
    distance: f32,
}

impl Default for Repetition {
    fn default() -> Repetition {
        Repetition { threads: [Thread::default(); THREADS_MAX], repeated: [0; 3], ends: 0 }
    }
}

impl Repetition {
    /// Compares a shingle of `session` with all that is remembered, and remembers it.
    pub fn observe(&mut self, memory: &mut Memory, now: Timestamp, session: u64, shingle: &Shingle) {
        let buckets = memory.buckets(&shingle.shape);
        self.compare(memory, now, session, shingle, &buckets);
        memory.insert(now, session, shingle, &buckets);
    }

    /// Compares only; what is played for a test is not to be remembered.
    pub(crate) fn compare_only(&mut self, memory: &Memory, now: Timestamp, session: u64, shingle: &Shingle) {
        let buckets = memory.buckets(&shingle.shape);
        self.compare(memory, now, session, shingle, &buckets);
    }

    /// Share of the latest ten seconds of the pointer in motion that had been seen before, 0 to 1. `None` until
    /// there were as many.
    pub fn share(&self) -> Option<f32> {
        let [exact, shifted, jittered] = self.repeated;
        let cells = (exact | shifted | jittered).count_ones();
        (self.ends >= u64::BITS * CELL_STEPS).then(|| cells as f32 / u64::BITS as f32)
    }

    /// How most of what repeats does so.
    pub fn kind(&self) -> Option<ReplayKind> {
        let most = self.repeated.iter().map(|cells| cells.count_ones()).max().filter(|most| *most > 0)?;
        let kinds = ReplayKind::ALL.into_iter().zip(self.repeated);
        kinds.filter(|(_, cells)| cells.count_ones() == most).map(|(kind, _)| kind).next()
    }

    fn compare(
        &mut self,
        memory: &Memory,
        now: Timestamp,
        session: u64,
        shingle: &Shingle,
        buckets: &[usize; BANDS],
    ) {
        let passed = (shingle.ends / CELL_STEPS).saturating_sub(self.ends / CELL_STEPS);
        self.ends = shingle.ends;
        self.repeated.iter_mut().for_each(|cells| *cells = cells.checked_shl(passed).unwrap_or(0));
        memory.search(now, session, shingle, buckets, |entry, distance| {
            self.follow(entry.session, &entry.shingle, shingle, distance);
        });
    }

    /// Goes on with the thread that the likeness belongs to, or begins one.
    fn follow(&mut self, session: u64, there: &Shingle, here: &Shingle, distance: f32) {
        let exact = u32::from(there.exact == here.exact);
        let told =
            |thread: &Thread| (thread.session, thread.there, thread.here) == (session, there.ends, here.ends);
        if self.threads.iter().any(told) {
            return;
        }
        let longest = self.threads.iter_mut().filter(|thread| thread.leads_to(session, there, here));
        let Some(thread) = longest.max_by_key(|thread| thread.likenesses) else {
            // The weakest gives way, and before it one that was left behind.
            let weakest = self.threads.iter_mut().min_by_key(|thread| {
                let left = here.ends.saturating_sub(thread.here) > THREAD_STEPS_MAX;
                (if left { 0 } else { thread.likenesses.min(LIKENESSES_MIN) }, thread.here)
            });
            if let Some(weakest) = weakest {
                *weakest = Thread {
                    session,
                    there: there.ends,
                    here: here.ends,
                    from_there: there.ends.saturating_sub(u32::from(there.steps)),
                    from_here: here.ends.saturating_sub(u32::from(here.steps)),
                    likenesses: 1,
                    exact,
                    distance,
                };
            }
            return;
        };
        (thread.there, thread.here) = (there.ends, here.ends);
        thread.likenesses = thread.likenesses.saturating_add(1);
        thread.exact += exact;
        thread.distance += distance;
        if thread.likenesses >= LIKENESSES_MIN {
            let cells = (here.ends / CELL_STEPS).saturating_sub(thread.from_here / CELL_STEPS);
            self.repeated[thread.kind() as usize] |= 1u64.checked_shl(cells).map_or(u64::MAX, |end| end - 1);
        }
    }
}

impl Thread {
    /// Both ran on by about as much, here and there.
    fn leads_to(&self, session: u64, there: &Shingle, here: &Shingle) -> bool {
        let (ran_here, ran_there) =
            (here.ends.saturating_sub(self.here), there.ends.saturating_sub(self.there));
        self.likenesses > 0
            && self.session == session
            && ran_here > 0
            && ran_there > 0
            && ran_here <= THREAD_STEPS_MAX
            && ran_here.abs_diff(ran_there) as f32 <= PACE_MAX * ran_here as f32 + DIP_STEPS
    }

    fn kind(&self) -> ReplayKind {
        let pace = (self.here - self.from_here) as f32 / (self.there - self.from_there).max(1) as f32;
        if 2 * self.exact > self.likenesses {
            ReplayKind::Exact
        } else if (pace - 1.0).abs() > PACE_SAME || self.distance < UNTOUCHED * self.likenesses as f32 {
            ReplayKind::Shifted
        } else {
            ReplayKind::Jittered
        }
    }
}

fn hash(hash: &mut u32, value: u32) {
    // FNV-1a.
    for byte in value.to_le_bytes() {
        *hash = (*hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
}

const SEGMENTS: usize = 3;
const POINTS: usize = 6;
/// Grid steps a velocity is averaged over.
const SMOOTHED: usize = 5;
/// A sub-movement has at least and at most so many grid steps.
const SEGMENT_STEPS_MIN: usize = 6;
const SEGMENT_STEPS_MAX: usize = 50;
const STILL_PX: f32 = 0.05;
const JUMP_PX: f32 = 60.0;
/// Moves at most so far apart, and of at least so many px a grid step between, are one movement.
const SPARSE_US: u64 = 400_000;
const SPARSE_PX: f32 = 1.0;
/// After a longer rest, a new shingle begins.
const PAUSE_US: u64 = 5_000_000;
/// Slowest speed told apart from others, px a grid step.
const SPEED_MIN: f32 = 0.25;
const LN_SPEED_SD_MIN: f32 = 0.25;
const SHAPE_SCALE: f32 = 16.0;
/// A sub-movement's usual log speed in each sixth against the mean: it rises, falls and brakes.
const USUAL_LN_SPEED: [f32; POINTS] = [-0.13, 0.41, 0.54, 0.33, -0.16, -0.96];
const HASH_START: u32 = 0x811C_9DC5;
/// Signs of projections in one bucket's number, and how often they are drawn anew. A sign flips for one
/// like pair in twelve: a band holds for a third of them, one of six for nine in ten.
const BANDS: usize = 6;
const BAND_BITS: usize = 14;
/// Places of a bucket that are looked at, newest first: time is bounded however much is remembered.
const PROBES_MAX: usize = 64;
/// Shingles nearer than this are alike: four in five of a noisy replay, one unrelated pair in two thousand.
const LIKE_MAX: f32 = 0.4;
/// Successive shingles share sub-movements and are alike together; seven hold nine sub-movements at least. People
/// who draw the same shape over and over were seen to repeat six.
const LIKENESSES_MIN: u32 = 7;
/// A thread without a likeness for eight seconds of motion is lost.
const THREAD_STEPS_MAX: u32 = 400;
/// A replay's pace differs by this share at most, and a dip is found some steps earlier or later: by a lost
/// move of a remote desktop up to a third of a second.
const PACE_MAX: f32 = 0.12;
const DIP_STEPS: f32 = 16.0;
/// Paces nearer than this are the same.
const PACE_SAME: f32 = 0.02;
/// Mean distance of movement that was only moved or scaled: rounding to whole px leaves as much.
const UNTOUCHED: f32 = 0.05;
/// A session's own movement counts as seen before after five seconds in motion.
const OWN_STEPS_MIN: u32 = 250;
/// What one of the 64 bits stands for: together ten seconds of the pointer in motion.
const CELL_STEPS: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Visitor;

    fn events(seed: u64) -> Vec<Event> {
        let mut visitor = Visitor::person(seed);
        (0..60).flat_map(|_| visitor.next_batch(2.0).events).collect()
    }

    fn shingles(events: &[Event]) -> Vec<Shingle> {
        let mut shingles = Shingles::default();
        let mut all = Vec::new();
        for event in events {
            shingles.observe(event);
            all.extend(shingles.take());
        }
        all
    }

    fn follow(memory: &mut Memory, at: u64, session: u64, events: &[Event]) -> Repetition {
        let mut repetition = Repetition::default();
        for shingle in shingles(events) {
            repetition.observe(memory, Timestamp(at), session, &shingle);
        }
        repetition
    }

    /// Every event's place and time, changed.
    fn changed(events: &[Event], change: impl Fn(u64, &mut u64, &mut f32, &mut f32)) -> Vec<Event> {
        let mut events = events.to_vec();
        for (i, event) in events.iter_mut().enumerate() {
            if let EventKind::PointerMove { x, y, .. } = &mut event.kind {
                change(i as u64, &mut event.at_us, x, y);
            }
        }
        events
    }

    #[track_caller]
    fn check(replay: &[Event], kind: ReplayKind) {
        let mut memory = Memory::new(MEMORY_SHINGLES, u64::MAX);
        for person in 1..4 {
            let repetition = follow(&mut memory, 0, person, &events(person));
            assert!(repetition.share().unwrap() < 0.2, "person {person}: {:?}", repetition.share());
        }
        let repetition = follow(&mut memory, 0, 9, replay);
        assert!(repetition.share().unwrap() > 0.8, "{:?}", repetition.share());
        assert_eq!(repetition.kind(), Some(kind));
    }

    #[test]
    fn a_recording_played_back_untouched_is_exact_wherever_it_is_played() {
        check(&events(2), ReplayKind::Exact);
        check(
            &changed(&events(2), |_, at, x, y| (*at, *x, *y) = (*at + 12_345_600, *x + 80.0, *y - 20.0)),
            ReplayKind::Exact,
        );
    }

    #[test]
    fn another_pace_or_a_mirror_is_shifted_and_noise_is_jittered() {
        check(&changed(&events(2), |_, at, _, _| *at = *at / 100 * 105), ReplayKind::Shifted);
        check(&changed(&events(2), |_, _, x, _| *x = 1_000.0 - *x), ReplayKind::Shifted);
        check(
            &changed(&events(2), |i, at, x, y| {
                *at += i * 7919 % 4_000;
                *x += (i * 31 % 5) as f32 - 2.0;
                *y += (i * 17 % 5) as f32 - 2.0;
            }),
            ReplayKind::Jittered,
        );
    }

    #[test]
    fn a_session_that_repeats_itself_is_noticed() {
        let first = events(5);
        let end = first.last().unwrap().at_us;
        let again = changed(&first, |_, at, _, _| *at += end + 2_000_000);
        let both: Vec<Event> =
            first.iter().chain(&again).filter(|event| event.kind.position().is_some()).copied().collect();
        let mut memory = Memory::new(MEMORY_SHINGLES, u64::MAX);
        assert!(follow(&mut memory, 0, 1, &both).share().unwrap() > 0.8);
    }

    #[test]
    fn the_share_is_that_of_the_latest_ten_seconds_in_motion() {
        let mut memory = Memory::new(MEMORY_SHINGLES, u64::MAX);
        follow(&mut memory, 0, 1, &events(2));
        let mut visitor = Visitor::person(6);
        let own: Vec<Event> = (0..300).flat_map(|_| visitor.next_batch(2.0).events).collect();
        let end = own.last().unwrap().at_us;
        let replay = changed(&events(2), |_, at, _, _| *at += end + 2_000_000);
        let mut repetition = Repetition::default();
        for shingle in shingles(&[own, replay].concat()) {
            repetition.observe(&mut memory, Timestamp(0), 2, &shingle);
        }
        // However long a person was here before.
        assert!(repetition.share().unwrap() > 0.9, "{:?}", repetition.share());
    }

    #[test]
    fn moves_told_of_nine_times_a_second_are_followed() {
        let sparse = |seed| {
            let mut last = 0;
            let mut is_due = |at| at >= last + 109_000 && std::mem::replace(&mut last, at) < at;
            events(seed).into_iter().filter(|event| is_due(event.at_us)).collect::<Vec<_>>()
        };
        let mut memory = Memory::new(MEMORY_SHINGLES, u64::MAX);
        for person in 1..4 {
            let share = follow(&mut memory, 0, person, &sparse(person)).share();
            assert!(share.unwrap() < 0.2, "person {person}: {share:?}");
        }
        let later = changed(&sparse(2), |_, at, _, _| *at += 7_654_300);
        assert!(follow(&mut memory, 0, 9, &later).share().unwrap() > 0.8);
    }

    #[test]
    fn little_or_even_movement_is_no_evidence() {
        let mut memory = Memory::new(MEMORY_SHINGLES, u64::MAX);
        follow(&mut memory, 0, 1, &events(2));
        let little: Vec<Event> = events(2).into_iter().take(100).collect();
        assert_eq!(follow(&mut memory, 0, 2, &little).share(), None);
        let even = |i: u64| EventKind::PointerMove {
            pointer: PointerType::Mouse,
            x: i as f32 * 3.0,
            y: 0.0,
            movement_x: 3,
            movement_y: 0,
            coalesced: 1,
        };
        let line: Vec<Event> =
            (0..2_000).map(|i| Event { at_us: i * 16_000, trusted: true, kind: even(i) }).collect();
        assert_eq!(shingles(&line).len(), 0);
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_oldest_and_the_old() {
        let (first, second) = (events(1), events(2));
        let room = shingles(&second).len();
        let mut memory = Memory::new(room, 60_000);
        follow(&mut memory, 0, 1, &first);
        follow(&mut memory, 0, 2, &second);
        assert_eq!(memory.len(), room);
        let compare = |memory: &Memory, at, events: &[Event]| {
            let mut repetition = Repetition::default();
            for shingle in shingles(events) {
                repetition.compare_only(memory, Timestamp(at), 9, &shingle);
            }
            repetition.share().unwrap()
        };
        assert_eq!(compare(&memory, 0, &first), 0.0);
        assert!(compare(&memory, 60_000, &second) > 0.8);
        assert_eq!(compare(&memory, 60_001, &second), 0.0);
    }

    #[test]
    fn wild_coordinates_and_clocks_are_described_within_bounds() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
        let mut memory = Memory::new(64, 1_000);
        let mut at_us = 0;
        let wild: Vec<Event> = (0..20_000)
            .map(|_| {
                at_us += rng.random_range(0..200_000) * rng.random_range(0..2);
                let (x, y) = (rng.random_range(-1e6..1e6), rng.random_range(-1e6..1e6));
                let pointer = PointerType::Mouse;
                let kind =
                    EventKind::PointerMove { pointer, x, y, movement_x: 0, movement_y: 0, coalesced: 0 };
                Event { at_us, trusted: true, kind }
            })
            .collect();
        let repetition = follow(&mut memory, 0, 1, &wild);
        assert!(repetition.share().is_none_or(|share| (0.0..=1.0).contains(&share)));
        assert!(memory.len() <= 64);
    }
}
