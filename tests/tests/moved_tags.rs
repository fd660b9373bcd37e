//! A tag that the site has seen move, and the image that it meant before: what commands and the gateway say of both.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wherry_tests::blobs::push_image;
use wherry_tests::http::get;
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

fn listed(node: &Wherry, reference: &str) -> Result<Option<Value>> {
    let images = node.json(&["images"])?;
    let found = images.as_array().context("no list")?.iter().find(|image| image["reference"] == reference);
    Ok(found.cloned())
}

#[test]
fn what_a_tag_meant_before_is_listed_found_by_its_digest_and_named_where_the_tag_is_of_no_use() -> Result<()>
{
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let old = push_image(origin.addr(), "lab/moving", "1", 94, &[1 << 20])?;
    let tag = old.reference(origin.host());
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()).with("--tag-ttl").with("1ms"))?;
    node.run(&["pull", &tag])?;
    node.run(&["pin", &tag])?;
    let new = push_image(origin.addr(), "lab/moving", "1", 95, &[1 << 20])?;
    wait_until("the node knows what the tag means now", SOON, || {
        Ok(get(node.gateway()?, "/v2/lab/moving/manifests/1")?.body == new.manifest_bytes)
    })?;
    origin.stop()?;

    let repository = tag.strip_suffix(":1").context("no tag")?;
    let by_digest = format!("{repository}@{}", old.manifest);
    for command in ["pull", "inspect", "export", "pin"] {
        let said = node.fails(&[command, &tag])?;
        assert!(said.contains("has moved") && said.contains(&by_digest), "{command}: {said}");
    }
    let said = node.fails(&["inspect", &tag])?;
    assert!(!said.contains("wherry inspect"), "a hint that leads back: {said}");
    let path = format!("/v2/lab/moving/blobs/{}", new.layers[0].digest);
    let answer = get(node.gateway()?, &path)?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.status >= 500 && body.contains("has moved") && body.contains(&by_digest), "{body}");

    let image = listed(&node, &by_digest)?.context("what the tag meant is not listed")?;
    assert_eq!((&image["whole"], &image["pinned"]), (&true.into(), &true.into()), "{image}");
    assert_eq!(image["was"], json!([tag]), "{image}");
    let page = node.run(&["images"])?;
    assert!(
        page.lines().any(|line| line.contains(&by_digest) && line.contains(&format!("was {tag}"))),
        "{page}"
    );

    // By every way to write its digest.
    let (whole, digits) = (old.manifest.to_string(), old.manifest.hex());
    for text in [&by_digest, &whole, &digits, &whole[..7 + 12], &digits[..12]] {
        let inspected = node.json(&["inspect", text])?;
        assert_eq!((&inspected["digest"], &inspected["reference"]), (&json!(whole), &json!(by_digest)));
        assert_eq!((&inspected["size"], &inspected["here"]), (&image["size"], &image["here"]));
        assert_eq!(node.json(&["why", text])?["state"], "here", "{text}");
        let pulled = node.json(&["pull", text])?;
        assert_eq!((&pulled["reference"], &pulled["digest"]), (&json!(by_digest), &json!(whole)), "{text}");
        assert!(node.fails(&["cancel", text])?.contains("nothing of"), "{text}");
        let archive = lab.path().join("old.tar").display().to_string();
        assert_eq!(node.json(&["export", text, "-o", &archive])?["reference"], json!(by_digest));
        assert_eq!(node.json(&["pin", text])?["reference"], json!(by_digest));
        assert_eq!(node.json(&["unpin", text])?["reference"], json!(by_digest));
    }
    let image = listed(&node, &by_digest)?.context("it is not listed any more")?;
    assert_eq!(image["pinned"], false, "{image}");
    node.run(&["rm", &digits[..12]])?;
    assert_eq!(listed(&node, &by_digest)?, None);
    let said = node.fails(&["inspect", &digits[..12]])?;
    assert!(said.contains("not here"), "{said}");
    let said = node.fails(&["pull", "--wait", "0s", &tag])?;
    assert!(!said.contains("has moved"), "nothing is left of it: {said}");
    Ok(())
}

#[test]
fn a_tag_move_that_one_node_saw_outlives_that_node() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let old = push_image(origin.addr(), "lab/moving", "1", 88, &[1 << 20])?;
    let tag = old.reference(origin.host());
    let network = Network::new(&lab)?;
    let options = Options::origin(origin.host()).with("--tag-ttl").with("1h");
    let mut one = network.member(&lab, "one", options.clone(), &[])?;
    let two = network.member(&lab, "two", options, &[&one])?;
    for node in [&one, &two] {
        node.run(&["pull", &tag])?;
    }
    let new = push_image(origin.addr(), "lab/moving", "1", 89, &[1 << 20])?;
    one.run(&["pull", "--refresh", &tag])?;
    one.kill()?;
    origin.stop()?;
    let answer = get(two.gateway()?, "/v2/lab/moving/manifests/1")?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    let now = format!("it means {} now", new.manifest);
    assert!(answer.status >= 400 && body.contains(&now), "{}: {body}", answer.status);
    let said = two.fails(&["pull", "--wait", "0s", &tag])?;
    assert!(said.contains(&now) && said.contains(&old.manifest.to_string()), "{said}");
    Ok(())
}

#[test]
fn a_tag_stays_pinned_when_what_it_meant_before_is_let_go() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let old = push_image(origin.addr(), "lab/moving", "1", 92, &[1 << 20])?;
    let tag = old.reference(origin.host());
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()).with("--tag-ttl").with("1ms"))?;
    node.run(&["pull", &tag])?;
    node.run(&["pin", &tag])?;
    let new = push_image(origin.addr(), "lab/moving", "1", 93, &[1 << 20])?;
    wait_until("the node knows what the tag means now", SOON, || {
        Ok(get(node.gateway()?, "/v2/lab/moving/manifests/1")?.body == new.manifest_bytes)
    })?;
    let by_digest = format!("{}@{}", tag.strip_suffix(":1").context("no tag")?, old.manifest);
    node.run(&["unpin", &by_digest])?;
    let image = listed(&node, &by_digest)?.context("what the tag meant is not listed")?;
    assert_eq!(image["pinned"], false, "{image}");
    node.run(&["pull", &tag])?;
    let image = listed(&node, &tag)?.context("the tag is not listed")?;
    assert_eq!((&image["digest"], &image["pinned"]), (&json!(new.manifest.to_string()), &true.into()));
    node.run(&["unpin", &tag]).map(drop)
}

#[test]
fn an_image_that_a_tag_has_left_keeps_the_layers_that_it_shares() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    // Of one seed, so that the first layer is the same.
    let old = push_image(origin.addr(), "lab/moving", "1", 96, &[1 << 20])?;
    let tag = old.reference(origin.host());
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    node.run(&["pull", &tag])?;
    push_image(origin.addr(), "lab/moving", "1", 96, &[1 << 20, 2 << 20])?;
    node.run(&["pull", "--refresh", &tag])?;
    let removed = node.json(&["rm", &tag])?;
    assert_eq!(removed["removed"][0]["shared"], 1, "{removed}");
    let by_digest = format!("{}@{}", tag.strip_suffix(":1").context("no tag")?, old.manifest);
    ensure!(node.json(&["check", &by_digest])?["missing"] == json!([]), "it should be whole");
    node.run(&["rm", &by_digest])?;
    assert_eq!(node.json(&["status"])?["store"]["blobs"], 0);
    Ok(())
}

#[test]
fn a_word_that_may_be_a_name_or_a_digest_is_the_name_where_that_is_known() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/one", "1", 97, &[1 << 20])?;
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    node.run(&["pull", "lab/one:1"])?;
    let word = &image.manifest.hex()[..12];
    let other = push_image(origin.addr(), word, "latest", 98, &[1 << 20])?;
    assert_eq!(node.json(&["inspect", word])?["digest"], image.manifest.to_string());
    node.run(&["pull", &format!("{word}:latest")])?;
    assert_eq!(node.json(&["inspect", word])?["digest"], other.manifest.to_string());
    assert_eq!(node.json(&["inspect", &format!("sha256:{word}")])?["digest"], image.manifest.to_string());
    Ok(())
}

#[test]
fn an_image_of_which_a_part_is_here_is_listed_with_that_and_removal_counts_it() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/partly", "1", 99, &[8 << 20])?;
    let tag = image.reference(origin.host());
    let options = Options::origin(origin.host()).with("--wan-down").with("8Mbit/s");
    let node = Wherry::start(&lab, "node", options)?;
    let mut pull = node.begin("pull", &["pull", &tag])?;
    wait_until("a part of it is here", SOON, || {
        Ok(listed(&node, &tag)?.is_some_and(|image| image["here"].as_u64() > Some(1 << 20)))
    })?;
    // By its digest as well.
    let cancelled = node.json(&["cancel", &image.manifest.hex()[..12]])?;
    assert_eq!((&cancelled["reference"], &cancelled["pulls"]), (&json!(tag), &1.into()), "{cancelled}");
    pull.stop(SOON)?;
    let summary = listed(&node, &tag)?.context("it is not listed")?;
    assert_eq!(
        (&summary["whole"], &summary["size"]),
        (&false.into(), &node.json(&["inspect", &tag])?["size"])
    );
    let page = node.run(&["images"])?;
    assert!(page.contains("of it here"), "{page}");
    let removed = node.json(&["rm", &tag])?;
    let removed = &removed["removed"][0];
    assert_eq!((&removed["blobs"], &removed["partial"]), (&2.into(), &1.into()), "{removed}");
    assert!(removed["bytes"].as_u64() > Some(1 << 20), "{removed}");
    assert_eq!(node.json(&["status"])?["store"]["bytes"], 0);
    Ok(())
}
