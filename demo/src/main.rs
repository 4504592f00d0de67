//! The demo's binary: one command a part, and without a command all of them together.

mod browser;
mod child;
mod conductor;
mod mailbox;
mod operator;
mod scene;
mod shop;
mod stage;
mod visitor;

use anyhow::Context;
use clap::{Parser, Subcommand};
use conductor::DemoArgs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// A legacy shop, Gaitway before it, people and bots inside: see a session being revoked.
#[derive(Debug, Parser)]
#[command(name = "gaitway-demo", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    demo: DemoArgs,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// The legacy shop alone
    Shop {
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Secret that signs its tokens; made if missing
        #[arg(long, default_value = "session.key")]
        key_file: PathBuf,
    },
    /// Succeeds if the address answers well; for container health checks
    Probe { url: String },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The main thread runs the conductor itself, and with it starts every child (child.rs says why).
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.context("the runtime").and_then(|runtime| runtime.block_on(run(cli)));
    outcome.unwrap_or_else(|error| {
        eprintln!("gaitway-demo: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.part {
        None => conductor::run(cli.demo).await,
        Some(Part::Shop { listen, key_file }) => {
            let key = shop::Key::read_or_create(&key_file)?;
            let listener = TcpListener::bind(listen).await.with_context(|| listen.to_string())?;
            // As the first process of a container it gets no default handling of signals.
            let mut terminate = signal(SignalKind::terminate())?;
            tokio::select! {
                served = shop::serve(listener, key) => served?,
                _ = terminate.recv() => {}
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Part::Probe { url }) => {
            reqwest::get(url).await?.error_for_status()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
