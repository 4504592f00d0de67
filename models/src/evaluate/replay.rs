//! The task "replay": recordings played back are caught, people are not.
//!
//! Every person's session is compared with all before it of its source, of the same person and of others. Then sessions
//! are played back in several ways, by somebody else or by themselves. The thresholds are constants of the
//! code; nothing is fitted here. Must not know: files, pages.

use super::{EvaluateError, Figure, clopper_pearson};
use crate::dataset::{self, Label, Recording};
use crate::event::{Event, EventKind};
use crate::replay::{MEMORY_SHINGLES, Memory, Repetition, Shingle};
use crate::session::Session;
use crate::sim::recorder::record_anew;
use crate::time::Timestamp;
use crate::train::Progress;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;

/// Shares of repeated movement at which figures are given: where a session no longer teaches, and what the
/// shipped rules ask for, `default` and `balanced`.
pub const SHARES: [f32; 3] = [0.5, 0.8, 0.9];
/// Of them, the one that the default rule asks for.
const RULE: usize = 1;
/// Sessions of each source that are played back in each way.
const PLAYED_MAX: usize = 200;

#[derive(Debug, Serialize)]
pub struct Report {
    pub task: &'static str,
    pub seed: u64,
    pub shares: [f32; 3],
    pub people: Vec<People>,
    pub played: Vec<Played>,
    pub warnings: Vec<String>,
}

/// People of one source, compared with those of it before them.
#[derive(Debug, Serialize)]
pub struct People {
    pub source: String,
    pub sessions: usize,
    /// Sessions with enough movement to be compared.
    pub compared: usize,
    /// Share of the compared that was ever taken for a replay, at each of the shares.
    pub called: [Figure; 3],
    /// The largest share that any of them reached.
    pub highest: f32,
    /// Shingles of theirs, and of them those that memory held in the end.
    pub shingles: usize,
    pub remembered: usize,
}

/// Sessions of one source, played back in one way.
#[derive(Debug, Serialize)]
pub struct Played {
    pub source: String,
    /// By another session, or later in the same one.
    pub within: bool,
    pub way: &'static str,
    pub sessions: usize,
    /// Replays with enough movement to be compared.
    pub compared: usize,
    /// Share of the compared.
    pub caught: [Figure; 3],
    /// How many were named exact, shifted, jittered.
    pub named: [usize; 3],
    /// Median active seconds of the replay until the default rule spoke.
    pub seconds: f64,
}

/// A way to play a recording back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Exact,
    /// Starts later, and pauses of more than half a second last half as long again.
    Later,
    Pace,
    /// Each second at a pace of its own.
    Wandering,
    Jitter1,
    Jitter2,
    Jitter3,
    /// Somewhere else and of another size.
    Viewport,
    Rotated,
    Mirrored,
    Dropped,
    Anew,
    /// Ten seconds of the recording, ten seconds of another person, in turn.
    Spliced,
    /// Pieces of five seconds in another order.
    Shuffled,
}

impl Way {
    const ALL: [Way; 14] = [
        Way::Exact,
        Way::Later,
        Way::Pace,
        Way::Wandering,
        Way::Jitter1,
        Way::Jitter2,
        Way::Jitter3,
        Way::Viewport,
        Way::Rotated,
        Way::Mirrored,
        Way::Dropped,
        Way::Anew,
        Way::Spliced,
        Way::Shuffled,
    ];

    fn name(self) -> &'static str {
        match self {
            Way::Exact => "exact",
            Way::Later => "started later, longer pauses",
            Way::Pace => "pace of .9 to 1.1",
            Way::Wandering => "pace of .9 to 1.1, another each second",
            Way::Jitter1 => "jitter of 1 px and 2 ms",
            Way::Jitter2 => "jitter of 2 px and 8 ms",
            Way::Jitter3 => "jitter of 3 px and 8 ms",
            Way::Viewport => "moved and scaled by .6 to 1.6",
            Way::Rotated => "rotated by up to 15°",
            Way::Mirrored => "mirrored",
            Way::Dropped => "one move in five left out",
            Way::Anew => "recorded anew (zoom, pace, mirror, another display)",
            Way::Spliced => "every other ten seconds, another person's between",
            Way::Shuffled => "pieces of five seconds in another order",
        }
    }

    fn play(self, events: &[Event], other: &[Event], rng: &mut ChaCha8Rng) -> Vec<Event> {
        match self {
            Way::Exact => events.to_vec(),
            Way::Later => stretched_pauses(events),
            Way::Pace => {
                let pace = rng.random_range(0.9..1.1);
                retimed(events, |event| event.at_us as f64 * pace)
            }
            Way::Wandering => wandering(events, rng),
            Way::Jitter1 => jittered(events, 1.0, 2_000.0, rng),
            Way::Jitter2 => jittered(events, 2.0, 8_000.0, rng),
            Way::Jitter3 => jittered(events, 3.0, 8_000.0, rng),
            Way::Viewport => {
                let (zoom, aside) = (rng.random_range(0.6..1.6), rng.random_range(-200.0..200.0));
                placed(events, |x, y| (x * zoom + aside, y * zoom + aside))
            }
            Way::Rotated => {
                let (sin, cos) = rng.random_range(-15f64..15.0).to_radians().sin_cos();
                placed(events, |x, y| (x * cos - y * sin, x * sin + y * cos))
            }
            Way::Mirrored => placed(events, |x, y| (1_000.0 - x, y)),
            Way::Dropped => {
                let keep = |event: &&Event| {
                    !matches!(event.kind, EventKind::PointerMove { .. }) || rng.random_bool(0.8)
                };
                events.iter().filter(keep).copied().collect()
            }
            Way::Anew => record_anew(events, rng),
            Way::Spliced => spliced(events, other),
            Way::Shuffled => shuffled(events, rng),
        }
    }
}

/// Plays `recordings` of people back in all ways. Deterministic under the seed.
pub fn evaluate(
    recordings: &[Recording],
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, EvaluateError> {
    let people = recordings.iter().filter(|recording| recording.label == Label::Human).cloned();
    // A drawing of ten seconds is too little to compare; a minute and a half of them is one session.
    let people = dataset::join_short(people.collect());
    if people.is_empty() {
        return Err(EvaluateError::Empty);
    }
    let steps = 1 + Way::ALL.len();
    progress(Progress { step: 0, steps, what: "people".into() });
    let mut by_source: BTreeMap<&str, Vec<&Recording>> = BTreeMap::new();
    people.iter().for_each(|person| by_source.entry(&person.source).or_default().push(person));
    // A source is a site: it has a memory of its own.
    let met: Vec<Met> = by_source.into_iter().map(|(source, people)| meet(source, &people)).collect();
    let mut played = Vec::new();
    for (step, way) in Way::ALL.into_iter().enumerate() {
        progress(Progress { step: 1 + step, steps, what: way.name().into() });
        for met in &met {
            played.extend([false, true].map(|within| play(met, way, within, seed)));
        }
    }
    Ok(Report {
        task: "replay",
        seed,
        shares: SHARES,
        people: met.into_iter().map(|met| met.people).collect(),
        played,
        warnings: vec![
            "Only movement of a mouse or touchpad is compared, and only after ten seconds in motion.".into(),
            "What is no longer remembered, or was recorded elsewhere, cannot be recognised.".into(),
            "People are compared with all sessions of their source before them, so that memory fills as it does \
             live. It is what is played back that memory may have forgotten: see how much it holds."
                .into(),
        ],
    })
}

/// People of one source, what is remembered of them, and those of their sessions that can be played back.
struct Met<'a> {
    people: People,
    memory: Memory,
    material: Vec<&'a Recording>,
}

fn meet<'a>(source: &str, recordings: &[&'a Recording]) -> Met<'a> {
    let mut memory = Memory::new(MEMORY_SHINGLES, u64::MAX);
    let (mut material, mut called, mut highest, mut shingles) = (Vec::new(), [0; 3], 0f32, 0);
    for (number, recording) in recordings.iter().enumerate() {
        let mut repetition = Repetition::default();
        let most = watch(&recording.events, |shingle, _| {
            shingles += 1;
            repetition.observe(&mut memory, Timestamp(0), number as u64, shingle);
            repetition.share()
        });
        if let Some(most) = most {
            highest = highest.max(most);
            SHARES.iter().zip(&mut called).for_each(|(share, called)| *called += usize::from(most >= *share));
            material.push(*recording);
        }
    }
    let people = People {
        source: source.into(),
        sessions: recordings.len(),
        compared: material.len(),
        called: called.map(|hits| proportion(hits, material.len())),
        highest,
        shingles,
        remembered: memory.len(),
    };
    Met { people, memory, material }
}

fn play(met: &Met, way: Way, within: bool, seed: u64) -> Played {
    let Met { people, memory, material: recordings } = met;
    let every = recordings.len().div_ceil(PLAYED_MAX);
    let (mut caught, mut named, mut seconds) = ([0; 3], [0; 3], Vec::new());
    let (mut sessions, mut compared) = (0, 0);
    for (i, recording) in recordings.iter().enumerate().step_by(every.max(1)) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (way as u64) << 32 ^ i as u64);
        let events = first_minutes(&recording.events);
        let other = first_minutes(&recordings[(i + 1) % recordings.len()].events);
        let replay = way.play(events, other, &mut rng);
        let mut repetition = Repetition::default();
        // Within a session the memory holds that session alone, and the replay follows after a rest.
        let own = within.then(|| Memory::new(MEMORY_SHINGLES, u64::MAX));
        let (own, whole, from_us) = match own {
            None => (None, replay, 0),
            Some(own) => {
                let from_us = end_us(events) + 3_000_000;
                let later = replay.iter().map(|event| Event { at_us: event.at_us + from_us, ..*event });
                (Some(own), events.iter().copied().chain(later).collect(), from_us)
            }
        };
        let mut own = own;
        let mut reached: Option<u64> = None;
        let start = whole.iter().find(|event| event.at_us >= from_us).map_or(0, |event| event.at_us);
        let most = watch(&whole, |shingle, at_us| {
            match &mut own {
                Some(own) => repetition.observe(own, Timestamp(0), u64::MAX, shingle),
                None => repetition.compare_only(memory, Timestamp(0), u64::MAX, shingle),
            }
            let share = repetition.share().filter(|_| at_us >= from_us);
            if share.is_some_and(|share| share >= SHARES[RULE]) {
                reached.get_or_insert(at_us.saturating_sub(start));
            }
            share
        });
        sessions += 1;
        compared += usize::from(most.is_some());
        for (share, caught) in SHARES.iter().zip(&mut caught) {
            *caught += usize::from(most.is_some_and(|most| most >= *share));
        }
        if let Some(us) = reached {
            seconds.push(us as f64 / 1e6);
            if let Some(kind) = repetition.kind() {
                named[kind as usize] += 1;
            }
        }
    }
    seconds.sort_by(f64::total_cmp);
    Played {
        source: people.source.clone(),
        within,
        way: way.name(),
        sessions,
        compared,
        caught: caught.map(|hits| proportion(hits, compared)),
        named,
        seconds: seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN),
    }
}

/// Runs events through a session as they would come, and returns the largest share told.
fn watch(events: &[Event], mut told: impl FnMut(&Shingle, u64) -> Option<f32>) -> Option<f32> {
    let mut session = Session::new(Timestamp(0));
    let mut most: Option<f32> = None;
    for batch in dataset::batches(events) {
        session.observe(Timestamp(batch.sent_at_us / 1000), 1, &batch);
        for shingle in session.take_shingles() {
            if let Some(share) = told(&shingle, batch.sent_at_us) {
                most = Some(most.map_or(share, |most| most.max(share)));
            }
        }
    }
    most
}

fn proportion(hits: usize, n: usize) -> Figure {
    let (low, high) = clopper_pearson(hits, n);
    Figure { value: hits as f64 / n as f64, low, high }
}

/// The first ten minutes: what a replay would take.
fn first_minutes(events: &[Event]) -> &[Event] {
    let start = events.first().map_or(0, |event| event.at_us);
    &events[..events.partition_point(|event| event.at_us < start + 600_000_000)]
}

fn end_us(events: &[Event]) -> u64 {
    events.last().map_or(0, |event| event.at_us)
}

/// Every place changed, and rounded to whole px.
fn placed(events: &[Event], mut place: impl FnMut(f64, f64) -> (f64, f64)) -> Vec<Event> {
    let mut events = events.to_vec();
    for event in &mut events {
        if let EventKind::PointerMove { x, y, .. } = &mut event.kind {
            let (to_x, to_y) = place(f64::from(*x), f64::from(*y));
            (*x, *y) = (to_x.round() as f32, to_y.round() as f32);
        }
    }
    events
}

/// Every time (microseconds) changed, in tenths of a millisecond and in order.
fn retimed(events: &[Event], mut at_us: impl FnMut(&Event) -> f64) -> Vec<Event> {
    let mut last = 0;
    let retimed = events.iter().map(|event| {
        last = ((at_us(event).max(0.0) / 100.0) as u64 * 100).max(last);
        Event { at_us: last, ..*event }
    });
    retimed.collect()
}

/// Even noise of at most so many px and microseconds.
fn jittered(events: &[Event], px: f64, us: f64, rng: &mut ChaCha8Rng) -> Vec<Event> {
    let noisy = retimed(events, |event| event.at_us as f64 + us * rng.random_range(-1.0..=1.0));
    let mut noise = || px * rng.random_range(-1.0..=1.0);
    placed(&noisy, |x, y| (x + noise(), y + noise()))
}

fn wandering(events: &[Event], rng: &mut ChaCha8Rng) -> Vec<Event> {
    let (mut second, mut pace) = (0, 1.0);
    let (mut last, mut at) = (0, 0.0);
    retimed(events, |event| {
        if event.at_us / 1_000_000 != second {
            (second, pace) = (event.at_us / 1_000_000, rng.random_range(0.9..1.1));
        }
        at += (event.at_us - std::mem::replace(&mut last, event.at_us)) as f64 * pace;
        at
    })
}

fn stretched_pauses(events: &[Event]) -> Vec<Event> {
    let (mut added, mut last) = (1_234_500, None);
    let stretched = events.iter().map(|event| {
        let gap = last.replace(event.at_us).map_or(0, |last| event.at_us.saturating_sub(last));
        added += if gap > 500_000 { gap / 200 * 100 } else { 0 };
        Event { at_us: event.at_us + added, ..*event }
    });
    stretched.collect()
}

fn spliced(events: &[Event], other: &[Event]) -> Vec<Event> {
    let pieces = (0..60).map(|piece| (if piece % 2 == 0 { events } else { other }, piece));
    in_pieces(pieces, 10_000_000)
}

fn shuffled(events: &[Event], rng: &mut ChaCha8Rng) -> Vec<Event> {
    let mut order: Vec<u64> = (0..120).collect();
    order.shuffle(rng);
    in_pieces(order.into_iter().map(|piece| (events, piece)), 5_000_000)
}

/// The given pieces of the given recordings one after the other, half a second between.
fn in_pieces<'a>(pieces: impl Iterator<Item = (&'a [Event], u64)>, piece_us: u64) -> Vec<Event> {
    let mut out: Vec<Event> = Vec::new();
    let mut at_us = 0;
    for (from, piece) in pieces {
        let start = from.first().map_or(0, |event| event.at_us) + piece * piece_us;
        let within = from.iter().filter(|event| (start..start + piece_us).contains(&event.at_us));
        let before = out.len();
        out.extend(within.map(|event| Event { at_us: event.at_us - start + at_us, ..*event }));
        if out.len() > before {
            at_us += piece_us + 500_000;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Visitor;

    #[test]
    fn replays_of_simulated_people_are_caught_and_the_people_are_not() {
        let person = |seed: u64| Recording {
            session: format!("s{seed}"),
            source: "sim".into(),
            user: format!("u{seed}"),
            label: Label::Human,
            family: None,
            licence: String::new(),
            note: String::new(),
            marks: Default::default(),
            environment: None,
            events: {
                let mut visitor = Visitor::person(seed);
                (0..60).flat_map(|_| visitor.next_batch(2.0).events).collect()
            },
        };
        let recordings: Vec<Recording> = (0..12).map(person).collect();
        let report = evaluate(&recordings, 1, &mut |_| {}).unwrap();
        assert!(report.people[0].compared >= 10, "{:?}", report.people);
        assert_eq!(report.people[0].called[0].value, 0.0, "{:?}", report.people);
        for played in &report.played {
            if played.way == Way::Exact.name() || played.way == Way::Viewport.name() {
                assert!(played.caught[RULE].value >= 0.9, "{played:?}");
            }
        }
        let other = Recording { label: Label::Unknown, ..recordings[0].clone() };
        assert!(evaluate(&[other], 1, &mut |_| {}).is_err());
    }
}
