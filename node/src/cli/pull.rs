//! `wherry pull`.

use super::args::ImageArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::output::{harmless, note, print, print_json};
use super::progress::{reporter, sources};
use crate::config::units::{show_seconds, show_size};
use crate::control::Step;
use crate::control::api::PullRequest;

pub(super) async fn run(args: &ImageArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.node.client(environment);
    let platform = args.platform.as_ref().map(ToString::to_string);
    let mut lines = client.pull(&PullRequest { reference: args.reference.clone(), platform }).await?;
    let mut reporter = reporter(environment);
    let outcome = loop {
        match lines.next().await {
            Ok(Step::Event(event)) => reporter.pull(&event),
            Ok(Step::Done(summary)) => break Ok(summary),
            Err(error) => break Err(error),
        }
    };
    reporter.finish();
    let summary = outcome?;
    let mut text = format!(
        "done in {}: {}",
        show_seconds(summary.seconds),
        sources(summary.from_peers, summary.from_origin)
    );
    if summary.present > 0 {
        text += &format!(", {} here already", show_size(summary.present));
    }
    note(&text);
    if args.node.json {
        print_json(&summary)
    } else {
        print(&format!("{} {}\n", harmless(&summary.reference), summary.digest))
    }
}
