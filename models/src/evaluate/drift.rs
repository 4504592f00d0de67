//! The task "drift": half of a source's people teach, and what the watch says of the others.
//!
//! Those who must be steady are the other half; who must show are the other half recorded anew (another
//! display, mouse, zoom and clock) and the people of each other source. Many splits, so that a false alarm
//! has a rate. Must not know: files, pages.

use super::EvaluateError;
use crate::artifact::{Artifact, short_hash};
use crate::dataset::{Label, Marks, Recording};
use crate::drift::{Drift, DriftState};
use crate::sim::recorder;
use crate::train::learn::{LearnRecipe, drift, learn, shadow_sessions};
use crate::train::{Progress, TrainError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeSet;

/// Everything `gaitway evaluate --task drift` reports.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub task: &'static str,
    pub seed: u64,
    pub rows: Vec<Watched>,
    /// Sources with people that could not be taught, and why.
    pub skipped: Vec<(String, String)>,
}

/// What was said of one group of people, over all splits.
#[derive(Clone, Debug, Serialize)]
pub struct Watched {
    pub taught_by: String,
    pub people: String,
    pub splits: usize,
    /// Of the splits: those called drifting, and those of which nothing was said.
    pub drifting: usize,
    pub unknown: usize,
    /// Middle and highest index of the stratum that moved most, and the middle limit; NaN without one.
    pub psi: f32,
    pub psi_max: f32,
    pub limit: f32,
    pub unknown_share: f32,
    /// Windows watched, and from how many sessions they effectively come, in the middle.
    pub windows: f32,
    pub sessions: f32,
}

const SPLITS: u64 = 20;
/// Fewer come again and again until they are as many, so that something is said of them.
const SESSIONS: usize = 200;

pub fn evaluate(
    artifact: &[u8],
    recordings: &[Recording],
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, EvaluateError> {
    let base = Artifact::decode(artifact)?;
    let people: Vec<&Recording> = recordings.iter().filter(|r| r.label == Label::Human).collect();
    let sources: BTreeSet<&str> = people.iter().map(|r| r.source.as_str()).collect();
    if sources.is_empty() {
        return Err(EvaluateError::Empty);
    }
    let of = |source: &str| -> Vec<Recording> {
        let nobody = |r: &&Recording| Recording {
            label: Label::Unknown,
            marks: Marks { device: r.marks.device.clone(), ..Marks::default() },
            ..(*r).clone()
        };
        people.iter().filter(|r| r.source == source).map(nobody).collect()
    };
    let seed = base.card.recipe.seed;
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xD21F);
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    for (step, source) in sources.iter().enumerate() {
        progress(Progress { step: step + 1, steps: sources.len(), what: format!("{source} as the site") });
        let own = of(source);
        let others: Vec<(&str, Vec<_>)> = sources
            .iter()
            .filter(|other| *other != source)
            .map(|other| (*other, shadow_sessions(&of(other)).0))
            .collect();
        let mut said: Vec<(String, Vec<Drift>)> = Vec::new();
        for split in 0..SPLITS {
            let mut names: Vec<&str> =
                own.iter().map(|r| r.user.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
            names.shuffle(&mut rng);
            let teachers: BTreeSet<&str> = names.iter().take(names.len() / 2).copied().collect();
            let (taught, rest): (Vec<Recording>, Vec<Recording>) =
                own.iter().cloned().partition(|r| teachers.contains(r.user.as_str()));
            let recipe = LearnRecipe { seed: seed + split, owners: false, ..LearnRecipe::default() };
            let model = match learn(&shadow_sessions(&taught).0, &base, &recipe, &mut |_| ()) {
                Ok(lesson) => lesson.artifact,
                Err(TrainError::Untaught { sessions, windows }) => {
                    skipped
                        .push((source.to_string(), TrainError::Untaught { sessions, windows }.to_string()));
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let anew =
                |r: &Recording| Recording { events: recorder::record_anew(&r.events, &mut rng), ..r.clone() };
            let anew: Vec<Recording> = rest.iter().map(anew).collect();
            let mut groups = vec![
                ("the teachers themselves".to_string(), shadow_sessions(&taught).0),
                ("the other half".to_string(), shadow_sessions(&rest).0),
                ("the other half, recorded anew".to_string(), shadow_sessions(&anew).0),
            ];
            groups.extend(others.iter().map(|(name, sessions)| (name.to_string(), sessions.clone())));
            for (at, (name, sessions)) in groups.into_iter().enumerate() {
                if said.len() <= at {
                    said.push((name, Vec::new()));
                }
                said[at].1.extend(drift(&model, sessions.iter().cycle().take(SESSIONS.max(sessions.len()))));
            }
        }
        rows.extend(said.into_iter().map(|(people, said)| summary(source, people, &said)));
    }
    Ok(Report { model: short_hash(artifact), task: "drift", seed, rows, skipped })
}

fn summary(taught_by: &str, people: String, said: &[Drift]) -> Watched {
    let sorted = |of: &dyn Fn(&Drift) -> Option<f32>| {
        let mut values: Vec<f32> = said.iter().filter_map(of).collect();
        values.sort_by(f32::total_cmp);
        values
    };
    let middle = |values: &[f32]| values.get(values.len() / 2).copied().unwrap_or(f32::NAN);
    let most = |drift: &Drift| {
        let by_psi = drift.strata.iter().filter_map(|stratum| Some((stratum.psi?, stratum.limit)));
        by_psi.max_by(|a, b| a.0.total_cmp(&b.0))
    };
    let psi = sorted(&|drift| Some(most(drift)?.0));
    let is = |state| said.iter().filter(|drift| drift.state == state).count();
    Watched {
        taught_by: taught_by.to_string(),
        people,
        splits: said.len(),
        drifting: is(DriftState::Drifting),
        unknown: is(DriftState::Unknown),
        psi: middle(&psi),
        psi_max: psi.last().copied().unwrap_or(f32::NAN),
        limit: middle(&sorted(&|drift| Some(most(drift)?.1))),
        unknown_share: middle(&sorted(&|drift| Some(drift.unknown_share))),
        windows: middle(&sorted(&|drift| Some(drift.windows))),
        sessions: middle(&sorted(&|drift| Some(drift.sessions))),
    }
}
