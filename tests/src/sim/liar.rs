//! Nodes that lie. They run no planner: they say what harms most.

use std::sync::Arc;
use std::time::Duration;

use wherry_proto::{
    Attempt, ChunkIndex, Digest, List, NodeId, Role, Run, SignedStates, StatePrefix, StreamClaim, Update,
};

use super::blob::{Content, TRUE};
use super::clock::nanos;
use super::message::{BlobNo, Holding, Job, Led, Message, Part};
use super::setup::Manner;
use super::world::{Happening, World};

/// How often a liar says something new, and follows everybody anew so as to be met again.
const LIAR_TIME: Duration = Duration::from_millis(500);

/// The number of a liar's only reading.
const ATTEMPT: u64 = 1;

impl World {
    /// What a liar's chunks hold.
    fn lie(node: usize) -> Content {
        node as Content + 1
    }

    pub(super) fn liar_starts(&mut self, node: usize) {
        self.clock.after(0, Happening::Liar(node));
    }

    pub(super) fn liar_goes_on(&mut self, node: usize) {
        if !self.nodes[node].alive {
            return;
        }
        for blob in 0..self.blobs.len() {
            for other in self.nodes[node].neighbours.clone() {
                if self.nodes[other].setup.manner == Manner::Honest {
                    self.send(node, other, Message::Follow(blob));
                }
            }
        }
        for (follower, blob) in self.nodes[node].deceived.clone() {
            self.liar_tells(node, follower, blob, false);
        }
        self.clock.after(nanos(LIAR_TIME), Happening::Liar(node));
    }

    /// How many states a liar says to know.
    fn pretended(&self, node: usize, blob: BlobNo) -> u32 {
        let age = self.clock.now().saturating_sub(nanos(self.nodes[node].setup.start)) as f64 / 1e9;
        let count = self.blobs[blob].map().count();
        match self.nodes[node].setup.manner {
            Manner::Inventor { pace } | Manner::EmptyLeader { pace } => {
                ((age * f64::from(pace)) as u32).min(count - 1)
            }
            _ => 0,
        }
    }

    /// What it says of itself, and of what it has.
    fn pretends(&self, node: usize, blob: BlobNo) -> (Role, Vec<Run>) {
        let count = self.blobs[blob].map().count();
        let known = self.pretended(node, blob);
        let all = vec![Run { from: 0, len: count }];
        match self.nodes[node].setup.manner {
            Manner::Honest => (Role::Gone, Vec::new()),
            Manner::Mute { held: true } | Manner::Wrong { held: true } | Manner::FalseHolder { .. } => {
                (Role::Held, Vec::new())
            }
            Manner::Mute { held: false } | Manner::Wrong { held: false } | Manner::Lacking => {
                let known = count - 1;
                (Role::Following { stream: None, known, may_lead: false, led_slowly: false }, all)
            }
            Manner::IdleLeader => (Role::Leading { attempt: ATTEMPT, known: 0 }, Vec::new()),
            Manner::Inventor { .. } | Manner::EmptyLeader { .. } => {
                let here = if known + 1 == count { count } else { known };
                let here = if here > 0 { vec![Run { from: 0, len: here }] } else { Vec::new() };
                (Role::Leading { attempt: ATTEMPT, known }, here)
            }
        }
    }

    fn liar_tells(&mut self, node: usize, follower: usize, blob: BlobNo, first: bool) {
        let (role, here) = self.pretends(node, blob);
        let moves =
            matches!(self.nodes[node].setup.manner, Manner::Inventor { .. } | Manner::EmptyLeader { .. });
        if first || moves {
            let update = Update { role, here: List::first_of(here) };
            self.send(node, follower, Message::Update(blob, update));
        }
    }

    fn invented_states(&self, node: usize, blob: BlobNo) -> SignedStates {
        let liar = &self.nodes[node];
        let prefix = self.blobs[blob].invent(self.pretended(node, blob), Self::lie(node));
        let certificate = liar.certificate.clone();
        let digest = self.blobs[blob].digest();
        let claim = StreamClaim::sign(&liar.key, &certificate.network, digest, ATTEMPT, &prefix);
        SignedStates { claim, certificate, prefix }
    }

    pub(super) fn liar_hears(&mut self, node: usize, from: usize, message: Message) {
        let manner = self.nodes[node].setup.manner;
        match message {
            Message::Want(blob) => {
                let holding = match self.pretends(node, blob).0 {
                    Role::Held => Holding::Held,
                    role => Holding::Arriving(role),
                };
                self.send(node, from, Message::Found(blob, holding));
            }
            Message::Lead(blob) => self.send(node, from, Message::Led(blob, Led::Leading)),
            Message::Follow(blob) => {
                self.nodes[node].deceived.insert((from, blob));
                self.liar_tells(node, from, blob, true);
            }
            Message::Unfollow(blob) => {
                self.nodes[node].deceived.remove(&(from, blob));
            }
            Message::Ask(Job { request, blob, part }) => match part {
                Part::Chain { spares: true, .. } if node.is_multiple_of(2) => {
                    let chain = self.blobs[blob].invent_chain(1, Self::lie(node));
                    let states = Digest::sha256(&chain.to_bytes());
                    self.send(node, from, Message::ClaimElsewhere { blob, request, states });
                }
                Part::Chain { known, .. } => {
                    let chain = match manner {
                        Manner::FalseHolder { fork } => {
                            Some(Arc::new(self.blobs[blob].invent_chain(fork, Self::lie(node))))
                        }
                        _ => Some(Arc::clone(self.blobs[blob].chain())),
                    };
                    self.send(node, from, Message::Chain { blob, request, chain, known });
                }
                Part::Claimed(_) if matches!(manner, Manner::Mute { .. }) => {}
                Part::Claimed(states) => {
                    self.send(node, from, Message::ClaimedStates { blob, request, states, chain: None });
                }
                Part::States(attempt, before) => {
                    self.liar_gives_states(node, from, blob, request, attempt, &before)
                }
                Part::Chunk(index) => self.liar_gives_chunk(node, from, blob, request, index),
            },
            _ => {}
        }
    }

    fn liar_gives_states(
        &mut self,
        node: usize,
        from: usize,
        blob: BlobNo,
        request: u64,
        attempt: Attempt,
        before: &StatePrefix,
    ) {
        let me: NodeId = self.nodes[node].id;
        if !matches!(self.nodes[node].setup.manner, Manner::Inventor { .. }) || attempt.signer != me {
            return;
        }
        let signed = self.invented_states(node, blob);
        let known = before.known();
        let states = if signed.prefix.known() < known {
            Err(wherry_node::transfer::planner::NoStates::None)
        } else if signed.prefix.at(known) == before.at(known) {
            Ok(Arc::new(signed))
        } else {
            Err(wherry_node::transfer::planner::NoStates::Others)
        };
        self.send(node, from, Message::States { blob, request, states, behind: 0 });
    }

    fn liar_gives_chunk(&mut self, node: usize, from: usize, blob: BlobNo, request: u64, index: ChunkIndex) {
        let content = match self.nodes[node].setup.manner {
            Manner::Wrong { .. } | Manner::Inventor { .. } => Self::lie(node),
            Manner::FalseHolder { fork } if index.get() < fork => Self::lie(node),
            Manner::FalseHolder { .. } => TRUE,
            Manner::Lacking | Manner::EmptyLeader { .. } => {
                return self.send(node, from, Message::Elsewhere { blob, index, request });
            }
            Manner::Honest | Manner::Mute { .. } | Manner::IdleLeader => return,
        };
        let len = f64::from(self.blobs[blob].map().len(index));
        // A liar's link is its own.
        let takes = (len / self.nodes[node].setup.up * 1e9) as u64;
        self.send_now(node, from, Message::Chunk { blob, index, request, content }, takes);
    }
}
