//! Which images stay here: pins, and removal.

use std::collections::HashSet;

use wherry_gateway::Reference;
use wherry_proto::Digest;

use super::Node;
use super::backend::{image_error, stopping};
use crate::control::api::{ApiError, ErrorCode, PinSummary, RemoveRequest, RemoveSummary, RemovedImage};
use crate::images::{ImageName, Images, LocalImage, Wanted};
use crate::store::{Store, StoreError};

pub(super) fn failed(error: &StoreError) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}

/// Pins these blobs under an image's name, and nothing else: what the name meant before may go.
pub(super) async fn pin_blobs(store: &Store, name: String, blobs: Vec<Digest>) -> Result<(), ApiError> {
    let store = store.clone();
    let pin = move || {
        blobs.iter().try_for_each(|digest| store.pin(&name, digest))?;
        let blobs: HashSet<Digest> = blobs.into_iter().collect();
        let before = store.pinned_by(&name)?;
        before.iter().filter(|digest| !blobs.contains(digest)).try_for_each(|old| store.unpin(&name, old))
    };
    let pinned: Result<(), StoreError> = tokio::task::spawn_blocking(pin).await.map_err(stopping)?;
    pinned.map_err(|error| failed(&error))
}

/// The blobs of an image that are here.
pub(super) async fn parts_here(
    store: &Store,
    images: &Images,
    image: &LocalImage,
) -> Result<Vec<Digest>, ApiError> {
    let parts = images.parts(image).await.map_err(image_error)?;
    Ok(parts.into_iter().filter(|digest| store.holds(digest)).collect())
}

/// An image that was pinned stays so when it has been pulled anew and may mean something else.
pub(super) async fn pin_anew(store: &Store, images: &Images, reference: &Reference) -> Result<(), ApiError> {
    let name = reference.to_string();
    if store.pinned_by(&name).map_err(|error| failed(&error))?.is_empty() {
        return Ok(());
    }
    pin_pulled(store, images, reference).await
}

/// Pins an image that was pulled just now.
pub(super) async fn pin_pulled(
    store: &Store,
    images: &Images,
    reference: &Reference,
) -> Result<(), ApiError> {
    match images.local_image(reference, None).await.map_err(image_error)? {
        Some(image) => {
            pin_blobs(store, reference.to_string(), parts_here(store, images, &image).await?).await
        }
        None => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("{reference} left this node before it was pinned"),
        )),
    }
}

impl Node {
    pub(super) async fn pin_image(&self, text: &str) -> Result<PinSummary, ApiError> {
        let image = self.all_of(self.find(text, None).await?).await?;
        if !image.whole {
            let message = format!("{} is not here whole", image.name);
            return Err(ApiError::new(ErrorCode::NotFound, message).hint("pull it, then pin it"));
        }
        let name = image.name.to_string();
        let blobs = parts_here(&self.store, &self.images, &image).await?;
        let count = blobs.len();
        pin_blobs(&self.store, name.clone(), blobs).await?;
        Ok(PinSummary { reference: name, pinned: true, blobs: count })
    }

    pub(super) async fn unpin_image(&self, text: &str) -> Result<PinSummary, ApiError> {
        let name = match self.wanted(text)? {
            // It need not be here.
            Wanted::Named(reference) => reference.to_string(),
            Wanted::Digest(_) => self.find(text, None).await?.name.to_string(),
        };
        let blobs = self.unpin_all(&name).await?;
        if blobs == 0 {
            return Err(ApiError::new(ErrorCode::NotFound, format!("{name} is not pinned"))
                .hint("'wherry images' shows what is"));
        }
        Ok(PinSummary { reference: name, pinned: false, blobs })
    }

    async fn unpin_all(&self, name: &str) -> Result<usize, ApiError> {
        let (store, name) = (self.store.clone(), name.to_owned());
        let unpin = move || {
            let pinned = store.pinned_by(&name)?;
            pinned.iter().try_for_each(|digest| store.unpin(&name, digest))?;
            Ok(pinned.len())
        };
        let unpinned = tokio::task::spawn_blocking(unpin).await.map_err(stopping)?;
        unpinned.map_err(|error: StoreError| failed(&error))
    }

    pub(super) async fn remove_images(&self, request: RemoveRequest) -> Result<RemoveSummary, ApiError> {
        let mut images: Vec<(LocalImage, Vec<Digest>)> = Vec::new();
        for text in &request.references {
            let image = self.all_of(self.find_one(text).await?).await?;
            let parts = self.images.parts(&image).await.map_err(image_error)?;
            self.refuse_if_fetched(&image.name, &parts)?;
            if images.iter().all(|(other, _)| other.name != image.name) {
                images.push((image, parts));
            }
        }
        let mut removed = Vec::new();
        for (image, parts) in images {
            let name = image.name.to_string();
            self.refuse_if_fetched(&image.name, &parts)?;
            let shared = self.needed_elsewhere(&name, &parts).await?;
            self.unpin_all(&name).await?;
            // Manifests go behind what they name, and the name goes last: whatever comes between, the image can be
            // removed once more.
            let alone: Vec<Digest> =
                parts.iter().rev().filter(|part| !shared.contains(part)).copied().collect();
            let store = self.store.clone();
            let done = tokio::task::spawn_blocking(move || remove_all(&store, &alone)).await;
            let (blobs, bytes) = done.map_err(stopping)?.map_err(|error| failed(&error))?;
            self.images.forget(&image.name).await.map_err(image_error)?;
            let shared = shared.iter().filter(|part| self.store.holds(part)).count();
            tracing::info!(image = name, blobs, bytes, "an image was removed");
            removed.push(RemovedImage { reference: name, digest: *image.top.digest(), blobs, bytes, shared });
        }
        Ok(RemoveSummary { removed })
    }

    /// Which of an image's parts other images have too, or are to have once they have been pulled.
    async fn needed_elsewhere(&self, name: &str, parts: &[Digest]) -> Result<HashSet<Digest>, ApiError> {
        let users = self.images.users_of(parts.iter().copied().collect()).await.map_err(image_error)?;
        let others = users.into_iter().filter(|(_, users)| users.iter().any(|user| user != name));
        let mut needed: HashSet<Digest> = others.map(|(part, _)| part).collect();
        let wanted = self.pulls.wanted();
        needed.extend(parts.iter().filter(|part| wanted.contains(part)));
        Ok(needed)
    }

    /// Refuses what is being pulled, or of which something is on its way.
    fn refuse_if_fetched(&self, name: &ImageName, parts: &[Digest]) -> Result<(), ApiError> {
        let is_pulled = matches!(name, ImageName::Reference(reference) if self.pulls.has(reference));
        if is_pulled || self.transfers.running().iter().any(|transfer| parts.contains(&transfer.digest())) {
            let message = format!("{name} is on its way here: nothing was removed");
            return Err(ApiError::new(ErrorCode::Conflict, message)
                .hint(format!("stop that with 'wherry cancel {name}', or wait until it is here")));
        }
        Ok(())
    }
}

/// Removes what is neither pinned nor claimed: how many blobs that were, and their bytes.
fn remove_all(store: &Store, blobs: &[Digest]) -> Result<(usize, u64), StoreError> {
    let (mut count, mut bytes) = (0, 0);
    for digest in blobs {
        let size = store.look(digest).map(|blob| blob.size());
        match store.remove(digest) {
            Ok(true) => {
                count += 1;
                bytes += size.unwrap_or(0);
            }
            // What is pinned under another name stays, and what comes for another image that has no name yet.
            Ok(false) | Err(StoreError::Pinned(_) | StoreError::Claimed(_)) => {}
            Err(error) => return Err(error),
        }
        store.remove_partials(digest);
    }
    // Whoever is told that it is gone may cut the power now.
    store.sync()?;
    Ok((count, bytes))
}
