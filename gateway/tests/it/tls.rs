//! TLS and HTTP/2 at the front door, with certificates that change under way.

use crate::app::{App, PAGE};
use crate::gateway::{Gateway, eventually};
use futures_util::StreamExt;
use std::path::Path;

struct Authority {
    pem: String,
}

/// A self-signed certificate for localhost, written where the gateway reads it.
fn issue(directory: &Path) -> Authority {
    let issued =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    std::fs::write(directory.join("key.pem"), issued.signing_key.serialize_pem()).unwrap();
    let pem = issued.cert.pem();
    std::fs::write(directory.join("cert.pem"), &pem).unwrap();
    Authority { pem }
}

fn client(authority: &Authority) -> reqwest::Client {
    let certificate = reqwest::Certificate::from_pem(authority.pem.as_bytes()).unwrap();
    reqwest::Client::builder().tls_certs_only([certificate]).pool_max_idle_per_host(0).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_over_tls_serves_pages_and_a_new_certificate_is_taken_up() {
    let directory = tempfile::tempdir().unwrap();
    let first = issue(directory.path());
    let app = App::start().await;
    let files = directory.path().display();
    let tls = format!("tls:\n  certificate: {files}/cert.pem\n  key: {files}/key.pem\n");
    let gateway = Gateway::start(&app.url(), &tls);
    let url = format!("https://{}/page", gateway.address);

    let page = client(&first).get(&url).header("Accept", "text/html").send().await.unwrap();
    assert_eq!(page.version(), http::Version::HTTP_2);
    assert!(page.text().await.unwrap().contains("/_gaitway/c.js"));
    let head = app.heads().pop().unwrap();
    // HTTP/2 has lower-case names and the app is sent what came.
    let head = head.to_lowercase();
    assert!(head.contains("x-forwarded-proto: https\r\n"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", gateway.address)), "{head}");

    let http1 = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(first.pem.as_bytes()).unwrap()])
        .http1_only()
        .build()
        .unwrap();
    let page = http1.get(&url).send().await.unwrap();
    assert_eq!((page.version(), page.text().await.unwrap()), (http::Version::HTTP_11, PAGE.to_owned()));

    // A broken key is refused and the last good pair stays.
    let key = std::fs::read(directory.path().join("key.pem")).unwrap();
    std::fs::write(directory.path().join("key.pem"), "not a key").unwrap();
    eventually("the broken pair was refused", async || {
        gateway.metric("gaitway_tls_reloads_total", "failed").await > 0.0
    })
    .await;
    assert!(client(&first).get(&url).send().await.is_ok());
    std::fs::write(directory.path().join("key.pem"), key).unwrap();

    let second = issue(directory.path());
    eventually("the new certificate is served", async || client(&second).get(&url).send().await.is_ok())
        .await;
    assert!(client(&first).get(&url).send().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_http2_connection_do_not_disturb_each_other() {
    let app = App::start().await;
    let short = "proxy:\n  h2c: true\nlimits:\n  header_read_timeout_ms: 300\n  idle_timeout_ms: 300\n  body_idle_timeout_ms: 2000\n";
    let gateway = Gateway::start(&app.url(), short);
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let mut events = client.get(gateway.url("/events")).send().await.unwrap().bytes_stream();
    let mut received = String::new();
    let mut others = 0;
    // Two seconds of events: far longer than the clocks that run between HTTP/1 requests.
    while !received.contains("data: 40\n\n") {
        received.push_str(std::str::from_utf8(&events.next().await.unwrap().unwrap()).unwrap());
        others += u32::from(client.get(gateway.url("/json")).send().await.unwrap().status() == 200);
    }
    assert!(others >= 5, "{others}");
    let upload = client.post(gateway.url("/upload")).body(vec![1u8; 5_000_000]).send();
    let (upload, other) = tokio::join!(upload, client.get(gateway.url("/json")).send());
    assert_eq!(upload.unwrap().text().await.unwrap(), "5000000");
    assert_eq!(other.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_loaded_over_http2_may_open_the_telemetry_doors() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "proxy:\n  h2c: true\n");
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let ask = async |origin: String| {
        client.post(gateway.url("/_gaitway/token")).header("origin", origin).send().await.unwrap().status()
    };
    assert_eq!(ask(format!("http://{}", gateway.address)).await, 200);
    assert_eq!(ask("http://evil.example".into()).await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn cleartext_http2_is_spoken_where_it_is_switched_on() {
    let app = App::start().await;
    let gateway = Gateway::start(&app.url(), "proxy:\n  h2c: true\n");
    let prior = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let json = prior.get(gateway.url("/json")).send().await.unwrap();
    assert_eq!(json.version(), http::Version::HTTP_2);
    let plain = reqwest::get(gateway.url("/json")).await.unwrap();
    assert_eq!(plain.version(), http::Version::HTTP_11);
}
