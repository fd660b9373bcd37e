//! A load generator: many keep-alive connections on one thread, little work a request, so that the server is what is
//! measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wherry_tests::blobs::OCI_MANIFEST;

/// The longest answer that is taken, head and body.
const ANSWER_BOUND: usize = 1 << 20;

/// What a run came to.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Requests answered a second.
    pub(crate) rate: f64,
    /// The time that half of the requests took at most, in milliseconds.
    pub(crate) median: f64,
    /// The time that 99 of 100 requests took at most, in milliseconds.
    pub(crate) p99: f64,
}

/// GETs the paths in turn over this many connections for this long.
pub(crate) fn load(addr: SocketAddr, paths: &[String], connections: usize, time: Duration) -> Result<Load> {
    let requests: Vec<Vec<u8>> = paths
        .iter()
        .map(|path| {
            // docker-registry denies that it has a manifest whose type is not asked for.
            format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nAccept: {OCI_MANIFEST}, */*\r\n\r\n").into_bytes()
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start = Instant::now();
    let mut times = runtime.block_on(async {
        let clients = (0..connections).map(|i| {
            let requests = requests.clone();
            tokio::spawn(async move { client(addr, &requests, i, start + time).await })
        });
        let clients: Vec<_> = clients.collect();
        let mut times = Vec::new();
        for client in clients {
            times.extend(client.await??);
        }
        anyhow::Ok(times)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| {
        let nth = (times.len() as f64 * share) as usize;
        times.get(nth.min(times.len().saturating_sub(1))).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    };
    Ok(Load { rate: times.len() as f64 / seconds, median: at(0.5), p99: at(0.99) })
}

async fn client(addr: SocketAddr, requests: &[Vec<u8>], first: usize, end: Instant) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut times = Vec::new();
    let mut next = first;
    while Instant::now() < end {
        let start = Instant::now();
        stream.write_all(&requests[next % requests.len()]).await?;
        next += 1;
        let mut have = 0;
        let mut whole = None;
        while whole.is_none_or(|whole| have < whole) {
            if have == buffer.len() {
                ensure!(have < ANSWER_BOUND, "an answer of more than {ANSWER_BOUND} bytes");
                buffer.resize(2 * have, 0);
            }
            let n = stream.read(&mut buffer[have..]).await?;
            ensure!(
                n > 0,
                "the server closed a connection: {:?}",
                String::from_utf8_lossy(&buffer[..have.min(300)])
            );
            have += n;
            if whole.is_none() {
                whole = length(&buffer[..have])?;
            }
        }
        ensure!(whole == Some(have), "the server sent more than it was asked for");
        times.push(start.elapsed());
    }
    Ok(times)
}

/// The length of head and body together, once the head is there.
fn length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200"), "answered with {head}");
    let body = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    Ok(Some(end + 4 + body.context("no Content-Length")??))
}
