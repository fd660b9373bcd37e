//! What becomes of an image that was pushed to this node: it is pinned, so that nothing makes room for it, and brought to
//! further nodes of the site, so that it survives this one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bincode::{Decode, Encode};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wherry_gateway::Reference;
use wherry_proto::{Digest, NodeId, WantedImage, rank};

use super::Node;
use super::bring::ALL_PLATFORMS;
use super::pins::{Pins, WeakPins};
use super::preload::Target;
use crate::control::api::ApiError;
use crate::images::ImageError;
use crate::images::push::Keeper;
use crate::store::{Store, StoreError, Table};
use crate::swarm::LinkClass;

/// How long it takes until further copies are tried anew that no node could take: at first a busy node may not have heard yet
/// what the tag means, and until there is another copy all hangs on this node.
const AGAIN: Duration = Duration::from_secs(2);

/// The same after many times, of which each takes twice as long as the one before.
const AGAIN_LATER: Duration = Duration::from_secs(30);

/// How long bringing one image to one node may take until the next one is tried; there it goes on.
const COPY_TIME: Duration = Duration::from_secs(10 * 60);

/// How many images are brought to others at a time.
const AT_A_TIME: usize = 4;

/// The version of [`Copied`]'s layout: it goes up with every change.
const VERSION: u8 = 1;

/// How many images are looked after that have not all their copies; of further ones the node has the only copy until it was
/// started anew.
const MAX_LACKING: usize = 10_000;

/// Who else has an image that was pushed here.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Copied {
    digest: Digest,
    there: Vec<NodeId>,
}

/// Keeps what clients push. It comes before the pins that it needs, which need the images that need it.
#[derive(Clone)]
pub(super) struct Pushed(Arc<Parts>);

struct Parts {
    // The images need this, and the pins the images.
    pins: OnceLock<WeakPins>,
    table: Table<Copied>,
    // How many nodes are to have each image.
    copies: usize,
    lacking: Mutex<BTreeMap<String, Copied>>,
    news: Notify,
}

impl Pushed {
    /// With what the last run has left to do.
    pub(super) fn open(store: &Store, copies: usize) -> Result<Self, StoreError> {
        let table: Table<Copied> = store.table("copies", VERSION)?;
        let mut lacking = BTreeMap::new();
        for item in table.iter() {
            let (key, copied) = item?;
            if let Ok(name) = String::from_utf8(key)
                && copied.there.len() + 1 < copies
                && lacking.len() < MAX_LACKING
            {
                lacking.insert(name, copied);
            }
        }
        let (pins, lacking) = (OnceLock::new(), Mutex::new(lacking));
        Ok(Self(Arc::new(Parts { pins, table, copies, lacking, news: Notify::new() })))
    }

    /// From now on there is something to pin with.
    pub(super) fn set(&self, pins: &Pins) {
        let _ = self.0.pins.set(pins.downgrade());
    }

    fn pins(&self) -> Option<Pins> {
        self.0.pins.get()?.upgrade()
    }

    fn lacking(&self) -> MutexGuard<'_, BTreeMap<String, Copied>> {
        // Each change of it is one insertion or removal.
        self.0.lacking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep_it(&self, name: Reference, digest: Digest) -> Result<(), ApiError> {
        match self.pins() {
            Some(pins) => pins.turn().await.pin_pushed(&name, &digest).await,
            None => Ok(()),
        }
    }

    async fn spread_it(&self, name: Reference, digest: Digest) {
        self.note(name.to_string(), Copied { digest, there: Vec::new() }).await;
        self.0.news.notify_one();
    }

    /// Writes down who has an image, and whether more are to have it.
    async fn note(&self, name: String, copied: Copied) {
        let is_lacking = copied.there.len() + 1 < self.0.copies;
        {
            let mut lacking = self.lacking();
            lacking.remove(&name);
            if is_lacking && lacking.len() < MAX_LACKING {
                lacking.insert(name.clone(), copied.clone());
            }
        }
        let parts = self.0.clone();
        let written = tokio::task::spawn_blocking(move || parts.table.put(name.as_bytes(), &copied)).await;
        if let Ok(Err(error)) = written {
            warn!(%error, "who has copies of what was pushed is not written down");
        }
    }

    /// It needs no copies any more.
    async fn drop_note(&self, name: &str) {
        self.lacking().remove(name);
        let (parts, key) = (self.0.clone(), name.to_owned());
        let removed = tokio::task::spawn_blocking(move || parts.table.remove(key.as_bytes())).await;
        if let Ok(Err(error)) = removed {
            warn!(%error, "that something is not to be copied any more is not written down");
        }
    }

    async fn let_it_go(&self, name: Reference) -> Result<(), ApiError> {
        self.drop_note(&name.to_string()).await;
        let Some(pins) = self.pins() else { return Ok(()) };
        pins.turn().await.unpin(&name.into()).await.map(drop)
    }

    /// Brings what was pushed to further nodes, until `stop` is cancelled. Nothing is done while nothing lacks copies.
    pub(super) async fn copy(self, node: Arc<Node>, stop: CancellationToken) {
        let mut pause = AGAIN;
        loop {
            let is_all = self.lacking().is_empty();
            let again = async {
                match is_all {
                    true => std::future::pending().await,
                    false => sleep(pause).await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.news.notified() => pause = AGAIN,
                () = again => pause = (pause * 2).min(AGAIN_LATER),
            }
            let lacking: Vec<_> =
                self.lacking().iter().map(|(name, it)| (name.clone(), it.clone())).collect();
            let copying = stream::iter(lacking)
                .for_each_concurrent(AT_A_TIME, |(name, copied)| self.copy_one(&node, name, copied));
            tokio::select! {
                () = stop.cancelled() => return,
                () = copying => {}
            }
        }
    }

    async fn copy_one(&self, node: &Node, name: String, mut copied: Copied) {
        let Ok(reference) = name.parse::<Reference>() else { return };
        let records = node.images.records();
        let means = match reference.target().digest() {
            Some(digest) => Some(*digest),
            None => records.tag(&reference).ok().flatten().map(|entry| entry.record.digest),
        };
        if means != Some(copied.digest) || !node.store.is_pinned(&copied.digest) {
            // It means something else now, was removed, or somebody here has let it go.
            self.drop_note(&name).await;
            return;
        }
        let (Ok(wanted), Ok(all)) = (name.parse(), ALL_PLATFORMS.parse()) else { return };
        let image = WantedImage { reference: wanted, platform: Some(all) };
        let had = copied.there.len();
        let mut near: Vec<_> = node.swarm.neighbours();
        near.retain(|neighbour| neighbour.class == LinkClass::Lan && !copied.there.contains(&neighbour.node));
        near.sort_by_key(|neighbour| std::cmp::Reverse(rank(&copied.digest, &neighbour.node)));
        for peer in near.into_iter().map(|neighbour| neighbour.node) {
            if copied.there.len() + 1 >= self.0.copies {
                break;
            }
            let target = Target::There(peer);
            let brought = timeout(COPY_TIME, node.bring_to(&target, &image, &mut |_| {})).await;
            match brought.unwrap_or_else(|_| Err("it takes too long".to_owned())) {
                // It may mean something else there.
                Ok(_) if node.swarm.holds(peer, copied.digest).await => {
                    info!(image = name, %peer, "another node has what was pushed here");
                    copied.there.push(peer);
                }
                Ok(_) => debug!(image = name, %peer, "it has brought something else"),
                Err(why) => debug!(image = name, %peer, why, "a copy could not be made"),
            }
        }
        // It may have been removed, or have been pushed anew, meanwhile.
        let is_same = self.lacking().get(&name).is_some_and(|it| it.digest == copied.digest);
        if is_same && copied.there.len() > had {
            self.note(name, copied).await;
        }
    }
}

impl Keeper for Pushed {
    fn keep(&self, name: Reference, digest: Digest) -> BoxFuture<'_, Result<(), ImageError>> {
        self.keep_it(name, digest).map(|done| done.map_err(not_kept)).boxed()
    }

    fn spread(&self, name: Reference, digest: Digest) -> BoxFuture<'_, ()> {
        self.spread_it(name, digest).boxed()
    }

    fn let_go(&self, name: Reference) -> BoxFuture<'_, Result<(), ImageError>> {
        self.let_it_go(name).map(|done| done.map_err(not_kept)).boxed()
    }
}

fn not_kept(error: ApiError) -> ImageError {
    ImageError::NotKept(error.message)
}
