//! A real SMTP server on a free loopback port (Debian's python3-aiosmtpd), and the mails it takes.
//!
//! Must not know: who writes, and what about.

use crate::child::Child;
use anyhow::Context;
use serde::Deserialize;
use std::path::Path;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;

/// Mails not yet shown; the demo shows them at once, so a few are plenty.
const MAILS_MAX: usize = 64;
const SINK: &str = include_str!("../assets/mail_sink.py");

#[derive(Clone, Debug, Deserialize)]
pub struct Mail {
    pub to: String,
    pub subject: String,
    pub text: String,
}

pub struct Mailbox {
    pub port: u16,
    /// Mails in order of arrival.
    pub mails: mpsc::Receiver<Mail>,
    pub server: Child,
}

impl Mailbox {
    /// Starts the server; its own messages go to a file in `folder`.
    pub async fn open(folder: &Path) -> anyhow::Result<Mailbox> {
        #[derive(Deserialize)]
        struct Opened {
            port: u16,
        }
        let log = folder.join("mail.log");
        // Debian's own Python has the module; a newer Python in front of it on the path may not.
        let mut server =
            Child::start(Path::new("/usr/bin/python3"), ["-u", "-c", SINK, "127.0.0.1", "0"], &log, true)?;
        let output = server.take_stdout().context("the mail server has no output")?;
        let mut lines = BufReader::new(output).lines();
        let first = lines.next_line().await?.with_context(|| {
            format!(
                "the mail server did not start; is python3-aiosmtpd installed (make setup)?\n{}",
                std::fs::read_to_string(&log).unwrap_or_default()
            )
        })?;
        let Opened { port } = serde_json::from_str(&first).context("the mail server's first line")?;

        let (sender, mails) = mpsc::channel(MAILS_MAX);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(mail) = serde_json::from_str::<Mail>(&line) else { continue };
                if sender.send(mail).await.is_err() {
                    return;
                }
            }
        });
        Ok(Mailbox { port, mails, server })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Sends `line` and waits for an answer that begins with `code`.
    async fn say(stream: &mut TcpStream, line: &str, code: &str) {
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut answer = vec![0; 1024];
        let length = tokio::time::timeout(DEADLINE, stream.read(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with(code), "{line:?} was answered {answer:?}");
    }

    #[tokio::test]
    async fn a_mail_sent_by_smtp_arrives_and_the_server_ends_with_the_mailbox() {
        let folder = tempfile::tempdir().unwrap();
        let mut mailbox = Mailbox::open(folder.path()).await.unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", mailbox.port)).await.unwrap();
        say(&mut stream, "", "220").await;
        say(&mut stream, "HELO gaitway.example\r\n", "250").await;
        say(&mut stream, "MAIL FROM:<gaitway@shop.example>\r\n", "250").await;
        say(&mut stream, "RCPT TO:<security@shop.example>\r\n", "250").await;
        say(&mut stream, "DATA\r\n", "354").await;
        say(&mut stream, "Subject: =?utf-8?q?Session_ended_=E2=80=93_G7?=\r\n\r\nWhy\r\n.\r\n", "250").await;
        let mail = tokio::time::timeout(DEADLINE, mailbox.mails.recv()).await.unwrap().unwrap();
        assert_eq!(mail.to, "security@shop.example");
        assert_eq!(mail.subject, "Session ended \u{2013} G7");
        assert_eq!(mail.text.trim(), "Why");

        drop(mailbox);
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the server outlives its mailbox");
    }
}
