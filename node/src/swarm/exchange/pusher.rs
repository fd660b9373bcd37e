//! Telling a connection's peer what becomes of the blobs that it follows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, FuturesUnordered};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use wherry_proto::{BlobName, ChunkMap, ChunkSet, List, MAX_RUNS, NodeId, Response, Role, Run, Update};

use super::find::Whereabouts;
use super::server::Uploader;
use super::{MAX_FOLLOWED, UPDATE_TIME};
use crate::swarm::arriving::Arriving;

/// How long it may take until it is told that more states are known, where that alone is new.
const STATES_TIME: Duration = Duration::from_millis(500);

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
        let mut told = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some((id, following, blob)) = found.next() => told.push(async move {
                    let telling = Telling { uploader, peer, id, blob: following.blob, answers };
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
}

/// That a node follows a blob here, for as long as this lives.
struct Counted<'a>(&'a Telling<'a>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.uploader.spread().unfollow(&self.0.blob, self.0.peer);
    }
}

impl Telling<'_> {
    /// Returns when the blob is gone.
    async fn run(self, blob: Whereabouts) {
        if let (Whereabouts::Held | Whereabouts::Arriving(_), Ok(map)) =
            (&blob, ChunkMap::new(self.blob.size))
        {
            self.uploader.spread().follow(self.blob, map, self.peer);
            let _counted = Counted(&self);
            let held = match blob {
                Whereabouts::Arriving(arriving) => self.arriving(&*arriving, map).await,
                _ => true,
            };
            if held {
                self.say(Role::Held, Vec::new()).await;
                std::future::pending::<()>().await;
            }
        }
        self.say(Role::Gone, Vec::new()).await;
    }

    async fn say(&self, role: Role, here: Vec<Run>) {
        let update = Update { role, here: List::first_of(here) };
        // It fails when the connection ends.
        let _ = self.answers.send(Response::Update { id: self.id, update }).await;
    }

    /// Tells of a blob while it arrives; then says whether it is held.
    async fn arriving(&self, arriving: &dyn Arriving, map: ChunkMap) -> bool {
        arriving.followed(self.peer);
        let mut changes = arriving.changes();
        let (mut told, mut last) = (ChunkSet::empty(map), None);
        let mut due = Instant::now();
        loop {
            changes.borrow_and_update();
            let role = arriving.role();
            match role {
                Role::Held => return true,
                Role::Gone => return false,
                Role::Leading { .. } | Role::Following { .. } => {}
            }
            let here = arriving.here();
            if !told.without(&here).is_empty() {
                // What was told cannot be taken back: whoever follows begins anew.
                return false;
            }
            let (mut waits, mut late) = (false, false);
            let now = Instant::now();
            let is_due = now >= due;
            if is_due || last.is_none_or(|last| !is_alike(last, role)) {
                let fresh = here.without(&told);
                // How many more states are known is no news of its own: whoever reads them has their chunks in a moment, and
                // whoever follows asks where there are chunks.
                let is_news = last.is_none_or(|last| !is_alike(last, role));
                let is_late = last != Some(role) && now >= due + STATES_TIME;
                if !fresh.is_empty() || is_news || is_late {
                    let runs: Vec<Run> = fresh.runs().take(MAX_RUNS).collect();
                    let numbers = runs.iter().flat_map(|run| run.from..run.from + run.len);
                    numbers.filter_map(|number| map.index(number)).for_each(|index| {
                        told.insert(index);
                    });
                    waits = runs.len() == MAX_RUNS;
                    self.say(role, runs).await;
                    last = Some(role);
                    due = Instant::now() + UPDATE_TIME;
                }
                late = last != Some(role);
            } else {
                waits = true;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return arriving.role() == Role::Held;
                },
                () = sleep_until(due), if waits => {}
                () = sleep_until(due + STATES_TIME), if late && !waits => {}
            }
        }
    }
}

/// Whether two roles differ in no more than how far they have come, which can wait as chunks do.
fn is_alike(one: Role, other: Role) -> bool {
    let come = |role| match role {
        Role::Leading { attempt, .. } => Role::Leading { attempt, known: 0 },
        Role::Following { stream, may_lead, .. } => Role::Following { stream, known: 0, may_lead },
        other => other,
    };
    come(one) == come(other)
}
