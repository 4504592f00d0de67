//! The pages a person may be shown: the logout page and the challenge, in the person's language or from
//! the operator's own templates, the request to wait and those of a login.
//!
//! Plain HTML with one constant style sheet and no script, so they work everywhere and their
//! Content-Security-Policy can forbid everything else.

mod template;
mod words;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gaitway_policies::report::escape;
use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use template::{Template, TemplateError};
use words::{LANGUAGES, Words};

/// Language ranges read of one Accept-Language header; people name two or three.
const RANGES_MAX: usize = 16;

const STYLE: &str = include_str!("pages.css");

/// The policy of the built-in pages.
static BUILT_IN_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
});

/// The policy of an operator's template: its own styles, pictures and fonts, but nothing fetched, for
/// the app refuses whoever sees this page.
const OWN_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; \
                          form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Where a template's values stand.
const LOGOUT_PLACES: [&str; 2] = ["incident", "help"];
const CHALLENGE_PLACES: [&str; 3] = ["action", "token", "back"];

#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {error}")]
    Template { path: PathBuf, error: TemplateError },
    #[error("{0} holds neither logout.html nor challenge.html")]
    Empty(PathBuf),
    #[error("{0} has translations but no {1}.html to show when none of them fits")]
    NoFallback(PathBuf, &'static str),
}

/// A page, ready to be sent.
pub struct Page {
    pub html: String,
    /// Language tag, where it is known.
    pub language: Option<String>,
    pub policy: Cow<'static, str>,
}

/// Everything the pages are made of.
#[derive(Default)]
pub struct Pages {
    help: Option<String>,
    logout: Own,
    challenge: Own,
}

/// Templates of one page by language tag; "" is the fallback.
type Own = BTreeMap<String, Template>;

impl Pages {
    /// `help` says whom to ask; `folder` holds `logout.html`, `challenge.html` and translations such as
    /// `logout.de.html`. A page without a template is the built-in one.
    ///
    /// # Errors
    /// A file that cannot be read, is too long, or whose places are unknown, unclosed or missing.
    pub fn load(help: Option<String>, folder: Option<&Path>) -> Result<Pages, PagesError> {
        let Some(folder) = folder else { return Ok(Pages { help, ..Pages::default() }) };
        let logout = own(folder, "logout", &LOGOUT_PLACES, &["incident"])?;
        let challenge = own(folder, "challenge", &CHALLENGE_PLACES, &CHALLENGE_PLACES)?;
        if logout.is_empty() && challenge.is_empty() {
            return Err(PagesError::Empty(folder.into()));
        }
        Ok(Pages { help, logout, challenge })
    }

    /// What happened, the number to quote, whom to ask, and the way back in.
    pub fn logout(&self, headers: &HeaderMap, incident: Option<&str>) -> Page {
        let places =
            [("incident", incident.unwrap_or_default()), ("help", self.help.as_deref().unwrap_or_default())];
        render(&self.logout, headers, &places, |words| {
            let number = incident.map_or_else(String::new, |incident| {
                format!(
                    "<dl><dt>{}</dt><dd><code>{}</code></dd></dl>",
                    words.incident_number,
                    escape(incident)
                )
            });
            let help = self.help.as_deref().map_or_else(|| words.site_people.to_owned(), escape);
            let undo = if incident.is_some() { words.undo_with_number } else { words.undo };
            let body = format!(
                "<p>{}</p>{number}<p>{} {undo}</p><p><a class=\"button\" href=\"/\">{}</a></p>",
                words.logout_why,
                words.logout_contact.replace("{help}", &help),
                words.log_in_again
            );
            (words.logout_title, body)
        })
    }

    /// One button. `token` and `back` travel in the form.
    pub fn challenge(&self, headers: &HeaderMap, action: &str, token: &str, back: &str) -> Page {
        let places = [("action", action), ("token", token), ("back", back)];
        render(&self.challenge, headers, &places, |words| {
            let body = format!(
                "<p>{}</p><form method=\"post\" action=\"{}\"><input type=\"hidden\" name=\"token\" value=\"{}\">\
                 <input type=\"hidden\" name=\"back\" value=\"{}\"><button class=\"button\" type=\"submit\">{}</button></form>",
                words.challenge_why,
                escape(action),
                escape(token),
                escape(back),
                words.challenge_button
            );
            (words.challenge_title, body)
        })
    }

    /// Nothing to press: the browser's own reload is the way on.
    pub fn slow_down(&self, headers: &HeaderMap, seconds: u32) -> Page {
        render(&Own::new(), headers, &[], |words| {
            let wait = match seconds {
                0..=119 => words.wait_seconds.replace("{n}", &seconds.max(2).to_string()),
                _ => words.wait_minutes.replace("{n}", &seconds.div_ceil(60).to_string()),
            };
            (words.slow_down_title, format!("<p>{}</p><p>{wait}</p>", words.slow_down_why))
        })
    }

    /// Asks before it logs anybody out. `provider`: the origin that the form may lead to.
    pub fn log_out(&self, headers: &HeaderMap, action: &str, provider: Option<&str>) -> Page {
        let mut page = render(&Own::new(), headers, &[], |words| {
            let body = format!(
                "<form method=\"post\" action=\"{}\"><button class=\"button\" type=\"submit\">{}</button></form>",
                escape(action),
                words.log_out
            );
            (words.log_out_title, body)
        });
        if let Some(provider) = provider {
            // Browsers hold the redirect that answers a form to the form's policy.
            page.policy =
                page.policy.replace("form-action 'self'", &format!("form-action 'self' {provider}")).into();
        }
        page
    }

    /// After a logout that the person, or the provider, wanted.
    pub fn logged_out(&self, headers: &HeaderMap) -> Page {
        render(&Own::new(), headers, &[], |words| (words.logout_title, link("/", words.log_in_again)))
    }

    /// In place of a form that was sent without a login.
    pub fn login_needed(&self, headers: &HeaderMap, login: &str) -> Page {
        render(&Own::new(), headers, &[], |words| {
            (words.login_title, format!("<p>{}</p>{}", words.login_why, link(login, words.log_in_again)))
        })
    }

    pub fn login_failed(&self, headers: &HeaderMap, again: &str) -> Page {
        render(&Own::new(), headers, &[], |words| {
            let text = format!("<p>{}</p>{}", words.login_failed_why, link(again, words.log_in_again));
            (words.login_failed_title, text)
        })
    }
}

fn link(address: &str, text: &str) -> String {
    format!("<p><a class=\"button\" href=\"{}\">{text}</a></p>", escape(address))
}

/// The own template in the best language, or the built-in page.
fn render(
    own: &Own,
    headers: &HeaderMap,
    places: &[(&str, &str)],
    built_in: impl Fn(&'static Words) -> (&'static str, String),
) -> Page {
    if !own.is_empty() {
        let tag = best(headers, |tag| own.contains_key(tag)).unwrap_or_default();
        let html = own.get(&tag).map(|template| template.fill(places)).unwrap_or_default();
        return Page { html, language: (!tag.is_empty()).then_some(tag), policy: OWN_POLICY.into() };
    }
    let known = |tag: &str| LANGUAGES.iter().find(|words| words.tag == tag);
    let words =
        best(headers, |tag| known(tag).is_some()).and_then(|tag| known(&tag)).unwrap_or(&LANGUAGES[0]);
    let (title, body) = built_in(words);
    let html = format!(
        "<!doctype html><html lang=\"{}\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"robots\" content=\"noindex\"><style>{STYLE}</style></head>\
         <body><main><h1>{title}</h1>{body}</main></body></html>",
        words.tag
    );
    Page { html, language: Some(words.tag.to_owned()), policy: BUILT_IN_POLICY.as_str().into() }
}

/// The first language of Accept-Language, by weight, that there is: as named, or its language without
/// the region (RFC 4647, lookup). Tags are lower case.
fn best(headers: &HeaderMap, is_there: impl Fn(&str) -> bool) -> Option<String> {
    let header = headers.get(header::ACCEPT_LANGUAGE)?.to_str().ok()?;
    let mut ranges: Vec<(f32, String)> = header
        .split(',')
        .take(RANGES_MAX)
        .filter_map(|range| {
            let (tag, weight) =
                range.split_once(';').map_or((range, None), |(tag, weight)| (tag, Some(weight)));
            let weight = match weight.map(|weight| weight.trim().strip_prefix("q=")) {
                None => 1.0,
                Some(weight) => weight?.parse().ok().filter(|weight: &f32| (0.0..=1.0).contains(weight))?,
            };
            (weight > 0.0).then(|| (weight, tag.trim().to_ascii_lowercase()))
        })
        .collect();
    ranges.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranges.into_iter().find_map(|(_, tag)| {
        let mut tag = tag.as_str();
        loop {
            if !tag.is_empty() && is_there(tag) {
                return Some(tag.to_owned());
            }
            tag = tag.rsplit_once('-')?.0;
        }
    })
}

/// The templates of one page in a folder: `NAME.html` and `NAME.TAG.html`.
fn own(
    folder: &Path,
    name: &'static str,
    known: &[&'static str],
    needed: &[&'static str],
) -> Result<Own, PagesError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| PagesError::Read { path, source }
    };
    let mut own = Own::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable(folder))? {
        let path = entry.map_err(unreadable(folder))?.path();
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        let Some(middle) = file.strip_prefix(name).and_then(|rest| rest.strip_suffix("html")) else {
            continue;
        };
        let Some(tag) = middle.strip_prefix('.').map(|tag| tag.trim_end_matches('.').to_ascii_lowercase())
        else {
            continue;
        };
        let template = Template::read(&path, known, needed).map_err(|error| match error {
            TemplateError::Read(source) => PagesError::Read { path: path.clone(), source },
            error => PagesError::Template { path: path.clone(), error },
        })?;
        own.insert(tag, template);
    }
    if !own.is_empty() && !own.contains_key("") {
        return Err(PagesError::NoFallback(folder.into(), name));
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaks(accept: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT_LANGUAGE, accept.parse().unwrap())])
    }

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let hostile = "\"><script>alert(1)</script>'&";
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("logout.html"), "<p title=\"{{help}}\">{{incident}}").unwrap();
        std::fs::write(folder.path().join("challenge.html"), "{{action}}{{token}}{{back}}").unwrap();
        for folder in [None, Some(folder.path())] {
            let pages = Pages::load(Some(hostile.into()), folder).unwrap();
            let none = HeaderMap::new();
            for page in
                [pages.logout(&none, Some(hostile)), pages.challenge(&none, hostile, hostile, hostile)]
            {
                assert!(!page.html.contains("<script>"));
                assert!(page.html.contains("&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&#39;&amp;"));
            }
        }
    }

    #[test]
    fn a_page_speaks_the_first_language_it_shares_with_the_person() {
        let pages = Pages::default();
        let language = |accept: &str| pages.logout(&speaks(accept), None).language.unwrap();
        assert_eq!(language("de-CH, en;q=0.5"), "de");
        assert_eq!(language("tlh, es;q=0.2, fr;q=0.9"), "fr");
        assert_eq!(language("tlh"), "en");
        assert_eq!(language("de;q=0, es;q=nonsense"), "en");
        assert_eq!(language(&"x,".repeat(5_000)), "en");
        assert_eq!(pages.logout(&HeaderMap::new(), None).language.unwrap(), "en");
        assert!(pages.logout(&speaks("de"), Some("i_7")).html.contains("<html lang=\"de\">"));
    }

    #[test]
    fn a_wait_is_told_in_words_that_fit_its_length() {
        let told = |seconds: u32| Pages::default().slow_down(&HeaderMap::new(), seconds).html;
        assert!(told(0).contains("Wait 2 seconds") && told(119).contains("Wait 119 seconds"));
        assert!(told(120).contains("Wait 2 minutes") && told(3_601).contains("Wait 61 minutes"));
        assert!(Pages::default().slow_down(&speaks("de"), 7).html.contains("7 Sekunden"));
    }

    #[test]
    fn operators_bring_their_own_pages_in_their_own_languages() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("logout.html", "<h1>Ended</h1> {{incident}}, ask {{ help }}");
        write("logout.pt-BR.html", "<h1>Encerrada</h1> {{incident}}");
        let pages = Pages::load(Some("Ann".into()), Some(folder.path())).unwrap();
        let page = |accept: &str| pages.logout(&speaks(accept), Some("i_1"));
        assert_eq!(page("de").html, "<h1>Ended</h1> i_1, ask Ann");
        assert_eq!(page("de").language, None);
        assert_eq!(page("pt-BR").html, "<h1>Encerrada</h1> i_1");
        assert_eq!(page("pt-BR").language.as_deref(), Some("pt-br"));
        // The other page is still the built-in one.
        assert!(pages.challenge(&HeaderMap::new(), "/a", "t", "/").html.contains("I am here, go on"));
    }

    #[test]
    fn a_template_that_would_show_nonsense_is_refused_by_file_and_line() {
        let refused = |name: &str, text: &str| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(name), text).unwrap();
            let error = Pages::load(None, Some(folder.path())).map(|_| ()).unwrap_err().to_string();
            error.rsplit_once('/').map_or(error.clone(), |(_, tail)| tail.to_owned())
        };
        assert_eq!(
            refused("logout.html", "<p>\n{{incidnet}}"),
            "logout.html: line 2: {{incidnet}} is none of {{incident}}, {{help}}"
        );
        assert_eq!(refused("logout.html", "<p>"), "logout.html: {{incident}} is missing");
        assert_eq!(refused("challenge.html", "{{action}} {{token"), "challenge.html: line 1: {{ without }}");
        assert!(refused("logout.de.html", "{{incident}}").contains("no logout.html"));
        assert!(refused("notes.txt", "").ends_with("holds neither logout.html nor challenge.html"));
        assert!(refused("logout.html", &"x".repeat(300 * 1024)).contains("more than 262144 bytes"));
    }
}
