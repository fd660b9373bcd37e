//! What a simulation came to.

use wherry_node::transfer::planner::Sizes;

use super::setup::{Manner, Setup};
use super::world::World;

/// What a simulation came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// When each honest node had all blobs, in seconds, by its number; those that never had are missing.
    pub done: Vec<(usize, f64)>,
    /// How many honest nodes that wanted the blobs and live did not get them.
    pub undone: usize,
    /// What was done that must not be.
    pub violations: Vec<String>,
    /// Why transfers gave up.
    pub failures: Vec<String>,
    /// Bytes of blobs that came over each site's uplink.
    pub uplinks: Vec<u64>,
    /// How many readings of the origin began.
    pub readings: u64,
    /// How often a node began to lead.
    pub leads: u64,
    /// How many nodes died.
    pub deaths: u64,
    /// How often an honest node was not used any more, because it was gone.
    pub honest_dropped: u64,
    /// How often a liar was.
    pub liars_dropped: u64,
    /// How many bans there were.
    pub bans: u64,
    /// Chunks that came and were thrown away.
    pub discarded: u64,
    /// Bytes of chunks that came although they had been taken back.
    pub wasted: u64,
    /// Requests that found no slot.
    pub busy: u64,
    /// Requests for a chunk that others had been given.
    pub elsewhere: u64,
    /// Requests for a chunk that was not there.
    pub not_here: u64,
    /// Requests that were taken back since another one could give the chunk sooner.
    pub hedged: u64,
    /// Readings that came to nothing.
    pub voids: u64,
    /// How often the origin contradicted a chain.
    pub contradictions: u64,
    /// Messages that were sent, by all nodes.
    pub messages: u64,
    /// How many of them asked neighbours for the blob, or answered that.
    pub searching: u64,
    /// How many messages each honest node sent that wanted the blobs, in ascending order.
    pub sent: Vec<u64>,
    /// How many each of them received, in ascending order.
    pub received: Vec<u64>,
    /// About how many bytes all messages had.
    pub message_bytes: u64,
    /// Bytes of chunks that nodes sent to each other.
    pub chunk_bytes: u64,
    /// Bytes of chunks that each node has read from the origin.
    pub origin_bytes: Vec<u64>,
    /// The most that a planner remembered, part by part.
    pub most: Most,
    /// The bytes that a planner took at most, on average over the nodes.
    pub planner_bytes: f64,
    /// How many things happened in the simulation.
    pub events: u64,
    /// When it ended, in seconds.
    pub ended: f64,
}

/// The most of each part of any planner.
#[derive(Debug, Clone, Default)]
pub struct Most(pub Sizes);

impl Most {
    pub(super) fn max(&mut self, sizes: &Sizes) {
        self.0 = self.0.max(sizes);
    }
}

/// How many violations are kept.
const MAX_VIOLATIONS: usize = 20;

impl Report {
    pub(super) fn new(setup: &Setup) -> Self {
        Self { uplinks: vec![0; setup.sites.len()], ..Self::default() }
    }

    pub(super) fn wrong(&mut self, what: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(what);
        }
    }

    /// When so great a part of the nodes that ended had everything, in seconds.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut times: Vec<f64> = self.done.iter().map(|(_, at)| *at).collect();
        times.sort_by(f64::total_cmp);
        let last = times.len().saturating_sub(1);
        times.get((last as f64 * part).ceil() as usize).copied().unwrap_or(f64::NAN)
    }

    /// When the last of these nodes had everything.
    pub fn last_of(&self, chosen: impl Fn(usize) -> bool) -> f64 {
        self.done.iter().filter(|(node, _)| chosen(*node)).map(|(_, at)| *at).fold(0.0, f64::max)
    }

    /// The most that came over any uplink.
    pub fn uplink(&self) -> u64 {
        self.uplinks.iter().copied().max().unwrap_or(0)
    }
}

impl World {
    pub(super) fn finish(mut self) -> Report {
        let mut report = std::mem::take(&mut self.report);
        let mut planners = 0;
        for (number, node) in self.nodes.iter().enumerate() {
            report.messages += node.tally.messages;
            report.message_bytes += node.tally.message_bytes;
            report.chunk_bytes += node.tally.chunk_bytes;
            report.origin_bytes.push(node.tally.origin_bytes);
            if node.setup.manner != Manner::Honest || !node.setup.wants || node.setup.holds {
                continue;
            }
            planners += 1;
            report.sent.push(node.tally.messages);
            report.received.push(node.tally.received);
            report.planner_bytes += node.tally.most_bytes as f64;
            let done: Option<Vec<u64>> = node.blobs.iter().map(|carried| carried.done).collect();
            match done.and_then(|times| times.into_iter().max()) {
                Some(at) => report.done.push((number, at as f64 / 1e9)),
                None if node.alive => report.undone += 1,
                None => {}
            }
        }
        report.sent.sort_unstable();
        report.received.sort_unstable();
        report.planner_bytes /= f64::from(planners.max(1));
        report.events = self.events;
        report.ended = self.clock.now() as f64 / 1e9;
        report
    }
}
