//! Whatever sources do and in whatever order things happen, a transfer ends with the right bytes while any honest
//! source is there, with a failure where none is, and nobody honest is blamed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

mod planner_support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use planner_support::{CHUNK, blob, invent, true_chain};
use proptest::prelude::*;
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{
    DropReason, Effect, Event, IN_FLIGHT, PIPELINE, Planner, Scope, Source,
};
use wherry_proto::{
    ChunkIndex, ChunkMap, Digest, End, Link, List, NodeId, Role, Run, SecretKey, State, StateChain, Update,
    link,
};

#[derive(Clone, Debug)]
enum Manner {
    Honest,
    /// Has the true chain, but one of its chunks is rotten.
    Rotten(u32),
    /// Signs an invented chain and serves chunks that link to it, as far as that is possible.
    Inventing(u32, u64),
    /// Does not answer when asked for its chain.
    Empty,
    /// Serves so many chunks, then is silent.
    Vanishing(u32),
    /// Honest, but refuses now and then.
    Busy,
    /// Honest, but lets others give its states as far as it may.
    Coy,
    /// Honest, but does not hold the blob: it takes it from those who do, knows the states, and has all chunks but
    /// this one, if there is one.
    Following(u32),
    /// Says so, gives no states, and serves rotten chunks.
    Pretending(u32),
}

impl Manner {
    /// The chunk that it lacks, if it says that the blob is still coming.
    const fn lacks(&self) -> Option<u32> {
        match self {
            Self::Following(lacks) | Self::Pretending(lacks) => Some(*lacks),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Origin {
    None,
    Honest,
    Wrong(u32),
    Unreachable,
    Breaking(u32),
}

struct Peer {
    honest: bool,
    manner: Manner,
    chain: Arc<StateChain>,
    bytes: Vec<u8>,
    served: u32,
}

#[derive(Debug)]
enum Step {
    Happens(Event),
    Write(Source, ChunkIndex, Link, Vec<u8>),
}

struct World {
    map: ChunkMap,
    truth: Vec<u8>,
    disk: Vec<u8>,
    peers: BTreeMap<NodeId, Peer>,
    origin: Origin,
    planner: Planner,
    waiting: Vec<Step>,
    origin_queue: Vec<Event>,
    arriving: BTreeMap<(Source, ChunkIndex), Vec<u8>>,
    asked: BTreeSet<(NodeId, ChunkIndex)>,
    // Who was left for a wrong chunk, or banned; and who was banned.
    blamed: BTreeSet<NodeId>,
    banned: BTreeSet<NodeId>,
    outcome: Option<bool>,
    idle: u32,
    // How often a limit is yet to come, and whether one holds.
    limits: u32,
    limited: bool,
    // The chunks that this node has lost of a blob that it had verified, if it had: nothing else may be asked for.
    lost: Option<BTreeSet<u32>>,
    // How many of the peers are at another site.
    far: usize,
}

fn cut(bytes: &[u8], map: ChunkMap, index: ChunkIndex) -> Vec<u8> {
    let start = map.offset(index) as usize;
    bytes[start..start + map.len(index) as usize].to_vec()
}

impl World {
    fn new(size: usize, seed: u64, manners: &[Manner], origin: Origin) -> Self {
        Self::spread(size, seed, (manners, 0), origin)
    }

    /// The same where the first few of the peers are at another site.
    fn spread(size: usize, seed: u64, (manners, far): (&[Manner], usize), origin: Origin) -> Self {
        let truth = blob(size, seed);
        let chain = true_chain(&truth);
        let map = chain.map();
        let mut peers = BTreeMap::new();
        for (number, manner) in manners.iter().enumerate() {
            let id = SecretKey::from_seed([number as u8 + 1; 32]).node();
            let mut bytes = truth.clone();
            let mut claimed = chain.clone();
            let mut honest =
                matches!(manner, Manner::Honest | Manner::Busy | Manner::Coy | Manner::Following(_));
            match manner {
                Manner::Rotten(at) => {
                    let at = (*at % map.count()) as usize * CHUNK;
                    match bytes.get_mut(at) {
                        Some(byte) => *byte ^= 1,
                        None => honest = true,
                    }
                }
                Manner::Pretending(_) => bytes.iter_mut().for_each(|byte| *byte ^= 1),
                Manner::Inventing(fork, seed) => {
                    (claimed, bytes) = invent(&truth, &chain, *fork, *seed);
                    honest = bytes == truth;
                }
                _ => {}
            }
            peers.insert(
                id,
                Peer { honest, manner: manner.clone(), chain: Arc::new(claimed), bytes, served: 0 },
            );
        }
        let me = SecretKey::from_seed([99; 32]).node();
        let mut planner = Planner::new(me, chain.digest(), map, &[], 1);
        if !matches!(origin, Origin::None) {
            planner.apply(Event::OriginOffered);
        }
        let mut world = Self {
            map,
            disk: vec![0; size],
            peers,
            origin,
            planner,
            waiting: Vec::new(),
            origin_queue: Vec::new(),
            arriving: BTreeMap::new(),
            asked: BTreeSet::new(),
            blamed: BTreeSet::new(),
            banned: BTreeSet::new(),
            outcome: None,
            idle: 0,
            limits: 0,
            limited: false,
            lost: None,
            far,
            truth,
        };
        world.search(Scope::Site);
        world
    }

    /// The same at a node that had verified the blob before it lost these chunks.
    fn damaged(mut self, lost: &BTreeSet<u32>) -> Self {
        let chain = true_chain(&self.truth);
        let is_here = |index: &ChunkIndex| !lost.contains(&index.get());
        let here: Vec<_> = self.map.iter().filter(is_here).map(|index| (index, chain.link(index))).collect();
        self.disk.copy_from_slice(&self.truth);
        for index in self.map.iter().filter(|index| !is_here(index)) {
            let start = self.map.offset(index) as usize;
            self.disk[start..start + self.map.len(index) as usize].fill(0);
        }
        let me = SecretKey::from_seed([99; 32]).node();
        self.planner = Planner::new(me, chain.digest(), self.map, &here, 1);
        self.planner.trust(Arc::new(chain));
        if !matches!(self.origin, Origin::None) {
            self.planner.apply(Event::OriginOffered);
        }
        self.lost = Some(lost.clone());
        self
    }

    fn assert_is_lost(&self, index: ChunkIndex) {
        assert!(self.lost.as_ref().is_none_or(|lost| lost.contains(&index.get())), "{index} is here");
    }

    fn search(&mut self, scope: Scope) {
        for (number, (node, peer)) in self.peers.iter().enumerate() {
            let class = if number < self.far { LinkClass::Wan } else { LinkClass::Lan };
            if (class == LinkClass::Lan) != (scope == Scope::Site) {
                continue;
            }
            let event = match peer.manner.lacks() {
                Some(_) => Event::Met(*node, class, None),
                None => Event::Offered(*node, class),
            };
            self.waiting.push(Step::Happens(event));
        }
        self.soon(Event::Searched(scope));
    }

    fn happens(&mut self, event: Event) {
        if let Event::PeerFailed(node, _) = &event {
            self.asked.retain(|(asked, _)| asked != node);
        }
        if let Event::Arrived(Source::Peer(node), index, ..) | Event::Busy(node, index) = &event {
            self.asked.remove(&(*node, *index));
        }
        if let Event::Busy(node, _) = &event {
            self.soon(Event::Ready(*node));
        }
        for effect in self.planner.apply(event) {
            assert!(self.outcome.is_none(), "{effect:?} after the end");
            self.act(effect);
        }
    }

    fn soon(&mut self, event: Event) {
        self.waiting.push(Step::Happens(event));
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::AskClaim(node) | Effect::AskChain(node) => {
                let spares = matches!(effect, Effect::AskClaim(_));
                let peer = &self.peers[&node];
                let chain = peer.chain.clone();
                match peer.manner {
                    Manner::Empty => self.soon(Event::PeerFailed(node, "holds nothing".into())),
                    Manner::Coy if spares => {
                        self.soon(Event::Claimed(node, Digest::sha256(&chain.to_bytes())));
                    }
                    _ => self.soon(Event::Chain(node, chain)),
                }
            }
            Effect::AskClaimed(node, states) => {
                let peer = &self.peers[&node];
                let chain = matches!(peer.manner, Manner::Following(_)).then(|| peer.chain.clone());
                let chain = chain.filter(|chain| Digest::sha256(&chain.to_bytes()) == states);
                self.soon(Event::ClaimedStates(node, states, chain));
            }
            Effect::Fetch(node, index, starts) => self.fetch(node, index, &starts),
            Effect::ReadOrigin(from, state, to) => self.read_origin(from, state, to),
            Effect::StopOrigin => self.origin_queue.clear(),
            Effect::Keep(source, index, link) => {
                let bytes = self.arriving.remove(&(source, index)).expect("only what has arrived is kept");
                self.waiting.push(Step::Write(source, index, link, bytes));
            }
            Effect::Discard(source, index) => {
                self.arriving.remove(&(source, index));
            }
            Effect::Drop(node, reason) => {
                self.asked.retain(|(asked, _)| *asked != node);
                if let DropReason::WrongChunk(_) = reason {
                    self.blamed.insert(node);
                }
            }
            Effect::Ban(node, _) => {
                self.asked.retain(|(asked, _)| *asked != node);
                self.blamed.insert(node);
                self.banned.insert(node);
            }
            Effect::OriginWrong(digest) => {
                assert!(matches!(self.origin, Origin::Wrong(_)));
                assert_ne!(digest, Digest::sha256(&self.truth));
            }
            Effect::OriginContradicts(_) | Effect::AttemptFailed | Effect::Lead(_) => {}
            Effect::Follow(node) => {
                let manner = &self.peers[&node].manner;
                let known = self.map.count() - 1;
                let (role, lacks) = match (manner, manner.lacks()) {
                    (Manner::Empty, _) => (Role::Gone, None),
                    (_, None) => (Role::Held, None),
                    (_, lacks) => {
                        (Role::Following { stream: None, known, may_lead: false, led_slowly: false }, lacks)
                    }
                };
                let parts = lacks.map_or([(0, 0); 2], |lacks| [(0, lacks), (lacks + 1, known + 1)]);
                let end = |to: u32| to.min(known + 1);
                let runs = parts.map(|(from, to)| Run { from, len: end(to).saturating_sub(from) });
                let here = List::first_of(runs.into_iter().filter(|run| run.len > 0));
                self.soon(Event::Updated(node, Update { role, here }));
            }
            Effect::Unfollow(_) => {}
            Effect::AskRoles(_) => self.soon(Event::RolesAsked),
            Effect::AskStates(..)
            | Effect::StreamVoid(_)
            | Effect::LedBy(_)
            | Effect::Meet(_)
            | Effect::MakeWay => {
                panic!("nobody reads but this node")
            }
            Effect::AskLead(_) => self.soon(Event::NobodyLeads),
            Effect::Cancel(node, index) => {
                self.asked.remove(&(node, index));
                self.waiting.retain(|step| match step {
                    Step::Happens(Event::Arrived(source, at, ..)) => {
                        (*source, *at) != (Source::Peer(node), index)
                    }
                    _ => true,
                });
            }
            Effect::Verified => self.outcome = Some(true),
            Effect::Failed(_) => self.outcome = Some(false),
            Effect::Search(scope) => self.search(scope),
        }
    }

    fn fetch(&mut self, node: NodeId, index: ChunkIndex, starts: &[State]) {
        assert!(!self.asked.iter().any(|(_, at)| *at == index), "a chunk is asked of one source at a time");
        self.assert_is_lost(index);
        self.asked.insert((node, index));
        assert!(self.asked.iter().filter(|(n, _)| *n == node).count() <= PIPELINE);
        assert!(self.asked.len() as u64 * CHUNK as u64 <= IN_FLIGHT);
        let peer = self.peers.get_mut(&node).unwrap();
        peer.served += 1;
        match peer.manner {
            Manner::Vanishing(after) if peer.served > after => {
                // As when a connection breaks: each request under way fails for itself.
                self.soon(Event::PeerFailed(node, "silent".into()));
                return self.soon(Event::PeerFailed(node, "silent".into()));
            }
            Manner::Busy if peer.served.is_multiple_of(3) => {
                return self.soon(Event::Busy(node, index));
            }
            _ => {}
        }
        let bytes = cut(&peer.bytes, self.map, index);
        let links = starts.iter().map(|from| link(&self.map, index, *from, &bytes).unwrap()).collect();
        self.arriving.insert((Source::Peer(node), index), bytes);
        self.soon(Event::Arrived(Source::Peer(node), index, links, Duration::from_millis(1)));
    }

    fn read_origin(&mut self, from: ChunkIndex, state: State, to: ChunkIndex) {
        assert!(!self.limited, "nothing is read while a limit says no");
        let mut bytes = self.truth.clone();
        match self.origin {
            Origin::None => panic!("there is no origin to read"),
            Origin::Unreachable => {
                self.origin_queue = vec![Event::OriginEnded(Some("unreachable".into()))];
                return;
            }
            Origin::Wrong(at) => {
                let at = (at as usize * CHUNK).min(bytes.len() - 1);
                bytes[at] ^= 1;
            }
            Origin::Honest | Origin::Breaking(_) => {}
        }
        self.origin_queue.clear();
        let mut state = state;
        for number in from.get()..=to.get() {
            let index = self.map.index(number).unwrap();
            self.assert_is_lost(index);
            if let Origin::Breaking(at) = self.origin
                && number >= at
            {
                self.origin_queue.push(Event::OriginEnded(Some("broke".into())));
                return;
            }
            let piece = cut(&bytes, self.map, index);
            let found = link(&self.map, index, state, &piece).unwrap();
            self.arriving.insert((Source::Origin, index), piece);
            self.origin_queue.push(Event::Arrived(Source::Origin, index, vec![found], Duration::ZERO));
            if let End::State(next) = found.to {
                state = next;
            }
        }
        self.origin_queue.push(Event::OriginEnded(None));
    }

    /// Whether all can be had of somebody honest.
    fn has_honest_source(&self) -> bool {
        let holds = |peer: &Peer| peer.honest && peer.manner.lacks().is_none();
        matches!(self.origin, Origin::Honest) || self.peers.values().any(holds)
    }

    fn assert_nobody_is_wronged(&self) {
        // This node may go by what a holder has made up and signed: whoever has signed nothing and gives true chunks is left then.
        let is_misled = self.peers.values().any(|peer| matches!(peer.manner, Manner::Inventing(..)));
        for (node, peer) in &self.peers {
            let blameless = peer.honest || matches!(peer.manner, Manner::Empty | Manner::Vanishing(_));
            let blamed = match peer.manner.lacks() {
                Some(_) if is_misled => &self.banned,
                _ => &self.blamed,
            };
            assert!(!(blameless && blamed.contains(node)), "{:?} was blamed", peer.manner);
        }
    }

    /// Lets things happen in an order that `random` picks, until the transfer is over.
    fn run(&mut self, mut random: u64) -> bool {
        for _ in 0..20_000 {
            if let Some(outcome) = self.outcome {
                return outcome;
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if self.limits > 0 && !self.limited && (random >> 40).is_multiple_of(7) {
                (self.limits, self.limited) = (self.limits - 1, true);
                self.happens(Event::Limited(true));
                continue;
            }
            let choices = self.waiting.len() + usize::from(!self.origin_queue.is_empty());
            if self.limited && choices == 0 && self.idle >= 30 {
                (self.limited, self.idle) = (false, 0);
                self.happens(Event::Limited(false));
                continue;
            }
            if choices == 0 {
                // Nothing is under way: time goes by.
                self.idle += 1;
                assert!(self.idle < 50, "the transfer waits for nothing: {:?}", self.planner);
                self.happens(Event::Tick);
                continue;
            }
            self.idle = 0;
            let mut pick = (random >> 33) as usize % choices;
            // A search is over only when every offer has come.
            if let Some(Step::Happens(Event::Searched(_))) = self.waiting.get(pick) {
                let offer = |step: &Step| matches!(step, Step::Happens(Event::Offered(..) | Event::Met(..)));
                pick = self.waiting.iter().position(offer).unwrap_or(pick);
            }
            if pick == self.waiting.len() {
                let event = self.origin_queue.remove(0);
                self.happens(event);
                continue;
            }
            match self.waiting.swap_remove(pick) {
                Step::Happens(event) => self.happens(event),
                Step::Write(source, index, link, bytes) => {
                    let start = self.map.offset(index) as usize;
                    self.disk[start..start + bytes.len()].copy_from_slice(&bytes);
                    self.happens(Event::Kept(source, index, link));
                }
            }
        }
        panic!("the transfer does not come to an end");
    }
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        Just(Manner::Honest),
        (0..9u32).prop_map(Manner::Rotten),
        (1..9u32, 0..3u64).prop_map(|(fork, seed)| Manner::Inventing(fork, seed)),
        Just(Manner::Empty),
        (0..4u32).prop_map(Manner::Vanishing),
        Just(Manner::Busy),
        Just(Manner::Coy),
        (0..9u32).prop_map(Manner::Following),
        (0..9u32).prop_map(Manner::Pretending),
    ]
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        Just(Origin::None),
        Just(Origin::Honest),
        (0..9u32).prop_map(Origin::Wrong),
        Just(Origin::Unreachable),
        (0..9u32).prop_map(Origin::Breaking),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3 * ProptestConfig::default().cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_transfer_ends_right_while_anybody_honest_is_there(
        chunks in 1..9usize, tail in 1..CHUNK, seed: u64, random: u64,
        manners in prop::collection::vec(manner(), 0..6), far in 0..6usize, origin in origin(),
    ) {
        let mut world = World::spread((chunks - 1) * CHUNK + tail, seed, (&manners, far), origin);
        let done = world.run(random);

        prop_assert!(done || !world.has_honest_source());
        if done {
            prop_assert!(world.disk == world.truth, "the bytes on disk are those of the digest");
        }
        world.assert_nobody_is_wronged();
    }

    /// Only what is lost comes again, and nobody can have this node believe anything else of a blob that it had.
    #[test]
    fn a_blob_that_was_damaged_heals_by_its_damaged_chunks_alone(
        chunks in 2..9usize, tail in 1..CHUNK, seed: u64, random: u64,
        lost in prop::collection::btree_set(0..9u32, 1..4),
        manners in prop::collection::vec(manner(), 0..5), origin in origin(),
    ) {
        let lost: BTreeSet<u32> = lost.into_iter().map(|number| number % chunks as u32).collect();
        let mut world = World::new((chunks - 1) * CHUNK + tail, seed, &manners, origin).damaged(&lost);
        let done = world.run(random);

        prop_assert!(done || !world.has_honest_source());
        prop_assert!(!done || world.disk == world.truth, "the bytes on disk are those of the digest");
        world.assert_nobody_is_wronged();
    }

    /// What is here stays and nobody is given up while a limit says no, however often and whenever that is; nothing is read
    /// meanwhile.
    #[test]
    fn a_transfer_outlives_limits_and_goes_on_afterwards(
        chunks in 1..9usize, tail in 1..CHUNK, seed: u64, random: u64, limits in 1..4u32,
        manners in prop::collection::vec(manner(), 0..4), far in 0..4usize,
    ) {
        let mut world = World::spread((chunks - 1) * CHUNK + tail, seed, (&manners, far), Origin::Honest);
        world.limits = limits;
        prop_assert!(world.run(random));
        prop_assert!(world.disk == world.truth, "the bytes on disk are those of the digest");
    }
}

#[test]
fn what_an_origin_gives_right_of_a_damaged_blob_is_kept_though_a_chunk_before_it_is_wrong() {
    let mut world = World::new(8 * CHUNK, 5, &[], Origin::Wrong(1)).damaged(&BTreeSet::from([1, 5]));
    assert!(!world.run(7), "nobody has the first of them");
    assert_eq!(world.disk[5 * CHUNK..], world.truth[5 * CHUNK..]);
}

#[test]
fn an_origin_is_not_called_wrong_for_what_comes_of_states_that_somebody_at_another_site_has_made_up() {
    for random in 0..1000 {
        let manners = [Manner::Following(3), Manner::Inventing(3, 0)];
        let mut world = World::spread(3 * CHUNK + 1, 0, (&manners, 1), Origin::Honest);
        assert!(world.run(random) && world.disk == world.truth);
    }
}

#[test]
fn two_at_another_site_who_contradict_each_other_keep_nobody_from_what_a_third_decides() {
    for random in (0..1000).chain([1747262833666249646]) {
        let manners = [Manner::Inventing(1, 2), Manner::Inventing(1, 0), Manner::Vanishing(0)];
        let mut world = World::spread(CHUNK + 1, 0, (&manners, 2), Origin::Honest);
        world.limits = 2;
        assert!(world.run(random) && world.disk == world.truth);
    }
}
