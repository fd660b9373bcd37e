//! What stays on a node and what does not: pins, removal, the disk budget, and images without a name.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wherry_tests::blobs::{Image, OCI_MANIFEST, push_image};
use wherry_tests::clients::Skopeo;
use wherry_tests::http::Request;
use wherry_tests::lab::Lab;
use wherry_tests::netns::Alone;
use wherry_tests::node::{Options, Wherry, refused};
use wherry_tests::registry::{self, Registry};
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

const MIB: u64 = 1 << 20;

struct Site {
    node: Wherry,
    origin: Registry,
    lab: Lab,
}

fn site(budget: Option<&str>) -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let mut options = Options::origin(origin.host());
    if let Some(budget) = budget {
        options = options.with("--disk-budget").with(budget);
    }
    let node = Wherry::start(&lab, "node", options)?;
    Ok(Site { node, origin, lab })
}

impl Site {
    /// Pushes an image of one layer.
    fn image(&self, name: &str, seed: u64, layer: u64) -> Result<(Image, String)> {
        let image = push_image(self.origin.addr(), name, "1", seed, &[layer])?;
        let reference = image.reference(self.origin.host());
        Ok((image, reference))
    }

    fn names(&self) -> Result<Vec<String>> {
        self.node.whole_images()
    }
}

#[test]
fn a_pull_that_is_refused_for_its_platform_leaves_no_image() -> Result<()> {
    let site = site(None)?;
    let (_, reference) = site.image("lab/one", 78, MIB)?;
    let said = site.node.fails(&["pull", "--platform", "linux/s390x", &reference])?;
    assert!(said.contains("none for linux/s390x"), "{said}");
    assert_eq!(site.node.json(&["images"])?, json!([]));
    Ok(())
}

#[test]
fn an_image_for_one_other_platform_is_not_shown_for_the_one_that_was_asked_for() -> Result<()> {
    let site = site(None)?;
    let (_, reference) = site.image("lab/one", 80, MIB)?;
    site.node.run(&["pull", &reference])?;
    let has = site.node.json(&["inspect", &reference])?["platform"].as_str().context("none")?.to_owned();
    for command in [&["inspect"][..], &["inspect", "--layer", "1"]] {
        let with = |platform| [command, &["--platform", platform, &reference]].concat();
        let said = site.node.fails(&with("linux/s390x"))?;
        let names = |text: &str| said.contains(text);
        assert!(names("linux/s390x") && names(&format!("for {has}")) && names(&reference), "{said}");
    }
    site.node.run(&["inspect", "--platform", &has, &reference])?;
    Ok(())
}

#[test]
fn removal_says_that_an_image_was_pinned_and_of_what_is_not_here_where_to_look() -> Result<()> {
    let site = site(None)?;
    let (_, reference) = site.image("lab/one", 79, MIB)?;
    site.node.run(&["pull", &reference])?;
    site.node.run(&["pin", &reference])?;
    assert!(site.node.run(&["rm", &reference])?.contains("; it was pinned\n"));
    let said = site.node.fails(&["rm", &reference])?;
    assert!(said.contains("'wherry images'") && !said.contains("bring it here"), "{said}");
    Ok(())
}

#[test]
fn an_image_that_its_tag_has_left_says_for_how_long_it_has_been_here() -> Result<()> {
    let site = site(None)?;
    let (_, reference) = site.image("lab/one", 76, MIB)?;
    site.node.run(&["pull", &reference])?;
    let (_, again) = site.image("lab/one", 77, MIB)?;
    site.node.run(&["pull", "--refresh", &again])?;
    let listed = site.node.json(&["images"])?;
    let listed = listed.as_array().context("no list")?;
    ensure!(listed.len() == 2 && listed.iter().all(|image| image["added"].is_u64()), "{listed:?}");
    Ok(())
}

#[test]
fn removal_takes_what_no_other_image_has_and_leaves_the_rest() -> Result<()> {
    let site = site(None)?;
    let (first, reference) = site.image("lab/one", 80, 2 * MIB)?;
    // The same layer and config under another name.
    let (second, other) = site.image("lab/two", 80, 2 * MIB)?;
    let (_, third) = site.image("lab/three", 81, MIB)?;
    for name in [&reference, &other, &third] {
        site.node.run(&["pull", name])?;
    }
    assert_eq!(first.layers, second.layers);
    let removed = site.node.json(&["rm", &third])?;
    assert_eq!(removed["removed"][0]["blobs"], 3, "{removed}");
    let removed = site.node.json(&["rm", &reference])?;
    assert_eq!((&removed["removed"][0]["blobs"], &removed["removed"][0]["shared"]), (&0.into(), &3.into()));
    assert_eq!(site.names()?, std::slice::from_ref(&other));
    ensure!(site.node.json(&["check", &other])?["missing"] == serde_json::json!([]), "it should be whole");
    let said = site.node.run(&["rm", &other])?;
    assert!(said.contains("removed") && said.contains("2.00 MiB"), "{said}");
    let status = site.node.json(&["status"])?;
    assert_eq!((&status["store"]["blobs"], &status["store"]["bytes"]), (&0.into(), &0.into()), "{status}");
    let said = site.node.fails(&["rm", &other])?;
    assert!(said.contains("not here"), "{said}");
    // And it comes back.
    site.node.run(&["pull", &other]).map(drop)
}

#[test]
fn what_is_being_pulled_is_not_removed() -> Result<()> {
    let wire = Alone::enter()?;
    let site = site(None)?;
    let (_, reference) = site.image("lab/slow", 82, 32 * MIB)?;
    wire.shape("20mbit")?;
    let mut pull = site.node.begin("pull", &["pull", &reference])?;
    wait_until("nothing but the layer is on its way", SOON, || {
        let status = site.node.json(&["status"])?;
        let is_on_its_way = status["transfers"].as_array().is_some_and(|all| !all.is_empty());
        // The manifest and the configuration.
        Ok(is_on_its_way && status["store"]["blobs"] == 2)
    })?;
    let said = site.node.fails(&["rm", &reference])?;
    assert!(said.contains("on its way") && said.contains("wherry cancel"), "{said}");
    let inspected = site.node.run(&["inspect", &reference])?;
    assert!(inspected.contains("on its way") && !inspected.contains("pull the image"), "{inspected}");
    let status = site.node.json(&["status"])?;
    let transfer = &status["transfers"][0];
    assert_eq!(transfer["images"], serde_json::json!([reference]), "{status}");
    assert!(transfer["sources"].as_u64() >= Some(1), "the registry is a source: {status}");
    assert!(status["store"]["bytes"].as_u64() < Some(32 * MIB), "what has arrived counts: {status}");
    site.node.run(&["cancel", &reference])?;
    pull.stop(SOON)?;
    site.node.run(&["rm", &reference])?;
    assert_eq!(site.node.json(&["status"])?["store"]["bytes"], 0);
    Ok(())
}

#[test]
fn a_pull_by_digest_keeps_what_it_shares_with_an_image_that_is_removed_meanwhile() -> Result<()> {
    let wire = Alone::enter()?;
    let site = site(None)?;
    // Of one seed, so that the first layer is the same.
    let (_, small) = site.image("lab/small", 89, MIB)?;
    let large = push_image(site.origin.addr(), "lab/large", "1", 89, &[MIB, 32 * MIB])?;
    let manifest = large.reference(site.origin.host());
    let name = manifest.strip_suffix(":1").context("no tag")?;
    let reference = format!("{name}@{}", large.manifest);
    site.node.run(&["pull", &small])?;
    wire.shape("40mbit")?;
    let mut pull = site.node.begin("pull", &["pull", &reference])?;
    wait_until("the second layer is on its way", SOON, || {
        let status = site.node.json(&["status"])?;
        let all = status["transfers"].as_array().context("no transfers")?;
        Ok(all.iter().any(|transfer| transfer["size"] == 32 * MIB))
    })?;
    let removed = site.node.json(&["rm", &small])?;
    assert_eq!((&removed["removed"][0]["blobs"], &removed["removed"][0]["shared"]), (&2.into(), &1.into()));
    ensure!(pull.wait_exit(Duration::from_secs(60))?.success(), "the pull failed");
    assert_eq!(site.names()?, [reference]);
    Ok(())
}

#[test]
fn a_pinned_image_stays_and_others_make_room_by_name() -> Result<()> {
    let site = site(Some("10MiB"))?;
    let (_, pinned) = site.image("lab/pinned", 83, 4 * MIB)?;
    let (_, loose) = site.image("lab/loose", 84, 4 * MIB)?;
    let (_, next) = site.image("lab/next", 85, 4 * MIB)?;
    let (_, big) = site.image("lab/big", 86, 12 * MIB)?;
    let (_, fat) = site.image("lab/fat", 87, 8 * MIB)?;
    for name in [&pinned, &loose] {
        site.node.run(&["pull", name])?;
    }
    site.node.run(&["pin", &pinned])?;
    site.node.run(&["pull", &next])?;
    let mut names = site.names()?;
    names.sort();
    assert_eq!(names, [next.clone(), pinned.clone()]);
    wait_until("the log names what made room", SOON, || {
        Ok(site.node.log()?.lines().any(|line| line.contains("to make room") && line.contains(&loose)))
    })?;

    let said = site.node.fails(&["pull", &big])?;
    assert!(said.contains("12.0 MiB") && said.contains("whole disk budget of 10.0 MiB"), "{said}");
    let said = site.node.fails(&["pull", &fat])?;
    assert!(said.contains("wherry unpin") && said.contains("disk budget of 10.0 MiB"), "{said}");
    // What cannot be had costs nothing that is here.
    let mut names = site.names()?;
    names.sort();
    assert_eq!(names, [next.clone(), pinned.clone()]);
    let said = site.node.run(&["images"])?;
    assert!(said.lines().any(|line| line.contains("lab/pinned") && line.contains("yes")), "{said}");
    site.node.run(&["unpin", &pinned])?;
    let said = site.node.fails(&["unpin", &pinned])?;
    assert!(said.contains("is not pinned"), "{said}");
    site.node.run(&["pull", &fat])?;
    assert_eq!(site.names()?, [fat]);
    Ok(())
}

#[test]
fn a_runtimes_pull_costs_no_more_of_another_image_than_it_needs_and_what_is_left_of_that_is_listed()
-> Result<()> {
    let mut site = site(Some("12MiB"))?;
    let old = push_image(site.origin.addr(), "lab/old", "1", 88, &[2 * MIB, 2 * MIB, 2 * MIB, 2 * MIB])?;
    let new = push_image(site.origin.addr(), "lab/new", "1", 89, &[2 * MIB, 2 * MIB, 2 * MIB])?;
    let references = [&old, &new].map(|image| image.reference(site.origin.host()));
    let skopeo = Skopeo::new(&site.lab, "skopeo")?;
    let pull = |node: &Wherry, image: &Image, name: &str| {
        skopeo.pull(&image.reference(node.gateway()?), name)?.check(image)
    };
    pull(&site.node, &old, "old")?;
    // Which manifests are here, and what they name, is known after a start as well.
    site.node.stop()?;
    site.node.up()?;
    pull(&site.node, &new, "new")?;
    let images = site.node.json(&["images"])?;
    let here = |reference: &String| {
        let found = images.as_array().into_iter().flatten().find(|image| image["reference"] == *reference);
        found.and_then(|image| image["here"].as_u64())
    };
    // 14 MiB, some manifests, configurations, chains, and what is on its way: two layers have to go.
    assert_eq!(here(&references[1]), Some(new.size()), "{images}");
    assert_eq!(here(&references[0]), Some(old.size() - 4 * MIB), "{images}");
    let inspected = site.node.json(&["inspect", &references[0]])?;
    assert_eq!(inspected["here"].as_u64(), Some(old.size() - 4 * MIB), "{inspected}");
    Ok(())
}

#[test]
fn an_image_without_a_name_is_used_by_its_digest_or_gets_one() -> Result<()> {
    let site = site(None)?;
    let (_, reference) = site.image("lab/nameless", 88, MIB)?;
    let skopeo = Skopeo::new(&site.lab, "skopeo")?;
    let layout = site.lab.path().join("layout");
    skopeo.copy(&format!("docker://{reference}"), &format!("oci:{}", layout.display()))?;
    let from = layout.display().to_string();
    let node = Wherry::start(&site.lab, "other", Options::default())?;
    node.run(&["import", &from])?;
    let listed = node.json(&["images"])?;
    // skopeo writes a manifest of its own.
    let digest = listed[0]["digest"].as_str().context("no digest")?.to_owned();
    let (name, beginning) = (format!("<none>@{digest}"), &digest[..7 + 12]);
    assert_eq!(listed[0]["reference"], name.as_str(), "{listed}");
    for text in [digest.as_str(), beginning, &name] {
        let inspected = node.json(&["inspect", text])?;
        assert_eq!((&inspected["digest"], &inspected["size"]), (&digest.as_str().into(), &listed[0]["size"]));
    }
    let archive = site.lab.path().join("nameless.tar").display().to_string();
    let exported = node.json(&["export", beginning, "-o", &archive])?;
    assert_eq!(exported["reference"], name.as_str(), "{exported}");

    // What is shorter, or no digest, is refused and never taken for a tag.
    for text in ["sha256:1849", "sha256:latest"] {
        refused(node.command()?.args(["inspect", text]), 2)?;
    }
    let said = node.fails(&["pull", &digest])?;
    assert!(said.contains("without a name"), "{said}");
    assert_eq!(node.json(&["why", beginning])?["state"], "here");

    node.run(&["import", "--name", "site.example/named:1", &archive])?;
    assert!(node.json(&["images"])?.to_string().contains("site.example/named:1"));
    let said = node.fails(&["rm", beginning])?;
    assert!(said.contains("several names"), "{said}");
    node.run(&["rm", &name, "site.example/named:1"])?;
    assert_eq!(node.json(&["status"])?["store"]["blobs"], 0);
    Ok(())
}

#[test]
fn a_budget_that_is_smaller_than_what_is_here_says_at_the_start_which_images_lose_how_much() -> Result<()> {
    let Site { mut node, origin, lab: _lab } = site(None)?;
    let push = |name: &str, seed| push_image(origin.addr(), name, "1", seed, &[4 * MIB]);
    let [old, new] = [push("lab/old", 93)?, push("lab/new", 94)?].map(|image| image.reference(origin.host()));
    for name in [&old, &new] {
        node.run(&["pull", name])?;
    }
    node.stop()?;
    node.options().more.extend(["--disk-budget", "6MiB"].map(str::to_owned));
    node.up()?;
    let log = node.log()?;
    let warns = |parts: &[&str]| {
        log.lines().any(|line| line.contains("WARN") && parts.iter().all(|part| line.contains(part)))
    };
    assert!(warns(&[&old, "not whole any more", "disk budget", "4.00 MiB", "6.00 MiB"]), "{log}");
    assert!(!warns(&[&new]), "{log}");
    let images = node.json(&["images"])?;
    assert_eq!(
        (images.as_array().map(Vec::len), &images[0]["reference"]),
        (Some(1), &new.into()),
        "{images}"
    );
    assert!(node.json(&["status"])?["store"]["bytes"].as_u64() <= Some(6 * MIB));
    Ok(())
}

#[test]
fn a_pin_follows_its_tag_when_a_runtime_pulls_it_anew() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let options = Options::origin(origin.host()).with("--tag-ttl").with("1ms");
    let node = Wherry::start(&lab, "node", options.with("--disk-budget").with("10MiB"))?;
    let before = push_image(origin.addr(), "lab/moving", "1", 95, &[3 * MIB])?;
    let reference = before.reference(origin.host());
    node.run(&["pull", &reference])?;
    node.run(&["pin", &reference])?;

    let after = push_image(origin.addr(), "lab/moving", "1", 96, &[3 * MIB])?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let (from, mut tries) = (format!("{}/{}", node.gateway()?, after.name()), 0);
    // The registry is asked anew once its last answer is a second old.
    wait_until("a runtime has what the tag means now", SOON, || {
        tries += 1;
        Ok(skopeo.pull(&from, &format!("try-{tries}"))?.check(&after).is_ok())
    })?;
    wait_until("the pin has followed", SOON, || {
        let images = node.json(&["images"])?;
        let digest = after.manifest.to_string();
        Ok(images
            .as_array()
            .is_some_and(|all| all.iter().any(|it| it["digest"] == digest.as_str() && it["pinned"] == true)))
    })?;
    // What the tag meant before makes room, and what it means now does not.
    let large = push_image(origin.addr(), "lab/large", "1", 97, &[6 * MIB])?;
    node.run(&["pull", &large.reference(origin.host())])?;
    let checked = node.json(&["check", &reference])?;
    assert_eq!((&checked["blobs"], &checked["missing"]), (&3.into(), &serde_json::json!([])), "{checked}");
    node.run(&["unpin", &reference]).map(drop)
}

#[test]
fn what_is_damaged_of_another_platform_stays_pinned_over_a_restart() -> Result<()> {
    let Site { mut node, origin, lab: _lab } = site(None)?;
    let (ours, other) = match cfg!(target_arch = "aarch64") {
        true => ("arm64", "amd64"),
        false => ("amd64", "arm64"),
    };
    let mut manifests = Vec::new();
    let mut push = |arch: &str, seed| -> Result<Image> {
        let image = push_image(origin.addr(), "lab/many", arch, seed, &[MIB])?;
        manifests.push(json!({
            "mediaType": OCI_MANIFEST, "digest": image.manifest, "size": image.manifest_bytes.len(),
            "platform": {"os": "linux", "architecture": arch},
        }));
        Ok(image)
    };
    push(ours, 100)?;
    let damaged = push(other, 101)?.layers[0].digest.hex();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).to_string();
    let put =
        Request::new(origin.addr(), "PUT", "/v2/lab/many/manifests/1").header("Content-Type", media_type);
    let answer = put.body(index.len() as u64, &mut index.as_bytes()).send_and_read()?;
    ensure!(answer.status == 201, "{}", answer.text());
    let reference = format!("{}/lab/many:1", origin.host());
    node.run(&["pull", &reference])?;
    node.run(&["pull", "--platform", &format!("linux/{other}"), &reference])?;
    assert_eq!(node.json(&["pin", &reference])?["blobs"], 7);

    let path = node.data().join("blobs/sha256").join(&damaged[..2]).join(&damaged);
    let mut bytes = fs::read(&path)?;
    bytes[0] ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    fs::write(&path, bytes)?;
    node.fails(&["check"])?;
    // A node does not end before it has looked at its pins, as it does when it starts.
    for _ in 0..2 {
        node.stop()?;
        ensure!(!node.log()?.contains("means another image"), "{}", node.log()?);
        node.up()?;
    }
    assert_eq!(node.json(&["unpin", &reference])?["blobs"], 7);
    Ok(())
}

#[test]
fn a_shortened_digest_that_several_names_have_is_pinned_under_none_and_the_names_are_told() -> Result<()> {
    let site = site(None)?;
    let (image, reference) = site.image("lab/one", 81, MIB)?;
    site.node.run(&["pull", &reference])?;
    let archive = site.lab.path().join("one.tar").display().to_string();
    site.node.run(&["export", &reference, "-o", &archive])?;
    site.node.run(&["import", "--name", "site.wherry/lab/other:1", &archive])?;
    site.node.run(&["unpin", "site.wherry/lab/other:1"])?;
    let digits = &image.manifest.hex()[..12];
    for command in ["pin", "unpin"] {
        let said = site.node.fails(&[command, digits])?;
        assert!(said.contains(&reference) && said.contains("site.wherry/lab/other:1"), "{command}: {said}");
    }
    let images = site.node.json(&["images"])?;
    let all = images.as_array().context("no list")?;
    assert!(all.len() == 2 && all.iter().all(|image| image["pinned"] == false), "{images}");
    site.node.run(&["pin", &reference])?;
    site.node.run(&["unpin", &reference])?;
    Ok(())
}
