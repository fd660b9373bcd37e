//! Who reads the origin, and whose states count.
//!
//! Of the nodes of a site that want a blob and can reach an origin, the one with the highest rank leads; the others
//! follow it. There is no election: each node decides by what it sees of its peers, and where views differ for a moment
//! two may read, until the one that is behind sees the other and stops. Whoever is about to lead says so before it asks
//! whether anybody else is: of two who do that at the same time one at least hears of the other (Dekker, 1965), and the
//! lower in rank has read nothing yet. Whoever leads is never unseated by arrivals, only by followers who wait for its link.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wherry_proto::{Attempt, NodeId, Role, SignedStates, StateChain, StatePrefix};

use super::readings::{LEAD_MARGIN, Past, Seen, Watched, foremost};
use super::relief::{LAST_RESORT, SLOW_FOR};
use super::{Effect, Farther, LeadEnd, MAX_PEERS, Peer, Planner, Scope, Source, Succession};
use crate::swarm::{LinkClass, has_long_chain};

/// How many chunks a leader may have without having told this node so yet: twice as many as it holds back from some of its
/// followers.
const OUTRUN: u32 = 64;

/// For how many ticks a leader's reading may stand still before the next in rank takes over, at least: 5 s.
pub const STALL: u64 = 10;

/// How many of a leader's usual gaps between two chunks are no stall.
const STALL_GAPS: u64 = 4;

/// The slowest link that is not taken for a stalled one, in bytes a second: a quarter of 512 kbit/s, as where four layers
/// share such a link.
const SLOWEST: u32 = 16 << 10;

/// Among how many leaders a rate that is set is shared, before one of them counts as stalled.
const SHARERS: u64 = 8;

/// How many ticks each rank gives the one before it to begin.
const PATIENCE: u64 = 2;

/// How many ticks a node that reads another blob leaves one that nobody reads yet to neighbours who are about to get images:
/// 3 s. Whoever learns of an image first, since it asked the origin about the tag, would else begin with all layers before
/// anybody else has heard of them, and its link would have to bear them all. What it reads meanwhile is not lost.
pub(super) const LADEN: u64 = 6;

/// How many ticks a peer may take to say what it does before nobody waits for it any more.
pub(super) const INTRODUCTION: u64 = 2;

/// How many ticks a peer of higher rank that says nothing counts as one that may begin to lead.
pub(super) const QUIET: u64 = 10;

/// For how many ticks what a peer answered when it was asked counts, though it has been followed since and tells nothing:
/// 30 s. Where a whole site begins at once on slow machines, handshakes alone take ten.
pub(super) const MUTE: u64 = 60;

/// Once in how many ticks a node that goes by a leader which is none of its peers tries to meet it: they may be connected later.
const MEETING: u64 = 4;

/// How many ticks those may take who are asked what they do, before nobody waits for them any more.
const ASKING: u64 = 4;

/// How many ticks a holder's claim may take before nobody waits for it any more: 10 s.
const CLAIMING: u64 = 20;

/// How many more on the slowest links, where it waits behind chunks: 30 s. Whoever read meanwhile what others hold would
/// take from the site's uplink what the rest of the site still waits for.
const CLAIMING_SLOWLY: u64 = 60;

#[derive(Debug)]
pub(super) struct Lead {
    rank: u64,
    // The number of this node's own attempt, while it leads or is about to.
    pub(super) mine: Option<u64>,
    // Whether it leads, and is not only about to.
    begun: bool,
    // Of the states that are known here, while it leads.
    past: Past,
    next: u64,
    // Whose states the ledger's stream has.
    pub(super) attempt: Option<Attempt>,
    pub(super) signed: Option<Arc<SignedStates>>,
    // Who is asked for states, and how many were known then.
    pub(super) pulling: Option<(NodeId, u32)>,
    // How many chunks were here when that was last done, and at which tick.
    pub(super) pulled: (u32, u64),
    // The attempt whose states do not go on from those that are here, and must come from the first one on.
    pub(super) anew: Option<Attempt>,
    pub(super) watched: BTreeMap<Attempt, Watched>,
    // For how many ticks there has been no leader.
    vacant: u64,
    pub(super) request: Request,
    // Who said that it would lead, and did not.
    pub(super) broken: BTreeSet<NodeId>,
    // Whose readings came to nothing.
    pub(super) void: BTreeSet<NodeId>,
    // The last reading, if whoever leads knew all states of it and had not got half of the chunks: it has them from a holder elsewhere.
    pub(super) outrun: Option<Attempt>,
    // By whom this node is led, or was until it leads itself.
    by: Option<NodeId>,
    // The tick at which others were asked what they do, until they have answered.
    pub(super) asking: Option<u64>,
    // In bytes a second: a slower link counts as stalled.
    slowest: u32,
    // For how many ticks its followers have found this node slow.
    slow: u64,
    // Whether it has made way for that.
    pub(super) made_way: bool,
    // Whether this node reads another blob, and others could read this one.
    pub(super) laden: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Unasked,
    Asked,
    Promised { by: NodeId, since: u64 },
    Denied,
}

impl Lead {
    pub(super) fn new(rank: u64, first_attempt: u64) -> Self {
        Self {
            rank,
            mine: None,
            begun: false,
            past: Past::of(0),
            next: first_attempt,
            attempt: None,
            signed: None,
            pulling: None,
            pulled: (0, 0),
            anew: None,
            watched: BTreeMap::new(),
            vacant: 0,
            request: Request::Unasked,
            broken: BTreeSet::new(),
            void: BTreeSet::new(),
            outrun: None,
            by: None,
            asking: None,
            slowest: SLOWEST,
            slow: 0,
            made_way: false,
            laden: false,
        }
    }

    /// What was followed is void.
    pub(super) fn anew_after_void(&mut self) {
        self.attempt = None;
        self.signed = None;
        self.anew = None;
    }

    /// Whether this node goes by what `node` reads.
    pub(super) fn is_by(&self, node: &NodeId) -> bool {
        self.by.as_ref() == Some(node)
    }

    /// This node's rank for the blob.
    pub(super) const fn rank(&self) -> u64 {
        self.rank
    }

    /// Whether the states that are gone by tell nothing of what the site has.
    pub(super) fn is_outrun(&self) -> bool {
        self.outrun.is_some() && self.outrun == self.attempt
    }

    /// For how many ticks there has been nobody to take the blob from.
    pub(super) const fn vacant(&self) -> u64 {
        self.vacant
    }

    /// How many readings are watched.
    pub(super) fn watched(&self) -> usize {
        self.watched.len()
    }

    pub(super) fn is_stalled(&self, attempt: &Attempt, now: u64, least: u64) -> bool {
        self.watched.get(attempt).is_some_and(|watched| {
            now - watched.moved >= least.max(watched.gap.unwrap_or_default() * STALL_GAPS)
        })
    }
}

impl Planner {
    /// Whether this node leads: takes the blob from where bytes are dear, for all of its site.
    pub fn leads(&self) -> bool {
        self.lead.mine.is_some() && self.lead.begun
    }

    /// Whether this node leads or is about to, and says so.
    pub(super) fn claims_lead(&self) -> bool {
        self.lead.mine.is_some()
    }

    /// For how many ticks a reading may stand still at least: a chunk must have time to cross the thinnest link.
    pub(super) fn stall(&self) -> u64 {
        let chunk = u64::from(self.ledger.map().chunk_len() / self.lead.slowest);
        STALL.max(chunk * 1000 / super::TICK.as_millis() as u64)
    }

    /// Whether this node leads another blob while neighbours are about to get images, so that one of them could lead this one.
    pub const fn set_laden(&mut self, laden: bool) {
        self.lead.laden = laden;
    }

    /// Leaders are held to so many bytes a second, all of them together.
    pub fn paced(&mut self, rate: u64) {
        let share = u32::try_from(rate / SHARERS).unwrap_or(u32::MAX);
        self.lead.slowest = SLOWEST.min(share.max(1));
    }

    /// A limit keeps bytes from coming into the site, or none does any more. Whoever leads stops, and all wait alike: what is
    /// here stays, and nobody takes over from anybody. Afterwards it is decided anew who leads.
    pub(super) fn limit(&mut self, limited: bool) {
        if std::mem::replace(&mut self.limited, limited) == limited {
            return;
        }
        self.lead.vacant = 0;
        if !limited {
            if self.lead.request == Request::Denied {
                self.lead.request = Request::Unasked;
            }
            // Others may have got it meanwhile.
            if self.farther != Farther::Asking(Scope::OtherSites) {
                self.farther = Farther::Unasked;
            }
            self.lead.broken.clear();
            self.ask_chains();
            return;
        }
        self.step_down();
        let dear = |node: &NodeId| self.peers.get(node).is_some_and(|peer| peer.class == LinkClass::Wan);
        let asked: Vec<_> = self
            .asked
            .iter()
            .filter_map(|(index, asked)| match asked.source {
                Source::Peer(node) if dear(&node) => Some((node, *index)),
                _ => None,
            })
            .collect();
        for (node, index) in asked {
            self.release(Source::Peer(node), index);
            self.effects.push(Effect::Cancel(node, index));
        }
    }

    /// Whether a limit is all that keeps the blob from coming.
    pub fn waits_for_limit(&self) -> bool {
        let near = |peer: &Peer| peer.class == LinkClass::Lan && peer.is_claimed();
        self.limited
            && self.searched_site
            && self.asked.is_empty()
            && self.keeping.is_empty()
            && self.leader().is_none()
            && !self.awaits_words()
            && !self.peers.values().any(near)
    }

    /// What this node tells those who follow it.
    pub fn role(&self) -> Role {
        let known = self.ledger.stream().known();
        match self.lead.mine {
            Some(attempt) if self.lead.begun => Role::Leading { attempt, known },
            Some(attempt) => Role::Candidate { attempt, known },
            None => {
                let known = match (&self.lead.signed, self.lead.attempt) {
                    (Some(signed), _) => signed.prefix.known(),
                    (None, Some(_)) => known,
                    // Whoever holds the blob gives all of a short one.
                    (None, None) => {
                        let is_long = |chain: &&Arc<StateChain>| has_long_chain(chain.digest(), chain.map());
                        self.ledger.chain().filter(is_long).map_or(0, |chain| chain.map().count() - 1)
                    }
                };
                // Who has made way is there if nobody leads.
                let makes_way = self.lead.made_way && self.leader().is_some();
                let may_lead = self.may_lead() && !makes_way;
                Role::Following {
                    stream: self.lead.attempt,
                    known,
                    may_lead,
                    led_slowly: self.is_led_slowly(),
                }
            }
        }
    }

    /// The states of another's reading that this node follows, as they were signed.
    pub fn signed(&self) -> Option<&Arc<SignedStates>> {
        self.lead.signed.as_ref()
    }

    /// Whether there is an origin to read.
    pub(super) const fn may_read(&self) -> bool {
        self.origin.offered && !self.origin.exhausted
    }

    pub(super) fn may_lead(&self) -> bool {
        self.may_read() || self.peers.values().any(|peer| peer.class == LinkClass::Wan && peer.is_claimed())
    }

    /// Time goes by for those who lead, and where nobody does.
    pub(super) fn watch_leaders(&mut self) {
        self.watch_readings();
        self.lead.past.tick(self.ledger.stream().known());
        self.lead.slow = if self.leads_slowly() { self.lead.slow + 1 } else { 0 };
        let leader = self.leader().map(|seen| seen.attempt.signer);
        if let Some(seen) = self.leader()
            && let Some(peer) = self.peers.get(&seen.attempt.signer).filter(|peer| peer.tells)
        {
            let knows_all = seen.known + 1 >= self.ledger.map().count();
            let has_little = 2 * (peer.here.len() + OUTRUN) < seen.known;
            self.lead.outrun = (knows_all && has_little).then_some(seen.attempt);
        }
        let reads = self.leader().filter(|seen| seen.begun).map(|seen| seen.attempt.signer);
        if !self.leads()
            && let Some(node) = reads
        {
            self.is_led_by(node);
            // It was heard of from others, and its place may have been given away before it led.
            if !self.peers.contains_key(&node) && self.ticks.is_multiple_of(MEETING) {
                self.effects.push(Effect::Meet(node));
            }
        }
        let vacant =
            !self.limited && !self.leads() && leader.is_none() && !self.has_holder() && !self.awaits_states();
        self.lead.vacant = if vacant { self.lead.vacant + 1 } else { 0 };
    }

    /// Begins to lead, or stops, by what is seen of others.
    pub(super) fn decide_lead(&mut self) {
        if self.limited {
            return;
        }
        if let Some(number) = self.lead.mine {
            let mut all = self.live();
            let attempt = Attempt { signer: self.me, number };
            let known = self.ledger.stream().known();
            // As others see it, of whom they have not seen how long it took.
            let recent = if self.lead.begun { self.lead.past.recent(known) } else { LEAD_MARGIN.min(known) };
            if self.lead.begun {
                // Until the other begins, somebody must read.
                all.retain(|seen| seen.begun);
            }
            all.push(Seen { attempt, known, rank: self.lead.rank, begun: self.lead.begun, recent });
            let is_first = foremost(&all).is_none_or(|first| first.attempt == attempt);
            if !is_first || !(self.lead.begun || self.may_lead()) {
                self.step_down();
            } else if !self.lead.begun {
                // The first in rank has asked all what they do. A newcomer that reads already, or knows who does, makes it stop
                // at its first word: a little is read twice then.
                let waits = (self.is_outranked() && self.awaits_roles()) || self.awaits_claims();
                if !self.asks() && !waits {
                    self.begin_to_lead();
                }
            } else if self.lead.slow >= SLOW_FOR {
                self.lead.made_way = true;
                self.effects.push(Effect::MakeWay);
                self.step_down();
            }
            return;
        }
        if !self.searched_site || !self.may_lead() || self.leader().is_some() {
            return;
        }
        // Where a whole site begins at once, many are connected before they have a word to say.
        let would = |peer: &&Peer| {
            peer.class == LinkClass::Lan && (peer.may_lead(self.ticks) || peer.is_silent(self.ticks, QUIET))
        };
        let others: Vec<&Peer> = self.peers.values().filter(would).collect();
        let before = others.iter().filter(|peer| peer.rank > self.lead.rank).count() as u64;
        let least = if self.lead.made_way && !others.is_empty() { LAST_RESORT } else { 0 };
        let laden = if self.lead.laden { LADEN } else { 0 };
        let patience = least + laden + before * PATIENCE + self.handicap();
        // What has been read to its end is given by those who have some of it, and nobody need lead for it.
        let waited = match self.is_read() && !self.is_alone() {
            true => self.lacks_for().map(|ticks| ticks.min(self.lead.vacant)),
            false => Some(self.lead.vacant),
        };
        if waited.is_some_and(|ticks| ticks >= patience) && !self.asks() {
            self.renumber();
            // What another site holds need not come from the origin.
            if self.farther == Farther::Unasked && !self.is_held() {
                self.look_farther();
            }
            if !self.ask_roles() && !self.awaits_words() {
                self.begin_to_lead();
            }
        }
    }

    /// Whoever is about to lead asks those of the site who do not tell it yet whether they do: an answer comes long before
    /// all are connected that are to be followed, and where the site is larger than what one node sees nobody else may know
    /// yet. Whether there is anybody to ask.
    fn ask_roles(&mut self) -> bool {
        let may_tell = |peer: &Peer| {
            peer.class == LinkClass::Lan && !peer.tells && !peer.holds() && !peer.is_mute(self.ticks)
        };
        if self.peers.len() < MAX_PEERS && !self.peers.values().any(may_tell) {
            return false;
        }
        self.lead.asking = Some(self.ticks);
        let but = self.peers.iter().filter(|(_, peer)| !may_tell(peer)).map(|(node, _)| *node).collect();
        self.effects.push(Effect::AskRoles(but));
        true
    }

    /// Whether answers to that may still come.
    fn asks(&self) -> bool {
        self.lead.asking.is_some_and(|since| self.ticks < since + ASKING + self.handicap())
    }

    /// Whether a peer may still say something that decides who leads.
    pub(super) fn awaits_words(&self) -> bool {
        self.awaits_roles() || self.awaits_claims()
    }

    /// Whether one may still say what it does.
    fn awaits_roles(&self) -> bool {
        self.peers.values().any(|peer| peer.is_silent(self.ticks, INTRODUCTION))
    }

    /// Whether one that holds the blob may still claim its chain.
    fn awaits_claims(&self) -> bool {
        let patience = CLAIMING + self.slowness(CLAIMING_SLOWLY);
        self.peers.values().any(|peer| {
            let claiming =
                peer.holds() && matches!(peer.chain, super::Chain::Asked | super::Chain::Elsewhere { .. });
            claiming && peer.chain_since.is_some_and(|since| self.ticks < since + patience)
        })
    }

    /// Whether some other node of the site that wants the blob is higher in rank.
    fn is_outranked(&self) -> bool {
        self.peers.values().any(|peer| peer.class == LinkClass::Lan && peer.rank > self.lead.rank)
    }

    /// Unless somebody at another site may still say that it holds the blob, and nobody there has made its claim yet.
    fn begin_to_lead(&mut self) {
        let is_far = |peer: &Peer| peer.class == LinkClass::Wan && peer.is_claimed();
        if self.farther == Farther::Asking(Scope::OtherSites) && !self.peers.values().any(is_far) {
            return;
        }
        self.lead.begun = true;
        let before = self.lead.by.take().map(|leader| Succession { leader, why: self.lead_end(leader) });
        self.effects.push(Effect::Lead(before));
    }

    pub(super) fn is_led_by(&mut self, node: NodeId) {
        if self.lead.by.replace(node) != Some(node) {
            self.effects.push(Effect::LedBy(node));
        }
    }

    /// Whether the one that led this node is not connected any more.
    pub(super) fn is_leader_gone(&self) -> bool {
        self.lead.by.is_some_and(|leader| !self.peers.contains_key(&leader))
    }

    /// Why a node leads no more.
    fn lead_end(&self, leader: NodeId) -> LeadEnd {
        let least = self.stall();
        let mut watched = self.lead.watched.keys().filter(|attempt| attempt.signer == leader);
        if self.lead.void.contains(&leader) {
            LeadEnd::Void
        } else if !self.peers.contains_key(&leader) {
            LeadEnd::Gone
        } else if watched.any(|attempt| self.lead.is_stalled(attempt, self.ticks, least)) {
            LeadEnd::Stalled
        } else {
            LeadEnd::Resigned
        }
    }

    /// A new attempt: what was signed under the number before does not bind it.
    pub(super) fn renumber(&mut self) {
        self.lead.mine = Some(self.lead.next);
        self.lead.past = Past::of(self.ledger.stream().known());
        self.lead.next += 1;
        self.lead.anew_after_void();
    }

    pub(super) fn step_down(&mut self) {
        self.lead.begun = false;
        if let Some(number) = self.lead.mine.take() {
            self.stop_origin();
            // The states stay good, and are given to whoever asks, until another's are followed.
            let any = self.ledger.stream().known() > 0;
            self.lead.attempt = any.then_some(Attempt { signer: self.me, number });
        }
    }

    /// The chain of a holder elsewhere is what those who follow this node need.
    pub(super) fn lead_with_chain(&mut self) {
        if !self.leads() || self.ledger.dispute().is_some() {
            return;
        }
        let Some(chain) = self.ledger.chain() else { return };
        let states = StatePrefix::of(chain);
        if states.hash() != self.ledger.stream().hash() {
            self.renumber();
            self.ledger.adopt(Arc::new(states));
        }
    }
}
