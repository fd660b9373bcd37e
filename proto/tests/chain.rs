//! The state chain closes exactly when SHA-2 says so, and names the chunk where it does not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use proptest::prelude::*;
use wherry_proto::{
    Algorithm, ChainBuilder, ChunkMap, Digest, End, Link, OpenChain, State, StateChain, link,
};

/// Blob lengths at which padding or cutting changes, and some between.
fn sizes() -> impl Strategy<Value = u64> {
    const C: u64 = 32 << 10;
    const WIDE: u64 = 8 << 20;
    prop_oneof![
        prop::sample::select(vec![
            0,
            1,
            55,
            56,
            63,
            64,
            65,
            111,
            112,
            119,
            120,
            127,
            128,
            129,
            C - 1,
            C,
            C + 1,
            C + 55,
            C + 56,
            C + 64,
            2 * C - 1,
            2 * C,
            2 * C + 1,
            7 * C,
            7 * C + 120,
            WIDE - 1,
            WIDE,
            WIDE + 1,
            WIDE + (64 << 10),
        ]),
        0..300_000u64,
    ]
}

fn algorithm() -> impl Strategy<Value = Algorithm> {
    prop::sample::select(vec![Algorithm::Sha256, Algorithm::Sha512])
}

/// Bytes that differ from chunk to chunk, quickly.
fn blob(size: u64, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}

fn chain_of(algorithm: Algorithm, bytes: &[u8]) -> StateChain {
    let mut builder = ChainBuilder::new(algorithm, ChunkMap::new(bytes.len() as u64).unwrap());
    builder.update(bytes).unwrap();
    builder.finish().unwrap()
}

fn chunk(bytes: &[u8], map: ChunkMap, number: u32) -> &[u8] {
    let index = map.index(number).unwrap();
    let start = map.offset(index) as usize;
    &bytes[start..start + map.len(index) as usize]
}

fn links(chain: &StateChain, bytes: &[u8], number: u32) -> bool {
    let index = chain.map().index(number).unwrap();
    link(&chain.map(), index, chain.from(index), chunk(bytes, chain.map(), number)).unwrap()
        == chain.link(index)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.div_ceil(2)))]

    #[test]
    fn the_chain_of_a_blob_that_came_without_its_length_is_that_of_one_that_came_with_it(
        size in sizes(), seed: u64, algorithm in algorithm(), cut in 1..3_000_000usize,
    ) {
        let bytes = blob(size, seed);
        let mut open = OpenChain::new(algorithm);
        for piece in bytes.chunks(cut) {
            open.update(piece).unwrap();
        }
        prop_assert_eq!(open.taken(), size);
        prop_assert!(open.finish() == chain_of(algorithm, &bytes));
    }

    #[test]
    fn a_true_chain_reaches_the_digest_and_every_chunk_links_in_any_order(
        size in sizes(), seed: u64, algorithm in algorithm(), order: u64, cut in 1..70_000usize,
    ) {
        let bytes = blob(size, seed);
        let map = ChunkMap::new(size).unwrap();
        let mut builder = ChainBuilder::new(algorithm, map);
        for piece in bytes.chunks(cut) {
            builder.update(piece).unwrap();
        }
        let chain = builder.finish().unwrap();
        prop_assert_eq!(chain.digest(), Digest::of(algorithm, &bytes));

        let mut numbers: Vec<u32> = (0..map.count()).collect();
        numbers.sort_by_key(|n| (u64::from(*n) + 1).wrapping_mul(order | 1));
        let mut found: Vec<Option<Link>> = vec![None; numbers.len()];
        for number in numbers {
            prop_assert!(links(&chain, &bytes, number));
            let index = map.index(number).unwrap();
            found[number as usize] =
                Some(link(&map, index, chain.from(index), chunk(&bytes, map, number)).unwrap());
        }
        let found: Vec<Link> = found.into_iter().flatten().collect();
        prop_assert_eq!(StateChain::from_links(chain.digest(), map, &found), Some(chain.clone()));
        prop_assert_eq!(StateChain::from_bytes(chain.digest(), map, &chain.to_bytes()), Ok(chain));
    }

    #[test]
    fn a_flipped_bit_in_a_chunk_is_caught_at_that_chunk(
        size in sizes(), seed: u64, algorithm in algorithm(), at in 0.0..1.0f64, bit in 0..8u8,
    ) {
        prop_assume!(size > 0);
        let mut bytes = blob(size, seed);
        let chain = chain_of(algorithm, &bytes);
        let at = (size as f64 * at) as u64;
        bytes[at as usize] ^= 1 << bit;
        let hit = chain.map().at(at).unwrap().get();
        for number in 0..chain.map().count() {
            prop_assert_eq!(links(&chain, &bytes, number), number != hit);
        }
    }

    #[test]
    fn a_flipped_bit_in_a_state_is_caught_at_the_chunks_beside_it(
        size in 32_769..400_000u64, seed: u64, algorithm in algorithm(), at in 0.0..1.0f64, bit in 0..8u8,
    ) {
        let bytes = blob(size, seed);
        let chain = chain_of(algorithm, &bytes);
        let mut raw = chain.to_bytes();
        let at = (raw.len() as f64 * at) as usize;
        raw[at] ^= 1 << bit;
        let border = (at / algorithm.output_len()) as u32 + 1;
        let false_chain = StateChain::from_bytes(chain.digest(), chain.map(), &raw).unwrap();
        for number in 0..chain.map().count() {
            prop_assert_eq!(links(&false_chain, &bytes, number), number != border && number + 1 != border);
        }
        prop_assert_eq!(chain.last_difference(&false_chain).map(|i| i.get()), Some(border));
    }

    #[test]
    fn a_false_length_is_caught_at_the_last_chunk(
        size in sizes(), other in sizes(), seed: u64, algorithm in algorithm(),
    ) {
        prop_assume!(size != other);
        let bytes = blob(size, seed);
        let digest = chain_of(algorithm, &bytes).digest();
        let false_map = ChunkMap::new(other).unwrap();
        let last = false_map.last();
        // Whatever bytes and start state somebody offers: here the true ones, cut or filled to fit.
        let mut offered = bytes.clone();
        offered.resize(other as usize, 0);
        let start = chain_of(algorithm, &offered);
        let tail = &offered[false_map.offset(last) as usize..];
        prop_assert_ne!(link(&false_map, last, start.from(last), tail).unwrap().to, End::Digest(digest));
    }

    #[test]
    fn announced_and_real_length_must_agree(size in 1..100_000u64, seed: u64) {
        let bytes = blob(size, seed);
        let mut long = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(size - 1).unwrap());
        prop_assert!(long.update(&bytes).is_err());
        let mut short = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(size + 1).unwrap());
        short.update(&bytes).unwrap();
        prop_assert!(short.finish().is_err());
        let map = ChunkMap::new(size).unwrap();
        let short = map.len(map.first()) as usize - 1;
        prop_assert!(link(&map, map.first(), State::initial(Algorithm::Sha256), &bytes[..short]).is_err());
    }
}

#[test]
fn a_blob_that_came_without_its_length_is_cut_by_what_it_turned_out_to_be() {
    // Through every length of chunks, to borders and past them.
    let piece = blob(4 << 20, 5);
    for (mib, more) in [(64, 0), (65, 1), (256, 0), (257, 63), (513, 0), (516, 129)] {
        let (mut bytes, mut open) = (Vec::new(), OpenChain::new(Algorithm::Sha256));
        while bytes.len() < mib << 20 {
            let next = &piece[..piece.len().min((mib << 20) - bytes.len())];
            open.update(next).unwrap();
            bytes.extend_from_slice(next);
        }
        open.update(&piece[..more]).unwrap();
        bytes.extend_from_slice(&piece[..more]);
        assert!(open.finish() == chain_of(Algorithm::Sha256, &bytes), "{mib} MiB and {more} bytes");
    }
}
