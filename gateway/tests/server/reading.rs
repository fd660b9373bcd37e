//! Ranges.

use bytes::Bytes;
use wherry_gateway::server::{Break, MAX_RANGES};

use crate::client::{Answer, Client, End};
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
async fn ranges_that_are_malformed_or_outdated_are_ignored() {
    let shelf = Shelf::default();
    let bytes = noise(1000);
    let digest = shelf.file(&bytes);
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    let etag = format!("\"{digest}\"");
    for headers in [
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

/// The parts of an answer: for each what its Content-Range says, and its bytes.
fn parts(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let kind = answer.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap_or_else(|| panic!("{kind}"));
    let (delimiter, end) = (format!("--{boundary}\r\n"), format!("--{boundary}--\r\n"));
    let mut rest = answer.body.as_slice();
    let mut parts = Vec::new();
    while let Some(part) = rest.strip_prefix(delimiter.as_bytes()) {
        let head = part.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let text = std::str::from_utf8(&part[..head]).unwrap();
        let range = text.lines().find_map(|line| line.strip_prefix("Content-Range: bytes ")).unwrap();
        let (first, last) = range.split('/').next().unwrap().split_once('-').unwrap();
        let len = last.parse::<usize>().unwrap() + 1 - first.parse::<usize>().unwrap();
        parts.push((range.to_owned(), part[head + 4..head + 4 + len].to_vec()));
        rest = part[head + 4 + len..].strip_prefix(b"\r\n").unwrap();
    }
    assert!(rest == end.as_bytes(), "{:?}", String::from_utf8_lossy(rest));
    parts
}

#[tokio::test]
async fn several_parts_come_in_one_answer_in_the_order_in_which_they_were_asked_for() {
    let bytes = noise(2_500_000);
    let shelf = Shelf { manifest: Bytes::from_static(b"0123456789"), ..Shelf::default() };
    let blobs = [shelf.memory(&bytes[..]), shelf.file(&bytes[1..]), shelf.files(&bytes[2..])];
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    for (skip, digest) in blobs.iter().enumerate() {
        let bytes = &bytes[skip..];
        let size = bytes.len();
        let ranges = [(2_000_000, 2_100_000), (0, 1), (70_000, 1_200_001), (size - 5, size)];
        let header = "bytes=2000000-2099999, 0-0,70000-1200000,-5";
        let target = format!("/v2/test/blobs/{digest}");
        // The connection is still good after each.
        for _ in 0..2 {
            let answer = client.ask("GET", &target, &[("Range", header)]).await;
            assert_eq!((answer.status, &answer.end), (206, &End::Complete));
            assert_eq!(answer.header("content-range"), None);
            assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
            let expected = ranges
                .map(|(start, end)| (format!("{start}-{}/{size}", end - 1), bytes[start..end].to_vec()));
            assert!(parts(&answer) == expected, "{digest}");
        }
        // One part alone needs nothing around it.
        let answer = client.ask("GET", &target, &[("Range", "bytes=9999999-,3-4")]).await;
        assert_eq!((answer.status, answer.body.as_slice()), (206, &bytes[3..5]));
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        let answer = client.ask("GET", &target, &[("Range", "bytes=9999999-,8888888-")]).await;
        assert_eq!(answer.status, 416);
        // More than all of it is all of it.
        let answer = client.ask("GET", &target, &[("Range", "bytes=0-,0-")]).await;
        assert_eq!((answer.status, answer.body.len()), (200, size));
    }
    let answer = client.ask("GET", "/v2/test/manifests/v1", &[("Range", "bytes=7-8,0-1")]).await;
    let expected = [("7-8/10".to_owned(), b"78".to_vec()), ("0-1/10".to_owned(), b"01".to_vec())];
    assert_eq!((answer.status, parts(&answer)), (206, expected.to_vec()));
}

#[tokio::test]
async fn as_many_parts_come_as_clients_ask_for_at_once_and_more_are_refused_as_these_clients_expect() {
    let bytes = noise(3_000_000);
    let shelf = Shelf::default();
    let digest = shelf.file(&bytes);
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    let target = format!("/v2/test/blobs/{digest}");
    // With as many digits as those of a blob of GiBs have.
    let header = |count: usize| {
        let ranges = (0..count).map(|i| format!("{:010}-{:010}", i * 2000, i * 2000 + 99));
        format!("bytes={}", ranges.collect::<Vec<_>>().join(","))
    };
    let answer = client.ask("GET", &target, &[("Range", &header(MAX_RANGES))]).await;
    assert_eq!(answer.status, 206);
    let parts = parts(&answer);
    assert_eq!(parts.len(), MAX_RANGES);
    for (i, (_, part)) in parts.iter().enumerate() {
        assert!(*part == bytes[i * 2000..i * 2000 + 100], "part {i}");
    }
    let answer = client.ask("GET", &target, &[("Range", &header(MAX_RANGES + 1))]).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "SIZE_INVALID"));
}

#[tokio::test]
async fn a_part_that_breaks_off_ends_the_answer_as_a_whole_blob_that_does() {
    for (why, end) in
        [(Some(Break::Poisoned), End::Reset), (Some(Break::Stalled), End::Short), (None, End::Short)]
    {
        let shelf = Shelf::default();
        let (digest, pieces) = shelf.stream(b"arriving", 1_000_000);
        let server = start(shelf).await;
        let mut client = Client::connect(server.address).await;
        client
            .send("GET", &format!("/v2/test/blobs/{digest}"), &[("Range", "bytes=0-9999,20000-29999")])
            .await;
        let head = client.head().await;
        assert_eq!(head.status, 206);
        pieces.send(Ok(Bytes::from(noise(5000)))).await.unwrap();
        if let Some(why) = why {
            pieces.send(Err(why)).await.unwrap();
        }
        drop(pieces);
        assert_eq!(client.body(head).await.end, end, "{why:?}");
    }
}
