//! Pins follow their tags: whoever pinned a name wants to keep what it means, also when a runtime has pulled it anew.
//!
//! What comes of the new image is pinned as it comes; what the tag meant before stays pinned until all of it is here.

use std::collections::HashSet;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_gateway::Reference;
use wherry_proto::Digest;

use super::keep::{parts_here, pin_blobs};
use crate::control::api::ApiError;
use crate::images::Images;
use crate::store::{Store, StoreError};
use crate::transfer::Transfers;

/// Follows the tags until `stop` is cancelled. Nothing is done while nothing changes.
pub(super) async fn follow(store: Store, images: Images, transfers: Transfers, stop: CancellationToken) {
    let (mut news, mut arrivals) = (images.news(), transfers.arrivals());
    // Those of which not all is here; at the start it is not known which these are.
    let mut incomplete: Option<HashSet<String>> = None;
    loop {
        news.borrow_and_update();
        arrivals.borrow_and_update();
        match look(&store, &images, incomplete.as_ref()).await {
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
async fn look(
    store: &Store,
    images: &Images,
    incomplete: Option<&HashSet<String>>,
) -> Result<HashSet<String>, ApiError> {
    let mut left = HashSet::new();
    for name in blocking(store, Store::pinned_names).await? {
        // An image without a tag always means the same.
        let reference = name.parse::<Reference>().ok().filter(|it| it.target().tag().is_some());
        let Some(reference) = reference else { continue };
        let pinned = pinned(store, &name).await?;
        let meaning = images.records().tag(&reference).ok().flatten().map(|entry| entry.record.digest);
        let is_known = incomplete.is_some_and(|names| !names.contains(&name));
        if pinned.is_empty() || meaning.is_none_or(|digest| is_known && pinned.contains(&digest)) {
            continue;
        }
        if !repin(store, images, &reference, &pinned).await? {
            left.insert(name);
        }
    }
    Ok(left)
}

/// Pins what is here of the image that a name means now, and, once that is all of it, nothing else; whether it is.
async fn repin(
    store: &Store,
    images: &Images,
    reference: &Reference,
    pinned: &HashSet<Digest>,
) -> Result<bool, ApiError> {
    // One that cannot be read is not here.
    let Ok(Some(image)) = images.local_image(reference, None).await else { return Ok(false) };
    let here = parts_here(store, images, &image).await?;
    let name = reference.to_string();
    if !image.whole {
        let new: Vec<Digest> = here.into_iter().filter(|digest| !pinned.contains(digest)).collect();
        let pin = move |store: &Store| new.iter().try_for_each(|digest| store.pin(&name, digest));
        return blocking(store, pin).await.map(|()| false);
    }
    if here.iter().copied().collect::<HashSet<_>>() != *pinned {
        pin_blobs(store, name.clone(), here).await?;
        info!(image = name, digest = %image.top.digest(), "the pin follows its tag, which means another image than before");
    }
    Ok(true)
}

async fn pinned(store: &Store, name: &str) -> Result<HashSet<Digest>, ApiError> {
    let name = name.to_owned();
    Ok(blocking(store, move |store| store.pinned_by(&name)).await?.into_iter().collect())
}

async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = store.clone();
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    done.map_err(super::backend::stopping)?.map_err(|error| super::keep::failed(&error))
}
