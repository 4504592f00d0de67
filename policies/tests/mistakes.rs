//! A bad policy file is refused with its mistakes, whatever is in it: a reload must never end the gateway.

use gaitway_policies::PolicySet;
use gaitway_policies::condition::Condition;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FILES: &[&str] = &[
    include_str!("../default.yaml"),
    include_str!("../strict.yaml"),
    include_str!("../login-only.yaml"),
    include_str!("../api.yaml"),
];
const SCRAPS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    ":",
    " - ",
    "\n",
    "|",
    ">",
    "&a",
    "*a",
    "!x",
    "#",
    "? ",
    "%",
    "`",
    "\t",
    "\u{0}",
    "\u{feff}",
    "é",
    "🦀",
    "99999999999999999999",
    "-",
    "(",
    ")",
    "&&",
    "||",
    "!",
    "?",
    "in",
    ".",
    "..",
    "1e999",
    "0x",
    "null",
    "r\"",
    "\\",
    "\\u",
    "\\x",
    "b'",
    "1u",
    "exists(",
    "{a:1}",
    "has(",
    ",",
    "<",
    "==",
];

#[test]
fn no_mutation_of_a_policy_ends_the_parser() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..3_000_u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut text = FILES[rng.random_range(0..FILES.len())].to_owned();
        for _ in 0..rng.random_range(1..4) {
            mutate(&mut rng, &mut text);
        }
        match PolicySet::parse("mutated.yaml", &text) {
            Ok(_) => good += 1,
            Err(mistakes) => {
                bad += 1;
                assert!(!mistakes.is_empty(), "seed {seed}: refused without a reason");
                let lines = text.lines().count() + 1;
                for mistake in mistakes {
                    assert!(
                        (1..=lines).contains(&mistake.line) && mistake.column >= 1,
                        "seed {seed}: {mistake}"
                    );
                    assert!(!mistake.message.is_empty(), "seed {seed}");
                }
            }
        }
    }
    assert!(good > 100 && bad > 1_000, "{good} good, {bad} bad: the mutations are too mild or too wild");
}

#[test]
fn no_scrap_of_a_condition_ends_the_compiler() {
    let conditions = [
        "bot.evidence >= bot.threshold * 0.5 && evidence.seconds >= 10",
        "user.groups.exists(g, g.startsWith(\"eu-\")) || !(modality in [\"mouse\", 'touch'])",
        "net.within(\"10.0.0.0/8\", \"fd00::/8\") ? size(route) > 3 : bot.windows % 2 == 0",
    ];
    for seed in 0..6_000_u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut text = conditions[rng.random_range(0..conditions.len())].to_owned();
        for _ in 0..rng.random_range(1..5) {
            mutate(&mut rng, &mut text);
        }
        if let Err(faults) = Condition::compile(&text) {
            assert!(!faults.is_empty(), "seed {seed}: {text}");
            assert!(faults.iter().all(|fault| fault.offset <= text.len()), "seed {seed}: {text}: {faults:?}");
        }
    }
}

/// Cuts, repeats or inserts something somewhere.
fn mutate(rng: &mut ChaCha8Rng, text: &mut String) {
    let place = |rng: &mut ChaCha8Rng, text: &str| {
        let mut at = rng.random_range(0..=text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (a, b) = (place(rng, text), place(rng, text));
    let (start, end) = (a.min(b), a.max(b));
    match rng.random_range(0..4) {
        0 => {
            let mut end = end.min(start + 8);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.replace_range(start..end, "");
        }
        1 => {
            let piece: String = text[start..end].chars().take(40).collect();
            text.insert_str(start, &piece);
        }
        _ => text.insert_str(start, SCRAPS[rng.random_range(0..SCRAPS.len())]),
    }
}
