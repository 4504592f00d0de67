//! What has happened so far, as the audience sees it, and whether it is what the demo promises.
//!
//! Pure: visitors' news, mails and the operator's view go in; lines of text come out.

use crate::mailbox::Mail;
use crate::operator::{Incident, Session};
use crate::visitor::{Invitation, Nature, News};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Lines of history kept on the screen.
const HISTORY_MAX: usize = 12;
/// Visitors shown at most; more than anyone reads.
const ROWS_MAX: usize = 30;
/// Within this time of the visitors' arrival a bot must be out.
pub const PROMISE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Scene {
    visitors: Vec<Visitor>,
    sessions: Vec<Session>,
    history: VecDeque<String>,
    mails: Vec<(Duration, Mail)>,
    /// Pages seen without the collector; as many as the shop has addresses.
    bare_pages: BTreeSet<String>,
}

struct Visitor {
    user: &'static str,
    nature: Nature,
    status: Status,
    last_fetch: Option<u16>,
    collector_seen: bool,
    /// Answers to the cookie tried again after the end, on a page and on the API.
    old_token: Option<(u16, u16)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Status {
    Coming,
    Inside,
    /// Ended by the gateway; after how long, and under which incident.
    Out {
        after: Duration,
        incident: Option<String>,
    },
}

impl Scene {
    pub fn invite(&mut self, invitation: Invitation) {
        let Invitation { user, nature, .. } = invitation;
        self.visitors.push(Visitor {
            user,
            nature,
            status: Status::Coming,
            last_fetch: None,
            collector_seen: false,
            old_token: None,
        });
    }

    /// Takes a visitor's news; returns the line worth showing, if any.
    pub fn news(&mut self, at: Duration, user: &str, news: News) -> Option<String> {
        let visitor = self.visitors.iter_mut().find(|visitor| visitor.user == user)?;
        let who = format!("{user} ({})", visitor.nature.name());
        let line = match news {
            News::LoggedIn => {
                visitor.status = Status::Inside;
                format!("{who} logs in")
            }
            News::Fetched { status } => {
                visitor.last_fetch = Some(status);
                return None;
            }
            News::Page { collector: true, .. } => {
                visitor.collector_seen = true;
                return None;
            }
            News::Page { path, collector: false } => {
                if !self.bare_pages.insert(path.clone()) {
                    return None;
                }
                format!("{path} comes without the collector")
            }
            News::SentAway { to } => {
                let incident = to.split_once("?i=").map(|(_, id)| id.to_string());
                let line =
                    format!("{who} is LOGGED OUT, incident {}", incident.as_deref().unwrap_or("unknown"));
                visitor.status = Status::Out { after: at, incident };
                line
            }
            News::Unauthorised => {
                visitor.status = Status::Out { after: at, incident: None };
                format!("{who} is LOGGED OUT, noticed by a refused request")
            }
            News::OldToken { page, api } => {
                visitor.old_token = Some((page, api));
                format!("{who} tries the old token again: page {page}, API {api}")
            }
            News::Trouble { what } => format!("{who} has trouble: {what}"),
        };
        self.remember(at, &line);
        Some(line)
    }

    pub fn mail(&mut self, at: Duration, mail: Mail) -> String {
        let line = format!("mail to {}: {}", mail.to, mail.subject);
        self.remember(at, &line);
        self.mails.push((at, mail));
        line
    }

    pub fn observe(&mut self, sessions: Vec<Session>, incidents: &[Incident]) {
        self.sessions = sessions;
        // A visitor who noticed by a refusal does not know the number; the operator does.
        for incident in incidents.iter().filter(|incident| incident.ends_the_session()) {
            let named = incident.identity.user();
            for visitor in self.visitors.iter_mut().filter(|visitor| Some(visitor.user) == named) {
                if let Status::Out { incident: number @ None, .. } = &mut visitor.status {
                    *number = Some(incident.id.clone());
                }
            }
        }
    }

    /// What the demo promises and does not hold; nothing if all is well.
    pub fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut bots_out = 0;
        for visitor in &self.visitors {
            let who = visitor.user;
            if !visitor.collector_seen {
                broken.push(format!("{who} never got a page with the collector in it"));
            }
            match (&visitor.nature, &visitor.status) {
                (Nature::Person, Status::Inside) if visitor.last_fetch == Some(200) => {}
                (Nature::Person, status) => broken.push(format!(
                    "{who} is a person and should be inside: {status:?}, last answer {:?}",
                    visitor.last_fetch
                )),
                (Nature::Bot(_), Status::Out { after, incident: Some(incident) }) if *after <= PROMISE => {
                    let told = self.mails.iter().any(|(_, mail)| {
                        mail.subject.contains(incident.as_str()) || mail.text.contains(incident.as_str())
                    });
                    match visitor.old_token {
                        _ if !told => broken.push(format!("no mail names {who}'s incident {incident}")),
                        Some((401 | 403, 401 | 403)) => bots_out += 1,
                        refused => broken.push(format!("{who}'s old token was answered {refused:?}")),
                    }
                }
                (Nature::Bot(_), _) => {}
            }
        }
        if bots_out == 0 {
            broken.push(format!("no bot was logged out by mail within {} s", PROMISE.as_secs()));
        }
        broken
    }

    /// The table of visitors and sessions.
    pub fn table(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<10}{:<16}{:<24}{:>6}{:>10}{:>9}  {}",
            "who", "really", "standing", "score", "evidence", "input", "strongest reason"
        )];
        for visitor in self.visitors.iter().take(ROWS_MAX) {
            let session = self.sessions.iter().find(|session| session.identity.user() == Some(visitor.user));
            let standing = match &visitor.status {
                Status::Coming => "coming".to_string(),
                Status::Inside => standing(session),
                Status::Out { after, .. } => format!("logged out after {} s", after.as_secs()),
            };
            lines.push(row(visitor.user, visitor.nature.name(), &standing, session));
        }
        let invited =
            |session: &Session| self.visitors.iter().any(|one| session.identity.user() == Some(one.user));
        let others =
            self.sessions.iter().filter(|session| !invited(session) && !session.identity.groups.is_empty());
        for session in others.take(ROWS_MAX) {
            let who = session.identity.user().unwrap_or("?");
            lines.push(row(who, "you?", &standing(Some(session)), Some(session)));
        }
        lines
    }

    pub fn history(&self) -> impl Iterator<Item = &str> {
        self.history.iter().map(String::as_str)
    }

    pub fn last_mail(&self) -> Option<&Mail> {
        self.mails.last().map(|(_, mail)| mail)
    }

    fn remember(&mut self, at: Duration, line: &str) {
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(format!("{:>5.1} s  {line}", at.as_secs_f32()));
    }
}

fn standing(session: Option<&Session>) -> String {
    session.map_or("-", |session| session.standing.standing.as_str()).to_string()
}

fn row(who: &str, really: &str, standing: &str, session: Option<&Session>) -> String {
    let (score, evidence, input, reason) = match session.map(|session| &session.assessment) {
        Some(seen) => (
            seen.bot_score.map_or("-".into(), |score| format!("{score:.2}")),
            format!("{:.1}", seen.bot_evidence),
            format!("{:.0} s", seen.evidence.seconds),
            seen.reasons.first().map_or(seen.telemetry.as_str(), |reason| reason.text.as_str()),
        ),
        None => ("-".into(), "-".into(), "-".into(), ""),
    };
    format!("{who:<10}{really:<16}{standing:<24}{score:>6}{evidence:>10}{input:>9}  {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gaitway_models::sim::BotKind;

    const EARLY: Duration = Duration::from_secs(20);

    /// A scene of one person and one bot in which all goes as promised, after `change` has its way.
    fn check(change: impl FnOnce(&mut Scene), expected: &[&str]) {
        let mut scene = Scene::default();
        scene.invite(Invitation { user: "alice", nature: Nature::Person, seed: 1 });
        scene.invite(Invitation { user: "mallory", nature: Nature::Bot(BotKind::LinearEven), seed: 2 });
        for user in ["alice", "mallory"] {
            scene.news(Duration::ZERO, user, News::LoggedIn);
            scene.news(Duration::ZERO, user, News::Page { path: "/".into(), collector: true });
            scene.news(EARLY, user, News::Fetched { status: 200 });
        }
        change(&mut scene);
        let broken = scene.broken_promises();
        assert_eq!(broken.len(), expected.len(), "{broken:?}");
        for (broken, expected) in broken.iter().zip(expected) {
            assert!(broken.contains(expected), "{broken} lacks {expected}");
        }
    }

    fn bot_leaves(scene: &mut Scene, at: Duration) {
        scene.news(at, "mallory", News::SentAway { to: "/_gaitway/bye?i=G7".into() });
        scene.news(at, "mallory", News::OldToken { page: 403, api: 401 });
    }

    fn mail(text: &str) -> Mail {
        Mail { to: "security@shop.example".into(), subject: "Session ended".into(), text: text.into() }
    }

    #[test]
    fn a_bot_out_with_a_mail_and_a_person_inside_is_what_was_promised() {
        check(
            |scene| {
                bot_leaves(scene, EARLY);
                scene.mail(EARLY, mail("incident G7"));
            },
            &[],
        );
    }

    #[test]
    fn a_bot_without_its_mail_too_late_or_never_out_breaks_the_promise() {
        check(|scene| bot_leaves(scene, EARLY), &["no mail names", "no bot"]);
        check(
            |scene| {
                bot_leaves(scene, PROMISE + EARLY);
                scene.mail(EARLY, mail("incident G7"));
            },
            &["no bot"],
        );
        check(|_| {}, &["no bot"]);
    }

    #[test]
    fn a_token_that_still_works_breaks_the_promise() {
        check(
            |scene| {
                bot_leaves(scene, EARLY);
                scene.news(EARLY, "mallory", News::OldToken { page: 200, api: 401 });
                scene.mail(EARLY, mail("incident G7"));
            },
            &["old token", "no bot"],
        );
    }

    #[test]
    fn a_person_logged_out_or_refused_breaks_the_promise() {
        let well = |scene: &mut Scene| {
            bot_leaves(scene, EARLY);
            scene.mail(EARLY, mail("incident G7"));
        };
        check(
            |scene| {
                well(scene);
                scene.news(EARLY, "alice", News::SentAway { to: "/_gaitway/bye?i=G8".into() });
            },
            &["alice is a person"],
        );
        check(
            |scene| {
                well(scene);
                scene.news(EARLY, "alice", News::Fetched { status: 429 });
            },
            &["alice is a person"],
        );
    }

    #[test]
    fn a_visitor_whose_pages_never_carry_the_collector_breaks_the_promise() {
        check(
            |scene| {
                bot_leaves(scene, EARLY);
                scene.mail(EARLY, mail("incident G7"));
                scene.visitors[0].collector_seen = false;
                let bare = || News::Page { path: "/cart".into(), collector: false };
                assert!(scene.news(EARLY, "alice", bare()).is_some());
                assert!(scene.news(EARLY, "alice", bare()).is_none(), "each page is told once");
            },
            &["alice never got a page"],
        );
    }

    #[test]
    fn history_keeps_its_limit() {
        check(
            |scene| {
                for _ in 0..2 * HISTORY_MAX {
                    scene.mail(EARLY, mail("unrelated"));
                }
                assert_eq!(scene.history().count(), HISTORY_MAX);
            },
            &["no bot"],
        );
    }
}
