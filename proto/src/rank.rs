//! Rendezvous hashing: who comes first for a blob, so that all nodes agree on it without a word (Thaler and Ravishankar,
//! 1998).

use crate::{Digest, NodeId};

/// A node's rank for a blob: the same wherever it is computed, and another one for each blob. The highest comes first.
pub fn rank(digest: &Digest, node: &NodeId) -> u64 {
    first_64_bits(&[digest.as_bytes(), node.public_key()])
}

/// How much a node is one that `me` is to know, where it cannot know all: other ones for each node.
pub fn lot(me: &NodeId, node: &NodeId) -> u64 {
    first_64_bits(&[me.public_key(), node.public_key()])
}

fn first_64_bits(parts: &[&[u8]]) -> u64 {
    let hash = Digest::sha256(&parts.concat());
    hash.as_bytes().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
