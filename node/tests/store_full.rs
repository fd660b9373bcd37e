//! What the store promises on a disk that is full: one clear error, nothing half stored, and it goes on once
//! there is space. Needs the right to mount a small file system; without it the test says so and ends.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use wherry_node::store::{Partial, Store, StoreError, StoreSettings, Table};
use wherry_proto::{Algorithm, ChainBuilder, ChunkMap, Digest};

/// A file system of its own, unmounted in the end. There is one at a time: between fork and exec a child has all files
/// of this process, and with them the locks of stores that are closed meanwhile, so that they cannot be opened again.
struct SmallDisk {
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl SmallDisk {
    fn new(mib: u32) -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"])
            .arg(dir.path())
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("not tested: this user may not mount a tmpfs");
        }
        mounted.then_some(Self { dir, _alone: alone })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

const MIB: usize = 1 << 20;

#[test]
fn what_cannot_fit_is_refused_before_it_begins() {
    let Some(disk) = SmallDisk::new(40) else { return };
    let store = Store::open(disk.path(), StoreSettings::default()).unwrap();
    let map = ChunkMap::new(100 << 20).unwrap();
    let error = store.partial(&Digest::sha256(b"large"), map).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { needed, .. } if needed == 100 << 20), "{error}");
    let error = store.stage(Algorithm::Sha256, 100 << 20).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    // Two that fit one by one do not fit together.
    let map = ChunkMap::new(15 << 20).unwrap();
    let first = store.partial(&Digest::sha256(b"first"), map).unwrap();
    assert!(store.partial(&Digest::sha256(b"second"), map).unwrap_err().is_no_space());
    drop(first);
    store.partial(&Digest::sha256(b"second"), map).unwrap();
}

#[test]
fn a_store_opens_where_there_is_no_room_to_keep_what_is_left_of_a_damaged_blob() {
    let Some(disk) = SmallDisk::new(48) else { return };
    let store = Store::open(disk.path(), StoreSettings::default()).unwrap();
    let bytes: Vec<u8> = (0..MIB).map(|i| (i >> 4) as u8).collect();
    let digest = Digest::sha256(&bytes);
    store.put(&digest, &bytes).unwrap();
    drop(store);
    let hex = digest.hex();
    let path = disk.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    fs::remove_file(&path).unwrap();
    fs::write(&path, &bytes[..MIB / 2]).unwrap();
    fs::remove_file(disk.path().join("clean")).unwrap();
    let left = rustix::fs::statvfs(disk.path()).unwrap().f_bfree.saturating_sub(256);
    fs::write(disk.path().join("ballast"), vec![1; (left * 4096) as usize]).unwrap();

    let store = Store::open(disk.path(), StoreSettings::default()).unwrap();
    assert!(store.is_damaged(&digest) && !store.holds(&digest));
    assert_eq!((store.remains(&digest), store.usage().used), (None, 0));
    assert!(!path.exists() && fs::read_dir(disk.path().join("partial")).unwrap().next().is_none());
}

#[test]
fn a_disk_that_fills_up_on_the_way_fails_that_blob_only() {
    let Some(disk) = SmallDisk::new(48) else { return };
    let store = Store::open(disk.path(), StoreSettings::default()).unwrap();
    let kept = vec![7; MIB];
    let kept_digest = Digest::sha256(&kept);
    store.put(&kept_digest, &kept).unwrap();
    store.sync().unwrap();

    let bytes: Vec<u8> = (0..20 * MIB).map(|i| (i >> 4) as u8).collect();
    let map = ChunkMap::new(bytes.len() as u64).unwrap();
    let mut builder = ChainBuilder::new(Algorithm::Sha256, map);
    builder.update(&bytes).unwrap();
    let chain = builder.finish().unwrap();
    let partial = store.partial(&chain.digest(), map).unwrap();
    let mut staged = store.stage(Algorithm::Sha256, 4 << 20).unwrap();

    // Somebody else takes what is left.
    let ballast = disk.path().join("ballast");
    let mut left = rustix::fs::statvfs(disk.path()).unwrap().f_bfree;
    left = left.saturating_sub(64);
    fs::write(&ballast, vec![1; (left * 4096) as usize]).unwrap();

    let write = |number: u32| {
        let index = map.index(number).unwrap();
        let chunk = &bytes[map.offset(index) as usize..][..map.len(index) as usize];
        partial.write(index, chunk, chain.link(index))
    };
    let mut written = 0;
    let error = loop {
        match write(written) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_no_space(), "{error}");
    assert!(written < map.count());
    assert!(staged.write(&vec![3; 4 << 20]).unwrap_err().is_no_space());
    drop(staged);
    assert!(store.put(&Digest::sha256(b"x"), b"x").unwrap_err().is_no_space());
    assert!(matches!(partial.finish(), Err(StoreError::Incomplete { .. })));
    assert_eq!(store.get(&kept_digest).unwrap().read(1 << 30).unwrap(), kept);

    // With space again it goes on where it was, without a restart.
    fs::remove_file(&ballast).unwrap();
    let there = partial.links().iter().flatten().count() as u32;
    assert_eq!(there, written);
    (written..map.count()).for_each(|number| write(number).unwrap());
    partial.finish().unwrap();
    store.sync().unwrap();
    assert!(store.verify(&chain.digest()).unwrap());
    assert_eq!(fs::read_dir(disk.path().join("staging")).unwrap().count(), 0);
    drop((partial, store));
    let store = Store::open(disk.path(), StoreSettings::default()).unwrap();
    assert!(store.verify(&chain.digest()).unwrap() && store.verify(&kept_digest).unwrap());
}

#[test]
fn an_index_that_cannot_be_written_says_so_and_blobs_are_still_served() {
    let Some(disk) = SmallDisk::new(48) else { return };
    let store = Store::open(disk.path(), StoreSettings::default()).unwrap();
    let kept = vec![7; MIB];
    let digest = Digest::sha256(&kept);
    store.put(&digest, &kept).unwrap();
    let table: Table<Vec<u8>> = store.table("tags", 1).unwrap();
    table.put(b"before", &vec![1; 1000]).unwrap();
    table.flush().unwrap();
    let ballast = disk.path().join("ballast");
    let left = rustix::fs::statvfs(disk.path()).unwrap().f_bfree;
    fs::write(&ballast, vec![1; (left * 4096) as usize]).unwrap();

    let failed = (0..3000u32).find_map(|i| {
        let put = table.put(&i.to_be_bytes(), &vec![i as u8; 10_000]);
        put.and_then(|()| if i % 20 == 0 { table.flush() } else { Ok(()) }).err()
    });
    let error = failed.unwrap();
    assert!(error.to_string().contains("restart"), "{error}");
    assert_eq!(store.get(&digest).unwrap().read(1 << 30).unwrap(), kept);
    drop((table, store));

    fs::remove_file(&ballast).unwrap();
    let store = Store::open(disk.path(), StoreSettings::default()).unwrap();
    assert!(store.verify(&digest).unwrap());
    let table: Table<Vec<u8>> = store.table("tags", 1).unwrap();
    assert_eq!(table.get(b"before").unwrap(), Some(vec![1; 1000]));
    table.put(b"after", &vec![2; 1000]).unwrap();
    table.flush().unwrap();
}

#[test]
fn what_is_on_the_disk_of_a_partial_blob_is_not_needed_again() {
    let Some(disk) = SmallDisk::new(64) else { return };
    let store = Store::open(disk.path(), StoreSettings::default()).unwrap();
    let bytes: Vec<u8> = (0..20 * MIB).map(|i| (i >> 4) as u8).collect();
    let map = ChunkMap::new(bytes.len() as u64).unwrap();
    let mut builder = ChainBuilder::new(Algorithm::Sha256, map);
    builder.update(&bytes).unwrap();
    let chain = builder.finish().unwrap();
    let partial = store.partial(&chain.digest(), map).unwrap();
    let (early, late): (Vec<_>, Vec<_>) = map.iter().partition(|index| map.offset(*index) < 16 << 20);
    let write = |partial: &Partial, index| {
        let chunk = &bytes[map.offset(index) as usize..][..map.len(index) as usize];
        partial.write(index, chunk, chain.link(index)).unwrap();
    };
    early.iter().for_each(|index| write(&partial, *index));
    drop(partial);

    // 16 MiB are never given to blobs; of the rest about 6 are left.
    let free = rustix::fs::statvfs(disk.path()).unwrap().f_bfree as usize * 4096;
    fs::write(disk.path().join("ballast"), vec![1; free - 22 * MIB]).unwrap();
    assert!(store.partial(&Digest::sha256(b"another"), map).unwrap_err().is_no_space());
    for _ in 0..3 {
        drop(store.partial(&chain.digest(), map).unwrap());
    }
    drop(store);
    let store = Store::open(disk.path(), StoreSettings::default()).unwrap();
    let partial = store.partial(&chain.digest(), map).unwrap();
    // What it still needs is promised to it.
    assert!(
        store.partial(&Digest::sha256(b"small"), ChunkMap::new(4 << 20).unwrap()).unwrap_err().is_no_space()
    );
    late.iter().for_each(|index| write(&partial, *index));
    partial.finish().unwrap();
    assert!(store.verify(&chain.digest()).unwrap());
}
