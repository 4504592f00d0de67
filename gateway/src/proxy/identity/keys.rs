//! The keys that tokens are verified with: from a secret, a PEM file or a JWKS document.
//!
//! A key carries the algorithms it may be used with, so the token's header never chooses how a key is
//! read. Must not know: where a document came from, what a token says.

use super::IdentityError;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// Keys of one moment. A new set gets a new generation, so that identities cached under an older one
/// are verified again.
pub(super) struct KeySet {
    pub(super) generation: u64,
    keys: Vec<Key>,
}

struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
    /// What tells this key from others; keys themselves are never compared or printed.
    fingerprint: [u8; 32],
}

impl KeySet {
    pub(super) fn empty() -> KeySet {
        KeySet { generation: 0, keys: Vec::new() }
    }

    /// A secret or PEM public key, as the operator gave it. Every configured algorithm must fit it:
    /// a public key read as an HMAC secret is the oldest trick there is.
    pub(super) fn from_text(text: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, IdentityError> {
        let text = crate::secret::without_line_break(text);
        if text.trim_ascii().is_empty() {
            return Err(IdentityError::Key("the key is empty".into()));
        }
        let is_pem = text.windows(PEM_MARK.len()).any(|window| window == PEM_MARK);
        let key = if is_pem { pem_key(text, algorithms)? } else { DecodingKey::from_secret(text) };
        if let Some(misfit) =
            algorithms.iter().find(|algorithm| algorithm_family(**algorithm) != key.family())
        {
            let kind = if is_pem { "PEM public key of another kind" } else { "secret" };
            return Err(IdentityError::Key(format!("{misfit:?} cannot be used with this {kind}")));
        }
        if !is_pem && text.len() < SECRET_BYTES_ADVISED {
            tracing::warn!(
                key.bytes = text.len(),
                "the token secret is short enough to be guessed; use at least {SECRET_BYTES_ADVISED} bytes"
            );
        }
        let fingerprint = fingerprint(text);
        Ok(KeySet {
            generation: 1,
            keys: vec![Key { kid: None, algorithms: algorithms.to_vec(), key, fingerprint }],
        })
    }

    /// Usable signature keys of a JWKS document. Keys of other kinds, for encryption, symmetric or
    /// malformed are left out, as one odd key must not take the others with it.
    pub(super) fn from_jwks(document: &[u8], allowed: &[Algorithm]) -> Result<KeySet, JwksError> {
        let document: Jwks = serde_json::from_slice(document).map_err(|_| JwksError::Malformed)?;
        if document.keys.len() > JWKS_KEYS_MAX {
            return Err(JwksError::TooManyKeys(document.keys.len()));
        }
        let keys: Vec<Key> = document.keys.iter().filter_map(|key| jwks_key(key, allowed)).collect();
        if keys.is_empty() { Err(JwksError::NoKey) } else { Ok(KeySet { generation: 0, keys }) }
    }

    /// The one key for this algorithm and key id: the key of that id, else the only key without an id
    /// (an operator's own key has none). A token without `kid` is served if there is no choice to make.
    pub(super) fn find(&self, algorithm: Algorithm, kid: Option<&str>) -> Option<&DecodingKey> {
        let only = |fits: &dyn Fn(&Key) -> bool| {
            let mut fitting = self.keys.iter().filter(|key| key.algorithms.contains(&algorithm) && fits(key));
            let first = fitting.next()?;
            fitting.next().is_none().then_some(&first.key)
        };
        match kid {
            Some(_) => only(&|key| key.kid.as_deref() == kid).or_else(|| only(&|key| key.kid.is_none())),
            None => only(&|_| true),
        }
    }

    pub(super) fn is_same(&self, other: &KeySet) -> bool {
        self.keys.len() == other.keys.len()
            && self.keys.iter().zip(&other.keys).all(|(a, b)| {
                a.kid == b.kid && a.algorithms == b.algorithms && a.fingerprint == b.fingerprint
            })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

/// Why a JWKS document is not taken; the keys known so far stay.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum JwksError {
    #[error("not a JWKS document")]
    Malformed,
    #[error("{0} keys, more than {JWKS_KEYS_MAX}")]
    TooManyKeys(usize),
    #[error("no key for any accepted algorithm")]
    NoKey,
}

/// Reads names such as `RS256`; exactly as the standard spells them.
pub(super) fn parse_algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "HS256" => Algorithm::HS256,
        "HS384" => Algorithm::HS384,
        "HS512" => Algorithm::HS512,
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    })
}

pub(super) fn is_symmetric(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

fn algorithm_family(algorithm: Algorithm) -> jsonwebtoken::AlgorithmFamily {
    use jsonwebtoken::AlgorithmFamily::{Ec, Ed, Hmac, Rsa};
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Hmac,
        Algorithm::ES256 | Algorithm::ES384 => Ec,
        Algorithm::EdDSA => Ed,
        _ => Rsa,
    }
}

fn pem_key(text: &[u8], algorithms: &[Algorithm]) -> Result<DecodingKey, IdentityError> {
    let public = |label: &[u8]| text.windows(label.len()).any(|window| window == label);
    if !public(b"-----BEGIN PUBLIC KEY-----") && !public(b"-----BEGIN RSA PUBLIC KEY-----") {
        return Err(IdentityError::Key(
            "the PEM file holds no PUBLIC KEY (a private key or a certificate does not belong here)".into(),
        ));
    }
    if algorithms.iter().any(|algorithm| is_symmetric(*algorithm)) {
        return Err(IdentityError::Key("an HS algorithm cannot be used with a PEM public key".into()));
    }
    DecodingKey::from_rsa_pem(text)
        .ok()
        .filter(|_| algorithms.iter().any(|a| algorithm_family(*a) == jsonwebtoken::AlgorithmFamily::Rsa))
        .or_else(|| DecodingKey::from_ec_pem(text).ok())
        .or_else(|| DecodingKey::from_ed_pem(text).ok())
        .ok_or_else(|| IdentityError::Key("not a PEM public key for these algorithms".into()))
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct JwksKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

fn jwks_key(value: &serde_json::Value, allowed: &[Algorithm]) -> Option<Key> {
    let jwk = JwksKey::deserialize(value).ok()?;
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return None;
    }
    if jwk.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|o| o == "verify")) {
        return None;
    }
    let decode = |text: &Option<String>| {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text.as_deref()?).ok()
    };
    // A symmetric key at a public address would be everybody's; there is no arm for it.
    let (key, material, suited) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = (decode(&jwk.n)?, decode(&jwk.e)?);
            let algorithms: &[Algorithm] = &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ];
            (DecodingKey::from_rsa_raw_components(&n, &e), [n, e].concat(), algorithms)
        }
        ("EC", Some(curve @ ("P-256" | "P-384"))) => {
            let (bytes, algorithms): (usize, &[Algorithm]) =
                if curve == "P-256" { (32, &[Algorithm::ES256]) } else { (48, &[Algorithm::ES384]) };
            let (x, y) = (decode(&jwk.x)?, decode(&jwk.y)?);
            if x.len() != bytes || y.len() != bytes {
                return None;
            }
            // An uncompressed point: 4, x, y.
            let point = [&[4], &x[..], &y[..]].concat();
            (DecodingKey::from_ec_der(&point), point, algorithms)
        }
        ("OKP", Some("Ed25519")) => {
            let x = decode(&jwk.x).filter(|x| x.len() == 32)?;
            (DecodingKey::from_ed_der(&x), x, &[Algorithm::EdDSA][..])
        }
        _ => return None,
    };
    let named = match &jwk.alg {
        Some(name) => Some(parse_algorithm(name)?),
        None => None,
    };
    let algorithms: Vec<Algorithm> = suited
        .iter()
        .copied()
        .filter(|algorithm| allowed.contains(algorithm) && named.is_none_or(|named| named == *algorithm))
        .collect();
    if algorithms.is_empty() {
        return None;
    }
    Some(Key { kid: jwk.kid, algorithms, key, fingerprint: fingerprint(&material) })
}

fn fingerprint(material: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(material).into()
}

const PEM_MARK: &[u8] = b"-----BEGIN";
/// RFC 7518 §3.2: an HS256 key as long as the hash.
const SECRET_BYTES_ADVISED: usize = 32;
/// Providers publish two to five; a token without `kid` makes us look at each.
const JWKS_KEYS_MAX: usize = 64;
