//! What a site's own people look like, and how far a window is from them.
//!
//! Two views of one 30 s window of pointer movement: its distance from the people (one class: robust
//! centre, shrunk covariance) and a forest of these people against bots recorded elsewhere. Both look
//! only at features that do not depend on the recorder. What depends on it says which *stratum* a
//! window belongs to; a stratum nobody taught is unknown, and unknown is never a bot.
//! Must not know: how forests are grown, sessions, files.

use crate::artifact::Asks;
use crate::detector::logit;
use crate::event::Environment;
use crate::features::{self, BoundTo, Channel, FEATURE_COUNT, FEATURES, Row};
use crate::forest::{FEATURES_MAX, Forest, Slots};
use crate::session::{Window, WindowRow};
use serde::{Deserialize, Serialize};

/// Least input of a 30 s window that is learnt from or judged: with fewer strokes, means and spreads over
/// strokes are noise, and people whose device is new look like bots.
pub(crate) const ASKS: Asks =
    Asks { moves: 60, strokes: 6, grid_steps: 100, clicks: 0, keys: 0, move_interval_ms_max: None };
/// Most strata of one model.
pub const STRATA_MAX: usize = 8;
/// Most classes of device one stratum knows.
pub const DEVICES_MAX: usize = 64;

/// The strata a site has taught; none in a shipped model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Population {
    pub strata: Vec<Stratum>,
}

/// The people of one kind of input and event rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Stratum {
    pub card: StratumCard,
    pub shape: Shape,
    pub forest: Forest,
}

/// What a stratum covers, where its threshold lies, and what taught it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StratumCard {
    pub kind: Kind,
    /// Classes of device learnt; empty where the recordings did not tell, and then any counts.
    pub devices: Vec<Device>,
    /// Typical times between move events that count as learnt, milliseconds.
    pub interval_ms: (f32, f32),
    pub features: Vec<String>,
    /// Score above which a window speaks for a bot.
    pub threshold: f32,
    /// What a score one above the threshold says, nats.
    pub nats: f32,
    /// Scores of the people who taught it, each held out: the nine deciles. Drift is measured on them.
    pub deciles: Vec<f32>,
    pub learnt: Learnt,
}

/// What taught a stratum, after cleaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Learnt {
    pub people: u32,
    pub sessions: u32,
    pub windows: u32,
    /// Sessions set aside because they resemble bots and not these people.
    pub set_aside: u32,
    /// Share of all windows that bots are thought to be, found or not: value, 95 % interval.
    pub bots: (f32, f32, f32),
    /// Of that, what cleaning has left in, at most (95 %).
    pub bots_left_max: f32,
}

/// Windows of one recorded bot, carried inside the shipped model so that a site's people can be told from
/// bots before the site has met one.
#[derive(Clone, Debug, PartialEq)]
pub struct BankSession {
    pub source: String,
    pub family: String,
    /// 30 s windows with enough pointer movement.
    pub rows: Vec<Row>,
}

/// What separates strata: how the pointer is moved and how often the browser tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Kind {
    pub touch: bool,
    /// Moves arrive seldom: a remote desktop, a throttled browser.
    pub coarse: bool,
}

/// A class of device: 0 is not told, else the pixel ratio in quarters and whether the main pointer is a
/// finger, or a name from an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Device(pub u32);

impl Device {
    pub fn of(environment: Option<Environment>) -> Device {
        let told = environment.filter(|environment| environment.pixel_ratio_percent > 0);
        told.map_or(Device(0), |environment| {
            let quarters = (environment.pixel_ratio_percent + 12) / 25;
            Device((quarters.clamp(1, 0xFFFF) << 1) | u32::from(environment.coarse_pointer))
        })
    }

    /// A class an index names; "" is not told.
    pub fn named(name: &str) -> Device {
        if name.is_empty() {
            return Device(0);
        }
        let hash = name
            .bytes()
            .fold(0x811C_9DC5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Device(hash | NAMED)
    }
}

/// What the population says of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The site has taught nothing yet: ask the shipped experts.
    Untaught,
    /// A stratum nobody taught: nothing may be said.
    Unknown,
    /// Too little pointer movement to say anything of it.
    Quiet,
    /// Nats for "bot".
    Says(f32),
}

impl Population {
    pub fn is_empty(&self) -> bool {
        self.strata.is_empty()
    }

    pub fn judge(&self, window: &Window, device: Device) -> Verdict {
        self.find(window, device).map_or_else(
            |verdict| verdict,
            |(_, stratum, row)| Verdict::Says(stratum.nats(stratum.score(&row.features))),
        )
    }

    /// The stratum that may judge a window, which one it is, and the row it reads.
    pub(crate) fn find<'a, 'b>(
        &'a self,
        window: &'b Window,
        device: Device,
    ) -> Result<(usize, &'a Stratum, &'b WindowRow), Verdict> {
        if self.is_empty() {
            return Err(Verdict::Untaught);
        }
        let knows = |stratum: &&Stratum, touch: bool| {
            let devices = &stratum.card.devices;
            stratum.card.kind.touch == touch && (devices.is_empty() || devices.contains(&device))
        };
        let row = window.long.as_ref().unwrap_or(&window.short);
        let touch = is_touch(row);
        if !self.strata.iter().any(|stratum| knows(&stratum, touch)) {
            return Err(Verdict::Unknown);
        }
        let interval = row.features[MOVE_INTERVAL].exp();
        if window.long.is_none() || !ASKS.are_met(row) || !interval.is_finite() {
            return Err(Verdict::Quiet);
        }
        let covers = |stratum: &Stratum| {
            let (low, high) = stratum.card.interval_ms;
            knows(&stratum, touch)
                && Kind::of(row) == Some(stratum.card.kind)
                && (low..=high).contains(&interval)
        };
        let at = self.strata.iter().position(covers).ok_or(Verdict::Unknown)?;
        Ok((at, &self.strata[at], row))
    }
}

impl Kind {
    /// `None` without enough moves to tell.
    pub(crate) fn of(row: &WindowRow) -> Option<Kind> {
        let interval = row.features[MOVE_INTERVAL].exp();
        interval.is_finite().then_some(Kind { touch: is_touch(row), coarse: interval > COARSE_MS })
    }

    /// The kind of input of a window with enough pointer movement.
    pub(crate) fn of_window(window: &Window) -> Option<Kind> {
        Kind::of(window.long.as_ref().filter(|row| ASKS.are_met(row))?)
    }

    pub fn name(self) -> &'static str {
        match (self.touch, self.coarse) {
            (false, false) => "mouse",
            (false, true) => "mouse, events far apart",
            (true, false) => "touch",
            (true, true) => "touch, events far apart",
        }
    }
}

impl StratumCard {
    /// In which tenth of its teachers' scores a score lies.
    pub(crate) fn tenth(&self, score: f32) -> usize {
        self.deciles.iter().filter(|decile| score > **decile).count()
    }
}

impl Stratum {
    /// How unlike these people and how like a bot: the logarithm of the distance, plus the forest's say.
    pub fn score(&self, row: &Row) -> f32 {
        let values = self.values(row);
        joint_score(self.shape.distance(&values), self.forest.predict(&Slots::new(values.iter().copied())))
    }

    /// Nats for "bot" of a score.
    pub fn nats(&self, score: f32) -> f32 {
        (self.card.nats * (score - self.card.threshold)).clamp(-NATS_MAX, NATS_MAX)
    }

    /// Adds to `contributions`, by feature, what moved the score: along the forest's paths, and what share
    /// of the distance each feature makes up.
    pub(crate) fn explain(&self, row: &Row, contributions: &mut [f32; FEATURE_COUNT]) {
        let values = self.values(row);
        let mut own = [0.0; FEATURES_MAX];
        self.forest.attribute(&Slots::new(values.iter().copied()), &mut own);
        let far = self.nats(self.score(row)).max(0.0) / NATS_MAX;
        let shares = self.shape.shares(&values);
        for ((name, own), share) in self.card.features.iter().zip(own).zip(shares) {
            if let Some(i) = features::index(name) {
                contributions[i] += 0.5 * (own + far * share);
            }
        }
    }

    fn values(&self, row: &Row) -> Vec<f32> {
        let at = |name: &String| features::index(name).map_or(f32::NAN, |i| row[i]);
        self.card.features.iter().map(at).collect()
    }
}

/// One score from the logarithm of a distance and a forest's share of votes.
pub(crate) fn joint_score(distance: f32, votes: f32) -> f32 {
    distance + FOREST_WEIGHT * logit(votes)
}

/// Features a population may look at: pointer movement, as far as it does not depend on the recorder.
/// What the page asks of people is theirs to teach.
pub(crate) fn columns() -> Vec<usize> {
    let fit =
        |&i: &usize| FEATURES[i].channel == Channel::Pointer && FEATURES[i].bound_to != BoundTo::Recorder;
    (0..FEATURE_COUNT).filter(fit).collect()
}

/// A cloud of rows: where it lies and how it is spread. Distances are Mahalanobis' after each column was
/// centred on its median, divided by its median absolute deviation and clipped; a missing value lies in
/// the middle, so it never adds distance by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    centre: Vec<f32>,
    scale: Vec<f32>,
    mean: Vec<f32>,
    /// Lower Cholesky factor of the shrunk covariance, by rows, packed.
    factor: Vec<f32>,
}

impl Shape {
    /// Fits rows of equal length, each round without the share `trim` of rows that lay farthest in the
    /// round before, so that a few strangers cannot pull the centre or widen the spread. Also returns
    /// which rows were kept. `None` for too few rows or columns.
    pub fn fit(rows: &[Vec<f32>], trim: f32) -> Option<(Shape, Vec<bool>)> {
        let columns = rows.first()?.len();
        if rows.len() < ROWS_MIN || columns == 0 {
            return None;
        }
        let (centre, scale): (Vec<f32>, Vec<f32>) = (0..columns).map(|j| centre_and_scale(rows, j)).unzip();
        let mut shape = Shape { centre, scale, mean: vec![0.0; columns], factor: Vec::new() };
        let whole: Vec<Vec<f64>> = rows.iter().map(|row| shape.relative(row)).collect();
        let mut kept = vec![true; rows.len()];
        for round in 0..=TRIM_ROUNDS {
            let taken: Vec<&[f64]> =
                whole.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(row, _)| row.as_slice()).collect();
            (shape.mean, shape.factor) = shrunk_covariance(&taken)?;
            if trim <= 0.0 || round == TRIM_ROUNDS {
                break;
            }
            let far: Vec<f64> = whole.iter().map(|row| shape.squared(row)).collect();
            let mut sorted = far.clone();
            sorted.sort_by(f64::total_cmp);
            let last = ((1.0 - trim) * (rows.len() - 1) as f32) as usize;
            kept = far.iter().map(|far| *far <= sorted[last]).collect();
        }
        Some((shape, kept))
    }

    /// Logarithm of the squared distance per column: near 0 for rows like those it was fitted on.
    pub fn distance(&self, row: &[f32]) -> f32 {
        let squared = self.squared(&self.relative(row)) / self.centre.len().max(1) as f64;
        squared.max(1e-6).ln() as f32
    }

    /// How much of the squared distance each column makes up; they add to 1.
    fn shares(&self, row: &[f32]) -> Vec<f32> {
        let relative = self.relative(row);
        let off: Vec<f64> = relative.iter().zip(&self.mean).map(|(z, mean)| z - f64::from(*mean)).collect();
        let half = self.solve(&off);
        let whole = half.iter().map(|y| y * y).sum::<f64>().max(1e-9);
        // Back through the transposed factor: off · (covariance⁻¹ off), column by column.
        let n = off.len();
        let mut back = half;
        for i in (0..n).rev() {
            back[i] /= f64::from(self.factor[i * (i + 1) / 2 + i]);
            for j in 0..i {
                back[j] -= f64::from(self.factor[i * (i + 1) / 2 + j]) * back[i];
            }
        }
        off.iter().zip(back).map(|(off, back)| (off * back / whole) as f32).collect()
    }

    fn relative(&self, row: &[f32]) -> Vec<f64> {
        let columns = row.iter().zip(self.centre.iter().zip(&self.scale));
        let relative = |(value, (centre, scale)): (&f32, (&f32, &f32))| {
            if value.is_finite() { f64::from(((value - centre) / scale).clamp(-CLIP, CLIP)) } else { 0.0 }
        };
        columns.map(relative).collect()
    }

    fn squared(&self, relative: &[f64]) -> f64 {
        let off: Vec<f64> = relative.iter().zip(&self.mean).map(|(z, mean)| z - f64::from(*mean)).collect();
        self.solve(&off).iter().map(|y| y * y).sum()
    }

    /// Solves factor · y = off.
    fn solve(&self, off: &[f64]) -> Vec<f64> {
        let mut y = Vec::with_capacity(off.len());
        for (i, value) in off.iter().enumerate() {
            let row = &self.factor[i * (i + 1) / 2..][..=i];
            let sum: f64 = row.iter().zip(&y).map(|(factor, y)| f64::from(*factor) * y).sum();
            y.push((value - sum) / f64::from(row[i]));
        }
        y
    }

    /// Appends its numbers, little endian.
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        let numbers = self.centre.iter().chain(&self.scale).chain(&self.mean).chain(&self.factor);
        numbers.for_each(|number| bytes.extend(number.to_le_bytes()));
    }

    /// Reads the shape of so many columns from the front of `bytes`; `None` if they end early or hold what
    /// no fit leaves behind.
    pub(crate) fn read(columns: usize, bytes: &mut &[u8]) -> Option<Shape> {
        let mut take = |n: usize| read_numbers(bytes, n);
        let (centre, scale, mean) = (take(columns)?, take(columns)?, take(columns)?);
        let factor = take(columns * (columns + 1) / 2)?;
        let finite = [&centre, &scale, &mean, &factor].iter().all(|part| part.iter().all(|n| n.is_finite()));
        let diagonal = (0..columns).all(|i| factor[i * (i + 1) / 2 + i] > 0.0);
        let sound = finite && diagonal && scale.iter().all(|scale| *scale > 0.0);
        sound.then_some(Shape { centre, scale, mean, factor })
    }
}

/// Reads so many numbers, NaN allowed, from the front of `bytes`.
pub(crate) fn read_numbers(bytes: &mut &[u8], n: usize) -> Option<Vec<f32>> {
    let (head, rest) = bytes.split_at_checked(n.checked_mul(4)?)?;
    *bytes = rest;
    Some(head.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect())
}

/// Median, and median absolute deviation on the scale of a standard deviation. A column that hardly
/// varies but for a few values gets a share of its standard deviation instead.
fn centre_and_scale(rows: &[Vec<f32>], column: usize) -> (f32, f32) {
    let mut values: Vec<f32> = rows.iter().map(|row| row[column]).filter(|value| value.is_finite()).collect();
    if values.is_empty() {
        return (0.0, 1.0);
    }
    let middle = median(&mut values);
    let n = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / n;
    let sd = (values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / n).sqrt() as f32;
    values.iter_mut().for_each(|value| *value = (*value - middle).abs());
    let deviation = 1.4826 * median(&mut values);
    let scale = deviation.max(0.3 * sd);
    (middle, if scale > 1e-6 { scale } else { 1.0 })
}

/// Middle value; sorts. NaN without values.
pub(crate) fn median(values: &mut [f32]) -> f32 {
    values.sort_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f32::NAN)
}

/// Mean, and the lower Cholesky factor of the covariance shrunk towards a sphere by as much as Ledoit and
/// Wolf's formula finds best ("A well-conditioned estimator for large-dimensional covariance matrices",
/// 2004), packed by rows.
fn shrunk_covariance(rows: &[&[f64]]) -> Option<(Vec<f32>, Vec<f32>)> {
    let (n, p) = (rows.len(), rows.first()?.len());
    let mut mean = vec![0.0f64; p];
    rows.iter().for_each(|row| mean.iter_mut().zip(*row).for_each(|(sum, z)| *sum += z / n as f64));
    // Rounded first: distances are taken from what is stored.
    let mean: Vec<f32> = mean.into_iter().map(|mean| mean as f32).collect();
    let mut covariance = vec![0.0f64; p * (p + 1) / 2];
    let mut fourth = 0.0;
    for row in rows {
        let off: Vec<f64> = row.iter().zip(&mean).map(|(z, mean)| z - f64::from(*mean)).collect();
        fourth += off.iter().map(|z| z * z).sum::<f64>().powi(2);
        for i in 0..p {
            let line = &mut covariance[i * (i + 1) / 2..][..=i];
            line.iter_mut().zip(&off).for_each(|(sum, z)| *sum += off[i] * z / n as f64);
        }
    }
    let at = |i: usize, j: usize| covariance[i * (i + 1) / 2 + j];
    let trace: f64 = (0..p).map(|i| at(i, i)).sum();
    let squares: f64 =
        (0..p).map(|i| at(i, i).powi(2) + 2.0 * (0..i).map(|j| at(i, j).powi(2)).sum::<f64>()).sum();
    let sphere = trace / p as f64;
    let apart = (squares - 2.0 * sphere * trace + p as f64 * sphere * sphere) / p as f64;
    let noise = (fourth / n as f64 - squares) / (p * n) as f64;
    let shrinkage = if apart > 0.0 { (noise / apart).clamp(SHRINKAGE_MIN, 1.0) } else { 1.0 };
    covariance.iter_mut().for_each(|value| *value *= 1.0 - shrinkage);
    (0..p).for_each(|i| covariance[i * (i + 1) / 2 + i] += shrinkage * sphere.max(1e-6));
    Some((mean, cholesky(covariance, p)?.into_iter().map(|value| value as f32).collect()))
}

fn cholesky(mut matrix: Vec<f64>, p: usize) -> Option<Vec<f64>> {
    for i in 0..p {
        for j in 0..=i {
            let (row_i, row_j) = (i * (i + 1) / 2, j * (j + 1) / 2);
            let sum = matrix[row_i + j] - (0..j).map(|k| matrix[row_i + k] * matrix[row_j + k]).sum::<f64>();
            matrix[row_i + j] = if i == j {
                if sum <= 0.0 || !sum.is_finite() {
                    return None;
                }
                sum.sqrt()
            } else {
                sum / matrix[row_j + j]
            };
        }
    }
    Some(matrix)
}

fn is_touch(row: &WindowRow) -> bool {
    row.support.touches > row.support.moves / 2
}

/// Where the event rate of a window is read.
pub(crate) const MOVE_INTERVAL: usize = crate::detector::MOVE_INTERVAL;
/// Moves further apart than this are another kind of recording: browsers send 60 a second and more.
const COARSE_MS: f32 = 40.0;
/// Most a population may say of one window, nats.
const NATS_MAX: f32 = 4.0;
/// Nats of forest logit for one of log distance.
const FOREST_WEIGHT: f32 = 0.25;
const TRIM_ROUNDS: usize = 4;
const ROWS_MIN: usize = 8;
/// Values farther out than this many deviations say no more than that they are far out.
const CLIP: f32 = 8.0;
/// Keeps the factor of a cloud without thickness in some direction invertible.
const SHRINKAGE_MIN: f64 = 1e-3;
const NAMED: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Rows along a line with a little noise around it.
    fn cloud(n: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut row = || {
            let along: f32 = (0..6).map(|_| rng.random_range(-1.0f32..1.0)).sum();
            vec![along, along + rng.random_range(-0.3..0.3), rng.random_range(-1.0..1.0)]
        };
        (0..n).map(|_| row()).collect()
    }

    #[test]
    fn a_step_off_the_line_is_farther_than_a_longer_one_along_it() {
        let (shape, _) = Shape::fit(&cloud(400, 1), 0.0).unwrap();
        assert!(shape.distance(&[2.0, 2.0, 0.0]) < shape.distance(&[1.0, -1.0, 0.0]));
        let shares = shape.shares(&[1.0, -1.0, 0.0]);
        assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-3 && shares[2].abs() < 0.1, "{shares:?}");
    }

    #[test]
    fn strangers_among_the_rows_cannot_hide_by_being_many() {
        let mut rows = cloud(300, 2);
        rows.extend((0..45).map(|i| vec![3.0 + 0.01 * i as f32, -3.0, 0.5]));
        let (plain, _) = Shape::fit(&rows, 0.0).unwrap();
        let (trimmed, kept) = Shape::fit(&rows, 0.25).unwrap();
        let stranger = [3.2, -3.0, 0.5];
        assert!(trimmed.distance(&stranger) > plain.distance(&stranger) + 1.0);
        assert!(kept[300..].iter().all(|kept| !kept), "no stranger is kept");
    }

    #[test]
    fn a_missing_value_adds_no_distance() {
        let (shape, _) = Shape::fit(&cloud(200, 3), 0.0).unwrap();
        assert!(shape.distance(&[f32::NAN; 3]) < shape.distance(&[0.5, 0.5, 0.9]));
        assert!(Shape::fit(&cloud(ROWS_MIN - 1, 3), 0.0).is_none());
    }

    #[test]
    fn the_bytes_of_a_shape_read_back_or_are_refused() {
        let (shape, _) = Shape::fit(&cloud(100, 4), 0.0).unwrap();
        let mut bytes = Vec::new();
        shape.write(&mut bytes);
        assert_eq!(Shape::read(3, &mut bytes.as_slice()), Some(shape));
        assert_eq!(Shape::read(4, &mut bytes.as_slice()), None, "too short for four columns");
        let factor = bytes.len() - 6 * 4;
        bytes[factor..factor + 4].fill(0);
        assert_eq!(Shape::read(3, &mut bytes.as_slice()), None, "a factor without thickness");
    }

    #[test]
    fn a_device_is_told_by_its_browser_or_named_by_an_index() {
        let environment = |percent, coarse| Environment {
            viewport_width: 1,
            viewport_height: 1,
            pixel_ratio_percent: percent,
            automation: false,
            coarse_pointer: coarse,
            coalesced_supported: true,
        };
        assert_eq!(Device::of(None), Device::default());
        assert_eq!(Device::of(Some(environment(100, false))), Device::of(Some(environment(104, false))));
        assert_ne!(Device::of(Some(environment(100, false))), Device::of(Some(environment(200, false))));
        assert_ne!(Device::of(Some(environment(200, true))), Device::of(Some(environment(200, false))));
        assert_eq!(Device::named(""), Device::default());
        assert_ne!(Device::named("desk"), Device::named("lap"));
    }
}
