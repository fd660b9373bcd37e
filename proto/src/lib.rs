//! What wherry nodes say to each other: digests, chunks, state chains, messages and membership.
//!
//! This crate does no I/O and has no clock: bytes and times come in as arguments, so every part can be
//! driven by property tests, fuzzers and a simulation exactly as by the daemon.

mod digest;

pub use digest::{Algorithm, Digest, DigestError};
