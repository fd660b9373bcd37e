//! What is left of blobs that were damaged here, for others: nobody fetches them at the moment.
//!
//! Only what is beyond doubt is given: chunks that link to the chain of a blob that was verified here. What is left of a
//! transfer that was broken off is not, since it may lead to another digest.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};
use wherry_proto::{Attempt, Certificate, ChunkIndex, ChunkSet, Digest, NodeId, Role, StreamClaim};

use super::Transfers;
use crate::status::Metrics;
use crate::store::Store;
use crate::swarm::{Arriving, ReadAt};

/// How many damaged blobs are given from at a time; each has a file open.
pub const MAX_RESTS: usize = 64;

/// The right chunks of one damaged blob, hashed since it was found so.
pub struct Rest {
    digest: Digest,
    here: ChunkSet,
    file: File,
    store: Store,
    metrics: Metrics,
    changes: watch::Sender<u64>,
}

impl Rest {
    /// The blob's length in bytes.
    pub fn size(&self) -> u64 {
        self.here.map().size()
    }

    /// Neither whole again, nor gone, nor being filled.
    fn is_there(&self) -> bool {
        self.store.remains(&self.digest) == Some(self.size())
    }
}

impl ReadAt for Rest {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        ReadAt::read_exact_at(&self.file, buf, offset)?;
        self.metrics.to_peers.inc_by(buf.len() as u64);
        Ok(())
    }

    fn is_sound(&self) -> bool {
        self.is_there()
    }
}

impl Arriving for Rest {
    fn has(&self, index: ChunkIndex) -> bool {
        self.here.contains(index) && self.is_there()
    }

    fn here(&self) -> ChunkSet {
        self.here.clone()
    }

    fn common(&self) -> ChunkSet {
        ChunkSet::empty(self.here.map())
    }

    fn role(&self) -> Role {
        match self.is_there() {
            true => Role::Following { stream: None, known: 0, may_lead: false },
            false => Role::Gone,
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn states(&self, _: &Attempt, _: u32) -> Option<(StreamClaim, Certificate, Vec<u8>)> {
        None
    }

    fn followed(&self, _: NodeId) {}
}

/// Those of a node.
pub(super) struct Rests {
    // `None` while it is being hashed.
    known: Mutex<HashMap<Digest, Option<Arc<Rest>>>>,
    // One is hashed at a time.
    turn: Semaphore,
}

impl Default for Rests {
    fn default() -> Self {
        Self { known: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl Rests {
    fn known(&self) -> MutexGuard<'_, HashMap<Digest, Option<Arc<Rest>>>> {
        // The map is whole between any two of its changes.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A blob is fetched from now on: whoever follows what was left of it is told to begin anew.
    pub(super) fn end(&self, digest: &Digest) {
        if let Some(Some(rest)) = self.known().remove(digest) {
            rest.changes.send_modify(|count| *count += 1);
        }
    }
}

impl Transfers {
    /// What is left of a damaged blob that nobody fetches now. If it has not been hashed yet that begins, and there is
    /// nothing to be had before it is done. Must run inside a runtime.
    pub fn rest(&self, digest: &Digest) -> Option<Arc<Rest>> {
        // In memory, and mostly the end of it.
        let size = self.0.store.remains(digest)?;
        let mut known = self.0.rests.known();
        match known.get(digest) {
            Some(Some(rest)) if rest.size() == size => return Some(rest.clone()),
            Some(None) => return None,
            _ => {}
        }
        known.retain(|_, rest| rest.as_ref().is_none_or(|rest| rest.is_there()));
        if known.len() < MAX_RESTS && !self.0.stop.is_cancelled() {
            known.insert(*digest, None);
            let (parts, digest) = (self.clone(), *digest);
            self.0.tasks.spawn(async move { parts.hash_rest(digest).await });
        }
        None
    }

    async fn hash_rest(self, digest: Digest) {
        let parts = &self.0;
        // Nobody closes it.
        let _turn = parts.rests.turn.acquire().await;
        let store = parts.store.clone();
        let opened = tokio::task::spawn_blocking(move || store.open_remains(&digest)).await;
        let rest = match opened {
            Ok(Ok(Some((file, here)))) => {
                let (store, metrics) = (parts.store.clone(), parts.metrics.clone());
                let changes = watch::Sender::new(0);
                Some(Rest { digest, here, file, store, metrics, changes }).filter(Rest::is_there)
            }
            Ok(Err(error)) => {
                warn!(blob = %digest, %error, "what is left of a damaged blob cannot be read");
                None
            }
            Ok(Ok(None)) | Err(_) => None,
        };
        let mut known = parts.rests.known();
        match rest {
            Some(rest) => {
                debug!(blob = %digest.short(), chunks = rest.here.len(), "what is left of a damaged blob is given to others");
                known.insert(digest, Some(Arc::new(rest)));
            }
            None => drop(known.remove(&digest)),
        }
    }
}
