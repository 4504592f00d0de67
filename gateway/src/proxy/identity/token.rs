//! One JSON Web Token: from bytes to verified claims, or a reason against it.
//!
//! Stricter than the standard where leniency has led to confusion: no unknown `crit`, no repeated
//! member, no text where a number belongs. Only the signature check is the library's; time is an
//! argument. Must not know: cookies, headers, caches.

use super::keys::{KeySet, parse_algorithm};
use crate::secret::InstallSecret;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gaitway_models::Timestamp;
use gaitway_policies::Identity;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

/// What a token must satisfy.
pub(super) struct Rules {
    pub(super) algorithms: Vec<jsonwebtoken::Algorithm>,
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
    pub(super) session_claims: Vec<String>,
    pub(super) subject_claim: String,
    pub(super) groups_claim: String,
    pub(super) leeway_ms: u64,
    pub(super) require_expiry: bool,
    pub(super) token_bytes_max: usize,
}

/// A token's identity and the moments between which it may be believed, leeway included.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) identity: Identity,
    pub(super) valid_from: Timestamp,
    /// The first moment at which it is no longer valid.
    pub(super) valid_until: Timestamp,
}

/// Why a token is not believed. Names a metric label, so it never carries anything of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    TooLong,
    Malformed,
    Algorithm,
    Type,
    Critical,
    UnknownKey,
    Signature,
    Claim,
    Expired,
    NotYet,
    Issuer,
    Audience,
}

impl Rejection {
    pub(super) fn label(self) -> &'static str {
        match self {
            Rejection::TooLong => "too_long",
            Rejection::Malformed => "malformed",
            Rejection::Algorithm => "algorithm",
            Rejection::Type => "type",
            Rejection::Critical => "critical",
            Rejection::UnknownKey => "unknown_key",
            Rejection::Signature => "signature",
            Rejection::Claim => "claim",
            Rejection::Expired => "expired",
            Rejection::NotYet => "not_yet",
            Rejection::Issuer => "issuer",
            Rejection::Audience => "audience",
        }
    }
}

pub(super) fn verify(
    token: &str,
    keys: &KeySet,
    rules: &Rules,
    secret: &InstallSecret,
    now: Timestamp,
) -> Result<Verified, Rejection> {
    let claims = open(token, keys, rules, &["jwt", "at+jwt"], now)?;
    // Hashes cover the signed part only: a signature can be rewritten without becoming invalid (ECDSA),
    // and a token must not escape its revocation that way.
    let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed).as_bytes();
    verified(claims, signed, rules, secret)
}

/// The identity that a token's claims give; `whole` names the token where they do not.
pub(super) fn verified(
    claims: Claims,
    whole: &[u8],
    rules: &Rules,
    secret: &InstallSecret,
) -> Result<Verified, Rejection> {
    let issuer = claims.issuer.as_deref().unwrap_or_default().as_bytes();
    let all = &claims.all;
    let token = match name(all, "jti")? {
        Some(jti) => secret.token(&[b"jti", issuer, &jti]),
        None => secret.token(&[b"whole", whole]),
    };
    let mut session = None;
    for claim in &rules.session_claims {
        if let Some(value) = name(all, claim)? {
            session = Some(secret.session(&[b"claim", issuer, claim.as_bytes(), &value]));
            break;
        }
    }
    let session = session.unwrap_or_else(|| secret.session(&[b"whole", whole]));
    let subject = name(all, &rules.subject_claim)?.map(|value| secret.subject(&[issuer, &value]));
    let identity = Identity {
        session,
        subject,
        token: Some(token),
        expires_at: claims.expires_at,
        issued_at: claims.issued_at,
        groups: groups(all.get(&rules.groups_claim)),
    };
    Ok(Verified { identity, valid_from: claims.valid_from, valid_until: claims.valid_until })
}

/// What a token says, once signature, header, time, issuer and audience are right.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) all: Map<String, Value>,
    pub(super) issuer: Option<String>,
    pub(super) expires_at: Option<Timestamp>,
    /// Some issuers leave `iat` out and give `nbf`, which is the same moment in practice.
    pub(super) issued_at: Option<Timestamp>,
    valid_from: Timestamp,
    valid_until: Timestamp,
}

/// Verifies a token of one of these types (in lower case, without `application/`; one that names no type
/// is taken for any).
pub(super) fn open(
    token: &str,
    keys: &KeySet,
    rules: &Rules,
    types: &[&str],
    now: Timestamp,
) -> Result<Claims, Rejection> {
    let Parts { header, algorithm, signed, payload, signature } = parts(token, rules, types)?;
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) => Some(kid.as_str()),
        Some(_) => return Err(Rejection::Malformed),
    };
    let key = keys.find(algorithm, kid).ok_or(Rejection::UnknownKey)?;
    match jsonwebtoken::crypto::verify(signature, signed.as_bytes(), key, algorithm) {
        Ok(true) => {}
        Ok(false) | Err(_) => return Err(Rejection::Signature),
    }
    check_claims(object(payload)?, rules, now)
}

/// Refuses what would be refused whatever its signature. What passes is believed in nothing.
pub(super) fn glance(token: &str, rules: &Rules, types: &[&str], now: Timestamp) -> Result<(), Rejection> {
    let parts = parts(token, rules, types)?;
    check_claims(object(parts.payload)?, rules, now).map(|_| ())
}

/// Who a token says has made it; nothing of it is believed yet.
pub(super) fn claimed_issuer(token: &str) -> Result<String, Rejection> {
    let payload = token.split('.').nth(1).ok_or(Rejection::Malformed)?;
    match object(payload)?.remove("iss") {
        Some(Value::String(issuer)) => Ok(issuer),
        _ => Err(Rejection::Issuer),
    }
}

/// A token taken apart; only its header is looked into.
struct Parts<'t> {
    header: Map<String, Value>,
    algorithm: jsonwebtoken::Algorithm,
    signed: &'t str,
    payload: &'t str,
    signature: &'t str,
}

fn parts<'t>(token: &'t str, rules: &Rules, types: &[&str]) -> Result<Parts<'t>, Rejection> {
    if token.len() > rules.token_bytes_max {
        return Err(Rejection::TooLong);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(Rejection::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(Rejection::Malformed)?;
    if payload.contains('.') || signature.is_empty() {
        return Err(Rejection::Malformed);
    }
    let header = object(header)?;
    let algorithm = check_header(&header, rules, types)?;
    Ok(Parts { header, algorithm, signed, payload, signature })
}

fn check_header(
    header: &Map<String, Value>,
    rules: &Rules,
    types: &[&str],
) -> Result<jsonwebtoken::Algorithm, Rejection> {
    let Some(Value::String(name)) = header.get("alg") else { return Err(Rejection::Algorithm) };
    let algorithm = parse_algorithm(name).ok_or(Rejection::Algorithm)?;
    if !rules.algorithms.contains(&algorithm) {
        return Err(Rejection::Algorithm);
    }
    // RFC 7515 §4.1.11: what is marked critical and not understood must be refused; we know no extension.
    if header.contains_key("crit") {
        return Err(Rejection::Critical);
    }
    // RFC 8725 §3.11: a logout token or a security event by the same issuer is no proof of a login.
    let typed_right = match header.get("typ") {
        None => true,
        Some(Value::String(name)) => {
            let name = name.to_ascii_lowercase();
            types.contains(&name.strip_prefix("application/").unwrap_or(&name))
        }
        Some(_) => false,
    };
    if typed_right { Ok(algorithm) } else { Err(Rejection::Type) }
}

/// Time, issuer and audience.
pub(super) fn check_claims(
    claims: Map<String, Value>,
    rules: &Rules,
    now: Timestamp,
) -> Result<Claims, Rejection> {
    let expires_at = moment(&claims, "exp")?;
    let not_before = moment(&claims, "nbf")?;
    let issued_at = moment(&claims, "iat")?;
    if expires_at.is_none() && rules.require_expiry {
        return Err(Rejection::Claim);
    }
    let valid_from = Timestamp(not_before.map_or(0, |at| at.0.saturating_sub(rules.leeway_ms)));
    let valid_until = Timestamp(expires_at.map_or(u64::MAX, |at| at.0.saturating_add(rules.leeway_ms)));
    if now >= valid_until {
        return Err(Rejection::Expired);
    }
    if now < valid_from {
        return Err(Rejection::NotYet);
    }
    let issuer = match claims.get("iss") {
        None => None,
        Some(Value::String(issuer)) => Some(issuer.clone()),
        Some(_) => return Err(Rejection::Issuer),
    };
    if rules.issuer.is_some() && rules.issuer != issuer {
        return Err(Rejection::Issuer);
    }
    if let Some(audience) = &rules.audience
        && !is_meant_for(claims.get("aud"), audience)
    {
        return Err(Rejection::Audience);
    }
    let issued_at = issued_at.or(not_before);
    Ok(Claims { all: claims, issuer, expires_at, issued_at, valid_from, valid_until })
}

/// A NumericDate (seconds, possibly with a fraction). A text, list or negative number is no date.
pub(super) fn moment(claims: &Map<String, Value>, claim: &str) -> Result<Option<Timestamp>, Rejection> {
    let Some(value) = claims.get(claim) else { return Ok(None) };
    let Value::Number(number) = value else { return Err(Rejection::Claim) };
    if let Some(seconds) = number.as_u64() {
        return Ok(Some(Timestamp(seconds.min(SECONDS_MAX) * 1000)));
    }
    match number.as_f64() {
        Some(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped to the range"
            )]
            let ms = (seconds.min(SECONDS_MAX as f64) * 1000.0) as u64;
            Ok(Some(Timestamp(ms)))
        }
        _ => Err(Rejection::Claim),
    }
}

/// A claim that names something: a text that is not empty or a whole number, told apart by the first
/// byte so that 5 and "5" stay two names. `null` counts as absent.
pub(super) fn name(claims: &Map<String, Value>, claim: &str) -> Result<Option<Vec<u8>>, Rejection> {
    match claims.get(claim) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some([b"t", text.as_bytes()].concat())),
        Some(Value::Number(number)) if number.is_u64() || number.is_i64() => {
            Ok(Some([b"n", number.to_string().as_bytes()].concat()))
        }
        Some(_) => Err(Rejection::Claim),
    }
}

fn is_meant_for(audience: Option<&Value>, wanted: &str) -> bool {
    match audience {
        Some(Value::String(one)) => one == wanted,
        Some(Value::Array(many)) => {
            many.iter().all(Value::is_string) && many.iter().any(|one| one.as_str() == Some(wanted))
        }
        _ => false,
    }
}

/// Groups only ever widen what a policy may say of a person, so an odd claim means none, not a refusal.
pub(super) fn groups(claim: Option<&Value>) -> Vec<String> {
    let fits = |text: &&str| !text.is_empty() && text.len() <= GROUP_BYTES_MAX;
    match claim {
        Some(Value::String(one)) => Some(one.as_str()).filter(fits).map(str::to_owned).into_iter().collect(),
        Some(Value::Array(many)) => {
            many.iter().filter_map(Value::as_str).filter(fits).take(GROUPS_MAX).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

fn object(part: &str) -> Result<Map<String, Value>, Rejection> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejection::Malformed)?;
    distinct(&json).ok_or(Rejection::Malformed)
}

/// A JSON object none of whose members occurs twice.
pub(super) fn distinct(json: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(json).ok().map(|Distinct(object)| object)
}

/// A JSON object whose members are all named differently. Of two `exp` one reader takes the first and
/// another the last; we take neither.
struct Distinct(Map<String, Value>);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Distinct, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Distinct;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Distinct, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a member occurs twice"));
                    }
                }
                Ok(Distinct(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The year 9999; beyond it dates overflow in other people's software.
const SECONDS_MAX: u64 = 253_402_300_799;
/// As many as `Identity` promises.
const GROUPS_MAX: usize = 32;
/// A group is a name, not a text; directory paths of this length exist.
const GROUP_BYTES_MAX: usize = 256;
