//! Where requests go: the upstream's address, resolved anew so that a moved app is found.
//!
//! Must not know: requests.

use arc_swap::ArcSwap;
use pingora_core::protocols::TcpKeepalive;
use pingora_core::upstreams::peer::{HttpPeer, PeerOptions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// How often the upstream's name is resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);
/// Idle upstream connections are closed after this long; most apps keep theirs for at least a minute.
const POOL_IDLE: Duration = Duration::from_secs(50);

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("upstream must be http://host[:port] or https://host[:port], not {0:?}")]
    Address(String),
    #[error("upstream {host} cannot be resolved: {reason}")]
    Resolve { host: String, reason: String },
}

pub struct Upstream {
    host: String,
    port: u16,
    tls: bool,
    connect_timeout: Duration,
    peer: ArcSwap<HttpPeer>,
}

impl Upstream {
    /// Parses the address and resolves it once.
    pub async fn resolve(address: &str, connect_timeout: Duration) -> Result<Arc<Upstream>, UpstreamError> {
        let refuse = || UpstreamError::Address(address.to_owned());
        let uri: http::Uri = address.parse().map_err(|_| refuse())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(refuse()),
        };
        if !matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("/")) {
            return Err(refuse());
        }
        let host = uri.host().ok_or_else(refuse)?.to_owned();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let resolved = lookup(&host, port).await?;
        let peer = build(resolved, tls, &host, connect_timeout);
        Ok(Arc::new(Upstream { host, port, tls, connect_timeout, peer: ArcSwap::from_pointee(peer) }))
    }

    pub fn peer(&self) -> Box<HttpPeer> {
        Box::new(HttpPeer::clone(&self.peer.load()))
    }

    /// Host header for an upstream that wants its own name.
    pub fn authority(&self) -> String {
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    /// Resolves again for ever; an answer that fails leaves the last one in place.
    pub async fn keep_resolving(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RESOLVE_EVERY).await;
            match lookup(&self.host, self.port).await {
                Ok(address) => {
                    let peer = build(address, self.tls, &self.host, self.connect_timeout);
                    self.peer.store(Arc::new(peer));
                }
                Err(error) => warn!(%error, "keeping the upstream's last address"),
            }
        }
    }
}

async fn lookup(host: &str, port: u16) -> Result<SocketAddr, UpstreamError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let failed = |reason: String| UpstreamError::Resolve { host: host.to_owned(), reason };
    let mut addresses =
        tokio::net::lookup_host((bare, port)).await.map_err(|error| failed(error.to_string()))?;
    addresses.next().ok_or_else(|| failed("no address".into()))
}

fn build(address: SocketAddr, tls: bool, host: &str, connect_timeout: Duration) -> HttpPeer {
    let mut peer = HttpPeer::new(address, tls, host.to_owned());
    let mut options = PeerOptions::new();
    options.connection_timeout = Some(connect_timeout);
    options.total_connection_timeout = Some(connect_timeout * 2);
    options.idle_timeout = Some(POOL_IDLE);
    options.tcp_keepalive = Some(TcpKeepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(10),
        count: 3,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    });
    peer.options = options;
    peer
}
