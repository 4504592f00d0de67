//! Conducts the demo: builds the stage, sends the visitors in, shows what happens, and ends it all.

use crate::mailbox::Mail;
use crate::operator::Operator;
use crate::scene::{PROMISE, Scene};
use crate::shop::USERS;
use crate::stage::{Stage, Wishes};
use crate::visitor::{self, Invitation, Nature};
use clap::Args;
use gaitway_models::sim::BotKind;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// News not yet shown; a visitor waits when the conductor is behind.
const NEWS_MAX: usize = 256;
/// Between two visitors' arrivals, so that their logins can be followed.
const ARRIVAL: Duration = Duration::from_millis(400);
/// Between two looks at the operators' API.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two tables on a plain terminal.
const TABLE_EVERY: Duration = Duration::from_secs(10);
/// Alert text shown on a live terminal.
const MAIL_LINES: usize = 14;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Simulated people
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=8))]
    people: u8,
    /// Simulated bots, one of each kind in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=4))]
    bots: u8,
    /// Another seed, other people and bots
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where visitors connect; another free port if it is taken
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The ops page; another free port if it is taken
    #[arg(long, default_value_t = 9000)]
    ops_port: u16,
    /// Keep revocations in this Redis (redis://host:port) instead of in the gateway
    #[arg(long)]
    redis: Option<String>,
    /// The gateway's binary [default: beside this one]
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
    /// End after this many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// At the end, succeed only if a bot was logged out by mail within a minute and no person was
    #[arg(long, requires = "seconds")]
    assert: bool,
    /// Lines instead of a live screen
    #[arg(long)]
    plain: bool,
}

pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    // Before anything is started, so that no signal finds the demo unprepared.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;

    // A test takes free ports, so that two can run beside each other.
    let (public_port, ops_port) = if args.assert { (0, 0) } else { (args.port, args.ops_port) };
    let wishes = Wishes { public_port, ops_port, redis: args.redis.clone(), gateway: args.gateway.clone() };
    let mut stage = tokio::select! {
        stage = Stage::build(&wishes) => stage?,
        _ = interrupt.recv() => return Ok(ExitCode::from(130)),
        _ = terminate.recv() => return Ok(ExitCode::from(143)),
    };
    let operator = Operator::new(stage.ops, stage.password.clone())?;

    let mut show = Show::new(&stage, args.plain || !std::io::stdout().is_terminal());
    show.begin();
    let (reports, mut news) = mpsc::channel(NEWS_MAX);
    let mut visits = JoinSet::new();
    let began = Instant::now();
    for (order, invitation) in guests(&args).into_iter().enumerate() {
        show.scene.invite(invitation);
        let (public, reports) = (stage.public, reports.clone());
        visits.spawn(async move {
            tokio::time::sleep(ARRIVAL * u32::try_from(order).unwrap_or(u32::MAX)).await;
            visitor::visit(public, invitation, reports).await;
        });
    }

    let end = args.seconds.map(|seconds| began + Duration::from_secs(seconds));
    let mut look = tokio::time::interval(LOOK_EVERY);
    let outcome = loop {
        tokio::select! {
            Some((user, news)) = news.recv() => show.news(began.elapsed(), user, news),
            Some(mail) = stage.mailbox.mails.recv() => show.mail(began.elapsed(), mail),
            _ = look.tick() => {
                let seen = tokio::join!(operator.sessions(), operator.incidents());
                show.look(began.elapsed(), seen);
            }
            how = stage.gateway.ended() => {
                break Err(anyhow::anyhow!("the gateway ended ({how}):\n{}", stage.gateway_log()));
            }
            () = until(end) => break Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => break Ok(ExitCode::from(130)),
            _ = terminate.recv() => break Ok(ExitCode::from(143)),
            _ = hang_up.recv() => break Ok(ExitCode::from(129)),
        }
    };
    visits.shutdown().await;
    let code = match outcome {
        Ok(ExitCode::SUCCESS) if args.assert => show.verdict(&stage),
        other => other,
    };
    stage.end().await;
    code
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// People take names from the front of the shop's list, bots the ones after them.
fn guests(args: &DemoArgs) -> Vec<Invitation> {
    let people = (0..args.people).map(|_| Nature::Person);
    let bots = BotKind::ALL.into_iter().cycle().take(usize::from(args.bots)).map(Nature::Bot);
    let (names, crooks) = USERS.split_at(8);
    let seeds = (args.seed.wrapping_mul(1000)..).step_by(1);
    let people = people.zip(names);
    let bots = bots.zip(crooks);
    people.chain(bots).zip(seeds).map(|((nature, user), seed)| Invitation { user, nature, seed }).collect()
}

/// The audience's screen.
struct Show {
    scene: Scene,
    plain: bool,
    heading: Vec<String>,
    next_table: Duration,
    complained: bool,
}

impl Show {
    fn new(stage: &Stage, plain: bool) -> Show {
        let heading = vec![
            format!("shop      http://{}   log in as guest, password demo", stage.public),
            format!("ops page  http://{}   password {}", stage.ops, stage.password),
            "This demo ENFORCES: bots are logged out. A fresh install only shadows.   Ctrl-C ends it.".into(),
        ];
        Show { scene: Scene::default(), plain, heading, next_table: TABLE_EVERY, complained: false }
    }

    fn begin(&self) {
        if self.plain {
            print(&self.heading);
        } else {
            self.draw();
        }
    }

    fn news(&mut self, at: Duration, user: &str, news: visitor::News) {
        let line = self.scene.news(at, user, news);
        self.tell(at, line);
    }

    fn mail(&mut self, at: Duration, mail: Mail) {
        let text = mail.text.clone();
        let line = self.scene.mail(at, mail);
        self.tell(at, Some(line));
        if self.plain {
            print(&text.lines().map(|line| format!("         | {line}")).collect::<Vec<_>>());
        }
    }

    fn look(
        &mut self,
        at: Duration,
        seen: (anyhow::Result<Vec<crate::operator::Session>>, anyhow::Result<Vec<crate::operator::Incident>>),
    ) {
        match seen {
            (Ok(sessions), Ok(incidents)) => self.scene.observe(sessions, &incidents),
            (Err(error), _) | (_, Err(error)) => {
                if !self.complained {
                    self.complained = true;
                    self.tell(at, Some(format!("the ops API does not answer: {error:#}")));
                }
            }
        }
        if !self.plain {
            self.draw();
        } else if at >= self.next_table {
            self.next_table = at + TABLE_EVERY;
            print(&self.scene.table());
        }
    }

    fn tell(&self, at: Duration, line: Option<String>) {
        let Some(line) = line else { return };
        if self.plain {
            print(&[format!("{:>5.1} s  {line}", at.as_secs_f32())]);
        } else {
            self.draw();
        }
    }

    fn draw(&self) {
        let mut lines = self.heading.clone();
        lines.push(String::new());
        lines.extend(self.scene.table());
        lines.push(String::new());
        lines.extend(self.scene.history().map(String::from));
        if let Some(mail) = self.scene.last_mail() {
            lines.push(String::new());
            lines.push(format!("Latest mail: {}", mail.subject));
            lines.extend(mail.text.lines().take(MAIL_LINES).map(|line| format!("  | {line}")));
        }
        // Cursor home, then each line cleared to its end, then the rest of the screen: no flicker.
        let mut screen = String::from("\x1b[H");
        for line in lines {
            screen.push_str(&line);
            screen.push_str("\x1b[K\n");
        }
        screen.push_str("\x1b[J");
        write(&screen);
    }

    /// Whether the demo did what it promises.
    fn verdict(&self, stage: &Stage) -> anyhow::Result<ExitCode> {
        print(&self.scene.table());
        let broken = self.scene.broken_promises();
        if broken.is_empty() {
            print(&[format!(
                "as promised: a bot out within {} s, told by mail, and every person inside",
                PROMISE.as_secs()
            )]);
            return Ok(ExitCode::SUCCESS);
        }
        print(&broken.iter().map(|line| format!("BROKEN PROMISE: {line}")).collect::<Vec<_>>());
        print(&["the gateway's last lines:".into(), stage.gateway_log()]);
        Ok(ExitCode::FAILURE)
    }
}

fn print(lines: &[String]) {
    write(&(lines.join("\n") + "\n"));
}

fn write(text: &str) {
    // A closed terminal is no reason to leave children behind; the demo ends by its signal.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
