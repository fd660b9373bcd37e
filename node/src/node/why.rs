//! Why an image is not here yet.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt as _, stream};
use wherry_gateway::{Descriptor, Reference};
use wherry_proto::{ChunkMap, Digest, NodeId};

use super::Node;
use super::backend::{image_error, platform};
use crate::control::api::{ApiError, BlobWhy, InspectRequest, LimitNow, WhyImage, WhyState};
use crate::images::LocalImage;
use crate::swarm::LinkClass;
use crate::transfer::WaitsFor;

/// How long neighbours may take to say what they have.
const ASK_TIME: Duration = Duration::from_secs(1);

/// Of how many blobs the neighbours are asked who has them, at most.
const MAX_ASKED_FOR: usize = 64;

/// What an image is made of, if it is one.
fn blobs_of(local: &LocalImage) -> Option<Vec<Descriptor>> {
    Some(local.image.image()?.blobs().filter(|blob| !blob.is_foreign()).cloned().collect())
}

impl Node {
    pub(super) async fn why_image(&self, request: InspectRequest) -> Result<WhyImage, ApiError> {
        let references = self.references(&request.reference).await?;
        let platform = platform(request.platform.as_deref())?;
        let jobs: Vec<_> = references.iter().flat_map(|reference| self.pulls.of(reference)).collect();
        // Of several names the one by which it is pulled.
        let pulled = jobs.first().map(|job| job.reference());
        let reference = pulled.or(references.first()).cloned();
        let platform = platform.or_else(|| jobs.iter().find_map(|job| job.platform().cloned()));
        let limit = self.limits.limited().map(|limited| {
            let why = self.limits.explain(&limited);
            LimitNow { limited, why }
        });
        let local = match &reference {
            Some(reference) => {
                self.images.local_image(reference, platform.as_ref()).await.map_err(image_error)?
            }
            None => Some(self.find(&request.reference, platform.as_ref()).await?),
        };
        let name = reference.as_ref().map(Reference::to_string);
        let name = name.or_else(|| local.as_ref().map(|image| image.name.to_string()));
        let mut told = WhyImage {
            reference: name.unwrap_or_else(|| request.reference.clone()),
            state: if jobs.is_empty() { WhyState::Absent } else { WhyState::Resolving },
            pulled: !jobs.is_empty(),
            registry: reference.as_ref().map(|reference| reference.host().to_string()).unwrap_or_default(),
            bytes: 0,
            of_bytes: None,
            rate: 0,
            seconds_left: None,
            limit,
            holders: Vec::new(),
            blobs: Vec::new(),
        };
        let Some(blobs) = local.as_ref().and_then(blobs_of) else {
            if let Some(reference) = &reference {
                told.holders = self.who_has_name(reference).await;
            }
            return Ok(told);
        };
        for blob in &blobs {
            told.blobs.push(self.blob_why(blob).await);
        }
        told.bytes = told.blobs.iter().map(|blob| blob.bytes).sum();
        let size: u64 = told.blobs.iter().map(|blob| blob.size).sum();
        told.of_bytes = Some(size);
        let coming = told.blobs.iter().any(|blob| blob.transfer.is_some());
        told.state = match () {
            () if told.blobs.iter().all(|blob| blob.bytes == blob.size && blob.transfer.is_none()) => {
                WhyState::Here
            }
            () if coming || !jobs.is_empty() => WhyState::Coming,
            () => WhyState::Absent,
        };
        let transfers = || told.blobs.iter().filter_map(|blob| blob.transfer.as_ref());
        told.rate = transfers().map(|transfer| transfer.rate).sum();
        // One that stands still holds up the image; one that waits for its turn does not yet.
        let moves =
            |why: &crate::transfer::Why| why.seconds_left.is_some() || why.waits_for == WaitsFor::Turn;
        if told.rate > 0 && transfers().all(moves) {
            told.seconds_left = Some((size - told.bytes) as f64 / told.rate as f64);
        }
        if told.state == WhyState::Absent {
            self.find_holders(&mut told).await;
        }
        Ok(told)
    }

    async fn blob_why(&self, blob: &Descriptor) -> BlobWhy {
        let Descriptor { digest, size, .. } = *blob;
        let mut told = BlobWhy { digest, size, bytes: size, transfer: None, away: None, holders: Vec::new() };
        if self.store.holds(&digest) {
            return told;
        }
        told.away = self.images.away(&digest);
        if let Some(transfer) = self.transfers.get(digest, size) {
            told.transfer = transfer.why().await;
            told.bytes = transfer.progress().linked.max(transfer.before()).min(size);
        } else {
            let (store, map) = (self.store.clone(), ChunkMap::new(size).ok());
            let here = move || map.and_then(|map| store.partial_bytes(&digest, map)).unwrap_or(0);
            told.bytes = tokio::task::spawn_blocking(here).await.unwrap_or(0).min(size);
        }
        told
    }

    async fn who_has(&self, digest: Digest) -> Vec<NodeId> {
        let want = |class| self.swarm.want(digest, class, ASK_TIME);
        let offers = stream::select(want(LinkClass::Lan), want(LinkClass::Wan));
        let holders =
            offers.filter(|offer| std::future::ready(offer.arriving.is_none())).map(|offer| offer.node);
        let holders: BTreeSet<NodeId> = holders.collect().await;
        holders.into_iter().collect()
    }

    /// Whom a pull would have the manifest of.
    async fn who_has_name(&self, reference: &Reference) -> Vec<NodeId> {
        let known = match reference.target().digest() {
            Some(digest) => Some(*digest),
            None => self.images.records().tag(reference).ok().flatten().map(|entry| entry.record.digest),
        };
        let digest = match known {
            Some(digest) => Some(digest),
            None => {
                let reference = reference.to_string();
                let tag = |class| self.swarm.tag(&reference, class, ASK_TIME);
                let (near, far) = tokio::join!(tag(LinkClass::Lan), tag(LinkClass::Wan));
                near.into_iter().chain(far).max_by_key(|record| record.sequence).map(|record| record.digest)
            }
        };
        match digest {
            Some(digest) => self.who_has(digest).await,
            None => Vec::new(),
        }
    }

    /// Asks who has what is missing; of the image itself those that have all of that.
    async fn find_holders(&self, told: &mut WhyImage) {
        let missing = told.blobs.iter_mut().filter(|blob| blob.bytes < blob.size).take(MAX_ASKED_FOR);
        let missing: Vec<&mut BlobWhy> = missing.collect();
        let found = join_all(missing.iter().map(|blob| self.who_has(blob.digest))).await;
        let mut all: Option<BTreeSet<NodeId>> = None;
        for (blob, holders) in missing.into_iter().zip(found) {
            let set: BTreeSet<NodeId> = holders.iter().copied().collect();
            all = Some(all.map_or_else(|| set.clone(), |all| all.intersection(&set).copied().collect()));
            blob.holders = holders;
        }
        told.holders = all.unwrap_or_default().into_iter().collect();
    }
}
