//! Stories of single sessions: inputs in, effects out.

use super::*;
use gaitway_models::Evidence;

const MINUTE: u64 = 60_000;
const LIMITS: EngineLimits = EngineLimits {
    sessions_max: 4,
    session_idle_ms: 30 * MINUTE,
    pardon_ms: 60 * MINUTE,
    revocation_ms: 24 * 60 * MINUTE,
};
const GENEROUS: &str =
    "budget: {logouts_per_minute_max: 100, logouts_share_max: 100%, logouts_per_user_per_day_max: 100}\n";

fn identity(n: u8) -> Identity {
    Identity {
        session: SessionId([n; 16]),
        subject: Some(SubjectId([n; 16])),
        token: None,
        expires_at: None,
        issued_at: None,
        groups: Vec::new(),
    }
}

/// An engine, its clock, and what it said last.
struct Story {
    engine: Engine,
    now: Timestamp,
    effects: Vec<Effect>,
}

impl Story {
    fn with(rules: &str) -> Story {
        Story::full(&format!("mode: enforce\nrules:\n{rules}{GENEROUS}"))
    }

    fn full(yaml: &str) -> Story {
        let engine = Engine::replaying(3, LIMITS, policies(yaml));
        Story { engine, now: Timestamp(1_800_000_000_000), effects: Vec::new() }
    }

    fn input(&mut self, input: Input) -> &mut Story {
        self.effects.clear();
        self.engine.handle(&mut self.effects, self.now, input);
        self
    }

    fn evidence(&mut self, n: u8, evidence: f32) -> &mut Story {
        let assessment = Assessment {
            bot_evidence: evidence,
            bot_threshold: 8.0,
            evidence: Evidence { seconds: 60.0, events: 1_000 },
            ..Assessment::default()
        };
        self.input(Input::Observed {
            identity: identity(n),
            facts: Box::new(Facts { assessment, ..Facts::default() }),
        })
    }

    fn request(&mut self, n: u8) -> &mut Story {
        self.input(Input::Request {
            identity: identity(n),
            request: RequestSeen::default(),
            route: "shop".into(),
            net_ip: "192.0.2.1".into(),
            net_country: "NL".into(),
        })
    }

    fn operator(&mut self, n: u8, action: OperatorAction) -> &mut Story {
        let (by, why) = ("ada".into(), "a person called".into());
        self.input(Input::Operator { session: SessionId([n; 16]), action, by, why })
    }

    fn after(&mut self, ms: u64) -> &mut Story {
        self.now = Timestamp(self.now.0 + ms);
        self.input(Input::Tick)
    }

    /// The effects in few words.
    fn said(&self) -> String {
        let word = |effect: &Effect| match effect {
            Effect::Stand { standing, .. } => match standing {
                Standing::Deny { incident } if incident.is_empty() => "deny(?)".into(),
                Standing::Deny { .. } => "deny".into(),
                Standing::Tarpit { .. } => "tarpit".into(),
                other => format!("{other:?}").to_lowercase().split(' ').next().unwrap_or("").to_owned(),
            },
            Effect::Incident(incident) => {
                format!("{:?}/{:?}/{}", incident.mode, incident.action, incident.rule).to_lowercase()
            }
            Effect::Forget { .. } => "forget".into(),
            Effect::Learnt { .. } => "learnt".into(),
            Effect::BudgetTripped { cap, account, .. } => {
                format!("tripped:{cap:?}{}", if account.is_some() { ":account" } else { "" })
            }
            Effect::BudgetReset { .. } => "reset".into(),
        };
        self.effects.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    fn standing(&self, n: u8) -> Standing {
        self.engine.session(&SessionId([n; 16])).unwrap().standing
    }
}

fn policies(yaml: &str) -> Arc<PolicySet> {
    Arc::new(PolicySet::parse("test.yaml", yaml).unwrap())
}

const LOGOUT: &str = "  - {name: out, when: bot.evidence >= bot.threshold, action: logout}\n";

#[test]
fn evidence_over_the_threshold_logs_out_once_with_an_incident() {
    let mut story = Story::with(LOGOUT);
    assert_eq!(story.evidence(1, 7.9).said(), "");
    assert_eq!(story.evidence(1, 8.0).said(), "enforce/logout/out deny");
    let Effect::Incident(incident) = &story.effects[0] else { panic!("an incident first") };
    assert_eq!(incident.until, story.now.plus(Duration::from_millis(LIMITS.revocation_ms)));
    assert_eq!(story.standing(1), Standing::Deny { incident: incident.id.clone() });
    assert_eq!(story.evidence(1, 9.0).said(), "", "a revoked session is not judged again");
    assert_eq!(story.evidence(2, 1.0).said(), "", "others stay");
}

#[test]
fn a_revocation_outlives_its_token() {
    let mut story = Story::with(LOGOUT);
    let expires_at = story.now.plus(Duration::from_millis(90 * 24 * 60 * MINUTE));
    let identity = Identity { expires_at: Some(expires_at), ..identity(1) };
    let assessment = Assessment { bot_evidence: 9.0, bot_threshold: 8.0, ..Assessment::default() };
    let facts = Box::new(Facts { assessment, ..Facts::default() });
    story.input(Input::Observed { identity, facts });
    assert!(matches!(&story.effects[1], Effect::Stand { until, .. } if *until == expires_at));
}

#[test]
fn shadow_tells_and_does_nothing() {
    let mut story = Story::full(&format!("rules:\n{LOGOUT}"));
    assert_eq!(story.evidence(1, 9.0).said(), "shadow/logout/out");
    assert_eq!(story.evidence(1, 9.0).said(), "", "once per cool-down");
    story.after(10 * MINUTE);
    assert_eq!(story.evidence(1, 9.0).said(), "shadow/logout/out");
    assert_eq!(story.standing(1), Standing::Allow);
    let decisions = story.engine.session(&SessionId([1; 16])).unwrap().decisions;
    assert_eq!(decisions.len(), 2);
}

#[test]
fn the_strictest_enforced_rule_acts_and_a_milder_one_never_softens() {
    let mut story = Story::with(
        "  - {name: tag, when: bot.evidence > 1.0, action: tag, tag: x, cool_down: 1s}\n  - {name: slow, when: bot.evidence > 2.0, action: throttle, throttle: {requests_per_minute: 60}, for: 10m}\n",
    );
    assert_eq!(story.evidence(1, 3.0).said(), "enforce/throttle/slow throttle");
    story.after(2_000);
    assert_eq!(story.evidence(1, 1.5).said(), "enforce/tag/tag", "told, but the throttle stays");
    assert!(matches!(story.standing(1), Standing::Throttle { requests_per_minute: 60, burst: 15 }));
    assert_eq!(story.after(10 * MINUTE).said(), "allow", "a standing ends by itself");
}

#[test]
fn allow_rules_win_and_free() {
    let mut story = Story::with(
        "  - {name: slow, when: request.count >= 1, action: challenge}\n  - {name: vip, when: bot.evidence > 5.0, action: allow}\n",
    );
    assert_eq!(story.request(1).said(), "enforce/challenge/slow challenge");
    assert_eq!(story.evidence(1, 6.0).said(), "allow");
    assert_eq!(story.request(1).said(), "");
}

#[test]
fn an_allow_rule_about_the_request_does_not_free_the_session() {
    let mut story = Story::with(
        "  - {name: slow, when: bot.evidence > 5.0, action: challenge}\n  - {name: shop, when: route == \"shop\", action: allow}\n",
    );
    story.evidence(1, 6.0);
    assert_eq!(story.request(1).said(), "");
    assert_eq!(story.standing(1), Standing::Challenge);
}

#[test]
fn a_passed_challenge_is_not_asked_again() {
    let mut story =
        Story::with("  - {name: ask, when: bot.evidence > 1.0, action: challenge, cool_down: 1s}\n");
    assert_eq!(story.evidence(1, 2.0).said(), "enforce/challenge/ask challenge");
    assert_eq!(story.input(Input::ChallengePassed { session: SessionId([1; 16]) }).said(), "allow");
    story.after(5_000);
    assert_eq!(story.evidence(1, 3.0).said(), "");
    story.after(29 * MINUTE);
    story.request(1);
    story.after(2 * MINUTE);
    assert_eq!(story.evidence(1, 3.0).said(), "enforce/challenge/ask challenge", "the pass has run out");
}

#[test]
fn a_pardon_reverses_and_wins_over_rules() {
    let mut story = Story::with(LOGOUT);
    story.evidence(1, 9.0);
    assert_eq!(story.operator(1, OperatorAction::Pardon).said(), "enforce/pardon/operator allow");
    assert_eq!(story.evidence(1, 20.0).said(), "");
    assert_eq!(story.standing(1), Standing::Allow);
    let peer = Input::Peer { session: SessionId([1; 16]), revoked: true, until: Timestamp(u64::MAX) };
    assert_eq!(story.input(peer).said(), "", "also over a revocation decided elsewhere at the same moment");
    story.after(29 * MINUTE);
    story.request(1);
    story.after(29 * MINUTE);
    story.request(1);
    story.after(2 * MINUTE);
    assert_eq!(story.evidence(1, 20.0).said(), "enforce/logout/out deny", "an hour later rules hold again");
}

#[test]
fn an_operator_revokes_whatever_the_policy_says() {
    let mut story = Story::full("rules: []\n");
    assert_eq!(story.operator(1, OperatorAction::Revoke).said(), "enforce/logout/operator deny");
    let Effect::Incident(incident) = &story.effects[0] else { panic!("an incident first") };
    assert_eq!((incident.by.as_str(), incident.reason.as_str()), ("ada", "a person called"));
    assert_eq!(story.operator(1, OperatorAction::Pardon).said(), "enforce/pardon/operator allow");
    assert_eq!(
        story.operator(1, OperatorAction::Revoke).said(),
        "enforce/logout/operator deny",
        "a later word counts"
    );
}

#[test]
fn a_peers_word_moves_only_sessions_that_are_here() {
    let mut story = Story::full("rules: []\n");
    let peer = |story: &Story, revoked| Input::Peer {
        session: SessionId([1; 16]),
        revoked,
        until: Timestamp(story.now.0 + MINUTE),
    };
    let input = peer(&story, true);
    assert_eq!(story.input(input).said(), "");
    story.request(1);
    let input = peer(&story, true);
    assert_eq!(story.input(input).said(), "deny(?)");
    let input = peer(&story, false);
    assert_eq!(story.input(input).said(), "allow");
}

#[test]
fn a_session_that_comes_back_pardoned_is_left_alone_until_the_pardon_ends() {
    let mut story = Story::with(LOGOUT);
    let until = Timestamp(story.now.0 + MINUTE);
    story.engine.open_pardoned(&mut Vec::new(), story.now, identity(1), until);
    assert_eq!(story.evidence(1, 9.0).said(), "");
    assert_eq!(story.engine.session(&SessionId([1; 16])).unwrap().pardoned_until, Some(until));
    story.after(MINUTE);
    assert_eq!(story.evidence(1, 9.0).said(), "enforce/logout/out deny");
}

#[test]
fn the_breaker_drops_to_shadow_loudly_and_comes_back_by_hand() {
    let mut story = Story::full(&format!(
        "mode: enforce\nrules:\n{LOGOUT}budget: {{logouts_per_minute_max: 1, logouts_share_max: 100%}}\n"
    ));
    assert_eq!(story.evidence(1, 9.0).said(), "enforce/logout/out deny");
    story.evidence(2, 0.0);
    story.evidence(3, 0.0);
    assert_eq!(story.evidence(2, 9.0).said(), "tripped:PerMinute shadow/logout/out");
    assert_eq!(story.evidence(3, 9.0).said(), "shadow/logout/out", "said once");
    story.after(20 * MINUTE);
    assert_eq!(story.evidence(2, 9.0).said(), "shadow/logout/out", "time does not heal it");
    story.engine.reload(policies(&format!("mode: enforce\nrules:\n{LOGOUT}{GENEROUS}")));
    assert_eq!(story.evidence(3, 9.0).said(), "shadow/logout/out", "nor does a reload");
    assert_eq!(story.input(Input::ResetBudget { by: "ada".into() }).said(), "reset");
    assert_eq!(story.evidence(2, 9.0).said(), "enforce/logout/out deny");
}

#[test]
fn shards_share_one_budget() {
    let yaml = format!(
        "mode: enforce\nrules:\n{LOGOUT}budget: {{logouts_per_minute_max: 1, logouts_share_max: 100%}}\n"
    );
    let (mut left, mut right) = (Story::full(&yaml), Story::full(&yaml));
    let budget = SharedBudget::new();
    left.engine.share_budget(budget.clone());
    right.engine.share_budget(budget.clone());
    left.evidence(3, 0.0);
    left.evidence(1, 9.0);
    assert_eq!(right.evidence(2, 9.0).said(), "tripped:PerMinute shadow/logout/out");
    assert_eq!(budget.sessions(), 3);
    drop(left);
    assert_eq!(budget.sessions(), 1);
}

#[test]
fn movement_recorded_on_one_shard_is_recognised_on_another() {
    use gaitway_models::replay::{MEMORY_SHINGLES, Memory};
    use gaitway_models::sim::Visitor;
    let memory = SharedMemory::new(Memory::new(MEMORY_SHINGLES, u64::MAX));
    let rule = "  - {name: replay, when: replay.match >= 0.8, action: log, reason: \"{replay.match} {replay.kind}\"}\n";
    let detector = Arc::new(Detector::load(gaitway_models::DEFAULT_MODEL).unwrap());
    let told = |shard: u8, n: u8| {
        let policies = policies(&format!("mode: enforce\nrules:\n{rule}"));
        let mut engine = Engine::new(shard, LIMITS, policies, detector.clone());
        engine.share_memory(memory.clone());
        let mut visitor = Visitor::person(7);
        let mut effects = Vec::new();
        for i in 0..60u64 {
            let batch = visitor.next_batch(2.0);
            let now = Timestamp(1_800_000_000_000 + 2_000 * (i + 1));
            engine.handle(&mut effects, now, Input::Batch { identity: identity(n), page: 1, batch });
        }
        let seen = engine.session(&SessionId([n; 16])).unwrap();
        (seen.replay_match.unwrap(), seen.replay_kind, seen.decisions.first().map(|said| said.reason.clone()))
    };
    let (share, _, reason) = told(0, 1);
    assert!(share < 0.2 && reason.is_none(), "the first to move repeats nobody: {share}");
    let (share, kind, reason) = told(1, 2);
    assert!(share > 0.9, "{share}");
    assert_eq!(kind, Some(ReplayKind::Exact));
    assert!(reason.unwrap().ends_with(" exact"));
}

#[test]
fn an_idle_session_is_closed_and_the_idlest_evicted() {
    let mut story = Story::full("rules: []\n");
    for n in 1..=4 {
        story.request(n);
        story.after(1_000);
    }
    story.request(1);
    assert_eq!(story.request(5).said(), "forget");
    assert_eq!(story.effects[0], Effect::Forget { session: SessionId([2; 16]) });
    assert_eq!(story.after(31 * MINUTE).said(), "forget forget forget forget");
    assert!(story.engine.is_empty());
    assert_eq!(story.engine.budget().sessions(), 0);
}

#[test]
fn a_denied_session_stays_while_it_is_denied() {
    let mut story = Story::with("  - {name: no, when: bot.evidence > 1.0, action: deny, for: 2h}\n");
    story.evidence(1, 2.0);
    assert_eq!(story.after(60 * MINUTE).said(), "");
    assert_eq!(story.after(60 * MINUTE).said(), "allow forget");
}

#[test]
fn a_clock_set_back_does_not_lengthen_a_measure() {
    let mut story = Story::with("  - {name: no, when: bot.evidence > 1.0, action: deny, for: 10m}\n");
    story.evidence(1, 2.0);
    story.now = Timestamp(story.now.0 - 24 * 60 * MINUTE);
    assert_eq!(story.input(Input::Tick).said(), "deny");
    assert_eq!(story.after(10 * MINUTE).said(), "allow");
}

#[test]
fn the_request_rate_is_that_of_the_last_minute() {
    let mut story = Story::with("  - {name: fast, when: request.rate > 100.0, action: log, cool_down: 1s}\n");
    for _ in 0..100 {
        assert_eq!(story.request(1).said(), "");
    }
    story.after(61_000);
    assert_eq!(story.request(1).said(), "");
    for _ in 0..100 {
        story.request(1);
    }
    // A burst is read at the next tick at the latest.
    assert_eq!(story.input(Input::Tick).said(), "shadow/log/fast");
    story.now = Timestamp(story.now.0 - 60 * MINUTE);
    assert_eq!(story.request(1).said(), "", "a clock set back starts the count anew");
}

#[test]
fn the_facts_carry_the_identity_and_addresses_never_leave() {
    let mut story = Story::with(
        "  - {name: r, when: 'net.within(\"192.0.2.0/24\")', action: log, reason: 'user {user.id}'}\n",
    );
    story.request(1);
    let Effect::Incident(incident) = &story.effects[0] else { panic!("an incident") };
    assert_eq!(incident.reason, format!("user u_{}", "01".repeat(16)));
    assert!(!serde_json::to_string(incident).unwrap().contains("192.0.2.1"));
    let back: Incident = serde_json::from_str(&serde_json::to_string(incident).unwrap()).unwrap();
    assert_eq!(back.rule, "r");
}

#[test]
fn incident_numbers_are_short_and_differ() {
    let mut counter = 0;
    let now = Timestamp(1_800_000_000_000);
    let ids: BTreeSet<String> =
        (0..4096).map(|_| incident_id(now, 7, &mut counter, SessionId([9; 16]))).collect();
    assert_eq!(ids.len(), 4096);
    assert!(ids.iter().all(|id| id.len() == 14 && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')));
    assert!(!ids.contains(&incident_id(now, 8, &mut 0, SessionId([9; 16]))));
}

const STRANGER: &str =
    "  - {name: stranger, when: bot.evidence > 2.0, action: step-up, step_up: {max_age: 1m}, for: 1h}
  - {name: ask, when: bot.evidence > 1.0, action: challenge, for: 1h}
";

#[test]
fn a_step_up_is_lifted_by_a_new_login_and_not_by_a_challenge() {
    let mut story = Story::with(STRANGER);
    let session = SessionId([1; 16]);
    assert_eq!(story.evidence(1, 3.0).said(), "enforce/stepup/stranger stepup");
    assert_eq!(story.input(Input::ChallengePassed { session }).said(), "");
    assert_eq!(story.input(Input::StepUpPassed { session, vouched: true }).said(), "allow");
    assert_eq!(story.evidence(1, 3.0).said(), "", "the rule cools down");
    // Whoever has logged in again need not press a button as well.
    let mut story = Story::with(STRANGER);
    assert_eq!(story.evidence(1, 1.5).said(), "enforce/challenge/ask challenge");
    assert_eq!(story.input(Input::StepUpPassed { session, vouched: true }).said(), "allow");
    assert_eq!(
        story.input(Input::StepUpPassed { session: SessionId([9; 16]), vouched: true }).said(),
        "",
        "nobody here"
    );
}

#[test]
fn a_step_up_gives_way_only_to_one_that_asks_for_no_less() {
    // Demands as `acr_values max_age`; the rule at the higher evidence comes second.
    let check = |first: (&str, &str), second: (&str, &str), replaces: bool| {
        let rule = |(acr_values, max_age): (&str, &str), name: &str, above: &str| {
            format!(
                "  - {{name: {name}, when: bot.evidence > {above}, action: step-up, for: 1h, \
                 step_up: {{acr_values: \"{acr_values}\", max_age: {max_age}}}}}\n"
            )
        };
        let mut story = Story::with(&[rule(second, "second", "2.0"), rule(first, "first", "1.0")].concat());
        story.evidence(1, 1.5);
        let stood = story.standing(1);
        assert!(matches!(stood, Standing::StepUp { .. }));
        story.evidence(1, 3.0);
        assert_eq!(story.standing(1) != stood, replaces, "{first:?}, then {second:?}");
    };
    check(("mfa", "0s"), ("mfa", "60s"), true);
    check(("mfa", "60s"), ("mfa", "0s"), false);
    check(("", "120s"), ("", "60s"), true);
    check(("", "60s"), ("", "120s"), false);
    check(("mfa hwk", "0s"), ("hwk", "0s"), true);
    check(("hwk", "0s"), ("mfa hwk", "0s"), false);
    check(("", "60s"), ("mfa", "60s"), true);
    check(("mfa", "60s"), ("", "60s"), false);
    // Neither answers the other: what stands stays.
    check(("mfa", "0s"), ("", "60s"), false);
    check(("", "60s"), ("mfa", "0s"), false);
    check(("mfa", "0s"), ("hwk", "0s"), false);
    // A step-up that names nothing wants proof from after the question.
    check(("", "60s"), ("", "0s"), true);
    check(("", "0s"), ("", "60s"), false);
    check(("mfa", "0s"), ("", "0s"), false);
}

#[test]
fn a_tarpit_is_a_refusal_for_a_while_that_draws_on_the_budget() {
    let rule = "  - {name: mire, when: bot.evidence > 2.0, action: tarpit, tarpit: {delay: 5s}, for: 1h}\n";
    let mut story = Story::with(rule);
    assert_eq!(story.evidence(1, 3.0).said(), "enforce/tarpit/mire tarpit");
    let Effect::Incident(incident) = &story.effects[0] else { panic!("an incident first") };
    let stands = Standing::Tarpit { incident: incident.id.clone(), delay_ms: 5_000 };
    assert_eq!(story.standing(1), stands);
    // The board echoes it; that must not turn it into the end of the login.
    let until = story.now.plus(Duration::from_millis(60 * MINUTE));
    let session = SessionId([1; 16]);
    assert_eq!(story.input(Input::Peer { session, revoked: true, until }).said(), "");
    assert_eq!(story.standing(1), stands);
    assert_eq!(story.operator(1, OperatorAction::Pardon).said(), "enforce/pardon/operator allow");
    assert_eq!(story.evidence(1, 9.0).said(), "", "a pardon wins");
    assert!(Action::Tarpit.shuts_out() && Action::Tarpit > Action::Deny);
}
