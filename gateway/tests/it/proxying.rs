//! The app works behind the gateway as it does without it.

use crate::app::{App, PAGE};
use crate::gateway::{DEADLINE, Gateway, read_until, resident_kib};
use futures_util::{SinkExt, StreamExt};
use std::io::{Read, Write};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test(flavor = "multi_thread")]
async fn pages_carry_the_collector_and_everything_else_is_untouched() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let client = reqwest::Client::new();
    let tag = "<script src=\"/_gaitway/c.js\" defer></script>";

    let page = client.get(gateway.url("/page")).header("Accept", "text/html").send().await.unwrap();
    assert_eq!(page.content_length(), Some((PAGE.len() + tag.len()) as u64));
    let text = page.text().await.unwrap();
    assert!(text.contains(tag), "{text}");
    assert_eq!(text.replacen(tag, "", 1), PAGE);

    let head = client.head(gateway.url("/page")).header("Accept", "text/html").send().await.unwrap();
    let length = head.headers()["content-length"].to_str().unwrap().to_owned();
    assert_eq!(length, (PAGE.len() + tag.len()).to_string());

    let json = client.get(gateway.url("/json")).send().await.unwrap().text().await.unwrap();
    assert_eq!(json, "{\"ok\":true}");
    let asset = client.get(gateway.url("/_gaitway/c.js")).send().await.unwrap();
    assert_eq!(asset.headers()["content-type"], "text/javascript; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn injection_can_be_switched_off() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "collector:\n  inject: false\n");
    let client = reqwest::Client::new();
    let page = client.get(gateway.url("/page")).header("Accept", "text/html").send().await.unwrap();
    assert_eq!(page.text().await.unwrap(), PAGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_is_told_the_truth_about_the_visitor() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let client = reqwest::Client::new();
    let request = client
        .get(gateway.url("/json"))
        .header("X-Forwarded-For", "10.0.0.1")
        .header("X_Forwarded_For", "10.0.0.2")
        .header("X-Gaitway-Tag", "spoofed")
        .header("Forwarded", "for=10.0.0.3");
    request.send().await.unwrap();
    let head = app.heads().pop().unwrap();
    assert!(head.contains("X-Forwarded-For: 127.0.0.1\r\n"), "{head}");
    assert!(head.contains(&format!("Host: {}\r\n", gateway.address)), "{head}");
    assert!(!head.contains("10.0.0."), "{head}");
    assert!(!head.contains("spoofed"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_arrive_one_by_one() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let mut events = reqwest::get(gateway.url("/events")).await.unwrap().bytes_stream();
    // The stream never ends: anything arrives only if nothing waits for the whole.
    let mut received = String::new();
    while !received.contains("data: 4\n\n") {
        let chunk = tokio::time::timeout(DEADLINE, events.next()).await.unwrap().unwrap().unwrap();
        received.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(received.starts_with("data: 0\n\ndata: 1\n\ndata: 2\n\n"), "{received}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_client_is_sent_no_chunks() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let answer = gateway.raw(b"GET /events HTTP/1.0\r\nHost: a\r\n\r\n", "data: 1\n\n");
    assert!(!answer.to_lowercase().contains("transfer-encoding"), "{answer}");
    assert!(answer.contains("\r\n\r\ndata: 0\n\ndata: 1\n\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_app_is_spoken_for_in_http_1_1() {
    let app = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = Gateway::start(&format!("http://{}", app.local_addr().unwrap()), "");
    std::thread::spawn(move || {
        for answer in ["HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", "HTTP/1.0 200 OK\r\n\r\nthere"] {
            let (mut connection, _) = app.accept().unwrap();
            read_until(&mut connection, "\r\n\r\n");
            connection.write_all(answer.as_bytes()).unwrap();
        }
    });
    for (path, until) in [("/known", "hi"), ("/until-closed", "there\r\n0\r\n\r\n")] {
        let answer = gateway.raw(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), until);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(until), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn web_sockets_pass_both_ways() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let url = format!("ws://{}/ws", gateway.address);
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
    }
    let large = Message::binary(vec![7; 300_000]);
    socket.send(large.clone()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), large);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_stream_with_and_without_a_length() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let client = reqwest::Client::new();
    let size = 20_000_000;
    let known = client.post(gateway.url("/upload")).body(vec![1u8; size]).send().await.unwrap();
    assert_eq!(known.text().await.unwrap(), size.to_string());
    let chunks =
        futures_util::stream::iter((0..200).map(move |_| Ok::<_, std::io::Error>(vec![1u8; size / 200])));
    let body = reqwest::Body::wrap_stream(chunks);
    let chunked = client.post(gateway.url("/upload")).body(body).send().await.unwrap();
    assert_eq!(chunked.text().await.unwrap(), size.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_gets_413() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "limits:\n  request_body_bytes_max: 1000\n");
    let answer = gateway.raw(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", "");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(app.heads().is_empty());
    let mut stream = gateway.connect();
    stream
        .write_all(b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n")
        .unwrap();
    stream.write_all(&[b'x'; 2000]).unwrap();
    stream.write_all(b"\r\n0\r\n\r\n").unwrap();
    let answer = read_until(&mut stream, "");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_gone_gets_a_plain_502_and_an_app_that_breaks_off_no_repair() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let broken = gateway.raw(b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n", "");
    assert!(broken.ends_with("half"), "{broken}");

    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = Gateway::start(&format!("http://{closed}"), "");
    let answer = gateway.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(!answer.contains("Pingora"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_page_streams_in_bounded_memory() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let mut stream = gateway.connect();
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n").unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut read = |bytes: u64| {
        let mut left = bytes;
        while left > 0 {
            left = left.saturating_sub(stream.read(&mut buffer).unwrap() as u64);
        }
    };
    read(20_000_000);
    let before = resident_kib(gateway.pid());
    read(200_000_000);
    let after = resident_kib(gateway.pid());
    assert!(after < before + 10_240, "{before} KiB grew to {after} KiB");
}
