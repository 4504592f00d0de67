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
