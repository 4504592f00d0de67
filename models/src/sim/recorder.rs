//! A simulated browser's pointer recording: device samples are gathered into frames.
//!
//! Chromium hands a page one pointermove a display frame, at the time and place of the last device
//! sample in it, and none while the pointer stands still. Recordings made elsewhere are passed through
//! here before training, people and bots alike, so that a model cannot learn the recorder.

use super::tick;
use crate::event::{Event, EventKind, PointerType};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;

/// Display and mouse of one visitor.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// Time between display frames, microseconds.
    frame_us: f64,
    /// Time between samples of the pointing device, microseconds.
    sample_us: f64,
    phase_us: f64,
    at: (f64, f64),
}

impl Recorder {
    /// A browser as people have it: mostly 60 Hz displays, mice from 125 to 1000 Hz.
    pub fn new(rng: &mut ChaCha8Rng) -> Recorder {
        let frame_us = [16_667.0, 16_667.0, 16_667.0, 13_333.0, 8_333.0, 6_944.0][rng.random_range(0..6)];
        let sample_us = [8_000.0, 8_000.0, 4_000.0, 2_000.0, 1_000.0][rng.random_range(0..5)];
        Recorder { frame_us, sample_us, phase_us: rng.random_range(0.0..frame_us), at: (f64::NAN, f64::NAN) }
    }

    pub fn sample_us(&self) -> f64 {
        self.sample_us
    }

    /// Turns device samples (microseconds of page time, x, y) in order of time into pointer events.
    pub fn record(&mut self, samples: impl Iterator<Item = (f64, f64, f64)>, events: &mut VecDeque<Event>) {
        let mut gathered: Option<Gathered> = None;
        for (at_us, x, y) in samples {
            let here = (x.round(), y.round());
            if here == self.at {
                continue;
            }
            let frame = ((at_us - self.phase_us) / self.frame_us).floor();
            match &mut gathered {
                Some(g) if g.frame == frame => (g.at_us, g.to, g.count) = (at_us, here, g.count + 1),
                _ => {
                    if let Some(done) = gathered.take() {
                        events.push_back(done.event());
                    }
                    let from = if self.at.0.is_nan() { here } else { self.at };
                    gathered = Some(Gathered { frame, at_us, from, to: here, count: 1 });
                }
            }
            self.at = here;
        }
        if let Some(done) = gathered {
            events.push_back(done.event());
        }
    }
}

/// Records a person's or bot's events anew: another display, mouse, zoom and clock, and a mirror now and
/// then. Movement is kept; what the first recorder left in it is washed out as far as it can be.
pub fn record_anew(events: &[Event], rng: &mut ChaCha8Rng) -> Vec<Event> {
    let mut recorder = Recorder::new(rng);
    let zoom = rng.random_range(0.65..1.5);
    let pace = rng.random_range(0.9..1.1);
    let mirror = [rng.random_bool(0.5), rng.random_bool(0.5), rng.random_bool(0.3)];
    // Drivers, buses and busy pages deliver late and unevenly; some recorders hardly, some by a frame.
    let late_us = [0.0, 0.0, 1_000.0, 3_000.0, 6_000.0][rng.random_range(0..5)];
    let place = |x: f32, y: f32| {
        let (x, y) = if mirror[2] { (y, x) } else { (x, y) };
        let flip = |v: f32, flipped: bool| f64::from(if flipped { -v } else { v }) * zoom;
        (flip(x, mirror[0]), flip(y, mirror[1]))
    };
    let mut out = VecDeque::with_capacity(events.len());
    let mut last: Option<(f64, f64, f64)> = None;
    // Samples of the present movement; handed over before any other event, so that order is kept.
    let mut samples: Vec<(f64, f64, f64)> = Vec::new();
    for event in events {
        let at = event.at_us as f64 * pace;
        let EventKind::PointerMove { pointer: PointerType::Mouse, x, y, .. } = event.kind else {
            recorder.record(samples.drain(..), &mut out);
            let mut kind = event.kind;
            if let EventKind::PointerDown { x, y, .. }
            | EventKind::PointerUp { x, y, .. }
            | EventKind::Click { x, y, .. } = &mut kind
            {
                let placed = place(*x, *y);
                (*x, *y) = (placed.0.round() as f32, placed.1.round() as f32);
            }
            out.push_back(Event { at_us: tick(at), kind, ..*event });
            continue;
        };
        let (x, y) = place(x, y);
        let at = at + late_us * rng.random::<f64>();
        match last {
            Some((t, fx, fy)) if at > t && at - t <= INTERPOLATED_MAX_US => {
                // The device reports at its own beat, which is never quite even.
                let mut sample = t + recorder.sample_us * rng.random_range(0.5..1.0);
                while sample < at {
                    let share = (sample - t) / (at - t);
                    samples.push((sample, fx + (x - fx) * share, fy + (y - fy) * share));
                    sample += recorder.sample_us * rng.random_range(0.85..1.15);
                }
                samples.push((at, x, y));
            }
            _ => samples.push((at, x, y)),
        }
        last = Some((at, x, y));
    }
    recorder.record(samples.drain(..), &mut out);
    let mut out: Vec<Event> = out.into();
    out.sort_by_key(|event| event.at_us);
    out
}

/// Across longer gaps the pointer stood still.
const INTERPOLATED_MAX_US: f64 = 100_000.0;

struct Gathered {
    frame: f64,
    at_us: f64,
    from: (f64, f64),
    to: (f64, f64),
    count: u32,
}

impl Gathered {
    fn event(&self) -> Event {
        Event {
            at_us: tick(self.at_us),
            trusted: true,
            kind: EventKind::PointerMove {
                pointer: PointerType::Mouse,
                x: self.to.0 as f32,
                y: self.to.1 as f32,
                movement_x: (self.to.0 - self.from.0) as i32,
                movement_y: (self.to.1 - self.from.1) as i32,
                coalesced: self.count,
            },
        }
    }
}
