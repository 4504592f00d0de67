//! An issuer of tokens for tests: signs whatever it is told, honest or not.

use super::token::Rules;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaKeyPair,
};
use aws_lc_rs::{hmac, rsa::KeySize};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use gaitway_models::Timestamp;

pub(super) const NOW: Timestamp = Timestamp(1_800_000_000_000);
pub(super) const NOW_SECONDS: u64 = NOW.0 / 1000;

/// A signing key of any kind.
pub(super) enum Issuer {
    Secret(Vec<u8>),
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Issuer {
    pub(super) fn secret() -> Issuer {
        Issuer::Secret(b"an HMAC secret of more than 32 bytes".to_vec())
    }
    pub(super) fn rsa() -> Issuer {
        Issuer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }
    pub(super) fn p256() -> Issuer {
        Issuer::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }
    pub(super) fn p384() -> Issuer {
        Issuer::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap())
    }
    pub(super) fn ed() -> Issuer {
        Issuer::Ed(Ed25519KeyPair::generate().unwrap())
    }

    /// What the operator puts into `key_file`.
    pub(super) fn key_text(&self) -> Vec<u8> {
        let der = match self {
            Issuer::Secret(secret) => return secret.clone(),
            Issuer::Rsa(key) => key.public_key().as_der().unwrap(),
            Issuer::P256(key) | Issuer::P384(key) => key.public_key().as_der().unwrap(),
            Issuer::Ed(key) => key.public_key().as_der().unwrap(),
        };
        let body = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> =
            body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n")).into_bytes()
    }

    pub(super) fn jwk(&self, kid: &str) -> serde_json::Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Issuer::Secret(secret) => serde_json::json!({"kty": "oct", "kid": kid, "k": encode(secret)}),
            Issuer::Rsa(key) => serde_json::json!({
                "kty": "RSA", "kid": kid, "use": "sig",
                "n": encode(key.public_key().modulus().big_endian_without_leading_zero()),
                "e": encode(key.public_key().exponent().big_endian_without_leading_zero()),
            }),
            Issuer::P256(key) | Issuer::P384(key) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                serde_json::json!({"kty": "EC", "crv": curve, "kid": kid, "x": encode(x), "y": encode(y)})
            }
            Issuer::Ed(key) => serde_json::json!({
                "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": encode(key.public_key().as_ref()),
            }),
        }
    }

    /// The usual algorithm of this kind of key.
    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Issuer::Secret(_) => "HS256",
            Issuer::Rsa(_) => "RS256",
            Issuer::P256(_) => "ES256",
            Issuer::P384(_) => "ES384",
            Issuer::Ed(_) => "EdDSA",
        }
    }

    /// A token with these header and payload texts, signed for real.
    pub(super) fn token(&self, header: &str, payload: &str) -> String {
        self.token_as(self.algorithm(), header, payload)
    }

    /// The same, signed with `algorithm`, whatever the header says.
    pub(super) fn token_as(&self, algorithm: &str, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", part(header), part(payload));
        let signature = self.signature(algorithm, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A plain honest token.
    pub(super) fn honest(&self, payload: &str) -> String {
        self.token(&format!(r#"{{"alg":"{}","typ":"JWT"}}"#, self.algorithm()), payload)
    }

    pub(super) fn signature(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Issuer::Secret(secret) => {
                let algorithm = match algorithm {
                    "HS384" => hmac::HMAC_SHA384,
                    "HS512" => hmac::HMAC_SHA512,
                    _ => hmac::HMAC_SHA256,
                };
                hmac::sign(&hmac::Key::new(algorithm, secret), message).as_ref().to_vec()
            }
            Issuer::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let encoding: &'static dyn aws_lc_rs::signature::RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                key.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Issuer::P256(key) | Issuer::P384(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Issuer::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }
}

pub(super) fn part(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

pub(super) fn rules(algorithms: &[&str]) -> Rules {
    Rules {
        algorithms: algorithms.iter().map(|name| super::keys::parse_algorithm(name).unwrap()).collect(),
        issuer: Some("https://issuer.example".into()),
        audience: Some("shop".into()),
        session_claims: vec!["sid".into(), "jti".into()],
        subject_claim: "sub".into(),
        groups_claim: "groups".into(),
        leeway_ms: 30_000,
        require_expiry: true,
        token_bytes_max: 8192,
    }
}
