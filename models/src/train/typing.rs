//! Telling who typed a phrase by what other people's typing of it looks like.
//!
//! Two forests: one learnt on the background how any person's repetitions differ from their own usual
//! times and how a stranger's do; the other, grown for one person, tells that person's repetitions from
//! the background's. Must not know: files, whose repetitions are judged.

use super::TrainError;
use super::forest::ForestParams;
use crate::detector::logit;
use crate::forest::{Forest, Slots};
use crate::typing::{CLIP, Usual, proportions};
use linfa::dataset::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array1, Array2};

/// What other people's typing of a phrase looks like.
#[derive(Debug)]
pub struct TypingBackground {
    /// Everybody's usual times.
    common: Usual,
    shared: Forest,
    /// Some repetitions of each person.
    strangers: Vec<Vec<f32>>,
    seed: u64,
}

/// One person, against that background.
#[derive(Debug)]
pub struct Typist<'a> {
    background: &'a TypingBackground,
    likeness: Likeness,
    own: Forest,
}

impl TypingBackground {
    /// From each background person's repetitions, oldest first. Each is enrolled on the first half and
    /// the second is theirs; the others' first repetitions are strangers'.
    pub fn fit(people: &[Vec<Vec<f32>>], seed: u64) -> Result<TypingBackground, TrainError> {
        let too_few = TrainError::TooFew { people: people.len(), families: 0 };
        let all: Vec<Vec<f32>> = people.iter().flatten().map(|row| proportions(row)).collect();
        // Every person's rows weigh alike in the common times: the latest of all would be one person's.
        let step = (all.len() / crate::typing::RECENT).max(1);
        let spread: Vec<Vec<f32>> = all.iter().step_by(step).cloned().collect();
        let common = Usual::fit(&spread).ok_or(too_few)?;
        let (mut rows, mut strange) = (Vec::new(), Vec::new());
        for (i, person) in people.iter().enumerate() {
            let (enrolled, own) = person.split_at(person.len() / 2);
            let Some(likeness) = Likeness::new(enrolled, &common) else { continue };
            let others = people.iter().enumerate().filter(|(k, _)| *k != i);
            let strangers = others.flat_map(|(_, other)| other.iter().take(STRANGER_ROWS_SHARED));
            for (row, is_strange) in
                own.iter().map(|row| (row, false)).chain(strangers.map(|row| (row, true)))
            {
                rows.push(likeness.features(row));
                strange.push(is_strange);
            }
        }
        let shared = grow(&rows, &strange, seed)?;
        let strangers =
            people.iter().flat_map(|person| person.iter().take(STRANGER_ROWS_OWN).cloned()).collect();
        Ok(TypingBackground { common, shared, strangers, seed })
    }

    /// Learns one person from their repetitions, oldest first.
    pub fn enrol(&self, rows: &[Vec<f32>]) -> Result<Typist<'_>, TrainError> {
        let likeness =
            Likeness::new(rows, &self.common).ok_or(TrainError::TooFew { people: 1, families: 0 })?;
        let recent = &rows[rows.len().saturating_sub(OWN_ROWS)..];
        let all: Vec<Vec<f32>> = recent.iter().chain(&self.strangers).cloned().collect();
        let strange: Vec<bool> = (0..all.len()).map(|i| i >= recent.len()).collect();
        let own = grow(&all, &strange, self.seed)?;
        Ok(Typist { background: self, likeness, own })
    }
}

impl Typist<'_> {
    /// How much a repetition speaks for somebody else, in nats at even odds.
    pub fn score(&self, row: &[f32]) -> f32 {
        let shared = self.background.shared.predict(&Slots::new(self.likeness.features(row)));
        let own = self.own.predict(&Slots::new(row.iter().copied()));
        logit(shared) + logit(own)
    }
}

/// What a repetition is compared with.
#[derive(Debug)]
struct Likeness {
    /// The person's latest usual times, as proportions and in seconds.
    usual: Usual,
    usual_s: Usual,
    /// Half this person's spread and half everybody's: no one is as even as a few hundred rows say.
    scales: Vec<f32>,
    rows: Vec<Vec<f32>>,
}

impl Likeness {
    fn new(rows: &[Vec<f32>], common: &Usual) -> Option<Likeness> {
        let scaled: Vec<Vec<f32>> = rows.iter().map(|row| proportions(row)).collect();
        let usual = Usual::fit(&scaled)?;
        let scales: Vec<f32> = usual.spreads().zip(common.spreads()).map(|(a, b)| 0.5 * (a + b)).collect();
        let usual_s = Usual::fit(rows)?;
        Some(Likeness { usual, usual_s, scales, rows: scaled })
    }

    /// Overall distances, sorted deviations, nearest enrolled repetitions, then each time's deviation,
    /// bare and signed.
    fn features(&self, row: &[f32]) -> Vec<f32> {
        let scaled = proportions(row);
        let deviations: Vec<f32> = self.usual.deviations(&scaled).map(|z| z.clamp(-6.0, 6.0)).collect();
        let sizes: Vec<f32> = deviations.iter().map(|z| z.abs()).collect();
        let n = sizes.len() as f32;
        let mut sorted = sizes.clone();
        sorted.sort_by(f32::total_cmp);
        let mut features = vec![self.usual.distance(&scaled), self.usual_s.distance(row)];
        features.push(sizes.iter().filter(|z| **z < 1.0).count() as f32 / n);
        features.push(sizes.iter().filter(|z| **z > 3.0).count() as f32 / n);
        features.extend((0..6).map(|i| sorted[i * (sorted.len() - 1) / 5]));
        let mut nearest: Vec<f32> = self.rows.iter().map(|own| self.between(own, &scaled)).collect();
        nearest.sort_by(f32::total_cmp);
        let five = &nearest[..nearest.len().min(5)];
        features.extend([nearest[0], five.iter().sum::<f32>() / five.len() as f32]);
        features.push(nearest[20.min(nearest.len() - 1)]);
        features.extend(&sizes);
        let signed = self.usual.deviations(&scaled).zip(self.usual.spreads().zip(&self.scales));
        features.extend(signed.map(|(z, (own, scale))| (z * own / scale).clamp(-6.0, 6.0)));
        features
    }

    fn between(&self, a: &[f32], b: &[f32]) -> f32 {
        let each = a.iter().zip(b).zip(&self.scales).map(|((a, b), scale)| ((a - b) / scale).abs().min(CLIP));
        each.sum::<f32>() / self.scales.len() as f32
    }
}

fn grow(rows: &[Vec<f32>], strange: &[bool], seed: u64) -> Result<Forest, TrainError> {
    let (n, columns) = (rows.len(), rows.first().map_or(0, Vec::len));
    let mut records = Array2::zeros((n, columns));
    for (i, row) in rows.iter().enumerate() {
        for (k, value) in row.iter().enumerate() {
            records[[i, k]] = f64::from(*value);
        }
    }
    let strangers = strange.iter().filter(|strange| **strange).count().max(1);
    let own = (n - strangers.min(n)).max(1);
    let params = ForestParams {
        trees: TREES,
        depth_max: 14,
        leaf_rows_min: 2,
        class_weights: (n as f64 / own as f64, n as f64 / strangers as f64),
        seed,
        ..ForestParams::default()
    };
    let targets = Array1::from(strange.to_vec());
    let fail = |error: &dyn std::fmt::Display| TrainError::Forest(error.to_string());
    let forest = params.fit(&DatasetBase::new(records, targets)).map_err(|e| fail(&e))?;
    forest.flatten().map_err(|e| fail(&e))
}

/// First repetitions of each other person that teach what a stranger looks like, to all and to one.
const STRANGER_ROWS_SHARED: usize = 12;
const STRANGER_ROWS_OWN: usize = 30;
/// Latest repetitions of the person that their own forest learns from.
const OWN_ROWS: usize = 100;
const TREES: usize = 150;
