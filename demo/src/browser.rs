//! What a browser does at the gateway's public doors: pages with cookies, fetches, uploads, and the
//! collector's telemetry socket.
//!
//! Sends the headers a browser sends and obeys the ones it obeys (Set-Cookie, Location,
//! Clear-Site-Data). Must not know: who is at the keyboard, and anything that is not on the wire.

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use reqwest::header::{HeaderMap, LOCATION, SET_COOKIE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Bytes, Message};

/// Where the gateway's own endpoints live on the shop's origin (its default).
pub const PREFIX: &str = "/_gaitway";

const REDIRECTS_MAX: usize = 5;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const AGENT: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36";

#[derive(Clone)]
pub struct Browser {
    http: reqwest::Client,
    address: SocketAddr,
    cookies: BTreeMap<String, String>,
}

/// A page as it arrived, after redirects.
pub struct Page {
    pub status: StatusCode,
    pub path: String,
    pub html: String,
}

impl Page {
    /// The gateway put its collector into this page.
    pub fn has_collector(&self) -> bool {
        self.html.contains(&format!("src=\"{PREFIX}/")) || self.html.contains(&format!("src={PREFIX}/"))
    }
}

impl Browser {
    pub fn new(address: SocketAddr) -> anyhow::Result<Browser> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(ANSWER_TIMEOUT)
            .user_agent(AGENT)
            .no_proxy()
            .build()?;
        Ok(Browser { http, address, cookies: BTreeMap::new() })
    }

    /// Loads a page as a navigation.
    pub async fn open(&mut self, path: &str) -> anyhow::Result<Page> {
        let request = self.navigation(Method::GET, path);
        self.follow(request, path).await
    }

    /// Sends a form as a navigation.
    pub async fn submit(&mut self, path: &str, form: &[(&str, &str)]) -> anyhow::Result<Page> {
        let request = self.navigation(Method::POST, path).header("Origin", self.origin()).form(form);
        self.follow(request, path).await
    }

    /// What a page's script sends to its own origin.
    pub async fn fetch(&mut self, method: Method, path: &str) -> anyhow::Result<Response> {
        let request = self
            .request(method, path)
            .header("Accept", "*/*")
            .header("Origin", self.origin())
            .header("Sec-Fetch-Site", "same-origin")
            .header("Sec-Fetch-Mode", "cors")
            .header("Sec-Fetch-Dest", "empty");
        let answer = request.send().await.with_context(|| path.to_string())?;
        self.obey(answer.headers());
        Ok(answer)
    }

    /// Opens the telemetry socket of a page, as the collector does; `None` if the gateway asks not to
    /// be sent anything.
    pub async fn telemetry(&mut self) -> anyhow::Result<Option<Telemetry>> {
        let answer = self.fetch(Method::POST, &format!("{PREFIX}/token")).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NO_CONTENT => return Ok(None),
            status => anyhow::bail!("page token: {status}"),
        }
        let token = answer.text().await.context("page token")?;
        let address = format!("ws://{}{PREFIX}/t?p={token}", self.address);
        let mut request = address.as_str().into_client_request()?;
        request.headers_mut().insert("Origin", self.origin().parse()?);
        request.headers_mut().insert("User-Agent", AGENT.parse()?);
        if let Some(cookies) = self.cookie_line() {
            request.headers_mut().insert("Cookie", cookies.parse()?);
        }
        let stream = TcpStream::connect(self.address).await.context("telemetry connection")?;
        stream.set_nodelay(true)?;
        let opening = tokio_tungstenite::client_async(request, stream);
        let (socket, _) =
            tokio::time::timeout(ANSWER_TIMEOUT, opening).await?.context("telemetry handshake")?;
        Ok(Some(Telemetry { socket }))
    }

    fn navigation(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path)
            .header("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
            .header("Upgrade-Insecure-Requests", "1")
            .header("Sec-Fetch-Site", "same-origin")
            .header("Sec-Fetch-Mode", "navigate")
            .header("Sec-Fetch-User", "?1")
            .header("Sec-Fetch-Dest", "document")
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request =
            self.http.request(method, format!("{}{path}", self.origin())).header("Accept-Language", "en");
        match self.cookie_line() {
            Some(cookies) => request.header("Cookie", cookies),
            None => request,
        }
    }

    async fn follow(&mut self, request: RequestBuilder, path: &str) -> anyhow::Result<Page> {
        let mut path = path.to_string();
        let mut answer = request.send().await.with_context(|| path.clone())?;
        for _ in 0..REDIRECTS_MAX {
            self.obey(answer.headers());
            let next = answer.headers().get(LOCATION).and_then(|place| place.to_str().ok());
            let Some(next) = next.filter(|_| answer.status().is_redirection()) else {
                let status = answer.status();
                let html = answer.text().await.with_context(|| path.clone())?;
                return Ok(Page { status, path, html });
            };
            path = next.strip_prefix(&self.origin()).unwrap_or(next).to_string();
            anyhow::ensure!(path.starts_with('/'), "redirected away from the shop");
            answer = self.navigation(Method::GET, &path).send().await.with_context(|| path.clone())?;
        }
        anyhow::bail!("{path}: more than {REDIRECTS_MAX} redirects")
    }

    /// Takes cookies over, and drops them when told to.
    fn obey(&mut self, headers: &HeaderMap) {
        if headers
            .get("clear-site-data")
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.contains("\"cookies\""))
        {
            self.cookies.clear();
        }
        for line in headers.get_all(SET_COOKIE).iter().filter_map(|line| line.to_str().ok()) {
            let mut parts = line.split(';').map(str::trim);
            let Some((name, value)) = parts.next().and_then(|pair| pair.split_once('=')) else { continue };
            let expired = parts.any(|attribute| {
                let attribute = attribute.to_ascii_lowercase();
                attribute == "max-age=0" || attribute.starts_with("expires=thu, 01 jan 1970")
            });
            if expired {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.into(), value.into());
            }
        }
    }

    fn cookie_line(&self) -> Option<String> {
        let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }

    fn origin(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The open telemetry socket of one page.
pub struct Telemetry {
    socket: WebSocketStream<TcpStream>,
}

/// What the gateway says over a telemetry socket.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// The session is revoked: leave for this address at once.
    Go(String),
    /// Get a new page token and come back.
    Renew,
    /// Send nothing more from this page.
    Enough,
    /// The connection ended without a reason.
    Lost,
}

impl Telemetry {
    pub async fn send(&mut self, frame: Vec<u8>) -> Result<(), Told> {
        self.socket.send(Message::Binary(Bytes::from(frame))).await.map_err(|_| Told::Lost)
    }

    /// Waits until the gateway says something. Can be dropped and called again without loss.
    pub async fn told(&mut self) -> Told {
        #[derive(Deserialize)]
        struct Line {
            t: String,
            #[serde(default)]
            u: String,
        }
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => match serde_json::from_str::<Line>(&text) {
                    Ok(line) if line.t == "go" => return Told::Go(line.u),
                    _ => {}
                },
                Some(Ok(Message::Close(frame))) => {
                    return match frame.map(|frame| u16::from(frame.code)) {
                        Some(4401) => Told::Renew,
                        Some(4403) => Told::Enough,
                        _ => Told::Lost,
                    };
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Told::Lost,
            }
        }
    }
}
