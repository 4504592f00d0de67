//! The people an account's owner is told from: a site's sessions in, a background out, with what its word
//! is worth.
//!
//! Whoever is judged here is judged as they would be live: by a profile and a background that both learnt from
//! their other sessions. (A background without them would flatter: against one that holds a person, what that
//! person does next looks less like them.) Strangers taught neither. The threshold ranks whole people. Too few people teach no
//! background, and people who came only once set no threshold. Must not know: files, bots, who was set aside.

use super::calibrate::platt_of_any;
use super::learn::{LearnRecipe, ShadowSession};
use crate::doubt::lowest_log_ratio;
use crate::hand::Hand;
use crate::owner::{BLOCKS_MIN, Background, Owners, PEOPLE_MAX};
use crate::population::Device;
use crate::profile::{Ending, Profile};
use crate::sequential::{cusum, threshold_of_people};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// Fewest people with enough mouse movement: two strangers in each fold and eight to tell them from.
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
        let mut owners = fit(&people)?;
        let (mut walks, mut rows) = (Vec::new(), Vec::new());
        for round in 0..JUDGED_MAX {
            // Who came once teaches in every round and is judged in none.
            let is_judged = |person: &Vec<OwnerSession>| person.len() >= 2 && person.len() > round;
            if !people.iter().any(is_judged) {
                break;
            }
            // Twice: who was a stranger the first time is judged the second.
            for fold in [round, round + 1] {
                let is_stranger = |i: usize| i % FOLDS == fold % FOLDS;
                let is_next = |i: usize| !is_stranger(i) && (fold == round || i % FOLDS == round % FOLDS);
                let numbered = || people.iter().enumerate();
                let rest = numbered().filter(|(i, _)| !is_stranger(*i)).map(|(_, person)| {
                    let mut rest = person.clone();
                    is_judged(person).then(|| rest.remove(round));
                    rest
                });
                let Ok(against) = fit(&rest.collect::<Vec<_>>()) else { continue };
                let strangers: Vec<&OwnerSession> = numbered()
                    .filter(|(i, _)| is_stranger(*i))
                    .filter_map(|(_, person)| person.first())
                    .collect();
                for (i, person) in numbered().filter(|(i, person)| is_next(*i) && is_judged(person)) {
                    let others = strangers.iter().cycle().skip(i).take(IMPOSTORS_MAX.min(strangers.len()));
                    judge(&against, person, round, others.copied(), &mut walks, &mut rows);
                }
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

fn fit(people: &[Vec<OwnerSession>]) -> Result<Owners, NoBackground> {
    let most = BLOCKS_MAX / people.len().max(1);
    let blocks = |person: &Vec<OwnerSession>| -> Vec<Hand> {
        let all: Vec<&Hand> = person.iter().flat_map(|session| session.blocks).collect();
        let taken = all.len().min(most);
        (0..taken).map(|i| all[i * all.len() / taken].clone()).collect()
    };
    let people: Vec<Vec<Hand>> = people.iter().map(blocks).collect();
    let background = Background::fit(&people).ok_or(NoBackground::Alike)?;
    Ok(Owners::uncalibrated(background, people.len()))
}

/// What one of a person's sessions says of them by a profile of the others, and what others' sessions say of
/// that profile; a person weighs the same whatever they moved.
fn judge<'a>(
    against: &Owners,
    person: &[OwnerSession],
    at: usize,
    others: impl Iterator<Item = &'a OwnerSession<'a>>,
    walks: &mut Vec<(String, Vec<f32>)>,
    rows: &mut Vec<(f32, bool, f32)>,
) {
    let mut profile = Profile::default();
    for (_, taught) in person.iter().enumerate().filter(|(i, _)| *i != at) {
        let blocks: Vec<(Device, Hand)> =
            taught.blocks.iter().map(|block| (taught.device, block.clone())).collect();
        profile.learn(against, &blocks, Ending::default());
    }
    let own = scores(against, &profile, &person[at], usize::MAX);
    if own.is_empty() {
        return;
    }
    walks.push((person[at].user.to_string(), own.clone()));
    let strangers: Vec<f32> =
        others.flat_map(|session| scores(against, &profile, session, STRANGERS_BLOCKS_MAX)).collect();
    if strangers.is_empty() {
        return;
    }
    // Each of their sessions is judged once.
    let weight = 1.0 / person.len().min(JUDGED_MAX) as f32;
    for (scores, other) in [(own, false), (strangers, true)] {
        let weight = weight / scores.len() as f32;
        rows.extend(scores.into_iter().map(|score| (score, other, weight)));
    }
}

/// What each block says that is made on a device the profile knows.
fn scores(against: &Owners, profile: &Profile, session: &OwnerSession, most: usize) -> Vec<f32> {
    let mut enrolled = Vec::new();
    let mut score = |block: &Hand| {
        lowest_log_ratio(against, profile, &mut enrolled, profile.devices_of(session.device, block), block)
    };
    session.blocks.iter().take(most).filter_map(&mut score).collect()
}

/// Blocks that all people give to a background: 48 each of as many as there can be, more each of fewer, who
/// have to say the more.
const BLOCKS_MAX: usize = 48 * PEOPLE_MAX;
/// Sessions of a person looked at, and of those judged.
const SESSIONS_MAX: usize = 12;
const JUDGED_MAX: usize = 6;
const IMPOSTORS_MAX: usize = 12;
const FOLDS: usize = 5;
const STRANGERS_BLOCKS_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand;
    use crate::sim::Visitor;

    /// Blocks of two sessions of each person.
    fn people(n: u64) -> Vec<(String, Vec<Hand>)> {
        visits(n, 2)
    }

    fn visits(n: u64, each: usize) -> Vec<(String, Vec<Hand>)> {
        let sessions = |seed| {
            let mut visitor = Visitor::person(seed);
            let mut session = || {
                let events: Vec<_> = (0..110).flat_map(|_| visitor.next_batch(2.0).events).collect();
                (format!("u{seed}"), hand::blocks(&events))
            };
            (0..each).map(|_| session()).collect::<Vec<_>>()
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
    fn owners_who_taught_the_background_are_doubted_no_more_than_the_promise_says() {
        let all = visits(30, 3);
        let (taught, later): (Vec<_>, Vec<_>) =
            sessions(&all).into_iter().enumerate().partition(|(i, _)| i % 3 < 2);
        let taught: Vec<OwnerSession> = taught.into_iter().map(|(_, session)| session).collect();
        let lesson = Lesson::learn(&taught, 1).unwrap();
        let promised: Vec<f32> = lesson.walks.iter().flat_map(|(_, walk)| walk.clone()).collect();
        let mut live = Vec::new();
        for (theirs, (_, later)) in taught.chunks(2).zip(&later) {
            let mut profile = Profile::default();
            for session in theirs {
                let blocks: Vec<_> =
                    session.blocks.iter().map(|block| (session.device, block.clone())).collect();
                profile.learn(&lesson.owners, &blocks, Ending::default());
            }
            live.extend(scores(&lesson.owners, &profile, later, usize::MAX));
        }
        let mean = |nats: &[f32]| nats.iter().sum::<f32>() / nats.len() as f32;
        assert!(live.len() > 100 && mean(&live) <= mean(&promised), "{} {}", mean(&live), mean(&promised));
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
