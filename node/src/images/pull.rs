//! All of an image, into the store.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, stream};
use wherry_gateway::server::Want;
use wherry_gateway::{Descriptor, Manifest, ManifestContent, Platform, Reference, TagOrDigest};
use wherry_proto::Digest;

use super::{ImageError, Images, blocking};
use crate::store::StoredBlob;
use crate::transfer::{Fetched, Progress, Transfer, TransferError};

/// How many blobs of one image are fetched side by side.
pub const PARALLEL: usize = 4;

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Who watches a pull.
pub trait PullEvents: Send + Sync {
    /// The reference means this manifest.
    fn resolved(&self, manifest: &Manifest);
    /// A blob is to be had; `here` if it is in the store already.
    fn started(&self, blob: &Descriptor, here: bool);
    /// Some of a blob has arrived.
    fn progress(&self, blob: &Digest, progress: Progress);
    /// All of a blob is here and verified; `here` if it was before.
    fn done(&self, blob: &Digest, here: bool, progress: Progress);
}

/// What a pull has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulled {
    /// The manifest that the reference names: an index, or the image itself.
    pub digest: Digest,
    /// Bytes of the image's blobs, those that were here included.
    pub bytes: u64,
    /// Bytes that came from peers.
    pub from_peers: u64,
    /// Bytes that came from the origin.
    pub from_origin: u64,
}

/// The platform that this node runs on, in the words of Go.
pub fn this_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "x86" => ("386", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "powerpc64" => ("ppc64le", None),
        other => (other, None),
    };
    Platform {
        architecture: architecture.to_owned(),
        os: "linux".to_owned(),
        variant: variant.map(str::to_owned),
        os_version: None,
    }
}

/// The entry of an index that runs on a platform: one of the same variant, else one whose variant is not told or
/// not asked for.
pub fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    let fits = |descriptor: &&Descriptor| {
        descriptor
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == wanted.os && platform.architecture == wanted.architecture)
    };
    let variant = |descriptor: &Descriptor| descriptor.platform.as_ref().and_then(|p| p.variant.clone());
    manifests
        .iter()
        .filter(fits)
        .find(|descriptor| variant(descriptor) == wanted.variant)
        .or_else(|| manifests.iter().filter(fits).find(|d| wanted.variant.is_none() || variant(d).is_none()))
        .or_else(|| manifests.iter().find(fits))
}

impl Images {
    /// Brings all blobs of an image into the store. Of an index, the image for this platform or for `platform`.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        events: &dyn PullEvents,
    ) -> Result<Pulled, ImageError> {
        let top = self.manifest(reference).await?.manifest;
        let manifest = match top.content() {
            ManifestContent::Image(_) => top.clone(),
            ManifestContent::Index(index) => {
                let ours = this_platform();
                let wanted = platform.unwrap_or(&ours);
                let Some(chosen) = choose(&index.manifests, wanted) else {
                    let has = index.manifests.iter().filter_map(|m| Some(m.platform.as_ref()?.to_string()));
                    return Err(ImageError::NoPlatform {
                        what: reference.to_string(),
                        wanted: wanted.to_string(),
                        has: has.collect::<Vec<_>>().join(", "),
                    });
                };
                self.manifest(&reference.with_target(TagOrDigest::Digest(chosen.digest))).await?.manifest
            }
        };
        events.resolved(&manifest);
        let blobs: Vec<Descriptor> = match manifest.image() {
            Some(image) => image.blobs().filter(|blob| !blob.is_foreign()).cloned().collect(),
            None => Vec::new(),
        };
        let fetches: Vec<_> =
            blobs.iter().map(|blob| self.pull_blob(reference, blob, events).boxed()).collect();
        let mut running = stream::iter(fetches).buffer_unordered(PARALLEL);
        let (mut from_peers, mut from_origin) = (0, 0);
        while let Some(progress) = running.next().await {
            let progress = progress?;
            from_peers += progress.from_peers;
            from_origin += progress.from_origin;
        }
        // Whoever is told that an image is here may cut the power now.
        let store = self.0.parts.store.clone();
        blocking(move || Ok(store.sync()?)).await?;
        Ok(Pulled {
            digest: *top.digest(),
            bytes: blobs.iter().map(|blob| blob.size).sum(),
            from_peers,
            from_origin,
        })
    }

    async fn pull_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        events: &dyn PullEvents,
    ) -> Result<Progress, ImageError> {
        let handle = self.blob(reference.host(), reference.repository(), blob.digest, Want::Get).await?;
        match &handle.fetch().await? {
            Fetched::Stored(_) => {
                events.started(blob, true);
                let here = Progress { linked: blob.size, ..Progress::default() };
                events.done(&blob.digest, true, here);
                Ok(here)
            }
            Fetched::Arriving(transfer) => {
                events.started(blob, false);
                let arrived = watch(transfer, |progress| events.progress(&blob.digest, progress)).await;
                arrived.map_err(|source| ImageError::Transfer {
                    what: format!("blob {} of {reference}", blob.digest),
                    source,
                })?;
                events.done(&blob.digest, false, transfer.progress());
                Ok(transfer.progress())
            }
        }
    }
}

/// Waits for a transfer and tells its progress now and then.
async fn watch(transfer: &Transfer, tell: impl Fn(Progress)) -> Result<StoredBlob, TransferError> {
    let outcome = transfer.wait();
    tokio::pin!(outcome);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    loop {
        tokio::select! {
            outcome = &mut outcome => return outcome,
            _ = ticks.tick() => tell(transfer.progress()),
        }
    }
}
