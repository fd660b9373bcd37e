//! What `wherry status` counts as a failure, and what it does not: the log names each.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wherry_tests::blobs::{Image, push_image};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::{wait_for, wait_until};

const SOON: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// What of the image passes before the origin holds.
const GATE: u64 = 4 * MIB;

fn image(origin: &Registry) -> Result<Image> {
    push_image(origin.addr(), "lab/noise", "1", 97, &[12 * MIB])
}

fn failures(node: &Wherry) -> Result<Value> {
    Ok(node.json(&["status"])?["errors"].clone())
}

/// Who leads, by what a node says of the layer.
fn leads(node: &Wherry, image: &Image, reference: &str) -> Result<Value> {
    let why = node.json(&["why", reference])?;
    let digest = image.layers[0].digest.to_string();
    let blobs = why["blobs"].as_array().context("no blobs")?;
    let layer = blobs.iter().find(|blob| blob["digest"] == digest.as_str());
    Ok(layer.map_or(Value::Null, |layer| layer["transfer"]["lead"].clone()))
}

#[test]
fn that_a_machine_of_the_site_stops_is_no_failure() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let relay = Relay::start(origin.addr())?;
    let image = image(&origin)?;
    let reference = image.reference(relay.host());
    let network = Network::new(&lab)?;
    let one = network.member(&lab, "one", Options::origin(relay.host()), &[])?;
    let two = network.member(&lab, "two", Options::origin(relay.host()), &[&one])?;
    relay.gate_at(GATE);
    let _pulls =
        [one.begin("pull-one", &["pull", &reference])?, two.begin("pull-two", &["pull", &reference])?];
    let mut nodes = [one, two];
    let ids = [nodes[0].addresses()?.peer_id.clone(), nodes[1].addresses()?.peer_id.clone()];
    let leader = wait_for("one of them leads, and the other follows", SOON, || {
        for leader in [0, 1] {
            if leads(&nodes[leader], &image, &reference)?["by"] == "here"
                && leads(&nodes[1 - leader], &image, &reference)?
                    == json!({ "by": "peer", "node": ids[leader] })
            {
                return Ok(Some(leader));
            }
        }
        Ok(None)
    })?;
    nodes[leader].kill()?;
    let follower = &nodes[1 - leader];
    relay.open_gate();
    wait_until("the other has all of it", SOON, || Ok(follower.whole_images()?.contains(&reference)))?;
    assert_eq!(failures(follower)?, json!({ "peer": 0, "origin": 0, "store": 0, "client": 0 }));
    Ok(())
}

#[test]
fn an_origin_that_breaks_off_is_counted_and_named_in_the_log() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let relay = Relay::start(origin.addr())?;
    let image = image(&origin)?;
    let node = Wherry::start(&lab, "node", Options::origin(relay.host()))?;
    relay.gate_at(GATE);
    let mut pull = node.begin("pull", &["pull", "--wait", "0s", &image.reference(relay.host())])?;
    wait_until("the origin gives some of it", SOON, || Ok(relay.sent_total() >= GATE))?;
    origin.stop()?;
    relay.cut();
    ensure!(!pull.wait_exit(SOON)?.success(), "all of it has come");
    let counted = failures(&node)?;
    assert!(counted["origin"].as_u64() > Some(0) && counted["peer"] == 0, "{counted}");
    let log = node.log()?;
    let digest = image.layers[0].digest.to_string();
    let named = |line: &str| line.contains("WARN") && line.contains(&digest) && line.contains(&relay.host());
    assert!(log.lines().any(named), "{log}");
    Ok(())
}
