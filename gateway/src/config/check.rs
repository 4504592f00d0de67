//! What no single setting can say about itself: contradictions between settings, and what they name
//! in the world (files, variables).
//!
//! Must not know: where a setting was said.

use super::settings::{Kind, walk};
use super::{AppLogout, Config, Introspection, Jwt, JwtIssuer, Mail, Oidc, Receive, Transmit, reference};
use std::path::Path;

/// Algorithms a token may be signed with, and whether the key is a shared secret.
const ALGORITHMS: &[(&str, bool)] = &[
    ("HS256", true),
    ("HS384", true),
    ("HS512", true),
    ("RS256", false),
    ("RS384", false),
    ("RS512", false),
    ("PS256", false),
    ("PS384", false),
    ("PS512", false),
    ("ES256", false),
    ("ES384", false),
    ("EdDSA", false),
];

/// A token names its issuer in one look-up; nobody has legacy apps for more than these.
const ISSUERS_MAX: usize = 16;
/// Longest name of the query parameter with a token.
const QUERY_NAME_BYTES_MAX: usize = 128;

/// Own endpoints sit in front of the app's paths; a longer prefix is a mistake.
const PATH_PREFIX_BYTES_MAX: usize = 64;

/// Reports each mistake with the settings involved, the one to correct first.
pub(super) fn contradictions(
    config: &Config,
    environment: &[(String, String)],
    say: &mut impl FnMut(&[&str], String),
) {
    addresses(config, environment, say);
    zeros(config, say);
    if config.tls.certificate.is_some() && config.tls.key.is_none() {
        say(&["tls.certificate", "tls.key"], "needs tls.key beside it".into());
    }
    if config.tls.key.is_some() && config.tls.certificate.is_none() {
        say(&["tls.key", "tls.certificate"], "needs tls.certificate beside it".into());
    }
    if config.proxy.h2c && config.tls.certificate.is_some() {
        say(&["proxy.h2c", "tls.certificate"], "makes no sense on a listener with TLS".into());
    }
    let jwt_cookie = config.identity.jwt.as_ref().and_then(|jwt| jwt.cookie.as_ref());
    let cookies = [
        ("identity.cookie_name", Some(&config.identity.cookie_name)),
        ("identity.app_cookie", config.identity.app_cookie.as_ref()),
        ("identity.jwt.cookie", jwt_cookie),
        (
            "identity.introspection.cookie",
            config.identity.introspection.as_ref().and_then(|introspection| introspection.cookie.as_ref()),
        ),
        ("identity.oidc.cookie_name", config.identity.oidc.as_ref().map(|oidc| &oidc.cookie_name)),
    ];
    for (path, name) in cookies {
        if name.is_some_and(|name| !is_cookie_name(name)) {
            say(&[path], "is no cookie name: letters, digits and !#$%&'*+-.^_`|~ only".into());
        }
    }
    if let Some(jwt) = &config.identity.jwt {
        token(jwt, say);
    }
    if let Some(oidc) = &config.identity.oidc {
        provider(oidc, say);
    }
    if let Some(introspection) = &config.identity.introspection {
        opaque_tokens(introspection, say);
    }
    let identity = &config.identity;
    let names_people = identity.jwt.is_some() || identity.oidc.is_some() || identity.introspection.is_some();
    if config.profiles.enabled && !names_people {
        say(
            &["profiles.enabled"],
            "needs logins that name a person: identity.jwt, identity.oidc or identity.introspection".into(),
        );
    }
    if let Some(transmit) = &config.signals.transmit {
        transmitter(transmit, environment, say);
    }
    for (index, receive) in config.signals.receive.iter().enumerate() {
        let is_twice = config.signals.receive[..index].iter().any(|other| other.issuer == receive.issuer);
        receiver(index, receive, is_twice, environment, say);
    }
    path_prefix(&config.collector.path_prefix, say);
    if let Some(app_logout) = &config.revocation.app_logout {
        goodbye(app_logout, say);
    }
    if let Some(mail) = &config.alerts.mail {
        mails(mail, say);
    }
    if !(0.0..=1.0).contains(&config.recording.share) {
        say(&["recording.share"], format!("expected 0 to 1, found {}", config.recording.share));
    }
    if !is_plain_name(&config.recording.source) {
        say(&["recording.source"], "expected 1 to 64 letters, digits, - and _".into());
    }
    if config.revocation.redis_password_file.is_some() && config.revocation.redis.is_none() {
        say(
            &["revocation.redis_password_file", "revocation.redis"],
            "is of no use without revocation.redis".into(),
        );
    }
    if tracing_subscriber::EnvFilter::try_new(&config.log.level).is_err() {
        say(&["log.level"], "is no log filter; write trace, debug, info, warn or error".into());
    }
    files(config, say);
    variables(config, environment, say);
}

/// Environment variables that settings name, so they are nobody's misspelling.
pub(super) fn variables_named(config: &Config) -> Vec<&str> {
    let jwt = config.identity.jwt.iter().flat_map(|jwt| {
        let issuers = jwt.issuers.iter().map(|issuer| &issuer.key_env);
        issuers.chain([&jwt.key_env]).filter_map(Option::as_deref)
    });
    let oidc = config.identity.oidc.as_ref().and_then(|oidc| oidc.client_secret_env.as_deref());
    let mail = config.alerts.mail.as_ref().and_then(|mail| mail.password_env.as_deref());
    let secret = config.alerts.webhook.as_ref().map(|webhook| webhook.secret.as_str());
    let texts = [config.revocation.redis.as_deref(), config.store.postgres.as_deref(), secret];
    let transmit = config.signals.transmit.iter();
    let sent = transmit
        .flat_map(|transmit| transmit.receivers.iter().map(|one| &one.bearer).chain([&transmit.key]))
        .map(String::as_str);
    let received = config.signals.receive.iter().flat_map(|one| [&one.push_bearer, &one.poll_bearer]);
    let received = received.filter_map(Option::as_deref);
    let references = texts.into_iter().flatten().chain(sent).chain(received).filter_map(reference::variable);
    let opaque = config.identity.introspection.as_ref().and_then(|known| known.client_secret_env.as_deref());
    jwt.chain(oidc).chain(opaque).chain(mail).chain(references).collect()
}

fn addresses(config: &Config, environment: &[(String, String)], say: &mut impl FnMut(&[&str], String)) {
    if config.upstream.is_empty() {
        let how = "is missing: the app's address, such as http://127.0.0.1:8080 (--upstream or GAITWAY_UPSTREAM will do)";
        say(&["upstream"], how.into());
    } else if let Err(why) = url(&config.upstream, &["http", "https"], false) {
        say(&["upstream"], why);
    }
    if config.listen == config.ops.listen && config.listen.port() != 0 {
        say(&["ops.listen", "listen"], "is the visitors' address; operators need one of their own".into());
    }
    let addresses = [
        ("revocation.redis", &config.revocation.redis, REDIS_SCHEMES),
        ("store.postgres", &config.store.postgres, &["postgres", "postgresql"][..]),
        ("alerts.ops_url", &config.alerts.ops_url, &["http", "https"][..]),
    ];
    let variable =
        |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    for (path, address, schemes) in addresses {
        let Some(address) = address else { continue };
        let checked = reference::resolve_in(address, &variable)
            .map_err(|error| error.to_string())
            .and_then(|address| url(&address, schemes, true));
        if let Err(why) = checked {
            say(&[path], why);
        }
    }
    if let Some(webhook) = &config.alerts.webhook {
        if let Err(why) = url(&webhook.url, &["http", "https"], true) {
            say(&["alerts.webhook.url", "alerts.webhook"], why);
        }
        if !reference::is_reference(&webhook.secret) {
            let how = "names where the secret is: ${file:/path} or ${env:NAME}, never the secret itself";
            say(&["alerts.webhook.secret", "alerts.webhook"], how.into());
        } else if let Err(error) = reference::resolve_in(&webhook.secret, &variable) {
            say(&["alerts.webhook.secret"], error.to_string());
        }
    }
}

/// Checks an address without ever repeating it: it may carry a password.
fn url(address: &str, schemes: &[&str], path_allowed: bool) -> Result<(), String> {
    let expected = || {
        let forms: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://host:port")).collect();
        format!("expected an address such as {}", forms.join(" or "))
    };
    let (scheme, rest) = address.split_once("://").ok_or_else(expected)?;
    if !schemes.contains(&scheme) {
        return Err(expected());
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // A scheme such as redis+sentinel names several hosts.
    let hosts: Vec<&str> = if scheme.contains('+') { host.split(',').collect() } else { vec![host] };
    let is_sound = |host: &&str| host.parse::<http::uri::Authority>().is_ok() && !host.starts_with(':');
    if !hosts.iter().all(is_sound) {
        return Err(expected());
    }
    if !path_allowed && (!path.is_empty() || authority.contains('@')) {
        return Err(format!("{}, without user, path or query", expected()));
    }
    Ok(())
}

/// A zero limit stops everything, so it is a mistake unless the setting's text gives 0 a meaning.
fn zeros(config: &Config, say: &mut impl FnMut(&[&str], String)) {
    let values = serde_json::to_value(config).unwrap_or_default();
    walk(super::load::root().0, &mut |path, field| {
        let whole = matches!(field.kind, Kind::Whole { .. })
            || matches!(field.kind, Kind::Optional(inner) if matches!(inner, Kind::Whole { .. }));
        let pointer = format!("/{}", path.replace('.', "/"));
        if whole
            && !field.zero_means_something()
            && values.pointer(&pointer).and_then(serde_json::Value::as_u64) == Some(0)
        {
            say(&[path], "must be at least 1".into());
        }
    });
}

fn token(jwt: &Jwt, say: &mut impl FnMut(&[&str], String)) {
    if jwt.cookie.is_none() && !jwt.header && jwt.query.is_none() {
        say(
            &["identity.jwt.header", "identity.jwt.cookie", "identity.jwt.query"],
            "a token is sought nowhere; give cookie or query, or header: true".into(),
        );
    }
    let is_plain = |name: &String| {
        (1..=QUERY_NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    };
    if !jwt.query.as_ref().is_none_or(is_plain) {
        say(&["identity.jwt.query"], "is no parameter name: letters, digits and -._~ only".into());
    }
    if jwt.algorithms.is_empty() {
        say(&["identity.jwt.algorithms"], "names no algorithm".into());
    }
    algorithm_names("identity.jwt.algorithms", &jwt.algorithms, say);
    if !jwt.issuers.is_empty() {
        let alone = [
            ("identity.jwt.issuer", jwt.issuer.is_some()),
            ("identity.jwt.audience", jwt.audience.is_some()),
            ("identity.jwt.key_file", jwt.key_file.is_some()),
            ("identity.jwt.key_env", jwt.key_env.is_some()),
            ("identity.jwt.jwks_url", jwt.jwks_url.is_some()),
        ];
        for (path, _) in alone.iter().filter(|(_, is_given)| *is_given) {
            say(
                &[path, "identity.jwt.issuers"],
                "makes no sense beside issuers, each of which has its own".into(),
            );
        }
    }
    if jwt.issuers.len() > ISSUERS_MAX {
        say(&["identity.jwt.issuers"], format!("{} issuers; at most {ISSUERS_MAX}", jwt.issuers.len()));
    }
    for (index, issuer) in jwt.issuers.iter().enumerate() {
        let at = format!("identity.jwt.issuers[{index}]");
        algorithm_names(&format!("{at}.algorithms"), &issuer.algorithms, say);
        let name = issuer.issuer.as_deref().unwrap_or_default();
        if name.is_empty() {
            say(&[&at, &format!("{at}.issuer")], "needs issuer, the iss claim of its tokens".into());
        } else if jwt.issuers[..index].iter().any(|other| other.issuer.as_deref() == Some(name)) {
            say(&[&format!("{at}.issuer")], "is here twice".into());
        }
    }
    for (at, issuer) in jwt.believed() {
        issuer_keys(&at, &issuer, say);
    }
}

fn algorithm_names(path: &str, names: &[String], say: &mut impl FnMut(&[&str], String)) {
    for (index, name) in names.iter().enumerate() {
        if !ALGORITHMS.iter().any(|(known, _)| known == name) {
            say(
                &[&format!("{path}[{index}]"), path],
                format!("expected HS256, RS256, PS256, ES256, EdDSA or their longer kin, found {name:?}"),
            );
        }
    }
}

/// Where the keys of one issuer come from, and whether its algorithms fit.
fn issuer_keys(at: &str, issuer: &JwtIssuer, say: &mut impl FnMut(&[&str], String)) {
    let keys = ["key_file", "key_env", "jwks_url"].map(|name| format!("{at}.{name}"));
    let given = [issuer.key_file.is_some(), issuer.key_env.is_some(), issuer.jwks_url.is_some()];
    let given: Vec<&str> = keys.iter().zip(given).filter(|(_, is)| *is).map(|(path, _)| &**path).collect();
    match given.as_slice() {
        [] => {
            let paths = [at, &keys[0], &keys[1], &keys[2]];
            say(&paths, "needs a key: exactly one of key_file, key_env and jwks_url".into());
        }
        [_] => {}
        [_, rest @ ..] => say(rest, "exactly one of key_file, key_env and jwks_url may be given".into()),
    }
    if let Some(Err(why)) = issuer.jwks_url.as_ref().map(|address| url(address, &["https", "http"], true)) {
        say(&[&keys[2]], why);
    }
    let algorithms = format!("{at}.algorithms");
    let is_of = |shared: bool| {
        let kind =
            |name: &String| ALGORITHMS.iter().find(|(known, _)| known == name).map(|(_, shared)| *shared);
        issuer.algorithms.iter().any(|name| kind(name) == Some(shared))
    };
    // A public key accepted as an HS256 secret lets anybody sign.
    if is_of(true) && is_of(false) {
        say(&[&algorithms], "a shared secret (HS…) cannot stand beside algorithms with a public key".into());
    }
    if is_of(true) && issuer.jwks_url.is_some() {
        say(&[&algorithms, &keys[2]], "HS… has no public keys to fetch from jwks_url".into());
    }
}

fn provider(oidc: &Oidc, say: &mut impl FnMut(&[&str], String)) {
    for (path, address) in
        [("identity.oidc.issuer", &oidc.issuer), ("identity.oidc.public_url", &oidc.public_url)]
    {
        if let Err(why) = url(address, &["https", "http"], path.ends_with("issuer")) {
            say(&[path, "identity.oidc"], why);
        } else if address.starts_with("http://") && !is_loopback(address) {
            // Tokens and cookies would travel in the clear.
            say(&[path], "must be https; http is for this machine alone".into());
        }
    }
    if oidc.client_id.is_empty() {
        say(
            &["identity.oidc.client_id", "identity.oidc"],
            "is missing: this gateway's name at the provider".into(),
        );
    }
    if !oidc.scopes.iter().any(|scope| scope == "openid") {
        say(&["identity.oidc.scopes"], "needs openid among them: without it there is no ID token".into());
    }
    if oidc.client_secret_file.is_some() && oidc.client_secret_env.is_some() {
        say(
            &["identity.oidc.client_secret_env", "identity.oidc.client_secret_file"],
            "client_secret_file is given as well; one is enough".into(),
        );
    }
}

fn opaque_tokens(introspection: &Introspection, say: &mut impl FnMut(&[&str], String)) {
    const URL: &str = "identity.introspection.url";
    if let Err(why) = url(&introspection.url, &["https", "http"], true) {
        say(&[URL, "identity.introspection"], why);
    } else if introspection.url.starts_with("http://") && !is_loopback(&introspection.url) {
        say(&[URL], "must be https; http is for this machine alone".into());
    }
    if introspection.client_id.is_empty() {
        say(&["identity.introspection.client_id", "identity.introspection"], "is missing".into());
    }
    if introspection.cookie.is_none() && !introspection.header {
        say(
            &["identity.introspection.header", "identity.introspection.cookie"],
            "a token is sought nowhere; give cookie, or header: true".into(),
        );
    }
    if introspection.client_secret_file.is_some() && introspection.client_secret_env.is_some() {
        say(
            &["identity.introspection.client_secret_env", "identity.introspection.client_secret_file"],
            "client_secret_file is given as well; one is enough".into(),
        );
    }
}

fn transmitter(transmit: &Transmit, environment: &[(String, String)], say: &mut impl FnMut(&[&str], String)) {
    const SECTION: &str = "signals.transmit";
    let path = |name: &str| format!("{SECTION}.{name}");
    encrypted(&transmit.issuer, false, &[&path("issuer"), SECTION], say);
    referred(&transmit.key, environment, &[&path("key"), SECTION], say);
    if transmit.receivers.is_empty() {
        say(&[&path("receivers"), SECTION], "names no receiver".into());
    }
    for (index, one) in transmit.receivers.iter().enumerate() {
        let section = format!("{SECTION}.receivers[{index}]");
        let path = |name: &str| format!("{section}.{name}");
        if !is_plain_name(&one.name) {
            say(&[&path("name"), &section], "expected 1 to 64 letters, digits, - and _".into());
        }
        if transmit.receivers[..index].iter().any(|other| other.name == one.name) {
            say(&[&path("name"), &section], "another receiver has this name".into());
        }
        if one.audience.is_empty() {
            say(&[&path("audience"), &section], "is missing".into());
        }
        if let Some(url) = &one.push_url {
            encrypted(url, true, &[&path("push_url"), &section], say);
        }
        referred(&one.bearer, environment, &[&path("bearer"), &section], say);
        if let Some(Err(why)) = one.ca.as_deref().map(readable) {
            say(&[&path("ca")], why);
        }
    }
}

fn receiver(
    index: usize,
    receive: &Receive,
    is_twice: bool,
    environment: &[(String, String)],
    say: &mut impl FnMut(&[&str], String),
) {
    let section = format!("signals.receive[{index}]");
    let path = |name: &str| format!("{section}.{name}");
    if is_twice {
        say(&[&path("issuer"), &section], "another transmitter has this issuer".into());
    }
    for (name, text) in [("issuer", &receive.issuer), ("audience", &receive.audience)] {
        if text.is_empty() {
            say(&[&path(name), &section], "is missing".into());
        }
    }
    if receive.poll_seconds == 0 {
        say(&[&path("poll_seconds")], "must be at least 1".into());
    }
    encrypted(&receive.jwks_url, true, &[&path("jwks_url"), &section], say);
    if let Some(url) = &receive.poll_url {
        encrypted(url, true, &[&path("poll_url"), &section], say);
    }
    if receive.poll_url.is_some() != receive.poll_bearer.is_some() {
        say(
            &[&path("poll_url"), &path("poll_bearer"), &section],
            "poll_url and poll_bearer belong together".into(),
        );
    }
    for (name, bearer) in [("push_bearer", &receive.push_bearer), ("poll_bearer", &receive.poll_bearer)] {
        if let Some(bearer) = bearer {
            referred(bearer, environment, &[&path(name), &section], say);
        }
    }
}

/// An address whose traffic nobody may read or change on the way.
fn encrypted(address: &str, path_allowed: bool, paths: &[&str], say: &mut impl FnMut(&[&str], String)) {
    if let Err(why) = url(address, &["https", "http"], path_allowed) {
        say(paths, why);
    } else if address.starts_with("http://") && !is_loopback(address) {
        say(paths, "must be https; http is for this machine alone".into());
    }
}

/// A secret, which stands elsewhere.
fn referred(
    text: &str,
    environment: &[(String, String)],
    paths: &[&str],
    say: &mut impl FnMut(&[&str], String),
) {
    let variable =
        |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    if !reference::is_reference(text) {
        let how = "names where the secret is: ${file:/path} or ${env:NAME}, never the secret itself";
        say(paths, how.into());
    } else if let Err(error) = reference::resolve_in(text, &variable) {
        say(paths, error.to_string());
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    host.is_some_and(|host| {
        host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

fn goodbye(logout: &AppLogout, say: &mut impl FnMut(&[&str], String)) {
    if !matches!(logout.method.as_str(), "GET" | "POST" | "PUT" | "DELETE" | "PATCH") {
        say(&["revocation.app_logout.method"], "expected GET, POST, PUT, PATCH or DELETE".into());
    }
    if !logout.path.starts_with('/') || logout.path.parse::<http::uri::PathAndQuery>().is_err() {
        say(&["revocation.app_logout.path"], "expected a path such as /logout".into());
    }
    if logout.headers.is_empty() {
        say(
            &["revocation.app_logout.headers"],
            "names no header, so the app cannot know whom to log out".into(),
        );
    }
    for (index, name) in logout.headers.iter().enumerate() {
        if name.parse::<http::HeaderName>().is_err() {
            let path = format!("revocation.app_logout.headers[{index}]");
            say(&[&path, "revocation.app_logout.headers"], "is no header name".into());
        }
    }
}

/// A token as RFC 6265 asks of cookie names.
fn is_cookie_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn is_plain_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

fn path_prefix(prefix: &str, say: &mut impl FnMut(&[&str], String)) {
    const PATH: &[&str] = &["collector.path_prefix"];
    if !prefix.starts_with('/') {
        say(PATH, format!("must begin with /, found {prefix:?}"));
    } else if prefix.len() < 2 || prefix.len() > PATH_PREFIX_BYTES_MAX || prefix.ends_with('/') {
        say(PATH, format!("must name a path of 2 to {PATH_PREFIX_BYTES_MAX} bytes and not end with /"));
    } else if !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b))
        || prefix.split('/').any(|part| part == "." || part == "..")
        || prefix.contains("//")
    {
        say(PATH, "may have letters, digits, -, _, . and ~ between single slashes only".into());
    }
}

fn mails(mail: &Mail, say: &mut impl FnMut(&[&str], String)) {
    if mail.host.is_empty() {
        say(&["alerts.mail.host"], "is missing".into());
    }
    if !is_mail_address(&mail.from) {
        say(&["alerts.mail.from"], "expected a mail address".into());
    }
    if mail.to.is_empty() {
        say(&["alerts.mail.to"], "names no receiver".into());
    }
    for (index, receiver) in mail.to.iter().enumerate() {
        if !is_mail_address(receiver) {
            say(&[&format!("alerts.mail.to[{index}]"), "alerts.mail.to"], "expected a mail address".into());
        }
    }
    let password = mail.password_file.is_some() || mail.password_env.is_some();
    if mail.password_file.is_some() && mail.password_env.is_some() {
        say(
            &["alerts.mail.password_env", "alerts.mail.password_file"],
            "password_file is given as well; one is enough".into(),
        );
    }
    if mail.username.is_some() != password {
        say(
            &["alerts.mail.username", "alerts.mail.password_file", "alerts.mail.password_env"],
            "username and password belong together".into(),
        );
    }
}

/// `name@domain` or `Name <name@domain>`; the mail sink reads it in full.
fn is_mail_address(text: &str) -> bool {
    let address = match text.strip_suffix('>').and_then(|rest| rest.rsplit_once('<')) {
        Some((_, address)) => address,
        None => text,
    };
    let sound = |part: &str| {
        !part.is_empty()
            && !part.contains(|c: char| c.is_whitespace() || c.is_control() || "<>,;@".contains(c))
    };
    !text.contains(char::is_control)
        && address.rsplit_once('@').is_some_and(|(name, domain)| sound(name) && sound(domain))
}

/// Files that settings name must be there and readable now, not only when they are first needed.
fn files(config: &Config, say: &mut impl FnMut(&[&str], String)) {
    for (at, issuer) in config.identity.jwt.iter().flat_map(Jwt::believed) {
        if let Some(Err(why)) = issuer.key_file.as_deref().map(readable) {
            say(&[&format!("{at}.key_file")], why);
        }
    }
    let oidc = config.identity.oidc.as_ref();
    let mail = config.alerts.mail.as_ref();
    let named = [
        ("tls.certificate", config.tls.certificate.as_deref()),
        ("tls.key", config.tls.key.as_deref()),
        ("proxy.upstream_ca", config.proxy.upstream_ca.as_deref()),
        ("proxy.country_file", config.proxy.country_file.as_deref()),
        ("identity.oidc.client_secret_file", oidc.and_then(|oidc| oidc.client_secret_file.as_deref())),
        (
            "identity.introspection.client_secret_file",
            config.identity.introspection.as_ref().and_then(|known| known.client_secret_file.as_deref()),
        ),
        ("models.artifact", config.models.artifact.as_deref()),
        ("models.candidate", config.models.candidate.as_deref()),
        ("policy.file", config.policy.file.as_deref()),
        ("revocation.redis_password_file", config.revocation.redis_password_file.as_deref()),
        ("revocation.redis_ca", config.revocation.redis_ca.as_deref()),
        ("alerts.mail.password_file", mail.and_then(|mail| mail.password_file.as_deref())),
        ("alerts.mail.ca", mail.and_then(|mail| mail.ca.as_deref())),
        ("alerts.webhook.ca", config.alerts.webhook.as_ref().and_then(|webhook| webhook.ca.as_deref())),
        ("ops.password_file", config.ops.password_file.as_deref()),
    ];
    for (path, file) in named {
        if let Some(Err(why)) = file.map(readable) {
            say(&[path], why);
        }
    }
    if config.data.exists() && !config.data.is_dir() {
        say(&["data"], "is a file; expected a directory".into());
    }
}

fn variables(config: &Config, environment: &[(String, String)], say: &mut impl FnMut(&[&str], String)) {
    let issuers: Vec<(String, Option<String>)> = config
        .identity
        .jwt
        .iter()
        .flat_map(Jwt::believed)
        .map(|(at, issuer)| (format!("{at}.key_env"), issuer.key_env))
        .collect();
    let mail = config.alerts.mail.as_ref();
    let variables = [
        (
            "identity.oidc.client_secret_env",
            config.identity.oidc.as_ref().and_then(|oidc| oidc.client_secret_env.as_deref()),
        ),
        (
            "identity.introspection.client_secret_env",
            config.identity.introspection.as_ref().and_then(|known| known.client_secret_env.as_deref()),
        ),
        ("alerts.mail.password_env", mail.and_then(|mail| mail.password_env.as_deref())),
    ];
    let issuers = issuers.iter().map(|(path, name)| (&**path, name.as_deref()));
    for (path, name) in issuers.chain(variables) {
        if let Some(name) = name
            && !environment.iter().any(|(known, value)| known == name && !value.is_empty())
        {
            say(&[path], format!("the variable {name:?} is not set"));
        }
    }
}

fn readable(path: &Path) -> Result<(), String> {
    let file = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let about = file.metadata().map_err(|error| format!("{}: {error}", path.display()))?;
    if !about.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    if about.len() == 0 {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(())
}

/// One server, one found by Sentinels, one found in a Cluster; each also with TLS.
const REDIS_SCHEMES: &[&str] =
    &["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"];

#[cfg(test)]
mod tests {
    use crate::config::{Config, Overrides};

    #[test]
    fn mistakes_in_a_list_of_sections_are_named_with_their_entry() {
        let told = |yaml: &str| {
            let environment = vec![("HERE".to_owned(), "a secret".to_owned())];
            let overrides = Overrides { environment, options: Vec::new() };
            let text = format!("upstream: http://app:1\n{yaml}");
            Config::from_text("f", Some(&text), &overrides)
                .map(|_| String::new())
                .unwrap_or_else(|e| e.to_string())
        };
        let good = "signals:\n  receive:\n    - issuer: https://a\n      jwks_url: https://a/jwks\n      audience: me\n";
        assert_eq!(told(good), "");
        let check = |change: &str, to: &str, expected: &str| {
            let told = told(&good.replace(change, to));
            assert!(told.contains(expected), "{to}: {told}");
        };
        check("https://a/jwks", "http://a/jwks", "f:5:7: signals.receive[0].jwks_url: must be https");
        check("issuer: https://a", "mode: enforce", "signals.receive[0].issuer: is missing");
        check(
            "audience: me",
            "audience: me\n      mode: both",
            "f:7:13: signals.receive[0].mode: expected one of",
        );
        check(
            "audience: me",
            "audience: me\n      pull_url: x",
            "signals.receive[0].pull_url: no such setting",
        );
        check(
            "audience: me",
            "audience: me\n      poll_seconds: 0",
            "receive[0].poll_seconds: must be at least 1",
        );
        check("audience: me", "audience: me\n      poll_url: https://a", "poll_bearer belong together");
        check("audience: me", "audience: me\n      push_bearer: secret", "names where the secret is");
        check("audience: me", "audience: me\n      push_bearer: ${env:GONE}", "\"GONE\" is not set");
        let twice = "audience: me\n    - issuer: https://a\n      jwks_url: https://b\n      audience: me";
        check("audience: me", twice, "signals.receive[1].issuer: another transmitter has this issuer");

        let good = "signals:\n  transmit:\n    issuer: https://a\n    key: ${env:HERE}\n    receivers:\n      - name: one\n        audience: you\n        bearer: ${env:HERE}\n";
        assert_eq!(told(good), "");
        let check = |change: &str, to: &str, expected: &str| {
            let told = told(&good.replace(change, to));
            assert!(told.contains(expected), "{to}: {told}");
        };
        check("https://a", "https://a/path", "f:4:5: signals.transmit.issuer: expected an address");
        check("key: ${env:HERE}", "key: hunter2", "signals.transmit.key: names where the secret is");
        check("name: one", "name: a b", "f:7:9: signals.transmit.receivers[0].name: expected 1 to 64");
        check("audience: you", "push_url: http://b/", "receivers[0].push_url: must be https");
        check("audience: you", "verify: true", "signals.transmit.receivers[0].audience: is missing");
    }
}
