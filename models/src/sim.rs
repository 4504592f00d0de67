//! Seeded people and bots that produce telemetry batches: for tests, training, rehearsal and load.
//!
//! People move in overlapping bell-shaped strokes with corrections, tremor and pauses; bots follow
//! their script. Both pass through the same simulated browser (`recorder`), so that what tells them
//! apart is movement and not the recording. Must not know: features, models, or how batches travel.

pub mod recorder;

mod bot;
mod person;

pub use bot::BotKind;

use crate::event::{BATCH_EVENTS_MAX, Batch, Environment, Event, EventKind, KeyClass, PointerType};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recorder::Recorder;
use std::collections::VecDeque;

/// One simulated visitor on one page: everything it does follows from its kind and seed.
#[derive(Clone, Debug)]
pub struct Visitor {
    mind: Mind,
    stage: Stage,
    sequence: u32,
    clock_us: u64,
}

impl Visitor {
    /// A person with a mouse and a keyboard; another seed is another person.
    pub fn person(seed: u64) -> Visitor {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let person = person::Person::new(&mut rng);
        Visitor::new(Mind::Person(person), rng)
    }

    /// A bot of a kind; the seed varies its speeds, steps and pauses within the kind.
    pub fn bot(kind: BotKind, seed: u64) -> Visitor {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xB07);
        let bot = bot::Bot::new(kind, seed, &mut rng);
        Visitor::new(Mind::Bot(Box::new(bot)), rng)
    }

    /// What the visitor does in the next `seconds` of page time, as one batch. The first batch carries
    /// the environment. Events beyond `BATCH_EVENTS_MAX` are left out and counted as dropped.
    pub fn next_batch(&mut self, seconds: f64) -> Batch {
        self.clock_us += (seconds.max(0.0) * 1e6) as u64;
        while self.stage.now_us < self.clock_us as f64 {
            let before = self.stage.now_us;
            match &mut self.mind {
                Mind::Person(person) => person.act(&mut self.stage),
                Mind::Bot(bot) => bot.act(&mut self.stage),
            }
            debug_assert!(self.stage.now_us > before, "every act takes time");
        }
        let mut events = Vec::new();
        let mut dropped = 0;
        while let Some(event) = self.stage.events.front().copied() {
            if event.at_us > self.clock_us {
                break;
            }
            self.stage.events.pop_front();
            if events.len() < BATCH_EVENTS_MAX { events.push(event) } else { dropped += 1 }
        }
        let environment = (self.sequence == 0).then_some(self.stage.environment);
        let batch =
            Batch { sequence: self.sequence, sent_at_us: self.clock_us, dropped, environment, events };
        self.sequence += 1;
        batch
    }

    fn new(mind: Mind, mut rng: ChaCha8Rng) -> Visitor {
        let stage = Stage::new(&mut rng);
        Visitor { mind, stage, sequence: 0, clock_us: 0 }
    }
}

#[derive(Clone, Debug)]
enum Mind {
    Person(person::Person),
    Bot(Box<bot::Bot>),
}

/// The page a visitor acts on: its clock, its pointer, and the browser that records both.
#[derive(Clone, Debug)]
struct Stage {
    rng: ChaCha8Rng,
    environment: Environment,
    recorder: Recorder,
    events: VecDeque<Event>,
    /// Up to when the visitor has acted, in microseconds of page time.
    now_us: f64,
    x: f64,
    y: f64,
    scroll_y: f64,
}

impl Stage {
    fn new(rng: &mut ChaCha8Rng) -> Stage {
        let (width, height) = SCREENS[rng.random_range(0..SCREENS.len())];
        let recorder = Recorder::new(rng);
        let own = ChaCha8Rng::seed_from_u64(rng.random());
        Stage {
            environment: Environment {
                viewport_width: width,
                viewport_height: height,
                pixel_ratio_percent: [100, 100, 125, 150, 200][rng.random_range(0..5)],
                automation: false,
                coarse_pointer: false,
                coalesced_supported: true,
            },
            recorder,
            events: VecDeque::new(),
            now_us: rng.random_range(200_000.0..900_000.0),
            x: rng.random_range(0.2..0.8) * f64::from(width),
            y: rng.random_range(0.2..0.8) * f64::from(height),
            scroll_y: 0.0,
            rng: own,
        }
    }

    fn wait_ms(&mut self, ms: f64) {
        self.now_us += ms.max(0.1) * 1000.0;
    }

    /// A place worth pointing at.
    fn target(&mut self) -> (f64, f64) {
        let width = f64::from(self.environment.viewport_width);
        let height = f64::from(self.environment.viewport_height);
        (self.rng.random_range(0.06..0.94) * width, self.rng.random_range(0.08..0.92) * height)
    }

    /// Moves through `samples` of (microseconds since now, x, y) as the browser would record them.
    fn travel(&mut self, samples: &[(f64, f64, f64)]) {
        let Some(&(last, x, y)) = samples.last() else { return };
        let start = self.now_us;
        let absolute = samples.iter().map(|&(t, x, y)| (start + t, x, y));
        self.recorder.record(absolute, &mut self.events);
        (self.x, self.y) = (x, y);
        self.now_us = start + last;
    }

    fn click(&mut self, dwell_ms: f64) {
        let (pointer, button) = (PointerType::Mouse, 0);
        let (x, y) = (self.x.round() as f32, self.y.round() as f32);
        self.emit(EventKind::PointerDown { pointer, x, y, button });
        self.wait_ms(dwell_ms);
        self.emit(EventKind::PointerUp { pointer, x, y, button });
        self.emit(EventKind::Click { pointer, x, y, button });
    }

    fn wheel(&mut self, dy: f64) {
        self.emit(EventKind::Wheel { dx: 0, dy: dy as i32 });
        let moved = (self.scroll_y + dy).clamp(0.0, PAGE_HEIGHT_PX);
        if moved != self.scroll_y {
            self.scroll_y = moved;
            self.wait_ms(0.8);
            self.emit(EventKind::Scroll { x: 0, y: moved as i32 });
        }
    }

    /// One key down now and up after `dwell_ms`; time moves on by `until_next_ms` only, as fingers overlap.
    fn key(&mut self, class: KeyClass, dwell_ms: f64, until_next_ms: f64) {
        self.emit(EventKind::KeyDown { class, repeat: false });
        let up = self.now_us + dwell_ms.max(1.0) * 1000.0;
        self.insert(Event { at_us: tick(up), trusted: true, kind: EventKind::KeyUp { class } });
        self.wait_ms(until_next_ms);
    }

    fn emit(&mut self, kind: EventKind) {
        self.insert(Event { at_us: tick(self.now_us), trusted: true, kind });
    }

    /// Keeps the queue in order of time; only a key's release is ever ahead of what follows it.
    fn insert(&mut self, event: Event) {
        let later = self.events.iter().rev().take_while(|queued| queued.at_us > event.at_us).count();
        self.events.insert(self.events.len() - later, event);
    }
}

/// Standard normal, by the sum of twelve uniforms: exact enough for movement, and the same everywhere.
fn gauss(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

/// Log-normal with a median and a spread in log units.
fn lognormal(rng: &mut ChaCha8Rng, median: f64, spread: f64) -> f64 {
    median * (spread * gauss(rng)).exp()
}

/// Browser clocks are coarsened to 100 µs.
fn tick(us: f64) -> u64 {
    (us.max(0.0) / 100.0).floor() as u64 * 100
}

/// Viewports seen in practice, CSS px.
const SCREENS: [(u32, u32); 6] =
    [(1280, 720), (1366, 657), (1440, 788), (1536, 730), (1920, 947), (2048, 1034)];

const PAGE_HEIGHT_PX: f64 = 6000.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        for make in makers() {
            let bytes = |seed| {
                let mut visitor = make(seed);
                (0..5).flat_map(|_| visitor.next_batch(4.0).encode()).collect::<Vec<u8>>()
            };
            assert_eq!(bytes(1), bytes(1));
            assert_ne!(bytes(1), bytes(2));
        }
    }

    #[test]
    fn batches_are_within_every_limit_and_in_order_of_time() {
        for make in makers() {
            for seed in 0..10 {
                let mut visitor = make(seed);
                let mut last = 0;
                let mut events = 0;
                for sequence in 0..30 {
                    let batch = visitor.next_batch(2.0);
                    assert_eq!(Batch::decode(&batch.encode()).unwrap(), batch);
                    assert_eq!(batch.sequence, sequence);
                    assert_eq!(batch.environment.is_some(), sequence == 0);
                    for event in &batch.events {
                        assert!(event.at_us >= last && event.at_us <= batch.sent_at_us);
                        last = event.at_us;
                    }
                    events += batch.events.len();
                }
                assert!(events > 30, "a minute of a visitor has more than {events} events");
            }
        }
    }

    fn makers() -> Vec<Box<dyn Fn(u64) -> Visitor>> {
        let mut makers: Vec<Box<dyn Fn(u64) -> Visitor>> = vec![Box::new(Visitor::person)];
        for kind in BotKind::ALL {
            makers.push(Box::new(move |seed| Visitor::bot(kind, seed)));
        }
        makers
    }
}
