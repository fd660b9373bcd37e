//! The giving side, asked by peers over streams in memory.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wherry_proto::{
    Algorithm, BlobName, ChainBuilder, ChunkMap, Digest, List, NodeId, Refusal, Request, Response, Role,
    SecretKey, StateChain, TagRecord, Update, decode_payload, encode_frame,
};

use super::chains::Chains;
use super::server::until_giving;
use super::{
    Buffers, CHAINS_AT_ONCE, Exchange, ExchangeError, Follow, MAX_FOLLOWED, MOST_IN_A_ROW, Patience,
    SLOTS_PER_PEER, UPLOAD_SLOTS, Uploader, serve, start,
};
use crate::swarm::arriving::Arriving;
use crate::swarm::codec::read_payload;
use crate::swarm::holdings::{Holdings, ReadAt};

const PATIENCE: Duration = Duration::from_secs(20);

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

/// A blob of which every read is told and then waits until the gate lets it through or is gone.
#[derive(Clone)]
struct Gated {
    reads: mpsc::Sender<()>,
    gate: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
}

const GATED: [u8; 100] = [0; 100];

impl ReadAt for Gated {
    fn read_exact_at(&self, buf: &mut [u8], _: u64) -> io::Result<()> {
        self.reads.try_send(()).unwrap();
        let _ = self.gate.lock().unwrap().recv();
        buf.fill(0);
        Ok(())
    }
}

/// Bytes that are read at once.
struct Open(Arc<Vec<u8>>);

impl ReadAt for Open {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = offset as usize;
        buf.copy_from_slice(&self.0[offset..offset + buf.len()]);
        Ok(())
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> bool {
        self.read_exact_at(buf, offset).is_ok()
    }
}

/// The gated blob, and one that is open.
struct Stock {
    gated: Gated,
    open: Arc<Vec<u8>>,
    // How many searches for blobs that arrive are under way, and how many were at most.
    searching: AtomicUsize,
    most: AtomicUsize,
    // Which chunks of the open blob did not link, as peers say.
    doubted: Mutex<Vec<(NodeId, u32)>>,
    // Whether anything is given.
    gives: watch::Sender<bool>,
}

impl Stock {
    fn bytes(&self, digest: &Digest) -> Option<&[u8]> {
        [&GATED[..], &self.open].into_iter().find(|bytes| Digest::sha256(bytes) == *digest)
    }
}

impl Holdings for Stock {
    fn held(&self, digest: &Digest) -> Option<u64> {
        self.bytes(digest).map(|bytes| bytes.len() as u64)
    }

    fn chain(&self, digest: &Digest) -> Option<StateChain> {
        let bytes = self.bytes(digest)?;
        let mut builder = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(bytes.len() as u64).unwrap());
        builder.update(bytes).unwrap();
        Some(builder.finish().unwrap())
    }

    fn open(&self, digest: &Digest) -> io::Result<Option<Arc<dyn ReadAt>>> {
        if *digest == Digest::sha256(&GATED) {
            return Ok(Some(Arc::new(self.gated.clone())));
        }
        Ok(Some(Arc::new(Open(Arc::clone(&self.open)))))
    }

    fn doubted(&self, by: NodeId, blob: BlobName, index: u32) {
        assert_eq!((blob.digest, blob.size), (Digest::sha256(&self.open), self.open.len() as u64));
        self.doubted.lock().unwrap().push((by, index));
    }

    fn arriving(&self, _: &BlobName) -> Option<Arc<dyn Arriving>> {
        let now = self.searching.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        std::thread::yield_now();
        self.searching.fetch_sub(1, Ordering::SeqCst);
        None
    }

    fn gives_no_more<'a>(&'a self, _: &'a NodeId) -> BoxFuture<'a, ()> {
        async { self.gives.subscribe().wait_for(|gives| !gives).await.map(drop).unwrap() }.boxed()
    }

    fn tag(&self, _: &str) -> Option<TagRecord> {
        None
    }
}

/// A giving side with an open blob of this length.
struct Giver {
    uploader: Arc<Uploader>,
    stock: Arc<Stock>,
    // Tells of reads of the gated blob.
    reads: mpsc::Receiver<()>,
    // Lets one read of that blob through or, dropped, all of them.
    gate: Option<std::sync::mpsc::SyncSender<()>>,
}

impl Giver {
    fn new(open: usize) -> Self {
        let (reads, entered) = mpsc::channel(1024);
        let (gate, closed) = std::sync::mpsc::sync_channel(64);
        let gated = Gated { reads, gate: Arc::new(Mutex::new(closed)) };
        let open = Arc::new((0..open).map(|at| (at / 100 % 251) as u8).collect());
        let (searching, most) = Default::default();
        let (doubted, gives) = (Mutex::default(), watch::Sender::new(true));
        let stock = Arc::new(Stock { gated, open, searching, most, doubted, gives });
        let uploader = Uploader::new(stock.clone(), key(1), key(9).network(), Buffers::default());
        Self { uploader, stock, reads: entered, gate: Some(gate) }
    }

    /// A new connection of this peer.
    fn connect(&self, peer: NodeId) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(serve(Arc::clone(&self.uploader), peer, ours, None));
        theirs
    }

    /// A peer that takes.
    fn taker(&self, number: u8) -> Taker {
        let stream = self.connect(key(number).node());
        let (node, network) = (key(1).node(), key(9).network());
        let (patience, stop) = (Patience::USUAL, CancellationToken::new());
        let (exchange, work) = start(stream, node, network, true, Default::default(), patience, stop);
        Taker { exchange, _work: AbortOnDropHandle::new(tokio::spawn(work)) }
    }

    /// The open blob.
    fn blob(&self) -> (Digest, ChunkMap) {
        (Digest::sha256(&self.stock.open), ChunkMap::new(self.stock.open.len() as u64).unwrap())
    }

    /// Asks for the gated blob on this connection, which then has a slot.
    async fn take_slot(&mut self, stream: &mut DuplexStream) {
        ask_gated(stream).await;
        within(self.reads.recv()).await.unwrap();
    }
}

/// It is gone when this is dropped.
struct Taker {
    exchange: Exchange,
    _work: AbortOnDropHandle<()>,
}

impl Taker {
    async fn take(&self, giver: &Giver, chunk: u32) -> Result<(), ExchangeError> {
        let (digest, map) = giver.blob();
        let index = map.index(chunk).unwrap();
        let bytes = within(self.exchange.chunk(digest, map, index, |_| {})).await?;
        let offset = map.offset(index) as usize;
        assert_eq!(bytes, giver.stock.open[offset..offset + bytes.len()]);
        Ok(())
    }

    /// Follows the open blob; the giver knows of it then.
    async fn follow(&self, giver: &Giver) -> Follow {
        let (digest, map) = giver.blob();
        let mut follow = self.exchange.follow(digest, map);
        assert_eq!(next(&mut follow).await, Some(held()));
        follow
    }
}

#[tokio::test]
async fn whoever_gave_a_chunk_that_does_not_link_is_told_although_its_taker_leaves_at_once() {
    let giver = Giver::new(200_000);
    let taker = giver.taker(2);
    taker.take(&giver, 1).await.unwrap();
    let (digest, map) = giver.blob();
    within(taker.exchange.unlinked(digest, map, map.index(1).unwrap())).await;
    taker.exchange.close();
    let told = async {
        while giver.stock.doubted.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(told).await;
    assert_eq!(*giver.stock.doubted.lock().unwrap(), [(key(2).node(), 1)]);
    // Nobody waits for ever where there is nobody to tell.
    within(taker.exchange.unlinked(digest, map, map.index(1).unwrap())).await;
}

#[tokio::test]
async fn where_no_rate_is_set_no_chunk_waits_for_a_timer() {
    let giver = Giver::new(0);
    let turn = until_giving(&*giver.stock, &key(2).node()).now_or_never();
    assert!(matches!(turn, Some(Ok(()))));
}

async fn next(follow: &mut Follow) -> Option<Update> {
    within(futures::StreamExt::next(follow)).await
}

fn held() -> Update {
    Update { role: Role::Held, here: List::first_of([]) }
}

async fn say(stream: &mut DuplexStream, request: Request) {
    within(stream.write_all(&encode_frame(&request).unwrap())).await.unwrap();
}

async fn ask_gated(stream: &mut DuplexStream) {
    let blob = BlobName { digest: Digest::sha256(&GATED), size: GATED.len() as u64 };
    say(stream, Request::Chunk { id: 1, blob, index: 0 }).await;
}

async fn response(stream: &mut DuplexStream) -> Response {
    decode_payload(&within(read_payload::<Response>(stream)).await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_many_connections_has_no_more_slots_than_one_with_one() {
    let mut giver = Giver::new(0);
    let greedy = key(2).node();
    let mut first: Vec<_> = (0..SLOTS_PER_PEER).map(|_| giver.connect(greedy)).collect();
    for stream in &mut first {
        giver.take_slot(stream).await;
    }
    let mut more: Vec<_> = (0..3).map(|_| giver.connect(greedy)).collect();
    for stream in &mut more {
        ask_gated(stream).await;
    }
    // Nothing can be read yet, and slots are free: it is this peer that has enough of them.
    for stream in &mut more {
        assert_eq!(response(stream).await, Response::Busy { id: 1 });
    }
    assert!(giver.reads.try_recv().is_err());
    let mut modest = giver.connect(key(3).node());
    giver.take_slot(&mut modest).await;
    // Once its own are free it is told, on each connection that was sent away.
    giver.gate = None;
    for stream in &mut more {
        assert_eq!(response(stream).await, Response::Free);
    }
    for stream in first.iter_mut().chain([&mut modest]) {
        assert_eq!(response(stream).await, Response::Chunk { id: 1, len: GATED.len() as u32 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_asks_for_much_and_reads_nothing_holds_one_slot() {
    let giver = Giver::new(2 << 20);
    let (digest, map) = giver.blob();
    let blob = BlobName { digest, size: map.size() };
    // As many as there are slots but one.
    let mut deaf: Vec<_> =
        (2..1 + UPLOAD_SLOTS as u8).map(|number| giver.connect(key(number).node())).collect();
    for stream in &mut deaf {
        for index in 0..20 {
            say(stream, Request::Chunk { id: index, blob, index }).await;
        }
    }
    let taker = giver.taker(100);
    for chunk in 0..map.count() {
        taker.take(&giver, chunk).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_keeps_its_slot_for_what_it_has_in_line_and_lets_others_go_first_in_the_end() {
    let mut giver = Giver::new(0);
    let blob = BlobName { digest: Digest::sha256(&GATED), size: GATED.len() as u64 };
    // One more than there are slots.
    let mut crowd: Vec<_> =
        (0..=UPLOAD_SLOTS).map(|number| giver.connect(key(10 + number as u8).node())).collect();
    let many = MOST_IN_A_ROW + 2;
    for stream in &mut crowd {
        for id in 0..many {
            say(stream, Request::Chunk { id, blob, index: 0 }).await;
        }
    }
    // Nothing can be read yet, so that the first that is answered is the one that is sent away.
    let answers = crowd.iter_mut().map(|stream| Box::pin(response(stream)));
    let (answer, one, _) = futures::future::select_all(answers).await;
    assert_eq!(answer, Response::Busy { id: 0 });
    let mut sent_away = crowd.swap_remove(one);
    for id in 1..many {
        assert_eq!(response(&mut sent_away).await, Response::Busy { id });
    }
    for _ in 0..UPLOAD_SLOTS {
        within(giver.reads.recv()).await.unwrap();
    }
    giver.gate = None;
    // Of all who have slots the first that is through lets the other one in.
    assert_eq!(response(&mut sent_away).await, Response::Free);
    let given = crowd.iter_mut().map(|stream| {
        Box::pin(async move {
            let mut given = 0;
            while let Response::Chunk { len, .. } = response(stream).await {
                let mut bytes = vec![0; len as usize];
                within(stream.read_exact(&mut bytes)).await.unwrap();
                given += 1;
                if given == many {
                    break;
                }
            }
            given
        })
    });
    let given = futures::future::join_all(given).await;
    assert!(given.contains(&MOST_IN_A_ROW), "{given:?}");
    assert!(given.iter().all(|given| [MOST_IN_A_ROW, many].contains(given)), "{given:?}");
    say(&mut sent_away, Request::Chunk { id: many, blob, index: 0 }).await;
    assert_eq!(response(&mut sent_away).await, Response::Chunk { id: many, len: GATED.len() as u32 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_sent_elsewhere_for_what_another_got_while_upload_is_scarce() {
    let mut giver = Giver::new(3 * (32 << 10));
    let elsewhere = Err(ExchangeError::Elsewhere(key(1).node()));
    let (one, other) = (giver.taker(2), giver.taker(3));
    let (_one, _other) = (one.follow(&giver).await, other.follow(&giver).await);
    // Plentiful: all slots are free.
    assert_eq!(one.take(&giver, 0).await, Ok(()));
    assert_eq!(other.take(&giver, 0).await, Ok(()));
    assert_eq!(one.take(&giver, 1).await, Ok(()));
    // More than half of them are taken.
    let mut takers: Vec<_> =
        (4..=4 + UPLOAD_SLOTS as u8 / 2).map(|number| giver.connect(key(number).node())).collect();
    for stream in &mut takers {
        giver.take_slot(stream).await;
    }
    assert_eq!(other.take(&giver, 1).await, elsewhere);
    assert_eq!(one.take(&giver, 1).await, Ok(()), "it has none to be sent to but itself");
    assert_eq!(giver.taker(99).take(&giver, 1).await, Ok(()), "it follows nobody");
    assert_eq!(other.take(&giver, 2).await, Ok(()));
    // Now all have been given once at least, so that again is no worse than another.
    assert_eq!(other.take(&giver, 1).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_to_a_follower_that_is_gone_is_given_again() {
    let mut giver = Giver::new(3 * (32 << 10));
    let (one, other, third) = (giver.taker(2), giver.taker(3), giver.taker(4));
    let (_one, _other, _third) =
        (one.follow(&giver).await, other.follow(&giver).await, third.follow(&giver).await);
    let mut takers: Vec<_> =
        (5..=5 + UPLOAD_SLOTS as u8 / 2).map(|number| giver.connect(key(number).node())).collect();
    for stream in &mut takers {
        giver.take_slot(stream).await;
    }
    assert_eq!(one.take(&giver, 0).await, Ok(()));
    assert_eq!(other.take(&giver, 0).await, Err(ExchangeError::Elsewhere(key(1).node())));
    drop(one);
    // Until the giver has noticed.
    within(async {
        while let Err(why) = other.take(&giver, 0).await {
            assert_eq!(why, ExchangeError::Elsewhere(key(1).node()));
        }
    })
    .await;
    assert_eq!(third.take(&giver, 0).await, Err(ExchangeError::Elsewhere(key(1).node())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_blob_that_is_followed_is_not_kept_open() {
    let giver = Giver::new(100);
    let taker = giver.taker(2);
    let _follow = taker.follow(&giver).await;
    // Whoever keeps it open has another handle.
    assert_eq!(Arc::strong_count(&giver.stock.open), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_follows_no_more_than_its_share() {
    let giver = Giver::new(100);
    let taker = giver.taker(2);
    let mut first = taker.follow(&giver).await;
    let mut stream = giver.connect(key(3).node());
    let blob = |n: u64| BlobName { digest: Digest::sha256(&n.to_le_bytes()), size: 1 };
    let held = {
        let (digest, map) = giver.blob();
        BlobName { digest, size: map.size() }
    };
    say(&mut stream, Request::Follow { id: 0, blob: held }).await;
    assert_eq!(response(&mut stream).await, Response::Update { id: 0, update: self::held() });
    let refused = |id| Response::Refused { id, reason: Refusal::TooManyFollowed };
    // The same blob again, and the same number.
    say(&mut stream, Request::Follow { id: 1, blob: held }).await;
    assert_eq!(response(&mut stream).await, refused(1));
    say(&mut stream, Request::Follow { id: 0, blob: blob(0) }).await;
    assert_eq!(response(&mut stream).await, refused(0));
    // A blob that is followed no more is no part of the share, nor is one that is gone.
    let gone = Update { role: Role::Gone, here: List::first_of([]) };
    for id in 1..=2 * MAX_FOLLOWED as u32 {
        say(&mut stream, Request::Follow { id, blob: blob(id.into()) }).await;
        assert_eq!(response(&mut stream).await, Response::Update { id, update: gone.clone() });
    }
    say(&mut stream, Request::Cancel { id: 0 }).await;
    say(&mut stream, Request::Follow { id: 1000, blob: held }).await;
    assert_eq!(response(&mut stream).await, Response::Update { id: 1000, update: self::held() });
    // Other connections have shares of their own.
    assert!(futures::StreamExt::next(&mut first).now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_follows_makes_one_search_at_a_time_and_no_more_than_is_read() {
    let giver = Giver::new(100);
    let mut stream = giver.connect(key(3).node());
    let blob = |n: u32| BlobName { digest: Digest::sha256(&n.to_le_bytes()), size: 1 };
    // Nothing is read meanwhile, so that at some point nothing is taken any more.
    let flood = async {
        for id in 0.. {
            stream.write_all(&encode_frame(&Request::Follow { id, blob: blob(id) }).unwrap()).await.unwrap();
            if id % 2 == 0 {
                stream.write_all(&encode_frame(&Request::Cancel { id }).unwrap()).await.unwrap();
            }
        }
    };
    assert!(timeout(Duration::from_secs(2), flood).await.is_err());
    assert_eq!(giver.stock.most.load(Ordering::SeqCst), 1);
    // It goes on when the answers are read.
    for _ in 0..100 {
        response(&mut stream).await;
    }
    assert_eq!(giver.stock.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_states_of_a_chain_that_is_known_do_not_travel() {
    let giver = Giver::new(200_000);
    let (digest, map) = giver.blob();
    let taker = giver.taker(2);
    let (claim, chain) = within(taker.exchange.held(digest, map.size(), None)).await.unwrap();
    let again = within(taker.exchange.held(digest, map.size(), Some(&chain))).await.unwrap();
    assert_eq!(again, (claim.clone(), chain.clone()));
    let mut stream = giver.connect(key(3).node());
    let blob = BlobName { digest, size: map.size() };
    for (known, expected) in [(Some(claim.states), 0), (Some(digest), 6 * 32), (None, 6 * 32)] {
        say(&mut stream, Request::Chain { id: 7, blob, known, spares: false }).await;
        let Response::Chain { id: 7, claim: given, len } = response(&mut stream).await else {
            panic!("another response")
        };
        assert_eq!((given, len), (claim.clone(), expected));
        let mut states = vec![0; len as usize];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut states).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_can_have_the_states_of_a_long_chain_of_others_is_given_none_while_several_are_sent_them() {
    // Its chain is longer than what everybody gets.
    let mut giver = Giver::new(80 * (32 << 10));
    // However slow the machine, those that are not read count as on their way until the test lets them go.
    Arc::get_mut(&mut giver.uploader).unwrap().chains = Chains::counting_for(Duration::from_secs(600));
    let (digest, map) = giver.blob();
    let blob = BlobName { digest, size: map.size() };
    let mut waiting = Vec::new();
    for number in 10..10 + CHAINS_AT_ONCE as u8 {
        // It holds less than the states, and they are not read.
        let (ours, mut stream) = tokio::io::duplex(256);
        tokio::spawn(serve(Arc::clone(&giver.uploader), key(number).node(), ours, None));
        say(&mut stream, Request::Chain { id: 1, blob, known: None, spares: true }).await;
        let Response::Chain { len, .. } = response(&mut stream).await else { panic!("another response") };
        assert!(len > 0);
        waiting.push(stream);
    }
    let taker = giver.taker(2);
    let (claim, spared) = within(taker.exchange.claim(digest, map.size())).await.unwrap();
    assert_eq!(spared, None);
    // The states alone are as long.
    let states = within(taker.exchange.claimed(digest, map.size(), claim.states)).await;
    assert_eq!(states, Err(ExchangeError::Elsewhere(key(1).node())));
    // Of states that are not here nobody is sent to others.
    let unknown = within(taker.exchange.claimed(digest, map.size(), digest)).await;
    assert_eq!(unknown, Err(ExchangeError::NotHere(key(1).node())));
    // Whoever has found nobody insists; and when the others have theirs there is one for everybody.
    let (insisted, chain) = within(taker.exchange.held(digest, map.size(), None)).await.unwrap();
    assert_eq!(insisted, claim);
    drop(waiting);
    let given = within(async {
        loop {
            let (_, given) = taker.exchange.claim(digest, map.size()).await.unwrap();
            if given.is_some() {
                break given;
            }
        }
    });
    assert_eq!(given.await, Some(chain.clone()));
    // Whoever has verified the blob gives the states that were claimed, and no others.
    let given = within(async {
        loop {
            let given = taker.exchange.claimed(digest, map.size(), claim.states).await;
            if given != Err(ExchangeError::Elsewhere(key(1).node())) {
                break given;
            }
        }
    });
    assert_eq!(given.await, Ok(chain));
    let unknown = within(taker.exchange.claimed(digest, map.size(), digest)).await;
    assert_eq!(unknown, Err(ExchangeError::NotHere(key(1).node())));
}

#[tokio::test]
async fn a_follower_is_told_when_it_is_given_nothing_any_more_and_one_that_comes_then_at_once() {
    let giver = Giver::new(100_000);
    let (digest, map) = (Digest::sha256(&giver.stock.open), ChunkMap::new(100_000).unwrap());
    let taker = giver.taker(2);
    let mut follow = taker.exchange.follow(digest, map);
    let told = |role| Some(Update { role, here: List::first_of([]) });
    assert_eq!(within(follow.next()).await, told(Role::Held));
    giver.stock.gives.send_replace(false);
    assert_eq!(within(follow.next()).await, told(Role::Gone));
    assert_eq!(within(follow.next()).await, None);
    let mut late = taker.exchange.follow(digest, map);
    assert_eq!(within(late.next()).await, told(Role::Gone));
}
