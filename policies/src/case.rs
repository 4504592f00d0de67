//! Policy cases: given facts or a recorded session, expect a decision and its reason.
//!
//! Kept beside a policy in `cases/*.yaml`; `cargo test` and `gaitway policy test` run them alike.
//! Also the other pure questions about a policy: why it decides so, and how two differ. Must not
//! know: where cases come from; a recorded session is fetched by a closure of the caller.

use crate::backtest::Replay;
use crate::decide::decide;
use crate::document::{Document, Mistake, Node, Position, Reader, Value};
use crate::engine::Mode;
use crate::facts::{FACTS, FactKind, FactValue, Facts, find};
use crate::policy::{Measure, PolicySet, Rule};
use crate::record::Recording;
use std::sync::Arc;

/// Most cases in one file.
pub const CASES_MAX: usize = 1_000;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub file: String,
    pub at: Position,
    given: Given,
    expect: Expectation,
}

#[derive(Clone, Debug)]
enum Given {
    Facts(Box<Facts>),
    /// The lines of a recording with one session in it.
    Session(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Expectation {
    decision: Option<String>,
    rule: Option<String>,
    mode: Option<Mode>,
    reason: Option<String>,
    /// Other rules that must speak too.
    told: Option<Vec<String>>,
    /// Second of the recorded session at which it is shut out, to the second.
    second: Option<u64>,
    /// Limits that count a request on the route of the facts.
    limits: Option<Vec<String>>,
}

/// What a policy says, in the words of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// `none`, or the action of the rule that acts or would act.
    pub decision: String,
    pub rule: Option<String>,
    pub mode: Option<Mode>,
    pub reason: Option<String>,
    /// All rules that spoke, the deciding one included, in the order of the file.
    pub told: Vec<String>,
    pub second: Option<u64>,
    /// The limits that count a request on this route, in the order in which they are counted. What an
    /// allow rule lets through without knowing the session is not held up by them.
    pub limits: Vec<String>,
}

/// Reads a file of cases. `fetch` gets the text of a recording named in it.
pub fn parse(
    file: &str,
    yaml: &str,
    fetch: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Vec<Case>, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let Some(document) = Document::parse(&mut mistakes, file, yaml) else { return Err(mistakes) };
    let mut reader = Reader::new(&document);
    let cases = read(&mut reader, fetch).unwrap_or_default();
    mistakes.extend(reader.mistakes);
    if mistakes.is_empty() { Ok(cases) } else { Err(mistakes) }
}

impl Case {
    /// What the policy says, and each way in which that is not what the case expects.
    pub fn run(&self, policies: &Arc<PolicySet>) -> (Said, Vec<String>) {
        let said = match &self.given {
            Given::Facts(facts) => Said::over_facts(policies, facts),
            Given::Session(lines) => match Said::over_session(policies, lines) {
                Ok(said) => said,
                Err(problem) => {
                    return (Said::nothing(), vec![problem]);
                }
            },
        };
        let mut failures = Vec::new();
        let mut compare = |what: &str, expected: Option<String>, found: Option<String>| {
            if let Some(expected) = expected
                && found.as_ref() != Some(&expected)
            {
                let found = found.unwrap_or_else(|| "nothing".into());
                failures.push(format!("expected {what} {expected}, found {found}"));
            }
        };
        let mode = |mode: Mode| format!("{mode:?}").to_lowercase();
        compare("decision", self.expect.decision.clone(), Some(said.decision.clone()));
        compare("rule", self.expect.rule.clone(), said.rule.clone());
        compare("mode", self.expect.mode.map(mode), said.mode.map(mode));
        compare("reason", self.expect.reason.clone(), said.reason.clone());
        let second = |second: u64| second.to_string();
        compare("second", self.expect.second.map(second), said.second.map(second));
        let told = |told: &[String]| format!("[{}]", told.join(", "));
        compare("limits", self.expect.limits.as_deref().map(told), Some(told(&said.limits)));
        compare("told", self.expect.told.as_deref().map(told), Some(told(&said.told)));
        (said, failures)
    }
}

impl Said {
    fn nothing() -> Said {
        Said {
            decision: "none".into(),
            rule: None,
            mode: None,
            reason: None,
            told: Vec::new(),
            second: None,
            limits: Vec::new(),
        }
    }

    /// Shadow counts as if it were enforced: the strictest rule that speaks is the decision.
    pub fn over_facts(policies: &PolicySet, facts: &Facts) -> Said {
        let decision = decide(policies, facts);
        let rules = policies.rules();
        let limits = match policies.allows_at_door(facts) {
            Some(_) => Vec::new(),
            None => policies.limits_on(&facts.route).map(|limit| limit.name.to_string()).collect(),
        };
        let mut spoke: Vec<usize> = decision.told.iter().copied().chain(decision.acts).collect();
        spoke.extend(decision.allowed);
        spoke.sort_unstable();
        let strictest = decision.allowed.or(decision.acts).or_else(|| {
            // The first of the strictest, as the engine has it.
            spoke.iter().copied().rev().max_by_key(|index| rules[*index].measure.action())
        });
        let told = spoke.iter().map(|index| rules[*index].name.to_string()).collect();
        let Some(rule) = strictest.map(|index| &rules[index]) else {
            return Said { told, limits, ..Said::nothing() };
        };
        Said {
            decision: word(rule),
            rule: Some(rule.name.to_string()),
            mode: Some(if rule.measure == Measure::Log { Mode::Shadow } else { rule.mode }),
            reason: Some(rule.reason.text(facts)),
            told,
            second: None,
            limits,
        }
    }

    /// The first decision that shuts the session out; else the strictest that was made.
    fn over_session(policies: &Arc<PolicySet>, lines: &str) -> Result<Said, String> {
        let mut recording = Recording::new();
        let mut replay = Replay::new(Arc::clone(policies));
        for line in lines.lines() {
            if let Some(recorded) = recording.read(line).map_err(|error| error.to_string())? {
                replay.observe(recorded);
            }
        }
        let outcome = replay.finish(&recording);
        if outcome.sessions != 1 {
            return Err(format!("a case replays one session, found {}", outcome.sessions));
        }
        let told = outcome.rules.keys().cloned().collect();
        if let Some(verdict) = outcome.out.into_values().next() {
            return Ok(Said {
                decision: policies.rule(&verdict.rule).map(word).unwrap_or_else(|| "none".into()),
                rule: Some(verdict.rule),
                mode: Some(verdict.mode),
                reason: Some(verdict.reason),
                told,
                second: Some(verdict.second as u64),
                limits: Vec::new(),
            });
        }
        let strictest = outcome.rules.iter().max_by_key(|(_, tally)| tally.action);
        Ok(match strictest.and_then(|(name, _)| policies.rule(name)) {
            Some(rule) => {
                Said { decision: word(rule), rule: Some(rule.name.to_string()), told, ..Said::nothing() }
            }
            None => Said::nothing(),
        })
    }
}

/// The action as a policy writes it.
pub fn word(rule: &Rule) -> String {
    // Serde's own name of a unit variant is the word of the file.
    serde_json::to_value(rule.measure.action())
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Every rule with whether it holds and the facts it looks at: one line each.
pub fn explain(policies: &PolicySet, facts: &Facts) -> Vec<String> {
    let mut lines = Vec::with_capacity(policies.rules().len());
    for rule in policies.rules() {
        let holds = match rule.condition.holds(facts) {
            Ok(true) => "holds",
            Ok(false) => "does not hold",
            Err(_) => "has no answer, and so does not hold",
        };
        let named: Vec<String> = rule
            .condition
            .names()
            .into_iter()
            .filter(|fact| FACTS[*fact].tellable)
            .map(|fact| format!("{} = {}", FACTS[fact].name, (FACTS[fact].get)(facts)))
            .collect();
        lines.push(format!(
            "{} ({}, {}): {holds}: {}\n    {}",
            rule.name,
            word(rule),
            format!("{:?}", rule.mode).to_lowercase(),
            rule.condition.source(),
            if named.is_empty() { "looks at no fact that may be told".into() } else { named.join(", ") }
        ));
    }
    lines
}

/// How `new` differs from `old`, one line a difference, `+`, `-` or `~` first.
pub fn differences(old: &PolicySet, new: &PolicySet) -> Vec<String> {
    let mut lines = Vec::new();
    for rule in old.rules().iter().filter(|rule| new.rule(&rule.name).is_none()) {
        lines.push(format!("- rule {} ({}): {}", rule.name, word(rule), rule.condition.source()));
    }
    for rule in new.rules() {
        let Some(before) = old.rule(&rule.name) else {
            let mode = format!("{:?}", rule.mode).to_lowercase();
            lines.push(format!("+ rule {} ({}, {mode}): {}", rule.name, word(rule), rule.condition.source()));
            continue;
        };
        let mut change = |what: &str, old: String, new: String| {
            if old != new {
                lines.push(format!("~ rule {} {what}: {old} → {new}", rule.name));
            }
        };
        if before.condition != rule.condition {
            change("when", before.condition.source().into(), rule.condition.source().into());
        }
        change(
            "mode",
            format!("{:?}", before.mode).to_lowercase(),
            format!("{:?}", rule.mode).to_lowercase(),
        );
        change("action", format!("{:?}", before.measure), format!("{:?}", rule.measure));
        let span = crate::document::duration_text;
        change("for", span(before.hold_ms), span(rule.hold_ms));
        change("cool_down", span(before.cool_down_ms), span(rule.cool_down_ms));
        change("reason", before.reason.source().into(), rule.reason.source().into());
    }
    for limit in old.limits() {
        match new.limits().iter().find(|other| other.name == limit.name) {
            None => lines.push(format!("- limit {}: {}", limit.name, limit.sentence())),
            Some(now) if now != limit => {
                lines.push(format!("~ limit {}: {} → {}", limit.name, limit.sentence(), now.sentence()));
            }
            Some(_) => {}
        }
    }
    for limit in new.limits() {
        if !old.limits().iter().any(|other| other.name == limit.name) {
            lines.push(format!("+ limit {}: {}", limit.name, limit.sentence()));
        }
    }
    if old.alerts() != new.alerts() {
        let names = |policies: &PolicySet| -> Vec<String> {
            policies
                .alerts()
                .iter()
                .map(|alert| format!("{} to {}", alert.name, alert.to.join(" and ")))
                .collect()
        };
        lines.push(format!("~ alerts: [{}] → [{}]", names(old).join(", "), names(new).join(", ")));
    }
    let budget = |policies: &PolicySet| {
        let budget = policies.budget;
        format!(
            "{} a minute, {}% of sessions an hour, {} a user and day",
            budget.logouts_per_minute_max,
            budget.logouts_share_max * 100.0,
            budget.logouts_per_user_per_day_max
        )
    };
    if old.budget != new.budget {
        lines.push(format!("~ budget: {} → {}", budget(old), budget(new)));
    }
    if old.challenge_pass_ms != new.challenge_pass_ms {
        let span = crate::document::duration_text;
        lines.push(format!(
            "~ challenge pass_for: {} → {}",
            span(old.challenge_pass_ms),
            span(new.challenge_pass_ms)
        ));
    }
    lines
}

fn read<'d>(reader: &mut Reader<'d>, fetch: &dyn Fn(&str) -> Result<String, String>) -> Option<Vec<Case>> {
    let root = &reader.document.root;
    let fields = reader.mapping(root, "", &["cases"])?;
    let Some((node, field)) = fields.get("cases") else {
        reader.mistake(fields.at, "cases", "missing", None);
        return None;
    };
    let items = reader.sequence(node, &field)?;
    if items.len() > CASES_MAX {
        reader.mistake(node.at, &field, format!("more than {CASES_MAX} cases"), None);
    }
    let mut cases = Vec::new();
    for (index, item) in items.iter().take(CASES_MAX).enumerate() {
        cases.extend(read_case(reader, item, &format!("{field}[{index}]"), fetch));
    }
    Some(cases)
}

fn read_case<'d>(
    reader: &mut Reader<'d>,
    node: &'d Node,
    field: &str,
    fetch: &dyn Fn(&str) -> Result<String, String>,
) -> Option<Case> {
    let fields = reader.mapping(node, field, &["name", "given", "session", "expect"])?;
    let name = match fields.get("name") {
        Some((node, path)) => reader.text(node, &path)?.to_owned(),
        None => {
            reader.mistake(
                fields.at,
                &fields.path("name"),
                "missing",
                Some("a sentence that says what is expected".into()),
            );
            return None;
        }
    };
    let given = match (fields.get("given"), fields.get("session")) {
        (Some((node, path)), None) => Given::Facts(Box::new(read_facts(reader, node, &path)?)),
        (None, Some((node, path))) => {
            let place = reader.text(node, &path)?;
            match fetch(place) {
                Ok(lines) => Given::Session(lines),
                Err(problem) => {
                    reader.mistake(node.at, &path, problem, None);
                    return None;
                }
            }
        }
        _ => {
            let hint = "`given: {bot.evidence: 9}` or `session: recorded/one.jsonl`";
            reader.mistake(fields.at, field, "needs either given or session", Some(hint.into()));
            return None;
        }
    };
    let Some((node, path)) = fields.get("expect") else {
        let hint = "`expect: logout` or `expect: {decision: logout, rule: …, reason: …}`";
        reader.mistake(fields.at, &fields.path("expect"), "missing", Some(hint.into()));
        return None;
    };
    let expect = read_expectation(reader, node, &path)?;
    Some(Case { name, file: reader.document.file.clone(), at: fields.at, given, expect })
}

/// Facts by name, `{bot.evidence: 9, user.groups: [staff]}`; facts not named have their defaults.
pub fn read_facts<'d>(reader: &mut Reader<'d>, node: &'d Node, field: &str) -> Option<Facts> {
    let names: Vec<&str> = FACTS.iter().map(|fact| fact.name).collect();
    let fields = reader.mapping(node, field, &names)?;
    let mut facts = Facts::default();
    for entry in fields.entries() {
        let Some(fact) = find(&entry.key).map(|index| &FACTS[index]) else { continue };
        let path = fields.path(&entry.key);
        let node = &entry.node;
        let texts;
        let value = match fact.kind {
            FactKind::Bool => FactValue::Bool(reader.boolean(node, &path)?),
            FactKind::Int => FactValue::Int(
                i64::try_from(reader.integer(node, &path, 0, i64::MAX as u64)?).unwrap_or(i64::MAX),
            ),
            FactKind::Double { least, most } => FactValue::Double(reader.number(node, &path, least, most)?),
            FactKind::Text { words } if !words.is_empty() => {
                let pairs: Vec<(&str, &str)> = words.iter().map(|word| (*word, *word)).collect();
                FactValue::Text(reader.one_of(node, &path, &pairs)?)
            }
            FactKind::Text { .. } => FactValue::Text(reader.text(node, &path)?),
            FactKind::List => {
                texts = reader.texts(node, &path)?;
                FactValue::List(&texts)
            }
        };
        (fact.set)(&mut facts, value);
    }
    Some(facts)
}

fn read_expectation<'d>(reader: &mut Reader<'d>, node: &'d Node, field: &str) -> Option<Expectation> {
    let decisions: Vec<(&str, &str)> =
        crate::policy::ACTIONS.iter().map(|(word, _)| (*word, *word)).chain([("none", "none")]).collect();
    if let Value::Scalar { .. } = &node.value {
        let decision = reader.one_of(node, field, &decisions)?.to_owned();
        return Some(Expectation { decision: Some(decision), ..Expectation::default() });
    }
    let keys = ["decision", "rule", "mode", "reason", "told", "second", "limits"];
    let fields = reader.mapping(node, field, &keys)?;
    let mut expect = Expectation::default();
    if let Some((node, path)) = fields.get("decision") {
        expect.decision = Some(reader.one_of(node, &path, &decisions)?.to_owned());
    }
    if let Some((node, path)) = fields.get("rule") {
        expect.rule = Some(reader.text(node, &path)?.to_owned());
    }
    if let Some((node, path)) = fields.get("mode") {
        expect.mode = Some(reader.one_of(node, &path, crate::policy::MODES)?);
    }
    if let Some((node, path)) = fields.get("reason") {
        expect.reason = Some(reader.text(node, &path)?.to_owned());
    }
    if let Some((node, path)) = fields.get("told") {
        expect.told = Some(reader.texts(node, &path)?);
    }
    if let Some((node, path)) = fields.get("second") {
        expect.second = Some(reader.integer(node, &path, 0, u64::MAX)?);
    }
    if let Some((node, path)) = fields.get("limits") {
        expect.limits = Some(reader.texts(node, &path)?);
    }
    if expect == Expectation::default() {
        reader.mistake(
            node.at,
            field,
            "expects nothing",
            Some("`decision: none` if nothing should happen".into()),
        );
        return None;
    }
    Some(expect)
}

#[cfg(test)]
mod tests;
