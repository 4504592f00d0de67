//! Who a session belongs to, in pseudonyms only: keyed hashes made at the door.

use gaitway_models::Timestamp;
use serde::{Deserialize, Serialize};

const HEX: &[u8; 16] = b"0123456789abcdef";

macro_rules! pseudonym {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($prefix)?;
                // Written at once: ids stand in every incident and every recorded line.
                let mut hex = [0; 32];
                for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
                    pair[0] = HEX[usize::from(byte >> 4)];
                    pair[1] = HEX[usize::from(byte & 15)];
                }
                f.write_str(std::str::from_utf8(&hex).unwrap_or_default())
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
                if hex.len() != 32 {
                    return Err(ParsePseudonymError($prefix));
                }
                for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
                    match (char::from(pair[0]).to_digit(16), char::from(pair[1]).to_digit(16)) {
                        // Two digits of sixteen always fit a byte.
                        (Some(high), Some(low)) => *byte = (high << 4 | low) as u8,
                        _ => return Err(ParsePseudonymError($prefix)),
                    }
                }
                Ok($name(bytes))
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.collect_str(self) }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        write!(f, "{}", ParsePseudonymError($prefix))
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                d.deserialize_str(Text)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pseudonyms_read_back_as_written() {
        let session = SessionId(std::array::from_fn(|n| (n * 17) as u8));
        assert_eq!(session.to_string(), "s_00112233445566778899aabbccddeeff");
        assert_eq!(session.to_string().parse(), Ok(session));
        let json = serde_json::to_string(&session).unwrap();
        assert_eq!(serde_json::from_str::<SessionId>(&json).unwrap(), session);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::from_value::<SessionId>(value).unwrap(), session);
    }

    #[test]
    fn what_is_no_pseudonym_is_refused() {
        for text in [
            "",
            "s_",
            "u_00112233445566778899aabbccddeeff",
            "s_00112233445566778899aabbccddeef",
            "s_00112233445566778899aabbccddeefg",
            "s_+0112233445566778899aabbccddeeff",
            "s_é0112233445566778899aabbccddeef",
        ] {
            assert!(text.parse::<SessionId>().is_err(), "{text}");
        }
    }
}
