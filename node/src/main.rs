//! The `wherry` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    wherry_node::cli::main(|_setup| Box::pin(async { anyhow::bail!("this build has no node") }))
}
