//! Blobs with their chains, true and invented.

#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

pub mod site;

use wherry_proto::{Algorithm, ChainBuilder, ChunkMap, State, StateChain};

/// The chunk length of blobs as small as these, in bytes.
pub const CHUNK: usize = 32 << 10;

/// Bytes that differ with the seed.
pub fn blob(size: usize, seed: u64) -> Vec<u8> {
    (0..size).map(|i| (i as u64 + 7).wrapping_mul(seed | 1).to_le_bytes()[2]).collect()
}

/// The chain of a blob.
pub fn true_chain(bytes: &[u8]) -> StateChain {
    let mut builder = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(bytes.len() as u64).unwrap());
    builder.update(bytes).unwrap();
    builder.finish().unwrap()
}

/// A chain that is invented up to a fork, for the digest of the true one, with bytes that link to it up to there.
pub fn invent(truth: &[u8], chain: &StateChain, fork: u32, seed: u64) -> (StateChain, Vec<u8>) {
    let fork = fork.min(chain.map().count() - 1) as usize;
    let mut bytes = truth.to_vec();
    let lies = blob(fork * CHUNK, seed ^ 0x9e37_79b9);
    bytes[..lies.len()].copy_from_slice(&lies);
    let mut states = chain.to_bytes();
    let mut state = State::initial(Algorithm::Sha256);
    for border in 0..fork {
        state = state.compress(&bytes[border * CHUNK..(border + 1) * CHUNK]).0;
        states[border * 32..(border + 1) * 32].copy_from_slice(&state.to_bytes());
    }
    (StateChain::from_bytes(chain.digest(), chain.map(), &states).unwrap(), bytes)
}
