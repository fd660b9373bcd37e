//! Pulls whose client leaves, that are stopped, or that fail: the node goes on or not as it says, and its log tells.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use wherry_proto::Digest;
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::http::{Request, get};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::{wait_for, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// In how many blobs the image comes: more than are fetched side by side.
const LAYERS: usize = 8;

const LAYER: u64 = 4 << 20;

/// How much of the image passes before the origin holds.
const GATE: u64 = 6 << 20;

struct Site {
    node: Wherry,
    relay: Relay,
    image: Image,
    reference: String,
    _origin: Registry,
    _lab: Lab,
}

/// A node, and an origin that holds in the middle of the image.
fn site() -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 70, &[LAYER; LAYERS])?;
    let relay = Relay::start(origin.addr())?;
    let node = Wherry::start(&lab, "node", Options::origin(relay.host()))?;
    // Manifest and configuration are there before, so that the gate stands among the layers.
    ensure!(get(node.gateway()?, "/v2/lab/noise/manifests/1")?.status == 200, "the manifest");
    ensure!(blob_is_right(node.gateway()?, "lab/noise", &image.config)?, "the configuration");
    relay.gate_at(image.config.size + GATE);
    let reference = image.reference(relay.host());
    Ok(Site { node, relay, image, reference, _origin: origin, _lab: lab })
}

impl Site {
    fn reach_the_gate(&self) -> Result<()> {
        wait_until("the gate is reached", SOON, || {
            Ok(self.relay.sent_total() >= self.image.config.size + GATE)
        })
    }

    fn is_whole(&self) -> Result<bool> {
        Ok(self.node.whole_images()?.contains(&self.reference))
    }

    fn transfers(&self) -> Result<usize> {
        let status = self.node.json(&["status"])?;
        Ok(status["transfers"].as_array().context("no transfers")?.len())
    }

    /// Waits until the log has a line with all of these.
    fn logged(&self, parts: &[&str]) -> Result<()> {
        wait_until(&format!("{parts:?} is logged"), SOON, || {
            Ok(self.node.log()?.lines().any(|line| parts.iter().all(|part| line.contains(part))))
        })
    }
}

#[test]
fn a_pull_whose_client_is_interrupted_says_that_it_goes_on_and_does() -> Result<()> {
    let site = site()?;
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        // By its short name, which the answer has to repeat.
        let mut pull = site.node.begin(&format!("pull-{status}"), &["pull", "lab/noise:1"])?;
        pull.wait_for_output("what the name means", SOON, |said| said.contains(" is sha256:").then_some(()))?;
        site.reach_the_gate()?;
        pull.signal(signal)?;
        assert_eq!(pull.wait_exit(SOON)?.code(), Some(status));
        let said = pull.stderr()?;
        for part in ["the node goes on fetching lab/noise:1", "'wherry cancel lab/noise:1'"] {
            assert!(said.contains(part), "{said}");
        }
        site.logged(&["INFO", "client of a pull has left", &site.reference])?;
    }
    site.relay.open_gate();
    wait_until("the image is whole", SOON, || site.is_whole())?;
    site.logged(&["INFO", "a pull begins", &site.reference])?;
    site.logged(&["INFO", "a pull is done", &site.reference, &site.image.manifest.to_string()])?;
    assert_eq!(site.relay.sent_total(), site.image.size());
    Ok(())
}

#[test]
fn what_is_cancelled_comes_no_further_and_the_next_pull_goes_on_there() -> Result<()> {
    let site = site()?;
    let mut pull = site.node.begin("pull", &["pull", &site.reference])?;
    site.reach_the_gate()?;
    let here = wait_for("the image is partly here", SOON, || {
        let image = site.node.json(&["inspect", &site.reference])?;
        let here = image["here"].as_u64().context("no bytes here")?;
        let is_on_its_way = states(&image).contains(&"arriving".to_owned());
        Ok((is_on_its_way && here > site.image.config.size).then_some(here))
    })?;
    ensure!(here <= GATE + site.image.config.size, "{here} bytes are here");

    let cancelled = site.node.json(&["cancel", &site.reference])?;
    assert_eq!((&cancelled["reference"], &cancelled["pulls"]), (&site.reference.as_str().into(), &1.into()));
    let blobs = cancelled["blobs"].as_array().context("no blobs")?;
    ensure!(!blobs.is_empty() && blobs.iter().all(|blob| blob["state"] == "stopped"), "{cancelled:#}");
    assert_eq!(pull.wait_exit(SOON)?.code(), Some(1));
    assert!(pull.stderr()?.contains("stopped by 'wherry cancel'"), "{}", pull.stderr()?);
    assert_eq!(site.transfers()?, 0);
    site.logged(&["INFO", "a pull ends before it is done", "wherry cancel"])?;
    let said = site.node.fails(&["cancel", &site.reference])?;
    assert!(said.contains("nothing of"), "{said}");

    // All that was here is still, and is told apart from what comes.
    let image = site.node.json(&["inspect", &site.reference])?;
    let kept = image["here"].as_u64().context("no bytes here")?;
    ensure!(kept >= here, "{kept} of {here} bytes are left");
    let states_left = states(&image);
    for state in ["partly", "missing"] {
        assert!(states_left.contains(&state.to_owned()), "{image:#}");
    }
    site.relay.open_gate();
    let pulled = site.node.json(&["pull", &site.reference])?;
    let (present, came) = (pulled["present"].as_u64().context("present")?, pulled["from_origin"].as_u64());
    assert_eq!(present, kept);
    assert_eq!(came, Some(site.image.size() - present));
    for layer in &site.image.layers {
        assert!(blob_is_right(site.node.gateway()?, "lab/noise", layer)?);
    }
    let image = site.node.json(&["inspect", &site.reference])?;
    assert!(states(&image).iter().all(|state| state == "here"), "{image:#}");
    Ok(())
}

fn states(image: &Value) -> Vec<String> {
    let layers = image["layers"].as_array().into_iter().flatten();
    layers.filter_map(|layer| layer["state"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_blob_that_a_client_of_the_gateway_reads_is_not_cancelled_and_whoever_tried_is_told() -> Result<()> {
    let site = site()?;
    let gateway = site.node.gateway()?;
    let layer = site.image.layers[0];
    site.relay.gate_at(site.image.config.size + LAYER / 2);
    let mut download =
        Request::new(gateway, "GET", &format!("/v2/lab/noise/blobs/{}", layer.digest)).open()?;
    let mut body = vec![0; 1 << 20];
    download.read_exact(&mut body)?;
    let cancelled = site.node.json(&["cancel", &site.reference])?;
    assert_eq!(cancelled["pulls"], 0);
    assert_eq!(cancelled["blobs"][0]["digest"], layer.digest.to_string());
    assert_eq!(cancelled["blobs"][0]["state"], "read");
    let said = site.node.run(&["cancel", &site.reference])?;
    assert!(said.contains("goes on: a client of the gateway reads it"), "{said}");
    site.relay.open_gate();
    download.read_to_end(&mut body)?;
    assert_eq!(Digest::sha256(&body), layer.digest);
    Ok(())
}

#[test]
fn what_no_client_waits_for_any_more_can_be_cancelled_as_well() -> Result<()> {
    let site = site()?;
    let gateway = site.node.gateway()?;
    let layer = site.image.layers[0];
    site.relay.gate_at(site.image.config.size + LAYER / 2);
    let mut download =
        Request::new(gateway, "GET", &format!("/v2/lab/noise/blobs/{}", layer.digest)).open()?;
    download.read_exact(&mut [0; 1 << 10])?;
    drop(download);
    let cancelled = wait_for("the node has seen that the client is gone", SOON, || {
        let cancelled = site.node.json(&["cancel", &site.reference])?;
        Ok((cancelled["blobs"][0]["state"] == "stopped").then_some(cancelled))
    })?;
    assert_eq!(cancelled["blobs"][0]["digest"], layer.digest.to_string());
    assert_eq!(site.transfers()?, 0);
    Ok(())
}

#[test]
fn a_pull_that_the_end_of_its_node_ends_is_not_said_to_go_on() -> Result<()> {
    let mut site = site()?;
    let mut pull = site.node.begin("pull", &["pull", &site.reference])?;
    site.reach_the_gate()?;
    site.node.stop()?;
    assert_eq!(pull.wait_exit(SOON)?.code(), Some(1));
    site.logged(&["INFO", "a pull ends before it is done", "shutting down"])?;
    let log = site.node.log()?;
    assert!(!log.contains("goes on"), "{log}");
    Ok(())
}

#[test]
fn a_pull_that_fails_is_in_the_nodes_own_log() -> Result<()> {
    let site = site()?;
    let unknown = format!("{}/lab/none:1", site.relay.host());
    site.node.fails(&["pull", &unknown])?;
    site.logged(&["WARN", "a pull failed", &unknown])
}
