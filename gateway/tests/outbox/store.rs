//! One suite of claims, run on both databases, and what is special about each.

use crate::incidents::{logout, with};
use crate::postgres::Postgres;
use gaitway::revocation::{Pardon, Scope};
use gaitway::store::{
    self, AuditRecord, BudgetTrip, IncidentFilter, PostgresStore, SqliteStore, Step, StepState, Store,
    StoreError,
};
use gaitway_models::Timestamp;
use gaitway_policies::engine::{Action, Mode};
use gaitway_policies::{Incident, SessionId, SubjectId, TokenId};
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::time::Duration;

const NOW: Timestamp = Timestamp(1_790_000_000_000);

fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

#[tokio::test]
async fn sqlite_conforms() {
    for (name, claim) in CLAIMS {
        println!("sqlite: {name}");
        let directory = tempfile::tempdir().unwrap();
        claim(&SqliteStore::open(&directory.path().join("store.sqlite")).await.unwrap()).await;
    }
}

#[tokio::test]
async fn postgres_conforms() {
    let server = Postgres::start();
    for (name, claim) in CLAIMS {
        println!("postgres: {name}");
        claim(&PostgresStore::open(&server.database(name)).await.unwrap()).await;
    }
}

type Claim = for<'a> fn(&'a dyn Store) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! claims {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), |store| Box::pin($name(store)))),*] };
}

const CLAIMS: &[(&str, Claim)] = claims![
    an_incident_comes_back_as_it_was_recorded,
    recording_twice_changes_nothing,
    every_value_of_an_incident_survives,
    due_gives_pending_steps_only_and_the_longest_due_first,
    a_claim_is_given_once,
    incidents_are_filtered_and_newest_first,
    shadow_decisions_are_never_in_force,
    a_revocation_is_in_force_until_the_token_expires,
    logout_everywhere_is_in_force_for_the_subject,
    a_pardon_lifts_what_was_before_it_and_nothing_after,
    pardons_come_back_with_all_that_they_lifted,
    a_pardon_shows_on_the_incident,
    the_audit_trail_names_every_revocation_pardon_and_shadow_decision,
    pruning_keeps_what_is_unfinished_or_in_force,
    a_pardon_outlives_the_revocation_it_lifted,
    events_wait_in_order_until_they_are_fetched_or_too_many,
    concurrent_records_all_arrive,
    a_used_up_budget_is_remembered_until_it_is_reset,
    a_profile_comes_back_and_an_older_one_never_replaces_it,
    of_many_who_learnt_from_one_profile_one_writes,
    who_is_forgotten_is_not_written_back_by_those_who_remember,
    versions_rise_even_if_a_clock_is_behind,
    profiles_expire_and_leave_no_trace,
    a_profile_that_is_too_large_is_refused,
];

async fn an_incident_comes_back_as_it_was_recorded(store: &dyn Store) {
    let incident = logout(1, NOW);
    let steps = [Step::pending("revoke", NOW), Step::pending("log", NOW), Step::pending("mail", later(9))];
    store.record(&incident, &steps).await.unwrap();
    let row = store.incident(&incident.id).await.unwrap().unwrap();
    assert_eq!(row.incident, incident);
    assert_eq!(row.steps, steps);
    assert_eq!(row.pardoned, None);
    assert_eq!(store.incident("G-unknown").await.unwrap(), None);
}

async fn recording_twice_changes_nothing(store: &dyn Store) {
    let incident = logout(1, NOW);
    store.record(&incident, &[Step::pending("revoke", NOW)]).await.unwrap();
    let done = Step { state: StepState::Done, attempts: 1, ..Step::pending("revoke", NOW) };
    store.update_step(&incident.id, &done).await.unwrap();
    store.record(&incident, &[Step::pending("revoke", NOW), Step::pending("mail", NOW)]).await.unwrap();
    assert_eq!(store.incident(&incident.id).await.unwrap().unwrap().steps, [done]);
    assert_eq!(store.audit_trail(10).await.unwrap().len(), 1);
}

async fn every_value_of_an_incident_survives(store: &dyn Store) {
    let incident = with(logout(1, NOW), |incident| {
        incident.reason = "NUL \0, quotes ' \" $1 ?, 线路 \u{1F6B6}, \r\n.\r\n".into();
        incident.until = Timestamp(u64::MAX);
        incident.identity.subject = None;
        incident.identity.token = None;
        incident.facts.session_age_seconds = f64::INFINITY;
        incident.facts.assessment.reasons[0].value = f32::NAN;
        incident.facts.assessment.bot_score = Some(f32::NAN);
    });
    store.record(&incident, &[Step::pending("mail", NOW)]).await.unwrap();
    let expected = with(incident, |incident| {
        incident.facts.session_age_seconds = 0.0;
        incident.facts.assessment.reasons[0].value = 0.0;
        incident.facts.assessment.bot_score = None;
    });
    assert_eq!(store.due(NOW, 10).await.unwrap()[0].incident, expected);
    let active = store.active_revocations(NOW).await.unwrap();
    assert_eq!(active.len(), 1);
}

async fn due_gives_pending_steps_only_and_the_longest_due_first(store: &dyn Store) {
    for number in [3, 1, 2, 4] {
        let at = later(u64::from(number));
        store.record(&logout(number, at), &[Step::pending("mail", at)]).await.unwrap();
    }
    let ids = |rows: Vec<store::IncidentRow>| rows.into_iter().map(|row| row.incident.id).collect::<Vec<_>>();
    assert_eq!(ids(store.due(later(3), 10).await.unwrap()), ["G-001", "G-002", "G-003"]);
    assert_eq!(ids(store.due(later(3), 2).await.unwrap()), ["G-001", "G-002"]);
    let done = Step { state: StepState::Done, ..Step::pending("mail", NOW) };
    let failed = Step { state: StepState::Failed, outcome: "refused".into(), ..Step::pending("mail", NOW) };
    let later_again = Step { attempts: 3, ..Step::pending("mail", later(60)) };
    store.update_step("G-001", &done).await.unwrap();
    store.update_step("G-002", &failed).await.unwrap();
    store.update_step("G-003", &later_again).await.unwrap();
    assert_eq!(ids(store.due(later(5), 10).await.unwrap()), ["G-004"]);
    let rows = store.due(later(60), 10).await.unwrap();
    assert_eq!(rows[1].steps, [later_again]);
    assert_eq!(
        ids(rows),
        ["G-004", "G-003"],
        "what was put off hides nothing that was not, however old it is"
    );
    assert_eq!(store.pending().await.unwrap(), 2);
}

async fn a_claim_is_given_once(store: &dyn Store) {
    store.record(&logout(1, NOW), &[Step::pending("log", NOW), Step::pending("mail", NOW)]).await.unwrap();
    let claim = || store.claim("G-001", "mail", NOW, later(60));
    let both = tokio::join!(claim(), claim());
    assert_ne!(both.0.unwrap(), both.1.unwrap());
    assert!(store.due_for("mail", later(59), 10).await.unwrap().is_empty());
    assert_eq!(store.due_for("log", NOW, 10).await.unwrap().len(), 1, "another step is not claimed");
    assert!(store.claim("G-001", "mail", later(60), later(120)).await.unwrap(), "a claim ends");
    store.release(later(61)).await.unwrap();
    assert_eq!(store.due_for("mail", later(61), 10).await.unwrap().len(), 1);
    assert_eq!(store.due_for("webhook", later(61), 10).await.unwrap(), []);
}

async fn incidents_are_filtered_and_newest_first(store: &dyn Store) {
    for number in 1..=4 {
        let incident = with(logout(number, later(u64::from(number))), |incident| {
            incident.identity.session = SessionId([number % 2; 16]);
        });
        store.record(&incident, &[Step::pending("revoke", NOW), Step::pending("mail", NOW)]).await.unwrap();
    }
    let ids = async |filter: IncidentFilter| {
        let rows = store.incidents(&filter).await.unwrap();
        assert!(rows.iter().all(|row| row.steps.len() == 2));
        rows.into_iter().map(|row| row.incident.id).collect::<Vec<_>>()
    };
    let all = IncidentFilter { limit: 10, ..IncidentFilter::default() };
    assert_eq!(ids(all.clone()).await, ["G-004", "G-003", "G-002", "G-001"]);
    assert_eq!(ids(IncidentFilter { limit: 1, ..all.clone() }).await, ["G-004"]);
    assert_eq!(
        ids(IncidentFilter { session: Some(SessionId([1; 16])), ..all.clone() }).await,
        ["G-003", "G-001"]
    );
    assert_eq!(ids(IncidentFilter { since: Some(later(3)), ..all }).await, ["G-004", "G-003"]);
}

async fn shadow_decisions_are_never_in_force(store: &dyn Store) {
    for (number, action) in [(1, Action::Logout), (2, Action::LogoutEverywhere), (3, Action::Deny)] {
        let incident = with(logout(number, NOW), |incident| {
            incident.action = action;
            incident.mode = Mode::Shadow;
        });
        store.record(&incident, &[]).await.unwrap();
    }
    let challenge = with(logout(4, NOW), |incident| incident.action = Action::Challenge);
    store.record(&challenge, &[]).await.unwrap();
    assert_eq!(store.active_revocations(NOW).await.unwrap(), []);
    // What would have happened, and nothing of the challenge, which ends no login.
    let trail = store.audit_trail(10).await.unwrap();
    let told: Vec<&str> = trail.iter().map(|record| record.what.as_str()).collect();
    assert_eq!(told, ["would-deny", "would-logout-everywhere", "would-logout"]);
}

async fn a_revocation_is_in_force_until_the_token_expires(store: &dyn Store) {
    let incident = with(logout(1, NOW), |incident| {
        incident.until = later(10);
        incident.identity.expires_at = Some(later(100));
    });
    store.record(&incident, &[]).await.unwrap();
    let active = store.active_revocations(later(99)).await.unwrap();
    assert_eq!(active, store::revocations_of(&incident));
    assert_eq!(
        active.iter().map(|revocation| revocation.scope).collect::<Vec<_>>(),
        [Scope::Session(SessionId([1; 16])), Scope::Token(TokenId([1; 16]))]
    );
    assert!(active.iter().all(|revocation| revocation.until == later(100) && revocation.incident == "G-001"));
    assert_eq!(store.active_revocations(later(100)).await.unwrap(), []);
}

async fn logout_everywhere_is_in_force_for_the_subject(store: &dyn Store) {
    let incident = with(logout(1, NOW), |incident| incident.action = Action::LogoutEverywhere);
    store.record(&incident, &[]).await.unwrap();
    let active = store.active_revocations(NOW).await.unwrap();
    assert_eq!(active, store::revocations_of(&incident));
    assert_eq!(active[2].scope, Scope::Subject { subject: SubjectId([100; 16]), before: NOW });

    // A pardon of another session of the same person lets the person in again, but not the session
    // that was caught.
    let pardon = with(logout(2, later(1)), |incident| incident.action = Action::Pardon);
    store.record(&pardon, &[]).await.unwrap();
    let scopes: Vec<Scope> = store
        .active_revocations(later(2))
        .await
        .unwrap()
        .into_iter()
        .map(|revocation| revocation.scope)
        .collect();
    assert_eq!(scopes, [Scope::Session(SessionId([1; 16])), Scope::Token(TokenId([1; 16]))]);
}

async fn a_pardon_lifts_what_was_before_it_and_nothing_after(store: &dyn Store) {
    store.record(&logout(1, NOW), &[]).await.unwrap();
    store.record(&logout(2, NOW), &[]).await.unwrap();
    let pardon = with(logout(1, later(1)), |incident| {
        incident.id = "G-pardon".into();
        incident.action = Action::Pardon;
        // The operator's pardon does not know which token was revoked.
        incident.identity.token = None;
    });
    store.record(&pardon, &[]).await.unwrap();
    let sessions = async |now| {
        let active = store.active_revocations(now).await.unwrap();
        active.iter().map(|revocation| revocation.incident.clone()).collect::<Vec<_>>()
    };
    assert_eq!(sessions(later(2)).await, ["G-002", "G-002"]);
    let again = with(logout(1, later(3)), |incident| incident.id = "G-again".into());
    store.record(&again, &[]).await.unwrap();
    assert_eq!(sessions(later(4)).await, ["G-again", "G-again", "G-002", "G-002"]);
}

async fn pardons_come_back_with_all_that_they_lifted(store: &dyn Store) {
    let pardon =
        |number, seconds| with(logout(number, later(seconds)), |incident| incident.action = Action::Pardon);
    store.record(&logout(9, later(1)), &[]).await.unwrap();
    store.record(&pardon(1, 1), &[]).await.unwrap();
    store.record(&pardon(2, 2), &[]).await.unwrap();
    let nobody = with(pardon(3, 3), |incident| {
        (incident.identity.token, incident.identity.subject) = (None, None);
    });
    store.record(&nobody, &[]).await.unwrap();
    let lifted = |incident: &Incident| {
        let (decided_at, until) = (incident.at, incident.until);
        store::scopes_of(incident).into_iter().map(move |scope| Pardon { scope, decided_at, until })
    };
    let expected: Vec<Pardon> = lifted(&nobody).chain(lifted(&pardon(2, 2))).collect();
    assert_eq!(expected.len(), 4);
    assert_eq!(store.pardons(later(1)).await.unwrap(), expected);
}

async fn a_pardon_shows_on_the_incident(store: &dyn Store) {
    store.record(&logout(1, NOW), &[Step::pending("mail", NOW)]).await.unwrap();
    let pardon = with(logout(1, later(1)), |incident| {
        incident.id = "G-pardon".into();
        incident.action = Action::Pardon;
        incident.by = "olga".into();
        incident.reason = "called the help desk".into();
    });
    store.record(&pardon, &[]).await.unwrap();
    let expected = AuditRecord {
        at: later(1),
        who: "olga".into(),
        what: "pardon".into(),
        session: Some(SessionId([1; 16])),
        incident: Some("G-pardon".into()),
        why: "called the help desk".into(),
        policy_version: None,
    };
    assert_eq!(store.incident("G-001").await.unwrap().unwrap().pardoned, Some(expected.clone()));
    assert_eq!(store.due(NOW, 1).await.unwrap()[0].pardoned, Some(expected));
    assert_eq!(store.incident("G-pardon").await.unwrap().unwrap().pardoned, None);
}

async fn the_audit_trail_names_every_revocation_pardon_and_shadow_decision(store: &dyn Store) {
    store.record(&logout(1, NOW), &[]).await.unwrap();
    let pardon = with(logout(1, later(1)), |incident| {
        incident.id = "G-pardon".into();
        incident.action = Action::Pardon;
        incident.by = "olga".into();
    });
    store.record(&pardon, &[]).await.unwrap();
    let would = with(logout(2, later(2)), |incident| incident.mode = Mode::Shadow);
    store.record(&would, &[]).await.unwrap();
    let noted = with(logout(3, later(2)), |incident| incident.action = Action::Log);
    store.record(&noted, &[]).await.unwrap();
    let limit = AuditRecord {
        at: later(2),
        who: "policy".into(),
        what: "limit".into(),
        session: None,
        incident: None,
        why: "x".repeat(5000),
        policy_version: Some("v2".into()),
    };
    store.audit(&limit).await.unwrap();
    let trail = store.audit_trail(10).await.unwrap();
    let told: Vec<[&str; 4]> = trail
        .iter()
        .map(|record| {
            let or_none = |text: &Option<String>| text.clone().unwrap_or_default().leak() as &str;
            [&record.who, &record.what, or_none(&record.incident), or_none(&record.policy_version)]
        })
        .collect();
    let decided = logout(1, NOW).policy_version;
    assert_eq!(
        told,
        [
            ["policy", "limit", "", "v2"],
            ["policy", "would-logout", "G-002", &decided],
            ["olga", "pardon", "G-pardon", ""],
            ["policy", "revoke", "G-001", &decided],
        ]
    );
    assert_eq!(trail[0].why.len(), 1000, "free text is bounded");
    assert_eq!(store.audit_trail(1).await.unwrap().len(), 1);
}

async fn pruning_keeps_what_is_unfinished_or_in_force(store: &dyn Store) {
    let day = 24 * 3600;
    store.record(&logout(1, NOW), &[]).await.unwrap();
    store.record(&logout(2, NOW), &[Step::pending("mail", NOW)]).await.unwrap();
    let long = with(logout(3, NOW), |incident| incident.until = later(30 * day));
    store.record(&long, &[]).await.unwrap();
    store.record(&logout(4, later(2 * day)), &[]).await.unwrap();
    // One incident and the audit records of three.
    assert_eq!(store.prune(later(day)).await.unwrap(), 4);
    let left = store.incidents(&IncidentFilter { limit: 10, ..IncidentFilter::default() }).await.unwrap();
    let ids: Vec<&str> = left.iter().map(|row| row.incident.id.as_str()).collect();
    assert_eq!(ids, ["G-004", "G-003", "G-002"]);
    assert_eq!(store.audit_trail(10).await.unwrap().len(), 1);
    assert_eq!(store.prune(later(day)).await.unwrap(), 0);
}

async fn a_pardon_outlives_the_revocation_it_lifted(store: &dyn Store) {
    let day = 24 * 3600;
    let long = with(logout(1, NOW), |incident| incident.until = later(30 * day));
    store.record(&long, &[]).await.unwrap();
    let pardon = with(logout(1, later(1)), |incident| {
        incident.id = "G-pardon".into();
        incident.action = Action::Pardon;
    });
    store.record(&pardon, &[]).await.unwrap();
    store.prune(later(10 * day)).await.unwrap();
    assert_eq!(store.active_revocations(later(10 * day)).await.unwrap(), [], "nobody is logged out again");
    store.prune(later(31 * day)).await.unwrap();
    let left = store.incidents(&IncidentFilter { limit: 10, ..IncidentFilter::default() }).await.unwrap();
    assert_eq!(left, []);
}

async fn events_wait_in_order_until_they_are_fetched_or_too_many(store: &dyn Store) {
    let waiting = async |stream: &str| {
        let signals = store.signals(stream, 100).await.unwrap();
        signals.into_iter().map(|(jti, sealed)| format!("{jti}={sealed}")).collect::<Vec<_>>()
    };
    for (number, jti) in ["c", "a", "b"].into_iter().enumerate() {
        store.queue_signal("one", jti, later(number as u64), "x").await.unwrap();
    }
    store.queue_signal("one", "c", later(9), "again").await.unwrap();
    store.queue_signal("two", "a", NOW, "y").await.unwrap();
    assert_eq!(waiting("one").await, ["c=x", "a=x", "b=x"], "repeating one changes nothing");
    assert_eq!(store.signals("one", 2).await.unwrap().len(), 2);
    assert!(store.forget_signal("one", "a").await.unwrap());
    assert!(!store.forget_signal("one", "a").await.unwrap());
    assert_eq!(waiting("two").await, ["a=y"]);
    assert_eq!(store.trim_signals("one", NOW, 2).await.unwrap(), 0);
    assert_eq!(store.trim_signals("one", NOW, 1).await.unwrap(), 1);
    assert_eq!(waiting("one").await, ["b=x"], "the oldest go");
    assert_eq!(store.trim_signals("one", later(3), 10).await.unwrap(), 1);
    assert_eq!((waiting("one").await.len(), waiting("two").await.len()), (0, 1));
}

async fn concurrent_records_all_arrive(store: &dyn Store) {
    let incidents: Vec<_> = (0..40).map(|number| logout(number, NOW)).collect();
    let steps = [Step::pending("revoke", NOW)];
    let records = incidents.iter().map(|incident| store.record(incident, &steps));
    for outcome in futures_util::future::join_all(records).await {
        outcome.unwrap();
    }
    assert_eq!(store.due(NOW, 100).await.unwrap().len(), 40);
}

async fn a_used_up_budget_is_remembered_until_it_is_reset(store: &dyn Store) {
    let trip = |number, at, mode| {
        with(logout(number, at), |incident| {
            incident.action = Action::BudgetTrip;
            incident.mode = mode;
        })
    };
    let said = |incident: &Incident| {
        let (incident, at, reason) = (incident.id.clone(), incident.at, incident.reason.clone());
        Some(BudgetTrip { incident, at, reason })
    };
    assert_eq!(store.budget_trip().await.unwrap(), None);
    store.record(&trip(1, NOW, Mode::Shadow), &[]).await.unwrap();
    assert_eq!(store.budget_trip().await.unwrap(), None, "one account was spared, no more");
    let whole = trip(2, NOW, Mode::Enforce);
    store.record(&whole, &[Step::pending("log", NOW), Step::pending("mail", NOW)]).await.unwrap();
    assert_eq!(store.budget_trip().await.unwrap(), said(&whole));
    for step in ["log", "mail"] {
        let done = Step { state: StepState::Done, ..Step::pending(step, NOW) };
        store.update_step(&whole.id, &done).await.unwrap();
    }
    let year = 365 * 24 * 3600;
    store.prune(later(year)).await.unwrap();
    assert_eq!(store.budget_trip().await.unwrap(), said(&whole), "age resets nothing");
    let reset = AuditRecord {
        at: later(year),
        who: "olga".into(),
        what: store::BUDGET_RESET.into(),
        session: None,
        incident: None,
        why: "looked at it".into(),
        policy_version: None,
    };
    store.audit(&reset).await.unwrap();
    assert_eq!(store.budget_trip().await.unwrap(), None);
    let again = trip(3, later(year + 1), Mode::Enforce);
    store.record(&again, &[]).await.unwrap();
    assert_eq!(store.budget_trip().await.unwrap(), said(&again));
    store.prune(later(year + 60)).await.unwrap();
    assert_eq!(store.incident("G-002").await.unwrap(), None, "the one that was reset is gone");
}

const ALICE: SubjectId = SubjectId([1; 16]);
const BOB: SubjectId = SubjectId([2; 16]);

async fn a_profile_comes_back_and_an_older_one_never_replaces_it(store: &dyn Store) {
    assert_eq!(store.profile(ALICE).await.unwrap(), None);
    let bytes: Vec<u8> = (0..=255).collect();
    assert!(store.save_profile(ALICE, &bytes, None, NOW).await.unwrap());
    let first = store.profile(ALICE).await.unwrap().unwrap();
    assert_eq!(first.bytes.as_deref(), Some(&bytes[..]));
    assert_eq!(store.profile(BOB).await.unwrap(), None);
    assert!(!store.save_profile(ALICE, b"from nothing", None, later(1)).await.unwrap());
    assert!(store.save_profile(ALICE, b"second", Some(first.version), later(1)).await.unwrap());
    assert!(!store.save_profile(ALICE, b"also", Some(first.version), later(2)).await.unwrap());
    assert!(!store.save_profile(BOB, b"gone", Some(first.version), later(2)).await.unwrap());
    assert_eq!(store.profile(ALICE).await.unwrap().unwrap().bytes.as_deref(), Some(&b"second"[..]));
    assert_eq!(store.profiles().await.unwrap(), 1);
}

async fn of_many_who_learnt_from_one_profile_one_writes(store: &dyn Store) {
    for over in [None, Some(())] {
        let over = match over {
            None => None,
            Some(()) => Some(store.profile(ALICE).await.unwrap().unwrap().version),
        };
        let lessons: Vec<[u8; 1]> = (0..20).map(|number| [number]).collect();
        let saves = lessons.iter().map(|bytes| store.save_profile(ALICE, bytes, over, NOW));
        let saved = futures_util::future::join_all(saves).await;
        let winners: Vec<usize> = (0..20).filter(|number| *saved[*number].as_ref().unwrap()).collect();
        assert_eq!(winners.len(), 1, "{winners:?}");
        let kept = store.profile(ALICE).await.unwrap().unwrap().bytes.unwrap();
        assert_eq!(kept, lessons[winners[0]]);
    }
}

async fn who_is_forgotten_is_not_written_back_by_those_who_remember(store: &dyn Store) {
    store.save_profile(ALICE, b"known", None, NOW).await.unwrap();
    let remembered = store.profile(ALICE).await.unwrap().unwrap().version;
    assert!(store.forget_profile(ALICE, later(1)).await.unwrap());
    assert!(!store.save_profile(ALICE, b"learnt", Some(remembered), later(2)).await.unwrap());
    let forgotten = store.profile(ALICE).await.unwrap().unwrap();
    assert_eq!(forgotten.bytes, None);
    assert_eq!(store.profiles().await.unwrap(), 0);
    assert!(!store.forget_profile(ALICE, later(3)).await.unwrap(), "nothing was known any more");
    assert!(!store.save_profile(ALICE, b"learnt", Some(forgotten.version), later(4)).await.unwrap());
    // A session that knew of nobody must not write either; one that starts after it may.
    assert!(!store.forget_profile(BOB, NOW).await.unwrap());
    assert!(!store.save_profile(BOB, b"learnt", None, later(1)).await.unwrap());
    let version = store.profile(BOB).await.unwrap().unwrap().version;
    assert!(store.save_profile(BOB, b"anew", Some(version), later(5)).await.unwrap());
    assert_eq!(store.profile(BOB).await.unwrap().unwrap().bytes.as_deref(), Some(&b"anew"[..]));
}

async fn versions_rise_even_if_a_clock_is_behind(store: &dyn Store) {
    store.save_profile(ALICE, b"1", None, later(60)).await.unwrap();
    let first = store.profile(ALICE).await.unwrap().unwrap().version;
    assert!(store.save_profile(ALICE, b"2", Some(first), NOW).await.unwrap());
    assert!(!store.save_profile(ALICE, b"3", Some(first), NOW).await.unwrap());
    let second = store.profile(ALICE).await.unwrap().unwrap().version;
    store.forget_profile(ALICE, NOW).await.unwrap();
    assert!(!store.save_profile(ALICE, b"4", Some(second), NOW).await.unwrap());
}

async fn profiles_expire_and_leave_no_trace(store: &dyn Store) {
    let day = 24 * 3600;
    for number in 0..=255 {
        for more in 0..3 {
            let subject = SubjectId([number, more, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
            store.save_profile(subject, b"old", None, NOW).await.unwrap();
        }
    }
    store.forget_profile(ALICE, NOW).await.unwrap();
    store.save_profile(BOB, b"young", None, later(2 * day)).await.unwrap();
    assert_eq!(store.expire_profiles(later(day)).await.unwrap(), 3 * 256 + 1);
    assert_eq!(store.profiles().await.unwrap(), 1);
    assert_eq!(store.profile(ALICE).await.unwrap(), None, "that she was forgotten is forgotten too");
    assert_eq!(store.expire_profiles(later(day)).await.unwrap(), 0);
}

async fn a_profile_that_is_too_large_is_refused(store: &dyn Store) {
    let largest = vec![7; store::PROFILE_ROW_BYTES_MAX];
    assert!(store.save_profile(ALICE, &largest, None, NOW).await.unwrap());
    assert_eq!(store.profile(ALICE).await.unwrap().unwrap().bytes, Some(largest));
    let over = vec![7; store::PROFILE_ROW_BYTES_MAX + 1];
    store.save_profile(BOB, &over, None, NOW).await.unwrap_err();
    assert_eq!(store.profile(BOB).await.unwrap(), None);
}

#[tokio::test]
async fn a_sqlite_store_is_private_and_keeps_its_records() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("deep/data/store.sqlite");
    let store = SqliteStore::open(&file).await.unwrap();
    store.record(&logout(1, NOW), &[]).await.unwrap();
    let mode = |name: &str| {
        let path = file.with_file_name(name);
        std::fs::metadata(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")).permissions().mode()
            & 0o777
    };
    for name in ["store.sqlite", "store.sqlite-wal", "store.sqlite-shm"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    assert_eq!(mode("."), 0o700);
    drop(store);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = SqliteStore::open(&file).await.unwrap();
    assert_eq!(mode("store.sqlite"), 0o600, "an open file is closed to others");
    assert!(store.incident("G-001").await.unwrap().is_some());
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let refuse = async |name: &str, bytes: &[u8], expect: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let message = refusal(SqliteStore::open(&file).await);
        assert!(message.contains(file.to_str().unwrap()), "{message}");
        assert!(message.contains(expect), "{message}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "{name} was changed");
    };
    refuse("text", &b"This is not a database at all. ".repeat(200), "move it away").await;

    let foreign = directory.path().join("foreign.sqlite");
    let other = sqlx::SqlitePool::connect(&format!("sqlite://{}?mode=rwc", foreign.display())).await.unwrap();
    sqlx::query("CREATE TABLE shop (article TEXT)").execute(&other).await.unwrap();
    other.close().await;
    refuse("copy.sqlite", &std::fs::read(&foreign).unwrap(), "belongs to another program").await;

    let file = directory.path().join("ours.sqlite");
    let store = SqliteStore::open(&file).await.unwrap();
    for number in 0..50 {
        store.record(&logout(number, NOW), &[Step::pending("mail", NOW)]).await.unwrap();
    }
    drop(store);
    let raw = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&raw).await.unwrap();
    raw.close().await;
    let mut bytes = std::fs::read(&file).unwrap();
    assert!(bytes.len() > 40_000);
    bytes[4096..20_480].fill(0xa5);
    let damaged = directory.path().join("damaged.sqlite");
    std::fs::write(&damaged, &bytes).unwrap();
    let message = refusal(SqliteStore::open(&damaged).await);
    assert!(message.contains("damaged.sqlite is damaged") && message.contains("backup"), "{message}");

    let raw = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    sqlx::query(
        "INSERT INTO gaitway_schema (version, description, success, checksum, execution_time) \
         VALUES (99, 'x', TRUE, x'00', 0)",
    )
    .execute(&raw)
    .await
    .unwrap();
    raw.close().await;
    let message = refusal(SqliteStore::open(&file).await);
    assert!(message.contains("newer version") && message.contains("99"), "{message}");
}

#[tokio::test]
async fn an_audit_trail_of_before_it_named_policies_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("store.sqlite");
    let store = SqliteStore::open(&file).await.unwrap();
    store.record(&logout(1, NOW), &[]).await.unwrap();
    drop(store);
    let raw = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    for undo in [
        "ALTER TABLE gaitway_audit DROP COLUMN policy_version",
        "DELETE FROM gaitway_schema WHERE version = 2",
    ] {
        sqlx::query(undo).execute(&raw).await.unwrap();
    }
    raw.close().await;
    let store = SqliteStore::open(&file).await.unwrap();
    store.record(&logout(2, NOW), &[]).await.unwrap();
    let versions: Vec<bool> =
        store.audit_trail(9).await.unwrap().iter().map(|record| record.policy_version.is_some()).collect();
    assert_eq!(versions, [true, false]);
}

#[tokio::test]
async fn a_used_up_budget_that_a_newer_version_recorded_counts_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("store.sqlite");
    let store = SqliteStore::open(&file).await.unwrap();
    let trip = with(logout(1, NOW), |incident| incident.action = Action::BudgetTrip);
    store.record(&trip, &[]).await.unwrap();
    let raw = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    sqlx::query("UPDATE gaitway_incidents SET body = '{\"a newer\": \"shape\"}'")
        .execute(&raw)
        .await
        .unwrap();
    let found = store.budget_trip().await.unwrap().unwrap();
    assert_eq!((found.incident, found.at, found.reason), (trip.id, NOW, trip.reason));
}

#[tokio::test]
async fn an_unreadable_record_does_not_stop_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("store.sqlite");
    let store = SqliteStore::open(&file).await.unwrap();
    for number in 1..=2 {
        store.record(&logout(number, later(u64::from(number))), &[Step::pending("mail", NOW)]).await.unwrap();
    }
    let raw = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    sqlx::query("UPDATE gaitway_incidents SET body = '{\"a newer\": \"shape\"}' WHERE id = 'G-001'")
        .execute(&raw)
        .await
        .unwrap();
    let rows = store.due(NOW, 10).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].incident.id.as_str(), rows[0].steps.len()), ("G-002", 1));
    assert_eq!(store.due(NOW, 1).await.unwrap().len(), 1, "the head of the queue is free");
    assert!(matches!(store.incident("G-001").await, Err(StoreError::Corrupt(_))));
    assert_eq!(store.active_revocations(NOW).await.unwrap().len(), 4, "columns suffice for the board");
}

#[tokio::test]
async fn a_postgres_store_survives_lost_connections_and_hides_its_password() {
    let server = Postgres::start();
    let address = server.database("lost");
    let store = PostgresStore::open(&address).await.unwrap();
    let second = PostgresStore::open(&address).await.unwrap();
    store.record(&logout(1, NOW), &[Step::pending("mail", NOW)]).await.unwrap();
    assert!(second.claim("G-001", "mail", NOW, later(60)).await.unwrap());
    assert!(!store.claim("G-001", "mail", NOW, later(60)).await.unwrap(), "the other replica has it");
    server.disconnect_all();
    store.record(&logout(2, NOW), &[]).await.unwrap();
    assert!(store.incident("G-002").await.unwrap().is_some());

    drop(server);
    let error = store.record(&logout(3, NOW), &[]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    for address in [address.replace("gaitway@", "gaitway:hunter2@"), "postgres://:hunter2@:bad:/".into()] {
        let message = refusal(PostgresStore::open(&address).await);
        assert!(message.contains("postgres") || message.contains("PostgreSQL"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[tokio::test]
async fn open_takes_the_store_the_configuration_names() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let config = gaitway::config::Config { data: data.clone(), ..Default::default() };
    let store = store::open(&config).await.unwrap();
    assert!(!store.is_shared());
    assert!(data.join(store::SQLITE_FILE).exists());
}

fn refusal<T>(opened: Result<T, StoreError>) -> String {
    match opened {
        Err(StoreError::Unusable(message)) => message,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("opened"),
    }
}
