//! Keeps keys fresh: those of a JWKS address at start, every ten minutes, and when a token names a key that
//! is not known; those of a file when it changes.
//!
//! Invariant: a failed fetch or a file that holds no key changes nothing; the last good keys stay for as long as it lasts. Must not
//! know: tokens.

use super::IdentityError;
use super::keys::KeySet;
use arc_swap::ArcSwap;
use jsonwebtoken::Algorithm;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often and how long; tests shorten it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Between successful fetches.
    pub(super) refresh: Duration,
    /// Between any two fetches, however many unknown key ids arrive; also the first wait after a failure.
    pub(super) spacing: Duration,
    /// One fetch, from connecting to the last byte.
    pub(super) timeout: Duration,
    /// How often a key file is looked at.
    pub(super) file: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            refresh: Duration::from_secs(600),
            spacing: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            file: Duration::from_secs(2),
        }
    }
}

/// The keys as the request path reads them, and its way to ask for newer ones.
pub(super) struct Keys {
    current: ArcSwap<KeySet>,
    wanted: Notify,
}

impl Keys {
    pub(super) fn fixed(keys: KeySet) -> Keys {
        Keys { current: ArcSwap::from_pointee(keys), wanted: Notify::new() }
    }

    pub(super) fn current(&self) -> arc_swap::Guard<Arc<KeySet>> {
        self.current.load()
    }

    /// Puts keys in place if they differ from the present ones.
    fn take(&self, mut fresh: KeySet) {
        let current = self.current.load_full();
        if !current.is_same(&fresh) {
            fresh.generation = current.generation + 1;
            tracing::info!(keys = fresh.len(), "the issuer's keys changed");
            self.current.store(Arc::new(fresh));
        }
    }

    /// Asks for a fetch; any number of calls cost at most one fetch per `Timing::spacing`.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }
}

/// Takes up a key file when it changes; runs until the task is dropped.
pub(super) async fn follow_file(path: PathBuf, algorithms: Vec<Algorithm>, keys: Arc<Keys>, every: Duration) {
    let changed = |path: &Path| {
        let about = std::fs::metadata(path).ok()?;
        Some((about.modified().ok()?, about.len()))
    };
    // The start has read the file a moment ago; what changed since is read again, which does no harm.
    let mut seen = None;
    loop {
        let now = changed(&path);
        if now.is_some() && now != seen {
            seen = now;
            let read = std::fs::read(&path).map_err(|error| error.to_string());
            let read = read
                .and_then(|text| KeySet::from_text(&text, &algorithms).map_err(|error| error.to_string()));
            match read {
                Ok(fresh) => keys.take(fresh),
                Err(reason) => {
                    tracing::error!(%reason, "the key file cannot be used; the last known key stays");
                }
            }
        }
        tokio::time::sleep(every).await;
    }
}

pub(super) struct Jwks {
    url: reqwest::Url,
    /// Whose keys, for the log and the metrics.
    issuer: String,
    client: reqwest::Client,
    algorithms: Vec<Algorithm>,
    timing: Timing,
}

impl Jwks {
    pub(super) fn new(
        url: &str,
        issuer: &str,
        algorithms: &[Algorithm],
        timing: Timing,
    ) -> Result<Jwks, IdentityError> {
        let refused = |why: String| IdentityError::Jwks(why);
        let url = reqwest::Url::parse(url).map_err(|error| refused(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused("the address must be http or https".into()));
        }
        if url.scheme() == "http" && !url.host_str().is_some_and(is_loopback) {
            tracing::warn!("keys are fetched without TLS; whoever sits on the way can replace them");
        }
        let client = reqwest::Client::builder()
            .timeout(timing.timeout)
            // A redirect would let the answer choose where keys come from.
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| refused(error.to_string()))?;
        Ok(Jwks { url, issuer: issuer.to_owned(), client, algorithms: algorithms.to_vec(), timing })
    }

    /// Fetches once and puts the keys in place if they differ.
    pub(super) async fn refresh(&self, keys: &Keys) -> Result<(), String> {
        let fetched = self.fetch().await;
        let outcome = if fetched.is_ok() { "ok" } else { "failed" };
        metrics::counter!("gaitway_jwks_fetches_total", "outcome" => outcome, "issuer" => self.issuer.clone())
            .increment(1);
        keys.take(fetched?);
        Ok(())
    }

    /// Runs until the task is dropped.
    pub(super) async fn keep_fresh(self, keys: Arc<Keys>, mut last: Result<(), String>) {
        let mut failures = u32::from(last.is_err());
        loop {
            let fetched_at = Instant::now();
            let pause = match last {
                Ok(()) => self.timing.refresh,
                Err(_) => (self.timing.spacing * 2u32.pow(failures.min(6) - 1)).min(self.timing.refresh),
            };
            tokio::select! {
                () = tokio::time::sleep_until(fetched_at + pause) => {}
                () = keys.wanted.notified() => {
                    tokio::time::sleep_until(fetched_at + self.timing.spacing).await;
                }
            }
            last = self.refresh(&keys).await;
            match &last {
                Ok(()) => failures = 0,
                Err(reason) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(issuer = self.issuer, %reason, failures, "cannot fetch the issuer's keys; the last known ones stay");
                }
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        // The address may hold a secret in its query, so it stays out of every message.
        let plain = |error: reqwest::Error| error.without_url().to_string();
        let mut response = self.client.get(self.url.clone()).send().await.map_err(plain)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("answered with status {}", response.status().as_u16()));
        }
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(plain)? {
            if document.len() + chunk.len() > DOCUMENT_BYTES_MAX {
                return Err(format!("answered with more than {DOCUMENT_BYTES_MAX} bytes"));
            }
            document.extend_from_slice(&chunk);
        }
        KeySet::from_jwks(&document, &self.algorithms).map_err(|error| error.to_string())
    }
}

pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Sixty-four RSA keys with certificate chains fit; a whole web page does not.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
