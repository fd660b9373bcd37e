//! How much a planner remembers.

use super::Planner;
use super::peer::Peer;

/// What a planner remembers, counted, so that its bounds can be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Peers that are used.
    pub peers: usize,
    /// Peers that were dropped.
    pub dropped: usize,
    /// Chunks that are asked of peers.
    pub asked: usize,
    /// Chunks that are being written.
    pub keeping: usize,
    /// The same, of those that are not wanted any more.
    pub stale: usize,
    /// Chunks that one peer did not give.
    pub refused: usize,
    /// Readings that are watched.
    pub watched: usize,
    /// Clients that read.
    pub readers: usize,
    /// About how many bytes all of it takes, states included.
    pub bytes: usize,
}

impl Sizes {
    /// The greater one of each.
    #[must_use]
    pub fn max(&self, other: &Self) -> Self {
        Self {
            peers: self.peers.max(other.peers),
            dropped: self.dropped.max(other.dropped),
            asked: self.asked.max(other.asked),
            keeping: self.keeping.max(other.keeping),
            stale: self.stale.max(other.stale),
            refused: self.refused.max(other.refused),
            watched: self.watched.max(other.watched),
            readers: self.readers.max(other.readers),
            bytes: self.bytes.max(other.bytes),
        }
    }
}

impl Planner {
    /// How much it remembers now.
    pub fn sizes(&self) -> Sizes {
        let count = self.ledger.map().count() as usize;
        let states = self.ledger.stream().known() as usize
            + self.lead.signed.as_ref().map_or(0, |signed| signed.prefix.known() as usize)
            + self.ledger.chain().map_or(0, |_| 2 * count);
        let refused = self.peers.values().map(|peer| peer.refused.len());
        let peer = size_of::<Peer>() + count / 8;
        let bytes = size_of::<Self>()
            + count * size_of::<Option<wherry_proto::Link>>()
            + 4 * count / 8
            + states * self.ledger.digest().algorithm().output_len()
            + self.peers.len() * peer
            + self.dropped.len() * 128
            + self.asked.len() * (size_of::<super::Asked>() + 8)
            + self.keeping.len() * size_of::<wherry_proto::Link>()
            + refused.clone().sum::<usize>() * 32;
        Sizes {
            peers: self.peers.len(),
            dropped: self.dropped.len(),
            asked: self.asked.values().filter(|asked| matches!(asked.source, super::Source::Peer(_))).count(),
            keeping: self.keeping.len(),
            stale: self.stale.len(),
            refused: refused.max().unwrap_or(0),
            watched: self.lead.watched(),
            readers: self.readers.len(),
            bytes,
        }
    }
}
