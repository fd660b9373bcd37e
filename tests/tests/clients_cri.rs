//! containerd as a kubelet uses it, through its CRI plugin, set up by `wherry setup containerd`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use wherry_tests::access::Accesses as _;
use wherry_tests::clients::Containerd;
use wherry_tests::images::Images;
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry, command};
use wherry_tests::process::run;

/// containerd that `wherry setup` has made use this node's gateway.
fn set_up(lab: &Lab, name: &str, node: &Wherry) -> Result<Containerd> {
    let root = lab.folder(&format!("{name}-system"))?;
    let mut setup = command(lab.path())?;
    setup.args(["setup", "containerd", "--gateway", &node.gateway()?.to_string(), "--root"]).arg(&root);
    run(&mut setup)?;
    // The system's folder is below another root here.
    let config = fs::read_to_string(root.join("etc/containerd/config.toml"))?;
    ensure!(config.contains("config_path = \"/etc/containerd/certs.d\""), "{config}");
    let certs = root.join("etc/containerd/certs.d").display().to_string();
    Containerd::start_for_kubelets(lab, name, &config.replace("/etc/containerd/certs.d", &certs))
}

#[test]
fn a_kubelet_gets_an_image_through_the_gateway_and_another_one_gets_it_with_the_cloud_cut_off() -> Result<()>
{
    let (lab, images) = (Lab::new()?, Images::get()?);
    let mut origin = images.origin(&lab, "origin")?;
    let network = Network::new(&lab)?;
    // What a kubelet means by the name of a registry is said in `?ns=`, and not by the node's default.
    let options = || Options::default().with("--insecure").with(origin.host());
    let first = network.member(&lab, "first", options(), &[])?;
    let second = network.member(&lab, "second", options(), &[&first])?;
    // Each layer is unpacked as a copy of all below it: the image with the fewest of them.
    let image = &images.second;
    let reference = image.reference(origin.host());

    let kubelets = set_up(&lab, "containerd", &first)?;
    ensure!(kubelets.status_for_kubelet(&reference)?.is_none(), "{reference} is there before its pull");
    let id = kubelets.pull_for_kubelet(&reference)?;
    ensure!(id == image.config.digest.to_string(), "{id}");
    // Once, and by the gateway.
    origin.stop()?;
    let log = origin.accesses()?;
    for blob in image.blobs() {
        ensure!((log.reads_of(&blob.digest), log.bytes_of(&blob.digest)) == (1, blob.size), "{blob:?}");
    }
    let status = first.json(&["status"])?;
    let bytes = status["traffic"]["from_origin"].as_u64().unwrap_or(0);
    ensure!(bytes >= image.size(), "the gateway has fetched {bytes} bytes: {status}");

    let kubelets = set_up(&lab, "containerd-2", &second)?;
    kubelets.pull_for_kubelet(&reference)?;
    let here = kubelets.status_for_kubelet(&reference)?.unwrap_or_default();
    let by_digest = format!("{}/{}@{}", origin.host(), image.repository, image.manifest);
    let digest = image.config.digest.to_string();
    ensure!((here.id, here.tags, here.digests) == (digest, vec![reference], vec![by_digest]));

    let unknown = format!("{}/lab/nobody-has-it:1", origin.host());
    let refused = kubelets.pull_for_kubelet(&unknown);
    let why = format!("{:#}", refused.err().context("what nobody has was pulled")?);
    ensure!(why.contains("503 Service Unavailable"), "{why}");
    ensure!(kubelets.status_for_kubelet(&unknown)?.is_none());
    Ok(())
}
