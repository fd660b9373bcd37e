//! Who is connected, as everybody in this process may see it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use wherry_proto::{Answer, Certificate, Hello, NodeId, Ports, Question};

use super::ask::Asking;
use super::identity::Host;

/// How many notices a slow listener may be behind before it misses some.
const MAX_NOTICES: usize = 256;

/// For how long somebody who has asked for an image counts as one who is about to get it: handshakes of a whole site, and
/// what names mean, take seconds on slow machines.
const ASTIR: Duration = Duration::from_secs(5);

/// How cheaply a peer is reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LinkClass {
    /// It is at the same site.
    Lan,
    /// It is elsewhere.
    Wan,
}

/// A member that is connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// The node.
    pub node: NodeId,
    /// The site that it says it is at.
    pub site: String,
    /// How cheaply it is reached.
    pub class: LinkClass,
    /// Its host, and the port at which it listens to peers.
    pub address: String,
    /// When it was connected, in seconds since the Unix epoch.
    pub since: u64,
}

/// That somebody came or went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A member is connected now.
    Connected(Neighbour),
    /// The last connection to a member has ended.
    Disconnected(NodeId),
}

/// What is known of a neighbour.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) neighbour: Neighbour,
    pub(super) certificate: Certificate,
    pub(super) host: Host,
    pub(super) ports: Ports,
    pub(super) asks: mpsc::Sender<Asking>,
    pub(super) stop: CancellationToken,
}

impl Entry {
    /// Its answer; `None` if it gives none.
    pub(super) async fn ask(&self, question: Question) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Asking { question, reply }).await.ok()?;
        answer.await.ok()
    }
}

pub(super) struct Neighbours {
    entries: Mutex<BTreeMap<NodeId, Entry>>,
    notices: broadcast::Sender<Notice>,
    meetings: AtomicU64,
    // When one of this site last asked for an image or a blob.
    sought: Mutex<Option<Instant>>,
}

impl Neighbours {
    pub(super) fn new() -> Self {
        let notices = broadcast::Sender::new(MAX_NOTICES);
        Self { entries: Mutex::default(), notices, meetings: AtomicU64::new(0), sought: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, entry: Entry) {
        let neighbour = entry.neighbour.clone();
        self.lock().insert(neighbour.node, entry);
        if neighbour.class == LinkClass::Lan {
            // Behind: whoever sees that it has come can ask it.
            self.meetings.fetch_add(1, Ordering::AcqRel);
        }
        let _ = self.notices.send(Notice::Connected(neighbour));
    }

    /// A neighbour has come once more, perhaps from elsewhere: what is known of it now counts.
    pub(super) fn renew(&self, neighbour: Neighbour, hello: &Hello, host: Host) {
        if let Some(entry) = self.lock().get_mut(&neighbour.node) {
            entry.neighbour = Neighbour { since: entry.neighbour.since, ..neighbour };
            entry.certificate.clone_from(&hello.certificate);
            (entry.host, entry.ports) = (host, hello.ports);
        }
    }

    pub(super) fn remove(&self, node: &NodeId) {
        let removed = self.lock().remove(node);
        if let Some(entry) = removed {
            entry.stop.cancel();
            let _ = self.notices.send(Notice::Disconnected(*node));
        }
    }

    pub(super) fn get(&self, node: &NodeId) -> Option<Entry> {
        self.lock().get(node).cloned()
    }

    pub(super) fn all(&self) -> Vec<Entry> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn of_class(&self, class: LinkClass) -> Vec<Entry> {
        self.lock().values().filter(|entry| entry.neighbour.class == class).cloned().collect()
    }

    /// Those of this site.
    pub(super) fn near(&self) -> Vec<NodeId> {
        let entries = self.lock();
        let near = entries.iter().filter(|(_, entry)| entry.neighbour.class == LinkClass::Lan);
        near.map(|(node, _)| *node).collect()
    }

    /// Counts up whenever one of this site comes.
    pub(super) fn meetings(&self) -> u64 {
        self.meetings.load(Ordering::Acquire)
    }

    /// A node asks for an image or a blob.
    pub(super) fn seeks(&self, node: &NodeId) {
        let is_near = self.lock().get(node).is_some_and(|entry| entry.neighbour.class == LinkClass::Lan);
        if is_near {
            *self.sought.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// Whether one of this site has asked for anything in the last [`ASTIR`].
    pub(super) fn are_astir(&self) -> bool {
        let sought = *self.sought.lock().unwrap_or_else(PoisonError::into_inner);
        sought.is_some_and(|at| at.elapsed() < ASTIR)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// Waits until a node is connected.
    pub(super) async fn connected(&self, node: &NodeId) -> Option<Entry> {
        let mut notices = self.notices();
        loop {
            if let Some(entry) = self.get(node) {
                return Some(entry);
            }
            match notices.recv().await {
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
