//! A simulated person: strokes, corrections, pauses, reading, typing.
//!
//! The stroke follows the neuromotor picture: a ballistic movement with an early velocity peak that
//! falls short or wide in proportion to its length, then smaller overlapping corrections (Plamondon's
//! sigma-lognormal and Meyer's optimised submovements, in a simple form). No two strokes are alike.

use super::{Stage, gauss, lognormal};
use crate::event::KeyClass;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Habits that differ between people and hold within one.
#[derive(Clone, Debug)]
pub(super) struct Person {
    /// Intercept and slope of Fitts' law, milliseconds and milliseconds a bit.
    fitts_ms: (f64, f64),
    /// Exponent that moves the velocity peak ahead of the middle.
    skew: f64,
    /// Bow of a stroke as a share of its length, with the hand's preferred sign.
    bow: f64,
    /// Endpoint scatter as a share of the distance.
    scatter: f64,
    heading_noise: f64,
    speed_noise: f64,
    tremor_px: f64,
    tremor_hz: f64,
    click_dwell_ms: f64,
    pause_ms: f64,
    key_interval_ms: f64,
    key_dwell_ms: f64,
    typo_rate: f64,
    wheel_px: f64,
    /// Share of acts that follow a shape or a line of text instead of aiming.
    traces: f64,
    /// How evenly those are followed.
    trace_noise: f64,
}

impl Person {
    pub(super) fn new(rng: &mut ChaCha8Rng) -> Person {
        Person {
            fitts_ms: (rng.random_range(60.0..220.0), rng.random_range(70.0..190.0)),
            skew: rng.random_range(0.68..0.95),
            bow: gauss(rng) * 0.05,
            scatter: rng.random_range(0.04..0.12),
            heading_noise: rng.random_range(0.05..0.18),
            speed_noise: rng.random_range(0.08..0.28),
            tremor_px: rng.random_range(0.1..0.7),
            tremor_hz: rng.random_range(7.5..12.0),
            click_dwell_ms: rng.random_range(60.0..130.0),
            pause_ms: rng.random_range(180.0..700.0),
            key_interval_ms: rng.random_range(105.0..260.0),
            key_dwell_ms: rng.random_range(60.0..125.0),
            typo_rate: rng.random_range(0.01..0.07),
            wheel_px: [53.0, 100.0, 100.0, 120.0][rng.random_range(0..4)],
            traces: [0.03, 0.05, 0.1, 0.8][rng.random_range(0..4)],
            trace_noise: rng.random_range(0.1..0.35),
        }
    }

    pub(super) fn act(&mut self, stage: &mut Stage) {
        match stage.rng.random_range(0..100) {
            _ if stage.rng.random_bool(self.traces) => self.trace(stage),
            0..50 => {
                let target = stage.target();
                self.point(stage, target);
                let settle = lognormal(&mut stage.rng, 110.0, 0.5);
                stage.wait_ms(settle);
                let dwell = lognormal(&mut stage.rng, self.click_dwell_ms, 0.22);
                stage.click(dwell);
            }
            50..72 => {
                let target = self.near(stage);
                self.point(stage, target);
            }
            72..88 => self.read(stage),
            _ => self.write(stage),
        }
        let pause = lognormal(&mut stage.rng, self.pause_ms, 0.9).min(6_000.0);
        stage.wait_ms(pause);
    }

    /// Aims at a target and corrects until it is hit.
    fn point(&self, stage: &mut Stage, target: (f64, f64)) {
        let radius = stage.rng.random_range(6.0..26.0);
        for attempt in 0..4 {
            let (dx, dy) = (target.0 - stage.x, target.1 - stage.y);
            let distance = dx.hypot(dy);
            if distance < radius {
                break;
            }
            let reach = if attempt == 0 { 0.97 } else { 1.0 } + gauss(&mut stage.rng) * self.scatter;
            let wide = gauss(&mut stage.rng) * self.scatter * 0.6;
            let aim = (dx * reach - dy * wide, dy * reach + dx * wide);
            let bits = (distance / radius + 1.0).log2();
            let hurry = lognormal(&mut stage.rng, 1.0, 0.18);
            let duration_ms =
                (self.fitts_ms.0 + self.fitts_ms.1 * bits * if attempt == 0 { 0.8 } else { 0.9 }) * hurry;
            self.stroke(stage, aim, duration_ms.clamp(90.0, 2_500.0));
            if attempt > 0 || stage.rng.random_bool(0.35) {
                let look = lognormal(&mut stage.rng, 70.0, 0.5);
                stage.wait_ms(look);
            }
        }
    }

    /// One ballistic movement by `aim`, with its own bow, noise and tremor.
    fn stroke(&self, stage: &mut Stage, aim: (f64, f64), duration_ms: f64) {
        let length = aim.0.hypot(aim.1).max(1.0);
        let (ux, uy) = (aim.0 / length, aim.1 / length);
        let bow = (self.bow + gauss(&mut stage.rng) * 0.035) * length;
        let skew = (self.skew + gauss(&mut stage.rng) * 0.06).clamp(0.5, 1.1);
        // Some strokes carry a second impulse: a shoulder in the velocity profile.
        let second = stage.rng.random_bool(0.45).then(|| stage.rng.random_range(0.08..0.3));
        let second_at: f64 = stage.rng.random_range(0.35..0.65);
        let progress = |t: f64| {
            let main = bell(t.powf(skew));
            match second {
                Some(share) => {
                    (1.0 - share) * bell((t / 0.8).min(1.0).powf(skew))
                        + share * bell(((t - second_at) / (1.0 - second_at)).clamp(0.0, 1.0))
                }
                None => main,
            }
        };
        let step_us = stage.recorder.sample_us();
        let steps = (duration_ms * 1000.0 / step_us).ceil().max(2.0);
        let (mut along_before, mut bow_before) = (0.0, 0.0);
        let (mut heading, mut pace) = (0.0, 0.0);
        let phase = stage.rng.random_range(0.0..std::f64::consts::TAU);
        let (mut x, mut y) = (stage.x, stage.y);
        let mut samples = Vec::with_capacity(steps as usize);
        for i in 1..=steps as usize {
            let t = i as f64 / steps;
            let s = progress(t);
            let along = s * length;
            let across = bow * (std::f64::consts::PI * s.powf(0.85)).sin();
            // Ornstein–Uhlenbeck noise with about 90 ms memory, proportional to the movement itself.
            let decay = (-step_us / 90_000.0).exp();
            let kick = (1.0 - decay * decay).sqrt();
            heading = heading * decay + kick * self.heading_noise * gauss(&mut stage.rng);
            pace = pace * decay + kick * self.speed_noise * gauss(&mut stage.rng);
            let forward = (along - along_before) * f64::exp(pace);
            let side = across - bow_before + forward * heading;
            (along_before, bow_before) = (along, across);
            x += forward * ux - side * uy;
            y += forward * uy + side * ux;
            let seconds = i as f64 * step_us / 1e6;
            let shake = self.tremor_px * (std::f64::consts::TAU * self.tremor_hz * seconds + phase).sin();
            let (jx, jy) = (gauss(&mut stage.rng) * 0.12, gauss(&mut stage.rng) * 0.12);
            samples.push((i as f64 * step_us, x - shake * uy + jx, y + shake * ux + jy));
        }
        stage.travel(&samples);
    }

    /// Follows a closed shape once or more, slower in its bends, as when drawing, circling a word or
    /// keeping a menu open: long, even movement that is a person's all the same.
    fn trace(&self, stage: &mut Stage) {
        let (a, b) = (stage.rng.random_range(40.0..260.0), stage.rng.random_range(30.0..200.0));
        let tilt: f64 = stage.rng.random_range(0.0..std::f64::consts::TAU);
        let period_ms = lognormal(&mut stage.rng, 1_400.0, 0.45).clamp(500.0, 5_000.0);
        let turns = stage.rng.random_range(0.6..2.6);
        let wise = if stage.rng.random_bool(0.5) { 1.0 } else { -1.0 };
        let step_us = stage.recorder.sample_us();
        let steps = (period_ms * 1000.0 * turns / step_us) as usize;
        let decay = (-step_us / 130_000.0).exp();
        let kick = (1.0 - decay * decay).sqrt();
        let (mut pace, mut wobble_x, mut wobble_y) = (0.0, 0.0, 0.0);
        let mut angle: f64 = stage.rng.random_range(0.0..std::f64::consts::TAU);
        let point = |angle: f64| {
            let (x, y) = (a * angle.cos(), b * angle.sin());
            (x * tilt.cos() - y * tilt.sin(), x * tilt.sin() + y * tilt.cos())
        };
        let start = point(angle);
        let (from_x, from_y) = (stage.x, stage.y);
        let mut samples = Vec::with_capacity(steps);
        for i in 1..=steps {
            pace = pace * decay + kick * self.trace_noise * gauss(&mut stage.rng);
            wobble_x = wobble_x * decay + kick * 0.02 * a * gauss(&mut stage.rng);
            wobble_y = wobble_y * decay + kick * 0.02 * b * gauss(&mut stage.rng);
            // It sets off and stops like any movement of a hand.
            let edge = (i.min(steps - i) as f64 * step_us / 180_000.0).min(1.0);
            let speed =
                std::f64::consts::TAU * step_us / (period_ms * 1000.0) * f64::exp(pace) * (0.1 + 0.9 * edge);
            angle += wise * speed;
            let (x, y) = point(angle);
            samples.push((
                i as f64 * step_us,
                from_x + x - start.0 + wobble_x,
                from_y + y - start.1 + wobble_y,
            ));
        }
        stage.travel(&samples);
        let (width, height) =
            (f64::from(stage.environment.viewport_width), f64::from(stage.environment.viewport_height));
        (stage.x, stage.y) = (stage.x.clamp(0.0, width), stage.y.clamp(0.0, height));
    }

    fn near(&self, stage: &mut Stage) -> (f64, f64) {
        let (width, height) =
            (f64::from(stage.environment.viewport_width), f64::from(stage.environment.viewport_height));
        let x = stage.x + gauss(&mut stage.rng) * 130.0;
        let y = stage.y + gauss(&mut stage.rng) * 90.0;
        (x.clamp(5.0, width - 5.0), y.clamp(5.0, height - 5.0))
    }

    /// Scrolls in bursts of slowing notches and reads in between; the hand is not quite still.
    fn read(&self, stage: &mut Stage) {
        let down = stage.scroll_y < 400.0 || stage.rng.random_bool(0.75);
        for _ in 0..stage.rng.random_range(1..4) {
            let notches = stage.rng.random_range(2..8);
            for notch in 0..notches {
                stage.wheel(if down { self.wheel_px } else { -self.wheel_px });
                let gap = lognormal(&mut stage.rng, 45.0 + 14.0 * f64::from(notch), 0.35);
                stage.wait_ms(gap);
            }
            let reading = lognormal(&mut stage.rng, 1_100.0, 0.6).min(7_000.0);
            stage.wait_ms(reading);
            if stage.rng.random_bool(0.5) {
                let drift = (gauss(&mut stage.rng) * 12.0, gauss(&mut stage.rng) * 9.0);
                self.stroke(stage, drift, 260.0);
            }
        }
    }

    /// Types a few words, with overlapping keys, thinking pauses and corrections.
    fn write(&self, stage: &mut Stage) {
        for _ in 0..stage.rng.random_range(1..6) {
            for _ in 0..stage.rng.random_range(2..9) {
                self.press(stage, KeyClass::Letter, 1.0);
                if stage.rng.random_bool(self.typo_rate) {
                    let startled = lognormal(&mut stage.rng, 260.0, 0.4);
                    stage.wait_ms(startled);
                    self.press(stage, KeyClass::Delete, 1.1);
                    self.press(stage, KeyClass::Letter, 1.2);
                }
            }
            if stage.rng.random_bool(0.08) {
                self.press(stage, KeyClass::Punctuation, 1.4);
            }
            self.press(stage, KeyClass::Space, 1.05);
            if stage.rng.random_bool(0.25) {
                let thinking = lognormal(&mut stage.rng, 420.0, 0.6).min(3_000.0);
                stage.wait_ms(thinking);
            }
        }
    }

    fn press(&self, stage: &mut Stage, class: KeyClass, slower: f64) {
        let dwell = lognormal(&mut stage.rng, self.key_dwell_ms, 0.24);
        let interval = lognormal(&mut stage.rng, self.key_interval_ms * slower, 0.36).max(18.0);
        stage.key(class, dwell, interval);
    }
}

/// Minimum-jerk progress (Flash and Hogan): 0 to 1 with a bell-shaped velocity.
fn bell(t: f64) -> f64 {
    t * t * t * (10.0 - 15.0 * t + 6.0 * t * t)
}
