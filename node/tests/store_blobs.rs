//! What the store promises of whole blobs: verified, found again, bounded, and never wrong.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use wherry_node::store::{Gone, Store, StoreError, StoreSettings, Table, Why};
use wherry_proto::{Algorithm, ChainBuilder, ChunkMap, Digest};

fn open(dir: &Path) -> Store {
    Store::open(dir, StoreSettings::default()).unwrap()
}

fn with_budget(dir: &Path, budget: u64) -> Store {
    Store::open(dir, StoreSettings { budget: Some(budget) }).unwrap()
}

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) ^ (i >> 8) as u8).collect()
}

fn put(store: &Store, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    store.put(&digest, bytes).unwrap();
    // Nothing is still to be done with the file, so that a test may do what it likes with it.
    store.sync().unwrap();
    digest
}

fn path_of(dir: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    dir.join("blobs").join(digest.algorithm().name()).join(&hex[..2]).join(hex)
}

/// Rewrites a file that is read-only.
fn tamper(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_held_fits_however_much_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreSettings::default()).unwrap();
    let data = vec![7; 64 << 10];
    let digest = Digest::sha256(&data);
    store.put(&digest, &data).unwrap();
    store.pin("app:1", &digest).unwrap();
    store.close().unwrap();
    drop(store);
    // What is pinned stays, though the budget is smaller by now.
    let store = Store::open(dir.path(), StoreSettings { budget: Some(32 << 10) }).unwrap();
    let size = data.len() as u64;
    store.would_fit(&[(digest, size)].into()).unwrap();
    store.would_fit(&[(digest, size), (Digest::sha256(b"other"), 1)].into()).unwrap_err();
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let contents = [0, 1, 63, 64, 32 << 10, (32 << 10) + 1, 3_000_000].map(|len| bytes(7, len));
    let mut blobs: Vec<_> = contents.iter().map(|bytes| (Digest::sha256(bytes), bytes)).collect();
    blobs.push((Digest::of(Algorithm::Sha512, &contents[6]), &contents[6]));
    let store = open(dir.path());
    for (digest, bytes) in &blobs {
        store.put(digest, bytes).unwrap();
    }
    drop(store);

    let store = open(dir.path());
    for (digest, expected) in &blobs {
        let blob = store.get(digest).unwrap();
        assert_eq!(blob.size(), expected.len() as u64);
        assert_eq!(&blob.read(1 << 30).unwrap(), *expected);
        let mode = fs::metadata(path_of(dir.path(), digest)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
        let map = ChunkMap::new(expected.len() as u64).unwrap();
        let mut builder = ChainBuilder::new(digest.algorithm(), map);
        builder.update(expected).unwrap();
        assert_eq!(store.chain(digest).unwrap().unwrap(), builder.finish().unwrap());
    }
    assert_eq!(store.blobs().count(), 8);
    assert!(store.get(&Digest::sha256(b"never")).is_none());
    assert!(store.chain(&Digest::sha256(b"never")).unwrap().is_none());
}

#[test]
fn bytes_of_another_digest_or_length_do_not_get_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = Digest::sha256(b"right");
    assert!(matches!(store.put(&digest, b"wrong"), Err(StoreError::WrongDigest { .. })));

    let mut staged = store.stage(Algorithm::Sha256, 5).unwrap();
    staged.write(b"wrong").unwrap();
    assert!(matches!(staged.write(b"!"), Err(StoreError::WrongLength { announced: 5, found: 6 })));
    assert!(matches!(staged.finish(Some(digest)), Err(StoreError::WrongDigest { .. })));

    let mut short = store.stage(Algorithm::Sha256, 6).unwrap();
    short.write(b"right").unwrap();
    assert!(matches!(short.finish(None), Err(StoreError::WrongLength { announced: 6, found: 5 })));

    assert_eq!(store.usage().used, 0);
    assert_eq!(store.blobs().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    // A blob that is held is no excuse for wrong bytes.
    store.put(&digest, b"right").unwrap();
    assert!(store.put(&digest, b"wrong").is_err());
}

#[test]
fn a_blob_that_is_staged_and_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut staged = store.stage(Algorithm::Sha256, 1 << 20).unwrap();
    staged.write(&[0; 1000]).unwrap();
    assert!(store.usage().used >= 1 << 20);
    drop(staged);
    assert_eq!(store.usage().used, 0);
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn a_second_node_on_the_folder_is_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = Store::open(dir.path(), StoreSettings::default()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { pid: Some(pid), .. } if pid == std::process::id()));
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(store);
    open(dir.path());
}

#[test]
fn a_blob_that_is_not_in_the_index_is_hashed_before_it_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let good = bytes(1, 2_000_000);
    let (good_digest, bad_digest) = (Digest::sha256(&good), Digest::sha256(b"something else"));
    for digest in [&good_digest, &bad_digest] {
        let path = path_of(dir.path(), digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &good).unwrap();
    }
    fs::write(path_of(dir.path(), &good_digest).with_file_name("stray"), "x").unwrap();
    fs::remove_file(dir.path().join("clean")).unwrap();

    let store = open(dir.path());
    assert_eq!(store.get(&good_digest).unwrap().read(1 << 30).unwrap(), good);
    assert!(store.get(&bad_digest).is_none());
    assert_eq!(store.blobs().count(), 1);
    assert!(store.chain(&good_digest).unwrap().is_some());
    assert!(!path_of(dir.path(), &bad_digest).exists());
    drop(store);
    // What was found is recorded, and what is no blob is nobody's business.
    let store = open(dir.path());
    assert_eq!(store.blobs().count(), 1);
    assert!(path_of(dir.path(), &good_digest).with_file_name("stray").exists());
}

#[test]
fn what_others_put_among_the_blobs_does_not_stop_a_start_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, &bytes(5, 3_000_000));
    drop(store);
    for folder in ["blobs/sha256", "chains/sha256"] {
        fs::write(dir.path().join(folder).join(".DS_Store"), folder).unwrap();
        fs::create_dir_all(dir.path().join(folder).join("zz/a folder/in it")).unwrap();
    }
    fs::remove_file(dir.path().join("clean")).unwrap();
    let store = open(dir.path());
    assert!(store.verify(&digest).unwrap());
    for folder in ["blobs/sha256", "chains/sha256"] {
        assert!(dir.path().join(folder).join(".DS_Store").exists());
        assert!(dir.path().join(folder).join("zz/a folder/in it").exists());
    }
}

#[test]
fn what_others_put_among_the_partial_blobs_does_not_stop_a_start_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let partial = dir.path().join("partial");
    let digest = Digest::sha256(b"any");
    let like_ours = [format!("sha256-{}-9", digest.hex()), format!("sha256-{}-9.links", digest.hex())];
    for name in ["a folder", &like_ours[0], &like_ours[1]] {
        fs::create_dir_all(partial.join(name).join("in it")).unwrap();
    }
    fs::write(partial.join("notes"), "mine").unwrap();
    assert_eq!(open(dir.path()).usage().partials, 0);
    assert_eq!(fs::read_dir(&partial).unwrap().count(), 4);
}

#[test]
fn a_record_without_its_file_is_dropped_after_a_crash_and_at_the_first_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (first, second) = (put(&store, b"first"), put(&store, b"second"));
    drop(store);
    fs::remove_file(path_of(dir.path(), &first)).unwrap();
    tamper(&path_of(dir.path(), &second), |bytes| bytes.truncate(3));

    let store = open(dir.path());
    let mut gone = store.evicted();
    assert!(store.get(&first).unwrap().open().is_err());
    assert!(store.get(&second).unwrap().open().is_err());
    assert!(store.get(&first).is_none() && store.get(&second).is_none());
    assert_eq!(
        [gone.try_recv().unwrap(), gone.try_recv().unwrap()].map(|gone| (gone.digest, gone.why)),
        [(first, Why::Missing), (second, Why::Damaged)]
    );
    let third = put(&store, b"third");
    drop(store);

    fs::remove_file(path_of(dir.path(), &third)).unwrap();
    fs::remove_file(dir.path().join("clean")).unwrap();
    assert_eq!(open(dir.path()).blobs().count(), 0);
}

#[test]
fn that_a_blob_has_left_is_told_although_its_file_cannot_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, b"blob");
    // Somebody else's folder stands where the file was.
    fs::remove_file(path_of(dir.path(), &digest)).unwrap();
    fs::create_dir(path_of(dir.path(), &digest)).unwrap();
    let mut gone = store.evicted();
    store.remove(&digest).unwrap_err();
    assert!(!store.holds(&digest));
    assert_eq!(gone.try_recv().unwrap(), Gone { digest, why: Why::Removed });
}

#[test]
fn whoever_waits_for_a_blob_to_leave_learns_of_it_however_it_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_budget(dir.path(), 3 * CHARGE);
    let [evicted, damaged, removed] = [0, 1, 2].map(|seed| put(&store, &bytes(seed, BLOB)));
    let mut waits = [evicted, damaged, removed].map(|digest| {
        let store = store.clone();
        async move { store.leaves(&digest).await }.boxed()
    });
    let mut left = || waits.each_mut().map(|wait| wait.now_or_never().is_some());
    assert_eq!(left(), [false; 3]);
    store.remove(&removed).unwrap();
    assert_eq!(left(), [false, false, true]);
    tamper(&path_of(dir.path(), &damaged), |bytes| bytes[7] ^= 1);
    assert!(!store.verify(&damaged).unwrap());
    for seed in 3..6 {
        put(&store, &bytes(seed, BLOB));
    }
    // Those that are through are asked no more.
    assert!(waits[..2].iter_mut().all(|wait| wait.now_or_never().is_some()));
    assert!(store.leaves(&evicted).now_or_never().is_some());
}

#[test]
fn a_flipped_byte_is_found_and_the_blob_no_longer_held() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, &bytes(3, 500_000));
    assert!(store.verify(&digest).unwrap());
    tamper(&path_of(dir.path(), &digest), |bytes| bytes[400_000] ^= 1);
    assert!(!store.verify(&digest).unwrap());
    assert!(store.get(&digest).is_none());
    assert!(matches!(store.verify(&digest), Err(StoreError::NotHeld(_))));
    // And it may come back.
    assert_eq!(put(&store, &bytes(3, 500_000)), digest);
    assert!(store.verify(&digest).unwrap());
}

#[test]
fn wrong_bytes_are_never_read_as_the_blob_and_no_longer_held() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for whole in [false, true] {
        let digest = put(&store, &bytes(3, 500_000));
        tamper(&path_of(dir.path(), &digest), |bytes| bytes[0] ^= 1);
        let blob = store.get(&digest).unwrap();
        let error = match whole {
            true => blob.read(1 << 20).unwrap_err(),
            false => blob.checked_reader().unwrap().read_to_end(&mut Vec::new()).unwrap_err(),
        };
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        assert!(blob.is_lost() && !store.holds(&digest) && store.is_damaged(&digest));
        // One that came in its place is not blamed for the old one.
        put(&store, &bytes(3, 500_000));
        assert!(blob.read(1 << 20).is_ok() && store.holds(&digest));
        store.remove(&digest).unwrap();
    }
}

#[test]
fn a_damaged_chain_is_made_anew_and_never_given_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, &bytes(4, 500_000));
    let chain = store.chain(&digest).unwrap().unwrap();
    let hex = digest.hex();
    let path = dir.path().join("chains/sha256").join(&hex[..2]).join(&hex);
    for change in [|bytes: &mut Vec<u8>| bytes[40] ^= 1, |bytes: &mut Vec<u8>| bytes.clear()] {
        tamper(&path, change);
        assert_eq!(store.chain(&digest).unwrap().unwrap(), chain);
        assert_eq!(fs::read(&path).unwrap(), chain.to_bytes());
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(store.chain(&digest).unwrap().unwrap(), chain);
    // With the blob damaged as well there is nothing to make it from.
    fs::remove_file(&path).unwrap();
    tamper(&path_of(dir.path(), &digest), |bytes| bytes[0] ^= 1);
    assert_eq!(store.chain(&digest).unwrap(), None);
    assert!(store.get(&digest).is_none());
}

#[test]
fn a_damaged_index_costs_no_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digests: Vec<_> = (0..20).map(|i| put(&store, &bytes(i, 50_000))).collect();
    drop(store);
    tamper(&dir.path().join("index/db"), |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 0x5a));
    let store = open(dir.path());
    for digest in &digests {
        assert!(store.verify(digest).unwrap());
    }
}

#[test]
fn flipped_bytes_in_the_index_neither_stop_a_start_nor_make_a_wrong_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digests: Vec<_> = (0..20).map(|i| put(&store, &bytes(i, 50_000))).collect();
    let table: Table<u64> = store.table("numbers", 1).unwrap();
    (0..500u64).for_each(|i| table.put(&i.to_be_bytes(), &i).unwrap());
    drop((store, table));
    let db = dir.path().join("index/db");
    let whole = fs::read(&db).unwrap();
    let written = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for seed in 0..40usize {
        let mut damaged = whole.clone();
        for flip in 0..5 {
            damaged[(seed * 7919 + flip * 104_729 + seed * flip * 31) % written] ^= 1 << (seed % 8);
        }
        fs::write(&db, damaged).unwrap();
        let store = open(dir.path());
        for digest in &digests {
            assert!(store.verify(digest).unwrap(), "seed {seed}");
        }
        let table: Table<u64> = store.table("numbers", 1).unwrap();
        for (key, value) in table.scan_prefix(b"", 1000).unwrap_or_default() {
            assert_eq!(key, value.to_be_bytes(), "seed {seed}");
        }
    }
}

const BLOB: usize = 100_000;
/// What a blob of 100,000 bytes takes: 25 blocks, and one for its chain.
const CHARGE: u64 = 26 * 4096;

#[test]
fn the_least_recently_used_blob_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_budget(dir.path(), 3 * CHARGE);
    let mut gone = store.evicted();
    let digests: Vec<_> = (0..3).map(|i| put(&store, &bytes(i, BLOB))).collect();
    assert_eq!(store.usage().used, 3 * CHARGE);
    store.sync().unwrap();
    assert!(store.get(&digests[0]).is_some());
    let fourth = put(&store, &bytes(3, BLOB));
    assert_eq!(store.usage().used, 3 * CHARGE);
    assert!(!store.holds(&digests[1]) && store.holds(&digests[0]) && store.holds(&fourth));
    assert_eq!(gone.try_recv().unwrap(), Gone { digest: digests[1], why: Why::Evicted });
    assert!(!path_of(dir.path(), &digests[1]).exists());
    drop(store);

    // The order of use outlives a restart.
    let store = with_budget(dir.path(), 3 * CHARGE);
    put(&store, &bytes(4, BLOB));
    assert!(!store.holds(&digests[2]) && store.holds(&digests[0]) && store.holds(&fourth));
    drop(store);

    // A budget that was made smaller is kept at once.
    let store = with_budget(dir.path(), CHARGE);
    assert_eq!((store.blobs().count(), store.over_budget().len()), (3, 2));
    store.keep_budget();
    assert_eq!((store.usage().used, store.blobs().count(), store.over_budget().len()), (CHARGE, 1, 0));
}

#[test]
fn pinned_blobs_and_blobs_in_use_stay_and_the_newcomer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_budget(dir.path(), 2 * CHARGE);
    let (pinned, used) = (put(&store, &bytes(0, BLOB)), put(&store, &bytes(1, BLOB)));
    store.pin("docker.io/library/app:1", &pinned).unwrap();
    let reader = store.get(&used).unwrap();
    let third = bytes(2, BLOB);
    let error = store.put(&Digest::sha256(&third), &third).unwrap_err();
    let StoreError::NoSpace { needed, budget, used: taken, .. } = &error else { panic!("{error}") };
    assert_eq!((*needed, *budget, *taken), (CHARGE, Some(2 * CHARGE), 2 * CHARGE));
    assert!(error.to_string().contains("--disk-budget"), "{error}");
    assert!(store.holds(&pinned) && store.holds(&used));
    assert!(matches!(store.remove(&pinned), Err(StoreError::Pinned(_))));

    drop(reader);
    put(&store, &third);
    assert!(store.holds(&pinned) && !store.holds(&used));
    drop(store);

    let store = with_budget(dir.path(), 2 * CHARGE);
    assert!(store.is_pinned(&pinned));
    assert_eq!(store.pinned_by("docker.io/library/app:1").unwrap(), [pinned]);
    store.pin("again", &pinned).unwrap();
    store.pin("again", &pinned).unwrap();
    store.unpin("docker.io/library/app:1", &pinned).unwrap();
    assert!(store.is_pinned(&pinned));
    store.unpin("again", &pinned).unwrap();
    store.unpin("again", &pinned).unwrap();
    assert!(!store.is_pinned(&pinned));
    assert!(store.remove(&pinned).unwrap());
    assert!(!store.remove(&pinned).unwrap());
}

#[test]
fn a_blob_that_cannot_be_opened_now_is_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, &bytes(1, BLOB));
    let path = path_of(dir.path(), &digest);
    let aside = dir.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert!(matches!(store.verify(&digest), Err(StoreError::Io { what: "open", .. })));
    assert!(store.holds(&digest));
    fs::remove_file(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    assert!(store.verify(&digest).unwrap());
}

#[test]
fn what_was_found_wrong_with_a_blob_does_not_set_aside_the_one_that_came_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, &bytes(1, BLOB));
    tamper(&path_of(dir.path(), &digest), |bytes| bytes[BLOB - 1] ^= 1);
    let mut anew = false;
    let meanwhile = |_| {
        if !std::mem::replace(&mut anew, true) {
            assert!(store.remove(&digest).unwrap());
            put(&store, &bytes(1, BLOB));
        }
        std::ops::ControlFlow::Continue(())
    };
    store.verify_while(&digest, meanwhile).unwrap();
    assert!(anew && store.holds(&digest) && !store.is_damaged(&digest));
    assert!(store.verify(&digest).unwrap());
}

#[test]
fn a_check_is_no_use_of_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_budget(dir.path(), 2 * CHARGE);
    let [first, second] = [0, 1].map(|seed| put(&store, &bytes(seed, BLOB)));
    assert!(
        store.verify(&first).unwrap()
            && store.links(&first, ChunkMap::new(BLOB as u64).unwrap().last()).unwrap()
    );
    assert_eq!(store.look(&first).unwrap().size(), BLOB as u64);
    put(&store, &bytes(2, BLOB));
    assert!(!store.holds(&first) && store.holds(&second));
}

#[test]
fn a_claimed_blob_is_neither_removed_nor_evicted_until_the_last_claim_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_budget(dir.path(), CHARGE);
    let digest = put(&store, &bytes(1, BLOB));
    let claims = [store.claim(&digest).unwrap(), store.claim(&digest).unwrap()];
    for claim in claims {
        assert!(matches!(store.remove(&digest), Err(StoreError::Claimed(claimed)) if claimed == digest));
        let other = bytes(2, BLOB);
        assert!(store.put(&Digest::sha256(&other), &other).unwrap_err().is_no_space());
        assert_eq!(claim.read(1 << 30).unwrap(), bytes(1, BLOB));
    }
    assert!(store.remove(&digest).unwrap());
    assert!(store.claim(&digest).is_none());
}

#[test]
fn a_blob_that_is_removed_while_it_is_read_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, &bytes(9, BLOB));
    let mut file = store.get(&digest).unwrap().open().unwrap();
    assert!(store.remove(&digest).unwrap());
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert_eq!(read, bytes(9, BLOB));
}

#[test]
fn threads_that_store_the_same_blobs_store_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let contents: Vec<_> = (0..30u8).map(|i| bytes(i, 40_000)).collect();
    std::thread::scope(|scope| {
        for shift in 0..4 {
            let (store, contents) = (&store, &contents);
            scope.spawn(move || {
                for i in 0..contents.len() {
                    put(store, &contents[(i + shift * 7) % contents.len()]);
                }
            });
        }
    });
    assert_eq!(store.blobs().count(), 30);
    assert_eq!(store.usage().used, 30 * (10 + 1) * 4096);
    store.sync().unwrap();
}

#[test]
fn an_idle_store_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, &bytes(1, 5_000_000));
    store.sync().unwrap();
    let before = walk(dir.path());
    // Longer than changes of the index wait to be flushed.
    std::thread::park_timeout(std::time::Duration::from_millis(1500));
    store.get(&digest).unwrap().read(1 << 30).unwrap();
    assert_eq!(walk(dir.path()), before);
}

/// Every file and folder below, with its length and when it changed.
fn walk(dir: &Path) -> Vec<(PathBuf, std::time::SystemTime, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let data = entry.metadata().unwrap();
        if data.is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push((entry.path(), data.modified().unwrap(), data.len()));
    }
    found.sort();
    found
}
