//! A blob that is being filled, chunk by chunk and in any order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use wherry_proto::{ChunkIndex, ChunkMap, ChunkSet, Digest, Link, StateChain, link};

use super::blob::StoredBlob;
use super::links::{self, LinkTable};
use super::remains::Left;
use super::shared::{PartialEntry, PartialKey, Shared, Unwritten, Victim, lock, partial_charge};
use super::{Store, StoreError, files};

/// How many partial blobs there may be on the disk; the longest abandoned make way for new ones. What is left of damaged
/// blobs that are pinned comes on top.
pub const MAX_PARTIALS: usize = 256;

/// Threads that hash again what a partial blob had when it was left.
const RELINK_THREADS: usize = 4;

/// A blob that is being filled. All methods may be called from several threads at once, and block for as long
/// as the disk needs.
///
/// Dropped, it stays on the disk and can be opened again: the chunks whose links were recorded are then read
/// and hashed anew, and what does not link is dropped. A kill loses no chunk whose [`Partial::write`] returned;
/// a power cut loses those that the operating system had not yet written out, a few seconds' worth. Nothing stays of
/// one without a chunk, nor of one whose blob came into the store another way.
pub struct Partial {
    store: Store,
    key: PartialKey,
    map: ChunkMap,
    charge: u64,
    data: File,
    links: File,
    unwritten: Unwritten,
    table: Mutex<Table>,
    written: Condvar,
}

struct Table {
    links: LinkTable,
    /// Finished.
    closed: bool,
    /// Chunks that are being written at this moment.
    busy: u32,
}

impl Partial {
    pub(super) fn open(store: Store, digest: Digest, map: ChunkMap) -> Result<Self, StoreError> {
        let shared = Arc::clone(&store.shared);
        let key = (digest, map.size());
        let charge = partial_charge(digest.algorithm(), map);
        let promised = claim(&shared, key, charge)?;
        // From here on whatever fails must give the claim up.
        let claim = Claim { shared: &shared, key, promised, kept: false };
        let data_path = shared.layout.partial(&digest, map.size());
        let links_path = shared.layout.links(&digest, map.size());
        let (data, links_file) = {
            // Files of that name that were left may be on their way out.
            let _files = lock(&shared.files);
            (open_file(&data_path)?, open_file(&links_path)?)
        };
        let wrong = |error| shared.io_error("prepare", &data_path, map.size(), error);
        if data.metadata().map_err(wrong)?.len() != map.size() {
            data.set_len(map.size()).map_err(wrong)?;
        }
        let mut table =
            recorded(&links_file, digest, map).map_err(|error| StoreError::io("read", &links_path, error))?;
        if lock(&shared.state).damaged.get(&digest) == Some(&map.size()) {
            table.was_verified(digest);
        }
        let wrong = relink(&data, map, &table).map_err(|error| StoreError::io("read", &data_path, error))?;
        if !wrong.is_empty() {
            tracing::info!(
                blob = %digest, chunks = wrong.len(), of = map.count(),
                "chunks of a partial blob do not link and are fetched again"
            );
        }
        for index in wrong {
            let flag = table.clear(index);
            links_file
                .write_all_at(&[flag], table.offset(index))
                .map_err(|error| shared.io_error("write", &links_path, 0, error))?;
        }
        let survived: u64 = map
            .iter()
            .filter(|index| table.get(*index).is_some())
            .map(|index| u64::from(map.len(index)))
            .sum();
        let unwritten = Unwritten::new(&shared, promised);
        // A file system that compresses has more of it than its blocks say.
        unwritten.wrote(promised.saturating_sub(map.size() - survived));
        claim.keep();
        Ok(Self {
            store,
            key,
            map,
            charge,
            data,
            links: links_file,
            unwritten,
            table: Mutex::new(Table { links: table, closed: false, busy: 0 }),
            written: Condvar::new(),
        })
    }

    /// The digest that the blob is to have.
    pub fn digest(&self) -> Digest {
        self.key.0
    }

    /// How it is cut.
    pub fn map(&self) -> ChunkMap {
        self.map
    }

    /// The links of the chunks that are on the disk, by chunk number.
    pub fn links(&self) -> Vec<Option<Link>> {
        lock(&self.table).links.links()
    }

    /// The chain of the blob, if all of it was verified here once, before it was damaged.
    pub fn chain(&self) -> Option<Arc<StateChain>> {
        lock(&self.table).links.chain().cloned()
    }

    /// The link of one chunk, if it is on the disk.
    pub fn link(&self, index: ChunkIndex) -> Option<Link> {
        lock(&self.table).links.get(index)
    }

    /// Writes a chunk and then its link, which must come from hashing these very bytes with
    /// [`wherry_proto::link`]; debug builds hash them again and panic if it does not. A chunk that was there is
    /// replaced. When this returns the chunk survives a kill of the process.
    pub fn write(&self, index: ChunkIndex, bytes: &[u8], link: Link) -> Result<(), StoreError> {
        let announced = u64::from(self.map.len(index));
        if bytes.len() as u64 != announced {
            return Err(StoreError::WrongLength { announced, found: bytes.len() as u64 });
        }
        debug_assert_eq!(wherry_proto::link(&self.map, index, link.from, bytes), Ok(link));
        let (record, offset, new) = {
            let mut table = lock(&self.table);
            while table.links.is_busy(index) {
                table = self.written.wait(table).unwrap_or_else(PoisonError::into_inner);
            }
            if table.closed {
                return Err(StoreError::Closed(self.key.0));
            }
            let record = table.links.encode(index, &link).ok_or(StoreError::ForeignLink { index })?;
            let new = table.links.get(index).is_none();
            table.links.set_busy(index);
            table.busy += 1;
            (record, table.links.offset(index), new)
        };
        // The bytes first: a record without its bytes does not link, bytes without a record are merely lost.
        let done = self
            .data
            .write_all_at(bytes, self.map.offset(index))
            .and_then(|()| self.links.write_all_at(&record, offset));
        {
            let mut table = lock(&self.table);
            table.busy -= 1;
            match &done {
                Ok(()) => table.links.set(index, &record),
                Err(_) => drop(table.links.clear(index)),
            }
        }
        self.written.notify_all();
        if new && done.is_ok() {
            self.unwritten.wrote(announced);
        }
        done.map_err(|error| {
            let path = self.store.shared.layout.partial(&self.key.0, self.key.1);
            self.store.shared.io_error("write", &path, announced, error)
        })
    }

    /// Fills `buffer` from `offset`. Only bytes of chunks that have a link mean anything. They stay readable once the
    /// blob is finished.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(buffer, offset)
    }

    /// The file that is being filled. Only bytes of chunks that have a link mean anything.
    pub fn file(&self) -> &File {
        &self.data
    }

    /// Whether it has become a held blob: nothing more can be written.
    pub fn is_finished(&self) -> bool {
        lock(&self.table).closed
    }

    /// Forgets all chunks but these, of which it is known by now that they cannot be the blob's: whoever opens it again begins
    /// without them. Waits for writes that are under way.
    pub fn keep_only(&self, keep: &ChunkSet) -> Result<(), StoreError> {
        let mut table = self.settle()?;
        for index in self.map.iter().filter(|index| !keep.contains(*index)) {
            if table.links.get(index).is_none() {
                continue;
            }
            let flag = table.links.clear(index);
            // The rest of a record is not looked at where its first byte says that there is none.
            self.links.write_all_at(&[flag], table.links.offset(index)).map_err(|error| {
                let path = self.store.shared.layout.links(&self.key.0, self.key.1);
                self.store.shared.io_error("write", &path, 0, error)
            })?;
        }
        Ok(())
    }

    /// Makes it a held blob. The proof is the chain that its links form: one for each chunk, each leading to
    /// the next and the last to the digest. Nothing happens if they do not.
    pub fn finish(&self) -> Result<StoredBlob, StoreError> {
        let (digest, _) = self.key;
        let mut table = self.settle()?;
        let links = table.links.links();
        let missing = links.iter().filter(|link| link.is_none()).count() as u32;
        if missing > 0 {
            return Err(StoreError::Incomplete { digest, missing });
        }
        let links: Vec<Link> = links.into_iter().flatten().collect();
        let Some(chain) = StateChain::from_links(digest, self.map, &links) else {
            return Err(StoreError::Broken { digest, behind: self.first_break(&links) });
        };
        let shared = &self.store.shared;
        let path = shared.layout.partial(&digest, self.map.size());
        let (held, _) = shared.adopt(&path, &self.data, &chain, self.charge)?;
        table.closed = true;
        drop(table);
        lock(&shared.state).partials.remove(&self.key);
        // What stays of the links is found to belong to nothing at the next start.
        if let Err(error) = files::remove(&shared.layout.links(&digest, self.map.size())) {
            tracing::warn!(%error, "the links of a finished blob could not be removed");
        }
        Ok(held)
    }

    /// The chunk behind which a full set of links breaks; chunk 0 also if it does not start as hashing does.
    fn first_break(&self, links: &[Link]) -> ChunkIndex {
        let broken = links.windows(2).position(|pair| pair[0].to != wherry_proto::End::State(pair[1].from));
        let start = wherry_proto::State::initial(self.key.0.algorithm());
        match broken {
            _ if links.first().is_some_and(|link| link.from != start) => self.map.first(),
            Some(number) => self.map.index(number as u32).unwrap_or(self.map.last()),
            None => self.map.last(),
        }
    }

    /// Waits for writes that are under way, and keeps others from beginning.
    fn settle(&self) -> Result<MutexGuard<'_, Table>, StoreError> {
        let mut table = lock(&self.table);
        while table.busy > 0 {
            table = self.written.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        if table.closed { Err(StoreError::Closed(self.key.0)) } else { Ok(table) }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let (shared, key) = (&self.store.shared, &self.key);
        let is_empty = {
            let table = lock(&self.table);
            if table.closed {
                return;
            }
            table.links.is_empty()
        };
        let is_of_use = {
            let mut state = lock(&shared.state);
            if let Some(entry) = state.partials.get_mut(key) {
                entry.open = false;
                entry.absent = absent(&self.data, self.map);
                entry.closed = SystemTime::now();
            }
            !is_empty && !state.blobs.contains_key(&key.0)
        };
        if !is_of_use {
            shared.drop_partials(&lock(&shared.files), |partial| partial == key);
        }
    }
}

impl std::fmt::Debug for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "partial {:?}, {} bytes", self.key.0, self.key.1)
    }
}

/// How many bytes of a partial blob's file are not on the disk; none if that cannot be told.
fn absent(data: &File, map: ChunkMap) -> u64 {
    data.metadata().map_or(0, |data| map.size().saturating_sub(data.blocks() * 512))
}

/// Marks a partial blob as open, with its space reserved: how many bytes it may still take from the disk.
fn claim(shared: &Arc<Shared>, key: PartialKey, charge: u64) -> Result<u64, StoreError> {
    let (digest, size) = key;
    let known = {
        let mut state = lock(&shared.state);
        let open = PartialEntry {
            open: true,
            charge,
            absent: size,
            closed: SystemTime::now(),
            left: Left::default(),
        };
        match state.partials.get_mut(&key) {
            Some(entry) if entry.open => return Err(StoreError::PartialInUse { digest, size }),
            Some(entry) => {
                entry.open = true;
                entry.left = Left::default();
                true
            }
            None => {
                state.partials.insert(key, open);
                false
            }
        }
    };
    // What the file of one that is known has of the disk is not needed again.
    let there = fs::metadata(shared.layout.partial(&digest, size)).map_or(0, |data| data.blocks() * 512);
    let promised = if known { size.saturating_sub(there) } else { size };
    // The charge of one that is known was taken when it was first opened, or when the store was.
    let reserved = shared.reserve(if known { 0 } else { charge }, promised).and_then(|()| {
        make_way(shared).inspect_err(|_| {
            shared.unwritten.fetch_sub(promised, Ordering::Relaxed);
            if !known {
                shared.give_back(charge);
            }
        })
    });
    if reserved.is_err() {
        let mut state = lock(&shared.state);
        match state.partials.get_mut(&key) {
            Some(entry) if known => entry.open = false,
            _ => drop(state.partials.remove(&key)),
        }
    }
    reserved.map(|()| promised)
}

/// Removes the longest abandoned partial blobs beyond the bound.
pub(super) fn make_way(shared: &Shared) -> Result<(), StoreError> {
    make_way_among(shared, &lock(&shared.files))
}

/// The same for whoever has the files locked.
pub(super) fn make_way_among(shared: &Shared, _files: &MutexGuard<'_, ()>) -> Result<(), StoreError> {
    let victims: Vec<PartialKey> = {
        let mut state = lock(&shared.state);
        let mut abandoned: Vec<_> = state
            .partials
            .iter()
            .filter(|(key, entry)| state.may_go(key, entry))
            .map(|(key, entry)| (entry.closed, *key))
            .collect();
        let open = state.partials.values().filter(|entry| entry.open).count();
        let excess = (open + abandoned.len()).saturating_sub(MAX_PARTIALS);
        if abandoned.len() < excess {
            return Err(StoreError::TooManyPartials(MAX_PARTIALS));
        }
        abandoned.sort_unstable();
        abandoned.truncate(excess);
        for (_, key) in &abandoned {
            if let Some(entry) = state.partials.remove(key) {
                state.used = state.used.saturating_sub(entry.charge);
            }
        }
        abandoned.into_iter().map(|(_, key)| key).collect()
    };
    victims.into_iter().try_for_each(|key| shared.evict(&Victim::Partial(key)))
}

/// Undoes [`claim`] if a partial blob cannot be opened after all.
struct Claim<'a> {
    shared: &'a Shared,
    key: PartialKey,
    /// What [`claim`] reserved, in bytes.
    promised: u64,
    kept: bool,
}

impl Claim<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.shared.unwritten.fetch_sub(self.promised, Ordering::Relaxed);
        // What was there stays: the cause may pass, and hours of a thin link may lie in it.
        if let Some(entry) = lock(&self.shared.state).partials.get_mut(&self.key) {
            entry.open = false;
        }
    }
}

fn open_file(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| StoreError::io("open", path, error))
}

/// Bytes of the chunks of a partial blob that have a record; none of them is hashed.
pub(super) fn recorded_bytes(shared: &Shared, digest: &Digest, map: ChunkMap) -> io::Result<u64> {
    let file = File::open(shared.layout.links(digest, map.size()))?;
    let table = recorded(&file, *digest, map)?;
    let here = map.iter().filter(|index| table.get(*index).is_some());
    Ok(here.map(|index| u64::from(map.len(index))).sum())
}

pub(super) fn recorded(file: &File, digest: Digest, map: ChunkMap) -> io::Result<LinkTable> {
    let algorithm = digest.algorithm();
    let mut bytes = Vec::new();
    file.take(links::table_len(algorithm, map)).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        Ok(LinkTable::empty(algorithm, map))
    } else {
        Ok(LinkTable::from_bytes(algorithm, map, bytes))
    }
}

/// Hashes every chunk that has a record: those whose records do not hold, or whose bytes the disk does not give.
fn relink(data: &File, map: ChunkMap, table: &LinkTable) -> io::Result<Vec<ChunkIndex>> {
    let recorded: Vec<ChunkIndex> = map.iter().filter(|index| table.get(*index).is_some()).collect();
    if recorded.is_empty() {
        return Ok(Vec::new());
    }
    let next = AtomicU32::new(0);
    let work = || -> io::Result<Vec<ChunkIndex>> {
        let mut wrong = Vec::new();
        let mut buffer = vec![0; map.chunk_len() as usize];
        while let Some(&index) = recorded.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let bytes = &mut buffer[..map.len(index) as usize];
            match data.read_exact_at(bytes, map.offset(index)) {
                Err(error) if is_unreadable(&error) => {
                    wrong.push(index);
                    continue;
                }
                read => read?,
            }
            let holds = |found: &Link| link(&map, index, found.from, bytes).is_ok_and(|link| link == *found);
            if !table.get(index).as_ref().is_some_and(holds) {
                wrong.push(index);
            }
        }
        Ok(wrong)
    };
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(RELINK_THREADS)
        .min(recorded.len().div_ceil(16));
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut wrong = work()?;
        for other in others {
            wrong.extend(other.join().map_err(|_| io::Error::other("a hashing thread panicked"))??);
        }
        Ok(wrong)
    })
}

/// Whether an error of reading a place of a file means that the bytes there are lost.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
