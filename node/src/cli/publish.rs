//! `wherry publish`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use wherry_proto::Digest;

use super::args::{NodeArgs, image, reference, wait};
use super::environment::Environment;
use super::failure::Failure;
use super::follow::{End, Heard, follow};
use super::output::{harmless, note, print, print_json};
use super::screen::Screen;
use super::stop::Stop;
use super::tally::{Pace, Speed, left, row};
use crate::config::units::{show_seconds, show_size};
use crate::control::api::{PublishEvent, PublishRequest};

/// How often plain lines tell of progress.
const EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    /// The image, by a name
    #[arg(value_name = "IMAGE", value_parser = image)]
    reference: String,
    /// The name that it is to have at the registry [default: the same]
    #[arg(value_name = "TO", value_parser = reference)]
    to: Option<String>,
    /// How long to go on trying while the registry is out of reach, from the last byte on [default: 10m once it has answered
    /// anything]
    #[arg(long, value_name = "TIME", value_parser = wait)]
    wait: Option<Duration>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

pub(super) async fn run(args: &PublishArgs, environment: &Environment) -> Result<(), Failure> {
    let request = PublishRequest {
        reference: args.reference.clone(),
        to: args.to.clone(),
        wait_seconds: args.wait.map(|wait| wait.as_secs()),
    };
    let mut stop = Stop::new()?;
    let mut lines = args.node.client(environment).publish(&request).await?;
    let mut screen = environment.stderr_is_terminal.then(Screen::default);
    let (mut sending, mut said) = (Sending::default(), Instant::now());
    let end = follow(&mut lines, &mut stop, |heard| {
        let now = Instant::now();
        let line = match heard {
            Heard::Event(event) => sending.event(&event, now),
            Heard::Tick => None,
        };
        if let Some(screen) = &mut screen {
            let (width, height) = Screen::size();
            screen.draw(line.as_slice(), &sending.rows(width, height, now));
        } else if let Some(line) = line {
            note(&line);
        } else if now.duration_since(said) >= EVERY && sending.has_begun() {
            said = now;
            note(&sending.all(now));
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
            return Err(Failure::Interrupted {
                status,
                message: "nothing more is sent".to_owned(),
                hint: Some(
                    "layers that the registry has stay there: publish again to send the rest".to_owned(),
                ),
            });
        }
    };
    let there = match summary.present {
        0 => String::new(),
        bytes => format!(", {} were there already", show_size(bytes)),
    };
    note(&format!("done in {}: {} sent{there}", show_seconds(summary.seconds), show_size(summary.sent)));
    if args.node.json {
        print_json(&summary)
    } else {
        print(&format!("{} {}\n", harmless(&summary.to), summary.digest))
    }
}

/// What is known of all blobs. Without a clock of its own.
#[derive(Default)]
struct Sending {
    blobs: BTreeMap<Digest, (u64, u64, Speed)>,
    brings: bool,
}

impl Sending {
    /// Takes note of what happens; returns the line that it is worth, if it is worth one.
    fn event(&mut self, event: &PublishEvent, now: Instant) -> Option<String> {
        match event {
            PublishEvent::Brings { .. } if self.brings => None,
            PublishEvent::Brings { .. } => {
                self.brings = true;
                Some("what is not here is brought first: 'wherry why' says how that goes".to_owned())
            }
            PublishEvent::Waits { why } => Some(format!("waits: {}", harmless(why))),
            PublishEvent::Sent { digest, size, present: true, .. } => {
                Some(format!("{} there already, {}", digest.short(), show_size(*size)))
            }
            PublishEvent::Sent { digest, sent, size, present: false } => {
                let (was, of, speed) =
                    self.blobs.entry(*digest).or_insert_with(|| (0, *size, Speed::default()));
                let is_news = *was < *size && sent >= size;
                (*was, *of) = (*sent, *size);
                speed.saw(*sent, now);
                is_news.then(|| format!("{} sent, {}", digest.short(), show_size(*size)))
            }
        }
    }

    fn has_begun(&self) -> bool {
        self.blobs.values().any(|(sent, size, _)| sent < size)
    }

    fn coming(&self) -> impl Iterator<Item = (&Digest, &(u64, u64, Speed))> {
        self.blobs.iter().filter(|(_, (sent, size, _))| sent < size)
    }

    /// All of it in one line.
    fn all(&self, now: Instant) -> String {
        let (sent, size) = self.coming().fold((0, 0), |(sent, size), (_, it)| (sent + it.0, size + it.1));
        let rates = self.coming().filter_map(|(_, it)| match it.2.at(now) {
            Pace::Moves(rate) => Some(rate),
            _ => None,
        });
        let rate: f64 = rates.sum();
        let rest = if rate > 0.0 { format!(", {}", left(size - sent, rate)) } else { String::new() };
        format!("{} of {} sent of what is on its way{rest}", show_size(sent), show_size(size))
    }

    fn rows(&self, width: usize, height: usize, now: Instant) -> Vec<String> {
        let rows = self.coming().map(|(digest, it)| row(&digest.short(), it.0, it.1, &it.2.at(now), width));
        rows.take(height.saturating_sub(2).max(1)).collect()
    }
}
