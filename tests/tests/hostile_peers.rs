//! Members that lie: the pull ends with the right bytes, the liar is named in the log, and nobody else is.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::http::get;
use wherry_tests::lab::Lab;
use wherry_tests::liar::{Liar, Lie};
use wherry_tests::netns::Alone;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::{Fault, Relay};
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(20);

const LAYER: u64 = 32 << 20;

/// Slow enough that all who claim to hold the layer are asked for some of it.
const RATE: &str = "400mbit";

/// The origin has the image's manifest and config, and its layer is left to peers.
struct Site {
    taker: Wherry,
    liars: Vec<Liar>,
    honest: Option<Wherry>,
    image: Image,
    relay: Relay,
    _origin: Registry,
    _lab: Lab,
    wire: Alone,
}

fn site(honest: bool, lies: &[Lie]) -> Result<Site> {
    let wire = Alone::enter()?;
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 60, &[LAYER])?;
    let layer = image.layers[0].digest;
    let truth = get(origin.addr(), &format!("/v2/lab/noise/blobs/{layer}"))?.body;
    let relay = Relay::start(origin.addr())?;
    let network = Network::new(&lab)?;
    let mut options = Options::origin(relay.host());
    let honest = if honest {
        let node = network.member(&lab, "honest", options.clone(), &[])?;
        node.run(&["pull", &image.reference(relay.host())])?;
        Some(node)
    } else {
        None
    };
    relay.fault(layer, Fault::Refuses(503));
    let known: Vec<&Wherry> = honest.iter().collect();
    let mut liars = Vec::new();
    for (i, lie) in lies.iter().enumerate() {
        liars.push(Liar::start(&lab, &network, &format!("liar-{i}"), &truth, *lie, &known)?);
    }
    options.bootstrap = liars.iter().flat_map(Liar::addresses).cloned().collect();
    let taker = network.member(&lab, "taker", options, &known)?;
    wait_until("the taker knows the liars", SOON, || {
        let peers = taker.json(&["peers"])?["peers"].to_string();
        Ok(liars.iter().all(|liar| peers.contains(liar.peer_id())))
    })?;
    wire.shape(RATE)?;
    Ok(Site { taker, liars, honest, image, relay, _origin: origin, _lab: lab, wire })
}

impl Site {
    fn pull(&self) -> Result<()> {
        self.taker.run(&["pull", &self.image.reference(self.relay.host())]).map(drop)
    }

    fn layer_is_right(&self) -> Result<()> {
        self.wire.shape("10gbit")?;
        ensure!(blob_is_right(self.taker.gateway()?, "lab/noise", &self.image.layers[0])?, "wrong bytes");
        Ok(())
    }

    /// Every liar was asked, and the log says what it did wrong; with `proof` it also says that the liar is banned.
    /// Nobody honest is named.
    fn liars_are_named(&self, proof: bool) -> Result<()> {
        let log = self.taker.log()?;
        for liar in &self.liars {
            ensure!(liar.asked() > 0, "nobody asked {}: the test is void", liar.peer_id());
            ensure!(accused(&log, liar.peer_id()), "{} is not named in\n{log}", liar.peer_id());
            ensure!(!proof || banned(&log, liar.peer_id()), "{} is not banned in\n{log}", liar.peer_id());
        }
        if let Some(honest) = &self.honest {
            let honest = &honest.addresses()?.peer_id;
            ensure!(!accused(&log, honest), "the honest node is accused:\n{log}");
        }
        Ok(())
    }

    /// Every faulty peer was asked, and nobody is accused of lying: nothing was proven.
    fn nobody_is_accused(&self) -> Result<()> {
        let log = self.taker.log()?;
        for liar in &self.liars {
            ensure!(liar.asked() > 0, "nobody asked {}: the test is void", liar.peer_id());
        }
        ensure!(!log.contains("banned") && !log.contains("does not link"), "somebody is accused:\n{log}");
        Ok(())
    }
}

fn banned(log: &str, peer_id: &str) -> bool {
    log.lines().any(|line| line.contains("banned") && line.contains(peer_id))
}

fn accused(log: &str, peer_id: &str) -> bool {
    banned(log, peer_id) || log.lines().any(|line| line.contains("does not link") && line.contains(peer_id))
}

#[test]
fn a_peer_that_sends_wrong_bytes_is_named_and_the_bytes_come_from_another() -> Result<()> {
    let site = site(true, &[Lie::WrongBytes])?;
    site.pull()?;
    site.layer_is_right()?;
    site.liars_are_named(false)
}

#[test]
fn a_peer_that_stops_in_the_middle_is_left_alone_and_the_rest_comes_from_another() -> Result<()> {
    let site = site(true, &[Lie::FallsSilent(LAYER / 8)])?;
    site.pull()?;
    site.layer_is_right()?;
    site.nobody_is_accused()
}

#[test]
fn a_peer_that_claims_what_it_does_not_hold_is_left_alone() -> Result<()> {
    let site = site(true, &[Lie::HoldsNothing])?;
    site.pull()?;
    site.layer_is_right()?;
    site.nobody_is_accused()
}

#[test]
fn an_invented_chain_with_chunks_that_link_to_it_is_refuted_by_one_honest_peer() -> Result<()> {
    let site = site(true, &[Lie::InventedChain])?;
    site.pull()?;
    site.layer_is_right()?;
    site.liars_are_named(true)
}

#[test]
fn two_liars_that_agree_lose_against_one_honest_peer() -> Result<()> {
    let site = site(true, &[Lie::InventedChain, Lie::InventedChain])?;
    site.pull()?;
    site.layer_is_right()?;
    site.liars_are_named(true)
}

#[test]
fn where_only_liars_are_left_the_pull_fails_and_names_them() -> Result<()> {
    for lie in [Lie::WrongBytes, Lie::InventedChain] {
        // Each in a thread, and so in a network, of its own.
        std::thread::spawn(move || {
            let site = site(false, &[lie])?;
            site.taker.fails(&["pull", "--wait", "0s", &site.image.reference(site.relay.host())])?;
            site.liars_are_named(false)?;
            site.relay.heal();
            site.pull()?;
            site.layer_is_right()
        })
        .join()
        .ok()
        .context("a panic")?
        .with_context(|| format!("{lie:?}"))?;
    }
    Ok(())
}

#[test]
fn where_liars_and_a_wrong_origin_are_left_the_pull_fails_and_keeps_nothing() -> Result<()> {
    let site = site(false, &[Lie::InventedChain, Lie::WrongBytes])?;
    let layer = site.image.layers[0].digest;
    // In the front half, which no liar has as it is; of the back half one has the truth.
    site.relay.fault(layer, Fault::WrongByte(LAYER / 4));
    let said = site.taker.fails(&["pull", "--wait", "0s", &site.image.reference(site.relay.host())])?;
    assert!(said.contains(&layer.short()), "{said}");
    assert_eq!(site.taker.whole_images()?, Vec::<String>::new());
    site.liars_are_named(false)
}
