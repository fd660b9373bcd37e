//! Bootstrap addresses that lead nowhere: what a node says of them, and that it stops once they are connected.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::wait::wait_until;

/// What an address that is tried time and again may take to be so.
const SOON: Duration = Duration::from_secs(60);

/// The end of a connection shows at once; of a second one that says no word, once its neighbour has not answered for 10 s, and
/// long before 45 s of silence end it.
const AT_ONCE: Duration = Duration::from_secs(20);

fn with(addresses: &[&str]) -> Options {
    let bootstrap = addresses.iter().map(|address| (*address).to_owned()).collect();
    Options { bootstrap, ..Options::default() }
}

/// What the node says of an address, if it is not connected.
fn unreached(node: &Wherry, address: &str) -> Result<Option<Value>> {
    let mut found = None;
    for command in ["status", "peers"] {
        let answer = node.json(&[command])?;
        let all = answer["unreached"].as_array().context("no list")?;
        found = all.iter().find(|it| it["address"] == address).cloned();
    }
    Ok(found)
}

fn says(node: &Wherry, address: &str, why: &str) -> Result<bool> {
    Ok(unreached(node, address)?.is_some_and(|it| it["why"].as_str().is_some_and(|it| it.contains(why))))
}

/// The warnings about an address.
fn warned(node: &Wherry, address: &str) -> Result<Vec<String>> {
    let about = |line: &&str| line.contains("WARN") && line.contains(address);
    Ok(node.log()?.lines().filter(about).map(str::to_owned).collect())
}

#[test]
fn an_address_that_is_not_connected_is_told_with_why_and_logged_once() -> Result<()> {
    let lab = Lab::new()?;
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mute = TcpListener::bind("127.0.0.1:0")?;
    let stranger = Wherry::start(&lab, "stranger", Options::default())?;
    let address = stranger.addresses()?.peers.iter().find(|it| it.contains("/tcp/")).context("no address")?;
    let other = address.split("/p2p/").next().context("no address")?;
    let refused = format!("/ip4/127.0.0.1/tcp/{nobody}");
    let silent = format!("/ip4/127.0.0.1/tcp/{}", mute.local_addr()?.port());
    let node = Wherry::start(&lab, "node", with(&[&refused, &silent, other]))?;
    for (address, why) in [(&*refused, "refused"), (&silent, "no answer within"), (other, "another network")]
    {
        wait_until(why, SOON, || says(&node, address, why))?;
        assert!(unreached(&node, address)?.context("it is gone")?["since"].as_u64() > Some(0));
        for command in ["status", "peers"] {
            let page = node.run(&[command])?;
            assert!(page.contains("not connected for ") && page.contains(address), "{page}");
            assert!(page.contains(why), "{page}");
        }
    }
    // It has been tried several times by then.
    wait_until("the silent one is said to be", SOON, || Ok(!warned(&node, &silent)?.is_empty()))?;
    for (address, why) in [(&*refused, "refused"), (&silent, "no answer within"), (other, "another network")]
    {
        let lines = warned(&node, address)?;
        assert!(lines.len() == 1 && lines[0].contains(why), "{lines:?}");
    }
    Ok(())
}

#[test]
fn an_address_of_the_node_itself_is_not_told_of() -> Result<()> {
    let lab = Lab::new()?;
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let refused = format!("/ip4/127.0.0.1/tcp/{nobody}");
    let mut node = Wherry::start(&lab, "node", Options::default())?;
    let own = node.addresses()?.peers.iter().find(|it| it.contains("/tcp/")).context("no address")?.clone();
    let own = own.split("/p2p/").next().context("no address")?.to_owned();
    node.stop()?;
    // It listens where it did before, as where all nodes have one list.
    let port = own.rsplit('/').next().context("no port")?;
    node.options().more.extend(["--peers".to_owned(), format!("127.0.0.1:{port}")]);
    node.options().bootstrap.extend([own.clone(), refused.clone()]);
    node.up()?;
    assert!(node.addresses()?.peers.iter().any(|it| it.starts_with(&own)), "{:?}", node.addresses()?.peers);
    wait_until("the other one is told of", SOON, || says(&node, &refused, "refused"))?;
    assert_eq!(unreached(&node, &own)?, None);
    assert_eq!(warned(&node, &own)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn an_address_is_no_longer_told_of_once_it_is_connected_and_again_when_it_is_gone() -> Result<()> {
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let mut first = network.member(&lab, "first", Options::default(), &[])?;
    let second = network.member(&lab, "second", Options::default(), &[&first])?;
    wait_until("they are connected", SOON, || {
        Ok(second.json(&["status"])?["peers"] == 1 && second.json(&["status"])?["unreached"] == json!([]))
    })?;
    assert!(!second.log()?.contains("bootstrap address"), "it was never tried in vain");
    first.stop()?;
    let told = || anyhow::Ok(second.json(&["status"])?["unreached"].clone());
    // First that the connection has ended, and soon what has come of dialing it again.
    wait_until("it is told of", AT_ONCE, || Ok(told()?.as_array().is_some_and(|all| !all.is_empty())))?;
    assert_eq!(second.json(&["peers"])?["peers"], json!([]));
    wait_until("why is told", SOON, || Ok(told()?.to_string().contains("refused")))?;
    first.up()?;
    Ok(())
}

#[test]
fn a_neighbour_that_was_killed_is_gone_although_it_said_no_word_on_its_last_connection() -> Result<()> {
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let mut first = network.member(&lab, "first", Options::default(), &[])?;
    // Addresses without a name are all dialed, so that there is a connection over TCP and one over QUIC.
    let addresses = first.addresses()?.peers.clone();
    let unnamed: Vec<&str> = addresses.iter().filter_map(|it| it.split("/p2p/").next()).collect();
    assert!(unnamed.len() >= 2, "{unnamed:?}");
    let second = network.member(&lab, "second", with(&unnamed), &[])?;
    wait_until("they are connected over both", SOON, || {
        let status = second.json(&["status"])?;
        Ok(status["peers"] == 1 && status["unreached"] == json!([]))
    })?;
    first.kill()?;
    wait_until("it is gone", AT_ONCE, || {
        let status = second.json(&["status"])?;
        Ok(status["peers"] == 0 && status["unreached"].as_array().is_some_and(|all| all.len() >= 2))
    })?;
    assert_eq!(second.json(&["peers"])?["peers"], json!([]));
    Ok(())
}
