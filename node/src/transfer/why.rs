//! Why a transfer is as fast as it is: facts, for whoever puts them into words.

use serde::{Deserialize, Serialize};
use wherry_proto::NodeId;

use super::planner::Summary;
pub use super::planner::{Leads, PeerNow};
use crate::limits::{HeldTo, Limited};

/// For so many seconds nothing may come before a transfer is said to stand still: a chunk may take as long to cross a
/// thin link.
pub const STILL: f64 = 5.0;

/// What a transfer does now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// What it waits for.
    pub waits_for: WaitsFor,
    /// Who takes the blob from where bytes are dear, for all of the site.
    pub lead: Leads,
    /// The origin that is read now, or would be; empty if none is known.
    pub origin: String,
    /// Bytes a second that come from the origin; none while it stands still or waits for a limit, like all rates here.
    pub origin_rate: u64,
    /// Why no origin can be read.
    pub origin_failed: Option<String>,
    /// The peers that are of use, with their rates, those that have most first.
    pub peers: Vec<PeerRate>,
    /// Peers that are not asked any more.
    pub failed: Vec<FailedPeer>,
    /// Bytes a second in all.
    pub rate: u64,
    /// For how many seconds nothing has come.
    pub still: f64,
    /// When all will be here, in seconds, at this rate; unknown if it stands still.
    pub seconds_left: Option<f64>,
}

/// A peer, and how fast bytes come from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRate {
    /// The peer.
    #[serde(flatten)]
    pub peer: PeerNow,
    /// Bytes a second.
    pub rate: u64,
}

/// A peer that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedPeer {
    /// The peer.
    pub node: NodeId,
    /// Why.
    pub why: String,
}

/// What a transfer waits for: that which would have to be faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", content = "which", rename_all = "kebab-case")]
pub enum WaitsFor {
    /// Its turn: as many run as may at a time.
    Turn,
    /// That a limit ends.
    Limit(Limited),
    /// That it is known who leads.
    Lead,
    /// The rate that is set for what comes into the site: its links could do more.
    Rate(HeldTo),
    /// This node's link to the origin.
    Origin,
    /// The link of the node that leads.
    Leader(NodeId),
    /// A free slot: all peers that have what is missing send to others now.
    Slot,
    /// The links of the peers that it is taken from.
    Peers,
}

/// What there is to say of a transfer, from what its planner does and how fast bytes have come.
pub(super) struct Facts<'a> {
    pub(super) summary: Summary,
    pub(super) limited: Option<Limited>,
    pub(super) held_to: Option<HeldTo>,
    pub(super) origin: String,
    pub(super) origin_rate: u64,
    pub(super) rate_of: &'a dyn Fn(&NodeId) -> u64,
    pub(super) still: f64,
    pub(super) missing: u64,
}

impl Why {
    /// Of a transfer that has not begun to run.
    pub(super) fn in_line() -> Self {
        Self {
            waits_for: WaitsFor::Turn,
            lead: Leads::Settling,
            origin: String::new(),
            origin_rate: 0,
            origin_failed: None,
            peers: Vec::new(),
            failed: Vec::new(),
            rate: 0,
            still: 0.0,
            seconds_left: None,
        }
    }

    pub(super) fn of(facts: Facts<'_>) -> Self {
        let Facts { summary, limited, held_to, origin, origin_rate, rate_of, still, missing } = facts;
        let waits_for = waits_for(&summary, limited, held_to);
        // Rates are those of some seconds: of what has stopped they would tell less and less until nothing is left.
        let moves = still < STILL && !matches!(waits_for, WaitsFor::Limit(_));
        let now = |rate: u64| if moves { rate } else { 0 };
        let origin_rate = now(origin_rate);
        let rated = |peer: PeerNow| PeerRate { rate: now(rate_of(&peer.node)), peer };
        let peers: Vec<PeerRate> = summary.peers.into_iter().map(rated).collect();
        let rate = origin_rate + peers.iter().map(|peer| peer.rate).sum::<u64>();
        Self {
            waits_for,
            lead: summary.lead,
            origin,
            origin_rate,
            origin_failed: summary.origin_failed,
            peers,
            failed: summary.failed.into_iter().map(|(node, why)| FailedPeer { node, why }).collect(),
            rate,
            still,
            seconds_left: (rate > 0).then(|| missing as f64 / rate as f64),
        }
    }
}

fn waits_for(summary: &Summary, limited: Option<Limited>, held_to: Option<HeldTo>) -> WaitsFor {
    if let Some(limited) = limited {
        return WaitsFor::Limit(limited);
    }
    let mut asked = summary.peers.iter().filter(|peer| peer.asked > 0).peekable();
    let is_from_afar = asked.peek().is_some() && asked.all(|peer| peer.far);
    match (link(summary), held_to) {
        (WaitsFor::Origin, Some(held_to)) => WaitsFor::Rate(held_to),
        (WaitsFor::Peers, Some(held_to)) if is_from_afar => WaitsFor::Rate(held_to),
        (link, _) => link,
    }
}

/// Whose link would have to be faster.
fn link(summary: &Summary) -> WaitsFor {
    if summary.any_to_take || summary.asked > 0 {
        let able = summary.peers.iter().any(|peer| !peer.busy);
        // What it leads for comes from elsewhere than its site.
        return match summary.lead {
            Leads::Here if !summary.peers.iter().any(|peer| peer.holds) => WaitsFor::Origin,
            _ if able || summary.asked > 0 => WaitsFor::Peers,
            _ => WaitsFor::Slot,
        };
    }
    match summary.lead {
        Leads::Here => WaitsFor::Origin,
        Leads::Peer(node) | Leads::Promised(node) => WaitsFor::Leader(node),
        Leads::Needless => WaitsFor::Peers,
        _ => WaitsFor::Lead,
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;
    use crate::limits::Limit;

    fn node() -> NodeId {
        SecretKey::from_seed([2; 32]).node()
    }

    fn peer(has: u64, busy: bool) -> PeerNow {
        PeerNow { node: node(), far: false, holds: false, leads: false, has, asked: 0, busy }
    }

    fn summary(lead: Leads, peers: &[PeerNow], any_to_take: bool, asked: usize) -> Summary {
        Summary { lead, peers: peers.to_vec(), any_to_take, asked, failed: Vec::new(), origin_failed: None }
    }

    #[test]
    fn what_would_have_to_be_faster_is_told_apart() {
        use Leads::{Denied, Here, Needless, Peer, Searching};
        for (summary, expected) in [
            (summary(Searching, &[], false, 0), WaitsFor::Lead),
            (summary(Denied, &[], false, 0), WaitsFor::Lead),
            (summary(Here, &[], false, 0), WaitsFor::Origin),
            (summary(Here, &[peer(5, false)], true, 1), WaitsFor::Origin),
            (summary(Peer(node()), &[peer(5, false)], false, 0), WaitsFor::Leader(node())),
            (summary(Peer(node()), &[peer(5, false)], true, 1), WaitsFor::Peers),
            (summary(Peer(node()), &[peer(5, true)], true, 0), WaitsFor::Slot),
            (summary(Needless, &[PeerNow { holds: true, ..peer(9, false) }], true, 2), WaitsFor::Peers),
        ] {
            assert_eq!(waits_for(&summary, None, None), expected, "{summary:?}");
        }
    }

    #[test]
    fn a_rate_is_named_where_it_holds_up_what_comes_from_outside_the_site() {
        use Leads::{Here, Needless, Peer};
        let held_to = HeldTo { rate: 500_000, nodes: 2 };
        let far = |asked| PeerNow { far: true, holds: true, asked, ..peer(9, false) };
        let near = PeerNow { holds: true, asked: 1, ..peer(9, false) };
        for (summary, expected) in [
            (summary(Here, &[], false, 0), WaitsFor::Rate(held_to)),
            (summary(Here, &[far(2)], true, 2), WaitsFor::Rate(held_to)),
            (summary(Needless, &[near], true, 1), WaitsFor::Peers),
            (summary(Here, &[near, far(1)], true, 2), WaitsFor::Peers),
            (summary(Peer(node()), &[], false, 0), WaitsFor::Leader(node())),
        ] {
            assert_eq!(waits_for(&summary, None, Some(held_to)), expected, "{summary:?}");
        }
    }

    #[test]
    fn a_rate_and_when_it_will_be_done_are_told_while_bytes_come_and_may() {
        let limited = Limited { by: Limit::Window, since: 0, until: Some(60) };
        let why = |still, limited| {
            Why::of(Facts {
                summary: summary(Leads::Here, &[peer(5, false)], true, 1),
                limited,
                held_to: None,
                origin: "r.example/a".to_owned(),
                origin_rate: 300,
                rate_of: &|_| 200,
                still,
                missing: 1000,
            })
        };
        let told = |why: Why| (why.rate, why.origin_rate, why.peers[0].rate, why.seconds_left);
        assert_eq!(told(why(1.0, None)), (500, 300, 200, Some(2.0)));
        // What came before it stopped is no rate.
        assert_eq!(told(why(STILL, None)), (0, 0, 0, None));
        assert_eq!(told(why(1.0, Some(limited))), (0, 0, 0, None));
        assert_eq!(why(1.0, Some(limited)).waits_for, WaitsFor::Limit(limited));
        assert_eq!(Why::in_line().waits_for, WaitsFor::Turn);
    }
}
