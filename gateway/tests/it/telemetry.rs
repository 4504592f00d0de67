//! The telemetry doors: bound to a session and a page, limited, and deaf to garbage.

use crate::app::App;
use crate::gateway::{DEADLINE, Gateway, eventually};
use futures_util::{SinkExt, StreamExt};
use gaitway_models::Batch;
use gaitway_models::sim::Visitor;
use reqwest::StatusCode;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// What a page knows: its own cookie and its page token.
pub struct Page {
    pub cookie: String,
    pub token: String,
}

impl Page {
    pub async fn open(gateway: &Gateway) -> Page {
        let answer = reqwest::Client::new().post(gateway.url("/_gaitway/token")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let cookie = answer.headers()["set-cookie"].to_str().unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        Page { cookie, token: answer.text().await.unwrap() }
    }

    pub async fn socket(
        &self,
        gateway: &Gateway,
        headers: &[(&'static str, String)],
    ) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, Error> {
        let url = format!("ws://{}/_gaitway/t?p={}", gateway.address, self.token);
        let mut request = url.into_client_request()?;
        let sent = request.headers_mut();
        sent.insert("cookie", self.cookie.parse().unwrap());
        sent.insert("origin", format!("http://{}", gateway.address).parse().unwrap());
        for (name, value) in headers {
            sent.insert(*name, value.parse().unwrap());
        }
        connect_async(request).await.map(|(socket, _)| socket)
    }
}

fn status(result: Result<impl Sized, Error>) -> u16 {
    match result {
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(other) => panic!("{other}"),
        Ok(_) => 101,
    }
}

fn batch() -> Batch {
    Visitor::person(7).next_batch(2.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_opens_only_for_the_session_page_and_origin_its_token_was_made_for() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let page = Page::open(&gateway).await;
    let other = Page::open(&gateway).await;
    assert!(page.socket(&gateway, &[]).await.is_ok());
    let evil = ("origin", "http://evil.example".to_owned());
    assert_eq!(status(page.socket(&gateway, &[evil]).await), 403);
    let stolen = Page { cookie: other.cookie.clone(), token: page.token.clone() };
    assert_eq!(status(stolen.socket(&gateway, &[]).await), 401);
    let nobody = Page { cookie: "a=b".into(), token: page.token.clone() };
    assert_eq!(status(nobody.socket(&gateway, &[]).await), 401);
    let forged = Page { cookie: page.cookie.clone(), token: page.token.replace(['A', 'B', 'C'], "x") };
    assert_eq!(status(forged.socket(&gateway, &[]).await), 401);
    assert_eq!(app.heads(), Vec::<String>::new(), "own endpoints never reach the app");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_page_token_opens_nothing() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "collector:\n  page_token_seconds: 1\n");
    let page = Page::open(&gateway).await;
    eventually("the token expired", async || match page.socket(&gateway, &[]).await {
        Ok(_) => false,
        refused => status(refused) == 401,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_taken_and_garbage_closes_the_socket() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let page = Page::open(&gateway).await;
    let mut socket = page.socket(&gateway, &[]).await.unwrap();
    socket.send(Message::binary(batch().encode())).await.unwrap();
    eventually("the batch was counted", async || {
        gateway.metric("gaitway_telemetry_batches_total", "socket").await >= 1.0
    })
    .await;
    for garbage in [Message::binary(vec![0xff; 40]), Message::text("hello"), Message::binary(vec![0; 40_000])]
    {
        let mut socket = page.socket(&gateway, &[]).await.unwrap();
        socket.send(garbage).await.unwrap();
        let closed = tokio::time::timeout(DEADLINE, async {
            while let Some(Ok(message)) = socket.next().await {
                if message.is_close() {
                    break;
                }
            }
        });
        closed.await.expect("garbage closes the socket");
    }
    let rejected = gateway.metric("gaitway_telemetry_rejected_total", "").await;
    assert!(rejected >= 3.0, "{rejected}");
    // The good socket was not harmed by the others.
    socket.send(Message::binary(batch().encode())).await.unwrap();
    eventually("the next batch was counted", async || {
        gateway.metric("gaitway_telemetry_batches_total", "socket").await >= 2.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beacon_takes_what_a_socket_would() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "");
    let page = Page::open(&gateway).await;
    let url = gateway.url(&format!("/_gaitway/b?p={}", page.token));
    let client = reqwest::Client::new();
    let post = |cookie: &str, body: Vec<u8>| client.post(&url).header("cookie", cookie).body(body).send();
    assert_eq!(post(&page.cookie, batch().encode()).await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(post(&page.cookie, vec![0xff; 9]).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(post("a=b", batch().encode()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(post(&page.cookie, vec![0; 100_000]).await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_cannot_take_all_sockets_or_flood() {
    let app = App::start().await;
    let limits = "limits:\n  telemetry_sockets_per_session_max: 2\n  telemetry_frames_per_second_max: 1\n";
    let gateway = Gateway::start(&app.url(), limits);
    let page = Page::open(&gateway).await;
    let mut first = page.socket(&gateway, &[]).await.unwrap();
    let _second = page.socket(&gateway, &[]).await.unwrap();
    assert_eq!(status(page.socket(&gateway, &[]).await), 503);
    assert!(Page::open(&gateway).await.socket(&gateway, &[]).await.is_ok(), "others are not affected");
    for _ in 0..30 {
        let _ = first.send(Message::binary(batch().encode())).await;
    }
    eventually("the flood was cut", async || {
        gateway.metric("gaitway_telemetry_rejected_total", "rate").await >= 1.0
    })
    .await;
    eventually("the place came back", async || page.socket(&gateway, &[]).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privacy_signal_is_respected_where_the_operator_says_so() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "collector:\n  privacy_signal: respect\n");
    let client = reqwest::Client::new();
    let ask = |name: &'static str| client.post(gateway.url("/_gaitway/token")).header(name, "1").send();
    assert_eq!(ask("sec-gpc").await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(ask("dnt").await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(ask("x-other").await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_closes_idle_telemetry_sockets() {
    let app = App::start().await;
    let mut gateway = Gateway::start(&app.url(), "");
    let page = Page::open(&gateway).await;
    let mut socket = page.socket(&gateway, &[]).await.unwrap();
    gateway.signal("TERM");
    let message = tokio::time::timeout(DEADLINE, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(message.is_close(), "{message:?}");
    assert!(gateway.wait());
}
