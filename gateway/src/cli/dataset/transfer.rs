//! `gaitway dataset import` and `export`: files in other forms, in and out.
//!
//! Walks folders and writes files; what a line means is `gaitway_models::dataset`'s affair.

use super::table::{self, FeatureRow, feature_rows};
use super::{SESSION_BYTES_MAX, quoted, read_all, read_session};
use anyhow::{Context, bail, ensure};
use gaitway_models::dataset::origin::{self, Origin};
use gaitway_models::dataset::{self, Cut, Label};
use gaitway_models::event::{Event, EventKind};
use gaitway_models::typing;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Most files of one import, and how deep folders are searched for them.
const FILES_MAX: usize = 200_000;
const DEPTH_MAX: usize = 8;
const INDEX_HEADER: &str = "session,file,source,user,label,bot_family,licence,n_events,n_moves,dur_s,note\n";

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// Whose format it is
    #[arg(long, value_enum)]
    from: Maker,
    /// File, or folder searched for session files; a session's user is named after its folder
    input: PathBuf,
    /// New folder to write index.csv and session files to
    #[arg(long, short)]
    output: PathBuf,
    /// What the data's owners allow, noted in the index
    #[arg(long, default_value = "")]
    licence: String,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Maker {
    Balabit,
    Sapimouse,
    Delbot,
    /// JSON batches with `mouseEvents`
    Batches,
    /// One table of a typed phrase's times, as of CMU's keystroke benchmark
    Cmu,
    /// A folder of our own form, such as a gateway's recordings
    Gaitway,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Folder with index.csv and the session files it names
    data: PathBuf,
    /// New file for a table of features, new folder for events
    #[arg(long, short)]
    output: PathBuf,
    #[arg(long, value_enum, default_value = "features")]
    what: What,
    /// Cut events into sequences first: at gaps, short ones left out
    #[arg(long)]
    sequences: bool,
    /// Gap that ends a sequence, milliseconds
    #[arg(long, default_value_t = 1000)]
    gap_ms: u64,
    /// Fewest events of a sequence
    #[arg(long, default_value_t = 50)]
    length_min: usize,
    /// Keep keys and page events in sequences too
    #[arg(long)]
    all_types: bool,
    /// Only sessions of viewports at least this wide, CSS px; those that do not tell are left out
    #[arg(long)]
    width_min: Option<u32>,
    /// Only this user
    #[arg(long)]
    user: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// CSV, one row an evidence window
    Features,
    /// The same table as Parquet
    Parquet,
    /// Session files as text
    Events,
    /// Session files in the wire format (Protobuf)
    Protobuf,
}

/// A folder of our form under way.
struct Folder<'p> {
    root: &'p Path,
    index: String,
    sessions: usize,
}

struct Session<'s> {
    name: &'s str,
    source: &'s str,
    user: &'s str,
    label: Label,
    family: Option<&'s str>,
    licence: &'s str,
    note: &'s str,
    events: &'s [Event],
}

pub(super) fn import(args: &ImportArgs) -> anyhow::Result<()> {
    let (origin, source) = match args.from {
        Maker::Balabit => (Origin::Balabit, "balabit"),
        Maker::Sapimouse => (Origin::Sapimouse, "sapimouse"),
        Maker::Delbot => (Origin::Delbot, "delbot"),
        Maker::Batches => (Origin::Batches, "batches"),
        Maker::Cmu => return import_phrases(args),
        Maker::Gaitway => {
            let mut folder = Folder::create(&args.output)?;
            for recording in read_all(&args.input, None)? {
                folder.add(&Session::of(&recording, &recording.session, &recording.events), false)?;
            }
            return folder.finish();
        }
    };
    let mut files = Vec::new();
    find(&args.input, 0, &mut files)?;
    files.sort();
    ensure!(!files.is_empty(), "{} holds no files", args.input.display());
    let mut folder = Folder::create(&args.output)?;
    for path in files {
        let size = std::fs::metadata(&path)?.len();
        ensure!(size <= SESSION_BYTES_MAX, "{} exceeds {SESSION_BYTES_MAX} bytes", path.display());
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let events = origin::parse(origin, &text).with_context(|| path.display().to_string())?;
        let within = path.strip_prefix(&args.input).unwrap_or(&path).with_extension("");
        let name = if within.as_os_str().is_empty() { PathBuf::from("session") } else { within };
        let name = format!("{source}/{}", name.to_string_lossy().replace('/', "_"));
        let user = path.parent().and_then(Path::file_name).map_or("".into(), |user| user.to_string_lossy());
        // DELBOT-Mouse says in the file's name what drew.
        let family =
            ["gan", "pynput"].into_iter().find(|family| origin == Origin::Delbot && name.contains(family));
        let label = if family.is_some() { Label::Bot } else { Label::Human };
        let (licence, user) = (args.licence.as_str(), user.as_ref());
        folder.add(
            &Session { name: &name, source, user, label, family, licence, note: "", events: &events },
            false,
        )?;
    }
    folder.finish()
}

/// Sessions of keys, and beside them the table itself for `evaluate --task keystroke`.
fn import_phrases(args: &ImportArgs) -> anyhow::Result<()> {
    let within = args.input.parent().unwrap_or(Path::new(""));
    let name = args.input.file_name().context("name the table's file, not a folder")?.to_string_lossy();
    let bytes = read_session(within, &name)?;
    let text =
        std::str::from_utf8(&bytes).with_context(|| format!("{} is not text", args.input.display()))?;
    let sessions = origin::parse_phrases(text).with_context(|| args.input.display().to_string())?;
    let mut folder = Folder::create(&args.output)?;
    for ((user, session), events) in &sessions {
        let name = format!("cmu/{user}_{session:02}");
        let (label, licence) = (Label::Human, args.licence.as_str());
        let session =
            Session { name: &name, source: "cmu", user, label, family: None, licence, note: "", events };
        folder.add(&session, false)?;
    }
    let table = args.output.join("keystroke");
    std::fs::create_dir_all(&table).with_context(|| format!("cannot create {}", table.display()))?;
    std::fs::write(table.join("phrase.csv"), typing::as_repetitions(text)?)
        .with_context(|| format!("cannot write {}", table.display()))?;
    folder.finish()
}

pub(super) fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let mut recordings = read_all(&args.data, None)?;
    recordings.retain(|recording| args.user.as_ref().is_none_or(|user| recording.user == *user));
    if let Some(width) = args.width_min {
        recordings.retain(|recording| recording.environment.is_some_and(|e| e.viewport_width >= width));
    }
    ensure!(!recordings.is_empty(), "no recording in {} is of this user and width", args.data.display());
    let cut = Cut {
        gap_us: args.gap_ms.saturating_mul(1000),
        events_min: args.length_min.max(1),
        pointer_only: !args.all_types,
    };
    if matches!(args.what, What::Features | What::Parquet) {
        ensure!(!args.sequences, "features rest on whole sessions: leave out --sequences or export events");
        ensure!(!args.output.exists(), "{} is there already", args.output.display());
        let rows: Vec<FeatureRow<'_>> = recordings.iter().flat_map(feature_rows).collect();
        let bytes = match args.what {
            What::Parquet => table::parquet(&rows)?,
            _ => table::csv(&rows).into_bytes(),
        };
        return std::fs::write(&args.output, bytes)
            .with_context(|| format!("cannot write {}", args.output.display()));
    }
    let mut folder = Folder::create(&args.output)?;
    for recording in &recordings {
        if !args.sequences {
            folder.add(
                &Session::of(recording, &recording.session, &recording.events),
                args.what == What::Protobuf,
            )?;
            continue;
        }
        for (number, events) in dataset::sequences(&recording.events, &cut).iter().enumerate() {
            let name = format!("{}_{number:04}", recording.session);
            folder.add(&Session::of(recording, &name, events), args.what == What::Protobuf)?;
        }
    }
    folder.finish()
}

impl<'s> Session<'s> {
    fn of(recording: &'s dataset::Recording, name: &'s str, events: &'s [Event]) -> Session<'s> {
        Session {
            name,
            source: &recording.source,
            user: &recording.user,
            label: recording.label,
            family: recording.family.as_deref(),
            licence: &recording.licence,
            note: &recording.note,
            events,
        }
    }
}

impl<'p> Folder<'p> {
    fn create(root: &'p Path) -> anyhow::Result<Folder<'p>> {
        ensure!(
            !root.join("index.csv").exists(),
            "{} holds recordings already: name a new folder",
            root.display()
        );
        std::fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        Ok(Folder { root, index: INDEX_HEADER.into(), sessions: 0 })
    }

    fn add(&mut self, session: &Session<'_>, wire: bool) -> anyhow::Result<()> {
        // A name from elsewhere must not lead outside the folder: files are numbered.
        let file = format!("sessions/{:06}.{}", self.sessions, if wire { "gwt" } else { "csv" });
        let path = self.root.join(&file);
        if self.sessions == 0 {
            std::fs::create_dir_all(self.root.join("sessions"))?;
        }
        let bytes = match wire {
            true => dataset::encode_batches(&dataset::batches(session.events)),
            false => dataset::format_session(session.events).into_bytes(),
        };
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        let moves = session.events.iter().filter(|event| matches!(event.kind, EventKind::PointerMove { .. }));
        let seconds = match session.events {
            [first, .., last] => last.at_us.saturating_sub(first.at_us) as f64 / 1e6,
            _ => 0.0,
        };
        let text =
            [session.name, &file, session.source, session.user, session.label.name()].map(quoted).join(",");
        let _ = writeln!(
            self.index,
            "{text},{},{},{},{},{seconds:.2},{}",
            quoted(session.family.unwrap_or_default()),
            quoted(session.licence),
            session.events.len(),
            moves.count(),
            quoted(session.note)
        );
        self.sessions += 1;
        Ok(())
    }

    /// The index comes last: a folder without one was not finished.
    fn finish(self) -> anyhow::Result<()> {
        ensure!(self.sessions > 0, "no session came out of it, so nothing was written");
        std::fs::write(self.root.join("index.csv"), &self.index)
            .with_context(|| format!("cannot write {}", self.root.join("index.csv").display()))?;
        println!("{} sessions in {}", self.sessions, self.root.display());
        Ok(())
    }
}

fn find(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if path.is_file() {
        ensure!(files.len() < FILES_MAX, "more than {FILES_MAX} files: import them in parts");
        files.push(path.into());
        return Ok(());
    }
    if depth > DEPTH_MAX {
        bail!("{}: folders lie more than {DEPTH_MAX} deep", path.display());
    }
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let entry = entry?;
        // Neither hidden files nor what a link leads to belongs to the data.
        if !entry.file_name().to_string_lossy().starts_with('.') && !entry.file_type()?.is_symlink() {
            find(&entry.path(), depth + 1, files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gaitway_models::features::FEATURES;

    fn arguments(input: &Path, output: &Path, from: Maker) -> ImportArgs {
        ImportArgs { from, input: input.into(), output: output.into(), licence: "MIT, as found".into() }
    }

    fn export_args(data: &Path, output: &Path, what: What, sequences: bool) -> ExportArgs {
        let (data, output) = (data.into(), output.into());
        ExportArgs {
            data,
            output,
            what,
            sequences,
            gap_ms: 1000,
            length_min: 50,
            all_types: false,
            width_min: None,
            user: None,
        }
    }

    #[test]
    fn recordings_come_in_go_out_and_come_in_again_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let original = folder.path().join("original");
        std::fs::create_dir_all(original.join("user7")).unwrap();
        let mut rows = String::from("client timestamp,button,state,x,y\n");
        for i in 0..2_000u32 {
            // A rest of two seconds in the middle makes two sequences.
            let ms = i * 16 + if i >= 1_200 { 2_000 } else { 0 };
            let x = 400.0 + 300.0 * (f64::from(i) / 15.0).sin();
            let _ = writeln!(rows, "{ms},NoButton,Move,{x:.0},{}", i % 700);
        }
        std::fs::write(original.join("user7/session_1.csv"), &rows).unwrap();
        let at = |name: &str| folder.path().join(name);
        import(&arguments(&original, &at("in"), Maker::Sapimouse)).unwrap();
        let imported = read_all(&at("in"), None).unwrap();
        assert_eq!((imported[0].user.as_str(), imported[0].licence.as_str()), ("user7", "MIT, as found"));
        assert_eq!((imported[0].label, imported[0].events.len()), (Label::Human, 2_000));
        for (name, what) in [("text", What::Events), ("wire", What::Protobuf)] {
            export(&export_args(&at("in"), &at(name), what, false)).unwrap();
            let again = read_all(&at(name), None).unwrap();
            assert_eq!(again[0].events, imported[0].events, "{name}");
        }
        export(&export_args(&at("in"), &at("sequences"), What::Events, true)).unwrap();
        let sequences = read_all(&at("sequences"), None).unwrap();
        assert_eq!(sequences.iter().map(|s| s.events.len()).collect::<Vec<_>>(), [1_200, 800]);
        export(&export_args(&at("in"), &at("table.csv"), What::Features, false)).unwrap();
        let table = std::fs::read_to_string(at("table.csv")).unwrap();
        let columns: Vec<usize> = table.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, vec![7 + FEATURES.len(); columns.len()]);
        assert!(columns.len() >= 4, "a header, three windows of ten seconds, one of thirty");
        export(&export_args(&at("in"), &at("table.parquet"), What::Parquet, false)).unwrap();
        check_parquet(&at("table.parquet"), &table);
        let again = import(&arguments(&original, &at("in"), Maker::Sapimouse)).unwrap_err().to_string();
        assert!(again.contains("holds recordings already"), "{again}");
        std::fs::write(original.join("user7/session_2.csv"), "1,NoButton,Move,x,1\n").unwrap();
        let wrong =
            format!("{:#}", import(&arguments(&original, &at("other"), Maker::Sapimouse)).unwrap_err());
        assert!(wrong.ends_with("session_2.csv: line 1: not a number"), "{wrong}");
    }

    /// The same rows as the CSV table, read by the library's own reader.
    fn check_parquet(path: &Path, csv: &str) {
        use parquet::file::reader::{FileReader, SerializedFileReader};
        use parquet::record::Field;
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let mut lines = csv.lines();
        let header: Vec<&str> = lines.next().unwrap().split(',').collect();
        let mut rows = 0;
        for (row, line) in reader.get_row_iter(None).unwrap().zip(lines.by_ref()) {
            let row = row.unwrap();
            let columns: Vec<_> = row.get_column_iter().collect();
            assert_eq!(columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), header);
            let told = columns.iter().map(|(_, field)| match field {
                Field::Null => String::new(),
                Field::Str(text) => text.clone(),
                Field::Int(n) => n.to_string(),
                Field::Float(x) => x.to_string(),
                other => panic!("{other:?}"),
            });
            assert_eq!(told.collect::<Vec<_>>(), line.split(',').collect::<Vec<_>>());
            rows += 1;
        }
        assert!(rows >= 4 && lines.next().is_none());
    }

    #[test]
    fn a_table_of_typed_phrases_becomes_sessions_of_keys_and_can_be_evaluated() {
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::from("subject,sessionIndex,rep,H.t,DD.t.five,UD.t.five,H.five\n");
        for i in 0..120 {
            let _ = writeln!(text, "s{:03},{},{},0.1,0.2,0.1,0.09", 2 + i / 60, 1 + i % 60 / 30, 1 + i % 30);
        }
        let (input, output) = (folder.path().join("phrase.csv"), folder.path().join("out"));
        std::fs::write(&input, text).unwrap();
        import(&arguments(&input, &output, Maker::Cmu)).unwrap();
        let sessions = read_all(&output, None).unwrap();
        let of: Vec<_> = sessions.iter().map(|s| (s.user.as_str(), s.events.len())).collect();
        assert_eq!(of, [("s002", 120), ("s002", 120), ("s003", 120), ("s003", 120)]);
        let repetitions = super::super::read_repetitions(&output).unwrap();
        assert_eq!((repetitions.len(), repetitions[59].number, repetitions[59].times.len()), (120, 59, 4));
        std::fs::write(&input, "subject,rep,H.a,DD.a.b,H.b\ns002,1,x,1,1\n").unwrap();
        let wrong = import(&arguments(&input, &folder.path().join("other"), Maker::Cmu)).unwrap_err();
        assert!(format!("{wrong:#}").ends_with("phrase.csv: line 2: not a number"), "{wrong:#}");
    }
}
