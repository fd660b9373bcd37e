//! A blob that the store holds.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use wherry_proto::{ChainBuilder, ChunkMap, Digest, StateChain};

use super::shared::{Entry, Shared};

/// A verified blob. While this or a clone of it lives the blob is not evicted, so keep it while its bytes are
/// being read.
#[derive(Clone)]
pub struct StoredBlob {
    digest: Digest,
    entry: Arc<Entry>,
    shared: Weak<Shared>,
}

impl StoredBlob {
    pub(super) fn new(digest: Digest, entry: Arc<Entry>, shared: &Arc<Shared>) -> Self {
        Self { digest, entry, shared: Arc::downgrade(shared) }
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.entry.size
    }

    /// Whether its file is there. Reads the disk.
    pub fn has_file(&self) -> bool {
        let shared = self.shared.upgrade();
        shared.is_none_or(|shared| !matches!(shared.layout.blob(&self.digest).try_exists(), Ok(false)))
    }

    /// When its file was written, in seconds since the Unix epoch, if the disk tells. Reads the disk.
    pub fn since(&self) -> Option<u64> {
        let path = self.shared.upgrade()?.layout.blob(&self.digest);
        let written = std::fs::metadata(path).and_then(|file| file.modified()).ok()?;
        written.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
    }

    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Opens it for reading. A file that is missing or has another length is an error, and the blob is then no
    /// longer held. Blocks for as long as the disk needs to open a file.
    pub fn open(&self) -> io::Result<File> {
        let Some(shared) = self.shared.upgrade() else {
            return Err(io::Error::other("the store was closed"));
        };
        let path = shared.layout.blob(&self.digest);
        let damaged = |error: io::Error| {
            self.lose(&error.to_string(), None);
            error
        };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged(error)),
            other => other?,
        };
        let len = file.metadata()?.len();
        if len == self.entry.size {
            return Ok(file);
        }
        let why = format!("{} has {len} bytes, not {}", path.display(), self.entry.size);
        Err(damaged(io::Error::new(io::ErrorKind::InvalidData, why)))
    }

    /// All its bytes, if they are at most `limit`. They are hashed: bytes that have another digest are an error, and the
    /// blob is then no longer held.
    pub fn read(&self, limit: u64) -> io::Result<Vec<u8>> {
        if self.entry.size > limit {
            let why = format!("{} has {} bytes, more than {limit}", self.digest, self.entry.size);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let mut bytes = Vec::with_capacity(self.entry.size as usize);
        self.open()?.take(limit).read_to_end(&mut bytes)?;
        self.judge(&Digest::of(self.digest.algorithm(), &bytes), None)?;
        Ok(bytes)
    }

    /// Its bytes in order, hashed as they are read: in place of the last of them comes an error if they have another
    /// digest, and the blob is then no longer held.
    pub fn checked_reader(&self) -> io::Result<impl Read + use<>> {
        let map = ChunkMap::new(self.entry.size).map_err(io::Error::other)?;
        let file = self.open()?;
        let builder = Some(ChainBuilder::new(self.digest.algorithm(), map));
        Ok(Checked { blob: self.clone(), file, builder, left: self.entry.size })
    }

    /// Whether it turned out to be missing or damaged since this was given out.
    pub fn is_lost(&self) -> bool {
        self.entry.is_lost()
    }

    /// When its bytes were last found to have its digest; `None` while they were not since the start.
    pub fn checked(&self) -> Option<Instant> {
        self.entry.checked()
    }

    /// Takes in which digest its bytes were found to have and, where all of them were chained, which chain.
    pub(super) fn judge(&self, found: &Digest, chain: Option<&StateChain>) -> io::Result<()> {
        if *found == self.digest {
            self.entry.note_checked();
            return Ok(());
        }
        let why = format!("the bytes on the disk have the digest {found}");
        self.lose(&why, chain);
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// Whether that its file could not be read means that its bytes are not there; then it is no longer held.
    pub(super) fn failed(&self, error: &io::Error) -> bool {
        let is_gone = error.kind() == io::ErrorKind::InvalidData
            || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
        if is_gone {
            self.lose(&error.to_string(), None);
        }
        is_gone
    }

    /// Claims it. The store's state is locked, and it is what the state has under its digest.
    pub(super) fn claimed(self) -> Claim {
        self.entry.claims.fetch_add(1, Ordering::AcqRel);
        Claim(self)
    }

    fn lose(&self, why: &str, found: Option<&StateChain>) {
        if let Some(shared) = self.shared.upgrade() {
            shared.lose_this(&self.digest, &self.entry, why, found);
        }
    }
}

/// That somebody counts on a blob who cannot name it yet, as an import does and a pull. While it lives the blob is neither
/// evicted nor removed.
#[derive(Debug)]
pub struct Claim(StoredBlob);

impl Deref for Claim {
    type Target = StoredBlob;

    fn deref(&self) -> &StoredBlob {
        &self.0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.entry.claims.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Hashes what is read of a blob.
struct Checked {
    blob: StoredBlob,
    file: File,
    builder: Option<ChainBuilder>,
    left: u64,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        let read = self.file.read(&mut buffer[..most]).inspect_err(|error| {
            self.blob.failed(error);
        })?;
        let wrong = |error: wherry_proto::WrongSize| io::Error::new(io::ErrorKind::InvalidData, error);
        if let Some(builder) = &mut self.builder {
            builder.update(&buffer[..read]).map_err(wrong)?;
        }
        self.left -= read as u64;
        if self.left == 0
            && let Some(builder) = self.builder.take()
        {
            let chain = builder.finish().map_err(wrong)?;
            self.blob.judge(&chain.digest(), Some(&chain))?;
        }
        Ok(read)
    }
}

impl std::fmt::Debug for StoredBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} bytes", self.digest, self.entry.size)
    }
}
