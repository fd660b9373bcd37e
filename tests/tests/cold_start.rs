//! Machines that want the same image at the same time cost the thin link one copy.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::http::get;
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(60);
const REPOSITORY: &str = "lab/herd";

/// A site whose nodes know each other, behind a link that carries so many bytes a second.
struct Site {
    nodes: Vec<Wherry>,
    image: Image,
    relay: Relay,
    _origin: Registry,
    _lab: Lab,
}

fn site(nodes: usize, layers: &[u64], pace: u64) -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), REPOSITORY, "1", 11, layers)?;
    let relay = Relay::start(origin.addr())?;
    let network = Network::new(&lab)?;
    let options = Options::origin(relay.host());
    let mut members: Vec<Wherry> = Vec::new();
    for number in 0..nodes {
        let known: Vec<&Wherry> = members.iter().collect();
        let member = network.member(&lab, &format!("node-{number}"), options.clone(), &known)?;
        members.push(member);
    }
    for node in &members {
        wait_until("all nodes know each other", SOON, || {
            let peers = node.json(&["peers"])?;
            Ok(peers["peers"].as_array().map(Vec::len) == Some(nodes - 1))
        })?;
    }
    relay.pace(pace);
    Ok(Site { nodes: members, image, relay, _origin: origin, _lab: lab })
}

impl Site {
    /// Bytes of layers that have crossed the link.
    fn crossed(&self) -> u64 {
        self.image.layers.iter().map(|layer| self.relay.sent(&layer.digest)).sum()
    }

    fn size(&self) -> u64 {
        self.image.layers.iter().map(|layer| layer.size).sum()
    }

    fn gateways(&self) -> Result<Vec<SocketAddr>> {
        self.nodes.iter().map(Wherry::gateway).collect()
    }
}

/// A client of each gateway pulls the image, all at once; each must end with the right bytes.
fn all_pull(gateways: &[SocketAddr], image: &Image) -> Result<()> {
    std::thread::scope(|scope| {
        let pulls: Vec<_> =
            gateways.iter().map(|gateway| scope.spawn(move || pull(*gateway, image))).collect();
        pulls.into_iter().try_for_each(|pull| pull.join().ok().context("a pull panicked")?)
    })
}

fn pull(gateway: SocketAddr, image: &Image) -> Result<()> {
    let manifest = get(gateway, &format!("/v2/{REPOSITORY}/manifests/1"))?;
    ensure!(manifest.status == 200, "the manifest: {}", manifest.text());
    std::thread::scope(|scope| {
        let layers = image.layers.iter();
        let layers: Vec<_> =
            layers.map(|layer| scope.spawn(move || blob_is_right(gateway, REPOSITORY, layer))).collect();
        layers.into_iter().try_for_each(|layer| {
            ensure!(layer.join().ok().context("a client panicked")??, "wrong bytes");
            Ok(())
        })
    })
}

#[test]
fn six_cold_nodes_that_start_together_read_each_layer_once() -> Result<()> {
    let site = site(6, &[4 << 20, 3 << 20, 1 << 20], 2 << 20)?;
    all_pull(&site.gateways()?, &site.image)?;
    // For a moment two may lead: each stops at the first word of the other.
    let most = site.size() + site.size() / 20;
    ensure!(site.crossed() <= most, "{} bytes crossed the link, of {}", site.crossed(), site.size());
    Ok(())
}

#[test]
fn when_the_leader_dies_the_next_goes_on_where_it_was() -> Result<()> {
    let mut site = site(4, &[8 << 20], 1 << 20)?;
    let layer = site.image.layers[0];
    let gateways = site.gateways()?;
    std::thread::scope(|scope| {
        let image = &site.image;
        let clients: Vec<_> =
            gateways.iter().map(|gateway| scope.spawn(move || pull(*gateway, image))).collect();
        let relay = &site.relay;
        wait_until("three of eight MiB have crossed", SOON, || Ok(relay.sent(&layer.digest) > 3 << 20))?;
        let read = site.nodes.iter().map(|node| {
            let status = node.json(&["status"])?;
            status["traffic"]["from_origin"].as_u64().with_context(|| format!("{status:#}"))
        });
        let read: Vec<u64> = read.collect::<Result<_>>()?;
        let leader = (0..read.len()).max_by_key(|number| read[*number]).context("there are nodes")?;
        site.nodes[leader].process()?.kill()?;
        for (number, client) in clients.into_iter().enumerate() {
            let pulled = client.join().ok().context("a client panicked")?;
            ensure!(number == leader || pulled.is_ok(), "node {number}: {pulled:?}");
        }
        anyhow::Ok(())
    })?;
    // What only the dead one had is read again.
    let most = layer.size + layer.size / 8;
    ensure!(site.crossed() <= most, "{} bytes crossed the link, of {}", site.crossed(), layer.size);
    Ok(())
}

#[test]
fn a_node_that_cannot_reach_the_origin_gets_the_image_through_one_that_can() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), REPOSITORY, "1", 12, &[2 << 20, 100])?;
    let network = Network::new(&lab)?;
    let near = network.member(&lab, "near", Options::origin(origin.host()), &[])?;
    // It takes the origin for one that speaks TLS, which comes to nothing.
    let blind = Options::default().with("--default-origin").with(origin.host());
    let far = network.member(&lab, "far", blind, &[&near])?;
    all_pull(&[far.gateway()?], &image)?;
    drop(near);
    Ok(())
}
