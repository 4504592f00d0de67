//! The task "bot": how well a model does on people and bots it never learnt from.
//!
//! Recordings of people and families the model learnt from are judged by forests grown without them,
//! by the model's own recipe, with calibration and threshold from the other half of people and families;
//! all others by the model itself. Thresholds are fixed before: a window is called a bot above even
//! odds, a session at its threshold. Must not know: files, pages.

use super::{
    Confusion, EvaluateError, Figure, Judged, Names, Reliability, auc, clopper_pearson, ece, eer, far,
    figure, frr, reliability, roc, share,
};
use crate::artifact::{Artifact, Span};
use crate::dataset::{self, Recording, Watched};
use crate::detector::{Detector, Modality, probability};
use crate::sequential::cusum;
use crate::session::Window;
use crate::sim::recorder::record_anew;
use crate::train::learn::device_of;
use crate::train::{self, Algorithm, HeldOut, HeldOutWindow, Progress, SIMULATOR};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Everything `gaitway evaluate --task bot` reports.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub task: &'static str,
    pub model: String,
    pub algorithm: Algorithm,
    pub seed: u64,
    pub thresholds: Thresholds,
    /// What the metrics below were computed on.
    pub n: Counts,
    /// Over all recordings (no simulated ones), each judged without having been learnt from, unless a
    /// warning says otherwise; by the span of the pointer's windows.
    pub metrics: BTreeMap<&'static str, WindowMetrics>,
    pub human_vs_replayed_human_auc: Option<Figure>,
    pub sessions: SessionMetrics,
    pub sections: Vec<Section>,
    /// People of each source as judged by the same recipe that learnt from all other sources only.
    pub shift: Vec<Shift>,
    /// What to keep in mind when reading the figures.
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Thresholds {
    /// A window above this log-likelihood ratio is called a bot.
    pub window_nats: f32,
    /// A session whose evidence reaches this is called a bot, by the model itself. Sessions that were
    /// held out are judged at the threshold that the other half of the people gave.
    pub session_nats: f32,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counts {
    pub people: usize,
    pub sessions_of_people: usize,
    pub sessions_of_bots: usize,
    pub bot_families: usize,
}

/// Recordings judged in one way.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    pub name: String,
    /// Windows whose pointer was judged by 10 s alone, by 30 s alone, and as the ledger gets them.
    pub windows: Vec<WindowMetrics>,
    /// Can the model tell these people from the same people recorded anew by a simulated browser (other
    /// display, mouse, zoom and clock)? .5 is no leak. Says how far the figures may be the recorder's.
    pub human_vs_replayed_human_auc: Option<Figure>,
    pub confusion_of_windows: Confusion,
    pub confusion_of_sessions: Confusion,
    pub groups: Vec<Group>,
    /// Each source alone: where one recorder took people and bots down, its AUC cannot be the recorder's.
    pub sources: Vec<Slice>,
    pub devices: Vec<Slice>,
    pub modalities: Vec<Slice>,
    pub sessions: SessionMetrics,
    /// Points of the ROC curve of the ledger's windows: false alarms, detections.
    pub roc: Vec<(f64, f64)>,
    pub reliability: Vec<Reliability>,
}

/// All sessions of one source, of one class of device, or of one kind of input.
#[derive(Clone, Debug, Serialize)]
pub struct Slice {
    pub name: String,
    pub sessions: usize,
    /// Windows judged.
    pub people: usize,
    pub bots: usize,
    pub auc: Figure,
    /// As of the section, of these people alone; only of a source.
    pub human_vs_replayed_human_auc: Option<Figure>,
    pub far: Figure,
    pub frr: Figure,
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
    /// Seconds from the first event until then, pauses included: median and the slowest tenth's least.
    pub seconds_to_reach: Option<(f32, f32)>,
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
    let (mut known, mut unseen): (Vec<Recording>, Vec<Recording>) =
        recordings.iter().cloned().partition(learnt);
    let mut warnings: Vec<String> = WARNINGS.map(String::from).to_vec();
    if !known.is_empty() && !train::can_learn_from(&known) {
        // Too few to hold any out: say so rather than judge bots by a model that has met no people.
        warnings.insert(0, KNOWN_TOO_FEW.into());
        unseen.append(&mut known);
    }
    let (mut sections, mut judgements, mut shift) = (Vec::new(), Vec::new(), Vec::new());
    if !known.is_empty() {
        let trained = train::train(&known, &card.recipe, progress)?;
        let mut own = held_out_sections(trained.held_out, &mut judgements);
        sections.append(&mut own);
        shift = leave_sources_out(&known, &card.recipe, progress)?;
    }
    if !unseen.is_empty() {
        let mut judged = judge(&detector, &unseen);
        let mut rng = ChaCha8Rng::seed_from_u64(card.recipe.seed);
        let people = unseen.iter().filter(|recording| recording.family.is_none()).cloned();
        let anew = people.map(|person| Recording { events: record_anew(&person.events, &mut rng), ..person });
        let anew = judge(&detector, &anew.collect::<Vec<_>>());
        sections.push(section("Recordings judged by the model itself", &judged, &anew));
        judgements.append(&mut judged);
        judgements.extend(anew.into_iter().map(|session| HeldOut { anew: true, ..session }));
    }
    let (anew, all): (Vec<HeldOut>, Vec<HeldOut>) = judgements.into_iter().partition(|session| session.anew);
    let whole = section("All recordings together", &all, &anew);
    let (metrics, sessions) =
        (whole.windows.iter().map(|m| (m.span, m.clone())).collect(), whole.sessions.clone());
    let human_vs_replayed_human_auc = whole.human_vs_replayed_human_auc;
    if !shift.is_empty() && !unseen.is_empty() {
        sections.insert(0, whole);
    }
    Ok(Report {
        task: "bot",
        model,
        algorithm: card.recipe.algorithm,
        seed: card.recipe.seed,
        thresholds: Thresholds { window_nats: 0.0, session_nats: card.threshold.nats },
        n: counts(&all),
        metrics,
        human_vs_replayed_human_auc,
        sessions,
        sections,
        shift,
        warnings,
    })
}

/// What training says of the sessions it held out, recordings and simulated visitors apart.
pub fn sections_of_training(held_out: Vec<HeldOut>) -> Vec<Section> {
    held_out_sections(held_out, &mut Vec::new())
}

/// Sections of what was held out; recordings, as they are and recorded anew, also go to `recorded`.
fn held_out_sections(held_out: Vec<HeldOut>, recorded: &mut Vec<HeldOut>) -> Vec<Section> {
    let (simulated, real): (Vec<HeldOut>, Vec<HeldOut>) =
        held_out.into_iter().partition(|session| session.source == SIMULATOR);
    let (anew, real): (Vec<HeldOut>, Vec<HeldOut>) = real.into_iter().partition(|session| session.anew);
    let sections = vec![
        section("Recordings, by forests that never saw the person or the bot family", &real, &anew),
        section("Simulated visitors, held out the same way", &simulated, &[]),
    ];
    recorded.extend(real.into_iter().chain(anew));
    sections
}

fn counts(sessions: &[HeldOut]) -> Counts {
    let people = sessions.iter().filter(|session| session.family.is_none());
    Counts {
        people: people.clone().map(|session| &session.user).collect::<BTreeSet<_>>().len(),
        sessions_of_people: people.clone().count(),
        sessions_of_bots: sessions.len() - people.count(),
        bot_families: sessions
            .iter()
            .filter_map(|session| session.family.as_ref())
            .collect::<BTreeSet<_>>()
            .len(),
    }
}

const KNOWN_TOO_FEW: &str = "The model has learnt from some of these people or bot families, and there are too few \
     of them here to grow forests without: all were judged by the model itself, so figures of what it knows flatter it.";

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
pub(super) fn judge(detector: &Detector, recordings: &[Recording]) -> Vec<HeldOut> {
    let judged = dataset::join_short(recordings.to_vec()).into_iter().map(|recording| {
        let class = device_of(&recording);
        let Watched { windows, seconds, modality } = dataset::watch(&recording.events);
        let says = |(window, seconds): (&Window, f32)| HeldOutWindow {
            short: detector.log_ratio_by(window, Some(Span::Short)),
            long: window.long.as_ref().and_then(|_| detector.log_ratio_by(window, Some(Span::Long))),
            fused: detector.log_ratio_on(window, class),
            seconds,
        };
        HeldOut {
            device: dataset::device(&recording.marks, &windows),
            modality,
            threshold: detector.threshold(),
            windows: windows.iter().zip(seconds).map(says).collect(),
            source: recording.source,
            user: recording.user,
            family: recording.family,
            session: recording.session,
            anew: false,
        }
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
        let detector = Detector::new(trained.artifact, String::new());
        let people = recordings.iter().filter(|r| is_left(r) && r.family.is_none()).cloned();
        let judged = judge(&detector, &people.collect::<Vec<_>>());
        let sessions: Vec<&HeldOut> = judged.iter().collect();
        shifts.push(Shift { group: group(&sessions), source });
    }
    Ok(shifts)
}

/// Of all sources, or of one.
fn recorder_leak(original: &[HeldOut], anew: &[HeldOut], source: Option<&str>) -> Option<Figure> {
    let mut names = Names::default();
    let mut people = |sessions: &[HeldOut], positive: bool| -> Vec<Judged> {
        let is_meant = |session: &&HeldOut| {
            session.family.is_none() && source.is_none_or(|source| session.source == source)
        };
        let scores = sessions.iter().filter(is_meant).flat_map(|session| {
            let cluster = names.number(&session.user);
            let fused = session.windows.iter().filter_map(|window| window.fused);
            fused.map(move |score| Judged { score, positive, cluster })
        });
        scores.collect()
    };
    let mut rows = people(original, false);
    rows.extend(people(anew, true));
    rows.iter().any(|row| row.positive).then(|| figure(&rows, auc))
}

/// The judged windows of some sessions.
fn judged<'a>(
    sessions: impl Iterator<Item = &'a HeldOut>,
    span: fn(&HeldOutWindow) -> Option<f32>,
) -> Vec<Judged> {
    let mut names = Names::default();
    let rows = sessions.flat_map(|session| {
        let positive = session.family.is_some();
        let cluster = names.number(if positive { &session.session } else { &session.user });
        let scores = session.windows.iter().filter_map(span);
        scores.map(move |score| Judged { score, positive, cluster })
    });
    rows.collect()
}

fn slices(sessions: &[HeldOut], name: impl Fn(&HeldOut) -> String) -> Vec<Slice> {
    let mut slices: BTreeMap<String, Vec<&HeldOut>> = BTreeMap::new();
    sessions.iter().for_each(|session| slices.entry(name(session)).or_default().push(session));
    let slice = |(name, sessions): (String, Vec<&HeldOut>)| {
        let rows = judged(sessions.iter().copied(), |window| window.fused);
        let bots = rows.iter().filter(|row| row.positive).count();
        Slice {
            name,
            sessions: sessions.len(),
            people: rows.len() - bots,
            bots,
            auc: figure(&rows, auc),
            human_vs_replayed_human_auc: None,
            far: figure(&rows, far),
            frr: figure(&rows, frr),
        }
    };
    slices.into_iter().map(slice).collect()
}

fn modality_name(session: &HeldOut) -> String {
    let name = match session.modality {
        Modality::None => "none",
        Modality::Mouse => "mouse",
        Modality::Touch => "touch",
        Modality::Keyboard => "keyboard",
        Modality::Mixed => "mixed",
    };
    name.into()
}

fn section(name: &str, sessions: &[HeldOut], anew: &[HeldOut]) -> Section {
    let fused = judged(sessions.iter(), |window| window.fused);
    let mut sources = slices(sessions, |session| session.source.clone());
    for source in &mut sources {
        source.human_vs_replayed_human_auc = recorder_leak(sessions, anew, Some(&source.name));
    }
    let mut groups: BTreeMap<(bool, &str, Option<&str>), Vec<&HeldOut>> = BTreeMap::new();
    for session in sessions {
        let key = (session.family.is_some(), session.source.as_str(), session.family.as_deref());
        groups.entry(key).or_default().push(session);
    }
    Section {
        name: name.into(),
        windows: vec![
            metrics("10 s", &judged(sessions.iter(), |window| window.short)),
            metrics("30 s", &judged(sessions.iter(), |window| window.long)),
            metrics("as judged live", &fused),
        ],
        human_vs_replayed_human_auc: recorder_leak(sessions, anew, None),
        confusion_of_windows: Confusion::count(fused.iter().map(|row| (row.positive, row.score > 0.0))),
        confusion_of_sessions: Confusion::count(
            sessions.iter().map(|session| (session.family.is_some(), reach(session).is_some())),
        ),
        groups: groups.values().map(|sessions| group(sessions)).collect(),
        sources,
        devices: slices(sessions, |session| session.device.clone()),
        modalities: slices(sessions, modality_name),
        sessions: session_metrics(sessions),
        roc: roc(&fused),
        reliability: reliability(&fused),
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

fn group(sessions: &[&HeldOut]) -> Group {
    let mut names = Names::default();
    let rows = sessions.iter().flat_map(|session| {
        let cluster = names.number(if session.family.is_some() { &session.session } else { &session.user });
        let scores = session.windows.iter().filter_map(|window| window.fused);
        scores.map(move |score| Judged { score, positive: true, cluster })
    });
    let rows: Vec<Judged> = rows.collect();
    let mut delays: Vec<usize> = sessions.iter().filter_map(|session| reach(session)).collect();
    delays.sort_unstable();
    let at = |session: &&HeldOut| Some(session.windows.get(reach(session)? - 1)?.seconds);
    let mut seconds: Vec<f32> = sessions.iter().filter_map(at).collect();
    seconds.sort_by(f32::total_cmp);
    Group {
        source: sessions.first().map(|session| session.source.clone()).unwrap_or_default(),
        family: sessions.first().and_then(|session| session.family.clone()),
        sessions: sessions.len(),
        windows: sessions.iter().map(|session| session.windows.len()).sum(),
        judged: rows.len(),
        called_bot: figure(&rows, |rows| share(rows, |_| true, |row| row.score > 0.0)),
        reached: delays.len(),
        windows_to_reach: delays.get(delays.len() / 2).copied(),
        seconds_to_reach: seconds
            .get(seconds.len() / 2)
            .zip(seconds.get(seconds.len() * 9 / 10))
            .map(|(&half, &most)| (half, most)),
    }
}

/// After how many windows a session's evidence reaches its threshold.
pub(super) fn reach(session: &HeldOut) -> Option<usize> {
    let mut evidence = 0.0;
    let reaches = |window: &HeldOutWindow| {
        evidence = window.fused.map_or(evidence, |log_ratio| cusum(evidence, log_ratio));
        evidence >= session.threshold
    };
    session.windows.iter().position(reaches).map(|at| at + 1)
}

fn session_metrics(sessions: &[HeldOut]) -> SessionMetrics {
    let count = |bot: bool| {
        let of_kind = sessions.iter().filter(|session| session.family.is_some() == bot);
        let reached = of_kind.clone().filter(|session| reach(session).is_some()).count();
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
