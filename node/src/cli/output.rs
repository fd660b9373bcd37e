//! Standard output and standard error, with text from strangers made harmless.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::Shell;
use serde::Serialize;

use super::args::Args;
use super::failure::Failure;

/// Writes a result.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes a result for scripts.
pub(super) fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes one of several results for scripts: a line.
pub(super) fn print_json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    print(&(serde_json::to_string(value)? + "\n"))
}

/// Writes something that is no result. Nobody is left to tell when standard error is closed.
pub(super) fn note(text: &str) {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// The text without anything that would make a terminal do something else than show it.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

fn is_harmful(c: char) -> bool {
    // Besides control characters those that turn the direction of writing around.
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// So many of something that has a plain plural; of nothing in particular, the number alone.
pub(super) fn count(number: usize, what: &str) -> String {
    let ending = if number == 1 || what.is_empty() { "" } else { "s" };
    format!("{number} {what}{ending}").trim_end().to_owned()
}

/// The same with the verb that follows.
pub(super) fn are(number: usize, what: &str) -> String {
    format!("{} {}", count(number, what), if number == 1 { "is" } else { "are" })
}

/// Prints the completions for a shell.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    // Into memory first: the generator panics when a pipe is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "wherry", &mut script);
    print(&String::from_utf8_lossy(&script))
}
