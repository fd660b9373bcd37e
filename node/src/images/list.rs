//! The images that are here, whole or in part.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use tracing::debug;
use wherry_gateway::{Descriptor, Manifest, ManifestContent, Platform, Reference};
use wherry_proto::Digest;

use super::platform::{choose, chosen, this_platform};
use super::untagged::Named;
use super::{ImageError, ImageName, Images, KeptImage, TagEntry, blocking};

/// For how long a count of the images here serves.
pub const COUNT_FOR: Duration = Duration::from_secs(2);

/// How many blobs one image may have, over all platforms, before further ones are not looked at.
const MAX_PARTS: usize = 1 << 16;

/// An image of which the manifests are here.
#[derive(Debug, Clone)]
pub struct LocalImage {
    /// What it is called.
    pub name: ImageName,
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
    /// What `tell` says of every image of which the manifests are here, at most [`MAX_IMAGES`](super::MAX_IMAGES) by tags,
    /// and as many by digests. The manifests of one image at a time are in memory.
    pub async fn local_images<T: Send + 'static>(
        &self,
        mut tell: impl FnMut(LocalImage) -> Option<T> + Send + 'static,
    ) -> Result<Vec<T>, ImageError> {
        let images = self.clone();
        blocking(move || {
            let mut found = Vec::new();
            images.each_name(|name, meaning| {
                match images.local(name, meaning, None) {
                    Ok(image) => found.extend(image.and_then(&mut tell)),
                    // One that is damaged, or was never an image, hides none of the others.
                    Err(error) => debug!(image = %name, %error, "an image is left out"),
                }
            })?;
            Ok(found)
        })
        .await
    }

    /// The names of the images here that each of these blobs belongs to, be it as manifest, configuration or layer, as far
    /// as the manifests are here that tell.
    pub async fn users_of(
        &self,
        blobs: HashSet<Digest>,
    ) -> Result<HashMap<Digest, BTreeSet<String>>, ImageError> {
        let images = self.clone();
        blocking(move || {
            let mut users: HashMap<Digest, BTreeSet<String>> = HashMap::new();
            images.try_each_name(|name, meaning| {
                for part in images.parts_of(meaning)? {
                    if blobs.contains(&part) {
                        users.entry(part).or_default().insert(name.to_string());
                    }
                }
                Ok(())
            })?;
            Ok(users)
        })
        .await
    }

    /// Every name that is known here, with what it means; behind them the images that none of them leads to.
    fn each_name(&self, mut each: impl FnMut(&ImageName, &Meaning)) -> Result<(), ImageError> {
        self.try_each_name(|name, meaning| {
            each(name, meaning);
            Ok(())
        })
    }

    /// The same, up to the first error.
    fn try_each_name(
        &self,
        mut each: impl FnMut(&ImageName, &Meaning) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let mut named = Named::default();
        for tag in self.records().all_tags() {
            let (reference, entry) = tag?;
            let meaning = Meaning::of(&entry);
            named.add(&meaning);
            each(&reference.into(), &meaning)?;
        }
        for kept in self.records().all_kept() {
            let (name, kept) = kept?;
            let digest = match &name {
                ImageName::Unnamed(digest) => Some(digest),
                ImageName::Reference(reference) => reference.target().digest(),
            };
            let Some(digest) = digest.copied() else { continue };
            let meaning = Meaning { digest, media_type: kept.media_type, since: Some(kept.since) };
            named.add(&meaning);
            each(&name, &meaning)?;
        }
        for (reference, meaning) in self.untagged(named)? {
            each(&reference.into(), &meaning)?;
        }
        Ok(())
    }

    /// The images here whose digests begin like this, in one name after the other: a digest as it is written, its
    /// digits alone, or the beginning of either. What has the digest is the `top` of each, be it one of an index.
    pub async fn local_by_digest(
        &self,
        beginning: &str,
        platform: Option<&Platform>,
    ) -> Result<Vec<LocalImage>, ImageError> {
        let (images, beginning, platform) = (self.clone(), beginning.to_owned(), platform.cloned());
        blocking(move || {
            // Digits alone never begin like the name of an algorithm.
            let is_meant = |digest: &Digest| {
                digest.to_string().starts_with(&beginning) || digest.hex().starts_with(&beginning)
            };
            let mut found: Vec<LocalImage> = Vec::new();
            images.each_name(|name, meaning| {
                let here = match is_meant(&meaning.digest) {
                    true => images.local(name, meaning, platform.as_ref()),
                    false => images.local(name, meaning, None),
                };
                let Ok(Some(image)) = here else { return };
                if is_meant(image.top.digest()) {
                    found.push(image);
                    return;
                }
                let ManifestContent::Index(index) = image.top.content() else { return };
                for entry in index.manifests.iter().filter(|entry| is_meant(&entry.digest)) {
                    let meaning = Meaning::of_entry(entry);
                    found.extend(images.local(name, &meaning, None).ok().flatten());
                }
            })?;
            Ok(found)
        })
        .await
    }

    /// Remembers an image that is known by its digest alone.
    pub async fn keep_image(&self, name: ImageName, manifest: &Manifest) -> Result<(), ImageError> {
        let kept = KeptImage { media_type: manifest.media_type().to_owned(), since: (self.0.parts.clock)() };
        let records = self.records().clone();
        blocking(move || Ok(records.keep(&name, &kept)?)).await
    }

    /// Forgets a name. What it meant stays in the store.
    pub async fn forget(&self, name: &ImageName) -> Result<bool, ImageError> {
        let (records, name) = (self.records().clone(), name.clone());
        let forgotten = blocking(move || Ok(records.forget(&name)?)).await;
        *self.0.count.lock().await = None;
        forgotten
    }

    /// All blobs that an image leads to, whether they are here or not: of an index those of every platform of which the
    /// manifest is here. Each once, and behind the manifest that names it.
    pub async fn parts(&self, image: &LocalImage) -> Result<Vec<Digest>, ImageError> {
        let media_type = image.top.media_type().to_owned();
        let meaning = Meaning { digest: *image.top.digest(), media_type, since: None };
        let images = self.clone();
        blocking(move || images.parts_of(&meaning)).await
    }

    /// The same of a name; nothing where it is not known what that means.
    pub async fn parts_of_name(&self, reference: &Reference) -> Result<Vec<Digest>, ImageError> {
        let (images, reference) = (self.clone(), reference.clone());
        blocking(move || match images.meaning(&reference)? {
            Some(meaning) => images.parts_of(&meaning),
            None => Ok(Vec::new()),
        })
        .await
    }

    /// What a reference means here. Reads the disk.
    fn meaning(&self, reference: &Reference) -> Result<Option<Meaning>, ImageError> {
        let records = self.records();
        Ok(match reference.target().digest() {
            Some(digest) => {
                let grant = records.grant(reference.host(), reference.repository(), digest)?;
                grant.map(|grant| Meaning { digest: *digest, media_type: grant.media_type, since: None })
            }
            None => records.tag(reference)?.as_ref().map(Meaning::of),
        })
    }

    /// All that a reference leads to: the manifest, and as far as manifests are here what they name.
    pub(super) fn parts_of(&self, meaning: &Meaning) -> Result<Vec<Digest>, ImageError> {
        let (mut parts, mut seen) = (vec![meaning.digest], HashSet::from([meaning.digest]));
        let mut manifests = vec![(meaning.digest, meaning.media_type.clone())];
        while let Some((digest, media_type)) = manifests.pop() {
            let manifest = match self.read_manifest(digest, Some(&media_type)) {
                Ok(Some(manifest)) => manifest,
                // One that is not here, or never was a manifest, names nothing.
                Ok(None) | Err(ImageError::NotAManifest { .. }) => continue,
                Err(error) => return Err(error),
            };
            match manifest.content() {
                ManifestContent::Index(index) => {
                    for entry in &index.manifests {
                        if parts.len() < MAX_PARTS && seen.insert(entry.digest) {
                            parts.push(entry.digest);
                            manifests.push((entry.digest, entry.media_type.clone()));
                        }
                    }
                }
                ManifestContent::Image(image) => {
                    let room = MAX_PARTS.saturating_sub(parts.len());
                    let new = image.blobs().map(|blob| blob.digest).filter(|digest| seen.insert(*digest));
                    parts.extend(new.take(room));
                }
            }
        }
        Ok(parts)
    }

    /// How many images are here with all their blobs, as it was at most [`COUNT_FOR`] ago: finding out reads every
    /// manifest.
    pub async fn whole_images(&self) -> usize {
        let mut count = self.0.count.lock().await;
        match *count {
            Some((when, count)) if when.elapsed() < COUNT_FOR => count,
            _ => {
                let whole =
                    self.local_images(|image| image.whole.then_some(())).await.unwrap_or_default().len();
                *count = Some((Instant::now(), whole));
                whole
            }
        }
    }

    /// The image that a reference names, without asking anybody; `None` if it is not here. Of an index the one for
    /// `platform` or, if none is named, for this node, or else the first that is here.
    pub async fn local_image(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Result<Option<LocalImage>, ImageError> {
        let (images, reference, platform) = (self.clone(), reference.clone(), platform.cloned());
        blocking(move || {
            let Some(meaning) = images.meaning(&reference)? else { return Ok(None) };
            images.local(&reference.into(), &meaning, platform.as_ref())
        })
        .await
    }

    pub(super) fn local(
        &self,
        name: &ImageName,
        meaning: &Meaning,
        platform: Option<&Platform>,
    ) -> Result<Option<LocalImage>, ImageError> {
        let Some(top) = self.read_manifest(meaning.digest, Some(&meaning.media_type))? else {
            return Ok(None);
        };
        let read = |entry: &Descriptor| self.read_manifest(entry.digest, Some(&entry.media_type));
        let image = match (top.content(), platform) {
            (ManifestContent::Image(_), _) => Some(top.clone()),
            (ManifestContent::Index(index), Some(wanted)) => read(chosen(name, index, wanted)?)?,
            (ManifestContent::Index(index), None) => {
                let ours = choose(&index.manifests, &this_platform());
                let mut here = None;
                for entry in ours.into_iter().chain(&index.manifests) {
                    here = read(entry)?;
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
        Ok(Some(LocalImage { name: name.clone(), top, image, whole, since: meaning.since }))
    }
}

/// What a reference means here.
pub(super) struct Meaning {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) since: Option<u64>,
}

impl Meaning {
    fn of_entry(entry: &Descriptor) -> Self {
        Self { digest: entry.digest, media_type: entry.media_type.clone(), since: None }
    }

    pub(super) fn of(entry: &TagEntry) -> Self {
        let TagEntry { record, since, .. } = entry;
        Self { digest: record.digest, media_type: record.media_type.to_string(), since: Some(*since) }
    }
}
