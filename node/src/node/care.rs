//! Looks again at blobs that may have rotted on the disk.
//!
//! Blobs are served and given as they lie there, at the disk's rate. What tells of damage comes afterwards: a client that
//! reads the same blob whole once more, as runtimes do after a digest that did not match, or a peer to which a chunk did
//! not link. Either may err, so the blob is hashed in the background: one at a time, and for half of the time at most.
//! What is damaged is set aside by the store, and whoever wants it next has it fetched anew.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use wherry_proto::{BlobName, ChunkMap, Digest, NodeId};

use crate::store::{Store, StoreError, StoredBlob};

/// For how long a check counts: a blob that is served whole after this time is hashed again. Checks are not remembered
/// over a restart.
pub const CHECKED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// A client that reads a blob whole for a second time within this time may have had wrong bytes.
pub const READ_AGAIN: Duration = Duration::from_secs(10 * 60);

/// For how long a blob that was suspected, and found to be right, is not checked because a client reads it again.
pub const CLEARED_FOR: Duration = Duration::from_secs(5 * 60);

/// For how long a peer's word counts for nothing after a chunk that it doubted was right.
pub const GROUNDLESS_FOR: Duration = Duration::from_secs(10 * 60);

/// How many suspicions wait; further ones are forgotten, and come again if there is something to them.
pub const MAX_SUSPICIONS: usize = 64;

/// How many readers, cleared blobs and peers are remembered, each.
const MAX_REMEMBERED: usize = 4096;

/// How long a check pauses at most after each piece that it hashed; it pauses for as long as that took.
const PAUSE: Duration = Duration::from_millis(100);

/// What may be wrong.
pub(super) enum Suspicion {
    /// A blob, going by who reads it.
    Blob(Digest),
    /// A chunk, going by what a peer says.
    Chunk { by: NodeId, blob: BlobName, index: u32 },
}

/// Where suspicions are told. Clones share them.
#[derive(Clone)]
pub(super) struct Care {
    queue: mpsc::Sender<Suspicion>,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    waiting: HashSet<Digest>,
    reads: HashMap<(IpAddr, Digest), Instant>,
    cleared: HashMap<Digest, Instant>,
    groundless: HashMap<NodeId, Instant>,
}

/// The suspicions, for [`run`].
pub(super) struct Suspicions {
    queue: mpsc::Receiver<Suspicion>,
    memory: Arc<Mutex<Memory>>,
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    // The maps are whole between any two of their changes.
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers when something was so; what is older than `time` makes room. Says whether it was so within that time before.
fn remember<K: Eq + Hash>(map: &mut HashMap<K, Instant>, key: K, time: Duration) -> bool {
    let now = Instant::now();
    if map.len() >= MAX_REMEMBERED && !map.contains_key(&key) {
        map.retain(|_, when| now.duration_since(*when) < time);
        if map.len() >= MAX_REMEMBERED {
            return false;
        }
    }
    map.insert(key, now).is_some_and(|before| now.duration_since(before) < time)
}

fn is_within<K: Eq + Hash>(map: &HashMap<K, Instant>, key: &K, time: Duration) -> bool {
    map.get(key).is_some_and(|when| when.elapsed() < time)
}

impl Care {
    pub(super) fn new() -> (Self, Suspicions) {
        let (queue, suspicions) = mpsc::channel(MAX_SUSPICIONS);
        let memory = Arc::<Mutex<Memory>>::default();
        (Self { queue, memory: memory.clone() }, Suspicions { queue: suspicions, memory })
    }

    /// A client has read a blob whole from the store.
    pub(super) fn served(&self, blob: &StoredBlob, client: IpAddr) {
        let mut memory = lock(&self.memory);
        let digest = blob.digest();
        let again = remember(&mut memory.reads, (client, digest), READ_AGAIN)
            && !is_within(&memory.cleared, &digest, CLEARED_FOR);
        let is_due = blob.checked().is_none_or(|when| when.elapsed() >= CHECKED_FOR);
        if again || is_due {
            self.suspect(&mut memory, digest, Suspicion::Blob(digest));
        }
    }

    /// A peer says that a chunk which this node gave it does not link.
    pub(super) fn doubted(&self, store: &Store, by: NodeId, blob: BlobName, index: u32) {
        let mut memory = lock(&self.memory);
        if store.holds(&blob.digest) && !is_within(&memory.groundless, &by, GROUNDLESS_FOR) {
            self.suspect(&mut memory, blob.digest, Suspicion::Chunk { by, blob, index });
        }
    }

    fn suspect(&self, memory: &mut Memory, digest: Digest, suspicion: Suspicion) {
        if memory.waiting.insert(digest) && self.queue.try_send(suspicion).is_err() {
            memory.waiting.remove(&digest);
        }
    }
}

/// Looks into suspicions until `stop` is cancelled.
pub(super) async fn run(store: Store, mut suspicions: Suspicions, stop: CancellationToken) {
    loop {
        let suspicion = tokio::select! {
            () = stop.cancelled() => return,
            suspicion = suspicions.queue.recv() => suspicion,
        };
        let Some(suspicion) = suspicion else { return };
        let (store, memory, stop) = (store.clone(), suspicions.memory.clone(), stop.clone());
        // It ends soon after the stop; that it panicked it has said itself.
        let _ = tokio::task::spawn_blocking(move || look_into(&store, &memory, &suspicion, &stop)).await;
    }
}

fn look_into(store: &Store, memory: &Mutex<Memory>, suspicion: &Suspicion, stop: &CancellationToken) {
    let (digest, looked) = match suspicion {
        Suspicion::Blob(digest) => (*digest, check(store, digest, stop)),
        Suspicion::Chunk { by, blob, index } => {
            let looked = match doubt_has_ground(store, blob, *index) {
                Ok(true) => {
                    warn!(blob = %blob.digest, chunk = index, peer = %by, "a peer says that a chunk of a stored blob is wrong, and is right");
                    check(store, &blob.digest, stop)
                }
                Ok(false) => {
                    debug!(blob = %blob.digest, chunk = index, peer = %by, "a peer doubts a chunk that is right");
                    remember(&mut lock(memory).groundless, *by, GROUNDLESS_FOR);
                    Ok(())
                }
                Err(error) => Err(error),
            };
            (blob.digest, looked)
        }
    };
    let mut memory = lock(memory);
    memory.waiting.remove(&digest);
    match looked {
        Ok(()) if store.holds(&digest) => {
            if matches!(suspicion, Suspicion::Blob(_)) {
                remember(&mut memory.cleared, digest, CLEARED_FOR);
            }
        }
        // It has left in the meantime, or because of this.
        Ok(()) | Err(StoreError::NotHeld(_)) => {}
        Err(error) => warn!(blob = %digest, %error, "a stored blob cannot be checked"),
    }
}

/// Whether a chunk is wrong; the least that has to be read to know whether a peer is right.
fn doubt_has_ground(store: &Store, blob: &BlobName, index: u32) -> Result<bool, StoreError> {
    let index = ChunkMap::new(blob.size).ok().and_then(|map| map.index(index));
    match (store.get(&blob.digest).filter(|held| held.size() == blob.size), index) {
        (Some(_), Some(index)) => Ok(!store.links(&blob.digest, index)?),
        _ => Ok(false),
    }
}

fn check(store: &Store, digest: &Digest, stop: &CancellationToken) -> Result<(), StoreError> {
    let mut since = Instant::now();
    let paced = |_| {
        std::thread::sleep(since.elapsed().min(PAUSE));
        since = Instant::now();
        if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    store.verify_while(digest, paced).map(drop)
}
