//! Slow, idle and excess connections end; those in good standing do not.

use crate::app::App;
use crate::gateway::{Gateway, eventually, read_until};
use std::io::Write;
use std::time::Duration;

const SHORT: &str = "limits:
  header_read_timeout_ms: 300
  idle_timeout_ms: 300
  body_idle_timeout_ms: 300
  tunnel_idle_timeout_ms: 300
";

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_dribbling_clients_are_closed() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), SHORT);
    // Silent from the start.
    assert_eq!(read_until(&mut gateway.connect(), ""), "");
    // A header that never ends, a byte at a time: each byte alone would reset a naive timeout.
    let mut dribble = gateway.connect();
    let mut writer = dribble.try_clone().unwrap();
    let dribbling = std::thread::spawn(move || {
        let _ = writer.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ");
        while writer.write_all(b"y").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(read_until(&mut dribble, ""), "");
    drop(dribble);
    dribbling.join().unwrap();
    // A body that stops.
    let mut stalled = gateway.connect();
    stalled.write_all(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
    let answer = read_until(&mut stalled, "");
    assert!(!answer.contains(" 200 "), "{answer}");
    // A kept-alive connection that never asks again.
    let answer = gateway.raw(b"GET /json HTTP/1.1\r\nHost: a\r\n\r\n", "");
    assert!(answer.ends_with("{\"ok\":true}"), "{answer}");
    // A tunnel without a word.
    let upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let answer = gateway.raw(upgrade, "");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_only_trickles_is_given_up() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "limits:\n  body_rate_min_bytes_per_second: 1000\n");
    let mut trickle = gateway.connect();
    let mut writer = trickle.try_clone().unwrap();
    let trickling = std::thread::spawn(move || {
        let _ = writer.write_all(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
        while writer.write_all(b"y").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let answer = read_until(&mut trickle, "");
    assert!(!answer.contains(" 200 "), "{answer}");
    drop(trickle);
    trickling.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_takes_its_time_is_waited_for() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), SHORT);
    // Five times longer than every client-side clock.
    let answer = gateway.raw(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "");
    assert!(answer.ends_with("late"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_cap_are_closed_and_places_come_back() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "limits:\n  connections_per_address_max: 5\n");
    let mut held: Vec<_> = (0..5).map(|_| gateway.connect()).collect();
    // All five are counted once each answers.
    for stream in &mut held {
        stream.write_all(b"GET /json HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!(read_until(stream, "true}").contains("200"));
    }
    let mut sixth = gateway.connect();
    let _ = sixth.write_all(b"GET /json HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(read_until(&mut sixth, ""), "");
    drop(held);
    eventually("a place came back", async || {
        let mut stream = gateway.connect();
        let _ = stream.write_all(b"GET /json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        read_until(&mut stream, "").contains("true}")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_open_requests_finish() {
    let app = App::start().await;
    let mut gateway = Gateway::start(&app.url(), "");
    let mut slow = gateway.connect();
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    eventually("the request reached the app", async || app.heads().len() == 1).await;
    gateway.signal("TERM");
    let answer = read_until(&mut slow, "late");
    assert!(answer.ends_with("late"), "{answer}");
    assert!(gateway.wait(), "a clean exit");
}
