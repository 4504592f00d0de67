//! The operators' side against the real store, board, outbox and shards, over real HTTP.

use super::*;
use crate::alert::LogSink;
use crate::config;
use crate::outbox::OutboxLimits;
use crate::revocation::{Revocation, Scope};
use crate::secret::InstallSecret;
use crate::shards::Parts;
use crate::standing::Standings;
use crate::store::{IncidentFilter, SqliteStore};
use gaitway_models::session::RequestSeen;
use gaitway_models::{DEFAULT_MODEL, Detector};
use gaitway_policies::engine::EngineLimits;
use gaitway_policies::facts::Facts;
use gaitway_policies::{Identity, Incident, Input, SessionId, SubjectId, TokenId};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const PASSWORD: &str = "correct horse battery";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An operators' side on a free port, with everything behind it but the proxy.
pub(crate) struct TestOps {
    pub(crate) address: SocketAddr,
    folder: TempDir,
    shards: Arc<Shards>,
    store: Arc<dyn Store>,
    revocations: Arc<Revocations>,
    client: Client,
    shutdown: Option<oneshot::Sender<()>>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Drop for TestOps {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What a browser holds after it has logged in.
struct Login {
    cookie: String,
    page: String,
}

impl TestOps {
    pub(crate) async fn start() -> TestOps {
        TestOps::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> TestOps {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { data: folder.path().to_owned(), ..Config::default() };
        let file = folder.path().join("given.password");
        std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
        config.ops.password_file = Some(file);
        change(&mut config);

        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(&folder.path().join("t.sqlite")).await.unwrap());
        let revocations = Revocations::start(&config::Revocation::default(), Vec::new()).await.unwrap();
        let sinks: Vec<Arc<dyn crate::alert::AlertSink>> = vec![Arc::new(LogSink)];
        let limits = OutboxLimits::default();
        let outbox = Outbox::start(store.clone(), revocations.clone(), sinks, limits).await;
        let policies = Arc::new(PolicySet::parse("default.yaml", gaitway_policies::policy::DEFAULT).unwrap());
        let day_ms = u64::try_from(DAY.as_millis()).unwrap();
        let parts = Parts {
            limits: EngineLimits {
                sessions_max: 100,
                session_idle_ms: day_ms,
                pardon_ms: day_ms,
                revocation_ms: day_ms,
            },
            policies: policies.clone(),
            detector: Arc::new(Detector::load(DEFAULT_MODEL).unwrap()),
            candidate: None,
            standings: Arc::new(Standings::new()),
            outbox: outbox.clone(),
            revocations: revocations.clone(),
            recorder: None,
            profiles: None,
            trip: None,
        };
        let shards = Shards::start(2, &parts);
        let model = ModelInForce { hash: "0123456789abcdef".into(), calibrated: false };
        let in_force = InForce::new(&policies, "shipped", model);
        let (shards_too, store_too, board_too) = (shards.clone(), store.clone(), revocations.clone());
        let secret = Arc::new(InstallSecret::from_directory(folder.path()).unwrap());
        let profiles = Profiles::start(&config.profiles, store.clone(), secret.clone());
        let people = (profiles, Namesakes::new(&config.identity, secret));
        let state =
            OpsState::new(&config, shards_too, store_too, board_too, outbox, people, in_force).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, told) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, state, async move {
            if told.await.is_err() {
                std::future::pending::<()>().await;
            }
        }));
        let client = Client::builder().no_proxy().build().unwrap();
        TestOps { address, folder, shards, store, revocations, client, shutdown: Some(shutdown), serving }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn password_file(&self) -> std::path::PathBuf {
        self.folder.path().join("given.password")
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path))
    }

    /// As a program that knows the password.
    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(self.url(path)).bearer_auth(PASSWORD).header(OPERATOR_HEADER, "Ada").json(body)
    }

    async fn read(&self, path: &str) -> Value {
        self.get(path).bearer_auth(PASSWORD).send().await.unwrap().json().await.unwrap()
    }

    /// As a browser on our own page.
    async fn log_in(&self) -> Login {
        let request = self.client.post(self.url("/api/login")).header("origin", self.url(""));
        let response = request.json(&json!({ "name": "Ada", "password": PASSWORD })).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let set = response.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(set.contains("; Path=/api/; HttpOnly; SameSite=Strict; Max-Age="), "{set}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["who"], "Ada");
        let cookie = set.split(';').next().unwrap().to_owned();
        Login { cookie, page: body["page"].as_str().unwrap().to_owned() }
    }

    fn as_browser(&self, request: RequestBuilder, login: &Login) -> RequestBuilder {
        request.header("cookie", &login.cookie).header("x-gaitway-page", &login.page)
    }

    /// A session that has just made its first request.
    pub(crate) async fn visitor(&self, number: u8) -> Identity {
        let identity = identity(number);
        let request = RequestSeen { navigation: true, collector_injected: true, ..RequestSeen::default() };
        let input = Input::Request {
            identity: identity.clone(),
            request,
            route: String::new(),
            net_ip: "192.0.2.1".into(),
            net_country: "NL".into(),
        };
        assert!(self.shards.offer(&identity.session, input));
        eventually(|| async { self.shards.session(identity.session).await.is_some() }).await;
        identity
    }

    fn is_refused(&self, identity: &Identity) -> bool {
        self.revocations.check(identity, clock::now()).is_some()
    }
}

fn identity(number: u8) -> Identity {
    Identity {
        session: SessionId([number; 16]),
        subject: Some(SubjectId([number; 16])),
        token: Some(TokenId([number; 16])),
        expires_at: Some(clock::now().plus(DAY)),
        issued_at: Some(Timestamp(clock::now().0 - 1000)),
        groups: vec!["staff".into()],
    }
}

/// An enforced logout of a session that no shard remembers.
pub(crate) fn logout(number: u8) -> Incident {
    Incident {
        id: format!("TEST-{number}"),
        at: clock::now(),
        identity: identity(number),
        rule: "bot-for-sure".into(),
        action: Action::Logout,
        mode: Mode::Enforce,
        by: "policy".into(),
        reason: "moves in straight lines".into(),
        policy_version: "0".into(),
        facts: Facts::default(),
        until: clock::now().plus(DAY),
    }
}

/// Waits for a condition, ten seconds at most.
async fn eventually<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let reached = tokio::time::timeout(Duration::from_secs(10), async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    });
    reached.await.expect("the condition was not reached within ten seconds");
}

async fn error_of(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    (status, body["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn the_page_is_public_static_and_strict() {
    let ops = TestOps::start().await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/sessions/s_00000000000000000000000000000000", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let response = ops.get(path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers()["content-type"], kind);
        let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.headers()["cache-control"], "no-store");
    }
    let html = include_str!("page.html");
    assert!(!html.contains("style=") && !html.contains(" on") && !html.contains("javascript:"));
    for script in html.split("<script").skip(1) {
        assert!(script.starts_with(" src=\"/page.js\""), "no inline script");
    }
    let script = include_str!("page.js");
    for sink in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("] {
        assert!(!script.contains(sink), "{sink}");
    }
}

#[tokio::test]
async fn nothing_is_told_without_the_password() {
    let ops = TestOps::start().await;
    let session = identity(1).session;
    for path in
        ["/status", "/sessions", &format!("/sessions/{session}"), "/incidents", "/incidents/X", "/audit"]
    {
        let (status, error) = error_of(ops.get(&format!("/api{path}")).send().await.unwrap()).await;
        assert_eq!((status, error.as_str()), (StatusCode::UNAUTHORIZED, "Please sign in."), "{path}");
    }
    for path in [
        &format!("/sessions/{session}/revoke"),
        &format!("/sessions/{session}/pardon"),
        "/incidents/X/pardon",
        "/profiles/forget",
    ] {
        let request = ops.client.post(ops.url(&format!("/api{path}"))).json(&json!({ "why": "x" }));
        assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    for authorization in ["Basic eDp5", "Bearer", "Bearer ", "bearer x", &format!("Bearer {PASSWORD}x")] {
        let request = ops.get("/api/status").header("authorization", authorization);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "{authorization}");
    }
}

#[tokio::test]
async fn a_login_needs_both_halves_and_ends_when_signed_out() {
    let ops = TestOps::start().await;
    let login = ops.log_in().await;
    let ask = |cookie: &str, page: &str| {
        ops.get("/api/status").header("cookie", cookie).header("x-gaitway-page", page).send()
    };
    assert_eq!(ask(&login.cookie, &login.page).await.unwrap().status(), StatusCode::OK);
    assert_eq!(ask(&login.cookie, "").await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(ask("gaitway_ops=0", &login.page).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let other = ops.log_in().await;
    assert_eq!(ask(&login.cookie, &other.page).await.unwrap().status(), StatusCode::UNAUTHORIZED);

    let out = ops.as_browser(ops.client.post(ops.url("/api/logout")), &login);
    let out = out.header("origin", ops.url("")).json(&json!({})).send().await.unwrap();
    assert_eq!(out.status(), StatusCode::OK);
    assert!(out.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(ask(&login.cookie, &login.page).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&other.cookie, &other.page).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_login_that_is_no_json_or_from_elsewhere_is_refused_in_a_sentence() {
    let ops = TestOps::start().await;
    let good = json!({ "name": "Ada", "password": PASSWORD }).to_string();
    let own = ops.url("");
    for (body, kind, origin, expected) in [
        ("{", "application/json", own.as_str(), StatusCode::BAD_REQUEST),
        ("{}", "application/json", own.as_str(), StatusCode::UNPROCESSABLE_ENTITY),
        (good.as_str(), "text/plain", own.as_str(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (good.as_str(), "application/json", "https://evil.example", StatusCode::FORBIDDEN),
    ] {
        let request =
            ops.client.post(ops.url("/api/login")).header("origin", origin).header("content-type", kind);
        let response = request.body(body.to_owned()).send().await.unwrap();
        assert!(response.headers().get("set-cookie").is_none());
        assert_eq!(error_of(response).await.0, expected, "{body} {kind} {origin}");
    }
}

#[tokio::test]
async fn a_login_before_is_worth_nothing_after_a_new_one() {
    let ops = TestOps::start().await;
    let first = ops.log_in().await;
    let request =
        ops.client.post(ops.url("/api/login")).header("origin", ops.url("")).header("cookie", &first.cookie);
    let again = request.json(&json!({ "name": "Ada", "password": PASSWORD })).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    let old = ops.as_browser(ops.get("/api/status"), &first).send().await.unwrap();
    assert_eq!(old.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn guessing_ends_after_ten_attempts_even_with_the_right_password() {
    let ops = TestOps::start().await;
    for _ in 0..10 {
        let (status, _) =
            error_of(ops.get("/api/status").bearer_auth("wrong password").send().await.unwrap()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    let (status, error) = error_of(ops.get("/api/status").bearer_auth(PASSWORD).send().await.unwrap()).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(error.contains("Wait five minutes"));
}

#[tokio::test]
async fn what_another_site_makes_a_browser_send_is_refused() {
    let ops = TestOps::start().await;
    let login = ops.log_in().await;
    let visitor = ops.visitor(1).await;
    let path = format!("/api/sessions/{}/revoke", visitor.session);
    let body = json!({ "why": "because" }).to_string();
    let try_with = async |headers: &[(&str, &str)]| {
        let mut request = ops.as_browser(ops.client.post(ops.url(&path)), &login).body(body.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap().status()
    };
    let own = ops.url("");
    let json = ("content-type", "application/json");
    assert_eq!(
        try_with(&[("content-type", "text/plain"), ("origin", &own)]).await,
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    assert_eq!(try_with(&[json]).await, StatusCode::FORBIDDEN, "a browser names its origin");
    for origin in ["https://evil.example", "null", "", "http://127.0.0.1:1"] {
        assert_eq!(try_with(&[json, ("origin", origin)]).await, StatusCode::FORBIDDEN, "{origin}");
    }
    let cross = [json, ("origin", own.as_str()), ("sec-fetch-site", "cross-site")];
    assert_eq!(try_with(&cross).await, StatusCode::FORBIDDEN);
    assert!(!ops.is_refused(&visitor));
    assert_eq!(try_with(&[json, ("origin", &own), ("sec-fetch-site", "same-origin")]).await, StatusCode::OK);
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_not_answered() {
    let ops =
        TestOps::start_with(|config| config.alerts.ops_url = Some("https://ops.example.com/x".into())).await;
    for (host, ours) in [
        ("127.0.0.1:9000", true),
        ("[::1]:9000", true),
        ("192.0.2.7", true),
        ("localhost:1", true),
        ("LOCALHOST", true),
        ("ops.example.com", true),
        ("ops.example.com:443", true),
        ("evil.example", false),
        ("localhost.evil.example", false),
        ("127.0.0.1.evil.example", false),
        ("ops.example.com.evil.example", false),
        ("", false),
    ] {
        for path in ["/", "/api/status"] {
            let status = ops.get(path).header("host", host).send().await.unwrap().status();
            assert_eq!(status != StatusCode::MISDIRECTED_REQUEST, ours, "{host:?} {path}");
        }
        // A scraper reaches these under whatever name it knows.
        for path in ["/metrics", "/healthz", "/readyz"] {
            let status = ops.get(path).header("host", host).send().await.unwrap().status();
            assert_eq!(status, StatusCode::OK, "{host:?} {path}");
        }
    }
}

#[tokio::test]
async fn an_operator_logs_a_session_out_and_pardons_it() {
    let ops = TestOps::start().await;
    let visitor = ops.visitor(1).await;
    ops.visitor(2).await;
    let listed = ops.read("/api/sessions").await;
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 2);
    let path = format!("/api/sessions/{}", visitor.session);

    let acted =
        ops.post(&format!("{path}/revoke"), &json!({ "why": " shares\nthe account " })).send().await.unwrap();
    assert_eq!(acted.status(), StatusCode::OK);
    let acted: Value = acted.json().await.unwrap();
    assert!(ops.is_refused(&visitor));
    assert!(!ops.is_refused(&identity(2)), "nobody else");
    let seen = ops.read(&path).await;
    assert_eq!(seen["session"]["standing"]["standing"], "deny");
    assert_eq!(seen["session"]["refused"]["incident"], acted["incident"]);
    assert_eq!(seen["incidents"][0]["incident"]["id"], acted["incident"]);

    let id = acted["incident"].as_str().unwrap();
    let pardoned = ops
        .post(&format!("/api/incidents/{id}/pardon"), &json!({ "why": "called us" }))
        .send()
        .await
        .unwrap();
    assert_eq!(pardoned.status(), StatusCode::OK);
    assert!(!ops.is_refused(&visitor));
    let seen = ops.read(&path).await;
    assert_eq!(seen["session"]["standing"]["standing"], "allow");
    assert!(seen["session"]["pardoned_until"].as_u64().unwrap() > clock::now().0);

    let audit = ops.read("/api/audit").await;
    let told =
        |n: usize| ["who", "what", "why"].map(|key| audit["records"][n][key].as_str().unwrap().to_owned());
    assert_eq!(told(0), ["Ada", "pardon", "called us"]);
    assert_eq!(told(1), ["Ada", "revoke", "sharesthe account"]);
    let row = ops.read(&format!("/api/incidents/{id}")).await;
    assert_eq!(row["pardoned"]["who"], "Ada");
}

#[tokio::test]
async fn a_session_that_is_gone_from_memory_is_pardoned_by_its_incident() {
    let ops = TestOps::start().await;
    let gone = logout(7);
    ops.store.record(&gone, &[]).await.unwrap();
    let revocation = Revocation {
        scope: Scope::Session(gone.identity.session),
        incident: gone.id.clone(),
        decided_at: gone.at,
        until: gone.until,
    };
    ops.revocations.revoke(revocation).await.unwrap();
    assert!(ops.is_refused(&gone.identity));

    let detail = ops.read(&format!("/api/sessions/{}", gone.identity.session)).await;
    assert_eq!(detail["session"], Value::Null);
    assert_eq!(detail["incidents"][0]["incident"]["id"], "TEST-7");

    let acted =
        ops.post("/api/incidents/TEST-7/pardon", &json!({ "why": "a switch device" })).send().await.unwrap();
    assert_eq!(acted.status(), StatusCode::OK);
    let acted: Value = acted.json().await.unwrap();
    assert!(acted["incident"].as_str().unwrap().starts_with("OP-"));
    eventually(|| async { !ops.is_refused(&gone.identity) }).await;
    eventually(|| async { ops.read("/api/incidents/TEST-7").await["pardoned"]["why"] == "a switch device" })
        .await;
    assert!(
        ops.store.active_revocations(clock::now()).await.unwrap().is_empty(),
        "nor does a restart bring it back"
    );

    // And can be logged out again, by what is known of it.
    let path = format!("/api/sessions/{}/revoke", gone.identity.session);
    assert_eq!(ops.post(&path, &json!({ "why": "again" })).send().await.unwrap().status(), StatusCode::OK);
    eventually(|| async { ops.is_refused(&gone.identity) }).await;
}

#[tokio::test]
async fn wrong_wishes_get_a_plain_sentence() {
    let ops = TestOps::start().await;
    let visitor = ops.visitor(1).await;
    let unknown = identity(9).session;
    let known = format!("/api/sessions/{}/revoke", visitor.session);
    let why = json!({ "why": "x" });
    for (path, body, expected, part) in [
        (format!("/api/sessions/{unknown}/revoke"), &why, StatusCode::NOT_FOUND, "no such session"),
        (format!("/api/sessions/{unknown}/pardon"), &why, StatusCode::NOT_FOUND, "no such session"),
        ("/api/sessions/s_1/revoke".into(), &why, StatusCode::NOT_FOUND, "no session's number"),
        ("/api/incidents/NONE/pardon".into(), &why, StatusCode::NOT_FOUND, "no incident"),
        (format!("/api/incidents/{}/pardon", "x".repeat(100)), &why, StatusCode::NOT_FOUND, "no incident"),
        (known.clone(), &json!({ "why": " \t" }), StatusCode::UNPROCESSABLE_ENTITY, "Say why"),
        (
            known.clone(),
            &json!({ "why": "x".repeat(501) }),
            StatusCode::UNPROCESSABLE_ENTITY,
            "501 characters",
        ),
        (known.clone(), &json!({ "why": 1 }), StatusCode::UNPROCESSABLE_ENTITY, "why"),
        (known.clone(), &json!({ "why": "x", "force": true }), StatusCode::UNPROCESSABLE_ENTITY, "force"),
        (known.clone(), &json!({ "why": "x".repeat(20_000) }), StatusCode::PAYLOAD_TOO_LARGE, "body"),
    ] {
        let (status, error) = error_of(ops.post(&path, body).send().await.unwrap()).await;
        assert_eq!(status, expected, "{path} {error}");
        assert!(error.contains(part), "{path} {error}");
    }
    assert!(!ops.is_refused(&visitor));
    assert!(
        ops.store.incidents(&IncidentFilter { limit: 10, ..Default::default() }).await.unwrap().is_empty()
    );
}

#[tokio::test]
async fn the_status_tells_policy_model_board_budget_and_coverage() {
    let ops = TestOps::start().await;
    ops.visitor(1).await;
    let status = ops.read("/api/status").await;
    assert_eq!(status["in_force"]["policy_from"], "shipped");
    assert!(!status["in_force"]["rules"].as_array().unwrap().is_empty());
    let acts = |rule: &&Value| rule["action"] != "allow";
    assert!(
        status["in_force"]["rules"]
            .as_array()
            .unwrap()
            .iter()
            .filter(acts)
            .all(|rule| rule["mode"] == "shadow")
    );
    assert_eq!(status["in_force"]["model"]["calibrated"], false);
    assert_eq!(status["board"]["backend"], "embedded");
    assert_eq!(status["budget"]["tripped"], Value::Null);
    assert_eq!(status["sessions"]["live"], 1);
    assert_eq!(status["sessions"]["expected"], 1, "its page carried the collector");
    assert_eq!(status["sessions"]["seen"], 0);
    assert_eq!(status["steps_pending"], 0);
    let reset = ops.post("/api/budget/reset", &json!({ "why": "looked" })).send().await.unwrap();
    assert_eq!(reset.status(), StatusCode::OK);
    assert_eq!(ops.read("/api/audit").await["records"][0]["what"], "budget-reset");
}

#[tokio::test]
async fn metrics_are_public_unless_the_settings_say_otherwise() {
    let public = TestOps::start().await;
    assert_eq!(public.get("/metrics").send().await.unwrap().status(), StatusCode::OK);
    let closed = TestOps::start_with(|config| config.ops.metrics_public = false).await;
    assert_eq!(closed.get("/metrics").send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let answer = closed.get("/metrics").bearer_auth(PASSWORD).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
}

#[tokio::test]
async fn a_draining_gateway_is_not_ready_but_can_be_watched() {
    let mut ops = TestOps::start().await;
    assert_eq!(ops.get("/readyz").send().await.unwrap().status(), StatusCode::OK);
    ops.shutdown.take().unwrap().send(()).unwrap();
    eventually(|| async {
        ops.get("/readyz").send().await.unwrap().status() == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    assert_eq!(ops.get("/healthz").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(ops.get("/api/status").bearer_auth(PASSWORD).send().await.unwrap().status(), StatusCode::OK);
}

#[test]
fn a_password_is_made_once_for_its_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { data: folder.path().join("data"), ..Config::default() };
    assert!(Password::load(&config).unwrap().generated);
    let file = password_file(&config);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(&config.data), 0o700);
    let first = read_password(&file).unwrap();
    assert_eq!(first.len(), 24);
    assert!(!Password::load(&config).unwrap().generated);
    assert_eq!(read_password(&file).unwrap(), first);
}

#[test]
fn unfit_password_files_are_refused_without_showing_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p");
    for (text, part) in [
        ("hunter2".to_owned(), "fewer than 12"),
        (String::new(), "fewer than 12"),
        ("x".repeat(2000), "more than 1024"),
        ("first line of it\nsecond line of it".into(), "more than one line"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let error = read_password(&file).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(text.is_empty() || !error.contains(&text[..7]), "{error}");
    }
    assert!(read_password(&folder.path().join("none")).unwrap_err().to_string().contains("cannot be read"));
}

#[tokio::test]
async fn without_a_configured_issuer_nobody_is_forgotten_by_name_alone() {
    let ops = TestOps::start_with(|config| config.identity.jwt = Some(config::Jwt::default())).await;
    let secret = InstallSecret::from_directory(ops.folder.path()).unwrap();
    let alice = secret.subject(&[b"https://login", b"talice"]);
    assert!(ops.store.save_profile(alice, b"sealed", None, clock::now()).await.unwrap());
    let mut whom = json!({ "user": "alice", "why": "asked" });
    let (status, why) = error_of(ops.post("/api/profiles/forget", &whom).send().await.unwrap()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(why.contains("issuer"), "{why}");
    whom["issuer"] = json!("https://login");
    let answer: Value = ops.post("/api/profiles/forget", &whom).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["known"], 1, "{answer}");
    assert_eq!(ops.store.profile(alice).await.unwrap().unwrap().bytes, None);
}

#[tokio::test]
async fn a_person_is_forgotten_by_name_or_pseudonym_and_the_trail_says_by_whom() {
    let ops = TestOps::start_with(|config| {
        config.identity.jwt =
            Some(config::Jwt { issuer: Some("https://login".into()), ..Default::default() });
    })
    .await;
    let secret = InstallSecret::from_directory(ops.folder.path()).unwrap();
    let alice = secret.subject(&[b"https://login", b"talice"]);
    let forget = async |body: Value| -> Value {
        ops.post("/api/profiles/forget", &body).send().await.unwrap().json().await.unwrap()
    };
    for body in [json!({ "user": "alice", "why": "asked" }), json!({ "subject": alice, "why": "asked" })] {
        let over = ops.store.profile(alice).await.unwrap().map(|row| row.version);
        assert!(ops.store.save_profile(alice, b"sealed", over, clock::now()).await.unwrap());
        let answer = forget(body.clone()).await;
        assert_eq!(answer["known"], 1, "{answer}");
        assert!(answer["subjects"].as_array().unwrap().contains(&json!(alice)), "{answer}");
        assert_eq!(ops.store.profile(alice).await.unwrap().unwrap().bytes, None);
        let record = ops.store.audit_trail(1).await.unwrap().remove(0);
        assert_eq!((record.who.as_str(), record.what.as_str()), ("Ada", "forget"));
        assert!(record.why.starts_with("asked (") && record.why.contains(&alice.to_string()), "{record:?}");
        assert_eq!(forget(body).await["known"], 0, "nothing is left");
    }
    let elsewhere = json!({ "user": "alice", "issuer": "https://other", "why": "asked" });
    let answer = forget(elsewhere).await;
    assert!(!answer["subjects"].as_array().unwrap().contains(&json!(alice)), "{answer}");
    for wrong in [
        json!({ "why": "asked" }),
        json!({ "user": "", "why": "asked" }),
        json!({ "user": "alice", "subject": alice, "why": "asked" }),
        json!({ "subject": alice, "issuer": "https://login", "why": "asked" }),
        json!({ "subject": "alice", "why": "asked" }),
        json!({ "user": "alice", "why": " " }),
    ] {
        let (status, why) = error_of(ops.post("/api/profiles/forget", &wrong).send().await.unwrap()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}: {why}");
    }
}
