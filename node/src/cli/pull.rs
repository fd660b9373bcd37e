//! `wherry pull`.

use std::time::Duration;

use super::args::PullArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::follow::{End, Heard, follow};
use super::output::{harmless, note, print, print_json};
use super::progress::{reporter, sources};
use super::stop::Stop;
use crate::config::units::{show_age, show_seconds, show_size};
use crate::control::api::{PullRequest, PullSummary};

pub(super) async fn run(args: &PullArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.node.client(environment);
    let platform = args.platform.as_ref().map(ToString::to_string);
    let request = PullRequest {
        reference: args.reference.clone(),
        platform,
        refresh: args.refresh,
        wait_seconds: args.wait.map(|wait| wait.as_secs()),
    };
    let mut stop = Stop::new()?;
    let mut lines = tokio::select! {
        lines = client.pull(&request) => lines?,
        status = stop.asked() => return Err(left(args, status, "may have begun to fetch")),
    };
    let mut reporter = reporter(environment);
    let end = follow(&mut lines, &mut stop, |heard| {
        match heard {
            Heard::Event(event) => reporter.pull(&event),
            Heard::Tick => reporter.tick(),
        }
        Ok(())
    });
    let end = end.await;
    reporter.finish();
    let summary = match end {
        End::Over(outcome) => outcome?,
        End::Stopped(status) => return Err(left(args, status, "goes on fetching")),
    };
    let mut text = format!(
        "done in {}: {}",
        show_seconds(summary.seconds),
        sources(summary.from_peers, summary.from_origin)
    );
    if summary.present > 0 {
        text += &format!(", {} here already", show_size(summary.present));
    }
    note(&text);
    if let Some(line) = age(&summary, args.refresh) {
        note(&line);
    }
    if args.node.json {
        print_json(&summary)
    } else {
        print(&format!("{} {}\n", harmless(&summary.reference), summary.digest))
    }
}

/// How old the answer is to what the tag means, if it does not come from the registry now.
pub(super) fn age(summary: &PullSummary, refresh: bool) -> Option<String> {
    let why = harmless(summary.unasked.as_deref()?);
    let said = match summary.tag_age_seconds {
        Some(seconds) => {
            format!("as the registry said {} ago", show_age(Duration::from_secs(seconds)))
        }
        None => "as this site knows it".to_owned(),
    };
    let advice = match (summary.settled, refresh) {
        (true, true) => " (--refresh changes nothing about that)",
        (false, false) => " ('wherry pull --refresh' asks it now)",
        _ => "",
    };
    Some(format!("{} is what it is {said}: {why}{advice}", harmless(&summary.reference)))
}

/// What the node does without this command.
fn left(args: &PullArgs, status: u8, does: &str) -> Failure {
    let (node, reference) = (&args.node, &args.reference);
    Failure::Interrupted {
        status,
        message: format!("the node {does} {reference}"),
        hint: Some(format!(
            "stop it with '{}', which keeps what has arrived; pull again to see how it goes",
            node.command("cancel", reference)
        )),
    }
}
