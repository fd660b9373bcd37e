//! Whatever is typed, configured or sent: a clear error, the right status, and a node that goes on.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Result, ensure};
use rustix::mount::{MountFlags, mount};
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::http::{Request, get, raw};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry, command, refused};
use wherry_tests::registry::{self, Registry};

struct Site {
    node: Wherry,
    image: Image,
    origin: Registry,
    lab: Lab,
}

fn site() -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 8, &[200_000])?;
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    Ok(Site { node, image, origin, lab })
}

#[test]
fn malformed_references_are_refused_before_anyone_is_asked() -> Result<()> {
    let site = site()?;
    let digest = "a".repeat(63);
    let long = format!("{}:1", "a".repeat(300));
    let short_digest = format!("x@sha256:{digest}");
    for bad in [
        "",
        " ",
        "UPPER/case:1",
        "a b:1",
        "x:",
        ":1",
        "x@",
        "x@sha256:",
        &short_digest,
        "../x:1",
        "x//y:1",
        "x:ü",
        &long,
    ] {
        let answer = site.node.command()?.args(["pull", "--", bad]).output()?;
        let said = String::from_utf8_lossy(&answer.stderr);
        assert!(matches!(answer.status.code(), Some(1 | 2)), "'{bad}': {:?} {said}", answer.status);
        assert!(!said.trim().is_empty() && !said.contains("panicked"), "'{bad}': {said}");
    }
    assert!(
        site.origin.accesses()?.is_empty()
            || site.origin.accesses()?.iter().all(|one| one.method == "PUT" || one.method == "POST")
    );
    Ok(())
}

#[test]
fn unknown_commands_and_flags_are_usage_errors() -> Result<()> {
    let lab = Lab::new()?;
    for arguments in [&["no-such-command"][..], &["pull"], &["pull", "--no-such-flag", "x"]] {
        let said = refused(command(lab.path())?.args(arguments), 2)?;
        assert!(said.contains("--help") || said.contains("Usage"), "{arguments:?}: {said}");
    }
    Ok(())
}

#[test]
fn commands_say_so_when_no_node_runs() -> Result<()> {
    let lab = Lab::new()?;
    for arguments in [&["images"][..], &["status"], &["peers"], &["pull", "x:1"], &["inspect", "x:1"]] {
        let said = refused(command(lab.path())?.args(arguments), 1)?;
        assert!(said.contains("wherry up"), "{arguments:?} should say how to start one: {said}");
    }
    Ok(())
}

#[test]
fn the_gateway_answers_every_malformed_request_as_the_specification_says() -> Result<()> {
    let site = site()?;
    let gateway = site.node.gateway()?;
    ensure!(get(gateway, "/v2/lab/noise/manifests/1")?.status == 200, "the manifest");
    let nobody = format!("sha256:{}", "0".repeat(64));
    let cases = [
        ("GET", "/v2/lab/noise/blobs/sha256:abc".to_owned(), 400, Some("DIGEST_INVALID")),
        ("GET", format!("/v2/lab/noise/blobs/sha256:{}", "G".repeat(64)), 400, Some("DIGEST_INVALID")),
        ("GET", format!("/v2/lab/noise/blobs/md5:{}", "0".repeat(32)), 400, Some("DIGEST_INVALID")),
        ("GET", format!("/v2/lab/noise/blobs/{nobody}"), 404, Some("BLOB_UNKNOWN")),
        ("GET", format!("/v2/lab/noise/manifests/{nobody}"), 404, Some("MANIFEST_UNKNOWN")),
        ("GET", "/v2/lab/noise/manifests/no-such-tag".to_owned(), 404, Some("MANIFEST_UNKNOWN")),
        ("GET", "/v2/lab/Noise/manifests/1".to_owned(), 400, Some("NAME_INVALID")),
        ("GET", "/v2/lab/../noise/manifests/1".to_owned(), 400, Some("NAME_INVALID")),
        ("GET", "/v2/lab/%2e%2e/manifests/1".to_owned(), 400, Some("NAME_INVALID")),
        ("GET", format!("/v2/{}/manifests/1", "a".repeat(256)), 400, Some("NAME_INVALID")),
        ("GET", "/v2/_catalog".to_owned(), 404, None),
        ("GET", "/etc/passwd".to_owned(), 404, None),
        ("GET", "/v2/lab/noise/manifests/1?ns=%00".to_owned(), 400, None),
    ];
    for (method, path, status, code) in cases {
        let answer = Request::new(gateway, method, &path).send_and_read()?;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        if let Some(code) = code {
            assert_eq!(answer.error_code().as_deref(), Some(code), "{method} {path}: {}", answer.text());
        }
    }
    // What is put there is no manifest, and nobody may remove anything unless the node is told so.
    for (method, status) in [("PUT", 400), ("DELETE", 405), ("PATCH", 405), ("POST", 405)] {
        let answer = Request::new(gateway, method, "/v2/lab/noise/manifests/1").send_and_read()?;
        assert_eq!(answer.status, status, "{method}: {}", answer.text());
    }
    let blob = format!("/v2/lab/noise/blobs/{}", site.image.layers[0].digest);
    for range in ["bytes=a-b", "bytes=5-2", "lines=1-2", "bytes=--1", "bytes=99999999999999999999-", "bytes="]
    {
        let answer = Request::new(gateway, "GET", &blob).header("Range", range).send_and_read()?;
        let whole = answer.status == 200 && answer.body.len() == 200_000;
        assert!(whole || matches!(answer.status, 400 | 416), "{range}: {}", answer.status);
    }
    assert!(blob_is_right(gateway, "lab/noise", &site.image.layers[0])?);
    Ok(())
}

#[test]
fn bytes_that_are_not_http_end_their_connection_and_nothing_else() -> Result<()> {
    let mut site = site()?;
    let gateway = site.node.gateway()?;
    let long_header = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    let many_headers = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(10_000));
    let inputs: [&[u8]; 7] = [
        b"\0\0\0\0\0\0\0\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        long_header.as_bytes(),
        many_headers.as_bytes(),
    ];
    for input in inputs {
        let start = String::from_utf8_lossy(&input[..input.len().min(40)]).into_owned();
        let answer = raw(gateway, input).unwrap_or_default();
        let answer = String::from_utf8_lossy(&answer);
        let refused =
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4");
        assert!(refused || answer.starts_with("HTTP/1.1 200"), "{start:?}: {answer}");
        assert!(site.node.process()?.runs()?, "{start:?} ended the node");
    }
    let status = raw(site.node.addresses()?.status, b"\0\0\0\0").unwrap_or_default();
    assert!(!String::from_utf8_lossy(&status).starts_with("HTTP/1.1 200"));
    assert_eq!(get(gateway, "/v2/")?.status, 200);
    Ok(())
}

#[test]
fn every_bad_value_of_a_configuration_is_reported_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let config =
        lab.file("wherry.toml", "gateway = \"nowhere\"\ndisk_budget = \"lots\"\nno_such_key = 1\n")?;
    let said = refused(command(lab.path())?.arg("up").arg("--config").arg(&config), 2)?;
    for bad in ["gateway", "nowhere", "disk_budget", "lots", "no_such_key", "wherry.toml"] {
        assert!(said.contains(bad), "should name {bad}: {said}");
    }
    let broken = lab.file("broken.toml", "gateway = [")?;
    let said = refused(command(lab.path())?.arg("up").arg("--config").arg(&broken), 2)?;
    assert!(said.contains("broken.toml"), "{said}");
    let missing = lab.path().join("missing.toml");
    let said = refused(command(lab.path())?.arg("up").arg("--config").arg(&missing), 2)?;
    assert!(said.contains("missing.toml"), "{said}");
    let said = refused(command(lab.path())?.arg("up").env("WHERRY_GATEWAY", "nowhere"), 2)?;
    assert!(said.contains("WHERRY_GATEWAY") && said.contains("nowhere"), "{said}");
    let said = refused(command(lab.path())?.args(["up", "--gateway", "nowhere"]), 2)?;
    assert!(said.contains("--gateway") && said.contains("nowhere"), "{said}");
    Ok(())
}

#[test]
fn a_broken_identity_is_named_and_never_replaced() -> Result<()> {
    let mut site = site()?;
    site.node.stop()?;
    let identity = site.node.data().join("identity");
    let good = std::fs::read(&identity)?;
    assert_eq!(std::fs::metadata(&identity)?.permissions().mode() & 0o777, 0o600);
    for bad in [&good[..good.len() / 2], b"", b"not a key"] {
        std::fs::write(&identity, bad)?;
        let mut up = site.node.command()?;
        let said =
            refused(up.args(["up", "--no-mdns", "--gateway", "127.0.0.1:0", "--status", "127.0.0.1:0"]), 1)?;
        assert!(said.contains("identity"), "should name the file: {said}");
        assert_eq!(std::fs::read(&identity)?, bad, "it was overwritten");
    }
    std::fs::write(&identity, good)?;
    site.node.up()
}

#[test]
fn an_address_in_use_is_named() -> Result<()> {
    let site = site()?;
    let other = site.lab.folder("other")?;
    let taken = site.node.gateway()?.to_string();
    let mut up = command(&other)?;
    let rest = ["--status", "127.0.0.1:0", "--peers", "127.0.0.1:0", "--bulk", "127.0.0.1:0"];
    let said = refused(up.args(["up", "--no-mdns", "--gateway", &taken]).args(rest), 1)?;
    assert!(said.contains(&taken), "{said}");
    Ok(())
}

#[test]
fn a_full_disk_fails_the_one_pull_and_nothing_else() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let small = push_image(origin.addr(), "lab/small", "1", 9, &[100_000])?;
    let large = push_image(origin.addr(), "lab/large", "1", 10, &[96 << 20])?;
    let mut node = Wherry::new(&lab, "node", Options::origin(origin.host()))?;
    mount("lab", node.data(), "tmpfs", MountFlags::empty(), Some(c"size=64m"))?;
    node.up()?;
    node.run(&["pull", &small.reference(origin.host())])?;
    let said = node.fails(&["pull", &large.reference(origin.host())])?;
    let said = said.to_lowercase();
    assert!(said.contains("space") || said.contains("full"), "{said}");
    let gateway = node.gateway()?;
    assert!(blob_is_right(gateway, "lab/small", &small.layers[0])?);
    let after = push_image(origin.addr(), "lab/after", "1", 11, &[1 << 20])?;
    node.run(&["pull", &after.reference(origin.host())])?;
    assert!(blob_is_right(gateway, "lab/after", &after.layers[0])?);
    // Its data folder is unmounted with the lab, so the node has to be gone first.
    node.stop()
}

#[test]
fn an_image_above_the_disk_budget_is_refused_in_words() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let large = push_image(origin.addr(), "lab/large", "1", 12, &[20 << 20])?;
    let options = Options::origin(origin.host()).with("--disk-budget").with((10 << 20).to_string());
    let node = Wherry::start(&lab, "node", options)?;
    let said = node.fails(&["pull", &large.reference(origin.host())])?;
    assert!(said.contains("budget"), "{said}");
    let images = node.json(&["images"])?.to_string();
    assert!(!images.contains("lab/large"), "{images}");
    Ok(())
}
