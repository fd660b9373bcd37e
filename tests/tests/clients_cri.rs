//! containerd as a kubelet uses it, through its CRI plugin, set up by `wherry setup containerd`.

use std::fs;

use anyhow::{Result, ensure};
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
fn a_kubelet_gets_images_through_the_gateway_and_another_ones_with_the_cloud_cut_off() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let mut origin = images.origin(&lab, "origin")?;
    let network = Network::new(&lab)?;
    // What a kubelet means by the name of a registry is said in `?ns=`, and not by the node's default.
    let options = || Options::default().with("--insecure").with(origin.host());
    let first = network.member(&lab, "first", options(), &[])?;
    let second = network.member(&lab, "second", options(), &[&first])?;
    let wanted = [&images.teaching, &images.second];

    let kubelets = set_up(&lab, "containerd", &first)?;
    for image in wanted {
        let reference = image.reference(origin.host());
        ensure!(kubelets.status_for_kubelet(&reference)?.is_none(), "{reference} is there before its pull");
        let id = kubelets.pull_for_kubelet(&reference)?;
        ensure!(id == image.config.digest.to_string(), "{reference}: {id}");
    }
    // Once, and by the gateway: each blob but the base layer belongs to one image alone.
    origin.stop()?;
    let log = origin.accesses()?;
    for blob in wanted.iter().flat_map(|image| image.blobs()) {
        ensure!((log.reads_of(&blob.digest), log.bytes_of(&blob.digest)) == (1, blob.size), "{blob:?}");
    }
    let status = first.json(&["status"])?;
    let bytes = status["traffic"]["from_origin"].as_u64().unwrap_or(0);
    ensure!(bytes >= images.teaching.size(), "the gateway has fetched {bytes} bytes: {status}");

    let kubelets = set_up(&lab, "containerd-2", &second)?;
    for image in wanted {
        let reference = image.reference(origin.host());
        kubelets.pull_for_kubelet(&reference)?;
        let here = kubelets.status_for_kubelet(&reference)?.unwrap_or_default();
        ensure!(here.id == image.config.digest.to_string() && here.tags == [reference.clone()], "{here:?}");
        let by_digest = format!("{}/{}@{}", origin.host(), image.repository, image.manifest);
        ensure!(here.digests == [by_digest], "{here:?}");
    }

    let unknown = format!("{}/lab/nobody-has-it:1", origin.host());
    let refused = kubelets.pull_for_kubelet(&unknown).map_or_else(|error| format!("{error:#}"), |id| id);
    ensure!(refused.contains("503") || refused.contains("refused"), "{refused}");
    ensure!(kubelets.status_for_kubelet(&unknown)?.is_none());
    Ok(())
}
