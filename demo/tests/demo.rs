//! The demo as its audience runs it: it keeps its promise, and it leaves nothing behind.
//!
//! Uses the built gateway beside the demo's binary, as `make demo` does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests state expectations")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn within_a_minute_a_bot_is_logged_out_by_mail_and_the_people_stay() {
    let output = demo(&["--seconds", "60", "--assert"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complaints}");
}

#[test]
fn a_termination_ends_everything_and_removes_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path());
    let children = running.children();
    running.signal(Signal::SIGTERM);
    assert!(running.ended(), "the demo did not end");
    wait_until_gone(&children);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn even_when_the_demo_is_killed_nothing_it_started_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path());
    let children = running.children();
    running.signal(Signal::SIGKILL);
    assert!(running.ended(), "the demo did not end");
    wait_until_gone(&children);
}

/// A demo that has opened its doors.
struct Running(std::cell::RefCell<Child>);

impl Running {
    fn start(folder: &Path) -> Running {
        let mut child = demo(&["--plain", "--port", "0", "--ops-port", "0", "--people", "1", "--bots", "0"])
            .env("TMPDIR", folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The heading comes once the gateway answers.
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        assert!(first.starts_with("shop"), "{first:?}");
        std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
        Running(child.into())
    }

    /// Process ids and start times of what it started: the gateway and the mail server.
    fn children(&self) -> Vec<(u32, String)> {
        let parent = self.0.borrow().id().to_string();
        let children: Vec<(u32, String)> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter_map(|id: u32| {
                let fields = stat(id)?;
                (fields[1] == parent).then(|| (id, fields[19].clone()))
            })
            .collect();
        assert_eq!(children.len(), 2, "gateway and mail server: {children:?}");
        children
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.0.borrow().id()).unwrap();
        kill(Pid::from_raw(id), signal).unwrap();
    }

    fn ended(&self) -> bool {
        eventually(|| self.0.borrow_mut().try_wait().unwrap().is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.borrow_mut().kill();
        let _ = self.0.borrow_mut().wait();
    }
}

fn wait_until_gone(children: &[(u32, String)]) {
    for (id, started) in children {
        // The same number with another start time is another process; a zombie has ended.
        let gone = || stat(*id).is_none_or(|fields| fields[19] != *started || fields[0] == "Z");
        assert!(eventually(gone), "process {id} lives on");
    }
}

/// Fields of /proc/ID/stat from the state on: 0 is the state, 1 the parent, 19 the start time.
fn stat(id: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split(' ').map(String::from).collect())
}

fn eventually(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    condition()
}

fn demo(arguments: &[&str]) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_gaitway-demo"));
    // `cargo test --workspace` has built it; a test of this package alone has not.
    if !binary.with_file_name("gaitway").exists() {
        let built = Command::new(env!("CARGO")).args(["build", "--locked", "--package", "gaitway"]).status();
        assert!(built.unwrap().success());
    }
    let mut command = Command::new(binary);
    command.args(arguments);
    command
}
