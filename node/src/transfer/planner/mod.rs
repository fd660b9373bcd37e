//! What to ask of whom, for one blob: events in, effects out, no I/O and no clock.
//!
//! Peers of the site that hold the blob are preferred, and every chunk of theirs is checked against the chain that they
//! signed. Where nobody holds it, one node of the site leads: it reads the origin in order and signs the states that it
//! finds; the others take the chunks from it and from each other as they come. A chunk is at any time in exactly one
//! state: wanted, asked of one source, being kept (written), or here (in the ledger).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use wherry_proto::{ChunkIndex, ChunkMap, ChunkSet, Digest, Ledger, Link, NodeId, Role, StateChain, rank};

pub use company::{MAX_DROPPED, MAX_PEERS, MAX_RETURNS};
pub use event::{DropReason, Effect, Event, Failure, LeadEnd, NoStates, Proof, Scope, Source, Succession};
pub use lead::STALL;
pub use peer::{MAX_REFUSED, PIPELINE};
pub use room::{Allowance, Lack, MOST_ROOM, Needs, Room, Sharer, USUAL_ROOM};
pub use sizes::Sizes;
pub use summary::{Leads, PeerNow, Summary};

use crate::swarm::LinkClass;
use circle::Circle;
use claims::Sought;
use company::{Dropped, FOLLOWED_A_TICK};
use lead::{Lead, Request};
use origin::Origin;
use peer::{Chain, Depth, Peer};

mod chunks;
mod circle;
mod claims;
mod company;
mod event;
mod lead;
mod origin;
mod peer;
mod pick;
mod readings;
mod relief;
mod room;
mod sizes;
mod stream;
mod summary;

/// How much time passes between two [`Event::Tick`]s.
pub const TICK: Duration = Duration::from_millis(500);

/// How many chunks are asked of all peers together, at least.
pub const LEAST_WINDOW: usize = 4;

/// The same at most.
pub const MOST_WINDOW: usize = 64;

/// How many bytes one transfer has asked for and not yet written, at most.
pub const IN_FLIGHT: u64 = 8 << 20;

/// How often the origin is read and found wrong before the transfer gives up on it; where there are several, each has
/// its turn before one of them has its second.
pub const ORIGIN_ATTEMPTS: usize = 3;

/// For how many ticks a member that said it leads may take to begin.
const PROMISE: u64 = 20;

/// How many clients' positions are remembered; further ones wait for what these make arrive.
pub const MAX_READERS: usize = 64;

/// A chunk that has been asked for.
#[derive(Debug)]
struct Asked {
    source: Source,
    // What it must be, as far as was known then.
    expected: Option<Link>,
    // Whether the peer held the blob then, and did not only pass on what it had.
    held: bool,
    for_reader: bool,
    since: u64,
}

/// The plan of one transfer.
#[derive(Debug)]
pub struct Planner {
    me: NodeId,
    ledger: Ledger,
    peers: BTreeMap<NodeId, Peer>,
    dropped: BTreeMap<NodeId, Dropped>,
    origin: Origin,
    lead: Lead,
    asked: BTreeMap<ChunkIndex, Asked>,
    keeping: BTreeMap<ChunkIndex, Link>,
    // Being written although no longer wanted: nothing else may be written there before that is over.
    stale: BTreeSet<ChunkIndex>,
    // Linked, asked or being kept.
    taken: ChunkSet,
    // Which unproven chunks came from peers, so that an origin's reading is not blamed for them.
    from_peers: ChunkSet,
    // Which came from the origin, from another site or from the disk, and so to nobody else of this site, as far as is known.
    first_hand: ChunkSet,
    // Had by several peers at some time.
    common: ChunkSet,
    readers: BTreeMap<u64, ChunkIndex>,
    // How many chunks are asked of all peers together.
    window: Depth,
    // What may be asked of nodes that trade, as far as other blobs leave it, and what held it up; with none there is room
    // for one blob.
    allowed: Option<Allowance>,
    lack: Option<Lack>,
    // How long a chunk takes that comes from a peer of this site, smoothed.
    pace: Option<Duration>,
    // Who was asked for the states that holders have claimed.
    sought: BTreeMap<Digest, Sought>,
    circle: Circle,
    // How many more peers may be followed in this tick.
    may_follow: usize,
    searched_site: bool,
    farther: Farther,
    // How many chunks were here when the last search began.
    here_at_search: Option<u32>,
    // The first chunk that no peer has though its states are known, and for how many ticks it has been that.
    sourceless: Option<(ChunkIndex, u64)>,
    ticks: u64,
    random: u64,
    // Whether a limit keeps bytes from coming into the site: nobody here leads then, and nobody is dead for it.
    limited: bool,
    over: bool,
    effects: Vec<Effect>,
}

/// Who outside the site has been asked for the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farther {
    Unasked,
    Asking(Scope),
    Asked(Scope),
}

/// The number after this one in xorshift64 (Marsaglia, 2003).
const fn scrambled(mut number: u64) -> u64 {
    number ^= number << 13;
    number ^= number >> 7;
    number ^ (number << 17)
}

impl Planner {
    /// A plan for a blob of which these chunks are here already, at the node `me`.
    ///
    /// `first_attempt` numbers this node's readings of the origin. No number may be used twice for a blob, across
    /// restarts too: the time is a good one.
    pub fn new(
        me: NodeId,
        digest: Digest,
        map: ChunkMap,
        here: &[(ChunkIndex, Link)],
        first_attempt: u64,
    ) -> Self {
        let mut ledger = Ledger::new(digest, map);
        let mut from_peers = ChunkSet::empty(map);
        for (index, link) in here {
            ledger.record(*index, *link);
            // Who sent it is not remembered across restarts.
            from_peers.insert(*index);
        }
        let taken = ledger.linked().clone();
        let rank = rank(&digest, &me);
        Self {
            me,
            ledger,
            peers: BTreeMap::new(),
            dropped: BTreeMap::new(),
            origin: Origin::default(),
            lead: Lead::new(rank, first_attempt),
            asked: BTreeMap::new(),
            keeping: BTreeMap::new(),
            stale: BTreeSet::new(),
            first_hand: taken.clone(),
            taken,
            from_peers,
            common: ChunkSet::empty(map),
            readers: BTreeMap::new(),
            window: Depth::new(LEAST_WINDOW, LEAST_WINDOW, MOST_WINDOW),
            allowed: None,
            lack: None,
            pace: None,
            sought: BTreeMap::new(),
            circle: Circle::default(),
            may_follow: FOLLOWED_A_TICK,
            searched_site: false,
            farther: Farther::Unasked,
            here_at_search: None,
            sourceless: None,
            ticks: 0,
            random: rank | 1,
            limited: false,
            over: false,
            effects: Vec::new(),
        }
    }

    /// This is the chain of the blob, which was verified here before some of it was damaged.
    pub fn trust(&mut self, chain: Arc<StateChain>) {
        self.ledger.trust(chain);
        self.count_taken();
    }

    /// These are the other nodes of this site, of whom some may come for the blob: where they are many, it is decided by them
    /// whom this node follows without waiting for others to come. Without a word of it there are few.
    pub fn set_site(&mut self, site: &[NodeId]) {
        self.circle = Circle::of(&self.me, &self.ledger.digest(), site);
    }

    /// What is known of the blob.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How many the blob comes from now: peers that have some of it, and the origin while it is read. What followers of a
    /// reading have comes from that reading.
    pub fn sources(&self) -> usize {
        let reads = self.origin.reading.is_some();
        let leads = |peer: &Peer| matches!(peer.role, Some(Role::Leading { .. }));
        let gives = |peer: &&Peer| peer.is_claimed() || (!reads && (leads(peer) || !peer.here.is_empty()));
        self.peers.values().filter(gives).count() + usize::from(reads)
    }

    /// The chunks that several peers have, or had: whoever follows this node may hear of them elsewhere.
    pub fn common(&self) -> &ChunkSet {
        &self.common
    }

    /// Those of the chunks that are here which others of the site cannot have from anybody but this node or through it.
    pub fn first_hand(&self) -> ChunkSet {
        let linked = self.ledger.linked();
        linked.without(&linked.without(&self.first_hand))
    }

    /// How long a chunk takes to come from the quickest peer of this site; `None` if none has. Were it the usual one, a slow
    /// leader would make a quick site slow.
    pub fn quickest(&self) -> Option<Duration> {
        self.peers.values().filter(|peer| peer.class == LinkClass::Lan).filter_map(|peer| peer.pace).min()
    }

    /// What a peer that is followed has told that it has, while it does not hold the blob.
    pub fn here_at(&self, node: &NodeId) -> Option<&ChunkSet> {
        self.peers.get(node).map(|peer| &peer.here)
    }

    /// Takes in what has happened; says what to do. After `Verified` or `Failed` there is no further effect.
    pub fn apply(&mut self, event: Event) -> Vec<Effect> {
        if !self.over {
            self.take_in(event);
            self.plan();
        }
        std::mem::take(&mut self.effects)
    }

    /// Ties are to be broken otherwise at each node, and alike in each run.
    const fn random(&mut self) -> u64 {
        self.random = scrambled(self.random);
        self.random
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Offered(node, class) => self.met(node, class, true, false),
            Event::Met(node, class, role) => {
                self.met(
                    node,
                    class,
                    false,
                    matches!(role, Some(Role::Leading { .. } | Role::Candidate { .. })),
                );
                self.says(node, role);
            }
            Event::RolesAsked => self.lead.asking = None,
            Event::Updated(node, update) => self.updated(node, &update),
            Event::Chain(node, chain) => self.chain(node, chain),
            Event::Claimed(node, states) => self.claimed(node, states),
            Event::ClaimedStates(node, states, chain) => self.claimed_states(node, states, chain),
            Event::States(node, attempt, states) => self.states(node, attempt, states),
            Event::Begun(node, index) => self.begun(node, index),
            Event::Arrived(source, index, links, took) => self.arrived(source, index, &links, took),
            Event::Kept(source, index, link) => self.kept(source, index, link),
            Event::Busy(node, index) => {
                self.release(Source::Peer(node), index);
                self.set_busy(node, true);
            }
            Event::Elsewhere(node, index) => {
                self.release(Source::Peer(node), index);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.refuses(index, self.ticks);
                }
            }
            Event::Ready(node) => self.set_busy(node, false),
            // Each of its requests fails when a peer does; the first says it all.
            Event::PeerFailed(node, why) if self.peers.contains_key(&node) => {
                self.drop_peer(node, DropReason::Failed(why));
            }
            Event::PeerLeft(node, why) if self.peers.contains_key(&node) => {
                self.drop_peer(node, DropReason::Left(why));
            }
            Event::PeerFailed(..) | Event::PeerLeft(..) => {}
            Event::OriginEnded(why) => self.origin_ended(why),
            Event::OriginOffered => {
                self.origin.offered = true;
                self.origin.count += 1;
                self.origin.exhausted = false;
                self.origin.error = None;
            }
            Event::Searched(Scope::Site) => self.searched_site = true,
            Event::Searched(scope) if self.farther == Farther::Asking(scope) => {
                self.farther = Farther::Asked(scope);
            }
            Event::Searched(_) => {}
            Event::NotHere(node, index) => {
                let source = Source::Peer(node);
                let was_held =
                    self.asked.get(&index).is_some_and(|asked| asked.source == source && asked.held);
                self.release(source, index);
                if was_held {
                    // It may be met again as one that has some of it.
                    let why = format!("it said that it holds the blob, and has not got chunk {index}");
                    self.drop_peer(node, DropReason::Failed(why));
                } else if let Some(peer) = self.peers.get_mut(&node) {
                    peer.here.remove(index);
                }
            }
            Event::Promised(node) => {
                self.lead.request = Request::Promised { by: node, since: self.ticks };
                self.met(node, LinkClass::Lan, false, true);
                self.follow(node);
            }
            Event::NobodyLeads => self.lead.request = Request::Denied,
            Event::Reading(reader, index) => {
                if self.readers.len() < MAX_READERS || self.readers.contains_key(&reader) {
                    self.readers.insert(reader, index);
                }
            }
            Event::ReaderGone(reader) => {
                self.readers.remove(&reader);
            }
            Event::Limited(limited) => self.limit(limited),
            Event::Room => {}
            Event::Tick => self.tick(),
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.watch_leaders();
        for peer in self.peers.values_mut() {
            peer.forget_refused(self.ticks);
        }
        self.origin.silent = if self.reads_origin() { self.origin.silent + 1 } else { 0 };
        self.watch_gap();
        self.hedge();
        self.meet_again();
        self.follow_more();
    }

    fn void(&mut self) {
        self.ledger.void();
        self.stale.extend(std::mem::take(&mut self.keeping).into_keys());
        self.from_peers = ChunkSet::empty(self.ledger.map());
        self.common = ChunkSet::empty(self.ledger.map());
        self.lead.anew_after_void();
        if self.claims_lead() {
            self.renumber();
        }
        self.count_taken();
    }

    fn plan(&mut self) {
        if let Some((_, refuted)) = self.ledger.settle() {
            self.verified(refuted);
            return;
        }
        self.check_whole();
        let near = self.peers.values().any(|peer| peer.class == LinkClass::Lan && peer.is_claimed());
        if near {
            // The origin, and other sites, are for what nobody here can give.
            self.step_down();
        } else {
            self.decide_lead();
        }
        self.ask_claimed();
        self.lead_with_chain();
        if self.has_holder() {
            self.stop_origin();
            if self.ledger.dispute().is_some() {
                return self.settle_dispute();
            }
        }
        self.ask_states();
        self.ask_peers();
        if self.is_to_look_farther() {
            self.look_farther();
        }
        if self.leads() && !self.has_holder() {
            self.read_origin();
        } else if !near {
            self.look_for_help();
        }
    }

    fn give_up(&mut self) {
        self.over = true;
        let dropped = std::mem::take(&mut self.dropped);
        self.effects.push(Effect::Failed(Failure {
            peers: dropped.into_iter().map(|(node, dropped)| (node, dropped.why)).collect(),
            origin: self.origin.error.take(),
            origin_digest: self.origin.wrong,
        }));
    }
}
