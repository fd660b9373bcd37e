//! Every route and every status.

use std::time::Duration;

use bytes::Bytes;
use wherry_gateway::server::{Refusal, RefusalKind, Want};
use wherry_proto::Digest;

use crate::client::{Client, ask};
use crate::content::{Shelf, start};

#[tokio::test]
async fn the_base_says_that_the_protocol_is_spoken() {
    let server = start(Shelf::default()).await;
    for target in ["/v2/", "/v2"] {
        let answer = ask(server.address, "GET", target, &[]).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{}"[..]));
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
        assert!(answer.header(wherry_gateway::server::GATEWAY_HEADER).is_some());
    }
    assert_eq!(ask(server.address, "HEAD", "/v2/", &[]).await.status, 200);
}

#[tokio::test]
async fn manifests_come_by_tag_and_by_digest_with_all_their_headers() {
    let manifest = Bytes::from_static(b"{\"a manifest\": true}");
    let digest = Digest::sha256(&manifest).to_string();
    let server = start(Shelf { manifest: manifest.clone(), ..Shelf::default() }).await;
    let mut client = Client::connect(server.address).await;
    for (reference, age) in [("v1", Some("7")), (digest.as_str(), None)] {
        for method in ["GET", "HEAD"] {
            let answer = client.ask(method, &format!("/v2/test/manifests/{reference}"), &[]).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
            assert_eq!(answer.header("etag"), Some(format!("\"{digest}\"").as_str()));
            assert_eq!(answer.header("content-type"), Some("application/vnd.oci.image.manifest.v1+json"));
            assert_eq!(answer.header("content-length"), Some(manifest.len().to_string().as_str()));
            assert_eq!(answer.header("content-encoding"), None);
            assert_eq!(answer.header("age"), age);
            assert_eq!(answer.header("wherry-source"), Some("peer"));
            assert_eq!(answer.body, if method == "GET" { manifest.to_vec() } else { Vec::new() });
        }
    }
    let asked = server.shelf.asked.lock().unwrap();
    let wants: Vec<_> = asked.iter().map(|(_, want)| *want).collect();
    assert_eq!(wants, [Some(Want::Get), Some(Want::Head), Some(Want::Get), Some(Want::Head)]);
    assert!(asked.iter().all(|(ask, _)| ask.client == client.stream.local_addr().unwrap()));
}

#[tokio::test]
async fn a_client_that_has_it_already_is_told_so() {
    let shelf = Shelf { manifest: Bytes::from_static(b"{}"), ..Shelf::default() };
    let blob = shelf.memory(b"blob");
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    for (target, etag) in [
        ("/v2/test/manifests/v1".to_owned(), format!("\"{}\"", Digest::sha256(b"{}"))),
        (format!("/v2/test/blobs/{blob}"), format!("\"x\", W/\"{blob}\"")),
    ] {
        let answer = client.ask("GET", &target, &[("If-None-Match", &etag)]).await;
        assert_eq!((answer.status, answer.body.len()), (304, 0));
        let answer = client.ask("GET", &target, &[("If-None-Match", "\"other\"")]).await;
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn blobs_of_every_kind_come_whole() {
    let shelf = Shelf::default();
    let bytes = crate::content::noise(3_000_001);
    let blobs = [
        (shelf.memory(b""), &bytes[..0]),
        (shelf.memory(&bytes[..1000]), &bytes[..1000]),
        (shelf.file(&bytes[1..2]), &bytes[1..2]),
        (shelf.file(&bytes[..16_384]), &bytes[..16_384]),
        (shelf.file(&bytes[..16_385]), &bytes[..16_385]),
        (shelf.file(&bytes), &bytes[..]),
        (shelf.files(&bytes[7..]), &bytes[7..]),
    ];
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    for (digest, expected) in blobs {
        let target = format!("/v2/test/blobs/{digest}");
        let head = client.ask("HEAD", &target, &[]).await;
        let got = client.ask("GET", &target, &[("Accept-Encoding", "zstd,gzip")]).await;
        for answer in [&head, &got] {
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-length"), Some(expected.len().to_string().as_str()));
            assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
            assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
            assert_eq!(answer.header("accept-ranges"), Some("bytes"));
            assert_eq!(answer.header("content-encoding"), None);
        }
        assert!(head.body.is_empty());
        assert!(got.body == expected, "{} bytes differ", expected.len());
    }
}

#[tokio::test]
async fn the_origin_is_what_the_client_named() {
    let shelf = Shelf { manifest: Bytes::from_static(b"{}"), ..Shelf::default() };
    let server = start(shelf).await;
    let mut client = Client::connect(server.address).await;
    for (target, origin, repository, namespace) in [
        ("/v2/test/manifests/v1", None, "test", None),
        ("/v2/test/manifests/v1?ns=quay.io", Some("quay.io"), "test", Some("quay.io")),
        ("/v2/test/manifests/v1?ns=docker.io", Some("docker.io"), "library/test", Some("docker.io")),
        ("/v2/docker.io/library/test/manifests/v1", Some("docker.io"), "library/test", None),
        ("/v2/localhost:5000/test/manifests/v1", Some("localhost:5000"), "test", None),
    ] {
        let answer = client.ask("GET", target, &[]).await;
        assert_eq!(answer.status, 200, "{target}");
        assert_eq!(answer.header("oci-namespace"), namespace, "{target}");
        let (ask, _) = server.shelf.asked.lock().unwrap().pop().unwrap();
        assert_eq!(ask.origin.map(|host| host.to_string()).as_deref(), origin, "{target}");
        assert_eq!(ask.repository.as_str(), repository, "{target}");
    }
}

#[tokio::test]
async fn tags_are_sorted_and_paged() {
    let tags = ["b", "a", "C", "10", "9", "a"].map(str::to_owned).to_vec();
    let server = start(Shelf { tags, ..Shelf::default() }).await;
    let mut client = Client::connect(server.address).await;
    let sorted = ["10", "9", "a", "b", "C"];

    let answer = client.ask("GET", "/v2/test/tags/list", &[]).await;
    assert_eq!(answer.json(), serde_json::json!({ "name": "test", "tags": sorted }));
    assert_eq!(answer.header("link"), None);

    let mut target = "/v2/test/tags/list?n=2&ns=quay.io".to_owned();
    let mut seen = Vec::new();
    for page in 0..3 {
        let answer = client.ask("GET", &target, &[]).await;
        let tags = answer.json()["tags"].as_array().unwrap().clone();
        seen.extend(tags.iter().map(|tag| tag.as_str().unwrap().to_owned()));
        match answer.header("link") {
            Some(link) => {
                let (next, rel) = link.split_once(">; ").unwrap();
                assert_eq!(rel, "rel=\"next\"");
                target = next.strip_prefix('<').unwrap().to_owned();
                assert!(target.contains("ns=quay.io"), "{target}");
            }
            None => assert_eq!(page, 2),
        }
    }
    assert_eq!(seen, sorted);

    let answer = client.ask("GET", "/v2/test/tags/list?n=0", &[]).await;
    assert_eq!(answer.json(), serde_json::json!({ "name": "test", "tags": [] }));
    let answer = client.ask("GET", "/v2/test/tags/list?n=5&last=b", &[]).await;
    assert_eq!(answer.json()["tags"], serde_json::json!(["C"]));
    let answer = client.ask("GET", "/v2/quay.io/test/tags/list", &[]).await;
    assert_eq!(answer.json()["name"], "quay.io/test");
}

#[tokio::test]
async fn no_page_of_tags_has_over_a_thousand() {
    let tags = (0..2500).map(|i| format!("t{i:04}")).collect();
    let server = start(Shelf { tags, ..Shelf::default() }).await;
    for target in ["/v2/test/tags/list", "/v2/test/tags/list?n=1000000"] {
        let answer = ask(server.address, "GET", target, &[]).await;
        assert_eq!(answer.json()["tags"].as_array().unwrap().len(), 1000, "{target}");
        let expected = "</v2/test/tags/list?n=1000&last=t0999>; rel=\"next\"";
        assert_eq!(answer.header("link"), Some(expected));
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_well_formed_has_its_status_and_code() {
    let server = start(Shelf::default()).await;
    let nowhere = Digest::sha256(b"nowhere");
    let mut client = Client::connect(server.address).await;
    for (method, target, status, code) in [
        ("GET", "/v2/test/manifests/v2".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("GET", format!("/v2/test/manifests/{nowhere}"), 404, "MANIFEST_UNKNOWN"),
        ("GET", format!("/v2/test/blobs/{nowhere}"), 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/other/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("GET", "/v2/test/manifests/.INVALID".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/test/manifests/sha256:zz".to_owned(), 400, "DIGEST_INVALID"),
        ("GET", "/v2/test/blobs/md5:00".to_owned(), 400, "DIGEST_INVALID"),
        ("GET", "/v2/TEST/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("GET", "/v2/test/manifests/v1?ns=nohost".to_owned(), 400, "NAME_INVALID"),
        ("GET", "/".to_owned(), 404, "UNSUPPORTED"),
        ("GET", "/v2/_catalog".to_owned(), 404, "UNSUPPORTED"),
        ("PUT", "/v2/test/manifests/v1".to_owned(), 405, "UNSUPPORTED"),
        ("POST", "/v2/test/blobs/uploads/".to_owned(), 405, "UNSUPPORTED"),
        ("DELETE", format!("/v2/test/blobs/{nowhere}"), 405, "UNSUPPORTED"),
        ("BREW", "/v2/".to_owned(), 405, "UNSUPPORTED"),
    ] {
        let answer = client.ask(method, &target, &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {target}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        if status == 405 {
            // Nothing can be pushed here, and so nothing can be done where uploads are.
            let allowed = if target.contains("uploads") { "" } else { "GET, HEAD" };
            assert_eq!(answer.header("allow"), Some(allowed), "{method} {target}");
        }
    }
    let head = client.ask("HEAD", "/v2/test/manifests/v2", &[]).await;
    assert_eq!((head.status, head.body.len()), (404, 0));
    assert!(head.header("content-length").unwrap().parse::<usize>().unwrap() > 0);
}

#[tokio::test]
async fn every_refusal_has_the_specifications_shape() {
    for (kind, status, code) in [
        (RefusalKind::ManifestUnknown, 404, "MANIFEST_UNKNOWN"),
        (RefusalKind::BlobUnknown, 404, "BLOB_UNKNOWN"),
        (RefusalKind::NameUnknown, 404, "NAME_UNKNOWN"),
        (RefusalKind::NameInvalid, 400, "NAME_INVALID"),
        (RefusalKind::DigestInvalid, 400, "DIGEST_INVALID"),
        (RefusalKind::ManifestInvalid, 502, "MANIFEST_INVALID"),
        (RefusalKind::Unauthorized, 401, "UNAUTHORIZED"),
        (RefusalKind::Denied, 403, "DENIED"),
        (RefusalKind::TooManyRequests, 429, "TOOMANYREQUESTS"),
        (RefusalKind::Unsupported, 405, "UNSUPPORTED"),
        (RefusalKind::Unavailable, 503, "UNAVAILABLE"),
        (RefusalKind::BadOrigin, 502, "BAD_ORIGIN"),
        (RefusalKind::NoSpace, 507, "NO_SPACE"),
        (RefusalKind::Internal, 500, "UNKNOWN"),
    ] {
        let refusal = Refusal::new(kind, "what to \"do\" about it\n");
        let server = start(Shelf { refusal: Some(refusal), ..Shelf::default() }).await;
        for target in ["/v2/test/manifests/v1?ns=quay.io", "/v2/test/tags/list?ns=quay.io"] {
            let answer = ask(server.address, "GET", target, &[]).await;
            assert_eq!((answer.status, answer.code().as_str()), (status, code));
            assert_eq!(answer.json()["errors"][0]["message"], "what to \"do\" about it\n");
            assert_eq!(answer.header("retry-after"), (status == 503).then_some("5"));
            assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
        }
    }
    let refusal =
        Refusal::new(RefusalKind::TooManyRequests, "wait").retry_after(Duration::from_millis(90_400));
    let server = start(Shelf { refusal: Some(refusal), ..Shelf::default() }).await;
    let answer = ask(server.address, "GET", "/v2/test/manifests/v1", &[]).await;
    assert_eq!(answer.header("retry-after"), Some("90"));
}

#[tokio::test]
async fn who_may_have_meant_a_registry_with_a_port_is_told_how_to_name_it() {
    let ask_refused = async |kind, target: &str| {
        let refusal = Some(Refusal::new(kind, "no"));
        let server = start(Shelf { refusal, ..Shelf::default() }).await;
        let answer = ask(server.address, "GET", target, &[]).await;
        answer.json()["errors"][0]["message"].as_str().unwrap().to_owned()
    };
    let unknown = ask_refused(RefusalKind::ManifestUnknown, "/v2/team/app/manifests/v1").await;
    assert!(
        unknown.contains("default origin was asked") && unknown.contains("--default-origin"),
        "{unknown}"
    );
    let silent = ask_refused(RefusalKind::Unavailable, "/v2/localhost/team/app/manifests/v1").await;
    assert!(
        silent.contains("--origin \"localhost:PORT alias=NAME\"', and ask for NAME/team/app"),
        "{silent}"
    );
    for (kind, target) in [
        (RefusalKind::Unavailable, "/v2/team/app/manifests/v1"),
        (RefusalKind::Unavailable, "/v2/team/app/manifests/v1?ns=localhost"),
        (RefusalKind::Unavailable, "/v2/localhost:5000/team/app/manifests/v1"),
        (RefusalKind::ManifestUnknown, "/v2/localhost/team/app/manifests/v1"),
    ] {
        assert_eq!(ask_refused(kind, target).await, "no", "{target}");
    }
}

#[tokio::test]
async fn a_content_that_breaks_its_word_is_an_error_before_the_first_byte() {
    let shelf = Shelf::default();
    let wrong = shelf.wrong(b"wrong", 10, 9);
    let server = start(shelf).await;
    let answer = ask(server.address, "GET", &format!("/v2/test/blobs/{wrong}"), &[]).await;
    assert_eq!((answer.status, answer.code().as_str()), (500, "UNKNOWN"));
}
