//! A person's profile from login to login: learnt when a session has ended, loaded at the next, forgotten
//! on request; and that nobody is judged by a store that does not answer.

use crate::app::App;
use crate::gateway::{Gateway, eventually};
use crate::postgres::Postgres;
use crate::recording::gaitway;
use crate::revocation::{Operator, Person, settings};
use crate::telemetry::Page;
use futures_util::SinkExt;
use gaitway::store::{PostgresStore, SqliteStore, Store};
use gaitway_models::artifact::Artifact;
use gaitway_models::event::Environment;
use gaitway_models::habit::SESSIONS_MIN;
use gaitway_models::hand::{self, Hand};
use gaitway_models::population::Device;
use gaitway_models::profile::{BLOCKS_READY, Ending};
use gaitway_models::sim::Visitor;
use gaitway_models::train::background::{Lesson, OwnerSession};
use gaitway_models::{Batch, Detector, Profile, Session, Timestamp};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// A model that knows how 24 simulated people differ.
static MODEL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let blocks = |seed| {
        let mut visitor = Visitor::person(seed);
        hand::blocks(&(0..110).flat_map(|_| visitor.next_batch(2.0).events).collect::<Vec<_>>())
    };
    let people: Vec<(String, Vec<Hand>)> = (0..24).map(|seed| (format!("u{seed}"), blocks(seed))).collect();
    let sessions: Vec<OwnerSession> = people
        .iter()
        .map(|(user, blocks)| OwnerSession { user, device: Device::default(), blocks })
        .collect();
    let owners = Lesson::learn(&sessions, 1).unwrap().owners(0.05);
    let base = Artifact::decode(gaitway_models::DEFAULT_MODEL).unwrap();
    Artifact { owners: Some(owners), ..base }.encode()
});
/// Batches of two seconds that teach a profile enough to judge by.
const LESSON: usize = 200;

/// An installation's folder, which outlives its gateways.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::write(place.0.path().join("site.model"), &*MODEL).unwrap();
        place
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn start(&self, app: &App, profiles: &str, more: &str) -> Gateway {
        let model = self.0.path().join("site.model").display().to_string();
        let own = format!(
            "models:\n  artifact: {model}\nprofiles:\n  {profiles}\n\
             limits:\n  session_idle_ms: 3000\n  telemetry_frames_per_second_max: 1000\n{more}"
        );
        Gateway::start_in(&app.url(), &settings(self.0.path(), &own), &self.data())
    }

    async fn sqlite(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(&self.data().join("gaitway.sqlite")).await.unwrap())
    }
}

/// A person's mouse, on the same device at every login.
struct Mouse {
    hand: Visitor,
    environment: Option<Environment>,
}

impl Mouse {
    fn of(seed: u64) -> Mouse {
        Mouse { hand: Visitor::person(seed), environment: None }
    }

    fn seen(&mut self) -> Batch {
        let mut batch = self.hand.next_batch(2.0);
        self.environment = batch.environment.or(self.environment);
        batch.environment = self.environment;
        batch
    }

    /// What the page sends of two seconds.
    fn batch(&mut self) -> Message {
        Message::binary(self.seen().encode())
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A person who logs in and opens a page.
async fn log_in(gateway: &Gateway, name: &str) -> (Person, Socket) {
    let person = Person::log_in(name);
    person.page(gateway).await;
    let socket = person.telemetry(gateway).await;
    (person, socket)
}

/// So many times two seconds of a mouse, as fast as the gateway takes them.
async fn moves(gateway: &Gateway, socket: &mut Socket, mouse: &mut Mouse, batches: usize) {
    let before = gateway.metric("gaitway_telemetry_batches_total", "").await;
    for _ in 0..batches {
        socket.send(mouse.batch()).await.unwrap();
    }
    eventually("the batches were taken", async || {
        gateway.metric("gaitway_telemetry_batches_total", "").await >= before + batches as f64
    })
    .await;
}

/// A login of a person whose profile the store has been asked for, and then so much of their hand.
async fn visit(gateway: &Gateway, name: &str, mouse: &mut Mouse, batches: usize) -> Person {
    let (person, mut socket) = log_in(gateway, name).await;
    eventually("the session has a profile", async || {
        moves(gateway, &mut socket, mouse, 1).await;
        let list = Operator::get(gateway, "/sessions").await;
        list["sessions"][0]["assessment"]["profile"] != "off"
    })
    .await;
    moves(gateway, &mut socket, mouse, batches).await;
    person
}

async fn loads(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric("gaitway_profile_loads_total", outcome).await
}

async fn lessons(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric("gaitway_profile_lessons_total", outcome).await
}

/// What the only live session says of its profile, once it says so.
async fn says(gateway: &Gateway, profile: &str) -> Value {
    let mut session = Value::Null;
    eventually(&format!("the profile is {profile}"), async || {
        let list = Operator::get(gateway, "/sessions").await;
        session = list["sessions"][0].clone();
        session["assessment"]["profile"] == profile
    })
    .await;
    session
}

async fn nobody_is_live(gateway: &Gateway) {
    eventually("all sessions have ended", async || {
        Operator::get(gateway, "/sessions").await["sessions"].as_array().unwrap().is_empty()
    })
    .await;
}

fn stop(mut gateway: Gateway) {
    gateway.signal("TERM");
    assert!(gateway.wait());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_learnt_kept_loaded_and_forgotten_with_sqlite() {
    let place = Place::new();
    let app = App::start().await;
    let start = || place.start(&app, "enabled: true", "");
    from_first_login_to_forgetting(&place, start, place.sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_learnt_kept_loaded_and_forgotten_with_postgres() {
    let (place, app, server) = (Place::new(), App::start().await, Postgres::start());
    let address = server.database("profiles");
    let start = || place.start(&app, "enabled: true", &format!("store:\n  postgres: {address}\n"));
    let store = async { Arc::new(PostgresStore::open(&address).await.unwrap()) as Arc<dyn Store> };
    from_first_login_to_forgetting(&place, start, store).await;
}

async fn from_first_login_to_forgetting(
    place: &Place,
    start: impl Fn() -> Gateway,
    store: impl Future<Output = Arc<dyn Store>>,
) {
    let mut mouse = Mouse::of(40);
    let gateway = start();
    let store = store.await;
    visit(&gateway, "alice", &mut mouse, LESSON).await;
    says(&gateway, "learning").await;
    eventually("the session has ended and taught", async || lessons(&gateway, "saved").await == 1.0).await;
    let secret = gaitway::secret::InstallSecret::from_directory(&place.data()).unwrap();
    let alice = secret.subject(&[b"shop", b"talice"]);
    let sealed = store.profile(alice).await.unwrap().unwrap().bytes.unwrap();
    let profile = Profile::decode(&secret.unseal(&[b"profile", &alice.0], &sealed).unwrap()).unwrap();
    assert!(profile.sessions() == 1 && profile.blocks() >= BLOCKS_READY, "{} blocks", profile.blocks());
    assert_eq!(loads(&gateway, "missing").await, 1.0);

    // The next login knows her, and so does the next process.
    visit(&gateway, "alice", &mut mouse, 60).await;
    let session = says(&gateway, "ready").await;
    assert!(session["assessment"]["owner_score"].is_number(), "{session}");
    assert_eq!(loads(&gateway, "loaded").await, 1.0);
    stop(gateway);
    let gateway = start();
    assert_eq!(store.profiles().await.unwrap(), 1);
    visit(&gateway, "alice", &mut mouse, 60).await;
    let session = says(&gateway, "ready").await;

    // Somebody without a login is nobody's profile.
    let page = Page::open(&gateway).await;
    let mut socket = page.socket(&gateway, &[]).await.unwrap();
    socket.send(mouse.batch()).await.unwrap();
    drop(socket);

    let (ops, password) = (format!("http://{}", gateway.ops), place.0.path().join("password"));
    let forget = |name: &str| {
        gaitway(&[
            "session",
            "forget",
            "--user",
            name,
            "--issuer",
            "shop",
            "--why",
            "asked for it",
            "--by",
            "tess",
            "--ops",
            &ops,
            "--password-file",
            password.to_str().unwrap(),
        ])
    };
    assert_eq!(forget("alice"), "forgotten\n");
    assert_eq!(store.profiles().await.unwrap(), 0);
    let id = session["identity"]["session"].as_str().unwrap();
    let live = Operator::get(&gateway, &format!("/sessions/{id}")).await;
    assert_eq!(live["session"]["assessment"]["profile"], "off", "{live}");
    nobody_is_live(&gateway).await;
    assert_eq!(store.profiles().await.unwrap(), 0, "what was live did not write her back");
    assert_eq!(loads(&gateway, "").await, 1.0, "one login since the start");
    let audit = Operator::get(&gateway, "/audit").await;
    let record = audit["records"].as_array().unwrap().iter().find(|record| record["what"] == "forget");
    let record = record.expect("a record").clone();
    let subject = session["identity"]["subject"].as_str().unwrap();
    assert_eq!(
        (&record["who"], &record["why"]),
        (&"tess".into(), &format!("asked for it ({subject})").into())
    );

    // She comes back as somebody new, and is learnt anew.
    visit(&gateway, "alice", &mut mouse, LESSON).await;
    says(&gateway, "learning").await;
    eventually("she is learnt anew", async || lessons(&gateway, "saved").await == 1.0).await;
    assert_eq!(store.profiles().await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_shows_this_persons_own_range_until_they_are_forgotten() {
    let (place, app) = (Place::new(), App::start().await);
    let mut mouse = Mouse::of(40);
    let detector = Detector::load(&MODEL).unwrap();
    let mut profile = Profile::default();
    for _ in 0..SESSIONS_MIN {
        let mut session = Session::new(Timestamp(0));
        session.set_profile(profile);
        for sequence in 0..60 {
            let batch = Batch { sequence, ..mouse.seen() };
            session.observe(Timestamp(batch.sent_at_us / 1000), 1, &batch);
        }
        profile = detector.learn(&mut session, Ending::default()).unwrap();
    }
    let gateway = place.start(&app, "enabled: true", "");
    let secret = gaitway::secret::InstallSecret::from_directory(&place.data()).unwrap();
    let alice = secret.subject(&[b"shop", b"talice"]);
    let sealed = secret.seal(&[b"profile", &alice.0], &profile.encode()).unwrap();
    let now = Timestamp(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64);
    assert!(place.sqlite().await.save_profile(alice, &sealed, None, now).await.unwrap());

    visit(&gateway, "alice", &mut mouse, 60).await;
    let session = says(&gateway, "ready").await;
    let reasons = session["assessment"]["reasons"].as_array().unwrap();
    let own: Vec<&Value> = reasons.iter().filter(|reason| reason["person"].is_object()).collect();
    assert!(!own.is_empty(), "{session}");
    let id = session["identity"]["session"].as_str().unwrap();
    let (ops, password) = (format!("http://{}", gateway.ops), place.0.path().join("password"));
    let access = ["--ops", &ops, "--password-file", password.to_str().unwrap()];
    for command in [["session", "show", id], ["policy", "explain", id]] {
        let text = gaitway(&[&command[..], &access].concat());
        assert!(text.contains(&format!("in {SESSIONS_MIN} sessions")), "{text}");
        assert!(text.contains("for this person"), "{text}");
    }
    let by_name =
        ["session", "forget", "--user", "alice", "--issuer", "shop", "--why", "asked", "--by", "tess"];
    assert_eq!(gaitway(&[&by_name[..], &access].concat()), "forgotten\n");
    let live = Operator::get(&gateway, &format!("/sessions/{id}")).await;
    assert!(!live["session"]["assessment"]["reasons"].as_array().unwrap().is_empty(), "{live}");
    assert!(!live.to_string().contains("\"person\":{"), "{live}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_answers_nobody_stops_no_page_and_lets_nobody_be_judged() {
    let (place, app, server) = (Place::new(), App::start().await, Postgres::start());
    let address = server.database("profiles");
    let rule = "mode: enforce\nbudget: {logouts_share_max: 100%}\nrules:\n  - {name: unlike, \
                when: 'owner.profile == \"ready\" || owner.evidence > 0.0', action: logout, reason: unlike}\n";
    let policy = place.0.path().join("policy.yaml");
    std::fs::write(&policy, rule).unwrap();
    let mut mouse = Mouse::of(40);
    let teaching = place.start(&app, "enabled: true", &format!("store:\n  postgres: {address}\n"));
    visit(&teaching, "alice", &mut mouse, LESSON).await;
    eventually("she is known", async || lessons(&teaching, "saved").await == 1.0).await;
    stop(teaching);

    let more = format!("store:\n  postgres: {address}\npolicy:\n  file: {}\n", policy.display());
    let gateway = place.start(&app, "enabled: true", &more);
    server.freeze();
    let (alice, mut socket) = log_in(&gateway, "alice").await;
    moves(&gateway, &mut socket, &mut mouse, 1).await;
    eventually("the load has failed", async || loads(&gateway, "failed").await >= 1.0).await;
    moves(&gateway, &mut socket, &mut mouse, 60).await;
    assert_eq!(alice.page(&gateway).await.status(), 200);
    assert!(!alice.is_refused(&gateway).await);
    assert_eq!(gateway.metric("gaitway_incidents_total", "").await, 0.0);
    assert_eq!(loads(&gateway, "loaded").await, 0.0);
    server.thaw();
    // The store is back, and the same rule ends whoever is known.
    eventually("the store is asked again at the next login", async || {
        let (_person, mut socket) = log_in(&gateway, "alice").await;
        moves(&gateway, &mut socket, &mut mouse, 1).await;
        loads(&gateway, "loaded").await >= 1.0
    })
    .await;
    let (known, mut socket) = log_in(&gateway, "alice").await;
    eventually("she is known and judged", async || {
        let _ = socket.send(mouse.batch()).await;
        known.is_refused(&gateway).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_unless_it_is_switched_on_and_the_model_knows_how_people_differ() {
    let (place, app) = (Place::new(), App::start().await);
    let gateway = place.start(&app, "enabled: false", "");
    let (_alice, mut socket) = log_in(&gateway, "alice").await;
    moves(&gateway, &mut socket, &mut Mouse::of(40), LESSON).await;
    let list = Operator::get(&gateway, "/sessions").await;
    assert_eq!(list["sessions"][0]["assessment"]["profile"], "off", "{list}");
    nobody_is_live(&gateway).await;
    assert_eq!((loads(&gateway, "").await, lessons(&gateway, "").await), (0.0, 0.0));
    stop(gateway);
    assert_eq!(place.sqlite().await.profiles().await.unwrap(), 0);

    std::fs::write(place.0.path().join("site.model"), gaitway_models::DEFAULT_MODEL).unwrap();
    let mut gateway = place.start(&app, "enabled: true", "");
    let told = gateway.log_line(
        "profiles.enabled has no effect: this model does not know how people differ; let `gaitway learn` \
         make one of this site's recordings and name it in models.artifact",
    );
    assert_eq!(told["level"], "WARN");
    let (_alice, mut socket) = log_in(&gateway, "alice").await;
    moves(&gateway, &mut socket, &mut Mouse::of(40), 20).await;
    assert_eq!(loads(&gateway, "").await, 0.0);
}
