//! The giving side.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadHalf};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};
use wherry_proto::{
    Attempt, BlobName, ChunkMap, Digest, NetworkId, NodeId, PREFIX_LEN, Refusal, Request, Response,
    SecretKey, decode_payload,
};

use super::buffers::Buffers;
use super::chains::Chains;
use super::find::{Open, Source, Unanswered, claimed_states, held_chain, signed_states};
use super::pusher::Followed;
use super::slots::{Held, Slots};
use super::spread::Spread;
use super::writer::{Answer, Outgoing, write};
use super::{IDLE_TIME, MAX_IN_FLIGHT, SLOTS_PER_PEER, has_long_chain};
use crate::swarm::backlog::Backlog;
use crate::swarm::codec::{WireError, read_after_prefix};
use crate::swarm::holdings::Holdings;

/// How many requests of one connection are kept in line; those beyond are answered `Busy` at once.
const MAX_LINE: usize = 2 * MAX_IN_FLIGHT;

/// How many small answers of one connection wait to be written; then no further request is read.
const MAX_ANSWERS: usize = 64;

/// How many bytes of states are given without a slot, by every connection: followers need them while all slots are
/// taken, and they are a thousandth of the blob. Whoever asks for more has come late.
const FREE_STATES: usize = 64 << 10;

/// How many lists of states are made at a time: each may be several MiB.
const MAX_MAKING: usize = 4;

/// How long a connection that asks and follows nothing is kept: the asking side ends it earlier.
const SERVER_IDLE: Duration = IDLE_TIME.saturating_add(Duration::from_secs(60));

/// How long a frame may take to come once it has begun.
const FRAME_TIME: Duration = Duration::from_secs(20);

/// How long a request may wait for a link on which little may go, before its peer is told to ask again: less than
/// [`SILENCE`](super::SILENCE).
const PACE_TIME: Duration = Duration::from_secs(2);

/// How long an idle connection keeps its blobs open: what was deleted meanwhile takes no space for longer.
const OPEN_TIME: Duration = Duration::from_secs(5);

/// What all connections share: the blobs, the slots, what was given to whom, and the buffers.
pub(in crate::swarm) struct Uploader {
    pub(super) holdings: Arc<dyn Holdings>,
    key: SecretKey,
    network: NetworkId,
    buffers: Buffers,
    slots: Arc<Slots>,
    pub(super) chains: Chains,
    making: Semaphore,
    guests: Mutex<HashMap<NodeId, Weak<Guest>>>,
    spread: Mutex<Spread>,
}

impl Uploader {
    pub(in crate::swarm) fn new(
        holdings: Arc<dyn Holdings>,
        key: SecretKey,
        network: NetworkId,
        buffers: Buffers,
    ) -> Arc<Self> {
        Arc::new(Self {
            holdings,
            key,
            network,
            buffers,
            slots: Slots::new(),
            chains: Chains::default(),
            making: Semaphore::new(MAX_MAKING),
            guests: Mutex::default(),
            spread: Mutex::default(),
        })
    }

    pub(super) fn spread(&self) -> MutexGuard<'_, Spread> {
        self.spread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer, as all its connections share it.
    fn guest(self: &Arc<Self>, node: NodeId) -> Arc<Guest> {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guest) = guests.get(&node).and_then(Weak::upgrade) {
            return guest;
        }
        guests.retain(|_, guest| guest.strong_count() > 0);
        let own = Arc::new(Semaphore::new(SLOTS_PER_PEER));
        let guest = Arc::new(Guest { node, own, uploader: Arc::clone(self) });
        guests.insert(node, Arc::downgrade(&guest));
        guest
    }
}

/// A peer that has connections.
struct Guest {
    node: NodeId,
    // The slots that it may have.
    own: Arc<Semaphore>,
    uploader: Arc<Uploader>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.uploader.spread().gone(self.node);
    }
}

/// Gives what `peer` asks for, until the connection ends. Says why it did. Where what is written waits in a socket, a
/// slot is taken until that is sent.
pub(in crate::swarm) async fn serve<S: AsyncRead + AsyncWrite>(
    uploader: Arc<Uploader>,
    peer: NodeId,
    stream: S,
    backlog: Option<Backlog>,
) -> String {
    let (reader, writer) = tokio::io::split(stream);
    let (ready, responses) = mpsc::channel(1);
    let (answers, small) = mpsc::channel(MAX_ANSWERS);
    let (followed, begun) = Followed::new();
    let connection = Connection {
        guest: uploader.guest(peer),
        answers,
        followed,
        requests: Mutex::default(),
        filled: Notify::new(),
        told_busy: AtomicBool::new(false),
        became_busy: Notify::new(),
    };
    let why = tokio::select! {
        why = connection.fill(reader) => why,
        why = connection.drain(ready) => why,
        why = write(&uploader.buffers, writer, backlog, responses, small) => why,
        why = connection.tell_free() => why,
        () = connection.followed.push(&uploader, peer, begun, &connection.answers) => ended(),
    };
    tracing::debug!(peer = %peer, %why, "upload connection ended");
    why.to_string()
}

fn ended() -> WireError {
    WireError::Io(std::io::ErrorKind::BrokenPipe.into())
}

/// What is asked for, and under which number.
#[derive(Clone, Copy)]
struct Wanted {
    id: u32,
    blob: BlobName,
    part: Part,
}

#[derive(Clone, Copy)]
enum Part {
    Chain { known: Option<Digest>, spares: bool },
    Claimed { states: Digest },
    States { attempt: Attempt, from: u32 },
    Chunk(u32),
}

/// An answer, and the place among the chains that are given which it holds until it is sent.
struct Found {
    answer: Answer,
    chain: Option<Arc<()>>,
}

/// One connection, and its requests that wait.
struct Connection {
    guest: Arc<Guest>,
    answers: mpsc::Sender<Response>,
    followed: Followed,
    requests: Mutex<VecDeque<Wanted>>,
    filled: Notify,
    told_busy: AtomicBool,
    became_busy: Notify,
}

impl Connection {
    fn requests(&self) -> MutexGuard<'_, VecDeque<Wanted>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that there is no answer. It fails when the connection ends.
    async fn say(&self, id: u32, unanswered: Unanswered) {
        if matches!(unanswered, Unanswered::Busy) {
            self.told_busy.store(true, Ordering::Relaxed);
            self.became_busy.notify_one();
        }
        let _ = self.answers.send(unanswered.response(id)).await;
    }

    /// Reads requests into the line.
    async fn fill<S: AsyncRead>(&self, mut reader: ReadHalf<S>) -> WireError {
        loop {
            let request = match self.read_request(&mut reader).await {
                Ok(request) => request,
                Err(why) => return why,
            };
            let wanted = match request {
                Request::Cancel { id } => {
                    self.requests().retain(|wanted| wanted.id != id);
                    self.followed.end(id);
                    continue;
                }
                Request::Follow { id, blob } => {
                    if !self.followed.begin(id, blob).await {
                        self.say(id, Unanswered::Refused(Refusal::TooManyFollowed)).await;
                    }
                    continue;
                }
                Request::Unlinked { blob, index } => {
                    self.guest.uploader.holdings.doubted(self.guest.node, blob, index);
                    continue;
                }
                Request::Chain { id, blob, known, spares } => {
                    Wanted { id, blob, part: Part::Chain { known, spares } }
                }
                Request::States { id, blob, attempt, from } => {
                    Wanted { id, blob, part: Part::States { attempt, from } }
                }
                Request::ClaimedStates { id, blob, states } => {
                    Wanted { id, blob, part: Part::Claimed { states } }
                }
                Request::Chunk { id, blob, index } => Wanted { id, blob, part: Part::Chunk(index) },
            };
            let full = {
                let mut line = self.requests();
                let full = line.len() >= MAX_LINE;
                if !full {
                    line.push_back(wanted);
                }
                full
            };
            if full {
                self.say(wanted.id, Unanswered::Busy).await;
            } else {
                self.filled.notify_one();
            }
        }
    }

    async fn read_request<S: AsyncRead>(&self, reader: &mut ReadHalf<S>) -> Result<Request, WireError> {
        let mut prefix = [0; PREFIX_LEN];
        {
            let mut read = std::pin::pin!(reader.read_exact(&mut prefix));
            loop {
                match timeout(SERVER_IDLE, &mut read).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(error)) => return Err(error.into()),
                    // Whoever follows may have nothing to ask for.
                    Err(_) if !self.followed.is_empty() => {}
                    Err(_) => return Err(WireError::Silent(SERVER_IDLE)),
                }
            }
        }
        let payload = timeout(FRAME_TIME, read_after_prefix::<Request>(reader, prefix))
            .await
            .map_err(|_| WireError::Silent(FRAME_TIME))??;
        Ok(decode_payload(&payload)?)
    }

    async fn next(&self) -> Wanted {
        loop {
            if let Some(request) = self.requests().pop_front() {
                return request;
            }
            self.filled.notified().await;
        }
    }

    /// Answers the requests in line, one after the other.
    async fn drain(&self, ready: mpsc::Sender<Outgoing>) -> WireError {
        // A request gets its slot when the one before it is written: a slot stands for bytes on their way.
        let turns = Arc::new(Semaphore::new(1));
        let (mut open, mut held) = (Open::default(), Held::default());
        loop {
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return ended() };
            self.keep_or_free(&mut held).await;
            let wanted = match timeout(OPEN_TIME, self.next()).await {
                Ok(wanted) => wanted,
                Err(_) => {
                    open = Open::default();
                    self.next().await
                }
            };
            match self.find(wanted, &mut open, &mut held).await {
                Ok(Found { answer, chain }) => {
                    let waits = !held.is_free() || chain.is_some();
                    if ready.send(Outgoing { answer, waits, chain, _turn: turn }).await.is_err() {
                        return ended();
                    }
                }
                Err(unanswered) => self.say(wanted.id, unanswered).await,
            }
        }
    }

    /// What was sent is on its way: its slot goes to what stands in line next, or to others.
    async fn keep_or_free(&self, held: &mut Held) {
        if held.is_free() {
            return;
        }
        let goes_on = self.requests().iter().any(|wanted| matches!(wanted.part, Part::Chunk(_)));
        if !goes_on {
            held.free();
        } else if held.has_had_its_time(Instant::now()) && self.guest.uploader.slots.are_wanted() {
            // Those who found none go first, however much this peer has in line.
            held.free();
            self.give_way().await;
        }
    }

    /// Sends away what is in line for a slot.
    async fn give_way(&self) {
        let chunks = {
            let mut line = self.requests();
            let (chunks, rest): (VecDeque<_>, _) =
                line.drain(..).partition(|wanted| matches!(wanted.part, Part::Chunk(_)));
            *line = rest;
            chunks
        };
        for wanted in chunks {
            self.say(wanted.id, Unanswered::Busy).await;
        }
    }

    async fn find(
        &self,
        Wanted { id, blob, part }: Wanted,
        open: &mut Open,
        held: &mut Held,
    ) -> Result<Found, Unanswered> {
        let uploader = &self.guest.uploader;
        let (mut chain, mut gives_states, mut is_counted) = (None, true, false);
        let make = match part {
            Part::Chunk(number) => {
                let answer = self.find_chunk((id, blob, number), open, held).await?;
                return Ok(Found { answer, chain });
            }
            _ if !uploader.holdings.gives_to(&self.guest.node) => return Err(GIVES_NOTHING),
            Part::Chain { known, spares } => {
                let map = ChunkMap::new(blob.size).map_err(|_| Unanswered::NotHeld)?;
                if spares && has_long_chain(blob.digest, map) {
                    chain = uploader.chains.begin(Instant::now());
                    gives_states = chain.is_some();
                }
                let uploader = Arc::clone(uploader);
                let make = move || {
                    let Uploader { holdings, key, network, .. } = &*uploader;
                    held_chain(&**holdings, key, network, id, blob, known, gives_states)
                };
                Box::new(make) as Box<dyn FnOnce() -> Result<Answer, Unanswered> + Send>
            }
            Part::Claimed { states } => {
                let map = ChunkMap::new(blob.size).map_err(|_| Unanswered::NotHeld)?;
                is_counted = has_long_chain(blob.digest, map);
                let holdings = Arc::clone(&uploader.holdings);
                Box::new(move || claimed_states(&*holdings, id, blob, states))
            }
            Part::States { attempt, from } => {
                let holdings = Arc::clone(&uploader.holdings);
                Box::new(move || signed_states(&*holdings, id, blob, attempt, from))
            }
        };
        let answer = {
            let _making = uploader.making.acquire().await.map_err(|_| UNREADABLE)?;
            tokio::task::spawn_blocking(make).await.map_err(|_| UNREADABLE)??
        };
        if is_counted {
            // Whoever is sent away has them sooner of those few than all would from here.
            chain = Some(uploader.chains.begin(Instant::now()).ok_or(Unanswered::Elsewhere)?);
        }
        let len = answer.body.len();
        if len > FREE_STATES && held.is_free() {
            held.take(uploader.slots.take(&self.guest.own).ok_or(Unanswered::Busy)?);
        }
        held.sends(len);
        uploader.holdings.gave(&self.guest.node, u32::try_from(len).unwrap_or(u32::MAX));
        Ok(Found { answer, chain })
    }

    async fn find_chunk(
        &self,
        (id, blob, number): (u32, BlobName, u32),
        open: &mut Open,
        held: &mut Held,
    ) -> Result<Answer, Unanswered> {
        let Guest { node, own, uploader } = &*self.guest;
        let map = ChunkMap::new(blob.size).map_err(|_| Unanswered::NotHeld)?;
        let source = match open.get(blob) {
            // What is open already takes no disk to be found.
            Some(source) => source,
            None => {
                let holdings = Arc::clone(&uploader.holdings);
                let find = move || Source::find(&*holdings, blob);
                let source = tokio::task::spawn_blocking(find).await.map_err(|_| UNREADABLE)??;
                open.add(blob, source.clone());
                source
            }
        };
        let index = map.index(number).ok_or(Unanswered::Refused(Refusal::NoSuchChunk))?;
        if !source.has(index) {
            return Err(Unanswered::NotHere);
        }
        if !uploader.holdings.gives_to(node) {
            return Err(GIVES_NOTHING);
        }
        if !uploader.holdings.until_giving(node).is_zero() {
            // Others can use it meanwhile.
            held.free();
        }
        until_giving(&*uploader.holdings, node).await?;
        // Its own slot makes upload no scarcer.
        let plentiful = uploader.slots.are_plentiful(Instant::now(), !held.is_free());
        if held.is_free() {
            held.take(uploader.slots.take(own).ok_or(Unanswered::Busy)?);
        }
        let first_hand = source.first_hand();
        // What came from others of the site they have as well: only where a chunk comes from must it go out evenly.
        let is_others = first_hand.as_ref().is_some_and(|chunks| !chunks.contains(index));
        if !uploader.spread().give(blob, map, index, *node, plentiful || is_others, || first_hand) {
            return Err(Unanswered::Elsewhere);
        }
        let given = source.piece(id, blob.digest, map, index).await;
        match given {
            Ok(_) => {
                held.sends(map.len(index) as usize);
                uploader.holdings.gave(node, map.len(index));
            }
            Err(_) => uploader.spread().take_back(&blob, index, *node),
        }
        given
    }

    /// Tells a peer that was sent away when a slot is free again.
    async fn tell_free(&self) -> WireError {
        loop {
            self.became_busy.notified().await;
            // It was told of more than one request that there is no slot, and has been told since that there is one.
            if !self.told_busy.load(Ordering::Relaxed) {
                continue;
            }
            self.guest.uploader.slots.free_for(&self.guest.own).await;
            if self.told_busy.swap(false, Ordering::Relaxed)
                && self.answers.send(Response::Free).await.is_err()
            {
                return ended();
            }
        }
    }
}

/// Returns when bytes may go to a peer by the rate that is set for it, if that is soon. Where none is set it does not
/// wait at all: the shortest sleep takes a tick of the timer, in which a fast link carries a few chunks.
pub(super) async fn until_giving(holdings: &dyn Holdings, node: &NodeId) -> Result<(), Unanswered> {
    let wait = holdings.until_giving(node);
    if !wait.is_zero() {
        sleep(wait.min(PACE_TIME)).await;
    }
    if wait > PACE_TIME { Err(Unanswered::Busy) } else { Ok(()) }
}

const GIVES_NOTHING: Unanswered = Unanswered::Refused(Refusal::GivesNothing);

/// The holdings panicked.
const UNREADABLE: Unanswered = Unanswered::Refused(Refusal::Unreadable);
