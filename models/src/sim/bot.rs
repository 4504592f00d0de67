//! Simulated bots: scripts that drive a page, from the crude to the careful.

use super::{Stage, Visitor, gauss};
use crate::event::{Event, KeyClass};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// How a bot moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BotKind {
    /// Straight lines in equal, evenly timed steps.
    LinearEven,
    /// Bézier curves with an easing, evenly timed.
    Bezier,
    /// Jumps to its target and clicks; hardly a movement at all.
    Teleport,
    /// Straight lines with Gaussian noise on places and times.
    JitteredLinear,
    /// A person's own events, played again and again.
    Replay,
    /// Fills forms at an even beat, jumping from field to field.
    Typist,
}

impl BotKind {
    pub const ALL: [BotKind; 6] = [
        BotKind::LinearEven,
        BotKind::Bezier,
        BotKind::Teleport,
        BotKind::JitteredLinear,
        BotKind::Replay,
        BotKind::Typist,
    ];

    /// The name used in indexes, cards and commands.
    pub fn name(self) -> &'static str {
        match self {
            BotKind::LinearEven => "linear-even",
            BotKind::Bezier => "bezier",
            BotKind::Teleport => "teleport",
            BotKind::JitteredLinear => "jittered-linear",
            BotKind::Replay => "replay",
            BotKind::Typist => "typist",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Bot {
    kind: BotKind,
    step_us: f64,
    /// Time for one movement; fixed for some scripts, by distance for others.
    duration_ms: f64,
    speed_px_per_ms: Option<f64>,
    /// Delay noise of the driver, as a share of a step: dispatching is never perfectly even.
    late: f64,
    pause_ms: f64,
    pause_spread: f64,
    dwell_ms: f64,
    key_ms: f64,
    key_dwell_ms: f64,
    key_spread: f64,
    jitter_px: f64,
    wheel_share: f64,
    /// For `Replay`: events of one loop, and its length.
    tape: Vec<Event>,
    tape_us: u64,
}

impl Bot {
    pub(super) fn new(kind: BotKind, seed: u64, rng: &mut ChaCha8Rng) -> Bot {
        let tape_us = 15_000_000;
        let tape = if kind == BotKind::Replay {
            Visitor::person(seed ^ 0x7A9E).next_batch(tape_us as f64 / 1e6).events
        } else {
            Vec::new()
        };
        Bot {
            kind,
            step_us: rng.random_range(5_000.0..24_000.0),
            duration_ms: rng.random_range(250.0..1_400.0),
            speed_px_per_ms: rng.random_bool(0.5).then(|| rng.random_range(0.25..1.8)),
            late: rng.random_range(0.0..0.25),
            pause_ms: rng.random_range(40.0..600.0),
            pause_spread: if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.05..0.5) },
            dwell_ms: rng.random_range(0.2..90.0),
            key_ms: rng.random_range(25.0..160.0),
            key_dwell_ms: rng.random_range(0.3..20.0),
            key_spread: if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.01..0.08) },
            jitter_px: rng.random_range(0.5..2.5),
            wheel_share: rng.random_range(0.0..0.15),
            tape,
            tape_us,
        }
    }

    pub(super) fn act(&mut self, stage: &mut Stage) {
        match self.kind {
            BotKind::Replay => return self.replay(stage),
            BotKind::Teleport => {
                let target = stage.target();
                stage.travel(&[(500.0, target.0, target.1)]);
                stage.wait_ms(1.0);
                stage.click(self.dwell_ms);
                self.pause(stage, 2.5);
                return;
            }
            BotKind::Typist => {
                let target = stage.target();
                stage.travel(&[(500.0, target.0, target.1)]);
                stage.wait_ms(1.0);
                stage.click(self.dwell_ms);
                for _ in 0..stage.rng.random_range(12..40) {
                    let class = if stage.rng.random_bool(0.15) { KeyClass::Space } else { KeyClass::Letter };
                    let interval = self.key_ms * (1.0 + self.key_spread * gauss(&mut stage.rng)).max(0.2);
                    stage.key(class, self.key_dwell_ms, interval);
                }
            }
            BotKind::LinearEven | BotKind::Bezier | BotKind::JitteredLinear => {
                if stage.rng.random_bool(self.wheel_share) {
                    for _ in 0..5 {
                        stage.wheel(100.0);
                        stage.wait_ms(self.step_us / 200.0);
                    }
                } else {
                    let target = stage.target();
                    self.travel(stage, target);
                    stage.wait_ms(20.0);
                    stage.click(self.dwell_ms);
                }
            }
        }
        self.pause(stage, 1.0);
    }

    fn pause(&self, stage: &mut Stage, times: f64) {
        let pause = self.pause_ms * times * (self.pause_spread * gauss(&mut stage.rng)).exp();
        stage.wait_ms(pause.max(1.0));
    }

    fn travel(&self, stage: &mut Stage, target: (f64, f64)) {
        let from = (stage.x, stage.y);
        let (dx, dy) = (target.0 - from.0, target.1 - from.1);
        let distance = dx.hypot(dy);
        let duration_ms = self.speed_px_per_ms.map_or(self.duration_ms, |speed| distance / speed);
        let steps = (duration_ms * 1000.0 / self.step_us).ceil().clamp(4.0, 1_000.0);
        let mut bend = || (gauss(&mut stage.rng) * 0.25 * distance, gauss(&mut stage.rng) * 0.25 * distance);
        let (first, second) = (bend(), bend());
        let mut samples: Vec<(f64, f64, f64)> = Vec::with_capacity(steps as usize);
        for i in 1..=steps as usize {
            let even = i as f64 / steps;
            let (x, y) = match self.kind {
                BotKind::Bezier => {
                    // Cubic, with the smooth-step easing that such libraries like.
                    let t = even * even * (3.0 - 2.0 * even);
                    let u = 1.0 - t;
                    let axis = |p0: f64, d: f64, a: f64, b: f64| {
                        u * u * u * p0
                            + 3.0 * u * u * t * (p0 + d / 3.0 + a)
                            + 3.0 * u * t * t * (p0 + 2.0 * d / 3.0 + b)
                            + t * t * t * (p0 + d)
                    };
                    (axis(from.0, dx, first.0, second.0), axis(from.1, dy, first.1, second.1))
                }
                BotKind::JitteredLinear if even < 1.0 => (
                    from.0 + dx * even + self.jitter_px * gauss(&mut stage.rng),
                    from.1 + dy * even + self.jitter_px * gauss(&mut stage.rng),
                ),
                _ => (from.0 + dx * even, from.1 + dy * even),
            };
            let late = match self.kind {
                BotKind::JitteredLinear => 0.3,
                _ => self.late,
            };
            let at = i as f64 * self.step_us + late * self.step_us * stage.rng.random::<f64>();
            samples.push((at, x, y));
        }
        stage.travel(&samples);
    }

    fn replay(&self, stage: &mut Stage) {
        let start = stage.now_us as u64 / 100 * 100;
        for event in &self.tape {
            stage.insert(Event { at_us: start + event.at_us, ..*event });
        }
        stage.now_us = (start + self.tape_us) as f64;
    }
}
