//! `gaitway run`: settings, logging, metrics, then the app.

use crate::config::{Config, Overrides};
use crate::{app, logging, metrics};
use anyhow::Context;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The app behind the gateway, such as http://127.0.0.1:8080
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Where visitors connect [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where operators connect: page, API and metrics [default: 127.0.0.1:9000]
    #[arg(long, value_name = "ADDR")]
    ops: Option<String>,
    /// Directory for the database and generated secrets [default: data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "GAITWAY_CONFIG")]
    config: Option<PathBuf>,
}

pub(crate) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides::environment()
        .option("--upstream", "upstream", args.upstream)
        .option("--listen", "listen", args.listen)
        .option("--ops", "ops.listen", args.ops)
        .option("--data", "data", args.data);
    let config = match Config::load(args.config.as_deref(), &overrides) {
        Ok(config) => config,
        Err(errors) => return Ok(super::config::refuse(&errors)),
    };
    logging::init(&config.log).context("logging could not be started")?;
    metrics::install().context("metrics could not be started")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    runtime.block_on(app::run(config))?;
    Ok(ExitCode::SUCCESS)
}
