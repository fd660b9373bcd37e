//! What a node gets from a warm peer while the origin is gone.

use std::time::Instant;

use anyhow::{Result, ensure};
use wherry_tests::blobs::{Image, push_image};
use wherry_tests::http::get;
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};
use wherry_tests::registry::{self, Registry};

use super::plain::{Carried, GIB, Plain, TURNS, settle};
use super::table::{Goal, Table, median};

/// How many small blobs an image of many has.
const MANY: usize = 1000;

/// How many manifests are asked for, each once.
const MANIFESTS: usize = 21;

/// A peer that has images, an origin that is stopped, and a network for newcomers.
pub(crate) struct Warm {
    network: Network,
    options: Options,
    /// The warm peer.
    pub(crate) peer: Wherry,
    turn: usize,
    _origin: Registry,
}

impl Warm {
    /// Pushes images, lets a peer pull them and stops the origin.
    pub(crate) fn start(
        lab: &Lab,
        push: impl FnOnce(&Registry) -> Result<Vec<Image>>,
    ) -> Result<(Self, Vec<Image>)> {
        let mut origin = Registry::start(lab, "origin", registry::Options::default())?;
        let images = push(&origin)?;
        let network = Network::new(lab)?;
        let options = Options::origin(origin.host());
        let peer = network.member(lab, "peer", options.clone(), &[])?;
        for image in &images {
            peer.run(&["pull", &image.reference(origin.host())])?;
        }
        origin.stop()?;
        Ok((Self { network, options, peer, turn: 0, _origin: origin }, images))
    }

    /// A member of the network with an empty store.
    pub(crate) fn newcomer(&mut self, lab: &Lab) -> Result<Wherry> {
        self.turn += 1;
        self.network.member(lab, &format!("newcomer-{}", self.turn), self.options.clone(), &[&self.peer])
    }

    /// Pulls an image to a newcomer; gives the seconds and the CPU seconds of both nodes.
    pub(crate) fn carry(&mut self, newcomer: &mut Wherry, image: &Image) -> Result<(f64, f64)> {
        let cpu = |a: &mut Wherry, b: &mut Wherry| {
            anyhow::Ok(a.process()?.usage()?.cpu + b.process()?.usage()?.cpu)
        };
        settle();
        let before = cpu(&mut self.peer, newcomer)?;
        let reference = image.reference(self.options.origin.as_deref().unwrap_or_default());
        let start = Instant::now();
        newcomer.run(&["pull", &reference])?;
        Ok((start.elapsed().as_secs_f64(), cpu(&mut self.peer, newcomer)? - before))
    }
}

/// Ends a node and frees its disk.
fn discard(mut node: Wherry) -> Result<()> {
    node.kill()?;
    Ok(std::fs::remove_dir_all(node.data())?)
}

/// One blob of a GiB, wherry and plain TCP taking turns.
pub(crate) fn one_gib(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let (mut warm, images) =
        Warm::start(&lab, |origin| Ok(vec![push_image(origin.addr(), "bench/gib", "1", 30, &[GIB])?]))?;
    let plain = Plain::start(&lab)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        theirs.push(plain.carry(&lab)?);
        let mut newcomer = warm.newcomer(&lab)?;
        let (seconds, cpu) = warm.carry(&mut newcomer, &images[0])?;
        ours.push(Carried { rate: GIB as f64 / 1e6 / seconds, cpu });
        discard(newcomer)?;
    }
    let rate = |runs: &[Carried]| median(runs.iter().map(|run| run.rate).collect());
    let cpu = |runs: &[Carried]| median(runs.iter().map(|run| run.cpu).collect());
    let what = "1 GiB from one peer into the store, beside TCP + SHA-256 + write";
    table.beside(what, rate(&ours), rate(&theirs), "MB/s", Goal::AtLeast(0.8));
    table.beside("  CPU of both ends", cpu(&ours), cpu(&theirs), "s/GiB", Goal::None);
    Ok(())
}

/// Many small blobs, and the first byte of manifests.
pub(crate) fn many(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let (mut warm, images) = Warm::start(&lab, |origin| {
        let mut images = vec![push_image(origin.addr(), "bench/many", "1", 31, &[10 << 10; MANY])?];
        for i in 0..MANIFESTS {
            images.push(push_image(origin.addr(), &format!("bench/tiny-{i}"), "1", 100 + i as u64, &[100])?);
        }
        Ok(images)
    })?;
    let mut seconds = Vec::new();
    for _ in 0..TURNS {
        let mut newcomer = warm.newcomer(&lab)?;
        seconds.push(warm.carry(&mut newcomer, &images[0])?.0);
        discard(newcomer)?;
    }
    table.figure("1,000 blobs of 10 KiB from one peer", MANY as f64 / median(seconds), "blobs/s", Goal::None);
    let newcomer = warm.newcomer(&lab)?;
    let mut waits = Vec::new();
    for image in &images[1..] {
        let path = format!("/v2/{}/manifests/{}", image.repository, image.manifest);
        let start = Instant::now();
        let answer = get(newcomer.gateway()?, &path)?;
        waits.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(answer.body == image.manifest_bytes, "{path}: {} {}", answer.status, answer.text());
    }
    table.figure("a small manifest from a warm peer, through the gateway", median(waits), "ms", Goal::None);
    Ok(())
}
