//! Peers that die, hang or never come: what they began is ended by others, or fails in words.

use std::process::Output;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::http::get;
use wherry_tests::lab::Lab;
use wherry_tests::netns::Alone;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::output;
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

const LAYER: u64 = 64 << 20;

/// Slow enough that there is time to do something in the middle: the layer takes 2.7 s.
const RATE: &str = "200mbit";

/// How much longer a pull may take because a sender has to be replaced.
const REPLACED: Duration = Duration::from_secs(15);

/// Nodes that hold an image, an origin that is stopped, and one node that wants it.
struct Site {
    holders: Vec<Wherry>,
    taker: Wherry,
    image: Image,
    reference: String,
    _network: Network,
    _origin: Registry,
    _lab: Lab,
    wire: Alone,
}

fn site(holders: usize) -> Result<Site> {
    let wire = Alone::enter()?;
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 50, &[LAYER])?;
    let reference = image.reference(origin.host());
    let network = Network::new(&lab)?;
    let options = Options::origin(origin.host());
    let mut nodes: Vec<Wherry> = Vec::new();
    for i in 0..holders {
        let known: Vec<&Wherry> = nodes.iter().collect();
        let node = network.member(&lab, &format!("holder-{i}"), options.clone(), &known)?;
        node.run(&["pull", &reference])?;
        nodes.push(node);
    }
    origin.stop()?;
    let known: Vec<&Wherry> = nodes.iter().collect();
    let taker = network.member(&lab, "taker", options, &known)?;
    wire.shape(RATE)?;
    Ok(Site { holders: nodes, taker, image, reference, _network: network, _origin: origin, _lab: lab, wire })
}

impl Site {
    /// Starts a pull and returns when an eighth of the layer is there.
    fn pull_to_an_eighth(&self) -> Result<JoinHandle<Result<Output>>> {
        let mut pull = self.taker.command()?;
        pull.args(["pull", "--wait", "0s", &self.reference]);
        let pull = std::thread::spawn(move || output(&mut pull));
        wait_until("an eighth of the layer is there", SOON, || {
            ensure!(!pull.is_finished(), "the pull ended too early to be disturbed");
            let status = self.taker.json(&["status"])?;
            let bytes = status["transfers"].as_array().context("no transfers")?.iter();
            Ok(bytes.filter_map(|transfer| transfer["bytes"].as_u64()).sum::<u64>() >= LAYER / 8)
        })?;
        Ok(pull)
    }

    fn ends_right(&self, pull: JoinHandle<Result<Output>>) -> Result<()> {
        let pull = pull.join().ok().context("the pull panicked")??;
        ensure!(pull.status.success(), "the pull failed: {}", String::from_utf8_lossy(&pull.stderr));
        self.wire.shape("10gbit")?;
        ensure!(blob_is_right(self.taker.gateway()?, "lab/noise", &self.image.layers[0])?, "wrong bytes");
        Ok(())
    }

    fn nobody_is_banned(&self) -> Result<()> {
        let log = self.taker.log()?;
        ensure!(!log.contains("banned"), "nobody lied, and yet somebody was banned:\n{log}");
        Ok(())
    }
}

#[test]
fn a_peer_that_dies_in_the_middle_is_replaced_by_another() -> Result<()> {
    let mut site = site(2)?;
    let pull = site.pull_to_an_eighth()?;
    let start = Instant::now();
    site.holders[0].kill()?;
    site.ends_right(pull)?;
    assert!(start.elapsed() < REPLACED, "it took {:?}", start.elapsed());
    site.nobody_is_banned()
}

#[test]
fn a_peer_that_falls_silent_in_the_middle_is_replaced_by_another() -> Result<()> {
    let mut site = site(2)?;
    let pull = site.pull_to_an_eighth()?;
    let start = Instant::now();
    site.holders[1].process()?.signal(Signal::STOP)?;
    site.ends_right(pull)?;
    assert!(start.elapsed() < REPLACED, "it took {:?}", start.elapsed());
    site.nobody_is_banned()
}

#[test]
fn a_pull_whose_last_source_dies_fails_in_words_and_goes_on_when_it_is_back() -> Result<()> {
    let mut site = site(1)?;
    let pull = site.pull_to_an_eighth()?;
    site.holders[0].kill()?;
    let failed = pull.join().ok().context("the pull panicked")??;
    let said = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains(&site.image.layers[0].digest.short()), "should name the blob: {said}");
    assert_eq!(get(site.taker.gateway()?, "/v2/")?.status, 200);

    site.wire.shape("10gbit")?;
    site.holders[0].up()?;
    let back = site.holders[0].addresses()?.peers.clone();
    site.taker.stop()?;
    site.taker.options().bootstrap = back;
    site.taker.up()?;
    let summary = site.taker.json(&["pull", &site.reference])?;
    assert!(blob_is_right(site.taker.gateway()?, "lab/noise", &site.image.layers[0])?);
    let from_peers = summary["from_peers"].as_u64().with_context(|| format!("{summary}"))?;
    assert!(from_peers < LAYER - LAYER / 16, "{from_peers} bytes: an eighth was there before");
    site.nobody_is_banned()
}

#[test]
fn the_log_says_who_reads_for_the_site_and_who_takes_over_from_whom() -> Result<()> {
    const SIZE: u64 = 8 << 20;
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 52, &[SIZE])?;
    let relay = Relay::start(origin.addr())?;
    let (reference, blob) = (image.reference(relay.host()), image.layers[0].digest.short());
    let network = Network::new(&lab)?;
    let mut nodes = vec![network.member(&lab, "a", Options::origin(relay.host()), &[])?];
    nodes.push(network.member(&lab, "b", Options::origin(relay.host()), &[&nodes[0]])?);
    let lines = |node: &Wherry, parts: &[&str]| -> Result<usize> {
        Ok(node.log()?.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count())
    };
    for node in &nodes {
        let peer = format!("peer={}", node.addresses()?.peer_id);
        assert_eq!(lines(node, &["INFO", "the node is ready", &peer, "version=", "gateway=", "data="])?, 1);
    }
    relay.gate_at(SIZE / 2);
    let mut pulls = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        pulls.push(node.begin(&format!("pull-{i}"), &["pull", &reference])?);
    }
    let reads = ["INFO", "reads a blob from the origin", blob.as_str(), "lab/noise", "chunk=0"];
    wait_until("half of the layer is with both", SOON, || {
        let has = |node: &Wherry| -> Result<bool> {
            let status = node.json(&["status"])?;
            let mut transfers = status["transfers"].as_array().into_iter().flatten();
            Ok(transfers.any(|transfer| transfer["bytes"].as_u64() > Some(SIZE / 4)))
        };
        Ok(has(&nodes[0])? && has(&nodes[1])?)
    })?;
    // Both may have begun; one goes on, and has more of it.
    let read =
        |node: &Wherry| Ok::<_, anyhow::Error>(node.json(&["status"])?["traffic"]["from_origin"].as_u64());
    let leader = usize::from(read(&nodes[1])? > read(&nodes[0])?);
    assert_eq!(lines(&nodes[leader], &reads)?, 1);
    let (dead, heir) = (nodes[leader].addresses()?.peer_id.clone(), 1 - leader);
    nodes[leader].kill()?;
    relay.open_gate();
    assert!(pulls[heir].wait_exit(SOON)?.success(), "{}", pulls[heir].stderr()?);
    assert_eq!(lines(&nodes[heir], &["INFO", "takes over from a leader", &blob, &dead, "it is gone"])?, 1);
    assert_eq!(lines(&nodes[heir], &["INFO", "neighbour gone", &dead])?, 1);
    for words in ["rustls", "https://", "not admitted"] {
        assert_eq!(lines(&nodes[heir], &[words])?, 0, "{words}");
    }
    Ok(())
}

#[test]
fn a_node_of_another_network_gets_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 51, &[1 << 20])?;
    let network = Network::new(&lab)?;
    let a = network.member(&lab, "a", Options::origin(origin.host()), &[])?;
    a.run(&["pull", &image.reference(origin.host())])?;
    origin.stop()?;
    let mut options = Options::origin(origin.host());
    options.bootstrap = a.addresses()?.peers.clone();
    let stranger = Wherry::start(&lab, "stranger", options)?;
    stranger.fails(&["pull", &image.reference(origin.host())])?;
    let path = format!("/v2/lab/noise/blobs/{}", image.layers[0].digest);
    assert!(get(stranger.gateway()?, &path)?.status >= 400);
    Ok(())
}

#[test]
fn of_two_nodes_of_different_networks_each_says_which_its_own_is_and_what_can_be_done() -> Result<()> {
    let lab = Lab::new()?;
    let host = Wherry::start(&lab, "host", Options::default())?;
    let known = host.addresses()?.clone();
    let options = Options { bootstrap: known.peers, ..Options::default() };
    let guest = Wherry::start(&lab, "guest", options)?;
    let network = |node: &Wherry| -> Result<String> {
        Ok(node.json(&["status"])?["network"].as_str().context("network")?.to_owned())
    };
    let (its, guests, guest_id) = (network(&host)?, network(&guest)?, &guest.addresses()?.peer_id);
    let admit = format!("wherry network admit {guest_id}");
    let says = |node: &Wherry, parts: &[&str]| {
        wait_until(&format!("{parts:?} is logged"), SOON, || {
            Ok(node.log()?.lines().any(|line| parts.iter().all(|part| line.contains(part))))
        })
    };
    // Strangers are told nothing, so the guest can only say what it may be.
    says(&host, &["not admitted", &its, &guests, &admit, "network join"])?;
    says(&guest, &["not admitted", &known.peer_id, &guests, &admit, "network join"])?;
    // Whoever does not read logs is told as well.
    for (node, other, why) in
        [(&host, guest_id, guests.as_str()), (&guest, &known.peer_id, "before it said hello")]
    {
        for command in ["peers", "status"] {
            let refused = node.json(&[command])?["refused"].clone();
            assert_eq!(refused[0]["peer_id"], other.as_str(), "{refused:#}");
            assert!(refused[0]["why"].as_str().is_some_and(|said| said.contains(why)), "{refused:#}");
            assert!(refused[0]["hint"].as_str().is_some_and(|said| said.contains(&admit)), "{refused:#}");
            let page = node.run(&[command])?;
            assert!(page.contains(&format!("not connected to {other}")) && page.contains(&admit), "{page}");
        }
        // However often they try.
        assert_eq!(node.log()?.matches("not admitted").count(), 1);
    }
    Ok(())
}
