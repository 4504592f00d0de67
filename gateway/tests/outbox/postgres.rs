//! A real PostgreSQL server in a temporary directory, reached through its Unix socket, gone on drop.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Postgres {
    server: Child,
    directory: TempDir,
    bin: PathBuf,
}

impl Postgres {
    pub fn start() -> Postgres {
        let bin = bin();
        let directory = tempfile::tempdir().unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(directory.path()));
        }
        let data = directory.path().join("data");
        run(unprivileged(&bin.join("initdb"))
            .args(["--auth=trust", "--username=gaitway", "--no-sync", "-E", "UTF8", "-D"])
            .arg(&data));
        let server = unprivileged(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(directory.path())
            .args(["-c", "listen_addresses="])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let postgres = Postgres { server, directory, bin };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !postgres.client("pg_isready").status().unwrap().success() {
            assert!(Instant::now() < deadline, "PostgreSQL did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        postgres
    }

    /// The address of a new, empty database.
    pub fn database(&self, name: &str) -> String {
        run(self.client("createdb").arg(name));
        format!("postgres://gaitway@localhost/{name}?host={}", self.directory.path().display())
    }

    /// Takes every connection away, as a restart of the server would.
    pub fn disconnect_all(&self) {
        run(self.client("psql").args(["-q", "-d", "postgres", "-c"]).arg(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
        ));
    }

    /// It takes connections and answers nobody.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// To the server and to the processes that serve its connections, which are in groups of their own.
    fn signal(&self, name: &str) {
        let server = self.server.id();
        let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
        let children = children.unwrap_or_default();
        let all = format!("{server} {children}");
        // One that has ended meanwhile needs no signal.
        let mut kill = Command::new("kill");
        kill.args(["-s", name]).args(all.split_whitespace()).stderr(Stdio::null());
        let _ = kill.status();
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.arg("-h").arg(self.directory.path()).args(["-U", "gaitway"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.thaw();
        // SIGQUIT stops the server and all its processes at once; SIGKILL would leave some of them.
        let _ = Command::new("kill").args(["-QUIT", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
    }
}

fn bin() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.retain(|bin| bin.join("initdb").exists());
    versions.sort();
    versions.pop().expect("PostgreSQL's programs are missing: install the package postgresql")
}

/// PostgreSQL refuses to run as root.
fn unprivileged(program: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // Its own group, so that Ctrl-C reaches the test first, which then stops it in order.
    command.process_group(0).current_dir("/");
    command
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
