//! What this node gives to others: what its store holds and what it knows of names.

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::timeout;
use wherry_gateway::{Host, Repository};
use wherry_proto::{
    BlobName, Digest, Lead, LeadRefusal, NodeId, PreloadRefusal, Preloading, Resolution, StateChain,
    TagRecord, WanWord, WantedImage,
};

use super::bring::Preloads;
use super::care::Care;
use crate::images::Images;
use crate::limits::Limits;
use crate::status::Metrics;
use crate::store::{Store, StoredBlob};
use crate::swarm::{Arriving, Client, Holdings, LinkClass, ReadAt};
use crate::transfer::{Fetched, Rest, Route, TransferError, Transfers};

/// How long a transfer may take to know whether this node leads, may lead or follows somebody who does, before others are
/// told that it cannot: a search of the site comes before. Shorter than [`LEAD_TIME`](crate::swarm::LEAD_TIME) by what
/// asking the origin takes.
const PROMISE_TIME: Duration = Duration::from_secs(2);

/// The shelf that other nodes are served from.
pub(super) struct Shelf {
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    // Transfers run, and names are known, once the swarm runs, which is asked about both itself.
    pub(super) transfers: OnceLock<Transfers>,
    pub(super) images: OnceLock<Images>,
    pub(super) preloads: OnceLock<Preloads>,
    pub(super) swarm: OnceLock<Client>,
    pub(super) limits: Limits,
    pub(super) care: Care,
}

struct Counted {
    file: File,
    metrics: Metrics,
    // Keeps the blob from being evicted while it is read.
    blob: StoredBlob,
}

impl ReadAt for Counted {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)?;
        self.metrics.to_peers.inc_by(buf.len() as u64);
        Ok(())
    }

    fn is_sound(&self) -> bool {
        !self.blob.is_lost()
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> bool {
        let read = self.file.read_cached_at(buf, offset);
        if read {
            self.metrics.to_peers.inc_by(buf.len() as u64);
        }
        read
    }
}

impl Shelf {
    /// How cheaply a peer is reached; unknown of one that is not connected any more.
    fn class(&self, node: &NodeId) -> Option<LinkClass> {
        self.swarm.get()?.class(node)
    }

    fn is_dear(&self, node: &NodeId) -> bool {
        // Connections that carry chunks may outlive the one that tells the class.
        self.class(node) != Some(LinkClass::Lan)
    }

    /// Fetches a blob for a node that cannot, as far as [`Images::may_read_for_others`] allows. A blob that is on its way
    /// here already is promised only by one that it can come to: two nodes without a route that each wait for the other
    /// would wait for ever.
    async fn lead_from(
        &self,
        BlobName { digest, size }: BlobName,
        route: Route,
    ) -> Result<Lead, LeadRefusal> {
        let (Some(transfers), Some(images)) = (self.transfers.get(), self.images.get()) else {
            return Err(LeadRefusal::NoRoute);
        };
        if self.store.get(&digest).is_some_and(|held| held.size() == size) {
            return Ok(Lead::Have);
        }
        if self.limits.limited().is_some() {
            return Err(LeadRefusal::Budget);
        }
        let transfer = match transfers.get(digest, size) {
            Some(transfer) => transfer,
            None => {
                images.may_read_for_others(&route, digest, size).await?;
                match transfers.fetch(digest, size, Some(route)).await {
                    Ok(Fetched::Stored(_)) => return Ok(Lead::Have),
                    Ok(Fetched::Arriving(transfer)) => transfer,
                    Err(TransferError::Store(_)) => return Err(LeadRefusal::NoSpace),
                    Err(_) => return Err(LeadRefusal::NoRoute),
                }
            }
        };
        // It says so itself once it runs, which it may have to wait for.
        match timeout(PROMISE_TIME, transfer.promises()).await {
            Ok(()) => Ok(Lead::Leading),
            Err(_) => Err(LeadRefusal::NoRoute),
        }
    }
}

impl Holdings for Shelf {
    fn held(&self, digest: &Digest) -> Option<u64> {
        self.store.get(digest).map(|blob| blob.size())
    }

    fn chain(&self, digest: &Digest) -> Option<StateChain> {
        match self.store.chain(digest) {
            Ok(chain) => chain,
            Err(error) => {
                tracing::warn!(%digest, %error, "a chain cannot be read from the index");
                None
            }
        }
    }

    fn open(&self, digest: &Digest) -> io::Result<Option<Arc<dyn ReadAt>>> {
        let Some(blob) = self.store.get(digest) else { return Ok(None) };
        let counted = Counted { file: blob.open()?, metrics: self.metrics.clone(), blob };
        Ok(Some(Arc::new(counted)))
    }

    fn doubted(&self, by: NodeId, blob: BlobName, index: u32) {
        self.care.doubted(&self.store, by, blob, index);
    }

    fn arriving(&self, blob: &BlobName) -> Option<Arc<dyn Arriving>> {
        let transfers = self.transfers.get()?;
        if let Some(transfer) = transfers.get(blob.digest, blob.size) {
            return Some(transfer);
        }
        let rest = Rest::find(&self.store, &self.metrics, &blob.digest)?;
        if rest.size() == blob.size { Some(Arc::new(rest)) } else { None }
    }

    fn arriving_size(&self, digest: &Digest) -> Option<u64> {
        let transfers = self.transfers.get()?;
        transfers.arriving_size(digest).or_else(|| self.store.remains(digest))
    }

    fn lead<'a>(
        &'a self,
        asker: NodeId,
        blob: BlobName,
        origin: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Lead> {
        async move {
            let (Ok(host), Ok(repository)) = (origin.parse::<Host>(), repository.parse::<Repository>())
            else {
                return Lead::Refuse(LeadRefusal::NoRoute);
            };
            let route = Route { host, repository };
            let lead = self.lead_from(blob, route.clone()).await.unwrap_or_else(Lead::Refuse);
            tracing::debug!(peer = %asker, blob = %blob.digest.short(), %route, ?lead, "asked to lead");
            lead
        }
        .boxed()
    }

    fn resolve<'a>(&'a self, asker: NodeId, reference: &'a str) -> BoxFuture<'a, Option<Resolution>> {
        async move {
            let Resolution { record, manifest } =
                self.images.get()?.resolve_for(&reference.parse().ok()?).await?;
            // What leaves the site is held to its rate, which answers to questions are not.
            let manifest = manifest.filter(|_| self.class(&asker) == Some(LinkClass::Lan));
            Some(Resolution { record, manifest })
        }
        .boxed()
    }

    fn told(&self, bytes: usize) {
        self.metrics.to_peers.inc_by(bytes as u64);
    }

    fn gives_to(&self, node: &NodeId) -> bool {
        !self.is_dear(node) || self.limits.gives()
    }

    fn gives_no_more<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()> {
        async move {
            let mut giving = self.limits.giving();
            // What a peer is to this node may change while it follows. The sender lives as long as the limits do.
            while self.gives_to(node) && giving.changed().await.is_ok() {}
        }
        .boxed()
    }

    fn leaves<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, ()> {
        self.store.leaves(digest).boxed()
    }

    fn until_giving(&self, node: &NodeId) -> Duration {
        if self.is_dear(node) { self.limits.until_giving() } else { Duration::ZERO }
    }

    fn gave(&self, node: &NodeId, bytes: u32) {
        if self.is_dear(node) {
            self.limits.gave(bytes.into());
        }
    }

    fn wan(&self, asker: NodeId, word: &WanWord) -> Option<WanWord> {
        if self.class(&asker) != Some(LinkClass::Lan) {
            return None;
        }
        self.limits.hear(asker, word);
        Some(self.limits.word())
    }

    fn moved(&self, asker: NodeId, record: &TagRecord) -> bool {
        let Some(images) = self.images.get().filter(|_| self.class(&asker) == Some(LinkClass::Lan)) else {
            return false;
        };
        images.told(&asker, record).unwrap_or_else(|error| {
            tracing::warn!(peer = %asker, reference = %record.reference, %error, "what a tag means is not taken in");
            false
        })
    }

    fn preload(&self, asker: NodeId, image: &WantedImage) -> Result<(), PreloadRefusal> {
        self.preloads.get().ok_or(PreloadRefusal::Stopping)?.begin(&asker, image)
    }

    fn preloading(&self, image: &WantedImage) -> Option<Preloading> {
        self.preloads.get()?.look(image)
    }

    fn tag(&self, reference: &str) -> Option<TagRecord> {
        self.images.get()?.vouch(&reference.parse().ok()?)
    }

    fn tags(&self, origin: &str, repository: &str, after: Option<&str>, most: usize) -> Vec<String> {
        let (Some(images), Ok(origin), Ok(repository)) =
            (self.images.get(), origin.parse(), repository.parse())
        else {
            return Vec::new();
        };
        images.records().tags(&origin, &repository, after, most).unwrap_or_else(|error| {
            tracing::warn!(%error, "the tags cannot be read from the index");
            Vec::new()
        })
    }
}
