//! How fast what a peer sends comes, for whoever owns the socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The rate at which the last chunk or chain came on a connection; clones share it.
#[derive(Clone, Default)]
pub(in crate::swarm) struct Inflow(Arc<AtomicU64>);

impl Inflow {
    /// In bytes a second; `None` as long as nothing is known.
    pub(in crate::swarm) fn rate(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// So many bytes have come in a row, within this time after those before them.
    pub(in crate::swarm) fn came(&self, bytes: usize, within: Duration) {
        let rate = bytes as f64 / within.as_secs_f64().max(1e-6);
        if bytes > 0 {
            self.0.store((rate as u64).max(1), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_known_when_something_has_come_and_slow_is_not_unknown() {
        let inflow = Inflow::default();
        inflow.came(0, Duration::from_secs(1));
        assert_eq!(inflow.rate(), None);
        inflow.came(16_000, Duration::from_secs(2));
        assert_eq!(inflow.rate(), Some(8_000));
        inflow.came(1, Duration::from_secs(10));
        assert_eq!(inflow.rate(), Some(1));
    }
}
