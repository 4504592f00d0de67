//! The report of the task "replay".
//!
//! Must not know: how movement is compared, how a page becomes HTML.

use super::super::{dataset, train::show_progress};
use super::{EvaluateArgs, Page, figure, write_report};
use gaitway_models::evaluate::replay::{Played, Report, evaluate};

/// The same seed gives the same noise.
const SEED: u64 = 1;

pub(super) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    let recordings = dataset::read(&args.data, args.sources.as_deref())?;
    let report = evaluate(&recordings, SEED, &mut show_progress)?;
    write_report(args, &report, &page(&report))
}

fn page(report: &Report) -> Page {
    let mut page = Page {
        title: "Replay detection".into(),
        introduction: format!(
            "Written by `gaitway evaluate --task replay`; seed {}. Exact 95 % intervals (Clopper and Pearson). A session \
             is called a replay where the share of its latest ten seconds in motion that had been seen before ever reaches \
             .5 (it teaches nothing), .8 (the rule of `default`) or .9 (that of `balanced`).",
            report.seed
        ),
        warnings: report.warnings.clone(),
        ..Page::default()
    };
    page.heading("People");
    page.text("Each session against all of its source before it and its own past.");
    let people = report.people.iter().map(|people| {
        let (sessions, compared) = (people.sessions.to_string(), people.compared.to_string());
        let mut row = vec![people.source.clone(), sessions, compared];
        row.extend(people.called.iter().map(figure));
        row.push(format!("{:.2}", people.highest));
        row.push(format!("{} of {}", people.remembered, people.shingles));
        row
    });
    page.table(
        &[
            "source",
            "sessions",
            "with enough movement",
            "called at .5",
            "called at .8",
            "called at .9",
            "largest share of all",
            "fingerprints remembered",
        ],
        people.collect(),
    );
    for (title, within) in
        [("Played back by another session", false), ("Played back later in the same session", true)]
    {
        page.heading(title);
        let played = report.played.iter().filter(|played| played.within == within).map(row);
        page.table(
            &[
                "source",
                "played back",
                "sessions",
                "with enough movement",
                "caught at .5",
                "caught at .8",
                "caught at .9",
                "named exact / shifted / jittered",
                "seconds until .8",
            ],
            played.collect(),
        );
    }
    page
}

fn row(played: &Played) -> Vec<String> {
    let [exact, shifted, jittered] = played.named;
    let (sessions, compared) = (played.sessions.to_string(), played.compared.to_string());
    let mut row = vec![played.source.clone(), played.way.into(), sessions, compared];
    row.extend(played.caught.iter().map(figure));
    row.push(format!("{exact} / {shifted} / {jittered}"));
    row.push(format!("{:.0}", played.seconds));
    row
}
