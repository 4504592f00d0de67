//! Settings: raw text and environment become a validated `Config` here, once.
//!
//! Every limit of the gateway has its name, unit and reason in this file.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[macro_use]
pub mod settings;
mod check;
mod load;
mod print;
pub mod reference;

pub use load::{ConfigError, ConfigErrors, Overrides};
pub use print::{example, reference, show};

settings! {
    /// The whole configuration file. Every key has a default except `upstream`.
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Config {
        /// The app behind the gateway: `http://host:port` or `https://host:port`. The one setting
        /// without a default. Example: `http://127.0.0.1:8080`
        pub upstream: String,
        /// Where visitors connect.
        pub listen: SocketAddr,
        /// Directory for the SQLite file and generated secrets; created with mode 0700.
        pub data: PathBuf,
        /// Encryption of the visitors' side.
        pub tls: Tls,
        /// How requests travel to the app.
        pub proxy: Proxy,
        /// What visitors may use up at most.
        pub limits: Limits,
        /// How a visitor's session is recognised.
        pub identity: Identity,
        /// The script that watches pointer, scroll and key timing.
        pub collector: Collector,
        /// The model that scores sessions.
        pub models: Models,
        /// The rules that decide what happens.
        pub policy: Policy,
        /// What is written down of sessions, for back-tests and for learning the site.
        pub recording: Recording,
        /// What is kept of each person's hand, to tell an account's owner from somebody else.
        pub profiles: Profiles,
        /// Where ended sessions are remembered and shared.
        pub revocation: Revocation,
        /// Where incidents and the audit trail are kept.
        pub store: Store,
        /// How operators are told.
        pub alerts: Alerts,
        /// Security events told to and taken from identity providers (OpenID Shared Signals, CAEP).
        pub signals: Signals,
        /// The operators' page.
        pub ops: Ops,
        /// What the process writes to standard error.
        pub log: Log,
    }
}

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Tls {
        /// PEM certificate chain; with `key`, the listener speaks TLS. Reloaded when either
        /// file changes. Example: `/etc/gaitway/tls.crt`
        pub certificate: Option<PathBuf>,
        /// PEM private key of the certificate. Example: `/etc/gaitway/tls.key`
        pub key: Option<PathBuf>,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Proxy {
        /// Proxies whose X-Forwarded-* and Forwarded headers are believed. Empty: nobody's.
        /// Example: `[10.0.0.0/8]`
        pub trusted_proxies: Vec<IpNet>,
        /// Host header sent upstream: the visitor's (true) or the upstream's own (false).
        pub preserve_host: bool,
        /// PEM file with the authorities that may sign an `https` upstream's certificate; the system's
        /// if absent. Example: `/etc/gaitway/upstream-ca.pem`
        pub upstream_ca: Option<PathBuf>,
        /// MaxMind DB file with countries, for the fact `net.country`; read at start. Absent: unknown.
        /// Example: `/var/lib/GeoIP/GeoLite2-Country.mmdb`
        pub country_file: Option<PathBuf>,
        /// Cleartext HTTP/2 with prior knowledge on a listener without TLS.
        pub h2c: bool,
    }
}

settings! {
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
        /// To reach the upstream, TLS handshake included.
        pub upstream_connect_timeout_ms: u64,
        /// Idle keep-alive connections kept to the upstream.
        pub upstream_pool_max: usize,
        /// Open telemetry sockets; one more gets 503 and the collector falls back to the beacon.
        pub telemetry_sockets_max: u32,
        /// Telemetry sockets of one session (tabs).
        pub telemetry_sockets_per_session_max: u32,
        /// Telemetry frames a second from one session, averaged over ten seconds.
        pub telemetry_frames_per_second_max: u32,
        /// Buckets of the policy's rate limits in memory, 33 bytes each; where they do not suffice, the
        /// fullest is forgotten.
        pub rate_buckets_max: usize,
        /// Answers that `tarpit` rules hold back at a time; one more is refused at once. 0 holds none.
        pub tarpits_max: u32,
        /// Sessions in memory, all shards together.
        pub sessions_max: usize,
        /// A session without any sign of life is closed after this long.
        pub session_idle_ms: u64,
        /// At shutdown, how long open requests and sockets may finish.
        pub drain_ms: u64,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Identity {
        /// Where the app's JWT is found and how it is verified. Absent: sessions are recognised by
        /// Gaitway's own cookie.
        pub jwt: Option<Jwt>,
        /// An OpenID provider where people log in before they reach the app. Absent: the app does that
        /// itself.
        pub oidc: Option<Oidc>,
        /// The issuer to ask about tokens that say nothing by themselves (RFC 7662). Absent: nobody is
        /// asked.
        pub introspection: Option<Introspection>,
        /// The app's own opaque session cookie: names the session where no token does.
        /// Example: `PHPSESSID`
        pub app_cookie: Option<String>,
        /// Name of Gaitway's own first-party session cookie.
        pub cookie_name: String,
        /// Mark it `Secure`; implied by `tls`. Set it where something in front of the gateway speaks TLS.
        pub cookie_secure: bool,
        /// Verified tokens and cookies remembered, about 300 bytes each.
        pub verified_max: usize,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Jwt {
        /// Cookie that carries the token. Example: `session`
        pub cookie: Option<String>,
        /// Also read `Authorization: Bearer`.
        pub header: bool,
        /// Also read this parameter of the address, which reaches the app as it came and no log.
        /// Example: `access_token`
        pub query: Option<String>,
        /// Several issuers in place of `issuer`, `audience` and the keys below. The `iss` claim of a token
        /// chooses, and nobody else's keys are tried.
        /// Example: `[{issuer: https://login.example.com, jwks_url: https://login.example.com/jwks, algorithms: [RS256]}]`
        pub issuers: Vec<JwtIssuer>,
        /// Accepted algorithms: HS256, RS256, PS256, ES256 (each also 384; HS, RS, PS also 512), EdDSA.
        pub algorithms: Vec<String>,
        /// HS256 secret or PEM public key, from a file, which is read again when it changes. Exactly one of
        /// the three key sources is set.
        /// Example: `/etc/gaitway/jwt.key`
        pub key_file: Option<PathBuf>,
        /// Name of an environment variable holding the same. Example: `APP_JWT_SECRET`
        pub key_env: Option<String>,
        /// JWKS address; fetched at start, on an unknown `kid` and every ten minutes.
        /// Example: `https://login.example.com/.well-known/jwks.json`
        pub jwks_url: Option<String>,
        /// The `iss` claim a token must carry; absent: any. Example: `https://login.example.com/`
        pub issuer: Option<String>,
        /// The `aud` claim a token must carry; absent: any. Example: `shop`
        pub audience: Option<String>,
        /// Claims that name the session, first present wins; else the hash of the whole token.
        pub session_claims: Vec<String>,
        /// Claim that names the person.
        pub subject_claim: String,
        /// Claim with groups (array of strings), for policies.
        pub groups_claim: String,
        /// Refuse tokens without `exp`.
        pub require_expiry: bool,
        /// Clock leeway for exp and nbf; 0 for none.
        pub leeway_seconds: u64,
        /// Largest token looked at; a longer one is not a token.
        pub token_bytes_max: usize,
    }
}

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct JwtIssuer {
        /// The `iss` claim, exactly. Example: `https://login.example.com`
        pub issuer: Option<String>,
        /// The `aud` claim a token of this issuer must carry; absent: any. Example: `shop`
        pub audience: Option<String>,
        /// Accepted algorithms; empty: those of `identity.jwt`.
        pub algorithms: Vec<String>,
        /// As `identity.jwt.key_file`. Exactly one of the three key sources is set.
        pub key_file: Option<PathBuf>,
        /// As `identity.jwt.key_env`.
        pub key_env: Option<String>,
        /// As `identity.jwt.jwks_url`.
        pub jwks_url: Option<String>,
        /// Clock leeway for exp and nbf; absent: that of `identity.jwt`; 0 for none.
        pub leeway_seconds: Option<u64>,
    }
}

impl Jwt {
    /// Everybody whose tokens are believed, each with where the settings say so. Of the single form, one,
    /// who may go without a name.
    pub fn believed(&self) -> Vec<(String, JwtIssuer)> {
        if self.issuers.is_empty() {
            let only = JwtIssuer {
                issuer: self.issuer.clone(),
                audience: self.audience.clone(),
                algorithms: self.algorithms.clone(),
                key_file: self.key_file.clone(),
                key_env: self.key_env.clone(),
                jwks_url: self.jwks_url.clone(),
                leeway_seconds: Some(self.leeway_seconds),
            };
            return vec![("identity.jwt".into(), only)];
        }
        let mut issuers = self.issuers.clone();
        for issuer in &mut issuers {
            if issuer.algorithms.is_empty() {
                issuer.algorithms.clone_from(&self.algorithms);
            }
            issuer.leeway_seconds.get_or_insert(self.leeway_seconds);
        }
        (0..).map(|n| format!("identity.jwt.issuers[{n}]")).zip(issuers).collect()
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Oidc {
        /// The provider's issuer address; `/.well-known/openid-configuration` below it says the rest.
        /// Example: `https://login.example.com`
        pub issuer: String,
        /// Name of this gateway at the provider. Example: `gaitway`
        pub client_id: String,
        /// File with the client secret; neither file nor variable: a public client, PKCE alone.
        /// Example: `/etc/gaitway/client.secret`
        pub client_secret_file: Option<PathBuf>,
        /// Name of an environment variable with the client secret. Example: `CLIENT_SECRET`
        pub client_secret_env: Option<String>,
        /// Where visitors reach the app, without a path. The provider sends them back to
        /// `{public_url}/_gaitway/login/callback`. Example: `https://shop.example.com`
        pub public_url: String,
        /// What is asked of the provider; `offline_access` where it gives refresh tokens for nothing less.
        pub scopes: Vec<String>,
        /// Whether the app may be visited without a login; a policy route may say otherwise.
        pub login: LoginRule,
        /// Claim of the ID token that the app is told as `X-Gaitway-User`.
        pub user_claim: String,
        /// Claim with groups (array of strings), for policies and `X-Gaitway-Groups`.
        pub groups_claim: String,
        /// Name of the login cookie; `__Host-` is put before it where `public_url` is https.
        pub cookie_name: String,
        /// How long a login lasts at most, however often its tokens are renewed.
        pub session_seconds: u64,
        /// How long ago a person may have logged in at the provider; 0 for any time.
        pub authentication_age_seconds_max: u64,
        /// Logins kept in this process's memory at most where there is no Redis; about 4 KiB each.
        pub sessions_max: usize,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Introspection {
        /// The issuer's introspection endpoint. Example: `https://login.example.com/introspect`
        pub url: String,
        /// Name of this gateway at the issuer. Example: `gaitway`
        pub client_id: String,
        /// File with the client secret. Example: `/etc/gaitway/client.secret`
        pub client_secret_file: Option<PathBuf>,
        /// Name of an environment variable with the client secret. Example: `CLIENT_SECRET`
        pub client_secret_env: Option<String>,
        /// Cookie that carries the token. Example: `access_token`
        pub cookie: Option<String>,
        /// Also read `Authorization: Bearer`.
        pub header: bool,
        /// The `iss` an answer must carry; absent: any. Example: `https://login.example.com/`
        pub issuer: Option<String>,
        /// The `aud` an answer must carry; absent: any. Example: `shop`
        pub audience: Option<String>,
        /// Members of the answer that name the session, first present wins; else the hash of the token.
        pub session_claims: Vec<String>,
        /// Member that names the person.
        pub subject_claim: String,
        /// Member with groups (array of strings), for policies.
        pub groups_claim: String,
        /// How long an answer counts; never beyond the token's own end.
        pub cache_seconds: u64,
        /// How long a refusal counts.
        pub inactive_seconds: u64,
        /// While the issuer does not answer: go on with the answers known (`serve_known`), or refuse
        /// requests whose token is due (`deny`).
        pub outage: TokenOutage,
        /// Largest token asked about; a longer one is not a token.
        pub token_bytes_max: usize,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenOutage {
    ServeKnown,
    Deny,
}
choices!(TokenOutage: "serve_known", "deny");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LoginRule {
    Required,
    Optional,
}
choices!(LoginRule: "required", "optional");

settings! {
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PrivacySignal {
    Record,
    Respect,
}
choices!(PrivacySignal: "record", "respect");

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Models {
        /// Model file; the shipped one if absent. Example: `/etc/gaitway/site.model`
        pub artifact: Option<PathBuf>,
        /// Model file that judges every session beside the one in force and decides nothing: metrics and
        /// `GET /api/sessions` show where the two part. Twice the memory a session. Example: `/etc/gaitway/next.model`
        pub candidate: Option<PathBuf>,
    }
}

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Policy {
        /// Policy file; the shipped one (shadow) if absent. Reloaded when it changes and on SIGHUP.
        /// Example: `/etc/gaitway/policy.yaml`
        pub file: Option<PathBuf>,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Recording {
        /// Folder for recordings: facts as they change and the timing of input, under pseudonyms, without
        /// addresses or paths. Absent: nothing is recorded. Example: `/var/lib/gaitway/recorded`
        pub directory: Option<PathBuf>,
        /// Share of sessions that are recorded, 0 to 1; a session is recorded whole or not at all.
        pub share: f64,
        /// Policy routes on which sessions are recorded; empty: everywhere. Example: `[checkout]`
        pub routes: Vec<String>,
        /// Name of this site in the recordings: letters, digits, `-` and `_`.
        pub source: String,
        /// Days recordings are kept.
        pub days: u32,
        /// Most bytes of all recordings; past it the oldest day goes, never the present one.
        pub bytes_max: u64,
        /// Recording stops while the disk has fewer bytes free than this; 0: only when it is full.
        pub free_bytes_min: u64,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Profiles {
        /// Keep a profile of everybody who logs in. Read PRIVACY.md first: this may be biometric data. Needs
        /// a model that knows how people differ (`gaitway learn`).
        pub enabled: bool,
        /// Days a profile is kept after the last session that it learnt from, also once it is switched off.
        pub retention_days: u32,
        /// Live sessions that know their person at most, about 100 kB each; others are not judged by it.
        pub live_max: usize,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Revocation {
        /// `redis://` or `rediss://` address shared by all replicas; absent: embedded in this process
        /// and its store. Sentinels as `redis+sentinel://host:port,host:port/master-name`, a Cluster as
        /// `redis+cluster://host:port,host:port`, or a reference to a file or variable that holds the
        /// address, as `${file:/path}` or `${env:NAME}`. Example: `redis://127.0.0.1:6379`
        pub redis: Option<String>,
        /// File with the Redis password, kept out of the address. Example: `/etc/gaitway/redis.password`
        pub redis_password_file: Option<PathBuf>,
        /// PEM file with the authorities that may sign a `rediss` server's certificate; the system's if
        /// absent. Example: `/etc/gaitway/redis-ca.pem`
        pub redis_ca: Option<PathBuf>,
        /// Prefix of every key and stream in Redis.
        pub key_prefix: String,
        /// Revocations held in memory at most.
        pub entries_max: usize,
        /// Changes that wait in memory for an unreachable Redis at most.
        pub queue_max: usize,
        /// How long a revocation lasts when the token does not say when it expires.
        pub default_ttl_seconds: u64,
        /// A request that logs the revoked session out at the app itself. Absent: none.
        pub app_logout: Option<AppLogout>,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct AppLogout {
        /// Method of the request.
        pub method: String,
        /// Path of the app's logout, with a query if it needs one.
        pub path: String,
        /// Headers of the session's latest request that go with it, kept in memory only.
        pub headers: Vec<String>,
    }
}

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Store {
        /// `postgres://` address, or a reference to a file or variable that holds it, as `${file:/path}`
        /// or `${env:NAME}`; absent: SQLite in the data directory.
        /// Example: `postgres://gaitway@127.0.0.1/gaitway`
        pub postgres: Option<String>,
    }
}

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Alerts {
        /// Mail through an SMTP server; absent: no mail.
        pub mail: Option<Mail>,
        /// Signed POST requests to a program of yours; absent: none.
        pub webhook: Option<Webhook>,
        /// Most mails in an hour; further incidents wait for one digest. 0: no limit.
        pub mails_per_hour_max: u32,
        /// Address under which operators reach the ops page, for links in alerts.
        /// Example: `https://gaitway.example.com`
        pub ops_url: Option<String>,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Mail {
        /// SMTP server, by name or address.
        pub host: String,
        /// SMTP port: 587 with `starttls`, 465 with `tls`, 25 with `none` as a rule.
        pub port: u16,
        /// `starttls` and `tls` both refuse to send in the clear.
        pub encryption: MailEncryption,
        /// User name at the SMTP server; absent: no login. Example: `gaitway`
        pub username: Option<String>,
        /// File with the SMTP password. Example: `/etc/gaitway/smtp.password`
        pub password_file: Option<PathBuf>,
        /// Name of an environment variable with the SMTP password. Example: `SMTP_PASSWORD`
        pub password_env: Option<String>,
        /// Sender. Example: `gaitway@example.com`
        pub from: String,
        /// Receivers. Example: `[security@example.com]`
        pub to: Vec<String>,
        /// PEM file with a private authority's certificate, to trust the SMTP server by.
        /// Example: `/etc/gaitway/smtp-ca.pem`
        pub ca: Option<PathBuf>,
        /// Also mail shadow decisions.
        pub shadow: bool,
    }
}

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Webhook {
        /// Address that gets a POST with JSON for each incident. Example: `https://soc.example.com/gaitway`
        pub url: String,
        /// Where the secret is that signs the requests, at least 24 bytes: `${file:/path}` or
        /// `${env:NAME}`, never the secret itself. Example: `${file:/etc/gaitway/webhook.secret}`
        pub secret: String,
        /// PEM file with a private authority's certificate, the only one to trust the receiver by.
        /// Example: `/etc/gaitway/soc-ca.pem`
        pub ca: Option<PathBuf>,
        /// Also send shadow decisions.
        pub shadow: bool,
    }
}

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Signals {
        /// Others are told when a login was ended here. Absent: nobody.
        pub transmit: Option<Transmit>,
        /// Transmitters that are listened to, in shadow unless `mode: enforce`.
        pub receive: Vec<Receive>,
    }
}

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Transmit {
        /// Where receivers reach this gateway, without a path: the issuer of its events. Their description
        /// stands at `{issuer}/.well-known/ssf-configuration`. Example: `https://shop.example.com`
        pub issuer: String,
        /// Where the PEM private key is that signs them (PKCS #8; P-256 signs ES256, RSA signs RS256):
        /// `${file:/path}` or `${env:NAME}`. Example: `${file:/etc/gaitway/signals.key}`
        pub key: String,
        /// Who is told.
        pub receivers: Vec<SignalReceiver>,
    }
}

settings! {
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct SignalReceiver {
        /// Name of the stream: letters, digits, `-` and `_`. Example: `login`
        pub name: String,
        /// The `aud` of its events, as the receiver expects it. Example: `https://login.example.com`
        pub audience: String,
        /// Address to which each event is posted (RFC 8935). Absent: the receiver fetches them from
        /// `{issuer}/_gaitway/signals/poll/{name}` (RFC 8936). Example: `https://login.example.com/ssf/events`
        pub push_url: Option<String>,
        /// Where the bearer token is that is shown with a push, or that the receiver shows when it polls:
        /// `${file:/path}` or `${env:NAME}`. Example: `${file:/etc/gaitway/signals.bearer}`
        pub bearer: String,
        /// PEM file with a private authority's certificate, the only one to trust the receiver by.
        /// Example: `/etc/gaitway/login-ca.pem`
        pub ca: Option<PathBuf>,
        /// Send a verification event at every start.
        pub verify: bool,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Receive {
        /// The transmitter's issuer, the `iss` of its events. Example: `https://login.example.com`
        pub issuer: String,
        /// JWKS address of its keys. Example: `https://login.example.com/.well-known/jwks.json`
        pub jwks_url: String,
        /// The `aud` its events must carry. Example: `https://shop.example.com`
        pub audience: String,
        /// Whether its events end sessions (`enforce`) or are only recorded (`shadow`).
        pub mode: SignalMode,
        /// Issuers of tokens whose people it may speak of; empty: its own alone.
        /// Example: `[https://login.example.com]`
        pub subject_issuers: Vec<String>,
        /// Where the bearer token is that it must show when it posts to `/_gaitway/signals/events`: `${file:/path}`
        /// or `${env:NAME}`. Absent: its signature is enough. Example: `${file:/etc/gaitway/push.bearer}`
        pub push_bearer: Option<String>,
        /// Where its events are fetched (RFC 8936). Absent: they are not.
        /// Example: `https://login.example.com/ssf/poll`
        pub poll_url: Option<String>,
        /// Where the bearer token for that is. Example: `${file:/etc/gaitway/poll.bearer}`
        pub poll_bearer: Option<String>,
        /// How often they are fetched.
        pub poll_seconds: u64,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SignalMode {
    Shadow,
    Enforce,
}
choices!(SignalMode: "shadow", "enforce");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MailEncryption {
    None,
    Starttls,
    Tls,
}
choices!(MailEncryption: "none", "starttls", "tls");

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Ops {
        /// Operators' page, API and metrics; keep it on loopback or a management network.
        pub listen: SocketAddr,
        /// File with the operators' password; absent: one is generated in the data directory.
        /// Example: `/etc/gaitway/ops.password`
        pub password_file: Option<PathBuf>,
        /// `/metrics` without a login.
        pub metrics_public: bool,
        /// Who gets support questions: shown on the logout page. Plain text.
        /// Example: `the help desk, extension 42`
        pub help: Option<String>,
        /// Folder with your own pages: `logout.html`, `challenge.html`, translations as `logout.de.html`.
        /// Example: `/etc/gaitway/pages`
        pub pages: Option<PathBuf>,
    }
}

settings! {
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Log {
        /// `json`, one object a line, or `text` for people.
        pub format: LogFormat,
        /// A tracing filter such as `info` or `gaitway=debug`.
        pub level: String,
        /// One line a request.
        pub access: bool,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    Text,
}
choices!(LogFormat: "json", "text");

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
            recording: Recording::default(),
            profiles: Profiles::default(),
            revocation: Revocation::default(),
            store: Store::default(),
            alerts: Alerts { mail: None, webhook: None, mails_per_hour_max: 60, ops_url: None },
            signals: Signals::default(),
            ops: Ops::default(),
            log: Log::default(),
        }
    }
}

impl Config {
    /// The settings with references to addresses followed, for the process that needs them. What is
    /// printed keeps the reference.
    pub fn with_secrets(mut self) -> Result<Config, reference::ReferenceError> {
        for address in [&mut self.revocation.redis, &mut self.store.postgres].into_iter().flatten() {
            *address = reference::resolve(address)?.into_owned();
        }
        Ok(self)
    }
}

impl Default for Proxy {
    fn default() -> Proxy {
        Proxy {
            trusted_proxies: Vec::new(),
            preserve_host: true,
            upstream_ca: None,
            country_file: None,
            h2c: false,
        }
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
            rate_buckets_max: 131_072,
            tarpits_max: 256,
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
            oidc: None,
            introspection: None,
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
            query: None,
            issuers: Vec::new(),
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

impl Default for Oidc {
    fn default() -> Oidc {
        Oidc {
            issuer: String::new(),
            client_id: String::new(),
            client_secret_file: None,
            client_secret_env: None,
            public_url: String::new(),
            scopes: vec!["openid".into()],
            login: LoginRule::Required,
            user_claim: "sub".into(),
            groups_claim: "groups".into(),
            cookie_name: "gaitway_login".into(),
            session_seconds: 12 * 3600,
            authentication_age_seconds_max: 24 * 3600,
            sessions_max: 50_000,
        }
    }
}

impl Default for Introspection {
    fn default() -> Introspection {
        Introspection {
            url: String::new(),
            client_id: String::new(),
            client_secret_file: None,
            client_secret_env: None,
            cookie: None,
            header: true,
            issuer: None,
            audience: None,
            session_claims: vec!["sid".into()],
            subject_claim: "sub".into(),
            groups_claim: "groups".into(),
            cache_seconds: 60,
            inactive_seconds: 10,
            outage: TokenOutage::ServeKnown,
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

impl Default for Recording {
    fn default() -> Recording {
        Recording {
            directory: None,
            share: 1.0,
            routes: Vec::new(),
            source: "site".into(),
            days: 30,
            bytes_max: 10 * 1024 * 1024 * 1024,
            free_bytes_min: 1024 * 1024 * 1024,
        }
    }
}

impl Default for Profiles {
    fn default() -> Profiles {
        Profiles { enabled: false, retention_days: 90, live_max: 10_000 }
    }
}

impl Profiles {
    pub fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_days) * 24 * 3600)
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
            app_logout: None,
        }
    }
}

impl Default for AppLogout {
    fn default() -> AppLogout {
        AppLogout {
            method: "POST".into(),
            path: "/logout".into(),
            headers: vec!["cookie".into(), "authorization".into()],
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

impl Default for Receive {
    fn default() -> Receive {
        Receive {
            issuer: String::new(),
            jwks_url: String::new(),
            audience: String::new(),
            mode: SignalMode::Shadow,
            subject_issuers: Vec::new(),
            push_bearer: None,
            poll_url: None,
            poll_bearer: None,
            poll_seconds: 10,
        }
    }
}

impl Default for Ops {
    fn default() -> Ops {
        Ops { listen: loopback(9000), password_file: None, metrics_public: true, help: None, pages: None }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Json, level: "info".into(), access: true }
    }
}
