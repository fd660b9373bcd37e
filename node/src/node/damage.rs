//! What of this node's images the disk has damaged, and whether it is on its way again.

use std::collections::{BTreeMap, HashMap, HashSet};

use wherry_proto::Digest;

use super::Node;
use super::backend::image_error;
use crate::control::api::{ApiError, ImageSummary};
use crate::images::{ImageName, LocalImage};
use crate::status::{Damage, DamagedStatus, MAX_TRANSFERS, Recovery};
use crate::store::Store;

/// What is wrong with one image, and one of its blobs that are.
type Wrong = (Damage, Digest);

impl Node {
    fn recovery(&self, digest: Digest, size: u64) -> Recovery {
        if self.transfers.get(digest, size).is_some() { Recovery::Healing } else { Recovery::Waiting }
    }

    /// Blobs that are damaged and not whole again, at most [`MAX_TRANSFERS`].
    pub(super) async fn damage_status(&self) -> Vec<DamagedStatus> {
        let mut damaged: Vec<_> = self.store.damaged().into_iter().collect();
        damaged.sort_unstable();
        damaged.truncate(MAX_TRANSFERS);
        let users = self.recent_users(damaged.iter().map(|(digest, _)| *digest).collect()).await;
        let status = |(digest, size)| DamagedStatus {
            digest,
            size,
            images: users.get(&digest).map(|names| names.iter().cloned().collect()).unwrap_or_default(),
            state: self.recovery(digest, size),
        };
        damaged.into_iter().map(status).collect()
    }

    /// What is damaged, by the names of the images.
    async fn damage_by_image(&self) -> Result<BTreeMap<String, Wrong>, ApiError> {
        let damaged = self.store.damaged();
        if damaged.is_empty() {
            return Ok(BTreeMap::new());
        }
        let blobs: HashSet<Digest> = damaged.keys().copied().collect();
        let users = self.images.users_of(blobs).await.map_err(image_error)?;
        let mut wrong: BTreeMap<String, Wrong> = BTreeMap::new();
        for (digest, names) in users {
            let size = damaged.get(&digest).copied().unwrap_or_default();
            for name in names {
                let none = Damage { blobs: 0, state: Recovery::Waiting };
                let (damage, _) = wrong.entry(name).or_insert((none, digest));
                damage.blobs += 1;
                damage.state = damage.state.max(self.recovery(digest, size));
            }
        }
        Ok(wrong)
    }

    /// The images that are here whole, and those that were before some of their blobs were damaged.
    pub(super) async fn list_images(&self) -> Result<Vec<ImageSummary>, ApiError> {
        let wrong = self.damage_by_image().await?;
        let (store, damage) = (self.store.clone(), wrong.clone());
        // Of every image that can be looked at there is something to say or not.
        let looked = self.images.local_images(move |image| {
            let name = image.name.to_string();
            let damage = damage.get(&name).map(|(damage, _)| *damage).filter(|_| !image.whole);
            let is_listed = image.whole || (damage.is_some() && lacks_only_damaged(&store, &image));
            let summary = is_listed.then(|| ImageSummary { damaged: damage, ..summary(&store, &image) });
            Some((name, summary))
        });
        let looked: HashMap<String, Option<ImageSummary>> =
            looked.await.map_err(image_error)?.into_iter().collect();
        // Of one whose manifest is damaged its name is all that is known.
        let unseen = wrong.into_iter().filter(|(name, _)| !looked.contains_key(name));
        let unseen: Vec<_> = unseen
            .map(|(reference, (damage, digest))| ImageSummary {
                digest: self.meaning_of(&reference).unwrap_or(digest),
                reference,
                size: 0,
                layers: 0,
                added: None,
                pinned: self.store.is_pinned(&digest),
                damaged: Some(damage),
            })
            .collect();
        Ok(looked.into_values().flatten().chain(unseen).collect())
    }

    fn meaning_of(&self, name: &str) -> Option<Digest> {
        match name.parse().ok()? {
            ImageName::Unnamed(digest) => Some(digest),
            ImageName::Reference(reference) => match reference.target().digest() {
                Some(digest) => Some(*digest),
                None => Some(self.images.records().tag(&reference).ok()??.record.digest),
            },
        }
    }
}

fn summary(store: &Store, image: &LocalImage) -> ImageSummary {
    let reference = image.name.to_string();
    // A tag may mean something else than when it was pinned.
    let pinned = store.pinned_by(&reference).is_ok_and(|pins| pins.contains(image.top.digest()));
    ImageSummary {
        digest: *image.top.digest(),
        size: image.size(),
        layers: image.image.image().map_or(0, |image| image.layers.len()),
        added: image.since,
        pinned,
        damaged: None,
        reference,
    }
}

/// Whether an image would be whole if nothing of it were damaged.
fn lacks_only_damaged(store: &Store, image: &LocalImage) -> bool {
    image.image.image().is_some_and(|image| {
        let mut blobs = image.blobs().filter(|blob| !blob.is_foreign());
        blobs.all(|blob| store.holds(&blob.digest) || store.is_damaged(&blob.digest))
    })
}
