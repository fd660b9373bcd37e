//! How fast blobs may be read from an origin that has a rate of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::OriginSettings;
use crate::name::Host;

/// The rates of all origins that have one.
#[derive(Debug)]
pub(super) struct Paces(HashMap<Host, Arc<Pace>>);

impl Paces {
    pub(super) fn new(settings: &OriginSettings) -> Self {
        let paced = settings.hosts.iter().filter_map(|(host, its)| {
            let rate = its.rate?;
            Some((host.clone(), Arc::new(Pace { rate: rate.max(1), next: Mutex::new(Instant::now()) })))
        });
        Self(paced.collect())
    }

    pub(super) fn of(&self, host: &Host) -> Option<Arc<Pace>> {
        self.0.get(host).cloned()
    }
}

/// One rate, shared by all blobs that are read at it.
#[derive(Debug)]
pub(super) struct Pace {
    /// In bytes a second.
    rate: u64,
    /// When all that was taken has had its time.
    next: Mutex<Instant>,
}

impl Pace {
    /// Waits until bytes that have come may be followed by more.
    pub(super) async fn took(&self, bytes: usize) {
        tokio::time::sleep_until(self.after(bytes, Instant::now())).await;
    }

    /// When these bytes, which came now, have had their time.
    fn after(&self, bytes: usize, now: Instant) -> Instant {
        let time = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(now) + time;
        *next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_the_rate_and_idle_time_is_not_saved_up() {
        let began = Instant::now();
        let pace = Pace { rate: 1000, next: Mutex::new(began) };
        let seconds = |count| Duration::from_secs(count);
        let now = began + seconds(100);
        assert_eq!(pace.after(500, now), now + Duration::from_millis(500));
        assert_eq!(pace.after(1500, now), now + seconds(2));
        assert_eq!(pace.after(1000, now + seconds(10)), now + seconds(11));
    }
}
