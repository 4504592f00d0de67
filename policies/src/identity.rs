//! Who a session belongs to, in pseudonyms only: keyed hashes made at the door.

use gaitway_models::Timestamp;
use serde::{Deserialize, Serialize};

macro_rules! pseudonym {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($prefix)?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
        impl std::str::FromStr for $name {
            type Err = ParsePseudonymError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let hex = text.strip_prefix($prefix).ok_or(ParsePseudonymError($prefix))?;
                let mut bytes = [0; 16];
                if hex.len() != 32 || !hex.is_ascii() { return Err(ParsePseudonymError($prefix)); }
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| ParsePseudonymError($prefix))?;
                }
                Ok($name(bytes))
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.collect_str(self) }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected {0} followed by 32 hexadecimal digits")]
pub struct ParsePseudonymError(&'static str);

pseudonym!(/// A login session: keyed hash of the session claim, or of Gaitway's own cookie.
    SessionId, "s_");
pseudonym!(/// The person behind sessions: keyed hash of issuer and subject claim.
    SubjectId, "u_");
pseudonym!(/// One token: keyed hash of jti, or of the whole token.
    TokenId, "t_");

/// The verified identity behind a request or telemetry batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub session: SessionId,
    pub subject: Option<SubjectId>,
    pub token: Option<TokenId>,
    /// When the token itself expires; a revocation lives at least this long.
    pub expires_at: Option<Timestamp>,
    /// When the token was issued, for subject-before-time revocations.
    pub issued_at: Option<Timestamp>,
    /// Verified group claims, for `user.groups`; at most 32.
    pub groups: Vec<String>,
}

impl Identity {
    /// The subject's pseudonym as rules see it; "" for a visitor without a login.
    pub fn user_id(&self) -> String {
        self.subject.map(|subject| subject.to_string()).unwrap_or_default()
    }
}
