//! Rules that reviewers would otherwise have to remember, held by a machine: who may know whom, how
//! files look, what may be depended on.
//!
//! Reads the tree as text, asks cargo for the dependency graph, and knows nothing of what any code
//! does. Each failure lists every offender at once. Lives here because `benches` may know all rooms.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests state expectations")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

// ---- who may know whom -------------------------------------------------------------------------

/// Crates that touch the world. None may be reachable from the pure rooms, by whatever road.
const WORLDLY: &[&str] = &[
    "async-std",
    "axum",
    "hyper",
    "hyper-util",
    "lettre",
    "mio",
    "openssl",
    "redis",
    "reqwest",
    "rustls",
    "smol",
    "socket2",
    "tokio",
    "tungstenite",
    "ureq",
];
const WORLDLY_FAMILIES: &[&str] = &["pingora", "sqlx", "tokio-"];

#[test]
fn models_and_policies_reach_nothing_that_touches_the_world() {
    let mut offenders = Vec::new();
    for package in ["gaitway-models", "gaitway-policies"] {
        let tree =
            cargo(&["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", package]);
        let reachable: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(reachable.contains(package), "cargo tree did not answer for {package}");
        for name in reachable {
            if WORLDLY.contains(&name) || WORLDLY_FAMILIES.iter().any(|family| name.starts_with(family)) {
                offenders.push(format!("{package} reaches {name}"));
            }
        }
    }
    none(&offenders, "a pure room reaches the world; `cargo tree -i CRATE -p PACKAGE` shows the road");
}

#[test]
fn pure_rooms_name_no_clock_no_chance_no_file_and_no_socket() {
    let banned = [
        // Addresses are values, sockets are not.
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "ToSocketAddrs",
        "std::fs",
        "std::env",
        "std::process",
        "std::thread",
        "std::io::stdin",
        "SystemTime",
        "Instant::now",
        "async fn",
        "async move",
        ".await",
        "thread_rng",
        "from_os_rng",
        "rand::rng(",
    ];
    let mut offenders = Vec::new();
    for file in sources(&["models/src", "policies/src"], &["rs"]).into_iter().filter(|file| !file.is_test()) {
        for (number, line) in code_lines(&file.text) {
            for name in banned.iter().filter(|name| line.contains(**name)) {
                offenders.push(format!("{}:{number} names {name}", file.path));
            }
        }
    }
    none(&offenders, "time, chance and bytes are arguments in models and policies");
}

/// Crate → the only places that may name it.
const ROOMS: &[(&str, &[&str])] = &[
    ("linfa", &["models/src/train"]),
    ("forust_ml", &["models/src/train"]),
    ("pingora", &["gateway/src/proxy", "gateway/src/app.rs"]),
    ("sqlx", &["gateway/src/store"]),
    ("redis::", &["gateway/src/revocation", "gateway/src/vault.rs"]),
    ("lettre", &["gateway/src/alert"]),
];

#[test]
fn each_foreign_crate_is_named_only_in_its_room() {
    let mut offenders = Vec::new();
    let rooms = sources(&["models/src", "policies/src", "gateway/src"], &["rs"]);
    for file in rooms.into_iter().filter(|file| !file.is_test()) {
        for (number, line) in code_lines(&file.text) {
            for (name, homes) in ROOMS {
                let at_home = homes.iter().any(|home| file.path.starts_with(home));
                if !at_home && names_crate(line, name) {
                    offenders.push(format!("{}:{number} names {name}", file.path));
                }
            }
        }
    }
    none(&offenders, "go through the room that owns the crate (ARCHITECTURE.md, who may know whom)");
}

/// True if `line` uses `name` as the start of a path, not as the tail of a longer word or path.
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back().unwrap_or(' ');
        let after = line[at + name.len()..].chars().next().unwrap_or(' ');
        let starts = !(before.is_alphanumeric() || "_:.\"/-".contains(before));
        // `pingora_proxy::` and `linfa_trees::` belong to the family; a variable `sqlx_rows` does not.
        let ends = name.ends_with(':') || after == ':' || after == ';' || is_family_path(&line[at..]);
        starts && ends
    })
}

fn is_family_path(rest: &str) -> bool {
    let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    rest[word..].starts_with("::")
}

// ---- how files look ----------------------------------------------------------------------------

#[test]
fn every_source_file_opens_with_what_it_owns() {
    let mut offenders = Vec::new();
    for file in sources(&["."], &["rs", "ts", "mjs", "sh", "py"]) {
        let first = file.text.lines().find(|line| !line.starts_with("#!/")).unwrap_or_default();
        let opener = match file.extension() {
            "rs" => &["//!"][..],
            "sh" | "py" => &["# ", "\"\"\""],
            _ => &["/**", "// "],
        };
        if !opener.iter().any(|opener| first.starts_with(opener)) {
            offenders.push(format!("{} starts with {first:?}", file.path));
        }
    }
    none(&offenders, "open each file with two to eight sentences: what it owns, what it must not know");
}

#[test]
fn no_tabs_no_trailing_space_and_a_newline_at_the_end() {
    let mut offenders = Vec::new();
    for file in
        sources(&["."], &["rs", "ts", "mjs", "md", "yaml", "yml", "toml", "sh", "py", "proto", "service"])
    {
        for (index, line) in file.text.lines().enumerate() {
            if line.contains('\t') || line.ends_with([' ', '\r']) {
                offenders.push(format!("{}:{}", file.path, index + 1));
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            offenders.push(format!("{} lacks its last newline", file.path));
        }
    }
    none(&offenders, "tabs, trailing space or a missing last newline");
}

#[test]
fn no_file_is_a_drawer_for_odds_and_ends() {
    let drawers = ["util", "utils", "common", "helper", "helpers", "misc", "types", "manager"];
    let offenders: Vec<String> = files()
        .into_iter()
        .filter(|path| path.file_stem().is_some_and(|stem| drawers.iter().any(|drawer| stem == *drawer)))
        .map(|path| path.display().to_string())
        .collect();
    none(&offenders, "name a file after its one idea");
}

#[test]
fn nothing_unfinished_and_nothing_private_is_left_in_the_tree() {
    // Split, so that this file does not offend itself.
    let banned = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("#[ig", "nore"),
        concat!("(to be ", "written)"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("../sha", "red"),
        concat!("artifac", "tory"),
        concat!("replace-", "with"),
        concat!("index-", "url"),
        concat!("BEGIN PRIV", "ATE KEY"),
        concat!("BEGIN RSA PRIV", "ATE KEY"),
    ];
    let mut offenders = Vec::new();
    for path in files() {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for (index, line) in text.lines().enumerate() {
            for word in banned.iter().filter(|word| line.contains(**word)) {
                offenders.push(format!("{}:{} contains {word}", path.display(), index + 1));
            }
        }
    }
    none(
        &offenders,
        "finish it, or say in the documents what is missing; the project speaks of itself alone",
    );
}

// ---- what may be depended on -------------------------------------------------------------------

#[test]
fn lock_files_name_the_public_index_and_no_mirror() {
    let lock = read("Cargo.lock");
    let index = concat!("registry+https://github.com/rust-lang/", "crates.io-index");
    let foreign: Vec<String> = lock
        .lines()
        .filter(|line| line.starts_with("source = ") && !line.contains(index))
        .map(String::from)
        .collect();
    none(&foreign, "Cargo.lock has a source other than the public index");
    assert!(lock.contains(index), "Cargo.lock names no source at all; this check reads it wrongly");

    for path in files().into_iter().filter(|path| path.ends_with("package-lock.json")) {
        let text = read(&path.display().to_string());
        assert!(!text.contains("\"resolved\""), "{}: set omit-lockfile-registry-resolved", path.display());
    }
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let allowed = deny_list("allow = [");
    assert!(allowed.iter().any(|licence| licence == "Apache-2.0"), "deny.toml's licence list was not found");
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--locked", "--format-version", "1"])).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "cargo metadata lists only {} packages", packages.len());
    let offenders: Vec<String> = packages
        .iter()
        .filter_map(|package| {
            let name = package["name"].as_str().unwrap_or_default();
            let by_hand = LICENCES_READ_BY_HAND.iter().find(|(crate_name, _)| *crate_name == name);
            let expression = package["license"]
                .as_str()
                .or(by_hand.map(|(_, expression)| *expression))
                .unwrap_or("none given");
            let accepted = Licence::parse(expression).is_some_and(|licence| licence.accepted(&allowed));
            (!accepted).then(|| format!("{} {}: {expression}", package["name"], package["version"]))
        })
        .collect();
    none(&offenders, "licence not on deny.toml's list");
}

/// Crates whose manifest names a licence file and no expression. cargo-deny recognises the text; here is
/// what a person read.
const LICENCES_READ_BY_HAND: &[(&str, &str)] = &[("forust-ml", "Apache-2.0")];

#[test]
fn no_banned_crate_is_locked() {
    let banned = deny_list("deny = [");
    assert!(banned.iter().any(|name| name == "openssl"), "deny.toml's list of bans was not found");
    let lock = read("Cargo.lock");
    let offenders: Vec<&String> =
        banned.iter().filter(|name| lock.contains(&format!("name = \"{name}\"\n"))).collect();
    assert!(offenders.is_empty(), "banned in deny.toml, yet locked: {offenders:?}");
}

/// A licence expression: SPDX's OR, AND and brackets, and the old `/` for OR.
enum Licence {
    One(String),
    All(Vec<Licence>),
    Any(Vec<Licence>),
}

impl Licence {
    fn parse(expression: &str) -> Option<Licence> {
        let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let mut rest = words.as_slice();
        let licence = Licence::any(&mut rest)?;
        rest.is_empty().then_some(licence)
    }
    fn any(rest: &mut &[&str]) -> Option<Licence> {
        let mut parts = vec![Licence::all(rest)?];
        while rest.first() == Some(&"OR") {
            *rest = &rest[1..];
            parts.push(Licence::all(rest)?);
        }
        Some(Licence::Any(parts))
    }
    fn all(rest: &mut &[&str]) -> Option<Licence> {
        let mut parts = vec![Licence::one(rest)?];
        while rest.first() == Some(&"AND") {
            *rest = &rest[1..];
            parts.push(Licence::one(rest)?);
        }
        Some(Licence::All(parts))
    }
    fn one(rest: &mut &[&str]) -> Option<Licence> {
        let (first, tail) = rest.split_first()?;
        *rest = tail;
        if *first == "(" {
            let inner = Licence::any(rest)?;
            let (close, tail) = rest.split_first()?;
            *rest = tail;
            return (*close == ")").then_some(inner);
        }
        if rest.first() == Some(&"WITH") {
            let exception = rest.get(1)?;
            *rest = &rest[2..];
            return Some(Licence::One(format!("{first} WITH {exception}")));
        }
        Some(Licence::One((*first).to_string()))
    }
    fn accepted(&self, allowed: &[String]) -> bool {
        match self {
            Licence::One(name) => allowed.contains(name),
            Licence::All(parts) => parts.iter().all(|part| part.accepted(allowed)),
            Licence::Any(parts) => parts.iter().any(|part| part.accepted(allowed)),
        }
    }
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    let check = |expression: &str, expected: bool| {
        let allowed = ["MIT".to_string(), "Zlib".to_string(), "Apache-2.0 WITH LLVM-exception".to_string()];
        let accepted = Licence::parse(expression).is_some_and(|licence| licence.accepted(&allowed));
        assert_eq!(accepted, expected, "{expression}");
    };
    check("MIT", true);
    check("GPL-3.0 OR MIT", true);
    check("GPL-3.0/MIT", true);
    check("GPL-3.0 AND MIT", false);
    check("MIT AND (GPL-3.0 OR Zlib)", true);
    check("MIT AND GPL-3.0 OR GPL-2.0", false);
    check("Apache-2.0 WITH LLVM-exception", true);
    check("Apache-2.0", false);
    check("(MIT", false);
    check("", false);
}

/// The quoted names of a list in deny.toml, from the line that opens it to its bracket.
fn deny_list(opening: &str) -> Vec<String> {
    let text = read("deny.toml");
    let mut names = Vec::new();
    for line in text.lines().skip_while(|line| *line != opening).skip(1).take_while(|line| *line != "]") {
        let line = line.split_once("crate = ").map_or(line, |(_, rest)| rest);
        if let Some(name) = line.split('"').nth(1) {
            names.push(name.to_string());
        }
    }
    names
}

// ---- what the documents promise ----------------------------------------------------------------

#[test]
fn every_row_of_the_feature_list_names_the_command_that_shows_it() {
    let text = read("docs/FEATURES.md");
    let lines: Vec<&str> = text.lines().collect();
    let is_rule = |line: &str| line.starts_with("|-") || line.starts_with("| -") || line.starts_with("|:");
    let mut offenders = Vec::new();
    let mut checked = 0;
    for (index, line) in lines.iter().enumerate() {
        let is_heading = lines.get(index + 1).is_some_and(|next| is_rule(next));
        let is_section = line.starts_with("| **");
        if !line.starts_with('|') || is_rule(line) || is_heading || is_section {
            continue;
        }
        checked += 1;
        let command = line.trim_end().trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        if command.matches('`').count() < 2 {
            offenders.push((*line).to_string());
        }
    }
    assert!(checked > 0, "docs/FEATURES.md has no table");
    none(&offenders, "a feature nobody can run is a promise: give its command in the last column");
}

#[test]
fn every_configuration_key_is_in_the_sample_file_and_has_a_comment_in_the_source() {
    let sample = read("deploy/gaitway.yaml");
    let mut offenders = Vec::new();
    let mut keys = 0;
    for (_, line) in code_lines(&read("gateway/src/config.rs")) {
        let Some(field) = line.trim().strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) else {
            continue;
        };
        let name = field.0;
        if !line.starts_with("    ") || name.contains(['(', ' ', '<']) {
            continue;
        }
        keys += 1;
        let shown = sample.lines().any(|line| {
            line.trim_start_matches([' ', '#', '-'])
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(':'))
        });
        if !shown {
            offenders.push(format!("{name} is missing in deploy/gaitway.yaml"));
        }
    }
    assert!(keys > 40, "only {keys} keys found in gateway/src/config.rs; this check reads it wrongly");
    none(&offenders, "run `gaitway config example > deploy/gaitway.yaml`");
}

// ---- reading the tree --------------------------------------------------------------------------

struct Source {
    /// Relative to the repository, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    fn extension(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }
    /// Tests in a file of their own; those at a file's foot are cut off by `code_lines`.
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }
}

/// Text files below `places` with one of `extensions`; what a tool writes is not looked at.
fn sources(places: &[&str], extensions: &[&str]) -> Vec<Source> {
    let found: Vec<Source> = files()
        .into_iter()
        .filter(|path| places.iter().any(|place| *place == "." || path.starts_with(place)))
        .filter(|path| path.extension().is_some_and(|have| extensions.iter().any(|want| have == *want)))
        .map(|path| Source { text: read(&path.display().to_string()), path: path.display().to_string() })
        .collect();
    assert!(!found.is_empty(), "no {extensions:?} files in {places:?}; this check reads nothing");
    found
}

/// Lines of code with their numbers: without comments, and without the tests at a file's foot.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}

/// Every file of the tree, relative to its root, in order; without what is built, fetched or recorded.
fn files() -> Vec<PathBuf> {
    let skipped = [".git", "target", "node_modules", "dist", "data", "__pycache__"];
    let mut found = Vec::new();
    let mut open = vec![root().to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let kind = entry.file_type().unwrap();
            if skipped.iter().any(|skip| name == *skip) || kind.is_symlink() {
                continue;
            }
            if kind.is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(root()).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn none(offenders: &[String], advice: &str) {
    assert!(offenders.is_empty(), "{advice}:\n  {}\n", offenders.join("\n  "));
}
