//! Every feature once: name, unit, what it means, who may use it, and how it is read off a `Summary`.
//!
//! Model files carry the hash of this table, so a row is never edited silently: models trained on
//! another table are refused. A feature that cannot be measured is NaN, never a made-up number.
//! Must not know: models, sessions.

use crate::stats::entropy;
use crate::summary::Summary;
use sha2::{Digest, Sha256};

/// One feature: a row of `FEATURES`.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    pub name: &'static str,
    /// Unit after undoing `scale`.
    pub unit: &'static str,
    pub doc: &'static str,
    pub channel: Channel,
    pub bound_to: BoundTo,
    pub towards_bot: Sign,
    pub scale: Scale,
    pub of: fn(&Summary) -> f32,
}

/// Which kind of input a feature is about; each channel has its own expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    Pointer,
    Click,
    Wheel,
    Key,
    Across,
}

/// What a feature depends on at least as much as on who is at the mouse. Models that have not learnt
/// the site's own sessions leave the bound ones out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundTo {
    Nothing,
    /// How the stream was recorded: clock, frames, rounding.
    Recorder,
    /// What the page asks of its visitors: distances, haste, variety.
    Page,
}

/// Which way a script departs from a hand, where that is known beforehand. A model of unknown sites may
/// use a feature in this direction only: people unlike those it learnt from, but on the far side of
/// them from bots, are then never mistaken for bots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// No telling; or both ways.
    Either,
    Less,
    More,
}

/// How the stored number relates to the unit shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Plain,
    /// Stored as natural logarithm.
    Log,
}

/// A row of feature values in the order of `FEATURES`.
pub type Row = [f32; FEATURE_COUNT];

/// Reads every feature off a summary.
pub fn row(summary: &Summary) -> Row {
    let mut row = [f32::NAN; FEATURE_COUNT];
    for (value, feature) in row.iter_mut().zip(&FEATURES) {
        let read = (feature.of)(summary);
        *value = if read.is_finite() { read } else { f32::NAN };
    }
    row
}

/// Where a feature stands in the table.
pub fn index(name: &str) -> Option<usize> {
    FEATURES.iter().position(|feature| feature.name == name)
}

/// SHA-256 over names, units and scales, first 16 hex digits: what a model file must match.
pub fn table_hash() -> String {
    let mut hash = Sha256::new();
    hash.update(EXTRACTION_VERSION.to_le_bytes());
    for feature in &FEATURES {
        hash.update(feature.name.as_bytes());
        hash.update([0]);
        hash.update(feature.unit.as_bytes());
        hash.update([0, feature.scale as u8]);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Feature {
    /// The value in the unit people read.
    pub fn shown(&self, value: f32) -> f32 {
        match self.scale {
            Scale::Plain => value,
            Scale::Log => value.exp(),
        }
    }
}

/// Raise when extraction changes without a change of names.
const EXTRACTION_VERSION: u32 = 1;

macro_rules! features {
    ($($name:ident $channel:ident $scale:ident $unit:literal $bound:ident $sign:ident $of:expr, $doc:literal;)*) => {
        pub const FEATURES: [Feature; FEATURE_COUNT] = [$(Feature {
            name: stringify!($name),
            unit: $unit,
            doc: $doc,
            channel: Channel::$channel,
            bound_to: BoundTo::$bound,
            towards_bot: Sign::$sign,
            scale: Scale::$scale,
            of: $of,
        },)*];
        /// Number of features.
        pub const FEATURE_COUNT: usize = [$(stringify!($name)),*].len();
    };
}

features! {
    // Kinematics on the 20 ms grid.
    speed_median Pointer Log "px/s" Page Either |s| s.grid_speed.quantile_ln(0.5, GRID), "Typical pointer speed.";
    speed_high Pointer Log "px/s" Page Either |s| s.grid_speed.quantile_ln(0.9, GRID), "Speed of the fastest tenth of movement.";
    speed_spread Pointer Plain "ln" Nothing Less |s| s.grid_ln_speed.sd(GRID), "How much speed varies; hands speed up and slow down, scripts often do not.";
    speed_high_ratio Pointer Log "×" Nothing Either |s| s.grid_speed.quantile_ln(0.9, GRID) - s.grid_speed.quantile_ln(0.5, GRID), "Fast movement against typical movement.";
    speed_low_ratio Pointer Log "×" Nothing Either |s| s.grid_speed.quantile_ln(0.5, GRID) - s.grid_speed.quantile_ln(0.1, GRID), "Typical movement against slow movement.";
    speed_even_share Pointer Plain "share" Nothing More |s| share(s.grid_even, s.grid_accel.n(), GRID), "Share of movement at constant speed.";
    accel_low Pointer Log "1/s" Nothing Either |s| s.grid_accel.quantile_ln(0.1, GRID), "Smallest changes of speed, relative to speed.";
    accel_median Pointer Log "1/s" Nothing Less |s| s.grid_accel.quantile_ln(0.5, GRID), "Typical change of speed, relative to speed.";
    accel_high Pointer Log "1/s" Nothing Less |s| s.grid_accel.quantile_ln(0.9, GRID), "Strongest changes of speed, relative to speed.";
    jerk_median Pointer Log "50/s²" Nothing Less |s| s.grid_jerk.quantile_ln(0.5, GRID), "Typical unevenness of acceleration.";
    jerk_high Pointer Log "50/s²" Nothing Less |s| s.grid_jerk.quantile_ln(0.9, GRID), "Strongest unevenness of acceleration.";
    turn_median Pointer Log "rad" Nothing Less |s| s.grid_turn.quantile_ln(0.5, GRID), "Typical change of heading in 20 ms.";
    turn_high Pointer Log "rad" Nothing Less |s| s.grid_turn.quantile_ln(0.9, GRID), "Sharpest changes of heading.";
    accel_range Pointer Plain "ln" Nothing Either |s| s.grid_accel.quantile_ln(0.9, GRID) - s.grid_accel.quantile_ln(0.1, GRID), "Strong against small changes of speed.";
    turn_entropy Pointer Plain "bit" Nothing Less |s| s.grid_turn.entropy(GRID), "Variety of changes of heading, on a scale of half octaves.";
    tremor_share Pointer Plain "share" Nothing Either |s| share_of_power(s.grid_tremor, s), "Share of the variance of speed at 9.4 Hz, where hands tremble.";
    fast_share Pointer Plain "share" Nothing Either |s| share_of_power(s.grid_fast, s), "Share of the variance of speed at 18.8 Hz, where hands are still and noise is not.";
    turn_straight_share Pointer Plain "share" Nothing More |s| s.grid_turn.share_below(8, GRID), "Share of movement that keeps its heading within 1°.";
    accel_lag Pointer Plain "correlation" Nothing Either |s| s.grid_accel_lag.correlation(GRID), "Does a change of speed carry on? It does in muscles.";
    turn_lag Pointer Plain "correlation" Nothing Either |s| s.grid_turn_lag.correlation(GRID), "Does a turn carry on? Noise added to a line turns back at once.";
    curvature_speed_slope Pointer Plain "exponent" Nothing Either |s| s.grid_curvature_speed.slope(GRID), "Slowing down in bends (two-thirds power law: about -1/3).";
    curvature_speed_correlation Pointer Plain "correlation" Nothing Either |s| s.grid_curvature_speed.correlation(GRID), "How closely speed follows curvature.";
    heading_entropy Pointer Plain "bit" Page Either |s| entropy(&s.grid_heading, GRID), "Variety of directions.";
    moving_share Pointer Plain "share" Page Either |s| s.grid_ln_speed.n() * 0.02 / active_seconds(s), "Share of active time in which the pointer moves.";

    // Strokes.
    stroke_rate Pointer Plain "1/s" Page Either |s| s.strokes() / active_seconds(s), "Strokes in a second of active input.";
    stroke_duration Pointer Log "s" Page Either |s| s.stroke_ln_duration.mean(STROKES), "Typical duration of a stroke.";
    stroke_duration_spread Pointer Plain "ln" Page Less |s| s.stroke_ln_duration.sd(STROKES), "How much the duration of strokes varies.";
    stroke_length Pointer Log "px" Page Either |s| s.stroke_ln_length.mean(STROKES), "Typical length of a stroke.";
    stroke_length_spread Pointer Plain "ln" Page Either |s| s.stroke_ln_length.sd(STROKES), "How much the length of strokes varies.";
    stroke_speed_spread Pointer Plain "ln" Page Less |s| s.stroke_ln_speed.sd(STROKES), "How much mean speeds vary between strokes.";
    stroke_fitts_slope Pointer Plain "exponent" Nothing Either |s| s.stroke_length_duration.slope(STROKES), "How duration grows with length; 0 is constant duration, 1 constant speed.";
    stroke_fitts_correlation Pointer Plain "correlation" Nothing Either |s| s.stroke_length_duration.correlation(STROKES), "How closely duration follows length.";
    stroke_fitts_residual Pointer Plain "ln" Nothing Less |s| s.stroke_length_duration.residual(STROKES), "Spread of durations that length does not explain.";
    stroke_overshoot Pointer Plain "share" Nothing Either |s| s.stroke_overshoot.mean(STROKES), "How far strokes go past their end before they come back, against their length.";
    stroke_overshoot_spread Pointer Plain "share" Nothing Less |s| s.stroke_overshoot.sd(STROKES), "How much going past the end varies.";
    stroke_detour Pointer Log "share" Nothing Less |s| s.stroke_detour.mean(STROKES), "Way lost against the straight line.";
    stroke_detour_spread Pointer Plain "ln" Page Less |s| s.stroke_detour.sd(STROKES), "How much the way lost against the straight line varies.";
    stroke_peak_ratio Pointer Log "×" Nothing Less |s| s.stroke_peak_ratio.mean(STROKES), "Peak speed against mean speed of a stroke (1 is constant, a reach is near 1.9).";
    stroke_peak_ratio_spread Pointer Plain "ln" Nothing Less |s| s.stroke_peak_ratio.sd(STROKES), "How much peak speed against mean speed varies between strokes.";
    stroke_peak_at Pointer Plain "share" Nothing Either |s| s.stroke_peak_at.mean(STROKES), "When in a stroke speed peaks; hands peak early.";
    stroke_peak_at_spread Pointer Plain "share" Nothing Either |s| s.stroke_peak_at.sd(STROKES), "How much the moment of peak speed varies between strokes.";
    stroke_peaks Pointer Plain "peaks" Nothing Either |s| s.stroke_peaks.mean(STROKES), "Speed peaks a stroke: sub-movements.";
    stroke_peaks_spread Pointer Plain "peaks" Nothing Less |s| s.stroke_peaks.sd(STROKES), "How much the number of speed peaks varies between strokes.";
    stroke_speed_variation Pointer Plain "share" Nothing Less |s| s.stroke_speed_cv.mean(STROKES), "Spread of speed within a stroke, relative to its mean.";
    stroke_speed_variation_spread Pointer Plain "share" Nothing Less |s| s.stroke_speed_cv.sd(STROKES), "How much the spread of speed varies between strokes.";
    stroke_jerk Pointer Log "1/s⁴" Nothing Less |s| s.stroke_jerk.mean(STROKES), "Unevenness of a stroke, relative to its speed.";
    stroke_jerk_spread Pointer Plain "ln" Nothing Either |s| s.stroke_jerk.sd(STROKES), "How much unevenness varies between strokes.";
    stroke_bow Pointer Plain "area" Nothing Either |s| s.stroke_bow.mean(STROKES), "Side to which strokes bend, area over squared chord.";
    stroke_bow_spread Pointer Plain "area" Nothing Less |s| s.stroke_bow.sd(STROKES), "How much strokes bend.";
    stroke_start Pointer Log "×" Nothing Either |s| s.stroke_start.mean(STROKES), "Speed in the first 80 ms against the stroke's mean.";
    stroke_end Pointer Log "×" Nothing More |s| s.stroke_end.mean(STROKES), "Speed in the last 80 ms against the stroke's mean; hands brake.";
    stroke_end_spread Pointer Plain "ln" Nothing Less |s| s.stroke_end.sd(STROKES), "How much the speed at the end of strokes varies.";
    stroke_accel Pointer Log "1/s" Nothing Less |s| s.stroke_accel.mean(STROKES), "Mean change of speed in a stroke, relative to speed.";
    stroke_accel_spread Pointer Plain "ln" Nothing Either |s| s.stroke_accel.sd(STROKES), "How much acceleration varies between strokes.";
    stroke_turn Pointer Log "rad" Nothing Less |s| s.stroke_turn.mean(STROKES), "Mean change of heading in a stroke, a 20 ms step.";
    stroke_turn_spread Pointer Plain "ln" Nothing Either |s| s.stroke_turn.sd(STROKES), "How much turning varies between strokes.";
    stroke_correction_share Pointer Plain "share" Page Either |s| share(s.stroke_corrections, s.strokes() as u32, STROKES), "Share of strokes that correct a much longer one.";

    // Stopping.
    pause_rate Pointer Plain "1/s" Page Either |s| s.pauses as f32 / active_seconds(s), "Pauses of 0.1 to 1 s in a second of active input.";
    pause_length Pointer Log "ms" Page Either |s| s.pause.mean(STROKES), "Typical pause.";
    pause_spread Pointer Plain "ln" Page Either |s| s.pause.sd(STROKES), "How much pauses vary.";

    // How moves were recorded.
    move_interval Pointer Log "ms" Recorder Either |s| s.move_interval.mean(GRID), "Typical time between move events.";
    move_interval_spread Pointer Plain "ln" Recorder Either |s| s.move_interval.sd(GRID), "How much the time between move events varies.";
    move_interval_equal_share Pointer Plain "share" Recorder Either |s| share(s.move_interval_equal, s.move_interval_pairs, GRID), "Share of successive equal intervals.";
    move_interval_lag Pointer Plain "correlation" Recorder Either |s| s.move_interval_lag.correlation(GRID), "Does an interval resemble the one before?";
    move_whole_ms_share Pointer Plain "share" Recorder Either |s| share(s.move_whole_ms, s.moves, GRID), "Share of events stamped at whole milliseconds.";
    move_coalesced Pointer Log "samples" Recorder Either |s| s.move_coalesced.mean(GRID), "Device samples gathered in one event.";
    move_coalesced_spread Pointer Plain "ln" Recorder Either |s| s.move_coalesced.sd(GRID), "How much the number of samples an event varies.";
    move_mismatch_share Pointer Plain "share" Recorder Either |s| share(s.move_mismatch, s.moves, GRID), "Share of events whose reported movement differs from their distance.";
    move_axis_share Pointer Plain "share" Recorder Either |s| share(s.move_axis, s.moves, GRID), "Share of steps along one axis.";
    move_step_equal_share Pointer Plain "share" Recorder Either |s| share(s.move_step_equal, s.moves, GRID), "Share of steps that repeat the one before.";
    move_beat_4ms_share Pointer Plain "share" Recorder Either |s| share(s.move_on_beat[0], s.move_interval.n() as u32, GRID), "Share of intervals at a multiple of 4 ms.";
    move_beat_8ms_share Pointer Plain "share" Recorder Either |s| share(s.move_on_beat[1], s.move_interval.n() as u32, GRID), "Share of intervals at a multiple of 8 ms.";
    move_beat_frame_share Pointer Plain "share" Recorder Either |s| share(s.move_on_beat[2], s.move_interval.n() as u32, GRID), "Share of intervals at a multiple of 16.67 ms, a frame at 60 Hz.";
    move_jump_share Pointer Plain "share" Nothing More |s| share(s.move_jumps, s.moves, 4), "Share of moves that jump from a standstill.";
    untrusted_share Across Plain "share" Recorder Either |s| share(s.untrusted, s.events, 4), "Share of events made by the page's own scripts.";

    // Buttons.
    click_dwell Click Log "ms" Nothing Less |s| s.click_dwell.mean(CLICKS), "Typical time a button is held.";
    click_dwell_spread Click Plain "ln" Nothing Less |s| s.click_dwell.sd(CLICKS), "How much the time a button is held varies.";
    click_still Click Log "ms" Nothing Either |s| s.click_still.mean(CLICKS), "Stillness before a press.";
    click_still_spread Click Plain "ln" Page Less |s| s.click_still.sd(CLICKS), "How much the stillness before a press varies.";
    click_interval_spread Click Plain "ln" Page Either |s| s.click_interval.sd(CLICKS), "How much the time between clicks varies.";
    click_drift Click Plain "ln" Nothing Less |s| s.click_drift.mean(CLICKS), "Movement between press and release, ln(1 + px); hands push the mouse a little.";
    click_unpressed_share Click Plain "share" Page Either |s| share(s.click_unpressed, s.click_events, CLICKS), "Share of clicks without a press and release before them; keys and scripts make such.";
    click_jump_share Click Plain "share" Nothing More |s| share(s.click_jumps, s.clicks, CLICKS), "Share of clicks reached by a jump instead of a movement.";
    click_elsewhere_share Click Plain "share" Nothing More |s| share(s.click_elsewhere, s.clicks, CLICKS), "Share of clicks where the pointer was not.";

    // Wheel and scroll.
    wheel_interval Wheel Log "ms" Nothing Either |s| s.wheel_interval.mean(WHEELS), "Typical time between wheel events of a burst.";
    wheel_interval_spread Wheel Plain "ln" Nothing Less |s| s.wheel_interval.sd(WHEELS), "How much the time between wheel events varies.";
    wheel_interval_equal_share Wheel Plain "share" Nothing More |s| share(s.wheel_interval_equal, s.wheel_interval_pairs, WHEELS), "Share of successive equal intervals.";
    wheel_burst Wheel Log "events" Page Either |s| s.wheel_burst.mean(2), "Wheel events in a burst.";
    wheel_burst_spread Wheel Plain "ln" Page Either |s| s.wheel_burst.sd(3), "How much the length of wheel bursts varies.";
    scroll_per_wheel Wheel Plain "×" Recorder Either |s| s.scrolls as f32 / if s.wheels >= WHEELS { s.wheels as f32 } else { f32::NAN }, "Scroll events a wheel event.";

    // Keys, by class.
    key_interval Key Log "ms" Nothing Either |s| s.key_interval.mean(KEYS), "Typical time from key to key.";
    key_interval_spread Key Plain "ln" Nothing Less |s| s.key_interval.sd(KEYS), "Rhythm: how much that varies.";
    key_interval_lag Key Plain "correlation" Nothing Either |s| s.key_interval_lag.correlation(KEYS), "Does an interval resemble the one before?";
    key_interval_equal_share Key Plain "share" Nothing More |s| share(s.key_interval_equal, s.key_interval_pairs, KEYS), "Share of successive equal intervals.";
    key_after_space Key Plain "ln" Nothing Either |s| s.key_after_space.mean(3) - s.key_interval.mean(KEYS), "Slowing at the start of a word.";
    key_before_space Key Plain "ln" Nothing Either |s| s.key_before_space.mean(3) - s.key_interval.mean(KEYS), "Slowing at the end of a word.";
    key_letters Key Log "ms" Nothing Either |s| s.key_letters.mean(KEYS), "Typical time from letter to letter.";
    key_letters_spread Key Plain "ln" Nothing Less |s| s.key_letters.sd(KEYS), "How much the time from letter to letter varies.";
    key_dwell Key Log "ms" Nothing Less |s| s.key_dwell.mean(KEYS), "Typical time a key is held.";
    key_dwell_spread Key Plain "ln" Nothing Less |s| s.key_dwell.sd(KEYS), "How much the time keys are held varies.";
    key_rollover_share Key Plain "share" Nothing Either |s| share(s.key_rollover, s.key_downs, KEYS), "Share of keys pressed before the last one was let go.";
    key_delete_share Key Plain "share" Page Either |s| share(s.key_deletes, s.key_downs, KEYS), "Share of corrections.";
    key_pause_share Key Plain "share" Page Either |s| share(s.key_pauses, s.key_downs, KEYS), "Share of keys after a pause of more than a second.";

    // Across channels.
    reading_pause Across Log "ms" Page Either |s| s.reading.mean(3), "Pause after scrolling, as if to read.";
    reading_pause_spread Across Plain "ln" Page Either |s| s.reading.sd(3), "How much reading pauses vary.";
    hand_switch Across Log "ms" Page Either |s| s.hand_switch.mean(2), "Time to change between mouse and keys.";
}

/// Least grid steps, strokes, clicks, wheel events and keys for their statistics to mean anything.
const GRID: u32 = 12;
const STROKES: u32 = 3;
/// Blocks of 320 ms.
const BLOCKS: u32 = 3;
const CLICKS: u32 = 3;
const WHEELS: u32 = 5;
const KEYS: u32 = 8;

fn share(part: u32, whole: u32, min: u32) -> f32 {
    if whole < min { f32::NAN } else { part as f32 / whole as f32 }
}

/// A share of the power of speed over whole blocks.
fn share_of_power(part: f32, summary: &Summary) -> f32 {
    if summary.grid_blocks < BLOCKS || summary.grid_power <= 0.0 {
        f32::NAN
    } else {
        part / summary.grid_power
    }
}

fn active_seconds(summary: &Summary) -> f32 {
    if summary.active_us < 500_000 { f32::NAN } else { summary.active_us as f32 / 1e6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventKind, PointerType};
    use crate::summary::Tracker;

    #[test]
    fn names_are_unique_and_the_table_fits_the_evaluator() {
        for (i, feature) in FEATURES.iter().enumerate() {
            assert_eq!(index(feature.name), Some(i), "{} stands twice", feature.name);
            assert!(!feature.doc.is_empty() && !feature.unit.is_empty());
        }
        // The evaluator addresses each feature twice by one byte: missing as low, missing as high.
        const { assert!(FEATURE_COUNT <= 128) };
    }

    #[test]
    fn an_empty_summary_has_no_feature_at_all() {
        assert!(row(&Summary::default()).iter().all(|value| value.is_nan()));
    }

    /// The features of a movement given by places at 100 Hz, between a press and a release 3 px apart.
    fn moved(places: impl Iterator<Item = (f32, f32)>) -> Row {
        let (mut summary, mut tracker) = (Summary::default(), Tracker::default());
        let mut at_us = 1_000_000;
        let mut observe = |after_us: u64, kind| {
            at_us += after_us;
            tracker.observe(&mut summary, &Event { at_us, trusted: true, kind });
        };
        let pointer = PointerType::Mouse;
        for (x, y) in places {
            let (movement_x, movement_y, coalesced) = (0, 0, 1);
            observe(10_000, EventKind::PointerMove { pointer, x, y, movement_x, movement_y, coalesced });
        }
        for _ in 0..4 {
            observe(300_000, EventKind::PointerDown { pointer, x: 10.0, y: 10.0, button: 0 });
            observe(80_000, EventKind::PointerUp { pointer, x: 13.0, y: 10.0, button: 0 });
        }
        row(&summary)
    }

    fn value(row: &Row, name: &str) -> f32 {
        row[index(name).unwrap()]
    }

    #[test]
    fn a_tremble_shows_at_its_frequency_and_smooth_movement_at_none() {
        // Speed swings about its mean once in 106 ms, or once in 1.3 s.
        let swinging = |hertz: f32| {
            let speed =
                move |i: i32| 600.0 + 250.0 * (std::f32::consts::TAU * hertz * i as f32 / 100.0).sin();
            moved((0..200).scan(0.0, move |x, i| {
                *x += speed(i) / 100.0;
                Some((*x, 100.0))
            }))
        };
        let (trembling, smooth) = (swinging(9.4), swinging(0.8));
        assert!(value(&trembling, "tremor_share") > 0.6, "{}", value(&trembling, "tremor_share"));
        assert!(value(&smooth, "tremor_share") < 0.2, "{}", value(&smooth, "tremor_share"));
        assert!(value(&trembling, "fast_share") < 0.2 && value(&smooth, "fast_share") < 0.2);
    }

    #[test]
    fn going_past_the_end_and_drifting_in_a_click_are_measured() {
        let reach = |past: f32| {
            // Four strokes of 300 px, each going `past` px beyond and back, a rest of 200 ms between.
            let stroke = move |s: i32| {
                let way = (0..30).map(move |i| i as f32 / 29.0 * (300.0 + past));
                let back = (1..=10).map(move |i| 300.0 + past - past * i as f32 / 10.0);
                let sign = if s % 2 == 0 { 1.0 } else { -1.0 };
                let base = if s % 2 == 0 { 0.0 } else { 300.0 };
                way.chain(back).chain(std::iter::repeat_n(300.0, 20)).map(move |x| (base + sign * x, 50.0))
            };
            moved((0..4).flat_map(stroke))
        };
        let (past, short) = (reach(60.0), reach(0.0));
        assert!(value(&past, "stroke_overshoot") > 0.15, "{}", value(&past, "stroke_overshoot"));
        assert!(value(&short, "stroke_overshoot") < 0.02, "{}", value(&short, "stroke_overshoot"));
        assert!((value(&short, "click_drift") - 4.0f32.ln()).abs() < 1e-5);
    }
}
