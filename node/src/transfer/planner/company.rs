//! Who there is to take from: peers that come, say what they have, fail, and come back.

use wherry_proto::{ChunkIndex, ChunkSet, NodeId, Role, Update, lot, rank};

use super::circle::STRANGE;
use super::event::{DropReason, Effect, Proof, Scope, Source};
use super::lead::{INTRODUCTION, LADEN, Request};
use super::peer::{Chain, Peer};
use super::{Farther, PROMISE, Planner};
use crate::swarm::LinkClass;

/// How many peers one transfer uses at a time; offers beyond it are left alone. Twice as many find a rare chunk a little
/// sooner, and say twice as much: in the simulation of 64 nodes whose upload is scarce all are done later by it.
pub const MAX_PEERS: usize = 16;

/// From how many peers on that have a chunk it counts as common: enough that one of them has a slot free soon.
const COMMON: usize = 4;

/// How many of these are those of highest rank, one of whom leads.
pub(super) const RANKED: usize = 4;

/// How many peers that are only on their way to the blob are begun to be followed in one tick, beside these and whoever
/// leads: each is a connection to be made, and where a whole site begins at once all nodes make theirs.
pub(super) const FOLLOWED_A_TICK: usize = 6;

/// How many peers that were dropped are remembered; then no further offer is taken.
pub const MAX_DROPPED: usize = 256;

/// How often a peer may fail and come back in one transfer.
pub const MAX_RETURNS: u8 = 5;

/// How many ticks, one for each that comes before it in rank, a node without a way to a blob leaves the search of the network
/// to others, at most.
const MAX_SEARCH_WAIT: u64 = 4;

/// Of how many bytes a blob is at most that is read from an origin, as long as it gives something, rather than searched for all
/// over the network. A search is some twenty questions with answers of up to 2 kB, and a handshake with each of those that are
/// not connected, most of them over thin links: of a larger blob that is a hundredth or two.
const NOT_WORTH_A_SEARCH: u64 = 6 << 20;

/// After how many ticks a peer that failed is met again for the first time.
const AGAIN: u64 = 1;

#[derive(Debug)]
pub(super) struct Dropped {
    pub(super) why: String,
    pub(super) times: u8,
    pub(super) for_good: bool,
    pub(super) is_near: bool,
    pub(super) since: u64,
    // How often it failed while it led.
    pub(super) led: u8,
    // The last of its readings that was seen: a further one is that of another life.
    pub(super) reading: u64,
    // How many states of that were known to anybody, with what may have been on its way: if somebody knows more, it goes on.
    pub(super) known: u32,
}

impl Planner {
    /// Those of this site who failed are met again after a while, each time a longer one: a connection that broke, or
    /// chunks that were taken back, are no reason to do without a node for the rest of the transfer.
    pub(super) fn meet_again(&mut self) {
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
            self.met(node, LinkClass::Lan, false, false);
        }
    }

    pub(super) fn met(&mut self, node: NodeId, class: LinkClass, holds: bool, leads: bool) {
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
        let is_needed = holds || leads || self.lead.is_by(&node);
        if !may_return || self.peers.contains_key(&node) || !self.has_place(&node, is_needed) {
            return;
        }
        let map = self.ledger.map();
        let rank = rank(&self.ledger.digest(), &node);
        let high = self.high_rank();
        let lot = lot(&self.me, &node);
        self.peers.insert(node, Peer::new(class, ChunkSet::empty(map), rank, lot, self.ticks));
        // The site is larger than it was when nobody was there to lead.
        if self.lead.request == Request::Denied && !self.dropped.contains_key(&node) {
            self.lead.request = Request::Unasked;
        }
        // Whoever comes back has waited before.
        let is_known = self.dropped.contains_key(&node);
        if holds {
            self.hold(node);
        } else if is_known || self.circle.has(rank, lot) {
            self.follow_in_turn(node, rank >= high);
        }
    }

    /// Follows a peer at once, if it `is_first`, since it is high in rank or leads, or as one of the few of this tick.
    fn follow_in_turn(&mut self, node: NodeId, is_first: bool) {
        if !is_first {
            let Some(left) = self.may_follow.checked_sub(1) else { return };
            self.may_follow = left;
        }
        self.follow(node);
    }

    /// The least of those ranks that are the highest.
    fn high_rank(&self) -> u64 {
        let mut ranks: Vec<u64> = self.peers.values().map(|peer| peer.rank).collect();
        ranks.sort_unstable_by(|one, two| two.cmp(one));
        ranks.get(RANKED - 1).copied().unwrap_or(0)
    }

    pub(super) fn follow(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.followed.is_none() {
            peer.followed = Some(self.ticks);
            // A blob of one chunk that is held has nothing to tell of.
            if !peer.holds() || self.ledger.map().count() > 1 {
                self.effects.push(Effect::Follow(node));
            }
        }
    }

    /// Whoever leads is followed, and the few of highest rank, then some of the others: those of the circle, and whoever has waited
    /// for these. Those come first with whom other blobs are shared too: one connection is enough for all.
    pub(super) fn follow_more(&mut self) {
        self.may_follow = FOLLOWED_A_TICK;
        let leader = self.leader().map(|seen| seen.attempt.signer);
        let is_due = |(node, peer): &(&NodeId, &Peer)| {
            let has_waited = self.searched_site && self.ticks >= peer.met + STRANGE;
            let is_near = has_waited
                || self.dropped.contains_key(*node)
                || self.circle.has(peer.rank, peer.lot)
                || leader == Some(**node);
            peer.followed.is_none() && is_near
        };
        let unfollowed = self.peers.iter().filter(is_due);
        let mut waiting: Vec<(u64, NodeId, u64)> =
            unfollowed.map(|(node, peer)| (peer.lot, *node, peer.rank)).collect();
        if waiting.is_empty() {
            return;
        }
        waiting.sort_unstable_by(|one, two| two.cmp(one));
        let high = self.high_rank();
        for (_, node, rank) in waiting {
            self.follow_in_turn(node, rank >= high || leader == Some(node));
        }
    }

    /// A peer that was asked says what it does: its first word, which counts until it tells this node as its follower. One
    /// that has been followed for long and tells nothing is not believed any more.
    pub(super) fn says(&mut self, node: NodeId, role: Option<Role>) {
        let count = self.ledger.map().count();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (
            Some(
                role @ (Role::Leading { known, .. }
                | Role::Candidate { known, .. }
                | Role::Following { known, .. }),
            ),
            false,
        ) = (role, peer.tells)
        else {
            return;
        };
        let is_mute = peer.is_mute(self.ticks);
        if peer.class != LinkClass::Lan || peer.holds() || is_mute || known >= count {
            return;
        }
        peer.role = Some(role);
        if matches!(role, Role::Leading { .. } | Role::Candidate { .. }) {
            self.follow(node);
        }
    }

    /// Whether there is a place for one more peer; if all are taken, that of one who is of no use at the moment may be
    /// given away. Those come first who are needed, since they hold the blob or lead, then the few of highest rank, whom everybody must see, then those whom lot has
    /// given to this node: were it the same for all nodes, most of them would never be asked for anything.
    pub(super) fn has_place(&mut self, node: &NodeId, needed: bool) -> bool {
        if self.peers.len() < MAX_PEERS {
            return true;
        }
        let digest = self.ledger.digest();
        let high = self.high_rank();
        let worth = |rank: u64, lot: u64| if rank >= high { (1, rank) } else { (0, lot) };
        let newcomer = worth(rank(&digest, node), lot(&self.me, node));
        let is_needed = needed || newcomer.0 > 0;
        // Whoever leads stays: were it met anew, what it does would not be known for a moment.
        let is_idle = |node: &NodeId, peer: &Peer| {
            let is_useless = peer.asked == 0 && !peer.holds() && (is_needed || peer.here.is_empty());
            is_useless && !self.lead.is_by(node)
        };
        let idle = self.peers.iter().filter(|(node, peer)| is_idle(node, peer));
        let least = idle.map(|(node, peer)| (worth(peer.rank, peer.lot), *node)).min();
        let Some((least, idle)) = least else { return false };
        if !needed && newcomer < least {
            return false;
        }
        let is_followed = self.peers.remove(&idle).is_some_and(|peer| peer.followed.is_some());
        self.forget_states(idle);
        self.forget_sought(idle);
        if is_followed {
            self.effects.push(Effect::Unfollow(idle));
        }
        true
    }

    /// A peer says that it holds the blob.
    pub(super) fn hold(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.holds() {
            return;
        }
        peer.role = Some(Role::Held);
        self.follow(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if self.limited && peer.class == LinkClass::Wan {
            // It is asked when bytes may come from there.
            peer.chain = Chain::None;
            return;
        }
        self.ask_claim(node);
    }

    pub(super) fn updated(&mut self, node: NodeId, update: &Update) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let map = self.ledger.map();
        let Some(chunks) = update.chunks(&map) else {
            let why = "it says that it has chunks which the blob cannot have".to_owned();
            return self.drop_peer(node, DropReason::Failed(why));
        };
        let chunks: Vec<_> = chunks.collect();
        for index in &chunks {
            peer.here.insert(*index);
        }
        self.count_common(&chunks);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.tells = true;
        match update.role {
            Role::Held => self.hold(node),
            Role::Gone => self.drop_peer(node, DropReason::Left("it has given up the blob".into())),
            role => {
                let before = peer.stream(node).map(|(attempt, _)| attempt);
                peer.role = Some(role);
                let after = peer.stream(node).map(|(attempt, _)| attempt);
                if after != before && after.is_some_and(|attempt| attempt.signer != node) {
                    peer.turns = peer.turns.saturating_add(1);
                }
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

    fn count_common(&mut self, chunks: &[ChunkIndex]) {
        for index in chunks {
            let has = |peer: &&Peer| peer.is_claimed() || peer.here.contains(*index);
            let have = self.peers.values().filter(has).take(COMMON);
            if !self.common.contains(*index) && have.count() == COMMON {
                self.common.insert(*index);
            }
        }
    }

    pub(super) fn drop_peer(&mut self, node: NodeId, reason: DropReason) {
        // One that trades may be right next time, when another leads.
        let holds = self.peers.get(&node).is_some_and(Peer::holds);
        let for_good = holds && matches!(reason, DropReason::WrongChunk(_));
        if self.forget_peer(node, &reason, for_good) {
            self.effects.push(Effect::Drop(node, reason));
        }
    }

    pub(super) fn ban(&mut self, node: NodeId, proof: Proof) {
        self.forget_peer(node, &proof, true);
        self.effects.push(Effect::Ban(node, proof));
    }

    pub(super) fn forget_peer(&mut self, node: NodeId, why: &dyn std::fmt::Display, for_good: bool) -> bool {
        let reading = self.last_reading(&node);
        let known = self.known_of(&node, reading);
        let peer = self.peers.remove(&node);
        let was_there = peer.is_some();
        let led = peer.as_ref().is_some_and(|peer| matches!(peer.role, Some(Role::Leading { .. })));
        let before = self.dropped.get(&node);
        let led = before.map_or(0, |dropped| dropped.led).saturating_add(u8::from(led));
        let (reading, known) = before
            .filter(|dropped| dropped.reading > reading)
            .map_or((reading, known), |dropped| (dropped.reading, dropped.known));
        let is_near = peer.map_or_else(
            || before.is_some_and(|dropped| dropped.is_near),
            |peer| peer.class == LinkClass::Lan,
        );
        let times = before.map_or(0, |dropped| dropped.times).saturating_add(u8::from(was_there));
        let for_good = for_good || before.is_some_and(|dropped| dropped.for_good);
        let since = self.ticks;
        let why = why.to_string();
        self.dropped.insert(node, Dropped { why, times, for_good, is_near, since, led, reading, known });
        self.release_all(Source::Peer(node));
        self.forget_states(node);
        self.forget_sought(node);
        self.ledger.drop_signer(node);
        self.count_taken();
        was_there
    }

    pub(super) fn set_busy(&mut self, node: NodeId, busy: bool) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.busy = busy;
        }
    }

    /// Whether the blob may still come from those who are known.
    pub(super) fn has_hope(&self) -> bool {
        // What a peer that has just begun will do it may not know itself yet, nor what one does that only it sees.
        let is_new =
            |peer: &Peer| peer.followed.is_none_or(|since| self.ticks < since + INTRODUCTION + LADEN);
        let trading =
            |peer: &Peer| peer.class == LinkClass::Lan && (peer.may_lead(self.ticks) || is_new(peer));
        self.leads()
            || self.may_lead()
            || self.leader().is_some()
            || self.awaits_words()
            || (self.limited && (self.origin.count > 0 || self.peers.values().any(Peer::holds)))
            || self.peers.values().any(trading)
            || !self.asked.is_empty()
            || !self.keeping.is_empty()
            || !self.stale.is_empty()
    }

    /// Whether it is for this node to ask others than those of the site: it leads, or those who are here have no way to the
    /// blob. Then those of high rank ask first, since one who finds it is enough.
    pub(super) fn is_to_look_farther(&self) -> bool {
        let is_enough = match self.farther {
            Farther::Unasked => false,
            Farther::Asking(_) | Farther::Asked(Scope::Network) => true,
            Farther::Asked(_) => {
                let is_small = self.ledger.map().size() <= NOT_WORTH_A_SEARCH;
                is_small && self.may_read() && self.origin.silent < 2 * self.stall()
            }
        };
        if is_enough || !self.searched_site || self.is_held() {
            return false;
        }
        let near: Vec<&Peer> = self.peers.values().filter(|peer| peer.class == LinkClass::Lan).collect();
        let before = near.iter().filter(|peer| peer.rank > self.lead.rank()).count() as u64;
        let is_stuck = !self.limited
            && self.asked.is_empty()
            && self.keeping.is_empty()
            && !self.may_lead()
            && self.leader().is_none()
            && !self.awaits_words()
            && !near.iter().any(|peer| peer.may_lead(self.ticks))
            && self.lead.vacant() >= before.min(MAX_SEARCH_WAIT);
        self.leads() || is_stuck
    }

    /// Whether anybody says that it holds the blob.
    pub(super) fn is_held(&self) -> bool {
        self.peers.values().any(Peer::holds)
    }

    /// Asks those at other sites or, if they have been asked, the rest of the network.
    pub(super) fn look_farther(&mut self) {
        let scope = match self.farther {
            Farther::Unasked => Scope::OtherSites,
            Farther::Asked(Scope::OtherSites) => Scope::Network,
            Farther::Asking(_) | Farther::Asked(_) => return,
        };
        self.farther = Farther::Asking(scope);
        self.effects.push(Effect::Search(scope));
    }

    /// Nobody here leads, nor may this node: others are asked to, and more are searched for.
    pub(super) fn look_for_help(&mut self) {
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
            Request::Denied => match self.farther {
                Farther::Asking(_) => {}
                Farther::Asked(Scope::Network) => self.search_again(),
                Farther::Unasked | Farther::Asked(_) => self.look_farther(),
            },
        }
    }

    pub(super) fn ask_to_lead(&mut self) {
        self.lead.request = Request::Asked;
        // Those who want the blob say themselves whether they can.
        let but = self.peers.keys().chain(&self.lead.broken).copied().collect();
        self.effects.push(Effect::AskLead(but));
    }

    /// Peers may have come back, or others may hold the blob by now; without any progress since the last search
    /// a further one would find no more.
    pub(super) fn search_again(&mut self) {
        let here = self.ledger.linked().len();
        let fruitless = self.here_at_search.is_some_and(|before| here <= before);
        if fruitless || (here == 0 && self.dropped.is_empty()) {
            self.give_up();
            return;
        }
        self.here_at_search = Some(here);
        (self.searched_site, self.farther) = (false, Farther::Unasked);
        self.lead.request = Request::Unasked;
        self.lead.broken.clear();
        self.effects.push(Effect::Search(Scope::Site));
    }
}
