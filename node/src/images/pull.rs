//! All of an image, into the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::time::MissedTickBehavior;
use wherry_gateway::manifest::Image;
use wherry_gateway::{Descriptor, Manifest, ManifestContent, Platform, Reference, TagOrDigest};
use wherry_proto::Digest;

use super::platform::{chosen, runs, this_platform};
use super::{ImageError, Images, MAX_CONFIG, Unasked, blocking};
use crate::limits::Limited;
use crate::store::{Claim, StoreError, StoredBlob};
use crate::transfer::{Fetched, Progress, Transfer, TransferError, Why};

/// How many blobs of one image are fetched side by side.
pub const PARALLEL: usize = 4;

/// After how long without a byte it is told what a blob waits for, and how often then.
pub const STUCK: Duration = Duration::from_secs(2);

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Who watches a pull.
pub trait PullEvents: Send + Sync {
    /// The reference means this manifest.
    fn resolved(&self, manifest: &Manifest);
    /// A blob is to be had; `whole` if it is in the store already, and else `here` bytes of it are.
    fn started(&self, blob: &Descriptor, whole: bool, here: u64);
    /// Some of a blob has arrived. What others had brought of it before this pull is in `linked` alone.
    fn progress(&self, blob: &Digest, progress: Progress);
    /// A limit is all that a blob waits for; told again and again.
    fn waits(&self, _limited: &Limited) {}
    /// Nothing of a blob has come for [`STUCK`], and not for a limit; told again and again.
    fn stuck(&self, _blob: &Digest, _why: &Why) {}
    /// All of a blob is here and verified; `here` if it was before.
    fn done(&self, blob: &Digest, here: bool, progress: Progress);
}

/// What a pull has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The manifest that the reference names: an index, or the image itself.
    pub digest: Digest,
    /// Bytes of the image's blobs, those that were here included.
    pub bytes: u64,
    /// Bytes that came from peers.
    pub from_peers: u64,
    /// Bytes that came from the origin.
    pub from_origin: u64,
    /// How long ago an origin confirmed what the tag means, as in [`Resolved::age`](super::Resolved::age).
    pub age: Option<Duration>,
    /// Why it was not asked now, as in [`Resolved::unasked`](super::Resolved::unasked).
    pub unasked: Option<Unasked>,
}

impl Images {
    /// Brings all blobs of an image into the store. Of an index, the image for this platform or for `platform`. With
    /// `refresh` the origin is asked what the tag means whatever it said a short time ago.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        refresh: bool,
        events: &dyn PullEvents,
    ) -> Result<Pulled, ImageError> {
        match self.pull_all(reference, platform, refresh, events).await {
            Ok(pulled) => Ok(pulled),
            Err(error) => Err(self.with_moved(reference, error).await),
        }
    }

    async fn pull_all(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        refresh: bool,
        events: &dyn PullEvents,
    ) -> Result<Pulled, ImageError> {
        let resolved = match refresh {
            true => self.manifest_anew(reference).await?,
            false => self.manifest(reference).await?,
        };
        let (top, age, unasked) = (resolved.manifest, resolved.age, resolved.unasked);
        let manifest = match top.content() {
            ManifestContent::Image(image) => {
                if let Some(wanted) = platform {
                    self.check_platform(reference, image, wanted, events).await?;
                }
                top.clone()
            }
            ManifestContent::Index(index) => {
                let ours = this_platform();
                let entry = chosen(reference, index, platform.unwrap_or(&ours))?;
                self.manifest(&reference.with_target(TagOrDigest::Digest(entry.digest))).await?.manifest
            }
        };
        events.resolved(&manifest);
        let blobs: Vec<Descriptor> = match manifest.image() {
            Some(image) => image.blobs().filter(|blob| !blob.is_foreign()).cloned().collect(),
            None => Vec::new(),
        };
        let size = blobs.iter().map(|blob| blob.size).sum();
        let is_whole = blobs.iter().all(|blob| self.0.parts.store.holds(&blob.digest));
        if !is_whole && let Some(budget) = self.0.parts.store.usage().budget.filter(|budget| size > *budget) {
            return Err(ImageError::LargerThanBudget { what: reference.to_string(), size, budget });
        }
        // What cannot be had whole is to cost nothing that is here.
        self.0.parts.store.would_fit(&blobs.iter().map(|blob| (blob.digest, blob.size)).collect())?;
        // Until all is here nothing may leave that is: other images that have it may be removed meanwhile.
        let mut claims = Vec::new();
        for manifest in [&top, &manifest] {
            claims.push(self.claim_manifest(reference, manifest).await?);
        }
        if reference.target().digest().is_some() {
            self.keep_image(reference.clone().into(), &top).await?;
        }
        let fetches: Vec<_> =
            blobs.iter().map(|blob| self.pull_blob(reference, blob, events).boxed()).collect();
        let mut running = stream::iter(fetches).buffer_unordered(PARALLEL);
        let (mut from_peers, mut from_origin) = (0, 0);
        while let Some(progress) = running.next().await {
            let (progress, claim) = progress?;
            claims.push(claim);
            from_peers += progress.from_peers;
            from_origin += progress.from_origin;
        }
        // Whoever is told that an image is here may cut the power now.
        let store = self.0.parts.store.clone();
        blocking(move || Ok(store.sync()?)).await?;
        Ok(Pulled { digest: *top.digest(), bytes: size, from_peers, from_origin, age, unasked })
    }

    fn claim(&self, digest: Digest) -> Result<Claim, ImageError> {
        let claim = self.0.parts.store.claim(&digest);
        claim.ok_or_else(|| StoreError::NotHeld(digest).into())
    }

    /// Claims a manifest that is at hand, whether it is still in the store or not. Where it had left, what it says of the
    /// repository may have been forgotten.
    async fn claim_manifest(&self, reference: &Reference, manifest: &Manifest) -> Result<Claim, ImageError> {
        let (images, kept) = (self.clone(), manifest.clone());
        let claim = blocking(move || {
            images.0.parts.store.put(kept.digest(), kept.raw())?;
            images.claim(*kept.digest())
        });
        let claim = claim.await?;
        self.learn(reference, manifest).await?;
        Ok(claim)
    }

    /// Makes sure, before anything large is fetched, that an image which is alone runs on the platform that was asked
    /// for. One whose configuration names no platform may run anywhere.
    async fn check_platform(
        &self,
        reference: &Reference,
        image: &Image,
        wanted: &Platform,
        events: &dyn PullEvents,
    ) -> Result<(), ImageError> {
        let config = &image.config;
        let handle = self.blob(reference.host(), reference.repository(), config.digest).await?;
        let blob = match handle.fetch().await? {
            Fetched::Stored(blob) => blob,
            Fetched::Arriving(transfer) => {
                let tell = |happens: Happens| {
                    if let Happens::Waits(limited) = happens {
                        events.waits(&limited);
                    }
                };
                let arrived = watch(&transfer, tell).await;
                arrived.map_err(|source| ImageError::Transfer {
                    what: format!("blob {} of {reference}", config.digest),
                    source,
                })?
            }
        };
        let digest = config.digest;
        let config = blocking(move || {
            blob.read(MAX_CONFIG).map_err(|error| ImageError::Unreadable { digest, why: error.to_string() })
        });
        match serde_json::from_slice::<Platform>(&config.await?) {
            Ok(has) if !has.os.is_empty() && !runs(&has, wanted) => Err(ImageError::NoPlatform {
                what: reference.to_string(),
                wanted: wanted.to_string(),
                has: has.to_string(),
            }),
            _ => Ok(()),
        }
    }

    async fn pull_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        events: &dyn PullEvents,
    ) -> Result<(Progress, Claim), ImageError> {
        let handle = self.blob(reference.host(), reference.repository(), blob.digest).await?;
        // Looked at before it is asked for, so that none of what comes for this pull counts as having been here.
        let running = self.0.parts.transfers.get(blob.digest, blob.size);
        let brought = running.map(|transfer| (transfer.progress(), transfer));
        match &handle.fetch().await? {
            Fetched::Stored(_) => {
                let claim = self.claim(blob.digest)?;
                events.started(blob, true, blob.size);
                let here = Progress { linked: blob.size, ..Progress::default() };
                events.done(&blob.digest, true, here);
                Ok((here, claim))
            }
            Fetched::Arriving(transfer) => {
                let brought = brought.filter(|(_, running)| Arc::ptr_eq(running, transfer));
                let before = brought.map(|(progress, _)| progress).unwrap_or_default();
                let since = |progress: Progress| Progress {
                    from_peers: progress.from_peers - before.from_peers,
                    from_origin: progress.from_origin - before.from_origin,
                    ..progress
                };
                events.started(blob, false, before.linked.max(transfer.before()));
                let tell = |happens: Happens| match happens {
                    Happens::Comes(progress) => events.progress(&blob.digest, since(progress)),
                    Happens::Waits(limited) => events.waits(&limited),
                    Happens::Stuck(why) => events.stuck(&blob.digest, &why),
                };
                let arrived = watch(transfer, tell).await;
                arrived.map_err(|source| ImageError::Transfer {
                    what: format!("blob {} of {reference}", blob.digest),
                    source,
                })?;
                let claim = self.claim(blob.digest)?;
                let progress = since(transfer.progress());
                events.done(&blob.digest, false, progress);
                Ok((progress, claim))
            }
        }
    }
}

/// What a transfer does that somebody waits for.
enum Happens {
    Comes(Progress),
    Waits(Limited),
    Stuck(Why),
}

/// Waits for a transfer and tells now and then how it goes.
async fn watch(transfer: &Transfer, tell: impl Fn(Happens)) -> Result<StoredBlob, TransferError> {
    let outcome = transfer.wait();
    tokio::pin!(outcome);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut linked, mut moved) = (transfer.progress().linked, Instant::now());
    loop {
        tokio::select! {
            outcome = &mut outcome => return outcome,
            _ = ticks.tick() => {}
        }
        if let Some(limited) = transfer.waits_for() {
            moved = Instant::now();
            tell(Happens::Waits(limited));
            continue;
        }
        let progress = transfer.progress();
        if progress.linked != linked {
            (linked, moved) = (progress.linked, Instant::now());
        }
        tell(Happens::Comes(progress));
        if moved.elapsed() >= STUCK {
            moved = Instant::now();
            tokio::select! {
                outcome = &mut outcome => return outcome,
                why = transfer.why() => why.into_iter().for_each(|why| tell(Happens::Stuck(why))),
            }
        }
    }
}
