//! The parts of an app that a policy names are treated as it says.

use crate::app::{App, PAGE};
use crate::gateway::{Gateway, eventually};
use crate::servers::Redis;
use crate::telemetry::Page;
use reqwest::StatusCode;

const POLICY: &str = "import: [plain.yaml]
rules:
  - name: note
    when: bot.score > 0.99
    action: log
";
const SNIPPET: &str = "routes:
  - {name: plain, match: {path: /page, method: GET}, injection: off}
  - {name: strict, match: {path: /json}, outage: deny}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_route_may_go_without_the_collector_or_refuse_during_an_outage() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, POLICY).unwrap();
    std::fs::write(directory.path().join("plain.yaml"), SNIPPET).unwrap();
    let app = App::start().await;
    let mut redis = Redis::start();
    let settings = format!("policy:\n  file: {}\nrevocation:\n  redis: {}\n", file.display(), redis.url());
    let gateway = Gateway::start(&app.url(), &settings);
    let client = reqwest::Client::new();
    let get =
        async |path: &str| client.get(gateway.url(path)).header("accept", "text/html").send().await.unwrap();

    assert_eq!(get("/page").await.text().await.unwrap(), PAGE);
    assert_ne!(get("/page?x=1").await.status(), 503);
    assert_eq!(get("/json").await.status(), 200);
    redis.kill();
    eventually("the strict route refuses", async || get("/json").await.status() == 503).await;
    assert_eq!(get("/page").await.status(), 200, "the others go on");
    redis.restart();
    eventually("the strict route serves again", async || get("/json").await.status() == 200).await;
}

const WHO: &str = "identities:
  - {name: visitors, by: []}
routes:
  - {name: front, match: {path: /page}, identity: visitors}
rules: []
";

#[tokio::test(flavor = "multi_thread")]
async fn a_route_says_what_its_visitors_are_known_by_and_their_telemetry_follows() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, WHO).unwrap();
    let app = App::start().await;
    let settings = format!("policy:\n  file: {}\nidentity:\n  app_cookie: PHPSESSID\n", file.display());
    let gateway = Gateway::start(&app.url(), &settings);
    let own = Page::open(&gateway).await.cookie;
    let login = "PHPSESSID=abc".to_owned();
    for (path, whose, not) in [("/page", &own, &login), ("/json", &login, &own)] {
        let request = reqwest::Client::new().post(gateway.url("/_gaitway/token"));
        let request =
            request.header("referer", gateway.url(path)).header("cookie", format!("{login}; {own}"));
        let token = request.send().await.unwrap().text().await.unwrap();
        let opens = async |cookie: &str| {
            let page = Page { cookie: cookie.to_owned(), token: token.clone() };
            page.socket(&gateway, &[]).await.is_ok()
        };
        assert!(opens(whose).await, "{path} is visited by {whose}");
        assert!(opens(&format!("{login}; {own}")).await, "a browser sends both");
        assert!(!opens(not).await, "{path} is not visited by {not}");
    }
}

/// Every way to name a part of an app, and a rule that applies only where its route lists it.
const PARTS: &str = "mode: enforce
routes:
  - {name: host, match: {host: '*.shop.example'}, rules: [ask]}
  - {name: method, match: {path: /json, method: [PUT, DELETE]}, rules: [ask]}
  - {name: header, match: {header: {x-part: admin}}, rules: [ask]}
  - {name: path, match: {path: '/part/*/inner'}, rules: [ask]}
  - {name: default, rules: []}
rules:
  - {name: ask, when: request.count >= 1, action: challenge, for: 1h}
  - {name: friend, when: 'net.within(\"192.0.2.0/24\")', action: allow}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_acts_on_the_routes_that_list_it_and_an_allow_rule_everywhere() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, PARTS).unwrap();
    let app = App::start().await;
    let settings = format!(
        "policy:\n  file: {}\nproxy:\n  trusted_proxies: [127.0.0.0/8]\nidentity:\n  app_cookie: sid\n",
        file.display()
    );
    let gateway = Gateway::start(&app.url(), &settings);
    let http = reqwest::Client::new();
    let ask = async |method: &str, path: &str, session: &str, more: (&'static str, &str)| {
        let method = method.parse::<reqwest::Method>().unwrap();
        let request = http.request(method, gateway.url(path)).header(more.0, more.1);
        request.header("cookie", format!("sid={session}-0123456789abcdef")).send().await.unwrap().status()
    };
    let nothing = ("x-nothing", "1");
    let friend = ("x-forwarded-for", "192.0.2.7");
    // What is left over, and what is nearly one of the parts: nobody is asked anything there.
    for (n, (method, path, more)) in [
        ("GET", "/json", nothing),
        ("GET", "/part/7/inner/more", nothing),
        ("GET", "/json", ("host", "shop.example")),
        ("GET", "/json", ("x-part", "user")),
        ("PUT", "/json", friend),
    ]
    .into_iter()
    .enumerate()
    {
        for _ in 0..3 {
            assert_eq!(ask(method, path, &format!("calm{n}"), more).await, StatusCode::OK, "{path} {more:?}");
        }
    }
    for (n, (method, path, more)) in [
        ("GET", "/json", ("host", "www.shop.example:8000")),
        ("DELETE", "/json", nothing),
        ("GET", "/json", ("x-part", "admin")),
        ("GET", "/part/7/inner", nothing),
    ]
    .into_iter()
    .enumerate()
    {
        eventually("the rule has asked", async || {
            ask(method, path, &format!("part{n}"), more).await == StatusCode::FORBIDDEN
        })
        .await;
    }
    assert_eq!(gateway.metric("gaitway_incidents_total", "action=\"challenge\"").await, 4.0);
}
