//! Following a blob at a peer: being told what becomes of it there.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use futures::task::AtomicWaker;
use wherry_proto::{ChunkMap, ChunkSet, List, NodeId, Role, Update};

use super::client::Shared;

/// What becomes of a blob at a peer: a stream of updates. It ends after [`Role::Gone`], with the connection, or if
/// the peer will not tell. Dropping it tells the peer that nobody follows any more.
///
/// Whoever takes the updates slowly loses none and fills no memory: what was not taken is put together, so that at most
/// one set of chunks waits.
pub struct Follow {
    shared: Arc<Shared>,
    id: u32,
    inbox: Arc<Inbox>,
}

impl Follow {
    pub(super) fn new(shared: Arc<Shared>, id: u32, inbox: Arc<Inbox>) -> Self {
        Self { shared, id, inbox }
    }

    /// The peer.
    pub fn node(&self) -> NodeId {
        self.shared.node
    }
}

impl Stream for Follow {
    type Item = Update;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        self.inbox.waker.register(cx.waker());
        let mut news = self.inbox.news();
        match news.take() {
            Some(update) => Poll::Ready(Some(update)),
            None if news.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.shared.unfollow(self.id);
    }
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "following {}", self.shared.node)
    }
}

/// What was told of one blob and not yet taken.
pub(super) struct Inbox {
    map: ChunkMap,
    news: Mutex<News>,
    waker: AtomicWaker,
}

struct News {
    role: Option<Role>,
    is_role_new: bool,
    fresh: ChunkSet,
    told: ChunkSet,
    ended: bool,
}

impl News {
    fn take(&mut self) -> Option<Update> {
        if !self.is_role_new && self.fresh.is_empty() {
            return None;
        }
        self.is_role_new = false;
        let here = List::first_of(self.fresh.runs());
        let update = Update { role: self.role?, here };
        update.chunks(&self.fresh.map())?.for_each(|index| {
            self.fresh.remove(index);
        });
        Some(update)
    }
}

impl Inbox {
    pub(super) fn new(map: ChunkMap) -> Arc<Self> {
        let (fresh, told) = (ChunkSet::empty(map), ChunkSet::empty(map));
        let news = News { role: None, is_role_new: false, fresh, told, ended: false };
        Arc::new(Self { map, news: Mutex::new(news), waker: AtomicWaker::new() })
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an update in; an error if no honest peer would send it.
    pub(super) fn put(&self, update: &Update) -> Result<(), &'static str> {
        let known = match update.role {
            Role::Leading { known, .. } | Role::Candidate { known, .. } | Role::Following { known, .. } => {
                known
            }
            Role::Held | Role::Gone => 0,
        };
        if known >= self.map.count() {
            return Err("an update names more states than the blob has");
        }
        let chunks = update.chunks(&self.map).ok_or("an update names chunks that the blob cannot have")?;
        {
            let mut news = self.news();
            for index in chunks {
                // Else a few bytes would make work of a whole blob, again and again.
                if !news.told.insert(index) {
                    return Err("an update names a chunk again");
                }
                news.fresh.insert(index);
            }
            news.is_role_new |= news.role != Some(update.role);
            news.role = Some(update.role);
            news.ended |= update.role == Role::Gone;
        }
        self.waker.wake();
        Ok(())
    }

    /// Nothing more comes.
    pub(super) fn end(&self) {
        self.news().ended = true;
        self.waker.wake();
    }
}
