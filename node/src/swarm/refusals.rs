//! Who was not admitted, or did not admit this node: people look for it when a machine is missing.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wherry_proto::NodeId;

/// How many nodes are remembered that were refused, or refused this one; then the oldest make room.
pub const MAX_REFUSALS: usize = 64;

/// How long a refusal is remembered after the last try: three times as long as nodes wait between two of them at most.
pub const REFUSED_TIME: Duration = Duration::from_secs(15 * 60);

/// How long the log keeps silent about a node that it has named, unless the reason is another one.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// That two nodes do not talk to each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The other node.
    pub node: NodeId,
    /// Where it is.
    pub address: String,
    /// Why it was not admitted, or seems not to have admitted this one.
    pub why: String,
    /// What can be done about it, if that is known.
    pub advice: Option<String>,
    /// When it was last tried, in seconds since the Unix epoch.
    pub at: u64,
}

/// The refusals of the last time, one for each node.
#[derive(Default)]
pub(super) struct Refusals(Mutex<BTreeMap<NodeId, Known>>);

struct Known {
    refusal: Refusal,
    // When the log named it last.
    said: u64,
}

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a refusal, and tells the log now and then.
    pub(super) fn note(&self, refusal: Refusal) {
        if self.is_news(&refusal) {
            let Refusal { node, address, why, advice, .. } = refusal;
            tracing::info!(peer = %node, address, why, advice, "not admitted");
        }
    }

    /// Remembers a refusal; whether the log should name it now.
    pub(super) fn is_news(&self, refusal: &Refusal) -> bool {
        let mut known = self.lock();
        let now = refusal.at;
        let before = known.remove(&refusal.node);
        let fresh = |said: u64| now.saturating_sub(said) < SILENCE.as_secs();
        let mut news = !before.as_ref().is_some_and(|it| fresh(it.said) && it.refusal.why == refusal.why);
        if before.is_none() && known.len() >= MAX_REFUSALS {
            let oldest = known.values().min_by_key(|it| it.refusal.at).map(|it| (it.refusal.node, it.said));
            if let Some((node, said)) = oldest {
                known.remove(&node);
                // Whoever comes with ever new keys does not fill the log.
                news = !fresh(said);
            }
        }
        let said = if news { now } else { before.map_or(now, |it| it.said) };
        known.insert(refusal.node, Known { refusal: refusal.clone(), said });
        news
    }

    /// The node was admitted.
    pub(super) fn forget(&self, node: &NodeId) {
        self.lock().remove(node);
    }

    /// The refusals of the last [`REFUSED_TIME`].
    pub(super) fn list(&self, now: u64) -> Vec<Refusal> {
        let mut known = self.lock();
        known.retain(|_, it| now.saturating_sub(it.refusal.at) < REFUSED_TIME.as_secs());
        known.values().map(|it| it.refusal.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;

    fn refusal(number: u16, why: &str, at: u64) -> Refusal {
        let mut seed = [0; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        let node = SecretKey::from_seed(seed).node();
        Refusal { node, address: String::new(), why: why.to_owned(), advice: None, at }
    }

    #[test]
    fn the_log_names_a_node_once_in_some_minutes_and_when_the_reason_changes() {
        let refusals = Refusals::default();
        let news: Vec<bool> = [("a", 0), ("a", 1), ("b", 2), ("b", 3), ("b", 2 + SILENCE.as_secs())]
            .into_iter()
            .map(|(why, at)| refusals.is_news(&refusal(1, why, at)))
            .collect();
        assert_eq!(news, [true, false, true, false, true]);
    }

    #[test]
    fn a_refusal_is_forgotten_with_time_and_when_the_node_is_admitted() {
        let refusals = Refusals::default();
        refusals.note(refusal(1, "a", 0));
        refusals.note(refusal(2, "a", 100));
        assert_eq!(refusals.list(100).len(), 2);
        assert_eq!(refusals.list(REFUSED_TIME.as_secs()), [refusal(2, "a", 100)]);
        refusals.forget(&refusal(2, "a", 0).node);
        assert_eq!(refusals.list(100), []);
    }

    #[test]
    fn whoever_comes_with_ever_new_keys_fills_neither_memory_nor_log() {
        let refusals = Refusals::default();
        let news = (0..500).filter(|number| refusals.is_news(&refusal(*number, "a", 1))).count();
        assert_eq!(news, MAX_REFUSALS);
        assert_eq!(refusals.list(1).len(), MAX_REFUSALS);
    }
}
