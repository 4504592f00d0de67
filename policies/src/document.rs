//! A YAML file as a tree that remembers where everything stands, and the typed reading of it.
//!
//! Owns line, column, duplicate keys and the limits on size and depth; every reader adds its
//! complaints to one list, so a file's mistakes are reported together. Must not know: what any key
//! means. The gateway's own settings are read with it too.

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest file read, in bytes: a hundred times the longest policy we ship.
pub const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;
/// Deepest nesting of lists and mappings; our own formats need six.
pub const DOCUMENT_DEPTH_MAX: usize = 32;
/// Most values in one file, so that a file of brackets cannot fill the memory.
pub const DOCUMENT_NODES_MAX: usize = 100_000;
/// Most mistakes reported of one file; after that the list helps nobody.
pub const MISTAKES_MAX: usize = 100;

/// One mistake in a file; all mistakes of a file are reported at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{file}:{line}:{column}: {field}: {message}{}", .hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub struct Mistake {
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// Path of the field, such as `rules[2].when`; empty for the file as a whole.
    pub field: String,
    pub message: String,
    pub hint: Option<String>,
}

/// A place in the file, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub at: Position,
    /// Byte offset of the value in the file.
    start: usize,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub enum Value {
    /// `plain` is true for an unquoted scalar, the only kind that can mean null, a number or a boolean.
    Scalar {
        text: String,
        plain: bool,
        block: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    pub at: Position,
    pub node: Node,
}

/// One parsed file.
#[derive(Clone, Debug)]
pub struct Document {
    pub file: String,
    source: String,
    pub root: Node,
}

impl Node {
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true, .. } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The value of `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node),
            _ => None,
        }
    }

    /// What a person would call this value.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { text, plain: true, .. } if text.parse::<f64>().is_ok() => "a number",
            Value::Scalar { text, plain: true, .. } if text == "true" || text == "false" => "a boolean",
            Value::Scalar { .. } => "text",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }
}

impl Document {
    /// Reads `source`. Duplicate keys, aliases and tags are mistakes; `None` if the text is no YAML at all.
    pub fn parse(mistakes: &mut Vec<Mistake>, file: &str, source: &str) -> Option<Document> {
        let mut builder = Builder { mistakes, file, nodes: 0 };
        if source.len() > DOCUMENT_BYTES_MAX {
            builder.mistake(
                Position { line: 1, column: 1 },
                format!("file of {} bytes exceeds the limit of {DOCUMENT_BYTES_MAX}", source.len()),
                None,
            );
            return None;
        }
        let options = granit_parser::options! {
            emit_comments: false,
            emit_unresolved_aliases: true,
            flow_nesting_limit: DOCUMENT_DEPTH_MAX,
            block_nesting_limit: DOCUMENT_DEPTH_MAX,
        };
        let mut events = Parser::new_from_str_with_options(source, options);
        let root = builder.document(&mut events)?;
        Some(Document { file: file.to_owned(), source: source.to_owned(), root })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where byte `offset` of a scalar's text stands in the file.
    ///
    /// Folding and quoting change white space and add escapes, but keep the other characters in
    /// their order; so both texts are walked side by side.
    pub fn locate(&self, node: &Node, offset: usize) -> Position {
        let Value::Scalar { text, plain, block } = &node.value else { return node.at };
        let Some(raw) = self.source.get(node.start..) else { return node.at };
        let mut cursor = node.start;
        if *block {
            // The parser gives a block's place as that of its first line or of its `|-` or `>-`.
            let header = raw.split_once('\n').filter(|(line, _)| {
                let line = line.split_once('#').map_or(*line, |(line, _)| line).trim_end();
                line.starts_with(['|', '>']) && line[1..].chars().all(|c| matches!(c, '+' | '-' | '0'..='9'))
            });
            cursor += header.map_or(0, |(line, _)| line.len() + 1);
        } else if !*plain {
            cursor += 1;
        }
        let mut place = cursor;
        let mut characters = self.source.get(cursor..).unwrap_or("").char_indices();
        for (index, wanted) in text.char_indices() {
            if wanted.is_whitespace() {
                if index >= offset {
                    break;
                }
                continue;
            }
            let Some((found, _)) = characters.by_ref().find(|(_, character)| *character == wanted) else {
                break;
            };
            place = cursor + found;
            if index >= offset {
                break;
            }
        }
        position_of(&self.source, place)
    }
}

fn position_of(source: &str, offset: usize) -> Position {
    let before = source.get(..offset).unwrap_or(source);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position {
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..).unwrap_or("").chars().count() + 1,
    }
}

struct Builder<'m, 'f> {
    mistakes: &'m mut Vec<Mistake>,
    file: &'f str,
    nodes: usize,
}

type Events<'s> = Parser<'s, granit_parser::StrInput<'s>>;

impl Builder<'_, '_> {
    fn document(&mut self, events: &mut Events<'_>) -> Option<Node> {
        loop {
            let (event, span) = self.next(events)?;
            match event {
                Event::StreamStart | Event::DocumentStart(..) => {}
                Event::StreamEnd => {
                    self.mistake(position(span.start), "the file is empty".into(), None);
                    return None;
                }
                event => {
                    let root = self.node(events, event, span, 0)?;
                    return self.only_document(events).then_some(root);
                }
            }
        }
    }

    fn only_document(&mut self, events: &mut Events<'_>) -> bool {
        while let Some((event, span)) = self.next(events) {
            match event {
                Event::DocumentEnd => {}
                Event::StreamEnd => return true,
                _ => {
                    self.mistake(
                        position(span.start),
                        "a second document starts here".into(),
                        Some("one file holds one document; remove the `---`"),
                    );
                    return false;
                }
            }
        }
        false
    }

    fn next<'s>(&mut self, events: &mut Events<'s>) -> Option<(Event<'s>, Span)> {
        match events.next() {
            Some(Ok(next)) => Some(next),
            Some(Err(error)) => {
                self.mistake(position(*error.marker()), format!("not YAML: {}", error.info()), None);
                None
            }
            None => None,
        }
    }

    fn node<'s>(
        &mut self,
        events: &mut Events<'s>,
        event: Event<'s>,
        span: Span,
        depth: usize,
    ) -> Option<Node> {
        let at = position(span.start);
        let start = span.start.byte_offset().unwrap_or(0);
        self.nodes += 1;
        if depth > DOCUMENT_DEPTH_MAX || self.nodes > DOCUMENT_NODES_MAX {
            self.mistake(
                at,
                format!("more than {DOCUMENT_DEPTH_MAX} levels or {DOCUMENT_NODES_MAX} values"),
                None,
            );
            return None;
        }
        if let Event::Scalar(.., Some(_))
        | Event::SequenceStart(.., Some(_))
        | Event::MappingStart(.., Some(_)) = &event
        {
            self.mistake(at, "YAML tags have no meaning here".into(), Some("remove the `!…`"));
        }
        let value = match event {
            Event::Scalar(text, style, ..) => Value::Scalar {
                text: text.into_owned(),
                plain: style == ScalarStyle::Plain,
                block: matches!(style, ScalarStyle::Literal | ScalarStyle::Folded),
            },
            Event::SequenceStart(..) => Value::Sequence(self.sequence(events, depth)?),
            Event::MappingStart(..) => Value::Mapping(self.mapping(events, depth)?),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.mistake(
                    at,
                    "YAML aliases are not followed".into(),
                    Some(
                        "write the value out; a short file that unfolds into a huge one is refused by design",
                    ),
                );
                Value::Scalar { text: String::new(), plain: true, block: false }
            }
            _ => return None,
        };
        Some(Node { at, start, value })
    }

    fn sequence(&mut self, events: &mut Events<'_>, depth: usize) -> Option<Vec<Node>> {
        let mut items = Vec::new();
        loop {
            match self.next(events)? {
                (Event::SequenceEnd, _) => return Some(items),
                (event, span) => items.push(self.node(events, event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, events: &mut Events<'_>, depth: usize) -> Option<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: BTreeMap<String, Position> = BTreeMap::new();
        loop {
            let (event, span) = self.next(events)?;
            if matches!(event, Event::MappingEnd) {
                return Some(entries);
            }
            let key = self.node(events, event, span, depth + 1)?;
            let (event, span) = self.next(events)?;
            let node = self.node(events, event, span, depth + 1)?;
            let Value::Scalar { text, .. } = key.value else {
                self.mistake(key.at, "a key must be a plain word".into(), None);
                continue;
            };
            if let Some(first) = seen.get(&text) {
                self.mistakes.push(Mistake {
                    file: self.file.to_owned(),
                    line: key.at.line,
                    column: key.at.column,
                    field: text,
                    message: "this key is here twice".into(),
                    hint: Some(format!("the first one is on line {}", first.line)),
                });
                continue;
            }
            seen.insert(text.clone(), key.at);
            entries.push(Entry { key: text, at: key.at, node });
        }
    }

    fn mistake(&mut self, at: Position, message: String, hint: Option<&str>) {
        self.mistakes.push(Mistake {
            file: self.file.to_owned(),
            line: at.line,
            column: at.column,
            field: String::new(),
            message,
            hint: hint.map(str::to_owned),
        });
    }
}

fn position(marker: Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}

/// Reads a tree into types; complaints gather in `mistakes`, and reading goes on.
///
/// Every method returns `None` after it has complained, so a caller falls back and continues.
pub struct Reader<'d> {
    pub document: &'d Document,
    pub mistakes: Vec<Mistake>,
}

impl<'d> Reader<'d> {
    pub fn new(document: &'d Document) -> Reader<'d> {
        Reader { document, mistakes: Vec::new() }
    }

    pub fn mistake(&mut self, at: Position, field: &str, message: impl Into<String>, hint: Option<String>) {
        if self.mistakes.len() < MISTAKES_MAX {
            self.mistakes.push(Mistake {
                file: self.document.file.clone(),
                line: at.line,
                column: at.column,
                field: field.to_owned(),
                message: message.into(),
                hint,
            });
        }
    }

    /// A mapping all of whose keys are among `known`; the others are complained of.
    pub fn mapping(&mut self, node: &'d Node, field: &str, known: &[&str]) -> Option<Fields<'d>> {
        let Value::Mapping(entries) = &node.value else {
            self.wrong(node, field, "a mapping of keys to values");
            return None;
        };
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                let hint = nearest(&entry.key, known.iter().copied())
                    .map(|near| format!("did you mean `{near}`?"))
                    .unwrap_or_else(|| format!("known here: {}", known.join(", ")));
                self.mistake(entry.at, &join(field, &entry.key), "unknown key", Some(hint));
            }
        }
        Some(Fields { entries, at: node.at, field: field.to_owned() })
    }

    pub fn sequence(&mut self, node: &'d Node, field: &str) -> Option<&'d [Node]> {
        match &node.value {
            Value::Sequence(items) => Some(items),
            _ if node.is_null() => Some(&[]),
            _ => {
                self.wrong(node, field, "a list");
                None
            }
        }
    }

    pub fn text(&mut self, node: &'d Node, field: &str) -> Option<&'d str> {
        match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => Some(text),
            _ => {
                self.wrong(node, field, "text");
                None
            }
        }
    }

    pub fn texts(&mut self, node: &'d Node, field: &str) -> Option<Vec<String>> {
        let items = self.sequence(node, field)?;
        let read = |(index, item)| self.text(item, &format!("{field}[{index}]")).map(str::to_owned);
        Some(items.iter().enumerate().filter_map(read).collect())
    }

    pub fn boolean(&mut self, node: &'d Node, field: &str) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, plain: true, .. } if text == "true" => Some(true),
            Value::Scalar { text, plain: true, .. } if text == "false" => Some(false),
            _ => {
                self.wrong(node, field, "true or false");
                None
            }
        }
    }

    /// A finite number within `least..=most`.
    pub fn number(&mut self, node: &'d Node, field: &str, least: f64, most: f64) -> Option<f64> {
        let number = match &node.value {
            Value::Scalar { text, plain: true, .. } => text.parse::<f64>().ok().filter(|n| n.is_finite()),
            _ => None,
        };
        self.within(number, node, field, least, most)
    }

    /// A whole number within `least..=most`; underscores may group the digits.
    pub fn integer(&mut self, node: &'d Node, field: &str, least: u64, most: u64) -> Option<u64> {
        let number = match &node.value {
            Value::Scalar { text, plain: true, .. } => text.replace('_', "").parse::<u64>().ok(),
            _ => None,
        };
        match number {
            Some(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.wrong(node, field, &format!("a whole number from {least} to {most}"));
                None
            }
        }
    }

    /// A share such as `2%`, as a fraction of one.
    pub fn share(&mut self, node: &'d Node, field: &str) -> Option<f64> {
        let share = match &node.value {
            Value::Scalar { text, .. } => text
                .strip_suffix('%')
                .and_then(|percent| percent.trim().parse::<f64>().ok())
                .filter(|percent| (0.0..=100.0).contains(percent)),
            _ => None,
        };
        if share.is_none() {
            self.wrong(node, field, "a share such as `2%`");
        }
        share.map(|percent| percent / 100.0)
    }

    /// A span of time such as `90s`, `15m`, `2h` or `7d`, in milliseconds, within `least..=most` ms.
    pub fn duration_ms(&mut self, node: &'d Node, field: &str, least: u64, most: u64) -> Option<u64> {
        let duration = match &node.value {
            Value::Scalar { text, .. } => duration_ms(text),
            _ => None,
        };
        match duration {
            Some(ms) if (least..=most).contains(&ms) => Some(ms),
            Some(_) => {
                let (least, most) = (duration_text(least), duration_text(most));
                self.mistake(node.at, field, format!("must lie between {least} and {most}"), None);
                None
            }
            None => {
                self.wrong(node, field, "a span of time such as `90s`, `15m`, `2h` or `7d`");
                None
            }
        }
    }

    pub fn one_of<T: Copy>(&mut self, node: &'d Node, field: &str, words: &[(&str, T)]) -> Option<T> {
        let text = match &node.value {
            Value::Scalar { text, .. } => text.as_str(),
            _ => "",
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let all = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let hint =
            nearest(text, words.iter().map(|(word, _)| *word)).map(|near| format!("did you mean `{near}`?"));
        let found = if text.is_empty() { node.kind().to_owned() } else { format!("`{text}`") };
        self.mistake(node.at, field, format!("expected one of {all}, found {found}"), hint);
        None
    }

    fn within(
        &mut self,
        number: Option<f64>,
        node: &Node,
        field: &str,
        least: f64,
        most: f64,
    ) -> Option<f64> {
        match number {
            Some(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.wrong(node, field, &format!("a number from {least} to {most}"));
                None
            }
        }
    }

    fn wrong(&mut self, node: &Node, field: &str, expected: &str) {
        self.mistake(node.at, field, format!("expected {expected}, found {}", node.kind()), None);
    }
}

/// A mapping whose keys have been checked.
pub struct Fields<'d> {
    entries: &'d [Entry],
    pub at: Position,
    field: String,
}

impl<'d> Fields<'d> {
    /// The value and its full path; a key without a value counts as absent.
    pub fn get(&self, key: &str) -> Option<(&'d Node, String)> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (!entry.node.is_null()).then(|| (&entry.node, join(&self.field, key)))
    }

    pub fn entries(&self) -> &'d [Entry] {
        self.entries
    }

    pub fn path(&self, key: &str) -> String {
        join(&self.field, key)
    }
}

/// Milliseconds of a span such as `250ms`, `90s`, `15m`, `2h`, `7d`.
pub fn duration_ms(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms)
}

/// The shortest span text for `ms`, readable by [`duration_ms`].
pub fn duration_text(ms: u64) -> String {
    for (unit, unit_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms >= unit_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

/// The candidate a person probably meant: at most a third of the letters differ.
pub fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance over at most 64 letters.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

fn join(field: &str, key: &str) -> String {
    if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(source: &str) -> Vec<String> {
        let mut mistakes = Vec::new();
        Document::parse(&mut mistakes, "f", source);
        mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn duplicate_keys_are_named_with_both_lines() {
        assert_eq!(
            mistakes("a: 1\nb: 2\na: 3\n"),
            ["f:3:1: a: this key is here twice (the first one is on line 1)"]
        );
    }

    #[test]
    fn broken_yaml_aliases_tags_and_second_documents_are_refused() {
        assert!(mistakes("a: [1, 2\nb: 3").iter().any(|m| m.contains("not YAML")));
        assert!(mistakes("a: &x 1\nb: *x").iter().any(|m| m.contains("aliases")));
        assert!(mistakes("a: !thing 1").iter().any(|m| m.contains("tags")));
        assert!(mistakes("a: 1\n---\nb: 2").iter().any(|m| m.contains("second document")));
        assert!(mistakes("").iter().any(|m| m.contains("empty")));
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let deep = "[".repeat(DOCUMENT_DEPTH_MAX + 2) + &"]".repeat(DOCUMENT_DEPTH_MAX + 2);
        assert_eq!(mistakes(&deep).len(), 1);
        assert!(mistakes(&"#".repeat(DOCUMENT_BYTES_MAX + 1))[0].contains("exceeds"));
        assert!(mistakes(&format!("[{}]", "1,".repeat(DOCUMENT_NODES_MAX + 1)))[0].contains("values"));
    }

    #[test]
    fn an_offset_in_any_kind_of_scalar_is_found_in_the_file() {
        for source in [
            "when: aa && WRONG\n",
            "when: \"aa && WRONG\"\n",
            "when: 'aa && WRONG'\n",
            "when: |\n  aa &&\n    WRONG\n",
            "when: >-\n  aa\n  &&\n  WRONG\n",
            "when: \"\\\"aa\\\" && WRONG\"\n",
        ] {
            let mut none = Vec::new();
            let document = Document::parse(&mut none, "f", source).unwrap();
            let node = document.root.get("when").unwrap();
            let Value::Scalar { text, .. } = &node.value else { panic!("scalar") };
            let expected = position_of(source, source.find("WRONG").unwrap());
            assert_eq!(document.locate(node, text.find("WRONG").unwrap()), expected, "{source}");
        }
    }

    #[test]
    fn durations_read_back_as_written() {
        for text in ["250ms", "90s", "15m", "2h", "7d"] {
            assert_eq!(duration_text(duration_ms(text).unwrap()), text);
        }
        assert_eq!(duration_ms("5"), None);
        assert_eq!(duration_ms("-5s"), None);
        assert_eq!(duration_ms("99999999999999999999d"), None);
    }
}
