//! Of whom a transfer takes what: one planner, told word by word what happens.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod planner_support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use planner_support::{CHUNK, blob, invent, true_chain};
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{DropReason, Effect, Event, Planner, Scope, Source, USUAL_ROOM};
use wherry_proto::{ChunkIndex, List, NodeId, Role, Run, SecretKey, Update};

/// Of whom chunks are asked where two sign chains that contradict each other, one of them at another site, and a limit
/// holds.
fn asked_while_limited(far: NodeId, near: NodeId) -> BTreeSet<NodeId> {
    let truth = blob(8 * CHUNK, 5);
    let chain = true_chain(&truth);
    let (invented, _) = invent(&truth, &chain, 4, 9);
    let chains = BTreeMap::from([(near, Arc::new(chain.clone())), (far, Arc::new(invented))]);
    let me = SecretKey::from_seed([99; 32]).node();
    let mut planner = Planner::new(me, chain.digest(), chain.map(), &[], 1);
    let mut events = VecDeque::from([
        Event::Limited(true),
        Event::Offered(far, LinkClass::Wan),
        Event::Offered(near, LinkClass::Lan),
        Event::Searched(Scope::Site),
    ]);
    let mut asked = BTreeSet::new();
    while let Some(event) = events.pop_front() {
        for effect in planner.apply(event) {
            match effect {
                Effect::Follow(node) => {
                    let update = Update { role: Role::Held, here: List::first_of([]) };
                    events.push_back(Event::Updated(node, update));
                }
                Effect::AskClaim(node) | Effect::AskChain(node) => {
                    events.push_back(Event::Chain(node, chains[&node].clone()))
                }
                Effect::Fetch(node, ..) => _ = asked.insert(node),
                _ => {}
            }
        }
    }
    asked
}

#[test]
fn while_a_limit_holds_a_dispute_is_put_to_those_who_are_near_alone() {
    let [one, other] = [1, 2].map(|seed| SecretKey::from_seed([seed; 32]).node());
    for (far, near) in [(one, other), (other, one)] {
        assert_eq!(asked_while_limited(far, near), BTreeSet::from([near]));
    }
}

#[test]
fn two_that_have_lost_different_chunks_of_a_blob_heal_each_other() {
    let truth = blob(8 * CHUNK, 5);
    let chain = Arc::new(true_chain(&truth));
    let map = chain.map();
    let [me, other] = [99, 1].map(|seed| SecretKey::from_seed([seed; 32]).node());
    let all_but = |lost: u32| map.iter().filter(move |index| index.get() != lost);
    let here: Vec<_> = all_but(2).map(|index| (index, chain.link(index))).collect();
    let mut planner = Planner::new(me, chain.digest(), map, &here, 1);
    planner.trust(chain.clone());
    // The other does nothing to become whole, as where nobody there wants the blob.
    let role = Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false };
    let runs = [Run { from: 0, len: 5 }, Run { from: 6, len: 2 }];
    let update = Update { role, here: List::first_of(runs) };
    planner.apply(Event::Met(other, LinkClass::Lan, None));
    planner.apply(Event::Searched(Scope::Site));
    let effects = planner.apply(Event::Updated(other, update));
    let lost = map.index(2).unwrap();
    assert_eq!(effects, [Effect::Fetch(other, lost, vec![chain.from(lost)])]);
    let (source, link) = (Source::Peer(other), chain.link(lost));
    let effects = planner.apply(Event::Arrived(source, lost, vec![link], Duration::from_millis(1)));
    assert_eq!(effects, [Effect::Keep(source, lost, link)]);
    assert_eq!(planner.apply(Event::Kept(source, lost, link)), [Effect::Verified]);
}

#[test]
fn while_only_the_beginning_of_a_blob_exists_nodes_ask_for_different_chunks_of_it() {
    const HERE: u32 = 16;
    let chain = Arc::new(true_chain(&blob(256 * CHUNK, 5)));
    let leader = SecretKey::from_seed([1; 32]).node();
    let role = Role::Leading { attempt: 1, known: HERE };
    let mut asked = BTreeMap::<ChunkIndex, usize>::new();
    for seed in 100..164 {
        let me = SecretKey::from_seed([seed; 32]).node();
        let mut planner = Planner::new(me, chain.digest(), chain.map(), &[], 1);
        planner.trust(Arc::clone(&chain));
        planner.apply(Event::Met(leader, LinkClass::Lan, None));
        let update = Update { role, here: List::first_of([Run { from: 0, len: HERE }]) };
        let effects = planner.apply(Event::Updated(leader, update));
        let first = effects.iter().find_map(|effect| match effect {
            Effect::Fetch(_, index, _) => Some(*index),
            _ => None,
        });
        *asked.entry(first.unwrap()).or_default() += 1;
    }
    // Of 64 nodes 4 ask for each on average.
    assert!(asked.len() > HERE as usize * 3 / 4, "{asked:?}");
    assert!(asked.values().all(|nodes| *nodes <= 12), "{asked:?}");
}

/// It lost a chunk after it had said that it holds the blob: it is met again as one that has some of it, and what it has
/// lost comes from elsewhere.
#[test]
fn a_holder_that_has_not_got_a_chunk_is_not_asked_for_it_again() {
    let chain = Arc::new(true_chain(&blob(8 * CHUNK, 5)));
    let map = chain.map();
    let [me, holder] = [99, 1].map(|seed| SecretKey::from_seed([seed; 32]).node());
    let lost = map.index(2).unwrap();
    let mut planner = Planner::new(me, chain.digest(), map, &[], 1);
    planner.apply(Event::OriginOffered);
    let says = |role, runs: &[Run]| {
        Event::Updated(holder, Update { role, here: List::first_of(runs.iter().copied()) })
    };
    let mut events = VecDeque::from([Event::Offered(holder, LinkClass::Lan), Event::Searched(Scope::Site)]);
    let (mut is_whole, mut drops, mut reads) = (true, 0, Vec::new());
    for _ in 0..500 {
        for effect in planner.apply(events.pop_front().unwrap_or(Event::Tick)) {
            match effect {
                Effect::Follow(_) if is_whole => events.push_back(says(Role::Held, &[])),
                Effect::Follow(_) => {
                    let role = Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false };
                    events.push_back(says(role, &[Run { from: 0, len: 2 }, Run { from: 3, len: 5 }]));
                }
                Effect::AskClaim(node) | Effect::AskChain(node) => {
                    events.push_back(Event::Chain(node, chain.clone()))
                }
                Effect::Fetch(node, index, _) if index == lost => {
                    assert!(is_whole, "it is asked again for what it has not got");
                    is_whole = false;
                    events.push_back(Event::NotHere(node, index));
                }
                Effect::Fetch(node, index, _) => {
                    let link = vec![chain.link(index)];
                    let took = Duration::from_millis(1);
                    events.push_back(Event::Arrived(Source::Peer(node), index, link, took));
                }
                Effect::Keep(source, index, link) => events.push_back(Event::Kept(source, index, link)),
                Effect::Search(scope) => events.push_back(Event::Searched(scope)),
                Effect::Drop(_, DropReason::Failed(_)) => drops += 1,
                Effect::ReadOrigin(from, _, to) => {
                    reads.push((from.get(), to.get()));
                    for index in (from.get()..=to.get()).map(|number| map.index(number).unwrap()) {
                        let link = vec![chain.link(index)];
                        events.push_back(Event::Arrived(Source::Origin, index, link, Duration::ZERO));
                    }
                    events.push_back(Event::OriginEnded(None));
                }
                Effect::Verified => {
                    assert_eq!(drops, 1);
                    assert!(reads.iter().any(|(from, to)| (*from..=*to).contains(&2)), "{reads:?}");
                    return;
                }
                _ => {}
            }
        }
    }
    panic!("it does not come to an end: {planner:?}");
}

#[test]
fn a_holder_at_another_site_is_not_asked_for_its_chain_while_a_limit_says_no() {
    let chain = Arc::new(true_chain(&blob(8 * CHUNK, 5)));
    let [me, far] = [99, 1].map(|seed| SecretKey::from_seed([seed; 32]).node());
    let mut planner = Planner::new(me, chain.digest(), chain.map(), &[], 1);
    planner.apply(Event::Limited(true));
    let mut effects = planner.apply(Event::Offered(far, LinkClass::Wan));
    effects.extend(planner.apply(Event::Searched(Scope::Site)));
    effects.extend(planner.apply(Event::Searched(Scope::OtherSites)));
    // Nor is it given up, however long that takes.
    for _ in 0..100 {
        effects.extend(planner.apply(Event::Tick));
    }
    assert_eq!(effects, [Effect::Follow(far)]);
    assert!(planner.waits_for_limit());
    assert_eq!(planner.apply(Event::Limited(false)), [Effect::AskChain(far)]);
    let effects = planner.apply(Event::Chain(far, chain));
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Fetch(node, ..) if *node == far)),
        "{effects:?}"
    );
}

#[test]
fn whoever_sends_a_chunk_is_asked_for_the_next_one_meanwhile_and_no_more_nodes_are_than_have_a_place() {
    let truth = blob(128 * CHUNK, 5);
    let chain = Arc::new(true_chain(&truth));
    let me = SecretKey::from_seed([99; 32]).node();
    let mut planner = Planner::new(me, chain.digest(), chain.map(), &[], 1);
    planner.trust(chain.clone());
    planner.apply(Event::Searched(Scope::Site));
    let role = Role::Following { stream: None, known: 0, may_lead: false, led_slowly: false };
    let half = Update { role, here: List::first_of([Run { from: 0, len: 64 }]) };
    let mut asked: BTreeMap<NodeId, Vec<ChunkIndex>> = BTreeMap::new();
    let take = |effects: Vec<Effect>, asked: &mut BTreeMap<NodeId, Vec<ChunkIndex>>| {
        for effect in effects {
            if let Effect::Fetch(node, index, _) = effect {
                asked.entry(node).or_default().push(index);
            }
        }
    };
    for seed in 1..=15 {
        let node = SecretKey::from_seed([seed; 32]).node();
        planner.apply(Event::Met(node, LinkClass::Lan, None));
        take(planner.apply(Event::Updated(node, half.clone())), &mut asked);
    }
    assert_eq!(asked.len(), USUAL_ROOM);
    // Those who were asked before it was known that many trade may have been asked for more.
    let (sender, chunks) = asked.iter().find(|(_, chunks)| chunks.len() == 1).unwrap();
    let (sender, sent) = (*sender, chunks[0]);
    let mut further = BTreeMap::new();
    take(planner.apply(Event::Begun(sender, sent)), &mut further);
    assert_eq!(further.keys().collect::<Vec<_>>(), [&sender]);
    assert_eq!(further[&sender].len(), 1);
    // One in line is enough.
    take(planner.apply(Event::Begun(sender, sent)), &mut further);
    assert_eq!(further[&sender].len(), 1);
    // What nobody sends keeps nobody's place, nor does what was never asked for.
    let stranger = asked.keys().find(|node| **node != sender).unwrap();
    assert_eq!(planner.apply(Event::Begun(*stranger, sent)), []);
    // It goes on with what stood in line, and is asked for one more.
    let link = chain.link(sent);
    planner.apply(Event::Arrived(Source::Peer(sender), sent, vec![link], Duration::from_millis(300)));
    let next = further[&sender][0];
    take(planner.apply(Event::Begun(sender, next)), &mut further);
    assert_eq!(further[&sender].len(), 2);
}
