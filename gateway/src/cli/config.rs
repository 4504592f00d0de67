//! `gaitway config`: check a file, show what is in force, print the sample and the reference.

use crate::config::{self, Config, ConfigErrors, Overrides};
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Name every mistake of a configuration file at once
    Check { file: PathBuf },
    /// Print the settings in force, passwords masked
    Show {
        /// Configuration file
        #[arg(long, value_name = "FILE", env = "GAITWAY_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Print a sample file with every setting and its comment
    Example,
    /// Print the reference page (Markdown)
    Reference,
}

pub(crate) fn run(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    let overrides = Overrides::environment();
    let text = match command {
        ConfigCommand::Check { file } => match Config::load(Some(&file), &overrides) {
            Ok(_) => format!("{}: no mistakes found\n", file.display()),
            Err(errors) => return Ok(refuse(&errors)),
        },
        ConfigCommand::Show { config: file } => match Config::load(file.as_deref(), &overrides) {
            Ok(config) => config::show(&config),
            Err(errors) => return Ok(refuse(&errors)),
        },
        ConfigCommand::Example => config::example(),
        ConfigCommand::Reference => config::reference(),
    };
    super::print(&text);
    Ok(ExitCode::SUCCESS)
}

/// Prints every mistake on a line of its own, so that editors can jump to it.
pub(crate) fn refuse(errors: &ConfigErrors) -> ExitCode {
    use std::io::Write;
    let count = errors.0.len();
    let total = if count == 1 { "1 mistake".to_owned() } else { format!("{count} mistakes") };
    // Nothing is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{errors}\n{total} in the settings");
    ExitCode::FAILURE
}
