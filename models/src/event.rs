//! The wire format: bytes become a `Batch` here, within named limits, or a `DecodeError`.
//!
//! Must not know: what events mean.

use thiserror::Error;

/// Largest telemetry frame accepted, in bytes.
pub const BATCH_BYTES_MAX: usize = 32 * 1024;
/// Most events in one batch.
pub const BATCH_EVENTS_MAX: usize = 4096;

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
}

impl Batch {
    /// Decodes a frame in the format of `collector-js/telemetry.proto`.
    pub fn decode(_frame: &[u8]) -> Result<Batch, DecodeError> {
        todo!()
    }
    /// Encodes as the browser does; for the simulator, the lab and tests.
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }
}
