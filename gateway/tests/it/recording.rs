//! What the gateway writes down: readable by the commands it is meant for, whatever happens to the
//! process or the disk, and never more than it may.

use crate::app::App;
use crate::gateway::{Gateway, eventually};
use crate::revocation::{Operator, Person, settings};
use futures_util::SinkExt;
use gaitway_models::dataset::{self, IndexRow, Label};
use gaitway_models::sim::Visitor;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("recorded")
    }

    /// Settings of a gateway that records here and knows people by their tokens.
    fn settings(&self, more: &str) -> String {
        let recording = format!("recording:\n  directory: {}\n  free_bytes_min: 0\n", self.path().display());
        settings(self.0.path(), &format!("{recording}{more}"))
    }

    fn index(&self) -> Vec<IndexRow> {
        let text = std::fs::read_to_string(self.path().join("index.csv")).unwrap_or_default();
        if text.is_empty() { Vec::new() } else { dataset::parse_index(&text).unwrap() }
    }

    /// Everything that was written, file by file.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut files, mut folders) = (Vec::new(), vec![self.path()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push((path.clone(), std::fs::read(path).unwrap()));
                }
            }
        }
        files
    }

    fn has(&self, ending: &str) -> bool {
        let long_enough =
            |path: &Path, bytes: &[u8]| path.to_string_lossy().ends_with(ending) && bytes.len() > 100;
        self.path().exists() && self.files().iter().any(|(path, bytes)| long_enough(path, bytes))
    }
}

/// A person who reads a page and moves the mouse for some seconds.
pub async fn visit(gateway: &Gateway, name: &str, batches: usize) -> Person {
    let person = Person::log_in(name);
    person.page(gateway).await;
    let mut socket = person.telemetry(gateway).await;
    let mut hand = Visitor::person(7);
    for _ in 0..batches {
        if socket.send(Message::binary(hand.next_batch(2.0).encode())).await.is_err() {
            // Logged out in the middle of it.
            break;
        }
    }
    eventually("the batches were taken", async || {
        gateway.metric("gaitway_telemetry_batches_total", "").await >= batches as f64
    })
    .await;
    person
}

pub fn gaitway(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_gaitway")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_session_can_be_back_tested_and_learnt_from_and_names_nobody() {
    let (app, folder) = (App::start().await, Folder::new());
    let mut gateway = Gateway::start(&app.url(), &folder.settings(""));
    visit(&gateway, "alice", 6).await;
    gateway.signal("TERM");
    assert!(gateway.wait());

    let rows = folder.index();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let row = &rows[0];
    assert!(row.session.starts_with("s_") && row.user.starts_with("u_"), "{row:?}");
    assert_eq!((row.label, row.marks.operator), (Label::Unknown, Label::Unknown));
    let batches = dataset::parse_batches(&std::fs::read(folder.path().join(&row.file)).unwrap()).unwrap();
    let mut hand = Visitor::person(7);
    let sent: Vec<_> = (0..6).map(|_| hand.next_batch(2.0)).collect();
    assert_eq!(batches, sent, "every batch, in order, as it came");

    let policy = folder.0.path().join("strict.yaml");
    let rule = "rules:\n  - {name: any, when: evidence.events > 50, action: logout, reason: 'events {evidence.events}'}\n";
    std::fs::write(&policy, rule).unwrap();
    let sessions = folder.path();
    let report =
        gaitway(&["policy", "backtest", policy.to_str().unwrap(), "--sessions", sessions.to_str().unwrap()]);
    assert!(report.contains("would shut out 1 of 1 sessions (1 of 1 users"), "{report}");

    for (path, bytes) in folder.files() {
        let text = String::from_utf8_lossy(&bytes);
        for secret in ["127.0.0.1", "alice", "/page", "/json"] {
            assert!(!text.contains(secret), "{secret} in {}:\n{text}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_leaves_readable_files_and_the_next_one_completes_them() {
    let (app, folder) = (App::start().await, Folder::new());
    {
        // Dropped at the end of the block, which kills it as hard as can be.
        let gateway = Gateway::start(&app.url(), &folder.settings(""));
        visit(&gateway, "alice", 5).await;
        eventually("something was written", async || folder.has(".gwt") && folder.has(".jsonl")).await;
    }
    assert_eq!(folder.index(), []);
    // As if the machine had died half-way through a write.
    for (path, _) in folder.files() {
        if path.extension().is_some_and(|ending| ending == "gwt" || ending == "jsonl") {
            let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
            std::io::Write::write_all(&mut file, b"\x7f{\"session\":\"s_01").unwrap();
        }
    }
    let mut gateway = Gateway::start(&app.url(), &folder.settings(""));
    let rows = folder.index();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].note, "cut off");
    assert!(rows[0].user.starts_with("u_"));
    let file = std::fs::read(folder.path().join(&rows[0].file)).unwrap();
    assert!(!dataset::parse_batches(&file).unwrap().is_empty());
    // The same day goes on in the same files.
    visit(&gateway, "bob", 3).await;
    gateway.signal("TERM");
    assert!(gateway.wait());
    assert_eq!(folder.index().len(), 2);
    let policy = folder.0.path().join("none.yaml");
    std::fs::write(&policy, "rules: []\n").unwrap();
    let sessions = folder.path();
    let report =
        gaitway(&["policy", "backtest", policy.to_str().unwrap(), "--sessions", sessions.to_str().unwrap()]);
    assert!(report.contains("of 2 sessions (0 of 2 users"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_recording_loudly_and_nothing_else() {
    let (app, folder) = (App::start().await, Folder::new());
    std::fs::create_dir(folder.path()).unwrap();
    // The device that is always full, in the place of today's and of tomorrow's file.
    let today = jiff_day(0);
    for day in [today.clone(), jiff_day(1)] {
        std::os::unix::fs::symlink("/dev/full", folder.path().join(format!("sessions-{day}.jsonl"))).unwrap();
    }
    let mut gateway = Gateway::start(&app.url(), &folder.settings(""));
    let alice = visit(&gateway, "alice", 4).await;
    eventually("recording stopped", async || gateway.metric("gaitway_recording_stopped", "").await == 1.0)
        .await;
    gateway.log_line(
        "nothing is recorded any more; traffic goes on, and recording is tried again from time to time",
    );
    for _ in 0..20 {
        assert!(!alice.is_refused(&gateway).await);
    }
    gateway.signal("TERM");
    assert!(gateway.wait());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_other_things_need_is_left_alone() {
    let (app, folder) = (App::start().await, Folder::new());
    let more = folder.settings("").replace("free_bytes_min: 0", "free_bytes_min: 9000000000000000000");
    let mut gateway = Gateway::start(&app.url(), &more);
    visit(&gateway, "alice", 2).await;
    eventually("recording stopped", async || gateway.metric("gaitway_recording_stopped", "").await == 1.0)
        .await;
    let line = gateway.log_line(
        "nothing is recorded any more; traffic goes on, and recording is tried again from time to time",
    );
    assert!(line["error"].as_str().unwrap().contains("recording.free_bytes_min"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_pardoned_is_recorded_as_a_person_during_the_session_and_after() {
    let (app, folder) = (App::start().await, Folder::new());
    let policy = folder.0.path().join("policy.yaml");
    let rule = "rules:\n  - {name: any, when: evidence.events > 10, action: logout, reason: 'a test'}\n";
    std::fs::write(&policy, rule).unwrap();
    let more = format!("limits:\n  session_idle_ms: 1500\npolicy:\n  file: {}\n", policy.display());
    let mut gateway = Gateway::start(&app.url(), &folder.settings(&more));
    let alice = visit(&gateway, "alice", 3).await;
    let session = Operator::only_session(&gateway).await;
    eventually("the session was closed and recorded", async || !folder.index().is_empty()).await;
    assert_eq!(folder.index()[0].marks.operator, Label::Unknown);
    assert_eq!(Operator::post(&gateway, &format!("/sessions/{session}/pardon")).await, 200);
    eventually("the pardon is in the index", async || folder.index()[0].marks.operator == Label::Human).await;
    // A pardon while the session lives is in its row from the start.
    drop(alice);
    visit(&gateway, "bob", 6).await;
    let session = Operator::only_session(&gateway).await;
    assert_eq!(Operator::post(&gateway, &format!("/sessions/{session}/pardon")).await, 200);
    gateway.signal("TERM");
    assert!(gateway.wait());
    let labels: Vec<Label> = folder.index().iter().map(|row| row.marks.operator).collect();
    assert_eq!(labels, [Label::Human, Label::Human]);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_days_are_deleted_with_their_rows() {
    let (app, folder) = (App::start().await, Folder::new());
    {
        let mut gateway = Gateway::start(&app.url(), &folder.settings(""));
        visit(&gateway, "alice", 3).await;
        gateway.signal("TERM");
        assert!(gateway.wait());
    }
    // What was written today was written forty days ago.
    let (today, long_ago) = (jiff_day(0), jiff_day(-40));
    let rename =
        |from: String, to: String| std::fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
    rename(format!("sessions-{today}.jsonl"), format!("sessions-{long_ago}.jsonl"));
    rename(format!("telemetry/{today}"), format!("telemetry/{long_ago}"));
    let index = folder.path().join("index.csv");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace(&today, &long_ago)).unwrap();
    let _gateway = Gateway::start(&app.url(), &folder.settings(""));
    assert_eq!(folder.index(), []);
    assert!(!folder.has(".gwt") && !folder.has(".jsonl"), "{:?}", folder.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_do_not_write_into_one_folder() {
    let (app, folder) = (App::start().await, Folder::new());
    let _first = Gateway::start(&app.url(), &folder.settings(""));
    let file = folder.0.path().join("second.yaml");
    std::fs::write(
        &file,
        format!(
            "upstream: {}\nlisten: 127.0.0.1:0\ndata: {}\n{}",
            app.url(),
            folder.0.path().join("data2").display(),
            folder.settings("")
        ),
    )
    .unwrap();
    let second =
        Command::new(env!("CARGO_BIN_EXE_gaitway")).args(["run", "--config"]).arg(file).output().unwrap();
    assert!(!second.status.success());
    let complaint = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        complaint.contains("recording.directory") && complaint.contains("another gateway"),
        "{complaint}"
    );
}

/// The day in UTC, so many days from now.
fn jiff_day(days: i64) -> String {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    now.date().checked_add(jiff::Span::new().days(days)).unwrap().to_string()
}
