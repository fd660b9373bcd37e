//! The images that are here, whole or in part.

use wherry_gateway::{Manifest, ManifestContent, Reference};
use wherry_proto::Digest;

use super::pull::{choose, this_platform};
use super::{ImageError, Images};

/// An image of which the manifests are here.
#[derive(Debug, Clone)]
pub struct LocalImage {
    /// What it is called.
    pub reference: Reference,
    /// The manifest that the reference names: an index, or the image itself.
    pub top: Manifest,
    /// The image: of an index the one for this platform, or else the first that is here.
    pub image: Manifest,
    /// Whether all its blobs are here.
    pub whole: bool,
    /// Since when this node knows that the tag means this, in seconds since the Unix epoch.
    pub since: Option<u64>,
}

impl LocalImage {
    /// Bytes of config and layers, each counted once.
    pub fn size(&self) -> u64 {
        self.image.image().map_or(0, |image| image.blobs().map(|blob| blob.size).sum())
    }
}

impl Images {
    /// Every image that has a name here and whose manifests are here.
    pub async fn local_images(&self) -> Result<Vec<LocalImage>, ImageError> {
        let mut found = Vec::new();
        for (reference, entry) in self.records().all_tags()? {
            let since = Some(entry.since);
            let media_type = entry.record.media_type.as_str();
            if let Some(image) = self.local(reference, entry.record.digest, media_type, since).await? {
                found.push(image);
            }
        }
        Ok(found)
    }

    /// The image that a reference names, without asking anybody; `None` if it is not here.
    pub async fn local_image(&self, reference: &Reference) -> Result<Option<LocalImage>, ImageError> {
        if let Some(digest) = reference.target().digest() {
            let grant = self.records().grant(reference.host(), reference.repository(), digest)?;
            let Some(grant) = grant else { return Ok(None) };
            return self.local(reference.clone(), *digest, &grant.media_type, None).await;
        }
        let Some(entry) = self.records().tag(reference)? else { return Ok(None) };
        let media_type = entry.record.media_type.as_str();
        self.local(reference.clone(), entry.record.digest, media_type, Some(entry.since)).await
    }

    async fn local(
        &self,
        reference: Reference,
        digest: Digest,
        media_type: &str,
        since: Option<u64>,
    ) -> Result<Option<LocalImage>, ImageError> {
        let Some(top) = self.stored_manifest(digest, Some(media_type)).await? else { return Ok(None) };
        let image = match top.content() {
            ManifestContent::Image(_) => Some(top.clone()),
            ManifestContent::Index(index) => {
                let ours = choose(&index.manifests, &this_platform());
                let mut here = None;
                for descriptor in ours.into_iter().chain(&index.manifests) {
                    let media_type = Some(descriptor.media_type.as_str());
                    here = self.stored_manifest(descriptor.digest, media_type).await?;
                    if here.is_some() {
                        break;
                    }
                }
                here
            }
        };
        let Some(image) = image else { return Ok(None) };
        let whole = image.image().is_some_and(|image| {
            image.blobs().filter(|blob| !blob.is_foreign()).all(|blob| self.0.parts.store.holds(&blob.digest))
        });
        Ok(Some(LocalImage { reference, top, image, whole, since }))
    }
}
