//! Images that are on all nodes of a site before anyone asks.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::output;
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// 16 Mbit/s, in bytes a second: slow enough that all nodes want the same at the same time.
const RATE: u64 = 2_000_000;

/// What is of no blob, and what two nodes may both fetch while each does not know of the other yet.
const TWICE: u64 = MIB / 2;

struct Site {
    nodes: Vec<Wherry>,
    relay: Relay,
    origin: Registry,
    _lab: Lab,
}

fn site(count: usize) -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let relay = Relay::start(origin.addr())?;
    relay.pace(RATE);
    let network = Network::new(&lab)?;
    let mut nodes: Vec<Wherry> = Vec::new();
    for number in 0..count {
        let known: Vec<&Wherry> = nodes.iter().collect();
        nodes.push(network.member(&lab, &format!("n{number}"), Options::origin(relay.host()), &known)?);
    }
    Ok(Site { nodes, relay, origin, _lab: lab })
}

impl Site {
    fn image(&self, name: &str, seed: u64, layers: &[u64]) -> Result<(Image, String)> {
        let image = push_image(self.origin.addr(), name, "1", seed, layers)?;
        let reference = image.reference(self.relay.host());
        Ok((image, reference))
    }
}

/// Whether an image is at a node, and pinned there.
fn is_pinned(node: &Wherry, reference: &str) -> Result<bool> {
    let images = node.json(&["images"])?;
    let all = images.as_array().context("no list")?;
    Ok(all.iter().any(|image| image["reference"] == reference && image["pinned"] == true))
}

/// The end of a node's peer id, by which people name it.
fn short(node: &Wherry) -> Result<String> {
    let id = &node.addresses()?.peer_id;
    Ok(id[id.len() - 8..].to_owned())
}

#[test]
fn a_preload_brings_images_to_a_whole_site_in_one_copy_and_pins_them() -> Result<()> {
    let site = site(4)?;
    let (one, first) = site.image("lab/one", 90, &[6 * MIB, 3 * MIB])?;
    let (two, second) = site.image("lab/two", 91, &[4 * MIB])?;
    let answer = output(site.nodes[0].command()?.args(["preload", &first, &second]))?;
    let (out, err) = (String::from_utf8(answer.stdout)?, String::from_utf8(answer.stderr)?);
    ensure!(answer.status.success(), "{err}");
    assert!(out.starts_with("2 images are there and pinned at 4 of 4 nodes in "), "{out}");
    for node in &site.nodes {
        assert!(is_pinned(node, &first)? && is_pinned(node, &second)?);
        assert_eq!(err.matches(&format!("{} {first}: there and pinned", short(node)?)).count(), 1, "{err}");
        for (image, layer) in one.layers.iter().map(|layer| (&one, layer)).chain([(&two, &two.layers[0])]) {
            assert!(blob_is_right(node.gateway()?, &image.repository, layer)?);
        }
    }
    for layer in one.layers.iter().chain(&two.layers) {
        let sent = site.relay.sent(&layer.digest);
        assert!((layer.size..layer.size + TWICE).contains(&sent), "{sent} of {} bytes", layer.size);
    }

    // What is there costs nothing, and scripts are told line by line.
    let sent = site.relay.sent_total();
    let told = site.nodes[1].run(&["preload", "--json", &first, "--nodes", &short(&site.nodes[3])?])?;
    let lines: Vec<Value> = told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let [.., last, done] = &lines[..] else { anyhow::bail!("{told}") };
    assert_eq!((&last["event"], &last["step"]), (&"progress".into(), &"done".into()), "{told}");
    assert_eq!(last["node"], site.nodes[3].addresses()?.peer_id.as_str(), "{told}");
    assert_eq!(last["bytes"], one.size(), "{told}");
    assert_eq!((&done["event"], &done["nodes"], &done["failed"]), (&"done".into(), &1.into(), &0.into()));
    assert_eq!(site.relay.sent_total(), sent);
    Ok(())
}

#[test]
fn what_fails_at_one_node_is_told_for_that_node_and_the_others_go_on() -> Result<()> {
    let mut site = site(3)?;
    let (_, good) = site.image("lab/good", 92, &[8 * MIB])?;
    let missing = format!("{}/lab/missing:1", site.relay.host());
    let ids = site.nodes.iter().map(short).collect::<Result<Vec<_>>>()?;
    let nodes = format!("{},{},nowhere", ids[1], site.nodes[2].addresses()?.peer_id);
    let mut preload = site.nodes[0].begin("preload", &["preload", &good, &missing, "--nodes", &nodes])?;
    wait_until("the image is on its way", SOON, || Ok(site.relay.sent_total() > MIB))?;
    site.nodes[2].kill()?;
    assert_eq!(preload.wait_exit(SOON)?.code(), Some(1));
    let said = preload.stderr()?;
    for expected in [
        format!("{} {good}: there and pinned, 8.00 MiB", ids[1]),
        format!("{} {good}: failed: it went away", ids[2]),
        format!("nowhere {good}: failed: no node is connected"),
        format!("{} {missing}: failed: ", ids[1]),
        "3 of 3 nodes have not got everything".to_owned(),
    ] {
        assert!(said.contains(&expected), "{expected} is missing: {said}");
    }
    assert!(is_pinned(&site.nodes[1], &good)?);
    // The one that asks was not meant.
    assert!(!is_pinned(&site.nodes[0], &good)?);
    Ok(())
}

#[test]
fn a_preload_goes_on_when_the_command_leaves_and_when_a_node_is_started_again() -> Result<()> {
    let mut site = site(2)?;
    let (_, reference) = site.image("lab/left", 93, &[8 * MIB])?;
    site.relay.gate_at(MIB);
    let mut left = site.nodes[0].begin("left", &["preload", &reference])?;
    wait_until("the image is on its way", SOON, || Ok(site.relay.sent_total() >= MIB))?;
    left.signal(Signal::INT)?;
    assert_eq!(left.wait_exit(SOON)?.code(), Some(130));
    assert!(left.stderr()?.contains("the nodes go on"), "{}", left.stderr()?);

    // A second command finds what the first has begun, and asks a node anew that has forgotten it.
    let other = &site.nodes[1].addresses()?.peer_id;
    let mut again = site.nodes[0].begin("again", &["preload", "--json", &reference])?;
    wait_until("it says how the other node brings it", SOON, || Ok(again.stdout()?.contains(other)))?;
    site.nodes[1].kill()?;
    site.nodes[1].up()?;
    site.relay.open_gate();
    ensure!(again.wait_exit(SOON)?.success(), "{}", again.tail());
    for node in &site.nodes {
        assert!(is_pinned(node, &reference)?);
    }
    Ok(())
}
