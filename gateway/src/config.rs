//! Settings: raw text and environment become a validated `Config` here, once.
//!
//! Every limit of the gateway has its name, unit and reason in this file.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The whole configuration file. Every key has a default except `upstream`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The app behind the gateway: `http://host:port` or `https://host:port`.
    pub upstream: String,
    /// Where visitors connect.
    pub listen: SocketAddr,
    /// Directory for the SQLite file and generated secrets; created with mode 0700.
    pub data: PathBuf,
    pub tls: Tls,
    pub proxy: Proxy,
    pub limits: Limits,
    pub identity: Identity,
    pub collector: Collector,
    pub models: Models,
    pub policy: Policy,
    pub revocation: Revocation,
    pub store: Store,
    pub alerts: Alerts,
    pub ops: Ops,
    pub log: Log,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM certificate chain; with `key`, the listener speaks TLS. Reloaded when either file changes.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxy {
    /// Proxies whose X-Forwarded-* and Forwarded headers are believed. Empty: nobody's.
    pub trusted_proxies: Vec<IpNet>,
    /// Host header sent upstream: the visitor's (true) or the upstream's own (false).
    pub preserve_host: bool,
    /// PEM file with the authorities that may sign an `https` upstream's certificate; the system's if absent.
    pub upstream_ca: Option<PathBuf>,
    /// Cleartext HTTP/2 with prior knowledge on a listener without TLS.
    pub h2c: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open client connections; one more is closed at once.
    pub connections_max: u32,
    /// Open connections from one address (IPv6: one /64).
    pub connections_per_address_max: u32,
    /// From the first byte of a request to the end of its header.
    pub header_read_timeout_ms: u64,
    /// A connection with no request under way.
    pub idle_timeout_ms: u64,
    /// A request body or response that moves no byte at all, in either direction.
    pub body_idle_timeout_ms: u64,
    /// After ten seconds of waiting, the least average speed of a request body.
    pub body_rate_min_bytes_per_second: u32,
    /// A WebSocket or other tunnel with no byte in either direction.
    pub tunnel_idle_timeout_ms: u64,
    /// Largest request body; 0 for no limit.
    pub request_body_bytes_max: u64,
    /// Largest request header, request line included.
    pub request_header_bytes_max: u32,
    pub upstream_connect_timeout_ms: u64,
    /// Idle keep-alive connections kept to the upstream.
    pub upstream_pool_max: usize,
    /// Open telemetry sockets; one more gets 503 and the collector falls back to the beacon.
    pub telemetry_sockets_max: u32,
    /// Telemetry sockets of one session (tabs).
    pub telemetry_sockets_per_session_max: u32,
    /// Telemetry frames a second from one session, averaged over ten seconds.
    pub telemetry_frames_per_second_max: u32,
    /// Sessions in memory, all shards together.
    pub sessions_max: usize,
    /// A session without any sign of life is closed after this long.
    pub session_idle_ms: u64,
    /// At shutdown, how long open requests and sockets may finish.
    pub drain_ms: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Where the app's JWT is found. None of these present: Gaitway's own session cookie.
    pub jwt: Option<Jwt>,
    /// The app's own opaque session cookie, such as `PHPSESSID`: names the session where no token does.
    pub app_cookie: Option<String>,
    /// Name of Gaitway's own first-party session cookie.
    pub cookie_name: String,
    /// Mark it `Secure`; implied by `tls`. Set it where something in front of the gateway speaks TLS.
    pub cookie_secure: bool,
    /// Verified tokens and cookies remembered, about 300 bytes each.
    pub verified_max: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jwt {
    /// Cookie that carries the token.
    pub cookie: Option<String>,
    /// Also read `Authorization: Bearer`.
    pub header: bool,
    /// Accepted algorithms: HS256, RS256, PS256, ES256 (each also 384; HS, RS, PS also 512), EdDSA.
    pub algorithms: Vec<String>,
    /// HS256 secret or PEM public key, from a file. Exactly one of the three key sources is set.
    pub key_file: Option<PathBuf>,
    /// Name of an environment variable holding the same.
    pub key_env: Option<String>,
    /// JWKS address; fetched at start, on an unknown `kid` and every ten minutes.
    pub jwks_url: Option<String>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
    /// Claims that name the session, first present wins; else the hash of the whole token.
    pub session_claims: Vec<String>,
    /// Claim that names the person.
    pub subject_claim: String,
    /// Claim with groups (array of strings), for policies.
    pub groups_claim: String,
    /// Refuse tokens without `exp`.
    pub require_expiry: bool,
    /// Clock leeway for exp and nbf.
    pub leeway_seconds: u64,
    /// Largest token looked at; a longer one is not a token.
    pub token_bytes_max: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Collector {
    /// Inject the collector into HTML pages.
    pub inject: bool,
    /// Path prefix of Gaitway's own endpoints on the app's origin.
    pub path_prefix: String,
    /// What to do with Global Privacy Control and Do Not Track: `record` or `respect`.
    pub privacy_signal: PrivacySignal,
    /// Lifetime of a page token.
    pub page_token_seconds: u64,
    /// HTML parsed before the insertion point at most; a longer head passes untouched.
    pub inject_bytes_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PrivacySignal {
    Record,
    Respect,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Models {
    /// Model file; the shipped default.model if absent.
    pub artifact: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Policy file; the shipped default.yaml (shadow) if absent. Reloaded when it changes and on SIGHUP.
    pub file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Revocation {
    /// `redis://` or `rediss://` address shared by all replicas; absent: embedded in this process and its store.
    pub redis: Option<String>,
    /// File with the Redis password, kept out of the address.
    pub redis_password_file: Option<PathBuf>,
    /// PEM file with the authorities that may sign a `rediss` server's certificate; the system's if absent.
    pub redis_ca: Option<PathBuf>,
    /// Prefix of every key and stream in Redis.
    pub key_prefix: String,
    /// Revocations held in memory at most.
    pub entries_max: usize,
    /// Changes that wait in memory for an unreachable Redis at most.
    pub queue_max: usize,
    /// How long a revocation lasts when the token does not say when it expires.
    pub default_ttl_seconds: u64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `postgres://` address; absent: SQLite in the data directory.
    pub postgres: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    pub mail: Option<Mail>,
    /// Most mails in an hour; further incidents wait for one digest. 0: no limit.
    pub mails_per_hour_max: u32,
    /// Public address of the ops page, for links in alerts.
    pub ops_url: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mail {
    pub host: String,
    pub port: u16,
    pub encryption: MailEncryption,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub password_env: Option<String>,
    pub from: String,
    pub to: Vec<String>,
    /// PEM file with a private authority's certificate.
    pub ca: Option<PathBuf>,
    /// Also mail shadow decisions.
    pub shadow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MailEncryption {
    None,
    Starttls,
    Tls,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ops {
    /// Operators' page, API and metrics; keep it on loopback or a management network.
    pub listen: SocketAddr,
    /// File with the operators' password; absent: one is generated in the data directory.
    pub password_file: Option<PathBuf>,
    /// `/metrics` without a login.
    pub metrics_public: bool,
    /// Who gets support questions: shown on the logout page. Plain text.
    pub help: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub format: LogFormat,
    /// A tracing filter such as `info` or `gaitway=debug`.
    pub level: String,
    /// One line a request.
    pub access: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    Text,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Default for Config {
    fn default() -> Config {
        Config {
            upstream: String::new(),
            listen: loopback(8000),
            data: PathBuf::from("data"),
            tls: Tls::default(),
            proxy: Proxy::default(),
            limits: Limits::default(),
            identity: Identity::default(),
            collector: Collector::default(),
            models: Models::default(),
            policy: Policy::default(),
            revocation: Revocation::default(),
            store: Store::default(),
            alerts: Alerts { mail: None, mails_per_hour_max: 60, ops_url: None },
            ops: Ops::default(),
            log: Log::default(),
        }
    }
}

impl Default for Proxy {
    fn default() -> Proxy {
        Proxy { trusted_proxies: Vec::new(), preserve_host: true, upstream_ca: None, h2c: false }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 20_000,
            connections_per_address_max: 4_000,
            header_read_timeout_ms: 10_000,
            idle_timeout_ms: 60_000,
            body_idle_timeout_ms: 60_000,
            body_rate_min_bytes_per_second: 256,
            tunnel_idle_timeout_ms: 3_600_000,
            request_body_bytes_max: 0,
            request_header_bytes_max: 32 * 1024,
            upstream_connect_timeout_ms: 5_000,
            upstream_pool_max: 256,
            telemetry_sockets_max: 12_000,
            telemetry_sockets_per_session_max: 16,
            telemetry_frames_per_second_max: 8,
            sessions_max: 100_000,
            session_idle_ms: 30 * 60_000,
            drain_ms: 10_000,
        }
    }
}

impl Default for Identity {
    fn default() -> Identity {
        Identity {
            jwt: None,
            app_cookie: None,
            cookie_name: "gaitway_session".into(),
            cookie_secure: false,
            verified_max: 100_000,
        }
    }
}

impl Default for Jwt {
    fn default() -> Jwt {
        Jwt {
            cookie: None,
            header: true,
            algorithms: vec!["HS256".into()],
            key_file: None,
            key_env: None,
            jwks_url: None,
            issuer: None,
            audience: None,
            session_claims: vec!["sid".into(), "jti".into()],
            subject_claim: "sub".into(),
            groups_claim: "groups".into(),
            require_expiry: true,
            leeway_seconds: 30,
            token_bytes_max: 8 * 1024,
        }
    }
}

impl Default for Collector {
    fn default() -> Collector {
        Collector {
            inject: true,
            path_prefix: "/_gaitway".into(),
            privacy_signal: PrivacySignal::Record,
            page_token_seconds: 60,
            inject_bytes_max: 256 * 1024,
        }
    }
}

impl Default for Revocation {
    fn default() -> Revocation {
        Revocation {
            redis: None,
            redis_password_file: None,
            redis_ca: None,
            key_prefix: "gaitway:".into(),
            entries_max: 1_000_000,
            queue_max: 100_000,
            default_ttl_seconds: 24 * 3600,
        }
    }
}

impl Default for Mail {
    fn default() -> Mail {
        Mail {
            host: "127.0.0.1".into(),
            port: 587,
            encryption: MailEncryption::Starttls,
            username: None,
            password_file: None,
            password_env: None,
            from: String::new(),
            to: Vec::new(),
            ca: None,
            shadow: false,
        }
    }
}

impl Default for Ops {
    fn default() -> Ops {
        Ops { listen: loopback(9000), password_file: None, metrics_public: true, help: None }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Json, level: "info".into(), access: true }
    }
}
