//! Members find each other and take chunks from each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod swarm_support;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use futures::{FutureExt as _, StreamExt as _};
use swarm_support::*;
use tokio::sync::Notify;
use wherry_node::swarm::{
    ANNOUNCERS, ExchangeError, LinkClass, MAX_SITE_TAGS, Offer, ReadAt, SwarmSettings, UPLOAD_SLOTS,
    announcers,
};
use wherry_proto::{
    Certificate, ChunkMap, Digest, MAX_TAG_PAGE, NodeId, Refusal, Roles, SecretKey, TagMeaning, TagRecord,
    TagWord, link,
};

/// Takes a whole blob, checking each chunk.
async fn take(exchange: &wherry_node::swarm::Exchange, digest: Digest, size: u64) -> Vec<u8> {
    let (claim, chain) = within(exchange.held(digest, size, None)).await.unwrap();
    assert_eq!(claim.signer, exchange.node());
    let map = chain.map();
    let chunks = map.iter().map(|index| exchange.chunk(digest, map, index, |_| {}));
    let mut out = Vec::new();
    for (index, chunk) in map.iter().zip(within(join_all(chunks)).await) {
        let chunk = chunk.unwrap();
        assert_eq!(link(&map, index, chain.from(index), &chunk).unwrap(), chain.link(index));
        out.extend_from_slice(&chunk);
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_meet_by_a_bootstrap_address_and_one_takes_a_blob() {
    for quic in [false, true] {
        let a = member(11, &[]).await;
        let bytes = noise(1_000_003, 1);
        let digest = a.shelf.add(&bytes);
        let b = member(12, &[a.address(quic)]).await;
        meet(&b.client(), a.id()).await;
        meet(&a.client(), b.id()).await;
        let neighbour = &b.client().neighbours()[0];
        assert_eq!((neighbour.class, neighbour.site.as_str()), (LinkClass::Lan, "here"));
        assert_eq!(neighbour.since, NOW);

        let offers: Vec<Offer> = within(b.client().want(digest, LinkClass::Lan, PATIENCE).collect()).await;
        assert_eq!(offers, [Offer { node: a.id(), size: bytes.len() as u64, arriving: None }]);
        let exchange = within(b.client().exchange(a.id())).await.unwrap();
        assert!(exchange.is_direct());
        assert!(take(&exchange, digest, bytes.len() as u64).await == bytes);
        a.end().await;
        b.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_every_border_length_arrive_as_they_are() {
    let (a, b) = pair().await;
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let chunk = 32 << 10;
    for len in [0, 1, 63, 64, chunk - 1, chunk, chunk + 1, 3 * chunk] {
        let bytes = noise(len, len as u64);
        let digest = a.shelf.add(&bytes);
        assert!(take(&exchange, digest, len as u64).await == bytes, "{len}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_takes_the_place_of_a_bulk_plane_that_cannot_be_reached() {
    let a = member(11, &[]).await;
    // Its bulk listener is bound at an address where nobody is told to look.
    let mut hidden = settings(&key(13), &[a.address(false)]);
    hidden.bulk = TcpListener::bind("127.0.0.2:0").unwrap();
    let hidden = start(hidden).await;
    let bytes = noise(700_000, 5);
    let digest = hidden.shelf.add(&bytes);
    meet(&a.client(), hidden.id()).await;
    let exchange = within(a.client().exchange(hidden.id())).await.unwrap();
    assert!(!exchange.is_direct());
    assert!(take(&exchange, digest, bytes.len() as u64).await == bytes);
    // The pool gives the same one again.
    assert!(!within(a.client().exchange(hidden.id())).await.unwrap().is_direct());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_held_or_has_another_length_or_no_such_chunk_is_said_so() {
    let (a, b) = pair().await;
    let bytes = noise(100, 1);
    let digest = a.shelf.add(&bytes);
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let map = ChunkMap::new(100).unwrap();
    let other = Digest::sha256(b"something else");
    assert_eq!(within(exchange.held(other, 100, None)).await, Err(ExchangeError::NotHeld(a.id())));
    let chunk = within(exchange.chunk(other, map, map.first(), |_| {})).await;
    assert_eq!(chunk, Err(ExchangeError::NotHeld(a.id())));
    let refused = |reason| ExchangeError::Refused { node: a.id(), reason };
    let other_size = refused(Refusal::OtherSize { held: 100 });
    assert_eq!(within(exchange.held(digest, 101, None)).await.unwrap_err(), other_size);
    let larger = ChunkMap::new(101).unwrap();
    assert_eq!(within(exchange.chunk(digest, larger, larger.first(), |_| {})).await, Err(other_size));
    // The connection is none the worse for it.
    assert!(take(&exchange, digest, 100).await == bytes);
    let offers: Vec<Offer> = within(b.client().want(other, LinkClass::Lan, PATIENCE).collect()).await;
    assert_eq!(offers, []);
}

/// A file that is read only once it is allowed to be.
struct Gated {
    entered: Arc<AtomicUsize>,
    entries: Arc<Notify>,
    gate: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl ReadAt for Gated {
    fn read_exact_at(&self, buf: &mut [u8], _: u64) -> std::io::Result<()> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        self.entries.notify_one();
        // Open once the sender is gone.
        let _ = self.gate.lock().unwrap().recv();
        buf.fill(0);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_beyond_the_slots_is_told_busy_and_then_when_one_is_free() {
    let a = member(11, &[]).await;
    let (open, gate) = std::sync::mpsc::sync_channel(0);
    let (entered, entries) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let bytes = vec![0; 3 << 20];
    let gated = Gated { entered: entered.clone(), entries: entries.clone(), gate: gate.into() };
    let digest = a.shelf.add_reader(chain_of(&bytes), Arc::new(gated));
    let map = ChunkMap::new(bytes.len() as u64).unwrap();

    let crowd = UPLOAD_SLOTS + 2;
    let bootstrap = [a.address(false)];
    let takers: Vec<_> = join_all((0..crowd).map(|n| member(100 + n as u8, &bootstrap))).await;
    let mut exchanges = Vec::new();
    for taker in &takers {
        meet(&taker.client(), a.id()).await;
        exchanges.push(within(taker.client().exchange(a.id())).await.unwrap());
    }
    let mut asks: futures::stream::FuturesUnordered<_> = exchanges
        .iter()
        .enumerate()
        .map(|(n, exchange)| exchange.chunk(digest, map, map.first(), |_| {}).map(move |chunk| (n, chunk)))
        .collect();
    // Nothing can be read yet, so whatever is answered is a refusal.
    let (refused, answer) = within(asks.next()).await.unwrap();
    assert_eq!(answer, Err(ExchangeError::Busy(a.id())));
    assert!(exchanges[refused].free().now_or_never().is_none(), "free although it said busy");
    drop(open);
    within(exchanges[refused].free()).await;
    let chunk = within(exchanges[refused].chunk(digest, map, map.first(), |_| {})).await.unwrap();
    assert_eq!(chunk.len(), map.chunk_len() as usize);
    assert!(entered.load(Ordering::SeqCst) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_dropped_disturbs_no_other() {
    let (a, b) = pair().await;
    let bytes = noise(3_000_000, 9);
    let digest = a.shelf.add(&bytes);
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let map = ChunkMap::new(bytes.len() as u64).unwrap();
    for round in 0..50 {
        // Polled a few times, so that some are under way and some in the middle of their bytes.
        let mut dropped: Vec<_> =
            map.iter().map(|i| Box::pin(exchange.chunk(digest, map, i, |_| {}))).collect();
        for request in dropped.iter_mut().take(1 + round % 20) {
            let _ = futures::poll!(request);
            tokio::task::yield_now().await;
        }
        drop(dropped);
    }
    assert!(take(&exchange, digest, bytes.len() as u64).await == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_while_a_chunk_arrives() {
    let (a, b) = pair().await;
    let bytes = noise(600 << 20 >> 10, 2);
    let digest = a.shelf.add(&bytes);
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let map = ChunkMap::new(bytes.len() as u64).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let counter = told.clone();
    let progress = move |some| {
        counter.fetch_add(some, Ordering::SeqCst);
    };
    within(exchange.chunk(digest, map, map.first(), progress)).await.unwrap();
    assert_eq!(told.load(Ordering::SeqCst), map.chunk_len() as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_silent_fails_its_requests_within_seconds() {
    let (a, b) = pair().await;
    let (open, gate) = std::sync::mpsc::sync_channel(0);
    let entries = Arc::new(Notify::new());
    let gated = Gated { entered: Arc::default(), entries: entries.clone(), gate: gate.into() };
    let digest = a.shelf.add_reader(chain_of(&[0; 100]), Arc::new(gated));
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let map = ChunkMap::new(100).unwrap();
    let begun = std::time::Instant::now();
    let chunk = within(exchange.chunk(digest, map, map.first(), |_| {})).await;
    assert_eq!(chunk, Err(ExchangeError::Silent(a.id())));
    assert!(begun.elapsed() < Duration::from_secs(8));
    within(exchange.closed()).await;
    drop(open);
    // A new exchange is as good as ever.
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    assert_eq!(within(exchange.chunk(digest, map, map.first(), |_| {})).await.unwrap().len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_vanishes_fails_what_was_asked_of_it() {
    let (a, b) = pair().await;
    let (open, gate) = std::sync::mpsc::sync_channel(0);
    let entries = Arc::new(Notify::new());
    let gated = Gated { entered: Arc::default(), entries: entries.clone(), gate: gate.into() };
    let digest = a.shelf.add_reader(chain_of(&[0; 100]), Arc::new(gated));
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    let map = ChunkMap::new(100).unwrap();
    let (node, stop) = (a.id(), a.stop.clone());
    let vanish = async {
        entries.notified().await;
        stop.cancel();
    };
    let (chunk, ()) =
        within(futures::future::join(exchange.chunk(digest, map, map.first(), |_| {}), vanish)).await;
    assert!(matches!(chunk, Err(ExchangeError::Closed { .. })), "{chunk:?}");
    drop(open);
    part(&b.client(), node).await;
    assert!(b.client().exchange(node).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_found_through_a_third_node() {
    let hub = member(20, &[]).await;
    let holder = member(21, &[hub.address(false)]).await;
    let bytes = noise(5_000, 3);
    let digest = holder.shelf.add(&bytes);
    meet(&hub.client(), holder.id()).await;
    holder.client().announce(digest).await;
    let seeker = member(22, &[hub.address(false)]).await;
    meet(&seeker.client(), hub.id()).await;
    let want = async {
        loop {
            // The announcement is on its way: ask until it has got there.
            let offers: Vec<Offer> =
                seeker.client().want_of_providers(digest, Duration::from_secs(5)).collect().await;
            if let Some(offer) = offers.first() {
                return *offer;
            }
        }
    };
    assert_eq!(within(want).await, Offer { node: holder.id(), size: 5_000, arriving: None });
    let exchange = within(seeker.client().exchange(holder.id())).await.unwrap();
    assert!(take(&exchange, digest, 5_000).await == bytes);
}

/// More nodes than a walk to the keepers of a record finds, so that there are several regions.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_blobs_that_one_node_announces_is_found_by_whoever_does_not_know_it() {
    let at = |number: u8, bootstrap: &[String]| SwarmSettings {
        site: format!("site-{number}"),
        ..settings(&key(number), bootstrap)
    };
    let hub = start(at(20, &[])).await;
    let holder = start(at(21, &[hub.address(false)])).await;
    let mut others = Vec::new();
    for number in 22..42 {
        let other = start(at(number, &[hub.address(false)])).await;
        meet(&hub.client(), other.id()).await;
        others.push(other);
    }
    let blobs: Vec<Digest> = (0..100).map(|seed| holder.shelf.add(&noise(100, seed))).collect();
    for digest in &blobs {
        holder.client().announce(*digest).await;
    }
    let seeker = start(at(42, &[hub.address(false)])).await;
    meet(&seeker.client(), hub.id()).await;
    for digest in blobs.iter().step_by(9) {
        let found = async {
            loop {
                let offers = seeker.client().want_of_providers(*digest, Duration::from_secs(5));
                if let Some(offer) = offers.collect::<Vec<Offer>>().await.first() {
                    return offer.node;
                }
            }
        };
        // What could not be told at first is told again after half a minute.
        let found = tokio::time::timeout(Duration::from_secs(90), found).await;
        assert_eq!(found.ok(), Some(holder.id()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_site_that_holds_a_blob_two_announce_it_and_where_these_do_not_hold_it_whoever_does() {
    let announce_after = Duration::from_secs(1);
    let member = async |number, bootstrap: &[String]| {
        start(SwarmSettings { announce_after, ..settings(&key(number), bootstrap) }).await
    };
    let mut site = vec![member(20, &[]).await];
    for number in 21..25 {
        site.push(member(number, &[site[0].address(false)]).await);
    }
    for node in &site {
        for other in site.iter().filter(|other| other.id() != node.id()) {
            meet(&node.client(), other.id()).await;
        }
    }
    let bytes = noise(5_000, 3);
    let digest = Digest::sha256(&bytes);
    let nodes: Vec<NodeId> = site.iter().map(Node::id).collect();
    let leaves = |digest: &Digest, node: &NodeId| {
        announcers(digest, node, nodes.iter().copied().filter(|other| other != node)).is_some()
    };
    site.sort_by_key(|node| leaves(&digest, &node.id()));
    let (before, behind) = site.split_at(ANNOUNCERS);
    site.iter().for_each(|node| assert_eq!(node.shelf.add(&bytes), digest));
    // What nobody else holds and is for others to announce too, behind the other: when it is found, that has been decided.
    let mut all = (50..).map(|seed| noise(5_000, seed));
    let mut own = Vec::new();
    let began = std::time::Instant::now();
    for node in behind {
        let bytes_of_its_own = all.find(|bytes| leaves(&Digest::sha256(bytes), &node.id())).unwrap();
        let digest = node.shelf.add(&bytes_of_its_own);
        node.client().announce(Digest::sha256(&bytes)).await;
        node.client().announce(digest).await;
        own.push((digest, node.id()));
    }
    let away = SwarmSettings { site: "away".to_owned(), ..settings(&key(30), &[site[0].address(false)]) };
    let seeker = start(away).await;
    let found = async |digest, least| loop {
        let offers = seeker.client().want_of_providers(digest, Duration::from_secs(5));
        let nodes: BTreeSet<NodeId> = offers.map(|offer| offer.node).collect().await;
        if nodes.len() >= least {
            return nodes;
        }
        // Each walk keeps six nodes busy.
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    for (digest, node) in own {
        assert_eq!(within(found(digest, 1)).await, BTreeSet::from([node]));
    }
    assert!(began.elapsed() >= announce_after, "{:?}", began.elapsed());
    assert_eq!(within(found(digest, 0)).await, BTreeSet::new());
    for node in before {
        node.client().announce(digest).await;
    }
    assert_eq!(within(found(digest, ANNOUNCERS)).await, before.iter().map(Node::id).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_true_tag_records_are_passed_on() {
    let (a, b) = pair().await;
    let meaning = |reference: &str| TagMeaning {
        reference: reference.parse().unwrap(),
        digest: Digest::sha256(b"m"),
        media_type: "text/plain".parse().unwrap(),
        size: 1,
        sequence: 1,
        time: NOW,
        word: TagWord::Resolved,
    };
    let resolver = |operator: &SecretKey, number: u8| {
        Certificate::sign(operator, key(number).node(), Roles::MEMBER | Roles::RESOLVER, 1, NOW + 1000)
    };
    // Its signer is connected to neither of the two.
    let good = TagRecord::sign(&key(40), &resolver(&operator(), 40), meaning("good:1"));
    let elsewhere = TagRecord::sign(&key(11), &resolver(&key(99), 11), meaning("elsewhere:1"));
    let member = TagRecord::sign(&key(11), &certificate(&operator(), key(11).node()), meaning("member:1"));
    let borrowed = TagRecord::sign(&key(41), &resolver(&operator(), 40), meaning("borrowed:1"));
    let mut forged = TagRecord::sign(&key(11), &resolver(&operator(), 11), meaning("forged:1"));
    forged.digest = Digest::sha256(b"other");
    for record in [&good, &elsewhere, &member, &borrowed, &forged] {
        a.shelf.tag(record.clone());
    }
    assert_eq!(within(b.client().tag("good:1", LinkClass::Lan, PATIENCE)).await, [good]);
    for bad in ["elsewhere:1", "member:1", "borrowed:1", "forged:1", "unknown:1"] {
        assert_eq!(within(b.client().tag(bad, LinkClass::Lan, PATIENCE)).await, [], "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tags_that_the_site_knows_are_those_of_all_its_nodes_and_of_no_other_site() {
    let a = member(11, &[]).await;
    let c = member(13, &[a.address(false)]).await;
    let mut elsewhere = settings(&key(14), &[a.address(false)]);
    elsewhere.site = "there".to_owned();
    let elsewhere = start(elsewhere).await;
    let bootstrap = [&a, &c, &elsewhere].map(|node| node.address(false));
    let b = member(12, &bootstrap).await;
    for node in [&a, &c, &elsewhere] {
        meet(&b.client(), node.id()).await;
    }
    let repository = "r.example/a/b";
    let many: Vec<String> = (0..3 * MAX_TAG_PAGE).map(|number| format!("1.{number:04}")).collect();
    a.shelf.list(repository, many.clone());
    c.shelf.list(repository, ["1.0000", "latest"].map(str::to_owned));
    elsewhere.shelf.list(repository, ["far".to_owned()]);
    let known = within(b.client().tags("r.example", "a/b", BTreeSet::new(), PATIENCE)).await;
    let expected: Vec<String> = many.into_iter().chain(["latest".to_owned()]).collect();
    assert!(known.iter().eq(&expected), "{known:?}");
    assert!(within(b.client().tags("r.example", "a", BTreeSet::new(), PATIENCE)).await.is_empty());
    // What sorts before the last page would never end, and is as good as nothing.
    c.shelf.list(repository, ["z", "y"].map(str::to_owned));
    assert!(!within(b.client().tags("r.example", "a/b", BTreeSet::new(), PATIENCE)).await.contains("z"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_tags_that_a_node_takes_from_its_neighbours_is_bounded_and_shared_among_them() {
    let (a, b) = pair().await;
    let c = member(13, &[b.address(false)]).await;
    meet(&b.client(), c.id()).await;
    a.shelf.list("r.example/a", (0..MAX_SITE_TAGS + 500).map(|number| format!("{number:06}")));
    // What is in the order behind all that the other has comes late as well.
    c.shelf.list("r.example/a", (0..2 * MAX_TAG_PAGE).map(|number| format!("late-{number:06}")));
    let known = within(b.client().tags("r.example", "a", BTreeSet::new(), PATIENCE)).await;
    assert_eq!(known.len(), MAX_SITE_TAGS);
    assert_eq!(known.iter().filter(|name| name.starts_with("late-")).count(), 2 * MAX_TAG_PAGE);
}
