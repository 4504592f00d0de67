//! The report of the task "drift".
//!
//! Must not know: how figures are measured, how a page becomes HTML.

use super::super::{dataset, train::show_progress};
use super::{EvaluateArgs, Page, read_model, write_report};
use gaitway_models::evaluate::drift::{Report, Watched, evaluate};

pub(super) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    let model = read_model(args)?;
    let recordings = dataset::read(&args.data, args.sources.as_deref())?;
    let report = evaluate(&model, &recordings, &mut show_progress)?;
    write_report(args, &report, &page(&report))
}

fn page(report: &Report) -> Page {
    let mut page = Page {
        title: format!("Model {}, task {}", report.model, report.task),
        introduction: format!(
            "Written by `gaitway evaluate`; seed {}. Of each source half the people teach a site, split anew each time; \
             then come others. Nothing is said of fewer than 500 windows from 30 sessions, nor where too few taught.",
            report.seed
        ),
        ..Page::default()
    };
    page.table(&HEAD, report.rows.iter().map(row).collect());
    for (source, why) in &report.skipped {
        page.text(format!("{source} was not judged: {why}."));
    }
    page
}

fn row(watched: &Watched) -> Vec<String> {
    let index = |value: f32| if value.is_nan() { "–".into() } else { format!("{value:.2}") };
    vec![
        watched.taught_by.clone(),
        watched.people.clone(),
        format!("{} of {} ({} unknown)", watched.drifting, watched.splits, watched.unknown),
        format!("{} (highest {})", index(watched.psi), index(watched.psi_max)),
        index(watched.limit),
        format!("{:.3}", watched.unknown_share),
        format!("{:.0} from {:.0} sessions", watched.windows, watched.sessions),
    ]
}

const HEAD: [&str; 7] = [
    "taught by half of",
    "then came",
    "drifting",
    "index",
    "limit",
    "share of what nobody taught",
    "windows",
];
