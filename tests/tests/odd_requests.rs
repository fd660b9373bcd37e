//! Requests that are allowed and seldom made: a plain client asks a real node for what runtimes leave alone or ask for in their
//! own ways.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wherry_proto::Digest;
use wherry_tests::blobs::{Image, OCI_MANIFEST, push_image};
use wherry_tests::http::{Answer, Request, get};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

/// A node, and an image of one layer at its origin, of which the node knows nothing yet.
struct Site {
    node: Wherry,
    image: Image,
    relay: Relay,
    _origin: Registry,
    _lab: Lab,
}

fn site(layer: u64) -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/odd", "1", 101, &[layer])?;
    let relay = Relay::start(origin.addr())?;
    let node = Wherry::start(&lab, "node", Options::origin(relay.host()))?;
    Ok(Site { node, image, relay, _origin: origin, _lab: lab })
}

impl Site {
    fn blob(&self) -> String {
        format!("/v2/lab/odd/blobs/{}", self.image.layers[0].digest)
    }

    /// The layer, by way of its manifest.
    fn fetched(&self) -> Result<Vec<u8>> {
        ensure!(get(self.node.gateway()?, "/v2/lab/odd/manifests/1")?.status == 200, "the manifest");
        let blob = get(self.node.gateway()?, &self.blob())?.body;
        ensure!(Digest::sha256(&blob) == self.image.layers[0].digest, "the layer is wrong");
        Ok(blob)
    }
}

fn ask(gateway: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let request = Request::new(gateway, method, path);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(name, *value));
    request.send_and_read()
}

/// What comes back for bytes as they are, until the server closes.
fn exchange(gateway: SocketAddr, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(gateway)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("after {request:?}"))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn a_head_of_everything_says_what_a_get_would_and_has_no_body() -> Result<()> {
    let it = site(700_000)?;
    let gateway = it.node.gateway()?;
    it.fetched()?;
    let (manifest, layer) = (it.image.manifest.to_string(), it.image.layers[0].digest.to_string());
    for (path, digest) in [
        ("/v2/".to_owned(), None),
        ("/v2/lab/odd/manifests/1".to_owned(), Some(&manifest)),
        (format!("/v2/lab/odd/manifests/{manifest}"), Some(&manifest)),
        (it.blob(), Some(&layer)),
        ("/v2/lab/odd/tags/list".to_owned(), None),
        (format!("/v2/lab/odd/referrers/{manifest}"), None),
    ] {
        let (got, head) = (get(gateway, &path)?, ask(gateway, "HEAD", &path, &[])?);
        ensure!((got.status, head.status) == (200, 200), "{path}: {} {}", got.status, head.status);
        ensure!(head.body.is_empty() && !got.body.is_empty(), "{path}");
        ensure!(head.header("content-length") == Some(got.body.len().to_string().as_str()), "{path}");
        for name in ["content-length", "content-type", "docker-content-digest", "etag", "accept-ranges"] {
            ensure!(head.header(name) == got.header(name), "{path}: {name}");
        }
        ensure!(head.header("docker-content-digest") == digest.map(String::as_str), "{path}");
        ensure!(head.header("docker-distribution-api-version") == Some("registry/2.0"), "{path}");
    }
    for path in [
        "/v2/lab/odd/manifests/2".to_owned(),
        it.blob().replace("sha256:", "sha256:ff")[..it.blob().len()].to_owned(),
    ] {
        let (got, head) = (get(gateway, &path)?, ask(gateway, "HEAD", &path, &[])?);
        ensure!((got.status, head.status, head.body.len()) == (404, 404, 0), "{path}: {}", got.status);
    }
    Ok(())
}

#[test]
fn whatever_a_client_says_that_it_accepts_it_gets_what_there_is() -> Result<()> {
    let it = site(1000)?;
    let gateway = it.node.gateway()?;
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let list = format!("{docker};q=0.5, {OCI_MANIFEST};q=0.9, */*;q=0.1");
    for accepted in [
        vec![],
        vec!["*/*"],
        vec![""],
        vec!["application/*"],
        vec![docker, OCI_MANIFEST],
        vec![list.as_str()],
        // One that does not have it: registries answer what they have, and clients look at its type.
        vec![docker],
        vec!["text/html"],
        vec!["nonsense;;,q="],
    ] {
        let headers: Vec<_> = accepted.iter().map(|accepted| ("Accept", *accepted)).collect();
        for path in
            ["/v2/lab/odd/manifests/1".to_owned(), format!("/v2/lab/odd/manifests/{}", it.image.manifest)]
        {
            let answer = ask(gateway, "GET", &path, &headers)?;
            ensure!(answer.status == 200, "{accepted:?}: {} {}", answer.status, answer.text());
            ensure!(answer.header("content-type") == Some(OCI_MANIFEST), "{accepted:?}");
            ensure!(answer.body == it.image.manifest_bytes, "{accepted:?}");
        }
    }
    Ok(())
}

#[test]
fn nothing_is_encoded_for_those_who_would_take_it_encoded() -> Result<()> {
    let it = site(3 << 20)?;
    let gateway = it.node.gateway()?;
    let encodings = [("Accept-Encoding", "zstd,gzip"), ("Accept-Encoding", "br;q=1.0, identity;q=0")];
    // As it arrives, and as it is stored.
    for path in ["/v2/lab/odd/manifests/1".to_owned(), it.blob(), it.blob()] {
        let answer = ask(gateway, "GET", &path, &encodings)?;
        ensure!(answer.status == 200 && answer.header("content-encoding").is_none(), "{path}");
        let digest = answer.header("docker-content-digest").context("no digest")?.to_owned();
        ensure!(Digest::sha256(&answer.body).to_string() == digest, "{path}");
    }
    Ok(())
}

#[test]
fn manifests_and_blobs_have_ranges_and_are_not_sent_to_who_has_them() -> Result<()> {
    let it = site(500_000)?;
    let gateway = it.node.gateway()?;
    let blob = it.fetched()?;
    let manifest = &it.image.manifest_bytes;
    for (path, content, digest) in [
        ("/v2/lab/odd/manifests/1".to_owned(), manifest, it.image.manifest),
        (format!("/v2/lab/odd/manifests/{}", it.image.manifest), manifest, it.image.manifest),
        (it.blob(), &blob, it.image.layers[0].digest),
    ] {
        let all = content.len();
        let answer = ask(gateway, "GET", &path, &[("Range", "bytes=0-")])?;
        ensure!(answer.status == 206 && answer.body == *content, "{path}: {}", answer.status);
        let expected = format!("bytes 0-{}/{all}", all - 1);
        ensure!(answer.header("content-range") == Some(expected.as_str()), "{path}");
        ensure!(answer.header("docker-content-digest") == Some(digest.to_string().as_str()), "{path}");

        // The tag of what is there is its digest, and a strong one; there are no dates, so that conditions on them never hold.
        let (etag, weak) = (format!("\"{digest}\""), format!("W/\"{digest}\""));
        let yesterday = "Thu, 26 Nov 2026 07:00:00 GMT";
        for (headers, status, len) in [
            (vec![("If-None-Match", etag.as_str())], 304, 0),
            (vec![("If-None-Match", weak.as_str())], 304, 0),
            (vec![("If-None-Match", "*")], 304, 0),
            (vec![("If-None-Match", "\"other\"")], 200, all),
            (vec![("If-None-Match", etag.as_str()), ("Range", "bytes=0-1")], 304, 0),
            (vec![("If-Range", etag.as_str()), ("Range", "bytes=0-1")], 206, 2),
            (vec![("If-Range", weak.as_str()), ("Range", "bytes=0-1")], 200, all),
            (vec![("If-Range", "\"other\""), ("Range", "bytes=0-1")], 200, all),
            (vec![("If-Range", yesterday), ("Range", "bytes=0-1")], 200, all),
            (vec![("If-Modified-Since", yesterday)], 200, all),
            (vec![("If-Range", etag.as_str()), ("Range", "bytes=0-1,4-4")], 206, 0),
        ] {
            let answer = ask(gateway, "GET", &path, &headers)?;
            ensure!(answer.status == status, "{path} {headers:?}: {}", answer.status);
            ensure!(answer.body.len() == len || len == 0, "{path} {headers:?}: {} bytes", answer.body.len());
            ensure!(answer.header("etag") == Some(etag.as_str()), "{path} {headers:?}");
        }
        let head = ask(gateway, "HEAD", &path, &[("If-None-Match", etag.as_str())])?;
        ensure!(head.status == 304, "{path}: {}", head.status);
    }
    Ok(())
}

/// The parts of an answer to several ranges: where each begins, and its bytes.
fn parts(answer: &Answer) -> Result<Vec<(usize, Vec<u8>)>> {
    ensure!(answer.status == 206, "{} {}", answer.status, answer.text());
    let kind = answer.header("content-type").context("no type")?;
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").context(kind.to_owned())?;
    let (before, end) = (format!("--{boundary}\r\n"), format!("--{boundary}--\r\n"));
    let mut rest = answer.body.as_slice();
    let mut parts = Vec::new();
    while let Some(part) = rest.strip_prefix(before.as_bytes()) {
        let head = part.windows(4).position(|four| four == b"\r\n\r\n").context("a part without its head")?;
        let text = std::str::from_utf8(&part[..head])?;
        let range = text.lines().find_map(|line| line.strip_prefix("Content-Range: bytes "));
        let (first, last) =
            range.and_then(|range| range.split('/').next()?.split_once('-')).context("no range")?;
        let (first, last): (usize, usize) = (first.parse()?, last.parse()?);
        let (bytes, after) =
            part[head + 4..].split_at_checked(last + 1 - first).context("a part is cut short")?;
        parts.push((first, bytes.to_vec()));
        rest = after.strip_prefix(b"\r\n").context("no line ends a part")?;
    }
    ensure!(rest == end.as_bytes(), "{:?}", String::from_utf8_lossy(rest));
    Ok(parts)
}

#[test]
fn several_ranges_in_one_request_are_answered_in_one_of_what_is_stored_and_of_what_arrives() -> Result<()> {
    let size = 24 << 20;
    let it = site(size)?;
    let gateway = it.node.gateway()?;
    ensure!(get(gateway, "/v2/lab/odd/manifests/1")?.status == 200, "the manifest");
    // Clients of layers that can be had in parts read the end first, and then what they lack.
    let asked = [(23 << 20, 1000), (0, 10), (5 << 20, 2 << 20), (23 << 20, 1), (20_000_000, 70_000)];
    let header = asked.map(|(first, len)| format!("{first}-{}", first + len - 1)).join(",");
    let headers = [("Range", format!("bytes={header}"))];
    let headers = [("Range", headers[0].1.as_str())];
    // Only a part of it comes: what is far ahead is passed through, and no byte of it behind what was asked for.
    it.relay.pace(20 << 20);
    let arriving = parts(&ask(gateway, "GET", &it.blob(), &headers)?)?;
    let blob = it.fetched()?;
    let layer = it.image.layers[0].digest;
    ensure!(it.relay.sent(&layer) < size + (4 << 20), "{} bytes left the origin", it.relay.sent(&layer));
    let stored = parts(&ask(gateway, "GET", &it.blob(), &headers)?)?;
    for found in [arriving, stored] {
        ensure!(found.len() == asked.len(), "{} parts", found.len());
        for ((first, bytes), (asked, len)) in found.iter().zip(asked) {
            ensure!(*first == asked && *bytes == blob[asked..asked + len], "the part at {asked}");
        }
    }

    // As many as clients ask for at once, and one more.
    let many = |count: usize| -> Result<Answer> {
        let ranges: Vec<String> =
            (0..count).map(|i| format!("{}-{}", i * 20_000, i * 20_000 + 499)).collect();
        ask(gateway, "GET", &it.blob(), &[("Range", &format!("bytes={}", ranges.join(",")))])
    };
    let found = parts(&many(1024)?)?;
    ensure!(found.len() == 1024 && found.iter().all(|(first, bytes)| *bytes == blob[*first..first + 500]));
    let refused = many(1025)?;
    ensure!((refused.status, refused.error_code().as_deref()) == (400, Some("SIZE_INVALID")));
    ensure!(refused.text().contains("at most 1024 ranges"), "{}", refused.text());
    // The same again and again is no more than all of it.
    let whole =
        ask(gateway, "GET", &it.blob(), &[("Range", &format!("bytes={}", vec!["0-"; 500].join(",")))])?;
    ensure!(whole.status == 200 && whole.body == blob, "{}", whole.status);
    Ok(())
}

#[test]
fn clients_of_http_1_0_and_those_that_want_their_connection_closed_get_the_same() -> Result<()> {
    let it = site(200_000)?;
    let gateway = it.node.gateway()?;
    let blob = it.fetched()?;
    for (path, body) in [("/v2/".to_owned(), b"{}".to_vec()), (it.blob(), blob)] {
        for request in [
            format!("GET {path} HTTP/1.0\r\n\r\n"),
            format!("GET {path} HTTP/1.0\r\nHost: x\r\nConnection: close\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nCONNECTION: Close\r\n\r\n"),
        ] {
            let answer = exchange(gateway, &request)?;
            let (head, _) = answer.split_once("\r\n\r\n").context("no head")?;
            let version = &request[request.find("HTTP/").unwrap_or(0)..][..8];
            ensure!(head.starts_with(&format!("{version} 200 ")), "{request:?}: {head}");
            let length = format!("content-length: {}", body.len());
            ensure!(head.to_lowercase().contains(&length), "{request:?}: {head}");
            ensure!(!head.to_lowercase().contains("chunked"), "{request:?}: {head}");
            ensure!(answer.into_bytes().ends_with(&String::from_utf8_lossy(&body).into_owned().into_bytes()));
        }
    }
    // Two requests on one connection, the second of which ends it.
    let twice =
        "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    ensure!(exchange(gateway, twice)?.matches("HTTP/1.1 200 OK").count() == 2);
    Ok(())
}

#[test]
fn names_are_the_same_however_they_are_written_and_what_is_no_name_is_refused() -> Result<()> {
    let it = site(1000)?;
    let gateway = it.node.gateway()?;
    it.fetched()?;
    let (manifest, host) = (it.image.manifest.to_string(), it.relay.host());
    let (encoded, encoded_host) = (manifest.replace(':', "%3A"), host.replace(':', "%3a"));
    let long = |length: usize| ["a".repeat(100), "b".repeat(100), "c".repeat(length - 202)].join("/");
    for (path, status, code) in [
        (format!("/v2/lab/odd/manifests/{encoded}"), 200, None),
        (format!("/v2/l%61b/%6fdd/manifests/{manifest}"), 200, None),
        ("/v2/lab%2Fodd/manifests/1".to_owned(), 200, None),
        (format!("/v2/{encoded_host}/lab/odd/manifests/1"), 200, None),
        (format!("/v2/lab/odd/manifests/1?ns={encoded_host}"), 200, None),
        ("/v2/lab/odd/manifests/1?".to_owned(), 200, None),
        ("/v2/lab/odd/manifests/1?what=ever&&=".to_owned(), 200, None),
        ("/v2/lab/odd/manifests/%zz".to_owned(), 404, Some("UNSUPPORTED")),
        ("/v2/lab/odd/manifests/1%00".to_owned(), 404, Some("MANIFEST_UNKNOWN")),
        // docker-registry takes fewer; the site itself all that the specification does.
        (format!("/v2/{}/manifests/1?ns=site.wherry", long(255)), 404, Some("MANIFEST_UNKNOWN")),
        (format!("/v2/{}/manifests/1", long(256)), 400, Some("NAME_INVALID")),
        (format!("/v2/lab/odd/manifests/{}", "t".repeat(128)), 404, Some("MANIFEST_UNKNOWN")),
        (format!("/v2/lab/odd/manifests/{}", "t".repeat(129)), 404, Some("MANIFEST_UNKNOWN")),
        ("/v2//lab/odd/manifests/1".to_owned(), 400, Some("NAME_INVALID")),
        ("/v2/lab//odd/manifests/1".to_owned(), 400, Some("NAME_INVALID")),
        ("/v2/lab/odd//manifests/1".to_owned(), 400, Some("NAME_INVALID")),
        ("/v2/lab/odd/manifests//1".to_owned(), 404, Some("UNSUPPORTED")),
        ("/v2/lab/odd/manifests/1/".to_owned(), 404, Some("UNSUPPORTED")),
        ("//v2/lab/odd/manifests/1".to_owned(), 404, Some("UNSUPPORTED")),
        ("/v2//".to_owned(), 404, Some("UNSUPPORTED")),
        ("/v2/lab/./odd/manifests/1".to_owned(), 400, Some("NAME_INVALID")),
    ] {
        let answer = get(gateway, &path)?;
        let found = (answer.status, answer.error_code());
        ensure!(found == (status, code.map(str::to_owned)), "{path}: {found:?} {}", answer.text());
        ensure!(status != 200 || answer.body == it.image.manifest_bytes, "{path}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_done_with_a_target_is_said_with_what_can() -> Result<()> {
    let lab = Lab::new()?;
    let digest = Digest::sha256(b"something");
    // So that nobody else is asked about anything.
    let of_the_site = || Options::default().with("--default-origin").with("site.wherry");
    for (options, push, delete) in [
        (of_the_site(), true, false),
        (of_the_site().with("--delete").with("local"), true, true),
        (of_the_site().with("--push").with("nobody"), false, false),
    ] {
        let node = Wherry::start(&lab, &format!("node-{push}-{delete}"), options)?;
        let gateway = node.gateway()?;
        for (path, reads, pushes, deletes) in [
            ("/v2/".to_owned(), "GET HEAD", "", ""),
            ("/v2/lab/odd/manifests/1".to_owned(), "GET HEAD", "PUT", "DELETE"),
            (format!("/v2/lab/odd/blobs/{digest}"), "GET HEAD", "", "DELETE"),
            ("/v2/lab/odd/tags/list".to_owned(), "GET HEAD", "", ""),
            (format!("/v2/lab/odd/referrers/{digest}"), "GET HEAD", "", ""),
            ("/v2/lab/odd/blobs/uploads/".to_owned(), "", "POST", ""),
            (format!("/v2/lab/odd/blobs/uploads/0a1b?digest={digest}"), "", "GET HEAD PUT PATCH DELETE", ""),
        ] {
            let words = |words: &str, counts: bool| {
                words
                    .split(' ')
                    .filter(|word| counts && !word.is_empty())
                    .map(str::to_owned)
                    .collect::<BTreeSet<_>>()
            };
            let mut expected = words(reads, true);
            expected.extend(words(pushes, push));
            expected.extend(words(deletes, delete));
            for method in ["BREW", "OPTIONS", "TRACE", "PROPFIND", "get"] {
                let answer = ask(gateway, method, &path, &[])?;
                ensure!(
                    (answer.status, answer.error_code().as_deref()) == (405, Some("UNSUPPORTED")),
                    "{method} {path}"
                );
                let allowed = answer.header("allow").context("no Allow")?.replace(", ", " ");
                ensure!(
                    words(&allowed, true) == expected,
                    "{method} {path}: {allowed:?} and not {expected:?}"
                );
            }
            // And it holds: what is not in it is refused, and nothing else is for that reason.
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
                let status = ask(gateway, method, &path, &[])?.status;
                ensure!(
                    (status == 405) != expected.contains(method),
                    "{method} {path}: {status}, {expected:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_manifest_that_cannot_be_one_is_refused_in_plain_words() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", Options::default().with("--default-origin").with("site.wherry"))?;
    let gateway = node.gateway()?;
    let put = |body: &str, media_type: &[(&str, &str)]| -> Result<Answer> {
        let request = Request::new(gateway, "PUT", "/v2/lab/odd/manifests/1");
        let request = media_type.iter().fold(request, |request, (name, value)| request.header(name, *value));
        request.body(body.len() as u64, &mut body.as_bytes()).send_and_read()
    };
    let index = json!({ "schemaVersion": 2, "manifests": [] }).to_string();
    for (body, media_type, says) in [
        ("[]", None, "is a list, and a JSON object is expected"),
        ("\"x\"", None, "is a string"),
        (
            index.as_str(),
            Some("text/plain"),
            "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest",
        ),
        (index.as_str(), Some("application/json"), "'application/json'"),
        (index.as_str(), Some("application/vnd.docker.distribution.manifest.v1+json"), "has to be one of"),
    ] {
        let headers: Vec<_> = media_type.iter().map(|media_type| ("Content-Type", *media_type)).collect();
        let answer = put(body, &headers)?;
        let found = (answer.status, answer.error_code());
        ensure!(found == (400, Some("MANIFEST_INVALID".to_owned())), "{body} {media_type:?}: {found:?}");
        ensure!(answer.text().contains(says), "{body} {media_type:?}: {}", answer.text());
    }
    let parameters = [("Content-Type", "Application/vnd.oci.image.index.v1+json; charset=utf-8")];
    ensure!(put(&index, &parameters)?.status == 201 && put(&index, &[])?.status == 201);
    Ok(())
}

#[test]
fn how_far_an_upload_has_come_is_told_while_it_is_still_sent() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", Options::default())?;
    let gateway = node.gateway()?;
    let begun = ask(gateway, "POST", "/v2/site.wherry/lab/odd/blobs/uploads/", &[])?;
    let location = begun.header("location").context("no location")?.to_owned();
    let blob = b"a few bytes, far fewer than are written at once".repeat(3);
    let mut stream = TcpStream::connect(gateway)?;
    write!(stream, "PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", blob.len())?;
    for end in [10, 60, blob.len() - 1] {
        let told = get(gateway, &location)?.header("range").map(str::to_owned);
        let at =
            told.and_then(|range| range.strip_prefix("0-")?.parse::<usize>().ok()).context("no range")?;
        stream.write_all(&blob[if at == 0 { 0 } else { at + 1 }..end])?;
        wait_until("what was sent is told", SOON, || {
            Ok(get(gateway, &location)?.header("range") == Some(format!("0-{}", end - 1).as_str()))
        })?;
    }
    // Nothing of it is lost with a client that goes away now.
    drop(stream);
    let path = format!("{location}?digest={}", Digest::sha256(&blob));
    let last = format!("{}-{}", blob.len() - 1, blob.len() - 1);
    let request = Request::new(gateway, "PUT", &path).header("Content-Range", last);
    let done = request.body(1, &mut &blob[blob.len() - 1..]).send_and_read()?;
    ensure!(done.status == 201, "{} {}", done.status, done.text());
    ensure!(get(gateway, done.header("location").context("no location")?)?.body == blob);
    Ok(())
}
