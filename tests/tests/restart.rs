//! Power cuts and polite ends: what a node has is still there, and nothing is fetched twice without need.

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;
use wherry_tests::blobs::{Image, Noise, blob_is_right, push_image};
use wherry_tests::http::{Request, get};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, STOP, Wherry, refused};
use wherry_tests::process::output;
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

const LAYER: u64 = 64 << 20;

/// What one power cut may make the origin send again: chunks that were read, but neither on the disk nor recorded.
/// Eight chunks of 512 KiB, the largest there are.
const IN_FLIGHT: u64 = 4 << 20;

struct Site {
    node: Wherry,
    relay: Relay,
    image: Image,
    origin: Registry,
    lab: Lab,
}

fn site() -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 4, &[LAYER])?;
    let relay = Relay::start(origin.addr())?;
    let node = Wherry::start(&lab, "node", Options::origin(relay.host()))?;
    Ok(Site { node, relay, image, origin, lab })
}

impl Site {
    fn layer(&self) -> Digest {
        self.image.layers[0].digest
    }

    fn path(&self) -> String {
        format!("/v2/lab/noise/blobs/{}", self.layer())
    }

    fn pull(&self) -> Result<()> {
        self.node.run(&["pull", &self.image.reference(self.relay.host())]).map(drop)
    }

    /// Starts a pull, and kills the node when the relay has sent `total` bytes in all.
    fn pull_and_kill_at(&mut self, total: u64) -> Result<()> {
        self.relay.gate_at(total);
        let mut pull = self.node.command()?;
        pull.args(["pull", &self.image.reference(self.relay.host())]);
        let pull = std::thread::spawn(move || output(&mut pull));
        wait_until("the gate is reached", SOON, || {
            ensure!(!pull.is_finished(), "the pull ended before {total} bytes were sent");
            Ok(self.relay.sent_total() >= total)
        })?;
        self.node.kill()?;
        let pull = pull.join().ok().context("the pull")??;
        assert_eq!(pull.status.code(), Some(1), "a pull whose node is gone must fail: {pull:?}");
        self.relay.open_gate();
        self.node.up()
    }
}

#[test]
fn after_each_of_many_power_cuts_a_pull_goes_on_where_it_was() -> Result<()> {
    let mut site = site()?;
    // The layer leaves slowly enough that what was sent is also received when the power goes.
    site.relay.pace(64 << 20);
    let points = [0.001, 0.01, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.99];
    let size = site.image.size();
    let mut cuts = 0;
    for point in points {
        let total = (size as f64 * point) as u64;
        if total <= site.relay.sent_total() {
            continue;
        }
        site.pull_and_kill_at(total)?;
        cuts += 1;
        assert_eq!(get(site.node.gateway()?, "/v2/")?.status, 200);
    }
    site.pull()?;
    assert!(blob_is_right(site.node.gateway()?, "lab/noise", &site.image.layers[0])?);
    let sent = site.relay.sent_total();
    assert!(
        sent <= size + cuts * IN_FLIGHT,
        "{sent} bytes left the origin for {size}, with {cuts} power cuts"
    );
    assert!(cuts >= 5, "only {cuts} power cuts hit the pull");
    Ok(())
}

#[test]
fn power_cuts_at_any_moment_lose_nothing_that_was_whole() -> Result<()> {
    let rounds = if std::env::var_os("WHERRY_LONG").is_some() { 60 } else { 6 };
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let relay = Relay::start(origin.addr())?;
    let mut node = Wherry::start(&lab, "node", Options::origin(relay.host()))?;
    let mut moments = Noise::new(u64::from(std::process::id()), u64::MAX);
    for round in 0..rounds {
        // Many blobs, so that some are being finished and recorded when the power goes.
        let sizes: Vec<u64> = (1..=24_u64).map(|i| i * i * 2_500).collect();
        let image = push_image(origin.addr(), &format!("lab/noise-{round}"), "1", 1000 + round, &sizes)?;
        let mut random = [0; 8];
        moments.read_exact(&mut random)?;
        let moment = relay.sent_total() + u64::from_le_bytes(random) % image.size();
        let mut pull = node.command()?;
        pull.args(["pull", &image.reference(relay.host())]);
        let pull = std::thread::spawn(move || output(&mut pull));
        wait_until("the moment has come", SOON, || Ok(relay.sent_total() >= moment))?;
        node.kill()?;
        pull.join().ok().context("the pull")??;
        node.up()?;
        node.run(&["pull", &image.reference(relay.host())])?;
        for blob in image.blobs() {
            let right = blob_is_right(node.gateway()?, &image.repository, &blob)?;
            ensure!(right, "round {round}, cut after {moment} bytes: {blob:?}");
        }
    }
    Ok(())
}

#[test]
fn what_reached_the_store_is_served_after_a_power_cut_with_every_cable_cut() -> Result<()> {
    let mut site = site()?;
    site.pull()?;
    site.node.kill()?;
    site.origin.stop()?;
    site.relay.cut();
    site.node.up()?;
    let gateway = site.node.gateway()?;
    for blob in site.image.blobs() {
        assert!(blob_is_right(gateway, "lab/noise", &blob)?);
    }
    let by_tag = get(gateway, "/v2/lab/noise/manifests/1")?;
    assert_eq!((by_tag.status, Digest::sha256(&by_tag.body)), (200, site.image.manifest));
    Ok(())
}

#[test]
fn an_origin_that_goes_away_half_way_and_comes_back_costs_no_byte_twice() -> Result<()> {
    let mut site = site()?;
    site.relay.pace(64 << 20);
    site.relay.gate_at(LAYER / 2);
    let mut download = Request::new(site.node.gateway()?, "GET", &site.path()).open()?;
    let mut start = vec![0; (LAYER / 4) as usize];
    download.read_exact(&mut start)?;
    wait_until("the gate is reached", SOON, || Ok(site.relay.sent_total() == LAYER / 2))?;
    site.origin.stop()?;
    site.relay.cut();
    site.relay.open_gate();
    // Whether this client's answer survives depends on how long the cloud stays away; its bytes must be right.
    let mut rest = Vec::new();
    let _ = download.read_to_end(&mut rest);
    site.origin.restart()?;
    site.pull()?;
    assert!(blob_is_right(site.node.gateway()?, "lab/noise", &site.image.layers[0])?);
    let sent = site.relay.sent(&site.layer());
    assert!(sent <= LAYER + IN_FLIGHT, "{sent} bytes left the origin for a layer of {LAYER}");
    Ok(())
}

#[test]
fn sigterm_lets_a_client_finish_what_it_reads_and_then_ends_the_node() -> Result<()> {
    let mut site = site()?;
    ensure!(get(site.node.gateway()?, "/v2/lab/noise/manifests/1")?.status == 200, "the manifest");
    site.relay.gate_at(LAYER / 2);
    let mut download = Request::new(site.node.gateway()?, "GET", &site.path()).open()?;
    let mut body = vec![0; (LAYER / 4) as usize];
    download.read_exact(&mut body)?;
    let gateway = site.node.gateway()?;
    site.node.process()?.signal(rustix::process::Signal::TERM)?;
    wait_until("the node takes no new clients", SOON, || Ok(get(gateway, "/v2/").is_err()))?;
    site.relay.open_gate();
    download.read_to_end(&mut body).context("the client was cut off")?;
    assert_eq!(Digest::sha256(&body), site.layer());
    // A second signal would mean: at once.
    let status = site.node.process()?.wait_exit(STOP)?;
    assert!(status.success(), "the node ended with {status}");
    Ok(())
}

#[test]
fn sigterm_ends_a_node_in_time_whose_origin_hangs() -> Result<()> {
    let mut site = site()?;
    site.relay.gate_at(LAYER / 2);
    ensure!(get(site.node.gateway()?, "/v2/lab/noise/manifests/1")?.status == 200, "the manifest");
    let mut download = Request::new(site.node.gateway()?, "GET", &site.path()).open()?;
    download.read_exact(&mut vec![0; 1 << 20])?;
    let start = Instant::now();
    site.node.stop()?;
    assert!(start.elapsed() < STOP);
    let mut rest = Vec::new();
    assert!(download.read_to_end(&mut rest).is_err(), "a blob that never arrived was given as whole");
    site.relay.open_gate();
    site.node.up()?;
    site.pull()?;
    let sent = site.relay.sent(&site.layer());
    assert!(sent <= LAYER + IN_FLIGHT, "{sent} bytes left the origin for a layer of {LAYER}");
    Ok(())
}

#[test]
fn a_data_folder_has_one_node_at_a_time() -> Result<()> {
    let site = site()?;
    let mut second = site.node.command()?;
    second.arg("up");
    for service in ["--gateway", "--status", "--peers", "--bulk"] {
        second.args([service, "127.0.0.1:0"]);
    }
    let control = site.lab.path().join("second.sock");
    second.arg("--no-mdns").arg("--data").arg(site.node.data()).arg("--control").arg(control);
    let said = refused(&mut second, 1)?;
    assert!(said.contains(&site.node.data().display().to_string()), "should name the folder: {said}");
    site.pull()
}
