//! How flows share links: max-min fair, at once (Bertsekas and Gallager, "Data Networks", 6.5.2).
//!
//! Each port has a share: what a flow gets there that nothing limits elsewhere. A flow has the least of the shares on its
//! way. Where all shares agree with each other this is max-min fair, for each flow then has a port that is full and on
//! which none has more (Charny, Clark and Jain, 1995). So a flow that begins or ends concerns its own ports first, and
//! others only as far as shares change: however large the world is, that is a neighbourhood.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::clock::Time;

/// A link's end: a node's port in one direction, or a site's uplink.
pub(super) type PortId = usize;

/// Through how many ports a flow goes at most: out of a node, out of its site, into another, into a node.
const MAX_PORTS: usize = 4;

/// What is left of a flow when it counts as done, in bytes.
const NOTHING: f64 = 1e-3;

/// By which part of itself a share changes at least before others hear of it.
const EXACT: f64 = 0.002;

struct Port {
    // In bytes a second.
    rate: f64,
    share: f64,
    flows: Vec<FlowId>,
    // Whether its share is to be found anew.
    is_due: bool,
}

struct Flow<T> {
    ports: [PortId; MAX_PORTS],
    // Where it stands among the flows of each.
    places: [usize; MAX_PORTS],
    count: usize,
    // At this time so much was left, and came at this rate since.
    at: Time,
    left: f64,
    rate: f64,
    // When it is next looked at; never later than when it is done.
    due: Time,
    what: T,
}

impl<T> Flow<T> {
    fn ports(&self) -> &[PortId] {
        &self.ports[..self.count]
    }

    fn left(&self, now: Time) -> f64 {
        self.left - self.rate * ((now - self.at) as f64 / 1e9)
    }

    /// When it is done at its rate. Rounded up: at that time it is.
    fn end(&self, now: Time) -> Time {
        now + (self.left(now).max(0.0) / self.rate.max(1e-9) * 1e9) as Time + 1
    }
}

/// Names a flow while it lives.
pub(super) type FlowId = u32;

/// Links that share flows with each other.
pub(super) struct Fluid<T> {
    ports: Vec<Port>,
    flows: Vec<Option<Flow<T>>>,
    unused: Vec<FlowId>,
    // Ports whose shares are to be found anew.
    due: VecDeque<PortId>,
    // When flows are to be looked at. What a flow does not count as its own time is of an earlier one, or out of date.
    ends: BinaryHeap<Reverse<(Time, FlowId)>>,
}

impl<T> Fluid<T> {
    pub(super) const fn new() -> Self {
        Self {
            ports: Vec::new(),
            flows: Vec::new(),
            unused: Vec::new(),
            due: VecDeque::new(),
            ends: BinaryHeap::new(),
        }
    }

    /// A port of so many bytes a second.
    pub(super) fn port(&mut self, rate: f64) -> PortId {
        self.ports.push(Port { rate, share: rate, flows: Vec::new(), is_due: false });
        self.ports.len() - 1
    }

    /// Whether flows have begun or ended since links were shared.
    pub(super) fn is_dirty(&self) -> bool {
        !self.due.is_empty()
    }

    /// How many flows go through a port, and what part of its rate they have together.
    pub(super) fn load(&self, port: PortId) -> (usize, f64) {
        let Port { rate, flows, .. } = &self.ports[port];
        let sum: f64 = flows.iter().filter_map(|id| self.flow(*id)).map(|flow| flow.rate).sum();
        (flows.len(), sum / rate)
    }

    fn flow(&self, id: FlowId) -> Option<&Flow<T>> {
        self.flows.get(id as usize)?.as_ref()
    }

    fn look_at(&mut self, port: PortId) {
        if !std::mem::replace(&mut self.ports[port].is_due, true) {
            self.due.push_back(port);
        }
    }

    /// Begins to send so many bytes through these ports.
    pub(super) fn begin(&mut self, now: Time, bytes: f64, ports: &[PortId], what: T) -> FlowId {
        let id = self.unused.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() as FlowId - 1
        });
        let (mut through, mut places) = ([0; MAX_PORTS], [0; MAX_PORTS]);
        through[..ports.len()].copy_from_slice(ports);
        for (place, port) in places.iter_mut().zip(ports) {
            *place = self.ports[*port].flows.len();
            self.ports[*port].flows.push(id);
            self.look_at(*port);
        }
        let count = ports.len();
        let due = Time::MAX;
        self.flows[id as usize] =
            Some(Flow { ports: through, places, count, at: now, left: bytes, rate: 0.0, due, what });
        id
    }

    fn take(&mut self, id: FlowId) -> Option<Flow<T>> {
        let flow = self.flows.get_mut(id as usize)?.take()?;
        for (port, place) in flow.ports().iter().zip(flow.places) {
            self.ports[*port].flows.swap_remove(place);
            if let Some(moved) = self.ports[*port].flows.get(place)
                && let Some(moved) = &mut self.flows[*moved as usize]
            {
                for (other, at) in moved.ports[..moved.count].iter().zip(&mut moved.places) {
                    if other == port {
                        *at = place;
                    }
                }
            }
            self.look_at(*port);
        }
        self.unused.push(id);
        Some(flow)
    }

    /// Ends a flow early; says how many bytes of it were not sent.
    pub(super) fn end(&mut self, now: Time, id: FlowId) -> f64 {
        self.take(id).map_or(0.0, |flow| flow.left(now).max(0.0))
    }

    /// The flows that are done.
    pub(super) fn done(&mut self, now: Time) -> Vec<T> {
        let mut done = Vec::new();
        while let Some(Reverse((at, id))) = self.ends.peek().copied()
            && at <= now
        {
            self.ends.pop();
            if self.flow(id).is_some_and(|flow| flow.due == at) {
                self.settle(now, id, &mut done);
            }
        }
        done.sort_unstable();
        done.into_iter().filter_map(|id| self.take(id)).map(|flow| flow.what).collect()
    }

    /// Looks at a flow whose time has come: it is done, or it is looked at again.
    fn settle(&mut self, now: Time, id: FlowId, done: &mut Vec<FlowId>) {
        let Some(flow) = &mut self.flows[id as usize] else { return };
        if flow.left(now) <= NOTHING {
            done.push(id);
        } else {
            flow.due = flow.end(now);
            self.ends.push(Reverse((flow.due, id)));
        }
    }

    /// Shares the links anew; says when the next flow is done.
    pub(super) fn share(&mut self, now: Time) -> Option<Time> {
        let mut limits = Vec::new();
        while let Some(port) = self.due.pop_front() {
            self.ports[port].is_due = false;
            self.share_port(now, port, &mut limits);
        }
        loop {
            let Reverse((at, id)) = *self.ends.peek()?;
            match self.flow(id).map(|flow| (flow.due, flow.end(now))) {
                // It has been slowed down since.
                Some((due, end)) if due == at && end > at => {
                    self.ends.pop();
                    if let Some(flow) = &mut self.flows[id as usize] {
                        flow.due = end;
                    }
                    self.ends.push(Reverse((end, id)));
                }
                Some((due, _)) if due == at => return Some(at),
                _ => {
                    self.ends.pop();
                }
            }
        }
    }

    /// The least share of some ports but for two, which may be the same.
    fn limit(&self, ports: &[PortId], but: PortId, and: PortId) -> f64 {
        let others = ports.iter().filter(|other| **other != but && **other != and);
        others.map(|other| self.ports[*other].share).fold(f64::INFINITY, f64::min)
    }

    /// Finds a port's share: those that others limit have what is theirs, and the rest is even.
    fn share_port(&mut self, now: Time, port: PortId, limits: &mut Vec<f64>) {
        let Port { rate, share: before, .. } = self.ports[port];
        let flows = std::mem::take(&mut self.ports[port].flows);
        limits.clear();
        limits.extend(flows.iter().filter_map(|id| Some(self.limit(self.flow(*id)?.ports(), port, port))));
        limits.sort_unstable_by(f64::total_cmp);
        let (mut left, mut open) = (rate, limits.len());
        for limit in limits.iter() {
            if limit * open as f64 >= left {
                break;
            }
            left -= limit;
            open -= 1;
        }
        let share = match open {
            // So far one alone could rise.
            0 => left + limits.last().copied().unwrap_or(0.0),
            _ => left / open as f64,
        };
        let has_changed = (share - before).abs() > EXACT * before;
        if has_changed {
            self.ports[port].share = share;
        }
        for id in &flows {
            self.run(now, *id);
            let Some((ports, count)) = self.flow(*id).map(|flow| (flow.ports, flow.count)) else { continue };
            for other in ports[..count].iter().filter(|other| has_changed && **other != port) {
                // What it leaves the other port has not changed where that one limits it before and after.
                let limit = self.limit(&ports[..count], port, *other).min(self.ports[*other].share);
                if limit.min(before) != limit.min(share) {
                    self.look_at(*other);
                }
            }
        }
        self.ports[port].flows = flows;
    }

    /// A flow goes on at the rate that its ports give it now.
    fn run(&mut self, now: Time, id: FlowId) {
        let Some(flow) = self.flow(id) else { return };
        let rate = flow.ports().iter().map(|port| self.ports[*port].share).fold(f64::INFINITY, f64::min);
        let Some(flow) = self.flows[id as usize].as_mut().filter(|flow| flow.rate != rate) else { return };
        (flow.left, flow.at, flow.rate) = (flow.left(now), now, rate);
        let end = flow.end(now);
        // One that is slowed down is found to be when its time comes.
        if end < flow.due {
            flow.due = end;
            self.ends.push(Reverse((end, id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;

    const MANY: usize = 400;

    /// Whether each flow has a port that is full and on which none has more, and no port more than it can carry.
    fn assert_fair(fluid: &Fluid<usize>) {
        const NEARLY: f64 = 1.0 + 4.0 * EXACT;
        let rate = |id: &FlowId| fluid.flow(*id).unwrap().rate;
        let sum = |port: &PortId| fluid.ports[*port].flows.iter().map(rate).sum::<f64>();
        for (number, port) in fluid.ports.iter().enumerate() {
            assert!(
                sum(&number) <= port.rate * NEARLY,
                "port {number} carries {} of {}",
                sum(&number),
                port.rate
            );
        }
        for flow in fluid.flows.iter().flatten() {
            let limits = |port: &PortId| {
                let has_more = fluid.ports[*port].flows.iter().any(|other| rate(other) > flow.rate * NEARLY);
                !has_more && sum(port) * NEARLY >= fluid.ports[*port].rate
            };
            assert!(flow.ports().iter().any(limits), "flow {} of {} could have more", flow.what, flow.rate);
        }
    }

    #[test]
    fn links_are_shared_max_min_fair_whatever_begins_and_ends() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let mut fluid = Fluid::new();
            for _ in 0..40 {
                let rate = [1e5, 1e6, 2.5e6, 1e7][random.below(4)];
                fluid.port(rate);
            }
            let (mut now, mut open) = (0, Vec::new());
            for number in 0..MANY {
                let mut ports: Vec<PortId> = (0..40).collect();
                random.shuffle(&mut ports);
                let count = 1 + random.below(MAX_PORTS);
                open.push(fluid.begin(now, 1e6, &ports[..count], number));
                if random.below(3) == 0 {
                    let ended = open.swap_remove(random.below(open.len()));
                    fluid.end(now, ended);
                }
                fluid.share(now);
                assert_fair(&fluid);
                now += 1_000_000;
            }
        }
    }

    #[test]
    fn what_is_sent_is_as_much_as_was_begun_and_comes_when_its_rates_say() {
        let mut fluid = Fluid::new();
        let (up, down) = (fluid.port(1e6), fluid.port(1e6));
        fluid.begin(0, 1e6, &[up, down], "long");
        assert_eq!(fluid.share(0), Some(1_000_000_001));
        // The second takes half of the link for a second, of which the first had been half done.
        fluid.begin(500_000_000, 5e5, &[up], "short");
        let mut ends = Vec::new();
        let mut at = fluid.share(500_000_000);
        while let Some(now) = at {
            ends.extend(fluid.done(now).into_iter().map(|what| (what, now / 1_000_000)));
            at = fluid.share(now);
        }
        assert_eq!(ends, [("long", 1_500), ("short", 1_500)]);
    }
}
