//! What becomes of a chunk that has come: kept, set aside, or held against whoever sent it.

use std::collections::BTreeSet;
use std::time::Duration;

use wherry_proto::{ChunkIndex, End, Link, NodeId, State};

use super::Planner;
use super::event::{DropReason, Effect, Proof, Source};
use super::peer::{Chain, Peer, smooth};
use crate::swarm::LinkClass;

/// How many chunks in a row may come from a peer that does not hold the blob, and do not link, before it is dropped: what
/// it has may be from another reading.
const MAX_STRANGE: u8 = 3;

impl Planner {
    /// A peer has begun to send a chunk.
    pub(super) fn begun(&mut self, node: NodeId, index: ChunkIndex) {
        let Some(asked) = self.asked.get_mut(&index).filter(|asked| asked.source == Source::Peer(node))
        else {
            return;
        };
        // Before, it stood behind another one.
        asked.since = self.ticks;
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.sends = Some(index);
        }
    }

    pub(super) fn arrived(&mut self, source: Source, index: ChunkIndex, links: &[Link], took: Duration) {
        let Some(asked) = self.asked.get(&index).filter(|asked| asked.source == source) else {
            self.effects.push(Effect::Discard(source, index));
            return;
        };
        let (was_expected, was_held) = (asked.expected, asked.held);
        self.release(source, index);
        if source == Source::Origin {
            self.origin.silent = 0;
        }
        if let Source::Peer(node) = source {
            self.set_busy(node, false);
            self.window.took(took);
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.took(took, self.ticks);
                if peer.class == LinkClass::Lan {
                    self.pace = Some(smooth(self.pace, took));
                }
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

    pub(super) fn claim_those_aside(&mut self) {
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

    pub(super) fn kept(&mut self, source: Source, index: ChunkIndex, link: Link) {
        if self.stale.remove(&index) {
            self.count_taken();
            return;
        }
        if self.keeping.remove(&index) != Some(link) {
            return;
        }
        // Of one that has left meanwhile it is not known: most are near.
        let is_near = |node| self.peers.get(node).is_none_or(|peer| peer.class == LinkClass::Lan);
        match &source {
            Source::Peer(node) if is_near(node) => self.first_hand.remove(index),
            _ => self.first_hand.insert(index),
        };
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

    pub(super) fn keep(&mut self, source: Source, index: ChunkIndex, link: Link) {
        self.keeping.insert(index, link);
        self.taken.insert(index);
        match source {
            Source::Peer(_) => self.from_peers.insert(index),
            Source::Origin => self.from_peers.remove(index),
        };
        self.effects.push(Effect::Keep(source, index, link));
    }

    pub(super) fn wrong_chunk(&mut self, node: NodeId, index: ChunkIndex, held: bool) {
        let map = self.ledger.map();
        let end_is_proven = map.next(index).is_none_or(|next| self.ledger.is_proven(next));
        let has_chain = self.ledger.has_chain();
        // Whoever does not hold the blob may have had the chunk in good faith, from a reading that is wrong.
        if held && index == map.first() && end_is_proven {
            self.ban(node, Proof::WrongChunk(index));
        } else if self.ledger.is_certain() {
            self.drop_peer(node, DropReason::WrongChunk(index));
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

    pub(super) fn release_all(&mut self, source: Source) {
        let all = self.asked.iter().filter(|(_, asked)| asked.source == source);
        for index in all.map(|(index, _)| *index).collect::<Vec<_>>() {
            self.release(source, index);
        }
    }

    /// A chunk is no longer asked of this source.
    pub(super) fn release(&mut self, source: Source, index: ChunkIndex) {
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
            peer.sends.take_if(|sent| *sent == index);
        }
    }

    pub(super) fn count_taken(&mut self) {
        self.taken = self.ledger.linked().clone();
        for index in self.asked.keys().chain(self.keeping.keys()).chain(&self.stale) {
            self.taken.insert(*index);
        }
    }

    /// Where all chunks link, some of them to a stream and the others to the digest, and these do not meet, the stream is
    /// false.
    pub(super) fn check_whole(&mut self) {
        let is_still = self.keeping.is_empty() && self.stale.is_empty();
        if self.ledger.linked().is_full() && is_still {
            match self.lead.attempt.filter(|attempt| attempt.signer != self.me) {
                Some(attempt) => self.stream_is_void(attempt),
                None => self.void(),
            }
        }
    }

    pub(super) fn verified(&mut self, mut refuted: Vec<NodeId>) {
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

    pub(super) fn settle_dispute(&mut self) {
        // Two who contradict each other and may not be asked now, since they are at another site, would hold up what a third can
        // decide.
        let is_source = |(_, peer): &(&NodeId, &Peer)| peer.is_claimed() && self.is_source(peer);
        let sources: BTreeSet<NodeId> = self.peers.iter().filter(is_source).map(|(node, _)| *node).collect();
        self.ledger.prefer(|node| sources.contains(node));
        self.count_taken();
        let Some((index, sides)) = self.ledger.dispute() else { return };
        if self.asked.contains_key(&index) || self.keeping.contains_key(&index) || self.stale.contains(&index)
        {
            return;
        }
        let ready = sides.iter().filter_map(|node| {
            let peer = self.peers.get(node)?;
            let may_be_asked = !peer.busy && self.is_source(peer) && peer.gives(index, self.ticks);
            may_be_asked.then_some((peer.class == LinkClass::Wan, *node))
        });
        // One at another site only where none is near: of several of a kind, the first.
        if let Some((_, node)) = ready.min_by_key(|(is_dear, _)| *is_dear) {
            let mut starts: Vec<State> = Vec::new();
            for link in self.ledger.candidates(index) {
                if !starts.contains(&link.from) {
                    starts.push(link.from);
                }
            }
            self.ask(node, index, starts, false);
        }
    }
}
