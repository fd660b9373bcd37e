//! Clients that go away before they have got what they asked for: what is read for them alone ends with them, and nothing of
//! them stays.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;
use wherry_tests::blobs::{Image, push_image};
use wherry_tests::http::{Request, get};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

/// How many clients there are at once.
const CLIENTS: usize = 64;

/// What a client reads of its answer before it goes: one buffer.
const BUFFER: usize = 64 << 10;

/// What may have left the origin for one client that has gone by then: what the buffers of its connections hold at this pace.
const IN_SOCKETS: u64 = 1 << 20;

/// How many threads the node may keep that it did not have when it was new: of those that have read something lately.
const THREADS_KEPT: usize = 8;

struct Site {
    node: Wherry,
    image: Image,
    relay: Relay,
    _origin: Registry,
    _lab: Lab,
}

fn site(layer: u64) -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let image = push_image(origin.addr(), "lab/away", "1", 111, &[layer])?;
    let relay = Relay::start(origin.addr())?;
    let node = Wherry::start(&lab, "node", Options::origin(relay.host()))?;
    ensure!(get(node.gateway()?, "/v2/lab/away/manifests/1")?.status == 200, "the manifest");
    Ok(Site { node, image, relay, _origin: origin, _lab: lab })
}

impl Site {
    fn blob(&self) -> String {
        format!("/v2/lab/away/blobs/{}", self.image.layers[0].digest)
    }

    /// Open files, connections among them, and threads of the node.
    fn held(&mut self) -> Result<(usize, usize)> {
        let pid = self.node.process()?.pid();
        let count = |what: &str| Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{pid}/{what}"))?.count());
        Ok((count("fd")?, count("task")?))
    }

    fn resident(&mut self) -> Result<u64> {
        Ok(self.node.process()?.usage()?.resident)
    }

    /// Waits until no more is open than before, but for what the node keeps a while for itself.
    fn is_let_go(&mut self, before: (usize, usize), kept: usize) -> Result<()> {
        wait_until("all that the clients had is let go", SOON, || Ok(self.held()?.0 <= before.0 + kept))
            .with_context(|| format!("{:?} before, {:?} now", before, self.held()))
    }
}

/// Asks, reads one buffer of the answer, and is gone.
fn read_one_buffer(gateway: SocketAddr, path: &str, range: Option<&str>) -> Result<Vec<u8>> {
    let request = Request::new(gateway, "GET", path);
    let mut download = match range {
        Some(range) => request.header("Range", range),
        None => request,
    }
    .open()?;
    ensure!(download.status == if range.is_some() { 206 } else { 200 }, "{}", download.status);
    let mut buffer = vec![0; BUFFER];
    download.read_exact(&mut buffer)?;
    Ok(buffer)
}

fn all_at_once<T: Send>(clients: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..clients).map(|client| scope.spawn(move || work(client))).collect();
        running.into_iter().map(|client| client.join().ok().context("a client panicked")?).collect()
    })
}

#[test]
fn open_ended_ranges_that_are_cut_off_after_one_buffer_cost_little_more_than_that_buffer() -> Result<()> {
    let size = 48 << 20;
    let mut it = site(size)?;
    let (gateway, path, layer) = (it.node.gateway()?, it.blob(), it.image.layers[0].digest);
    it.node.process()?.reset_peak()?;
    let (before, peak) = (it.held()?, it.resident()?);
    // The whole blob would take 6 s, and what lies behind these ranges minutes.
    it.relay.pace(8 << 20);
    let at = |client: usize| (16 << 20) + client * (400 << 10);
    let buffers = all_at_once(CLIENTS, |client| {
        read_one_buffer(gateway, &path, Some(&format!("bytes={}-", at(client))))
    })?;
    // One copy goes on for the node itself, since it was asked for the blob.
    let whole = get(gateway, &path)?.body;
    ensure!(Digest::sha256(&whole) == layer, "the layer is wrong");
    for (client, buffer) in buffers.iter().enumerate() {
        ensure!(*buffer == whole[at(client)..at(client) + BUFFER], "client {client} has wrong bytes");
    }
    let more = it.relay.sent(&layer) - size;
    ensure!(more <= CLIENTS as u64 * IN_SOCKETS, "{more} bytes more than one copy have left the origin");
    it.is_let_go(before, 16)?;
    let peak = it.node.process()?.usage()?.peak.saturating_sub(peak);
    ensure!(peak <= 64 << 20, "{peak} bytes of memory were taken");

    // Of what is stored none is read that is not sent.
    let before = it.held()?;
    for _ in 0..4 {
        all_at_once(CLIENTS, |client| {
            let buffer = read_one_buffer(gateway, &path, Some(&format!("bytes={}-", at(client))))?;
            ensure!(buffer == whole[at(client)..at(client) + BUFFER], "client {client} has wrong bytes");
            Ok(())
        })?;
    }
    it.is_let_go(before, 0)
}

#[test]
fn whoever_goes_away_in_the_middle_leaves_nothing_behind_and_what_was_begun_is_finished() -> Result<()> {
    let mut it = site(24 << 20)?;
    let (gateway, path, layer) = (it.node.gateway()?, it.blob(), it.image.layers[0]);
    let (before, resident) = (it.held()?, it.resident()?);
    it.relay.gate_at(8 << 20);
    for round in 0..4 {
        all_at_once(CLIENTS, |client| {
            if client % 2 == 0 {
                return read_one_buffer(gateway, &path, None).map(drop);
            }
            // Without reading anything, and some with a reset, since the answer comes to a connection that is closed.
            let mut stream = TcpStream::connect(gateway)?;
            Ok(write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?)
        })?;
        // The file that is being filled, its links, and connections to the origin.
        it.is_let_go(before, 16).with_context(|| format!("round {round}"))?;
    }
    it.relay.open_gate();
    wait_until("the layer is here, of which nobody reads", SOON, || {
        Ok(it.node.json(&["status"])?["transfers"] == serde_json::json!([]))
    })?;
    ensure!(
        it.relay.sent(&layer.digest) == layer.size,
        "{} bytes left the origin",
        it.relay.sent(&layer.digest)
    );
    ensure!(Digest::sha256(&get(gateway, &path)?.body) == layer.digest);

    // And of what is stored.
    for _ in 0..4 {
        all_at_once(CLIENTS, |_| read_one_buffer(gateway, &path, None))?;
    }
    it.is_let_go(before, 4)?;
    let (now, threads) = (it.resident()?, it.held()?.1);
    ensure!(now <= resident + (48 << 20), "{resident} bytes resident before, {now} now");
    // Each may have had one that read for it.
    ensure!(threads <= before.1 + CLIENTS + THREADS_KEPT, "{} threads before, {threads} now", before.1);
    wait_until("threads that have nothing to do are gone", SOON, || {
        Ok(it.held()?.1 <= before.1 + THREADS_KEPT)
    })
    .with_context(|| format!("{} threads before, {:?} now", before.1, it.held().map(|held| held.1)))?;
    ensure!(it.relay.sent(&layer.digest) == layer.size, "what is stored was read from the origin again");
    Ok(())
}
