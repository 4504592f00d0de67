//! Conducts the demo: builds the stage, sends the visitors in, shows what happens, and ends it all.

use crate::mailbox::Mail;
use crate::operator::Operator;
use crate::scene::{PROMISE, Scene};
use crate::shop::USERS;
use crate::stage::{Stage, Wishes};
use crate::visitor::{self, Invitation, Nature};
use clap::Args;
use gaitway_models::sim::BotKind;
use std::array::IntoIter;
use std::io::{IsTerminal, Write};
use std::iter::Cycle;
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
/// Lines typed and not yet read.
const TYPED_MAX: usize = 4;
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
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=8))]
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
    let public = stage.public;
    let mut send_in = |show: &mut Show, invitation: Invitation, after: Duration| {
        show.scene.invite(invitation);
        let reports = reports.clone();
        visits.spawn(async move {
            tokio::time::sleep(after).await;
            visitor::visit(public, invitation, reports).await;
        });
    };
    let mut guests = Guests::new(args.seed);
    let people: Vec<Invitation> = (0..args.people).filter_map(|_| guests.person()).collect();
    let bots: Vec<Invitation> = (0..args.bots).filter_map(|_| guests.bot()).collect();
    for (order, invitation) in (0..).zip(people.into_iter().chain(bots)) {
        send_in(&mut show, invitation, ARRIVAL * order);
    }

    let end = args.seconds.map(|seconds| began + Duration::from_secs(seconds));
    let mut typed = typed();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let outcome = loop {
        tokio::select! {
            Some((user, news)) = news.recv() => show.news(began.elapsed(), user, news),
            Some(mail) = stage.mailbox.mails.recv() => show.mail(began.elapsed(), mail),
            _ = look.tick() => {
                let seen = tokio::join!(operator.sessions(), operator.incidents());
                show.look(began.elapsed(), seen);
            }
            Some(line) = typed.recv() => {
                if let Some(bot) = (line.trim() == "b").then(|| guests.bot()).flatten() {
                    send_in(&mut show, bot, Duration::ZERO);
                }
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
    print(&["Everything the demo started has ended.".into()]);
    code
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Who may still come: people take the first eight names of the shop's list, bots the next eight.
struct Guests {
    names: Vec<&'static str>,
    kinds: Cycle<IntoIter<BotKind, { BotKind::ALL.len() }>>,
    crooks: Vec<&'static str>,
    seed: u64,
}

impl Guests {
    fn new(seed: u64) -> Guests {
        let (names, rest) = USERS.split_at(8);
        Guests {
            names: names.iter().rev().copied().collect(),
            kinds: BotKind::ALL.into_iter().cycle(),
            crooks: rest.iter().take(8).rev().copied().collect(),
            // Far from the next seed's, so that another seed shares nobody with this one.
            seed: seed.wrapping_mul(1000),
        }
    }

    fn person(&mut self) -> Option<Invitation> {
        let user = self.names.pop()?;
        Some(Invitation { user, nature: Nature::Person, seed: self.next_seed() })
    }

    fn bot(&mut self) -> Option<Invitation> {
        let user = self.crooks.pop()?;
        let nature = Nature::Bot(self.kinds.next()?);
        Some(Invitation { user, nature, seed: self.next_seed() })
    }

    fn next_seed(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(1);
        self.seed
    }
}

/// Lines typed by the audience. The thread ends with the process, as reading cannot be cut short.
fn typed() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(TYPED_MAX);
    if std::io::stdin().is_terminal() {
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
    }
    lines
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
            "This demo ENFORCES: bots are logged out. A fresh install only shadows.".into(),
            "b and Enter sends another bot; Ctrl-C ends it all.".into(),
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
        // One may fail without the other; what is known is shown.
        let (sessions, incidents) = seen;
        let failed = sessions.as_ref().err().or(incidents.as_ref().err()).map(|error| format!("{error:#}"));
        self.scene.observe(sessions.unwrap_or_default(), &incidents.unwrap_or_default());
        if let Some(error) = failed.filter(|_| !self.complained) {
            self.complained = true;
            self.tell(at, Some(format!("the ops API does not answer: {error}")));
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
        // Cursor home, then each line cleared to its end, then the rest of the screen: no flicker. A line
        // that wraps or a screen that scrolls would leave the previous one's remains.
        let (columns, rows) = screen_size();
        let mut screen = String::from("\x1b[H");
        for line in lines.iter().take(rows.saturating_sub(1)) {
            screen.extend(line.chars().take(columns));
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

/// Columns and rows of the terminal; those of old where it does not say.
fn screen_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
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
