//! Several replicas around real Redis servers that are killed, frozen, emptied and replaced.

use super::*;
use crate::clock::now;
use crate::config;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

/// A redis-server of our own, killed when dropped.
pub(super) struct Redis {
    pub(super) port: u16,
    pub(super) directory: tempfile::TempDir,
    /// Configuration file, for those that write to it.
    pub(super) file: Option<PathBuf>,
    arguments: Vec<String>,
    child: Option<Child>,
}

/// Keeps nothing over a restart.
const FORGETFUL: &[&str] = &["--save", "", "--appendonly", "no"];
/// Writes each change to disk before it answers.
pub(super) const DURABLE: &[&str] = &["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

impl Redis {
    pub(super) async fn start(arguments: &[&str]) -> Redis {
        let mut redis = Redis::stopped(arguments);
        redis.boot().await;
        redis
    }

    /// A server with a port, not running yet.
    pub(super) fn stopped(arguments: &[&str]) -> Redis {
        Redis {
            port: free_port(),
            directory: tempfile::tempdir().unwrap(),
            file: None,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            child: None,
        }
    }

    pub(super) async fn boot(&mut self) {
        self.boot_at(Ipv4Addr::LOCALHOST).await;
    }

    /// At another loopback address, where the replicas do not find it.
    async fn boot_at(&mut self, address: Ipv4Addr) {
        let child = Command::new("redis-server")
            .args(self.file.as_ref())
            .args([
                "--bind",
                &address.to_string(),
                "--port",
                &self.port.to_string(),
                "--daemonize",
                "no",
                "--dir",
            ])
            .arg(self.directory.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        self.child = Some(child);
        let is_tls = self.arguments.iter().any(|argument| argument == "--tls-port");
        until("redis-server answers", || answers((address, self.port), is_tls)).await;
    }

    /// As by a power cut.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn config(&self) -> config::Revocation {
        config::Revocation { redis: Some(self.address()), ..config::Revocation::default() }
    }

    async fn replica(&self) -> Arc<Revocations> {
        self.replica_knowing(Vec::new()).await
    }

    async fn replica_knowing(&self, initial: Vec<Revocation>) -> Arc<Revocations> {
        Revocations::start(&self.config(), initial).await.unwrap()
    }

    /// Somebody else at the same Redis.
    async fn client(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.address()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a server is up and has loaded its data. Of one with TLS we see only that it listens.
fn answers(address: (Ipv4Addr, u16), is_tls: bool) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    if is_tls {
        return true;
    }
    let mut reply = [0; 5];
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut reply).is_ok() && &reply == b"+PONG"
}

/// A port that is free, and so is the one 10,000 above, where a Cluster node talks to others. Both lie
/// below the range from which the system serves everybody else.
fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    loop {
        let port = rand::Rng::random_range(&mut rand::rng(), 10_001..22_000);
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn session(n: u32) -> SessionId {
    let mut bytes = [7; 16];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    bytes[8] = n.to_le_bytes()[0];
    SessionId(bytes)
}

fn visitor(n: u32) -> Identity {
    Identity {
        session: session(n),
        subject: Some(SubjectId(session(n / 10).0)),
        token: Some(TokenId(session(n).0)),
        expires_at: None,
        issued_at: Some(now()),
        groups: Vec::new(),
    }
}

fn revocation(scope: Scope) -> Revocation {
    let now = now();
    Revocation { scope, incident: "G-1".into(), decided_at: now, until: now.plus(Duration::from_secs(600)) }
}

pub(super) fn of_session(n: u32) -> Revocation {
    revocation(Scope::Session(session(n)))
}

pub(super) fn is_refused(replica: &Revocations, n: u32) -> bool {
    replica.check(&visitor(n), now()).is_some()
}

pub(super) async fn until_refused(replica: &Revocations, n: u32) {
    until(&format!("visitor {n} is refused"), || is_refused(replica, n)).await;
}

pub(super) async fn until_connected(replica: &Revocations, connected: bool) {
    until(&format!("connected: {connected}"), || replica.health().connected == connected).await;
}

#[tokio::test]
async fn a_single_process_needs_no_redis() {
    let known = of_session(1);
    let board = Revocations::start(&config::Revocation::default(), vec![known.clone()]).await.unwrap();
    assert_eq!(board.check(&visitor(1), now()), Some(Refusal { incident: "G-1".into(), until: known.until }));
    assert!(!is_refused(&board, 2));
    board.revoke(of_session(2)).await.unwrap();
    assert!(is_refused(&board, 2));
    assert_eq!(board.active(10).len(), 2);
    board.pardon(Scope::Session(session(2)), now().plus(Duration::from_secs(60))).await.unwrap();
    assert!(!is_refused(&board, 2));
    assert_eq!(board.active(10), [known]);
    let health = board.health();
    assert_eq!((health.backend, health.connected, health.entries, health.queued), ("embedded", true, 1, 0));
}

#[tokio::test]
async fn a_pardon_from_before_the_restart_outweighs_late_copies_of_what_it_answered() {
    let late = of_session(1);
    let scope = Scope::Session(session(1));
    // What it announced to exempt is over long since.
    let pardon = Pardon { scope, decided_at: late.decided_at, until: late.decided_at };
    let config = config::Revocation::default();
    let board = Revocations::start_with(&config, Vec::new(), vec![pardon]).await.unwrap();
    board.revoke(late.clone()).await.unwrap();
    assert!(!is_refused(&board, 1));
    let after = late.decided_at.plus(Duration::from_millis(1));
    assert!(board.is_pardoned_since(&scope, late.decided_at));
    assert!(!board.is_pardoned_since(&scope, after));
    assert!(!board.is_pardoned_since(&Scope::Session(session(2)), Timestamp(0)));
    board.revoke(Revocation { decided_at: after, ..late.clone() }).await.unwrap();
    assert!(is_refused(&board, 1), "what was decided since counts");
    assert!(board.is_pardoned_since(&scope, late.decided_at), "as it followed a pardon");
    // One that is older than anything that is tried again is let go.
    let old = Pardon { scope, decided_at: crate::clock::ago(PARDON_KEPT), until: late.decided_at };
    let board = Revocations::start_with(&config, Vec::new(), vec![old]).await.unwrap();
    assert!(!board.is_pardoned_since(&scope, Timestamp(0)));
}

#[tokio::test]
async fn a_short_measure_after_a_pardon_forgets_no_pardon() {
    let late = of_session(1);
    let scope = Scope::Session(session(1));
    let pardon = Pardon { scope, decided_at: late.decided_at, until: late.decided_at };
    let config = config::Revocation::default();
    let after = late.decided_at.plus(Duration::from_millis(1));
    let short =
        || Revocation { decided_at: after, until: now().plus(Duration::from_secs(60)), ..late.clone() };
    let over = |revocation: &Revocation| revocation.until.plus(Duration::from_millis(1));
    // Decided before a restart, and since.
    let before = short();
    let board = Revocations::start_with(&config, vec![before.clone()], vec![pardon.clone()]).await.unwrap();
    board.board.sweep(over(&before));
    assert!(board.is_pardoned_since(&scope, late.decided_at));
    let board = Revocations::start_with(&config, Vec::new(), vec![pardon]).await.unwrap();
    let since = short();
    board.revoke(since.clone()).await.unwrap();
    assert!(is_refused(&board, 1));
    board.board.sweep(over(&since));
    assert!(board.is_pardoned_since(&scope, late.decided_at));
    board.revoke(late).await.unwrap();
    assert_eq!(board.check(&visitor(1), over(&since)), None, "a late copy is in force");
    assert!(!board.is_pardoned_since(&scope, after.plus(Duration::from_millis(1))));
    // Nor does a copy that comes when it is over tell anybody that a session has ended.
    let other = Board::new(10);
    let mut changes = other.subscribe();
    let record = board.board.get(&Key::of(&scope)).unwrap();
    other.apply(Key::of(&scope), record, over(&since));
    assert!(changes.try_recv().is_err());
    assert!(other.get(&Key::of(&scope)).is_some());
}

#[tokio::test]
async fn a_full_board_says_so_and_still_starts() {
    let config = config::Revocation { entries_max: 2, ..config::Revocation::default() };
    let board = Revocations::start(&config, vec![of_session(1), of_session(2), of_session(3)]).await.unwrap();
    assert!(matches!(board.revoke(of_session(4)).await, Err(RevocationError::Full(2))));
    assert!(!is_refused(&board, 4));
}

#[tokio::test]
async fn a_revocation_reaches_every_replica() {
    let redis = Redis::start(FORGETFUL).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    let mut heard = b.subscribe();
    a.revoke(of_session(1)).await.unwrap();
    assert!(is_refused(&a, 1), "at once where it was decided");
    until_refused(&b, 1).await;
    assert!(!is_refused(&b, 2), "and nobody else");
    assert!(
        matches!(heard.recv().await.unwrap(), Change::Revoked(r) if r.scope == Scope::Session(session(1)))
    );
    assert_eq!(b.check(&visitor(1), now()).unwrap().incident, "G-1");
    let late = redis.replica().await;
    assert!(is_refused(&late, 1), "before it serves its first request");
    b.revoke(revocation(Scope::Token(TokenId(session(5).0)))).await.unwrap();
    until_refused(&a, 5).await;
    until_refused(&late, 5).await;
}

#[tokio::test]
async fn a_pardon_anywhere_undoes_it_everywhere() {
    let redis = Redis::start(DURABLE).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    // The deciding replica's clock runs a minute ahead.
    let ahead = Revocation { decided_at: now().plus(Duration::from_secs(60)), ..of_session(1) };
    a.revoke(ahead.clone()).await.unwrap();
    until_refused(&b, 1).await;
    b.pardon(ahead.scope, now().plus(Duration::from_secs(60))).await.unwrap();
    assert!(!is_refused(&b, 1));
    until("the pardon arrives", || !is_refused(&a, 1)).await;
    // A late repetition of the older decision, as an outbox may send it.
    a.revoke(ahead.clone()).await.unwrap();
    b.revoke(ahead.clone()).await.unwrap();
    let late = redis.replica_knowing(vec![ahead]).await;
    for replica in [&a, &b, &late] {
        assert!(!is_refused(replica, 1));
    }
    let again = Revocation { decided_at: now().plus(Duration::from_secs(120)), ..of_session(1) };
    late.revoke(again).await.unwrap();
    for replica in [&a, &b, &late] {
        until_refused(replica, 1).await;
    }
}

#[tokio::test]
async fn a_subject_is_refused_for_tokens_issued_before_the_moment() {
    let redis = Redis::start(FORGETFUL).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    let moment = now();
    let subject = visitor(1).subject.unwrap();
    a.revoke(revocation(Scope::Subject { subject, before: moment })).await.unwrap();
    let issued = |at: Timestamp| Identity { issued_at: Some(at), ..visitor(1) };
    until("the old token is refused", || b.check(&issued(Timestamp(moment.0 - 1)), now()).is_some()).await;
    assert!(b.check(&issued(moment), now()).is_none(), "a new login passes");
    let elsewhere = Identity { session: session(9), ..issued(Timestamp(moment.0 - 1)) };
    assert!(b.check(&elsewhere, now()).is_some(), "in every session of the person");
    assert!(b.check(&Identity { subject: None, ..elsewhere }, now()).is_none());
}

#[tokio::test]
async fn a_revocation_ends_here_and_in_redis() {
    let redis = Redis::start(FORGETFUL).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    let short = Revocation { until: now().plus(Duration::from_millis(1500)), ..of_session(1) };
    a.revoke(short.clone()).await.unwrap();
    until_refused(&b, 1).await;
    assert!(b.check(&visitor(1), Timestamp(short.until.0 - 1)).is_some());
    assert!(b.check(&visitor(1), short.until).is_none());
    let mut client = redis.client().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let name = format!("gaitway:revocation:{}", session(1));
    while redis::cmd("EXISTS").arg(&name).query_async::<bool>(&mut client).await.unwrap() {
        assert!(tokio::time::Instant::now() < deadline, "Redis keeps an expired record");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(now() >= short.until, "not before its time either");
}

#[tokio::test]
async fn a_durable_redis_killed_and_restarted_forgets_nothing() {
    let mut redis = Redis::start(DURABLE).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    a.revoke(of_session(1)).await.unwrap();
    until_refused(&b, 1).await;
    redis.kill();
    for replica in [&a, &b] {
        until_connected(replica, false).await;
        assert!(is_refused(replica, 1) && !is_refused(replica, 2), "the outage changes nobody's standing");
    }
    redis.boot().await;
    let late = redis.replica().await;
    assert!(is_refused(&late, 1));
    for replica in [&a, &b] {
        until_connected(replica, true).await;
    }
    b.revoke(of_session(3)).await.unwrap();
    for replica in [&a, &b, &late] {
        until_refused(replica, 3).await;
        assert!(is_refused(replica, 1) && !is_refused(replica, 2));
    }
}

#[tokio::test]
async fn a_redis_restarted_empty_is_told_again() {
    let mut redis = Redis::start(FORGETFUL).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    a.revoke(of_session(1)).await.unwrap();
    b.revoke(of_session(2)).await.unwrap();
    a.pardon(Scope::Session(session(2)), now().plus(Duration::from_secs(60))).await.unwrap();
    until("all arrived", || is_refused(&b, 1) && !is_refused(&a, 2) && !is_refused(&b, 2)).await;
    redis.kill();
    until_connected(&a, false).await;
    until_connected(&b, false).await;
    redis.boot().await;
    until_connected(&a, true).await;
    until_connected(&b, true).await;
    until("everything is written back", || a.health().queued == 0 && b.health().queued == 0).await;
    drop((a, b));
    let late = redis.replica_knowing(vec![of_session_before(2)]).await;
    assert!(is_refused(&late, 1), "from Redis alone");
    assert!(!is_refused(&late, 2), "the pardon was written back too");
}

fn of_session_before(n: u32) -> Revocation {
    Revocation { decided_at: Timestamp(now().0 - 60_000), ..of_session(n) }
}

#[tokio::test]
async fn a_redis_emptied_under_way_is_told_again() {
    let redis = Redis::start(FORGETFUL).await;
    let a = redis.replica().await;
    a.revoke(of_session(1)).await.unwrap();
    let () = redis::cmd("FLUSHALL").query_async(&mut redis.client().await).await.unwrap();
    let mut late = redis.replica().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is_refused(&late, 1) {
        assert!(tokio::time::Instant::now() < deadline, "the record never came back");
        late = redis.replica().await;
    }
    assert!(is_refused(&a, 1));
}

#[tokio::test]
async fn a_frozen_redis_holds_up_nobody() {
    let redis = Redis::start(FORGETFUL).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    a.revoke(of_session(1)).await.unwrap();
    until_refused(&b, 1).await;
    redis.signal("-STOP");
    assert!(matches!(a.revoke(of_session(2)).await, Err(RevocationError::Unreachable)));
    assert!(is_refused(&a, 2), "in force here all the same");
    assert!(is_refused(&a, 1) && is_refused(&b, 1) && !is_refused(&b, 2));
    until_connected(&a, false).await;
    until_connected(&b, false).await;
    // A replica that starts now is up without Redis, with what its store knows.
    let late = redis.replica_knowing(vec![of_session(3)]).await;
    assert!(is_refused(&late, 3) && !is_refused(&late, 4) && !late.health().connected);
    redis.signal("-CONT");
    for replica in [&a, &b, &late] {
        until_connected(replica, true).await;
        for n in 1..=3 {
            until_refused(replica, n).await;
        }
        assert!(!is_refused(replica, 4));
    }
    a.revoke(of_session(2)).await.unwrap();
}

/// The way between a replica and Redis. Cut, it stays open at both ends and carries nothing either way, as a
/// firewall that has lost its state does: nobody is told, and new connections are taken and lead nowhere.
struct Relay {
    port: u16,
    is_cut: tokio::sync::watch::Sender<bool>,
    /// Loses the stream's entries on their way to the replica, and nothing else.
    loses_entries: Arc<AtomicBool>,
    /// The port where new connections lead.
    server: Arc<AtomicU16>,
    task: JoinHandle<()>,
}

impl Relay {
    async fn before(redis: &Redis) -> Relay {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Arc::new(AtomicU16::new(redis.port));
        let loses_entries = Arc::new(AtomicBool::new(false));
        let (to, loses) = (Arc::clone(&server), Arc::clone(&loses_entries));
        let (is_cut, cut) = tokio::sync::watch::channel(false);
        let task = tokio::spawn(async move {
            let mut ways = tokio::task::JoinSet::new();
            while let Ok((here, _)) = listener.accept().await {
                let to = ("127.0.0.1", to.load(Ordering::Relaxed));
                let Ok(there) = tokio::net::TcpStream::connect(to).await else { continue };
                let ((here_in, here_out), (there_in, there_out)) = (here.into_split(), there.into_split());
                ways.spawn(carry(here_in, there_out, cut.clone(), Arc::default()));
                ways.spawn(carry(there_in, here_out, cut.clone(), Arc::clone(&loses)));
            }
        });
        Relay { port, is_cut, loses_entries, server, task }
    }

    async fn replica(&self) -> Arc<Revocations> {
        let redis = Some(format!("redis://127.0.0.1:{}", self.port));
        let config = config::Revocation { redis, ..config::Revocation::default() };
        Revocations::start(&config, Vec::new()).await.unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One direction of one connection, while it is not cut.
async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut cut: tokio::sync::watch::Receiver<bool>,
    loses_entries: Arc<AtomicBool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut bytes = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let has_entries = bytes[..count].windows(11).any(|text| text == b"revocations");
        if has_entries && loses_entries.load(Ordering::Relaxed) {
            continue;
        }
        if cut.wait_for(|is_cut| !is_cut).await.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_replica_cut_off_serves_on_and_catches_up_both_ways() {
    let redis = Redis::start(DURABLE).await;
    let relay = Relay::before(&redis).await;
    let (a, b, c) = (relay.replica().await, redis.replica().await, redis.replica().await);
    a.revoke(of_session(1)).await.unwrap();
    b.revoke(of_session(2)).await.unwrap();
    for replica in [&a, &b, &c] {
        until_refused(replica, 1).await;
        until_refused(replica, 2).await;
    }
    for round in 0..3 {
        let n = 10 * (round + 1);
        relay.is_cut.send_replace(true);
        assert!(matches!(a.revoke(of_session(n)).await, Err(RevocationError::Unreachable)));
        let pardon = a.pardon(Scope::Session(session(1)), now().plus(Duration::from_secs(60))).await;
        assert!(matches!(pardon, Err(RevocationError::Unreachable)));
        b.revoke(of_session(n + 1)).await.unwrap();
        until_refused(&c, n + 1).await;
        until_connected(&a, false).await;
        // What it knew or decided itself is in force, and that is all.
        assert!(is_refused(&a, 2) && is_refused(&a, n) && !is_refused(&a, 1) && !is_refused(&a, n + 1));
        assert!(is_refused(&b, 2) && !is_refused(&b, n) && (round > 0 || is_refused(&b, 1)));
        assert!((3..10).all(|n| [&a, &b, &c].iter().all(|replica| !is_refused(replica, n))));
        relay.is_cut.send_replace(false);
        until_connected(&a, true).await;
        for replica in [&a, &b, &c] {
            until_refused(replica, n).await;
            until_refused(replica, n + 1).await;
            until("the pardon arrives", || !is_refused(replica, 1)).await;
        }
        until("nothing waits", || a.health().queued == 0).await;
    }
    assert!([&a, &b, &c].iter().all(|replica| is_refused(replica, 2) && replica.health().entries == 7));
    let late = redis.replica().await;
    assert_eq!(late.health().entries, 7, "from Redis alone");
}

#[tokio::test]
async fn a_broken_connection_to_the_same_server_reads_nothing_anew() {
    let redis = Redis::start(FORGETFUL).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    a.revoke(of_session(1)).await.unwrap();
    until_refused(&b, 1).await;
    let mut client = redis.client().await;
    let full_reads = async |client: &mut redis::aio::MultiplexedConnection| {
        let told: String = redis::cmd("INFO").arg("commandstats").query_async(client).await.unwrap();
        let scans = told.lines().find_map(|line| line.strip_prefix("cmdstat_scan:calls=")).unwrap();
        scans.split(',').next().unwrap().to_owned()
    };
    assert_eq!(full_reads(&mut client).await, "2", "one of each replica");
    let kill = ["KILL", "TYPE", "normal", "SKIPME", "yes"];
    let killed: u32 = redis::cmd("CLIENT").arg(&kill).query_async(&mut client).await.unwrap();
    assert!(killed >= 3, "{killed}");
    let heard = b.revoke(of_session(2)).await;
    assert!(matches!(heard, Ok(()) | Err(RevocationError::Unreachable)));
    until_refused(&a, 2).await;
    until_connected(&a, true).await;
    until_connected(&b, true).await;
    assert_eq!(full_reads(&mut client).await, "2");
}

#[tokio::test]
async fn what_only_the_former_master_acknowledged_is_told_to_the_new_one() {
    for names_itself in [true, false] {
        tell_the_new_master(names_itself).await;
    }
}

async fn tell_the_new_master(names_itself: bool) {
    let mut former = Redis::start(DURABLE).await;
    let following = ["--replicaof", "127.0.0.1", &former.port.to_string(), "--repl-diskless-sync-delay", "0"];
    let next = Redis::start(&[DURABLE, &following].concat()).await;
    if !names_itself {
        for server in [&former, &next] {
            let withheld = ["SETUSER", "default", "-info"];
            let () = redis::cmd("ACL").arg(&withheld).query_async(&mut server.client().await).await.unwrap();
        }
    }
    let relay = Relay::before(&former).await;
    let a = relay.replica().await;
    a.revoke(of_session(1)).await.unwrap();
    let mut to_next = next.client().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while redis::cmd("DBSIZE").query_async::<u32>(&mut to_next).await.unwrap() < 4 {
        assert!(tokio::time::Instant::now() < deadline, "the replica never follows");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut to_next).await.unwrap();
    let late = next.replica().await;
    // The former master acknowledges one more, and goes before we have read so from the stream.
    relay.loses_entries.store(true, Ordering::Relaxed);
    a.revoke(of_session(2)).await.unwrap();
    assert!(is_refused(&late, 1) && !is_refused(&late, 2));
    relay.server.store(next.port, Ordering::Relaxed);
    former.kill();
    relay.loses_entries.store(false, Ordering::Relaxed);
    until_refused(&late, 2).await;
}

#[tokio::test]
async fn a_redis_emptied_beyond_a_cut_way_is_told_again_by_both_sides() {
    let mut redis = Redis::start(FORGETFUL).await;
    let relay = Relay::before(&redis).await;
    let (a, b) = (relay.replica().await, redis.replica().await);
    a.revoke(of_session(1)).await.unwrap();
    until_refused(&b, 1).await;
    relay.is_cut.send_replace(true);
    assert!(matches!(a.revoke(of_session(2)).await, Err(RevocationError::Unreachable)));
    until_connected(&a, false).await;
    redis.kill();
    until_connected(&b, false).await;
    assert!(matches!(b.revoke(of_session(3)).await, Err(RevocationError::Unreachable)));
    redis.boot().await;
    until_connected(&b, true).await;
    relay.is_cut.send_replace(false);
    until_connected(&a, true).await;
    for n in 1..=3 {
        until_refused(&a, n).await;
        until_refused(&b, n).await;
    }
    until("nothing waits", || a.health().queued == 0 && b.health().queued == 0).await;
    drop((a, b));
    let late = redis.replica().await;
    assert!((1..=3).all(|n| is_refused(&late, n)) && !is_refused(&late, 4));
}

#[tokio::test]
async fn a_redis_that_comes_later_is_joined() {
    let mut redis = Redis::stopped(FORGETFUL);
    let (a, b) = tokio::join!(redis.replica_knowing(vec![of_session(1)]), redis.replica());
    assert!(is_refused(&a, 1) && !is_refused(&b, 1));
    assert!(matches!(b.revoke(of_session(2)).await, Err(RevocationError::Unreachable)));
    redis.boot().await;
    until_refused(&b, 1).await;
    until_refused(&a, 2).await;
}

#[tokio::test]
async fn a_thousand_revocations_wait_for_redis_in_order() {
    let mut redis = Redis::start(DURABLE).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    redis.kill();
    until_connected(&a, false).await;
    until_connected(&b, false).await;
    for n in 0..1000 {
        assert!(matches!(a.revoke(of_session(n)).await, Err(RevocationError::Unreachable)));
    }
    assert_eq!(a.health().queued, 1000);
    let mut heard = b.subscribe();
    redis.boot().await;
    for n in 0..1000 {
        let change = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await.unwrap().unwrap();
        assert!(
            matches!(change, Change::Revoked(r) if r.scope == Scope::Session(session(n))),
            "in order: {n}"
        );
    }
    until("the queue is empty", || a.health().queued == 0).await;
    assert!((0..1000).all(|n| is_refused(&b, n)));
    for n in [0, 999] {
        a.revoke(of_session_before(n)).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_queue_leaves_the_rest_to_the_outbox() {
    let mut redis = Redis::stopped(FORGETFUL);
    let config = config::Revocation { queue_max: 10, ..redis.config() };
    let a = Revocations::start(&config, Vec::new()).await.unwrap();
    for n in 0..20 {
        assert!(matches!(a.revoke(of_session(n)).await, Err(RevocationError::Unreachable)));
        assert!(is_refused(&a, n));
    }
    assert_eq!(a.health().queued, 10);
    redis.boot().await;
    until_connected(&a, true).await;
    let b = redis.replica().await;
    for n in 0..20 {
        until_refused(&b, n).await;
    }
}

#[tokio::test]
async fn a_gap_in_the_stream_is_noticed_and_filled() {
    let redis = Redis::start(FORGETFUL).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    a.revoke(of_session(1)).await.unwrap();
    until_refused(&b, 1).await;
    let mut client = redis.client().await;
    let record = |n: u32| {
        let record = Record::revoked(&of_session(n));
        (format!("gaitway:revocation:{}", session(n)), record.encode())
    };
    // Written, numbered, but trimmed from the stream before anybody read it; a later entry shows the gap.
    let (name, text) = record(2);
    let () = redis::pipe()
        .atomic()
        .cmd("SET")
        .arg(name)
        .arg(text)
        .ignore()
        .cmd("INCR")
        .arg("gaitway:revocations:sequence")
        .ignore()
        .query_async(&mut client)
        .await
        .unwrap();
    a.revoke(of_session(3)).await.unwrap();
    until_refused(&b, 2).await;
    until_refused(&a, 2).await;
    until_refused(&b, 3).await;
    // The same with no later entry at all, and then the whole stream gone.
    let (name, text) = record(4);
    let () = redis::pipe()
        .atomic()
        .cmd("SET")
        .arg(name)
        .arg(text)
        .ignore()
        .cmd("INCR")
        .arg("gaitway:revocations:sequence")
        .ignore()
        .cmd("DEL")
        .arg("gaitway:revocations")
        .ignore()
        .query_async(&mut client)
        .await
        .unwrap();
    until_refused(&b, 4).await;
    a.revoke(of_session(5)).await.unwrap();
    until_refused(&b, 5).await;
}

#[tokio::test]
async fn a_history_rewritten_by_a_failover_is_noticed() {
    let mut redis = Redis::start(DURABLE).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    a.revoke(of_session(1)).await.unwrap();
    until_refused(&b, 1).await;
    redis.kill();
    until_connected(&a, false).await;
    until_connected(&b, false).await;
    // What a master promoted without the last write looks like: another entry bears its number, and by
    // a slower clock even an earlier id.
    redis.boot_at(Ipv4Addr::new(127, 0, 0, 2)).await;
    let record = Record::revoked(&of_session(2)).encode();
    let client = redis::Client::open(format!("redis://127.0.0.2:{}", redis.port)).unwrap();
    let mut client = client.get_multiplexed_async_connection().await.unwrap();
    let () = redis::pipe()
        .atomic()
        .cmd("DEL")
        .arg("gaitway:revocations")
        .arg(format!("gaitway:revocation:{}", session(1)))
        .ignore()
        .cmd("SET")
        .arg(format!("gaitway:revocation:{}", session(2)))
        .arg(&record)
        .ignore()
        .cmd("XADD")
        .arg("gaitway:revocations")
        .arg("5-1")
        .arg("n")
        .arg(1)
        .arg("k")
        .arg(session(2).to_string())
        .arg("r")
        .arg(&record)
        .ignore()
        .query_async(&mut client)
        .await
        .unwrap();
    redis.kill();
    redis.boot().await;
    until_refused(&a, 2).await;
    until_refused(&b, 2).await;
    until_connected(&a, true).await;
    until("what was lost is written back", || a.health().queued == 0 && b.health().queued == 0).await;
    let late = redis.replica().await;
    assert!(is_refused(&late, 1) && is_refused(&late, 2));
}

#[tokio::test]
async fn a_replica_far_behind_reads_everything_anew() {
    let redis = Redis::start(&[FORGETFUL, &["--stream-node-max-entries", "10"]].concat()).await;
    let (a, b) = (redis.replica().await, redis.replica().await);
    let mut client = redis.client().await;
    let mut pipeline = redis::pipe();
    for n in 0..3000 {
        let record = Record::revoked(&of_session(n)).encode();
        pipeline.cmd("SET").arg(format!("gaitway:revocation:{}", session(n))).arg(&record).ignore();
        pipeline.cmd("INCR").arg("gaitway:revocations:sequence").ignore();
        pipeline.cmd("XADD").arg("gaitway:revocations").arg("MAXLEN").arg(10).arg("*");
        pipeline.arg("n").arg(n + 1).arg("k").arg(session(n).to_string()).arg("r").arg(&record).ignore();
    }
    // At once, so that nearly all is trimmed before anybody reads.
    let () = pipeline.atomic().query_async(&mut client).await.unwrap();
    for n in 0..3000 {
        until_refused(&a, n).await;
        until_refused(&b, n).await;
    }
}

#[tokio::test]
async fn rubbish_in_redis_revokes_nobody() {
    let redis = Redis::start(FORGETFUL).await;
    let mut client = redis.client().await;
    let () = redis::pipe()
        .cmd("SET")
        .arg(format!("gaitway:revocation:{}", session(1)))
        .arg("rubbish")
        .ignore()
        .cmd("SET")
        .arg("gaitway:revocation:rubbish")
        .arg(Record::revoked(&of_session(1)).encode())
        .ignore()
        .cmd("SET")
        .arg(format!("other:revocation:{}", session(1)))
        .arg(Record::revoked(&of_session(1)).encode())
        .ignore()
        .cmd("SET")
        .arg(format!("gaitway:revocation:{}", session(2)))
        .arg(&[0xffu8, 0xfe][..])
        .ignore()
        .query_async(&mut client)
        .await
        .unwrap();
    let (a, b) = (redis.replica().await, redis.replica().await);
    let entries: [&[&[u8]]; 4] = [
        &[b"x", b"y"],
        &[b"n", b"1", b"k", b"s_1", b"r", b"1"],
        &[b"n", b"-1", b"k", b"", b"r", b"\xff"],
        &[b"\xff", b"1"],
    ];
    for entry in entries {
        let () = redis::cmd("XADD")
            .arg("gaitway:revocations")
            .arg("*")
            .arg(entry)
            .query_async(&mut client)
            .await
            .unwrap();
    }
    // The reader may be between two connections just now; the change is on its way all the same.
    let _ = a.revoke(of_session(5)).await;
    until_refused(&b, 5).await;
    assert!((0..5).all(|n| !is_refused(&a, n) && !is_refused(&b, n)));
    assert_eq!(b.health().entries, 1);
}

#[tokio::test]
async fn installations_share_a_redis_by_prefix() {
    let redis = Redis::start(FORGETFUL).await;
    let other = config::Revocation { key_prefix: "ga*way:".into(), ..redis.config() };
    let (a, b) = (redis.replica().await, Revocations::start(&other, Vec::new()).await.unwrap());
    a.revoke(of_session(1)).await.unwrap();
    b.revoke(of_session(2)).await.unwrap();
    let (a2, b2) = (redis.replica().await, Revocations::start(&other, Vec::new()).await.unwrap());
    assert!(is_refused(&a2, 1) && !is_refused(&a2, 2));
    assert!(is_refused(&b2, 2) && !is_refused(&b2, 1));
}

#[tokio::test]
async fn a_login_with_an_acl_user_and_a_password_file_over_tls() {
    let certificates = Certificates::new();
    let users = certificates.write("users.acl", ACL);
    let port = free_port().to_string();
    let [certificate, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| certificates.path(name));
    let arguments = [
        FORGETFUL,
        &["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no", "--aclfile", &users],
        &["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca],
    ]
    .concat();
    let mut redis = Redis::stopped(&arguments);
    redis.port = port.parse().unwrap();
    redis.boot().await;
    let password = certificates.write("password", "s3cret\n");
    let config = config::Revocation {
        redis: Some(format!("rediss://gaitway@127.0.0.1:{port}")),
        redis_password_file: Some(password.into()),
        redis_ca: Some(certificates.path("ca.pem").into()),
        ..config::Revocation::default()
    };
    let a = Revocations::start(&config, Vec::new()).await.unwrap();
    let b = Revocations::start(&config, Vec::new()).await.unwrap();
    a.revoke(of_session(1)).await.unwrap();
    until_refused(&b, 1).await;
    let wrong = certificates.write("wrong", "guess");
    let strangers = [
        config::Revocation { redis_ca: None, ..config.clone() },
        config::Revocation { redis_ca: Some(Certificates::new().path("ca.pem").into()), ..config.clone() },
        config::Revocation { redis_password_file: Some(wrong.into()), ..config },
    ];
    for stranger in strangers {
        if let Ok(board) = Revocations::start(&stranger, Vec::new()).await {
            assert!(!board.health().connected && !is_refused(&board, 1));
        }
    }
}

/// What docs/revocation.md tells operators to grant, and no more.
const ACL: &str = "user default off\nuser gaitway on >s3cret ~gaitway:* resetchannels -@all \
    +eval +get +set +incr +mget +scan +xadd +xread +xrange +xrevrange +role +info +hello +auth\n";

struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Certificates {
        let certificates = Certificates { directory: tempfile::tempdir().unwrap() };
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let authority_certificate = authority.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let server = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let server = server.signed_by(&key, &issuer).unwrap();
        certificates.write("ca.pem", &authority_certificate.pem());
        certificates.write("server.pem", &server.pem());
        certificates.write("server.key", &key.serialize_pem());
        certificates
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(Path::new(&path), text).unwrap();
        path
    }
}
