//! `gaitway evaluate`: a model and recordings in, a report for people (HTML), for machines (JSON) and
//! for the model's card (Markdown) out.
//!
//! What is measured is `gaitway_models::evaluate`'s affair; only its presentation is here.

use super::{dataset, train::show_progress};
use anyhow::Context;
use gaitway_models::evaluate::{Figure, Group, Report, Section, WindowMetrics, evaluate_bot};
use gaitway_policies::report::escape;
use std::fmt::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct EvaluateArgs {
    /// Model file
    model: PathBuf,
    /// Folder with index.csv and the session files it names
    data: PathBuf,
    /// What to measure
    #[arg(long, value_enum, default_value = "bot")]
    task: Task,
    /// Only these sources of the index, separated by commas
    #[arg(long, value_delimiter = ',')]
    sources: Option<Vec<String>>,
    /// Folder for report.json and report.html
    #[arg(long, default_value = "report")]
    report: PathBuf,
    /// Also write the model's card (Markdown) here
    #[arg(long)]
    card: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Task {
    /// Tell bots from people
    Bot,
}

pub fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    let model =
        std::fs::read(&args.model).with_context(|| format!("cannot read {}", args.model.display()))?;
    let recordings = dataset::read(&args.data, args.sources.as_deref())?;
    let report = match args.task {
        Task::Bot => evaluate_bot(&model, &recordings, &mut show_progress)?,
    };
    std::fs::create_dir_all(&args.report)
        .with_context(|| format!("cannot create {}", args.report.display()))?;
    write(&args.report.join("report.json"), &serde_json::to_string_pretty(&report)?)?;
    write(&args.report.join("report.html"), &html(&report))?;
    let markdown = markdown(&report);
    if let Some(card) = &args.card {
        write(card, &markdown)?;
    }
    println!("{markdown}");
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A table, before it becomes Markdown or HTML.
struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

fn figure(figure: &Figure) -> String {
    if figure.value.is_nan() {
        return "–".into();
    }
    format!("{:.3} ({:.3}–{:.3})", figure.value, figure.low, figure.high)
}

fn window_table(section: &Section) -> Table {
    type Row = (&'static str, fn(&WindowMetrics) -> &Figure);
    const FIGURES: [Row; 10] = [
        ("accuracy", |m| &m.accuracy),
        ("balanced accuracy", |m| &m.balanced_accuracy),
        ("precision", |m| &m.precision),
        ("recall", |m| &m.recall),
        ("F1", |m| &m.f1),
        ("FAR (bots taken for people)", |m| &m.far),
        ("FRR (people taken for bots)", |m| &m.frr),
        ("AUC", |m| &m.auc),
        ("EER", |m| &m.eer),
        ("Brier", |m| &m.brier),
    ];
    let count = |label: &str, of: fn(&WindowMetrics) -> usize| -> Vec<String> {
        std::iter::once(label.to_string()).chain(section.windows.iter().map(|m| of(m).to_string())).collect()
    };
    let mut rows = vec![count("windows of people", |m| m.people), count("windows of bots", |m| m.bots)];
    let ece: Row = ("ECE", |m| &m.ece);
    for (name, of) in FIGURES.into_iter().chain([ece]) {
        rows.push(
            std::iter::once(name.to_string()).chain(section.windows.iter().map(|m| figure(of(m)))).collect(),
        );
    }
    let head = std::iter::once("windows").chain(section.windows.iter().map(|m| m.span)).collect();
    Table { head, rows }
}

fn group_row(group: &Group) -> Vec<String> {
    vec![
        group.source.clone(),
        group.family.clone().unwrap_or_else(|| "people".into()),
        group.sessions.to_string(),
        format!("{} of {}", group.judged, group.windows),
        figure(&group.called_bot),
        group.reached.to_string(),
        group.windows_to_reach.map_or("–".into(), |windows| windows.to_string()),
    ]
}

const GROUP_HEAD: [&str; 7] = [
    "source",
    "who",
    "sessions",
    "windows judged",
    "called bot",
    "reached the threshold",
    "windows until then",
];

fn tables(report: &Report) -> Vec<(String, Vec<String>, Table)> {
    let mut tables = Vec::new();
    for section in &report.sections {
        let sessions = &section.sessions;
        let logouts = &sessions.false_logouts_per_1000_hours;
        let notes = vec![
            format!(
                "Sessions at the threshold of {:.2} nats: {} of {} people ({:.1} h of active input), {} of {} bots.",
                report.threshold_nats,
                sessions.people_reached,
                sessions.people,
                sessions.people_hours,
                sessions.bots_reached,
                sessions.bots
            ),
            format!(
                "False alarms in 1,000 active human hours: {:.1} (95 %: {:.1} to {:.1}).",
                logouts.value, logouts.low, logouts.high
            ),
        ];
        tables.push((section.name.clone(), notes, window_table(section)));
        let rows = section.groups.iter().map(group_row).collect();
        tables.push((String::new(), Vec::new(), Table { head: GROUP_HEAD.to_vec(), rows }));
    }
    if !report.shift.is_empty() {
        let note = "Each source's people, judged by the same recipe after learning from all other sources only: \
                    what to expect of people on a site never seen.";
        let rows = report.shift.iter().map(|shift| group_row(&shift.group)).collect();
        let table = Table { head: GROUP_HEAD.to_vec(), rows };
        tables.push(("People of a source never learnt from".into(), vec![note.into()], table));
    }
    if let Some(recorder) = &report.recorder {
        let rows = vec![vec![figure(&recorder.human_vs_replayed_human_auc), recorder.note.clone()]];
        let table = Table { head: vec!["human-vs-replayed-human AUC", "what it is"], rows };
        tables.push(("Recorder leak".into(), Vec::new(), table));
    }
    tables
}

fn markdown(report: &Report) -> String {
    let mut text = format!(
        "# Model {}, task {}\n\nWritten by `gaitway evaluate`; seed {}. Figures with 95 % intervals. A window is called a bot \
         above even odds, a session at {:.2} nats: a floor in the code, which these people's own sessions could have raised and the calibration has seen; only people the model never learnt from are independent.\n",
        report.model, report.task, report.seed, report.threshold_nats
    );
    for (title, notes, table) in tables(report) {
        if !title.is_empty() {
            let _ = write!(text, "\n## {title}\n");
        }
        for note in notes {
            let _ = write!(text, "\n{note}\n");
        }
        let _ = write!(text, "\n| {} |\n|{}\n", table.head.join(" | "), "---|".repeat(table.head.len()));
        for row in table.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    text.push_str("\n## Mind\n\n");
    for warning in &report.warnings {
        let _ = writeln!(text, "- {warning}");
    }
    text
}

fn html(report: &Report) -> String {
    let mut text = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Gaitway model report</title><style>\
         body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1c2430}\
         table{border-collapse:collapse;margin:1rem 0;width:100%}th,td{border-bottom:1px solid #d5dbe3;padding:.3rem .6rem;\
         text-align:left;font-variant-numeric:tabular-nums}th{background:#f3f5f8}\
         .roc{width:20rem;height:20rem;border:1px solid #d5dbe3}\
         @media(prefers-color-scheme:dark){body{background:#12161c;color:#dbe2ea}th{background:#1d242d}th,td,.roc{border-color:#35404d}}\
         </style>",
    );
    let _ = write!(
        text,
        "<h1>Model {}</h1><p>Task {}, seed {}. Figures with 95&nbsp;% intervals. A window is called a bot above even odds, \
         a session at {:.2} nats: a floor in the code, which these people's own sessions could have raised and the calibration has seen; only people the model never learnt from are independent.</p><ul>",
        escape(&report.model),
        report.task,
        report.seed,
        report.threshold_nats
    );
    for warning in &report.warnings {
        let _ = write!(text, "<li>{}", escape(warning));
    }
    text.push_str("</ul>");
    for (title, notes, table) in tables(report) {
        if !title.is_empty() {
            let _ = write!(text, "<h2>{}</h2>", escape(&title));
            if let Some(section) = report.sections.iter().find(|section| section.name == title) {
                text.push_str(&roc(section));
            }
        }
        for note in notes {
            let _ = write!(text, "<p>{}</p>", escape(&note));
        }
        let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
            cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
        };
        let _ = write!(text, "<table><tr>{}</tr>", cells("th", &mut table.head.iter().copied()));
        for row in &table.rows {
            let _ = write!(text, "<tr>{}</tr>", cells("td", &mut row.iter().map(String::as_str)));
        }
        text.push_str("</table>");
    }
    text
}

/// The ROC curve: false alarms to the right, detections up.
fn roc(section: &Section) -> String {
    let point = |&(x, y): &(f64, f64)| format!("{:.2},{:.2}", 100.0 * x, 100.0 * (1.0 - y));
    let points: Vec<String> =
        section.roc.iter().filter(|(x, y)| x.is_finite() && y.is_finite()).map(point).collect();
    format!(
        "<svg class=roc viewBox='-4 -4 108 108' role=img aria-label='ROC curve'><path d='M0 100L100 0' stroke='#9aa5b1' \
         stroke-dasharray='2' fill='none'/><polyline points='{}' fill='none' stroke='#2563eb' stroke-width='1.2'/></svg>",
        points.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::train;
    use super::*;
    use gaitway_models::event::EventKind;
    use gaitway_models::sim::{BotKind, Visitor};

    /// Seventy seconds of a simulated visitor in the form of a session file.
    fn session_file(mut visitor: Visitor) -> String {
        let mut text = String::from("t_ms,type,x,y,extra\n");
        for event in (0..35).flat_map(|_| visitor.next_batch(2.0).events) {
            let kind = match event.kind {
                EventKind::PointerMove { .. } => "move",
                EventKind::PointerDown { .. } => "down",
                EventKind::PointerUp { .. } => "up",
                _ => continue,
            };
            let (x, y) = event.kind.position().unwrap();
            let _ = writeln!(text, "{:.1},{kind},{x},{y},b=0", event.at_us as f64 / 1000.0);
        }
        text
    }

    #[test]
    fn a_folder_of_recordings_becomes_a_model_a_report_and_a_card() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let mut index = String::from("session,file,source,user,label,bot_family,licence\n");
        for i in 0..6 {
            let kind = [BotKind::LinearEven, BotKind::Bezier, BotKind::JitteredLinear][i % 3];
            std::fs::write(data.join(format!("p{i}.csv")), session_file(Visitor::person(70 + i as u64)))
                .unwrap();
            std::fs::write(data.join(format!("b{i}.csv")), session_file(Visitor::bot(kind, 70 + i as u64)))
                .unwrap();
            let _ = writeln!(index, "p{i},p{i}.csv,here,user{i},human,,own");
            let _ = writeln!(index, "b{i},b{i}.csv,here,bots,bot,{},own", kind.name());
        }
        std::fs::write(data.join("index.csv"), index).unwrap();
        let model = folder.path().join("out/own.model");
        train::run(train::TrainArgs {
            data: data.clone(),
            sources: vec!["here".into()],
            output: model.clone(),
            seed: 3,
            trees: 8,
            simulated: 10,
        })
        .unwrap();
        let (report, card) = (folder.path().join("report"), folder.path().join("own.card.md"));
        let args = EvaluateArgs {
            model,
            data,
            task: Task::Bot,
            sources: None,
            report: report.clone(),
            card: Some(card.clone()),
        };
        run(args).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(report.join("report.json")).unwrap()).unwrap();
        assert_eq!(json["task"], "bot");
        let first = &json["sections"][0];
        assert_eq!((&first["sessions"]["people"], &first["sessions"]["bots"]), (&6.into(), &6.into()));
        assert!(first["windows"][0]["auc"]["value"].as_f64().unwrap() > 0.9);
        assert!(json["recorder"]["human_vs_replayed_human_auc"]["value"].is_number());
        let html = std::fs::read_to_string(report.join("report.html")).unwrap();
        assert!(html.contains("<polyline") && html.contains("jittered-linear"));
        assert!(std::fs::read_to_string(card).unwrap().contains("| here | jittered-linear |"));
    }
}
