//! What nodes say to each other in the simulation: the wire's messages, without bytes.

use std::sync::Arc;

use wherry_node::transfer::planner::NoStates;
use wherry_proto::{Attempt, ChunkIndex, Digest, Role, SignedStates, StateChain, StatePrefix, Update};

use super::blob::Content;

/// Names a request of a node: none is used twice.
pub(super) type RequestId = u64;

/// Which of the blobs of the world.
pub(super) type BlobNo = usize;

pub(super) enum Message {
    // To the giving side of an exchange.
    Follow(BlobNo),
    Unfollow(BlobNo),
    Ask(Job),
    Cancel(RequestId),
    // To the taking side.
    Update(BlobNo, Update),
    Chunk {
        blob: BlobNo,
        index: ChunkIndex,
        request: RequestId,
        content: Content,
    },
    Busy {
        blob: BlobNo,
        index: ChunkIndex,
        request: RequestId,
    },
    Elsewhere {
        blob: BlobNo,
        index: ChunkIndex,
        request: RequestId,
    },
    NotHeld {
        blob: BlobNo,
        request: RequestId,
    },
    Free,
    States {
        blob: BlobNo,
        request: RequestId,
        states: Result<Arc<SignedStates>, NoStates>,
        behind: u32,
    },
    Chain {
        blob: BlobNo,
        request: RequestId,
        chain: Option<Arc<StateChain>>,
        known: bool,
    },
    /// The claim alone: the states with this digest are to be had of others.
    ClaimElsewhere {
        blob: BlobNo,
        request: RequestId,
        states: Digest,
    },
    ClaimedStates {
        blob: BlobNo,
        request: RequestId,
        states: Digest,
        chain: Option<Arc<StateChain>>,
    },
    // Beside the exchange.
    Want(BlobNo),
    Found(BlobNo, Holding),
    Lead(BlobNo),
    Led(BlobNo, Led),
}

/// What a node says when it is asked for a blob.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Holding {
    Held,
    Arriving(Role),
    No,
}

/// What a node says when it is asked to lead.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Led {
    Have,
    Leading,
    Refuse,
}

/// A request that stands in the line of its connection.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) request: RequestId,
    pub(super) blob: BlobNo,
    pub(super) part: Part,
}

#[derive(Clone)]
pub(super) enum Part {
    Chunk(ChunkIndex),
    States(Attempt, Arc<StatePrefix>),
    Chain {
        /// Whether the one who asks knows a chain, whose states do not come again.
        known: bool,
        /// Whether the states may come from others.
        spares: bool,
    },
    /// The states that some holder has claimed.
    Claimed(Digest),
}

/// What surrounds a packet of TCP on Ethernet, and so what an acknowledgement is.
const PACKET: u64 = 66;

/// How many bytes of a connection one packet has.
const SEGMENT: u64 = 1_448;

impl Message {
    /// What its acknowledgements take: one for two packets.
    pub(super) fn acknowledged(&self, chunk: u64) -> u64 {
        let bytes = if matches!(self, Self::Chunk { .. }) { chunk } else { self.len() };
        PACKET * bytes.div_ceil(2 * SEGMENT)
    }

    /// What it takes on a link besides the chunk: with the packet that it goes in, unless that carries another message anyhow.
    pub(super) fn on_link(&self, is_alone: bool) -> u64 {
        self.len() + if is_alone { PACKET * self.len().div_ceil(SEGMENT) } else { 0 }
    }

    /// About how many bytes it has on the wire, without those of a chunk: its frame and TLS's record.
    pub(super) fn len(&self) -> u64 {
        const RECORD: u64 = 22;
        const NAME: u64 = 42;
        const CLAIM_AND_CERTIFICATE: u64 = 330;
        let frame = match self {
            Self::Follow(_) | Self::Want(_) => NAME + 8,
            Self::Ask(Job { part: Part::States(..), .. }) => NAME + 52,
            Self::Ask(Job { part: Part::Claimed(_), .. }) => NAME + 45,
            Self::Ask(_) => NAME + 12,
            Self::Lead(_) => NAME + 60,
            Self::Update(_, update) => 48 + 4 * update.here.iter().count() as u64,
            Self::States { behind, states: Ok(_), .. } => CLAIM_AND_CERTIFICATE + 32 * u64::from(*behind),
            Self::Chain { chain: Some(chain), known: false, .. } => 180 + 32 * u64::from(chain.map().count()),
            Self::Chain { chain: Some(_), .. } | Self::ClaimElsewhere { .. } => 180,
            Self::ClaimedStates { chain: Some(chain), .. } => 12 + 32 * u64::from(chain.map().count()),
            Self::Chunk { .. } => 0,
            _ => 12,
        };
        frame + RECORD
    }

    /// Whether the giving side of an exchange says it, and so says it behind a chunk that is being sent.
    pub(super) const fn is_answer(&self) -> bool {
        matches!(
            self,
            Self::Update(..)
                | Self::Busy { .. }
                | Self::Elsewhere { .. }
                | Self::NotHeld { .. }
                | Self::Free
                | Self::States { .. }
                | Self::Chain { .. }
                | Self::ClaimElsewhere { .. }
                | Self::ClaimedStates { .. }
        )
    }
}
