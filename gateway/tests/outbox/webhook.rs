//! Webhooks against a real HTTP server that checks the signature for itself.

use crate::incidents::{logout, until, with};
use expect_test::expect;
use gaitway::alert::{AlertError, AlertSink, WebhookSink};
use gaitway::config::Webhook;
use gaitway_models::Timestamp;
use gaitway_policies::engine::{Action, Mode};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

const AT: Timestamp = Timestamp(1_790_000_000_123);
const SECRET: &str = "the receiver and we share this secret";

struct Receiver {
    process: Child,
    port: u16,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    fn start(answers: &str) -> Receiver {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/webhook_receiver.py");
        let mut process = Command::new("/usr/bin/python3")
            .args([script, "--secret", SECRET, "--answers", answers])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed (make setup)");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let taken = requests.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                taken.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Receiver { process, port: u16::try_from(first["port"].as_u64().unwrap()).unwrap(), requests }
    }

    fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A sink whose secret stands in a file, as an operator would have it.
fn sink(port: u16, secret: &str) -> Result<WebhookSink, AlertError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, format!("{secret}\n")).unwrap();
    let webhook = Webhook {
        url: format!("http://127.0.0.1:{port}/hook?key=in-the-address"),
        secret: format!("${{file:{}}}", file.display()),
        ..Webhook::default()
    };
    WebhookSink::new(&webhook, Some("https://ops.example.com/"))
}

#[tokio::test]
async fn an_incident_is_one_signed_post_without_addresses_or_groups() {
    let receiver = Receiver::start("");
    let incident = with(logout(1, AT), |incident| incident.facts.net_ip = "192.0.2.77".into());
    sink(receiver.port, SECRET).unwrap().deliver(&incident).await.unwrap();
    until("one request", async || receiver.requests().len() == 1).await;
    let request = receiver.requests().remove(0);
    assert_eq!((&request["id"], &request["signed"]), (&"G-001".into(), &true.into()));
    assert_eq!(request["type"], "application/json");
    let text = request["body"].to_string();
    assert!(!text.contains("192.0.2.77") && !text.contains("staff") && !text.contains("t_01"), "{text}");
    expect![[r#"
        {
          "data": {
            "action": "logout",
            "bot_evidence": 11.5,
            "bot_score": 0.9700000286102295,
            "by": "policy",
            "headline": "logout by certain-bot (score 0.97, s_01010101)",
            "id": "G-001",
            "link": "https://ops.example.com/sessions/s_01010101010101010101010101010101",
            "mode": "enforce",
            "model": "00112233445566aa",
            "policy": "0123456789abcdef",
            "reason": "the pointer moves like a script",
            "reasons": [
              "the pointer moves faster than people's"
            ],
            "rule": "certain-bot",
            "session": "s_01010101010101010101010101010101",
            "subject": "u_64646464646464646464646464646464",
            "until": "2026-09-21T15:13:20.123Z"
          },
          "timestamp": "2026-09-21T14:13:20.123Z",
          "type": "gaitway.incident"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&request["body"]).unwrap());
}

#[tokio::test]
async fn another_secret_does_not_pass() {
    let receiver = Receiver::start("");
    let other = sink(receiver.port, "quite another secret of enough bytes").unwrap();
    other.deliver(&logout(1, AT)).await.unwrap();
    until("one request", async || receiver.requests().len() == 1).await;
    assert_eq!(receiver.requests()[0]["signed"], false);
}

#[tokio::test]
async fn what_can_be_mended_is_worth_another_try_and_the_rest_is_not() {
    let receiver = Receiver::start("500,429,404,400,302,410");
    let sink = sink(receiver.port, SECRET).unwrap();
    let mut told = Vec::new();
    for _ in 0..7 {
        told.push(match sink.deliver(&logout(1, AT)).await {
            Ok(()) => "taken".to_owned(),
            Err(AlertError::Temporary(why)) => format!("later: {why}"),
            Err(AlertError::Permanent(why)) => format!("never: {why}"),
        });
    }
    expect![[r#"
        later: the webhook answered 500
        later: the webhook answered 429
        later: the webhook answered 404
        never: the webhook answered 400
        never: the webhook answered 302
        never: the webhook answered 410
        taken"#]]
    .assert_eq(&told.join("\n"));
    // What the receiver prints is read by a thread of its own, which may be a moment behind.
    until("seven requests", async || receiver.requests().len() >= 7).await;
    assert_eq!(receiver.requests().len(), 7, "a redirect is not followed");
    drop(receiver);
    let gone = sink.deliver(&logout(1, AT)).await.unwrap_err();
    let AlertError::Temporary(why) = gone else { panic!("{gone}") };
    assert!(!why.contains("in-the-address") && !why.contains("127.0.0.1"), "{why}");
}

#[test]
fn settings_that_cannot_work_are_named() {
    let refused = |secret: &str| match sink(9, secret) {
        Ok(_) => "taken".to_owned(),
        Err(error) => error.to_string(),
    };
    assert_eq!(refused("short"), "alerts.webhook.secret: shorter than 24 bytes");
    assert_eq!(refused("whsec_!"), "alerts.webhook.secret: no base64 after whsec_");
    assert_eq!(refused("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"), "taken");
}

#[test]
fn it_wants_what_shuts_people_out() {
    let sink = sink(9, SECRET).unwrap();
    let wants = |action: Action, mode: Mode| {
        sink.wants(&with(logout(1, AT), |incident| {
            incident.action = action;
            incident.mode = mode;
        }))
    };
    assert!(wants(Action::Tarpit, Mode::Enforce) && wants(Action::Deny, Mode::Enforce));
    assert!(!wants(Action::Logout, Mode::Shadow) && !wants(Action::Challenge, Mode::Enforce));
}
