//! The task "replay": recordings played back are caught, people are not.
//!
//! Every person's session is compared with all before it, of the same person and of others. Then sessions
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
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;

/// Shares of repeated movement at which figures are given: half, and what the shipped rules ask for.
pub const SHARES: [f32; 2] = [0.5, 0.8];
/// Sessions of each source that are played back in each way.
const PLAYED_MAX: usize = 60;

#[derive(Debug, Serialize)]
pub struct Report {
    pub task: &'static str,
    pub seed: u64,
    pub shares: [f32; 2],
    pub people: Vec<People>,
    pub played: Vec<Played>,
    pub warnings: Vec<String>,
}

/// People of one source, compared with everybody before them.
#[derive(Debug, Serialize)]
pub struct People {
    pub source: String,
    pub sessions: usize,
    /// Sessions with enough movement to be compared.
    pub compared: usize,
    /// Share of the compared that was ever taken for a replay, at each of the shares.
    pub called: [Figure; 2],
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
    pub caught: [Figure; 2],
    /// How many were named exact, shifted, jittered.
    pub named: [usize; 3],
    /// Median active seconds of the replay until the first of the shares was reached.
    pub seconds: f64,
}

/// A way to play a recording back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Exact,
    /// Starts later, and pauses of more than a tenth of a second last half as long again.
    Later,
    Faster,
    Slower,
    Jitter1,
    Jitter2,
    Viewport,
    Anew,
    /// Ten seconds of the recording, ten seconds of another person, in turn.
    Spliced,
}

impl Way {
    const ALL: [Way; 9] = [
        Way::Exact,
        Way::Later,
        Way::Faster,
        Way::Slower,
        Way::Jitter1,
        Way::Jitter2,
        Way::Viewport,
        Way::Anew,
        Way::Spliced,
    ];

    fn name(self) -> &'static str {
        match self {
            Way::Exact => "exact",
            Way::Later => "started later, longer pauses",
            Way::Faster => "5 % faster",
            Way::Slower => "5 % slower",
            Way::Jitter1 => "jitter of 1 px and 2 ms",
            Way::Jitter2 => "jitter of 2 px and 8 ms",
            Way::Viewport => "moved and scaled by .6 to 1.6",
            Way::Anew => "recorded anew (zoom, pace, mirror, another display)",
            Way::Spliced => "half, in pieces of ten seconds",
        }
    }

    fn play(self, events: &[Event], other: &[Event], rng: &mut ChaCha8Rng) -> Vec<Event> {
        match self {
            Way::Exact => events.to_vec(),
            Way::Later => stretched_pauses(events),
            Way::Faster => moved(events, 1.0 / 1.05, 1.0, 0.0, 0.0, rng),
            Way::Slower => moved(events, 1.05, 1.0, 0.0, 0.0, rng),
            Way::Jitter1 => moved(events, 1.0, 1.0, 1.0, 2_000.0, rng),
            Way::Jitter2 => moved(events, 1.0, 1.0, 2.0, 8_000.0, rng),
            Way::Viewport => {
                let zoom = rng.random_range(0.6..1.6);
                moved(events, 1.0, zoom, 0.0, 0.0, rng)
            }
            Way::Anew => record_anew(events, rng),
            Way::Spliced => spliced(events, other),
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
    let mut memory = Memory::new(MEMORY_SHINGLES, u64::MAX);
    let mut by_source: BTreeMap<&str, People> = BTreeMap::new();
    let mut called: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    // Sessions that can be compared, and what they hold.
    let mut material: BTreeMap<&str, Vec<&Recording>> = BTreeMap::new();
    for (number, recording) in people.iter().enumerate() {
        let mut repetition = Repetition::default();
        let most = watch(&recording.events, |shingle, _| {
            repetition.observe(&mut memory, Timestamp(0), number as u64, shingle);
            repetition.share()
        });
        let line = by_source.entry(&recording.source).or_insert_with(|| People {
            source: recording.source.clone(),
            sessions: 0,
            compared: 0,
            called: [Figure { value: f64::NAN, low: 0.0, high: 1.0 }; 2],
        });
        line.sessions += 1;
        if let Some(most) = most {
            line.compared += 1;
            let called = called.entry(&recording.source).or_default();
            SHARES.iter().zip(called).for_each(|(share, called)| *called += usize::from(most >= *share));
            material.entry(&recording.source).or_default().push(recording);
        }
    }
    for (source, line) in &mut by_source {
        let called = called.get(source).copied().unwrap_or_default();
        line.called = called.map(|hits| proportion(hits, line.compared));
    }
    let mut played = Vec::new();
    for (step, way) in Way::ALL.into_iter().enumerate() {
        progress(Progress { step: 1 + step, steps, what: way.name().into() });
        for (source, recordings) in &material {
            for within in [false, true] {
                played.push(play(&memory, source, recordings, way, within, seed));
            }
        }
    }
    Ok(Report {
        task: "replay",
        seed,
        shares: SHARES,
        people: by_source.into_values().collect(),
        played,
        warnings: vec![
            "Only movement of a mouse or touchpad is compared, and only after ten seconds in motion.".into(),
            "What is no longer remembered, or was recorded elsewhere, cannot be recognised.".into(),
            "People are compared with all sessions before them, so that the memory grows as it does live."
                .into(),
        ],
    })
}

fn play(
    memory: &Memory,
    source: &str,
    recordings: &[&Recording],
    way: Way,
    within: bool,
    seed: u64,
) -> Played {
    let every = recordings.len().div_ceil(PLAYED_MAX);
    let (mut caught, mut named, mut seconds) = ([0; 2], [0; 3], Vec::new());
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
            if share.is_some_and(|share| share >= SHARES[0]) {
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
        source: source.into(),
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

/// Another pace and size, noise in place (px) and time (microseconds), whole px, in order of time.
fn moved(
    events: &[Event],
    pace: f64,
    zoom: f64,
    noise_px: f64,
    noise_us: f64,
    rng: &mut ChaCha8Rng,
) -> Vec<Event> {
    let mut last = 0;
    let noisy = events.iter().map(|event| {
        let mut event = *event;
        let at = event.at_us as f64 * pace + noise_us * rng.random_range(-1.0..=1.0);
        event.at_us = ((at.max(0.0) / 100.0) as u64 * 100).max(last);
        last = event.at_us;
        if let EventKind::PointerMove { x, y, .. } = &mut event.kind {
            for v in [x, y] {
                let place = f64::from(*v) * zoom + noise_px * rng.random_range(-1.0..=1.0);
                *v = if zoom == 1.0 && noise_px == 0.0 { *v } else { place.round() as f32 };
            }
        }
        event
    });
    noisy.collect()
}

fn stretched_pauses(events: &[Event]) -> Vec<Event> {
    let (mut added, mut last) = (1_234_500, None);
    let stretched = events.iter().map(|event| {
        let gap = last.replace(event.at_us).map_or(0, |last| event.at_us.saturating_sub(last));
        added += if gap > 100_000 { gap / 200 * 100 } else { 0 };
        Event { at_us: event.at_us + added, ..*event }
    });
    stretched.collect()
}

fn spliced(events: &[Event], other: &[Event]) -> Vec<Event> {
    const PIECE_US: u64 = 10_000_000;
    let mut out: Vec<Event> = Vec::new();
    let mut at_us = 0;
    for piece in 0..60 {
        let from = if piece % 2 == 0 { events } else { other };
        let start = from.first().map_or(0, |event| event.at_us) + piece * PIECE_US;
        let within = from.iter().filter(|event| (start..start + PIECE_US).contains(&event.at_us));
        out.extend(within.map(|event| Event { at_us: event.at_us - start + at_us, ..*event }));
        at_us += PIECE_US + 500_000;
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
                assert!(played.caught[0].value >= 0.9, "{played:?}");
            }
        }
        let other = Recording { label: Label::Unknown, ..recordings[0].clone() };
        assert!(evaluate(&[other], 1, &mut |_| {}).is_err());
    }
}
