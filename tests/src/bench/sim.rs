//! The swarm in a simulation: the scenarios that namespaces measure too, and sites that no machine holds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use wherry_node::swarm::MAX_CONNECTIONS;
use wherry_proto::ChunkMap;
use wherry_tests::sim::{Churn, Random, Report, Setup, World, mbit};

/// How many nodes each site of the large networks has.
const SITE: usize = 50;

/// Seeds over which each small scenario is run; the table has the median of each figure.
const SEEDS: u64 = 5;

struct Scenario {
    name: &'static str,
    what: &'static str,
    setup: fn(u64) -> Setup,
    // The bound is that of these nodes, the first of which has this number.
    from: usize,
}

/// Within what time all nodes of a site begin: people and schedulers are no quicker, and chance says who is first.
const TOGETHER: Duration = Duration::from_millis(100);

fn herd(seed: u64, count: usize, image: u64, uplink: f64, port: f64) -> Setup {
    let mut setup = Setup::herd(seed, count, image, uplink, port);
    let mut random = Random::new(seed);
    for node in &mut setup.nodes {
        node.start = Duration::from_micros(random.below(TOGETHER.as_micros() as usize) as u64);
    }
    setup
}

/// As many layers as the image has that is measured in namespaces.
fn layered(setup: Setup) -> Setup {
    Setup { blobs: vec![setup.size() / 4; 4], ..setup }
}

fn s1(seed: u64) -> Setup {
    layered(herd(seed, 64, 16_000_000, mbit(4.0), mbit(20.0)))
}

fn s1b(seed: u64) -> Setup {
    layered(herd(seed, 64, 16_000_000, mbit(50.0), mbit(20.0)))
}

fn s2(seed: u64) -> Setup {
    let mut setup = herd(seed, 32, 64_000_000, 1.0, mbit(10.0));
    setup.nodes.iter_mut().for_each(|node| node.origin = false);
    // It has been there for long.
    (setup.nodes[0].holds, setup.nodes[0].start) = (true, Duration::ZERO);
    setup
}

fn churn(seed: u64, leaders: u32) -> Setup {
    let three = Duration::from_secs(3);
    Setup { churn: Some(Churn { period: three, away: three, leaders, most: u32::MAX }), ..s1(seed) }
}

fn s6(seed: u64) -> Setup {
    let mut setup = s1(seed);
    for node in &mut setup.nodes[..SLOW] {
        (node.up, node.down) = (node.up / 10.0, node.down / 10.0);
    }
    setup
}

/// How many slow nodes S6 has.
const SLOW: usize = 5;

const SCENARIOS: [Scenario; 6] = [
    Scenario { name: "S1", what: "64 nodes, 16 MB in 4 layers, uplink 4, LAN 20 Mbit/s", setup: s1, from: 0 },
    Scenario { name: "S1b", what: "the same, uplink 50", setup: s1b, from: 0 },
    Scenario { name: "S2", what: "32 nodes, 64 MB, one seeder, 10 Mbit/s", setup: s2, from: 0 },
    Scenario { name: "S5", what: "S1, a node dies every 3 s for 3 s", setup: |seed| churn(seed, 0), from: 0 },
    Scenario { name: "S5l", what: "S5, every third time the leader", setup: |seed| churn(seed, 3), from: 0 },
    Scenario { name: "S6", what: "S1, five nodes at a tenth: the fast ones", setup: s6, from: SLOW },
];

fn check(name: &str, report: &Report) -> Result<()> {
    if report.undone > 0 || !report.violations.is_empty() {
        bail!("{name}: {} nodes did not end; {:?}", report.undone, report.violations);
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A scenario's name and by what all rates are divided: `S1b/24`.
fn scaled(word: &str) -> Option<(&str, f64)> {
    match word.split_once('/') {
        Some((name, scale)) => Some((name, scale.parse().ok().filter(|scale| *scale >= 1.0)?)),
        None => Some((word, 1.0)),
    }
}

/// Whether a word names a scenario.
pub(crate) fn is_scenario(word: &str) -> bool {
    scaled(word).is_some_and(|(name, _)| SCENARIOS.iter().any(|scenario| scenario.name == name))
}

fn slower(mut setup: Setup, scale: f64) -> Setup {
    for node in &mut setup.nodes {
        (node.up, node.down) = (node.up / scale, node.down / scale);
    }
    setup.sites.iter_mut().for_each(|rate| *rate /= scale);
    if let Some(churn) = &mut setup.churn {
        (churn.period, churn.away) = (churn.period.mul_f64(scale), churn.away.mul_f64(scale));
    }
    setup
}

/// The scenarios that are measured in namespaces too, predicted: those of these names, at their rates or, as in `S1b/24`,
/// slower ones, or all if there are none.
pub(crate) fn scenarios(names: &[&str]) -> Result<()> {
    println!(
        "Times over the lower bound of the links' raw rates: 1.04 is the least, for what surrounds the bytes."
    );
    println!(
        "{:6} {:42} {:>8} {:>7} {:>7} {:>7} {:>9} {:>9}",
        "", "", "bound", "median", "99th", "last", "uplink/F", "messages"
    );
    let all: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    let names = if names.is_empty() { &all } else { names };
    for (name, (wanted, scale)) in names.iter().filter_map(|word| Some((*word, scaled(word)?))) {
        let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == wanted) else { continue };
        let mut reports = Vec::new();
        for seed in 1..=SEEDS {
            let setup = slower((scenario.setup)(seed), scale);
            let mut bounded = setup.clone();
            bounded.nodes.drain(..scenario.from);
            let bound = bounded.bound(0);
            let mut report = World::new(setup.clone()).run();
            check(scenario.name, &report)?;
            report.done.retain(|(node, _)| *node >= scenario.from);
            reports.push((bound, setup.size() as f64, report));
        }
        let of = |figure: &dyn Fn(&(f64, f64, Report)) -> f64| median(reports.iter().map(figure).collect());
        println!(
            "{:6} {:42} {:>6.1} s {:>7.3} {:>7.3} {:>7.3} {:>9.3} {:>9.0}",
            name,
            scenario.what,
            reports[0].0,
            of(&|(bound, _, report)| report.quantile(0.5) / bound),
            of(&|(bound, _, report)| report.quantile(0.99) / bound),
            of(&|(bound, _, report)| report.quantile(1.0) / bound),
            of(&|(_, size, report)| report.uplink() as f64 / size),
            of(&|(_, _, report)| report.messages as f64 / (report.done.len() as f64)),
        );
    }
    Ok(())
}

/// One site of a large network. Sites that start at once do not find each other's copies before they have their own, so
/// each is a world for itself.
fn site(number: u64, count: usize, image: u64) -> Setup {
    let mut setup = herd(number + 1, count, image, mbit(200.0), mbit(1000.0));
    setup.view = Some(30);
    setup
}

/// Networks of these numbers of nodes, with an image of so many bytes.
pub(crate) fn networks(sizes: &[usize], image: u64) -> Result<()> {
    println!(
        "{} MiB to sites of up to {SITE} nodes with 30 neighbours each, uplink 200 Mbit/s, LAN 1 Gbit/s. Messages, their \
         bytes and the planner's memory are those of one node.",
        image >> 20
    );
    println!(
        "{:>6} {:>5} {:>9} {:>7} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "nodes",
        "sites",
        "bound",
        "median",
        "99th",
        "last",
        "uplink/F",
        "messages",
        "in MB",
        "memory",
        "took"
    );
    for nodes in sizes {
        network(*nodes, image)?;
    }
    Ok(())
}

fn network(nodes: usize, image: u64) -> Result<()> {
    let begun = Instant::now();
    let sites = nodes.div_ceil(SITE);
    let next = AtomicUsize::new(0);
    let run = || {
        let mut reports = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= sites {
                return reports;
            }
            reports.push(World::new(site(number as u64, nodes / sites, image)).run());
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let reports: Vec<Report> = thread::scope(|scope| {
        let runs: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        // A thread that panicked has said so; its sites are missing, which is seen below.
        runs.into_iter().flat_map(|run| run.join().unwrap_or_default()).collect()
    });
    let bound = site(0, nodes / sites, image).bound(0);
    let mut all = Report::default();
    for report in &reports {
        check("a site", report)?;
        all.done.extend(&report.done);
        all.uplinks.extend(&report.uplinks);
        all.messages += report.messages;
        all.message_bytes += report.message_bytes;
        all.planner_bytes = all.planner_bytes.max(report.planner_bytes);
    }
    if all.done.len() != nodes {
        bail!("{} of {nodes} nodes ended", all.done.len());
    }
    println!(
        "{nodes:>6} {sites:>5} {bound:>7.1} s {:>7.3} {:>7.3} {:>7.3} {:>9.4} {:>9} {:>9.1} {:>6.0} kB {:>6.0} s",
        all.quantile(0.5) / bound,
        all.quantile(0.99) / bound,
        all.quantile(1.0) / bound,
        all.uplink() as f64 / image as f64,
        all.messages / nodes as u64,
        all.message_bytes as f64 / nodes as f64 / 1e6,
        all.planner_bytes / 1e3,
        begun.elapsed().as_secs_f64(),
    );
    Ok(())
}

/// The blob of one large site: four seconds of its uplink. A larger one takes longer, and tells no more.
const SITE_BLOB: u64 = 2 << 20;

/// How many nodes the one large site has.
const SITES: [usize; 3] = [100, 1_000, 10_000];

/// One cold site of ever more nodes behind the same uplink, as large as S1 and beyond: what a node sends and remembers is to
/// grow with its neighbours and not with the site. Of these it has as many as a node takes connections.
pub(crate) fn sites(names: &[&str]) -> Result<()> {
    let counts: Vec<usize> = match names {
        [] => SITES.to_vec(),
        names => names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
    };
    let view = MAX_CONNECTIONS as usize;
    let map = ChunkMap::new(SITE_BLOB)?;
    println!(
        "{} MiB in {} chunks to one site behind an uplink of 4 Mbit/s, LAN 20 Mbit/s, of {view} neighbours at most. Messages \
         and the planner's memory are those of one node; 'asking' is what went before the exchange.",
        SITE_BLOB >> 20,
        map.count(),
    );
    println!(
        "{:>6} {:>10} {:>7} {:>7} {:>7} {:>8} {:>6} {:>17} {:>17} {:>8} {:>9} {:>8}",
        "nodes",
        "neighbours",
        "bound",
        "median",
        "last",
        "uplink/F",
        "led",
        "sent, most",
        "received, most",
        "asking",
        "memory",
        "took"
    );
    for count in counts {
        let mut setup = herd(1, count, SITE_BLOB, mbit(4.0), mbit(20.0));
        setup.view = Some(view);
        let bound = setup.bound(0);
        let begun = Instant::now();
        let report = World::new(setup).run();
        check("a site", &report)?;
        let middle_and_most = |all: &[u64]| match (all.get(all.len() / 2), all.last()) {
            (Some(middle), Some(most)) => format!("{middle} {most}"),
            _ => String::new(),
        };
        println!(
            "{count:>6} {:>10} {bound:>5.1} s {:>7.3} {:>7.3} {:>8.3} {:>6} {:>17} {:>17} {:>8} {:>6.0} kB {:>6.0} s",
            view.min(count - 1),
            report.quantile(0.5) / bound,
            report.quantile(1.0) / bound,
            report.uplink() as f64 / SITE_BLOB as f64,
            report.leads,
            middle_and_most(&report.sent),
            middle_and_most(&report.received),
            report.searching / count as u64,
            report.planner_bytes / 1e3,
            begun.elapsed().as_secs_f64(),
        );
    }
    Ok(())
}
