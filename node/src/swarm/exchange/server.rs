//! The giving side.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use wherry_proto::{
    BlobName, ChunkMap, HeldClaim, NetworkId, NodeId, PREFIX_LEN, Refusal, Request, Response, SecretKey,
    decode_payload, encode_frame,
};

use super::buffers::{Buffer, Buffers};
use super::{IDLE_TIME, MAX_IN_FLIGHT, MAX_WAITING, REQUEST_LIMIT, SLOT_WAIT, SLOTS_PER_PEER, UPLOAD_SLOTS};
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

/// The right to have one chunk in memory on its way to a peer.
struct Slot {
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

/// A response, with the raw bytes that belong to it in the same buffer.
struct Outgoing {
    bytes: Buffer,
    _slot: Slot,
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
    // One response is written while the next is read from the disk.
    let (ready, responses) = mpsc::channel(1);
    let (answers, small) = mpsc::channel(MAX_ANSWERS);
    let why = tokio::select! {
        why = line.fill(reader, &answers) => why,
        why = line.drain(&uploader, &own, &ready, &answers) => why,
        why = write(writer, responses, small) => why,
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
                Request::Chain { id, blob } => Wanted { id, blob, part: Part::Chain },
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
            let load = {
                let (uploader, open) = (Arc::clone(uploader), Arc::clone(&open));
                move || {
                    let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                    match wanted.part {
                        Part::Chunk(index) => load_chunk(&uploader, &mut open, id, wanted.blob, index),
                        Part::Chain => load_chain(&uploader, id, wanted.blob),
                    }
                }
            };
            match tokio::task::spawn_blocking(load).await {
                Ok(Ok(bytes)) => place.send(Outgoing { bytes, _slot: slot }),
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

async fn write<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    mut responses: mpsc::Receiver<Outgoing>,
    mut small: mpsc::Receiver<Response>,
) -> WireError {
    loop {
        let write = async |writer: &mut WriteHalf<S>, bytes: &[u8], last: bool| {
            writer.write_all(bytes).await?;
            if last { writer.flush().await } else { Ok(()) }
        };
        let sent = tokio::select! {
            biased;
            answer = small.recv() => match answer.map(|answer| encode_frame(&answer)) {
                Some(Ok(frame)) => {
                    let last = small.is_empty() && responses.is_empty();
                    timeout(REQUEST_LIMIT, write(&mut writer, &frame, last)).await
                }
                Some(Err(error)) => return error.into(),
                None => break,
            },
            response = responses.recv() => match response {
                Some(response) => {
                    let last = small.is_empty() && responses.is_empty();
                    timeout(REQUEST_LIMIT, write(&mut writer, response.bytes.as_ref(), last)).await
                }
                None => break,
            },
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return WireError::Silent(REQUEST_LIMIT),
        }
    }
    WireError::Io(std::io::ErrorKind::BrokenPipe.into())
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

/// Reads one chunk behind its frame.
fn load_chunk(
    uploader: &Uploader,
    open: &mut Open,
    id: u32,
    blob: BlobName,
    index: u32,
) -> Result<Buffer, Unanswered> {
    let map = ChunkMap::new(blob.size).map_err(|_| Unanswered::NotHeld)?;
    let file = open.get(uploader, blob)?;
    let index = map.index(index).ok_or(Unanswered::Refused(Refusal::NoSuchChunk))?;
    let len = map.len(index);
    let (mut buffer, start) = begin(uploader, &Response::Chunk { id, len }, len as usize)?;
    file.read_exact_at(&mut buffer.bytes[start..], map.offset(index)).map_err(|e| unreadable(blob, &e))?;
    Ok(buffer)
}

/// Writes the claim and the states of a blob.
fn load_chain(uploader: &Uploader, id: u32, blob: BlobName) -> Result<Buffer, Unanswered> {
    check_held(uploader, blob)?;
    let chain = uploader.holdings.chain(&blob.digest).ok_or(Unanswered::NotHeld)?;
    let states = chain.to_bytes();
    let claim = HeldClaim::sign(&uploader.key, &uploader.network, &chain);
    // At most MAX_CHAIN_LEN, since the chain's map is within its bounds.
    let len = states.len() as u32;
    let (mut buffer, start) = begin(uploader, &Response::Chain { id, claim, len }, states.len())?;
    buffer.bytes[start..].copy_from_slice(&states);
    Ok(buffer)
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
    tracing::warn!(digest = %blob.digest, %error, "a blob that is held cannot be read");
    Unanswered::Refused(Refusal::Unreadable)
}

/// The blobs that a connection has open, the last used one at the end.
#[derive(Default)]
struct Open(Vec<(BlobName, Arc<dyn ReadAt>)>);

impl Open {
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

/// A buffer that starts with the frame of this response and has `len` bytes behind it, to be overwritten from
/// the place that is returned.
fn begin(uploader: &Uploader, response: &Response, len: usize) -> Result<(Buffer, usize), Unanswered> {
    let frame = encode_frame(response).map_err(|_| Unanswered::Refused(Refusal::Unreadable))?;
    let mut buffer = uploader.buffers.take(frame.len() + len);
    // Only what the buffer never had is zeroed.
    buffer.bytes.resize(frame.len() + len, 0);
    buffer.bytes[..frame.len()].copy_from_slice(&frame);
    Ok((buffer, frame.len()))
}
