//! The main job: an image reaches a site once, then every machine in it, with the cloud cut off.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;
use wherry_tests::access::Accesses as _;
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::clients::{Docker, Podman, Skopeo};
use wherry_tests::http::{Request, get};
use wherry_tests::images::{GREETING, Images};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

/// A has all images, B has none, and the origin is gone.
struct CutOff {
    b: Wherry,
    _a: Wherry,
    images: Images,
    lab: Lab,
}

fn cut_off() -> Result<CutOff> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let mut origin = images.origin(&lab, "origin")?;
    let network = Network::new(&lab)?;
    let options = Options::origin(origin.host());
    let a = network.member(&lab, "a", options.clone(), &[])?;
    for image in [&images.teaching, &images.by_podman, &images.second] {
        a.run(&["pull", &image.reference(origin.host())])?;
    }
    origin.stop()?;
    let b = network.member(&lab, "b", options, &[&a])?;
    Ok(CutOff { b, _a: a, images, lab })
}

#[test]
fn skopeo_pulls_from_b_what_a_has_while_the_origin_is_stopped() -> Result<()> {
    let it = cut_off()?;
    let skopeo = Skopeo::new(&it.lab, "skopeo")?;
    let gateway = it.b.gateway()?;
    for image in [&it.images.teaching, &it.images.by_podman, &it.images.second] {
        skopeo.pull(&image.reference(gateway), &image.repository.replace('/', "-"))?.check(image)?;
    }
    Ok(())
}

#[test]
fn podman_pulls_from_b_what_a_has_while_the_origin_is_stopped_and_runs_it() -> Result<()> {
    let it = cut_off()?;
    let podman = Podman::new(&it.lab, "podman")?;
    for image in [&it.images.teaching, &it.images.by_podman] {
        let reference = image.reference(it.b.gateway()?);
        assert_eq!(podman.pull(&reference)?, image.config.digest.hex());
        assert_eq!(podman.digest(&reference)?, image.manifest.to_string());
        assert_eq!(podman.run(&reference, &[])?.trim(), GREETING);
    }
    Ok(())
}

#[test]
fn docker_pulls_from_b_what_a_has_while_the_origin_is_stopped_and_runs_it() -> Result<()> {
    let it = cut_off()?;
    let gateway = it.b.gateway()?;
    // By its own name, and as the Hub's, for which B's gateway is the mirror.
    let docker = Docker::start(&it.lab, "docker", &[format!("http://{gateway}")])?;
    for reference in [&it.images.teaching.reference(gateway), "teaching:1"] {
        docker.pull(reference)?;
        let (id, names) = docker.digests(reference)?;
        assert_eq!(id, it.images.teaching.config.digest.to_string());
        assert!(names.contains(&format!("@{}", it.images.teaching.manifest)), "{names}");
        assert_eq!(docker.run(reference, &[])?.trim(), GREETING);
    }
    Ok(())
}

#[test]
fn a_base_layer_that_two_images_share_travels_once() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let mut origin = images.origin(&lab, "origin")?;
    let network = Network::new(&lab)?;
    let a = network.member(&lab, "a", Options::origin(origin.host()), &[])?;
    let b = network.member(&lab, "b", Options::origin(origin.host()), &[&a])?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    for (image, name) in [(&images.teaching, "teaching"), (&images.second, "second")] {
        skopeo.pull(&image.reference(a.gateway()?), &format!("{name}-a"))?.check(image)?;
    }
    origin.stop()?;
    let base = &images.base.layers[0];
    let log = origin.accesses()?;
    assert_eq!((log.reads_of(&base.digest), log.bytes_of(&base.digest)), (1, base.size));
    for (image, name) in [(&images.teaching, "teaching"), (&images.second, "second")] {
        skopeo.pull(&image.reference(b.gateway()?), &format!("{name}-b"))?.check(image)?;
    }
    let from_peers = bytes_from_peers(&b)?;
    let both = images.teaching.size() + images.second.size() - base.size;
    // Manifests come from peers too, and some chunk may have been asked of two at the end.
    let most = both + base.size / 10;
    assert!((both..most).contains(&from_peers), "{from_peers} bytes came from peers, {both} were needed");
    Ok(())
}

fn bytes_from_peers(node: &Wherry) -> Result<u64> {
    let status = node.json(&["status"])?;
    status["traffic"]["from_peers"].as_u64().with_context(|| format!("status --json: {status:#}"))
}

#[test]
fn ten_clients_of_one_cold_node_cost_the_origin_each_blob_once() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let mut origin = images.origin(&lab, "origin")?;
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    let reference = images.teaching.reference(node.gateway()?);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..10)
            .map(|i| {
                let (lab, reference, image) = (&lab, &reference, &images.teaching);
                scope.spawn(move || {
                    Skopeo::new(lab, &format!("skopeo-{i}"))?.pull(reference, "pulled")?.check(image)
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().ok().context("a client panicked")?)
    })?;
    origin.stop()?;
    let log = origin.accesses()?;
    for blob in images.teaching.blobs() {
        assert_eq!((log.reads_of(&blob.digest), log.bytes_of(&blob.digest)), (1, blob.size), "{blob:?}");
    }
    Ok(())
}

/// A node whose origin stands behind a relay and has one image of one layer.
struct Slow {
    node: Wherry,
    image: Image,
    path: String,
    relay: Relay,
    _origin: Registry,
    _lab: Lab,
}

fn slow(size: u64) -> Result<Slow> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 3, &[size])?;
    let relay = Relay::start(origin.addr())?;
    let node = Wherry::start(&lab, "node", Options::origin(relay.host()))?;
    let path = format!("/v2/lab/noise/blobs/{}", image.layers[0].digest);
    // A digest alone is not a capability: a client reads the manifest first.
    ensure!(get(node.gateway()?, "/v2/lab/noise/manifests/1")?.status == 200, "the manifest");
    Ok(Slow { node, image, path, relay, _origin: origin, _lab: lab })
}

#[test]
fn a_client_reads_the_start_of_a_blob_while_its_end_is_still_in_the_cloud() -> Result<()> {
    let it = slow(16 << 20)?;
    it.relay.gate_at(8 << 20);
    let mut download = Request::new(it.node.gateway()?, "GET", &it.path).open()?;
    assert_eq!(download.status, 200);
    assert_eq!(download.header("Content-Length"), Some("16777216"));
    assert_eq!(
        download.header("Docker-Content-Digest"),
        Some(it.image.layers[0].digest.to_string().as_str())
    );
    let mut body = vec![0; 7 << 20];
    download.read_exact(&mut body).context("the first 7 MiB with 8 MiB at hand")?;
    it.relay.open_gate();
    download.read_to_end(&mut body)?;
    assert_eq!(Digest::sha256(&body), it.image.layers[0].digest);
    assert_eq!(it.relay.sent(&it.image.layers[0].digest), it.image.layers[0].size);
    Ok(())
}

#[test]
fn a_transfer_goes_on_when_its_only_client_leaves() -> Result<()> {
    let it = slow(16 << 20)?;
    it.relay.gate_at(4 << 20);
    let mut download = Request::new(it.node.gateway()?, "GET", &it.path).open()?;
    download.read_exact(&mut vec![0; 1 << 20])?;
    drop(download);
    it.relay.open_gate();
    let layer = it.image.layers[0];
    wait_until("the whole layer has left the origin", SOON, || {
        Ok(it.relay.sent(&layer.digest) == layer.size)
    })?;
    assert!(blob_is_right(it.node.gateway()?, "lab/noise", &layer)?);
    assert_eq!(it.relay.sent(&layer.digest), layer.size, "it was read from the origin again");
    Ok(())
}

#[test]
fn ranges_and_heads_of_a_stored_blob_are_answered_as_registries_do() -> Result<()> {
    let it = slow(1_000_000)?;
    let (gateway, layer) = (it.node.gateway()?, it.image.layers[0]);
    let whole = get(gateway, &it.path)?.body;
    assert_eq!(Digest::sha256(&whole), layer.digest);
    let ask = |range: &str| Request::new(gateway, "GET", &it.path).header("Range", range).send_and_read();
    for (range, first, last) in [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, 999_999),
        ("bytes=65535-65536", 65_535, 65_536),
        ("bytes=999999-", 999_999, 999_999),
        ("bytes=999000-2000000", 999_000, 999_999),
        ("bytes=-500", 999_500, 999_999),
        ("bytes=-2000000", 0, 999_999),
    ] {
        let part = ask(range)?;
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(
            part.header("Content-Range"),
            Some(format!("bytes {first}-{last}/1000000").as_str()),
            "{range}"
        );
        assert!(part.body == whole[first..=last], "{range}: wrong bytes");
    }
    for range in ["bytes=1000000-", "bytes=5000000-6000000", "bytes=-0"] {
        let refused = ask(range)?;
        assert_eq!(
            (refused.status, refused.header("Content-Range")),
            (416, Some("bytes */1000000")),
            "{range}"
        );
    }
    let head = Request::new(gateway, "HEAD", &it.path).send_and_read()?;
    assert_eq!((head.status, head.header("Content-Length"), head.body.len()), (200, Some("1000000"), 0));
    assert_eq!(head.header("Docker-Content-Digest"), Some(layer.digest.to_string().as_str()));
    let tags = get(gateway, "/v2/lab/noise/tags/list")?;
    assert_eq!((tags.status, tags.text().contains("\"1\"")), (200, true), "{}", tags.text());
    Ok(())
}
