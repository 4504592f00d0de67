//! `gaitway learn`: a site's shadow sessions in, a model of its people out.
//!
//! Reads files, keeps the model before, prints what was learnt and what it may promise; how a site is
//! learnt is `gaitway_models::train::learn`'s affair.

use super::{dataset, print, train::show_progress};
use anyhow::{Context, ensure};
use gaitway_models::artifact::{Artifact, Card, short_hash};
use gaitway_models::drift::Drift;
use gaitway_models::population::StratumCard;
use gaitway_models::train::learn::{LearnRecipe, LeftOut, Taught, drift, learn, shadow_sessions};
use gaitway_models::{DEFAULT_MODEL, Detector};
use std::fmt::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct LearnArgs {
    /// Folder of the site's recordings, index.csv and session files; most sessions may be unlabelled
    recordings: PathBuf,
    /// Where to write the model; one that is there is kept beside, named .previous
    #[arg(long, short)]
    output: PathBuf,
    /// Model that lends the bot bank and the experts for clicks and keys [default: the shipped one]
    #[arg(long)]
    base: Option<PathBuf>,
    /// Only these sources of the index, separated by commas
    #[arg(long, value_delimiter = ',')]
    sources: Option<Vec<String>>,
    /// Greatest share of people that may reach the threshold in any of their sessions
    #[arg(long, default_value_t = 0.01)]
    false_alarm: f32,
    /// The same seed and recordings give the same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Do not learn what an account's owner is told from others by
    #[arg(long)]
    no_owners: bool,
}

pub fn run(args: LearnArgs) -> anyhow::Result<()> {
    ensure!(args.false_alarm > 0.0 && args.false_alarm <= 0.2, "--false-alarm takes a share up to 0.2");
    let base = match &args.base {
        Some(file) => std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?,
        None => DEFAULT_MODEL.to_vec(),
    };
    let base = Artifact::decode(&base)?;
    ensure!(
        !base.bank.is_empty(),
        "the base model carries no bot bank to learn against; use the shipped one, or train one anew"
    );
    let recordings = dataset::read_all(&args.recordings, args.sources.as_deref())?;
    let (sessions, left_out) = shadow_sessions(&recordings);
    let before = match std::fs::read(&args.output) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", args.output.display())),
    };
    let recipe = LearnRecipe {
        seed: args.seed,
        false_alarm: args.false_alarm,
        owners: !args.no_owners,
        ..LearnRecipe::default()
    };
    let taught = learn(&sessions, &base, &recipe, &mut show_progress)?;
    let bytes = taught.artifact.encode();
    // What cannot be loaded is not worth writing.
    Detector::load(&bytes).map_err(anyhow::Error::msg)?;
    let mut text = report(&taught, left_out, recordings.len(), &recipe);
    if let Some(before) = &before {
        match Artifact::decode(before) {
            Ok(old) => text += &drift_lines(drift(&old, &sessions)),
            Err(error) => {
                let _ = writeln!(text, "drift      not known: the model before cannot be read: {error}");
            }
        }
    }
    write(&args.output, &bytes, before.is_some())?;
    let _ = writeln!(text, "written    {} ({})", args.output.display(), short_hash(&bytes));
    print(&text);
    Ok(())
}

/// How far these people have moved from those who taught the model before.
fn drift_lines(drift: Option<Drift>) -> String {
    let Some(drift) = drift else {
        return "drift      not known: the model before kept nothing to measure it on\n".into();
    };
    let mut text = String::new();
    for stratum in &drift.strata {
        let (input, limit, windows) = (stratum.input, stratum.limit, stratum.windows);
        let _ = match stratum.psi {
            Some(psi) if psi > limit && !stratum.moved => writeln!(
                text,
                "drift      {input}: index {psi:.2} since the model before, away from bots: no drift ({windows:.0} windows)"
            ),
            Some(psi) => writeln!(
                text,
                "drift      {input}: index {psi:.2} since the model before; above {limit:.2} is much ({windows:.0} windows)"
            ),
            None => writeln!(text, "drift      {input}: too few people or windows ({windows:.0}) to tell"),
        };
    }
    let _ = writeln!(
        text,
        "drift      {:.1} % of windows of kinds not learnt, {:.1} % when it was taught",
        100.0 * drift.unknown_share,
        100.0 * drift.unknown_share_learnt
    );
    text
}

/// Writes beside and renames, so that a gateway starting now finds one model or the other, never half.
fn write(output: &Path, bytes: &[u8], keep: bool) -> anyhow::Result<()> {
    let beside = |ending: &str| {
        let mut name = output.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let fresh = beside(".new");
    std::fs::write(&fresh, bytes).with_context(|| format!("cannot write {}", fresh.display()))?;
    if keep {
        let previous = beside(".previous");
        std::fs::copy(output, &previous).with_context(|| format!("cannot write {}", previous.display()))?;
    }
    std::fs::rename(&fresh, output).with_context(|| format!("cannot write {}", output.display()))
}

fn report(taught: &Taught, left: LeftOut, recordings: usize, recipe: &LearnRecipe) -> String {
    let mut text = format!(
        "recordings {recordings}; left out: {} driven by a program, {} seen before, {} with pages nobody asked for, \
         {} called bots, {} too short\n",
        left.automation, left.replay, left.unprompted, left.labelled, left.short
    );
    for stratum in &taught.artifact.population.strata {
        text += &stratum_lines(&stratum.card);
    }
    for (kind, sessions, windows) in &taught.untaught {
        let _ = writeln!(
            text,
            "not learnt {}: {sessions} sessions with {windows} windows of 30 s are too few; it stays unknown",
            kind.name()
        );
    }
    for (kind, bound) in &taught.unbounded {
        let _ = writeln!(
            text,
            "left out   {}: its {} people carry no better bound than {:.2} %; it stays unknown until more have come",
            kind.name(),
            bound.people,
            100.0 * bound.false_alarm_max
        );
    }
    if !taught.set_aside.is_empty() {
        let (n, named) = (taught.set_aside.len(), taught.set_aside.iter().take(NAMED_MAX));
        let names = named.cloned().collect::<Vec<_>>().join(", ");
        let more = if n > NAMED_MAX { format!(" and {} more", n - NAMED_MAX) } else { String::new() };
        let _ = writeln!(
            text,
            "look at    {names}{more}: set aside, and people as far as the bound goes, until operator_label in the \
             index says bot or human"
        );
    }
    text + &promise(&taught.artifact.card, recipe) + &owners_lines(taught, recipe)
}

/// What the site's people teach about telling an account's owner from others, or why they do not.
fn owners_lines(taught: &Taught, recipe: &LearnRecipe) -> String {
    let Some(card) = &taught.artifact.card.owners else {
        let why = taught.no_background.map_or_else(|| "nothing learnt".into(), |why| why.to_string());
        return format!("owners     no background: {why}; nobody is told from an account's owner\n");
    };
    let learnt = format!("owners     a background of {} people", card.people);
    let Some(threshold) = card.threshold else {
        return format!(
            "{learnt}; nobody came twice, so there is no threshold: profiles are kept, nobody is doubted\n"
        );
    };
    let bound = format!(
        "{learnt}; doubted from {:.2} nats: reached by at most {:.2} % of people like these {}, in any of their {} \
         sessions",
        threshold.nats,
        100.0 * threshold.false_alarm_max,
        threshold.people,
        threshold.sessions
    );
    if card.calibrated {
        format!("{bound}; policies may ask who it is\n")
    } else {
        let needed = (threshold.rank as f32 / recipe.false_alarm).ceil() as u32 - 1;
        format!(
            "{bound}; {} % takes {needed} people who came twice: shown, and no reason to ask anybody\n",
            100.0 * recipe.false_alarm
        )
    }
}

/// Sessions set aside that are named.
const NAMED_MAX: usize = 20;

fn stratum_lines(card: &StratumCard) -> String {
    let learnt = card.learnt;
    let (bots, low, high) = learnt.bots;
    let devices = match card.devices.len() {
        0 => "any device".to_string(),
        n => format!("{n} classes of device"),
    };
    format!(
        "learnt     {}: {} windows of 30 s from {} sessions of {} people; {devices}, moves {:.0} to {:.0} ms apart\n\
         set aside  {} sessions that lie with the bots; of all sessions {:.1} % are bots (95 %: {:.1} to {:.1} %), \
         at most {:.1} % left in\n",
        card.kind.name(),
        learnt.windows,
        learnt.sessions,
        learnt.people,
        card.interval_ms.0,
        card.interval_ms.1,
        learnt.set_aside,
        100.0 * bots,
        100.0 * low,
        100.0 * high,
        100.0 * learnt.bots_left_max
    )
}

/// The bound, or why there is none.
fn promise(card: &Card, recipe: &LearnRecipe) -> String {
    let threshold = card.threshold;
    let bound = 100.0 * threshold.false_alarm_max;
    let wanted = 100.0 * recipe.false_alarm;
    let kept = format!(
        "threshold  {:.2} nats: reached by at most {bound:.2} % of people like these {}, in any of their {} sessions \
         (k/(n+1) with n people and k = {}, those set aside among the k)\n",
        threshold.nats, threshold.people, threshold.sessions, threshold.rank
    );
    let verdict = if card.calibrated {
        format!("calibrated for this site: {wanted} % are kept, so policies may act on it\n")
    } else {
        let needed = (threshold.rank as f32 / recipe.false_alarm).ceil() as u32 - 1;
        format!(
            "not calibrated: {wanted} % cannot be promised from {} people, it takes {needed}; good for showing and \
             for asking people to prove themselves, not for logging out\n",
            threshold.people
        )
    };
    kept + &verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use gaitway_models::dataset::{batches, encode_batches};
    use gaitway_models::sim::Visitor;

    #[test]
    fn a_folder_of_unlabelled_sessions_becomes_a_model_and_the_one_before_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut index = String::from("session,file,source,user,label,automation\n");
        for i in 0..10 {
            let mut visitor = Visitor::person(30 + i);
            let events: Vec<_> = (0..60).flat_map(|_| visitor.next_batch(2.0).events).collect();
            std::fs::write(folder.path().join(format!("{i}.gwt")), encode_batches(&batches(&events)))
                .unwrap();
            let _ = writeln!(index, "s{i},{i}.gwt,shop,u{i},,{}", u8::from(i == 9));
        }
        std::fs::write(folder.path().join("index.csv"), index).unwrap();
        let output = folder.path().join("site.model");
        let args = || LearnArgs {
            recordings: folder.path().into(),
            output: output.clone(),
            base: None,
            sources: None,
            false_alarm: 0.01,
            seed: 1,
            no_owners: false,
        };
        run(args()).unwrap();
        let first = std::fs::read(&output).unwrap();
        let model = Artifact::decode(&first).unwrap();
        assert_eq!(model.population.strata[0].card.learnt.sessions, 9, "the driven one is left out");
        assert!(!model.card.calibrated, "nine sessions promise nothing");
        let said = promise(&model.card, &LearnRecipe::default());
        assert!(said.contains("1 % cannot be promised from 9 people, it takes 99"), "{said}");
        assert_eq!(model.owners, None, "nine people are no background");
        run(args()).unwrap();
        assert_eq!(std::fs::read(&output).unwrap(), first, "the same recordings give the same bytes");
        assert_eq!(std::fs::read(folder.path().join("site.model.previous")).unwrap(), first);
    }

    #[test]
    fn people_who_came_twice_teach_what_an_owner_is_told_by() {
        let folder = tempfile::tempdir().unwrap();
        let mut index = String::from("session,file,source,user,label\n");
        for user in 0..14 {
            let mut visitor = Visitor::person(60 + user);
            for i in 0..2 {
                let events: Vec<_> = (0..110).flat_map(|_| visitor.next_batch(2.0).events).collect();
                let name = format!("{user}-{i}.gwt");
                std::fs::write(folder.path().join(&name), encode_batches(&batches(&events))).unwrap();
                let _ = writeln!(index, "s{user}-{i},{name},shop,u{user},");
            }
        }
        std::fs::write(folder.path().join("index.csv"), index).unwrap();
        let (recordings, _) = shadow_sessions(&dataset::read_all(folder.path(), None).unwrap());
        let recipe = LearnRecipe { trees: 12, ..LearnRecipe::default() };
        let base = Artifact::decode(DEFAULT_MODEL).unwrap();
        let taught = learn(&recordings, &base, &recipe, &mut |_| ()).unwrap();
        assert!(Detector::load(&taught.artifact.encode()).unwrap().knows_owners());
        let card = taught.artifact.card.owners.as_ref().unwrap();
        let people = card.threshold.unwrap().people;
        assert!(card.people >= 10 && !card.calibrated && people > 5, "{card:?}");
        let said = owners_lines(&taught, &recipe);
        assert!(said.contains("1 % takes 99 people who came twice"), "{said}");
        let recipe = LearnRecipe { owners: false, ..recipe };
        let none = learn(&recordings, &base, &recipe, &mut |_| ()).unwrap();
        assert!(none.artifact.owners.is_none() && owners_lines(&none, &recipe).contains("not asked for"));
    }
}
