//! A reference becomes a manifest, a manifest becomes blobs; tags, repositories, and what belongs to which.
//!
//! A digest is answered from wherever it is, a tag by the policy `origin-first`: the origin is asked at most once
//! per `tag_ttl` and site, and the newest answer that the site knows serves while the origin is out of reach.

mod content;
mod error;
pub mod inspect;
mod list;
mod pull;
mod records;
mod site;
mod tags;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use tracing::debug;
use wherry_gateway::manifest::MAX_MANIFEST;
use wherry_gateway::origin::{OriginError, Origins};
use wherry_gateway::server::Source;
use wherry_gateway::{Host, Manifest, Reference, Repository, TagOrDigest};
use wherry_proto::{Certificate, Digest, SecretKey, TagRecord};

use crate::status::Metrics;
use crate::store::Store;
use crate::transfer::{Fetched, Peers, Route, Transfers};
use crate::turns::Turns;

pub use content::BlobHandle;
pub use error::ImageError;
pub use list::LocalImage;
pub use pull::{PARALLEL, PullEvents, Pulled, choose, this_platform};
pub use records::{Grant, MAX_IMAGES, MAX_TAGS, Records, TagEntry};

/// How long an origin that was out of reach is not asked again about tags of which the site knows an answer.
const DOWN_FOR: Duration = Duration::from_secs(15);

/// How long peers may take to give a manifest before an origin is asked: clients give up after 10 s.
const PEERS_PATIENCE: Duration = Duration::from_secs(4);

/// How many origins are remembered as out of reach.
const MAX_DOWN: usize = 256;

/// The other nodes of the site, as far as names go.
pub trait Site: Send + Sync + 'static {
    /// What neighbours say of a reference, be it a tag or a digest. Each record is about this very reference and
    /// signed by a member that may resolve. Waits for a short time that is the implementor's.
    fn records(&self, reference: &Reference) -> BoxFuture<'_, Vec<TagRecord>>;
}

/// What this room is made of.
pub struct ImagesParts {
    /// Where blobs are.
    pub store: Store,
    /// How blobs come here.
    pub transfers: Transfers,
    /// The nodes that hold blobs.
    pub peers: Arc<dyn Peers>,
    /// The nodes that know names.
    pub site: Arc<dyn Site>,
    /// The registries.
    pub origins: Origins,
    /// Counts what comes in.
    pub metrics: Metrics,
    /// Signs tag records.
    pub key: SecretKey,
    /// What admits this node to the network for which it signs; a node that is alone has one of its own.
    pub certificate: Certificate,
    /// The origin of requests that name none.
    pub default_origin: Host,
    /// For how long an origin's answer about a tag counts for the site.
    pub tag_ttl: Duration,
    /// The time in seconds since the Unix epoch.
    pub clock: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// Names and manifests. Clones share everything.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    parts: ImagesParts,
    records: Records,
    down: Mutex<HashMap<Host, (Instant, OriginError)>>,
    // Those who ask for the same name at once wait for the first, and find its answer.
    turns: Turns<String>,
}

/// A manifest and how it was come by.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The manifest.
    pub manifest: Manifest,
    /// Where the answer came from.
    pub source: Source,
    /// How long ago an origin confirmed the tag; `None` for a digest, which cannot age.
    pub age: Option<Duration>,
}

impl Images {
    /// Opens the tables in the store's index.
    pub fn new(parts: ImagesParts) -> Result<Self, ImageError> {
        let records = Records::open(&parts.store)?;
        Ok(Self(Arc::new(Inner { parts, records, down: Mutex::default(), turns: Turns::default() })))
    }

    /// What this node knows of names.
    pub fn records(&self) -> &Records {
        &self.0.records
    }

    /// The origin of requests that name none.
    pub fn default_origin(&self) -> &Host {
        &self.0.parts.default_origin
    }

    /// The manifest that a reference names, from wherever it can be had.
    pub async fn manifest(&self, reference: &Reference) -> Result<Resolved, ImageError> {
        match reference.target() {
            TagOrDigest::Digest(digest) => self.manifest_by_digest(reference, *digest).await,
            TagOrDigest::Tag(_) => self.manifest_by_tag(reference).await,
        }
    }

    async fn manifest_by_digest(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<Resolved, ImageError> {
        let (host, repository) = (reference.host(), reference.repository());
        let resolved = |manifest, source| Resolved { manifest, source, age: None };
        let _turn = match self.granted_manifest(reference, digest).await? {
            Some(manifest) => return Ok(resolved(manifest, Source::Store)),
            None => self.0.turns.take(reference.to_string()).await,
        };
        // Whoever had the turn before may have brought it.
        if let Some(manifest) = self.granted_manifest(reference, digest).await? {
            return Ok(resolved(manifest, Source::Store));
        }
        let vouched = self.0.parts.site.records(reference).await.into_iter().next();
        if let Some(record) = vouched
            && let Some(manifest) = self.manifest_from_peers(digest, record.size, &record.media_type).await?
        {
            self.0.records.learn(host, repository, &manifest)?;
            return Ok(resolved(manifest, Source::Peer));
        }
        let manifest = self.manifest_from_origin(reference).await?;
        Ok(resolved(manifest, Source::Origin))
    }

    /// The manifest from the store, if it is known to belong to the repository.
    async fn granted_manifest(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<Option<Manifest>, ImageError> {
        match self.0.records.grant(reference.host(), reference.repository(), &digest)? {
            Some(grant) => self.stored_manifest(digest, Some(&grant.media_type)).await,
            None => Ok(None),
        }
    }

    /// Asks the origin; what it gives is stored, and known to belong to the repository.
    async fn manifest_from_origin(&self, reference: &Reference) -> Result<Manifest, ImageError> {
        let (host, repository) = (reference.host(), reference.repository());
        let asked = self.0.parts.origins.manifest(host, repository, reference.target()).await;
        let manifest = asked.map_err(|origin| {
            self.note_down(host, &origin);
            ImageError::Unknown { what: reference.to_string(), origin: Box::new(origin) }
        })?;
        self.0.parts.metrics.from_origin.inc_by(manifest.size());
        self.keep(reference, &manifest).await?;
        Ok(manifest)
    }

    async fn keep(&self, reference: &Reference, manifest: &Manifest) -> Result<(), ImageError> {
        let (store, digest, raw) = (self.0.parts.store.clone(), *manifest.digest(), manifest.raw().clone());
        blocking(move || Ok(store.put(&digest, &raw)?)).await?;
        self.0.records.learn(reference.host(), reference.repository(), manifest)?;
        self.0.parts.peers.announce(digest).await;
        Ok(())
    }

    /// A manifest that the store holds; `None` if it does not.
    pub async fn stored_manifest(
        &self,
        digest: Digest,
        media_type: Option<&str>,
    ) -> Result<Option<Manifest>, ImageError> {
        let Some(blob) = self.0.parts.store.get(&digest) else { return Ok(None) };
        let raw = blocking(move || {
            blob.read(MAX_MANIFEST as u64)
                .map_err(|error| ImageError::Unreadable { digest, why: error.to_string() })
        })
        .await?;
        let media_type = media_type.filter(|media_type| !media_type.is_empty());
        Manifest::parse_as(Bytes::from(raw), media_type, &digest)
            .map(Some)
            .map_err(|source| ImageError::NotAManifest { digest, source })
    }

    /// A manifest that peers hold; `None` if none of them can give it.
    async fn manifest_from_peers(
        &self,
        digest: Digest,
        size: u64,
        media_type: &str,
    ) -> Result<Option<Manifest>, ImageError> {
        if size > MAX_MANIFEST as u64 {
            return Ok(None);
        }
        let fetched = match self.0.parts.transfers.fetch(digest, size, None).await {
            Ok(Fetched::Arriving(transfer)) => {
                match tokio::time::timeout(PEERS_PATIENCE, transfer.wait()).await {
                    Ok(outcome) => outcome.map(|_| ()),
                    Err(_) => return Ok(None),
                }
            }
            Ok(Fetched::Stored(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = fetched {
            debug!(blob = %digest.short(), %error, "peers do not give the manifest");
            return Ok(None);
        }
        match self.stored_manifest(digest, Some(media_type)).await {
            // What a neighbour says of it is no reason not to ask the origin.
            Err(ImageError::NotAManifest { digest, source }) => {
                debug!(blob = %digest.short(), %source, "what peers give is not what they say");
                Ok(None)
            }
            other => other,
        }
    }

    /// How a blob of a repository can be had; nothing is fetched yet.
    pub async fn blob(
        &self,
        host: &Host,
        repository: &Repository,
        digest: Digest,
    ) -> Result<BlobHandle, ImageError> {
        let route = Route { host: host.clone(), repository: repository.clone() };
        let said = self.blob_size(&route, digest).await?;
        let (transfers, origins) = (self.0.parts.transfers.clone(), self.0.parts.origins.clone());
        // What is here is as long as it is, whatever was said of it.
        let size = self.0.parts.store.get(&digest).map_or(said, |blob| blob.size());
        Ok(BlobHandle::new(size, digest, route, transfers, origins))
    }

    /// The blob's length, from whoever knows that it belongs to the repository.
    async fn blob_size(&self, route: &Route, digest: Digest) -> Result<u64, ImageError> {
        let (host, repository) = (&route.host, &route.repository);
        if let Some(grant) = self.0.records.grant(host, repository, &digest)? {
            return Ok(grant.size);
        }
        let reference = Reference::new(host.clone(), repository.clone(), TagOrDigest::Digest(digest));
        if let Some(record) = self.0.parts.site.records(&reference).await.into_iter().next() {
            let grant = Grant { size: record.size, media_type: record.media_type.as_str().to_owned() };
            self.0.records.add_grant(host, repository, &digest, &grant)?;
            return Ok(grant.size);
        }
        let unknown = |origin| ImageError::Unknown {
            what: format!("blob {digest} of {route}"),
            origin: Box::new(origin),
        };
        let opened = self.0.parts.origins.blob(host, repository, &digest, 0).await.map_err(|origin| {
            self.note_down(host, &origin);
            unknown(origin)
        })?;
        let Some(size) = opened.total() else {
            return Err(unknown(OriginError::BadAnswer {
                host: host.to_string(),
                what: format!("blob {digest}"),
                why: "it does not say how long the blob is".to_owned(),
            }));
        };
        self.0.records.add_grant(host, repository, &digest, &Grant { size, media_type: String::new() })?;
        Ok(size)
    }

    fn is_down(&self, host: &Host) -> Option<OriginError> {
        let down = self.0.down.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, error) = down.get(host)?;
        (since.elapsed() < DOWN_FOR).then(|| error.clone())
    }

    fn note_down(&self, host: &Host, error: &OriginError) {
        if !matches!(error, OriginError::Unreachable { .. }) {
            return;
        }
        let mut down = self.0.down.lock().unwrap_or_else(PoisonError::into_inner);
        down.retain(|_, (since, _)| since.elapsed() < DOWN_FOR);
        if down.len() < MAX_DOWN {
            down.insert(host.clone(), (Instant::now(), error.clone()));
        }
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ImageError::Stopped)?
}
