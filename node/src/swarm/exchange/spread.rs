//! What was given to whom of those who follow a blob, so that each chunk leaves this node about once.
//!
//! While upload is scarce, a chunk that one follower has is better taken from that follower: a node that gave each
//! chunk to each would be the bottleneck of its site.

use std::collections::HashMap;

use wherry_proto::{BlobName, ChunkIndex, ChunkMap, ChunkSet, NodeId};

/// How many blobs are kept in mind; of more, those that were asked for last.
const MAX_BLOBS: usize = 32;

/// How many receivers of a blob are remembered, so that what they got can be given again when they are gone: at most
/// 16 KiB each, for the longest blob.
const MAX_RECEIVERS: usize = 64;

/// The memory of all blobs that somebody follows here.
#[derive(Default)]
pub(super) struct Spread {
    blobs: HashMap<BlobName, Given>,
    clock: u64,
}

struct Given {
    // When it was last asked for.
    used: u64,
    // With how many subscriptions each node follows.
    followers: HashMap<NodeId, usize>,
    // How many have begun to.
    begun: u32,
    // To how many followers each chunk was given that are still there.
    counts: Vec<u16>,
    receivers: HashMap<NodeId, ChunkSet>,
}

impl Given {
    fn count(&self, index: ChunkIndex) -> u16 {
        self.counts.get(index.get() as usize).copied().unwrap_or(u16::MAX)
    }

    fn received(&self, index: ChunkIndex, by: NodeId) -> bool {
        self.receivers.get(&by).is_some_and(|chunks| chunks.contains(index))
    }

    fn note(&mut self, map: ChunkMap, index: ChunkIndex, to: NodeId) {
        if self.receivers.contains_key(&to) || self.receivers.len() < MAX_RECEIVERS {
            let chunks = self.receivers.entry(to).or_insert_with(|| ChunkSet::empty(map));
            if !chunks.insert(index) {
                return;
            }
        }
        if let Some(count) = self.counts.get_mut(index.get() as usize) {
            *count = count.saturating_add(1);
        }
    }

    fn take_back(&mut self, index: ChunkIndex) {
        if let Some(count) = self.counts.get_mut(index.get() as usize) {
            *count = count.saturating_sub(1);
        }
    }
}

impl Spread {
    /// A node follows a blob here. Returns the how manieth it is that has begun to.
    pub(super) fn follow(&mut self, blob: BlobName, map: ChunkMap, by: NodeId) -> u32 {
        self.clock += 1;
        if !self.blobs.contains_key(&blob) && self.blobs.len() >= MAX_BLOBS {
            let oldest = self.blobs.iter().min_by_key(|(_, given)| given.used).map(|(blob, _)| *blob);
            oldest.map(|blob| self.blobs.remove(&blob));
        }
        let given = self.blobs.entry(blob).or_insert_with(|| Given {
            used: 0,
            followers: HashMap::new(),
            begun: 0,
            counts: vec![0; map.count() as usize],
            receivers: HashMap::new(),
        });
        given.used = self.clock;
        *given.followers.entry(by).or_default() += 1;
        given.begun = given.begun.wrapping_add(1);
        given.begun
    }

    /// How many nodes follow a blob.
    pub(super) fn followers(&self, blob: &BlobName) -> usize {
        self.blobs.get(blob).map_or(0, |given| given.followers.len())
    }

    /// It does so no more, as often as it was told. What it got counts on, for it may still pass it on.
    pub(super) fn unfollow(&mut self, blob: &BlobName, by: NodeId) {
        let Some(given) = self.blobs.get_mut(blob) else { return };
        if let Some(subscriptions) = given.followers.get_mut(&by) {
            *subscriptions -= 1;
            if *subscriptions == 0 {
                given.followers.remove(&by);
            }
        }
        if given.followers.is_empty() {
            self.blobs.remove(blob);
        }
    }

    /// Whether a follower is given this chunk, which counts then, or has to take it from another one: it is given if
    /// upload is plentiful, if it has no rival, or if no chunk that is `here`, `None` for all, went to fewer. Whoever
    /// does not follow the blob knows no others to take from.
    pub(super) fn give(
        &mut self,
        blob: BlobName,
        map: ChunkMap,
        index: ChunkIndex,
        to: NodeId,
        plentiful: bool,
        here: impl FnOnce() -> Option<ChunkSet>,
    ) -> bool {
        self.clock += 1;
        let Some(given) = self.blobs.get_mut(&blob).filter(|given| given.followers.contains_key(&to)) else {
            return true;
        };
        given.used = self.clock;
        // That it got the chunk itself is no reason to send it to others.
        let count = given.count(index).saturating_sub(given.received(index, to).into());
        if given.followers.len() > 1 && !plentiful && count > 0 {
            let went_to_fewer = |other| given.count(other) < count;
            let better = match here() {
                Some(here) => here.iter().any(went_to_fewer),
                None => map.iter().any(went_to_fewer),
            };
            if better {
                return false;
            }
        }
        given.note(map, index, to);
        true
    }

    /// What was to be given was not.
    pub(super) fn take_back(&mut self, blob: &BlobName, index: ChunkIndex, from: NodeId) {
        let Some(given) = self.blobs.get_mut(blob) else { return };
        if given.receivers.get_mut(&from).is_some_and(|chunks| chunks.remove(index)) {
            given.take_back(index);
        }
    }

    /// A node is gone, with all that it got.
    pub(super) fn gone(&mut self, node: NodeId) {
        for given in self.blobs.values_mut() {
            for index in given.receivers.remove(&node).iter().flat_map(ChunkSet::iter) {
                given.take_back(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::{Digest, SecretKey};

    use super::*;

    const SCARCE: bool = false;

    fn node(number: u8) -> NodeId {
        SecretKey::from_seed([number; 32]).node()
    }

    fn map() -> ChunkMap {
        ChunkMap::new(4 * (32 << 10)).unwrap()
    }

    fn blob(number: u64) -> BlobName {
        BlobName { digest: Digest::sha256(&number.to_le_bytes()), size: map().size() }
    }

    /// Blob 0 of four chunks, which these follow.
    fn followed_by(nodes: &[u8]) -> Spread {
        let mut spread = Spread::default();
        nodes.iter().for_each(|number| _ = spread.follow(blob(0), map(), node(*number)));
        spread
    }

    /// Asks for a chunk while all are here and upload is scarce.
    fn give(spread: &mut Spread, chunk: u32, to: u8) -> bool {
        spread.give(blob(0), map(), map().index(chunk).unwrap(), node(to), SCARCE, || None)
    }

    #[test]
    fn a_chunk_is_given_again_once_all_others_were_given_as_often() {
        let mut spread = followed_by(&[1, 2]);
        assert!(give(&mut spread, 0, 1));
        assert!(!give(&mut spread, 0, 2));
        assert!(give(&mut spread, 1, 2) && give(&mut spread, 2, 2) && give(&mut spread, 3, 2));
        assert!(give(&mut spread, 0, 2));
        // Each has now gone to one or two, and chunk 0 to both.
        assert!(give(&mut spread, 1, 1));
    }

    #[test]
    fn only_chunks_that_are_here_are_better_ones_to_ask_for() {
        let mut spread = followed_by(&[1, 2]);
        assert!(give(&mut spread, 0, 1));
        let here = || {
            let mut here = ChunkSet::empty(map());
            here.insert(map().first());
            Some(here)
        };
        assert!(spread.give(blob(0), map(), map().first(), node(2), SCARCE, here));
    }

    #[test]
    fn while_upload_is_plentiful_everybody_is_given_what_it_asks_for() {
        let mut spread = followed_by(&[1, 2, 3]);
        for to in [1, 2, 3] {
            assert!(spread.give(blob(0), map(), map().first(), node(to), true, || None));
        }
        assert!(!give(&mut spread, 0, 1));
        assert!(give(&mut spread, 1, 1));
    }

    #[test]
    fn a_blob_with_one_follower_and_whoever_follows_nothing_are_not_restricted() {
        let mut spread = followed_by(&[1]);
        assert!(give(&mut spread, 0, 1) && give(&mut spread, 0, 1));
        spread.follow(blob(0), map(), node(2));
        assert!(give(&mut spread, 0, 3) && give(&mut spread, 0, 3));
        // What the only follower got before there was another counts.
        assert!(!give(&mut spread, 0, 2));
        spread.unfollow(&blob(0), node(1));
        assert!(give(&mut spread, 0, 2));
    }

    #[test]
    fn whoever_asks_for_a_chunk_again_is_not_sent_to_itself() {
        let mut spread = followed_by(&[1, 2]);
        assert!(give(&mut spread, 0, 1) && give(&mut spread, 0, 1));
        assert!(!give(&mut spread, 0, 2));
    }

    #[test]
    fn what_went_to_a_node_that_is_gone_is_given_again_unless_another_has_it() {
        let mut spread = followed_by(&[1, 2, 3]);
        for chunk in 0..2 {
            assert!(give(&mut spread, chunk, 1));
        }
        assert!(spread.give(blob(0), map(), map().first(), node(3), true, || None));
        spread.unfollow(&blob(0), node(1));
        // Not while it is connected: it may still pass on what it has.
        assert!(!give(&mut spread, 1, 2));
        spread.gone(node(1));
        assert!(!give(&mut spread, 0, 2));
        assert!(give(&mut spread, 1, 2));
    }

    #[test]
    fn what_was_not_given_after_all_is_given_to_the_next() {
        let mut spread = followed_by(&[1, 2]);
        assert!(give(&mut spread, 0, 1));
        spread.take_back(&blob(0), map().first(), node(1));
        assert!(give(&mut spread, 0, 2));
        // Nothing to take back.
        spread.take_back(&blob(0), map().first(), node(1));
        assert!(!give(&mut spread, 0, 1));
    }

    #[test]
    fn those_who_follow_a_blob_are_counted_one_after_the_other() {
        let mut spread = Spread::default();
        let begun =
            [(0, 1), (0, 2), (1, 1), (0, 3)].map(|(number, by)| spread.follow(blob(number), map(), node(by)));
        assert_eq!(begun, [1, 2, 1, 3]);
    }

    #[test]
    fn of_many_blobs_the_last_used_are_kept_in_mind_and_none_that_nobody_follows() {
        let mut spread = Spread::default();
        for number in 0..MAX_BLOBS as u64 {
            spread.follow(blob(number), map(), node(1));
        }
        spread.give(blob(0), map(), map().first(), node(1), SCARCE, || None);
        spread.follow(blob(1000), map(), node(1));
        assert_eq!(spread.blobs.len(), MAX_BLOBS);
        assert!(spread.blobs.contains_key(&blob(0)) && !spread.blobs.contains_key(&blob(1)));
        for number in (0..MAX_BLOBS as u64).chain([1000]) {
            spread.unfollow(&blob(number), node(1));
        }
        assert!(spread.blobs.is_empty());
    }
}
