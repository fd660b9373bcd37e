//! Tags that have moved to images which cannot be had, while what they meant before is here.

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use wherry_gateway::{Host, Reference, Repository, TagOrDigest};
use wherry_proto::Digest;

use super::list::{COUNT_FOR, Meaning};
use super::{ImageError, Images, blocking};

/// How many tags of a repository are looked at, of those that have moved, to say of a blob that one of them needs it.
const MAX_LOOKED_AT: usize = 64;

/// How many answers about blobs are remembered.
const MAX_ANSWERS: usize = 256;

/// What was found out of late about blobs of repositories, and when.
pub(super) type Answers = HashMap<(Host, Repository, Digest), (Instant, Option<Moved>)>;

/// That a tag has moved, and that what it meant before is whole here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The tag.
    pub tag: Reference,
    /// What it means now.
    pub now: Digest,
    /// The newest of what it meant before and is whole here, by its digest.
    pub before: Reference,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tag, now, before } = self;
        write!(
            f,
            "{tag} has moved: it means {now} now. What it meant before is whole here: use it as {before}"
        )
    }
}

impl Images {
    /// What is whole here that a tag meant before it moved; `None` for a digest, and where nothing is.
    pub async fn moved(&self, reference: &Reference) -> Result<Option<Moved>, ImageError> {
        let (images, reference) = (self.clone(), reference.clone());
        blocking(move || images.find_moved(&reference)).await
    }

    fn find_moved(&self, tag: &Reference) -> Result<Option<Moved>, ImageError> {
        if tag.target().tag().is_none() {
            return Ok(None);
        }
        let Some(entry) = self.records().tag(tag)? else { return Ok(None) };
        let now = entry.record.digest;
        let before = self.records().before(tag)?;
        let whole = before.into_iter().find(|digest| *digest != now && self.is_whole(tag, digest));
        Ok(whole.map(|digest| Moved {
            tag: tag.clone(),
            now,
            before: tag.with_target(TagOrDigest::Digest(digest)),
        }))
    }

    /// Whether an image of the reference's repository is here whole. Reads the disk.
    pub(super) fn is_whole(&self, reference: &Reference, digest: &Digest) -> bool {
        let grant = self.records().grant(reference.host(), reference.repository(), digest);
        let media_type = grant.ok().flatten().map(|grant| grant.media_type).unwrap_or_default();
        let meaning = Meaning { digest: *digest, media_type, since: None };
        matches!(self.local(&reference.clone().into(), &meaning, None), Ok(Some(image)) if image.whole)
    }

    /// The error with what there is instead, if a tag has moved to what cannot be had.
    pub(super) async fn with_moved(&self, reference: &Reference, error: ImageError) -> ImageError {
        match error {
            ImageError::Unknown { .. } | ImageError::Transfer { .. } => match self.moved(reference).await {
                Ok(Some(moved)) => ImageError::Moved { source: Box::new(error), moved: Box::new(moved) },
                _ => error,
            },
            error => error,
        }
    }

    /// The tag of a repository that has moved to an image with this blob, if what it meant before is whole here, as it was
    /// at most [`COUNT_FOR`] ago: finding out reads many manifests, and any client can ask.
    pub(super) async fn moved_to_blob(
        &self,
        host: &Host,
        repository: &Repository,
        blob: Digest,
    ) -> Result<Option<Moved>, ImageError> {
        // What no manifest of the repository has named no tag can have moved to.
        if self.records().grant(host, repository, &blob)?.is_none() {
            return Ok(None);
        }
        let key = (host.clone(), repository.clone(), blob);
        let mut answers = self.0.moved.lock().await;
        answers.retain(|_, (when, _)| when.elapsed() < COUNT_FOR);
        if let Some((_, moved)) = answers.get(&key) {
            return Ok(moved.clone());
        }
        let moved = self.look_for_moved(host, repository, blob).await?;
        if answers.len() < MAX_ANSWERS {
            answers.insert(key, (Instant::now(), moved.clone()));
        }
        Ok(moved)
    }

    async fn look_for_moved(
        &self,
        host: &Host,
        repository: &Repository,
        blob: Digest,
    ) -> Result<Option<Moved>, ImageError> {
        let (images, host, repository) = (self.clone(), host.clone(), repository.clone());
        blocking(move || {
            for (tag, _) in images.records().moved_tags(&host, &repository, MAX_LOOKED_AT)? {
                let Some(entry) = images.records().tag(&tag)? else { continue };
                if images.parts_of(&Meaning::of(&entry))?.contains(&blob)
                    && let Some(moved) = images.find_moved(&tag)?
                {
                    return Ok(Some(moved));
                }
            }
            Ok(None)
        })
        .await
    }
}
