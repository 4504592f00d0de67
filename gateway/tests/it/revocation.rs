//! A revocation ends the session everywhere and at once, survives what may fail, and can be undone.

use crate::app::App;
use crate::gateway::{DEADLINE, Gateway, eventually};
use crate::servers::{Redis, Smtp};
use futures_util::{SinkExt, StreamExt};
use gaitway_models::sim::Visitor;
use jsonwebtoken::{EncodingKey, Header};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

const KEY: &str = "the shop signs its tokens with this key";
pub const PASSWORD: &str = "operators share this password";
/// Replicas share one secret, so that they agree on pseudonyms.
pub const SECRET: &[(&str, &str)] = &[("GAITWAY_SECRET", "replicas share this secret of enough bytes")];

pub fn settings(directory: &Path, more: &str) -> String {
    std::fs::write(directory.join("key"), KEY).unwrap();
    std::fs::write(directory.join("password"), PASSWORD).unwrap();
    let files = directory.display();
    format!(
        "identity:\n  jwt:\n    cookie: session\n    query: access_token\n    key_file: {files}/key\nops:\n  listen: 127.0.0.1:0\n  password_file: {files}/password\n{more}"
    )
}

/// A person logged in to the app: their token, as the app issued it.
pub struct Person {
    /// What the token calls its session.
    pub sid: String,
    token: String,
    pub http: Client,
}

impl Person {
    pub fn log_in(name: &str) -> Person {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let sid = format!("{name}-{serial}");
        let claims = json!({
            "iss": "shop", "sub": name, "sid": sid, "jti": format!("t-{serial}"),
            "iat": now, "exp": now + 8 * 3600,
        });
        let key = EncodingKey::from_secret(KEY.as_bytes());
        let token = jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap();
        Person { sid, token, http: Client::new() }
    }

    pub fn get(&self, gateway: &Gateway, path: &str) -> RequestBuilder {
        self.http.get(gateway.url(path)).header("cookie", self.cookie())
    }

    pub fn cookie(&self) -> String {
        format!("session={}", self.token)
    }

    pub async fn page(&self, gateway: &Gateway) -> Response {
        let request = self.get(gateway, "/page");
        request.header("sec-fetch-mode", "navigate").header("accept", "text/html").send().await.unwrap()
    }

    pub async fn is_refused(&self, gateway: &Gateway) -> bool {
        // A request under way at the moment of revocation is cut off: ask again.
        let mut answer = self.get(gateway, "/json").send().await;
        for _ in 0..5 {
            if answer.is_ok() {
                break;
            }
            answer = self.get(gateway, "/json").send().await;
        }
        let status = answer.unwrap().status();
        assert!(matches!(status, StatusCode::OK | StatusCode::UNAUTHORIZED), "{status}");
        status == StatusCode::UNAUTHORIZED
    }

    pub async fn socket(&self, gateway: &Gateway, path: &str) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
        let mut request = format!("ws://{}{path}", gateway.address).into_client_request().unwrap();
        request.headers_mut().insert("cookie", self.cookie().parse().unwrap());
        connect_async(request).await.unwrap().0
    }

    pub async fn telemetry(&self, gateway: &Gateway) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
        let request = self.http.post(gateway.url("/_gaitway/token")).header("cookie", self.cookie());
        let token = request.send().await.unwrap().text().await.unwrap();
        self.socket(gateway, &format!("/_gaitway/t?p={token}")).await
    }
}

/// The operators' API as the page and the command line use it.
pub struct Operator;

impl Operator {
    pub async fn get(gateway: &Gateway, path: &str) -> Value {
        let url = format!("http://{}/api{path}", gateway.ops);
        let answer = Client::new().get(url).bearer_auth(PASSWORD).send().await.unwrap();
        answer.json().await.unwrap()
    }

    pub async fn post(gateway: &Gateway, path: &str) -> StatusCode {
        let url = format!("http://{}/api{path}", gateway.ops);
        let body = json!({ "why": "a test asked for it" });
        Client::new().post(url).bearer_auth(PASSWORD).json(&body).send().await.unwrap().status()
    }

    /// The id of the only live session, once the engine has seen it.
    pub async fn only_session(gateway: &Gateway) -> String {
        let mut id = String::new();
        eventually("the session is listed", async || {
            let list = Operator::get(gateway, "/sessions").await;
            let first = &list["sessions"][0]["identity"]["session"];
            id = first.as_str().unwrap_or_default().to_owned();
            !id.is_empty()
        })
        .await;
        id
    }

    /// Lists the person's session, revokes it, and waits until the gateway refuses it.
    pub async fn revoke(gateway: &Gateway, person: &Person) -> String {
        assert!(!person.is_refused(gateway).await);
        let session = Operator::only_session(gateway).await;
        let status = Operator::post(gateway, &format!("/sessions/{session}/revoke")).await;
        assert!(status.is_success(), "{status}");
        eventually("the session is refused", async || person.is_refused(gateway).await).await;
        session
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_session_ends_everywhere_at_once_and_a_pardon_brings_it_back() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let smtp = Smtp::start();
    let gateway = Gateway::start(&app.url(), &settings(directory.path(), &smtp.settings()));
    let alice = Person::log_in("alice");
    let mut app_socket = alice.socket(&gateway, "/ws").await;
    app_socket.send(Message::text("before")).await.unwrap();
    assert_eq!(app_socket.next().await.unwrap().unwrap(), Message::text("before"));
    let mut telemetry = alice.telemetry(&gateway).await;
    let mut events = alice.get(&gateway, "/events").send().await.unwrap().bytes_stream();
    assert!(events.next().await.unwrap().is_ok());

    let session = Operator::revoke(&gateway, &alice).await;

    // The open app WebSocket and the event stream are cut without a word from either side.
    let cut = tokio::time::timeout(DEADLINE, async { while let Some(Ok(_)) = app_socket.next().await {} });
    cut.await.expect("the app's WebSocket is cut");
    let cut = tokio::time::timeout(DEADLINE, async { while let Some(Ok(_)) = events.next().await {} });
    cut.await.expect("the event stream is cut");
    // The browser is told where to go.
    let told = tokio::time::timeout(DEADLINE, telemetry.next()).await.unwrap().unwrap().unwrap();
    let told: Value = serde_json::from_str(told.to_text().unwrap()).unwrap();
    assert_eq!(told["t"], "go");
    let target = told["u"].as_str().unwrap().to_owned();
    assert!(target.starts_with("/_gaitway/bye?i="), "{target}");
    let incident = target.rsplit('=').next().unwrap();

    // A page load gets the page, with cookies cleared; a script gets JSON.
    let page = alice.page(&gateway).await;
    assert_eq!(page.status(), StatusCode::FORBIDDEN);
    assert_eq!(page.headers()["clear-site-data"], "\"cookies\", \"cache\"");
    let cookies: Vec<_> = page.headers().get_all("set-cookie").iter().map(|v| v.to_str().unwrap()).collect();
    assert!(cookies.iter().any(|cookie| cookie.starts_with("session=;")), "{cookies:?}");
    assert!(page.text().await.unwrap().contains(incident));
    let problem = alice.get(&gateway, "/json").send().await.unwrap();
    assert_eq!(problem.headers()["content-type"], "application/problem+json");
    assert_eq!(problem.json::<Value>().await.unwrap()["incident"], incident);
    let posted = alice.http.post(gateway.url("/upload")).header("cookie", alice.cookie()).body("x");
    let posted = posted.header("sec-fetch-mode", "navigate").send().await.unwrap();
    assert_eq!(posted.status(), StatusCode::FORBIDDEN, "a POST is never redirected");
    // The same token in the other door is the same token.
    let bearer = alice.http.get(gateway.url("/json")).bearer_auth(&alice.token).send().await.unwrap();
    assert_eq!(bearer.status(), StatusCode::UNAUTHORIZED);
    // Nor does another spelling of the cookie help, which many apps would undo.
    let spelt = format!("session=%{:02x}{}", alice.token.as_bytes()[0], &alice.token[1..]);
    let spelt = alice.http.get(gateway.url("/json")).header("cookie", spelt).send().await.unwrap();
    assert_eq!(spelt.status(), StatusCode::UNAUTHORIZED);
    // Nobody else is touched, and the link in the message cannot log others out.
    let bob = Person::log_in("bob");
    assert!(!bob.is_refused(&gateway).await);
    let link = bob.get(&gateway, &target).send().await.unwrap();
    assert!(link.headers().get("clear-site-data").is_none());
    // Nor does her token in an address: it refuses that request, and no more.
    for (path, status) in [("/page", StatusCode::FORBIDDEN), ("/_gaitway/bye", StatusCode::OK)] {
        let request = bob.get(&gateway, &format!("{path}?access_token={}", alice.token));
        let planted = request.header("sec-fetch-mode", "navigate").send().await.unwrap();
        assert_eq!(planted.status(), status, "{path}");
        assert!(planted.headers().get("clear-site-data").is_none(), "{path}");
        assert!(planted.headers().get("set-cookie").is_none(), "{path}");
    }
    assert!(!bob.is_refused(&gateway).await);

    // Operators are told by mail.
    eventually("the mail arrives", async || !smtp.mails().is_empty()).await;
    let mail = &smtp.mails()[0];
    let text = mail["text"].as_str().unwrap();
    for expected in [session.as_str(), incident, "a test asked for it"] {
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
    for secret in [alice.token.as_str(), "alice", KEY] {
        assert!(!text.contains(secret) && !gateway.log_text().contains(secret), "{secret} leaked");
    }

    let status = Operator::post(&gateway, &format!("/sessions/{session}/pardon")).await;
    assert!(status.is_success(), "{status}");
    eventually("the pardoned session passes", async || !alice.is_refused(&gateway).await).await;
    let audit = Operator::get(&gateway, "/audit").await.to_string();
    for expected in ["revoke", "pardon", "a test asked for it"] {
        assert!(audit.contains(expected), "{expected:?} is not in {audit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_connects_only_after_its_session_was_revoked_is_told_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), &settings(directory.path(), ""));
    let alice = Person::log_in("alice");
    Operator::revoke(&gateway, &alice).await;
    let mut telemetry = alice.telemetry(&gateway).await;
    let told = tokio::time::timeout(DEADLINE, telemetry.next()).await.unwrap().unwrap().unwrap();
    assert!(told.to_text().unwrap().contains("\"go\""), "{told}");
    // Nothing it sends is taken.
    let _ = telemetry.send(Message::binary(Visitor::person(1).next_batch(2.0).encode())).await;
    let left = tokio::time::timeout(DEADLINE, async { while let Some(Ok(_)) = telemetry.next().await {} });
    left.await.expect("the socket is closed");
    let metrics =
        reqwest::get(format!("http://{}/metrics", gateway.ops)).await.unwrap().text().await.unwrap();
    let taken = |line: &&str| line.starts_with("gaitway_telemetry_batches_total") && !line.ends_with(" 0");
    assert_eq!(metrics.lines().find(taken), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_revocation_survives_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("kept");
    let app = App::start().await;
    let arguments = settings(directory.path(), "");
    let alice = Person::log_in("alice");
    let start = || Gateway::start_in(&app.url(), &arguments, &data);
    let mut gateway = start();
    Operator::revoke(&gateway, &alice).await;
    gateway.signal("KILL");
    gateway.wait();
    let gateway = start();
    assert!(alice.is_refused(&gateway).await);
    assert!(!Person::log_in("bob").is_refused(&gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_on_one_redis_refuse_alike_and_an_outage_logs_nobody_out() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let mut redis = Redis::start();
    let more = format!("revocation:\n  redis: {}\n", redis.url());
    let start = || Gateway::start_with(&app.url(), &settings(directory.path(), &more), SECRET);
    let (first, second) = (start(), start());
    let alice = Person::log_in("alice");
    assert!(!alice.is_refused(&second).await);
    let mut elsewhere = alice.socket(&second, "/ws").await;
    Operator::revoke(&first, &alice).await;
    eventually("the other gateway refuses too", async || alice.is_refused(&second).await).await;
    let cut = tokio::time::timeout(DEADLINE, async { while let Some(Ok(_)) = elsewhere.next().await {} });
    cut.await.expect("the socket on the other gateway is cut");

    // Redis hangs, then dies: known revocations hold, everybody else is served.
    let bob = Person::log_in("bob");
    redis.freeze();
    for gateway in [&first, &second] {
        assert!(alice.is_refused(gateway).await);
        assert!(!bob.is_refused(gateway).await);
    }
    redis.thaw();
    redis.kill();
    for gateway in [&first, &second] {
        assert!(alice.is_refused(gateway).await);
        assert!(!bob.is_refused(gateway).await);
    }
    // A session revoked meanwhile is refused here at once, and everywhere when Redis is back, empty.
    let status = {
        let mut session = String::new();
        eventually("bob's session is listed", async || {
            let list = Operator::get(&first, "/sessions").await;
            let sessions = list["sessions"].as_array().cloned().unwrap_or_default();
            let standing = |s: &Value| s["standing"]["standing"] != "deny";
            session = sessions
                .iter()
                .find(|s| standing(s))
                .and_then(|s| s["identity"]["session"].as_str())
                .unwrap_or_default()
                .to_owned();
            !session.is_empty()
        })
        .await;
        Operator::post(&first, &format!("/sessions/{session}/revoke")).await
    };
    assert!(status.is_success(), "{status}");
    eventually("bob is refused here", async || bob.is_refused(&first).await).await;
    redis.restart();
    eventually("bob is refused there", async || bob.is_refused(&second).await).await;
    assert!(alice.is_refused(&first).await && alice.is_refused(&second).await);
    assert!(!Person::log_in("carol").is_refused(&second).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_and_serves_without_its_redis() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let port = crate::servers::free_port();
    let more = format!("revocation:\n  redis: redis://127.0.0.1:{port}\n");
    let gateway = Gateway::start(&app.url(), &settings(directory.path(), &more));
    assert!(!Person::log_in("alice").is_refused(&gateway).await);
    assert_eq!(gateway.metric("gaitway_revocation_backend_up", "").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_the_address_reaches_the_app_and_no_log_and_is_refused_once_revoked() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let settings = settings(directory.path(), "").replace("    cookie: session\n", "");
    let gateway = Gateway::start(&app.url(), &settings);
    let alice = Person::log_in("alice");
    let path = format!("/json?a=%41&access_token={}&b=2", alice.token);
    let ask = async || Client::new().get(gateway.url(&path)).send().await.unwrap().status();
    assert_eq!(ask().await, StatusCode::OK);
    assert!(app.heads().iter().any(|head| head.starts_with(&format!("GET {path} "))), "unchanged");
    let session = Operator::only_session(&gateway).await;
    assert!(Operator::post(&gateway, &format!("/sessions/{session}/revoke")).await.is_success());
    eventually("the session is refused", async || ask().await == StatusCode::UNAUTHORIZED).await;
    let socket = format!("ws://{}/ws?access_token={}", gateway.address, alice.token);
    assert!(connect_async(socket).await.is_err(), "nor does a socket open");
    eventually("both are in the log", async || {
        let log = gateway.log_text();
        log.contains("\"/json\"") && log.contains("\"/ws\"")
    })
    .await;
    let log = gateway.log_text();
    let signature = alice.token.rsplit('.').next().unwrap();
    assert!(!log.contains("access_token") && !log.contains(signature), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_is_asked_to_end_its_own_session_and_its_cookies_are_written_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let app = App::start().await;
    let more = "revocation:\n  app_logout:\n    path: /goodbye?all=1\n";
    let gateway = Gateway::start_in(&app.url(), &settings(directory.path(), more), &data);
    let alice = Person::log_in("alice");
    let bob = Person::log_in("bob");
    assert!(alice.page(&gateway).await.status().is_success());
    let session = Operator::only_session(&gateway).await;
    assert!(bob.page(&gateway).await.status().is_success());
    let status = Operator::post(&gateway, &format!("/sessions/{session}/revoke")).await;
    assert!(status.is_success(), "{status}");
    let goodbyes = || {
        let heads = app.heads();
        heads.into_iter().filter(|head| head.starts_with("POST /goodbye?all=1 ")).collect::<Vec<_>>()
    };
    eventually("the app is told", async || !goodbyes().is_empty()).await;
    let told = goodbyes();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(&alice.cookie()) && !told[0].contains(&bob.token), "{told:?}");
    // Its signature is the part of a token that nothing but the token holds.
    let secret = alice.token.rsplit('.').next().unwrap();
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        assert!(!text.contains(secret), "{}", path.display());
    }
    assert!(!gateway.log_text().contains(secret));
}
