//! Nodes begin, die and come back, with what they had on disk.

use std::time::Duration;

use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Event, Planner, Room, Scope, TICK};
use wherry_proto::Role;

use super::clock::nanos;
use super::message::BlobNo;
use super::node::{Giving, Node, Transfer};
use super::setup::Manner;
use super::world::{Happening, World};

impl World {
    pub(super) fn start(&mut self, node: usize) {
        if self.nodes[node].alive {
            return;
        }
        self.nodes[node].alive = true;
        if self.nodes[node].setup.manner != Manner::Honest {
            return self.liar_starts(node);
        }
        for blob in 0..self.blobs.len() {
            if self.nodes[node].setup.wants && !self.nodes[node].blobs[blob].held {
                self.begin(node, blob);
            }
        }
    }

    /// Starts a transfer.
    pub(super) fn begin(&mut self, node: usize, blob: BlobNo) {
        let run = self.number();
        let now = self.clock.now();
        let (map, digest) = (self.blobs[blob].map(), self.blobs[blob].digest());
        let near = self.nodes[node].neighbours.iter();
        let near = near.filter(|other| self.class(node, **other) == LinkClass::Lan);
        let site: Vec<_> = near.map(|other| self.nodes[*other].id).collect();
        let Node { id, blobs, setup, .. } = &mut self.nodes[node];
        let carried = &mut blobs[blob];
        // Milliseconds, as the driver takes them.
        let first_attempt = (now / 1_000_000 + 1).max(carried.last_attempt + 100);
        carried.last_attempt = first_attempt;
        carried.failed = false;
        let mut planner = Planner::new(*id, digest, map, &carried.links, first_attempt);
        planner.set_site(&site);
        let linked = planner.ledger().linked().clone();
        carried.transfer = Some(Transfer {
            run,
            planner,
            linked,
            role: Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false },
            arriving: Default::default(),
            asked: Default::default(),
            following: Default::default(),
            fetching: Default::default(),
            pulling: Default::default(),
            busy: Default::default(),
            awaited: None,
            asking: None,
            to_lead: None,
            reading: 0,
            origin: None,
            reads_at: None,
            pushed: now,
            push_due: None,
            claim: None,
        });
        let origin = setup.origin;
        self.clock.after(nanos(TICK), Happening::Tick { node, blob, run });
        if origin {
            self.apply(node, blob, Event::OriginOffered);
        }
        self.tell_reader(node, blob);
        self.search(node, blob, Scope::Site);
    }

    /// A node dies: what it sends and takes breaks off.
    pub(super) fn kill(&mut self, node: usize, back: Option<Duration>) {
        if !self.nodes[node].alive {
            return;
        }
        if self.trace {
            eprintln!("{:.3} {node} dies", self.clock.now() as f64 / 1e9);
        }
        self.report.deaths += 1;
        for blob in 0..self.blobs.len() {
            self.stop_origin(node, blob);
            let carried = &mut self.nodes[node].blobs[blob];
            if let Some(transfer) = carried.transfer.take() {
                carried.links = transfer.planner.ledger().links().collect();
            }
        }
        self.drop_all_flows(node);
        let life = self.nodes[node].life;
        let dead = &mut self.nodes[node];
        dead.alive = false;
        dead.life += 1;
        dead.giving = Giving::default();
        dead.room = Room::default();
        dead.said.clear();
        let notice = nanos(self.setup.notice);
        for other in 0..self.nodes.len() {
            if other != node && self.nodes[other].alive {
                self.clock.after(notice, Happening::Lost { node: other, peer: node, life });
            }
        }
        match back {
            Some(away) => self.clock.after(nanos(away), Happening::Start(node)),
            None => {
                let setup = &self.nodes[node].setup;
                if setup.wants && setup.manner == Manner::Honest {
                    let unfinished = self.nodes[node]
                        .blobs
                        .iter()
                        .filter(|carried| carried.done.is_none() && !carried.held);
                    self.open -= unfinished.count();
                }
            }
        }
    }

    pub(super) fn churn(&mut self, number: u32) {
        let Some(churn) = self.setup.churn else { return };
        let is_alive = |node: &Node| node.alive && node.setup.manner == Manner::Honest && node.setup.wants;
        let leads = |node: &Node| {
            node.blobs.iter().any(|carried| carried.transfer.as_ref().is_some_and(|t| t.planner.leads()))
        };
        let aimed = churn.leaders > 0 && number.is_multiple_of(churn.leaders);
        let of = |wanted: &dyn Fn(&Node) -> bool| -> Vec<usize> {
            (0..self.nodes.len())
                .filter(|node| is_alive(&self.nodes[*node]) && wanted(&self.nodes[*node]))
                .collect()
        };
        let mut victims = if aimed { of(&leads) } else { Vec::new() };
        if victims.is_empty() {
            victims = of(&|_| true);
        }
        if !victims.is_empty() {
            let victim = victims[self.random.below(victims.len())];
            self.kill(victim, Some(churn.away));
        }
        if number < churn.most {
            self.clock.after(nanos(churn.period), Happening::Churn(number + 1));
        }
    }
}
