//! An incident in plain words: the subject line and the body, as text and as simple HTML.
//!
//! Pure. Whatever an incident holds, a subject is one line of bounded length and the HTML holds no
//! tag but ours. Must not know: how it travels.

use gaitway_models::detector::Reason;
use gaitway_models::{Modality, Timestamp};
use gaitway_policies::Incident;
use gaitway_policies::engine::{Action, Mode};
use gaitway_policies::report::escape;
use std::fmt::Write;

/// What a reader gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub subject: String,
    pub text: String,
    pub html: String,
}

impl Letter {
    /// One incident with everything that helps to judge it, and how to undo it.
    pub fn of(incident: &Incident, ops_url: Option<&str>) -> Letter {
        let mut text = format!("{}\n\n", sentence(incident));
        let mut html = format!("<p><strong>{}</strong></p>\n<table>\n", escape(&sentence(incident)));
        for (name, value) in facts(incident) {
            let _ = writeln!(text, "{name:<10}{value}");
            let _ = writeln!(html, "<tr><th align=\"left\">{name}</th><td>{}</td></tr>", escape(&value));
        }
        let _ = write!(html, "</table>\n<p>Why: {}</p>\n<ul>\n", escape(&plain(&incident.reason, 300)));
        let _ = write!(text, "\nWhy: {}\n", plain(&incident.reason, 300));
        for reason in incident.facts.assessment.reasons.iter().take(REASONS_MAX) {
            let line = reason_line(reason);
            let _ = writeln!(text, "  - {line}");
            let _ = writeln!(html, "<li>{}</li>", escape(&line));
        }
        html.push_str("</ul>\n");
        if let Some((undo, command)) = undo(incident) {
            let _ = write!(text, "\n{undo}\n    {command}\n");
            let _ = writeln!(html, "<p>{undo}<br><code>{command}</code></p>");
        }
        if let Some(link) = ops_url.map(|url| session_link(url, incident)) {
            let _ = write!(text, "\n{link}\n");
            let _ = writeln!(html, "<p><a href=\"{0}\">{0}</a></p>", escape(&link));
        }
        Letter { subject: line(&format!("[Gaitway] {}", headline(incident)), SUBJECT_CHARS_MAX), text, html }
    }

    /// Many incidents, a line each, oldest first.
    pub fn digest(incidents: &[Incident], ops_url: Option<&str>) -> Letter {
        let count = incidents.len();
        let shadow = incidents.iter().filter(|incident| incident.mode == Mode::Shadow).count();
        let span = match (incidents.first(), incidents.last()) {
            (Some(first), Some(last)) => format!("{} to {}", time(first.at), time(last.at)),
            _ => String::new(),
        };
        let opening = format!(
            "{count} incidents from {span}, of which {shadow} in shadow mode. They come in one mail because \
             the hourly limit (alerts.mails_per_hour_max) was reached."
        );
        let mut list = String::new();
        for incident in incidents {
            let _ = writeln!(
                list,
                "{}  {}  {}  {} ({})  {}  score {}",
                time(incident.at),
                plain(&incident.id, 64),
                incident.identity.session,
                action_name(incident.action),
                mode_name(incident.mode),
                plain(&incident.rule, 128),
                score(incident),
            );
        }
        let undo = "To let a session in again: gaitway session pardon SESSION";
        let mut text = format!("{opening}\n\n{list}\n{undo}\n");
        let mut html = format!("<p>{opening}</p>\n<pre>{}</pre>\n<p>{undo}</p>\n", escape(&list));
        if let Some(url) = ops_url {
            let _ = write!(text, "\n{}\n", plain(url, 300));
            let _ = writeln!(html, "<p><a href=\"{0}\">{0}</a></p>", escape(&plain(url, 300)));
        }
        Letter {
            subject: line(&format!("[Gaitway] {count} incidents, {span}"), SUBJECT_CHARS_MAX),
            text,
            html,
        }
    }
}

/// Mail programs cut longer ones off.
const SUBJECT_CHARS_MAX: usize = 120;
/// Longest text of a reason.
const REASON_CHARS_MAX: usize = 300;
/// The detector gives five at most.
const REASONS_MAX: usize = 5;

/// One short line that can be read alone.
pub fn headline(incident: &Incident) -> String {
    if incident.action == Action::BudgetTrip {
        let what =
            if incident.mode == Mode::Enforce { "ENFORCEMENT IS OFF" } else { "one account is spared" };
        let rule = plain(&incident.rule, 60);
        return line(&format!("{what}: the logout budget is used up (rule {rule})"), SUBJECT_CHARS_MAX);
    }
    let shadow = if incident.mode == Mode::Shadow { "shadow: " } else { "" };
    line(
        &format!(
            "{shadow}{} by {} (score {}, {})",
            action_name(incident.action),
            plain(&incident.rule, 60),
            score(incident),
            short_session(incident),
        ),
        SUBJECT_CHARS_MAX,
    )
}

/// What happened, for somebody who never heard of Gaitway.
fn sentence(incident: &Incident) -> String {
    if incident.action == Action::BudgetTrip {
        return match incident.mode {
            Mode::Enforce => "The budget of logouts is used up: from now on nothing is enforced.",
            Mode::Shadow => "One account's budget of logouts is used up: rules no longer log it out.",
        }
        .into();
    }
    let (done, would) = match incident.action {
        Action::Logout => ("was logged out", "would have been logged out"),
        Action::LogoutEverywhere => {
            ("was logged out, with all sessions of the same person", "would have been logged out everywhere")
        }
        Action::Deny => ("was refused", "would have been refused"),
        Action::Tarpit => ("was refused, slowly", "would have been refused, slowly"),
        Action::Pardon => ("was let in again", "would have been let in again"),
        Action::Challenge | Action::StepUp => ("was asked for a proof", "would have been asked for a proof"),
        Action::Throttle => ("was slowed down", "would have been slowed down"),
        Action::Tag => ("was marked for the app", "would have been marked for the app"),
        Action::Allow | Action::Log | Action::BudgetTrip => ("was noticed", "would have been noticed"),
    };
    match incident.mode {
        Mode::Enforce => format!("A session {done}."),
        Mode::Shadow => format!("A session {would}. This rule is in shadow mode: nothing was done."),
    }
}

fn facts(incident: &Incident) -> Vec<(&'static str, String)> {
    let assessment = &incident.facts.assessment;
    let mut facts = vec![
        ("Session", incident.identity.session.to_string()),
        ("Time", format!("{} (UTC)", time(incident.at))),
        ("Rule", plain(&incident.rule, 128)),
        ("Action", action_name(incident.action).to_string()),
        ("Mode", mode_name(incident.mode).to_string()),
        ("Until", format!("{} (UTC)", time(incident.until))),
        ("Decided", format!("by {}", plain(&incident.by, 64))),
        ("Score", format!("{} of 1 that this is a bot", score(incident))),
        (
            "Evidence",
            format!(
                "{} nats over {} windows; {} s of {} input, {} events",
                number(assessment.bot_evidence),
                assessment.windows,
                number(assessment.evidence.seconds),
                modality(assessment.modality),
                assessment.evidence.events,
            ),
        ),
        (
            "Model",
            format!(
                "{}, {}",
                plain(&assessment.model, 64),
                if assessment.calibrated { "has learnt this site" } else { "knows too few people here" }
            ),
        ),
        ("Policy", plain(&incident.policy_version, 64)),
        ("Incident", plain(&incident.id, 64)),
    ];
    if let Some(subject) = incident.identity.subject {
        facts.insert(1, ("Person", subject.to_string()));
    }
    facts
}

pub fn reason_line(reason: &Reason) -> String {
    let person = reason.person.map_or_else(String::new, |person| {
        format!(
            "; for this person: {} to {} in {} sessions",
            number(person.low),
            number(person.high),
            person.sessions
        )
    });
    format!(
        "{} ({}: {} {unit}; usual for people: {} to {} {unit}{person})",
        plain(&reason.text, REASON_CHARS_MAX),
        plain(&reason.feature, 64),
        number(reason.value),
        number(reason.usual_low),
        number(reason.usual_high),
        unit = plain(&reason.unit, 16),
    )
}

/// What to do about it, and the command. Nothing is left to undo after a pardon, nor in shadow mode.
fn undo(incident: &Incident) -> Option<(&'static str, String)> {
    match (incident.action, incident.mode) {
        (Action::Pardon, _) | (_, Mode::Shadow) => None,
        (Action::BudgetTrip, Mode::Enforce) => Some((
            "Look at the incidents before this one. Rules enforce again only by hand, with",
            "gaitway policy reset-budget --why TEXT".into(),
        )),
        _ => Some((
            "If this was a person, let the session in again with",
            format!("gaitway session pardon {}", incident.identity.session),
        )),
    }
}

fn session_link(ops_url: &str, incident: &Incident) -> String {
    format!("{}/sessions/{}", plain(ops_url, 300).trim_end_matches('/'), incident.identity.session)
}

pub fn action_name(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Log => "log",
        Action::Tag => "tag",
        Action::Throttle => "throttle",
        Action::Challenge => "challenge",
        Action::StepUp => "step-up",
        Action::Logout => "logout",
        Action::LogoutEverywhere => "logout-everywhere",
        Action::Deny => "deny",
        Action::Tarpit => "tarpit",
        Action::Pardon => "pardon",
        Action::BudgetTrip => "budget-trip",
    }
}

pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Shadow => "shadow",
        Mode::Enforce => "enforce",
    }
}

fn modality(modality: Modality) -> &'static str {
    match modality {
        Modality::None => "no",
        Modality::Mouse => "mouse",
        Modality::Touch => "touch",
        Modality::Keyboard => "keyboard",
        Modality::Mixed => "mixed",
    }
}

fn score(incident: &Incident) -> String {
    incident.facts.assessment.bot_score.map_or_else(|| "unknown".into(), |score| format!("{score:.2}"))
}

/// Enough of the session to find it, short enough for a subject.
fn short_session(incident: &Incident) -> String {
    incident.identity.session.to_string().chars().take(10).collect()
}

/// RFC 3339 in UTC, to the millisecond; "never" for moments past the calendar.
pub fn time(at: Timestamp) -> String {
    i64::try_from(at.0)
        .ok()
        .and_then(|milliseconds| jiff::Timestamp::from_millisecond(milliseconds).ok())
        .map_or_else(|| "never".into(), |moment| format!("{moment:.3}"))
}

/// Three significant digits, as far as a person reads them.
fn number(value: f32) -> String {
    match value.abs() {
        _ if !value.is_finite() => "unknown".into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

/// Text on one line, at most `chars_max` characters: line breaks, control characters and those that
/// turn the reading direction or hide (which could make a mail show something else than it says)
/// become spaces.
pub fn plain(text: &str, chars_max: usize) -> String {
    // Four times the wanted length is read at most, so a huge field costs nothing.
    let mended = text.chars().take(chars_max.saturating_mul(4)).map(|character| {
        let hides = matches!(character,
            '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}');
        if character.is_control() || hides { ' ' } else { character }
    });
    let mended: String = mended.collect();
    // "=?" opens an encoded word, in which a mail program would read line breaks back into a header.
    let mended = mended.split_whitespace().collect::<Vec<_>>().join(" ").replace("=?", "= ?");
    line(&mended, chars_max)
}

fn line(text: &str, chars_max: usize) -> String {
    if text.chars().nth(chars_max).is_none() {
        return text.to_string();
    }
    let mut cut: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn plain_text_is_one_bounded_line() {
        for (text, expected) in [
            ("Bcc: a@b\r\nX: y", "Bcc: a@b X: y"),
            ("a\u{0}b\u{7f}c\u{85}d", "a b c d"),
            ("  many \t\n spaces ", "many spaces"),
            ("left\u{202E}thgir\u{2028}next", "left thgir next"),
            ("zero\u{200B}width", "zero width"),
            ("线路 🚶 ok", "线路 🚶 ok"),
            ("=?utf-8?Q?=0D=0AX:?=", "= ?utf-8?Q?=0D=0AX:?="),
            ("=\u{200B}?utf-8?q?x?=", "= ?utf-8?q?x?="),
        ] {
            assert_eq!(plain(text, 40), expected);
        }
        assert_eq!(plain(&"long ".repeat(1000), 9), "long lon…");
        assert_eq!(plain("", 9), "");
    }

    #[test]
    fn numbers_keep_what_a_person_reads() {
        let all = [0.0, 0.0004, 0.013, 0.97, 21.04, 9120.4, -3.5, f32::NAN, f32::INFINITY].map(number);
        expect![[r#"["0.00", "4.0e-4", "0.01", "0.97", "21.0", "9120", "-3.50", "unknown", "unknown"]"#]]
            .assert_eq(&format!("{all:?}"));
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(time(Timestamp(1_790_000_000_123)), "2026-09-21T14:13:20.123Z");
        assert_eq!(time(Timestamp(u64::MAX)), "never");
    }

    #[test]
    fn html_holds_no_tag_but_ours() {
        assert_eq!(escape("<b a=\"1\" c='2'>&"), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;");
    }
}
