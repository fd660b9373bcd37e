//! What the store promises of blobs that rot: what is right of them stays, is never called held, and is whole again with the
//! rest.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wherry_node::store::{MAX_DAMAGED, MAX_PARTIALS, Partial, Remains, Store, StoreSettings};
use wherry_proto::{Algorithm, ChunkIndex, ChunkMap, Digest, link};

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

/// One chunk of what remains.
fn read(remains: &Remains, index: ChunkIndex) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; remains.map().len(index) as usize];
    remains.read(index, &mut chunk).map(|()| chunk)
}

fn damaged(dir: &Path, seed: u8, numbers: &[u32]) -> (Store, Digest, Vec<u8>) {
    let store = open(dir);
    let truth = bytes(seed, LEN);
    let digest = put(&store, Algorithm::Sha256, &truth);
    let map = ChunkMap::new(LEN as u64).unwrap();
    tamper(&path_of(dir, "blobs", &digest), |bytes| {
        for number in numbers {
            bytes[map.offset(map.index(*number).unwrap()) as usize] ^= 1;
        }
    });
    assert!(!store.verify(&digest).unwrap());
    (store, digest, truth)
}

#[test]
fn what_remains_of_a_damaged_blob_is_given_chunk_by_chunk_and_never_a_wrong_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, digest, truth) = damaged(dir.path(), 2, &[4, 9]);
    let map = ChunkMap::new(LEN as u64).unwrap();
    let [first, second] = [4, 9].map(|number| map.index(number).unwrap());
    for restarts in [false, true] {
        if restarts {
            drop(store);
            store = open(dir.path());
        }
        assert_eq!(store.remains(&digest), Some(LEN as u64));
        let remains = store.open_remains(&digest).unwrap();
        // The first was found when the blob was hashed, the second is when it is read; that is not forgotten.
        assert_eq!([first, second].map(|index| remains.has(index)), [false, !restarts]);
        let mut changes = remains.changes();
        for index in map.iter() {
            let offset = map.offset(index) as usize;
            match read(&remains, index) {
                Ok(chunk) => assert_eq!(chunk, truth[offset..][..chunk.len()]),
                Err(_) => assert!(index == first || index == second),
            }
        }
        assert_eq!(remains.here().len(), map.count() - 2);
        assert_eq!(changes.has_changed().unwrap(), !restarts);
        changes.mark_unchanged();
        let lost = u64::from(map.chunk_len()) * 2;
        assert_eq!(store.partial_bytes(&digest, map), Some(LEN as u64 - lost));
        // Whoever asks later learns the same without a look at the disk.
        assert!(Arc::ptr_eq(&remains, &store.open_remains(&digest).unwrap()));
        // Whatever rots later is not given either.
        if restarts {
            let file = dir.path().join("partial").join(format!("sha256-{}-{LEN}", digest.hex()));
            tamper(&file, |bytes| bytes.truncate(LEN - 1));
            assert!(read(&remains, map.last()).is_err() && !remains.has(map.last()));
            fs::remove_file(&file).unwrap();
            assert!(read(&remains, map.first()).is_err() && !remains.has(map.first()));
        }
    }
    // What was begun of a blob that never was verified is given to nobody.
    let begun = Digest::sha256(b"never verified");
    let partial = store.partial(&begun, map).unwrap();
    let index = map.first();
    let chunk = &truth[..map.len(index) as usize];
    let found = link(&map, index, wherry_proto::State::initial(Algorithm::Sha256), chunk).unwrap();
    partial.write(index, chunk, found).unwrap();
    drop(partial);
    assert!(store.remains(&begun).is_none() && store.open_remains(&begun).is_none());
}

#[test]
fn what_remains_of_a_damaged_blob_ends_for_others_when_it_is_filled_removed_or_whole_again() {
    type End = fn(&Store, &Digest);
    let ends: [(&str, End); 3] = [
        ("filled", |store, digest| drop(store.partial(digest, ChunkMap::new(LEN as u64).unwrap()).unwrap())),
        ("removed", |store, digest| {
            store.remove_partials(digest);
        }),
        ("whole", |store, digest| drop(store.put(digest, &bytes(12, LEN)).unwrap())),
    ];
    for (what, end) in ends {
        let dir = tempfile::tempdir().unwrap();
        let (store, digest, _) = damaged(dir.path(), 12, &[0, 1]);
        let remains = store.open_remains(&digest).unwrap();
        let (index, changes) = (remains.map().last(), remains.changes());
        assert!(read(&remains, index).is_ok() && remains.is_there());
        end(&store, &digest);
        assert!(!remains.is_there() && changes.has_changed().unwrap(), "{what}");
        assert!(read(&remains, index).is_err(), "{what}");
        // What a broken off transfer leaves is given again, as it is now.
        let again = store.open_remains(&digest);
        assert_eq!(again.map(|remains| remains.here().len()), (what == "filled").then_some(index.get() - 1));
    }
}

#[test]
fn what_remains_without_its_chain_is_given_to_nobody_and_looked_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, digest, _) = damaged(dir.path(), 13, &[0]);
    let links = dir.path().join("partial").join(format!("sha256-{}-{LEN}.links", digest.hex()));
    let whole = fs::read(&links).unwrap();
    tamper(&links, |bytes| bytes[100] ^= 1);
    assert!(store.open_remains(&digest).is_none() && store.remains(&digest).is_none());
    fs::write(&links, whole).unwrap();
    assert!(store.open_remains(&digest).is_none());
}

#[test]
fn a_folder_that_an_earlier_version_put_damaged_blobs_in_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = dir.path().join("damaged");
    fs::create_dir(&damaged).unwrap();
    fs::write(damaged.join("sha256-0"), b"rotten").unwrap();
    drop(open(dir.path()));
    assert!(!damaged.exists());
}

#[test]
fn what_is_left_of_pinned_blobs_stays_however_many_are_begun() {
    let dir = tempfile::tempdir().unwrap();
    let (store, digest, truth) = damaged(dir.path(), 14, &[0]);
    store.pin("keep", &digest).unwrap();
    let map = ChunkMap::new(LEN as u64).unwrap();
    let chunk = &truth[..map.len(map.first()) as usize];
    let found = link(&map, map.first(), wherry_proto::State::initial(Algorithm::Sha256), chunk).unwrap();
    for number in 0..=MAX_PARTIALS {
        let begun = store.partial(&Digest::sha256(&number.to_le_bytes()), map).unwrap();
        begun.write(map.first(), chunk, found).unwrap();
    }
    assert_eq!(store.usage().partials, MAX_PARTIALS + 1);
    assert!(store.is_damaged(&digest) && store.remains(&digest).is_some());
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
    // Else it makes room itself before blobs do, and whoever gives it to others learns of it.
    let remains = store.open_remains(&rotten).unwrap();
    let [next, last] = [10, 11].map(|seed| put(&store, Algorithm::Sha256, &bytes(seed, LEN)));
    assert!(store.holds(&next) && store.holds(&last));
    assert!(store.remains(&rotten).is_none() && !store.is_damaged(&rotten));
    assert!(!remains.is_there() && *remains.changes().borrow() == 1);
    assert_eq!(store.usage().used, budget);
}

#[test]
fn however_many_blobs_rot_no_more_are_remembered_than_the_bound_and_none_that_came_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let truths: Vec<[u8; 4]> = (0..MAX_DAMAGED as u32 + 9).map(u32::to_be_bytes).collect();
    let digests: Vec<Digest> = truths.iter().map(|truth| Digest::sha256(truth)).collect();
    let fill = |store: &Store| {
        for (digest, truth) in digests.iter().zip(&truths) {
            store.put(digest, truth).unwrap();
        }
        store.sync().unwrap();
    };
    fill(&store);
    for digest in &digests {
        tamper(&path_of(dir.path(), "blobs", digest), |bytes| bytes[0] ^= 1);
        assert!(!store.verify(digest).unwrap());
    }
    assert_eq!(store.damaged().len(), MAX_DAMAGED);
    drop(store);
    let store = open(dir.path());
    assert_eq!((store.damaged().len(), store.blobs().count()), (MAX_DAMAGED, 0));
    fill(&store);
    assert_eq!(store.damaged().len(), 0);
    drop(store);
    let store = open(dir.path());
    assert_eq!((store.damaged().len(), store.blobs().count()), (0, digests.len()));
}
