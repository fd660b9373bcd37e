//! A reference becomes a manifest, a manifest becomes blobs; tags, repositories, and what belongs to which.
//!
//! A digest is answered from wherever it is, a tag by its [policy](TagPolicy): by `origin-first` the origin is asked at most
//! once per `tag_ttl` and site, and the newest answer that the site knows serves while the origin is out of reach.

mod access;
mod away;
mod callers;
mod caught_up;
mod content;
mod down;
mod error;
mod frozen;
mod heard;
pub mod inspect;
mod length;
mod list;
mod moved;
mod names;
mod others;
mod platform;
mod policy;
pub mod publish;
mod pull;
pub mod push;
mod records;
mod referrers;
mod resolved;
mod site;
mod tags;
mod times;
mod untagged;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{Semaphore, watch};
use tracing::debug;
use wherry_gateway::manifest::{MAX_MANIFEST, ManifestError, media_type};
use wherry_gateway::origin::Origins;
use wherry_gateway::server::Source;
use wherry_gateway::{
    Descriptor, Host, Manifest, ManifestContent, Names, Reference, Repository, TagOrDigest,
};
use wherry_proto::{Certificate, Digest, Resolution, SecretKey, TagRecord};

use crate::flights::Flights;
use crate::seldom::Seldom;
use crate::status::{Metrics, Remaining};
use crate::store::{Store, StoredBlob};
use crate::swarm::{Clock, LinkClass};
use crate::transfer::{Fetched, Peers, Route, TransferError, Transfers};

pub use access::{Access, AccessRules};
pub use away::{Away, MAX_WAIT, WAIT};
pub use callers::{CallerSettings, Right, Rights, check_file};
pub use content::BlobHandle;
use content::Unproven;
pub use error::ImageError;
pub use list::{COUNT_FOR, KnownImage, LocalImage};
pub use moved::Moved;
pub use names::{ImageName, LEAST_DIGITS, Wanted};
pub use platform::{check as check_platform, choose, parse_platform, this_platform};
pub use policy::{MAX_RULES, TagDetails, TagPolicy, TagRule, TagRules};
pub use pull::{How, PARALLEL, PullEvents, Pulled, STUCK};
pub use records::{Grant, KeptImage, MAX_BEFORE, MAX_IMAGES, MAX_TAGS, Records, TagEntry};
pub use resolved::{Resolved, Unasked};

/// How long peers may take to give a manifest before an origin is asked: clients give up after 10 s.
const PEERS_PATIENCE: Duration = Duration::from_secs(4);

/// The longest image configuration that is read, in bytes.
pub const MAX_CONFIG: u64 = 4 << 20;

/// The other nodes, as far as names go: those of the site and, where it is said, those at other sites.
pub trait Site: Send + Sync + 'static {
    /// What the neighbours here or those at other sites say of a reference, be it a tag or a digest. Each record is about this
    /// very reference and signed by a member that may resolve. Waits for a short time that is the implementor's.
    fn records(&self, reference: &Reference, class: LinkClass) -> BoxFuture<'_, Vec<TagRecord>>;

    /// Counts up whenever a node of the site comes: what this one did not hear while they were apart, that one may know.
    fn meetings(&self) -> u64;

    /// Whether another node of the site is to ask the origin about a reference for all: the highest in rank does.
    fn has_resolver(&self, reference: &Reference) -> bool;

    /// What that node finds, or, with `anybody`, the first of the others that finds it. Waits for a time that is the
    /// implementor's. `None` if nobody can say.
    fn resolve(&self, reference: &Reference, anybody: bool) -> BoxFuture<'_, Option<Resolution>>;

    /// Tells all of them what a tag means now. Waits for them for a short time that is the implementor's.
    fn moved(&self, record: TagRecord) -> BoxFuture<'_, ()>;

    /// The tags of a repository that are `known` and those that neighbours know, at most [`MAX_TAGS`]; what is known
    /// makes way for none of theirs. Waits for a short time that is the implementor's.
    fn tags(
        &self,
        host: &Host,
        repository: &Repository,
        known: BTreeSet<String>,
    ) -> BoxFuture<'_, BTreeSet<String>>;
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
    /// What names are short for.
    pub names: Names,
    /// When an origin is asked what a tag means.
    pub tags: TagRules,
    /// The time in seconds since the Unix epoch.
    pub clock: Clock,
    /// Is told of every blob that a client of the gateway has read whole from the store.
    pub served: Served,
    /// Who may read what, and who callers are.
    pub access: AccessRules,
    /// What clients may change.
    pub push: push::PushSettings,
    /// Sees to it that what they push stays.
    pub keeper: Arc<dyn push::Keeper>,
}

/// Who is told that a client with this address has read a blob whole from the store. Must not block.
pub type Served = Arc<dyn Fn(&StoredBlob, IpAddr) + Send + Sync>;

/// Names and manifests. Clones share everything.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    parts: ImagesParts,
    records: Records,
    unproven: Arc<Unproven>,
    uploads: push::Uploads,
    down: down::Down,
    away: away::Waiting,
    callers: callers::Callers,
    asked: referrers::Asked,
    // Each publishing holds a few pieces of blobs in memory.
    publishing: Semaphore,
    verdicts: access::Verdicts,
    caught_up: caught_up::CaughtUp,
    // Those who ask for the same name at once share one answer, be it a failure.
    resolving: Flights<(String, bool), Result<Resolved, ImageError>>,
    // Under one lock while it is counted, so that many who ask cause one count.
    count: tokio::sync::Mutex<Option<list::Count>>,
    // Under one lock while it is found out, as above.
    moved: tokio::sync::Mutex<moved::Answers>,
    // What of the records that are passed over the log says.
    seldom: Seldom,
    news: watch::Sender<u64>,
}

/// The bytes are the digest's and mostly say themselves what they are. What others say of them counts only where it lets them
/// be read: it may be false, and must hide nothing.
fn parse(raw: Bytes, media_type: Option<&str>, digest: &Digest) -> Result<Manifest, ManifestError> {
    let media_type = media_type.filter(|media_type| !media_type.is_empty());
    match Manifest::parse_as(raw.clone(), media_type, digest) {
        Err(_) if media_type.is_some() => Manifest::parse_as(raw, None, digest),
        read => read,
    }
}

impl Images {
    /// Opens the tables in the store's index.
    pub fn new(parts: ImagesParts) -> Result<Self, ImageError> {
        let records = Records::open(&parts.store)?;
        Ok(Self(Arc::new(Inner {
            callers: callers::Callers::new(parts.access.callers.clone()),
            asked: referrers::Asked::default(),
            publishing: Semaphore::new(publish::AT_ONCE),
            verdicts: access::Verdicts::default(),
            parts,
            unproven: Arc::new(Unproven::new(records.clone())),
            records,
            uploads: push::Uploads::new(),
            down: down::Down::default(),
            away: away::Waiting::default(),
            caught_up: caught_up::CaughtUp::default(),
            resolving: Flights::default(),
            count: tokio::sync::Mutex::default(),
            moved: tokio::sync::Mutex::default(),
            seldom: Seldom::default(),
            news: watch::Sender::new(0),
        })))
    }

    /// Counts up when a tag may mean something else, or a manifest has come.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    fn is_news(&self) {
        self.0.news.send_modify(|count| *count += 1);
    }

    /// What this node knows of names.
    pub fn records(&self) -> &Records {
        &self.0.records
    }

    /// The origin of requests that name none.
    pub fn default_origin(&self) -> &Host {
        &self.0.parts.names.default_origin
    }

    /// What names are short for.
    pub fn names(&self) -> &Names {
        &self.0.parts.names
    }

    /// How many manifests each registry that counts them still gives.
    pub fn remaining(&self) -> Vec<Remaining> {
        let all = self.0.parts.origins.remaining().into_iter();
        all.map(|(host, manifests)| Remaining { origin: host.to_string(), manifests }).collect()
    }

    /// The manifest that a reference names, from wherever it can be had.
    pub async fn manifest(&self, reference: &Reference) -> Result<Resolved, ImageError> {
        match self.manifest_from_anywhere(reference).await {
            Ok(resolved) => Ok(resolved),
            Err(error) => Err(self.with_moved(reference, error).await),
        }
    }

    async fn manifest_from_anywhere(&self, reference: &Reference) -> Result<Resolved, ImageError> {
        if self.0.parts.site.has_resolver(reference) {
            return self.resolved(reference, false).await;
        }
        let error = match self.resolved(reference, true).await {
            Ok(resolved) => return Ok(resolved),
            Err(error) => error,
        };
        // Others may reach what this node does not.
        let found = match reference.target() {
            TagOrDigest::Digest(_) => self
                .manifest_by_another(reference, true)
                .await?
                .map(|manifest| Resolved { manifest, source: Source::Peer, age: None, unasked: None }),
            TagOrDigest::Tag(_) => self.tag_by_anybody(reference).await?,
        };
        found.ok_or(error)
    }

    /// The same, with the origin asked by this node itself whatever it said a short time ago. Where it does not say, what
    /// is known serves.
    pub async fn manifest_anew(&self, reference: &Reference) -> Result<Resolved, ImageError> {
        if reference.target().tag().is_none() {
            return self.manifest(reference).await;
        }
        let error = match self.tag_anew(reference).await {
            Ok(resolved) => return Ok(resolved),
            Err(error) => error,
        };
        let mut resolved = self.manifest(reference).await?;
        if let Some(unasked) = &mut resolved.unasked {
            *unasked = Unasked::Silent(tags::why(&error));
        }
        Ok(resolved)
    }

    /// `for_all`: this node asks the origin, and no other node of the site to do so.
    async fn resolved(&self, reference: &Reference, for_all: bool) -> Result<Resolved, ImageError> {
        let resolving = self.0.resolving.join((reference.to_string(), for_all), || {
            let (images, reference) = (self.clone(), reference.clone());
            async move {
                match reference.target() {
                    TagOrDigest::Digest(digest) => {
                        images.manifest_by_digest(&reference, *digest, for_all).await
                    }
                    TagOrDigest::Tag(_) => images.manifest_by_tag(&reference, for_all).await,
                }
            }
            .boxed()
        });
        resolving.await
    }

    async fn manifest_by_digest(
        &self,
        reference: &Reference,
        digest: Digest,
        for_all: bool,
    ) -> Result<Resolved, ImageError> {
        let resolved = |manifest, source| Resolved { manifest, source, age: None, unasked: None };
        let own = self.0.records.grant(reference.host(), reference.repository(), &digest)?;
        if let Some(grant) = &own {
            if !may_be_manifest(&grant.media_type) {
                return Err(ImageError::NoManifest { digest, media_type: grant.media_type.clone() });
            }
            if let Some(manifest) = self.stored_manifest(digest, Some(&grant.media_type)).await? {
                self.learn(reference, &manifest).await?;
                return Ok(resolved(manifest, Source::Store));
            }
            // It was here once and has been evicted.
            if let Some(manifest) = self.manifest_from_peers(digest, &grant.media_type).await? {
                self.learn(reference, &manifest).await?;
                return Ok(resolved(manifest, Source::Peer));
            }
        }
        // What else neighbours say of it matters not: its bytes tell.
        if own.is_none() && self.is_vouched_for(reference).await {
            if let Some(manifest) = self.believed_manifest(digest, "").await? {
                self.learn(reference, &manifest).await?;
                return Ok(resolved(manifest, Source::Store));
            }
            if let Some(manifest) = self.manifest_from_peers(digest, "").await? {
                self.learn(reference, &manifest).await?;
                return Ok(resolved(manifest, Source::Peer));
            }
        }
        if !for_all && let Some(manifest) = self.manifest_by_another(reference, false).await? {
            return Ok(resolved(manifest, Source::Peer));
        }
        match self.manifest_from_origin(reference).await {
            Ok(manifest) => Ok(resolved(manifest, Source::Origin)),
            // Others may reach what this node does not.
            Err(error) if for_all => Err(error),
            Err(error) => match self.manifest_by_another(reference, true).await? {
                Some(manifest) => Ok(resolved(manifest, Source::Peer)),
                None => Err(error),
            },
        }
    }

    /// The manifest of a digest that another node of the site has from the origin.
    async fn manifest_by_another(
        &self,
        reference: &Reference,
        anybody: bool,
    ) -> Result<Option<Manifest>, ImageError> {
        let Some(told) = self.0.parts.site.resolve(reference, anybody).await else { return Ok(None) };
        let record = &told.record;
        if reference.target().digest() != Some(&record.digest) {
            return Ok(None);
        }
        if let Some(manifest) = self.manifest_told(reference, &told).await {
            return Ok(Some(manifest));
        }
        let found = self.manifest_from_peers(record.digest, &record.media_type).await?;
        if let Some(manifest) = &found {
            self.learn(reference, manifest).await?;
        }
        Ok(found)
    }

    /// Whether a neighbour says that a digest belongs to the repository.
    async fn is_vouched_for(&self, reference: &Reference) -> bool {
        for class in [LinkClass::Lan, LinkClass::Wan] {
            let records = self.0.parts.site.records(reference, class).await;
            if records.iter().any(|record| reference.target().digest() == Some(&record.digest)) {
                return true;
            }
        }
        false
    }

    /// Remembers that a manifest, and all that it names, belongs to the repository that it was asked for in.
    async fn learn(&self, reference: &Reference, manifest: &Manifest) -> Result<(), ImageError> {
        self.tell_store(manifest);
        let (records, reference, manifest) = (self.0.records.clone(), reference.clone(), manifest.clone());
        let learning = move || {
            let (host, repository) = (reference.host(), reference.repository());
            if let Some(subject) = manifest.subject() {
                records.referrers().add(host, repository, &subject.digest, &manifest)?;
            }
            Ok(records.learn(host, repository, &manifest)?)
        };
        blocking(learning).await
    }

    /// Has the store know what a manifest names that it holds.
    fn tell_store(&self, manifest: &Manifest) {
        let digests = |named: &[Descriptor]| named.iter().map(|it| it.digest).collect();
        let (documents, layers) = match manifest.content() {
            ManifestContent::Index(index) => (digests(&index.manifests), Vec::new()),
            ManifestContent::Image(image) => (vec![image.config.digest], digests(&image.layers)),
        };
        self.0.parts.store.names(manifest.digest(), documents, layers);
    }

    /// Forgets what has long been removed.
    pub async fn forget_removed(&self) -> Result<(), ImageError> {
        let (records, now) = (self.0.records.clone(), (self.0.parts.clock)());
        blocking(move || Ok(records.forget_removed(now)?)).await
    }

    /// Has the store know what all manifests name that it holds, as it must before it has anything make room.
    pub async fn tell_store_all(&self) -> Result<(), ImageError> {
        if self.0.parts.store.usage().budget.is_none() {
            return Ok(());
        }
        let images = self.clone();
        blocking(move || {
            let mut manifests = HashMap::new();
            images.records().each_manifest(|reference, media_type| {
                if let Some(digest) = reference.target().digest() {
                    manifests.entry(*digest).or_insert_with(|| media_type.to_owned());
                }
                ControlFlow::Continue(())
            })?;
            for kept in images.records().all_kept() {
                let (name, kept) = kept?;
                if let ImageName::Unnamed(digest) = name {
                    manifests.entry(digest).or_insert(kept.media_type);
                }
            }
            for (digest, media_type) in manifests {
                // One that cannot be read hides none of the others.
                if let Ok(Some(manifest)) = images.read_manifest(digest, Some(&media_type)) {
                    images.tell_store(&manifest);
                }
            }
            Ok(())
        })
        .await
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
        self.0.parts.transfers.limits().count(manifest.size());
        self.keep(reference, &manifest).await?;
        Ok(manifest)
    }

    async fn keep(&self, reference: &Reference, manifest: &Manifest) -> Result<(), ImageError> {
        let (store, digest, raw) = (self.0.parts.store.clone(), *manifest.digest(), manifest.raw().clone());
        blocking(move || Ok(store.put(&digest, &raw)?)).await?;
        self.learn(reference, manifest).await?;
        self.is_news();
        self.0.parts.peers.announce(digest).await;
        Ok(())
    }

    /// A manifest that the store holds; `None` if it does not.
    pub async fn stored_manifest(
        &self,
        digest: Digest,
        media_type: Option<&str>,
    ) -> Result<Option<Manifest>, ImageError> {
        let (images, media_type) = (self.clone(), media_type.map(str::to_owned));
        blocking(move || {
            // Kept while it is read, and used: whoever looks through all images only reads.
            let _used = images.0.parts.store.get(&digest);
            images.read_manifest(digest, media_type.as_deref())
        })
        .await
    }

    /// The same, for where reading may block. This is no use of it.
    fn read_manifest(
        &self,
        digest: Digest,
        media_type: Option<&str>,
    ) -> Result<Option<Manifest>, ImageError> {
        let Some(blob) = self.0.parts.store.look(&digest) else { return Ok(None) };
        if blob.size() > MAX_MANIFEST as u64 {
            let source = ManifestError::TooLong { size: blob.size() };
            return Err(ImageError::NotAManifest { digest, source });
        }
        let raw = match blob.read(MAX_MANIFEST as u64) {
            Ok(raw) => raw,
            // What is damaged is as good as not here: others have it.
            Err(_) if blob.is_lost() => return Ok(None),
            Err(error) => return Err(ImageError::Unreadable { digest, why: error.to_string() }),
        };
        let read = parse(raw.into(), media_type, &digest);
        read.map(Some).map_err(|source| ImageError::NotAManifest { digest, source })
    }

    /// The manifest that another node has given with what it says of a reference, if it is that; it is kept.
    async fn manifest_told(&self, reference: &Reference, told: &Resolution) -> Option<Manifest> {
        let Resolution { record, manifest } = told;
        let raw = Bytes::from(manifest.clone()?.into_vec());
        self.0.parts.metrics.from_peers.inc_by(raw.len() as u64);
        let kept = match parse(raw, Some(&record.media_type), &record.digest) {
            Ok(manifest) => self.keep(reference, &manifest).await.map(|()| manifest),
            Err(source) => Err(ImageError::NotAManifest { digest: record.digest, source }),
        };
        kept.inspect_err(
            |error| debug!(%reference, %error, "the manifest that came with an answer is not kept"),
        )
        .ok()
    }

    /// A manifest that peers hold; `None` if none of them can give it. Nothing is reserved for it before one of them has
    /// proved how long it is.
    async fn manifest_from_peers(
        &self,
        digest: Digest,
        media_type: &str,
    ) -> Result<Option<Manifest>, ImageError> {
        let fetch = async {
            let Some(size) = self.proven_length(digest, MAX_MANIFEST as u64).await else { return Ok(false) };
            if let Fetched::Arriving(transfer) = self.0.parts.transfers.fetch(digest, size, None).await? {
                transfer.wait().await?;
            }
            Ok::<_, TransferError>(true)
        };
        match tokio::time::timeout(PEERS_PATIENCE, fetch).await {
            Ok(Ok(true)) => self.believed_manifest(digest, media_type).await,
            Ok(Ok(false)) | Err(_) => Ok(None),
            Ok(Err(error)) => {
                debug!(blob = %digest.short(), %error, "peers do not give the manifest");
                Ok(None)
            }
        }
    }

    /// A manifest that the store holds, if it is what a neighbour says.
    async fn believed_manifest(
        &self,
        digest: Digest,
        media_type: &str,
    ) -> Result<Option<Manifest>, ImageError> {
        match self.stored_manifest(digest, Some(media_type)).await {
            // What a neighbour says of it is no reason not to ask the origin.
            Err(ImageError::NotAManifest { digest, source }) => {
                debug!(blob = %digest.short(), %source, "what peers give is not what they say");
                Ok(None)
            }
            other => other,
        }
    }

    /// How a blob of a repository can be had, whoever says that it belongs there. Nothing is fetched yet but, where
    /// only neighbours know of it, what proves its length.
    pub async fn blob(
        &self,
        host: &Host,
        repository: &Repository,
        digest: Digest,
    ) -> Result<BlobHandle, ImageError> {
        let route = Route { host: host.clone(), repository: repository.clone() };
        // What is here is as long as it is, whatever is said of it.
        let here = self.0.parts.store.get(&digest).map(|blob| blob.size());
        if let Some(grant) = self.0.records.grant(host, repository, &digest)? {
            return Ok(self.handle(route, digest, here.unwrap_or(grant.size), None));
        }
        let reference = Reference::new(host.clone(), repository.clone(), TagOrDigest::Digest(digest));
        let is_known = self.is_vouched_for(&reference).await;
        let size = match here {
            Some(size) if is_known => size,
            None if is_known => self.length(&route, digest).await?,
            // Whether it belongs there, only the origin can tell.
            here => {
                let size = self.origins_length(&route, digest).await?;
                here.unwrap_or(size)
            }
        };
        Ok(self.handle(route, digest, size, Some(self.0.unproven.clone())))
    }

    /// `unproven`: if it is not known to this node yet that the blob belongs there. It is remembered once the blob has
    /// been verified, since until then it may be nothing at all.
    fn handle(&self, route: Route, digest: Digest, size: u64, unproven: Option<Arc<Unproven>>) -> BlobHandle {
        let parts = &self.0.parts;
        BlobHandle::new(size, digest, route, parts.transfers.clone(), parts.origins.clone(), unproven)
    }
}

/// Whether something of this media type can be a manifest; what says nothing of itself may be one.
fn may_be_manifest(media_type: &str) -> bool {
    media_type.is_empty() || media_type::is_index(media_type) || media_type::is_image(media_type)
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ImageError::Stopped)?
}
