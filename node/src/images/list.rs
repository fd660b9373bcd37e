//! The images that are here, whole or in part.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;
use wherry_gateway::{Descriptor, Manifest, ManifestContent, Platform, Reference};
use wherry_proto::Digest;

use super::platform::{choose, chosen, this_platform};
use super::untagged::Named;
use super::{ImageError, ImageName, Images, KeptImage, TagEntry, blocking};

/// For how long what was found out by reading every manifest serves.
pub const COUNT_FOR: Duration = Duration::from_secs(2);

/// How many blobs one image may have, over all platforms, before further ones are not looked at.
const MAX_PARTS: usize = 1 << 16;

/// How many images were here with all their blobs when so much had changed.
pub(super) struct Count {
    count: usize,
    changes: (u64, u64),
    began: Instant,
    // When they may be counted again.
    next: Instant,
}

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

/// An image that this node knows by a name and of which the manifests are here, or were before they were damaged.
#[derive(Debug, Clone)]
pub struct KnownImage {
    /// What it is called.
    pub name: ImageName,
    meaning: Meaning,
}

impl KnownImage {
    /// The digest of the manifest that the name means.
    pub fn digest(&self) -> Digest {
        self.meaning.digest
    }
}

impl LocalImage {
    /// What there is to know of it without its manifests.
    pub fn known(&self) -> KnownImage {
        let (digest, media_type) = (*self.top.digest(), self.top.media_type().to_owned());
        KnownImage { name: self.name.clone(), meaning: Meaning { digest, media_type, since: self.since } }
    }

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

    /// The images that are known here and whose digests begin like this, in one name after the other: a digest as it is
    /// written, its digits alone, or the beginning of either. What has the digest may be one image of an index, which then
    /// bears the index's name.
    pub async fn known_by_digest(&self, beginning: &str) -> Result<Vec<KnownImage>, ImageError> {
        let (images, beginning) = (self.clone(), beginning.to_owned());
        blocking(move || {
            // Digits alone never begin like the name of an algorithm.
            let is_meant = |digest: &Digest| {
                digest.to_string().starts_with(&beginning) || digest.hex().starts_with(&beginning)
            };
            let mut found: Vec<KnownImage> = Vec::new();
            let mut add = |name: &ImageName, meaning: Meaning| {
                if images.is_known(&meaning) {
                    found.push(KnownImage { name: name.clone(), meaning });
                }
            };
            images.each_name(|name, meaning| {
                if is_meant(&meaning.digest) {
                    return add(name, meaning.clone());
                }
                let Ok(Some(top)) = images.read_manifest(meaning.digest, Some(&meaning.media_type)) else {
                    return;
                };
                let ManifestContent::Index(index) = top.content() else { return };
                for entry in index.manifests.iter().filter(|entry| is_meant(&entry.digest)) {
                    add(name, Meaning::of_entry(entry));
                }
            })?;
            Ok(found)
        })
        .await
    }

    /// The image that a name means here, without asking anybody; `None` if nothing is here that tells what it is made of,
    /// and never was.
    pub async fn known_image(&self, name: &ImageName) -> Result<Option<KnownImage>, ImageError> {
        let (images, name) = (self.clone(), name.clone());
        blocking(move || {
            let meaning = match &name {
                ImageName::Reference(reference) => images.meaning(reference)?,
                ImageName::Unnamed(digest) => images.records().kept(&name)?.map(|kept| Meaning {
                    digest: *digest,
                    media_type: kept.media_type,
                    since: Some(kept.since),
                }),
            };
            let known = meaning.filter(|meaning| images.is_known(meaning));
            Ok(known.map(|meaning| KnownImage { name, meaning }))
        })
        .await
    }

    /// Whether what tells what something is made of is here, or was before it was damaged: its manifest and, of an index,
    /// one of those that it names. Reads the disk.
    fn is_known(&self, meaning: &Meaning) -> bool {
        let store = &self.0.parts.store;
        match self.read_manifest(meaning.digest, Some(&meaning.media_type)) {
            Ok(Some(manifest)) => match manifest.content() {
                ManifestContent::Image(_) => true,
                ManifestContent::Index(index) => {
                    let mut entries = index.manifests.iter();
                    entries.any(|entry| store.is_known(&entry.digest))
                }
            },
            Ok(None) => store.is_damaged(&meaning.digest),
            Err(_) => false,
        }
    }

    /// A known image with its manifests; `None` if these cannot be read. Of an index as in [`Images::local_image`].
    pub async fn local_of(
        &self,
        known: &KnownImage,
        platform: Option<&Platform>,
    ) -> Result<Option<LocalImage>, ImageError> {
        let (images, known, platform) = (self.clone(), known.clone(), platform.cloned());
        blocking(move || images.local(&known.name, &known.meaning, platform.as_ref())).await
    }

    /// Remembers an image that is known by its digest alone.
    pub async fn keep_image(&self, name: ImageName, manifest: &Manifest) -> Result<(), ImageError> {
        self.tell_store(manifest);
        let kept = KeptImage { media_type: manifest.media_type().to_owned(), since: (self.0.parts.clock)() };
        let records = self.records().clone();
        blocking(move || Ok(records.keep(&name, &kept)?)).await
    }

    /// Forgets a name, and what was known of its repository for the name's sake alone. What it meant stays in the store.
    pub async fn forget(&self, name: &ImageName) -> Result<bool, ImageError> {
        let (images, name) = (self.clone(), name.clone());
        blocking(move || {
            let forgotten = images.records().forget(&name)?;
            if let ImageName::Reference(reference) = &name {
                images.drop_unneeded(reference.host(), reference.repository())?;
            }
            Ok(forgotten)
        })
        .await
    }

    /// The manifest of a known image that is damaged, if one is: its own or, of an index, that of `platform`, without one any.
    pub async fn damaged_manifest(
        &self,
        known: &KnownImage,
        platform: Option<&Platform>,
    ) -> Result<Option<Digest>, ImageError> {
        let (images, known, platform) = (self.clone(), known.clone(), platform.cloned());
        blocking(move || {
            let KnownImage { name, meaning } = &known;
            let is_damaged = |digest: &Digest| images.0.parts.store.is_damaged(digest);
            let Some(top) = images.read_manifest(meaning.digest, Some(&meaning.media_type))? else {
                return Ok(Some(meaning.digest).filter(is_damaged));
            };
            let ManifestContent::Index(index) = top.content() else { return Ok(None) };
            let entries = match &platform {
                Some(wanted) => std::slice::from_ref(chosen(name, index, wanted)?),
                None => index.manifests.as_slice(),
            };
            Ok(entries.iter().map(|entry| entry.digest).find(is_damaged))
        })
        .await
    }

    /// All blobs that an image leads to, whether they are here or not: of an index those of every platform of which the
    /// manifest is here. Each once, and behind the manifest that names it.
    pub async fn parts(&self, image: &KnownImage) -> Result<Vec<Digest>, ImageError> {
        let (images, meaning) = (self.clone(), image.meaning.clone());
        blocking(move || images.parts_of(&meaning)).await
    }

    /// Whether a manifest is damaged that tells what an image is made of: its own or, of an index, one of those that it
    /// names.
    pub async fn is_unread(&self, image: &KnownImage) -> Result<bool, ImageError> {
        let (images, meaning) = (self.clone(), image.meaning.clone());
        blocking(move || Ok(images.walk(&meaning)?.is_unread)).await
    }

    /// The blobs of an image's repository that are here and that no image here leads to, at most 65,536: where one of its
    /// manifests is damaged the layers that this named are among them. None if they may be another image's, since it has
    /// another name, or a manifest of another one is damaged too, in whichever repository: what that named is not known.
    pub async fn astray(&self, image: &KnownImage) -> Result<Vec<Digest>, ImageError> {
        let ImageName::Reference(own) = image.name.clone() else { return Ok(Vec::new()) };
        let (images, image, digest) = (self.clone(), image.clone(), image.digest());
        blocking(move || {
            let store = &images.0.parts.store;
            let of_repository = images.records().granted(own.host(), own.repository(), MAX_PARTS)?;
            let mut here: HashSet<Digest> =
                of_repository.into_iter().filter(|blob| store.is_known(blob)).collect();
            let mut is_alone = true;
            images.try_each_name(|name, meaning| {
                let Parts { digests, is_unread } = images.walk(meaning)?;
                digests.iter().for_each(|part| _ = here.remove(part));
                is_alone &= *name == image.name || !(is_unread || digests.contains(&digest));
                Ok(())
            })?;
            Ok(if is_alone { here.into_iter().collect() } else { Vec::new() })
        })
        .await
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
        Ok(self.walk(meaning)?.digests)
    }

    fn walk(&self, meaning: &Meaning) -> Result<Parts, ImageError> {
        let mut is_unread = false;
        let (mut parts, mut seen) = (vec![meaning.digest], HashSet::from([meaning.digest]));
        let mut manifests = vec![(meaning.digest, meaning.media_type.clone())];
        while let Some((digest, media_type)) = manifests.pop() {
            let manifest = match self.read_manifest(digest, Some(&media_type)) {
                Ok(Some(manifest)) => manifest,
                // One that is not here, or never was a manifest, names nothing.
                Ok(None) => {
                    is_unread |= self.0.parts.store.is_damaged(&digest);
                    continue;
                }
                Err(ImageError::NotAManifest { .. }) => continue,
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
        Ok(Parts { digests: parts, is_unread })
    }

    /// How many images are here with all their blobs. Finding out reads every manifest, so that it is done once as long as
    /// nothing comes or leaves, and else with pauses that are as long as it takes, but for [`COUNT_FOR`] at most.
    pub async fn whole_images(&self) -> usize {
        let changes = || (self.0.parts.store.changes(), self.records().changes());
        let asked = Instant::now();
        let mut last = self.0.count.lock().await;
        if let Some(last) = &*last {
            // What was begun while this one waited for its turn is as new as what it would find out itself.
            if last.began >= asked || last.changes == changes() {
                return last.count;
            }
            sleep_until(last.next).await;
        }
        let (changes, began) = (changes(), Instant::now());
        let Ok(whole) = self.local_images(|image| image.whole.then_some(())).await else {
            *last = None;
            return 0;
        };
        let count = whole.len();
        let next = Instant::now() + began.elapsed().min(COUNT_FOR);
        *last = Some(Count { count, changes, began, next });
        count
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

/// What a reference leads to.
struct Parts {
    /// Each once, and behind the manifest that names it.
    digests: Vec<Digest>,
    /// Whether one of the manifests is damaged, so that it is not known what it named.
    is_unread: bool,
}

/// What a reference means here.
#[derive(Debug, Clone)]
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
