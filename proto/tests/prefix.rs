//! The states of a blob that is read in order, and what a leader signs of them.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test fails by panicking")]

use proptest::prelude::*;
use wherry_proto::*;

const CHUNK: u64 = 32 << 10;

fn leader() -> SecretKey {
    SecretKey::from_seed([2; 32])
}

fn network() -> NetworkId {
    SecretKey::from_seed([1; 32]).network()
}

fn blob(chunks: u64) -> Vec<u8> {
    (0..chunks * CHUNK - 5).map(|n| (n % 251 + n / CHUNK) as u8).collect()
}

fn chain(algorithm: Algorithm, chunks: u64) -> StateChain {
    let bytes = blob(chunks);
    let mut builder = ChainBuilder::new(algorithm, ChunkMap::new(bytes.len() as u64).unwrap());
    builder.update(&bytes).unwrap();
    builder.finish().unwrap()
}

/// The first states of a chain.
fn prefix(chain: &StateChain, known: u32) -> StatePrefix {
    let mut prefix = StatePrefix::new(chain.digest().algorithm(), chain.map());
    for index in chain.map().iter().skip(1).take(known as usize) {
        assert!(prefix.push(chain.from(index)));
    }
    prefix
}

fn sign(chain: &StateChain, attempt: u64, prefix: &StatePrefix) -> StreamClaim {
    StreamClaim::sign(&leader(), &network(), chain.digest(), attempt, prefix)
}

fn algorithm() -> impl Strategy<Value = Algorithm> {
    prop::sample::select(vec![Algorithm::Sha256, Algorithm::Sha512])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.div_ceil(4)))]

    #[test]
    fn any_split_of_the_states_opens_and_links_as_the_chain_does(
        algorithm in algorithm(), chunks in 1..9u64, known in 0..9u32, before in 0..9u32,
    ) {
        let chain = chain(algorithm, chunks);
        let whole = prefix(&chain, known.min(chunks as u32 - 1));
        let before = prefix(&chain, before.min(whole.known()));
        let raw = whole.states_from(before.known());
        let opened = sign(&chain, 7, &whole).open(&network(), &before, &raw).unwrap();
        prop_assert_eq!(&opened, &whole);
        for index in chain.map().iter() {
            let known_to = index.get() < opened.known() || index == chain.map().last();
            let link = (index.get() <= opened.known() && known_to).then(|| chain.link(index));
            prop_assert_eq!(opened.link(chain.digest(), index), link);
            let at = (index.get() <= opened.known()).then(|| chain.from(index));
            prop_assert_eq!(opened.at(index.get()), at);
        }
        prop_assert_eq!(opened.at(u32::MAX), None);
        prop_assert!(opened.states_from(u32::MAX).is_empty());
    }

    #[test]
    fn a_flipped_bit_in_the_states_or_in_those_before_does_not_open(
        algorithm in algorithm(), known in 1..8u32, split in 0..8u32, at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let chain = chain(algorithm, 8);
        let whole = prefix(&chain, known);
        let split = split.min(known);
        let mut raw = whole.states_from(0);
        raw[at.index(known as usize * algorithm.output_len())] ^= 1 << bit;
        let (early, late) = raw.split_at(split as usize * algorithm.output_len());
        let mut before = StatePrefix::new(algorithm, chain.map());
        for state in early.chunks(algorithm.output_len()) {
            before.push(State::from_bytes(algorithm, state).unwrap());
        }
        let opened = sign(&chain, 7, &whole).open(&network(), &before, late);
        prop_assert_eq!(opened, Err(ClaimError::OtherStates));
    }

    #[test]
    fn states_of_any_length_but_the_signed_one_do_not_open(
        algorithm in algorithm(), known in 0..8u32, before in 0..8u32, len in 0..600usize,
    ) {
        let chain = chain(algorithm, 8);
        let (whole, before) = (prefix(&chain, known), prefix(&chain, before));
        let mut raw = whole.states_from(before.known());
        prop_assume!(raw.len() != len || before.known() > known);
        raw.resize(len, 0);
        prop_assert!(sign(&chain, 7, &whole).open(&network(), &before, &raw).is_err());
    }

    #[test]
    fn what_is_taken_back_leaves_the_prefix_as_if_it_had_never_come(
        algorithm in algorithm(), known in 0..8u32, back_to in 0..9u32,
    ) {
        let chain = chain(algorithm, 8);
        let mut taken_back = prefix(&chain, known);
        taken_back.truncate(back_to);
        prop_assert_eq!(taken_back, prefix(&chain, back_to.min(known)));
    }
}

#[test]
fn a_prefix_takes_no_more_states_than_the_blob_has_and_none_of_another_hash() {
    let chain = chain(Algorithm::Sha256, 3);
    let mut prefix = prefix(&chain, 1);
    assert!(!prefix.push(State::initial(Algorithm::Sha512)));
    assert_eq!(prefix.known(), 1);
    assert!(prefix.push(chain.from(chain.map().last())));
    assert!(!prefix.push(chain.from(chain.map().last())));
    assert_eq!(prefix.known(), 2);
    let sha512 = Digest::of(Algorithm::Sha512, b"");
    assert_eq!(prefix.link(sha512, chain.map().last()), None);
    let mut single = StatePrefix::new(Algorithm::Sha256, ChunkMap::new(5).unwrap());
    assert!(!single.push(State::initial(Algorithm::Sha256)));
}

#[test]
fn nothing_in_a_claim_can_be_changed() {
    let chain = chain(Algorithm::Sha256, 8);
    let (none, whole) = (prefix(&chain, 0), prefix(&chain, 5));
    let (claim, raw) = (sign(&chain, 7, &whole), whole.states_from(0));
    let changes: [fn(&mut StreamClaim); 6] = [
        |c| c.signer = SecretKey::from_seed([9; 32]).node(),
        |c| c.digest = Digest::sha256(b"other"),
        |c| c.size += 1,
        |c| c.attempt += 1,
        |c| c.known -= 1,
        |c| c.states = Digest::sha256(b""),
    ];
    for change in changes {
        let mut changed = claim.clone();
        change(&mut changed);
        assert!(
            matches!(changed.open(&network(), &none, &raw), Err(ClaimError::Signature(_))),
            "{changed:?}"
        );
    }
    let elsewhere = SecretKey::from_seed([3; 32]).network();
    assert!(matches!(claim.open(&elsewhere, &none, &raw), Err(ClaimError::Signature(_))));
    // Signed as it is, but about what cannot be.
    let other_blob = StatePrefix::new(Algorithm::Sha256, ChunkMap::new(8 * CHUNK).unwrap());
    assert_eq!(claim.open(&network(), &other_blob, &raw), Err(ClaimError::OtherStates));
    let mut other_hash = claim;
    other_hash.digest = Digest::of(Algorithm::Sha512, b"");
    assert!(other_hash.open(&network(), &none, &raw).is_err());
}

#[test]
fn a_signer_that_says_two_things_of_one_reading_contradicts_itself_however_far_each_goes() {
    let (chain, other) = (chain(Algorithm::Sha256, 8), {
        let mut other = StatePrefix::new(Algorithm::Sha256, prefix(&chain(Algorithm::Sha256, 8), 0).map());
        (1..=5).for_each(|word| assert!(other.push(State::Sha256([word; 8]))));
        other
    });
    let signed_by = |key: &SecretKey, attempt, prefix: &StatePrefix| SignedStates {
        claim: StreamClaim::sign(key, &network(), chain.digest(), attempt, prefix),
        certificate: Certificate::sign(
            &SecretKey::from_seed([2; 32]),
            key.node(),
            Roles::MEMBER,
            0,
            u64::MAX,
        ),
        prefix: prefix.clone(),
    };
    let signed = |attempt, prefix: &StatePrefix| signed_by(&leader(), attempt, prefix);
    let first = signed(7, &prefix(&chain, 5));
    for lie in [&other, &{
        let mut less = other.clone();
        less.truncate(3);
        less
    }] {
        let lie = signed(7, lie);
        assert!(first.contradicts(&lie) && lie.contradicts(&first));
    }
    assert!(!first.contradicts(&first));
    // Another reading may differ, and fewer or more states say nothing by themselves.
    assert!(!first.contradicts(&signed(8, &other)));
    for known in [0, 3, 6] {
        assert!(!first.contradicts(&signed(7, &prefix(&chain, known))));
    }
    assert!(!first.contradicts(&signed_by(&SecretKey::from_seed([3; 32]), 7, &other)));
    assert_eq!(first.claim.stream(), Attempt { signer: leader().node(), number: 7 });
}

#[test]
fn a_claim_that_covers_more_than_a_blob_can_have_is_refused_before_anything_is_taken() {
    let chain = chain(Algorithm::Sha256, 8);
    let mut claim = sign(&chain, 7, &prefix(&chain, 5));
    claim.known = 8;
    assert_eq!(claim.states_len(0), Err(ClaimError::TooMany { known: 8, most: 7 }));
    claim.known = 3;
    assert_eq!(claim.states_len(4), Err(ClaimError::OtherStates));
    assert_eq!(claim.states_len(1), Ok(2 * 32));
    claim.size = u64::MAX;
    assert!(matches!(claim.states_len(1), Err(ClaimError::TooLarge(_))));
}
