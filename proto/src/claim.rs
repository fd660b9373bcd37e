//! Signed claims about state chains. A claim binds its signer, so a false one is proof against it.

use std::fmt;

use bincode::{Decode, Encode};

use crate::identity::{BadSignature, NetworkId, NodeId, SecretKey, Signature};
use crate::membership::Certificate;
use crate::{ChunkMap, Digest, StateChain, StatePrefix, TooLarge, WrongChainLength};

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

/// One reading of a blob from an origin, in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Encode, Decode)]
pub struct Attempt {
    /// Who reads.
    pub signer: NodeId,
    /// Which of its readings of the blob: it never uses a number again for one.
    pub number: u64,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.number, self.signer)
    }
}

/// "In this attempt at reading an origin in order, these were the states at the first so many chunk borders."
///
/// The states travel beside it. The signature covers the rolling hash over all of them from the first on, so that one
/// authenticates everything that was read so far: whoever falls behind, or comes late, checks one signature and not one
/// for each chunk, and a leader signs when it is asked and not with every chunk. See [`StatePrefix`].
///
/// Two that sign different states at one border of one attempt are proof against the signer, however many each covers:
/// see [`SignedStates::contradicts`]. Anything else a leader may have had from the origin in good faith.
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
    /// How many states were known beside the initial one.
    pub known: u32,
    /// The rolling hash over them.
    pub states: Digest,
    /// Over the network and all of the above.
    pub signature: Signature,
}

/// What a leader signed of a blob that it reads, with everything that is needed to pass it on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedStates {
    /// The leader's claim.
    pub claim: StreamClaim,
    /// That the leader belongs.
    pub certificate: Certificate,
    /// The states that were signed, from the first on.
    pub prefix: StatePrefix,
}

impl SignedStates {
    /// Whether both are by one signer, on one attempt, and differ as far as both go: proof that it lies, if each claim has
    /// been [opened](StreamClaim::open) to its states.
    pub fn contradicts(&self, other: &Self) -> bool {
        let subject = |c: &StreamClaim| (c.signer, c.digest, c.size, c.attempt);
        subject(&self.claim) == subject(&other.claim) && !self.prefix.goes_with(&other.prefix)
    }
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
    /// A blob of the length does not have so many states.
    #[error("the claim covers {known} states, the blob has {most}")]
    TooMany {
        /// How many it covers.
        known: u32,
        /// How many there are.
        most: u32,
    },
}

/// Starts every signed message, so that no signature can be taken for one of another kind.
const HELD: &[u8] = b"wherry held claim 1\0";
const STREAM: &[u8] = b"wherry stream claim 2\0";

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

    /// Checks the signature, for which the states need not be there.
    pub fn verify(&self, network: &NetworkId) -> Result<(), ClaimError> {
        Ok(self.signer.verify(&self.message(network), &self.signature)?)
    }

    /// Checks the signature and that `states`, the bytes of a chain, are the ones that were signed.
    pub fn open(&self, network: &NetworkId, states: &[u8]) -> Result<StateChain, ClaimError> {
        self.verify(network)?;
        if Digest::sha256(states) != self.states {
            return Err(ClaimError::OtherStates);
        }
        Ok(StateChain::from_bytes(self.digest, ChunkMap::new(self.size)?, states)?)
    }
}

impl StreamClaim {
    /// Signs the states of a blob that is being read from an origin, as far as they are known. The digest is of the
    /// hash that these are states of, or nobody will believe the claim.
    pub fn sign(
        key: &SecretKey,
        network: &NetworkId,
        digest: Digest,
        attempt: u64,
        prefix: &StatePrefix,
    ) -> Self {
        let mut claim = Self {
            signer: key.node(),
            digest,
            size: prefix.map().size(),
            attempt,
            known: prefix.known(),
            states: prefix.hash(),
            signature: key.sign(b""),
        };
        claim.signature = key.sign(&claim.message(network));
        claim
    }

    /// Whose reading it is of, and which.
    pub const fn stream(&self) -> Attempt {
        Attempt { signer: self.signer, number: self.attempt }
    }

    fn message(&self, network: &NetworkId) -> Vec<u8> {
        let mut out = STREAM.to_vec();
        put_blob(&mut out, network, &self.digest, self.size);
        out.extend_from_slice(&self.attempt.to_be_bytes());
        out.extend_from_slice(&self.known.to_be_bytes());
        out.extend_from_slice(self.states.as_bytes());
        out
    }

    /// How many bytes the states have that this claim covers beyond the first `before`.
    pub fn states_len(&self, before: u32) -> Result<usize, ClaimError> {
        let most = ChunkMap::new(self.size)?.count() - 1;
        if self.known > most {
            return Err(ClaimError::TooMany { known: self.known, most });
        }
        let further = self.known.checked_sub(before).ok_or(ClaimError::OtherStates)?;
        Ok(further as usize * self.digest.algorithm().output_len())
    }

    /// Checks the signature, and that the states of `before` with the bytes of the next ones, `raw`, behind them are
    /// the ones that were signed; gives all of them.
    ///
    /// If they are [`ClaimError::OtherStates`], then either `raw` is false or the signer has contradicted itself:
    /// all states from the first on tell which.
    pub fn open(
        &self,
        network: &NetworkId,
        before: &StatePrefix,
        raw: &[u8],
    ) -> Result<StatePrefix, ClaimError> {
        self.signer.verify(&self.message(network), &self.signature)?;
        let expected = self.states_len(before.known())?;
        if raw.len() != expected {
            return Err(WrongChainLength { expected, found: raw.len() }.into());
        }
        if before.algorithm() != self.digest.algorithm() || before.map().size() != self.size {
            return Err(ClaimError::OtherStates);
        }
        let mut prefix = before.clone();
        prefix.append(raw);
        if prefix.hash() == self.states { Ok(prefix) } else { Err(ClaimError::OtherStates) }
    }
}
