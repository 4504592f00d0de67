//! The task "user": is it the account's owner at the mouse, or somebody else?
//!
//! Every session runs through the code that runs live: a person's longest session teaches a profile, and
//! their others and a whole fold's strangers are watched against it, block by block of 14 s of active input.
//! Calibration and thresholds come from the people of the other folds, as `gaitway learn` would make them; so
//! does the background, once without the owners, as published figures are made, and once with their longest
//! sessions, as a site's holds them. Strangers taught nothing. Sources whose notes mark sessions `train` and
//! `is_illegal=0` or `1` are judged as labelled: an owner's training sessions teach, each labelled session is
//! judged whole, the other owners' training sessions are the background. Must not know: files, pages.

use super::{EvaluateError, Figure, Judged, auc, clopper_pearson, eer, far, figure, frr, mean_figure};
use crate::artifact::Artifact;
use crate::dataset::{self, Label, Recording};
use crate::detector::Detector;
use crate::event::{Batch, EventKind};
use crate::hand::{self, Hand};
use crate::isolation::{IsolationForest, IsolationParams};
use crate::owner::{Background, Owners};
use crate::population::Device;
use crate::profile::{Ending, Profile};
use crate::session::Session;
use crate::time::Timestamp;
use crate::train::Progress;
use crate::train::background::{Lesson, OwnerSession};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Everything `gaitway evaluate --task user` reports.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub task: &'static str,
    pub seed: u64,
    pub sections: Vec<Section>,
    pub warnings: Vec<String>,
}

/// One source.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    pub source: String,
    pub protocol: String,
    pub people: usize,
    pub rows: Vec<Row>,
    /// Share of blocks on which the profile had to be silent because it had not learnt such a device: the
    /// owners', the impostors'.
    pub unknown: Option<(f64, f64)>,
    /// Whole sessions against the ledger at each level, where sessions are judged block by block.
    pub sessions: Vec<Sessions>,
    /// Points of the ROC curve of the first row: false alarms, detections.
    pub roc: Vec<(f64, f64)>,
}

/// Evidence for "somebody else" over whole sessions: no single block takes it to the threshold.
#[derive(Clone, Debug, Serialize)]
pub struct Sessions {
    /// Share of people that may reach the threshold in any of their sessions; set on people outside the fold.
    pub false_alarm: f32,
    /// The thresholds, from the lowest fold's to the highest's, nats.
    pub thresholds: (f32, f32),
    /// Whether every fold had people enough to promise that.
    pub promised: bool,
    pub owners: usize,
    pub owners_reached: Figure,
    pub impostors: usize,
    pub impostors_reached: Figure,
    /// The owners' sessions again, as a mouse half as fast again would have recorded them had the hand not
    /// noticed: what another mouse on the same display can do at worst.
    pub other_mouse_reached: Figure,
    /// Median number of blocks until an impostor's session reached it.
    pub blocks_to_reach: Option<usize>,
}

/// One way of judging.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub method: &'static str,
    pub genuine: usize,
    pub impostors: usize,
    /// Over all judgements together, one threshold for everybody.
    pub auc: Figure,
    pub eer: Figure,
    /// Means over owners of each one's own.
    pub auc_mean: Figure,
    pub eer_mean: Figure,
    /// Impostors passed over and owners called somebody else: at even odds, as people outside the fold
    /// calibrated them, or, where sessions are labelled, at a threshold where the two were equal among others.
    pub far: Figure,
    pub frr: Figure,
}

/// Judges every source of people that has enough of them.
pub fn evaluate(
    recordings: &[Recording],
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, EvaluateError> {
    let mut sources: BTreeMap<&str, Vec<&Recording>> = BTreeMap::new();
    for recording in recordings.iter().filter(|recording| recording.label == Label::Human) {
        sources.entry(&recording.source).or_default().push(recording);
    }
    let mut warnings = vec![
        "Intervals between events belong to the device as much as to the hand: part of what tells these people apart \
         is that each sat at a machine of their own, within one day."
            .to_string(),
    ];
    let (mut sections, steps) = (Vec::new(), sources.len());
    for (i, (source, recordings)) in sources.into_iter().enumerate() {
        progress(Progress { step: i + 1, steps, what: format!("judging the people of {source}") });
        let labelled = recordings.iter().any(|recording| recording.note.contains(IMPOSTOR_MARK));
        let section = if labelled {
            judge_labelled(source, &recordings)
        } else {
            judge_folds(source, &recordings, seed)
        };
        match section {
            Some(section) => sections.push(section),
            None => {
                warnings.push(format!("{source} has too few people with two sessions, and was left out."))
            }
        }
    }
    if sections.is_empty() {
        Err(EvaluateError::Empty)
    } else {
        Ok(Report { task: "user", seed, sections, warnings })
    }
}

/// One session, as the gateway gets it.
struct Watched {
    device: Device,
    batches: Vec<Batch>,
    blocks: Vec<Hand>,
}

impl Watched {
    fn new(recording: &Recording) -> Watched {
        let mut batches = dataset::batches(&recording.events);
        // A browser tells of itself in its first batch.
        if let Some(first) = batches.first_mut() {
            first.environment = recording.environment;
        }
        let blocks = hand::blocks(&recording.events);
        Watched { device: Device::of(recording.environment), batches, blocks }
    }

    /// The session through a mouse that moves the pointer farther for the same way of the hand.
    fn with_faster_mouse(&self) -> Watched {
        let mut batches = self.batches.clone();
        for event in batches.iter_mut().flat_map(|batch| &mut batch.events) {
            if let EventKind::PointerMove { x, y, .. } = &mut event.kind {
                (*x, *y) = ((*x * FASTER).round(), (*y * FASTER).round());
            }
        }
        Watched { device: self.device, batches, blocks: Vec::new() }
    }

    /// Watches the session, so many days after the first, against a profile. Gives what each judged block said, the evidence after each,
    /// how many blocks were completed, and the session as it ends.
    fn against(&self, detector: &Detector, profile: Profile, day: u64) -> Seen {
        let opened = Timestamp(day * DAY_MS);
        let mut session = Session::new(opened);
        session.set_profile(profile);
        let (mut says, mut evidence, mut completed) = (Vec::new(), Vec::new(), 0);
        for batch in &self.batches {
            let now = Timestamp(opened.0 + batch.sent_at_us / 1000);
            session.observe(now, 1, batch);
            let assessment = detector.assess(now, &mut session);
            let Some(doubt) = &session.doubt else { continue };
            completed = doubt.completed() as usize;
            if let (Some(log_ratio), true) = (doubt.log_ratio, doubt.judged as usize > says.len()) {
                says.push(log_ratio);
                evidence.push(assessment.owner_evidence);
            }
        }
        Seen { says, evidence, completed, session }
    }
}

struct Seen {
    says: Vec<f32>,
    evidence: Vec<f32>,
    completed: usize,
    session: Session,
}

/// One person: what teaches, and what tests.
struct Person {
    name: String,
    enrolled: Watched,
    tests: Vec<Watched>,
}

const DAY_MS: u64 = 24 * 3_600_000;

/// The shipped model with another background.
fn detector(owners: Owners) -> Option<Detector> {
    let artifact = Artifact { owners: Some(owners), ..Artifact::decode(crate::DEFAULT_MODEL).ok()? };
    Some(Detector::new(artifact, String::new()))
}

/// What is kept of a person after a session; read back from the bytes that would be stored.
fn taught(
    detector: &Detector,
    session: &Watched,
    day: u64,
    profile: Profile,
    ending: Ending,
) -> Option<Profile> {
    let mut seen = session.against(detector, profile, day);
    let learnt = detector.learn(&mut seen.session, ending)?;
    Profile::decode(&learnt.encode()).ok()
}

fn judge_folds(source: &str, recordings: &[&Recording], seed: u64) -> Option<Section> {
    let mut by_user: BTreeMap<&str, Vec<Watched>> = BTreeMap::new();
    for recording in recordings {
        by_user.entry(&recording.user).or_default().push(Watched::new(recording));
    }
    let mut people: Vec<Person> = Vec::new();
    for (name, mut sessions) in by_user {
        // The first of the longest: sorting is stable.
        sessions.sort_by_key(|session| std::cmp::Reverse(session.blocks.len()));
        let enrolled = sessions.remove(0);
        if sessions.iter().any(|session| !session.blocks.is_empty()) {
            people.push(Person { name: name.to_string(), enrolled, tests: sessions });
        }
    }
    people.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let published = judge_people(&people, seed, false)?;
    let live = judge_people(&people, seed, true)?;
    let thresholds = FALSE_ALARMS.iter().zip(&live.thresholds);
    let sessions = thresholds.map(|(level, folds)| live.sessions(*level, folds)).collect();
    let protocol = format!(
        "longest session teaches, the others watched live in blocks of {} s of active input; {FOLDS} folds of people, \
         background, calibration and thresholds from folds that are not judged; as a site runs live, and for whole \
         sessions, the background also holds the owners' longest sessions",
        hand::BLOCK_ACTIVE_US / 1_000_000
    );
    let mut rows = vec![
        row("with background", &published.rows, &published.rows),
        row("with a background that owners taught too", &live.rows, &live.rows),
    ];
    if !published.alone.is_empty() {
        rows.push(row(
            "isolation forest of the owner alone",
            &published.alone,
            &against_others(&published.alone),
        ));
    }
    let Judgements { rows: judged, unknown, owners_judged, .. } = published;
    let unknown = Some((unknown.share(false), unknown.share(true)));
    Some(Section { sessions, unknown, ..section(source, protocol, owners_judged, rows, &judged) })
}

/// Every person against strangers. With `owners_teach` the background holds the owners' longest sessions, as a
/// site's does, and the strangers are another fold's.
fn judge_people(people: &[Person], seed: u64, owners_teach: bool) -> Option<Judgements> {
    let mut judged = Judgements::default();
    for fold in 0..FOLDS {
        let is_owner = |i: &usize| i % FOLDS == fold;
        let is_stranger = |i: &usize| i % FOLDS == (fold + usize::from(owners_teach)) % FOLDS;
        // What came before the session judged.
        let tests = |i: usize| people[i].tests.iter().filter(move |_| !is_owner(&i));
        let sessions: Vec<OwnerSession> = (0..people.len())
            .filter(|i| !is_stranger(i))
            .flat_map(|i| [&people[i].enrolled].into_iter().chain(tests(i)).map(move |s| (i, s)))
            .map(|(i, s)| OwnerSession { user: &people[i].name, device: s.device, blocks: &s.blocks })
            .collect();
        let lesson = Lesson::learn(&sessions, seed).ok()?;
        let owners = lesson.owners(FALSE_ALARMS[0]);
        for (level, thresholds) in FALSE_ALARMS.iter().zip(&mut judged.thresholds) {
            let card = lesson.owners(*level).card;
            thresholds.push((card.threshold?.nats, card.calibrated));
        }
        let background = owners.background.clone();
        let detector = detector(owners)?;
        for i in (0..people.len()).filter(is_owner) {
            let Some(profile) =
                taught(&detector, &people[i].enrolled, 0, Profile::default(), Ending::default())
            else {
                continue;
            };
            judged.owners_judged += 1;
            let places: Option<Vec<Vec<f32>>> =
                people[i].enrolled.blocks.iter().map(|block| background.place(block)).collect();
            let forest = places.and_then(|rows| IsolationForest::fit(&rows, IsolationParams::default()));
            for k in (0..people.len()).filter(|k| *k == i || is_stranger(k)) {
                let row = |score| Judged { score, positive: k != i, cluster: i };
                for session in &people[k].tests {
                    judged.add(fold, session.against(&detector, profile.clone(), 0), row);
                    if k == i && !session.blocks.is_empty() {
                        let seen = session.with_faster_mouse().against(&detector, profile.clone(), 0);
                        judged.other_mouse.push((fold, seen.evidence));
                    }
                    for block in &session.blocks {
                        let place = background.place(block);
                        judged.alone.extend(forest.as_ref().zip(place).map(|(f, p)| row(f.score(&p))));
                    }
                }
            }
        }
    }
    Some(judged)
}

/// All that was judged, block by block and session by session.
#[derive(Default)]
struct Judgements {
    rows: Vec<Judged>,
    alone: Vec<Judged>,
    unknown: Unknown,
    /// By session: fold, an impostor's, the evidence after each judged block.
    walks: Vec<(usize, bool, Vec<f32>)>,
    /// Owners' sessions by a faster mouse: fold, the evidence after each judged block.
    other_mouse: Vec<(usize, Vec<f32>)>,
    /// By level and fold: nats, and whether people enough promise them.
    thresholds: [Vec<(f32, bool)>; FALSE_ALARMS.len()],
    owners_judged: usize,
}

/// Blocks judged and completed: the owners', the impostors'.
#[derive(Default)]
struct Unknown([(usize, usize); 2]);

impl Unknown {
    fn share(&self, impostors: bool) -> f64 {
        let (judged, completed) = self.0[usize::from(impostors)];
        1.0 - judged as f64 / completed.max(1) as f64
    }
}

impl Judgements {
    fn add(&mut self, fold: usize, seen: Seen, row: impl Fn(f32) -> Judged) {
        let positive = row(0.0).positive;
        let side = &mut self.unknown.0[usize::from(positive)];
        *side = (side.0 + seen.says.len(), side.1 + seen.completed);
        self.rows.extend(seen.says.into_iter().map(row));
        if seen.completed > 0 {
            self.walks.push((fold, positive, seen.evidence));
        }
    }

    /// Whole sessions against each fold's threshold. Sessions in which nothing could be judged count: that is
    /// what their people and impostors would meet.
    fn sessions(&self, false_alarm: f32, folds: &[(f32, bool)]) -> Sessions {
        let mut reached = [(0, 0); 2];
        let mut blocks_to_reach = Vec::new();
        for (fold, positive, evidence) in &self.walks {
            let side = &mut reached[usize::from(*positive)];
            side.1 += 1;
            if let Some(blocks) = evidence.iter().position(|nats| *nats >= folds[*fold].0) {
                side.0 += 1;
                if *positive {
                    blocks_to_reach.push(blocks + 1);
                }
            }
        }
        let share = |(hits, n): (usize, usize)| {
            let (low, high) = clopper_pearson(hits, n);
            Figure { value: hits as f64 / n.max(1) as f64, low, high }
        };
        let reaches = |(fold, evidence): &&(usize, Vec<f32>)| evidence.iter().any(|n| *n >= folds[*fold].0);
        let other_mouse = (self.other_mouse.iter().filter(reaches).count(), self.other_mouse.len());
        blocks_to_reach.sort_unstable();
        let nats = || folds.iter().map(|(nats, _)| *nats);
        Sessions {
            false_alarm,
            thresholds: (nats().fold(f32::INFINITY, f32::min), nats().fold(0.0, f32::max)),
            promised: folds.iter().all(|(_, calibrated)| *calibrated),
            owners: reached[0].1,
            owners_reached: share(reached[0]),
            impostors: reached[1].1,
            impostors_reached: share(reached[1]),
            other_mouse_reached: share(other_mouse),
            blocks_to_reach: blocks_to_reach.get(blocks_to_reach.len() / 2).copied(),
        }
    }
}

fn judge_labelled(source: &str, recordings: &[&Recording]) -> Option<Section> {
    let mut owners: BTreeMap<&str, Vec<Hand>> = BTreeMap::new();
    for recording in recordings.iter().filter(|recording| recording.note.starts_with("train")) {
        owners.entry(&recording.user).or_default().extend(hand::blocks(&recording.events));
    }
    let (mut judged, mut live, mut unknown) = (Vec::new(), Vec::new(), Unknown::default());
    for (i, (owner, enrolled)) in owners.iter().enumerate() {
        let others: Vec<Vec<Hand>> =
            owners.iter().filter(|(other, _)| *other != owner).map(|(_, blocks)| blocks.clone()).collect();
        let background = Background::fit(&others)?;
        let model = background.enrol(enrolled)?;
        let (detector, profile) = taught_by_training(recordings, owner)?;
        let claimed = recordings.iter().filter(|recording| claims(recording, owner));
        for recording in claimed.filter(|recording| recording.note.contains(LABEL_MARK)) {
            let positive = recording.note.contains(IMPOSTOR_MARK);
            let seen = Watched::new(recording).against(&detector, profile.clone(), 0);
            let side = &mut unknown.0[usize::from(positive)];
            *side = (side.0 + seen.says.len(), side.1 + seen.completed);
            if !seen.says.is_empty() {
                let sum: f32 = seen.says.iter().sum();
                live.push(Judged { score: sum / seen.says.len() as f32, positive, cluster: i });
            }
            let blocks = hand::blocks(&recording.events);
            if !blocks.is_empty() {
                let sum: f32 = blocks.iter().map(|block| background.score(&model, block)).sum();
                judged.push(Judged { score: sum / blocks.len() as f32, positive, cluster: i });
            }
        }
    }
    let has_both = |rows: &[Judged]| rows.iter().any(|r| r.positive) && rows.iter().any(|r| !r.positive);
    if !has_both(&judged) {
        return None;
    }
    let protocol = format!(
        "all training sessions enrol, labelled sessions are judged whole (mean over blocks of {} to {} s of active input; \
         live: by a profile that learnt the training sessions one after the other, one a day); background: the other owners' \
         training sessions, among whom the impostors are, as in the published figures",
        hand::BLOCK_ACTIVE_US / 1_000_000,
        hand::BLOCK_ACTIVE_MAX_US / 1_000_000
    );
    let mut rows = vec![row("with background", &judged, &against_others(&judged))];
    if has_both(&live) {
        rows.push(row("as it runs live", &live, &against_others(&live)));
    }
    let unknown = Some((unknown.share(false), unknown.share(true)));
    Some(Section { unknown, ..section(source, protocol, owners.len(), rows, &judged) })
}

/// A detector whose background are the other owners' training sessions, and the profile of an owner who
/// opened theirs one after the other, one a day.
fn taught_by_training(recordings: &[&Recording], owner: &str) -> Option<(Detector, Profile)> {
    let training = || recordings.iter().filter(|recording| recording.note.starts_with("train"));
    let mut others: BTreeMap<&str, Vec<Hand>> = BTreeMap::new();
    for recording in training().filter(|recording| recording.user != owner) {
        others.entry(&recording.user).or_default().extend(hand::blocks(&recording.events));
    }
    let people: Vec<Vec<Hand>> = others.into_values().collect();
    let detector = detector(Owners::uncalibrated(Background::fit(&people)?, people.len()))?;
    let mut profile = Profile::default();
    // Their label vouches for them.
    let vouched = Ending { proved: true, ..Ending::default() };
    for (day, recording) in (0..).zip(training().filter(|recording| recording.user == owner)) {
        if let Some(learnt) = taught(&detector, &Watched::new(recording), day, profile.clone(), vouched) {
            profile = learnt;
        }
    }
    Some((detector, profile))
}

/// Whether a labelled session was opened under an owner's name: its own, or the name within the session's.
fn claims(recording: &Recording, owner: &str) -> bool {
    let short = owner.rsplit('_').next().unwrap_or(owner);
    recording.user == owner || recording.session.split(['_', '/']).any(|part| part == short)
}

fn section(source: &str, protocol: String, people: usize, rows: Vec<Row>, judged: &[Judged]) -> Section {
    Section {
        source: source.to_string(),
        protocol,
        people,
        rows,
        unknown: None,
        sessions: Vec::new(),
        roc: super::roc(judged),
    }
}

/// `called` are the same judgements, above zero where somebody else is called.
fn row(method: &'static str, judged: &[Judged], called: &[Judged]) -> Row {
    let mut by_owner: BTreeMap<usize, Vec<Judged>> = BTreeMap::new();
    judged.iter().for_each(|row| by_owner.entry(row.cluster).or_default().push(*row));
    let each = |of: fn(&[Judged]) -> f64| -> Vec<f64> {
        by_owner.values().map(|rows| of(rows)).filter(|value| value.is_finite()).collect()
    };
    let impostors = judged.iter().filter(|row| row.positive).count();
    Row {
        method,
        genuine: judged.len() - impostors,
        impostors,
        auc: figure(judged, auc),
        eer: figure(judged, eer),
        auc_mean: mean_figure(&each(auc)),
        eer_mean: mean_figure(&each(eer)),
        far: figure(called, far),
        frr: figure(called, frr),
    }
}

/// Each owner's judgements against a threshold that only others' set.
fn against_others(judged: &[Judged]) -> Vec<Judged> {
    let owners: BTreeSet<usize> = judged.iter().map(|row| row.cluster).collect();
    let shifted = owners.into_iter().flat_map(|owner| {
        let others: Vec<Judged> = judged.iter().filter(|row| row.cluster != owner).copied().collect();
        let threshold = equal_error_threshold(&others);
        let theirs = judged.iter().filter(move |row| row.cluster == owner);
        theirs.map(move |row| Judged { score: row.score - threshold, ..*row })
    });
    shifted.collect()
}

/// The score above which as large a share of negatives lies as of positives below.
fn equal_error_threshold(rows: &[Judged]) -> f32 {
    let mut sorted: Vec<&Judged> = rows.iter().collect();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score));
    let positives = rows.iter().filter(|row| row.positive).count() as f64;
    let negatives = rows.len() as f64 - positives;
    let (mut hits, mut alarms) = (0.0, 0.0);
    for row in sorted {
        if row.positive {
            hits += 1.0
        } else {
            alarms += 1.0
        }
        if alarms / negatives >= 1.0 - hits / positives {
            return row.score;
        }
    }
    0.0
}

const LABEL_MARK: &str = "is_illegal=";
const IMPOSTOR_MARK: &str = "is_illegal=1";
const FOLDS: usize = 5;
const FASTER: f32 = 1.5;
/// Shares of owners' sessions that the ledger may call somebody else's: to be noted, to be asked again.
const FALSE_ALARMS: [f32; 2] = [0.1, 0.02];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Visitor;

    fn recording(user: u64, session: &str, note: &str, seconds: usize) -> Recording {
        let mut visitor = Visitor::person(user);
        // The later session is the same person further on.
        let skip = if session == "second" { 200 } else { 0 };
        (0..skip).for_each(|_| drop(visitor.next_batch(2.0)));
        Recording {
            session: format!("s_u{user}_{session}"),
            source: "here".into(),
            user: format!("a_u{user}"),
            label: Label::Human,
            family: None,
            licence: String::new(),
            note: note.into(),
            marks: Default::default(),
            environment: None,
            events: (0..seconds / 2).flat_map(|_| visitor.next_batch(2.0).events).collect(),
        }
    }

    #[test]
    fn people_of_two_sessions_are_judged_against_strangers_of_their_fold() {
        let recordings: Vec<Recording> = (0..30)
            .flat_map(|user| [recording(user, "first", "", 400), recording(user, "second", "", 80)])
            .collect();
        let report = evaluate(&recordings, 1, &mut |_| {}).unwrap();
        let row = &report.sections[0].rows[0];
        assert_eq!(report.sections[0].people, 30);
        assert!(row.impostors > 2 * row.genuine && row.auc.value > 0.6, "{row:?}");
        let sessions = &report.sections[0].sessions[0];
        assert_eq!((sessions.owners, sessions.impostors), (30, 30 * 6));
        assert!(sessions.impostors_reached.value > sessions.owners_reached.value, "{sessions:?}");
        let (owners, impostors) = report.sections[0].unknown.unwrap();
        assert!(owners < 0.1 && impostors > owners, "a stranger's display may differ: {owners} {impostors}");
        assert!(row.auc.low <= row.auc.value && row.auc.value <= row.auc.high);
    }

    #[test]
    fn labelled_sessions_are_judged_under_the_name_they_claim() {
        // Two others are the fewest a background can be made of.
        let mut recordings: Vec<Recording> =
            (0..3).map(|user| recording(user, "train", "train; x", 800)).collect();
        for user in 0..3 {
            recordings.push(recording(user, "second", "test; is_illegal=0", 200));
            let mut stolen = recording((user + 1) % 3, "second", "test; is_illegal=1", 200);
            (stolen.user, stolen.session) = ("a_thief".into(), format!("s_u{user}_stolen"));
            recordings.push(stolen);
        }
        let report = evaluate(&recordings, 1, &mut |_| {}).unwrap();
        let row = &report.sections[0].rows[0];
        assert_eq!((row.genuine, row.impostors), (3, 3));
        assert!(row.auc.value > 0.7, "{row:?}");
    }

    #[test]
    fn a_source_with_too_few_people_is_left_out_and_said_so() {
        let one = [recording(1, "first", "", 60)];
        assert!(matches!(evaluate(&one, 1, &mut |_| {}), Err(EvaluateError::Empty)));
    }
}
