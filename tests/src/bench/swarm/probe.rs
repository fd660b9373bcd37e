//! What the links carry before anything else does: plain TCP for a few seconds.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use wherry_tests::netns::Space;

use super::bound::Goodput;
use super::interrupt;
use super::links::{Links, Machine};

/// How long a stream runs before it counts, and then does, at least.
const WARM: Duration = Duration::from_secs(1);
const WATCH: Duration = Duration::from_secs(3);

/// How many bytes it carries meanwhile, at least: what a link lets through at once after a pause, and what is read at
/// once, are little beside them.
const WARM_BYTES: f64 = 256e3;
const WATCH_BYTES: f64 = 1.5e6;

/// How often a byte goes there and back.
const PINGS: usize = 101;

/// How long the far end may be silent.
const PATIENCE: Duration = Duration::from_secs(20);

/// More nodes than this are not needed to fill an uplink.
const MAX_RECEIVERS: usize = 16;

/// Measures ports and uplinks; `port` and `uplinks` are the rates that they are set to.
pub(crate) fn goodput(links: &Links, port: f64, uplinks: &[f64]) -> Result<Goodput> {
    let [a, b] = [&links.nodes[0], links.nodes.get(1).unwrap_or(&links.caches[0])];
    let there = Flow { from: &a.space, to: b };
    let back = Flow { from: &b.space, to: a };
    let one_way = carried(&[there], port)?;
    let both_ways = carried(&[there, back], port)?;
    let round_trip = ping(&a.space, b)?;
    let mut flows = Vec::new();
    for (site, uplink) in uplinks.iter().enumerate() {
        let receivers = ((uplink / port).ceil() as usize + 1).min(MAX_RECEIVERS);
        let there = links.nodes.iter().filter(|node| node.site == site);
        flows.extend(there.take(receivers).map(|to| Flow { from: &links.origin, to }));
    }
    // Together they carry at least what the slowest uplink does.
    let slowest = uplinks.iter().copied().fold(f64::INFINITY, f64::min);
    let through = if flows.is_empty() { Vec::new() } else { carried(&flows, slowest)? };
    let of_site =
        |site| flows.iter().zip(&through).filter(move |(flow, _)| flow.to.site == site).map(|(_, rate)| rate);
    let shares =
        uplinks.iter().enumerate().map(|(site, uplink)| of_site(site).sum::<f64>() / uplink).collect();
    let both_ways = both_ways.into_iter().fold(f64::INFINITY, f64::min) / port;
    Ok(Goodput { uplinks: shares, port: one_way[0] / port, port_both_ways: both_ways, round_trip })
}

/// A stream of bytes.
#[derive(Clone, Copy)]
struct Flow<'a> {
    from: &'a Space,
    to: &'a Machine,
}

/// Bits a second of streams that run at the same time, by links that carry about `rate` bits a second.
fn carried(flows: &[Flow<'_>], rate: f64) -> Result<Vec<f64>> {
    let long = |least: Duration, bytes: f64| least.max(Duration::from_secs_f64(bytes * 8.0 / rate));
    let stop = Arc::new(AtomicBool::new(false));
    let received: Vec<Arc<AtomicU64>> = flows.iter().map(|_| Arc::default()).collect();
    let mut threads = Vec::new();
    for (flow, received) in flows.iter().zip(&received) {
        let (mut near, mut far) = connect(flow.from, flow.to)?;
        let (stop, received) = (stop.clone(), received.clone());
        threads.push(std::thread::spawn(move || {
            let chunk = vec![0x5a; 16 << 10];
            while !stop.load(Ordering::Relaxed) && near.write_all(&chunk).is_ok() {}
        }));
        threads.push(std::thread::spawn(move || {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(1..) = far.read(&mut chunk).inspect(|n| {
                received.fetch_add(*n as u64, Ordering::Relaxed);
            }) {}
        }));
    }
    let count = || received.iter().map(|bytes| bytes.load(Ordering::Relaxed)).collect::<Vec<u64>>();
    std::thread::sleep(long(WARM, WARM_BYTES));
    let (before, start) = (count(), Instant::now());
    std::thread::sleep(long(WATCH, WATCH_BYTES));
    let (after, seconds) = (count(), start.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().ok().context("a stream's thread panicked")?;
    }
    interrupt::check()?;
    Ok(before.iter().zip(after).map(|(before, after)| (after - before) as f64 * 8.0 / seconds).collect())
}

/// The median of the seconds that a byte takes there and back.
fn ping(from: &Space, to: &Machine) -> Result<f64> {
    let (mut near, mut far) = connect(from, to)?;
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
    });
    let mut seconds = Vec::new();
    for _ in 0..PINGS {
        let start = Instant::now();
        near.write_all(&[1])?;
        near.read_exact(&mut [0])?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    drop(near);
    echo.join().ok().context("the echo's thread panicked")?;
    Ok(crate::table::median(seconds))
}

/// Both ends of a connection between two namespaces.
fn connect(from: &Space, to: &Machine) -> Result<(TcpStream, TcpStream)> {
    let address = to.address;
    let listener = to.space.inside(|| Ok(TcpListener::bind(SocketAddr::from((address, 0)))?))?;
    let target = listener.local_addr()?;
    let near = from.inside(|| TcpStream::connect(target).with_context(|| format!("connect to {target}")))?;
    let (far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((near, far))
}
