//! The task "site": each source in turn is a site the model never saw; half its people teach it, the
//! other half and that site's bots are judged.
//!
//! Learning and judging run through the code that runs live. A site's bots are those of its own source,
//! else those of sources without people; neither they nor their kin, nor anything else of that source,
//! stay in the bank that is learnt against, and no shipped expert speaks. Must not know: files, pages.

use super::{EvaluateError, Figure, Judged, Names, auc, clopper_pearson, figure, frr, share};
use crate::artifact::{Artifact, short_hash};
use crate::dataset::{self, Label, Marks, Recording};
use crate::detector::Detector;
use crate::population::{ASKS, Device, Kind};
use crate::sequential::{Threshold, cusum};
use crate::session::Window;
use crate::sim::recorder;
use crate::train::learn::{self, LearnRecipe, ShadowSession, bank_without, learn, shadow_sessions};
use crate::train::{Progress, TrainError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Everything `gaitway evaluate --task site` reports.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub task: &'static str,
    pub seed: u64,
    /// Share of the windows learnt from that were to be hidden bots.
    pub contaminate: f32,
    pub sites: Vec<Site>,
    pub unlearnt: Vec<Unlearnt>,
    /// Sources with people that could not be taught, and why.
    pub skipped: Vec<(String, String)>,
    pub warnings: Vec<String>,
}

/// One source as a site never seen. Windows are of 30 s; the threshold is the one learnt.
#[derive(Clone, Debug, Serialize)]
pub struct Site {
    pub source: String,
    /// How the people were halved.
    pub split: &'static str,
    pub people: usize,
    pub auc: Figure,
    /// Share of bots' windows called a bot; windows of a stratum not learnt count as missed.
    pub recall: Figure,
    /// Share of people's judged windows called a bot.
    pub frr: Figure,
    /// The model told these people from the same people recorded anew; .5 is no leak of the recorder.
    pub human_vs_replayed_human_auc: Figure,
    /// The same site with people and bots all recorded anew by one simulated recorder.
    pub recorder_equal: Option<Equal>,
    /// The two halves, each the teacher once.
    pub lessons: Vec<Lesson>,
    pub groups: Vec<Group>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Equal {
    pub auc: Figure,
    pub recall: Figure,
    pub frr: Figure,
}

/// What one half taught.
#[derive(Clone, Debug, Serialize)]
pub struct Lesson {
    pub people: u32,
    pub sessions: u32,
    pub windows: usize,
    /// Windows of hidden bots among those, and how many of them were set aside or left.
    pub hidden_windows: usize,
    pub hidden_sessions: usize,
    pub set_aside_sessions: u32,
    /// Share of bots estimated while learning: value, 95 % interval.
    pub bots_estimated: (f32, f32, f32),
    pub threshold: Threshold,
    /// Strata learnt, and kinds seen but not learnt.
    pub strata: Vec<&'static str>,
    pub untaught: Vec<&'static str>,
}

/// People of one device, or bots of one family.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// Device class of people, family of bots.
    pub who: String,
    pub bot: bool,
    pub sessions: usize,
    /// Windows with enough pointer movement, and those of a learnt stratum.
    pub windows: usize,
    pub judged: usize,
    pub called_bot: Figure,
    /// Sessions whose evidence reached the threshold.
    pub reached: usize,
}

/// People of a device class that was kept from the site's lesson.
#[derive(Clone, Debug, Serialize)]
pub struct Unlearnt {
    pub source: String,
    pub device: String,
    pub windows: usize,
    /// Windows the model refused to judge.
    pub unknown: usize,
    pub called_bot: usize,
    /// Share called a bot, with Clopper and Pearson's interval.
    pub share: Figure,
}

/// Evaluates a model's bank and the learning itself on each source. The seed draws hidden bots, recorders
/// and trees; without one it is the model's own.
pub fn evaluate(
    artifact: &[u8],
    recordings: &[Recording],
    contaminate: f32,
    seed: Option<u64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, EvaluateError> {
    if recordings.is_empty() {
        return Err(EvaluateError::Empty);
    }
    let mut base = Artifact::decode(artifact)?;
    base.card.experts.clear();
    base.forests.clear();
    base.people.clear();
    let seed = seed.unwrap_or(base.card.recipe.seed);
    let trial = Trial { base, recordings, contaminate, seed };
    let sources: BTreeSet<&str> =
        recordings.iter().filter(|r| r.label == Label::Human).map(|r| r.source.as_str()).collect();
    let (mut sites, mut unlearnt, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for (i, source) in sources.iter().enumerate() {
        progress(Progress {
            step: i + 1,
            steps: sources.len(),
            what: format!("{source} as a site never seen"),
        });
        match trial.site(source) {
            Ok(site) => {
                sites.push(site);
                unlearnt.extend(trial.unlearnt(source)?);
            }
            Err(TrainError::Untaught { sessions, windows }) => {
                skipped.push((source.to_string(), TrainError::Untaught { sessions, windows }.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Report {
        model: short_hash(artifact),
        task: "site",
        seed,
        contaminate,
        sites,
        unlearnt,
        skipped,
        warnings: WARNINGS.map(String::from).to_vec(),
    })
}

const WARNINGS: [&str; 4] = [
    "A site's people and its bots were recorded by different programs wherever the bots come from another source. \
     What depends on the recorder is not looked at; the human-vs-replayed-human AUC says what still leaks, and the \
     recorder-equal figures what remains when both sides are recorded anew by one simulated recorder.",
    "Where a source names fewer than six people, its names are devices: both halves then hold each of them, and \
     probably the same hands.",
    "Intervals come from resampling whole people and whole bot sessions; with few of either they are rough, and \
     say nothing about the next family.",
    "Hidden bots are sessions of the families that are judged, other sessions of them, and a share of the windows \
     of their own kind of input; where there are too few, they are recorded anew until the share is reached.",
];

struct Trial<'a> {
    base: Artifact,
    recordings: &'a [Recording],
    contaminate: f32,
    seed: u64,
}

/// A bot's session, its windows, and which half of the trial it is judged in.
struct Bot {
    session: String,
    family: String,
    events: Recording,
    windows: Vec<Window>,
    half: usize,
}

/// Windows of one session as judged.
struct Seen {
    who: String,
    bot: bool,
    cluster: String,
    /// Nats of each window with enough movement; `None` for a stratum not learnt.
    says: Vec<Option<f32>>,
    reached: bool,
}

impl Trial<'_> {
    fn site(&self, source: &str) -> Result<Site, TrainError> {
        let (halves, split, people) = self.halves(source);
        let bots = self.bots(source);
        let base = self.base_for(source, &bots);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x517E);
        let (mut seen, mut replayed, mut lessons, mut equal) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for half in 0..2 {
            let (mut sessions, _) = shadow_sessions(&halves[half]);
            let hidden = self.hide(&mut sessions, &bots, half, &mut rng);
            let taught = learn(&sessions, &base, &recipe(self.seed), &mut |_| ())?;
            lessons.push(lesson(&taught, &sessions, hidden));
            let detector = Detector::new(taught.artifact, String::new());
            let tested = shadow_sessions(&halves[1 - half]).0;
            seen.extend(
                tested.iter().map(|session| judge_person(&detector, session, &session.windows, source)),
            );
            seen.extend(
                bots.iter().filter(|bot| bot.half == half).map(|bot| judge_bot(&detector, bot, &bot.windows)),
            );
            let anew = |recordings: &[Recording], rng: &mut ChaCha8Rng| -> Vec<ShadowSession> {
                let joined = dataset::join_input(recordings.to_vec()).into_iter();
                let anew = joined.map(|r| Recording { events: recorder::record_anew(&r.events, rng), ..r });
                shadow_sessions(&anew.collect::<Vec<_>>()).0
            };
            let tested_anew = anew(&halves[1 - half], &mut rng);
            replayed.extend(tested_anew.iter().map(|s| judge_person(&detector, s, &s.windows, source)));
            if self.contaminate == 0.0
                && let Ok(taught) =
                    learn(&anew(&halves[half], &mut rng), &base, &recipe(self.seed), &mut |_| ())
            {
                let detector = Detector::new(taught.artifact, String::new());
                equal.extend(tested_anew.iter().map(|s| judge_person(&detector, s, &s.windows, source)));
                equal.extend(bots.iter().filter(|bot| bot.half == half).map(|bot| {
                    let windows = dataset::windows(&recorder::record_anew(&bot.events.events, &mut rng));
                    judge_bot(&detector, bot, &windows)
                }));
            }
        }
        let (rows, all) = (judged(&seen), with_unknown(&seen));
        let leak: Vec<Judged> = judged(&seen)
            .into_iter()
            .filter(|row| !row.positive)
            .chain(judged(&replayed).into_iter().map(|row| Judged { positive: true, ..row }))
            .collect();
        let recall = |rows: &[Judged]| share(rows, |row| row.positive, |row| row.score > 0.0);
        let equal = (!equal.is_empty()).then(|| Equal {
            auc: figure(&judged(&equal), auc),
            recall: figure(&with_unknown(&equal), recall),
            frr: figure(&judged(&equal), frr),
        });
        Ok(Site {
            source: source.to_string(),
            split,
            people,
            auc: figure(&rows, auc),
            recall: figure(&all, recall),
            frr: figure(&rows, frr),
            human_vs_replayed_human_auc: figure(&leak, auc),
            recorder_equal: equal,
            lessons,
            groups: groups(&seen),
        })
    }

    /// The people of each device class, judged by a model that all others taught.
    fn unlearnt(&self, source: &str) -> Result<Vec<Unlearnt>, TrainError> {
        let (halves, split, _) = self.halves(source);
        let base = self.base_for(source, &self.bots(source));
        let (sessions, _) = shadow_sessions(&halves.concat());
        let class =
            |session: &ShadowSession, window: &Window| device_class(session, window, split != BY_USER);
        let with_class = |wanted: &dyn Fn(&str) -> bool| -> Vec<ShadowSession> {
            let part = |session: &ShadowSession| {
                let windows =
                    session.windows.iter().filter(|w| class(session, w).is_some_and(|c| wanted(&c)));
                ShadowSession { windows: windows.copied().collect(), ..session.clone() }
            };
            sessions.iter().map(part).filter(|session| !session.windows.is_empty()).collect()
        };
        let classes: BTreeSet<String> =
            sessions.iter().flat_map(|s| s.windows.iter().filter_map(|w| class(s, w))).collect();
        let mut unlearnt = Vec::new();
        for device in classes.iter().filter(|_| classes.len() > 1) {
            let taught = match learn(&with_class(&|c| c != device), &base, &recipe(self.seed), &mut |_| ()) {
                Ok(taught) => taught,
                // The rest is too little to teach anything.
                Err(TrainError::Untaught { .. }) => continue,
                Err(error) => return Err(error),
            };
            let detector = Detector::new(taught.artifact, String::new());
            let seen: Vec<Seen> = with_class(&|c| c == device)
                .iter()
                .map(|session| judge_person(&detector, session, &session.windows, source))
                .collect();
            let says: Vec<Option<f32>> = seen.iter().flat_map(|seen| seen.says.iter().copied()).collect();
            let called = says.iter().flatten().filter(|says| **says > 0.0).count();
            let (low, high) = clopper_pearson(called, says.len());
            unlearnt.push(Unlearnt {
                source: source.to_string(),
                device: device.clone(),
                windows: says.len(),
                unknown: says.iter().filter(|says| says.is_none()).count(),
                called_bot: called,
                share: Figure { value: called as f64 / says.len().max(1) as f64, low, high },
            });
        }
        Ok(unlearnt)
    }

    /// A source's people in two halves, nobody labelled: by user; where there are few names, each name's
    /// recordings are dealt to both.
    fn halves(&self, source: &str) -> ([Vec<Recording>; 2], &'static str, usize) {
        let people = || self.recordings.iter().filter(|r| r.source == source && r.label == Label::Human);
        let names: BTreeSet<&str> = people().map(|recording| recording.user.as_str()).collect();
        let by_user = names.len() >= learn::USERS_MIN;
        let mut halves = [Vec::new(), Vec::new()];
        let mut dealt: BTreeMap<&str, usize> = BTreeMap::new();
        for recording in people() {
            let place = if by_user {
                names.iter().position(|name| *name == recording.user).unwrap_or(0)
            } else {
                let dealt = dealt.entry(&recording.user).or_default();
                *dealt += 1;
                *dealt
            };
            let marks = Marks { device: recording.marks.device.clone(), ..Marks::default() };
            halves[place % 2].push(Recording { label: Label::Unknown, marks, ..recording.clone() });
        }
        (halves, if by_user { BY_USER } else { BY_RECORDING }, names.len())
    }

    fn bots(&self, source: &str) -> Vec<Bot> {
        let of = |wanted: &dyn Fn(&Recording) -> bool| -> Vec<Recording> {
            let bots = self.recordings.iter().filter(|r| r.label == Label::Bot && wanted(r));
            dataset::join_input(bots.cloned().collect())
        };
        let peopled: BTreeSet<&str> =
            self.recordings.iter().filter(|r| r.label == Label::Human).map(|r| r.source.as_str()).collect();
        let mut bots = of(&|r| r.source == source);
        if bots.is_empty() {
            bots = of(&|r| !peopled.contains(r.source.as_str()));
        }
        let mut dealt: BTreeMap<String, usize> = BTreeMap::new();
        let bot = |recording: Recording| {
            let family = recording.family.clone().unwrap_or_default();
            let dealt = dealt.entry(family.clone()).or_default();
            *dealt += 1;
            Bot {
                windows: dataset::windows(&recording.events),
                session: recording.session.clone(),
                family,
                half: *dealt % 2,
                events: recording,
            }
        };
        bots.into_iter().map(bot).filter(|bot| bot.windows.iter().any(enough)).collect()
    }

    fn base_for(&self, source: &str, bots: &[Bot]) -> Artifact {
        let families = bots.iter().map(|bot| bot.family.clone()).collect();
        Artifact { bank: bank_without(&self.base.bank, &families, source), ..self.base.clone() }
    }

    /// Adds hidden bots to a site's sessions, of those judged in the other half, until they are the share
    /// asked for of the windows of their kinds of input. Returns sessions and windows added.
    fn hide(
        &self,
        sessions: &mut Vec<ShadowSession>,
        bots: &[Bot],
        half: usize,
        rng: &mut ChaCha8Rng,
    ) -> (usize, usize) {
        let kinds: BTreeSet<Kind> = bots.iter().flat_map(|bot| bot.windows.iter().filter_map(kind)).collect();
        let alike = |window: &&Window| kind(window).is_some_and(|kind| kinds.contains(&kind));
        let own: usize = sessions.iter().map(|s| s.windows.iter().filter(alike).count()).sum();
        let wanted = (self.contaminate / (1.0 - self.contaminate) * own as f32).round() as usize;
        let mut others: Vec<&Bot> = bots.iter().filter(|bot| bot.half != half).collect();
        others.shuffle(rng);
        // A bot that hides comes with a browser such as the people's.
        let devices: Vec<Device> = sessions.iter().map(|session| session.device).collect();
        let (mut n, mut hidden) = (0, 0);
        while hidden < wanted && !others.is_empty() && n < HIDDEN_SESSIONS_MAX {
            let bot = others[n % others.len()];
            let windows = match n < others.len() {
                true => bot.windows.clone(),
                false => dataset::windows(&recorder::record_anew(&bot.events.events, rng)),
            };
            let taken: Vec<Window> = windows.into_iter().filter(enough).take(wanted - hidden).collect();
            n += 1;
            hidden += taken.len();
            sessions.push(ShadowSession {
                session: format!("hidden {n}"),
                user: format!("hidden {n}"),
                device: devices[n % devices.len()],
                vouched: false,
                windows: taken,
                blocks: Vec::new(),
            });
        }
        (n, hidden)
    }
}

fn recipe(seed: u64) -> LearnRecipe {
    LearnRecipe { seed, owners: false, ..LearnRecipe::default() }
}

fn lesson(taught: &learn::Taught, sessions: &[ShadowSession], hidden: (usize, usize)) -> Lesson {
    let card = &taught.artifact.card;
    let strata = &taught.artifact.population.strata;
    let largest = strata.iter().map(|stratum| stratum.card.learnt).max_by_key(|learnt| learnt.windows);
    Lesson {
        people: strata.iter().map(|stratum| stratum.card.learnt.people).max().unwrap_or(0),
        sessions: card.threshold.sessions,
        windows: sessions.iter().map(|s| s.windows.iter().filter(|w| enough(w)).count()).sum(),
        hidden_windows: hidden.1,
        hidden_sessions: hidden.0,
        set_aside_sessions: strata.iter().map(|stratum| stratum.card.learnt.set_aside).sum(),
        bots_estimated: largest.unwrap_or_default().bots,
        threshold: card.threshold,
        strata: strata.iter().map(|stratum| stratum.card.kind.name()).collect(),
        untaught: taught.untaught.iter().map(|(kind, _, _)| kind.name()).collect(),
    }
}

fn judge_person(detector: &Detector, session: &ShadowSession, windows: &[Window], source: &str) -> Seen {
    let who = match windows.iter().find(|window| enough(window)) {
        Some(window) => device_class(session, window, false).unwrap_or_default(),
        None => String::new(),
    };
    judge(
        detector,
        windows,
        session.device,
        Seen {
            who,
            bot: false,
            cluster: format!("{source} {}", session.user),
            says: Vec::new(),
            reached: false,
        },
    )
}

fn judge_bot(detector: &Detector, bot: &Bot, windows: &[Window]) -> Seen {
    let device = match Device::of(bot.events.environment) {
        Device(0) => Device::named(&bot.events.marks.device),
        told => told,
    };
    judge(
        detector,
        windows,
        device,
        Seen {
            who: bot.family.clone(),
            bot: true,
            cluster: bot.session.clone(),
            says: Vec::new(),
            reached: false,
        },
    )
}

fn judge(detector: &Detector, windows: &[Window], device: Device, seen: Seen) -> Seen {
    let says: Vec<Option<f32>> =
        windows.iter().filter(|w| enough(w)).map(|w| detector.log_ratio_on(w, device)).collect();
    let mut evidence = 0.0;
    let reached = says.iter().flatten().any(|says| {
        evidence = cusum(evidence, *says);
        evidence >= detector.threshold()
    });
    Seen { says, reached, ..seen }
}

fn kind(window: &Window) -> Option<Kind> {
    window.long.as_ref().filter(|_| enough(window)).and_then(Kind::of)
}

fn enough(window: &Window) -> bool {
    window.long.as_ref().is_some_and(|row| ASKS.are_met(row))
}

/// The device a window came from: as told, else the name where names are devices, else the kind of input.
fn device_class(session: &ShadowSession, window: &Window, names_are_devices: bool) -> Option<String> {
    if !enough(window) {
        return None;
    }
    if session.device != Device::default() {
        return Some(format!("device {:08x}", session.device.0));
    }
    if names_are_devices {
        return Some(session.user.clone());
    }
    kind(window).map(|kind| kind.name().to_string())
}

fn judged(seen: &[Seen]) -> Vec<Judged> {
    rows(seen, |says| says)
}

/// Rows in which a window of a stratum not learnt counts as a person's.
fn with_unknown(seen: &[Seen]) -> Vec<Judged> {
    rows(seen, |says| Some(says.unwrap_or(f32::MIN)))
}

fn rows(seen: &[Seen], of: impl Fn(Option<f32>) -> Option<f32>) -> Vec<Judged> {
    let mut names = Names::default();
    let mut rows = Vec::new();
    for session in seen {
        let cluster = names.number(&session.cluster);
        let scores = session.says.iter().filter_map(|says| of(*says));
        rows.extend(scores.map(|score| Judged { score, positive: session.bot, cluster }));
    }
    rows
}

fn groups(seen: &[Seen]) -> Vec<Group> {
    let mut by_who: BTreeMap<(bool, &str), Vec<&Seen>> = BTreeMap::new();
    for session in seen.iter().filter(|seen| !seen.says.is_empty()) {
        by_who.entry((session.bot, &session.who)).or_default().push(session);
    }
    let group = |((bot, who), sessions): ((bool, &str), Vec<&Seen>)| {
        let mut names = Names::default();
        let mut rows = Vec::new();
        for session in &sessions {
            let cluster = names.number(&session.cluster);
            let says = session.says.iter().flatten();
            rows.extend(says.map(|score| Judged { score: *score, positive: true, cluster }));
        }
        Group {
            who: who.to_string(),
            bot,
            sessions: sessions.len(),
            windows: sessions.iter().map(|session| session.says.len()).sum(),
            judged: rows.len(),
            called_bot: figure(&rows, |rows| share(rows, |_| true, |row| row.score > 0.0)),
            reached: sessions.iter().filter(|session| session.reached).count(),
        }
    };
    by_who.into_iter().map(group).collect()
}

const BY_USER: &str = "half the people, by name";
const BY_RECORDING: &str = "half of each name's recordings: fewer than six names are devices";
/// Recordings of hidden bots, repeated ones included, in one lesson.
const HIDDEN_SESSIONS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{BotKind, Visitor};

    fn recording(name: String, source: &str, family: Option<BotKind>, mut visitor: Visitor) -> Recording {
        Recording {
            session: name.clone(),
            source: source.into(),
            user: name,
            label: if family.is_some() { Label::Bot } else { Label::Human },
            family: family.map(|kind| format!("sim_{}", kind.name())),
            licence: String::new(),
            note: String::new(),
            marks: Marks::default(),
            environment: None,
            events: (0..60).flat_map(|_| visitor.next_batch(2.0).events).collect(),
        }
    }

    #[test]
    fn the_shipped_model_lends_its_bank_to_a_site_never_seen_with_bots_hidden_among_its_people() {
        let people =
            (0..24).map(|i| recording(format!("person {i}"), "here", None, Visitor::person(300 + i)));
        let bots = (0..8).map(|i| {
            let kind = BotKind::JitteredLinear;
            recording(format!("bot {i}"), "elsewhere", Some(kind), Visitor::bot(kind, 60 + i))
        });
        let recordings: Vec<Recording> = people.chain(bots).collect();
        let report = evaluate(crate::DEFAULT_MODEL, &recordings, 0.1, Some(2), &mut |_| ()).unwrap();
        assert_eq!(report.seed, 2);
        let [site] = &report.sites[..] else { panic!("{report:?}") };
        assert_eq!((site.source.as_str(), site.people, site.lessons.len()), ("here", 24, 2));
        assert!(site.lessons.iter().all(|lesson| lesson.hidden_windows > 0), "{:?}", site.lessons);
        assert!(site.auc.value > 0.9 && site.recall.value > 0.8, "{site:?}");
    }
}
