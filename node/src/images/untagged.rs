//! Images that are known here and that no name leads to: a tag meant them and has moved, or a runtime asked for them by digest.

use std::collections::HashSet;
use std::ops::ControlFlow;

use wherry_gateway::manifest::media_type;
use wherry_gateway::{Host, ManifestContent, Reference, Repository};
use wherry_proto::Digest;

use super::list::Meaning;
use super::{ImageError, Images, MAX_IMAGES, blocking, may_be_manifest};

/// What names lead to, gathered while they are gone through.
#[derive(Default)]
pub(super) struct Named {
    digests: HashSet<Digest>,
    indexes: Vec<(Digest, String)>,
}

impl Named {
    pub(super) fn add(&mut self, meaning: &Meaning) {
        if self.digests.insert(meaning.digest) && !media_type::is_image(&meaning.media_type) {
            self.indexes.push((meaning.digest, meaning.media_type.clone()));
        }
    }
}

impl Images {
    /// Each manifest that is here, or was before it was damaged, and belongs to a repository, by its digest there, but those
    /// that are named and those of which an index is here. Each digest once, though several repositories have it.
    pub(super) fn untagged(&self, named: Named) -> Result<Vec<(Reference, Meaning)>, ImageError> {
        let Named { mut digests, mut indexes } = named;
        let mut found = Vec::new();
        self.records().each_manifest(|reference, media_type| {
            let Some(digest) = reference.target().digest().copied() else { return ControlFlow::Continue(()) };
            let store = &self.0.parts.store;
            let is_known = store.is_known(&digest);
            if !may_be_manifest(media_type) || !is_known || !digests.insert(digest) {
                return ControlFlow::Continue(());
            }
            if !media_type::is_image(media_type) {
                indexes.push((digest, media_type.to_owned()));
            }
            let media_type = media_type.to_owned();
            found.push((reference.clone(), Meaning { digest, media_type, since: None }));
            if found.len() == MAX_IMAGES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if found.is_empty() {
            return Ok(found);
        }
        let mut parts = HashSet::new();
        for (digest, media_type) in indexes {
            // One that cannot be read hides none of its images.
            let Ok(Some(manifest)) = self.read_manifest(digest, Some(&media_type)) else { continue };
            if let ManifestContent::Index(index) = manifest.content() {
                parts.extend(index.manifests.iter().map(|entry| entry.digest));
            }
        }
        found.retain(|(_, meaning)| !parts.contains(&meaning.digest));
        Ok(found)
    }

    /// Drops what was known of repositories because of manifests that have left, of these blobs or, without them, of all:
    /// whoever asks for such an image again has it learned anew.
    pub async fn forget_left(&self, left: Option<HashSet<Digest>>) -> Result<(), ImageError> {
        let images = self.clone();
        blocking(move || {
            let store = &images.0.parts.store;
            let mut repositories = HashSet::new();
            images.records().each_manifest(|reference, _| {
                let digest = reference.target().digest();
                let is_gone = |digest: &&Digest| {
                    left.as_ref().is_none_or(|left| left.contains(*digest)) && !store.is_known(digest)
                };
                if digest.filter(is_gone).is_some() {
                    repositories.insert((reference.host().clone(), reference.repository().clone()));
                }
                ControlFlow::Continue(())
            })?;
            for (host, repository) in repositories {
                images.drop_unneeded(&host, &repository)?;
            }
            Ok(())
        })
        .await
    }

    /// Drops what was known of a repository and nothing here needs any more. Reads the disk.
    pub(super) fn drop_unneeded(&self, host: &Host, repository: &Repository) -> Result<(), ImageError> {
        // What is damaged comes back, and is the same then.
        let holds = |digest: &Digest| self.0.parts.store.is_known(digest);
        let names_of = |digest: &Digest, media_type: &str| {
            let manifest = self.read_manifest(*digest, Some(media_type)).ok()??;
            Some(match manifest.content() {
                ManifestContent::Index(index) => index.manifests.iter().map(|entry| entry.digest).collect(),
                ManifestContent::Image(image) => image.blobs().map(|blob| blob.digest).collect(),
            })
        };
        self.records().drop_unneeded(host, repository, holds, names_of)?;
        Ok(())
    }
}
