//! What a tag means now: when the registry is asked, and that nobody is left to believe that it was.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use wherry_tests::blobs::push_image;
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::output;
use wherry_tests::registry::{self, Registry};
use wherry_tests::wait::wait_until;

/// What a pull prints to standard error.
fn says(node: &Wherry, arguments: &[&str]) -> Result<String> {
    let answer = output(node.command()?.args(arguments))?;
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    anyhow::ensure!(answer.status.success(), "{arguments:?}: {said}");
    Ok(said)
}

#[test]
fn a_pull_says_how_old_its_answer_is_and_asks_the_registry_on_demand() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let before = push_image(origin.addr(), "lab/moving", "1", 90, &[1 << 20])?;
    let reference = before.reference(origin.host());
    let options = Options::origin(origin.host()).with("--tag-ttl").with("1h");
    let node = Wherry::start(&lab, "node", options)?;
    let pull = |arguments: &[&str]| node.json(&[&["pull", &reference], arguments].concat());
    let first = pull(&[])?;
    assert_eq!((&first["asked"], &first["tag_age_seconds"]), (&true.into(), &0.into()), "{first}");

    let after = push_image(origin.addr(), "lab/moving", "1", 91, &[1 << 20])?;
    let again = pull(&[])?;
    assert_eq!(again["digest"], before.manifest.to_string(), "{again}");
    assert_eq!(again["asked"], false, "{again}");
    assert!(again["tag_age_seconds"].as_u64().is_some(), "{again}");
    let said = says(&node, &["pull", &reference])?;
    assert!(said.contains(" ago: ") && said.contains("--refresh"), "{said}");

    let fresh = pull(&["--refresh"])?;
    assert_eq!(fresh["digest"], after.manifest.to_string(), "{fresh}");
    assert_eq!((&fresh["asked"], &fresh["unasked"]), (&true.into(), &Value::Null), "{fresh}");

    origin.stop()?;
    let down = pull(&["--refresh"])?;
    assert_eq!((&down["digest"], &down["asked"]), (&fresh["digest"], &false.into()), "{down}");
    assert!(down["unasked"].as_str().context("no reason")?.contains("does not say"), "{down}");
    let said = says(&node, &["pull", "--refresh", &reference])?;
    assert!(said.contains("does not say"), "{said}");
    Ok(())
}

#[test]
fn the_log_of_an_origin_that_is_down_does_not_contradict_itself() -> Result<()> {
    let lab = Lab::new()?;
    let mut origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/still", "1", 92, &[1 << 20])?;
    let reference = image.reference(origin.host());
    let options = Options::origin(origin.host()).with("--tag-ttl").with("1ms");
    let node = Wherry::start(&lab, "node", options)?;
    node.run(&["pull", &reference])?;
    origin.stop()?;
    let serves =
        |log: &str| log.lines().find(|line| line.contains("newest answer serves")).map(str::to_owned);
    // Ages are counted in seconds, so that the first answer is new for up to one.
    wait_until("an old answer serves", Duration::from_secs(30), || {
        let pulled = node.json(&["pull", &reference])?;
        anyhow::ensure!(pulled["asked"] == false, "{pulled}");
        Ok(serves(&node.log()?).is_some())
    })?;
    let line = serves(&node.log()?).context("no such line")?;
    assert!(!line.contains("Some(") && !line.contains("no other node"), "{line}");
    Ok(())
}

#[test]
fn json_names_images_in_full_and_roles_one_by_one() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/full", "1", 93, &[1 << 20])?;
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    node.run(&["pull", "lab/full:1"])?;
    let archive = lab.path().join("full.tar").display().to_string();
    let exported = node.json(&["export", "lab/full:1", "-o", &archive])?;
    assert_eq!(exported["reference"], image.reference(origin.host()), "{exported}");
    let (listed, inspected) = (node.json(&["images"])?, node.json(&["inspect", "lab/full:1"])?);
    assert_eq!(listed[0]["size"], inspected["size"], "{listed} {inspected}");
    let shown = node.json(&["network", "show"])?;
    assert_eq!(shown["roles"], serde_json::json!(["member", "resolver"]), "{shown}");
    Ok(())
}
