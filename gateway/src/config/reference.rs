//! `${env:NAME}` and `${file:/path}`: what stands in a setting in place of a secret.
//!
//! Settings keep the reference, so that printing them tells no secret; it is followed where the
//! secret is used. Errors name the variable or file, never what is in it.

use std::borrow::Cow;
use std::io::Read;

/// Longest secret, in bytes: a private key fits, somebody else's log file does not.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    #[error("{0} is neither ${{env:NAME}} nor ${{file:/path}}")]
    Malformed(String),
    #[error("the variable {0:?} is not set")]
    Variable(String),
    #[error("{path}: {error}")]
    File { path: String, error: std::io::Error },
    #[error("{0} is empty")]
    Empty(String),
    #[error("{0} is longer than {SECRET_BYTES_MAX} bytes")]
    TooLong(String),
}

/// Whether a setting's value points at a secret instead of being one.
pub fn is_reference(text: &str) -> bool {
    text.starts_with("${")
}

/// The variable a reference names.
pub(super) fn variable(text: &str) -> Option<&str> {
    text.strip_prefix("${env:")?.strip_suffix('}')
}

/// What the reference stands for, in this process's environment; other text is itself.
pub fn resolve(text: &str) -> Result<Cow<'_, str>, ReferenceError> {
    resolve_in(text, &|name| std::env::var(name).ok())
}

/// The same with the variables given.
pub(super) fn resolve_in<'t>(
    text: &'t str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Cow<'t, str>, ReferenceError> {
    if !is_reference(text) {
        return Ok(Cow::Borrowed(text));
    }
    let inner = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    match inner.and_then(|inner| inner.split_once(':')) {
        Some(("env", name)) if !name.is_empty() => match variable(name).filter(|value| !value.is_empty()) {
            Some(value) => Ok(Cow::Owned(value)),
            None => Err(ReferenceError::Variable(name.to_owned())),
        },
        Some(("file", path)) if !path.is_empty() => file(path).map(Cow::Owned),
        _ => Err(ReferenceError::Malformed(text.chars().take(64).collect())),
    }
}

/// The file's text without the line's end that editors add.
fn file(path: &str) -> Result<String, ReferenceError> {
    let failed = |error| ReferenceError::File { path: path.to_owned(), error };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(failed)?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(ReferenceError::TooLong(path.to_owned()));
    }
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() { Err(ReferenceError::Empty(path.to_owned())) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides, show};

    #[test]
    fn a_reference_is_checked_with_its_place_and_shown_as_it_is_written() {
        let load = |yaml: &str| {
            let variable = ("DATABASE".to_owned(), "postgres://me:hunter2@p/db".to_owned());
            let overrides = Overrides { environment: vec![variable], options: Vec::new() };
            Config::from_text("f", Some(&format!("upstream: http://app:1\n{yaml}")), &overrides)
        };
        let told = |yaml: &str| load(yaml).map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            told("store:\n  postgres: ${env:NO_SUCH}\n"),
            "f:3:3: store.postgres: the variable \"NO_SUCH\" is not set"
        );
        let webhook = told("alerts:\n  webhook:\n    url: https://soc.example\n    secret: hunter2\n");
        assert!(webhook.starts_with("f:5:5: alerts.webhook.secret: names where the secret is"), "{webhook}");
        assert!(!webhook.contains("hunter2"), "{webhook}");
        let config = load("store:\n  postgres: ${env:DATABASE}\n").unwrap();
        let shown = show(&config);
        assert!(shown.contains("${env:DATABASE}") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn references_are_followed_and_other_text_is_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let path = path.to_str().unwrap();
        std::fs::write(path, "hunter2\n").unwrap();
        std::fs::write(folder.path().join("empty"), "\n").unwrap();
        std::fs::write(folder.path().join("long"), "x".repeat(70_000)).unwrap();
        let variable = |name: &str| match name {
            "SECRET" => Some("from the environment".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let check = |text: &str, expected: &str| {
            let told = match resolve_in(text, &variable) {
                Ok(value) => value.into_owned(),
                Err(error) => format!("! {error}").replace(folder.path().to_str().unwrap(), "F"),
            };
            assert_eq!(told, expected, "{text}");
        };
        check("redis://r:1", "redis://r:1");
        check("", "");
        check("${env:SECRET}", "from the environment");
        check(&format!("${{file:{path}}}"), "hunter2");
        check("${env:MISSING}", "! the variable \"MISSING\" is not set");
        check("${env:EMPTY}", "! the variable \"EMPTY\" is not set");
        check(&format!("${{file:{path}x}}"), "! F/secretx: No such file or directory (os error 2)");
        check(&format!("${{file:{}/empty}}", folder.path().display()), "! F/empty is empty");
        check(&format!("${{file:{}/long}}", folder.path().display()), "! F/long is longer than 65536 bytes");
        for wrong in ["${env:}", "${vault:x}", "${env:A", "${}"] {
            check(wrong, &format!("! {wrong} is neither ${{env:NAME}} nor ${{file:/path}}"));
        }
    }
}
