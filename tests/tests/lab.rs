//! The lab itself, without wherry: what the other tests take for granted about origins, clients, images and faults.

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;
use wherry_tests::access::Accesses as _;
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::clients::{Docker, Podman, Skopeo};
use wherry_tests::http::{Request, get};
use wherry_tests::images::{GREETING, Images};
use wherry_tests::lab::Lab;
use wherry_tests::netns::Alone;
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::{Fault, Relay};
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn skopeo_and_podman_pull_from_the_origin_and_podman_runs_it() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    for image in [&images.teaching, &images.by_podman, &images.second] {
        let pulled = skopeo.pull(&image.reference(origin.host()), &image.repository.replace('/', "-"))?;
        pulled.check(image)?;
        assert!(pulled.check(&images.base).is_err(), "an image passed for another");
    }
    let podman = Podman::new(&lab, "podman")?;
    let reference = images.teaching.reference(origin.host());
    assert_eq!(podman.pull(&reference)?, images.teaching.config.digest.hex());
    assert_eq!(podman.digest(&reference)?, images.teaching.manifest.to_string());
    assert_eq!(podman.run(&reference, &[])?.trim(), GREETING);
    assert_eq!(podman.run(&reference, &["app.py", "hello"])?.trim(), "app.py hello");
    Ok(())
}

#[test]
fn docker_pulls_from_the_origin_and_from_a_mirror_of_the_hub_and_runs_it() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let docker = Docker::start(&lab, "docker", &[format!("http://{}", origin.host())])?;
    for reference in ["teaching:1", &images.teaching.reference(origin.host())] {
        docker.pull(reference)?;
        let (id, names) = docker.digests(reference)?;
        assert_eq!(id, images.teaching.config.digest.to_string());
        assert!(names.ends_with(&format!("@{}", images.teaching.manifest)), "{names}");
        assert_eq!(docker.run(reference, &[])?.trim(), GREETING);
    }
    assert!(docker.pull("no-such-image-anywhere:1").is_err(), "who answered that?");
    Ok(())
}

#[test]
fn an_origin_that_was_stopped_comes_back_on_its_port_with_its_log() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 1, &[300_001, 70_000])?;
    assert_eq!(Image::read(origin.addr(), "lab/noise", "1")?.manifest, image.manifest);
    let addr = origin.addr();
    assert!(blob_is_right(addr, "lab/noise", &image.layers[0])?);
    origin.stop()?;
    assert!(get(addr, "/v2/").is_err());
    origin.restart()?;
    assert_eq!(origin.addr(), addr);
    assert!(blob_is_right(addr, "lab/noise", &image.layers[0])?);
    let path = format!("/v2/lab/noise/blobs/{}", image.layers[0].digest);
    let part = Request::new(addr, "GET", &path).header("Range", "bytes=100-199").send_and_read()?;
    assert_eq!((part.status, part.body.len()), (206, 100));
    // The log is written after the answer.
    let layer = image.layers[0].digest;
    wait_until("the log has three reads", SOON, || Ok(origin.accesses()?.reads_of(&layer) == 3))?;
    let log = origin.accesses()?;
    assert_eq!(log.bytes_of(&layer), 2 * 300_001 + 100);
    assert_eq!(log.reads_of(&image.layers[1].digest), 0);
    assert_eq!(log.manifest_reads(), 1);
    Ok(())
}

#[test]
fn an_origin_with_a_password_lets_nobody_in_without_it() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let options = registry::Options { password: true, ..registry::Options::default() };
    let origin = Registry::start(&lab, "origin", options)?;
    assert_eq!(get(origin.addr(), "/v2/")?.status, 401);
    let open = images.origin(&lab, "open")?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let to = format!("docker://{}", images.second.reference(origin.host()));
    assert!(skopeo.copy(&format!("docker://{}", images.second.reference(open.host())), &to).is_err());
    let credentials = format!("{}:{}", registry::USER, registry::PASSWORD);
    let mut login = skopeo.command();
    login.args([
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--dest-creds",
        &credentials,
    ]);
    wherry_tests::process::run(
        login.args([&format!("docker://{}", images.second.reference(open.host())), &to]),
    )?;
    Ok(())
}

struct Relayed {
    relay: Relay,
    path: String,
    layer: Digest,
    size: u64,
    // Dropped after the relay that stands before it, and the folder last.
    _origin: Registry,
    _lab: Lab,
}

fn relayed() -> Result<Relayed> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 2, &[1_000_000])?;
    let relay = Relay::start(origin.addr())?;
    let layer = image.layers[0];
    ensure!(blob_is_right(relay.addr(), "lab/noise", &layer)?, "the relay is to be true by default");
    let path = format!("/v2/lab/noise/blobs/{}", layer.digest);
    Ok(Relayed { relay, path, layer: layer.digest, size: layer.size, _origin: origin, _lab: lab })
}

#[test]
fn a_relay_lies_as_it_is_told() -> Result<()> {
    let it = relayed()?;
    let ask = |range: Option<&str>| {
        let request = Request::new(it.relay.addr(), "GET", &it.path);
        match range {
            Some(range) => request.header("Range", range).send_and_read(),
            None => request.send_and_read(),
        }
    };
    let truth = ask(None)?.body;
    assert_eq!(ask(Some("bytes=500000-500099"))?.body, truth[500_000..500_100]);

    it.relay.fault(it.layer, Fault::WrongByte(500_050));
    let wrong = ask(None)?.body;
    let differing: Vec<usize> = (0..truth.len()).filter(|&i| truth[i] != wrong[i]).collect();
    assert_eq!((wrong.len(), differing), (truth.len(), vec![500_050]));
    let part = ask(Some("bytes=500000-500099"))?;
    assert_eq!((part.status, part.body.len()), (206, 100));
    assert_eq!(part.body[50] ^ 1, truth[500_050]);

    it.relay.fault(it.layer, Fault::IgnoresRange);
    let all = ask(Some("bytes=500000-"))?;
    assert_eq!((all.status, all.body.len()), (200, truth.len()));

    it.relay.fault(it.layer, Fault::WrongRange);
    let part = ask(Some("bytes=500000-500099"))?;
    assert_eq!((part.status, part.header("Content-Range")), (206, Some("bytes 500000-500099/1000000")));
    assert_eq!(part.body, truth[..100]);

    it.relay.fault(it.layer, Fault::TooFew(10));
    assert_eq!(ask(None)?.body, truth[..truth.len() - 10]);
    it.relay.fault(it.layer, Fault::TooMany(10));
    assert_eq!(ask(None)?.body.len(), truth.len() + 10);

    it.relay.fault(it.layer, Fault::EndsEarly(400_000));
    let mut download = Request::new(it.relay.addr(), "GET", &it.path).open()?;
    let mut got = Vec::new();
    assert!(download.read_to_end(&mut got).is_err());
    assert_eq!(got, truth[..400_000]);

    it.relay.fault(it.layer, Fault::Refuses(503));
    assert_eq!(ask(None)?.status, 503);
    it.relay.heal();
    assert_eq!(ask(None)?.body, truth);
    it.relay.replace("/v2/lab/noise/manifests/1", "text/plain", b"something else");
    assert_eq!(get(it.relay.addr(), "/v2/lab/noise/manifests/1")?.text(), "something else");
    Ok(())
}

#[test]
fn a_relay_holds_at_its_gate_and_keeps_its_pace() -> Result<()> {
    let it = relayed()?;
    let before = it.relay.sent_total();
    it.relay.gate_at(before + 300_000);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| get(it.relay.addr(), &it.path));
        wait_until("the gate is reached", SOON, || Ok(it.relay.sent_total() == before + 300_000))?;
        assert!(!reader.is_finished());
        it.relay.open_gate();
        let answer = reader.join().ok().context("the reader")??;
        assert_eq!(Digest::sha256(&answer.body), it.layer);
        anyhow::Ok(())
    })?;
    assert_eq!(it.relay.sent(&it.layer), 2 * it.size);

    it.relay.pace(4_000_000);
    let start = Instant::now();
    assert_eq!(get(it.relay.addr(), &it.path)?.body.len() as u64, it.size);
    assert!(start.elapsed() > Duration::from_millis(230), "1 MB at 4 MB/s took {:?}", start.elapsed());

    it.relay.gate_at(it.relay.sent_total() + 100_000);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| get(it.relay.addr(), &it.path));
        let gate = before + 2 * it.size + 100_000;
        wait_until("the gate is reached", SOON, || Ok(it.relay.sent_total() == gate))?;
        it.relay.cut();
        ensure!(reader.join().ok().context("the reader")?.is_err(), "a cut connection gave a whole answer");
        Ok(())
    })
}

#[test]
fn a_network_of_ones_own_is_as_slow_as_it_is_told_and_nobody_else_is_in_it() -> Result<()> {
    let lab = Lab::new()?;
    let outside = Registry::start(&lab, "outside", registry::Options::default())?;
    let wire = Alone::enter()?;
    assert!(get(outside.addr(), "/v2/").is_err(), "the machine's own loopback can be reached");
    let inside = Registry::start(&lab, "inside", registry::Options::default())?;
    let image = push_image(inside.addr(), "lab/noise", "1", 13, &[4_000_000])?;
    wire.shape("80mbit")?;
    let start = Instant::now();
    assert!(blob_is_right(inside.addr(), "lab/noise", &image.layers[0])?);
    assert!(start.elapsed() > Duration::from_millis(350), "4 MB at 10 MB/s took {:?}", start.elapsed());
    Ok(())
}
