//! How many chains, or the states of one, are on their way at a time.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::CHAINS_AT_ONCE;

/// How long a chain counts as on its way at most: whoever takes longer to read it does not keep it from others.
const CHAIN_TIME: Duration = Duration::from_secs(2);

/// The chains that are on their way.
pub(super) struct Chains {
    all: Mutex<Vec<(Instant, Weak<()>)>>,
    // For how long each counts at most.
    time: Duration,
}

impl Default for Chains {
    fn default() -> Self {
        Self::counting_for(CHAIN_TIME)
    }
}

impl Chains {
    /// None yet; each counts for so long at most.
    pub(super) fn counting_for(time: Duration) -> Self {
        Self { all: Mutex::default(), time }
    }

    /// Whether one more may go to somebody who can have it of others; what comes is to be held until it is sent.
    pub(super) fn begin(&self, now: Instant) -> Option<Arc<()>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(since, held)| held.strong_count() > 0 && now - *since < self.time);
        if all.len() >= CHAINS_AT_ONCE {
            return None;
        }
        let held = Arc::new(());
        all.push((now, Arc::downgrade(&held)));
        Some(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_goes_to_few_at_a_time_and_whoever_does_not_read_it_holds_nobody_up() {
        let (chains, now) = (Chains::default(), Instant::now());
        let mut held: Vec<_> = std::iter::from_fn(|| chains.begin(now)).collect();
        assert_eq!(held.len(), CHAINS_AT_ONCE);
        held.pop();
        held.extend(chains.begin(now));
        assert_eq!(held.len(), CHAINS_AT_ONCE);
        assert!(chains.begin(now).is_none());
        assert!(chains.begin(now + CHAIN_TIME).is_some());
    }
}
