//! A changed policy is taken up without a restart; a bad one leaves the last good one in force.

use crate::app::App;
use crate::gateway::{Gateway, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_does_not_end_a_gateway_without_a_policy_file() {
    let app = App::start().await;
    let mut gateway = Gateway::start(&app.url(), "");
    // Answered once the handler is in place.
    assert_eq!(reqwest::get(gateway.url("/json")).await.unwrap().status(), 200);
    gateway.signal("HUP");
    for _ in 0..20 {
        assert_eq!(reqwest::get(gateway.url("/json")).await.unwrap().status(), 200);
    }
    gateway.signal("TERM");
    assert!(gateway.wait(), "a clean exit, by the signal that asks for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_is_taken_up_and_a_bad_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, gaitway_policies::DEFAULT).unwrap();
    let app = App::start().await;
    let policy = format!("policy:\n  file: {}\n", file.display());
    let gateway = Gateway::start(&app.url(), &policy);

    std::fs::write(&file, "rules:\n  - name: broken\n    when: bot.scor > 1\n").unwrap();
    gateway.signal("HUP");
    eventually("the bad file is refused", async || {
        gateway.metric("gaitway_policy_reloads_total", "failed").await >= 1.0
    })
    .await;
    assert_eq!(gateway.metric("gaitway_policy_last_reload_successful", "").await, 0.0);
    assert!(gateway.log_text().contains("policy.yaml:3:"), "{}", gateway.log_text());

    // No signal: the change itself is noticed.
    std::fs::write(&file, gaitway_policies::DEMO).unwrap();
    eventually("the good file is taken up", async || {
        gateway.metric("gaitway_policy_last_reload_successful", "").await == 1.0
    })
    .await;
    assert!(gateway.metric("gaitway_policy_reloads_total", "ok").await >= 1.0);
}
