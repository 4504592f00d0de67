//! The report of the task "bot".
//!
//! Must not know: how figures are measured, how a page becomes HTML.

use super::super::{dataset, plot, train::show_progress};
use super::{EvaluateArgs, Page, figure, read_model, write_report};
use gaitway_models::evaluate::bot::{Group, Report, Section, Slice, WindowMetrics, evaluate};
use gaitway_models::evaluate::{Confusion, Figure};

pub(super) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    let model = read_model(args)?;
    let recordings = dataset::read(&args.data, args.sources.as_deref())?;
    let report = evaluate(&model, &recordings, &mut show_progress)?;
    write_report(args, &report, &page(&report))
}

fn page(report: &Report) -> Page {
    let n = &report.n;
    let mut page = Page {
        title: format!("Model {}, task {}", report.model, report.task),
        introduction: format!(
            "Written by `gaitway evaluate`; {:?}, seed {}. {} people in {} sessions, {} bot families in {}. Figures \
             with 95 % intervals. A window is called a bot above even odds, a session at {:.2} nats by the model \
             itself. Where a model had learnt from these people or families, it was grown again without them, and \
             calibration and threshold come from the other half of the people and families.",
            report.algorithm,
            report.seed,
            n.people,
            n.sessions_of_people,
            n.bot_families,
            n.sessions_of_bots,
            report.thresholds.session_nats
        ),
        warnings: report.warnings.clone(),
        ..Page::default()
    };
    report.sections.iter().for_each(|section| add_section(&mut page, section));
    if !report.shift.is_empty() {
        page.heading("People of a source never learnt from");
        page.text(
            "Each source's people, judged by the same recipe after learning from all other sources only: \
             what to expect of people on a site never seen.",
        );
        page.table(&GROUP_HEAD, report.shift.iter().map(|shift| group_row(&shift.group)).collect());
    }
    page
}

/// One way of judging: plots, sessions, windows, whom it called what, by family, device and input.
pub(in super::super) fn add_section(page: &mut Page, section: &Section) {
    page.heading(&section.name);
    page.svg(plot::roc(&section.roc) + &plot::reliability(&section.reliability));
    let sessions = &section.sessions;
    let logouts = &sessions.false_logouts_per_1000_hours;
    page.text(format!(
        "Sessions that reached their threshold: {} of {} people ({:.1} h of active input), {} of {} bots. False \
         logouts in 1,000 active human hours, were the threshold enforced: {:.1} (Clopper–Pearson, 95 %: {:.1} to {:.1}).",
        sessions.people_reached,
        sessions.people,
        sessions.people_hours,
        sessions.bots_reached,
        sessions.bots,
        logouts.value,
        logouts.low,
        logouts.high
    ));
    let spans = section.windows.iter().map(|metrics| metrics.span);
    page.table(&std::iter::once("windows").chain(spans).collect::<Vec<_>>(), window_rows(section));
    if let Some(leak) = &section.human_vs_replayed_human_auc {
        page.text(format!(
            "Human-vs-replayed-human AUC, the same people recorded anew by a simulated browser: {}; .5 means that \
             the recorder cannot be told. Hold the human-vs-bot AUC against it.",
            figure(leak)
        ));
    }
    let windows = confusion_rows("windows", &section.confusion_of_windows);
    let whole = confusion_rows("sessions", &section.confusion_of_sessions);
    page.table(&["who", "called people", "called bots"], windows.into_iter().chain(whole).collect());
    page.table(&GROUP_HEAD, section.groups.iter().map(group_row).collect());
    page.text(
        "Each source alone. Where one recorder took people and bots down, as in the lab, the AUC is not the \
         recorder's; beside it the AUC of these people against themselves recorded anew, .5 where no recorder is told.",
    );
    let leak = |slice: &Slice| slice.human_vs_replayed_human_auc.as_ref().map_or("–".into(), figure);
    let row = |slice: &Slice| slice_row(slice).into_iter().chain([leak(slice)]).collect();
    let head: Vec<&str> =
        slice_head("source").into_iter().chain(["people against recorded anew, AUC"]).collect();
    page.table(&head, section.sources.iter().map(row).collect());
    page.table(&slice_head("device"), section.devices.iter().map(slice_row).collect());
    page.table(&slice_head("input"), section.modalities.iter().map(slice_row).collect());
}

fn confusion_rows(what: &str, counts: &Confusion) -> [Vec<String>; 2] {
    let row = |who: &str, people: usize, bots: usize| {
        vec![format!("{what} of {who}"), people.to_string(), bots.to_string()]
    };
    [
        row("people", counts.people_called_people, counts.people_called_bots),
        row("bots", counts.bots_called_people, counts.bots_called_bots),
    ]
}

fn slice_head(what: &'static str) -> [&'static str; 7] {
    [what, "sessions", "windows of people", "windows of bots", "AUC", "FAR", "FRR"]
}

fn slice_row(slice: &Slice) -> Vec<String> {
    let counts = [slice.sessions, slice.people, slice.bots].map(|count| count.to_string());
    let figures = [&slice.auc, &slice.far, &slice.frr].map(figure);
    std::iter::once(slice.name.clone()).chain(counts).chain(figures).collect()
}

/// Which windows, and a row for each figure.
fn window_rows(section: &Section) -> Vec<Vec<String>> {
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
    rows
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
        group.seconds_to_reach.map_or("–".into(), |(half, most)| format!("{half:.0}; {most:.0}")),
    ]
}

const GROUP_HEAD: [&str; 8] = [
    "source",
    "who",
    "sessions",
    "windows judged",
    "called bot",
    "reached the threshold",
    "windows until then",
    "seconds until then: half of them; nine in ten",
];

#[cfg(test)]
mod tests {
    use super::super::super::train;
    use super::super::{Task, run};
    use super::*;
    use gaitway_models::event::EventKind;
    use gaitway_models::sim::{BotKind, Visitor};
    use std::fmt::Write;

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
            algorithm: train::AlgorithmName::RandomForest,
            output: model.clone(),
            seed: 3,
            trees: 8,
            simulated: 10,
            report: Some(folder.path().join("training")),
        })
        .unwrap();
        let training = std::fs::read_to_string(folder.path().join("training/report.json")).unwrap();
        let training: serde_json::Value = serde_json::from_str(&training).unwrap();
        let shares = training["importances"]["pointer, 10 s"].as_array().unwrap();
        assert!((shares.iter().map(|share| share[1].as_f64().unwrap()).sum::<f64>() - 1.0).abs() < 1e-6);
        assert!(folder.path().join("training/roc-1.svg").exists());
        let (report, card) = (folder.path().join("report"), folder.path().join("own.card.md"));
        let args = EvaluateArgs {
            model,
            data,
            task: Task::Bot,
            contaminate: 0.0,
            seed: None,
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
        assert!(json["human_vs_replayed_human_auc"]["value"].is_number());
        let source = &first["sources"][0];
        assert_eq!(source["name"], "here");
        assert_eq!(source["human_vs_replayed_human_auc"], json["human_vs_replayed_human_auc"]);
        assert!(source["auc"]["value"].as_f64().unwrap() > 0.9);
        assert!(json["metrics"]["10 s"]["accuracy"]["low"].is_number());
        assert_eq!(json["thresholds"]["window_nats"], 0.0);
        assert_eq!(json["n"]["bot_families"], 3);
        let html = std::fs::read_to_string(report.join("report.html")).unwrap();
        assert!(html.contains("<polyline") && html.contains("<circle") && html.contains("jittered-linear"));
        assert!(std::fs::read_to_string(card).unwrap().contains("| here | jittered-linear |"));
    }
}
