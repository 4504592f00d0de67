//! Real servers for the stories: Redis, SMTP and an OpenID provider, on free ports, killed when dropped.

use crate::gateway::{DEADLINE, signal};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A redis-server without persistence: killed and started again it has forgotten everything.
pub struct Redis {
    pub port: u16,
    child: Child,
    _directory: TempDir,
}

impl Redis {
    pub fn start() -> Redis {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let child = Redis::spawn(port, &directory);
        let redis = Redis { port, child, _directory: directory };
        redis.wait();
        redis
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.child = Redis::spawn(self.port, &self._directory);
        self.wait();
    }

    pub fn freeze(&self) {
        signal(self.child.id(), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.child.id(), "CONT");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Names and values of everything it holds, as far as they are text.
    pub fn dump(&self) -> String {
        let ask = |arguments: &[&str]| {
            let port = self.port.to_string();
            let output = Command::new("redis-cli").args(["-p", &port]).args(arguments).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let names = ask(&["KEYS", "*"]);
        let values: Vec<String> = names.lines().map(|name| ask(&["GET", name])).collect();
        format!("{names}\n{}", values.join("\n"))
    }

    fn spawn(port: u16, directory: &TempDir) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed (make setup)")
    }

    fn wait(&self) {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
                let mut answer = [0; 7];
                if stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("redis-server does not answer");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The way between a gateway and Redis. Cut, it stays open at both ends and carries nothing either way, as a
/// firewall that has lost its state does: nobody is told, and new connections are taken and lead nowhere.
pub struct Relay {
    port: u16,
    is_cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn before(redis: &Redis) -> Relay {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, server) = (listener.local_addr().unwrap().port(), redis.port);
        let (is_cut, cut) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut ways = JoinSet::new();
            while let Ok((here, _)) = listener.accept().await {
                let Ok(there) = tokio::net::TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let ((here_in, here_out), (there_in, there_out)) = (here.into_split(), there.into_split());
                ways.spawn(carry(here_in, there_out, cut.clone()));
                ways.spawn(carry(there_in, here_out, cut.clone()));
            }
        });
        Relay { port, is_cut, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One direction of one connection, while it is not cut.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if cut.wait_for(|is_cut| !is_cut).await.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// A real SMTP server (aiosmtpd) that tells of every message it takes.
pub struct Smtp {
    pub port: u16,
    child: Child,
    mails: Arc<Mutex<Vec<Value>>>,
}

impl Smtp {
    pub fn start() -> Smtp {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/smtp_server.py");
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .stdout(Stdio::piped())
            .stdin(Stdio::piped())
            .spawn()
            .expect("python3 is installed (make setup)");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let port = u16::try_from(first["port"].as_u64().unwrap()).unwrap();
        let mails = Arc::new(Mutex::new(Vec::new()));
        let sink = mails.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sink.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Smtp { port, child, mails }
    }

    pub fn mails(&self) -> Vec<Value> {
        self.mails.lock().unwrap().clone()
    }

    pub fn settings(&self) -> String {
        format!(
            "alerts:\n  mail:\n    host: 127.0.0.1\n    port: {}\n    encryption: none\n    from: gaitway@shop.example\n    to: [ops@shop.example]\n",
            self.port
        )
    }
}

impl Drop for Smtp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A real OpenID provider (panva's oidc-provider) that lets everybody in.
pub struct Provider {
    port: u16,
    child: Child,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Provider {
    pub fn start(options: &Value) -> Provider {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/oidc_provider.mjs");
        let mut child = Command::new("node")
            .arg(script)
            .arg(options.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .stdin(Stdio::piped())
            .spawn()
            .expect("node is installed (make setup)");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("the provider's packages are installed (make setup)").unwrap();
        let first: Value = serde_json::from_str(&first).unwrap();
        let port = u16::try_from(first["port"].as_u64().unwrap()).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = events.clone();
        std::thread::spawn(move || {
            // The library has remarks of its own between our lines.
            let told = lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok());
            told.for_each(|event| sink.lock().unwrap().push(event));
        });
        Provider { port, child, events }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// How often it told of an event.
    pub fn count(&self, event: &str) -> usize {
        self.events.lock().unwrap().iter().filter(|told| told["event"] == event).count()
    }

    /// Its own numbers of a person's sessions, in the order of their logins.
    pub fn sessions(&self, person: &str) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let logins = events.iter().filter(|told| told["event"] == "login" && told["sub"] == person);
        logins.map(|told| told["sid"].as_str().unwrap().to_owned()).collect()
    }

    /// One of the doors that only tests have.
    pub async fn door(&self, name: &str, body: &Value) -> String {
        let url = self.url(&format!("/test/{name}"));
        let answer = reqwest::Client::new().post(url).json(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{name}: {}", answer.status());
        answer.text().await.unwrap()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// It takes connections and says nothing.
    pub fn freeze(&self) {
        signal(self.child.id(), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.child.id(), "CONT");
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- events of the provider\n{:?}", self.events.lock().unwrap());
        }
    }
}
