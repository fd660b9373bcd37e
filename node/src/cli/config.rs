//! `wherry config`.

use super::args::ConfigArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::output::{print, print_json};

pub(super) fn run(args: &ConfigArgs, environment: &Environment) -> Result<(), Failure> {
    let loaded = crate::config::load(&args.settings.sources(environment)?)?;
    if args.json { print_json(&loaded.to_json()) } else { print(&loaded.to_toml()) }
}
