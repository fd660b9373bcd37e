//! How answers and connections end.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use wherry_gateway::server::{Break, Drained, ServerOptions};

use crate::client::{Client, End};
use crate::content::{Shelf, noise, start, start_with};

const SIZE: usize = 1_000_000;

#[tokio::test]
async fn a_stream_is_passed_on_piece_by_piece_as_it_arrives() {
    let shelf = Shelf::default();
    let (digest, pieces) = shelf.stream(b"arriving", SIZE as u64);
    let server = start(shelf).await;
    let bytes = Bytes::from(noise(SIZE));
    let mut client = Client::connect(server.address).await;
    client.send("GET", &format!("/v2/test/blobs/{digest}"), &[]).await;
    // The headers leave before the first piece.
    let head = client.head().await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("1000000")));
    for piece in bytes.chunks(300_000) {
        pieces.send(Ok(bytes.slice_ref(piece))).await.unwrap();
        assert!(client.bytes(piece.len()).await == piece);
    }
    // The connection is still good.
    assert_eq!(client.ask("GET", "/v2/", &[]).await.status, 200);
}

#[tokio::test]
async fn a_poisoned_stream_resets_the_connection() {
    let shelf = Shelf::default();
    let (digest, pieces) = shelf.stream(b"poisoned", SIZE as u64);
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    client.send("GET", &format!("/v2/test/blobs/{digest}"), &[]).await;
    let head = client.head().await;
    pieces.send(Ok(Bytes::from(noise(1000)))).await.unwrap();
    pieces.send(Err(Break::Poisoned)).await.unwrap();
    assert_eq!(client.body(head).await.end, End::Reset);
}

#[tokio::test]
async fn a_stalled_stream_closes_cleanly_after_its_last_byte() {
    for ends_with_a_word in [true, false] {
        let shelf = Shelf::default();
        let (digest, pieces) = shelf.stream(b"stalled", SIZE as u64);
        let server = start(shelf).await;
        let bytes = Bytes::from(noise(600_000));
        let mut client = Client::connect(server.address).await;
        client.send("GET", &format!("/v2/test/blobs/{digest}"), &[]).await;
        let head = client.head().await;
        pieces.send(Ok(bytes.clone())).await.unwrap();
        if ends_with_a_word {
            pieces.send(Err(Break::Stalled)).await.unwrap();
        }
        drop(pieces);
        let answer = client.body(head).await;
        assert_eq!(answer.end, End::Short);
        assert!(answer.body == bytes, "{} bytes came", answer.body.len());
    }
}

#[tokio::test]
async fn a_stalled_stream_closes_cleanly_even_if_the_client_has_sent_more() {
    let shelf = Shelf::default();
    let (digest, pieces) = shelf.stream(b"stalled", SIZE as u64);
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    client.send("GET", &format!("/v2/test/blobs/{digest}"), &[]).await;
    let head = client.head().await;
    // More than hyper reads ahead, so that some of it is never read.
    client.stream.write_all(&[b'x'; 100_000]).await.unwrap();
    pieces.send(Ok(Bytes::from(noise(1000)))).await.unwrap();
    pieces.send(Err(Break::Stalled)).await.unwrap();
    let answer = client.body(head).await;
    assert_eq!((answer.end, answer.body.len()), (End::Short, 1000));
}

#[tokio::test]
async fn a_content_that_yields_too_much_resets_the_connection() {
    let shelf = Shelf::default();
    let (digest, pieces) = shelf.stream(b"long", 1000);
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    client.send("GET", &format!("/v2/test/blobs/{digest}"), &[]).await;
    let head = client.head().await;
    pieces.send(Ok(Bytes::from(noise(1001)))).await.unwrap();
    assert_eq!(client.body(head).await.end, End::Reset);
}

#[tokio::test]
async fn a_stored_file_that_is_too_short_never_looks_complete() {
    let shelf = Shelf::default();
    let digest = shelf.short_file(&noise(2_000_000), 3_000_000);
    let server = start(shelf).await;
    let answer = crate::client::ask(server.address, "GET", &format!("/v2/test/blobs/{digest}"), &[]).await;
    assert_ne!(answer.end, End::Complete);
}

#[tokio::test]
async fn a_stream_is_dropped_when_its_client_leaves() {
    let shelf = Shelf::default();
    let (digest, pieces) = shelf.stream(b"left", SIZE as u64);
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    client.send("GET", &format!("/v2/test/blobs/{digest}"), &[]).await;
    client.head().await;
    drop(client);
    tokio::time::timeout(Duration::from_secs(10), pieces.closed()).await.expect("the stream is still held");
}

#[tokio::test]
async fn shutdown_finishes_what_clients_are_reading_and_takes_no_more() {
    let shelf = Shelf::default();
    let (digest, pieces) = shelf.stream(b"long", SIZE as u64);
    let server = start(shelf).await;
    let bytes = Bytes::from(noise(SIZE));
    let mut idle = Client::connect(server.address).await;
    assert_eq!(idle.ask("GET", "/v2/", &[]).await.status, 200);
    let mut silent = Client::connect(server.address).await;
    let mut client = Client::connect(server.address).await;
    client.send("GET", &format!("/v2/test/blobs/{digest}"), &[]).await;
    let head = client.head().await;
    pieces.send(Ok(bytes.slice(..400_000))).await.unwrap();
    let mut body = client.bytes(400_000).await;

    server.shutdown.cancel();
    idle.closed().await.unwrap();
    silent.closed().await.unwrap();
    assert!(!server.running.is_finished());
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());

    pieces.send(Ok(bytes.slice(400_000..))).await.unwrap();
    body.extend(client.bytes(600_000).await);
    assert!(body == bytes);
    assert_eq!(head.header("content-length"), Some("1000000"));
    client.closed().await.unwrap();
    assert_eq!(server.running.await.unwrap(), Drained { cut: 0 });
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let shelf = Shelf::default();
    let (digest, pieces) = shelf.stream(b"endless", SIZE as u64);
    let mut options = ServerOptions::default();
    options.drain_timeout = Duration::from_millis(200);
    let server = start_with(shelf, options).await;
    let mut client = Client::connect(server.address).await;
    client.send("GET", &format!("/v2/test/blobs/{digest}"), &[]).await;
    client.head().await;
    server.shutdown.cancel();
    assert_eq!(server.running.await.unwrap(), Drained { cut: 1 });
    drop(pieces);
}
