//! The task "user": is it the account's owner at the mouse, or somebody else?
//!
//! Sources whose notes mark sessions `train` and `is_illegal=0` or `1` are judged as labelled: an
//! owner's training sessions enrol, each labelled session is judged whole, the other owners' training
//! sessions are the background. In all others a person's longest session enrols, the others test in
//! blocks of 14 s of active input, and everybody else in the fold is an impostor; the background is the
//! people outside the fold, so neither owner nor impostor taught it. Must not know: files, pages.

use super::{EvaluateError, Figure, Judged, auc, clopper_pearson, eer, far, figure, frr, mean_figure};
use crate::dataset::{Label, Recording};
use crate::hand::{self, Hand};
use crate::isolation::{IsolationForest, IsolationParams};
use crate::owner::Background;
use crate::profile::{BLOCKS_READY, Ending, Profile};
use crate::sequential::{self, cusum};
use crate::train::Progress;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

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
    /// Whole sessions against the ledger at each level, where sessions are judged block by block.
    pub sessions: Vec<Sessions>,
    /// Points of the ROC curve of the first row: false alarms, detections.
    pub roc: Vec<(f64, f64)>,
}

/// Evidence for "somebody else" over whole sessions: no single block takes it to the threshold.
#[derive(Clone, Debug, Serialize)]
pub struct Sessions {
    /// Share of owners' sessions that the threshold may let through as somebody else; set on other owners.
    pub false_alarm: f32,
    pub owners: usize,
    pub owners_reached: Figure,
    pub impostors: usize,
    pub impostors_reached: Figure,
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
    /// Impostors passed over and owners called somebody else, at a threshold set where the two were
    /// equal among other owners.
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

/// One person: what enrols, and what tests.
struct Person {
    enrolled: Vec<Hand>,
    test: Vec<Hand>,
}

fn judge_folds(source: &str, recordings: &[&Recording], seed: u64) -> Option<Section> {
    let mut by_user: BTreeMap<&str, Vec<Vec<Hand>>> = BTreeMap::new();
    for recording in recordings {
        by_user.entry(&recording.user).or_default().push(hand::blocks(&recording.events));
    }
    let mut people: Vec<Person> = Vec::new();
    for mut sessions in by_user.into_values() {
        // The first of the longest: sorting is stable.
        sessions.sort_by_key(|blocks| std::cmp::Reverse(blocks.len()));
        let enrolled = sessions.remove(0);
        let test = sessions.concat();
        if enrolled.len() >= BLOCKS_READY && !test.is_empty() {
            people.push(Person { enrolled, test });
        }
    }
    if people.len() < FOLDS_PEOPLE_MIN {
        return None;
    }
    people.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let (mut judged, mut alone, mut walks) = (Vec::new(), Vec::new(), Vec::new());
    for fold in 0..FOLDS {
        let is_held_out = |i: &usize| i % FOLDS == fold;
        let learnt = (0..people.len()).filter(|i| !is_held_out(i)).map(|i| &people[i]);
        let learnt: Vec<Vec<Hand>> =
            learnt.map(|person| [&person.enrolled[..], &person.test[..]].concat()).collect();
        let background = Background::fit(&learnt)?;
        for i in (0..people.len()).filter(is_held_out) {
            let mut profile = Profile::default();
            profile.learn(&background, &people[i].enrolled, Ending::default());
            // What is judged by is what would have been kept.
            let owner = Profile::decode(&profile.encode()).ok()?.owner(&background)?;
            let places: Option<Vec<Vec<f32>>> =
                people[i].enrolled.iter().map(|block| background.place(block)).collect();
            let forest = places.and_then(|rows| IsolationForest::fit(&rows, IsolationParams::default()));
            for k in (0..people.len()).filter(is_held_out) {
                let from = judged.len();
                for block in &people[k].test {
                    let row = |score| Judged { score, positive: k != i, cluster: i };
                    judged.push(row(background.score(&owner, block)));
                    let place = background.place(block);
                    alone.extend(forest.as_ref().zip(place).map(|(f, place)| row(f.score(&place))));
                }
                walks.push(from..judged.len());
            }
        }
    }
    let sessions = FALSE_ALARMS.iter().map(|&level| sessions(&judged, &walks, level)).collect();
    let protocol = format!(
        "longest session enrols, the others judged in blocks of {} s of active input; {FOLDS} folds of people, \
         background from the other folds, impostors from the same",
        hand::BLOCK_ACTIVE_US / 1_000_000
    );
    let mut rows = vec![row("with background", &judged)];
    if !alone.is_empty() {
        rows.push(row("isolation forest of the owner alone", &alone));
    }
    Some(Section { sessions, ..section(source, protocol, people.len(), rows, &judged) })
}

fn judge_labelled(source: &str, recordings: &[&Recording]) -> Option<Section> {
    let whole = |recording: &Recording| -> Vec<Hand> {
        let blocks = hand::blocks(&recording.events);
        let long = blocks.chunks(BLOCKS_JOINED).map(|blocks| {
            let mut long = Hand::EMPTY;
            blocks.iter().for_each(|block| long.merge(block));
            long
        });
        long.collect()
    };
    let mut owners: BTreeMap<&str, Vec<Hand>> = BTreeMap::new();
    for recording in recordings.iter().filter(|recording| recording.note.starts_with("train")) {
        owners.entry(&recording.user).or_default().extend(whole(recording));
    }
    let mut judged = Vec::new();
    for (i, (owner, enrolled)) in owners.iter().enumerate() {
        let others: Vec<Vec<Hand>> =
            owners.iter().filter(|(other, _)| *other != owner).map(|(_, blocks)| blocks.clone()).collect();
        let background = Background::fit(&others)?;
        let model = background.enrol(enrolled)?;
        let claimed = recordings.iter().filter(|recording| claims(recording, owner));
        for recording in claimed.filter(|recording| recording.note.contains(LABEL_MARK)) {
            let blocks = whole(recording);
            if blocks.is_empty() {
                continue;
            }
            let sum: f32 = blocks.iter().map(|block| background.score(&model, block)).sum();
            let positive = recording.note.contains(IMPOSTOR_MARK);
            judged.push(Judged { score: sum / blocks.len() as f32, positive, cluster: i });
        }
    }
    let sides = judged.iter().fold([0, 0], |mut sides, row| {
        sides[usize::from(row.positive)] += 1;
        sides
    });
    if sides.contains(&0) {
        return None;
    }
    let protocol = format!(
        "training sessions enrol, labelled sessions are judged whole (mean over blocks of {} s of active input); \
         background: the other owners' training sessions, among whom the impostors are, as in the published figures",
        hand::BLOCK_ACTIVE_US / 1_000_000 * BLOCKS_JOINED as u64
    );
    let rows = vec![row("with background", &judged)];
    Some(section(source, protocol, owners.len(), rows, &judged))
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
        sessions: Vec::new(),
        roc: super::roc(judged),
    }
}

fn row(method: &'static str, judged: &[Judged]) -> Row {
    let mut by_owner: BTreeMap<usize, Vec<Judged>> = BTreeMap::new();
    judged.iter().for_each(|row| by_owner.entry(row.cluster).or_default().push(*row));
    let each = |of: fn(&[Judged]) -> f64| -> Vec<f64> {
        by_owner.values().map(|rows| of(rows)).filter(|value| value.is_finite()).collect()
    };
    // Each owner against a threshold that only others' judgements set.
    let shifted: Vec<Judged> = by_owner
        .iter()
        .flat_map(|(owner, rows)| {
            let others: Vec<Judged> = judged.iter().filter(|row| row.cluster != *owner).copied().collect();
            let threshold = equal_error_threshold(&others);
            rows.iter().map(move |row| Judged { score: row.score - threshold, ..*row })
        })
        .collect();
    let impostors = judged.iter().filter(|row| row.positive).count();
    Row {
        method,
        genuine: judged.len() - impostors,
        impostors,
        auc: figure(judged, auc),
        eer: figure(judged, eer),
        auc_mean: mean_figure(&each(auc)),
        eer_mean: mean_figure(&each(eer)),
        far: figure(&shifted, far),
        frr: figure(&shifted, frr),
    }
}

/// Walks each session through the ledger: where a block's evidence turns, and how much of it makes an
/// alarm, other owners' judgements say.
fn sessions(judged: &[Judged], walks: &[Range<usize>], false_alarm: f32) -> Sessions {
    let mut reached = [(0, 0); 2];
    let mut blocks_to_reach = Vec::new();
    let owners: BTreeSet<usize> = judged.iter().map(|row| row.cluster).collect();
    for owner in owners {
        let others: Vec<Judged> = judged.iter().filter(|row| row.cluster != owner).copied().collect();
        let turn = equal_error_threshold(&others);
        let evidence = |walk: &Range<usize>| -> Vec<f32> {
            let steps = judged[walk.clone()].iter().scan(0.0, |evidence, row| {
                *evidence = cusum(*evidence, row.score - turn);
                Some(*evidence)
            });
            steps.collect()
        };
        let theirs = |walk: &&Range<usize>| judged[walk.start].cluster == owner;
        let genuine = walks.iter().filter(|walk| !theirs(walk) && !judged[walk.start].positive);
        let maxima = genuine.map(|walk| evidence(walk).into_iter().fold(0.0, f32::max)).collect();
        let threshold = sequential::threshold(maxima, false_alarm).nats;
        for walk in walks.iter().filter(theirs) {
            let side = &mut reached[usize::from(judged[walk.start].positive)];
            side.1 += 1;
            if let Some(blocks) = evidence(walk).iter().position(|nats| *nats >= threshold) {
                side.0 += 1;
                if judged[walk.start].positive {
                    blocks_to_reach.push(blocks + 1);
                }
            }
        }
    }
    let share = |(hits, n): (usize, usize)| {
        let (low, high) = clopper_pearson(hits, n);
        Figure { value: hits as f64 / n.max(1) as f64, low, high }
    };
    blocks_to_reach.sort_unstable();
    Sessions {
        false_alarm,
        owners: reached[0].1,
        owners_reached: share(reached[0]),
        impostors: reached[1].1,
        impostors_reached: share(reached[1]),
        blocks_to_reach: blocks_to_reach.get(blocks_to_reach.len() / 2).copied(),
    }
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
/// Shares of owners' sessions that the ledger may call somebody else's: to be noted, to be asked again.
const FALSE_ALARMS: [f32; 2] = [0.1, 0.02];
/// Two people to a fold, and enough outside it.
const FOLDS_PEOPLE_MIN: usize = 10;
/// Labelled sessions come from a desk's ordinary work, in which 14 s hold little movement.
const BLOCKS_JOINED: usize = 4;

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
        assert!(row.impostors > 4 * row.genuine && row.auc.value > 0.6, "{row:?}");
        let sessions = &report.sections[0].sessions[0];
        assert_eq!((sessions.owners, sessions.impostors), (30, 30 * 5));
        assert!(sessions.impostors_reached.value > sessions.owners_reached.value, "{sessions:?}");
        assert!(row.auc.low <= row.auc.value && row.auc.value <= row.auc.high);
    }

    #[test]
    fn labelled_sessions_are_judged_under_the_name_they_claim() {
        let mut recordings: Vec<Recording> =
            (0..4).map(|user| recording(user, "train", "train; x", 800)).collect();
        for user in 0..4 {
            recordings.push(recording(user, "second", "test; is_illegal=0", 200));
            let mut stolen = recording((user + 1) % 4, "second", "test; is_illegal=1", 200);
            (stolen.user, stolen.session) = ("a_thief".into(), format!("s_u{user}_stolen"));
            recordings.push(stolen);
        }
        let report = evaluate(&recordings, 1, &mut |_| {}).unwrap();
        let row = &report.sections[0].rows[0];
        assert_eq!((row.genuine, row.impostors), (4, 4));
        assert!(row.auc.value > 0.7, "{row:?}");
    }

    #[test]
    fn a_source_with_too_few_people_is_left_out_and_said_so() {
        let one = [recording(1, "first", "", 60)];
        assert!(matches!(evaluate(&one, 1, &mut |_| {}), Err(EvaluateError::Empty)));
    }
}
