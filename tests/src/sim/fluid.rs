//! How flows share links: max-min fair, at once (Bertsekas and Gallager, "Data Networks", 6.5.2).

use super::clock::Time;

/// A link's end: a node's port in one direction, or a site's uplink.
pub(super) type PortId = usize;

/// Through how many ports a flow goes at most: out of a node, out of its site, into another, into a node.
const MAX_PORTS: usize = 4;

/// What is left of a flow when it counts as done, in bytes.
const NOTHING: f64 = 1e-3;

struct Port {
    // In bytes a second.
    rate: f64,
    left: f64,
    flows: Vec<u32>,
    open: u32,
}

struct Flow<T> {
    ports: [PortId; MAX_PORTS],
    count: usize,
    left: f64,
    rate: f64,
    what: T,
    // Where it stands in the list of those that live.
    place: usize,
}

/// Names a flow while it lives.
pub(super) type FlowId = u32;

/// Links that share flows with each other.
pub(super) struct Fluid<T> {
    ports: Vec<Port>,
    flows: Vec<Option<Flow<T>>>,
    unused: Vec<u32>,
    live: Vec<u32>,
    at: Time,
    dirty: bool,
}

impl<T> Fluid<T> {
    pub(super) const fn new() -> Self {
        Self {
            ports: Vec::new(),
            flows: Vec::new(),
            unused: Vec::new(),
            live: Vec::new(),
            at: 0,
            dirty: false,
        }
    }

    /// A port of so many bytes a second.
    pub(super) fn port(&mut self, rate: f64) -> PortId {
        self.ports.push(Port { rate, left: 0.0, flows: Vec::new(), open: 0 });
        self.ports.len() - 1
    }

    pub(super) const fn is_dirty(&self) -> bool {
        self.dirty
    }

    fn advance(&mut self, now: Time) {
        let seconds = (now - self.at) as f64 / 1e9;
        self.at = now;
        if seconds > 0.0 {
            for id in &self.live {
                if let Some(flow) = &mut self.flows[*id as usize] {
                    flow.left -= flow.rate * seconds;
                }
            }
        }
    }

    /// Begins to send so many bytes through these ports.
    pub(super) fn begin(&mut self, now: Time, bytes: f64, ports: &[PortId], what: T) -> FlowId {
        self.advance(now);
        let mut through = [0; MAX_PORTS];
        through[..ports.len()].copy_from_slice(ports);
        let place = self.live.len();
        let flow = Flow { ports: through, count: ports.len(), left: bytes, rate: 0.0, what, place };
        let id = self.unused.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() as u32 - 1
        });
        self.flows[id as usize] = Some(flow);
        self.live.push(id);
        self.dirty = true;
        id
    }

    fn take(&mut self, id: FlowId) -> Option<Flow<T>> {
        let flow = self.flows.get_mut(id as usize)?.take()?;
        self.live.swap_remove(flow.place);
        if let Some(moved) = self.live.get(flow.place)
            && let Some(moved) = &mut self.flows[*moved as usize]
        {
            moved.place = flow.place;
        }
        self.unused.push(id);
        self.dirty = true;
        Some(flow)
    }

    /// Ends a flow early; says how many bytes of it were not sent.
    pub(super) fn end(&mut self, now: Time, id: FlowId) -> f64 {
        self.advance(now);
        self.take(id).map_or(0.0, |flow| flow.left.max(0.0))
    }

    /// The flows that are done.
    pub(super) fn done(&mut self, now: Time) -> Vec<T> {
        self.advance(now);
        let is_done = |id: &u32| self.flows[*id as usize].as_ref().is_some_and(|flow| flow.left <= NOTHING);
        let mut done: Vec<u32> = self.live.iter().copied().filter(is_done).collect();
        done.sort_unstable();
        done.into_iter().filter_map(|id| self.take(id)).map(|flow| flow.what).collect()
    }

    /// Shares the links anew; says when the next flow is done.
    pub(super) fn share(&mut self, now: Time) -> Option<Time> {
        self.advance(now);
        self.dirty = false;
        let mut used: Vec<PortId> = Vec::new();
        for id in &self.live {
            let Some(flow) = &mut self.flows[*id as usize] else { continue };
            flow.rate = -1.0;
            for port_id in &flow.ports[..flow.count] {
                let port = &mut self.ports[*port_id];
                if port.open == 0 {
                    port.left = port.rate;
                    port.flows.clear();
                    used.push(*port_id);
                }
                port.open += 1;
                port.flows.push(*id);
            }
        }
        while !used.is_empty() {
            let share_of = |port: &Port| port.left.max(0.0) / f64::from(port.open);
            let least = used.iter().map(|id| share_of(&self.ports[*id])).fold(f64::INFINITY, f64::min);
            for id in used.clone() {
                let port = &self.ports[id];
                if port.open == 0 || share_of(port) > least * (1.0 + 1e-9) {
                    continue;
                }
                let flows = std::mem::take(&mut self.ports[id].flows);
                for id in &flows {
                    let Some(flow) = &mut self.flows[*id as usize] else { continue };
                    if flow.rate >= 0.0 {
                        continue;
                    }
                    flow.rate = least;
                    for port in &flow.ports[..flow.count] {
                        self.ports[*port].left -= least;
                        self.ports[*port].open -= 1;
                    }
                }
                self.ports[id].flows = flows;
            }
            used.retain(|id| self.ports[*id].open > 0);
        }
        let flows = self.live.iter().filter_map(|id| self.flows[*id as usize].as_ref());
        let soonest =
            flows.map(|flow| flow.left.max(0.0) / flow.rate.max(1e-9)).fold(f64::INFINITY, f64::min);
        // Rounded up: at that time it is done.
        soonest.is_finite().then(|| now + (soonest * 1e9) as Time + 1)
    }
}
