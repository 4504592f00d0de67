//! `gaitway evaluate`: a model and recordings in, a report for people (HTML), for machines (JSON) and
//! for the model's card (Markdown) out.
//!
//! What is measured is `gaitway_models::evaluate`'s affair; only its presentation is here: what all
//! tasks share in this file, each task in a file of its own.

pub(super) mod bot;
mod drift;
mod keystroke;
mod replay;
mod site;
mod user;

use anyhow::Context;
use gaitway_models::evaluate::Figure;
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
    /// Task site: share of the windows learnt from that are hidden bots, 0 to 0.3
    #[arg(long, default_value_t = 0.0)]
    contaminate: f32,
    /// Task site: draws hidden bots, recorders and trees anew; the model's own seed if left out
    #[arg(long)]
    seed: Option<u64>,
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
    /// Recognise recordings that are played back; looks at movement alone, not at the model
    Replay,
    /// Tell an account's owner from somebody else by the mouse
    User,
    /// Tell who typed a phrase
    Keystroke,
    /// Learn each source as a site never seen from half its people, and judge the rest
    Site,
    /// Let half of each source's people teach, and watch whether others are seen to differ
    Drift,
}

pub fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    match args.task {
        Task::Bot => bot::run(&args),
        Task::Replay => replay::run(&args),
        Task::User => user::run(&args),
        Task::Keystroke => keystroke::run(&args),
        Task::Site => site::run(&args),
        Task::Drift => drift::run(&args),
    }
}

/// A report before it becomes Markdown or HTML.
#[derive(Default)]
pub(super) struct Page {
    pub title: String,
    /// What the figures are and how they were come by, in a few sentences.
    pub introduction: String,
    pub blocks: Vec<Block>,
    /// What to keep in mind when reading the figures.
    pub warnings: Vec<String>,
}

pub(super) enum Block {
    Heading(String),
    Text(String),
    Table(Table),
    /// An image of our own making, for the HTML alone.
    Svg(String),
}

pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// Writes report.json and report.html, the card if one is wanted, and prints the report.
fn write_report(args: &EvaluateArgs, report: &impl serde::Serialize, page: &Page) -> anyhow::Result<()> {
    write_folder(&args.report, report, page)?;
    let markdown = page.markdown();
    if let Some(card) = &args.card {
        write(card, &markdown)?;
    }
    println!("{markdown}");
    Ok(())
}

/// Writes report.json and report.html.
pub(super) fn write_folder(folder: &Path, report: &impl serde::Serialize, page: &Page) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    write(&folder.join("report.json"), &serde_json::to_string_pretty(report)?)?;
    write(&folder.join("report.html"), &page.html())
}

fn read_model(args: &EvaluateArgs) -> anyhow::Result<Vec<u8>> {
    std::fs::read(&args.model).with_context(|| format!("cannot read {}", args.model.display()))
}

pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A figure as a table cell: value and 95 % interval.
fn figure(figure: &Figure) -> String {
    if figure.value.is_nan() {
        return "–".into();
    }
    format!("{:.3} ({:.3}–{:.3})", figure.value, figure.low, figure.high)
}

impl Page {
    pub(super) fn heading(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Heading(text.into()));
    }

    pub(super) fn text(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Text(text.into()));
    }

    pub(super) fn table(&mut self, head: &[&'static str], rows: Vec<Vec<String>>) {
        self.blocks.push(Block::Table(Table { head: head.to_vec(), rows }));
    }

    pub(super) fn svg(&mut self, svg: String) {
        self.blocks.push(Block::Svg(svg));
    }

    fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n", self.title, self.introduction);
        for block in &self.blocks {
            let _ = match block {
                Block::Heading(heading) => write!(text, "\n## {heading}\n"),
                Block::Text(sentence) => write!(text, "\n{sentence}\n"),
                Block::Table(Table { head, rows }) => {
                    let _ = write!(text, "\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
                    rows.iter().try_for_each(|row| writeln!(text, "| {} |", row.join(" | ")))
                }
                Block::Svg(_) => Ok(()),
            };
        }
        if !self.warnings.is_empty() {
            text.push_str("\n## Mind\n\n");
            self.warnings.iter().for_each(|warning| text += &format!("- {warning}\n"));
        }
        text
    }

    fn html(&self) -> String {
        let title = escape(&self.title);
        let mut text = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
             <title>{title}</title><style>{STYLE}</style><h1>{title}</h1><p>{}</p>",
            escape(&self.introduction)
        );
        if !self.warnings.is_empty() {
            let items = self.warnings.iter().map(|warning| format!("<li>{}", escape(warning)));
            let _ = write!(text, "<ul>{}</ul>", items.collect::<String>());
        }
        for block in &self.blocks {
            let _ = match block {
                Block::Heading(heading) => write!(text, "<h2>{}</h2>", escape(heading)),
                Block::Text(sentence) => write!(text, "<p>{}</p>", escape(sentence)),
                Block::Table(table) => write!(text, "{}", table.html()),
                Block::Svg(svg) => write!(text, "{svg}"),
            };
        }
        text
    }
}

impl Table {
    fn html(&self) -> String {
        let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
            cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
        };
        let head = cells("th", &mut self.head.iter().copied());
        let row =
            |row: &Vec<String>| format!("<tr>{}</tr>", cells("td", &mut row.iter().map(String::as_str)));
        let rows: String = self.rows.iter().map(row).collect();
        format!("<div class=wide><table><tr>{head}</tr>{rows}</table></div>")
    }
}

const STYLE: &str = "\
:root{--line:#d5dbe3;--head:#f3f5f8;--faint:#9aa5b1;--mark:#2563eb;color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1c2430}\
.wide{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0;width:100%}\
th,td{border-bottom:1px solid var(--line);padding:.3rem .6rem;text-align:left;font-variant-numeric:tabular-nums}\
th{background:var(--head)}.plot{width:20rem;height:20rem;margin-right:1rem}\
@media(prefers-color-scheme:dark){body{background:#12161c;color:#dbe2ea}\
:root{--line:#35404d;--head:#1d242d;--faint:#6b7785;--mark:#6ea8fe}}";
