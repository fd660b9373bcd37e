//! Whatever liars claim and serve, an honest holder decides, and nobody honest is blamed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use wherry_proto::{
    Algorithm, ChainBuilder, ChunkIndex, ChunkMap, Claimed, Digest, Ledger, Link, NodeId, SecretKey, State,
    StateChain, link,
};

const CHUNK: usize = 32 << 10;

fn node(number: u8) -> NodeId {
    SecretKey::from_seed([number; 32]).node()
}

fn blob(size: usize, seed: u64) -> Vec<u8> {
    (0..size).map(|i| (i as u64).wrapping_mul(seed | 1).to_le_bytes()[3]).collect()
}

/// Somebody who claims to hold a blob, and what it serves.
#[derive(Clone, Debug)]
struct Source {
    id: NodeId,
    honest: bool,
    chain: Arc<StateChain>,
    bytes: Vec<u8>,
}

impl Source {
    fn honest(number: u8, bytes: &[u8]) -> Self {
        let mut builder = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(bytes.len() as u64).unwrap());
        builder.update(bytes).unwrap();
        let chain = Arc::new(builder.finish().unwrap());
        Self { id: node(number), honest: true, chain, bytes: bytes.to_vec() }
    }

    /// Invents all chunks before border `fork`, with states that link to them, and keeps the true states behind
    /// it: only the chunk at the fork cannot link.
    fn inventing(number: u8, truth: &Self, fork: u32, seed: u64) -> Self {
        let map = truth.chain.map();
        let mut bytes = truth.bytes.clone();
        let invented = blob(fork as usize * CHUNK, seed ^ 0x5bd1_e995);
        bytes[..invented.len()].copy_from_slice(&invented);
        let mut states = truth.chain.to_bytes();
        let mut state = State::initial(Algorithm::Sha256);
        for border in 0..fork as usize {
            state = state.compress(&bytes[border * CHUNK..(border + 1) * CHUNK]).0;
            states[border * 32..(border + 1) * 32].copy_from_slice(&state.to_bytes());
        }
        let chain = StateChain::from_bytes(truth.chain.digest(), map, &states).unwrap();
        Self { id: node(number), honest: false, chain: Arc::new(chain), bytes }
    }

    fn serve(&self, index: ChunkIndex) -> &[u8] {
        let map = self.chain.map();
        let start = map.offset(index) as usize;
        &self.bytes[start..start + map.len(index) as usize]
    }
}

struct Run {
    ledger: Ledger,
    refuted: BTreeSet<NodeId>,
    dropped: BTreeSet<NodeId>,
}

impl Run {
    fn new(digest: Digest, map: ChunkMap) -> Self {
        Self { ledger: Ledger::new(digest, map), refuted: BTreeSet::new(), dropped: BTreeSet::new() }
    }

    fn refute(&mut self, nodes: Vec<NodeId>) {
        for node in nodes {
            self.ledger.drop_signer(node);
            self.refuted.insert(node);
        }
    }

    /// Asks a source for a chunk, as a transfer would; whoever serves what links to no claim is dropped.
    fn fetch(&mut self, source: &Source, index: ChunkIndex) {
        let map = self.ledger.map();
        for Link { from, to } in self.ledger.candidates(index) {
            let found = link(&map, index, from, source.serve(index)).unwrap();
            if found.to == to {
                let refuted = self.ledger.record(index, found);
                self.refute(refuted);
                return;
            }
        }
        self.dropped.insert(source.id);
        self.ledger.drop_signer(source.id);
    }

    fn is_out(&self, source: &Source) -> bool {
        self.refuted.contains(&source.id) || self.dropped.contains(&source.id)
    }

    /// Fetches until all is verified or nobody is left. Disputes go first; else any source serves any chunk.
    fn finish(&mut self, sources: &[Source], mut random: u64) {
        for _ in 0..10_000 {
            let left: Vec<&Source> = sources.iter().filter(|s| !self.is_out(s)).collect();
            if left.is_empty() || self.ledger.is_verified() {
                return;
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pick = |n: usize| (random >> 33) as usize % n;
            if !self.ledger.has_signer() {
                self.ledger.forget_orphans();
            }
            if let Some((index, sides)) = self.ledger.dispute() {
                let asked = sides[pick(sides.len())];
                let source = left.iter().find(|s| s.id == asked).unwrap();
                self.fetch(source, index);
                continue;
            }
            let missing: Vec<ChunkIndex> =
                self.ledger.map().iter().filter(|i| !self.ledger.linked().contains(*i)).collect();
            self.fetch(left[pick(left.len())], missing[pick(missing.len())]);
        }
        panic!("the transfer does not come to an end");
    }
}

/// Length, seed, (fork, seed, copies) of each liar, place of the honest holder if there is one, seed of the order.
type Case = (usize, u64, Vec<(u32, u64, usize)>, Option<usize>, u64);

fn case() -> impl Strategy<Value = Case> {
    (2..9usize, 0..CHUNK).prop_flat_map(|(chunks, tail)| {
        let liar = (1..chunks as u32, any::<u64>(), 1..3usize);
        let size = chunks * CHUNK + tail;
        (
            Just(size),
            any::<u64>(),
            prop::collection::vec(liar, 1..4),
            prop::option::of(0..8usize),
            any::<u64>(),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.div_ceil(2)))]

    /// Each liar may have accomplices who sign and serve the very same invention.
    #[test]
    fn one_honest_holder_beats_any_number_of_liars(
        (size, seed, liars, honest_at, random) in case()
    ) {
        let truth = Source::honest(200, &blob(size, seed));
        let (digest, map) = (truth.chain.digest(), truth.chain.map());
        let mut sources = Vec::new();
        for (fork, lie, copies) in liars {
            for _ in 0..copies {
                sources.push(Source::inventing(sources.len() as u8 + 1, &truth, fork, lie));
            }
        }
        if let Some(at) = honest_at {
            sources.insert(at.min(sources.len()), truth.clone());
        }
        let mut run = Run::new(digest, map);
        for source in &sources {
            prop_assert_ne!(run.ledger.claim(source.id, source.chain.clone()), Claimed::Ignored);
        }
        run.finish(&sources, random);

        prop_assert!(!run.refuted.contains(&truth.id));
        prop_assert!(!run.dropped.contains(&truth.id));
        if honest_at.is_some() {
            prop_assert!(run.ledger.is_verified());
            let (chain, late) = run.ledger.settle().unwrap();
            prop_assert_eq!(&chain, truth.chain.as_ref());
            prop_assert!(late.is_empty());
            for liar in sources.iter().filter(|s| !s.honest && *s.chain != *truth.chain) {
                prop_assert!(run.refuted.contains(&liar.id));
            }
        } else {
            prop_assert!(!run.ledger.is_verified());
            prop_assert!(run.ledger.settle().is_none());
        }
    }

    #[test]
    fn without_an_honest_holder_the_end_of_the_blob_refutes_an_invented_chain(
        chunks in 2..9u32, seed: u64, lie: u64, fork in 0.0..1.0f64,
    ) {
        let truth = Source::honest(200, &blob(chunks as usize * CHUNK, seed));
        let fork = 1 + ((chunks - 1) as f64 * fork) as u32;
        let liar = Source::inventing(1, &truth, fork.min(chunks - 1), lie);
        let map = truth.chain.map();
        let mut ledger = Ledger::new(truth.chain.digest(), map);
        // An origin is read in order, and a claim that disagrees waits for the end.
        ledger.claim(liar.id, liar.chain.clone());
        let mut state = State::initial(Algorithm::Sha256);
        let mut refuted = Vec::new();
        for index in map.iter() {
            let found = link(&map, index, state, truth.serve(index)).unwrap();
            refuted.extend(ledger.record(index, found));
            if let wherry_proto::End::State(next) = found.to {
                state = next;
            }
        }
        prop_assert!(ledger.is_verified());
        refuted.extend(ledger.settle().unwrap().1);
        prop_assert_eq!(refuted.contains(&liar.id), liar.chain != truth.chain);
    }

    #[test]
    fn a_claim_that_comes_late_is_held_against_what_is_proven(seed: u64, lie: u64, fork in 1..4u32) {
        let truth = Source::honest(200, &blob(4 * CHUNK + 9, seed));
        let liar = Source::inventing(1, &truth, fork, lie);
        prop_assume!(liar.chain != truth.chain);
        let map = truth.chain.map();
        let mut run = Run::new(truth.chain.digest(), map);
        run.ledger.claim(truth.id, truth.chain.clone());
        for index in map.iter().rev() {
            run.fetch(&truth, index);
        }
        prop_assert_eq!(run.ledger.claim(liar.id, liar.chain.clone()), Claimed::Refuted);
        prop_assert_eq!(run.ledger.claim(truth.id, truth.chain.clone()), Claimed::Agrees);
    }

    #[test]
    fn what_is_linked_is_the_same_however_the_chunks_came(seed: u64, order in prop::collection::vec(0..6u32, 0..30)) {
        let truth = Source::honest(200, &blob(5 * CHUNK + 9, seed));
        let map = truth.chain.map();
        for with_chain in [false, true] {
            let mut ledger = Ledger::new(truth.chain.digest(), map);
            if with_chain {
                ledger.claim(truth.id, truth.chain.clone());
            }
            let mut here = BTreeSet::new();
            for number in &order {
                let index = map.index(*number).unwrap();
                ledger.record(index, truth.chain.link(index));
                here.insert(*number);
                let front = (0..6).find(|n| !here.contains(n)).unwrap_or(6);
                let back = (0..6).rev().find(|n| !here.contains(n)).map_or(0, |n| n + 1);
                let expected: Vec<u32> = here
                    .iter()
                    .copied()
                    .filter(|n| with_chain || *n < front || *n >= back)
                    .collect();
                prop_assert_eq!(ledger.linked().iter().map(|i| i.get()).collect::<Vec<_>>(), expected);
                prop_assert_eq!(ledger.front(), front);
                prop_assert_eq!(ledger.is_verified(), here.len() == 6);
            }
        }
    }
}

#[test]
fn a_chain_that_somebody_can_serve_goes_before_those_that_nobody_can() {
    let truth = Source::honest(200, &blob(4 * CHUNK + 9, 5));
    let liar = Source::inventing(1, &truth, 3, 8);
    let mut ledger = Ledger::new(truth.chain.digest(), truth.chain.map());
    for source in [&liar, &truth] {
        ledger.claim(source.id, source.chain.clone());
        ledger.drop_signer(source.id);
    }
    ledger.claim(node(2), truth.chain.clone());
    assert_eq!(ledger.chain(), Some(&truth.chain));
    assert_eq!(ledger.dispute().map(|(_, sides)| sides), Some(vec![node(2)]));
}

#[test]
fn the_chain_of_a_blob_that_was_verified_before_yields_to_nothing() {
    let truth = Source::honest(200, &blob(5 * CHUNK + 9, 5));
    let liar = Source::inventing(1, &truth, 3, 8);
    let map = truth.chain.map();
    let mut ledger = Ledger::new(truth.chain.digest(), map);
    let numbers = |ledger: &Ledger| ledger.linked().iter().map(|index| index.get()).collect::<Vec<_>>();
    // Two chunks are lost, and what is here beside them connects to neither end.
    for number in [0, 2, 4, 5] {
        let index = map.index(number).unwrap();
        ledger.record(index, truth.chain.link(index));
    }
    let wrong = map.index(1).unwrap();
    ledger.record(wrong, liar.chain.link(wrong));
    ledger.trust(truth.chain.clone());
    assert!(ledger.is_certain() && ledger.has_chain() && ledger.has_signer());
    assert_eq!(numbers(&ledger), [0, 2, 4, 5]);
    assert_eq!(ledger.claim(liar.id, liar.chain.clone()), Claimed::Refuted);
    assert_eq!(ledger.claim(truth.id, truth.chain.clone()), Claimed::Agrees);
    assert_eq!(ledger.dispute(), None);
    ledger.drop_signer(truth.id);
    ledger.forget_orphans();
    ledger.void();
    assert_eq!(ledger.record(wrong, liar.chain.link(wrong)), []);
    assert_eq!(numbers(&ledger), [0, 2, 4, 5]);
    for number in [1, 3] {
        let index = map.index(number).unwrap();
        assert_eq!(ledger.expected(index), Some(truth.chain.link(index)));
        ledger.record(index, truth.chain.link(index));
    }
    assert!(ledger.is_verified());
    assert_eq!(ledger.settle().unwrap().0, *truth.chain);
}

#[test]
fn a_chain_beyond_doubt_leaves_no_other_to_dispute_it() {
    let honest = Source::honest(1, &blob(8 * CHUNK, 3));
    let liar = Source::inventing(2, &honest, 4, 9);
    let map = honest.chain.map();
    for claims in [[&honest, &liar], [&liar, &honest]] {
        let mut ledger = Ledger::new(honest.chain.digest(), map);
        for source in claims {
            ledger.claim(source.id, source.chain.clone());
        }
        assert!(ledger.dispute().is_some());
        ledger.trust(honest.chain.clone());
        assert_eq!(ledger.dispute(), None);
        assert!(map.iter().all(|index| ledger.candidates(index) == [honest.chain.link(index)]));
    }
}
