//! What this node knows of names: which manifests tags mean, and what belongs to which repository.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bincode::{Decode, Encode};
use wherry_gateway::{Host, Manifest, ManifestContent, Reference, Repository};
use wherry_proto::{Digest, TagRecord, TagWord};

use super::ImageName;
use super::referrers::Referrers;
use crate::store::{Store, StoreError, Table};

/// The most tags of one repository that are listed.
pub const MAX_TAGS: usize = 10_000;

/// The most images that are listed.
pub const MAX_IMAGES: usize = 10_000;

/// How many grants and manifests of one repository are looked at to see which of the grants are needed; of one that has
/// more none is dropped.
const MAX_GRANTS: usize = 16_384;
const MAX_READ: usize = 256;

/// How many earlier meanings of a tag are remembered.
pub const MAX_BEFORE: usize = 4;

/// The version of the layout of a tag's earlier meanings: it goes up with every change.
const BEFORE_VERSION: u8 = 1;

/// The version of [`TagEntry`]'s layout, and so of the [`TagRecord`] within: it goes up with every change of either.
const TAG_VERSION: u8 = 3;

/// The version of [`KeptImage`]'s layout: it goes up with every change.
const KEPT_VERSION: u8 = 1;

/// How long it is remembered that a tag was removed, in seconds: a month, after which no node of the site should be away that
/// knows what it meant.
const REMOVED_FOR: u64 = 30 * 24 * 60 * 60;

/// The version of [`Grant`]'s layout: it goes up with every change.
const GRANT_VERSION: u8 = 2;

/// What this node knows of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TagEntry {
    /// The newest record, signed by whoever resolved the tag.
    pub record: TagRecord,
    /// When an origin last confirmed it to this site, in seconds since the Unix epoch; 0 if none ever did.
    pub confirmed: u64,
    /// Since when this node knows that the tag means this manifest, in seconds since the Unix epoch.
    pub since: u64,
}

impl TagEntry {
    /// Whether the tag means anything: it was not taken back.
    pub fn counts(&self) -> bool {
        self.record.word != TagWord::Removed
    }

    /// What is known once this has been heard, given what was known before; `None` if that stays. What is said to have
    /// been confirmed after `latest` was confirmed nobody knows when.
    fn after(self, known: Option<Self>, latest: u64) -> Option<Self> {
        match known {
            Some(known) if known.record.supersedes(&self.record) => None,
            // That an origin confirmed another meaning says nothing of this one.
            Some(known) if known.record.digest == self.record.digest => {
                let times = [self.confirmed, known.confirmed].into_iter().filter(|time| *time <= latest);
                Some(Self { confirmed: times.max().unwrap_or(0), since: known.since, ..self })
            }
            _ => Some(self),
        }
    }
}

/// That a manifest or blob belongs to a repository.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    /// Its length in bytes, as the manifest says that names it.
    pub size: u64,
    /// Its media type; empty while no manifest that names it has been seen.
    pub media_type: String,
    /// Whether it is a manifest, and all that it names is known to belong to the repository too.
    pub unfolded: bool,
}

impl Grant {
    pub(super) fn of(size: u64, media_type: &str) -> Self {
        Self { size, media_type: media_type.to_owned(), unfolded: false }
    }
}

/// An image that is known by its digest alone: one that was pulled by it, or that came without a name.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct KeptImage {
    /// The media type of its manifest.
    pub media_type: String,
    /// Since when it is known, in seconds since the Unix epoch.
    pub since: u64,
}

/// The index tables of this room.
#[derive(Clone)]
pub struct Records {
    tags: Table<TagEntry>,
    // What each tag meant before, the newest first.
    before: Table<Vec<Digest>>,
    kept: Table<KeptImage>,
    grants: Table<Grant>,
    referrers: Referrers,
    manifests: Arc<Manifests>,
    changes: Arc<AtomicU64>,
}

/// What belongs to a repository, with the key and what is known of it.
type Granted = (Digest, Vec<u8>, Grant);

/// Manifests by their digests in repositories, with their media types.
type ManifestList = Arc<Vec<(Reference, String)>>;

/// The grants of manifests, as they were when so many had been learned.
#[derive(Default)]
struct Manifests {
    learned: AtomicU64,
    list: Mutex<Option<(u64, ManifestList)>>,
    // Nothing is learned of a manifest while it is looked what those that are here name.
    learning: Mutex<()>,
}

impl Manifests {
    fn lock(&self) -> MutexGuard<'_, Option<(u64, ManifestList)>> {
        // It is replaced as a whole.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name as it is written into a key.
pub(super) fn read<T: FromStr>(key: Vec<u8>) -> Option<T> {
    String::from_utf8(key).ok()?.parse().ok()
}

fn grant_key(host: &Host, repository: &Repository, digest: &Digest) -> String {
    format!("{host}/{repository}@{digest}")
}

impl Records {
    /// The tables in a store's index.
    pub fn open(store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            tags: store.table("tags", TAG_VERSION)?,
            before: store.table("before", BEFORE_VERSION)?,
            kept: store.table("kept", KEPT_VERSION)?,
            grants: store.table("grants", GRANT_VERSION)?,
            referrers: Referrers::open(store)?,
            manifests: Arc::default(),
            changes: Arc::default(),
        })
    }

    /// Which manifests are about others.
    pub fn referrers(&self) -> &Referrers {
        &self.referrers
    }

    /// Counts up whenever a name, or what it means, or that a manifest belongs to a repository, has changed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// What is known of a reference that names a tag, unless that was taken back.
    pub fn tag(&self, reference: &Reference) -> Result<Option<TagEntry>, StoreError> {
        Ok(self.tag_or_removed(reference)?.filter(TagEntry::counts))
    }

    /// The same, also if it was taken back: what is said of it next has to be newer than that.
    pub fn tag_or_removed(&self, reference: &Reference) -> Result<Option<TagEntry>, StoreError> {
        self.tags.get(reference.to_string().as_bytes())
    }

    /// Changes what is known of a tag in one step: `change` sees what that is and says what has been heard, which is
    /// remembered unless what is known is newer. No origin can have confirmed anything after `latest`, in seconds since
    /// the Unix epoch. Returns what is known afterwards and, if it is another manifest now, the one that it meant.
    pub fn change_tag(
        &self,
        reference: &Reference,
        latest: u64,
        mut change: impl FnMut(Option<&TagEntry>) -> Option<TagEntry>,
    ) -> Result<(Option<TagEntry>, Option<Digest>), StoreError> {
        let (mut now, mut left) = (None, None);
        self.tags.update(reference.to_string().as_bytes(), |known: Option<TagEntry>| {
            let heard = change(known.as_ref());
            let changed = heard.and_then(|heard| heard.after(known.clone(), latest));
            let digest = |entry: &Option<TagEntry>| entry.as_ref().map(|entry| entry.record.digest);
            left = digest(&known).filter(|_| changed.is_some() && digest(&changed) != digest(&known));
            now = changed.clone().or(known);
            changed
        })?;
        self.note_change();
        Ok((now, left))
    }

    /// What a tag meant before, the newest first; what it means now may be among it.
    pub fn before(&self, reference: &Reference) -> Result<Vec<Digest>, StoreError> {
        Ok(self.before.get(reference.to_string().as_bytes())?.unwrap_or_default())
    }

    /// Remembers what a tag meant until now, and of what it meant before that the newest that `is_worth` it: at most
    /// [`MAX_BEFORE`] together.
    pub fn add_before(
        &self,
        reference: &Reference,
        digest: Digest,
        is_worth: impl Fn(&Digest) -> bool,
    ) -> Result<(), StoreError> {
        let change = |known: Option<Vec<Digest>>| {
            let mut all = vec![digest];
            let known = known.unwrap_or_default().into_iter();
            all.extend(known.filter(|it| *it != digest && is_worth(it)).take(MAX_BEFORE - 1));
            Some(all)
        };
        self.before.update(reference.to_string().as_bytes(), change).map(|_| ())
    }

    /// The tags of a repository that have meant something else before, with that; at most `most`.
    pub fn moved_tags(
        &self,
        host: &Host,
        repository: &Repository,
        most: usize,
    ) -> Result<Vec<(Reference, Vec<Digest>)>, StoreError> {
        let found = self.before.scan_prefix(format!("{host}/{repository}:").as_bytes(), most)?;
        Ok(found.into_iter().filter_map(|(key, before)| Some((read(key)?, before))).collect())
    }

    /// The first `most` tags of a repository that sort behind `after`, in the order of their bytes.
    pub fn tags(
        &self,
        host: &Host,
        repository: &Repository,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<String>, StoreError> {
        let prefix = format!("{host}/{repository}:");
        let name = |key: &[u8]| std::str::from_utf8(key.get(prefix.len()..)?).ok().map(str::to_owned);
        let mut after = after.map(|after| format!("{prefix}{after}").into_bytes());
        let mut names = Vec::new();
        // Page by page, since those that were removed take none of the places.
        while names.len() < most {
            let wanted = most - names.len();
            let found = self.tags.scan_after(prefix.as_bytes(), after.as_deref(), wanted)?;
            let is_last = found.len() < wanted;
            after = found.last().map(|(key, _)| key.clone());
            names.extend(found.iter().filter(|(_, entry)| entry.counts()).filter_map(|(key, _)| name(key)));
            if is_last {
                break;
            }
        }
        Ok(names)
    }

    /// Forgets tags of which it has been remembered for long that they were removed.
    pub fn forget_removed(&self, now: u64) -> Result<(), StoreError> {
        for item in self.tags.iter() {
            let (key, entry) = item?;
            if !entry.counts() && entry.since.saturating_add(REMOVED_FOR) < now {
                self.tags.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Every tag that is known, at most [`MAX_IMAGES`], each read when it is its turn.
    pub fn all_tags(&self) -> impl Iterator<Item = Result<(Reference, TagEntry), StoreError>> + '_ {
        let tags = self.tags.iter().filter_map(move |item| match item {
            Ok((key, entry)) => Some(Ok((read(key)?, entry.counts().then_some(entry)?))),
            Err(error) => Some(Err(error)),
        });
        tags.take(MAX_IMAGES)
    }

    /// Remembers an image that is known by its digest alone.
    pub fn keep(&self, name: &ImageName, kept: &KeptImage) -> Result<(), StoreError> {
        let change = |known: Option<KeptImage>| known.is_none().then(|| kept.clone());
        self.kept.update(name.to_string().as_bytes(), change)?;
        self.note_change();
        Ok(())
    }

    /// Every image that is known by its digest alone, at most [`MAX_IMAGES`], each read when it is its turn.
    pub fn all_kept(&self) -> impl Iterator<Item = Result<(ImageName, KeptImage), StoreError>> + '_ {
        let kept = self.kept.iter().filter_map(move |item| match item {
            Ok((key, kept)) => Some(Ok((read(key)?, kept))),
            Err(error) => Some(Err(error)),
        });
        kept.take(MAX_IMAGES)
    }

    /// What is known of an image that is known by its digest alone; `None` if it is not.
    pub fn kept(&self, name: &ImageName) -> Result<Option<KeptImage>, StoreError> {
        self.kept.get(name.to_string().as_bytes())
    }

    /// Every manifest that belongs to a repository and of which all is known that it names, by its digest there and with
    /// its media type, until `each` has enough. As long as there are no more than [`MAX_IMAGES`] they are remembered:
    /// most of what belongs to a repository is no manifest.
    pub fn each_manifest(
        &self,
        mut each: impl FnMut(&Reference, &str) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let learned = self.manifests.learned.load(Ordering::Acquire);
        if let Some((_, list)) = self.manifests.lock().clone().filter(|(when, _)| *when == learned) {
            let _ = list.iter().try_for_each(|(reference, media_type)| each(reference, media_type));
            return Ok(());
        }
        let (mut list, mut is_enough) = (Vec::new(), false);
        for item in self.grants.iter() {
            let (key, grant) = item?;
            if !grant.unfolded {
                continue;
            }
            let Some(reference) = read::<Reference>(key) else { continue };
            is_enough = is_enough || each(&reference, &grant.media_type).is_break();
            match list.len() < MAX_IMAGES {
                true => list.push((reference, grant.media_type)),
                false if is_enough => return Ok(()),
                false => {}
            }
        }
        if list.len() < MAX_IMAGES {
            *self.manifests.lock() = Some((learned, Arc::new(list)));
        }
        Ok(())
    }

    /// Forgets a name and what it meant before; says whether it was known. What belongs to the repository is known as before.
    pub fn forget(&self, name: &ImageName) -> Result<bool, StoreError> {
        let key = name.to_string();
        self.before.remove(key.as_bytes())?;
        let forgotten = self.tags.remove(key.as_bytes())? | self.kept.remove(key.as_bytes())?;
        self.note_change();
        Ok(forgotten)
    }

    /// Whether anything is known of a repository: a tag, or something that belongs to it.
    pub fn knows(&self, host: &Host, repository: &Repository) -> Result<bool, StoreError> {
        if !self.tags(host, repository, None, 1)?.is_empty() {
            return Ok(true);
        }
        let prefix = format!("{host}/{repository}@");
        Ok(!self.grants.scan_after(prefix.as_bytes(), None, 1)?.is_empty())
    }

    /// What belongs to a repository, at most `most`.
    pub fn granted(
        &self,
        host: &Host,
        repository: &Repository,
        most: usize,
    ) -> Result<Vec<Digest>, StoreError> {
        let prefix = format!("{host}/{repository}@");
        let found = self.grants.scan_prefix(prefix.as_bytes(), most)?;
        let digest = |key: &[u8]| std::str::from_utf8(key.get(prefix.len()..)?).ok()?.parse().ok();
        Ok(found.iter().filter_map(|(key, _)| digest(key)).collect())
    }

    /// That this belongs to that repository, if it is known to.
    pub fn grant(
        &self,
        host: &Host,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Grant>, StoreError> {
        self.grants.get(grant_key(host, repository, digest).as_bytes())
    }

    /// Remembers that this belongs to that repository.
    pub fn add_grant(
        &self,
        host: &Host,
        repository: &Repository,
        digest: &Digest,
        grant: &Grant,
    ) -> Result<(), StoreError> {
        // That an index names a manifest says less than the manifest itself has said, and a blob alone says least.
        let says_no_more = |known: &Grant| grant.media_type.is_empty() && known.size == grant.size;
        let change = |known: Option<Grant>| match known {
            Some(known) if known.unfolded || known == *grant || says_no_more(&known) => None,
            _ => Some(grant.clone()),
        };
        self.grants.update(grant_key(host, repository, digest).as_bytes(), change).map(|_| ())
    }

    /// What belongs to a repository, by the keys of its grants; `None` if that is more than [`MAX_GRANTS`].
    fn grants_of(&self, prefix: &str) -> Result<Option<Vec<Granted>>, StoreError> {
        let all = self.grants.scan_prefix(prefix.as_bytes(), MAX_GRANTS + 1)?;
        if all.len() > MAX_GRANTS {
            return Ok(None);
        }
        let digest_of =
            |key: &[u8]| key.get(prefix.len()..).and_then(|digest| read::<Digest>(digest.to_vec()));
        let all = all.into_iter().filter_map(|(key, grant)| Some((digest_of(&key)?, key, grant)));
        Ok(Some(all.collect()))
    }

    /// Drops the grants of a repository that nothing here needs any more: what they are of `holds` says is gone, no name
    /// means it or has meant it before, and no manifest that is here names it. `names_of` tells what one names, if it can be
    /// read. Returns how many that are.
    pub fn drop_unneeded(
        &self,
        host: &Host,
        repository: &Repository,
        holds: impl Fn(&Digest) -> bool,
        names_of: impl Fn(&Digest, &str) -> Option<Vec<Digest>>,
    ) -> Result<usize, StoreError> {
        let prefix = format!("{host}/{repository}@");
        // Read before anybody has to wait for it.
        let Some(mut here) = self.grants_of(&prefix)? else { return Ok(0) };
        here.retain(|(digest, _, grant)| grant.unfolded && holds(digest));
        if here.len() > MAX_READ {
            return Ok(0);
        }
        let mut names = HashMap::new();
        for (digest, _, grant) in here {
            // One that cannot be read may need any of them.
            let Some(named) = names_of(&digest, &grant.media_type) else { return Ok(0) };
            names.insert(digest, named);
        }
        let _learning = self.manifests.learning.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(all) = self.grants_of(&prefix)? else { return Ok(0) };
        let (here, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|(digest, ..)| holds(digest));
        let Some(mut needed) = self.meant(host, repository)? else { return Ok(0) };
        for (number, (digest, _, grant)) in here.iter().filter(|(.., grant)| grant.unfolded).enumerate() {
            // Only what was learned meanwhile is read now.
            let named = names.remove(digest).or_else(|| names_of(digest, &grant.media_type));
            let Some(named) = named.filter(|_| number < MAX_READ) else { return Ok(0) };
            needed.extend(named);
        }
        let mut dropped = 0;
        for (digest, key, grant) in gone {
            if holds(&digest) {
                // It has come meanwhile.
                continue;
            }
            if !needed.contains(&digest) {
                dropped += usize::from(self.grants.remove(&key)?);
            } else if grant.unfolded {
                // What it named is known no more once that has been dropped.
                self.grants.update(&key, |known: Option<Grant>| Some(Grant { unfolded: false, ..known? }))?;
            }
        }
        self.manifests.learned.fetch_add(1, Ordering::AcqRel);
        Ok(dropped)
    }

    /// What the names of a repository mean and its tags have meant before; `None` if there are more than [`MAX_GRANTS`] of
    /// either.
    fn meant(&self, host: &Host, repository: &Repository) -> Result<Option<HashSet<Digest>>, StoreError> {
        let name = format!("{host}/{repository}");
        let tags = self.tags.scan_prefix(format!("{name}:").as_bytes(), MAX_GRANTS + 1)?;
        let moved = self.moved_tags(host, repository, MAX_GRANTS + 1)?;
        let kept = self.kept.scan_prefix(format!("{name}@").as_bytes(), MAX_GRANTS + 1)?;
        if [tags.len(), moved.len(), kept.len()].into_iter().any(|count| count > MAX_GRANTS) {
            return Ok(None);
        }
        let kept = kept.into_iter().filter_map(|(key, _)| read::<Reference>(key)?.target().digest().copied());
        let moved = moved.into_iter().flat_map(|(_, before)| before);
        let tags = tags.into_iter().map(|(_, entry)| entry).filter(TagEntry::counts);
        Ok(Some(tags.map(|entry| entry.record.digest).chain(moved).chain(kept).collect()))
    }

    /// Whether this belongs to a repository of a host, whichever that is, as far as the first 16,384 tell that belong to any.
    pub fn is_granted_at(&self, host: &Host, digest: &Digest) -> Result<bool, StoreError> {
        let end = format!("@{digest}");
        let known = self.grants.scan_prefix(format!("{host}/").as_bytes(), MAX_GRANTS)?;
        Ok(known.iter().any(|(key, _)| key.ends_with(end.as_bytes())))
    }

    /// Forgets that this belongs to a repository and, of a manifest, that it is about another.
    pub fn revoke(
        &self,
        host: &Host,
        repository: &Repository,
        digest: &Digest,
        manifest: Option<&Manifest>,
    ) -> Result<(), StoreError> {
        if let Some(subject) = manifest.and_then(Manifest::subject) {
            self.referrers.remove(host, repository, &subject.digest, digest)?;
        }
        self.grants.remove(grant_key(host, repository, digest).as_bytes())?;
        self.manifests.learned.fetch_add(1, Ordering::AcqRel);
        self.note_change();
        Ok(())
    }

    /// Remembers that a manifest, and all that it names, belongs to a repository.
    pub fn learn(&self, host: &Host, repository: &Repository, manifest: &Manifest) -> Result<(), StoreError> {
        let _learning = self.manifests.learning.lock().unwrap_or_else(PoisonError::into_inner);
        if self.grant(host, repository, manifest.digest())?.is_some_and(|known| known.unfolded) {
            return Ok(());
        }
        let named: Vec<_> = match manifest.content() {
            ManifestContent::Index(index) => index.manifests.iter().collect(),
            ManifestContent::Image(image) => image.blobs().collect(),
        };
        for descriptor in named {
            let grant = Grant::of(descriptor.size, &descriptor.media_type);
            self.add_grant(host, repository, &descriptor.digest, &grant)?;
        }
        // Last: it says that the others are there.
        let own = Grant { unfolded: true, ..Grant::of(manifest.size(), manifest.media_type()) };
        let added = self.add_grant(host, repository, manifest.digest(), &own);
        self.manifests.learned.fetch_add(1, Ordering::AcqRel);
        self.note_change();
        added
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use wherry_proto::{Certificate, Roles, SecretKey, TagMeaning};

    use super::*;
    use crate::store::encode;

    #[test]
    fn tags_that_were_removed_take_no_place_in_a_page_and_are_forgotten_after_a_month() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), crate::store::StoreSettings::default()).unwrap();
        let records = Records::open(&store).unwrap();
        let key = SecretKey::from_seed([2; 32]);
        let certificate =
            Certificate::sign(&SecretKey::from_seed([1; 32]), key.node(), Roles::RESOLVER, 7, 9);
        for number in 0..9 {
            let reference = format!("r.example/a:{number}");
            let meaning = TagMeaning {
                reference: reference.parse().unwrap(),
                digest: Digest::sha256(b"manifest"),
                media_type: "text/plain".parse().unwrap(),
                size: 8,
                sequence: 1,
                time: 0,
                word: if number % 3 == 0 { TagWord::Removed } else { TagWord::Pushed },
            };
            let record = TagRecord::sign(&key, &certificate, meaning);
            let entry = TagEntry { record, confirmed: 0, since: 100 };
            records.change_tag(&reference.parse().unwrap(), 0, |_| Some(entry.clone())).unwrap();
        }
        let (host, repository) = ("r.example".parse().unwrap(), "a".parse().unwrap());
        let page = |after, most| records.tags(&host, &repository, after, most).unwrap();
        assert_eq!(page(None, 4), ["1", "2", "4", "5"]);
        assert_eq!(page(Some("4"), 2), ["5", "7"]);
        assert_eq!(page(Some("7"), 9), ["8"]);
        assert_eq!(records.all_tags().count(), 6);
        let removed: Reference = "r.example/a:3".parse().unwrap();
        records.forget_removed(100 + REMOVED_FOR).unwrap();
        assert!(records.tag_or_removed(&removed).unwrap().is_some());
        records.forget_removed(101 + REMOVED_FOR).unwrap();
        assert!(records.tag_or_removed(&removed).unwrap().is_none());
        assert_eq!(records.all_tags().count(), 6);
    }

    #[test]
    fn a_layout_does_not_change_without_a_new_version() {
        let key = SecretKey::from_seed([2; 32]);
        let meaning = TagMeaning {
            reference: "r.example/a:1".parse().unwrap(),
            digest: Digest::sha256(b"manifest"),
            media_type: "text/plain".parse().unwrap(),
            size: 8,
            sequence: 300,
            time: 1_700_000_000,
            word: TagWord::Pushed,
        };
        let certificate =
            Certificate::sign(&SecretKey::from_seed([1; 32]), key.node(), Roles::RESOLVER, 7, 9);
        let record = TagRecord::sign(&key, &certificate, meaning);
        let tag = encode(TAG_VERSION, &TagEntry { record, confirmed: 5, since: 6 }).unwrap();
        let grant = encode(GRANT_VERSION, &Grant { unfolded: true, ..Grant::of(8, "text/plain") }).unwrap();
        let kept = KeptImage { media_type: "text/plain".to_owned(), since: 6 };
        let kept = encode(KEPT_VERSION, &kept).unwrap();
        let before = encode(BEFORE_VERSION, &vec![Digest::sha256(b"manifest")]).unwrap();
        assert_eq!((before[..9].to_vec(), before.len()), (b"\x01\x01\0\0\0\0\0\0\0".to_vec(), 42));
        assert_eq!(kept, b"\x01\x0a\0\0\0\0\0\0\0text/plain\x06\0\0\0\0\0\0\0");
        let written = [tag, grant].map(|bytes| (bytes[0], bytes.len(), Digest::sha256(&bytes).hex()));
        let as_before = [
            (3, 325, "5bdad39378601d3fb0813eba091c28426d4dd2f357652c845db3b8a690cd5441".to_owned()),
            (2, 28, "d48192f04f2091e54a9d3a8b244321f8fcffc31f3d3c6c9dcb31b734a3fe121d".to_owned()),
        ];
        assert_eq!(
            written, as_before,
            "raise the version of what has changed, and only then write this anew"
        );
    }
}
