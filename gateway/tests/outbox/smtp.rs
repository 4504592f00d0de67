//! A real SMTP server, aiosmtpd, in a process of its own; gone on drop.

use serde::Deserialize;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

pub struct SmtpServer {
    process: Child,
    // Held open: the server ends when it closes.
    _stdin: Option<ChildStdin>,
    pub port: u16,
    messages: Arc<Mutex<Vec<Message>>>,
}

/// A message as the server took it.
#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    pub from: String,
    pub to: Vec<String>,
    pub tls: bool,
    pub login: bool,
    pub headers: Vec<(String, String)>,
    pub text: String,
    pub html: String,
    pub parts: usize,
    pub longest_line: usize,
}

impl Message {
    pub fn header(&self, name: &str) -> &str {
        let mut found = self.headers.iter().filter(|(header, _)| header.eq_ignore_ascii_case(name));
        let value = found.next().map_or("", |(_, value)| value);
        assert!(found.next().is_none(), "{name} occurs twice");
        value
    }
}

impl SmtpServer {
    pub fn start() -> SmtpServer {
        SmtpServer::start_with(&[])
    }

    /// Options of `smtp_server.py`.
    pub fn start_with(options: &[&str]) -> SmtpServer {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/smtp_server.py");
        let mut process = Command::new("/usr/bin/python3")
            .arg(script)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is missing: install the package python3-aiosmtpd");
        let stdin = process.stdin.take();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let first = lines
            .next()
            .and_then(Result::ok)
            .expect("the SMTP server did not start: install the package python3-aiosmtpd");
        let port = serde_json::from_str::<serde_json::Value>(&first).unwrap()["port"].as_u64().unwrap();
        let messages = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&messages);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let message = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                taken.lock().unwrap_or_else(PoisonError::into_inner).push(message);
            }
        });
        SmtpServer { process, _stdin: stdin, port: u16::try_from(port).unwrap(), messages }
    }

    pub fn messages(&self) -> Vec<Message> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for SmtpServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
