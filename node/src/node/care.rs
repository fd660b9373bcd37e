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

impl Suspicion {
    const fn key(&self) -> (Digest, Option<NodeId>) {
        match self {
            Self::Blob(digest) => (*digest, None),
            Self::Chunk { by, blob, .. } => (blob.digest, Some(*by)),
        }
    }
}

/// Where suspicions are told. Clones share them.
#[derive(Clone)]
pub(super) struct Care {
    queue: mpsc::Sender<Suspicion>,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    // A peer's doubt hides nobody else's suspicion of the same blob.
    waiting: HashSet<(Digest, Option<NodeId>)>,
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
            self.suspect(&mut memory, Suspicion::Blob(digest));
        }
    }

    /// A peer says that a chunk which this node gave it does not link.
    pub(super) fn doubted(&self, store: &Store, by: NodeId, blob: BlobName, index: u32) {
        let mut memory = lock(&self.memory);
        if store.holds(&blob.digest) && !is_within(&memory.groundless, &by, GROUNDLESS_FOR) {
            self.suspect(&mut memory, Suspicion::Chunk { by, blob, index });
        }
    }

    fn suspect(&self, memory: &mut Memory, suspicion: Suspicion) {
        let key = suspicion.key();
        if memory.waiting.insert(key) && self.queue.try_send(suspicion).is_err() {
            memory.waiting.remove(&key);
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
        // What others said may have been looked into since, and so may other words of this peer.
        Suspicion::Chunk { by, blob, .. }
            if !store.holds(&blob.digest) || is_within(&lock(memory).groundless, by, GROUNDLESS_FOR) =>
        {
            (blob.digest, Ok(()))
        }
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
    memory.waiting.remove(&suspicion.key());
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
    match (store.look(&blob.digest).filter(|held| held.size() == blob.size), index) {
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

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;
    use crate::store::StoreSettings;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct Ward {
        dir: tempfile::TempDir,
        store: Store,
        care: Care,
        stop: CancellationToken,
        running: tokio::task::JoinHandle<()>,
    }

    impl Ward {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), StoreSettings::default()).unwrap();
            let (care, suspicions) = Care::new();
            let stop = CancellationToken::new();
            let running = tokio::spawn(run(store.clone(), suspicions, stop.clone()));
            Self { dir, store, care, stop, running }
        }

        /// A blob of many chunks that rots once it is stored.
        fn rotten(&self, seed: u8) -> StoredBlob {
            let blob = self.sound(seed);
            // What makes it durable would take a file that is gone for a moment for a lost one.
            self.store.sync().unwrap();
            let hex = blob.digest().hex();
            let path = self.dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[LEN - 1] ^= 1;
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            blob
        }

        fn sound(&self, seed: u8) -> StoredBlob {
            let bytes = vec![seed; LEN];
            self.store.put(&Digest::sha256(&bytes), &bytes).unwrap()
        }

        async fn is_damaged(&self, blob: &StoredBlob) {
            let gone = async {
                while self.store.holds(&blob.digest()) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, gone).await.unwrap();
        }

        /// Whether nothing was suspected, or all of it has been looked into.
        fn is_idle(&self) -> bool {
            lock(&self.care.memory).waiting.is_empty()
        }

        async fn end(self) {
            self.stop.cancel();
            self.running.await.unwrap();
        }
    }

    const LEN: usize = 300_000;

    fn client(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn doubt(blob: &StoredBlob, index: u32) -> (BlobName, u32) {
        (BlobName { digest: blob.digest(), size: blob.size() }, index)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_blob_that_a_client_reads_again_is_checked_and_one_that_many_read_is_not() {
        let ward = Ward::new();
        let blob = ward.rotten(1);
        for number in 1..100 {
            ward.care.served(&blob, client(number));
        }
        assert!(ward.is_idle() && ward.store.holds(&blob.digest()));
        ward.care.served(&blob, client(7));
        ward.is_damaged(&blob).await;
        assert!(blob.is_lost() && ward.store.is_damaged(&blob.digest()));
        ward.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_blob_that_was_not_checked_since_the_start_is_when_it_was_served() {
        let mut ward = Ward::new();
        let digest = ward.rotten(2).digest();
        ward.stop.cancel();
        ward.running.await.unwrap();
        drop(ward.store);
        ward.store = Store::open(ward.dir.path(), StoreSettings::default()).unwrap();
        let (care, suspicions) = Care::new();
        (ward.care, ward.stop) = (care, CancellationToken::new());
        ward.running = tokio::spawn(run(ward.store.clone(), suspicions, ward.stop.clone()));
        let blob = ward.store.get(&digest).unwrap();
        ward.care.served(&blob, client(1));
        ward.is_damaged(&blob).await;
        ward.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_peer_that_is_right_is_heard_and_one_that_was_wrong_is_not() {
        let ward = Ward::new();
        let (sound, rotten) = (ward.sound(3), ward.rotten(4));
        let [liar, honest] = [5, 6].map(|seed| SecretKey::from_seed([seed; 32]).node());
        let (blob, index) = doubt(&sound, 0);
        ward.care.doubted(&ward.store, liar, blob, index);
        let looked = async {
            let is_done = || {
                let memory = lock(&ward.care.memory);
                memory.groundless.contains_key(&liar) && memory.waiting.is_empty()
            };
            while !is_done() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looked).await.unwrap();
        // What it says is not looked into any more, be it true.
        let last = ChunkMap::new(rotten.size()).unwrap().last().get();
        let (blob, last) = doubt(&rotten, last);
        ward.care.doubted(&ward.store, liar, blob, last);
        assert!(ward.is_idle());
        ward.care.doubted(&ward.store, honest, blob, last);
        ward.is_damaged(&rotten).await;
        assert!(ward.store.holds(&sound.digest()));
        ward.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_liar_said_before_it_was_found_out_is_not_looked_into_and_hides_no_clients_suspicion() {
        let ward = Ward::new();
        let rotten = ward.rotten(5);
        let liar = SecretKey::from_seed([5; 32]).node();
        let (blob, index) = doubt(&rotten, ChunkMap::new(rotten.size()).unwrap().last().get());
        remember(&mut lock(&ward.care.memory).groundless, liar, GROUNDLESS_FOR);
        let waiting = Suspicion::Chunk { by: liar, blob, index };
        look_into(&ward.store, &ward.care.memory, &waiting, &ward.stop);
        assert!(ward.store.holds(&rotten.digest()));
        lock(&ward.care.memory).waiting.insert(waiting.key());
        for _ in 0..2 {
            ward.care.served(&rotten, client(1));
        }
        ward.is_damaged(&rotten).await;
        ward.end().await;
    }

    #[test]
    fn what_no_peer_can_mean_has_no_ground() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreSettings::default()).unwrap();
        let digest = store.put(&Digest::sha256(b"blob"), b"blob").unwrap().digest();
        for (size, index) in [(4, 0), (4, 1), (5, 0), (u64::MAX, 0)] {
            assert!(!doubt_has_ground(&store, &BlobName { digest, size }, index).unwrap());
        }
    }
}
