//! A site whose people are as they were is steady; when another device comes, operators are told, and nobody
//! else is.

use crate::app::App;
use crate::gateway::{Gateway, eventually};
use crate::revocation::{Operator, Person, settings};
use futures_util::SinkExt;
use gaitway_models::artifact::Artifact;
use gaitway_models::dataset;
use gaitway_models::event::{Batch, Environment};
use gaitway_models::population::Device;
use gaitway_models::sim::Visitor;
use gaitway_models::train::learn::{LearnRecipe, ShadowSession, learn};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

/// Two-second batches of one visit: some eighteen windows.
const VISIT: usize = 150;

fn screen(pixel_ratio_percent: u32) -> Environment {
    Environment {
        viewport_width: 1280,
        viewport_height: 800,
        pixel_ratio_percent,
        automation: false,
        coarse_pointer: false,
        coalesced_supported: true,
    }
}

fn visit(seed: u64) -> impl Iterator<Item = Batch> {
    let mut visitor = Visitor::person(seed);
    (0..VISIT).map(move |_| visitor.next_batch(2.0))
}

/// What forty people on one kind of screen teach.
fn model() -> Vec<u8> {
    let session = |seed| {
        let events: Vec<_> = visit(seed).flat_map(|batch| batch.events).collect();
        ShadowSession {
            session: format!("s{seed}"),
            user: format!("u{seed}"),
            device: Device::of(Some(screen(100))),
            vouched: false,
            windows: dataset::windows(&events),
            blocks: Vec::new(),
        }
    };
    let sessions: Vec<ShadowSession> = (0..40).map(session).collect();
    let base = Artifact::decode(gaitway_models::DEFAULT_MODEL).unwrap();
    let recipe = LearnRecipe { trees: 12, owners: false, ..LearnRecipe::default() };
    learn(&sessions, &base, &recipe, &mut |_| ()).unwrap().artifact.encode()
}

async fn come(gateway: &Gateway, seeds: std::ops::Range<u64>, pixel_ratio_percent: u32) {
    for seed in seeds {
        let person = Person::log_in(&format!("u{seed}"));
        person.page(gateway).await;
        let mut socket = person.telemetry(gateway).await;
        for mut batch in visit(seed) {
            batch.environment = Some(screen(pixel_ratio_percent));
            socket.send(Message::binary(batch.encode())).await.unwrap();
        }
    }
}

async fn drift(gateway: &Gateway) -> Value {
    Operator::get(gateway, "/status").await["drift"].clone()
}

/// What is said once all sessions have ended.
async fn drift_in_the_end(gateway: &Gateway) -> Value {
    eventually("all sessions have ended", async || {
        Operator::get(gateway, "/sessions").await["sessions"].as_array().unwrap().is_empty()
    })
    .await;
    drift(gateway).await
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_when_people_come_on_a_device_that_nobody_taught() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.model");
    std::fs::write(&file, model()).unwrap();
    let (app, file) = (App::start().await, file.display());
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, gaitway_policies::DEFAULT).unwrap();
    let own = format!(
        "models:\n  artifact: {file}\n  candidate: {file}\npolicy:\n  file: {}\n\
         limits:\n  session_idle_ms: 3000\n  telemetry_frames_per_second_max: 1000\n",
        policy.display()
    );
    let mut gateway = Gateway::start(&app.url(), &settings(folder.path(), &own));
    assert_eq!(drift(&gateway).await["state"], "unknown", "nobody has come yet");

    // Its teachers and some like them.
    come(&gateway, 0..45, 100).await;
    let steady = drift_in_the_end(&gateway).await;
    assert_eq!(steady["state"], "steady", "{steady}");
    assert!(steady["windows"].as_f64().unwrap() >= 500.0, "{steady}");
    eventually("the metrics say so of both models", async || {
        gateway.metric("gaitway_model_drift_state", "state=\"steady\"").await == 2.0
            && gateway.metric("gaitway_model_drift_psi", "input=\"mouse\"").await > 0.0
    })
    .await;

    // A changed policy does not make it forget.
    std::fs::write(&policy, gaitway_policies::DEMO).unwrap();
    eventually("the policy is taken up", async || {
        gateway.metric("gaitway_policy_reloads_total", "ok").await >= 1.0
    })
    .await;

    come(&gateway, 200..225, 200).await;
    let moved = drift_in_the_end(&gateway).await;
    assert_eq!(moved["state"], "drifting", "{moved}");
    eventually("the metrics say so of both models", async || {
        gateway.metric("gaitway_model_drift_state", "state=\"drifting\"").await == 2.0
    })
    .await;
    assert!(moved["unknown_share"].as_f64() > moved["unknown_share_limit"].as_f64(), "{moved}");
    assert!(moved["windows"].as_f64() > steady["windows"].as_f64(), "{steady} {moved}");
    gateway.log_line(
        "the people who come have moved from those who taught the model: let `gaitway learn` make one of recent \
         recordings, and watch it as models.candidate",
    );
    assert_eq!(gateway.metric("gaitway_incidents_total", "enforce").await, 0.0, "it ends nobody's session");
}
