//! What is known of an image that is being pulled, and how it reads. Without a clock of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use wherry_proto::Digest;

use super::output::{count, harmless};
use super::progress::sources;
use super::why::waits_for as waits_for_what;
use crate::config::units::{show_duration, show_seconds, show_size};
use crate::control::api::{PullEvent, WaitsFor};

/// Rates are those of the last seconds, so that they follow what the link does.
const WINDOW: Duration = Duration::from_secs(10);

/// How far apart what a rate is made of is noted; so there are few of them.
const SAMPLE: Duration = Duration::from_millis(500);

/// No rate is told before it has been seen for so long.
const FIRST: Duration = Duration::from_secs(1);

/// What brings nothing for so long waits.
const STILL: Duration = Duration::from_secs(5);

/// Nobody knows what the link does in a week.
const LONGEST: f64 = 7.0 * 86_400.0;

/// The longest bar, in columns.
const MAX_BAR: usize = 40;

/// The shortest that tells something.
const MIN_BAR: usize = 6;

/// All blobs of an image, and how they come.
#[derive(Default)]
pub(super) struct Tally {
    blobs: Vec<Blob>,
    total: u64,
    speed: Speed,
    /// The limit that holds all of it up, in words, until something comes again.
    limited: Option<String>,
    /// The one that was heard of last, and when.
    said: Option<(String, Instant)>,
}

struct Blob {
    digest: Digest,
    size: u64,
    /// How many bytes were here before.
    before: u64,
    /// How many are here now.
    bytes: u64,
    from_peers: u64,
    from_origin: u64,
    started: Instant,
    done: bool,
    speed: Speed,
    /// What it waits for, until something of it comes again.
    waits: Option<Waits>,
}

enum Waits {
    /// Something, in words.
    For(String),
    /// That this origin is in reach again, until then.
    Origin(String, Instant),
}

impl Waits {
    fn text(&self, now: Instant) -> String {
        match self {
            Self::For(text) => text.clone(),
            Self::Origin(origin, until) => {
                let left = until.saturating_duration_since(now).as_secs_f64();
                format!("waits until {origin} is in reach again, {} more at most", show_seconds(left))
            }
        }
    }
}

impl Tally {
    /// Takes note of an event; returns the line that it is worth, if it is worth one.
    pub(super) fn event(&mut self, event: &PullEvent, now: Instant) -> Option<String> {
        match event {
            PullEvent::Resolved { reference, digest, blobs, bytes } => {
                self.total = *bytes;
                Some(format!(
                    "{} is {digest}: {}, {}",
                    harmless(reference),
                    count(*blobs, "blob"),
                    show_size(*bytes)
                ))
            }
            PullEvent::LayerStarted { digest, size, present, here } => {
                let before = if *present { *size } else { (*here).min(*size) };
                self.blobs.retain(|blob| blob.digest != *digest);
                self.blobs.push(Blob {
                    digest: *digest,
                    size: *size,
                    before,
                    bytes: before,
                    from_peers: 0,
                    from_origin: 0,
                    started: now,
                    done: *present,
                    speed: Speed::default(),
                    waits: None,
                });
                self.blobs.last_mut()?.speed.saw(0, now);
                self.speed.saw(self.arrived(), now);
                match (*present, *here) {
                    (true, _) => Some(format!("{} here already, {}", digest.short(), show_size(*size))),
                    (false, 0) => None,
                    (false, here) => {
                        let (here, size) = (show_size(here), show_size(*size));
                        Some(format!("{} {here} of {size} here already", digest.short()))
                    }
                }
            }
            PullEvent::Progress { digest, bytes, from_peers, from_origin } => {
                let blob = self.blobs.iter_mut().find(|blob| blob.digest == *digest)?;
                // What was here may not be known to link yet.
                let bytes = (*bytes).clamp(blob.before, blob.size);
                if bytes > blob.bytes {
                    (blob.waits, self.limited) = (None, None);
                }
                blob.bytes = bytes;
                (blob.from_peers, blob.from_origin) = (*from_peers, *from_origin);
                blob.speed.saw(blob.bytes - blob.before, now);
                self.speed.saw(self.arrived(), now);
                None
            }
            PullEvent::Stuck { digest, waits_for, origin } => {
                let blob = self.blobs.iter_mut().find(|blob| blob.digest == *digest)?;
                let is_tried = matches!(waits_for, WaitsFor::Origin | WaitsFor::Lead);
                // An origin that is out of reach is tried now and then, which tells nothing new.
                if !(is_tried && matches!(blob.waits, Some(Waits::Origin(..)))) {
                    blob.waits = Some(Waits::For(harmless(&waits_for_what(*waits_for, origin))));
                }
                // Another one may wait for a limit, of which is told time and again while it holds.
                if !self.hears_of_limit(now) {
                    self.limited = None;
                }
                None
            }
            PullEvent::Away { digest, away } => {
                let is_known = self.blobs.iter().any(|it| matches!(it.waits, Some(Waits::Origin(..))));
                let left = Duration::from_secs(away.seconds_left);
                let origin = harmless(&away.origin);
                // One that is needed to know what the image is has not been told of.
                if let Some(blob) = self.blobs.iter_mut().find(|blob| blob.digest == *digest) {
                    blob.waits = Some(Waits::Origin(origin, now + left));
                }
                if !self.hears_of_limit(now) {
                    self.limited = None;
                }
                let why = harmless(&away.to_string());
                (!is_known).then(|| format!("waiting: {why}; trying again for {}", show_duration(left)))
            }
            PullEvent::Waiting { why, .. } => {
                let why = harmless(why);
                let is_same = self.said.as_ref().is_some_and(|(said, _)| *said == why);
                let is_news = !is_same || !self.hears_of_limit(now);
                self.limited = Some(why.clone());
                self.said = Some((why.clone(), now));
                is_news.then(|| format!("waiting: {why}"))
            }
            PullEvent::LayerDone { digest, from_peers, from_origin } => {
                let blob = self.blobs.iter_mut().find(|blob| blob.digest == *digest)?;
                (blob.from_peers, blob.from_origin) = (*from_peers, *from_origin);
                (blob.bytes, blob.done) = (blob.size, true);
                let line = format!(
                    "{} done, {} in {} ({})",
                    digest.short(),
                    show_size(blob.size - blob.before),
                    show_seconds(now.duration_since(blob.started).as_secs_f64()),
                    sources(*from_peers, *from_origin)
                );
                self.speed.saw(self.arrived(), now);
                Some(line)
            }
        }
    }

    /// Whether any blob was heard of.
    pub(super) const fn has_begun(&self) -> bool {
        !self.blobs.is_empty()
    }

    /// Whether nothing is on its way.
    pub(super) fn is_done(&self) -> bool {
        self.blobs.iter().all(|blob| blob.done)
    }

    /// Whether something has arrived since then.
    pub(super) fn moved_since(&self, then: Instant) -> bool {
        self.speed.moved.is_some_and(|moved| moved > then)
    }

    /// Whether the last limit that was heard of may hold still.
    fn hears_of_limit(&self, now: Instant) -> bool {
        self.said.as_ref().is_some_and(|(_, heard)| now.saturating_duration_since(*heard) < STILL)
    }

    fn arrived(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.bytes - blob.before).sum()
    }

    fn here(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.bytes).sum()
    }

    /// How much is here.
    pub(super) fn so_far(&self) -> String {
        format!("{} of {} here", show_size(self.here()), show_size(self.total.max(self.here())))
    }

    /// All of it in one line.
    pub(super) fn all(&self, now: Instant) -> String {
        let (here, total) = (self.here(), self.total.max(self.here()));
        let mut line = format!("{} of {}", show_size(here), show_size(total));
        if let Some(limit) = &self.limited {
            return line + &format!(", waits: {limit}");
        }
        let pace = self.speed.at(now);
        if let Some(why) = self.stuck(now) {
            line += &format!(", {why}");
            if let Pace::Still(since) = pace {
                line += &format!("; nothing has arrived for {}", show_seconds(since));
            }
            return line;
        }
        match pace {
            Pace::Unknown => {}
            Pace::Still(since) => {
                line += &format!(", waits: nothing has arrived for {}", show_seconds(since))
            }
            Pace::Moves(rate) => {
                line += &format!(", {}/s, {}", show_size(rate as u64), left(total - here, rate));
            }
        }
        line
    }

    /// What the first of them waits for, where all that are on their way wait for something.
    fn stuck(&self, now: Instant) -> Option<String> {
        self.is_stuck().then(|| {
            let mut coming = self.blobs.iter().filter(|blob| !blob.done);
            coming.find_map(|blob| Some(blob.waits.as_ref()?.text(now))).unwrap_or_default()
        })
    }

    /// Whether all that are on their way wait for something.
    pub(super) fn is_stuck(&self) -> bool {
        !self.is_done() && self.blobs.iter().all(|blob| blob.done || blob.waits.is_some())
    }

    /// How fast one of them comes.
    fn pace(&self, blob: &Blob, now: Instant) -> Pace {
        match blob.speed.at(now) {
            Pace::Moves(_) | Pace::Unknown if self.limited.is_some() || blob.waits.is_some() => {
                Pace::Still(0.0)
            }
            pace => pace,
        }
    }

    /// A row for each blob that is on its way and, below, one for all of them: narrower than `width`, fewer than
    /// `height`. Where there is no room for all, those that move go first.
    pub(super) fn rows(&self, width: usize, height: usize, now: Instant) -> Vec<String> {
        let mut coming: Vec<&Blob> = self.blobs.iter().filter(|blob| !blob.done).collect();
        if coming.is_empty() {
            return Vec::new();
        }
        let places = height.saturating_sub(2).max(1);
        let mut more = 0;
        if coming.len() > places {
            coming.sort_by_key(|blob| !matches!(self.pace(blob, now), Pace::Moves(_)));
            more = coming.len() - places;
            coming.truncate(places);
        }
        let mut rows: Vec<String> = coming
            .iter()
            .map(|blob| row(&blob.digest.short(), blob.bytes, blob.size, &self.pace(blob, now), width))
            .collect();
        let (from_peers, from_origin) = self
            .blobs
            .iter()
            .fold((0, 0), |(peers, origin), blob| (peers + blob.from_peers, origin + blob.from_origin));
        let mut last = self.all(now);
        let more = if more > 0 { format!(", {} to come", count(more, "more blob")) } else { String::new() };
        for part in [more, format!("; {}", sources(from_peers, from_origin))] {
            if last.chars().count() + part.chars().count() < width {
                last += &part;
            }
        }
        rows.push(last);
        rows.iter().map(|row| row.chars().take(width.saturating_sub(1)).collect()).collect()
    }
}

/// A row with a bar: of what has this name so many bytes of `size` are here, of which this is the pace.
pub(super) fn row(name: &str, bytes: u64, size: u64, pace: &Pace, width: usize) -> String {
    let (rate, left) = match pace {
        Pace::Unknown => (String::new(), String::new()),
        Pace::Still(_) => (String::new(), "waits".to_owned()),
        Pace::Moves(rate) => (format!("{}/s", show_size(*rate as u64)), left(size - bytes, *rate)),
    };
    let amount = format!("{} of {}", show_size(bytes), show_size(size));
    // The widest that there are: 1023 KiB of 1023 KiB, 1023 KiB/s, 99m 59s left.
    let (wide, narrow) =
        (format!("{amount:>20}  {rate:>10}  {left:<12}"), format!("{amount:>20}  {left:<12}"));
    let room = |text: &str| width.saturating_sub(name.chars().count() + text.len() + 3);
    let text = if room(&wide) >= MIN_BAR { wide } else { narrow };
    let bar = match room(&text) {
        room if room < MIN_BAR => String::new(),
        room => {
            let columns = room.min(MAX_BAR);
            let full = (columns as u64 * bytes).checked_div(size).unwrap_or(0) as usize;
            format!("{}{} ", "█".repeat(full), "░".repeat(columns - full))
        }
    };
    format!("{name} {bar}{text}").trim_end().to_owned()
}

pub(super) fn left(bytes: u64, rate: f64) -> String {
    let seconds = bytes as f64 / rate;
    if seconds > LONGEST { "unknown left".to_owned() } else { format!("{} left", show_seconds(seconds)) }
}

/// How fast bytes have arrived of late.
#[derive(Default)]
pub(super) struct Speed {
    // When how many were here; at most WINDOW / SAMPLE and a few.
    samples: VecDeque<(Instant, u64)>,
    // When the last came.
    moved: Option<Instant>,
    bytes: u64,
}

/// What a [`Speed`] comes to.
pub(super) enum Pace {
    /// It has not been looked at for long enough.
    Unknown,
    /// Nothing has come for so many seconds.
    Still(f64),
    /// So many bytes a second.
    Moves(f64),
}

impl Speed {
    /// So many have arrived in all by now.
    pub(super) fn saw(&mut self, bytes: u64, now: Instant) {
        if bytes > self.bytes || self.moved.is_none() {
            self.moved = Some(now);
        }
        self.bytes = bytes;
        if self.samples.back().is_none_or(|(then, _)| now.duration_since(*then) >= SAMPLE) {
            self.samples.push_back((now, bytes));
        }
        // One that is older stays, so that there is a whole window to look at.
        while self.samples.get(1).is_some_and(|(then, _)| now.duration_since(*then) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    pub(super) fn at(&self, now: Instant) -> Pace {
        let (Some(moved), Some((then, bytes))) = (self.moved, self.samples.front()) else {
            return Pace::Unknown;
        };
        let still = now.saturating_duration_since(moved);
        if still >= STILL {
            return Pace::Still(still.as_secs_f64());
        }
        let seconds = now.saturating_duration_since(*then);
        let rate = self.bytes.saturating_sub(*bytes) as f64 / seconds.as_secs_f64().max(0.001);
        if seconds < FIRST || rate < 1.0 { Pace::Unknown } else { Pace::Moves(rate) }
    }
}
