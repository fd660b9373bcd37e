//! What becomes of a reading that has come to its end, as one of those sees it who take what came of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod planner_support;

use std::time::Duration;

use planner_support::site::{Site, asked, leads, may_lead, says, signed, ticks};
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Effect, Event, MAX_PEERS, Planner, STALL, Source};
use wherry_proto::{Attempt, ChunkMap, End, Link, List, NodeId, Role, Run, State, Update};

/// How many chunks the blob of a site has.
fn count() -> u32 {
    ChunkMap::new(64 << 20).unwrap().count()
}

fn follows(attempt: Attempt, known: u32) -> Role {
    Role::Following { stream: Some(attempt), known, may_lead: true, led_slowly: false }
}

/// A peer says that it has these chunks, and goes by a reading.
fn has(planner: &mut Planner, node: NodeId, role: Role, from: u32, len: u32) -> Vec<Effect> {
    planner.apply(Event::Updated(node, Update { role, here: List::first_of([Run { from, len }]) }))
}

/// Takes what peers pass on of a reading up to its last state.
fn goes_by(planner: &mut Planner, site: &Site, attempt: Attempt) -> Vec<Effect> {
    let words: Vec<u32> = (1..count()).collect();
    let from = site.nodes[1];
    planner.apply(Event::States(from, attempt, Ok(signed(site, attempt, &words))))
}

/// Its place may have been given away before it led, or its link was so full that it seemed to be gone.
#[test]
fn a_leader_that_is_only_heard_of_has_a_place_among_the_peers_once_this_node_goes_by_it() {
    let site = Site::new(MAX_PEERS as u8 + 2);
    let leader = site.nodes[MAX_PEERS + 1];
    let attempt = Attempt { signer: leader, number: 7 };
    let mut planner = site.planner();
    may_lead(&mut planner);
    for (n, node) in site.nodes[1..=MAX_PEERS].iter().enumerate() {
        planner.apply(Event::Met(*node, LinkClass::Lan, None));
        has(&mut planner, *node, follows(attempt, count() - 1), n as u32, 1);
    }
    let is_followed = |effects: &[Effect]| effects.contains(&Effect::Follow(leader));
    let before = planner.apply(Event::Met(leader, LinkClass::Lan, None));
    assert!(!is_followed(&before), "there is no place for just anybody");
    assert!(ticks(&mut planner, 8).contains(&Effect::Meet(leader)));
    let mut effects = planner.apply(Event::Met(leader, LinkClass::Lan, None));
    effects.extend(ticks(&mut planner, 1));
    assert!(is_followed(&effects), "{effects:?}");
}

#[test]
fn nobody_takes_over_from_a_reading_that_is_at_its_end_while_others_have_what_came_of_it() {
    let site = Site::new(4);
    let attempt = Attempt { signer: site.nodes[3], number: 7 };
    let mut planner = site.planner();
    let others = &site.nodes[1..3];
    for node in others {
        planner.apply(Event::Met(*node, LinkClass::Lan, None));
        says(&mut planner, *node, follows(attempt, count() - 1));
    }
    may_lead(&mut planner);
    // Together they have all but one.
    let mut effects = has(&mut planner, others[0], follows(attempt, count() - 1), 0, count() / 2);
    effects.extend(has(&mut planner, others[1], follows(attempt, count() - 1), count() / 2, count() / 2 - 1));
    effects.extend(goes_by(&mut planner, &site, attempt));
    // They are slow to give it, and the last chunk is on its way to one of them.
    let takes_over = |effects: &[Effect]| leads(effects) || asked(effects).is_some();
    effects.extend(ticks(&mut planner, 1));
    effects.extend(has(&mut planner, others[0], follows(attempt, count() - 1), count() - 1, 1));
    for _ in 0..4 * STALL {
        effects.extend(ticks(&mut planner, 1));
    }
    assert!(!takes_over(&effects), "{effects:?}");
    // The one is gone, and with it what nobody else has.
    planner.apply(Event::PeerLeft(others[0], "killed".into()));
    let effects = ticks(&mut planner, 4 * STALL as usize);
    let is_read = |effect: &Effect| matches!(effect, Effect::ReadOrigin(first, _, last) if first.get() == 0 && last.get() < count() / 2);
    assert!(leads(&effects) && effects.iter().any(is_read), "{effects:?}");
}

/// It knew all states from the beginning: that tells nothing of what the site has.
#[test]
fn whoever_took_a_blob_from_another_site_has_a_successor_as_soon_as_one_who_read_it() {
    let site = Site::new(3);
    let (other, leader) = (site.nodes[1], site.nodes[2]);
    let attempt = Attempt { signer: leader, number: 7 };
    // After how many ticks this node leads once a leader is gone that had so many chunks, on a slow link.
    let waited = |known: u32, chunks: u32| {
        let mut planner = site.planner();
        for node in [other, leader] {
            planner.apply(Event::Met(node, LinkClass::Lan, None));
        }
        has(&mut planner, leader, Role::Leading { attempt: 7, known }, 0, chunks);
        let words: Vec<u32> = (1..=known).collect();
        planner.apply(Event::States(leader, attempt, Ok(signed(&site, attempt, &words))));
        may_lead(&mut planner);
        let effects = has(&mut planner, other, follows(attempt, known), 0, 8);
        let fetch = |effect: &Effect| match effect {
            Effect::Fetch(node, index, starts) if *node == other => Some((*index, starts[0])),
            _ => None,
        };
        let (index, from) = effects.iter().find_map(fetch).unwrap();
        let link = Link { from, to: End::State(State::Sha256([index.get() + 1; 8])) };
        planner.apply(Event::Arrived(Source::Peer(other), index, vec![link], Duration::from_secs(20)));
        ticks(&mut planner, 2);
        planner.apply(Event::PeerLeft(leader, "killed".into()));
        (1..100).find(|_| leads(&ticks(&mut planner, 1))).unwrap()
    };
    let (reader, taker) = (waited(16, 16), waited(count() - 1, 16));
    assert!(taker <= reader + 2, "{taker} and {reader} ticks");
}
