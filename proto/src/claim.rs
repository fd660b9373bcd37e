//! Signed claims about state chains. A claim binds its signer, so a false one is proof against it.

use bincode::{Decode, Encode};

use crate::identity::{BadSignature, NetworkId, NodeId, SecretKey, Signature};
use crate::{ChunkIndex, ChunkMap, Digest, State, StateChain, TooLarge, WrongChainLength};

/// "I have verified the whole of this blob, and this is its chain."
///
/// The states travel beside it, in pages; the signature covers their hash. Whoever relays a claim passes it on
/// unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct HeldClaim {
    /// Who says so.
    pub signer: NodeId,
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 over the chain's bytes.
    pub states: Digest,
    /// Over the network and all of the above.
    pub signature: Signature,
}

/// "In this attempt at reading an origin in order, this was the state at that chunk's first byte."
///
/// Two different signatures on one (attempt, chunk) are proof against the signer; anything else a leader may
/// have had from the origin in good faith.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct StreamClaim {
    /// Who says so.
    pub signer: NodeId,
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Which reading, numbered by the signer; it never uses a number again for the blob.
    pub attempt: u64,
    /// The chunk's number.
    pub chunk: u32,
    /// The state before the chunk, big-endian.
    pub state: Vec<u8>,
    /// Over the network and all of the above.
    pub signature: Signature,
}

/// Why a claim is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The signature is false: whoever passed the claim on is at fault, not the signer that it names.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// It names a length beyond the limit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The states are not as many as a blob of the length has.
    #[error(transparent)]
    Length(#[from] WrongChainLength),
    /// The states are not those that were signed: whoever passed them on is at fault.
    #[error("the states that came are not those that were signed")]
    OtherStates,
    /// The chunk's number or the state's length is impossible for the blob.
    #[error("the claim names a chunk or a state that the blob cannot have")]
    Impossible,
}

/// Starts every signed message, so that no signature can be taken for one of another kind.
const HELD: &[u8] = b"wherry held claim 1\0";
const STREAM: &[u8] = b"wherry stream claim 1\0";

fn put_blob(out: &mut Vec<u8>, network: &NetworkId, digest: &Digest, size: u64) {
    out.extend_from_slice(network.public_key());
    out.push(digest.algorithm() as u8);
    out.extend_from_slice(digest.as_bytes());
    out.extend_from_slice(&size.to_be_bytes());
}

impl HeldClaim {
    /// Signs that the blob of this chain has been verified. Only for blobs that are in the store.
    pub fn sign(key: &SecretKey, network: &NetworkId, chain: &StateChain) -> Self {
        let mut claim = Self {
            signer: key.node(),
            digest: chain.digest(),
            size: chain.map().size(),
            states: Digest::sha256(&chain.to_bytes()),
            signature: key.sign(b""),
        };
        claim.signature = key.sign(&claim.message(network));
        claim
    }

    fn message(&self, network: &NetworkId) -> Vec<u8> {
        let mut out = HELD.to_vec();
        put_blob(&mut out, network, &self.digest, self.size);
        out.extend_from_slice(self.states.as_bytes());
        out
    }

    /// Checks the signature and that `states`, the bytes of a chain, are the ones that were signed.
    pub fn open(&self, network: &NetworkId, states: &[u8]) -> Result<StateChain, ClaimError> {
        self.signer.verify(&self.message(network), &self.signature)?;
        if Digest::sha256(states) != self.states {
            return Err(ClaimError::OtherStates);
        }
        Ok(StateChain::from_bytes(self.digest, ChunkMap::new(self.size)?, states)?)
    }
}

impl StreamClaim {
    /// Signs the state before a chunk of a blob that is being read from an origin.
    pub fn sign(
        key: &SecretKey,
        network: &NetworkId,
        blob: (&Digest, &ChunkMap),
        attempt: u64,
        chunk: ChunkIndex,
        state: State,
    ) -> Self {
        let mut claim = Self {
            signer: key.node(),
            digest: *blob.0,
            size: blob.1.size(),
            attempt,
            chunk: chunk.get(),
            state: state.to_bytes(),
            signature: key.sign(b""),
        };
        claim.signature = key.sign(&claim.message(network));
        claim
    }

    fn message(&self, network: &NetworkId) -> Vec<u8> {
        let mut out = STREAM.to_vec();
        put_blob(&mut out, network, &self.digest, self.size);
        out.extend_from_slice(&self.attempt.to_be_bytes());
        out.extend_from_slice(&self.chunk.to_be_bytes());
        out.extend_from_slice(&self.state);
        out
    }

    /// Checks the signature; gives the chunk and the state before it.
    pub fn open(&self, network: &NetworkId) -> Result<(ChunkIndex, State), ClaimError> {
        self.signer.verify(&self.message(network), &self.signature)?;
        let chunk = ChunkMap::new(self.size)?.index(self.chunk).ok_or(ClaimError::Impossible)?;
        let state = State::from_bytes(self.digest.algorithm(), &self.state).ok_or(ClaimError::Impossible)?;
        Ok((chunk, state))
    }

    /// Whether both claims are by one signer, on one attempt and chunk, and differ: proof that it lies.
    pub fn contradicts(&self, other: &Self) -> bool {
        let subject = |c: &Self| (c.signer, c.digest, c.size, c.attempt, c.chunk);
        subject(self) == subject(other) && self.state != other.state
    }
}
