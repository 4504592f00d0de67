//! The gateway under test: the real binary, configured by a file, killed when dropped.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test gives up. Generous: it is never waited out on success.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct Gateway {
    child: Child,
    pub address: SocketAddr,
    pub ops: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    _directory: TempDir,
}

impl Gateway {
    /// Starts a gateway before `upstream`; `extra` is appended to its configuration file.
    pub fn start(upstream: &str, extra: &str) -> Gateway {
        Gateway::start_with(upstream, extra, &[])
    }

    pub fn start_with(upstream: &str, extra: &str, environment: &[(&str, &str)]) -> Gateway {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        Gateway::spawn(upstream, extra, environment, data, directory)
    }

    /// With a data directory that outlives the gateway.
    pub fn start_in(upstream: &str, extra: &str, data: &Path) -> Gateway {
        Gateway::spawn(upstream, extra, &[], data.to_owned(), tempfile::tempdir().unwrap())
    }

    fn spawn(
        upstream: &str,
        extra: &str,
        environment: &[(&str, &str)],
        data: PathBuf,
        directory: TempDir,
    ) -> Gateway {
        let file = directory.path().join("gaitway.yaml");
        let has = |section: &str| extra.lines().any(|line| line.starts_with(section));
        let listen = if has("listen:") { "" } else { "listen: 127.0.0.1:0\n" };
        let ops = if has("ops:") { "" } else { "ops:\n  listen: 127.0.0.1:0\n" };
        let data = if has("data:") { String::new() } else { format!("data: {}\n", data.display()) };
        std::fs::write(&file, format!("upstream: {upstream}\n{listen}{data}{ops}{extra}\n")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gaitway"));
        command.args(["run", "--config"]).arg(&file).stderr(Stdio::piped()).stdout(Stdio::null());
        command.envs(environment.iter().copied());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = child.stderr.take().unwrap();
        let sink = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        let mut gateway = Gateway {
            child,
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            ops: SocketAddr::from(([0, 0, 0, 0], 0)),
            log,
            _directory: directory,
        };
        let ready = gateway.log_line("Gaitway is ready");
        gateway.address = ready["listen"].as_str().unwrap().parse().unwrap();
        gateway.ops = ready["ops"].as_str().unwrap().parse().unwrap();
        gateway
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first log line whose message is `message`, waited for.
    pub fn log_line(&mut self, message: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = self.log.lock().unwrap().iter().find_map(|line| {
                let value: Value = serde_json::from_str(line).ok()?;
                (value["message"] == message).then_some(value)
            });
            if let Some(found) = found {
                return found;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no {message:?} in the log ({ended:?}):\n{}",
                self.log_text()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log_text(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Sum of a metric over the labels that contain `label`.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let url = format!("http://{}/metrics", self.ops);
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits for the process to end by itself; true if it ended cleanly.
    pub fn wait(&mut self) -> bool {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < deadline, "the gateway does not end:\n{}", self.log_text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends raw bytes on a new connection and reads until the gateway closes or `until` appears.
    pub fn raw(&self, request: &[u8], until: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        read_until(&mut stream, until)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the gateway\n{}", self.log_text());
        }
    }
}

pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Everything the peer sends until it closes or the text contains `until` (if not empty).
pub fn read_until(stream: &mut TcpStream, until: &str) -> String {
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&received)),
        }
        if !until.is_empty() && String::from_utf8_lossy(&received).contains(until) {
            break;
        }
    }
    String::from_utf8_lossy(&received).into_owned()
}

/// Polls until `condition` holds.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within the deadline: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Resident memory of a process in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
