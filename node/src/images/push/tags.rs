//! Tags that are set and removed by a client.

use wherry_gateway::{Manifest, Reference};
use wherry_proto::{TagMeaning, TagRecord, TagWord};

use super::super::{ImageError, Images, TagEntry, blocking};

impl Images {
    /// Gives a tag the meaning that it was pushed with: nobody asks an origin. What it returns is as of [`Images::set_tag`].
    pub(super) async fn push_tag(
        &self,
        reference: &Reference,
        manifest: &Manifest,
    ) -> Result<Option<TagRecord>, ImageError> {
        // So that its number is higher than any that the site knows.
        self.ask_neighbours(reference).await?;
        self.given(reference, self.change(reference, manifest, None, TagWord::Pushed).await?)
    }

    /// Takes back what a tag means, as [`Images::set_tag`] returns it; `None` if it means nothing here.
    pub(super) async fn remove_tag(&self, reference: &Reference) -> Result<Option<TagRecord>, ImageError> {
        self.ask_neighbours(reference).await?;
        let (images, reference) = (self.clone(), reference.clone());
        let now = (self.0.parts.clock)();
        blocking(move || {
            let mut removed = None;
            images.change_tag(&reference, |known| {
                let TagRecord { reference, digest, media_type, size, sequence, .. } =
                    known.filter(|entry| entry.counts())?.record.clone();
                let sequence = sequence.saturating_add(1).max(now);
                let word = TagWord::Removed;
                let meaning = TagMeaning { reference, digest, media_type, size, sequence, time: 0, word };
                let parts = &images.0.parts;
                let record = TagRecord::sign(&parts.key, &parts.certificate, meaning);
                removed = Some(record.clone());
                Some(TagEntry { record, confirmed: 0, since: now })
            })?;
            images.is_news();
            Ok(removed)
        })
        .await
    }
}
