//! An origin that gets out of reach in the middle of a layer: a pull waits for it and says so, clients of the gateway do not.

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::http::Request;
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::Process;
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(60);

const LAYER: u64 = 8 << 20;

/// How much of it passes before the origin goes away.
const GATE: u64 = 4 << 20;

/// How long the origin is away: longer than one reading of it is taken up again.
const AWAY: Duration = Duration::from_secs(15);

/// Registry clients give up on headers after 10 s at the earliest.
const HEADERS: Duration = Duration::from_secs(10);

struct Site {
    node: Wherry,
    relay: Relay,
    image: Image,
    reference: String,
    origin: Registry,
    network: Network,
    lab: Lab,
}

fn site() -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 120, &[LAYER])?;
    let relay = Relay::start(origin.addr())?;
    let network = Network::new(&lab)?;
    let node = network.member(&lab, "node", Options::origin(relay.host()), &[])?;
    relay.gate_at(GATE);
    let reference = image.reference(relay.host());
    Ok(Site { node, relay, image, reference, origin, network, lab })
}

impl Site {
    fn begin(&self, name: &str, wait: &[&str]) -> Result<Process> {
        self.node.begin(name, &[&["pull", &self.reference], wait].concat())
    }

    /// In the middle of the layer the origin is gone.
    fn goes_away(&mut self) -> Result<()> {
        wait_until("the gate is reached", SOON, || Ok(self.relay.sent_total() >= GATE))?;
        self.origin.stop()?;
        self.relay.cut();
        self.relay.open_gate();
        Ok(())
    }

    fn waits(&self, pull: &Process) -> Result<()> {
        let expected = format!("waiting: {}/lab/noise is out of reach: ", self.relay.host());
        wait_until("the pull says what it waits for", SOON, || Ok(pull.stderr()?.contains(&expected)))
    }

    fn is_right(&self, pull: &mut Process) -> Result<()> {
        ensure!(pull.wait_exit(SOON)?.success(), "{}", pull.tail());
        for blob in self.image.blobs() {
            ensure!(blob_is_right(self.node.gateway()?, "lab/noise", &blob)?, "{blob:?} is wrong");
        }
        let sent = self.relay.sent(&self.image.layers[0].digest);
        ensure!(sent < LAYER + LAYER / 4, "{sent} bytes were sent for a layer of {LAYER}");
        Ok(())
    }
}

#[test]
fn a_pull_waits_for_an_origin_that_went_away_says_so_and_goes_on_where_it_was() -> Result<()> {
    let mut site = site()?;
    let mut pull = site.begin("pull", &[])?;
    let path = format!("/v2/lab/noise/blobs/{}", site.image.layers[0].digest);
    wait_until("the gate is reached", SOON, || Ok(site.relay.sent_total() >= GATE))?;
    let mut reader = Request::new(site.node.gateway()?, "GET", &path).open()?;
    assert_eq!(reader.status, 200);
    site.goes_away()?;
    let gone = Instant::now();
    site.waits(&pull)?;
    let said = pull.stderr()?;
    assert!(said.contains("; trying again for "), "{said}");
    let host = site.relay.host();
    let said = site.node.run(&["why", &site.reference])?;
    let expected = format!("waits until {host}/lab/noise is in reach again, ");
    assert!(said.contains(&expected) && !said.contains("nobody pulls"), "{said}");

    // A client that reads the layer is sent away, and one that asks for it now is told why.
    let mut body = Vec::new();
    let whole = reader.read_to_end(&mut body).is_ok();
    assert!(!whole && (body.len() as u64) < LAYER, "{} bytes came", body.len());
    let asked = Instant::now();
    let answer = Request::new(site.node.gateway()?, "GET", &path)
        .header("Range", format!("bytes={GATE}-"))
        .send_and_read()?;
    assert!(asked.elapsed() < HEADERS, "{:?}", asked.elapsed());
    assert_eq!(answer.status, 503, "{}", answer.text());

    wait_until("it was away for long", SOON, || {
        ensure!(pull.runs()?, "the pull has given up: {}", pull.tail());
        Ok(gone.elapsed() >= AWAY)
    })?;
    site.origin.restart()?;
    site.is_right(&mut pull)
}

#[test]
fn while_the_origin_is_away_another_machine_that_has_the_layer_gives_the_rest() -> Result<()> {
    let mut site = site()?;
    let mut pull = site.begin("pull", &[])?;
    site.goes_away()?;
    site.waits(&pull)?;
    // It has come there in another way.
    let other = site.network.member(&site.lab, "other", Options::origin(site.relay.host()), &[&site.node])?;
    site.origin.restart()?;
    let archive = site.lab.folder("archive")?.join("image.tar");
    let source = Wherry::start(&site.lab, "source", Options::origin(site.origin.host()))?;
    source.run(&["pull", &site.image.reference(site.origin.host())])?;
    let file = archive.to_str().context("a path in UTF-8")?;
    source.run(&["export", &site.image.reference(site.origin.host()), "-o", file])?;
    site.origin.stop()?;
    other.run(&["import", file])?;
    site.is_right(&mut pull)
}

#[test]
fn a_pull_that_waits_ends_with_its_time_with_ctrl_c_and_with_cancel() -> Result<()> {
    let mut site = site()?;
    let mut pull = site.begin("pull", &["--wait", "0s"])?;
    site.goes_away()?;
    assert_eq!(pull.wait_exit(SOON)?.code(), Some(1));
    let said = pull.stderr()?;
    assert!(said.contains(&site.relay.host()) && said.contains("pull again to go on"), "{said}");

    let began = Instant::now();
    let mut pull = site.begin("pull-for-a-while", &["--wait", "4s"])?;
    assert_eq!(pull.wait_exit(SOON)?.code(), Some(1));
    assert!(began.elapsed() >= Duration::from_secs(4), "it gave up after {:?}", began.elapsed());

    // Where it is out of reach from the start nobody hopes for it without being told to.
    let began = Instant::now();
    let mut pull = site.begin("pull-at-once", &[])?;
    assert_eq!(pull.wait_exit(SOON)?.code(), Some(1));
    assert!(began.elapsed() < SOON / 2, "it gave up after {:?}", began.elapsed());

    let mut pull = site.begin("pull-interrupted", &["--wait", "10m"])?;
    site.waits(&pull)?;
    pull.signal(Signal::INT)?;
    assert_eq!(pull.wait_exit(SOON)?.code(), Some(130));
    let mut pull = site.begin("pull-cancelled", &["--wait", "10m"])?;
    site.waits(&pull)?;
    site.node.run(&["cancel", &site.reference])?;
    assert_eq!(pull.wait_exit(SOON)?.code(), Some(1));
    site.origin.restart()?;
    let mut pull = site.begin("pull-again", &[])?;
    site.is_right(&mut pull)
}
