//! One scenario: links, what they carry, what others make of them, and wherry.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use wherry_tests::access::Accesses as _;
use wherry_tests::blobs::{Image, push_image};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::Options;
use wherry_tests::registry::{self, Registry};

use super::beside::{self, Beside, Way};
use super::bound::{self, Goodput};
use super::churn::Killer;
use super::cpu::Cpu;
use super::herd::{self, Client, Pulled};
use super::interrupt;
use super::links::{Bytes, Links, ORIGIN, Plan, TRUE_PACKETS};
use super::meanwhile::{Course, FromNodes};
use super::nodes::{GATEWAY, Nodes, Used};
use super::probe;
use super::rates::Rate;
use super::scenario::{Churn, Scenario};

/// The origin's port.
const ORIGIN_PORT: u16 = 5000;

/// How much longer than the bound a round may take, and how long at least.
const PATIENCE: f64 = 8.0;
const LEAST_PATIENCE: f64 = 60.0;

/// How long the machine is watched at a time before the clients begin.
const WATCHED: Duration = Duration::from_secs(2);

/// What the machine does at most when they begin, in percent of all cores: here two cores or so do for all nodes what each has
/// its own for, and nodes that have just met still have much to say to each other.
const CALM: f64 = 25.0;

/// How long that is waited for. Then they begin all the same, and the table says what the machine did.
const CALM_TIME: Duration = Duration::from_secs(60);

/// How long the origin may take to notice that a client is gone.
const LATE: Duration = Duration::from_secs(1);

/// How a benchmark is run, beside what it changes about scenarios.
#[derive(Clone, Debug, Default)]
pub(crate) struct How {
    /// Whether to leave out what others make of the links.
    pub(crate) wherry_only: bool,
    /// Seconds that a round may take, in place of a multiple of the bound.
    pub(crate) limit: Option<f64>,
    /// What nodes log.
    pub(crate) log: Option<String>,
}

/// All that came of a scenario.
pub(crate) struct Outcome {
    /// What was measured.
    pub(crate) scenario: Scenario,
    /// What the links carry.
    pub(crate) goodput: Goodput,
    /// Seconds before which a node cannot be done, for each that pulls.
    pub(crate) bounds: Vec<f64>,
    /// Every node by itself.
    pub(crate) alone: Option<Beside>,
    /// Through a cache.
    pub(crate) cache: Option<Beside>,
    /// Wherry.
    pub(crate) rounds: Vec<Round>,
}

/// What came of one round of wherry.
pub(crate) struct Round {
    /// For each node that pulls.
    pub(crate) pulled: Vec<Pulled>,
    /// Over each uplink.
    pub(crate) uplinks: Vec<Bytes>,
    /// Bytes of blobs that the origin sent.
    pub(crate) served: u64,
    /// Bytes that nodes say they took from the origin, manifests included.
    pub(crate) taken: u64,
    /// The machine's cores, in percent: while the clients pulled, and in the calm before.
    pub(crate) cpu: f64,
    /// See [`Round::cpu`].
    pub(crate) calm: f64,
    /// What nodes used.
    pub(crate) used: Used,
    /// How many others the least connected node knew.
    pub(crate) peers: u64,
    /// When who was killed, and whether it was aimed at.
    pub(crate) kills: Vec<(f64, usize, bool)>,
    /// What went over the uplinks by when.
    pub(crate) noted: Value,
}

/// Measures a scenario.
pub(crate) fn measure(scenario: Scenario, how: &How) -> Result<Outcome> {
    let lab = Lab::in_memory()?;
    let ports = |site: usize| {
        (0..scenario.nodes).map(|node| scenario.port_of(site * scenario.nodes + node)).collect()
    };
    let links = Links::build(&Plan { sites: (0..scenario.uplinks.len()).map(ports).collect() })?;
    shape(&links, &scenario)?;
    let uplinks: Vec<f64> = scenario.uplinks.iter().map(|uplink| uplink.at(0.0)).collect();
    let goodput = probe::goodput(&links, scenario.port, &uplinks)?;
    eprintln!(
        "  goodput: port {:.4} of {} Mbit/s, {:.4} with as much the other way, uplink {} of {} Mbit/s, round trip {:.0} µs",
        goodput.port,
        scenario.port / 1e6,
        goodput.port_both_ways,
        goodput.uplinks.iter().map(|share| format!("{share:.4}")).collect::<Vec<_>>().join(" "),
        uplinks.iter().map(|rate| format!("{}", rate / 1e6)).collect::<Vec<_>>().join(" "),
        goodput.round_trip * 1e6
    );
    let listen = Some(SocketAddr::from((ORIGIN, ORIGIN_PORT)));
    let options =
        registry::Options { listen, space: Some(links.origin.clone()), ..registry::Options::default() };
    let mut origin = Registry::start(&lab, "origin", options)?;
    let push = |origin: &Registry, repository: &str, seed: u64, layers: &[u64]| {
        links.origin.inside(|| push_image(origin.addr(), repository, "1", seed, layers))
    };
    let image = push(&origin, "swarm/whole", 70, &scenario.layers)?;
    let mut aside = |way: Way, repository: &str, seed: u64| {
        if how.wherry_only {
            return anyhow::Ok(None);
        }
        interrupt::check()?;
        let beside = beside::measure(&lab, &links, &scenario, way, &mut origin, |origin, layers| {
            push(origin, repository, seed, layers)
        })?;
        eprintln!("  {way:?}: {:.1} s for {} bytes: {:.1} s", beside.measured, beside.bytes, beside.last);
        Ok(Some(beside))
    };
    let alone = aside(Way::Alone, "swarm/alone", 71)?;
    // A seeder is its own cache.
    let cache = if scenario.seeded { None } else { aside(Way::Cache, "swarm/cache", 72)? };
    let bounds = bounds(&scenario, &goodput, image.size());
    let network = Network::new(&lab)?;
    let mut outcome = Outcome { scenario, goodput, bounds, alone, cache, rounds: Vec::new() };
    for number in 0..outcome.scenario.rounds {
        let scene =
            Scene { lab: &lab, links: &links, network: &network, origin: &origin, image: &image, how };
        let round = scene.round(&outcome, number)?;
        outcome.rounds.push(round);
    }
    Ok(outcome)
}

/// Sets all links to what the scenario begins with.
fn shape(links: &Links, scenario: &Scenario) -> Result<()> {
    for (number, machine) in links.nodes.iter().enumerate() {
        links.set_port(machine, scenario.port_of(number))?;
    }
    for (site, uplink) in scenario.uplinks.iter().enumerate() {
        links.set_uplink(site, uplink.at(0.0))?;
    }
    Ok(())
}

/// The bound of each node that pulls: that of its site, and among slow ones that of the fast ones.
fn bounds(scenario: &Scenario, goodput: &Goodput, bytes: u64) -> Vec<f64> {
    let port = scenario.port * goodput.port;
    if scenario.seeded {
        let others = scenario.pullers().count();
        let bound = match others {
            1 => bound::neighbour(bytes, port, goodput.round_trip),
            _ => bound::seeder(bytes, port, others),
        };
        return vec![bound; others];
    }
    let site = |site: usize| {
        let uplink = scenario.uplinks[site].slower(1.0 / goodput.uplinks[site]);
        let fast = scenario.nodes - scenario.slow;
        bound::herd(bytes, &uplink, port, port * fast as f64, fast)
    };
    let sites: Vec<f64> = (0..scenario.uplinks.len()).map(site).collect();
    scenario.pullers().map(|node| sites[node / scenario.nodes]).collect()
}

/// What rounds have in common.
struct Scene<'a> {
    lab: &'a Lab,
    links: &'a Links,
    network: &'a Network,
    origin: &'a Registry,
    image: &'a Image,
    how: &'a How,
}

/// Waits until the machine does little; gives what it does then, in percent of all cores.
fn calm() -> Result<f64> {
    let begun = Instant::now();
    loop {
        interrupt::check()?;
        let before = Cpu::now()?;
        // What it does can only be seen over time.
        std::thread::sleep(WATCHED);
        let percent = Cpu::now()?.percent_since(before);
        if percent <= CALM || begun.elapsed() >= CALM_TIME {
            eprintln!("  the machine does {percent:.0} % after {:.0} s more", begun.elapsed().as_secs_f64());
            return Ok(percent);
        }
    }
}

impl Scene<'_> {
    fn round(&self, outcome: &Outcome, number: usize) -> Result<Round> {
        let Self { links, origin, image, .. } = *self;
        let scenario = &outcome.scenario;
        let mut options = Options::origin(origin.host());
        if let Some(log) = &self.how.log {
            options = options.with("--log").with(log);
        }
        if scenario.cut && number > 0 {
            links.mend()?;
        }
        let begun = Instant::now();
        let mut nodes = Nodes::start(self.lab, links, self.network, number, &options)?;
        eprintln!(
            "  all nodes know {} others or more after {:.1} s",
            nodes.peers,
            begun.elapsed().as_secs_f64()
        );
        if scenario.seeded {
            self.seed(scenario, &nodes)?;
        }
        let calm = calm()?;
        let clients: Vec<Client<'_>> = scenario
            .pullers()
            .map(|node| Client { space: &links.nodes[node].space, server: GATEWAY })
            .collect();
        let bound = outcome.bounds.iter().copied().fold(0.0, f64::max);
        let limit = self.how.limit.unwrap_or((bound * PATIENCE).max(LEAST_PATIENCE));
        let (before, asked, taken) = (nodes.used()?, origin.accesses()?.len(), nodes.all_taken_from_origin());
        // A link that was cut is left alone.
        let uplinks: &[Rate] = if scenario.cut { &[] } else { &scenario.uplinks };
        let course = Course::begin(links, uplinks)?;
        let killer = Killer::new(scenario.churn, number as u64, links.nodes.len(), scenario.scale);
        let mut meanwhile = FromNodes { course, nodes: &mut nodes, killer, ended: None };
        let cpu = Cpu::now()?;
        let pulled = herd::pull(&clients, image, Duration::from_secs_f64(limit), &mut meanwhile)?;
        let cpu = Cpu::now()?.percent_since(cpu);
        let uplinks = meanwhile.course.carried()?;
        let (noted, killer) = (meanwhile.course.noted(), meanwhile.killer);
        let (used, taken_now) = match meanwhile.ended {
            Some(ended) => ended,
            None => (nodes.used()?, nodes.all_taken_from_origin()),
        };
        let taken = (taken_now + killer.lost).saturating_sub(taken);
        let peers = nodes.peers;
        nodes.discard()?;
        // The origin writes down what was broken off once it has noticed.
        std::thread::sleep(LATE);
        let accesses = origin.accesses()?;
        let accesses = accesses.get(asked..).context("the origin's log grows")?;
        let served = image.blobs().iter().map(|blob| accesses.bytes_of(&blob.digest)).sum();
        let cpu_seconds = if scenario.churn == Churn::None { used.cpu - before.cpu } else { used.cpu };
        let used = Used { cpu: cpu_seconds.max(0.0), ..used };
        Ok(Round { pulled, uplinks, served, taken, cpu, calm, used, peers, kills: killer.log, noted })
    }

    /// Lets the first node have the image, over links that are wide open for it.
    fn seed(&self, scenario: &Scenario, nodes: &Nodes<'_>) -> Result<()> {
        let seeder = &self.links.nodes[0];
        self.links.set_port(seeder, scenario.port.max(TRUE_PACKETS))?;
        self.links.set_uplink(seeder.site, TRUE_PACKETS)?;
        nodes.pull(0, &self.image.reference(self.origin.host()))?;
        shape(self.links, scenario)?;
        if scenario.cut {
            self.links.cut()?;
        }
        Ok(())
    }
}
