//! `gaitway dataset`: what a folder of recordings holds; and reading one, for training and evaluation.
//! Bringing recordings in from elsewhere and handing them out is `dataset/transfer.rs`'s affair.

mod table;
mod transfer;

use super::complain;
use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;
use gaitway_models::dataset::{self, Label, Recording};
use gaitway_models::typing::{Repetition, parse_repetitions};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Largest session file accepted, unpacked.
const SESSION_BYTES_MAX: u64 = 256 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub struct DatasetArgs {
    #[command(subcommand)]
    command: DatasetCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DatasetCommand {
    /// Sessions, people, events, active input and windows of each source and family
    Stats {
        /// Folder with index.csv and the session files it names
        data: PathBuf,
    },
    /// Turn recordings in their makers' format into a folder of ours
    Import(transfer::ImportArgs),
    /// Hand recordings out: features as a table, or events, whole or cut into sequences
    Export(transfer::ExportArgs),
}

pub fn run(args: DatasetArgs) -> anyhow::Result<()> {
    match args.command {
        DatasetCommand::Stats { data } => stats(&data),
        DatasetCommand::Import(args) => transfer::import(&args),
        DatasetCommand::Export(args) => transfer::export(&args),
    }
}

fn stats(data: &Path) -> anyhow::Result<()> {
    #[derive(Default)]
    struct Line {
        sessions: usize,
        users: std::collections::BTreeSet<String>,
        events: usize,
        seconds: f64,
        windows: usize,
        long: usize,
    }
    let mut lines: BTreeMap<(String, String), Line> = BTreeMap::new();
    let recordings = read_all(data, None)?;
    let key = |recording: &Recording| {
        let who = match recording.label {
            Label::Human => "(people)".into(),
            Label::Bot => recording.family.clone().unwrap_or_default(),
            Label::Unknown => "(unknown)".into(),
        };
        (recording.source.clone(), who)
    };
    for recording in &recordings {
        let line = lines.entry(key(recording)).or_default();
        line.sessions += 1;
        line.users.insert(recording.user.clone());
        line.events += recording.events.len();
        if let (Some(first), Some(last)) = (recording.events.first(), recording.events.last()) {
            line.seconds += (last.at_us - first.at_us) as f64 / 1e6;
        }
    }
    // Windows as training and evaluation see them: short recordings of one source and family joined.
    for recording in dataset::join_short(recordings) {
        let windows = dataset::windows(&recording.events);
        let line = lines.entry(key(&recording)).or_default();
        line.windows += windows.len();
        line.long += windows.iter().filter(|window| window.long.is_some()).count();
    }
    println!(
        "{:<14} {:<18} {:>8} {:>6} {:>9} {:>8} {:>8} {:>8}",
        "source", "who", "sessions", "users", "events", "hours", "10 s", "30 s"
    );
    for ((source, who), line) in lines {
        println!(
            "{source:<14} {who:<18} {:>8} {:>6} {:>9} {:>8.2} {:>8} {:>8}",
            line.sessions,
            line.users.len(),
            line.events,
            line.seconds / 3600.0,
            line.windows,
            line.long
        );
    }
    Ok(())
}

/// Reads the recordings of a folder whose index says who made them: those of some sources, or all that are
/// mouse sessions.
pub(super) fn read(data: &Path, sources: Option<&[String]>) -> anyhow::Result<Vec<Recording>> {
    let mut recordings = read_all(data, sources)?;
    let all = recordings.len();
    recordings.retain(|recording| recording.label != Label::Unknown);
    let unknown = all - recordings.len();
    if unknown > 0 {
        complain(&format!("{unknown} recordings without a label are left out"));
    }
    ensure!(!recordings.is_empty(), "no recording in {} has a label, human or bot", data.display());
    Ok(recordings)
}

/// As [`read`], with those that nobody has labelled.
pub(super) fn read_all(data: &Path, sources: Option<&[String]>) -> anyhow::Result<Vec<Recording>> {
    let index = data.join("index.csv");
    let text = std::fs::read_to_string(&index).with_context(|| format!("cannot read {}", index.display()))?;
    let rows = dataset::parse_index(&text).with_context(|| format!("{}", index.display()))?;
    if let Some(sources) = sources {
        for source in sources {
            ensure!(
                rows.iter().any(|row| row.source == *source),
                "{} has no source named {source}",
                index.display()
            );
        }
    }
    let mut recordings = Vec::new();
    for row in rows {
        if sources.is_some_and(|sources| !sources.contains(&row.source)) || row.file.contains("keystroke/") {
            continue;
        }
        let bytes = read_session(data, &row.file)?;
        let mut marks = row.marks;
        let (events, environment) = if row.file.trim_end_matches(".gz").ends_with(".gwt") {
            let batches = dataset::parse_batches(&bytes).with_context(|| row.file.clone())?;
            marks.automation |= batches.iter().any(|batch| batch.environment.is_some_and(|e| e.automation));
            let events = dataset::join_pages(&batches).with_context(|| row.file.clone())?;
            (events, dataset::environment(&batches))
        } else {
            let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is not text", row.file))?;
            (dataset::parse_session(text).with_context(|| row.file.clone())?, None)
        };
        recordings.push(Recording {
            session: row.session,
            source: row.source,
            user: row.user,
            label: row.label,
            family: row.family,
            licence: row.licence,
            note: row.note,
            marks,
            environment,
            events,
        });
    }
    ensure!(!recordings.is_empty(), "{} names no recordings of these sources", index.display());
    Ok(recordings)
}

/// Reads the repetitions of a typed phrase: the one file of the folder `keystroke`.
pub(super) fn read_repetitions(data: &Path) -> anyhow::Result<Vec<Repetition>> {
    let folder = data.join("keystroke");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>, _>>()?;
    names.retain(|name| name.trim_end_matches(".gz").ends_with(".csv"));
    let [name] = &names[..] else {
        bail!("{} holds {} CSV files; it takes exactly one phrase", folder.display(), names.len());
    };
    let bytes = read_session(data, &format!("keystroke/{name}"))?;
    let text = std::str::from_utf8(&bytes).with_context(|| format!("keystroke/{name} is not text"))?;
    parse_repetitions(text).with_context(|| format!("keystroke/{name}"))
}

fn read_session(data: &Path, file: &str) -> anyhow::Result<Vec<u8>> {
    // An index from elsewhere must not name files outside its folder.
    if Path::new(file).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        bail!("{file}: a session file must lie within the data folder");
    }
    let path = data.join(file);
    let packed = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut contents = Vec::new();
    let limit = SESSION_BYTES_MAX + 1;
    let read = match path.extension().is_some_and(|extension| extension == "gz") {
        true => GzDecoder::new(packed).take(limit).read_to_end(&mut contents),
        false => packed.take(limit).read_to_end(&mut contents),
    };
    let bytes = read.with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes as u64 <= SESSION_BYTES_MAX, "{} exceeds {SESSION_BYTES_MAX} bytes", path.display());
    Ok(contents)
}

/// A field of comma-separated values.
fn quoted(text: &str) -> String {
    let text = text.replace(['\r', '\n'], " ");
    if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    #[test]
    fn packed_and_plain_session_files_are_read_and_others_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let rows = "t_ms,type,x,y,extra\n0,move,1,2,\n16,move,3,4,\n";
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(rows.as_bytes()).unwrap();
        std::fs::write(folder.path().join("a.csv.gz"), packed.finish().unwrap()).unwrap();
        std::fs::write(folder.path().join("b.csv"), rows).unwrap();
        let index =
            "session,file,source,user,label\na,a.csv.gz,s,u,human\nb,b.csv,s,u,bot\nc,c.csv,t,u,human\n";
        std::fs::write(folder.path().join("index.csv"), index).unwrap();
        let recordings = read(folder.path(), Some(&["s".to_string()])).unwrap();
        assert_eq!(recordings.iter().map(|recording| recording.events.len()).collect::<Vec<_>>(), [2, 2]);
        let unknown = read(folder.path(), Some(&["nowhere".to_string()])).unwrap_err().to_string();
        assert!(unknown.ends_with("has no source named nowhere"), "{unknown}");
    }

    #[test]
    fn recordings_of_the_wire_are_read_and_only_labelled_ones_are_learnt_from() {
        use gaitway_models::sim::Visitor;
        let folder = tempfile::tempdir().unwrap();
        let mut visitor = Visitor::person(5);
        let batches: Vec<_> = (0..10).map(|_| visitor.next_batch(2.0)).collect();
        std::fs::write(folder.path().join("a.gwt"), dataset::encode_batches(&batches)).unwrap();
        let index = "session,file,source,user,label\na,a.gwt,s,u,human\nb,a.gwt,s,u,\n";
        std::fs::write(folder.path().join("index.csv"), index).unwrap();
        let all = read_all(folder.path(), None).unwrap();
        assert_eq!(all.iter().map(|r| r.label).collect::<Vec<_>>(), [Label::Human, Label::Unknown]);
        assert_eq!(all[0].environment, batches[0].environment);
        assert_eq!(all[0].events.len(), batches.iter().map(|batch| batch.events.len()).sum::<usize>());
        let labelled = read(folder.path(), None).unwrap();
        assert_eq!(labelled.iter().map(|r| r.session.as_str()).collect::<Vec<_>>(), ["a"]);
        std::fs::write(folder.path().join("a.gwt"), b"GAITWAYT\x05\x08").unwrap();
        let error = format!("{:#}", read(folder.path(), None).unwrap_err());
        assert_eq!(error, "a.gwt: batch 1 is cut off: the file ends too early");
    }

    #[test]
    fn the_labs_recordings_are_whole_and_hold_bots_alone() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/recordings");
        let recordings = read(&folder, Some(&["lab".to_string()])).unwrap();
        assert!(recordings.len() > 100, "{} recordings", recordings.len());
        for recording in &recordings {
            assert_eq!(recording.label, Label::Bot, "{}", recording.session);
            assert!(recording.events.len() > 20, "{}: {} events", recording.session, recording.events.len());
        }
    }

    #[test]
    fn an_index_cannot_name_files_outside_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["../secret.csv", "/etc/passwd", "a/../../b.csv"] {
            let index = format!("session,file,source,user,label\na,{file},s,u,human\n");
            std::fs::write(folder.path().join("index.csv"), index).unwrap();
            let error = read(folder.path(), None).unwrap_err().to_string();
            assert!(error.contains("must lie within the data folder"), "{error}");
        }
    }
}
