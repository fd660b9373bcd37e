//! Blobs on their way into this node, as the swarm sees them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use wherry_proto::{Attempt, Certificate, ChunkIndex, ChunkSet, NodeId, Role, StateChain, StreamClaim};

use super::holdings::ReadAt;

/// A blob on its way into this node, as those who follow it see it.
///
/// Only the reads, by [`ReadAt::read_exact_at`], and [`Arriving::states`] may block. The swarm keeps its handle for as
/// long as somebody follows the blob and it says neither [`Role::Held`] nor [`Role::Gone`].
pub trait Arriving: ReadAt {
    /// Whether a chunk is here, linked, so that it may be passed on. It is asked right before each chunk is given.
    fn has(&self, index: ChunkIndex) -> bool;

    /// All such chunks.
    fn here(&self) -> ChunkSet;

    /// Those of them that nobody else of the site has but from this node: each is to leave it about once while upload is
    /// scarce.
    fn first_hand(&self) -> ChunkSet;

    /// Chunks that are no news to a follower: it has them itself, or several others are known to have them, so that it may
    /// hear of them elsewhere.
    fn no_news_to(&self, follower: &NodeId) -> ChunkSet;

    /// Whether a follower is of this site, where it hears of chunks from others too.
    fn is_near(&self, _follower: &NodeId) -> bool {
        false
    }

    /// How long a chunk takes to come from a node of this site; `None` if none has.
    fn pace(&self) -> Option<Duration> {
        None
    }

    /// What this node has to do with the blob. Once it is [`Role::Held`], [`Holdings::held`](super::Holdings::held)
    /// has the blob.
    fn role(&self) -> Role;

    /// Counts up when [`Arriving::here`] or [`Arriving::role`] change. Its end says that nothing changes any more.
    fn changes(&self) -> watch::Receiver<u64>;

    /// What a leader signed of this reading, with the bytes of the states behind the first `from`; `None` if nothing
    /// of the reading is known here, or fewer states than these.
    fn states(&self, attempt: &Attempt, from: u32) -> Option<(StreamClaim, Certificate, Vec<u8>)>;

    /// The chain that this node goes by, if some holder has claimed it; it may be wrong.
    fn chain(&self) -> Option<Arc<StateChain>> {
        None
    }

    /// Tells that a node follows the blob here, or wants it: it may be worth following it back.
    fn followed(&self, by: NodeId);

    /// Whether a chunk that seems to be here may turn out not to be when it is read: it is then read whole before it is
    /// promised to anybody.
    fn may_fail(&self) -> bool {
        false
    }
}
