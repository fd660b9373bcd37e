//! Disks that rot: whoever holds a damaged blob notices, says so, and heals itself; nobody is left waiting for it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wherry_proto::Digest;
use wherry_tests::blobs::{Blob, Image, blob_is_right, push_image};
use wherry_tests::clients::Skopeo;
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::output;
use wherry_tests::registry::{self, Registry};
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

const LAYER: u64 = 8 << 20;

/// The length of its chunks.
const CHUNK: u64 = 32 << 10;

/// Flips a byte of a stored blob, as a disk would.
fn flip(node: &Wherry, digest: &Digest, at: u64) -> Result<()> {
    let hex = digest.hex();
    let path = node.data().join("blobs/sha256").join(&hex[..2]).join(&hex);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1;
    Ok(file.write_all_at(&byte, at)?)
}

/// That the node warns of a damaged blob, by its digest and the image's name.
fn is_warned_of(node: &Wherry, digest: &Digest, image: &str) -> Result<bool> {
    let parts = ["WARN", "set aside", &digest.to_string(), image];
    Ok(node.log()?.lines().any(|line| parts.iter().all(|part| line.contains(part))))
}

struct Holder {
    node: Wherry,
    image: Image,
    reference: String,
    origin: Registry,
    lab: Lab,
}

fn holder(seed: u64) -> Result<Holder> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", seed, &[LAYER, 1 << 20])?;
    let reference = image.reference(origin.host());
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    node.run(&["pull", &reference])?;
    Ok(Holder { node, image, reference, origin, lab })
}

#[test]
fn a_client_that_got_wrong_bytes_gets_the_right_ones_when_it_tries_again() -> Result<()> {
    let Holder { node, image, reference, lab, origin: _origin } = holder(70)?;
    let layer = image.layers[0];
    flip(&node, &layer.digest, LAYER / 2)?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let from = format!("{}/{}", node.gateway()?, image.name());
    let mut tries = 0;
    wait_until("skopeo has the right bytes", SOON, || {
        tries += 1;
        Ok(skopeo.pull(&from, &format!("try-{tries}")).is_ok_and(|pulled| pulled.check(&image).is_ok()))
    })?;
    ensure!(blob_is_right(node.gateway()?, "lab/noise", &layer)?, "what is served now is wrong");
    wait_until("it is warned of", SOON, || is_warned_of(&node, &layer.digest, &reference))?;
    assert_eq!(node.json(&["status"])?["errors"]["store"], 1);
    Ok(())
}

#[test]
fn an_export_of_a_damaged_blob_fails_in_words_and_the_next_pull_heals_the_image() -> Result<()> {
    let Holder { mut node, image, reference, lab, origin: _origin } = holder(71)?;
    let layer = image.layers[1].digest;
    flip(&node, &layer, 0)?;
    let archive = lab.path().join("app.tar");
    let export = ["export", &reference, "-o", &archive.display().to_string()];
    let said = node.fails(&export)?;
    assert!(said.contains(&layer.to_string()) && said.contains("wherry pull"), "{said}");
    assert!(!archive.exists());
    let inspected = node.run(&["inspect", &reference])?;
    assert!(inspected.contains("damaged"), "{inspected}");
    // It is listed as what it is, and so it is after a start.
    for restarts in [false, true] {
        if restarts {
            node.stop()?;
            node.up()?;
        }
        let listed = node.json(&["images"])?;
        assert_eq!(listed[0]["damaged"], json!({"blobs": 1, "state": "waiting"}), "{listed}");
        let said = node.run(&["images"])?;
        assert!(said.contains("is damaged: a blob of it; 'wherry pull"), "{said}");
        let status = node.json(&["status"])?;
        let told = json!([{"digest": layer, "size": 1 << 20, "images": [reference], "state": "waiting"}]);
        assert_eq!(status["damaged"], told, "{status}");
        let said = node.run(&["status"])?;
        assert!(said.lines().any(|line| line.starts_with("damaged") && line.contains(&reference)), "{said}");
    }

    node.run(&["pull", &reference])?;
    node.run(&export)?;
    assert_eq!(node.json(&["images"])?[0]["damaged"], json!(null));
    assert_eq!(node.json(&["status"])?["damaged"], json!([]));
    let other = Wherry::start(&lab, "other", Options::default())?;
    other.run(&["import", &archive.display().to_string()])?;

    // What came by import alone is healed by another import.
    flip(&other, &layer, 1000)?;
    other.run(&["import", &archive.display().to_string()])?;
    let checked = other.json(&["check"])?;
    assert_eq!(checked["damaged"], serde_json::json!([]), "{checked}");
    Ok(())
}

#[test]
fn a_check_finds_what_is_damaged_and_sets_it_aside() -> Result<()> {
    let Holder { node, image, reference, lab: _lab, origin: _origin } = holder(72)?;
    let checked = node.json(&["check"])?;
    // Manifest, config and layers.
    assert_eq!((&checked["blobs"], &checked["damaged"]), (&4.into(), &serde_json::json!([])), "{checked}");
    for digest in [image.manifest, image.config.digest, image.layers[0].digest] {
        flip(&node, &digest, 5)?;
        let said = node.fails(&["check"])?;
        assert!(said.contains("1 blob is damaged") && said.contains("next pull"), "{said}");
        let listed = node.json(&["images"])?;
        assert_eq!(
            (&listed[0]["reference"], &listed[0]["digest"]),
            (&json!(reference), &json!(image.manifest))
        );
        assert_eq!(listed[0]["damaged"], json!({"blobs": 1, "state": "waiting"}), "{listed}");
        wait_until("it is warned of", SOON, || is_warned_of(&node, &digest, &reference))?;
        for again in [&["check"][..], &["check", &reference]] {
            let said = node.fails(again)?;
            assert!(said.contains("1 blob is damaged"), "until it is right: {said}");
        }
        node.run(&["pull", &reference])?;
        let checked = node.json(&["check", &reference])?;
        assert_eq!(
            (&checked["blobs"], &checked["missing"]),
            (&4.into(), &serde_json::json!([])),
            "{checked}"
        );
    }
    for blob in image.blobs() {
        ensure!(blob_is_right(node.gateway()?, "lab/noise", &blob)?, "{} is wrong", blob.digest);
    }
    Ok(())
}

#[test]
fn the_first_list_after_a_manifest_was_damaged_has_the_image() -> Result<()> {
    let Holder { node, image, reference, lab: _lab, origin: _origin } = holder(77)?;
    flip(&node, &image.manifest, 5)?;
    let listed = node.json(&["images"])?;
    assert_eq!(
        (&listed[0]["reference"], &listed[0]["damaged"]),
        (&json!(reference), &json!({"blobs": 1, "state": "waiting"})),
        "{listed}"
    );
    Ok(())
}

#[test]
fn a_layer_whose_file_is_gone_is_called_lost_and_not_damaged() -> Result<()> {
    let Holder { node, image, reference, lab: _lab, origin: _origin } = holder(78)?;
    let layer = image.layers[0].digest;
    let hex = layer.hex();
    fs::remove_file(node.data().join("blobs/sha256").join(&hex[..2]).join(&hex))?;
    let output = output(node.command()?.arg("check"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("lost    {layer} 8.00 MiB of {reference}: its file is gone\n")), "{said}");
    wait_until("the log says so", SOON, || {
        let parts = ["WARN", "file of a stored blob is missing", &layer.to_string(), &reference];
        Ok(node.log()?.lines().any(|line| parts.iter().all(|part| line.contains(part))))
    })?;
    node.run(&["pull", &reference])?;
    ensure!(blob_is_right(node.gateway()?, "lab/noise", &image.layers[0])?, "it is wrong");
    Ok(())
}

/// All that people write for an image that has a single name.
fn names_of(reference: &str, manifest: &Digest) -> [String; 4] {
    let hex = manifest.hex();
    [reference.to_owned(), manifest.to_string(), hex[..12].to_owned(), format!("sha256:{}", &hex[..12])]
}

#[test]
fn an_image_whose_manifest_is_damaged_is_told_of_and_healed_by_whatever_names_it() -> Result<()> {
    let Holder { node, image, reference, lab: _lab, origin: _origin } = holder(79)?;
    let heals = format!("'wherry pull {reference}'");
    for name in names_of(&reference, &image.manifest) {
        flip(&node, &image.manifest, 5)?;
        // The first look finds it out, the second knows.
        for _ in 0..2 {
            let output = output(node.command()?.args(["check", &name]))?;
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            let damaged = format!("damaged {} ", image.manifest);
            for part in [&damaged, &reference, "its manifest is damaged", "checked 4 blobs", "3 are right"] {
                assert!(said.contains(part), "{name}: {part}: {said}");
            }
            assert!(said.contains(&heals), "{name}: {said}");
        }
        let said = node.fails(&["inspect", &name])?;
        let told = format!("the manifest of {reference}, {}, is damaged", image.manifest);
        assert!(said.contains(&told) && said.contains(&heals), "{name}: {said}");
        let said = node.fails(&["inspect", "--platform", "linux/amd64", &name])?;
        let told_of_platform = format!("for linux/amd64, {}, is damaged", image.manifest);
        let heals_platform = format!("'wherry pull --platform linux/amd64 {reference}'");
        assert!(said.contains(&told_of_platform) && said.contains(&heals_platform), "{name}: {said}");
        let said = node.fails(&["export", &name, "-o", "/dev/null"])?;
        assert!(said.contains(&told) && said.contains(&heals), "{name}: {said}");
        node.run(&["pull", &name])?;
        let checked = node.json(&["check", &name])?;
        assert_eq!((&checked["blobs"], &checked["damaged"]), (&4.into(), &json!([])), "{name}: {checked}");
        // A pull by digest leaves a name of its own.
        for listed in node.json(&["images"])?.as_array().context("no list")? {
            let listed = listed["reference"].as_str().context("no name")?;
            if listed != reference {
                node.run(&["rm", listed])?;
            }
        }
    }
    Ok(())
}

#[test]
fn an_image_whose_manifest_is_damaged_is_removed_with_its_layers_by_whatever_names_it() -> Result<()> {
    let Holder { node, image, reference, lab: _lab, origin } = holder(80)?;
    let other = push_image(origin.addr(), "lab/noise", "2", 81, &[1 << 20])?;
    node.run(&["pull", &other.reference(origin.host())])?;
    for name in names_of(&reference, &image.manifest) {
        node.run(&["pull", &reference])?;
        node.run(&["pin", &reference])?;
        flip(&node, &image.manifest, 5)?;
        node.fails(&["check"])?;
        node.run(&["rm", &name])?;
        assert_eq!(node.whole_images()?, [other.reference(origin.host())], "{name}");
        let status = node.json(&["status"])?;
        assert_eq!(
            (&status["store"]["blobs"], &status["damaged"]),
            (&json!(3), &json!([])),
            "{name}: {status}"
        );
    }
    ensure!(blob_is_right(node.gateway()?, "lab/noise", &other.layers[0])?, "another image is damaged");
    Ok(())
}

#[test]
fn a_damaged_holder_learns_it_from_the_taker_whose_pull_ends_in_words() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", 73, &[LAYER])?;
    let reference = image.reference(origin.host());
    let layer = image.layers[0];
    let network = Network::new(&lab)?;
    let options = Options::origin(origin.host());
    let holder = network.member(&lab, "holder", options.clone(), &[])?;
    holder.run(&["pull", &reference])?;
    origin.stop()?;
    flip(&holder, &layer.digest, LAYER / 3)?;
    let taker = network.member(&lab, "taker", options, &[&holder])?;

    let begun = Instant::now();
    let said = taker.fails(&["pull", "--wait", "0s", &reference])?;
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    assert!(said.contains(&layer.digest.short()) && said.contains("does not link"), "{said}");
    let holder_id = &holder.addresses()?.peer_id;
    let log = taker.log()?;
    let warns = |line: &str| ["WARN", "wrong bytes", holder_id].iter().all(|part| line.contains(part));
    assert!(log.lines().any(warns), "{log}");
    wait_until("the holder sets it aside", SOON, || is_warned_of(&holder, &layer.digest, &reference))?;

    origin.restart()?;
    taker.run(&["pull", &reference]).context("with the origin back")?;
    ensure!(blob_is_right(taker.gateway()?, "lab/noise", &layer)?, "the taker has wrong bytes");
    holder.run(&["pull", &reference])?;
    ensure!(blob_is_right(holder.gateway()?, "lab/noise", &layer)?, "the holder has wrong bytes");
    Ok(())
}

/// Two nodes of a site that have pulled an image of one layer, in which the disk of each flips these bytes: the first, as
/// both know once they have checked. The origin is out of reach.
struct Rotten {
    nodes: [Wherry; 2],
    reference: String,
    layer: Blob,
    origin: Registry,
    _lab: Lab,
}

fn rotten(seed: u64, flipped: [&[u64]; 2]) -> Result<Rotten> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/noise", "1", seed, &[LAYER])?;
    let reference = image.reference(origin.host());
    let layer = image.layers[0];
    let network = Network::new(&lab)?;
    let options = Options::origin(origin.host());
    let one = network.member(&lab, "one", options.clone(), &[])?;
    let two = network.member(&lab, "two", options, &[&one])?;
    let nodes = [one, two];
    for node in &nodes {
        node.run(&["pull", &reference])?;
    }
    origin.stop()?;
    for (node, flipped) in nodes.iter().zip(flipped) {
        for at in flipped {
            flip(node, &layer.digest, *at)?;
        }
        node.fails(&["check"])?;
        let listed = node.json(&["images"])?;
        let rest = listed[0]["size"].as_u64().map(|size| size - CHUNK);
        assert_eq!(listed[0]["here"].as_u64(), rest, "{listed}");
    }
    Ok(Rotten { nodes, reference, layer, origin, _lab: lab })
}

/// Pulls once at each, and compares what came from the other.
fn heal_each_other(nodes: &[Wherry; 2], reference: &str, layer: &Blob) -> Result<()> {
    let came =
        |node: &Wherry| Ok::<_, anyhow::Error>(node.json(&["status"])?["traffic"]["from_peers"].as_u64());
    for node in nodes {
        let before = came(node)?;
        node.run(&["pull", reference])?;
        let came = came(node)?.zip(before).map(|(after, before)| after - before);
        assert_eq!(came, Some(CHUNK), "only the damaged chunk comes");
        ensure!(blob_is_right(node.gateway()?, "lab/noise", layer)?, "it is wrong");
        let checked = node.json(&["check"])?;
        assert_eq!((&checked["damaged"], &checked["missing"]), (&json!([]), &json!([])), "{checked}");
    }
    Ok(())
}

#[test]
fn two_whose_disks_rot_in_different_places_heal_each_other_without_the_origin() -> Result<()> {
    let Rotten { nodes, reference, layer, .. } = &rotten(74, [&[LAYER / 3], &[LAYER / 2]])?;
    heal_each_other(nodes, reference, layer)
}

#[test]
fn two_whose_disks_have_rotted_heal_each_other_after_a_restart() -> Result<()> {
    let Rotten { nodes, reference, layer, .. } = &mut rotten(76, [&[LAYER / 3], &[LAYER / 2]])?;
    for node in nodes.iter_mut() {
        node.stop()?;
    }
    let [one, two] = nodes;
    one.up()?;
    two.options().bootstrap.clone_from(&one.addresses()?.peers);
    two.up()?;
    for (node, other) in [(&*one, &*two), (two, one)] {
        let peer_id = &other.addresses()?.peer_id;
        wait_until("they are connected", SOON, || {
            Ok(node.json(&["peers"])?["peers"].to_string().contains(peer_id))
        })?;
    }
    heal_each_other(nodes, reference, layer)
}

#[test]
fn what_has_rotted_at_both_is_given_by_neither_and_comes_from_the_origin() -> Result<()> {
    let mut rotten = rotten(77, [&[LAYER / 2], &[LAYER / 3, LAYER / 2]])?;
    let Rotten { nodes: [one, two], reference, layer, origin, .. } = &mut rotten;
    let begun = Instant::now();
    one.fails(&["pull", "--wait", "0s", reference])?;
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    // The other has learnt of it.
    let listed = two.json(&["images"])?;
    let rest = listed[0]["size"].as_u64().map(|size| size - 2 * CHUNK);
    assert_eq!(listed[0]["here"].as_u64(), rest, "{listed}");
    assert!(!one.log()?.contains("wrong bytes"));
    origin.restart()?;
    for node in [one, two] {
        node.run(&["pull", reference])?;
        ensure!(blob_is_right(node.gateway()?, "lab/noise", layer)?, "it is wrong");
    }
    Ok(())
}

#[test]
fn of_a_damaged_layer_only_the_damaged_chunks_are_read_from_the_origin() -> Result<()> {
    let Holder { node, image, reference, lab: _lab, origin: _origin } = holder(75)?;
    let layer = image.layers[0];
    for at in [0, LAYER / 2, LAYER - 1] {
        flip(&node, &layer.digest, at)?;
    }
    node.fails(&["check", &reference])?;
    let read =
        |node: &Wherry| Ok::<_, anyhow::Error>(node.json(&["status"])?["traffic"]["from_origin"].as_u64());
    let before = read(&node)?.context("no traffic")?;
    node.run(&["pull", &reference])?;
    let came = read(&node)?.context("no traffic")? - before;
    assert_eq!(came, 3 * CHUNK);
    ensure!(blob_is_right(node.gateway()?, "lab/noise", &layer)?, "it is wrong");
    Ok(())
}
