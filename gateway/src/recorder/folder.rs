//! The folder of recordings: which file is where, how much there may be, and what is deleted.
//!
//! ```text
//! sessions-2026-11-21.jsonl        facts as they change, for `gaitway policy backtest`
//! index.csv                        one row a recording of telemetry that is complete
//! open.csv                         those that are not; after a crash they become rows of the index
//! telemetry/2026-11-21/s_….gwt     batches as they came, for `gaitway learn`, `train`, `evaluate`
//! ```
//!
//! Everything is appended in whole lines or frames; a write that fails half-way is taken back. Must
//! not know: sessions in memory, queues.

use super::Label;
use crate::config;
use gaitway_models::dataset::{self, WIRE_MAGIC};
use gaitway_models::event::{Environment, EventKind};
use gaitway_models::{Batch, Timestamp};
use gaitway_policies::SessionId;
use gaitway_policies::record::{HEADER, LINE_BYTES_MAX};
use metrics::counter;
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tracing::warn;

/// Largest recording of one session and day, in bytes: a batch of 2 KiB every two seconds for a day is 84 MB,
/// and nobody moves all day.
pub(super) const RECORDING_BYTES_MAX: u64 = 64 * 1024 * 1024;
const INDEX: &str = "index.csv";
const JOURNAL: &str = "open.csv";
const TELEMETRY: &str = "telemetry";
const INDEX_HEADER: &str = "session,file,source,user,label,bot_family,licence,n_events,n_moves,dur_s,note,\
    opened,automation,navigations_without_input,replay,operator_label,device\n";
/// Which column of the index is the operator's label.
const LABEL_COLUMN: usize = 15;
const JOURNAL_HEADER: &str = "session,file,user,opened\n";
/// A recording that a crash cut off has this note.
const CUT_OFF: &str = "cut off";

/// What went wrong with the folder, in words for the log.
#[derive(Debug, thiserror::Error)]
#[error("recording.directory: cannot {what} {}: {cause}", path.display())]
pub struct FolderError {
    what: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl FolderError {
    pub(super) fn new(what: &'static str, path: &Path, cause: io::Error) -> FolderError {
        FolderError { what, path: path.to_owned(), cause }
    }
}

/// The day in UTC, such as `2026-11-21`; days compare as text.
pub(super) type Day = String;

pub(super) fn day(at: Timestamp) -> Day {
    let moment = i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.unwrap_or_default().to_zoned(jiff::tz::TimeZone::UTC).date().to_string()
}

/// One recording of telemetry: what its row of the index is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    /// Session and the time the recording began: a session has one recording a day.
    pub(super) name: String,
    pub(super) day: Day,
    /// Pseudonym of the person; of the session, if nobody has logged in.
    pub(super) user: String,
    pub(super) opened: Timestamp,
    pub(super) note: &'static str,
    pub(super) tally: Tally,
    /// Most page loads in a row without any input seen before them.
    pub(super) navigations_without_input: Option<u64>,
    pub(super) replay: Option<f32>,
    pub(super) label: Option<Label>,
}

/// What can be counted in the batches themselves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) batches: usize,
    pub(super) bytes: u64,
    events: u64,
    moves: u64,
    /// Page time of the events, in microseconds, all pages together.
    active_us: u64,
    latest_us: u64,
    automation: bool,
    environment: Option<Environment>,
}

impl Tally {
    pub(super) fn add(&mut self, batch: &Batch, bytes: usize) {
        self.batches += 1;
        self.bytes += bytes as u64;
        self.events += batch.events.len() as u64;
        let is_move = |kind: &EventKind| matches!(kind, EventKind::PointerMove { .. });
        self.moves += batch.events.iter().filter(|event| is_move(&event.kind)).count() as u64;
        // Another page starts its clock again.
        self.active_us += batch.sent_at_us.saturating_sub(self.latest_us.min(batch.sent_at_us));
        self.latest_us = batch.sent_at_us;
        if let Some(environment) = batch.environment {
            self.automation |= environment.automation;
            self.environment = Some(environment);
        }
    }

    /// The kind of device as far as the browser told: pointer and pixel ratio.
    fn device(&self) -> String {
        self.environment.map_or_else(String::new, |environment| {
            let pointer = if environment.coarse_pointer { "coarse" } else { "fine" };
            format!("{pointer}-{}", environment.pixel_ratio_percent)
        })
    }
}

impl Row {
    pub(super) fn file(&self) -> String {
        format!("{TELEMETRY}/{}/{}.gwt", self.day, self.name)
    }

    /// No field needs quotes: names of ours, numbers and a source that the configuration checks.
    fn text(&self, source: &str) -> String {
        let Tally { events, moves, active_us, automation, .. } = self.tally;
        let seconds = active_us as f64 / 1e6;
        let unprompted = self.navigations_without_input.map_or_else(String::new, |count| count.to_string());
        let replay = self.replay.map_or_else(String::new, |share| format!("{share:.4}"));
        format!(
            "{},{},{source},{},,,own traffic,{events},{moves},{seconds:.1},{},{},{},{unprompted},{replay},{},{}\n",
            self.name,
            self.file(),
            self.user,
            self.note,
            self.opened.0,
            u8::from(automation),
            self.label.map_or("", Label::word),
            self.tally.device(),
        )
    }
}

/// What a recording that somebody left open turned out to be.
enum Mended {
    /// Nothing, or nothing that anybody could use.
    Empty,
    /// Somebody else's to complete.
    Foreign,
    Whole(Tally),
}

/// The folder, held by this process alone.
pub(super) struct Folder {
    root: PathBuf,
    source: String,
    days: u32,
    bytes_max: u64,
    free_bytes_min: u64,
    /// All recordings together, as far as they are known to grow.
    bytes: u64,
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be, and takes up what a former process left.
    pub(super) fn open(
        root: &Path,
        config: &config::Recording,
        now: Timestamp,
    ) -> Result<Folder, FolderError> {
        let fail = |what: &'static str| move |cause| FolderError::new(what, root, cause);
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(fail("make"))?;
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(root.join(".lock"));
        let lock = lock.map_err(fail("write to"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => fail("lock")(io::Error::other("another gateway records into it")),
            TryLockError::Error(cause) => fail("lock")(cause),
        })?;
        let mut folder = Folder {
            root: root.to_owned(),
            source: config.source.clone(),
            days: config.days,
            bytes_max: config.bytes_max,
            free_bytes_min: config.free_bytes_min,
            bytes: 0,
            _lock: lock,
        };
        for place in [INDEX.to_owned(), JOURNAL.to_owned(), lines_of(&day(now))] {
            folder.cut_torn_line(&place).map_err(fail("mend what is in"))?;
        }
        folder.adopt(&HashSet::new()).map_err(fail("take up what is in"))?;
        folder.sweep(now).map_err(fail("delete old recordings in"))?;
        Ok(folder)
    }

    /// Appends lines of facts to the day's file.
    pub(super) fn append_lines(&mut self, day: &str, lines: &[u8]) -> io::Result<()> {
        self.append(&lines_of(day), format!("{HEADER}\n").as_bytes(), lines)
    }

    /// Time of the latest line of the day; lines after it must not be earlier.
    pub(super) fn latest_line(&self, day: &str) -> io::Result<Timestamp> {
        let tail = self.tail(&lines_of(day))?;
        let at = String::from_utf8_lossy(&tail)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["at"].as_u64())
            .next_back();
        Ok(Timestamp(at.unwrap_or(0)))
    }

    /// The last bytes of a file, enough for its last line.
    fn tail(&self, place: &str) -> io::Result<Vec<u8>> {
        let mut tail = Vec::new();
        match File::open(self.root.join(place)) {
            Ok(mut file) if file.metadata()?.is_file() => {
                let from = file.metadata()?.len().saturating_sub(2 * LINE_BYTES_MAX as u64);
                file.seek(SeekFrom::Start(from))?;
                file.take(2 * LINE_BYTES_MAX as u64).read_to_end(&mut tail)?;
                Ok(tail)
            }
            Ok(_) => Ok(tail),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(tail),
            Err(error) => Err(error),
        }
    }

    /// Takes away the half line that a machine left when it lost power.
    fn cut_torn_line(&self, place: &str) -> io::Result<()> {
        let tail = self.tail(place)?;
        let torn = tail.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
        if torn > 0 {
            let file = OpenOptions::new().write(true).open(self.root.join(place))?;
            let length = file.metadata()?.len();
            file.set_len(length.saturating_sub(torn))?;
        }
        Ok(())
    }

    /// Appends frames to a recording; the first ones make its file, and note that it is open.
    pub(super) fn append_frames(&mut self, row: &Row, is_first: bool, frames: &[u8]) -> io::Result<()> {
        if is_first {
            let folder = self.root.join(TELEMETRY).join(&row.day);
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let line = format!("{},{},{},{}\n", row.name, row.file(), row.user, row.opened.0);
            self.append(JOURNAL, JOURNAL_HEADER.as_bytes(), line.as_bytes())?;
        }
        self.append(&row.file(), WIRE_MAGIC, frames)
    }

    /// A recording is complete.
    pub(super) fn complete(&mut self, row: &Row) -> io::Result<()> {
        let line = row.text(&self.source);
        self.append(INDEX, INDEX_HEADER.as_bytes(), line.as_bytes())?;
        counter!("gaitway_recorded_sessions_total").increment(1);
        Ok(())
    }

    /// Writes what an operator said into every row of a session; rows that are not there yet get it
    /// when they are written.
    pub(super) fn label(&mut self, session: SessionId, label: Label) -> io::Result<()> {
        let prefix = format!("{session}-");
        self.rewrite_index(|line| {
            if !line.starts_with(&prefix) {
                return Some(line.to_owned());
            }
            let mut fields: Vec<&str> = line.split(',').collect();
            if let Some(field) = fields.get_mut(LABEL_COLUMN) {
                *field = label.word();
            }
            Some(fields.join(","))
        })
    }

    /// Deletes what is older than it may be; then, a day at a time, what is more than there may be.
    pub(super) fn sweep(&mut self, now: Timestamp) -> io::Result<()> {
        let today = day(now);
        let oldest = day(Timestamp(now.0.saturating_sub(u64::from(self.days) * 24 * 3_600_000)));
        let mut days = self.days()?;
        let mut gone: BTreeSet<Day> = days.iter().filter(|day| **day <= oldest).cloned().collect();
        days.retain(|day| !gone.contains(day));
        for day in &gone {
            self.delete(day)?;
        }
        self.bytes = self.measure()?;
        for day in days.into_iter().filter(|day| *day < today) {
            if self.bytes <= self.bytes_max {
                break;
            }
            self.delete(&day)?;
            self.bytes = self.measure()?;
            gone.insert(day);
        }
        if !gone.is_empty() {
            let kept = |line: &str| {
                let day = line.split(',').nth(1).and_then(|file| file.split('/').nth(1));
                day.is_none_or(|day| !gone.contains(day)).then(|| line.to_owned())
            };
            self.rewrite_index(kept)?;
        }
        Ok(())
    }

    /// The oldest day should go before long.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.bytes > self.bytes_max - self.bytes_max / 64
    }

    /// Recordings that a former process left open become rows of the index; `open` are this one's.
    pub(super) fn adopt(&mut self, open: &HashSet<String>) -> io::Result<()> {
        let journal = read_if_there(&self.root.join(JOURNAL))?;
        let index = read_if_there(&self.root.join(INDEX))?;
        let complete: HashSet<&str> = index.lines().filter_map(|line| line.split(',').next()).collect();
        let mut still = JOURNAL_HEADER.to_owned();
        for line in journal.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            // A line that a dying machine tore in two names nothing.
            let &[name, file, user, opened] = fields.as_slice() else { continue };
            let left = match open.contains(name) {
                true => Mended::Foreign,
                false if complete.contains(name) => Mended::Empty,
                false => self.mend(&self.root.join(file))?,
            };
            match left {
                Mended::Empty => {}
                Mended::Foreign => {
                    still.push_str(line);
                    still.push('\n');
                }
                Mended::Whole(tally) => self.complete(&Row {
                    name: name.to_owned(),
                    day: file.split('/').nth(1).unwrap_or_default().to_owned(),
                    user: user.to_owned(),
                    opened: Timestamp(opened.parse().unwrap_or(0)),
                    note: CUT_OFF,
                    tally,
                    ..Row::default()
                })?,
            }
        }
        self.replace(JOURNAL, &still)
    }

    /// What a recording's file holds by now.
    pub(super) fn count(&self, row: &Row) -> io::Result<Option<Tally>> {
        Ok(match self.mend(&self.root.join(row.file()))? {
            Mended::Whole(tally) => Some(tally),
            Mended::Empty | Mended::Foreign => None,
        })
    }

    /// Cuts a torn frame off a recording's end and counts the rest. A whole frame that we cannot read is
    /// another version's: then nothing is touched.
    fn mend(&self, path: &Path) -> io::Result<Mended> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(RECORDING_BYTES_MAX).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Mended::Empty),
            Err(error) => return Err(error),
        };
        let mut tally = Tally::default();
        let Some(mut rest) = bytes.strip_prefix(WIRE_MAGIC.as_slice()) else { return Ok(Mended::Empty) };
        let mut whole = WIRE_MAGIC.len();
        while let Some((frame, after)) = dataset::split_frame(rest) {
            // Machines that lose power leave zeros where they meant to write.
            if frame.is_empty() {
                break;
            }
            let Ok(batch) = Batch::decode(frame) else {
                warn!(recording = %path.display(), "left as it is: written by another version of Gaitway");
                return Ok(Mended::Foreign);
            };
            let length = rest.len() - after.len();
            tally.add(&batch, length);
            whole += length;
            rest = after;
        }
        if whole < bytes.len() {
            OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
        }
        Ok(if tally.batches > 0 { Mended::Whole(tally) } else { Mended::Empty })
    }

    fn append(&mut self, place: &str, opening: &[u8], bytes: &[u8]) -> io::Result<()> {
        if self.bytes.saturating_add(bytes.len() as u64) > self.bytes_max {
            return Err(io::Error::other("recording.bytes_max is reached by the present day alone"));
        }
        let mut file =
            OpenOptions::new().create(true).append(true).mode(0o600).open(self.root.join(place))?;
        let before = file.metadata()?.len();
        let mut whole = if before == 0 { opening.to_vec() } else { Vec::new() };
        whole.extend_from_slice(bytes);
        if let Err(error) = file.write_all(&whole) {
            // Half a line would spoil the file for its readers.
            let _ = file.set_len(before);
            return Err(error);
        }
        self.bytes += whole.len() as u64;
        counter!("gaitway_recorded_bytes_total").increment(whole.len() as u64);
        Ok(())
    }

    fn rewrite_index(&self, line: impl Fn(&str) -> Option<String>) -> io::Result<()> {
        let index = read_if_there(&self.root.join(INDEX))?;
        if index.is_empty() {
            return Ok(());
        }
        let mut kept = INDEX_HEADER.to_owned();
        for line in index.lines().skip(1).filter_map(line) {
            kept.push_str(&line);
            kept.push('\n');
        }
        self.replace(INDEX, &kept)
    }

    /// All or nothing: readers see the file as it was or as it is.
    fn replace(&self, place: &str, text: &str) -> io::Result<()> {
        let new = self.root.join(format!("{place}.new"));
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(new, self.root.join(place))
    }

    /// Days there is anything of, oldest first.
    fn days(&self) -> io::Result<Vec<Day>> {
        let mut days = BTreeSet::new();
        for name in names(&self.root)? {
            let day = name.strip_prefix("sessions-").and_then(|rest| rest.strip_suffix(".jsonl"));
            days.extend(day.filter(|day| is_day(day)).map(str::to_owned));
        }
        days.extend(names(&self.root.join(TELEMETRY))?.into_iter().filter(|name| is_day(name)));
        Ok(days.into_iter().collect())
    }

    fn delete(&self, day: &str) -> io::Result<()> {
        let absent_is_fine = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        absent_is_fine(fs::remove_file(self.root.join(lines_of(day))))?;
        absent_is_fine(fs::remove_dir_all(self.root.join(TELEMETRY).join(day)))
    }

    /// Bytes of all recordings.
    fn measure(&self) -> io::Result<u64> {
        let mut bytes = 0;
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else {
                    bytes += metadata.len();
                }
            }
        }
        Ok(bytes)
    }

    /// Whether anything may be written at all.
    pub(super) fn check_room(&self) -> io::Result<()> {
        if self.bytes > self.bytes_max {
            return Err(io::Error::other("recording.bytes_max is reached by the present day alone"));
        }
        let disk = rustix::fs::statvfs(&self.root)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < self.free_bytes_min {
            return Err(io::Error::other("the disk has less free than recording.free_bytes_min"));
        }
        Ok(())
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

fn lines_of(day: &str) -> String {
    format!("sessions-{day}.jsonl")
}

fn is_day(name: &str) -> bool {
    name.len() == 10
        && name.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn read_if_there(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}
