//! The time that no scheme of distribution can beat, from the goodput that was measured on the links.

use super::rates::Rate;

/// Round trips that a node with nothing needs in a row before the first byte of a layer can come from a neighbour: who
/// has the manifest, the manifest, who has the layers, the first chunk.
const ROUND_TRIPS: f64 = 4.0;

/// What links were measured to carry of bytes that matter; headers are the rest.
#[derive(Clone, Debug)]
pub(crate) struct Goodput {
    /// Of each site's uplink towards the site, as a share of the rate that it is set to.
    pub(crate) uplinks: Vec<f64>,
    /// Of a node's port, one way, as a share of the rate that it is set to: what bounds go by.
    pub(crate) port: f64,
    /// The same, of the slower way, where as much goes the other way, whose acknowledgements share the port: what TCP leaves
    /// to nodes that give as much as they take.
    pub(crate) port_both_ways: f64,
    /// Seconds there and back between two nodes with nothing else on the way.
    pub(crate) round_trip: f64,
}

/// `nodes` of a site, all of which want `bytes` that only the far end of the uplink has: what the uplink carries, what a
/// port takes in, and what all of them together have to be sent by somebody.
pub(crate) fn herd(bytes: u64, uplink: &Rate, port: f64, uploads: f64, nodes: usize) -> f64 {
    let bits = bytes as f64 * 8.0;
    let together = bits * nodes as f64;
    // Only a steady uplink can add to what the ports upload; a changing one is never the faster side.
    let shared = match uplink {
        Rate::Steady(rate) => together / (rate + uploads),
        Rate::Changing { .. } => together / uploads,
    };
    uplink.time_for(bits).max(bits / port).max(shared)
}

/// `nodes` besides one that has all `bytes`, and no uplink; all ports are alike.
pub(crate) fn seeder(bytes: u64, port: f64, nodes: usize) -> f64 {
    let bits = bytes as f64 * 8.0;
    let nodes = nodes as f64;
    (bits / port).max(nodes * bits / ((nodes + 1.0) * port))
}

/// One node beside one that has all `bytes`.
pub(crate) fn neighbour(bytes: u64, port: f64, round_trip: f64) -> f64 {
    ROUND_TRIPS * round_trip + bytes as f64 * 8.0 / port
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn behind_a_thin_uplink_the_uplink_is_the_bound() {
        assert_eq!(herd(16 * MB, &Rate::Steady(4e6), 20e6, 64.0 * 20e6, 64), 32.0);
    }

    #[test]
    fn behind_a_fast_uplink_uploads_and_ports_are_the_bound() {
        let time = herd(16 * MB, &Rate::Steady(50e6), 20e6, 64.0 * 20e6, 64);
        assert!((time - 6.4).abs() < 0.2, "{time}: a port takes 6.4 s, all uploads together 6.2 s");
        let scarce = herd(16 * MB, &Rate::Steady(50e6), 20e6, 64.0 * 5e6, 64);
        assert!((scarce - 64.0 * 128e6 / 370e6).abs() < 1e-9);
    }

    #[test]
    fn behind_a_changing_uplink_the_bound_is_when_one_copy_is_through() {
        let uplink = Rate::Changing { choices: [1e6, 2e6, 4e6, 8e6], seconds: 10.0, seed: 5 };
        let time = herd(16 * MB, &uplink, 20e6, 12.0 * 20e6, 12);
        assert!((uplink.carried(time) - 128e6).abs() < 1.0);
    }

    #[test]
    fn with_one_seeder_every_node_takes_a_copy_through_its_own_port() {
        assert_eq!(seeder(64 * MB, 10e6, 31), 51.2);
    }

    #[test]
    fn a_warm_neighbour_costs_a_few_round_trips_and_the_port() {
        assert!((neighbour(10 * MB, 1e9, 0.001) - 0.084).abs() < 1e-12);
    }
}
