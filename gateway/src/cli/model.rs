//! `gaitway model`: what a model file says about itself.

use super::dataset;
use anyhow::Context;
use gaitway_models::DEFAULT_MODEL;
use gaitway_models::artifact::{Artifact, Expert, SourceUsed, short_hash};
use gaitway_models::evaluate::compare::{Changes, Comparison, compare};
use gaitway_models::features::FEATURES;
use gaitway_models::forest::{Leaves, Rule};
use gaitway_models::sequential::Threshold;
use std::collections::BTreeSet;
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
    /// What one model says otherwise than another: table, recipe, sources, experts, calibration,
    /// threshold; with --data also verdicts
    Diff {
        /// Model file
        first: PathBuf,
        /// Model file
        second: PathBuf,
        /// Folder with index.csv and session files, to be judged by both
        #[arg(long)]
        data: Option<PathBuf>,
        /// Only these sources of the index, separated by commas
        #[arg(long, value_delimiter = ',', requires = "data")]
        sources: Option<Vec<String>>,
    },
    /// Every feature: name, unit, meaning (Markdown)
    Features,
}

pub fn run(args: ModelArgs) -> anyhow::Result<()> {
    match args.command {
        ModelCommand::Show { file, json, rules } => show(file, json, rules),
        ModelCommand::Diff { first, second, data, sources } => {
            let read = |file: &PathBuf| {
                std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
            };
            let (first, second) = (read(&first)?, read(&second)?);
            let lines = differences(&first, &second)?;
            lines.iter().for_each(|line| println!("{line}"));
            if lines.is_empty() {
                println!("the cards say the same");
            }
            let Some(data) = data else { return Ok(()) };
            let recordings = dataset::read_all(&data, sources.as_deref())?;
            print!("{}", verdicts(&compare(&first, &second, &recordings)?));
            Ok(())
        }
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
    let Artifact { card, forests, .. } = Artifact::decode(&bytes)?;
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
        "threshold  {:.2} nats (rank {} of {} held out; at most {:.1} % of those like them)",
        card.threshold.nats,
        card.threshold.rank,
        match card.threshold.people {
            0 => format!("{} human sessions", card.threshold.sessions),
            people => format!("{people} people with {} sessions", card.threshold.sessions),
        },
        100.0 * card.threshold.false_alarm_max
    );
    if let Some(owners) = &card.owners {
        println!(
            "owners     a background of {} people; {}",
            owners.people,
            owners.threshold.map_or_else(
                || "no threshold: nobody came twice".into(),
                |threshold| format!(
                    "doubted from {:.2} nats ({} people with {} sessions, at most {:.1} %)",
                    threshold.nats,
                    threshold.people,
                    threshold.sessions,
                    100.0 * threshold.false_alarm_max
                )
            )
        );
    }
    if let Some(learnt) = &card.drift {
        println!("drift      {}", learnt.summary());
    }
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

/// A line for each thing in which two cards differ, in the order of the card.
fn differences(first: &[u8], second: &[u8]) -> anyhow::Result<Vec<String>> {
    let (a, b) = (Artifact::decode(first)?.card, Artifact::decode(second)?.card);
    let mut lines = Vec::new();
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            lines.push(format!("{what}: {a} | {b}"));
        }
    };
    differ("model", short_hash(first), short_hash(second));
    differ("name", a.name, b.name);
    differ("made by", a.program, b.program);
    differ("feature table", a.feature_table, b.feature_table);
    differ("calibrated for its site", a.calibrated.to_string(), b.calibrated.to_string());
    differ("threshold, nats", format!("{:.3}", a.threshold.nats), format!("{:.3}", b.threshold.nats));
    let rests = |t: &Threshold| format!("rank {} of {} human sessions", t.rank, t.sessions);
    differ("threshold from", rests(&a.threshold), rests(&b.threshold));
    // Whatever a recipe comes to hold is compared by name.
    let recipe = |recipe| -> anyhow::Result<_> {
        Ok(serde_json::to_value(recipe)?.as_object().cloned().unwrap_or_default())
    };
    let (recipe_a, recipe_b) = (recipe(&a.recipe)?, recipe(&b.recipe)?);
    let keys: BTreeSet<&String> = recipe_a.keys().chain(recipe_b.keys()).collect();
    let told =
        |value: Option<&serde_json::Value>| value.map_or("the usual".into(), |value| value.to_string());
    for key in keys {
        differ(&format!("recipe, {key}"), told(recipe_a.get(key)), told(recipe_b.get(key)));
    }
    let only = |mine: &[String], theirs: &[String]| {
        let mine = mine.iter().filter(|name| !theirs.contains(name)).cloned().collect::<Vec<_>>();
        if mine.is_empty() { "–".into() } else { mine.join(", ") }
    };
    differ("only its families", only(&a.families, &b.families), only(&b.families, &a.families));
    differ("people learnt from", a.users.len().to_string(), b.users.len().to_string());
    let source =
        |s: &SourceUsed| format!("{} ({} of people, {} of bots)", s.name, s.human_sessions, s.bot_sessions);
    let sources = |card: &[SourceUsed]| card.iter().map(source).collect::<Vec<_>>();
    let (sources_a, sources_b) = (sources(&a.sources), sources(&b.sources));
    differ("only its sources", only(&sources_a, &sources_b), only(&sources_b, &sources_a));
    let names: BTreeSet<&String> = a.experts.iter().chain(&b.experts).map(|expert| &expert.name).collect();
    for name in names {
        let [a, b] = [&a.experts, &b.experts].map(|experts| experts.iter().find(|e| e.name == *name));
        let (Some(a), Some(b)) = (a, b) else {
            let has = |expert: Option<&Expert>| if expert.is_some() { "present" } else { "absent" };
            differ(&format!("expert {name}"), has(a).into(), has(b).into());
            continue;
        };
        let calibration =
            |e: &Expert| format!("{:.3} × logit {:+.3}, at most ±{} nats", e.slope, e.intercept, e.nats_max);
        differ(&format!("expert {name}, log ratio"), calibration(a), calibration(b));
        differ(&format!("expert {name}, leaves"), format!("{:?}", a.leaves), format!("{:?}", b.leaves));
        differ(&format!("expert {name}, asks"), format!("{:?}", a.asks), format!("{:?}", b.asks));
        differ(
            &format!("expert {name}, only its features"),
            only(&a.features, &b.features),
            only(&b.features, &a.features),
        );
    }
    Ok(lines)
}

fn verdicts(comparison: &Comparison) -> String {
    let line = |what: &str, changes: &Changes| {
        format!(
            "{what}: {} compared, {} now bots, {} now people\n",
            changes.compared, changes.now_bot, changes.now_person
        )
    };
    let mut text = line("sessions", &comparison.sessions) + &line("windows", &comparison.windows);
    text += &format!(
        "windows only the first judged: {}; only the second: {}\nlog ratio of a window: {:.3} nats apart on average, {:.3} at most\n",
        comparison.only_first,
        comparison.only_second,
        comparison.mean_difference,
        comparison.largest_difference
    );
    let changed = comparison.groups.iter().filter(|(_, changes)| changes.now_bot + changes.now_person > 0);
    changed.for_each(|(group, changes)| text += &line(&format!("  {group}"), changes));
    text
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

#[cfg(test)]
mod tests {
    use super::*;
    use gaitway_models::train::{Algorithm, Recipe, train};

    #[test]
    fn a_diff_names_what_differs_and_nothing_else() {
        assert!(differences(DEFAULT_MODEL, DEFAULT_MODEL).unwrap().is_empty());
        let mut other = Artifact::decode(DEFAULT_MODEL).unwrap();
        other.card.threshold.nats += 1.0;
        other.card.recipe.algorithm = Algorithm::GradientBoosting;
        other.card.experts[0].slope += 0.5;
        let lines = differences(DEFAULT_MODEL, &other.encode()).unwrap();
        let begins: Vec<&str> = lines.iter().map(|line| line.split_once(": ").unwrap().0).collect();
        let first = &other.card.experts[0].name;
        let log_ratio = format!("expert {first}, log ratio");
        assert_eq!(begins, ["model", "threshold, nats", "recipe, algorithm", log_ratio.as_str()]);
        assert!(lines[2].ends_with("the usual | \"gradient-boosting\""), "{}", lines[2]);
    }

    #[test]
    fn every_algorithm_makes_a_model_that_loads_and_a_tree_is_told_in_rules() {
        for algorithm in [Algorithm::DecisionTree, Algorithm::GradientBoosting, Algorithm::IsolationForest] {
            let recipe = Recipe { algorithm, trees: 5, simulated: 12, folds: 2, ..Recipe::default() };
            let trained = train(&[], &recipe, &mut |_| {}).unwrap();
            let again = train(&[], &recipe, &mut |_| {}).unwrap();
            let bytes = trained.artifact.encode();
            assert_eq!(bytes, again.artifact.encode(), "{algorithm:?} under one seed");
            let read = Artifact::decode(&bytes).unwrap();
            // By bytes: a feature that could not be measured is NaN, which equals nothing.
            assert!(read.encode() == bytes, "{algorithm:?} reads back as it was written");
            let text =
                rules(&read.forests[0].rules(0, &read.card.experts[0].features), read.forests[0].leaves());
            let (feature, _) = text.split_once(' ').unwrap();
            assert!(read.card.experts[0].features.iter().any(|name| name == feature), "{text}");
            assert!(text.contains(" <= ") && text.contains(" > "), "{text}");
        }
    }
}
