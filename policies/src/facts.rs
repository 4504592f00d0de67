//! The fixed, typed set of facts a rule may name, with defaults.
//!
//! One table gives name, type, range, doc, reader and writer; the condition checker, the reason
//! templates, the policy cases and the docs page come from it. Must not know: rules, decisions.

use gaitway_models::flow::Flow;
use gaitway_models::replay::ReplayKind;
use gaitway_models::{Assessment, Modality, ProfileState, TelemetryState};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Everything known about one session when its rules are read. The default is a session of which
/// nothing is known yet, and no default speaks against anybody.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub assessment: Assessment,
    /// How much of the latest movement had been seen before, 0 to 1; `None` until compared.
    pub replay_match: Option<f32>,
    /// How it repeats what had been seen; `None` if nothing does.
    pub replay_kind: Option<ReplayKind>,
    pub flow: FlowFacts,
    /// Seconds since the session opened.
    pub session_age_seconds: f64,
    /// Requests in the last minute.
    pub requests_per_minute: f64,
    /// Requests since the session opened.
    pub requests: u64,
    /// Name of the policy route the request matched, "" before any request.
    pub route: String,
    /// The person's pseudonym (`u_…`), "" for a visitor without a login.
    pub user_id: String,
    pub user_groups: Vec<String>,
    /// Client address of the latest request, text form; used by rules, never logged.
    #[serde(skip)]
    pub net_ip: String,
    /// Two-letter country of that address, "" if unknown.
    pub net_country: String,
    /// The session passed a challenge within the policy's pass time.
    pub challenge_passed: bool,
}

/// What the session's requests tell; of each the value that speaks against nobody while nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowFacts {
    /// Page loads that no gesture can have caused, while telemetry arrived; and their share.
    pub unprompted: u64,
    pub unprompted_share: f64,
    /// How even the time between page loads is; 1 is a timer.
    pub evenness: f64,
    /// Different paths, roughly.
    pub paths: u64,
    /// Megabytes sent to the client.
    pub volume: f64,
}

impl From<&Flow> for FlowFacts {
    fn from(flow: &Flow) -> FlowFacts {
        let value = |name| flow.value(name).unwrap_or(0.0);
        FlowFacts {
            unprompted: u64::from(flow.unprompted()),
            unprompted_share: value("unprompted_share"),
            evenness: value("evenness"),
            paths: value("paths") as u64,
            volume: value("volume"),
        }
    }
}

/// One row of the vocabulary.
pub struct Fact {
    /// As written in a policy, such as `bot.score`.
    pub name: &'static str,
    pub kind: FactKind,
    pub doc: &'static str,
    /// Shown in alerts and logs when a reason names it; addresses are not.
    pub tellable: bool,
    /// It belongs to the latest request rather than to the session.
    pub of_request: bool,
    pub get: fn(&Facts) -> FactValue<'_>,
    /// Sets the fact in a policy case; false if the value has another type or is none of the words.
    pub set: fn(&mut Facts, FactValue<'_>) -> bool,
}

impl Fact {
    /// Whether a request alone tells it, before anything is known of the session.
    pub fn at_door(&self) -> bool {
        matches!(self.name, "route" | "net.ip" | "net.country" | "user.id" | "user.groups")
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FactKind {
    Bool,
    /// A whole number, never negative.
    Int,
    /// A number within this range.
    Double {
        least: f64,
        most: f64,
    },
    /// Text; one of the words if there are any.
    Text {
        words: &'static [&'static str],
    },
    /// A list of texts.
    List,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FactValue<'f> {
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(&'f str),
    List(&'f [String]),
}

/// From here on an amount means "never": the threshold of a detector without a model.
const NEVER: f64 = 1e30;

/// As reasons, explanations and pages show it: numbers to two places, a list by commas.
impl fmt::Display for FactValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FactValue::Bool(value) => f.write_str(if *value { "yes" } else { "no" }),
            FactValue::Int(whole) => write!(f, "{whole}"),
            FactValue::Double(number) if *number >= NEVER => f.write_str("never"),
            FactValue::Double(number) => {
                let text = format!("{number:.2}");
                f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
            }
            FactValue::Text(text) => f.write_str(text),
            FactValue::List(items) => f.write_str(&items.join(", ")),
        }
    }
}

impl FactKind {
    /// CEL's name of the type.
    pub fn cel(self) -> &'static str {
        match self {
            FactKind::Bool => "bool",
            FactKind::Int => "int",
            FactKind::Double { .. } => "double",
            FactKind::Text { .. } => "string",
            FactKind::List => "list(string)",
        }
    }
}

/// Position of `name` in [`FACTS`].
pub fn find(name: &str) -> Option<usize> {
    FACTS.iter().position(|fact| fact.name == name)
}

const SHARE: FactKind = FactKind::Double { least: 0.0, most: 1.0 };
const AMOUNT: FactKind = FactKind::Double { least: 0.0, most: f64::INFINITY };
const MODALITIES: &[&str] = &["none", "mouse", "touch", "keyboard", "mixed"];
const REPLAY_KINDS: &[&str] = &["none", "exact", "shifted", "jittered"];
const PROFILES: &[&str] = &["off", "learning", "ready"];
const TELEMETRY: &[&str] = &["unexpected", "missing", "gathering", "sufficient", "damaged"];

/// A single-precision figure as the decimal a person would write: `0.9_f32` is not `0.9` as a
/// double, and `bot.score >= 0.9` must hold for it. Anything but a number counts as nothing known.
fn decimal(value: f32) -> f64 {
    let value = f64::from(value);
    if value.is_finite() { (value * 1e6).round() / 1e6 } else { 0.0 }
}

macro_rules! setter {
    ($variant:ident, |$facts:ident, $value:ident| $assign:expr) => {
        |$facts, value| match value {
            FactValue::$variant($value) => {
                $assign;
                true
            }
            _ => false,
        }
    };
}

/// A whole number is a fine way to write a double in a case.
fn as_double(value: FactValue<'_>) -> FactValue<'_> {
    match value {
        FactValue::Int(whole) => FactValue::Double(whole as f64),
        other => other,
    }
}

macro_rules! double_setter {
    (|$facts:ident, $value:ident| $assign:expr) => {
        |$facts, value| match as_double(value) {
            FactValue::Double($value) => {
                $assign;
                true
            }
            _ => false,
        }
    };
}

/// The vocabulary. The order is that of the docs page.
pub static FACTS: &[Fact] = &[
    Fact {
        name: "bot.score",
        kind: SHARE,
        doc: "Calibrated probability that the latest window of evidence came from a bot; 0 until there is one.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(decimal(facts.assessment.bot_score.unwrap_or(0.0))),
        set: double_setter!(|facts, value| facts.assessment.bot_score = Some(value as f32)),
    },
    Fact {
        name: "bot.evidence",
        kind: AMOUNT,
        doc: "Evidence for a bot gathered over the whole session, in nats. Missing telemetry never moves it.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(decimal(facts.assessment.bot_evidence)),
        set: double_setter!(|facts, value| facts.assessment.bot_evidence = value as f32),
    },
    Fact {
        name: "bot.threshold",
        kind: AMOUNT,
        doc: "The evidence at which the running model calls a session a bot, in nats; beyond reach without a model.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(decimal(facts.assessment.bot_threshold)),
        set: double_setter!(|facts, value| facts.assessment.bot_threshold = value as f32),
    },
    Fact {
        name: "bot.windows",
        kind: FactKind::Int,
        doc: "Windows of evidence assessed so far.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Int(i64::from(facts.assessment.windows)),
        set: setter!(Int, |facts, value| facts.assessment.windows = u32::try_from(value).unwrap_or(0)),
    },
    Fact {
        name: "bot.automation",
        kind: FactKind::Bool,
        doc: "The browser says of itself that a program drives it. Honest test tools say so; bots rarely do.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Bool(facts.assessment.automation),
        set: setter!(Bool, |facts, value| facts.assessment.automation = value),
    },
    Fact {
        name: "owner.score",
        kind: SHARE,
        doc: "Probability, at even odds, that the latest block of mouse movement came from somebody else than the account's owner; 0 until one was judged.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(decimal(facts.assessment.owner_score.unwrap_or(0.0))),
        set: double_setter!(|facts, value| facts.assessment.owner_score = Some(value as f32)),
    },
    Fact {
        name: "owner.evidence",
        kind: AMOUNT,
        doc: "Evidence for somebody else gathered over the whole session, in nats. A device the profile has not met never moves it; another mouse on a known display may, a little, until sessions at least twelve hours apart that a fresh login or an operator vouched for have taught it.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(decimal(facts.assessment.owner_evidence)),
        set: double_setter!(|facts, value| facts.assessment.owner_evidence = value as f32),
    },
    Fact {
        name: "owner.threshold",
        kind: AMOUNT,
        doc: "The evidence at which the running model doubts that it is the owner, in nats; beyond reach until a site has taught it.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(decimal(facts.assessment.owner_threshold)),
        set: double_setter!(|facts, value| facts.assessment.owner_threshold = value as f32),
    },
    Fact {
        name: "owner.calibrated",
        kind: FactKind::Bool,
        doc: "True once enough of the site's people stand behind that threshold.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Bool(facts.assessment.owner_calibrated),
        set: setter!(Bool, |facts, value| facts.assessment.owner_calibrated = value),
    },
    Fact {
        name: "owner.profile",
        kind: FactKind::Text { words: PROFILES },
        doc: "What is known of the owner on this device: off (nothing is kept), learning (too little, or what moves may be a second mouse that is not known well yet) or ready.",
        tellable: true,
        of_request: false,
        get: |facts| {
            FactValue::Text(match facts.assessment.profile {
                ProfileState::Off => "off",
                ProfileState::Learning => "learning",
                ProfileState::Ready => "ready",
            })
        },
        set: |facts, value| {
            facts.assessment.profile = match value {
                FactValue::Text("off") => ProfileState::Off,
                FactValue::Text("learning") => ProfileState::Learning,
                FactValue::Text("ready") => ProfileState::Ready,
                _ => return false,
            };
            true
        },
    },
    Fact {
        name: "replay.match",
        kind: SHARE,
        doc: "How much of the latest ten seconds of the pointer in motion had been seen before, in any session; 0 until compared.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(decimal(facts.replay_match.unwrap_or(0.0))),
        set: double_setter!(|facts, value| facts.replay_match = Some(value as f32)),
    },
    Fact {
        name: "replay.kind",
        kind: FactKind::Text { words: REPLAY_KINDS },
        doc: "How it repeats: none, exact, shifted (in time, pace, place or size) or jittered.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Text(facts.replay_kind.map_or("none", ReplayKind::name)),
        set: |facts, value| {
            let FactValue::Text(word) = value else { return false };
            facts.replay_kind = ReplayKind::ALL.into_iter().find(|kind| kind.name() == word);
            REPLAY_KINDS.contains(&word)
        },
    },
    Fact {
        name: "evidence.seconds",
        kind: AMOUNT,
        doc: "Seconds of active input seen; pauses over a second do not count.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(decimal(facts.assessment.evidence.seconds)),
        set: double_setter!(|facts, value| facts.assessment.evidence.seconds = value as f32),
    },
    Fact {
        name: "evidence.events",
        kind: FactKind::Int,
        doc: "Input events seen.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Int(i64::try_from(facts.assessment.evidence.events).unwrap_or(i64::MAX)),
        set: setter!(Int, |facts, value| facts.assessment.evidence.events =
            u64::try_from(value).unwrap_or(0)),
    },
    Fact {
        name: "modality",
        kind: FactKind::Text { words: MODALITIES },
        doc: "What the person works with: none, mouse, touch, keyboard or mixed.",
        tellable: true,
        of_request: false,
        get: |facts| {
            FactValue::Text(match facts.assessment.modality {
                Modality::None => "none",
                Modality::Mouse => "mouse",
                Modality::Touch => "touch",
                Modality::Keyboard => "keyboard",
                Modality::Mixed => "mixed",
            })
        },
        set: |facts, value| {
            let FactValue::Text(word) = value else { return false };
            facts.assessment.modality = match word {
                "none" => Modality::None,
                "mouse" => Modality::Mouse,
                "touch" => Modality::Touch,
                "keyboard" => Modality::Keyboard,
                "mixed" => Modality::Mixed,
                _ => return false,
            };
            true
        },
    },
    Fact {
        name: "telemetry.state",
        kind: FactKind::Text { words: TELEMETRY },
        doc: "unexpected, missing, gathering, sufficient or damaged. Missing telemetry is no evidence of guilt.",
        tellable: true,
        of_request: false,
        get: |facts| {
            FactValue::Text(match facts.assessment.telemetry {
                TelemetryState::Unexpected => "unexpected",
                TelemetryState::Missing => "missing",
                TelemetryState::Gathering => "gathering",
                TelemetryState::Sufficient => "sufficient",
                TelemetryState::Damaged => "damaged",
            })
        },
        set: |facts, value| {
            let FactValue::Text(word) = value else { return false };
            facts.assessment.telemetry = match word {
                "unexpected" => TelemetryState::Unexpected,
                "missing" => TelemetryState::Missing,
                "gathering" => TelemetryState::Gathering,
                "sufficient" => TelemetryState::Sufficient,
                "damaged" => TelemetryState::Damaged,
                _ => return false,
            };
            true
        },
    },
    Fact {
        name: "model.calibrated",
        kind: FactKind::Bool,
        doc: "True once the model has learnt enough of this site's own people.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Bool(facts.assessment.calibrated),
        set: setter!(Bool, |facts, value| facts.assessment.calibrated = value),
    },
    Fact {
        name: "route",
        kind: FactKind::Text { words: &[] },
        doc: "Name of the route the latest request matched; \"\" before any request.",
        tellable: true,
        of_request: true,
        get: |facts| FactValue::Text(&facts.route),
        set: setter!(Text, |facts, value| facts.route = value.to_owned()),
    },
    Fact {
        name: "request.rate",
        kind: AMOUNT,
        doc: "Requests of the session in the last minute.",
        tellable: true,
        of_request: true,
        get: |facts| FactValue::Double(facts.requests_per_minute),
        set: double_setter!(|facts, value| facts.requests_per_minute = value),
    },
    Fact {
        name: "request.count",
        kind: FactKind::Int,
        doc: "Requests since the session opened.",
        tellable: true,
        of_request: true,
        get: |facts| FactValue::Int(i64::try_from(facts.requests).unwrap_or(i64::MAX)),
        set: setter!(Int, |facts, value| facts.requests = u64::try_from(value).unwrap_or(0)),
    },
    Fact {
        name: "flow.unprompted",
        kind: FactKind::Int,
        doc: "Page loads that no gesture can have caused, while telemetry arrived; a reload from the browser's bar is one.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Int(i64::try_from(facts.flow.unprompted).unwrap_or(i64::MAX)),
        set: setter!(Int, |facts, value| facts.flow.unprompted = u64::try_from(value).unwrap_or(0)),
    },
    Fact {
        name: "flow.unprompted_share",
        kind: SHARE,
        doc: "The same, of all page loads while telemetry arrived. Missing telemetry never moves it.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(facts.flow.unprompted_share),
        set: double_setter!(|facts, value| facts.flow.unprompted_share = value),
    },
    Fact {
        name: "flow.evenness",
        kind: SHARE,
        doc: "How even the time between page loads is: 1 for a timer, one half where it varies twofold; 0 until known.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(facts.flow.evenness),
        set: double_setter!(|facts, value| facts.flow.evenness = value),
    },
    Fact {
        name: "flow.paths",
        kind: FactKind::Int,
        doc: "Different paths the session asked for, roughly; at most 512.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Int(i64::try_from(facts.flow.paths).unwrap_or(i64::MAX)),
        set: setter!(Int, |facts, value| facts.flow.paths = u64::try_from(value).unwrap_or(0)),
    },
    Fact {
        name: "flow.volume",
        kind: AMOUNT,
        doc: "Megabytes sent to the client.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(facts.flow.volume),
        set: double_setter!(|facts, value| facts.flow.volume = value),
    },
    Fact {
        name: "session.age",
        kind: AMOUNT,
        doc: "Seconds since the session opened.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Double(facts.session_age_seconds),
        set: double_setter!(|facts, value| facts.session_age_seconds = value),
    },
    Fact {
        name: "user.id",
        kind: FactKind::Text { words: &[] },
        doc: "The person's pseudonym (`u_…`, shown on the ops page); \"\" without a login.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Text(&facts.user_id),
        set: setter!(Text, |facts, value| facts.user_id = value.to_owned()),
    },
    Fact {
        name: "user.groups",
        kind: FactKind::List,
        doc: "Verified group claims of the token.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::List(&facts.user_groups),
        set: setter!(List, |facts, value| facts.user_groups = value.to_vec()),
    },
    Fact {
        name: "net.ip",
        kind: FactKind::Text { words: &[] },
        doc: "Client address of the latest request; for networks write `net.within(\"10.0.0.0/8\")`.",
        tellable: false,
        of_request: false,
        get: |facts| FactValue::Text(&facts.net_ip),
        set: setter!(Text, |facts, value| facts.net_ip = value.to_owned()),
    },
    Fact {
        name: "net.country",
        kind: FactKind::Text { words: &[] },
        doc: "Two-letter country of that address; \"\" if unknown, as without `proxy.country_file`.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Text(&facts.net_country),
        set: setter!(Text, |facts, value| facts.net_country = value.to_owned()),
    },
    Fact {
        name: "challenge.passed",
        kind: FactKind::Bool,
        doc: "The session passed a challenge, or logged in again, within the policy's pass time.",
        tellable: true,
        of_request: false,
        get: |facts| FactValue::Bool(facts.challenge_passed),
        set: setter!(Bool, |facts, value| facts.challenge_passed = value),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_reads_back_what_was_set() {
        for fact in FACTS {
            let mut facts = Facts::default();
            let groups = ["staff".to_owned()];
            let value = match fact.kind {
                FactKind::Bool => FactValue::Bool(true),
                FactKind::Int => FactValue::Int(7),
                FactKind::Double { .. } => FactValue::Double(0.9),
                FactKind::Text { words } => FactValue::Text(words.last().copied().unwrap_or("x")),
                FactKind::List => FactValue::List(&groups),
            };
            assert_ne!((fact.get)(&facts), value, "{} has this value by default", fact.name);
            assert!((fact.set)(&mut facts, value), "{}", fact.name);
            assert_eq!((fact.get)(&facts), value, "{}", fact.name);
        }
    }

    #[test]
    fn a_word_outside_the_list_is_refused() {
        let state = &FACTS[find("telemetry.state").unwrap()];
        assert!(!(state.set)(&mut Facts::default(), FactValue::Text("guilty")));
    }

    #[test]
    fn what_is_no_number_counts_as_nothing_known() {
        let facts = Facts {
            assessment: Assessment {
                bot_evidence: f32::NAN,
                bot_score: Some(f32::INFINITY),
                ..Assessment::default()
            },
            ..Facts::default()
        };
        for name in ["bot.evidence", "bot.score"] {
            assert_eq!((FACTS[find(name).unwrap()].get)(&facts), FactValue::Double(0.0));
        }
    }
}
