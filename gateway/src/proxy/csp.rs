//! Makes the collector run under a page's Content-Security-Policy, with the least widening that does.
//!
//! Reads and edits policy text only; it sends nothing and knows no HTML. Report-only policies and policies
//! in `<meta>` elements are not its business (docs/injection.md).
//!
//! Invariants: a policy that already suffices keeps its very bytes; nothing an app allowed is taken away;
//! `'unsafe-inline'` is never switched off by adding a nonce beside it.

use std::fmt::Write as _;

/// Where the page is, as its browser sees it, and what the collector needs there.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The Host header: name or address, and a port if it is not the scheme's own.
    pub host: &'a str,
    /// Path of the script.
    pub script: &'a str,
    /// Directory, with its final slash, that the collector connects to by fetch and WebSocket.
    pub endpoints: &'a str,
}

/// What has to be done so that the collector runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accommodation {
    /// Value for the tag's `nonce` attribute.
    pub nonce: Option<String>,
    /// The nonce is ours and new, so header and body only belong together once.
    pub is_nonce_fresh: bool,
    /// The headers' new values, in order; `None` if they stay as they are.
    pub headers: Option<Vec<String>>,
}

/// Why no edit would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The page is sandboxed without scripts or without its own origin.
    Sandboxed,
    /// The header is not text, or longer than any policy should be.
    Illegible,
}

/// Reads all `Content-Security-Policy` headers of a response. `fresh_nonce` is asked at most once, for 128
/// unpredictable bits in base64 of constant length.
pub fn accommodate(
    headers: &[&[u8]],
    page: Page<'_>,
    fresh_nonce: impl FnOnce() -> String,
) -> Result<Accommodation, Refusal> {
    if headers.is_empty() {
        return Ok(Accommodation::default());
    }
    if headers.iter().map(|header| header.len()).sum::<usize>() > POLICY_BYTES_MAX {
        return Err(Refusal::Illegible);
    }
    let mut policies = Vec::new();
    for (index, header) in headers.iter().enumerate() {
        let text =
            std::str::from_utf8(header).ok().filter(|text| text.is_ascii()).ok_or(Refusal::Illegible)?;
        policies.extend(text.split(',').map(|policy| Policy::parse(index, policy)));
    }
    if policies.iter().any(Policy::is_sandboxed) {
        return Err(Refusal::Sandboxed);
    }
    let origin = Origin::new(page);
    let (nonce, is_nonce_fresh) = allow_script(&mut policies, &origin, page, fresh_nonce);
    for policy in &mut policies {
        allow_connections(policy, &origin, page);
    }
    let is_edited = policies.iter().any(|policy| policy.is_edited);
    Ok(Accommodation { nonce, is_nonce_fresh, headers: is_edited.then(|| print(&policies, headers.len())) })
}

/// Lets the tag's script load, and says which nonce the tag needs for it.
fn allow_script(
    policies: &mut [Policy<'_>],
    origin: &Origin<'_>,
    page: Page<'_>,
    fresh_nonce: impl FnOnce() -> String,
) -> (Option<String>, bool) {
    let target = Target { scheme: page.scheme, path: page.script };
    let mut unmet: Vec<&mut Policy<'_>> =
        policies.iter_mut().filter(|policy| !policy.allows_script(origin, target)).collect();
    // A nonce that all of them name needs no edit at all.
    if let Some(nonce) = common_nonce(unmet.iter().map(|policy| &**policy)) {
        return (Some(nonce), false);
    }
    // Under 'strict-dynamic' addresses do not count, only nonces do.
    let is_strict = |policy: &Policy<'_>| policy.script_sources().is_some_and(is_strict_dynamic);
    let (nonce, is_fresh) = match common_nonce(unmet.iter().map(|policy| &**policy).filter(|p| is_strict(p)))
    {
        Some(nonce) => (Some(nonce), false),
        None if unmet.iter().any(|policy| is_strict(policy)) => (Some(fresh_nonce()), true),
        None => (None, false),
    };
    for policy in &mut unmet {
        let names_it = nonce.as_ref().is_some_and(|nonce| policy.nonces().contains(&nonce.as_str()));
        if names_it {
            continue;
        }
        match &nonce {
            Some(nonce) if is_strict(policy) => policy.allow(&SCRIPT, format!("'nonce-{nonce}'")),
            // A path rather than a nonce: it lets in this one script and nothing else, it is the same on every
            // response, and unlike a nonce it leaves 'unsafe-inline' in force.
            _ => policy.allow(&SCRIPT, origin.source(page.scheme, page.script)),
        }
    }
    (nonce, is_fresh)
}

/// Lets the collector fetch and open a WebSocket under its own path.
fn allow_connections(policy: &mut Policy<'_>, origin: &Origin<'_>, page: Page<'_>) {
    let socket = if page.scheme == "https" { "wss" } else { "ws" };
    let missing: Vec<String> = [page.scheme, socket]
        .into_iter()
        .filter(|scheme| {
            let target = Target { scheme, path: page.endpoints };
            policy.sources(&CONNECT).is_some_and(|sources| !origin.is_matched(sources, target))
        })
        .map(|scheme| origin.source(scheme, page.endpoints))
        .collect();
    let mut added: Vec<String> = Vec::new();
    for source in missing {
        // An origin that no source can spell is 'self' for both schemes.
        if !added.contains(&source) {
            policy.allow(&CONNECT, source.clone());
            added.push(source);
        }
    }
}

/// A nonce that every one of the policies names; `None` if there are no policies.
fn common_nonce<'p>(mut policies: impl Iterator<Item = &'p Policy<'p>> + Clone) -> Option<String> {
    let rest = policies.clone().skip(1);
    let first = policies.next()?;
    let is_common = |nonce: &&str| rest.clone().all(|policy| policy.nonces().contains(nonce));
    first.nonces().into_iter().find(is_common).map(str::to_owned)
}

/// A directive and those it falls back to, best first. The second is the one to create when only
/// `default-src` is there.
struct Chain {
    names: &'static [&'static str],
    created: &'static str,
}

const SCRIPT: Chain =
    Chain { names: &["script-src-elem", "script-src", "default-src"], created: "script-src" };
const CONNECT: Chain = Chain { names: &["connect-src", "default-src"], created: "connect-src" };

struct Policy<'a> {
    /// Which header it came in.
    header: usize,
    text: &'a str,
    directives: Vec<Directive<'a>>,
    is_edited: bool,
}

struct Directive<'a> {
    name: String,
    /// Name and value as they were.
    text: &'a str,
    value: String,
    is_edited: bool,
}

impl<'a> Policy<'a> {
    fn parse(header: usize, text: &'a str) -> Policy<'a> {
        let mut directives: Vec<Directive<'a>> = Vec::new();
        for text in text.split(';').map(str::trim_ascii).filter(|text| !text.is_empty()) {
            let (name, value) = text.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((text, ""));
            let name = name.to_ascii_lowercase();
            // A repeated directive counts for nothing, by the standard; it only stays in the text.
            let is_first = directives.iter().all(|directive| directive.name != name);
            let name = if is_first { name } else { String::new() };
            directives.push(Directive { name, text, value: value.to_owned(), is_edited: false });
        }
        Policy { header, text, directives, is_edited: false }
    }

    fn directive(&self, name: &str) -> Option<&Directive<'a>> {
        self.directives.iter().find(|directive| directive.name == name)
    }

    fn is_sandboxed(&self) -> bool {
        self.directive("sandbox").is_some_and(|directive| {
            let has =
                |flag: &str| directive.value.split_ascii_whitespace().any(|f| f.eq_ignore_ascii_case(flag));
            // Without its own origin the page's telemetry would come from nowhere and be refused.
            !has("allow-scripts") || !has("allow-same-origin")
        })
    }

    /// The source list in force; `None` if nothing is restricted.
    fn sources(&self, chain: &Chain) -> Option<&str> {
        chain.names.iter().find_map(|name| self.directive(name)).map(|directive| directive.value.as_str())
    }

    fn script_sources(&self) -> Option<&str> {
        self.sources(&SCRIPT)
    }

    fn allows_script(&self, origin: &Origin<'_>, target: Target<'_>) -> bool {
        self.script_sources()
            .is_none_or(|sources| !is_strict_dynamic(sources) && origin.is_matched(sources, target))
    }

    /// Nonces in force for scripts that can stand in an attribute as they are.
    fn nonces(&self) -> Vec<&str> {
        let sources = self.script_sources().unwrap_or_default().split_ascii_whitespace();
        sources
            .filter_map(|source| {
                let source = source.strip_prefix('\'')?.strip_suffix('\'')?;
                let (keyword, nonce) = source.split_at_checked("nonce-".len())?;
                let is_base64 = |c: u8| c.is_ascii_alphanumeric() || b"+/-_=".contains(&c);
                let is_usable =
                    !nonce.is_empty() && nonce.len() <= NONCE_BYTES_MAX && nonce.bytes().all(is_base64);
                (keyword.eq_ignore_ascii_case("nonce-") && is_usable).then_some(nonce)
            })
            .collect()
    }

    /// Adds a source to the directive in force. `default-src` is left alone: its list is copied into a
    /// directive of its own first.
    fn allow(&mut self, chain: &Chain, source: String) {
        let Some(name) = chain.names.iter().find(|name| self.directive(name).is_some()) else { return };
        self.is_edited = true;
        let value = self.directive(name).map(|directive| without_none(&directive.value)).unwrap_or_default();
        let value = if value.is_empty() { source } else { format!("{value} {source}") };
        if *name == "default-src" {
            let name = chain.created.to_owned();
            self.directives.push(Directive { name, text: "", value, is_edited: true });
        } else if let Some(directive) = self.directives.iter_mut().find(|directive| directive.name == *name) {
            directive.value = value;
            directive.is_edited = true;
        }
    }
}

fn print(policies: &[Policy<'_>], headers: usize) -> Vec<String> {
    let mut printed = vec![String::new(); headers];
    let mut is_first = vec![true; headers];
    for policy in policies {
        let header = &mut printed[policy.header];
        if !std::mem::replace(&mut is_first[policy.header], false) {
            header.push_str(if policy.is_edited { ", " } else { "," });
        }
        if !policy.is_edited {
            header.push_str(policy.text);
            continue;
        }
        for (index, directive) in policy.directives.iter().enumerate() {
            header.push_str(if index == 0 { "" } else { "; " });
            if directive.is_edited {
                let _ = write!(header, "{} {}", directive.name, directive.value);
            } else {
                header.push_str(directive.text);
            }
        }
    }
    printed
}

/// `'none'` means nothing beside another source; browsers warn about it.
fn without_none(sources: &str) -> String {
    let kept: Vec<&str> =
        sources.split_ascii_whitespace().filter(|source| !source.eq_ignore_ascii_case("'none'")).collect();
    kept.join(" ")
}

fn is_strict_dynamic(sources: &str) -> bool {
    sources.split_ascii_whitespace().any(|source| source.eq_ignore_ascii_case("'strict-dynamic'"))
}

/// An address the collector needs; its host and port are the page's.
#[derive(Clone, Copy)]
struct Target<'a> {
    scheme: &'a str,
    path: &'a str,
}

/// The page's origin, taken apart for matching.
struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<&'a str>,
    /// Whether a source expression can spell this host: names can, addresses cannot.
    is_name: bool,
}

impl<'a> Origin<'a> {
    fn new(page: Page<'a>) -> Origin<'a> {
        let (host, port) = match page.host.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
            _ => (page.host, None),
        };
        let is_port = port.is_none_or(|port| !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit()));
        let is_label = |label: &str| {
            !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
        };
        let last_label = host.rsplit('.').next().unwrap_or_default();
        let is_address = last_label.bytes().all(|c| c.is_ascii_digit());
        let is_name = is_port && host.len() <= 253 && host.split('.').all(is_label) && !is_address;
        Origin { scheme: page.scheme, host, port, is_name }
    }

    /// The narrowest source for a path here. `path` holds no `;`, `,` or space: the injector escapes it.
    fn source(&self, scheme: &str, path: &str) -> String {
        match self.port {
            _ if !self.is_name => "'self'".to_owned(),
            Some(port) => format!("{scheme}://{}:{port}{path}", self.host),
            None => format!("{scheme}://{}{path}", self.host),
        }
    }

    /// Whether a source list lets the target through. In doubt it says no: a source too many is harmless.
    fn is_matched(&self, sources: &str, target: Target<'_>) -> bool {
        sources.split_ascii_whitespace().any(|source| self.is_matched_by(source, target))
    }

    fn is_matched_by(&self, source: &str, target: Target<'_>) -> bool {
        if source == "*" || source.eq_ignore_ascii_case("'self'") {
            return true;
        }
        if source.starts_with('\'') {
            return false;
        }
        if let Some(scheme) = source.strip_suffix(':') {
            return is_scheme_matched(scheme, target.scheme);
        }
        let (scheme, rest) = source.split_once("://").unwrap_or((self.scheme, source));
        if !is_scheme_matched(scheme, target.scheme) {
            return false;
        }
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        };
        self.is_host_matched(host)
            && self.is_port_matched(port, target.scheme)
            && is_path_matched(path, target.path)
    }

    fn is_host_matched(&self, pattern: &str) -> bool {
        match pattern.strip_prefix("*.") {
            _ if pattern == "*" => true,
            Some(suffix) => {
                let host = self.host.to_ascii_lowercase();
                host.strip_suffix(&suffix.to_ascii_lowercase())
                    .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            None => self.is_name && pattern.eq_ignore_ascii_case(self.host),
        }
    }

    fn is_port_matched(&self, pattern: Option<&str>, target_scheme: &str) -> bool {
        let default = if matches!(target_scheme, "https" | "wss") { "443" } else { "80" };
        let port = self.port.unwrap_or(default);
        match pattern {
            Some("*") => true,
            Some(pattern) => pattern == port,
            None => port == default,
        }
    }
}

fn is_scheme_matched(pattern: &str, scheme: &str) -> bool {
    pattern.eq_ignore_ascii_case(scheme)
        || (pattern.eq_ignore_ascii_case("http") && scheme == "https")
        || (pattern.eq_ignore_ascii_case("ws") && scheme == "wss")
}

fn is_path_matched(pattern: &str, path: &str) -> bool {
    match pattern {
        "" | "/" => true,
        _ if pattern.ends_with('/') => path.starts_with(pattern),
        // A directory is not one address.
        _ => pattern == path && !path.ends_with('/'),
    }
}

/// All policy headers of a response together; upstream headers are smaller than this anyway.
const POLICY_BYTES_MAX: usize = 64 * 1024;
/// Longest nonce taken over into the tag; real ones have 16 to 64 characters.
const NONCE_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Page<'_> =
        Page { scheme: "https", host: "shop.example", script: "/_gaitway/c.js", endpoints: "/_gaitway/" };

    /// One header a line; the answer is the nonce in the tag and the new headers, one a line.
    fn check(policies: &str, nonce: &str, expected: &str) {
        check_at(PAGE, policies, nonce, expected);
    }

    fn check_at(page: Page<'_>, policies: &str, nonce: &str, expected: &str) {
        let headers: Vec<&[u8]> = policies.lines().map(str::as_bytes).collect();
        let answer = accommodate(&headers, page, || "FRESH".into()).unwrap();
        assert_eq!(answer.nonce.as_deref().unwrap_or(""), nonce, "{policies}");
        assert_eq!(answer.is_nonce_fresh, nonce == "FRESH");
        assert_eq!(
            answer.headers.map_or("same".to_owned(), |lines| lines.join("\n")),
            expected,
            "{policies}"
        );
    }

    fn refused(policies: &str, expected: Refusal) {
        let headers: Vec<&[u8]> = policies.lines().map(str::as_bytes).collect();
        assert_eq!(accommodate(&headers, PAGE, || unreachable!()), Err(expected), "{policies}");
    }

    #[test]
    fn policies_that_suffice_keep_their_bytes() {
        for policy in [
            "",
            "default-src 'self'",
            "default-src *",
            "script-src 'self'  ;connect-src 'SELF'; img-src 'none'",
            "script-src-elem https:; script-src 'none'; connect-src https: wss:",
            "script-src shop.example; connect-src 'self'",
            "script-src https://shop.example/_gaitway/; connect-src 'self'",
            "script-src *.example:443; connect-src *",
            "frame-ancestors 'none'; upgrade-insecure-requests",
            "require-trusted-types-for 'script'; trusted-types none",
            "sandbox allow-scripts allow-same-origin; default-src 'self'",
            "default-src 'self', frame-ancestors 'self'\nbase-uri 'none'",
        ] {
            check(policy, "", "same");
        }
    }

    #[test]
    fn a_nonce_of_the_page_is_used_again() {
        check("script-src 'nonce-abc' 'strict-dynamic'", "abc", "same");
        check("script-src 'NONCE-aBc='; connect-src 'self'", "aBc=", "same");
        check("script-src 'nonce-a' 'nonce-b', script-src 'nonce-b'", "b", "same");
        check("script-src 'nonce-a' 'strict-dynamic'\nscript-src 'self'", "a", "same");
        check("default-src 'nonce-a' 'self'", "", "same");
    }

    #[test]
    fn a_nonce_that_does_not_fit_an_attribute_is_not_used() {
        check("script-src 'nonce-a\"b'", "", "script-src 'nonce-a\"b' https://shop.example/_gaitway/c.js");
    }

    #[test]
    fn a_script_is_let_in_by_its_address() {
        check("script-src 'none'", "", "script-src https://shop.example/_gaitway/c.js");
        check(
            "script-src cdn.example 'unsafe-inline'",
            "",
            "script-src cdn.example 'unsafe-inline' https://shop.example/_gaitway/c.js",
        );
        check(
            "script-src 'sha256-x'; img-src *",
            "",
            "script-src 'sha256-x' https://shop.example/_gaitway/c.js; img-src *",
        );
        check(
            "script-src 'self'; script-src-elem cdn.example",
            "",
            "script-src 'self'; script-src-elem cdn.example https://shop.example/_gaitway/c.js",
        );
    }

    #[test]
    fn default_src_is_copied_and_itself_left_alone() {
        check(
            "default-src 'none'",
            "",
            "default-src 'none'; script-src https://shop.example/_gaitway/c.js; \
             connect-src https://shop.example/_gaitway/ wss://shop.example/_gaitway/",
        );
        check(
            "default-src cdn.example; script-src 'self'",
            "",
            "default-src cdn.example; script-src 'self'; \
             connect-src cdn.example https://shop.example/_gaitway/ wss://shop.example/_gaitway/",
        );
    }

    #[test]
    fn only_the_connection_that_is_missing_is_added() {
        check("connect-src https:", "", "connect-src https: wss://shop.example/_gaitway/");
        check(
            "connect-src 'none'; script-src 'self'",
            "",
            "connect-src https://shop.example/_gaitway/ wss://shop.example/_gaitway/; script-src 'self'",
        );
    }

    #[test]
    fn strict_dynamic_without_a_nonce_gets_a_fresh_one() {
        check(
            "script-src 'strict-dynamic' 'sha256-x' 'unsafe-inline'",
            "FRESH",
            "script-src 'strict-dynamic' 'sha256-x' 'unsafe-inline' 'nonce-FRESH'",
        );
        check(
            "script-src 'strict-dynamic' 'sha256-x', script-src 'none'",
            "FRESH",
            "script-src 'strict-dynamic' 'sha256-x' 'nonce-FRESH', script-src https://shop.example/_gaitway/c.js",
        );
        check(
            "script-src 'strict-dynamic' 'nonce-a'\nscript-src 'strict-dynamic' 'nonce-b'",
            "FRESH",
            "script-src 'strict-dynamic' 'nonce-a' 'nonce-FRESH'\nscript-src 'strict-dynamic' 'nonce-b' 'nonce-FRESH'",
        );
    }

    #[test]
    fn every_policy_must_be_met_and_only_the_unmet_are_edited() {
        check(
            "default-src  'self' ;, script-src 'none'\nscript-src cdn.example",
            "",
            "default-src  'self' ;, script-src https://shop.example/_gaitway/c.js\nscript-src cdn.example https://shop.example/_gaitway/c.js",
        );
        check(
            "script-src 'nonce-a' 'strict-dynamic', script-src cdn.example",
            "a",
            "script-src 'nonce-a' 'strict-dynamic', script-src cdn.example https://shop.example/_gaitway/c.js",
        );
    }

    #[test]
    fn a_repeated_directive_counts_for_nothing() {
        check("script-src 'self'; script-src 'none'", "", "same");
        check(
            "script-src 'none'; script-src 'self'",
            "",
            "script-src https://shop.example/_gaitway/c.js; script-src 'self'",
        );
    }

    #[test]
    fn ports_and_addresses_are_spelt_as_browsers_read_them() {
        let port = Page { scheme: "http", host: "shop.example:8080", ..PAGE };
        check_at(
            port,
            "script-src shop.example",
            "",
            "script-src shop.example http://shop.example:8080/_gaitway/c.js",
        );
        check_at(port, "script-src shop.example:8080 ; connect-src 'self'", "", "same");
        check_at(port, "script-src shop.example:*; connect-src 'self'", "", "same");
        check_at(
            port,
            "connect-src 'none'",
            "",
            "connect-src http://shop.example:8080/_gaitway/ ws://shop.example:8080/_gaitway/",
        );
        for host in ["127.0.0.1:8000", "[::1]:8000", "[::1]", "10.0.0.1", "", "shop;example", "a b"] {
            let page = Page { scheme: "http", host, ..PAGE };
            check_at(page, "script-src 'none'", "", "script-src 'self'");
            check_at(page, "connect-src 'none'", "", "connect-src 'self'");
        }
    }

    #[test]
    fn sources_that_look_alike_do_not_match() {
        for source in [
            "example",
            "*.shop.example",
            "http://other.example",
            "shop.example/app/",
            "https://shop.example/_gaitway",
            "'selfish'",
            "wss:",
        ] {
            check(
                &format!("script-src {source}"),
                "",
                &format!("script-src {source} https://shop.example/_gaitway/c.js"),
            );
        }
    }

    #[test]
    fn a_sandbox_without_scripts_or_origin_is_refused() {
        refused("sandbox", Refusal::Sandboxed);
        refused("sandbox allow-scripts", Refusal::Sandboxed);
        refused("default-src 'self', sandbox allow-same-origin allow-forms", Refusal::Sandboxed);
    }

    #[test]
    fn illegible_headers_are_refused() {
        refused("script-src 'self' é", Refusal::Illegible);
        refused(&"a".repeat(POLICY_BYTES_MAX + 1), Refusal::Illegible);
        assert_eq!(accommodate(&[b"\xff"], PAGE, || unreachable!()), Err(Refusal::Illegible));
    }
}
