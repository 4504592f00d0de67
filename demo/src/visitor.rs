//! Simulated visitors: they log in, look around, move and type, and react as a browser would when the
//! gateway sends them away. They come in by the public doors only.
//!
//! What they do follows from their seed; when they do it, from the clock. Must not know: scores,
//! policies, or whether they are suspected.

use crate::browser::{Browser, Page, Telemetry, Told};
use crate::shop::PASSWORD;
use anyhow::Context;
use gaitway_models::Batch;
use gaitway_models::sim::{self, BotKind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Method, StatusCode};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// As often as the collector sends.
const BATCH_EVERY: Duration = Duration::from_secs(2);
/// A page's own script asks for something now and then.
const FETCH_EVERY: Duration = Duration::from_secs(5);
/// Before another try after something failed; the gateway may be restarting.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Failures in a row after which a visitor goes home.
const FAILURES_MAX: u32 = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    Person,
    Bot(BotKind),
}

impl Nature {
    pub fn name(self) -> &'static str {
        match self {
            Nature::Person => "person",
            Nature::Bot(kind) => kind.name(),
        }
    }
}

/// One visitor, before it comes.
#[derive(Clone, Copy, Debug)]
pub struct Invitation {
    pub user: &'static str,
    pub nature: Nature,
    pub seed: u64,
}

/// What a visitor tells whoever watches the demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    LoggedIn,
    /// A page came, with the gateway's collector in it or without.
    Page {
        path: String,
        collector: bool,
    },
    /// A fetch of the page's own script was answered so.
    Fetched {
        status: u16,
    },
    /// The gateway ended the session; the address it sent the browser to.
    SentAway {
        to: String,
    },
    /// The session ended in another way.
    Unauthorised,
    /// The old cookie was tried again, on a page and on the API.
    OldToken {
        page: u16,
        api: u16,
    },
    Trouble {
        what: String,
    },
}

pub type Reports = mpsc::Sender<(&'static str, News)>;

/// Runs a visit until the session is ended from outside, or the future is dropped.
pub async fn visit(address: SocketAddr, invitation: Invitation, reports: Reports) {
    let Invitation { user, nature, seed } = invitation;
    let mind = match nature {
        Nature::Person => sim::Visitor::person(seed),
        Nature::Bot(kind) => sim::Visitor::bot(kind, seed),
    };
    let mut visit = Visit { user, nature, reports, body: Body::new(mind), rng: StdRng::seed_from_u64(seed) };
    let mut failures = 0;
    while failures < FAILURES_MAX {
        match visit.session(address).await {
            Ok(()) => return,
            Err(error) => {
                failures += 1;
                visit.report(News::Trouble { what: format!("{error:#}") }).await;
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

struct Visit {
    user: &'static str,
    nature: Nature,
    reports: Reports,
    body: Body,
    rng: StdRng,
}

/// Why a page was left.
enum Left {
    ForAnother,
    SentAway(String),
    Unauthorised,
}

impl Visit {
    /// From login until the session is ended.
    async fn session(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let mut browser = Browser::new(address)?;
        browser.open("/login").await?;
        let page = browser.submit("/login", &[("user", self.user), ("password", PASSWORD)]).await?;
        anyhow::ensure!(page.status == StatusCode::OK, "login answered {}", page.status);
        self.report(News::LoggedIn).await;
        self.look_at(&page).await;
        loop {
            // What a thief would keep: the cookies as they are before the gateway takes them back.
            let kept = browser.clone();
            match self.stay(&mut browser).await? {
                Left::ForAnother => {
                    let path = PAGES[self.rng.random_range(0..PAGES.len())];
                    let page = browser.open(path).await?;
                    match page.status {
                        StatusCode::OK => self.look_at(&page).await,
                        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                            return self.gone(kept, News::Unauthorised).await;
                        }
                        // Throttled or a hiccup: try another page later.
                        status => {
                            self.report(News::Trouble { what: format!("{path} answered {status}") }).await;
                        }
                    }
                }
                Left::SentAway(to) => {
                    browser.open(&to).await.context("the page a visitor was sent to")?;
                    return self.gone(kept, News::SentAway { to }).await;
                }
                Left::Unauthorised => return self.gone(kept, News::Unauthorised).await,
            }
        }
    }

    /// One page view: telemetry every two seconds, a fetch now and then, until it is time to go.
    async fn stay(&mut self, browser: &mut Browser) -> anyhow::Result<Left> {
        self.body.new_page();
        let mut telemetry = browser.telemetry().await?;
        let leave = Instant::now()
            + Duration::from_secs_f64(match self.nature {
                Nature::Person => self.rng.random_range(9.0..20.0),
                Nature::Bot(_) => self.rng.random_range(8.0..12.0),
            });
        let mut batches = tokio::time::interval_at(Instant::now() + BATCH_EVERY, BATCH_EVERY);
        let mut fetches = tokio::time::interval_at(Instant::now() + FETCH_EVERY, FETCH_EVERY);
        loop {
            tokio::select! {
                _ = tokio::time::sleep_until(leave) => return Ok(Left::ForAnother),
                _ = batches.tick() => {
                    let frame = self.body.batch(BATCH_EVERY).encode();
                    if let Some(socket) = &mut telemetry {
                        // A lost socket shows below, at once.
                        let _ = socket.send(frame).await;
                    }
                }
                _ = fetches.tick() => {
                    let answer = browser.fetch(Method::GET, "/api/cart").await?;
                    self.report(News::Fetched { status: answer.status().as_u16() }).await;
                    if answer.status() == StatusCode::UNAUTHORIZED {
                        return Ok(Left::Unauthorised);
                    }
                }
                told = told(&mut telemetry) => match told {
                    Told::Go(to) => return Ok(Left::SentAway(to)),
                    Told::Enough => telemetry = None,
                    Told::Renew | Told::Lost => {
                        tokio::time::sleep(RETRY_AFTER).await;
                        telemetry = browser.telemetry().await?;
                    }
                },
            }
        }
    }

    /// The session is over. Shows that the token is worth nothing any more, and stays away.
    async fn gone(&mut self, mut kept: Browser, news: News) -> anyhow::Result<()> {
        self.report(news).await;
        let page = kept.clone().open("/account").await?.status.as_u16();
        let api = kept.fetch(Method::GET, "/api/cart").await?.status().as_u16();
        self.report(News::OldToken { page, api }).await;
        Ok(())
    }

    async fn look_at(&mut self, page: &Page) {
        let path = page.path.clone();
        self.report(News::Page { path, collector: page.has_collector() }).await;
    }

    async fn report(&self, news: News) {
        // Nobody listens any more: the demo is ending.
        let _ = self.reports.send((self.user, news)).await;
    }
}

async fn told(telemetry: &mut Option<Telemetry>) -> Told {
    match telemetry {
        Some(socket) => socket.told().await,
        None => std::future::pending().await,
    }
}

const PAGES: &[&str] = &[
    "/",
    "/catalogue",
    "/product/teapot",
    "/product/honey",
    "/product/lamp",
    "/product/blanket",
    "/product/kettle",
    "/cart",
    "/account",
];

/// A simulated body over several pages: the same hand, a new page clock on each page.
struct Body {
    mind: sim::Visitor,
    environment: Option<gaitway_models::event::Environment>,
    page_began_us: u64,
    now_us: u64,
    sequence: u32,
}

impl Body {
    fn new(mind: sim::Visitor) -> Body {
        Body { mind, environment: None, page_began_us: 0, now_us: 0, sequence: 0 }
    }

    fn new_page(&mut self) {
        self.page_began_us = self.now_us;
        self.sequence = 0;
    }

    fn batch(&mut self, of: Duration) -> Batch {
        let mut batch = self.mind.next_batch(of.as_secs_f64());
        self.now_us = batch.sent_at_us;
        self.environment = batch.environment.or(self.environment);
        batch.environment = self.environment.filter(|_| self.sequence == 0);
        batch.sequence = self.sequence;
        batch.sent_at_us -= self.page_began_us;
        for event in &mut batch.events {
            event.at_us = event.at_us.saturating_sub(self.page_began_us);
        }
        self.sequence += 1;
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_starts_each_page_at_sequence_zero_and_the_pages_own_clock() {
        let mut body = Body::new(sim::Visitor::person(7));
        body.new_page();
        let first = body.batch(BATCH_EVERY);
        let second = body.batch(BATCH_EVERY);
        body.new_page();
        let third = body.batch(BATCH_EVERY);
        assert_eq!([first.sequence, second.sequence, third.sequence], [0, 1, 0]);
        assert_eq!(first.environment, third.environment);
        assert!(first.environment.is_some() && second.environment.is_none());
        assert_eq!(
            [first.sent_at_us, second.sent_at_us, third.sent_at_us],
            [2_000_000, 4_000_000, 2_000_000]
        );
        assert!(!third.events.is_empty());
        assert!(third.events.iter().all(|event| event.at_us <= third.sent_at_us));
        assert_eq!(Batch::decode(&third.encode()).unwrap().sequence, 0);
    }
}
