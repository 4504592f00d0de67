//! A seeded life of two shards that share a budget: clock jumps, duplicates, reordering, reloads,
//! peers, operators, full tables. After every step everything the engine promises must hold.
//!
//! A failure prints its seed; `run(SEED)` alone repeats it.

use super::*;
use crate::policy::Budget;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

const SEEDS: u64 = 256;
const STEPS: usize = 240;
const SESSIONS: u8 = 12;
const LIMITS: EngineLimits = EngineLimits {
    sessions_max: 5,
    session_idle_ms: 30 * 60_000,
    pardon_ms: 60 * 60_000,
    revocation_ms: 6 * 3_600_000,
};

const RULES: &str = "
rules:
  - {name: friend, when: 'bot.evidence > 90.0', action: allow}
  - {name: shop, when: 'route == \"shop\"', action: allow}
  - {name: note, when: bot.score > 0.5, action: log, cool_down: 5m}
  - {name: tag, when: bot.evidence > 2.0, action: tag, tag: suspect, for: 5m, cool_down: 5m}
  - {name: slow, when: request.rate > 3.0, action: throttle, throttle: {requests_per_minute: 60}, for: 5m, cool_down: 5m}
  - {name: ask, when: bot.evidence > 4.0, action: challenge, for: 20m, cool_down: 5m}
  - {name: out, when: bot.evidence >= bot.threshold, action: logout, cool_down: 5m}
  - {name: stronger, when: bot.evidence > 5.0 && bot.score > 0.7, action: step-up, for: 20m, cool_down: 5m}
  - {name: mire, when: bot.evidence > 7.0 && request.rate > 4.0, action: tarpit, tarpit: {delay: 5s}, for: 1h, cool_down: 5m}
  - {name: no, when: bot.evidence > 6.0 && request.rate > 2.0, action: deny, for: 2h, cool_down: 5m}
";

fn policies() -> Vec<Arc<PolicySet>> {
    let budget = |minute, share, user| {
        format!(
            "budget: {{logouts_per_minute_max: {minute}, logouts_share_max: {share}%, logouts_per_user_per_day_max: {user}}}\n"
        )
    };
    [
        format!("mode: shadow{RULES}"),
        format!("mode: enforce{RULES}{}", budget(3, 60, 2)),
        format!("mode: enforce{RULES}{}", budget(1, 100, 1)),
        format!("mode: enforce{RULES}{}", budget(100, 100, 100)),
        format!(
            "mode: enforce{}{}",
            RULES.replace("action: logout", "action: logout, mode: shadow"),
            budget(3, 100, 2)
        ),
    ]
    .iter()
    .map(|yaml| Arc::new(PolicySet::parse("simulated", yaml).unwrap()))
    .collect()
}

const MINUTE: usize = 0;
const HOUR: usize = 1;
const DAY: usize = 2;

/// How often the interesting things happened, over all seeds.
#[derive(Default, Debug, PartialEq)]
struct Reached {
    denials: usize,
    shadows: usize,
    trips: usize,
    spared: usize,
    evictions: usize,
    lifted_by_pardon: usize,
    held_by_pardon: usize,
    set_back: usize,
    ended: usize,
    step_ups: usize,
    step_ups_passed: usize,
    tarpits: usize,
}

/// Where a broken promise was seen; written out only then.
struct Place<'p> {
    seed: u64,
    now: Timestamp,
    input: &'p Input,
    effects: &'p [Effect],
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {} at {} after {:?}: {:?}", self.seed, self.now.0, self.input, self.effects)
    }
}

/// What the outside knows of the engine from its effects alone, and what it must hold the engine to.
struct Witness {
    standings: BTreeMap<SessionId, Standing>,
    pardons: BTreeMap<SessionId, Timestamp>,
    spoke: BTreeMap<(SessionId, String, Mode), Timestamp>,
    /// Logouts of the last minute, hour and day; one that has once been older by any clock is not counted.
    granted: [Vec<(Timestamp, [u8; 16])>; 3],
    incidents: BTreeMap<String, (SessionId, String, Action, Mode)>,
    tripped: bool,
    reached: Reached,
}

struct World {
    seed: u64,
    rng: ChaCha8Rng,
    now: Timestamp,
    shards: [Engine; 2],
    policies: Vec<Arc<PolicySet>>,
    current: usize,
    evidence: BTreeMap<SessionId, f32>,
    last: Option<Input>,
    /// Inputs that arrive late, after others.
    delayed: Vec<Input>,
    witness: Witness,
    told: Vec<Effect>,
}

#[test]
fn every_promise_holds_after_every_step_of_256_seeds() {
    let mut reached = Reached::default();
    for seed in 0..SEEDS {
        let first = run(seed);
        let again = run(seed);
        assert_eq!(first.told, again.told, "seed {seed}: the same seed must give the same effects");
        reached.add(&first.witness.reached);
    }
    // A simulation that never gets there proves nothing.
    for (what, count) in [
        ("denials", reached.denials),
        ("shadows", reached.shadows),
        ("trips", reached.trips),
        ("spared", reached.spared),
        ("evictions", reached.evictions),
        ("lifted by pardon", reached.lifted_by_pardon),
        ("held by pardon", reached.held_by_pardon),
        ("clock set back", reached.set_back),
        ("standings ended by time", reached.ended),
        ("step-ups", reached.step_ups),
        ("step-ups passed", reached.step_ups_passed),
        ("tarpits", reached.tarpits),
    ] {
        assert!(count >= 10, "{what} was reached only {count} times: {reached:?}");
    }
}

fn run(seed: u64) -> World {
    let policies = policies();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let current = rng.random_range(0..policies.len());
    let budget = SharedBudget::new();
    let shards = [0, 1].map(|shard| {
        let mut engine = Engine::replaying(shard, LIMITS, Arc::clone(&policies[current]));
        engine.share_budget(budget.clone());
        engine
    });
    let mut world = World {
        seed,
        rng,
        now: Timestamp(1_800_000_000_000),
        shards,
        policies,
        current,
        evidence: BTreeMap::new(),
        last: None,
        delayed: Vec::new(),
        witness: Witness::new(),
        told: Vec::new(),
    };
    for _ in 0..STEPS {
        world.step();
    }
    world
}

impl World {
    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..60 => self.now.0 += self.rng.random_range(0..20_000),
            60..66 => self.now.0 += self.rng.random_range(0..3_600_000),
            66 => self.now.0 += self.rng.random_range(0..2 * 86_400_000),
            67 => {
                self.now.0 -= self.rng.random_range(0..2 * 86_400_000);
                self.witness.reached.set_back += 1;
                // What had cooled by the later time may speak again by the earlier one.
                self.witness.spoke.clear();
            }
            68 => self.now.0 -= self.rng.random_range(0..1_500),
            _ => {}
        }
        if self.rng.random_range(0..60) == 0 {
            self.current = self.rng.random_range(0..self.policies.len());
            for shard in &mut self.shards {
                shard.reload(Arc::clone(&self.policies[self.current]));
            }
        }
        let input = self.input();
        if self.rng.random_range(0..12) == 0 {
            self.delayed.push(input);
            return;
        }
        self.last = Some(input.clone());
        self.give(input);
    }

    fn input(&mut self) -> Input {
        if let (Some(last), 0) = (&self.last, self.rng.random_range(0..12)) {
            return last.clone();
        }
        if !self.delayed.is_empty() && self.rng.random_range(0..6) == 0 {
            let index = self.rng.random_range(0..self.delayed.len());
            return self.delayed.swap_remove(index);
        }
        let identity = self.identity();
        let session = identity.session;
        match self.rng.random_range(0..100) {
            0..45 => Input::Observed { identity, facts: Box::new(self.facts(session)) },
            45..75 => Input::Request {
                identity,
                request: RequestSeen::default(),
                route: if self.rng.random_range(0..4) == 0 { "shop".into() } else { "app".into() },
                net_ip: "192.0.2.1".into(),
                net_country: "NL".into(),
            },
            75..77 => Input::ChallengePassed { session },
            77..79 => Input::StepUpPassed { session, vouched: self.rng.random_range(0..2) == 0 },
            79..86 => Input::Operator {
                session,
                action: if self.rng.random_range(0..3) > 0 {
                    OperatorAction::Pardon
                } else {
                    OperatorAction::Revoke
                },
                by: "ada".into(),
                why: "asked".into(),
            },
            86..91 => Input::Peer {
                session,
                revoked: self.rng.random_range(0..3) > 0,
                until: Timestamp(self.now.0 + self.rng.random_range(0..7_200_000)),
            },
            91..94 => Input::ResetBudget { by: "ada".into() },
            _ => Input::Tick,
        }
    }

    fn identity(&mut self) -> Identity {
        let n = self.rng.random_range(0..SESSIONS);
        Identity {
            session: SessionId([n; 16]),
            // Two sessions an account, and some without one.
            subject: (n % 5 != 0).then_some(SubjectId([n / 2; 16])),
            token: None,
            expires_at: (n % 3 == 0).then_some(Timestamp(self.now.0 + 86_400_000)),
            issued_at: None,
            groups: Vec::new(),
        }
    }

    fn facts(&mut self, session: SessionId) -> Facts {
        let evidence = self.evidence.entry(session).or_insert(0.0);
        *evidence = (*evidence + self.rng.random_range(-0.5..2.5_f32)).clamp(0.0, 12.0);
        let friend = session.0[0] == 0 && self.rng.random_range(0..4) == 0;
        let mut facts = Facts::default();
        facts.assessment.bot_threshold = 8.0;
        facts.assessment.bot_score = Some(self.rng.random_range(0.0..1.0));
        facts.assessment.bot_evidence = if friend { 99.0 } else { *evidence };
        facts.requests_per_minute = f64::from(self.rng.random_range(0..6_u8));
        facts
    }

    /// One input to its shard (some to both), and the effects to the witness.
    fn give(&mut self, input: Input) {
        let shard = match &input {
            Input::Observed { identity, .. }
            | Input::Request { identity, .. }
            | Input::Batch { identity, .. } => Some(identity.session),
            Input::ChallengePassed { session }
            | Input::StepUpPassed { session, .. }
            | Input::Operator { session, .. }
            | Input::Profile { session, .. }
            | Input::Peer { session, .. } => Some(*session),
            Input::Tick | Input::ResetBudget { .. } => None,
        };
        for index in 0..2 {
            if shard.is_some_and(|session| usize::from(session.0[0]) % 2 != index) {
                continue;
            }
            let before = self.shards[index].len();
            let mut effects = Vec::new();
            self.shards[index].handle(&mut effects, self.now, input.clone());
            let known_before = self.shards.iter().map(Engine::len).sum::<usize>().max(before);
            let place = Place { seed: self.seed, now: self.now, input: &input, effects: &effects };
            self.witness.see(&place, self.now, &self.policies[self.current], known_before, &input, &effects);
            self.check_shards(&place);
            self.told.extend(effects);
        }
    }

    /// What must hold of the engines themselves, whatever was said.
    fn check_shards(&self, place: &Place<'_>) {
        let mut sessions = 0;
        for (index, engine) in self.shards.iter().enumerate() {
            sessions += engine.len();
            assert!(engine.len() <= LIMITS.sessions_max, "{place}");
            let by_last_seen: BTreeSet<_> =
                engine.sessions.iter().map(|(session, tracked)| (tracked.last_seen, *session)).collect();
            let by_due: BTreeSet<_> =
                engine.sessions.iter().map(|(session, tracked)| (tracked.due, *session)).collect();
            assert_eq!(by_last_seen, engine.by_last_seen, "a closed session left something behind: {place}");
            assert_eq!(by_due, engine.by_due, "a closed session left something behind: {place}");
            for (session, tracked) in &engine.sessions {
                assert_eq!(tracked.due, tracked.next_due(&LIMITS), "{place}");
                assert!(tracked.seen.len() <= DECISIONS_SEEN_MAX && tracked.spoke.len() <= 16, "{place}");
                let told = self.witness.standings.get(session).unwrap_or(&Standing::Allow);
                assert_eq!(&tracked.standing, told, "the effects do not tell what stands: {place}");
            }
            for session in
                self.witness.standings.keys().filter(|session| usize::from(session.0[0]) % 2 == index)
            {
                assert!(engine.sessions.contains_key(session), "kept outside after closing: {place}");
            }
        }
        assert_eq!(self.shards[0].budget().sessions(), sessions, "{place}");
    }
}

impl Witness {
    fn new() -> Witness {
        Witness {
            standings: BTreeMap::new(),
            pardons: BTreeMap::new(),
            spoke: BTreeMap::new(),
            granted: Default::default(),
            incidents: BTreeMap::new(),
            tripped: false,
            reached: Reached::default(),
        }
    }

    fn see(
        &mut self,
        place: &Place<'_>,
        now: Timestamp,
        policies: &PolicySet,
        sessions: usize,
        input: &Input,
        effects: &[Effect],
    ) {
        let by_policy = matches!(input, Input::Observed { .. } | Input::Request { .. });
        let was_tripped = self.tripped;
        for (granted, span) in self.granted.iter_mut().zip([60, 3_600, 86_400]) {
            granted.retain(|(at, _)| now.since(*at) < Duration::from_secs(span));
        }
        self.note_pardon(now, input, effects);
        for effect in effects {
            match effect {
                Effect::Incident(incident) => {
                    self.see_incident(place, now, policies, sessions, was_tripped, incident)
                }
                Effect::Stand { session, standing, until } => {
                    assert!(*until >= now, "{place}");
                    self.see_standing(
                        place,
                        now,
                        policies,
                        input,
                        by_policy,
                        was_tripped,
                        *session,
                        standing,
                    );
                }
                Effect::Forget { session } => {
                    self.reached.evictions += usize::from(by_policy);
                    assert!(
                        !matches!(self.standings.get(session), Some(standing) if *standing != Standing::Allow)
                            || by_policy
                            || matches!(input, Input::Operator { .. }),
                        "only a full table closes a session that something stands against: {place}"
                    );
                    self.standings.remove(session);
                    self.pardons.remove(session);
                    self.spoke.retain(|(spoken, ..), _| spoken != session);
                }
                Effect::Learnt { .. } => panic!("nobody gave a profile: {place}"),
                Effect::BudgetTripped { account, cap, .. } => {
                    assert!(!was_tripped, "said once: {place}");
                    assert_eq!(account.is_some(), *cap == Cap::PerUserPerDay, "{place}");
                    if account.is_none() {
                        self.tripped = true;
                        self.reached.trips += 1;
                    } else {
                        self.reached.spared += 1;
                    }
                }
                Effect::BudgetReset { .. } => {
                    self.tripped = false;
                    self.granted.iter_mut().for_each(Vec::clear);
                }
            }
        }
    }

    fn note_pardon(&mut self, now: Timestamp, input: &Input, effects: &[Effect]) {
        match input {
            Input::Operator { session, action: OperatorAction::Pardon, .. } => {
                self.pardons.insert(*session, now.plus(Duration::from_millis(LIMITS.pardon_ms)));
                self.spoke.retain(|(spoken, ..), _| spoken != session);
            }
            Input::Operator { session, action: OperatorAction::Revoke, .. } => {
                self.pardons.remove(session);
            }
            // Only for sessions that are here, which the effects tell.
            Input::Peer { session, revoked: false, until } if effects.iter().any(|effect| matches!(effect, Effect::Stand { session: lifted, standing: Standing::Allow, .. } if lifted == session)) => {
                self.pardons.insert(*session, *until);
                self.spoke.retain(|(spoken, ..), _| spoken != session);
            }
            Input::Observed { identity, facts } => {
                let pardoned = self.pardons.get(&identity.session).is_some_and(|until| now < *until);
                self.reached.held_by_pardon += usize::from(pardoned && facts.assessment.bot_evidence >= 8.0);
            }
            _ => {}
        }
    }

    fn see_incident(
        &mut self,
        place: &Place<'_>,
        now: Timestamp,
        policies: &PolicySet,
        sessions: usize,
        was_tripped: bool,
        incident: &Incident,
    ) {
        let session = incident.identity.session;
        assert_eq!(incident.at, now, "{place}");
        assert_eq!(incident.policy_version, policies.version(), "{place}");
        assert!(!incident.rule.is_empty() && !incident.reason.is_empty(), "{place}");
        let told = (session, incident.rule.clone(), incident.action, incident.mode);
        assert!(self.incidents.insert(incident.id.clone(), told).is_none(), "a number twice: {place}");
        if incident.by != "policy" {
            return;
        }
        assert!(self.pardons.get(&session).is_none_or(|until| now >= *until), "a pardon wins: {place}");
        let rule = policies.rule(&incident.rule).unwrap_or_else(|| panic!("names no rule: {place}"));
        assert_eq!(incident.action, rule.measure.action(), "{place}");
        let key = (session, incident.rule.clone(), incident.mode);
        if let Some(at) = self.spoke.insert(key, now) {
            assert!(
                now.since(at) >= Duration::from_millis(rule.cool_down_ms),
                "said twice in its cool-down: {place}"
            );
        }
        if incident.mode == Mode::Shadow {
            self.reached.shadows += 1;
            return;
        }
        assert_eq!(rule.mode, Mode::Enforce, "shadow never enforces: {place}");
        assert!(!was_tripped, "an open breaker never enforces: {place}");
        if incident.action.shuts_out() {
            self.reached.denials += 1;
            self.spend(place, now, &policies.budget, sessions, incident);
        }
    }

    fn spend(
        &mut self,
        place: &Place<'_>,
        now: Timestamp,
        budget: &Budget,
        sessions: usize,
        incident: &Incident,
    ) {
        let account = incident.identity.subject.map_or(incident.identity.session.0, |subject| subject.0);
        self.granted.iter_mut().for_each(|granted| granted.push((now, account)));
        let granted = |span: usize| self.granted[span].iter();
        assert!(granted(MINUTE).count() <= budget.logouts_per_minute_max as usize, "{place}");
        let share = ((sessions as f64 * budget.logouts_share_max) as usize).max(1);
        assert!(granted(HOUR).count() <= share, "{share} of {sessions}: {place}");
        let of_account = granted(DAY).filter(|(_, granted)| *granted == account).count();
        assert!(of_account <= budget.logouts_per_user_per_day_max as usize, "{of_account}: {place}");
    }

    #[allow(clippy::too_many_arguments)] // one call, and every part is looked at
    fn see_standing(
        &mut self,
        place: &Place<'_>,
        now: Timestamp,
        policies: &PolicySet,
        input: &Input,
        by_policy: bool,
        was_tripped: bool,
        session: SessionId,
        standing: &Standing,
    ) {
        let stood = self.standings.insert(session, standing.clone());
        if *standing == Standing::Allow {
            let pardoned = matches!(input, Input::Operator { action: OperatorAction::Pardon, .. });
            self.reached.lifted_by_pardon +=
                usize::from(pardoned && matches!(stood, Some(Standing::Deny { .. })));
            self.reached.ended += usize::from(matches!(input, Input::Tick));
            if let Input::ChallengePassed { .. } = input {
                assert_eq!(stood, Some(Standing::Challenge), "a challenge lifts nothing else: {place}");
            }
            if let Input::StepUpPassed { .. } = input {
                let asked = matches!(stood, Some(Standing::StepUp { .. }));
                assert!(asked || stood == Some(Standing::Challenge), "nor does a step-up: {place}");
                self.reached.step_ups_passed += usize::from(asked);
            }
            return;
        }
        self.reached.step_ups += usize::from(matches!(standing, Standing::StepUp { .. }));
        self.reached.tarpits += usize::from(matches!(standing, Standing::Tarpit { .. }));
        // A clock that was set back repeats what stands with its new end; nothing else says it twice.
        let repeated = stood.as_ref() == Some(standing);
        if by_policy && !repeated {
            assert!(policies.enforces() && !was_tripped, "shadow never enforces: {place}");
            assert!(self.pardons.get(&session).is_none_or(|until| now >= *until), "a pardon wins: {place}");
        }
        if let Standing::Deny { incident } | Standing::Tarpit { incident, .. } = standing {
            if incident.is_empty() {
                assert!(matches!(input, Input::Peer { .. }) || repeated, "{place}");
                return;
            }
            let Some((of, rule, action, mode)) = self.incidents.get(incident) else {
                panic!("a denial without incident: {place}")
            };
            assert!(action.shuts_out() && *mode == Mode::Enforce && *of == session, "{place}");
            assert!(rule == "operator" || policies.rule(rule).is_some(), "{place}");
        }
    }
}

impl Reached {
    fn add(&mut self, other: &Reached) {
        self.denials += other.denials;
        self.shadows += other.shadows;
        self.trips += other.trips;
        self.spared += other.spared;
        self.evictions += other.evictions;
        self.lifted_by_pardon += other.lifted_by_pardon;
        self.held_by_pardon += other.held_by_pardon;
        self.set_back += other.set_back;
        self.ended += other.ended;
        self.step_ups += other.step_ups;
        self.step_ups_passed += other.step_ups_passed;
        self.tarpits += other.tarpits;
    }
}
