//! What a transfer does now, for people: read off the planner, which it does not change.

use serde::{Deserialize, Serialize};
use wherry_proto::{ChunkIndex, NodeId, Role};

use super::lead::Request;
use super::{Planner, Source};
use crate::swarm::LinkClass;

/// What a planner does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Who leads.
    pub lead: Leads,
    /// The peers that are of use, those that have most first.
    pub peers: Vec<PeerNow>,
    /// Whether anything that is missing can be had of a peer now.
    pub any_to_take: bool,
    /// How many chunks are asked of peers.
    pub asked: usize,
    /// Peers that are not asked any more, and why.
    pub failed: Vec<(NodeId, String)>,
    /// Why no origin can be read, if it was tried in vain.
    pub origin_failed: Option<String>,
}

/// Who takes a blob from where bytes are dear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", content = "node", rename_all = "kebab-case")]
pub enum Leads {
    /// Nobody has to: a node of the site holds it.
    Needless,
    /// This node.
    Here,
    /// Another one of the site.
    Peer(NodeId),
    /// Another one of the site, which was asked to and said that it would.
    Promised(NodeId),
    /// Nobody yet: the site is asked who has it.
    Searching,
    /// Nobody yet: members are asked whether they can reach an origin, which this node cannot.
    Asking,
    /// Nobody: neither this node nor a member that was asked can reach an origin.
    Denied,
    /// Nobody, for a limit says no.
    Limited,
    /// Nobody yet: it is about to be settled.
    Settling,
}

/// One peer in a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNow {
    /// The node.
    pub node: NodeId,
    /// Whether it is at another site.
    pub far: bool,
    /// Whether it holds all of the blob.
    pub holds: bool,
    /// Whether it leads.
    pub leads: bool,
    /// Bytes of the blob that it has.
    pub has: u64,
    /// How many chunks are asked of it.
    pub asked: usize,
    /// Whether it has no slot free for this node.
    pub busy: bool,
}

impl Planner {
    /// What it does now.
    pub fn summary(&self) -> Summary {
        let missing: Vec<ChunkIndex> =
            self.ledger.map().iter().filter(|index| !self.ledger.linked().contains(*index)).collect();
        let mut peers: Vec<PeerNow> = self
            .peers
            .iter()
            .map(|(node, peer)| PeerNow {
                node: *node,
                far: peer.class == LinkClass::Wan,
                holds: peer.is_claimed(),
                leads: matches!(peer.role, Some(Role::Leading { .. })),
                has: if peer.is_claimed() { self.ledger.map().size() } else { peer.here.bytes() },
                asked: peer.asked,
                busy: peer.busy,
            })
            .filter(|peer| peer.has > 0 || peer.leads)
            .collect();
        peers.sort_by_key(|peer| (std::cmp::Reverse(peer.has), peer.node));
        let of_peers = |asked: &&super::Asked| matches!(asked.source, Source::Peer(_));
        Summary {
            lead: self.leads_now(),
            any_to_take: self.peers.values().any(|peer| missing.iter().any(|index| peer.has(*index))),
            peers,
            asked: self.asked.values().filter(of_peers).count(),
            failed: self.dropped.iter().map(|(node, dropped)| (*node, dropped.why.clone())).collect(),
            origin_failed: self.origin.error.clone(),
        }
    }

    fn leads_now(&self) -> Leads {
        if self.peers.values().any(|peer| peer.class == LinkClass::Lan && peer.is_claimed()) {
            return Leads::Needless;
        }
        if self.leads() {
            return Leads::Here;
        }
        if let Some(leader) = self.leader().filter(|leader| leader.begun) {
            return Leads::Peer(leader.attempt.signer);
        }
        if self.limited {
            return Leads::Limited;
        }
        match self.lead.request {
            _ if !self.searched_site => Leads::Searching,
            Request::Promised { by, .. } => Leads::Promised(by),
            Request::Asked => Leads::Asking,
            Request::Denied if !self.may_lead() => Leads::Denied,
            _ => Leads::Settling,
        }
    }
}
