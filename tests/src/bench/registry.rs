//! The gateway as a registry like any other, beside docker-registry: what is pushed, what clients ask for in passing, and how
//! soon the first byte comes of what is not here yet.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;
use wherry_tests::blobs::{Image, Noise, push_image};
use wherry_tests::clients::Skopeo;
use wherry_tests::http::{Request, get};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::usage;
use wherry_tests::registry::Registry;

use super::load::load;
use super::plain::GIB;
use super::serve::{CONNECTIONS, origin, report_load, warm_node};
use super::table::{Goal, Table, median};

/// How often each side is measured.
const TURNS: usize = 5;

/// For how long manifests are asked for.
const LOAD_TIME: Duration = Duration::from_secs(5);

/// How many manifests there are.
const MANIFESTS: usize = 32;

/// How many clients read slowly at the same time.
const READERS: usize = 256;

/// How much each of them reads at once, and how long it pauses after that: 32 kB/s.
const SIP: usize = 32 << 10;
const PAUSE: Duration = Duration::from_secs(1);

/// How often they do.
const SIPS: usize = 5;

fn pid_of(registry: &Registry) -> Result<u32> {
    registry.pid().context("the registry does not run")
}

/// Pushes one blob as docker does, and says how long it took and how many CPU seconds the server.
fn push_blob(addr: SocketAddr, pid: u32, bytes: &[u8]) -> Result<(f64, f64)> {
    let digest = Digest::sha256(bytes);
    let before = usage(pid)?.cpu;
    let start = Instant::now();
    let begun = Request::new(addr, "POST", "/v2/bench/pushed/blobs/uploads/").send_and_read()?;
    let location = begun.header("Location").context("an upload without location")?;
    let path = location.find("/v2/").map_or(location, |at| &location[at..]);
    let patched = Request::new(addr, "PATCH", path).header("Content-Type", "application/octet-stream");
    let patched = patched.body(bytes.len() as u64, &mut &*bytes).send_and_read()?;
    ensure!(patched.status == 202, "{} {}", patched.status, patched.text());
    let location = patched.header("Location").context("an upload without location")?;
    let path = location.find("/v2/").map_or(location, |at| &location[at..]);
    let glue = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{glue}digest={digest}");
    let put = Request::new(addr, "PUT", &path).send_and_read()?;
    ensure!(put.status == 201, "{} {}", put.status, put.text());
    Ok((start.elapsed().as_secs_f64(), usage(pid)?.cpu - before))
}

/// A layer of a GiB, pushed as docker does, to each side in turn; another one each time.
pub(crate) fn push(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let registry = origin(&lab)?;
    let mut node = Wherry::start(&lab, "node", Options::default())?;
    let (gateway, pid) = (node.gateway()?, node.process()?.pid());
    let mut bytes = Vec::new();
    Noise::new(70, GIB).read_to_end(&mut bytes)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        bytes[..8].copy_from_slice(&(turn as u64).to_le_bytes());
        theirs.push(push_blob(registry.addr(), pid_of(&registry)?, &bytes)?);
        ours.push(push_blob(gateway, pid, &bytes)?);
    }
    let of = |runs: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| median(runs.iter().map(pick).collect());
    let rate = |runs: &[(f64, f64)]| GIB as f64 / 1e6 / of(runs, |run| run.0);
    let what = "push of a layer of 1 GiB, beside docker-registry";
    table.beside(what, rate(&ours), rate(&theirs), "MB/s", Goal::AtLeast(1.0));
    let cpu = |runs: &[(f64, f64)]| of(runs, |run| run.1);
    table.beside("  CPU of the server", cpu(&ours), cpu(&theirs), "s/GiB", Goal::None);
    let peak = node.process()?.usage()?.peak as f64 / f64::from(1 << 20);
    table.figure("  resident peak of the node", peak, "MiB", Goal::AtMost(64.0));
    Ok(())
}

/// Small manifests, by their digests.
pub(crate) fn manifests(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let registry = origin(&lab)?;
    let node = Wherry::start(&lab, "node", Options::origin(registry.host()))?;
    let mut paths = Vec::new();
    for number in 0..MANIFESTS {
        let image = push_image(
            registry.addr(),
            "bench/manifests",
            &format!("{number}"),
            80 + number as u64,
            &[10 << 10],
        )?;
        node.run(&["pull", &image.reference(registry.host())])?;
        paths.push(format!("/v2/bench/manifests/manifests/{}", image.manifest));
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        theirs.push(load(registry.addr(), &paths, CONNECTIONS, LOAD_TIME)?);
        ours.push(load(node.gateway()?, &paths, CONNECTIONS, LOAD_TIME)?);
    }
    let what = "GETs of manifests over 32 connections, beside docker-registry";
    report_load(table, what, &ours, Some(&theirs), Goal::AtLeast(1.0));
    Ok(())
}

/// When the first byte of a blob comes, in milliseconds.
fn first_byte(addr: SocketAddr, path: &str) -> Result<f64> {
    let start = Instant::now();
    let mut answer = Request::new(addr, "GET", path).open()?;
    ensure!(answer.status == 200, "{}", answer.status);
    answer.read_exact(&mut [0])?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The first byte of a layer of a GiB that is not here yet, through a node that has its manifest, beside the origin itself.
pub(crate) fn cold(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let registry = origin(&lab)?;
    let image = push_image(registry.addr(), "bench/cold", "1", 71, &[GIB])?;
    let path = format!("/v2/bench/cold/blobs/{}", image.layers[0].digest);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let node = Wherry::start(&lab, &format!("node-{turn}"), Options::origin(registry.host()))?;
        let manifest = get(node.gateway()?, "/v2/bench/cold/manifests/1")?;
        ensure!(manifest.body == image.manifest_bytes, "the manifest is had");
        theirs.push(first_byte(registry.addr(), &path)?);
        ours.push(first_byte(node.gateway()?, &path)?);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let what = "first byte of a cold layer, beside the origin itself";
    table.beside(what, ours, theirs, "ms", Goal::None);
    table.figure("  later than from the origin", ours - theirs, "ms", Goal::AtMost(20.0));
    Ok(())
}

/// A stored image of 256 MiB in four layers, pulled by skopeo from each side in turn.
pub(crate) fn skopeo(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let registry = origin(&lab)?;
    let image = push_image(registry.addr(), "bench/image", "1", 72, &[64 << 20; 4])?;
    let node = warm_node(&lab, &registry, &image)?;
    let client = Skopeo::new(&lab, "skopeo")?;
    let pull = |host: String, image: &Image| -> Result<f64> {
        let start = Instant::now();
        let pulled = client.pull(&image.reference(host), "pulled")?;
        let seconds = start.elapsed().as_secs_f64();
        std::fs::remove_dir_all(pulled.folder())?;
        Ok(seconds)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        theirs.push(pull(registry.host(), &image)?);
        ours.push(pull(node.gateway()?.to_string(), &image)?);
    }
    let what = "skopeo pulls a stored image of 256 MiB, beside docker-registry";
    table.times_less(what, median(ours), median(theirs), "s", Goal::AtLeast(1.0));
    Ok(())
}

/// Resident memory while many clients read a blob of a GiB slowly.
pub(crate) fn readers(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let registry = origin(&lab)?;
    let image = push_image(registry.addr(), "bench/slow", "1", 73, &[GIB])?;
    let mut node = warm_node(&lab, &registry, &image)?;
    let (gateway, path) = (node.gateway()?, format!("/v2/bench/slow/blobs/{}", image.layers[0].digest));
    node.process()?.reset_peak()?;
    let clients: Vec<_> = (0..READERS)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || -> Result<()> {
                let mut stream = TcpStream::connect(gateway)?;
                std::io::Write::write_all(
                    &mut stream,
                    format!("GET {path} HTTP/1.1\r\nHost: {gateway}\r\n\r\n").as_bytes(),
                )?;
                let mut sip = vec![0; SIP];
                for _ in 0..SIPS {
                    stream.read_exact(&mut sip)?;
                    std::thread::sleep(PAUSE);
                }
                Ok(())
            })
        })
        .collect();
    for client in clients {
        client.join().map_err(|_| anyhow::anyhow!("a reader has panicked"))??;
    }
    let peak = node.process()?.usage()?.peak as f64 / f64::from(1 << 20);
    table.figure("resident peak of a node with 256 slow readers", peak, "MiB", Goal::AtMost(64.0));
    Ok(())
}
