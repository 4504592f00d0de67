//! Requests that two servers could read differently never reach the app.

use crate::app::App;
use crate::gateway::Gateway;

const FAULTY: &[&str] = &[
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Content-Length: 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nabc",
    "GET / HTTP/1.1\nHost: a\n\n",
    "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb: c\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 777\r\nSec-WebSocket-Key: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_are_refused_with_nothing_sent_upstream() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    for request in FAULTY {
        let answer = gateway.raw(request.as_bytes(), "");
        let status = answer.split(' ').nth(1).unwrap_or("closed");
        // Refused by us, or closed without an answer: never passed on.
        assert!(matches!(status, "400" | "405" | "closed"), "{request:?}: {answer}");
    }
    assert_eq!(app.heads(), Vec::<String>::new());

    let fine = gateway.raw(b"GET /json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "");
    assert!(fine.ends_with("{\"ok\":true}"), "{fine}");
    assert_eq!(app.heads().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_over_the_limit_gets_431_and_nothing_goes_upstream() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "limits:\n  request_header_bytes_max: 4096\n");
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(5000));
    let answer = gateway.raw(request.as_bytes(), "");
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(app.heads().is_empty());
}
