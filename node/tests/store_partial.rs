//! What the store promises of blobs that are filled in any order: only a closed chain gets in, and what was
//! linked is found again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use wherry_node::store::{MAX_PARTIALS, Partial, Store, StoreError, StoreSettings};
use wherry_proto::{Algorithm, ChainBuilder, ChunkIndex, ChunkMap, Digest, State, StateChain, link};

fn open(dir: &Path) -> Store {
    Store::open(dir, StoreSettings::default()).unwrap()
}

/// A blob with all that a transfer would learn of it.
struct Blob {
    bytes: Vec<u8>,
    digest: Digest,
    map: ChunkMap,
    chain: StateChain,
}

impl Blob {
    fn new(algorithm: Algorithm, seed: u8, len: usize) -> Self {
        let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(17) ^ (i >> 9) as u8 ^ seed).collect();
        let map = ChunkMap::new(len as u64).unwrap();
        let mut builder = ChainBuilder::new(algorithm, map);
        builder.update(&bytes).unwrap();
        let chain = builder.finish().unwrap();
        Self { bytes, digest: chain.digest(), map, chain }
    }

    fn chunk(&self, index: ChunkIndex) -> &[u8] {
        &self.bytes[self.map.offset(index) as usize..][..self.map.len(index) as usize]
    }

    fn write(&self, partial: &Partial, number: u32) {
        let index = self.map.index(number).unwrap();
        partial.write(index, self.chunk(index), self.chain.link(index)).unwrap();
    }

    fn write_all(&self, partial: &Partial) {
        (0..self.map.count()).for_each(|number| self.write(partial, number));
    }

    fn file(&self, dir: &Path, suffix: &str) -> PathBuf {
        let (algorithm, hex) = (self.digest.algorithm().name(), self.digest.hex());
        dir.join("partial").join(format!("{algorithm}-{hex}-{}{suffix}", self.map.size()))
    }
}

/// The numbers of the chunks that are there.
fn there(partial: &Partial) -> Vec<u32> {
    partial.links().iter().zip(0..).filter_map(|(link, number)| link.map(|_| number)).collect()
}

const NONE: [u32; 0] = [];

#[test]
fn chunks_in_any_order_make_a_held_blob() {
    for (algorithm, len) in
        [(Algorithm::Sha256, 400_000), (Algorithm::Sha512, 400_000), (Algorithm::Sha256, 0)]
    {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let blob = Blob::new(algorithm, 1, len);
        let partial = store.partial(&blob.digest, blob.map).unwrap();
        for number in (0..blob.map.count()).rev() {
            assert!(matches!(partial.finish(), Err(StoreError::Incomplete { .. })));
            blob.write(&partial, number);
        }
        let held = partial.finish().unwrap();
        assert_eq!(held.read(1 << 30).unwrap(), blob.bytes);
        assert_eq!(store.chain(&blob.digest).unwrap().unwrap(), blob.chain);
        assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
        // A stream that was reading the partial blob reads on.
        let mut all = vec![0; len];
        partial.read_at(0, &mut all).unwrap();
        assert_eq!(all, blob.bytes);
        assert!(matches!(partial.finish(), Err(StoreError::Closed(_))));
        let first = blob.map.first();
        let late = partial.write(first, blob.chunk(first), blob.chain.link(first));
        assert!(matches!(late, Err(StoreError::Closed(_))));
        drop(partial);
        assert_eq!(store.usage().partials, 0);
        drop((store, held));
        assert!(open(dir.path()).verify(&blob.digest).unwrap());
    }
}

#[test]
fn links_that_do_not_close_get_nothing_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(Algorithm::Sha256, 1, 200_000);
    // Another blob of that length under this one's digest: every chunk links, the end does not.
    let other = Blob::new(Algorithm::Sha256, 2, 200_000);
    let partial = store.partial(&blob.digest, blob.map).unwrap();
    other.write_all(&partial);
    let last = blob.map.last();
    assert!(matches!(partial.finish(), Err(StoreError::Broken { behind, .. }) if behind == last));
    // Half of each: the chain breaks where they meet.
    (3..blob.map.count()).for_each(|number| blob.write(&partial, number));
    assert!(matches!(partial.finish(), Err(StoreError::Broken { behind, .. }) if behind.get() == 2));
    // An invented start.
    (1..3).for_each(|number| blob.write(&partial, number));
    let first = blob.map.first();
    let invented = link(&blob.map, first, State::Sha256([7; 8]), blob.chunk(first)).unwrap();
    partial.write(first, blob.chunk(first), invented).unwrap();
    assert!(matches!(partial.finish(), Err(StoreError::Broken { behind, .. }) if behind == first));
    assert!(store.get(&blob.digest).is_none());
    blob.write(&partial, 0);
    partial.finish().unwrap();
    assert!(store.verify(&blob.digest).unwrap());
}

#[test]
fn a_chunk_of_another_length_or_a_link_of_another_hash_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(Algorithm::Sha256, 1, 200_000);
    let partial = store.partial(&blob.digest, blob.map).unwrap();
    let (first, last) = (blob.map.first(), blob.map.last());
    let short = partial.write(first, &blob.chunk(first)[1..], blob.chain.link(first));
    assert!(matches!(short, Err(StoreError::WrongLength { .. })));
    let foreign = link(&blob.map, last, State::initial(Algorithm::Sha512), blob.chunk(last)).unwrap();
    assert!(matches!(partial.write(last, blob.chunk(last), foreign), Err(StoreError::ForeignLink { .. })));
    assert_eq!(there(&partial), NONE);
}

#[test]
fn a_partial_blob_goes_on_where_it_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let blob = Blob::new(Algorithm::Sha256, 3, 1_000_000);
    let store = open(dir.path());
    let partial = store.partial(&blob.digest, blob.map).unwrap();
    [0, 5, 6, 30].into_iter().for_each(|number| blob.write(&partial, number));
    drop((partial, store));
    let store = open(dir.path());
    assert_eq!(store.usage().partials, 1);
    let partial = store.partial(&blob.digest, blob.map).unwrap();
    assert_eq!(there(&partial), [0, 5, 6, 30]);
    assert_eq!(partial.links()[5], Some(blob.chain.link(blob.map.index(5).unwrap())));
    blob.write_all(&partial);
    partial.finish().unwrap();
    assert!(store.verify(&blob.digest).unwrap());
}

#[test]
fn damage_to_a_partial_blob_costs_the_damaged_chunks_only() {
    let dir = tempfile::tempdir().unwrap();
    let blob = Blob::new(Algorithm::Sha256, 4, 1_000_000);
    let store = open(dir.path());
    let reopened = || store.partial(&blob.digest, blob.map).unwrap();
    let partial = reopened();
    (0..10).for_each(|number| blob.write(&partial, number));
    drop(partial);
    let edit = |path: PathBuf| OpenOptions::new().write(true).open(path).unwrap();
    let offset = |number| blob.map.offset(blob.map.index(number).unwrap());
    // One flipped byte, and one chunk that never reached the disk.
    let data = edit(blob.file(dir.path(), ""));
    data.write_all_at(&[blob.bytes[offset(2) as usize + 9] ^ 4], offset(2) + 9).unwrap();
    data.write_all_at(&vec![0; 32 << 10], offset(7)).unwrap();
    assert_eq!(there(&reopened()), [0, 1, 3, 4, 5, 6, 8, 9]);
    // A torn tail of the links, and one flipped state.
    let links = edit(blob.file(dir.path(), ".links"));
    links.set_len(9 * 65 + 30).unwrap();
    links.write_all_at(&[0xff, 0xfe], 4 * 65 + 10).unwrap();
    assert_eq!(there(&reopened()), [0, 1, 3, 5, 6, 8]);
    // A file that was cut, links that are nonsense altogether, and no links at all.
    data.set_len(offset(3)).unwrap();
    assert_eq!(there(&reopened()), [0, 1]);
    links.write_all_at(&[1; 65 * 31], 0).unwrap();
    assert_eq!(there(&reopened()), NONE);
    let partial = reopened();
    blob.write_all(&partial);
    drop(partial);
    fs::remove_file(blob.file(dir.path(), ".links")).unwrap();
    let partial = reopened();
    assert_eq!(there(&partial), NONE);
    blob.write_all(&partial);
    partial.finish().unwrap();
    assert!(store.verify(&blob.digest).unwrap());
}

#[test]
fn one_digest_and_length_is_open_once_and_lengths_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(Algorithm::Sha256, 5, 100_000);
    let partial = store.partial(&blob.digest, blob.map).unwrap();
    blob.write(&partial, 0);
    let again = store.partial(&blob.digest, blob.map);
    assert!(matches!(again, Err(StoreError::PartialInUse { size: 100_000, .. })));
    let other = store.partial(&blob.digest, ChunkMap::new(100_001).unwrap()).unwrap();
    assert_eq!(there(&other), NONE);
    drop(partial);
    assert_eq!(there(&store.partial(&blob.digest, blob.map).unwrap()), [0]);
}

#[test]
fn a_blob_that_came_another_way_makes_its_partial_superfluous() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(Algorithm::Sha256, 7, 100_000);
    let partial = store.partial(&blob.digest, blob.map).unwrap();
    blob.write_all(&partial);
    store.put(&blob.digest, &blob.bytes).unwrap();
    partial.finish().unwrap();
    drop(partial);
    assert_eq!((store.usage().blobs, store.usage().partials), (1, 0));
    assert_eq!(store.usage().used, 26 * 4096);
}

#[test]
fn nothing_stays_of_partial_blobs_that_are_of_no_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(Algorithm::Sha256, 7, 100_000);
    let files = || fs::read_dir(dir.path().join("partial")).unwrap().count();
    let other_length = || store.partial(&blob.digest, ChunkMap::new(99_999).unwrap()).unwrap();
    // One that got no chunk.
    drop(store.partial(&blob.digest, blob.map).unwrap());
    assert_eq!((files(), store.usage().used), (0, 0));
    // Those that were left, and one that is open, when the blob comes another way.
    for number in [0, 2] {
        let partial = store.partial(&blob.digest, blob.map).unwrap();
        blob.write(&partial, number);
    }
    let open_one = other_length();
    blob.write(&open_one, 0);
    assert_eq!(files(), 4);
    store.put(&blob.digest, &blob.bytes).unwrap();
    assert_eq!(files(), 2);
    drop(open_one);
    assert_eq!((files(), store.usage().partials, store.usage().used), (0, 0, 26 * 4096));
    // One that is opened although the blob is here.
    let late = other_length();
    blob.write(&late, 1);
    drop(late);
    assert_eq!((files(), store.usage().used), (0, 26 * 4096));
    // One that a kill left before it had a chunk.
    drop(store);
    let lost = Blob::new(Algorithm::Sha256, 8, 100_000);
    fs::write(lost.file(dir.path(), ""), vec![0; 100_000]).unwrap();
    fs::write(lost.file(dir.path(), ".links"), b"").unwrap();
    assert_eq!(open(dir.path()).usage().partials, 0);
    assert_eq!(files(), 0);
}

#[test]
fn threads_that_open_and_leave_one_partial_blob_never_lose_each_others_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(Algorithm::Sha256, 9, 1000);
    let files = || fs::read_dir(dir.path().join("partial")).unwrap().count();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..300 {
                    if let Ok(partial) = store.partial(&blob.digest, blob.map) {
                        assert_eq!(files(), 2);
                        drop(partial);
                    }
                }
            });
        }
    });
    assert_eq!(files(), 0);
    let partial = store.partial(&blob.digest, blob.map).unwrap();
    blob.write_all(&partial);
    partial.finish().unwrap();
    assert_eq!(store.usage().used, 4096);
}

#[test]
fn abandoned_partial_blobs_are_bounded_and_go_before_held_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let begin = |i: usize| {
        let blob = Blob::new(Algorithm::Sha256, i as u8, 700 + i);
        let partial = store.partial(&blob.digest, blob.map).unwrap();
        blob.write(&partial, 0);
        partial
    };
    let kept = begin(0);
    for i in 1..MAX_PARTIALS + 20 {
        drop(begin(i));
    }
    assert_eq!(store.usage().partials, MAX_PARTIALS);
    let files = || fs::read_dir(dir.path().join("partial")).unwrap().count();
    assert_eq!(files(), 2 * MAX_PARTIALS);
    drop(kept);
    let held = Digest::sha256(b"held");
    store.put(&held, b"held").unwrap();
    drop(store);

    // One block for the held blob; each partial one takes one for its bytes and one for its links.
    let store = Store::open(dir.path(), StoreSettings { budget: Some(5 * 4096) }).unwrap();
    store.keep_budget();
    assert!(store.holds(&held));
    assert_eq!(store.usage().partials, 2);
    assert_eq!(files(), 4);
}

#[test]
fn too_many_open_at_once_is_an_error_that_passes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let map = ChunkMap::new(10).unwrap();
    let open_one = |i: usize| store.partial(&Digest::sha256(&i.to_le_bytes()), map);
    let mut all: Vec<_> = (0..MAX_PARTIALS).map(|i| open_one(i).unwrap()).collect();
    assert!(matches!(open_one(MAX_PARTIALS), Err(StoreError::TooManyPartials(MAX_PARTIALS))));
    all.pop();
    open_one(MAX_PARTIALS).unwrap();
}

#[test]
fn a_partial_blob_counts_with_its_full_length_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreSettings { budget: Some(1 << 20) }).unwrap();
    let half = ChunkMap::new(600_000).unwrap();
    let blob = Blob::new(Algorithm::Sha256, 1, 600_000);
    let first = store.partial(&blob.digest, half).unwrap();
    blob.write(&first, 0);
    let refused = store.partial(&Digest::sha256(b"b"), half);
    assert!(matches!(refused, Err(StoreError::NoSpace { .. })), "{refused:?}");
    drop(first);
    let _second = store.partial(&Digest::sha256(b"b"), half).unwrap();
    assert!(store.usage().used <= 1 << 20);
    assert_eq!(store.usage().partials, 1);
}

#[test]
fn threads_that_write_one_chunk_differently_leave_one_that_links() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blobs = [Blob::new(Algorithm::Sha256, 1, 100_000), Blob::new(Algorithm::Sha256, 2, 100_000)];
    let partial = store.partial(&blobs[0].digest, blobs[0].map).unwrap();
    std::thread::scope(|scope| {
        for blob in &blobs {
            let partial = &partial;
            scope.spawn(move || (0..200).for_each(|_| blob.write(partial, 0)));
        }
    });
    drop(partial);
    assert_eq!(there(&store.partial(&blobs[0].digest, blobs[0].map).unwrap()), [0]);
}

#[derive(Debug, Clone)]
enum Step {
    Write(u32, bool),
    Flip(u64),
    Tear(u64),
    Reopen,
    Restart,
    Finish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => (0..8u32, prop::bool::weighted(0.9)).prop_map(|(number, right)| Step::Write(number, right)),
        1 => (0..250_000u64).prop_map(Step::Flip),
        1 => (0..600u64).prop_map(Step::Tear),
        2 => Just(Step::Reopen),
        1 => Just(Step::Restart),
        3 => Just(Step::Finish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.div_ceil(5), ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_makes_a_wrong_blob(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let right = Blob::new(Algorithm::Sha256, 1, 250_000);
        let wrong = Blob::new(Algorithm::Sha256, 2, 250_000);
        let mut store = open(dir.path());
        let mut partial = None;
        for step in steps {
            let open_one = match partial.take() {
                Some(partial) => partial,
                None => store.partial(&right.digest, right.map).unwrap(),
            };
            // Whatever is said to link does.
            for (claimed, index) in open_one.links().into_iter().zip(right.map.iter()) {
                let Some(claimed) = claimed else { continue };
                let mut bytes = vec![0; right.map.len(index) as usize];
                open_one.read_at(right.map.offset(index), &mut bytes).unwrap();
                prop_assert_eq!(link(&right.map, index, claimed.from, &bytes).unwrap(), claimed);
            }
            match step {
                Step::Write(number, is_right) => {
                    if is_right { &right } else { &wrong }.write(&open_one, number);
                    partial = Some(open_one);
                }
                Step::Reopen => drop(open_one),
                // Damage while nobody has it open, as a power cut would leave it.
                Step::Flip(at) => {
                    drop(open_one);
                    let path = right.file(dir.path(), "");
                    // Without a chunk there is no file.
                    if let Ok(file) = OpenOptions::new().read(true).write(true).open(path) {
                        let mut byte = [0];
                        file.read_exact_at(&mut byte, at).unwrap();
                        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
                    }
                }
                Step::Tear(len) => {
                    drop(open_one);
                    let path = right.file(dir.path(), ".links");
                    if let Ok(file) = OpenOptions::new().write(true).open(path) {
                        file.set_len(len).unwrap();
                    }
                }
                Step::Restart => {
                    drop(open_one);
                    drop(store);
                    let _ = fs::remove_file(dir.path().join("clean"));
                    store = open(dir.path());
                }
                Step::Finish => {
                    if let Ok(held) = open_one.finish() {
                        prop_assert_eq!(&held.read(1 << 30).unwrap(), &right.bytes);
                        drop(held);
                        store.remove(&right.digest).unwrap();
                    }
                }
            }
            prop_assert!(store.get(&right.digest).is_none());
        }
    }
}
