//! The report of the task "keystroke".
//!
//! Must not know: how figures are measured, how a page becomes HTML.

use super::super::{dataset, train::show_progress};
use super::{EvaluateArgs, Page, figure, write_report};
use gaitway_models::evaluate::keystroke::{Report, evaluate};

pub(super) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    let repetitions = dataset::read_repetitions(&args.data)?;
    let report = evaluate(&repetitions, SEED, &mut show_progress)?;
    write_report(args, &report, &page(&report))
}

fn page(report: &Report) -> Page {
    let mut page = Page {
        title: format!("Who typed it, task {}", report.task),
        introduction: format!(
            "Written by `gaitway evaluate`; seed {}. Killourhy and Maxion's protocol: a person's first 200 repetitions \
             of a phrase enrol, their others are genuine, the first five of every other person are impostors'. \
             Figures are means over people, with 95 % intervals from resampling people. The detector's model file \
             plays no part: typing is learnt from these recordings alone.",
            report.seed
        ),
        warnings: report.warnings.clone(),
        ..Page::default()
    };
    page.heading(format!("{} people", report.people));
    let rows = report.rows.iter().map(|row| {
        let spread = format!("{:.3}", row.eer_spread);
        vec![row.method.to_string(), figure(&row.eer), spread, figure(&row.auc), row.protocol.clone()]
    });
    page.table(
        &["method", "EER", "its spread over people", "AUC", "who is judged against whom"],
        rows.collect(),
    );
    page
}

/// Halves people and grows forests.
const SEED: u64 = 1;

#[cfg(test)]
mod tests {
    use super::super::{EvaluateArgs, Task};
    use super::*;
    use std::fmt::Write;

    #[test]
    fn a_folder_of_repetitions_becomes_a_report() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir_all(data.join("keystroke")).unwrap();
        let mut text = String::from("user,rep,H.a,UD.a.b,H.b\n");
        for user in 0..6 {
            for rep in 0..210 {
                let time = |k: u32| {
                    0.05 + 0.03 * ((user * (k + 2)) % 7) as f32 + 0.001 * ((rep * (k + 3)) % 11) as f32
                };
                let _ = writeln!(text, "u{user},{rep},{},{},{}", time(0), time(1), time(2));
            }
        }
        std::fs::write(data.join("keystroke/phrase.csv"), text).unwrap();
        let report = folder.path().join("report");
        let (model, task) = ("none".into(), Task::Keystroke);
        let args = EvaluateArgs {
            model,
            data,
            task,
            contaminate: 0.0,
            seed: None,
            sources: None,
            report: report.clone(),
            card: None,
        };
        run(&args).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(report.join("report.json")).unwrap()).unwrap();
        assert_eq!((&json["task"], &json["people"]), (&"keystroke".into(), &6.into()));
        assert!(json["rows"][0]["eer"]["value"].as_f64().unwrap() < 0.1, "{json}");
        assert!(std::fs::read_to_string(report.join("report.html")).unwrap().contains("with background"));
    }
}
