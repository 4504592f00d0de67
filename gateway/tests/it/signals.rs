//! Security events between the gateway and identity providers: a real provider's keys sign what the gateway
//! is told, a real library of somebody else's (easyssf-receiver) verifies what the gateway tells.

use crate::app::App;
use crate::gateway::{Gateway, eventually};
use crate::login::{Browser, Site};
use crate::servers::{Provider, Redis, free_port};
use axum::Router;
use axum::routing::post;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const PASSWORD: &str = "operators share this password";
const REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
const VERIFICATION: &str = "https://schemas.openid.net/secevent/ssf/event-type/verification";
const BEARER: &str = "the provider knows us";
const SHOP: &str = "https://shop.example";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// An app whose tokens a provider issues, behind a gateway that listens to that provider.
struct Shop {
    provider: Arc<Provider>,
    gateway: Gateway,
    http: Client,
    _app: App,
    _directory: TempDir,
}

impl Shop {
    /// `receive`: more settings of the transmitter that is listened to; `transmit`: the whole section.
    async fn start(receive: &str, transmit: &str) -> Shop {
        let provider = Provider::start(&json!({"gateway": "http://127.0.0.1:1"}));
        Shop::behind(provider, receive, transmit, &[]).await
    }

    async fn behind(
        provider: impl Into<Arc<Provider>>,
        receive: &str,
        transmit: &str,
        environment: &[(&str, &str)],
    ) -> Shop {
        let provider = provider.into();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("password"), PASSWORD).unwrap();
        let issuer = provider.url("");
        let settings = format!(
            "identity:\n  jwt:\n    jwks_url: {issuer}/jwks\n    algorithms: [RS256]\n    issuer: {issuer}\nops:\n  listen: 127.0.0.1:0\n  password_file: {}/password\nsignals:\n  receive:\n    - issuer: {issuer}\n      jwks_url: {issuer}/jwks\n      audience: {SHOP}\n{receive}{transmit}",
            directory.path().display()
        );
        let app = App::start().await;
        let gateway = Gateway::start_with(&app.url(), &settings, environment);
        let shop = Shop { provider, gateway, http: Client::new(), _app: app, _directory: directory };
        let probe = shop.token("nobody", "probe", now()).await;
        eventually("the provider's keys are known", async || {
            shop.visit(&probe).await;
            shop.gateway.metric("gaitway_tokens_verified_total", "").await >= 1.0
        })
        .await;
        shop.until_events_are_taken().await;
        shop
    }

    /// Another gateway that listens to the same provider.
    async fn beside(&self, more: &str, environment: &[(&str, &str)]) -> Shop {
        Shop::behind(self.provider.clone(), ENFORCED, more, environment).await
    }

    /// Pushes what concerns nobody until its answer says that keys, store and board are there.
    async fn until_events_are_taken(&self) {
        let mut claims = self.event("probe", &self.iss_sub("nobody"), now());
        claims["events"] = json!({VERIFICATION: {}});
        self.push_until_taken(&self.signed(&claims).await).await;
    }

    /// As a transmitter does: again while the answer is that it should.
    async fn push_until_taken(&self, event: &str) {
        let mut status = StatusCode::SERVICE_UNAVAILABLE;
        eventually("the event is taken", async || {
            status = self.push(event).await.status();
            status != StatusCode::SERVICE_UNAVAILABLE
        })
        .await;
        assert_eq!(status, StatusCode::ACCEPTED);
    }

    async fn token(&self, sub: &str, sid: &str, iat: u64) -> String {
        let payload =
            json!({"iss": self.provider.url(""), "sub": sub, "sid": sid, "iat": iat, "exp": iat + 3600});
        self.provider.door("sign", &json!({"payload": payload})).await
    }

    async fn visit(&self, token: &str) -> StatusCode {
        self.http.get(self.gateway.url("/json")).bearer_auth(token).send().await.unwrap().status()
    }

    fn iss_sub(&self, sub: &str) -> Value {
        json!({"format": "iss_sub", "iss": self.provider.url(""), "sub": sub})
    }

    /// The claims of an event as an honest provider sends it.
    fn event(&self, jti: &str, subject: &Value, happened_at: u64) -> Value {
        json!({
            "iss": self.provider.url(""), "aud": SHOP, "jti": jti, "iat": now(), "sub_id": subject,
            "events": {REVOKED: {"event_timestamp": happened_at}},
        })
    }

    async fn signed(&self, claims: &Value) -> String {
        let asked = json!({"header": {"typ": "secevent+jwt"}, "payload": claims});
        self.provider.door("sign", &asked).await
    }

    async fn push(&self, token: &str) -> Response {
        self.push_as(BEARER, token).await
    }

    /// Shown where it is not asked for, a bearer token does no harm.
    async fn push_as(&self, bearer: &str, token: &str) -> Response {
        let request = self.http.post(self.gateway.url("/_gaitway/signals/events")).bearer_auth(bearer);
        let request = request.header("content-type", "application/secevent+jwt").body(token.to_owned());
        request.send().await.unwrap()
    }

    /// An operator pardons what the one event did that nobody has pardoned yet.
    async fn pardon(&self) {
        let told = self.told("incidents").await;
        let is_new = |row: &&Value| row["incident"]["rule"] == "signal" && row["pardoned"].is_null();
        let row = told["incidents"].as_array().unwrap().iter().find(is_new).expect("an event did something");
        let id = row["incident"]["id"].as_str().unwrap();
        let url = format!("http://{}/api/incidents/{id}/pardon", self.gateway.ops);
        let body = json!({"why": "a test asked"});
        let answer = self.http.post(url).bearer_auth(PASSWORD).json(&body).send().await.unwrap();
        assert!(answer.status().is_success());
    }

    /// What the operators' API says.
    async fn told(&self, path: &str) -> Value {
        let request = self.http.get(format!("http://{}/api/{path}", self.gateway.ops));
        request.bearer_auth(PASSWORD).send().await.unwrap().json().await.unwrap()
    }

    /// An operator ends the session that a token is of.
    async fn end_session_of(&self, token: &str) {
        let mut session = String::new();
        eventually("the session is listed", async || {
            assert_eq!(self.visit(token).await, StatusCode::OK);
            let list = self.told("sessions").await;
            let sessions = list["sessions"].as_array().unwrap();
            session = list["sessions"][0]["identity"]["session"].as_str().unwrap_or_default().to_owned();
            // The one before it only asked whether the keys are known; the newest comes first.
            sessions.len() == 2
        })
        .await;
        let request = self.http.post(format!("http://{}/api/sessions/{session}/revoke", self.gateway.ops));
        let answer =
            request.bearer_auth(PASSWORD).json(&json!({"why": "a test asked"})).send().await.unwrap();
        assert!(answer.status().is_success());
        assert_eq!(self.visit(token).await, StatusCode::UNAUTHORIZED);
    }
}

const ENFORCED: &str = "      mode: enforce\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_event_ends_the_one_session_it_names_and_is_one_incident_however_often_it_comes() {
    let shop = Shop::start(ENFORCED, "").await;
    let phone = shop.token("alice", "s1", now()).await;
    let desk = shop.token("alice", "s2", now()).await;
    let bob = shop.token("bob", "s3", now()).await;
    let session = json!({"format": "opaque", "id": "s1"});
    let subject = json!({"format": "complex", "user": shop.iss_sub("alice"), "session": session});
    let event = shop.signed(&shop.event("e1", &subject, now())).await;
    assert_eq!(shop.visit(&phone).await, StatusCode::OK);
    for _ in 0..2 {
        assert_eq!(shop.push(&event).await.status(), StatusCode::ACCEPTED);
        assert_eq!(shop.visit(&phone).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(shop.visit(&desk).await, StatusCode::OK);
    assert_eq!(shop.visit(&bob).await, StatusCode::OK);
    let told = shop.told("incidents").await;
    let incidents = told["incidents"].as_array().unwrap();
    assert_eq!(incidents.len(), 1, "{told}");
    let incident = &incidents[0]["incident"];
    assert_eq!(incident["by"], shop.provider.url(""));
    assert_eq!((&incident["action"], &incident["mode"]), (&json!("logout"), &json!("enforce")));
    let audit = shop.told("audit").await;
    assert_eq!(
        (&audit["records"][0]["what"], &audit["records"][0]["who"]),
        (&json!("revoke"), &incident["by"])
    );
}

/// Whom an event is about, and what is told of it.
fn subjects(shop: &Shop) -> [(&'static str, Value); 2] {
    let session = json!({"format": "opaque", "id": "s-session"});
    let complex = json!({"format": "complex", "user": shop.iss_sub("of-session"), "session": session});
    [("session", complex), ("person", shop.iss_sub("of-person"))]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_again_never_undoes_a_pardon_not_even_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let place = format!("data: {}\n", data.path().display());
    let mut shop = Shop::start(ENFORCED, &place).await;
    let mut told = Vec::new();
    for (name, subject) in subjects(&shop) {
        let token = shop.token(&format!("of-{name}"), &format!("s-{name}"), now() - 100).await;
        let claims = shop.event(name, &subject, now());
        let event = shop.signed(&claims).await;
        assert_eq!(shop.visit(&token).await, StatusCode::OK);
        assert_eq!(shop.push(&event).await.status(), StatusCode::ACCEPTED);
        assert_eq!(shop.visit(&token).await, StatusCode::UNAUTHORIZED, "{name}");
        shop.pardon().await;
        eventually("the pardon counts", async || shop.visit(&token).await == StatusCode::OK).await;
        assert_eq!(shop.push(&event).await.status(), StatusCode::ACCEPTED);
        assert_eq!(shop.visit(&token).await, StatusCode::OK, "{name}, the same event");
        told.push((name, token, claims, event));
    }
    let incidents = shop.told("incidents").await["incidents"].as_array().unwrap().len();
    for end in ["TERM", "KILL"] {
        shop.gateway.signal(end);
        shop.gateway.wait();
        shop = Shop::behind(shop.provider, ENFORCED, &place, &[]).await;
        for (name, token, claims, event) in &told {
            assert_eq!(shop.push(event).await.status(), StatusCode::ACCEPTED);
            assert_eq!(shop.visit(token).await, StatusCode::OK, "{name}, after a restart by {end}");
            // Nor under another number: it happened before the pardon.
            let mut claims = claims.clone();
            claims["jti"] = json!(format!("{name}-{end}"));
            let renamed = shop.signed(&claims).await;
            assert_eq!(shop.push(&renamed).await.status(), StatusCode::ACCEPTED);
            assert_eq!(shop.visit(token).await, StatusCode::OK, "{name}, renamed, after a restart by {end}");
        }
    }
    let now_known = shop.told("incidents").await;
    assert_eq!(now_known["incidents"].as_array().unwrap().len(), incidents, "{now_known}");
    // What happened after the pardon counts.
    for (name, token, claims, _) in &told {
        let mut claims = claims.clone();
        claims["jti"] = json!(format!("{name}-later"));
        claims["iat"] = json!(now() + 1);
        claims["events"] = json!({REVOKED: {}});
        assert_eq!(shop.push(&shop.signed(&claims).await).await.status(), StatusCode::ACCEPTED);
        assert_eq!(shop.visit(token).await, StatusCode::UNAUTHORIZED, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_reaches_every_replica_and_undoes_a_pardon_on_none() {
    let mut redis = Redis::start();
    let shared = format!("revocation:\n  redis: {}\n", redis.url());
    let secret = [("GAITWAY_SECRET", "replicas share this secret of enough bytes")];
    let first =
        Shop::behind(Provider::start(&json!({"gateway": "http://127.0.0.1:1"})), ENFORCED, &shared, &secret)
            .await;
    let mut second = first.beside(&shared, &secret).await;
    let mut told = Vec::new();
    for (name, subject) in subjects(&first) {
        let token = first.token(&format!("of-{name}"), &format!("s-{name}"), now() - 100).await;
        let bob = first.token("bob", "s-bob", now() - 100).await;
        let event = first.signed(&first.event(name, &subject, now())).await;
        for shop in [&first, &second] {
            assert_eq!(shop.visit(&token).await, StatusCode::OK);
        }
        assert_eq!(first.push(&event).await.status(), StatusCode::ACCEPTED);
        assert_eq!(first.visit(&token).await, StatusCode::UNAUTHORIZED);
        eventually("the other replica refuses, too", async || {
            second.visit(&token).await == StatusCode::UNAUTHORIZED
        })
        .await;
        assert_eq!(second.visit(&bob).await, StatusCode::OK);
        first.pardon().await;
        for shop in [&first, &second] {
            eventually("the pardon counts", async || shop.visit(&token).await == StatusCode::OK).await;
        }
        told.push((token, event));
    }
    let check = async |second: &Shop, when: &str| {
        for (token, event) in &told {
            second.push_until_taken(event).await;
            for shop in [&first, second] {
                assert_eq!(shop.visit(token).await, StatusCode::OK, "{when}");
            }
        }
    };
    check(&second, "sent to the other replica").await;
    second = first.beside(&shared, &secret).await;
    check(&second, "sent to a replica that has just started").await;
    // A Redis that lost all is given back what the replicas know, pardons too.
    let records = |redis: &Redis| redis.dump().matches("revocation:").count();
    let known = records(&redis);
    redis.restart();
    eventually("all is back", async || records(&redis) == known).await;
    second = first.beside(&shared, &secret).await;
    check(&second, "sent to a replica that started after Redis lost all").await;
    // While a pardon may be unknown, nothing is acted on, and the transmitter comes again.
    redis.kill();
    second = first.beside(&shared, &secret).await;
    let (token, event) = &told[0];
    assert_eq!(second.push(event).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(second.visit(token).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_about_a_person_ends_what_was_issued_before_it_and_nothing_later() {
    let shop = Shop::start(ENFORCED, "").await;
    let before = shop.token("alice", "s1", now() - 100).await;
    let after = shop.token("alice", "s2", now() - 10).await;
    let bob = shop.token("bob", "s3", now() - 100).await;
    let event = shop.signed(&shop.event("e1", &shop.iss_sub("alice"), now() - 50)).await;
    assert_eq!(shop.visit(&before).await, StatusCode::OK);
    assert_eq!(shop.push(&event).await.status(), StatusCode::ACCEPTED);
    assert_eq!(shop.visit(&before).await, StatusCode::UNAUTHORIZED);
    assert_eq!(shop.visit(&after).await, StatusCode::OK, "logged in since");
    assert_eq!(shop.visit(&bob).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_shadow_an_event_is_recorded_and_ends_nothing() {
    let shop = Shop::start("", "").await;
    let alice = shop.token("alice", "s1", now() - 100).await;
    let event = shop.signed(&shop.event("e1", &shop.iss_sub("alice"), now())).await;
    assert_eq!(shop.push(&event).await.status(), StatusCode::ACCEPTED);
    assert_eq!(shop.visit(&alice).await, StatusCode::OK);
    let audit = shop.told("audit").await;
    assert_eq!(audit["records"][0]["what"], "would-logout-everywhere", "{audit}");
    assert_eq!(audit["records"][0]["who"], shop.provider.url(""));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_proved_or_not_understood_ends_nothing() {
    let shop = Shop::start(ENFORCED, "").await;
    let alice = shop.token("alice", "s1", now() - 100).await;
    let honest = shop.event("e0", &shop.iss_sub("alice"), now());
    let with = |member: &str, value: Value| {
        let mut claims = honest.clone();
        claims[member] = value;
        claims
    };
    let sign = async |header: Value, claims: &Value, foreign: bool| {
        let asked = json!({"header": header, "payload": claims, "foreign": foreign});
        shop.provider.door("sign", &asked).await
    };
    let typed = || json!({"typ": "secevent+jwt"});
    let refused = [
        (sign(typed(), &honest, true).await, "invalid_key"),
        (sign(json!({}), &honest, false).await, "invalid_request"),
        (sign(json!({"typ": "JWT"}), &honest, false).await, "invalid_request"),
        (sign(json!({"typ": "logout+jwt"}), &honest, false).await, "invalid_request"),
        (sign(json!({"typ": "secevent+jwt", "alg": "none"}), &honest, false).await, "invalid_request"),
        (sign(json!({"typ": "secevent+jwt", "alg": "HS256"}), &honest, false).await, "invalid_request"),
        (shop.signed(&with("iss", json!("https://another.example"))).await, "invalid_issuer"),
        (shop.signed(&with("aud", json!("https://another.example"))).await, "invalid_audience"),
        (shop.signed(&with("aud", json!(null))).await, "invalid_audience"),
        (shop.signed(&with("iat", json!(now() + 3600))).await, "invalid_request"),
        (shop.signed(&with("jti", json!(5))).await, "invalid_request"),
        (shop.signed(&with("events", json!({}))).await, "invalid_request"),
        (alice.clone(), "invalid_request"),
        ("x".repeat(20_000), "invalid_request"),
        (String::new(), "invalid_request"),
    ];
    for (token, code) in refused {
        let answer = shop.push(&token).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{token}");
        assert_eq!(answer.json::<Value>().await.unwrap()["err"], code, "{token}");
    }
    // A key that is not known may be a new one: to refuse its event for good would lose it.
    let unknown = sign(json!({"typ": "secevent+jwt", "kid": "another"}), &honest, false).await;
    assert_eq!(shop.push(&unknown).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let foreign = json!({"format": "iss_sub", "iss": "https://another.example", "sub": "alice"});
    let email = json!({"format": "email", "email": "alice@shop.example"});
    let device = json!({"format": "complex", "user": shop.iss_sub("alice"), "device": {"format": "opaque", "id": "d"}});
    for (number, claims) in [
        shop.event("e1", &foreign, now()),
        shop.event("e2", &email, now()),
        shop.event("e3", &device, now()),
        with(
            "events",
            json!({"https://schemas.openid.net/secevent/caep/event-type/assurance-level-change": {}}),
        ),
        with("events", json!({VERIFICATION: {"state": "x"}})),
        with("iat", json!(now() - 8 * 24 * 3600)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut claims = claims;
        claims["jti"] = json!(format!("understood-{number}"));
        assert_eq!(shop.push(&shop.signed(&claims).await).await.status(), StatusCode::ACCEPTED, "{claims}");
    }
    assert_eq!(shop.visit(&alice).await, StatusCode::OK);
    assert_eq!(shop.told("incidents").await["incidents"], json!([]));
    for outcome in ["foreign", "subject", "unsupported", "verified", "stale"] {
        let label = format!("outcome=\"{outcome}\"");
        assert!(shop.gateway.metric("gaitway_signals_received_total", &label).await >= 1.0, "{outcome}");
    }
    // The honest one, at last, so that what came before was not refused for some other reason.
    assert_eq!(shop.push(&shop.signed(&honest).await).await.status(), StatusCode::ACCEPTED);
    assert_eq!(shop.visit(&alice).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_fill_no_log() {
    let provider = Provider::start(&json!({"gateway": "http://127.0.0.1:1"}));
    let receive = format!("{ENFORCED}      push_bearer: ${{env:TEST_PUSH}}\n");
    let shop = Shop::behind(provider, &receive, "", &[("TEST_PUSH", BEARER)]).await;
    let event = shop.signed(&shop.event("e1", &shop.iss_sub("alice"), now())).await;
    let begun = Instant::now();
    for _ in 0..200 {
        assert_eq!(shop.push_as("a guess", &event).await.status(), StatusCode::UNAUTHORIZED);
    }
    let minutes = begun.elapsed().as_secs() / 60 + 2;
    assert_eq!(shop.push(&event).await.status(), StatusCode::ACCEPTED);
    let lines = shop.gateway.log_text().matches("a security event is not taken").count();
    assert!((1..=minutes).contains(&(lines as u64)), "{lines} lines");
    assert!(shop.gateway.metric("gaitway_signals_received_total", "outcome=\"refused\"").await >= 200.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_fetched_acknowledged_and_the_wrong_ones_reported() {
    // The transmitter's side of RFC 8936, as far as it concerns a receiver: what is not acknowledged comes
    // again.
    let provider = Provider::start(&json!({"gateway": "http://127.0.0.1:1"}));
    let queue = Arc::new(Mutex::new(serde_json::Map::new()));
    let asked = Arc::new(Mutex::new(Vec::<Value>::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (waiting, log) = (queue.clone(), asked.clone());
    let poll = move |headers: axum::http::HeaderMap, body: String| async move {
        assert_eq!(headers["authorization"], "Bearer the gateway may fetch");
        let request: Value = serde_json::from_str(&body).unwrap();
        let mut waiting = waiting.lock().unwrap();
        let acknowledged = request["ack"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let refused = request["setErrs"].as_object().into_iter().flatten().map(|(jti, _)| jti.as_str());
        acknowledged.chain(refused).for_each(|jti| drop(waiting.remove(jti)));
        log.lock().unwrap().push(request.clone());
        json!({"sets": *waiting}).to_string()
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/poll", post(poll))).await });

    let receive = format!(
        "{ENFORCED}      poll_url: http://{address}/poll\n      poll_bearer: ${{env:TEST_POLL}}\n      poll_seconds: 1\n"
    );
    let shop = Shop::behind(provider, &receive, "", &[("TEST_POLL", "the gateway may fetch")]).await;
    let alice = shop.token("alice", "s1", now() - 100).await;
    assert_eq!(shop.visit(&alice).await, StatusCode::OK);
    let good = shop.signed(&shop.event("good", &shop.iss_sub("alice"), now())).await;
    let mut wrong = shop.event("wrong", &shop.iss_sub("bob"), now());
    wrong["aud"] = json!("https://another.example");
    let wrong = shop.signed(&wrong).await;
    queue.lock().unwrap().extend([("good".to_owned(), json!(good)), ("wrong".to_owned(), json!(wrong))]);
    // A request that is under way when the session ends is cut.
    let ask = || shop.http.get(shop.gateway.url("/json")).bearer_auth(&alice).send();
    eventually("the session is over", async || {
        ask().await.is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED)
    })
    .await;
    eventually("all are dealt with", async || queue.lock().unwrap().is_empty()).await;
    let asked = asked.lock().unwrap();
    assert!(asked.iter().any(|request| request["ack"] == json!(["good"])), "{asked:?}");
    assert!(
        asked.iter().any(|request| request["setErrs"]["wrong"]["err"] == "invalid_audience"),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transmitter_that_ignores_acknowledgements_is_not_asked_without_pause() {
    let provider = Provider::start(&json!({"gateway": "http://127.0.0.1:1"}));
    let queue = Arc::new(Mutex::new(serde_json::Map::new()));
    // When it was asked, and whether with an acknowledgement.
    let asked = Arc::new(Mutex::new(Vec::<(Instant, bool)>::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (waiting, log) = (queue.clone(), asked.clone());
    let poll = move |body: String| async move {
        let request: Value = serde_json::from_str(&body).unwrap();
        log.lock().unwrap().push((Instant::now(), !request["ack"].is_null()));
        json!({"sets": *waiting.lock().unwrap(), "moreAvailable": true}).to_string()
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/poll", post(poll))).await });
    let receive = format!(
        "{ENFORCED}      poll_url: http://{address}/poll\n      poll_bearer: ${{env:TEST_POLL}}\n      poll_seconds: 1\n"
    );
    let shop = Shop::behind(provider, &receive, "", &[("TEST_POLL", "the gateway may fetch")]).await;
    let event = shop.signed(&shop.event("again", &shop.iss_sub("alice"), now())).await;
    queue.lock().unwrap().insert("again".to_owned(), json!(event));
    eventually("it is acknowledged again and again", async || {
        asked.lock().unwrap().iter().filter(|(_, is_acknowledged)| *is_acknowledged).count() >= 3
    })
    .await;
    let asked = asked.lock().unwrap();
    let first = asked.iter().position(|(_, is_acknowledged)| *is_acknowledged).unwrap();
    // The first acknowledgement comes at once, as more is there; after it nothing is new. A slow machine makes
    // these waits longer, never shorter.
    for pair in asked[first..].windows(2) {
        assert!(pair[1].0 - pair[0].0 > Duration::from_millis(900), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_event_ends_the_login_of_its_own_session() {
    let signals = format!(
        "signals:\n  receive:\n    - issuer: {{issuer}}\n      jwks_url: {{issuer}}/jwks\n      audience: {SHOP}\n      mode: enforce\n      push_bearer: ${{env:TEST_CLIENT_SECRET}}\n"
    );
    let site = Site::start_with(json!({}), "", &signals).await;
    let (mut alice, mut other) = (Browser::of("alice"), Browser::of("alice"));
    for browser in [&mut alice, &mut other] {
        assert_eq!(browser.open(&site.url("/page")).await.status(), StatusCode::OK);
    }
    let sessions = site.provider.sessions("alice");
    let issuer = site.provider.url("");
    let claims = json!({
        "iss": issuer, "aud": SHOP, "jti": "e1", "iat": now(),
        "sub_id": {
            "format": "complex",
            "user": {"format": "iss_sub", "iss": issuer, "sub": "alice"},
            "session": {"format": "opaque", "id": sessions[0]},
        },
        "events": {REVOKED: {"event_timestamp": now(), "initiating_entity": "admin"}},
    });
    let asked = json!({"header": {"typ": "secevent+jwt"}, "payload": claims});
    let event = site.provider.door("sign", &asked).await;
    let send = async |bearer: &str, event: &str| {
        let request = Client::new().post(site.url("/_gaitway/signals/events")).bearer_auth(bearer);
        let request = request.header("content-type", "application/secevent+jwt").body(event.to_owned());
        request.send().await.unwrap().status()
    };
    let push = async |bearer: &str| send(bearer, &event).await;
    assert_eq!(push("a guess").await, StatusCode::UNAUTHORIZED);
    // What was said before she logged in is not about this login, though the provider calls both the same.
    let mut before = claims.clone();
    before["jti"] = json!("e0");
    before["events"] = json!({REVOKED: {"event_timestamp": now() - 100}});
    let asked = json!({"header": {"typ": "secevent+jwt"}, "payload": before});
    let before = site.provider.door("sign", &asked).await;
    assert_eq!(send("the gateway and the provider share this", &before).await, StatusCode::ACCEPTED);
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::OK);
    assert_eq!(push("the gateway and the provider share this").await, StatusCode::ACCEPTED);
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(other.fetch(&site.url("/json")).await.status(), StatusCode::OK);
}

// ---- telling

/// Somebody else's receiver; tells of every event that it has verified.
struct Receiver {
    port: u16,
    child: Child,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    fn start(config: &Value) -> Receiver {
        let program = Path::new(env!("CARGO_BIN_EXE_gaitway")).with_file_name("ssf-receiver");
        let mut child = Command::new(program)
            .arg(config.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the receiver of security events is built (make setup)");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let port = u16::try_from(first["port"].as_u64().unwrap()).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sink.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Receiver { port, child, told }
    }

    /// Waits for an event of this type.
    async fn event(&self, kind: &str) -> Value {
        let mut found = Value::Null;
        eventually(kind, async || {
            let told = self.told.lock().unwrap();
            let event = told.iter().find(|told| !told["claims"]["events"][kind].is_null());
            found = event.map_or(Value::Null, |told| told["claims"].clone());
            !found.is_null()
        })
        .await;
        found
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- what the receiver told\n{:?}", self.told.lock().unwrap());
        }
    }
}

/// A fresh private key in PEM.
fn private_key(kind: &[&str]) -> String {
    let made = Command::new("openssl").arg("genpkey").args(kind).output().expect("openssl (make setup)");
    String::from_utf8(made.stdout).unwrap()
}

fn p256() -> String {
    private_key(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
}

fn transmit(port: u16, receiver: &str) -> String {
    format!(
        "  transmit:\n    issuer: http://127.0.0.1:{port}\n    key: ${{env:TEST_KEY}}\n    receivers:\n      - name: login\n        audience: https://login.example\n        bearer: ${{env:TEST_BEARER}}\n{receiver}listen: 127.0.0.1:{port}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_told_at_once_of_a_session_that_an_operator_ends() {
    let port = free_port();
    let receiver = Receiver::start(&json!({
        "transmitter-issuer": format!("http://127.0.0.1:{port}"),
        "expected-audience": "https://login.example",
        "push": {"expected-auth-header": "Bearer the receiver knows us"},
    }));
    let push = format!("        push_url: http://127.0.0.1:{}/\n        verify: true\n", receiver.port);
    let key = private_key(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let secrets = [("TEST_KEY", key.as_str()), ("TEST_BEARER", "the receiver knows us")];
    let provider = Provider::start(&json!({"gateway": "http://127.0.0.1:1"}));
    let shop = Shop::behind(provider, ENFORCED, &transmit(port, &push), &secrets).await;
    let verified = receiver.event(VERIFICATION).await;
    assert_eq!(verified["sub_id"], json!({"format": "opaque", "id": "login"}));

    let alice = shop.token("alice", "s1", now()).await;
    shop.end_session_of(&alice).await;
    let event = receiver.event(REVOKED).await;
    let session = json!({"format": "opaque", "id": "s1"});
    let subject = json!({"format": "complex", "user": shop.iss_sub("alice"), "session": session});
    assert_eq!(event["sub_id"], subject);
    assert_eq!(event["events"][REVOKED]["initiating_entity"], "admin");
    assert_eq!(event["iss"], format!("http://127.0.0.1:{port}"));
    let told = shop.told("incidents").await;
    assert_eq!(event["txn"], told["incidents"][0]["incident"]["id"]);
    eventually("the step is done", async || {
        let told = shop.told("incidents").await;
        let steps = told["incidents"][0]["steps"].as_array().unwrap().clone();
        steps.iter().any(|step| step["name"] == "signals.login" && step["state"] == "done")
    })
    .await;

    // What a transmitter told us is passed on to nobody, or two gateways would tell each other for ever.
    let bob = shop.token("bob", "s2", now() - 100).await;
    let from_provider = shop.signed(&shop.event("e1", &shop.iss_sub("bob"), now())).await;
    assert_eq!(shop.push(&from_provider).await.status(), StatusCode::ACCEPTED);
    assert_eq!(shop.visit(&bob).await, StatusCode::UNAUTHORIZED);
    let told = shop.told("incidents").await;
    let steps =
        |row: &Value| row["steps"].as_array().unwrap().iter().any(|step| step["name"] == "signals.login");
    let rows: Vec<bool> = told["incidents"].as_array().unwrap().iter().map(steps).collect();
    assert_eq!(rows.iter().filter(|told| **told).count(), 1, "{told}");
    let told = receiver.told.lock().unwrap().clone();
    assert_eq!(told.len(), 2, "each once: {told:?}");
    assert!(!shop.gateway.log_text().contains("the receiver knows us"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_in_the_store_for_a_receiver_that_fetches_them_and_name_nobody_there() {
    let port = free_port();
    let directory = tempfile::tempdir().unwrap();
    let key = p256();
    let secrets = [("TEST_KEY", key.as_str()), ("TEST_BEARER", "the receiver may fetch")];
    let provider = Provider::start(&json!({"gateway": "http://127.0.0.1:1"}));
    let place = format!("data: {}\n", directory.path().display());
    let transmit = transmit(port, "") + &place;
    let mut shop = Shop::behind(provider, ENFORCED, &transmit, &secrets).await;
    let alice = shop.token("alice-whom-nobody-may-read", "s1", now()).await;
    shop.end_session_of(&alice).await;
    let poll = |bearer: &'static str, body: Value| {
        let url = format!("http://127.0.0.1:{port}/_gaitway/signals/poll/login");
        Client::new().post(url).bearer_auth(bearer).json(&body).send()
    };
    let now_please = json!({"returnImmediately": true});
    assert_eq!(poll("a guess", now_please.clone()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let mut first = String::new();
    eventually("the event is queued", async || {
        let answer: Value =
            poll("the receiver may fetch", now_please.clone()).await.unwrap().json().await.unwrap();
        first = answer["sets"].as_object().unwrap().keys().next().cloned().unwrap_or_default();
        !first.is_empty()
    })
    .await;
    shop.gateway.signal("TERM");
    assert!(shop.gateway.wait());
    for file in std::fs::read_dir(directory.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("alice-whom-nobody-may-read"), "the store names nobody");
    }

    let provider = shop.provider;
    let shop = Shop::behind(provider, ENFORCED, &transmit, &secrets).await;
    let receiver = Receiver::start(&json!({
        "transmitter-issuer": format!("http://127.0.0.1:{port}"),
        "expected-audience": "https://login.example",
        "delivery-method": "poll",
        "transmitter-access-token": "the receiver may fetch",
        "poll": {
            "endpoint-url": format!("http://127.0.0.1:{port}/_gaitway/signals/poll/login"),
            "interval": "100ms", "initial-delay": "0s",
        },
        "set-validation": {"accepted-algorithms": ["ES256"]},
    }));
    let event = receiver.event(REVOKED).await;
    assert_eq!(event["jti"], first, "the same event as before the restart");
    assert_eq!(event["sub_id"]["user"], shop.iss_sub("alice-whom-nobody-may-read"));
    eventually("it is acknowledged", async || {
        shop.gateway.metric("gaitway_signals_fetched_total", "acknowledged").await >= 1.0
    })
    .await;
    let answer: Value =
        poll("the receiver may fetch", now_please.clone()).await.unwrap().json().await.unwrap();
    assert_eq!(answer, json!({"sets": {}, "moreAvailable": false}));
}
