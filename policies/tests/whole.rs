//! From batches to effects: the real detector with the shipped model, simulated people and bots, the
//! policies that ship.

#![allow(clippy::unwrap_used)] // a test that cannot set up should stop

use gaitway_models::artifact::Artifact;
use gaitway_models::sim::{BotKind, Visitor};
use gaitway_models::{DEFAULT_MODEL, Detector, Timestamp};
use gaitway_policies::engine::{Action, EngineLimits, Mode};
use gaitway_policies::{Effect, Engine, Identity, Input, PolicySet, SessionId};
use std::sync::Arc;

const LIMITS: EngineLimits = EngineLimits {
    sessions_max: 1_000,
    session_idle_ms: 30 * 60_000,
    pardon_ms: 60 * 60_000,
    revocation_ms: 24 * 3_600_000,
};
/// Two minutes in batches of two seconds, as the collector sends them.
const BATCHES: u64 = 60;
const BATCH_MS: u64 = 2_000;

fn engine(yaml: &str) -> Engine {
    let detector = Detector::load(include_bytes!("../../models/artifacts/default.model")).unwrap();
    let policies = PolicySet::parse("shipped", yaml).unwrap();
    Engine::new(0, LIMITS, Arc::new(policies), Arc::new(detector))
}

fn identity(n: u8) -> Identity {
    Identity {
        session: SessionId([n; 16]),
        subject: None,
        token: None,
        expires_at: None,
        issued_at: None,
        groups: Vec::new(),
    }
}

/// Everything said about the visitors, who all come at once.
fn visit(engine: &mut Engine, visitors: &mut [(u8, Visitor)]) -> Vec<Effect> {
    let mut effects = Vec::new();
    let start = Timestamp(1_800_000_000_000);
    for step in 0..BATCHES {
        let now = Timestamp(start.0 + step * BATCH_MS);
        for (n, visitor) in visitors.iter_mut() {
            let batch = visitor.next_batch(BATCH_MS as f64 / 1_000.0);
            engine.handle(&mut effects, now, Input::Batch { identity: identity(*n), page: 1, batch });
        }
        engine.handle(&mut effects, now, Input::Tick);
    }
    effects
}

fn logged_out(effects: &[Effect], mode: Mode) -> Vec<u8> {
    let mut out: Vec<u8> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Incident(incident) if incident.action == Action::Logout && incident.mode == mode => {
                Some(incident.identity.session.0[0])
            }
            _ => None,
        })
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

#[test]
fn the_demo_policy_logs_bots_out_and_lets_people_stay() {
    let mut engine = engine(gaitway_policies::DEMO);
    let mut visitors: Vec<(u8, Visitor)> =
        (0..20).map(|n| (n, Visitor::person(u64::from(n) + 7_000))).collect();
    visitors.extend((100..110).map(|n| (n, Visitor::bot(BotKind::LinearEven, u64::from(n)))));
    let effects = visit(&mut engine, &mut visitors);
    let out = logged_out(&effects, Mode::Enforce);
    assert!(out.iter().all(|n| *n >= 100), "people were logged out: {out:?}");
    assert!(out.len() >= 8, "of ten bots only {out:?}");
    let reason = effects.iter().find_map(|effect| match effect {
        Effect::Incident(incident) if incident.action == Action::Logout => Some(incident.reason.clone()),
        _ => None,
    });
    assert!(reason.unwrap().starts_with("evidence "));
}

#[test]
fn the_default_policy_touches_nobody() {
    let mut engine = engine(gaitway_policies::DEFAULT);
    let mut visitors: Vec<(u8, Visitor)> =
        (0..5).map(|n| (n, Visitor::bot(BotKind::LinearEven, u64::from(n)))).collect();
    let effects = visit(&mut engine, &mut visitors);
    assert!(effects.iter().all(|effect| !matches!(effect, Effect::Stand { .. })));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Incident(_))), "it still says what it sees");
    assert_eq!(logged_out(&effects, Mode::Enforce), [0_u8; 0]);
}

#[test]
fn a_candidate_says_what_it_thinks_beside_the_model_in_force_and_changes_nothing() {
    // A candidate that sees bots nowhere.
    let mut blunt = Artifact::decode(DEFAULT_MODEL).unwrap();
    for expert in &mut blunt.card.experts {
        (expert.slope, expert.intercept) = (0.0, -1.0);
    }
    let blunt = Arc::new(Detector::load(&blunt.encode()).unwrap());
    let visitors = || vec![(1, Visitor::person(7_001)), (100, Visitor::bot(BotKind::LinearEven, 100))];
    let (mut alone, mut watched) = (engine(gaitway_policies::DEMO), engine(gaitway_policies::DEMO));
    watched.score_beside(blunt);
    let effects = visit(&mut alone, &mut visitors());
    assert_eq!(effects, visit(&mut watched, &mut visitors()));
    assert_eq!(logged_out(&effects, Mode::Enforce), [100]);
    let verdicts = |engine: &Engine, n| engine.session(&SessionId([n; 16])).unwrap().verdicts();
    assert_eq!(verdicts(&watched, 1), Some((false, false)));
    assert_eq!(verdicts(&watched, 100), Some((true, false)));
    assert_eq!(verdicts(&alone, 100), None);
}
