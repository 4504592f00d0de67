//! The table of settings on paper: effective values, the sample file, the reference page.
//!
//! Must not know: any particular setting.

use super::Config;
use super::load::{OTHER_VARIABLES, root};
use super::settings::{Field, Kind, variable_name, walk};
use serde_json::Value;

/// Comments in the sample file are broken at this column.
const WIDTH: usize = 100;

/// The effective settings as YAML, passwords in addresses masked.
pub fn show(config: &Config) -> String {
    let mut out = String::new();
    let values = serde_json::to_value(config).unwrap_or_default();
    show_section(&mut out, root().0, &values, 0);
    out
}

fn show_section(out: &mut String, fields: &'static [Field], values: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    for field in fields {
        let value = &values[field.name];
        match field.kind.section() {
            Some((inner, _)) if !value.is_null() => {
                *out += &format!("{indent}{}:\n", field.name);
                show_section(out, inner, value, depth + 1);
            }
            _ => *out += &format!("{indent}{}: {}\n", field.name, yaml(&masked(value))),
        }
    }
}

/// The sample file: every setting with its comment, at its default and commented out.
pub fn example() -> String {
    let mut out = String::from(
        "# Gaitway's settings, all of them. Printed by `gaitway config example`; checked with\n\
         # `gaitway config check FILE`. A line such as `#listen: …` shows a setting at its default, or an\n\
         # example where there is none; remove the # to change it. Every setting also has a variable, such\n\
         # as GAITWAY_LIMITS_CONNECTIONS_MAX, which wins over this file; paths are relative to the working\n\
         # directory. Only `upstream` has to be given.\n",
    );
    let (fields, default) = root();
    example_section(&mut out, fields, &default(), 0, "");
    out
}

fn example_section(out: &mut String, fields: &'static [Field], defaults: &Value, depth: usize, path: &str) {
    let indent = "  ".repeat(depth);
    for field in fields {
        let here = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        out.push('\n');
        comment(out, &indent, &field.text());
        if let Some((inner, default)) = field.kind.section() {
            *out += &format!("{indent}{}:\n", field.name);
            example_section(out, inner, &default(), depth + 1, &here);
            continue;
        }
        // Entries of many settings are told one by one.
        if let (Some((inner, default)), None) = (field.kind.entries(), field.example()) {
            let mut entry = String::new();
            example_section(&mut entry, inner, &default(), depth + 2, &here);
            *out += &format!("{indent}#{}:\n{}", field.name, as_entry(&entry, depth + 1));
            continue;
        }
        let value = match field.example() {
            Some(example) => example,
            None => placeholder(&defaults[field.name], &field.kind),
        };
        // The one setting without a default is the one line that is not commented out.
        let mark = if here == "upstream" { "" } else { "#" };
        *out += &format!("{indent}{mark}{}: {value}\n", field.name);
    }
}

/// A section printed one level too deep, as an entry of a list: its first setting gets the dash.
fn as_entry(section: &str, depth: usize) -> String {
    let deep = format!("{}#", "  ".repeat(depth + 1));
    let is_setting = |line: &&str| line.strip_prefix(&deep).is_some_and(|rest| !rest.starts_with(' '));
    let Some(first) = section.lines().find(is_setting) else { return section.to_owned() };
    section.replacen(first, &format!("{}#- {}", "  ".repeat(depth), &first[deep.len()..]), 1)
}

fn placeholder(default: &Value, kind: &Kind) -> String {
    if !default.is_null() {
        return yaml(default);
    }
    match kind {
        Kind::Optional(inner) => placeholder(default, inner),
        Kind::Flag => "false".into(),
        Kind::Whole { .. } | Kind::Number => "1".into(),
        Kind::Choice(words) => words.first().copied().unwrap_or_default().into(),
        Kind::List(_) => "[]".into(),
        Kind::Text { .. } | Kind::Section { .. } => "…".into(),
    }
}

fn comment(out: &mut String, indent: &str, text: &str) {
    let mut line = format!("{indent}#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            *out += &line;
            out.push('\n');
            line = format!("{indent}#");
        }
        line.push(' ');
        line += word;
    }
    *out += &line;
    out.push('\n');
}

/// docs/configuration.md.
pub fn reference() -> String {
    let mut out = String::from(
        "<!-- Printed by `gaitway config reference`; a test keeps it current. Change the comments in \
         gateway/src/config.rs instead. -->\n\
         # Configuration\n\n\
         Gaitway needs one setting: the address of the app behind it.\n\n\
         ```sh\n\
         gaitway run --upstream http://127.0.0.1:8080\n\
         ```\n\n\
         Everything else has a default. Settings come from a YAML file (`--config FILE`), are overridden by \
         the variables named below, and those by the options of `gaitway run`. In variables, lists are \
         comma-separated, and an empty value means \"absent\". A variable that begins with `GAITWAY_` and names no \
         setting is an error, so that a slip of the pen cannot pass unseen. Paths are relative to the working \
         directory.\n\n\
         ```sh\n\
         gaitway config example > gaitway.yaml   # every setting, commented\n\
         gaitway config check gaitway.yaml       # every mistake at once: file, line, column, setting\n\
         gaitway config show --config gaitway.yaml   # what is in force, passwords masked\n\
         ```\n",
    );
    let (fields, default) = root();
    out += "\n## General\n\n";
    table(&mut out, fields, &default(), "");
    walk(fields, &mut |path, field| {
        if let Some((inner, default)) = field.kind.section() {
            out += &format!("\n## `{path}`\n\n{}\n\n", field.text());
            table(&mut out, inner, &default(), path);
        } else if let Some((inner, default)) = field.kind.entries() {
            out += &format!("\n## `{path}`, each entry\n\n{}\n\n", field.text());
            entry_table(&mut out, inner, &default());
        }
    });
    out += "\n## Other variables\n\n| variable | meaning |\n|---|---|\n";
    for (name, meaning) in OTHER_VARIABLES {
        out += &format!("| `{name}` | {} |\n", sentence(meaning));
    }
    out
}

fn table(out: &mut String, fields: &'static [Field], defaults: &Value, path: &str) {
    *out += "| setting, variable | default | meaning |\n|---|---|---|\n";
    for field in fields.iter().filter(|field| field.kind.section().is_none()) {
        let here = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        let (default, meaning) = columns(field, defaults);
        *out += &format!("| `{here}`<br>`{}` | {default} | {meaning} |\n", variable_name(&here));
    }
}

/// Settings of one entry of a list, which have no variables.
fn entry_table(out: &mut String, fields: &'static [Field], defaults: &Value) {
    *out += "| setting | default | meaning |\n|---|---|---|\n";
    for field in fields {
        let (default, meaning) = columns(field, defaults);
        *out += &format!("| `{}` | {default} | {meaning} |\n", field.name);
    }
}

/// Default and meaning.
fn columns(field: &Field, defaults: &Value) -> (String, String) {
    let default = match &defaults[field.name] {
        Value::Null => "–".to_owned(),
        Value::String(text) if text.is_empty() => "–".to_owned(),
        value => format!("`{}`", yaml(value)),
    };
    let mut meaning = sentence(&field.text());
    if let Kind::Choice(words) = field.kind {
        meaning += &format!(" One of `{}`.", words.join("`, `"));
    }
    if let Some(example) = field.example() {
        meaning += &format!(" Example: `{example}`.");
    }
    (default, meaning.replace('|', "\\|"))
}

fn sentence(text: &str) -> String {
    let mut text = text.to_owned();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

/// A scalar or a list as YAML on one line.
fn yaml(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if is_plain(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(yaml).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// Whether text may stand in YAML without quotation marks. Stricter than YAML itself.
fn is_plain(text: &str) -> bool {
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "~"];
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_' || c.is_ascii_digit())
        && text.parse::<f64>().is_err()
        && !reserved.contains(&text.to_lowercase().as_str())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-:@=+".contains(&b))
        && !text.ends_with(':')
}

/// The value with passwords in addresses replaced.
fn masked(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(mask_address(text)),
        Value::Array(list) => list.iter().map(masked).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), masked(value))).collect(),
        other => other.clone(),
    }
}

/// `scheme://user:secret@host/?password=secret` without the secrets.
fn mask_address(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let authority = match authority.rsplit_once('@') {
        Some((login, host)) => match login.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => format!("{login}@{host}"),
        },
        None => authority.to_owned(),
    };
    let tail = match tail.split_once('?') {
        Some((path, query)) => {
            let pairs = query.split('&').map(|pair| match pair.split_once('=') {
                Some((name, _)) => format!("{name}=***"),
                None => pair.to_owned(),
            });
            format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
        }
        None => tail.to_owned(),
    };
    format!("{scheme}://{authority}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use expect_test::expect_file;

    #[test]
    fn the_sample_file_is_current_and_passes_the_check() {
        expect_file!["../../../deploy/gaitway.yaml"].assert_eq(&example());
        Config::from_text("gaitway.yaml", Some(&example()), &Overrides::default()).unwrap();
    }

    #[test]
    fn the_reference_page_is_current() {
        expect_file!["../../../docs/configuration.md"].assert_eq(&reference());
    }

    #[test]
    fn the_sample_file_with_every_comment_removed_names_real_settings_of_the_right_kind() {
        let mut full = String::new();
        for line in example().lines() {
            let bare = line.trim_start();
            match bare.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => {
                    full += &format!("{}{rest}\n", &line[..line.len() - bare.len()]);
                }
                Some(_) => {}
                None => full += &format!("{line}\n"),
            }
        }
        let errors = Config::from_text("full.yaml", Some(&full), &Overrides::default()).unwrap_err();
        // With everything set at once, files are missing and alternatives collide; nothing else may be wrong.
        for error in &errors.0 {
            let about_the_world =
                ["os error", "exactly one of", "one is enough", "belong together", "not set"];
            let collision = ["makes no sense", "HS…"];
            let text = error.to_string();
            assert!(about_the_world.iter().chain(&collision).any(|part| text.contains(part)), "{text}");
        }
        let mut settings = 0;
        walk(root().0, &mut |_, field| {
            settings += match field.kind.entries() {
                Some((fields, _)) if field.example().is_none() => fields.len(),
                _ => usize::from(field.kind.section().is_none()),
            };
        });
        let lines = full.lines().filter(|line| line.trim_end().contains(": ")).count();
        assert_eq!(lines, settings, "one line a setting");
    }

    #[test]
    fn what_is_shown_can_be_read_back_and_holds_no_password() {
        let yaml = "upstream: http://app:1\nrevocation:\n  redis: redis://:hunter2@r:1/0\n\
                    store:\n  postgres: postgres://me:hunter2@p/db?password=hunter2\n\
                    identity:\n  cookie_name: 'null'\n";
        let config = Config::from_text("f", Some(yaml), &Overrides::default()).unwrap();
        let shown = show(&config);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(
            shown.contains("redis://:***@r:1/0") && shown.contains("postgres://me:***@p/db?password=***")
        );
        let again = Config::from_text("f", Some(&shown), &Overrides::default()).unwrap();
        assert_eq!(show(&again), shown);
    }
}
