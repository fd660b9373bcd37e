//! Whom a node of a large site connects to.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod planner_support;

use std::collections::BTreeSet;

use planner_support::site::{FOLLOWING, Site, leads, may_lead, ticks};
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Effect, Event, MAX_PEERS, Planner, STALL, Scope};
use wherry_proto::{NodeId, Role, lot, rank};

const ME: usize = 40;

/// One of a site of 64, and the others, who are known to be there, as lot has them for it.
fn one_of_many() -> (Planner, Vec<NodeId>) {
    let site = Site::new(64);
    let me = site.nodes[ME];
    let mut others: Vec<NodeId> = site.nodes.iter().copied().filter(|node| *node != me).collect();
    let mut planner = site.planner_of(ME);
    planner.set_site(&others);
    others.sort_by_key(|node| lot(&me, node));
    (planner, others)
}

/// Those of the least lot, who are of no high rank either.
fn strangers(others: &[NodeId]) -> Vec<NodeId> {
    let digest = Site::new(0).digest;
    let mut ranks: Vec<u64> = others.iter().map(|node| rank(&digest, node)).collect();
    ranks.sort_unstable();
    let high = ranks[ranks.len() - 4];
    others.iter().copied().filter(|node| rank(&digest, node) < high).take(5).collect()
}

fn followed(effects: &[Effect]) -> BTreeSet<NodeId> {
    let followed = effects.iter().filter_map(|effect| match effect {
        Effect::Follow(node) => Some(*node),
        _ => None,
    });
    followed.collect()
}

#[test]
fn where_all_of_a_large_site_come_together_a_node_connects_to_as_many_as_it_has_places_for_in_whatever_order()
{
    for turned in [0, 20, 40] {
        let (mut planner, mut others) = one_of_many();
        others.rotate_left(turned);
        let mut connected = followed(&planner.apply(Event::Searched(Scope::Site)));
        for some in others.chunks(32) {
            for node in some {
                connected.extend(followed(&planner.apply(Event::Met(
                    *node,
                    LinkClass::Lan,
                    Some(FOLLOWING),
                ))));
            }
            connected.extend(followed(&planner.apply(Event::Tick)));
        }
        for _ in 0..6 {
            connected.extend(followed(&planner.apply(Event::Tick)));
        }
        assert_eq!(connected.len(), MAX_PEERS);
    }
}

#[test]
fn where_few_of_a_large_site_come_they_are_followed_a_moment_later_whoever_they_are() {
    let (mut planner, others) = one_of_many();
    let few = strangers(&others);
    for node in &few {
        let effects = planner.apply(Event::Met(*node, LinkClass::Lan, Some(FOLLOWING)));
        assert!(followed(&effects).is_empty());
    }
    planner.apply(Event::Searched(Scope::Site));
    let connected = (0..4).flat_map(|_| followed(&planner.apply(Event::Tick))).collect::<BTreeSet<_>>();
    assert_eq!(connected, few.into_iter().collect());
}

#[test]
fn whoever_leads_or_holds_the_blob_is_followed_at_once_whoever_it_is() {
    let leads = |node| Event::Met(node, LinkClass::Lan, Some(Role::Leading { attempt: 1, known: 3 }));
    let holds = |node| Event::Offered(node, LinkClass::Lan);
    for event in [&leads as &dyn Fn(NodeId) -> Event, &holds] {
        let (mut planner, others) = one_of_many();
        let stranger = strangers(&others)[0];
        assert_eq!(followed(&planner.apply(event(stranger))), BTreeSet::from([stranger]));
    }
}

#[test]
fn one_of_higher_rank_that_is_not_followed_yet_has_its_turn_to_lead() {
    // After how many ticks a node begins to lead that has met one, of higher rank or of lower.
    let waits = |is_higher: bool| {
        let (mut planner, others) = one_of_many();
        let (me, digest) = (Site::new(64).nodes[ME], Site::new(0).digest);
        let fits = |node: &NodeId| (rank(&digest, node) > rank(&digest, &me)) == is_higher;
        let met = strangers(&others).into_iter().find(fits).unwrap();
        planner.apply(Event::Met(met, LinkClass::Lan, None));
        let mut effects = may_lead(&mut planner);
        let mut waited = 0;
        while !leads(&effects) && waited < 4 * STALL {
            effects = ticks(&mut planner, 1);
            waited += 1;
        }
        waited
    };
    let (lower, higher) = (waits(false), waits(true));
    assert!(lower < higher && higher < 4 * STALL, "{lower} and {higher} ticks");
}

#[test]
fn whoever_was_there_before_is_followed_at_once_when_it_comes_back_whoever_it_is() {
    let (mut planner, others) = one_of_many();
    let stranger = strangers(&others)[0];
    planner.apply(Event::Met(stranger, LinkClass::Lan, Some(FOLLOWING)));
    planner.apply(Event::Searched(Scope::Site));
    while followed(&planner.apply(Event::Tick)).is_empty() {}
    planner.apply(Event::PeerLeft(stranger, "its machine is switched off".into()));
    let effects = planner.apply(Event::Met(stranger, LinkClass::Lan, Some(FOLLOWING)));
    assert_eq!(followed(&effects), BTreeSet::from([stranger]));
}
