//! Waiting for an origin that is out of reach: what has arrived of a blob is kept meanwhile, and other sources may appear.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wherry_proto::Digest;

/// How long a pull goes on trying while the origin is out of reach and nothing of a blob comes, if nothing else is said:
/// links at the edge are away for minutes.
pub const WAIT: Duration = Duration::from_secs(600);

/// The longest that may be said: a week. What takes longer is better begun anew.
pub const MAX_WAIT: Duration = Duration::from_secs(7 * 86_400);

/// The first pause before an origin that was out of reach is tried again; each further one is twice as long. Up to half of
/// it is taken off by lot, so that nodes that lost the origin together do not come back together.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest of these pauses, and about as long a link may be back before it is noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// That a blob waits until its origin is in reach again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    /// The origin.
    pub origin: String,
    /// What was tried last, and why it failed.
    pub why: String,
    /// For how many more seconds that is waited for.
    pub seconds_left: u64,
}

impl std::fmt::Display for Away {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is out of reach: {}", self.origin, self.why)
    }
}

/// One wait: from the last byte that came on.
pub(super) struct Patience {
    wait: Duration,
    // How much of the blob was here, and since when.
    here: u64,
    since: Instant,
    pauses: u32,
}

impl Patience {
    pub(super) fn new(wait: Duration, now: Instant) -> Self {
        Self { wait, here: 0, since: now, pauses: 0 }
    }

    /// So much of the blob is here.
    pub(super) fn saw(&mut self, here: u64, now: Instant) {
        if here > self.here {
            *self = Self { here, ..Self::new(self.wait, now) };
        }
    }

    /// How long to wait before the origin is tried again, and how long in all from now on; `None` if it was for long
    /// enough. `dice` is anything.
    pub(super) fn pause(&mut self, now: Instant, dice: u32) -> Option<(Duration, Duration)> {
        let left = self.wait.checked_sub(now.saturating_duration_since(self.since))?;
        if left.is_zero() {
            return None;
        }
        let full = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(16)).min(LONGEST_PAUSE);
        self.pauses += 1;
        let pause = full - full.mul_f64(0.5 * f64::from(dice) / f64::from(u32::MAX));
        Some((pause.min(left), left))
    }
}

/// The blobs that wait so now, with when each was given up on; as many at most as pulls fetch.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<HashMap<Digest, (Away, Instant)>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, (Away, Instant)>> {
        // No change of it can be left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, blob: Digest, away: Away) {
        self.lock().insert(blob, (away, Instant::now()));
    }

    pub(super) fn forget(&self, blob: &Digest) {
        self.lock().remove(blob);
    }

    pub(super) fn get(&self, blob: &Digest) -> Option<Away> {
        let (away, since) = self.lock().get(blob).cloned()?;
        let seconds_left = away.seconds_left.saturating_sub(since.elapsed().as_secs());
        Some(Away { seconds_left, ..away })
    }
}

/// Whatever becomes of a pull, its blob waits no more.
pub(super) struct Waits<'a> {
    pub(super) waiting: &'a Waiting,
    pub(super) blob: Digest,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.waiting.forget(&self.blob);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest_and_end_with_the_wait() {
        let start = Instant::now();
        let mut patience = Patience::new(60 * SECOND, start);
        let mut pauses = Vec::new();
        let mut now = start;
        while let Some((pause, left)) = patience.pause(now, 0) {
            assert_eq!(left, 60 * SECOND - (now - start));
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10, 10, 5]);
        assert_eq!(Patience::new(60 * SECOND, start).pause(start, u32::MAX), Some((SECOND / 2, 60 * SECOND)));
        assert_eq!(Patience::new(Duration::ZERO, start).pause(start, 0), None);
    }

    #[test]
    fn each_byte_that_comes_begins_the_wait_anew() {
        let start = Instant::now();
        let mut patience = Patience::new(60 * SECOND, start);
        patience.saw(5, start);
        for _ in 0..5 {
            patience.pause(start, 0);
        }
        patience.saw(5, start + 50 * SECOND);
        assert_eq!(patience.pause(start + 50 * SECOND, 0), Some((10 * SECOND, 10 * SECOND)));
        patience.saw(6, start + 55 * SECOND);
        assert_eq!(patience.pause(start + 65 * SECOND, 0), Some((SECOND, 50 * SECOND)));
        assert_eq!(patience.pause(start + 115 * SECOND, 0), None);
    }
}
