//! Which images stay here: pins, and removal.

use std::collections::HashSet;

use wherry_proto::Digest;

use super::Node;
use super::backend::{image_error, stopping};
use crate::control::api::{ApiError, ErrorCode, PinSummary, RemoveRequest, RemoveSummary, RemovedImage};
use crate::images::{ImageName, KnownImage, Wanted};
use crate::store::{Store, StoreError};

pub(super) fn failed(error: &StoreError) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}

impl Node {
    pub(super) async fn pin_image(&self, text: &str) -> Result<PinSummary, ApiError> {
        let turn = self.pins.turn().await;
        let known = self.all_of(self.find_one(text).await?).await?;
        let image = self.local_of(&known, None).await?;
        if !image.whole {
            let message = format!("{} is not here whole", image.name);
            let error = ApiError::new(ErrorCode::NotFound, message).hint("pull it, then pin it");
            return Err(self.with_moved(&image.name, error).await);
        }
        let blobs = turn.pin_image(&image).await?.here;
        Ok(PinSummary { reference: image.name.to_string(), pinned: true, blobs })
    }

    pub(super) async fn unpin_image(&self, text: &str) -> Result<PinSummary, ApiError> {
        let name = match self.wanted(text).await? {
            // It need not be here.
            Wanted::Named(name) => name,
            Wanted::Either(reference, _) => reference.into(),
            Wanted::Digest(_) => self.find_one(text).await?.name,
        };
        let blobs = self.pins.turn().await.unpin(&name).await?;
        if blobs == 0 {
            return Err(ApiError::new(ErrorCode::NotFound, format!("{name} is not pinned"))
                .hint("'wherry images' shows what is"));
        }
        Ok(PinSummary { reference: name.to_string(), pinned: false, blobs })
    }

    pub(super) async fn remove_images(&self, request: RemoveRequest) -> Result<RemoveSummary, ApiError> {
        let mut images: Vec<(KnownImage, Vec<Digest>)> = Vec::new();
        for text in &request.references {
            let found = self.find_one(text).await.map_err(|error| match error.code {
                ErrorCode::NotFound => error.hint("nothing was removed; 'wherry images' lists what is here"),
                _ => error,
            });
            let image = self.all_of(found?).await?;
            let parts = self.images.parts(&image).await.map_err(image_error)?;
            self.refuse_if_fetched(&image.name, &parts)?;
            if images.iter().all(|(other, _)| other.name != image.name) {
                images.push((image, parts));
            }
        }
        let mut removed = Vec::new();
        for (image, mut parts) in images {
            let name = image.name.to_string();
            // Until the name is forgotten: nothing is to be pinned under it anew meanwhile.
            let turn = self.pins.turn().await;
            parts.extend(self.unread_parts(&image, &parts).await?);
            self.refuse_if_fetched(&image.name, &parts)?;
            let shared = self.needed_elsewhere(&image, &parts).await?;
            let pinned = turn.unpin(&image.name).await? > 0;
            // Manifests go behind what they name, and the name goes last: whatever comes between, the image can be
            // removed once more.
            let alone: Vec<Digest> =
                parts.iter().rev().filter(|part| !shared.contains(part)).copied().collect();
            let store = self.store.clone();
            let done = tokio::task::spawn_blocking(move || remove_all(&store, &alone)).await;
            let Removed { blobs, partial, bytes } =
                done.map_err(stopping)?.map_err(|error| failed(&error))?;
            self.images.forget(&image.name).await.map_err(image_error)?;
            drop(turn);
            let shared = shared.iter().filter(|part| self.store.holds(part)).count();
            tracing::info!(image = name, blobs, partial, bytes, "an image was removed");
            let digest = image.digest();
            removed.push(RemovedImage { reference: name, digest, blobs, partial, bytes, shared, pinned });
        }
        Ok(RemoveSummary { removed })
    }

    /// What a damaged manifest does not tell of an image any more: what its name pins, and what of its repository nothing here
    /// leads to. Nothing where no manifest is damaged.
    pub(super) async fn unread_parts(
        &self,
        image: &KnownImage,
        parts: &[Digest],
    ) -> Result<Vec<Digest>, ApiError> {
        if !self.images.is_unread(image).await.map_err(image_error)? {
            return Ok(Vec::new());
        }
        let (store, name) = (self.store.clone(), image.name.to_string());
        let pinned = tokio::task::spawn_blocking(move || store.pinned_by(&name)).await.map_err(stopping)?;
        let mut unread: HashSet<Digest> = pinned.map_err(|error| failed(&error))?.into_iter().collect();
        unread.extend(self.images.astray(image).await.map_err(image_error)?);
        Ok(unread.into_iter().filter(|part| !parts.contains(part)).collect())
    }

    /// Which of an image's parts other images have too, or are to have once they have been pulled.
    async fn needed_elsewhere(
        &self,
        image: &KnownImage,
        parts: &[Digest],
    ) -> Result<HashSet<Digest>, ApiError> {
        let users = self.images.users_of(parts.iter().copied().collect()).await.map_err(image_error)?;
        // What no name leads to is one image, in whichever repository it is looked for.
        let (name, end) = (image.name.to_string(), format!("@{}", image.digest()));
        let is_itself = |user: &String| {
            let is_kept =
                || user.parse().is_ok_and(|name| !matches!(self.images.records().kept(&name), Ok(None)));
            *user == name || (user.ends_with(&end) && !is_kept())
        };
        let others = users.into_iter().filter(|(_, users)| !users.iter().all(is_itself));
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

/// What was removed.
#[derive(Default)]
struct Removed {
    blobs: usize,
    partial: usize,
    bytes: u64,
}

/// Removes what is neither pinned nor claimed, and what has arrived of blobs that are not whole.
fn remove_all(store: &Store, blobs: &[Digest]) -> Result<Removed, StoreError> {
    let mut removed = Removed::default();
    for digest in blobs {
        let size = store.look(digest).map(|blob| blob.size());
        match store.remove(digest) {
            Ok(true) => {
                removed.blobs += 1;
                removed.bytes += size.unwrap_or(0);
            }
            // What is pinned under another name stays, also what remains of it, and what comes for another image that has no
            // name yet.
            Err(StoreError::Pinned(_) | StoreError::Claimed(_)) => continue,
            Ok(false) => {}
            Err(error) => return Err(error),
        }
        let (partial, bytes) = store.remove_partials(digest);
        removed.partial += partial;
        removed.bytes += bytes;
    }
    // Whoever is told that it is gone may cut the power now.
    store.sync()?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;
    use crate::store::StoreSettings;

    #[test]
    fn what_remains_of_a_damaged_blob_that_another_name_pins_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreSettings::default()).unwrap();
        let bytes = vec![7; 2 << 20];
        let digest = Digest::sha256(&bytes);
        store.put(&digest, &bytes).unwrap();
        // Nothing is still to be done with the file.
        store.sync().unwrap();
        let hex = digest.hex();
        let path = dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, [&[8], &bytes[1..]].concat()).unwrap();
        assert!(!store.verify(&digest).unwrap());
        store.pin("other", &digest).unwrap();
        let Removed { blobs, partial, bytes } = remove_all(&store, &[digest]).unwrap();
        assert_eq!((blobs, partial, bytes), (0, 0, 0));
        assert!(store.is_damaged(&digest) && store.remains(&digest).is_some());

        store.unpin("other", &digest).unwrap();
        assert_eq!(remove_all(&store, &[digest]).unwrap().partial, 1);
        assert!(!store.is_known(&digest));
    }
}
