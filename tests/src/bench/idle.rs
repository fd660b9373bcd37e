//! What nodes cost that have nothing to do, in a network namespace where nobody else sends a byte.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::Options;
use wherry_tests::process::{run, tool};

use super::table::{Goal, Table};

/// How long the nodes are left to settle, and then watched.
const SETTLE: Duration = Duration::from_secs(15);
const WATCH: Duration = Duration::from_secs(60);

const LIMIT: Duration = Duration::from_secs(300);

/// Runs [`inside`] in a namespace of its own and reports what it printed.
pub(crate) fn outside(table: &mut Table) -> Result<()> {
    let me = std::env::current_exe()?;
    let script = "ip link set lo up && exec \"$0\" idle-in-namespace";
    let said = run(tool("unshare", LIMIT).args(["--net", "sh", "-c", script]).arg(me))?;
    let mut numbers = said.split_whitespace();
    let mut number = || -> Result<f64> { Ok(numbers.next().context("a number")?.parse()?) };
    table.figure("resident memory of an idle node", number()?, "MiB", Goal::AtMost(30.0));
    table.figure("CPU of an idle node, of one core", number()?, "%", Goal::None);
    table.figure("traffic of an idle node for each neighbour, both ways", number()?, "B/s", Goal::None);
    table.figure("bytes that an idle node writes to the disk", number()?, "B/s", Goal::None);
    Ok(())
}

/// Two nodes that know each other, watched; prints the figures of the first.
pub(crate) fn inside() -> Result<()> {
    let lab = Lab::new()?;
    let network = Network::new(&lab)?;
    let mut a = network.member(&lab, "a", Options::default(), &[])?;
    let _b = network.member(&lab, "b", Options::default(), &[&a])?;
    // A measurement over time needs time to pass.
    std::thread::sleep(SETTLE);
    let (traffic, cpu) = (loopback()?, a.process()?.usage()?.cpu);
    let written = written(a.process()?.pid())?;
    std::thread::sleep(WATCH);
    let usage = a.process()?.usage()?;
    let seconds = WATCH.as_secs_f64();
    println!(
        "{} {} {} {}",
        usage.resident as f64 / f64::from(1 << 20),
        (usage.cpu - cpu) / seconds * 100.0,
        (loopback()? - traffic) as f64 / seconds,
        (self::written(a.process()?.pid())? - written) as f64 / seconds,
    );
    Ok(())
}

/// Bytes that went over loopback so far, headers included.
fn loopback() -> Result<u64> {
    let table = fs::read_to_string("/proc/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no loopback")?;
    Ok(line.split_whitespace().next().context("no count")?.parse()?)
}

/// Bytes that a process had written to the disk so far.
fn written(pid: u32) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:")).context("no write_bytes")?;
    Ok(line.trim().parse()?)
}
