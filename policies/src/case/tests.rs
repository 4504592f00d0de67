//! How cases are read and judged, and what the shipped ones say.

use super::*;
use crate::policy::{DEFAULT, DEMO};
use expect_test::expect;

fn none(place: &str) -> Result<String, String> {
    Err(format!("{place} is not here"))
}

fn run(policy: &str, cases: &str) -> String {
    let policies = Arc::new(PolicySet::parse("policy.yaml", policy).unwrap());
    let fetch = |place: &str| match place {
        "one.jsonl" => Ok(recording()),
        other => none(other),
    };
    let cases = match parse("cases.yaml", cases, &fetch) {
        Ok(cases) => cases,
        Err(mistakes) => return mistakes.iter().map(|mistake| format!("{mistake}\n")).collect(),
    };
    let mut out = String::new();
    for case in cases {
        let (_, failures) = case.run(&policies);
        out.push_str(&format!(
            "{}: {}\n",
            case.name,
            if failures.is_empty() { "as expected".into() } else { failures.join("; ") }
        ));
    }
    out
}

fn recording() -> String {
    let mut lines = vec![crate::record::HEADER.to_owned()];
    for second in (0..100).step_by(5) {
        let evidence = f64::from(second) / 10.0;
        lines.push(format!(
            r#"{{"session":"s_01010101010101010101010101010101","at":{},"facts":{{"bot.threshold":8,"bot.evidence":{evidence},"evidence.seconds":{second},"model.calibrated":true}}}}"#,
            1_800_000_000_000_u64 + second as u64 * 1_000
        ));
    }
    lines.join("\n")
}

#[test]
fn cases_pass_or_say_what_they_found() {
    expect![[r#"
        a bot: as expected
        wrong hope: expected decision none, found logout; expected mode enforce, found shadow
        nobody: as expected
        recorded: as expected
        late: expected second 10, found 80
    "#]]
    .assert_eq(&run(
        DEFAULT,
        "
cases:
  - name: a bot
    given: {bot.evidence: 9, bot.threshold: 8, evidence.seconds: 30, model.calibrated: true}
    expect:
      decision: logout
      rule: logout-bot
      mode: shadow
      reason: 'evidence 9 over 8 after 30 s of input'
      told: [tag-suspect, challenge-suspect, logout-bot]
  - name: wrong hope
    given: {bot.evidence: 9, bot.threshold: 8, evidence.seconds: 30, model.calibrated: true}
    expect: {decision: none, mode: enforce}
  - {name: nobody, given: {}, expect: none}
  - {name: recorded, session: one.jsonl, expect: {decision: logout, second: 80}}
  - {name: late, session: one.jsonl, expect: {second: 10}}
",
    ));
}

#[test]
fn mistakes_in_cases_have_their_place_too() {
    expect![[r#"
        cases.yaml:3:23: cases[0].given.bot.evidnce: unknown key (did you mean `bot.evidence`?)
        cases.yaml:4:49: cases[1].given.modality: expected one of none, mouse, touch, keyboard, mixed, found `nose` (did you mean `none`?)
        cases.yaml:5:5: cases[2]: needs either given or session (`given: {bot.evidence: 9}` or `session: recorded/one.jsonl`)
        cases.yaml:6:24: cases[3].session: gone.jsonl is not here
        cases.yaml:7:34: cases[4].expect: expects nothing (`decision: none` if nothing should happen)
    "#]]
    .assert_eq(&run(
        DEMO,
        "
cases:
  - {name: a, given: {bot.evidnce: 9}, expect: none}
  - {name: a, given: {bot.score: 0.5, modality: nose}, expect: none}
  - {name: a, expect: none}
  - {name: a, session: gone.jsonl, expect: none}
  - {name: a, given: {}, expect: {}}
",
    ));
}

#[test]
fn an_explanation_names_the_facts_it_looked_at() {
    let policies = PolicySet::parse("demo.yaml", DEMO).unwrap();
    let lines = explain(&policies, &Facts::default());
    assert_eq!(
        lines[3],
        "logout-bot (logout, enforce): does not hold: bot.evidence >= bot.threshold && evidence.seconds >= 8\n    bot.evidence = 0, bot.threshold = never, evidence.seconds = 0"
    );
}

#[test]
fn differences_are_told_by_rule() {
    let old = PolicySet::parse("a", "rules:\n  - {name: a, when: bot.score > 0.5, action: log}\n  - {name: b, when: bot.score > 0.9, action: challenge}\n").unwrap();
    let new = PolicySet::parse("b", "rules:\n  - {name: b, when: 'bot.score>0.8', action: challenge, mode: enforce, for: 5m}\n  - {name: c, when: bot.score > 0.9, action: log}\nbudget: {logouts_share_max: 5%}\n").unwrap();
    expect![[r#"
        - rule a (log): bot.score > 0.5
        ~ rule b when: bot.score > 0.9 → bot.score>0.8
        ~ rule b mode: shadow → enforce
        ~ rule b for: 10m → 5m
        + rule c (log, shadow): bot.score > 0.9
        ~ budget: 5 a minute, 2% of sessions an hour, 3 a user and day → 5 a minute, 5% of sessions an hour, 3 a user and day"#]]
    .assert_eq(&differences(&old, &new).join("\n"));
    assert!(differences(&old, &old).is_empty());
}
