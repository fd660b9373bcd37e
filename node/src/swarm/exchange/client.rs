//! The taking side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{BufMut as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use wherry_proto::{
    BlobName, ChunkIndex, ChunkMap, Digest, HeldClaim, MAX_CHAIN_LEN, MAX_CHUNK_LEN, NetworkId, NodeId,
    PREFIX_LEN, Request, Response, StateChain, decode_payload, encode_frame,
};

use super::buffers::{Buffer, Buffers};
use super::{ExchangeError, MAX_IN_FLIGHT, Patience};
use crate::swarm::codec::{WireError, read_after_prefix};

/// How many written requests wait for the connection: each in flight may have been cancelled too.
const OUTGOING: usize = 2 * MAX_IN_FLIGHT;

/// A connection to one peer, by which chains and chunks are taken. Clones share it.
#[derive(Clone)]
pub struct Exchange(Arc<Shared>);

struct Shared {
    node: NodeId,
    network: NetworkId,
    direct: bool,
    patience: Patience,
    outgoing: mpsc::Sender<Vec<u8>>,
    pending: Mutex<Pending>,
    asked: Notify,
    in_flight: Semaphore,
    // Whether the peer has said that it is busy, and not yet that a slot is free.
    busy: watch::Sender<bool>,
    closed: CancellationToken,
    why: OnceLock<ExchangeError>,
}

struct Pending {
    next_id: u32,
    waiting: HashMap<u32, Waiting>,
    // When the last response ended or, if that is later, the first request since then was made.
    quiet_since: Instant,
    // Responses that may still come although nobody waits for them.
    cancelled: u64,
}

impl Pending {
    fn owed_since(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.quiet_since)
    }
}

struct Waiting {
    part: Part,
    answer: oneshot::Sender<Result<Taken, ExchangeError>>,
}

enum Part {
    Chunk { len: u32, progress: Box<dyn FnMut(usize) + Send> },
    Chain { blob: BlobName, len: u32 },
}

enum Taken {
    Chunk(Bytes),
    Chain(Box<HeldClaim>, Vec<u8>),
}

/// Starts an exchange on a stream whose peer is known and admitted. The future does its work; it ends when
/// the connection does, when `stop` is cancelled, or when nothing was asked for a while.
pub(in crate::swarm) fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    node: NodeId,
    network: NetworkId,
    direct: bool,
    buffers: Buffers,
    patience: Patience,
    stop: CancellationToken,
) -> (Exchange, impl Future<Output = ()> + Send) {
    let (outgoing, requests) = mpsc::channel(OUTGOING);
    let shared = Arc::new(Shared {
        node,
        network,
        direct,
        patience,
        outgoing,
        pending: Mutex::new(Pending {
            next_id: 0,
            waiting: HashMap::new(),
            quiet_since: Instant::now(),
            cancelled: 0,
        }),
        asked: Notify::new(),
        in_flight: Semaphore::new(MAX_IN_FLIGHT),
        busy: watch::Sender::new(false),
        closed: stop,
        why: OnceLock::new(),
    });
    let (reader, writer) = tokio::io::split(stream);
    let taker = Taker { shared: Arc::clone(&shared), reader, buffers };
    let work = {
        let shared = Arc::clone(&shared);
        async move {
            let why = tokio::select! {
                () = shared.closed.cancelled() => shared.gone("closed by this node"),
                why = taker.run() => why,
                why = send(&shared, requests, writer) => why,
            };
            tracing::debug!(peer = node.short(), %why, "exchange ended");
            shared.close(why);
        }
    };
    (Exchange(shared), work)
}

impl Exchange {
    /// The peer.
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// Whether this is a connection of the bulk plane, and not a libp2p stream in its stead.
    pub fn is_direct(&self) -> bool {
        self.0.direct
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.0.closed.is_cancelled()
    }

    /// Returns when the connection has ended.
    pub async fn closed(&self) {
        self.0.closed.cancelled().await;
    }

    /// Takes one chunk. Its length is right; whether its bytes link is for the caller to check.
    ///
    /// `progress` is told how many further bytes have come, each time. Dropping the future cancels the request.
    pub async fn chunk(
        &self,
        digest: Digest,
        map: ChunkMap,
        index: ChunkIndex,
        progress: impl FnMut(usize) + Send + 'static,
    ) -> Result<Bytes, ExchangeError> {
        let blob = BlobName { digest, size: map.size() };
        let part = Part::Chunk { len: map.len(index), progress: Box::new(progress) };
        let request = |id| Request::Chunk { id, blob, index: index.get() };
        match self.0.ask(part, request).await? {
            Taken::Chunk(bytes) => Ok(bytes),
            Taken::Chain(..) => Err(self.0.protocol("a chain came for a chunk")),
        }
    }

    /// Takes the peer's claim that it holds a blob of `size` bytes, with the chain that it claims.
    ///
    /// The signature is the peer's and covers the states; whether the chain is right only its chunks can tell.
    pub async fn held(&self, digest: Digest, size: u64) -> Result<(HeldClaim, StateChain), ExchangeError> {
        let map = ChunkMap::new(size)?;
        let blob = BlobName { digest, size };
        // At most MAX_CHAIN_LEN, since the map is within its bounds.
        let len = (map.count() - 1) * digest.algorithm().output_len() as u32;
        let request = |id| Request::Chain { id, blob, known: None };
        let Taken::Chain(claim, states) = self.0.ask(Part::Chain { blob, len }, request).await? else {
            return Err(self.0.protocol("a chunk came for a chain"));
        };
        let chain = claim
            .open(&self.0.network, &states)
            .map_err(|reason| ExchangeError::Claim { node: self.0.node, reason })?;
        Ok((*claim, chain))
    }

    /// Returns once the peer has a free slot, as far as it has said: at once if it was not busy when it answered
    /// last, else when it tells, or when the connection has ended.
    pub async fn free(&self) {
        let mut busy = self.0.busy.subscribe();
        tokio::select! {
            _ = busy.wait_for(|busy| !busy) => {}
            () = self.0.closed.cancelled() => {}
        }
    }

    /// Closes the connection; requests under way fail.
    pub fn close(&self) {
        self.0.closed.cancel();
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exchange with {}", self.0.node.short())
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self, reason: &str) -> ExchangeError {
        ExchangeError::Closed { node: self.node, reason: reason.into() }
    }

    fn protocol(&self, reason: &str) -> ExchangeError {
        ExchangeError::Protocol { node: self.node, reason: reason.into() }
    }

    fn why(&self) -> ExchangeError {
        self.why.get().cloned().unwrap_or_else(|| self.gone("closed by this node"))
    }

    fn close(&self, why: ExchangeError) {
        let _ = self.why.set(why);
        self.closed.cancel();
        self.in_flight.close();
        let waiting = std::mem::take(&mut self.pending().waiting);
        for (_, request) in waiting {
            let _ = request.answer.send(Err(self.why()));
        }
    }

    async fn ask(&self, part: Part, request: impl FnOnce(u32) -> Request) -> Result<Taken, ExchangeError> {
        let _permit = self.in_flight.acquire().await.map_err(|_| self.why())?;
        let (answer, taken) = oneshot::channel();
        let id = {
            let mut pending = self.pending();
            // Under the lock, so that `close` either sees the request or is seen.
            if self.closed.is_cancelled() {
                drop(pending);
                return Err(self.why());
            }
            let id = pending.next_id;
            pending.next_id = id.wrapping_add(1);
            if pending.waiting.is_empty() {
                pending.quiet_since = Instant::now();
            }
            pending.waiting.insert(id, Waiting { part, answer });
            id
        };
        let _forget = Forget { shared: self, id };
        self.asked.notify_one();
        let frame = encode_frame(&request(id)).map_err(|error| self.protocol(&error.to_string()))?;
        self.outgoing.send(frame).await.map_err(|_| self.why())?;
        match timeout(self.patience.request, taken).await {
            Ok(Ok(taken)) => taken,
            Ok(Err(_)) => Err(self.why()),
            Err(_) => Err(ExchangeError::TimedOut(self.node)),
        }
    }
}

/// Takes a request back when its asker goes away before the response.
struct Forget<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut pending = self.shared.pending();
        if pending.waiting.remove(&self.id).is_some() {
            pending.cancelled += 1;
            drop(pending);
            // If the line is full the response comes and is thrown away.
            if let Ok(frame) = encode_frame(&Request::Cancel { id: self.id }) {
                let _ = self.shared.outgoing.try_send(frame);
            }
        }
    }
}

async fn send<S: AsyncRead + AsyncWrite>(
    shared: &Shared,
    mut requests: mpsc::Receiver<Vec<u8>>,
    mut writer: WriteHalf<S>,
) -> ExchangeError {
    while let Some(mut frames) = requests.recv().await {
        while let Ok(mut frame) = requests.try_recv() {
            frames.append(&mut frame);
        }
        let write = async {
            writer.write_all(&frames).await?;
            writer.flush().await
        };
        match timeout(shared.patience.silence, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return shared.gone(&error.to_string()),
            Err(_) => return ExchangeError::Silent(shared.node),
        }
    }
    shared.gone("nobody asks any more")
}

struct Taker<S> {
    shared: Arc<Shared>,
    reader: ReadHalf<S>,
    buffers: Buffers,
}

impl<S: AsyncRead + AsyncWrite> Taker<S> {
    async fn run(mut self) -> ExchangeError {
        loop {
            if let Err(why) = self.response().await {
                return why;
            }
            self.shared.pending().quiet_since = Instant::now();
        }
    }

    fn io(&self, error: &std::io::Error) -> ExchangeError {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.shared.gone("the peer closed it"),
            _ => self.shared.gone(&error.to_string()),
        }
    }

    /// Waits for the first bytes of a response: in peace while none is owed, with little patience otherwise.
    async fn prefix(&mut self) -> Result<[u8; PREFIX_LEN], ExchangeError> {
        let mut prefix = [0; PREFIX_LEN];
        let mut filled = 0;
        let silence = self.shared.patience.silence;
        let idle_at = Instant::now() + self.shared.patience.idle;
        while filled < PREFIX_LEN {
            let owed_since = self.shared.pending().owed_since();
            let until = owed_since.map_or(idle_at, |since| since + silence);
            tokio::select! {
                read = self.reader.read(&mut prefix[filled..]) => match read {
                    Ok(0) => return Err(self.shared.gone("the peer closed it")),
                    Ok(some) => filled += some,
                    Err(error) => return Err(self.io(&error)),
                },
                () = self.shared.asked.notified(), if owed_since.is_none() => {}
                () = sleep_until(until) => {
                    // Requests may have come and gone meanwhile: what counts is what is owed now.
                    match self.shared.pending().owed_since() {
                        Some(since) if since.elapsed() >= silence => {
                            return Err(ExchangeError::Silent(self.shared.node));
                        }
                        None if Instant::now() >= idle_at => return Err(self.shared.gone("it was idle")),
                        _ => {}
                    }
                }
            }
        }
        Ok(prefix)
    }

    async fn response(&mut self) -> Result<(), ExchangeError> {
        let prefix = self.prefix().await?;
        let read =
            timeout(self.shared.patience.silence, read_after_prefix::<Response>(&mut self.reader, prefix))
                .await;
        let payload = match read {
            Ok(Ok(payload)) => payload,
            Ok(Err(WireError::Io(error))) => return Err(self.io(&error)),
            Ok(Err(error)) => return Err(self.shared.protocol(&error.to_string())),
            Err(_) => return Err(ExchangeError::Silent(self.shared.node)),
        };
        let node = self.shared.node;
        let response = decode_payload(&payload).map_err(|error| self.shared.protocol(&error.to_string()))?;
        match response {
            Response::Chunk { id, len } => self.chunk(id, len).await,
            Response::Chain { id, claim, len } => self.chain(id, claim, len).await,
            Response::Busy { id } => {
                self.shared.busy.send_replace(true);
                self.refused(id, ExchangeError::Busy(node))
            }
            Response::NotHeld { id } => self.refused(id, ExchangeError::NotHeld(node)),
            Response::Refused { id, reason } => self.refused(id, ExchangeError::Refused { node, reason }),
            Response::Free => {
                self.shared.busy.send_replace(false);
                Ok(())
            }
            Response::Update { .. }
            | Response::States { .. }
            | Response::Elsewhere { .. }
            | Response::NotHere { .. } => Err(self.shared.protocol("a response came that nobody asked for")),
        }
    }

    /// Who waits for this response; `None` if the request was cancelled.
    fn claim(&self, id: u32) -> Result<Option<Waiting>, ExchangeError> {
        let mut pending = self.shared.pending();
        if let Some(waiting) = pending.waiting.remove(&id) {
            return Ok(Some(waiting));
        }
        if pending.cancelled == 0 {
            drop(pending);
            return Err(self.shared.protocol("a response came that nobody asked for"));
        }
        pending.cancelled -= 1;
        Ok(None)
    }

    fn refused(&self, id: u32, why: ExchangeError) -> Result<(), ExchangeError> {
        if let Some(waiting) = self.claim(id)? {
            let _ = waiting.answer.send(Err(why));
        }
        Ok(())
    }

    async fn chunk(&mut self, id: u32, len: u32) -> Result<(), ExchangeError> {
        let waiting = self.claim(id)?;
        let bound = match &waiting {
            Some(Waiting { part: Part::Chunk { len: expected, .. }, .. }) => len == *expected,
            Some(_) => false,
            None => len <= MAX_CHUNK_LEN,
        };
        if !bound {
            return Err(self.wrong(waiting, "a chunk of another length or for another request came"));
        }
        let Some(Waiting { part: Part::Chunk { mut progress, .. }, answer }) = waiting else {
            return self.body(len, &mut |_| {}).await.map(drop);
        };
        match self.body(len, &mut *progress).await {
            Ok(buffer) => {
                let _ = answer.send(Ok(Taken::Chunk(Bytes::from_owner(buffer))));
                Ok(())
            }
            Err(why) => {
                let _ = answer.send(Err(why.clone()));
                Err(why)
            }
        }
    }

    async fn chain(&mut self, id: u32, claim: HeldClaim, len: u32) -> Result<(), ExchangeError> {
        let waiting = self.claim(id)?;
        let fits = match &waiting {
            Some(Waiting { part: Part::Chain { blob, len: expected }, .. }) => {
                len == *expected
                    && claim.signer == self.shared.node
                    && (claim.digest, claim.size) == (blob.digest, blob.size)
            }
            Some(_) => false,
            None => len <= MAX_CHAIN_LEN,
        };
        if !fits {
            return Err(
                self.wrong(waiting, "a claim on another blob, by another node or of another length came")
            );
        }
        let body = self.body(len, &mut |_| {}).await;
        let Some(Waiting { answer, .. }) = waiting else { return body.map(drop) };
        match body {
            Ok(buffer) => {
                let _ = answer.send(Ok(Taken::Chain(Box::new(claim), buffer.as_ref().to_vec())));
                Ok(())
            }
            Err(why) => {
                let _ = answer.send(Err(why.clone()));
                Err(why)
            }
        }
    }

    fn wrong(&self, waiting: Option<Waiting>, reason: &str) -> ExchangeError {
        let why = self.shared.protocol(reason);
        if let Some(waiting) = waiting {
            let _ = waiting.answer.send(Err(why.clone()));
        }
        why
    }

    /// Reads raw bytes straight into a buffer of the pool.
    async fn body(
        &mut self,
        len: u32,
        progress: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Buffer, ExchangeError> {
        let len = len as usize;
        let mut buffer = self.buffers.take(len);
        buffer.bytes.clear();
        while buffer.bytes.len() < len {
            let rest = len - buffer.bytes.len();
            let mut room = (&mut buffer.bytes).limit(rest);
            match timeout(self.shared.patience.silence, self.reader.read_buf(&mut room)).await {
                Ok(Ok(0)) => return Err(self.shared.gone("the peer closed it in the middle of a chunk")),
                Ok(Ok(some)) => progress(some),
                Ok(Err(error)) => return Err(self.io(&error)),
                Err(_) => return Err(ExchangeError::Silent(self.shared.node)),
            }
        }
        Ok(buffer)
    }
}
