//! Blobs on the disk: verified ones, and those that are being filled.
//!
//! ```text
//! <data>/lock                               names the process that has the folder
//! <data>/clean                              stands while index and blobs are known to agree: which blobs those are
//! <data>/blobs/<algorithm>/<2 hex>/<hex>    verified blobs, read-only
//! <data>/chains/<algorithm>/<2 hex>/<hex>   their state chains, if they have more than one chunk
//! <data>/partial/<algorithm>-<hex>-<n>      a sparse file that is being filled; beside it, as .links, the link
//!                                           of each chunk that is there
//! <data>/staging/                           blobs that are being written in order; emptied at every start
//! <data>/index/                             which blobs are held, pins, and the tables of other rooms
//! <data>/index.damaged/                     the last index that could not be read, for a look
//! ```
//!
//! A blob gets into `blobs` in two ways only: its bytes were hashed in order ([`Staged`], [`Store::put`]), or the
//! links of its chunks form a chain that starts as hashing does and ends in its digest ([`Partial::finish`]).
//! It can be read from then on, and is recorded in the index once its bytes are durable.
//!
//! **A kill** loses nothing that a method had returned from, but for changes of tables in the last half second.
//! **A power cut** may also lose blobs whose durability [`Store::sync`] had not confirmed, and the chunks of
//! partial blobs that the operating system had not written out. Neither ever leaves a wrong blob: after an end
//! that was not clean every blob that is not recorded is hashed before it is believed, and so is, always, every
//! chunk of a partial blob.
//!
//! **The budget** counts blobs, chains and links in blocks of 4 KiB, partial and staged blobs with their full length
//! from the moment they are opened. The index comes on top (a few MiB). When something does not fit, abandoned partial
//! blobs go first, then blobs by their last use, together with the images that they are of as far as [`Store::names`] tells;
//! pinned blobs, or what is left of them, and blobs that somebody holds a [`StoredBlob`] of stay. 16 MiB of the disk are left free for the index.
//!
//! **A held blob that rots** is no longer held. If its chain is here and the blob has several chunks it becomes a partial
//! blob, of which those chunks are left out that do not link; its chain stays known, since all of it was verified once.
//! While nobody fills it others may have its chunks ([`Remains`]), each of which is hashed when it is read. It makes room
//! like any abandoned partial blob, unless the blob is pinned: then it stays, beyond [`MAX_PARTIALS`] as well.
//!
//! An idle store has no timer and writes nothing. Memory: about 200 bytes for each held blob.

mod blob;
mod codec;
mod commit;
mod error;
mod files;
mod index;
mod links;
mod order;
mod partial;
mod recover;
mod remains;
mod room;
mod shared;
mod staged;
mod table;
mod upload;
mod verify;

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use bincode::{Decode, Encode};
use tokio::sync::broadcast;
use wherry_proto::{Algorithm, ChunkMap, Digest};

pub use blob::{Claim, StoredBlob};
#[cfg(test)]
pub(crate) use codec::encode;
pub use error::{MAX_NAME_LEN, StoreError};
pub use partial::{MAX_PARTIALS, Partial};
pub use remains::Remains;
pub use shared::MAX_DAMAGED;
pub use staged::Staged;
pub use table::{MAX_KEY_LEN, Table};
pub use upload::Upload;

use files::Layout;
use index::Index;
use order::Named;
use shared::{Shared, Victim, lock};

/// How many blobs may leave before a listener that does not keep up misses some.
const GONE_QUEUE: usize = 1024;

/// What may be set when a store is opened.
#[derive(Debug, Clone, Default)]
pub struct StoreSettings {
    /// Bytes of disk that blobs may take; without a budget nothing is ever evicted.
    pub budget: Option<u64>,
}

/// A blob that has left the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// The blob.
    pub digest: Digest,
    /// Why.
    pub why: Why,
}

/// Why a blob has left the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// To make room.
    Evicted,
    /// Somebody had it removed.
    Removed,
    /// Its file is missing.
    Missing,
    /// Its file has other bytes than its digest's.
    Damaged,
}

impl Why {
    /// Whether the disk has lost it.
    pub const fn is_lost(self) -> bool {
        matches!(self, Self::Missing | Self::Damaged)
    }
}

/// How much space a store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes charged to the budget: held, partial and staged blobs, the latter two with all that is still to come.
    pub used: u64,
    /// The same without what is still to come.
    pub on_disk: u64,
    /// The budget, if there is one.
    pub budget: Option<u64>,
    /// Bytes of the disk that are free and not promised to open files.
    pub free: u64,
    /// How many blobs are held.
    pub blobs: usize,
    /// How many partial blobs there are, open or abandoned.
    pub partials: usize,
}

/// The store of one node. Clones share it; the last one that goes, with all [`Partial`]s, [`Staged`]s and
/// [`Table`]s, closes it, and waits for the disk to do so.
///
/// [`Store::get`], [`Store::look`], [`Store::claim`], [`Store::holds`], [`Store::is_pinned`], [`Store::is_damaged`],
/// [`Store::is_known`], [`Store::damaged`], [`Store::names`], [`Store::changes`], [`Store::remains`], [`Store::leaves`] and
/// [`Store::usage`] may be called from async code; all else waits for the disk.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    // Last, so that the committer ends when no clone is left.
    handle: Arc<Handle>,
}

impl Store {
    /// Opens the store in a data folder, which is made if it does not exist, and locks it. Recovers what an
    /// end that was not clean has left: blocks for as long as hashing takes that. A store that is over its budget, since
    /// that is smaller than it was, is so until [`Store::keep_budget`].
    pub fn open(dir: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        files::make_dir(dir)?;
        let layout = Layout::new(dir);
        let folder_lock = take_lock(&layout)?;
        recover::prepare(&layout)?;
        let index = Index::open(&layout)?;
        let shared = Arc::new(Shared {
            index,
            budget: settings.budget,
            files: std::sync::Mutex::default(),
            state: std::sync::Mutex::default(),
            clean: AtomicBool::new(false),
            clock: AtomicU64::new(1),
            changes: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            gone: broadcast::channel(GONE_QUEUE).0,
            queue: commit::Queue::default(),
            _lock: folder_lock,
            layout,
        });
        recover::recover(&shared)?;
        let committer = std::thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || commit::run(&shared)
            })
            .map_err(|error| StoreError::io("start a thread for", dir, error))?;
        let handle = Arc::new(Handle { shared: Arc::clone(&shared), committer: Some(committer) });
        Ok(Self { shared, handle })
    }

    /// A held blob. Reads memory only, and counts as a use of the blob.
    pub fn get(&self, digest: &Digest) -> Option<StoredBlob> {
        self.shared.get(digest)
    }

    /// The same for whoever looks after blobs rather than uses them: this is no use of it.
    pub fn look(&self, digest: &Digest) -> Option<StoredBlob> {
        self.shared.look(digest)
    }

    /// Sees to it that a held blob stays, pinned or not, while the claim lives; `None` if it is not held. Reads memory
    /// only, and counts as a use.
    pub fn claim(&self, digest: &Digest) -> Option<Claim> {
        let state = lock(&self.shared.state);
        let entry = state.blobs.get(digest)?;
        entry.used.store(self.shared.tick(), Ordering::Relaxed);
        Some(StoredBlob::new(*digest, Arc::clone(entry), &self.shared).claimed())
    }

    /// Counts up whenever a blob is held, or no longer held.
    pub fn changes(&self) -> u64 {
        self.shared.changes.load(Ordering::Acquire)
    }

    /// Whether a blob is held; this is no use of it.
    pub fn holds(&self, digest: &Digest) -> bool {
        lock(&self.shared.state).blobs.contains_key(digest)
    }

    /// Stores bytes that are at hand, if they have this digest.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<StoredBlob, StoreError> {
        // Before anything is written, and also if the blob is held: wrong bytes are never fine.
        let found = Digest::of(digest.algorithm(), bytes);
        if found != *digest {
            return Err(StoreError::WrongDigest { expected: Box::new(*digest), found: Box::new(found) });
        }
        if let Some(held) = self.get(digest) {
            return Ok(held);
        }
        let mut staged = self.stage(digest.algorithm(), bytes.len() as u64)?;
        staged.write(bytes)?;
        staged.finish(Some(*digest))
    }

    /// Begins a blob of `size` bytes that come in order. Its space is reserved.
    pub fn stage(&self, algorithm: Algorithm, size: u64) -> Result<Staged, StoreError> {
        Staged::new(self.clone(), algorithm, size)
    }

    /// Begins a blob whose bytes come in order and whose length is not known. Space is reserved for it as it comes.
    pub fn upload(&self, algorithm: Algorithm) -> Result<Upload, StoreError> {
        Upload::new(self.clone(), algorithm)
    }

    /// Opens or begins a blob whose chunks come in any order. Its space is reserved, and chunks that are there
    /// already are hashed again, which takes as long as reading them. The same (digest, length) can be open
    /// once at a time, and at most [`MAX_PARTIALS`] in all.
    pub fn partial(&self, digest: &Digest, map: ChunkMap) -> Result<Partial, StoreError> {
        Partial::open(self.clone(), *digest, map)
    }

    /// How many bytes of a partial blob are here, going by what was recorded of it; `None` if there is none. Reads the
    /// records, and hashes nothing.
    pub fn partial_bytes(&self, digest: &Digest, map: ChunkMap) -> Option<u64> {
        let is_known = lock(&self.shared.state).partials.contains_key(&(*digest, map.size()));
        is_known.then(|| partial::recorded_bytes(&self.shared, digest, map).unwrap_or(0))
    }

    /// Removes a blob; says whether it was there. Pinned and claimed blobs stay, as an error; readers that have it open
    /// read on.
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let _files = lock(&self.shared.files);
        let there = {
            let mut state = lock(&self.shared.state);
            if state.pins.contains_key(digest) {
                return Err(StoreError::Pinned(*digest));
            }
            if state.blobs.get(digest).is_some_and(|entry| entry.claims.load(Ordering::Acquire) > 0) {
                return Err(StoreError::Claimed(*digest));
            }
            self.shared.take_out_of(&mut state, digest, Why::Removed).is_some()
        };
        if there {
            self.shared.remove_files(&Victim::Blob(*digest))?;
        }
        Ok(there)
    }

    /// Removes what was begun of a blob or left of it, with whatever length, unless it is being filled now: how many that
    /// were, and how many bytes they took.
    pub fn remove_partials(&self, digest: &Digest) -> (usize, u64) {
        let files = lock(&self.shared.files);
        let dropped = self.shared.drop_partials(&files, |(partial, _)| partial == digest);
        self.shared.mend(digest);
        dropped
    }

    /// All held blobs with their lengths, in no order: a snapshot.
    pub fn blobs(&self) -> impl Iterator<Item = (Digest, u64)> + use<> {
        let blobs: Vec<_> =
            lock(&self.shared.state).blobs.iter().map(|(digest, entry)| (*digest, entry.size)).collect();
        blobs.into_iter()
    }

    /// Keeps a blob from being evicted or removed, under a name, and over restarts; it need not be held yet. Several names may pin
    /// one blob, and one name several blobs.
    pub fn pin(&self, name: &str, digest: &Digest) -> Result<(), StoreError> {
        check_name(name)?;
        let _files = lock(&self.shared.files);
        if self.shared.index.pin(name, digest)? {
            *lock(&self.shared.state).pins.entry(*digest).or_default() += 1;
            self.shared.queue.touch();
        }
        Ok(())
    }

    /// Takes one blob from what a name pins.
    pub fn unpin(&self, name: &str, digest: &Digest) -> Result<(), StoreError> {
        check_name(name)?;
        let _files = lock(&self.shared.files);
        if self.shared.index.unpin(name, digest)? {
            let mut state = lock(&self.shared.state);
            if let Some(count) = state.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(digest);
                }
            }
            self.shared.queue.touch();
        }
        Ok(())
    }

    /// What a name pins.
    pub fn pinned_by(&self, name: &str) -> Result<Vec<Digest>, StoreError> {
        check_name(name)?;
        self.shared.index.pinned_by(name)
    }

    /// All names that pin anything.
    pub fn pinned_names(&self) -> Result<BTreeSet<String>, StoreError> {
        Ok(self.shared.index.pins()?.into_iter().map(|(name, _)| name).collect())
    }

    /// Whether any name pins this blob.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        lock(&self.shared.state).pins.contains_key(digest)
    }

    /// The blobs, with their lengths, that have to leave so that the budget is kept; none where it is. If all that may
    /// leave is not enough, that is all of them.
    pub fn over_budget(&self) -> Vec<(Digest, u64)> {
        self.shared.over_budget()
    }

    /// Has those leave.
    pub fn keep_budget(&self) {
        self.shared.keep_budget();
    }

    /// Whether blobs of these lengths have room within the budget beside what is pinned, if all else made way. Nothing
    /// does. Those that are held have theirs.
    pub fn would_fit(&self, blobs: &HashMap<Digest, u64>) -> Result<(), StoreError> {
        self.shared.would_fit(blobs)
    }

    /// Takes in what a held manifest names: `documents`, which are a configuration or manifests, and `layers`. Blobs make
    /// room image by image then, as many as are needed, and what tells of them last. Of a manifest that names more than 1,024
    /// nothing is taken in, of all together no more than 131,072, and without a budget nothing. Reads memory only.
    pub fn names(&self, manifest: &Digest, documents: Vec<Digest>, layers: Vec<Digest>) {
        if self.shared.budget.is_some() {
            let named = Named { documents: documents.into(), layers: layers.into() };
            lock(&self.shared.state).name(manifest, named);
        }
    }

    /// How much space is taken and free.
    pub fn usage(&self) -> Usage {
        let free = self.shared.free();
        let unwritten = self.shared.unwritten.load(Ordering::Relaxed);
        let state = lock(&self.shared.state);
        let abandoned = state.partials.values().filter(|partial| !partial.open);
        let absent: u64 = abandoned.map(|partial| partial.absent).sum();
        Usage {
            used: state.used,
            on_disk: state.used.saturating_sub(unwritten).saturating_sub(absent),
            budget: self.shared.budget,
            free,
            blobs: state.blobs.len(),
            partials: state.partials.len(),
        }
    }

    /// Tells of every blob that leaves: evicted, removed, or found damaged. A listener that falls 1,024 behind
    /// misses some, is told so, and can look at [`Store::holds`].
    pub fn evicted(&self) -> broadcast::Receiver<Gone> {
        self.shared.gone.subscribe()
    }

    /// Returns when a blob is not held any more: at once where it is not held now.
    pub async fn leaves(&self, digest: &Digest) {
        // Before the look, so that nothing leaves between the two.
        let mut gone = self.evicted();
        while self.holds(digest) {
            // A listener that missed some looks again.
            while gone.recv().await.is_ok_and(|gone| gone.digest != *digest) {}
        }
    }

    /// A table of the index, for another room: `name` is its own. `version` stands before each record and goes up
    /// with every change of what a record looks like: one of another version is never read as one of this.
    pub fn table<V: Encode + Decode<()>>(&self, name: &str, version: u8) -> Result<Table<V>, StoreError> {
        check_name(name)?;
        Table::open(self, name, version)
    }

    /// Waits until everything that entered the store before is durable.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.shared.queue.sync()
    }

    /// Makes everything durable, with when each blob was last used, and leaves the mark by which the next start
    /// knows that it need not look at every blob. The store can be used on; the last clone that is dropped does
    /// the same.
    pub fn close(&self) -> Result<(), StoreError> {
        self.handle.shared.settle()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "store in {}", self.shared.layout.root().display())
    }
}

/// Ends the committer when the last clone of a [`Store`] goes.
struct Handle {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.shared.settle() {
            tracing::warn!(%error, "the store did not close cleanly; the next start checks it");
        }
        self.shared.queue.stop();
        if let Some(committer) = self.committer.take() {
            // If it panicked it has said so.
            let _ = committer.join();
        }
    }
}

impl Shared {
    /// Makes all durable and leaves the clean mark.
    fn settle(&self) -> Result<(), StoreError> {
        self.queue.sync()?;
        // Nothing enters or leaves between the last record and the mark.
        let _files = lock(&self.files);
        let used: Vec<_> = {
            let state = lock(&self.state);
            let newer = |entry: &shared::Entry| {
                let used = entry.used.load(Ordering::Relaxed);
                entry.recorded.swap(used, Ordering::Relaxed) != used
            };
            let changed = state.blobs.iter().filter(|(_, entry)| newer(entry));
            changed.map(|(digest, entry)| (*digest, Some(entry.record()))).collect()
        };
        if !used.is_empty() {
            self.index.apply(&used)?;
            self.index.flush()?;
        }
        if self.queue.is_idle() && !self.clean.load(Ordering::Acquire) {
            let path = self.layout.clean();
            let summary = lock(&self.state).summary();
            File::create(&path)
                .and_then(|mut file| file.write_all(summary.as_bytes()).and_then(|()| file.sync_all()))
                .map_err(|error| StoreError::io("create", &path, error))?;
            files::sync_dir(self.layout.root())?;
            self.clean.store(true, Ordering::Release);
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), StoreError> {
    if name.is_empty() || name.len() > MAX_NAME_LEN || name.contains('\0') {
        return Err(StoreError::Name(name.chars().take(80).collect()));
    }
    Ok(())
}

/// Locks the folder and writes this process's number into the lock, for the error of whoever comes second.
fn take_lock(layout: &Layout) -> Result<File, StoreError> {
    let path: PathBuf = layout.lock();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| StoreError::io("open", &path, error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(StoreError::Locked { dir: layout.root().to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path, error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| StoreError::io("write", &path, error))?;
    Ok(file)
}
