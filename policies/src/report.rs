//! A back-test's outcome in words, as JSON, and as one HTML page with a plot.
//!
//! Must not know: how an outcome came about. Everything that goes into markup is escaped here.

use crate::backtest::{Difference, Outcome, Trip, Verdict};
use crate::engine::Mode;
use crate::identity::SessionId;
use serde_json::json;
use std::fmt::Write;

/// Sessions listed one by one in text and HTML; JSON has them all.
pub const LISTED_MAX: usize = 50;

/// A policy, what it did, and what it is called.
pub struct Side<'r> {
    pub name: &'r str,
    pub outcome: &'r Outcome,
}

pub fn text(new: &Side<'_>, old: Option<&Side<'_>>) -> String {
    let mut out = String::new();
    let outcome = new.outcome;
    let _ = writeln!(out, "{} ({}): {}", new.name, outcome.policy_version, headline(outcome));
    for trip in &outcome.trips {
        let _ = writeln!(out, "  {}", tripped(trip));
    }
    for (rule, tally) in &outcome.rules {
        let action = tally.action.map(|action| format!("{action:?}").to_lowercase()).unwrap_or_default();
        let _ = writeln!(
            out,
            "  rule {rule} ({action}): {} sessions, {} times enforced, {} times in shadow",
            tally.sessions.len(),
            tally.enforced,
            tally.shadow
        );
    }
    if let Some(old) = old {
        let _ = writeln!(out, "{} ({}): {}", old.name, old.outcome.policy_version, headline(old.outcome));
        for trip in &old.outcome.trips {
            let _ = writeln!(out, "  {}", tripped(trip));
        }
        let difference = outcome.difference(old.outcome);
        let _ = writeln!(out, "difference: {}", changes(&difference));
        for (mark, session) in listed(&difference) {
            let _ = writeln!(out, "  {mark} {}", sentence(session, new, old));
        }
    } else {
        for (session, verdict) in outcome.out.iter().take(LISTED_MAX) {
            let user = verdict.user.map(|user| user.to_string()).unwrap_or_else(|| "no login".into());
            let _ = writeln!(
                out,
                "  {session} ({user}) at second {:.0}, rule {}: {}",
                verdict.second, verdict.rule, verdict.reason
            );
        }
    }
    out
}

pub fn json(new: &Side<'_>, old: Option<&Side<'_>>) -> String {
    let side = |side: &Side<'_>| json!({ "name": side.name, "outcome": side.outcome });
    let value = json!({
        "new": side(new),
        "old": old.map(side),
        "difference": old.map(|old| new.outcome.difference(old.outcome)),
    });
    let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.push('\n');
    text
}

/// One page without script and without anything loaded from elsewhere.
pub fn html(new: &Side<'_>, old: Option<&Side<'_>>) -> String {
    let mut page = String::from(PAGE_HEAD);
    let _ =
        write!(page, "<h1>Back-test of {}</h1><p>{}</p>", escape(new.name), escape(&headline(new.outcome)));
    if let Some(old) = old {
        let _ = write!(page, "<p>Against {}: {}</p>", escape(old.name), escape(&headline(old.outcome)));
    }
    for (side, trip) in
        std::iter::once(new).chain(old).flat_map(|s| s.outcome.trips.iter().map(move |t| (s, t)))
    {
        let _ = write!(page, "<p class=loud>{}, {}.</p>", escape(side.name), escape(&tripped(trip)));
    }
    page.push_str(&plot(new, old));
    page.push_str(
        "<h2>Rules</h2><div class=wide><table><tr><th>Rule<th>Action<th>Sessions<th>Enforced<th>In shadow",
    );
    for (rule, tally) in &new.outcome.rules {
        let action = tally.action.map(|action| format!("{action:?}")).unwrap_or_default();
        let _ = write!(
            page,
            "<tr><td>{}<td>{action}<td>{}<td>{}<td>{}",
            escape(rule),
            tally.sessions.len(),
            tally.enforced,
            tally.shadow
        );
    }
    page.push_str("</table></div>");
    if let Some(old) = old {
        let difference = new.outcome.difference(old.outcome);
        let _ = write!(page, "<h2>What changes</h2><p>{}</p>", changes(&difference));
        let changed = difference.newly.len() + difference.spared.len() + difference.moved.len();
        let rows = listed(&difference)
            .map(|(mark, session)| format!("<tr><td>{mark}<td>{}", escape(&sentence(session, new, old))));
        table(&mut page, "<th><th>Session", changed, rows);
    }
    page.push_str("<h2>Sessions out</h2>");
    let rows = new.outcome.out.iter().map(|(session, verdict)| {
        let (second, mode) = (verdict.second, mode(verdict));
        let (rule, reason) = (escape(&verdict.rule), escape(&verdict.reason));
        let user = verdict.user.map_or_else(|| "no login".into(), |user| user.to_string());
        format!("<tr><td>{second:.0}<td>{rule}, {mode}: {reason}<td class=id>{session}<br>{user}")
    });
    table(&mut page, "<th>Second<th>Why<th>Session, user", new.outcome.out.len(), rows);
    page
}

/// The first rows of so many, and how many there are; a word in place of an empty table.
fn table(page: &mut String, head: &str, of: usize, rows: impl Iterator<Item = String>) {
    if of == 0 {
        page.push_str("<p>None.</p>\n");
        return;
    }
    let _ = write!(page, "<div class=wide><table><tr>{head}");
    rows.take(LISTED_MAX).for_each(|row| page.push_str(&row));
    page.push_str("</table></div>\n");
    if of > LISTED_MAX {
        let _ = writeln!(page, "<p>The first {LISTED_MAX} of {of}; as JSON the report has all.</p>");
    }
}

fn changes(difference: &Difference) -> String {
    format!(
        "{} newly out, {} spared, {} out otherwise, {} the same",
        difference.newly.len(),
        difference.spared.len(),
        difference.moved.len(),
        difference.same
    )
}

fn tripped(trip: &Trip) -> String {
    let scope = if trip.account.is_some() { "one account is spared" } else { "the policy drops to shadow" };
    format!(
        "budget: cap {:?} of {} reached by rule {} at {}: {scope}",
        trip.cap, trip.allowed, trip.rule, trip.at.0
    )
}

fn mode(verdict: &Verdict) -> &'static str {
    match verdict.mode {
        Mode::Enforce => "enforced",
        Mode::Shadow => "in shadow",
    }
}

fn headline(outcome: &Outcome) -> String {
    let enforced = outcome.out.values().filter(|verdict| verdict.mode == Mode::Enforce).count();
    format!(
        "would shut out {} of {} sessions ({} of {} users; {} enforced, {} in shadow) over {:.0} session-minutes",
        outcome.out.len(),
        outcome.sessions,
        outcome.users_out().len(),
        outcome.users,
        enforced,
        outcome.out.len() - enforced,
        outcome.session_minutes
    )
}

fn listed(difference: &Difference) -> impl Iterator<Item = (&'static str, SessionId)> {
    let newly = difference.newly.iter().map(|session| ("+", *session));
    let spared = difference.spared.iter().map(|session| ("-", *session));
    let moved = difference.moved.iter().map(|session| ("~", *session));
    newly.chain(spared).chain(moved).take(LISTED_MAX)
}

fn sentence(session: SessionId, new: &Side<'_>, old: &Side<'_>) -> String {
    let of = |side: &Side<'_>| match side.outcome.out.get(&session) {
        Some(verdict) => {
            format!(
                "second {:.0} by {}, {} ({})",
                verdict.second,
                verdict.rule,
                mode(verdict),
                verdict.reason
            )
        }
        None => "stays".into(),
    };
    let verdict = new.outcome.out.get(&session).or(old.outcome.out.get(&session));
    let user = verdict
        .and_then(|verdict| verdict.user)
        .map(|user| user.to_string())
        .unwrap_or_else(|| "no login".into());
    format!("{session} ({user}): {} → {}", of(old), of(new))
}

/// Sessions shut out so far over the second of their life, one line a policy.
fn plot(new: &Side<'_>, old: Option<&Side<'_>>) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 200.0;
    let seconds = |side: &Side<'_>| {
        let mut seconds: Vec<f64> = side.outcome.out.values().map(|verdict| verdict.second).collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    };
    let sides: Vec<(&str, &str, Vec<f64>)> = std::iter::once((new.name, "new", seconds(new)))
        .chain(old.map(|old| (old.name, "old", seconds(old))))
        .collect();
    let longest = sides.iter().filter_map(|(_, _, seconds)| seconds.last()).fold(1.0_f64, |a, b| a.max(*b));
    let most = sides.iter().map(|(_, _, seconds)| seconds.len()).max().unwrap_or(0).max(1) as f64;
    let mut svg = format!(
        "<h2>When</h2><svg viewBox='-50 -10 {} {}' role=img aria-label='Sessions shut out over the second of their life'>\
         <path d='M0 0V{HEIGHT}H{WIDTH}' class=axis />\
         <text x=-8 y=8 text-anchor=end>{most:.0}</text><text x=-8 y={HEIGHT} text-anchor=end>0</text>\
         <text x=0 y={} text-anchor=start>0 s</text><text x={WIDTH} y={} text-anchor=end>{longest:.0} s</text>",
        WIDTH + 60.0,
        HEIGHT + 40.0,
        HEIGHT + 16.0,
        HEIGHT + 16.0
    );
    for (_, class, seconds) in &sides {
        // A step at most a tenth of a pixel from the next is not drawn: the page stays small.
        let stride = seconds.len().div_ceil(2_000).max(1);
        let mut path = format!("M0 {HEIGHT}");
        for (count, second) in seconds.iter().enumerate().filter(|(count, _)| count % stride == 0) {
            let x = second / longest * WIDTH;
            let y = HEIGHT - (count + 1) as f64 / most * HEIGHT;
            let _ = write!(path, "H{x:.1}V{y:.1}");
        }
        let _ = write!(svg, "<path d='{path}H{WIDTH}' class={class} />");
    }
    svg.push_str("</svg><ul class=legend>");
    for (name, class, seconds) in &sides {
        let was = if *class == "old" { " class=was" } else { "" };
        let _ = write!(svg, "<li{was}>{}: {} sessions out", escape(name), seconds.len());
    }
    svg.push_str("</ul>");
    svg
}

/// Text from outside as HTML text or as a quoted attribute's value.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

const PAGE_HEAD: &str = "<!doctype html>\n<html lang=en><meta charset=utf-8>\
<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">\
<meta name=viewport content='width=device-width'><title>Back-test</title>\
<style>:root{color-scheme:light dark;--text:#1b1b1b;--ground:#fff;--line:#ddd;--quiet:#666;--new:#b3261e;--old:#3b5bdb}\
@media(prefers-color-scheme:dark){:root{--text:#e8ebef;--ground:#14171c;--line:#333a44;--quiet:#a0abb9;--new:#ff968d;--old:#9fb0ff}}\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:var(--text);background:var(--ground);\
overflow-wrap:break-word}.wide{overflow-x:auto}.id{font-size:.8rem;overflow-wrap:anywhere;min-width:9rem}h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2rem}\
table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem .3rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}\
th{overflow-wrap:normal;font-size:.9rem;color:var(--quiet)}.loud{color:var(--new);font-weight:600}\
.axis{stroke:var(--quiet);fill:none}svg{display:block;width:100%;max-width:44rem;font-size:13px;fill:var(--quiet)}\
.new,.old{stroke-width:2;fill:none;stroke:var(--new)}.old{stroke:var(--old);stroke-dasharray:6 3}\
.legend{list-style:none;padding:0}.legend li::before{content:\"\";display:inline-block;width:1.4rem;margin-right:.5rem;vertical-align:middle;\
border-top:2px solid var(--new)}.legend .was::before{border-top:2px dashed var(--old)}</style>\n";
