//! What the gateway's server asks for.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tracing::warn;
use wherry_gateway::origin::{Credential, OriginError, Origins};
use wherry_gateway::server::{
    Ask, BlobReader, Body, Break, Content, ManifestAnswer, Referrer, Refusal, RefusalKind, StoredFile, Want,
};
use wherry_gateway::{Descriptor, Host, Reference, TagOrDigest};
use wherry_proto::Digest;

use super::{Grant, ImageError, Images, MAX_TAGS, Records, blocking};
use crate::store::StoredBlob;
use crate::transfer::{Fetched, Route, SHORT_LIMIT, Transfer, TransferError, Transfers};

/// How long the headers of a blob wait for its first byte, so that what cannot be had is refused before them.
/// Registry clients give up on headers after 10 s at the earliest.
const FIRST_BYTE: Duration = Duration::from_secs(6);

/// How long a client that is about to push waits to hear whether something is here: where an origin may know of it, and where
/// that was out of reach a moment ago, so that only neighbours do.
const PATIENCE_WITH_ORIGIN: Duration = Duration::from_secs(3);
const PATIENCE_WITH_NEIGHBOURS: Duration = Duration::from_secs(1);

/// How far ahead of what is known a range may begin, in bytes, before it is passed through from the origin.
const FAR: u64 = 4 << 20;

/// A blob that may be read, here or on its way.
pub struct BlobHandle {
    size: u64,
    digest: Digest,
    route: Route,
    transfers: Transfers,
    origins: Origins,
    unproven: Option<Arc<Unproven>>,
    // Who reads it through the gateway, and from what.
    reader: Option<(IpAddr, Images)>,
}

/// How many blobs on their way are waited for, to remember what they belong to; of what is beyond, the site or the origin
/// is asked once more when it is wanted again.
const MAX_UNPROVEN: usize = 1024;

/// The blobs of which it is to be remembered, once they are whole, that they belong to a repository.
pub(super) struct Unproven {
    records: Records,
    waiting: Mutex<HashSet<(Route, Digest)>>,
}

impl Unproven {
    pub(super) fn new(records: Records) -> Self {
        Self { records, waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, HashSet<(Route, Digest)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers it at once, or when the blob has arrived; however many ask, one task waits for that.
    async fn once_whole(self: &Arc<Self>, route: &Route, fetched: &Fetched) {
        let transfer = match fetched {
            Fetched::Stored(blob) => return self.remember(route, blob).await,
            Fetched::Arriving(transfer) => transfer.clone(),
        };
        let key = (route.clone(), transfer.digest());
        {
            let mut waiting = self.waiting();
            if waiting.len() >= MAX_UNPROVEN || !waiting.insert(key.clone()) {
                return;
            }
        }
        let unproven = self.clone();
        // In a task of its own, which ends with the transfer: that outlives the client that asked for it.
        tokio::spawn(async move {
            if let Ok(blob) = transfer.wait().await {
                unproven.remember(&key.0, &blob).await;
            }
            unproven.waiting().remove(&key);
        });
    }

    async fn remember(&self, route: &Route, blob: &StoredBlob) {
        // What the blob is, only a manifest that names it can say: a neighbour's word would be passed on as this node's.
        let (digest, grant) = (blob.digest(), Grant::of(blob.size(), ""));
        let (records, route) = (self.records.clone(), route.clone());
        let written =
            blocking(move || Ok(records.add_grant(&route.host, &route.repository, &digest, &grant)?));
        if let Err(error) = written.await {
            warn!(%digest, %error, "what the blob belongs to is not remembered");
        }
    }
}

impl BlobHandle {
    pub(super) fn new(
        size: u64,
        digest: Digest,
        route: Route,
        transfers: Transfers,
        origins: Origins,
        unproven: Option<Arc<Unproven>>,
    ) -> Self {
        Self { size, digest, route, transfers, origins, unproven, reader: None }
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Starts to fetch it, unless it is here or on its way.
    pub async fn fetch(&self) -> Result<Fetched, ImageError> {
        let fetched = self.transfers.fetch(self.digest, self.size, Some(self.route.clone())).await;
        let fetched = fetched.map_err(|source| self.failed(source))?;
        if let Some(unproven) = &self.unproven {
            unproven.once_whole(&self.route, &fetched).await;
        }
        Ok(fetched)
    }

    fn failed(&self, source: TransferError) -> ImageError {
        ImageError::Transfer { what: format!("blob {} of {}", self.digest, self.route), source }
    }

    async fn stored(&self, blob: StoredBlob, range: Range<u64>) -> Result<Body, Refusal> {
        let digest = self.digest;
        let reader = self.reader.clone().filter(|_| range == (0..self.size));
        let opened = {
            let blob = blob.clone();
            tokio::task::spawn_blocking(move || blob.open()).await
        };
        match opened {
            Ok(Ok(file)) => {
                let file = StoredFile::new(file, range.start, range.end - range.start);
                Ok(Body::File(match reader {
                    Some((client, images)) => file.once_sent(move || (images.0.parts.served)(&blob, client)),
                    None => file,
                }))
            }
            Ok(Err(error)) => Err(Refusal::new(
                RefusalKind::Internal,
                format!(
                    "blob {digest} could not be read from the store: {error}; ask again to fetch it anew"
                ),
            )),
            Err(_) => Err(ImageError::Stopped.into_refusal(true)),
        }
    }

    /// Waits for the first byte of a range. What is far from anything known is passed through, since it would take
    /// as long to arrive in order as all that lies before it.
    async fn arriving(&self, transfer: &Arc<Transfer>, range: Range<u64>) -> Result<Body, Refusal> {
        let is_far = |front: u64| range.start > front.saturating_add(FAR);
        match tokio::time::timeout(FIRST_BYTE, transfer.first_byte(&range, is_far)).await {
            Ok(Ok(true)) | Err(_) => Ok(Body::Stream(transfer.read(range).boxed())),
            Ok(Ok(false)) => self.pass_through(range).await,
            Ok(Err(source)) => Err(self.failed(source).into_refusal(true)),
        }
    }

    async fn pass_through(&self, range: Range<u64>) -> Result<Body, Refusal> {
        let limits = self.transfers.limits().clone();
        if let Some(limited) = limits.limited() {
            return Err(self.failed(TransferError::limited(&limits, limited)).into_refusal(true));
        }
        let Route { host, repository } = &self.route;
        let blob = self.origins.blob_part(host, repository, &self.digest, range).await.map_err(|origin| {
            let what = format!("blob {} of {}", self.digest, self.route);
            ImageError::Unknown { what, origin: Box::new(origin) }.into_refusal(true)
        })?;
        let blob = blob.then(move |piece| {
            let limits = limits.clone();
            async move {
                // What came is what the origin sent; the client checks the digest itself.
                let piece = piece.map_err(|_| Break::Stalled)?;
                limits.paced(piece.len() as u64).await;
                // A pause may last for days, and a client is better sent away than left with a body that says nothing.
                let open = tokio::time::timeout(SHORT_LIMIT, limits.open()).await;
                open.map(|()| piece).map_err(|_| Break::Stalled)
            }
        });
        Ok(Body::Stream(blob.boxed()))
    }
}

impl BlobReader for BlobHandle {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, range: Range<u64>) -> Result<Body, Refusal> {
        let body = match self.fetch().await {
            Ok(Fetched::Stored(blob)) => self.stored(blob, range).await,
            Ok(Fetched::Arriving(transfer)) => self.arriving(&transfer, range).await,
            Err(error) => Err(error.into_refusal(true)),
        };
        match (body, &self.reader) {
            (Err(refusal), Some((_, images))) => {
                Err(images.with_what_is_here(&self.route, self.digest, refusal).await)
            }
            (body, _) => body,
        }
    }
}

impl Images {
    /// The refusal of a blob, and what there is instead where a tag has moved to an image that needs it.
    async fn with_what_is_here(&self, route: &Route, digest: Digest, refusal: Refusal) -> Refusal {
        match self.moved_to_blob(&route.host, &route.repository, digest).await {
            Ok(Some(moved)) => Refusal { message: format!("{}. {moved}", refusal.message), ..refusal },
            _ => refusal,
        }
    }

    pub(super) fn origin_of(&self, ask: &Ask) -> Host {
        ask.origin.clone().unwrap_or_else(|| self.default_origin().clone())
    }
}

/// That something is not here, whatever else is wrong: a client that is about to push it gives up where it hears that an origin
/// refuses this node or is out of reach.
fn absent(absent: RefusalKind, refusal: Refusal) -> Refusal {
    match refusal.kind {
        RefusalKind::Denied
        | RefusalKind::Unavailable
        | RefusalKind::BadOrigin
        | RefusalKind::TooManyRequests => Refusal::new(absent, refusal.message),
        _ => refusal,
    }
}

impl Images {
    /// Whether a client may be about to push what it asks about.
    async fn is_pusher(&self, ask: &Ask, want: Want) -> bool {
        want == Want::Head && !ask.is_mirror && self.may_push(ask).await
    }

    /// The same as [`Images::blob`] for whoever is about to push it. That a manifest has named it is not enough, for the client
    /// would leave it out and nobody may have it any more; and a client asks about each of many layers, so that an origin is
    /// waited for only shortly.
    async fn blob_for_pusher(&self, route: &Route, digest: Digest) -> Result<BlobHandle, ImageError> {
        let Route { host, repository } = route;
        let is_granted = self.records().grant(host, repository, &digest)?.is_some();
        let here = self.0.parts.store.get(&digest).map(|blob| blob.size());
        let patience = match self.is_down(host, format!("blob {digest}")) {
            Some(_) => PATIENCE_WITH_NEIGHBOURS,
            None => PATIENCE_WITH_ORIGIN,
        };
        let work = async {
            match (is_granted, here) {
                (true, Some(size)) => Ok(self.handle(route.clone(), digest, size, None)),
                (true, None) => {
                    let size = self.length(route, digest).await?;
                    Ok(self.handle(route.clone(), digest, size, None))
                }
                (false, _) => self.blob(host, repository, digest).await,
            }
        };
        tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
            let (host, what) = (host.to_string(), format!("blob {digest} of {route}"));
            let why = format!("nobody gave an answer within {:.1} s", patience.as_secs_f32());
            let origin = Box::new(OriginError::Unreachable { host, what: what.clone(), why });
            Err(ImageError::Unknown { what, origin })
        })
    }
}

impl Content for Images {
    type Blob = BlobHandle;

    async fn greets(&self, client: SocketAddr, credential: Option<Credential>) -> Result<(), Refusal> {
        self.greet(client, credential.as_ref()).await
    }

    async fn manifest(
        &self,
        ask: Ask,
        reference: TagOrDigest,
        want: Want,
    ) -> Result<ManifestAnswer, Refusal> {
        self.may_read(&ask).await?;
        let is_pusher = self.is_pusher(&ask, want).await;
        let reference = Reference::new(self.origin_of(&ask), ask.repository, reference);
        let resolved = Self::manifest(self, &reference).await.map_err(|error| {
            let refusal = error.into_refusal(false);
            if is_pusher { absent(RefusalKind::ManifestUnknown, refusal) } else { refusal }
        })?;
        let manifest = resolved.manifest;
        let bytes: Bytes = manifest.raw().clone();
        Ok(ManifestAnswer {
            age: resolved.age,
            source: Some(resolved.source),
            ..ManifestAnswer::new(bytes, manifest.media_type(), *manifest.digest())
        })
    }

    async fn blob(&self, ask: Ask, digest: Digest, want: Want) -> Result<BlobHandle, Refusal> {
        self.may_read(&ask).await?;
        let route = self.route(&ask);
        if self.is_pusher(&ask, want).await {
            let found = self.blob_for_pusher(&route, digest).await;
            return found.map_err(|error| absent(RefusalKind::BlobUnknown, error.into_refusal(true)));
        }
        match Self::blob(self, &route.host, &route.repository, digest).await {
            Ok(handle) => Ok(BlobHandle { reader: Some((ask.client.ip(), self.clone())), ..handle }),
            Err(error) => Err(self.with_what_is_here(&route, digest, error.into_refusal(true)).await),
        }
    }

    async fn tags(&self, ask: Ask) -> Result<Vec<String>, Refusal> {
        self.may_read(&ask).await?;
        let target = TagOrDigest::Tag(wherry_gateway::Tag::latest());
        let reference = Reference::new(self.origin_of(&ask), ask.repository, target);
        let (host, repository) = (reference.host().clone(), reference.repository().clone());
        let own = {
            let (records, host, repository) = (self.records().clone(), host.clone(), repository.clone());
            blocking(move || Ok(records.tags(&host, &repository, None, MAX_TAGS)?)).await
        };
        let own = own.map_err(|error| error.into_refusal(false))?;
        let tags = self.0.parts.site.tags(&host, &repository, own.into_iter().collect()).await;
        if tags.is_empty() {
            return Err(Refusal::new(
                RefusalKind::NameUnknown,
                format!(
                    "no tag of {}/{} is known at this site; pull one first",
                    reference.host(),
                    reference.repository()
                ),
            ));
        }
        Ok(tags.into_iter().collect())
    }

    async fn referrers(&self, ask: Ask, subject: Digest) -> Result<Vec<Referrer>, Refusal> {
        self.may_read(&ask).await?;
        let found = self.attached(&self.route(&ask), subject).await;
        let found = found.map_err(|error| error.into_refusal(false))?.into_iter();
        Ok(found
            .map(|(digest, attachment)| Referrer {
                artifact_type: attachment.artifact_type,
                descriptor: Descriptor {
                    media_type: attachment.media_type,
                    digest,
                    size: attachment.size,
                    platform: None,
                    urls: None,
                    annotations: (!attachment.annotations.is_empty())
                        .then(|| attachment.annotations.into_iter().collect()),
                },
            })
            .collect())
    }
}
