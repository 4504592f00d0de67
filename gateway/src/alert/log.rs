//! The log sink: one structured line per incident, target `gaitway::incident`.
//!
//! Pseudonyms and scores only: no addresses, tokens or groups.

use super::{AlertError, AlertSink, letter};
use async_trait::async_trait;
use gaitway_policies::Incident;

pub struct LogSink;

#[async_trait]
impl AlertSink for LogSink {
    fn name(&self) -> &'static str {
        "log"
    }

    fn wants(&self, _incident: &Incident) -> bool {
        true
    }

    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError> {
        let assessment = &incident.facts.assessment;
        let features: Vec<String> =
            assessment.reasons.iter().map(|reason| letter::plain(&reason.feature, 64)).collect();
        let headline = letter::headline(incident);
        tracing::info!(
            target: "gaitway::incident",
            {
            incident.id = %letter::plain(&incident.id, 64),
            incident.at = %letter::time(incident.at),
            session.id = %incident.identity.session,
            subject.id = incident.identity.subject.map(tracing::field::display),
            rule = %letter::plain(&incident.rule, 128),
            action = letter::action_name(incident.action),
            mode = letter::mode_name(incident.mode),
            by = %letter::plain(&incident.by, 64),
            policy.version = %letter::plain(&incident.policy_version, 64),
            model = %letter::plain(&assessment.model, 64),
            bot.score = assessment.bot_score.map(short),
            bot.evidence = short(assessment.bot_evidence),
            evidence.seconds = short(assessment.evidence.seconds),
            evidence.events = assessment.evidence.events,
            features = features.join(","),
            reason = %letter::plain(&incident.reason, 300),
            },
            "{headline}"
        );
        Ok(())
    }
}

/// An f32 widened to the log's f64 would show nine digits of chance.
fn short(number: f32) -> f64 {
    (f64::from(number) * 10_000.0).round() / 10_000.0
}
