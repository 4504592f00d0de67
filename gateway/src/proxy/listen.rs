//! The front door: accepts connections, speaks TLS with certificates that may change under way,
//! and hands each connection to pingora inside its guard.
//!
//! pingora's own listeners cannot reload certificates or cut an idle connection, so the loop is
//! ours; everything after the handshake is pingora's.

use super::Gateway;
use super::limits::{Clocks, Connection, Connections, Guarded, Transport};
use crate::config::{Config, Tls};
use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use pingora_core::apps::{HttpServerOptions, ServerApp};
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info, warn};

/// How often certificate files are looked at.
const CERTIFICATE_POLL: Duration = Duration::from_secs(2);
/// How long to wait after the process ran out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {reason}")]
    Read { path: String, reason: String },
    #[error("the certificate in {certificate} and the key in {key} do not work together: {reason}")]
    Mismatch { certificate: String, key: String, reason: String },
}

/// The TLS side of the listener; `None` inside for cleartext.
pub struct TlsFront {
    acceptor: Option<ArcSwap<rustls::ServerConfig>>,
    files: Tls,
}

impl TlsFront {
    pub fn load(files: &Tls) -> Result<Arc<TlsFront>, TlsError> {
        let acceptor = match (&files.certificate, &files.key) {
            (Some(certificate), Some(key)) => Some(ArcSwap::new(server_config(certificate, key)?)),
            _ => None,
        };
        Ok(Arc::new(TlsFront { acceptor, files: files.clone() }))
    }

    /// Takes up changed files for ever. A pair that does not load leaves the last good one.
    pub async fn keep_reloading(self: Arc<Self>) {
        let (Some(acceptor), Some(certificate), Some(key)) =
            (&self.acceptor, &self.files.certificate, &self.files.key)
        else {
            return;
        };
        let mut seen = (changed_at(certificate), changed_at(key));
        loop {
            tokio::time::sleep(CERTIFICATE_POLL).await;
            let now = (changed_at(certificate), changed_at(key));
            if now == seen {
                continue;
            }
            match server_config(certificate, key) {
                Ok(config) => {
                    acceptor.store(config);
                    seen = now;
                    counter!("gaitway_tls_reloads_total", "outcome" => "ok").increment(1);
                    info!("TLS certificate reloaded");
                }
                // Not remembered as seen: a pair is often written one file after the other.
                Err(error) => {
                    counter!("gaitway_tls_reloads_total", "outcome" => "failed").increment(1);
                    warn!(%error, "keeping the last good TLS certificate");
                }
            }
        }
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn server_config(certificate: &Path, key: &Path) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let read = |path: &Path, reason: String| TlsError::Read { path: path.display().to_string(), reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| read(certificate, error.to_string()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| read(key, error.to_string()))?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| TlsError::Mismatch {
        certificate: certificate.display().to_string(),
        key: key.display().to_string(),
        reason: error.to_string(),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The running front door.
pub struct Front {
    proxy: Arc<HttpProxy<Gateway>>,
    connections: Arc<Connections>,
    tls: Arc<TlsFront>,
    clocks: Clocks,
    header_timeout: Duration,
}

impl Front {
    pub fn new(
        config: &Config,
        gateway: Gateway,
        connections: Arc<Connections>,
        tls: Arc<TlsFront>,
    ) -> Arc<Front> {
        let limits = &config.limits;
        let conf = ServerConf {
            upstream_keepalive_pool_size: limits.upstream_pool_max,
            ca_file: config.proxy.upstream_ca.as_ref().map(|path| path.display().to_string()),
            ..ServerConf::default()
        };
        let mut proxy = pingora_proxy::http_proxy(&Arc::new(conf), gateway);
        let mut options = HttpServerOptions::default();
        options.h2c = config.proxy.h2c;
        options.h2_idle_timeout = Some(Duration::from_millis(limits.idle_timeout_ms));
        proxy.server_options = Some(options);
        let clocks = Clocks {
            header_read: Duration::from_millis(limits.header_read_timeout_ms),
            idle: Duration::from_millis(limits.idle_timeout_ms),
            body_idle: Duration::from_millis(limits.body_idle_timeout_ms),
            body_rate_min: limits.body_rate_min_bytes_per_second,
            tunnel_idle: Duration::from_millis(limits.tunnel_idle_timeout_ms),
            header_bytes_max: limits.request_header_bytes_max as usize,
        };
        Arc::new(Front {
            proxy: Arc::new(proxy),
            connections,
            tls,
            clocks,
            header_timeout: clocks.header_read,
        })
    }

    /// Accepts until `shutdown` turns true.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut shutdown: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    let connection = Arc::new(Connection::new(peer, self.tls.acceptor.is_some()));
                    match self.connections.admit(&connection) {
                        Ok(place) => {
                            let front = self.clone();
                            let shutdown = shutdown.clone();
                            gauge!("gaitway_connections").set(f64::from(self.connections.open()));
                            tokio::spawn(async move { front.run(tcp, connection, place, shutdown).await });
                        }
                        Err(limit) => {
                            counter!("gaitway_connections_refused_total", "limit" => limit).increment(1);
                        }
                    }
                }
                Err(error) => {
                    // Out of descriptors, mostly: wait for some to come free.
                    error!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Ends keep-alive connections that wait for their next request.
    pub async fn drain(&self) {
        self.proxy.cleanup().await;
    }

    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    async fn run(
        &self,
        tcp: TcpStream,
        connection: Arc<Connection>,
        place: super::limits::Place,
        shutdown: watch::Receiver<bool>,
    ) {
        let _ = tcp.set_nodelay(true);
        let transport = match &self.tls.acceptor {
            None => Transport::Plain(tcp),
            Some(config) => {
                let accept = TlsAcceptor::from(config.load_full()).accept(tcp);
                match tokio::time::timeout(self.header_timeout, accept).await {
                    Ok(Ok(tls)) => Transport::Tls(Box::new(tls)),
                    Ok(Err(_)) => {
                        counter!("gaitway_tls_handshakes_failed_total", "reason" => "protocol").increment(1);
                        return;
                    }
                    Err(_) => {
                        counter!("gaitway_tls_handshakes_failed_total", "reason" => "timeout").increment(1);
                        return;
                    }
                }
            }
        };
        match Guarded::new(transport, connection, self.clocks, place) {
            Ok(stream) => {
                self.proxy.process_new(Box::new(stream), &shutdown).await;
            }
            Err(error) => error!(%error, "a connection could not be guarded"),
        }
    }
}
