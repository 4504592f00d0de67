//! The legacy web shop: a web app with its own login, pages, cart, live prices and uploads.
//!
//! Stands for any app an operator cannot or will not change. It must not know that Gaitway exists: it
//! issues its own token, verifies only that, and never looks at a header a gateway might set.

mod assets;
mod login;
mod pages;
mod stock;

use anyhow::Context;
use axum::Json;
use axum::body::Body;
use axum::extract::{Form, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;

pub use login::{Key, PASSWORD, USERS, random_hex};

/// Different articles in one cart; the form offers fewer.
const CART_ARTICLES_MAX: usize = 64;
/// Pieces of one article in a cart.
const CART_PIECES_MAX: u32 = 99;
/// Largest upload read: a phone's photo, not a disk image.
const UPLOAD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Serves the shop on `listener` until the future is dropped.
pub async fn serve(listener: TcpListener, key: Key) -> anyhow::Result<()> {
    let shop = Arc::new(Shop { key, carts: Mutex::default() });
    let app = axum::Router::new()
        .route("/", get(home))
        .route("/catalogue", get(catalogue))
        .route("/product/{article}", get(product))
        .route("/cart", get(cart_page).post(cart_form))
        .route("/account", get(account))
        .route("/account/photo", post(upload).put(upload))
        .route("/login", get(login_page).post(login_form))
        .route("/logout", post(logout))
        .route("/api/cart", get(cart_api).post(cart_api_add))
        .route("/ws/stock", get(stock::socket))
        .route("/events", get(stock::events))
        .route("/static/{file}", get(assets::serve))
        .fallback(missing)
        .with_state(shop);
    axum::serve(listener, app).await.context("the shop's listener")
}

/// What the shop remembers: carts by user, as long as it runs.
struct Shop {
    key: Key,
    carts: Mutex<HashMap<&'static str, Cart>>,
}

/// Pieces by article.
type Cart = BTreeMap<&'static str, u32>;

impl Shop {
    fn user(&self, headers: &HeaderMap) -> Option<&'static str> {
        login::user(&self.key, headers)
    }

    fn cart(&self, user: &'static str) -> Cart {
        self.carts.lock().unwrap_or_else(PoisonError::into_inner).get(user).cloned().unwrap_or_default()
    }

    /// Sets the pieces of an article; zero takes it out. An unknown article changes nothing.
    fn put(&self, user: &'static str, article: &str, pieces: u32) {
        let Some(article) = pages::article(article) else { return };
        let mut carts = self.carts.lock().unwrap_or_else(PoisonError::into_inner);
        let cart = carts.entry(user).or_default();
        if pieces == 0 {
            cart.remove(article.name);
        } else if cart.len() < CART_ARTICLES_MAX || cart.contains_key(article.name) {
            cart.insert(article.name, pieces.min(CART_PIECES_MAX));
        }
    }
}

async fn home(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Html<String> {
    pages::home(shop.user(&headers))
}

async fn catalogue(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Html<String> {
    pages::catalogue(shop.user(&headers))
}

async fn product(State(shop): State<Arc<Shop>>, headers: HeaderMap, Path(name): Path<String>) -> Response {
    match pages::article(&name) {
        Some(article) => pages::product(shop.user(&headers), article).into_response(),
        None => missing(State(shop), headers).await,
    }
}

async fn cart_page(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Response {
    match shop.user(&headers) {
        // A policy of a page without inline script: anything injected must be a file of the same origin.
        Some(user) => (
            [(CSP, "default-src 'self'; img-src 'self' data:; object-src 'none'")],
            pages::cart(user, &shop.cart(user)),
        )
            .into_response(),
        None => Redirect::to("/login?next=/cart").into_response(),
    }
}

#[derive(Deserialize)]
struct CartLine {
    article: String,
    #[serde(default = "one")]
    pieces: u32,
}

fn one() -> u32 {
    1
}

async fn cart_form(
    State(shop): State<Arc<Shop>>,
    headers: HeaderMap,
    Form(line): Form<CartLine>,
) -> Redirect {
    match shop.user(&headers) {
        Some(user) => {
            shop.put(user, &line.article, line.pieces);
            Redirect::to("/cart")
        }
        None => Redirect::to("/login?next=/cart"),
    }
}

async fn account(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Response {
    match shop.user(&headers) {
        // A strict policy with a nonce for the page's own inline script.
        Some(user) => {
            let nonce = login::random_hex::<16>();
            let policy = format!(
                "default-src 'self'; img-src 'self' data:; script-src 'nonce-{nonce}' 'strict-dynamic'; base-uri 'none'"
            );
            ([(CSP, policy)], pages::account(user, &nonce)).into_response()
        }
        None => Redirect::to("/login?next=/account").into_response(),
    }
}

const CSP: HeaderName = header::CONTENT_SECURITY_POLICY;

/// Reads an upload as a stream and answers with what arrived, so that a damaged one shows.
async fn upload(State(shop): State<Arc<Shop>>, headers: HeaderMap, request: Request<Body>) -> Response {
    if shop.user(&headers).is_none() {
        return not_logged_in();
    }
    let (mut bytes, mut digest) = (0u64, Sha256::new());
    let mut body = request.into_body().into_data_stream();
    while let Some(chunk) = body.next().await {
        let Ok(chunk) = chunk else { return StatusCode::BAD_REQUEST.into_response() };
        bytes += chunk.len() as u64;
        if bytes > UPLOAD_BYTES_MAX {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        }
        digest.update(&chunk);
    }
    let sha256: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Json(Received { bytes, sha256 }).into_response()
}

#[derive(Serialize)]
struct Received {
    bytes: u64,
    sha256: String,
}

async fn cart_api(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Response {
    match shop.user(&headers) {
        Some(user) => Json(shop.cart(user)).into_response(),
        None => not_logged_in(),
    }
}

async fn cart_api_add(
    State(shop): State<Arc<Shop>>,
    headers: HeaderMap,
    Json(line): Json<CartLine>,
) -> Response {
    match shop.user(&headers) {
        Some(user) => {
            shop.put(user, &line.article, line.pieces);
            Json(shop.cart(user)).into_response()
        }
        None => not_logged_in(),
    }
}

fn not_logged_in() -> Response {
    (StatusCode::UNAUTHORIZED, Json(serde_json::json!({"error": "please log in"}))).into_response()
}

async fn login_page(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Html<String> {
    pages::login(shop.user(&headers), None)
}

#[derive(Deserialize)]
struct Credentials {
    user: String,
    password: String,
}

async fn login_form(State(shop): State<Arc<Shop>>, Form(credentials): Form<Credentials>) -> Response {
    match login::log_in(&shop.key, &credentials.user, &credentials.password) {
        Ok(cookie) => ([(header::SET_COOKIE, cookie)], Redirect::to("/account")).into_response(),
        Err(refused) => {
            (StatusCode::FORBIDDEN, pages::login(None, Some(&refused.to_string()))).into_response()
        }
    }
}

async fn logout() -> Response {
    ([(header::SET_COOKIE, login::FORGET)], Redirect::to("/")).into_response()
}

async fn missing(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Response {
    (StatusCode::NOT_FOUND, pages::missing(shop.user(&headers))).into_response()
}

#[cfg(test)]
mod tests;
