//! The report of the task "user".
//!
//! Must not know: how figures are measured, how a page becomes HTML.

use super::super::{dataset, train::show_progress};
use super::{EvaluateArgs, Page, figure, write_report};
use gaitway_models::evaluate::user::{Report, Row, evaluate};

pub(super) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    let recordings = dataset::read(&args.data, args.sources.as_deref())?;
    let report = evaluate(&recordings, SEED, &mut show_progress)?;
    write_report(args, &report, &page(&report))
}

fn page(report: &Report) -> Page {
    let mut page = Page {
        title: format!("Owner or somebody else, task {}", report.task),
        introduction: format!(
            "Written by `gaitway evaluate`; seed {}. Figures with 95 % intervals from resampling people. No place on the \
             screen and no key is looked at. The detector's model file plays no part: background, calibration and \
             profiles are learnt from these recordings alone, by the code that runs live.",
            report.seed
        ),
        warnings: report.warnings.clone(),
        ..Page::default()
    };
    for section in &report.sections {
        page.heading(format!("{}: {} people", section.source, section.people));
        page.text(format!("Protocol: {}.", section.protocol));
        page.table(&HEAD, section.rows.iter().map(row).collect());
        if let Some((owners, impostors)) = section.unknown {
            page.text(format!(
                "Silent, because the profile had not learnt such a device or event rate: {:.1} % of owners' blocks, \
                 {:.1} % of impostors'.",
                100.0 * owners,
                100.0 * impostors
            ));
        }
        for sessions in &section.sessions {
            page.text(format!(
                "Whole sessions against the ledger, with thresholds ({:.1} to {:.1} nats) for at most {} of people, set on \
                 those outside each fold ({}): {} of {} owners' sessions reached it, and {} of {} impostors', half of \
                 those within {} judged blocks. A session shorter than three blocks cannot reach it. With a mouse half as fast \
                 again, had the hand not noticed, owners would have reached it in {}.",
                sessions.thresholds.0,
                sessions.thresholds.1,
                sessions.false_alarm,
                if sessions.promised { "who were enough to promise it" } else { "who were too few to promise it" },
                figure(&sessions.owners_reached),
                sessions.owners,
                figure(&sessions.impostors_reached),
                sessions.impostors,
                sessions.blocks_to_reach.map_or("–".into(), |blocks| blocks.to_string()),
                figure(&sessions.other_mouse_reached)
            ));
        }
    }
    page
}

const HEAD: [&str; 9] = [
    "method",
    "owner's",
    "impostors'",
    "AUC, pooled",
    "EER, pooled",
    "AUC, mean over owners",
    "EER, mean over owners",
    "FAR (impostors passed over)",
    "FRR (owners called others)",
];

fn row(row: &Row) -> Vec<String> {
    let mut cells = vec![row.method.to_string(), row.genuine.to_string(), row.impostors.to_string()];
    cells.extend([&row.auc, &row.eer, &row.auc_mean, &row.eer_mean, &row.far, &row.frr].map(figure));
    cells
}

/// Deals people to folds.
const SEED: u64 = 1;
