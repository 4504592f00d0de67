//! What policy files may say and how their mistakes are told.

use super::*;
use crate::document::Mistake;

fn mistakes(yaml: &str) -> String {
    match PolicySet::parse("p.yaml", yaml) {
        Ok(_) => "none".into(),
        Err(mistakes) => mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>().join("\n"),
    }
}

#[test]
fn shipped_policies_are_right_and_default_enforces_nothing() {
    let default = PolicySet::parse("default.yaml", DEFAULT).unwrap();
    assert!(!default.enforces());
    assert_eq!(default.version().len(), 16);
    let demo = PolicySet::parse("demo.yaml", DEMO).unwrap();
    assert!(demo.enforces());
    assert_ne!(default.version(), demo.version());
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let yaml = "\
mode: shadw
rules:
  - name: a
    when: bot.scor > 0.5
    action: logot
  - name: a
    when: >-
      model.calibrated &&
      bot.score > \"x\"
    action: log
    reson: typo
  - when: \"true\"
    action: tag
  - name: b
    when: bot.score > 1.5
    action: log
    reason: \"because {bot.scroe} of {net.ip}\"
budget: {logouts_share_max: 2}
";
    expect_test::expect![[r#"
        p.yaml:1:7: mode: expected one of shadow, enforce, found `shadw` (did you mean `shadow`?)
        p.yaml:4:11: rules[0].when: unknown fact `bot.scor` (did you mean `bot.score`?)
        p.yaml:5:13: rules[0].action: expected one of allow, log, tag, throttle, challenge, step-up, logout, logout-everywhere, deny, found `logot` (did you mean `logout`?)
        p.yaml:9:17: rules[1].when: cannot compare a double with a string (numbers stand without quotes)
        p.yaml:11:5: rules[1].reson: unknown key (did you mean `reason`?)
        p.yaml:12:5: rules[2].name: missing (every decision names its rule; give it a short one such as `bot-logout`)
        p.yaml:12:5: rules[2].tag: missing (the value of the header the app gets, such as `tag: suspect`)
        p.yaml:17:23: rules[3].reason: unknown fact `bot.scroe` (did you mean `bot.score`?)
        p.yaml:17:38: rules[3].reason: `net.ip` is never told in a reason (addresses stay out of logs and mails)
        p.yaml:18:29: budget.logouts_share_max: expected a share such as `2%`, found a number"#]]
    .assert_eq(&mistakes(yaml));
}

#[test]
fn a_rule_that_cannot_act_is_a_mistake() {
    let rules = |rules: &str| format!("rules:\n{rules}");
    let unreachable = rules(
        "  - {name: health, when: route == \"health\", action: allow}\n  - {name: x, when: 'bot.score > 0.5 && route == \"health\"', action: log}\n",
    );
    assert!(mistakes(&unreachable).contains("allow rule `health` holds whenever it does"));
    let never = rules("  - {name: x, when: bot.score > 0.9 && bot.score < 0.5, action: log}\n");
    assert!(mistakes(&never).contains("rule `x` can never match: no value of `bot.score` (0 to 1) fits"));
    let everything = rules(
        "  - {name: all, when: 'true', action: allow}\n  - {name: x, when: bot.score > 0.9, action: log}\n",
    );
    assert!(mistakes(&everything).contains("allow rule `all`"));
    let twice = rules(
        "  - {name: x, when: bot.score > 0.9, action: log}\n  - {name: y, when: 'bot.score>0.9', action: log}\n",
    );
    assert!(mistakes(&twice).contains("rule `y` repeats rule `x`"));
    let same_name = rules(
        "  - {name: x, when: bot.score > 0.9, action: log}\n  - {name: x, when: bot.score > 0.8, action: log}\n",
    );
    assert!(mistakes(&same_name).contains("two rules are called `x`"));
}

#[test]
fn shutting_out_needs_a_budget() {
    let rule = "rules:\n  - {name: x, when: bot.score > 0.9, action: logout, mode: enforce}\n";
    assert!(mistakes(rule).contains("missing, though rule `x` may shut people out"));
    assert_eq!(mistakes(&format!("{rule}budget: {{}}\n")), "none");
    assert_eq!(mistakes(&rule.replace("enforce", "shadow")), "none");
}

#[test]
fn allow_rules_come_first_wherever_they_stand() {
    let policies = PolicySet::parse(
        "p",
        "rules:\n  - {name: log, when: bot.score > 0.9, action: log}\n  - {name: allow, when: '\"staff\" in user.groups', action: allow}\n",
    )
    .unwrap();
    let names: Vec<&str> = policies.rules().iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["allow", "log"]);
    assert!(
        mistakes("rules:\n  - {name: a, when: 'true', action: allow, mode: shadow}\n")
            .contains("takes no mode")
    );
}

#[test]
fn a_tag_cannot_break_out_of_its_header() {
    for tag in ["\"a\\r\\nSet-Cookie: x\"", "\"a b\"", "é", "\"\""] {
        let yaml = format!("rules:\n  - {{name: x, when: bot.score > 0.9, action: tag, tag: {tag}}}\n");
        assert!(mistakes(&yaml).contains("visible ASCII"), "{tag}");
    }
}

#[test]
fn reasons_name_facts() {
    let policies = PolicySet::parse(
        "p",
        "rules:\n  - {name: x, when: bot.score > 0.5, action: log, reason: 'score {bot.score}, {bot.windows} windows, {modality}{user.groups}'}\n",
    )
    .unwrap();
    let mut facts = Facts { user_groups: vec!["a\u{7}b".into()], ..Facts::default() };
    facts.assessment.bot_score = Some(0.9375);
    facts.assessment.windows = 4;
    assert_eq!(policies.rules()[0].reason.text(&facts), "score 0.94, 4 windows, noneab");
}

#[test]
fn limits_are_reached() {
    let many: String = (0..=RULES_MAX)
        .map(|n| format!("  - {{name: r{n}, when: bot.windows > {n}, action: log}}\n"))
        .collect();
    assert!(mistakes(&format!("rules:\n{many}")).contains("more than 128 rules"));
    let long = "x".repeat(NAME_CHARS_MAX + 1);
    assert!(
        mistakes(&format!("rules: [{{name: {long}, when: 'true', action: log}}]")).contains("a name has")
    );
    let reason = "x".repeat(REASON_BYTES_MAX + 1);
    assert!(
        mistakes(&format!("rules: [{{name: a, when: 'true', action: log, reason: {reason}}}]"))
            .contains("longer")
    );
    assert!(
        mistakes("rules: [{name: a, when: 'true', action: log, cool_down: 8d}]")
            .contains("between 1s and 7d")
    );
}
