//! When and how the origin is read: in order, when no peer can give the blob.

use wherry_proto::{ChunkIndex, Digest, End, Link, State};

use super::{Chain, Effect, ORIGIN_ATTEMPTS, Planner, Source};

#[derive(Debug, Default)]
pub(super) struct Origin {
    pub(super) offered: bool,
    // How many there are. They take turns: each attempt that fails is followed by one at the next.
    pub(super) count: usize,
    // The next chunk that is to arrive, the state before it, and the last to be read.
    pub(super) reading: Option<(ChunkIndex, State, ChunkIndex)>,
    // Whether it contradicted peers who were still there.
    pub(super) contradicts: bool,
    // What each attempt gave that failed, if it was read to its end and from the origin alone.
    pub(super) failed: Vec<Option<Digest>>,
    pub(super) exhausted: bool,
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
        let pure =
            !self.ledger.links().any(|(at, _)| self.from_peers.contains(at) && !self.ledger.is_proven(at));
        let found = found.filter(|_| pure);
        if let Some(found) = found {
            self.origin.wrong = Some(found);
            self.effects.push(Effect::OriginWrong(found));
        }
        self.effects.push(Effect::AttemptFailed);
        // The same wrong bytes from the same origin: a third reading would only cost.
        let before = self.origin.failed.len().checked_sub(self.origin.count.max(1));
        let again =
            found.is_some() && before.and_then(|before| self.origin.failed.get(before)) == Some(&found);
        self.origin.failed.push(found);
        let most = ORIGIN_ATTEMPTS.max(self.origin.count + 1);
        self.origin.exhausted = again || self.origin.failed.len() >= most;
        self.void();
        self.claim_those_aside();
    }

    pub(super) fn origin_contradicts(&mut self, index: ChunkIndex) {
        self.stop_origin();
        self.origin.contradicts = true;
        self.effects.push(Effect::OriginContradicts(index));
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
        let held: Vec<_> =
            self.asked.iter().filter(|(_, s)| **s == Source::Origin).map(|(index, _)| *index).collect();
        for index in held {
            self.release(Source::Origin, index);
        }
    }

    pub(super) fn stop_origin(&mut self) {
        if self.origin.reading.is_some() {
            self.stop_reading();
            self.effects.push(Effect::StopOrigin);
        }
    }

    /// No peer can give the blob now.
    pub(super) fn turn_to_origin(&mut self) {
        if !self.searched_site || self.peers.values().any(|peer| matches!(peer.chain, Chain::Asked)) {
            return;
        }
        if !self.origin.offered || self.origin.exhausted {
            if self.searched_network {
                self.search_again();
            }
            return;
        }
        if self.origin.contradicts {
            // Whoever signed the chain is gone and the origin does not agree: only a reading from the start tells.
            self.origin.contradicts = false;
            self.ledger.forget_orphans();
            self.void();
        }
        let map = self.ledger.map();
        let start = match self.ledger.chain() {
            Some(chain) => self.next_gap().map(|index| (index, chain.from(index))),
            None => self.ledger.frontier(),
        };
        let Some((first, state)) = start else { return };
        let mut last = first;
        self.asked.insert(first, Source::Origin);
        self.taken.insert(first);
        while let Some(next) = map.next(last).filter(|next| !self.is_here(*next)) {
            self.asked.insert(next, Source::Origin);
            self.taken.insert(next);
            last = next;
        }
        self.origin.reading = Some((first, state, last));
        self.effects.push(Effect::ReadOrigin(first, state, last));
    }

    fn next_gap(&self) -> Option<ChunkIndex> {
        let linked = self.ledger.linked();
        let readers = self.readers.values().filter_map(|at| linked.first_missing(*at));
        readers.min().or_else(|| linked.first_missing(self.ledger.map().first()))
    }

    fn is_here(&self, index: ChunkIndex) -> bool {
        self.ledger.linked().contains(index)
    }
}
