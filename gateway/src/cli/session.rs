//! `gaitway session`: the operators' API from the command line.

use clap::Subcommand;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// List live sessions
    List,
}

pub(crate) fn run(_command: SessionCommand) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no operators' API yet")
}
