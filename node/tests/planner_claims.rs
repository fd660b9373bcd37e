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

use planner_support::site::alone;
use planner_support::{CHUNK, blob, invent, true_chain};
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Effect, Event, Planner, Scope, Source};
use wherry_proto::{
    Certificate, Digest, List, NodeId, Role, Roles, Run, SecretKey, SignedStates, StateChain, StatePrefix,
    StreamClaim, Update, link,
};

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
        assert!(effects.contains(&Effect::AskClaim(*holder)), "{effects:?}");
    }
    planner.apply(Event::Searched(Scope::Site));
    for holder in holders {
        assert_eq!(planner.apply(Event::Claimed(*holder, states(chain))), []);
    }
    planner
}

/// A holder is asked again, says once more that others have its states, and is asked to give them itself.
fn insists(planner: &mut Planner, chain: &StateChain, holder: NodeId) {
    for expected in [Effect::AskClaim(holder), Effect::AskChain(holder)] {
        let asked =
            (0..SOON).find_map(|_| Some(planner.apply(Event::Tick)).filter(|effects| !effects.is_empty()));
        assert_eq!(asked, Some(vec![expected.clone()]));
        if expected == Effect::AskClaim(holder) {
            planner.apply(Event::Claimed(holder, states(chain)));
        }
    }
}

/// What a node says that takes a blob from holders and knows so many states of the chain that they claim.
fn following(known: u32) -> Role {
    Role::Following { stream: None, known, may_lead: false, led_slowly: false }
}

/// A neighbour says that it has some chunks and knows so many states.
fn says(planner: &mut Planner, node: NodeId, known: u32) -> Vec<Effect> {
    planner.apply(Event::Met(node, LinkClass::Lan, None));
    let here = List::first_of([Run { from: 3, len: 2 }]);
    planner.apply(Event::Updated(node, Update { role: following(known), here }))
}

/// It knows all of a chain of eight chunks.
fn knows(planner: &mut Planner, node: NodeId) -> Vec<Effect> {
    says(planner, node, 7)
}

fn fetches(effects: &[Effect]) -> bool {
    !effects.is_empty() && effects.iter().all(|effect| matches!(effect, Effect::Fetch(..)))
}

#[test]
fn states_that_a_holder_gives_to_few_come_from_whoever_knows_them_and_count_for_all_who_claim_them() {
    // Holders give shorter ones to everybody.
    let chain = true_chain(&blob(80 * CHUNK, 5));
    let mut planner = sent_on(&chain, &[node(1), node(2)]);
    let other = node(3);
    assert_eq!(says(&mut planner, other, 0), []);
    assert_eq!(planner.role(), following(0));
    assert_eq!(says(&mut planner, other, 79), [Effect::AskClaimed(other, states(&chain))]);
    let effects = planner.apply(Event::ClaimedStates(other, states(&chain), Some(Arc::new(chain))));
    assert!(fetches(&effects), "{effects:?}");
    assert_eq!(planner.sources(), 3);
    // Others have them from here now.
    assert_eq!(planner.role(), following(79));
}

#[test]
fn whoever_lacks_the_states_is_asked_once_and_then_somebody_else() {
    let chain = true_chain(&blob(8 * CHUNK, 5));
    let mut planner = sent_on(&chain, &[node(1)]);
    let claimed = states(&chain);
    assert_eq!(knows(&mut planner, node(3)), [Effect::AskClaimed(node(3), claimed)]);
    assert_eq!(knows(&mut planner, node(4)), []);
    assert_eq!(
        planner.apply(Event::ClaimedStates(node(3), claimed, None)),
        [Effect::AskClaimed(node(4), claimed)]
    );
    // One that goes is as good as one that has none.
    assert_eq!(knows(&mut planner, node(5)), []);
    assert!(
        planner
            .apply(Event::PeerLeft(node(4), "it has gone".into()))
            .contains(&Effect::AskClaimed(node(5), claimed))
    );
    assert_eq!(planner.apply(Event::ClaimedStates(node(5), claimed, None)), []);
}

#[test]
fn whoever_says_nothing_when_it_is_asked_for_states_or_claims_others_keeps_nobody_from_asking_the_next() {
    let truth = blob(8 * CHUNK, 5);
    let chain = true_chain(&truth);
    let (invented, _) = invent(&truth, &chain, 4, 9);
    let mut planner = sent_on(&chain, &[node(1)]);
    planner.apply(Event::Offered(node(2), LinkClass::Lan));
    planner.apply(Event::Claimed(node(2), states(&invented)));
    let asked = |effects: &[Effect]| -> Vec<(NodeId, Digest)> {
        let asked = |effect: &Effect| match effect {
            Effect::AskClaimed(node, states) => Some((*node, *states)),
            _ => None,
        };
        effects.iter().filter_map(asked).collect()
    };
    // Of the mute one both are asked, at once.
    let mut first = asked(&knows(&mut planner, node(3)));
    first.sort_unstable();
    let mut both = [(node(3), states(&chain)), (node(3), states(&invented))];
    both.sort_unstable();
    assert_eq!(first, both);
    assert_eq!(asked(&knows(&mut planner, node(4))), []);
    let next =
        (0..SOON).find_map(|_| Some(asked(&planner.apply(Event::Tick))).filter(|asked| !asked.is_empty()));
    assert!(next.unwrap().contains(&(node(4), states(&chain))));
    let effects = planner.apply(Event::ClaimedStates(node(4), states(&chain), Some(Arc::new(chain))));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch(..))), "{effects:?}");
}

#[test]
fn holders_at_other_sites_are_not_spared_since_nobody_here_has_their_states() {
    let chain = true_chain(&blob(8 * CHUNK, 5));
    let mut planner = Planner::new(node(99), chain.digest(), chain.map(), &[], 1);
    let effects = planner.apply(Event::Offered(node(1), LinkClass::Wan));
    assert!(effects.contains(&Effect::AskChain(node(1))), "{effects:?}");
}

#[test]
fn a_holder_is_asked_once_more_if_nobody_else_has_its_states_and_nobody_leads_meanwhile() {
    let chain = Arc::new(true_chain(&blob(8 * CHUNK, 5)));
    let holder = node(1);
    let mut planner = sent_on(&chain, &[holder]);
    planner.apply(Event::OriginOffered);
    insists(&mut planner, &chain, holder);
    assert!(!planner.leads());
    let effects = planner.apply(Event::Chain(holder, chain));
    assert!(fetches(&effects), "{effects:?}");
}

#[test]
fn a_holder_that_gives_its_chain_to_nobody_keeps_nobody_from_leading() {
    let chain = true_chain(&blob(8 * CHUNK, 5));
    let holder = node(1);
    let mut planner = sent_on(&chain, &[holder]);
    planner.apply(Event::OriginOffered);
    insists(&mut planner, &chain, holder);
    planner.apply(Event::PeerFailed(holder, "a claim without states came".into()));
    assert!((0..SOON).any(|_| {
        alone(&mut planner, Event::Tick);
        planner.leads()
    }));
}

#[test]
fn whoever_goes_by_a_reading_has_its_last_states_from_the_leader_itself() {
    let chain = true_chain(&blob(8 * CHUNK, 5));
    let leader = node(1);
    let mut planner = Planner::new(node(99), chain.digest(), chain.map(), &[], 1);
    planner.apply(Event::Met(leader, LinkClass::Lan, None));
    let says = |role| Event::Updated(leader, Update { role, here: List::first_of([]) });
    let effects = planner.apply(says(Role::Leading { attempt: 7, known: 2 }));
    let attempt = effects.iter().find_map(|effect| match effect {
        Effect::AskStates(_, attempt, _) => Some(*attempt),
        _ => None,
    });
    let mut prefix = StatePrefix::of(&chain);
    prefix.truncate(2);
    let key = SecretKey::from_seed([1; 32]);
    let claim = StreamClaim::sign(&key, &key.network(), chain.digest(), 7, &prefix);
    let certificate = Certificate::sign(&key, leader, Roles::from_bits(u32::MAX), 0, u64::MAX);
    let signed = Arc::new(SignedStates { claim, certificate, prefix });
    planner.apply(Event::States(leader, attempt.unwrap(), Ok(signed)));
    assert!(planner.apply(says(Role::Held)).contains(&Effect::AskChain(leader)));
}

#[test]
fn invented_states_are_proof_against_the_holder_that_claimed_them_and_not_against_who_passed_them_on() {
    let truth = blob(8 * CHUNK, 5);
    let chain = Arc::new(true_chain(&truth));
    let (invented, _) = invent(&truth, &chain, 4, 9);
    let [liar, relay, honest] = [1, 2, 3].map(node);
    let mut planner = sent_on(&invented, &[liar]);
    knows(&mut planner, relay);
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
