//! Blobs without bytes: what a chunk links to is known all the same.
//!
//! The states of a blob are invented, so that gigabytes cost nothing; a chunk that is sent is a number that says whose
//! invention it is. From the true state, the true chunk leads to the next true state. From any other one, and with
//! anybody else's bytes, a chunk leads to a state that nothing else leads to, as hashing would have it.

use std::sync::Arc;

use wherry_proto::{Algorithm, ChunkIndex, ChunkMap, Digest, End, Link, State, StateChain, StatePrefix};

/// Whose bytes a chunk has: [`TRUE`], or the number of the liar who made them up.
pub(super) type Content = u32;

/// The bytes that the blob really has.
pub(super) const TRUE: Content = 0;

/// A blob that is carried.
pub(super) struct Blob {
    digest: Digest,
    map: ChunkMap,
    chain: Arc<StateChain>,
}

fn invented(parts: &[&[u8]]) -> Digest {
    Digest::sha256(&parts.concat())
}

fn state(digest: &Digest) -> State {
    match State::from_bytes(Algorithm::Sha256, digest.as_bytes()) {
        Some(state) => state,
        None => unreachable!("a SHA-256 digest has as many bytes as a state"),
    }
}

impl Blob {
    /// A blob of `size` bytes, another one for each seed. The size is at most [`wherry_proto::MAX_BLOB_LEN`].
    pub(super) fn new(size: u64, seed: u64) -> Self {
        let map = match ChunkMap::new(size) {
            Ok(map) => map,
            Err(error) => unreachable!("{error}"),
        };
        let digest = invented(&[b"blob", &seed.to_le_bytes(), &size.to_le_bytes()]);
        let states: Vec<u8> = (1..map.count())
            .flat_map(|number| {
                invented(&[b"state", digest.as_bytes(), &number.to_le_bytes()]).as_bytes().to_vec()
            })
            .collect();
        let chain = match StateChain::from_bytes(digest, map, &states) {
            Ok(chain) => Arc::new(chain),
            Err(error) => unreachable!("{error}"),
        };
        Self { digest, map, chain }
    }

    /// Its digest.
    pub(super) const fn digest(&self) -> Digest {
        self.digest
    }

    /// How it is cut.
    pub(super) const fn map(&self) -> ChunkMap {
        self.map
    }

    /// Its chain.
    pub(super) const fn chain(&self) -> &Arc<StateChain> {
        &self.chain
    }

    /// What hashing a chunk with this content from a state gives.
    pub(super) fn link(&self, index: ChunkIndex, from: State, content: Content) -> Link {
        if content == TRUE && from == self.chain.from(index) {
            return self.chain.link(index);
        }
        let reached = invented(&[&from.to_bytes(), &index.get().to_le_bytes(), &content.to_le_bytes()]);
        let to = if index == self.map.last() { End::Digest(reached) } else { End::State(state(&reached)) };
        Link { from, to }
    }

    /// The states that a liar's bytes lead through, `known` of them: they link, and do not close.
    pub(super) fn invent(&self, known: u32, content: Content) -> StatePrefix {
        let mut prefix = StatePrefix::new(Algorithm::Sha256, self.map);
        let mut at = State::initial(Algorithm::Sha256);
        for index in self.map.iter().take(known as usize) {
            let End::State(next) = self.link(index, at, content).to else { break };
            if !prefix.push(next) {
                break;
            }
            at = next;
        }
        prefix
    }

    /// A chain that a holder made up: before the chunk of number `fork` it has states of the liar's own, from there on
    /// the true ones. No bytes lead from the one to the other.
    pub(super) fn invent_chain(&self, fork: u32, content: Content) -> StateChain {
        let mut states = self.chain.to_bytes();
        let false_ones = self.invent(fork.clamp(1, self.map.count()), content).states_from(0);
        let len = false_ones.len().min(states.len());
        states[..len].copy_from_slice(&false_ones[..len]);
        match StateChain::from_bytes(self.digest, self.map, &states) {
            Ok(chain) => chain,
            Err(error) => unreachable!("{error}"),
        }
    }
}
