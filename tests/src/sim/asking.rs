//! What a node asks of others before it takes anything: who has a blob, who leads, and whether one would lead for it.

use std::collections::BTreeSet;
use std::time::Duration;

use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Event, Scope};
use wherry_proto::{NodeId, rank};

use super::clock::nanos;
use super::message::{BlobNo, Holding, Led, Message};
use super::world::{Happening, World};

/// How long neighbours may take to say whether they have a blob.
const SITE_PATIENCE: Duration = Duration::from_millis(750);

/// How long they may take to say what they do.
const ROLE_PATIENCE: Duration = Duration::from_millis(1_500);

/// How long the search in the rest of the network takes.
const NETWORK_SEARCH: Duration = Duration::from_millis(400);

/// How many holders elsewhere are found.
const MAX_FAR: usize = 8;

/// How many members are asked to lead.
const MAX_ASKED_TO_LEAD: usize = 16;

impl World {
    pub(super) fn search(&mut self, node: usize, blob: BlobNo, scope: Scope) {
        match scope {
            Scope::Site => self.search_site(node, blob),
            Scope::OtherSites => self.search_other_sites(node, blob),
            Scope::Network => self.search_network(node, blob),
        }
    }

    fn search_site(&mut self, node: usize, blob: BlobNo) {
        let alive: Vec<usize> =
            self.nodes[node].neighbours.iter().copied().filter(|other| self.nodes[*other].alive).collect();
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let run = transfer.run;
        transfer.awaited = Some(alive.iter().copied().collect());
        for other in &alive {
            self.send(node, *other, Message::Want(blob));
        }
        self.clock.after(nanos(SITE_PATIENCE), Happening::SitePatience { node, blob, run });
        if alive.is_empty() {
            self.clock.after(0, Happening::SitePatience { node, blob, run });
        }
    }

    pub(super) fn found(&mut self, node: usize, from: usize, blob: BlobNo, holding: Holding) {
        let (class, id) = (self.class(node, from), self.nodes[from].id);
        match holding {
            Holding::Held => self.apply(node, blob, Event::Offered(id, class)),
            Holding::Arriving(role) => self.apply(node, blob, Event::Met(id, class, Some(role))),
            Holding::No => {}
        }
        if let Some(transfer) = self.nodes[node].transfer(blob)
            && let Some(awaited) = &mut transfer.awaited
        {
            awaited.remove(&from);
            if awaited.is_empty() {
                self.site_asked(node, blob);
            }
        }
        if let Some(transfer) = self.nodes[node].transfer(blob)
            && let Some((number, asked)) = &mut transfer.asking
            && asked.remove(&from)
            && asked.is_empty()
        {
            let number = *number;
            self.roles_asked(node, blob, number);
        }
    }

    /// A planner meets a node that it has heard of, if that is a neighbour, when it has done what it is about to do.
    pub(super) fn introduce(&mut self, node: usize, blob: BlobNo, peer: NodeId) {
        let Some(&number) = self.ids.get(&peer) else { return };
        if self.nodes[number].alive && self.nodes[node].neighbours.contains(&number) {
            self.clock.after(0, Happening::Met { node, blob, peer: number });
        }
    }

    pub(super) fn ask_roles(&mut self, node: usize, blob: BlobNo, but: &BTreeSet<NodeId>) {
        let is_asked = |other: &usize| self.nodes[*other].alive && !but.contains(&self.nodes[*other].id);
        let asked: BTreeSet<usize> = self.nodes[node].neighbours.iter().copied().filter(is_asked).collect();
        let number = self.number();
        let patience = if asked.is_empty() { 0 } else { nanos(ROLE_PATIENCE) };
        for other in &asked {
            self.send(node, *other, Message::Want(blob));
        }
        if let Some(transfer) = self.nodes[node].transfer(blob) {
            transfer.asking = Some((number, asked));
        }
        self.clock.after(patience, Happening::RolePatience { node, blob, asking: number });
    }

    pub(super) fn roles_asked(&mut self, node: usize, blob: BlobNo, number: u64) {
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        if transfer.asking.take_if(|(asking, _)| *asking == number).is_some() {
            self.apply(node, blob, Event::RolesAsked);
        }
    }

    pub(super) fn site_asked(&mut self, node: usize, blob: BlobNo) {
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        if transfer.awaited.take().is_some() {
            self.apply(node, blob, Event::Searched(Scope::Site));
        }
    }

    /// Nodes have no neighbours at other sites before the network names some.
    fn search_other_sites(&mut self, node: usize, blob: BlobNo) {
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let run = transfer.run;
        self.clock.after(0, Happening::OtherSitesAsked { node, blob, run });
    }

    fn search_network(&mut self, node: usize, blob: BlobNo) {
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let run = transfer.run;
        self.clock.after(nanos(NETWORK_SEARCH), Happening::NetworkAsked { node, blob, run });
    }

    pub(super) fn network_asked(&mut self, node: usize, blob: BlobNo) {
        if self.setup.wide {
            let site = self.nodes[node].setup.site;
            let mut far: Vec<usize> = (0..self.nodes.len())
                .filter(|other| self.nodes[*other].setup.site != site && self.nodes[*other].alive)
                .filter(|other| self.nodes[*other].blobs[blob].held)
                .collect();
            self.random.shuffle(&mut far);
            for other in far.into_iter().take(MAX_FAR) {
                let id = self.nodes[other].id;
                self.apply(node, blob, Event::Offered(id, LinkClass::Wan));
            }
        }
        self.apply(node, blob, Event::Searched(Scope::Network));
    }

    pub(super) fn ask_lead(&mut self, node: usize, blob: BlobNo, but: &BTreeSet<NodeId>) {
        let digest = self.blobs[blob].digest();
        let mut members: Vec<usize> =
            self.nodes[node].neighbours.iter().copied().filter(|other| self.nodes[*other].alive).collect();
        members.retain(|member| !but.contains(&self.nodes[*member].id));
        members.sort_by_key(|member| std::cmp::Reverse(rank(&digest, &self.nodes[*member].id)));
        members.truncate(MAX_ASKED_TO_LEAD);
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        transfer.to_lead = Some(members.into());
        self.ask_next_to_lead(node, blob);
    }

    pub(super) fn ask_next_to_lead(&mut self, node: usize, blob: BlobNo) {
        let next =
            self.nodes[node].transfer(blob).and_then(|transfer| transfer.to_lead.as_ref()?.front().copied());
        match next {
            Some(member) => self.send_or_lose(node, member, Message::Lead(blob)),
            None => {
                if let Some(transfer) = self.nodes[node].transfer(blob)
                    && transfer.to_lead.take().is_some()
                {
                    self.apply(node, blob, Event::NobodyLeads);
                }
            }
        }
    }

    pub(super) fn led(&mut self, node: usize, member: usize, blob: BlobNo, led: Led) {
        let id = self.nodes[member].id;
        let Some(transfer) = self.nodes[node].transfer(blob) else { return };
        let Some(members) = &mut transfer.to_lead else { return };
        if members.front() != Some(&member) {
            return;
        }
        members.pop_front();
        if led == Led::Refuse {
            return self.ask_next_to_lead(node, blob);
        }
        transfer.to_lead = None;
        let event = match led {
            Led::Have => Event::Offered(id, LinkClass::Lan),
            _ => Event::Promised(id),
        };
        self.apply(node, blob, event);
    }
}
