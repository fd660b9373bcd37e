//! The `wherry` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    wherry_node::cli::main()
}
