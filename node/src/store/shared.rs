//! What every handle of one store shares: which blobs and partial blobs there are, and the space they take.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use sha2::{Digest as _, Sha256};
use tokio::sync::broadcast;
use wherry_proto::{Algorithm, ChunkMap, Digest, StateChain};

use super::blob::StoredBlob;
use super::commit::Queue;
use super::files::{self, Layout};
use super::index::{BlobRecord, Index};
use super::links::{self, LinkTable};
use super::order::{MAX_NAMED, MAX_NAMED_BY_ONE, Named};
use super::remains::Left;
use super::{Gone, StoreError, Why, partial};

/// File systems give space in blocks of about this many bytes.
const BLOCK: u64 = 4096;

/// Bytes of the disk that blobs never take, so that the index can always be written.
const KEEP_FREE: u64 = 16 << 20;

/// How many damaged blobs are remembered as such; further ones are fetched like any that are not here.
pub const MAX_DAMAGED: usize = 4096;

/// A held blob. Whoever has a clone beside the one in [`State::blobs`] keeps the blob from being evicted.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) size: u64,
    pub(super) chain: Option<[u8; 32]>,
    pub(super) used: AtomicU64,
    /// The value of `used` that the index has.
    pub(super) recorded: AtomicU64,
    /// When its bytes were last found to have its digest; `None` while they were not since the start.
    checked: Mutex<Option<Instant>>,
    /// That its bytes are missing or wrong.
    lost: AtomicBool,
    /// How many [`Claim`](super::Claim)s there are on it. Changed while [`State`] is locked, or by one that goes.
    pub(super) claims: AtomicUsize,
}

impl Entry {
    pub(super) fn new(record: BlobRecord) -> Self {
        Self {
            size: record.size,
            chain: record.chain,
            used: record.used.into(),
            recorded: record.used.into(),
            checked: Mutex::default(),
            lost: AtomicBool::new(false),
            claims: AtomicUsize::new(0),
        }
    }

    pub(super) fn note_checked(&self) {
        *lock(&self.checked) = Some(Instant::now());
    }

    pub(super) fn checked(&self) -> Option<Instant> {
        *lock(&self.checked)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(super) fn record(&self) -> BlobRecord {
        BlobRecord { size: self.size, chain: self.chain, used: self.used.load(Ordering::Relaxed) }
    }
}

/// A partial blob, open or abandoned.
#[derive(Debug)]
pub(super) struct PartialEntry {
    pub(super) open: bool,
    pub(super) charge: u64,
    /// Bytes of it that are not on the disk, while it is not open.
    pub(super) absent: u64,
    /// When it was last closed; older ones are evicted first.
    pub(super) closed: SystemTime,
    /// What of it may be given to others while it is not open.
    pub(super) left: Left,
}

/// What names one partial blob: its digest and the length that it is said to have.
pub(super) type PartialKey = (Digest, u64);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) blobs: HashMap<Digest, Arc<Entry>>,
    pub(super) partials: HashMap<PartialKey, PartialEntry>,
    /// How many names pin a blob.
    pub(super) pins: HashMap<Digest, u32>,
    /// Blobs that were found damaged and are not whole again, with their lengths. What is right of them is a partial blob.
    pub(super) damaged: HashMap<Digest, u64>,
    /// What manifests that are held name, as far as the store was told, and how many blobs that are in all.
    pub(super) named: HashMap<Digest, Named>,
    pub(super) named_in_all: usize,
    /// Bytes charged to the budget.
    pub(super) used: u64,
}

impl State {
    /// Takes a held blob out of the map.
    pub(super) fn take(&mut self, digest: &Digest) -> Option<Arc<Entry>> {
        if let Some(named) = self.named.remove(digest) {
            self.named_in_all -= named.len();
        }
        self.blobs.remove(digest)
    }

    /// Takes in what a held manifest names, while there is room for it.
    pub(super) fn name(&mut self, manifest: &Digest, named: Named) {
        let in_all = self.named_in_all + named.len();
        let is_new = self.blobs.contains_key(manifest) && !self.named.contains_key(manifest);
        if is_new && named.len() <= MAX_NAMED_BY_ONE && in_all <= MAX_NAMED {
            self.named_in_all = in_all;
            self.named.insert(*manifest, named);
        }
    }

    /// A line that tells one set of held blobs from another: how many, and their digests folded together.
    pub(super) fn summary(&self) -> String {
        let mut folded = [0; 32];
        for digest in self.blobs.keys() {
            folded.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to ^= from);
        }
        let folded = Digest::from_bytes(Algorithm::Sha256, &folded).map_or_else(String::new, |it| it.hex());
        format!("{} {folded}\n", self.blobs.len())
    }
}

pub(super) struct Shared {
    pub(super) layout: Layout,
    pub(super) index: Index,
    pub(super) budget: Option<u64>,
    /// Orders renames into `blobs` and removals out of it with the maps and the index. Taken before `state`.
    pub(super) files: Mutex<()>,
    pub(super) state: Mutex<State>,
    /// Whether the clean mark stands.
    pub(super) clean: AtomicBool,
    /// Ticks at every use of a blob: the order of use needs no clock that could be set back.
    pub(super) clock: AtomicU64,
    /// Counts up whenever a blob is held or no longer held.
    pub(super) changes: AtomicU64,
    /// Bytes that open files will still take from the disk.
    pub(super) unwritten: AtomicU64,
    pub(super) gone: broadcast::Sender<Gone>,
    pub(super) queue: Queue,
    /// Holds the lock on the folder.
    pub(super) _lock: File,
}

/// Locks; a panic elsewhere while the lock was held leaves maps that are whole, so it is of no concern.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK)
}

/// Bytes of disk that a held blob takes, with its chain.
pub(super) fn blob_charge(algorithm: Algorithm, map: ChunkMap) -> u64 {
    in_blocks(map.size()) + in_blocks(u64::from(map.count() - 1) * algorithm.output_len() as u64)
}

/// Bytes of disk that a blob takes while it is filled in any order.
pub(super) fn partial_charge(algorithm: Algorithm, map: ChunkMap) -> u64 {
    blob_charge(algorithm, map) + in_blocks(links::table_len(algorithm, map))
}

/// Bytes of disk that a recorded blob takes.
pub(super) fn entry_charge(digest: &Digest, size: u64) -> u64 {
    ChunkMap::new(size).map_or(size, |map| blob_charge(digest.algorithm(), map))
}

impl Shared {
    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// While `state` is locked, so that whoever sees the change sees the count.
    pub(super) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn get(self: &Arc<Self>, digest: &Digest) -> Option<StoredBlob> {
        let blob = self.look(digest)?;
        blob.entry().used.store(self.tick(), Ordering::Relaxed);
        Some(blob)
    }

    pub(super) fn look(self: &Arc<Self>, digest: &Digest) -> Option<StoredBlob> {
        let entry = lock(&self.state).blobs.get(digest).cloned()?;
        Some(StoredBlob::new(*digest, entry, self))
    }

    /// Takes away the clean mark before the first change that a crash could leave half done.
    pub(super) fn unclean(&self) -> Result<(), StoreError> {
        if self.clean.load(Ordering::Acquire) {
            files::remove(&self.layout.clean())?;
            files::sync_dir(self.layout.root())?;
            self.clean.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// The error that says how much room there is.
    pub(super) fn no_space(&self, needed: u64) -> StoreError {
        let used = lock(&self.state).used;
        StoreError::NoSpace { needed, free: self.free(), budget: self.budget, used }
    }

    /// Bytes of disk that are free and not promised.
    pub(super) fn free(&self) -> u64 {
        files::free(self.layout.root())
            .unwrap_or(0)
            .saturating_sub(KEEP_FREE)
            .saturating_sub(self.unwritten.load(Ordering::Relaxed))
    }

    /// An operating system's error; a full disk is told with the figures of this store.
    pub(super) fn io_error(
        &self,
        what: &'static str,
        path: &Path,
        needed: u64,
        error: std::io::Error,
    ) -> StoreError {
        if super::error::is_full(&error) { self.no_space(needed) } else { StoreError::io(what, path, error) }
    }

    /// Charges `charge` bytes to the budget, of which `unwritten` are still to be written; evicts what may go
    /// if they do not fit. Whoever asked gives the charge back with [`Shared::give_back`].
    pub(super) fn reserve(&self, charge: u64, unwritten: u64) -> Result<(), StoreError> {
        if !self.charge(charge) {
            self.make_room(&lock(&self.files), charge, None)?;
        }
        let before = self.unwritten.fetch_add(unwritten, Ordering::Relaxed);
        let free = files::free(self.layout.root()).unwrap_or(u64::MAX).saturating_sub(KEEP_FREE);
        if free < before.saturating_add(unwritten) {
            self.unwritten.fetch_sub(unwritten, Ordering::Relaxed);
            self.give_back(charge);
            return Err(self.no_space(unwritten));
        }
        Ok(())
    }

    /// Charges if it fits as it is.
    pub(super) fn charge(&self, charge: u64) -> bool {
        let mut state = lock(&self.state);
        let after = state.used.saturating_add(charge);
        let fits = self.budget.is_none_or(|budget| after <= budget);
        if fits {
            state.used = after;
        }
        fits
    }

    pub(super) fn give_back(&self, charge: u64) {
        let mut state = lock(&self.state);
        state.used = state.used.saturating_sub(charge);
    }

    /// Removes partial blobs that nobody has open.
    pub(super) fn drop_partials(
        &self,
        _files: &MutexGuard<'_, ()>,
        which: impl Fn(&PartialKey) -> bool,
    ) -> (usize, u64) {
        let mut state = lock(&self.state);
        let dropped: Vec<_> = state.partials.extract_if(|key, entry| !entry.open && which(key)).collect();
        let charges: u64 = dropped.iter().map(|(_, entry)| entry.charge).sum();
        state.used = state.used.saturating_sub(charges);
        drop(state);
        let on_disk = |(_, entry): &(PartialKey, PartialEntry)| entry.charge.saturating_sub(entry.absent);
        let removed = (dropped.len(), dropped.iter().map(on_disk).sum());
        for (key, _) in dropped {
            // Found at the next start.
            if let Err(error) = self.remove_files(&Victim::Partial(key)) {
                tracing::warn!(%error, "a partial blob of no use could not be removed");
            }
        }
        removed
    }

    /// A blob counts as damaged no more.
    pub(super) fn mend(&self, digest: &Digest) {
        if lock(&self.state).damaged.remove(digest).is_none() {
            return;
        }
        match self.index.note_damaged(digest, None) {
            Ok(()) => self.queue.touch(),
            Err(error) => tracing::warn!(%digest, %error, "that a blob is not damaged is not written down"),
        }
    }

    /// Removes the files and the record of what is in no map any more. `files` must be locked.
    pub(super) fn remove_files(&self, victim: &Victim) -> Result<(), StoreError> {
        match victim {
            Victim::Partial((digest, size)) => {
                files::remove(&self.layout.partial(digest, *size))?;
                files::remove(&self.layout.links(digest, *size))
            }
            Victim::Blob(digest) => {
                self.unclean()?;
                files::remove(&self.layout.blob(digest))?;
                files::remove(&self.layout.chain(digest))?;
                tracing::debug!(%digest, "removed a blob");
                self.forget(digest)
            }
        }
    }

    /// Tells whoever listens that a blob has left: as soon as it can be had no more, whatever becomes of its files.
    pub(super) fn tell_gone(&self, digest: &Digest, why: Why) {
        // That nobody listens is no error.
        let _ = self.gone.send(Gone { digest: *digest, why });
    }

    /// Drops the record of a blob that has left.
    fn forget(&self, digest: &Digest) -> Result<(), StoreError> {
        self.index.apply(&[(*digest, None)])?;
        self.queue.touch();
        Ok(())
    }

    /// Takes a held blob out of the map, if it is there: what it was charged with. `files` must be locked.
    pub(super) fn take_out_of(&self, state: &mut State, digest: &Digest, why: Why) -> Option<u64> {
        let entry = state.take(digest)?;
        entry.lost.store(why.is_lost(), Ordering::Release);
        let charge = entry_charge(digest, entry.size);
        state.used = state.used.saturating_sub(charge);
        self.note_change();
        self.tell_gone(digest, why);
        Some(charge)
    }

    /// Drops a blob whose bytes the disk has not kept, as syncing them has told: nothing of its file is believed.
    pub(super) fn lose(&self, digest: &Digest, why: &str) {
        let files = lock(&self.files);
        self.set_aside(&files, digest, why, None);
    }

    /// Drops a blob whose file is missing or damaged, of which a handle is at hand, and keeps what is right of it; `found` is
    /// the chain that its bytes were found to have. Another one that came in its place meanwhile stays.
    pub(super) fn lose_this(&self, digest: &Digest, entry: &Entry, why: &str, found: Option<&StateChain>) {
        let files = lock(&self.files);
        // It may also have been removed or evicted, and fetched anew.
        let is_held =
            lock(&self.state).blobs.get(digest).is_some_and(|held| std::ptr::eq(Arc::as_ptr(held), entry));
        if is_held {
            let chain = self.read_chain(digest, entry).filter(|chain| chain.map().count() > 1);
            self.set_aside(&files, digest, why, chain.as_ref().map(|chain| (chain, found)));
        }
    }

    /// What was a held blob is a partial one from now on, if its chain is at hand: whoever opens that hashes each chunk, and
    /// leaves out those that do not link. With the chain comes that which its bytes were found to have, if that is known.
    fn set_aside(
        &self,
        files: &MutexGuard<'_, ()>,
        digest: &Digest,
        why: &str,
        chain: Option<(&StateChain, Option<&StateChain>)>,
    ) {
        let Some(entry) = lock(&self.state).blobs.get(digest).cloned() else { return };
        let key = (*digest, entry.size);
        let is_gone = matches!(self.layout.blob(digest).try_exists(), Ok(false));
        let reason = if is_gone { Why::Missing } else { Why::Damaged };
        let (is_kept, is_noted) = {
            let mut state = lock(&self.state);
            if self.take_out_of(&mut state, digest, reason).is_none() {
                return;
            }
            let is_noted = state.damaged.len() < MAX_DAMAGED || state.damaged.contains_key(digest);
            if is_noted {
                state.damaged.insert(*digest, entry.size);
            }
            // While one is open its files are somebody else's.
            let kept = chain.filter(|_| !state.partials.contains_key(&key));
            if let Some((chain, _)) = kept {
                let charge = partial_charge(digest.algorithm(), chain.map());
                state.partials.insert(
                    key,
                    PartialEntry {
                        open: false,
                        charge,
                        absent: 0,
                        closed: SystemTime::now(),
                        left: Left::default(),
                    },
                );
                state.used = state.used.saturating_add(charge);
            }
            (kept, is_noted)
        };
        tracing::debug!(%digest, why, keeps = is_kept.is_some(), "a stored blob is damaged and is no longer held");
        let done = self.unclean().and_then(|()| {
            let kept = is_kept.map_or(Ok(false), |(chain, found)| self.make_partial(chain, found));
            files::remove(&self.layout.blob(digest))?;
            files::remove(&self.layout.chain(digest))?;
            if is_noted {
                self.index.note_damaged(digest, Some(entry.size))?;
            }
            self.forget(digest)?;
            kept
        });
        // Its links take more room than it had, a thousandth of it.
        let done = done.and_then(|kept| match is_kept {
            Some(_) if kept => partial::make_way_among(self, files)
                .and_then(|()| self.make_room(files, 0, Some(&key)))
                .map(|()| true),
            _ => Ok(kept),
        });
        if is_kept.is_some() && !matches!(done, Ok(true)) {
            self.drop_partials(files, |partial| *partial == key);
        }
        if let Err(error) = done {
            tracing::warn!(%digest, %error, "a damaged blob could not be cleared away, or nothing of it be kept");
        }
    }

    /// The chain of a blob as it was recorded.
    pub(super) fn read_chain(&self, digest: &Digest, entry: &Entry) -> Option<StateChain> {
        let map = ChunkMap::new(entry.size).ok()?;
        let Some(expected) = entry.chain else { return StateChain::from_bytes(*digest, map, &[]).ok() };
        let bytes = fs::read(self.layout.chain(digest)).ok()?;
        if Sha256::digest(&bytes)[..] != expected {
            return None;
        }
        StateChain::from_bytes(*digest, map, &bytes).ok()
    }

    /// Makes the file of a blob that was held that of a partial one, with the links of its chain; `found` is the chain that
    /// its bytes were found to have. `false` if there is no file, or nothing of use in it. On an error something may be left.
    pub(super) fn make_partial(
        &self,
        chain: &StateChain,
        found: Option<&StateChain>,
    ) -> Result<bool, StoreError> {
        let (digest, size) = (chain.digest(), chain.map().size());
        let (from, to) = (self.layout.blob(&digest), self.layout.partial(&digest, size));
        let len = match fs::metadata(&from) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            data => data.map_err(|error| StoreError::io("read", &from, error))?.len(),
        };
        let table = LinkTable::of_damaged(chain, found, len);
        if table.is_empty() {
            return Ok(false);
        }
        let (links, bytes) = (self.layout.links(&digest, size), table.as_bytes());
        let needed = bytes.len() as u64;
        if self.free() < needed {
            return Err(self.no_space(needed));
        }
        // First, since a partial blob without links is dropped at a start.
        fs::write(&links, bytes).map_err(|error| self.io_error("write", &links, needed, error))?;
        fs::rename(&from, &to).map_err(|error| StoreError::io("move", &from, error))?;
        files::unseal(&to)?;
        Ok(true)
    }

    /// Makes a file whose bytes `chain` was computed from a held blob; says whether it was not held before. The
    /// caller's `charge` becomes the blob's own; on an error it remains the caller's.
    pub(super) fn adopt(
        self: &Arc<Self>,
        from: &Path,
        file: &File,
        chain: &StateChain,
        charge: u64,
    ) -> Result<(StoredBlob, bool), StoreError> {
        let digest = chain.digest();
        let files = lock(&self.files);
        if let Some(held) = self.get(&digest) {
            files::remove(from)?;
            self.give_back(charge);
            return Ok((held, false));
        }
        self.unclean()?;
        let to = self.layout.blob(&digest);
        if let Some(parent) = to.parent() {
            files::make_dir(parent)?;
        }
        let chain_hash = self.write_chain(chain)?;
        files::seal(file, from)?;
        fs::rename(from, &to).map_err(|error| self.io_error("rename", from, 0, error))?;
        let record = BlobRecord { size: chain.map().size(), used: self.tick(), chain: chain_hash };
        let entry = Arc::new(Entry::new(record));
        // The bytes were hashed on their way to the disk.
        entry.note_checked();
        {
            let mut state = lock(&self.state);
            let own = blob_charge(digest.algorithm(), chain.map());
            state.used = state.used.saturating_sub(charge).saturating_add(own);
            state.blobs.insert(digest, Arc::clone(&entry));
            self.note_change();
        }
        self.mend(&digest);
        // Whatever else was begun of it, perhaps with a false length, is of no use any more.
        self.drop_partials(&files, |(partial, _)| *partial == digest);
        drop(files);
        self.queue.submit(digest);
        Ok((StoredBlob::new(digest, entry, self), true))
    }

    /// Writes a chain beside its blob; the hash of it, if the blob has more than one chunk. The file is not
    /// synced: it is only used while it has that hash, and made anew otherwise.
    pub(super) fn write_chain(&self, chain: &StateChain) -> Result<Option<[u8; 32]>, StoreError> {
        let bytes = chain.to_bytes();
        if bytes.is_empty() {
            return Ok(None);
        }
        let path = self.layout.chain(&chain.digest());
        if let Some(parent) = path.parent() {
            files::make_dir(parent)?;
        }
        fs::write(&path, &bytes).map_err(|error| self.io_error("write", &path, bytes.len() as u64, error))?;
        Ok(Some(Sha256::digest(&bytes).into()))
    }
}

/// What leaves the store.
#[derive(Debug)]
pub(super) enum Victim {
    Partial(PartialKey),
    Blob(Digest),
}

/// Bytes that one open file will still take from the disk; dropped, they are no longer reserved.
pub(super) struct Unwritten {
    shared: Arc<Shared>,
    left: AtomicU64,
}

impl Unwritten {
    /// Of bytes that [`Shared::reserve`] has counted already.
    pub(super) fn new(shared: &Arc<Shared>, left: u64) -> Self {
        Self { shared: Arc::clone(shared), left: left.into() }
    }

    /// Tells that so many bytes more are on the disk; how many of them it stood for.
    pub(super) fn wrote(&self, bytes: u64) -> u64 {
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
        let of_these = taken.unwrap_or(0).min(bytes);
        self.shared.unwritten.fetch_sub(of_these, Ordering::Relaxed);
        of_these
    }

    /// Whether all that it stood for is on the disk.
    pub(super) fn is_written(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.shared.unwritten.fetch_sub(*self.left.get_mut(), Ordering::Relaxed);
    }
}
