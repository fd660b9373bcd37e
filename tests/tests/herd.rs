//! What the planner promises to a whole site, over random worlds: the planner itself on each node, in virtual time.
//!
//! A world is made from its seed alone. `WHERRY_LONG=1` tries many more of them, `WHERRY_SEED=N` one alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::time::Duration;

use wherry_node::transfer::planner::{MAX_DROPPED, MAX_PEERS, MAX_READERS, MAX_REFUSED, MOST_WINDOW};
use wherry_tests::sim::{Churn, Manner, NodeSetup, Random, Report, Setup, World, mbit};

/// How many readings a planner watches, as its module says.
const MAX_WATCHED: usize = 16;

fn seeds(usual: u64) -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var("WHERRY_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return seed..seed + 1;
    }
    0..if std::env::var_os("WHERRY_LONG").is_some() { usual * 50 } else { usual }
}

/// A few honest nodes that want a few small blobs, at about the same time or one after the other.
fn world(seed: u64) -> Setup {
    let mut random = Random::new(seed);
    let count = 2 + random.below(11);
    let mut setup = Setup::herd(seed, count, 0, 1.0, 1.0);
    let sites = if random.below(4) == 0 { 2 } else { 1 };
    setup.sites = (0..sites).map(|_| mbit([1.0, 4.0, 10.0, 50.0][random.below(4)])).collect();
    setup.wide = sites > 1;
    setup.blobs = (0..1 + random.below(3)).map(|_| random.below(1 << 21) as u64).collect();
    setup.rtt = Duration::from_micros([200, 2_000, 20_000][random.below(3)]);
    setup.view = (random.below(3) == 0).then(|| 3 + random.below(4));
    setup.readers = random.below(2) == 0;
    setup.exchange.all_spread = random.below(2) == 0;
    let spread = [0, 20, 3_000][random.below(3)];
    let reach = random.below(3);
    for (number, node) in setup.nodes.iter_mut().enumerate() {
        let rate = mbit([5.0, 20.0, 100.0][random.below(3)]);
        *node = NodeSetup {
            site: number % sites,
            up: rate,
            down: rate,
            start: Duration::from_millis(random.below(spread + 1) as u64),
            manner: Manner::Honest,
            // The first of each site can, so that somebody can.
            origin: reach > 0 || number < sites || random.below(3) == 0,
            // Some only take part.
            wants: number >= sites || reach > 0,
            holds: false,
        };
    }
    allow_time(&mut setup);
    setup
}

/// A generous multiple of what physics asks for, and time for all that has to be waited for.
fn allow_time(setup: &mut Setup) {
    let bound = (0..setup.sites.len()).map(|site| setup.bound(site)).filter(|bound| bound.is_finite());
    let liars = setup.nodes.iter().filter(|node| node.manner != Manner::Honest).count();
    let deaths = setup.churn.map_or(0, |churn| churn.most as usize) + setup.deaths.len();
    setup.limit =
        Duration::from_secs_f64(20.0 * bound.fold(0.0, f64::max) + 60.0 + 60.0 * (liars + deaths) as f64);
    setup.most_events = 5_000_000;
}

fn run(seed: u64, setup: &Setup) -> Report {
    let report = World::new(setup.clone()).run();
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
    assert_eq!(
        report.undone, 0,
        "seed {seed}: after {:.1} s and {} events; failures: {:#?}",
        report.ended, report.events, report.failures
    );
    let most = &report.most.0;
    let within = most.peers <= MAX_PEERS
        && most.dropped <= MAX_DROPPED
        && most.asked <= MOST_WINDOW + 1
        && most.watched <= MAX_WATCHED
        && most.refused <= MAX_REFUSED + MOST_WINDOW
        && most.readers <= MAX_READERS;
    assert!(within, "seed {seed}: {most:?}");
    report
}

/// What the origin may be asked for beyond one copy. Whoever begins to lead says so at once, to all who follow it, and a
/// reading needs a connection to the origin first, which takes longer than a word in the site. Where two who do not see
/// each other lead, the one that is behind hears of the other from a peer of both after at most two updates of 50 ms and
/// the round trips between; until then it takes no more than the uplink gives, and the chunk that it is in the middle of.
/// So does whoever finds the blob at another site.
fn extra(setup: &Setup, report: &Report, site: usize) -> f64 {
    let chunk = 32_768.0;
    let words = 2.0 * 0.05 + 4.0 * setup.rtt.as_secs_f64() + 0.2;
    let further = report.leads.saturating_sub((setup.sites.len() * setup.blobs.len()) as u64) as f64;
    let elsewhere = if setup.wide { setup.blobs.len() as f64 } else { 0.0 };
    further * (words * setup.sites[site] + chunk) + elsewhere * chunk
}

#[test]
fn everybody_gets_everything_and_the_origin_is_read_once() {
    for seed in seeds(150) {
        let setup = world(seed);
        let report = run(seed, &setup);
        assert!(report.honest_dropped == 0 || !report.failures.is_empty(), "seed {seed}");
        // Whoever comes before all who could help is told so, and asks again.
        let helped = |node: &NodeSetup| {
            let before = |other: &&NodeSetup| other.site == node.site && other.start <= node.start;
            setup.nodes.iter().filter(before).any(|other| other.origin || other.holds)
        };
        if setup.nodes.iter().all(helped) {
            assert_eq!(report.failures, Vec::<String>::new(), "seed {seed}");
        }
        for (site, bytes) in report.uplinks.iter().enumerate() {
            let most = setup.size() as f64 + extra(&setup, &report, site);
            assert!(
                *bytes as f64 <= most,
                "seed {seed}: {bytes} of {most} over uplink {site}, {} led",
                report.leads
            );
        }
    }
}

#[test]
fn leaders_that_die_cost_no_more_than_what_only_they_had() {
    for seed in seeds(100) {
        let mut setup = world(seed);
        let mut random = Random::new(!seed);
        let period = Duration::from_millis(200 + random.below(3_000) as u64);
        let away = Duration::from_millis(100 + random.below(5_000) as u64);
        setup.churn = Some(Churn {
            period,
            away,
            leaders: 1 + random.below(3) as u32,
            most: 1 + random.below(4) as u32,
        });
        setup.notice = Duration::from_millis([2, 500, 2_000][random.below(3)]);
        allow_time(&mut setup);
        let report = run(seed, &setup);
        // At worst a leader dies before it has given away anything.
        let most = setup.size() as f64 * (1.0 + report.deaths as f64);
        for (site, bytes) in report.uplinks.iter().enumerate() {
            let most = most + extra(&setup, &report, site);
            assert!(*bytes as f64 <= most, "seed {seed}: {bytes} of {most} over uplink {site}");
        }
    }
}

#[test]
fn liars_hold_nobody_up_for_ever_and_nobody_honest_is_blamed() {
    for seed in seeds(150) {
        let mut setup = world(seed);
        let mut random = Random::new(seed ^ 0x5a5a);
        let sites = setup.sites.len();
        let liars = 1 + random.below(setup.nodes.len().div_ceil(2));
        for _ in 0..liars {
            let mut node = setup.nodes[random.below(setup.nodes.len())].clone();
            node.site = random.below(sites);
            node.manner = match random.below(10) {
                0 => Manner::Mute { held: true },
                1 => Manner::Mute { held: false },
                2 => Manner::Wrong { held: true },
                3 => Manner::Wrong { held: false },
                4 | 5 => Manner::Inventor { pace: 1 + random.below(200) as u32 },
                6 => Manner::IdleLeader,
                7 => Manner::EmptyLeader { pace: 1 + random.below(200) as u32 },
                8 => Manner::Lacking,
                _ => Manner::FalseHolder { fork: 1 + random.below(20) as u32 },
            };
            setup.nodes.push(node);
        }
        // Liars are met all the same; who is connected with nobody else is no matter of the planner's.
        setup.view = None;
        allow_time(&mut setup);
        run(seed, &setup);
    }
}

/// Whoever comes first leads, be its link a quarter of the uplink. All would take four times as long with it to the end.
#[test]
fn a_leader_whose_link_is_slow_makes_way() {
    for seed in seeds(5) {
        let mut setup = Setup::herd(seed, 16, 8_000_000, mbit(4.0), mbit(20.0));
        for node in &mut setup.nodes[1..] {
            node.start = Duration::from_secs(1);
        }
        (setup.nodes[0].up, setup.nodes[0].down) = (mbit(1.0), mbit(1.0));
        allow_time(&mut setup);
        let mut others = setup.clone();
        others.nodes.remove(0);
        let mut report = run(seed, &setup);
        report.done.retain(|(node, _)| *node > 0);
        let (last, bound) = (report.quantile(1.0), 1.0 + others.bound(0));
        assert!(last <= 1.6 * bound, "seed {seed}: {last:.1} s, bound {bound:.1} s");
        assert!(report.uplinks[0] as f64 <= 1.1 * setup.size() as f64, "seed {seed}: {}", report.uplinks[0]);
    }
}

/// One node has asked what a tag means, and the others have it from that one; until then it could have begun with all.
#[test]
fn whoever_learns_first_of_an_image_does_not_read_all_of_its_layers() {
    for seed in seeds(5) {
        let mut setup = Setup::herd(seed, 8, 4_000_000, mbit(20.0), mbit(20.0));
        setup.blobs = vec![4_000_000; 4];
        for node in &mut setup.nodes[1..] {
            node.start = Duration::from_secs(1);
        }
        allow_time(&mut setup);
        let report = run(seed, &setup);
        let most = report.origin_bytes.iter().max().copied().unwrap_or(0);
        assert!(most <= setup.size() / 2, "seed {seed}: {:?}", report.origin_bytes);
        assert!(report.uplinks[0] as f64 <= 1.1 * setup.size() as f64, "seed {seed}: {}", report.uplinks[0]);
    }
}

/// A chunk takes seconds on such links, which makes no difference to who takes over when.
#[test]
fn where_all_links_are_slow_a_leader_that_dies_is_followed_by_the_next_within_seconds() {
    let mut setup = Setup::herd(1, 3, 512 << 20, mbit(2.0), mbit(2.0));
    for node in &mut setup.nodes[1..] {
        node.start = Duration::from_secs(1);
    }
    allow_time(&mut setup);
    let last = |setup: &Setup| {
        let mut report = run(1, setup);
        report.done.retain(|(node, _)| *node > 0);
        report.quantile(1.0)
    };
    let alive = last(&setup);
    setup.deaths = vec![(0, Duration::from_secs(100), None)];
    let died = last(&setup);
    // What was on its way is read again.
    assert!(died <= alive + 15.0, "{died:.1} s, {alive:.1} s where it lives");
}

/// Most chunks are then heard of late and had from few, long after the reading has come to its end.
#[test]
fn where_links_are_thin_and_neighbours_few_what_was_read_is_not_read_again() {
    for seed in seeds(2) {
        let mut setup = Setup::herd(seed, 32, 2_000_000, mbit(1.0), mbit(0.4));
        setup.view = Some(20);
        allow_time(&mut setup);
        let report = run(seed, &setup);
        let read = report.uplinks[0] as f64 / setup.size() as f64;
        assert!(read <= 1.2, "seed {seed}: {read:.3} of the blob came over the uplink");
    }
}

/// A node has its neighbours, and the rest of its site is nothing to it.
#[test]
fn what_a_node_says_and_hears_and_remembers_grows_with_its_neighbours_and_not_with_its_site() {
    let site = |count| {
        let mut setup = Setup::herd(1, count, 4 * 32_768, mbit(4.0), mbit(20.0));
        setup.view = Some(24);
        let mut random = Random::new(1);
        for node in &mut setup.nodes {
            node.start = Duration::from_micros(random.below(100_000) as u64);
        }
        allow_time(&mut setup);
        run(1, &setup)
    };
    let (small, large) = (site(64), site(256));
    for (few, many) in [(&small.sent, &large.sent), (&small.received, &large.received)] {
        let middle = |all: &[u64]| all[all.len() / 2];
        let most = |all: &[u64]| all[all.len() - 1];
        assert!(2 * middle(many) <= 3 * middle(few), "{} messages, {}", middle(many), middle(few));
        assert!(most(many) <= 2 * most(few), "{} messages at most, {}", most(many), most(few));
    }
    let (few, many) = (small.planner_bytes, large.planner_bytes);
    assert!(many <= 1.1 * few, "{many:.0} bytes, {few:.0}");
}
