//! What to ask of whom, for one blob: events in, effects out, no I/O and no clock.
//!
//! Peers of the site that hold the blob are preferred, and every chunk of theirs is checked against the chain that they
//! signed. Where nobody holds it, one node of the site leads: it reads the origin in order and signs the states that it
//! finds; the others take the chunks from it and from each other as they come. A chunk is at any time in exactly one
//! state: wanted, asked of one source, being kept (written), or here (in the ledger).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use wherry_proto::{
    ChunkIndex, ChunkMap, ChunkSet, Claimed, Digest, End, Ledger, Link, NodeId, Role, State, StateChain,
    Update,
};

pub use event::{DropReason, Effect, Event, Failure, NoStates, Proof, Source};
pub use lead::{STALL, rank};
pub use peer::{MAX_REFUSED, PIPELINE};
pub use sizes::Sizes;

use crate::swarm::LinkClass;
use lead::{INTRODUCTION, Lead, Request, lot};
use origin::Origin;
use peer::{Chain, Depth, Peer};

mod event;
mod lead;
mod origin;
mod peer;
mod pick;
mod sizes;

/// How many peers one transfer uses at a time; offers beyond it are left alone.
pub const MAX_PEERS: usize = 32;

/// How many of these are those of highest rank, one of whom leads.
const RANKED: usize = 4;

/// How much time passes between two [`Event::Tick`]s.
pub const TICK: Duration = Duration::from_millis(500);

/// How many chunks are asked of all peers together, at least: as many as a peer has upload slots, so that no node asks
/// for more than one gives.
pub const LEAST_WINDOW: usize = 4;

/// The same at most.
pub const MOST_WINDOW: usize = 64;

/// How many bytes one transfer has asked for and not yet written, at most.
pub const IN_FLIGHT: u64 = 8 << 20;

/// How often the origin is read and found wrong before the transfer gives up on it; where there are several, each has
/// its turn before one of them has its second.
pub const ORIGIN_ATTEMPTS: usize = 3;

/// How many peers that were dropped are remembered; then no further offer is taken.
pub const MAX_DROPPED: usize = 256;

/// How often a peer may fail and come back in one transfer.
pub const MAX_RETURNS: u8 = 5;

/// After how many ticks a peer that failed is met again for the first time.
const AGAIN: u64 = 1;

/// For how many ticks a member that said it leads may take to begin.
const PROMISE: u64 = 20;

/// How many chunks in a row may come from a peer that does not hold the blob, and do not link, before it is dropped: what
/// it has may be from another reading.
const MAX_STRANGE: u8 = 3;

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

#[derive(Debug)]
struct Dropped {
    why: String,
    times: u8,
    for_good: bool,
    is_near: bool,
    since: u64,
    // How often it failed while it led.
    led: u8,
    // The last of its readings that was seen: a further one is that of another life.
    reading: u64,
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
    readers: BTreeMap<u64, ChunkIndex>,
    // How many chunks are asked of all peers together.
    window: Depth,
    searched_site: bool,
    searched_network: bool,
    // How many chunks were here when the last search began.
    here_at_search: Option<u32>,
    // For how many ticks there has been a chunk that no peer has, though its states are known.
    sourceless: u64,
    ticks: u64,
    random: u64,
    over: bool,
    effects: Vec<Effect>,
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
            taken,
            from_peers,
            readers: BTreeMap::new(),
            window: Depth::new(LEAST_WINDOW, LEAST_WINDOW, MOST_WINDOW),
            searched_site: false,
            searched_network: false,
            here_at_search: None,
            sourceless: 0,
            ticks: 0,
            random: rank | 1,
            over: false,
            effects: Vec::new(),
        }
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

    /// Takes in what has happened; says what to do. After `Verified` or `Failed` there is no further effect.
    pub fn apply(&mut self, event: Event) -> Vec<Effect> {
        if !self.over {
            self.take_in(event);
            self.plan();
        }
        std::mem::take(&mut self.effects)
    }

    /// xorshift64 (Marsaglia, 2003): ties are to be broken otherwise at each node, and alike in each run.
    const fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Offered(node, class) => self.met(node, class, true),
            Event::Met(node, class) => self.met(node, class, false),
            Event::Updated(node, update) => self.updated(node, &update),
            Event::Chain(node, chain) => self.chain(node, chain),
            Event::States(node, attempt, states) => self.states(node, attempt, states),
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
            Event::PeerFailed(..) => {}
            Event::OriginEnded(why) => self.origin_ended(why),
            Event::OriginOffered => {
                self.origin.offered = true;
                self.origin.count += 1;
                self.origin.exhausted = false;
                self.origin.error = None;
            }
            Event::SearchedSite => self.searched_site = true,
            Event::SearchedNetwork => {
                self.searched_site = true;
                self.searched_network = true;
            }
            Event::NotHere(node, index) => {
                self.release(Source::Peer(node), index);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.here.remove(index);
                }
            }
            Event::Promised(node) => {
                self.lead.request = Request::Promised { by: node, since: self.ticks };
                self.met(node, LinkClass::Lan, false);
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
            Event::Tick => self.tick(),
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.watch_leaders();
        for peer in self.peers.values_mut() {
            peer.forget_refused(self.ticks);
        }
        self.sourceless = if self.leads() && self.gap().is_some() { self.sourceless + 1 } else { 0 };
        self.hedge();
        self.meet_again();
    }

    /// Those of this site who failed are met again after a while, each time a longer one: a connection that broke, or
    /// chunks that were taken back, are no reason to do without a node for the rest of the transfer.
    fn meet_again(&mut self) {
        let may_return = |dropped: &Dropped| {
            let pause = AGAIN << dropped.times.min(MAX_RETURNS);
            !dropped.for_good
                && dropped.is_near
                && dropped.times <= MAX_RETURNS
                && self.ticks - dropped.since >= pause
        };
        let again: Vec<NodeId> = self
            .dropped
            .iter()
            .filter(|(node, dropped)| may_return(dropped) && !self.peers.contains_key(*node))
            .map(|(node, _)| *node)
            .collect();
        for node in again {
            if let Some(dropped) = self.dropped.get_mut(&node) {
                dropped.since = self.ticks;
            }
            self.met(node, LinkClass::Lan, false);
        }
    }

    fn met(&mut self, node: NodeId, class: LinkClass, holds: bool) {
        // What is still on its way to another site is of no use before it is there.
        if node == self.me || (class == LinkClass::Wan && !holds) {
            return;
        }
        if holds && self.peers.contains_key(&node) {
            return self.hold(node);
        }
        let may_return = match self.dropped.get(&node) {
            Some(dropped) => !dropped.for_good && dropped.times <= MAX_RETURNS,
            None => self.dropped.len() < MAX_DROPPED,
        };
        if !may_return || self.peers.contains_key(&node) || !self.has_place(&node, holds) {
            return;
        }
        let map = self.ledger.map();
        let rank = rank(&self.ledger.digest(), &node);
        self.peers.insert(node, Peer::new(class, ChunkSet::empty(map), self.ticks, rank));
        // The site is larger than it was when nobody was there to lead.
        if self.lead.request == Request::Denied && !self.dropped.contains_key(&node) {
            self.lead.request = Request::Unasked;
        }
        // A blob of one chunk that is held has nothing to tell of.
        if !holds || map.count() > 1 {
            self.effects.push(Effect::Follow(node));
        }
        if holds {
            self.hold(node);
        }
    }

    /// Whether there is a place for one more peer; if all are taken, that of one who is of no use at the moment may be
    /// given away. Holders come first, then the few of highest rank, whom everybody must see, then those whom lot has
    /// given to this node: were it the same for all nodes, most of them would never be asked for anything.
    fn has_place(&mut self, node: &NodeId, holds: bool) -> bool {
        if self.peers.len() < MAX_PEERS {
            return true;
        }
        let digest = self.ledger.digest();
        let mut ranks: Vec<u64> = self.peers.values().map(|peer| peer.rank).collect();
        ranks.sort_unstable_by(|one, two| two.cmp(one));
        let high = ranks.get(RANKED - 1).copied().unwrap_or(0);
        let worth = |rank: u64, node: &NodeId| match rank >= high {
            true => (1, rank),
            false => (0, lot(&digest, &self.me, node)),
        };
        let newcomer = worth(rank(&digest, node), node);
        let is_needed = holds || newcomer.0 > 0;
        let is_idle = |peer: &Peer| peer.asked == 0 && !peer.holds() && (is_needed || peer.here.is_empty());
        let idle = self.peers.iter().filter(|(_, peer)| is_idle(peer));
        let least = idle.map(|(node, peer)| (worth(peer.rank, node), *node)).min();
        let Some((least, idle)) = least else { return false };
        if !holds && newcomer < least {
            return false;
        }
        self.peers.remove(&idle);
        self.forget_states(idle);
        self.effects.push(Effect::Unfollow(idle));
        true
    }

    /// A peer says that it holds the blob.
    fn hold(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.holds() {
            return;
        }
        peer.role = Some(Role::Held);
        peer.chain = Chain::Asked;
        match StateChain::from_bytes(self.ledger.digest(), self.ledger.map(), &[]) {
            // A blob of one chunk has no inner states, so there is nothing to claim.
            Ok(chain) => self.chain(node, Arc::new(chain)),
            Err(_) => self.effects.push(Effect::AskChain(node)),
        }
    }

    fn updated(&mut self, node: NodeId, update: &Update) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let map = self.ledger.map();
        let Some(chunks) = update.chunks(&map) else {
            let why = "it says that it has chunks which the blob cannot have".to_owned();
            return self.drop_peer(node, DropReason::Failed(why));
        };
        for index in chunks {
            peer.here.insert(index);
        }
        match update.role {
            Role::Held => self.hold(node),
            Role::Gone => self.drop_peer(node, DropReason::Failed("it has given up the blob".into())),
            role => {
                let before = peer.stream(node).map(|(attempt, _)| attempt);
                peer.role = Some(role);
                // The signer itself knows best that its states lead nowhere.
                if let (Some(attempt), Role::Following { stream: None, .. }) = (before, role)
                    && attempt.signer == node
                    && self.lead.attempt == Some(attempt)
                {
                    self.stream_is_void(attempt);
                }
            }
        }
    }

    fn chain(&mut self, node: NodeId, chain: Arc<StateChain>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some((next, state, _)) = self.origin.reading
            && !self.ledger.has_chain()
            && chain.from(next) != state
        {
            peer.chain = Chain::Aside(chain);
            return;
        }
        peer.chain = Chain::Claimed;
        match self.ledger.claim(node, chain) {
            Claimed::Agrees | Claimed::Disputes => self.count_taken(),
            Claimed::Refuted => self.ban(node, Proof::FalseClaim),
            Claimed::Ignored => {
                self.drop_peer(node, DropReason::Failed("there are too many claims about this blob".into()));
            }
        }
    }

    fn arrived(&mut self, source: Source, index: ChunkIndex, links: &[Link], took: Duration) {
        let Some(asked) = self.asked.get(&index).filter(|asked| asked.source == source) else {
            self.effects.push(Effect::Discard(source, index));
            return;
        };
        let (was_expected, was_held) = (asked.expected, asked.held);
        self.release(source, index);
        if let Source::Peer(node) = source {
            self.set_busy(node, false);
            self.window.took(took);
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.took(took);
            }
        }
        let wanted = match self.ledger.dispute() {
            Some((disputed, _)) if disputed == index => self.ledger.candidates(index),
            _ => self.ledger.expected(index).into_iter().collect(),
        };
        if source == Source::Origin && !self.ledger.has_chain() {
            return self.streamed(index, links);
        }
        match links.iter().find(|link| wanted.contains(link)) {
            Some(link) => {
                if let (Source::Origin, End::State(state)) = (source, link.to) {
                    self.origin_next(index, state);
                }
                if let Source::Peer(node) = source
                    && let Some(peer) = self.peers.get_mut(&node)
                {
                    peer.strange = 0;
                }
                self.keep(source, index, *link);
            }
            None => {
                self.effects.push(Effect::Discard(source, index));
                match source {
                    // What it was asked for counts no more: a claim was refuted, or another leads.
                    Source::Peer(_) if was_expected.is_none_or(|expected| !wanted.contains(&expected)) => {}
                    Source::Peer(node) => self.wrong_chunk(node, index, was_held),
                    Source::Origin => self.origin_contradicts(index),
                }
            }
        }
    }

    fn claim_those_aside(&mut self) {
        let aside: Vec<_> = self
            .peers
            .iter()
            .filter_map(|(node, peer)| match &peer.chain {
                Chain::Aside(chain) => Some((*node, chain.clone())),
                _ => None,
            })
            .collect();
        for (node, chain) in aside {
            self.chain(node, chain);
        }
    }

    fn kept(&mut self, source: Source, index: ChunkIndex, link: Link) {
        if self.stale.remove(&index) {
            self.count_taken();
            return;
        }
        if self.keeping.remove(&index) != Some(link) {
            return;
        }
        if matches!(source, Source::Peer(_)) {
            self.from_peers.insert(index);
        } else {
            self.from_peers.remove(index);
        }
        let before = self.ledger.linked().len();
        let refuted = self.ledger.record(index, link);
        for node in &refuted {
            self.ban(*node, Proof::FalseClaim);
        }
        // It may have connected others that had come before it.
        if !refuted.is_empty() || self.ledger.linked().len() > before + 1 {
            self.count_taken();
        } else if !self.ledger.linked().contains(index) {
            self.taken.remove(index);
        }
    }

    fn keep(&mut self, source: Source, index: ChunkIndex, link: Link) {
        self.keeping.insert(index, link);
        self.taken.insert(index);
        self.effects.push(Effect::Keep(source, index, link));
    }

    fn wrong_chunk(&mut self, node: NodeId, index: ChunkIndex, held: bool) {
        let map = self.ledger.map();
        let end_is_proven = map.next(index).is_none_or(|next| self.ledger.is_proven(next));
        let has_chain = self.ledger.has_chain();
        // Whoever does not hold the blob may have had the chunk in good faith, from a reading that is wrong.
        if held && index == map.first() && end_is_proven {
            self.ban(node, Proof::WrongChunk(index));
        } else if !held && self.ledger.has_chain() && !self.ledger.has_signer() {
            // Nobody is left who stands for the chain: what still comes decides.
            self.ledger.forget_orphans();
            self.count_taken();
        } else if !held && self.is_own_stream(node) {
            self.stream_is_false(node, index);
        } else if let Some(peer) = self.peers.get_mut(&node)
            && !held
            && (has_chain || peer.strange < MAX_STRANGE)
        {
            // It may go by another reading or by a claim, or this node does: which one is right will be seen.
            peer.strange = peer.strange.saturating_add(1);
            peer.refuses(index, self.ticks);
        } else {
            self.drop_peer(node, DropReason::WrongChunk(index));
        }
    }

    fn drop_peer(&mut self, node: NodeId, reason: DropReason) {
        // One that trades may be right next time, when another leads.
        let holds = self.peers.get(&node).is_some_and(Peer::holds);
        let for_good = holds && !matches!(reason, DropReason::Failed(_));
        if self.forget_peer(node, &reason, for_good) {
            self.effects.push(Effect::Drop(node, reason));
        }
    }

    fn ban(&mut self, node: NodeId, proof: Proof) {
        self.forget_peer(node, &proof, true);
        self.effects.push(Effect::Ban(node, proof));
    }

    fn forget_peer(&mut self, node: NodeId, why: &dyn std::fmt::Display, for_good: bool) -> bool {
        let reading = self.last_reading(&node);
        let peer = self.peers.remove(&node);
        let was_there = peer.is_some();
        let led = peer.as_ref().is_some_and(|peer| matches!(peer.role, Some(Role::Leading { .. })));
        let before = self.dropped.get(&node);
        let led = before.map_or(0, |dropped| dropped.led).saturating_add(u8::from(led));
        let reading = before.map_or(reading, |dropped| dropped.reading.max(reading));
        let is_near = peer.map_or_else(
            || before.is_some_and(|dropped| dropped.is_near),
            |peer| peer.class == LinkClass::Lan,
        );
        let times = before.map_or(0, |dropped| dropped.times).saturating_add(u8::from(was_there));
        let for_good = for_good || before.is_some_and(|dropped| dropped.for_good);
        let since = self.ticks;
        let why = why.to_string();
        self.dropped.insert(node, Dropped { why, times, for_good, is_near, since, led, reading });
        self.release_all(Source::Peer(node));
        self.forget_states(node);
        self.ledger.drop_signer(node);
        self.count_taken();
        was_there
    }

    fn set_busy(&mut self, node: NodeId, busy: bool) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.busy = busy;
        }
    }

    fn release_all(&mut self, source: Source) {
        let all = self.asked.iter().filter(|(_, asked)| asked.source == source);
        for index in all.map(|(index, _)| *index).collect::<Vec<_>>() {
            self.release(source, index);
        }
    }

    /// A chunk is no longer asked of this source.
    fn release(&mut self, source: Source, index: ChunkIndex) {
        if self.asked.get(&index).is_none_or(|asked| asked.source != source) {
            return;
        }
        self.asked.remove(&index);
        if !self.ledger.linked().contains(index) && !self.keeping.contains_key(&index) {
            self.taken.remove(index);
        }
        if let Source::Peer(node) = source
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.asked = peer.asked.saturating_sub(1);
        }
    }

    fn count_taken(&mut self) {
        self.taken = self.ledger.linked().clone();
        for index in self.asked.keys().chain(self.keeping.keys()).chain(&self.stale) {
            self.taken.insert(*index);
        }
    }

    fn void(&mut self) {
        self.ledger.void();
        self.stale.extend(std::mem::take(&mut self.keeping).into_keys());
        self.from_peers = ChunkSet::empty(self.ledger.map());
        self.lead.anew_after_void();
        if self.leads() {
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
        self.lead_with_chain();
        if self.has_holder() {
            self.stop_origin();
            if let Some((index, sides)) = self.ledger.dispute() {
                return self.settle_dispute(index, &sides);
            }
        }
        self.ask_states();
        self.ask_peers();
        if self.leads() && !self.has_holder() {
            self.read_origin();
        } else if !near {
            self.look_for_help();
        }
    }

    /// Where all chunks link, some of them to a stream and the others to the digest, and these do not meet, the stream is
    /// false.
    fn check_whole(&mut self) {
        let is_still = self.keeping.is_empty() && self.stale.is_empty();
        if self.ledger.linked().is_full() && is_still {
            match self.lead.attempt.filter(|attempt| attempt.signer != self.me) {
                Some(attempt) => self.stream_is_void(attempt),
                None => self.void(),
            }
        }
    }

    /// Whether the blob may still come from those who are known.
    fn has_hope(&self) -> bool {
        // What a peer that has just begun will do it may not know itself yet.
        let is_new = |peer: &Peer| self.ticks < peer.since + INTRODUCTION;
        let trading = |peer: &Peer| peer.class == LinkClass::Lan && (peer.may_lead() || is_new(peer));
        self.leads()
            || self.may_lead()
            || self.leader().is_some()
            || self.awaits_words()
            || self.peers.values().any(trading)
            || !self.asked.is_empty()
            || !self.keeping.is_empty()
            || !self.stale.is_empty()
    }

    /// Nobody here leads, nor may this node: others are asked to, and more are searched for.
    fn look_for_help(&mut self) {
        if self.has_hope() || !self.searched_site {
            return;
        }
        match self.lead.request {
            Request::Unasked => self.ask_to_lead(),
            Request::Promised { by, since } => {
                let is_over = !self.peers.contains_key(&by) || self.ticks - since >= PROMISE;
                if is_over {
                    self.lead.broken.insert(by);
                    self.ask_to_lead();
                }
            }
            Request::Asked => {}
            Request::Denied if self.searched_network => self.search_again(),
            Request::Denied => {}
        }
    }

    fn ask_to_lead(&mut self) {
        self.lead.request = Request::Asked;
        // Those who want the blob say themselves whether they can.
        let but = self.peers.keys().chain(&self.lead.broken).copied().collect();
        self.effects.push(Effect::AskLead(but));
    }

    fn verified(&mut self, mut refuted: Vec<NodeId>) {
        if let Some((true_chain, _)) = self.ledger.settle() {
            refuted.extend(self.peers.iter().filter_map(|(node, peer)| match &peer.chain {
                Chain::Aside(chain) if **chain != true_chain => Some(*node),
                _ => None,
            }));
        }
        for node in refuted {
            self.ban(node, Proof::FalseClaim);
        }
        self.stop_origin();
        self.over = true;
        self.effects.push(Effect::Verified);
    }

    fn settle_dispute(&mut self, index: ChunkIndex, sides: &[NodeId]) {
        if self.asked.contains_key(&index) || self.keeping.contains_key(&index) || self.stale.contains(&index)
        {
            return;
        }
        let ready = sides.iter().find(|node| self.peers.get(node).is_some_and(|peer| !peer.busy));
        if let Some(node) = ready.copied() {
            let mut starts: Vec<State> = Vec::new();
            for link in self.ledger.candidates(index) {
                if !starts.contains(&link.from) {
                    starts.push(link.from);
                }
            }
            self.ask(node, index, starts, false);
        }
    }

    /// Peers may have come back, or others may hold the blob by now; without any progress since the last search
    /// a further one would find no more.
    fn search_again(&mut self) {
        let here = self.ledger.linked().len();
        let fruitless = self.here_at_search.is_some_and(|before| here <= before);
        if fruitless || (here == 0 && self.dropped.is_empty()) {
            self.give_up();
            return;
        }
        self.here_at_search = Some(here);
        (self.searched_site, self.searched_network) = (false, false);
        self.lead.request = Request::Unasked;
        self.lead.broken.clear();
        self.effects.push(Effect::Search);
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
