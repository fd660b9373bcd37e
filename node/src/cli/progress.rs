//! What is going on, on standard error: rows that change on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use super::environment::Environment;
use super::output::note;
use super::screen::Screen;
use super::tally::Tally;
use crate::config::units::show_size;
use crate::control::api::{ImportEvent, PullEvent};

/// How often a reporter wants to be told that time has passed.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// How often plain lines tell of progress.
const EVERY: Duration = Duration::from_secs(5);

/// How often they tell that there is none.
const STILL_EVERY: Duration = Duration::from_secs(60);

/// How often rows are drawn at most.
const REDRAW: Duration = Duration::from_millis(100);

/// Is told what happens to an image, and shows it.
pub(super) trait Reporter {
    /// Something happened to an image that is being pulled.
    fn pull(&mut self, event: &PullEvent);
    /// Something happened to an archive that is being imported.
    fn import(&mut self, event: &ImportEvent) {
        let ImportEvent::Blob { digest, size, present } = event;
        let what = if *present { "here already" } else { "verified" };
        note(&format!("{} {what}, {}", digest.short(), show_size(*size)));
    }
    /// Time has passed.
    fn tick(&mut self);
    /// Nothing more will happen.
    fn finish(&mut self);
}

/// The reporter for this standard error.
pub(super) fn reporter(environment: &Environment) -> Box<dyn Reporter> {
    if environment.stderr_is_terminal {
        Box::new(Rows { tally: Tally::default(), screen: Screen::default(), drawn: None })
    } else {
        Box::new(Lines { pull: PullLines::new(Instant::now()) })
    }
}

/// A row for each blob that is on its way, and one for all of them; what is done stays above as a line.
struct Rows {
    tally: Tally,
    screen: Screen,
    drawn: Option<Instant>,
}

impl Rows {
    fn draw(&mut self, line: Option<String>, now: Instant) {
        let (width, height) = Screen::size();
        self.screen.draw(line.as_slice(), &self.tally.rows(width, height, now));
        self.drawn = Some(now);
    }
}

impl Reporter for Rows {
    fn pull(&mut self, event: &PullEvent) {
        let now = Instant::now();
        let line = self.tally.event(event, now);
        if line.is_some() || self.drawn.is_none_or(|drawn| now.duration_since(drawn) >= REDRAW) {
            self.draw(line, now);
        }
    }

    fn tick(&mut self) {
        self.draw(None, Instant::now());
    }

    fn finish(&mut self) {
        let so_far = (!self.tally.is_done()).then(|| self.tally.so_far());
        self.screen.draw(so_far.as_slice(), &[]);
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

    fn tick(&mut self) {
        if let Some(line) = self.pull.tick(Instant::now()) {
            note(&line);
        }
    }

    fn finish(&mut self) {}
}

/// Which plain lines to write when. Without a clock of its own.
pub(super) struct PullLines {
    tally: Tally,
    said: Instant,
}

impl PullLines {
    pub(super) fn new(now: Instant) -> Self {
        Self { tally: Tally::default(), said: now }
    }

    /// The line that an event is worth, if it is worth one.
    pub(super) fn line(&mut self, event: &PullEvent, now: Instant) -> Option<String> {
        let was_stuck = self.tally.is_stuck();
        let line = self.tally.event(event, now);
        if line.is_none() && !was_stuck && self.tally.is_stuck() {
            return Some(self.say(now));
        }
        line.or_else(|| self.tick(now))
    }

    /// The line that is due, if one is.
    pub(super) fn tick(&mut self, now: Instant) -> Option<String> {
        let every = if self.tally.moved_since(self.said) { EVERY } else { STILL_EVERY };
        let due = now.duration_since(self.said) >= every && self.tally.has_begun() && !self.tally.is_done();
        due.then(|| self.say(now))
    }

    fn say(&mut self, now: Instant) -> String {
        self.said = now;
        self.tally.all(now)
    }
}

/// Where bytes came from, for people.
pub(super) fn sources(from_peers: u64, from_origin: u64) -> String {
    format!("{} from peers, {} from the origin", show_size(from_peers), show_size(from_origin))
}
