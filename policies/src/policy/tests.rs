//! What policy files may say and how their mistakes are told.

use super::*;
use crate::document::Mistake;
use crate::engine::Incident;
use crate::route::{Outage, RequestLine, Sources};

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
        p.yaml:5:13: rules[0].action: expected one of allow, log, tag, throttle, challenge, step-up, logout, logout-everywhere, deny, tarpit, found `logot` (did you mean `logout`?)
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

fn snippet(place: &str) -> Result<String, String> {
    match place {
        "monitoring.yaml" => {
            Ok("rules:\n  - {name: monitoring, when: 'net.within(\"10.0.0.0/8\")', action: allow}\n".into())
        }
        "routes.yaml" => Ok("routes:\n  - {name: api, match: {path: /api/**}}\n".into()),
        "wrong.yaml" => {
            Ok("mode: enforce\nrules:\n  - {name: note, when: bot.scor > 1, action: log}\n".into())
        }
        other => Err(format!("no file {other}")),
    }
}

#[test]
fn snippets_bring_rules_and_routes() {
    let yaml = "import: [monitoring.yaml, routes.yaml]\nrules:\n  - {name: note, when: route == \"api\" && bot.score > 0.5, action: log}\n";
    let policies = PolicySet::parse_with("p.yaml", yaml, &snippet).unwrap();
    let names: Vec<&str> = policies.rules().iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["monitoring", "note"]);
    let alone =
        PolicySet::parse("p.yaml", &yaml.replace("import: [monitoring.yaml, routes.yaml]\n", "")).unwrap();
    assert_ne!(policies.version(), alone.version(), "the version covers what is imported");
    assert!(mistakes(yaml).contains("import[0]: snippets can only be imported from files"));
}

#[test]
fn a_mistake_in_a_snippet_names_the_snippet() {
    let yaml =
        "import: [wrong.yaml, gone.yaml]\nrules:\n  - {name: note, when: bot.score > 0.5, action: log}\n";
    let mistakes = PolicySet::parse_with("p.yaml", yaml, &snippet).unwrap_err();
    let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    expect_test::expect![[r#"
        p.yaml:1:22: import[1]: no file gone.yaml
        wrong.yaml:1:1: mode: unknown key (known here: routes, rules)
        wrong.yaml:3:24: rules[0].when: unknown fact `bot.scor` (did you mean `bot.score`?)"#]]
    .assert_eq(&mistakes.join("\n"));
}

#[test]
fn requests_find_their_route_and_routes_their_rules() {
    let policies = PolicySet::parse(
        "p",
        "
routes:
  - {name: pay, match: {path: /pay/**, method: POST}, outage: deny, login: required}
  - {name: docs, match: [{path: /docs/**}, {host: docs.example}], rules: [], injection: off, login: optional}
  - {name: default, rules: [note]}
rules:
  - {name: friend, when: 'bot.automation', action: allow}
  - {name: note, when: bot.score > 0.5, action: log}
  - {name: tag, when: bot.score > 0.6, action: tag, tag: x}
",
    )
    .unwrap();
    let route = |host, method, path| policies.route(&RequestLine { host, path, method, header: &|_| None });
    assert_eq!(route("a", "POST", "/pay/now").name, "pay");
    assert_eq!(route("a", "POST", "/pay/now").outage, Outage::Deny);
    assert_eq!(route("a", "GET", "/pay/now").name, "default");
    assert_eq!(route("a", "POST", "/pay/now").login, Some(true));
    assert_eq!(route("docs.example", "GET", "/x").login, Some(false));
    assert_eq!(route("a", "GET", "/x").login, None, "as the gateway's settings say");
    assert!(!route("docs.example", "GET", "/x").injection && route("a", "GET", "/x").injection);
    for (name, told) in [("pay", 2), ("docs", 0), ("default", 1), ("", 1)] {
        let mut facts = Facts { route: name.into(), ..Facts::default() };
        facts.assessment.bot_score = Some(0.9);
        assert_eq!(crate::decide::decide(&policies, &facts).told.len(), told, "{name}");
        facts.assessment.automation = true;
        assert!(
            crate::decide::decide(&policies, &facts).allowed.is_some(),
            "allow rules apply everywhere: {name}"
        );
    }
}

#[test]
fn names_of_routes_and_rules_are_checked_both_ways() {
    let yaml = "routes:\n  - {name: pay, match: {path: /pay/**}, rules: [nope]}\n  - {name: pay, match: {path: /x}}\n  - {name: all, match: {}}\n  - {name: bad, match: {path: /a*}}\nrules:\n  - {name: note, when: route == \"pya\", action: log}\n";
    expect_test::expect![[r#"
        p.yaml:2:5: rules: route `pay` names an unknown rule `nope` (did you mean `note`?)
        p.yaml:3:5: name: two routes are called `pay`
        p.yaml:4:24: routes[2].match: matches everything (host, path, method or header; what is left over is the route `default`)
        p.yaml:5:31: routes[3].match.path: `*` stands for one whole segment, `**` at the end for the rest (such as `/api/*/items` or `/static/**`)
        p.yaml:7:5: when: rule `note` names an unknown route "pya""#]]
    .assert_eq(&mistakes(yaml));
}

const LIMITED: &str = "
mode: enforce
routes:
  - {name: login, match: {path: /login}}
  - {name: health, match: {path: /health}}
rules:
  - {name: health, when: route == \"health\", action: allow}
  - {name: friend, when: bot.automation && route == \"login\", action: allow}
limits:
  - {name: all, per: route, requests_per_minute: 6000}
  - {name: login, per: address, routes: [login], requests_per_minute: 10, burst: 5, ipv6_prefix: 56}
  - {name: person, per: session, routes: [default, login], requests_per_minute: 600, mode: shadow}
";

#[test]
fn limits_are_counted_from_the_narrowest_and_cover_their_routes() {
    let policies = PolicySet::parse("p.yaml", LIMITED).unwrap();
    let names = |route: &str| -> Vec<String> {
        policies.limits_on(route).map(|limit| limit.name.to_string()).collect()
    };
    assert_eq!(names("login"), ["person", "login", "all"]);
    assert_eq!(names(""), ["person", "all"]);
    assert_eq!(names("health"), ["all"]);
    assert!(policies.enforces());
    let [person, login, all] = policies.limits() else { panic!("three limits") };
    assert_eq!((person.mode, login.mode), (Mode::Shadow, Mode::Enforce));
    assert_eq!(login.rate, Rate { requests_per_minute: 10, burst: 5 });
    // A quarter of a minute's requests may come at once if nothing is said.
    assert_eq!((all.rate.burst, person.rate.burst, login.ipv6_prefix, all.ipv6_prefix), (1_500, 150, 56, 64));
}

#[test]
fn an_allow_rule_over_the_request_alone_is_read_at_the_door() {
    let policies = PolicySet::parse("p.yaml", LIMITED).unwrap();
    let at = |route: &str, automation: bool| {
        let mut facts = Facts { route: route.into(), ..Facts::default() };
        facts.assessment.automation = automation;
        policies.allows_at_door(&facts).map(|rule| rule.name.to_string())
    };
    assert_eq!(at("health", false).as_deref(), Some("health"));
    // It looks at the session, which the door knows nothing of.
    assert_eq!(at("login", true), None);
}

#[test]
fn mistakes_in_limits_are_told_with_their_place() {
    let yaml = "\
rules: []
routes: [{name: login, match: {path: /login}}]
limits:
  - {name: a, per: adress, requests_per_minute: 10}
  - {name: b, per: session, requests_per_minute: 0}
  - {name: c, per: session, ipv6_prefix: 64, requests_per_minute: 5}
  - {name: d, per: address, ipv6_prefix: 8, requests_per_minute: 5}
  - {name: e, requests_per_minute: 5}
  - {name: f, per: route, burst: 5}
  - {name: g, per: route, requests_per_minute: 5, routes: [logn]}
  - {name: g, per: route, requests_per_minute: 5}
  - {name: h, per: route, requests_per_minute: 5, brst: 3}
";
    expect_test::expect![[r#"
        p.yaml:4:20: limits[0].per: expected one of session, address, route, found `adress` (did you mean `address`?)
        p.yaml:5:50: limits[1].requests_per_minute: expected a whole number from 1 to 1000000, found a number
        p.yaml:6:42: limits[2].ipv6_prefix: belongs to `per: address`
        p.yaml:7:42: limits[3].ipv6_prefix: expected a whole number from 32 to 128, found a number
        p.yaml:8:5: limits[4].per: missing (whose requests are counted together: session, address or route)
        p.yaml:9:5: limits[5].requests_per_minute: missing
        p.yaml:10:5: limits: limit `g` names an unknown route `logn` (did you mean `login`?)
        p.yaml:11:5: limits[7].name: two limits are called `g`
        p.yaml:12:51: limits[8].brst: unknown key (did you mean `burst`?)"#]].assert_eq(&mistakes(yaml));
    let many: String = (0..=LIMITS_MAX)
        .map(|n| format!("  - {{name: n{n}, per: route, requests_per_minute: 1}}\n"))
        .collect();
    assert!(mistakes(&format!("rules: []\nlimits:\n{many}")).contains("more than 16 limits"));
}

#[test]
fn alerts_choose_by_action_rule_and_mode() {
    let yaml = "
rules:
  - {name: out, when: bot.automation, action: logout, mode: enforce}
  - {name: ask, when: bot.automation, action: challenge}
budget: {}
alerts:
  - {name: desk, to: mail}
  - {name: soc, to: [log, webhook], actions: [challenge, pardon], rules: [ask, operator], shadow: true, cool_down: 1h}
";
    let policies = PolicySet::parse("p.yaml", yaml).unwrap();
    let [desk, soc] = policies.alerts() else { panic!("two alerts") };
    assert_eq!((desk.to.as_slice(), soc.to.as_slice()), (&["mail"][..], &["log", "webhook"][..]));
    assert_eq!((desk.cool_down_ms, soc.cool_down_ms), (0, 3_600_000));
    let incident = |rule: &str, action: Action, mode: Mode| Incident {
        id: "A".into(),
        at: gaitway_models::Timestamp(0),
        identity: crate::identity::Identity {
            session: crate::identity::SessionId([0; 16]),
            subject: None,
            token: None,
            expires_at: None,
            issued_at: None,
            groups: Vec::new(),
        },
        rule: rule.into(),
        action,
        mode,
        by: "policy".into(),
        reason: String::new(),
        policy_version: String::new(),
        facts: Facts::default(),
        until: gaitway_models::Timestamp(0),
    };
    for (rule, action, mode, to_desk, to_soc) in [
        ("out", Action::Logout, Mode::Enforce, true, false),
        ("out", Action::Logout, Mode::Shadow, false, false),
        ("ask", Action::Challenge, Mode::Shadow, false, true),
        ("operator", Action::Pardon, Mode::Enforce, true, true),
        ("ask", Action::Tarpit, Mode::Enforce, true, false),
    ] {
        let told = incident(rule, action, mode);
        assert_eq!((desk.concerns(&told), soc.concerns(&told)), (to_desk, to_soc), "{rule} {action:?}");
    }
}

#[test]
fn mistakes_in_alerts_are_told_with_their_place() {
    let yaml = "\
rules: []
alerts:
  - {name: a}
  - {name: b, to: male}
  - {name: c, to: [log, pigeon]}
  - {name: d, to: mail, actions: [logot]}
  - {name: e, to: mail, rules: [nobody]}
  - {name: e, to: mail, shadow: maybe}
";
    expect_test::expect![[r#"
        p.yaml:3:5: alerts[0].to: missing (one or several of log, mail, webhook)
        p.yaml:4:19: alerts[1].to: expected one of log, mail, webhook, found `male` (did you mean `mail`?)
        p.yaml:5:25: alerts[2].to[1]: expected one of log, mail, webhook, found `pigeon`
        p.yaml:6:35: alerts[3].actions[0]: expected one of allow, log, tag, throttle, challenge, step-up, logout, logout-everywhere, deny, tarpit, pardon, budget-trip, found `logot` (did you mean `logout`?)
        p.yaml:7:5: alerts: alert `e` names an unknown rule `nobody`
        p.yaml:8:5: alerts[5].name: two alerts are called `e`
        p.yaml:8:33: alerts[5].shadow: expected true or false, found text"#]].assert_eq(&mistakes(yaml));
}

#[test]
fn a_route_that_another_hides_is_a_mistake() {
    let yaml = "\
rules: []
routes:
  - {name: api, match: {path: /api/**}}
  - {name: write, match: {path: /api/orders, method: POST}}
";
    expect_test::expect![[
        "p.yaml:4:5: match: route `write` can never match: route `api` takes every such request before \
         (the first route that matches a request names it; put the narrower one first)"
    ]]
    .assert_eq(&mistakes(yaml));
    let (before, after) = yaml.split_once("  - {name: api").unwrap();
    let (api, write) = after.split_once('\n').unwrap();
    assert_eq!(mistakes(&format!("{before}{write}  - {{name: api{api}\n")), "none");
}

#[test]
fn a_route_names_what_its_visitors_are_known_by() {
    let policy = PolicySet::parse(
        "p.yaml",
        "identities:
  - {name: programs, by: [jwt, introspection]}
  - {name: visitors, by: []}
routes:
  - {name: api, match: {path: /api/**}, identity: programs}
  - {name: front, match: {path: /}, identity: visitors}
rules: []
",
    )
    .unwrap();
    let sources: Vec<Sources> = policy.routes().iter().map(|route| route.sources).collect();
    let programs = Sources { jwt: true, introspection: true, ..Sources::NONE };
    assert_eq!(sources, [programs, Sources::NONE]);
    let line = RequestLine { host: "", path: "/elsewhere", method: "GET", header: &|_| None };
    assert_eq!(policy.route(&line).sources, Sources::ALL);
}

#[test]
fn mistakes_about_identities_are_named_where_they_stand() {
    let mistakes = PolicySet::parse(
        "p.yaml",
        "identities:
  - {name: people, by: [app_cookie, jtw]}
  - {name: people, by: []}
  - {name: bare}
routes:
  - {name: a, match: {path: /a}, identity: peple}
  - {name: b, match: {path: /b}, identity: bare, login: required}
rules: []
",
    )
    .unwrap_err();
    let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    expect_test::expect![[r#"
        p.yaml:2:37: identities[0].by[1]: expected one of jwt, introspection, oidc, app_cookie, found `jtw`
        p.yaml:3:5: identities[1].name: a second identity `people`
        p.yaml:4:5: identities[2].by: missing (`by: [jwt]`; `by: []` goes by Gaitway's own cookie alone)
        p.yaml:6:5: identity: route `a` names an unknown identity `peple` (did you mean `people`?)
        p.yaml:7:5: login: nobody could ever reach route `b`: it asks for a login and `bare` accepts none (let the identity go by `oidc`, `jwt` or `introspection`)"#]].assert_eq(&told.join("\n"));
}
