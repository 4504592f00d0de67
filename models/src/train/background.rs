//! The people an account's owner is told from: a site's sessions in, a background out, with what its word
//! is worth.
//!
//! Whoever is judged here is judged against a background fitted without them, by a profile that learnt from
//! their other sessions as it would live; the threshold ranks whole people. Too few people teach no
//! background, and people who came only once set no threshold. Must not know: files, bots, who was set aside.

use super::calibrate::platt_of_any;
use super::learn::{LearnRecipe, ShadowSession};
use crate::hand::Hand;
use crate::owner::{BLOCKS_MIN, Background, Owner, Owners, PEOPLE_MAX};
use crate::population::Device;
use crate::profile::{Ending, Profile};
use crate::sequential::{cusum, threshold_of_people};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// Fewest people with enough mouse movement: two to judge in each fold and eight to judge them against.
pub const TEACHERS_MIN: usize = 10;

/// One session's blocks of mouse movement, in order.
#[derive(Clone, Copy, Debug)]
pub struct OwnerSession<'a> {
    pub user: &'a str,
    pub device: Device,
    pub blocks: &'a [Hand],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoBackground {
    #[error("not asked for")]
    NotAsked,
    #[error("{people} people moved a mouse for {BLOCKS_MIN} blocks of 14 s, and it takes {TEACHERS_MIN}")]
    TooFew { people: usize },
    #[error("these people do not differ")]
    Alike,
}

/// What people taught, before a level is chosen.
#[derive(Clone, Debug)]
pub struct Lesson {
    owners: Owners,
    /// By session of a person held out: whose it is, what each judged block says.
    walks: Vec<(String, Vec<f32>)>,
}

/// What a site's sessions teach, without those set aside.
pub(super) fn of_site(
    sessions: &[ShadowSession],
    aside: &BTreeSet<usize>,
    recipe: &LearnRecipe,
) -> Result<Owners, NoBackground> {
    if !recipe.owners {
        return Err(NoBackground::NotAsked);
    }
    let kept = sessions.iter().enumerate().filter(|(i, _)| !aside.contains(i));
    let theirs: Vec<OwnerSession> = kept
        .map(|(_, session)| OwnerSession {
            user: &session.user,
            device: session.device,
            blocks: &session.blocks,
        })
        .collect();
    Ok(Lesson::learn(&theirs, recipe.seed)?.owners(recipe.false_alarm))
}

impl Lesson {
    /// The same sessions and seed give the same lesson.
    pub fn learn(sessions: &[OwnerSession], seed: u64) -> Result<Lesson, NoBackground> {
        let mut by_user: BTreeMap<&str, Vec<OwnerSession>> = BTreeMap::new();
        for session in sessions.iter().filter(|session| !session.blocks.is_empty()) {
            let theirs = by_user.entry(session.user).or_default();
            if theirs.len() < SESSIONS_MAX {
                theirs.push(*session);
            }
        }
        let enough = |sessions: &Vec<OwnerSession>| {
            sessions.iter().map(|session| session.blocks.len()).sum::<usize>() >= BLOCKS_MIN
        };
        let mut people: Vec<Vec<OwnerSession>> = by_user.into_values().filter(enough).collect();
        if people.len() < TEACHERS_MIN {
            return Err(NoBackground::TooFew { people: people.len() });
        }
        people.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        people.truncate(PEOPLE_MAX);
        let mut owners = fit(people.iter())?;
        let (mut walks, mut rows) = (Vec::new(), Vec::new());
        for fold in 0..FOLDS {
            let held_out: Vec<&Vec<OwnerSession>> = people.iter().skip(fold).step_by(FOLDS).collect();
            let outside = people.iter().enumerate().filter(|(i, _)| i % FOLDS != fold);
            let against = fit(outside.map(|(_, person)| person))?;
            for (i, person) in held_out.iter().enumerate() {
                let others = held_out.iter().enumerate().filter(|(k, _)| *k != i).map(|(_, other)| *other);
                judge(&against, person, others.take(IMPOSTORS_MAX), &mut walks, &mut rows);
            }
        }
        if rows.iter().any(|(_, other, _)| *other) && rows.iter().any(|(_, other, _)| !*other) {
            (owners.card.slope, owners.card.intercept) = platt_of_any(&rows);
        }
        for (_, walk) in &mut walks {
            walk.iter_mut().for_each(|score| *score = owners.card.slope * *score + owners.card.intercept);
        }
        Ok(Lesson { owners, walks })
    }

    /// With the threshold that a share of at most `false_alarm` of people like these ever reach.
    pub fn owners(&self, false_alarm: f32) -> Owners {
        let mut owners = self.owners.clone();
        if !self.walks.is_empty() {
            let highest = |walk: &[f32]| {
                let ledger = walk.iter().scan(0.0, |evidence, nats| {
                    *evidence = cusum(*evidence, *nats);
                    Some(*evidence)
                });
                ledger.fold(0.0, f32::max)
            };
            let maxima = self.walks.iter().map(|(user, walk)| (user.as_str(), highest(walk)));
            let threshold = threshold_of_people(maxima, false_alarm);
            owners.card.calibrated = threshold.false_alarm_max <= false_alarm;
            owners.card.threshold = Some(threshold);
        }
        owners
    }
}

fn fit<'a>(people: impl Iterator<Item = &'a Vec<OwnerSession<'a>>>) -> Result<Owners, NoBackground> {
    let blocks = |person: &Vec<OwnerSession>| -> Vec<Hand> {
        let all: Vec<&Hand> = person.iter().flat_map(|session| session.blocks).collect();
        let taken = all.len().min(BLOCKS_MAX);
        (0..taken).map(|i| all[i * all.len() / taken].clone()).collect()
    };
    let people: Vec<Vec<Hand>> = people.map(blocks).collect();
    let background = Background::fit(&people).ok_or(NoBackground::Alike)?;
    Ok(Owners::uncalibrated(background, people.len()))
}

/// What a person's sessions say of them, each by a profile of the others, and others' of the first such
/// profile; a person weighs the same whatever they moved.
fn judge<'a>(
    against: &Owners,
    person: &[OwnerSession],
    others: impl Iterator<Item = &'a Vec<OwnerSession<'a>>>,
    walks: &mut Vec<(String, Vec<f32>)>,
    rows: &mut Vec<(f32, bool, f32)>,
) {
    let mut own = Vec::new();
    let mut first = None;
    for (i, session) in person.iter().enumerate().take(JUDGED_MAX) {
        let mut profile = Profile::default();
        for (_, taught) in person.iter().enumerate().filter(|(k, _)| *k != i) {
            let blocks: Vec<(Device, Hand)> =
                taught.blocks.iter().map(|block| (taught.device, block.clone())).collect();
            profile.learn(against, &blocks, Ending::default());
        }
        let walk = scores(against, &profile, session, usize::MAX);
        if !walk.is_empty() {
            own.extend_from_slice(&walk);
            walks.push((session.user.to_string(), walk));
            first.get_or_insert(profile);
        }
    }
    let Some(profile) = first else { return };
    let strangers: Vec<f32> = others
        .filter_map(|other| other.first())
        .flat_map(|session| scores(against, &profile, session, STRANGERS_BLOCKS_MAX))
        .collect();
    if strangers.is_empty() {
        return;
    }
    for (scores, other) in [(own, false), (strangers, true)] {
        let weight = 1.0 / scores.len() as f32;
        rows.extend(scores.into_iter().map(|score| (score, other, weight)));
    }
}

/// What each block says that is made on a device the profile knows.
fn scores(against: &Owners, profile: &Profile, session: &OwnerSession, most: usize) -> Vec<f32> {
    let mut known: Vec<(usize, Option<Owner>)> = Vec::new();
    let mut score = |block: &Hand| {
        let device = profile.device_of(session.device, block)?;
        let at = known.iter().position(|(of, _)| *of == device).unwrap_or_else(|| {
            known.push((device, profile.owner(against, device)));
            known.len() - 1
        });
        Some(against.log_ratio(known[at].1.as_ref()?, block))
    };
    session.blocks.iter().take(most).filter_map(&mut score).collect()
}

const FOLDS: usize = 5;
/// Blocks a person gives to a background: what a profile of one device and a half holds.
const BLOCKS_MAX: usize = 48;
/// Sessions of a person looked at, and of those judged.
const SESSIONS_MAX: usize = 12;
const JUDGED_MAX: usize = 6;
const IMPOSTORS_MAX: usize = 12;
const STRANGERS_BLOCKS_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand;
    use crate::sim::Visitor;

    /// Blocks of two sessions of each person.
    fn people(n: u64) -> Vec<(String, Vec<Hand>)> {
        let sessions = |seed| {
            let mut visitor = Visitor::person(seed);
            let mut session = || {
                let events: Vec<_> = (0..110).flat_map(|_| visitor.next_batch(2.0).events).collect();
                (format!("u{seed}"), hand::blocks(&events))
            };
            [session(), session()]
        };
        (0..n).flat_map(sessions).collect()
    }

    fn sessions(people: &[(String, Vec<Hand>)]) -> Vec<OwnerSession<'_>> {
        people.iter().map(|(user, blocks)| OwnerSession { user, device: Device(2), blocks }).collect()
    }

    #[test]
    fn people_teach_what_strangers_are_and_promise_what_they_carry() {
        let people = people(20);
        let lesson = Lesson::learn(&sessions(&people), 1).unwrap();
        let (lax, strict) = (lesson.owners(0.1), lesson.owners(0.01));
        let bound = lax.card.threshold.unwrap();
        assert!(bound.people >= 15 && bound.nats >= crate::sequential::THRESHOLD_NATS_MIN, "{bound:?}");
        assert!(lax.card.calibrated && !strict.card.calibrated);
        assert!(lax.card.slope > 0.0, "{:?}", lax.card);
        let again = Lesson::learn(&sessions(&people), 1).unwrap();
        assert_eq!(again.owners(0.1), lax);
    }

    #[test]
    fn too_few_people_teach_nothing_and_people_who_came_once_set_no_threshold() {
        let people = people(12);
        let few = Lesson::learn(&sessions(&people[..2 * (TEACHERS_MIN - 1)]), 1).unwrap_err();
        assert_eq!(few, NoBackground::TooFew { people: TEACHERS_MIN - 1 });
        let once: Vec<OwnerSession> = sessions(&people).into_iter().step_by(2).collect();
        let owners = Lesson::learn(&once, 1).unwrap().owners(0.5);
        assert_eq!((owners.card.threshold, owners.card.calibrated), (None, false));
    }
}
