//! A blob that is written from start to end by somebody who has not said how long it is.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use wherry_proto::{Algorithm, ChainBuilder, Digest, OpenChain, StateChain};

use super::blob::Claim;
use super::shared::{Shared, Unwritten, blob_charge};
use super::{Store, StoreError, files};

/// In what steps the space for it is reserved, in bytes: as much again as it has, between these. What it has of it beyond what
/// it needs is lost to others meanwhile.
const LEAST_STEP: u64 = 64 << 10;
const MOST_STEP: u64 = 8 << 20;

/// How much is read at once where it has to be hashed anew, in bytes.
const READ: usize = 1 << 20;

/// A blob whose bytes come in order and whose length is known at its end. Dropped before [`Upload::finish`], nothing of it
/// stays.
pub struct Upload {
    store: Store,
    path: PathBuf,
    file: File,
    chain: OpenChain,
    algorithm: Algorithm,
    reserved: Vec<Unwritten>,
    charge: u64,
}

impl Upload {
    pub(super) fn new(store: Store, algorithm: Algorithm) -> Result<Self, StoreError> {
        let shared = Arc::clone(&store.shared);
        // The store's clock gives no number twice while it is open, and the folder is emptied before.
        let path = shared.layout.staging().join(shared.tick().to_string());
        let file = files::create(&path)?;
        let chain = OpenChain::new(algorithm);
        Ok(Self { store, path, file, chain, algorithm, reserved: Vec::new(), charge: 0 })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.store.shared
    }

    /// How many bytes have come.
    pub const fn len(&self) -> u64 {
        self.chain.taken()
    }

    /// Whether none have.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next bytes, for which others may have to make room. After an error it is of no use any more: it is not
    /// known what of them is on the disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let len = bytes.len() as u64;
        while self.charge < self.len() + len {
            let step = self.charge.clamp(LEAST_STEP, MOST_STEP);
            self.shared().reserve(step, step)?;
            let unwritten = Unwritten::new(self.shared(), step);
            self.reserved.push(unwritten);
            self.charge += step;
        }
        self.chain.update(bytes)?;
        self.file
            .write_all(bytes)
            .map_err(|error| self.shared().io_error("write", &self.path, len, error))?;
        self.note_written(len);
        Ok(())
    }

    /// Of what was reserved so much is on the disk.
    fn note_written(&mut self, mut len: u64) {
        while let Some(step) = self.reserved.first()
            && len > 0
        {
            len -= step.wrote(len);
            if step.is_written() {
                self.reserved.remove(0);
            }
        }
    }

    /// Makes it a held blob, if it has the digest that is expected, of whatever algorithm. It stays while the claim lives.
    pub fn finish(mut self, expected: &Digest) -> Result<Claim, StoreError> {
        let chain = std::mem::replace(&mut self.chain, OpenChain::new(self.algorithm)).finish();
        let chain = match expected.algorithm() == self.algorithm {
            true => chain,
            false => self.chain_by(expected.algorithm(), &chain)?,
        };
        if chain.digest() != *expected {
            let (expected, found) = (Box::new(*expected), Box::new(chain.digest()));
            return Err(StoreError::WrongDigest { expected, found });
        }
        let exact = blob_charge(expected.algorithm(), chain.map());
        if let Some(more) = exact.checked_sub(self.charge) {
            self.shared().reserve(more, 0)?;
            self.charge += more;
        }
        let (blob, _) = self.shared().adopt(&self.path, &self.file, &chain, self.charge)?;
        self.charge = 0;
        self.path = PathBuf::new();
        Ok(blob.claimed())
    }

    /// Its chain by another hash than that by which it was written.
    fn chain_by(&self, algorithm: Algorithm, known: &StateChain) -> Result<StateChain, StoreError> {
        let failed = |error| StoreError::io("read", &self.path, error);
        let mut file = File::open(&self.path).map_err(failed)?;
        let mut builder = ChainBuilder::new(algorithm, known.map());
        let mut buffer = vec![0; READ];
        let wrong = |error: wherry_proto::WrongSize| StoreError::WrongLength {
            announced: error.announced,
            found: error.found,
        };
        loop {
            let read = file.read(&mut buffer).map_err(failed)?;
            if read == 0 {
                return builder.finish().map_err(wrong);
            }
            builder.update(&buffer[..read]).map_err(wrong)?;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = files::remove(&self.path) {
            tracing::warn!(%error, "an unfinished upload could not be removed");
        }
        self.shared().give_back(self.charge);
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "upload, {} bytes so far", self.len())
    }
}
