//! What a stretch of input amounts to: additive statistics (`Summary`) and the short memory from one
//! event to the next that feeds them (`Tracker`).
//!
//! Pointer movement is judged on a 20 ms grid, smoothed over three steps, by which recordings at 60, 125
//! or 1000 Hz, with steady clocks or jittery ones, look alike. Constant time and memory an event. Must not know: scores, sessions, pages.

use crate::event::{Event, EventKind, KeyClass, PointerType};
use crate::stats::{Buckets, Pairs, Spread};

/// Distance between grid points, microseconds.
pub const GRID_US: u64 = 20_000;
/// A pointer without an event for this long has stopped: a stroke ends.
pub const STILL_US: u64 = 100_000;
/// Gaps up to this long count as active input.
pub const ACTIVE_GAP_US: u64 = 1_000_000;
/// A stroke with fewer smoothed samples is not measured: shorter than 140 ms.
const STROKE_SAMPLES_MIN: u32 = 5;
const STROKE_PX_MIN: f32 = 12.0;
/// Heading is not measured on steps shorter than this; rounding to whole px would rule it.
const HEADING_PX_MIN: f32 = 2.0;
/// A single move event of at least this length after a standstill is a jump.
const JUMP_PX: f32 = 60.0;

/// Statistics of one stretch of input. Adding two gives the statistics of both.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub active_us: u64,
    pub events: u32,
    pub untrusted: u32,
    pub moves: u32,
    pub touches: u32,

    // Timing of move events: tells recorders apart as well as people from bots.
    pub move_interval: Spread,
    pub move_interval_lag: Pairs,
    pub move_interval_equal: u32,
    pub move_interval_pairs: u32,
    pub move_whole_ms: u32,
    pub move_coalesced: Spread,
    pub move_mismatch: u32,
    pub move_axis: u32,
    pub move_step_equal: u32,
    pub move_jumps: u32,
    /// Intervals at a multiple of `BEATS_MS`, each.
    pub move_on_beat: [u32; BEATS],

    // The 20 ms grid.
    pub grid_speed: Buckets<0, 28>,
    pub grid_ln_speed: Spread,
    pub grid_accel: Buckets<-6, 28>,
    pub grid_jerk: Buckets<-6, 28>,
    pub grid_turn: Buckets<-10, 26>,
    pub grid_accel_lag: Pairs,
    pub grid_turn_lag: Pairs,
    pub grid_curvature_speed: Pairs,
    pub grid_even: u32,
    pub grid_heading: [u16; 8],
    /// Power of speed at `TREMOR_BIN` and `FAST_BIN`, and all of it but the mean, over whole blocks.
    pub grid_tremor: f32,
    pub grid_fast: f32,
    pub grid_power: f32,
    pub grid_blocks: u32,

    // Strokes.
    pub stroke_ln_duration: Spread,
    pub stroke_ln_length: Spread,
    pub stroke_length_duration: Pairs,
    pub stroke_ln_speed: Spread,
    pub stroke_detour: Spread,
    pub stroke_peak_ratio: Spread,
    pub stroke_peak_at: Spread,
    pub stroke_peaks: Spread,
    pub stroke_speed_cv: Spread,
    pub stroke_jerk: Spread,
    pub stroke_bow: Spread,
    pub stroke_start: Spread,
    pub stroke_end: Spread,
    pub stroke_accel: Spread,
    pub stroke_turn: Spread,
    pub stroke_overshoot: Spread,
    pub stroke_corrections: u32,

    // Stopping.
    pub pause: Spread,
    pub pauses: u32,

    // Buttons.
    pub clicks: u32,
    pub click_dwell: Spread,
    pub click_still: Spread,
    pub click_interval: Spread,
    pub click_drift: Spread,
    pub click_events: u32,
    pub click_unpressed: u32,
    pub click_jumps: u32,
    pub click_elsewhere: u32,

    // Wheel and scroll.
    pub wheel_interval: Spread,
    pub wheel_interval_equal: u32,
    pub wheel_interval_pairs: u32,
    pub wheel_burst: Spread,
    pub scrolls: u32,
    pub wheels: u32,
    pub reading: Spread,

    // Keys, by class only.
    pub key_downs: u32,
    pub key_deletes: u32,
    pub key_interval: Spread,
    pub key_interval_lag: Pairs,
    pub key_interval_equal: u32,
    pub key_interval_pairs: u32,
    pub key_after_space: Spread,
    pub key_before_space: Spread,
    pub key_letters: Spread,
    pub key_pauses: u32,
    pub key_dwell: Spread,
    pub key_rollover: u32,
    pub hand_switch: Spread,
}

impl Summary {
    pub fn merge(&mut self, other: &Summary) {
        macro_rules! sum { ($($field:ident)*) => { $(self.$field += other.$field;)* } }
        macro_rules! merge { ($($field:ident)*) => { $(self.$field.merge(&other.$field);)* } }
        sum!(active_us events untrusted moves touches);
        sum!(move_interval_equal move_interval_pairs move_whole_ms move_mismatch move_axis move_step_equal);
        sum!(grid_tremor grid_fast grid_power grid_blocks click_events click_unpressed);
        sum!(move_jumps grid_even stroke_corrections pauses clicks click_jumps click_elsewhere);
        sum!(wheel_interval_equal wheel_interval_pairs scrolls wheels);
        sum!(key_downs key_deletes key_interval_equal key_interval_pairs key_pauses key_rollover);
        merge!(move_interval move_interval_lag move_coalesced);
        merge!(grid_speed grid_ln_speed grid_accel grid_jerk grid_turn grid_accel_lag grid_turn_lag);
        merge!(grid_curvature_speed);
        merge!(stroke_ln_duration stroke_ln_length stroke_length_duration stroke_ln_speed stroke_detour);
        merge!(stroke_peak_ratio stroke_peak_at stroke_peaks stroke_speed_cv stroke_jerk stroke_bow);
        merge!(stroke_start stroke_end stroke_accel stroke_turn stroke_overshoot pause click_drift);
        merge!(click_dwell click_still click_interval wheel_interval wheel_burst reading);
        merge!(key_interval key_interval_lag key_after_space key_before_space key_letters key_dwell hand_switch);
        for (count, more) in self.move_on_beat.iter_mut().zip(other.move_on_beat) {
            *count += more;
        }
        for (count, more) in self.grid_heading.iter_mut().zip(&other.grid_heading) {
            *count = count.saturating_add(*more);
        }
    }

    pub fn strokes(&self) -> f32 {
        self.stroke_ln_duration.n()
    }
}

/// What must be remembered from one event to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracker {
    last_input_us: Option<u64>,
    last_pointer_us: Option<u64>,
    last_key_us: Option<u64>,
    pointer: Option<PointerTrack>,
    stroke: Stroke,
    move_interval: Option<f32>,
    step: (f32, f32),
    down: Option<(u64, f32, f32)>,
    click_at: Option<u64>,
    /// A press and its release have been seen, and no click for them yet.
    pressed: bool,
    moves_since_click: u32,
    jumped: bool,
    wheel: Option<(u64, Option<f32>)>,
    wheel_burst: u32,
    key_interval: Option<f32>,
    key_class: Option<KeyClass>,
    /// When the last key of each class went down, while it is down.
    keys_down: [Option<u64>; 11],
}

#[derive(Clone, Copy, Debug)]
struct PointerTrack {
    at_us: u64,
    x: f32,
    y: f32,
    grid_us: u64,
    grid_x: f32,
    grid_y: f32,
}

impl Tracker {
    /// Forgets the thread: another page, or a gap in what arrived.
    pub fn reset(&mut self, summary: &mut Summary) {
        self.end_stroke(summary);
        *self = Tracker::default();
    }

    pub fn observe(&mut self, summary: &mut Summary, event: &Event) {
        let at = event.at_us;
        summary.events = summary.events.saturating_add(1);
        if !event.trusted {
            summary.untrusted = summary.untrusted.saturating_add(1);
        }
        if is_input(&event.kind) {
            self.note_activity(summary, at);
        }
        match event.kind {
            EventKind::PointerMove {
                pointer: PointerType::Mouse,
                x,
                y,
                movement_x,
                movement_y,
                coalesced,
            } => {
                self.note_hand(summary, at);
                self.observe_move(summary, at, x, y);
                let (dx, dy) = self.step;
                if coalesced > 0 {
                    summary.move_coalesced.add((coalesced as f32).ln());
                }
                if (dx - movement_x as f32).abs() > 1.5 || (dy - movement_y as f32).abs() > 1.5 {
                    summary.move_mismatch += 1;
                }
            }
            EventKind::PointerDown { pointer: PointerType::Mouse, x, y, .. } => {
                self.note_hand(summary, at);
                self.observe_down(summary, at, x, y);
            }
            EventKind::PointerUp { pointer: PointerType::Mouse, x, y, .. } => {
                if let Some((down_us, down_x, down_y)) = self.down.take() {
                    summary.click_dwell.add(ln_ms(at.saturating_sub(down_us)));
                    let drift = (x - down_x).hypot(y - down_y);
                    if drift <= DRIFT_MAX_PX {
                        summary.click_drift.add((1.0 + drift).ln());
                    }
                    self.pressed = true;
                }
            }
            EventKind::Click { pointer: PointerType::Mouse, .. } => {
                summary.click_events += 1;
                if !std::mem::take(&mut self.pressed) {
                    summary.click_unpressed += 1;
                }
            }
            EventKind::PointerMove { .. } | EventKind::PointerDown { .. } | EventKind::PointerUp { .. } => {
                summary.touches = summary.touches.saturating_add(1);
            }
            EventKind::PointerCancel => self.down = None,
            EventKind::Wheel { .. } => self.observe_wheel(summary, at),
            EventKind::Scroll { .. } => summary.scrolls += 1,
            EventKind::KeyDown { class, repeat } => {
                if !repeat {
                    self.observe_key_down(summary, at, class);
                }
            }
            EventKind::KeyUp { class } => {
                if let Some(down) = self.keys_down[class as usize].take() {
                    summary.key_dwell.add(ln_ms(at.saturating_sub(down)));
                }
            }
            EventKind::Blur | EventKind::Hidden => {
                // A key or button let go elsewhere never reports its release here.
                self.keys_down = [None; 11];
                self.down = None;
            }
            EventKind::Click { .. } | EventKind::Focus | EventKind::Visible | EventKind::Navigate => {}
        }
    }

    fn note_activity(&mut self, summary: &mut Summary, at: u64) {
        if let Some(last) = self.last_input_us {
            let gap = at.saturating_sub(last);
            if gap <= ACTIVE_GAP_US {
                summary.active_us += gap;
            }
            if (STILL_US..=ACTIVE_GAP_US).contains(&gap) {
                summary.pauses += 1;
                summary.pause.add(ln_ms(gap));
            }
            if gap >= READ_US
                && let Some((wheel, _)) = self.wheel
                && wheel == last
            {
                summary.reading.add(ln_ms(gap));
            }
        }
        self.last_input_us = Some(self.last_input_us.map_or(at, |last| last.max(at)));
    }

    /// The hand is back on the mouse after typing.
    fn note_hand(&mut self, summary: &mut Summary, at: u64) {
        if let Some(key) = self.last_key_us.take() {
            summary.hand_switch.add(ln_ms(at.saturating_sub(key)));
        }
        self.last_pointer_us = Some(at);
    }

    fn observe_move(&mut self, summary: &mut Summary, at: u64, x: f32, y: f32) {
        summary.moves = summary.moves.saturating_add(1);
        self.moves_since_click = self.moves_since_click.saturating_add(1);
        if at.is_multiple_of(1000) {
            summary.move_whole_ms += 1;
        }
        let Some(track) = self.pointer else {
            self.step = (0.0, 0.0);
            self.pointer = Some(PointerTrack { at_us: at, x, y, grid_us: at, grid_x: x, grid_y: y });
            return;
        };
        let gap = at.saturating_sub(track.at_us);
        let (dx, dy) = (x - track.x, y - track.y);
        if dx == 0.0 || dy == 0.0 {
            summary.move_axis += 1;
        }
        if (dx, dy) == self.step {
            summary.move_step_equal += 1;
        }
        self.step = (dx, dy);
        if gap > STILL_US {
            self.end_stroke(summary);
            self.move_interval = None;
            if dx.hypot(dy) >= JUMP_PX {
                // It left the page and came back elsewhere, or was put there: no movement to measure.
                summary.move_jumps += 1;
                self.jumped = true;
                self.pointer = Some(PointerTrack { at_us: at, x, y, grid_us: at, grid_x: x, grid_y: y });
                return;
            }
            // It lay still and started less than a grid step ago.
            let began = at - GRID_US;
            self.pointer = Some(PointerTrack {
                at_us: began,
                grid_us: began,
                grid_x: track.x,
                grid_y: track.y,
                ..track
            });
        } else if gap > 0 {
            let interval = ln_ms(gap);
            summary.move_interval.add(interval);
            for (count, beat) in summary.move_on_beat.iter_mut().zip(BEATS_MS) {
                let beats = gap as f32 / (beat * 1000.0);
                let nearest = beats.round();
                if nearest >= 1.0 && (beats - nearest).abs() <= BEAT_SLACK {
                    *count += 1;
                }
            }
            if let Some(before) = self.move_interval.replace(interval) {
                summary.move_interval_pairs += 1;
                summary.move_interval_lag.add(before, interval);
                if (before - interval).abs() < EQUAL_LN {
                    summary.move_interval_equal += 1;
                }
            }
        }
        self.walk_grid(summary, at, x, y);
    }

    /// Emits the grid points between the last event and this one; at most five, as longer gaps end the stroke.
    fn walk_grid(&mut self, summary: &mut Summary, at: u64, x: f32, y: f32) {
        let Some(mut track) = self.pointer else { return };
        if at <= track.at_us {
            self.pointer = Some(PointerTrack { x, y, ..track });
            return;
        }
        let span = (at - track.at_us) as f32;
        while track.grid_us + GRID_US <= at {
            track.grid_us += GRID_US;
            let share = (track.grid_us.saturating_sub(track.at_us)) as f32 / span;
            let (gx, gy) = (track.x + (x - track.x) * share, track.y + (y - track.y) * share);
            self.stroke.step(summary, gx - track.grid_x, gy - track.grid_y);
            (track.grid_x, track.grid_y) = (gx, gy);
        }
        self.pointer = Some(PointerTrack { at_us: at, x, y, ..track });
    }

    fn end_stroke(&mut self, summary: &mut Summary) {
        self.stroke.finish(summary);
        self.stroke =
            Stroke { before: self.stroke.measured.then_some(self.stroke.path), ..Stroke::default() };
    }

    fn observe_down(&mut self, summary: &mut Summary, at: u64, x: f32, y: f32) {
        summary.clicks = summary.clicks.saturating_add(1);
        if let Some(track) = self.pointer {
            let still = at.saturating_sub(track.at_us);
            if still < STILLNESS_MAX_US {
                summary.click_still.add(ln_ms(still));
            }
            if (x - track.x).abs() > 2.0 || (y - track.y).abs() > 2.0 {
                summary.click_elsewhere += 1;
            }
        }
        if self.jumped && self.moves_since_click <= 2 {
            summary.click_jumps += 1;
        }
        if let Some(before) = self.click_at.replace(at) {
            summary.click_interval.add(ln_ms(at.saturating_sub(before)));
        }
        self.jumped = false;
        self.moves_since_click = 0;
        self.down = Some((at, x, y));
        self.end_stroke(summary);
    }

    fn observe_wheel(&mut self, summary: &mut Summary, at: u64) {
        summary.wheels += 1;
        let mut interval = None;
        match self.wheel {
            Some((before, previous)) if at.saturating_sub(before) < READ_US => {
                let now = ln_ms(at.saturating_sub(before));
                summary.wheel_interval.add(now);
                if let Some(previous) = previous {
                    summary.wheel_interval_pairs += 1;
                    if (previous - now).abs() < EQUAL_LN {
                        summary.wheel_interval_equal += 1;
                    }
                }
                interval = Some(now);
                self.wheel_burst = self.wheel_burst.saturating_add(1);
            }
            _ => {
                if self.wheel_burst > 0 {
                    summary.wheel_burst.add((self.wheel_burst as f32).ln());
                }
                self.wheel_burst = 1;
            }
        }
        self.wheel = Some((at, interval));
    }

    fn observe_key_down(&mut self, summary: &mut Summary, at: u64, class: KeyClass) {
        summary.key_downs = summary.key_downs.saturating_add(1);
        if class == KeyClass::Delete {
            summary.key_deletes += 1;
        }
        if self.keys_down.iter().any(Option::is_some) {
            summary.key_rollover += 1;
        }
        if let Some(pointer) = self.last_pointer_us.take() {
            summary.hand_switch.add(ln_ms(at.saturating_sub(pointer)));
        }
        let gap = self.last_key_us.map(|before| at.saturating_sub(before));
        if let Some(gap) = gap {
            if gap > KEY_PAUSE_US {
                summary.key_pauses += 1;
                self.key_interval = None;
            } else {
                let interval = ln_ms(gap);
                summary.key_interval.add(interval);
                if let Some(before) = self.key_interval.replace(interval) {
                    summary.key_interval_pairs += 1;
                    summary.key_interval_lag.add(before, interval);
                    if (before - interval).abs() < EQUAL_LN {
                        summary.key_interval_equal += 1;
                    }
                }
                match (self.key_class, class) {
                    (Some(KeyClass::Space), _) => summary.key_after_space.add(interval),
                    (_, KeyClass::Space) => summary.key_before_space.add(interval),
                    (Some(KeyClass::Letter), KeyClass::Letter) => summary.key_letters.add(interval),
                    _ => {}
                }
            }
        }
        self.key_class = Some(class);
        self.last_key_us = Some(at);
        self.keys_down[class as usize] = Some(at);
    }
}

/// One movement between two standstills, on the grid.
#[derive(Clone, Copy, Debug, Default)]
struct Stroke {
    /// Grid steps in motion, and how many of the latest were not.
    steps: u32,
    still: u32,
    path: f32,
    x: f32,
    y: f32,
    /// Twice the signed area between the path and its chord, so far from the start.
    area: f32,
    /// Furthest from the start so far.
    far: f32,
    latest: [(f32, f32); SMOOTHED],
    /// Statistics of the smoothed velocity.
    samples: u32,
    speed: Spread,
    peak: f32,
    peak_at: u32,
    accel: f32,
    jerk: f32,
    turn: f32,
    turns: u32,
    start: f32,
    recent: [f32; 4],
    last_speed: f32,
    last_accel: Option<f32>,
    last_step: (f32, f32),
    last_turn: Option<f32>,
    /// Velocity peaks: the extreme since the last turn, and whether it was falling.
    extreme: f32,
    falling: bool,
    peaks: u32,
    spectrum: Spectrum,
    /// Path of the stroke just before, if it was measured.
    before: Option<f32>,
    measured: bool,
}

impl Stroke {
    /// One grid step by (dx, dy) px.
    fn step(&mut self, summary: &mut Summary, dx: f32, dy: f32) {
        let length = dx.hypot(dy);
        if length < 0.05 {
            self.still += 1;
            if u64::from(self.still) * GRID_US >= STILL_US {
                self.finish(summary);
                *self = Stroke { before: self.measured.then_some(self.path), ..Stroke::default() };
            }
            return;
        }
        self.still = 0;
        self.area += self.x * dy - self.y * dx;
        self.x += dx;
        self.y += dy;
        self.path += length;
        self.far = self.far.max(self.x.hypot(self.y));
        self.spectrum.add(summary, length / GRID_S);
        self.latest[self.steps as usize % SMOOTHED] = (dx, dy);
        self.steps += 1;
        let octant = ((dy.atan2(dx) / std::f32::consts::TAU + 1.0) * 8.0 + 0.5) as usize % 8;
        summary.grid_heading[octant] = summary.grid_heading[octant].saturating_add(1);
        if self.steps as usize >= SMOOTHED {
            let (sx, sy) = self.latest.iter().fold((0.0, 0.0), |(sx, sy), (dx, dy)| (sx + dx, sy + dy));
            self.sample(summary, sx / SMOOTHED as f32, sy / SMOOTHED as f32);
        }
    }

    /// One smoothed grid step.
    fn sample(&mut self, summary: &mut Summary, dx: f32, dy: f32) {
        let length = dx.hypot(dy).max(0.01);
        let speed = length / GRID_S;
        let ln_speed = speed.ln();
        summary.grid_speed.add_ln(ln_speed);
        summary.grid_ln_speed.add(ln_speed);
        if self.samples > 0 {
            self.measure(summary, dx, dy, length, speed);
        } else {
            self.extreme = speed;
        }
        self.speed.add(speed);
        if self.samples < 4 {
            self.start += speed;
        }
        self.recent[self.samples as usize % 4] = speed;
        if speed > self.peak {
            (self.peak, self.peak_at) = (speed, self.samples);
        }
        self.samples += 1;
        self.last_speed = speed;
        self.last_step = (dx, dy);
    }

    /// Acceleration, jerk and turning against the sample before.
    fn measure(&mut self, summary: &mut Summary, dx: f32, dy: f32, length: f32, speed: f32) {
        let accel = (speed - self.last_speed) / GRID_S;
        let scale = 0.5 * (speed + self.last_speed);
        // Relative to the speed: what zoom, distance and resolution change alike drops out.
        let relative = accel / scale;
        summary.grid_accel.add_ln(relative.abs().max(0.01).ln());
        if relative.abs() * GRID_S < EVEN_SHARE {
            summary.grid_even += 1;
        }
        self.accel += relative.abs();
        if let Some(last) = self.last_accel {
            let jerk = (relative - last).abs() / GRID_S;
            summary.grid_jerk.add_ln((jerk / 50.0).max(0.01).ln());
            summary.grid_accel_lag.add(last * 0.01, relative * 0.01);
            self.jerk += jerk * jerk;
        }
        self.last_accel = Some(relative);
        let (lx, ly) = self.last_step;
        if length >= HEADING_PX_MIN && lx.hypot(ly) >= HEADING_PX_MIN {
            let turn = (lx * dy - ly * dx).atan2(lx * dx + ly * dy);
            summary.grid_turn.add_ln(turn.abs().max(1e-3).ln());
            if let Some(last) = self.last_turn {
                summary.grid_turn_lag.add(last, turn);
            }
            let curvature = turn.abs() / length;
            if curvature > 1e-4 {
                summary.grid_curvature_speed.add(curvature.ln(), speed.ln());
            }
            self.last_turn = Some(turn);
            self.turn += turn.abs();
            self.turns += 1;
        }
        if self.falling {
            if speed < self.extreme {
                self.extreme = speed;
            } else if speed > self.extreme * 1.35 {
                (self.falling, self.extreme) = (false, speed);
            }
        } else if speed > self.extreme {
            self.extreme = speed;
        } else if speed < self.extreme * 0.7 {
            self.peaks += 1;
            (self.falling, self.extreme) = (true, speed);
        }
    }

    fn finish(&mut self, summary: &mut Summary) {
        if self.measured || self.samples < STROKE_SAMPLES_MIN || self.path < STROKE_PX_MIN {
            return;
        }
        self.measured = true;
        let n = self.samples as f32;
        let duration = self.steps as f32 * GRID_S;
        let mean = self.speed.mean(1);
        let chord = self.x.hypot(self.y);
        summary.stroke_ln_duration.add(duration.ln());
        summary.stroke_ln_length.add(self.path.ln());
        summary.stroke_length_duration.add(self.path.ln(), duration.ln());
        summary.stroke_ln_speed.add(mean.ln());
        summary.stroke_detour.add((1.0 - chord / self.path).max(0.001).ln());
        summary.stroke_peak_ratio.add((self.peak / mean).ln());
        summary.stroke_peak_at.add(self.peak_at as f32 / n);
        summary.stroke_peaks.add((self.peaks + u32::from(!self.falling)) as f32);
        summary.stroke_speed_cv.add(self.speed.sd(2) / mean);
        summary.stroke_jerk.add((self.jerk / n).max(1.0).ln());
        if chord > STROKE_PX_MIN {
            summary.stroke_overshoot.add((self.far / chord - 1.0).min(1.0));
            summary.stroke_bow.add((0.5 * self.area / (chord * chord)).clamp(-1.0, 1.0));
        }
        let tail = self.samples.min(4) as f32;
        summary.stroke_start.add((self.start / tail / mean).max(0.01).ln());
        summary.stroke_end.add((self.recent.iter().sum::<f32>() / tail / mean).max(0.01).ln());
        summary.stroke_accel.add((self.accel / n).max(0.01).ln());
        if self.turns > 0 {
            summary.stroke_turn.add((self.turn / self.turns as f32).max(0.001).ln());
        }
        if self.before.is_some_and(|before| before > 4.0 * self.path) {
            summary.stroke_corrections += 1;
        }
    }
}

/// Goertzel's resonators over blocks of `BLOCK` speeds on the grid: how much of their variance lies at
/// two frequencies, at the cost of three multiplications a step.
#[derive(Clone, Copy, Debug, Default)]
struct Spectrum {
    n: u32,
    sum: f32,
    squares: f32,
    tremor: (f32, f32),
    fast: (f32, f32),
}

impl Spectrum {
    fn add(&mut self, summary: &mut Summary, speed: f32) {
        self.n += 1;
        self.sum += speed;
        self.squares += speed * speed;
        for (state, c) in [(&mut self.tremor, TREMOR_BIN), (&mut self.fast, FAST_BIN)] {
            *state = (speed + c * state.0 - state.1, state.0);
        }
        if self.n == BLOCK {
            let n = BLOCK as f32;
            let variance = self.squares / n - (self.sum / n) * (self.sum / n);
            // Relative to the mean speed of the block: a fast stroke weighs no more than a slow one.
            let scale = (self.sum / n).max(1.0).powi(2);
            let power = |(a, b): (f32, f32), c: f32| 2.0 * (a * a + b * b - c * a * b).max(0.0) / (n * n);
            summary.grid_power += variance.max(0.0) / scale;
            summary.grid_tremor += power(self.tremor, TREMOR_BIN) / scale;
            summary.grid_fast += power(self.fast, FAST_BIN) / scale;
            summary.grid_blocks += 1;
            *self = Spectrum::default();
        }
    }
}

fn is_input(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::PointerMove { .. }
            | EventKind::PointerDown { .. }
            | EventKind::PointerUp { .. }
            | EventKind::Wheel { .. }
            | EventKind::KeyDown { .. }
            | EventKind::KeyUp { .. }
    )
}

fn ln_ms(us: u64) -> f32 {
    ((us as f32) / 1000.0).clamp(0.1, 1e6).ln()
}

/// Grid steps a velocity is averaged over: 60 ms. Clocks that jitter by a few milliseconds make a 20 ms
/// speed wrong by a third, a 60 ms speed by a tenth.
const SMOOTHED: usize = 3;
const GRID_S: f32 = GRID_US as f32 / 1e6;
/// Two intervals within 4 % of each other count as equal.
const EQUAL_LN: f32 = 0.04;
/// Beats of common devices and displays, milliseconds, and the share of a beat an interval may be off.
pub const BEATS_MS: [f32; BEATS] = [4.0, 8.0, 16.667];
const BEATS: usize = 3;
const BEAT_SLACK: f32 = 0.06;
/// Further than this between press and release is a drag.
const DRIFT_MAX_PX: f32 = 20.0;
/// Grid steps in a block of the spectrum: 320 ms, so bins lie 3.1 Hz apart.
const BLOCK: u32 = 16;
/// 2 cos(2π k / 16): k = 3 is 9.4 Hz, in the band of a hand's tremor; k = 6 is 18.8 Hz, above it.
const TREMOR_BIN: f32 = 0.765_366_9;
const FAST_BIN: f32 = -std::f32::consts::SQRT_2;
/// Speeds within 3 % of each other on successive grid steps count as even.
const EVEN_SHARE: f32 = 0.03;
/// A wheel at rest for longer than this is read from, not turned.
const READ_US: u64 = 250_000;
/// A pause longer than this lies between two phrases, not two keys.
const KEY_PAUSE_US: u64 = 1_000_000;
/// A pointer that lay still for longer before a press was waiting, not aiming.
const STILLNESS_MAX_US: u64 = 5_000_000;
