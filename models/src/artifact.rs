//! The model file: one run of bytes that says what it is, what it learnt from, and that it is whole.
//!
//! Layout: magic, format version, length of the card, the card (JSON), each expert's forest, SHA-256
//! of all before. Must not know: where the bytes lie.

use crate::features::{self, Channel};
use crate::forest::{Forest, ForestError, Leaves, read_u32};
use crate::sequential::Threshold;
use crate::train::Recipe;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Largest model file accepted, in bytes: ten times the shipped one.
pub const ARTIFACT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most experts in one file.
pub const EXPERTS_MAX: usize = 16;
/// Format this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// A model, decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    pub card: Card,
    /// In the order of `card.experts`.
    pub forests: Vec<Forest>,
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
    #[error("the model file is in format {0}; this build reads format {FORMAT_VERSION}")]
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
    #[error("the model names a feature this build does not have: {0}")]
    Feature(String),
    #[error("the model's numbers make no sense: {0}")]
    Numbers(&'static str),
    #[error("the model's forest {0} cannot be walked: {1}")]
    Forest(usize, ForestError),
}

impl Artifact {
    pub fn encode(&self) -> Vec<u8> {
        let card = serde_json::to_vec(&self.card).unwrap_or_default();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend((card.len() as u32).to_le_bytes());
        bytes.extend(card);
        self.forests.iter().for_each(|forest| forest.write(&mut bytes));
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
        if format != FORMAT_VERSION {
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
        if rest.is_empty() { Ok(Artifact { card, forests }) } else { Err(ArtifactError::Damaged) }
    }
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
    for name in named.chain(card.usual.iter().map(|usual| &usual.feature)) {
        if features::index(name).is_none() {
            return Err(ArtifactError::Feature(name.clone()));
        }
    }
    if card.experts.is_empty() || card.experts.len() > EXPERTS_MAX {
        return Err(ArtifactError::Numbers("number of experts"));
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
            && !e.features.is_empty()
    };
    if !card.experts.iter().all(sound) {
        return Err(ArtifactError::Numbers("calibration"));
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
        assert_eq!(refused(&newer), "the model file is in format 9; this build reads format 1");
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
