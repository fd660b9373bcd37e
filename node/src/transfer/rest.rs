//! What is left of blobs that were damaged here, for others: nobody fetches them at the moment.
//!
//! Only what is beyond doubt is given: chunks that link to the chain of a blob that was verified here, each hashed right
//! before. What is left of a transfer that was broken off is not, since it may lead to another digest.

use std::io;
use std::sync::Arc;

use tokio::sync::watch;
use wherry_proto::{Attempt, Certificate, ChunkIndex, ChunkSet, Digest, NodeId, Role, StreamClaim};

use crate::status::Metrics;
use crate::store::{Remains, Store};
use crate::swarm::{Arriving, ReadAt};

/// What is left of one damaged blob.
pub struct Rest {
    remains: Arc<Remains>,
    metrics: Metrics,
}

impl Rest {
    /// That of a blob which nobody fetches now. May block.
    pub fn find(store: &Store, metrics: &Metrics, digest: &Digest) -> Option<Self> {
        Some(Self { remains: store.open_remains(digest)?, metrics: metrics.clone() })
    }

    /// The blob's length in bytes.
    pub fn size(&self) -> u64 {
        self.remains.map().size()
    }
}

impl ReadAt for Rest {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let map = self.remains.map();
        let is_whole =
            |index: &ChunkIndex| map.offset(*index) == offset && map.len(*index) as usize == buf.len();
        // Less than a chunk cannot be hashed.
        let index = map.at(offset).filter(is_whole).ok_or(io::ErrorKind::InvalidInput)?;
        self.remains.read(index, buf)?;
        self.metrics.to_peers.inc_by(buf.len() as u64);
        Ok(())
    }

    fn is_sound(&self) -> bool {
        self.remains.is_there()
    }
}

impl Arriving for Rest {
    fn has(&self, index: ChunkIndex) -> bool {
        self.remains.has(index)
    }

    fn here(&self) -> ChunkSet {
        self.remains.here()
    }

    fn first_hand(&self) -> ChunkSet {
        self.here()
    }

    fn no_news_to(&self, _follower: &NodeId) -> ChunkSet {
        ChunkSet::empty(self.remains.map())
    }

    fn role(&self) -> Role {
        match self.remains.is_there() {
            true => Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false },
            false => Role::Gone,
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.remains.changes()
    }

    fn states(&self, _: &Attempt, _: u32) -> Option<(StreamClaim, Certificate, Vec<u8>)> {
        None
    }

    fn followed(&self, _: NodeId) {}

    fn may_fail(&self) -> bool {
        true
    }
}
