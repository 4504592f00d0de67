//! `gaitway train`: recordings in, model file out.
//!
//! Reads files and prints progress; how a model is made is `gaitway_models::train`'s affair.

use super::evaluate::{self, Page};
use super::{dataset, plot};
use anyhow::{Context, ensure};
use gaitway_models::evaluate::bot::sections_of_training;
use gaitway_models::train::{Algorithm, Progress, Recipe, Trained, train};
use gaitway_models::{Detector, artifact};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    /// Folder with index.csv and the session files it names
    pub(super) data: PathBuf,
    /// Sources of the index to learn from, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "sapimouse,delbot,browserbots,lab")]
    pub(super) sources: Vec<String>,
    /// How each expert's trees are grown
    #[arg(long, value_enum, default_value = "random-forest")]
    pub(super) algorithm: AlgorithmName,
    /// Where to write the model
    #[arg(long, short, default_value = "models/artifacts/default.model")]
    pub(super) output: PathBuf,
    /// The same seed and recordings give the same bytes
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Trees of each forest
    #[arg(long, default_value_t = 64)]
    pub(super) trees: usize,
    /// Simulated people; simulated bots are as many
    #[arg(long, default_value_t = 150)]
    pub(super) simulated: u32,
    /// Folder for report.json, report.html and plots: how the recipe did on people and families held
    /// out, and what each feature's splits gained
    #[arg(long)]
    pub(super) report: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum AlgorithmName {
    /// One tree that can be read: `gaitway model show --rules`
    DecisionTree,
    RandomForest,
    GradientBoosting,
    /// Grown on people alone: how unlike them something is
    IsolationForest,
}

impl AlgorithmName {
    fn algorithm(self) -> Algorithm {
        match self {
            AlgorithmName::DecisionTree => Algorithm::DecisionTree,
            AlgorithmName::RandomForest => Algorithm::RandomForest,
            AlgorithmName::GradientBoosting => Algorithm::GradientBoosting,
            AlgorithmName::IsolationForest => Algorithm::IsolationForest,
        }
    }
}

pub fn run(args: TrainArgs) -> anyhow::Result<()> {
    ensure!(args.trees > 0, "a forest needs at least one tree");
    let recordings = dataset::read(&args.data, Some(&args.sources))?;
    let recipe = Recipe {
        seed: args.seed,
        algorithm: args.algorithm.algorithm(),
        trees: args.trees,
        simulated: args.simulated,
        ..Recipe::default()
    };
    let trained = train(&recordings, &recipe, &mut show_progress)?;
    let bytes = trained.artifact.encode();
    // What cannot be loaded is not worth writing.
    Detector::load(&bytes).map_err(anyhow::Error::msg)?;
    if let Some(folder) = args.output.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::write(&args.output, &bytes)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    let card = trained.artifact.card.clone();
    // Before anything is printed: who reads it (`| head`) may be gone before the end.
    if let Some(folder) = &args.report {
        report(folder, trained, &artifact::short_hash(&bytes))?;
    }
    println!(
        "model {} in {} ({} KiB)",
        artifact::short_hash(&bytes),
        args.output.display(),
        bytes.len() / 1024
    );
    println!(
        "threshold {:.2} nats, from {} human sessions held out: at most {:.1} % of sessions like them reach it",
        card.threshold.nats,
        card.threshold.sessions,
        100.0 * card.threshold.false_alarm_max
    );
    for expert in &card.experts {
        let (people, bots) = expert.calibrated_on;
        println!(
            "{}: {} features, calibrated on {people} windows of people and {bots} of bots",
            expert.name,
            expert.features.len()
        );
    }
    if let Some(folder) = &args.report {
        println!("report in {}", folder.display());
    }
    println!("not calibrated for any site: it shows, and logs nobody out by itself");
    Ok(())
}

/// Writes what training says of what it held out.
fn report(folder: &Path, trained: Trained, model: &str) -> anyhow::Result<()> {
    let experts = trained.artifact.card.experts.iter().map(|expert| expert.name.clone());
    let importances: BTreeMap<String, Vec<(String, f64)>> = experts.zip(trained.importances).collect();
    let sections = sections_of_training(trained.held_out);
    let mut page = Page {
        title: format!("Training of model {model}"),
        introduction: "How this recipe did on people and bot families it had not seen: forests grown without them, \
                       calibrated and judged at a threshold that come from the other half of people and families. \
                       The model itself then learnt from all."
            .into(),
        ..Page::default()
    };
    for section in &sections {
        evaluate::bot::add_section(&mut page, section);
    }
    page.heading("What each feature's splits gained");
    for (expert, shares) in importances.iter().filter(|(_, shares)| !shares.is_empty()) {
        page.text(format!("{expert}:"));
        let row = |(feature, share): &(String, f64)| vec![feature.clone(), format!("{:.1} %", 100.0 * share)];
        page.table(&["feature", "share"], shares.iter().map(row).collect());
    }
    let report = serde_json::json!({
        "task": "train", "model": model, "recipe": trained.artifact.card.recipe,
        "sections": sections, "importances": importances,
    });
    evaluate::write_folder(folder, &report, &page)?;
    for (i, section) in sections.iter().enumerate() {
        evaluate::write(&folder.join(format!("roc-{}.svg", i + 1)), &plot::roc(&section.roc))?;
        let calibration = plot::reliability(&section.reliability);
        evaluate::write(&folder.join(format!("calibration-{}.svg", i + 1)), &calibration)?;
    }
    Ok(())
}

/// One line, rewritten in place on a terminal.
pub(super) fn show_progress(progress: Progress) {
    const WIDTH: usize = 24;
    let full = WIDTH * progress.step / progress.steps.max(1);
    let bar: String = (0..WIDTH).map(|i| if i < full { '=' } else { ' ' }).collect();
    let mut out = std::io::stderr();
    // Progress is a courtesy: a closed stderr is no reason to stop.
    let _ = if out.is_terminal() {
        let end = if progress.step == progress.steps { "\n" } else { "" };
        write!(out, "\r\x1b[K[{bar}] {}{end}", progress.what)
    } else {
        writeln!(out, "{}/{} {}", progress.step, progress.steps, progress.what)
    };
    let _ = out.flush();
}
