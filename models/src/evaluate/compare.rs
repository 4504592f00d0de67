//! Two models side by side on the same recordings: where their verdicts part.
//!
//! Labels are not looked at except to say whom a change concerns; nothing here says which model is
//! right. Must not know: files, pages.

use super::EvaluateError;
use super::bot::{judge, reach};
use crate::dataset::Recording;
use crate::detector::Detector;
use serde::Serialize;
use std::collections::BTreeMap;

/// What the second model says otherwise than the first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    pub sessions: Changes,
    pub windows: Changes,
    /// Windows on which only one of the two spoke: the first, the second.
    pub only_first: usize,
    pub only_second: usize,
    /// Mean and largest difference of a window's log-likelihood ratio, nats.
    pub mean_difference: f64,
    pub largest_difference: f64,
    /// Sessions whose verdict changed, by source and bot family, as far as one is known.
    pub groups: BTreeMap<String, Changes>,
}

/// Verdicts, counted: windows above even odds, sessions at each model's own threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    pub compared: usize,
    pub now_bot: usize,
    pub now_person: usize,
}

impl Changes {
    fn count(&mut self, first: bool, second: bool) {
        self.compared += 1;
        self.now_bot += usize::from(!first && second);
        self.now_person += usize::from(first && !second);
    }
}

/// Scores recordings by both models.
pub fn compare(first: &[u8], second: &[u8], recordings: &[Recording]) -> Result<Comparison, EvaluateError> {
    if recordings.is_empty() {
        return Err(EvaluateError::Empty);
    }
    let load = |bytes| crate::artifact::Artifact::decode(bytes).map(|a| Detector::new(a, String::new()));
    let (first, second) = (load(first)?, load(second)?);
    let mut comparison = Comparison::default();
    let (mut sum, mut both) = (0.0, 0usize);
    for (a, b) in judge(&first, recordings).iter().zip(&judge(&second, recordings)) {
        for (a, b) in a.windows.iter().zip(&b.windows) {
            match (a.fused, b.fused) {
                (Some(a), Some(b)) => {
                    comparison.windows.count(a > 0.0, b > 0.0);
                    let difference = f64::from((a - b).abs());
                    sum += difference;
                    both += 1;
                    comparison.largest_difference = comparison.largest_difference.max(difference);
                }
                (Some(_), None) => comparison.only_first += 1,
                (None, Some(_)) => comparison.only_second += 1,
                (None, None) => {}
            }
        }
        let verdicts = (reach(a).is_some(), reach(b).is_some());
        comparison.sessions.count(verdicts.0, verdicts.1);
        let group = format!("{}, {}", a.source, a.family.as_deref().unwrap_or("no bot known"));
        comparison.groups.entry(group).or_default().count(verdicts.0, verdicts.1);
    }
    comparison.mean_difference = if both > 0 { sum / both as f64 } else { 0.0 };
    Ok(comparison)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEFAULT_MODEL;
    use crate::artifact::Artifact;
    use crate::sim::{BotKind, Visitor};
    use crate::train::learn::{LearnRecipe, learn, shadow_sessions};

    fn recordings() -> Vec<Recording> {
        let recording = |(i, family): (u64, Option<BotKind>)| {
            let mut visitor = family.map_or(Visitor::person(i), |kind| Visitor::bot(kind, i));
            Recording {
                session: format!("s{i}"),
                source: "here".into(),
                user: format!("u{i}"),
                label: if family.is_some() {
                    crate::dataset::Label::Bot
                } else {
                    crate::dataset::Label::Human
                },
                family: family.map(|kind| kind.name().to_string()),
                licence: "own".into(),
                note: String::new(),
                marks: Default::default(),
                environment: None,
                events: (0..40).flat_map(|_| visitor.next_batch(2.0).events).collect(),
            }
        };
        [(900, None), (901, None), (902, Some(BotKind::LinearEven)), (903, Some(BotKind::LinearEven))]
            .map(recording)
            .into()
    }

    #[test]
    fn a_model_agrees_with_itself_and_a_blunted_one_says_which_bots_it_lost() {
        let same = compare(DEFAULT_MODEL, DEFAULT_MODEL, &recordings()).unwrap();
        assert_eq!((same.sessions.compared, same.sessions.now_bot, same.sessions.now_person), (4, 0, 0));
        assert_eq!(same.largest_difference, 0.0);
        assert!(same.windows.compared > 8);
        let mut blunt = Artifact::decode(DEFAULT_MODEL).unwrap();
        for expert in &mut blunt.card.experts {
            (expert.slope, expert.intercept) = (0.0, -1.0);
        }
        let lost = compare(DEFAULT_MODEL, &blunt.encode(), &recordings()).unwrap();
        assert_eq!(lost.sessions.now_person, 2);
        assert_eq!(lost.groups["here, linear-even"].now_person, 2);
        assert_eq!(lost.groups["here, no bot known"].now_bot, 0);
        assert!(lost.largest_difference > 1.0);
    }

    #[test]
    fn what_a_site_taught_counts_in_the_comparison() {
        let base = Artifact::decode(DEFAULT_MODEL).unwrap();
        let recording = |i| {
            let mut visitor = Visitor::person(i);
            let events = (0..90).flat_map(|_| visitor.next_batch(2.0).events).collect();
            Recording { user: format!("u{i}"), session: format!("s{i}"), events, ..recordings().remove(0) }
        };
        let people: Vec<Recording> = (500..510).map(recording).collect();
        let recipe = LearnRecipe { trees: 12, owners: false, ..LearnRecipe::default() };
        let taught = learn(&shadow_sessions(&people).0, &base, &recipe, &mut |_| ()).unwrap().artifact;
        let changed = compare(DEFAULT_MODEL, &taught.encode(), &people).unwrap();
        assert!(changed.largest_difference > 1.0, "{changed:?}");
    }
}
