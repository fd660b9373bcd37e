//! A blob on its way, as those who follow this node see it.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use wherry_proto::{
    Attempt, Certificate, ChunkIndex, ChunkSet, NodeId, Role, SecretKey, StateChain, StreamClaim,
};

use super::Transfer;
use super::run::Happening;
use crate::swarm::{Arriving, LinkClass, ReadAt};

/// What this node signs the states of its own readings with.
#[derive(Clone)]
pub struct Signer {
    /// Its key.
    pub key: SecretKey,
    /// That it belongs, for those to whom others pass the states on.
    pub certificate: Certificate,
}

impl ReadAt for Transfer {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.partial.read_at(offset, buf)?;
        self.metrics.to_peers.inc_by(buf.len() as u64);
        Ok(())
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> bool {
        let read = self.partial.file().read_cached_at(buf, offset);
        if read {
            self.metrics.to_peers.inc_by(buf.len() as u64);
        }
        read
    }
}

impl Arriving for Transfer {
    fn has(&self, index: ChunkIndex) -> bool {
        self.view.has(index)
    }

    fn here(&self) -> ChunkSet {
        self.view.linked()
    }

    fn first_hand(&self) -> ChunkSet {
        self.view.first_hand()
    }

    fn no_news_to(&self, follower: &NodeId) -> ChunkSet {
        self.view.no_news_to(follower)
    }

    fn is_near(&self, follower: &NodeId) -> bool {
        self.peers.class(follower) == Some(LinkClass::Lan)
    }

    fn pace(&self) -> Option<Duration> {
        self.view.stance().pace
    }

    fn role(&self) -> Role {
        match self.view.outcome() {
            Some(Ok(_)) => Role::Held,
            Some(Err(_)) => Role::Gone,
            None => self.view.stance().role,
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.view.watch()
    }

    fn states(&self, attempt: &Attempt, from: u32) -> Option<(StreamClaim, Certificate, Vec<u8>)> {
        let stance = self.view.stance();
        if attempt.signer != self.signer.key.node() {
            let signed = stance.signed?;
            let known = signed.prefix.known();
            let is_it = signed.claim.attempt == attempt.number && signed.claim.signer == attempt.signer;
            return (is_it && from <= known).then(|| {
                (signed.claim.clone(), signed.certificate.clone(), signed.prefix.states_from(from))
            });
        }
        let own = match stance.role {
            Role::Leading { attempt, .. } | Role::Candidate { attempt, .. } => Some(attempt),
            Role::Following { stream: Some(own), .. } if own.signer == attempt.signer => Some(own.number),
            _ => None,
        };
        if own != Some(attempt.number) || from > stance.stream.known() {
            return None;
        }
        // Many ask between one chunk and the next.
        let mut last = self.last_claim.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = stance.stream.hash();
        let claim = match &*last {
            Some(claim) if claim.attempt == attempt.number && claim.states == hash => claim.clone(),
            _ => {
                let Signer { key, certificate } = &self.signer;
                let network = &certificate.network;
                StreamClaim::sign(key, network, self.digest, attempt.number, &stance.stream)
            }
        };
        *last = Some(claim.clone());
        Some((claim, self.signer.certificate.clone(), stance.stream.states_from(from)))
    }

    fn chain(&self) -> Option<Arc<StateChain>> {
        self.view.stance().chain
    }

    fn followed(&self, by: NodeId) {
        // A queue that is full is that of a transfer that knows many already.
        let _ = self.events.try_send(Happening::Followed(by));
    }
}
