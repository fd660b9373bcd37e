//! Tags that never move.

use tracing::debug;
use wherry_gateway::{Reference, TagOrDigest};
use wherry_proto::{Digest, TagRecord, TagWord};

use super::{ImageError, Images, Resolved, TagEntry, TagPolicy, Unasked};

impl Images {
    /// Whether a tag means this for good.
    pub(super) fn is_frozen(&self, reference: &Reference, entry: &TagEntry) -> bool {
        entry.counts() && self.0.parts.tags.policy(reference) == TagPolicy::Frozen
    }

    /// Whether a frozen tag would mean something else by a record; a removal is somebody's wish.
    pub(super) fn thaws(&self, reference: &Reference, known: &TagEntry, record: &TagRecord) -> bool {
        let thaws = record.word != TagWord::Removed
            && record.digest != known.record.digest
            && self.is_frozen(reference, known);
        if thaws {
            debug!(%reference, digest = %record.digest, "another meaning of a frozen tag is passed over");
        }
        thaws
    }

    /// The manifest that a frozen tag means and no node of the site gave: the origin may have it under its digest.
    pub(super) async fn frozen(
        &self,
        reference: &Reference,
        entry: &TagEntry,
        for_all: bool,
    ) -> Result<Resolved, ImageError> {
        let digest = entry.record.digest;
        let by_digest = reference.with_target(TagOrDigest::Digest(digest));
        let resolved = self.manifest_by_digest(&by_digest, digest, for_all).await?;
        let (age, unasked) = (self.age(entry.confirmed), Some(Unasked::Policy(TagPolicy::Frozen)));
        Ok(Resolved { age, unasked, ..resolved })
    }

    /// Whether somebody may give a tag this meaning, as far as this node and its neighbours know.
    ///
    /// # Errors
    /// [`ImageError::Frozen`] where it means something else and is frozen.
    pub async fn may_mean(&self, reference: &Reference, digest: &Digest) -> Result<(), ImageError> {
        if self.0.parts.tags.policy(reference) != TagPolicy::Frozen {
            return Ok(());
        }
        self.ask_neighbours(reference).await?;
        match self.0.records.tag(reference)? {
            Some(known) if known.record.digest != *digest => {
                Err(ImageError::Frozen { what: reference.to_string(), digest: known.record.digest })
            }
            _ => Ok(()),
        }
    }

    /// What comes of giving a tag a meaning: what the site is to be told, or an error where it was frozen meanwhile.
    pub(super) fn given(
        &self,
        reference: &Reference,
        (moved, stays): (Option<TagRecord>, Option<TagEntry>),
    ) -> Result<Option<TagRecord>, ImageError> {
        match stays {
            Some(stays) => {
                Err(ImageError::Frozen { what: reference.to_string(), digest: stays.record.digest })
            }
            None => Ok(moved),
        }
    }
}
