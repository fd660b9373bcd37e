//! What to ask of whom, for one blob: events in, effects out, no I/O and no clock.
//!
//! Peers that hold the blob are preferred, and every chunk of theirs is checked against the chain that they
//! signed. The origin is read in order when no peer can give the blob. A chunk is at any time in exactly one
//! state: wanted, asked of one source, being kept (written), or here (in the ledger).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wherry_proto::{
    ChunkIndex, ChunkMap, ChunkSet, Claimed, Digest, End, Ledger, Link, NodeId, State, StateChain,
};

pub use event::{DropReason, Effect, Event, Failure, Proof, Source};
use origin::Origin;

mod event;
mod origin;

/// How many peers one transfer uses at a time; offers beyond it are left alone.
pub const MAX_PEERS: usize = 32;

/// How many chunks are asked of one peer at a time: enough that its link does not idle for a round trip.
pub const PIPELINE: usize = 8;

/// How many bytes one transfer has asked for and not yet written, at most.
pub const IN_FLIGHT: u64 = 8 << 20;

/// How often the origin is read and found wrong before the transfer gives up on it; where there are several, each has
/// its turn before one of them has its second.
pub const ORIGIN_ATTEMPTS: usize = 3;

/// How many peers that were dropped are remembered; then no further offer is taken.
pub const MAX_DROPPED: usize = 256;

/// How often a peer may fail and come back in one transfer.
pub const MAX_RETURNS: u8 = 5;

/// How many clients' positions are remembered; further ones wait for what these make arrive.
pub const MAX_READERS: usize = 64;

#[derive(Debug)]
enum Chain {
    Asked,
    // Contradicts what the origin is sending: nobody can know who is right before that ends.
    Aside(Arc<StateChain>),
    Claimed,
}

#[derive(Debug)]
struct Peer {
    chain: Chain,
    asked: usize,
    busy: bool,
}

#[derive(Debug)]
struct Dropped {
    why: String,
    times: u8,
    for_good: bool,
}

/// The plan of one transfer.
#[derive(Debug)]
pub struct Planner {
    ledger: Ledger,
    peers: BTreeMap<NodeId, Peer>,
    dropped: BTreeMap<NodeId, Dropped>,
    origin: Origin,
    asked: BTreeMap<ChunkIndex, Source>,
    keeping: BTreeMap<ChunkIndex, Link>,
    // Being written although no longer wanted: nothing else may be written there before that is over.
    stale: BTreeSet<ChunkIndex>,
    // Linked, asked or being kept.
    taken: ChunkSet,
    // Which unproven chunks came from peers, so that an origin's reading is not blamed for them.
    from_peers: ChunkSet,
    readers: BTreeMap<u64, ChunkIndex>,
    searched_site: bool,
    searched_network: bool,
    // How many chunks were here when the last search began.
    here_at_search: Option<u32>,
    over: bool,
    effects: Vec<Effect>,
}

impl Planner {
    /// A plan for a blob of which these chunks are here already.
    pub fn new(digest: Digest, map: ChunkMap, here: &[(ChunkIndex, Link)]) -> Self {
        let mut ledger = Ledger::new(digest, map);
        let mut from_peers = ChunkSet::empty(map);
        for (index, link) in here {
            ledger.record(*index, *link);
            // Who sent it is not remembered across restarts.
            from_peers.insert(*index);
        }
        let taken = ledger.linked().clone();
        Self {
            ledger,
            peers: BTreeMap::new(),
            dropped: BTreeMap::new(),
            origin: Origin::default(),
            asked: BTreeMap::new(),
            keeping: BTreeMap::new(),
            stale: BTreeSet::new(),
            taken,
            from_peers,
            readers: BTreeMap::new(),
            searched_site: false,
            searched_network: false,
            here_at_search: None,
            over: false,
            effects: Vec::new(),
        }
    }

    /// What is known of the blob.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How many peers are used as sources now.
    pub fn sources(&self) -> usize {
        self.peers.values().filter(|peer| matches!(peer.chain, Chain::Claimed)).count()
    }

    /// Takes in what has happened; says what to do. After `Verified` or `Failed` there is no further effect.
    pub fn apply(&mut self, event: Event) -> Vec<Effect> {
        if !self.over {
            self.take_in(event);
            self.plan();
        }
        std::mem::take(&mut self.effects)
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Offered(node) => self.offered(node),
            Event::Chain(node, chain) => self.chain(node, chain),
            Event::Arrived(source, index, links) => self.arrived(source, index, &links),
            Event::Kept(source, index, link) => self.kept(source, index, link),
            Event::Busy(node, index) => {
                self.release(Source::Peer(node), index);
                self.set_busy(node, true);
            }
            Event::Ready(node) => self.set_busy(node, false),
            // Each of its requests fails when a peer does; the first says it all.
            Event::PeerFailed(node, why) if self.peers.contains_key(&node) => {
                self.drop_peer(node, DropReason::Failed(why));
            }
            Event::PeerFailed(..) => {}
            Event::OriginEnded(why) => self.origin_ended(why),
            Event::OriginOffered => {
                self.origin.offered = true;
                self.origin.count += 1;
                self.origin.exhausted = false;
                self.origin.error = None;
            }
            Event::SearchedSite => self.searched_site = true,
            Event::SearchedNetwork => {
                self.searched_site = true;
                self.searched_network = true;
            }
            Event::Reading(reader, index) => {
                if self.readers.len() < MAX_READERS || self.readers.contains_key(&reader) {
                    self.readers.insert(reader, index);
                }
            }
            Event::ReaderGone(reader) => {
                self.readers.remove(&reader);
            }
        }
    }

    fn offered(&mut self, node: NodeId) {
        let may_return = match self.dropped.get(&node) {
            Some(dropped) => !dropped.for_good && dropped.times <= MAX_RETURNS,
            None => self.dropped.len() < MAX_DROPPED,
        };
        if !may_return || self.peers.len() >= MAX_PEERS || self.peers.contains_key(&node) {
            return;
        }
        self.peers.insert(node, Peer { chain: Chain::Asked, asked: 0, busy: false });
        match StateChain::from_bytes(self.ledger.digest(), self.ledger.map(), &[]) {
            // A blob of one chunk has no inner states, so there is nothing to claim.
            Ok(chain) => self.chain(node, Arc::new(chain)),
            Err(_) => self.effects.push(Effect::AskChain(node)),
        }
    }

    fn chain(&mut self, node: NodeId, chain: Arc<StateChain>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some((next, state, _)) = self.origin.reading
            && !self.ledger.has_chain()
            && chain.from(next) != state
        {
            peer.chain = Chain::Aside(chain);
            return;
        }
        peer.chain = Chain::Claimed;
        match self.ledger.claim(node, chain) {
            Claimed::Agrees | Claimed::Disputes => self.count_taken(),
            Claimed::Refuted => self.ban(node, Proof::FalseClaim),
            Claimed::Ignored => {
                self.drop_peer(node, DropReason::Failed("there are too many claims about this blob".into()));
            }
        }
    }

    fn arrived(&mut self, source: Source, index: ChunkIndex, links: &[Link]) {
        if self.asked.get(&index) != Some(&source) {
            self.effects.push(Effect::Discard(source, index));
            return;
        }
        self.release(source, index);
        if let Source::Peer(node) = source {
            self.set_busy(node, false);
        }
        let wanted = if self.ledger.has_chain() {
            match self.ledger.dispute() {
                Some((disputed, _)) if disputed == index => self.ledger.candidates(index),
                _ => self.ledger.chain().map(|chain| chain.link(index)).into_iter().collect(),
            }
        } else if source == Source::Origin {
            return self.streamed(index, links);
        } else {
            // The claim that it was asked for has been refuted meanwhile.
            self.effects.push(Effect::Discard(source, index));
            return;
        };
        match links.iter().find(|link| wanted.contains(link)) {
            Some(link) => {
                if let (Source::Origin, End::State(state)) = (source, link.to) {
                    self.origin_next(index, state);
                }
                self.keep(source, index, *link);
            }
            None => {
                self.effects.push(Effect::Discard(source, index));
                match source {
                    Source::Peer(node) => self.wrong_chunk(node, index),
                    Source::Origin => self.origin_contradicts(index),
                }
            }
        }
    }

    fn claim_those_aside(&mut self) {
        let aside: Vec<_> = self
            .peers
            .iter()
            .filter_map(|(node, peer)| match &peer.chain {
                Chain::Aside(chain) => Some((*node, chain.clone())),
                _ => None,
            })
            .collect();
        for (node, chain) in aside {
            self.chain(node, chain);
        }
    }

    fn kept(&mut self, source: Source, index: ChunkIndex, link: Link) {
        if self.stale.remove(&index) {
            self.count_taken();
            return;
        }
        if self.keeping.remove(&index) != Some(link) {
            return;
        }
        if matches!(source, Source::Peer(_)) {
            self.from_peers.insert(index);
        } else {
            self.from_peers.remove(index);
        }
        let refuted = self.ledger.record(index, link);
        for node in &refuted {
            self.ban(*node, Proof::FalseClaim);
        }
        if !refuted.is_empty() {
            self.count_taken();
        } else if !self.ledger.linked().contains(index) {
            self.taken.remove(index);
        }
    }

    fn keep(&mut self, source: Source, index: ChunkIndex, link: Link) {
        self.keeping.insert(index, link);
        self.taken.insert(index);
        self.effects.push(Effect::Keep(source, index, link));
    }

    fn wrong_chunk(&mut self, node: NodeId, index: ChunkIndex) {
        let map = self.ledger.map();
        let end_is_proven = map.next(index).is_none_or(|next| self.ledger.is_proven(next));
        if index == map.first() && end_is_proven {
            self.ban(node, Proof::WrongChunk(index));
        } else {
            self.drop_peer(node, DropReason::WrongChunk(index));
        }
    }

    fn drop_peer(&mut self, node: NodeId, reason: DropReason) {
        let for_good = !matches!(reason, DropReason::Failed(_));
        if self.forget_peer(node, &reason, for_good) {
            self.effects.push(Effect::Drop(node, reason));
        }
    }

    fn ban(&mut self, node: NodeId, proof: Proof) {
        self.forget_peer(node, &proof, true);
        self.effects.push(Effect::Ban(node, proof));
    }

    fn forget_peer(&mut self, node: NodeId, why: &dyn std::fmt::Display, for_good: bool) -> bool {
        let was_there = self.peers.remove(&node).is_some();
        let before = self.dropped.get(&node);
        let times = before.map_or(0, |dropped| dropped.times).saturating_add(u8::from(was_there));
        let for_good = for_good || before.is_some_and(|dropped| dropped.for_good);
        self.dropped.insert(node, Dropped { why: why.to_string(), times, for_good });
        let source = Source::Peer(node);
        let held: Vec<_> =
            self.asked.iter().filter(|(_, s)| **s == source).map(|(index, _)| *index).collect();
        for index in held {
            self.release(source, index);
        }
        self.ledger.drop_signer(node);
        self.count_taken();
        was_there
    }

    fn set_busy(&mut self, node: NodeId, busy: bool) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.busy = busy;
        }
    }

    /// A chunk is no longer asked of this source.
    fn release(&mut self, source: Source, index: ChunkIndex) {
        if self.asked.get(&index) != Some(&source) {
            return;
        }
        self.asked.remove(&index);
        if !self.ledger.linked().contains(index) && !self.keeping.contains_key(&index) {
            self.taken.remove(index);
        }
        if let Source::Peer(node) = source
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.asked = peer.asked.saturating_sub(1);
        }
    }

    fn count_taken(&mut self) {
        self.taken = self.ledger.linked().clone();
        for index in self.asked.keys().chain(self.keeping.keys()).chain(&self.stale) {
            self.taken.insert(*index);
        }
    }

    fn void(&mut self) {
        self.ledger.void();
        self.stale.extend(std::mem::take(&mut self.keeping).into_keys());
        self.from_peers = ChunkSet::empty(self.ledger.map());
        self.count_taken();
    }

    fn usable(&self) -> bool {
        self.peers.values().any(|peer| matches!(peer.chain, Chain::Claimed))
    }

    fn plan(&mut self) {
        if let Some((_, refuted)) = self.ledger.settle() {
            self.verified(refuted);
            return;
        }
        if self.usable() {
            // The origin is for what peers cannot give.
            self.stop_origin();
            match self.ledger.dispute() {
                Some((index, sides)) => self.settle_dispute(index, &sides),
                None => self.ask_peers(),
            }
        } else if self.origin.reading.is_none() && self.keeping.is_empty() && self.stale.is_empty() {
            self.turn_to_origin();
        }
    }

    fn verified(&mut self, mut refuted: Vec<NodeId>) {
        if let Some((true_chain, _)) = self.ledger.settle() {
            refuted.extend(self.peers.iter().filter_map(|(node, peer)| match &peer.chain {
                Chain::Aside(chain) if **chain != true_chain => Some(*node),
                _ => None,
            }));
        }
        for node in refuted {
            self.ban(node, Proof::FalseClaim);
        }
        self.stop_origin();
        self.over = true;
        self.effects.push(Effect::Verified);
    }

    fn settle_dispute(&mut self, index: ChunkIndex, sides: &[NodeId]) {
        if self.asked.contains_key(&index) || self.keeping.contains_key(&index) || self.stale.contains(&index)
        {
            return;
        }
        let ready = sides.iter().find(|node| self.peers.get(node).is_some_and(|peer| !peer.busy));
        if let Some(node) = ready.copied() {
            let mut starts: Vec<State> = Vec::new();
            for link in self.ledger.candidates(index) {
                if !starts.contains(&link.from) {
                    starts.push(link.from);
                }
            }
            self.ask(node, index, starts);
        }
    }

    fn ask(&mut self, node: NodeId, index: ChunkIndex, starts: Vec<State>) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.asked += 1;
        }
        self.asked.insert(index, Source::Peer(node));
        self.taken.insert(index);
        self.effects.push(Effect::Fetch(node, index, starts));
    }

    fn ask_peers(&mut self) {
        let Some(chain) = self.ledger.chain().cloned() else { return };
        let map = self.ledger.map();
        let chunk_len = u64::from(map.chunk_len());
        // Spread over the peers: each round gives each of them at most one chunk more.
        for depth in 0..PIPELINE {
            let ready: Vec<NodeId> = self
                .peers
                .iter()
                .filter(|(_, p)| matches!(p.chain, Chain::Claimed) && !p.busy && p.asked <= depth)
                .map(|(node, _)| *node)
                .collect();
            for node in ready {
                let waiting = (self.asked.len() + self.keeping.len()) as u64;
                if waiting > 0 && (waiting + 1) * chunk_len > IN_FLIGHT {
                    return;
                }
                let Some(index) = self.next_wanted() else { return };
                self.ask(node, index, vec![chain.from(index)]);
            }
        }
    }

    /// The last chunk first, since it proves the length; then what clients need next; then in order.
    fn next_wanted(&self) -> Option<ChunkIndex> {
        let map = self.ledger.map();
        if !self.taken.contains(map.last()) {
            return Some(map.last());
        }
        let readers = self.readers.values().filter_map(|at| self.taken.first_missing(*at));
        readers.min().or_else(|| self.taken.first_missing(map.first()))
    }

    /// Peers may have come back, or others may hold the blob by now; without any progress since the last search
    /// a further one would find no more.
    fn search_again(&mut self) {
        let here = self.ledger.linked().len();
        let fruitless = self.here_at_search.is_some_and(|before| here <= before);
        if fruitless || (here == 0 && self.dropped.is_empty()) {
            self.give_up();
            return;
        }
        self.here_at_search = Some(here);
        (self.searched_site, self.searched_network) = (false, false);
        self.effects.push(Effect::Search);
    }

    fn give_up(&mut self) {
        self.over = true;
        let dropped = std::mem::take(&mut self.dropped);
        self.effects.push(Effect::Failed(Failure {
            peers: dropped.into_iter().map(|(node, dropped)| (node, dropped.why)).collect(),
            origin: self.origin.error.take(),
            origin_digest: self.origin.wrong,
        }));
    }
}
