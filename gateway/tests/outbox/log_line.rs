//! The log line of an incident, as an operator's collector reads it.

use crate::incidents::{logout, with};
use expect_test::expect;
use gaitway::alert::{AlertSink, LogSink};
use gaitway_models::Timestamp;
use std::io::Write;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_incident_is_one_json_line_without_tokens_groups_or_addresses() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let incident = with(logout(1, Timestamp(1_790_000_000_123)), |incident| {
        incident.facts.net_ip = "203.0.113.9".into();
        incident.reason = "two\r\n{\"lines\": 1}".into();
    });
    LogSink.deliver(&incident).await.unwrap();
    drop(guard);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().count(), 1);
    for secret in ["t_0101", "staff", "203.0.113.9"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    expect![[r#"
        {
          "action": "logout",
          "bot.evidence": 11.5,
          "bot.score": 0.97,
          "by": "policy",
          "evidence.events": 1430,
          "evidence.seconds": 21.0,
          "features": "pointer_speed_p95",
          "incident.at": "2026-09-21T14:13:20.123Z",
          "incident.id": "G-001",
          "level": "INFO",
          "message": "logout by certain-bot (score 0.97, s_01010101)",
          "mode": "enforce",
          "model": "00112233445566aa",
          "policy.version": "0123456789abcdef",
          "reason": "two {\"lines\": 1}",
          "rule": "certain-bot",
          "session.id": "s_01010101010101010101010101010101",
          "subject.id": "u_64646464646464646464646464646464",
          "target": "gaitway::incident"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&line).unwrap());
}
