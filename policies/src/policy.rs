//! YAML file to validated `PolicySet`: every mistake at once, each with its place and a hint.
//!
//! A rule that stands in a `PolicySet` names only facts that exist, can be reached, and cannot shut
//! people out without a budget. Must not know: sessions, time, where files come from.

use crate::alert::{ALERTS_MAX, Alert, SINKS};
use crate::condition::Condition;
use crate::document::{Document, Fields, MISTAKES_MAX, Node, Position, Reader, Value, nearest};
use crate::engine::{Action, Mode};
use crate::facts::{FACTS, Facts, find};
use crate::limit::{IPV6_PREFIX, LIMITS_MAX, Limit, Per, REQUESTS_MAX, Rate};
use crate::route::{DEFAULT_ROUTE, Match, Outage, PathPattern, RequestLine, Route, Sources};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One mistake in a policy file; all mistakes of a file are reported at once.
pub use crate::document::Mistake as PolicyError;

/// The policy of a fresh installation: everything in shadow.
pub const DEFAULT: &str = include_str!("../default.yaml");
/// The policy of `make demo`: it enforces.
pub const DEMO: &str = include_str!("../demo.yaml");

/// JSON Schema of policy files, for editors; what only the parser can judge is not in it.
pub const SCHEMA: &str = include_str!("../policy.schema.json");

/// Most rules in a policy: each is read on every piece of new evidence.
pub const RULES_MAX: usize = 128;
/// Most routes in a policy, and most snippets it imports.
pub const ROUTES_MAX: usize = 64;
pub const IMPORTS_MAX: usize = 32;
/// Longest rule name; names become metric labels and stand in mails.
pub const NAME_CHARS_MAX: usize = 64;
/// Longest reason or tag, in bytes.
pub const REASON_BYTES_MAX: usize = 512;
/// Longest hold or cool-down: a week. What must last longer is a revocation.
pub const SPAN_MS_MAX: u64 = 7 * 86_400_000;
/// Largest number of logouts a minute a budget may grant; keeps its ledger small.
pub const LOGOUTS_PER_MINUTE_MAX: u64 = 1_000;

const HOLD_MS: u64 = 10 * 60_000;
const COOL_DOWN_MS: u64 = 10 * 60_000;
const CHALLENGE_PASS_MS: u64 = 30 * 60_000;
const TARPIT_DELAY_MS: u64 = 20_000;
/// Longest delay of one answer: past a minute most clients have given up, and only we go on waiting.
pub const TARPIT_DELAY_MS_MAX: u64 = 60_000;

/// A whole policy, checked.
#[derive(Clone, Debug)]
pub struct PolicySet {
    version: String,
    /// Allow rules first, then the others in the order of the file.
    rules: Vec<Rule>,
    routes: Vec<Route>,
    fallback: Route,
    /// Routes that name their rules, with whether each rule applies.
    narrowed: Vec<(String, Vec<bool>)>,
    /// Narrow ones first: session, address, route.
    limits: Vec<Limit>,
    alerts: Vec<Alert>,
    /// Allow rules that a request alone can satisfy, by position.
    at_door: Vec<usize>,
    pub budget: Budget,
    /// How long a passed challenge is not asked again, in ms.
    pub challenge_pass_ms: u64,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub name: Arc<str>,
    pub condition: Condition,
    pub mode: Mode,
    pub measure: Measure,
    /// How long the measure lasts, in ms; a logout lasts as long as its revocation instead.
    pub hold_ms: u64,
    /// How long the rule is silent about a session after it has spoken, in ms.
    pub cool_down_ms: u64,
    pub reason: Reason,
    /// The condition names facts of the latest request only, so it says nothing lasting about the session.
    pub of_request: bool,
    pub file: Arc<str>,
    pub at: Position,
}

/// An action with what it needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Measure {
    Allow,
    Log,
    Tag { value: String },
    Throttle { requests_per_minute: u32, burst: u32 },
    Challenge,
    StepUp { acr_values: String, max_age_seconds: u64 },
    Logout,
    LogoutEverywhere,
    Deny,
    Tarpit { delay_ms: u64 },
}

/// How many people a policy may shut out before it is taken for mistaken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    pub logouts_per_minute_max: u32,
    /// Share of the active sessions logged out within an hour, as a fraction; never less than one session.
    pub logouts_share_max: f64,
    pub logouts_per_user_per_day_max: u32,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { logouts_per_minute_max: 5, logouts_share_max: 0.02, logouts_per_user_per_day_max: 3 }
    }
}

/// A sentence with facts in it: `{bot.evidence} after {evidence.seconds} s`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    source: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Fact(usize),
    /// `{reasons}`: the model's own sentences.
    Reasons,
}

impl PolicySet {
    /// Reads a policy that stands alone; an `import` in it is a mistake.
    pub fn parse(file: &str, yaml: &str) -> Result<PolicySet, Vec<PolicyError>> {
        PolicySet::parse_with(file, yaml, &|_| Err("snippets can only be imported from files".into()))
    }

    /// Reads a policy and the snippets it imports, whose text `fetch` gets by the name in the file.
    pub fn parse_with(
        file: &str,
        yaml: &str,
        fetch: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<PolicySet, Vec<PolicyError>> {
        let mut mistakes = Vec::new();
        let mut hash = Sha256::new_with_prefix(yaml.as_bytes());
        let Some(document) = Document::parse(&mut mistakes, file, yaml) else { return Err(mistakes) };
        let mut reader = Reader::new(&document);
        let draft = read(&mut reader);
        let budgeted = draft.as_ref().is_some_and(|draft| draft.budget.is_some());
        mistakes.append(&mut reader.mistakes);
        let mut draft = draft.unwrap_or_default();
        for (place, at, field) in std::mem::take(&mut draft.imports) {
            match fetch(&place) {
                Ok(text) => {
                    // The length keeps two texts from reading as one another's continuation.
                    hash.update((text.len() as u64).to_le_bytes());
                    hash.update(text.as_bytes());
                    read_snippet(&mut draft, &mut mistakes, &place, &text);
                }
                Err(problem) => reader.mistake(at, &field, problem, None),
            }
        }
        check_names(&mut mistakes, &draft);
        check_reachable(&mut mistakes, &draft.rules);
        check_routes(&mut mistakes, &draft, file);
        find_identities(&mut mistakes, &mut draft);
        if !budgeted {
            check_budget(&mut mistakes, &draft.rules);
        }
        mistakes.append(&mut reader.mistakes);
        // A mistake in the main file's own place first, then those of the snippets by name.
        mistakes.sort_by_key(|mistake| {
            (mistake.file != file, mistake.file.clone(), mistake.line, mistake.column)
        });
        mistakes.dedup();
        if mistakes.is_empty() { Ok(draft.finish(&hash.finalize())) } else { Err(mistakes) }
    }

    /// The route of a request: the first that matches, else the one called `default`.
    pub fn route(&self, request: &RequestLine<'_>) -> &Route {
        self.routes.iter().find(|route| route.matches(request)).unwrap_or(&self.fallback)
    }

    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Whether the rule at `index` applies on `route`. Allow rules apply everywhere.
    pub(crate) fn applies(&self, index: usize, route: &str) -> bool {
        // A handful of routes with lists of their own: looking through them beats hashing.
        let route = if route.is_empty() { DEFAULT_ROUTE } else { route };
        match self.narrowed.iter().find(|(name, _)| name == route) {
            Some((_, rules)) => rules[index],
            None => true,
        }
    }

    /// The limits that count requests on `route`, in the order in which they are counted.
    pub fn limits_on<'p>(&'p self, route: &'p str) -> impl Iterator<Item = &'p Limit> {
        self.limits.iter().filter(move |limit| limit.covers(route))
    }

    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// Who is told of what; the sinks of no row are told as the configuration says.
    pub fn alerts(&self) -> &[Alert] {
        &self.alerts
    }

    /// The allow rule that lets a request through on what the request itself says: its route, address
    /// and login. Rules that look at how a session behaves are the engine's to read.
    pub fn allows_at_door(&self, facts: &Facts) -> Option<&Rule> {
        let rules = self.at_door.iter().map(|index| &self.rules[*index]);
        rules.into_iter().find(|rule| rule.condition.holds(facts) == Ok(true))
    }

    /// First 16 hex digits of the SHA-256 of the policy text; carried by every decision.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Allow rules first, then the others in the order of the file.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| &*rule.name == name)
    }

    /// True if any rule or limit may get in somebody's way.
    pub fn enforces(&self) -> bool {
        self.rules.iter().any(|rule| rule.mode == Mode::Enforce && rule.measure != Measure::Allow)
            || self.limits.iter().any(|limit| limit.mode == Mode::Enforce)
    }
}

impl Measure {
    pub fn action(&self) -> Action {
        match self {
            Measure::Allow => Action::Allow,
            Measure::Log => Action::Log,
            Measure::Tag { .. } => Action::Tag,
            Measure::Throttle { .. } => Action::Throttle,
            Measure::Challenge => Action::Challenge,
            Measure::StepUp { .. } => Action::StepUp,
            Measure::Logout => Action::Logout,
            Measure::LogoutEverywhere => Action::LogoutEverywhere,
            Measure::Deny => Action::Deny,
            Measure::Tarpit { .. } => Action::Tarpit,
        }
    }
}

impl Action {
    /// Whether it shuts a person out, and so draws on the budget.
    pub fn shuts_out(self) -> bool {
        matches!(self, Action::Logout | Action::LogoutEverywhere | Action::Deny | Action::Tarpit)
    }
}

impl Reason {
    /// As written in the file.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The sentence for these facts. Texts from outside are shortened and stripped of control characters.
    pub fn text(&self, facts: &Facts) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(words) => text.push_str(words),
                Part::Reasons => {
                    let reasons: Vec<&str> =
                        facts.assessment.reasons.iter().take(3).map(|reason| reason.text.as_str()).collect();
                    text.push_str(&reasons.join(" "));
                }
                Part::Fact(fact) => {
                    let value = (FACTS[*fact].get)(facts).to_string();
                    // Names of groups and routes come from outside.
                    text.extend(value.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX));
                }
            }
        }
        // `…: {reasons}` while the model gives none.
        text.truncate(text.trim_end_matches([' ', ':']).len());
        text
    }
}

pub(crate) const MODES: &[(&str, Mode)] = &[("shadow", Mode::Shadow), ("enforce", Mode::Enforce)];
pub(crate) const ACTIONS: &[(&str, Action)] = &[
    ("allow", Action::Allow),
    ("log", Action::Log),
    ("tag", Action::Tag),
    ("throttle", Action::Throttle),
    ("challenge", Action::Challenge),
    ("step-up", Action::StepUp),
    ("logout", Action::Logout),
    ("logout-everywhere", Action::LogoutEverywhere),
    ("deny", Action::Deny),
    ("tarpit", Action::Tarpit),
];

/// What has been read so far of a policy and its snippets.
#[derive(Default)]
struct Draft {
    mode: Option<Mode>,
    rules: Vec<Rule>,
    routes: Vec<(Route, Arc<str>, Position)>,
    identities: Vec<(String, Sources)>,
    limits: Vec<(Limit, Position)>,
    alerts: Vec<(Alert, Position)>,
    budget: Option<Budget>,
    challenge_pass_ms: Option<u64>,
    imports: Vec<(String, Position, String)>,
}

impl Draft {
    fn finish(mut self, hash: &[u8]) -> PolicySet {
        // Stable: allow rules move to the front, everything else keeps the order of the file.
        self.rules.sort_by_key(|rule| rule.measure != Measure::Allow);
        let routes: Vec<Route> = self.routes.into_iter().map(|(route, ..)| route).collect();
        let applies = |rule: &Rule, names: &[String]| {
            rule.measure == Measure::Allow || names.iter().any(|name| **name == *rule.name)
        };
        let narrowed = routes.iter().filter_map(|route| {
            let names = route.rules.as_ref()?;
            Some((route.name.clone(), self.rules.iter().map(|rule| applies(rule, names)).collect()))
        });
        let mut limits: Vec<Limit> = self.limits.into_iter().map(|(limit, _)| limit).collect();
        limits.sort_by_key(|limit| limit.per);
        let at_door = |rule: &Rule| {
            rule.measure == Measure::Allow && rule.condition.names().iter().all(|fact| FACTS[*fact].at_door())
        };
        PolicySet {
            version: hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
            narrowed: narrowed.collect(),
            limits,
            alerts: self.alerts.into_iter().map(|(alert, _)| alert).collect(),
            at_door: (0..self.rules.len()).filter(|index| at_door(&self.rules[*index])).collect(),
            fallback: routes
                .iter()
                .find(|route| route.name == DEFAULT_ROUTE)
                .cloned()
                .unwrap_or_else(Route::fallback),
            routes,
            rules: self.rules,
            budget: self.budget.unwrap_or_default(),
            challenge_pass_ms: self.challenge_pass_ms.unwrap_or(CHALLENGE_PASS_MS),
        }
    }
}

pub(crate) const POLICY_KEYS: &[&str] =
    &["mode", "import", "identities", "routes", "rules", "limits", "budget", "challenge", "alerts"];

fn read<'d>(reader: &mut Reader<'d>) -> Option<Draft> {
    let document = reader.document;
    let fields = reader.mapping(&document.root, "", POLICY_KEYS)?;
    let mut draft = Draft {
        mode: fields.get("mode").and_then(|(node, field)| reader.one_of(node, &field, MODES)),
        ..Draft::default()
    };
    draft.challenge_pass_ms = fields.get("challenge").and_then(|(node, field)| {
        let fields = reader.mapping(node, &field, &["pass_for"])?;
        let (node, field) = fields.get("pass_for")?;
        reader.duration_ms(node, &field, 60_000, SPAN_MS_MAX)
    });
    if let Some((node, field)) = fields.get("import") {
        let items = reader.sequence(node, &field).unwrap_or(&[]);
        if items.len() > IMPORTS_MAX {
            reader.mistake(node.at, &field, format!("more than {IMPORTS_MAX} imports"), None);
        }
        for (index, item) in items.iter().take(IMPORTS_MAX).enumerate() {
            let field = format!("{field}[{index}]");
            if let Some(place) = reader.text(item, &field) {
                draft.imports.push((place.to_owned(), item.at, field));
            }
        }
    }
    if fields.get("rules").is_none() && !fields.entries().iter().any(|entry| entry.key == "rules") {
        let hint = "a policy is a list of rules; `rules: []` decides nothing";
        reader.mistake(fields.at, "rules", "missing", Some(hint.into()));
    }
    draft.identities = read_identities(reader, &fields);
    read_lists(reader, &fields, &mut draft);
    read_limits(reader, &fields, &mut draft);
    read_alerts(reader, &fields, &mut draft);
    draft.budget = read_budget(reader, &fields);
    Some(draft)
}

/// A snippet brings rules and routes; mode and budget are the importing policy's.
fn read_snippet(draft: &mut Draft, mistakes: &mut Vec<PolicyError>, file: &str, yaml: &str) {
    let Some(document) = Document::parse(mistakes, file, yaml) else { return };
    let mut reader = Reader::new(&document);
    if let Some(fields) = reader.mapping(&document.root, "", &["routes", "rules"]) {
        read_lists(&mut reader, &fields, draft);
    }
    mistakes.append(&mut reader.mistakes);
}

fn read_lists<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>, draft: &mut Draft) {
    let default_mode = draft.mode.unwrap_or(Mode::Shadow);
    let file: Arc<str> = reader.document.file.as_str().into();
    if let Some((node, field)) = fields.get("rules") {
        let items = reader.sequence(node, &field).unwrap_or(&[]);
        if draft.rules.len() + items.len() > RULES_MAX {
            reader.mistake(node.at, &field, format!("more than {RULES_MAX} rules"), None);
        }
        for (index, item) in items.iter().take(RULES_MAX).enumerate() {
            draft.rules.extend(read_rule(reader, item, &format!("{field}[{index}]"), default_mode, &file));
        }
    }
    if let Some((node, field)) = fields.get("routes") {
        let items = reader.sequence(node, &field).unwrap_or(&[]);
        if draft.routes.len() + items.len() > ROUTES_MAX {
            reader.mistake(node.at, &field, format!("more than {ROUTES_MAX} routes"), None);
        }
        for (index, item) in items.iter().take(ROUTES_MAX).enumerate() {
            let read = read_route(reader, item, &format!("{field}[{index}]"));
            draft.routes.extend(read.map(|route| (route, Arc::clone(&file), item.at)));
        }
    }
}

pub(crate) const ROUTE_KEYS: &[&str] =
    &["name", "match", "rules", "injection", "outage", "login", "identity"];
pub(crate) const IDENTITY_KEYS: &[&str] = &["name", "by"];

fn read_identities<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Vec<(String, Sources)> {
    let Some((node, field)) = fields.get("identities") else { return Vec::new() };
    let items = reader.sequence(node, &field).unwrap_or(&[]);
    if items.len() > ROUTES_MAX {
        reader.mistake(node.at, &field, format!("more than {ROUTES_MAX} identities"), None);
    }
    let mut identities: Vec<(String, Sources)> = Vec::new();
    for (index, item) in items.iter().take(ROUTES_MAX).enumerate() {
        let Some(fields) = reader.mapping(item, &format!("{field}[{index}]"), IDENTITY_KEYS) else {
            continue;
        };
        let Some(name) = read_name(reader, &fields) else { continue };
        if identities.iter().any(|(other, _)| *other == name) {
            reader.mistake(item.at, &fields.path("name"), format!("a second identity `{name}`"), None);
        }
        let mut sources = Sources::NONE;
        match fields.get("by") {
            Some((node, path)) => {
                for (at, word) in reader.sequence(node, &path).unwrap_or(&[]).iter().enumerate() {
                    match reader.one_of(word, &format!("{path}[{at}]"), SOURCES) {
                        Some(Source::Jwt) => sources.jwt = true,
                        Some(Source::Introspection) => sources.introspection = true,
                        Some(Source::Oidc) => sources.oidc = true,
                        Some(Source::AppCookie) => sources.app_cookie = true,
                        None => {}
                    }
                }
            }
            None => {
                let hint = "`by: [jwt]`; `by: []` goes by Gaitway's own cookie alone";
                reader.mistake(fields.at, &fields.path("by"), "missing", Some(hint.into()));
            }
        }
        identities.push((name, sources));
    }
    identities
}

#[derive(Clone, Copy)]
enum Source {
    Jwt,
    Introspection,
    Oidc,
    AppCookie,
}

const SOURCES: &[(&str, Source)] = &[
    ("jwt", Source::Jwt),
    ("introspection", Source::Introspection),
    ("oidc", Source::Oidc),
    ("app_cookie", Source::AppCookie),
];

pub(crate) const MATCH_KEYS: &[&str] = &["host", "path", "method", "header"];

fn read_route<'d>(reader: &mut Reader<'d>, node: &'d Node, field: &str) -> Option<Route> {
    let fields = reader.mapping(node, field, ROUTE_KEYS)?;
    let name = read_name(reader, &fields)?;
    let mut route = Route { name, ..Route::fallback() };
    match fields.get("match") {
        Some((node, path)) if matches!(node.value, Value::Sequence(_)) => {
            let items = reader.sequence(node, &path)?;
            let read = |(index, item)| read_match(reader, item, &format!("{path}[{index}]"));
            route.matches = items.iter().enumerate().filter_map(read).collect();
        }
        Some((node, path)) => route.matches = read_match(reader, node, &path).into_iter().collect(),
        // The default route is what is left over; any other must say what it is.
        None if route.name == DEFAULT_ROUTE => route.matches.clear(),
        None => {
            let hint = "`match: {path: /login}`";
            reader.mistake(fields.at, &fields.path("match"), "missing", Some(hint.into()));
        }
    }
    if let Some((node, path)) = fields.get("rules") {
        route.rules = reader.texts(node, &path);
    }
    if let Some((node, path)) = fields.get("injection") {
        route.injection = reader.one_of(node, &path, &[("on", true), ("off", false)]).unwrap_or(true);
    }
    if let Some((node, path)) = fields.get("outage") {
        let words = [("serve_known", Outage::ServeKnown), ("deny", Outage::Deny)];
        route.outage = reader.one_of(node, &path, &words).unwrap_or(Outage::ServeKnown);
    }
    if let Some((node, path)) = fields.get("login") {
        route.login = reader.one_of(node, &path, &[("required", true), ("optional", false)]);
    }
    if let Some((node, path)) = fields.get("identity") {
        route.identity = reader.text(node, &path).map(str::to_owned);
    }
    Some(route)
}

fn read_match<'d>(reader: &mut Reader<'d>, node: &'d Node, field: &str) -> Option<Match> {
    let fields = reader.mapping(node, field, MATCH_KEYS)?;
    let mut matched = Match::default();
    if let Some((node, path)) = fields.get("host") {
        matched.host = reader.text(node, &path).map(str::to_owned);
    }
    if let Some((node, path)) = fields.get("path") {
        match PathPattern::parse(reader.text(node, &path)?) {
            Ok(pattern) => matched.path = Some(pattern),
            Err(problem) => {
                let hint = "such as `/api/*/items` or `/static/**`";
                reader.mistake(node.at, &path, problem, Some(hint.into()));
                return None;
            }
        }
    }
    if let Some((node, path)) = fields.get("method") {
        let methods = match &node.value {
            Value::Sequence(_) => reader.texts(node, &path)?,
            _ => vec![reader.text(node, &path)?.to_owned()],
        };
        if methods.iter().any(|method| method.is_empty() || !method.chars().all(|c| c.is_ascii_uppercase())) {
            reader.mistake(node.at, &path, "methods are written in capitals, such as GET", None);
        }
        matched.methods = methods;
    }
    if let Some((node, path)) = fields.get("header") {
        let Value::Mapping(entries) = &node.value else {
            reader.mistake(
                node.at,
                &path,
                format!("expected header names with values, found {}", node.kind()),
                None,
            );
            return None;
        };
        for entry in entries {
            let value = reader.text(&entry.node, &format!("{path}.{}", entry.key))?;
            matched.headers.push((entry.key.to_ascii_lowercase(), value.to_owned()));
        }
    }
    if matched == Match::default() {
        let hint = "host, path, method or header; what is left over is the route `default`";
        reader.mistake(fields.at, field, "matches everything", Some(hint.into()));
        return None;
    }
    Some(matched)
}

pub(crate) const RULE_KEYS: &[&str] =
    &["name", "when", "mode", "action", "for", "cool_down", "reason", "tag", "throttle", "step_up", "tarpit"];

fn read_rule<'d>(
    reader: &mut Reader<'d>,
    node: &'d Node,
    field: &str,
    default_mode: Mode,
    file: &Arc<str>,
) -> Option<Rule> {
    let fields = reader.mapping(node, field, RULE_KEYS)?;
    let name = read_name(reader, &fields);
    let condition = read_condition(reader, &fields);
    let measure = read_measure(reader, &fields);
    let mode = fields.get("mode").and_then(|(node, path)| {
        if measure == Some(Measure::Allow) {
            reader.mistake(
                node.at,
                &path,
                "an allow rule always holds and takes no mode",
                Some("remove it; letting people through harms nobody".into()),
            );
        }
        reader.one_of(node, &path, MODES)
    });
    let span = |reader: &mut Reader<'d>, key: &str, least: u64, usual: u64| match fields.get(key) {
        Some((node, path)) => reader.duration_ms(node, &path, least, SPAN_MS_MAX).unwrap_or(usual),
        None => usual,
    };
    let hold_ms = span(reader, "for", 1_000, HOLD_MS);
    let cool_down_ms = span(reader, "cool_down", 1_000, COOL_DOWN_MS);
    if let (
        Some((node, path)),
        Some(Measure::Allow | Measure::Log | Measure::Logout | Measure::LogoutEverywhere),
    ) = (fields.get("for"), &measure)
    {
        let hint = "a logout lasts until the token has expired; allow and log change nothing that could last";
        reader.mistake(node.at, &path, "this action takes no `for`", Some(hint.into()));
    }
    let reason = match (fields.get("reason"), &name) {
        (Some((node, path)), _) => read_reason(reader, node, &path),
        (None, Some(name)) => {
            let source = format!("rule {name} matched");
            Some(Reason { parts: vec![Part::Text(source.clone())], source })
        }
        (None, None) => None,
    };
    let (condition, measure) = (condition?, measure?);
    let of_request = condition.names().iter().any(|fact| FACTS[*fact].of_request);
    Some(Rule {
        name: name?.into(),
        mode: if measure == Measure::Allow { Mode::Enforce } else { mode.unwrap_or(default_mode) },
        condition,
        measure,
        hold_ms,
        cool_down_ms,
        reason: reason?,
        of_request,
        file: Arc::clone(file),
        at: fields.at,
    })
}

fn read_name<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Option<String> {
    let Some((node, path)) = fields.get("name") else {
        let hint = "every decision names its rule; give it a short one such as `bot-logout`";
        reader.mistake(fields.at, &fields.path("name"), "missing", Some(hint.into()));
        return None;
    };
    let name = reader.text(node, &path)?;
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !plain {
        let message = format!("a name has 1 to {NAME_CHARS_MAX} letters, digits, `-`, `_` or `.`");
        reader.mistake(node.at, &path, message, Some("it becomes a metric label".into()));
        return None;
    }
    Some(name.to_owned())
}

fn read_condition<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Option<Condition> {
    let Some((node, path)) = fields.get("when") else {
        reader.mistake(fields.at, &fields.path("when"), "missing", Some("`when: true` means always".into()));
        return None;
    };
    let source = reader.text(node, &path)?;
    match Condition::compile(source) {
        Ok(condition) => Some(condition),
        Err(faults) => {
            for fault in faults {
                let at = reader.document.locate(node, fault.offset);
                reader.mistake(at, &path, fault.message, fault.hint);
            }
            None
        }
    }
}

fn read_measure<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Option<Measure> {
    let Some((node, path)) = fields.get("action") else {
        let all = ACTIONS.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        reader.mistake(fields.at, &fields.path("action"), "missing", Some(format!("one of {all}")));
        return None;
    };
    let action = reader.one_of(node, &path, ACTIONS)?;
    let owners = [
        ("tag", Action::Tag),
        ("throttle", Action::Throttle),
        ("step_up", Action::StepUp),
        ("tarpit", Action::Tarpit),
    ];
    for (key, owner) in owners {
        if action != owner
            && let Some((node, path)) = fields.get(key)
        {
            reader.mistake(node.at, &path, format!("belongs to `action: {}`", key.replace('_', "-")), None);
        }
    }
    match action {
        Action::Allow => Some(Measure::Allow),
        Action::Log => Some(Measure::Log),
        Action::Tag => read_tag(reader, fields),
        Action::Throttle => read_throttle(reader, fields),
        Action::Challenge => Some(Measure::Challenge),
        Action::StepUp => read_step_up(reader, fields),
        Action::Logout => Some(Measure::Logout),
        Action::LogoutEverywhere => Some(Measure::LogoutEverywhere),
        Action::Deny => Some(Measure::Deny),
        Action::Tarpit => read_tarpit(reader, fields),
        Action::Pardon | Action::BudgetTrip => None,
    }
}

fn read_tag<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Option<Measure> {
    let Some((node, path)) = fields.get("tag") else {
        let hint = "the value of the header the app gets, such as `tag: suspect`";
        reader.mistake(fields.at, &fields.path("tag"), "missing", Some(hint.into()));
        return None;
    };
    let value = reader.text(node, &path)?;
    // It becomes a header value: nothing that could end the line or start another field.
    if value.is_empty() || value.len() > NAME_CHARS_MAX || !value.chars().all(|c| c.is_ascii_graphic()) {
        let message = format!("a tag has 1 to {NAME_CHARS_MAX} visible ASCII characters");
        reader.mistake(node.at, &path, message, None);
        return None;
    }
    Some(Measure::Tag { value: value.to_owned() })
}

fn read_throttle<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Option<Measure> {
    let Some((node, path)) = fields.get("throttle") else {
        let hint = "`throttle: {requests_per_minute: 60, burst: 20}`";
        reader.mistake(fields.at, &fields.path("throttle"), "missing", Some(hint.into()));
        return None;
    };
    let fields = reader.mapping(node, &path, &["requests_per_minute", "burst"])?;
    let Rate { requests_per_minute, burst } = read_rate(reader, &fields)?;
    Some(Measure::Throttle { requests_per_minute, burst })
}

fn read_rate<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Option<Rate> {
    let most = u64::from(REQUESTS_MAX);
    let rate = match fields.get("requests_per_minute") {
        Some((node, path)) => reader.integer(node, &path, 1, most)?,
        None => {
            reader.mistake(fields.at, &fields.path("requests_per_minute"), "missing", None);
            return None;
        }
    };
    let burst = match fields.get("burst") {
        Some((node, path)) => reader.integer(node, &path, 1, most)?,
        // A page brings a dozen requests at once; a burst below that breaks the page it lets in.
        None => rate.div_ceil(4).max(12),
    };
    Some(Rate { requests_per_minute: u32::try_from(rate).ok()?, burst: u32::try_from(burst).ok()? })
}

pub(crate) const LIMIT_KEYS: &[&str] =
    &["name", "per", "routes", "requests_per_minute", "burst", "mode", "ipv6_prefix"];
const PERS: &[(&str, Per)] = &[("session", Per::Session), ("address", Per::Address), ("route", Per::Route)];

fn read_limits<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>, draft: &mut Draft) {
    let Some((node, field)) = fields.get("limits") else { return };
    let items = reader.sequence(node, &field).unwrap_or(&[]);
    if items.len() > LIMITS_MAX {
        reader.mistake(node.at, &field, format!("more than {LIMITS_MAX} limits"), None);
    }
    let default_mode = draft.mode.unwrap_or(Mode::Shadow);
    for (index, item) in items.iter().take(LIMITS_MAX).enumerate() {
        let path = format!("{field}[{index}]");
        let Some(limit) = read_limit(reader, item, &path, default_mode) else { continue };
        if draft.limits.iter().any(|(other, _)| other.name == limit.name) {
            let message = format!("two limits are called `{}`", limit.name);
            reader.mistake(item.at, &format!("{path}.name"), message, None);
        }
        draft.limits.push((limit, item.at));
    }
}

fn read_limit<'d>(reader: &mut Reader<'d>, node: &'d Node, field: &str, default_mode: Mode) -> Option<Limit> {
    let fields = reader.mapping(node, field, LIMIT_KEYS)?;
    let name = read_name(reader, &fields);
    let rate = read_rate(reader, &fields);
    let mode = fields.get("mode").and_then(|(node, path)| reader.one_of(node, &path, MODES));
    let routes = fields.get("routes").and_then(|(node, path)| reader.texts(node, &path));
    let per = match fields.get("per") {
        Some((node, path)) => reader.one_of(node, &path, PERS),
        None => {
            let hint = "whose requests are counted together: session, address or route";
            reader.mistake(fields.at, &fields.path("per"), "missing", Some(hint.into()));
            None
        }
    }?;
    let mut ipv6_prefix = IPV6_PREFIX;
    if let Some((node, path)) = fields.get("ipv6_prefix") {
        if per != Per::Address {
            reader.mistake(node.at, &path, "belongs to `per: address`", None);
        }
        // From a provider's whole allocation to a single machine.
        ipv6_prefix = u8::try_from(reader.integer(node, &path, 32, 128)?).ok()?;
    }
    Some(Limit {
        name: name?.into(),
        per,
        rate: rate?,
        mode: mode.unwrap_or(default_mode),
        routes,
        ipv6_prefix,
    })
}

pub(crate) const ALERT_KEYS: &[&str] = &["name", "to", "actions", "rules", "shadow", "cool_down"];

fn read_alerts<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>, draft: &mut Draft) {
    let Some((node, field)) = fields.get("alerts") else { return };
    let items = reader.sequence(node, &field).unwrap_or(&[]);
    if items.len() > ALERTS_MAX {
        reader.mistake(node.at, &field, format!("more than {ALERTS_MAX} alerts"), None);
    }
    for (index, item) in items.iter().take(ALERTS_MAX).enumerate() {
        let path = format!("{field}[{index}]");
        let Some(alert) = read_alert(reader, item, &path) else { continue };
        if draft.alerts.iter().any(|(other, _)| other.name == alert.name) {
            let message = format!("two alerts are called `{}`", alert.name);
            reader.mistake(item.at, &format!("{path}.name"), message, None);
        }
        draft.alerts.push((alert, item.at));
    }
}

fn read_alert<'d>(reader: &mut Reader<'d>, node: &'d Node, field: &str) -> Option<Alert> {
    let fields = reader.mapping(node, field, ALERT_KEYS)?;
    let name = read_name(reader, &fields);
    let sinks: Vec<(&str, &'static str)> = SINKS.iter().map(|sink| (*sink, *sink)).collect();
    let to = match fields.get("to") {
        Some((node, path)) => read_words(reader, node, &path, &sinks)?,
        None => Vec::new(),
    };
    if to.is_empty() {
        let hint = format!("one or several of {}", SINKS.join(", "));
        reader.mistake(fields.at, &fields.path("to"), "missing", Some(hint));
    }
    let others = [("pardon", Action::Pardon), ("budget-trip", Action::BudgetTrip)];
    let told: Vec<(&str, Action)> = ACTIONS.iter().copied().chain(others).collect();
    let actions = match fields.get("actions") {
        Some((node, path)) => read_words(reader, node, &path, &told)?,
        None => Vec::new(),
    };
    let rules = fields.get("rules").and_then(|(node, path)| reader.texts(node, &path));
    let shadow = fields.get("shadow").and_then(|(node, path)| reader.boolean(node, &path));
    let cool_down_ms = match fields.get("cool_down") {
        Some((node, path)) => reader.duration_ms(node, &path, 0, SPAN_MS_MAX)?,
        None => 0,
    };
    Some(Alert { name: name?.into(), to, actions, rules, shadow: shadow.unwrap_or(false), cool_down_ms })
}

/// One word of a closed list, or a list of them.
fn read_words<'d, T: Copy>(
    reader: &mut Reader<'d>,
    node: &'d Node,
    field: &str,
    words: &[(&str, T)],
) -> Option<Vec<T>> {
    if !matches!(node.value, Value::Sequence(_)) {
        return Some(vec![reader.one_of(node, field, words)?]);
    }
    let items = reader.sequence(node, field)?;
    let read = |(index, item)| reader.one_of(item, &format!("{field}[{index}]"), words);
    Some(items.iter().enumerate().filter_map(read).collect())
}

fn read_step_up<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Option<Measure> {
    let (mut acr_values, mut max_age_seconds) = (String::new(), 0);
    if let Some((node, path)) = fields.get("step_up") {
        let fields = reader.mapping(node, &path, &["acr_values", "max_age"])?;
        if let Some((node, path)) = fields.get("acr_values") {
            acr_values = reader.text(node, &path)?.to_owned();
            if acr_values.len() > REASON_BYTES_MAX
                || !acr_values.chars().all(|c| c.is_ascii_graphic() || c == ' ')
            {
                reader.mistake(node.at, &path, "expected visible ASCII, values apart by spaces", None);
                return None;
            }
        }
        if let Some((node, path)) = fields.get("max_age") {
            max_age_seconds = reader.duration_ms(node, &path, 0, SPAN_MS_MAX)? / 1_000;
        }
    }
    Some(Measure::StepUp { acr_values, max_age_seconds })
}

fn read_tarpit<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Option<Measure> {
    let Some((node, path)) = fields.get("tarpit") else {
        return Some(Measure::Tarpit { delay_ms: TARPIT_DELAY_MS });
    };
    let fields = reader.mapping(node, &path, &["delay"])?;
    let delay_ms = match fields.get("delay") {
        Some((node, path)) => reader.duration_ms(node, &path, 1_000, TARPIT_DELAY_MS_MAX)?,
        None => TARPIT_DELAY_MS,
    };
    Some(Measure::Tarpit { delay_ms })
}

fn read_reason<'d>(reader: &mut Reader<'d>, node: &'d Node, path: &str) -> Option<Reason> {
    let text = reader.text(node, path)?;
    if text.len() > REASON_BYTES_MAX {
        reader.mistake(node.at, path, format!("longer than {REASON_BYTES_MAX} bytes"), None);
        return None;
    }
    let mut parts = Vec::new();
    let mut right = true;
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let Some(close) = rest[open..].find('}').map(|close| open + close) else { break };
        parts.push(Part::Text(rest[..open].to_owned()));
        let name = &rest[open + 1..close];
        match find(name) {
            Some(fact) if FACTS[fact].tellable => parts.push(Part::Fact(fact)),
            None if name == "reasons" => parts.push(Part::Reasons),
            known => {
                let at = reader.document.locate(node, text.len() - rest.len() + open + 1);
                let (message, hint) = match known {
                    Some(_) => (
                        format!("`{name}` is never told in a reason"),
                        "addresses stay out of logs and mails".into(),
                    ),
                    None => {
                        let names = FACTS.iter().map(|fact| fact.name).chain(["reasons"]);
                        let hint = nearest(name, names).map_or_else(
                            || "a fact, or {reasons}".into(),
                            |near| format!("did you mean `{near}`?"),
                        );
                        (format!("unknown fact `{name}`"), hint)
                    }
                };
                reader.mistake(at, path, message, Some(hint));
                right = false;
            }
        }
        rest = &rest[close + 1..];
    }
    parts.push(Part::Text(rest.to_owned()));
    right.then(|| Reason { source: text.to_owned(), parts })
}

fn read_budget<'d>(reader: &mut Reader<'d>, fields: &Fields<'d>) -> Option<Budget> {
    let (node, field) = fields.get("budget")?;
    let usual = Budget::default();
    let keys = ["logouts_per_minute_max", "logouts_share_max", "logouts_per_user_per_day_max"];
    let Some(fields) = reader.mapping(node, &field, &keys) else { return Some(usual) };
    let count = |reader: &mut Reader<'d>, key: &str, usual: u32| match fields.get(key) {
        Some((node, path)) => reader
            .integer(node, &path, 0, LOGOUTS_PER_MINUTE_MAX)
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(usual),
        None => usual,
    };
    let logouts_per_minute_max = count(reader, keys[0], usual.logouts_per_minute_max);
    let logouts_share_max = match fields.get(keys[1]) {
        Some((node, path)) => reader.share(node, &path).unwrap_or(usual.logouts_share_max),
        None => usual.logouts_share_max,
    };
    let logouts_per_user_per_day_max = count(reader, keys[2], usual.logouts_per_user_per_day_max);
    Some(Budget { logouts_per_minute_max, logouts_share_max, logouts_per_user_per_day_max })
}

fn complain(
    mistakes: &mut Vec<PolicyError>,
    rule: &Rule,
    field: &str,
    message: String,
    hint: Option<String>,
) {
    if mistakes.len() < MISTAKES_MAX {
        mistakes.push(PolicyError {
            file: rule.file.to_string(),
            line: rule.at.line,
            column: rule.at.column,
            field: field.to_owned(),
            message,
            hint,
        });
    }
}

fn check_names(mistakes: &mut Vec<PolicyError>, draft: &Draft) {
    let mut seen: BTreeMap<&str, &Rule> = BTreeMap::new();
    for rule in &draft.rules {
        match seen.get(&*rule.name) {
            Some(first) => {
                let hint = format!("the first one is in {} on line {}", first.file, first.at.line);
                complain(mistakes, rule, "name", format!("two rules are called `{}`", rule.name), Some(hint));
            }
            None => {
                seen.insert(&rule.name, rule);
            }
        }
    }
    for (index, (route, file, at)) in draft.routes.iter().enumerate() {
        if draft.routes[..index].iter().any(|(other, ..)| other.name == route.name) {
            mistakes.push(PolicyError {
                file: file.to_string(),
                line: at.line,
                column: at.column,
                field: "name".into(),
                message: format!("two routes are called `{}`", route.name),
                hint: None,
            });
        }
    }
}

/// Rules and limits that name a route that is none; routes and alerts that name a rule that is none.
/// Gives every route what the row of `identities` it names goes by.
fn find_identities(mistakes: &mut Vec<PolicyError>, draft: &mut Draft) {
    for (route, file, at) in &mut draft.routes {
        let Some(wanted) = &route.identity else { continue };
        let mut mistake = |field: &str, message: String, hint: Option<String>| {
            let (file, field) = (file.to_string(), field.to_owned());
            mistakes.push(PolicyError { file, line: at.line, column: at.column, field, message, hint });
        };
        let Some((_, sources)) = draft.identities.iter().find(|(name, _)| name == wanted) else {
            let near = nearest(wanted, draft.identities.iter().map(|(name, _)| name.as_str()));
            let message = format!("route `{}` names an unknown identity `{wanted}`", route.name);
            mistake("identity", message, near.map(|near| format!("did you mean `{near}`?")));
            continue;
        };
        route.sources = *sources;
        if route.login == Some(true) && !(sources.oidc || sources.jwt || sources.introspection) {
            let message = format!(
                "nobody could ever reach route `{}`: it asks for a login and `{wanted}` accepts none",
                route.name
            );
            mistake("login", message, Some("let the identity go by `oidc`, `jwt` or `introspection`".into()));
        }
    }
}

fn check_routes(mistakes: &mut Vec<PolicyError>, draft: &Draft, file: &str) {
    for (route, file, at) in &draft.routes {
        for name in route.rules.iter().flatten() {
            if !draft.rules.iter().any(|rule| *rule.name == **name) {
                let names = draft.rules.iter().map(|rule| &*rule.name);
                mistakes.push(PolicyError {
                    file: file.to_string(),
                    line: at.line,
                    column: at.column,
                    field: "rules".into(),
                    message: format!("route `{}` names an unknown rule `{name}`", route.name),
                    hint: nearest(name, names).map(|near| format!("did you mean `{near}`?")),
                });
            }
        }
    }
    let known =
        |name: &str| name == DEFAULT_ROUTE || draft.routes.iter().any(|(route, ..)| route.name == name);
    for (index, (route, file, at)) in draft.routes.iter().enumerate() {
        if let Some((earlier, ..)) = draft.routes[..index].iter().find(|(other, ..)| route.is_behind(other)) {
            mistakes.push(PolicyError {
                file: file.to_string(),
                line: at.line,
                column: at.column,
                field: "match".into(),
                message: format!(
                    "route `{}` can never match: route `{}` takes every such request before",
                    route.name, earlier.name
                ),
                hint: Some(
                    "the first route that matches a request names it; put the narrower one first".into(),
                ),
            });
        }
    }
    for (limit, at) in &draft.limits {
        for name in limit.routes.iter().flatten().filter(|name| !known(name)) {
            let names = draft.routes.iter().map(|(route, ..)| route.name.as_str()).chain([DEFAULT_ROUTE]);
            mistakes.push(PolicyError {
                file: file.to_owned(),
                line: at.line,
                column: at.column,
                field: "limits".into(),
                message: format!("limit `{}` names an unknown route `{name}`", limit.name),
                hint: nearest(name, names).map(|near| format!("did you mean `{near}`?")),
            });
        }
    }
    // `operator` stands for what people do on the operators' page.
    let is_rule = |name: &str| name == "operator" || draft.rules.iter().any(|rule| *rule.name == *name);
    for (alert, at) in &draft.alerts {
        for name in alert.rules.iter().flatten().filter(|name| !is_rule(name)) {
            let names = draft.rules.iter().map(|rule| &*rule.name).chain(["operator"]);
            mistakes.push(PolicyError {
                file: file.to_owned(),
                line: at.line,
                column: at.column,
                field: "alerts".into(),
                message: format!("alert `{}` names an unknown rule `{name}`", alert.name),
                hint: nearest(name, names).map(|near| format!("did you mean `{near}`?")),
            });
        }
    }
    if draft.routes.is_empty() {
        return;
    }
    let names = || draft.routes.iter().map(|(route, ..)| route.name.as_str()).chain([DEFAULT_ROUTE, ""]);
    for rule in &draft.rules {
        for word in rule.condition.words("route") {
            if !names().any(|name| name == word) {
                let hint = nearest(word, names()).map(|near| format!("did you mean \"{near}\"?"));
                complain(
                    mistakes,
                    rule,
                    "when",
                    format!("rule `{}` names an unknown route \"{word}\"", rule.name),
                    hint,
                );
            }
        }
    }
}

fn check_budget(mistakes: &mut Vec<PolicyError>, rules: &[Rule]) {
    if let Some(rule) =
        rules.iter().find(|rule| rule.mode == Mode::Enforce && rule.measure.action().shuts_out())
    {
        let message = format!("missing, though rule `{}` may shut people out", rule.name);
        let hint = "say how many logouts are plausible: `budget: {logouts_per_minute_max: 5, logouts_share_max: 2%, logouts_per_user_per_day_max: 3}`";
        complain(mistakes, rule, "budget", message, Some(hint.into()));
    }
}

fn check_reachable(mistakes: &mut Vec<PolicyError>, rules: &[Rule]) {
    for (index, rule) in rules.iter().enumerate() {
        if let Some(why) = rule.condition.never() {
            complain(mistakes, rule, "when", format!("rule `{}` can never match: {why}", rule.name), None);
            continue;
        }
        let allow = rules.iter().find(|other| {
            other.measure == Measure::Allow
                && rule.measure != Measure::Allow
                && other.condition.covers(&rule.condition)
        });
        if let Some(allow) = allow {
            let message = format!(
                "rule `{}` can never act: allow rule `{}` holds whenever it does",
                rule.name, allow.name
            );
            complain(mistakes, rule, "when", message, Some("allow rules always win".into()));
            continue;
        }
        let twin = rules[..index].iter().find(|other| {
            other.condition == rule.condition && other.measure == rule.measure && other.mode == rule.mode
        });
        if let Some(twin) = twin {
            let message = format!("rule `{}` repeats rule `{}`", rule.name, twin.name);
            complain(
                mistakes,
                rule,
                "when",
                message,
                Some("same condition, action and mode; remove one".into()),
            );
        }
    }
}

#[cfg(test)]
mod tests;
