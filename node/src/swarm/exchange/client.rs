//! The taking side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use wherry_proto::{
    Attempt, BlobName, Certificate, ChunkIndex, ChunkMap, ClaimError, Digest, HeldClaim, NetworkId, NodeId,
    Request, SignedStates, StateChain, StatePrefix, StreamClaim, encode_frame,
};

use super::buffers::Buffers;
use super::downlink::Downlink;
use super::follow::{Follow, Inbox};
use super::inflow::Inflow;
use super::taker::Taker;
use super::{ExchangeError, MAX_FOLLOWED, MAX_IN_FLIGHT, Patience, chain_len};

/// How many written requests wait for the connection: each in flight, and each blob that is followed, may have been
/// cancelled too.
const OUTGOING: usize = 2 * (MAX_IN_FLIGHT + MAX_FOLLOWED);

/// A connection to one peer, by which chains and chunks are taken. Clones share it.
#[derive(Clone)]
pub struct Exchange(Arc<Shared>);

pub(super) struct Shared {
    pub(super) node: NodeId,
    network: NetworkId,
    direct: bool,
    pub(super) patience: Patience,
    // What all exchanges of this node receive.
    pub(super) downlink: Downlink,
    outgoing: mpsc::Sender<Outgoing>,
    pending: Mutex<Pending>,
    // That what is owed or followed has changed.
    pub(super) asked: Notify,
    in_flight: Semaphore,
    // Whether the peer has said that it is busy, and not yet that a slot is free.
    pub(super) busy: watch::Sender<bool>,
    closed: CancellationToken,
    why: OnceLock<ExchangeError>,
}

/// A written request, and who is to be told that the connection has taken it.
struct Outgoing {
    frame: Vec<u8>,
    sent: Option<oneshot::Sender<()>>,
}

impl Outgoing {
    const fn new(frame: Vec<u8>) -> Self {
        Self { frame, sent: None }
    }
}

pub(super) struct Pending {
    next_id: u32,
    pub(super) waiting: HashMap<u32, Waiting>,
    pub(super) followed: HashMap<u32, Arc<Inbox>>,
    // When the last response ended or, if that is later, the first request since then was made or the last blob was
    // followed no more.
    pub(super) quiet_since: Instant,
    // Responses that may still come although nobody waits for them.
    pub(super) cancelled: u64,
    // Whether a blob was ever followed no more: updates on it may still come.
    unfollowed: bool,
}

impl Pending {
    fn take_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }

    /// When the connection ends unless something comes before, and whether a response is owed until then. Who follows
    /// is owed nothing and not idle.
    pub(super) fn deadline(&self, patience: &Patience) -> Option<(Instant, bool)> {
        if !self.waiting.is_empty() {
            return Some((self.quiet_since + patience.silence, true));
        }
        self.followed.is_empty().then(|| (self.quiet_since + patience.idle, false))
    }
}

pub(super) struct Waiting {
    pub(super) part: Part,
    pub(super) answer: oneshot::Sender<Result<Taken, ExchangeError>>,
}

pub(super) enum Part {
    Chunk { len: u32, progress: Box<dyn FnMut(usize) + Send> },
    Chain { blob: BlobName, len: u32, known: Option<Digest>, spares: bool },
    Claimed { len: u32 },
    States { blob: BlobName, attempt: Attempt, from: u32 },
}

pub(super) enum Taken {
    Chunk(Bytes),
    Chain(Box<HeldClaim>, Vec<u8>),
    Claimed(Vec<u8>),
    States(Box<(StreamClaim, Certificate)>, Vec<u8>),
}

/// Starts an exchange on a stream whose peer is known and admitted. The future does its work; it ends when
/// the connection does, when `stop` is cancelled, or when nothing was asked for a while.
pub(in crate::swarm) fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    node: NodeId,
    network: NetworkId,
    direct: bool,
    (buffers, downlink, inflow): (Buffers, Downlink, Inflow),
    patience: Patience,
    stop: CancellationToken,
) -> (Exchange, impl Future<Output = ()> + Send) {
    let (outgoing, requests) = mpsc::channel(OUTGOING);
    let shared = Arc::new(Shared {
        node,
        network,
        direct,
        patience,
        downlink,
        outgoing,
        pending: Mutex::new(Pending {
            next_id: 0,
            waiting: HashMap::new(),
            followed: HashMap::new(),
            quiet_since: Instant::now(),
            cancelled: 0,
            unfollowed: false,
        }),
        asked: Notify::new(),
        in_flight: Semaphore::new(MAX_IN_FLIGHT),
        busy: watch::Sender::new(false),
        closed: stop,
        why: OnceLock::new(),
    });
    let (reader, writer) = tokio::io::split(stream);
    let taker = Taker { shared: Arc::clone(&shared), reader, buffers, inflow };
    let work = {
        let shared = Arc::clone(&shared);
        async move {
            let why = tokio::select! {
                () = shared.closed.cancelled() => shared.gone("closed by this node"),
                why = taker.run() => why,
                why = send(&shared, requests, writer) => why,
            };
            tracing::debug!(peer = %node, %why, "exchange ended");
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
            _ => Err(self.0.protocol("something else came for a chunk")),
        }
    }

    /// Takes the peer's claim that it holds a blob of `size` bytes, with the chain that it claims; the states do not
    /// travel if they are those of `known`.
    ///
    /// The signature is the peer's and covers the states; whether the chain is right only its chunks can tell.
    pub async fn held(
        &self,
        digest: Digest,
        size: u64,
        known: Option<&StateChain>,
    ) -> Result<(HeldClaim, StateChain), ExchangeError> {
        let known_states = known.map(StateChain::to_bytes);
        let known = known_states.as_deref().map(Digest::sha256);
        let (claim, states) = self.ask_chain(digest, size, known, false).await?;
        // None came: they are those that are known, or there are none.
        let states = match known_states {
            Some(known) if states.is_empty() => known,
            _ => states,
        };
        let chain = claim.open(&self.0.network, &states).map_err(|reason| self.0.false_claim(reason))?;
        Ok((*claim, chain))
    }

    /// Takes the same claim without its chain if the peer has given that to several others: see
    /// [`claimed`](Self::claimed).
    pub async fn claim(
        &self,
        digest: Digest,
        size: u64,
    ) -> Result<(HeldClaim, Option<StateChain>), ExchangeError> {
        let (claim, states) = self.ask_chain(digest, size, None, true).await?;
        let is_spared = states.is_empty() && ChunkMap::new(size)?.count() > 1;
        let checked = match is_spared {
            true => claim.verify(&self.0.network).map(|()| None),
            false => claim.open(&self.0.network, &states).map(Some),
        };
        let chain = checked.map_err(|reason| self.0.false_claim(reason))?;
        Ok((*claim, chain))
    }

    async fn ask_chain(
        &self,
        digest: Digest,
        size: u64,
        known: Option<Digest>,
        spares: bool,
    ) -> Result<(Box<HeldClaim>, Vec<u8>), ExchangeError> {
        let blob = BlobName { digest, size };
        let len = chain_len(digest, ChunkMap::new(size)?);
        let request = |id| Request::Chain { id, blob, known, spares };
        match self.0.ask(Part::Chain { blob, len, known, spares }, request).await? {
            Taken::Chain(claim, states) => Ok((claim, states)),
            _ => Err(self.0.protocol("something else came for a chain")),
        }
    }

    /// Takes the chain that some holder has claimed from a peer that goes by it. `states` is what the claim says of them:
    /// whatever has another digest is [`ClaimError::OtherStates`]. Fails with [`ExchangeError::NotHere`] if the peer does
    /// not go by that chain, and with [`ExchangeError::Elsewhere`] while it gives long ones to several others.
    pub async fn claimed(
        &self,
        digest: Digest,
        size: u64,
        states: Digest,
    ) -> Result<StateChain, ExchangeError> {
        let map = ChunkMap::new(size)?;
        let blob = BlobName { digest, size };
        let len = chain_len(digest, map);
        let request = |id| Request::ClaimedStates { id, blob, states };
        let Taken::Claimed(bytes) = self.0.ask(Part::Claimed { len }, request).await? else {
            return Err(self.0.protocol("something else came for claimed states"));
        };
        if Digest::sha256(&bytes) != states {
            return Err(self.0.false_claim(ClaimError::OtherStates));
        }
        StateChain::from_bytes(digest, map, &bytes).map_err(|reason| self.0.false_claim(reason.into()))
    }

    /// Takes what the leader of a reading has signed, as far as the peer knows it, with the states behind those of
    /// `before`. Fails with [`ExchangeError::NotHere`] if the peer knows nothing of the reading, or less than this.
    ///
    /// The signature is the leader's and covers all states; that the leader belongs is not checked here, nor whether the
    /// states are right. After [`ClaimError::OtherStates`] all states, from the
    /// first on, tell whether the peer lied or the leader has contradicted itself.
    pub async fn states(
        &self,
        digest: Digest,
        map: ChunkMap,
        attempt: Attempt,
        before: &StatePrefix,
    ) -> Result<SignedStates, ExchangeError> {
        let blob = BlobName { digest, size: map.size() };
        let from = before.known();
        let request = |id| Request::States { id, blob, attempt, from };
        let Taken::States(signed, raw) = self.0.ask(Part::States { blob, attempt, from }, request).await?
        else {
            return Err(self.0.protocol("something else came for states"));
        };
        let (claim, certificate) = *signed;
        let opened = claim.open(&self.0.network, before, &raw);
        let prefix = opened.map_err(|reason| self.0.false_claim(reason))?;
        Ok(SignedStates { claim, certificate, prefix })
    }

    /// Follows a blob: the peer tells what it has to do with it, and which chunks are newly there. At most
    /// [`MAX_FOLLOWED`] at a time; a further one ends at once, as all do with the connection. The exchange does not end
    /// for being idle meanwhile.
    pub fn follow(&self, digest: Digest, map: ChunkMap) -> Follow {
        let (inbox, blob) = (Inbox::new(map), BlobName { digest, size: map.size() });
        let (id, begins) = {
            let mut pending = self.0.pending();
            let begins = pending.followed.len() < MAX_FOLLOWED && !self.is_closed();
            let id = pending.take_id();
            if begins {
                pending.followed.insert(id, Arc::clone(&inbox));
            }
            (id, begins)
        };
        self.0.asked.notify_one();
        // There is room for a request for each blob, and for what ends it; a peer that takes none is as good as gone.
        let frame = encode_frame(&Request::Follow { id, blob });
        if !begins || !frame.is_ok_and(|frame| self.0.outgoing.try_send(Outgoing::new(frame)).is_ok()) {
            inbox.end();
        }
        Follow::new(Arc::clone(&self.0), id, inbox)
    }

    /// Tells the peer that a chunk which it gave does not link. Returns when the connection has taken the words or has
    /// ended: whoever closes it afterwards has told.
    pub async fn unlinked(&self, digest: Digest, map: ChunkMap, index: ChunkIndex) {
        let blob = BlobName { digest, size: map.size() };
        let Ok(frame) = encode_frame(&Request::Unlinked { blob, index: index.get() }) else { return };
        let (sent, is_sent) = oneshot::channel();
        if self.0.outgoing.send(Outgoing { frame, sent: Some(sent) }).await.is_ok() {
            let _ = is_sent.await;
        }
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
        write!(f, "exchange with {}", self.0.node)
    }
}

impl Shared {
    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn gone(&self, reason: &str) -> ExchangeError {
        ExchangeError::Closed { node: self.node, reason: reason.into() }
    }

    pub(super) fn protocol(&self, reason: &str) -> ExchangeError {
        ExchangeError::Protocol { node: self.node, reason: reason.into() }
    }

    fn false_claim(&self, reason: ClaimError) -> ExchangeError {
        ExchangeError::Claim { node: self.node, reason }
    }

    fn why(&self) -> ExchangeError {
        self.why.get().cloned().unwrap_or_else(|| self.gone("closed by this node"))
    }

    fn close(&self, why: ExchangeError) {
        let _ = self.why.set(why);
        self.closed.cancel();
        self.in_flight.close();
        let (waiting, followed) = {
            let mut pending = self.pending();
            (std::mem::take(&mut pending.waiting), std::mem::take(&mut pending.followed))
        };
        for (_, request) in waiting {
            let _ = request.answer.send(Err(self.why()));
        }
        followed.values().for_each(|inbox| inbox.end());
    }

    /// Nobody follows under this number any more.
    pub(super) fn unfollow(&self, id: u32) {
        let mut pending = self.pending();
        if pending.followed.remove(&id).is_none() {
            return;
        }
        pending.unfollowed = true;
        if pending.followed.is_empty() && pending.waiting.is_empty() {
            pending.quiet_since = Instant::now();
        }
        drop(pending);
        self.asked.notify_one();
        self.cancel(id);
    }

    /// An update came under this number, under which nobody follows.
    pub(super) fn told_in_vain(&self, id: u32) -> Result<(), ExchangeError> {
        if !self.pending().unfollowed {
            return Err(self.protocol("an update came on what nobody follows"));
        }
        // That it is followed no more may not have got through.
        self.cancel(id);
        Ok(())
    }

    /// Whether what was refused under this number is, or may have been, to follow a blob.
    pub(super) fn refused_to_tell(&self, id: u32) -> bool {
        let mut pending = self.pending();
        match pending.followed.remove(&id) {
            Some(inbox) => {
                inbox.end();
                true
            }
            None => pending.unfollowed && !pending.waiting.contains_key(&id) && pending.cancelled == 0,
        }
    }

    /// Takes a request back, as far as that gets through: if the line is full what comes is thrown away.
    fn cancel(&self, id: u32) {
        if let Ok(frame) = encode_frame(&Request::Cancel { id }) {
            let _ = self.outgoing.try_send(Outgoing::new(frame));
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
            let id = pending.take_id();
            if pending.waiting.is_empty() {
                pending.quiet_since = Instant::now();
            }
            pending.waiting.insert(id, Waiting { part, answer });
            id
        };
        let _forget = Forget { shared: self, id };
        self.asked.notify_one();
        let frame = encode_frame(&request(id)).map_err(|error| self.protocol(&error.to_string()))?;
        self.outgoing.send(Outgoing::new(frame)).await.map_err(|_| self.why())?;
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
            self.shared.cancel(self.id);
        }
    }
}

async fn send<S: AsyncRead + AsyncWrite>(
    shared: &Shared,
    mut requests: mpsc::Receiver<Outgoing>,
    mut writer: WriteHalf<S>,
) -> ExchangeError {
    while let Some(Outgoing { frame: mut frames, sent }) = requests.recv().await {
        let mut told: Vec<_> = sent.into_iter().collect();
        while let Ok(Outgoing { mut frame, sent }) = requests.try_recv() {
            frames.append(&mut frame);
            told.extend(sent);
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
        for sent in told {
            // Whoever does not wait for it any more need not know.
            let _ = sent.send(());
        }
    }
    shared.gone("nobody asks any more")
}
