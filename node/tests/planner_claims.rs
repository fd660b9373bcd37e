//! What holders claim, where they give the states of their chains to a few and send others to these.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod planner_support;

use std::sync::Arc;
use std::time::Duration;

use planner_support::{CHUNK, blob, invent, true_chain};
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{DropReason, Effect, Event, Planner, Source};
use wherry_proto::{Digest, List, NodeId, Role, Run, SecretKey, StateChain, Update, link};

/// Within how many ticks a holder is asked once more whose states nobody gives: 10 s.
const SOON: usize = 20;

fn node(seed: u8) -> NodeId {
    SecretKey::from_seed([seed; 32]).node()
}

fn states(chain: &StateChain) -> Digest {
    Digest::sha256(&chain.to_bytes())
}

/// A planner for the blob of a chain, at a node whose neighbours hold it and say that others have their states.
fn sent_on(chain: &StateChain, holders: &[NodeId]) -> Planner {
    let mut planner = Planner::new(node(99), chain.digest(), chain.map(), &[], 1);
    for holder in holders {
        let effects = planner.apply(Event::Offered(*holder, LinkClass::Lan));
        assert!(effects.contains(&Effect::AskChain(*holder)), "{effects:?}");
    }
    planner.apply(Event::SearchedSite);
    for holder in holders {
        assert_eq!(planner.apply(Event::Claimed(*holder, states(chain))), []);
    }
    planner
}

/// A neighbour says that it has some chunks.
fn has_some(planner: &mut Planner, node: NodeId) -> Vec<Effect> {
    planner.apply(Event::Met(node, LinkClass::Lan, None));
    let role = Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false };
    planner.apply(Event::Updated(node, Update { role, here: List::first_of([Run { from: 3, len: 2 }]) }))
}

fn fetches(effects: &[Effect]) -> bool {
    !effects.is_empty() && effects.iter().all(|effect| matches!(effect, Effect::Fetch(..)))
}

#[test]
fn states_that_a_holder_gives_to_few_come_from_whoever_tells_of_chunks_and_count_for_all_who_claim_them() {
    let chain = true_chain(&blob(8 * CHUNK, 5));
    let mut planner = sent_on(&chain, &[node(1), node(2)]);
    let other = node(3);
    assert_eq!(has_some(&mut planner, other), [Effect::AskClaimed(other, states(&chain))]);
    let effects = planner.apply(Event::ClaimedStates(other, states(&chain), Some(Arc::new(chain))));
    assert!(fetches(&effects), "{effects:?}");
    assert_eq!(planner.sources(), 3);
}

#[test]
fn whoever_lacks_the_states_is_asked_once_and_then_somebody_else() {
    let chain = true_chain(&blob(8 * CHUNK, 5));
    let mut planner = sent_on(&chain, &[node(1)]);
    let claimed = states(&chain);
    assert_eq!(has_some(&mut planner, node(3)), [Effect::AskClaimed(node(3), claimed)]);
    assert_eq!(has_some(&mut planner, node(4)), []);
    assert_eq!(
        planner.apply(Event::ClaimedStates(node(3), claimed, None)),
        [Effect::AskClaimed(node(4), claimed)]
    );
    // One that goes is as good as one that has none.
    assert_eq!(has_some(&mut planner, node(5)), []);
    assert!(
        planner
            .apply(Event::PeerLeft(node(4), "it has gone".into()))
            .contains(&Effect::AskClaimed(node(5), claimed))
    );
    assert_eq!(planner.apply(Event::ClaimedStates(node(5), claimed, None)), []);
}

#[test]
fn a_holder_is_asked_once_more_if_nobody_else_has_its_states_and_nobody_leads_meanwhile() {
    let chain = Arc::new(true_chain(&blob(8 * CHUNK, 5)));
    let holder = node(1);
    let mut planner = sent_on(&chain, &[holder]);
    planner.apply(Event::OriginOffered);
    let asked =
        (0..SOON).find_map(|_| Some(planner.apply(Event::Tick)).filter(|effects| !effects.is_empty()));
    assert_eq!(asked, Some(vec![Effect::AskChain(holder)]));
    let effects = planner.apply(Event::Chain(holder, chain));
    assert!(fetches(&effects), "{effects:?}");
}

#[test]
fn a_holder_that_gives_its_chain_to_nobody_is_no_source() {
    let chain = true_chain(&blob(8 * CHUNK, 5));
    let holder = node(1);
    let mut planner = sent_on(&chain, &[holder]);
    planner.apply(Event::OriginOffered);
    while !planner.apply(Event::Tick).contains(&Effect::AskChain(holder)) {}
    let effects = planner.apply(Event::Claimed(holder, states(&chain)));
    let is_drop =
        |effect: &Effect| matches!(effect, Effect::Drop(node, DropReason::Failed(_)) if *node == holder);
    assert!(effects.iter().any(is_drop), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Ban(..))), "{effects:?}");
    assert!(planner.leads());
}

#[test]
fn invented_states_are_proof_against_the_holder_that_claimed_them_and_not_against_who_passed_them_on() {
    let truth = blob(8 * CHUNK, 5);
    let chain = Arc::new(true_chain(&truth));
    let (invented, _) = invent(&truth, &chain, 4, 9);
    let [liar, relay, honest] = [1, 2, 3].map(node);
    let mut planner = sent_on(&invented, &[liar]);
    has_some(&mut planner, relay);
    let claimed = states(&invented);
    let mut effects = planner.apply(Event::ClaimedStates(relay, claimed, Some(Arc::new(invented))));
    effects.extend(planner.apply(Event::Offered(honest, LinkClass::Lan)));
    effects.extend(planner.apply(Event::Chain(honest, Arc::clone(&chain))));
    // All chunks come, as they are.
    let (mut banned, mut verified) = (Vec::new(), false);
    while let Some(effect) = effects.pop() {
        match effect {
            Effect::Fetch(node, index, starts) => {
                let map = chain.map();
                let from = map.offset(index) as usize;
                let bytes = &truth[from..from + map.len(index) as usize];
                let links = starts.into_iter().map(|start| link(&map, index, start, bytes).unwrap());
                let source = Source::Peer(node);
                let took = Duration::from_millis(1);
                effects.extend(planner.apply(Event::Arrived(source, index, links.collect(), took)));
            }
            Effect::Keep(source, index, link) => {
                effects.extend(planner.apply(Event::Kept(source, index, link)))
            }
            Effect::Ban(node, _) => banned.push(node),
            Effect::Drop(node, _) => assert_ne!(node, relay),
            Effect::Verified => verified = true,
            _ => {}
        }
    }
    assert_eq!((banned, verified), (vec![liar], true));
}
