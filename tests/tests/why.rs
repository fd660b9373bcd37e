//! What `wherry why` says of a pull that is slow, of one that is stuck, and of none.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wherry_tests::blobs::{Image, push_image};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::{wait_for, wait_until};

const SOON: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// 8 Mbit/s, in bytes a second.
const RATE: u64 = 1_000_000;

struct Site {
    one: Wherry,
    two: Wherry,
    image: Image,
    reference: String,
    relay: Relay,
    _origin: Registry,
    _lab: Lab,
}

fn site() -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let relay = Relay::start(origin.addr())?;
    let image = push_image(origin.addr(), "lab/slow", "1", 95, &[24 * MIB])?;
    let reference = image.reference(relay.host());
    let network = Network::new(&lab)?;
    let one = network.member(&lab, "one", Options::origin(relay.host()), &[])?;
    let two = network.member(&lab, "two", Options::origin(relay.host()), &[&one])?;
    Ok(Site { one, two, image, reference, relay, _origin: origin, _lab: lab })
}

impl Site {
    /// What a node says of the layer while that is on its way.
    fn layer(&self, node: &Wherry) -> Result<Option<Value>> {
        let why = node.json(&["why", &self.reference])?;
        let digest = self.image.layers[0].digest.to_string();
        let blobs = why["blobs"].as_array().context("no blobs")?;
        Ok(blobs.iter().find(|blob| blob["digest"] == digest.as_str()).map(|blob| blob["transfer"].clone()))
    }
}

fn id(node: &Wherry) -> Result<&str> {
    Ok(&node.addresses()?.peer_id)
}

fn end(node: &Wherry) -> Result<String> {
    let id = id(node)?;
    Ok(id[id.len() - 8..].to_owned())
}

/// Whether a rate is near that of the relay: it is one of the last seconds.
fn is_near(rate: &Value) -> bool {
    rate.as_u64().is_some_and(|rate| (RATE / 2..RATE * 3 / 2).contains(&rate))
}

#[test]
fn a_slow_pull_names_its_leader_the_rates_and_when_it_will_be_done() -> Result<()> {
    let site = site()?;
    site.relay.pace(RATE);
    let said = site.two.run(&["why", &site.reference])?;
    assert!(said.contains("nobody pulls it") && said.contains("would ask"), "{said}");
    let mut pulls = [
        site.one.begin("pull-one", &["pull", &site.reference])?,
        site.two.begin("pull-two", &["pull", &site.reference])?,
    ];
    wait_until("some of it has come", SOON, || Ok(site.relay.sent_total() > 5 * RATE))?;
    let nodes = [&site.one, &site.two];
    let (leader, follower) = wait_for("one of them leads, the other follows", SOON, || {
        for (leader, follower) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
            let (leads, follows) = (site.layer(leader)?, site.layer(follower)?);
            if let (Some(leads), Some(follows)) = (leads, follows)
                && leads["lead"]["by"] == "here"
                && follows["lead"] == serde_json::json!({ "by": "peer", "node": id(leader)? })
            {
                return Ok(Some((leader, follower)));
            }
        }
        Ok(None)
    })?;
    wait_until("the leader waits for the registry at its rate", SOON, || {
        let layer = site.layer(leader)?.context("no layer")?;
        Ok(layer["waits_for"]["what"] == "origin" && is_near(&layer["origin_rate"]))
    })?;
    wait_until("the follower waits for the leader's link, and takes at its rate", SOON, || {
        let layer = site.layer(follower)?.context("no layer")?;
        let left = layer["seconds_left"].as_f64().is_some_and(|left| (1.0..60.0).contains(&left));
        let (waits, peer) = (&layer["waits_for"], &layer["peers"][0]);
        Ok(waits["what"] == "leader" && waits["which"] == id(leader)? && is_near(&peer["rate"]) && left)
    })?;
    let said = follower.run(&["why", &site.reference])?;
    assert!(said.contains(&format!("led by peer …{}", end(leader)?)), "{said}");
    assert!(said.contains(&format!("/s from peer …{}", end(leader)?)), "{said}");
    assert!(said.contains(" left\n") && said.contains("24.0 MiB"), "{said}");
    site.relay.pace(RATE * 100);
    for pull in &mut pulls {
        ensure!(pull.wait_exit(SOON)?.success(), "{}", pull.tail());
    }
    let said = follower.run(&["why", &site.reference])?;
    assert!(said.contains(" is here, 24.0 MiB"), "{said}");
    Ok(())
}

#[test]
fn a_pull_that_is_held_to_a_rate_names_it_and_one_whose_link_is_slower_does_not() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let relay = Relay::start(origin.addr())?;
    let image = push_image(origin.addr(), "lab/slow", "1", 96, &[24 * MIB])?;
    let options = Options::origin(relay.host()).with("--wan-down").with("8Mbit/s");
    let network = Network::new(&lab)?;
    let one = network.member(&lab, "one", options, &[])?;
    let reference = image.reference(relay.host());
    let _pull = one.begin("pull", &["pull", &reference])?;
    let digest = image.layers[0].digest.to_string();
    let waits_for = || -> Result<Value> {
        let why = one.json(&["why", &reference])?;
        let layer = why["blobs"].as_array().and_then(|blobs| blobs.iter().find(|it| it["digest"] == *digest));
        Ok(layer.map_or(Value::Null, |layer| layer["transfer"]["waits_for"].clone()))
    };
    let held = serde_json::json!({ "what": "rate", "which": { "rate": RATE, "nodes": 1 } });
    wait_until("the rate is what it waits for", SOON, || Ok(waits_for()? == held))?;
    let said = one.run(&["why", &reference])?;
    assert!(said.contains("waits for the rate that is set for this site, 8Mbit/s (wan_down)\n"), "{said}");
    relay.pace(RATE / 2);
    wait_until("the link is", SOON, || Ok(waits_for()?["what"] == "origin"))
}

#[test]
fn a_stuck_pull_names_the_reason() -> Result<()> {
    let site = site()?;
    site.relay.gate_at(2 * MIB);
    let mut pull = site.two.begin("pull", &["pull", &site.reference])?;
    // Nothing comes through a link that was fine: that is seen after a while.
    let stuck = wait_for("it is seen to stand still", SOON, || {
        let layer = site.layer(&site.two).ok().flatten();
        Ok(layer.filter(|layer| layer["still"].as_f64().is_some_and(|still| still >= 6.0)))
    })?;
    assert_eq!((&stuck["waits_for"]["what"], &stuck["seconds_left"]), (&"origin".into(), &Value::Null));
    let said = site.two.run(&["why", &site.reference])?;
    let expected =
        format!("waits for this node's link to {}/lab/slow; nothing has come for ", site.relay.host());
    assert!(said.contains(&expected) && said.contains("unknown when it will be done"), "{said}");

    // The command that pulls says the same.
    let expected = format!(" MiB, waits for this node's link to {}/lab/slow", site.relay.host());
    wait_until("the pull says so too", SOON, || Ok(pull.stderr()?.contains(&expected)))?;

    // A limit is named with what can be done.
    site.one.run(&["wan", "pause"])?;
    wait_until("the limit is what it waits for", SOON, || {
        Ok(site.layer(&site.two)?.is_some_and(|layer| layer["waits_for"]["what"] == "limit"))
    })?;
    let said = site.two.run(&["why", &site.reference])?;
    // In the line of the image as well as in that of its layer, with neither a rate nor a time.
    assert_eq!(said.matches("waits: ").count(), 2, "{said}");
    assert!(
        said.contains("'wherry wan resume'") && !said.contains("B/s") && !said.contains(" left"),
        "{said}"
    );
    site.one.run(&["wan", "resume"])?;
    site.relay.open_gate();
    ensure!(pull.wait_exit(SOON)?.success(), "{}", pull.tail());

    // Of what nobody pulls it is said who has it.
    let why = site.one.json(&["why", &site.reference])?;
    assert_eq!((&why["state"], &why["holders"][0]), (&"absent".into(), &id(&site.two)?.into()), "{why}");
    let said = site.one.run(&["why", &site.reference])?;
    assert!(said.contains(&format!("would take it from peer …{}", end(&site.two)?)), "{said}");
    Ok(())
}
