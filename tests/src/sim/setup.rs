//! What is simulated: nodes, links, blobs, and what goes wrong.

use std::time::Duration;

use wherry_node::swarm::{MOST_IN_A_ROW, UPLOAD_SLOTS};

/// How a node behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As the planner says.
    Honest,
    /// Says that it has everything, and never sends a chunk.
    Mute {
        /// Whether it says that it holds the blob, with its true chain; else it says that it follows.
        held: bool,
    },
    /// Sends wrong bytes.
    Wrong {
        /// As for `Mute`.
        held: bool,
    },
    /// Leads with a stream that it has made up: its chunks link, and do not lead to the digest.
    Inventor {
        /// How many chunks it says to have read each second.
        pace: u32,
    },
    /// Claims to lead, and does not come forward.
    IdleLeader,
    /// Claims to lead and to come forward, and gives neither states nor chunks.
    EmptyLeader {
        /// How many chunks it says to have read each second.
        pace: u32,
    },
    /// Says that it follows and has everything, and has nothing when asked.
    Lacking,
    /// Signs a chain that it has made up before the chunk of this number, and sends chunks that it made up.
    FalseHolder {
        /// The first chunk at which the chain is true.
        fork: u32,
    },
}

/// One node.
#[derive(Debug, Clone)]
pub struct NodeSetup {
    /// Which site it is at.
    pub site: usize,
    /// What it can send, in bytes a second.
    pub up: f64,
    /// What it can take, in bytes a second.
    pub down: f64,
    /// When it begins.
    pub start: Duration,
    /// How it behaves.
    pub manner: Manner,
    /// Whether it can read the origin.
    pub origin: bool,
    /// Whether it wants the blobs by itself, or only takes part when it is asked.
    pub wants: bool,
    /// Whether it holds the blobs from the start.
    pub holds: bool,
}

/// Deaths that go on for as long as the simulation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Churn {
    /// How much time lies between two deaths.
    pub period: Duration,
    /// After how long who died comes back, with what it had on disk.
    pub away: Duration,
    /// Every how manieth death hits a node that leads; 0 for none.
    pub leaders: u32,
    /// How many deaths there are at most.
    pub most: u32,
}

/// What the giving side of an exchange allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// How many chunks a node sends at a time.
    pub slots: usize,
    /// How many chunks a peer takes in one slot while others have none.
    pub in_a_row: u32,
    /// Whether all that a node has goes out once while upload is scarce, and not only what it has from elsewhere.
    pub all_spread: bool,
    /// For how long nobody may have been sent away before upload counts as plentiful.
    pub quiet: Duration,
}

impl Exchange {
    /// What the node does.
    pub const USUAL: Self = Self {
        slots: UPLOAD_SLOTS,
        in_a_row: MOST_IN_A_ROW,
        all_spread: false,
        quiet: Duration::from_millis(200),
    };
}

/// A world to simulate.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Makes all chance.
    pub seed: u64,
    /// The nodes.
    pub nodes: Vec<NodeSetup>,
    /// The rate of each site's uplink in bytes a second.
    pub sites: Vec<f64>,
    /// The sizes of the blobs that every node wants.
    pub blobs: Vec<u64>,
    /// Between two nodes of a site.
    pub rtt: Duration,
    /// Between nodes of two sites, and to the origin.
    pub far_rtt: Duration,
    /// How many neighbours in its site a node has at most; all if `None`.
    pub view: Option<usize>,
    /// Whether nodes of other sites that hold a blob are found.
    pub wide: bool,
    /// How much more than the bytes of a chunk goes over the links.
    pub overhead: f64,
    /// What the giving side allows.
    pub exchange: Exchange,
    /// How long before it is noticed that a node is gone.
    pub notice: Duration,
    /// How long writing a chunk takes.
    pub disk: Duration,
    /// Whether a client reads each blob on each node, in order and as fast as it comes.
    pub readers: bool,
    /// Who dies.
    pub churn: Option<Churn>,
    /// One after the other, these nodes die at these times, and come back after so long if at all.
    pub deaths: Vec<(usize, Duration, Option<Duration>)>,
    /// When the simulation is given up.
    pub limit: Duration,
    /// After how many events it is.
    pub most_events: u64,
}

/// Bytes a second.
pub const fn mbit(rate: f64) -> f64 {
    rate * 125_000.0
}

impl Setup {
    /// One site with `count` equal nodes that all want one blob, at once, and can read the origin.
    pub fn herd(seed: u64, count: usize, size: u64, uplink: f64, port: f64) -> Self {
        let node = NodeSetup {
            site: 0,
            up: port,
            down: port,
            start: Duration::ZERO,
            manner: Manner::Honest,
            origin: true,
            wants: true,
            holds: false,
        };
        Self {
            seed,
            nodes: vec![node; count],
            sites: vec![uplink],
            blobs: vec![size],
            rtt: Duration::from_millis(2),
            far_rtt: Duration::from_millis(40),
            view: None,
            wide: false,
            overhead: 0.04,
            exchange: Exchange::USUAL,
            notice: Duration::from_millis(2),
            disk: Duration::from_micros(500),
            readers: false,
            churn: None,
            deaths: Vec::new(),
            limit: Duration::from_secs(24 * 3600),
            most_events: u64::MAX,
        }
    }

    /// All bytes of the blobs.
    pub fn size(&self) -> u64 {
        self.blobs.iter().sum()
    }

    /// How long it takes at least until every node of a site with one uplink has everything, in seconds: the blobs over
    /// the uplink, the blobs into the slowest node, and all copies out of all that can send.
    pub fn bound(&self, site: usize) -> f64 {
        let of_site = || self.nodes.iter().filter(|node| node.site == site && node.manner == Manner::Honest);
        let size = self.size() as f64;
        let takers = || of_site().filter(|node| node.wants && !node.holds);
        let holders = of_site().filter(|node| node.holds).map(|node| node.up).sum::<f64>();
        let source = if holders > 0.0 { holders } else { self.sites[site] };
        let out: f64 = takers().map(|node| node.up).sum::<f64>() + source;
        let slowest = takers().map(|node| node.down).fold(f64::INFINITY, f64::min);
        (size / source).max(size / slowest).max(size * takers().count() as f64 / out)
    }
}
