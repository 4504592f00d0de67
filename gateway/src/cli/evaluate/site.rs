//! The report of the task "site".
//!
//! Must not know: how figures are measured, how a page becomes HTML.

use super::super::{dataset, train::show_progress};
use super::{EvaluateArgs, Page, figure, read_model, write_report};
use anyhow::ensure;
use gaitway_models::evaluate::site::{Group, Lesson, Report, Site, Unlearnt, evaluate};

pub(super) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    ensure!((0.0..=0.3).contains(&args.contaminate), "--contaminate takes a share from 0 to 0.3");
    let model = read_model(args)?;
    let recordings = dataset::read(&args.data, args.sources.as_deref())?;
    let report = evaluate(&model, &recordings, args.contaminate, args.seed, &mut show_progress)?;
    write_report(args, &report, &page(&report))
}

fn page(report: &Report) -> Page {
    let mut page = Page {
        title: format!("Model {}, task {}", report.model, report.task),
        introduction: format!(
            "Written by `gaitway evaluate`; seed {}. Each source in turn is a site never seen: half its people teach it, \
             {}the other half and its bots are judged, at the threshold that was learnt. Windows of 30 s; figures with \
             95 % intervals.",
            report.seed,
            match report.contaminate {
                0.0 => String::new(),
                share => format!("with {:.0} % of the windows from bots hidden among them, ", 100.0 * share),
            }
        ),
        warnings: report.warnings.clone(),
        ..Page::default()
    };
    page.table(&SITE_HEAD, report.sites.iter().map(site_row).collect());
    for (source, why) in &report.skipped {
        page.text(format!("{source} was not judged: {why}."));
    }
    for site in &report.sites {
        page.heading(&site.source);
        page.text(format!("{} names; split: {}.", site.people, site.split));
        if let Some(equal) = &site.recorder_equal {
            page.text(format!(
                "With the recorder held equal: AUC {}, recall {}, FRR {}.",
                figure(&equal.auc),
                figure(&equal.recall),
                figure(&equal.frr)
            ));
        }
        page.table(&LESSON_HEAD, site.lessons.iter().map(lesson_row).collect());
        page.table(&GROUP_HEAD, site.groups.iter().map(group_row).collect());
    }
    if !report.unlearnt.is_empty() {
        page.heading("People on a device class the site never learnt");
        page.text("Each class is kept from the lesson in turn and judged by what all others taught.");
        page.table(&UNLEARNT_HEAD, report.unlearnt.iter().map(unlearnt_row).collect());
    }
    page
}

fn site_row(site: &Site) -> Vec<String> {
    let figures = [&site.auc, &site.recall, &site.frr, &site.human_vs_replayed_human_auc];
    std::iter::once(site.source.clone()).chain(figures.map(figure)).collect()
}

fn lesson_row(lesson: &Lesson) -> Vec<String> {
    let (bots, low, high) = lesson.bots_estimated;
    vec![
        format!("{} people, {} sessions, {} windows", lesson.people, lesson.sessions, lesson.windows),
        match lesson.untaught.is_empty() {
            true => lesson.strata.join("; "),
            false => format!("{} (not learnt: {})", lesson.strata.join("; "), lesson.untaught.join("; ")),
        },
        format!("{} windows of {} sessions", lesson.hidden_windows, lesson.hidden_sessions),
        format!("{} sessions; bots {bots:.3} ({low:.3}–{high:.3})", lesson.set_aside_sessions),
        match lesson.threshold.nats < f32::MAX {
            true => format!("{:.2} nats", lesson.threshold.nats),
            // A session of every person was set aside, and counts as above any threshold.
            false => "out of reach".into(),
        },
        format!("{:.1} %", 100.0 * lesson.threshold.false_alarm_max),
    ]
}

fn group_row(group: &Group) -> Vec<String> {
    vec![
        if group.bot { format!("bot {}", group.who) } else { format!("people: {}", group.who) },
        group.sessions.to_string(),
        format!("{} of {}", group.judged, group.windows),
        figure(&group.called_bot),
        group.reached.to_string(),
    ]
}

fn unlearnt_row(unlearnt: &Unlearnt) -> Vec<String> {
    vec![
        unlearnt.source.clone(),
        unlearnt.device.clone(),
        unlearnt.windows.to_string(),
        unlearnt.unknown.to_string(),
        figure(&unlearnt.share),
    ]
}

const SITE_HEAD: [&str; 5] = ["site", "AUC", "recall", "FRR", "human-vs-replayed-human AUC"];
const LESSON_HEAD: [&str; 6] =
    ["learnt from", "strata", "hidden bots", "set aside; estimate", "threshold", "people at it, at most"];
const GROUP_HEAD: [&str; 5] =
    ["who", "sessions", "windows judged", "called bot", "sessions at the threshold"];
const UNLEARNT_HEAD: [&str; 5] = ["site", "device class", "windows", "of which unknown", "called bot"];

#[cfg(test)]
mod tests {
    use super::*;
    use gaitway_models::evaluate::Figure;

    #[test]
    fn a_page_shows_each_site_with_its_threshold_learnt_and_says_what_was_hidden() {
        let figure = |value| Figure { value, low: 0.9, high: 1.0 };
        let report = Report {
            model: "0123".into(),
            task: "site",
            seed: 1,
            contaminate: 0.05,
            sites: vec![Site {
                source: "shop".into(),
                split: "half the people, by name",
                people: 12,
                auc: figure(0.991),
                recall: figure(0.95),
                frr: figure(0.012),
                human_vs_replayed_human_auc: figure(0.51),
                recorder_equal: None,
                lessons: Vec::new(),
                groups: Vec::new(),
            }],
            unlearnt: Vec::new(),
            skipped: vec![("tiny".into(), "too few sessions".into())],
            warnings: Vec::new(),
        };
        let text = page(&report).markdown();
        assert!(text.contains("with 5 % of the windows from bots hidden among them"), "{text}");
        assert!(text.contains("| shop | 0.991 (0.900–1.000) | 0.950 (0.900–1.000) | 0.012"), "{text}");
        assert!(text.contains("tiny was not judged: too few sessions."));
    }
}
