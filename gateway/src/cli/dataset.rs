//! `gaitway dataset`: what a folder of recordings holds; and reading one, for training and evaluation.

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;
use gaitway_models::dataset::{self, Recording};
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
}

pub fn run(args: DatasetArgs) -> anyhow::Result<()> {
    match args.command {
        DatasetCommand::Stats { data } => stats(&data),
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
    let recordings = read(data, None)?;
    let key = |recording: &Recording| {
        (recording.source.clone(), recording.family.clone().unwrap_or_else(|| "(people)".into()))
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

/// Reads the recordings of a folder: those of some sources, or all that are mouse sessions.
pub(super) fn read(data: &Path, sources: Option<&[String]>) -> anyhow::Result<Vec<Recording>> {
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
        let text = read_session(data, &row.file)?;
        let events = dataset::parse_session(&text).with_context(|| row.file.clone())?;
        recordings.push(Recording {
            session: row.session,
            source: row.source,
            user: row.user,
            family: row.family,
            licence: row.licence,
            note: row.note,
            events,
        });
    }
    ensure!(!recordings.is_empty(), "{} names no recordings of these sources", index.display());
    Ok(recordings)
}

fn read_session(data: &Path, file: &str) -> anyhow::Result<String> {
    // An index from elsewhere must not name files outside its folder.
    if Path::new(file).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        bail!("{file}: a session file must lie within the data folder");
    }
    let path = data.join(file);
    let packed = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut text = String::new();
    let limit = SESSION_BYTES_MAX + 1;
    let read = match path.extension().is_some_and(|extension| extension == "gz") {
        true => GzDecoder::new(packed).take(limit).read_to_string(&mut text),
        false => packed.take(limit).read_to_string(&mut text),
    };
    let bytes = read.with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes as u64 <= SESSION_BYTES_MAX, "{} exceeds {SESSION_BYTES_MAX} bytes", path.display());
    Ok(text)
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
