//! When and how the origin is read: in order, when no peer can give the blob.

use std::collections::BTreeSet;

use wherry_proto::{ChunkIndex, Digest, End, Link, State};

use super::peer::Peer;
use super::{Asked, Effect, ORIGIN_ATTEMPTS, Planner, Source};
use crate::swarm::LinkClass;

/// For how many ticks a chunk may be nowhere before whoever leads reads it again: peers tell of theirs with a delay.
const SOURCELESS: u64 = 2;

/// How many more on the slowest links, where much is heard of late: 20 s. In the simulation of 64 nodes with 24 neighbours each, on
/// ports of 0.4 Mbit/s, 93 % of the blobs were read again by nodes that did not wait, and 13 % by those that do.
const SOURCELESS_SLOWLY: u64 = 40;

#[derive(Debug, Default)]
pub(super) struct Origin {
    pub(super) offered: bool,
    // How many there are. They take turns: each attempt that fails is followed by one at the next.
    pub(super) count: usize,
    // The next chunk that is to arrive, the state before it, and the last to be read.
    pub(super) reading: Option<(ChunkIndex, State, ChunkIndex)>,
    // For how many ticks it has been read without giving a chunk.
    pub(super) silent: u64,
    // Whether it contradicted peers who were still there.
    pub(super) contradicts: bool,
    // What each attempt gave that failed, if it was read to its end and from the origin alone.
    pub(super) failed: Vec<Option<Digest>>,
    pub(super) exhausted: bool,
    // Chunks that this attempt gave wrong, of a blob whose chain is beyond doubt: what is behind them may be right.
    pub(super) refuted: BTreeSet<ChunkIndex>,
    pub(super) wrong: Option<Digest>,
    pub(super) error: Option<String>,
}

impl Planner {
    /// A chunk of the origin while there is no chain to check it against.
    pub(super) fn streamed(&mut self, index: ChunkIndex, links: &[Link]) {
        let expected = self.origin.reading.filter(|(next, state, _)| {
            *next == index && links.first().is_some_and(|link| link.from == *state)
        });
        let (Some(_), Some(link)) = (expected, links.first().copied()) else {
            self.effects.push(Effect::Discard(Source::Origin, index));
            return;
        };
        // What a leader before signed may have been wrong, or this reading is: only one from the start tells.
        if self.ledger.expected(index).is_some_and(|expected| expected != link)
            && !matches!(link.to, End::Digest(_))
        {
            return self.attempt_failed(index, None);
        }
        let closes = match link.to {
            End::Digest(found) => {
                if found != self.ledger.digest() {
                    return self.attempt_failed(index, Some(found));
                }
                true
            }
            End::State(state) => {
                self.origin_next(index, state);
                // Where the reading meets what is proven from behind, it must arrive at the very state.
                let behind = self.ledger.map().next(index).filter(|next| self.ledger.is_proven(*next));
                let met = behind.and_then(|next| self.ledger.links().find(|(at, _)| *at == next));
                met.is_none_or(|(_, link)| link.from == state)
            }
        };
        if closes {
            self.keep(Source::Origin, index, link);
        } else {
            self.attempt_failed(index, None);
        }
    }

    pub(super) fn origin_next(&mut self, index: ChunkIndex, state: State) {
        let next = self.ledger.map().next(index);
        if let (Some(reading), Some(next)) = (&mut self.origin.reading, next) {
            (reading.0, reading.1) = (next, state);
        }
    }

    /// A whole reading of the origin did not close.
    fn attempt_failed(&mut self, index: ChunkIndex, found: Option<Digest>) {
        self.effects.push(Effect::Discard(Source::Origin, index));
        self.stop_origin();
        let found = found.filter(|_| self.is_all_of_the_origin(index));
        if let Some(found) = found {
            self.origin.wrong = Some(found);
            self.effects.push(Effect::OriginWrong(found));
        }
        self.next_attempt(found);
        self.void();
        self.claim_those_aside();
    }

    /// Whether all but this last chunk has been read from the origin, or is proven: only then is what comes of it the origin's.
    /// A reading may have begun at a state that somebody made up.
    fn is_all_of_the_origin(&self, last: ChunkIndex) -> bool {
        let linked = self.ledger.linked();
        let is_its = |index: ChunkIndex| {
            let is_here = linked.contains(index) || self.keeping.contains_key(&index);
            is_here && (!self.from_peers.contains(index) || self.ledger.is_proven(index))
        };
        self.ledger.map().iter().all(|index| index == last || is_its(index))
    }

    /// What an attempt gave was wrong: the next origin has its turn, if there is to be another attempt.
    fn next_attempt(&mut self, found: Option<Digest>) {
        self.effects.push(Effect::AttemptFailed);
        // The same wrong bytes from the same origin: a third reading would only cost.
        let before = self.origin.failed.len().checked_sub(self.origin.count.max(1));
        let again =
            found.is_some() && before.and_then(|before| self.origin.failed.get(before)) == Some(&found);
        self.origin.failed.push(found);
        let most = ORIGIN_ATTEMPTS.max(self.origin.count + 1);
        self.origin.exhausted = again || self.origin.failed.len() >= most;
    }

    pub(super) fn origin_contradicts(&mut self, index: ChunkIndex) {
        self.stop_origin();
        self.effects.push(Effect::OriginContradicts(index));
        if self.ledger.is_certain() {
            // A reading from the start would tell nothing new.
            self.origin.error = Some(format!(
                "the bytes that it sends for chunk {index} are not those that the digest is of"
            ));
            self.origin.refuted.insert(index);
        } else {
            self.origin.contradicts = true;
        }
    }

    pub(super) fn origin_ended(&mut self, why: Option<String>) {
        self.stop_reading();
        if let Some(why) = why {
            self.origin.offered = false;
            self.origin.error = Some(why);
        }
        self.claim_those_aside();
    }

    fn stop_reading(&mut self) {
        self.origin.reading = None;
        self.release_all(Source::Origin);
    }

    pub(super) fn stop_origin(&mut self) {
        if self.origin.reading.is_some() {
            self.stop_reading();
            self.effects.push(Effect::StopOrigin);
        }
    }

    /// Whether an origin is being read.
    pub const fn reads_origin(&self) -> bool {
        self.origin.reading.is_some()
    }

    /// This node leads: what no peer can give is read.
    pub(super) fn read_origin(&mut self) {
        if !self.origin.offered || self.origin.exhausted {
            return self.step_down();
        }
        let lacking = self.lacks_for().is_some();
        if self.origin.reading.is_some() {
            // Behind the place of the reading there is something that nobody else has any more.
            if lacking && self.reads_on() && self.gap().is_some() {
                self.stop_origin();
            } else {
                return;
            }
        }
        // A reading goes through to the end: what is still being written would cut it short.
        if !self.stale.is_empty() {
            return;
        }
        if self.origin.contradicts {
            // Whoever signed the chain is gone and the origin does not agree: only a reading from the start tells.
            if !self.keeping.is_empty() || !self.stale.is_empty() {
                return;
            }
            self.origin.contradicts = false;
            self.ledger.forget_orphans();
            self.void();
        }
        let alone = self.is_alone();
        let mut gap = self.gap_but(&self.origin.refuted).filter(|_| alone || lacking);
        if gap.is_none() && !self.origin.refuted.is_empty() && (alone || lacking) && self.gap().is_some() {
            // All that this attempt can give is here, and not all that it gave was right.
            self.origin.refuted.clear();
            self.next_attempt(None);
            if self.origin.exhausted {
                return self.step_down();
            }
            gap = self.gap();
        }
        if gap.is_some() {
            self.sourceless = None;
        }
        let Some((first, state)) = gap.or_else(|| self.frontier()) else { return };
        let map = self.ledger.map();
        let mut last = first;
        self.expect_origin(first);
        while let Some(next) = map.next(last).filter(|next| self.is_for_origin(*next)) {
            self.expect_origin(next);
            last = next;
        }
        self.origin.reading = Some((first, state, last));
        self.effects.push(Effect::ReadOrigin(first, state, last));
    }

    fn expect_origin(&mut self, index: ChunkIndex) {
        let expected = self.ledger.expected(index);
        let asked =
            Asked { source: Source::Origin, expected, held: false, for_reader: false, since: self.ticks };
        self.asked.insert(index, asked);
        self.taken.insert(index);
    }

    /// Whether the reading is at chunks of which no state is known yet.
    fn reads_on(&self) -> bool {
        self.origin.reading.is_some_and(|(next, ..)| self.ledger.expected(next).is_none())
    }

    /// Whether a reading that comes to a chunk goes on with it.
    fn is_for_origin(&self, index: ChunkIndex) -> bool {
        !self.taken.contains(index)
            && !self.origin.refuted.contains(&index)
            && (self.ledger.expected(index).is_none() || !self.is_to_be_had(index))
    }

    /// Where the states that are known end.
    fn frontier(&self) -> Option<(ChunkIndex, State)> {
        if self.ledger.has_chain() {
            return None;
        }
        let stream = self.ledger.stream();
        let index = self.ledger.map().index(stream.known())?;
        // Where it is being written the stream will be longer in a moment. That a peer has it is of no use before its
        // states are known, which only the last chunk needs no further one of.
        Some((index, stream.at(index.get())?)).filter(|_| self.is_for_origin(index))
    }

    /// Whether nobody here is about to get the blob as well.
    pub(super) fn is_alone(&self) -> bool {
        !self.peers.values().any(Peer::trades)
    }

    /// Whether all states are known, by a reading or a claim of somebody at this site, who has or had the chunks: as a rule they are
    /// here somewhere.
    pub(super) fn is_read(&self) -> bool {
        let is_at_end = || self.ledger.stream().known() + 1 >= self.ledger.map().count();
        let is_far = |peer: &Peer| peer.class == LinkClass::Wan && peer.is_claimed();
        let goes_by_one = self.lead.attempt.is_some() || self.claims_lead();
        let knows_all = self.ledger.has_chain() || (goes_by_one && is_at_end());
        // Of those who follow whoever takes the blob from another site, nobody knows the holder.
        knows_all && !self.lead.is_outrun() && !self.peers.values().any(is_far)
    }

    /// Time goes by for the first chunk that nobody has. That there is one at any time, each time another, is what trading looks
    /// like.
    pub(super) fn watch_gap(&mut self) {
        let gap = if self.leads() || self.is_read() || self.lead.is_outrun() { self.gap() } else { None };
        self.sourceless = gap.map(|(index, _)| match self.sourceless {
            Some((before, ticks)) if before == index => (index, ticks + 1),
            _ => (index, 1),
        });
    }

    /// For how many ticks nobody has had that chunk, beyond those in which somebody may still say that it has it.
    pub(super) fn lacks_for(&self) -> Option<u64> {
        let (_, ticks) = self.sourceless?;
        ticks.checked_sub(SOURCELESS + self.slowness(SOURCELESS_SLOWLY))
    }

    /// The first chunk, from where a client reads on, whose states are known and which no peer has, or none that has it
    /// gives it.
    pub(super) fn gap(&self) -> Option<(ChunkIndex, State)> {
        self.gap_but(&BTreeSet::new())
    }

    /// The same without some chunks.
    fn gap_but(&self, but: &BTreeSet<ChunkIndex>) -> Option<(ChunkIndex, State)> {
        let map = self.ledger.map();
        let is_gap = |index: &ChunkIndex| {
            self.ledger.expected(*index).is_some() && !self.is_to_be_had(*index) && !but.contains(index)
        };
        let first_gap = |from: ChunkIndex| {
            let mut at = self.taken.first_missing(from);
            while let Some(index) = at {
                self.ledger.expected(index)?;
                if is_gap(&index) {
                    return Some(index);
                }
                at = map.next(index).and_then(|next| self.taken.first_missing(next));
            }
            None
        };
        let readers = self.readers.values().filter_map(|at| first_gap(*at));
        let index = readers.min().or_else(|| first_gap(map.first()))?;
        Some((index, self.ledger.expected(index)?.from))
    }
}
