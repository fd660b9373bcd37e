//! One blob from many sources.
//!
//! [`Transfers`] runs at most one transfer for a blob, however many want it; it goes on when they leave. A pure
//! [`planner`] decides what to ask of whom; `run` carries that out; readers get the bytes in order as their
//! chunks link.

mod error;
mod flow;
mod following;
mod origin;
mod peers;
pub mod planner;
mod reader;
mod reading;
mod rest;
mod routes;
mod run;
mod siblings;
mod sources;
mod view;
mod why;

use std::collections::HashMap;
use std::future::pending;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, info_span, warn};
use wherry_gateway::server::Break;
use wherry_proto::{ChunkMap, Digest, Role, StreamClaim};

pub use error::TransferError;
pub use following::Signer;
pub use rest::Rest;
pub use sources::{Claim, Found, OriginBlob, OriginFailure, Origins, PeerError, Peers, Route};
pub use view::Progress;
pub use why::{FailedPeer, Leads, PeerNow, PeerRate, STILL, WaitsFor, Why};

use crate::limits::{Limited, Limits};
use crate::seldom::Seldom;
use crate::status::{ErrorKind, Metrics};
use crate::store::{MAX_PARTIALS, Partial, Store, StoredBlob};
use crate::turns::Turns;
use run::{Driver, EVENTS, Happening};
use siblings::Siblings;
use view::View;

/// Bytes of chunks that all transfers together hold in memory: on their way in, or waiting for the disk.
pub const MEMORY: usize = 20 << 20;

/// How many transfers run at a time; further ones wait for their turn.
pub const MAX_RUNNING: usize = 32;

/// How many transfers may wait or run; beyond that new ones are refused. Each has a partial blob open.
pub const MAX_TRANSFERS: usize = MAX_PARTIALS * 3 / 4;

/// Blobs up to this length in bytes do not wait for their turn: manifests must not queue behind layers.
const SMALL: u64 = 4 << 20;

/// A limit that ends within this time is waited for before a client is told of it.
pub const SHORT_LIMIT: Duration = Duration::from_secs(4);

/// How long a transfer may take to say what it does: it is busy with other things that happen.
const WHY_TIME: Duration = Duration::from_secs(2);

/// The unit in which shares of [`MEMORY`] are counted, in bytes.
const SHARE: usize = 1 << 10;

struct Parts {
    store: Store,
    peers: Arc<dyn Peers>,
    origins: Arc<dyn Origins>,
    metrics: Metrics,
    limits: Limits,
    signer: Signer,
    memory: Arc<Semaphore>,
    running: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
    transfers: Mutex<HashMap<(Digest, u64), Arc<Transfer>>>,
    openings: Turns<(Digest, u64)>,
    partials: Mutex<HashMap<(Digest, u64), Weak<Partial>>>,
    arrivals: watch::Sender<u64>,
    // What of the failures that are counted the log says.
    seldom: Seldom,
    siblings: Siblings,
}

impl Parts {
    /// Waits for room for this many bytes; `None` if the node is shutting down.
    async fn share(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        let units = (bytes as usize).div_ceil(SHARE).max(1) as u32;
        self.memory.clone().acquire_many_owned(units).await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Digest, u64), Arc<Transfer>>> {
        // The map is never left half-changed.
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partials(&self) -> MutexGuard<'_, HashMap<(Digest, u64), Weak<Partial>>> {
        self.partials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All transfers of a node. Clones share them.
#[derive(Clone)]
pub struct Transfers(Arc<Parts>);

/// A blob that is here, or on its way.
#[derive(Clone)]
pub enum Fetched {
    /// It is in the store.
    Stored(StoredBlob),
    /// It is arriving.
    Arriving(Arc<Transfer>),
}

/// One blob on its way into the store.
pub struct Transfer {
    digest: Digest,
    map: ChunkMap,
    partial: Arc<Partial>,
    view: Arc<View>,
    events: mpsc::Sender<Happening>,
    readers: AtomicU64,
    metrics: Metrics,
    limits: Limits,
    peers: Arc<dyn Peers>,
    signer: Signer,
    // What was signed last of this node's own reading.
    last_claim: Mutex<Option<StreamClaim>>,
    // How many read from it at this moment.
    reading: AtomicUsize,
    // Bytes of it that lay in the store when it began.
    before: u64,
    // Whether it has had its turn to run.
    runs: AtomicBool,
    stop: CancellationToken,
}

impl Transfers {
    /// Transfers into this store from these sources, until `stop` is cancelled.
    pub fn new(
        store: Store,
        peers: Arc<dyn Peers>,
        origins: Arc<dyn Origins>,
        metrics: Metrics,
        limits: Limits,
        signer: Signer,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Parts {
            store,
            peers,
            origins,
            metrics,
            limits,
            signer,
            memory: Arc::new(Semaphore::new(MEMORY / SHARE)),
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
            stop,
            tasks: TaskTracker::new(),
            transfers: Mutex::default(),
            openings: Turns::default(),
            partials: Mutex::default(),
            arrivals: watch::Sender::new(0),
            seldom: Seldom::default(),
            siblings: Siblings::default(),
        }))
    }

    /// The blob from the store, or the transfer that brings it: the one that is running, else a new one. A route is
    /// where an origin has it.
    pub async fn fetch(
        &self,
        digest: Digest,
        size: u64,
        route: Option<Route>,
    ) -> Result<Fetched, TransferError> {
        if let Some(blob) = self.0.store.get(&digest) {
            return Ok(Fetched::Stored(blob));
        }
        let map = ChunkMap::new(size)?;
        let running = self.0.lock().get(&(digest, size)).cloned();
        let transfer = match running {
            Some(transfer) => transfer,
            None => match self.open(digest, map, route.clone()).await? {
                Fetched::Arriving(transfer) => transfer,
                stored => return Ok(stored),
            },
        };
        if let Some(route) = route {
            // A queue that is full is that of a transfer with many who want it, and each of them brings a route.
            let _ = transfer.events.try_send(Happening::Route(route));
        }
        Ok(Fetched::Arriving(transfer))
    }

    /// Opens the partial blob and starts the transfer. In a task of its own, since whoever asks may go away in the
    /// middle, and a transfer that is known must be driven.
    async fn open(
        &self,
        digest: Digest,
        map: ChunkMap,
        route: Option<Route>,
    ) -> Result<Fetched, TransferError> {
        let opening = self.0.tasks.spawn(open(self.0.clone(), digest, map, route));
        opening.await.map_err(|_| TransferError::Stopped)?
    }

    /// The transfer of this blob, if it is on its way.
    pub fn get(&self, digest: Digest, size: u64) -> Option<Arc<Transfer>> {
        self.0.lock().get(&(digest, size)).cloned()
    }

    /// The length of a blob that is on its way, as far as it is known by whoever asked for it.
    pub fn arriving_size(&self, digest: &Digest) -> Option<u64> {
        self.0.lock().keys().find(|(name, _)| name == digest).map(|(_, size)| *size)
    }

    /// Counts up with every blob that has come.
    pub fn arrivals(&self) -> watch::Receiver<u64> {
        self.0.arrivals.subscribe()
    }

    /// What limits them.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// What is on its way now.
    pub fn running(&self) -> Vec<Arc<Transfer>> {
        self.0.lock().values().cloned().collect()
    }

    /// Ends all transfers and waits for them; what has arrived stays in the store as partial blobs.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

async fn open(
    parts: Arc<Parts>,
    digest: Digest,
    map: ChunkMap,
    route: Option<Route>,
) -> Result<Fetched, TransferError> {
    let key = (digest, map.size());
    let _turn = parts.openings.take(key).await;
    if parts.stop.is_cancelled() {
        return Err(TransferError::Stopped);
    }
    if let Some(transfer) = parts.lock().get(&key) {
        return Ok(Fetched::Arriving(transfer.clone()));
    }
    if let Some(blob) = parts.store.get(&digest) {
        return Ok(Fetched::Stored(blob));
    }
    let is_full = || parts.lock().len() >= MAX_TRANSFERS;
    if is_full() {
        make_room(&parts).await;
        if is_full() {
            return Err(TransferError::Full);
        }
    }
    // Readers of a transfer that has failed may still hold its partial blob, which cannot be opened twice; those of one
    // that has not hold what was the blob until it was damaged.
    let left = parts.partials().get(&key).and_then(Weak::upgrade).filter(|partial| !partial.is_finished());
    let partial = match left {
        Some(partial) => partial,
        None => {
            // It hashes what an earlier run left, which may take its time.
            let store = parts.store.clone();
            let opened = tokio::task::spawn_blocking(move || store.partial(&digest, map)).await;
            Arc::new(opened.map_err(|_| TransferError::Stopped)?.map_err(TransferError::store)?)
        }
    };
    {
        let mut partials = parts.partials();
        partials.retain(|_, partial| partial.strong_count() > 0);
        partials.insert(key, Arc::downgrade(&partial));
    }
    let (events, happenings) = mpsc::channel(EVENTS);
    // Known before the search begins, which would else end with nobody to ask.
    if let Some(route) = route {
        let _ = events.try_send(Happening::Route(route));
    }
    let here = map.iter().zip(partial.links()).filter(|(_, link)| link.is_some());
    let before = here.map(|(index, _)| u64::from(map.len(index))).sum();
    let transfer = Arc::new(Transfer {
        digest,
        map,
        partial,
        view: Arc::new(View::new(digest.algorithm(), map)),
        events,
        readers: AtomicU64::new(0),
        metrics: parts.metrics.clone(),
        limits: parts.limits.clone(),
        peers: Arc::clone(&parts.peers),
        signer: parts.signer.clone(),
        last_claim: Mutex::default(),
        reading: AtomicUsize::new(0),
        before,
        runs: AtomicBool::new(false),
        stop: parts.stop.child_token(),
    });
    parts.lock().insert(key, transfer.clone());
    let span = info_span!("transfer", blob = %digest.short(), bytes = map.size());
    parts.tasks.spawn(run(parts.clone(), transfer.clone(), happenings).instrument(span));
    Ok(Fetched::Arriving(transfer))
}

/// Ends one of those that a limit holds up and nobody waits for: they may stay for days, and what comes from within the site
/// needs their place.
async fn make_room(parts: &Parts) {
    let idle = parts.lock().values().find(|it| it.waits_for().is_some() && !it.view.is_watched()).cloned();
    if let Some(idle) = idle
        && idle.cancel() == 0
    {
        debug!(blob = %idle.digest.short(), "a transfer that waits for a limit makes room");
        let _ = idle.wait().await;
    }
}

/// Chunks that came to nothing are on the disk, with their links: the next transfer would begin with them, give them to
/// clients, and cut these off when they come to nothing again.
async fn forget_void(transfer: &Transfer) {
    let (partial, linked) = (transfer.partial.clone(), transfer.view.linked());
    let forgotten = tokio::task::spawn_blocking(move || partial.keep_only(&linked)).await;
    // Without a task the node is shutting down; whoever opens them then hashes them again.
    if let Ok(Err(error)) = forgotten {
        warn!(blob = %transfer.digest.short(), %error, "wrong chunks could not be forgotten");
    }
}

async fn run(parts: Arc<Parts>, transfer: Arc<Transfer>, mut happenings: mpsc::Receiver<Happening>) {
    let turn = async {
        match transfer.size() {
            0..=SMALL => Some(None),
            _ => parts.running.clone().acquire_owned().await.ok().map(Some),
        }
    };
    let turn = tokio::select! {
        turn = turn => turn,
        () = transfer.stop.cancelled() => None,
    };
    let key = (transfer.digest, transfer.map.size());
    // Whoever wants the blob once it is decided that nothing comes of this begins anew, and not before the last of this has
    // been written and what is wrong of it been forgotten. One that joined would be cut off like those that read from it.
    let leave = async || {
        let opening = parts.openings.take(key).await;
        parts.lock().remove(&key);
        opening
    };
    let mut opening = None;
    let ended = match turn {
        Some(turn) => {
            transfer.runs.store(true, Ordering::Relaxed);
            let (view, partial) = (transfer.view.clone(), transfer.partial.clone());
            let (events, stop) = (transfer.events.clone(), transfer.stop.child_token());
            let mut driver = Driver::new(parts.clone(), view, partial, events, turn, stop);
            let ended = driver.run(&mut happenings).await;
            if ended.is_err() {
                opening = Some(leave().await);
            }
            driver.close(happenings).await;
            ended
        }
        None => Err(TransferError::Stopped),
    };
    let ended = match ended {
        Err(TransferError::Stopped) if !parts.stop.is_cancelled() => Err(TransferError::Cancelled),
        ended => ended,
    };
    let outcome = match ended {
        Ok(()) => {
            let partial = transfer.partial.clone();
            match tokio::task::spawn_blocking(move || partial.finish()).await {
                Ok(finished) => finished.map_err(TransferError::store),
                Err(_) => Err(TransferError::Stopped),
            }
        }
        Err(error) => Err(error),
    };
    if outcome.is_err() && transfer.view.voids() > 0 {
        forget_void(&transfer).await;
    }
    match &outcome {
        Ok(_) => {
            parts.metrics.fetched.inc();
            parts.arrivals.send_modify(|count| *count += 1);
            parts.peers.announce(transfer.digest).await;
        }
        Err(error) => {
            if let TransferError::Store(_) = error {
                parts.metrics.failed(ErrorKind::Store);
                if let Some(left_out) = parts.seldom.say(&transfer.digest) {
                    warn!(blob = %transfer.digest, %error, left_out, "a blob cannot be stored");
                }
            }
            debug!(%error, "transfer failed");
        }
    }
    // First out of the map, so that whoever is told of a failure and asks again starts anew.
    if opening.is_none() {
        parts.lock().remove(&key);
    }
    transfer.view.end(outcome);
}

impl Transfer {
    /// The blob.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The blob's length in bytes.
    pub fn size(&self) -> u64 {
        self.map.size()
    }

    /// What has arrived so far.
    pub fn progress(&self) -> Progress {
        self.view.progress()
    }

    /// The limit that is all that it waits for, if there is one.
    pub fn waits_for(&self) -> Option<Limited> {
        self.view.waiting()
    }

    /// Bytes of it that lay here when it began, from an earlier attempt.
    pub fn before(&self) -> u64 {
        self.before
    }

    /// What it does now, and what it waits for; `None` if it ends at this moment, or does not answer within 2 s.
    pub async fn why(&self) -> Option<Why> {
        if !self.runs.load(Ordering::Relaxed) {
            return Some(Why::in_line());
        }
        let (reply, why) = oneshot::channel();
        let asked = async {
            self.events.send(Happening::Asked(reply)).await.ok()?;
            why.await.ok()
        };
        timeout(WHY_TIME, asked).await.ok().flatten()
    }

    /// Waits until this node leads, may lead or follows somebody who does: from then on it is of use to others who have no
    /// route to an origin. Does not return while neither is so.
    pub async fn promises(&self) {
        let mut changes = self.view.watch();
        loop {
            changes.borrow_and_update();
            match self.view.outcome() {
                Some(Ok(_)) => return,
                Some(Err(_)) => return pending().await,
                None => {}
            }
            match self.view.stance().role {
                Role::Leading { .. } | Role::Candidate { .. } | Role::Held => return,
                Role::Following { stream, may_lead, .. } if stream.is_some() || may_lead => return,
                Role::Following { .. } | Role::Gone => {}
            }
            if changes.changed().await.is_err() {
                return pending().await;
            }
        }
    }

    /// Ends it unless somebody reads from it, and returns how many do. What has arrived stays in the store as a partial
    /// blob. Whoever begins to read at this very moment is sent away to come back later.
    pub fn cancel(&self) -> usize {
        let reading = self.reading.load(Ordering::SeqCst);
        if reading == 0 {
            self.stop.cancel();
        }
        reading
    }

    fn begin_to_read(self: &Arc<Self>) -> InUse {
        self.reading.fetch_add(1, Ordering::SeqCst);
        InUse(self.clone())
    }

    /// Waits until something has changed; returns at once with the outcome when there is one.
    pub async fn wait(&self) -> Result<StoredBlob, TransferError> {
        let mut changes = self.view.watch();
        loop {
            changes.borrow_and_update();
            if let Some(outcome) = self.view.outcome() {
                return outcome;
            }
            if changes.changed().await.is_err() {
                return Err(TransferError::Stopped);
            }
        }
    }

    /// Waits until the first byte of a range can be read, and says so with `true`; with [`TransferError::Limited`] if a limit
    /// has to end before all of it is here which will hold for longer than [`SHORT_LIMIT`]; with `false` if `is_far` finds
    /// it too far behind `front`, the number of bytes at the start that are here, while the blob comes in order only.
    pub async fn first_byte(
        self: &Arc<Self>,
        range: &Range<u64>,
        is_far: impl Fn(u64) -> bool,
    ) -> Result<bool, TransferError> {
        let Some(index) = self.map.at(range.start) else { return Ok(true) };
        let last = self.map.at(range.end.saturating_sub(1)).map_or(index.get(), |last| last.get());
        let is_all_here = || {
            let here = self.view.linked();
            (index.get()..=last)
                .all(|number| self.map.index(number).is_some_and(|index| here.contains(index)))
        };
        let _in_use = self.begin_to_read();
        let mut changes = self.view.watch();
        loop {
            changes.borrow_and_update();
            if let Some(outcome) = self.view.outcome() {
                return outcome.map(|_| true);
            }
            if let Some(limited) = self.held_up()
                && !is_all_here()
            {
                return Err(TransferError::limited(&self.limits, limited));
            }
            if self.view.has(index) {
                return Ok(true);
            }
            if self.view.in_order().is_some_and(&is_far) {
                return Ok(false);
            }
            if changes.changed().await.is_err() {
                return Err(TransferError::Stopped);
            }
        }
    }

    /// The limit that alone keeps the rest of the blob from coming, if it will hold for longer than [`SHORT_LIMIT`].
    fn held_up(&self) -> Option<Limited> {
        self.view.waiting().filter(|limited| self.limits.wait(limited) > SHORT_LIMIT)
    }

    /// The bytes of a range, in order, as they arrive. Pieces have at most one chunk's length.
    pub fn read(self: &Arc<Self>, range: Range<u64>) -> impl Stream<Item = Result<Bytes, Break>> + use<> {
        reader::read(self.clone(), range)
    }

    fn next_reader(&self) -> u64 {
        self.readers.fetch_add(1, Ordering::Relaxed)
    }
}

/// That somebody reads from a transfer, for as long as this lives.
struct InUse(Arc<Transfer>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.reading.fetch_sub(1, Ordering::SeqCst);
    }
}
