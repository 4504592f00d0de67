//! Incidents as the engine makes them, and a wait on a condition.

use gaitway_models::Timestamp;
use gaitway_models::detector::{
    Assessment, Evidence, Modality, PersonRange, ProfileState, Reason, TelemetryState,
};
use gaitway_policies::engine::{Action, Mode};
use gaitway_policies::facts::Facts;
use gaitway_policies::{Identity, Incident, SessionId, SubjectId, TokenId};
use std::time::{Duration, Instant};

/// An enforced logout of session `number`, decided at `at` and in force for an hour.
pub fn logout(number: u8, at: Timestamp) -> Incident {
    Incident {
        id: format!("G-{number:03}"),
        at,
        identity: Identity {
            session: SessionId([number; 16]),
            subject: Some(SubjectId([100; 16])),
            token: Some(TokenId([number; 16])),
            expires_at: None,
            issued_at: Some(at),
            groups: vec!["staff".into()],
        },
        rule: "certain-bot".into(),
        action: Action::Logout,
        mode: Mode::Enforce,
        by: "policy".into(),
        reason: "the pointer moves like a script".into(),
        policy_version: "0123456789abcdef".into(),
        facts: Facts { assessment: assessment(), session_age_seconds: 42.5, ..Facts::default() },
        until: at.plus(Duration::from_secs(3600)),
    }
}

pub fn with(incident: Incident, change: impl FnOnce(&mut Incident)) -> Incident {
    let mut incident = incident;
    change(&mut incident);
    incident
}

fn assessment() -> Assessment {
    Assessment {
        bot_score: Some(0.97),
        bot_evidence: 11.5,
        bot_threshold: 8.0,
        windows: 6,
        evidence: Evidence { seconds: 21.0, events: 1430 },
        modality: Modality::Mouse,
        telemetry: TelemetryState::Sufficient,
        reasons: vec![Reason {
            feature: "pointer_speed_p95".into(),
            unit: "px/s".into(),
            value: 9120.0,
            usual_low: 400.0,
            usual_high: 3200.0,
            person: Some(PersonRange { low: 600.0, high: 1450.0, sessions: 6 }),
            contribution: 0.31,
            text: "the pointer moves faster than people's".into(),
        }],
        calibrated: true,
        automation: false,
        owner_score: Some(0.25),
        owner_evidence: 1.5,
        owner_threshold: 9.0,
        owner_calibrated: true,
        profile: ProfileState::Ready,
        model: "00112233445566aa".into(),
    }
}

/// Waits until `condition` holds; fails the test with `what` after half a minute.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < deadline, "still waiting: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
