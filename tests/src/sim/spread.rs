//! What a node has given to whom of a blob, so that each chunk leaves it about once while upload is scarce: the rule of
//! the exchange's giving side.

use std::collections::BTreeMap;

use wherry_proto::{ChunkIndex, ChunkMap, ChunkSet};

/// How many receivers of a blob are remembered.
const MAX_RECEIVERS: usize = 64;

pub(super) struct Spread {
    map: ChunkMap,
    counts: Vec<u16>,
    receivers: BTreeMap<usize, ChunkSet>,
}

impl Spread {
    pub(super) fn new(map: ChunkMap) -> Self {
        Self { map, counts: vec![0; map.count() as usize], receivers: BTreeMap::new() }
    }

    fn count(&self, index: ChunkIndex) -> u16 {
        self.counts[index.get() as usize]
    }

    /// Whether a follower is given this chunk, which counts then. `here` is what there is to give; all if `None`.
    pub(super) fn give(
        &mut self,
        index: ChunkIndex,
        to: usize,
        rivals: bool,
        plentiful: bool,
        here: Option<&ChunkSet>,
    ) -> bool {
        let received = self.receivers.get(&to).is_some_and(|chunks| chunks.contains(index));
        let count = self.count(index) - u16::from(received);
        if rivals && !plentiful && count > 0 {
            let fewer = |other: &ChunkIndex| self.count(*other) < count;
            let exists = match here {
                Some(here) => here.iter().any(|other| fewer(&other)),
                None => self.map.iter().any(|other| fewer(&other)),
            };
            if exists {
                return false;
            }
        }
        if self.receivers.contains_key(&to) || self.receivers.len() < MAX_RECEIVERS {
            let chunks = self.receivers.entry(to).or_insert_with(|| ChunkSet::empty(self.map));
            if !chunks.insert(index) {
                return true;
            }
        }
        let count = &mut self.counts[index.get() as usize];
        *count = count.saturating_add(1);
        true
    }

    /// A node is gone, with all that it got.
    pub(super) fn gone(&mut self, node: usize) {
        for index in self.receivers.remove(&node).iter().flat_map(ChunkSet::iter) {
            let count = &mut self.counts[index.get() as usize];
            *count = count.saturating_sub(1);
        }
    }
}
