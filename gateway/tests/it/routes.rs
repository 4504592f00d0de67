//! The parts of an app that a policy names are treated as it says.

use crate::app::{App, PAGE};
use crate::gateway::{Gateway, eventually};
use crate::servers::Redis;

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
