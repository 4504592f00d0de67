//! A receiver of security events (easyssf-receiver) on a free port of this machine, for the tests of the
//! gateway's transmitter. Its one argument is the library's configuration as JSON. Prints one line of JSON
//! with its port, then one for every event it has verified. Ends when its standard input closes.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use easyssf_receiver::SsfReceiver;
use easyssf_receiver::event::SsfEventContext;
use serde_json::json;
use std::sync::Arc;
use tokio::io::AsyncReadExt;

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = std::env::args().nth(1).expect("a configuration");
    let config = serde_json::from_str(&config).expect("a configuration");
    let receiver = SsfReceiver::builder(config).handler(tell).build().expect("a receiver");
    let receiver = Arc::new(receiver);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", json!({"port": listener.local_addr().expect("an address").port()}));
    let handler = receiver.push_handler();
    let push = move |headers: HeaderMap, body: Bytes| async move {
        let shown = headers.get("authorization").and_then(|value| value.to_str().ok());
        let answer = handler.handle(shown, &body).await;
        let status = StatusCode::from_u16(answer.status).expect("a status");
        if status != StatusCode::ACCEPTED {
            println!("{}", json!({"refused": answer.status, "body": answer.body}));
        }
        (status, [("content-type", "application/json")], answer.body.unwrap_or_default())
    };
    receiver.start();
    let serving = axum::serve(listener, Router::new().route("/", post(push)));
    let mut rest = Vec::new();
    let mut input = tokio::io::stdin();
    tokio::select! {
        served = async { serving.await } => served.expect("a server"),
        _ = input.read_to_end(&mut rest) => {}
    }
    receiver.shutdown().await;
}

async fn tell(context: SsfEventContext) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    println!("{}", json!({"claims": context.event_token().claims()}));
    Ok(())
}
