//! What wherry nodes say to each other: digests, chunks, state chains, messages and membership.
//!
//! This crate does no I/O and has no clock: bytes and times come in as arguments, so every part can be
//! driven by property tests, fuzzers and a simulation exactly as by the daemon.

mod chain;
mod chunk;
mod claim;
mod digest;
mod identity;
mod ledger;

pub use chain::{ChainBuilder, End, Link, State, StateChain, WrongChainLength, WrongLength, WrongSize, link};
pub use chunk::{ChunkIndex, ChunkMap, ChunkSet, MAX_BLOB_LEN, MAX_CHUNK_LEN, TooLarge};
pub use claim::{ClaimError, HeldClaim, StreamClaim};
pub use digest::{Algorithm, Digest, DigestError};
pub use identity::{BadSignature, IdError, NetworkId, NodeId, SecretKey, Signature};
pub use ledger::{Claimed, Ledger, MAX_RIVALS, MAX_SIGNERS};
