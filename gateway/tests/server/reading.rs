//! Ranges.

use bytes::Bytes;

use crate::client::Client;
use crate::content::{Shelf, noise, start};

#[tokio::test]
async fn a_part_is_exactly_the_part_that_was_asked_for() {
    let bytes = noise(2_500_000);
    let size = bytes.len();
    let shelf = Shelf::default();
    let blobs = [shelf.memory(&bytes[..]), shelf.file(&bytes[1..]), shelf.files(&bytes[2..])];
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    for (skip, digest) in blobs.iter().enumerate() {
        let bytes = &bytes[skip..];
        let size = size - skip;
        for (range, start, end) in [
            ("bytes=0-".to_owned(), 0, size),
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=1000000-1099999".to_owned(), 1_000_000, 1_100_000),
            ("bytes=65535-65536".to_owned(), 65_535, 65_537),
            ("bytes=2000001-".to_owned(), 2_000_001, size),
            ("bytes=-17".to_owned(), size - 17, size),
            ("bytes=2400000-99999999999".to_owned(), 2_400_000, size),
        ] {
            let answer = client.ask("GET", &format!("/v2/test/blobs/{digest}"), &[("Range", &range)]).await;
            assert_eq!(answer.status, 206, "{range}");
            let expected = format!("bytes {start}-{}/{size}", end - 1);
            assert_eq!(answer.header("content-range"), Some(expected.as_str()));
            assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
            assert!(answer.body == bytes[start..end], "{range}");
        }
    }
}

#[tokio::test]
async fn a_range_behind_the_end_is_not_satisfiable_and_says_how_long_it_is() {
    let shelf = Shelf::default();
    let (some, none) = (shelf.file(&noise(1000)), shelf.memory(b""));
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    for (digest, range, expected) in [
        (some, "bytes=1000-", "bytes */1000"),
        (some, "bytes=-0", "bytes */1000"),
        (none, "bytes=0-", "bytes */0"),
    ] {
        let answer = client.ask("GET", &format!("/v2/test/blobs/{digest}"), &[("Range", range)]).await;
        assert_eq!((answer.status, answer.header("content-range")), (416, Some(expected)), "{range}");
        assert_eq!(answer.code(), "SIZE_INVALID");
    }
}

#[tokio::test]
async fn ranges_that_are_malformed_multiple_or_outdated_are_ignored() {
    let shelf = Shelf::default();
    let bytes = noise(1000);
    let digest = shelf.file(&bytes);
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    let etag = format!("\"{digest}\"");
    for headers in [
        vec![("Range", "bytes=0-1,5-6")],
        vec![("Range", "bytes=x")],
        vec![("Range", "lines=0-1")],
        vec![("Range", "bytes=0-1"), ("If-Range", "\"other\"")],
        vec![("Range", "bytes=0-1"), ("If-Range", "Wed, 21 Oct 2015 07:28:00 GMT")],
    ] {
        let answer = client.ask("GET", &format!("/v2/test/blobs/{digest}"), &headers).await;
        assert_eq!((answer.status, answer.header("content-range")), (200, None), "{headers:?}");
        assert!(answer.body == bytes);
    }
    let headers = [("Range", "bytes=0-1"), ("If-Range", etag.as_str())];
    let answer = client.ask("GET", &format!("/v2/test/blobs/{digest}"), &headers).await;
    assert_eq!((answer.status, answer.body.as_slice()), (206, &bytes[..2]));
    let answer = client.ask("HEAD", &format!("/v2/test/blobs/{digest}"), &headers).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("1000")));
}

#[tokio::test]
async fn manifests_have_ranges_too() {
    let server = start(Shelf { manifest: Bytes::from_static(b"0123456789"), ..Shelf::default() }).await;
    let mut client = Client::connect(server.address).await;
    for (range, status, body) in
        [("bytes=0-", 206, "0123456789"), ("bytes=3-4", 206, "34"), ("bytes=x", 200, "0123456789")]
    {
        let answer = client.ask("GET", "/v2/test/manifests/v1", &[("Range", range)]).await;
        assert_eq!((answer.status, answer.body.as_slice()), (status, body.as_bytes()), "{range}");
    }
    assert_eq!(client.ask("GET", "/v2/test/manifests/v1", &[("Range", "bytes=10-")]).await.status, 416);
}
