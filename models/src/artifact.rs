//! The model file: one run of bytes that says what it is, what it learnt from, and that it is whole.
//!
//! Layout: magic, format version, length of the card, the card (JSON), each expert's forest, the
//! people of each expert that measures distance from them, of each
//! stratum the shape and the forest, the bank's rows (`f32`), the background of people, SHA-256 of all before;
//! numbers little endian. A file without a background is of format 2, one without strata and bank too of format
//! 1, which older builds read. Must not know: where the bytes lie.

use crate::drift;
use crate::features::{self, Channel};
use crate::forest::{Forest, ForestError, Leaves, read_u32};
use crate::hand;
use crate::owner::{Background, Owners, OwnersCard};
use crate::population::{
    BankSession, DEVICES_MAX, Population, STRATA_MAX, Shape, Stratum, StratumCard, read_numbers,
};
use crate::sequential::{self, Threshold};
use crate::train::Recipe;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Largest model file accepted, in bytes: ten times the shipped one.
pub const ARTIFACT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most experts in one file.
pub const EXPERTS_MAX: usize = 16;
/// Most sessions and rows of the bot bank.
pub const BANK_SESSIONS_MAX: usize = 1024;
pub const BANK_ROWS_MAX: usize = 8192;
/// Newest format this build reads and writes.
pub const FORMAT_VERSION: u32 = 3;

/// A model, decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    pub card: Card,
    /// In the order of `card.experts`.
    pub forests: Vec<Forest>,
    /// In the order of `card.experts`: the people it learnt from, for experts that weigh the distance from them.
    pub people: Vec<Option<Shape>>,
    /// In the order of `card.population`.
    pub population: Population,
    /// In the order of `card.bank`.
    pub bank: Vec<BankSession>,
    /// How this site's people move, for telling an account's owner from them.
    pub owners: Option<Owners>,
}

/// What a model says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    pub name: String,
    /// Version of the program that trained it.
    pub program: String,
    /// Hash of the feature table it was trained on.
    pub feature_table: String,
    /// How it was made; the same recipe and sources give the same bytes.
    pub recipe: Recipe,
    /// Everything it learnt from.
    pub sources: Vec<SourceUsed>,
    /// People and bot families it learnt from: what an evaluation must not call unseen.
    pub users: Vec<String>,
    pub families: Vec<String>,
    /// It has learnt the site it judges; without that it shows and never logs out by itself.
    pub calibrated: bool,
    pub threshold: Threshold,
    pub experts: Vec<Expert>,
    /// 5th and 95th percentile among the training people, by feature name.
    pub usual: Vec<Usual>,
    /// The strata the site has taught; written from the population when a model is encoded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub population: Vec<StratumCard>,
    /// Sessions of the bot bank and their numbers of rows; written from the bank when a model is encoded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bank: Vec<BankEntry>,
    /// The background of people; written from it when a model is encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owners: Option<OwnersCard>,
    /// Where the scores of the people who taught it lay: what drift is measured against. Older files lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<drift::Learnt>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BankEntry {
    pub source: String,
    pub family: String,
    pub rows: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceUsed {
    pub name: String,
    pub licence: String,
    pub human_sessions: u32,
    pub bot_sessions: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usual {
    pub feature: String,
    pub low: f32,
    pub high: f32,
}

/// One forest, of whatever algorithm: what it looks at, when it may speak, and how its share of votes becomes evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expert {
    pub name: String,
    pub channel: ExpertChannel,
    pub span: Span,
    pub features: Vec<String>,
    /// What its trees' leaves hold; shares, unless said otherwise.
    #[serde(default, skip_serializing_if = "Leaves::is_share")]
    pub leaves: Leaves,
    /// Log-likelihood ratio = `slope` × logit(forest) + `intercept`, from people and families held out.
    pub slope: f32,
    pub intercept: f32,
    /// Most this expert may say, in nats, either way.
    pub nats_max: f32,
    pub asks: Asks,
    /// Held-out windows the calibration rests on: people, bots.
    pub calibrated_on: (u32, u32),
    /// How far from all people counts as evidence; absent where the forest judges alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<Distance>,
}

/// The second witness of an expert: log-likelihood ratio = `slope` × distance + `intercept`, where the
/// distance is the logarithm of the squared Mahalanobis distance per feature from the people learnt from. A
/// bot is only what both the forest and the distance call one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    pub slope: f32,
    pub intercept: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpertChannel {
    Pointer,
    Click,
    Key,
}

impl ExpertChannel {
    pub fn channel(self) -> Channel {
        match self {
            ExpertChannel::Pointer => Channel::Pointer,
            ExpertChannel::Click => Channel::Click,
            ExpertChannel::Key => Channel::Key,
        }
    }
}

/// Which window an expert reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    /// The last slice: 10 s of active input.
    Short,
    /// The last three slices: 30 s.
    Long,
}

/// The least input an expert speaks on, and the stratum it knows. Outside, it is silent: what it has
/// not learnt is unknown, never a bot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asks {
    pub moves: u32,
    pub strokes: u32,
    pub grid_steps: u32,
    pub clicks: u32,
    pub keys: u32,
    /// Typical time between move events, milliseconds; coarser recordings (remote desktops) were never learnt.
    pub move_interval_ms_max: Option<f32>,
}

#[derive(Debug, Error, PartialEq)]
pub enum ArtifactError {
    #[error("this is not a Gaitway model file")]
    Magic,
    #[error("the model file is in format {0}; this build reads formats up to {FORMAT_VERSION}")]
    Format(u32),
    #[error("the model file is damaged: its SHA-256 does not match its content")]
    Damaged,
    #[error("the model file exceeds {ARTIFACT_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the model file's card cannot be read: {0}")]
    Card(String),
    #[error(
        "the model was trained on feature table {found}, this build has {}; train it again",
        features::table_hash()
    )]
    FeatureTable { found: String },
    #[error(
        "the model's background of people counts movements by table {found}, this build by {}; learn the site again",
        hand::table_hash()
    )]
    Hand { found: String },
    #[error("the model names a feature this build does not have: {0}")]
    Feature(String),
    #[error("the model's numbers make no sense: {0}")]
    Numbers(&'static str),
    #[error("the model's forest {0} cannot be walked: {1}")]
    Forest(usize, ForestError),
    #[error("the model's stratum {0} cannot be used: {1}")]
    Stratum(usize, &'static str),
}

impl Artifact {
    pub fn encode(&self) -> Vec<u8> {
        let mut card = self.card.clone();
        card.population = self.population.strata.iter().map(|stratum| stratum.card.clone()).collect();
        let entry = |session: &BankSession| BankEntry {
            source: session.source.clone(),
            family: session.family.clone(),
            rows: session.rows.len() as u32,
        };
        card.bank = self.bank.iter().map(entry).collect();
        let old =
            self.population.is_empty() && self.bank.is_empty() && self.people.iter().all(Option::is_none);
        card.owners = self.owners.as_ref().map(|owners| owners.card.clone());
        let format = match card.owners {
            Some(_) => FORMAT_VERSION,
            None if old => 1,
            None => 2,
        };
        let card = serde_json::to_vec(&card).unwrap_or_default();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u32::to_le_bytes(format));
        bytes.extend((card.len() as u32).to_le_bytes());
        bytes.extend(card);
        self.forests.iter().for_each(|forest| forest.write(&mut bytes));
        self.people.iter().flatten().for_each(|shape| shape.write(&mut bytes));
        for stratum in &self.population.strata {
            stratum.shape.write(&mut bytes);
            stratum.forest.write(&mut bytes);
        }
        let rows = self.bank.iter().flat_map(|session| session.rows.iter().flatten());
        rows.for_each(|value| bytes.extend(value.to_le_bytes()));
        if let Some(owners) = &self.owners {
            owners.background.write(&mut bytes);
        }
        let hash = Sha256::digest(&bytes);
        bytes.extend(hash);
        bytes
    }

    /// Decodes and checks everything a walk or a reader relies on.
    pub fn decode(bytes: &[u8]) -> Result<Artifact, ArtifactError> {
        if bytes.len() > ARTIFACT_BYTES_MAX {
            return Err(ArtifactError::TooLarge);
        }
        let rest = bytes.strip_prefix(MAGIC).ok_or(ArtifactError::Magic)?;
        let (format, rest) = rest.split_first_chunk().ok_or(ArtifactError::Damaged)?;
        let format = u32::from_le_bytes(*format);
        if !(1..=FORMAT_VERSION).contains(&format) {
            return Err(ArtifactError::Format(format));
        }
        let (_, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or(ArtifactError::Damaged)?;
        let mut rest = rest.strip_suffix(hash.as_slice()).ok_or(ArtifactError::Damaged)?;
        if Sha256::digest(&bytes[..bytes.len() - HASH_BYTES]).as_slice() != hash {
            return Err(ArtifactError::Damaged);
        }
        let length = read_u32(&mut rest).map_err(|_| ArtifactError::Damaged)? as usize;
        let (card, mut rest) = rest.split_at_checked(length).ok_or(ArtifactError::Damaged)?;
        let card: Card = serde_json::from_slice(card).map_err(|e| ArtifactError::Card(e.to_string()))?;
        check_card(&card)?;
        let read = |(i, expert): (usize, &Expert)| {
            Forest::read_as(expert.leaves, &mut rest).map_err(|e| ArtifactError::Forest(i, e))
        };
        let forests = card.experts.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        let people = read_people(&card, &mut rest)?;
        let population = read_population(&card, &mut rest)?;
        let bank = read_bank(&card, &mut rest).ok_or(ArtifactError::Damaged)?;
        let owners = read_owners(&card, &mut rest)?;
        if rest.is_empty() {
            Ok(Artifact { card, forests, people, population, bank, owners })
        } else {
            Err(ArtifactError::Damaged)
        }
    }
}

fn read_people(card: &Card, rest: &mut &[u8]) -> Result<Vec<Option<Shape>>, ArtifactError> {
    let shape = |expert: &Expert| match expert.distance {
        None => Ok(None),
        Some(_) if expert.features.is_empty() => Err(ArtifactError::Numbers("distance without features")),
        Some(_) => Shape::read(expert.features.len(), rest)
            .map(Some)
            .ok_or(ArtifactError::Numbers("the people an expert measures from")),
    };
    card.experts.iter().map(shape).collect()
}

fn read_population(card: &Card, rest: &mut &[u8]) -> Result<Population, ArtifactError> {
    let strata = card.population.iter().enumerate().map(|(i, card)| {
        let columns = card.features.len();
        if columns == 0 || columns > features::FEATURE_COUNT || card.devices.len() > DEVICES_MAX {
            return Err(ArtifactError::Stratum(i, "it has no features or too many devices"));
        }
        let numbers = [card.threshold, card.nats, card.interval_ms.0, card.interval_ms.1];
        if !numbers.iter().all(|number| number.is_finite()) || card.nats < 0.0 {
            return Err(ArtifactError::Stratum(i, "its threshold makes no sense"));
        }
        let shape =
            Shape::read(columns, rest).ok_or(ArtifactError::Stratum(i, "its shape makes no sense"))?;
        let forest =
            Forest::read(rest).map_err(|_| ArtifactError::Stratum(i, "its forest cannot be walked"))?;
        Ok(Stratum { card: card.clone(), shape, forest })
    });
    Ok(Population { strata: strata.collect::<Result<_, _>>()? })
}

fn read_bank(card: &Card, rest: &mut &[u8]) -> Option<Vec<BankSession>> {
    let session = |entry: &BankEntry| {
        let row = |_| read_numbers(rest, features::FEATURE_COUNT)?.try_into().ok();
        let rows = (0..entry.rows).map(row).collect::<Option<_>>()?;
        Some(BankSession { source: entry.source.clone(), family: entry.family.clone(), rows })
    };
    card.bank.iter().map(session).collect()
}

fn read_owners(card: &Card, rest: &mut &[u8]) -> Result<Option<Owners>, ArtifactError> {
    let Some(card) = &card.owners else { return Ok(None) };
    if card.hand != hand::table_hash() {
        return Err(ArtifactError::Hand { found: card.hand.clone() });
    }
    let sound = card.slope >= 0.0 && card.slope.is_finite() && card.intercept.is_finite();
    // What a single block, or two, could reach is no threshold.
    let reach = card.threshold.is_none_or(|threshold| threshold.nats >= sequential::THRESHOLD_NATS_MIN);
    if !sound || !reach {
        return Err(ArtifactError::Numbers("calibration of the background of people"));
    }
    let background = Background::read((card.axes as usize, card.cohort as usize), rest)
        .ok_or(ArtifactError::Numbers("the background of people"))?;
    Ok(Some(Owners { background, card: card.clone() }))
}

/// What decisions and incidents call a model: the first 16 hex digits of its SHA-256.
pub fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn check_card(card: &Card) -> Result<(), ArtifactError> {
    if card.feature_table != features::table_hash() {
        return Err(ArtifactError::FeatureTable { found: card.feature_table.clone() });
    }
    let named = card.experts.iter().flat_map(|expert| &expert.features);
    let taught = card.population.iter().flat_map(|stratum| &stratum.features);
    for name in named.chain(card.usual.iter().map(|usual| &usual.feature)).chain(taught) {
        if features::index(name).is_none() {
            return Err(ArtifactError::Feature(name.clone()));
        }
    }
    if card.experts.is_empty() && card.population.is_empty() || card.experts.len() > EXPERTS_MAX {
        return Err(ArtifactError::Numbers("number of experts"));
    }
    let bank_rows: u64 = card.bank.iter().map(|entry| u64::from(entry.rows)).sum();
    if card.population.len() > STRATA_MAX
        || card.bank.len() > BANK_SESSIONS_MAX
        || bank_rows > BANK_ROWS_MAX as u64
    {
        return Err(ArtifactError::Numbers("number of strata or of the bank's rows"));
    }
    // A threshold of zero would log everyone out; a negative slope would turn people into bots.
    let nats = card.threshold.nats;
    if nats.is_nan() || nats <= crate::sequential::WINDOW_NATS_MAX {
        return Err(ArtifactError::Numbers("threshold within the reach of a single window"));
    }
    let sound = |e: &Expert| {
        e.slope >= 0.0
            && e.slope.is_finite()
            && e.intercept.is_finite()
            && e.nats_max >= 0.0
            && e.distance.is_none_or(|d| d.slope >= 0.0 && d.slope.is_finite() && d.intercept.is_finite())
            && !e.features.is_empty()
    };
    if !card.experts.iter().all(sound) {
        return Err(ArtifactError::Numbers("calibration"));
    }
    if card.drift.as_ref().is_some_and(|learnt| !learnt.is_sound(card.population.len())) {
        return Err(ArtifactError::Numbers("counts that drift is measured on"));
    }
    Ok(())
}

const MAGIC: &[u8] = b"GAITWAYM";
const HASH_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEFAULT_MODEL;

    #[test]
    fn the_shipped_model_loads_names_its_sources_and_survives_a_round_trip() {
        let artifact = Artifact::decode(DEFAULT_MODEL).unwrap();
        assert_eq!(artifact.encode(), DEFAULT_MODEL);
        assert!(!artifact.card.calibrated, "a shipped model has learnt no site");
        assert!(artifact.card.sources.iter().all(|source| !source.licence.is_empty()));
        assert!(DEFAULT_MODEL.len() < 1_500_000);
    }

    #[test]
    fn every_kind_of_wrong_file_is_refused_with_a_plain_message() {
        let refused = |bytes: &[u8]| Artifact::decode(bytes).unwrap_err().to_string();
        assert_eq!(refused(b""), "this is not a Gaitway model file");
        let mut newer = DEFAULT_MODEL.to_vec();
        newer[8] = 9;
        assert_eq!(refused(&newer), "the model file is in format 9; this build reads formats up to 3");
        let mut flipped = DEFAULT_MODEL.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        assert_eq!(refused(&flipped), "the model file is damaged: its SHA-256 does not match its content");
        assert_eq!(refused(&DEFAULT_MODEL[..middle]), refused(&flipped));
    }

    #[test]
    fn a_model_of_another_feature_table_or_with_senseless_numbers_is_refused() {
        let refused = |change: fn(&mut Card)| {
            let mut artifact = Artifact::decode(DEFAULT_MODEL).unwrap();
            change(&mut artifact.card);
            Artifact::decode(&artifact.encode()).unwrap_err()
        };
        let other = refused(|card| card.feature_table = "0123456789abcdef".into());
        assert!(other.to_string().contains("trained on feature table 0123456789abcdef"), "{other}");
        assert_eq!(
            refused(|card| card.experts[0].features[0] = "mood".into()),
            ArtifactError::Feature("mood".into())
        );
        assert!(matches!(refused(|card| card.threshold.nats = 1.0), ArtifactError::Numbers(_)));
        assert!(matches!(refused(|card| card.experts[0].slope = -1.0), ArtifactError::Numbers(_)));
    }
}
