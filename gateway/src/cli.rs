//! The command line: one enum of commands, one match. Each command has a file of its own.
//!
//! Exit codes, the same for every command: 0 done, 1 failed or found mistakes, 2 wrong usage,
//! 3 the gateway cannot be reached, 4 the password was refused, 5 no such session or incident.

/// What commands print with in place of the standard library's, which panics once the reader has gone.
macro_rules! print {
    ($($text:tt)*) => { $crate::cli::print(&format!($($text)*)) };
}
macro_rules! println {
    ($($text:tt)*) => { $crate::cli::print(&format!("{}\n", format_args!($($text)*))) };
}

mod config;
mod dataset;
mod evaluate;
mod learn;
mod model;
mod plot;
pub mod policy;
mod run;
mod session;
mod train;

use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "gaitway", version, about, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put Gaitway in front of an app
    Run(run::RunArgs),
    /// Check, show and explain settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Check, test, explain, compare, format and back-test policies
    Policy(policy::PolicyArgs),
    /// See, revoke and pardon sessions of a running gateway
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// Train a model from recordings
    Train(train::TrainArgs),
    /// Learn a site from its own shadow sessions
    Learn(learn::LearnArgs),
    /// Measure a model on recordings it has not seen
    Evaluate(evaluate::EvaluateArgs),
    /// Describe recordings, bring them in from elsewhere, hand them out
    Dataset(dataset::DatasetArgs),
    /// Show a model file, and what its features mean
    Model(model::ModelArgs),
}

/// Reads the arguments and carries the command out.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Config(command) => config::run(command),
        Command::Policy(args) => policy::run(args),
        Command::Session(command) => session::run(command),
        Command::Train(args) => train::run(args).map(|()| ExitCode::SUCCESS),
        Command::Learn(args) => learn::run(args).map(|()| ExitCode::SUCCESS),
        Command::Evaluate(args) => evaluate::run(args).map(|()| ExitCode::SUCCESS),
        Command::Dataset(args) => dataset::run(args).map(|()| ExitCode::SUCCESS),
        Command::Model(args) => model::run(args).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output; a reader that has gone (`| head`) ends the program in peace.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes one message for people to standard error.
pub(crate) fn complain(text: &str) {
    // Nothing is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "gaitway: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_and_option_is_declared_soundly_and_explained() {
        fn explained(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
            command.get_subcommands().for_each(explained);
        }
        let command = Cli::command();
        command.clone().debug_assert();
        explained(&command);
    }
}
