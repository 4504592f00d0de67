//! The thread that writes recordings: gathers a moment's worth of every session, appends it, closes what ended.
//!
//! Invariant: a file of the folder is readable at any moment, whatever happens to this process. After a
//! failure nothing is written for a while; then every session is told anew. Must not know: shards, policies.

use super::folder::{self, Day, Folder, RECORDING_BYTES_MAX, Row};
use super::{Label, Note, Seen};
use crate::clock;
use gaitway_models::Timestamp;
use gaitway_models::dataset::{self, RECORDING_BATCHES_MAX};
use gaitway_policies::facts::Facts;
use gaitway_policies::identity::{SessionId, SubjectId};
use gaitway_policies::record::{Before, line};
use metrics::{counter, gauge};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tracing::{error, info};

/// How long something waits in memory before it is written: a crash loses this much.
const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// Lines that wait in memory are written at once beyond this, in bytes.
const LINES_BYTES_MAX: usize = 1024 * 1024;
/// Frames of one session likewise.
const FRAMES_BYTES_MAX: usize = 64 * 1024;
/// How often old recordings are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// And how often at most when there is no room.
const ROOM_EVERY: Duration = Duration::from_secs(30);
/// Operators' words kept while nothing can be written.
const LABELS_MAX: usize = 1_000;
/// After a failure nothing is tried for this long.
const RETRY: Duration = Duration::from_secs(30);

pub(super) struct Writer {
    folder: Folder,
    /// As many as the shards hold: they say when one is closed.
    sessions: HashMap<SessionId, Open>,
    /// Lines of `lines_day` that are not written yet.
    lines: Vec<u8>,
    lines_day: Day,
    /// Time of the latest line.
    latest: Timestamp,
    swept: Instant,
    room_checked: Instant,
    /// What operators said while nothing could be written.
    labels: Vec<(SessionId, Label)>,
    /// Set after a failure: nothing is written before.
    stopped_until: Option<Instant>,
}

/// A session as its recordings know it.
struct Open {
    row: Row,
    /// The recording of telemetry has its file.
    is_begun: bool,
    frames: Vec<u8>,
    /// What a reader of `lines_day` knows of it; `None` before its first line.
    written: Option<Facts>,
    /// Frames were lost when writing failed.
    is_torn: bool,
    /// Who it is, as last told.
    user: Option<SubjectId>,
}

impl Writer {
    pub(super) fn new(folder: Folder) -> Writer {
        gauge!("gaitway_recording_stopped").set(0.0);
        Writer {
            folder,
            sessions: HashMap::new(),
            lines: Vec::new(),
            lines_day: Day::new(),
            latest: Timestamp(0),
            swept: Instant::now(),
            room_checked: Instant::now(),
            labels: Vec::new(),
            stopped_until: None,
        }
    }

    /// Writes until told to end, or until nobody is left to tell.
    pub(super) fn run(mut self, notes: &Receiver<Note>, queued_bytes: &AtomicUsize) {
        let mut flushed = Instant::now();
        loop {
            let wrote = match notes.recv_timeout(FLUSH_EVERY.saturating_sub(flushed.elapsed())) {
                Ok(Note::Seen(seen)) => {
                    queued_bytes.fetch_sub(seen.bytes(), Ordering::Relaxed);
                    self.on_seen(*seen)
                }
                Ok(Note::Closed(session)) => self.on_closed(session),
                Ok(Note::Label(session, label)) => self.on_label(session, label),
                Ok(Note::End) | Err(RecvTimeoutError::Disconnected) => {
                    let ended = self.end();
                    self.judge(ended);
                    return;
                }
                Err(RecvTimeoutError::Timeout) => Ok(()),
            };
            self.judge(wrote);
            if flushed.elapsed() >= FLUSH_EVERY {
                flushed = Instant::now();
                let wrote = self.on_pause();
                self.judge(wrote);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.sessions.len()
    }

    fn is_stopped(&self) -> bool {
        self.stopped_until.is_some()
    }

    /// A failure stops everything for a while: the disk is full, and every further try costs time.
    fn judge(&mut self, wrote: io::Result<()>) {
        let Err(cause) = wrote else { return };
        if self.stopped_until.is_none() {
            error!(
                recording.directory = %self.folder.root().display(),
                error = %cause,
                "nothing is recorded any more; traffic goes on, and recording is tried again from time to time"
            );
            gauge!("gaitway_recording_stopped").set(1.0);
        }
        self.stopped_until = Some(Instant::now() + RETRY);
        self.lines.clear();
        for open in self.sessions.values_mut() {
            open.frames.clear();
            open.is_torn = true;
            open.written = None;
        }
    }

    /// Every few seconds without hurry: writes, makes room, tries again.
    fn on_pause(&mut self) -> io::Result<()> {
        let now = clock::now();
        if let Some(until) = self.stopped_until {
            if Instant::now() < until {
                return Ok(());
            }
            self.folder.sweep(now)?;
            self.folder.check_room()?;
            let open = self.sessions.values().filter(|open| open.is_begun);
            self.folder.adopt(&open.map(|open| open.row.name.clone()).collect())?;
            for (session, label) in std::mem::take(&mut self.labels) {
                self.folder.label(session, label)?;
            }
            self.stopped_until = None;
            gauge!("gaitway_recording_stopped").set(0.0);
            info!("recording goes on");
        }
        self.flush()?;
        let is_due = self.swept.elapsed() >= SWEEP_EVERY;
        if is_due || (self.folder.is_nearly_full() && self.swept.elapsed() >= ROOM_EVERY) {
            self.swept = Instant::now();
            self.folder.sweep(now)?;
        }
        if self.room_checked.elapsed() >= FLUSH_EVERY {
            self.room_checked = Instant::now();
            self.folder.check_room()?;
        }
        Ok(())
    }

    pub(super) fn on_seen(&mut self, seen: Seen) -> io::Result<()> {
        if self.is_stopped() {
            counter!("gaitway_recording_shed_total", "reason" => "stopped").increment(1);
            return Ok(());
        }
        // Shards' clocks agree, their queues do not: a line is never earlier than the one before. A clock
        // that is set back for good makes time stand still here until it has caught up.
        let at = self.latest.max(seen.at);
        let today = folder::day(at);
        if today != self.lines_day {
            self.turn_to(today.clone(), at)?;
        }
        self.latest = self.latest.max(at);
        let session = seen.identity.session;
        if self.sessions.get(&session).is_some_and(|open| open.is_another(&seen)) {
            self.on_closed(session)?;
        }
        let open = self.sessions.entry(session).or_insert_with(|| Open::new(&seen, today));
        open.tell(&seen, self.latest, &mut self.lines);
        if let Some(batch) = &seen.batch {
            open.keep(batch);
        }
        open.row.navigations_without_input =
            open.row.navigations_without_input.max(Some(seen.navigations_without_input));
        if let Some(share) = seen.facts.replay_match.filter(|share| share.is_finite()) {
            open.row.replay = Some(open.row.replay.map_or(share, |before| before.max(share)).clamp(0.0, 1.0));
        }
        if open.frames.len() > FRAMES_BYTES_MAX {
            open.write(&mut self.folder)?;
        }
        if self.lines.len() > LINES_BYTES_MAX {
            self.write_lines()?;
        }
        Ok(())
    }

    fn on_closed(&mut self, session: SessionId) -> io::Result<()> {
        let Some(mut open) = self.sessions.remove(&session) else { return Ok(()) };
        if self.is_stopped() {
            // Its file is taken up when recording goes on.
            return Ok(());
        }
        open.complete(&mut self.folder)
    }

    fn on_label(&mut self, session: SessionId, label: Label) -> io::Result<()> {
        if let Some(open) = self.sessions.get_mut(&session) {
            open.row.label = Some(label);
        }
        if self.is_stopped() {
            if self.labels.len() < LABELS_MAX {
                self.labels.push((session, label));
            }
            return Ok(());
        }
        self.folder.label(session, label)
    }

    /// A new day has new files, and tells of every session anew: the old ones may be deleted.
    fn turn_to(&mut self, today: Day, at: Timestamp) -> io::Result<()> {
        self.flush()?;
        self.latest = self.folder.latest_line(&today)?.max(at);
        self.lines_day.clone_from(&today);
        // Of a session without anything since yesterday nobody may have said that it is over.
        self.sessions.retain(|_, open| open.is_begun || open.written.is_some());
        for open in self.sessions.values_mut() {
            open.complete(&mut self.folder)?;
            open.turn_to(today.clone(), at);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_lines()?;
        for open in self.sessions.values_mut() {
            open.write(&mut self.folder)?;
        }
        Ok(())
    }

    fn write_lines(&mut self) -> io::Result<()> {
        if !self.lines.is_empty() {
            self.folder.append_lines(&self.lines_day, &self.lines)?;
            self.lines.clear();
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if self.is_stopped() {
            return Ok(());
        }
        self.flush()?;
        for (_, mut open) in self.sessions.drain() {
            open.complete(&mut self.folder)?;
        }
        self.folder.adopt(&HashSet::new())
    }
}

impl Open {
    fn new(seen: &Seen, day: Day) -> Open {
        let row = Row {
            name: format!("{}-{}", seen.identity.session, seen.at.0),
            day,
            user: user(seen),
            opened: seen.opened,
            ..Row::default()
        };
        Open {
            row,
            is_begun: false,
            frames: Vec::new(),
            written: None,
            is_torn: false,
            user: seen.identity.subject,
        }
    }

    /// Whether this is no longer the session that is recorded: it was closed and opened anew, or has
    /// passed from one person to another.
    fn is_another(&self, seen: &Seen) -> bool {
        self.row.opened != seen.opened || (self.user.is_some() && self.user != seen.identity.subject)
    }

    /// Appends the line of what changed.
    fn tell(&mut self, seen: &Seen, at: Timestamp, lines: &mut Vec<u8>) {
        if self.user != seen.identity.subject {
            // Somebody has logged in; what came before is taken for theirs.
            self.user = seen.identity.subject;
            self.row.user = user(seen);
            self.written = None;
        }
        let before = match &self.written {
            Some(facts) => Before::Known(facts),
            None => Before::Opened(seen.opened),
        };
        if let Some(line) = line(&seen.identity, at, &seen.facts, before) {
            lines.extend_from_slice(line.as_bytes());
            lines.push(b'\n');
            self.written = Some(seen.facts.clone());
        }
    }

    fn keep(&mut self, batch: &gaitway_models::Batch) {
        let frame = batch.encode();
        let is_long = self.row.tally.batches >= RECORDING_BATCHES_MAX
            || self.row.tally.bytes + frame.len() as u64 > RECORDING_BYTES_MAX;
        if is_long {
            counter!("gaitway_recording_shed_total", "reason" => "long").increment(1);
            return;
        }
        dataset::append_frame(&mut self.frames, &frame);
        self.row.tally.add(batch, frame.len());
    }

    fn write(&mut self, folder: &mut Folder) -> io::Result<()> {
        if !self.frames.is_empty() {
            folder.append_frames(&self.row, !self.is_begun, &self.frames)?;
            self.is_begun = true;
            self.frames.clear();
        }
        Ok(())
    }

    fn complete(&mut self, folder: &mut Folder) -> io::Result<()> {
        self.write(folder)?;
        if !self.is_begun {
            return Ok(());
        }
        if self.is_torn {
            // Some of it was lost: what the file holds is counted again.
            let Some(tally) = folder.count(&self.row)? else { return Ok(()) };
            self.row.tally = tally;
        }
        folder.complete(&self.row)
    }

    /// Starts the recording of another day.
    fn turn_to(&mut self, day: Day, at: Timestamp) {
        let session = self.row.name.split('-').next().unwrap_or_default();
        self.row = Row {
            name: format!("{session}-{}", at.0),
            day,
            user: std::mem::take(&mut self.row.user),
            opened: self.row.opened,
            label: self.row.label,
            ..Row::default()
        };
        self.is_begun = false;
        self.is_torn = false;
        self.written = None;
    }
}

/// Without a login, every session is a person of its own.
fn user(seen: &Seen) -> String {
    match seen.identity.subject {
        Some(subject) => subject.to_string(),
        None => seen.identity.session.to_string(),
    }
}
