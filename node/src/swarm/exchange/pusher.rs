//! Telling a connection's peer what becomes of the blobs that it follows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use futures::stream::{self, FuturesUnordered};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use wherry_proto::{BlobName, ChunkMap, List, NodeId, Response, Role, Update};

use super::MAX_FOLLOWED;
use super::find::Whereabouts;
use super::server::Uploader;
use super::telling::{Audience, News, Telling as Told};
use crate::swarm::arriving::Arriving;

/// The blobs that one connection follows.
pub(super) struct Followed {
    // By the number under which each is followed.
    live: Mutex<HashMap<u32, Following>>,
    begun: mpsc::Sender<(u32, Following)>,
}

#[derive(Clone)]
struct Following {
    blob: BlobName,
    end: CancellationToken,
}

/// Those that are to be told of.
pub(super) struct Begun(mpsc::Receiver<(u32, Following)>);

impl Followed {
    pub(super) fn new() -> (Self, Begun) {
        let (begun, new) = mpsc::channel(MAX_FOLLOWED);
        (Self { live: Mutex::default(), begun }, Begun(new))
    }

    fn live(&self) -> MutexGuard<'_, HashMap<u32, Following>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live().is_empty()
    }

    /// Follows one more blob; `false` if these are too many, or it or the number is taken.
    pub(super) async fn begin(&self, id: u32, blob: BlobName) -> bool {
        let following = Following { blob, end: CancellationToken::new() };
        {
            let mut live = self.live();
            let taken = live.contains_key(&id) || live.values().any(|other| other.blob == blob);
            if taken || live.len() >= MAX_FOLLOWED {
                return false;
            }
            live.insert(id, following.clone());
        }
        // It fails when the connection ends.
        let _ = self.begun.send((id, following)).await;
        true
    }

    pub(super) fn end(&self, id: u32) {
        if let Some(following) = self.live().remove(&id) {
            following.end.cancel();
        }
    }

    /// Tells `peer` of what it follows, for as long as it is polled.
    pub(super) async fn push(
        &self,
        uploader: &Arc<Uploader>,
        peer: NodeId,
        begun: Begun,
        answers: &mpsc::Sender<Response>,
    ) {
        // One search at a time: whoever follows and cancels in turn makes nothing pile up.
        let found = stream::unfold(begun.0, |mut begun| async { Some((begun.recv().await?, begun)) })
            .filter(|(_, following)| std::future::ready(!following.end.is_cancelled()))
            .then(|(id, following)| async move {
                let (holdings, blob) = (Arc::clone(&uploader.holdings), following.blob);
                let find = move || Whereabouts::find(&*holdings, blob);
                let found = tokio::task::spawn_blocking(find).await;
                (id, following, found.unwrap_or(Whereabouts::Nowhere))
            });
        let mut found = std::pin::pin!(found);
        let start = Instant::now();
        let mut told = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some((id, following, blob)) = found.next() => told.push(async move {
                    let telling = Telling { uploader, peer, id, blob: following.blob, answers, begun: start };
                    following.end.run_until_cancelled(telling.run(blob)).await.map(|()| id)
                }),
                Some(gone) = told.next() => gone.into_iter().for_each(|id| self.end(id)),
                else => return,
            }
        }
    }
}

struct Telling<'a> {
    uploader: &'a Uploader,
    peer: NodeId,
    id: u32,
    blob: BlobName,
    answers: &'a mpsc::Sender<Response>,
    // The same for all that this peer is told.
    begun: Instant,
}

/// That a node follows a blob here, for as long as this lives.
struct Counted<'a>(&'a Telling<'a>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.uploader.spread().unfollow(&self.0.blob, self.0.peer);
    }
}

impl Telling<'_> {
    /// Returns when the blob is gone, or as good as gone since this peer is given nothing any more.
    async fn run(self, blob: Whereabouts) {
        tokio::select! {
            () = self.uploader.holdings.gives_no_more(&self.peer) => {}
            () = self.tell(blob) => {}
        }
        self.say(Role::Gone).await;
    }

    /// Tells of the blob until it is gone.
    async fn tell(&self, blob: Whereabouts) {
        if let (Whereabouts::Held | Whereabouts::Arriving(_), Ok(map)) =
            (&blob, ChunkMap::new(self.blob.size))
        {
            let lot = self.uploader.spread().follow(self.blob, map, self.peer);
            let _counted = Counted(self);
            let held = match blob {
                Whereabouts::Arriving(arriving) => self.arriving(&*arriving, map, lot).await,
                _ => true,
            };
            if held {
                self.say(Role::Held).await;
                self.uploader.holdings.leaves(&self.blob.digest).await;
            }
        }
    }

    async fn say(&self, role: Role) {
        let update = Update { role, here: List::first_of([]) };
        // It fails when the connection ends.
        let _ = self.answers.send(Response::Update { id: self.id, update }).await;
    }

    /// Tells of a blob while it arrives; then says whether it is held.
    async fn arriving(&self, arriving: &dyn Arriving, map: ChunkMap, lot: u32) -> bool {
        arriving.followed(self.peer);
        let mut changes = arriving.changes();
        // One after the other, so that no chunk is in nobody's lot.
        let mut told = Told::new(map, lot);
        let is_near = arriving.is_near(&self.peer);
        loop {
            changes.borrow_and_update();
            let role = arriving.role();
            match role {
                Role::Held => return true,
                Role::Gone => return false,
                Role::Leading { .. } | Role::Candidate { .. } | Role::Following { .. } => {}
            }
            let audience = Audience {
                no_news: arriving.no_news_to(&self.peer),
                pace: arriving.pace(),
                followers: self.uploader.spread().followers(&self.blob),
                is_near,
            };
            let wait = match told.next(role, &arriving.here(), &audience, self.begun.elapsed()) {
                News::Say(update) => {
                    // It fails when the connection ends.
                    let _ = self.answers.send(Response::Update { id: self.id, update }).await;
                    // There may be more than one update has room for.
                    continue;
                }
                News::Anew => return false,
                News::Wait(time) => Some(time),
                News::Nothing => None,
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return arriving.role() == Role::Held;
                },
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }
}
