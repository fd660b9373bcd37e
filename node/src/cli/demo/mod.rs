//! `wherry demo`.
use super::args::DemoArgs;
use super::environment::Environment;
use super::failure::Failure;

pub(super) fn run(_args: &DemoArgs, _environment: &Environment) -> Result<(), Failure> {
    Err(Failure::new("not yet"))
}
