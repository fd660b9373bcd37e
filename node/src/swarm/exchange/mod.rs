//! Taking and giving chains, states and chunks, over any two-way byte stream, and telling what becomes of blobs that
//! arrive.
//!
//! Requests are small frames, pipelined; responses are small frames, some with raw bytes behind them. The same
//! code runs on the bulk plane and on a libp2p stream.

mod buffers;
mod chains;
mod client;
mod downlink;
mod find;
mod follow;
#[cfg(test)]
mod follow_tests;
mod inflow;
mod pusher;
mod server;
#[cfg(test)]
mod server_tests;
mod slots;
mod spread;
mod taker;
mod telling;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use wherry_proto::{ChunkMap, ClaimError, Digest, NodeId, Refusal, TooLarge};

pub(super) use buffers::Buffers;
pub use client::Exchange;
pub(super) use client::start;
pub(super) use downlink::Downlink;
pub use follow::Follow;
pub(super) use inflow::Inflow;
pub(super) use server::{Uploader, serve};
pub use telling::{Audience, News, Telling};
pub(super) use writer::MAX_PIECE;

/// How many requests one exchange may have under way; further ones wait on the asking side.
pub const MAX_IN_FLIGHT: usize = 32;

/// How long a peer that owes a response may send no byte at all before it counts as gone. It may be several times as long
/// while this node's own link is busy and thin, so that what a peer sends waits behind what others do.
pub const SILENCE: Duration = Duration::from_secs(5);

/// How long one request may take, however the bytes trickle: 512 KiB at 35 kbit/s.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(120);

/// How long an exchange without requests is kept by the side that asks.
pub const IDLE_TIME: Duration = Duration::from_secs(120);

/// How many responses with bytes behind them are sent at once, to all peers together. Each holds one chunk in memory.
/// Few, since what is sent to one peer whole can be passed on sooner than what is sent to many in part; and not fewer, since
/// a slot that comes free idles until it is told, asked for and used, each behind what fills the links: 32 nodes with one
/// seeder took 1.29 times the lower bound with four slots, and 1.12 times with eight and requests to match.
pub const UPLOAD_SLOTS: usize = 8;

/// How many of them one peer may have, over all its connections: each connection sends one at a time.
pub const SLOTS_PER_PEER: usize = 2;

/// How many answers a peer may have in one slot while others find none: it keeps the one that it has as long as its next request
/// is in line. Who takes from whom so changes seldom. In the simulation of 64 nodes whose upload is scarce all are done 5 %
/// sooner than with a slot for each chunk, with a quarter fewer messages; with eight, 16 or 64 in a row the last of them is done
/// up to 5 % later than with 32.
pub const MOST_IN_A_ROW: u32 = 32;

/// How many whole chains, or their states alone, are given at a time to those who can have them of others as well. A chain is up
/// to a thousandth of its blob, so a site that waits for one holder would wait for a chain for each of its nodes first. These few
/// can take what a node gives at a time, as each may have [`SLOTS_PER_PEER`] slots.
pub const CHAINS_AT_ONCE: usize = UPLOAD_SLOTS / SLOTS_PER_PEER;

/// A chain of so many bytes goes to everybody: to have it of somebody else takes about as many in words.
const SMALL_CHAIN: u32 = 2 << 10;

/// How many blobs may be followed by one exchange at a time.
pub const MAX_FOLLOWED: usize = 64;

/// How long a follower hears nothing of new chunks after the last time that it did, at least. That a node's role has
/// changed is told at once.
pub const UPDATE_TIME: Duration = Duration::from_millis(50);

/// The same at most, on links on which a chunk takes seconds.
pub(super) const MOST_UPDATE_TIME: Duration = UPDATE_TIME.saturating_mul(32);

/// How many bytes the states of a chain have: at most [`MAX_CHAIN_LEN`](wherry_proto::MAX_CHAIN_LEN), since the map is within
/// its bounds.
fn chain_len(digest: Digest, map: ChunkMap) -> u32 {
    (map.count() - 1) * digest.algorithm().output_len() as u32
}

/// Whether the states of a blob's chain are so long that whoever holds it gives them to few at a time, and sends others to these.
pub fn has_long_chain(digest: Digest, map: ChunkMap) -> bool {
    chain_len(digest, map) > SMALL_CHAIN
}

/// How long the taking side waits.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    silence: Duration,
    request: Duration,
    idle: Duration,
}

impl Patience {
    pub(super) const USUAL: Self = Self { silence: SILENCE, request: REQUEST_LIMIT, idle: IDLE_TIME };
}

/// Why an exchange did not give what was asked for. None of these is proof of anything against the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// The peer has no free slot: ask another, or wait with [`Exchange::free`].
    #[error("peer {0} is busy")]
    Busy(NodeId),
    /// The peer does not hold the blob.
    #[error("peer {0} does not hold the blob")]
    NotHeld(NodeId),
    /// The blob arrives at the peer, but this chunk is not there yet; or the peer does not know as many states of this
    /// reading.
    #[error("peer {0} does not have this yet")]
    NotHere(NodeId),
    /// The peer gave this chunk to another of the blob's followers: take it from that one, or another chunk here. Or it
    /// gives long chains to several others now, and these states may be had of them.
    #[error("peer {0} gives this to another follower")]
    Elsewhere(NodeId),
    /// The peer will not answer.
    #[error("peer {node} refused: {reason}")]
    Refused {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: Refusal,
    },
    /// The connection ended.
    #[error("the connection to peer {node} ended: {reason}")]
    Closed {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: Arc<str>,
    },
    /// The peer owed a response and sent nothing for [`SILENCE`] or longer; the connection is closed.
    #[error("peer {0} sent nothing for {SILENCE:?} or longer")]
    Silent(NodeId),
    /// The request was not done within [`REQUEST_LIMIT`].
    #[error("peer {0} did not finish a request within {REQUEST_LIMIT:?}")]
    TimedOut(NodeId),
    /// The peer broke the protocol; the connection is closed.
    #[error("peer {node} broke the protocol: {reason}")]
    Protocol {
        /// The peer.
        node: NodeId,
        /// How.
        reason: Arc<str>,
    },
    /// The claim that came does not hold.
    #[error("the claim of peer {node} does not hold: {reason}")]
    Claim {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: ClaimError,
    },
    /// The blob is larger than wherry carries.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}
