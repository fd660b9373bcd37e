//! `wherry check`.

use std::collections::BTreeSet;
use std::time::Instant;

use wherry_gateway::Reference;

use super::args::CheckArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::follow::{End, Heard, follow};
use super::output::{are, count, harmless, note, print, print_json};
use super::screen::Screen;
use super::stop::Stop;
use crate::config::units::{show_seconds, show_size};
use crate::control::api::{CheckEvent, CheckRequest, CheckSummary};

/// For how many damaged images the command is told that heals each.
const MAX_TOLD: usize = 4;

pub(super) async fn run(args: &CheckArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.node.client(environment);
    let request = CheckRequest { references: args.references.clone() };
    let mut stop = Stop::new()?;
    let mut lines = client.check(&request).await?;
    let started = Instant::now();
    let mut screen = environment.stderr_is_terminal.then(Screen::default);
    let end = follow(&mut lines, &mut stop, |heard| {
        match heard {
            Heard::Event(CheckEvent::Progress { bytes, of_bytes, .. }) => {
                if let Some(screen) = &mut screen {
                    screen.draw(&[], &[row(bytes, of_bytes, started.elapsed().as_secs_f64())]);
                }
            }
            Heard::Event(CheckEvent::Damaged { digest, size }) => {
                let line = format!("{} damaged, {}, set aside", digest.short(), show_size(size));
                match &mut screen {
                    Some(screen) => screen.draw(&[line], &[]),
                    None => note(&line),
                }
            }
            Heard::Tick => {}
        }
        Ok(())
    });
    let end = end.await;
    if let Some(screen) = &mut screen {
        screen.draw(&[], &[]);
    }
    let summary = match end {
        End::Over(outcome) => outcome?,
        End::Stopped(status) => {
            let message = "the check was broken off: what was found to be damaged is set aside".to_owned();
            return Err(Failure::Interrupted { status, message, hint: None });
        }
    };
    if args.node.json {
        print_json(&summary)?;
    } else {
        print(&page(&summary))?;
    }
    if summary.damaged.is_empty() {
        return Ok(());
    }
    let blobs = are(summary.damaged.len(), "blob");
    Err(Failure::with_hint(
        format!("{blobs} damaged: the bytes on the disk are not those that were stored"),
        format!(
            "the next pull brings what is damaged again, from peers or the registry{}; check the disk, and import again \
             what came by import and nobody else has",
            pulls(&summary)
        ),
    ))
}

/// The commands that do so, if there are few.
fn pulls(summary: &CheckSummary) -> String {
    let names: BTreeSet<&String> = summary.damaged.iter().flat_map(|blob| &blob.images).collect();
    let commands: Vec<String> = names
        .into_iter()
        .filter(|name| name.parse::<Reference>().is_ok())
        .map(|name| format!("'wherry pull {}'", harmless(name)))
        .collect();
    match commands.len() {
        1..=MAX_TOLD => format!(": {}", commands.join(", ")),
        _ => String::new(),
    }
}

/// Narrower than any terminal that is in use.
fn row(bytes: u64, of_bytes: u64, seconds: f64) -> String {
    let rate = bytes as f64 / seconds.max(0.001);
    let left = of_bytes.saturating_sub(bytes) as f64 / rate.max(1.0);
    let (bytes, of_bytes) = (show_size(bytes), show_size(of_bytes));
    format!("{bytes} of {of_bytes}, {}/s, {} left", show_size(rate as u64), show_seconds(left))
}

pub(super) fn page(summary: &CheckSummary) -> String {
    let mut out = String::new();
    for blob in &summary.damaged {
        let images = match blob.images.is_empty() {
            true => "no image that is here".to_owned(),
            false => harmless(&blob.images.join(", ")),
        };
        let (what, why) = if blob.gone { ("lost   ", ": its file is gone") } else { ("damaged", "") };
        out += &format!("{what} {} {} of {images}{why}\n", blob.digest, show_size(blob.size));
    }
    for digest in &summary.missing {
        out += &format!("missing {digest}\n");
    }
    for image in &summary.unread {
        out += &format!("unknown what else {} needs: its manifest is damaged\n", harmless(image));
    }
    let sound = summary.blobs - summary.damaged.len();
    out += &format!(
        "checked {} with {} in {}: {}\n",
        count(summary.blobs, "blob"),
        show_size(summary.bytes),
        show_seconds(summary.seconds),
        match (summary.damaged.len(), summary.missing.len()) {
            (0, 0) => "all are right".to_owned(),
            (0, missing) => format!("all are right, {} not here", are(missing, "")),
            (damaged, 0) => format!("{} right, {damaged} damaged and set aside", are(sound, "")),
            (damaged, missing) => format!(
                "{} right, {damaged} damaged and set aside, {} not here",
                are(sound, ""),
                are(missing, "")
            ),
        }
    );
    out
}
