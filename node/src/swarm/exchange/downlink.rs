//! Whether it is a peer that says nothing, or this node's own link on which its bytes wait behind those of others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How many bytes each peer that is waited for has sent, on average, when one that has sent none is silent: two chunks of the
/// shortest kind. Where sixteen share 500 kbit/s, TCP lets one of them wait for as long as that now and then.
const SHARE: u64 = 64 << 10;

/// How many bytes others must have sent for a link to count as busy: with fewer than that in all, 26 kbit/s, nothing keeps a
/// peer from sending its own, and one that drips would excuse all that are mute.
const BUSY: u64 = 16 << 10;

/// The longest that a peer may be silent on the busiest link. Mute ones excuse each other where all that comes is little, so
/// it is not much longer than it takes until what they were asked for is asked of others.
const LONGEST_SILENCE: Duration = Duration::from_secs(15);

/// What all exchanges of a node have received, and how many wait for something. Clones share it.
#[derive(Clone, Default)]
pub(in crate::swarm) struct Downlink(Arc<Counts>);

#[derive(Default)]
struct Counts {
    received: AtomicU64,
    waiting: AtomicUsize,
}

impl Downlink {
    /// So many bytes have come.
    pub(super) fn received(&self, bytes: usize) {
        self.0.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// One more exchange waits for its peer, until the value is dropped.
    pub(super) fn wait(&self) -> Silence {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let before = self.0.received.load(Ordering::Relaxed);
        Silence { counts: Arc::clone(&self.0), before, since: Instant::now() }
    }
}

/// That a peer owes something and has sent nothing yet.
pub(super) struct Silence {
    counts: Arc<Counts>,
    before: u64,
    since: Instant,
}

impl Silence {
    /// Whether the link is at fault: it has carried bytes of others all the while, and not so many that this peer's would
    /// have had to be among them.
    pub(super) fn is_excused(&self) -> bool {
        self.is_excused_after(self.since.elapsed())
    }

    fn is_excused_after(&self, silence: Duration) -> bool {
        let others = self.counts.received.load(Ordering::Relaxed).wrapping_sub(self.before);
        let waiting = self.counts.waiting.load(Ordering::Relaxed).max(1) as u64;
        (BUSY..SHARE * waiting).contains(&others) && silence < LONGEST_SILENCE
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_excused_while_others_get_little_through_and_not_where_they_get_nothing_or_much() {
        let link = Downlink::default();
        let peers: Vec<Silence> = (0..16).map(|_| link.wait()).collect();
        assert!(!peers[0].is_excused(), "nothing comes at all");
        link.received(BUSY as usize - 1);
        assert!(!peers[0].is_excused(), "somebody drips");
        link.received(1);
        assert!(peers[0].is_excused());
        assert!(!peers[0].is_excused_after(LONGEST_SILENCE), "not for ever");
        let later = link.wait();
        assert!(!later.is_excused(), "what came before does not count");
        link.received(17 * SHARE as usize);
        assert!(!later.is_excused(), "the others have had theirs");
    }

    #[test]
    fn a_peer_alone_on_its_link_is_not_excused() {
        let link = Downlink::default();
        let alone = link.wait();
        link.received(SHARE as usize);
        assert!(!alone.is_excused());
    }
}
