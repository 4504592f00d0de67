//! The policy's rate limits on the wire: who is counted, what the fields say, what is refused and how.

use crate::app::App;
use crate::gateway::{Gateway, eventually};
use crate::revocation::{Operator, PASSWORD};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use std::path::Path;

/// Refills so slowly that no test sees it.
const POLICY: &str = "mode: enforce
routes:
  - {name: login, match: {path: /login, method: POST}}
  - {name: health, match: {path: /health}}
  - {name: keyed, match: {path: /keyed, header: {x-key: '*'}}}
  - {name: socket, match: {path: /ws}}
rules:
  - {name: health, when: route == \"health\", action: allow}
limits:
  - {name: login, per: address, routes: [login, health], requests_per_minute: 1, burst: 3}
  - {name: member, per: session, routes: [default], requests_per_minute: 1, burst: 2}
  - {name: keyed, per: route, routes: [keyed], requests_per_minute: 1, burst: 2}
  - {name: socket, per: address, routes: [socket], requests_per_minute: 1, burst: 1}
";

fn settings(directory: &Path, policy: &str) -> String {
    let file = directory.join("policy.yaml");
    let password = directory.join("password");
    std::fs::write(&file, policy).unwrap();
    std::fs::write(&password, PASSWORD).unwrap();
    // The test plays the proxy in front, so that it can have several addresses.
    format!(
        "policy:\n  file: {}\nproxy:\n  trusted_proxies: [127.0.0.0/8]\nidentity:\n  app_cookie: sid\nops:\n  listen: 127.0.0.1:0\n  password_file: {}\n",
        file.display(),
        password.display()
    )
}

fn field(response: &Response, name: &str) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_counted_by_prefix_and_told_where_they_stand() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), &settings(directory.path(), POLICY));
    let http = Client::new();
    let log_in = async |address: &str| {
        http.post(gateway.url("/login")).header("x-forwarded-for", address).send().await.unwrap()
    };

    for left in [2, 1, 0] {
        let answer = log_in("192.0.2.1").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(field(&answer, "ratelimit-policy"), "\"login\";q=3;w=180");
        assert!(field(&answer, "ratelimit").starts_with(&format!("\"login\";r={left};t=")), "{answer:?}");
    }
    let refused = log_in("192.0.2.1").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(field(&refused, "ratelimit").starts_with("\"login\";r=0;t="));
    let wait: u32 = field(&refused, "retry-after").parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(field(&refused, "content-type"), "application/problem+json");
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["violated-policies"], serde_json::json!(["login"]));
    assert!(problem["type"].as_str().unwrap().ends_with("#quota-exceeded"));

    // An IPv6 customer has a /64; the next one has another.
    for address in ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:3"] {
        assert_eq!(log_in(address).await.status(), StatusCode::OK);
    }
    assert_eq!(log_in("2001:db8::4").await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(log_in("2001:db8:0:1::1").await.status(), StatusCode::OK);
    assert_eq!(gateway.metric("gaitway_rate_limited_total", "limit=\"login\"").await, 2.0);
    assert_eq!(app.heads().len(), 7, "what was refused did not reach the app");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_routes_have_their_own_buckets_and_pages_get_a_page() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), &settings(directory.path(), POLICY));
    let http = Client::new();
    let get = async |path: &str, name: &'static str, value: &str| {
        http.get(gateway.url(path)).header(name, value).send().await.unwrap()
    };

    for _ in 0..2 {
        assert_eq!(get("/json", "cookie", "sid=alice-session-0001").await.status(), StatusCode::OK);
    }
    let refused = http
        .get(gateway.url("/page"))
        .header("cookie", "sid=alice-session-0001")
        .header("sec-fetch-mode", "navigate")
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(field(&refused, "retry-after").parse::<u32>().is_ok());
    assert!(field(&refused, "content-type").starts_with("text/html"));
    assert!(refused.text().await.unwrap().contains("Too many requests"));
    // Others are not concerned, and whoever has no session is not counted by it.
    let other = get("/json", "cookie", "sid=bob-session-00002").await;
    assert_eq!(
        (other.status(), field(&other, "ratelimit-policy")),
        (StatusCode::OK, "\"member\";q=2;w=120".into())
    );
    let nobody = get("/json", "accept", "*/*").await;
    assert_eq!((nobody.status(), field(&nobody, "ratelimit")), (StatusCode::OK, String::new()));

    // One bucket for everybody on the route, which its header makes.
    let statuses = [
        get("/keyed", "x-key", "1").await.status(),
        get("/keyed", "x-key", "2").await.status(),
        get("/keyed", "x-key", "3").await.status(),
        get("/keyed", "accept", "*/*").await.status(),
    ];
    assert_eq!(statuses.map(|status| status.as_u16()), [200, 200, 429, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn allow_rules_pass_every_limit_and_sockets_are_counted_when_they_open() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), &settings(directory.path(), POLICY));
    for _ in 0..20 {
        assert_eq!(reqwest::get(gateway.url("/health")).await.unwrap().status(), StatusCode::OK);
    }
    let url = format!("ws://{}/ws", gateway.address);
    let opened = tokio_tungstenite::connect_async(&url).await;
    assert!(opened.is_ok(), "{opened:?}");
    let Err(tokio_tungstenite::tungstenite::Error::Http(refused)) =
        tokio_tungstenite::connect_async(&url).await
    else {
        panic!("the second socket is over the limit");
    };
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_in_shadow_counts_and_lets_everybody_through() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let settings = settings(directory.path(), &POLICY.replacen("mode: enforce", "mode: shadow", 1));
    let mut gateway = Gateway::start(&app.url(), &settings);
    let http = Client::new();
    for _ in 0..5 {
        let answer = http.post(gateway.url("/login")).send().await.unwrap();
        assert_eq!((answer.status(), field(&answer, "ratelimit")), (StatusCode::OK, String::new()));
    }
    assert_eq!(gateway.metric("gaitway_rate_limited_total", "mode=\"shadow\"").await, 2.0);
    let line = gateway.log_line("requests came over a rate limit");
    assert_eq!((line["limit.name"].as_str(), line["limit.mode"].as_str()), (Some("login"), Some("shadow")));
    // The audit trail, which the page shows: one record for both, with the policy that would have.
    let told = async || {
        let audit = Operator::get(&gateway, "/audit").await;
        let records = audit["records"].as_array().unwrap().clone();
        records.into_iter().filter(|record| record["what"] == "would-limit").collect::<Vec<Value>>()
    };
    eventually("the audit trail tells", async || !told().await.is_empty()).await;
    let status = Operator::get(&gateway, "/status").await;
    let records = told().await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["policy_version"], status["in_force"]["policy_version"]);
    assert!(
        records[0]["why"].as_str().unwrap().starts_with("limit login would have refused "),
        "{records:?}"
    );

    // Enforced from the moment the file says so; the buckets stay as they are.
    std::fs::write(directory.path().join("policy.yaml"), POLICY).unwrap();
    gateway.signal("HUP");
    eventually("the limit is enforced", async || {
        http.post(gateway.url("/login")).send().await.unwrap().status() == StatusCode::TOO_MANY_REQUESTS
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_know_the_country_of_an_address() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let policy = "mode: enforce
rules:
  - {name: home, when: net.country == \"NL\", action: allow}
  - {name: abroad, when: net.country == \"JP\", action: challenge, for: 1h}
limits:
  - {name: everybody, per: address, requests_per_minute: 1, burst: 1}
";
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/countries.mmdb");
    let settings =
        settings(directory.path(), policy).replace("proxy:\n", &format!("proxy:\n  country_file: {file}\n"));
    let gateway = Gateway::start(&app.url(), &settings);
    let http = Client::new();
    let get = async |address: &str, session: &str| {
        let request = http.get(gateway.url("/json")).header("x-forwarded-for", address);
        request.header("cookie", format!("sid={session}-0123456789abcdef")).send().await.unwrap().status()
    };
    for _ in 0..4 {
        assert_eq!(get("192.0.2.1", "home").await, StatusCode::OK, "the allow rule passes the limit");
    }
    assert_eq!(get("198.51.100.1", "abroad").await, StatusCode::OK);
    // Another address of the same network, because that one's bucket is empty.
    eventually("the rule has asked", async || {
        gateway.metric("gaitway_incidents_total", "action=\"challenge\"").await >= 1.0
    })
    .await;
    eventually("the session is asked", async || get("203.0.113.9", "abroad").await == StatusCode::FORBIDDEN)
        .await;
}
