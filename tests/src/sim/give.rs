//! The giving side of an exchange: few upload slots, everybody else is sent away at once; and telling followers what is new.

use std::sync::Arc;
use std::time::Duration;

use wherry_node::swarm::{Audience, CHAINS_AT_ONCE, LinkClass, News, Telling, UPDATE_TIME, has_long_chain};
use wherry_node::transfer::planner::{Event, NoStates};
use wherry_proto::{Attempt, ChunkIndex, Digest, List, Role, SignedStates, StatePrefix, StreamClaim, Update};

use super::blob::Content;
use super::clock::{Time, nanos};
use super::message::{BlobNo, Job, Message, Part, RequestId};
use super::node::Serving;
use super::spread::Spread;
use super::world::{Carries, Happening, World};

impl World {
    pub(super) fn asked(&mut self, giver: usize, taker: usize, job: Job) {
        self.nodes[giver].giving.connections.entry(taker).or_default().line.push_back(job);
        self.serve(giver, taker);
    }

    pub(super) fn cancelled(&mut self, giver: usize, taker: usize, request: RequestId) {
        if let Some(connection) = self.nodes[giver].giving.connections.get_mut(&taker) {
            connection.line.retain(|job| job.request != request);
        }
    }

    /// Answers what stands in a connection's line, one request after the other.
    fn serve(&mut self, giver: usize, taker: usize) {
        loop {
            let giving = &mut self.nodes[giver].giving;
            let Some(connection) = giving.connections.get_mut(&taker) else { return };
            if connection.serving.is_some() {
                return;
            }
            let Some(Job { request, blob, part }) = connection.line.pop_front() else { return };
            match part {
                Part::States(attempt, before) => {
                    let states = self.states_of(giver, blob, &attempt, &before);
                    let known = states.as_ref().map_or(0, |signed| signed.prefix.known());
                    let behind = known.saturating_sub(before.known());
                    self.send(giver, taker, Message::States { blob, request, states, behind });
                }
                Part::Claimed(states) => {
                    let carried = &self.nodes[giver].blobs[blob];
                    let chain = match &carried.transfer {
                        Some(transfer) => transfer.planner.ledger().chain().cloned(),
                        None => carried.held.then(|| Arc::clone(self.blobs[blob].chain())),
                    };
                    let chain = chain.filter(|chain| Digest::sha256(&chain.to_bytes()) == states);
                    let chain = chain.filter(|_| self.gives_chain(giver, blob));
                    self.send(giver, taker, Message::ClaimedStates { blob, request, states, chain });
                }
                Part::Chain { known, spares } => {
                    let chain =
                        self.nodes[giver].blobs[blob].held.then(|| Arc::clone(self.blobs[blob].chain()));
                    if let Some(chain) = chain.as_ref().filter(|_| spares && !known)
                        && !self.gives_chain(giver, blob)
                    {
                        let states = Digest::sha256(&chain.to_bytes());
                        self.send(giver, taker, Message::ClaimElsewhere { blob, request, states });
                        continue;
                    }
                    self.send(giver, taker, Message::Chain { blob, request, chain, known });
                }
                Part::Chunk(index) => self.serve_chunk(giver, taker, request, blob, index),
            }
        }
    }

    /// A chunk is sent: its slot goes to what stands in the connection's line next, or to others. Those who found none meanwhile
    /// go first at last, however much this peer has in line.
    fn keep_or_free(&mut self, giver: usize, taker: usize) {
        let most = self.setup.exchange.in_a_row;
        let giving = &mut self.nodes[giver].giving;
        let is_wanted = !giving.away.is_empty();
        let Some(connection) = giving.connections.get_mut(&taker) else { return };
        let goes_on = connection.line.iter().any(|job| matches!(job.part, Part::Chunk(_)));
        let gives_way = goes_on && is_wanted && connection.in_a_row >= most;
        if goes_on && !gives_way {
            giving.slots -= 1;
            self.serve(giver, taker);
            // It may have asked for nothing that is here.
            let connection = self.nodes[giver].giving.connections.get_mut(&taker);
            let goes_on = connection.is_some_and(|connection| connection.serving.is_some());
            if goes_on {
                return;
            }
            self.nodes[giver].giving.slots += 1;
        }
        if let Some(connection) = self.nodes[giver].giving.connections.get_mut(&taker) {
            connection.in_a_row = 0;
        }
        self.slot_is_free(giver);
        if gives_way {
            self.give_way(giver, taker);
        }
        self.serve(giver, taker);
    }

    fn give_way(&mut self, giver: usize, taker: usize) {
        let Some(connection) = self.nodes[giver].giving.connections.get_mut(&taker) else { return };
        let line = std::mem::take(&mut connection.line);
        let (chunks, rest): (Vec<Job>, Vec<Job>) =
            line.into_iter().partition(|job| matches!(job.part, Part::Chunk(_)));
        connection.line = rest.into();
        for job in chunks {
            if let Part::Chunk(index) = job.part {
                self.send_away(giver, taker, job.blob, index, job.request);
            }
        }
    }

    fn send_away(&mut self, giver: usize, taker: usize, blob: BlobNo, index: ChunkIndex, request: RequestId) {
        let giving = &mut self.nodes[giver].giving;
        if let Some(connection) = giving.connections.get_mut(&taker)
            && !std::mem::replace(&mut connection.told_busy, true)
        {
            giving.away.push_back(taker);
        }
        self.report.busy += 1;
        self.send(giver, taker, Message::Busy { blob, index, request });
    }

    /// Whether the states of a blob's chain go to somebody who can have them of others.
    fn gives_chain(&mut self, giver: usize, blob: BlobNo) -> bool {
        let (digest, map) = (self.blobs[blob].digest(), self.blobs[blob].map());
        let len = 32 * (map.count() - 1);
        let (now, up) = (self.clock.now(), self.nodes[giver].setup.up);
        let giving = &mut self.nodes[giver].giving;
        giving.chains.retain(|end| now < *end);
        let gives = !has_long_chain(digest, map) || giving.chains.len() < CHAINS_AT_ONCE;
        if gives {
            // They share the link.
            let time = (giving.chains.len() + 1) as f64 * f64::from(len) / up;
            giving.chains.push(now + (time * 1e9) as Time);
        }
        gives
    }

    fn serve_chunk(
        &mut self,
        giver: usize,
        taker: usize,
        request: RequestId,
        blob: BlobNo,
        index: ChunkIndex,
    ) {
        let map = self.blobs[blob].map();
        let (now, exchange) = (self.clock.now(), self.setup.exchange);
        let node = &mut self.nodes[giver];
        let carried = &node.blobs[blob];
        let first_hand = carried.transfer.as_ref().map(|transfer| transfer.planner.first_hand());
        let is_first = first_hand.as_ref().is_some_and(|chunks| chunks.contains(index));
        let spreads = exchange.all_spread || carried.held || is_first;
        let arriving = carried.transfer.as_ref().map(|transfer| &transfer.linked);
        let here = match (carried.held, arriving) {
            (true, _) => None,
            (false, Some(linked)) => Some(linked),
            (false, None) => {
                return self.send(giver, taker, Message::NotHeld { blob, request });
            }
        };
        if here.is_some_and(|here| !here.contains(index)) {
            self.report.not_here += 1;
            return self.send(giver, taker, Message::Elsewhere { blob, index, request });
        }
        let giving = &mut node.giving;
        if giving.slots >= exchange.slots {
            giving.sent_away_at = Some(now);
            return self.send_away(giver, taker, blob, index, request);
        }
        let followers = giving.subscriptions.get(&blob);
        if spreads && followers.is_some_and(|followers| followers.contains_key(&taker)) {
            let rivals = followers.is_some_and(|followers| followers.len() > 1);
            // Its own place does not count yet.
            let half_free = 2 * (exchange.slots - giving.slots) >= exchange.slots;
            let quiet = giving.sent_away_at.is_none_or(|at| now - at >= nanos(exchange.quiet));
            let plentiful = half_free && quiet;
            let spread = giving.spread.entry(blob).or_insert_with(|| Spread::new(map));
            let among =
                if exchange.all_spread { here } else { first_hand.as_ref().filter(|_| !carried.held) };
            if !spread.give(index, taker, rivals, plentiful, among) {
                self.report.elsewhere += 1;
                return self.send(giver, taker, Message::Elsewhere { blob, index, request });
            }
        }
        let content = carried.content[index.get() as usize];
        self.send_chunk(giver, taker, (request, blob, index, content));
    }

    /// Begins to send a chunk, in a slot that is free.
    fn send_chunk(
        &mut self,
        giver: usize,
        taker: usize,
        (request, blob, index, content): (RequestId, BlobNo, ChunkIndex, Content),
    ) {
        let (now, domain) = (self.clock.now(), self.domain(taker));
        let (from, to) = (self.nodes[giver].setup.site, self.nodes[taker].setup.site);
        let (up, down) = (self.nodes[giver].up, self.nodes[taker].down);
        let near = [up, down];
        let far = [up, self.uplinks[from].0, self.uplinks[to].1, down];
        let ports = if from == to { &near[..] } else { &far[..] };
        // Through both ports goes what each has on average; what is too much for one of them is its credit.
        let owed = f64::midpoint(self.nodes[giver].owed.0, self.nodes[taker].owed.1).max(0.0);
        let bytes = f64::from(self.blobs[blob].map().len(index)) * (1.0 + self.setup.overhead) + owed;
        let flow = self.links[domain].fluid.begin(now, bytes, ports, Carries::Chunk { giver, taker });
        let giving = &mut self.nodes[giver].giving;
        giving.slots += 1;
        let connection = giving.connections.entry(taker).or_default();
        connection.in_a_row += 1;
        connection.serving = Some(Serving { request, blob, index, content, flow });
        self.nodes[giver].owed.0 -= owed;
        self.nodes[taker].owed.1 -= owed;
        let delay = self.half_rtt(giver, taker) + self.queued(giver, taker);
        self.clock.after(delay, Happening::Begun { node: taker, blob, peer: giver, request });
    }

    /// The first bytes of a chunk have come, which is told unless it was taken back.
    pub(super) fn begun(&mut self, node: usize, blob: BlobNo, peer: usize, request: RequestId) {
        let (id, now) = (self.nodes[peer].id, self.clock.now());
        let is_near = self.class(node, peer) == LinkClass::Lan;
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let trades = is_near && transfer.planner.is_crowd();
        if let Some(fetching) = transfer.fetching.get_mut(&request).filter(|_| trades) {
            fetching.since = now;
            let index = fetching.index;
            self.apply(node, blob, Event::Begun(id, index));
        }
    }

    pub(super) fn chunk_sent(&mut self, giver: usize, taker: usize) {
        let Some(connection) = self.nodes[giver].giving.connections.get_mut(&taker) else { return };
        let Some(Serving { request, blob, index, content, .. }) = connection.serving.take() else { return };
        let behind = std::mem::take(&mut connection.behind);
        let bytes = u64::from(self.blobs[blob].map().len(index));
        self.nodes[giver].tally.chunk_bytes += bytes;
        if self.nodes[giver].setup.site != self.nodes[taker].setup.site {
            let site = self.nodes[taker].setup.site;
            self.report.uplinks[site] += bytes;
        }
        self.send_now(giver, taker, Message::Chunk { blob, index, request, content }, 0);
        for message in behind {
            self.send_now(giver, taker, message, 0);
        }
        self.keep_or_free(giver, taker);
    }

    /// Those who were sent away first are told that there is a slot.
    fn slot_is_free(&mut self, giver: usize) {
        let exchange = self.setup.exchange;
        let giving = &mut self.nodes[giver].giving;
        giving.slots -= 1;
        let most = exchange.slots - giving.slots;
        let mut told = Vec::new();
        while told.len() < most
            && let Some(taker) = giving.away.pop_front()
        {
            // It may be another connection by now.
            let connection = giving.connections.get_mut(&taker);
            if connection.is_some_and(|connection| std::mem::take(&mut connection.told_busy)) {
                told.push(taker);
            }
        }
        for taker in told {
            self.send(giver, taker, Message::Free);
        }
    }

    /// A taker's connection has ended.
    pub(super) fn taker_gone(&mut self, giver: usize, taker: usize) {
        let (now, domain) = (self.clock.now(), self.domain(taker));
        let giving = &mut self.nodes[giver].giving;
        giving.subscriptions.values_mut().for_each(|followers| {
            followers.remove(&taker);
        });
        giving.spread.values_mut().for_each(|spread| spread.gone(taker));
        let Some(connection) = giving.connections.remove(&taker) else { return };
        let Some(serving) = connection.serving else { return };
        self.links[domain].fluid.end(now, serving.flow);
        self.slot_is_free(giver);
    }

    /// Everything that is on its way from or to a node breaks off.
    pub(super) fn drop_all_flows(&mut self, node: usize) {
        let takers: Vec<usize> = self.nodes[node].giving.connections.keys().copied().collect();
        for taker in takers {
            self.taker_gone(node, taker);
        }
        for giver in 0..self.nodes.len() {
            if giver != node && self.nodes[giver].giving.connections.contains_key(&node) {
                self.taker_gone(giver, node);
            }
        }
    }

    // --- states ---

    /// What a node gives of a reading's states to one who has these before.
    fn states_of(
        &mut self,
        node: usize,
        blob: BlobNo,
        attempt: &Attempt,
        before: &StatePrefix,
    ) -> Result<Arc<SignedStates>, NoStates> {
        let id = self.nodes[node].id;
        let digest = self.blobs[blob].digest();
        let Some(transfer) = self.nodes[node].blobs[blob].transfer.as_ref() else {
            return Err(NoStates::None);
        };
        let signed = if attempt.signer != id {
            let signed = transfer.planner.signed().filter(|signed| signed.claim.stream() == *attempt);
            signed.cloned().ok_or(NoStates::None)?
        } else {
            let own = match transfer.role {
                Role::Leading { attempt, .. } | Role::Candidate { attempt, .. } => Some(attempt),
                Role::Following { stream: Some(own), .. } if own.signer == id => Some(own.number),
                _ => None,
            };
            if own != Some(attempt.number) {
                return Err(NoStates::None);
            }
            let stream = transfer.planner.ledger().stream();
            let is_last = |signed: &&Arc<SignedStates>| {
                signed.claim.attempt == attempt.number && signed.claim.states == stream.hash()
            };
            match transfer.claim.as_ref().filter(is_last) {
                Some(signed) => Arc::clone(signed),
                None => {
                    let certificate = self.nodes[node].certificate.clone();
                    let key = &self.nodes[node].key;
                    let claim = StreamClaim::sign(key, &certificate.network, digest, attempt.number, stream);
                    Arc::new(SignedStates { claim, certificate, prefix: StatePrefix::clone(stream) })
                }
            }
        };
        if let Some(transfer) = self.nodes[node].transfer(blob)
            && attempt.signer == id
        {
            transfer.claim = Some(Arc::clone(&signed));
        }
        let from = before.known();
        if signed.prefix.known() < from {
            return Err(NoStates::None);
        }
        // A state is reached in one way only, so the last one stands for all before it.
        if signed.prefix.at(from) == before.at(from) { Ok(signed) } else { Err(NoStates::Others) }
    }

    // --- following ---

    pub(super) fn followed(&mut self, giver: usize, taker: usize, blob: BlobNo) {
        let map = self.blobs[blob].map();
        let carried = &self.nodes[giver].blobs[blob];
        if !carried.held && carried.transfer.is_none() {
            let update = Update { role: Role::Gone, here: List::first_of([]) };
            return self.send(giver, taker, Message::Update(blob, update));
        }
        let arrives = !carried.held;
        let subscription = Telling::new(map, taker as u32);
        self.nodes[giver].giving.subscriptions.entry(blob).or_default().insert(taker, subscription);
        let (wait, now) = (self.tell(giver, taker, blob), self.clock.now());
        if let Some(wait) = wait
            && let Some(run) = self.nodes[giver].transfer(blob).map(|transfer| transfer.run)
        {
            self.clock.at(now + nanos(wait), Happening::Push { node: giver, blob, run });
        }
        if arrives {
            let (id, class) = (self.nodes[taker].id, self.class(giver, taker));
            self.apply(giver, blob, Event::Met(id, class, None));
        }
    }

    pub(super) fn unfollowed(&mut self, giver: usize, taker: usize, blob: BlobNo) {
        if let Some(followers) = self.nodes[giver].giving.subscriptions.get_mut(&blob) {
            followers.remove(&taker);
            if followers.is_empty() {
                self.nodes[giver].giving.spread.remove(&blob);
            }
        }
    }

    /// Something is new: a role is told at once, chunks when it is time.
    pub(super) fn changed(&mut self, node: usize, blob: BlobNo, at_once: bool) {
        let now = self.clock.now();
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let due = transfer.pushed + nanos(UPDATE_TIME);
        if at_once || now >= due {
            self.push(node, blob);
        } else if transfer.push_due.is_none_or(|before| due < before) {
            transfer.push_due = Some(due);
            let run = transfer.run;
            self.clock.at(due, Happening::Push { node, blob, run });
        }
    }

    /// Tells all followers what is new, as far as it is time.
    pub(super) fn push(&mut self, node: usize, blob: BlobNo) {
        let now = self.clock.now();
        let takers: Vec<usize> = self.nodes[node]
            .giving
            .subscriptions
            .get(&blob)
            .map_or_else(Vec::new, |all| all.keys().copied().collect());
        let waits: Vec<Duration> =
            takers.into_iter().filter_map(|taker| self.tell(node, taker, blob)).collect();
        if let Some(transfer) = self.nodes[node].transfer(blob) {
            transfer.pushed = now;
            if let Some(wait) = waits.into_iter().min() {
                let (due, run) = (now + nanos(wait.max(UPDATE_TIME)), transfer.run);
                if transfer.push_due.is_none_or(|before| due < before) {
                    transfer.push_due = Some(due);
                    self.clock.at(due, Happening::Push { node, blob, run });
                }
            }
        }
    }

    /// Tells one follower what there is to tell now; says for how long the rest can wait, if there is any.
    fn tell(&mut self, giver: usize, taker: usize, blob: BlobNo) -> Option<Duration> {
        // Each pair of nodes began at another time.
        let begun = Duration::from_millis(7 * (giver * 31 + taker) as u64 % 800);
        let now = Duration::from_nanos(self.clock.now()) + begun;
        let id = self.nodes[taker].id;
        let is_near = self.class(giver, taker) == LinkClass::Lan;
        loop {
            let node = &mut self.nodes[giver];
            let subscriptions = node.giving.subscriptions.get_mut(&blob)?;
            let followers = subscriptions.len();
            let telling = subscriptions.get_mut(&taker)?;
            let carried = &node.blobs[blob];
            let end = |role| Update { role, here: List::first_of([]) };
            let update = match &carried.transfer {
                _ if carried.held => end(Role::Held),
                None => end(Role::Gone),
                Some(transfer) => {
                    let mut no_news = transfer.planner.common().clone();
                    transfer.planner.here_at(&id).into_iter().for_each(|theirs| no_news.add(theirs));
                    let pace = transfer.planner.quickest();
                    let audience = Audience { no_news, pace, followers, is_near };
                    match telling.next(transfer.role, &transfer.linked, &audience, now) {
                        News::Say(update) => {
                            self.send(giver, taker, Message::Update(blob, update));
                            continue;
                        }
                        News::Wait(time) => return Some(time),
                        News::Nothing => return None,
                        News::Anew => end(Role::Gone),
                    }
                }
            };
            self.send(giver, taker, Message::Update(blob, update));
            return None;
        }
    }
}
