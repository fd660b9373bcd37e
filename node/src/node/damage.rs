//! What of this node's images the disk has damaged, and whether it is on its way again.

use std::collections::{BTreeMap, HashSet};

use wherry_proto::Digest;

use super::Node;
use super::backend::image_error;
use crate::control::api::{ApiError, ImageSummary};
use crate::images::ImageName;
use crate::status::{Damage, DamagedStatus, MAX_TRANSFERS, Recovery};

/// What is wrong with one image, and one of its blobs that are.
pub(super) type Wrong = (Damage, Digest);

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
    pub(super) async fn damage_by_image(&self) -> Result<BTreeMap<String, Wrong>, ApiError> {
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

    /// An image of whose manifest no more than the name is known, since it is damaged.
    pub(super) fn unseen(&self, reference: String, (damage, digest): Wrong) -> ImageSummary {
        ImageSummary {
            digest: self.meaning_of(&reference).unwrap_or(digest),
            reference,
            size: 0,
            here: 0,
            whole: false,
            layers: 0,
            added: None,
            pinned: self.store.is_pinned(&digest),
            was: Vec::new(),
            damaged: Some(damage),
        }
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
