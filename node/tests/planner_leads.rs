//! Who leads, as one node sees it: nobody takes a place that is not free.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends where something is not as it must be")]

mod planner_support;

use std::sync::Arc;

use planner_support::{CHUNK, blob, true_chain};
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Effect, Event, MAX_PEERS, Planner, rank};
use wherry_proto::{Attempt, ChunkMap, Digest, List, NodeId, Role, SecretKey, Update};

/// Nodes of a site by their rank for the blob, the highest first.
struct Site {
    digest: Digest,
    nodes: Vec<NodeId>,
}

impl Site {
    fn new(count: u8) -> Self {
        let digest = Digest::sha256(b"a blob");
        let mut nodes: Vec<NodeId> =
            (1..=count).map(|seed| SecretKey::from_seed([seed; 32]).node()).collect();
        nodes.sort_by_key(|node| std::cmp::Reverse(rank(&digest, node)));
        Self { digest, nodes }
    }

    /// The planner of the one with the highest rank.
    fn planner(&self) -> Planner {
        let map = ChunkMap::new(64 << 20).unwrap();
        Planner::new(self.nodes[0], self.digest, map, &[], 1)
    }
}

fn says(planner: &mut Planner, node: NodeId, role: Role) -> Vec<Effect> {
    planner.apply(Event::Updated(node, Update { role, here: List::first_of([]) }))
}

/// It may lead from now on, if nobody does.
fn may_lead(planner: &mut Planner) -> Vec<Effect> {
    [Event::OriginOffered, Event::SearchedSite].into_iter().flat_map(|event| planner.apply(event)).collect()
}

fn leads(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Lead(_)))
}

#[test]
fn a_leader_that_others_go_by_is_believed_before_it_has_said_anything_itself() {
    let site = Site::new(4);
    let (leader, others) = (site.nodes[3], &site.nodes[1..3]);
    let mut planner = site.planner();
    let stream = Some(Attempt { signer: leader, number: 7 });
    for other in others {
        planner.apply(Event::Met(*other, LinkClass::Lan));
    }
    planner.apply(Event::Met(leader, LinkClass::Lan));
    for known in 1..20 {
        let role = Role::Following { stream, known, may_lead: true };
        let told: Vec<_> = others.iter().flat_map(|other| says(&mut planner, *other, role)).collect();
        assert!(!leads(&told) && !leads(&may_lead(&mut planner)) && !leads(&planner.apply(Event::Tick)));
    }
    // It says itself that it does not.
    assert!(leads(&says(&mut planner, leader, Role::Following { stream: None, known: 0, may_lead: false })));
}

#[test]
fn those_who_say_by_turns_that_they_hold_the_blob_and_make_no_claim_hold_up_nobody() {
    let site = Site::new(3);
    let (mut holder, mut other) = (site.nodes[1], site.nodes[2]);
    let mut planner = site.planner();
    for node in [holder, other] {
        planner.apply(Event::Met(node, LinkClass::Lan));
        says(&mut planner, node, Role::Held);
    }
    let mut has_led = leads(&may_lead(&mut planner));
    for _ in 0..50 {
        // At any time one of them is about to make its claim.
        let nothing = Role::Following { stream: None, known: 0, may_lead: false };
        has_led |= leads(&says(&mut planner, other, nothing));
        for _ in 0..4 {
            has_led |= leads(&planner.apply(Event::Tick));
        }
        (holder, other) = (other, holder);
        has_led |= leads(&says(&mut planner, holder, Role::Held));
    }
    assert!(has_led);
}

#[test]
fn a_leader_keeps_its_place_however_many_come() {
    let count = 3 * MAX_PEERS;
    let site = Site::new(count as u8);
    // It had begun before the others came, whatever its rank.
    for leader in &site.nodes[count / 2..] {
        let mut planner = site.planner();
        planner.apply(Event::Met(*leader, LinkClass::Lan));
        says(&mut planner, *leader, Role::Leading { attempt: 1, known: 1 });
        assert!(!leads(&may_lead(&mut planner)) && !leads(&planner.apply(Event::Tick)));
        for newcomer in site.nodes[1..].iter().filter(|newcomer| *newcomer != leader) {
            let effects = planner.apply(Event::Met(*newcomer, LinkClass::Lan));
            assert!(!effects.contains(&Effect::Unfollow(*leader)));
        }
    }
}

/// A leader that is done holds the blob from then on: its chain comes, and then what is missing.
#[test]
fn a_leader_that_has_finished_is_not_taken_for_one_that_is_gone() {
    let truth = blob(8 * CHUNK, 5);
    let chain = Arc::new(true_chain(&truth));
    let map = chain.map();
    let [me, leader] = [99, 1].map(|seed| SecretKey::from_seed([seed; 32]).node());
    let mut planner = Planner::new(me, chain.digest(), map, &[], 1);
    planner.apply(Event::OriginOffered);
    planner.apply(Event::Met(leader, LinkClass::Lan));
    let says = |role| Event::Updated(leader, Update { role, here: List::first_of([]) });
    planner.apply(says(Role::Leading { attempt: 7, known: 0 }));
    planner.apply(Event::SearchedSite);
    // It reads for a long time.
    for known in 1..8 {
        for _ in 0..8 {
            planner.apply(Event::Tick);
        }
        planner.apply(says(Role::Leading { attempt: 7, known }));
    }
    let mut effects = planner.apply(says(Role::Held));
    // Making the chain may take it a moment.
    for _ in 0..4 {
        effects.extend(planner.apply(Event::Tick));
    }
    assert_eq!(effects, [Effect::AskChain(leader)]);
    let effects = planner.apply(Event::Chain(leader, chain));
    let is_fetch = |effect: &Effect| matches!(effect, Effect::Fetch(node, ..) if *node == leader);
    assert!(!effects.is_empty() && effects.iter().all(is_fetch), "{effects:?}");
    // One that then says nothing more is given up all the same.
    planner.apply(Event::PeerFailed(leader, "silent".into()));
    assert!(planner.leads());
}
