//! What a planner is told and what it asks for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use wherry_proto::{
    Attempt, ChunkIndex, Digest, Link, NodeId, Role, SignedStates, State, StateChain, StatePrefix, Update,
};

use crate::swarm::LinkClass;

/// Where chunks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A node of the network that has the blob, or a part of it.
    Peer(NodeId),
    /// The registry that the image comes from.
    Origin,
}

/// Why a peer is no longer asked in this transfer. None of these is proof of bad intent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DropReason {
    /// It sent bytes that do not link to any claim.
    #[error("chunk {0} that it sent does not link to the states that are known")]
    WrongChunk(ChunkIndex),
    /// It has gone, or has the blob no longer.
    #[error("{0}")]
    Left(String),
    /// The request failed.
    #[error("{0}")]
    Failed(String),
}

/// Why a peer is banned: each of these is proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Proof {
    /// Its signed claim is refuted.
    #[error("the state chain that it signed is false: a chunk leads to a state of it from another one")]
    FalseClaim,
    /// It sent a wrong chunk between two states that are beyond doubt.
    #[error("chunk {0} that it sent is wrong, and both states around it are proven")]
    WrongChunk(ChunkIndex),
    /// It signed different states under one number of its readings.
    #[error("it has signed different states of its reading {0}")]
    TwoReadings(u64),
}

/// Why a peer gives no states of a reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoStates {
    /// They do not go on from those that are known here.
    Others,
    /// It has none, or no more.
    None,
    /// It has gone, or has the blob no longer.
    Left(String),
    /// It failed as a source.
    Failed(String),
}

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// A peer says that it holds the blob.
    Offered(NodeId, LinkClass),
    /// A peer is about to get the blob too: it says so when it is asked, and then also what it does, or it follows this
    /// node.
    Met(NodeId, LinkClass, Option<Role>),
    /// Those who were asked for [`Effect::AskRoles`] have answered or had their time.
    RolesAsked,
    /// A peer that is followed says what it has.
    Updated(NodeId, Update),
    /// A peer's signed chain has come and its signature is good.
    Chain(NodeId, Arc<StateChain>),
    /// A peer has signed a chain whose states have this digest. They are to be had of others.
    Claimed(NodeId, Digest),
    /// What a peer has given of the states with this digest, if it could.
    ClaimedStates(NodeId, Digest, Option<Arc<StateChain>>),
    /// States of a leader's reading that were asked of a peer have come, or not.
    States(NodeId, Attempt, Result<Arc<SignedStates>, NoStates>),
    /// The first bytes of a chunk have come from a peer of this site, and more are to: it has a slot for this node.
    Begun(NodeId, ChunkIndex),
    /// The bytes of a chunk are here, so long after they were asked for or had [begun](Event::Begun) to come; one link for
    /// each start state.
    Arrived(Source, ChunkIndex, Vec<Link>, Duration),
    /// The chunk is on disk.
    Kept(Source, ChunkIndex, Link),
    /// The peer has no slot free now.
    Busy(NodeId, ChunkIndex),
    /// The peer has given the chunk to another follower.
    Elsewhere(NodeId, ChunkIndex),
    /// The peer does not have the chunk, whatever it said before.
    NotHere(NodeId, ChunkIndex),
    /// The peer may be asked again after it was busy.
    Ready(NodeId),
    /// A peer is no source any more: it has gone, or has the blob no longer.
    PeerLeft(NodeId, String),
    /// A peer failed as a source: silent, does not keep to the protocol, cannot read its disk.
    PeerFailed(NodeId, String),
    /// The origin cannot be read any more, after all retries; `None` if reading ended where it should.
    OriginEnded(Option<String>),
    /// There is an origin to read now.
    OriginOffered,
    /// These have been asked, and none of them will offer any more.
    Searched(Scope),
    /// A member that was asked to lead says that it does.
    Promised(NodeId),
    /// The members have been asked to lead, and none will.
    NobodyLeads,
    /// A client reads, and this is the chunk that it needs next.
    Reading(u64, ChunkIndex),
    /// A client has gone.
    ReaderGone(u64),
    /// A limit keeps bytes from coming into the site from now on, or none does.
    Limited(bool),
    /// There is room for a chunk that was to be asked for.
    Room,
    /// [`TICK`](super::TICK) has passed.
    Tick,
}

/// Among whom a blob is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The neighbours of this site.
    Site,
    /// The neighbours at other sites: one question to each of them, over thin links.
    OtherSites,
    /// Whomever the network names: some tens of questions one after the other, most of them over thin links.
    Network,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Follow a peer: it tells what it has of the blob, and what it does.
    Follow(NodeId),
    /// Follow it no more.
    Unfollow(NodeId),
    /// Ask the nodes of the site what they do with the blob, but these, who tell it themselves or are not believed.
    AskRoles(BTreeSet<NodeId>),
    /// Ask a peer for its claim, and for its chain unless it has given that to several others.
    AskClaim(NodeId),
    /// Ask a peer for its claim and chain.
    AskChain(NodeId),
    /// Ask a peer that takes the blob like this node for the states with this digest, which a holder has claimed.
    AskClaimed(NodeId, Digest),
    /// Ask a peer for the states of a leader's reading that come after these.
    AskStates(NodeId, Attempt, Arc<StatePrefix>),
    /// This node leads from now on, in the place of another one if there was one.
    Lead(Option<Succession>),
    /// This node leads no more, since its followers find its link slow.
    MakeWay,
    /// This node goes by what another one reads.
    LedBy(NodeId),
    /// Say that this node is [met](Event::Met), if it is connected.
    Meet(NodeId),
    /// Ask members to lead, the best in rank first; not these, who cannot, or did not when they had said so.
    AskLead(BTreeSet<NodeId>),
    /// Ask a peer for a chunk, and hash it from each of these states.
    Fetch(NodeId, ChunkIndex, Vec<State>),
    /// A chunk that was asked of a peer is not wanted from it any more.
    Cancel(NodeId, ChunkIndex),
    /// Read the origin in order from this chunk, in this state, up to and with the other chunk.
    ReadOrigin(ChunkIndex, State, ChunkIndex),
    /// Stop reading the origin: nothing that is still under way from it is wanted.
    StopOrigin,
    /// Write the chunk that has just arrived, and say when it is on disk.
    Keep(Source, ChunkIndex, Link),
    /// Throw away the chunk that has just arrived.
    Discard(Source, ChunkIndex),
    /// Do not use this peer again in this transfer.
    Drop(NodeId, DropReason),
    /// Ban this peer from the node.
    Ban(NodeId, Proof),
    /// The origin sent the right number of bytes with this digest instead.
    OriginWrong(Digest),
    /// What was read of the origin came to nothing: where there are several, the next one has its turn.
    AttemptFailed,
    /// What a leader read came to nothing: chunks that are not proven are void.
    StreamVoid(Attempt),
    /// The origin's bytes contradict what peers have signed; it is left alone while they deliver.
    OriginContradicts(ChunkIndex),
    /// All chunks are here and the digest is right.
    Verified,
    /// Ask these who has the blob: the site once more when those who were found have failed, others when this node is to take
    /// the blob from outside the site or nobody in it has a way to it.
    Search(Scope),
    /// Nobody is left to ask.
    Failed(Failure),
}

/// Whose place a leader takes, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Succession {
    /// The one that led before.
    pub leader: NodeId,
    /// What became of it.
    pub why: LeadEnd,
}

/// Why a leader counts as one no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeadEnd {
    /// It is not connected any more, or nothing is taken from it any more.
    #[error("it is gone")]
    Gone,
    /// Its reading stands still.
    #[error("its reading stands still")]
    Stalled,
    /// What it read has another digest.
    #[error("what it read has another digest")]
    Void,
    /// It says so itself.
    #[error("it reads no more")]
    Resigned,
}

/// Why a transfer cannot be completed now. What is linked stays for the next one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    /// Peers that were tried.
    pub peers: Vec<(NodeId, String)>,
    /// What the origin's reader last said.
    pub origin: Option<String>,
    /// The digest of what the origin sent, if that was wrong.
    pub origin_digest: Option<Digest>,
}
