//! From the file, the environment and the command line to one `Config`, or to all mistakes at once.
//!
//! All three become one tree of located values, later ones on top; the tree is read against the
//! table of settings. Must not know: any particular setting.

use super::settings::{DefaultOf, Field, Kind, Setting, variable_name, walk};
use super::{Config, check};
use gaitway_policies::document::{self, Document, nearest};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// A configuration file larger than this is a mistake: the sample with every key has under 20 KB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What lies on top of the file: the environment, then the command line.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Names and values of every variable; `GAITWAY_…` are settings, others may be named by settings.
    pub environment: Vec<(String, String)>,
    /// Option as typed, path of the setting, value.
    pub options: Vec<(&'static str, &'static str, String)>,
}

impl Overrides {
    /// This process's environment and nothing else.
    pub fn environment() -> Overrides {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Overrides { environment: environment.collect(), options: Vec::new() }
    }

    pub fn option(mut self, option: &'static str, path: &'static str, value: Option<String>) -> Overrides {
        self.options.extend(value.map(|value| (option, path, value)));
        self
    }
}

/// Variables that are no settings, with what they are for.
pub const OTHER_VARIABLES: &[(&str, &str)] = &[
    (
        "GAITWAY_SECRET",
        "secret that replicas share to sign cookies and page tokens; absent: one is generated in the data directory",
    ),
    ("GAITWAY_SECRET_FILE", "file that holds the same, such as a mounted container secret"),
    ("GAITWAY_CONFIG", "configuration file of `gaitway run`, as `--config`"),
];

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub origin: Origin,
    /// Path of the setting, such as `limits.connections_max`; empty for the file as a whole.
    pub field: String,
    pub message: String,
    pub hint: Option<String>,
}

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Line and column from 1; 0 if the whole file is meant.
    File {
        file: String,
        line: usize,
        column: usize,
    },
    Variable(String),
    Option(&'static str),
    /// Nobody said anything.
    Default,
}

/// Every mistake that was found; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, error)| {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)
        })
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, " ({hint})"))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, line: 0, .. } => f.write_str(file),
            Origin::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Option(option) => write!(f, "option {option}"),
            Origin::Default => f.write_str("settings"),
        }
    }
}

impl Config {
    /// Reads the file, if any, lays environment and command line on top, and checks everything.
    ///
    /// # Errors
    /// All mistakes at once, those of the file by line.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigErrors> {
        let Some(path) = file else { return Config::from_text("", None, overrides) };
        let name = path.display().to_string();
        let refuse = |message: String| {
            let origin = Origin::File { file: name.clone(), line: 0, column: 0 };
            ConfigErrors(vec![ConfigError { origin, field: String::new(), message, hint: None }])
        };
        let size = std::fs::metadata(path).map_err(|error| refuse(format!("cannot be read: {error}")))?.len();
        if size > FILE_BYTES_MAX {
            return Err(refuse(format!("{size} bytes; a configuration has at most {FILE_BYTES_MAX}")));
        }
        let text =
            std::fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
        Config::from_text(&name, Some(&text), overrides)
    }

    /// The same with the file's text at hand; `name` stands in messages.
    pub fn from_text(name: &str, text: Option<&str>, overrides: &Overrides) -> Result<Config, ConfigErrors> {
        let mut errors = Vec::new();
        let mut tree = match text {
            Some(text) => match Node::from_yaml(name, text, &mut errors) {
                Some(tree) => tree,
                None => return Err(ConfigErrors(errors)),
            },
            None => Node { origin: Origin::Default, content: Content::Nothing },
        };
        lay_environment(&mut tree, &overrides.environment);
        for (option, path, value) in &overrides.options {
            tree.set(path, Node::scalar(Origin::Option(option), value));
        }

        let mut reader = Reader { errors, origins: BTreeMap::new() };
        reader.origins.insert(String::new(), tree.origin.clone());
        let (fields, default) = root();
        let value = reader.section(fields, default, &tree, "");
        let config = match serde_json::from_value::<Config>(value) {
            Ok(config) => config,
            Err(error) => {
                reader.say(tree.origin.clone(), "", error.to_string(), None);
                return Err(ConfigErrors(reader.errors));
            }
        };
        unknown_variables(&config, &overrides.environment, &mut reader.errors);
        let wrong: Vec<String> = reader.errors.iter().map(|error| error.field.clone()).collect();
        check::contradictions(&config, &overrides.environment, &mut |paths, message| {
            // A setting that could not be read stands at its default: what follows from that is no news.
            let follows =
                |path: &&str| wrong.iter().any(|w| !w.is_empty() && (within(path, w) || within(w, path)));
            if !paths.iter().any(follows) {
                let path = paths.first().copied().unwrap_or_default();
                reader.say(reader.origin(path), path, message, None);
            }
        });

        let mut errors = reader.errors;
        if errors.is_empty() {
            return Ok(config);
        }
        errors.sort_by(|a, b| a.origin.cmp(&b.origin).then_with(|| a.field.cmp(&b.field)));
        Err(ConfigErrors(errors))
    }
}

/// The table's root: fields of the whole configuration and their defaults.
pub(super) fn root() -> (&'static [Field], DefaultOf) {
    Config::KIND.section().unwrap_or((&[], || serde_json::Value::Null))
}

fn within(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A value and where it was said.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A key without a value, or `null`.
    Nothing,
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) origin: Origin,
    pub(super) value: Node,
}

impl Node {
    fn scalar(origin: Origin, text: &str) -> Node {
        Node { origin, content: Content::Scalar { text: text.to_owned(), quoted: false } }
    }

    /// Puts a value at a path, making sections on the way. What the file says wrongly stays wrong.
    fn set(&mut self, path: &str, value: Node) {
        let (key, rest) = path.split_once('.').map_or((path, None), |(key, rest)| (key, Some(rest)));
        if matches!(self.content, Content::Nothing) {
            self.content = Content::Map(Vec::new());
        }
        let Content::Map(entries) = &mut self.content else { return };
        let index = entries.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
            let origin = value.origin.clone();
            let nothing = Node { origin: origin.clone(), content: Content::Nothing };
            entries.push(Entry { key: key.to_owned(), origin, value: nothing });
            entries.len() - 1
        });
        match rest {
            Some(rest) => entries[index].value.set(rest, value),
            None => entries[index].value = value,
        }
    }

    /// A file that holds nothing but comments is a file that changes nothing.
    /// `None`: no YAML at all, and what follows from that is no news.
    fn from_yaml(name: &str, text: &str, errors: &mut Vec<ConfigError>) -> Option<Node> {
        let nothing = Node {
            origin: Origin::File { file: name.to_owned(), line: 0, column: 0 },
            content: Content::Nothing,
        };
        if text.lines().all(|line| line.trim_start().is_empty() || line.trim_start().starts_with('#')) {
            return Some(nothing);
        }
        let mut mistakes = Vec::new();
        let document = Document::parse(&mut mistakes, name, text);
        errors.extend(mistakes.into_iter().map(|mistake| ConfigError {
            origin: Origin::File { file: mistake.file, line: mistake.line, column: mistake.column },
            field: mistake.field,
            message: mistake.message,
            hint: mistake.hint,
        }));
        Some(Node::from_document(name, &document?.root))
    }

    fn from_document(name: &str, node: &document::Node) -> Node {
        let origin =
            |at: document::Position| Origin::File { file: name.to_owned(), line: at.line, column: at.column };
        let content = match &node.value {
            _ if node.is_null() => Content::Nothing,
            document::Value::Scalar { text, plain, .. } => {
                Content::Scalar { text: text.clone(), quoted: !plain }
            }
            document::Value::Sequence(list) => {
                Content::List(list.iter().map(|node| Node::from_document(name, node)).collect())
            }
            document::Value::Mapping(entries) => Content::Map(
                entries
                    .iter()
                    .map(|entry| Entry {
                        key: entry.key.clone(),
                        origin: origin(entry.at),
                        value: Node::from_document(name, &entry.node),
                    })
                    .collect(),
            ),
        };
        Node { origin: origin(node.at), content }
    }
}

/// Lays every `GAITWAY_…` variable that names a setting on the tree; lists are comma-separated, an
/// empty value means "absent" where that is possible.
fn lay_environment(tree: &mut Node, environment: &[(String, String)]) {
    let values: BTreeMap<&str, &str> = environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    walk(root().0, &mut |path, field| {
        let name = variable_name(path);
        let Some(value) = values.get(name.as_str()) else { return };
        if field.kind.section().is_some() {
            return;
        }
        let origin = Origin::Variable(name);
        let list = match field.kind {
            Kind::List(_) => true,
            Kind::Optional(inner) => matches!(inner, Kind::List(_)),
            _ => false,
        };
        let node = if value.is_empty() && field.kind.is_optional() {
            Node { origin, content: Content::Nothing }
        } else if list {
            let words = value.split(',').map(str::trim).filter(|word| !word.is_empty());
            let list = words.map(|word| Node::scalar(origin.clone(), word)).collect();
            Node { origin, content: Content::List(list) }
        } else {
            Node::scalar(origin, value)
        };
        tree.set(path, node);
    });
}

/// A misspelt variable would silently do nothing, so it is an error.
fn unknown_variables(config: &Config, environment: &[(String, String)], errors: &mut Vec<ConfigError>) {
    let mut known: Vec<String> = OTHER_VARIABLES.iter().map(|(name, _)| (*name).to_owned()).collect();
    walk(root().0, &mut |path, field| {
        if field.kind.section().is_none() {
            known.push(variable_name(path));
        }
    });
    let named_by_settings = check::variables_named(config);
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("GAITWAY_")) {
        let ours =
            known.contains(name) || named_by_settings.contains(&name.as_str()) || is_kubernetes(name, value);
        if !ours {
            let hint =
                nearest(name, known.iter().map(String::as_str)).map(|near| format!("did you mean {near}?"));
            errors.push(ConfigError {
                origin: Origin::Variable(name.clone()),
                field: String::new(),
                message: "names no setting".into(),
                hint,
            });
        }
    }
}

/// Kubernetes sets `GAITWAY_SERVICE_HOST`, `GAITWAY_PORT=tcp://…`, `GAITWAY_PORT_8000_TCP…` in every pod
/// beside a service called `gaitway`; they are nobody's mistake.
fn is_kubernetes(name: &str, value: &str) -> bool {
    name.starts_with("GAITWAY_SERVICE_")
        || name
            .strip_prefix("GAITWAY_PORT_")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        || name == "GAITWAY_PORT" && (value.starts_with("tcp://") || value.starts_with("udp://"))
}

/// Reads the tree against the table; every mistake is kept, every setting's origin remembered.
struct Reader {
    errors: Vec<ConfigError>,
    origins: BTreeMap<String, Origin>,
}

impl Reader {
    fn say(&mut self, origin: Origin, field: &str, message: String, hint: Option<String>) {
        self.errors.push(ConfigError { origin, field: field.to_owned(), message, hint });
    }

    /// Where a setting was said, or the section around it.
    fn origin(&self, path: &str) -> Origin {
        let mut path = path;
        loop {
            if let Some(origin) = self.origins.get(path) {
                return origin.clone();
            }
            path = path.rfind(['.', '[']).map_or("", |cut| &path[..cut]);
            if path.is_empty() {
                return self.origins.get("").cloned().unwrap_or(Origin::Default);
            }
        }
    }

    /// The section's value, with defaults where nothing (or nothing readable) was said.
    fn section(
        &mut self,
        fields: &'static [Field],
        default: DefaultOf,
        node: &Node,
        path: &str,
    ) -> serde_json::Value {
        let mut whole = default();
        let entries = match &node.content {
            Content::Map(entries) => entries.as_slice(),
            Content::Nothing => &[],
            other => {
                let message = format!("expected a section with settings of its own, found {}", found(other));
                self.say(node.origin.clone(), path, message, None);
                &[]
            }
        };
        for entry in entries {
            let here = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
            let Some(field) = fields.iter().find(|field| field.name == entry.key) else {
                self.unknown_key(fields, entry, &here, path);
                continue;
            };
            self.origins.insert(here.clone(), entry.origin.clone());
            let value = self.value(&field.kind, &entry.value, &here);
            if let (Some(value), Some(map)) = (value, whole.as_object_mut()) {
                map.insert(field.name.to_owned(), value);
            }
        }
        whole
    }

    fn unknown_key(&mut self, fields: &'static [Field], entry: &Entry, here: &str, path: &str) {
        let near = nearest(&entry.key, fields.iter().map(|field| field.name));
        let mut elsewhere = Vec::new();
        walk(root().0, &mut |path, field| {
            if field.name == entry.key {
                elsewhere.push(path.to_owned());
            }
        });
        let hint = match (near, elsewhere.first()) {
            (Some(near), _) => Some(format!("did you mean {near}?")),
            (None, Some(other)) => Some(format!("there is {other}")),
            (None, None) => None,
        };
        let room =
            if path.is_empty() { "no such setting".into() } else { format!("no such setting in {path}") };
        self.say(entry.origin.clone(), here, room, hint);
    }

    /// `None`: keep the default (a mistake has been noted, or nothing was said).
    fn value(&mut self, kind: &'static Kind, node: &Node, path: &str) -> Option<serde_json::Value> {
        match (kind, &node.content) {
            (Kind::Optional(_), Content::Nothing) => Some(serde_json::Value::Null),
            (Kind::Optional(inner), _) => self.value(inner, node, path),
            (Kind::Section { fields, default }, _) => Some(self.section(fields, *default, node, path)),
            (Kind::List(inner), Content::List(list)) => {
                let entries = list.iter().enumerate().filter_map(|(index, node)| {
                    let here = format!("{path}[{index}]");
                    if inner.section().is_some() {
                        self.origins.insert(here.clone(), node.origin.clone());
                    }
                    self.value(inner, node, &here)
                });
                Some(entries.collect())
            }
            (_, Content::Scalar { text, quoted }) => {
                let value = kind.scalar(text, *quoted);
                if value.is_none() {
                    self.wrong(kind, node, path);
                }
                value
            }
            _ => {
                self.wrong(kind, node, path);
                None
            }
        }
    }

    fn wrong(&mut self, kind: &Kind, node: &Node, path: &str) {
        let hint = match (kind, &node.content) {
            (Kind::Choice(words), Content::Scalar { text, .. }) => {
                nearest(&text.to_lowercase(), words.iter().copied())
                    .map(|near| format!("did you mean {near}?"))
            }
            (Kind::Whole { .. } | Kind::Number | Kind::Flag, Content::Scalar { quoted: true, text })
                if kind.scalar(text, false).is_some() =>
            {
                Some("write it without quotation marks".into())
            }
            _ => None,
        };
        let message = format!("expected {}, found {}", kind.expects(), found(&node.content));
        self.say(node.origin.clone(), path, message, hint);
    }
}

/// A value in a message: shortened, and control characters made visible.
fn found(content: &Content) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    match content {
        Content::Nothing => "nothing".into(),
        Content::List(_) => "a list".into(),
        Content::Map(_) => "a section".into(),
        Content::Scalar { text, .. } => {
            let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
            let more = if shown.len() < text.len() { "…" } else { "" };
            format!("{shown:?}{more}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let overrides = Overrides { environment, options: Vec::new() };
        Config::from_text("gaitway.yaml", Some(yaml), &overrides).map_err(|errors| errors.to_string())
    }

    const UPSTREAM: (&str, &str) = ("GAITWAY_UPSTREAM", "http://127.0.0.1:1");

    #[test]
    fn variables_reach_every_kind_of_setting() {
        let config = load(
            "log:\n  level: debug\n",
            &[
                UPSTREAM,
                ("GAITWAY_LIMITS_CONNECTIONS_MAX", "7"),
                ("GAITWAY_PROXY_TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.0/24"),
                ("GAITWAY_COLLECTOR_INJECT", "false"),
                ("GAITWAY_COLLECTOR_PRIVACY_SIGNAL", "respect"),
                ("GAITWAY_IDENTITY_JWT_JWKS_URL", "https://login.example.com/jwks"),
                ("GAITWAY_IDENTITY_JWT_ALGORITHMS", "RS256,ES256"),
                ("GAITWAY_OPS_HELP", ""),
                ("HOME", "/root"),
            ],
        )
        .unwrap();
        assert_eq!(config.limits.connections_max, 7);
        assert_eq!(config.proxy.trusted_proxies.len(), 2);
        assert!(!config.collector.inject);
        assert_eq!(config.collector.privacy_signal, crate::config::PrivacySignal::Respect);
        let jwt = config.identity.jwt.unwrap();
        assert_eq!(jwt.algorithms, ["RS256", "ES256"]);
        assert!(jwt.header, "the rest of a section that a variable opened keeps its defaults");
        assert_eq!(config.log.level, "debug");
        assert_eq!(config.ops.help, None);
    }

    #[test]
    fn options_win_over_variables_and_variables_over_the_file() {
        let overrides = Overrides {
            environment: vec![("GAITWAY_LISTEN".into(), "127.0.0.1:2".into())],
            options: vec![("--upstream", "upstream", "http://127.0.0.1:9".into())],
        };
        let file = "upstream: http://127.0.0.1:1\nlisten: 127.0.0.1:1\n";
        let config = Config::from_text("f", Some(file), &overrides).unwrap();
        assert_eq!(config.upstream, "http://127.0.0.1:9");
        assert_eq!(config.listen.port(), 2);
    }

    #[test]
    fn misspelt_variables_are_mistakes_and_kubernetes_is_not() {
        let wrong = load("", &[UPSTREAM, ("GAITWAY_LIMIT_CONNECTIONS_MAX", "1")]).unwrap_err();
        assert_eq!(
            wrong,
            "variable GAITWAY_LIMIT_CONNECTIONS_MAX: names no setting (did you mean GAITWAY_LIMITS_CONNECTIONS_MAX?)"
        );
        load(
            "",
            &[
                UPSTREAM,
                ("GAITWAY_SECRET", "x"),
                ("GAITWAY_SERVICE_HOST", "10.0.0.1"),
                ("GAITWAY_PORT", "tcp://10.0.0.1:8000"),
                ("GAITWAY_PORT_8000_TCP_ADDR", "10.0.0.1"),
            ],
        )
        .unwrap();
        load("", &[UPSTREAM, ("GAITWAY_PORT", "8000")]).unwrap_err();
    }

    #[test]
    fn every_variable_has_a_name_of_its_own() {
        let mut names = Vec::new();
        walk(root().0, &mut |path, field| {
            if field.kind.section().is_none() {
                names.push(variable_name(path));
            }
        });
        names.extend(OTHER_VARIABLES.iter().map(|(name, _)| (*name).to_owned()));
        let total = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), total);
        assert!(names.iter().all(|name| !is_kubernetes(name, "tcp://")));
    }

    #[test]
    fn every_word_of_every_choice_is_one_serde_reads() {
        walk(root().0, &mut |path, field| {
            if let Kind::Choice(words) = field.kind {
                for word in words {
                    let mut tree = Node { origin: Origin::Default, content: Content::Nothing };
                    tree.set(path, Node::scalar(Origin::Default, word));
                    let mut reader = Reader { errors: Vec::new(), origins: BTreeMap::new() };
                    let value = reader.section(root().0, root().1, &tree, "");
                    serde_json::from_value::<Config>(value).unwrap_or_else(|e| panic!("{path}: {word}: {e}"));
                }
            }
        });
    }

    fn check(yaml: &str, expected: expect_test::Expect) {
        expected.assert_eq(&load(yaml, &[]).unwrap_err());
    }

    #[test]
    fn every_mistake_is_named_at_once_with_line_column_and_field() {
        check(
            "upstream: ftp://app\n\
             lisen: 127.0.0.1:1\n\
             limits:\n  connections_max: many\n  header_read_timeout_ms: 0\n  drain_ms: \"5\"\n  idle: 3\n\
             tls:\n  certificate: /nonexistent/a.crt\n\
             proxy:\n  trusted_proxies: [10.0.0.0/8, ten, {}]\n  h2c: yes\n\
             identity:\n  jwt:\n    key_file: /nonexistent/k\n    jwks_url: https://k/jwks\n    algorithms: [HS256, RS256, none]\n\
             collector:\n  path_prefix: x\n  privacy_signal: Respekt\n\
             alerts:\n  mail:\n    from: nobody\n    username: u\n\
             log: loud\n\
             ops:\n  listen: 127.0.0.1:8000\n  password_file: /\n",
            expect_test::expect![[r#"
                gaitway.yaml:1:1: upstream: expected an address such as http://host:port or https://host:port
                gaitway.yaml:2:1: lisen: no such setting (did you mean listen?)
                gaitway.yaml:4:20: limits.connections_max: expected a whole number up to 4294967295, found "many"
                gaitway.yaml:5:3: limits.header_read_timeout_ms: must be at least 1
                gaitway.yaml:6:13: limits.drain_ms: expected a whole number, found "5" (write it without quotation marks)
                gaitway.yaml:7:3: limits.idle: no such setting in limits
                gaitway.yaml:9:3: tls.certificate: needs tls.key beside it
                gaitway.yaml:9:3: tls.certificate: /nonexistent/a.crt: No such file or directory (os error 2)
                gaitway.yaml:11:33: proxy.trusted_proxies[1]: expected a network such as 10.0.0.0/8 or 192.0.2.7/32, found "ten"
                gaitway.yaml:11:38: proxy.trusted_proxies[2]: expected a network such as 10.0.0.0/8 or 192.0.2.7/32, found a section
                gaitway.yaml:12:8: proxy.h2c: expected true or false, found "yes"
                gaitway.yaml:15:5: identity.jwt.key_file: /nonexistent/k: No such file or directory (os error 2)
                gaitway.yaml:16:5: identity.jwt.jwks_url: exactly one of key_file, key_env and jwks_url may be given
                gaitway.yaml:17:5: identity.jwt.algorithms: a shared secret (HS…) cannot stand beside algorithms with a public key
                gaitway.yaml:17:5: identity.jwt.algorithms: HS… has no public keys to fetch from jwks_url
                gaitway.yaml:17:5: identity.jwt.algorithms[2]: expected HS256, RS256, PS256, ES256, EdDSA or their longer kin, found "none"
                gaitway.yaml:19:3: collector.path_prefix: must begin with /, found "x"
                gaitway.yaml:20:19: collector.privacy_signal: expected one of record, respect, found "Respekt" (did you mean respect?)
                gaitway.yaml:22:3: alerts.mail.to: names no receiver
                gaitway.yaml:23:5: alerts.mail.from: expected a mail address
                gaitway.yaml:24:5: alerts.mail.username: username and password belong together
                gaitway.yaml:25:6: log: expected a section with settings of its own, found "loud"
                gaitway.yaml:27:3: ops.listen: is the visitors' address; operators need one of their own
                gaitway.yaml:28:3: ops.password_file: / is not a file"#]],
        );
    }

    #[test]
    fn text_that_is_no_yaml_is_one_mistake_and_a_doubled_key_another() {
        check(
            "a: [1, 2\nb: 3",
            expect_test::expect!["gaitway.yaml:2:2: not YAML: illegal placement of ':' indicator"],
        );
        check(
            "upstream: http://a:1\nupstream: http://b:1\n",
            expect_test::expect![
                "gaitway.yaml:2:1: upstream: this key is here twice (the first one is on line 1)"
            ],
        );
    }

    #[test]
    fn what_the_environment_says_wrongly_is_named_by_its_variable() {
        let wrong = load(
            "upstream: http://a:1\n",
            &[("GAITWAY_LIMITS_DRAIN_MS", "soon"), ("GAITWAY_TLS_KEY", "/nonexistent")],
        );
        let expected = expect_test::expect![[r#"
            variable GAITWAY_LIMITS_DRAIN_MS: limits.drain_ms: expected a whole number, found "soon"
            variable GAITWAY_TLS_KEY: tls.key: needs tls.certificate beside it
            variable GAITWAY_TLS_KEY: tls.key: /nonexistent: No such file or directory (os error 2)"#]];
        expected.assert_eq(&wrong.unwrap_err());
    }

    #[test]
    fn profiles_need_logins_that_name_a_person() {
        let wrong = load("upstream: http://a:1\nprofiles:\n  enabled: true\n", &[]).unwrap_err();
        assert!(
            wrong.starts_with("gaitway.yaml:3:3: profiles.enabled: needs logins that name a person"),
            "{wrong}"
        );
        let wrong = load("upstream: http://a:1\nprofiles:\n  retention_days: 0\n  live_max: 0\n", &[]);
        assert_eq!(wrong.unwrap_err().matches("must be at least 1").count(), 2);
    }

    #[test]
    fn every_issuer_of_tokens_is_checked_by_itself() {
        check(
            "upstream: http://app:1\n\
             identity:\n  jwt:\n    header: false\n    query: a b\n    issuer: https://a\n    issuers:\n\
             \x20     - {issuer: https://a, jwks_url: https://a/jwks}\n\
             \x20     - {issuer: https://a, key_file: /nonexistent/k, algorithms: [RS256, none]}\n\
             \x20     - {jwks_url: ftp://b, algorithms: [ES256], key_env: NO_SUCH}\n\
             \x20     - {issuer: https://c, algorithms: [ES256], leeway: 3}\n",
            expect_test::expect![[r#"
                gaitway.yaml:5:5: identity.jwt.query: is no parameter name: letters, digits and -._~ only
                gaitway.yaml:8:9: identity.jwt.issuers[0].algorithms: HS… has no public keys to fetch from jwks_url
                gaitway.yaml:9:10: identity.jwt.issuers[1].issuer: is here twice
                gaitway.yaml:9:29: identity.jwt.issuers[1].key_file: /nonexistent/k: No such file or directory (os error 2)
                gaitway.yaml:9:55: identity.jwt.issuers[1].algorithms[1]: expected HS256, RS256, PS256, ES256, EdDSA or their longer kin, found "none"
                gaitway.yaml:10:9: identity.jwt.issuers[2]: needs issuer, the iss claim of its tokens
                gaitway.yaml:10:10: identity.jwt.issuers[2].jwks_url: exactly one of key_file, key_env and jwks_url may be given
                gaitway.yaml:10:10: identity.jwt.issuers[2].jwks_url: expected an address such as https://host:port or http://host:port
                gaitway.yaml:10:50: identity.jwt.issuers[2].key_env: the variable "NO_SUCH" is not set
                gaitway.yaml:11:50: identity.jwt.issuers[3].leeway: no such setting in identity.jwt.issuers[3]"#]],
        );
        check(
            "upstream: http://app:1\nidentity:\n  jwt:\n    issuer: https://a\n    algorithms: [ES256]\n    issuers:\n\
             \x20     - {issuer: https://a, jwks_url: https://a/jwks}\n",
            expect_test::expect![
                "gaitway.yaml:4:5: identity.jwt.issuer: makes no sense beside issuers, each of which has its own"
            ],
        );
        let config = load(
            "upstream: http://app:1\nidentity:\n  jwt:\n    algorithms: [ES256]\n    leeway_seconds: 5\n    issuers:\n\
             \x20     - {issuer: https://a, jwks_url: https://a/jwks?code=hunter2}\n\
             \x20     - {issuer: https://b, jwks_url: https://b/jwks, algorithms: [RS256], leeway_seconds: 0}\n",
            &[],
        )
        .unwrap();
        let believed = config.identity.jwt.as_ref().unwrap().believed();
        let said: Vec<_> =
            believed.iter().map(|(at, one)| (&**at, &*one.algorithms[0], one.leeway_seconds)).collect();
        let expected =
            [("identity.jwt.issuers[0]", "ES256", Some(5)), ("identity.jwt.issuers[1]", "RS256", Some(0))];
        assert_eq!(said, expected);
        let shown = crate::config::show(&config);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(crate::config::show(&load(&shown, &[]).unwrap()), shown);
    }

    #[test]
    fn a_password_in_an_address_is_not_repeated() {
        let wrong = load("upstream: http://u:hunter2@a:1\nstore:\n  postgres: mysql://u:hunter2@p\n", &[]);
        assert!(!wrong.unwrap_err().contains("hunter2"));
    }

    #[test]
    fn nothing_but_the_upstream_is_needed() {
        assert!(load("", &[]).unwrap_err().contains("upstream: is missing"));
        load("upstream: http://app:8080\ntls:\nlog:\n", &[]).unwrap();
    }
}
