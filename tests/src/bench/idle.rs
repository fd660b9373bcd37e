//! What nodes cost that have nothing to do, in a network namespace where nobody else sends a byte.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use wherry_node::swarm::{FAR_PING_TIME, PING_TIME};
use wherry_tests::blobs::push_image;
use wherry_tests::lab::Lab;
use wherry_tests::netns::Alone;
use wherry_tests::network::Network;
use wherry_tests::node::Options;
use wherry_tests::registry::{self, Registry};

use super::table::{Goal, Table};

/// How long the nodes are left to settle: half a minute after they have met, connections that nobody uses end.
const SETTLE: Duration = Duration::from_secs(45);

/// How long they are watched: in this time each asks the other twice whether it is there.
const WATCH: Duration = PING_TIME.saturating_mul(2);
const WATCH_FAR: Duration = FAR_PING_TIME.saturating_mul(2);

/// How many nodes there are beside the one that announces, and how many blobs it holds.
const OTHERS: usize = 23;
const BLOBS: usize = 100;

/// How long they are watched before there is anything to announce, and while that is announced: in each such time all ask each
/// other once whether they are there.
const ROUND: Duration = FAR_PING_TIME;

/// Two nodes that know each other; the figures are the first one's.
pub(crate) fn two_nodes(table: &mut Table) -> Result<()> {
    // In a thread of its own, so that other benchmarks stay where they are.
    let watch = |other: Options, time| {
        std::thread::spawn(move || watch(other, time)).join().ok().context("the watching thread")?
    };
    let [memory, cpu, traffic, written] = watch(Options::default(), WATCH)?;
    let [_, _, far, _] = watch(Options::default().with("--site").with("elsewhere"), WATCH_FAR)?;
    table.figure("resident memory of an idle node", memory, "MiB", Goal::AtMost(30.0));
    table.figure("CPU of an idle node, of one core", cpu, "%", Goal::None);
    table.figure("traffic of an idle node for each neighbour, both ways", traffic, "B/s", Goal::None);
    table.figure("  for each neighbour at another site", far, "B/s", Goal::None);
    table.figure("bytes that an idle node writes to the disk", written, "B/s", Goal::None);
    Ok(())
}

fn watch(other: Options, time: Duration) -> Result<[f64; 4]> {
    let _alone = Alone::enter()?;
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let mut a = network.member(&lab, "a", Options::default(), &[])?;
    let _b = network.member(&lab, "b", other, &[&a])?;
    // A measurement over time needs time to pass.
    std::thread::sleep(SETTLE);
    let (traffic, cpu) = (loopback()?, a.process()?.usage()?.cpu);
    let before = written(a.process()?.pid())?;
    std::thread::sleep(time);
    let usage = a.process()?.usage()?;
    let seconds = time.as_secs_f64();
    Ok([
        usage.resident as f64 / f64::from(1 << 20),
        (usage.cpu - cpu) / seconds * 100.0,
        (loopback()? - traffic) as f64 / seconds,
        (written(a.process()?.pid())? - before) as f64 / seconds,
    ])
}

/// What it costs to tell a network of nodes that know each other, each at a site of its own, what one of them holds.
pub(crate) fn announcements(table: &mut Table) -> Result<()> {
    let bytes = std::thread::spawn(announce).join().ok().context("the watching thread")??;
    table.figure("traffic for each blob that a node announces, both ways", bytes, "B", Goal::AtMost(5_000.0));
    Ok(())
}

fn announce() -> Result<f64> {
    let _alone = Alone::enter()?;
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "bench/announced", "1", 41, &[1 << 10; BLOBS])?;
    let host = origin.addr().to_string();
    let options = |number: usize| Options::origin(&host).with("--site").with(format!("site{number}"));
    let holder = network.member(&lab, "holder", options(0), &[])?;
    let others: Vec<_> = (1..=OTHERS)
        .map(|number| network.member(&lab, &format!("other-{number}"), options(number), &[&holder]))
        .collect::<Result<_>>()?;
    std::thread::sleep(SETTLE);
    let round = || {
        let before = loopback()?;
        std::thread::sleep(ROUND);
        anyhow::Ok(loopback()? - before)
    };
    let idle = round()?;
    holder.run(&["pull", &image.reference(&host)])?;
    // That begins a minute later.
    let announced = round()? as f64 - idle as f64;
    drop(others);
    Ok(announced / image.blobs().len() as f64)
}

/// Bytes that went over loopback so far, headers included.
fn loopback() -> Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no loopback")?;
    Ok(line.split_whitespace().next().context("no count")?.parse()?)
}

/// Bytes that a process had written to the disk so far.
fn written(pid: u32) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:")).context("no write_bytes")?;
    Ok(line.trim().parse()?)
}
