//! Whom a node follows in a site that is too large to follow all.

use wherry_proto::{Digest, NodeId, lot, rank};

use super::company::{MAX_PEERS, RANKED};

/// For how many ticks a peer outside the circle is left alone, and until the site has been searched: by then those in it have
/// come, if they come at all. One that comes back does not wait again.
pub(super) const STRANGE: u64 = 2;

/// Those of a site whom a node follows without waiting for better ones to come: the few of highest rank, and those whom lot has
/// given to it; all, where there is a place for all. When a site begins at once its nodes come in any order, and the best of those
/// who have come so far are others each time: whoever followed these would in the end have had a connection to everybody.
#[derive(Debug, Default)]
pub(super) struct Circle {
    // The least of each that is in it.
    rank: u64,
    lot: u64,
}

impl Circle {
    /// That of `me` for a blob, among these.
    pub(super) fn of(me: &NodeId, digest: &Digest, site: &[NodeId]) -> Self {
        if site.len() <= MAX_PEERS {
            return Self::default();
        }
        let rank = least_of_first(RANKED, site.iter().map(|node| rank(digest, node)));
        let lot = least_of_first(MAX_PEERS - RANKED, site.iter().map(|node| lot(me, node)));
        Self { rank, lot }
    }

    pub(super) const fn has(&self, rank: u64, lot: u64) -> bool {
        rank >= self.rank || lot >= self.lot
    }
}

/// The least of the `count` highest, of which there are more.
fn least_of_first(count: usize, values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    let (_, least, _) = values.select_nth_unstable_by(count - 1, |one, two| two.cmp(one));
    *least
}

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;

    #[test]
    fn all_of_a_site_are_in_the_circle_where_there_is_a_place_for_all_and_of_a_larger_one_few() {
        let (me, digest) = (SecretKey::from_seed([99; 32]).node(), Digest::sha256(b"a blob"));
        for count in [0, 1, 12, 16, 17, 64] {
            let site: Vec<NodeId> = (0..count).map(|seed| SecretKey::from_seed([seed; 32]).node()).collect();
            let circle = Circle::of(&me, &digest, &site);
            let inside = site.iter().filter(|node| circle.has(rank(&digest, node), lot(&me, node))).count();
            // One may be of high rank and have the lot.
            let least = if site.len() <= MAX_PEERS { site.len() } else { MAX_PEERS - RANKED };
            assert!((least..=MAX_PEERS).contains(&inside), "{inside} of {count}");
        }
    }
}
