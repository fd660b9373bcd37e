//! The `wherry` command: parse, run, print.
//!
//! All commands but `up`, `config`, `network`, `setup`, `demo` and `completions` talk to a running node over its control
//! socket; `doctor` does without where there is none. Results go to standard output, everything else to standard error. Exit status: 0 done, 1 what was asked for
//! failed, 2 the command line or the configuration is wrong, 130 or 143 interrupted by Ctrl-C or SIGTERM. With `--json`
//! an error is one line of JSON, the last on standard error.

mod archive;
mod args;
mod cancel;
mod check;
mod config;
mod demo;
mod doctor;
mod environment;
mod failure;
mod follow;
mod inspect;
mod keep;
mod layers;
mod list;
mod network;
mod output;
mod preload;
mod progress;
mod publish;
mod pull;
mod runtime;
mod screen;
mod setup;
mod stop;
mod table;
mod tally;
#[cfg(test)]
mod tally_tests;
#[cfg(test)]
mod tests;
mod up;
mod wan;
mod why;

use std::future::Future;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::runtime::Builder;

use args::{Args, Command};
use environment::Environment;
use failure::Failure;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let args = match Args::try_parse_from(args::joined(std::env::args_os())) {
        Ok(args) => args,
        Err(error) => {
            // Help and version come this way too. A closed pipe is nothing to complain about.
            if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
                let text = error.to_string();
                return Failure::Usage(text.trim_start_matches("error: ").trim_end().to_owned()).report(true);
            }
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let environment = Environment::of_process();
    let json = args.command.is_json();
    match run(args.command, &environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

fn run(command: Command, environment: &Environment) -> Result<(), Failure> {
    // A node tells its log, which may have to be JSON.
    if !matches!(command, Command::Up(_)) {
        environment.warn_of_unknown_variables();
    }
    match command {
        Command::Up(args) => up::run(&args, environment),
        Command::Config(args) => config::run(&args, environment),
        Command::Network(args) => network::run(args, environment),
        Command::Completions { shell } => output::completions(shell),
        Command::Demo(args) => demo::run(&args, environment),
        Command::Setup(args) => setup::run(&args, environment),
        Command::Doctor(args) => talk(doctor::run(&args, environment)),
        Command::Pull(args) => talk(pull::run(&args, environment)),
        Command::Preload(args) => talk(preload::run(&args, environment)),
        Command::Publish(args) => talk(publish::run(&args, environment)),
        Command::Cancel(args) => talk(cancel::run(&args, environment)),
        Command::Rm(args) => talk(keep::remove(&args, environment)),
        Command::Pin(args) => talk(keep::pin(&args, true, environment)),
        Command::Unpin(args) => talk(keep::pin(&args, false, environment)),
        Command::Check(args) => talk(check::run(&args, environment)),
        Command::Import(args) => talk(archive::import(&args, environment)),
        Command::Export(args) => talk(archive::export(&args, environment)),
        Command::Inspect(args) => talk(layers::inspect(&args, environment)),
        Command::Diff(args) => talk(layers::diff(&args, environment)),
        Command::Cat(args) => talk(layers::cat(&args, environment)),
        Command::Unpack(args) => talk(layers::unpack(&args, environment)),
        Command::Why(args) => talk(why::run(&args, environment)),
        Command::Images(args) => talk(list::images(&args, environment)),
        Command::Peers(args) => talk(list::peers(&args, environment)),
        Command::Status(args) => talk(list::status(&args, environment)),
        Command::Wan(args) => talk(wan::run(&args, environment)),
    }
}

/// Runs a command that talks to a node. A client needs no more than one thread.
fn talk(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    // A read of standard input may never return, and nothing waits for it.
    runtime.shutdown_background();
    outcome
}
