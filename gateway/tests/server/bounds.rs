//! What clients cannot make the server do.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use wherry_gateway::server::ServerOptions;

use crate::client::{Client, ask};
use crate::content::{Shelf, noise, start, start_with};

#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let mut options = ServerOptions::default();
    options.header_timeout = Duration::from_millis(300);
    let server = start_with(Shelf::default(), options).await;
    let mut client = Client::connect(server.address).await;
    // One good request first: the clock is that of the request, not of the connection.
    assert_eq!(client.ask("GET", "/v2/", &[]).await.status, 200);
    let begun = Instant::now();
    client.stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let _ = client.closed().await;
    assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let mut options = ServerOptions::default();
    options.idle_timeout = Duration::from_millis(300);
    let server = start_with(Shelf::default(), options).await;
    let mut asked = Client::connect(server.address).await;
    assert_eq!(asked.ask("GET", "/v2/", &[]).await.status, 200);
    let mut silent = Client::connect(server.address).await;
    let begun = Instant::now();
    asked.closed().await.unwrap();
    silent.closed().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_disconnected_and_one_that_is_slow_is_not() {
    let mut options = ServerOptions::default();
    options.write_timeout = Duration::from_millis(500);
    // Shorter than the slow client takes for the answer's tail: while bytes wait for it, it is not idle.
    options.idle_timeout = Duration::from_millis(400);
    let bytes = noise(24 << 20);
    let shelf = Shelf::default();
    let digest = shelf.file(&bytes);
    let server = start_with(shelf, options).await;
    let target = format!("/v2/test/blobs/{digest}");
    let mut stuck = Client::connect(server.address).await;
    stuck.send("GET", &target, &[]).await;
    let mut slow = Client::connect(server.address).await;
    slow.send("GET", &target, &[]).await;
    slow.head().await;
    let mut received = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(150));
    while received.len() < bytes.len() {
        pace.tick().await;
        received.extend(slow.bytes((1 << 20).min(bytes.len() - received.len())).await);
    }
    assert!(received == bytes);
    let head = stuck.head().await;
    let answer = stuck.body(head).await;
    assert!(answer.body.len() < bytes.len());
}

#[tokio::test]
async fn a_long_head_is_refused() {
    let server = start(Shelf::default()).await;
    let long = "x".repeat(80 << 10);
    let mut client = Client::connect(server.address).await;
    client.send("GET", "/v2/", &[("X-Long", &long)]).await;
    assert_eq!(client.head().await.status, 431);
    // One that fits is not.
    assert_eq!(ask(server.address, "GET", "/v2/", &[("X-Long", &long[..28 << 10])]).await.status, 200);
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let server = start(Shelf::default()).await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let mut client = Client::connect(server.address).await;
        client.stream.write_all(garbage).await.unwrap();
        assert_eq!(client.head().await.status, 400);
        client.closed().await.unwrap();
    }
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_their_turn() {
    let mut options = ServerOptions::default();
    options.max_connections = 2;
    let server = start_with(Shelf::default(), options).await;
    let mut first = Client::connect(server.address).await;
    let mut second = Client::connect(server.address).await;
    assert_eq!(first.ask("GET", "/v2/", &[]).await.status, 200);
    assert_eq!(second.ask("GET", "/v2/", &[]).await.status, 200);
    let mut third = Client::connect(server.address).await;
    third.send("GET", "/v2/", &[]).await;
    let early = tokio::time::timeout(Duration::from_millis(200), third.stream.readable()).await;
    assert!(early.is_err(), "the third was served beside two others");
    drop(first);
    assert_eq!(third.head().await.status, 200);
}

#[tokio::test]
async fn a_request_with_a_body_is_answered_all_the_same() {
    let server = start(Shelf::default()).await;
    let mut client = Client::connect(server.address).await;
    let length = (4 << 20).to_string();
    client.send("PUT", "/v2/test/manifests/v1", &[("Content-Length", &length)]).await;
    // The server may stop reading at any point of this.
    let _ = client.stream.write_all(&vec![b'x'; 1 << 20]).await;
    let head = client.head().await;
    assert_eq!(head.status, 405);
    assert_eq!(client.body(head).await.code(), "UNSUPPORTED");
}
