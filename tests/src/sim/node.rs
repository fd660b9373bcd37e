//! One node of the simulation: what it has, and what is under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use wherry_node::swarm::Telling;
use wherry_node::transfer::planner::{Planner, Room, Source};
use wherry_proto::{Certificate, ChunkIndex, ChunkSet, Link, NodeId, Role, SecretKey, SignedStates};

use super::blob::Content;
use super::clock::Time;
use super::fluid::{FlowId, PortId};
use super::message::{BlobNo, Job, RequestId};
use super::setup::NodeSetup;
use super::spread::Spread;

/// A node of the world.
pub(super) struct Node {
    pub(super) setup: NodeSetup,
    pub(super) key: SecretKey,
    pub(super) id: NodeId,
    pub(super) certificate: Certificate,
    pub(super) up: PortId,
    pub(super) down: PortId,
    pub(super) alive: bool,
    // Counts its lives.
    pub(super) life: u32,
    pub(super) neighbours: Vec<usize>,
    pub(super) banned: BTreeSet<usize>,
    pub(super) blobs: Vec<Carried>,
    pub(super) giving: Giving,
    // What its transfers may ask for together.
    pub(super) room: Room,
    pub(super) tally: Tally,
    // When the last message to each node arrives.
    pub(super) said: BTreeMap<usize, Time>,
    // Bytes of messages that its port has still to carry, out and in; chunks carry them along.
    pub(super) owed: (f64, f64),
    // Which node follows which blob at a liar's.
    pub(super) deceived: BTreeSet<(usize, BlobNo)>,
}

/// What a node has to do with a blob.
pub(super) struct Carried {
    pub(super) held: bool,
    pub(super) done: Option<Time>,
    pub(super) failed: bool,
    pub(super) transfer: Option<Transfer>,
    // What is on disk.
    pub(super) links: Vec<(ChunkIndex, Link)>,
    pub(super) content: Vec<Content>,
    pub(super) last_attempt: u64,
}

/// A chunk that is asked of a peer.
#[derive(Debug, Clone)]
pub(super) struct Fetching {
    pub(super) peer: usize,
    pub(super) life: u32,
    pub(super) index: ChunkIndex,
    pub(super) since: Time,
    // The states that it is hashed from.
    pub(super) starts: Vec<wherry_proto::State>,
}

/// A transfer that runs.
pub(super) struct Transfer {
    // Names it: what belongs to an earlier one comes too late.
    pub(super) run: u64,
    pub(super) planner: Planner,
    // As others see it.
    pub(super) linked: ChunkSet,
    pub(super) role: Role,
    pub(super) arriving: BTreeMap<(Source, ChunkIndex), Content>,
    pub(super) asked: BTreeMap<ChunkIndex, Source>,
    // The peers that are followed, in which of their lives.
    pub(super) following: BTreeMap<usize, u32>,
    pub(super) fetching: BTreeMap<RequestId, Fetching>,
    // Requests for states and chains, of whom.
    pub(super) pulling: BTreeMap<RequestId, (usize, u32, Option<wherry_proto::Attempt>)>,
    pub(super) busy: BTreeMap<usize, u64>,
    // How many neighbours have still to say whether they have the blob; none if nobody is asked.
    pub(super) awaited: Option<BTreeSet<usize>>,
    // Who was asked what they do and has not said it yet, and the number of the asking.
    pub(super) asking: Option<(u64, BTreeSet<usize>)>,
    pub(super) to_lead: Option<VecDeque<usize>>,
    pub(super) reading: u64,
    pub(super) origin: Option<OriginFlow>,
    pub(super) reads_at: Option<ChunkIndex>,
    pub(super) pushed: Time,
    pub(super) push_due: Option<Time>,
    pub(super) claim: Option<Arc<SignedStates>>,
}

/// A reading of the origin.
#[derive(Clone, Copy)]
pub(super) struct OriginFlow {
    pub(super) index: ChunkIndex,
    pub(super) state: wherry_proto::State,
    pub(super) last: ChunkIndex,
    pub(super) flow: Option<FlowId>,
}

/// The giving side.
#[derive(Default)]
pub(super) struct Giving {
    pub(super) connections: BTreeMap<usize, Connection>,
    pub(super) slots: usize,
    // Until when each of the chains that were given is on its way.
    pub(super) chains: Vec<Time>,
    // Those who were, in that order, and have not been told since that there is a place.
    pub(super) away: VecDeque<usize>,
    pub(super) sent_away_at: Option<Time>,
    pub(super) spread: BTreeMap<BlobNo, Spread>,
    pub(super) subscriptions: BTreeMap<BlobNo, BTreeMap<usize, Telling>>,
}

/// A connection on which a peer takes.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) line: VecDeque<Job>,
    pub(super) serving: Option<Serving>,
    // How many chunks it has had in a row.
    pub(super) in_a_row: u32,
    pub(super) told_busy: bool,
    // What has to wait for the chunk that is being sent.
    pub(super) behind: Vec<super::message::Message>,
}

/// The request whose turn it is.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) request: RequestId,
    pub(super) blob: BlobNo,
    pub(super) index: ChunkIndex,
    pub(super) content: Content,
    pub(super) flow: FlowId,
}

/// What a node has sent and taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) messages: u64,
    pub(super) received: u64,
    pub(super) message_bytes: u64,
    pub(super) chunk_bytes: u64,
    pub(super) origin_bytes: u64,
    pub(super) most_bytes: usize,
}

impl Node {
    pub(super) fn transfer(&mut self, blob: BlobNo) -> Option<&mut Transfer> {
        self.blobs.get_mut(blob)?.transfer.as_mut()
    }
}
