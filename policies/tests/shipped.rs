//! What ships beside the code: policies, their cases, the schema, and the worked examples of the docs.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on should stop and say why

use gaitway_models::TelemetryState;
use gaitway_policies::case::{self, Said};
use gaitway_policies::document::{Document, Node, Value as Yaml};
use gaitway_policies::facts::{FACTS, Facts};
use gaitway_policies::policy::SCHEMA;
use gaitway_policies::{PolicySet, format};
use serde_json::{Value, json};
use std::sync::Arc;

macro_rules! shipped {
    ($($name:literal),*) => {
        &[$((
            $name,
            include_str!(concat!("../", $name, ".yaml")),
            include_str!(concat!("../cases/", $name, ".yaml")),
        )),*]
    };
}

const SHIPPED: &[(&str, &str, &str)] = shipped!["default", "demo", "balanced", "strict", "login-only", "api"];
/// So that none is lost to a slip in the markup.
const EXAMPLES: usize = 22;
const DOCS: &str = include_str!("../../docs/policies.md");

fn parse(name: &str, yaml: &str) -> Arc<PolicySet> {
    match PolicySet::parse(name, yaml) {
        Ok(policies) => Arc::new(policies),
        Err(mistakes) => {
            let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            panic!("{}", mistakes.join("\n"))
        }
    }
}

fn run_cases(name: &str, policies: &Arc<PolicySet>, yaml: &str) -> usize {
    let fetch = |place: &str| Err(format!("{place} is not here"));
    let cases = case::parse(name, yaml, &fetch).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    for case in &cases {
        let (said, failures) = case.run(policies);
        assert!(failures.is_empty(), "{name}: {}: {failures:?}, said {said:?}", case.name);
    }
    cases.len()
}

#[test]
fn every_shipped_policy_passes_its_cases() {
    for (name, policy, cases) in SHIPPED {
        let ran = run_cases(name, &parse(name, policy), cases);
        assert!(ran >= 3, "{name} has only {ran} cases");
        assert_eq!(format::format(name, policy).unwrap(), *policy, "{name} is not formatted");
    }
}

#[test]
fn only_default_is_all_shadow() {
    for (name, policy, _) in SHIPPED {
        assert_eq!(parse(name, policy).enforces(), *name != "default", "{name}");
    }
}

#[test]
fn missing_telemetry_leads_to_nothing_by_itself() {
    for (name, policy, _) in SHIPPED {
        let policies = parse(name, policy);
        for telemetry in [TelemetryState::Unexpected, TelemetryState::Missing, TelemetryState::Damaged] {
            let routes = policies.routes().iter().map(|route| route.name.clone()).chain([String::new()]);
            // Health routes are let through, which harms nobody.
            for route in routes {
                let mut facts =
                    Facts { session_age_seconds: 86_400.0, requests: 500, route, ..Facts::default() };
                facts.requests_per_minute = 20.0;
                facts.assessment.telemetry = telemetry;
                let said = Said::over_facts(&policies, &facts);
                assert!(matches!(said.decision.as_str(), "none" | "allow"), "{name}: {said:?}");
            }
        }
    }
}

#[test]
fn worked_examples_do_what_the_docs_say() {
    let mut blocks = DOCS.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut examples = 0;
    while let (Some(policy), Some(cases)) = (blocks.next(), blocks.next()) {
        examples += 1;
        let name = format!("docs example {examples}");
        assert!(run_cases(&name, &parse(&name, policy), cases) >= 1);
    }
    assert_eq!(examples, EXAMPLES);
}

#[test]
fn the_docs_have_every_fact_as_it_is() {
    for fact in FACTS {
        let row = format!("| `{}` | {} | {} |", fact.name, fact.kind.cel(), fact.doc);
        assert!(DOCS.contains(&row), "docs/policies.md lacks the row: {row}");
    }
}

#[test]
fn shipped_policies_and_examples_fit_the_schema() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let examples: Vec<&str> =
        DOCS.split("```yaml\n").skip(1).step_by(2).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), EXAMPLES);
    for yaml in SHIPPED.iter().map(|(_, policy, _)| *policy).chain(examples) {
        let problems = fit(&schema, &schema, &json_of(yaml), "");
        assert!(problems.is_empty(), "{problems:?} in\n{yaml}");
    }
}

#[test]
fn the_schema_refuses_what_the_parser_refuses() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for yaml in [
        "rule: []",
        "mode: shadow",
        "mode: loud\nrules: []",
        "rules: [{name: a, when: 'true'}]",
        "rules: [{name: a b, when: 'true', action: log}]",
        "rules: [{name: a, when: 'true', action: shout}]",
        "rules: [{name: a, when: 'true', action: log, reson: x}]",
        "rules: [{name: a, when: 'true', action: log, cool_down: soon}]",
        "rules: [{name: a, when: 'true', action: throttle, throttle: {burst: 3}}]",
        "rules: [{name: a, when: 'true', action: tag, tag: 'a b'}]",
        "rules: []\nbudget: {logouts_share_max: 2}",
        "rules: []\nbudget: {logouts_per_minute_max: -1}",
        "rules: [{name: a, when: 'true', action: tarpit, tarpit: {dely: 5s}}]",
        "rules: []\nalerts: [{name: a}]",
        "rules: []\nalerts: [{name: a, to: pigeon}]",
        "rules: []\nalerts: [{name: a, to: mail, cool_down: soon}]",
        "rules: []\nlimits: [{name: a, per: session}]",
        "rules: []\nlimits: [{name: a, per: person, requests_per_minute: 5}]",
        "rules: []\nlimits: [{name: a, per: session, requests_per_minute: 0}]",
        "rules: []\nlimits: [{name: a, per: address, requests_per_minute: 5, ipv6_prefix: 129}]",
        "rules: []\nroutes: [{name: a, match: {path: x}}]",
        "rules: []\nroutes: [{name: a, match: {path: /x}, injection: maybe}]",
    ] {
        assert!(!fit(&schema, &schema, &json_of(yaml), "").is_empty(), "the schema lets through: {yaml}");
        assert!(PolicySet::parse("p", yaml).is_err(), "the parser lets through: {yaml}");
    }
}

/// The YAML core schema's reading of a document, as editors have it.
fn json_of(yaml: &str) -> Value {
    fn convert(node: &Node) -> Value {
        match &node.value {
            _ if node.is_null() => Value::Null,
            Yaml::Scalar { text, plain: true, .. } if text == "true" || text == "false" => {
                json!(text == "true")
            }
            Yaml::Scalar { text, plain: true, .. } => match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(whole), _) => json!(whole),
                (_, Ok(number)) => json!(number),
                _ => json!(text),
            },
            Yaml::Scalar { text, .. } => json!(text),
            Yaml::Sequence(items) => items.iter().map(convert).collect(),
            Yaml::Mapping(entries) => {
                Value::Object(entries.iter().map(|entry| (entry.key.clone(), convert(&entry.node))).collect())
            }
        }
    }
    let mut mistakes = Vec::new();
    convert(&Document::parse(&mut mistakes, "f", yaml).unwrap().root)
}

/// The part of JSON Schema that policy.schema.json uses; an unknown keyword fails the test.
fn fit(root: &Value, schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (keyword, wanted) in schema.as_object().unwrap() {
        let fits = match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" | "properties" => true,
            "$ref" => {
                let pointer = wanted.as_str().unwrap().trim_start_matches('#');
                problems.extend(fit(root, root.pointer(pointer).unwrap(), value, place));
                true
            }
            "type" => {
                let types = wanted.as_array().cloned().unwrap_or_else(|| vec![wanted.clone()]);
                types.iter().any(|wanted| is_type(wanted.as_str().unwrap(), value))
            }
            "enum" => wanted.as_array().unwrap().contains(value),
            "anyOf" => {
                wanted.as_array().unwrap().iter().any(|schema| fit(root, schema, value, place).is_empty())
            }
            "required" => value.as_object().is_none_or(|object| {
                wanted.as_array().unwrap().iter().all(|key| object.contains_key(key.as_str().unwrap()))
            }),
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    problems.extend(fit(root, wanted, item, &format!("{place}[{index}]")));
                }
                true
            }
            "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= wanted.as_u64().unwrap()),
            "minimum" => value.as_f64().is_none_or(|number| number >= wanted.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= wanted.as_f64().unwrap()),
            "pattern" => value.as_str().is_none_or(|text| pattern(wanted.as_str().unwrap(), text)),
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (key, value) in value.as_object().into_iter().flatten() {
                    let place = format!("{place}.{key}");
                    match known.and_then(|known| known.get(key)) {
                        Some(schema) => problems.extend(fit(root, schema, value, &place)),
                        None if wanted.is_object() => problems.extend(fit(root, wanted, value, &place)),
                        None => problems.push(format!("{place} is unknown")),
                    }
                }
                true
            }
            other => panic!("the schema uses {other}, which this test does not know"),
        };
        if !fits {
            problems.push(format!("{place}: {keyword} {wanted} does not fit {value}"));
        }
    }
    problems
}

fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the schema uses type {other}, which this test does not know"),
    }
}

/// The patterns of the schema, one by one: no expression engine is worth six of them.
fn pattern(pattern: &str, text: &str) -> bool {
    let span = || text.trim_end_matches(|c: char| c.is_ascii_lowercase()).chars().all(|c| c.is_ascii_digit());
    match pattern {
        "^/" => text.starts_with('/'),
        "^[A-Za-z0-9._-]{1,64}$" => {
            (1..=64).contains(&text.len())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        }
        "^[!-~]{1,64}$" => (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic()),
        "^[0-9]+(ms|s|m|h|d)$" => {
            text.starts_with(|c: char| c.is_ascii_digit())
                && span()
                && ["ms", "s", "m", "h", "d"].contains(&text.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        "^[0-9.]+ ?%$" => {
            text.strip_suffix('%').is_some_and(|number| number.trim_end().parse::<f64>().is_ok())
        }
        other => panic!("the schema uses pattern {other}, which this test does not know"),
    }
}
