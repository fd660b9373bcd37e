//! The readings of the origin that go on in the site, as far as they are seen from here: each node says what it reads and
//! what it follows, and what several say of one reading is put together.

use wherry_proto::{Attempt, NodeId, Role, rank};

use super::Planner;
use crate::swarm::LinkClass;

/// By how many chunks one leader must be ahead of another, at most, for this to count more than rank. It is as many as the
/// one in front has read in the last second, since what peers say of themselves is a moment old: those who began at about
/// the same time go by rank, and one that began before stays, be the link so slow that a chunk takes seconds.
pub(super) const LEAD_MARGIN: u32 = 8;

/// How many ticks count as the last second.
const RECENT: usize = 2;

/// How often a leader may fail and come back and still be followed.
const MAX_LEAD_RETURNS: u8 = 3;

/// How often a peer may go over to what another one reads before what it says of that counts for nothing: leaders die,
/// and whoever names ever new ones that nobody else has seen would keep all from leading.
const MAX_TURNS: u8 = 32;

/// How many readings are watched for stalls.
const MAX_WATCHED: usize = 16;

/// A reading that goes on somewhere, as far as it is seen from here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) attempt: Attempt,
    pub(super) known: u32,
    pub(super) rank: u64,
    // Whether it is read, and not only about to be.
    pub(super) begun: bool,
    // How many of the states have come of late.
    pub(super) recent: u32,
}

/// Of several readings the one that all go by: of those that have come hardly less far than the one that has come
/// farthest, that of the highest rank. One that has not begun does not count beside those that have.
pub(super) fn foremost(readings: &[Seen]) -> Option<Seen> {
    let farthest = readings.iter().max_by_key(|seen| (seen.known, seen.rank))?;
    let near = readings.iter().filter(|seen| farthest.known - seen.known <= farthest.recent);
    near.max_by_key(|seen| (seen.begun, seen.rank)).copied()
}

/// How many states of a reading were known at the last ticks, the oldest first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Past([u32; RECENT]);

impl Past {
    /// As if so many had been known all the time.
    pub(super) const fn of(known: u32) -> Self {
        Self([known; RECENT])
    }

    pub(super) fn tick(&mut self, known: u32) {
        self.0.rotate_left(1);
        self.0[RECENT - 1] = known;
    }

    pub(super) fn recent(&self, known: u32) -> u32 {
        known.saturating_sub(self.0[0]).min(LEAD_MARGIN)
    }
}

#[derive(Debug)]
pub(super) struct Watched {
    // States known, and chunks that the leader itself has.
    progress: (u32, u32),
    pub(super) moved: u64,
    past: Past,
    // Between the last two movements, smoothed; none before the second.
    pub(super) gap: Option<u64>,
    // Whether it is read, and not only about to be.
    begun: bool,
}

impl Planner {
    /// The readings that go on, each with the most that anybody says of it.
    fn readings(&self) -> Vec<Seen> {
        let mut seen: Vec<Seen> = Vec::new();
        for (node, peer) in self.peers.iter().filter(|(_, peer)| peer.class == LinkClass::Lan) {
            let Some((attempt, known)) = peer.stream(*node) else { continue };
            // Who has stepped down gives the states of its reading, and reads no more.
            if attempt.signer == *node && !peer.claims_lead(attempt.number) {
                continue;
            }
            // What it said once, before it was followed, counts for a while.
            if peer.is_mute(self.ticks) || peer.turns > MAX_TURNS {
                continue;
            }
            // One whose reading came to nothing may lead again in another transfer.
            if attempt.signer == self.me || self.lead.void.contains(&attempt.signer) {
                continue;
            }
            // Whoever fails again and again does not hold up all others by what it says of itself.
            let dropped = self.dropped.get(&attempt.signer);
            if dropped.is_some_and(|dropped| dropped.led > MAX_LEAD_RETURNS) {
                continue;
            }
            let signer = self.peers.get(&attempt.signer);
            match signer {
                Some(signer) if signer.claims_lead(attempt.number) => {}
                // It says itself what it does, and would say what has changed.
                Some(signer) if signer.tells || signer.holds() => continue,
                // Its connection to this node has ended, or there has been none: what others say is old if they said it
                // of a reading that was seen to end so, unless they know more of it than anybody did then.
                _ if dropped
                    .is_some_and(|dropped| (attempt.number, known) <= (dropped.reading, dropped.known)) =>
                {
                    continue;
                }
                _ => {}
            }
            match seen.iter_mut().find(|seen| seen.attempt == attempt) {
                Some(seen) => seen.known = seen.known.max(known),
                None => {
                    // In a large site most nodes have no place for whoever leads, and hear of it from others.
                    let rank = signer
                        .map_or_else(|| rank(&self.ledger.digest(), &attempt.signer), |signer| signer.rank);
                    let begun = signer.is_none_or(|signer| !signer.is_candidate());
                    seen.push(Seen { attempt, known, rank, begun, recent: 0 });
                }
            }
        }
        for seen in &mut seen {
            // Of one that is seen for the first time it is not known how long it took.
            let watched = self.lead.watched.get(&seen.attempt);
            seen.recent =
                watched.map_or(LEAD_MARGIN.min(seen.known), |watched| watched.past.recent(seen.known));
        }
        seen
    }

    /// The number of a node's last reading that is known here; 0 if there is none.
    pub(super) fn last_reading(&self, node: &NodeId) -> u64 {
        let own = self.peers.get(node).and_then(|peer| match peer.role {
            Some(Role::Leading { attempt, .. } | Role::Candidate { attempt, .. }) => Some(attempt),
            _ => None,
        });
        let watched = self.lead.watched.keys().filter(|attempt| attempt.signer == *node);
        watched.map(|attempt| attempt.number).chain(own).max().unwrap_or(0)
    }

    /// How many states of a reading anybody knows, with what may be on its way.
    pub(super) fn known_of(&self, node: &NodeId, number: u64) -> u32 {
        let attempt = Attempt { signer: *node, number };
        let said = self.peers.iter().filter_map(|(node, peer)| peer.stream(*node));
        let known = said.filter(|(other, _)| *other == attempt).map(|(_, known)| known).max().unwrap_or(0);
        let watched = self.lead.watched.get(&attempt);
        known.saturating_add(watched.map_or(LEAD_MARGIN, |watched| watched.past.recent(known) + 1))
    }

    /// The readings that go on and do not stand still.
    pub(super) fn live(&self) -> Vec<Seen> {
        let least = self.stall();
        let mut readings = self.readings();
        // One that has come farther since the last tick does not stand still.
        readings.retain(|seen| {
            self.lead.watched.get(&seen.attempt).is_some_and(|watched| seen.known > watched.progress.0)
                || !self.lead.is_stalled(&seen.attempt, self.ticks, least)
        });
        readings
    }

    /// The one to follow.
    pub(super) fn leader(&self) -> Option<Seen> {
        foremost(&self.live())
    }

    /// Time goes by for those who lead.
    pub(super) fn watch_readings(&mut self) {
        let readings = self.readings();
        self.lead.watched.retain(|attempt, _| readings.iter().any(|seen| seen.attempt == *attempt));
        for seen in readings {
            if self.lead.watched.len() >= MAX_WATCHED && !self.lead.watched.contains_key(&seen.attempt) {
                continue;
            }
            let has = self.peers.get(&seen.attempt.signer).map_or(0, |signer| signer.here.len());
            let progress = (seen.known, has);
            let past = Past::of(seen.known.saturating_sub(LEAD_MARGIN));
            let fresh = Watched { progress, moved: self.ticks, past, gap: None, begun: seen.begun };
            let watched = self.lead.watched.entry(seen.attempt).or_insert(fresh);
            watched.past.tick(seen.known);
            if seen.begun && !watched.begun {
                // Nothing could come before.
                (watched.begun, watched.moved) = (true, self.ticks);
            }
            if progress.0 > watched.progress.0 || progress.1 > watched.progress.1 {
                let last = self.ticks - watched.moved;
                let gap = watched.gap.map_or(last, |gap| (gap * 3 + last) / 4);
                *watched = Watched { progress, moved: self.ticks, gap: Some(gap), ..*watched };
            }
        }
    }
}
