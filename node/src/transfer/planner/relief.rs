//! What the speed of a node's link has to do with leading, since all wait for whoever leads.
//!
//! A leader whose link is much slower than those of its followers makes way. It cannot know by itself, since it takes no more than it gives, and the origin may be what is slow. Its followers can:
//! they take chunks from it and from each other. Each says what it finds, and the leader goes by what several say.

use std::time::Duration;

use wherry_proto::{Attempt, Role};

use super::{Planner, TICK};
use crate::swarm::{LinkClass, UPLOAD_SLOTS};

/// A leader is slow if its chunks take so many times as long as those of others. A leader has all its upload slots full
/// where a follower may send to one peer alone, which makes the number of slots of it; beyond that it is its link.
const SLOWER: u32 = 2 * UPLOAD_SLOTS as u32;

/// Chunks that take less than this are not slow, whatever those of others take.
const QUICK: Duration = Duration::from_millis(100);

/// How many followers must find a leader slow, at least: one may be wrong, or lie.
const VOICES: usize = 2;

/// One in so many of its followers must.
const SHARE: usize = 4;

/// For how many ticks several must find it, one after the other: 3 s. A disk or a radio may stop for a moment.
pub(super) const SLOW_FOR: u64 = 6;

/// How many chunks of a leader are needed to say how long they take, the last of them [`RECENTLY`].
const SAMPLES: u32 = 2;

/// For how many ticks what was measured says something: 10 s.
const RECENTLY: u64 = 20;

/// For how many ticks at least nobody leads, where others may, before one that has made way does it all the same: 10 s.
pub(super) const LAST_RESORT: u64 = 20;

/// For how many of its usual times for a chunk a node waits, beside what all do, before it takes over.
const HANDICAP: u32 = 4;

/// The longest handicap, in ticks: 5 s.
const MAX_HANDICAP: u64 = 10;

/// The longest one where the leader's connection has ended: 2 s.
const MAX_HANDICAP_AFTER: u64 = 4;

impl Planner {
    /// For how many ticks this node leaves it to others to lead. A node whose own link is slow or crowded hears late of
    /// what they do, and would make a slow leader: of those who could take over, the quick ones do.
    pub(super) fn handicap(&self) -> u64 {
        self.slowness(if self.is_leader_gone() { MAX_HANDICAP_AFTER } else { MAX_HANDICAP })
    }

    /// How many ticks more than usual, so many at most, what is said to this node may take, since it waits behind chunks.
    pub(super) fn slowness(&self, most: u64) -> u64 {
        let near =
            self.peers.iter().filter(|(node, peer)| peer.class == LinkClass::Lan && !self.lead.is_by(node));
        // One that is quick proves that it is not the own link that is slow.
        let Some(quickest) = near.filter_map(|(_, peer)| peer.pace).min() else { return 0 };
        u64::try_from((quickest * HANDICAP).as_millis() / TICK.as_millis())
            .map_or(most, |ticks| ticks.min(most))
    }

    /// Whether the leader that this node goes by gives its chunks much slower than others do.
    pub(super) fn is_led_slowly(&self) -> bool {
        let Some(leader) = self.lead.attempt.map(|attempt| attempt.signer) else { return false };
        let Some(peer) = self.peers.get(&leader) else { return false };
        let (sent, last) = peer.sent;
        let Some(pace) = peer.pace.filter(|pace| *pace >= QUICK) else { return false };
        if sent < SAMPLES || self.ticks > last + RECENTLY {
            return false;
        }
        let others = self.peers.iter().filter(|(node, peer)| **node != leader && peer.trades());
        median(others.filter_map(|(_, peer)| peer.pace).collect())
            .is_some_and(|median| pace >= median * SLOWER)
    }

    /// Whether those who follow this node's reading find it slow, and another one could read in its place. Once in a
    /// transfer: were all slow, or slandered, somebody would have to lead.
    pub(super) fn leads_slowly(&self) -> bool {
        let Some(number) = self.lead.mine.filter(|_| !self.lead.made_way) else { return false };
        let own = Attempt { signer: self.me, number };
        let near = self.peers.values().filter(|peer| peer.class == LinkClass::Lan);
        let (mut followers, mut voices, mut is_other) = (0, 0, false);
        for role in near.filter_map(|peer| peer.role) {
            if let Role::Following { stream: Some(stream), may_lead, led_slowly, .. } = role
                && stream == own
            {
                followers += 1;
                voices += usize::from(led_slowly);
                is_other |= may_lead;
            }
        }
        is_other && voices >= VOICES.max(followers / SHARE)
    }
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}
