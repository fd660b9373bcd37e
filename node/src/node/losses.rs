//! Says in the log what has left the store, by the names of the images that it belongs to.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tracing::{info, warn};
use wherry_proto::Digest;

use crate::images::Images;
use crate::status::{ErrorKind, Metrics};
use crate::store::{Gone, Why};
use crate::transfer::Transfers;

/// How long what leaves is put together: an image leaves blob by blob.
const TOGETHER: Duration = Duration::from_millis(200);

/// How many blobs are told of together at most.
const MAX_TOGETHER: usize = 1024;

/// Tells of all that leaves, for as long as the store is there; has what is left of damaged blobs given to others.
pub(super) async fn tell(images: Images, transfers: Transfers, metrics: Metrics, mut gone: Receiver<Gone>) {
    loop {
        let first = match gone.recv().await {
            Ok(first) => first,
            Err(RecvError::Lagged(missed)) => {
                info!(missed, "blobs leave the store faster than the log can tell");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        // What is damaged is told at once.
        if first.why != Why::Damaged {
            tokio::time::sleep(TOGETHER).await;
        }
        // Hashing begins now, so that whoever asks later need not wait for it.
        let _ = transfers.rest(&first.digest);
        let mut all = vec![first];
        while all.len() < MAX_TOGETHER {
            match gone.try_recv() {
                Ok(gone) => all.push(gone),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        report(&images, &metrics, all).await;
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
            || "no image that is known".to_owned(),
            |names| names.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
        );
        match why {
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
