//! Every known way to get a token believed that should not be, against every kind of key. None may.

use super::issuer::{Issuer, NOW, NOW_SECONDS, part, rules};
use super::keys::KeySet;
use super::token::{Rejection, Rules, verify};
use crate::secret::InstallSecret;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};

/// The attacker's wish.
fn payload() -> String {
    claims("")
}

/// An honest payload with members added or, where named again, replaced.
fn claims(changes: &str) -> String {
    let mut claims = serde_json::json!({
        "iss": "https://issuer.example", "aud": "shop", "sub": "alice", "sid": "victim", "jti": "1",
        "exp": NOW_SECONDS + 600, "nbf": NOW_SECONDS - 60, "iat": NOW_SECONDS - 60,
    });
    let changes: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&format!("{{{changes}}}")).unwrap();
    for (name, value) in changes {
        claims[name.as_str()] = value;
    }
    claims.to_string()
}

fn without(claim: &str) -> String {
    let mut claims: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&payload()).unwrap();
    claims.remove(claim).unwrap();
    serde_json::to_string(&claims).unwrap()
}

struct World {
    name: &'static str,
    issuer: Issuer,
    other: Issuer,
    keys: KeySet,
    rules: Rules,
}

impl World {
    fn new(name: &'static str, issuer: Issuer, other: Issuer) -> World {
        let rules = rules(&[issuer.algorithm()]);
        let keys = KeySet::from_text(&issuer.key_text(), &rules.algorithms).unwrap();
        World { name, issuer, other, keys, rules }
    }

    /// The same issuer behind a JWKS address.
    fn with_jwks(mut self, name: &'static str) -> World {
        let document = serde_json::json!({"keys": [self.issuer.jwk("current")]}).to_string();
        self.keys = KeySet::from_jwks(document.as_bytes(), &self.rules.algorithms).unwrap();
        self.name = name;
        self
    }
}

fn worlds() -> Vec<World> {
    let other_secret = || Issuer::Secret(b"somebody else's secret, also long enough".to_vec());
    vec![
        World::new("secret", Issuer::secret(), other_secret()),
        World::new("rsa", Issuer::rsa(), Issuer::rsa()),
        World::new("p256", Issuer::p256(), Issuer::p256()),
        World::new("p384", Issuer::p384(), Issuer::p384()),
        World::new("ed", Issuer::ed(), Issuer::ed()),
        World::new("rsa", Issuer::rsa(), Issuer::rsa()).with_jwks("rsa jwks"),
        World::new("p256", Issuer::p256(), Issuer::p256()).with_jwks("p256 jwks"),
        World::new("ed", Issuer::ed(), Issuer::ed()).with_jwks("ed jwks"),
    ]
}

#[test]
fn no_forgery_is_believed() {
    let secret = InstallSecret::from_text(&[1; 32], "test").unwrap();
    let mut tried = 0;
    for world in worlds() {
        let check = |token: &str| verify(token, &world.keys, &world.rules, &secret, NOW);
        // The counter-test: were honest tokens refused too, the forgeries would prove nothing.
        let honest = world.issuer.honest(&payload());
        assert!(
            check(&honest).is_ok(),
            "{}: an honest token is refused: {:?}",
            world.name,
            check(&honest).err()
        );
        let mut forgeries = Vec::new();
        algorithm_forgeries(&world, &mut forgeries);
        key_forgeries(&world, &mut forgeries);
        claim_forgeries(&world, &mut forgeries);
        shape_forgeries(&world, &honest, &mut forgeries);
        for (name, token) in &forgeries {
            assert!(check(token).is_err(), "{}: believed: {name}", world.name);
        }
        tried += forgeries.len();
        assert!(forgeries.len() >= 200, "{}: only {} forgeries", world.name, forgeries.len());
    }
    println!("{tried} forgeries, none believed");
}

type Forgeries = Vec<(String, String)>;

fn algorithm_forgeries(world: &World, forgeries: &mut Forgeries) {
    let own = world.issuer.algorithm();
    let signed_by_issuer = |header: &str| world.issuer.token(header, &payload());
    let none = [
        "none",
        "None",
        "NONE",
        "nOnE",
        "noNe",
        "NonE",
        "none ",
        " none",
        "none\\u0000",
        "",
        "null",
        "nul",
        "n\\u043ene",
    ];
    for alg in none {
        let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
        let signed = format!("{}.{}", part(&header), part(&payload()));
        forgeries.push((format!("alg {alg:?}, no signature"), format!("{signed}.")));
        forgeries.push((format!("alg {alg:?}, two parts"), signed.clone()));
        forgeries.push((format!("alg {alg:?}, some signature"), format!("{signed}.AAAA")));
        forgeries.push((format!("alg {alg:?}, the issuer's signature"), signed_by_issuer(&header)));
    }
    // Genuine signatures under a name that is not exactly the configured one.
    for alg in [
        own.to_lowercase(),
        format!("{own} "),
        format!(" {own}"),
        format!("{own}\\u0000"),
        format!("{own}/{own}"),
        own.replace("256", "257"),
        "HS1".into(),
        "RSA".into(),
        "ES256K".into(),
        "Ed25519".into(),
        "dir".into(),
        "A256KW".into(),
    ] {
        if alg == own {
            continue;
        }
        forgeries.push((format!("alg {alg:?}"), signed_by_issuer(&format!(r#"{{"alg":"{alg}"}}"#))));
    }
    for alg in ["5", "true", "null", "[]", "{}", r#"["ALG"]"#, r#"{"name":"ALG"}"#] {
        let alg = alg.replace("ALG", own);
        forgeries.push((format!("alg {alg}"), signed_by_issuer(&format!(r#"{{"alg":{alg}}}"#))));
    }
    forgeries.push(("no alg".into(), signed_by_issuer(r#"{"typ":"JWT"}"#)));
    forgeries.push(("alg twice".into(), signed_by_issuer(&format!(r#"{{"alg":"none","alg":"{own}"}}"#))));
    forgeries.push((
        "alg twice, reversed".into(),
        signed_by_issuer(&format!(r#"{{"alg":"{own}","alg":"none"}}"#)),
    ));
    // The oldest confusion: the public key, which everybody knows, as an HMAC secret.
    let pem = world.other.key_text();
    let public_texts = [
        world.issuer.key_text(),
        world.issuer.key_text().trim_ascii_end().to_vec(),
        String::from_utf8_lossy(&world.issuer.key_text()).replace('\n', "\r\n").into_bytes(),
        pem,
        world.issuer.jwk("current").to_string().into_bytes(),
    ];
    for (n, text) in public_texts.into_iter().enumerate() {
        if own == "HS256" && n < 2 {
            continue;
        }
        for alg in ["HS256", "HS384", "HS512"] {
            let token =
                Issuer::Secret(text.clone()).token_as(alg, &format!(r#"{{"alg":"{alg}"}}"#), &payload());
            if own != "HS256" || n != 2 || alg != "HS256" {
                forgeries.push((format!("{alg} with public text {n}"), token));
            }
        }
    }
    // Right key, right signature for the header's algorithm, but one the operator did not allow.
    for (issuer, alg) in [
        (Issuer::secret(), "HS384"),
        (Issuer::secret(), "HS512"),
        (Issuer::rsa(), "RS384"),
        (Issuer::rsa(), "PS256"),
        (Issuer::p384(), "ES384"),
        (Issuer::ed(), "EdDSA"),
    ] {
        let same_kind = std::mem::discriminant(&issuer) == std::mem::discriminant(&world.issuer);
        let signer = if same_kind { &world.issuer } else { &issuer };
        if alg != own {
            let token = signer.token_as(alg, &format!(r#"{{"alg":"{alg}"}}"#), &payload());
            forgeries.push((format!("{alg}, not allowed"), token.clone()));
        }
        let token = signer.token_as(alg, &format!(r#"{{"alg":"{own}"}}"#), &payload());
        if alg != own || !same_kind {
            forgeries.push((format!("{alg} signature called {own}"), token));
        }
    }
}

fn key_forgeries(world: &World, forgeries: &mut Forgeries) {
    let own = world.issuer.algorithm();
    let other = &world.other;
    forgeries.push(("somebody else's key".into(), other.honest(&payload())));
    for secret in ["", "\0", " ", "secret", "null", "undefined", "key"] {
        for alg in ["HS256", "HS384", "HS512"] {
            let token =
                Issuer::Secret(secret.into()).token_as(alg, &format!(r#"{{"alg":"{alg}"}}"#), &payload());
            forgeries.push((format!("{alg} with secret {secret:?}"), token));
        }
    }
    let jwk = other.jwk("current");
    let headers = [
        format!(r#"{{"alg":"{own}","jwk":{jwk}}}"#),
        format!(r#"{{"alg":"{own}","jwk":{jwk},"kid":"current"}}"#),
        format!(r#"{{"alg":"{own}","jku":"https://attacker.example/jwks.json"}}"#),
        format!(r#"{{"alg":"{own}","jku":"http://127.0.0.1:1/jwks.json","kid":"current"}}"#),
        format!(r#"{{"alg":"{own}","jku":"file:///etc/passwd"}}"#),
        format!(r#"{{"alg":"{own}","x5u":"https://attacker.example/cert.pem"}}"#),
        format!(r#"{{"alg":"{own}","x5c":["MIIB"]}}"#),
        format!(r#"{{"alg":"{own}","x5t":"AAAA","x5t#S256":"AAAA"}}"#),
        format!(r#"{{"alg":"{own}","jwks":{{"keys":[{jwk}]}}}}"#),
        format!(r#"{{"alg":"{own}","crit":[]}}"#),
    ];
    for header in headers {
        forgeries.push((format!("other key, {header}"), other.token(&header, &payload())));
    }
    for kid in [
        "../../../../dev/null",
        "/dev/null",
        "/etc/hostname",
        "' UNION SELECT 'key' --",
        "1; sleep 5",
        "|id",
        "$(id)",
        "current\\u0000",
        "CURRENT",
        "",
        " ",
        "*",
        "%00",
        "http://attacker.example/",
        "${jndi:ldap://attacker.example/}",
    ] {
        let header = format!(r#"{{"alg":"{own}","kid":"{kid}"}}"#);
        forgeries.push((format!("other key, kid {kid:?}"), other.token(&header, &payload())));
        let empty = Issuer::Secret(Vec::new()).token_as(
            "HS256",
            &format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#),
            &payload(),
        );
        forgeries.push((format!("empty secret, kid {kid:?}"), empty));
    }
    for kid in ["5", "null", "true", "[]", "{}", r#"["current"]"#] {
        let header = format!(r#"{{"alg":"{own}","kid":{kid}}}"#);
        forgeries.push((format!("kid {kid}"), world.issuer.token(&header, &payload())));
    }
    // Extensions marked critical, genuinely signed: we understand none.
    for crit in [r#"["b64"],"b64":false"#, r#"["exp"]"#, r#"["x"],"x":1"#, "[]", "true", "null", r#""b64""#] {
        let header = format!(r#"{{"alg":"{own}","crit":{crit}}}"#);
        forgeries.push((format!("crit {crit}"), world.issuer.token(&header, &payload())));
    }
    // Genuine tokens of the issuer that are no logins.
    for typ in [
        r#""logout+jwt""#,
        r#""secevent+jwt""#,
        r#""dpop+jwt""#,
        r#""JWE""#,
        r#""JWS""#,
        r#""""#,
        "5",
        "null",
        "[]",
    ] {
        let header = format!(r#"{{"alg":"{own}","typ":{typ}}}"#);
        forgeries.push((format!("typ {typ}"), world.issuer.token(&header, &payload())));
    }
}

fn claim_forgeries(world: &World, forgeries: &mut Forgeries) {
    let mut push = |name: String, payload: String| forgeries.push((name, world.issuer.honest(&payload)));
    let (past, future) = (NOW_SECONDS - 31, NOW_SECONDS + 31);
    let moments = [
        r#""9999999999""#,
        r#""2099-01-01T00:00:00Z""#,
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "[9999999999]",
        r#"{"$date":9999999999}"#,
        "-1",
        "-9999999999",
        "-0.5",
        r#""NaN""#,
        r#""Infinity""#,
        r#""""#,
    ];
    for claim in ["exp", "nbf", "iat"] {
        for moment in moments {
            push(format!("{claim} {moment}"), claims(&format!(r#""{claim}":{moment}"#)));
        }
    }
    // Not JSON at all, though lenient readers take them.
    for number in [
        "NaN",
        "Infinity",
        "1e999",
        "0x7fffffff",
        "+9999999999",
        "9_999_999_999",
        "09999999999",
        "9999999999.",
    ] {
        push(format!("exp {number}"), payload().replace(&(NOW_SECONDS + 600).to_string(), number));
    }
    push("exp passed".into(), claims(&format!(r#""exp":{past}"#)));
    push("exp passed, fraction".into(), claims(&format!(r#""exp":{past}.999"#)));
    push("exp at the edge of the leeway".into(), claims(&format!(r#""exp":{}"#, NOW_SECONDS - 30)));
    push("exp zero".into(), claims(r#""exp":0"#));
    push("nbf ahead".into(), claims(&format!(r#""nbf":{future}"#)));
    push("nbf far ahead".into(), claims(r#""nbf":9999999999"#));
    push("nbf in milliseconds".into(), claims(&format!(r#""nbf":{}"#, NOW.0)));
    push("no exp".into(), without("exp"));
    push("no iss".into(), without("iss"));
    push("no aud".into(), without("aud"));
    for issuer in [
        r#""https://issuer.example/""#,
        r#""https://ISSUER.example""#,
        r#""http://issuer.example""#,
        r#""issuer.example""#,
        r#""https://issuer.example.attacker.example""#,
        r#""https://attacker.example""#,
        r#""""#,
        "null",
        "5",
        r#"["https://issuer.example"]"#,
        r#"["https://attacker.example","https://issuer.example"]"#,
        "{}",
        r#""https://issuer.example ""#,
        r#""https://issuer.example\u0000""#,
    ] {
        push(format!("iss {issuer}"), claims(&format!(r#""iss":{issuer}"#)));
    }
    for audience in [
        r#""Shop""#,
        r#""shop ""#,
        r#""shop2""#,
        r#""other""#,
        r#""""#,
        "null",
        "5",
        "true",
        "[]",
        r#"["other"]"#,
        r#"[["shop"]]"#,
        r#"["shop",5]"#,
        r#"["shop",null]"#,
        r#"{"shop":true}"#,
        r#""shop,other""#,
        r#""other shop""#,
    ] {
        push(format!("aud {audience}"), claims(&format!(r#""aud":{audience}"#)));
    }
    for value in ["[]", "{}", "true", "false", "1.5", r#""""#, r#"["victim"]"#, r#"{"id":"victim"}"#] {
        for claim in ["sid", "jti", "sub"] {
            push(format!("{claim} {value}"), claims(&format!(r#""{claim}":{value}"#)));
        }
    }
    for (claim, value) in [
        ("exp", "9999999999"),
        ("exp", "0"),
        ("sid", r#""other""#),
        ("sub", r#""bob""#),
        ("iss", r#""https://issuer.example""#),
        ("aud", r#""shop""#),
        ("nbf", "0"),
        ("jti", r#""2""#),
        ("role", r#""a","role":"b""#),
    ] {
        let first = payload().replacen('{', &format!(r#"{{"{claim}":{value},"#), 1);
        let mut last = payload();
        last.truncate(last.len() - 1);
        if claim == "role" {
            push("a repeated claim nobody asked for".into(), first);
            continue;
        }
        push(format!("{claim} twice, first"), first);
        push(format!("{claim} twice, last"), format!(r#"{last},"{claim}":{value}}}"#));
        push(
            format!("{claim} twice, escaped"),
            format!(r#"{last},"\u{:04x}{}":{value}}}"#, u32::from(claim.as_bytes()[0]), &claim[1..]),
        );
    }
    for payload in [
        "",
        "null",
        "5",
        "\"alice\"",
        "[]",
        "{",
        "{}",
        "not json",
        "[{}]",
        "{\"exp\":9999999999",
        "\u{feff}{}",
    ] {
        push(format!("payload {payload:?}"), payload.to_owned());
    }
    push("text after the payload".into(), format!("{} x", payload()));
    push("two payloads".into(), format!("{}{}", payload(), payload()));
    push(
        "deeply nested".into(),
        claims(&format!(r#""x":{}{}"#, "[".repeat(120), "]".repeat(120))).replace("[[", "[[[[[[[["),
    );
    push("oversized".into(), claims(&format!(r#""x":"{}""#, "a".repeat(8192))));
}

fn shape_forgeries(world: &World, honest: &str, forgeries: &mut Forgeries) {
    let parts: Vec<&str> = honest.split('.').collect();
    let (header, payload_part, signature) = (parts[0], parts[1], parts[2]);
    let mut push = |name: String, token: String| forgeries.push((name, token));
    for length in [0, 1, header.len(), header.len() + 1, honest.len() / 2, honest.len() - 1] {
        push(format!("cut to {length}"), honest[..length].to_owned());
    }
    for cut in [1, 2, 4, signature.len() / 2, signature.len() - 1, signature.len()] {
        push(format!("signature cut by {cut}"), honest[..honest.len() - cut].to_owned());
    }
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let with_signature = |bytes: &[u8]| format!("{header}.{payload_part}.{}", URL_SAFE_NO_PAD.encode(bytes));
    for (name, bytes) in [
        ("zero", vec![0; raw.len()]),
        ("one zero byte", vec![0]),
        ("ones", vec![0xff; raw.len()]),
        ("longer", [&raw[..], &[0]].concat()),
        ("doubled", [&raw[..], &raw[..]].concat()),
        ("reversed", raw.iter().rev().copied().collect()),
        // CVE-2022-21449: r = s = 0 verified everything; and the DER form instead of the fixed one.
        ("r and s zero in DER", vec![0x30, 6, 2, 1, 0, 2, 1, 0]),
    ] {
        push(format!("signature {name}"), with_signature(&bytes));
    }
    for bit in [0, 7, raw.len() * 4, raw.len() * 8 - 1] {
        let mut flipped = raw.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        push(format!("signature bit {bit} flipped"), with_signature(&flipped));
    }
    let other = world.issuer.honest(&claims(r#""sid":"mine""#));
    let other: Vec<&str> = other.split('.').collect();
    push("another token's signature".into(), format!("{header}.{payload_part}.{}", other[2]));
    push("another token's payload".into(), format!("{header}.{}.{signature}", other[1]));
    push("payload changed".into(), format!("{header}.{}.{signature}", part(&claims(r#""sub":"admin""#))));
    push("header changed".into(), format!("{}.{payload_part}.{signature}", part(r#"{"alg":"none"}"#)));
    push("no signature".into(), format!("{header}.{payload_part}."));
    push("no header".into(), format!(".{payload_part}.{signature}"));
    push("no payload".into(), format!("{header}..{signature}"));
    push("two parts".into(), format!("{header}.{payload_part}"));
    push("four parts".into(), format!("{honest}.{signature}"));
    push("five parts, as JWE has".into(), format!("{honest}.AAAA.AAAA"));
    push("a dot before".into(), format!(".{honest}"));
    push("a dot after".into(), format!("{honest}."));
    push(
        "JSON serialisation".into(),
        format!(r#"{{"protected":"{header}","payload":"{payload_part}","signature":"{signature}"}}"#),
    );
    for (name, character) in [
        ("space", " "),
        ("line break", "\n"),
        ("NUL", "\0"),
        ("tab", "\t"),
        ("padding", "="),
        ("percent", "%00"),
    ] {
        push(format!("{name} at the end"), format!("{honest}{character}"));
        push(format!("{name} at the start"), format!("{character}{honest}"));
        push(format!("{name} within"), honest.replacen('.', &format!("{character}."), 1));
    }
    // Other base64 alphabets and paddings of the same bytes: one token has one spelling.
    let standard = STANDARD.encode(&raw);
    if standard != signature {
        push("standard base64".into(), format!("{header}.{payload_part}.{standard}"));
    }
    let padded = URL_SAFE.encode(URL_SAFE_NO_PAD.decode(payload_part).unwrap());
    push("padded payload".into(), format!("{header}.{padded}=.{signature}"));
    push("non-zero trailing bits".into(), {
        let mut bytes = honest.to_owned().into_bytes();
        let last = bytes.len() - 1;
        bytes[last] = if bytes[last] == b'B' { b'C' } else { b'B' };
        String::from_utf8(bytes).unwrap()
    });
    for junk in [
        "",
        ".",
        "..",
        "...",
        "null",
        "undefined",
        "Bearer",
        "eyJ",
        "a.b.c",
        "\u{fffd}.\u{fffd}.\u{fffd}",
        "🦀.🦀.🦀",
    ] {
        push(format!("junk {junk:?}"), junk.to_owned());
    }
    push("a megabyte".into(), "a".repeat(1 << 20));
    push("a megabyte of dots".into(), ".".repeat(1 << 20));
}

#[test]
fn a_private_key_a_certificate_or_an_empty_key_is_refused_at_start() {
    let allowed = rules(&["RS256"]).algorithms;
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    for text in [
        "",
        "\n",
        "  \n",
        &pem("PRIVATE KEY"),
        &pem("RSA PRIVATE KEY"),
        &pem("CERTIFICATE"),
        &pem("PUBLIC KEY"),
    ] {
        assert!(KeySet::from_text(text.as_bytes(), &allowed).is_err(), "{text:?}");
    }
}

#[test]
fn a_public_key_is_never_an_hmac_secret() {
    for issuer in [Issuer::rsa(), Issuer::p256(), Issuer::ed()] {
        for algorithms in
            [&["HS256"][..], &["HS512"], &["RS256", "HS256"], &["ES256", "HS256"], &["EdDSA", "HS256"]]
        {
            assert!(
                KeySet::from_text(&issuer.key_text(), &rules(algorithms).algorithms).is_err(),
                "{algorithms:?}"
            );
        }
    }
}

#[test]
fn an_algorithm_that_does_not_fit_the_key_is_refused_at_start() {
    for (issuer, algorithm) in [
        (Issuer::rsa(), "ES256"),
        (Issuer::p256(), "RS256"),
        (Issuer::ed(), "RS256"),
        (Issuer::secret(), "RS256"),
    ] {
        assert!(
            KeySet::from_text(&issuer.key_text(), &rules(&[algorithm]).algorithms).is_err(),
            "{algorithm}"
        );
    }
}

#[test]
fn every_algorithm_works_with_its_key() {
    let secret = InstallSecret::from_text(&[1; 32], "test").unwrap();
    for (issuer, algorithms) in [
        (Issuer::secret(), &["HS256", "HS384", "HS512"][..]),
        (Issuer::rsa(), &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (Issuer::p256(), &["ES256"]),
        (Issuer::p384(), &["ES384"]),
        (Issuer::ed(), &["EdDSA"]),
    ] {
        let rules = rules(algorithms);
        let keys = KeySet::from_text(&issuer.key_text(), &rules.algorithms).unwrap();
        for algorithm in algorithms {
            let token = issuer.token_as(algorithm, &format!(r#"{{"alg":"{algorithm}"}}"#), &payload());
            let verified = verify(&token, &keys, &rules, &secret, NOW);
            assert!(verified.is_ok(), "{algorithm}: {:?}", verified.err());
        }
    }
}

#[test]
fn a_rewritten_ecdsa_signature_keeps_the_token_id() {
    let issuer = Issuer::p256();
    let mut rules = rules(&["ES256"]);
    rules.session_claims = Vec::new();
    let keys = KeySet::from_text(&issuer.key_text(), &rules.algorithms).unwrap();
    let secret = InstallSecret::from_text(&[1; 32], "test").unwrap();
    let token = issuer.honest(&without("jti"));
    // Signing anew gives another valid signature of the same text, as an attacker gets by negating s.
    let again = issuer.honest(&without("jti"));
    assert_ne!(token, again);
    let first = verify(&token, &keys, &rules, &secret, NOW).unwrap().identity;
    let second = verify(&again, &keys, &rules, &secret, NOW).unwrap().identity;
    assert_eq!(first, second);
}

#[test]
fn leeway_counts_on_both_sides() {
    let issuer = Issuer::secret();
    let rules = rules(&["HS256"]);
    let keys = KeySet::from_text(&issuer.key_text(), &rules.algorithms).unwrap();
    let secret = InstallSecret::from_text(&[1; 32], "test").unwrap();
    let check =
        |changes: String| verify(&issuer.honest(&claims(&changes)), &keys, &rules, &secret, NOW).map(|_| ());
    assert_eq!(check(format!(r#""exp":{}"#, NOW_SECONDS - 29)), Ok(()));
    assert_eq!(check(format!(r#""exp":{}"#, NOW_SECONDS - 30)), Err(Rejection::Expired));
    assert_eq!(check(format!(r#""nbf":{}"#, NOW_SECONDS + 30)), Ok(()));
    assert_eq!(check(format!(r#""nbf":{}"#, NOW_SECONDS + 31)), Err(Rejection::NotYet));
    assert_eq!(check(format!(r#""exp":{}.5"#, NOW_SECONDS + 60)), Ok(()));
}
