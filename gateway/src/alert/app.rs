//! Logs a revoked session out at the app itself, as its browser would: one request with the session's own
//! cookies. They are kept in this process's memory alone and are in no table, file or log; so the replica that
//! served the session does it, or whichever the session calls at next.
//!
//! Must not know: what the app's session means, why it ended.

use super::{AlertError, AlertSink};
use crate::config::{AppLogout, Config};
use crate::store::ends_login;
use async_trait::async_trait;
use gaitway_models::Timestamp;
use gaitway_policies::{Incident, SessionId};
use http::{HeaderMap, HeaderName, Method, header};
use quick_cache::sync::Cache;
use std::sync::Arc;
use std::time::Duration;

/// One for the process.
pub struct AppSink {
    method: Method,
    address: String,
    carried: Vec<HeaderName>,
    preserve_host: bool,
    http: reqwest::Client,
    seen: Cache<SessionId, Arc<HeaderMap>>,
}

impl AppSink {
    /// The error names the setting that is wrong.
    pub fn new(settings: &AppLogout, config: &Config) -> Result<AppSink, AlertError> {
        let wrong = |why: String| AlertError::Permanent(format!("revocation.app_logout: {why}"));
        let carried = settings.headers.iter().map(|name| name.parse::<HeaderName>());
        let mut http = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            // The answer to a logout is often a redirect; where it leads is the browser's business.
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0);
        if let Some(path) = &config.proxy.upstream_ca {
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let authority = reqwest::Certificate::from_pem(&pem).map_err(|error| wrong(error.to_string()))?;
            http = http.tls_certs_only([authority]);
        }
        Ok(AppSink {
            method: settings.method.parse().map_err(|_| wrong("method is none".into()))?,
            address: format!("{}{}", config.upstream.trim_end_matches('/'), settings.path),
            carried: carried.collect::<Result<_, _>>().map_err(|_| wrong("headers: no name".into()))?,
            preserve_host: config.proxy.preserve_host,
            http: http.build().map_err(|error| wrong(error.to_string()))?,
            seen: Cache::new(SESSIONS_MAX),
        })
    }

    /// Keeps what the session's latest request carried. Called for every request: it compares and writes
    /// only what changed.
    pub fn note(&self, session: &SessionId, request: &HeaderMap) {
        let host = self.preserve_host.then_some(header::HOST);
        let names = || self.carried.iter().chain(&host);
        let known = self.seen.get(session);
        let is_same = known.is_some_and(|known| {
            names().all(|name| request.get_all(name).iter().eq(known.get_all(name).iter()))
        });
        if is_same {
            return;
        }
        let mut kept = HeaderMap::new();
        for name in names() {
            for value in request.get_all(name) {
                kept.append(name.clone(), value.clone());
            }
        }
        let bytes: usize = kept.values().map(http::HeaderValue::len).sum();
        if self.carried.iter().any(|name| kept.contains_key(name)) && bytes <= HEADER_BYTES_MAX {
            self.seen.insert(*session, Arc::new(kept));
        }
    }
}

#[async_trait]
impl AlertSink for AppSink {
    fn name(&self) -> &'static str {
        "app"
    }

    /// A measure for a while is no end of the app's session.
    fn wants(&self, incident: &Incident) -> bool {
        ends_login(incident)
    }

    fn is_ready(&self, incident: &Incident, now: Timestamp) -> bool {
        self.seen.get(&incident.identity.session).is_some() || now.since(incident.at) > HAND_OVER
    }

    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError> {
        let session = incident.identity.session;
        let Some(headers) = self.seen.get(&session) else {
            return Err(AlertError::Permanent("no replica knows the session's cookies".into()));
        };
        let request = self.http.request(self.method.clone(), &self.address);
        let request = request.headers(HeaderMap::clone(&headers));
        // Where the app is stays out of the outcome; operators know it.
        let answer = request.send().await.map_err(|error| {
            AlertError::Temporary(format!("the app does not answer: {}", error.without_url()))
        })?;
        match answer.status().as_u16() {
            // Redirects are how apps say goodbye; a refusal means that the session was over already.
            ..=399 | 401 | 403 => {
                self.seen.remove(&session);
                Ok(())
            }
            status @ (429 | 500..) => {
                Err(AlertError::Temporary(format!("the app answered with status {status}")))
            }
            status => Err(AlertError::Permanent(format!("the app answered with status {status}"))),
        }
    }
}

/// Sessions whose cookies are remembered; at about 1 KiB each. The ones least used are forgotten.
const SESSIONS_MAX: usize = 20_000;
/// What one session may carry; browsers send 4 KiB a cookie.
const HEADER_BYTES_MAX: usize = 8 * 1024;
/// How long the step waits for a replica that knows the cookies: by then the session has called again, or
/// nobody uses it.
const HAND_OVER: Duration = Duration::from_secs(3600);
/// From connecting to the end of the answer's head.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
