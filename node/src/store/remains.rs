//! What is left of a blob that was damaged here, while nobody fills it: for others, chunk by chunk.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::watch;
use wherry_proto::{ChunkIndex, ChunkMap, ChunkSet, Digest, link};

use super::links;
use super::partial::{is_unreadable, recorded};
use super::shared::{Shared, lock};

/// What an abandoned partial blob has for others. When it is opened or leaves, so does this.
#[derive(Debug, Default)]
pub(super) enum Left {
    /// Nobody has asked yet.
    #[default]
    Unread,
    /// Its records do not form the chain of the blob, or cannot be read.
    Nothing,
    Known(Arc<Remains>),
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Self::Known(remains) = self {
            remains.over.store(true, Ordering::Release);
            remains.changed();
        }
    }
}

/// The chunks of a damaged blob that have a link of its chain, which all of them had when it was verified here.
///
/// Any of them may have rotted as well: each is hashed when it is read. Nothing is open meanwhile.
#[derive(Debug)]
pub struct Remains {
    shared: Weak<Shared>,
    digest: Digest,
    map: ChunkMap,
    here: Mutex<ChunkSet>,
    over: AtomicBool,
    changes: watch::Sender<u64>,
}

impl Remains {
    pub(super) fn find(shared: &Arc<Shared>, digest: &Digest) -> Option<Arc<Self>> {
        // Before its files are somebody else's, that one waits for this lock.
        let _files = lock(&shared.files);
        let size = {
            let state = lock(&shared.state);
            let size = *state.damaged.get(digest)?;
            match state.partials.get(&(*digest, size)).filter(|partial| !partial.open)?.left {
                Left::Known(ref remains) => return Some(Arc::clone(remains)),
                Left::Nothing => return None,
                Left::Unread => size,
            }
        };
        let found = Self::read_records(shared, digest, size).unwrap_or_else(|error| {
            tracing::warn!(%digest, %error, "what is left of a damaged blob cannot be read");
            None
        });
        let mut state = lock(&shared.state);
        let entry = state.partials.get_mut(&(*digest, size)).filter(|partial| !partial.open)?;
        entry.left = found.clone().map_or(Left::Nothing, Left::Known);
        found
    }

    fn read_records(shared: &Arc<Shared>, digest: &Digest, size: u64) -> io::Result<Option<Arc<Self>>> {
        let map = ChunkMap::new(size).map_err(io::Error::other)?;
        let mut table = recorded(&File::open(shared.layout.links(digest, size))?, *digest, map)?;
        table.was_verified(*digest);
        if table.chain().is_none() {
            return Ok(None);
        }
        let mut here = ChunkSet::empty(map);
        for index in map.iter().filter(|index| table.get(*index).is_some()) {
            here.insert(index);
        }
        Ok(Some(Arc::new(Self {
            shared: Arc::downgrade(shared),
            digest: *digest,
            map,
            here: here.into(),
            over: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        })))
    }

    /// How the blob is cut.
    pub fn map(&self) -> ChunkMap {
        self.map
    }

    /// Whether this is still what is left: not once the blob is being filled, is whole again, or what was left has made
    /// room or was removed.
    pub fn is_there(&self) -> bool {
        !self.over.load(Ordering::Acquire)
    }

    /// The chunks that are here as far as it is known. It may only become less.
    pub fn here(&self) -> ChunkSet {
        lock(&self.here).clone()
    }

    /// Whether a chunk is among them.
    pub fn has(&self, index: ChunkIndex) -> bool {
        self.is_there() && lock(&self.here).contains(index)
    }

    /// Counts up when [`Remains::here`] or [`Remains::is_there`] change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Reads a chunk and hashes it; `buffer` has its length. One that is lost or does not link is an error, and is not here
    /// any more.
    pub fn read(&self, index: ChunkIndex, buffer: &mut [u8]) -> io::Result<()> {
        let shared = self.shared.upgrade().filter(|_| self.has(index)).ok_or(ErrorKind::NotFound)?;
        self.read_linked(&shared, index, buffer).inspect_err(|error| {
            let is_lost = matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound);
            if is_lost || is_unreadable(error) {
                self.forget(&shared, index);
            }
        })
    }

    fn read_linked(&self, shared: &Shared, index: ChunkIndex, buffer: &mut [u8]) -> io::Result<()> {
        let size = self.map.size();
        let records = File::open(shared.layout.links(&self.digest, size))?;
        let data = File::open(shared.layout.partial(&self.digest, size))?;
        data.read_exact_at(buffer, self.map.offset(index))?;
        match links::read(&records, self.digest.algorithm(), self.map, index)? {
            Some(known) if link(&self.map, index, known.from, buffer) == Ok(known) => Ok(()),
            _ => Err(io::Error::new(ErrorKind::InvalidData, "the chunk does not link")),
        }
    }

    fn forget(&self, shared: &Shared, index: ChunkIndex) {
        let _files = lock(&shared.files);
        // What was read may have been overwritten in that moment.
        if !self.is_there() {
            return;
        }
        tracing::warn!(blob = %self.digest, chunk = index.get(), "one more chunk of a damaged blob is lost");
        lock(&self.here).remove(index);
        self.changed();
        let records = shared.layout.links(&self.digest, self.map.size());
        let file = OpenOptions::new().write(true).open(records);
        if let Err(error) = file.and_then(|file| links::forget(&file, self.digest.algorithm(), index)) {
            tracing::warn!(blob = %self.digest, %error, "that a chunk is lost is not written down");
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}
