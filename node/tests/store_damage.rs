//! What the store promises of blobs that rot: what is right of them stays, is never called held, and is whole again with the
//! rest.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use wherry_node::store::{Partial, Store, StoreSettings};
use wherry_proto::{Algorithm, ChunkMap, Digest, link};

fn open(dir: &Path) -> Store {
    Store::open(dir, StoreSettings::default()).unwrap()
}

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) ^ (i >> 8) as u8).collect()
}

fn put(store: &Store, algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let digest = Digest::of(algorithm, bytes);
    store.put(&digest, bytes).unwrap();
    // Nothing is still to be done with the file, so that a test may do what it likes with it.
    store.sync().unwrap();
    digest
}

fn path_of(dir: &Path, room: &str, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    dir.join(room).join(digest.algorithm().name()).join(&hex[..2]).join(hex)
}

/// Rewrites a file that is read-only.
fn tamper(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The numbers of the chunks that are missing.
fn missing(partial: &Partial) -> Vec<u32> {
    let here = partial.map().iter().zip(partial.links());
    here.filter(|(_, link)| link.is_none()).map(|(index, _)| index.get()).collect()
}

/// Writes the chunks that are missing, and makes it a blob.
fn heal(partial: &Partial, truth: &[u8]) {
    let (map, chain) = (partial.map(), partial.chain().unwrap());
    for number in missing(partial) {
        let index = map.index(number).unwrap();
        let chunk = &truth[map.offset(index) as usize..][..map.len(index) as usize];
        let found = link(&map, index, chain.from(index), chunk).unwrap();
        assert_eq!(found, chain.link(index));
        partial.write(index, chunk, found).unwrap();
    }
    partial.finish().unwrap();
}

const LEN: usize = 1_000_000;

#[test]
fn of_a_damaged_blob_all_chunks_stay_but_the_damaged_and_its_chain_is_known() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let truth = bytes(1, LEN);
        let digest = put(&store, algorithm, &truth);
        let (map, chain) = (ChunkMap::new(LEN as u64).unwrap(), store.chain(&digest).unwrap().unwrap());
        let offset = |number| map.offset(map.index(number).unwrap()) as usize;
        tamper(&path_of(dir.path(), "blobs", &digest), |bytes| {
            bytes[offset(3)] ^= 1;
            bytes[offset(20) + 77] ^= 0x80;
        });
        assert!(!store.verify(&digest).unwrap());
        assert!(!store.holds(&digest) && store.is_damaged(&digest));
        assert_eq!(store.damaged().get(&digest), Some(&(LEN as u64)));
        assert!(!path_of(dir.path(), "blobs", &digest).exists());
        // As often as it is opened, and over a restart.
        for restarts in [false, false, true] {
            if restarts {
                drop(store);
                store = open(dir.path());
            }
            let partial = store.partial(&digest, map).unwrap();
            assert_eq!(missing(&partial), [3, 20]);
            assert_eq!(partial.chain().as_deref(), Some(&chain));
            assert_eq!(store.remains(&digest), None, "it is being filled");
        }
        let lost = u64::from(map.chunk_len()) * 2;
        assert_eq!(store.partial_bytes(&digest, map), Some(LEN as u64 - lost));
        heal(&store.partial(&digest, map).unwrap(), &truth);
        assert!(store.verify(&digest).unwrap() && !store.is_damaged(&digest));
        assert_eq!(store.usage().partials, 0);
        drop(store);
        assert!(!open(dir.path()).is_damaged(&digest));
    }
}

#[test]
fn what_remains_of_a_damaged_blob_is_given_without_the_damaged_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let truth = bytes(2, LEN);
    let digest = put(&store, Algorithm::Sha256, &truth);
    assert!(store.open_remains(&digest).unwrap().is_none(), "it is held");
    tamper(&path_of(dir.path(), "blobs", &digest), |bytes| bytes[0] ^= 1);
    assert!(!store.verify(&digest).unwrap());
    assert_eq!(store.remains(&digest), Some(LEN as u64));
    let (file, here) = store.open_remains(&digest).unwrap().unwrap();
    let map = here.map();
    assert_eq!((here.len(), here.contains(map.first())), (map.count() - 1, false));
    let mut last = vec![0; map.len(map.last()) as usize];
    file.read_exact_at(&mut last, map.offset(map.last())).unwrap();
    assert_eq!(last, truth[map.offset(map.last()) as usize..]);
    // What was begun of a blob that never was verified is given to nobody.
    let begun = Digest::sha256(b"never verified");
    let partial = store.partial(&begun, map).unwrap();
    let index = map.first();
    let chunk = &truth[..map.len(index) as usize];
    let found = link(&map, index, wherry_proto::State::initial(Algorithm::Sha256), chunk).unwrap();
    partial.write(index, chunk, found).unwrap();
    drop(partial);
    assert_eq!(store.remains(&begun), None);
}

#[test]
fn a_damaged_blob_without_its_chain_or_of_one_chunk_leaves_nothing_and_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let [short, bare, cut] =
        [(3, 5_000), (4, LEN), (5, LEN)].map(|(seed, len)| put(&store, Algorithm::Sha256, &bytes(seed, len)));
    fs::remove_file(path_of(dir.path(), "chains", &bare)).unwrap();
    tamper(&path_of(dir.path(), "chains", &cut), |bytes| bytes.truncate(100));
    for digest in [&short, &bare, &cut] {
        tamper(&path_of(dir.path(), "blobs", digest), |bytes| bytes[0] ^= 1);
        assert!(!store.verify(digest).unwrap());
        assert!(store.is_damaged(digest) && store.remains(digest).is_none());
        assert!(!path_of(dir.path(), "blobs", digest).exists());
    }
    assert_eq!((store.usage().used, store.usage().partials), (0, 0));
    // Of a blob that is gone altogether nothing is left either.
    let gone = put(&store, Algorithm::Sha256, &bytes(6, LEN));
    fs::remove_file(path_of(dir.path(), "blobs", &gone)).unwrap();
    assert!(store.get(&gone).unwrap().open().is_err());
    assert!(store.is_damaged(&gone) && store.remains(&gone).is_none());
    assert_eq!(store.usage().used, 0);
    // It may come another way, and is whole then; or nobody wants it any more.
    store.put(&gone, &bytes(6, LEN)).unwrap();
    store.remove_partials(&short);
    assert!(!store.is_damaged(&gone) && !store.is_damaged(&short));
}

#[test]
fn a_blob_that_was_cut_short_keeps_its_beginning_over_a_start() {
    for is_clean in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let truth = bytes(7, LEN);
        let digest = put(&store, Algorithm::Sha256, &truth);
        drop(store);
        tamper(&path_of(dir.path(), "blobs", &digest), |bytes| bytes.truncate(LEN / 2));
        if !is_clean {
            fs::remove_file(dir.path().join("clean")).unwrap();
        }
        let store = open(dir.path());
        if is_clean {
            assert!(store.get(&digest).unwrap().open().is_err());
        }
        assert!(!store.holds(&digest) && store.is_damaged(&digest));
        let map = ChunkMap::new(LEN as u64).unwrap();
        let partial = store.partial(&digest, map).unwrap();
        let half = map.at(LEN as u64 / 2).unwrap().get();
        assert_eq!(missing(&partial), (half..map.count()).collect::<Vec<_>>());
        heal(&partial, &truth);
        assert!(store.verify(&digest).unwrap());
    }
}

#[test]
fn what_is_left_of_a_damaged_blob_keeps_the_budget_and_makes_room_like_any_partial_blob() {
    // A blob of this length with its chain and, as a partial one, the links.
    const CHARGE: u64 = (LEN as u64).next_multiple_of(4096) + 4096;
    let dir = tempfile::tempdir().unwrap();
    let budget = 2 * CHARGE;
    let store = Store::open(dir.path(), StoreSettings { budget: Some(budget) }).unwrap();
    let [old, rotten] = [8, 9].map(|seed| put(&store, Algorithm::Sha256, &bytes(seed, LEN)));
    assert_eq!(store.usage().used, budget);
    tamper(&path_of(dir.path(), "blobs", &rotten), |bytes| bytes[0] ^= 1);
    assert!(!store.verify(&rotten).unwrap());
    // Its links take a little more than there is: what was used before it goes, not what is left of it.
    assert!(store.usage().used <= budget);
    assert!(!store.holds(&old) && store.remains(&rotten).is_some());
    // While it is pinned it stays.
    store.pin("keep", &rotten).unwrap();
    let refused = store.put(&Digest::sha256(&bytes(10, LEN)), &bytes(10, LEN)).unwrap_err();
    let fits = |len| store.would_fit(&[(Digest::sha256(b"any"), len)].into()).is_ok();
    assert!(refused.is_no_space() && store.remains(&rotten).is_some() && !fits(CHARGE) && fits(CHARGE / 2));
    store.unpin("keep", &rotten).unwrap();
    // Else it makes room itself before blobs do.
    let [next, last] = [10, 11].map(|seed| put(&store, Algorithm::Sha256, &bytes(seed, LEN)));
    assert!(store.holds(&next) && store.holds(&last));
    assert!(store.remains(&rotten).is_none() && !store.is_damaged(&rotten));
    assert_eq!(store.usage().used, budget);
}
