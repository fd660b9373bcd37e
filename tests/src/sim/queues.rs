//! How long what is said waits behind the packets of chunks.

use super::clock::Time;
use super::world::World;

/// The longest that a packet waits at the switch's end of a port, in seconds: what cheap switches hold.
pub const PORT_QUEUE: f64 = 0.025;

/// The least that a switch or a router holds, in bytes: a score of packets.
pub const LEAST_QUEUE: f64 = 32e3;

/// How many bytes of a connection its system has under way where it sends all the time: two packets.
const AT_SENDER: f64 = 3e3;

/// How much of a switch's buffer is filled on average, by what fills it until something is lost.
const FILLED: f64 = 0.7;

/// From what part of a port's rate on its buffer fills.
const FULL: f64 = 0.95;

impl World {
    /// How long a message stands behind packets of chunks: at its sender behind the few that the system has of each connection,
    /// at the switch behind those that fill its buffer, where what comes is more than goes out.
    pub(super) fn queued(&self, from: usize, to: usize) -> Time {
        let domain = self.domain(to);
        if self.setup.nodes[from].site != self.setup.nodes[to].site {
            return 0;
        }
        let (sender, receiver) = (&self.nodes[from], &self.nodes[to]);
        let fluid = &self.links[domain].fluid;
        let (flows, _) = fluid.load(sender.up);
        let (_, load) = fluid.load(receiver.down);
        let here = (flows as f64 * AT_SENDER).min(LEAST_QUEUE) / sender.setup.up;
        let there =
            if load < FULL { 0.0 } else { FILLED * PORT_QUEUE.max(LEAST_QUEUE / receiver.setup.down) };
        ((here + there) * 1e9) as Time
    }
}
