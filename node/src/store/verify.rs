//! Held blobs compared with their digests and chains, and what is known of those that turned out damaged.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use wherry_proto::{ChunkIndex, ChunkMap, Digest, End, StateChain, link};

use super::remains::Left;
use super::shared::lock;
use super::{Remains, Store, StoreError, StoredBlob, files};

impl Store {
    /// The state chain of a held blob; `None` if it is not held. Reads a small file or, should that be damaged,
    /// hashes the blob again: a blob that then turns out damaged is no longer held.
    pub fn chain(&self, digest: &Digest) -> Result<Option<StateChain>, StoreError> {
        let Some(blob) = self.look(digest) else { return Ok(None) };
        if let Some(chain) = self.shared.read_chain(digest, blob.entry()) {
            return Ok(Some(chain));
        }
        tracing::info!(%digest, "a state chain is missing or damaged and is made anew");
        let Some(chain) = self.rehash(&blob)? else { return Ok(None) };
        self.shared.write_chain(&chain)?;
        Ok(Some(chain))
    }

    /// Hashes a held blob again. One that is damaged is no longer held, and the answer is `false`.
    pub fn verify(&self, digest: &Digest) -> Result<bool, StoreError> {
        // Nothing breaks it off.
        Ok(self.verify_while(digest, |_| ControlFlow::Continue(()))?.unwrap_or(true))
    }

    /// The same, telling `goes_on` of each piece how many bytes it had; `None` if that said to break off.
    pub fn verify_while(
        &self,
        digest: &Digest,
        goes_on: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Option<bool>, StoreError> {
        let blob = self.look(digest).ok_or(StoreError::NotHeld(*digest))?;
        let map = ChunkMap::new(blob.size())?;
        let Some(mut file) = self.open_held(&blob)? else {
            // One that has left in the meantime is not damaged.
            return if blob.is_lost() { Ok(Some(false)) } else { Err(StoreError::NotHeld(*digest)) };
        };
        let hashed = match files::hash_while(&mut file, digest.algorithm(), map, goes_on) {
            Err(error) if blob.failed(&error) => return Ok(Some(false)),
            hashed => {
                hashed.map_err(|error| StoreError::io("read", &self.shared.layout.blob(digest), error))?
            }
        };
        Ok(hashed.map(|chain| blob.judge(&chain.digest(), Some(&chain)).is_ok()))
    }

    /// Whether a chunk of a held blob still links as its chain says: reads that chunk alone. Nothing follows from it.
    pub fn links(&self, digest: &Digest, index: ChunkIndex) -> Result<bool, StoreError> {
        let blob = self.look(digest).ok_or(StoreError::NotHeld(*digest))?;
        let Some(chain) = self.chain(digest)? else { return Ok(false) };
        let map = chain.map();
        let mut bytes = vec![0; map.len(index) as usize];
        let read = blob.open().and_then(|file| file.read_exact_at(&mut bytes, map.offset(index)));
        match read {
            Err(error) if blob.failed(&error) => return Ok(false),
            read => read.map_err(|error| StoreError::io("read", &self.shared.layout.blob(digest), error))?,
        }
        let Ok(link) = link(&map, index, chain.from(index), &bytes) else { return Ok(false) };
        Ok(match (link.to, map.next(index)) {
            (End::State(state), Some(next)) => state == chain.from(next),
            (End::Digest(reached), None) => reached == *digest,
            _ => false,
        })
    }

    /// Whether a blob was held until it was found damaged, and is not whole again.
    pub fn is_damaged(&self, digest: &Digest) -> bool {
        lock(&self.shared.state).damaged.contains_key(digest)
    }

    /// Whether a blob is held, or was until it was found damaged: what is damaged may be whole again.
    pub fn is_known(&self, digest: &Digest) -> bool {
        let state = lock(&self.shared.state);
        state.blobs.contains_key(digest) || state.damaged.contains_key(digest)
    }

    /// The length of a damaged blob while some of it is here and nobody fills it.
    pub fn remains(&self, digest: &Digest) -> Option<u64> {
        let state = lock(&self.shared.state);
        let size = *state.damaged.get(digest)?;
        let partial = state.partials.get(&(*digest, size)).filter(|partial| !partial.open)?;
        (!matches!(partial.left, Left::Nothing)).then_some(size)
    }

    /// What remains of such a blob. Reads its records when it is first asked for, and hashes nothing.
    pub fn open_remains(&self, digest: &Digest) -> Option<Arc<Remains>> {
        self.remains(digest)?;
        Remains::find(&self.shared, digest)
    }

    /// All damaged blobs with their lengths, in no order: a snapshot.
    pub fn damaged(&self) -> HashMap<Digest, u64> {
        lock(&self.shared.state).damaged.clone()
    }

    /// A blob's file; `None` if that is missing or has another length, so that the blob is no longer held.
    fn open_held(&self, blob: &StoredBlob) -> Result<Option<File>, StoreError> {
        match blob.open() {
            Ok(file) => Ok(Some(file)),
            Err(error) if blob.is_lost() || error.kind() == ErrorKind::NotFound => Ok(None),
            // That it could not be opened, as with too many files open, says nothing of its bytes.
            Err(error) => Err(StoreError::io("open", &self.shared.layout.blob(&blob.digest()), error)),
        }
    }

    fn rehash(&self, blob: &StoredBlob) -> Result<Option<StateChain>, StoreError> {
        let digest = blob.digest();
        let map = ChunkMap::new(blob.size())?;
        let Some(mut file) = self.open_held(blob)? else { return Ok(None) };
        let chain = files::hash(&mut file, digest.algorithm(), map)
            .map_err(|error| StoreError::io("read", &self.shared.layout.blob(&digest), error))?;
        Ok(blob.judge(&chain.digest(), Some(&chain)).is_ok().then_some(chain))
    }
}
