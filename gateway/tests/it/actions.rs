//! What every action means to a page load, a script, a WebSocket and a client that is no browser:
//! the table of docs/policies.md, on the wire.

use crate::app::App;
use crate::gateway::{Gateway, eventually};
use reqwest::{Client, Response, redirect};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const POLICY: &str = "mode: enforce
routes:
  - {name: tag, match: {path: /tag}}
  - {name: throttle, match: {path: /throttle}}
  - {name: challenge, match: {path: /challenge}}
  - {name: step-up, match: {path: /step-up}}
  - {name: logout, match: {path: /logout}}
  - {name: everywhere, match: {path: /everywhere}}
  - {name: deny, match: {path: /deny}}
  - {name: tarpit, match: {path: /tarpit}}
  - {name: health, match: {path: /health}}
rules:
  - {name: health, when: route == \"health\", action: allow}
  - {name: tag, when: route == \"tag\", action: tag, tag: suspect, for: 1h}
  - {name: throttle, when: route == \"throttle\", action: throttle, throttle: {requests_per_minute: 1, burst: 1}, for: 1h}
  - {name: challenge, when: route == \"challenge\", action: challenge, for: 1h}
  - {name: step-up, when: route == \"step-up\", action: step-up, step_up: {acr_values: 'urn:mfa', max_age: 5m}, for: 1h}
  - {name: logout, when: route == \"logout\", action: logout}
  - {name: everywhere, when: route == \"everywhere\", action: logout-everywhere}
  - {name: deny, when: route == \"deny\", action: deny, for: 1h}
  - {name: tarpit, when: route == \"tarpit\", action: tarpit, tarpit: {delay: 5s}, for: 1h}
budget: {logouts_per_minute_max: 1000, logouts_share_max: 100%, logouts_per_user_per_day_max: 1000}
";

fn start(app: &App, directory: &Path, more: &str) -> Gateway {
    let file = directory.join("policy.yaml");
    std::fs::write(&file, POLICY).unwrap();
    let settings = format!("policy:\n  file: {}\nidentity:\n  app_cookie: sid\n{more}", file.display());
    Gateway::start(&app.url(), &settings)
}

/// One session and the four ways in which it may call.
struct Caller {
    http: Client,
    cookie: String,
}

impl Caller {
    fn new(name: &str) -> Caller {
        let http = Client::builder().redirect(redirect::Policy::none()).build().unwrap();
        Caller { http, cookie: format!("sid={name}-0123456789abcdef") }
    }

    async fn get(&self, gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.http.get(gateway.url(path)).header("cookie", &self.cookie);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn navigate(&self, gateway: &Gateway, path: &str) -> Response {
        self.get(gateway, path, &[("sec-fetch-mode", "navigate"), ("accept", "text/html")]).await
    }

    async fn fetch(&self, gateway: &Gateway, path: &str) -> Response {
        self.get(gateway, path, &[("sec-fetch-mode", "cors"), ("accept", "*/*")]).await
    }

    /// The status of the handshake's answer.
    async fn socket(&self, gateway: &Gateway) -> u16 {
        let mut request = format!("ws://{}/ws", gateway.address).into_client_request().unwrap();
        request.headers_mut().insert("cookie", self.cookie.parse().unwrap());
        match tokio_tungstenite::connect_async(request).await {
            Ok(_) => 101,
            Err(SocketError::Http(response)) => response.status().as_u16(),
            Err(error) => panic!("{error}"),
        }
    }

    /// Asks for what the rule of that name waits for, until its incident has been carried out.
    async fn trip(&self, gateway: &Gateway, action: &str) {
        self.fetch(gateway, &format!("/{action}")).await;
        let label = format!("action=\"{action}\"");
        eventually("the rule has spoken", async || {
            gateway.metric("gaitway_incidents_total", &label).await >= 1.0
        })
        .await;
    }
}

/// Status and media type of the four answers, as the docs have them.
async fn answers(gateway: &Gateway, caller: &Caller) -> [String; 4] {
    let told = |response: Response| {
        let media = response.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
        let media = media.unwrap_or_default();
        format!("{} {}", response.status().as_u16(), media.split(';').next().unwrap())
    };
    [
        told(caller.navigate(gateway, "/json").await),
        told(caller.fetch(gateway, "/json").await),
        told(caller.get(gateway, "/json", &[]).await),
        caller.socket(gateway).await.to_string(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action_answers_each_kind_of_client_in_its_own_way() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let gateway = start(&app, directory.path(), "");
    let passes = ["200 application/json", "200 application/json", "200 application/json", "101"];
    let problem = "application/problem+json";
    let refused = ["403 text/html", &format!("401 {problem}"), &format!("401 {problem}"), "401"];
    for (action, expected) in [
        ("tag", passes),
        ("challenge", ["403 text/html", &format!("403 {problem}"), &format!("403 {problem}"), "403"]),
        ("step-up", ["403 text/html", &format!("401 {problem}"), &format!("401 {problem}"), "401"]),
        ("logout", refused),
        ("deny", refused),
        ("tarpit", refused),
    ] {
        let caller = Caller::new(action);
        assert_eq!(answers(&gateway, &caller).await, passes, "{action}: before");
        caller.trip(&gateway, action).await;
        eventually(action, async || answers(&gateway, &caller).await == expected).await;
    }
    let tagged = app.heads().into_iter().any(|head| head.to_lowercase().contains("x-gaitway-tag: suspect"));
    assert!(tagged, "the app is told");

    let caller = Caller::new("throttle");
    caller.trip(&gateway, "throttle").await;
    eventually("the bucket is empty", async || {
        caller.fetch(&gateway, "/json").await.status().as_u16() == 429
    })
    .await;
    let slow = caller.fetch(&gateway, "/json").await;
    assert_eq!(slow.headers()["ratelimit-policy"], "\"throttle\";q=1;w=60");
    assert!(slow.headers().contains_key("retry-after"));
    let expected = ["429 text/html", &format!("429 {problem}"), &format!("429 {problem}"), "429"];
    assert_eq!(answers(&gateway, &caller).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_up_names_what_it_asks_and_without_a_provider_presence_is_enough() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let gateway = start(&app, directory.path(), "");
    let caller = Caller::new("stepper");
    caller.trip(&gateway, "step-up").await;
    eventually("the script is told", async || caller.fetch(&gateway, "/json").await.status() == 401).await;
    let answer = caller.fetch(&gateway, "/json").await;
    let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert!(challenge.starts_with("Bearer error=\"insufficient_user_authentication\""), "{challenge}");
    assert!(challenge.ends_with("acr_values=\"urn:mfa\", max_age=\"300\""), "{challenge}");
    let body: serde_json::Value = answer.json().await.unwrap();
    assert_eq!((&body["acr_values"], &body["max_age"]), (&"urn:mfa".into(), &300.into()));
    // An allow rule about the request still speaks for it.
    assert_eq!(caller.fetch(&gateway, "/health").await.status(), 200);

    let page = caller.navigate(&gateway, "/json").await.text().await.unwrap();
    let token = page.split("name=\"token\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let form = format!("token={token}&back=%2Fjson");
    let passed = caller
        .http
        .post(gateway.url("/_gaitway/challenge"))
        .header("cookie", &caller.cookie)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form)
        .send()
        .await
        .unwrap();
    assert_eq!((passed.status().as_u16(), &passed.headers()["location"]), (303, &"/json".parse().unwrap()));
    eventually("the way is free", async || caller.navigate(&gateway, "/json").await.status() == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tarpit_answers_slowly_within_its_cap_and_at_once_beyond() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let gateway = start(&app, directory.path(), "limits:\n  tarpits_max: 1\n");
    let caller = Caller::new("bot");
    caller.trip(&gateway, "tarpit").await;
    eventually("the session is refused", async || caller.fetch(&gateway, "/json").await.status() == 401)
        .await;

    // Whoever leaves gives the place back.
    eventually("the place is free", async || gateway.metric("gaitway_tarpits", "").await == 0.0).await;

    let begun = Instant::now();
    let held = caller.fetch(&gateway, "/json").await;
    assert!(begun.elapsed() < Duration::from_secs(5), "the head comes at once, and only the body drips");
    assert_eq!(gateway.metric("gaitway_tarpits", "").await, 1.0);
    // The only place is taken: the next one is an ordinary refusal.
    let next = Instant::now();
    let refused = caller.fetch(&gateway, "/json").await;
    assert_eq!((refused.status().as_u16(), refused.bytes().await.is_ok()), (401, true));
    assert!(next.elapsed() < Duration::from_secs(5), "{:?}", next.elapsed());
    assert!(held.text().await.unwrap().ends_with('}'), "whole in the end");
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    eventually("the place is free again", async || gateway.metric("gaitway_tarpits", "").await == 0.0).await;
    assert!(gateway.metric("gaitway_requests_refused_total", "outcome=\"tarpit\"").await >= 1.0);
    assert!(gateway.metric("gaitway_requests_refused_total", "outcome=\"deny\"").await >= 1.0);
}
