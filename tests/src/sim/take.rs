//! The taking side: carries out what planners ask for and tells them what happened, as the node's driver does.

use std::collections::btree_map::Entry;
use std::time::Duration;

use wherry_node::transfer::planner::{
    DropReason, Effect, Event, IN_FLIGHT, MOST_WINDOW, NoStates, Scope, Source,
};
use wherry_proto::{ChunkIndex, NodeId, Role, State};

use super::clock::nanos;
use super::message::{BlobNo, Holding, Job, Led, Message, Part, RequestId};
use super::node::Fetching;
use super::setup::Manner;
use super::world::{Happening, World};

/// How long a peer may say nothing while it owes an answer.
const SILENCE: Duration = Duration::from_secs(5);

/// After how long a client asks again for what could not be had.
const RETRY: Duration = Duration::from_secs(2);

impl World {
    /// Tells a planner what has happened, and does what it asks for.
    pub(super) fn apply(&mut self, node: usize, blob: BlobNo, event: Event) {
        let now = self.clock.now();
        let trace = self.trace;
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        match &event {
            Event::Arrived(source, index, ..) if transfer.asked.get(index) == Some(source) => {
                transfer.asked.remove(index);
            }
            Event::Busy(peer, index) | Event::Elsewhere(peer, index)
                if transfer.asked.get(index) == Some(&Source::Peer(*peer)) =>
            {
                transfer.asked.remove(index);
            }
            Event::PeerFailed(peer, _) => transfer.asked.retain(|_, source| *source != Source::Peer(*peer)),
            Event::OriginEnded(_) => transfer.asked.retain(|_, source| *source != Source::Origin),
            _ => {}
        }
        if trace {
            eprintln!("{:.4} {node}/{blob} <- {}", now as f64 / 1e9, brief(&event));
        }
        let measures = matches!(event, Event::Tick);
        let laden =
            matches!(event, Event::Searched(Scope::Site) | Event::Tick).then(|| self.is_laden(node, blob));
        let allowed = self.nodes[node].room.of(blob as u64);
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        if let Some(laden) = laden {
            transfer.planner.set_laden(laden);
        }
        transfer.planner.may_ask(allowed);
        let effects = transfer.planner.apply(event);
        let needs = transfer.planner.needs();
        let mut is_new = false;
        if transfer.linked != *transfer.planner.ledger().linked() {
            transfer.linked.clone_from(transfer.planner.ledger().linked());
            is_new = true;
        }
        let role = transfer.planner.role();
        let alike = transfer.role.is_alike(role);
        let told = is_new || transfer.role != role;
        transfer.role = role;
        let reads = transfer.planner.reads_origin();
        let room = &mut self.nodes[node].room;
        let mut turns = room.takes(blob as u64, needs);
        turns.extend(room.reads(blob as u64, reads));
        self.tell_turns(node, turns);
        if measures {
            self.measure(node, blob);
        }
        if told {
            self.changed(node, blob, !alike);
        }
        for effect in effects {
            if trace {
                eprintln!("{:.4} {node}/{blob}    -> {}", now as f64 / 1e9, brief(&effect));
            }
            self.act(node, blob, effect);
        }
        if is_new {
            self.tell_reader(node, blob);
        }
    }

    fn measure(&mut self, node: usize, blob: BlobNo) {
        let Some(transfer) = self.nodes[node].blobs[blob].transfer.as_ref() else { return };
        let sizes = transfer.planner.sizes();
        let tally = &mut self.nodes[node].tally;
        tally.most_bytes = tally.most_bytes.max(sizes.bytes);
        self.report.most.max(&sizes);
    }

    fn act(&mut self, node: usize, blob: BlobNo, effect: Effect) {
        // What ended before ends the rest.
        if self.nodes[node].blobs[blob].transfer.is_none() {
            self.report.wrong(format!("{node}: {effect:?} after the end"));
            return;
        }
        match effect {
            Effect::Follow(peer) => self.follow(node, blob, peer),
            Effect::Unfollow(peer) => self.leave(node, blob, peer),
            Effect::AskRoles(but) => self.ask_roles(node, blob, &but),
            Effect::AskClaim(peer) | Effect::AskChain(peer) => {
                let spares = matches!(effect, Effect::AskClaim(_));
                let transfer = self.nodes[node].blobs[blob].transfer.as_ref();
                let known = transfer.is_some_and(|transfer| {
                    let ledger = transfer.planner.ledger();
                    ledger.chain().is_some() || ledger.stream().known() + 1 >= ledger.map().count()
                });
                self.pull(node, blob, peer, Part::Chain { known, spares });
            }
            Effect::AskClaimed(peer, states) => self.pull(node, blob, peer, Part::Claimed(states)),
            Effect::AskStates(peer, attempt, before) => {
                self.pull(node, blob, peer, Part::States(attempt, before))
            }
            Effect::Lead(_) => self.report.leads += 1,
            Effect::LedBy(_) | Effect::MakeWay => {}
            Effect::Meet(peer) => self.introduce(node, blob, peer),
            Effect::AskLead(but) => self.ask_lead(node, blob, &but),
            Effect::Cancel(peer, index) => {
                self.report.hedged += 1;
                self.cancel(node, blob, peer, Some(index));
            }
            Effect::Fetch(peer, index, starts) => self.fetch(node, blob, peer, index, starts),
            Effect::ReadOrigin(from, state, to) => {
                self.note_reading(node, blob, from, to);
                self.read_origin(node, blob, from, state, to);
            }
            Effect::StopOrigin => {
                if let Some(transfer) = self.nodes[node].transfer(blob) {
                    transfer.asked.retain(|_, source| *source != Source::Origin);
                }
                self.stop_origin(node, blob);
            }
            Effect::Keep(source, index, link) => {
                let Some(transfer) = self.nodes[node].transfer(blob) else { return };
                let run = transfer.run;
                let Some(content) = transfer.arriving.remove(&(source, index)) else {
                    return self.report.wrong(format!("{node}: keeps {index}, which is not here"));
                };
                let disk = nanos(self.setup.disk);
                let kept = Happening::Kept { node, blob, run, source, index, link, content };
                self.clock.after(disk, kept);
            }
            Effect::Discard(source, index) => {
                let Some(transfer) = self.nodes[node].transfer(blob) else { return };
                if transfer.arriving.remove(&(source, index)).is_some() {
                    self.report.discarded += 1;
                }
            }
            Effect::Drop(peer, reason) => {
                self.judge_drop(node, peer, &reason);
                self.leave(node, blob, peer);
            }
            Effect::Ban(peer, proof) => {
                let number = self.ids[&peer];
                if self.nodes[number].setup.manner == Manner::Honest {
                    self.report.wrong(format!("{node} bans {number}, which is honest: {proof}"));
                }
                self.report.bans += 1;
                self.leave(node, blob, peer);
                self.nodes[node].banned.insert(number);
                self.taker_gone(node, number);
                self.taker_gone(number, node);
            }
            Effect::StreamVoid(_) | Effect::AttemptFailed | Effect::OriginWrong(_) => self.report.voids += 1,
            Effect::OriginContradicts(_) => self.report.contradictions += 1,
            Effect::Search(scope) => self.search(node, blob, scope),
            Effect::Verified => self.verified(node, blob),
            Effect::Failed(failure) => self.failed(node, blob, &format!("{failure:?}")),
        }
    }

    fn judge_drop(&mut self, node: usize, peer: NodeId, reason: &DropReason) {
        let number = self.ids[&peer];
        if self.nodes[number].setup.manner != Manner::Honest {
            self.report.liars_dropped += 1;
            return;
        }
        self.report.honest_dropped += 1;
        let misleads = |manner| matches!(manner, Manner::Inventor { .. } | Manner::FalseHolder { .. });
        let poisoned = self.setup.nodes.iter().any(|node| misleads(node.manner));
        match reason {
            // It may have had it in good faith from a leader that made it up, or this node goes by a false claim.
            DropReason::WrongChunk(_) if poisoned => {}
            DropReason::WrongChunk(_) => {
                self.report.wrong(format!("{node} drops {number}, which is honest: {reason}"));
            }
            DropReason::Failed(why) | DropReason::Left(why) => {
                let closed = why == CLOSED || why == GONE;
                if !closed {
                    self.report.wrong(format!("{node} drops {number}, which is honest: {why}"));
                }
            }
        }
    }

    // --- peers ---

    fn follow(&mut self, node: usize, blob: BlobNo, peer: NodeId) {
        let number = self.ids[&peer];
        let life = self.nodes[number].life;
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        transfer.following.insert(number, life);
        self.send_or_lose(node, number, Message::Follow(blob));
    }

    /// Sends a message, or learns after a while that nobody is there.
    pub(super) fn send_or_lose(&mut self, node: usize, peer: usize, message: Message) {
        if self.nodes[peer].alive && !self.refuses(node, peer) {
            self.send(node, peer, message);
        } else {
            let life = self.nodes[peer].life;
            let delay = 2 * self.half_rtt(node, peer);
            self.clock.after(delay, Happening::Lost { node, peer, life });
        }
    }

    fn leave(&mut self, node: usize, blob: BlobNo, peer: NodeId) {
        let number = self.ids[&peer];
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        transfer.asked.retain(|_, source| *source != Source::Peer(peer));
        if transfer.following.remove(&number).is_some() {
            self.send(node, number, Message::Unfollow(blob));
        }
        self.cancel(node, blob, peer, None);
    }

    /// Takes back one request to a peer, or all.
    fn cancel(&mut self, node: usize, blob: BlobNo, peer: NodeId, index: Option<ChunkIndex>) {
        let number = self.ids[&peer];
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let is_it = |fetching: &Fetching| {
            fetching.peer == number && index.is_none_or(|index| fetching.index == index)
        };
        let next =
            transfer.fetching.iter().find(|(_, fetching)| is_it(fetching)).map(|(request, _)| *request);
        if let Some(request) = next {
            if let Some(fetching) = transfer.fetching.remove(&request)
                && transfer.asked.get(&fetching.index) == Some(&Source::Peer(peer))
            {
                transfer.asked.remove(&fetching.index);
            }
            self.send(node, number, Message::Cancel(request));
            self.cancel(node, blob, peer, index);
        }
    }

    fn fetch(&mut self, node: usize, blob: BlobNo, peer: NodeId, index: ChunkIndex, starts: Vec<State>) {
        let number = self.ids[&peer];
        let life = self.nodes[number].life;
        let (request, now) = (self.number(), self.clock.now());
        let chunk_len = u64::from(self.blobs[blob].map().chunk_len());
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let run = transfer.run;
        let twice = transfer.asked.insert(index, Source::Peer(peer));
        let again = transfer.planner.ledger().linked().contains(index);
        transfer.fetching.insert(request, Fetching { peer: number, life, index, since: now, starts });
        let open = transfer.fetching.len();
        if let Some(other) = twice {
            self.report.wrong(format!("{node} asks {number} for {index}, which {other:?} is asked for"));
        }
        if again {
            self.report.wrong(format!("{node} asks {number} for {index}, which it has"));
        }
        let bytes = open as u64 * chunk_len;
        if open > MOST_WINDOW + 1 || (open > 1 && bytes > IN_FLIGHT + chunk_len) {
            self.report.wrong(format!("{node} has asked for {open} chunks"));
        }
        let job = Job { request, blob, part: Part::Chunk(index) };
        self.send_or_lose(node, number, Message::Ask(job));
        self.watch(node, blob, run, number, request);
    }

    fn pull(&mut self, node: usize, blob: BlobNo, peer: NodeId, part: Part) {
        let number = self.ids[&peer];
        let life = self.nodes[number].life;
        let request = self.number();
        let attempt = match &part {
            Part::States(attempt, _) => Some(*attempt),
            _ => None,
        };
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let run = transfer.run;
        transfer.pulling.insert(request, (number, life, attempt));
        self.send_or_lose(node, number, Message::Ask(Job { request, blob, part }));
        self.watch(node, blob, run, number, request);
    }

    /// Only a liar says nothing for so long: whoever is honest has sent something meanwhile, or is gone.
    fn watch(&mut self, node: usize, blob: BlobNo, run: u64, peer: usize, request: RequestId) {
        if self.nodes[peer].setup.manner != Manner::Honest {
            self.clock.after(nanos(SILENCE), Happening::Silence { node, blob, run, request });
        }
    }

    pub(super) fn silence(&mut self, node: usize, blob: BlobNo, request: RequestId) {
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let peer = match (transfer.fetching.get(&request), transfer.pulling.get(&request)) {
            (Some(fetching), _) => fetching.peer,
            (None, Some((peer, ..))) => *peer,
            (None, None) => return,
        };
        self.connection_lost(node, blob, peer, "it said nothing for 5 s");
    }

    /// It is noticed that a peer's life is over, as far as this node has to do with that life.
    pub(super) fn lost(&mut self, node: usize, peer: usize, life: u32) {
        if !self.nodes[node].alive
            || (self.nodes[peer].alive && self.nodes[peer].life == life && !self.refuses(node, peer))
        {
            return;
        }
        for blob in 0..self.blobs.len() {
            let Some(transfer) = self.nodes[node].transfer(blob) else { continue };
            let is_it = |(number, of): (usize, u32)| number == peer && of == life;
            let concerned = transfer.following.get(&peer) == Some(&life)
                || transfer.fetching.values().any(|fetching| is_it((fetching.peer, fetching.life)))
                || transfer.pulling.values().any(|(number, of, _)| is_it((*number, *of)));
            let awaited = transfer.awaited.as_mut().is_some_and(|awaited| awaited.remove(&peer))
                || transfer.asking.as_ref().is_some_and(|(_, asked)| asked.contains(&peer));
            if concerned {
                self.connection_lost(node, blob, peer, CLOSED);
            }
            if awaited {
                self.found(node, peer, blob, Holding::No);
            }
            let Some(transfer) = self.nodes[node].transfer(blob) else { continue };
            if transfer.to_lead.as_ref().is_some_and(|members| members.front() == Some(&peer)) {
                self.led(node, peer, blob, Led::Refuse);
            }
        }
    }

    fn connection_lost(&mut self, node: usize, blob: BlobNo, peer: usize, why: &str) {
        let id = self.nodes[peer].id;
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        transfer.following.remove(&peer);
        transfer.fetching.retain(|_, fetching| fetching.peer != peer);
        transfer.busy.remove(&peer);
        let mut pulled = Vec::new();
        transfer.pulling.retain(|_, (number, _, attempt)| {
            if *number == peer {
                pulled.extend(*attempt);
            }
            *number != peer
        });
        // The connection's other side notices too.
        if self.nodes[peer].alive {
            self.taker_gone(peer, node);
        }
        self.apply(node, blob, Event::PeerFailed(id, why.to_owned()));
        for attempt in pulled {
            self.apply(node, blob, Event::States(id, attempt, Err(NoStates::Failed(why.to_owned()))));
        }
    }

    // --- what comes ---

    pub(super) fn deliver(&mut self, from: usize, to: usize, message: Message) {
        if self.nodes[to].setup.manner != Manner::Honest {
            return self.liar_hears(to, from, message);
        }
        let id = self.nodes[from].id;
        match message {
            Message::Follow(blob) => self.followed(to, from, blob),
            Message::Unfollow(blob) => self.unfollowed(to, from, blob),
            Message::Ask(job) => self.asked(to, from, job),
            Message::Cancel(request) => self.cancelled(to, from, request),
            Message::Update(blob, update) => {
                if let Some(transfer) = self.nodes[to].transfer(blob)
                    && transfer.following.contains_key(&from)
                {
                    let gone = update.role == Role::Gone;
                    self.apply(to, blob, Event::Updated(id, update));
                    if gone && let Some(transfer) = self.nodes[to].transfer(blob) {
                        transfer.following.remove(&from);
                    }
                }
            }
            Message::Chunk { blob, index, request, content } => {
                let now = self.clock.now();
                let len = u64::from(self.blobs[blob].map().len(index));
                let fetching =
                    self.nodes[to].transfer(blob).and_then(|transfer| transfer.fetching.remove(&request));
                let Some(fetching) = fetching else {
                    self.report.wasted += len;
                    return;
                };
                let took = Duration::from_nanos(now - fetching.since);
                let links =
                    fetching.starts.iter().map(|from| self.blobs[blob].link(index, *from, content)).collect();
                if let Some(transfer) = self.nodes[to].transfer(blob) {
                    transfer.arriving.insert((Source::Peer(id), index), content);
                }
                self.apply(to, blob, Event::Arrived(Source::Peer(id), index, links, took));
            }
            Message::Busy { blob, index, request } => {
                let token = self.number();
                let Some(transfer) = self.nodes[to].transfer(blob) else { return };
                if transfer.fetching.remove(&request).is_none() {
                    return;
                }
                let (run, pause) = (transfer.run, transfer.planner.busy_pause());
                if let Entry::Vacant(vacant) = transfer.busy.entry(from) {
                    vacant.insert(token);
                    self.clock
                        .after(nanos(pause), Happening::Pause { node: to, blob, run, peer: from, token });
                }
                self.apply(to, blob, Event::Busy(id, index));
            }
            Message::Elsewhere { blob, index, request } => {
                let Some(transfer) = self.nodes[to].transfer(blob) else { return };
                if transfer.fetching.remove(&request).is_some() {
                    self.apply(to, blob, Event::Elsewhere(id, index));
                }
            }
            Message::NotHeld { blob, request } => {
                let Some(transfer) = self.nodes[to].transfer(blob) else { return };
                if transfer.fetching.remove(&request).is_some() {
                    self.apply(to, blob, Event::PeerFailed(id, GONE.to_owned()));
                }
            }
            Message::Free => {
                for blob in 0..self.blobs.len() {
                    if let Some(transfer) = self.nodes[to].transfer(blob)
                        && transfer.busy.remove(&from).is_some()
                    {
                        self.apply(to, blob, Event::Ready(id));
                    }
                }
            }
            Message::States { blob, request, states, .. } => {
                let Some(transfer) = self.nodes[to].transfer(blob) else { return };
                if let Some((_, _, Some(attempt))) = transfer.pulling.remove(&request) {
                    self.apply(to, blob, Event::States(id, attempt, states));
                }
            }
            Message::Chain { blob, request, chain, .. } => {
                let Some(transfer) = self.nodes[to].transfer(blob) else { return };
                if transfer.pulling.remove(&request).is_some() {
                    let event = match chain {
                        Some(chain) => Event::Chain(id, chain),
                        None => Event::PeerFailed(id, GONE.to_owned()),
                    };
                    self.apply(to, blob, event);
                }
            }
            Message::ClaimElsewhere { blob, request, states } => {
                let Some(transfer) = self.nodes[to].transfer(blob) else { return };
                if transfer.pulling.remove(&request).is_some() {
                    self.apply(to, blob, Event::Claimed(id, states));
                }
            }
            Message::ClaimedStates { blob, request, states, chain } => {
                let Some(transfer) = self.nodes[to].transfer(blob) else { return };
                if transfer.pulling.remove(&request).is_some() {
                    self.apply(to, blob, Event::ClaimedStates(id, states, chain));
                }
            }
            Message::Want(blob) => {
                let carried = &self.nodes[to].blobs[blob];
                let holding = match &carried.transfer {
                    _ if carried.held => Holding::Held,
                    Some(transfer) => Holding::Arriving(transfer.role),
                    None => Holding::No,
                };
                self.send(to, from, Message::Found(blob, holding));
            }
            Message::Found(blob, holding) => self.found(to, from, blob, holding),
            Message::Lead(blob) => {
                let carried = &self.nodes[to].blobs[blob];
                let led = match &carried.transfer {
                    _ if carried.held => Led::Have,
                    Some(transfer) if transfer.planner.leads() => Led::Leading,
                    _ if !self.nodes[to].setup.origin => Led::Refuse,
                    Some(_) => Led::Leading,
                    None => {
                        self.begin(to, blob);
                        Led::Leading
                    }
                };
                self.send(to, from, Message::Led(blob, led));
            }
            Message::Led(blob, led) => self.led(to, from, blob, led),
        }
    }

    pub(super) fn pause_is_over(&mut self, node: usize, blob: BlobNo, peer: usize, token: u64) {
        let id = self.nodes[peer].id;
        if let Some(transfer) = self.nodes[node].transfer(blob)
            && transfer.busy.get(&peer) == Some(&token)
        {
            transfer.busy.remove(&peer);
            self.apply(node, blob, Event::Ready(id));
        }
    }

    fn note_reading(&mut self, node: usize, blob: BlobNo, from: ChunkIndex, to: ChunkIndex) {
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let map = transfer.planner.ledger().map();
        let mut twice = None;
        for index in (from.get()..=to.get()).filter_map(|number| map.index(number)) {
            if let Some(other) = transfer.asked.insert(index, Source::Origin) {
                twice = Some((index, other));
            }
        }
        if let Some((index, other)) = twice {
            self.report.wrong(format!("{node} reads {index}, which {other:?} is asked for"));
        }
    }

    // --- clients and ends ---

    pub(super) fn tell_reader(&mut self, node: usize, blob: BlobNo) {
        if !self.setup.readers {
            return;
        }
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let at = transfer.reads_at.unwrap_or(transfer.planner.ledger().map().first());
        let next = transfer.linked.first_missing(at);
        if next.is_some() && next != transfer.reads_at {
            transfer.reads_at = next;
            if let Some(next) = next {
                self.apply(node, blob, Event::Reading(1, next));
            }
        }
    }

    /// The transfer is over: nothing of it is wanted any more.
    fn end(&mut self, node: usize, blob: BlobNo) {
        self.stop_origin(node, blob);
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let peers: Vec<usize> = transfer
            .following
            .keys()
            .copied()
            .chain(transfer.fetching.values().map(|fetching| fetching.peer))
            .collect();
        for peer in peers {
            let id = self.nodes[peer].id;
            self.leave(node, blob, id);
        }
        let carried = &mut self.nodes[node].blobs[blob];
        if let Some(transfer) = carried.transfer.take() {
            carried.links = transfer.planner.ledger().links().collect();
        }
        let turns = self.nodes[node].room.ends(blob as u64);
        self.tell_turns(node, turns);
    }

    fn verified(&mut self, node: usize, blob: BlobNo) {
        let now = self.clock.now();
        self.measure(node, blob);
        let map = self.blobs[blob].map();
        let whole = map
            .iter()
            .all(|index| self.nodes[node].blobs[blob].content[index.get() as usize] == super::blob::TRUE);
        if !whole {
            self.report.wrong(format!("{node} takes a blob for verified that is wrong"));
        }
        self.end(node, blob);
        let carried = &mut self.nodes[node].blobs[blob];
        carried.held = true;
        carried.done = Some(now);
        if self.nodes[node].setup.wants {
            self.open -= 1;
        }
        self.push(node, blob);
    }

    fn failed(&mut self, node: usize, blob: BlobNo, why: &str) {
        let now = self.clock.now();
        self.report.failures.push(format!("{:.3} s: {node}: {why}", now as f64 / 1e9));
        self.end(node, blob);
        self.nodes[node].blobs[blob].failed = true;
        self.push(node, blob);
        self.nodes[node].giving.subscriptions.remove(&blob);
        if self.nodes[node].setup.wants {
            self.clock.after(nanos(RETRY), Happening::Again { node, blob });
        }
    }
}

/// Why a peer failed whose node has died.
const CLOSED: &str = "the connection has ended";

/// Why a peer failed that does not have the blob after all.
const GONE: &str = "it has given up the blob";

fn brief(what: &dyn std::fmt::Debug) -> String {
    let mut text = format!("{what:?}");
    if let Some((at, _)) = text.char_indices().nth(220) {
        text.truncate(at);
    }
    text
}
