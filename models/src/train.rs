//! From recordings to a model file; the only place that names linfa.
//!
//! People and bot families are held out in folds: what calibrates, and what sets the threshold, comes
//! from forests that never saw the person or the family. The shipped forests then learn from all.
//! Must not know: files, progress bars, command lines.

pub mod background;
pub mod boost;
pub mod calibrate;
pub mod ensemble;
pub mod forest;
pub mod learn;
pub mod tree;
pub mod typing;

use crate::artifact::{Artifact, Asks, Card, Distance, Expert, ExpertChannel, SourceUsed, Span, Usual};
use crate::dataset::{self, Marks, Recording, Watched};
use crate::detector::{Modality, calibrate, fuse};
use crate::event::Event;
use crate::features::{self, BoundTo, FEATURE_COUNT, FEATURES, Row, Sign};
use crate::forest::{Forest, Slots};
use crate::isolation::{IsolationForest, IsolationParams};
use crate::population::{self, BankSession, Population, Shape};
use crate::sequential::{self, cusum};
use crate::session::{Window, WindowRow};
use crate::sim::{BotKind, Visitor, recorder};
use boost::BoostParams;
use ensemble::Ensemble;
use forest::{ForestParams, Missing, Monotone};
use linfa::dataset::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array1, Array2};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;
use tree::TreeParams;

/// How the trees of a model's experts are grown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// One tree, to be read.
    DecisionTree,
    #[default]
    RandomForest,
    GradientBoosting,
    /// Grown on people alone: how unlike them something is.
    IsolationForest,
}

impl Algorithm {
    fn is_default(&self) -> bool {
        *self == Algorithm::default()
    }
}

/// How a model is made; the same recipe and recordings give the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub seed: u64,
    pub name: String,
    #[serde(default, skip_serializing_if = "Algorithm::is_default")]
    pub algorithm: Algorithm,
    /// Trees of each expert; a decision tree is one.
    pub trees: usize,
    /// Depth of each tree. A boosted tree needs less, a tree to be read can bear less.
    pub depth_max: usize,
    pub leaf_rows_min: u32,
    /// Times each recording is recorded anew, beside as it is.
    pub renewals: u32,
    /// Simulated people; bots are as many, of all kinds but replay.
    pub simulated: u32,
    pub folds: usize,
    /// Share of human sessions that may reach the threshold.
    pub false_alarm: f32,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            seed: 1,
            name: "cold-start".into(),
            algorithm: Algorithm::RandomForest,
            trees: 64,
            depth_max: 9,
            leaf_rows_min: 6,
            renewals: 2,
            simulated: 150,
            folds: 5,
            false_alarm: 0.01,
        }
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum TrainError {
    #[error(
        "training needs windows of at least two people and two bot families; found {people} and {families}"
    )]
    TooFew { people: usize, families: usize },
    #[error(
        "{sessions} sessions with {windows} windows of 30 s are too few to learn a site from: at least {} sessions \
         and {} windows of one kind of input are needed; let it watch in shadow for longer",
        learn::SESSIONS_MIN,
        learn::WINDOWS_MIN
    )]
    Untaught { sessions: u32, windows: u32 },
    #[error("a forest could not be grown: {0}")]
    Forest(String),
}

/// What training is doing, for whoever watches.
#[derive(Clone, Debug)]
pub struct Progress {
    pub step: usize,
    pub steps: usize,
    pub what: String,
}

/// What the recipe says of each recording while the person or family behind it was held out.
#[derive(Clone, Debug)]
pub struct HeldOut {
    pub source: String,
    pub user: String,
    pub family: Option<String>,
    pub session: String,
    /// Recorded anew by the simulated browser, not as it came.
    pub anew: bool,
    pub device: String,
    pub modality: Modality,
    /// Evidence at which the session is called a bot, nats, set without it.
    pub threshold: f32,
    pub windows: Vec<HeldOutWindow>,
}

#[derive(Clone, Copy, Debug)]
pub struct HeldOutWindow {
    /// Log-likelihood ratio with the pointer judged by the last 10 s alone, by the last 30 s alone, and
    /// as the ledger gets it.
    pub short: Option<f32>,
    pub long: Option<f32>,
    pub fused: Option<f32>,
    /// When it was complete, seconds after the first event.
    pub seconds: f32,
}

impl HeldOut {
    /// Evidence after each window of the session.
    pub fn evidence(&self) -> impl Iterator<Item = f32> + '_ {
        let fused = self.windows.iter().filter_map(|window| window.fused);
        fused.scan(0.0, |evidence, log_ratio| {
            *evidence = cusum(*evidence, log_ratio);
            Some(*evidence)
        })
    }
}

/// A model, and how its recipe did on the people and families it had not seen.
#[derive(Clone, Debug)]
pub struct Trained {
    pub artifact: Artifact,
    pub held_out: Vec<HeldOut>,
    /// Of each expert, in the order of the card: its features and their share in what the splits gained,
    /// largest first.
    pub importances: Vec<Vec<(String, f64)>>,
}

/// Trains the cold-start model from recordings and the simulator.
pub fn train(
    recordings: &[Recording],
    recipe: &Recipe,
    progress: &mut dyn FnMut(Progress),
) -> Result<Trained, TrainError> {
    let steps = recipe.folds + 3;
    let mut tell = |step, what: String| progress(Progress { step, steps, what });
    tell(
        1,
        format!(
            "reading windows of {} recordings and {} simulated visitors",
            recordings.len(),
            2 * recipe.simulated
        ),
    );
    let samples = samples(recordings, recipe);
    let subjects = Subjects::new(&samples, recipe.folds);
    if subjects.people < 2 || subjects.families < 2 {
        return Err(TrainError::TooFew { people: subjects.people, families: subjects.families });
    }
    let plans = plans();
    let mut scores: Vec<Vec<[Option<Score>; PLANS]>> =
        samples.iter().map(|sample| vec![[None; PLANS]; sample.windows.len()]).collect();
    for fold in 0..recipe.folds {
        tell(2 + fold, format!("fold {} of {}: people and bot families held out", fold + 1, recipe.folds));
        let learnt = |sample: &Sample| subjects.fold(sample) != fold;
        for (p, plan) in plans.iter().enumerate() {
            let Some(grown) = plan.grow(&samples, &learnt, recipe)? else { continue };
            for (sample, scores) in samples.iter().zip(&mut scores).filter(|(sample, _)| !learnt(sample)) {
                for (window, scores) in sample.windows.iter().zip(scores) {
                    scores[p] = plan.row(window).map(|row| plan.score(&grown, row));
                }
            }
        }
    }
    tell(2 + recipe.folds, "calibrating on what was held out".into());
    let calibrate_on = |keep: &dyn Fn(&Sample) -> bool| -> Vec<Calibration> {
        (0..PLANS).map(|p| Calibration::fit(p, &samples, &scores, keep)).collect()
    };
    let calibrations = calibrate_on(&|_| true);
    // What is reported of one half of the people and families rests on what the other half calibrated.
    let crossed = [0, 1].map(|half| calibrate_on(&|sample| subjects.half(sample) != half));
    let mut held_out = held_out(&samples, &scores, &plans, &|sample| &crossed[subjects.half(sample)]);
    let threshold_by = |keep: &dyn Fn(&Sample) -> bool, held_out: &[HeldOut]| {
        let people = samples.iter().zip(held_out).filter(|(sample, session)| {
            sample.family.is_none() && sample.original && !session.windows.is_empty() && keep(sample)
        });
        let maxima = people.map(|(_, session)| session.evidence().fold(0.0, f32::max)).collect();
        sequential::threshold(maxima, recipe.false_alarm)
    };
    let threshold = threshold_by(&|_| true, &held_out);
    let halves = [0, 1].map(|half| threshold_by(&|sample| subjects.half(sample) != half, &held_out).nats);
    for (sample, session) in samples.iter().zip(&mut held_out) {
        session.threshold = halves[subjects.half(sample)];
    }
    tell(3 + recipe.folds, "growing the forests on everything".into());
    let (mut experts, mut forests, mut people) = (Vec::new(), Vec::new(), Vec::new());
    let mut importances = Vec::new();
    for (plan, calibration) in plans.iter().zip(&calibrations) {
        if let Some(grown) = plan.grow(&samples, &|_| true, recipe)? {
            importances.push(plan.importances(&grown.gains));
            experts.push(plan.expert(calibration, &grown));
            forests.push(grown.forest);
            people.push(grown.people);
        }
    }
    let card = Card {
        name: recipe.name.clone(),
        program: format!("gaitway {}", env!("CARGO_PKG_VERSION")),
        feature_table: features::table_hash(),
        recipe: recipe.clone(),
        sources: sources(&samples),
        users: subjects.names(&samples, |sample| sample.family.is_none().then(|| sample.user.clone())),
        families: subjects.names(&samples, |sample| sample.family.clone()),
        calibrated: false,
        threshold,
        experts,
        usual: usual(
            samples.iter().filter(|sample| sample.family.is_none()).flat_map(|sample| &sample.windows),
        ),
        population: Vec::new(),
        bank: Vec::new(),
        owners: None,
        drift: None,
    };
    let artifact = Artifact {
        card,
        forests,
        people,
        population: Population::default(),
        bank: bank(recordings, &samples),
        owners: None,
    };
    Ok(Trained { artifact, held_out, importances })
}

/// Whether there are people and kinds of bots enough among recordings to hold some of each out.
pub fn can_learn_from(recordings: &[Recording]) -> bool {
    let people = recordings.iter().filter(|r| r.family.is_none()).map(|r| &r.user);
    let kinds = recordings.iter().filter_map(|r| r.family.as_deref()).map(kin);
    people.collect::<BTreeSet<_>>().len() >= 2 && kinds.collect::<BTreeSet<_>>().len() >= 2
}

/// One recording, as it is or recorded anew, with its windows.
struct Sample {
    source: String,
    licence: String,
    user: String,
    family: Option<String>,
    session: String,
    /// As recorded: counts for calibration, thresholds and reports.
    original: bool,
    device: String,
    modality: Modality,
    windows: Vec<Window>,
    /// When each window was complete, seconds after the first event.
    seconds: Vec<f32>,
}

fn samples(recordings: &[Recording], recipe: &Recipe) -> Vec<Sample> {
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed ^ 0x5A3);
    let mut samples = Vec::new();
    for recording in dataset::join_short(recordings.to_vec()) {
        for renewal in 0..=recipe.renewals {
            let events = match renewal {
                0 => recording.events.clone(),
                _ => recorder::record_anew(&recording.events, &mut rng),
            };
            let Watched { windows, seconds, modality } = dataset::watch(&events);
            samples.push(Sample {
                source: recording.source.clone(),
                licence: recording.licence.clone(),
                user: recording.user.clone(),
                family: recording.family.clone(),
                session: recording.session.clone(),
                original: renewal == 0,
                device: dataset::device(&recording.marks, &windows),
                modality,
                windows,
                seconds,
            });
        }
    }
    for i in 0..recipe.simulated {
        let seed = recipe.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(i));
        let kinds: Vec<BotKind> = BotKind::ALL.into_iter().filter(|kind| *kind != BotKind::Replay).collect();
        let kind = kinds[i as usize % kinds.len()];
        let person = (format!("sim_{i}"), None, Visitor::person(seed));
        let bot = ("sim_bot".to_string(), Some(format!("sim_{}", kind.name())), Visitor::bot(kind, seed));
        for (user, family, mut visitor) in [person, bot] {
            let session = family.clone().unwrap_or_else(|| "person".into());
            let Watched { windows, seconds, modality } = dataset::watch(&simulated_events(&mut visitor));
            samples.push(Sample {
                source: SIMULATOR.into(),
                licence: "Apache-2.0, this project".into(),
                user,
                family,
                session: format!("{SIMULATOR}/{session}_{i}"),
                original: true,
                device: dataset::device(&Marks::default(), &windows),
                modality,
                windows,
                seconds,
            });
        }
    }
    samples.retain(|sample| !sample.windows.is_empty());
    samples
}

fn simulated_events(visitor: &mut Visitor) -> Vec<Event> {
    (0..SIMULATED_BATCHES).flat_map(|_| visitor.next_batch(2.0).events).collect()
}

/// Which people and bot families stand in which fold, and in which half for calibration.
struct Subjects {
    folds: BTreeMap<(bool, String), (usize, usize)>,
    people: usize,
    families: usize,
}

impl Subjects {
    fn new(samples: &[Sample], folds: usize) -> Subjects {
        let keys: BTreeSet<_> = samples.iter().map(Subjects::key).collect();
        let (mut people, mut families) = (0, 0);
        let folds = keys
            .into_iter()
            .map(|key| {
                let count = if key.0 { &mut families } else { &mut people };
                *count += 1;
                (key, (*count % folds.max(2), *count % 2))
            })
            .collect();
        Subjects { folds, people, families }
    }

    fn key(sample: &Sample) -> (bool, String) {
        match &sample.family {
            Some(family) => (true, kin(family).to_string()),
            None => (false, sample.user.clone()),
        }
    }

    fn fold(&self, sample: &Sample) -> usize {
        self.folds.get(&Subjects::key(sample)).map_or(0, |(fold, _)| *fold)
    }

    fn half(&self, sample: &Sample) -> usize {
        self.folds.get(&Subjects::key(sample)).map_or(0, |(_, half)| *half)
    }

    fn names(&self, samples: &[Sample], of: impl Fn(&Sample) -> Option<String>) -> Vec<String> {
        let real = samples.iter().filter(|sample| sample.source != SIMULATOR);
        real.filter_map(of).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Families that share their code are held out together: a variant of a bot is not another bot.
fn kin(family: &str) -> &str {
    match family {
        "pw_linear" | "pw_linear_slow" | "playwright_linear" | "puppeteer_linear" | "sim_linear-even" => {
            "linear"
        }
        // HumanCursor draws its curves with pyclick's code.
        "pyclick" | "os_pyclick" | "humancursor" => "pyclick",
        "pw_click" | "playwright_steps" | "selenium" | "selenium_ac" | "sim_teleport" => "teleport",
        "pyautogui" | "os_pyautogui" => "pyautogui",
        other => other,
    }
}

/// An expert to be: channel, span, features and what it asks for.
struct Plan {
    name: &'static str,
    channel: ExpertChannel,
    span: Span,
    asks: Asks,
    nats_max: f32,
    features: Vec<usize>,
    sight: Sight,
}

/// What keeps an expert from calling people of unseen sites bots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// Features are used in one direction only.
    Signed,
    /// Features are used freely, and whoever is not far from all people is none the less no bot.
    Distant,
}

/// What an expert has learnt.
struct Grown {
    forest: Forest,
    gains: Vec<f64>,
    people: Option<Shape>,
}

/// What an expert thinks of a window before calibration.
#[derive(Clone, Copy, Debug)]
struct Score {
    votes: f32,
    distance: Option<f32>,
}

const PLANS: usize = 4;

fn plans() -> [Plan; PLANS] {
    let pointer = |name, span, asks| Plan {
        name,
        channel: ExpertChannel::Pointer,
        span,
        asks,
        nats_max: 4.0,
        features: free_features(ExpertChannel::Pointer, Sight::Distant),
        sight: Sight::Distant,
    };
    let slow = Some(MOVE_INTERVAL_MS_MAX);
    [
        pointer(
            "pointer, 10 s",
            Span::Short,
            Asks { moves: 30, strokes: 3, grid_steps: 50, move_interval_ms_max: slow, ..Asks::default() },
        ),
        pointer(
            "pointer, 30 s",
            Span::Long,
            Asks { moves: 90, strokes: 6, grid_steps: 150, move_interval_ms_max: slow, ..Asks::default() },
        ),
        Plan {
            name: "clicks",
            channel: ExpertChannel::Click,
            span: Span::Short,
            asks: Asks { clicks: 4, move_interval_ms_max: slow, ..Asks::default() },
            // Learnt from few people: it may support, hardly carry.
            nats_max: 1.25,
            features: free_features(ExpertChannel::Click, Sight::Signed),
            sight: Sight::Signed,
        },
        Plan {
            name: "keys",
            channel: ExpertChannel::Key,
            span: Span::Short,
            asks: Asks { keys: 16, ..Asks::default() },
            // Learnt from simulated typing alone.
            nats_max: 1.5,
            features: free_features(ExpertChannel::Key, Sight::Signed),
            sight: Sight::Signed,
        },
    ]
}

/// Features of a channel that depend on neither the recorder nor the page; of signed experts, those of
/// which it is known which way scripts depart from hands.
fn free_features(channel: ExpertChannel, sight: Sight) -> Vec<usize> {
    let free = |&i: &usize| {
        let feature = &FEATURES[i];
        feature.channel == channel.channel()
            && feature.bound_to == BoundTo::Nothing
            && (sight == Sight::Distant || feature.towards_bot != Sign::Either)
    };
    (0..FEATURE_COUNT).filter(free).collect()
}

impl Plan {
    fn row<'a>(&self, window: &'a Window) -> Option<&'a WindowRow> {
        let row = match self.span {
            Span::Short => Some(&window.short),
            Span::Long => window.long.as_ref(),
        };
        row.filter(|row| self.asks.are_met(row))
    }

    fn slots(&self, row: &WindowRow) -> Slots {
        Slots::new(self.features.iter().map(|&i| row.features[i]))
    }

    fn values(&self, row: &Row) -> Vec<f32> {
        self.features.iter().map(|&i| row[i]).collect()
    }

    fn score(&self, grown: &Grown, row: &WindowRow) -> Score {
        Score {
            votes: grown.forest.predict(&self.slots(row)),
            distance: grown.people.as_ref().map(|people| people.distance(&self.values(&row.features))),
        }
    }

    /// The people among the rows. Simulated ones move like their formulas, and count only where there are no
    /// others.
    fn people(&self, rows: &[(&Row, &Sample)]) -> Option<Shape> {
        let of = |simulated: bool| -> Vec<Vec<f32>> {
            let people = rows.iter().filter(|(_, sample)| sample.family.is_none());
            let wanted = people.filter(|(_, sample)| (sample.source == SIMULATOR) == simulated);
            wanted.map(|(row, _)| self.values(row)).collect()
        };
        let (people, _) = Shape::fit(&of(false), 0.0).or_else(|| Shape::fit(&of(true), 0.0))?;
        Some(people)
    }

    /// Grows this expert's forest on the samples it may learn from; `None` without both classes.
    fn grow(
        &self,
        samples: &[Sample],
        learnt: &dyn Fn(&Sample) -> bool,
        recipe: &Recipe,
    ) -> Result<Option<Grown>, TrainError> {
        let mut rows: Vec<(&Row, &Sample)> = Vec::new();
        for sample in samples.iter().filter(|sample| learnt(sample)) {
            rows.extend(sample.windows.iter().filter_map(|w| Some((&self.row(w)?.features, sample))));
        }
        let weights = weights(&rows);
        let bots = rows.iter().filter(|(_, sample)| sample.family.is_some()).count();
        if bots == 0 || bots == rows.len() {
            return Ok(None);
        }
        let records = Array2::from_shape_fn((rows.len(), self.features.len()), |(i, j)| {
            f64::from(rows[i].0[self.features[j]])
        });
        let targets = Array1::from_iter(rows.iter().map(|(_, sample)| sample.family.is_some()));
        let data = DatasetBase::new(records, targets).with_weights(Array1::from(weights));
        let (forest, gains) = self.fit(&rows, &data, recipe)?;
        let people = if self.sight == Sight::Distant { self.people(&rows) } else { None };
        Ok(Some(Grown { forest, gains, people }))
    }

    /// Grows an isolation forest on the people among the rows, what is missing taken for their median.
    fn isolate(&self, rows: &[(&Row, &Sample)], recipe: &Recipe) -> Result<Forest, TrainError> {
        let people: Vec<&Row> =
            rows.iter().filter(|(_, s)| s.family.is_none()).map(|(row, _)| *row).collect();
        let median = |&i: &usize| {
            let mut known: Vec<f32> = people.iter().map(|row| row[i]).filter(|x| x.is_finite()).collect();
            known.sort_by(f32::total_cmp);
            known.get(known.len() / 2).copied().unwrap_or(0.0)
        };
        let medians: Vec<f32> = self.features.iter().map(median).collect();
        let fill = |row: &&Row| {
            let values = self.features.iter().zip(&medians);
            values.map(|(&i, &median)| if row[i].is_finite() { row[i] } else { median }).collect()
        };
        let filled: Vec<Vec<f32>> = people.iter().map(fill).collect();
        let trees = recipe.trees.min(crate::isolation::TREES_MAX);
        let params = IsolationParams { trees, seed: recipe.seed, ..IsolationParams::default() };
        let grown = IsolationForest::fit(&filled, params)
            .ok_or_else(|| TrainError::Forest("an isolation forest needs two rows of people".into()))?;
        grown.flatten().map_err(|e| TrainError::Forest(e.to_string()))
    }

    fn fit(
        &self,
        rows: &[(&Row, &Sample)],
        data: &DatasetBase<Array2<f64>, Array1<bool>>,
        recipe: &Recipe,
    ) -> Result<(Forest, Vec<f64>), TrainError> {
        let sign = |&i: &usize| match self.sight {
            Sight::Signed => monotone(FEATURES[i].towards_bot),
            Sight::Distant => Monotone::Free,
        };
        let monotone = self.features.iter().map(sign).collect();
        let grown = match recipe.algorithm {
            Algorithm::RandomForest => ForestParams {
                trees: recipe.trees,
                depth_max: recipe.depth_max,
                leaf_rows_min: recipe.leaf_rows_min,
                features_per_split: 0,
                class_weights: (1.0, 1.0),
                missing: Missing::TowardsFalse,
                monotone,
                seed: recipe.seed,
            }
            .fit(data),
            Algorithm::GradientBoosting => BoostParams {
                trees: recipe.trees,
                depth_max: recipe.depth_max.min(BOOSTED_DEPTH_MAX),
                missing: Missing::TowardsFalse,
                monotone,
                ..BoostParams::default()
            }
            .fit(data),
            Algorithm::IsolationForest => return Ok((self.isolate(rows, recipe)?, Vec::new())),
            Algorithm::DecisionTree => {
                let depth_max = recipe.depth_max.min(READABLE_DEPTH_MAX);
                TreeParams { depth_max, ..TreeParams::default() }.fit(data)
            }
        };
        let grown: Ensemble = grown.map_err(|e| TrainError::Forest(e.to_string()))?;
        let forest = grown.flatten().map_err(|e| TrainError::Forest(e.to_string()))?;
        Ok((forest, grown.importances().to_vec()))
    }

    fn importances(&self, gains: &[f64]) -> Vec<(String, f64)> {
        let names = self.features.iter().map(|&i| FEATURES[i].name.to_string());
        let mut importances: Vec<(String, f64)> = names.zip(gains.iter().copied()).collect();
        importances.sort_by(|a, b| b.1.total_cmp(&a.1));
        importances
    }

    fn expert(&self, calibration: &Calibration, grown: &Grown) -> Expert {
        Expert {
            name: self.name.into(),
            channel: self.channel,
            span: self.span,
            features: self.features.iter().map(|&i| FEATURES[i].name.to_string()).collect(),
            leaves: grown.forest.leaves(),
            slope: calibration.slope,
            intercept: calibration.intercept,
            nats_max: self.nats_max,
            asks: self.asks,
            calibrated_on: calibration.windows,
            distance: grown.people.as_ref().and(calibration.distance),
        }
    }
}

fn monotone(sign: Sign) -> Monotone {
    match sign {
        Sign::Either => Monotone::Free,
        Sign::More => Monotone::Rising,
        Sign::Less => Monotone::Falling,
    }
}

/// Row weights under which both classes weigh the same, within people each source, within bots each
/// family: a thousand windows of one bot say less than a hundred of ten.
fn weights(rows: &[(&Row, &Sample)]) -> Vec<f32> {
    let group = |sample: &Sample| match &sample.family {
        Some(family) => (true, family.clone()),
        None => (false, sample.source.clone()),
    };
    let mut counts: BTreeMap<(bool, String), f32> = BTreeMap::new();
    rows.iter().for_each(|(_, sample)| *counts.entry(group(sample)).or_default() += 1.0);
    // Square roots: a small group counts for more than its size and less than a large one.
    let mut totals = [0.0f32; 2];
    counts.iter().for_each(|((bot, _), n)| totals[usize::from(*bot)] += n.sqrt());
    let weight = |sample: &Sample| {
        let key = group(sample);
        let n = counts.get(&key).copied().unwrap_or(1.0);
        n.sqrt() / n / totals[usize::from(key.0)] * rows.len() as f32
    };
    rows.iter().map(|(_, sample)| weight(sample)).collect()
}

struct Calibration {
    slope: f32,
    intercept: f32,
    distance: Option<Distance>,
    windows: (u32, u32),
}

impl Calibration {
    fn fit(
        plan: usize,
        samples: &[Sample],
        scores: &[Vec<[Option<Score>; PLANS]>],
        keep: &dyn Fn(&Sample) -> bool,
    ) -> Calibration {
        let key = |sample: &Sample| {
            (sample.family.is_some(), sample.family.clone().unwrap_or_else(|| sample.source.clone()))
        };
        let mut rows: Vec<(Score, bool, (bool, String))> = Vec::new();
        for (sample, scores) in samples.iter().zip(scores).filter(|(sample, _)| keep(sample)) {
            rows.extend(
                scores.iter().filter_map(|score| Some((score[plan]?, sample.family.is_some(), key(sample)))),
            );
        }
        let mut counts: BTreeMap<&(bool, String), f32> = BTreeMap::new();
        rows.iter().for_each(|(_, _, key)| *counts.entry(key).or_default() += 1.0);
        let platt = |of: &dyn Fn(&Score) -> Option<f32>| {
            let weighted: Vec<(f32, bool, f32)> = rows
                .iter()
                .filter_map(|(score, is_bot, key)| Some((of(score)?, *is_bot, 1.0 / counts[key].sqrt())))
                .collect();
            calibrate::platt(&weighted)
        };
        let (slope, mut intercept) = platt(&|score| Some(score.votes));
        let mut far: Vec<f32> =
            rows.iter().filter(|(_, is_bot, _)| *is_bot).filter_map(|(score, ..)| score.distance).collect();
        far.sort_by(f32::total_cmp);
        // People of a site never seen lie between those held out here and the bots. That room is theirs:
        // distance speaks for a bot only from where the nearest of the bots begin.
        let nearest = far.get((NEAREST_BOTS * far.len() as f32) as usize);
        let distance = nearest.map(|nearest| {
            let (slope, _) = platt(&|score| Some(1.0 / (1.0 + (-score.distance?).exp())));
            Distance { slope, intercept: -slope * nearest }
        });
        if distance.is_none() {
            // The same where the forest judges alone: the intercept may excuse, never accuse.
            intercept = intercept.min(0.0);
        }
        let bots = rows.iter().filter(|(_, is_bot, _)| *is_bot).count() as u32;
        Calibration { slope, intercept, distance, windows: (rows.len() as u32 - bots, bots) }
    }
}

fn held_out<'a>(
    samples: &[Sample],
    scores: &[Vec<[Option<Score>; PLANS]>],
    plans: &[Plan; PLANS],
    calibrations: &dyn Fn(&Sample) -> &'a [Calibration],
) -> Vec<HeldOut> {
    let says = |calibrations: &[Calibration], scores: &[Option<Score>; PLANS], span: Option<Span>| {
        let speaking = (0..PLANS).filter(|&p| {
            span.is_none_or(|s| plans[p].channel != ExpertChannel::Pointer || plans[p].span == s)
        });
        fuse(speaking.filter_map(|p| {
            let Calibration { slope, intercept, distance, .. } = calibrations[p];
            let Score { votes, distance: far } = scores[p]?;
            let votes = calibrate(votes, slope, intercept);
            let log_ratio = distance.zip(far).map_or(votes, |(d, far)| votes.min(d.log_ratio(far)));
            Some((plans[p].channel, log_ratio.clamp(-plans[p].nats_max, plans[p].nats_max)))
        }))
    };
    samples
        .iter()
        .zip(scores)
        .map(|(sample, scores)| HeldOut {
            source: sample.source.clone(),
            user: sample.user.clone(),
            family: sample.family.clone(),
            session: sample.session.clone(),
            anew: !sample.original,
            device: sample.device.clone(),
            modality: sample.modality,
            threshold: f32::MAX,
            windows: scores
                .iter()
                .zip(sample.windows.iter().zip(&sample.seconds))
                .map(|(scores, (window, &seconds))| {
                    let says = |span| says(calibrations(sample), scores, span);
                    HeldOutWindow {
                        short: says(Some(Span::Short)),
                        long: window.long.as_ref().and_then(|_| says(Some(Span::Long))),
                        fused: says(None),
                        seconds,
                    }
                })
                .collect(),
        })
        .collect()
}

fn sources(samples: &[Sample]) -> Vec<SourceUsed> {
    let mut sources: BTreeMap<&str, SourceUsed> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.original) {
        let source = sources.entry(&sample.source).or_insert_with(|| SourceUsed {
            name: sample.source.clone(),
            licence: sample.licence.clone(),
            human_sessions: 0,
            bot_sessions: 0,
        });
        match sample.family {
            Some(_) => source.bot_sessions += 1,
            None => source.human_sessions += 1,
        }
    }
    sources.into_values().collect()
}

/// The bots' long windows, as recorded, for sites to learn against; a family that was recorded for long
/// gives as many as the limit, evenly from all its sessions.
fn bank(recordings: &[Recording], samples: &[Sample]) -> Vec<BankSession> {
    let bots = recordings.iter().filter(|recording| recording.family.is_some()).cloned().collect();
    let real = dataset::join_input(bots).into_iter().map(|recording| {
        let rows = bank_rows(&dataset::windows(&recording.events)).copied().collect();
        BankSession { source: recording.source, family: recording.family.unwrap_or_default(), rows }
    });
    let simulated = samples.iter().filter(|sample| sample.source == SIMULATOR).filter_map(|sample| {
        let rows = bank_rows(&sample.windows).copied().collect();
        Some(BankSession { source: sample.source.clone(), family: sample.family.clone()?, rows })
    });
    let mut bank: Vec<BankSession> = real.chain(simulated).collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    bank.iter().for_each(|session| *counts.entry(session.family.clone()).or_default() += session.rows.len());
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for session in &mut bank {
        let (n, seen) = (counts[&session.family], seen.entry(session.family.clone()).or_default());
        session.rows.retain(|_| {
            *seen += 1;
            spread_evenly(*seen - 1, n, BANK_FAMILY_ROWS)
        });
    }
    bank.retain(|session| !session.rows.is_empty());
    bank
}

/// Whether the `i`-th of `n` is among `most` spread evenly over them.
pub(crate) fn spread_evenly(i: usize, n: usize, most: usize) -> bool {
    n <= most || (i + 1) * most / n != i * most / n
}

/// The rows of a session that hold enough to be learnt from.
pub(crate) fn bank_rows(windows: &[Window]) -> impl Iterator<Item = &Row> {
    windows
        .iter()
        .filter_map(|window| window.long.as_ref())
        .filter(|row| population::ASKS.are_met(row))
        .map(|row| &row.features)
}

/// What is usual among people, for operators to compare with.
pub(crate) fn usual<'a>(windows: impl Iterator<Item = &'a Window>) -> Vec<Usual> {
    let people: Vec<&Row> = windows.map(|window| &window.short.features).collect();
    let range = |(i, feature): (usize, &features::Feature)| {
        let mut values: Vec<f32> = people.iter().map(|row| row[i]).filter(|value| !value.is_nan()).collect();
        if values.len() < USUAL_MIN {
            return None;
        }
        values.sort_by(f32::total_cmp);
        let at = |q: f32| values[(q * (values.len() - 1) as f32) as usize];
        Some(Usual { feature: feature.name.to_string(), low: at(0.05), high: at(0.95) })
    };
    FEATURES.iter().enumerate().filter_map(range).collect()
}

/// What simulated visitors count under.
pub const SIMULATOR: &str = "simulator";
/// Two-second batches of each simulated visitor: a minute and a half.
const SIMULATED_BATCHES: usize = 45;
/// Recordings coarser than this are another stratum (remote desktops send ten moves a second).
const MOVE_INTERVAL_MS_MAX: f32 = 60.0;
const USUAL_MIN: usize = 40;
/// Share of bots' windows nearer to people than where distance begins to speak for a bot.
const NEAREST_BOTS: f32 = 0.01;
/// Boosted trees correct one another and are kept shallow.
const BOOSTED_DEPTH_MAX: usize = 4;
/// Thirty-two leaves fill a page.
const READABLE_DEPTH_MAX: usize = 5;
/// Rows of one family in the bank: enough for its variety, small enough to ship.
const BANK_FAMILY_ROWS: usize = 64;
