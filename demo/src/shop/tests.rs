//! The shop alone, over real HTTP: what the demo's visitors and a gateway before it rely on.

use super::*;
use reqwest::redirect::Policy;
use std::net::SocketAddr;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

struct TestShop {
    address: SocketAddr,
    http: reqwest::Client,
    server: tokio::task::JoinHandle<anyhow::Result<()>>,
    _keys: tempfile::TempDir,
}

impl TestShop {
    async fn open() -> TestShop {
        let keys = tempfile::tempdir().unwrap();
        let key = Key::read_or_create(&keys.path().join("session.key")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, key));
        let http = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
        TestShop { address, http, server, _keys: keys }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The cookie of a fresh login, as `name=value`.
    async fn log_in(&self, user: &str, password: &str) -> Result<String, StatusCode> {
        let form = [("user", user), ("password", password)];
        let answer = self.http.post(self.url("/login")).form(&form).send().await.unwrap();
        match answer.headers().get("set-cookie") {
            Some(cookie) => Ok(cookie.to_str().unwrap().split(';').next().unwrap().to_string()),
            None => Err(answer.status()),
        }
    }

    async fn get(&self, path: &str, cookie: &str) -> reqwest::Response {
        self.http.get(self.url(path)).header("cookie", cookie).send().await.unwrap()
    }
}

impl Drop for TestShop {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tokio::test]
async fn a_known_user_with_the_password_gets_a_session_and_nobody_else_does() {
    let shop = TestShop::open().await;
    assert_eq!(shop.log_in("alice", "wrong").await, Err(StatusCode::FORBIDDEN));
    assert_eq!(shop.log_in("nobody", PASSWORD).await, Err(StatusCode::FORBIDDEN));
    let cookie = shop.log_in("alice", PASSWORD).await.unwrap();
    let page = shop.get("/account", &cookie).await;
    assert_eq!(page.status(), 200);
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("'nonce-"));
    assert!(page.text().await.unwrap().contains("Hello, alice"));
    assert_eq!(shop.get("/account", "session=forged").await.status(), 303);
}

#[tokio::test]
async fn a_token_of_another_key_is_worth_nothing() {
    let (one, other) = (TestShop::open().await, TestShop::open().await);
    let cookie = one.log_in("alice", PASSWORD).await.unwrap();
    assert_eq!(one.get("/api/cart", &cookie).await.status(), 200);
    assert_eq!(other.get("/api/cart", &cookie).await.status(), 401);
}

#[tokio::test]
async fn the_cart_keeps_what_was_put_in_and_no_more_than_its_limit() {
    let shop = TestShop::open().await;
    let cookie = shop.log_in("bob", PASSWORD).await.unwrap();
    for (article, pieces) in [("teapot", 2), ("honey", 1000), ("unknown", 1)] {
        let line = serde_json::json!({"article": article, "pieces": pieces});
        shop.http.post(shop.url("/api/cart")).header("cookie", &cookie).json(&line).send().await.unwrap();
    }
    let cart = shop.get("/api/cart", &cookie).await.text().await.unwrap();
    assert_eq!(cart, r#"{"honey":99,"teapot":2}"#);
}

#[tokio::test]
async fn static_files_answer_with_gzip_and_then_with_not_modified() {
    let shop = TestShop::open().await;
    let request = || shop.http.get(shop.url("/static/shop.css")).header("accept-encoding", "gzip");
    let first = request().send().await.unwrap();
    assert_eq!(first.headers()["content-encoding"], "gzip");
    let tag = first.headers()["etag"].to_str().unwrap().to_string();
    let again = request().header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(again.status(), 304);
    let plain = shop.get("/static/shop.css", "").await;
    assert_ne!(plain.headers()["etag"].to_str().unwrap(), tag);
}

#[tokio::test]
async fn an_upload_is_answered_with_its_length_and_digest() {
    let shop = TestShop::open().await;
    let cookie = shop.log_in("carol", PASSWORD).await.unwrap();
    let put = || shop.http.put(shop.url("/account/photo")).header("cookie", &cookie);
    let answer: serde_json::Value = put().body("abc").send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["bytes"], 3);
    assert!(answer["sha256"].as_str().unwrap().starts_with("ba7816bf"));
    let too_large = vec![0u8; usize::try_from(UPLOAD_BYTES_MAX).unwrap() + 1];
    assert_eq!(put().body(too_large).send().await.unwrap().status(), 413);
}

#[tokio::test]
async fn live_prices_come_over_a_websocket_to_those_who_are_logged_in() {
    let shop = TestShop::open().await;
    let cookie = shop.log_in("dave", PASSWORD).await.unwrap();
    let request = |cookie: &str| {
        let mut request = format!("ws://{}/ws/stock", shop.address).into_client_request().unwrap();
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
        request
    };
    assert!(tokio_tungstenite::connect_async(request("session=forged")).await.is_err());
    let (mut socket, _) = tokio_tungstenite::connect_async(request(&cookie)).await.unwrap();
    let price = socket.next().await.unwrap().unwrap().into_text().unwrap();
    assert!(price.contains("\"cents\":"), "{price}");
}

#[tokio::test]
async fn news_comes_as_server_sent_events() {
    let shop = TestShop::open().await;
    let mut answer = shop.get("/events", "").await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let first = answer.chunk().await.unwrap().unwrap();
    assert!(first.starts_with(b"event: news\ndata: "), "{first:?}");
}
