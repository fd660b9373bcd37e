//! Keeps what the network is told, and what is remembered of it, in step with what is so.

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_proto::Digest;

use crate::store::{Gone, Store, StoreError};
use crate::swarm::{Client, Notice};

/// Under which key of the index the addresses of other nodes are remembered.
const REMEMBERED: &[u8] = b"neighbours";

/// The version of what is kept there: it goes up with every change of its layout.
const VERSION: u8 = 1;

/// The addresses that the last run remembered.
pub(super) fn remembered(store: &Store) -> Result<Vec<String>, StoreError> {
    Ok(store.table::<Vec<String>>("peers", VERSION)?.get(REMEMBERED)?.unwrap_or_default())
}

pub(super) struct Upkeep {
    store: Store,
    swarm: Client,
    gone: Receiver<Gone>,
    notices: Receiver<Notice>,
}

impl Upkeep {
    /// Listens from now on, so that nothing is missed until it runs.
    pub(super) fn new(store: Store, swarm: Client) -> Self {
        let (gone, notices) = (store.evicted(), swarm.notices());
        Self { store, swarm, gone, notices }
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let Self { store, swarm, gone, notices } = self;
        let all = async {
            tokio::join!(
                announce(&store, &swarm),
                withdraw(&store, &swarm, gone),
                remember(&store, &swarm, notices)
            )
        };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = all => {}
        }
    }
}

/// Announces what is held at the start.
async fn announce(store: &Store, swarm: &Client) {
    for (digest, _) in store.blobs() {
        swarm.announce(digest).await;
        // It may have left since the list was made, and been withdrawn before it was announced.
        if !store.holds(&digest) {
            take_back(store, swarm, digest).await;
        }
    }
}

/// Withdraws a blob that has been seen to have left.
async fn take_back(store: &Store, swarm: &Client, digest: Digest) {
    swarm.withdraw(digest).await;
    // It may have come back since it was looked at, and been announced before it was withdrawn. What comes back later than
    // this look is announced later than the withdrawal.
    if store.holds(&digest) {
        swarm.announce(digest).await;
    }
}

/// Withdraws what leaves.
async fn withdraw(store: &Store, swarm: &Client, mut gone: Receiver<Gone>) {
    loop {
        match gone.recv().await {
            Ok(gone) => take_back(store, swarm, gone.digest).await,
            Err(RecvError::Lagged(missed)) => {
                info!(
                    missed,
                    "blobs leave faster than they are withdrawn: all that is announced is looked at"
                );
                for digest in swarm.announced().await {
                    if !store.holds(&digest) {
                        take_back(store, swarm, digest).await;
                    }
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Remembers the addresses of neighbours for the next run.
async fn remember(store: &Store, swarm: &Client, mut notices: Receiver<Notice>) {
    loop {
        match notices.recv().await {
            Ok(Notice::Connected(_)) | Err(RecvError::Lagged(_)) => {
                let (store, addresses) = (store.clone(), swarm.remember());
                let write =
                    move || store.table("peers", VERSION).and_then(|table| table.put(REMEMBERED, &addresses));
                if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
                    warn!(%error, "the addresses of neighbours are not remembered");
                }
            }
            Ok(_) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};
    use std::time::Duration;

    use wherry_proto::{Certificate, Roles, SecretKey};

    use super::*;
    use crate::limits::Limits;
    use crate::node::holdings::Shelf;
    use crate::status::Metrics;
    use crate::store::StoreSettings;
    use crate::swarm::{self, Swarm, SwarmSettings};

    /// A store, and a swarm of one node.
    async fn alone(stop: &CancellationToken) -> (tempfile::TempDir, Store, Swarm) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreSettings::default()).unwrap();
        let shelf = Shelf {
            store: store.clone(),
            metrics: Metrics::default(),
            transfers: OnceLock::new(),
            images: OnceLock::new(),
            preloads: OnceLock::new(),
            swarm: OnceLock::new(),
            limits: Limits::none(SecretKey::from_seed([1; 32]).node()),
            care: crate::node::care::Care::new().0,
        };
        let key = SecretKey::from_seed([1; 32]);
        let settings = SwarmSettings {
            membership: Some(Certificate::sign(&key, key.node(), Roles::MEMBER, 0, u64::MAX)),
            key,
            min_epoch: 0,
            site: "here".to_owned(),
            peers: "127.0.0.1:0".parse().unwrap(),
            bulk: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
            bootstrap: Vec::new(),
            mdns: false,
            remembered: Vec::new(),
            announce_after: Duration::ZERO,
            clock: Arc::new(|| 0),
        };
        let swarm = swarm::start(settings, Arc::new(shelf), stop.clone()).await.unwrap();
        (dir, store, swarm)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_comes_back_while_it_is_withdrawn_stays_announced() {
        let stop = CancellationToken::new();
        let (_dir, store, swarm) = alone(&stop).await;
        let client = swarm.client();
        // It was gone when it was looked at, and has been fetched again and announced since.
        let back = store.put(&Digest::sha256(b"back"), b"back").unwrap().digest();
        client.announce(back).await;
        take_back(&store, &client, back).await;
        assert_eq!(client.announced().await, [back]);
        store.remove(&back).unwrap();
        take_back(&store, &client, back).await;
        assert_eq!(client.announced().await, []);
        stop.cancel();
        swarm.join().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_left_is_announced_no_more_however_much_left_at_once() {
        let stop = CancellationToken::new();
        let (_dir, store, swarm) = alone(&stop).await;
        let client = swarm.client();
        let upkeep = Upkeep::new(store.clone(), client.clone());

        let stays = store.put(&Digest::sha256(b"stays"), b"stays").unwrap().digest();
        // More than the store keeps for a listener that is behind.
        for number in 0..1_200u32 {
            let bytes = number.to_be_bytes();
            let digest = Digest::sha256(&bytes);
            store.put(&digest, &bytes).unwrap();
            client.announce(digest).await;
            store.remove(&digest).unwrap();
        }
        assert_eq!(client.announced().await.len(), 1_200);
        let running = tokio::spawn(upkeep.run(stop.clone()));
        let in_step = async {
            while client.announced().await != [stays] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), in_step).await.unwrap();
        stop.cancel();
        running.await.unwrap();
        swarm.join().await;
    }
}
