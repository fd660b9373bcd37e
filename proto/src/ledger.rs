//! What is known of one blob while its chunks come in: which have linked, which are proven, who claims what,
//! and whose claim is refuted.
//!
//! The ledger never sees bytes: it is told the [`Link`] that hashing a chunk gave. It blames nobody without
//! proof: a claim is refuted only by a chunk that leads from another state to one which the claim itself
//! contains. Both states reaching it would be a free-start collision of SHA-2, so of two such claims one is
//! false, and the side whose chunk has been seen is the true one.

use std::sync::Arc;

use crate::{ChunkIndex, ChunkMap, ChunkSet, Digest, End, Link, NodeId, State, StateChain, StatePrefix};

/// How many different chains are weighed against each other for one blob. Honest claims are all equal, so every
/// further one comes from a liar.
pub const MAX_RIVALS: usize = 16;

/// How many signers of one chain are remembered: the rest would add nothing.
pub const MAX_SIGNERS: usize = 64;

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// Its chain is the only one at hand, or equals one that is.
    Agrees,
    /// It contradicts another claim: [`Ledger::dispute`] names the chunk that decides.
    Disputes,
    /// A chunk that is here proves it false.
    Refuted,
    /// It is about another blob, or there are too many claims already.
    Ignored,
}

#[derive(Debug, Clone)]
struct Rival {
    chain: Arc<StateChain>,
    // All who signed it: a refuted chain is held against each of them, also when it no longer is a source.
    signers: Vec<Signer>,
}

#[derive(Debug, Clone, Copy)]
struct Signer {
    node: NodeId,
    is_source: bool,
}

impl Rival {
    fn sources(&self) -> impl Iterator<Item = NodeId> {
        self.signers.iter().filter(|signer| signer.is_source).map(|signer| signer.node)
    }

    fn is_orphan(&self) -> bool {
        self.sources().next().is_none()
    }

    fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.signers.iter().map(|signer| signer.node)
    }
}

/// The state of one transfer's evidence. See the module's description.
#[derive(Debug, Clone)]
pub struct Ledger {
    digest: Digest,
    map: ChunkMap,
    links: Vec<Option<Link>>,
    linked: ChunkSet,
    // Chunks before this number lead from the initial state to each other.
    front: u32,
    // Chunks from this number on lead to each other and to the digest.
    proven: u32,
    // The chain of a blob that was verified before: it is at hand, and beyond doubt.
    known: Option<Arc<StateChain>>,
    // Without it the first is the chain at hand.
    rivals: Vec<Rival>,
    // What a reading in order gave, this node's or a leader's: it counts while there is no chain at hand.
    stream: Arc<StatePrefix>,
    // Counts up whenever the set of linked chunks may have changed.
    revision: u64,
}

impl Ledger {
    /// Nothing is known of this blob yet.
    pub fn new(digest: Digest, map: ChunkMap) -> Self {
        Self {
            digest,
            map,
            links: vec![None; map.count() as usize],
            linked: ChunkSet::empty(map),
            front: 0,
            proven: map.count(),
            known: None,
            rivals: Vec::new(),
            stream: Arc::new(StatePrefix::new(digest.algorithm(), map)),
            revision: 0,
        }
    }

    /// The blob's digest.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// How the blob is cut.
    pub const fn map(&self) -> ChunkMap {
        self.map
    }

    /// Takes in the chain of a blob that this node has verified before and of which it has lost chunks since. Whatever
    /// contradicts it is false; chunks that are here and do not link to it are forgotten.
    pub fn trust(&mut self, chain: Arc<StateChain>) {
        if chain.digest() != self.digest || chain.map() != self.map {
            return;
        }
        for index in self.map.iter() {
            self.links[index.usize()].take_if(|link| *link != chain.link(index));
        }
        self.rivals.retain(|rival| rival.chain == chain);
        self.known = Some(chain);
        self.relink();
    }

    /// Whether the chain at hand is beyond doubt.
    pub const fn is_certain(&self) -> bool {
        self.known.is_some()
    }

    /// The chunks that link to the chain at hand or, where there is none, to the stream; and those that are proven.
    pub const fn linked(&self) -> &ChunkSet {
        &self.linked
    }

    /// Counts up whenever [`Ledger::linked`] may have changed.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether this and every later chunk are here and lead to the digest.
    pub const fn is_proven(&self, index: ChunkIndex) -> bool {
        index.get() >= self.proven
    }

    /// Whether all chunks are here and lead to the digest, which is the hash function itself.
    pub fn is_verified(&self) -> bool {
        self.proven == 0 && self.front == self.map.count()
    }

    /// How many chunks at the start lead from the initial state to each other.
    pub const fn front(&self) -> u32 {
        self.front
    }

    /// The states that a reading in order gave, as far as it has come: those that were [adopted](Self::adopt), and
    /// those that chunks which are here lead to from there.
    pub const fn stream(&self) -> &Arc<StatePrefix> {
        &self.stream
    }

    /// Goes on with the states that a leader gave. What is here and leads from one of them to the next is linked.
    pub fn adopt(&mut self, stream: Arc<StatePrefix>) {
        if stream.map() == self.map {
            self.stream = stream;
            self.relink();
        }
    }

    /// The link that a chunk must have, by the chain at hand or else by the stream; `None` while neither tells.
    pub fn expected(&self, index: ChunkIndex) -> Option<Link> {
        match self.chain() {
            Some(chain) => Some(chain.link(index)),
            None => self.stream.link(self.digest, index),
        }
    }

    /// The chunks that are here, whatever they link to.
    pub fn links(&self) -> impl Iterator<Item = (ChunkIndex, Link)> {
        self.map.iter().filter_map(|index| Some((index, self.links[index.usize()]?)))
    }

    /// Whether there is a chain to check chunks against.
    pub const fn has_chain(&self) -> bool {
        self.known.is_some() || !self.rivals.is_empty()
    }

    /// The chain at hand.
    pub fn chain(&self) -> Option<&Arc<StateChain>> {
        self.known.as_ref().or_else(|| self.rivals.first().map(|rival| &rival.chain))
    }

    /// Whether anybody who may still serve as a source has signed the chain at hand, or nobody need.
    pub fn has_signer(&self) -> bool {
        self.known.is_some() || self.rivals.iter().any(|rival| !rival.is_orphan())
    }

    /// Takes in a claim whose signature was checked.
    pub fn claim(&mut self, signer: NodeId, chain: Arc<StateChain>) -> Claimed {
        if chain.digest() != self.digest || chain.map() != self.map {
            return Claimed::Ignored;
        }
        let is_false = self.known.as_ref().is_some_and(|known| *known != chain);
        if is_false || self.links().any(|(index, link)| refutes(index, link, &chain)) {
            return Claimed::Refuted;
        }
        if let Some(rival) = self.rivals.iter_mut().find(|rival| rival.chain == chain) {
            if let Some(known) = rival.signers.iter_mut().find(|known| known.node == signer) {
                known.is_source = true;
            } else if rival.signers.len() < MAX_SIGNERS {
                rival.signers.push(Signer { node: signer, is_source: true });
            } else {
                return Claimed::Ignored;
            }
            // Nobody could serve it until now, perhaps, while another one is at hand that nobody can.
            if self.rivals.first().is_some_and(Rival::is_orphan) {
                self.rivals.sort_by_key(Rival::is_orphan);
                self.relink();
            }
            return Claimed::Agrees;
        }
        if self.rivals.len() == MAX_RIVALS {
            return Claimed::Ignored;
        }
        self.rivals.push(Rival { chain, signers: vec![Signer { node: signer, is_source: true }] });
        self.rivals.sort_by_key(Rival::is_orphan);
        self.relink();
        if self.rivals.len() > 1 { Claimed::Disputes } else { Claimed::Agrees }
    }

    /// The links that chunk may have: one for each different claim about it.
    pub fn candidates(&self, index: ChunkIndex) -> Vec<Link> {
        let mut out: Vec<Link> = self.known.iter().map(|known| known.link(index)).collect();
        for rival in &self.rivals {
            let link = rival.chain.link(index);
            if !out.contains(&link) {
                out.push(link);
            }
        }
        out
    }

    /// The chunk that decides between the chain at hand and another, and which sources have signed either.
    ///
    /// Behind it both agree; whoever is right can serve it and whoever is wrong cannot.
    pub fn dispute(&self) -> Option<(ChunkIndex, Vec<NodeId>)> {
        let (hand, other) = (self.rivals.first()?, self.rivals.get(1)?);
        let index = hand.chain.last_difference(&other.chain)?;
        Some((index, hand.sources().chain(other.sources()).collect()))
    }

    /// Puts the chains first of which one of these sources has signed: where several contradict each other, what is at hand and
    /// is [disputed](Ledger::dispute) is to be such as can be had now.
    pub fn prefer(&mut self, is_preferred: impl Fn(&NodeId) -> bool) {
        let before = self.rivals.first().map(|rival| rival.chain.clone());
        self.rivals.sort_by_key(|rival| {
            let is_preferred = rival.sources().any(|node| is_preferred(&node));
            (rival.is_orphan(), !is_preferred)
        });
        if self.rivals.first().map(|rival| &rival.chain) != before.as_ref() {
            self.relink();
        }
    }

    /// Takes in that a chunk with this link is here. Returns the signers whose claims it refutes.
    pub fn record(&mut self, index: ChunkIndex, link: Link) -> Vec<NodeId> {
        if self.is_proven(index) || self.known.as_ref().is_some_and(|known| known.link(index) != link) {
            return Vec::new();
        }
        self.links[index.usize()] = Some(link);
        let mut refuted = Vec::new();
        self.rivals.retain(|rival| {
            let false_claim = refutes(index, link, &rival.chain);
            if false_claim {
                refuted.extend(rival.nodes());
            }
            !false_claim
        });
        if refuted.is_empty() && self.rivals.len() <= 1 {
            self.extend(index);
        } else {
            self.relink();
        }
        refuted
    }

    /// A node no longer serves as a source. What it claimed stays a claim until something contradicts it.
    pub fn drop_signer(&mut self, node: NodeId) {
        for rival in &mut self.rivals {
            rival.signers.iter_mut().filter(|s| s.node == node).for_each(|s| s.is_source = false);
        }
        // A chain that somebody can still serve goes before one that nobody can.
        self.rivals.sort_by_key(Rival::is_orphan);
        self.relink();
    }

    /// Forgets the chains that nobody can serve any more: a source contradicts them, and nothing can decide.
    pub fn forget_orphans(&mut self) {
        self.rivals.retain(|rival| !rival.is_orphan());
        self.relink();
    }

    /// Forgets the stream and every chunk that is neither proven nor links to a chain beyond doubt: read in order, they
    /// did not reach the digest.
    pub fn void(&mut self) {
        if self.known.is_none() {
            self.links[..self.proven as usize].fill(None);
        }
        self.stream = Arc::new(StatePrefix::new(self.digest.algorithm(), self.map));
        self.relink();
    }

    /// The verified blob's chain, and the signers of every claim that it refutes; `None` before that.
    pub fn settle(&self) -> Option<(StateChain, Vec<NodeId>)> {
        if !self.is_verified() {
            return None;
        }
        let links: Option<Vec<Link>> = self.links.iter().copied().collect();
        let chain = StateChain::from_links(self.digest, self.map, &links?)?;
        let false_claims = self.rivals.iter().filter(|rival| *rival.chain != chain);
        let refuted = false_claims.flat_map(Rival::nodes).collect();
        Some((chain, refuted))
    }

    fn front_state(&self) -> State {
        match self.front.checked_sub(1).and_then(|last| self.links[last as usize]) {
            Some(Link { to: End::State(state), .. }) => state,
            _ => State::initial(self.digest.algorithm()),
        }
    }

    /// Moves the borders of what is known to be connected; `front` and `proven` must be true so far.
    fn advance(&mut self) {
        while let Some(link) = self.links.get(self.front as usize).copied().flatten()
            && link.from == self.front_state()
        {
            self.front += 1;
        }
        while let Some(before) = self.proven.checked_sub(1)
            && let Some(link) = self.links[before as usize]
        {
            let expected = match self.links.get(self.proven as usize) {
                Some(behind) => behind.map(|behind| End::State(behind.from)),
                None => Some(End::Digest(self.digest)),
            };
            if expected != Some(link.to) {
                break;
            }
            self.proven = before;
        }
    }

    /// Takes into the stream what chunks that are here add to it.
    fn grow(&mut self) {
        while let Some(index) = self.map.index(self.stream.known())
            && let Some(Link { from, to: End::State(to) }) = self.links[index.usize()]
            && self.stream.at(index.get()) == Some(from)
            && Arc::make_mut(&mut self.stream).push(to)
        {}
    }

    /// Whether a chunk's link is the one that it must have.
    fn agrees(&self, index: ChunkIndex) -> bool {
        self.links[index.usize()].is_some_and(|link| self.expected(index) == Some(link))
    }

    /// What one more chunk changes while there is at most one chain.
    fn extend(&mut self, index: ChunkIndex) {
        self.revision += 1;
        let (proven, known) = (self.proven, self.stream.known());
        if index.get() < self.front {
            self.relink();
            return;
        }
        self.advance();
        self.grow();
        // The chunk behind the last state that came to be known may be the last one, which needs no further state.
        let grown = if known < self.stream.known() { known..self.stream.known() + 1 } else { 0..0 };
        let fresh = grown.chain(self.proven..proven).filter_map(|number| self.map.index(number));
        for index in fresh.chain([index]).collect::<Vec<_>>() {
            if self.agrees(index) || self.is_proven(index) {
                self.linked.insert(index);
            } else {
                self.linked.remove(index);
            }
        }
    }

    /// Works everything out anew.
    fn relink(&mut self) {
        self.revision += 1;
        self.front = 0;
        self.proven = self.map.count();
        self.advance();
        self.grow();
        self.linked = ChunkSet::empty(self.map);
        for index in self.map.iter() {
            if self.links[index.usize()].is_some() && (self.agrees(index) || self.is_proven(index)) {
                self.linked.insert(index);
            }
        }
    }
}

/// Whether bytes with this link cannot exist if the chain is true.
fn refutes(index: ChunkIndex, link: Link, chain: &StateChain) -> bool {
    link.to == chain.to(index) && link.from != chain.from(index)
}
