//! What is usual of one person at one mouse: a few windows of each of their latest sessions.
//!
//! Only to explain: beside people's usual range a reason can say this person's own. No score sees it. Kept
//! are the pointer's, clicks' and wheel's features of windows of ten seconds, the same windows that people's
//! range comes from; what the recorder decides and how anybody types is left out. Must not know: whose it is.

use crate::detector::{PersonRange, position_of};
use crate::features::{BoundTo, Channel, FEATURE_COUNT, FEATURES, Feature, Row};
use crate::profile::{REPLACED_SHARE, REPLACED_SHARE_FULL};

/// Most windows kept, each of ten seconds of active input; past it the oldest goes.
pub const WINDOWS_MAX: usize = 24;
/// Most windows taken of one session: one in eight of all that are kept.
pub const WINDOWS_SESSION_MAX: usize = WINDOWS_MAX / REPLACED_SHARE_FULL;
/// Fewest sessions and windows that a range rests on, so that no session is more than a quarter of it.
pub const SESSIONS_MIN: usize = REPLACED_SHARE;
pub const WINDOWS_MIN: usize = REPLACED_SHARE * WINDOWS_SESSION_MAX;

/// What is kept of a person's windows, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Habit(Vec<Kept>);

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    /// The person's sessions counted, of which the lower bits are enough to tell neighbours apart.
    session: u16,
    figures: Figures,
}

/// The kept features of one window, in steps of a thousandth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures([i16; FIGURES]);

impl Figures {
    pub fn of(row: &Row) -> Figures {
        Figures(KEPT.map(|feature| {
            let value = row[usize::from(feature)] * STEPS;
            // A missing value stays missing; a cast would make it nought.
            if value.is_nan() { MISSING } else { value.round().max(f32::from(MISSING + 1)) as i16 }
        }))
    }
}

impl Habit {
    /// Takes a few windows of a session, spread over it.
    pub(crate) fn take(&mut self, session: u32, windows: &[Figures]) {
        let taken = windows.len().min(WINDOWS_SESSION_MAX);
        let spread = (0..taken).map(|i| windows[i * windows.len() / taken]);
        self.0.extend(spread.map(|figures| Kept { session: session as u16, figures }));
        self.0.drain(..self.0.len().saturating_sub(WINDOWS_MAX));
    }

    /// Where nine in ten of a person's windows lie, by all their mice of a class; `None` while too few tell.
    pub(crate) fn range<'a>(habits: impl Iterator<Item = &'a Habit>, feature: usize) -> Option<PersonRange> {
        let at = KEPT.iter().position(|kept| usize::from(*kept) == feature)?;
        let windows = habits.flat_map(|habit| &habit.0).map(|kept| (kept.session, kept.figures.0[at]));
        let (mut sessions, mut values): (Vec<u16>, Vec<i16>) =
            windows.filter(|(_, value)| *value != MISSING).unzip();
        sessions.sort_unstable();
        sessions.dedup();
        if sessions.len() < SESSIONS_MIN || values.len() < WINDOWS_MIN {
            return None;
        }
        values.sort_unstable();
        let quantile = |share: f32| {
            let place = share * (values.len() - 1) as f32;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            let value = f32::from(below) + place.fract() * (f32::from(above) - f32::from(below));
            FEATURES[feature].shown(value / STEPS)
        };
        Some(PersonRange { low: quantile(0.05), high: quantile(0.95), sessions: sessions.len() as u32 })
    }

    /// Appends each window's session and figures (`u16`, `i16`, little endian).
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        for Kept { session, figures } in &self.0 {
            bytes.extend(session.to_le_bytes());
            bytes.extend(figures.0.iter().flat_map(|figure| figure.to_le_bytes()));
        }
    }

    /// `None` for anything but whole windows, at most as many as are kept.
    pub(crate) fn read(bytes: &[u8]) -> Option<Habit> {
        let (windows, rest) = bytes.as_chunks::<WINDOW_BYTES>();
        let window = |bytes: &[u8; WINDOW_BYTES]| {
            let mut numbers = bytes.as_chunks::<2>().0.iter();
            let session = u16::from_le_bytes(*numbers.next()?);
            let mut figures = [MISSING; FIGURES];
            figures.iter_mut().zip(numbers).for_each(|(figure, bytes)| *figure = i16::from_le_bytes(*bytes));
            Some(Kept { session, figures: Figures(figures) })
        };
        let sound = rest.is_empty() && windows.len() <= WINDOWS_MAX;
        sound.then(|| windows.iter().map(window).collect::<Option<_>>()).flatten().map(Habit)
    }
}

const WINDOW_BYTES: usize = 2 * (1 + FIGURES);
/// Finer than anybody reads; what is stored are logarithms, shares and the like, far within ±32.
const STEPS: f32 = 1000.0;
const MISSING: i16 = i16::MIN;
const FIGURES: usize = {
    let (mut kept, mut i) = (0, 0);
    while i < FEATURE_COUNT {
        kept += is_kept(i) as usize;
        i += 1;
    }
    kept
};
/// Where the kept features stand in the table.
const KEPT: [u8; FIGURES] = {
    let (mut kept, mut at, mut i) = ([0; FIGURES], 0, 0);
    while i < FEATURE_COUNT {
        if is_kept(i) {
            kept[at] = i as u8;
            at += 1;
        }
        i += 1;
    }
    kept
};

/// Clicks without a press are left out too: some make them who cannot use a mouse, and that is nobody's to keep.
const UNPRESSED: Option<usize> = position_of("click_unpressed_share");
const _: () = assert!(UNPRESSED.is_some());

const fn is_kept(at: usize) -> bool {
    let Feature { channel, bound_to, .. } = &FEATURES[at];
    matches!(channel, Channel::Pointer | Channel::Click | Channel::Wheel)
        && !matches!(bound_to, BoundTo::Recorder)
        && !matches!(UNPRESSED, Some(unpressed) if unpressed == at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features;

    fn window(feature: usize, value: f32) -> Figures {
        let mut row = [f32::NAN; FEATURE_COUNT];
        row[feature] = value;
        Figures::of(&row)
    }

    fn range(habit: &Habit, feature: usize) -> Option<PersonRange> {
        Habit::range([habit].into_iter(), feature)
    }

    #[test]
    fn a_range_is_where_nine_in_ten_of_a_few_sessions_windows_lie() {
        let [share, ratio] =
            ["speed_even_share", "speed_high_ratio"].map(|name| features::index(name).unwrap());
        let mut habit = Habit::default();
        for session in 0..SESSIONS_MIN as u32 {
            assert_eq!(range(&habit, share), None, "after {session} sessions");
            habit.take(session, &[0.1, 0.2, 0.3].map(|value| window(share, value)));
        }
        let known = range(&habit, share).unwrap();
        assert_eq!(known, PersonRange { low: 0.1, high: 0.3, sessions: SESSIONS_MIN as u32 });
        assert_eq!(range(&habit, ratio), None, "never measured");
        (4..12).for_each(|session| habit.take(session, &[1.0, 1.0, 1.5].map(|value| window(ratio, value))));
        let fast = range(&habit, ratio).unwrap();
        assert!(
            (fast.high - 1.5f32.exp()).abs() < 0.01 && fast.sessions == 8,
            "shown as it is read: {fast:?}"
        );
        assert_eq!(range(&habit, share), None, "what is older than the latest eight sessions is gone");
    }

    #[test]
    fn one_long_session_is_no_range_and_one_odd_window_does_not_stretch_it() {
        let share = features::index("speed_even_share").unwrap();
        let mut habit = Habit::default();
        (0..40).for_each(|_| habit.take(7, &[window(share, 0.9); 60]));
        assert_eq!((range(&habit, share), habit.0.len()), (None, WINDOWS_MAX));
        for session in 0..8 {
            let odd = if session == 3 { 30.0 } else { 0.2 };
            habit.take(session, &[window(share, 0.1), window(share, odd), window(share, 0.2)]);
        }
        assert_eq!(range(&habit, share), Some(PersonRange { low: 0.1, high: 0.2, sessions: 8 }));
    }

    #[test]
    fn what_is_missing_or_not_kept_is_no_number() {
        let figures = Figures::of(&[f32::NAN; FEATURE_COUNT]);
        assert!(figures.0.iter().all(|figure| *figure == MISSING));
        let wild = [f32::INFINITY, f32::NEG_INFINITY, -1e9];
        for value in wild {
            assert!(
                Figures::of(&[value; FEATURE_COUNT]).0.iter().all(|figure| *figure != MISSING),
                "{value}"
            );
        }
        for left_out in ["key_interval", "move_interval", "hand_switch"] {
            let mut habit = Habit::default();
            let row = [0.5; FEATURE_COUNT];
            (0..8).for_each(|session| habit.take(session, &[Figures::of(&row); 3]));
            assert_eq!(range(&habit, features::index(left_out).unwrap()), None, "{left_out}");
            assert!(range(&habit, features::index("speed_spread").unwrap()).is_some());
        }
    }

    #[test]
    fn bytes_round_trip_and_anything_else_is_refused() {
        let mut habit = Habit::default();
        (65_533..65_540).for_each(|session| habit.take(session, &[window(2, session as f32 / 1e4); 2]));
        let mut bytes = Vec::new();
        habit.write(&mut bytes);
        assert_eq!(Habit::read(&bytes), Some(habit));
        assert_eq!(Habit::read(&bytes[1..]), None);
        assert_eq!(Habit::read(&vec![0; (WINDOWS_MAX + 1) * WINDOW_BYTES]), None);
        assert_eq!(Habit::read(&[]), Some(Habit::default()));
    }
}
