//! Whatever sources do and in whatever order things happen, a transfer ends with the right bytes while any honest
//! source is there, with a failure where none is, and nobody honest is blamed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use wherry_node::swarm::LinkClass;
use wherry_node::transfer::planner::{DropReason, Effect, Event, IN_FLIGHT, PIPELINE, Planner, Source};
use wherry_proto::{
    Algorithm, ChainBuilder, ChunkIndex, ChunkMap, Digest, End, Link, List, NodeId, Role, Run, SecretKey,
    State, StateChain, Update, link,
};

const CHUNK: usize = 32 << 10;

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
    blamed: BTreeSet<NodeId>,
    outcome: Option<bool>,
    idle: u32,
    // How often a limit is yet to come, and whether one holds.
    limits: u32,
    limited: bool,
    // The chunks that this node has lost of a blob that it had verified, if it had: nothing else may be asked for.
    lost: Option<BTreeSet<u32>>,
}

fn blob(size: usize, seed: u64) -> Vec<u8> {
    (0..size).map(|i| (i as u64 + 7).wrapping_mul(seed | 1).to_le_bytes()[2]).collect()
}

fn true_chain(bytes: &[u8]) -> StateChain {
    let mut builder = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(bytes.len() as u64).unwrap());
    builder.update(bytes).unwrap();
    builder.finish().unwrap()
}

fn invent(truth: &[u8], chain: &StateChain, fork: u32, seed: u64) -> (StateChain, Vec<u8>) {
    let fork = fork.min(chain.map().count() - 1) as usize;
    let mut bytes = truth.to_vec();
    let lies = blob(fork * CHUNK, seed ^ 0x9e37_79b9);
    bytes[..lies.len()].copy_from_slice(&lies);
    let mut states = chain.to_bytes();
    let mut state = State::initial(Algorithm::Sha256);
    for border in 0..fork {
        state = state.compress(&bytes[border * CHUNK..(border + 1) * CHUNK]).0;
        states[border * 32..(border + 1) * 32].copy_from_slice(&state.to_bytes());
    }
    (StateChain::from_bytes(chain.digest(), chain.map(), &states).unwrap(), bytes)
}

fn cut(bytes: &[u8], map: ChunkMap, index: ChunkIndex) -> Vec<u8> {
    let start = map.offset(index) as usize;
    bytes[start..start + map.len(index) as usize].to_vec()
}

impl World {
    fn new(size: usize, seed: u64, manners: &[Manner], origin: Origin) -> Self {
        let truth = blob(size, seed);
        let chain = true_chain(&truth);
        let map = chain.map();
        let mut peers = BTreeMap::new();
        for (number, manner) in manners.iter().enumerate() {
            let id = SecretKey::from_seed([number as u8 + 1; 32]).node();
            let mut bytes = truth.clone();
            let mut claimed = chain.clone();
            let mut honest = matches!(manner, Manner::Honest | Manner::Busy);
            match manner {
                Manner::Rotten(at) => {
                    let at = (*at % map.count()) as usize * CHUNK;
                    match bytes.get_mut(at) {
                        Some(byte) => *byte ^= 1,
                        None => honest = true,
                    }
                }
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
            outcome: None,
            idle: 0,
            limits: 0,
            limited: false,
            lost: None,
            truth,
        };
        world.search();
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

    fn search(&mut self) {
        let nodes: Vec<_> = self.peers.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.soon(Event::Offered(node, LinkClass::Lan)));
        self.soon(Event::SearchedSite);
        self.soon(Event::SearchedNetwork);
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
            Effect::AskChain(node) => {
                let peer = &self.peers[&node];
                let chain = peer.chain.clone();
                match peer.manner {
                    Manner::Empty => self.soon(Event::PeerFailed(node, "holds nothing".into())),
                    _ => self.soon(Event::Chain(node, chain)),
                }
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
            }
            Effect::OriginWrong(digest) => {
                assert!(matches!(self.origin, Origin::Wrong(_)));
                assert_ne!(digest, Digest::sha256(&self.truth));
            }
            Effect::OriginContradicts(_) | Effect::AttemptFailed | Effect::Lead(_) => {}
            Effect::Follow(node) => {
                let role = match self.peers[&node].manner {
                    Manner::Empty => Role::Gone,
                    _ => Role::Held,
                };
                self.soon(Event::Updated(node, Update { role, here: List::first_of([]) }));
            }
            Effect::Unfollow(_) => {}
            Effect::AskRoles(_) => self.soon(Event::RolesAsked),
            Effect::AskStates(..) | Effect::StreamVoid(_) | Effect::LedBy(_) => {
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
            Effect::Search => self.search(),
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
            if let Some(Step::Happens(Event::SearchedSite | Event::SearchedNetwork)) = self.waiting.get(pick)
            {
                let offer = |step: &Step| matches!(step, Step::Happens(Event::Offered(..)));
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
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_transfer_ends_right_while_anybody_honest_is_there(
        chunks in 1..9usize, tail in 1..CHUNK, seed: u64, random: u64,
        manners in prop::collection::vec(manner(), 0..6), origin in origin(),
    ) {
        let mut world = World::new((chunks - 1) * CHUNK + tail, seed, &manners, origin);
        let done = world.run(random);

        let honest_peer = world.peers.values().any(|peer| peer.honest);
        if honest_peer || matches!(origin, Origin::Honest) {
            prop_assert!(done);
        }
        if done {
            prop_assert!(world.disk == world.truth, "the bytes on disk are those of the digest");
        }
        for (node, peer) in &world.peers {
            let blameless = peer.honest || matches!(peer.manner, Manner::Empty | Manner::Vanishing(_));
            prop_assert!(!(blameless && world.blamed.contains(node)), "{:?} was blamed", peer.manner);
        }
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

        let honest_peer = world.peers.values().any(|peer| peer.honest);
        if honest_peer || matches!(origin, Origin::Honest) {
            prop_assert!(done);
        }
        prop_assert!(!done || world.disk == world.truth, "the bytes on disk are those of the digest");
        for (node, peer) in &world.peers {
            let blameless = peer.honest || matches!(peer.manner, Manner::Empty | Manner::Vanishing(_));
            prop_assert!(!(blameless && world.blamed.contains(node)), "{:?} was blamed", peer.manner);
        }
    }

    /// What is here stays and nobody is given up while a limit says no, however often and whenever that is; nothing is read
    /// meanwhile.
    #[test]
    fn a_transfer_outlives_limits_and_goes_on_afterwards(
        chunks in 1..9usize, tail in 1..CHUNK, seed: u64, random: u64, limits in 1..4u32,
        manners in prop::collection::vec(manner(), 0..4),
    ) {
        let mut world = World::new((chunks - 1) * CHUNK + tail, seed, &manners, Origin::Honest);
        world.limits = limits;
        prop_assert!(world.run(random));
        prop_assert!(world.disk == world.truth, "the bytes on disk are those of the digest");
    }
}

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
        Event::SearchedSite,
    ]);
    let mut asked = BTreeSet::new();
    while let Some(event) = events.pop_front() {
        for effect in planner.apply(event) {
            match effect {
                Effect::Follow(node) => {
                    let update = Update { role: Role::Held, here: List::first_of([]) };
                    events.push_back(Event::Updated(node, update));
                }
                Effect::AskChain(node) => events.push_back(Event::Chain(node, chains[&node].clone())),
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
    let role = Role::Following { stream: None, known: 0, may_lead: false };
    let runs = [Run { from: 0, len: 5 }, Run { from: 6, len: 2 }];
    let update = Update { role, here: List::first_of(runs) };
    planner.apply(Event::Met(other, LinkClass::Lan, None));
    planner.apply(Event::SearchedSite);
    let effects = planner.apply(Event::Updated(other, update));
    let lost = map.index(2).unwrap();
    assert_eq!(effects, [Effect::Fetch(other, lost, vec![chain.from(lost)])]);
    let (source, link) = (Source::Peer(other), chain.link(lost));
    let effects = planner.apply(Event::Arrived(source, lost, vec![link], Duration::from_millis(1)));
    assert_eq!(effects, [Effect::Keep(source, lost, link)]);
    assert_eq!(planner.apply(Event::Kept(source, lost, link)), [Effect::Verified]);
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
    planner.apply(Event::Met(leader, LinkClass::Lan, None));
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

#[test]
fn a_holder_at_another_site_is_not_asked_for_its_chain_while_a_limit_says_no() {
    let chain = Arc::new(true_chain(&blob(8 * CHUNK, 5)));
    let [me, far] = [99, 1].map(|seed| SecretKey::from_seed([seed; 32]).node());
    let mut planner = Planner::new(me, chain.digest(), chain.map(), &[], 1);
    planner.apply(Event::Limited(true));
    let mut effects = planner.apply(Event::Offered(far, LinkClass::Wan));
    effects.extend(planner.apply(Event::SearchedSite));
    effects.extend(planner.apply(Event::SearchedNetwork));
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
