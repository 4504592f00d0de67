//! What becomes of a decision: what operators see of one in shadow, what happens when there are too
//! many, how one is explained, and that a new policy disturbs nobody.

use crate::app::App;
use crate::gateway::{DEADLINE, Gateway, eventually};
use crate::recording::{gaitway, visit};
use crate::revocation::{Operator, Person, SECRET, settings};
use crate::servers::{Redis, Smtp};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

/// A gateway's folder with a policy in it.
struct Place(TempDir);

impl Place {
    fn new(policy: &str) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::write(place.policy(), policy).unwrap();
        place
    }

    fn policy(&self) -> PathBuf {
        self.0.path().join("policy.yaml")
    }

    fn settings(&self, more: &str) -> String {
        let file = self.policy();
        settings(self.0.path(), &format!("policy:\n  file: {}\n{more}", file.display()))
    }

    fn password(&self) -> PathBuf {
        self.0.path().join("password")
    }
}

fn rule(mode: &str, rest: &str) -> String {
    format!(
        "rules:\n  - {{name: restless, when: evidence.events > 10, action: logout, mode: {mode}, reason: '{{evidence.events}} events'}}\n{rest}"
    )
}

fn subject(mail: &Value) -> String {
    let headers = mail["headers"].as_array().unwrap();
    let subject = headers.iter().find(|header| header[0] == "Subject").unwrap();
    subject[1].as_str().unwrap().to_owned()
}

/// Runs a `gaitway policy` command against the running gateway.
fn policy(gateway: &Gateway, password: &Path, arguments: &[&str]) -> String {
    let ops = format!("http://{}", gateway.ops);
    let reach = ["--ops", &ops, "--password-file", password.to_str().unwrap()];
    let whole: Vec<&str> = ["policy"].iter().chain(arguments).chain(&reach).copied().collect();
    gaitway(&whole)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_decision_shows_everywhere_as_what_would_have_happened() {
    let (app, place, smtp) = (App::start().await, Place::new(&rule("shadow", "")), Smtp::start());
    let mail = format!("{}    shadow: true\n", smtp.settings());
    let mut gateway = Gateway::start(&app.url(), &place.settings(&mail));
    let alice = visit(&gateway, "alice", 2).await;
    let session = Operator::only_session(&gateway).await;

    eventually("metric", async || gateway.metric("gaitway_incidents_total", "mode=\"shadow\"").await == 1.0)
        .await;
    let status = Operator::get(&gateway, "/status").await;
    let version = status["in_force"]["policy_version"].as_str().unwrap().to_owned();
    let line = gateway.log_line(&format!("shadow: logout by restless (score unknown, {})", &session[..10]));
    assert_eq!((&line["mode"], &line["policy.version"]), (&"shadow".into(), &version.clone().into()));
    // The audit: recorded with its facts, its policy and no step that touches the login.
    let rows = Operator::get(&gateway, "/incidents").await;
    let incident = &rows["incidents"][0]["incident"];
    assert_eq!((&incident["mode"], &incident["action"]), (&"shadow".into(), &"logout".into()));
    assert_eq!(incident["policy_version"], version.as_str());
    let steps = rows["incidents"][0]["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["name"] != "revoke"), "{steps:?}");
    let audit = Operator::get(&gateway, "/audit").await;
    let record = audit["records"].as_array().unwrap().iter().find(|record| record["session"] == session);
    let record = record.expect("a record of the session");
    assert_eq!((&record["what"], &record["who"]), (&"would-logout".into(), &"policy".into()));
    assert_eq!((&record["incident"], &record["policy_version"]), (&incident["id"], &version.clone().into()));
    // The page and its charts.
    let detail = Operator::get(&gateway, &format!("/sessions/{session}")).await;
    let seen = &detail["session"]["decisions"][0];
    assert_eq!((&seen["rule"], &seen["mode"]), (&"restless".into(), &"shadow".into()));
    let history = Operator::get(&gateway, "/history").await;
    assert_eq!(history["incidents"][0]["mode"], "shadow");
    // The mail, for those who asked for it.
    eventually("the mail arrives", async || !smtp.mails().is_empty()).await;
    let mail = smtp.mails()[0].clone();
    let text = mail["text"].as_str().unwrap();
    assert!(text.contains("would have been logged out") && text.contains(&version), "{text}");
    assert!(!alice.is_refused(&gateway).await, "and nothing happened");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_session_is_explained_rule_by_rule() {
    let quiet = "  - {name: quiet, when: request.rate > 1000.0, action: throttle, throttle: {requests_per_minute: 60, burst: 20}, reason: 'rate {request.rate}'}\n";
    let (app, place) = (App::start().await, Place::new(&format!("{}{quiet}", rule("shadow", ""))));
    let gateway = Gateway::start(&app.url(), &place.settings(""));
    let _alice = visit(&gateway, "alice", 2).await;
    let session = Operator::only_session(&gateway).await;
    let text = policy(&gateway, &place.password(), &["explain", &session]);
    assert!(text.starts_with("logout by rule restless (shadow): "), "{text}");
    assert!(text.contains("features against the usual range"), "{text}");
    assert!(text.contains("restless (logout, shadow): holds: evidence.events > 10"), "{text}");
    assert!(text.contains("quiet (throttle, shadow): does not hold: request.rate > 1000.0"), "{text}");
    assert!(!text.contains("127.0.0.1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_budget_is_told_by_mail_once_and_rules_enforce_again_only_by_hand() {
    let budget = "budget: {logouts_per_minute_max: 1, logouts_share_max: 100%}\n";
    let (app, place, smtp) = (App::start().await, Place::new(&rule("enforce", budget)), Smtp::start());
    let gateway = Gateway::start(&app.url(), &place.settings(&smtp.settings()));
    let subjects = || -> Vec<String> { smtp.mails().iter().map(subject).collect() };
    let trips = || subjects().iter().filter(|subject| subject.contains("ENFORCEMENT IS OFF")).count();

    let alice = visit(&gateway, "alice", 1).await;
    eventually("alice is logged out", async || alice.is_refused(&gateway).await).await;
    assert_eq!(gateway.metric("gaitway_budget_tripped", "").await, 0.0);
    let bob = visit(&gateway, "bob", 2).await;
    let carol = visit(&gateway, "carol", 3).await;
    eventually("the mail about the budget arrives", async || trips() >= 1).await;
    assert_eq!(gateway.metric("gaitway_budget_tripped", "").await, 1.0);
    let mail = smtp.mails().into_iter().find(|mail| subject(mail).contains("ENFORCEMENT"));
    let text = mail.unwrap()["text"].as_str().unwrap().to_owned();
    assert!(text.contains("logouts_per_minute_max") && text.contains("more than 1 logouts"), "{text}");
    assert!(text.contains("gaitway policy reset-budget"), "{text}");
    let status = Operator::get(&gateway, "/status").await;
    assert_eq!(status["budget"]["tripped"]["cap"], "per_minute", "the page's banner");
    assert!(!bob.is_refused(&gateway).await && !carol.is_refused(&gateway).await);

    // Neither a new policy nor time brings enforcement back.
    std::fs::write(place.policy(), format!("{}# changed\n", rule("enforce", budget))).unwrap();
    gateway.signal("HUP");
    eventually("the policy was reloaded", async || {
        gateway.metric("gaitway_policy_reloads_total", "ok").await >= 1.0
    })
    .await;
    let dave = visit(&gateway, "dave", 4).await;
    eventually("dave's decision only shadows", async || {
        gateway.metric("gaitway_incidents_total", "action=\"logout\",mode=\"shadow\"").await >= 3.0
    })
    .await;
    assert!(!dave.is_refused(&gateway).await);
    assert_eq!(trips(), 1, "told once: {:?}", subjects());

    policy(&gateway, &place.password(), &["reset-budget", "--why", "a test looked", "--by", "tess"]);
    assert_eq!(gateway.metric("gaitway_budget_tripped", "").await, 0.0);
    let erin = visit(&gateway, "erin", 5).await;
    eventually("rules enforce again", async || erin.is_refused(&gateway).await).await;
    let audit = Operator::get(&gateway, "/audit").await;
    let reset = audit["records"].as_array().unwrap().iter().find(|record| record["what"] == "budget-reset");
    assert_eq!(reset.unwrap()["who"], "tess");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_budget_stays_so_across_a_restart_and_a_reset_does_too() {
    let budget = "budget: {logouts_per_minute_max: 1, logouts_share_max: 100%}\n";
    let (app, place) = (App::start().await, Place::new(&rule("enforce", budget)));
    let data = place.0.path().join("data");
    let start = || Gateway::start_in(&app.url(), &place.settings(""), &data);
    let tripped = async |gateway: &Gateway| gateway.metric("gaitway_budget_tripped", "").await == 1.0;
    let stop = |mut gateway: Gateway| {
        gateway.signal("TERM");
        assert!(gateway.wait());
    };
    let gateway = start();
    visit(&gateway, "alice", 1).await;
    visit(&gateway, "bob", 2).await;
    eventually("the budget has tripped", async || tripped(&gateway).await).await;
    let status = Operator::get(&gateway, "/status").await;
    budget_trip(&gateway).await;
    stop(gateway);

    let gateway = start();
    assert!(tripped(&gateway).await, "nobody has looked yet");
    let again = Operator::get(&gateway, "/status").await;
    assert_eq!(again["budget"]["tripped"], status["budget"]["tripped"], "since when and by what");
    let carol = visit(&gateway, "carol", 3).await;
    eventually("carol's decision only shadows", async || {
        gateway.metric("gaitway_incidents_total", "action=\"logout\",mode=\"shadow\"").await >= 1.0
    })
    .await;
    assert!(!carol.is_refused(&gateway).await);
    policy(&gateway, &place.password(), &["reset-budget", "--why", "a test looked", "--by", "tess"]);
    stop(gateway);

    let gateway = start();
    assert!(!tripped(&gateway).await);
    let dave = visit(&gateway, "dave", 1).await;
    eventually("rules enforce again", async || dave.is_refused(&gateway).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_share_of_sessions_switches_every_rule_to_shadow() {
    let budget = "budget: {logouts_per_minute_max: 100, logouts_share_max: 1%}\n";
    let (app, place) = (App::start().await, Place::new(&rule("enforce", budget)));
    let gateway = Gateway::start(&app.url(), &place.settings(""));
    // One logout is always granted, so that a handful of sessions is protected too.
    let alice = visit(&gateway, "alice", 1).await;
    eventually("alice is logged out", async || alice.is_refused(&gateway).await).await;
    let bob = visit(&gateway, "bob", 2).await;
    eventually("the budget has tripped", async || gateway.metric("gaitway_budget_tripped", "").await == 1.0)
        .await;
    let status = Operator::get(&gateway, "/status").await;
    assert_eq!(status["budget"]["tripped"]["cap"], "share_of_sessions");
    let (why, version) = budget_trip(&gateway).await;
    assert!(why.contains("logouts_share_max"), "{why}");
    assert_eq!(version, status["in_force"]["policy_version"]);
    assert!(!bob.is_refused(&gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_spared_after_its_logouts_of_the_day_and_others_are_not() {
    let budget =
        "budget: {logouts_per_minute_max: 100, logouts_share_max: 100%, logouts_per_user_per_day_max: 1}\n";
    let (app, place) = (App::start().await, Place::new(&rule("enforce", budget)));
    let gateway = Gateway::start(&app.url(), &place.settings(""));
    let alice = visit(&gateway, "alice", 1).await;
    eventually("alice is logged out", async || alice.is_refused(&gateway).await).await;
    let again = visit(&gateway, "alice", 2).await;
    let (why, version) = budget_trip(&gateway).await;
    assert!(why.contains("logouts_per_user_per_day_max"), "{why}");
    let status = Operator::get(&gateway, "/status").await;
    assert_eq!(version, status["in_force"]["policy_version"]);
    assert!(!again.is_refused(&gateway).await, "the same account, signed in anew");
    assert_eq!(gateway.metric("gaitway_budget_tripped", "").await, 0.0, "rules still enforce");
    let bob = visit(&gateway, "bob", 3).await;
    eventually("bob is logged out", async || bob.is_refused(&gateway).await).await;
}

/// What the audit trail says of the only budget that was used up: why, and by which policy.
async fn budget_trip(gateway: &Gateway) -> (String, Value) {
    let mut trips = Vec::new();
    eventually("the audit trail tells", async || {
        let audit = Operator::get(gateway, "/audit").await;
        trips = audit["records"].as_array().unwrap().clone();
        trips.retain(|record| record["what"] == "budget-trip");
        !trips.is_empty()
    })
    .await;
    assert_eq!(trips.len(), 1, "{trips:?}");
    (trips[0]["why"].as_str().unwrap().to_owned(), trips[0]["policy_version"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_drops_no_socket_and_judges_nobody_without_new_evidence() {
    let (app, place) = (App::start().await, Place::new("rules: []\n"));
    let gateway = Gateway::start(&app.url(), &place.settings(""));
    let alice = Person::log_in("alice");
    let mut socket = alice.socket(&gateway, "/ws").await;
    let mut telemetry = alice.telemetry(&gateway).await;
    let mut events = alice.get(&gateway, "/events").send().await.unwrap().bytes_stream();
    let mut hand = gaitway_models::sim::Visitor::person(7);
    telemetry.send(Message::binary(hand.next_batch(6.0).encode())).await.unwrap();
    eventually("the batch was taken", async || {
        gateway.metric("gaitway_telemetry_batches_total", "").await == 1.0
    })
    .await;

    std::fs::write(place.policy(), rule("enforce", "budget: {logouts_share_max: 100%}\n")).unwrap();
    gateway.signal("HUP");
    eventually("the policy is in force", async || {
        Operator::get(&gateway, "/status").await["in_force"]["rules"][0]["name"] == "restless"
    })
    .await;
    // Everything open still carries both ways, and what is known already logs nobody out.
    socket.send(Message::text("still here")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still here"));
    for _ in 0..5 {
        assert!(events.next().await.unwrap().is_ok());
    }
    assert_eq!(gateway.metric("gaitway_incidents_total", "").await, 0.0);
    // New evidence does, over the very socket that was open.
    telemetry.send(Message::binary(hand.next_batch(2.0).encode())).await.unwrap();
    let told = tokio::time::timeout(DEADLINE, telemetry.next()).await.unwrap().unwrap().unwrap();
    let told: Value = serde_json::from_str(told.to_text().unwrap()).unwrap();
    assert_eq!(told["t"], "go");
    let rows = Operator::get(&gateway, "/incidents").await;
    let status = Operator::get(&gateway, "/status").await;
    assert_eq!(rows["incidents"][0]["incident"]["policy_version"], status["in_force"]["policy_version"]);
}

/// Logs out whoever comes.
const EVERYBODY: &str = "rules:\n  - {name: everybody, when: session.age >= 0.0, action: logout, mode: enforce, reason: all}\nbudget: {logouts_per_minute_max: 100, logouts_share_max: 100%}\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_pardon_keeps_rules_away_after_a_pause_and_after_a_restart() {
    let (app, place, data) = (App::start().await, Place::new(EVERYBODY), tempfile::tempdir().unwrap());
    let settings = place.settings("limits:\n  session_idle_ms: 1000\n");
    let start = || Gateway::start_in(&app.url(), &settings, data.path());
    let mut gateway = start();
    let alice = Person::log_in("alice");
    eventually("the rule logs her out", async || alice.is_refused(&gateway).await).await;
    let incidents = async |gateway: &Gateway| {
        Operator::get(gateway, "/incidents").await["incidents"].as_array().unwrap().clone()
    };
    let first = incidents(&gateway).await;
    let id = first[0]["incident"]["id"].as_str().unwrap();
    assert!(Operator::post(&gateway, &format!("/incidents/{id}/pardon")).await.is_success());
    eventually("the pardon counts", async || !alice.is_refused(&gateway).await).await;
    let known = incidents(&gateway).await.len();
    let is_listed = async |gateway: &Gateway| {
        !Operator::get(gateway, "/sessions").await["sessions"].as_array().unwrap().is_empty()
    };
    for after in ["a pause", "a restart"] {
        if after == "a restart" {
            gateway.signal("TERM");
            assert!(gateway.wait());
            gateway = start();
        }
        eventually("she is forgotten", async || !is_listed(&gateway).await).await;
        // What is listed was judged.
        eventually("she is seen again", async || {
            assert!(!alice.is_refused(&gateway).await, "{after}");
            is_listed(&gateway).await
        })
        .await;
        assert!(!alice.is_refused(&gateway).await, "{after}");
        assert_eq!(incidents(&gateway).await.len(), known, "{after}");
    }
    let bob = Person::log_in("bob");
    eventually("the rule is still there", async || bob.is_refused(&gateway).await).await;
    assert!(!alice.is_refused(&gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pardon_keeps_rules_away_on_a_replica_that_never_saw_the_session() {
    let (app, place, redis) = (App::start().await, Place::new(EVERYBODY), Redis::start());
    let settings = place.settings(&format!("revocation:\n  redis: {}\n", redis.url()));
    let start = || Gateway::start_with(&app.url(), &settings, SECRET);
    let first = start();
    let alice = Person::log_in("alice");
    eventually("the rule logs her out", async || alice.is_refused(&first).await).await;
    let told = Operator::get(&first, "/incidents").await;
    let id = told["incidents"][0]["incident"]["id"].as_str().unwrap();
    assert!(Operator::post(&first, &format!("/incidents/{id}/pardon")).await.is_success());
    eventually("the pardon counts", async || !alice.is_refused(&first).await).await;
    let second = start();
    assert!(!alice.is_refused(&second).await);
    // What is listed was judged.
    Operator::only_session(&second).await;
    let bob = Person::log_in("bob");
    eventually("the rule is there, too", async || bob.is_refused(&second).await).await;
    assert!(!alice.is_refused(&second).await);
}
