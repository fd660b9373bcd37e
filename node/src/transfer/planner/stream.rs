//! The states of the reading that this node follows: whom to ask for them, and what becomes of a reading that was wrong.

use std::sync::Arc;

use wherry_proto::{Attempt, ChunkIndex, NodeId, Role, SignedStates, StatePrefix};

use super::{DropReason, Effect, NoStates, ORIGIN_ATTEMPTS, Planner, Proof};

/// From so many chunks on that are known and neither here nor asked for, a node can wait for more states.
const CHOICE: u32 = 8;

/// After so many further chunks it asks for more all the same: were nobody to know of what was read last, that could go to
/// nobody. In the simulation of 64 nodes whose upload is scarce, states filled a fifth of the link of whoever leads when all
/// asked for each as soon as it was there, and all are done 1.3 % sooner since they do not.
const PULL_AFTER: u32 = 3;

/// After so many ticks it does too: 8 s.
const PULL_AT_LATEST: u64 = 16;

impl Planner {
    /// Whether the states that are known give enough to ask for, and more were asked for lately.
    fn has_states_for_now(&self) -> bool {
        let (here, at) = self.lead.pulled;
        let known = self.ledger.stream().known();
        known.saturating_sub(self.taken.len()) >= CHOICE
            && self.ledger.linked().len() < here + PULL_AFTER
            && self.ticks < at + PULL_AT_LATEST
    }

    /// Asks a peer for the states that the leader has found since.
    pub(super) fn ask_states(&mut self) {
        if self.lead.pulling.is_some() || self.claims_lead() || self.ledger.has_chain() {
            return;
        }
        let Some(leader) = self.leader() else { return };
        let is_new = self.lead.attempt != Some(leader.attempt);
        let by_same = self.lead.attempt.is_some_and(|attempt| attempt.signer == leader.attempt.signer);
        // A leader that begins anew has found its first reading wrong.
        let anew = self.lead.anew == Some(leader.attempt) || (is_new && by_same);
        let ours = if anew { 0 } else { self.ledger.stream().known() };
        // Whoever has more than this node will do: were the leader asked by all, it would do nothing else. If it is a new
        // one that counts, less will do as well: what an earlier one said may have been wrong.
        let able: Vec<(NodeId, u32)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.tells)
            .filter_map(|(node, peer)| Some((*node, peer.stream(*node)?)))
            .filter(|(_, (attempt, _))| *attempt == leader.attempt)
            .map(|(node, (_, known))| (node, known))
            .filter(|(_, known)| *known > ours || (is_new && *known > 0))
            .collect();
        if able.is_empty() {
            return;
        }
        if ours > 0 && !is_new && self.has_states_for_now() {
            return;
        }
        self.lead.pulled = (self.ledger.linked().len(), self.ticks);
        let (node, known) = able[self.random() as usize % able.len()];
        let map = self.ledger.map();
        let before = match ours {
            0 => Arc::new(StatePrefix::new(self.ledger.digest().algorithm(), map)),
            _ if known < ours => {
                let mut common = StatePrefix::clone(self.ledger.stream());
                common.truncate(known);
                Arc::new(common)
            }
            _ => Arc::clone(self.ledger.stream()),
        };
        self.lead.pulling = Some((node, before.known()));
        self.effects.push(Effect::AskStates(node, leader.attempt, before));
    }

    pub(super) fn states(
        &mut self,
        node: NodeId,
        attempt: Attempt,
        states: Result<Arc<SignedStates>, NoStates>,
    ) {
        // Of those who were asked before, and left for another one, only what is of use counts.
        let asked = self.lead.pulling.take_if(|(asked, _)| *asked == node);
        if let (Ok(signed), Some(before)) = (&states, &self.lead.signed)
            && signed.contradicts(before)
        {
            return self.signer_contradicts_itself(attempt);
        }
        let follows = !self.claims_lead() && self.leader().is_some_and(|leader| leader.attempt == attempt);
        match states {
            Ok(signed) if follows => {
                let ours = self.ledger.stream().known();
                let by_same = self.lead.attempt.is_some_and(|before| before.signer == attempt.signer);
                let anew = self.lead.anew == Some(attempt) || (by_same && self.lead.attempt != Some(attempt));
                if signed.prefix.known() >= ours || anew {
                    self.ledger.adopt(Arc::new(signed.prefix.clone()));
                    self.count_taken();
                }
                self.is_led_by(attempt.signer);
                self.lead.attempt = Some(attempt);
                self.lead.signed = Some(signed);
                self.lead.anew = None;
            }
            Ok(_) => {}
            Err(NoStates::Others) if asked.is_some_and(|(_, known)| known == 0) => {
                let why = "the states that it passes on are not those that were signed".to_owned();
                self.drop_peer(node, DropReason::Failed(why));
            }
            Err(NoStates::Others) if asked.is_none() => {}
            Err(NoStates::Others) => self.lead.anew = Some(attempt),
            Err(NoStates::None) => {
                // What it said of itself was old; it will say anew.
                if let Some(
                    Role::Leading { known, .. }
                    | Role::Candidate { known, .. }
                    | Role::Following { stream: Some(_), known, .. },
                ) = self.peers.get_mut(&node).and_then(|peer| peer.role.as_mut())
                {
                    *known = 0;
                }
            }
            Err(NoStates::Left(why)) if self.peers.contains_key(&node) => {
                self.drop_peer(node, DropReason::Left(why));
            }
            Err(NoStates::Failed(why)) if self.peers.contains_key(&node) => {
                self.drop_peer(node, DropReason::Failed(why));
            }
            Err(NoStates::Left(_) | NoStates::Failed(_)) => {}
        }
    }

    /// A peer is not asked for states any more.
    pub(super) fn forget_states(&mut self, node: NodeId) {
        self.lead.pulling.take_if(|(asked, _)| *asked == node);
    }

    /// Whether the states that this node goes by are those of a peer's own reading.
    pub(super) fn is_own_stream(&self, node: NodeId) -> bool {
        !self.ledger.has_chain() && self.lead.attempt.is_some_and(|attempt| attempt.signer == node)
    }

    /// A leader has sent a chunk that does not link to the states that it has signed itself.
    pub(super) fn stream_is_false(&mut self, node: NodeId, index: ChunkIndex) {
        let attempt = self.lead.attempt;
        self.lead.void.insert(node);
        self.drop_peer(node, DropReason::WrongChunk(index));
        self.effects.extend(attempt.map(Effect::StreamVoid));
        self.void();
        self.claim_those_aside();
    }

    /// Two claims of one reading differ, whoever passed them on: nobody but their signer can have made both.
    fn signer_contradicts_itself(&mut self, attempt: Attempt) {
        self.lead.void.insert(attempt.signer);
        self.ban(attempt.signer, Proof::TwoReadings(attempt.number));
        if self.ledger.has_chain() {
            // Chunks are checked against that.
            return self.lead.anew_after_void();
        }
        self.effects.push(Effect::StreamVoid(attempt));
        self.void();
        self.claim_those_aside();
    }

    /// The leader itself says that its reading came to nothing.
    pub(super) fn stream_is_void(&mut self, attempt: Attempt) {
        // One node's word counts once, however often it reads: the origin may be right, and the node not.
        self.lead.void.insert(attempt.signer);
        if self.lead.void.len() + usize::from(!self.origin.failed.is_empty()) >= ORIGIN_ATTEMPTS {
            self.origin.exhausted = true;
            self.origin.error.get_or_insert_with(|| {
                format!("{ORIGIN_ATTEMPTS} nodes of this site have read bytes with another digest")
            });
        }
        self.effects.push(Effect::StreamVoid(attempt));
        self.void();
        self.claim_those_aside();
    }
}
