//! What is here: the images, and what one of them is made of.

use std::collections::HashMap;

use wherry_gateway::{Descriptor, Host, Reference, Repository};
use wherry_proto::{ChunkMap, Digest};

use super::Node;
use super::backend::{image_error, platform, stopping};
use crate::control::api::{ApiError, ErrorCode, ImageDetails, ImageSummary, InspectRequest};
use crate::images::inspect::{self, LayerState, OtherImage};
use crate::images::{ImageName, LocalImage, MAX_CONFIG, Records, check_platform};
use crate::store::Store;
use crate::transfer::Transfers;

/// How many tags of one repository are looked at that meant something else before.
const MAX_MOVED: usize = 1000;

impl Node {
    /// The images of which the manifests are here and at least some of the rest, or were before they were damaged.
    pub(super) async fn list_images(&self) -> Result<Vec<ImageSummary>, ApiError> {
        let (store, transfers) = (self.store.clone(), self.transfers.clone());
        let records = self.images.records().clone();
        // Of each repository once, though it may have many images.
        let mut left = HashMap::new();
        let looked = self.images.local_images(move |image| {
            let (here, of_layers) = bytes_here(&store, &transfers, &image);
            // Whoever asks what an image is for, or for which platform, brings its configuration alone.
            let is_more = image.whole || of_layers > 0;
            Some((is_more, summary(&store, &records, &mut left, &image, here)))
        });
        let mut looked = looked.await.map_err(image_error)?;
        // Behind it: a manifest that is damaged is found out by reading it.
        let mut wrong = self.damage_by_image().await?;
        for (_, image) in &mut looked {
            let damaged = wrong.remove(&image.reference);
            image.damaged = damaged.map(|(damage, _)| damage).filter(|_| !image.whole);
        }
        let listed = looked.into_iter().filter(|(is_more, image)| *is_more || image.damaged.is_some());
        let unseen = wrong.into_iter().map(|(name, wrong)| self.unseen(name, wrong));
        Ok(listed.map(|(_, image)| image).chain(unseen).collect())
    }

    pub(super) async fn inspect_image(&self, request: InspectRequest) -> Result<ImageDetails, ApiError> {
        let platform = platform(request.platform.as_deref())?;
        let local = self.find(&request.reference, platform.as_ref()).await?;
        let reference = local.name.to_string();
        let others = self.images.local_images(|image| Some(other(image))).await.map_err(image_error)?;
        let config = local.image.image().map(|image| image.config.digest);
        let Some(blob) = config.and_then(|digest| self.store.get(&digest)) else {
            let is_damaged = config.is_some_and(|config| self.store.is_damaged(&config));
            let why = if is_damaged { "is damaged and was set aside" } else { "is not here" };
            let message =
                format!("of {reference} no more than the manifest can be shown: its configuration {why}");
            let error = ApiError::new(ErrorCode::NotFound, message).hint(format!(
                "'wherry why {reference}' says what is missing and who has it, 'wherry pull {reference}' brings it"
            ));
            return Err(self.with_moved(&local.name, error).await);
        };
        let (store, transfers, images) = (self.store.clone(), self.transfers.clone(), self.images.clone());
        let name = local.name.clone();
        let describe = move || {
            let config = blob.read(MAX_CONFIG).map_err(|error| {
                let message = format!("the configuration of {reference} cannot be read: {error}");
                ApiError::new(ErrorCode::Internal, message)
            })?;
            // Of an index that of the platform was found.
            if let (Some(wanted), Some(_)) = (&platform, local.top.image()) {
                check_platform(&reference, &config, wanted).map_err(image_error)?;
            }
            let here = |layer: &Descriptor| here(&store, &transfers, layer);
            let mut details = inspect::inspect(&reference, &local.image, &config, &others, here)
                .map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("{reference}: {error}")))?;
            if let ImageName::Reference(name) = &name {
                details.tag = images.tag_details(name, local.top.digest()).map_err(image_error)?;
            }
            Ok(details)
        };
        tokio::task::spawn_blocking(describe).await.map_err(stopping)?
    }
}

/// By repository, what tags meant before.
type LeftBehind = HashMap<(Host, Repository), HashMap<Digest, Vec<Reference>>>;

fn summary(
    store: &Store,
    records: &Records,
    left: &mut LeftBehind,
    image: &LocalImage,
    here: u64,
) -> ImageSummary {
    let (reference, digest) = (image.name.to_string(), *image.top.digest());
    let mut was = Vec::new();
    let mut pinned = pins(store, &reference, &digest);
    if let ImageName::Reference(name) = &image.name
        && name.target().digest().is_some()
    {
        let (host, repository) = (name.host(), name.repository());
        let left = left
            .entry((host.clone(), repository.clone()))
            .or_insert_with(|| left_behind(records, host, repository));
        let tags = left.get(&digest).map_or(&[][..], Vec::as_slice);
        // The pins of a tag that has moved stay with what it meant until it is pulled anew.
        pinned |= tags.iter().any(|tag| pins(store, &tag.to_string(), &digest));
        was = tags.iter().map(Reference::to_string).collect();
    }
    ImageSummary {
        reference,
        digest,
        size: image.size(),
        here,
        whole: image.whole,
        layers: image.image.image().map_or(0, |image| image.layers.len()),
        added: image.since.or_else(|| store.look(&digest)?.since()),
        pinned,
        was,
        damaged: None,
    }
}

/// Whether a name pins what it means, and not only what it meant before.
fn pins(store: &Store, name: &str, digest: &Digest) -> bool {
    store.is_pinned(digest) && store.pinned_by(name).is_ok_and(|pins| pins.contains(digest))
}

/// The tags that meant this before and mean something else now.
pub(super) fn meant_by(
    records: &Records,
    host: &Host,
    repository: &Repository,
    digest: &Digest,
) -> Vec<Reference> {
    left_behind(records, host, repository).remove(digest).unwrap_or_default()
}

/// What tags of a repository meant before, with those that mean something else now.
fn left_behind(records: &Records, host: &Host, repository: &Repository) -> HashMap<Digest, Vec<Reference>> {
    let mut left: HashMap<Digest, Vec<Reference>> = HashMap::new();
    for (tag, before) in records.moved_tags(host, repository, MAX_MOVED).unwrap_or_default() {
        let now = records.tag(&tag).ok().flatten().map(|entry| entry.record.digest);
        for digest in before.into_iter().filter(|digest| now != Some(*digest)) {
            left.entry(digest).or_default().push(tag.clone());
        }
    }
    left
}

/// Bytes of an image's configuration and layers that are here, each counted once, and those of the layers alone. Reads the
/// disk.
fn bytes_here(store: &Store, transfers: &Transfers, image: &LocalImage) -> (u64, u64) {
    let Some(image) = image.image.image() else { return (0, 0) };
    image.blobs().fold((0, 0), |(all, of_layers): (u64, u64), blob| {
        let bytes = here(store, transfers, blob).1;
        let layer = if blob.digest == image.config.digest { 0 } else { bytes };
        (all.saturating_add(bytes), of_layers.saturating_add(layer))
    })
}

/// How much of a blob is here. Reads the disk.
fn here(store: &Store, transfers: &Transfers, blob: &Descriptor) -> (LayerState, u64) {
    if store.holds(&blob.digest) {
        return (LayerState::Here, blob.size);
    }
    if let Some(transfer) = transfers.get(blob.digest, blob.size) {
        return (LayerState::Arriving, transfer.progress().linked.max(transfer.before()));
    }
    let partly = ChunkMap::new(blob.size).ok().and_then(|map| store.partial_bytes(&blob.digest, map));
    match partly {
        bytes if store.is_damaged(&blob.digest) => (LayerState::Damaged, bytes.unwrap_or(0)),
        Some(bytes) if bytes > 0 => (LayerState::Partly, bytes),
        _ => (LayerState::Missing, 0),
    }
}

fn other(image: LocalImage) -> OtherImage {
    let layers = image.image.image().map(|image| image.layers.iter().map(|layer| layer.digest).collect());
    OtherImage { reference: image.name.to_string(), layers: layers.unwrap_or_default() }
}
