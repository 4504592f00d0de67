//! Tokens that say nothing by themselves: a real issuer is asked about them, its answers count for a while,
//! and its silence changes nothing for those it has spoken of.

use crate::app::App;
use crate::gateway::{Gateway, eventually};
use crate::servers::{Provider, Redis};
use reqwest::{Client, StatusCode};
use serde_json::json;
use std::time::{Duration, Instant};

const SECRETS: &[(&str, &str)] = &[
    ("TEST_CLIENT_SECRET", "the gateway and the provider share this"),
    ("GAITWAY_SECRET", "replicas share this secret of enough bytes"),
];

/// A gateway where an active token counts as a login, so that its answer shows what it believes.
fn start(app: &App, provider: &Provider, introspection: &str, more: &str) -> Gateway {
    let secret = "client_secret_env: TEST_CLIENT_SECRET";
    let settings = format!(
        "identity:\n  oidc:\n    issuer: {0}\n    client_id: gaitway\n    {secret}\n    public_url: http://127.0.0.1:1\n  introspection:\n    url: {0}/token/introspection\n    client_id: gaitway\n    {secret}\n{introspection}\n{more}",
        provider.url("")
    );
    Gateway::start_with(&app.url(), &settings, SECRETS)
}

async fn ask(gateway: &Gateway, token: &str) -> StatusCode {
    Client::new().get(gateway.url("/json")).bearer_auth(token).send().await.unwrap().status()
}

fn provider() -> Provider {
    Provider::start(&json!({"gateway": "http://127.0.0.1:1"}))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_token_counts_until_its_issuer_says_otherwise_and_no_other_does() {
    let (app, provider) = (App::start().await, provider());
    let gateway = start(&app, &provider, "    cache_seconds: 1\n    inactive_seconds: 1\n", "");
    let token = provider.door("token", &json!({"sub": "alice"})).await;
    assert_eq!(ask(&gateway, &token).await, StatusCode::OK);
    let cut = &token[..token.len() - 1];
    for forged in ["x", cut, &format!("{token}x"), &"a".repeat(9000), "a.b.c", "active=true"] {
        assert_eq!(ask(&gateway, forged).await, StatusCode::UNAUTHORIZED, "{forged}");
    }
    let short = provider.door("token", &json!({"sub": "alice", "seconds": 2})).await;
    assert_eq!(ask(&gateway, &short).await, StatusCode::OK);
    eventually("its end is its end", async || ask(&gateway, &short).await == StatusCode::UNAUTHORIZED).await;
    assert_eq!(ask(&gateway, &token).await, StatusCode::OK);
    provider.door("destroy", &json!({"token": token})).await;
    eventually("its issuer took it back", async || ask(&gateway, &token).await == StatusCode::UNAUTHORIZED)
        .await;

    // Active, and issued by or for somebody else.
    for wrong in ["    issuer: https://another.example\n", "    audience: another\n"] {
        let gateway = start(&app, &provider, wrong, "");
        let token = provider.door("token", &json!({"sub": "alice"})).await;
        assert_eq!(ask(&gateway, &token).await, StatusCode::UNAUTHORIZED, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_down_logs_nobody_out_and_lets_nobody_in_unless_told_to_deny() {
    let (app, mut provider) = (App::start().await, provider());
    let kind = start(&app, &provider, "    cache_seconds: 1\n", "");
    let strict = start(&app, &provider, "    cache_seconds: 1\n    outage: deny\n", "");
    let token = provider.door("token", &json!({"sub": "alice"})).await;
    let unseen = provider.door("token", &json!({"sub": "bob"})).await;
    assert_eq!(ask(&kind, &token).await, StatusCode::OK);
    assert_eq!(ask(&strict, &token).await, StatusCode::OK);
    provider.kill();
    eventually("the strict one refuses", async || {
        ask(&strict, &token).await == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    assert!(kind.metric("gaitway_introspections_total", "active").await >= 1.0);
    eventually("the other one asks in vain", async || {
        assert_eq!(ask(&kind, &token).await, StatusCode::OK);
        kind.metric("gaitway_introspections_total", "failed").await >= 1.0
    })
    .await;
    assert_eq!(ask(&kind, &token).await, StatusCode::OK);
    assert_eq!(ask(&kind, &unseen).await, StatusCode::UNAUTHORIZED, "of this one nobody ever spoke");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_issuer_is_waited_for_once_and_what_is_due_is_denied_to_all() {
    let (app, provider) = (App::start().await, provider());
    let strict = start(&app, &provider, "    cache_seconds: 1\n    outage: deny\n", "");
    let token = provider.door("token", &json!({"sub": "alice"})).await;
    assert_eq!(ask(&strict, &token).await, StatusCode::OK);
    provider.freeze();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let started = Instant::now();
    let many = futures_util::future::join_all((0..5).map(|_| ask(&strict, &token))).await;
    assert_eq!(many, [StatusCode::SERVICE_UNAVAILABLE; 5]);
    assert!(started.elapsed() < Duration::from_secs(9), "one question's patience, not five");
    let started = Instant::now();
    for made_up in ["x", "y", "z"] {
        assert_eq!(ask(&strict, made_up).await, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert!(started.elapsed() < Duration::from_secs(3), "nobody waits for it again at once");
    provider.thaw();
    eventually("it is asked again", async || ask(&strict, &token).await == StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_an_answer_and_redis_cannot_read_it() {
    let (app, provider, redis) = (App::start().await, provider(), Redis::start());
    let more = format!("revocation:\n  redis: {}\n", redis.url());
    let first = start(&app, &provider, "", &more);
    let second = start(&app, &provider, "", &more);
    let token = provider.door("token", &json!({"sub": "alice"})).await;
    assert_eq!(ask(&first, &token).await, StatusCode::OK);
    assert_eq!(ask(&second, &token).await, StatusCode::OK);
    assert_eq!(first.metric("gaitway_introspections_total", "active").await, 1.0);
    assert_eq!(second.metric("gaitway_introspections_total", "active").await, 0.0);
    let stored = redis.dump();
    assert!(stored.contains("gaitway:introspected:") && !stored.contains("alice"), "{stored}");
    assert!(!stored.contains(&token), "{stored}");
}
