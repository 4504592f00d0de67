//! The two pages a person may be shown: the logout page and the challenge.
//!
//! Plain HTML with one constant style sheet and no script, so they work everywhere and their
//! Content-Security-Policy can forbid everything else.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gaitway_policies::report::escape;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const STYLE: &str = include_str!("pages.css");

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
});

/// The policy both pages are served with.
pub fn content_security_policy() -> &'static str {
    &POLICY
}

/// What happened, the number to quote, whom to ask, and the way back in.
pub fn logout(incident: Option<&str>, help: Option<&str>) -> String {
    let number = incident.map_or_else(String::new, |incident| {
        format!("<dl><dt>Incident number</dt><dd><code>{}</code></dd></dl>", escape(incident))
    });
    let help = help.map_or_else(|| "the people who run this site".to_owned(), escape);
    let undo = match incident {
        Some(_) => "Quote the incident number: they can undo this.",
        None => "They can undo this.",
    };
    page(
        "You have been logged out",
        &format!(
            "<p>Activity in your session did not look like yours, so the session was ended to protect your account. \
             Nothing else about your account was changed.</p>{number}\
             <p>If this was you, contact {help}. {undo}</p>\
             <p><a class=\"button\" href=\"/\">Log in again</a></p>"
        ),
    )
}

/// One button. `token` and `back` travel in the form.
pub fn challenge(action: &str, token: &str, back: &str) -> String {
    page(
        "Please confirm to go on",
        &format!(
            "<p>We noticed unusual activity in this session. Confirm that you are here, and you will be taken \
             to the page you asked for.</p>\
             <form method=\"post\" action=\"{}\"><input type=\"hidden\" name=\"token\" value=\"{}\">\
             <input type=\"hidden\" name=\"back\" value=\"{}\">\
             <button class=\"button\" type=\"submit\">I am here, go on</button></form>",
            escape(action),
            escape(token),
            escape(back)
        ),
    )
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"robots\" content=\"noindex\"><style>{STYLE}</style></head>\
         <body><main><h1>{title}</h1>{body}</main></body></html>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let hostile = "\"><script>alert(1)</script>'&";
        for page in [logout(Some(hostile), Some(hostile)), challenge(hostile, hostile, hostile)] {
            assert!(!page.contains("<script>"));
            assert!(page.contains("&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&#39;&amp;"));
        }
    }
}
