//! Routes: names for parts of an app, by host, path, method and header.
//!
//! The first route that matches a request names it. A path that could mean something else to the app
//! than it says (`..`, `//`, encoded slashes or dots) matches no route with a path, so nobody reaches
//! a lenient route by disguise. Must not know: rules' conditions, how requests are read.

/// The route of everything no other route matches.
pub const DEFAULT_ROUTE: &str = "default";

/// What a route says about requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub name: String,
    pub(crate) matches: Vec<Match>,
    /// Names of the rules that apply besides the allow rules; `None`: all.
    pub rules: Option<Vec<String>>,
    /// Whether pages get the collector.
    pub injection: bool,
    pub outage: Outage,
    /// Whether people must have logged in at the gateway; `None`: as its settings say.
    pub login: Option<bool>,
    /// The row of `identities` that says who its visitors are; `None`: whoever they prove to be.
    pub identity: Option<String>,
    /// What that row goes by.
    pub sources: Sources,
}

/// What a visitor may be known by, besides Gaitway's own cookie. Where a request proves several
/// identities, the others still count against it once they are revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    pub jwt: bool,
    pub introspection: bool,
    pub oidc: bool,
    pub app_cookie: bool,
}

impl Sources {
    pub const ALL: Sources = Sources { jwt: true, introspection: true, oidc: true, app_cookie: true };
    pub const NONE: Sources = Sources { jwt: false, introspection: false, oidc: false, app_cookie: false };
}

/// What to do while revocations cannot be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Go on with the revocations known: a lost store logs nobody out.
    ServeKnown,
    /// Refuse: for the few places where a stolen session is worse than no service.
    Deny,
}

/// All parts given must match.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Match {
    pub host: Option<String>,
    pub path: Option<PathPattern>,
    /// Upper case; empty: any.
    pub methods: Vec<String>,
    /// Names in lower case with the value wanted, `*` for any.
    pub headers: Vec<(String, String)>,
}

/// `/api/*/items` (one segment), `/static/**` (the rest), or a path as it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PathPattern {
    segments: Vec<String>,
    rest: bool,
}

/// The parts of a request that routes look at.
pub struct RequestLine<'r> {
    /// Without port; case does not matter.
    pub host: &'r str,
    /// As it is forwarded, without the query.
    pub path: &'r str,
    pub method: &'r str,
    /// Value of a header by its name in lower case.
    pub header: &'r dyn Fn(&str) -> Option<&'r str>,
}

impl Route {
    pub(crate) fn fallback() -> Route {
        Route {
            name: DEFAULT_ROUTE.into(),
            matches: vec![Match::default()],
            rules: None,
            injection: true,
            outage: Outage::ServeKnown,
            login: None,
            identity: None,
            sources: Sources::ALL,
        }
    }

    pub fn matches(&self, request: &RequestLine<'_>) -> bool {
        self.matches.iter().any(|candidate| candidate.matches(request))
    }

    /// Whether `earlier` takes every request that this route could match. Sound, not complete: what only
    /// several routes take together is not seen.
    pub(crate) fn is_behind(&self, earlier: &Route) -> bool {
        let taken = |wanted: &Match| earlier.matches.iter().any(|candidate| candidate.covers(wanted));
        !self.matches.is_empty() && self.matches.iter().all(taken)
    }
}

impl Match {
    fn matches(&self, request: &RequestLine<'_>) -> bool {
        let host = self.host.as_ref().is_none_or(|host| match host.strip_prefix("*.") {
            Some(parent) => request
                .host
                .len()
                .checked_sub(parent.len() + 1)
                .and_then(|dot| request.host.get(dot..))
                .is_some_and(|tail| tail.starts_with('.') && tail[1..].eq_ignore_ascii_case(parent)),
            None => host.eq_ignore_ascii_case(request.host),
        });
        host && self.path.as_ref().is_none_or(|path| path.matches(request.path))
            && (self.methods.is_empty() || self.methods.iter().any(|method| method == request.method))
            && self.headers.iter().all(|(name, wanted)| {
                (request.header)(name).is_some_and(|value| wanted == "*" || value == wanted)
            })
    }
}

impl Match {
    /// Whether every request that `other` matches is matched by this, too.
    fn covers(&self, other: &Match) -> bool {
        let host = self.host.as_ref().is_none_or(|host| {
            let Some(other) = &other.host else { return false };
            let (host, other) = (host.to_ascii_lowercase(), other.to_ascii_lowercase());
            let below = |parent: &str| other.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
            host == other || host.strip_prefix("*.").is_some_and(below)
        });
        let path =
            self.path.as_ref().is_none_or(|path| other.path.as_ref().is_some_and(|other| path.covers(other)));
        let methods = self.methods.is_empty()
            || !other.methods.is_empty() && other.methods.iter().all(|method| self.methods.contains(method));
        let header = |(name, wanted): &(String, String)| {
            other.headers.iter().any(|(also, value)| also == name && (wanted == "*" || wanted == value))
        };
        host && path && methods && self.headers.iter().all(header)
    }
}

impl PathPattern {
    fn covers(&self, other: &PathPattern) -> bool {
        let long_enough = if self.rest {
            other.segments.len() >= self.segments.len()
        } else {
            !other.rest && other.segments.len() == self.segments.len()
        };
        let covers = |(wanted, other): (&String, &String)| {
            if wanted == "*" { !other.is_empty() } else { wanted == other }
        };
        long_enough && self.segments.iter().zip(&other.segments).all(covers)
    }

    /// Reads a pattern; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<PathPattern, &'static str> {
        let Some(path) = text.strip_prefix('/') else { return Err("a path starts with `/`") };
        let (path, rest) = match path.strip_suffix("**") {
            Some(path) if path.is_empty() || path.ends_with('/') => (path.trim_end_matches('/'), true),
            Some(_) => return Err("`**` stands alone, after a `/`"),
            None => (path, false),
        };
        let segments: Vec<String> =
            if path.is_empty() && rest { Vec::new() } else { path.split('/').map(str::to_owned).collect() };
        if segments.iter().any(|segment| segment.contains('*') && segment != "*") {
            return Err("`*` stands for one whole segment, `**` at the end for the rest");
        }
        if is_ambiguous(text) {
            return Err("`..`, `//` and encoded slashes or dots match nothing");
        }
        Ok(PathPattern { segments, rest })
    }

    fn matches(&self, path: &str) -> bool {
        if is_ambiguous(path) {
            return false;
        }
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut segments = path.split('/');
        for wanted in &self.segments {
            match segments.next() {
                Some(segment) if wanted == "*" && !segment.is_empty() => {}
                Some(segment) if wanted == segment => {}
                _ => return false,
            }
        }
        self.rest || segments.next().is_none()
    }
}

/// A path that an app may read as another one than is written.
pub fn is_ambiguous(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    lower.contains("//")
        || lower.contains('\\')
        || ["%2e", "%2f", "%5c", "%00", "%25"].iter().any(|encoded| lower.contains(encoded))
        || lower.split('/').any(|segment| {
            let segment = segment.split(';').next().unwrap_or("");
            segment == "." || segment == ".."
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str, path: &str) -> bool {
        PathPattern::parse(text).unwrap().matches(path)
    }

    #[test]
    fn paths_match_by_segment() {
        for (text, path, expected) in [
            ("/", "/", true),
            ("/", "/x", false),
            ("/login", "/login", true),
            ("/login", "/login/", false),
            ("/login", "/loginx", false),
            ("/api/*/items", "/api/7/items", true),
            ("/api/*/items", "/api//items", false),
            ("/api/*/items", "/api/7/8/items", false),
            ("/static/**", "/static", true),
            ("/static/**", "/static/", true),
            ("/static/**", "/static/a/b.css", true),
            ("/static/**", "/staticx", false),
            ("/**", "/anything/at/all", true),
        ] {
            assert_eq!(pattern(text, path), expected, "{text} {path}");
        }
        for wrong in ["login", "/a*b", "/a**", "/a/../b", "/a//b"] {
            assert!(PathPattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_route_behind_another_is_seen() {
        let path = |text: &str| Match { path: PathPattern::parse(text).ok(), ..Match::default() };
        let route = |matches: Vec<Match>| Route { matches, ..Route::fallback() };
        for (earlier, later, expected) in [
            ("/api/**", "/api/write", true),
            ("/api/**", "/api", true),
            ("/api/**", "/api/**", true),
            ("/**", "/api/*/x", true),
            ("/api/*", "/api/write", true),
            ("/api/*", "/api/", false),
            ("/api/*", "/api/**", false),
            ("/api/write", "/api/*", false),
            ("/api/a/**", "/api/**", false),
            ("/api", "/apis", false),
        ] {
            let behind = route(vec![path(later)]).is_behind(&route(vec![path(earlier)]));
            assert_eq!(behind, expected, "{earlier} before {later}");
        }
        let both = route(vec![path("/a"), path("/b")]);
        assert!(both.is_behind(&route(vec![path("/b"), path("/a/**")])));
        assert!(!both.is_behind(&route(vec![path("/a")])));
        assert!(!route(Vec::new()).is_behind(&both), "what is left over is behind nothing");
        let on = |host: &str, methods: &[&str], header: &str| {
            let methods = methods.iter().map(|method| (*method).to_owned()).collect();
            let headers = if header.is_empty() { Vec::new() } else { vec![("x".into(), header.to_owned())] };
            route(vec![Match { host: Some(host.into()), path: None, methods, headers }])
        };
        assert!(on("A.shop.example", &["GET"], "1").is_behind(&on("*.shop.example", &["GET", "PUT"], "*")));
        assert!(!on("shop.example", &[], "").is_behind(&on("*.shop.example", &[], "")));
        assert!(!on("a.example", &[], "").is_behind(&on("a.example", &["GET"], "")));
        assert!(!on("a.example", &[], "*").is_behind(&on("a.example", &[], "1")));
        assert!(on("a.example", &[], "1").is_behind(&route(vec![Match::default()])));
    }

    #[test]
    fn a_disguised_path_matches_no_pattern() {
        for path in [
            "/health/../admin",
            "/health/..;/admin",
            "/health/%2e%2e/admin",
            "/health//admin",
            "/health/%2Fadmin",
            "/health\\..\\admin",
            "/health/%252e",
            "/health/./x",
        ] {
            assert!(!pattern("/health/**", path), "{path}");
        }
    }

    #[test]
    fn host_method_and_header_narrow() {
        let none = |_: &str| None;
        let key = |name: &str| (name == "x-api").then_some("1");
        let line = |host, method, header| RequestLine { host, path: "/", method, header };
        let only = |matched: Match| Route { matches: vec![matched], ..Route::fallback() };
        let host = only(Match { host: Some("*.shop.example".into()), ..Match::default() });
        assert!(host.matches(&line("a.Shop.example", "GET", &none)));
        assert!(!host.matches(&line("shop.example", "GET", &none)));
        assert!(!host.matches(&line("evilshop.example", "GET", &none)));
        let post = only(Match { methods: vec!["POST".into()], ..Match::default() });
        assert!(post.matches(&line("a", "POST", &none)) && !post.matches(&line("a", "GET", &none)));
        let header = only(Match { headers: vec![("x-api".into(), "*".into())], ..Match::default() });
        assert!(header.matches(&line("a", "GET", &key)) && !header.matches(&line("a", "GET", &none)));
    }
}
