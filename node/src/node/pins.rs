//! What names pin, and that pins follow their tags: whoever pinned a name wants to keep what it means, also when a runtime
//! has pulled it anew.
//!
//! What comes of the new image is pinned as it comes; what the tag meant before stays pinned until all of it is here.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_gateway::{Reference, TagOrDigest};
use wherry_proto::Digest;

use super::backend::{image_error, stopping};
use super::keep::failed;
use super::listing::meant_by;
use crate::control::api::{ApiError, ErrorCode};
use crate::images::{ImageName, Images, LocalImage};
use crate::store::{Store, StoreError};
use crate::transfer::Transfers;

/// Everything that is pinned. Clones share it.
#[derive(Clone)]
pub(super) struct Pins(Arc<Parts>);

struct Parts {
    store: Store,
    images: Images,
    turn: tokio::sync::Mutex<()>,
}

/// The same for whoever the pins themselves need: it keeps nothing open.
#[derive(Clone)]
pub(super) struct WeakPins(Weak<Parts>);

impl WeakPins {
    pub(super) fn upgrade(&self) -> Option<Pins> {
        self.0.upgrade().map(Pins)
    }
}

/// Nobody else changes a pin while this is there: what was looked at before is still so.
pub(super) struct Turn<'a> {
    store: &'a Store,
    images: &'a Images,
    _guard: MutexGuard<'a, ()>,
}

/// What has been pinned.
pub(super) struct Pinned {
    /// How many blobs of the image are here, and pinned now.
    pub(super) here: usize,
    /// Whether the name pinned another image before, which may go now.
    pub(super) left_another: bool,
}

impl Pins {
    pub(super) fn new(store: Store, images: Images) -> Self {
        Self(Arc::new(Parts { store, images, turn: tokio::sync::Mutex::default() }))
    }

    pub(super) fn downgrade(&self) -> WeakPins {
        WeakPins(Arc::downgrade(&self.0))
    }

    /// Waits until nobody else changes pins.
    pub(super) async fn turn(&self) -> Turn<'_> {
        let Parts { store, images, turn } = &*self.0;
        Turn { store, images, _guard: turn.lock().await }
    }

    /// Pins an image that was pulled just now.
    pub(super) async fn pin_pulled(&self, reference: &Reference) -> Result<(), ApiError> {
        self.turn().await.pin_pulled(reference).await
    }

    /// An image that was pinned stays so when it has been pulled anew and may mean something else.
    pub(super) async fn pin_anew(&self, reference: &Reference) -> Result<(), ApiError> {
        let turn = self.turn().await;
        if turn.pinned(&reference.to_string()).await?.is_empty() {
            return Ok(());
        }
        turn.pin_pulled(reference).await
    }

    /// Follows the tags until `stop` is cancelled. Nothing is done while nothing changes.
    pub(super) async fn follow(self, transfers: Transfers, stop: CancellationToken) {
        let (mut news, mut arrivals) = (self.0.images.news(), transfers.arrivals());
        // Those of which not all is here; at the start it is not known which these are.
        let mut incomplete: Option<HashSet<String>> = None;
        loop {
            news.borrow_and_update();
            arrivals.borrow_and_update();
            match self.look(incomplete.as_ref()).await {
                Ok(now) => incomplete = Some(now),
                Err(error) => warn!(error = error.message, "whether pinned tags have moved cannot be told"),
            }
            let waits = incomplete.as_ref().is_none_or(|names| !names.is_empty());
            let is_over = tokio::select! {
                () = stop.cancelled() => true,
                changed = news.changed() => changed.is_err(),
                changed = arrivals.changed(), if waits => changed.is_err(),
            };
            if is_over {
                return;
            }
        }
    }

    /// Has every pin follow its tag that must; the names of which not all is here.
    async fn look(&self, incomplete: Option<&HashSet<String>>) -> Result<HashSet<String>, ApiError> {
        let mut left = HashSet::new();
        for name in blocking(&self.0.store, Store::pinned_names).await? {
            // An image without a tag always means the same.
            let reference = name.parse::<Reference>().ok().filter(|it| it.target().tag().is_some());
            let Some(reference) = reference else { continue };
            let is_known = incomplete.is_some_and(|names| !names.contains(&name));
            match self.turn().await.follow(&reference, is_known).await {
                Ok(true) => {}
                Ok(false) => _ = left.insert(name),
                // It hides none of the others.
                Err(error) => {
                    warn!(
                        image = name,
                        error = error.message,
                        "whether a pinned tag has moved cannot be told"
                    );
                    left.insert(name);
                }
            }
        }
        Ok(left)
    }
}

impl Turn<'_> {
    /// Pins what is here of an image under its name. Once that is all of it, and the name pinned another image before,
    /// nothing else stays pinned under it.
    pub(super) async fn pin_image(&self, image: &LocalImage) -> Result<Pinned, ApiError> {
        let (name, top) = (image.name.to_string(), *image.top.digest());
        let parts = self.images.parts(&image.known()).await.map_err(image_error)?;
        let here: Vec<Digest> = parts.iter().filter(|digest| self.store.holds(digest)).copied().collect();
        let parts: HashSet<Digest> = parts.into_iter().collect();
        let (count, pinned) = (here.len(), self.pinned(&name).await?);
        // What is pinned beside the same image may be of a part of it that is damaged.
        let moved = image.whole
            && (!pinned.contains(&top)
                || self.before(&image.name)?.iter().any(|old| pinned.contains(old) && !parts.contains(old)));
        let gone = self.replace(name, here, move |digest| !moved || parts.contains(digest)).await?;
        Ok(Pinned { here: count, left_another: gone > 0 })
    }

    /// Pins these blobs under a name. Of another image that it pinned nothing stays.
    pub(super) async fn pin_blobs(
        &self,
        name: &ImageName,
        top: &Digest,
        blobs: Vec<Digest>,
    ) -> Result<(), ApiError> {
        let name = name.to_string();
        let is_same = self.pinned(&name).await?.contains(top);
        self.replace(name, blobs, move |_| is_same).await.map(drop)
    }

    /// Pins these and takes away what else the name pins, but what `stays`: how many blobs that is.
    async fn replace(
        &self,
        name: String,
        blobs: Vec<Digest>,
        stays: impl Fn(&Digest) -> bool + Send + 'static,
    ) -> Result<usize, ApiError> {
        blocking(self.store, move |store| {
            let before = store.pinned_by(&name)?;
            let blobs: HashSet<Digest> = blobs.into_iter().collect();
            blobs.iter().try_for_each(|digest| store.pin(&name, digest))?;
            let gone: Vec<_> = before.iter().filter(|old| !blobs.contains(old) && !stays(old)).collect();
            gone.iter().try_for_each(|old| store.unpin(&name, old))?;
            Ok(gone.len())
        })
        .await
    }

    /// Pins under a name all that is here of what a digest of its repository leads to, be it an image or not.
    pub(super) async fn pin_pushed(&self, name: &Reference, digest: &Digest) -> Result<(), ApiError> {
        let target = name.with_target(TagOrDigest::Digest(*digest));
        let parts = self.images.parts_of_name(&target).await.map_err(image_error)?;
        let here = parts.into_iter().filter(|part| self.store.holds(part)).collect();
        self.pin_blobs(&name.clone().into(), digest, here).await
    }

    async fn pin_pulled(&self, reference: &Reference) -> Result<(), ApiError> {
        match self.images.local_image(reference, None).await.map_err(image_error)? {
            Some(image) => self.pin_image(&image).await.map(drop),
            None => Err(ApiError::new(
                ErrorCode::NotFound,
                format!("{reference} left this node before it was pinned"),
            )),
        }
    }

    /// Pins what is here of the image that a pinned name means now; whether that is all of it. Nothing is to be done where
    /// that `is_known` and it still means the same.
    async fn follow(&self, reference: &Reference, is_known: bool) -> Result<bool, ApiError> {
        let name = reference.to_string();
        let pinned = self.pinned(&name).await?;
        let known = self.images.records().tag_or_removed(reference).map_err(|error| failed(&error))?;
        if known.as_ref().is_some_and(|entry| !entry.counts()) && !pinned.is_empty() {
            self.unpin(&reference.clone().into()).await?;
            info!(image = name, "nothing is pinned under a tag that was removed");
            return Ok(true);
        }
        let meaning = known;
        let meaning = meaning.map(|entry| entry.record.digest);
        if pinned.is_empty() || meaning.is_none_or(|digest| is_known && pinned.contains(&digest)) {
            return Ok(true);
        }
        // One that cannot be read is not here.
        let Ok(Some(image)) = self.images.local_image(reference, None).await else { return Ok(false) };
        if self.pin_image(&image).await?.left_another {
            let digest = image.top.digest();
            info!(image = name, %digest, "the pin follows its tag, which means another image than before");
        }
        Ok(image.whole)
    }

    /// Takes away the pins of a name and, where that is a digest, what tags that meant it before still pin of it; how many
    /// blobs that concerns. What such a tag means now stays pinned, and is pinned when it comes.
    pub(super) async fn unpin(&self, name: &ImageName) -> Result<usize, ApiError> {
        let mut unpinned = self.pinned(&name.to_string()).await?;
        self.take_away(name.to_string(), unpinned.clone()).await?;
        let ImageName::Reference(reference) = name else { return Ok(unpinned.len()) };
        let Some(digest) = reference.target().digest().copied() else { return Ok(unpinned.len()) };
        let (records, meant) = (self.images.records().clone(), reference.clone());
        let find = move || meant_by(&records, meant.host(), meant.repository(), &digest);
        let tags = tokio::task::spawn_blocking(find).await.map_err(stopping)?;
        for tag in tags {
            let pinned = self.pinned(&tag.to_string()).await?;
            if !pinned.contains(&digest) {
                continue;
            }
            let old = self.images.parts_of_name(reference).await.map_err(image_error)?;
            let new: HashSet<Digest> =
                self.images.parts_of_name(&tag).await.map_err(image_error)?.into_iter().collect();
            let gone: HashSet<Digest> =
                old.into_iter().filter(|part| pinned.contains(part) && !new.contains(part)).collect();
            unpinned.extend(&gone);
            // Of what it means now nothing need be here yet.
            if let Some(entry) = self.images.records().tag(&tag).map_err(|error| failed(&error))? {
                let (name, digest) = (tag.to_string(), entry.record.digest);
                blocking(self.store, move |store| store.pin(&name, &digest)).await?;
            }
            self.take_away(tag.to_string(), gone).await?;
        }
        Ok(unpinned.len())
    }

    async fn take_away(&self, name: String, blobs: HashSet<Digest>) -> Result<(), ApiError> {
        blocking(self.store, move |store| blobs.iter().try_for_each(|digest| store.unpin(&name, digest)))
            .await
    }

    async fn pinned(&self, name: &str) -> Result<HashSet<Digest>, ApiError> {
        let name = name.to_owned();
        Ok(blocking(self.store, move |store| store.pinned_by(&name)).await?.into_iter().collect())
    }

    /// What a tag meant before.
    fn before(&self, name: &ImageName) -> Result<Vec<Digest>, ApiError> {
        match name {
            ImageName::Reference(reference) if reference.target().tag().is_some() => {
                self.images.records().before(reference).map_err(|error| failed(&error))
            }
            _ => Ok(Vec::new()),
        }
    }
}

async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = store.clone();
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    done.map_err(stopping)?.map_err(|error| failed(&error))
}
