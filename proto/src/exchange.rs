//! What the two sides of an exchange say: chains and chunks, and what becomes of a blob while it arrives.

use bincode::{Decode, Encode};

use crate::claim::{Attempt, HeldClaim, StreamClaim};
use crate::frame::{List, Message};
use crate::membership::Certificate;
use crate::{ChunkIndex, ChunkMap, Digest};

/// A blob as the exchange names it: transfers are keyed by both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct BlobName {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// What the taking side of an exchange sends.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Request {
    /// The claim and state chain of a held blob.
    Chain {
        /// Chosen by the asker; the response bears it.
        id: u32,
        /// The blob.
        blob: BlobName,
        /// The SHA-256 of the chain's bytes that the asker has already: if the claim is on the same, none follow.
        known: Option<Digest>,
        /// Whether no states need follow if many ask for them: the asker then takes them from others by
        /// [`Request::ClaimedStates`].
        spares: bool,
    },
    /// One chunk of a blob that is held or arrives.
    Chunk {
        /// Chosen by the asker; the response bears it.
        id: u32,
        /// The blob.
        blob: BlobName,
        /// The chunk's number.
        index: u32,
    },
    /// That a request is not needed any more. Its response may come all the same.
    Cancel {
        /// That of the request.
        id: u32,
    },
    /// To be told, by [`Response::Update`], what becomes of a blob, until [`Request::Cancel`] or [`Role::Gone`].
    Follow {
        /// Chosen by the asker; the updates bear it.
        id: u32,
        /// The blob.
        blob: BlobName,
    },
    /// The states of a blob that arrives, with the leader's signature.
    States {
        /// Chosen by the asker; the response bears it.
        id: u32,
        /// The blob.
        blob: BlobName,
        /// Which reading of it.
        attempt: Attempt,
        /// How many states the asker has beside the initial one.
        from: u32,
    },
    /// That a chunk which came does not link, so that its giver may look at its disk. There is no answer.
    Unlinked {
        /// The blob.
        blob: BlobName,
        /// The chunk's number.
        index: u32,
    },
    /// The states of a chain that a holder has claimed, from whoever has them: they are right if they have this digest.
    ClaimedStates {
        /// Chosen by the asker; the response bears it.
        id: u32,
        /// The blob.
        blob: BlobName,
        /// What the claim says of the states: SHA-256 over their bytes.
        states: Digest,
    },
}

impl Message for Request {
    const NAME: &'static str = "request";
    const MAX_LEN: usize = 160;
}

/// What the giving side of an exchange sends.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Response {
    /// As many raw bytes as `len` says follow the frame: the chunk.
    Chunk {
        /// That of the request.
        id: u32,
        /// At most [`MAX_CHUNK_LEN`](crate::MAX_CHUNK_LEN).
        len: u32,
    },
    /// As many raw bytes as `len` says follow the frame: the chain's states.
    Chain {
        /// That of the request.
        id: u32,
        /// The sender's own.
        claim: HeldClaim,
        /// At most [`MAX_CHAIN_LEN`]; 0 if the asker has these states, or is spared them.
        len: u32,
    },
    /// No slot is free: ask somebody else, or again after [`Response::Free`].
    Busy {
        /// That of the request.
        id: u32,
    },
    /// The blob is neither held nor arriving.
    NotHeld {
        /// That of the request.
        id: u32,
    },
    /// The request will not be answered.
    Refused {
        /// That of the request.
        id: u32,
        /// Why.
        reason: Refusal,
    },
    /// After a [`Response::Busy`]: a slot is free again.
    Free,
    /// After a [`Request::Follow`]: the first at once, then whenever there is something new.
    Update {
        /// That of the request.
        id: u32,
        /// What is new.
        update: Update,
    },
    /// As many raw bytes as `len` says follow the frame: the states behind those that the asker has, up to as many as
    /// the claim covers.
    States {
        /// That of the request.
        id: u32,
        /// The leader's, as the leader signed it.
        claim: StreamClaim,
        /// That the leader belongs.
        certificate: Certificate,
        /// At most [`MAX_CHAIN_LEN`].
        len: u32,
    },
    /// The chunk was given to somebody else of the blob's followers: take it from them, or another one from here. Or long chains go
    /// to several others now: the states that were asked for may be had of these, or here later.
    Elsewhere {
        /// That of the request.
        id: u32,
    },
    /// The blob arrives, but this chunk is not here yet, or the states of this attempt or of this claim are not known.
    NotHere {
        /// That of the request.
        id: u32,
    },
    /// As many raw bytes as `len` says follow the frame: the states of the chain that was asked for.
    ClaimedStates {
        /// That of the request.
        id: u32,
        /// At most [`MAX_CHAIN_LEN`].
        len: u32,
    },
}

/// How many runs of chunks one update may name; what is left over comes with the next.
pub const MAX_RUNS: usize = 64;

/// What became of a blob that is followed.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Update {
    /// What the sender has to do with the blob now.
    pub role: Role,
    /// The chunks that are newly there since the last update, linked, so that they may be had. No chunk is named
    /// twice, and none where the whole blob is held.
    pub here: List<Run, MAX_RUNS>,
}

impl Update {
    /// The chunks that are newly there, in order; `None` unless the runs are in order, have chunks, do not overlap and
    /// are within the blob.
    pub fn chunks(&self, map: &ChunkMap) -> Option<impl Iterator<Item = ChunkIndex>> {
        let mut behind = 0;
        for run in self.here.iter() {
            if run.len == 0 || run.from < behind {
                return None;
            }
            behind = run.from.checked_add(run.len).filter(|end| *end <= map.count())?;
        }
        let map = *map;
        Some(
            self.here
                .iter()
                .flat_map(move |run| (run.from..run.from + run.len).filter_map(move |n| map.index(n))),
        )
    }
}

/// Chunks that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Run {
    /// The number of the first.
    pub from: u32,
    /// How many there are.
    pub len: u32,
}

/// What a node has to do with a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Role {
    /// It has verified the whole blob: every chunk may be had.
    Held,
    /// It reads the origin in order.
    Leading {
        /// Which of its readings of the blob this is.
        attempt: u64,
        /// How many states it knows beside the initial one.
        known: u32,
    },
    /// It is about to read the origin, unless somebody else reads it or would sooner.
    Candidate {
        /// Which of its readings of the blob that would be.
        attempt: u64,
        /// How many states it knows beside the initial one.
        known: u32,
    },
    /// It takes the blob from other nodes.
    Following {
        /// Whose states it goes by, if it has any.
        stream: Option<Attempt>,
        /// How many of them it knows beside the initial one; without a stream those of a chain that a holder has claimed, all of
        /// them or none, and none of a chain that is so short that holders give it to everybody. Any but none counts as all.
        known: u32,
        /// Whether it could read the origin, should nobody else.
        may_lead: bool,
        /// Whether the leader that it goes by gives its chunks much slower than others do.
        led_slowly: bool,
    },
    /// Nothing, or nothing any more: no further update comes.
    Gone,
}

impl Role {
    /// Whether two roles differ in no more than how far they have come. Whether a chain is known is more than that.
    #[must_use]
    pub fn is_alike(self, other: Self) -> bool {
        let come = |role| match role {
            Self::Leading { attempt, .. } => Self::Leading { attempt, known: 0 },
            Self::Candidate { attempt, .. } => Self::Candidate { attempt, known: 0 },
            Self::Following { stream: stream @ Some(_), may_lead, led_slowly, .. } => {
                Self::Following { stream, known: 0, may_lead, led_slowly }
            }
            other => other,
        };
        come(self) == come(other)
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// The blob that is held has another length.
    #[error("the blob that is held has {held} bytes")]
    OtherSize {
        /// Its length in bytes.
        held: u64,
    },
    /// The blob has no such chunk.
    #[error("the blob has no such chunk")]
    NoSuchChunk,
    /// The blob could not be read.
    #[error("the blob cannot be read there")]
    Unreadable,
    /// The connection follows too many blobs already, or this one.
    #[error("too many blobs are followed there already, or this one is")]
    TooManyFollowed,
    /// A limit keeps bytes from leaving the site.
    #[error("a limit keeps its site from giving anything to other sites now")]
    GivesNothing,
}

/// The longest state chain in bytes: that of the largest blob under SHA-512.
pub const MAX_CHAIN_LEN: u32 = ((crate::MAX_BLOB_LEN / crate::MAX_CHUNK_LEN as u64) as u32 - 1) * 64;

impl Message for Response {
    const NAME: &'static str = "response";
    const MAX_LEN: usize = 768;
}
