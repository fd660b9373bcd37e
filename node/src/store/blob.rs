//! A blob that the store holds.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Weak};

use wherry_proto::Digest;

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
            shared.lose(&self.digest, &error.to_string());
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

    /// All its bytes, if they are at most `limit`.
    pub fn read(&self, limit: u64) -> io::Result<Vec<u8>> {
        if self.entry.size > limit {
            let why = format!("{} has {} bytes, more than {limit}", self.digest, self.entry.size);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let mut bytes = Vec::with_capacity(self.entry.size as usize);
        self.open()?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl std::fmt::Debug for StoredBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} bytes", self.digest, self.entry.size)
    }
}
