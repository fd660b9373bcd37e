//! Whom a node follows in a site that is too large to follow all.

use wherry_proto::{Digest, NodeId, lot, rank};

use super::company::{MAX_PEERS, RANKED};

/// For how many ticks a peer outside the circle is left alone: by then those in it have come, if they come at all.
pub(super) const STRANGE: u64 = 2;

/// Those of a site whom a node follows as soon as it meets them: the few of highest rank, and those whom lot has given to it. All
/// come in any order when a site begins at once, and the best of those who have come so far are others each time: whoever
/// followed these would in the end have had a connection to everybody.
#[derive(Debug, Default)]
pub(super) struct Circle {
    // The least of each that is in it.
    rank: u64,
    lot: u64,
}

impl Circle {
    /// That of `me` for a blob, among these.
    pub(super) fn of(me: &NodeId, digest: &Digest, site: &[NodeId]) -> Self {
        let rank = least_of_first(RANKED, site.iter().map(|node| rank(digest, node)));
        let lot = least_of_first(MAX_PEERS - RANKED, site.iter().map(|node| lot(me, node)));
        Self { rank, lot }
    }

    pub(super) const fn has(&self, rank: u64, lot: u64) -> bool {
        rank >= self.rank || lot >= self.lot
    }
}

/// The least of the `count` highest; 0 if there are no more.
fn least_of_first(count: usize, values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    if values.len() <= count {
        return 0;
    }
    let (_, least, _) = values.select_nth_unstable_by(count - 1, |one, two| two.cmp(one));
    *least
}
