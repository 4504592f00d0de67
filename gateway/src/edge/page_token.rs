//! The short-lived signed token that binds telemetry to one session and one page view.
//!
//! Must not know: where it travels.

use crate::secret::{self, InstallSecret, Purpose, Signature};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gaitway_models::Timestamp;
use gaitway_policies::SessionId;

/// Session, page number, time of issue.
const CLAIMS_BYTES: usize = 16 + 8 + 8;
const TOKEN_BYTES: usize = CLAIMS_BYTES + size_of::<Signature>();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken {
    pub session: SessionId,
    /// Random number of the page view.
    pub page: u64,
    pub issued_at: Timestamp,
}

impl PageToken {
    /// A token for a new page view; none if the system gives no randomness.
    pub fn fresh(session: SessionId, now: Timestamp) -> Option<PageToken> {
        let page = u64::from_le_bytes(secret::random().ok()?);
        Some(PageToken { session, page, issued_at: now })
    }

    pub fn seal(&self, secret: &InstallSecret) -> String {
        self.seal_for(secret, Purpose::PageToken)
    }

    pub fn seal_challenge(&self, secret: &InstallSecret) -> String {
        self.seal_for(secret, Purpose::Challenge)
    }

    pub fn open(sealed: &str, secret: &InstallSecret) -> Option<PageToken> {
        PageToken::open_for(sealed, secret, Purpose::PageToken)
    }

    pub fn open_challenge(sealed: &str, secret: &InstallSecret) -> Option<PageToken> {
        PageToken::open_for(sealed, secret, Purpose::Challenge)
    }

    fn seal_for(&self, secret: &InstallSecret, purpose: Purpose) -> String {
        let mut bytes = Vec::with_capacity(TOKEN_BYTES);
        bytes.extend_from_slice(&self.session.0);
        bytes.extend_from_slice(&self.page.to_le_bytes());
        bytes.extend_from_slice(&self.issued_at.0.to_le_bytes());
        let signature = secret.sign(purpose, &bytes);
        bytes.extend_from_slice(&signature);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn open_for(sealed: &str, secret: &InstallSecret, purpose: Purpose) -> Option<PageToken> {
        let mut bytes = [0; TOKEN_BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(sealed, &mut bytes).ok()?;
        if length != TOKEN_BYTES {
            return None;
        }
        let (claims, signature) = bytes.split_at(CLAIMS_BYTES);
        if !secret.is_signed(purpose, claims, signature) {
            return None;
        }
        let (session, numbers) = claims.split_at(16);
        let (page, issued_at) = numbers.split_at(8);
        Some(PageToken {
            session: SessionId(session.try_into().ok()?),
            page: u64::from_le_bytes(page.try_into().ok()?),
            issued_at: Timestamp(u64::from_le_bytes(issued_at.try_into().ok()?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_only_whole_and_for_its_purpose() {
        let secret = InstallSecret::from_text(b"thirty-two bytes of secret for a test", "test").unwrap();
        let token = PageToken::fresh(SessionId([3; 16]), Timestamp(1234)).unwrap();
        let sealed = token.seal(&secret);
        assert_eq!(PageToken::open(&sealed, &secret), Some(token));
        assert_eq!(PageToken::open_challenge(&sealed, &secret), None);
        let other = InstallSecret::from_text(b"thirty-two bytes of another test secret", "test").unwrap();
        assert_eq!(PageToken::open(&sealed, &other), None);
        assert_eq!(PageToken::open(&sealed[1..], &secret), None);
        assert_eq!(PageToken::open(&format!("{sealed}AA"), &secret), None);
        assert_eq!(PageToken::open("", &secret), None);
        for at in 0..sealed.len() - 1 {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).unwrap();
            assert_eq!(PageToken::open(&forged, &secret), None, "changed at {at}");
        }
    }
}
