//! Builds the stage: the shop, the mail server and the real gateway before it, each on loopback.
//!
//! Everything lives in one temporary folder and ends with the `Stage`. Must not know: who visits.

use crate::child::Child;
use crate::mailbox::Mailbox;
use crate::shop;
use anyhow::Context;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// A debug build on a busy machine needs a few seconds.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks whether the gateway answers.
const START_POLL: Duration = Duration::from_millis(50);
/// Longer than `DRAIN` below.
const STOP_GRACE: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(1);
/// Last lines of the gateway's log shown when it fails.
const LOG_LINES: usize = 15;

/// The shipped demo policy, which enforces.
const POLICY: &str = include_str!("../../policies/demo.yaml");

pub struct Stage {
    /// Where visitors come in.
    pub public: SocketAddr,
    /// Where the operator looks.
    pub ops: SocketAddr,
    pub password: String,
    pub mailbox: Mailbox,
    pub gateway: Child,
    folder: tempfile::TempDir,
    shop: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// What the audience would like. Another port is taken if one is in use.
pub struct Wishes {
    pub public_port: u16,
    pub ops_port: u16,
    pub redis: Option<String>,
    pub gateway: Option<PathBuf>,
}

impl Stage {
    pub async fn build(wishes: &Wishes) -> anyhow::Result<Stage> {
        let folder = tempfile::Builder::new().prefix("gaitway-demo-").tempdir()?;
        let place = |name: &str| folder.path().join(name);
        let password = shop::random_hex::<8>();
        write_secret(&place("ops-password"), &password)?;

        let key = shop::Key::read_or_create(&place("session.key"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("the shop's port")?;
        let upstream = listener.local_addr()?;
        let shop = tokio::spawn(shop::serve(listener, key));

        let mailbox = Mailbox::open(folder.path()).await?;

        let public = free(wishes.public_port, None).await?;
        let ops = free(wishes.ops_port, Some(public)).await?;
        std::fs::write(place("policy.yaml"), POLICY)?;
        let config = place("gaitway.yaml");
        let settings =
            Settings { upstream, public, ops, mail_port: mailbox.port, redis: wishes.redis.as_deref() };
        std::fs::write(&config, settings.yaml(folder.path()))?;
        let arguments = ["run".as_ref(), "--config".as_ref(), config.as_os_str()];
        let gateway = Child::start(
            &gateway_binary(wishes.gateway.as_deref())?,
            arguments,
            &place("gateway.log"),
            false,
        )?;

        let mut stage = Stage { public, ops, password, mailbox, gateway, folder, shop };
        stage.wait_until_open().await?;
        Ok(stage)
    }

    /// Ends what was started, the gateway first, so that it does not complain about a missing shop.
    pub async fn end(self) {
        self.gateway.stop(STOP_GRACE).await;
        self.mailbox.server.stop(STOP_GRACE).await;
        self.shop.abort();
    }

    /// The last lines the gateway wrote.
    pub fn gateway_log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("gateway.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    async fn wait_until_open(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let health = format!("http://{}/healthz", self.ops);
        loop {
            let healthy = http.get(&health).send().await.is_ok_and(|answer| answer.status().is_success());
            if healthy && TcpStream::connect(self.public).await.is_ok() {
                return Ok(());
            }
            tokio::select! {
                how = self.gateway.ended() => {
                    anyhow::bail!("the gateway ended at once ({how}):\n{}", self.gateway_log());
                }
                () = tokio::time::sleep(START_POLL) => {}
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "the gateway does not answer:\n{}",
                self.gateway_log()
            );
        }
    }
}

/// What the generated configuration says; everything else is the gateway's default.
struct Settings<'a> {
    upstream: SocketAddr,
    public: SocketAddr,
    ops: SocketAddr,
    mail_port: u16,
    redis: Option<&'a str>,
}

impl Settings<'_> {
    fn yaml(&self, folder: &Path) -> String {
        let Settings { upstream, public, ops, mail_port, .. } = self;
        let folder = folder.display();
        let mut yaml = format!(
            "upstream: http://{upstream}
listen: {public}
data: {folder}/data
limits:
  drain_ms: {}
identity:
  jwt:
    cookie: session
    algorithms: [HS256]
    key_file: {folder}/session.key
    issuer: demo-shop
policy:
  file: {folder}/policy.yaml
alerts:
  ops_url: http://{ops}
  mail:
    host: 127.0.0.1
    port: {mail_port}
    encryption: none
    from: gaitway@shop.example
    to: [security@shop.example]
ops:
  listen: {ops}
  password_file: {folder}/ops-password
  help: the shop's front desk
log:
  format: text
  access: false
",
            DRAIN.as_millis()
        );
        if let Some(redis) = self.redis {
            // Writing to a string does not fail.
            let _ = writeln!(yaml, "revocation:\n  redis: {redis}");
        }
        yaml
    }
}

/// The gateway's binary: where the audience says, or beside this one.
fn gateway_binary(wished: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = match wished {
        Some(path) => path.to_path_buf(),
        None => std::env::current_exe()?.with_file_name("gaitway"),
    };
    anyhow::ensure!(path.exists(), "{} is missing; run `cargo build -p gaitway` first", path.display());
    Ok(path)
}

/// `wish` if nobody uses it, else any free port. Somebody could take it in between; then the gateway
/// says so and the demo ends.
async fn free(wish: u16, taken: Option<SocketAddr>) -> anyhow::Result<SocketAddr> {
    let wished = SocketAddr::from((Ipv4Addr::LOCALHOST, wish));
    if taken != Some(wished)
        && let Ok(listener) = TcpListener::bind(wished).await
    {
        return Ok(listener.local_addr()?);
    }
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a free port")?.local_addr()?)
}

fn write_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(secret.as_bytes())?;
    Ok(())
}
