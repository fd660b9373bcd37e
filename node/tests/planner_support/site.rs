//! A site whose nodes are known by their rank, and planners of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{Effect, Event, Planner, Scope};
use wherry_proto::{
    Algorithm, Attempt, Certificate, ChunkMap, Digest, List, NodeId, Role, Roles, SecretKey, SignedStates,
    State, StatePrefix, StreamClaim, Update, rank,
};

/// Nodes of a site by their rank for the blob, the highest first.
pub struct Site {
    pub digest: Digest,
    pub nodes: Vec<NodeId>,
}

impl Site {
    pub fn new(count: u8) -> Self {
        let digest = Digest::sha256(b"a blob");
        let mut nodes: Vec<NodeId> =
            (1..=count).map(|seed| SecretKey::from_seed([seed; 32]).node()).collect();
        nodes.sort_by_key(|node| std::cmp::Reverse(rank(&digest, node)));
        Self { digest, nodes }
    }

    /// The planner of the one with the highest rank.
    pub fn planner(&self) -> Planner {
        self.planner_of(0)
    }

    pub fn planner_of(&self, place: usize) -> Planner {
        let map = ChunkMap::new(64 << 20).unwrap();
        Planner::new(self.nodes[place], self.digest, map, &[], 1)
    }
}

pub fn says(planner: &mut Planner, node: NodeId, role: Role) -> Vec<Effect> {
    alone(planner, Event::Updated(node, Update { role, here: List::first_of([]) }))
}

/// What comes of an event where nobody at another site holds the blob.
pub fn alone(planner: &mut Planner, event: Event) -> Vec<Effect> {
    let mut effects = planner.apply(event);
    let search = Scope::OtherSites;
    if effects.contains(&Effect::Search(search)) {
        effects.extend(planner.apply(Event::Searched(search)));
    }
    effects
}

/// It may lead from now on, if nobody does.
pub fn may_lead(planner: &mut Planner) -> Vec<Effect> {
    let events = [Event::OriginOffered, Event::Searched(Scope::Site)];
    events.into_iter().flat_map(|event| alone(planner, event)).collect()
}

pub fn leads(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Lead(_)))
}

pub fn asked(effects: &[Effect]) -> Option<BTreeSet<NodeId>> {
    effects.iter().find_map(|effect| match effect {
        Effect::AskRoles(nodes) => Some(nodes.clone()),
        _ => None,
    })
}

pub const FOLLOWING: Role = Role::Following { stream: None, known: 0, may_lead: true, led_slowly: false };

/// A planner that leads, and what its followers go by.
pub fn leading(site: &Site) -> (Planner, Attempt) {
    let mut planner = site.planner();
    for node in &site.nodes[1..] {
        planner.apply(Event::Met(*node, LinkClass::Lan, None));
        says(&mut planner, *node, FOLLOWING);
    }
    assert!(leads(&may_lead_after_asking(&mut planner)));
    let Role::Leading { attempt, .. } = planner.role() else { panic!() };
    (planner, Attempt { signer: site.nodes[0], number: attempt })
}

/// So much time goes by.
pub fn ticks(planner: &mut Planner, count: usize) -> Vec<Effect> {
    let tick = |planner: &mut Planner| {
        let events = [Event::Tick, Event::RolesAsked];
        events.into_iter().flat_map(|event| alone(planner, event)).collect::<Vec<_>>()
    };
    (0..count).flat_map(|_| tick(planner)).collect()
}

pub fn may_lead_after_asking(planner: &mut Planner) -> Vec<Effect> {
    let mut effects = may_lead(planner);
    for _ in 0..4 {
        effects.extend(alone(planner, Event::RolesAsked));
        effects.extend(alone(planner, Event::Tick));
    }
    effects
}

/// What a node signs of a reading in which it has come to these states.
pub fn signed(site: &Site, attempt: Attempt, words: &[u32]) -> Arc<SignedStates> {
    let operator = SecretKey::from_seed([99; 32]);
    let keys = (0..=u8::MAX).map(|seed| SecretKey::from_seed([seed; 32]));
    let key = keys.into_iter().find(|key| key.node() == attempt.signer).unwrap();
    let mut prefix = StatePrefix::new(Algorithm::Sha256, ChunkMap::new(64 << 20).unwrap());
    words.iter().for_each(|word| assert!(prefix.push(State::Sha256([*word; 8]))));
    let claim = StreamClaim::sign(&key, &operator.network(), site.digest, attempt.number, &prefix);
    let certificate = Certificate::sign(&operator, key.node(), Roles::MEMBER, 0, u64::MAX);
    Arc::new(SignedStates { claim, certificate, prefix })
}
