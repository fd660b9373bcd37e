//! Says in the log what has left the store, by the names of the images that it belongs to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tracing::{info, warn};
use wherry_proto::Digest;

use crate::config::units::show_size;
use crate::images::Images;
use crate::status::{ErrorKind, Metrics};
use crate::store::{Gone, Store, Why};

/// How long what leaves is put together: an image leaves blob by blob.
const TOGETHER: Duration = Duration::from_millis(200);

/// How many blobs are told of together at most.
const MAX_TOGETHER: usize = 1024;

/// Tells of all that leaves, for as long as the store is there.
pub(super) async fn tell(images: Images, metrics: Metrics, mut gone: Receiver<Gone>) {
    // Of what left before there is no word any more.
    forget(&images, None).await;
    loop {
        let first = match gone.recv().await {
            Ok(first) => first,
            Err(RecvError::Lagged(missed)) => {
                info!(missed, "blobs leave the store faster than the log can tell");
                forget(&images, None).await;
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        // What is damaged is told at once.
        if !first.why.is_lost() {
            tokio::time::sleep(TOGETHER).await;
        }
        let (mut all, mut missed) = (vec![first], false);
        while all.len() < MAX_TOGETHER {
            match gone.try_recv() {
                Ok(gone) => all.push(gone),
                Err(TryRecvError::Lagged(_)) => missed = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let left = all.iter().filter(|gone| !gone.why.is_lost()).map(|gone| gone.digest).collect();
        report(&images, &metrics, all).await;
        // Afterwards: it tells the names.
        forget(&images, Some(left).filter(|_| !missed)).await;
    }
}

async fn forget(images: &Images, left: Option<HashSet<Digest>>) {
    if let Err(error) = images.forget_left(left).await {
        warn!(%error, "what is known of images that have left is kept");
    }
}

/// Has a budget kept that is smaller than what is here, and says what that costs; before anything else is stored, and while
/// the manifests are here that tell the names.
pub(super) async fn keep_budget(store: &Store, images: &Images) {
    let leaving: HashMap<Digest, u64> = store.over_budget().into_iter().collect();
    // Where nothing leaves there is nothing to look for.
    let users = match leaving.is_empty() {
        true => HashMap::new(),
        false => images.users_of(leaving.keys().copied().collect()).await.unwrap_or_default(),
    };
    let usage = store.usage();
    let kept = store.clone();
    // It ends soon; that it panicked it has said itself.
    let _ = tokio::task::spawn_blocking(move || kept.keep_budget()).await;
    let budget = show_size(usage.budget.unwrap_or(u64::MAX));
    let mut losses: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for (digest, size) in &leaving {
        for name in users.get(digest).into_iter().flatten() {
            let (blobs, bytes) = losses.entry(name).or_default();
            (*blobs, *bytes) = (*blobs + 1, *bytes + size);
        }
    }
    for (image, (blobs, bytes)) in losses {
        warn!(
            image,
            blobs,
            lost = show_size(bytes),
            budget,
            "an image is not whole any more: the disk budget is smaller than what was here"
        );
    }
    if !leaving.is_empty() {
        let bytes = leaving.values().sum();
        warn!(
            blobs = leaving.len(),
            lost = show_size(bytes),
            budget,
            had = show_size(usage.used),
            "blobs that were not used for the longest time were removed to keep the disk budget"
        );
    }
    let used = store.usage().used;
    if usage.budget.is_some_and(|budget| used > budget) {
        warn!(
            used = show_size(used),
            budget,
            "what is pinned takes more than the disk budget: raise --disk-budget, or let images go with 'wherry unpin'"
        );
    }
}

async fn report(images: &Images, metrics: &Metrics, all: Vec<Gone>) {
    let blobs: HashSet<Digest> = all.iter().map(|gone| gone.digest).collect();
    let users = images.users_of(blobs).await.unwrap_or_else(|error| {
        warn!(%error, "the index does not tell which images a blob belongs to");
        Default::default()
    });
    let mut evicted: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
    for Gone { digest, why } in all {
        let names = users.get(&digest).map_or_else(
            || "none that is here".to_owned(),
            |names| names.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
        );
        match why {
            Why::Missing => {
                metrics.failed(ErrorKind::Store);
                warn!(
                    blob = %digest, images = names,
                    "the file of a stored blob is missing: whoever wants it next has it fetched from peers or the registry; \
                     where neither has it, import the image again"
                );
            }
            Why::Damaged => {
                metrics.failed(ErrorKind::Store);
                warn!(
                    blob = %digest, images = names,
                    "a stored blob is damaged and was set aside: what is right of it is kept, and whoever wants it next has \
                     the rest fetched from peers or the registry; where neither has it, import the image again"
                );
            }
            Why::Evicted => drop(evicted.entry(names).or_default().insert(digest)),
            Why::Removed => info!(blob = %digest, images = names, "a blob was removed"),
        }
    }
    for (images, blobs) in evicted {
        let names: Vec<String> = blobs.iter().map(Digest::short).collect();
        info!(images, blobs = names.join(", "), "removed from the store to make room");
    }
}
