//! What a client gets from a gateway, beside docker-registry.

use std::io::Read as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wherry_tests::blobs::{Image, push_image};
use wherry_tests::http::{Request, get};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::usage;
use wherry_tests::registry::{self, Registry};

use super::load::{Load, load};
use super::plain::GIB;
use super::table::{Goal, Table, median};

/// How often each side serves the large blob.
const TURNS: usize = 5;

/// How often each side is under load, and for how long.
const LOAD_TURNS: usize = 3;
const LOAD_TIME: Duration = Duration::from_secs(5);

pub(crate) const CONNECTIONS: usize = 32;

/// How many small blobs there are, each of 10 KiB.
const SMALL: usize = 64;

/// Takes one figure out of a measurement.
type Pick<T> = fn(&T) -> f64;

/// docker-registry as it serves best: without access log it uses sendfile.
pub(crate) fn origin(lab: &Lab) -> Result<Registry> {
    Registry::start(lab, "origin", registry::Options { no_access_log: true, ..registry::Options::default() })
}

/// A node that has pulled an image from its origin.
pub(crate) fn warm_node(lab: &Lab, origin: &Registry, image: &Image) -> Result<Wherry> {
    let node = Wherry::start(lab, "node", Options::origin(origin.host()))?;
    node.run(&["pull", &image.reference(origin.host())])?;
    Ok(node)
}

/// MB/s of one GET whose bytes are dropped, and CPU seconds a GiB of the server.
fn download(addr: SocketAddr, pid: u32, path: &str, size: u64) -> Result<(f64, f64)> {
    let before = usage(pid)?.cpu;
    let start = Instant::now();
    let mut answer = Request::new(addr, "GET", path).open()?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match answer.read(&mut buffer)? {
            0 => break,
            n => total += n as u64,
        }
    }
    ensure!(answer.status == 200 && total == size, "status {} and {total} bytes", answer.status);
    let seconds = start.elapsed().as_secs_f64();
    Ok((size as f64 / 1e6 / seconds, (usage(pid)?.cpu - before) * GIB as f64 / size as f64))
}

fn pid_of(origin: &Registry) -> Result<u32> {
    origin.pid().ok_or_else(|| anyhow::anyhow!("the origin does not run"))
}

fn paths(image: &Image) -> Vec<String> {
    image.layers.iter().map(|layer| format!("/v2/{}/blobs/{}", image.repository, layer.digest)).collect()
}

/// docker-registry alone.
pub(crate) fn limits(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let origin = origin(&lab)?;
    let image = push_image(origin.addr(), "bench/gib", "1", 20, &[GIB])?;
    let path = &paths(&image)[0];
    let runs: Vec<(f64, f64)> =
        (0..TURNS).map(|_| download(origin.addr(), pid_of(&origin)?, path, GIB)).collect::<Result<_>>()?;
    table.figure(
        "docker-registry, GET of 1 GiB",
        median(runs.iter().map(|run| run.0).collect()),
        "MB/s",
        Goal::None,
    );
    table.figure("  CPU of the server", median(runs.iter().map(|run| run.1).collect()), "s/GiB", Goal::None);
    let image = push_image(origin.addr(), "bench/small", "1", 21, &[10 << 10; SMALL])?;
    let runs: Vec<Load> = (0..LOAD_TURNS)
        .map(|_| load(origin.addr(), &paths(&image), CONNECTIONS, LOAD_TIME))
        .collect::<Result<_>>()?;
    report_load(table, "docker-registry, GETs of 10 KiB", &runs, None, Goal::None);
    Ok(())
}

/// Rates and times under load; `goal` is what the rate is to be beside the other's.
pub(crate) fn report_load(table: &mut Table, what: &str, runs: &[Load], beside: Option<&[Load]>, goal: Goal) {
    let of = |runs: &[Load], pick: Pick<Load>| median(runs.iter().map(pick).collect());
    let rows: [(&str, Pick<Load>, &str, Goal); 3] = [
        (what, |run| run.rate, "/s", goal),
        ("  half of them within", |run| run.median, "ms", Goal::None),
        ("  99 of 100 within", |run| run.p99, "ms", Goal::None),
    ];
    for (what, pick, unit, goal) in rows {
        match beside {
            Some(other) => table.beside(what, of(runs, pick), of(other, pick), unit, goal),
            None => table.figure(what, of(runs, pick), unit, Goal::None),
        }
    }
}

/// A stored blob of a GiB, gateway and docker-registry taking turns.
pub(crate) fn one_gib(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let origin = origin(&lab)?;
    let image = push_image(origin.addr(), "bench/gib", "1", 20, &[GIB])?;
    let mut node = warm_node(&lab, &origin, &image)?;
    let (gateway, pid) = (node.gateway()?, node.process()?.pid());
    let path = &paths(&image)[0];
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        theirs.push(download(origin.addr(), pid_of(&origin)?, path, GIB)?);
        ours.push(download(gateway, pid, path, GIB)?);
    }
    let of = |runs: &[(f64, f64)], pick: Pick<(f64, f64)>| median(runs.iter().map(pick).collect());
    let rate: Pick<(f64, f64)> = |run| run.0;
    let cpu: Pick<(f64, f64)> = |run| run.1;
    let what = "GET of a stored 1 GiB blob, beside docker-registry";
    table.beside(what, of(&ours, rate), of(&theirs, rate), "MB/s", Goal::AtLeast(1.0));
    table.beside("  CPU of the server", of(&ours, cpu), of(&theirs, cpu), "s/GiB", Goal::None);
    Ok(())
}

/// Small stored blobs under load, gateway and docker-registry taking turns.
pub(crate) fn small(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let origin = origin(&lab)?;
    let image = push_image(origin.addr(), "bench/small", "1", 21, &[10 << 10; SMALL])?;
    let node = warm_node(&lab, &origin, &image)?;
    let paths = paths(&image);
    ensure!(get(node.gateway()?, &paths[0])?.status == 200, "the gateway has the blobs");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..LOAD_TURNS {
        theirs.push(load(origin.addr(), &paths, CONNECTIONS, LOAD_TIME)?);
        ours.push(load(node.gateway()?, &paths, CONNECTIONS, LOAD_TIME)?);
    }
    let what = "GETs of 10 KiB over 32 connections, beside docker-registry";
    report_load(table, what, &ours, Some(&theirs), Goal::AtLeast(20.0));
    Ok(())
}
