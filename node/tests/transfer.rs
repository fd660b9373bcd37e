//! Blobs on their way: shared by all who want them, readable as they arrive, resumable, and never wrong.
//!
//! The origin is a real registry server (the gateway's own) over real HTTP; there are no peers here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use wherry_gateway::origin::{OriginSettings, Origins};
use wherry_gateway::server::{
    Ask, BlobReader, Body, Content, ManifestAnswer, Push, Refusal, RefusalKind, ServerOptions, Want, serve,
};
use wherry_gateway::{Host, TagOrDigest};
use wherry_node::limits::{LimitParts, LimitSettings, Limits, moment};
use wherry_node::status::Metrics;
use wherry_node::store::{Store, StoreSettings};
use wherry_node::transfer::planner::Scope;
use wherry_node::transfer::{
    Fetched, Found, MAX_TRANSFERS, PeerError, Peers, Route, Signer, Transfer, TransferError, Transfers,
};
use wherry_proto::{
    Algorithm, Certificate, ChainBuilder, ChunkIndex, ChunkMap, Digest, NodeId, Roles, SecretKey, StateChain,
};

/// A site of one.
struct Nobody;

impl Peers for Nobody {
    fn me(&self) -> NodeId {
        SecretKey::from_seed([1; 32]).node()
    }

    fn search(&self, _: Digest, _: Scope) -> BoxStream<'static, Found> {
        stream::empty().boxed()
    }

    fn chain(
        &self,
        _: NodeId,
        _: Digest,
        _: u64,
        _: Option<Arc<StateChain>>,
    ) -> BoxFuture<'_, Result<Arc<StateChain>, PeerError>> {
        async { Err(PeerError::Left("nobody is there".to_owned())) }.boxed()
    }

    fn chunk(
        &self,
        _: NodeId,
        _: Digest,
        _: ChunkMap,
        _: ChunkIndex,
        _: oneshot::Sender<()>,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        async { Err(PeerError::Failed("nobody is there".to_owned())) }.boxed()
    }

    fn ready(&self, _: NodeId) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn ban<'a>(&'a self, _: NodeId, _: &'a str) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn announce(&self, _: Digest) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

fn signer() -> Signer {
    let key = SecretKey::from_seed([1; 32]);
    let certificate = Certificate::sign(&key, key.node(), Roles::MEMBER, 0, u64::MAX);
    Signer { key, certificate }
}

/// Blobs in memory; each piece of 64 KiB that is sent takes one permit of `pace`.
struct Registry {
    blobs: HashMap<Digest, Bytes>,
    pace: Arc<Semaphore>,
}

struct Reading {
    bytes: Bytes,
    pace: Arc<Semaphore>,
}

impl BlobReader for Reading {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read(&self, range: Range<u64>) -> Result<Body, Refusal> {
        let left = self.bytes.slice(range.start as usize..range.end as usize);
        let pieces = stream::unfold((left, self.pace.clone()), |(mut left, pace)| async move {
            if left.is_empty() {
                return None;
            }
            pace.acquire().await.unwrap().forget();
            let piece = left.split_to(left.len().min(64 << 10));
            Some((Ok(piece), (left, pace)))
        });
        Ok(Body::Stream(pieces.boxed()))
    }
}

impl Push for Registry {}

impl Content for Registry {
    type Blob = Reading;

    async fn manifest(&self, _: Ask, _: TagOrDigest, _: Want) -> Result<ManifestAnswer, Refusal> {
        Err(Refusal::new(RefusalKind::ManifestUnknown, "there are only blobs here"))
    }

    async fn blob(&self, _: Ask, digest: Digest, _: Want) -> Result<Reading, Refusal> {
        match self.blobs.get(&digest) {
            Some(bytes) => Ok(Reading { bytes: bytes.clone(), pace: self.pace.clone() }),
            None => Err(Refusal::new(RefusalKind::BlobUnknown, "no such blob")),
        }
    }

    async fn tags(&self, _: Ask) -> Result<Vec<String>, Refusal> {
        Ok(Vec::new())
    }
}

struct Lab {
    dir: TempDir,
    route: Route,
    pace: Arc<Semaphore>,
    stop_origin: CancellationToken,
}

const FULL_SPEED: usize = Semaphore::MAX_PERMITS >> 1;

impl Lab {
    async fn new(blobs: impl IntoIterator<Item = (Digest, Bytes)>, permits: usize) -> Self {
        let pace = Arc::new(Semaphore::new(permits));
        let content = Arc::new(Registry { blobs: blobs.into_iter().collect(), pace: pace.clone() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host: Host = listener.local_addr().unwrap().to_string().parse().unwrap();
        let stop_origin = CancellationToken::new();
        tokio::spawn(serve(listener, content, ServerOptions::default(), stop_origin.clone()));
        let route = Route { host, repository: "test/blobs".parse().unwrap() };
        Self { dir: TempDir::new().unwrap(), route, pace, stop_origin }
    }

    fn node(&self) -> (Transfers, Metrics, Store) {
        self.node_with(&[])
    }

    /// A node that may read further origins than this one.
    fn node_with(&self, others: &[&Self]) -> (Transfers, Metrics, Store) {
        let store = Store::open(self.dir.path(), StoreSettings::default()).unwrap();
        let mut settings = OriginSettings::default();
        settings.insecure.extend([self].iter().chain(others).map(|lab| lab.route.host.clone()));
        settings.attempts = 1;
        let origins = Arc::new(Origins::new(settings).unwrap());
        let metrics = Metrics::default();
        let (limits, stop) = (Limits::none(signer().key.node()), CancellationToken::new());
        let transfers =
            Transfers::new(store.clone(), Arc::new(Nobody), origins, metrics.clone(), limits, signer(), stop);
        (transfers, metrics, store)
    }

    /// A node whose site pauses.
    fn paused_node(&self) -> (Transfers, Limits) {
        let store = Store::open(self.dir.path(), StoreSettings::default()).unwrap();
        let mut settings = OriginSettings::default();
        settings.insecure.push(self.route.host.clone());
        let origins = Arc::new(Origins::new(settings).unwrap());
        let (metrics, Signer { key, certificate }) = (Metrics::default(), signer());
        let limits = Limits::new(LimitParts {
            settings: LimitSettings::default(),
            key,
            certificate,
            site: "here".to_owned(),
            store: store.clone(),
            metrics: metrics.clone(),
            clock: Arc::new(moment),
        })
        .unwrap();
        limits.pause(true).unwrap();
        let stop = CancellationToken::new();
        let transfers =
            Transfers::new(store, Arc::new(Nobody), origins, metrics, limits.clone(), signer(), stop);
        (transfers, limits)
    }

    async fn arriving(&self, transfers: &Transfers, digest: Digest, size: usize) -> Arc<Transfer> {
        match transfers.fetch(digest, size as u64, Some(self.route.clone())).await.unwrap() {
            Fetched::Arriving(transfer) => transfer,
            Fetched::Stored(_) => panic!("it is stored already"),
        }
    }
}

fn blob(size: usize) -> (Digest, Bytes) {
    let bytes: Vec<u8> = (0..size).map(|i| (i as u64).wrapping_mul(0x9e37_79b9).to_le_bytes()[3]).collect();
    (Digest::sha256(&bytes), bytes.into())
}

async fn collect(transfer: &Arc<Transfer>, range: Range<u64>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut pieces = Box::pin(transfer.read(range));
    while let Some(piece) = pieces.next().await {
        out.extend_from_slice(&piece.expect("the stream breaks"));
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_want_a_blob_at_once_share_one_transfer() {
    let (digest, bytes) = blob(3_000_000);
    let lab = Lab::new([(digest, bytes.clone())], FULL_SPEED).await;
    let (transfers, metrics, store) = lab.node();
    let clients = (0..10).map(|_| async {
        match transfers.fetch(digest, bytes.len() as u64, Some(lab.route.clone())).await.unwrap() {
            Fetched::Arriving(transfer) => collect(&transfer, 0..bytes.len() as u64).await,
            Fetched::Stored(blob) => blob.read(u64::MAX).unwrap(),
        }
    });
    for got in futures::future::join_all(clients).await {
        assert!(got == bytes);
    }
    assert_eq!(metrics.from_origin.get(), bytes.len() as u64);
    assert_eq!(store.get(&digest).unwrap().read(u64::MAX).unwrap(), bytes);
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_limit_holds_up_and_nobody_waits_for_makes_room() {
    let lab = Lab::new([], FULL_SPEED).await;
    let (transfers, _limits) = lab.paused_node();
    let mut held_up = Vec::new();
    for number in 0..MAX_TRANSFERS {
        held_up.push(lab.arriving(&transfers, Digest::sha256(&number.to_le_bytes()), 100_000).await);
    }
    let all_wait = async {
        while held_up.iter().any(|transfer| transfer.waits_for().is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_wait).await.expect("they wait for the limit");
    let mut waiting = Vec::new();
    for transfer in &held_up[1..] {
        let mut wait = Box::pin(transfer.wait());
        assert!(futures::poll!(&mut wait).is_pending());
        waiting.push(wait);
    }
    let next = lab.arriving(&transfers, Digest::sha256(b"next"), 100_000).await;
    assert!(matches!(held_up[0].wait().await, Err(TransferError::Cancelled)));
    assert_eq!(transfers.running().len(), MAX_TRANSFERS);
    let mut wait = Box::pin(next.wait());
    assert!(futures::poll!(&mut wait).is_pending());
    let full = transfers.fetch(Digest::sha256(b"another"), 100_000, Some(lab.route.clone())).await;
    assert!(matches!(full, Err(TransferError::Full)), "somebody waits for each of them");
    assert!(waiting.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()));
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reads_what_has_arrived_while_the_rest_is_on_its_way() {
    let (digest, bytes) = blob(3_000_000);
    // Enough for the first half a megabyte.
    let lab = Lab::new([(digest, bytes.clone())], 8).await;
    let (transfers, _, store) = lab.node();
    let transfer = lab.arriving(&transfers, digest, bytes.len()).await;
    let mut pieces = Box::pin(transfer.read(100..bytes.len() as u64));
    let first = pieces.next().await.unwrap().unwrap();
    assert!(!first.is_empty() && bytes[100..].starts_with(&first));
    assert!(store.get(&digest).is_none());
    lab.pace.add_permits(FULL_SPEED);
    let mut got = first.to_vec();
    while let Some(piece) = pieces.next().await {
        got.extend_from_slice(&piece.unwrap());
    }
    assert!(got == bytes[100..]);
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_when_its_client_leaves() {
    let (digest, bytes) = blob(2_000_000);
    let lab = Lab::new([(digest, bytes.clone())], 4).await;
    let (transfers, _, store) = lab.node();
    let transfer = lab.arriving(&transfers, digest, bytes.len()).await;
    let mut pieces = Box::pin(transfer.read(0..bytes.len() as u64));
    pieces.next().await.unwrap().unwrap();
    drop(pieces);
    lab.pace.add_permits(FULL_SPEED);
    transfer.wait().await.unwrap();
    assert!(store.holds(&digest));
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_and_goes_away_at_once_is_in_nobodys_way() {
    let (digest, bytes) = blob(200_000);
    let lab = Lab::new([(digest, bytes.clone())], FULL_SPEED).await;
    let (transfers, _, store) = lab.node();
    for polls in 0..6 {
        let mut asking = Box::pin(transfers.fetch(digest, bytes.len() as u64, Some(lab.route.clone())));
        for _ in 0..polls {
            if futures::poll!(asking.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let arrived = async {
        match transfers.fetch(digest, bytes.len() as u64, Some(lab.route.clone())).await.unwrap() {
            Fetched::Arriving(transfer) => transfer.wait().await.map(drop),
            Fetched::Stored(_) => Ok(()),
        }
    };
    tokio::time::timeout(Duration::from_secs(30), arrived).await.expect("it hangs").unwrap();
    assert!(store.holds(&digest));
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_before_a_stop_is_not_fetched_again() {
    let (digest, bytes) = blob(4_000_000);
    let lab = Lab::new([(digest, bytes.clone())], 32).await;
    let (transfers, before, store) = lab.node();
    let transfer = lab.arriving(&transfers, digest, bytes.len()).await;
    // The pace allows two mebibytes: wait for half of them, then stop in the middle of things.
    assert!(transfer.first_byte(&(1 << 20..(1 << 20) + 1), |_| false).await.unwrap());
    transfers.close().await;
    assert!(matches!(transfer.wait().await, Err(TransferError::Stopped)));
    drop((transfer, transfers));
    store.close().unwrap();
    drop(store);

    lab.pace.add_permits(FULL_SPEED);
    let (transfers, after, store) = lab.node();
    let transfer = lab.arriving(&transfers, digest, bytes.len()).await;
    transfer.wait().await.unwrap();
    let (size, chunk) = (bytes.len() as u64, 32 << 10);
    assert!(after.from_origin.get() <= size - (1 << 20), "{} bytes came again", after.from_origin.get());
    // Chunks that were in flight at the stop may come twice: as many as memory between origin and disk holds.
    let twice = before.from_origin.get() + after.from_origin.get() - size;
    assert!(twice <= 32 * chunk, "{twice} bytes came twice");
    assert_eq!(store.get(&digest).unwrap().read(u64::MAX).unwrap(), bytes);
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_whose_last_chunk_came_just_before_a_kill_is_whole_after_the_restart() {
    let (digest, bytes) = blob(200_000);
    let lab = Lab::new([], FULL_SPEED).await;
    let mut builder = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(bytes.len() as u64).unwrap());
    builder.update(&bytes).unwrap();
    let chain = builder.finish().unwrap();
    {
        let store = Store::open(lab.dir.path(), StoreSettings::default()).unwrap();
        let partial = store.partial(&digest, chain.map()).unwrap();
        for index in chain.map().iter() {
            let start = chain.map().offset(index) as usize;
            let chunk = &bytes[start..start + chain.map().len(index) as usize];
            partial.write(index, chunk, chain.link(index)).unwrap();
        }
    }
    let (transfers, metrics, store) = lab.node();
    let transfer = lab.arriving(&transfers, digest, bytes.len()).await;
    tokio::time::timeout(Duration::from_secs(30), transfer.wait()).await.expect("it hangs").unwrap();
    assert_eq!(store.get(&digest).unwrap().read(u64::MAX).unwrap(), bytes);
    assert_eq!(metrics.from_origin.get(), 0);
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stays_after_a_failure_is_in_nobodys_way() {
    let (digest, bytes) = blob(500_000);
    let lab = Lab::new([], FULL_SPEED).await;
    let (transfers, _, _) = lab.node();
    let first = lab.arriving(&transfers, digest, bytes.len()).await;
    let _stays = Box::pin(first.read(0..bytes.len() as u64));
    assert!(first.wait().await.is_err());
    let second = lab.arriving(&transfers, digest, bytes.len()).await;
    match second.wait().await {
        Err(TransferError::NoSource { .. }) => {}
        other => panic!("{other:?}"),
    }
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_rots_while_somebody_still_reads_the_transfer_that_brought_it_is_whole_again() {
    let (digest, bytes) = blob(500_000);
    let lab = Lab::new([(digest, bytes.clone())], FULL_SPEED).await;
    let (transfers, _, store) = lab.node();
    let stays = lab.arriving(&transfers, digest, bytes.len()).await;
    stays.wait().await.unwrap();
    store.sync().unwrap();
    let hex = digest.hex();
    let path = lab.dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    let mut rotten = bytes.to_vec();
    rotten[1000] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, rotten).unwrap();
    assert!(!store.verify(&digest).unwrap());
    let second = lab.arriving(&transfers, digest, bytes.len()).await;
    second.wait().await.unwrap();
    assert!(store.verify(&digest).unwrap());
    drop(stays);
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_do_not_have_the_digest_are_an_error_and_are_not_stored() {
    let (digest, bytes) = blob(1_000_000);
    let mut wrong = bytes.to_vec();
    wrong[700_000] ^= 4;
    let lab = Lab::new([(digest, wrong.into())], FULL_SPEED).await;
    let (transfers, _, store) = lab.node();
    let transfer = lab.arriving(&transfers, digest, bytes.len()).await;
    let mut pieces = Box::pin(transfer.read(0..bytes.len() as u64));
    let mut broke = false;
    while let Some(piece) = pieces.next().await {
        broke = piece.is_err();
    }
    assert!(broke, "a client was given wrong bytes to the end");
    match transfer.wait().await {
        Err(TransferError::OriginWrong { origins, .. }) => assert_eq!(origins, [lab.route.to_string()]),
        other => panic!("{other:?}"),
    }
    assert!(!store.holds(&digest));
    transfers.close().await;
    // Nor would the next transfer begin with them.
    let map = ChunkMap::new(bytes.len() as u64).unwrap();
    assert_eq!(store.partial_bytes(&digest, map).unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_origin_is_read_where_one_sends_wrong_bytes() {
    let (digest, bytes) = blob(1_000_000);
    let mut wrong = bytes.to_vec();
    wrong[700_000] ^= 4;
    let honest = Lab::new([(digest, bytes.clone())], FULL_SPEED).await;
    // It sends nothing until the other is known.
    let liar = Lab::new([(digest, wrong.into())], 0).await;
    let (transfers, _, store) = liar.node_with(&[&honest]);
    let transfer = liar.arriving(&transfers, digest, bytes.len()).await;
    honest.arriving(&transfers, digest, bytes.len()).await;
    liar.pace.add_permits(FULL_SPEED);
    let outcome = tokio::time::timeout(Duration::from_secs(60), transfer.wait()).await.expect("it hangs");
    assert_eq!(outcome.unwrap().digest(), digest);
    assert!(store.holds(&digest));
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_not_the_origins_is_an_error_that_names_both() {
    let (digest, bytes) = blob(100_000);
    let lab = Lab::new([(digest, bytes)], FULL_SPEED).await;
    let (transfers, _, store) = lab.node();
    let error = lab.arriving(&transfers, digest, 99_999).await.wait().await.unwrap_err().to_string();
    assert!(error.contains("100000") && error.contains("99999"), "{error}");
    assert!(!store.holds(&digest));
    transfers.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_gone_is_an_error_that_says_so() {
    let (digest, bytes) = blob(100_000);
    let lab = Lab::new([], FULL_SPEED).await;
    lab.stop_origin.cancel();
    let (transfers, _, _) = lab.node();
    let transfer = lab.arriving(&transfers, digest, bytes.len()).await;
    let outcome = tokio::time::timeout(Duration::from_secs(60), transfer.wait()).await.expect("it hangs");
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains(&lab.route.host.to_string()) && error.contains("no peer"), "{error}");
    transfers.close().await;
}

/// A runtime in which one thread at a time may wait for the disk, so that a test can keep all others from it.
fn with_one_disk(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(test);
    runtime.shutdown_background();
}

#[test]
fn nobody_joins_a_transfer_that_has_come_to_nothing_however_long_it_takes_to_end() {
    with_one_disk(async {
        let (_, wrong) = blob(1000);
        let digest = Digest::sha256(b"right");
        let lab = Lab::new([(digest, wrong.clone())], 0).await;
        let (transfers, metrics, _store) = lab.node();
        let doomed = lab.arriving(&transfers, digest, wrong.len()).await;
        let (go_on, wait) = std::sync::mpsc::sync_channel::<()>(1);
        tokio::task::spawn_blocking(move || wait.recv());
        // Every reading is wrong, and what is wrong cannot be forgotten yet.
        lab.pace.add_permits(FULL_SPEED);
        let left = async {
            while transfers.get(digest, wrong.len() as u64).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), left).await.expect("others could join it still");
        assert!(metrics.from_origin.get() > 0, "it was read before that");
        let anew = tokio::spawn({
            let (transfers, route, size) = (transfers.clone(), lab.route.clone(), wrong.len() as u64);
            async move { transfers.fetch(digest, size, Some(route)).await }
        });
        go_on.send(()).unwrap();
        let Fetched::Arriving(anew) = anew.await.unwrap().unwrap() else { panic!("it is stored") };
        assert!(!Arc::ptr_eq(&anew, &doomed));
        assert!(matches!(doomed.wait().await, Err(TransferError::OriginWrong { .. })));
    });
}
