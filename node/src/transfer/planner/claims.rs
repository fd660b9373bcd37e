//! The claims of those who hold the blob, and where the states come from that they have claimed.
//!
//! A chain is up to a thousandth of its blob. A holder that many ask gives it to few, and tells the others the digest of its
//! states: they come from whoever had them first, and are right if they have that digest.

use std::collections::BTreeSet;
use std::sync::Arc;

use wherry_proto::{Claimed, Digest, NodeId, StateChain};

use super::peer::{Chain, Peer};
use super::{DropReason, Effect, Planner, Proof};
use crate::swarm::LinkClass;

/// For how many ticks claimed states are looked for among others before their holder is asked again: in this time states
/// come to others on all but the thinnest links, and they say so.
const ELSEWHERE: u64 = 8;

/// How often a holder may say that its states are to be had of others before it is to give them.
const SENT_ON: u8 = 2;

/// How many ticks whoever is asked for claimed states has for them before somebody else is asked too.
const GIVING: u64 = 4;

/// Who was asked for the states of one claim.
#[derive(Debug, Default)]
pub(super) struct Sought {
    asked: BTreeSet<NodeId>,
    // The last of them and when, unless that one has answered.
    of: Option<(NodeId, u64)>,
}

impl Planner {
    /// Asks those at other sites for their claims who could not be asked while a limit said no.
    pub(super) fn ask_chains(&mut self) {
        let unasked = self.peers.iter().filter(|(_, peer)| peer.holds() && matches!(peer.chain, Chain::None));
        for node in unasked.map(|(node, _)| *node).collect::<Vec<_>>() {
            self.ask_claim(node);
        }
    }

    pub(super) fn ask_claim(&mut self, node: NodeId) {
        // Where there was a reading its followers lack few states, and their neighbours have no other chain.
        let goes_by_reading = self.lead.attempt.is_some() || self.lead.watched() > 0;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let spares = !goes_by_reading && peer.class == LinkClass::Lan && peer.sent_on < SENT_ON;
        peer.chain = Chain::Asked;
        peer.chain_since.get_or_insert(self.ticks);
        match StateChain::from_bytes(self.ledger.digest(), self.ledger.map(), &[]) {
            // A blob of one chunk has no inner states, so there is nothing to claim.
            Ok(chain) => self.chain(node, Arc::new(chain)),
            Err(_) if spares => self.effects.push(Effect::AskClaim(node)),
            Err(_) => {
                peer.chain_since = Some(self.ticks);
                self.effects.push(Effect::AskChain(node));
            }
        }
    }

    /// A peer has signed a chain, and gave its states to others.
    pub(super) fn claimed(&mut self, node: NodeId, states: Digest) {
        let since = self.ticks;
        if let Some(peer) = self.peers.get_mut(&node)
            && matches!(peer.chain, Chain::Asked)
        {
            peer.sent_on = peer.sent_on.saturating_add(1);
            peer.chain = Chain::Elsewhere { states, since };
        }
    }

    /// Whether a holder has signed a chain that is yet to come from others.
    pub(super) fn awaits_states(&self) -> bool {
        self.peers.values().any(|peer| peer.claims_elsewhere().is_some())
    }

    /// Asks those who know them for the states that holders have claimed, and after a while the holders themselves.
    pub(super) fn ask_claimed(&mut self) {
        let claims = |(node, peer): (&NodeId, &Peer)| Some((*node, peer.claims_elsewhere()?));
        let waiting: Vec<_> = self.peers.iter().filter_map(claims).collect();
        self.sought.retain(|states, _| waiting.iter().any(|(_, (claimed, _))| claimed == states));
        for (holder, (states, since)) in waiting {
            if self.ledger.has_chain() || self.ticks >= since + ELSEWHERE {
                // If they are those that are known by now they need not come again.
                self.ask_claim(holder);
            } else {
                self.seek(states);
            }
        }
    }

    /// Asks somebody who knows these states, unless one was asked who may still give them.
    fn seek(&mut self, states: Digest) {
        let none = Sought::default();
        let sought = self.sought.get(&states).unwrap_or(&none);
        if sought.of.is_some_and(|(_, since)| self.ticks < since + GIVING) {
            return;
        }
        let able =
            self.peers.iter().filter(|(node, peer)| peer.knows_chain() && !sought.asked.contains(node));
        let able: Vec<NodeId> = able.map(|(node, _)| *node).collect();
        if able.is_empty() {
            return;
        }
        let node = able[self.random() as usize % able.len()];
        let sought = self.sought.entry(states).or_default();
        sought.asked.insert(node);
        sought.of = Some((node, self.ticks));
        self.effects.push(Effect::AskClaimed(node, states));
    }

    /// A peer has given the states that somebody claimed, or cannot.
    pub(super) fn claimed_states(&mut self, node: NodeId, states: Digest, chain: Option<Arc<StateChain>>) {
        if let Some(sought) = self.sought.get_mut(&states) {
            sought.of.take_if(|(asked, _)| *asked == node);
        }
        let Some(chain) = chain else { return };
        let claims = |peer: &Peer| peer.claims_elsewhere().is_some_and(|(claimed, _)| claimed == states);
        let holders: Vec<NodeId> =
            self.peers.iter().filter(|(_, peer)| claims(peer)).map(|(node, _)| *node).collect();
        for holder in holders {
            self.chain(holder, Arc::clone(&chain));
        }
    }

    /// A peer is not asked for claimed states any more.
    pub(super) fn forget_sought(&mut self, node: NodeId) {
        for sought in self.sought.values_mut() {
            sought.asked.remove(&node);
            sought.of.take_if(|(asked, _)| *asked == node);
        }
    }

    pub(super) fn chain(&mut self, node: NodeId, chain: Arc<StateChain>) {
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
}
