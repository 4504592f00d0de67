//! kill -9 between any two steps: nothing that was recorded is lost, and a mail may at worst be
//! repeated.
//!
//! The test runs itself again as a child process, which carries incidents out until it reaches the
//! named moment and stands still there; then it is killed.

use crate::incidents::{logout, until};
use crate::smtp::SmtpServer;
use crate::stand_ins::Switch;
use async_trait::async_trait;
use gaitway::alert::{AlertError, AlertSink, MailSink};
use gaitway::clock;
use gaitway::config::{Alerts, Mail, MailEncryption};
use gaitway::outbox::{Outbox, OutboxLimits};
use gaitway::revocation::Revocations;
use gaitway::store::{SqliteStore, StepState, Store};
use gaitway_policies::Incident;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const CHILD: &str = "crash::child";
const STOP_AT: &str = "GAITWAY_TEST_STOP_AT";
const FILE: &str = "GAITWAY_TEST_FILE";
const PORT: &str = "GAITWAY_TEST_PORT";

#[tokio::test]
async fn killed_at_any_step_nothing_is_lost() {
    for stop_at in [
        "after record G-001",
        "before mark revoke",
        "after mark revoke",
        "before mail",
        "after mail",
        "before mark mail",
        "after mark mail",
    ] {
        let server = SmtpServer::start();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("store.sqlite");
        let mut child = start_child(&file, server.port, stop_at);
        wait_for(&mut child, |line| line == stop_at);
        kill(child);

        let board = recover(&file, server.port).await;
        assert!(
            board.check(&logout(1, clock::now()).identity, clock::now()).is_some(),
            "{stop_at}: not revoked"
        );
        until("mailed", async || !server.messages().is_empty()).await;
        let messages = server.messages();
        assert!(messages.len() <= 2, "{stop_at}: {} mails", messages.len());
        for message in messages {
            assert_eq!(message.header("Message-ID"), "<incident-G-001@example.com>");
        }
    }
}

#[tokio::test]
async fn killed_at_any_moment_every_recorded_incident_is_carried_out_and_told() {
    for recorded in [1, 7, 30, 90] {
        let server = SmtpServer::start();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("store.sqlite");
        let mut child = start_child(&file, server.port, "never");
        let mut seen = Vec::new();
        wait_for(&mut child, |line| {
            seen.extend(line.strip_prefix("after record ").map(str::to_string));
            seen.len() >= recorded
        });
        kill(child);

        let board = recover(&file, server.port).await;
        until("mailed", async || mails(&server).len() >= seen.len()).await;
        let mails = mails(&server);
        for id in seen {
            let number: u8 = id.trim_start_matches("G-").parse().unwrap();
            let incident = logout(number, clock::now());
            assert!(board.check(&incident.identity, clock::now()).is_some(), "{id} is not in force");
            let copies = mails.get(&format!("<incident-{id}@example.com>")).copied().unwrap_or(0);
            assert!((1..=2).contains(&copies), "{id}: {copies} mails");
        }
    }
}

fn mails(server: &SmtpServer) -> BTreeMap<String, usize> {
    let mut mails = BTreeMap::new();
    for message in server.messages() {
        *mails.entry(message.header("Message-ID").to_string()).or_default() += 1;
    }
    mails
}

/// What the next process does: board from the store, outbox, until all is done.
async fn recover(file: &Path, port: u16) -> Arc<Revocations> {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(file).await.unwrap());
    let active = store.active_revocations(clock::now()).await.unwrap();
    let board = Revocations::start(&gaitway::config::Revocation::default(), active).await.unwrap();
    let outbox =
        Outbox::start(store.clone(), board.clone(), vec![Arc::new(mail(port))], OutboxLimits::default())
            .await;
    outbox.drain(Duration::from_secs(30)).await;
    assert_eq!(store.pending().await.unwrap(), 0);
    let rows = store
        .incidents(&gaitway::store::IncidentFilter { limit: 1_000, ..Default::default() })
        .await
        .unwrap();
    assert!(rows.iter().flat_map(|row| &row.steps).all(|step| step.state == StepState::Done));
    board
}

fn start_child(file: &Path, port: u16, stop_at: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--nocapture", "--test-threads=1"])
        .env(FILE, file)
        .env(PORT, port.to_string())
        .env(STOP_AT, stop_at)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for(child: &mut Child, mut is_it: impl FnMut(&str) -> bool) {
    for line in BufReader::new(child.stdout.as_mut().unwrap()).lines() {
        if is_it(&line.unwrap()) {
            return;
        }
    }
    panic!("the child ended before the moment came");
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Not a test by itself: does nothing unless one of the tests above starts it.
#[tokio::test]
async fn child() {
    let Ok(stop_at) = std::env::var(STOP_AT) else { return };
    let file = PathBuf::from(std::env::var(FILE).unwrap());
    let port = std::env::var(PORT).unwrap().parse().unwrap();
    let count = if stop_at == "never" { 100 } else { 1 };
    let watch = move |moment: &str| {
        println!("{moment}");
        moment == stop_at
    };
    let store = Switch::watched(Arc::new(SqliteStore::open(&file).await.unwrap()), watch.clone());
    let board = Revocations::start(&gaitway::config::Revocation::default(), Vec::new()).await.unwrap();
    let sink = Arc::new(WatchedMail { mail: mail(port), watch: Box::new(watch) });
    let outbox = Outbox::start(store, board, vec![sink], OutboxLimits::default()).await;
    for number in 1..=count {
        outbox.submit(logout(number, clock::now())).await;
    }
    std::future::pending::<()>().await;
}

fn mail(port: u16) -> MailSink {
    let mail = Mail {
        host: "127.0.0.1".into(),
        port,
        encryption: MailEncryption::None,
        from: "gaitway@example.com".into(),
        to: vec!["security@example.com".into()],
        ..Mail::default()
    };
    MailSink::new(&mail, &Alerts { mails_per_hour_max: 0, ..Alerts::default() }).unwrap()
}

struct WatchedMail {
    mail: MailSink,
    watch: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

#[async_trait]
impl AlertSink for WatchedMail {
    fn name(&self) -> &'static str {
        self.mail.name()
    }

    fn wants(&self, incident: &Incident) -> bool {
        self.mail.wants(incident)
    }

    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError> {
        if (self.watch)("before mail") {
            std::future::pending::<()>().await;
        }
        self.mail.deliver(incident).await?;
        if (self.watch)("after mail") {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}
