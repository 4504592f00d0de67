//! What conditions mean, and what is refused before it runs.

use super::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn facts(set: &[(&str, FactValue<'_>)]) -> Facts {
    let mut facts = Facts::default();
    for (name, value) in set {
        assert!((FACTS[find(name).unwrap()].set)(&mut facts, *value), "{name}");
    }
    facts
}

fn holds(condition: &str, set: &[(&str, FactValue<'_>)]) -> bool {
    Condition::compile(condition)
        .unwrap_or_else(|faults| panic!("{condition}: {faults:?}"))
        .holds(&facts(set))
        .unwrap()
}

/// All faults as `offset message (hint)`.
fn faults(condition: &str) -> String {
    let faults = match Condition::compile(condition) {
        Ok(_) => return "none".into(),
        Err(faults) => faults,
    };
    let text = |fault: &Fault| {
        let hint = fault.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        format!("{} {}{hint}", fault.offset, fault.message)
    };
    faults.iter().map(text).collect::<Vec<_>>().join("; ")
}

#[test]
fn conditions_read_facts() {
    let groups = ["staff".to_owned(), "eu-sales".to_owned()];
    let set = &[
        ("bot.score", FactValue::Double(0.9)),
        ("bot.windows", FactValue::Int(3)),
        ("modality", FactValue::Text("mouse")),
        ("model.calibrated", FactValue::Bool(true)),
        ("user.groups", FactValue::List(&groups)),
        ("net.ip", FactValue::Text("::ffff:10.1.2.3")),
        ("route", FactValue::Text("checkout")),
    ];
    for (condition, expected) in [
        ("bot.score >= 0.9", true),
        ("bot.score > 0.9", false),
        ("bot.windows * 2 == 6 && model.calibrated", true),
        ("double(bot.windows) / 2.0 == 1.5", true),
        ("bot.windows > 2.5", true),
        ("modality in [\"mouse\", \"touch\"]", true),
        ("\"staff\" in user.groups", true),
        ("user.groups.exists(g, g.startsWith(\"eu-\"))", true),
        ("user.groups.all(g, g.startsWith(\"eu-\"))", false),
        ("size(user.groups) == 2 && user.groups.size() == 2", true),
        ("net.within(\"10.0.0.0/8\")", true),
        ("net.within(\"192.168.0.0/16\", \"fd00::/8\")", false),
        ("route.contains(\"eck\") && route.endsWith(\"out\")", true),
        ("(modality == \"touch\" ? bot.windows : 7) == 7", true),
        ("!(model.calibrated == false)", true),
        ("-bot.windows < -2", true),
        ("owner.score == 0.0 && replay.match == 0.0 && telemetry.state == \"unexpected\"", true),
    ] {
        assert_eq!(holds(condition, set), expected, "{condition}");
    }
}

#[test]
fn an_unknown_name_or_wrong_type_is_found_before_it_runs() {
    for (condition, expected) in [
        ("bot.scor > 0.5", "0 unknown fact `bot.scor` (did you mean `bot.score`?)"),
        (
            "true && telemetry.state == \"mising\"",
            "27 `telemetry.state` is never \"mising\" (did you mean \"missing\"?)",
        ),
        ("bot.score > \"high\"", "10 cannot compare a double with a string (numbers stand without quotes)"),
        ("bot.score", "0 expected a condition, found a double (compare it with something)"),
        (
            "bot.evidence > bot.threshold * 2",
            "29 CEL does not mix int and double in arithmetic (write 2.0 for 2, or double(…) around a whole number)",
        ),
        (
            "user.groups == \"staff\"",
            "12 cannot compare a list with a string (for lists write `\"staff\" in user.groups`)",
        ),
        ("request == 1", "0 `request` is a group of facts (one of request.rate, request.count)"),
        (
            "net.within(\"10.0.0.1/8\")",
            "11 `10.0.0.1/8` has address bits after its /8 (write it as \"10.0.0.0/8\" or \"fd00::/8\")",
        ),
        (
            "route.startWith(\"a\")",
            "0 unknown function `startWith` or wrong number of arguments (did you mean `startsWith`?)",
        ),
        (
            "bot.scor > 1.0 || moddality == \"mouse\"",
            "0 unknown fact `bot.scor` (did you mean `bot.score`?); 18 unknown fact `moddality` (did you mean `modality`?)",
        ),
    ] {
        assert_eq!(faults(condition), expected, "{condition}");
    }
}

#[test]
fn what_is_no_cel_is_refused_with_its_place() {
    for condition in [
        "",
        "bot.score >",
        "bot.score > 0.5 &&& true",
        "))",
        "\"open",
        "a b",
        "!-\u{1}",
        "{}",
        "has(bot.score)",
        "bot.?score",
        "dyn(1) == 1",
        "1u == 1u",
        "null == null",
        "b\"x\" == b\"x\"",
    ] {
        assert_ne!(faults(condition), "none", "{condition}");
    }
}

#[test]
fn length_and_depth_are_bounded() {
    assert!(faults(&"x".repeat(CONDITION_BYTES_MAX + 1)).contains("longer"));
    for deep in [
        format!("{}true{}", "(".repeat(500), ")".repeat(500)),
        format!("{}true", "!".repeat(2000)),
        format!("{}1 == 1", "- ".repeat(1500)),
        format!("1{} == 1", "+1".repeat(1500)),
        format!("bot{} == 1", ".x".repeat(1500)),
        format!("{}true{}", "true ? ".repeat(200), " : true".repeat(200)),
        format!("{}1{} == 1", "size([".repeat(300), "])".repeat(300)),
    ] {
        assert_ne!(faults(&deep), "none");
    }
    let long = vec!["bot.score > 0.5"; 200].join(" && ");
    assert_eq!(faults(&long), "none", "a long flat conjunction is fine");
}

#[test]
fn arithmetic_that_fails_makes_no_condition_hold() {
    for condition in ["9223372036854775807 + bot.windows > 0", "1 / bot.windows == 1", "1 % bot.windows == 0"]
    {
        let condition = Condition::compile(condition).unwrap();
        let one = facts(&[("bot.windows", FactValue::Int(1))]);
        let zero = facts(&[]);
        assert!(condition.holds(&one).is_err() || condition.holds(&zero).is_err());
    }
    assert!(!holds("1 / bot.windows == 1 && false", &[]), "the other side decides");
    assert!(holds("1 / bot.windows == 1 || true", &[]));
}

#[test]
fn what_can_never_hold_is_seen() {
    for (condition, never) in [
        ("bot.score > 1.0", true),
        ("bot.score >= 1.0", false),
        ("bot.score > 0.9 && bot.score < 0.5", true),
        ("bot.score > 0.9 && bot.evidence < 0.5", false),
        ("0.5 < bot.score && bot.score <= 0.5", true),
        ("bot.windows < 0", true),
        ("modality == \"mouse\" && modality == \"touch\"", true),
        ("modality in [\"mouse\", \"touch\"] && modality == \"keyboard\"", true),
        ("modality in [\"mouse\", \"touch\"] && modality == \"touch\"", false),
        ("model.calibrated && !model.calibrated", true),
        ("false || bot.score > 2.0", true),
        ("!(bot.score >= 0.0)", true),
        ("1 > 2", true),
        ("true", false),
    ] {
        assert_eq!(Condition::compile(condition).unwrap().never().is_some(), never, "{condition}");
    }
}

#[test]
fn networks_hold_what_they_should() {
    for (network, address, inside) in [
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.1", false),
        ("0.0.0.0/0", "1.2.3.4", true),
        ("0.0.0.0/0", "::1", false),
        ("::/0", "::1", true),
        ("192.0.2.7", "192.0.2.7", true),
        ("192.0.2.7", "192.0.2.8", false),
        ("2001:db8::/32", "2001:db8:ffff::1", true),
        ("2001:db8::/32", "2001:db9::1", false),
    ] {
        let network: Network = network.parse().unwrap();
        assert_eq!(network.contains(address.parse().unwrap()), inside, "{network} {address}");
    }
    for wrong in ["10.0.0.0/33", "10.0.0.0/", "ten/8", "10.1.0.0/8", "::1/64"] {
        assert!(wrong.parse::<Network>().is_err(), "{wrong}");
    }
}

/// Random conditions over random facts get the same answer from the `cel` crate's interpreter.
#[test]
fn our_answers_are_those_of_the_cel_crate() {
    let mut compared = 0;
    for seed in 0..2_000_u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let source = random_test(&mut rng, 3);
        let condition = match Condition::compile(&source) {
            Ok(condition) => condition,
            Err(faults) => panic!("seed {seed}: {source}: {faults:?}"),
        };
        for _ in 0..4 {
            let groups: Vec<String> = ["staff", "eu-sales", "ops"]
                .iter()
                .filter(|_| rng.random())
                .map(|&group| group.to_owned())
                .collect();
            let facts = facts(&[
                ("bot.score", FactValue::Double(f64::from(rng.random_range(0..=4)) / 4.0)),
                ("bot.windows", FactValue::Int(rng.random_range(0..4))),
                ("modality", FactValue::Text(["mouse", "touch", "none"][rng.random_range(0..3)])),
                ("model.calibrated", FactValue::Bool(rng.random())),
                ("user.groups", FactValue::List(&groups)),
                ("route", FactValue::Text(["", "checkout", "staff"][rng.random_range(0..3)])),
            ]);
            let theirs = by_cel(&source, &facts);
            assert_eq!(condition.holds(&facts).ok(), theirs, "seed {seed}: {source} over {facts:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 8_000);
}

fn by_cel(source: &str, facts: &Facts) -> Option<bool> {
    let mut context = cel::Context::default();
    let mut groups: BTreeMap<&str, BTreeMap<&str, cel::Value>> = BTreeMap::new();
    for fact in FACTS {
        let value: cel::Value = match (fact.get)(facts) {
            FactValue::Bool(value) => value.into(),
            FactValue::Int(value) => value.into(),
            FactValue::Double(value) => value.into(),
            FactValue::Text(value) => value.to_owned().into(),
            FactValue::List(values) => values.to_vec().into(),
        };
        match fact.name.split_once('.') {
            Some((group, name)) => {
                groups.entry(group).or_default().insert(name, value);
            }
            None => context.add_variable_from_value(fact.name, value),
        }
    }
    for (group, parts) in groups {
        let map: std::collections::HashMap<String, cel::Value> =
            parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        context.add_variable_from_value(group, map);
    }
    match cel::Program::compile(source).unwrap().execute(&context) {
        Ok(cel::Value::Bool(value)) => Some(value),
        Ok(other) => panic!("{source} gave {other:?}"),
        Err(_) => None,
    }
}

fn random_test(rng: &mut ChaCha8Rng, depth: u32) -> String {
    if depth == 0 {
        return ["true", "false", "model.calibrated", "(bot.score > 0.5)"][rng.random_range(0..4)].into();
    }
    let sub = |rng: &mut ChaCha8Rng| random_test(rng, depth - 1);
    match rng.random_range(0..13) {
        0 => format!("({} && {})", sub(rng), sub(rng)),
        1 => format!("({} || {})", sub(rng), sub(rng)),
        2 => format!("!({})", sub(rng)),
        3 => format!("({} ? {} : {})", sub(rng), sub(rng), sub(rng)),
        4 => format!("({} == {})", sub(rng), sub(rng)),
        5 | 6 => format!("({} {} {})", random_int(rng, depth), random_relation(rng), random_int(rng, depth)),
        7 => {
            format!("({} {} {})", random_double(rng, depth), random_relation(rng), random_double(rng, depth))
        }
        8 => format!("({} {} {})", random_double(rng, depth), random_relation(rng), random_int(rng, depth)),
        9 => format!("({} {} {})", random_text(rng), random_relation(rng), random_text(rng)),
        10 => format!("({} in user.groups)", random_text(rng)),
        11 => format!(
            "user.groups.{}(g, g == {} || {})",
            ["exists", "all"][rng.random_range(0..2)],
            random_text(rng),
            sub_flat(rng)
        ),
        _ => format!(
            "{}.{}({})",
            random_text(rng),
            ["startsWith", "endsWith", "contains"][rng.random_range(0..3)],
            random_text(rng)
        ),
    }
}

fn sub_flat(rng: &mut ChaCha8Rng) -> String {
    format!("g.contains({})", random_text(rng))
}

fn random_relation(rng: &mut ChaCha8Rng) -> &'static str {
    ["==", "!=", "<", "<=", ">", ">="][rng.random_range(0..6)]
}

fn random_int(rng: &mut ChaCha8Rng, depth: u32) -> String {
    match rng.random_range(0..6) {
        0 | 1 => "bot.windows".into(),
        2 => rng.random_range(-3..5_i64).to_string(),
        3 => "size(user.groups)".into(),
        4 => format!("size({})", random_text(rng)),
        _ if depth == 0 => "9223372036854775807".into(),
        _ => {
            let math = ["+", "-", "*", "/", "%"][rng.random_range(0..5)];
            format!("({} {math} {})", random_int(rng, depth - 1), random_int(rng, depth - 1))
        }
    }
}

fn random_double(rng: &mut ChaCha8Rng, depth: u32) -> String {
    match rng.random_range(0..4) {
        0 => "bot.score".into(),
        1 => format!("{:?}", f64::from(rng.random_range(-4..5_i32)) / 4.0),
        2 => format!("double({})", random_int(rng, depth.saturating_sub(1))),
        _ if depth == 0 => "0.5".into(),
        _ => {
            let math = ["+", "-", "*", "/"][rng.random_range(0..4)];
            format!("({} {math} {})", random_double(rng, depth - 1), random_double(rng, depth - 1))
        }
    }
}

fn random_text(rng: &mut ChaCha8Rng) -> &'static str {
    ["route", "\"staff\"", "\"eu-\"", "\"\"", "\"ck\"", "route"][rng.random_range(0..6)]
}
