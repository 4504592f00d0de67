//! Whether the people a model learnt its site from still come: what it says of today's sessions, held
//! against what it said of its teachers.
//!
//! Counts only: of each session the first windows, by tenth of the score or as unknown, forgotten by
//! windows and not by the clock. Moves no score. Must not know: sessions' identities, time, what follows.

use crate::artifact::Artifact;
use crate::population::{Kind, STRATA_MAX};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Bins of a stratum's score: the tenths of those who taught it.
pub const BINS: usize = 10;
/// Most windows one session adds, its first: nobody is the site. Enough for three and a half minutes of
/// active input.
pub const SESSION_WINDOWS_MAX: usize = 20;
/// Windows after which what was counted weighs a third (1/e).
pub const MEMORY_WINDOWS: f32 = 5_000.0;
/// Less than this says nothing: windows, and sessions, those with few windows counted as the less.
pub const WINDOWS_MIN: f32 = 500.0;
pub const SESSIONS_MIN: f32 = 30.0;

/// What became of a session's first windows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    seen: [u8; SESSION_WINDOWS_MAX],
    len: u8,
}

impl Tally {
    /// Counts a window with enough pointer movement: its stratum and tenth, or `None` if nobody taught it.
    pub fn add(&mut self, place: Option<(usize, usize)>) {
        if let Some(slot) = self.seen.get_mut(usize::from(self.len)) {
            let known = place.filter(|(stratum, _)| *stratum < STRATA_MAX);
            *slot = known.map_or(UNKNOWN, |(stratum, bin)| (stratum * BINS + bin.min(BINS - 1)) as u8);
            self.len += 1;
        }
    }

    fn places(&self) -> &[u8] {
        self.seen.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// Windows counted, and from how many people or sessions they effectively come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bins {
    pub windows: [f32; BINS],
    /// Sum of the squares of what each gave: (Σn)² / Σn² is how many gave alike.
    pub squares: f32,
}

/// The same by stratum, and of what no stratum knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// In the order of the population's strata.
    pub strata: Vec<Bins>,
    pub unknown: f32,
    /// As in `Bins`, of all windows, known or not.
    pub squares: f32,
}

/// What a model keeps of those who taught it, each judged by models that had not seen them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Learnt {
    pub counts: Counts,
    /// By stratum: how far halves of the teachers lie apart by chance, as an index times the number of people.
    pub chance: Vec<f32>,
}

impl Learnt {
    /// Of each person, the sessions.
    pub fn new(people: &[Vec<Tally>], strata: usize, seed: u64) -> Learnt {
        let count = |people: &mut dyn Iterator<Item = &Vec<Tally>>| {
            let mut counts = Counts::new(strata);
            people.for_each(|given| counts.add(given));
            counts
        };
        let counts = count(&mut people.iter());
        let mut chance = vec![0.0f32; counts.strata.len()];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut drawn: Vec<&Vec<Tally>> = people.iter().collect();
        for _ in 0..HALVINGS {
            drawn.shuffle(&mut rng);
            let (one, other) = drawn.split_at(drawn.len() / 2);
            let (one, other) = (count(&mut one.iter().copied()), count(&mut other.iter().copied()));
            for ((chance, one), other) in chance.iter_mut().zip(&one.strata).zip(&other.strata) {
                *chance = chance.max(one.psi(other) / noise(one, other));
            }
        }
        Learnt { counts, chance }
    }

    /// For people: what drift will be told from.
    pub fn summary(&self) -> String {
        format!(
            "held against {:.0} windows of {:.0} people, {:.1} % of them of kinds not learnt",
            self.counts.total(),
            self.counts.effective(),
            100.0 * self.counts.unknown_share()
        )
    }

    /// Whether the numbers can have come from counting.
    pub fn is_sound(&self, strata: usize) -> bool {
        self.counts.is_sound(strata)
            && self.chance.len() == strata
            && self.chance.iter().all(|chance| chance.is_finite() && *chance >= 0.0)
    }
}

/// How much chance alone sets two counts apart: the reciprocals of their numbers of people.
fn noise(one: &Bins, other: &Bins) -> f32 {
    1.0 / one.effective().max(1.0) + 1.0 / other.effective().max(1.0)
}

impl Bins {
    fn total(&self) -> f32 {
        self.windows.iter().sum()
    }

    fn effective(&self) -> f32 {
        effective(self.total(), self.squares)
    }

    /// The tenth that a window lies in on average.
    fn mean(&self) -> f32 {
        let sum: f32 = self.windows.iter().enumerate().map(|(tenth, windows)| tenth as f32 * windows).sum();
        sum / self.total().max(1.0)
    }

    /// Shares of the bins; half a person more in each, so that an empty one is no infinite surprise.
    fn shares(&self) -> [f32; BINS] {
        let (n, whole) = (self.effective(), self.total().max(1.0));
        self.windows.map(|windows| (windows / whole * n + 0.5) / (n + 0.5 * BINS as f32))
    }

    /// Population stability index between the two: 0 for the same shares.
    pub fn psi(&self, learnt: &Bins) -> f32 {
        let (now, then) = (self.shares(), learnt.shares());
        now.iter().zip(&then).map(|(now, then)| (now - then) * (now / then).ln()).sum()
    }
}

impl Counts {
    pub fn new(strata: usize) -> Counts {
        Counts { strata: vec![Bins::default(); strata.min(STRATA_MAX)], unknown: 0.0, squares: 0.0 }
    }

    /// Adds what one person, or one session, gave.
    pub fn add<'a>(&mut self, given: impl IntoIterator<Item = &'a Tally>) {
        let mut windows = [0.0f32; STRATA_MAX];
        let mut unknown = 0.0;
        for place in given.into_iter().flat_map(Tally::places) {
            let (stratum, bin) = (usize::from(*place) / BINS, usize::from(*place) % BINS);
            match self.strata.get_mut(stratum) {
                Some(bins) => {
                    bins.windows[bin] += 1.0;
                    windows[stratum] += 1.0;
                }
                None => unknown += 1.0,
            }
        }
        for (bins, windows) in self.strata.iter_mut().zip(windows) {
            bins.squares += windows * windows;
        }
        self.unknown += unknown;
        self.squares += (windows.iter().sum::<f32>() + unknown).powi(2);
    }

    fn total(&self) -> f32 {
        self.unknown + self.strata.iter().map(Bins::total).sum::<f32>()
    }

    fn effective(&self) -> f32 {
        effective(self.total(), self.squares)
    }

    fn unknown_share(&self) -> f32 {
        self.unknown / self.total().max(1.0)
    }

    fn fade(&mut self, keep: f32) {
        for bins in &mut self.strata {
            bins.windows.iter_mut().for_each(|windows| *windows *= keep);
            bins.squares *= keep * keep;
        }
        self.unknown *= keep;
        self.squares *= keep * keep;
    }

    fn is_sound(&self, strata: usize) -> bool {
        let numbers = self.strata.iter().flat_map(|bins| bins.windows.iter().chain([&bins.squares]));
        self.strata.len() == strata
            && numbers.chain([&self.unknown, &self.squares]).all(|n| n.is_finite() && *n >= 0.0)
    }
}

/// Holds what comes against what taught a model. One for all shards.
#[derive(Debug)]
pub struct Watch {
    learnt: Learnt,
    kinds: Vec<Kind>,
    live: Counts,
    /// Windows of sessions that did not count, as bots' do not, and of all sessions.
    left_out: f32,
    all: f32,
    drifting: bool,
}

/// How far the people of now have moved from those who taught the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Drift {
    pub state: DriftState,
    /// Windows counted, the older the less, and from how many sessions they effectively come.
    pub windows: f32,
    pub sessions: f32,
    pub strata: Vec<StratumDrift>,
    /// Share of the windows of strata that nobody taught: now, while learning, and from where it is much.
    pub unknown_share: f32,
    pub unknown_share_learnt: f32,
    pub unknown_share_limit: f32,
    /// Share of the windows that came from sessions which did not count: called bots, driven by a program,
    /// played back, or refused.
    pub left_out_share: f32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DriftState {
    /// Too little seen, a model that has learnt no site, or one taught by too few people to tell.
    #[default]
    Unknown,
    Steady,
    Drifting,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StratumDrift {
    pub input: &'static str,
    /// Population stability index; `None` until enough was seen, or where it could not be told from chance.
    pub psi: Option<f32>,
    /// From where it is much.
    pub limit: f32,
    /// It is much, and towards bots. The other way is no danger to anybody, and usual: people who taught a
    /// model lie nearer to it than those it was measured on.
    pub moved: bool,
    pub windows: f32,
    pub sessions: f32,
}

impl Watch {
    /// `None` for a model that has learnt no site, or kept no counts.
    pub fn new(model: &Artifact) -> Option<Watch> {
        let kinds: Vec<Kind> = model.population.strata.iter().map(|stratum| stratum.card.kind).collect();
        let learnt =
            model.card.drift.clone().filter(|learnt| !kinds.is_empty() && learnt.is_sound(kinds.len()))?;
        let live = Counts::new(kinds.len());
        Some(Watch { learnt, kinds, live, left_out: 0.0, all: 0.0, drifting: false })
    }

    /// Adds a session that is over; one that did not end `well` is no sign of what people are like.
    pub fn close(&mut self, tally: &Tally, well: bool) {
        let windows = tally.places().len() as f32;
        let keep = (-windows / MEMORY_WINDOWS).exp();
        self.left_out *= keep;
        self.all = self.all * keep + windows;
        if !well {
            // Bots, however many, wash out nobody.
            self.left_out += windows;
            return;
        }
        self.live.fade(keep);
        self.live.add([tally]);
        self.drifting = self.drift().state == DriftState::Drifting;
    }

    pub fn drift(&self) -> Drift {
        let (learnt, live) = (&self.learnt.counts, &self.live);
        // What has drifted has come back only when it is well below.
        let slack = if self.drifting { COME_BACK } else { 1.0 };
        let pairs = self.kinds.iter().zip(&self.learnt.chance).zip(live.strata.iter().zip(&learnt.strata));
        let strata: Vec<StratumDrift> = pairs
            .map(|((kind, chance), (now, then))| {
                let limit = PSI_MUCH.max(CHANCE_MARGIN * chance * noise(now, then));
                let enough = is_enough(now.total(), now.effective()) && then.effective() >= TEACHERS_MIN;
                let psi = enough.then(|| now.psi(then));
                let much = psi.is_some_and(|psi| psi > slack * limit);
                StratumDrift {
                    input: kind.name(),
                    psi,
                    limit,
                    moved: much && now.mean() > then.mean(),
                    windows: now.total(),
                    sessions: now.effective(),
                }
            })
            .collect();
        let (now, then) = (live.unknown_share(), learnt.unknown_share());
        let both = (live.unknown + learnt.unknown) / (live.total() + learnt.total()).max(1.0);
        let chance =
            both * (1.0 - both) * (1.0 / live.effective().max(1.0) + 1.0 / learnt.effective().max(1.0));
        let more = UNKNOWN_MUCH.max(CHANCE_SHARE * chance.sqrt());
        let state = if !is_enough(live.total(), live.effective()) {
            DriftState::Unknown
        } else if now > then + slack * more || strata.iter().any(|stratum| stratum.moved) {
            DriftState::Drifting
        } else if strata.iter().all(|stratum| stratum.psi.is_none()) {
            DriftState::Unknown
        } else {
            DriftState::Steady
        };
        Drift {
            state,
            windows: live.total(),
            sessions: live.effective(),
            strata,
            unknown_share: now,
            unknown_share_learnt: then,
            unknown_share_limit: (then + more).min(1.0),
            left_out_share: self.left_out / self.all.max(1.0),
        }
    }
}

fn is_enough(windows: f32, sessions: f32) -> bool {
    windows >= WINDOWS_MIN && sessions >= SESSIONS_MIN
}

fn effective(total: f32, squares: f32) -> f32 {
    if squares > 0.0 { total * total / squares } else { 0.0 }
}

const UNKNOWN: u8 = u8::MAX;
const _: () = assert!(STRATA_MAX * BINS < UNKNOWN as usize);
/// Customarily, above this a population has moved much.
const PSI_MUCH: f32 = 0.25;
/// Above what halves of the teachers ever showed: those who come are fewer people than sessions.
const CHANCE_MARGIN: f32 = 1.5;
const HALVINGS: usize = 200;
/// Of fewer people no half says how far others lie.
const TEACHERS_MIN: f32 = 10.0;
/// So much more of what nobody taught is much, and so many standard errors.
const UNKNOWN_MUCH: f32 = 0.1;
const CHANCE_SHARE: f32 = 3.3;
/// Of the limit.
const COME_BACK: f32 = 0.8;

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    const MOUSE: Kind = Kind { touch: false, coarse: false };

    /// A person's session: their tenths lie around one of their own, moved by so much.
    fn session(rng: &mut ChaCha8Rng, windows: usize, moved: f32) -> Tally {
        let own = rng.random_range(0.0..10.0f32) + moved;
        let mut tally = Tally::default();
        for _ in 0..windows {
            let tenth = (own + rng.random_range(-3.0..3.0f32)).clamp(0.0, 9.9);
            tally.add(Some((0, tenth as usize)));
        }
        tally
    }

    fn watch(rng: &mut ChaCha8Rng, people: usize) -> Watch {
        let people: Vec<Vec<Tally>> = (0..people).map(|_| vec![session(rng, 15, 0.0)]).collect();
        let learnt = Learnt::new(&people, 1, 1);
        Watch { live: Counts::new(1), learnt, kinds: vec![MOUSE], left_out: 0.0, all: 0.0, drifting: false }
    }

    fn come(watch: &mut Watch, rng: &mut ChaCha8Rng, sessions: usize, moved: f32) -> DriftState {
        (0..sessions).for_each(|_| watch.close(&session(rng, 15, moved), true));
        watch.drift().state
    }

    #[test]
    fn people_like_the_teachers_stay_steady_and_moved_ones_show_until_they_are_back() {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let mut watch = watch(rng, 150);
        assert_eq!(come(&mut watch, rng, 400, 0.0), DriftState::Steady, "{:?}", watch.drift());
        assert_eq!(come(&mut watch, rng, 400, 4.0), DriftState::Drifting, "{:?}", watch.drift());
        assert_eq!(come(&mut watch, rng, 1_000, 0.0), DriftState::Steady, "{:?}", watch.drift());
        assert!(watch.drift().windows <= MEMORY_WINDOWS + SESSION_WINDOWS_MAX as f32);
    }

    #[test]
    fn other_people_of_the_same_site_are_no_drift_however_they_are_drawn() {
        for seed in 0..200 {
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            let mut watch = watch(rng, 40);
            let state = come(&mut watch, rng, 40, 0.0);
            assert_eq!(state, DriftState::Steady, "seed {seed}: {:?}", watch.drift());
        }
    }

    #[test]
    fn too_little_says_nothing_nor_do_too_few_teachers() {
        let rng = &mut ChaCha8Rng::seed_from_u64(2);
        let mut few = watch(rng, 100);
        assert_eq!(come(&mut few, rng, 29, 5.0), DriftState::Unknown);
        assert_eq!(come(&mut few, rng, 11, 5.0), DriftState::Drifting);
        let mut taught_by_few = watch(rng, 8);
        assert_eq!(come(&mut taught_by_few, rng, 400, 5.0), DriftState::Unknown);
        assert_eq!(taught_by_few.drift().strata[0].psi, None);
    }

    #[test]
    fn people_nearer_to_the_model_than_its_teachers_are_no_drift() {
        let rng = &mut ChaCha8Rng::seed_from_u64(5);
        let mut watch = watch(rng, 150);
        assert_eq!(come(&mut watch, rng, 400, -4.0), DriftState::Steady);
        let stratum = &watch.drift().strata[0];
        assert!(stratum.psi.is_some_and(|psi| psi > stratum.limit) && !stratum.moved, "{stratum:?}");
    }

    #[test]
    fn one_long_session_counts_as_one_and_a_wave_of_bots_as_none() {
        let rng = &mut ChaCha8Rng::seed_from_u64(3);
        let mut watch = watch(rng, 100);
        come(&mut watch, rng, 60, 0.0);
        let before = watch.drift();
        watch.close(&session(rng, 5_000, 9.0), true);
        assert!(watch.drift().windows <= before.windows + SESSION_WINDOWS_MAX as f32);
        (0..1_000).for_each(|_| watch.close(&session(rng, 15, 9.0), false));
        let after = watch.drift();
        assert_eq!(after.state, DriftState::Steady);
        assert!(after.left_out_share > 0.9 && after.windows > 0.9 * before.windows, "{after:?}");
        for i in 0..1_000 {
            watch.close(&session(rng, 15, 0.0), i % 2 == 0);
        }
        assert!((watch.drift().left_out_share - 0.5).abs() < 0.05, "{:?}", watch.drift());
    }

    #[test]
    fn a_device_that_nobody_taught_shows_by_its_share() {
        let rng = &mut ChaCha8Rng::seed_from_u64(4);
        let mut watch = watch(rng, 100);
        come(&mut watch, rng, 100, 0.0);
        let mut unknown = Tally::default();
        (0..15).for_each(|_| unknown.add(None));
        (0..8).for_each(|_| watch.close(&unknown, true));
        assert_eq!(watch.drift().state, DriftState::Steady, "{:?}", watch.drift());
        (0..30).for_each(|_| watch.close(&unknown, true));
        assert_eq!(watch.drift().state, DriftState::Drifting, "{:?}", watch.drift());
    }

    #[test]
    fn a_stratum_out_of_range_is_unknown_and_senseless_counts_are_unsound() {
        let mut tally = Tally::default();
        tally.add(Some((STRATA_MAX, 3)));
        tally.add(Some((0, 99)));
        let mut counts = Counts::new(1);
        counts.add([&tally]);
        assert_eq!((counts.unknown, counts.strata[0].windows[BINS - 1]), (1.0, 1.0));
        assert!(counts.is_sound(1) && !counts.is_sound(2));
        assert!(!Counts { unknown: f32::NAN, ..counts.clone() }.is_sound(1));
        assert!(!Counts { squares: -1.0, ..counts }.is_sound(1));
    }
}
