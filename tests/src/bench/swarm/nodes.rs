//! The nodes of a round: real ones, each in its namespace, with empty stores.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use wherry_tests::http::get;
use wherry_tests::lab::Lab;
use wherry_tests::netns::Space;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry};

use super::interrupt;
use super::links::Links;

/// Where a node's gateway and its status are by default.
pub(crate) const GATEWAY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5050);
const STATUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5051);

/// The port for other nodes by default.
const PEERS: u16 = 4050;

/// How many nodes start at the same time.
const AT_ONCE: usize = 8;

/// How long a node may take to be ready, and all of them to know each other.
const START: Duration = Duration::from_secs(60);
const MEET: Duration = Duration::from_secs(180);

/// How often nodes are looked at while they start and meet.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_AROUND: Duration = Duration::from_millis(500);

/// Nodes have met when each knows this many others, or all, and nobody has met anybody for so long.
const NEIGHBOURS: u64 = 8;
const QUIET: Duration = Duration::from_secs(4);

/// All nodes of a round.
pub(crate) struct Nodes<'a> {
    links: &'a Links,
    all: Vec<Wherry>,
    /// How many others the least connected node knew at the start.
    pub(crate) peers: u64,
}

/// What all nodes together used up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    /// CPU seconds of those that run.
    pub(crate) cpu: f64,
    /// Bytes of resident memory of the largest, at its worst.
    pub(crate) resident: u64,
}

impl<'a> Nodes<'a> {
    /// Starts all nodes and waits until they have met.
    pub(crate) fn start(
        lab: &Lab,
        links: &'a Links,
        network: &Network,
        round: usize,
        options: &Options,
    ) -> Result<Self> {
        let mut nodes = Self { links, all: Vec::new(), peers: 0 };
        for (number, machine) in links.nodes.iter().enumerate() {
            interrupt::check()?;
            let mut options = options.clone().with("--site").with(format!("site{}", machine.site));
            options.space = Some(machine.space.clone());
            // Those of the own site are found by mDNS.
            let firsts = links.nodes.chunk_by(|a, b| a.site == b.site).filter_map(|site| site.first());
            let others = firsts.filter(|first| first.site != machine.site);
            options.bootstrap = others.map(|first| format!("/ip4/{}/tcp/{PEERS}", first.address)).collect();
            let node = Wherry::new(lab, &format!("r{round}n{number}"), options)?;
            network.admit(&node)?;
            nodes.all.push(node);
        }
        for first in (0..nodes.all.len()).step_by(AT_ONCE) {
            let wave = first..(first + AT_ONCE).min(nodes.all.len());
            for number in wave.clone() {
                nodes.all[number].launch()?;
            }
            for number in wave {
                nodes.ready(number)?;
            }
        }
        nodes.peers = nodes.meet()?;
        Ok(nodes)
    }

    fn space(&self, number: usize) -> &Space {
        &self.links.nodes[number].space
    }

    /// Waits until a node answers.
    fn ready(&mut self, number: usize) -> Result<()> {
        let start = Instant::now();
        while self.status(number).is_err() {
            interrupt::check()?;
            let process = self.all[number].process()?;
            ensure!(process.runs()?, "node {number} ended{}", process.tail());
            ensure!(start.elapsed() < START, "node {number} is not ready{}", process.tail());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until nobody meets anybody new; gives how many others the least connected one knows.
    fn meet(&self) -> Result<u64> {
        let start = Instant::now();
        let enough = NEIGHBOURS.min(self.all.len() as u64 - 1);
        let (mut before, mut since) = (Vec::new(), start);
        loop {
            interrupt::check()?;
            let peers: Vec<u64> =
                (0..self.all.len()).map(|number| self.peers_of(number)).collect::<Result<_>>()?;
            if peers != before {
                (before, since) = (peers, Instant::now());
            }
            let least = before.iter().min().copied().unwrap_or_default();
            if least >= enough && since.elapsed() > QUIET {
                return Ok(least);
            }
            if start.elapsed() > MEET {
                bail!("within {} s nodes have met only so many others: {before:?}", MEET.as_secs());
            }
            std::thread::sleep(LOOK_AROUND);
        }
    }

    fn peers_of(&self, number: usize) -> Result<u64> {
        self.status(number)?["peers"].as_u64().context("a status without peers")
    }

    fn status(&self, number: usize) -> Result<Value> {
        self.space(number).inside(|| {
            let answer = get(STATUS, "/status")?;
            ensure!(answer.status == 200, "status of node {number}: {}", answer.status);
            Ok(serde_json::from_slice(&answer.body)?)
        })
    }

    /// Bytes that a node took from the origin since it was started; none if it does not run.
    pub(crate) fn taken_from_origin(&self, number: usize) -> u64 {
        self.status(number)
            .ok()
            .and_then(|status| status["traffic"]["from_origin"].as_u64())
            .unwrap_or_default()
    }

    /// Bytes that all nodes that run took from the origin.
    pub(crate) fn all_taken_from_origin(&self) -> u64 {
        (0..self.all.len()).map(|number| self.taken_from_origin(number)).sum()
    }

    /// What they use.
    pub(crate) fn used(&mut self) -> Result<Used> {
        let mut used = Used::default();
        for node in &mut self.all {
            // One that was just killed uses nothing.
            if let Ok(process) = node.process()
                && process.runs()?
            {
                let usage = process.usage()?;
                used.cpu += usage.cpu;
                used.resident = used.resident.max(usage.peak);
            }
        }
        Ok(used)
    }

    /// Has a node pull an image by its command.
    pub(crate) fn pull(&self, number: usize, reference: &str) -> Result<()> {
        self.all[number].run(&["pull", reference]).map(drop)
    }

    /// Kills a node as a power cut would.
    pub(crate) fn kill(&mut self, number: usize) -> Result<()> {
        self.all[number].kill()
    }

    /// Starts a node that was killed, on what it had.
    pub(crate) fn revive(&mut self, number: usize) -> Result<()> {
        self.all[number].launch()
    }

    /// Kills all.
    pub(crate) fn kill_all(&mut self) {
        for node in &mut self.all {
            if let Err(error) = node.kill() {
                eprintln!("{error:#}");
            }
        }
    }

    /// Ends all and frees what they stored.
    pub(crate) fn discard(mut self) -> Result<()> {
        self.kill_all();
        for node in &self.all {
            std::fs::remove_dir_all(node.data())?;
        }
        Ok(())
    }
}
