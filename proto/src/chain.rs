//! The state chain: chunks checked in any order against nothing but the blob's digest.
//!
//! SHA-2 compresses block by block, so the state after each chunk can be written down. Chunk `i` *links* if
//! compressing it from state `i` gives state `i + 1`; the last links if finishing from its state gives the
//! digest. When all link, the blob has the digest, because linking is hashing.

use sha2::block_api::{compress256, compress512};

use crate::{Algorithm, ChunkIndex, ChunkMap, Digest, TooLarge};

/// SHA-256's initial state: FIPS 180-4, section 5.3.3.
const INITIAL_256: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// SHA-512's initial state: FIPS 180-4, section 5.3.5.
const INITIAL_512: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

/// The compression state of a hash at a chunk border.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Of SHA-256.
    Sha256([u32; 8]),
    /// Of SHA-512.
    Sha512([u64; 8]),
}

impl State {
    /// The state before the first byte.
    pub const fn initial(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(INITIAL_256),
            Algorithm::Sha512 => Self::Sha512(INITIAL_512),
        }
    }

    /// The hash that this is a state of.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The state after the whole blocks at the start of `bytes`, and what is left of `bytes` behind them.
    pub fn compress(mut self, bytes: &[u8]) -> (Self, &[u8]) {
        let rest = match &mut self {
            Self::Sha256(state) => {
                let (blocks, rest) = bytes.as_chunks::<64>();
                compress256(state, blocks);
                rest
            }
            Self::Sha512(state) => {
                let (blocks, rest) = bytes.as_chunks::<128>();
                compress512(state, blocks);
                rest
            }
        };
        (self, rest)
    }

    /// The digest of a message of `size` bytes whose last bytes are `tail`, compressed from this state.
    pub fn finish(self, tail: &[u8], size: u64) -> Digest {
        let algorithm = self.algorithm();
        let block = algorithm.block_len();
        // The length field that ends the padding is an eighth of a block: FIPS 180-4, section 5.1.
        let length_field = block / 8;
        let (state, rest) = self.compress(tail);
        let mut padded = [0; 256];
        padded[..rest.len()].copy_from_slice(rest);
        padded[rest.len()] = 0x80;
        let end = (rest.len() + 1 + length_field).next_multiple_of(block);
        let bits = (u128::from(size) * 8).to_be_bytes();
        padded[end - length_field..end].copy_from_slice(&bits[16 - length_field..]);
        let (state, _) = state.compress(&padded[..end]);
        let mut raw = [0; 64];
        state.write(&mut raw);
        match Digest::from_bytes(algorithm, &raw[..algorithm.output_len()]) {
            Some(digest) => digest,
            None => unreachable!("the slice has the algorithm's own length"),
        }
    }

    /// Writes the state big-endian, as a digest would be written, to the start of `out`.
    fn write(&self, out: &mut [u8]) {
        match self {
            Self::Sha256(words) => {
                out.chunks_exact_mut(4).zip(words).for_each(|(o, w)| o.copy_from_slice(&w.to_be_bytes()));
            }
            Self::Sha512(words) => {
                out.chunks_exact_mut(8).zip(words).for_each(|(o, w)| o.copy_from_slice(&w.to_be_bytes()));
            }
        }
    }

    /// The state big-endian, as many bytes as [`Algorithm::output_len`] says.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut out = vec![0; self.algorithm().output_len()];
        self.write(&mut out);
        out
    }

    /// A state from [`State::to_bytes`]; `None` if the number of bytes is wrong.
    pub fn from_bytes(algorithm: Algorithm, raw: &[u8]) -> Option<Self> {
        if raw.len() != algorithm.output_len() {
            return None;
        }
        Some(match algorithm {
            Algorithm::Sha256 => {
                let mut words = [0; 8];
                raw.as_chunks().0.iter().zip(&mut words).for_each(|(c, w)| *w = u32::from_be_bytes(*c));
                Self::Sha256(words)
            }
            Algorithm::Sha512 => {
                let mut words = [0; 8];
                raw.as_chunks().0.iter().zip(&mut words).for_each(|(c, w)| *w = u64::from_be_bytes(*c));
                Self::Sha512(words)
            }
        })
    }
}

/// What a chunk leads to: the state at its end or, for the last chunk, the digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// The state at the border behind the chunk.
    State(State),
    /// The digest of the whole blob.
    Digest(Digest),
}

/// That compressing some bytes of a chunk from `from` gives `to`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Link {
    /// The state at the chunk's first byte.
    pub from: State,
    /// What is reached behind its last.
    pub to: End,
}

/// Bytes are not as many as their chunk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk {index} has {expected} bytes, {found} came")]
pub struct WrongLength {
    /// The chunk.
    pub index: ChunkIndex,
    /// Its length in bytes.
    pub expected: u32,
    /// How many bytes there were.
    pub found: usize,
}

/// Hashes one chunk from a state: this is where every byte that wherry takes in is hashed.
pub fn link(map: &ChunkMap, index: ChunkIndex, from: State, bytes: &[u8]) -> Result<Link, WrongLength> {
    let expected = map.len(index);
    if bytes.len() != expected as usize {
        return Err(WrongLength { index, expected, found: bytes.len() });
    }
    let to = if index == map.last() {
        End::Digest(from.finish(bytes, map.size()))
    } else {
        // Every chunk but the last is a whole number of blocks.
        End::State(from.compress(bytes).0)
    };
    Ok(Link { from, to })
}

/// The states at the inner chunk borders of one blob, with the digest they claim to reach.
///
/// A chain is only ever a claim until every chunk has linked to it: anybody can invent one.
#[derive(Clone, PartialEq, Eq)]
pub struct StateChain {
    digest: Digest,
    map: ChunkMap,
    states: Vec<State>,
}

/// Bytes are not as many as the states of this blob have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the states have {expected} bytes, not {found}")]
pub struct WrongChainLength {
    /// How many bytes it must have.
    pub expected: usize,
    /// How many there were.
    pub found: usize,
}

impl StateChain {
    /// Reads a chain from [`StateChain::to_bytes`].
    pub fn from_bytes(digest: Digest, map: ChunkMap, raw: &[u8]) -> Result<Self, WrongChainLength> {
        let width = digest.algorithm().output_len();
        let expected = (map.count() as usize - 1) * width;
        if raw.len() != expected {
            return Err(WrongChainLength { expected, found: raw.len() });
        }
        let states = raw
            .chunks_exact(width)
            .filter_map(|state| State::from_bytes(digest.algorithm(), state))
            .collect();
        Ok(Self { digest, map, states })
    }

    /// The chain that these links form; `None` unless they are one for each chunk, each leading to the next.
    pub fn from_links(digest: Digest, map: ChunkMap, links: &[Link]) -> Option<Self> {
        let closes = links.len() == map.count() as usize
            && links.first()?.from == State::initial(digest.algorithm())
            && links.last()?.to == End::Digest(digest)
            && links.windows(2).all(|pair| pair[0].to == End::State(pair[1].from));
        closes.then(|| Self { digest, map, states: links.iter().skip(1).map(|link| link.from).collect() })
    }

    /// The states one after the other, [`Algorithm::output_len`] bytes each.
    pub fn to_bytes(&self) -> Vec<u8> {
        let width = self.digest.algorithm().output_len();
        let mut out = vec![0; self.states.len() * width];
        out.chunks_exact_mut(width).zip(&self.states).for_each(|(out, state)| state.write(out));
        out
    }

    /// The digest that the chain claims to reach.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// How the blob is cut.
    pub const fn map(&self) -> ChunkMap {
        self.map
    }

    /// The state at a chunk's first byte.
    pub fn from(&self, index: ChunkIndex) -> State {
        match index.usize().checked_sub(1) {
            Some(before) => self.states[before],
            None => State::initial(self.digest.algorithm()),
        }
    }

    /// What a chunk leads to.
    pub fn to(&self, index: ChunkIndex) -> End {
        self.states.get(index.usize()).map_or(End::Digest(self.digest), |state| End::State(*state))
    }

    /// The link that this chain asks of a chunk.
    pub fn link(&self, index: ChunkIndex) -> Link {
        Link { from: self.from(index), to: self.to(index) }
    }

    /// The last chunk at whose first byte the two chains have different states, if they differ.
    pub fn last_difference(&self, other: &Self) -> Option<ChunkIndex> {
        let border = self.states.iter().zip(&other.states).rposition(|(a, b)| a != b)?;
        self.map.index(border as u32 + 1)
    }
}

impl std::fmt::Debug for StateChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chain of {:?}, {} chunks", self.digest, self.map.count())
    }
}

/// The hash of bytes that come in order, in pieces of any length.
struct Hashing {
    state: State,
    // Whole blocks are compressed at once, so at most one block less a byte waits here.
    waiting: Vec<u8>,
    taken: u64,
}

impl Hashing {
    const fn new(algorithm: Algorithm) -> Self {
        Self { state: State::initial(algorithm), waiting: Vec::new(), taken: 0 }
    }

    /// Takes bytes up to the next multiple of `border`, which is a multiple of the block length; says what is left of them,
    /// and whether the border is reached.
    fn up_to_border<'a>(&mut self, border: u64, bytes: &'a [u8]) -> (&'a [u8], bool) {
        let to_border = border - self.taken % border;
        let (now, later) = bytes.split_at((bytes.len() as u64).min(to_border) as usize);
        self.absorb(now);
        self.taken += now.len() as u64;
        (later, self.taken.is_multiple_of(border))
    }

    fn absorb(&mut self, mut bytes: &[u8]) {
        let block = self.state.algorithm().block_len();
        if !self.waiting.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(block - self.waiting.len()));
            self.waiting.extend_from_slice(head);
            bytes = rest;
            if self.waiting.len() < block {
                return;
            }
            self.state = self.state.compress(&self.waiting).0;
            self.waiting.clear();
        }
        let (state, rest) = self.state.compress(bytes);
        self.state = state;
        self.waiting.extend_from_slice(rest);
    }

    fn digest(&self) -> Digest {
        self.state.finish(&self.waiting, self.taken)
    }
}

/// Makes the chain of a blob whose bytes come in order, in pieces of any length.
pub struct ChainBuilder {
    map: ChunkMap,
    hashing: Hashing,
    states: Vec<State>,
}

/// The bytes that came are not as many as were announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{announced} bytes were announced, {found} came")]
pub struct WrongSize {
    /// What was announced.
    pub announced: u64,
    /// How many came, at least.
    pub found: u64,
}

impl ChainBuilder {
    /// Starts on a blob that is cut by `map`.
    pub fn new(algorithm: Algorithm, map: ChunkMap) -> Self {
        let states = Vec::with_capacity(map.count() as usize - 1);
        Self { map, hashing: Hashing::new(algorithm), states }
    }

    /// Takes the next bytes. More of them than the map announced are an error.
    pub fn update(&mut self, mut bytes: &[u8]) -> Result<(), WrongSize> {
        let found = self.hashing.taken + bytes.len() as u64;
        if found > self.map.size() {
            return Err(WrongSize { announced: self.map.size(), found });
        }
        while !bytes.is_empty() {
            let (later, is_border) = self.hashing.up_to_border(self.map.chunk_len().into(), bytes);
            bytes = later;
            if is_border && self.hashing.taken < self.map.size() {
                self.states.push(self.hashing.state);
            }
        }
        Ok(())
    }

    /// The digest and the chain, once all announced bytes have come.
    pub fn finish(self) -> Result<StateChain, WrongSize> {
        if self.hashing.taken != self.map.size() {
            return Err(WrongSize { announced: self.map.size(), found: self.hashing.taken });
        }
        Ok(StateChain { digest: self.hashing.digest(), map: self.map, states: self.states })
    }
}

/// Makes the chain of a blob whose length nobody knows before its end, as it is with uploads.
///
/// The chunks of a longer blob are a power of two times as long as those of a shorter one, so that every second state is
/// dropped when the blob turns out longer, and no byte is hashed twice.
pub struct OpenChain {
    // How the blob would be cut if it ended here.
    map: ChunkMap,
    hashing: Hashing,
    // One for each border so far, the last byte included where a chunk ends there.
    states: Vec<State>,
}

impl OpenChain {
    /// Starts on a blob.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { map: ChunkMap::EMPTY, hashing: Hashing::new(algorithm), states: Vec::new() }
    }

    /// How many bytes have come.
    pub const fn taken(&self) -> u64 {
        self.hashing.taken
    }

    /// Takes the next bytes. An error, and nothing taken, if the blob is longer than any that there may be.
    pub fn update(&mut self, mut bytes: &[u8]) -> Result<(), TooLarge> {
        let map = ChunkMap::new(self.hashing.taken + bytes.len() as u64)?;
        self.widen(map.chunk_len());
        self.map = map;
        while !bytes.is_empty() {
            let (later, is_border) = self.hashing.up_to_border(map.chunk_len().into(), bytes);
            bytes = later;
            if is_border {
                self.states.push(self.hashing.state);
            }
        }
        Ok(())
    }

    /// Keeps of the states those at multiples of a new chunk length.
    fn widen(&mut self, chunk_len: u32) {
        let factor = (chunk_len / self.map.chunk_len()) as usize;
        if factor > 1 {
            let mut border = 0_usize;
            self.states.retain(|_| {
                border += 1;
                border.is_multiple_of(factor)
            });
        }
    }

    /// The digest and the chain of the bytes that have come.
    pub fn finish(mut self) -> StateChain {
        // The end of the blob is no inner border.
        self.states.truncate(self.map.count() as usize - 1);
        StateChain { digest: self.hashing.digest(), map: self.map, states: self.states }
    }
}
