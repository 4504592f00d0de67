//! Live prices over a WebSocket, and the shop's news as server-sent events.
//!
//! Both are what a gateway must carry untouched, and cut when a session is revoked.

use super::{Shop, not_logged_in, pages};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use rand::Rng;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

const PRICE_EVERY: Duration = Duration::from_secs(1);
const NEWS_EVERY: Duration = Duration::from_secs(10);

/// Answers a WebSocket handshake of a logged-in user, then sends a price a second.
pub async fn socket(State(shop): State<Arc<Shop>>, headers: HeaderMap, mut request: Request) -> Response {
    if shop.user(&headers).is_none() {
        return not_logged_in();
    }
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let (Some(upgrade), Some(key)) = (upgrade, headers.get(header::SEC_WEBSOCKET_KEY)) else {
        return (StatusCode::UPGRADE_REQUIRED, "this address speaks WebSocket").into_response();
    };
    let accept = derive_accept_key(key.as_bytes());
    tokio::spawn(async move {
        if let Ok(connection) = upgrade.await {
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, None).await;
            send_prices(socket).await;
        }
    });
    let switch = [
        (header::CONNECTION, "Upgrade".to_string()),
        (header::UPGRADE, "websocket".to_string()),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, switch, Body::empty()).into_response()
}

async fn send_prices<S>(mut socket: WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut clock = tokio::time::interval(PRICE_EVERY);
    loop {
        tokio::select! {
            _ = clock.tick() => {
                let article = &pages::ARTICLES[rand::rng().random_range(0..pages::ARTICLES.len())];
                // A few per cent around the list price.
                let cents = article.cents * rand::rng().random_range(96..=104) / 100;
                let price = serde_json::json!({"article": article.name, "cents": cents}).to_string();
                if socket.send(Message::text(price)).await.is_err() {
                    return;
                }
            }
            message = socket.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            }
        }
    }
}

pub async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let news = ["New: tea from the hills.", "Free delivery today.", "The warehouse cat is well."];
    let lines = stream::unfold(0usize, move |count| async move {
        if count > 0 {
            tokio::time::sleep(NEWS_EVERY).await;
        }
        Some((Ok(Event::default().event("news").data(news[count % news.len()])), count + 1))
    });
    Sse::new(lines).keep_alive(KeepAlive::default())
}
