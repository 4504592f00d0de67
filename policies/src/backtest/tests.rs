//! What a back-test says about recordings made by hand.

use super::*;
use crate::record::{Before, HEADER, line};
use crate::report::{Side, html, json, text};
use crate::{Identity, facts::Facts};
use expect_test::expect;

fn policies(threshold: f64, rest: &str) -> Arc<PolicySet> {
    let yaml = format!(
        "rules:\n  - {{name: out, when: bot.evidence >= {threshold:?}, action: logout, mode: enforce, reason: 'evidence {{bot.evidence}}'}}\nbudget: {{logouts_share_max: 100%, {rest}}}\n"
    );
    Arc::new(PolicySet::parse("p", &yaml).unwrap())
}

/// Four sessions of two minutes; the n-th gathers n nats every ten seconds.
fn recording() -> Vec<String> {
    let mut lines = vec![HEADER.to_owned()];
    for step in 0..=12_u64 {
        for n in 0..4_u8 {
            let identity = Identity {
                session: SessionId([n; 16]),
                subject: Some(SubjectId([n / 2; 16])),
                token: None,
                expires_at: None,
                issued_at: None,
                groups: Vec::new(),
            };
            let mut facts = Facts::default();
            facts.assessment.bot_evidence = f32::from(n) * step as f32;
            let at = Timestamp(1_800_000_000_000 + step * 10_000);
            let usual = Facts::default();
            let before = if step > 0 { Before::Known(&usual) } else { Before::Opened(at) };
            lines.extend(line(&identity, at, &facts, before));
        }
    }
    lines
}

fn replay(policies: &Arc<PolicySet>, lines: &[String]) -> Outcome {
    let mut recording = Recording::new();
    let mut replay = Replay::new(Arc::clone(policies));
    for line in lines {
        if let Some(recorded) = recording.read(line).unwrap() {
            replay.observe(recorded);
        }
    }
    replay.finish(&recording)
}

#[test]
fn it_says_who_and_when_and_what_changed() {
    let lines = recording();
    let new = replay(&policies(18.0, ""), &lines);
    let old = replay(&policies(30.0, ""), &lines);
    let (new, old) = (Side { name: "new.yaml", outcome: &new }, Side { name: "live.yaml", outcome: &old });
    expect![[r#"
        new.yaml (2df1d1e3976f36a2): would shut out 2 of 4 sessions (1 of 2 users; 2 enforced, 0 in shadow) over 6 session-minutes
          rule out (logout): 2 sessions, 2 times enforced, 0 times in shadow
        live.yaml (8b00ef1b2b0dae92): would shut out 1 of 4 sessions (1 of 2 users; 1 enforced, 0 in shadow) over 6 session-minutes
        difference: 1 newly out, 0 spared, 1 out otherwise, 0 the same
          + s_02020202020202020202020202020202 (u_01010101010101010101010101010101): stays → second 90 by out, enforced (evidence 18)
          ~ s_03030303030303030303030303030303 (u_01010101010101010101010101010101): second 100 by out, enforced (evidence 30) → second 60 by out, enforced (evidence 18)
    "#]]
    .assert_eq(&text(&new, Some(&old)));
    let parsed: serde_json::Value = serde_json::from_str(&json(&new, Some(&old))).unwrap();
    assert_eq!(parsed["difference"]["newly"][0], "s_02020202020202020202020202020202");
    assert_eq!(parsed["new"]["outcome"]["out"].as_object().unwrap().len(), 2);
}

#[test]
fn its_own_budget_speaks_too() {
    let outcome = replay(&policies(18.0, "logouts_per_user_per_day_max: 1"), &recording());
    assert_eq!(outcome.trips.len(), 1);
    assert_eq!(outcome.trips[0].cap, Cap::PerUserPerDay);
    let modes: Vec<Mode> = outcome.out.values().map(|verdict| verdict.mode).collect();
    assert_eq!(modes, [Mode::Shadow, Mode::Enforce], "the second is only told");
    let difference = replay(&policies(18.0, ""), &recording()).difference(&outcome);
    assert_eq!((difference.moved.len(), difference.same), (1, 1), "one would be enforced that was told");
}

#[test]
fn the_page_runs_nothing_and_escapes_everything() {
    let outcome = replay(&policies(18.0, ""), &recording());
    let page = html(&Side { name: "<script>alert(1)</script>", outcome: &outcome }, None);
    assert!(!page.contains("<script"));
    assert!(page.contains("&lt;script&gt;") && page.contains("<svg") && page.contains("default-src 'none'"));
    assert!(page.contains("<td>60<td>out, enforced: evidence 18<td class=id>s_0303"), "{page}");
}

#[test]
fn a_comparison_without_a_difference_says_so_and_still_lists_who_is_out() {
    let outcome = replay(&policies(18.0, ""), &recording());
    let side = Side { name: "p.yaml", outcome: &outcome };
    let page = html(&side, Some(&side));
    assert!(page.contains("0 newly out, 0 spared, 0 out otherwise, 2 the same</p><p>None.</p>"), "{page}");
    assert!(page.contains("evidence 18<td class=id>s_0303"), "{page}");
}
