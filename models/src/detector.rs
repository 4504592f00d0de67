//! From a session's summary to an assessment: scores, evidence, modality, reasons.
//!
//! Each channel of input has its own expert; an expert without enough input of its kind, or outside
//! the stratum it learnt, says nothing, and saying nothing adds nothing. Must not know: policies.

use crate::artifact::{Artifact, Asks, Distance, ExpertChannel, Span, short_hash};
use crate::doubt::Doubt;
use crate::drift::{Drift, Tally, Watch};
use crate::features::{self, FEATURE_COUNT, FEATURES};
use crate::forest::{FEATURES_MAX, Forest, Slots};
use crate::owner::Owners;
use crate::population::{Device, Kind, Population, Shape, Verdict};
use crate::profile::{Ending, Profile};
use crate::sequential::{WINDOW_NATS_MAX, cusum};
use crate::session::{LedgerReason, Session, Window, WindowRow};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The running model: forests, calibration, feature ranges.
#[derive(Debug)]
pub struct Detector {
    experts: Vec<Expert>,
    population: Population,
    threshold: f32,
    calibrated: bool,
    model: String,
    usual: [(f32, f32); FEATURE_COUNT],
    owners: Option<Owners>,
    /// Of all shards; `None` if the model kept nothing to hold it against.
    watch: Option<Mutex<Watch>>,
}

/// What is known about a session now. Scores are `None` until there is evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assessment {
    /// Calibrated probability that the latest evidence window came from a bot, 0 to 1, at even odds.
    pub bot_score: Option<f32>,
    /// Evidence accumulated over the session for "bot" (CUSUM of clipped log-likelihood ratios, nats).
    /// Never moved by missing telemetry. No single window moves it by more than 2.
    pub bot_evidence: f32,
    /// Evidence at which the model calls a session a bot, nats; from whole human sessions. As large as
    /// a float can be while there is no model, so that nothing reaches it.
    #[serde(default = "unreachable_threshold")]
    pub bot_threshold: f32,
    /// Windows assessed so far.
    pub windows: u32,
    pub evidence: Evidence,
    pub modality: Modality,
    pub telemetry: TelemetryState,
    /// The strongest features behind the latest score, strongest first, at most five.
    pub reasons: Vec<Reason>,
    /// False while the model has not learnt this site: shows, never logs out by itself.
    pub calibrated: bool,
    /// The browser says of itself that a program drives it (navigator.webdriver). A fact for policies;
    /// it moves no score.
    #[serde(default)]
    pub automation: bool,
    /// Probability, at even odds, that the latest block of mouse movement came from somebody else than the
    /// account's owner; `None` until one could be judged.
    #[serde(default)]
    pub owner_score: Option<f32>,
    /// Evidence for "somebody else", gathered as `bot_evidence` is. What the profile has not learnt (another
    /// device, touch, too little) never moves it.
    #[serde(default)]
    pub owner_evidence: f32,
    /// Evidence at which the model doubts that it is the owner, nats; out of reach where none was learnt.
    #[serde(default = "unreachable_threshold")]
    pub owner_threshold: f32,
    /// The site's people carry the promise behind `owner_threshold`.
    #[serde(default)]
    pub owner_calibrated: bool,
    #[serde(default)]
    pub profile: ProfileState,
    /// Hash of the model artefact, 16 hex digits.
    pub model: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Seconds of active input (gaps over 1 s do not count).
    pub seconds: f32,
    pub events: u64,
}

/// What is known of the account's owner on the device in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileState {
    /// Nothing is kept of this person: switched off, no login, or a model that knows no background.
    #[default]
    Off,
    /// Too little yet, not on such a device, or perhaps a second mouse that is not known well: nobody is doubted.
    Learning,
    Ready,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    #[default]
    None,
    Mouse,
    Touch,
    Keyboard,
    Mixed,
}

/// Missing telemetry is its own state and never evidence of guilt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TelemetryState {
    /// No page with a collector was served yet.
    #[default]
    Unexpected,
    /// A page with a collector was served, nothing arrived (ad blocker, no script, …).
    Missing,
    /// Batches arrive, or are still due, too few to judge.
    Gathering,
    /// Enough evidence to judge.
    Sufficient,
    /// Batches with sequence gaps, clock drift or duplicates.
    Damaged,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    pub feature: String,
    pub unit: String,
    pub value: f32,
    /// Range usual for people (5th to 95th percentile of the training people).
    pub usual_low: f32,
    pub usual_high: f32,
    /// The same of this person, where a profile of them knows enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<PersonRange>,
    /// Contribution to the score by path attribution, signed, in probability.
    pub contribution: f32,
    /// One plain sentence for operators.
    pub text: String,
}

/// Where nine in ten of one person's windows lay on this kind of device (5th to 95th percentile).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PersonRange {
    pub low: f32,
    pub high: f32,
    /// Sessions it rests on, at most one window in four from any of them.
    pub sessions: u32,
}

impl Default for Assessment {
    fn default() -> Assessment {
        Assessment {
            bot_score: None,
            bot_evidence: 0.0,
            bot_threshold: unreachable_threshold(),
            windows: 0,
            evidence: Evidence::default(),
            modality: Modality::None,
            telemetry: TelemetryState::Unexpected,
            reasons: Vec::new(),
            calibrated: false,
            automation: false,
            owner_score: None,
            owner_evidence: 0.0,
            owner_threshold: unreachable_threshold(),
            owner_calibrated: false,
            profile: ProfileState::Off,
            model: String::new(),
        }
    }
}

impl Detector {
    /// Loads a model file's bytes; refuses a hash, version or feature-table mismatch with a plain message.
    pub fn load(artifact: &[u8]) -> Result<Detector, String> {
        let decoded = Artifact::decode(artifact).map_err(|e| e.to_string())?;
        Ok(Detector::new(decoded, short_hash(artifact)))
    }

    /// Assesses a session after new evidence. Updates the session's evidence ledger once per completed window.
    pub fn assess(&self, now: Timestamp, session: &mut Session) -> Assessment {
        for window in session.take_windows() {
            let device = Device::of(session.environment());
            let ledger = &mut session.ledger;
            let Some(judgement) = self.judge(&window, device, &mut ledger.tally) else { continue };
            ledger.evidence = cusum(ledger.evidence, judgement.log_ratio);
            ledger.scored = ledger.scored.saturating_add(1);
            ledger.score = Some(probability(judgement.log_ratio));
            ledger.reasons = judgement.reasons;
        }
        if let (Some(owners), Some(doubt)) = (&self.owners, &mut session.doubt) {
            doubt.judge(owners);
        }
        let (ledger, doubt) = (&session.ledger, session.doubt.as_deref().filter(|_| self.knows_owners()));
        let promise = self.owners.as_ref().map(|owners| &owners.card);
        Assessment {
            bot_score: ledger.score,
            bot_evidence: ledger.evidence,
            bot_threshold: self.threshold,
            windows: ledger.scored,
            evidence: session.evidence(),
            modality: session.modality(),
            telemetry: session.telemetry(now),
            reasons: ledger.reasons.iter().flatten().map(|reason| self.reason(reason, doubt)).collect(),
            calibrated: self.calibrated,
            automation: session.environment().is_some_and(|environment| environment.automation),
            owner_score: doubt.and_then(|doubt| doubt.log_ratio).map(probability),
            owner_evidence: doubt.map_or(0.0, |doubt| doubt.evidence),
            owner_threshold: promise
                .and_then(|card| card.threshold)
                .map_or_else(unreachable_threshold, |threshold| threshold.nats),
            owner_calibrated: promise.is_some_and(|card| card.calibrated),
            profile: doubt.map_or(ProfileState::Off, |doubt| doubt.state),
            model: self.model.clone(),
        }
    }

    /// Whether the model holds the background of people that an owner is judged against.
    pub fn knows_owners(&self) -> bool {
        self.owners.is_some()
    }

    /// What a session that is over teaches about its person, who is watched no longer; `None` if nothing.
    pub fn learn(&self, session: &mut Session, ending: Ending) -> Option<Profile> {
        let doubt = session.doubt.take()?;
        doubt.learn(self.owners.as_ref()?, session.opened(), ending)
    }

    /// Counts a session that is over towards drift, or, if it did not end `well` (as a bot, for one), as left out.
    pub fn close(&self, session: &Session, well: bool) {
        let well = well && !session.environment().is_some_and(|environment| environment.automation);
        if let Some(watch) = &self.watch {
            lock(watch).close(&session.ledger.tally, well);
        }
    }

    /// How far this site's people have moved from those who taught the model.
    pub fn drift(&self) -> Drift {
        self.watch.as_ref().map_or_else(Drift::default, |watch| lock(watch).drift())
    }

    /// Evidence at which a session is called a bot, nats.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// What one window says, in nats for "bot"; `None` when no expert may speak.
    pub fn window_log_ratio(&self, window: &Window) -> Option<f32> {
        self.log_ratio_by(window, None)
    }

    /// The same with the pointer judged by windows of one length only, for evaluations.
    pub fn log_ratio_by(&self, window: &Window, span: Option<Span>) -> Option<f32> {
        let speaks =
            |e: &&Expert| span.is_none_or(|span| e.channel != ExpertChannel::Pointer || e.span == span);
        let experts = self.experts.iter().filter(speaks);
        fuse(experts.filter_map(|e| Some((e.channel, e.log_ratio(e.row(window)?)?))))
    }

    /// What one window of a session on such a device says to the ledger, in nats for "bot".
    pub fn log_ratio_on(&self, window: &Window, device: Device) -> Option<f32> {
        match self.population.judge(window, device) {
            Verdict::Untaught => self.window_log_ratio(window),
            Verdict::Unknown => None,
            Verdict::Quiet => self.beside(window, None),
            Verdict::Says(log_ratio) => self.beside(window, Some(log_ratio)),
        }
    }

    /// What the experts for other input than the pointer say, joined with what a population says of it.
    pub(crate) fn beside(&self, window: &Window, pointer: Option<f32>) -> Option<f32> {
        let experts = self.experts.iter().filter(|expert| expert.channel != ExpertChannel::Pointer);
        let others = experts.filter_map(|e| Some((e.channel, e.log_ratio(e.row(window)?)?)));
        fuse(pointer.map(|says| (ExpertChannel::Pointer, says)).into_iter().chain(others))
    }

    pub(crate) fn new(artifact: Artifact, model: String) -> Detector {
        let watch = Watch::new(&artifact).map(Mutex::new);
        let learnt = artifact.forests.into_iter().zip(artifact.people);
        let experts = artifact.card.experts.iter().zip(learnt).map(|(card, (forest, people))| Expert {
            channel: card.channel,
            span: card.span,
            features: card
                .features
                .iter()
                .filter_map(|name| features::index(name))
                .map(|i| i as u8)
                .collect(),
            forest,
            slope: card.slope,
            intercept: card.intercept,
            nats_max: card.nats_max,
            asks: card.asks,
            people: people.zip(card.distance),
        });
        let experts = experts.collect();
        let mut usual = [(f32::NAN, f32::NAN); FEATURE_COUNT];
        for range in &artifact.card.usual {
            if let Some(i) = features::index(&range.feature) {
                usual[i] = (range.low, range.high);
            }
        }
        let card = artifact.card;
        Detector {
            experts,
            population: artifact.population,
            threshold: card.threshold.nats,
            calibrated: card.calibrated,
            model,
            usual,
            owners: artifact.owners,
            watch,
        }
    }

    fn judge(&self, window: &Window, device: Device, tally: &mut Tally) -> Option<Judgement> {
        let mut contributions = [0.0; FEATURE_COUNT];
        let mut says = [None; crate::artifact::EXPERTS_MAX + 1];
        let site = self.population.find(window, device);
        if let Ok((at, stratum, row)) = site {
            stratum.explain(&row.features, &mut contributions);
            let score = stratum.score(&row.features);
            tally.add(Some((at, stratum.card.tenth(score))));
            let log_ratio = stratum.nats(score);
            says[crate::artifact::EXPERTS_MAX] = Some((ExpertChannel::Pointer, log_ratio));
        } else if matches!(site, Err(Verdict::Unknown)) {
            if Kind::of_window(window).is_some() {
                tally.add(None);
            }
            return None;
        }
        // Where the site has taught, what others moved like no longer counts.
        let taught = !matches!(site, Err(Verdict::Untaught));
        for (expert, says) in self.experts.iter().zip(&mut says) {
            if (expert.channel != ExpertChannel::Pointer || !taught)
                && let Some(row) = expert.row(window)
                && let Some(log_ratio) = expert.explain(row, &mut contributions)
            {
                *says = Some((expert.channel, log_ratio));
            }
        }
        let log_ratio = fuse(says.into_iter().flatten())?;
        let features = window.long.as_ref().map_or(&window.short.features, |long| &long.features);
        let mut reasons = [None; 5];
        for reason in &mut reasons {
            let mut strongest = 0;
            for i in 1..FEATURE_COUNT {
                if contributions[i].abs() > contributions[strongest].abs() {
                    strongest = i;
                }
            }
            let contribution = std::mem::take(&mut contributions[strongest]);
            if contribution.abs() < CONTRIBUTION_MIN || features[strongest].is_nan() {
                continue;
            }
            *reason =
                Some(LedgerReason { feature: strongest as u8, value: features[strongest], contribution });
        }
        Some(Judgement { log_ratio, reasons })
    }

    fn reason(&self, reason: &LedgerReason, doubt: Option<&Doubt>) -> Reason {
        let at = reason.feature as usize;
        let feature = &FEATURES[at];
        let (low, high) = self.usual[at];
        let side = if reason.contribution > 0.0 { "a bot" } else { "a person" };
        let what = feature.doc.trim_end_matches('.');
        let mut reason = Reason {
            feature: feature.name.to_string(),
            unit: feature.unit.to_string(),
            value: feature.shown(reason.value),
            usual_low: feature.shown(low),
            usual_high: feature.shown(high),
            person: doubt.and_then(|doubt| doubt.range(at)),
            contribution: reason.contribution,
            text: String::new(),
        };
        let (low, high) = (reason.usual_low, reason.usual_high);
        let usual = match low.is_nan() || high.is_nan() {
            true => String::new(),
            false => format!("; people usually {low:.3} to {high:.3}"),
        };
        // Nothing of the person: sentences go to logs, and stay where a profile is forgotten.
        reason.text = format!("{what}: {:.3} {}{usual}. Speaks for {side}.", reason.value, feature.unit);
        reason
    }
}

/// Counts are whole whatever panicked beside them.
fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One forest at work.
#[derive(Debug)]
struct Expert {
    channel: ExpertChannel,
    span: Span,
    features: Vec<u8>,
    forest: Forest,
    slope: f32,
    intercept: f32,
    nats_max: f32,
    asks: Asks,
    people: Option<(Shape, Distance)>,
}

struct Judgement {
    log_ratio: f32,
    reasons: [Option<LedgerReason>; 5],
}

impl Expert {
    fn row<'a>(&self, window: &'a Window) -> Option<&'a WindowRow> {
        let row = match self.span {
            Span::Short => Some(&window.short),
            Span::Long => window.long.as_ref(),
        };
        row.filter(|row| self.asks.are_met(row))
    }

    fn slots(&self, row: &WindowRow) -> Slots {
        Slots::new(self.features.iter().map(|&i| row.features[i as usize]))
    }

    fn log_ratio(&self, row: &WindowRow) -> Option<f32> {
        let score = self.forest.predict(&self.slots(row));
        let votes = calibrate(score, self.slope, self.intercept);
        let log_ratio = self.people.as_ref().map_or(votes, |(people, distance)| {
            let values: Vec<f32> = self.features.iter().map(|&i| row.features[i as usize]).collect();
            votes.min(distance.log_ratio(people.distance(&values)))
        });
        log_ratio.is_finite().then(|| log_ratio.clamp(-self.nats_max, self.nats_max))
    }

    fn explain(&self, row: &WindowRow, contributions: &mut [f32; FEATURE_COUNT]) -> Option<f32> {
        let mut own = [0.0; FEATURES_MAX];
        self.forest.attribute(&self.slots(row), &mut own);
        for (&feature, own) in self.features.iter().zip(own) {
            contributions[feature as usize] += own;
        }
        self.log_ratio(row)
    }
}

impl Asks {
    /// Whether a window holds enough of what an expert learnt on.
    pub(crate) fn are_met(&self, row: &WindowRow) -> bool {
        let support = &row.support;
        let interval = row.features[MOVE_INTERVAL];
        support.moves >= self.moves
            && support.strokes >= self.strokes
            && support.grid_steps >= self.grid_steps
            && support.clicks >= self.clicks
            && support.keys >= self.keys
            // A pointer that only jumps has no interval, and is for the clicks' expert to judge.
            && self.move_interval_ms_max.is_none_or(|max| interval.is_nan() || interval.exp() <= max)
    }
}

impl Distance {
    pub(crate) fn log_ratio(&self, distance: f32) -> f32 {
        self.slope * distance + self.intercept
    }
}

/// Forest share to log-likelihood ratio (Platt's scaling on the logit).
pub(crate) fn calibrate(score: f32, slope: f32, intercept: f32) -> f32 {
    slope * logit(score) + intercept
}

/// Log odds, kept finite: a hundred trees of one mind are not certainty.
pub(crate) fn logit(score: f32) -> f32 {
    let score = score.clamp(0.005, 0.995);
    (score / (1.0 - score)).ln()
}

/// Joins what the experts say. The long and the short window of one channel look at the same input and
/// are averaged; channels are added, as different kinds of input fail for different reasons. The sum
/// stays within what a single window may say.
pub(crate) fn fuse(says: impl Iterator<Item = (ExpertChannel, f32)>) -> Option<f32> {
    let mut sums = [(0.0, 0.0); 3];
    for (channel, log_ratio) in says {
        let (sum, n) = &mut sums[channel as usize];
        *sum += log_ratio;
        *n += 1.0;
    }
    if sums.iter().all(|(_, n)| *n == 0.0) {
        return None;
    }
    let total: f32 = sums.iter().filter(|(_, n)| *n > 0.0).map(|(sum, n)| sum / n).sum();
    Some(total.clamp(-SCORE_NATS_MAX, SCORE_NATS_MAX))
}

/// Probability of "bot" at even odds.
pub(crate) fn probability(log_ratio: f32) -> f32 {
    1.0 / (1.0 + (-log_ratio).exp())
}

fn unreachable_threshold() -> f32 {
    f32::MAX
}

/// Where the stratum of a recording is read.
pub(crate) const MOVE_INTERVAL: usize = match position_of("move_interval") {
    Some(at) => at,
    None => panic!("the feature table has a move interval"),
};

pub(crate) const fn position_of(name: &str) -> Option<usize> {
    let mut i = 0;
    while i < FEATURE_COUNT {
        let (a, b) = (FEATURES[i].name.as_bytes(), name.as_bytes());
        let mut same = a.len() == b.len();
        let mut k = 0;
        while same && k < a.len() {
            same = a[k] == b[k];
            k += 1;
        }
        if same {
            return Some(i);
        }
        i += 1;
    }
    None
}

/// A score never claims more than this; the ledger takes at most `WINDOW_NATS_MAX` of it.
const SCORE_NATS_MAX: f32 = 6.0;
const _: () = assert!(SCORE_NATS_MAX >= WINDOW_NATS_MAX);
/// Contributions below half a percent explain nothing.
const CONTRIBUTION_MIN: f32 = 0.005;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Batch;
    use crate::session::RequestSeen;
    use crate::sim::{BotKind, Visitor};

    fn detector() -> Detector {
        Detector::load(crate::DEFAULT_MODEL).unwrap()
    }

    /// Assessments of a visitor after every two seconds.
    fn watch(visitor: &mut Visitor, seconds: u64) -> Vec<Assessment> {
        let (detector, mut session) = (detector(), Session::new(Timestamp(0)));
        let step = |i| {
            let now = Timestamp(i * 2000);
            session.observe(now, 1, &visitor.next_batch(2.0));
            detector.assess(now, &mut session)
        };
        (1..=seconds / 2).map(step).collect()
    }

    fn reached(assessments: &[Assessment]) -> Option<usize> {
        assessments.iter().position(|a| a.bot_evidence >= a.bot_threshold).map(|i| 2 * (i + 1))
    }

    #[test]
    fn an_even_straight_bot_is_known_within_forty_seconds_of_active_input() {
        for seed in 5_000..5_020 {
            let seen = watch(&mut Visitor::bot(BotKind::LinearEven, seed), 80);
            let at = reached(&seen).unwrap_or(usize::MAX);
            let active = seen.get(at / 2 - 1).map_or(f32::INFINITY, |a| a.evidence.seconds);
            assert!(active <= 42.0, "seed {seed}: {active} active seconds");
        }
    }

    #[test]
    fn what_moves_within_reach_of_people_is_no_bot_whatever_the_forest_says() {
        let mut artifact = Artifact::decode(crate::DEFAULT_MODEL).unwrap();
        // The pointer's experts come first; clicks would speak for themselves.
        artifact.card.experts.truncate(2);
        artifact.forests.truncate(2);
        artifact.people.truncate(2);
        let mut visitor = Visitor::bot(BotKind::LinearEven, 7);
        let events: Vec<_> = (0..40).flat_map(|_| visitor.next_batch(2.0).events).collect();
        let windows = crate::dataset::windows(&events);
        let spans = [Span::Short, Span::Long];
        let says = |artifact: &Artifact| -> Vec<f32> {
            let detector = Detector::new(artifact.clone(), String::new());
            let each = windows.iter().flat_map(|w| spans.map(|span| detector.log_ratio_by(w, Some(span))));
            each.flatten().collect()
        };
        assert!(says(&artifact).iter().any(|&log_ratio| log_ratio > 1.0), "{:?}", says(&artifact));
        let mut measuring = 0;
        for expert in artifact.card.experts.iter_mut().filter(|e| e.channel == ExpertChannel::Pointer) {
            let distance = expert.distance.as_mut().unwrap();
            distance.intercept = -100.0;
            measuring += 1;
        }
        assert_eq!(measuring, 2);
        assert!(says(&artifact).iter().all(|&log_ratio| log_ratio < 0.0), "{:?}", says(&artifact));
    }

    #[test]
    fn clumsy_bots_of_other_kinds_are_known_within_two_minutes() {
        for kind in [BotKind::Teleport, BotKind::JitteredLinear, BotKind::Typist] {
            for seed in 5_000..5_010 {
                let seen = watch(&mut Visitor::bot(kind, seed), 120);
                assert!(reached(&seen).is_some(), "{} with seed {seed} passed for a person", kind.name());
            }
        }
    }

    #[test]
    fn people_stay_well_below_the_threshold() {
        for seed in 5_000..5_060 {
            let seen = watch(&mut Visitor::person(seed), 180);
            let worst = seen.iter().map(|a| a.bot_evidence / a.bot_threshold).fold(0.0, f32::max);
            assert!(worst < 0.7, "person {seed} got to {worst} of the threshold");
        }
    }

    #[test]
    fn no_batch_however_long_decides_alone() {
        let (detector, mut session) = (detector(), Session::new(Timestamp(0)));
        let batch = Visitor::bot(BotKind::LinearEven, 1).next_batch(19.0);
        session.observe(Timestamp(19_000), 1, &batch);
        let assessment = detector.assess(Timestamp(19_000), &mut session);
        assert!(assessment.bot_evidence < assessment.bot_threshold);
    }

    #[test]
    fn without_telemetry_there_is_no_score_and_no_evidence() {
        let (detector, mut session) = (detector(), Session::new(Timestamp(0)));
        for i in 0..500 {
            session.observe_request(
                Timestamp(i * 100),
                RequestSeen { navigation: true, path_hash: i, collector_injected: true, response_bytes: 9 },
            );
            session.observe(Timestamp(i * 100), 1, &Batch { sequence: i as u32, ..Batch::default() });
        }
        let assessment = detector.assess(Timestamp(50_000), &mut session);
        assert_eq!((assessment.bot_score, assessment.bot_evidence, assessment.windows), (None, 0.0, 0));
        assert_eq!(assessment.modality, Modality::None);
    }

    #[test]
    fn no_missing_feature_raises_what_a_window_says() {
        let detector = detector();
        let mut session = Session::new(Timestamp(0));
        let mut visitor = Visitor::person(11);
        for i in 1..60 {
            session.observe(Timestamp(i * 2000), 1, &visitor.next_batch(2.0));
        }
        let Some(full) = session.take_windows().last() else { panic!("two minutes give a window") };
        let mut bare = full;
        let blank = |row: &mut WindowRow| {
            let interval = row.features[MOVE_INTERVAL];
            row.features.fill(f32::NAN);
            row.features[MOVE_INTERVAL] = interval;
        };
        blank(&mut bare.short);
        bare.long.iter_mut().for_each(blank);
        let says = detector.window_log_ratio(&bare).unwrap_or(0.0);
        assert!(says <= 0.0, "a window of unknowns says {says}");
    }

    #[test]
    fn a_score_comes_with_reasons_that_people_can_read() {
        let seen = watch(&mut Visitor::bot(BotKind::LinearEven, 7), 60);
        let last = seen.last().unwrap();
        assert!(last.bot_score.unwrap() > 0.9);
        assert!(!last.reasons.is_empty() && last.reasons.len() <= 5);
        for pair in last.reasons.windows(2) {
            assert!(pair[0].contribution.abs() >= pair[1].contribution.abs());
        }
        let first = &last.reasons[0];
        assert!(first.contribution > 0.0 && first.text.contains("Speaks for a bot"), "{first:?}");
        let json = serde_json::to_string(last).unwrap();
        assert_eq!(&serde_json::from_str::<Assessment>(&json).unwrap(), last);
    }

    #[test]
    fn nothing_reaches_the_threshold_of_an_assessment_without_a_model() {
        let unknown = Assessment::default();
        assert!(unknown.bot_evidence < unknown.bot_threshold);
        let json = serde_json::to_string(&unknown).unwrap();
        assert_eq!(serde_json::from_str::<Assessment>(&json).unwrap(), unknown);
    }

    #[test]
    fn a_driven_browser_is_a_fact_and_moves_no_score() {
        let assess = |automation| {
            let (detector, mut session) = (detector(), Session::new(Timestamp(0)));
            let mut visitor = Visitor::person(4);
            for i in 1..40 {
                let mut batch = visitor.next_batch(2.0);
                if let Some(environment) = &mut batch.environment {
                    environment.automation = automation;
                }
                session.observe(Timestamp(i * 2000), 1, &batch);
            }
            detector.assess(Timestamp(80_000), &mut session)
        };
        let (plain, driven) = (assess(false), assess(true));
        assert!(driven.automation && !plain.automation);
        assert_eq!((plain.bot_score, plain.bot_evidence), (driven.bot_score, driven.bot_evidence));
    }
}
