//! The wire format: bytes become a `Batch` here, within named limits, or a `DecodeError`.
//!
//! The schema is `collector-js/telemetry.proto`; the structs at the foot mirror it by hand, so that
//! building needs no protoc. Must not know: what events mean.

use prost::Message;
use thiserror::Error;

/// The wire version this build reads and writes.
pub const WIRE_VERSION: u32 = 1;

/// Largest telemetry frame accepted, in bytes.
pub const BATCH_BYTES_MAX: usize = 32 * 1024;
/// Most events in one batch.
pub const BATCH_EVENTS_MAX: usize = 4096;
/// Furthest page clock accepted, in microseconds: 400 days, the life of the longest-lived tab we plan for.
pub const PAGE_CLOCK_MAX_US: u64 = 400 * 24 * 3600 * 1_000_000;
/// Furthest coordinate or scroll position accepted, in CSS px. Browsers themselves clamp layout near
/// 33.5 million; a pointer beyond a million is made up. Quarter px stay exact in an `f32` up to here.
pub const COORDINATE_MAX_PX: i64 = 1_000_000;
/// Largest wheel delta or movement accepted from one event, in px.
pub const DELTA_MAX_PX: i32 = 100_000;
/// Highest pointer button number accepted (the specification names six).
pub const BUTTON_MAX: u32 = 31;
/// Coalesced counts above this are clamped: one frame of an 8 kHz mouse is 133.
pub const COALESCED_MAX: u32 = 4096;
/// Viewport sides above this are clamped, in CSS px.
pub const VIEWPORT_MAX_PX: u32 = 65_535;
/// Pixel ratios above this are clamped, in percent.
pub const PIXEL_RATIO_MAX_PERCENT: u32 = 10_000;

/// One telemetry batch, decoded and within every limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// 0, 1, 2 … within one page view.
    pub sequence: u32,
    /// Page clock at sending, microseconds since the page's time origin.
    pub sent_at_us: u64,
    /// Events the browser saw but did not keep.
    pub dropped: u32,
    pub environment: Option<Environment>,
    pub events: Vec<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment {
    pub viewport_width: u32,
    pub viewport_height: u32,
    pub pixel_ratio_percent: u32,
    pub automation: bool,
    pub coarse_pointer: bool,
    pub coalesced_supported: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Microseconds since the page's time origin.
    pub at_us: u64,
    pub trusted: bool,
    pub kind: EventKind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EventKind {
    PointerMove { pointer: PointerType, x: f32, y: f32, movement_x: i32, movement_y: i32, coalesced: u32 },
    PointerDown { pointer: PointerType, x: f32, y: f32, button: u32 },
    PointerUp { pointer: PointerType, x: f32, y: f32, button: u32 },
    PointerCancel,
    Click { pointer: PointerType, x: f32, y: f32, button: u32 },
    Wheel { dx: i32, dy: i32 },
    Scroll { x: i32, y: i32 },
    KeyDown { class: KeyClass, repeat: bool },
    KeyUp { class: KeyClass },
    Focus,
    Blur,
    Visible,
    Hidden,
    Navigate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PointerType {
    Mouse,
    Touch,
    Pen,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyClass {
    Unknown,
    Letter,
    Digit,
    Punctuation,
    Space,
    Enter,
    Delete,
    Tab,
    Navigation,
    Modifier,
    Function,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("frame of {0} bytes exceeds the limit of {BATCH_BYTES_MAX}")]
    TooLarge(usize),
    #[error("more than {BATCH_EVENTS_MAX} events in one batch")]
    TooManyEvents,
    #[error("unknown wire version {0}")]
    Version(u32),
    #[error("not a protobuf batch")]
    Malformed,
    #[error("column {0} does not match the kinds of events")]
    Column(&'static str),
    #[error("column {0} holds a value out of range")]
    Range(&'static str),
}

impl Batch {
    /// Decodes a frame in the format of `collector-js/telemetry.proto`.
    ///
    /// Transient memory is bounded by the frame: a packed entry takes at least one byte and at most
    /// eight once decoded, so 32 KiB of frame never become more than 256 KiB.
    pub fn decode(frame: &[u8]) -> Result<Batch, DecodeError> {
        if frame.len() > BATCH_BYTES_MAX {
            return Err(DecodeError::TooLarge(frame.len()));
        }
        let wire = wire::Batch::decode(frame).map_err(|_| DecodeError::Malformed)?;
        if wire.version != WIRE_VERSION {
            return Err(DecodeError::Version(wire.version));
        }
        if wire.kind.len() > BATCH_EVENTS_MAX {
            return Err(DecodeError::TooManyEvents);
        }
        let sent_at_us = wire.sent_at_ticks.checked_mul(TICK_US).filter(|&us| us <= PAGE_CLOCK_MAX_US);
        let mut columns = Columns::new(&wire);
        let events = wire.kind.iter().map(|&kind| columns.next_event(kind)).collect::<Result<_, _>>()?;
        columns.finish()?;
        Ok(Batch {
            sequence: wire.sequence,
            sent_at_us: sent_at_us.ok_or(DecodeError::Range("sent_at_ticks"))?,
            dropped: wire.dropped,
            environment: wire.environment.map(|e| Environment {
                viewport_width: e.viewport_width.min(VIEWPORT_MAX_PX),
                viewport_height: e.viewport_height.min(VIEWPORT_MAX_PX),
                pixel_ratio_percent: e.pixel_ratio_percent.min(PIXEL_RATIO_MAX_PERCENT),
                automation: e.automation,
                coarse_pointer: e.coarse_pointer,
                coalesced_supported: e.coalesced_supported,
            }),
            events,
        })
    }

    /// Encodes as the browser does; for the simulator, the lab and tests. Times are cut to 100 µs,
    /// coordinates rounded to quarter px, as on the way through a browser.
    pub fn encode(&self) -> Vec<u8> {
        let mut wire = wire::Batch {
            version: WIRE_VERSION,
            sequence: self.sequence,
            sent_at_ticks: self.sent_at_us / TICK_US,
            dropped: self.dropped,
            environment: self.environment.map(|e| wire::Environment {
                viewport_width: e.viewport_width,
                viewport_height: e.viewport_height,
                pixel_ratio_percent: e.pixel_ratio_percent,
                automation: e.automation,
                coarse_pointer: e.coarse_pointer,
                coalesced_supported: e.coalesced_supported,
            }),
            ..wire::Batch::default()
        };
        let mut at = Delta64::default();
        let (mut x, mut y, mut scroll_x, mut scroll_y) =
            (Delta::default(), Delta::default(), Delta::default(), Delta::default());
        for event in &self.events {
            wire.at_ticks.push(at.step(i64::try_from(event.at_us / TICK_US).unwrap_or(i64::MAX)));
            let untrusted = u32::from(!event.trusted) << UNTRUSTED_SHIFT;
            let (kind, pointer) = kind_code(&event.kind);
            wire.kind.push(kind | untrusted | pointer << POINTER_SHIFT);
            if let Some((px, py)) = event.kind.position() {
                wire.x.push(x.step(quarter_px(px)));
                wire.y.push(y.step(quarter_px(py)));
            }
            match event.kind {
                EventKind::PointerMove { movement_x, movement_y, coalesced, .. } => {
                    wire.movement_x.push(movement_x);
                    wire.movement_y.push(movement_y);
                    wire.coalesced.push(coalesced);
                }
                EventKind::PointerDown { button, .. }
                | EventKind::PointerUp { button, .. }
                | EventKind::Click { button, .. } => wire.button.push(button),
                EventKind::Wheel { dx, dy } => {
                    wire.wheel_x.push(dx);
                    wire.wheel_y.push(dy);
                }
                EventKind::Scroll { x, y } => {
                    wire.scroll_x.push(scroll_x.step(x));
                    wire.scroll_y.push(scroll_y.step(y));
                }
                EventKind::KeyDown { class, repeat } => {
                    wire.key_class.push(class as u32 | u32::from(repeat) << REPEAT_SHIFT);
                }
                EventKind::KeyUp { class } => wire.key_class.push(class as u32),
                EventKind::PointerCancel
                | EventKind::Focus
                | EventKind::Blur
                | EventKind::Visible
                | EventKind::Hidden
                | EventKind::Navigate => {}
            }
        }
        wire.encode_to_vec()
    }
}

impl EventKind {
    /// Viewport position in CSS px, for kinds that have one.
    pub fn position(&self) -> Option<(f32, f32)> {
        match *self {
            EventKind::PointerMove { x, y, .. }
            | EventKind::PointerDown { x, y, .. }
            | EventKind::PointerUp { x, y, .. }
            | EventKind::Click { x, y, .. } => Some((x, y)),
            _ => None,
        }
    }
}

/// Reads the columns in step with the kinds; every sum is checked before it is used.
struct Columns<'a> {
    at_ticks: Column<'a, i64>,
    x: Column<'a, i32>,
    y: Column<'a, i32>,
    movement_x: Column<'a, i32>,
    movement_y: Column<'a, i32>,
    coalesced: Column<'a, u32>,
    button: Column<'a, u32>,
    wheel_x: Column<'a, i32>,
    wheel_y: Column<'a, i32>,
    scroll_x: Column<'a, i32>,
    scroll_y: Column<'a, i32>,
    key_class: Column<'a, u32>,
}

impl<'a> Columns<'a> {
    fn new(wire: &'a wire::Batch) -> Columns<'a> {
        Columns {
            at_ticks: Column::new("at_ticks", &wire.at_ticks),
            x: Column::new("x", &wire.x),
            y: Column::new("y", &wire.y),
            movement_x: Column::new("movement_x", &wire.movement_x),
            movement_y: Column::new("movement_y", &wire.movement_y),
            coalesced: Column::new("coalesced", &wire.coalesced),
            button: Column::new("button", &wire.button),
            wheel_x: Column::new("wheel_x", &wire.wheel_x),
            wheel_y: Column::new("wheel_y", &wire.wheel_y),
            scroll_x: Column::new("scroll_x", &wire.scroll_x),
            scroll_y: Column::new("scroll_y", &wire.scroll_y),
            key_class: Column::new("key_class", &wire.key_class),
        }
    }

    fn next_event(&mut self, code: u32) -> Result<Event, DecodeError> {
        if code >> (POINTER_SHIFT + 2) != 0 {
            return Err(DecodeError::Range("kind"));
        }
        let ticks = self.at_ticks.summed(0, (PAGE_CLOCK_MAX_US / TICK_US) as i64)?;
        let pointer = match code >> POINTER_SHIFT {
            0 => PointerType::Mouse,
            1 => PointerType::Touch,
            2 => PointerType::Pen,
            _ => PointerType::Other,
        };
        let kind = match code & 0xF {
            0 => {
                let (x, y) = self.position()?;
                EventKind::PointerMove {
                    pointer,
                    x,
                    y,
                    movement_x: self.movement_x.bounded(DELTA_MAX_PX)?,
                    movement_y: self.movement_y.bounded(DELTA_MAX_PX)?,
                    coalesced: self.coalesced.plain()?.min(COALESCED_MAX),
                }
            }
            1 => {
                let (x, y) = self.position()?;
                EventKind::PointerDown { pointer, x, y, button: self.button()? }
            }
            2 => {
                let (x, y) = self.position()?;
                EventKind::PointerUp { pointer, x, y, button: self.button()? }
            }
            3 => {
                let (x, y) = self.position()?;
                EventKind::Click { pointer, x, y, button: self.button()? }
            }
            4 => EventKind::Wheel {
                dx: self.wheel_x.bounded(DELTA_MAX_PX)?,
                dy: self.wheel_y.bounded(DELTA_MAX_PX)?,
            },
            5 => EventKind::Scroll {
                x: self.scroll_x.summed(-COORDINATE_MAX_PX, COORDINATE_MAX_PX)? as i32,
                y: self.scroll_y.summed(-COORDINATE_MAX_PX, COORDINATE_MAX_PX)? as i32,
            },
            6 => {
                let (class, repeat) = self.key()?;
                EventKind::KeyDown { class, repeat }
            }
            7 => EventKind::KeyUp { class: self.key()?.0 },
            8 => EventKind::Focus,
            9 => EventKind::Blur,
            10 => EventKind::Visible,
            11 => EventKind::Hidden,
            12 => EventKind::Navigate,
            13 => EventKind::PointerCancel,
            _ => return Err(DecodeError::Range("kind")),
        };
        Ok(Event { at_us: ticks as u64 * TICK_US, trusted: code >> UNTRUSTED_SHIFT & 1 == 0, kind })
    }

    fn position(&mut self) -> Result<(f32, f32), DecodeError> {
        let limit = COORDINATE_MAX_PX * QUARTER as i64;
        let x = self.x.summed(-limit, limit)?;
        let y = self.y.summed(-limit, limit)?;
        Ok((x as f32 / QUARTER, y as f32 / QUARTER))
    }

    fn button(&mut self) -> Result<u32, DecodeError> {
        let button = self.button.plain()?;
        if button > BUTTON_MAX { Err(DecodeError::Range("button")) } else { Ok(button) }
    }

    fn key(&mut self) -> Result<(KeyClass, bool), DecodeError> {
        let code = self.key_class.plain()?;
        if code >> (REPEAT_SHIFT + 1) != 0 {
            return Err(DecodeError::Range("key_class"));
        }
        let class = match code & 0xF {
            1 => KeyClass::Letter,
            2 => KeyClass::Digit,
            3 => KeyClass::Punctuation,
            4 => KeyClass::Space,
            5 => KeyClass::Enter,
            6 => KeyClass::Delete,
            7 => KeyClass::Tab,
            8 => KeyClass::Navigation,
            9 => KeyClass::Modifier,
            10 => KeyClass::Function,
            // A newer collector may know more classes; what we do not know is unknown, not an error.
            _ => KeyClass::Unknown,
        };
        Ok((class, code >> REPEAT_SHIFT == 1))
    }

    /// Every column must be used up, else it does not belong to these kinds.
    fn finish(self) -> Result<(), DecodeError> {
        self.at_ticks.finish()?;
        self.x.finish()?;
        self.y.finish()?;
        self.movement_x.finish()?;
        self.movement_y.finish()?;
        self.coalesced.finish()?;
        self.button.finish()?;
        self.wheel_x.finish()?;
        self.wheel_y.finish()?;
        self.scroll_x.finish()?;
        self.scroll_y.finish()?;
        self.key_class.finish()
    }
}

struct Column<'a, T> {
    name: &'static str,
    entries: std::slice::Iter<'a, T>,
    sum: i64,
}

impl<'a, T: Copy + Into<i64>> Column<'a, T> {
    fn new(name: &'static str, entries: &'a [T]) -> Column<'a, T> {
        Column { name, entries: entries.iter(), sum: 0 }
    }

    fn plain(&mut self) -> Result<T, DecodeError> {
        self.entries.next().copied().ok_or(DecodeError::Column(self.name))
    }

    /// The next entry of a delta column, added up; the sum must stay between the bounds.
    fn summed(&mut self, low: i64, high: i64) -> Result<i64, DecodeError> {
        let delta: i64 = self.plain()?.into();
        let sum = self.sum.checked_add(delta).filter(|sum| (low..=high).contains(sum));
        self.sum = sum.ok_or(DecodeError::Range(self.name))?;
        Ok(self.sum)
    }

    fn finish(mut self) -> Result<(), DecodeError> {
        if self.entries.next().is_some() { Err(DecodeError::Column(self.name)) } else { Ok(()) }
    }
}

impl Column<'_, i32> {
    fn bounded(&mut self, limit: i32) -> Result<i32, DecodeError> {
        let value = self.plain()?;
        if (-limit..=limit).contains(&value) { Ok(value) } else { Err(DecodeError::Range(self.name)) }
    }
}

#[derive(Default)]
struct Delta(i32);

impl Delta {
    fn step(&mut self, value: i32) -> i32 {
        let delta = value.saturating_sub(self.0);
        self.0 = value;
        delta
    }
}

#[derive(Default)]
struct Delta64(i64);

impl Delta64 {
    fn step(&mut self, value: i64) -> i64 {
        let delta = value.saturating_sub(self.0);
        self.0 = value;
        delta
    }
}

fn quarter_px(px: f32) -> i32 {
    (px * QUARTER).round() as i32
}

fn kind_code(kind: &EventKind) -> (u32, u32) {
    match kind {
        EventKind::PointerMove { pointer, .. } => (0, *pointer as u32),
        EventKind::PointerDown { pointer, .. } => (1, *pointer as u32),
        EventKind::PointerUp { pointer, .. } => (2, *pointer as u32),
        EventKind::Click { pointer, .. } => (3, *pointer as u32),
        EventKind::Wheel { .. } => (4, 0),
        EventKind::Scroll { .. } => (5, 0),
        EventKind::KeyDown { .. } => (6, 0),
        EventKind::KeyUp { .. } => (7, 0),
        EventKind::Focus => (8, 0),
        EventKind::Blur => (9, 0),
        EventKind::Visible => (10, 0),
        EventKind::Hidden => (11, 0),
        EventKind::Navigate => (12, 0),
        EventKind::PointerCancel => (13, 0),
    }
}

/// One tick of the wire's clock, in microseconds.
const TICK_US: u64 = 100;
/// Wire units of one CSS px.
const QUARTER: f32 = 4.0;
const UNTRUSTED_SHIFT: u32 = 4;
const POINTER_SHIFT: u32 = 5;
const REPEAT_SHIFT: u32 = 4;

mod wire {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Batch {
        #[prost(uint32, tag = "1")]
        pub version: u32,
        #[prost(uint32, tag = "2")]
        pub sequence: u32,
        #[prost(uint64, tag = "3")]
        pub sent_at_ticks: u64,
        #[prost(uint32, tag = "4")]
        pub dropped: u32,
        #[prost(message, optional, tag = "5")]
        pub environment: Option<Environment>,
        #[prost(uint32, repeated, tag = "10")]
        pub kind: Vec<u32>,
        #[prost(sint64, repeated, tag = "11")]
        pub at_ticks: Vec<i64>,
        #[prost(sint32, repeated, tag = "12")]
        pub x: Vec<i32>,
        #[prost(sint32, repeated, tag = "13")]
        pub y: Vec<i32>,
        #[prost(sint32, repeated, tag = "14")]
        pub movement_x: Vec<i32>,
        #[prost(sint32, repeated, tag = "15")]
        pub movement_y: Vec<i32>,
        #[prost(uint32, repeated, tag = "16")]
        pub coalesced: Vec<u32>,
        #[prost(uint32, repeated, tag = "17")]
        pub button: Vec<u32>,
        #[prost(sint32, repeated, tag = "18")]
        pub wheel_x: Vec<i32>,
        #[prost(sint32, repeated, tag = "19")]
        pub wheel_y: Vec<i32>,
        #[prost(sint32, repeated, tag = "20")]
        pub scroll_x: Vec<i32>,
        #[prost(sint32, repeated, tag = "21")]
        pub scroll_y: Vec<i32>,
        #[prost(uint32, repeated, tag = "22")]
        pub key_class: Vec<u32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Environment {
        #[prost(uint32, tag = "1")]
        pub viewport_width: u32,
        #[prost(uint32, tag = "2")]
        pub viewport_height: u32,
        #[prost(uint32, tag = "3")]
        pub pixel_ratio_percent: u32,
        #[prost(bool, tag = "4")]
        pub automation: bool,
        #[prost(bool, tag = "5")]
        pub coarse_pointer: bool,
        #[prost(bool, tag = "6")]
        pub coalesced_supported: bool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, RngCore, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A frame of version 1, spelt out byte by byte from the schema: it must decode forever.
    const FRAME_V1: &[u8] = &[
        0x08, 0x01, // version 1
        0x10, 0x03, // sequence 3
        0x18, 0x90, 0x4E, // sent_at_ticks 10000 = 1 s
        0x20, 0x02, // dropped 2
        0x2A, 0x0A, 0x08, 0x80, 0x0A, 0x10, 0xD0, 0x05, 0x18, 0x64, 0x30,
        0x01, // 1280 x 720, 100 %, coalesced
        0x52, 0x06, 0x00, 0x10, 0x21, 0x04, 0x05,
        0x06, // move, untrusted move, touch down, wheel, scroll, key
        0x5A, 0x07, 0x14, 0x02, 0x00, 0xC8, 0x01, 0x01, 0x04, // ticks 10, 11, 11, 111, 110, 112
        0x62, 0x04, 0xA0, 0x06, 0x03, 0x00, // x 400, 398, 398 quarter px
        0x6A, 0x03, 0x02, 0x02, 0x02, // y 1, 2, 3
        0x72, 0x02, 0x04, 0x03, // movement_x 2, -2
        0x7A, 0x02, 0x00, 0x00, // movement_y
        0x82, 0x01, 0x02, 0x01, 0x03, // coalesced 1, 3
        0x8A, 0x01, 0x01, 0x00, // button 0
        0x92, 0x01, 0x01, 0x00, // wheel_x 0
        0x9A, 0x01, 0x02, 0xF0, 0x01, // wheel_y 120
        0xA2, 0x01, 0x01, 0x00, // scroll_x 0
        0xAA, 0x01, 0x02, 0xF0, 0x01, // scroll_y 120
        0xB2, 0x01, 0x01, 0x11, // letter, repeated
    ];

    fn sample() -> Batch {
        let at = |ticks: u64, kind| Event { at_us: ticks * 100, trusted: true, kind };
        let mouse = PointerType::Mouse;
        Batch {
            sequence: 3,
            sent_at_us: 1_000_000,
            dropped: 2,
            environment: Some(Environment {
                viewport_width: 1280,
                viewport_height: 720,
                pixel_ratio_percent: 100,
                automation: false,
                coarse_pointer: false,
                coalesced_supported: true,
            }),
            events: vec![
                at(
                    10,
                    EventKind::PointerMove {
                        pointer: mouse,
                        x: 100.0,
                        y: 0.25,
                        movement_x: 2,
                        movement_y: 0,
                        coalesced: 1,
                    },
                ),
                Event {
                    trusted: false,
                    ..at(
                        11,
                        EventKind::PointerMove {
                            pointer: mouse,
                            x: 99.5,
                            y: 0.5,
                            movement_x: -2,
                            movement_y: 0,
                            coalesced: 3,
                        },
                    )
                },
                at(11, EventKind::PointerDown { pointer: PointerType::Touch, x: 99.5, y: 0.75, button: 0 }),
                at(111, EventKind::Wheel { dx: 0, dy: 120 }),
                at(110, EventKind::Scroll { x: 0, y: 120 }),
                at(112, EventKind::KeyDown { class: KeyClass::Letter, repeat: true }),
            ],
        }
    }

    #[test]
    fn the_committed_frame_of_version_1_decodes_and_is_what_we_encode() {
        assert_eq!(Batch::decode(FRAME_V1).unwrap(), sample());
        assert_eq!(sample().encode(), FRAME_V1);
    }

    #[test]
    fn every_kind_survives_a_round_trip() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for round in 0..200 {
            let batch = any_batch(&mut rng);
            assert_eq!(Batch::decode(&batch.encode()).unwrap(), batch, "round {round}");
        }
    }

    #[test]
    fn an_idle_batch_is_a_dozen_bytes() {
        let idle = Batch { sequence: 9, sent_at_us: 18_000_000, ..Batch::default() };
        assert!(idle.encode().len() <= 12);
        assert_eq!(Batch::decode(&idle.encode()).unwrap(), idle);
    }

    #[test]
    fn seeded_garbage_never_panics_and_never_decodes_past_a_limit() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        for _ in 0..20_000 {
            let mut frame = vec![0; rng.random_range(0..200)];
            rng.fill_bytes(&mut frame);
            check_limits(&frame);
        }
    }

    #[test]
    fn mutated_frames_never_panic_and_never_decode_past_a_limit() {
        let mut rng = ChaCha8Rng::seed_from_u64(13);
        for _ in 0..20_000 {
            let mut frame =
                if rng.random_bool(0.5) { FRAME_V1.to_vec() } else { any_batch(&mut rng).encode() };
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..frame.len());
                match rng.random_range(0..3) {
                    0 => frame[at] = rng.random(),
                    1 => frame.insert(at, rng.random()),
                    _ => drop(frame.drain(at..)),
                }
                if frame.is_empty() {
                    break;
                }
            }
            check_limits(&frame);
        }
    }

    #[test]
    fn limits_are_refused_by_name() {
        assert_eq!(
            Batch::decode(&vec![0; BATCH_BYTES_MAX + 1]),
            Err(DecodeError::TooLarge(BATCH_BYTES_MAX + 1))
        );
        refused(|w| w.version = 2, DecodeError::Version(2));
        refused(|w| w.kind = vec![8; BATCH_EVENTS_MAX + 1], DecodeError::TooManyEvents);
        refused(|w| w.sent_at_ticks = u64::MAX, DecodeError::Range("sent_at_ticks"));
        refused(|w| w.kind[0] = 14, DecodeError::Range("kind"));
        refused(|w| w.kind[0] = 128, DecodeError::Range("kind"));
        refused(|w| w.at_ticks[1] = i64::MAX, DecodeError::Range("at_ticks"));
        refused(|w| w.at_ticks[0] = -1, DecodeError::Range("at_ticks"));
        refused(|w| w.x[0] = i32::MAX, DecodeError::Range("x"));
        refused(|w| w.y[0] = i32::MIN, DecodeError::Range("y"));
        refused(|w| w.movement_x[0] = i32::MIN, DecodeError::Range("movement_x"));
        refused(|w| w.wheel_y[0] = DELTA_MAX_PX + 1, DecodeError::Range("wheel_y"));
        refused(|w| w.scroll_y[0] = i32::MAX, DecodeError::Range("scroll_y"));
        refused(|w| w.button[0] = BUTTON_MAX + 1, DecodeError::Range("button"));
        refused(|w| w.key_class[0] = 32, DecodeError::Range("key_class"));
    }

    #[test]
    fn a_column_too_short_or_too_long_is_refused_by_name() {
        refused(|w| _ = w.at_ticks.pop(), DecodeError::Column("at_ticks"));
        refused(|w| w.x.push(0), DecodeError::Column("x"));
        refused(|w| _ = w.y.pop(), DecodeError::Column("y"));
        refused(|w| w.movement_y.push(0), DecodeError::Column("movement_y"));
        refused(|w| _ = w.coalesced.pop(), DecodeError::Column("coalesced"));
        refused(|w| _ = w.button.pop(), DecodeError::Column("button"));
        refused(|w| w.wheel_x.push(0), DecodeError::Column("wheel_x"));
        refused(|w| w.scroll_x.clear(), DecodeError::Column("scroll_x"));
        refused(|w| w.key_class.push(1), DecodeError::Column("key_class"));
    }

    #[test]
    fn overlong_varints_are_malformed() {
        // Eleven continuation bytes: longer than any 64-bit varint may be.
        let mut frame = vec![0x18];
        frame.extend([0xFF; 11]);
        assert_eq!(Batch::decode(&frame), Err(DecodeError::Malformed));
        // A packed column that claims four gigabytes.
        assert_eq!(Batch::decode(&[0x52, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]), Err(DecodeError::Malformed));
    }

    #[test]
    fn a_key_class_of_a_newer_collector_is_unknown() {
        let mut wire = wire::Batch::decode(FRAME_V1).unwrap();
        wire.key_class[0] = 15;
        let batch = Batch::decode(&wire.encode_to_vec()).unwrap();
        let last = batch.events.last().map(|event| event.kind);
        assert_eq!(last, Some(EventKind::KeyDown { class: KeyClass::Unknown, repeat: false }));
    }

    fn refused(change: impl FnOnce(&mut wire::Batch), expect: DecodeError) {
        let mut wire = wire::Batch::decode(FRAME_V1).unwrap();
        change(&mut wire);
        assert_eq!(Batch::decode(&wire.encode_to_vec()), Err(expect));
    }

    fn check_limits(frame: &[u8]) {
        if let Ok(batch) = Batch::decode(frame) {
            assert!(batch.events.len() <= BATCH_EVENTS_MAX);
            assert!(batch.sent_at_us <= PAGE_CLOCK_MAX_US);
            for event in &batch.events {
                assert!(event.at_us <= PAGE_CLOCK_MAX_US);
                if let Some((x, y)) = event.kind.position() {
                    let limit = COORDINATE_MAX_PX as f32;
                    assert!(x.abs() <= limit && y.abs() <= limit);
                }
            }
        }
    }

    fn any_batch(rng: &mut ChaCha8Rng) -> Batch {
        let mut at_us = rng.random_range(0..1_000_000) * 100;
        let events = (0..rng.random_range(0..60))
            .map(|_| {
                at_us += rng.random_range(0..5_000) * 100;
                Event { at_us, trusted: rng.random_bool(0.9), kind: any_kind(rng) }
            })
            .collect();
        Batch {
            sequence: rng.random(),
            sent_at_us: at_us,
            dropped: rng.random_range(0..3),
            environment: rng.random_bool(0.3).then(|| Environment {
                viewport_width: rng.random_range(0..4000),
                viewport_height: rng.random_range(0..4000),
                pixel_ratio_percent: rng.random_range(0..400),
                automation: rng.random(),
                coarse_pointer: rng.random(),
                coalesced_supported: rng.random(),
            }),
            events,
        }
    }

    fn any_kind(rng: &mut ChaCha8Rng) -> EventKind {
        let pointer = [PointerType::Mouse, PointerType::Touch, PointerType::Pen, PointerType::Other]
            [rng.random_range(0..4)];
        let x = rng.random_range(-400..8000) as f32 / 4.0;
        let y = rng.random_range(-400..8000) as f32 / 4.0;
        let button = rng.random_range(0..6);
        let class = [KeyClass::Unknown, KeyClass::Letter, KeyClass::Delete, KeyClass::Function]
            [rng.random_range(0..4)];
        match rng.random_range(0..14) {
            0 => EventKind::PointerMove {
                pointer,
                x,
                y,
                movement_x: rng.random_range(-500..500),
                movement_y: rng.random_range(-500..500),
                coalesced: rng.random_range(0..20),
            },
            1 => EventKind::PointerDown { pointer, x, y, button },
            2 => EventKind::PointerUp { pointer, x, y, button },
            3 => EventKind::Click { pointer, x, y, button },
            4 => EventKind::Wheel { dx: rng.random_range(-500..500), dy: rng.random_range(-500..500) },
            5 => EventKind::Scroll { x: rng.random_range(0..500), y: rng.random_range(0..50_000) },
            6 => EventKind::KeyDown { class, repeat: rng.random() },
            7 => EventKind::KeyUp { class },
            8 => EventKind::Focus,
            9 => EventKind::Blur,
            10 => EventKind::Visible,
            11 => EventKind::Hidden,
            12 => EventKind::Navigate,
            _ => EventKind::PointerCancel,
        }
    }
}
