//! What is going on, on standard error: bars on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use wherry_proto::Digest;

use super::environment::Environment;
use super::output::{harmless, note};
use crate::config::units::{show_seconds, show_size};
use crate::control::api::{ImportEvent, PullEvent};

/// How often plain lines tell of progress.
const EVERY: Duration = Duration::from_secs(5);

/// The most bars at a time: more do not fit on a screen.
const MAX_BARS: usize = 24;

/// Is told what happens to an image, and shows it.
pub(super) trait Reporter {
    /// Something happened to an image that is being pulled.
    fn pull(&mut self, event: &PullEvent);
    /// Something happened to an archive that is being imported.
    fn import(&mut self, event: &ImportEvent);
    /// Nothing more will happen.
    fn finish(&mut self);
}

/// The reporter for this standard error.
pub(super) fn reporter(environment: &Environment) -> Box<dyn Reporter> {
    if environment.stderr_is_terminal {
        Box::new(Bars::new(ProgressDrawTarget::stderr()))
    } else {
        Box::new(Lines { pull: PullLines::new(Instant::now()) })
    }
}

/// A bar for each blob.
struct Bars {
    all: MultiProgress,
    bars: HashMap<Digest, ProgressBar>,
}

impl Bars {
    fn new(target: ProgressDrawTarget) -> Self {
        Self { all: MultiProgress::with_draw_target(target), bars: HashMap::new() }
    }

    fn style(template: &str) -> ProgressStyle {
        // The templates are constants below and all of them are right.
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
    }

    fn line(&self, text: &str) {
        // A terminal that is gone is noticed when the result is written.
        let _ = self.all.println(text);
    }
}

/// Fits into 80 columns with a bar of ten.
const RUNNING: &str = "{prefix} {wide_bar} {msg:<39} {binary_bytes_per_sec:>12} {eta:>3}";
const DONE: &str = "{prefix} {msg} in {elapsed}";

impl Reporter for Bars {
    fn pull(&mut self, event: &PullEvent) {
        match event {
            PullEvent::Resolved { reference, digest, .. } => {
                self.line(&format!("{} is {}", harmless(reference), digest));
            }
            PullEvent::LayerStarted { digest, size, present: true, .. } => {
                self.line(&format!("{} {:>10} here already", digest.short(), show_size(*size)));
            }
            PullEvent::LayerStarted { digest, size, present: false, here } => {
                if *here > 0 {
                    self.line(&partly(digest, *here, *size));
                }
                if self.bars.len() < MAX_BARS {
                    let bar = self.all.add(begun(*size, *here).with_style(Self::style(RUNNING)));
                    bar.set_prefix(digest.short());
                    bar.set_message(parts(0, 0, *size));
                    bar.enable_steady_tick(Duration::from_millis(250));
                    self.bars.insert(*digest, bar);
                }
            }
            PullEvent::Progress { digest, bytes, from_peers, from_origin } => {
                if let Some(bar) = self.bars.get(digest) {
                    // What was here may not be known to link yet.
                    bar.set_position(bar.position().max(*bytes));
                    bar.set_message(parts(*from_peers, *from_origin, bar.length().unwrap_or(0)));
                }
            }
            PullEvent::LayerDone { digest, from_peers, from_origin } => match self.bars.remove(digest) {
                Some(bar) => {
                    bar.set_style(Self::style(DONE));
                    bar.finish_with_message(parts(*from_peers, *from_origin, bar.length().unwrap_or(0)));
                }
                None => {
                    self.line(&format!("{} done, {}", digest.short(), sources(*from_peers, *from_origin)))
                }
            },
        }
    }

    fn import(&mut self, event: &ImportEvent) {
        self.line(&imported(event));
    }

    fn finish(&mut self) {
        for bar in self.bars.drain().map(|(_, bar)| bar) {
            bar.abandon();
        }
    }
}

/// Plain lines.
struct Lines {
    pull: PullLines,
}

impl Reporter for Lines {
    fn pull(&mut self, event: &PullEvent) {
        if let Some(line) = self.pull.line(event, Instant::now()) {
            note(&line);
        }
    }

    fn import(&mut self, event: &ImportEvent) {
        note(&imported(event));
    }

    fn finish(&mut self) {}
}

/// Which plain lines to write when. Without a clock of its own.
pub(super) struct PullLines {
    blobs: HashMap<Digest, Blob>,
    total: u64,
    said: Instant,
    /// When bytes began to arrive.
    began: Option<Instant>,
}

struct Blob {
    size: u64,
    /// How many bytes were here before.
    before: u64,
    /// How many are here now.
    bytes: u64,
    started: Instant,
}

impl PullLines {
    pub(super) fn new(now: Instant) -> Self {
        Self { blobs: HashMap::new(), total: 0, said: now, began: None }
    }

    /// The line that an event is worth, if it is worth one.
    pub(super) fn line(&mut self, event: &PullEvent, now: Instant) -> Option<String> {
        match event {
            PullEvent::Resolved { reference, digest, blobs, bytes } => {
                self.total = *bytes;
                Some(format!("{} is {digest}: {blobs} blobs, {}", harmless(reference), show_size(*bytes)))
            }
            PullEvent::LayerStarted { digest, size, present, here } => {
                let before = if *present { *size } else { (*here).min(*size) };
                let blob = Blob { size: *size, before, bytes: before, started: now };
                self.blobs.insert(*digest, blob);
                match (*present, *here) {
                    (true, _) => Some(format!("{} here already, {}", digest.short(), show_size(*size))),
                    (false, 0) => None,
                    (false, here) => Some(partly(digest, here, *size)),
                }
            }
            PullEvent::Progress { digest, bytes, .. } => {
                if let Some(blob) = self.blobs.get_mut(digest) {
                    // What was here may not be known to link yet.
                    blob.bytes = (*bytes).clamp(blob.before, blob.size);
                }
                let began = *self.began.get_or_insert(now);
                if now.duration_since(self.said) < EVERY {
                    return None;
                }
                self.said = now;
                let here: u64 = self.blobs.values().map(|blob| blob.bytes).sum();
                let arrived: u64 = self.blobs.values().map(|blob| blob.bytes - blob.before).sum();
                let rate = arrived as f64 / now.duration_since(began).as_secs_f64().max(0.001);
                let mut line = format!("{} of {}", show_size(here), show_size(self.total));
                if rate >= 1.0 {
                    let left = self.total.saturating_sub(here) as f64 / rate;
                    line += &format!(", {}/s, {} left", show_size(rate as u64), show_seconds(left));
                }
                Some(line)
            }
            PullEvent::LayerDone { digest, from_peers, from_origin } => {
                let blob = self.blobs.get_mut(digest)?;
                blob.bytes = blob.size;
                Some(format!(
                    "{} done, {} in {} ({})",
                    digest.short(),
                    show_size(blob.size - blob.before),
                    show_seconds(now.duration_since(blob.started).as_secs_f64()),
                    sources(*from_peers, *from_origin)
                ))
            }
        }
    }
}

/// A bar for a blob of which some was here before: it counts neither for the rate nor for the time left.
pub(super) fn begun(size: u64, here: u64) -> ProgressBar {
    let bar = ProgressBar::new(size).with_position(here);
    bar.tick();
    bar.reset_eta();
    bar
}

/// That some of a blob was here before.
fn partly(digest: &Digest, here: u64, size: u64) -> String {
    format!("{} {} of {} here already", digest.short(), show_size(here), show_size(size))
}

fn imported(event: &ImportEvent) -> String {
    let ImportEvent::Blob { digest, size, present } = event;
    let what = if *present { "here already" } else { "verified" };
    format!("{} {what}, {}", digest.short(), show_size(*size))
}

/// The same beside a bar, where room is short; at most 39 characters.
fn parts(from_peers: u64, from_origin: u64, size: u64) -> String {
    format!("{} peers + {} origin of {}", show_size(from_peers), show_size(from_origin), show_size(size))
}

/// Where bytes came from, for people.
pub(super) fn sources(from_peers: u64, from_origin: u64) -> String {
    format!("{} from peers, {} from the origin", show_size(from_peers), show_size(from_origin))
}
