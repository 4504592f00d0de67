//! Who a request is, header by header; and keys from a real HTTP server that misbehaves.

use super::issuer::{Issuer, NOW, NOW_SECONDS};
use super::*;
use crate::config;
use axum::response::IntoResponse;
use http::{HeaderName, HeaderValue, header};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

impl Identifier {
    /// The caller of a request to a route that takes every proof.
    pub(super) fn caller(&self, headers: &HeaderMap, now: Timestamp) -> Caller {
        self.identify(headers, None, now, Sources::ALL, false).caller
    }
}

fn secret() -> Arc<InstallSecret> {
    Arc::new(InstallSecret::from_text(&[1; 32], "test").unwrap())
}

fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn cookie(text: &str) -> HeaderMap {
    headers(&[(header::COOKIE, text)])
}

fn bearer(token: &str) -> HeaderMap {
    headers(&[(header::AUTHORIZATION, &format!("Bearer {token}"))])
}

fn payload(sid: &str, seconds: u64) -> String {
    serde_json::json!({
        "iss": "https://issuer.example", "sub": "alice", "sid": sid, "jti": format!("{sid}-token"),
        "iat": NOW_SECONDS - 5, "exp": NOW_SECONDS + seconds, "groups": ["staff", 5, ""],
    })
    .to_string()
}

struct Set {
    identifier: Identifier,
    issuer: Issuer,
    _key: tempfile::NamedTempFile,
}

/// An identifier that reads tokens from cookie `token` and the header, and `PHPSESSID` if asked.
async fn set(app_cookie: bool) -> Set {
    let issuer = Issuer::secret();
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), issuer.key_text()).unwrap();
    let config = config::Identity {
        jwt: Some(config::Jwt {
            cookie: Some("token".into()),
            key_file: Some(key.path().into()),
            ..config::Jwt::default()
        }),
        app_cookie: app_cookie.then(|| "PHPSESSID".into()),
        ..config::Identity::default()
    };
    Set { identifier: Identifier::start(&config, secret()).await.unwrap(), issuer, _key: key }
}

fn known(caller: Caller) -> Arc<Identity> {
    match caller {
        Caller::Known(identity) => identity,
        Caller::New { .. } => panic!("expected a known caller"),
    }
}

/// The new caller's identity and the cookie pair a browser sends back.
fn new(caller: Caller) -> (Arc<Identity>, String) {
    match caller {
        Caller::New { identity, set_cookie } => (identity, set_cookie.split(';').next().unwrap().to_owned()),
        Caller::Known(identity) => panic!("expected a new caller, got {identity:?}"),
    }
}

#[tokio::test]
async fn a_token_names_session_subject_token_and_groups() {
    let Set { identifier, issuer, .. } = set(false).await;
    let token = issuer.honest(&payload("one", 600));
    let by_cookie = known(identifier.caller(&cookie(&format!("a=b; token={token}; c=d")), NOW));
    let by_header = known(identifier.caller(&bearer(&token), NOW));
    assert_eq!(by_cookie, by_header);
    assert_eq!(by_cookie.expires_at, Some(Timestamp((NOW_SECONDS + 600) * 1000)));
    assert_eq!(by_cookie.issued_at, Some(Timestamp((NOW_SECONDS - 5) * 1000)));
    assert_eq!(by_cookie.groups, ["staff"]);
    let refreshed = known(identifier.caller(&bearer(&issuer.honest(&payload("one", 900))), NOW));
    assert_eq!(refreshed.session, by_cookie.session, "a refreshed token is the same session");
    let elsewhere = known(identifier.caller(&bearer(&issuer.honest(&payload("two", 600))), NOW));
    assert_ne!(elsewhere.session, by_cookie.session);
    assert_ne!(elsewhere.token, by_cookie.token);
    assert_eq!(elsewhere.subject, by_cookie.subject, "one person, two sessions");
}

#[tokio::test]
async fn headers_are_read_as_browsers_write_them() {
    let Set { identifier, issuer, .. } = set(false).await;
    let token = issuer.honest(&payload("one", 600));
    let expected = known(identifier.caller(&bearer(&token), NOW));
    for request in [
        headers(&[(header::AUTHORIZATION, &format!("bearer {token}"))]),
        headers(&[(header::AUTHORIZATION, &format!("BEARER  {token} "))]),
        cookie(&format!("token={token}")),
        cookie(&format!("token=\"{token}\"")),
        cookie(&format!("x=1;token={token};y")),
        headers(&[(header::COOKIE, "a=b"), (header::COOKIE, &format!("token={token}"))]),
    ] {
        assert_eq!(known(identifier.caller(&request, NOW)), expected, "{request:?}");
    }
    for request in [
        headers(&[(header::AUTHORIZATION, &format!("Basic {token}"))]),
        headers(&[(header::AUTHORIZATION, &format!("Bearer{token}"))]),
        headers(&[(header::AUTHORIZATION, &token)]),
        headers(&[(header::AUTHORIZATION, "Bearer")]),
        cookie(&format!("Token={token}")),
        cookie(&format!("xtoken={token}")),
        cookie(&format!("tokens={token}")),
        cookie(&format!("x=token={token}")),
        cookie("token"),
        cookie("token="),
    ] {
        new(identifier.caller(&request, NOW));
    }
}

#[tokio::test]
async fn a_token_that_expires_is_dropped_though_cached() {
    let Set { identifier, issuer, .. } = set(false).await;
    let request = bearer(&issuer.honest(&payload("one", 60)));
    let last = Timestamp(NOW.0 + 90_000 - 1);
    known(identifier.caller(&request, NOW));
    known(identifier.caller(&request, last));
    new(identifier.caller(&request, Timestamp(last.0 + 1)));
}

#[tokio::test]
async fn a_bad_token_leaves_its_sender_with_their_own_cookie() {
    let Set { identifier, issuer, .. } = set(false).await;
    let (visitor, own) = new(identifier.caller(&HeaderMap::new(), NOW));
    let honest = issuer.honest(&payload("victim", 600));
    let victim = known(identifier.caller(&bearer(&honest), NOW));
    let forged = format!("{}A", &honest[..honest.len() - 1]);
    let expired =
        issuer.honest(&payload("victim", 0).replace(&format!("\"exp\":{NOW_SECONDS}"), "\"exp\":1000"));
    for token in [forged, expired] {
        for request in [
            headers(&[(header::COOKIE, &format!("{own}; token={token}"))]),
            headers(&[(header::COOKIE, &own), (header::AUTHORIZATION, &format!("Bearer {token}"))]),
        ] {
            assert_eq!(known(identifier.caller(&request, NOW)).session, visitor.session);
        }
        assert_ne!(new(identifier.caller(&bearer(&token), NOW)).0.session, victim.session);
    }
}

#[tokio::test]
async fn an_own_cookie_comes_back_as_the_same_session() {
    let Set { identifier, .. } = set(false).await;
    let (identity, own) = new(identifier.caller(&HeaderMap::new(), NOW));
    assert_eq!(known(identifier.caller(&cookie(&own), NOW)), identity);
    assert_eq!(known(identifier.caller(&cookie(&own), NOW)), identity, "from the cache");
    let (other, _) = new(identifier.caller(&HeaderMap::new(), NOW));
    assert_ne!(identity.session, other.session);
    let Caller::New { set_cookie, .. } = identifier.caller(&HeaderMap::new(), NOW) else { panic!() };
    assert!(set_cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{set_cookie}");
    let identifier = identifier.with_secure_cookies();
    let Caller::New { set_cookie, .. } = identifier.caller(&HeaderMap::new(), NOW) else { panic!() };
    assert!(set_cookie.ends_with("; SameSite=Lax; Secure"), "{set_cookie}");
}

#[tokio::test]
async fn a_changed_own_cookie_is_a_new_session() {
    let Set { identifier, .. } = set(false).await;
    let (_, own) = new(identifier.caller(&HeaderMap::new(), NOW));
    let (name, value) = own.split_once('=').unwrap();
    for at in 0..value.len() {
        let mut changed = value.as_bytes().to_vec();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        new(identifier.caller(&cookie(&format!("{name}={changed}")), NOW));
    }
    for value in ["", "1.", "1", "2.AAAA", &value[..value.len() - 1], &format!("{value}A"), &"A".repeat(5000)]
    {
        new(identifier.caller(&cookie(&format!("{name}={value}")), NOW));
    }
    let other = InstallSecret::from_text(&[2; 32], "test").unwrap();
    let config = config::Identity::default();
    let elsewhere = Identifier::start(&config, Arc::new(other)).await.unwrap();
    new(elsewhere.caller(&cookie(&own), NOW));
}

#[tokio::test]
async fn a_cookie_seen_with_a_header_token_stands_for_it_until_it_expires() {
    let Set { identifier, issuer, .. } = set(false).await;
    let (visitor, own) = new(identifier.caller(&HeaderMap::new(), NOW));
    let token = issuer.honest(&payload("one", 60));
    let both = headers(&[(header::COOKIE, &own), (header::AUTHORIZATION, &format!("Bearer {token}"))]);
    let login = known(identifier.caller(&both, NOW));
    assert_ne!(login.session, visitor.session);
    assert_eq!(known(identifier.caller(&cookie(&own), NOW)), login, "telemetry carries the cookie only");
    let expired = Timestamp(NOW.0 + 90_000);
    assert_eq!(known(identifier.caller(&cookie(&own), expired)).session, visitor.session);
    let next = issuer.honest(&payload("two", 600));
    let both = headers(&[(header::COOKIE, &own), (header::AUTHORIZATION, &format!("Bearer {next}"))]);
    let next = known(identifier.caller(&both, NOW));
    assert_eq!(known(identifier.caller(&cookie(&own), NOW)), next, "the latest login counts");
    let (_, stranger) = new(identifier.caller(&HeaderMap::new(), NOW));
    assert_ne!(known(identifier.caller(&cookie(&stranger), NOW)).session, next.session);
}

#[tokio::test]
async fn a_forged_header_token_makes_no_alias() {
    let Set { identifier, .. } = set(false).await;
    let (visitor, own) = new(identifier.caller(&HeaderMap::new(), NOW));
    let forged =
        Issuer::Secret(b"another secret that is long enough".to_vec()).honest(&payload("victim", 600));
    let both = headers(&[(header::COOKIE, &own), (header::AUTHORIZATION, &format!("Bearer {forged}"))]);
    assert_eq!(known(identifier.caller(&both, NOW)).session, visitor.session);
    assert_eq!(known(identifier.caller(&cookie(&own), NOW)).session, visitor.session);
}

#[tokio::test]
async fn a_route_goes_by_the_proofs_it_names_and_the_others_still_count() {
    let Set { identifier, issuer, .. } = set(true).await;
    let (_, own) = new(identifier.caller(&HeaderMap::new(), NOW));
    let token = issuer.honest(&payload("one", 600));
    let request = cookie(&format!("PHPSESSID=abc; token={token}; {own}"));
    let by = |sources| identifier.identify(&request, None, NOW, sources, true);
    let of = |cookies: &str| known(identifier.caller(&cookie(cookies), NOW));
    let (login, app, visitor) = (of(&format!("token={token}")), of("PHPSESSID=abc"), of(&own));
    let sorted = |mut identities: Vec<_>| {
        identities.sort_by_key(|identity: &Arc<Identity>| identity.session);
        identities
    };
    for (sources, caller, others) in [
        (Sources::ALL, &login, [&app, &visitor]),
        (Sources { jwt: true, ..Sources::NONE }, &login, [&app, &visitor]),
        (Sources { app_cookie: true, ..Sources::NONE }, &app, [&login, &visitor]),
        (Sources::NONE, &visitor, [&login, &app]),
    ] {
        let found = by(sources);
        assert_eq!(found.caller.identity(), caller, "{sources:?}");
        assert_eq!(sorted(found.others), sorted(others.map(Arc::clone).to_vec()), "{sources:?}");
    }
}

#[tokio::test]
async fn the_app_cookie_names_the_session_where_no_token_does() {
    let Set { identifier, issuer, .. } = set(true).await;
    let one = known(identifier.caller(&cookie("PHPSESSID=abc"), NOW));
    assert_eq!(known(identifier.caller(&cookie("x=y; PHPSESSID=abc"), NOW)), one);
    assert_ne!(known(identifier.caller(&cookie("PHPSESSID=abd"), NOW)).session, one.session);
    let token = issuer.honest(&payload("one", 600));
    let both = identifier.identify(
        &cookie(&format!("PHPSESSID=abc; token={token}")),
        None,
        NOW,
        Sources::ALL,
        false,
    );
    assert_ne!(both.caller.identity().session, one.session, "a token is the better proof");
    assert_eq!(both.others, [one], "but the app may look at its cookie");
    new(identifier.caller(&cookie("PHPSESSID="), NOW));
    new(identifier.caller(&cookie(&format!("PHPSESSID={}", "a".repeat(APP_COOKIE_BYTES_MAX + 1))), NOW));
    assert_eq!(identifier.cookies_to_clear(), ["token", "PHPSESSID", "gaitway_session"]);
}

#[tokio::test]
async fn every_token_of_a_request_is_shown_for_revocation() {
    let Set { identifier, issuer, .. } = set(false).await;
    let revoked = issuer.honest(&payload("revoked", 600));
    let good = issuer.honest(&payload("good", 600));
    let revoked_session = known(identifier.caller(&bearer(&revoked), NOW)).session;
    let junk = Issuer::Secret(b"another secret that is long enough".to_vec()).honest(&payload("junk", 600));
    let many = format!("token={junk}; ").repeat(40);
    for request in [
        cookie(&format!("token={good}; token={revoked}")),
        cookie(&format!("token={revoked}; token={good}")),
        cookie(&format!("{many}token={good}; token={revoked}")),
        cookie(&format!("token={good}; {many}token={revoked}")),
        headers(&[
            (header::COOKIE, &format!("token={good}")),
            (header::AUTHORIZATION, &format!("Bearer {revoked}")),
        ]),
        headers(&[
            (header::COOKIE, &format!("token={revoked}")),
            (header::AUTHORIZATION, &format!("Bearer {good}")),
        ]),
        headers(&[
            (header::AUTHORIZATION, &format!("Bearer {good}")),
            (header::AUTHORIZATION, &format!("Bearer {revoked}")),
        ]),
    ] {
        let found = identifier.identify(&request, None, NOW, Sources::ALL, false);
        let sessions = [&[Arc::clone(found.caller.identity())], &found.others[..]].concat();
        assert!(sessions.iter().any(|identity| identity.session == revoked_session));
    }
    let twice = cookie(&format!("token={good}; token={good}"));
    assert!(identifier.identify(&twice, None, NOW, Sources::ALL, false).others.is_empty());
}

#[tokio::test]
async fn bad_settings_are_named_at_start() {
    let jwt = |change: &dyn Fn(&mut config::Jwt)| {
        let mut jwt = config::Jwt { cookie: Some("token".into()), ..config::Jwt::default() };
        change(&mut jwt);
        config::Identity { jwt: Some(jwt), ..config::Identity::default() }
    };
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), Issuer::secret().key_text()).unwrap();
    let path = key.path().to_owned();
    for (config, says) in [
        (jwt(&|_| ()), "exactly one"),
        (jwt(&|j| (j.key_file, j.jwks_url) = (Some(path.clone()), Some("http://x".into()))), "exactly one"),
        (jwt(&|j| j.key_file = Some("/nonexistent/key".into())), "/nonexistent/key"),
        (jwt(&|j| j.key_env = Some("GAITWAY_TEST_NOT_SET".into())), "GAITWAY_TEST_NOT_SET"),
        (jwt(&|j| (j.key_file, j.algorithms) = (Some(path.clone()), vec!["none".into()])), "none"),
        (jwt(&|j| (j.key_file, j.algorithms) = (Some(path.clone()), vec!["hs256".into()])), "hs256"),
        (jwt(&|j| (j.key_file, j.algorithms) = (Some(path.clone()), vec![])), "no algorithm"),
        (jwt(&|j| j.jwks_url = Some("http://127.0.0.1:1/".into())), "shared secret"),
        (jwt(&|j| (j.jwks_url, j.algorithms) = (Some("ftp://x/".into()), vec!["RS256".into()])), "http"),
        (jwt(&|j| j.cookie = Some("a b".into())), "identity.jwt.cookie"),
        (
            jwt(&|j| j.issuers = vec![config::JwtIssuer::default()]),
            "identity.jwt.issuers[0]: set exactly one",
        ),
        (config::Identity { cookie_name: "a=b".into(), ..Default::default() }, "identity.cookie_name"),
        (config::Identity { app_cookie: Some(String::new()), ..Default::default() }, "identity.app_cookie"),
    ] {
        let error = Identifier::start(&config, secret()).await.err().expect(says).to_string();
        assert!(error.contains(says), "{error:?} should mention {says:?}");
    }
}

/// What the issuer's key server does when asked.
#[derive(Clone)]
enum Answer {
    Keys(String),
    Status(u16),
    /// Endless body.
    Oversize,
    /// Header, then nothing.
    Hang,
    Redirect(String),
}

struct KeyServer {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl KeyServer {
    async fn start(answer: Answer) -> KeyServer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        let (for_handler, count) = (Arc::clone(&answer), Arc::clone(&asked));
        let handler = move || {
            count.fetch_add(1, Ordering::SeqCst);
            let answer = for_handler.lock().unwrap().clone();
            async move {
                use futures_util::stream;
                let endless =
                    |chunk: &'static str| stream::repeat_with(move || Ok::<_, std::io::Error>(chunk));
                match answer {
                    Answer::Keys(document) => document.into_response(),
                    Answer::Status(status) => {
                        axum::http::StatusCode::from_u16(status).unwrap().into_response()
                    }
                    Answer::Oversize => axum::body::Body::from_stream(endless(SPACES)).into_response(),
                    Answer::Hang => {
                        let never = stream::pending::<Result<&'static str, std::io::Error>>();
                        axum::body::Body::from_stream(never).into_response()
                    }
                    Answer::Redirect(to) => axum::response::Redirect::temporary(&to).into_response(),
                }
            }
        };
        let app = axum::Router::new().route("/jwks.json", axum::routing::get(handler));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        KeyServer { address, answer, asked, task }
    }

    fn now_answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn identifier(&self, timing: Timing) -> Identifier {
        let config = config::Identity {
            jwt: Some(config::Jwt {
                cookie: Some("token".into()),
                jwks_url: Some(format!("http://{}/jwks.json?code=hidden", self.address)),
                algorithms: ["RS256", "ES256", "ES384", "EdDSA"].map(Into::into).into(),
                ..config::Jwt::default()
            }),
            ..config::Identity::default()
        };
        Identifier::start_with(&config, secret(), timing).await.unwrap()
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn document(issuers: &[(&str, &Issuer)]) -> Answer {
    let keys: Vec<_> = issuers.iter().map(|(kid, issuer)| issuer.jwk(kid)).collect();
    Answer::Keys(serde_json::json!({ "keys": keys }).to_string())
}

fn signed(issuer: &Issuer, kid: &str, sid: &str) -> HeaderMap {
    let header = format!(r#"{{"alg":"{}","kid":"{kid}"}}"#, issuer.algorithm());
    bearer(&issuer.token(&header, &payload(sid, 600)))
}

/// Never on its own: only when asked, or ten times a second after a failure.
const ON_DEMAND: Timing = Timing {
    refresh: Duration::from_secs(3600),
    spacing: Duration::from_millis(100),
    timeout: Duration::from_millis(400),
    file: Duration::from_millis(5),
};

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_known(identifier: &Identifier, request: &HeaderMap) -> bool {
    matches!(identifier.caller(request, NOW), Caller::Known(_))
}

#[tokio::test]
async fn a_changed_key_file_counts_at_once_and_a_broken_one_changes_nothing() {
    let (old, new) = (Issuer::secret(), Issuer::Secret(b"another secret of more than 32 bytes".to_vec()));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), old.key_text()).unwrap();
    let jwt = config::Jwt { key_file: Some(file.path().into()), ..config::Jwt::default() };
    let config = config::Identity { jwt: Some(jwt), ..config::Identity::default() };
    let identifier = Identifier::start_with(&config, secret(), ON_DEMAND).await.unwrap();
    let by = |issuer: &Issuer| bearer(&issuer.honest(&payload("s", 600)));
    assert!(is_known(&identifier, &by(&old)) && !is_known(&identifier, &by(&new)));
    std::fs::write(file.path(), new.key_text()).unwrap();
    until("the new key counts", || is_known(&identifier, &by(&new))).await;
    assert!(!is_known(&identifier, &by(&old)), "the old one no longer, cached or not");
    std::fs::write(file.path(), "").unwrap();
    let mut looks = 0;
    until("it was looked at several times", || {
        assert!(is_known(&identifier, &by(&new)), "a file without a key changes nothing");
        looks += 1;
        looks > 20
    })
    .await;
    std::fs::write(file.path(), old.key_text()).unwrap();
    until("it is looked at again", || is_known(&identifier, &by(&old))).await;
}

#[tokio::test]
async fn keys_come_from_the_address_and_rotate() {
    let (old, new_key) = (Issuer::p256(), Issuer::ed());
    let server = KeyServer::start(document(&[("a", &old)])).await;
    let identifier = server.identifier(ON_DEMAND).await;
    assert!(is_known(&identifier, &signed(&old, "a", "one")));
    assert!(!is_known(&identifier, &signed(&old, "b", "one")), "a key of another id does not serve");
    server.now_answers(document(&[("a", &old), ("b", &new_key)]));
    let request = signed(&new_key, "b", "two");
    until("the new key is fetched when a token names it", || is_known(&identifier, &request)).await;
    assert!(is_known(&identifier, &signed(&old, "a", "one")), "the old key is still published");
    server.now_answers(document(&[("b", &new_key)]));
    let cached = signed(&old, "a", "one");
    assert!(is_known(&identifier, &cached), "believed until the next fetch");
    let unknown = signed(&Issuer::p384(), "c", "three");
    until("a withdrawn key verifies no more, cached or not", || {
        identifier.caller(&unknown, NOW);
        !is_known(&identifier, &cached)
    })
    .await;
    assert!(is_known(&identifier, &request));
}

#[tokio::test]
async fn many_unknown_key_ids_cost_few_fetches() {
    let issuer = Issuer::p256();
    let server = KeyServer::start(document(&[("a", &issuer)])).await;
    let timing = Timing { spacing: Duration::from_secs(3600), ..ON_DEMAND };
    let identifier = server.identifier(timing).await;
    for n in 0..200 {
        assert!(!is_known(&identifier, &signed(&issuer, &format!("unknown-{n}"), "x")));
        tokio::task::yield_now().await;
    }
    assert_eq!(server.asked(), 1, "only the fetch at start");
}

#[tokio::test]
async fn the_last_good_keys_outlast_every_kind_of_failure() {
    let (issuer, attacker) = (Issuer::rsa(), Issuer::rsa());
    let server = KeyServer::start(document(&[("a", &issuer)])).await;
    let elsewhere = KeyServer::start(document(&[("a", &attacker)])).await;
    let identifier = server.identifier(ON_DEMAND).await;
    let nudge = signed(&attacker, "unknown", "x");
    let too_many: Vec<_> = (0..65).map(|_| attacker.jwk("a")).collect();
    for failure in [
        Answer::Status(500),
        Answer::Status(404),
        Answer::Keys(String::new()),
        Answer::Keys("<html>".into()),
        Answer::Keys(r#"{"keys":[]}"#.into()),
        Answer::Keys(r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"a"}]}"#.into()),
        Answer::Keys(serde_json::json!({ "keys": too_many }).to_string()),
        Answer::Oversize,
        Answer::Hang,
        Answer::Redirect(format!("http://{}/jwks.json", elsewhere.address)),
    ] {
        server.now_answers(failure);
        let before = server.asked();
        until("it was fetched twice, so the first failure is digested", || {
            identifier.caller(&nudge, NOW);
            server.asked() >= before + 2
        })
        .await;
        assert!(is_known(&identifier, &signed(&issuer, "a", "one")));
        assert!(!is_known(&identifier, &signed(&attacker, "a", "one")));
    }
    assert_eq!(elsewhere.asked(), 0, "a redirect is not followed");
    server.task.abort();
    assert!(is_known(&identifier, &signed(&issuer, "a", "two")), "nobody listens any more");
}

#[tokio::test]
async fn an_outage_at_start_is_mended_later() {
    let issuer = Issuer::p256();
    let server = KeyServer::start(Answer::Status(503)).await;
    let identifier = server.identifier(ON_DEMAND).await;
    let request = signed(&issuer, "a", "one");
    new(identifier.caller(&request, NOW));
    server.now_answers(document(&[("a", &issuer)]));
    until("the keys arrive without a nudge", || is_known(&identifier, &request)).await;
}

#[tokio::test]
async fn keys_unfit_for_signatures_are_left_out() {
    let (good, other) = (Issuer::p256(), Issuer::p256());
    let odd = |changes: serde_json::Value| {
        let mut jwk = other.jwk("odd");
        for (name, value) in changes.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    };
    for jwk in [
        odd(serde_json::json!({"use": "enc"})),
        odd(serde_json::json!({"key_ops": ["sign"]})),
        odd(serde_json::json!({"alg": "RS256"})),
        odd(serde_json::json!({"alg": "ES384"})),
        odd(serde_json::json!({"alg": "ECDH-ES"})),
        odd(serde_json::json!({"crv": "P-384"})),
        odd(serde_json::json!({"x": "AAAA"})),
        odd(serde_json::json!({"x": 5})),
        odd(serde_json::json!({"kty": "RSA"})),
        odd(serde_json::json!({"kid": 5})),
        serde_json::json!(null),
        serde_json::json!([]),
    ] {
        let keys = serde_json::json!({"keys": [jwk, good.jwk("a")]}).to_string();
        let allowed = ["ES256", "ES384", "RS256"].map(|name| keys::parse_algorithm(name).unwrap());
        let set = KeySet::from_jwks(keys.as_bytes(), &allowed).unwrap();
        assert_eq!(set.len(), 1, "{jwk}");
    }
}

#[tokio::test]
async fn a_token_without_kid_is_served_only_where_there_is_no_choice() {
    let (one, two) = (Issuer::p256(), Issuer::p256());
    let server = KeyServer::start(document(&[("a", &one)])).await;
    let identifier = server.identifier(ON_DEMAND).await;
    assert!(is_known(&identifier, &bearer(&one.honest(&payload("one", 600)))));
    let server = KeyServer::start(document(&[("a", &one), ("b", &two)])).await;
    let identifier = server.identifier(ON_DEMAND).await;
    assert!(!is_known(&identifier, &bearer(&one.honest(&payload("one", 600)))));
}

const ALPHA: &str = "https://alpha.example";
const BETA: &str = "https://beta.example";

/// What an honest token of an issuer says, with members put in place of others; `null` takes one out.
fn said_by(iss: &str, changes: serde_json::Value) -> String {
    let mut claims = serde_json::json!({
        "iss": iss, "aud": "shop", "sub": "alice", "sid": "one", "jti": "1",
        "iat": NOW_SECONDS - 5, "exp": NOW_SECONDS + 600,
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            serde_json::Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims.to_string()
}

fn under(issuer: &Issuer, kid: &str, payload: &str) -> HeaderMap {
    bearer(&issuer.token(&format!(r#"{{"alg":"{}","kid":"{kid}"}}"#, issuer.algorithm()), payload))
}

fn trusted(server: &KeyServer, name: &str, audience: &str) -> config::JwtIssuer {
    config::JwtIssuer {
        issuer: Some(name.into()),
        audience: Some(audience.into()),
        algorithms: vec!["ES256".into(), "EdDSA".into()],
        jwks_url: Some(format!("http://{}/jwks.json", server.address)),
        ..config::JwtIssuer::default()
    }
}

async fn believing(issuers: Vec<config::JwtIssuer>) -> Identifier {
    let jwt = config::Jwt { issuers, ..config::Jwt::default() };
    let config = config::Identity { jwt: Some(jwt), ..config::Identity::default() };
    Identifier::start_with(&config, secret(), ON_DEMAND).await.unwrap()
}

#[tokio::test]
async fn an_issuers_token_counts_by_its_own_keys_alone() {
    let nothing = serde_json::json!({});
    // Both publish a key of one id, and one more each.
    let [a, a2, b, b2] = [Issuer::p256(), Issuer::p256(), Issuer::p256(), Issuer::p256()];
    let alphas = KeyServer::start(document(&[("1", &a), ("a", &a2)])).await;
    let betas = KeyServer::start(document(&[("1", &b), ("b", &b2)])).await;
    let identifier = believing(vec![trusted(&alphas, ALPHA, "shop"), trusted(&betas, BETA, "desk")]).await;
    let desk = serde_json::json!({"aud": "desk"});
    let alice = known(identifier.caller(&under(&a, "1", &said_by(ALPHA, nothing.clone())), NOW));
    let other_alice = known(identifier.caller(&under(&b, "1", &said_by(BETA, desk.clone())), NOW));
    assert!(is_known(&identifier, &under(&a2, "a", &said_by(ALPHA, nothing.clone()))));
    assert!(is_known(&identifier, &under(&b2, "b", &said_by(BETA, desk.clone()))));
    assert_ne!(alice.session, other_alice.session, "the same sid of another issuer is another session");
    assert_ne!(alice.token, other_alice.token);
    assert_ne!(alice.subject, other_alice.subject);

    let honest = said_by(ALPHA, nothing.clone());
    let twice = |first: &str, last: &str| {
        honest.replacen(
            &format!("\"iss\":\"{ALPHA}\""),
            &format!("\"iss\":\"{first}\",\"iss\":\"{last}\""),
            1,
        )
    };
    let iss = |value: serde_json::Value| {
        said_by(ALPHA, serde_json::json!({ "iss": value, "aud": ["shop", "desk"] }))
    };
    let mut forgeries = Vec::new();
    for (signer, kid) in
        [(&b, "1"), (&b, "b"), (&b, "a"), (&b2, "b"), (&b2, "1"), (&b2, "a"), (&a, "b"), (&a2, "b")]
    {
        forgeries.push((format!("alpha's, signed under {kid} by another key"), under(signer, kid, &honest)));
    }
    for (signer, kid) in [(&a, "1"), (&a2, "a"), (&a, "b"), (&a2, "b")] {
        let token = under(signer, kid, &said_by(BETA, desk.clone()));
        forgeries.push((format!("beta's, signed under {kid} by alpha"), token));
    }
    forgeries.push(("signed by beta, without kid".into(), bearer(&b.honest(&honest))));
    for (signer, who) in [(&a, "alpha"), (&b, "beta")] {
        for payload in [
            said_by(ALPHA, serde_json::json!({ "iss": null })),
            iss(serde_json::Value::Null),
            iss([ALPHA].into_iter().collect()),
            iss([ALPHA, BETA].into_iter().collect()),
            iss([BETA, ALPHA].into_iter().collect()),
            iss("".into()),
            iss(5.into()),
            iss(true.into()),
            iss(serde_json::json!({ "id": ALPHA })),
            iss(format!("{ALPHA}/").into()),
            iss(format!("{ALPHA} ").into()),
            iss(format!("{ALPHA}\0").into()),
            iss(format!("{ALPHA},{BETA}").into()),
            iss(format!("{ALPHA}#{BETA}").into()),
            iss(ALPHA.to_uppercase().into()),
            iss(ALPHA.replace("https", "http").into()),
            iss("https://gamma.example".into()),
            twice(ALPHA, ALPHA),
            twice(ALPHA, BETA),
            twice(BETA, ALPHA),
            honest.replacen("\"iss\"", "\"iss\":\"x\",\"\\u0069ss\"", 1),
            honest.replacen("\"iss\"", "\"ISS\"", 1),
        ] {
            forgeries.push((format!("by {who}: {payload}"), under(signer, "1", &payload)));
        }
        // An `iss` beside the claims chooses nothing.
        let header = format!(r#"{{"alg":"ES256","kid":"1","iss":"{ALPHA}"}}"#);
        let payload = said_by("https://gamma.example", nothing.clone());
        forgeries.push((format!("by {who}: iss in the header"), bearer(&signer.token(&header, &payload))));
    }
    forgeries.push(("beta's, for alpha's audience".into(), under(&b, "1", &said_by(BETA, nothing.clone()))));
    forgeries.push(("alpha's, for beta's audience".into(), under(&a, "1", &said_by(ALPHA, desk))));
    for (name, request) in &forgeries {
        assert!(!is_known(&identifier, request), "believed: {name}");
    }
    assert!(forgeries.len() >= 60, "{}", forgeries.len());
}

#[tokio::test]
async fn issuers_have_algorithms_and_leeway_of_their_own() {
    let nothing = serde_json::json!({});
    let (public, shared) = (Issuer::p256(), Issuer::secret());
    let [public_key, secret_key] = [&public, &shared].map(|issuer| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), issuer.key_text()).unwrap();
        file
    });
    let by_file =
        |name: &str, algorithm: &str, file: &tempfile::NamedTempFile, leeway_seconds| config::JwtIssuer {
            issuer: Some(name.into()),
            algorithms: vec![algorithm.into()],
            key_file: Some(file.path().into()),
            leeway_seconds,
            ..config::JwtIssuer::default()
        };
    let issuers =
        vec![by_file(ALPHA, "ES256", &public_key, None), by_file(BETA, "HS256", &secret_key, Some(0))];
    let identifier = believing(issuers).await;
    let by = |issuer: &Issuer, iss: &str, exp: u64| {
        bearer(&issuer.honest(&said_by(iss, serde_json::json!({ "exp": exp }))))
    };
    assert!(is_known(&identifier, &by(&public, ALPHA, NOW_SECONDS - 29)), "30 s where nothing is said");
    assert!(!is_known(&identifier, &by(&shared, BETA, NOW_SECONDS - 1)), "none");
    assert!(is_known(&identifier, &by(&shared, BETA, NOW_SECONDS + 1)));
    // The public key of one is no secret of the other.
    for text in [public.key_text(), public.key_text().trim_ascii_end().to_vec()] {
        for iss in [ALPHA, BETA] {
            assert!(!is_known(&identifier, &by(&Issuer::Secret(text.clone()), iss, NOW_SECONDS + 60)));
        }
    }
    assert!(!is_known(&identifier, &bearer(&shared.honest(&said_by(ALPHA, nothing.clone())))));
    assert!(!is_known(&identifier, &bearer(&public.honest(&said_by(BETA, nothing)))));
}

#[tokio::test]
async fn keys_of_one_issuer_rotate_and_fail_without_the_other() {
    let (a, b, b2) = (Issuer::p256(), Issuer::p256(), Issuer::ed());
    let alphas = KeyServer::start(document(&[("1", &a)])).await;
    let betas = KeyServer::start(Answer::Hang).await;
    let identifier = believing(vec![trusted(&alphas, ALPHA, "shop"), trusted(&betas, BETA, "shop")]).await;
    let of_alpha = under(&a, "1", &said_by(ALPHA, serde_json::json!({})));
    let of_beta = |key: &Issuer| under(key, "1", &said_by(BETA, serde_json::json!({})));
    assert!(is_known(&identifier, &of_alpha), "beta's silence is beta's");
    betas.now_answers(document(&[("1", &b)]));
    until("beta's keys arrive", || is_known(&identifier, &of_beta(&b))).await;
    betas.now_answers(document(&[("1", &b2)]));
    let nudge = under(&b, "unknown", &said_by(BETA, serde_json::json!({})));
    until("beta's old key counts no more, cached or not", || {
        identifier.caller(&nudge, NOW);
        !is_known(&identifier, &of_beta(&b))
    })
    .await;
    assert!(is_known(&identifier, &of_beta(&b2)) && is_known(&identifier, &of_alpha));
    assert_eq!(alphas.asked(), 1, "beta's tokens ask nothing of alpha");
    alphas.task.abort();
    for n in 0..20 {
        identifier.caller(&under(&a, &format!("unknown-{n}"), &said_by(ALPHA, serde_json::json!({}))), NOW);
    }
    assert!(is_known(&identifier, &of_alpha) && is_known(&identifier, &of_beta(&b2)));
}

#[tokio::test]
async fn a_token_in_the_query_counts_like_one_in_the_header() {
    let issuer = Issuer::secret();
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), issuer.key_text()).unwrap();
    let jwt = config::Jwt {
        header: false,
        query: Some("access_token".into()),
        key_file: Some(key.path().into()),
        ..config::Jwt::default()
    };
    let config = config::Identity { jwt: Some(jwt), ..config::Identity::default() };
    let identifier = Identifier::start(&config, secret()).await.unwrap();
    let none = HeaderMap::new();
    let by = |query: &str| identifier.identify(&none, Some(query), NOW, Sources::ALL, false);
    let token = issuer.honest(&payload("one", 600));
    let expected = known(by(&format!("access_token={token}")).caller);
    for query in [
        format!("a=b&access_token={token}&c=d"),
        format!("a=b;access_token={token}"),
        format!("access%5Ftoken={token}"),
        format!("access_token={}", token.replace('.', "%2E")),
    ] {
        assert_eq!(known(by(&query).caller), expected, "{query}");
    }
    for query in
        ["", "access_token", "access_token=", "access_token=junk"].map(str::to_owned).into_iter().chain([
            format!("Access_token={token}"),
            format!("xaccess_token={token}"),
            format!("a=access_token={token}"),
            format!("access_token[]={token}"),
        ])
    {
        new(by(&query).caller);
    }
    new(identifier.caller(&bearer(&token), NOW));
    // Every one counts against the request, whichever the app honours.
    let revoked = issuer.honest(&payload("revoked", 600));
    let revoked_session = known(by(&format!("access_token={revoked}")).caller).session;
    for query in [
        format!("access_token={token}&access_token={revoked}"),
        format!("access_token={revoked}&access_token={token}"),
    ] {
        let found = by(&query);
        let mut sessions = found.others.iter().chain([found.caller.identity()]);
        assert!(sessions.any(|identity| identity.session == revoked_session), "{query}");
    }
    // Anybody can write a link: it ties no cookie to its token, and what it alone proves is said to be so.
    let (_, own) = new(identifier.caller(&none, NOW));
    let page =
        identifier.identify(&cookie(&own), Some(&format!("access_token={token}")), NOW, Sources::ALL, false);
    assert_eq!(page.linked, [known(page.caller)]);
    assert_ne!(known(identifier.caller(&cookie(&own), NOW)), expected);
}

#[tokio::test]
async fn a_token_in_the_query_gives_way_to_one_that_a_link_cannot_bring() {
    let issuer = Issuer::secret();
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), issuer.key_text()).unwrap();
    let jwt = config::Jwt {
        query: Some("access_token".into()),
        key_file: Some(key.path().into()),
        ..config::Jwt::default()
    };
    let config = config::Identity { jwt: Some(jwt), ..config::Identity::default() };
    let identifier = Identifier::start(&config, secret()).await.unwrap();
    let (own, other) = (issuer.honest(&payload("own", 600)), issuer.honest(&payload("other", 600)));
    let by = |query: &str| {
        let query = format!("access_token={query}");
        identifier.identify(&bearer(&own), Some(&query), NOW, Sources::ALL, false)
    };
    let (same, foreign) = (by(&own), by(&other));
    assert_eq!((same.others.len(), same.linked.len()), (0, 0), "the header proves it, too");
    assert_eq!(known(foreign.caller), known(same.caller));
    assert_eq!((&foreign.others, foreign.linked.len()), (&foreign.linked, 1));
}

/// A chunk of a document that never ends.
const SPACES: &str = "                                                                ";
