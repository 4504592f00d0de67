//! Processes the demo starts, and the promise that none of them outlives it.
//!
//! Each runs in a process group of its own, so that Ctrl-C reaches the demo first and the order of
//! ending is ours. A dropped child is killed with its group; if the demo itself is killed, the kernel
//! kills the child (`setpriv --pdeathsig`). Must be called from the main thread: the kernel's promise
//! is bound to the thread that started the child.

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{ChildStdout, Command};

pub struct Child {
    process: tokio::process::Child,
    group: Option<Pid>,
}

impl Child {
    /// Starts `program`; its messages go to `log`, its standard output too unless it is `piped`.
    pub fn start<S: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
        log: &Path,
        piped: bool,
    ) -> anyhow::Result<Child> {
        let log = std::fs::File::create(log).with_context(|| log.display().to_string())?;
        let setpriv = Path::new("/usr/bin/setpriv");
        let mut command = if setpriv.exists() {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        // Settings of a gateway of the user's own, left in the shell, are not meant for the demo.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"GAITWAY_"))
        {
            command.env_remove(name);
        }
        command.args(arguments).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command.stdout(if piped { Stdio::piped() } else { log.try_clone()?.into() }).stderr(log);
        let process = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let group = process.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Child { process, group })
    }

    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.process.stdout.take()
    }

    /// Waits until the process ends by itself and says how.
    pub async fn ended(&mut self) -> String {
        match self.process.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Asks the process to end, and insists after `grace`.
    pub async fn stop(mut self, grace: Duration) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(grace, self.process.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            let _ = self.process.wait().await;
        }
        self.group = None;
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // The group may be gone already, which is what we want.
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // An ended and reaped leader leaves no process id to mistake for ours.
        if self.process.id().is_some() {
            self.signal(Signal::SIGKILL);
        }
    }
}
