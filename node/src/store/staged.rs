//! A blob that is written from start to end, and hashed on the way.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use wherry_proto::{Algorithm, ChainBuilder, ChunkMap, Digest, StateChain};

use super::blob::StoredBlob;
use super::shared::{Unwritten, blob_charge};
use super::{Store, StoreError, files};

/// A blob whose bytes come in order. Dropped before [`Staged::finish`], nothing of it stays.
pub struct Staged {
    store: Store,
    path: PathBuf,
    file: File,
    algorithm: Algorithm,
    map: ChunkMap,
    builder: ChainBuilder,
    unwritten: Unwritten,
    charge: Option<u64>,
    written: u64,
}

impl Staged {
    pub(super) fn new(store: Store, algorithm: Algorithm, size: u64) -> Result<Self, StoreError> {
        let map = ChunkMap::new(size)?;
        let shared = Arc::clone(&store.shared);
        let charge = blob_charge(algorithm, map);
        shared.reserve(charge, size)?;
        let unwritten = Unwritten::new(&shared, size);
        // The store's clock gives no number twice while it is open, and the folder is emptied before.
        let path = shared.layout.staging().join(shared.tick().to_string());
        match files::create(&path) {
            Ok(file) => {
                let builder = ChainBuilder::new(algorithm, map);
                Ok(Self {
                    store,
                    path,
                    file,
                    algorithm,
                    map,
                    builder,
                    unwritten,
                    charge: Some(charge),
                    written: 0,
                })
            }
            Err(error) => {
                shared.give_back(charge);
                Err(error)
            }
        }
    }

    /// The length that was announced.
    pub fn size(&self) -> u64 {
        self.map.size()
    }

    /// Takes the next bytes; more than were announced are an error.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.builder
            .update(bytes)
            .map_err(|error| StoreError::WrongLength { announced: error.announced, found: error.found })?;
        let len = bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| {
            self.store.shared.io_error("write", &self.path, self.map.size() - self.written, error)
        })?;
        self.written += len;
        self.unwritten.wrote(len);
        Ok(())
    }

    /// Makes it a held blob, if all announced bytes came and have the digest that is expected.
    pub fn finish(self, expected: Option<Digest>) -> Result<StoredBlob, StoreError> {
        self.finish_new(expected).map(|(blob, _)| blob)
    }

    /// The same; says also whether the blob was not held before.
    pub fn finish_new(mut self, expected: Option<Digest>) -> Result<(StoredBlob, bool), StoreError> {
        let map = self.map;
        let builder = std::mem::replace(&mut self.builder, ChainBuilder::new(self.algorithm, map));
        let chain: StateChain = builder
            .finish()
            .map_err(|error| StoreError::WrongLength { announced: error.announced, found: error.found })?;
        if let Some(expected) = expected
            && expected != chain.digest()
        {
            let (expected, found) = (Box::new(expected), Box::new(chain.digest()));
            return Err(StoreError::WrongDigest { expected, found });
        }
        let charge = self.charge.unwrap_or(0);
        let held = self.store.shared.adopt(&self.path, &self.file, &chain, charge)?;
        self.charge = None;
        Ok(held)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let Some(charge) = self.charge else { return };
        if let Err(error) = files::remove(&self.path) {
            tracing::warn!(%error, "an unfinished blob could not be removed");
        }
        self.store.shared.give_back(charge);
    }
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "staged, {} of {} bytes", self.written, self.map.size())
    }
}
