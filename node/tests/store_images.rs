//! What makes room when a store is full and knows of which images its blobs are.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends where something is not as it must be")]

use tempfile::TempDir;
use wherry_node::store::{Store, StoreSettings};
use wherry_proto::Digest;

/// What the disk gives at a time.
const BLOCK: u64 = 4096;

/// A store that is about to be full.
struct Full {
    store: Store,
    _dir: TempDir,
}

/// An image by its blobs.
struct Image {
    manifest: Digest,
    config: Digest,
    layers: Vec<Digest>,
}

impl Full {
    /// With room for so many blocks.
    fn new(blocks: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path(), StoreSettings { budget: Some(blocks * BLOCK) }).unwrap();
        Self { store, _dir: dir }
    }

    /// Puts a blob that takes so many blocks: of one chunk, so that it has no chain.
    fn put(&self, seed: &str, blocks: u64) -> Digest {
        let bytes = self.bytes(seed, blocks);
        let digest = Digest::sha256(&bytes);
        self.store.put(&digest, &bytes).unwrap();
        digest
    }

    /// As a runtime brings it: the manifest first, and then one blob after the other.
    fn image(&self, seed: &str, layers: &[u64]) -> Image {
        let names: Vec<String> = (0..layers.len()).map(|number| format!("{seed} layer {number}")).collect();
        let named = names.iter().map(String::as_str).zip(layers.iter().copied()).collect::<Vec<_>>();
        self.image_of(seed, &named)
    }

    fn image_of(&self, seed: &str, layers: &[(&str, u64)]) -> Image {
        let manifest = self.put(&format!("{seed} manifest"), 1);
        let config = Digest::sha256(&self.bytes(&format!("{seed} config"), 1));
        let digests = layers.iter().map(|(seed, blocks)| Digest::sha256(&self.bytes(seed, *blocks)));
        let digests: Vec<Digest> = digests.collect();
        self.store.names(&manifest, vec![config], digests.clone());
        self.put(&format!("{seed} config"), 1);
        for (seed, blocks) in layers {
            self.put(seed, *blocks);
        }
        Image { manifest, config, layers: digests }
    }

    fn bytes(&self, seed: &str, blocks: u64) -> Vec<u8> {
        let mut bytes = vec![0; (blocks * BLOCK) as usize];
        bytes[..seed.len()].copy_from_slice(seed.as_bytes());
        bytes
    }

    fn here<'a>(&self, blobs: impl IntoIterator<Item = &'a Digest>) -> Vec<bool> {
        blobs.into_iter().map(|blob| self.store.holds(blob)).collect()
    }

    fn is_whole(&self, image: &Image) -> bool {
        self.tells_of(image) && image.layers.iter().all(|layer| self.store.holds(layer))
    }

    fn tells_of(&self, image: &Image) -> bool {
        self.store.holds(&image.manifest) && self.store.holds(&image.config)
    }
}

#[test]
fn of_the_image_that_was_not_used_for_longest_no_more_goes_than_is_needed_and_what_tells_of_it_last() {
    let full = Full::new(2 + 6 + 2 + 6);
    let (old, new) = (full.image("old", &[3, 1, 2]), full.image("new", &[3, 1, 2]));
    full.put("one block", 1);
    assert_eq!(full.here(&old.layers), [true, false, true]);
    full.put("two blocks", 2);
    assert_eq!(full.here(&old.layers), [true, false, false]);
    assert!(full.tells_of(&old));
    full.put("three blocks", 3);
    assert_eq!(full.here(&old.layers), [false; 3]);
    assert_eq!(full.here([&old.manifest, &old.config]), [false; 2], "there is nothing left to tell of");
    assert!(full.is_whole(&new));
}

#[test]
fn what_is_needed_for_one_large_blob_costs_no_small_image_that_it_could_do_without() {
    let full = Full::new((2 + 1) + (2 + 6) + (2 + 1));
    let small = full.image("small", &[1]);
    let large = full.image("large", &[6]);
    let last = full.image("last", &[1]);
    full.put("six blocks", 6);
    assert!(full.is_whole(&small) && full.is_whole(&last) && !full.store.holds(&large.manifest));
}

#[test]
fn an_image_whose_manifest_is_used_stays_whole_with_what_others_have_too() {
    let full = Full::new(2 + 2 + 2 + 2 + 1);
    let old = full.image_of("old", &[("base", 2), ("old top", 2)]);
    let new = full.image_of("new", &[("base", 2), ("new top", 1)]);
    // A runtime that has all of it asks for no more.
    full.store.get(&new.manifest).unwrap();
    full.put("one", 1);
    assert_eq!(full.here(&old.layers), [true, false]);
    full.put("another", 1);
    assert!(full.is_whole(&new) && full.tells_of(&old));
    // The older one is used.
    full.store.get(&old.manifest).unwrap();
    full.put("one more", 1);
    assert_eq!(full.here(&new.layers), [true, false]);
    assert!(full.tells_of(&new) && full.tells_of(&old));
}

#[test]
fn what_tells_of_blobs_that_are_coming_stays() {
    let full = Full::new(2 + 4);
    let coming = full.bytes("coming", 2);
    let digest = Digest::sha256(&coming);
    let manifest = full.put("manifest", 1);
    full.store.names(&manifest, vec![Digest::sha256(b"config")], vec![digest]);
    let map = wherry_proto::ChunkMap::new(coming.len() as u64).unwrap();
    let _partial = full.store.partial(&digest, map).unwrap();
    full.put("younger", 1);
    full.put("youngest", 2);
    assert!(full.store.holds(&manifest));
}

#[test]
fn manifests_that_name_as_much_as_they_can_leave_room_for_what_others_name() {
    let full = Full::new(4 + 2 + 4 + 2 + 3);
    for number in 0..4 {
        let manifest = full.put(&format!("large {number}"), 1);
        let named = |it: u32| Digest::sha256(format!("{number} names {it}").as_bytes());
        full.store.names(&manifest, (0..1 << 15).map(named).collect(), Vec::new());
        full.store.pin("large", &manifest).unwrap();
    }
    let (old, new) = (full.image("old", &[2, 2]), full.image("new", &[3]));
    full.store.get(&old.manifest).unwrap();
    full.put("one block", 1);
    assert!(full.is_whole(&old) && full.here(&new.layers) == [false]);
}
