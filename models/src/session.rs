//! A bounded running summary of one session's telemetry: O(1) time and memory an event.

use crate::event::Batch;
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct Session {
    opened: Timestamp,
}

/// What the proxy saw of one request; no address, no path.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestSeen {
    /// A page load by the browser itself (Sec-Fetch-Dest: document, or Accept: text/html).
    pub navigation: bool,
    /// Keyed hash of the path, to count variety.
    pub path_hash: u64,
    /// The response carried the collector, so telemetry can be expected.
    pub collector_injected: bool,
}

impl Session {
    pub fn new(opened: Timestamp) -> Session {
        Session { opened }
    }
    pub fn opened(&self) -> Timestamp {
        self.opened
    }
    /// Adds one batch of page `page`. Returns how many evidence windows it completed.
    pub fn observe(&mut self, _now: Timestamp, _page: u64, _batch: &Batch) -> u32 {
        todo!()
    }
    pub fn observe_request(&mut self, _now: Timestamp, _request: RequestSeen) {
        todo!()
    }
}
