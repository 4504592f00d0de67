//! What is kept of a person's hand from one session to the next, and how it may change.
//!
//! A profile holds counts of movement (`Hand`) and, to explain with, features of a few windows (`Habit`),
//! never events, places or keys, and is fitted anew to the background when it is used. Intervals and
//! distances belong to the device as much as to the hand, so blocks are kept by device: its class (pixel
//! ratio, finger or mouse, as the browser tells) and how often its moves are heard. On a device it has not
//! learnt the profile knows nobody, and says so. It learns only from sessions that ended well and looked
//! like their owner, and no session may replace more than a quarter of what it knows of a device: who walks
//! a baseline towards their own hand needs many sessions that nobody found strange. Must not know: whose it
//! is, where it is kept.

use crate::detector::PersonRange;
use crate::features;
use crate::habit::{Figures, Habit};
use crate::hand::{self, BINS, Hand};
use crate::owner::{BLOCKS_MIN, Owner, Owners};
use crate::population::Device;
use crate::time::Timestamp;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Most devices kept, each mouse counted; past it the one least recently learnt from is forgotten.
pub const DEVICES_MAX: usize = 4;
/// Most blocks kept of each: twenty-two minutes of active input.
pub const BLOCKS_MAX: usize = 96;
/// Most blocks kept of all together, so that a profile fits a row of the store whatever its blocks count;
/// past it the device with most of them forgets its oldest.
pub const BLOCKS_ALL_MAX: usize = 160;
/// Most mice known of one class of device, as an office's and a home's may be; a third takes the place of the
/// one least recently learnt from.
pub const MICE_MAX: usize = 2;
/// A second mouse of a class is known once sessions this far apart have been vouched for, hours: a login stolen
/// today makes nobody known today.
pub const VOUCHED_APART_HOURS: u32 = 12;
/// Farther apart they say nothing of each other, and the later counts as the first.
pub const VOUCHED_WITHIN_HOURS: u32 = 30 * 24;
/// Fewest blocks that judge anybody: two minutes.
pub const BLOCKS_READY: usize = 8;
/// Share of what is known of a device that one session may replace: one block in four.
pub const REPLACED_SHARE: usize = 4;
/// The same once a device holds all it can, so that several sessions stay known: one block in eight.
pub const REPLACED_SHARE_FULL: usize = 8;
/// A session whose blocks speak for somebody else by more than this on average teaches nothing, nats.
/// Stricter than any threshold at which a session is doubted.
pub const LEARNT_NATS_MAX: f32 = 0.0;
/// Moves heard this many times more or less often come from another device: 60 and 75 Hz are one, 60 and
/// 120 Hz are two.
pub const INTERVAL_RATIO_MAX: f32 = 1.5;
/// Largest profile accepted, bytes: whatever its blocks count, with windows as far as there is room. One in
/// use holds about 470 bytes a block.
pub const PROFILE_BYTES_MAX: usize =
    HEADER_BYTES + DEVICES_MAX * DEVICE_BYTES + BLOCKS_ALL_MAX * (2 + PACKED_BYTES_MAX) + CHECK_BYTES;

/// A person's usual hand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Sessions learnt from.
    sessions: u32,
    /// Least recently learnt from first.
    devices: Vec<Known>,
}

/// A person's hand by one mouse on one device.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    device: Device,
    /// Typical time between moves, milliseconds.
    interval_ms: f32,
    /// Oldest first.
    blocks: Vec<Packed>,
    habit: Habit,
    /// Vouched for so many hours after 1970 and not since: nobody is known by it yet.
    vouched_once: Option<u32>,
}

/// What a session's blocks teach.
enum Taught {
    Met(usize),
    /// The first mouse of its class.
    New,
    /// One beside it, which somebody vouched for.
    Another,
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

    /// Which of the devices a block may have been made on: the mice known of its class; none of one the profile
    /// has not met.
    pub fn devices_of(&self, device: Device, block: &Hand) -> impl Iterator<Item = usize> {
        let class = nearest(self.devices.iter().map(Known::class), device, block);
        let devices = self.devices.iter().enumerate();
        let is_of = move |known: &Known| known.vouched_once.is_none() && Some(known.class()) == class;
        devices.filter(move |(_, known)| is_of(known)).map(|(at, _)| at)
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

    /// Where this person's windows lie by the mice at `devices`; `None` while too few sessions tell.
    pub(crate) fn range(&self, devices: &[usize], feature: usize) -> Option<PersonRange> {
        Habit::range(devices.iter().filter_map(|&at| Some(&self.devices.get(at)?.habit)), feature)
    }

    /// Learns from a whole session's blocks, once it is over.
    pub fn learn(&mut self, owners: &Owners, session: &[(Device, Hand)], ending: Ending) -> Learnt {
        self.learn_session(owners, session, &[], Timestamp(0), ending)
    }

    /// Learns from a whole session, once it is over. Of a device that is not ready it takes all it can hold.
    /// Windows teach the mouse that the blocks of their device teach, unless they may be of two.
    pub(crate) fn learn_session(
        &mut self,
        owners: &Owners,
        session: &[(Device, Hand)],
        windows: &[(Device, Figures)],
        opened: Timestamp,
        ending: Ending,
    ) -> Learnt {
        if !ending.is_well() {
            return Learnt::EndedBadly;
        }
        // Each class of device met: its event rate, and the session's blocks.
        let mut groups: Vec<(Device, f32, Vec<&Hand>)> = Vec::new();
        for (device, block) in session {
            let met = nearest(self.devices.iter().map(Known::class), *device, block);
            let group = match met {
                Some(met) => groups.iter().position(|(of, interval_ms, _)| (*of, *interval_ms) == met),
                None => {
                    let near = nearest(groups.iter().map(|(of, ms, _)| (*of, *ms)), *device, block);
                    near.and_then(|near| groups.iter().position(|(of, ms, _)| (*of, *ms) == near))
                }
            };
            match group {
                Some(group) => groups[group].2.push(block),
                None => {
                    let interval_ms = met.map(|(_, interval_ms)| interval_ms);
                    let Some(interval_ms) = interval_ms.or_else(|| event_interval_ms(block)) else {
                        continue;
                    };
                    groups.push((*device, interval_ms, vec![block]));
                }
            }
        }
        let hour = (opened.0 / 3_600_000).clamp(1, u64::from(u32::MAX)) as u32;
        let is_over = |since: u32| hour.saturating_sub(since) > VOUCHED_WITHIN_HOURS;
        self.devices.retain(|known| !known.vouched_once.is_some_and(is_over));
        let devices: Vec<Device> = groups.iter().map(|(device, ..)| *device).collect();
        let (mut taken, mut unlike) = (0, false);
        for (device, interval_ms, blocks) in
            groups.into_iter().filter(|(.., blocks)| blocks.len() >= BLOCKS_MIN)
        {
            let Some(taught) = self.taught_by(owners, (device, interval_ms), &blocks, ending.proved) else {
                unlike = true;
                continue;
            };
            let mut known = match taught {
                Taught::Met(at) => self.devices.remove(at),
                Taught::New => Known::new((device, interval_ms), None),
                Taught::Another => Known::new((device, interval_ms), Some(hour)),
            };
            if let Some(since) = known.vouched_once.filter(|_| !known.blocks.is_empty()) {
                let is_later = hour.checked_sub(since).map(|hours| hours >= VOUCHED_APART_HOURS);
                match is_later.filter(|_| known.is_like(owners, &blocks)) {
                    Some(true) => known.vouched_once = None,
                    Some(false) => {}
                    // Whoever vouches for this hand does not vouch for the other.
                    None => known = Known::new(known.class(), Some(hour)),
                }
            }
            let most = match known.blocks.len() {
                ..BLOCKS_READY => BLOCKS_MAX,
                BLOCKS_MAX => BLOCKS_MAX / REPLACED_SHARE_FULL,
                n => n / REPLACED_SHARE,
            };
            taken += known.take(&blocks, most);
            if devices.iter().filter(|of| **of == device).count() == 1 {
                let windows = windows.iter().filter(|(of, _)| *of == device);
                known.habit.take(self.sessions, &windows.map(|(_, figures)| *figures).collect::<Vec<_>>());
            }
            let class = known.class();
            self.devices.push(known);
            let mice = self.devices.iter().filter(|known| known.vouched_once.is_none());
            if mice.filter(|known| known.class() == class).count() > MICE_MAX {
                let oldest = self.devices.iter().position(|known| known.class() == class);
                oldest.map(|at| self.devices.remove(at));
            }
            // Nothing known gives way to what is kept aside.
            if self.devices.len() > DEVICES_MAX {
                let aside = self.devices.iter().position(|known| known.vouched_once.is_some());
                self.devices.remove(aside.unwrap_or(0));
            }
            while self.blocks() > BLOCKS_ALL_MAX {
                let room = |known: &&mut Known| {
                    (known.vouched_once.is_some() && !known.blocks.is_empty(), known.blocks.len())
                };
                let most = self.devices.iter_mut().max_by_key(room);
                most.into_iter().for_each(|known| drop(known.blocks.remove(0)));
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

    /// Which of what is known of a class of device a session's blocks teach: the mouse that looks most like
    /// them, or one of which too little is known to tell. `None` if they look like somebody else's and nobody
    /// vouched for them; if somebody did, they come from another mouse than those known.
    fn taught_by(
        &self,
        owners: &Owners,
        class: (Device, f32),
        blocks: &[&Hand],
        proved: bool,
    ) -> Option<Taught> {
        let mice = (0..self.devices.len()).filter(|&at| self.devices[at].class() == class);
        let (mice, awaited): (Vec<usize>, Vec<usize>) =
            mice.partition(|&at| self.devices[at].vouched_once.is_none());
        let mean = |at: usize| -> Option<f32> {
            let owner = self.owner(owners, at)?;
            let sum: f32 = blocks.iter().map(|block| owners.log_ratio(&owner, block)).sum();
            Some(sum / blocks.len() as f32)
        };
        let likeness = mice.iter().filter_map(|&at| Some((at, mean(at)?)));
        let Some((likest, nats)) = likeness.min_by(|a, b| a.1.total_cmp(&b.1)) else {
            return Some(mice.first().map_or(Taught::New, |&at| Taught::Met(at)));
        };
        if nats <= LEARNT_NATS_MAX {
            return Some(Taught::Met(likest));
        }
        if let Some(&unfinished) = mice.iter().find(|&&at| !self.is_ready(at)) {
            return Some(Taught::Met(unfinished));
        }
        proved.then_some(awaited.first().map_or(Taught::Another, |&at| Taught::Met(at)))
    }

    /// Magic, format, hash of what blocks count and of the feature table, sessions, devices (class, interval,
    /// hour vouched for once or nought, blocks with their lengths, length of the windows, windows), checksum;
    /// numbers little endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(FORMAT_VERSION);
        bytes.extend(hand::table_hash().as_bytes());
        bytes.extend(features::table_hash().as_bytes());
        bytes.extend(self.sessions.to_le_bytes());
        bytes.push(self.devices.len() as u8);
        let blocks = self.devices.iter().flat_map(|known| &known.blocks);
        let blocks = blocks.map(|Packed(block)| 2 + block.len()).sum();
        let mut room = (BLOCKS_ALL_MAX * (2 + PACKED_BYTES_MAX)).saturating_sub(blocks);
        for known in &self.devices {
            bytes.extend(known.device.0.to_le_bytes());
            bytes.extend(known.interval_ms.to_le_bytes());
            bytes.extend(known.vouched_once.unwrap_or(0).to_le_bytes());
            bytes.push(known.blocks.len() as u8);
            for Packed(block) in &known.blocks {
                bytes.extend((block.len() as u16).to_le_bytes());
                bytes.extend(block);
            }
            let mut windows = Vec::new();
            known.habit.write(&mut windows);
            // Never so in use: each block would have to count far more than anybody moves.
            if windows.len() > room {
                windows.clear();
            }
            room -= windows.len();
            bytes.extend((windows.len() as u16).to_le_bytes());
            bytes.extend(windows);
        }
        let check = Sha256::digest(&bytes);
        bytes.extend(&check[..CHECK_BYTES]);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Profile, ProfileError> {
        let body = bytes.strip_prefix(MAGIC).ok_or(ProfileError::Magic)?;
        let (&format, _) = body.split_first().ok_or(ProfileError::Damaged)?;
        if !(FORMAT_READ_MIN..=FORMAT_VERSION).contains(&format) {
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
        Profile::read(rest, format).filter(|_| rest.is_empty()).ok_or(ProfileError::Damaged)
    }

    fn read(rest: &mut &[u8], format: u8) -> Option<Profile> {
        let has_windows = format >= FORMAT_WINDOWS;
        let features: Option<[u8; HASH_DIGITS]> = if has_windows { Some(take(rest)?) } else { None };
        // Windows of another table of features mean nothing here; the next sessions bring new ones.
        let are_known = features.is_some_and(|hash| hash == features::table_hash().as_bytes());
        let sessions = u32::from_le_bytes(take(rest)?);
        let [devices] = take(rest)?;
        let device = |_| {
            let device = Device(u32::from_le_bytes(take(rest)?));
            let interval_ms = f32::from_le_bytes(take(rest)?);
            let hour = if format >= FORMAT_VOUCHED { u32::from_le_bytes(take(rest)?) } else { 0 };
            let [blocks] = take(rest)?;
            let blocks: Vec<Packed> =
                (0..blocks).map(|_| Packed::read(take_counted(rest)?)).collect::<Option<_>>()?;
            let windows = if has_windows { take_counted(rest)? } else { &[] };
            let habit = if are_known { Habit::read(windows)? } else { Habit::default() };
            let sound = interval_ms > 0.0 && interval_ms.is_finite() && blocks.len() <= BLOCKS_MAX;
            let vouched_once = (hour > 0).then_some(hour);
            sound.then_some(Known { device, interval_ms, blocks, habit, vouched_once })
        };
        let devices: Vec<Known> = (0..devices).map(device).collect::<Option<_>>()?;
        (devices.len() <= DEVICES_MAX).then_some(Profile { sessions, devices })
    }
}

impl Known {
    fn new((device, interval_ms): (Device, f32), vouched_once: Option<u32>) -> Known {
        Known { device, interval_ms, blocks: Vec::new(), habit: Habit::default(), vouched_once }
    }

    /// Mice of one class cannot be told apart but by the hand.
    fn class(&self) -> (Device, f32) {
        (self.device, self.interval_ms)
    }

    /// Whether a session looks made by the same hand, judged by the longer of the two; no if neither is long
    /// enough.
    fn is_like(&self, owners: &Owners, session: &[&Hand]) -> bool {
        let kept: Vec<Hand> = self.blocks.iter().map(Packed::unpack).collect();
        let session: Vec<Hand> = session.iter().map(|&block| block.clone()).collect();
        let (longer, shorter) = if kept.len() > session.len() { (kept, session) } else { (session, kept) };
        let owner = Some(longer).filter(|blocks| blocks.len() >= BLOCKS_READY);
        let owner = owner.and_then(|blocks| owners.background.enrol(&blocks[..blocks.len().min(BLOCKS_MAX)]));
        let nats =
            owner.map(|owner| shorter.iter().map(|block| owners.log_ratio(&owner, block)).sum::<f32>());
        nats.is_some_and(|nats| nats <= LEARNT_NATS_MAX * shorter.len() as f32)
    }

    /// Takes at most so many blocks, spread over the session: its first minute is not all of it. What makes
    /// room is spread over what was known, and always the oldest: the latest sessions are not all of it either.
    fn take(&mut self, session: &[&Hand], most: usize) -> usize {
        let taken = session.len().min(most);
        let before = self.blocks.len();
        let over = (before + taken).saturating_sub(BLOCKS_MAX);
        let (mut at, mut gone) = (0, 0);
        self.blocks.retain(|_| {
            let goes = gone < over && at == gone * before / over;
            (at, gone) = (at + 1, gone + usize::from(goes));
            !goes
        });
        self.blocks.extend((0..taken).map(|i| Packed::new(session[i * session.len() / taken])));
        taken
    }
}

/// The class whose event rate is nearest to a block's; not the first it may be of, as their order changes
/// with every session. `None` if another device made it.
fn nearest(
    classes: impl Iterator<Item = (Device, f32)>,
    device: Device,
    block: &Hand,
) -> Option<(Device, f32)> {
    let heard_ms = event_interval_ms(block)?;
    let near = classes.filter(|(of, _)| *of == device).map(|class| (class, heard_ms / class.1));
    let near = near.filter(|(_, ratio)| (1.0 / INTERVAL_RATIO_MAX..=INTERVAL_RATIO_MAX).contains(ratio));
    near.min_by(|a, b| a.1.ln().abs().total_cmp(&b.1.ln().abs())).map(|(class, _)| class)
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

/// Bytes after their number.
fn take_counted<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(u16::from_le_bytes(take(rest)?));
    let (counted, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(counted)
}

const INTERVAL_MS_MAX: f32 = 40.0;
const MAGIC: &[u8] = b"GAITWAYP";
/// Written. A higher one is of a newer version of Gaitway.
pub const FORMAT_VERSION: u8 = 5;
/// The first to hold windows, and to say which mouse was vouched for once.
const FORMAT_WINDOWS: u8 = 4;
const FORMAT_VOUCHED: u8 = 5;
/// Read: 2 held the same as 3 of at most 32 blocks a device, which is why what holds more is not called so.
const FORMAT_READ_MIN: u8 = 2;
const CHECK_BYTES: usize = 8;
const HASH_DIGITS: usize = 16;
const HEADER_BYTES: usize = MAGIC.len() + 1 + 2 * HASH_DIGITS + 4 + 1;
const DEVICE_BYTES: usize = 4 + 4 + 4 + 1 + 2;
/// Three bytes for the largest count.
const PACKED_BYTES_MAX: usize = 3 * BINS;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::owner::Background;
    use crate::sim::Visitor;

    pub(crate) const DESK: Device = Device(9);
    /// One that is kept.
    const FEATURE: usize = 2;

    fn on(device: Device, seed: u64, skip: usize) -> Vec<(Device, Hand)> {
        let mut visitor = Visitor::person(seed);
        (0..skip).for_each(|_| drop(visitor.next_batch(2.0)));
        let events: Vec<_> = (0..100).flat_map(|_| visitor.next_batch(2.0).events).collect();
        hand::blocks(&events).into_iter().map(|block| (device, block)).collect()
    }

    pub(crate) fn session(seed: u64, skip: usize) -> Vec<(Device, Hand)> {
        on(DESK, seed, skip)
    }

    pub(crate) fn owners() -> Owners {
        let hands = |seed| session(seed, 0).into_iter().map(|(_, block)| block).collect();
        let people: Vec<Vec<Hand>> = (0..24).map(hands).collect();
        Owners::uncalibrated(Background::fit(&people).unwrap(), people.len())
    }

    /// A session of other counts, heard as often as the owner's own moves are.
    pub(crate) fn by_other_mouse(own: &Hand, mut counts: [u16; BINS]) -> Vec<(Device, Hand)> {
        let intervals = hand::GROUPS[0].1;
        counts[..intervals].copy_from_slice(&own.counts()[..intervals]);
        vec![(DESK, Hand::of(counts)); BLOCKS_READY]
    }

    impl Profile {
        /// As versions did that asked for one session: however short it was, its mouse was known.
        pub(crate) fn keep_another_mouse(&mut self, blocks: &[(Device, Hand)]) {
            let blocks = blocks.iter().map(|(_, block)| Packed::new(block)).collect();
            self.devices.push(Known { blocks, ..Known::new(self.devices[0].class(), None) });
        }
    }

    pub(crate) fn known(owners: &Owners) -> Profile {
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
        assert_eq!(
            profile.learn(&owners, &long, Ending::default()),
            Learnt::Taken(BLOCKS_MAX / REPLACED_SHARE_FULL)
        );
    }

    #[test]
    fn what_makes_room_is_spread_over_what_was_known_and_the_oldest_goes() {
        let numbered =
            |from: u16, n: u16| -> Vec<Hand> { (from..from + n).map(|i| Hand::of([i; BINS])).collect() };
        let mut known = Known::new((DESK, 16.0), None);
        let (first, second) = (numbered(0, BLOCKS_MAX as u16), numbered(1000, 40));
        known.take(&first.iter().collect::<Vec<_>>(), BLOCKS_MAX);
        assert_eq!(known.take(&second.iter().collect::<Vec<_>>(), 12), 12);
        let kept: Vec<u16> = known.blocks.iter().map(|block| block.unpack().counts()[0]).collect();
        assert_eq!((kept.len(), kept[0]), (BLOCKS_MAX, 1), "{kept:?}");
        assert!(kept[..BLOCKS_MAX - 12].windows(2).all(|pair| pair[1] - pair[0] <= 2), "{kept:?}");
        assert!(kept.ends_with(&[1030, 1033, 1036]), "{kept:?}");
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
    }

    #[test]
    fn who_proved_it_may_have_another_mouse_and_each_is_judged_by_the_likest() {
        let owners = owners();
        let mut profile = known(&owners);
        let first = session(50, 900);
        let by_other_mouse = |counts| by_other_mouse(&first[0].1, counts);
        let says = |profile: &Profile, block: &Hand| {
            let mice = profile.devices_of(DESK, block);
            crate::doubt::lowest_log_ratio(&owners, profile, &mut Vec::new(), mice, block).unwrap()
        };
        let second = by_other_mouse([9; BINS]);
        let before = (says(&profile, &first[0].1), says(&profile, &second[0].1));
        assert!(before.1 > 0.0);
        let proved = Ending { proved: true, doubted: true, ..Ending::default() };
        let blocks = profile.blocks();
        let month = VOUCHED_WITHIN_HOURS;
        for (hour, known) in
            [(500_000, 1), (500_011, 1), (400_000, 1), (400_001 + month, 1), (400_013 + month, 2)]
        {
            let opened = Timestamp(3_600_000 * u64::from(hour));
            // Two that are both too short to tell are no two of one hand.
            let blocks = if known == 2 { &second[..] } else { &second[..BLOCKS_MIN] };
            let taken = profile.learn_session(&owners, blocks, &[], opened, proved);
            assert_eq!(taken, Learnt::Taken(blocks.len()));
            assert_eq!(profile.devices_of(DESK, &second[0].1).count(), known, "hour {hour}");
            assert!(known == 2 || says(&profile, &second[0].1) == before.1, "hour {hour}");
            assert_eq!(Profile::decode(&profile.encode()), Ok(profile.clone()));
        }
        assert_eq!(profile.blocks(), blocks + BLOCKS_MIN + second.len(), "what is known of the first stays");
        assert!(says(&profile, &first[0].1) <= before.0);
        assert!(says(&profile, &second[0].1) < 0.0, "{before:?}");
        let known: Vec<usize> = profile.devices.iter().map(|known| known.blocks.len()).collect();
        for ending in [Ending::default(), proved] {
            assert!(matches!(profile.learn(&owners, &first, ending), Learnt::Taken(_)));
            assert!(matches!(profile.learn(&owners, &second, Ending::default()), Learnt::Taken(_)));
        }
        assert_eq!(profile.devices.len(), MICE_MAX, "from now on both settle without anybody's word");
        assert!(known.iter().zip(&profile.devices).all(|(n, known)| *n <= known.blocks.len()));
        let mut people = (51..80).map(|seed| by_other_mouse(*session(seed, 0)[0].1.counts()));
        let third = people.find(|third| says(&profile, &third[0].1) > 0.0).unwrap();
        assert_eq!(profile.learn(&owners, &third, Ending::default()), Learnt::Unlike);
        assert!(matches!(profile.learn(&owners, &second, Ending::default()), Learnt::Taken(_)));
        let unknown = says(&profile, &third[0].1);
        for day in [700, 701] {
            assert_eq!(says(&profile, &third[0].1), unknown, "day {day}");
            let opened = Timestamp(24 * 3_600_000 * day);
            profile.learn_session(&owners, &third, &[], opened, proved);
        }
        assert!(says(&profile, &third[0].1) < 0.0 && says(&profile, &second[0].1) < 0.0);
        assert!(says(&profile, &first[0].1) > before.0, "the one not used for longest gave way");
        assert_eq!(profile.devices.len(), MICE_MAX);
    }

    #[test]
    fn two_hands_vouched_for_once_each_stay_unknown_and_push_nothing_known_out() {
        let owners = owners();
        let mut profile = known(&owners);
        let first = session(50, 900).remove(0).1;
        let thief = by_other_mouse(&first, [9; BINS]);
        let like_thief = Known::new((DESK, 1.0), None);
        let like_thief =
            Known { blocks: thief.iter().map(|(_, block)| Packed::new(block)).collect(), ..like_thief };
        let mut people = (51..80).map(|seed| by_other_mouse(&first, *session(seed, 0)[0].1.counts()));
        let owners_other = people
            .find(|other| {
                let blocks: Vec<&Hand> = other.iter().map(|(_, block)| block).collect();
                let mut profile = profile.clone();
                !like_thief.is_like(&owners, &blocks)
                    && profile.learn(&owners, other, Ending::default()) == Learnt::Unlike
            })
            .unwrap();
        for device in (20..).map(Device).take(DEVICES_MAX - 2) {
            profile.learn(&owners, &on(device, 51, 0), Ending::default());
        }
        let proved = Ending { proved: true, ..Ending::default() };
        let vouched = [(&thief, 1), (&owners_other, 1), (&thief, 1), (&owners_other, 1), (&owners_other, 2)];
        for (day, (blocks, mice)) in (700..).zip(vouched) {
            let opened = Timestamp(24 * 3_600_000 * day);
            profile.learn_session(&owners, blocks, &[], opened, proved);
            assert_eq!(profile.devices_of(DESK, &first).count(), mice, "day {day}");
            assert_eq!(profile.devices.len(), DEVICES_MAX);
        }
        // Full of what is known, it keeps nothing more aside; and what is aside goes after its time.
        for (device, known) in [(Device(30), DEVICES_MAX), (DESK, DEVICES_MAX)] {
            profile.learn(&owners, &on(device, 52, 0), proved);
            let is_known = |known: &&Known| known.vouched_once.is_none();
            assert_eq!(profile.devices.iter().filter(is_known).count(), known, "{device:?}");
        }
        let mut profile = self::known(&owners);
        profile.learn_session(&owners, &thief, &[], Timestamp(24 * 3_600_000 * 700), proved);
        assert_eq!(profile.devices.len(), 2);
        profile.learn_session(&owners, &on(DESK, 50, 0), &[], Timestamp(24 * 3_600_000 * 731), proved);
        assert_eq!(profile.devices.len(), 1);
    }

    #[test]
    fn many_devices_leave_each_less_room() {
        let block = session(50, 0).remove(0).1;
        let mut profile = Profile::default();
        for device in (0..DEVICES_MAX as u32).map(Device) {
            profile.learn(&owners(), &vec![(device, block.clone()); BLOCKS_MAX], Ending::default());
        }
        let kept: Vec<usize> = profile.devices.iter().map(|known| known.blocks.len()).collect();
        assert_eq!(kept.iter().sum::<usize>(), BLOCKS_ALL_MAX);
        assert!(kept.iter().all(|n| *n >= BLOCKS_ALL_MAX / DEVICES_MAX), "{kept:?}");
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
        let device_of = |profile: &Profile, device, block| profile.devices_of(device, block).next();
        assert_eq!(device_of(&profile, DESK, &desk), Some(0));
        assert_eq!(device_of(&profile, Device(8), &desk), None, "another class of device");
        let mut seldom = Hand::of([0; BINS]);
        // All intervals of 33 ms: another display, or a browser that is throttled.
        let mut counts = *desk.counts();
        counts[..hand::GROUPS[0].1].fill(0);
        counts[32] = 100;
        seldom.merge(&Hand::of(counts));
        assert_eq!(device_of(&profile, DESK, &seldom), None, "another event rate");
        let before = profile.blocks();
        for i in 0..DEVICES_MAX as u32 {
            profile.learn(&owners, &on(Device(20 + i), 51, 0), Ending::default());
        }
        assert_eq!(profile.devices.len(), DEVICES_MAX);
        assert_eq!(device_of(&profile, DESK, &desk), None, "the one not used for longest made room");
        assert!(before > 0 && profile.encode().len() <= PROFILE_BYTES_MAX);
    }

    #[test]
    fn of_two_devices_a_block_is_of_the_nearer_whichever_was_learnt_last() {
        let block = session(50, 0).remove(0).1;
        let known = |factor: f32| Known::new((DESK, event_interval_ms(&block).unwrap() * factor), None);
        for (devices, near) in [([known(1.4), known(1.05)], 1), ([known(0.95), known(0.7)], 0)] {
            let mut profile = Profile { sessions: 1, devices: devices.into() };
            assert_eq!(profile.devices_of(DESK, &block).collect::<Vec<_>>(), [near]);
            profile.devices.reverse();
            assert_eq!(profile.devices_of(DESK, &block).collect::<Vec<_>>(), [1 - near]);
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

    /// What a person's sessions leave who moves evenly, or, in the last, otherwise.
    fn accustomed(owners: &Owners, sessions: usize, last: Ending) -> Profile {
        let mut profile = Profile::default();
        for n in 1..=sessions {
            let blocks = session(50, 100 * n);
            let (ending, even) = if n == sessions { (last, 0.9) } else { (Ending::default(), 0.1) };
            let windows = [(DESK, Figures::of(&[even; features::FEATURE_COUNT])); 3];
            profile.learn_session(owners, &blocks, &windows, Timestamp(0), ending);
        }
        profile
    }

    #[test]
    fn only_sessions_that_ended_well_and_looked_like_their_owner_teach_what_is_usual() {
        let owners = owners();
        let range = |profile: &Profile| profile.range(&[0], FEATURE).map(|range| range.sessions);
        assert_eq!(range(&accustomed(&owners, 3, Ending::default())), None);
        assert_eq!(range(&accustomed(&owners, 4, Ending::default())), Some(4));
        let bad = Ending { revoked: true, ..Ending::default() };
        assert_eq!(range(&accustomed(&owners, 4, bad)), None);
        let mut profile = accustomed(&owners, 5, Ending::default());
        let known = profile.clone();
        let mut strange = Hand::of([9; BINS]);
        strange.merge(&session(50, 900)[0].1);
        let windows = [(DESK, Figures::of(&[9.0; features::FEATURE_COUNT])); 3];
        let others = vec![(DESK, strange); 6];
        let learnt = profile.learn_session(&owners, &others, &windows, Timestamp(0), Ending::default());
        assert_eq!((learnt, profile), (Learnt::Unlike, known));
    }

    #[test]
    fn windows_that_may_be_of_two_devices_are_nobodys() {
        let owners = owners();
        let even = Figures::of(&[0.1; features::FEATURE_COUNT]);
        let mut seldom = session(50, 0);
        for (_, block) in &mut seldom {
            let mut counts = *block.counts();
            counts[..hand::GROUPS[0].1].fill(0);
            counts[32] = 100;
            *block = Hand::of(counts);
        }
        let mut profile = Profile::default();
        for other in [Device(8), DESK] {
            let blocks: Vec<_> = session(50, 0)
                .into_iter()
                .chain(seldom.iter().map(|(_, block)| (DESK, block.clone())))
                .collect();
            profile.learn_session(
                &owners,
                &blocks,
                &[(DESK, even), (other, even)],
                Timestamp(0),
                Ending::default(),
            );
        }
        assert_eq!(profile.devices.len(), 2);
        assert!(profile.devices.iter().all(|known| known.habit == Habit::default()));
    }

    #[test]
    fn what_older_versions_kept_is_read_and_windows_of_another_table_are_left_out() {
        let profile = accustomed(&owners(), 5, Ending::default());
        let blocks_only = Profile {
            devices: profile
                .devices
                .iter()
                .map(|known| Known { habit: Habit::default(), ..known.clone() })
                .collect(),
            ..profile.clone()
        };
        let sealed = |mut bytes: Vec<u8>| {
            bytes.extend(&Sha256::digest(&bytes)[..CHECK_BYTES]);
            bytes
        };
        let Known { device, interval_ms, blocks, .. } = &profile.devices[0];
        for format in [2, 3] {
            let mut bytes = [MAGIC, &[format], hand::table_hash().as_bytes()].concat();
            bytes.extend(5u32.to_le_bytes());
            bytes.push(1);
            bytes.extend(device.0.to_le_bytes());
            bytes.extend(interval_ms.to_le_bytes());
            bytes.push(blocks.len() as u8);
            for Packed(block) in blocks {
                bytes.extend((block.len() as u16).to_le_bytes());
                bytes.extend(block);
            }
            assert_eq!(Profile::decode(&sealed(bytes)), Ok(blocks_only.clone()), "format {format}");
        }
        let mut other = profile.encode();
        other.truncate(other.len() - CHECK_BYTES);
        other[MAGIC.len() + 1 + HASH_DIGITS] ^= 1;
        assert_eq!(Profile::decode(&sealed(other)), Ok(blocks_only));
    }

    #[test]
    fn bytes_round_trip_and_anything_else_is_refused() {
        let profile = accustomed(&owners(), 8, Ending::default());
        let bytes = profile.encode();
        assert_eq!(Profile::decode(&bytes), Ok(profile.clone()));
        assert!(bytes.len() < 600 * profile.blocks() + 4_000, "{} bytes", bytes.len());
        let fullest = Known {
            blocks: vec![Packed::new(&Hand::of([u16::MAX; BINS])); BLOCKS_ALL_MAX / DEVICES_MAX],
            ..profile.devices[0].clone()
        };
        let fullest = Profile { sessions: 1, devices: vec![fullest; DEVICES_MAX] };
        let largest = fullest.encode();
        assert_eq!(largest.len(), PROFILE_BYTES_MAX);
        assert_eq!(Profile::decode(&largest).unwrap().blocks(), BLOCKS_ALL_MAX, "without windows");
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
