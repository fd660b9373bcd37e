//! The giving side.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadHalf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use wherry_proto::{
    BlobName, ChunkMap, HeldClaim, List, NetworkId, NodeId, PREFIX_LEN, Refusal, Request, Response, Role,
    SecretKey, Update, decode_payload, encode_frame,
};

use super::buffers::Buffers;
use super::writer::{Answer, Body, Outgoing, write};
use super::{IDLE_TIME, MAX_IN_FLIGHT, MAX_WAITING, SLOT_WAIT, SLOTS_PER_PEER, UPLOAD_SLOTS};
use crate::swarm::codec::{WireError, read_after_prefix};
use crate::swarm::holdings::{Holdings, ReadAt};

/// How many requests of one connection are kept in line; those beyond are answered `Busy` at once.
const MAX_LINE: usize = 2 * MAX_IN_FLIGHT;

/// How many small answers of one connection wait to be written; then no further request is read.
const MAX_ANSWERS: usize = 64;

/// How long a connection without requests is kept: the asking side ends it earlier.
const SERVER_IDLE: Duration = IDLE_TIME.saturating_add(Duration::from_secs(60));

/// How long a frame may take to come once it has begun.
const FRAME_TIME: Duration = Duration::from_secs(20);

/// How long an idle connection keeps its blobs open: what was deleted meanwhile takes no space for longer.
const OPEN_TIME: Duration = Duration::from_secs(5);

/// How many blobs a connection keeps open, so that a pipelined transfer does not open its blob for each chunk.
const MAX_OPEN: usize = 4;

/// What all connections share: the blobs, the slots and the buffers.
pub(in crate::swarm) struct Uploader {
    holdings: Arc<dyn Holdings>,
    key: SecretKey,
    network: NetworkId,
    buffers: Buffers,
    slots: Arc<Semaphore>,
    // The slots of each peer that has connections.
    peers: Mutex<HashMap<NodeId, Weak<Semaphore>>>,
    waiting: AtomicUsize,
    // Counts freed slots, for those who were told that there is none.
    freed: watch::Sender<u64>,
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
            slots: Arc::new(Semaphore::new(UPLOAD_SLOTS)),
            peers: Mutex::default(),
            waiting: AtomicUsize::new(0),
            freed: watch::Sender::new(0),
        })
    }

    /// The slots that a peer may have, which all its connections share.
    fn slots_of(&self, peer: NodeId) -> Arc<Semaphore> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = peers.get(&peer).and_then(Weak::upgrade) {
            return slots;
        }
        peers.retain(|_, slots| slots.strong_count() > 0);
        let slots = Arc::new(Semaphore::new(SLOTS_PER_PEER));
        peers.insert(peer, Arc::downgrade(&slots));
        slots
    }

    /// A slot for a peer that may have these; `None` if there is none soon.
    async fn slot(self: &Arc<Self>, own: &Arc<Semaphore>) -> Option<Slot> {
        // Its own first, so that nobody waits in the common line on behalf of a peer that has its share.
        let own = timeout(SLOT_WAIT, Arc::clone(own).acquire_owned()).await.ok()?.ok()?;
        let slots = Arc::clone(&self.slots);
        let permit = match Arc::clone(&slots).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _place = Place::take(&self.waiting)?;
                timeout(SLOT_WAIT, slots.acquire_owned()).await.ok()?.ok()?
            }
        };
        Some(Slot { permits: Some((own, permit)), uploader: Arc::clone(self) })
    }
}

/// The right to have one chunk on its way to a peer.
pub(super) struct Slot {
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    uploader: Arc<Uploader>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Free before it is told.
        drop(self.permits.take());
        self.uploader.freed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A place in the short line for slots.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Option<Self> {
        let take = |count: usize| (count < MAX_WAITING).then_some(count + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| Self(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Gives what `peer` asks for, until the connection ends. Says why it did.
pub(in crate::swarm) async fn serve<S: AsyncRead + AsyncWrite>(
    uploader: Arc<Uploader>,
    peer: NodeId,
    stream: S,
) -> String {
    let (reader, writer) = tokio::io::split(stream);
    let line = Line::default();
    let own = uploader.slots_of(peer);
    // One response is written while the next is found.
    let (ready, responses) = mpsc::channel(1);
    let (answers, small) = mpsc::channel(MAX_ANSWERS);
    let why = tokio::select! {
        why = line.fill(reader, &answers) => why,
        why = line.drain(&uploader, &own, &ready, &answers) => why,
        why = write(&uploader.buffers, writer, responses, small) => why,
        why = line.tell_free(&uploader, &own, &answers) => why,
    };
    tracing::debug!(peer = peer.short(), %why, "upload connection ended");
    why.to_string()
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
    Chain,
    Chunk(u32),
}

/// The requests of one connection that wait.
#[derive(Default)]
struct Line {
    requests: Mutex<VecDeque<Wanted>>,
    filled: Notify,
    told_busy: AtomicBool,
    became_busy: Notify,
}

impl Line {
    fn requests(&self) -> MutexGuard<'_, VecDeque<Wanted>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn busy(&self, id: u32, answers: &mpsc::Sender<Response>) {
        self.told_busy.store(true, Ordering::Relaxed);
        self.became_busy.notify_one();
        let _ = answers.send(Response::Busy { id }).await;
    }

    /// Reads requests into the line.
    async fn fill<S: AsyncRead>(
        &self,
        mut reader: ReadHalf<S>,
        answers: &mpsc::Sender<Response>,
    ) -> WireError {
        loop {
            let request = match read_request(&mut reader).await {
                Ok(request) => request,
                Err(why) => return why,
            };
            let wanted = match request {
                Request::Cancel { id } => {
                    self.requests().retain(|wanted| wanted.id != id);
                    continue;
                }
                Request::Follow { id, .. } => {
                    let update = Update { role: Role::Gone, here: List::first_of([]) };
                    let _ = answers.send(Response::Update { id, update }).await;
                    continue;
                }
                Request::States { id, .. } => {
                    let _ = answers.send(Response::NotHere { id }).await;
                    continue;
                }
                Request::Chain { id, blob, .. } => Wanted { id, blob, part: Part::Chain },
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
                self.busy(wanted.id, answers).await;
            } else {
                self.filled.notify_one();
            }
        }
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
    async fn drain(
        &self,
        uploader: &Arc<Uploader>,
        own: &Arc<Semaphore>,
        ready: &mpsc::Sender<Outgoing>,
        answers: &mpsc::Sender<Response>,
    ) -> WireError {
        let mut open = Arc::<Mutex<Open>>::default();
        loop {
            let Ok(place) = ready.reserve().await else { break };
            let wanted = match timeout(OPEN_TIME, self.next()).await {
                Ok(wanted) => wanted,
                Err(_) => {
                    open = Arc::default();
                    self.next().await
                }
            };
            let id = wanted.id;
            let Some(slot) = uploader.slot(own).await else {
                self.busy(id, answers).await;
                continue;
            };
            let find = {
                let (uploader, open) = (Arc::clone(uploader), Arc::clone(&open));
                move || {
                    let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                    match wanted.part {
                        Part::Chunk(index) => find_chunk(&uploader, &mut open, id, wanted.blob, index),
                        Part::Chain => make_chain(&uploader, id, wanted.blob),
                    }
                }
            };
            let is_open = matches!(wanted.part, Part::Chunk(_))
                && open.lock().unwrap_or_else(PoisonError::into_inner).has(wanted.blob);
            // What is open already takes no disk to be found.
            let found = if is_open { Ok(find()) } else { tokio::task::spawn_blocking(find).await };
            match found {
                Ok(Ok(answer)) => place.send(Outgoing { answer, _slot: slot }),
                Ok(Err(unanswered)) => {
                    let _ = answers.send(unanswered.response(id)).await;
                }
                // The holdings panicked; what they had open is not trusted any more.
                Err(_) => {
                    open = Arc::default();
                    let unanswered = Unanswered::Refused(Refusal::Unreadable);
                    let _ = answers.send(unanswered.response(id)).await;
                }
            }
        }
        WireError::Io(std::io::ErrorKind::BrokenPipe.into())
    }

    /// Tells a peer that was sent away when a slot is free again.
    async fn tell_free(
        &self,
        uploader: &Uploader,
        own: &Semaphore,
        answers: &mpsc::Sender<Response>,
    ) -> WireError {
        loop {
            self.became_busy.notified().await;
            let mut freed = uploader.freed.subscribe();
            // Free already: the slot went between the refusal and here.
            let mut free = uploader.slots.available_permits() > 0 && own.available_permits() > 0;
            while !free {
                if freed.changed().await.is_err() {
                    return WireError::Io(std::io::ErrorKind::BrokenPipe.into());
                }
                // Whosever it was, if only this peer may have it.
                free = own.available_permits() > 0;
            }
            if self.told_busy.swap(false, Ordering::Relaxed) && answers.send(Response::Free).await.is_err() {
                break;
            }
        }
        WireError::Io(std::io::ErrorKind::BrokenPipe.into())
    }
}

async fn read_request<S: AsyncRead>(reader: &mut ReadHalf<S>) -> Result<Request, WireError> {
    let mut prefix = [0; PREFIX_LEN];
    timeout(SERVER_IDLE, reader.read_exact(&mut prefix))
        .await
        .map_err(|_| WireError::Silent(SERVER_IDLE))??;
    let payload = timeout(FRAME_TIME, read_after_prefix::<Request>(reader, prefix))
        .await
        .map_err(|_| WireError::Silent(FRAME_TIME))??;
    Ok(decode_payload(&payload)?)
}

/// Why a request has no large response.
enum Unanswered {
    NotHeld,
    Refused(Refusal),
}

impl Unanswered {
    fn response(self, id: u32) -> Response {
        match self {
            Self::NotHeld => Response::NotHeld { id },
            Self::Refused(reason) => Response::Refused { id, reason },
        }
    }
}

/// Finds one chunk.
fn find_chunk(
    uploader: &Uploader,
    open: &mut Open,
    id: u32,
    blob: BlobName,
    index: u32,
) -> Result<Answer, Unanswered> {
    let map = ChunkMap::new(blob.size).map_err(|_| Unanswered::NotHeld)?;
    let file = open.get(uploader, blob)?;
    let index = map.index(index).ok_or(Unanswered::Refused(Refusal::NoSuchChunk))?;
    let len = map.len(index);
    let frame = frame(&Response::Chunk { id, len })?;
    Ok(Answer { frame, body: Body::Piece { blob: blob.digest, file, offset: map.offset(index), len } })
}

/// Writes the claim and the states of a blob.
fn make_chain(uploader: &Uploader, id: u32, blob: BlobName) -> Result<Answer, Unanswered> {
    check_held(uploader, blob)?;
    let chain = uploader.holdings.chain(&blob.digest).ok_or(Unanswered::NotHeld)?;
    let states = chain.to_bytes();
    let claim = HeldClaim::sign(&uploader.key, &uploader.network, &chain);
    // At most MAX_CHAIN_LEN, since the chain's map is within its bounds.
    let len = states.len() as u32;
    Ok(Answer { frame: frame(&Response::Chain { id, claim, len })?, body: Body::States(states) })
}

fn frame(response: &Response) -> Result<Vec<u8>, Unanswered> {
    encode_frame(response).map_err(|_| Unanswered::Refused(Refusal::Unreadable))
}

/// Whether the blob is held, with the length that was asked for.
fn check_held(uploader: &Uploader, blob: BlobName) -> Result<(), Unanswered> {
    match uploader.holdings.held(&blob.digest) {
        None => Err(Unanswered::NotHeld),
        Some(held) if held != blob.size => Err(Unanswered::Refused(Refusal::OtherSize { held })),
        Some(_) => Ok(()),
    }
}

fn unreadable(blob: BlobName, error: &std::io::Error) -> Unanswered {
    tracing::warn!(digest = %blob.digest, %error, "a blob that is held cannot be opened");
    Unanswered::Refused(Refusal::Unreadable)
}

/// The blobs that a connection has open, the last used one at the end.
#[derive(Default)]
struct Open(Vec<(BlobName, Arc<dyn ReadAt>)>);

impl Open {
    fn has(&self, blob: BlobName) -> bool {
        self.0.iter().any(|(name, _)| *name == blob)
    }

    fn get(&mut self, uploader: &Uploader, blob: BlobName) -> Result<Arc<dyn ReadAt>, Unanswered> {
        let entry = match self.0.iter().position(|(name, _)| *name == blob) {
            Some(at) => self.0.remove(at),
            None => {
                check_held(uploader, blob)?;
                let opened = uploader.holdings.open(&blob.digest).map_err(|e| unreadable(blob, &e))?;
                if self.0.len() >= MAX_OPEN {
                    self.0.remove(0);
                }
                (blob, opened.ok_or(Unanswered::NotHeld)?)
            }
        };
        let file = Arc::clone(&entry.1);
        self.0.push(entry);
        Ok(file)
    }
}
