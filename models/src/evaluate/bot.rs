//! The task "bot": how well a model does on people and bots it never learnt from.
//!
//! Recordings of people and families the model learnt from are judged by forests grown without them,
//! by the model's own recipe; all others by the model itself. Thresholds are fixed before: a window is
//! called a bot above even odds, a session at the model's threshold. Must not know: files, pages.

use super::{
    EvaluateError, Figure, Judged, Names, auc, clopper_pearson, ece, eer, far, figure, frr, roc, share,
};
use crate::artifact::{Artifact, Span};
use crate::dataset::{self, Recording};
use crate::detector::{Detector, probability};
use crate::sequential::cusum;
use crate::train::{self, HeldOut, HeldOutWindow, Progress, SIMULATOR};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Everything `gaitway evaluate --task bot` reports.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub task: &'static str,
    pub seed: u64,
    pub threshold_nats: f32,
    pub sections: Vec<Section>,
    pub recorder: Option<RecorderLeak>,
    /// People of each source as judged by the same recipe that learnt from all other sources only.
    pub shift: Vec<Shift>,
    /// What to keep in mind when reading the figures.
    pub warnings: Vec<String>,
}

/// One group of recordings and how it was judged.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    pub name: String,
    /// Windows whose pointer was judged by 10 s alone, by 30 s alone, and as the ledger gets them.
    pub windows: Vec<WindowMetrics>,
    pub groups: Vec<Group>,
    pub sessions: SessionMetrics,
    /// Points of the ROC curve of the ledger's windows: false alarms, detections.
    pub roc: Vec<(f64, f64)>,
}

#[derive(Clone, Debug, Serialize)]
pub struct WindowMetrics {
    pub span: &'static str,
    pub people: usize,
    pub bots: usize,
    pub accuracy: Figure,
    pub balanced_accuracy: Figure,
    pub precision: Figure,
    pub recall: Figure,
    pub f1: Figure,
    /// Bots taken for people.
    pub far: Figure,
    /// People taken for bots.
    pub frr: Figure,
    pub eer: Figure,
    pub auc: Figure,
    pub brier: Figure,
    pub ece: Figure,
}

/// People of a source, or a bot family.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub source: String,
    pub family: Option<String>,
    pub sessions: usize,
    pub windows: usize,
    /// Windows on which an expert spoke.
    pub judged: usize,
    /// Share of those called a bot; recall for a family, false rejection for people.
    pub called_bot: Figure,
    /// Sessions whose evidence reached the threshold.
    pub reached: usize,
    /// Windows until the threshold, median of the sessions that reached it; ten seconds of active
    /// input each, or eight clicks.
    pub windows_to_reach: Option<usize>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SessionMetrics {
    pub people: usize,
    pub people_reached: usize,
    pub bots: usize,
    pub bots_reached: usize,
    /// Hours of active input of the people.
    pub people_hours: f64,
    /// Sessions at the threshold in 1,000 active human hours, with Clopper–Pearson's interval on the
    /// share of sessions.
    pub false_logouts_per_1000_hours: Figure,
}

/// Can the model tell people from the same people recorded anew? .5 is no leak.
#[derive(Clone, Debug, Serialize)]
pub struct RecorderLeak {
    pub human_vs_replayed_human_auc: Figure,
    pub note: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Shift {
    pub source: String,
    pub group: Group,
}

/// Evaluates a model for the task "bot".
pub fn evaluate(
    artifact: &[u8],
    recordings: &[Recording],
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, EvaluateError> {
    if recordings.is_empty() {
        return Err(EvaluateError::Empty);
    }
    let decoded = Artifact::decode(artifact)?;
    let (card, model) = (decoded.card.clone(), crate::artifact::short_hash(artifact));
    let detector = Detector::new(decoded, model.clone());
    let learnt = |recording: &Recording| match &recording.family {
        Some(family) => card.families.contains(family),
        None => card.users.contains(&recording.user),
    };
    let (known, unseen): (Vec<Recording>, Vec<Recording>) = recordings.iter().cloned().partition(learnt);
    let mut sections = Vec::new();
    let mut recorder = None;
    let mut shift = Vec::new();
    if !known.is_empty() {
        let trained = train::train(&known, &card.recipe, progress)?;
        let (anew, original): (Vec<HeldOut>, Vec<HeldOut>) =
            trained.held_out.into_iter().partition(|session| session.anew);
        let (simulated, real): (Vec<HeldOut>, Vec<HeldOut>) =
            original.into_iter().partition(|session| session.source == SIMULATOR);
        recorder = Some(recorder_leak(&real, &anew));
        sections.push(section(
            "Recordings, by forests that never saw the person or the bot family",
            &real,
            card.threshold.nats,
        ));
        sections.push(section("Simulated visitors, held out the same way", &simulated, card.threshold.nats));
        shift = leave_sources_out(&known, &card.recipe, progress)?;
    }
    if !unseen.is_empty() {
        let judged = judge(&detector, &unseen);
        sections.push(section(
            "People, sources and families the model never learnt from, by the model itself",
            &judged,
            card.threshold.nats,
        ));
    }
    Ok(Report {
        model,
        task: "bot",
        seed: card.recipe.seed,
        threshold_nats: card.threshold.nats,
        sections,
        recorder,
        shift,
        warnings: WARNINGS.map(String::from).to_vec(),
    })
}

const WARNINGS: [&str; 4] = [
    "People and bots here were recorded by different programs. Part of any difference may be the recorder; \
     the human-vs-replayed-human AUC says how much of it the model can see, and only through a simulated recorder.",
    "Intervals come from resampling whole people and whole bot sessions; with few families they say nothing \
     about the next family.",
    "Bots that replay a person's own movements are people to a model of movement, and are not counted here.",
    "No figure here promises anything about a site that has not been learnt: there the model shows and does \
     not log out.",
];

/// Judges recordings by a finished model, window by window.
fn judge(detector: &Detector, recordings: &[Recording]) -> Vec<HeldOut> {
    let judged = dataset::join_short(recordings.to_vec()).into_iter().map(|recording| HeldOut {
        windows: dataset::windows(&recording.events)
            .iter()
            .map(|window| HeldOutWindow {
                short: detector.log_ratio_by(window, Some(Span::Short)),
                long: window.long.as_ref().and_then(|_| detector.log_ratio_by(window, Some(Span::Long))),
                fused: detector.window_log_ratio(window),
            })
            .collect(),
        source: recording.source,
        user: recording.user,
        family: recording.family,
        session: recording.session,
        anew: false,
    });
    judged.collect()
}

fn leave_sources_out(
    recordings: &[Recording],
    recipe: &train::Recipe,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Shift>, EvaluateError> {
    let of_people = recordings.iter().filter(|recording| recording.family.is_none());
    let sources: BTreeSet<String> = of_people.map(|recording| recording.source.clone()).collect();
    let mut shifts = Vec::new();
    for source in sources {
        let is_left = |recording: &&Recording| recording.source == source;
        let rest: Vec<Recording> = recordings.iter().filter(|r| !is_left(r)).cloned().collect();
        let trained = train::train(&rest, recipe, progress)?;
        let threshold = trained.artifact.card.threshold.nats;
        let detector = Detector::new(trained.artifact, String::new());
        let people = recordings.iter().filter(|r| is_left(r) && r.family.is_none()).cloned();
        let judged = judge(&detector, &people.collect::<Vec<_>>());
        let sessions: Vec<&HeldOut> = judged.iter().collect();
        shifts.push(Shift { group: group(&sessions, threshold), source });
    }
    Ok(shifts)
}

fn recorder_leak(original: &[HeldOut], anew: &[HeldOut]) -> RecorderLeak {
    let mut names = Names::default();
    let mut people = |sessions: &[HeldOut], label: bool| -> Vec<Judged> {
        let people = sessions.iter().filter(|session| session.family.is_none());
        let scores = people.flat_map(|session| {
            let cluster = names.number(&session.user);
            let fused = session.windows.iter().filter_map(|window| window.fused);
            fused.map(move |score| Judged { score, positive: label, cluster })
        });
        scores.collect()
    };
    let mut rows = people(original, false);
    rows.extend(people(anew, true));
    RecorderLeak {
        human_vs_replayed_human_auc: figure(&rows, auc),
        note: "held-out people against the same people's movements recorded anew by a simulated browser \
               (other display, mouse, zoom and clock); .5 means the model cannot tell the recorder"
            .into(),
    }
}

fn section(name: &str, sessions: &[HeldOut], threshold: f32) -> Section {
    let pick = |span: fn(&HeldOutWindow) -> Option<f32>| -> Vec<Judged> {
        let mut names = Names::default();
        let rows = sessions.iter().flat_map(|session| {
            let positive = session.family.is_some();
            let cluster = names.number(if positive { &session.session } else { &session.user });
            let scores = session.windows.iter().filter_map(span);
            scores.map(move |score| Judged { score, positive, cluster })
        });
        rows.collect()
    };
    let fused = pick(|window| window.fused);
    let mut groups: BTreeMap<(bool, &str, Option<&str>), Vec<&HeldOut>> = BTreeMap::new();
    for session in sessions {
        let key = (session.family.is_some(), session.source.as_str(), session.family.as_deref());
        groups.entry(key).or_default().push(session);
    }
    Section {
        name: name.into(),
        windows: vec![
            metrics("10 s", &pick(|window| window.short)),
            metrics("30 s", &pick(|window| window.long)),
            metrics("as judged live", &fused),
        ],
        groups: groups.values().map(|sessions| group(sessions, threshold)).collect(),
        sessions: session_metrics(sessions, threshold),
        roc: roc(&fused),
    }
}

fn metrics(span: &'static str, rows: &[Judged]) -> WindowMetrics {
    let people = rows.iter().filter(|row| !row.positive).count();
    WindowMetrics {
        span,
        people,
        bots: rows.len() - people,
        accuracy: figure(rows, |rows| share(rows, |_| true, |row| (row.score > 0.0) == row.positive)),
        balanced_accuracy: figure(rows, |rows| 1.0 - 0.5 * (far(rows) + frr(rows))),
        // Without bots there is nothing to be precise about.
        precision: figure(rows, |rows| match rows.iter().any(|row| row.positive) {
            true => share(rows, |row| row.score > 0.0, |row| row.positive),
            false => f64::NAN,
        }),
        recall: figure(rows, |rows| 1.0 - far(rows)),
        f1: figure(rows, |rows| {
            let hits = rows.iter().filter(|row| row.positive && row.score > 0.0).count() as f64;
            let wrong = rows.iter().filter(|row| row.positive != (row.score > 0.0)).count() as f64;
            if rows.iter().any(|row| row.positive) { 2.0 * hits / (2.0 * hits + wrong) } else { f64::NAN }
        }),
        far: figure(rows, far),
        frr: figure(rows, frr),
        eer: figure(rows, eer),
        auc: figure(rows, auc),
        brier: figure(rows, |rows| {
            let error = |row: &Judged| {
                (f64::from(probability(row.score)) - f64::from(u8::from(row.positive))).powi(2)
            };
            rows.iter().map(error).sum::<f64>() / rows.len() as f64
        }),
        ece: figure(rows, ece),
    }
}

fn group(sessions: &[&HeldOut], threshold: f32) -> Group {
    let mut names = Names::default();
    let rows = sessions.iter().flat_map(|session| {
        let cluster = names.number(if session.family.is_some() { &session.session } else { &session.user });
        let scores = session.windows.iter().filter_map(|window| window.fused);
        scores.map(move |score| Judged { score, positive: true, cluster })
    });
    let rows: Vec<Judged> = rows.collect();
    let mut delays: Vec<usize> = sessions.iter().filter_map(|session| reach(session, threshold)).collect();
    delays.sort_unstable();
    Group {
        source: sessions.first().map(|session| session.source.clone()).unwrap_or_default(),
        family: sessions.first().and_then(|session| session.family.clone()),
        sessions: sessions.len(),
        windows: sessions.iter().map(|session| session.windows.len()).sum(),
        judged: rows.len(),
        called_bot: figure(&rows, |rows| share(rows, |_| true, |row| row.score > 0.0)),
        reached: delays.len(),
        windows_to_reach: delays.get(delays.len() / 2).copied(),
    }
}

/// After how many windows a session's evidence reaches the threshold.
fn reach(session: &HeldOut, threshold: f32) -> Option<usize> {
    let mut evidence = 0.0;
    let reaches = |window: &HeldOutWindow| {
        evidence = window.fused.map_or(evidence, |log_ratio| cusum(evidence, log_ratio));
        evidence >= threshold
    };
    session.windows.iter().position(reaches).map(|at| at + 1)
}

fn session_metrics(sessions: &[HeldOut], threshold: f32) -> SessionMetrics {
    let count = |bot: bool| {
        let of_kind = sessions.iter().filter(|session| session.family.is_some() == bot);
        let reached = of_kind.clone().filter(|session| reach(session, threshold).is_some()).count();
        (of_kind.count(), reached)
    };
    let ((people, people_reached), (bots, bots_reached)) = (count(false), count(true));
    let human = sessions.iter().filter(|session| session.family.is_none());
    let people_hours = human.map(|session| session.windows.len() as f64).sum::<f64>() * 10.0 / 3600.0;
    let (low, high) = clopper_pearson(people_reached, people);
    let per_session = if people_hours > 0.0 { 1000.0 * people as f64 / people_hours } else { f64::NAN };
    let value = people_reached as f64 / people.max(1) as f64;
    SessionMetrics {
        people,
        people_reached,
        bots,
        bots_reached,
        people_hours,
        false_logouts_per_1000_hours: Figure {
            value: value * per_session,
            low: low * per_session,
            high: high * per_session,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rows;
    use super::*;

    #[test]
    fn figures_of_a_small_example_are_those_worked_out_by_hand() {
        let rows =
            rows(&[(2.0, true), (1.0, false), (0.5, true), (-1.0, false), (-2.0, false), (-3.0, true)]);
        let metrics = metrics("10 s", &rows);
        assert!((metrics.accuracy.value - 4.0 / 6.0).abs() < 1e-9);
        assert!((metrics.precision.value - 2.0 / 3.0).abs() < 1e-9);
        assert!((metrics.recall.value - 2.0 / 3.0).abs() < 1e-9);
        assert!((metrics.f1.value - 2.0 / 3.0).abs() < 1e-9);
        assert!((metrics.far.value - 1.0 / 3.0).abs() < 1e-9);
        assert!((metrics.frr.value - 1.0 / 3.0).abs() < 1e-9);
        // Pairs won: 3 + 2 + 0 of 9.
        assert!((metrics.auc.value - 5.0 / 9.0).abs() < 1e-9);
        assert!(metrics.auc.low <= metrics.auc.value && metrics.auc.value <= metrics.auc.high);
    }
}
