//! The site teaches: from its own shadow sessions, most of them of nobody knows whom, to a model of its
//! people.
//!
//! Whoever is judged here is judged by models that saw neither that person nor, in the bot bank, that
//! family. A session is set aside, whole, when it lies with the bots and apart from these people; the
//! threshold lies between what is left and the bank; the bound comes from whole people, and takes whoever
//! was set aside for one.
//! Must not know: files, progress bars, labels other than operators'.

use super::background::{self, NoBackground};
use super::forest::{ForestParams, Missing};
use super::{Progress, TrainError, kin, spread_evenly, usual};
use crate::artifact::{Artifact, Card, SourceUsed};
use crate::dataset::{self, Label, Recording};
use crate::detector::Detector;
use crate::drift::{self, Drift, Tally, Watch};
use crate::evaluate::clopper_pearson;
use crate::features::{FEATURES, Row};
use crate::forest::{Forest, Slots};
use crate::hand::{self, Hand};
use crate::population::{
    self, BankSession, DEVICES_MAX, Device, Kind, Learnt, MOVE_INTERVAL, Population, Shape, Stratum,
    StratumCard, joint_score, median,
};
use crate::sequential::{self, Threshold, cusum};
use crate::session::Window;
use linfa::dataset::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array1, Array2};
use std::collections::{BTreeMap, BTreeSet};

/// How a site's sessions become a model; the same sessions and recipe give the same bytes.
#[derive(Clone, Debug)]
pub struct LearnRecipe {
    pub seed: u64,
    pub trees: usize,
    /// Share of people that may reach the threshold of evidence, in any of their sessions.
    pub false_alarm: f32,
    /// Learn too what an account's owner is told from others by.
    pub owners: bool,
}

impl Default for LearnRecipe {
    fn default() -> LearnRecipe {
        LearnRecipe { seed: 1, trees: 64, false_alarm: 0.01, owners: true }
    }
}

/// A session watched in shadow.
#[derive(Clone, Debug)]
pub struct ShadowSession {
    pub session: String,
    pub user: String,
    pub device: Device,
    /// An operator said that this is a person: it is never set aside.
    pub vouched: bool,
    pub windows: Vec<Window>,
    /// Blocks of mouse movement, by which people are told apart; may be left empty.
    pub blocks: Vec<Hand>,
}

/// Sessions left out because of something other than how they move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The browser said that a program drives it.
    pub automation: u32,
    /// Movement seen before.
    pub replay: u32,
    /// Page loads that no gesture caused.
    pub unprompted: u32,
    /// Called a bot by an operator, or by the index.
    pub labelled: u32,
    /// Too little movement for a single window.
    pub short: u32,
}

/// What learning came to.
#[derive(Clone, Debug)]
pub struct Taught {
    pub artifact: Artifact,
    /// Kinds of input that were seen and not learnt, for want of sessions: kind, sessions, windows.
    pub untaught: Vec<(Kind, u32, u32)>,
    /// Kinds of input that stay unknown because their own people do not carry the bound, while those of
    /// another kind do.
    pub unbounded: Vec<(Kind, Threshold)>,
    /// Sessions set aside, by name: until an operator says which are bots, the bound takes them for people.
    pub set_aside: Vec<String>,
    /// Why the model cannot tell an account's owner from others.
    pub no_background: Option<NoBackground>,
}

/// Recordings as shadow sessions: those that other evidence calls bots left out, short ones of one person
/// joined.
pub fn shadow_sessions(recordings: &[Recording]) -> (Vec<ShadowSession>, LeftOut) {
    let mut left = LeftOut::default();
    let mut fit = Vec::new();
    for recording in recordings {
        let marks = &recording.marks;
        let count = if marks.operator == Label::Human {
            None
        } else if recording.label == Label::Bot || marks.operator == Label::Bot {
            Some(&mut left.labelled)
        } else if marks.automation {
            Some(&mut left.automation)
        } else if marks.replay.is_some_and(|share| share >= REPLAY_SHARE) {
            Some(&mut left.replay)
        } else if marks.navigations_without_input.is_some_and(|pages| pages >= UNPROMPTED_PAGES) {
            Some(&mut left.unprompted)
        } else {
            None
        };
        match count {
            Some(count) => *count += 1,
            None => fit.push(recording.clone()),
        }
    }
    let shadow = |recording: Recording| ShadowSession {
        device: device_of(&recording),
        vouched: recording.label == Label::Human || recording.marks.operator == Label::Human,
        windows: dataset::windows(&recording.events),
        blocks: hand::blocks(&recording.events),
        session: recording.session,
        user: recording.user,
    };
    let mut sessions: Vec<ShadowSession> = dataset::join_input(fit).into_iter().map(shadow).collect();
    let before = sessions.len();
    sessions.retain(|session| !session.windows.is_empty());
    left.short = (before - sessions.len()) as u32;
    (sessions, left)
}

/// The class of device a recording was made on: as the browser told, else as the index does.
pub(crate) fn device_of(recording: &Recording) -> Device {
    match Device::of(recording.environment) {
        Device(0) => Device::named(&recording.marks.device),
        told => told,
    }
}

/// Learns a site. `base` gives the bot bank and the experts for what the population does not look at.
pub fn learn(
    sessions: &[ShadowSession],
    base: &Artifact,
    recipe: &LearnRecipe,
    progress: &mut dyn FnMut(Progress),
) -> Result<Taught, TrainError> {
    let kinds: BTreeSet<Kind> =
        sessions.iter().flat_map(|s| s.windows.iter().filter_map(Kind::of_window)).collect();
    let steps = kinds.len() + 1;
    let (mut lessons, mut untaught) = (Vec::new(), Vec::new());
    let mut nats: Vec<Vec<Option<f32>>> =
        sessions.iter().map(|session| vec![None; session.windows.len()]).collect();
    let mut scores = nats.clone();
    let mut aside = BTreeSet::new();
    for (step, &kind) in kinds.iter().enumerate() {
        progress(Progress { step: step + 1, steps, what: format!("learning {}", kind.name()) });
        let people = People::gather(sessions, kind);
        let taught = match people.suffice().then(|| people.teach(&base.bank, recipe)) {
            Some(Ok(taught)) => taught,
            // A fold can be too small where the whole is not; other kinds may do.
            None | Some(Err(TrainError::TooFew { .. })) => {
                let windows = people.units.iter().map(|unit| unit.rows.len()).sum::<usize>();
                untaught.push((kind, people.units.len() as u32, windows as u32));
                continue;
            }
            Some(Err(error)) => return Err(error),
        };
        for (unit, fate) in people.units.iter().zip(taught.fates) {
            match fate {
                None => drop(aside.insert(unit.index)),
                Some(judged) => unit.at.iter().zip(judged).for_each(|(at, score)| {
                    nats[unit.index][*at] = Some(taught.stratum.nats(score));
                    scores[unit.index][*at] = Some(score);
                }),
            }
        }
        let who = people.units.iter().map(|unit| unit.session.user.as_str());
        lessons.push((taught.stratum, who.collect::<BTreeSet<&str>>()));
    }
    if lessons.is_empty() {
        let (sessions, windows) = untaught.iter().fold((0, 0), |sum, (_, s, w)| (sum.0 + s, sum.1 + w));
        return Err(TrainError::Untaught { sessions, windows });
    }
    progress(Progress { step: steps, steps, what: "setting the threshold on whole people".into() });
    let detector =
        Detector::new(Artifact { population: Population::default(), ..base.clone() }, String::new());
    let kept = || (0..sessions.len()).filter(|i| !aside.contains(i));
    let highest = |nats: &[Vec<Option<f32>>], i: usize| {
        // Whoever was set aside for a high score may be a person: leaving them out would flatter the rest.
        if aside.contains(&i) {
            return f32::INFINITY;
        }
        let windows = sessions[i].windows.iter().zip(&nats[i]);
        let ledger = windows.scan(0.0, |evidence, (window, says)| {
            // Pointer movement that nobody taught is unknown, and then no expert speaks.
            let known = says.is_some() || Kind::of_window(window).is_none();
            let ratio = known.then(|| detector.beside(window, *says)).flatten();
            *evidence = ratio.map_or(*evidence, |ratio| cusum(*evidence, ratio));
            Some(*evidence)
        });
        ledger.fold(0.0, f32::max)
    };
    // Each kind of input by its own people, in all that they did: those of another say nothing of it.
    let bound = |nats: &[Vec<Option<f32>>], who: &BTreeSet<&str>| {
        let theirs = (0..sessions.len()).filter(|&i| who.contains(sessions[i].user.as_str()));
        let maxima = theirs.map(|i| (sessions[i].user.as_str(), highest(nats, i)));
        sequential::threshold_of_people(maxima, recipe.false_alarm)
    };
    let carries = |threshold: &Threshold| threshold.false_alarm_max <= recipe.false_alarm;
    let bounds: Vec<Threshold> = lessons.iter().map(|(_, who)| bound(&nats, who)).collect();
    let mut unbounded = Vec::new();
    if bounds.iter().any(carries) {
        let mut bounds = bounds.into_iter();
        lessons.retain(|(stratum, _)| match bounds.next() {
            Some(own) if !carries(&own) => {
                unbounded.push((stratum.card.kind, own));
                false
            }
            _ => true,
        });
        for (session, nats) in sessions.iter().zip(&mut nats) {
            let unknown =
                |window| unbounded.iter().any(|(dropped, _)| Kind::of_window(window) == Some(*dropped));
            let windows = session.windows.iter().zip(nats);
            windows.filter(|(window, _)| unknown(window)).for_each(|(_, nats)| *nats = None);
        }
    }
    let bounds: Vec<Threshold> = lessons.iter().map(|(_, who)| bound(&nats, who)).collect();
    // One threshold for all: the highest keeps each kind's bound, and the weakest of those is promised.
    let nats_needed = bounds.iter().map(|bound| bound.nats).fold(sequential::THRESHOLD_NATS_MIN, f32::max);
    let weakest = bounds.into_iter().max_by(|a, b| a.false_alarm_max.total_cmp(&b.false_alarm_max));
    let weakest = weakest.unwrap_or_else(|| sequential::threshold(Vec::new(), recipe.false_alarm));
    let threshold = Threshold { nats: nats_needed, ..weakest };
    let human_sessions = kept().filter(|&i| nats[i].iter().any(Option::is_some)).count() as u32;
    let population = Population { strata: lessons.into_iter().map(|(stratum, _)| stratum).collect() };
    let source =
        SourceUsed { name: SITE.into(), licence: "the site's own".into(), human_sessions, bot_sessions: 0 };
    let earlier = base.card.sources.iter().filter(|source| source.name != SITE);
    let card = Card {
        name: SITE.into(),
        program: format!("gaitway {}", env!("CARGO_PKG_VERSION")),
        // Only a bound that the people carry makes a model fit to act.
        calibrated: carries(&threshold),
        threshold,
        sources: earlier.cloned().chain([source]).collect(),
        usual: usual(kept().flat_map(|i| &sessions[i].windows)),
        drift: Some(learnt(&population, kept().map(|i| (&sessions[i], &scores[i])), recipe.seed)),
        ..base.card.clone()
    };
    let owners = background::of_site(sessions, &aside, recipe);
    let no_background = owners.as_ref().err().copied();
    let artifact = Artifact { card, population, owners: owners.ok(), ..base.clone() };
    // What was decoded and what was just learnt must read alike.
    let artifact = Artifact::decode(&artifact.encode()).map_err(|e| TrainError::Forest(e.to_string()))?;
    let set_aside = aside.iter().map(|&i| sessions[i].session.clone()).collect();
    Ok(Taught { artifact, untaught, unbounded, set_aside, no_background })
}

/// How far the people of some sessions have moved from those who taught a model; `None` if it kept no counts.
pub fn drift<'a>(model: &Artifact, sessions: impl IntoIterator<Item = &'a ShadowSession>) -> Option<Drift> {
    let mut watch = Watch::new(model)?;
    for session in sessions {
        let mut tally = Tally::default();
        for window in session.windows.iter().filter(|window| Kind::of_window(window).is_some()) {
            let found = model.population.find(window, session.device).ok();
            tally.add(found.map(|(at, stratum, row)| (at, stratum.card.tenth(stratum.score(&row.features)))));
        }
        watch.close(&tally, true);
    }
    Some(watch.drift())
}

/// What drift is measured on: the first windows of every session kept, by what the models that did not see the
/// person said of them.
fn learnt<'a>(
    population: &Population,
    sessions: impl Iterator<Item = (&'a ShadowSession, &'a Vec<Option<f32>>)>,
    seed: u64,
) -> drift::Learnt {
    let mut people: BTreeMap<&str, Vec<Tally>> = BTreeMap::new();
    for (session, scores) in sessions {
        let mut tally = Tally::default();
        for (window, score) in session.windows.iter().zip(scores) {
            let found = population.find(window, session.device).ok();
            match (found, score) {
                (Some((at, stratum, _)), Some(score)) => tally.add(Some((at, stratum.card.tenth(*score)))),
                _ if Kind::of_window(window).is_some() => tally.add(None),
                _ => {}
            }
        }
        people.entry(&session.user).or_default().push(tally);
    }
    let people: Vec<Vec<Tally>> = people.into_values().collect();
    drift::Learnt::new(&people, population.strata.len(), seed)
}

/// The bank without families (and their kin) and sources, for evaluations.
pub fn bank_without(bank: &[BankSession], families: &BTreeSet<String>, source: &str) -> Vec<BankSession> {
    let relatives: BTreeSet<&str> = families.iter().map(|family| kin(family)).collect();
    let stranger =
        |session: &&BankSession| session.source != source && !relatives.contains(kin(&session.family));
    bank.iter().filter(stranger).cloned().collect()
}

/// Sessions of one kind of input.
struct People<'a> {
    units: Vec<Unit<'a>>,
    folds: usize,
    /// Features that most windows have.
    columns: Vec<usize>,
}

struct Unit<'a> {
    /// Of the session, and of the windows of this kind in it.
    index: usize,
    at: Vec<usize>,
    rows: Vec<&'a Row>,
    /// Which rows may be fitted on: as many a person as the limit.
    fitted: Vec<bool>,
    session: &'a ShadowSession,
    fold: usize,
}

struct TaughtStratum {
    stratum: Stratum,
    /// Of each unit, its windows' scores while it was held out; `None` for those set aside.
    fates: Vec<Option<Vec<f32>>>,
}

impl<'a> People<'a> {
    fn gather(sessions: &'a [ShadowSession], of: Kind) -> People<'a> {
        let mut units: Vec<Unit> = Vec::new();
        for (index, session) in sessions.iter().enumerate() {
            let at: Vec<usize> = (0..session.windows.len())
                .filter(|&i| Kind::of_window(&session.windows[i]) == Some(of))
                .collect();
            let rows: Vec<&Row> = at
                .iter()
                .filter_map(|&i| session.windows[i].long.as_ref().map(|row| &row.features))
                .collect();
            if !rows.is_empty() {
                units.push(Unit { index, at, fitted: vec![true; rows.len()], rows, session, fold: 0 });
            }
        }
        // A class of device with too few sessions is not learnt, and its windows teach nothing.
        let mut devices: BTreeMap<Device, usize> = BTreeMap::new();
        units.iter().for_each(|unit| *devices.entry(unit.session.device).or_default() += 1);
        units.retain(|unit| devices[&unit.session.device] >= SESSIONS_MIN);
        let mut windows: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        units.iter().for_each(|unit| windows.entry(&unit.session.user).or_default().0 += unit.rows.len());
        let most = (WINDOWS_MAX / windows.len().max(1)).clamp(USER_WINDOWS_MAX.0, USER_WINDOWS_MAX.1);
        for unit in &mut units {
            let Some((all, seen)) = windows.get_mut(unit.session.user.as_str()) else { continue };
            unit.fitted.iter_mut().for_each(|fitted| {
                *fitted = spread_evenly(*seen, *all, most);
                *seen += 1;
            });
        }
        // Folds by person. Where nearly all comes from a few names, leaving one out leaves no people to
        // compare with, and hidden bots with names of their own would pass for them: folds go by session.
        let by_user = effective(windows.values().map(|(all, _)| *all.min(&most))) >= USERS_MIN as f32;
        let key = |unit: &Unit<'a>| if by_user { &unit.session.user } else { &unit.session.session };
        let keys: BTreeMap<&String, usize> = units
            .iter()
            .map(key)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .enumerate()
            .map(|(i, k)| (k, i))
            .collect();
        let folds = keys.len().clamp(1, FOLDS);
        let places: Vec<usize> = units.iter().map(|unit| keys[key(unit)] % folds).collect();
        units.iter_mut().zip(places).for_each(|(unit, fold)| unit.fold = fold);
        let rows: Vec<&Row> = units.iter().flat_map(|unit| unit.rows.iter().copied()).collect();
        let common = |&j: &usize| 2 * rows.iter().filter(|row| !row[j].is_nan()).count() >= rows.len();
        let columns = population::columns().into_iter().filter(common).collect();
        People { units, folds, columns }
    }

    fn suffice(&self) -> bool {
        let windows: usize = self.units.iter().map(|unit| unit.rows.len()).sum();
        self.units.len() >= SESSIONS_MIN && windows >= WINDOWS_MIN && !self.columns.is_empty()
    }

    fn teach(&self, bank: &[BankSession], recipe: &LearnRecipe) -> Result<TaughtStratum, TrainError> {
        let mut kept = vec![true; self.units.len()];
        let mut found = 1.0;
        for _ in 0..CLEANING_ROUNDS {
            let scores = self.cross_scores(bank, &kept, TRIM, recipe)?;
            let cut = self.cut(&scores);
            for ((kept, unit), scores) in kept.iter_mut().zip(&self.units).zip(&scores.people) {
                *kept = unit.session.vouched || !is_bot(scores, cut);
            }
            let caught = scores.bank.iter().filter(|scores| is_bot(scores, cut)).count();
            found = clopper_pearson(caught, scores.bank.len()).0 as f32;
        }
        let scores = self.cross_scores(bank, &kept, 0.0, recipe)?;
        let model = self.fit(&|_, i| kept[i], bank, &|_| true, 0.0, recipe)?;
        let of_people = || self.units.iter().zip(&scores.people).zip(&kept).filter(|(_, kept)| **kept);
        let fitted = |(unit, scores): (&Unit, &Vec<Score>)| -> Vec<f32> {
            scores
                .iter()
                .zip(&unit.fitted)
                .filter(|(_, fitted)| **fitted)
                .map(|(score, _)| score.joint)
                .collect()
        };
        let mut own: Vec<f32> = of_people().flat_map(|((unit, scores), _)| fitted((unit, scores))).collect();
        own.sort_by(f32::total_cmp);
        let mut each: BTreeMap<&str, usize> = BTreeMap::new();
        for ((unit, _), _) in of_people() {
            *each.entry(&unit.session.user).or_default() += weight(unit);
        }
        let bots = scores.bank.iter().flatten().map(|score| score.joint).collect();
        let threshold = threshold(&own, bots, effective(each.into_values()));
        let sessions = self.units.len();
        let aside = kept.iter().filter(|kept| !**kept).count();
        let (low, high) = clopper_pearson(aside, sessions);
        let share = aside as f32 / sessions as f32;
        let most = (high as f32 / found.max(0.01)).min(1.0);
        let people: BTreeSet<&str> = of_people().map(|((unit, _), _)| unit.session.user.as_str()).collect();
        let card = StratumCard {
            kind: self.kind(),
            devices: self.devices(),
            interval_ms: self.intervals(&kept),
            features: self.columns.iter().map(|&j| FEATURES[j].name.to_string()).collect(),
            threshold,
            nats: NATS,
            deciles: (1..10).map(|tenth| own[tenth * (own.len() - 1) / 10]).collect(),
            learnt: Learnt {
                people: people.len() as u32,
                sessions: (sessions - aside) as u32,
                windows: of_people().map(|((unit, _), _)| unit.rows.len() as u32).sum(),
                set_aside: aside as u32,
                bots: (share, low as f32, most),
                bots_left_max: (most - share).max(0.0),
            },
        };
        let stratum = Stratum { card, shape: model.shape, forest: model.forest };
        let joint = |scores: &Vec<Score>| scores.iter().map(|score| score.joint).collect();
        let fates =
            scores.people.iter().zip(&kept).map(|(scores, kept)| kept.then(|| joint(scores))).collect();
        Ok(TaughtStratum { stratum, fates })
    }

    /// Scores of all units and of the bank's sessions, each by a model that saw neither the person nor
    /// the family, and learnt from the kept units only.
    fn cross_scores(
        &self,
        bank: &[BankSession],
        kept: &[bool],
        trim: f32,
        recipe: &LearnRecipe,
    ) -> Result<Scores, TrainError> {
        let families: BTreeSet<&str> = bank.iter().map(|session| kin(&session.family)).collect();
        let place = |session: &BankSession| {
            families.iter().position(|family| *family == kin(&session.family)).unwrap_or(0) % self.folds
        };
        let mut scores =
            Scores { people: vec![Vec::new(); self.units.len()], bank: vec![Vec::new(); bank.len()] };
        for fold in 0..self.folds {
            let taken = |unit: &Unit, i: usize| unit.fold != fold && kept[i];
            let model = self.fit(&taken, bank, &|session| place(session) != fold, trim, recipe)?;
            for (unit, scores) in
                self.units.iter().zip(&mut scores.people).filter(|(unit, _)| unit.fold == fold)
            {
                *scores = unit.rows.iter().map(|row| model.score(row)).collect();
            }
            for (session, scores) in bank.iter().zip(&mut scores.bank).filter(|(s, _)| place(s) == fold) {
                *scores = session.rows.iter().map(|row| model.score(row)).collect();
            }
        }
        Ok(scores)
    }

    fn fit(
        &self,
        taken: &dyn Fn(&Unit, usize) -> bool,
        bank: &[BankSession],
        lent: &dyn Fn(&BankSession) -> bool,
        trim: f32,
        recipe: &LearnRecipe,
    ) -> Result<Model, TrainError> {
        let values = |row: &Row| -> Vec<f32> { self.columns.iter().map(|&j| row[j]).collect() };
        let (mut rows, mut whose) = (Vec::new(), Vec::new());
        for (_, unit) in self.units.iter().enumerate().filter(|(i, unit)| taken(unit, *i)) {
            for (row, _) in unit.rows.iter().zip(&unit.fitted).filter(|(_, fitted)| **fitted) {
                rows.push(values(row));
                whose.push(format!("people {}", unit.session.user));
            }
        }
        let few = || TrainError::TooFew { people: self.units.len(), families: bank.len() };
        let (shape, near) = Shape::fit(&rows, trim).ok_or_else(few)?;
        let mut near = near.into_iter();
        let mut near_too = near.clone();
        rows.retain(|_| near.next().unwrap_or(false));
        whose.retain(|_| near_too.next().unwrap_or(false));
        let people = rows.len();
        for session in bank.iter().filter(|session| lent(session)) {
            rows.extend(session.rows.iter().map(values));
            whose.extend(session.rows.iter().map(|_| format!("bots {}", session.family)));
        }
        let weights = weights(&whose, people);
        let records = Array2::from_shape_fn((rows.len(), self.columns.len()), |(i, j)| f64::from(rows[i][j]));
        let data = DatasetBase::new(records, Array1::from_shape_fn(rows.len(), |i| i >= people));
        let params = ForestParams {
            trees: recipe.trees,
            depth_max: DEPTH_MAX,
            leaf_rows_min: LEAF_ROWS_MIN,
            missing: Missing::TowardsFalse,
            seed: recipe.seed,
            ..ForestParams::default()
        };
        let failed = |e: String| TrainError::Forest(e);
        let forest =
            params.fit(&data.with_weights(Array1::from(weights))).map_err(|e| failed(e.to_string()))?;
        let forest = forest.flatten().map_err(|e| failed(e.to_string()))?;
        Ok(Model { columns: self.columns.clone(), shape, forest })
    }

    /// Where people end and bots begin, on the scale of a session's middle score: in the widest gap above
    /// the people, if there is one worth the name, and anyhow far out. People's spread is read off their
    /// lower half, where no bot is.
    fn cut(&self, scores: &Scores) -> f32 {
        let weighed =
            |(scores, unit): (&Vec<Score>, &Unit)| (middle(scores, |score| score.joint), weight(unit));
        let mut middles: Vec<(f32, usize)> = scores.people.iter().zip(&self.units).map(weighed).collect();
        middles.sort_by(|a, b| a.0.total_cmp(&b.0));
        let whole: usize = middles.iter().map(|(_, n)| n).sum();
        let mut below = 0;
        let shares: Vec<f32> = middles
            .iter()
            .map(|(_, n)| {
                below += n;
                below as f32 / whole as f32
            })
            .collect();
        let at = |share: f32| middles[shares.iter().position(|s| *s >= share).unwrap_or(0)].0;
        let (middle, spread) = (at(0.5), (at(0.5) - at(0.16)).max(SPREAD_MIN));
        let mut cut = middle + FAR_OUT * spread;
        let mut widest = GAP_MIN * spread;
        for (pair, share) in middles.windows(2).zip(&shares) {
            let gap = pair[1].0 - pair[0].0;
            let above = pair[0].0 >= middle + GAP_FROM * spread && *share >= 1.0 - BOTS_SHARE_MAX;
            if above && gap > widest && pair[0].0 + 0.5 * gap < cut {
                (widest, cut) = (gap, pair[0].0 + 0.5 * gap);
            }
        }
        // Half of the way to where the bank's bots begin, bots begin to be likelier than people.
        let mut bots: Vec<f32> = scores
            .bank
            .iter()
            .map(|scores| self::middle(scores, |score| score.joint))
            .filter(|m| m.is_finite())
            .collect();
        bots.sort_by(f32::total_cmp);
        let near = bots.get(bots.len() / 4).map_or(cut, |bots| 0.5 * (middle + bots));
        cut.min(near).max(CUT_MIN)
    }

    fn kind(&self) -> Kind {
        let unit = &self.units[0];
        Kind::of_window(&unit.session.windows[unit.at[0]]).unwrap_or(Kind { touch: false, coarse: false })
    }

    fn devices(&self) -> Vec<Device> {
        let devices: BTreeSet<Device> = self.units.iter().map(|unit| unit.session.device).collect();
        // Where nobody told, any device counts; where some did, not telling is a class like others.
        if devices.iter().all(|device| *device == Device::default()) {
            Vec::new()
        } else {
            devices.into_iter().take(DEVICES_MAX).collect()
        }
    }

    /// An octave around the event rates seen.
    fn intervals(&self, kept: &[bool]) -> (f32, f32) {
        let rows = self.units.iter().zip(kept).filter(|(_, kept)| **kept).flat_map(|(unit, _)| &unit.rows);
        let mut intervals: Vec<f32> = rows.map(|row| row[MOVE_INTERVAL].exp()).collect();
        intervals.sort_by(f32::total_cmp);
        let last = intervals.len() - 1;
        (intervals[last / 50] / OCTAVE, intervals[last - last / 50] * OCTAVE)
    }
}

/// Windows of a unit that are fitted on.
fn weight(unit: &Unit) -> usize {
    unit.fitted.iter().filter(|fitted| **fitted).count()
}

/// How many people the windows come from, those with few of them counted as the less: (Σn)² / Σn².
fn effective(windows: impl Iterator<Item = usize>) -> f32 {
    let (sum, squares) =
        windows.map(|n| n as f32).fold((0.0, 0.0), |(sum, squares), n| (sum + n, squares + n * n));
    if squares > 0.0 { sum * sum / squares } else { 0.0 }
}

struct Scores {
    people: Vec<Vec<Score>>,
    bank: Vec<Vec<Score>>,
}

/// What a model says of one window: of both views, and of the forest alone.
#[derive(Clone, Copy)]
struct Score {
    joint: f32,
    votes: f32,
}

/// A session lies with the bots: apart from the people, and the forest does not take it for one of them.
/// Distance alone is no guilt; a person may be unlike all others.
fn is_bot(scores: &[Score], cut: f32) -> bool {
    middle(scores, |score| score.joint) > cut && middle(scores, |score| score.votes) > VOTES_MIN
}

fn middle(scores: &[Score], of: impl Fn(&Score) -> f32) -> f32 {
    median(&mut scores.iter().map(of).collect::<Vec<_>>())
}

struct Model {
    columns: Vec<usize>,
    shape: Shape,
    forest: Forest,
}

impl Model {
    fn score(&self, row: &Row) -> Score {
        let values: Vec<f32> = self.columns.iter().map(|&j| row[j]).collect();
        let votes = self.forest.predict(&Slots::new(values.iter().copied()));
        Score { joint: joint_score(self.shape.distance(&values), votes), votes }
    }
}

/// People and bots weigh the same; within them, who has many rows weighs more than others but not by as
/// much. The first `people` rows are people.
fn weights(whose: &[String], people: usize) -> Vec<f32> {
    let mut counts: BTreeMap<&str, f32> = BTreeMap::new();
    whose.iter().for_each(|who| *counts.entry(who).or_default() += 1.0);
    let raw: Vec<f32> = whose.iter().map(|who| 1.0 / counts[who.as_str()].sqrt()).collect();
    let (of_people, of_bots) = raw.split_at(people);
    let totals = [of_people.iter().sum::<f32>(), of_bots.iter().sum::<f32>().max(1e-6)];
    let half = 0.5 * whose.len() as f32;
    raw.iter().enumerate().map(|(i, weight)| half * weight / totals[usize::from(i >= people)]).collect()
}

/// Above all but a fiftieth of the people, and from there some of the way to the bank's bots: the next
/// people differ from these by more than these among themselves, and the more so the fewer these are.
/// `own` is sorted; `people` is their effective number.
fn threshold(own: &[f32], mut bank: Vec<f32>, people: f32) -> f32 {
    let rank = ((WINDOW_FALSE_ALARM * (own.len() as f32 + 1.0)) as usize).clamp(1, own.len());
    let highest = own[own.len() - rank];
    bank.sort_by(f32::total_cmp);
    let bots = bank.get(bank.len() / 10).copied().unwrap_or(highest);
    let towards = (TOWARDS_BOTS.1 / people.sqrt()).clamp(TOWARDS_BOTS.0, TOWARDS_BOTS.1);
    highest + towards * (bots - highest).max(0.0)
}

/// What a site counts under among a card's sources.
pub const SITE: &str = "this site";
const REPLAY_SHARE: f32 = 0.5;
/// Page loads in a row.
const UNPROMPTED_PAGES: u64 = 8;
/// Fewer sessions or windows of a kind are no people yet.
pub const SESSIONS_MIN: usize = 6;
pub const WINDOWS_MIN: usize = 40;
/// From so many people on, names are people and folds go by them.
pub(crate) const USERS_MIN: usize = 6;
/// Windows to fit on in all, and the least and most of them that one person may give: between a quarter
/// of an hour and three hours of active input. Nobody is the site.
const WINDOWS_MAX: usize = 20_000;
const USER_WINDOWS_MAX: (usize, usize) = (100, 1000);
const FOLDS: usize = 8;
const CLEANING_ROUNDS: usize = 2;
/// Share of windows left out of each fit while cleaning: what may hide, and as much again.
const TRIM: f32 = 0.25;
/// Spreads above the middle beyond which no person is expected, and between which a gap counts.
const FAR_OUT: f32 = 6.0;
const GAP_FROM: f32 = 2.5;
const GAP_MIN: f32 = 1.0;
const SPREAD_MIN: f32 = 0.2;
/// Never this near the people: at 0.75 a session lies as far out as one in hundreds, whoever taught.
const CUT_MIN: f32 = 0.75;
/// Share of votes for "bot" below which a session far from all others is a person unlike the others.
const VOTES_MIN: f32 = 0.25;
/// Cleaning looks for bots among at most this share of the windows.
const BOTS_SHARE_MAX: f32 = 0.25;
const WINDOW_FALSE_ALARM: f32 = 0.02;
/// Of the way from people to bots: what many people need, and one alone. Chosen on three to twenty of
/// SapiMouse's people, so that on average at most one in fifty windows of the others lies above, however
/// many taught.
const TOWARDS_BOTS: (f32, f32) = (0.1, 0.45);
/// Nats for a score of one above the threshold.
const NATS: f32 = 2.0;
const OCTAVE: f32 = 2.0;
const DEPTH_MAX: usize = 9;
const LEAF_ROWS_MIN: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::DriftState;
    use crate::sim::{BotKind, Visitor};
    use crate::train::bank_rows;

    /// Three minutes of a visitor.
    fn windows(mut visitor: Visitor) -> Vec<Window> {
        let events: Vec<_> = (0..90).flat_map(|_| visitor.next_batch(2.0).events).collect();
        dataset::windows(&events)
    }

    fn session(name: String, visitor: Visitor) -> ShadowSession {
        let windows = windows(visitor);
        ShadowSession {
            session: name.clone(),
            user: name,
            device: Device::default(),
            vouched: false,
            windows,
            blocks: Vec::new(),
        }
    }

    fn people(n: u64) -> Vec<ShadowSession> {
        (0..n).map(|i| session(format!("person {i:02}"), Visitor::person(500 + i))).collect()
    }

    fn base() -> Artifact {
        let mut base = Artifact::decode(crate::DEFAULT_MODEL).unwrap();
        base.bank = [BotKind::LinearEven, BotKind::Bezier, BotKind::JitteredLinear]
            .into_iter()
            .flat_map(|kind| (0..4).map(move |i| (kind, i)))
            .map(|(kind, i)| BankSession {
                source: "bank".into(),
                family: kind.name().into(),
                rows: bank_rows(&windows(Visitor::bot(kind, 900 + i))).copied().collect(),
            })
            .collect();
        base
    }

    fn recipe() -> LearnRecipe {
        LearnRecipe { trees: 12, false_alarm: 0.05, ..LearnRecipe::default() }
    }

    fn called(detector: &Detector, session: &ShadowSession) -> f32 {
        let says: Vec<f32> = session
            .windows
            .iter()
            .filter_map(|window| detector.log_ratio_on(window, session.device))
            .collect();
        says.iter().filter(|says| **says > 0.0).count() as f32 / says.len().max(1) as f32
    }

    #[test]
    fn a_site_taught_by_its_people_and_some_hidden_bots_still_tells_them_apart() {
        let mut sessions = people(24);
        let bot = |i: u64| session(format!("hidden {i}"), Visitor::bot(BotKind::JitteredLinear, 40 + i));
        sessions.extend([bot(1), bot(2)]);
        let taught = learn(&sessions, &base(), &recipe(), &mut |_| ()).unwrap();
        let learnt = taught.artifact.population.strata[0].card.learnt;
        assert_eq!((learnt.set_aside, learnt.sessions), (2, 24), "{learnt:?}");
        assert!(learnt.bots.1 > 0.0 && learnt.bots.0 <= learnt.bots.2);
        assert_eq!(taught.set_aside, ["hidden 1", "hidden 2"]);
        let card = &taught.artifact.card;
        assert_eq!((card.threshold.rank, card.threshold.people, card.calibrated), (3, 26, false));
        let confirmed = learn(&sessions[..24], &base(), &recipe(), &mut |_| ()).unwrap().artifact.card;
        assert_eq!(
            (confirmed.threshold.rank, confirmed.threshold.people, confirmed.calibrated),
            (1, 24, true)
        );
        let again = learn(&sessions, &base(), &recipe(), &mut |_| ()).unwrap();
        assert_eq!(
            taught.artifact.encode(),
            again.artifact.encode(),
            "the same sessions give the same bytes"
        );
        let detector = Detector::load(&taught.artifact.encode()).unwrap();
        let stranger = session("stranger".into(), Visitor::person(77));
        let unseen = session("bot".into(), Visitor::bot(BotKind::JitteredLinear, 99));
        assert!(called(&detector, &stranger) < 0.1 && called(&detector, &unseen) > 0.9);
    }

    #[test]
    fn hidden_bots_with_names_of_their_own_do_not_pass_for_people_where_those_have_few() {
        let mut sessions = people(24);
        sessions.iter_mut().enumerate().for_each(|(i, session)| session.user = format!("user {}", i % 2));
        let bot = |i: u64| session(format!("hidden {i}"), Visitor::bot(BotKind::JitteredLinear, 40 + i));
        sessions.extend((0..6).map(bot));
        let people = People::gather(&sessions, Kind { touch: false, coarse: false });
        let mut theirs = people.units.iter().filter(|unit| unit.session.user == "user 0");
        let first = theirs.next().map(|unit| unit.fold);
        assert!(theirs.any(|unit| Some(unit.fold) != first), "a name is not left out whole");
    }

    #[test]
    fn a_few_people_leave_more_room_for_the_next_than_many_do() {
        assert!((effective([10, 10, 10, 10].into_iter()) - 4.0).abs() < 1e-5);
        assert!(effective([1000, 1, 1, 1, 1, 1].into_iter()) < 1.1, "five passers-by are no people");
        let (own, bank): (Vec<f32>, Vec<f32>) = (vec![0.0; 200], vec![4.0; 50]);
        let at = |people| threshold(&own, bank.clone(), people);
        assert_eq!((at(1.0), at(4.0), at(100.0)), (1.8, 0.9, 0.4));
    }

    #[test]
    fn people_like_the_teachers_have_not_drifted_and_bots_or_another_device_have() {
        let taught = learn(&people(40), &base(), &recipe(), &mut |_| ()).unwrap().artifact;
        let moved = |sessions: &[ShadowSession]| drift(&taught, sessions).unwrap();
        let alike: Vec<_> = (0..60).map(|i| session(format!("{i}"), Visitor::person(800 + i))).collect();
        let bots: Vec<_> =
            (0..60).map(|i| session(format!("{i}"), Visitor::bot(BotKind::JitteredLinear, i))).collect();
        let remote: Vec<_> = alike.iter().cloned().map(seldom).collect();
        let (alike, bots, remote) = (moved(&alike), moved(&bots), moved(&remote));
        assert_eq!(alike.state, DriftState::Steady, "{alike:?}");
        assert_eq!(bots.state, DriftState::Drifting, "{bots:?}");
        assert_eq!((remote.state, remote.unknown_share), (DriftState::Drifting, 1.0), "{remote:?}");
        let without = Artifact { card: Card { drift: None, ..taught.card }, ..taught };
        assert_eq!(drift(&without, &[]), None, "an older model says so");
    }

    #[test]
    fn a_bound_is_promised_only_when_the_sessions_carry_it() {
        let promise = |false_alarm| {
            let recipe = LearnRecipe { false_alarm, ..recipe() };
            learn(&people(20), &base(), &recipe, &mut |_| ()).unwrap().artifact.card
        };
        let (lax, strict) = (promise(0.05), promise(0.01));
        assert!(lax.calibrated && lax.threshold.false_alarm_max <= 0.05);
        assert!(!strict.calibrated && strict.threshold.false_alarm_max > 0.01);
    }

    #[test]
    fn many_sessions_of_few_people_carry_no_bound() {
        let mut sessions = people(20);
        for (i, session) in sessions.iter_mut().enumerate() {
            session.user = format!("user {}", i % 10);
        }
        let card = learn(&sessions, &base(), &recipe(), &mut |_| ()).unwrap().artifact.card;
        assert_eq!((card.threshold.sessions, card.threshold.people), (20, 10));
        assert!(!card.calibrated && card.threshold.false_alarm_max > 0.09);
    }

    /// The same movement, but heard of less often.
    fn seldom(mut session: ShadowSession) -> ShadowSession {
        for row in session.windows.iter_mut().filter_map(|window| window.long.as_mut()) {
            row.features[MOVE_INTERVAL] = 60f32.ln();
        }
        session
    }

    #[test]
    fn a_kind_of_input_whose_own_people_carry_no_bound_stays_unknown_where_another_does() {
        let few: Vec<_> =
            (0..8).map(|i| seldom(session(format!("remote {i}"), Visitor::person(700 + i)))).collect();
        let sessions = [people(20), few.clone()].concat();
        let taught = learn(&sessions, &base(), &recipe(), &mut |_| ()).unwrap();
        assert!(taught.artifact.card.calibrated);
        assert_eq!(taught.artifact.card.threshold.people, 20);
        assert_eq!(taught.artifact.population.strata.len(), 1);
        let [(kind, bound)] = taught.unbounded[..] else { panic!("{:?}", taught.unbounded) };
        assert!(kind.coarse && bound.false_alarm_max > 0.1);
        let detector = Detector::new(taught.artifact, String::new());
        let enough = |window: &&Window| Kind::of_window(window).is_some();
        let windows = || few.iter().flat_map(|session| &session.windows).filter(enough);
        assert!(windows().count() > 0);
        assert_eq!(windows().filter_map(|w| detector.log_ratio_on(w, Device::default())).count(), 0);
        let alone = learn(&few, &base(), &recipe(), &mut |_| ()).unwrap();
        assert_eq!((alone.artifact.population.strata.len(), alone.artifact.card.calibrated), (1, false));
    }

    #[test]
    fn a_kind_of_input_too_small_for_its_folds_does_not_end_the_lesson() {
        let mut lonely = seldom(session("remote 0".into(), Visitor::person(700)));
        lonely.windows = (0..20).flat_map(|_| lonely.windows.clone()).collect();
        let mut few = vec![lonely];
        few.extend((1..6).map(|i| {
            let mut one = seldom(session(format!("remote {i}"), Visitor::person(700 + i)));
            one.windows =
                one.windows.into_iter().filter(|window| Kind::of_window(window).is_some()).take(1).collect();
            one
        }));
        let sessions = [people(10), few].concat();
        let taught = learn(&sessions, &base(), &recipe(), &mut |_| ()).unwrap();
        assert_eq!(taught.artifact.population.strata.len(), 1);
        assert!(taught.untaught[0].0.coarse && taught.untaught[0].1 == 6, "{:?}", taught.untaught);
    }

    #[test]
    fn some_browsers_that_do_not_tell_leave_the_device_check_on() {
        let mut sessions = people(14);
        sessions[..7].iter_mut().for_each(|session| session.device = Device::named("desk"));
        let taught = learn(&sessions, &base(), &recipe(), &mut |_| ()).unwrap();
        let detector = Detector::new(taught.artifact, String::new());
        let bot = session("bot".into(), Visitor::bot(BotKind::LinearEven, 5));
        let says = |device| bot.windows.iter().filter_map(|w| detector.log_ratio_on(w, device)).count();
        assert!(says(Device::named("desk")) > 0 && says(Device::default()) > 0);
        assert_eq!(says(Device::named("lap")), 0);
    }

    #[test]
    fn what_nobody_taught_is_unknown_and_says_nothing() {
        let mut sessions = people(10);
        sessions.iter_mut().for_each(|session| session.device = Device::named("desk"));
        let taught = learn(&sessions, &base(), &recipe(), &mut |_| ()).unwrap();
        let detector = Detector::new(taught.artifact, String::new());
        let bot = session("bot".into(), Visitor::bot(BotKind::LinearEven, 5));
        let says = |device| bot.windows.iter().filter_map(|w| detector.log_ratio_on(w, device)).count();
        assert!(says(Device::named("desk")) > 0);
        assert_eq!(says(Device::named("lap")), 0);
        assert_eq!(says(Device::default()), 0, "a browser that does not tell proves nothing either");
    }

    #[test]
    fn too_few_sessions_teach_nothing_and_the_message_says_how_many_are_needed() {
        let error = learn(&people(3), &base(), &recipe(), &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("at least 6 sessions and 40 windows"), "{error}");
    }

    #[test]
    fn sessions_that_other_evidence_calls_bots_are_left_out_and_counted() {
        let recording = |name: &str| Recording {
            session: name.into(),
            source: "here".into(),
            user: name.into(),
            label: Label::Unknown,
            family: None,
            licence: String::new(),
            note: String::new(),
            marks: dataset::Marks::default(),
            environment: None,
            events: {
                let mut visitor = Visitor::person(3);
                (0..30).flat_map(|_| visitor.next_batch(2.0).events).collect()
            },
        };
        let mut recordings: Vec<Recording> = ["a", "b", "c", "d", "e", "f"].map(recording).into();
        recordings[0].marks.automation = true;
        recordings[1].marks.replay = Some(0.9);
        recordings[2].marks.navigations_without_input = Some(40);
        recordings[3].marks.operator = Label::Bot;
        recordings[4].marks =
            dataset::Marks { automation: true, operator: Label::Human, ..Default::default() };
        let (sessions, left) = shadow_sessions(&recordings);
        let names: Vec<&str> = sessions.iter().map(|session| session.session.as_str()).collect();
        assert_eq!(names, ["e", "f"]);
        assert!(sessions[0].vouched && !sessions[1].vouched);
        assert_eq!(left, LeftOut { automation: 1, replay: 1, unprompted: 1, labelled: 1, short: 0 });
    }
}
