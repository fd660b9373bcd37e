//! Who leads, as one node sees it: nobody takes a place that is not free.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends where something is not as it must be")]

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
