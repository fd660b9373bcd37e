//! The claims of those who hold the blob, and where the states come from that they have claimed.
//!
//! A chain is up to a thousandth of its blob. A holder that many ask gives it to few, and tells the others the digest of its
//! states: they come from whoever had them first, and are right if they have that digest.

use std::collections::BTreeSet;
use std::sync::Arc;

use wherry_proto::{Claimed, Digest, NodeId, StateChain};

use super::peer::{Chain, Peer};
use super::{DropReason, Effect, Planner, Proof};

/// For how many ticks claimed states are looked for among others before their holder is asked once more: in this time a chunk
/// comes to others even on thin links, and they tell of it.
const ELSEWHERE: u64 = 8;

impl Planner {
    /// Asks those at other sites for their claims who could not be asked while a limit said no.
    pub(super) fn ask_chains(&mut self) {
        let unasked = self.peers.iter().filter(|(_, peer)| peer.holds() && matches!(peer.chain, Chain::None));
        for node in unasked.map(|(node, _)| *node).collect::<Vec<_>>() {
            self.ask_chain(node);
        }
    }

    pub(super) fn ask_chain(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.chain = Chain::Asked;
        peer.chain_since.get_or_insert(self.ticks);
        match StateChain::from_bytes(self.ledger.digest(), self.ledger.map(), &[]) {
            // A blob of one chunk has no inner states, so there is nothing to claim.
            Ok(chain) => self.chain(node, Arc::new(chain)),
            Err(_) => self.effects.push(Effect::AskChain(node)),
        }
    }

    /// A peer has signed a chain, and gave its states to others.
    pub(super) fn claimed(&mut self, node: NodeId, states: Digest) {
        let since = self.ticks;
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.holds()) else { return };
        if peer.was_elsewhere {
            let why = "it claims to hold the blob, and gives its chain to nobody".to_owned();
            return self.drop_peer(node, DropReason::Failed(why));
        }
        peer.was_elsewhere = true;
        peer.chain = Chain::Elsewhere { states, since, asked: BTreeSet::new() };
    }

    /// Asks one of those who must know them for the states that a holder has claimed; after a while the holder, again.
    pub(super) fn ask_claimed(&mut self) {
        let elsewhere = |(node, peer): (&NodeId, &Peer)| match &peer.chain {
            Chain::Elsewhere { states, since, .. } => Some((*node, *states, *since)),
            _ => None,
        };
        let waiting: Vec<_> = self.peers.iter().filter_map(elsewhere).collect();
        for (holder, states, since) in waiting {
            if self.ledger.has_chain() {
                // If they are the same they need not come again.
                self.ask_chain(holder);
            } else if self.claims_asked.is_none()
                && !self.ask_for(holder, states)
                && self.ticks >= since + ELSEWHERE
            {
                if let Some(peer) = self.peers.get_mut(&holder) {
                    peer.chain_since = None;
                }
                self.ask_chain(holder);
            }
        }
    }

    /// Asks somebody else for the states that this holder has claimed, if there is anybody who was not.
    fn ask_for(&mut self, holder: NodeId, states: Digest) -> bool {
        let Some(Chain::Elsewhere { asked, .. }) = self.peers.get(&holder).map(|peer| &peer.chain) else {
            return false;
        };
        let knows = |(node, peer): (&NodeId, &Peer)| {
            let may = peer.trades() && peer.tells && !peer.here.is_empty() && !asked.contains(node);
            may.then_some(*node)
        };
        let able: Vec<NodeId> = self.peers.iter().filter_map(knows).collect();
        if able.is_empty() {
            return false;
        }
        let node = able[self.random() as usize % able.len()];
        if let Some(Chain::Elsewhere { asked, .. }) = self.peers.get_mut(&holder).map(|peer| &mut peer.chain)
        {
            asked.insert(node);
        }
        self.claims_asked = Some(node);
        self.effects.push(Effect::AskClaimed(node, states));
        true
    }

    /// A peer has given the states that somebody claimed, or cannot.
    pub(super) fn claimed_states(&mut self, node: NodeId, states: Digest, chain: Option<Arc<StateChain>>) {
        self.claims_asked.take_if(|asked| *asked == node);
        let Some(chain) = chain else { return };
        let claims =
            |peer: &Peer| matches!(peer.chain, Chain::Elsewhere { states: claimed, .. } if claimed == states);
        let holders: Vec<NodeId> =
            self.peers.iter().filter(|(_, peer)| claims(peer)).map(|(node, _)| *node).collect();
        for holder in holders {
            self.chain(holder, Arc::clone(&chain));
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
