//! What readers of a blob in flight may see: which chunks have linked, and how it ended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use wherry_proto::{
    Algorithm, ChunkIndex, ChunkMap, ChunkSet, NodeId, Role, SignedStates, StateChain, StatePrefix,
};

use super::TransferError;
use crate::limits::Limited;
use crate::store::StoredBlob;

/// How a transfer ended.
pub(super) type Outcome = Result<StoredBlob, TransferError>;

/// Bytes that one transfer has taken in so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of chunks that are here and have linked, those of earlier attempts included.
    pub linked: u64,
    /// Bytes that peers sent for this transfer.
    pub from_peers: u64,
    /// Bytes that the origin sent for this transfer.
    pub from_origin: u64,
    /// How many it comes from now: peers, and the origin while this node reads that.
    pub sources: usize,
}

/// What this node does for the blob, and whose states it has.
#[derive(Debug, Clone)]
pub(super) struct Stance {
    pub(super) role: Role,
    /// The states that are known, for whoever follows this node's own reading.
    pub(super) stream: Arc<StatePrefix>,
    /// Those of the reading that this node follows.
    pub(super) signed: Option<Arc<SignedStates>>,
    /// The chain that is gone by, if a holder has claimed one.
    pub(super) chain: Option<Arc<StateChain>>,
    /// How long a chunk takes to come from the quickest node of this site.
    pub(super) pace: Option<Duration>,
}

struct Seen {
    linked: ChunkSet,
    first_hand: ChunkSet,
    common: ChunkSet,
    // What each of those has who tell it: those whom the planner follows.
    theirs: HashMap<NodeId, ChunkSet>,
    stance: Stance,
    // Counts how often chunks that readers may have been given turned out not to lead to the digest.
    voids: u32,
    // Whether the origin is being read and nothing is known of the chunks behind.
    in_order: bool,
    // The limit that is all that the transfer waits for.
    waits_for: Option<Limited>,
    outcome: Option<Outcome>,
}

/// Shared between the task that drives a transfer and everybody who reads from it.
pub(super) struct View {
    map: ChunkMap,
    seen: Mutex<Seen>,
    changes: watch::Sender<u64>,
    pub(super) from_peers: AtomicU64,
    pub(super) from_origin: AtomicU64,
    pub(super) sources: AtomicUsize,
}

impl View {
    pub(super) fn new(algorithm: Algorithm, map: ChunkMap) -> Self {
        let stance = Stance {
            role: Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false },
            stream: Arc::new(StatePrefix::new(algorithm, map)),
            signed: None,
            chain: None,
            pace: None,
        };
        let seen = Seen {
            linked: ChunkSet::empty(map),
            first_hand: ChunkSet::empty(map),
            common: ChunkSet::empty(map),
            theirs: HashMap::new(),
            stance,
            voids: 0,
            in_order: false,
            waits_for: None,
            outcome: None,
        };
        Self {
            map,
            seen: Mutex::new(seen),
            changes: watch::Sender::new(0),
            from_peers: AtomicU64::new(0),
            from_origin: AtomicU64::new(0),
            sources: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Nothing that holds the lock can leave the set half-changed.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Takes in which chunks are here, and which of them are first-hand.
    pub(super) fn relinked(&self, linked: &ChunkSet, first_hand: ChunkSet) {
        let mut seen = self.lock();
        if seen.linked == *linked {
            return;
        }
        seen.linked.clone_from(linked);
        seen.first_hand = first_hand;
        drop(seen);
        self.changed();
    }

    /// Takes in which chunks several others have; nobody waits for that.
    pub(super) fn have_in_common(&self, common: &ChunkSet) {
        self.lock().common.clone_from(common);
    }

    /// Takes in what a peer has; nothing if it tells no more.
    pub(super) fn has_theirs(&self, node: NodeId, here: Option<&ChunkSet>) {
        let mut seen = self.lock();
        match here {
            Some(here) => {
                seen.theirs.entry(node).or_insert_with(|| ChunkSet::empty(self.map)).clone_from(here)
            }
            None => {
                seen.theirs.remove(&node);
            }
        }
    }

    /// What is no news to a node: what several others have, and what it has itself.
    pub(super) fn no_news_to(&self, node: &NodeId) -> ChunkSet {
        let seen = self.lock();
        let mut known = seen.common.clone();
        if let Some(theirs) = seen.theirs.get(node) {
            known.add(theirs);
        }
        known
    }

    pub(super) fn stands(&self, stance: Stance) {
        let mut seen = self.lock();
        let is_new = seen.stance.role != stance.role;
        seen.stance = stance;
        drop(seen);
        if is_new {
            self.changed();
        }
    }

    pub(super) fn stance(&self) -> Stance {
        self.lock().stance.clone()
    }

    pub(super) fn linked(&self) -> ChunkSet {
        self.lock().linked.clone()
    }

    pub(super) fn first_hand(&self) -> ChunkSet {
        self.lock().first_hand.clone()
    }

    pub(super) fn voided(&self) {
        self.lock().voids += 1;
        self.changed();
    }

    pub(super) fn end(&self, outcome: Outcome) {
        self.lock().outcome = Some(outcome);
        self.changed();
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.lock().outcome.clone()
    }

    pub(super) fn has(&self, index: ChunkIndex) -> bool {
        self.lock().linked.contains(index)
    }

    /// While the blob is being read in order only, the number of bytes at its start that are here.
    pub(super) fn in_order(&self) -> Option<u64> {
        let seen = self.lock();
        if !seen.in_order {
            return None;
        }
        let missing = seen.linked.first_missing(self.map.first());
        Some(missing.map_or(self.map.size(), |index| self.map.offset(index)))
    }

    pub(super) fn set_in_order(&self, in_order: bool) {
        let mut seen = self.lock();
        if seen.in_order != in_order {
            seen.in_order = in_order;
            drop(seen);
            self.changed();
        }
    }

    pub(super) fn waits_for(&self, limited: Option<Limited>) {
        let mut seen = self.lock();
        if seen.waits_for != limited {
            seen.waits_for = limited;
            drop(seen);
            self.changed();
        }
    }

    pub(super) fn waiting(&self) -> Option<Limited> {
        self.lock().waits_for
    }

    pub(super) fn voids(&self) -> u32 {
        self.lock().voids
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether anybody waits for what comes.
    pub(super) fn is_watched(&self) -> bool {
        self.changes.receiver_count() > 0
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            linked: self.lock().linked.bytes(),
            from_peers: self.from_peers.load(Ordering::Relaxed),
            from_origin: self.from_origin.load(Ordering::Relaxed),
            sources: self.sources.load(Ordering::Relaxed),
        }
    }
}
