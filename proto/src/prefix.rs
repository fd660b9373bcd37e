//! The states of a blob that is being read in order, as far as it has been read.

use crate::{Algorithm, ChunkIndex, ChunkMap, Digest, End, Link, State, StateChain};

/// The states s(1) … s(known) at the first chunk borders of a blob, with a rolling hash over them.
///
/// The hash h(0) is SHA-256 of nothing, and h(k) is SHA-256 of h(k − 1) followed by the bytes of s(k). Whoever has
/// some states and is told the next ones hashes those alone to know whether all of them are what was signed.
///
/// It takes 32 bytes a state, 64 under SHA-512: at most 8 MiB for the largest blob.
#[derive(Clone, PartialEq, Eq)]
pub struct StatePrefix {
    algorithm: Algorithm,
    map: ChunkMap,
    // The states one after the other, as `State::to_bytes` writes them.
    raw: Vec<u8>,
    hash: Digest,
}

impl StatePrefix {
    /// No state of this blob but the initial one.
    pub fn new(algorithm: Algorithm, map: ChunkMap) -> Self {
        Self { algorithm, map, raw: Vec::new(), hash: Digest::sha256(b"") }
    }

    /// All states of a chain.
    pub fn of(chain: &StateChain) -> Self {
        let mut all = Self::new(chain.digest().algorithm(), chain.map());
        all.append(&chain.to_bytes());
        all
    }

    /// The hash that these are states of.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// How the blob is cut.
    pub const fn map(&self) -> ChunkMap {
        self.map
    }

    /// How many states are known beside the initial one: 0 up to the number of chunks less one.
    pub const fn known(&self) -> u32 {
        // At most as many as there are chunks, since `push` takes no more.
        (self.raw.len() / self.algorithm.output_len()) as u32
    }

    /// The state at the first byte of the chunk of this number, if it is known; that of number 0 always is.
    pub fn at(&self, number: u32) -> Option<State> {
        let Some(before) = number.checked_sub(1) else { return Some(State::initial(self.algorithm)) };
        let width = self.algorithm.output_len();
        let start = (before as usize).checked_mul(width)?;
        State::from_bytes(self.algorithm, self.raw.get(start..start.checked_add(width)?)?)
    }

    /// Adds the next state; `false`, and no change, if all are known already or it is one of another hash.
    pub fn push(&mut self, state: State) -> bool {
        let takes = state.algorithm() == self.algorithm && self.known() + 1 < self.map.count();
        if takes {
            self.append(&state.to_bytes());
        }
        takes
    }

    /// Adds the next states, which `raw` has one after the other. They must be whole, and no more than there can be.
    pub(crate) fn append(&mut self, raw: &[u8]) {
        for state in raw.chunks_exact(self.algorithm.output_len()) {
            self.hash = roll(&self.hash, state);
        }
        self.raw.extend_from_slice(raw);
    }

    /// The link that these states ask of a chunk of the blob with this digest; `None` while one of the two states is
    /// unknown.
    pub fn link(&self, digest: Digest, index: ChunkIndex) -> Option<Link> {
        let from = self.at(index.get())?;
        let to = match self.map.next(index) {
            Some(next) => End::State(self.at(next.get())?),
            None if index == self.map.last() && digest.algorithm() == self.algorithm => End::Digest(digest),
            None => return None,
        };
        Some(Link { from, to })
    }

    /// Whether the states are the same as far as both are known.
    pub fn goes_with(&self, other: &Self) -> bool {
        let both = self.raw.len().min(other.raw.len());
        self.raw.get(..both) == other.raw.get(..both)
    }

    /// The rolling hash over all known states.
    pub const fn hash(&self) -> Digest {
        self.hash
    }

    /// Forgets all states behind s(known). The hash is made anew from the first on: what was read in order is seldom
    /// taken back, and to keep every hash would double the memory.
    pub fn truncate(&mut self, known: u32) {
        if known >= self.known() {
            return;
        }
        let mut rest = std::mem::take(&mut self.raw);
        rest.truncate(known as usize * self.algorithm.output_len());
        self.hash = Digest::sha256(b"");
        self.append(&rest);
    }

    /// The bytes of s(known + 1) and all later states, for whoever knows as many; none if there are none.
    pub fn states_from(&self, known: u32) -> Vec<u8> {
        let start = (known as usize).saturating_mul(self.algorithm.output_len());
        self.raw.get(start..).unwrap_or_default().to_vec()
    }
}

fn roll(hash: &Digest, state: &[u8]) -> Digest {
    let mut both = [0; 96];
    let (before, rest) = both.split_at_mut(32);
    before.copy_from_slice(hash.as_bytes());
    rest[..state.len()].copy_from_slice(state);
    Digest::sha256(&both[..32 + state.len()])
}

impl std::fmt::Debug for StatePrefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} states", self.known(), self.map.count() - 1)
    }
}
