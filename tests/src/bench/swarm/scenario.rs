//! What is measured.

use super::rates::Rate;

/// Bytes and bits are counted as networks count them.
const MB: u64 = 1_000_000;
const MBIT: f64 = 1e6;

/// One in so many seconds a node is killed, and comes back so much later.
pub(crate) const KILL_EVERY: f64 = 3.0;
/// How long a killed node is away, in seconds.
pub(crate) const AWAY: f64 = 3.0;
/// Which kill is aimed at a leader, if any is: the third, the sixth and so on.
pub(crate) const AIMED: usize = 3;

/// How much slower a slow node is.
const SLOWER: f64 = 10.0;

/// Who is killed while the others pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Churn {
    /// Nobody.
    None,
    /// Somebody.
    Random,
    /// Somebody, and every third time whoever takes most from the origin.
    Leaders,
}

/// What has to be reached, each over the bound or over the bytes of the image.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Goals {
    /// The median node.
    pub(crate) median: Option<f64>,
    /// The last node.
    pub(crate) last: Option<f64>,
    /// Bytes of blobs over the uplink.
    pub(crate) blobs: Option<f64>,
    /// How many times faster than each by itself, at least.
    pub(crate) faster: Option<f64>,
}

/// A scenario.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it is, in a few words.
    pub(crate) about: &'static str,
    /// How many nodes each site has.
    pub(crate) nodes: usize,
    /// How many of them are at a tenth of the speed.
    pub(crate) slow: usize,
    /// The image's layers, in bytes.
    pub(crate) layers: Vec<u64>,
    /// The uplink of each site.
    pub(crate) uplinks: Vec<Rate>,
    /// Bits a second of a node's port.
    pub(crate) port: f64,
    /// Whether the first node has the image already.
    pub(crate) seeded: bool,
    /// Whether the uplink is cut before the others begin.
    pub(crate) cut: bool,
    /// Who is killed.
    pub(crate) churn: Churn,
    /// What its rates were divided by.
    pub(crate) scale: f64,
    /// How often it is measured.
    pub(crate) rounds: usize,
    /// What has to be reached.
    pub(crate) goals: Goals,
}

/// What a run of the benchmark changes about its scenarios.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Changes {
    /// Nodes of each site.
    pub(crate) nodes: Option<usize>,
    /// Layers that the image has, all of the same length.
    pub(crate) layers: Option<usize>,
    /// What all rates are divided by.
    pub(crate) scale: Option<f64>,
    /// Rounds of each scenario.
    pub(crate) rounds: Option<usize>,
}

impl Scenario {
    /// Every scenario, in the order of their names.
    pub(crate) fn all() -> Vec<Self> {
        let herd = Self {
            name: "S1",
            about: "cold herd",
            nodes: 64,
            slow: 0,
            layers: vec![4 * MB; 4],
            uplinks: vec![Rate::Steady(4.0 * MBIT)],
            port: 20.0 * MBIT,
            seeded: false,
            cut: false,
            churn: Churn::None,
            scale: 1.0,
            rounds: 1,
            goals: Goals { last: Some(1.08), blobs: Some(1.01), faster: Some(58.0), median: None },
        };
        let changing = |site: u64| Rate::Changing {
            choices: [1.0, 2.0, 4.0, 8.0].map(|rate| rate * MBIT),
            seconds: 10.0,
            seed: site << 32,
        };
        let last = |last: f64| Goals { last: Some(last), ..Goals::default() };
        vec![
            herd.clone(),
            Self {
                name: "S1b",
                about: "scarce upload",
                uplinks: vec![Rate::Steady(50.0 * MBIT)],
                goals: last(1.2),
                ..herd.clone()
            },
            Self {
                name: "S2",
                about: "one seeder",
                nodes: 32,
                layers: vec![64 * MB],
                uplinks: vec![Rate::Steady(10.0 * MBIT)],
                port: 10.0 * MBIT,
                seeded: true,
                cut: true,
                goals: Goals { median: Some(1.05), last: Some(1.12), ..Goals::default() },
                ..herd.clone()
            },
            Self {
                name: "S3",
                about: "four sites",
                nodes: 12,
                uplinks: (0..4).map(changing).collect(),
                goals: Goals { faster: Some(10.0), blobs: Some(1.03), ..Goals::default() },
                ..herd.clone()
            },
            Self {
                name: "S4",
                about: "warm neighbour",
                nodes: 2,
                layers: vec![2_500_000; 4],
                uplinks: vec![Rate::Steady(10.0 * MBIT)],
                port: 1e3 * MBIT,
                seeded: true,
                rounds: 5,
                goals: last(1.5),
                ..herd.clone()
            },
            Self {
                name: "S5",
                about: "churn",
                churn: Churn::Random,
                goals: Goals { last: Some(1.25), blobs: Some(1.03), ..Goals::default() },
                ..herd.clone()
            },
            Self {
                name: "S5b",
                about: "churn of leaders",
                churn: Churn::Leaders,
                goals: Goals { last: Some(1.4), blobs: Some(1.1), ..Goals::default() },
                ..herd.clone()
            },
            Self { name: "S6", about: "five slow nodes", slow: 5, goals: last(1.1), ..herd },
        ]
    }

    /// The scenario as a run of the benchmark wants it.
    pub(crate) fn changed(mut self, by: &Changes) -> Self {
        if let Some(nodes) = by.nodes {
            // A herd of another size is so many times faster than another number.
            self.goals.faster = None;
            self.nodes = nodes;
            self.slow = self.slow.min(nodes / 4);
        }
        if let Some(layers) = by.layers {
            self.layers = vec![self.bytes() / layers as u64; layers];
        }
        if let Some(scale) = by.scale {
            self.scale = scale;
            self.port /= scale;
            self.uplinks = self.uplinks.into_iter().map(|uplink| uplink.in_slow_motion(scale)).collect();
        }
        self.rounds = by.rounds.unwrap_or(self.rounds);
        self
    }

    /// The bytes of all layers.
    pub(crate) fn bytes(&self) -> u64 {
        self.layers.iter().sum()
    }

    /// The rate of a node's port; of a site's nodes the last are the slow ones.
    pub(crate) fn port_of(&self, node: usize) -> f64 {
        if self.is_slow(node) { self.port / SLOWER } else { self.port }
    }

    /// Whether a node is one of the slow ones. Nodes are counted through all sites.
    pub(crate) fn is_slow(&self, node: usize) -> bool {
        node % self.nodes >= self.nodes - self.slow
    }

    /// All nodes of all sites.
    pub(crate) fn all_nodes(&self) -> usize {
        self.nodes * self.uplinks.len()
    }

    /// The nodes that pull.
    pub(crate) fn pullers(&self) -> impl Iterator<Item = usize> {
        usize::from(self.seeded)..self.all_nodes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Scenario {
        Scenario::all().into_iter().find(|scenario| scenario.name == name).unwrap()
    }

    #[test]
    fn a_scale_divides_rates_and_keeps_sizes() {
        let changes = Changes { scale: Some(4.0), ..Changes::default() };
        let (before, after) = (named("S1"), named("S1").changed(&changes));
        assert_eq!((after.port, after.uplinks[0]), (before.port / 4.0, Rate::Steady(1e6)));
        assert_eq!(after.layers, before.layers);
        assert_eq!(after.goals.faster, before.goals.faster);
        let (before, after) = (named("S3"), named("S3").changed(&changes));
        for (before, after) in before.uplinks.iter().zip(&after.uplinks) {
            assert_eq!(after.time_for(128e6), 4.0 * before.time_for(128e6));
        }
    }

    #[test]
    fn another_number_of_layers_keeps_the_image_as_large() {
        let after = named("S1").changed(&Changes { layers: Some(1), ..Changes::default() });
        assert_eq!(after.layers, [16_000_000]);
    }

    #[test]
    fn five_of_the_mixed_herd_are_slow_and_the_seeder_does_not_pull() {
        let mixed = named("S6");
        assert_eq!((0..mixed.all_nodes()).filter(|&node| mixed.is_slow(node)).count(), 5);
        assert_eq!(mixed.port_of(63), mixed.port_of(0) / 10.0);
        assert_eq!(named("S2").pullers().count(), 31);
        assert_eq!(named("S3").pullers().count(), 48);
    }
}
