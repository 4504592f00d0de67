//! A session's requests as the proxy sees them: rhythm, variety, volume, and page loads that nothing
//! caused. Constant time and memory a request.
//!
//! A table of its own beside the features of input: recordings hold no requests, so no forest can learn from
//! it; policies read it as facts, and learning as marks. Silence is no evidence: page loads count as
//! unprompted only while telemetry arrives sound. Must not know: addresses, paths, scores.

use crate::session::RequestSeen;
use crate::stats::Spread;
use crate::time::Timestamp;

/// A gesture may be heard of this long after the page load it caused: a batch is sent every two seconds,
/// over a slow line.
pub const GESTURE_LATE_MAX_MS: u64 = 6_000;
/// Distinct paths are told apart up to about this many; beyond, all is "many".
pub const PATHS_MAX: u32 = 512;

/// One row of the table.
pub struct FlowFeature {
    pub name: &'static str,
    pub unit: &'static str,
    pub doc: &'static str,
    /// NaN while nothing is known.
    pub of: fn(&Flow) -> f64,
}

/// What can be said of a session's requests.
pub const FLOW_FEATURES: &[FlowFeature] = &[
    FlowFeature {
        name: "unprompted",
        unit: "page loads",
        doc: "Page loads that no gesture can have caused, while telemetry arrived. A reload from the browser's own bar is one.",
        of: |flow| f64::from(flow.unprompted),
    },
    FlowFeature {
        name: "unprompted_share",
        unit: "share",
        doc: "The same, of all page loads while telemetry arrived.",
        of: |flow| f64::from(flow.unprompted) / f64::from(flow.prompted + flow.unprompted),
    },
    FlowFeature {
        name: "interval",
        unit: "s",
        doc: "Usual time between page loads (geometric mean).",
        of: |flow| f64::from(flow.intervals.mean(INTERVALS_MIN)).exp(),
    },
    FlowFeature {
        name: "evenness",
        unit: "share",
        doc: "How even that time is: 1 for a timer, one half where it varies by a factor of two.",
        of: |flow| (-f64::from(flow.intervals.sd(INTERVALS_MIN))).exp(),
    },
    FlowFeature { name: "paths", unit: "paths", doc: "Different paths asked for, roughly.", of: Flow::paths },
    FlowFeature {
        name: "volume",
        unit: "MB",
        doc: "Sent to the client in answers.",
        of: |flow| flow.bytes as f64 / 1e6,
    },
];

/// Requests of one session.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    last_navigation: Option<Timestamp>,
    /// Page loads without a gesture since the one before, and when the first of them came.
    waiting: u32,
    waiting_since: Timestamp,
    gesture: bool,
    prompted: u32,
    unprompted: u32,
    /// The last of those that no gesture has broken off yet, and the most there have been in a row.
    run: u32,
    longest_run: u32,
    intervals: Spread,
    /// One bit for each value of a hash.
    paths: [u64; PATH_WORDS],
    bytes: u64,
}

impl Default for Flow {
    fn default() -> Flow {
        Flow {
            last_navigation: None,
            waiting: 0,
            waiting_since: Timestamp(0),
            // The first page of a session is opened from somewhere else.
            gesture: true,
            prompted: 0,
            unprompted: 0,
            run: 0,
            longest_run: 0,
            intervals: Spread::default(),
            paths: [0; PATH_WORDS],
            bytes: 0,
        }
    }
}

impl Flow {
    /// `sound`: telemetry arrives as it should.
    pub fn observe_request(&mut self, now: Timestamp, request: &RequestSeen, sound: bool) {
        self.bytes = self.bytes.saturating_add(request.response_bytes);
        let bit = request.path_hash as usize % (64 * PATH_WORDS);
        self.paths[bit / 64] |= 1 << (bit % 64);
        if !request.navigation {
            return;
        }
        if let Some(last) = self.last_navigation.replace(now) {
            let seconds = now.0.saturating_sub(last.0) as f32 / 1000.0;
            self.intervals.add(seconds.clamp(0.01, 86_400.0).ln());
        }
        self.settle(now, sound);
        if !sound {
            // Nothing would have been heard of a gesture.
            (self.waiting, self.run) = (0, 0);
        } else if self.gesture {
            self.prompted = self.prompted.saturating_add(1);
        } else {
            if self.waiting == 0 {
                self.waiting_since = now;
            }
            self.waiting = self.waiting.saturating_add(1);
        }
        self.gesture = false;
    }

    /// A pointer, wheel or key event was heard of: it may have caused whatever is still waiting.
    pub fn observe_gesture(&mut self) {
        self.prompted = self.prompted.saturating_add(self.waiting);
        (self.waiting, self.run, self.gesture) = (0, 0, true);
    }

    /// Page loads that no gesture can have caused.
    pub fn unprompted(&self) -> u32 {
        self.unprompted
    }

    /// The most of those in a row: in a long session of a person a few add up, with gestures between.
    pub fn unprompted_run(&self) -> u32 {
        self.longest_run
    }

    /// The value of a row; `None` while nothing is known.
    pub fn value(&self, name: &str) -> Option<f64> {
        let row = FLOW_FEATURES.iter().find(|row| row.name == name)?;
        Some((row.of)(self)).filter(|value| value.is_finite())
    }

    /// Page loads that have waited long enough for a gesture were caused by none.
    fn settle(&mut self, now: Timestamp, sound: bool) {
        if self.waiting > 0 && sound && now.0.saturating_sub(self.waiting_since.0) > GESTURE_LATE_MAX_MS {
            self.unprompted = self.unprompted.saturating_add(self.waiting);
            self.run = self.run.saturating_add(self.waiting);
            self.longest_run = self.longest_run.max(self.run);
            self.waiting = 0;
        }
    }

    /// Linear counting (Whang and others, 1990): how many were put in, from how many bits are still clear.
    fn paths(&self) -> f64 {
        let bits = (64 * PATH_WORDS) as f64;
        let clear = self.paths.iter().map(|word| word.count_zeros()).sum::<u32>();
        (bits * (bits / f64::from(clear.max(1))).ln()).round().min(f64::from(PATHS_MAX))
    }
}

const PATH_WORDS: usize = 4;
const INTERVALS_MIN: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path_hash: u64) -> RequestSeen {
        RequestSeen { navigation: true, path_hash, response_bytes: 1_000, ..RequestSeen::default() }
    }

    /// Page loads every `seconds`, with or without a gesture before each.
    fn browse(seconds: u64, pages: u64, gestures: bool, sound: bool) -> Flow {
        let mut flow = Flow::default();
        for i in 0..pages {
            if gestures {
                flow.observe_gesture();
            }
            flow.observe_request(Timestamp(1_000 * seconds * i), &page(i), sound);
        }
        flow
    }

    #[test]
    fn page_loads_without_a_gesture_count_only_while_telemetry_is_sound() {
        assert_eq!(browse(10, 10, true, true).value("unprompted_share"), Some(0.0));
        assert_eq!(
            browse(10, 10, false, true).unprompted(),
            8,
            "the first is from elsewhere, the last may wait"
        );
        assert_eq!(browse(10, 10, false, false).unprompted(), 0);
        assert_eq!(browse(10, 10, false, false).value("unprompted_share"), None);
    }

    #[test]
    fn a_gesture_ends_a_run_of_page_loads_without_one() {
        let mut flow = Flow::default();
        for i in 0..40 {
            // Three reloads from the browser's own bar, then a click.
            if i % 4 == 0 {
                flow.observe_gesture();
            }
            flow.observe_request(Timestamp(10_000 * i), &page(i), true);
        }
        assert!(flow.unprompted() >= 20, "{}", flow.unprompted());
        assert!((2..=3).contains(&flow.unprompted_run()), "{}", flow.unprompted_run());
        assert_eq!(browse(10, 10, false, true).unprompted_run(), 8);
    }

    #[test]
    fn a_gesture_may_be_heard_of_after_the_page_load_it_caused() {
        let mut flow = Flow::default();
        for i in 0..10 {
            flow.observe_request(Timestamp(20_000 * i), &page(i), true);
            // The batch that holds the click comes two seconds after the page.
            flow.observe_gesture();
        }
        assert_eq!(flow.value("unprompted"), Some(0.0));
        assert!(browse(1, 30, false, true).unprompted() >= 20, "a crawler does not wait for us");
    }

    #[test]
    fn rhythm_variety_and_volume_are_told() {
        let timer = browse(10, 40, true, true);
        assert!((timer.value("interval").unwrap() - 10.0).abs() < 0.1);
        assert!(timer.value("evenness").unwrap() > 0.99);
        assert!((timer.value("paths").unwrap() - 40.0).abs() < 6.0);
        assert_eq!(timer.value("volume"), Some(0.04));
        assert_eq!(browse(10, 3, true, true).value("interval"), None);
        let many = browse(1, 5_000, true, true);
        assert_eq!(many.value("paths"), Some(f64::from(PATHS_MAX)));
    }
}
