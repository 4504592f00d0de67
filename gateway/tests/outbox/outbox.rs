//! The outbox with a real store and a real board: what it does, and what it never does.

use crate::incidents::{logout, until, with};
use crate::postgres::Postgres;
use crate::smtp::SmtpServer;
use crate::stand_ins::{Answer, MemorySink, Switch};
use gaitway::alert::{AlertSink, AppSink, LogSink, MailSink};
use gaitway::clock;
use gaitway::config::{Alerts, AppLogout, Config, Mail, MailEncryption};
use gaitway::outbox::{Offered, Outbox, OutboxLimits};
use gaitway::revocation::Revocations;
use gaitway::store::{IncidentRow, PostgresStore, SqliteStore, Step, StepState, Store};
use gaitway_models::Timestamp;
use gaitway_policies::engine::{Action, Mode};
use gaitway_policies::{Incident, SessionId, SubjectId, TokenId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// As patient as a test may be.
fn quick() -> OutboxLimits {
    OutboxLimits {
        poll: Duration::from_millis(10),
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(40),
        digest_collect: Duration::from_millis(50),
        ..OutboxLimits::default()
    }
}

/// A gateway's back room: store and board, in a directory that outlives a restart.
struct Room {
    directory: TempDir,
    store: Arc<Switch>,
    board: Arc<Revocations>,
}

impl Room {
    async fn new() -> Room {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.sqlite")).await.unwrap();
        Room { directory, store: Switch::new(Arc::new(store)), board: board(Vec::new()).await }
    }

    async fn outbox(&self, sinks: Vec<Arc<dyn AlertSink>>) -> Arc<Outbox> {
        Outbox::start(self.store.clone(), self.board.clone(), sinks, quick()).await
    }

    async fn row(&self, id: &str) -> IncidentRow {
        self.store.store.incident(id).await.unwrap().unwrap()
    }

    /// Empty for an incident that is not recorded (yet).
    async fn steps(&self, id: &str) -> Vec<(String, StepState)> {
        let row = self.store.store.incident(id).await.unwrap();
        row.into_iter().flat_map(|row| row.steps).map(|step| (step.name, step.state)).collect()
    }

    async fn has_failed(&self, id: &str) -> bool {
        self.steps(id).await.contains(&("memory".into(), StepState::Failed))
    }

    fn refuses(&self, incident: &Incident) -> bool {
        self.board.check(&incident.identity, clock::now()).is_some()
    }
}

async fn board(initial: Vec<gaitway::revocation::Revocation>) -> Arc<Revocations> {
    Revocations::start(&gaitway::config::Revocation::default(), initial).await.unwrap()
}

fn now() -> Timestamp {
    clock::now()
}

#[tokio::test]
async fn an_incident_is_recorded_carried_out_and_told() {
    let room = Room::new().await;
    let sink = MemorySink::answering([]);
    let outbox = room.outbox(vec![Arc::new(LogSink), sink.clone()]).await;
    let incident = logout(1, now());
    outbox.submit(incident.clone()).await;
    until("told", async || sink.told() == ["G-001"]).await;
    outbox.drain(Duration::from_secs(30)).await;
    assert_eq!(outbox.depth(), 0);
    assert!(room.refuses(&incident));
    let done = |name: &str| (name.to_string(), StepState::Done);
    assert_eq!(room.steps("G-001").await, [done("revoke"), done("log"), done("memory")]);
    assert_eq!(room.row("G-001").await.steps[0].outcome, "revoked");
    assert_eq!(room.store.pending().await.unwrap(), 0);
}

#[tokio::test]
async fn a_shadow_decision_is_recorded_and_told_but_touches_nobody() {
    let room = Room::new().await;
    let sink = MemorySink::answering([]);
    let outbox = room.outbox(vec![sink.clone()]).await;
    let actions = [Action::Logout, Action::LogoutEverywhere, Action::Deny, Action::Challenge];
    let incidents: Vec<Incident> = (1..)
        .zip(actions)
        .map(|(number, action)| {
            with(logout(number, now()), |incident| {
                incident.action = action;
                incident.mode = Mode::Shadow;
            })
        })
        .collect();
    for incident in &incidents {
        outbox.submit(incident.clone()).await;
    }
    until("told", async || sink.told().len() == 4).await;
    outbox.drain(Duration::from_secs(30)).await;
    for incident in &incidents {
        assert!(!room.refuses(incident));
        assert_eq!(room.steps(&incident.id).await, [("memory".to_string(), StepState::Done)]);
    }
}

#[tokio::test]
async fn logout_everywhere_reaches_the_person_and_a_pardon_undoes_all_of_it() {
    let room = Room::new().await;
    let outbox = room.outbox(vec![]).await;
    let at = now();
    let caught = with(logout(1, at), |incident| incident.action = Action::LogoutEverywhere);
    let refreshed = with(logout(1, at), |incident| {
        incident.id = "G-refreshed".into();
        incident.identity.token = Some(TokenId([77; 16]));
    });
    let other_session = with(logout(2, Timestamp(at.0 - 5)), |_| {});
    let stranger = with(logout(3, at), |incident| incident.identity.subject = Some(SubjectId([9; 16])));
    outbox.submit(caught.clone()).await;
    outbox.submit(refreshed.clone()).await;
    until("carried out", async || outbox.depth() == 0).await;
    assert!(room.refuses(&caught) && room.refuses(&refreshed) && room.refuses(&other_session));
    assert!(!room.refuses(&stranger));

    // The operator pardons the session as it is now, with its newest token.
    let pardon = with(refreshed.clone(), |incident| {
        incident.id = "G-pardon".into();
        incident.at = now();
        incident.action = Action::Pardon;
        incident.by = "olga".into();
    });
    outbox.submit(pardon).await;
    until("pardoned", async || outbox.depth() == 0).await;
    for incident in [&caught, &refreshed, &other_session] {
        assert!(!room.refuses(incident), "{} is still locked out", incident.id);
    }
    assert_eq!(room.store.active_revocations(now()).await.unwrap(), []);
}

#[tokio::test]
async fn a_sink_that_hangs_delays_no_revocation_and_no_other_sink() {
    let room = Room::new().await;
    let hanging: Arc<dyn AlertSink> = MemorySink::answering((0..100).map(|_| Answer::Silence));
    let outbox = room.outbox(vec![Arc::new(LogSink), hanging]).await;
    let incidents: Vec<Incident> = (0..60).map(|number| logout(number, now())).collect();
    for incident in &incidents {
        outbox.submit(incident.clone()).await;
    }
    until("carried out", async || outbox.depth() == 0).await;
    assert!(incidents.iter().all(|incident| room.refuses(incident)));
    until("logged", async || room.store.pending().await.unwrap() == 60).await;
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_cannot_is_marked_failed() {
    let room = Room::new().await;
    let sink = MemorySink::answering([
        Answer::Temporary,
        Answer::Panic,
        Answer::Temporary,
        Answer::Temporary,
        Answer::Temporary,
    ]);
    let outbox = room.outbox(vec![sink.clone()]).await;
    outbox.submit(logout(1, now())).await;
    until("delivered", async || sink.told() == ["G-001"]).await;
    until("marked", async || room.store.pending().await.unwrap() == 0).await;
    assert_eq!(room.row("G-001").await.steps[1].attempts, 6);

    sink.answers.lock().unwrap().push_back(Answer::Permanent);
    outbox.submit(logout(2, now())).await;
    until("marked", async || room.has_failed("G-002").await).await;
    assert_eq!(room.row("G-002").await.steps[1].outcome, "never");
    assert_eq!(sink.told(), ["G-001"]);

    // Old news: the incident is given up rather than tried for ever.
    sink.answers.lock().unwrap().extend([Answer::Temporary, Answer::Temporary]);
    let week = Duration::from_secs(7 * 24 * 3600).as_millis() as u64;
    outbox.submit(logout(3, Timestamp(now().0 - week - 1))).await;
    until("given up", async || room.has_failed("G-003").await).await;
    assert_eq!(room.row("G-003").await.steps[1].outcome, "come back later");
}

#[tokio::test]
async fn with_the_store_down_people_are_let_in_and_bots_kept_out_all_the_same() {
    let room = Room::new().await;
    let sink = MemorySink::answering([]);
    let outbox = room.outbox(vec![sink.clone()]).await;
    room.store.is_down.store(true, Ordering::SeqCst);
    let incidents: Vec<Incident> = (1..=20).map(|number| logout(number, now())).collect();
    for incident in &incidents {
        outbox.submit(incident.clone()).await;
    }
    until("carried out", async || incidents.iter().all(|incident| room.refuses(incident))).await;
    let pardon = with(logout(7, now()), |incident| {
        incident.id = "G-pardon".into();
        incident.action = Action::Pardon;
    });
    outbox.submit(pardon).await;
    until("pardoned", async || !room.refuses(&incidents[6])).await;
    assert_eq!(outbox.depth(), 21, "all wait for their record");

    room.store.is_down.store(false, Ordering::SeqCst);
    until("told", async || sink.told().len() == 21).await;
    until("recorded", async || outbox.depth() == 0).await;
    for incident in &incidents {
        assert_eq!(room.steps(&incident.id).await[0], ("revoke".into(), StepState::Done));
    }
    assert!(!room.refuses(&incidents[6]), "the pardon holds");
    let active = room.store.active_revocations(now()).await.unwrap();
    assert!(active.iter().all(|revocation| revocation.incident != "G-007"));
}

#[tokio::test]
async fn a_full_queue_makes_the_shard_wait_and_drops_nothing() {
    let room = Room::new().await;
    let sink = MemorySink::answering([]);
    let limits = OutboxLimits { queue_max: 4, unrecorded_max: 4, ..quick() };
    let outbox = Outbox::start(room.store.clone(), room.board.clone(), vec![sink.clone()], limits).await;
    room.store.is_down.store(true, Ordering::SeqCst);
    // One person's incidents share a lane: one place in its queue and one beside it.
    let submitting = {
        let outbox = outbox.clone();
        tokio::spawn(async move {
            for number in 0..50 {
                outbox.submit(logout(number, now())).await;
            }
        })
    };
    until("full", async || outbox.depth() == 3).await;
    assert!(!submitting.is_finished());
    for person in 0..20 {
        let other =
            with(logout(100, now()), |incident| incident.identity.subject = Some(SubjectId([person; 16])));
        let offered = outbox.offer(other).await;
        assert!(matches!(offered, Offered::Later(_)), "in whichever lane: {offered:?}");
    }
    room.store.is_down.store(false, Ordering::SeqCst);
    submitting.await.unwrap();
    until("told", async || sink.told().len() == 50).await;
    until("taken", async || outbox.offer(logout(100, now())).await == Offered::Taken).await;
    until("told", async || sink.told().len() == 51).await;
}

#[tokio::test]
async fn what_is_offered_again_is_carried_out_once_and_never_against_a_pardon() {
    let room = Room::new().await;
    let outbox = room.outbox(Vec::new()).await;
    let event = logout(1, now());
    assert_eq!(outbox.offer(event.clone()).await, Offered::Taken);
    assert!(outbox.is_carried_out(&event.id, Duration::from_secs(60)).await);
    assert!(room.refuses(&event));
    let pardon = with(logout(2, now()), |incident| {
        incident.action = Action::Pardon;
        incident.identity = event.identity.clone();
    });
    outbox.submit(pardon).await;
    until("pardoned", async || !room.refuses(&event)).await;
    assert_eq!(outbox.offer(event.clone()).await, Offered::Known);
    let renamed = with(event.clone(), |incident| incident.id = "G-renamed".into());
    assert_eq!(outbox.offer(renamed).await, Offered::Pardoned);
    outbox.drain(Duration::from_secs(60)).await;
    // Another process with an empty board, as after a restart, but for what it reads from the store.
    let pardons = room.store.pardons(Timestamp(0)).await.unwrap();
    let config = gaitway::config::Revocation::default();
    let board = Revocations::start_with(&config, Vec::new(), pardons).await.unwrap();
    let outbox = Outbox::start(room.store.clone(), board.clone(), Vec::new(), quick()).await;
    assert_eq!(outbox.offer(event.clone()).await, Offered::Known);
    let renamed = with(event.clone(), |incident| incident.id = "G-renamed".into());
    assert_eq!(outbox.offer(renamed).await, Offered::Pardoned);
    assert!(board.check(&event.identity, now()).is_none());
    let since = with(event, |incident| (incident.id, incident.at) = ("G-since".into(), now()));
    assert_eq!(outbox.offer(since.clone()).await, Offered::Taken, "what happened after the pardon");
    until("refused", async || board.check(&since.identity, now()).is_some()).await;
}

#[tokio::test]
async fn what_is_offered_again_and_again_leaves_the_shards_their_room() {
    let room = Room::new().await;
    let store = Switch::watched(room.store.clone(), |call| call.starts_with("before record"));
    let limits = OutboxLimits { record_wait: Duration::from_secs(3600), ..quick() };
    let outbox = Outbox::start(store, room.board.clone(), Vec::new(), limits).await;
    // The store neither takes nor refuses: nothing counts as behind.
    assert_eq!(outbox.offer(logout(0, now())).await, Offered::Taken);
    for _ in 0..2_000 {
        assert!(matches!(outbox.offer(logout(0, now())).await, Offered::Later(_)), "once is enough");
    }
    let mut taken = 0;
    for number in 1..=255 {
        taken += usize::from(outbox.offer(logout(number, now())).await == Offered::Taken);
    }
    assert_eq!(taken, 63, "and many at once are not everything");
    // They are one person's, in one lane, as is what a shard decides.
    let decided = with(logout(1, now()), |incident| incident.id = "G-decided".into());
    tokio::time::timeout(Duration::from_secs(20), outbox.submit(decided)).await.unwrap();
    assert_eq!(outbox.depth(), 65);
}

#[tokio::test]
async fn a_full_disk_repeats_no_alert() {
    let room = Room::new().await;
    let sink = MemorySink::answering([]);
    room.store.record(&logout(1, now()), &[Step::pending("memory", now())]).await.unwrap();
    room.store.is_full.store(true, Ordering::SeqCst);
    let outbox = room.outbox(vec![sink.clone()]).await;
    until("told", async || !sink.told().is_empty()).await;
    // Whatever comes next waits in memory while the disk is full, the same alert does not come again.
    outbox.submit(logout(2, now())).await;
    until("carried out", async || room.refuses(&logout(2, now()))).await;
    room.store.is_full.store(false, Ordering::SeqCst);
    until("told", async || sink.told().len() >= 2).await;
    until("marked", async || room.store.pending().await.unwrap() == 0).await;
    assert_eq!(sink.told(), ["G-001", "G-002"]);
}

#[tokio::test]
async fn a_revocation_that_comes_late_never_overtakes_a_pardon() {
    let room = Room::new().await;
    let (caught, at) = (logout(1, Timestamp(now().0 - 1_000)), now());
    let pardon = with(logout(1, at), |incident| {
        incident.id = "G-pardon".into();
        incident.action = Action::Pardon;
    });
    // As a process leaves them that died before it could revoke.
    room.store.record(&caught, &[Step::pending("revoke", at)]).await.unwrap();
    room.store
        .record(&pardon, &[Step { state: StepState::Done, ..Step::pending("pardon", at) }])
        .await
        .unwrap();
    let _outbox = room.outbox(vec![]).await;
    assert!(!room.refuses(&caught));
    let step = room.row("G-001").await.steps.remove(0);
    assert_eq!((step.state, step.outcome.as_str()), (StepState::Done, "overtaken by a later decision"));
}

#[tokio::test]
async fn a_pardon_that_comes_late_never_overtakes_a_revocation() {
    let room = Room::new().await;
    let at = Timestamp(now().0 - 1_000);
    let pardon = with(logout(1, at), |incident| {
        incident.id = "G-pardon".into();
        incident.action = Action::Pardon;
    });
    let again = logout(1, now());
    room.store.record(&pardon, &[Step::pending("pardon", at)]).await.unwrap();
    room.store.record(&again, &[Step::pending("revoke", at)]).await.unwrap();
    let _outbox = room.outbox(vec![]).await;
    assert!(room.refuses(&again));
    assert_eq!(room.row("G-pardon").await.steps[0].outcome, "overtaken by a later decision");
}

#[tokio::test]
async fn a_pardon_of_another_session_lifts_what_reaches_the_person_only() {
    let room = Room::new().await;
    let caught =
        with(logout(1, Timestamp(now().0 - 1_000)), |incident| incident.action = Action::LogoutEverywhere);
    let pardon = with(logout(2, now()), |incident| incident.action = Action::Pardon);
    room.store.record(&caught, &[Step::pending("revoke", now())]).await.unwrap();
    room.store.record(&pardon, &[]).await.unwrap();
    let _outbox = room.outbox(vec![]).await;
    assert!(room.refuses(&caught));
    let another = with(logout(5, Timestamp(now().0 - 5_000)), |_| {});
    assert!(!room.refuses(&another), "the person may come in through another session");
}

#[tokio::test]
async fn an_unreachable_board_is_tried_again_until_it_answers() {
    let room = Room::new().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = gaitway::config::Revocation {
        redis: Some(format!("redis://{nobody}/")),
        ..gaitway::config::Revocation::default()
    };
    let board = Revocations::start(&config, Vec::new()).await.unwrap();
    let outbox = Outbox::start(room.store.clone(), board.clone(), vec![], quick()).await;
    let incident = logout(1, now());
    outbox.submit(incident.clone()).await;
    until("in force here", async || board.check(&incident.identity, now()).is_some()).await;
    let everywhere = with(logout(2, now()), |incident| incident.action = Action::LogoutEverywhere);
    outbox.submit(everywhere.clone()).await;
    let elsewhere = logout(3, Timestamp(everywhere.at.0 - 1)).identity;
    until("all that it reaches", async || board.check(&elsewhere, now()).is_some()).await;
    until("tried again", async || {
        let row = room.store.incident("G-001").await.unwrap();
        row.is_some_and(|row| row.steps[0].attempts > 2 && row.steps[0].state == StepState::Pending)
    })
    .await;
}

#[tokio::test]
async fn a_new_start_goes_on_where_the_last_run_stopped() {
    let room = Room::new().await;
    let stuck = MemorySink::answering((0..9).map(|_| Answer::Silence));
    let outbox = room.outbox(vec![stuck]).await;
    for number in 0..9 {
        outbox.submit(logout(number, now())).await;
    }
    until("carried out", async || outbox.depth() == 0).await;
    drop(outbox);

    let file = room.directory.path().join("store.sqlite");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&file).await.unwrap());
    let board = board(store.active_revocations(now()).await.unwrap()).await;
    let sink = MemorySink::answering([]);
    let outbox = Outbox::start(store, board.clone(), vec![sink.clone()], quick()).await;
    assert!((0..9).all(|number| board.check(&logout(number, now()).identity, now()).is_some()));
    outbox.drain(Duration::from_secs(30)).await;
    assert_eq!(sink.told().len(), 9);
}

#[tokio::test]
async fn a_stopped_outbox_still_loses_nothing() {
    let room = Room::new().await;
    let outbox = room.outbox(vec![MemorySink::answering([])]).await;
    outbox.drain(Duration::from_secs(30)).await;
    let late = logout(1, now());
    outbox.submit(late.clone()).await;
    assert!(room.refuses(&late));
    assert_eq!(room.steps("G-001").await[1], ("memory".into(), StepState::Pending));
}

#[tokio::test]
async fn old_steps_of_a_sink_that_is_gone_end() {
    let room = Room::new().await;
    let week = Duration::from_secs(8 * 24 * 3600).as_millis() as u64;
    let old = logout(1, Timestamp(now().0 - week));
    room.store.record(&old, &[Step::pending("pager", now())]).await.unwrap();
    room.store.record(&logout(2, now()), &[Step::pending("pager", now())]).await.unwrap();
    let _outbox = room.outbox(vec![]).await;
    until("given up", async || room.row("G-001").await.steps[0].outcome == "no such sink is configured")
        .await;
    assert_eq!(room.steps("G-002").await[0].1, StepState::Pending, "it may come back");
}

#[tokio::test]
async fn records_past_their_retention_are_deleted() {
    let room = Room::new().await;
    let days = |days: u64| Timestamp(now().0 - days * 24 * 3600 * 1000);
    room.store.record(&logout(1, days(91)), &[]).await.unwrap();
    room.store.record(&logout(2, days(89)), &[]).await.unwrap();
    let _outbox = room.outbox(vec![]).await;
    until("deleted", async || room.store.incident("G-001").await.unwrap().is_none()).await;
    assert!(room.store.incident("G-002").await.unwrap().is_some());
}

#[tokio::test]
async fn a_store_that_hangs_holds_up_no_revocation() {
    let room = Room::new().await;
    let is_stuck = Arc::new(AtomicBool::new(true));
    let stuck = is_stuck.clone();
    let store = Switch::watched(room.store.clone(), move |call| {
        call.starts_with("before record") && stuck.load(Ordering::SeqCst)
    });
    let limits = OutboxLimits { record_wait: Duration::from_millis(20), ..quick() };
    let sink = MemorySink::answering([]);
    let outbox = Outbox::start(store, room.board.clone(), vec![sink.clone()], limits).await;
    let incident = logout(1, now());
    outbox.submit(incident.clone()).await;
    until("in force", async || room.refuses(&incident)).await;
    assert_eq!(outbox.depth(), 1);
    is_stuck.store(false, Ordering::SeqCst);
    until("told", async || sink.told() == ["G-001"]).await;
}

#[tokio::test]
async fn two_replicas_tell_each_incident_once() {
    let server = Postgres::start();
    let address = server.database("replicas");
    let sink = MemorySink::answering([]);
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let store = Arc::new(PostgresStore::open(&address).await.unwrap());
        replicas.push(Outbox::start(store, board(Vec::new()).await, vec![sink.clone()], quick()).await);
    }
    for number in 0..100 {
        replicas[usize::from(number) % 2].submit(logout(number, now())).await;
    }
    until("told", async || sink.told().len() >= 100).await;
    for outbox in replicas {
        outbox.drain(Duration::from_secs(30)).await;
    }
    let mut told = sink.told();
    told.dedup();
    assert_eq!((told.len(), sink.told().len()), (100, 100));
}

fn mail(port: u16, mails_per_hour_max: u32) -> Arc<dyn AlertSink> {
    let mail = Mail {
        host: "127.0.0.1".into(),
        port,
        encryption: MailEncryption::None,
        from: "gaitway@example.com".into(),
        to: vec!["security@example.com".into()],
        ..Mail::default()
    };
    let alerts = Alerts { mails_per_hour_max, ..Alerts::default() };
    Arc::new(MailSink::new(&mail, &alerts).unwrap())
}

/// An app that counts the logouts it is asked for, by the cookie they carry.
async fn app_with_logout() -> (String, Arc<Mutex<Vec<String>>>) {
    let goodbyes = Arc::new(Mutex::new(Vec::new()));
    let heard = goodbyes.clone();
    let bye = move |headers: http::HeaderMap| async move {
        heard.lock().unwrap().push(headers["cookie"].to_str().unwrap().to_owned());
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().route("/logout", axum::routing::post(bye));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, goodbyes)
}

fn app_sink(url: &str) -> Arc<AppSink> {
    let logout = AppLogout { path: "/logout".into(), ..AppLogout::default() };
    let config = Config { upstream: url.to_owned(), ..Config::default() };
    Arc::new(AppSink::new(&logout, &config).unwrap())
}

fn cookie(text: &str) -> http::HeaderMap {
    http::HeaderMap::from_iter([(http::header::COOKIE, text.parse().unwrap())])
}

#[tokio::test]
async fn the_replica_that_knows_the_cookies_logs_out_at_the_app() {
    let server = Postgres::start();
    let address = server.database("replicas");
    let (url, goodbyes) = app_with_logout().await;
    let sinks = [app_sink(&url), app_sink(&url), app_sink(&url)];
    let mut replicas = Vec::new();
    for sink in &sinks {
        let store = Arc::new(PostgresStore::open(&address).await.unwrap());
        replicas.push(Outbox::start(store, board(Vec::new()).await, vec![sink.clone()], quick()).await);
    }
    // Decided by one replica, served by another, for each pair of them.
    for (number, (decides, serves)) in
        [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)].into_iter().enumerate()
    {
        let incident = logout(u8::try_from(number).unwrap(), now());
        sinks[serves].note(&incident.identity.session, &cookie(&format!("sid={number}")));
        replicas[decides].submit(incident).await;
    }
    until("the app was told", async || goodbyes.lock().unwrap().len() >= 6).await;
    for outbox in replicas {
        outbox.drain(Duration::from_secs(30)).await;
    }
    let mut told = goodbyes.lock().unwrap().clone();
    told.sort();
    assert_eq!(told, ["sid=0", "sid=1", "sid=2", "sid=3", "sid=4", "sid=5"]);
    let store = PostgresStore::open(&address).await.unwrap();
    assert_eq!(store.pending().await.unwrap(), 0);
}

#[tokio::test]
async fn a_logout_at_the_app_waits_for_the_session_to_call_and_holds_up_no_shutdown() {
    let room = Room::new().await;
    let (url, goodbyes) = app_with_logout().await;
    let sink = app_sink(&url);
    let outbox = room.outbox(vec![sink.clone()]).await;
    let (early, late) = (logout(1, now()), logout(2, Timestamp(now().0 - 2 * 3_600_000)));
    outbox.submit(early.clone()).await;
    outbox.submit(late.clone()).await;
    let app_step = async |id: &str| room.row(id).await.steps.into_iter().find(|step| step.name == "app");
    until("what nobody can do any more has failed", async || {
        room.steps(&late.id).await.contains(&("app".into(), StepState::Failed))
    })
    .await;
    outbox.drain(Duration::from_secs(30)).await;
    let step = app_step(&early.id).await.unwrap();
    assert_eq!((step.state, step.attempts), (StepState::Pending, 0), "and was not tried in vain");
    // After a restart the session calls again, with its cookies.
    let sink = app_sink(&url);
    let outbox = room.outbox(vec![sink.clone()]).await;
    sink.note(&early.identity.session, &cookie("sid=1"));
    until("the app was told", async || *goodbyes.lock().unwrap() == ["sid=1"]).await;
    outbox.drain(Duration::from_secs(30)).await;
    assert_eq!(app_step(&early.id).await.unwrap().state, StepState::Done);
}

#[tokio::test]
async fn sessions_that_do_not_call_hide_no_session_that_does() {
    let room = Room::new().await;
    let (url, goodbyes) = app_with_logout().await;
    let sink = app_sink(&url);
    // As many as are read in one go, all older than the one that can be logged out.
    let pending = [Step::pending("app", now())];
    for number in 0..1_000 {
        let silent = with(logout(1, Timestamp(now().0 - 60_000)), |incident| {
            incident.id = format!("G-silent-{number}");
        });
        room.store.record(&silent, &pending).await.unwrap();
    }
    let ready = logout(2, now());
    sink.note(&ready.identity.session, &cookie("sid=2"));
    room.store.record(&ready, &pending).await.unwrap();
    let outbox = room.outbox(vec![sink]).await;
    until("the app was told", async || *goodbyes.lock().unwrap() == ["sid=2"]).await;
    outbox.drain(Duration::from_secs(30)).await;
    let silent = room.row("G-silent-7").await.steps.remove(0);
    assert_eq!((silent.state, silent.attempts), (StepState::Pending, 0));
}

#[tokio::test]
async fn a_mail_server_that_comes_back_gets_every_mail() {
    let room = Room::new().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let outbox = room.outbox(vec![mail(port, 0)]).await;
    for number in 0..12 {
        outbox.submit(logout(number, now())).await;
    }
    until("tried", async || {
        outbox.depth() == 0 && room.row("G-011").await.steps.last().is_some_and(|step| step.attempts > 1)
    })
    .await;
    let server = SmtpServer::start_with(&["--port", &port.to_string()]);
    until("delivered", async || server.messages().len() >= 12).await;
    until("marked", async || room.store.pending().await.unwrap() == 0).await;
    let mut ids: Vec<String> =
        server.messages().iter().map(|message| message.header("Message-ID").to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), server.messages().len()), (12, 12));
}

#[tokio::test]
async fn five_hundred_incidents_make_few_mails_and_every_one_is_named() {
    let room = Room::new().await;
    let server = SmtpServer::start();
    let outbox = room.outbox(vec![mail(server.port, 10)]).await;
    let incidents: Vec<Incident> = (0..500u32)
        .map(|number| {
            with(logout(0, now()), |incident| {
                let mut session = [0; 16];
                session[..4].copy_from_slice(&number.to_be_bytes());
                incident.id = format!("G-{number:04}");
                incident.identity.session = SessionId(session);
                incident.identity.subject = None;
            })
        })
        .collect();
    for incident in &incidents {
        outbox.submit(incident.clone()).await;
    }
    let is_named = |incident: &Incident| {
        server
            .messages()
            .iter()
            .any(|message| message.text.contains(&incident.id) && message.html.contains(&incident.id))
    };
    // The mails left for this hour are not enough for stragglers: they wait for the next hour.
    until("told", async || {
        let waiting = room.store.due_for("mail", now(), 1_000).await.unwrap();
        let is_waiting = |incident: &Incident| waiting.iter().any(|row| row.incident.id == incident.id);
        outbox.depth() == 0 && incidents.iter().all(|incident| is_named(incident) != is_waiting(incident))
    })
    .await;
    let mails = server.messages().len();
    assert!((1..=10).contains(&mails), "{mails} mails");
    let named = incidents.iter().filter(|incident| is_named(incident)).count();
    println!("{named} of 500 incidents in {mails} mails; the others wait for the next hour");
    drop(outbox);

    // The next hour, or the next start: nothing was lost.
    let outbox = room.outbox(vec![mail(server.port, 10)]).await;
    until("all named", async || incidents.iter().all(is_named)).await;
    outbox.drain(Duration::from_secs(30)).await;
    assert!(server.messages().len() <= 20);
    assert_eq!(room.store.pending().await.unwrap(), 0);
}
