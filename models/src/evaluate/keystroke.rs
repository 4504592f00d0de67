//! The task "keystroke": who typed the phrase, by the protocol of Killourhy and Maxion ("Comparing
//! Anomaly-Detection Algorithms for Keystroke Dynamics", DSN 2009).
//!
//! A person's first 200 repetitions enrol, their others are genuine, the first five of every other
//! person are impostors'; the figure is the mean over people of each one's equal error rate. Twice: by
//! the person's repetitions alone, and with other people as background. Must not know: files, pages.

use super::{EvaluateError, Figure, Judged, auc, eer, mean_figure};
use crate::train::Progress;
use crate::train::typing::TypingBackground;
use crate::typing::{Repetition, Usual};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;

/// Repetitions that enrol, and repetitions of each impostor.
pub const ENROLLED: usize = 200;
pub const IMPOSTOR_ROWS: usize = 5;

/// Everything `gaitway evaluate --task keystroke` reports.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub task: &'static str,
    pub seed: u64,
    pub people: usize,
    pub rows: Vec<Row>,
    pub warnings: Vec<String>,
}

/// One way of judging.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub method: &'static str,
    /// Whom each person was judged against, and whom the background was learnt from.
    pub protocol: String,
    pub eer: Figure,
    pub auc: Figure,
    /// Standard deviation of the equal error rate over people.
    pub eer_spread: f64,
}

/// Judges repetitions of one phrase. People with fewer than 200 repetitions and some more are left out.
pub fn evaluate(
    repetitions: &[Repetition],
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, EvaluateError> {
    let mut by_user: BTreeMap<&str, Vec<&Repetition>> = BTreeMap::new();
    repetitions.iter().for_each(|row| by_user.entry(&row.user).or_default().push(row));
    let mut left_out = 0;
    let mut people: Vec<Vec<Vec<f32>>> = Vec::new();
    for rows in by_user.values_mut() {
        rows.sort_by_key(|row| row.number);
        if rows.len() <= ENROLLED {
            left_out += 1;
            continue;
        }
        people.push(rows.iter().map(|row| row.times.clone()).collect());
    }
    let columns = people.first().and_then(|person| person.first()).map_or(0, Vec::len);
    if people.len() < PEOPLE_MIN || people.iter().flatten().any(|row| row.len() != columns) {
        return Err(EvaluateError::Empty);
    }
    let everyone: Vec<usize> = (0..people.len()).collect();
    let alone = everyone.iter().filter_map(|&owner| {
        let usual = Usual::fit(&people[owner][..ENROLLED])?;
        Some(judge(&people, owner, &everyone, &|row| usual.distance(row)))
    });
    let alone: Vec<Vec<Judged>> = alone.collect();
    let mut order = everyone.clone();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let (first, second) = order.split_at(order.len() / 2);
    let mut with_background = Vec::new();
    for (learnt_from, judged) in [(first, second), (second, first)] {
        let background: Vec<Vec<Vec<f32>>> = learnt_from.iter().map(|&i| people[i].clone()).collect();
        let background = TypingBackground::fit(&background, seed)?;
        for &owner in judged {
            let step = with_background.len() + 1;
            let what = format!("judging person {step} of {}", people.len());
            progress(Progress { step, steps: people.len(), what });
            let typist = background.enrol(&people[owner][..ENROLLED])?;
            with_background.push(judge(&people, owner, judged, &|row| typist.score(row)));
        }
    }
    let mut warnings = vec![
        "How many of the latest repetitions count, and what the forests look at, were chosen on the public \
         recordings of Killourhy and Maxion; on these very recordings the figures are a little too good."
            .to_string(),
        "One phrase that everybody typed hundreds of times, on one keyboard: free text is harder."
            .to_string(),
    ];
    if left_out > 0 {
        warnings.push(format!("{left_out} people with no more than {ENROLLED} repetitions were left out."));
    }
    let n = people.len();
    let rows = vec![
        row("robust distance, alone", format!("{n} people, each against all {} others", n - 1), &alone),
        row(
            "shared and own forest, with background",
            format!(
                "learnt on half of the {n} people, the other half judged among themselves, and the other way round: \
                 neither owner nor impostor taught the forests"
            ),
            &with_background,
        ),
    ];
    Ok(Report { task: "keystroke", seed, people: n, rows, warnings })
}

/// The owner's later repetitions, and the first five of each of the others.
fn judge(
    people: &[Vec<Vec<f32>>],
    owner: usize,
    among: &[usize],
    score: &dyn Fn(&[f32]) -> f32,
) -> Vec<Judged> {
    let judged = |row: &Vec<f32>, positive| Judged { score: score(row), positive, cluster: owner };
    let own = people[owner][ENROLLED..].iter().map(|row| judged(row, false));
    let others = among.iter().filter(|&&other| other != owner);
    let others = others.flat_map(|&other| people[other].iter().take(IMPOSTOR_ROWS));
    own.chain(others.map(|row| judged(row, true))).collect()
}

fn row(method: &'static str, protocol: String, people: &[Vec<Judged>]) -> Row {
    let rates: Vec<f64> = people.iter().map(|rows| eer(rows)).collect();
    let areas: Vec<f64> = people.iter().map(|rows| auc(rows)).collect();
    let eer = mean_figure(&rates);
    let variance = rates.iter().map(|rate| (rate - eer.value).powi(2)).sum::<f64>() / rates.len() as f64;
    Row { method, protocol, eer, auc: mean_figure(&areas), eer_spread: variance.sqrt() }
}

/// Two halves of at least two.
const PEOPLE_MIN: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    /// People whose times lie around means of their own.
    fn people(n: usize, apart: f32) -> Vec<Repetition> {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut rows = Vec::new();
        for user in 0..n {
            let means: Vec<f32> = (0..6).map(|_| 0.2 + apart * rng.random_range(-0.1..0.1f32)).collect();
            for number in 0..220 {
                let mut noise = || (0..4).map(|_| rng.random_range(-0.02..0.02f32)).sum::<f32>();
                let times = means.iter().map(|mean| mean + noise()).collect();
                rows.push(Repetition { user: format!("u{user}"), number, times });
            }
        }
        rows
    }

    #[test]
    fn people_who_differ_are_told_apart_and_people_who_do_not_are_not() {
        let rates = |apart| {
            let report = evaluate(&people(8, apart), 1, &mut |_| {}).unwrap();
            report.rows.iter().map(|row| row.eer.value).collect::<Vec<_>>()
        };
        let (apart, alike) = (rates(1.0), rates(0.0));
        assert!(apart.iter().all(|rate| *rate < 0.1), "{apart:?}");
        assert!(alike.iter().all(|rate| (0.3..0.7).contains(rate)), "{alike:?}");
    }

    #[test]
    fn too_few_people_are_refused() {
        assert!(matches!(evaluate(&people(3, 1.0), 1, &mut |_| {}), Err(EvaluateError::Empty)));
    }
}
