//! The task that drives one transfer: it carries out what the planner asks for and tells it what happened.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use wherry_proto::{ChunkIndex, ChunkMap, Digest, Link, NodeId, Role, State, link};

use super::flow::Flow;
use super::planner::{DropReason, Effect, Event, Planner, Proof, Scope, Source, Succession, TICK};
use super::reading::{self, Reading};
use super::routes::Routes;
use super::siblings::Sibling;
use super::sources::{OriginFailure, Route};
use super::view::{Stance, View};
use super::why::{Facts, Why};
use super::{Parts, TransferError};
use crate::status::ErrorKind;
use crate::store::{Partial, StoreError};

mod asking;

/// How many happenings wait for the driver: its tasks are slowed down beyond that.
pub(super) const EVENTS: usize = 256;

/// Chunks up to this length in bytes are hashed where they arrive: handing them over would cost more.
const HASH_INLINE: usize = 64 << 10;

/// What the driver is told, by its own tasks and by those who want the blob.
pub(super) enum Happening {
    /// For the planner as it is.
    Event(Event),
    /// The bytes of a chunk have come and are hashed.
    Chunk(Source, ChunkIndex, Vec<Link>, Held, Duration),
    /// The same from the origin's reading with this number.
    Origin(u64, OriginStep),
    /// A chunk was written, or not.
    Written(Source, ChunkIndex, Link, Result<(), StoreError>),
    /// Another origin has the blob.
    Route(Route),
    /// This node follows here.
    Followed(NodeId),
    /// The transfer may run once more, after its turn was given away while it waited for a limit.
    Turn(OwnedSemaphorePermit),
    /// Somebody wants to know what it does.
    Asked(oneshot::Sender<Why>),
}

/// What a reading of the origin gives.
pub(super) enum OriginStep {
    Chunk(ChunkIndex, Link, Held),
    Ended(Option<OriginFailure>),
}

/// Bytes in memory, with the share of the node's memory that they take.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    pub(super) _share: OwnedSemaphorePermit,
}

pub(super) struct Driver {
    pub(super) parts: Arc<Parts>,
    pub(super) view: Arc<View>,
    pub(super) partial: Arc<Partial>,
    planner: Planner,
    routes: Routes,
    flow: Flow,
    sibling: Sibling,
    arriving: HashMap<(Source, ChunkIndex), Held>,
    writing: Writing,
    events: mpsc::Sender<Happening>,
    // While it waits for a limit others have it.
    turn: Option<OwnedSemaphorePermit>,
    lacks_turn: bool,
    asks_for_turn: bool,
    reading: u64,
    // Of the ledger, when the view was last told what is linked.
    revision: u64,
    reading_stop: CancellationToken,
    // Ends what is under way with one peer: the following, and requests that are taken back.
    following: HashMap<NodeId, CancellationToken>,
    fetching: HashMap<(NodeId, ChunkIndex), CancellationToken>,
    // Whether it leads, and has not yet said what it reads.
    is_new_leader: bool,
    // Ends every task of this transfer when the driver does.
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Driver {
    pub(super) fn new(
        parts: Arc<Parts>,
        view: Arc<View>,
        partial: Arc<Partial>,
        events: mpsc::Sender<Happening>,
        turn: Option<OwnedSemaphorePermit>,
        stop: CancellationToken,
    ) -> Self {
        let map = partial.map();
        let here: Vec<(ChunkIndex, Link)> =
            map.iter().zip(partial.links()).filter_map(|(index, link)| Some((index, link?))).collect();
        // By the clock, and by lot, since a machine without a battery may begin with the same time again.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let first_attempt = now << 20 | u64::from(rand::random::<u32>() >> 12);
        let mut planner = Planner::new(parts.peers.me(), partial.digest(), map, &here, first_attempt);
        planner.set_site(&parts.peers.site());
        if let Some(chain) = partial.chain() {
            planner.trust(chain);
        }
        if let Some(rate) = parts.limits.rate() {
            planner.paced(rate);
        }
        view.relinked(planner.ledger().linked(), planner.first_hand());
        let reading_stop = stop.child_token();
        let sibling = parts.siblings.join();
        Self {
            parts,
            view,
            partial,
            planner,
            routes: Routes::default(),
            flow: Flow::new(Instant::now()),
            sibling,
            arriving: HashMap::new(),
            writing: Writing::default(),
            events,
            lacks_turn: false,
            asks_for_turn: false,
            turn,
            reading: 0,
            revision: 0,
            reading_stop,
            following: HashMap::new(),
            fetching: HashMap::new(),
            is_new_leader: false,
            stop,
            tasks: TaskTracker::new(),
        }
    }

    fn digest(&self) -> Digest {
        self.partial.digest()
    }

    fn map(&self) -> ChunkMap {
        self.partial.map()
    }

    /// Runs the transfer until it is decided how it ends.
    pub(super) async fn run(
        &mut self,
        happenings: &mut mpsc::Receiver<Happening>,
    ) -> Result<(), TransferError> {
        let mut limits = self.parts.limits.watch();
        if limits.borrow_and_update().is_some() {
            // What held before it began is told like what changes.
            limits.mark_changed();
        }
        // Whatever was told before, a route above all, stands in the queue before what the search finds.
        self.search(Scope::Site);
        let stop = self.stop.clone();
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let happening = tokio::select! {
                () = stop.cancelled() => return Err(TransferError::Stopped),
                happening = happenings.recv() => happening,
                _ = ticks.tick() => Some(Happening::Event(Event::Tick)),
                () = self.sibling.turn() => Some(Happening::Event(Event::Room)),
                Ok(()) = limits.changed() => {
                    let limited = limits.borrow_and_update().is_some();
                    if !limited && self.lacks_turn {
                        self.take_turn();
                        continue;
                    }
                    Some(Happening::Event(Event::Limited(limited)))
                }
            };
            // The driver itself holds a sender, so the channel does not end.
            let Some(happening) = happening else { return Err(TransferError::Stopped) };
            if self.happened(happening)? {
                return Ok(());
            }
        }
    }

    /// Ends all that is under way.
    pub(super) async fn close(self, happenings: mpsc::Receiver<Happening>) {
        self.stop.cancel();
        self.tasks.close();
        // Tasks end at their next await; those that write must have written before the partial is closed.
        drop(happenings);
        self.tasks.wait().await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = task => {} }
        });
    }

    /// Takes in one happening; `true` when all is verified.
    fn happened(&mut self, happening: Happening) -> Result<bool, TransferError> {
        let event = match happening {
            Happening::Event(event) => {
                if let Event::Busy(node, index)
                | Event::Elsewhere(node, index)
                | Event::NotHere(node, index) = &event
                {
                    self.fetching.remove(&(*node, *index));
                }
                event
            }
            Happening::Chunk(source, index, links, held, took) => {
                self.view.from_peers.fetch_add(held.bytes.len() as u64, Ordering::Relaxed);
                self.parts.metrics.from_peers.inc_by(held.bytes.len() as u64);
                self.flow.took(source, held.bytes.len() as u64, Instant::now());
                self.arriving.insert((source, index), held);
                if let Source::Peer(node) = source {
                    self.fetching.remove(&(node, index));
                }
                Event::Arrived(source, index, links, took)
            }
            Happening::Origin(reading, _) if reading != self.reading => return Ok(false),
            Happening::Origin(_, OriginStep::Chunk(index, link, held)) => {
                self.view.from_origin.fetch_add(held.bytes.len() as u64, Ordering::Relaxed);
                self.parts.metrics.from_origin.inc_by(held.bytes.len() as u64);
                self.flow.took(Source::Origin, held.bytes.len() as u64, Instant::now());
                self.arriving.insert((Source::Origin, index), held);
                self.routes.gave();
                Event::Arrived(Source::Origin, index, vec![link], Duration::ZERO)
            }
            // While there is another origin the planner may go on as if this one had ended where it should.
            Happening::Origin(_, OriginStep::Ended(why)) => {
                Event::OriginEnded(why.and_then(|why| self.origin_failed(why)))
            }
            Happening::Written(source, index, link, result) => {
                result.map_err(TransferError::store)?;
                Event::Kept(source, index, link)
            }
            Happening::Route(route) => {
                let rates = [self.parts.limits.rate(), self.parts.origins.rate(&route)];
                if let Some(rate) = rates.into_iter().flatten().min() {
                    self.planner.paced(rate);
                }
                if !self.routes.add(route) {
                    return Ok(false);
                }
                Event::OriginOffered
            }
            Happening::Turn(turn) => {
                self.turn = Some(turn);
                (self.lacks_turn, self.asks_for_turn) = (false, false);
                // It may have been limited anew meanwhile.
                Event::Limited(self.parts.limits.limited().is_some())
            }
            Happening::Asked(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.why());
                return Ok(false);
            }
            Happening::Followed(node) => match self.parts.peers.class(&node) {
                Some(class) => Event::Met(node, class, None),
                None => return Ok(false),
            },
        };
        let told_by = match &event {
            Event::Updated(node, _) => Some(*node),
            _ => None,
        };
        let effects = self.apply(event);
        self.view.sources.store(self.planner.sources(), Ordering::Relaxed);
        let revision = self.planner.ledger().revision();
        let is_other = std::mem::replace(&mut self.revision, revision) != revision;
        if is_other {
            self.view.relinked(self.planner.ledger().linked(), self.planner.first_hand());
        }
        self.tell_waits();
        // What others have in common counts for one reading: another makes it void.
        if told_by.is_some() || is_other {
            self.view.have_in_common(self.planner.common());
        }
        if let Some(node) = told_by {
            self.view.has_theirs(node, self.planner.here_at(&node));
        }
        self.view.stands(Stance {
            role: self.planner.role(),
            stream: Arc::clone(self.planner.ledger().stream()),
            signed: self.planner.signed().cloned(),
            chain: self.planner.ledger().chain().cloned(),
            pace: self.planner.quickest(),
        });
        for effect in effects {
            match effect {
                Effect::Verified => return Ok(true),
                Effect::Failed(failure) => return Err(TransferError::no_source(&self.routes, failure)),
                effect => self.act(effect),
            }
        }
        Ok(false)
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        // One chunk is no burden.
        let is_burden = self.map().count() > 1;
        if is_burden && matches!(event, Event::Searched(Scope::Site) | Event::Tick) {
            self.planner.set_laden(self.sibling.is_laden() && self.parts.peers.are_astir());
        }
        // By now a node that has just begun knows its site.
        if matches!(event, Event::Searched(Scope::Site)) {
            self.planner.set_site(&self.parts.peers.site());
        }
        self.planner.may_ask(self.sibling.allowance());
        let effects = self.planner.apply(event);
        self.sibling.takes(self.planner.needs());
        let leads = matches!(self.planner.role(), Role::Leading { .. } | Role::Candidate { .. });
        self.sibling.leads(is_burden && leads);
        self.sibling.reads(is_burden && self.planner.reads_origin());
        effects
    }

    fn why(&self) -> Why {
        let now = Instant::now();
        let linked = self.planner.ledger().linked().bytes();
        Why::of(Facts {
            summary: self.planner.summary(),
            limited: self.view.waiting(),
            held_to: self.parts.limits.held_to(),
            origin: self.routes.current(),
            origin_rate: self.flow.rate(&Source::Origin, now),
            rate_of: &|node| self.flow.rate(&Source::Peer(*node), now),
            still: self.flow.still(now).as_secs_f64(),
            missing: self.map().size().saturating_sub(linked),
        })
    }

    /// Whoever has given its turn away and no longer waits for a limit has to have one again.
    fn take_turn(&mut self) {
        if std::mem::replace(&mut self.asks_for_turn, true) {
            return;
        }
        let (running, events) = (self.parts.running.clone(), self.events.clone());
        self.spawn(async move {
            if let Ok(turn) = running.acquire_owned().await {
                let _ = events.send(Happening::Turn(turn)).await;
            }
        });
    }

    /// Lets those who read see whether a limit is all that the transfer waits for; others may have its turn then.
    fn tell_waits(&mut self) {
        let limited = if self.planner.waits_for_limit() { self.parts.limits.limited() } else { None };
        if limited.is_some() && self.turn.take().is_some() {
            self.lacks_turn = true;
        } else if limited.is_none() && self.lacks_turn {
            // The limit has ended, or a peer within the site has the blob.
            self.take_turn();
        }
        self.view.waits_for(limited);
    }

    fn act(&mut self, effect: Effect) {
        let digest = self.digest();
        match effect {
            Effect::Follow(node) => self.follow(node),
            Effect::Unfollow(node) => self.leave(node),
            Effect::AskRoles(but) => self.ask_roles(&but),
            Effect::AskClaim(node) => self.ask_chain(node, true),
            Effect::AskChain(node) => self.ask_chain(node, false),
            Effect::AskClaimed(node, states) => self.ask_claimed(node, states),
            Effect::AskStates(node, attempt, before) => self.ask_states(node, attempt, before),
            Effect::Lead(before) => {
                self.is_new_leader = true;
                if let Some(Succession { leader, why }) = before {
                    info!(blob = %digest.short(), peer = %leader, %why, "this node takes over from a leader");
                }
            }
            Effect::MakeWay => {
                info!(blob = %digest.short(), "this node makes way for another leader: its link is much slower than theirs");
            }
            Effect::LedBy(leader) => {
                debug!(blob = %digest.short(), peer = %leader, "this node follows a leader")
            }
            Effect::Meet(node) => self.meet(node),
            Effect::AskLead(but) => self.ask_lead(but),
            Effect::Cancel(node, index) => {
                if let Some(request) = self.fetching.remove(&(node, index)) {
                    request.cancel();
                }
            }
            Effect::Fetch(node, index, starts) => self.fetch(node, index, starts),
            Effect::ReadOrigin(from, state, to) => self.read_origin(from, state, to),
            Effect::StopOrigin => {
                self.reading += 1;
                self.reading_stop.cancel();
                self.view.set_in_order(false);
            }
            Effect::Keep(source, index, link) => self.keep(source, index, link),
            Effect::Discard(source, index) => {
                if self.arriving.remove(&(source, index)).is_some() {
                    self.parts.metrics.rejected_chunks.inc();
                }
            }
            Effect::Drop(node, reason) => {
                self.leave(node);
                match reason {
                    DropReason::WrongChunk(index) => {
                        self.parts.metrics.failed(ErrorKind::Peer);
                        warn!(
                            blob = %digest, peer = %node, %reason,
                            "a peer sent wrong bytes: it is told, and not asked any more for this blob"
                        );
                        let (parts, map) = (self.parts.clone(), self.map());
                        // Of use to the peer whatever becomes of this transfer, which does not wait for it.
                        let tasks = parts.tasks.clone();
                        tasks.spawn(async move { parts.peers.unlinked(node, digest, map, index).await });
                    }
                    // Machines come and go, and the swarm tells of that.
                    DropReason::Failed(why) if self.parts.peers.class(&node).is_some() => {
                        self.parts.metrics.failed(ErrorKind::Peer);
                        if let Some(left_out) = self.parts.seldom.say(&node) {
                            warn!(blob = %digest, peer = %node, why, left_out, "a peer fails as a source of a blob");
                        }
                    }
                    DropReason::Failed(why) | DropReason::Left(why) => {
                        debug!(blob = %digest.short(), peer = %node, why, "a peer cannot be asked for this blob");
                    }
                }
            }
            Effect::Ban(node, proof) => {
                self.leave(node);
                self.parts.metrics.failed(ErrorKind::Peer);
                let why = format!("{proof} (blob {digest})");
                let (parts, map) = (self.parts.clone(), self.map());
                // The proof holds whatever becomes of this transfer, which does not wait for it.
                let tasks = parts.tasks.clone();
                tasks.spawn(async move {
                    if let Proof::WrongChunk(index) = proof {
                        parts.peers.unlinked(node, digest, map, index).await;
                    }
                    parts.peers.ban(node, &why).await;
                });
            }
            Effect::OriginWrong(found) => {
                self.parts.metrics.failed(ErrorKind::Origin);
                self.routes.read().for_each(|route| self.parts.origins.doubt(route, &digest));
                let origin = self.routes.sent_wrong_bytes();
                warn!(blob = %digest, %origin, %found, "origin sent other bytes than the digest's");
                self.view.voided();
            }
            Effect::AttemptFailed => self.routes.turn(),
            Effect::StreamVoid(attempt) => {
                info!(blob = %digest.short(), leader = %attempt.signer, "what the leader reads is void");
                // A mirror of the leader may be one of this node too.
                self.routes.all().iter().for_each(|route| self.parts.origins.doubt(route, &digest));
                self.view.voided();
            }
            Effect::OriginContradicts(index) => {
                let origin = self.routes.current();
                info!(blob = %digest.short(), %origin, chunk = %index, "the origin sends other bytes than the chain is of that is known");
            }
            Effect::Search(scope) => self.search(scope),
            Effect::Verified | Effect::Failed(_) => {}
        }
    }

    fn origin_failed(&mut self, failure: OriginFailure) -> Option<String> {
        let (digest, origin) = (self.digest(), self.routes.current());
        self.parts.metrics.failed(ErrorKind::Origin);
        if let Some(left_out) = self.parts.seldom.say(&origin) {
            warn!(blob = %digest, %origin, why = failure.message, left_out, "an origin cannot give a blob, or the rest of it");
        }
        self.routes.failed(failure)
    }

    fn read_origin(&mut self, from: ChunkIndex, state: State, to: ChunkIndex) {
        self.reading += 1;
        self.reading_stop.cancel();
        self.reading_stop = self.stop.child_token();
        self.view.set_in_order(!self.planner.ledger().has_chain());
        // The planner reads only while an origin is left.
        let Some(route) = self.routes.choose() else { return };
        let (blob, chunks) = (self.digest().short(), self.map().count());
        if std::mem::take(&mut self.is_new_leader) {
            info!(%blob, origin = %route, chunk = %from, of = chunks, "this node reads a blob from the origin for its site");
        } else {
            debug!(%blob, origin = %route, chunk = %from, of = chunks, "the origin is read further");
        }
        let reading = Reading {
            parts: self.parts.clone(),
            digest: self.digest(),
            map: self.map(),
            route,
            number: self.reading,
            events: self.events.clone(),
        };
        let stop = self.reading_stop.clone();
        self.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = reading::read(reading, from, state, to) => {} }
        });
    }

    fn keep(&mut self, source: Source, index: ChunkIndex, link: Link) {
        let Some(held) = self.arriving.remove(&(source, index)) else { return };
        let Some(line) = self.writing.join(Write { source, index, link, held }) else { return };
        let (partial, events) = (self.partial.clone(), self.events.clone());
        // Not cancelled with the rest: a write that has begun is waited for before the partial is closed.
        self.tasks.spawn_blocking(move || {
            while let Some(Write { source, index, link, held }) = line.next() {
                let result = partial.write(index, &held.bytes, link);
                drop(held);
                // If the driver has ended nobody wants to know.
                let _ = events.blocking_send(Happening::Written(source, index, link, result));
            }
        });
    }
}

/// A chunk that waits for the disk.
struct Write {
    source: Source,
    index: ChunkIndex,
    link: Link,
    held: Held,
}

/// The chunks of one transfer that wait for the disk. One thread at a time writes them: several would spin for the
/// lock that the file has in the kernel. Their number is bounded by the memory that they hold shares of.
#[derive(Clone, Default)]
struct Writing(Arc<Mutex<Line>>);

#[derive(Default)]
struct Line {
    waiting: VecDeque<Write>,
    is_served: bool,
}

impl Writing {
    fn lock(&self) -> MutexGuard<'_, Line> {
        // The line is whole between any two of its changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a chunk in line. If no thread serves the line, the caller has to start one, with what is returned.
    fn join(&self, write: Write) -> Option<Self> {
        let mut line = self.lock();
        line.waiting.push_back(write);
        let unserved = !std::mem::replace(&mut line.is_served, true);
        unserved.then(|| self.clone())
    }

    /// The next chunk; when there is none the thread that asks serves the line no longer.
    fn next(&self) -> Option<Write> {
        let mut line = self.lock();
        let next = line.waiting.pop_front();
        line.is_served = next.is_some();
        next
    }
}

/// Hashes a chunk from each of the states, off the network threads unless it is short.
pub(super) async fn hash(
    map: ChunkMap,
    index: ChunkIndex,
    starts: Vec<State>,
    bytes: Bytes,
) -> Result<(Vec<Link>, Bytes), String> {
    let work = move || {
        let links: Result<Vec<Link>, _> =
            starts.iter().map(|from| link(&map, index, *from, &bytes)).collect();
        links.map(|links| (links, bytes)).map_err(|wrong| wrong.to_string())
    };
    if map.len(index) as usize <= HASH_INLINE {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| "the node is shutting down".to_owned())?
}
