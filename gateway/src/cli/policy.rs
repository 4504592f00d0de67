//! `gaitway policy`: check, test, explain, compare, format and back-test policies, without a gateway.
//!
//! Everything decided here is decided in the policies room; this file reads files and prints.

use super::session::{self, Act, Reach};
use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use gaitway_policies::PolicySet;
use gaitway_policies::backtest::{Outcome, Replay};
use gaitway_policies::case::{self, Case};
use gaitway_policies::document::{Document, Mistake, Reader};
use gaitway_policies::engine::Action;
use gaitway_policies::facts::{FACTS, Facts};
use gaitway_policies::policy::SCHEMA;
use gaitway_policies::record::Recording;
use gaitway_policies::report::{self, Side};
use gaitway_policies::{SessionId, format};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Largest file of a policy, cases or snippet that is read, in bytes; the parser has its own limit below.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Name every mistake of policy files at once
    Check {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Run the cases kept beside a policy: cases/NAME*.yaml
    Test {
        policy: PathBuf,
        /// Case files instead of those beside the policy
        #[arg(long, value_name = "FILE")]
        cases: Vec<PathBuf>,
    },
    /// Say what a policy decides over some facts, or what the running gateway says of a session
    Explain {
        /// A policy file; or a live session (s_…), whose facts and policy the gateway tells
        #[arg(value_name = "POLICY|SESSION")]
        of: PathBuf,
        /// Facts by name, such as '{bot.evidence: 9, user.groups: [staff]}'
        #[arg(long, value_name = "YAML", conflicts_with = "sessions")]
        given: Option<String>,
        /// A recording, or a folder of them; the facts are those of a session's last line
        #[arg(long, value_name = "PATH")]
        sessions: Option<PathBuf>,
        /// Which session of the recording, if it has several
        #[arg(long, value_name = "ID", requires = "sessions")]
        id: Option<SessionId>,
        #[command(flatten)]
        reach: Reach,
    },
    /// Let rules enforce again after the budget of logouts was used up
    ResetBudget {
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        reach: Reach,
    },
    /// Tell how a policy differs from another, rule by rule
    Diff { old: PathBuf, new: PathBuf },
    /// Make the white space of policy files regular
    Fmt {
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Change nothing; fail if something would change
        #[arg(long)]
        check: bool,
    },
    /// Replay recorded sessions through a policy: who would be shut out, and when
    Backtest {
        policy: PathBuf,
        /// Recordings: files, or folders of *.jsonl
        #[arg(long, required = true, value_name = "PATH", num_args = 1..)]
        sessions: Vec<PathBuf>,
        /// The policy that runs now
        #[arg(long, value_name = "POLICY")]
        against: Option<PathBuf>,
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        /// Write the report here instead of to standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Print the facts a rule may name (Markdown)
    Facts,
    /// Print the JSON Schema of policy files, for editors
    Schema,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
    Html,
}

pub fn run(args: PolicyArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        PolicyCommand::Check { files } => check(&files),
        PolicyCommand::Test { policy, cases } => test(&policy, cases),
        PolicyCommand::Explain { of, given, sessions, id, reach } => {
            match of.to_str().filter(|text| text.parse::<SessionId>().is_ok()) {
                Some(live) => session::explain(live, &reach),
                None => explain(&of, given.as_deref(), sessions.as_deref(), id),
            }
        }
        PolicyCommand::ResetBudget { act, reach } => session::reset_budget(&act, &reach),
        PolicyCommand::Diff { old, new } => diff(&old, &new),
        PolicyCommand::Fmt { files, check } => fmt(&files, check),
        PolicyCommand::Backtest { policy, sessions, against, format, output } => {
            backtest(&policy, &sessions, against.as_deref(), format, output.as_deref())
        }
        PolicyCommand::Facts => {
            super::print(&facts_table());
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Schema => {
            super::print(SCHEMA);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Reads a policy file; `Err` carries its mistakes. Snippets are looked up beside it.
pub fn load(path: &Path) -> anyhow::Result<Result<PolicySet, Vec<Mistake>>> {
    let text = read(path)?;
    let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
    let fetch = move |place: &str| read(&folder.join(place)).map_err(|error| format!("{error:#}"));
    Ok(PolicySet::parse_with(&path.display().to_string(), &text, &fetch))
}

fn check(files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let mut wrong = 0;
    for file in files {
        match load(file)? {
            Ok(policies) => super::print(&format!("{}: {}\n", file.display(), summary(&policies))),
            Err(mistakes) => wrong += complain(&mistakes),
        }
    }
    Ok(verdict(wrong, "in the policies"))
}

fn test(policy: &Path, cases: Vec<PathBuf>) -> anyhow::Result<ExitCode> {
    let policies = match load(policy)? {
        Ok(policies) => Arc::new(policies),
        Err(mistakes) => return Ok(verdict(complain(&mistakes), "in the policy")),
    };
    let files = if cases.is_empty() { beside(policy)? } else { cases };
    if files.is_empty() {
        bail!("no cases: expected cases/{}*.yaml beside {}", stem(policy), policy.display());
    }
    let (mut ran, mut failed) = (0, 0);
    for file in files {
        let folder = file.parent().unwrap_or(Path::new(".")).to_owned();
        let fetch = move |place: &str| read(&folder.join(place)).map_err(|error| format!("{error:#}"));
        let cases = match case::parse(&file.display().to_string(), &read(&file)?, &fetch) {
            Ok(cases) => cases,
            Err(mistakes) => {
                failed += complain(&mistakes);
                continue;
            }
        };
        for case in cases {
            ran += 1;
            failed += usize::from(!passes(&case, &policies));
        }
    }
    super::print(&format!("{ran} cases, {failed} failed\n"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn passes(case: &Case, policies: &Arc<PolicySet>) -> bool {
    let (said, failures) = case.run(policies);
    for failure in &failures {
        super::complain(&format!("{}:{}: {}: {failure}", case.file, case.at.line, case.name));
    }
    if !failures.is_empty()
        && let Some(reason) = said.reason
    {
        super::complain(&format!("    the reason given: {reason}"));
    }
    failures.is_empty()
}

fn explain(
    policy: &Path,
    given: Option<&str>,
    sessions: Option<&Path>,
    id: Option<SessionId>,
) -> anyhow::Result<ExitCode> {
    let policies = match load(policy)? {
        Ok(policies) => policies,
        Err(mistakes) => return Ok(verdict(complain(&mistakes), "in the policy")),
    };
    let facts = match (given, sessions) {
        (Some(yaml), _) => match given_facts(yaml) {
            Ok(facts) => facts,
            Err(mistakes) => return Ok(verdict(complain(&mistakes), "in the facts")),
        },
        (None, Some(path)) => recorded_facts(path, id)?,
        (None, None) => Facts::default(),
    };
    let said = case::Said::over_facts(&policies, &facts);
    let mut text = match (&said.rule, &said.reason, said.mode) {
        (Some(rule), Some(reason), Some(mode)) => {
            format!("{} by rule {rule} ({}): {reason}\n\n", said.decision, format!("{mode:?}").to_lowercase())
        }
        _ => "none: no rule holds\n\n".to_owned(),
    };
    for line in case::explain(&policies, &facts) {
        text.push_str(&line);
        text.push('\n');
    }
    super::print(&text);
    Ok(ExitCode::SUCCESS)
}

fn given_facts(yaml: &str) -> Result<Facts, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let Some(document) = Document::parse(&mut mistakes, "--given", yaml) else { return Err(mistakes) };
    let mut reader = Reader::new(&document);
    let facts = case::read_facts(&mut reader, &document.root, "");
    mistakes.extend(reader.mistakes);
    facts.filter(|_| mistakes.is_empty()).ok_or(mistakes)
}

fn recorded_facts(path: &Path, id: Option<SessionId>) -> anyhow::Result<Facts> {
    let mut recording = Recording::new();
    for_each_line(&recordings(&[path.to_owned()])?, |line| {
        recording.read(line)?;
        Ok(())
    })?;
    let sessions = recording.sessions();
    let found = match id {
        Some(id) => sessions.get(&id).with_context(|| format!("no session {id} in {}", path.display()))?,
        None if sessions.len() == 1 => sessions.values().next().context("an empty recording")?,
        None => bail!("{} sessions in {}: name one with --id", sessions.len(), path.display()),
    };
    Ok(found.facts.clone())
}

fn diff(old: &Path, new: &Path) -> anyhow::Result<ExitCode> {
    let (old, new) = match (load(old)?, load(new)?) {
        (Ok(old), Ok(new)) => (old, new),
        (old, new) => {
            let wrong = [old.err(), new.err()].iter().flatten().map(|mistakes| complain(mistakes)).sum();
            return Ok(verdict(wrong, "in the policies"));
        }
    };
    let lines = case::differences(&old, &new);
    let mut text = if lines.is_empty() { "no difference\n".to_owned() } else { String::new() };
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    super::print(&text);
    Ok(ExitCode::SUCCESS)
}

fn fmt(files: &[PathBuf], check: bool) -> anyhow::Result<ExitCode> {
    let mut untidy = false;
    let mut wrong = 0;
    for file in files {
        let text = read(file)?;
        match format::format(&file.display().to_string(), &text) {
            Ok(formatted) if formatted == text => {}
            Ok(_) if check => {
                super::complain(&format!("{} is not formatted", file.display()));
                untidy = true;
            }
            Ok(formatted) => {
                std::fs::write(file, formatted)
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
            Err(mistakes) => wrong += complain(&mistakes),
        }
    }
    Ok(if wrong > 0 || untidy { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn backtest(
    policy: &Path,
    sessions: &[PathBuf],
    against: Option<&Path>,
    format: Format,
    output: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let files = recordings(sessions)?;
    let mut sides = Vec::new();
    for path in std::iter::once(policy).chain(against) {
        match load(path)? {
            Ok(policies) => sides.push((path.display().to_string(), Arc::new(policies))),
            Err(mistakes) => return Ok(verdict(complain(&mistakes), "in the policies")),
        }
    }
    // A policy a core: each side reads the recordings itself, so neither waits for the other.
    let outcomes = std::thread::scope(|scope| {
        let running: Vec<_> =
            sides.iter().map(|(_, policies)| scope.spawn(|| replay(policies, &files))).collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined.map(|outcome| outcome.unwrap_or_else(|_| bail!("a replay broke off"))).collect::<Vec<_>>()
    });
    let outcomes = outcomes.into_iter().collect::<anyhow::Result<Vec<Outcome>>>()?;
    let sides: Vec<Side<'_>> =
        sides.iter().zip(&outcomes).map(|((name, _), outcome)| Side { name, outcome }).collect();
    let (Some(new), old) = (sides.first(), sides.get(1)) else { bail!("no policy") };
    let report = match format {
        Format::Text => report::text(new, old),
        Format::Json => report::json(new, old),
        Format::Html => report::html(new, old),
    };
    match output {
        Some(path) => {
            std::fs::write(path, report).with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => super::print(&report),
    }
    Ok(ExitCode::SUCCESS)
}

fn replay(policies: &Arc<PolicySet>, files: &[PathBuf]) -> anyhow::Result<Outcome> {
    let mut recording = Recording::new();
    let mut replay = Replay::new(Arc::clone(policies));
    for_each_line(files, |line| {
        if let Some(recorded) = recording.read(line)? {
            replay.observe(recorded);
        }
        Ok(())
    })?;
    Ok(replay.finish(&recording))
}

/// Every line of all files in the order of time, which each file has by itself.
fn for_each_line(
    files: &[PathBuf],
    mut take: impl FnMut(&str) -> Result<(), gaitway_policies::record::RecordError>,
) -> anyhow::Result<()> {
    let mut heads = Vec::with_capacity(files.len());
    for file in files {
        let open = std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut head =
            Head { file, reader: BufReader::with_capacity(256 * 1024, open), line: String::new(), at: 0 };
        if head.advance()? {
            heads.push(head);
        }
    }
    // A handful of files: looking at each head is cheaper than a heap of them.
    while let Some(next) = (0..heads.len()).min_by_key(|index| heads[*index].at) {
        let head = &mut heads[next];
        take(head.line.trim_end_matches(['\n', '\r']))
            .with_context(|| format!("in the recordings, last {}", head.file.display()))?;
        if !head.advance()? {
            heads.swap_remove(next);
        }
    }
    Ok(())
}

struct Head<'f> {
    file: &'f Path,
    reader: BufReader<std::fs::File>,
    line: String,
    at: u64,
}

impl Head<'_> {
    fn advance(&mut self) -> anyhow::Result<bool> {
        self.line.clear();
        let limit = gaitway_policies::record::LINE_BYTES_MAX as u64 + 2;
        let read = std::io::Read::take(&mut self.reader, limit).read_line(&mut self.line);
        let read = read.with_context(|| format!("cannot read {}", self.file.display()))?;
        // Headers have no time and come first; the parser judges a line whose time cannot be seen.
        let digits = self.line.split_once("\"at\":").map(|(_, rest)| rest.trim_start()).unwrap_or("");
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        self.at = digits[..end].parse().unwrap_or(0);
        Ok(read > 0)
    }
}

fn recordings(places: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for place in places {
        if place.is_dir() {
            let found = listed(place, |name| name.ends_with(".jsonl"))?;
            if found.is_empty() {
                bail!("no *.jsonl in {}", place.display());
            }
            files.extend(found);
        } else {
            files.push(place.clone());
        }
    }
    Ok(files)
}

/// `cases/NAME*.yaml` beside a policy `NAME.yaml`.
fn beside(policy: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = policy.parent().unwrap_or(Path::new(".")).join("cases");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let stem = stem(policy);
    listed(&folder, |name| name.starts_with(&stem) && name.ends_with(".yaml"))
}

fn listed(folder: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if bytes > FILE_BYTES_MAX {
        bail!("{} has {bytes} bytes, more than {FILE_BYTES_MAX}", path.display());
    }
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn summary(policies: &PolicySet) -> String {
    let rules = match policies.rules().len() {
        1 => "1 rule".into(),
        many => format!("{many} rules"),
    };
    let effect = if policies.enforces() { "enforces" } else { "only shadows" };
    let limits = match policies.limits().len() {
        0 => String::new(),
        1 => ", 1 limit".into(),
        many => format!(", {many} limits"),
    };
    let mut text = format!("no mistakes; {rules}{limits}, {effect}, version {}", policies.version());
    for rule in policies.rules().iter().filter(|rule| rule.measure.action() == Action::StepUp) {
        let _ = write!(
            text,
            "\n  {}:{}: note: rule {} sends people to the identity provider; where the configuration names none \
             they are asked as by `challenge`",
            rule.file, rule.at.line, rule.name
        );
    }
    text
}

/// Prints every mistake on a line of its own, so that editors can jump to it; gives their number.
fn complain(mistakes: &[Mistake]) -> usize {
    use std::io::Write;
    let mut text = String::new();
    for mistake in mistakes {
        let _ = writeln!(text, "{mistake}");
    }
    // Nothing is left to tell if standard error is closed.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
    mistakes.len()
}

fn verdict(mistakes: usize, place: &str) -> ExitCode {
    if mistakes == 0 {
        return ExitCode::SUCCESS;
    }
    let count = if mistakes == 1 { "1 mistake".to_owned() } else { format!("{mistakes} mistakes") };
    super::complain(&format!("{count} {place}"));
    ExitCode::FAILURE
}

fn facts_table() -> String {
    let mut table = String::from("| Fact | Type | Meaning |\n|---|---|---|\n");
    for fact in FACTS {
        let _ = writeln!(table, "| `{}` | {} | {} |", fact.name, fact.kind.cel(), fact.doc);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "rules:\n  - {name: out, when: bot.evidence >= 5.0, action: logout, reason: 'evidence {bot.evidence}'}\n";

    /// A folder with some files in it.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn is_success(code: ExitCode) -> bool {
        format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS)
    }

    fn lines(session: u8, start: u64) -> String {
        let mut text = format!("{}\n", gaitway_policies::record::HEADER);
        for step in 0..10_u64 {
            let at = start + step * 1_000;
            let _ = writeln!(
                text,
                r#"{{"session":"s_{}","at":{at},"facts":{{"bot.evidence":{step}}}}}"#,
                format!("{session:02x}").repeat(16)
            );
        }
        text
    }

    #[test]
    fn check_and_fmt_fail_where_something_is_wrong() {
        let folder =
            folder(&[("good.yaml", RULE), ("bad.yaml", "rules: [{}]\n"), ("untidy.yaml", "rules: []  \n")]);
        let at = |name: &str| vec![folder.path().join(name)];
        assert!(is_success(check(&at("good.yaml")).unwrap()));
        assert!(!is_success(check(&at("bad.yaml")).unwrap()));
        assert!(check(&at("none.yaml")).is_err());
        assert!(!is_success(fmt(&at("untidy.yaml"), true).unwrap()));
        assert!(is_success(fmt(&at("untidy.yaml"), false).unwrap()));
        assert!(is_success(fmt(&at("untidy.yaml"), true).unwrap()), "now it is tidy");
    }

    #[test]
    fn cases_beside_a_policy_are_found_with_their_recordings_and_snippets() {
        let policy = format!("import: [snippets/vip.yaml]\n{RULE}");
        let vip = "rules:\n  - {name: vip, when: '\"vip\" in user.groups', action: allow}\n";
        let cases = "cases:\n  - {name: a, session: one.jsonl, expect: {decision: logout, second: 5}}\n  - {name: b, given: {bot.evidence: 9, user.groups: [vip]}, expect: allow}\n";
        let wrong = "cases:\n  - {name: a, given: {}, expect: logout}\n";
        let folder = folder(&[
            ("site.yaml", &policy),
            ("snippets/vip.yaml", vip),
            ("cases/site.yaml", cases),
            ("cases/one.jsonl", &lines(1, 1_800_000_000_000)),
            ("other.yaml", RULE),
            ("cases/other.yaml", wrong),
            ("lonely.yaml", RULE),
        ]);
        assert!(is_success(test(&folder.path().join("site.yaml"), Vec::new()).unwrap()));
        assert!(!is_success(test(&folder.path().join("other.yaml"), Vec::new()).unwrap()));
        assert!(test(&folder.path().join("lonely.yaml"), Vec::new()).is_err(), "no cases is no success");
    }

    #[test]
    fn a_backtest_merges_recordings_by_time_and_compares() {
        let folder = folder(&[
            ("new.yaml", RULE),
            ("live.yaml", &RULE.replace("5.0", "7.0")),
            ("recorded/a.jsonl", &lines(1, 1_800_000_000_000)),
            ("recorded/b.jsonl", &lines(2, 1_800_000_000_500)),
        ]);
        let at = |name: &str| folder.path().join(name);
        for (format, name) in [(Format::Json, "r.json"), (Format::Html, "r.html"), (Format::Text, "r.txt")] {
            let code =
                backtest(&at("new.yaml"), &[at("recorded")], Some(&at("live.yaml")), format, Some(&at(name)));
            assert!(is_success(code.unwrap()));
        }
        let report: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(at("r.json")).unwrap()).unwrap();
        assert_eq!(report["new"]["outcome"]["sessions"], 2);
        assert_eq!(report["difference"]["moved"].as_array().unwrap().len(), 2);
        assert!(std::fs::read_to_string(at("r.txt")).unwrap().contains("would shut out 2 of 2 sessions"));
        assert!(std::fs::read_to_string(at("r.html")).unwrap().starts_with("<!doctype html>"));
        assert!(
            backtest(&at("new.yaml"), &[at("new.yaml")], None, Format::Text, None).is_err(),
            "no recording"
        );
    }
}
