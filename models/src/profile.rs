//! What is kept of a person's hand from one session to the next, and how it may change.
//!
//! A profile holds counts of movement (`Hand`), never events, places or keys, and is fitted anew to
//! the background when it is used. It learns only from sessions that ended well and looked like their
//! owner, and no session may replace more than a quarter of it: who walks a baseline towards their own
//! hand needs many sessions that nobody found strange. Must not know: whose it is, where it is kept.

use crate::hand::{BINS, Hand};
use crate::owner::{BLOCKS_MIN, Background, Owner};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Most blocks kept: eleven minutes of active input.
pub const BLOCKS_MAX: usize = 48;
/// Fewest blocks that judge anybody: two minutes.
pub const BLOCKS_READY: usize = 8;
/// Share of a profile that one session may replace: one block in four.
pub const REPLACED_SHARE: usize = 4;
/// A session whose blocks speak for somebody else by more than this on average teaches nothing, nats.
/// Stricter than any threshold at which a session is doubted.
pub const LEARNT_NATS_MAX: f32 = 0.0;
/// Largest profile accepted, bytes.
pub const PROFILE_BYTES_MAX: usize = HEADER_BYTES + BLOCKS_MAX * BINS * 2 + CHECK_BYTES;

/// A person's usual hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Sessions learnt from.
    sessions: u32,
    /// Oldest first.
    blocks: Vec<Hand>,
}

/// How a session ended, as far as it matters to what may be learnt from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    pub revoked: bool,
    pub challenge_failed: bool,
    pub called_bot: bool,
}

/// What became of a session offered to a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// So many blocks were taken.
    Taken(usize),
    /// Too little input.
    TooLittle,
    EndedBadly,
    /// It looked like somebody else.
    Unlike,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProfileError {
    #[error("this is not a Gaitway profile")]
    Magic,
    #[error(
        "the profile is in format {0}; this build reads format {FORMAT_VERSION}, and learns the person anew"
    )]
    Format(u8),
    #[error("the profile counts other movements than this build does; the person is learnt anew")]
    Counts,
    #[error("the profile is damaged: its checksum does not match its content")]
    Damaged,
}

impl Profile {
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    pub fn sessions(&self) -> u32 {
        self.sessions
    }

    /// The person against a background; `None` until enough is known of them.
    pub fn owner(&self, background: &Background) -> Option<Owner> {
        if self.blocks.len() < BLOCKS_READY { None } else { background.enrol(&self.blocks) }
    }

    /// Learns from a whole session, once it is over. A profile that is not ready takes all it can hold.
    pub fn learn(&mut self, background: &Background, session: &[Hand], ending: Ending) -> Learnt {
        if ending != Ending::default() {
            return Learnt::EndedBadly;
        }
        if session.len() < BLOCKS_MIN {
            return Learnt::TooLittle;
        }
        let most = match self.owner(background) {
            None => BLOCKS_MAX,
            Some(owner) => {
                let sum: f32 = session.iter().map(|block| background.score(&owner, block)).sum();
                if sum / session.len() as f32 > LEARNT_NATS_MAX {
                    return Learnt::Unlike;
                }
                (self.blocks.len() / REPLACED_SHARE).max(1)
            }
        };
        let taken = session.len().min(most);
        // Spread over the session: its first minute is not all of it.
        self.blocks.extend((0..taken).map(|i| session[i * session.len() / taken].clone()));
        let over = self.blocks.len().saturating_sub(BLOCKS_MAX);
        self.blocks.drain(..over);
        self.sessions = self.sessions.saturating_add(1);
        debug_assert!(self.blocks.len() <= BLOCKS_MAX);
        Learnt::Taken(taken)
    }

    /// Magic, format, bins, sessions, blocks, counts (little endian), checksum.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(FORMAT_VERSION);
        bytes.extend((BINS as u16).to_le_bytes());
        bytes.extend(self.sessions.to_le_bytes());
        bytes.extend((self.blocks.len() as u16).to_le_bytes());
        for block in &self.blocks {
            block.counts().iter().for_each(|count| bytes.extend(count.to_le_bytes()));
        }
        let check = Sha256::digest(&bytes);
        bytes.extend(&check[..CHECK_BYTES]);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Profile, ProfileError> {
        let body = bytes.strip_prefix(MAGIC).ok_or(ProfileError::Magic)?;
        let (&format, body) = body.split_first().ok_or(ProfileError::Damaged)?;
        if format != FORMAT_VERSION {
            return Err(ProfileError::Format(format));
        }
        let (whole, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(ProfileError::Damaged)?;
        if bytes.len() > PROFILE_BYTES_MAX || Sha256::digest(whole)[..CHECK_BYTES] != *check {
            return Err(ProfileError::Damaged);
        }
        let (bins, body) = body.split_first_chunk().ok_or(ProfileError::Damaged)?;
        if usize::from(u16::from_le_bytes(*bins)) != BINS {
            return Err(ProfileError::Counts);
        }
        let (sessions, body) = body.split_first_chunk().ok_or(ProfileError::Damaged)?;
        let (blocks, body) = body.split_first_chunk().ok_or(ProfileError::Damaged)?;
        let counts = body.strip_suffix(check).ok_or(ProfileError::Damaged)?;
        if counts.len() != usize::from(u16::from_le_bytes(*blocks)) * BINS * 2 {
            return Err(ProfileError::Damaged);
        }
        let block = |bytes: &[u8]| {
            let mut counts = [0; BINS];
            let (pairs, _) = bytes.as_chunks::<2>();
            counts.iter_mut().zip(pairs).for_each(|(count, pair)| *count = u16::from_le_bytes(*pair));
            Hand::of(counts)
        };
        let blocks = counts.chunks_exact(BINS * 2).map(block).collect();
        Ok(Profile { sessions: u32::from_le_bytes(*sessions), blocks })
    }
}

const MAGIC: &[u8] = b"GAITWAYP";
const FORMAT_VERSION: u8 = 1;
const CHECK_BYTES: usize = 8;
const HEADER_BYTES: usize = MAGIC.len() + 1 + 2 + 4 + 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand;
    use crate::sim::Visitor;

    fn session(seed: u64, skip: usize) -> Vec<Hand> {
        let mut visitor = Visitor::person(seed);
        (0..skip).for_each(|_| drop(visitor.next_batch(2.0)));
        let events: Vec<_> = (0..100).flat_map(|_| visitor.next_batch(2.0).events).collect();
        hand::blocks(&events)
    }

    fn background() -> Background {
        let people: Vec<Vec<Hand>> = (0..24).map(|seed| session(seed, 0)).collect();
        Background::fit(&people).unwrap()
    }

    fn known(background: &Background) -> Profile {
        let mut profile = Profile::default();
        while profile.blocks() < BLOCKS_READY {
            let skip = 100 * profile.sessions() as usize;
            assert!(matches!(
                profile.learn(background, &session(50, skip), Ending::default()),
                Learnt::Taken(_)
            ));
        }
        profile
    }

    #[test]
    fn no_session_moves_more_than_a_quarter_of_a_profile() {
        let background = background();
        let mut profile = known(&background);
        let before = profile.clone();
        let long: Vec<Hand> = (10..16).flat_map(|i| session(50, 100 * i)).collect();
        assert!(long.len() > before.blocks());
        assert_eq!(
            profile.learn(&background, &long, Ending::default()),
            Learnt::Taken(before.blocks() / REPLACED_SHARE)
        );
        for _ in 0..60 {
            profile.learn(&background, &long, Ending::default());
        }
        assert!(profile.blocks() <= BLOCKS_MAX && profile.encode().len() <= PROFILE_BYTES_MAX);
    }

    #[test]
    fn a_session_that_ended_badly_or_looked_like_somebody_else_teaches_nothing() {
        let background = background();
        let mut profile = known(&background);
        let before = profile.clone();
        let (same, other) = (session(50, 900), vec![Hand::of([9; BINS]); 6]);
        for ending in [
            Ending { revoked: true, ..Ending::default() },
            Ending { challenge_failed: true, ..Ending::default() },
            Ending { called_bot: true, ..Ending::default() },
        ] {
            assert_eq!(profile.learn(&background, &same, ending), Learnt::EndedBadly);
        }
        assert_eq!(profile.learn(&background, &other, Ending::default()), Learnt::Unlike);
        assert_eq!(profile.learn(&background, &same[..1], Ending::default()), Learnt::TooLittle);
        assert_eq!(profile, before);
    }

    #[test]
    fn nobody_is_judged_before_enough_is_known() {
        let background = background();
        let mut profile = Profile::default();
        assert!(profile.owner(&background).is_none());
        profile.learn(&background, &session(50, 0)[..BLOCKS_MIN], Ending::default());
        assert!(profile.owner(&background).is_none());
        assert!(known(&background).owner(&background).is_some());
    }

    #[test]
    fn bytes_round_trip_and_anything_else_is_refused() {
        let profile = Profile { sessions: 3, blocks: session(1, 0) };
        let bytes = profile.encode();
        assert_eq!(Profile::decode(&bytes), Ok(profile));
        for cut in (0..bytes.len()).step_by(97) {
            assert!(Profile::decode(&bytes[..cut]).is_err());
        }
        for at in (0..bytes.len()).step_by(53) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(Profile::decode(&damaged).is_err(), "byte {at}");
        }
        let mut newer = bytes.clone();
        newer[MAGIC.len()] = 9;
        assert_eq!(Profile::decode(&newer), Err(ProfileError::Format(9)));
    }
}
