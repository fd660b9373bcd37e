//! Connections that break, peers that restart, and the end of a swarm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod swarm_support;

use std::collections::BTreeSet;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use swarm_support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use wherry_node::swarm::{ExchangeError, LinkClass, Notice};
use wherry_proto::{Certificate, ChunkMap, Roles};

/// Two listeners with the same port, at two loopback addresses.
fn twin_listeners() -> (StdListener, StdListener) {
    loop {
        let first = StdListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        // Taken at the other address already: another pair then.
        if let Ok(second) = StdListener::bind(("127.0.0.3", port)) {
            return (first, second);
        }
    }
}

/// Passes on so many bytes from `to` to each client, then cuts the connection.
async fn cutting_proxy(listener: StdListener, to: std::net::SocketAddr, bytes: u64) {
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let server = TcpStream::connect(to).await.unwrap();
            let (mut from_server, mut to_server) = server.into_split();
            let (mut from_client, mut to_client) = client.into_split();
            let up = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            let mut limited = (&mut from_server).take(bytes);
            let _ = tokio::io::copy(&mut limited, &mut to_client).await;
            let _ = to_client.shutdown().await;
            up.abort();
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_in_the_middle_of_a_chunk_fails_that_chunk_and_a_new_one_is_made() {
    let (seen, real) = twin_listeners();
    let real_address = real.local_addr().unwrap();
    let mut of_a = settings(&key(11), &[]);
    of_a.bulk = real;
    let a = start(of_a).await;
    let proxy = tokio::spawn(cutting_proxy(seen, real_address, 200_000));
    let b = member(12, &[a.address(false)]).await;
    meet(&b.client(), a.id()).await;
    let bytes = noise(300_000_000 >> 8, 4);
    let digest = a.shelf.add(&bytes);
    let map = ChunkMap::new(bytes.len() as u64).unwrap();
    let mut whole = 0;
    for attempt in 0..2 {
        let exchange = within(b.client().exchange(a.id())).await.unwrap();
        assert!(exchange.is_direct(), "attempt {attempt}");
        let failure = loop {
            let index = map.index(whole).unwrap();
            match within(exchange.chunk(digest, map, index, |_| {})).await {
                Ok(chunk) => {
                    let start = map.offset(index) as usize;
                    assert!(*chunk == bytes[start..start + chunk.len()]);
                    whole += 1;
                }
                Err(failure) => break failure,
            }
        };
        assert!(matches!(failure, ExchangeError::Closed { .. }), "{failure}");
        assert!(exchange.is_closed());
    }
    assert!(whole >= 2, "only {whole} chunks came");
    proxy.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_comes_back_is_found_again() {
    let a = member(11, &[]).await;
    let address = a.address(false);
    let at = address.split('/').nth(4).unwrap().parse::<u16>().unwrap();
    let b = member(12, &[address]).await;
    meet(&b.client(), a.id()).await;
    let node = a.id();
    let mut notices = b.client().notices();
    a.end().await;
    part(&b.client(), node).await;
    let mut again = settings(&key(11), &[]);
    again.peers = ([127, 0, 0, 1], at).into();
    let a = start(again).await;
    meet(&b.client(), a.id()).await;
    assert_eq!(notices.recv().await.unwrap(), Notice::Disconnected(node));
    assert!(is_connected(&notices.recv().await.unwrap(), node));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_moved_while_it_was_connected_is_reached_where_it_is_now() {
    let a = member(11, &[]).await;
    let old = member(12, &[a.address(false)]).await;
    meet(&a.client(), old.id()).await;
    // The same node elsewhere, before the end of its old connection has been seen.
    let mut moved = settings(&key(12), &[a.address(false)]);
    moved.site = "there".to_owned();
    let new = start(moved).await;
    meet(&new.client(), a.id()).await;
    // To answer, a must have taken notice of the connection on which it is asked.
    let asked = new.client().want(a.shelf.add(&noise(1000, 2)), LinkClass::Wan, PATIENCE);
    assert!(within(std::pin::pin!(asked).next()).await.is_some());
    old.end().await;
    let neighbours = a.client().neighbours();
    let [neighbour] = &neighbours[..] else { panic!("{neighbours:?}") };
    let port = new.address(false).split('/').nth(4).unwrap().to_owned();
    assert_eq!(neighbour.address, format!("127.0.0.1:{port}"));
    assert_eq!((neighbour.site.as_str(), neighbour.class), ("there", LinkClass::Wan));
    let digest = new.shelf.add(&noise(1000, 1));
    let exchange = within(a.client().exchange(new.id())).await.unwrap();
    assert!(exchange.is_direct());
    within(exchange.held(digest, 1000, None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_leads_back_into_the_network() {
    let (a, b) = pair().await;
    let remembered = b.client().remember();
    assert_eq!(remembered.len(), 1);
    b.end().await;
    let mut later = settings(&key(12), &[]);
    later.remembered = remembered;
    let b = start(later).await;
    meet(&b.client(), a.id()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_dial_each_other_at_once_become_neighbours() {
    let (port_a, port_b) = (free_port(), free_port());
    let address = |port| vec![format!("/ip4/127.0.0.1/tcp/{port}")];
    let (mut of_a, mut of_b) = (settings(&key(11), &address(port_b)), settings(&key(12), &address(port_a)));
    of_a.peers = ([127, 0, 0, 1], port_a).into();
    of_b.peers = ([127, 0, 0, 1], port_b).into();
    let (a, b) = futures::future::join(Box::pin(start(of_a)), Box::pin(start(of_b))).await;
    meet(&a.client(), b.id()).await;
    meet(&b.client(), a.id()).await;
    let digest = a.shelf.add(&noise(1000, 1));
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    within(exchange.held(digest, 1000, None)).await.unwrap();
}

fn free_port() -> u16 {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_looked_up_in_bootstrap_addresses() {
    let a = member(11, &[]).await;
    let by_name = a.address(false).replace("/ip4/127.0.0.1/", "/dns4/localhost/");
    let b = member(12, &[by_name]).await;
    meet(&b.client(), a.id()).await;
    let digest = a.shelf.add(&noise(1000, 1));
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    assert!(exchange.is_direct());
    within(exchange.held(digest, 1000, None)).await.unwrap();
}

#[test]
fn nothing_of_a_swarm_is_left_when_it_has_ended() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let metrics = runtime.handle().metrics();
    runtime.block_on(async {
        let (a, b) = pair().await;
        let bytes = noise(2_000_000, 1);
        let digest = a.shelf.add(&bytes);
        let exchange = within(b.client().exchange(a.id())).await.unwrap();
        let by_stream = within(a.client().exchange(b.id())).await.unwrap();
        let map = ChunkMap::new(bytes.len() as u64).unwrap();
        within(exchange.chunk(digest, map, map.first(), |_| {})).await.unwrap();
        b.client().announce(digest).await;
        let under_way = tokio::spawn(async move { exchange.held(digest, 2_000_000, None).await });
        a.end().await;
        b.end().await;
        let _ = within(under_way).await.unwrap();
        assert!(by_stream.is_closed());
        // What libp2p starts on its own ends once its sockets are dropped.
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        within(async {
            while metrics.num_alive_tasks() > 0 {
                tick.tick().await;
            }
        })
        .await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_certificate_runs_out_is_served_no_more() {
    let time = Arc::new(AtomicU64::new(NOW));
    let clock = time.clone();
    let mut of_a = settings(&key(11), &[]);
    of_a.clock = Arc::new(move || clock.load(Ordering::Relaxed));
    let a = start(of_a).await;
    let b = member(12, &[a.address(false)]).await;
    meet(&a.client(), b.id()).await;
    time.store(NOW + 1000, Ordering::Relaxed);
    // It is served no more, neither on the bulk plane nor by a stream of the connection that is there.
    let digest = a.shelf.add(&noise(1000, 1));
    meet(&b.client(), a.id()).await;
    let exchange = within(b.client().exchange(a.id())).await.unwrap();
    assert!(!exchange.is_direct());
    assert!(within(exchange.held(digest, 1000, None)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_connection_ends_when_the_certificate_of_either_side_does() {
    for of_the_server in [false, true] {
        let time = Arc::new(AtomicU64::new(NOW));
        let by_it = |number| {
            let (mut settings, time) = (settings(&key(number), &[]), time.clone());
            settings.clock = Arc::new(move || time.load(Ordering::Relaxed));
            settings
        };
        let (mut of_a, mut of_b) = (by_it(11), by_it(12));
        let short = if of_the_server { &mut of_a } else { &mut of_b };
        let node = short.key.node();
        short.membership = Some(Certificate::sign(&operator(), node, Roles::MEMBER, 1, NOW + 1));
        let a = start(of_a).await;
        of_b.bootstrap = vec![a.address(false)];
        let b = start(of_b).await;
        meet(&b.client(), a.id()).await;
        let digest = a.shelf.add(&noise(1000, 1));
        let exchange = within(b.client().exchange(a.id())).await.unwrap();
        assert!(exchange.is_direct());
        within(exchange.held(digest, 1000, None)).await.unwrap();
        assert!(!exchange.is_closed(), "before its time");
        time.store(NOW + 1, Ordering::Relaxed);
        within(exchange.closed()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_was_renewed_keeps_its_node_connected() {
    let (time, looks) = (Arc::new(AtomicU64::new(NOW)), Arc::new(Semaphore::new(0)));
    let mut of_a = settings(&key(11), &[]);
    of_a.clock = Arc::new({
        let (time, looks) = (time.clone(), looks.clone());
        move || {
            let now = time.load(Ordering::Relaxed);
            looks.add_permits(usize::from(now > NOW));
            now
        }
    });
    let a = start(of_a).await;
    // The same node twice, as it is while it starts again: first with the certificate that ends sooner.
    let with = |expires| {
        let mut settings = settings(&key(12), &[a.address(false)]);
        settings.membership = Some(Certificate::sign(&operator(), key(12).node(), Roles::MEMBER, 1, expires));
        settings
    };
    let old = start(with(NOW + 1)).await;
    meet(&old.client(), a.id()).await;
    let digest = a.shelf.add(&noise(1000, 1));
    let exchange = within(old.client().exchange(a.id())).await.unwrap();
    assert!(exchange.is_direct());
    within(exchange.held(digest, 1000, None)).await.unwrap();
    // The later end is near too, so that a looks again soon.
    let new = start(with(NOW + 2)).await;
    meet(&new.client(), a.id()).await;
    time.store(NOW + 1, Ordering::Relaxed);
    // Whoever looks whether the connection may go on asks for the time thrice, or less if it may not.
    let _ = within(looks.acquire_many(4)).await.unwrap();
    within(exchange.held(digest, 1000, None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_question_of_a_node_waits_until_it_knows_its_neighbours() {
    let a = member(11, &[]).await;
    let digest = a.shelf.add(&noise(1000, 1));
    a.shelf.list("r.example/a", ["1".to_owned()]);
    for round in 0..3 {
        // Asked before anybody can be connected.
        let b = member(20 + round, &[a.address(false)]).await;
        match round {
            0 => assert_eq!(
                within(b.client().tags("r.example", "a", BTreeSet::new(), PATIENCE)).await.len(),
                1
            ),
            1 => {
                let mut offers = std::pin::pin!(b.client().want(digest, LinkClass::Lan, PATIENCE));
                assert_eq!(within(offers.next()).await.map(|offer| offer.node), Some(a.id()));
            }
            _ => {
                within(b.client().settled()).await;
                assert_eq!(b.client().neighbours().len(), 1);
            }
        }
        b.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_knows_of_nobody_loses_no_time_before_it_asks() {
    let lonely = member(11, &[]).await;
    assert!(lonely.client().settled().now_or_never().is_some());
}
