//! Redis fails over again and again under three gateways that serve people and end sessions meanwhile.
//! Real Sentinels choose the new master; the old one is killed, frozen and paused in turn. And one of two
//! gateways is cut off from Redis, by a way that stays open and carries nothing.
//!
//! `FAILOVERS=20 cargo test -p gaitway --test it failovers -- --nocapture` prints what it measured;
//! `make check-failover` does that.

use crate::app::App;
use crate::gateway::{DEADLINE, Gateway, eventually, signal};
use crate::revocation::{Operator, Person, settings};
use crate::servers::{self, Relay, free_port};
use gaitway::secret::InstallSecret;
use reqwest::{Client, StatusCode};
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// In a run of all tests; one of each kind.
const FAILOVERS: usize = 3;
const SECRET: &str = "replicas share this secret of enough bytes";
/// From the decision to the refusal on every replica, failovers included. What was measured is less
/// (docs/revocation.md); machines that run tests may be busy with others.
const BOUND: Duration = Duration::from_secs(30);
const PEOPLE: usize = 40;
/// Between two revocations.
const REVOKE_EVERY: Duration = Duration::from_millis(100);
/// Between two requests of one of a gateway's visitors.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// A redis-server, as data server or as Sentinel.
struct Server {
    port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
    directory: TempDir,
}

impl Server {
    fn start(arguments: &[&str], file: &str) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut all = Vec::new();
        if !file.is_empty() {
            let path = directory.path().join("redis.conf");
            std::fs::write(&path, file).unwrap();
            all.push(path.display().to_string());
        }
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let mut server = Server { port, arguments: all, child: None, directory };
        server.boot();
        server
    }

    fn boot(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(&self.arguments).args([
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--dir",
        ]);
        command.arg(self.directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("redis-server is installed (make setup)"));
        let deadline = Instant::now() + DEADLINE;
        while self.ask(&["ping"]).trim() != "PONG" {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ask(&self, words: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn signal(&self, name: &str) {
        signal(self.child.as_ref().unwrap().id(), name);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Freeze,
    Pause,
}

/// Three data servers and the three Sentinels that watch them.
struct Redis {
    servers: Vec<Server>,
    sentinels: Vec<Server>,
}

impl Redis {
    async fn start() -> Redis {
        let data = ["--save", "", "--appendonly", "yes", "--repl-diskless-sync-delay", "0"];
        let mut servers = vec![Server::start(&data, "")];
        let master = servers[0].port.to_string();
        let following = [&data[..], &["--replicaof", "127.0.0.1", &master]].concat();
        servers.extend((0..2).map(|_| Server::start(&following, "")));
        let watch = format!(
            "sentinel monitor main 127.0.0.1 {master} 2\nsentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 3000\nsentinel parallel-syncs main 2\n"
        );
        let sentinels = (0..3).map(|_| Server::start(&["--sentinel"], &watch)).collect();
        let redis = Redis { servers, sentinels };
        redis.until_whole().await;
        redis
    }

    fn url(&self) -> String {
        let nodes: Vec<_> = self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        format!("redis+sentinel://{}/main", nodes.join(","))
    }

    /// The port of the master that all Sentinels agree on.
    fn master(&self) -> Option<String> {
        let named = |sentinel: &Server| {
            let answer = sentinel.ask(&["sentinel", "get-master-addr-by-name", "main"]);
            answer.lines().nth(1).map(str::to_owned)
        };
        let first = named(&self.sentinels[0])?;
        self.sentinels.iter().all(|sentinel| named(sentinel).as_ref() == Some(&first)).then_some(first)
    }

    /// Waits until every Sentinel knows all others and one master, whom the other two servers follow and could
    /// replace. On a busy machine they may have chosen once more meanwhile.
    async fn until_whole(&self) {
        eventually("Redis is whole again", async || {
            let sees_all = |sentinel: &Server| {
                let state = sentinel.ask(&["sentinel", "master", "main"]);
                let has = |field: &str, value: &str| state.contains(&format!("{field}\n{value}\n"));
                has("num-other-sentinels", "2") && has("num-slaves", "2") && has("flags", "master")
            };
            let Some(master) = self.master() else { return false };
            let follows = |server: &&Server| {
                let state = server.ask(&["info", "replication"]);
                state.contains(&format!("master_port:{master}\r")) && state.contains("master_link_status:up")
            };
            self.sentinels.iter().all(sees_all) && self.servers.iter().filter(follows).count() == 2
        })
        .await;
    }

    /// Takes the master away, waits for another one, and gives it back as a follower.
    async fn fail_over(&mut self, fault: Fault) {
        let former = self.master().expect("the Sentinels agree");
        let server = self.servers.iter_mut().find(|server| server.port.to_string() == former).unwrap();
        match fault {
            Fault::Kill => server.kill(),
            Fault::Freeze => server.signal("STOP"),
            Fault::Pause => assert_eq!(server.ask(&["client", "pause", "4000", "all"]).trim(), "OK"),
        }
        let is_other = |master: String| master != former;
        eventually("another master is chosen", async || self.master().is_some_and(is_other)).await;
        let server = self.servers.iter_mut().find(|server| server.port.to_string() == former).unwrap();
        match fault {
            Fault::Kill => server.boot(),
            Fault::Freeze => server.signal("CONT"),
            Fault::Pause => {}
        }
        self.until_whole().await;
    }
}

/// A session whose end was acknowledged.
struct Ended {
    person: Person,
    decided: Instant,
    acknowledged: Instant,
    /// When each gateway was first seen to refuse it.
    refused: [Option<Duration>; 3],
}

/// What the visitors saw.
#[derive(Default)]
struct Seen {
    ended: Mutex<Vec<Ended>>,
    served: AtomicUsize,
    /// Answers to people whom nobody logged out, other than the page, by what came instead.
    unserved: Mutex<BTreeMap<String, usize>>,
    /// Requests of ended sessions that were let through too late, or again.
    slipped: Mutex<Vec<String>>,
    /// No more sessions are ended.
    enough: AtomicBool,
    over: AtomicBool,
}

impl Seen {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Asks one gateway for people who did nothing, until told to stop.
    async fn visit(self: Arc<Seen>, gateway: Arc<Gateway>, people: Arc<Vec<Person>>, from: usize) {
        for turn in from.. {
            if self.is_over() {
                return;
            }
            let outcome = match people[turn % people.len()].get(&gateway, "/json").send().await {
                Ok(answer) if answer.status() == StatusCode::OK => {
                    self.served.fetch_add(1, Ordering::Relaxed);
                    None
                }
                Ok(answer) => Some(answer.status().to_string()),
                Err(error) => Some(format!("{error:?}")),
            };
            if let Some(instead) = outcome {
                *self.unserved.lock().unwrap().entry(instead).or_default() += 1;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Ends sessions, each known to every gateway, at one of them.
    async fn end_sessions(self: Arc<Seen>, gateways: Vec<Arc<Gateway>>, which: usize) {
        while !self.enough.load(Ordering::Relaxed) {
            let mut person = Person::log_in("bot");
            person.http = gateways_client();
            for gateway in &gateways {
                let answer = person.get(gateway, "/json").send().await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
            }
            let decided = act_on(&person, &gateways[which], "revoke").await;
            let ended = Ended { person, decided, acknowledged: Instant::now(), refused: [None; 3] };
            self.ended.lock().unwrap().push(ended);
            tokio::time::sleep(REVOKE_EVERY).await;
        }
    }

    /// Lets the ended sessions try one gateway: those it has not refused yet over and over, one of the
    /// others now and then.
    async fn try_again(self: Arc<Seen>, gateway: Arc<Gateway>, which: usize) {
        for turn in 0.. {
            if self.is_over() {
                return;
            }
            let tries: Vec<(usize, reqwest::RequestBuilder)> = {
                let ended = self.ended.lock().unwrap();
                let some = turn % ended.len().max(1);
                let due = |at: &usize| *at == some || ended[*at].refused[which].is_none();
                (0..ended.len()).filter(due).map(|at| (at, ended[at].person.get(&gateway, "/json"))).collect()
            };
            for (at, request) in tries {
                let asked = Instant::now();
                let Ok(answer) = request.send().await else { continue };
                let mut ended = self.ended.lock().unwrap();
                let Ended { decided, refused, .. } = &mut ended[at];
                if answer.status() == StatusCode::UNAUTHORIZED {
                    refused[which].get_or_insert(decided.elapsed());
                } else if refused[which].is_some() || asked.duration_since(*decided) > BOUND {
                    let told = format!("session {at} at gateway {which}: {}", answer.status());
                    self.slipped.lock().unwrap().push(told);
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// An operator revokes or pardons a session that the gateway has served; when that was decided.
async fn act_on(person: &Person, gateway: &Gateway, action: &str) -> Instant {
    let secret = InstallSecret::from_text(SECRET.as_bytes(), "the test").unwrap();
    let claim = format!("t{}", person.sid);
    let session = secret.session(&[b"claim", b"shop", b"sid", claim.as_bytes()]);
    let path = format!("/sessions/{session}/{action}");
    // The engine hears of the session a moment after the request.
    let deadline = Instant::now() + DEADLINE;
    let mut decided = Instant::now();
    while !Operator::post(gateway, &path).await.is_success() {
        assert!(Instant::now() < deadline, "the decision is not acknowledged");
        tokio::time::sleep(Duration::from_millis(5)).await;
        decided = Instant::now();
    }
    decided
}

fn told(what: &str, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let quantile = |q: usize| latencies[(latencies.len() - 1) * q / 1000].as_millis();
    println!("{what}: p50 {} ms, p99 {} ms, at most {} ms", quantile(500), quantile(990), quantile(1000));
}

fn gateways_client() -> Client {
    Client::builder().timeout(DEADLINE).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn failovers_let_no_ended_session_through_lose_no_revocation_and_log_nobody_out() {
    let failovers = std::env::var("FAILOVERS").map_or(FAILOVERS, |text| text.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let mut redis = Redis::start().await;
    let more = format!("revocation:\n  redis: {}\nlog:\n  access: false\n", redis.url());
    let start = || {
        let settings = settings(directory.path(), &more);
        Arc::new(Gateway::start_with(&app.url(), &settings, &[("GAITWAY_SECRET", SECRET)]))
    };
    let gateways = vec![start(), start(), start()];
    let people: Arc<Vec<Person>> = Arc::new((0..PEOPLE).map(|n| Person::log_in(&format!("p{n}"))).collect());
    let seen = Arc::new(Seen::default());
    let (mut load, mut enders) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
    for (which, gateway) in gateways.iter().enumerate() {
        for half in 0..2 {
            let from = half * PEOPLE / 2;
            load.spawn(Arc::clone(&seen).visit(Arc::clone(gateway), Arc::clone(&people), from));
        }
        load.spawn(Arc::clone(&seen).try_again(Arc::clone(gateway), which));
        enders.spawn(Arc::clone(&seen).end_sessions(gateways.clone(), which));
    }
    for (fault, number) in [Fault::Kill, Fault::Freeze, Fault::Pause].into_iter().cycle().zip(0..failovers) {
        let begun = Instant::now();
        redis.fail_over(fault).await;
        println!("failover {number}: {fault:?}, whole again after {} ms", begun.elapsed().as_millis());
    }
    seen.enough.store(true, Ordering::Relaxed);
    while let Some(done) = enders.join_next().await {
        done.unwrap();
    }
    let missing = || -> Vec<String> {
        let ended = seen.ended.lock().unwrap();
        let of = |at: usize| ended[at].refused.map(|refused| refused.is_some());
        let is_missing = |at: &usize| of(*at) != [true; 3];
        (0..ended.len())
            .filter(is_missing)
            .map(|at| format!("session {at} of {}: {:?}", ended.len(), of(at)))
            .collect()
    };
    let deadline = Instant::now() + DEADLINE;
    while !missing().is_empty() {
        assert!(Instant::now() < deadline, "not refused by every gateway: {:?}", missing());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    seen.over.store(true, Ordering::Relaxed);
    while let Some(done) = load.join_next().await {
        done.unwrap();
    }

    let ended = std::mem::take(&mut *seen.ended.lock().unwrap());
    let refused = |one: &Ended| one.refused.iter().copied().collect::<Option<Vec<_>>>()?.into_iter().max();
    let served = seen.served.load(Ordering::Relaxed);
    let unserved = std::mem::take(&mut *seen.unserved.lock().unwrap());
    println!(
        "{failovers} failovers, {} sessions ended, {served} requests of others served, instead: {unserved:?}",
        ended.len()
    );
    told("decided to acknowledged", ended.iter().map(|one| one.acknowledged - one.decided).collect());
    told("decided to refused by the last of three replicas", ended.iter().filter_map(refused).collect());
    assert!(ended.len() >= failovers, "there was something to lose");
    assert_eq!(*seen.slipped.lock().unwrap(), Vec::<String>::new(), "let through after {BOUND:?}");
    assert!(
        !unserved.keys().any(|instead| instead.starts_with('4')),
        "somebody was logged out: {unserved:?}"
    );
    assert!(unserved.values().sum::<usize>() * 1000 <= served, "{unserved:?} beside {served}");

    // One that was not there, with nothing but Redis to ask, knows every one of them, and nobody else.
    let late = start();
    for Ended { person, .. } in &ended {
        eventually("a new replica knows what was acknowledged", async || person.is_refused(&late).await)
            .await;
    }
    for gateway in gateways.iter().chain([&late]) {
        for person in people.iter() {
            assert!(!person.is_refused(gateway).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_cut_off_from_redis_logs_nobody_out_and_forgets_no_revocation() {
    let directory = tempfile::tempdir().unwrap();
    let app = App::start().await;
    let redis = servers::Redis::start();
    let relay = Relay::before(&redis).await;
    let start = |url: &str| {
        let settings =
            settings(directory.path(), &format!("revocation:\n  redis: {url}\nlog:\n  access: false\n"));
        Arc::new(Gateway::start_with(&app.url(), &settings, &[("GAITWAY_SECRET", SECRET)]))
    };
    let (cut_off, other) = (start(&relay.url()), start(&redis.url()));
    let both = [&cut_off, &other];
    let log_in = async |name: &str| {
        let person = Person::log_in(name);
        for gateway in both {
            assert!(!person.is_refused(gateway).await, "{name}");
        }
        person
    };
    let until_refused = async |who: &Person, gateway: &Gateway| {
        eventually("the session is refused", async || who.is_refused(gateway).await).await;
    };
    let (known, excused) = (log_in("known").await, log_in("excused").await);
    for person in [&known, &excused] {
        act_on(person, &other, "revoke").await;
        for gateway in both {
            until_refused(person, gateway).await;
        }
    }
    let (ended_here, ended_there) = (log_in("here").await, log_in("there").await);
    let people: Arc<Vec<Person>> = Arc::new((0..PEOPLE).map(|n| Person::log_in(&format!("p{n}"))).collect());
    let seen = Arc::new(Seen::default());
    let mut load = tokio::task::JoinSet::new();
    for gateway in both {
        load.spawn(Arc::clone(&seen).visit(Arc::clone(gateway), Arc::clone(&people), 0));
    }

    relay.cut(true);
    let begun = Instant::now();
    act_on(&ended_here, &cut_off, "revoke").await;
    act_on(&ended_there, &other, "revoke").await;
    act_on(&excused, &cut_off, "pardon").await;
    until_refused(&ended_here, &cut_off).await;
    until_refused(&ended_there, &other).await;
    eventually("it is noticed", async || cut_off.metric("gaitway_revocation_backend_up", "").await == 0.0)
        .await;
    // For longer than anything waits, a connection or an attempt.
    while begun.elapsed() < BOUND {
        for gateway in both {
            assert!(known.is_refused(gateway).await);
        }
        assert!(ended_here.is_refused(&cut_off).await && ended_there.is_refused(&other).await);
        assert!(!excused.is_refused(&cut_off).await && excused.is_refused(&other).await);
        assert!(!ended_there.is_refused(&cut_off).await, "as nobody can tell it");
        tokio::time::sleep(ASK_EVERY).await;
    }
    relay.cut(false);
    until_refused(&ended_there, &cut_off).await;
    until_refused(&ended_here, &other).await;
    eventually("the pardon arrives", async || !excused.is_refused(&other).await).await;
    let served = seen.served.load(Ordering::Relaxed);
    eventually("everybody was served since", async || {
        seen.served.load(Ordering::Relaxed) > served + 4 * PEOPLE
    })
    .await;
    for gateway in both {
        assert!(known.is_refused(gateway).await);
        assert!(ended_here.is_refused(gateway).await && ended_there.is_refused(gateway).await);
        assert!(!excused.is_refused(gateway).await);
    }
    seen.over.store(true, Ordering::Relaxed);
    while let Some(done) = load.join_next().await {
        done.unwrap();
    }
    assert_eq!(*seen.unserved.lock().unwrap(), BTreeMap::new(), "somebody was not served");
}
