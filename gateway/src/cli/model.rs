//! `gaitway model`: what a model file says about itself.

use anyhow::Context;
use gaitway_models::DEFAULT_MODEL;
use gaitway_models::artifact::{Artifact, short_hash};
use gaitway_models::features::FEATURES;
use gaitway_models::forest::{Leaves, Rule};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ModelCommand {
    /// Sources, experts, calibration and threshold of a model
    Show {
        /// Model file; the shipped one if none is named
        file: Option<PathBuf>,
        /// The whole card as JSON
        #[arg(long, conflicts_with = "rules")]
        json: bool,
        /// The trees as text rules: of each expert the first, which of a decision tree is all
        #[arg(long)]
        rules: bool,
    },
    /// Every feature: name, unit, meaning (Markdown)
    Features,
}

pub fn run(args: ModelArgs) -> anyhow::Result<()> {
    match args.command {
        ModelCommand::Show { file, json, rules } => show(file, json, rules),
        ModelCommand::Features => {
            println!(
                "| feature | unit | channel | bound to | towards a bot | meaning |\n|---|---|---|---|---|---|"
            );
            for feature in &FEATURES {
                let (channel, bound, sign) = (feature.channel, feature.bound_to, feature.towards_bot);
                println!(
                    "| `{}` | {} | {channel:?} | {bound:?} | {sign:?} | {} |",
                    feature.name, feature.unit, feature.doc
                );
            }
            Ok(())
        }
    }
}

fn show(file: Option<PathBuf>, json: bool, with_rules: bool) -> anyhow::Result<()> {
    let bytes = match &file {
        Some(file) => std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?,
        None => DEFAULT_MODEL.to_vec(),
    };
    let Artifact { card, forests } = Artifact::decode(&bytes)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&card)?);
        return Ok(());
    }
    println!("model      {} ({}), made by {}", short_hash(&bytes), card.name, card.program);
    println!("features   table {}", card.feature_table);
    println!("seed       {}", card.recipe.seed);
    println!(
        "calibrated {}",
        if card.calibrated { "for its site" } else { "no: it shows, and logs nobody out by itself" }
    );
    println!(
        "threshold  {:.2} nats (rank {} of {} human sessions held out; at most {:.1} % of sessions like them)",
        card.threshold.nats,
        card.threshold.rank,
        card.threshold.sessions,
        100.0 * card.threshold.false_alarm_max
    );
    for source in &card.sources {
        println!(
            "source     {}: {} sessions of people, {} of bots; {}",
            source.name, source.human_sessions, source.bot_sessions, source.licence
        );
    }
    println!("families   {}", card.families.join(", "));
    for (expert, forest) in card.experts.iter().zip(&forests) {
        println!(
            "expert     {}: {} trees, {} nodes, {} features; log ratio = {:.2} × logit {:+.2}, at most ±{} nats",
            expert.name,
            forest.trees(),
            forest.nodes(),
            expert.features.len(),
            expert.slope,
            expert.intercept,
            expert.nats_max
        );
    }
    if with_rules {
        for (expert, forest) in card.experts.iter().zip(&forests) {
            println!("\n{}: tree 1 of {}", expert.name, forest.trees());
            print!("{}", rules(&forest.rules(0, &expert.features), forest.leaves()));
        }
    }
    Ok(())
}

/// A tree as indented text.
fn rules(tree: &[Rule], leaves: Leaves) -> String {
    let line = |rule: &Rule| match rule {
        Rule::Branch { depth, feature, threshold, above, missing } => {
            let (sign, unknown) =
                (if *above { ">" } else { "<=" }, if *missing { " or unknown" } else { "" });
            format!("{}{feature} {sign} {threshold:.4}{unknown}:\n", "  ".repeat(*depth))
        }
        Rule::Leaf { depth, value } => {
            let what = match leaves {
                Leaves::Share => format!("bot {:.1} %", 100.0 * value),
                Leaves::LogOdds => format!("log odds of a bot {value:+.3}"),
                Leaves::Depth => format!("apart after {value:.2} of the usual splits"),
            };
            format!("{}{what}\n", "  ".repeat(*depth))
        }
    };
    tree.iter().map(line).collect()
}
