//! What is asked of other nodes: who has the blob, what becomes of it there, its chain, its states, its chunks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::oneshot;
use tracing::debug;
use wherry_proto::{Attempt, ChunkIndex, Digest, Lead, NodeId, State, StateChain, StatePrefix, rank};

use super::{Driver, Happening, Held, hash};
use crate::swarm::LinkClass;
use crate::transfer::planner::{Event, Scope, Source};
use crate::transfer::sources::{Claim, Found, PeerError};

/// How often a peer may be too busy to give its chain before it is no source.
const MAX_BUSY: usize = 16;

/// How many members are asked to lead before the transfer looks elsewhere.
const MAX_ASKED_TO_LEAD: usize = 16;

fn no_source(node: NodeId, why: PeerError) -> Event {
    match why {
        PeerError::Left(why) => Event::PeerLeft(node, why),
        why => Event::PeerFailed(node, why.to_string()),
    }
}

impl Driver {
    pub(super) fn search(&self, scope: Scope) {
        if scope == Scope::Network {
            debug!(blob = %self.digest().short(), "searches the network for a blob");
        }
        self.tell_found(self.parts.peers.search(self.digest(), scope), Event::Searched(scope));
    }

    pub(super) fn ask_roles(&self, but: &BTreeSet<NodeId>) {
        let nodes = self.parts.peers.site().into_iter().filter(|node| !but.contains(node)).collect();
        let found = self.parts.peers.ask(&nodes, self.digest());
        self.tell_found(found, Event::RolesAsked);
    }

    /// Tells the planner of a node that it has heard of, if it is connected.
    pub(super) fn meet(&self, node: NodeId) {
        let Some(class) = self.parts.peers.class(&node) else { return };
        let events = self.events.clone();
        self.spawn(async move {
            let _ = events.send(Happening::Event(Event::Met(node, class, None))).await;
        });
    }

    /// Tells the planner of those who are found, and at last that these are all.
    fn tell_found(&self, mut found: BoxStream<'static, Found>, end: Event) {
        let (digest, size) = (self.digest(), self.map().size());
        let events = self.events.clone();
        self.spawn(async move {
            while let Some(Found { node, class, size: offered, arriving }) = found.next().await {
                if offered != size {
                    debug!(blob = %digest.short(), peer = %node, offered, size, "offer of another length");
                    continue;
                }
                let event = match arriving {
                    None => Event::Offered(node, class),
                    role => Event::Met(node, class, role),
                };
                if events.send(Happening::Event(event)).await.is_err() {
                    return;
                }
            }
            let _ = events.send(Happening::Event(end)).await;
        });
    }

    pub(super) fn follow(&mut self, node: NodeId) {
        let mut updates = self.parts.peers.follow(node, self.digest(), self.map());
        let events = self.events.clone();
        let stop = self.stop.child_token();
        if let Some(before) = self.following.insert(node, stop.clone()) {
            before.cancel();
        }
        self.spawn(async move {
            let told = async {
                while let Some(update) = updates.next().await {
                    let event = match update {
                        Ok(update) => Event::Updated(node, update),
                        Err(why) => no_source(node, why),
                    };
                    if events.send(Happening::Event(event)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = told => {} }
        });
    }

    /// Ends all that is under way with a peer.
    pub(super) fn leave(&mut self, node: NodeId) {
        self.view.has_theirs(node, None);
        if let Some(following) = self.following.remove(&node) {
            following.cancel();
        }
        self.fetching.retain(|(asked, _), request| {
            if *asked == node {
                request.cancel();
            }
            *asked != node
        });
    }

    /// Asks a holder for its claim, whose states may be had of others if it `spares` them.
    pub(super) fn ask_chain(&self, node: NodeId, spares: bool) {
        let (digest, size) = (self.digest(), self.map().size());
        let ledger = self.planner.ledger();
        // Whoever has followed a leader to the end has all states: they need not come again.
        let read = || StateChain::from_bytes(digest, self.map(), &ledger.stream().states_from(0)).ok();
        let known = ledger.chain().cloned().or_else(|| read().map(Arc::new));
        let (parts, events) = (self.parts.clone(), self.events.clone());
        let is_dear = parts.peers.class(&node) == Some(LinkClass::Wan);
        let pause = self.planner.busy_pause();
        self.spawn(async move {
            let mut busy = 0;
            let event = loop {
                let claim = match spares && known.is_none() {
                    true => parts.peers.claim(node, digest, size).await,
                    false => parts.peers.chain(node, digest, size, known.clone()).await.map(Claim::Chain),
                };
                match claim {
                    Ok(Claim::Chain(chain)) => {
                        // One that is known already does not come again.
                        if is_dear && known.is_none_or(|known| known != chain) {
                            parts.limits.count(chain.to_bytes().len() as u64);
                        }
                        break Event::Chain(node, chain);
                    }
                    Ok(Claim::Elsewhere(states)) => break Event::Claimed(node, states),
                    // A long chain takes a slot.
                    Err(PeerError::Busy) if busy < MAX_BUSY => {
                        busy += 1;
                        let _ = tokio::time::timeout(pause, parts.peers.ready(node)).await;
                    }
                    Err(why) => break no_source(node, why),
                }
            };
            let _ = events.send(Happening::Event(event)).await;
        });
    }

    pub(super) fn ask_claimed(&self, node: NodeId, states: Digest) {
        let (digest, size) = (self.digest(), self.map().size());
        let (parts, events) = (self.parts.clone(), self.events.clone());
        self.spawn(async move {
            // Whoever cannot give them now is no worse a source of chunks: whoever is gone, that will show.
            let chain = parts.peers.claimed(node, digest, size, states).await.ok();
            let _ = events.send(Happening::Event(Event::ClaimedStates(node, states, chain))).await;
        });
    }

    pub(super) fn ask_states(&self, node: NodeId, attempt: Attempt, before: Arc<StatePrefix>) {
        let digest = self.digest();
        let (parts, events) = (self.parts.clone(), self.events.clone());
        self.spawn(async move {
            let states = parts.peers.states(node, digest, attempt, before).await.map(Arc::new);
            let _ = events.send(Happening::Event(Event::States(node, attempt, states))).await;
        });
    }

    /// Asks members of the site but these, one after the other, to fetch the blob for this node.
    pub(super) fn ask_lead(&self, but: BTreeSet<NodeId>) {
        let (digest, size) = (self.digest(), self.map().size());
        let (parts, events, routes) = (self.parts.clone(), self.events.clone(), self.routes.all());
        self.spawn(async move {
            let mut members = parts.peers.site();
            members.retain(|node| !but.contains(node));
            members.sort_by_key(|node| std::cmp::Reverse(rank(&digest, node)));
            members.truncate(MAX_ASKED_TO_LEAD);
            for node in members {
                for route in &routes {
                    let answer = parts.peers.lead(node, digest, size, route.clone()).await;
                    debug!(blob = %digest.short(), peer = %node, ?answer, "asked a member to lead");
                    let found = match answer {
                        // It may be one that is not believed any more: then the next is asked.
                        Some(Lead::Have) => {
                            let _ = events.send(Happening::Event(Event::Offered(node, LinkClass::Lan))).await;
                            Event::Promised(node)
                        }
                        Some(Lead::Leading) => Event::Promised(node),
                        Some(Lead::Refuse(_)) | None => continue,
                    };
                    let _ = events.send(Happening::Event(found)).await;
                    return;
                }
            }
            let _ = events.send(Happening::Event(Event::NobodyLeads)).await;
        });
    }

    pub(super) fn fetch(&mut self, node: NodeId, index: ChunkIndex, starts: Vec<State>) {
        let (digest, map) = (self.digest(), self.map());
        let (parts, events) = (self.parts.clone(), self.events.clone());
        let is_dear = parts.peers.class(&node) == Some(LinkClass::Wan);
        let stop = self.stop.child_token();
        self.fetching.insert((node, index), stop.clone());
        let (pause, trades) = (self.planner.busy_pause(), self.planner.is_crowd() && !is_dear);
        self.spawn(async move {
            let fetched = async {
                // Memory is taken after the turn, and the time after both: a thin link neither holds up what comes from
                // within the site nor passes for a peer that is slow.
                if is_dear {
                    parts.limits.turn(u64::from(map.len(index))).await;
                }
                let Some(share) = parts.share(map.len(index)).await else { return };
                let mut since = Instant::now();
                let (begins, begun) = oneshot::channel();
                let mut chunk = parts.peers.chunk(node, digest, map, index, begins);
                let taken = tokio::select! {
                    biased;
                    taken = &mut chunk => taken,
                    // Elsewhere many requests wait at each peer, and how long they do says how many there should be.
                    Ok(()) = begun, if trades => {
                        since = Instant::now();
                        let _ = events.send(Happening::Event(Event::Begun(node, index))).await;
                        chunk.await
                    }
                };
                let event = match taken {
                    Ok(bytes) => {
                        if is_dear {
                            parts.limits.count(bytes.len() as u64);
                        }
                        // What a link takes is measured, not what hashing does.
                        let took = since.elapsed();
                        match hash(map, index, starts, bytes).await {
                            Ok((links, bytes)) => {
                                let held = Held { bytes, _share: share };
                                Happening::Chunk(Source::Peer(node), index, links, held, took)
                            }
                            Err(why) => Happening::Event(Event::PeerFailed(node, why)),
                        }
                    }
                    Err(PeerError::Busy) => {
                        drop(share);
                        let _ = events.send(Happening::Event(Event::Busy(node, index))).await;
                        let _ = tokio::time::timeout(pause, parts.peers.ready(node)).await;
                        Happening::Event(Event::Ready(node))
                    }
                    Err(PeerError::Elsewhere) => Happening::Event(Event::Elsewhere(node, index)),
                    Err(PeerError::NotHere) => Happening::Event(Event::NotHere(node, index)),
                    Err(why @ (PeerError::Left(_) | PeerError::Failed(_))) => {
                        Happening::Event(no_source(node, why))
                    }
                };
                let _ = events.send(event).await;
            };
            tokio::select! { () = stop.cancelled() => {}, () = fetched => {} }
        });
    }
}
