//! What is kept of a person's hand from one session to the next, and how it may change.
//!
//! A profile holds counts of movement (`Hand`), never events, places or keys, and is fitted anew to
//! the background when it is used. Intervals and distances belong to the device as much as to the hand,
//! so blocks are kept by device: its class (pixel ratio, finger or mouse, as the browser tells) and how
//! often its moves are heard. On a device it has not learnt the profile knows nobody, and says so. It
//! learns only from sessions that ended well and looked like their owner, and no session may replace
//! more than a quarter of what it knows of a device: who walks a baseline towards their own hand needs
//! many sessions that nobody found strange. Must not know: whose it is, where it is kept.

use crate::hand::{self, BINS, Hand};
use crate::owner::{BLOCKS_MIN, Owner, Owners};
use crate::population::Device;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Most devices kept; past it the one least recently learnt from is forgotten.
pub const DEVICES_MAX: usize = 4;
/// Most blocks kept of each: seven minutes of active input.
pub const BLOCKS_MAX: usize = 32;
/// Fewest blocks that judge anybody: two minutes.
pub const BLOCKS_READY: usize = 8;
/// Share of what is known of a device that one session may replace: one block in four.
pub const REPLACED_SHARE: usize = 4;
/// A session whose blocks speak for somebody else by more than this on average teaches nothing, nats.
/// Stricter than any threshold at which a session is doubted.
pub const LEARNT_NATS_MAX: f32 = 0.0;
/// Moves heard this many times more or less often come from another device: 60 and 75 Hz are one, 60 and
/// 120 Hz are two.
pub const INTERVAL_RATIO_MAX: f32 = 1.5;
/// Largest profile accepted, bytes. One in use holds about 470 bytes a block.
pub const PROFILE_BYTES_MAX: usize =
    HEADER_BYTES + DEVICES_MAX * (DEVICE_BYTES + BLOCKS_MAX * (2 + PACKED_BYTES_MAX)) + CHECK_BYTES;

/// A person's usual hand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Sessions learnt from.
    sessions: u32,
    /// Least recently learnt from first.
    devices: Vec<Known>,
}

/// A person's hand on one device.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    device: Device,
    /// Typical time between moves, milliseconds.
    interval_ms: f32,
    /// Oldest first.
    blocks: Vec<Packed>,
}

/// A block of which nobody asks right now: zeros are most of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed(Box<[u8]>);

/// How a session ended, as far as it matters to what may be learnt from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    pub revoked: bool,
    /// A challenge or a fresh login was asked for and never given.
    pub challenge_failed: bool,
    pub called_bot: bool,
    /// Movement seen before.
    pub replayed: bool,
    /// Evidence for somebody else was on its way to the threshold.
    pub doubted: bool,
    /// An identity provider or an operator has vouched for the person: then it may look like somebody
    /// else, for a new mouse does.
    pub proved: bool,
}

/// What became of a session offered to a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// So many blocks were taken.
    Taken(usize),
    /// Too little input on any one device.
    TooLittle,
    EndedBadly,
    /// It looked like somebody else.
    Unlike,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProfileError {
    #[error("this is not a Gaitway profile")]
    Magic,
    #[error("the profile is in format {0}; this build reads format {FORMAT_VERSION}")]
    Format(u8),
    #[error("the profile counts other movements than this build does; the person is learnt anew")]
    Counts,
    #[error("the profile is damaged: its checksum does not match its content")]
    Damaged,
}

impl Ending {
    pub fn is_well(&self) -> bool {
        Ending { proved: false, doubted: self.doubted && !self.proved, ..*self } == Ending::default()
    }
}

impl Profile {
    /// Blocks kept, of all devices.
    pub fn blocks(&self) -> usize {
        self.devices.iter().map(|known| known.blocks.len()).sum()
    }

    /// Sessions learnt from.
    pub fn sessions(&self) -> u32 {
        self.sessions
    }

    /// Which of the devices a block was made on; `None` for one the profile has not met.
    pub fn device_of(&self, device: Device, block: &Hand) -> Option<usize> {
        nearest(self.devices.iter(), device, block)
    }

    /// Whether enough is known of a device for anybody to be judged on it.
    pub fn is_ready(&self, device: usize) -> bool {
        self.devices.get(device).is_some_and(|known| known.blocks.len() >= BLOCKS_READY)
    }

    /// The person on a device against a background; `None` until enough is known of them there.
    pub fn owner(&self, owners: &Owners, device: usize) -> Option<Owner> {
        if !self.is_ready(device) {
            return None;
        }
        let blocks: Vec<Hand> = self.devices[device].blocks.iter().map(Packed::unpack).collect();
        owners.background.enrol(&blocks)
    }

    /// Learns from a whole session, once it is over. Of a device that is not ready it takes all it can hold.
    pub fn learn(&mut self, owners: &Owners, session: &[(Device, Hand)], ending: Ending) -> Learnt {
        if !ending.is_well() {
            return Learnt::EndedBadly;
        }
        let mut groups: Vec<(Known, Vec<&Hand>)> = Vec::new();
        for (device, block) in session {
            let met = self.device_of(*device, block).map(|at| self.devices[at].interval_ms);
            let group = match met {
                Some(interval_ms) => groups
                    .iter()
                    .position(|(known, _)| known.device == *device && known.interval_ms == interval_ms),
                None => nearest(groups.iter().map(|(known, _)| known), *device, block),
            };
            match group {
                Some(group) => groups[group].1.push(block),
                None => {
                    let Some(interval_ms) = met.or_else(|| event_interval_ms(block)) else { continue };
                    groups.push((Known { device: *device, interval_ms, blocks: Vec::new() }, vec![block]));
                }
            }
        }
        let (mut taken, mut unlike) = (0, false);
        for (new, blocks) in groups.into_iter().filter(|(_, blocks)| blocks.len() >= BLOCKS_MIN) {
            let same = |known: &Known| known.device == new.device && known.interval_ms == new.interval_ms;
            let at = self.devices.iter().position(same);
            let owner = at.and_then(|at| self.owner(owners, at));
            let mut known = at.map_or(new, |at| self.devices.remove(at));
            let most = match owner {
                None => BLOCKS_MAX,
                Some(owner) => {
                    let sum: f32 = blocks.iter().map(|block| owners.log_ratio(&owner, block)).sum();
                    if !ending.proved && sum / blocks.len() as f32 > LEARNT_NATS_MAX {
                        unlike = true;
                        self.devices.push(known);
                        continue;
                    }
                    (known.blocks.len() / REPLACED_SHARE).max(1)
                }
            };
            taken += known.take(&blocks, most);
            self.devices.push(known);
            if self.devices.len() > DEVICES_MAX {
                self.devices.remove(0);
            }
        }
        debug_assert!(self.devices.iter().all(|known| known.blocks.len() <= BLOCKS_MAX));
        match taken {
            0 if unlike => Learnt::Unlike,
            0 => Learnt::TooLittle,
            taken => {
                self.sessions = self.sessions.saturating_add(1);
                Learnt::Taken(taken)
            }
        }
    }

    /// Magic, format, hash of what blocks count, sessions, devices (class, interval, blocks with their
    /// lengths), checksum; numbers little endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(FORMAT_VERSION);
        bytes.extend(hand::table_hash().as_bytes());
        bytes.extend(self.sessions.to_le_bytes());
        bytes.push(self.devices.len() as u8);
        for known in &self.devices {
            bytes.extend(known.device.0.to_le_bytes());
            bytes.extend(known.interval_ms.to_le_bytes());
            bytes.push(known.blocks.len() as u8);
            for Packed(block) in &known.blocks {
                bytes.extend((block.len() as u16).to_le_bytes());
                bytes.extend(block);
            }
        }
        let check = Sha256::digest(&bytes);
        bytes.extend(&check[..CHECK_BYTES]);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Profile, ProfileError> {
        let body = bytes.strip_prefix(MAGIC).ok_or(ProfileError::Magic)?;
        let (&format, _) = body.split_first().ok_or(ProfileError::Damaged)?;
        if format != FORMAT_VERSION {
            return Err(ProfileError::Format(format));
        }
        let (whole, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(ProfileError::Damaged)?;
        if bytes.len() > PROFILE_BYTES_MAX || Sha256::digest(whole)[..CHECK_BYTES] != *check {
            return Err(ProfileError::Damaged);
        }
        let rest = &mut whole.get(MAGIC.len() + 1..).ok_or(ProfileError::Damaged)?;
        if take::<HASH_DIGITS>(rest).is_some_and(|hash| hash != hand::table_hash().as_bytes()) {
            return Err(ProfileError::Counts);
        }
        Profile::read(rest).filter(|_| rest.is_empty()).ok_or(ProfileError::Damaged)
    }

    fn read(rest: &mut &[u8]) -> Option<Profile> {
        let sessions = u32::from_le_bytes(take(rest)?);
        let [devices] = take(rest)?;
        let device = |_| {
            let device = Device(u32::from_le_bytes(take(rest)?));
            let interval_ms = f32::from_le_bytes(take(rest)?);
            let [blocks] = take(rest)?;
            let block = |_| {
                let length = usize::from(u16::from_le_bytes(take(rest)?));
                let (block, after) = rest.split_at_checked(length)?;
                *rest = after;
                Packed::read(block)
            };
            let blocks: Vec<Packed> = (0..blocks).map(block).collect::<Option<_>>()?;
            let sound = interval_ms > 0.0 && interval_ms.is_finite() && blocks.len() <= BLOCKS_MAX;
            sound.then_some(Known { device, interval_ms, blocks })
        };
        let devices: Vec<Known> = (0..devices).map(device).collect::<Option<_>>()?;
        (devices.len() <= DEVICES_MAX).then_some(Profile { sessions, devices })
    }
}

impl Known {
    /// How far a block's event rate is from this device's, as a logarithm; `None` if another device made it.
    fn distance(&self, device: Device, block: &Hand) -> Option<f32> {
        let ratio = event_interval_ms(block)? / self.interval_ms;
        let is_near = (1.0 / INTERVAL_RATIO_MAX..=INTERVAL_RATIO_MAX).contains(&ratio);
        (self.device == device && is_near).then(|| ratio.ln().abs())
    }

    /// Takes at most so many blocks, spread over the session: its first minute is not all of it.
    fn take(&mut self, session: &[&Hand], most: usize) -> usize {
        let taken = session.len().min(most);
        self.blocks.extend((0..taken).map(|i| Packed::new(session[i * session.len() / taken])));
        let over = self.blocks.len().saturating_sub(BLOCKS_MAX);
        self.blocks.drain(..over);
        taken
    }
}

/// Not the first that a block may be of: their order changes with every session.
fn nearest<'a>(known: impl Iterator<Item = &'a Known>, device: Device, block: &Hand) -> Option<usize> {
    let near = known.enumerate().filter_map(|(i, known)| Some((i, known.distance(device, block)?)));
    near.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
}

/// How often a device's moves are heard. Beyond 40 ms (remote desktops) that is the hand's doing as well.
fn event_interval_ms(block: &Hand) -> Option<f32> {
    block.interval_ms().map(|interval| interval.min(INTERVAL_MS_MAX))
}

impl Packed {
    /// Each count as a varint; a run of zeros as a zero and its length.
    pub(crate) fn new(block: &Hand) -> Packed {
        let mut bytes = Vec::with_capacity(PACKED_BYTES_MAX / 4);
        let mut counts = block.counts().iter().peekable();
        while let Some(&count) = counts.next() {
            if count == 0 {
                let mut run = 1;
                while run < u8::MAX && counts.next_if(|count| **count == 0).is_some() {
                    run += 1;
                }
                bytes.extend([0, run]);
                continue;
            }
            let mut rest = count;
            while rest >= 0x80 {
                bytes.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(rest as u8);
        }
        Packed(bytes.into())
    }

    pub(crate) fn unpack(&self) -> Hand {
        // Checked when it was read, and made by `new` otherwise.
        Hand::of(unpack(&self.0).unwrap_or([0; BINS]))
    }

    fn read(bytes: &[u8]) -> Option<Packed> {
        unpack(bytes).map(|_| Packed(bytes.into()))
    }
}

/// `None` for anything but exactly the counts of one block.
fn unpack(bytes: &[u8]) -> Option<[u16; BINS]> {
    let mut counts = [0; BINS];
    let (mut at, mut bytes) = (0, bytes.iter());
    while let Some(&byte) = bytes.next() {
        if byte == 0 {
            at += usize::from(*bytes.next()?);
            continue;
        }
        let mut count = u32::from(byte & 0x7F);
        let (mut last, mut shift) = (byte, 7);
        while last & 0x80 != 0 {
            last = *bytes.next()?;
            count |= u32::from(last & 0x7F) << shift;
            shift += 7;
            if shift > 21 {
                return None;
            }
        }
        *counts.get_mut(at)? = u16::try_from(count).ok()?;
        at += 1;
    }
    (at == BINS).then_some(counts)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*head)
}

const INTERVAL_MS_MAX: f32 = 40.0;
const MAGIC: &[u8] = b"GAITWAYP";
/// Written and read. A higher one is of a newer version of Gaitway.
pub const FORMAT_VERSION: u8 = 2;
const CHECK_BYTES: usize = 8;
const HASH_DIGITS: usize = 16;
const HEADER_BYTES: usize = MAGIC.len() + 1 + HASH_DIGITS + 4 + 1;
const DEVICE_BYTES: usize = 4 + 4 + 1;
/// Three bytes for the largest count.
const PACKED_BYTES_MAX: usize = 3 * BINS;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::Background;
    use crate::sim::Visitor;

    const DESK: Device = Device(9);

    fn on(device: Device, seed: u64, skip: usize) -> Vec<(Device, Hand)> {
        let mut visitor = Visitor::person(seed);
        (0..skip).for_each(|_| drop(visitor.next_batch(2.0)));
        let events: Vec<_> = (0..100).flat_map(|_| visitor.next_batch(2.0).events).collect();
        hand::blocks(&events).into_iter().map(|block| (device, block)).collect()
    }

    fn session(seed: u64, skip: usize) -> Vec<(Device, Hand)> {
        on(DESK, seed, skip)
    }

    fn owners() -> Owners {
        let hands = |seed| session(seed, 0).into_iter().map(|(_, block)| block).collect();
        let people: Vec<Vec<Hand>> = (0..24).map(hands).collect();
        Owners::uncalibrated(Background::fit(&people).unwrap(), people.len())
    }

    fn known(owners: &Owners) -> Profile {
        let mut profile = Profile::default();
        while profile.blocks() < BLOCKS_READY {
            let skip = 100 * profile.sessions() as usize;
            assert!(matches!(profile.learn(owners, &session(50, skip), Ending::default()), Learnt::Taken(_)));
        }
        profile
    }

    #[test]
    fn no_session_moves_more_than_a_quarter_of_a_profile() {
        let owners = owners();
        let mut profile = known(&owners);
        let before = profile.clone();
        let long: Vec<_> = (10..16).flat_map(|i| session(50, 100 * i)).collect();
        assert!(long.len() > before.blocks());
        assert_eq!(
            profile.learn(&owners, &long, Ending::default()),
            Learnt::Taken(before.blocks() / REPLACED_SHARE)
        );
        for _ in 0..20 {
            profile.learn(&owners, &long, Ending::default());
        }
        assert_eq!(profile.blocks(), BLOCKS_MAX);
    }

    #[test]
    fn a_session_that_ended_badly_or_looked_like_somebody_else_teaches_nothing() {
        let owners = owners();
        let mut profile = known(&owners);
        let before = profile.clone();
        let same = session(50, 900);
        let mut strange = Hand::of([9; BINS]);
        // Heard as often as the owner's own moves.
        strange.merge(&same[0].1);
        let other = vec![(DESK, strange); 6];
        let bad = [
            Ending { revoked: true, ..Ending::default() },
            Ending { challenge_failed: true, ..Ending::default() },
            Ending { called_bot: true, ..Ending::default() },
            Ending { replayed: true, proved: true, ..Ending::default() },
            Ending { doubted: true, ..Ending::default() },
        ];
        for ending in bad {
            assert_eq!(profile.learn(&owners, &same, ending), Learnt::EndedBadly);
        }
        assert_eq!(profile.learn(&owners, &other, Ending::default()), Learnt::Unlike);
        assert_eq!(profile.learn(&owners, &same[..1], Ending::default()), Learnt::TooLittle);
        assert_eq!(profile, before);
        let proved = Ending { proved: true, doubted: true, ..Ending::default() };
        assert_eq!(
            profile.learn(&owners, &other, proved),
            Learnt::Taken(before.blocks() / REPLACED_SHARE),
            "who has proved who they are may have bought a mouse"
        );
    }

    #[test]
    fn nobody_is_judged_before_enough_is_known() {
        let owners = owners();
        let mut profile = Profile::default();
        assert!(profile.owner(&owners, 0).is_none());
        profile.learn(&owners, &session(50, 0)[..BLOCKS_MIN], Ending::default());
        assert!(profile.owner(&owners, 0).is_none());
        assert!(known(&owners).owner(&owners, 0).is_some());
    }

    #[test]
    fn a_device_not_learnt_is_unknown_and_learnt_beside_the_others() {
        let owners = owners();
        let mut profile = known(&owners);
        let desk = session(50, 900).remove(0).1;
        assert_eq!(profile.device_of(DESK, &desk), Some(0));
        assert_eq!(profile.device_of(Device(8), &desk), None, "another class of device");
        let mut seldom = Hand::of([0; BINS]);
        // All intervals of 33 ms: another display, or a browser that is throttled.
        let mut counts = *desk.counts();
        counts[..hand::GROUPS[0].1].fill(0);
        counts[32] = 100;
        seldom.merge(&Hand::of(counts));
        assert_eq!(profile.device_of(DESK, &seldom), None, "another event rate");
        let before = profile.blocks();
        for i in 0..DEVICES_MAX as u32 {
            profile.learn(&owners, &on(Device(20 + i), 51, 0), Ending::default());
        }
        assert_eq!(profile.devices.len(), DEVICES_MAX);
        assert_eq!(profile.device_of(DESK, &desk), None, "the one not used for longest made room");
        assert!(before > 0 && profile.encode().len() <= PROFILE_BYTES_MAX);
    }

    #[test]
    fn of_two_devices_a_block_is_of_the_nearer_whichever_was_learnt_last() {
        let block = session(50, 0).remove(0).1;
        let known = |factor: f32| Known {
            device: DESK,
            interval_ms: event_interval_ms(&block).unwrap() * factor,
            blocks: Vec::new(),
        };
        for (devices, near) in [([known(1.4), known(1.05)], 1), ([known(0.95), known(0.7)], 0)] {
            let mut profile = Profile { sessions: 1, devices: devices.into() };
            assert_eq!(profile.device_of(DESK, &block), Some(near));
            profile.devices.reverse();
            assert_eq!(profile.device_of(DESK, &block), Some(1 - near));
            profile.learn(&owners(), &vec![(DESK, block.clone()); BLOCKS_MIN], Ending::default());
            let taught = profile.devices.iter().find(|known| !known.blocks.is_empty()).unwrap();
            assert!((event_interval_ms(&block).unwrap() / taught.interval_ms).ln().abs() < 0.1);
        }
    }

    #[test]
    fn blocks_come_out_of_their_packing_as_they_went_in() {
        for (_, block) in session(3, 0).into_iter().chain([(DESK, Hand::of([u16::MAX; BINS]))]) {
            let packed = Packed::new(&block);
            assert!(packed.0.len() <= PACKED_BYTES_MAX);
            assert_eq!(packed.unpack(), block);
        }
        assert_eq!(Packed::new(&Hand::EMPTY).unpack(), Hand::EMPTY);
        for wrong in [&[1][..], &[0, 255], &[0x80, 0x80, 0x80, 1], &[0], &[1; BINS + 1]] {
            assert!(unpack(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn bytes_round_trip_and_anything_else_is_refused() {
        let mut profile = Profile::default();
        profile.learn(&owners(), &session(1, 0), Ending::default());
        let bytes = profile.encode();
        assert_eq!(Profile::decode(&bytes), Ok(profile.clone()));
        assert!(bytes.len() < 600 * profile.blocks(), "{} bytes", bytes.len());
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
