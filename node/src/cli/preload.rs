//! `wherry preload`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use wherry_gateway::Platform;

use super::args::{NodeArgs, reference};
use super::environment::Environment;
use super::failure::Failure;
use super::follow::{End, Heard, follow};
use super::output::{are, count, harmless, note, print, print_json_line};
use super::screen::Screen;
use super::stop::Stop;
use super::tally::{Pace, Speed, left, row};
use crate::config::units::{show_seconds, show_size};
use crate::control::api::{PreloadEvent, PreloadProgress, PreloadRequest, PreloadStep, PreloadSummary};
use crate::images::parse_platform;

/// How often plain lines tell of progress.
const EVERY: Duration = Duration::from_secs(5);

/// How many characters of a peer id stand for it; all ids begin alike.
const SHORT_ID: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct PreloadArgs {
    /// The images; without a registry they are of this node's default origin
    #[arg(value_name = "REF", value_parser = reference, required = true)]
    pub(super) references: Vec<String>,
    /// To all nodes of the site that are connected, and this one; so it is without --nodes
    #[arg(long, conflicts_with = "nodes")]
    pub(super) site: bool,
    /// To these nodes alone: peer ids, their last 6 characters or more, or addresses, as 'wherry peers' shows them
    #[arg(long, value_name = "NODE,…", value_delimiter = ',')]
    pub(super) nodes: Option<Vec<String>>,
    /// Of an image for several platforms, the one for this, such as linux/arm64 [default: that of each node]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    pub(super) platform: Option<Platform>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

pub(super) async fn run(args: &PreloadArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.node.client(environment);
    let request = PreloadRequest {
        references: args.references.clone(),
        platform: args.platform.as_ref().map(ToString::to_string),
        nodes: args.nodes.clone(),
    };
    let mut stop = Stop::new()?;
    let mut lines = client.preload(&request).await?;
    let mut show = match (args.node.json, environment.stderr_is_terminal) {
        (true, _) => Show::Json,
        (false, true) => Show::Rows(Nodes::default(), Screen::default()),
        (false, false) => Show::Lines(Nodes::default(), Instant::now()),
    };
    let end = follow(&mut lines, &mut stop, |heard| match heard {
        Heard::Event(PreloadEvent::Progress(progress)) => show.event(&progress),
        Heard::Tick => {
            show.tick();
            Ok(())
        }
    });
    let end = end.await;
    show.finish();
    let summary = match end {
        End::Over(outcome) => outcome?,
        End::Stopped(status) => {
            let hint =
                "run the command again to see how it goes; 'wherry cancel IMAGE' on a node stops it there";
            return Err(Failure::Interrupted {
                status,
                message: "the nodes go on with what they have begun".to_owned(),
                hint: Some(hint.to_owned()),
            });
        }
    };
    if args.node.json {
        let mut line = serde_json::to_value(&summary)?;
        line["event"] = "done".into();
        print_json_line(&line)?;
    } else {
        print(&told(&summary))?;
    }
    match summary.failed {
        0 => Ok(()),
        failed => Err(Failure::with_hint(
            match summary.nodes {
                1 => "the node has not got everything".to_owned(),
                nodes => {
                    let have = if failed == 1 { "has" } else { "have" };
                    format!("{failed} of {nodes} nodes {have} not got everything")
                }
            },
            "the lines above say why; preload again: what is there already is not carried again",
        )),
    }
}

fn told(summary: &PreloadSummary) -> String {
    format!(
        "{} there and pinned at {} of {} in {}\n",
        are(summary.images, "image"),
        summary.nodes - summary.failed,
        count(summary.nodes, "node"),
        show_seconds(summary.seconds)
    )
}

/// Where it is shown what happens.
enum Show {
    /// Lines on standard output, for scripts.
    Json,
    /// A bar for each node.
    Rows(Nodes, Screen),
    /// Plain lines, and when the last one said how it goes.
    Lines(Nodes, Instant),
}

impl Show {
    fn event(&mut self, progress: &PreloadProgress) -> Result<(), Failure> {
        let now = Instant::now();
        match self {
            Self::Json => print_json_line(&PreloadEvent::Progress(progress.clone()))?,
            Self::Rows(nodes, screen) => {
                if let Some(line) = nodes.event(progress, now) {
                    let (width, height) = Screen::size();
                    screen.draw(&[line], &nodes.rows(width, height, now));
                }
            }
            Self::Lines(nodes, _) => {
                if let Some(line) = nodes.event(progress, now) {
                    note(&line);
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self) {
        let now = Instant::now();
        match self {
            Self::Json => {}
            Self::Rows(nodes, screen) => {
                let (width, height) = Screen::size();
                screen.draw(&[], &nodes.rows(width, height, now));
            }
            Self::Lines(nodes, said) => {
                if now.duration_since(*said) >= EVERY && !nodes.is_done() {
                    *said = now;
                    note(&nodes.all(now));
                }
            }
        }
    }

    fn finish(&mut self) {
        if let Self::Rows(_, screen) = self {
            screen.draw(&[], &[]);
        }
    }
}

/// What is known of all nodes. Without a clock of its own.
#[derive(Default)]
pub(super) struct Nodes(BTreeMap<String, AtNode>);

#[derive(Default)]
struct AtNode {
    images: BTreeMap<String, PreloadProgress>,
    speed: Speed,
}

impl AtNode {
    fn here(&self) -> u64 {
        self.images.values().map(|image| image.bytes.min(image.of_bytes)).sum()
    }

    fn size(&self) -> u64 {
        self.images.values().map(|image| image.of_bytes).sum()
    }

    fn is_done(&self) -> bool {
        self.images.values().all(|image| matches!(image.step, PreloadStep::Done | PreloadStep::Failed))
    }
}

impl Nodes {
    /// Takes note of how far an image is; returns the line that it is worth, if it is worth one.
    pub(super) fn event(&mut self, progress: &PreloadProgress, now: Instant) -> Option<String> {
        let node = self.0.entry(progress.node.clone()).or_default();
        let before = node.images.insert(progress.reference.clone(), progress.clone());
        node.speed.saw(node.here(), now);
        let why = harmless(progress.why.as_deref().unwrap_or_default());
        let is_news =
            before.is_none_or(|before| (before.step, before.why) != (progress.step, progress.why.clone()));
        let said = match progress.step {
            PreloadStep::Waiting if is_news => format!("waits: {why}"),
            PreloadStep::Done => format!("there and pinned, {}", show_size(progress.bytes)),
            PreloadStep::Failed => format!("failed: {why}"),
            _ => return None,
        };
        Some(format!("{} {}: {said}", short(&progress.node), harmless(&progress.reference)))
    }

    /// Whether nothing is on its way.
    pub(super) fn is_done(&self) -> bool {
        self.0.values().all(AtNode::is_done)
    }

    /// All of it in one line.
    pub(super) fn all(&self, now: Instant) -> String {
        let done = self.0.values().filter(|node| node.is_done()).count();
        let (here, size) =
            self.0.values().fold((0, 0), |(here, size), node| (here + node.here(), size + node.size()));
        let mut line = format!(
            "{done} of {} done, {} of {} there",
            are(self.0.len(), "node"),
            show_size(here),
            show_size(size)
        );
        let last = self.0.values().filter(|node| !node.is_done()).map(|node| match node.speed.at(now) {
            Pace::Moves(rate) => Some((node.size() - node.here(), rate)),
            _ => None,
        });
        // That of the slowest, as long as all move.
        let slowest = last.collect::<Option<Vec<_>>>().and_then(|all| {
            all.into_iter().max_by(|one, other| (one.0 as f64 / one.1).total_cmp(&(other.0 as f64 / other.1)))
        });
        if let Some((bytes, rate)) = slowest {
            line += &format!(", {}", left(bytes, rate));
        }
        line
    }

    /// A row for each node that is not done and, below, one for all: narrower than `width`, fewer than `height`.
    pub(super) fn rows(&self, width: usize, height: usize, now: Instant) -> Vec<String> {
        let coming: Vec<_> = self.0.iter().filter(|(_, node)| !node.is_done()).collect();
        if coming.is_empty() {
            return Vec::new();
        }
        let places = height.saturating_sub(2).max(1);
        let mut rows: Vec<String> = coming
            .iter()
            .take(places)
            .map(|(name, node)| row(&short(name), node.here(), node.size(), &node.speed.at(now), width))
            .collect();
        rows.push(self.all(now));
        rows.iter().map(|row| row.chars().take(width.saturating_sub(1)).collect()).collect()
    }
}

/// The end of a peer id, by which `--nodes` and grep find it; another name as it is.
pub(super) fn short(node: &str) -> String {
    let skip = if node.len() > 40 { node.chars().count().saturating_sub(SHORT_ID) } else { 0 };
    harmless(&node.chars().skip(skip).collect::<String>())
}
