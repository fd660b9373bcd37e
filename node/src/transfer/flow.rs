//! How fast bytes have come of late, from whom. Without a clock of its own.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::planner::Source;

/// Rates are those of so many seconds, so that they follow what the links do.
const WINDOW: u64 = 10;

/// What has come from each source: for each of the last seconds in which something came.
pub(super) struct Flow {
    begun: Instant,
    moved: Instant,
    // There are as many as gave something within the window, each with at most WINDOW + 1 seconds.
    sources: HashMap<Source, VecDeque<(u64, u64)>>,
}

impl Flow {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, moved: now, sources: HashMap::new() }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs()
    }

    /// So many bytes have come.
    pub(super) fn took(&mut self, source: Source, bytes: u64, now: Instant) {
        let second = self.second(now);
        self.moved = now;
        self.sources.retain(|_, came| {
            while came.front().is_some_and(|(at, _)| at + WINDOW <= second) {
                came.pop_front();
            }
            !came.is_empty()
        });
        let came = self.sources.entry(source).or_default();
        match came.back_mut() {
            Some((at, sum)) if *at == second => *sum += bytes,
            _ => came.push_back((second, bytes)),
        }
    }

    /// The rate of one source, in bytes a second.
    pub(super) fn rate(&self, source: &Source, now: Instant) -> u64 {
        let second = self.second(now);
        let came = self.sources.get(source).into_iter().flatten();
        let bytes: u64 = came.filter(|(at, _)| at + WINDOW > second).map(|(_, bytes)| bytes).sum();
        // A transfer that is younger than the window has had less time.
        let time = now.saturating_duration_since(self.begun).as_secs_f64().clamp(1.0, WINDOW as f64);
        (bytes as f64 / time) as u64
    }

    /// For how long nothing has come.
    pub(super) fn still(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds_and_nothing_is_kept_of_what_is_older() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut flow = Flow::new(begun);
        for second in 0..100 {
            flow.took(Source::Origin, 1000, at(second));
        }
        assert!((900..=1000).contains(&flow.rate(&Source::Origin, at(99))));
        assert!(flow.sources.values().all(|came| came.len() as u64 <= WINDOW));
        assert_eq!(flow.still(at(103)), Duration::from_secs(4));
        assert_eq!(flow.rate(&Source::Origin, at(99 + WINDOW)), 0);
    }

    #[test]
    fn a_young_transfer_is_not_said_to_be_slow() {
        let begun = Instant::now();
        let mut flow = Flow::new(begun);
        flow.took(Source::Origin, 4000, begun + Duration::from_millis(1500));
        assert_eq!(flow.rate(&Source::Origin, begun + Duration::from_secs(2)), 2000);
    }
}
