//! An operator's page: text with places such as `{{incident}}` for values, which are escaped.

use gaitway_policies::report::escape;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest template, in bytes; pictures may be embedded.
const TEMPLATE_BYTES_MAX: u64 = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("{0}")]
    Read(#[from] std::io::Error),
    #[error("more than {TEMPLATE_BYTES_MAX} bytes")]
    TooLong,
    #[error("line {line}: {{{{ without }}}}")]
    Unclosed { line: usize },
    #[error("line {line}: {{{{{name}}}}} is none of {known}")]
    Unknown { line: usize, name: String, known: String },
    #[error("{{{{{0}}}}} is missing")]
    Missing(&'static str),
}

/// Text and the place after each piece of it.
pub struct Template(Vec<(String, Option<&'static str>)>);

impl Template {
    pub fn read(
        path: &Path,
        known: &[&'static str],
        needed: &[&'static str],
    ) -> Result<Template, TemplateError> {
        let mut text = String::new();
        File::open(path)?.take(TEMPLATE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLong);
        }
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let line = 1 + text[..text.len() - after.len()].matches('\n').count();
            let (name, after) = after.split_once("}}").ok_or(TemplateError::Unclosed { line })?;
            let name = name.trim();
            let place = known.iter().find(|known| **known == name).ok_or_else(|| TemplateError::Unknown {
                line,
                name: name.to_owned(),
                known: known.iter().map(|known| format!("{{{{{known}}}}}")).collect::<Vec<_>>().join(", "),
            })?;
            pieces.push((before.to_owned(), Some(*place)));
            rest = after;
        }
        pieces.push((rest.to_owned(), None));
        match needed.iter().find(|needed| !pieces.iter().any(|(_, place)| place == &Some(**needed))) {
            Some(missing) => Err(TemplateError::Missing(missing)),
            None => Ok(Template(pieces)),
        }
    }

    pub fn fill(&self, values: &[(&str, &str)]) -> String {
        let mut page = String::new();
        for (text, place) in &self.0 {
            page.push_str(text);
            let value = place.and_then(|place| values.iter().find(|(name, _)| *name == place));
            page.push_str(&value.map_or_else(String::new, |(_, value)| escape(value)));
        }
        page
    }
}
