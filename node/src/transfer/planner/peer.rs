//! What is known of one peer in one transfer, and how much is asked of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wherry_proto::{Attempt, ChunkIndex, ChunkSet, Digest, NodeId, Role, StateChain};

use super::lead::MUTE;
use crate::swarm::LinkClass;

/// How many chunks are asked of one peer at a time, at most: its link must not idle for a round trip.
pub const PIPELINE: usize = 16;

/// How many are asked at the start, before it is known what a round trip is.
const FIRST_PIPELINE: usize = 2;

/// A chunk that takes no longer than this beside the shortest time is taken for one that did not queue.
const UNQUEUED: Duration = Duration::from_millis(5);

/// One that takes so much longer than three times the shortest has stood in a queue.
const QUEUED: Duration = Duration::from_millis(50);

/// For how many ticks a chunk that a peer has given to another is not asked of it again. Whoever got it may have died; by
/// then its own peers would have been told that it is there. The time doubles with each refusal of the same chunk.
const GIVEN: u64 = 2;

/// How often it doubles at most.
const MAX_REFUSALS: u32 = 5;

/// How many chunks a peer may have refused of late before nothing is asked of it until some of them may be asked again.
pub const MAX_REFUSED: usize = 1024;

/// A chunk that a peer did not give although it is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    // The tick from which on it may be asked for again.
    until: u64,
    times: u32,
}

/// How far a peer's claim has come.
#[derive(Debug)]
pub(super) enum Chain {
    /// It has none, since the blob is still on its way there, or is not to be asked for it now.
    None,
    Asked,
    /// It has signed the chain whose states have this digest, and they are to be had of others.
    Elsewhere {
        states: Digest,
        since: u64,
    },
    /// Contradicts what the origin is sending: nobody can know who is right before that ends.
    Aside(Arc<StateChain>),
    Claimed,
}

/// How deep a pipeline may be, measured: it grows while chunks take hardly longer than one alone, and shrinks when they
/// queue. So it comes to what the link's round trip and rate need, whatever these are.
#[derive(Debug, Clone)]
pub(super) struct Depth {
    depth: usize,
    least: usize,
    most: usize,
    shortest: Option<Duration>,
}

impl Depth {
    pub(super) const fn new(first: usize, least: usize, most: usize) -> Self {
        Self { depth: first, least, most, shortest: None }
    }

    pub(super) const fn get(&self) -> usize {
        self.depth
    }

    /// Takes in how long a chunk took.
    pub(super) fn took(&mut self, took: Duration) {
        // What was shortest once may have been on another path: it is forgotten by and by.
        let shortest = self.shortest.map_or(took, |shortest| took.min(shortest + shortest / 64));
        self.shortest = Some(shortest);
        if took <= shortest + shortest / 2 + UNQUEUED {
            self.depth = (self.depth + 1).min(self.most);
        } else if took > shortest * 3 + QUEUED {
            self.shrink();
        }
    }

    pub(super) fn shrink(&mut self) {
        self.depth = self.depth.saturating_sub(1).max(self.least);
    }
}

/// How long a chunk takes, after one more that took so long: of what was known before three parts count.
pub(super) fn smooth(before: Option<Duration>, took: Duration) -> Duration {
    before.map_or(took, |before| (before * 3 + took) / 4)
}

/// One peer in one transfer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) class: LinkClass,
    // None before it has said anything.
    pub(super) role: Option<Role>,
    // Whether it said so to this node as its follower, and not only when it was asked once.
    pub(super) tells: bool,
    pub(super) chain: Chain,
    // What it has while it does not hold the blob.
    pub(super) here: ChunkSet,
    pub(super) asked: usize,
    // The chunk that it is sending, as far as is known: it has a slot for this node.
    pub(super) sends: Option<ChunkIndex>,
    pub(super) depth: Depth,
    // How long one of its chunks takes, smoothed.
    pub(super) pace: Option<Duration>,
    // How many chunks it has sent, and at which tick the last one.
    pub(super) sent: (u32, u64),
    // How often it went over to what another one reads.
    pub(super) turns: u8,
    pub(super) busy: bool,
    // Chunks that it gave to others, as it says. They are remembered for as long again as they are not asked for.
    pub(super) refused: BTreeMap<ChunkIndex, Refused>,
    // How many chunks it sent that link to another reading than the one that this node goes by.
    pub(super) strange: u8,
    // The tick at which it was met.
    pub(super) met: u64,
    // The tick from which on it is followed, if it is.
    pub(super) followed: Option<u64>,
    // The tick at which it was first asked for its chain, if it was.
    pub(super) chain_since: Option<u64>,
    // How often it said that its states are to be had of others.
    pub(super) sent_on: u8,
    pub(super) rank: u64,
    // How much it is one that this node is to know: see `lead::lot`.
    pub(super) lot: u64,
}

impl Peer {
    pub(super) fn new(class: LinkClass, nothing: ChunkSet, rank: u64, lot: u64, now: u64) -> Self {
        Self {
            class,
            role: None,
            tells: false,
            chain: Chain::None,
            here: nothing,
            asked: 0,
            sends: None,
            depth: Depth::new(FIRST_PIPELINE, 1, PIPELINE),
            pace: None,
            sent: (0, 0),
            turns: 0,
            busy: false,
            refused: BTreeMap::new(),
            strange: 0,
            met: now,
            followed: None,
            chain_since: None,
            sent_on: 0,
            rank,
            lot,
        }
    }

    pub(super) const fn holds(&self) -> bool {
        matches!(self.role, Some(Role::Held))
    }

    /// Whether it is about to get the blob like this node.
    pub(super) const fn trades(&self) -> bool {
        !self.holds() && matches!(self.class, LinkClass::Lan)
    }

    /// Whether it holds the blob and its claim counts.
    pub(super) const fn is_claimed(&self) -> bool {
        self.holds() && matches!(self.chain, Chain::Claimed)
    }

    pub(super) fn has(&self, index: ChunkIndex) -> bool {
        self.is_claimed() || (!self.holds() && self.here.contains(index))
    }

    /// What it has claimed, if the states are to be had of others, and since when it says so.
    pub(super) fn claims_elsewhere(&self) -> Option<(Digest, u64)> {
        match self.chain {
            Chain::Elsewhere { states, since } if self.holds() => Some((states, since)),
            _ => None,
        }
    }

    /// Whether it takes the blob from holders, and knows a chain that one of them has claimed.
    pub(super) fn knows_chain(&self) -> bool {
        let knows = matches!(self.role, Some(Role::Following { stream: None, known: 1.., .. }));
        knows && self.trades() && self.tells
    }

    /// Whether it may be asked for a chunk.
    pub(super) fn gives(&self, index: ChunkIndex, now: u64) -> bool {
        self.has(index) && self.refused.get(&index).is_none_or(|refused| now >= refused.until)
    }

    /// Whether it has said nothing yet, and has been followed, or known while it is not followed, for less than so many ticks.
    pub(super) fn is_silent(&self, now: u64, ticks: u64) -> bool {
        self.role.is_none() && now < self.followed.unwrap_or(self.met) + ticks
    }

    /// It does not give a chunk.
    pub(super) fn refuses(&mut self, index: ChunkIndex, now: u64) {
        let times = self.refused.get(&index).map_or(0, |refused| (refused.times + 1).min(MAX_REFUSALS));
        self.refused.insert(index, Refused { until: now + (GIVEN << times), times });
    }

    pub(super) fn forget_refused(&mut self, now: u64) {
        self.refused.retain(|_, refused| now < refused.until + (GIVEN << refused.times));
    }

    /// Whether it has not said lately that it gives nothing.
    fn is_willing(&self) -> bool {
        !self.busy && self.refused.len() < MAX_REFUSED
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_willing() && self.asked < self.depth.get()
    }

    /// Whether it has a slot for this node, and nothing to send in it when what it sends is here.
    pub(super) fn has_slot_to_keep(&self) -> bool {
        self.is_willing() && self.sends.is_some() && self.asked == 1
    }

    /// Whether it has been followed for long and tells nothing: what it said once counts no more.
    pub(super) fn is_mute(&self, now: u64) -> bool {
        !self.tells && self.followed.is_some_and(|since| now >= since + MUTE)
    }

    /// Whether it would lead if nobody better did.
    pub(super) fn may_lead(&self, now: u64) -> bool {
        matches!(self.role, Some(Role::Following { may_lead: true, .. })) && !self.is_mute(now)
    }

    /// Whether it leads or is about to, with this attempt.
    pub(super) fn claims_lead(&self, number: u64) -> bool {
        matches!(self.role, Some(Role::Leading { attempt, .. } | Role::Candidate { attempt, .. }) if attempt == number)
    }

    /// Whether it is about to lead.
    pub(super) const fn is_candidate(&self) -> bool {
        matches!(self.role, Some(Role::Candidate { .. }))
    }

    /// Whose reading it follows, or does itself or is about to, and how many states of it it knows.
    pub(super) fn stream(&self, node: NodeId) -> Option<(Attempt, u32)> {
        match self.role {
            Some(Role::Leading { attempt, known } | Role::Candidate { attempt, known }) => {
                Some((Attempt { signer: node, number: attempt }, known))
            }
            Some(Role::Following { stream: Some(attempt), known, .. }) => Some((attempt, known)),
            _ => None,
        }
    }

    pub(super) fn took(&mut self, took: Duration, now: u64) {
        self.depth.took(took);
        self.sent = (self.sent.0.saturating_add(1), now);
        self.pace = Some(smooth(self.pace, took));
    }

    /// A chunk was taken away from it after so long: it is given more time for the next one, so that two slow peers do
    /// not take the same chunk away from each other for ever.
    pub(super) fn is_slower_than(&mut self, waited: Duration) {
        self.depth.shrink();
        self.pace = Some(self.pace.map_or(waited, |pace| pace.max(waited)));
    }

    /// The less the better to ask.
    pub(super) fn burden(&self) -> Duration {
        self.pace.unwrap_or(Duration::from_millis(1)) * (self.asked as u32 + 1)
    }
}
