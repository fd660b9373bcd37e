//! What import and export promise of archives that were made by hand, good ones and bad ones.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]
#![allow(dead_code, unreachable_pub, reason = "test binaries share the module and use parts of it")]

use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use serde_json::json;
use wherry_node::bundle::{
    ExportError, ExportImage, ImportError, PackError, Progress, export, import, pack_directory,
};
use wherry_node::store::{Store, StoreSettings};
use wherry_proto::Digest;

mod bundle_support;
use bundle_support::*;

fn image() -> Image {
    Image::new("amd64", "hello")
}

/// Imports what must fail, and checks that nothing of it stays.
fn refused(items: &[Item]) -> ImportError {
    refused_bytes(&archive(items))
}

fn refused_bytes(bytes: &[u8]) -> ImportError {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = take(&store, bytes).unwrap_err();
    assert_eq!(contents(&store).len(), 0, "{error}");
    assert_eq!(store.usage().used, 0, "{error}");
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    error
}

#[test]
fn a_layout_comes_in_byte_for_byte_in_any_order_and_compression() {
    let image = image();
    let mut items = image.layout("1.0");
    for turn in 0..items.len() {
        items.rotate_left(1);
        let mut bytes = archive(&items);
        if turn % 2 == 0 {
            bytes = gzip(&bytes);
        }
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let imported = take(&store, &bytes).unwrap();
        let [found] = &imported.images[..] else { panic!("{imported:?}") };
        assert_eq!((found.digest, &found.names), (image.digest(), &vec!["1.0".to_owned()]));
        assert_eq!(found.media_type, OCI_MANIFEST);
        assert_eq!(found.blobs[0], image.digest());
        assert_eq!(imported.claims.len(), 3);
        for bytes in image.blobs() {
            assert_eq!(&store.get(&Digest::sha256(bytes)).unwrap().read(1 << 20).unwrap(), bytes);
        }
    }
}

#[test]
fn an_old_docker_archive_always_gets_the_same_manifest() {
    let image = image();
    let mut digests = Vec::new();
    let mut items = image.docker_archive("app:1");
    for _ in 0..3 {
        items.rotate_left(2);
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let imported = take(&store, &archive(&items)).unwrap();
        let [found] = &imported.images[..] else { panic!("{imported:?}") };
        assert_eq!(found.names, ["app:1"]);
        assert_eq!(store.blobs().count(), 3);
        assert!(found.blobs.contains(&Digest::sha256(&image.layer)));
        assert_eq!(found.size, (image.config.len() + image.layer.len()) as u64);
        digests.push(found.digest);
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_layer_that_is_a_link_to_another_images_layer_is_found() {
    let image = image();
    let (first, second) = (Digest::sha256(b"any id").hex(), Digest::sha256(b"other id").hex());
    let mut items = image.docker_archive("app:1");
    let other = json!({"architecture": "arm64", "os": "linux", "rootfs": {"diff_ids": [Digest::sha256(&image.layer)]}});
    let other = other.to_string().into_bytes();
    let config = |bytes: &[u8]| format!("{}.json", Digest::sha256(bytes).hex());
    let manifest = json!([
        {"Config": config(&image.config), "RepoTags": ["app:1"], "Layers": [format!("{first}/layer.tar")]},
        {"Config": config(&other), "RepoTags": null, "Layers": [format!("{second}/layer.tar")]},
    ]);
    items.retain(|item| !matches!(item, Item::File(name, _) if name == "manifest.json"));
    items.push(Item::Symlink(format!("{second}/layer.tar"), format!("../{first}/layer.tar")));
    items.push(file(config(&other), other));
    items.push(file("manifest.json", manifest.to_string()));
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let imported = take(&store, &archive(&items)).unwrap();
    assert_eq!(imported.images.len(), 2);
    assert_eq!(store.blobs().count(), 5);
}

#[test]
fn compressed_layers_of_a_docker_archive_are_checked_too() {
    let image = image();
    let compress = |packed: Vec<u8>| {
        let mut items = image.docker_archive("app:1");
        for item in &mut items {
            if let Item::File(name, bytes) = item
                && name.ends_with("layer.tar")
            {
                bytes.clone_from(&packed);
            }
        }
        items
    };
    let dir = tempfile::tempdir().unwrap();
    take(&open(dir.path()), &archive(&compress(image.packed.clone()))).unwrap();
    assert!(matches!(refused(&compress(gzip(b"other"))), ImportError::WrongDigest { .. }));
    assert!(matches!(refused(&compress(b"other".to_vec())), ImportError::WrongDigest { .. }));
}

#[test]
fn one_platform_of_several_is_enough_and_an_incomplete_one_is_not() {
    let (here, there) = (Image::new("amd64", "here"), Image::new("arm64", "there"));
    let list = index(&[here.descriptor(), there.descriptor()]);
    let name = json!({"io.containerd.image.name": "registry.example/app:2", "org.opencontainers.image.ref.name": "2"});
    let root = json!({
        "mediaType": OCI_INDEX, "digest": Digest::sha256(&list), "size": list.len(), "annotations": name,
    });
    let layout = |mut items: Vec<Item>| {
        items.push(file(blob_name(&list), list.as_slice()));
        items.push(file("oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#));
        items.push(file("index.json", index(std::slice::from_ref(&root))));
        items
    };
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let imported = take(&store, &archive(&layout(here.items()))).unwrap();
    assert_eq!(imported.images[0].names, ["registry.example/app:2"]);
    assert_eq!(imported.images[0].blobs.len(), 4);
    let bytes = |image: &Image| (image.config.len() + image.packed.len()) as u64;
    assert_eq!(imported.images[0].size, bytes(&here));

    // And goes out again the same way.
    let again = tempfile::tempdir().unwrap();
    let other = open(again.path());
    let exported = give(&store, &["registry.example/app:2"], Digest::sha256(&list));
    assert_eq!(take(&other, &exported).unwrap().images, imported.images);
    assert_eq!(contents(&other), contents(&store));
    assert_eq!(give(&other, &["registry.example/app:2"], Digest::sha256(&list)), exported);

    assert!(matches!(refused(&layout(Vec::new())), ImportError::Missing { .. }));
    let mut half = layout(here.items());
    half.push(file(blob_name(&there.manifest), there.manifest.as_slice()));
    assert!(matches!(refused(&half), ImportError::Missing { .. }));

    // A store that has the manifest of another platform, without its layers, is none the worse.
    store.put(&there.digest(), &there.manifest).unwrap();
    let imported = take(&store, &archive(&layout(here.items()))).unwrap();
    assert_eq!(imported.images[0].blobs.len(), 4);
    assert_eq!(imported.images[0].size, bytes(&here));
    assert_eq!(give(&store, &["registry.example/app:2"], Digest::sha256(&list)), exported);

    // Both together have what each has.
    let both = here.items().into_iter().chain(there.items()).collect();
    let imported = take(&store, &archive(&layout(both))).unwrap();
    assert_eq!(imported.images[0].size, bytes(&here) + bytes(&there));
}

#[test]
fn what_the_store_has_need_not_be_in_the_archive() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put(&Digest::sha256(&image.packed), &image.packed).unwrap();
    let mut items = image.layout("1");
    items.retain(|item| !matches!(item, Item::File(name, _) if *name == blob_name(&image.packed)));
    assert!(matches!(refused(&items), ImportError::Missing { .. }));
    assert_eq!(take(&store, &archive(&items)).unwrap().images[0].blobs.len(), 3);
}

#[test]
fn blobs_that_no_image_needs_do_not_stay() {
    let image = image();
    let mut items = image.layout("1");
    items.push(file(blob_name(b"stowaway"), "stowaway"));
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    take(&store, &archive(&items)).unwrap();
    assert_eq!(store.blobs().count(), 3);
    // What was there before stays, whether an import needs it, does not, or fails.
    store.put(&Digest::sha256(b"stowaway"), b"stowaway").unwrap();
    take(&store, &archive(&items)).unwrap();
    items.pop();
    items.push(file("../evil", "x"));
    take(&store, &archive(&items)).unwrap_err();
    assert_eq!(store.blobs().count(), 4);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let hex = Digest::sha256(b"x").hex();
    let long = format!("blobs/sha256/{}", "../".repeat(60));
    for name in
        ["../x", "/etc/passwd", "blobs/sha256/../../x", "a/b", "blobs/sha256/xyz", "index.json/../x", &long]
    {
        let mut items = image().layout("1");
        items.insert(1, file(name, "x"));
        let error = refused(&items);
        assert!(matches!(&error, ImportError::Name { entry } if entry == name), "{error}");
    }
    let mut items = image().layout("1");
    items.push(Item::Folder(format!("blobs/sha256/{hex}/")));
    assert!(matches!(refused(&items), ImportError::Kind { .. }));
}

#[test]
fn only_regular_files_are_taken() {
    let blob = blob_name(b"x");
    let layer = format!("{}/layer.tar", Digest::sha256(b"x").hex());
    for item in [
        Item::Symlink(blob.clone(), "/etc/passwd".into()),
        Item::Symlink("index.json".into(), blob.clone()),
        Item::Symlink(layer, "../../../etc/passwd".into()),
        Item::Hard(blob.clone(), "index.json".into()),
        Item::Device(blob),
        file("blobs", "x"),
    ] {
        let mut items = image().layout("1");
        items.insert(0, item);
        assert!(matches!(refused(&items), ImportError::Kind { .. }));
    }
}

#[test]
fn duplicates_wrong_digests_and_wrong_lengths_are_refused() {
    for name in ["index.json", "oci-layout", &blob_name(&image().config)] {
        let mut items = image().layout("1");
        let Some(Item::File(_, bytes)) =
            items.iter().find(|item| matches!(item, Item::File(it, _) if it == name))
        else {
            panic!("{name}")
        };
        let bytes = bytes.clone();
        items.push(file(format!("./{name}"), bytes));
        assert!(matches!(refused(&items), ImportError::Duplicate { .. }));
    }
    let mut items = image().layout("1");
    items.push(file(blob_name(b"x"), "y"));
    assert!(matches!(refused(&items), ImportError::WrongDigest { .. }));

    let mut descriptor = image().descriptor();
    descriptor["size"] = json!(7);
    let mut items = image().items();
    items.push(file("index.json", index(&[descriptor])));
    assert!(matches!(refused(&items), ImportError::WrongLength { announced: 7, .. }));
}

#[test]
fn documents_that_are_two_things_or_none_are_refused() {
    let image = image();
    let both = json!({
        "schemaVersion": 2, "manifests": [image.descriptor()],
        "config": {"digest": Digest::sha256(&image.config), "size": image.config.len()}, "layers": [],
    });
    let twice = r#"{"schemaVersion": 2, "manifests": [], "manifests": []}"#.to_owned();
    let old = r#"{"schemaVersion": 1, "manifests": []}"#.to_owned();
    for text in [both.to_string(), twice, old, "{".to_owned(), "[]".to_owned(), String::new()] {
        let mut items = image.items();
        items.push(file("index.json", text.as_str()));
        let error = refused(&items);
        assert!(matches!(&error, ImportError::Json { entry, .. } if entry == "index.json"), "{error}");
    }
    // A manifest that says it is an index, in the descriptor or itself.
    let mut descriptor = image.descriptor();
    descriptor["mediaType"] = json!(OCI_INDEX);
    let mut items = image.items();
    items.push(file("index.json", index(&[descriptor])));
    assert!(matches!(refused(&items), ImportError::Json { .. }));

    let mut items = image.items();
    let mut descriptor = image.descriptor();
    descriptor["annotations"] = json!({"io.containerd.image.name": "a\nb"});
    items.push(file("index.json", index(&[descriptor])));
    assert!(matches!(refused(&items), ImportError::Json { .. }));

    let mut items = image.layout("1");
    items.retain(|item| !matches!(item, Item::File(name, _) if name == "oci-layout"));
    items.push(file("oci-layout", r#"{"imageLayoutVersion": "2.0.0"}"#));
    assert!(matches!(refused(&items), ImportError::Json { .. }));

    assert!(matches!(refused(&image.items()), ImportError::NoImage));
    assert!(matches!(refused(&[]), ImportError::NoImage));
}

#[test]
fn documents_are_bounded_in_length_depth_and_number() {
    let big = vec![b' '; (4 << 20) + 1];
    assert!(matches!(refused(&[file("index.json", big.clone())]), ImportError::TooLarge { .. }));
    assert!(matches!(refused(&[file("manifest.json", big.clone())]), ImportError::TooLarge { .. }));
    let config = format!("{}.json", Digest::sha256(&big).hex());
    assert!(matches!(refused(&[file(config, big.clone())]), ImportError::TooLarge { .. }));
    let root = json!({"mediaType": OCI_MANIFEST, "digest": Digest::sha256(&big), "size": big.len()});
    let items = [file(blob_name(&big), big.clone()), file("index.json", index(&[root]))];
    assert!(matches!(refused(&items), ImportError::TooLarge { .. }));

    let image = image();
    let mut items = image.items();
    let mut child = image.descriptor();
    for _ in 0..40 {
        let list = index(&[child]);
        child = json!({"mediaType": OCI_INDEX, "digest": Digest::sha256(&list), "size": list.len()});
        items.push(file(blob_name(&list), list));
    }
    items.push(file("index.json", index(&[child])));
    assert!(matches!(refused(&items), ImportError::TooMany { .. }));
}

#[test]
fn what_is_no_archive_or_ends_too_early_is_refused() {
    for bytes in [&b""[..], b"hello", &[7; 5000], &[0x28, 0xb5, 0x2f, 0xfd, 0], &gzip(b"no tar")] {
        assert!(matches!(refused_bytes(bytes), ImportError::NotAnArchive(_)));
    }
    let whole = archive(&image().layout("1"));
    let packed = gzip(&whole);
    for cut in (512..whole.len() - 1024).step_by(300) {
        let error = refused_bytes(&whole[..cut]);
        assert!(matches!(error, ImportError::Truncated { .. }), "{cut}: {error}");
    }
    for cut in (packed.len() / 2..packed.len() - 40).step_by(20) {
        let error = refused_bytes(&packed[..cut]);
        assert!(matches!(error, ImportError::Truncated { .. }), "{cut}: {error}");
    }
}

#[test]
fn an_archive_that_grows_beyond_measure_is_refused() {
    let bomb = gzip(&archive(&[file(blob_name(b"never"), vec![0; 100 << 20])]));
    assert!(matches!(refused_bytes(&bomb), ImportError::Ratio { .. }));
}

#[test]
fn a_header_cannot_make_the_reader_allocate() {
    // A long name of 8 GiB, announced and not there.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(8 << 30);
    header.set_cksum();
    let mut bytes = archive(&image().layout("1"));
    bytes.splice(0..0, header.as_bytes().iter().copied());
    assert!(matches!(refused_bytes(&bytes), ImportError::TooLarge { .. }));
}

#[test]
fn an_import_does_not_exceed_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreSettings { budget: Some(2 * 4096) }).unwrap();
    let error = take(&store, &archive(&image().layout("1"))).unwrap_err();
    assert!(matches!(&error, ImportError::Store { source, .. } if source.is_no_space()), "{error}");
    assert_eq!(store.usage().used, 0);
}

#[test]
fn progress_is_told() {
    #[derive(Default)]
    struct Heard(usize, u64);
    impl Progress for Heard {
        fn entry(&mut self, _: &str, _: u64) {
            self.0 += 1;
        }
        fn advanced(&mut self, bytes: u64) {
            self.1 += bytes;
        }
    }
    let image = image();
    let bytes = archive(&image.layout("1"));
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let total: usize = image.blobs().iter().map(|bytes| bytes.len()).sum();
    for _ in 0..2 {
        let mut heard = Heard::default();
        import(&store, &bytes[..], &mut heard).unwrap();
        assert_eq!((heard.0, heard.1), (5, total as u64));
    }
}

#[test]
fn a_folder_is_packed_and_its_links_are_not_followed() {
    let image = image();
    let folder = tempfile::tempdir().unwrap();
    unpack(&archive(&image.layout("1")), folder.path());
    fs::write(folder.path().join("notes.txt"), "not of the layout").unwrap();
    let mut packed = Vec::new();
    pack_directory(folder.path(), &mut packed).unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(take(&open(dir.path()), &packed).unwrap().images[0].digest, image.digest());

    let blob = folder.path().join(blob_name(&image.packed));
    fs::rename(&blob, folder.path().join("moved")).unwrap();
    symlink(folder.path().join("moved"), &blob).unwrap();
    assert!(
        matches!(pack_directory(folder.path(), std::io::sink()), Err(PackError::Kind(path)) if path == blob)
    );
    fs::remove_file(folder.path().join("index.json")).unwrap();
    assert!(matches!(pack_directory(folder.path(), std::io::sink()), Err(PackError::NotALayout(_))));
}

#[test]
fn what_is_not_held_is_not_exported() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let wanted = [ExportImage { names: vec!["app:1".into()], manifest: image.digest() }];
    let missing = |store: &Store| export(store, &wanted, std::io::sink()).unwrap_err();
    assert!(matches!(missing(&store), ExportError::Missing { .. }));
    store.put(&image.digest(), &image.manifest).unwrap();
    let error = missing(&store);
    assert!(
        matches!(&error, ExportError::Missing { digest, .. } if **digest == Digest::sha256(&image.packed)),
        "{error}"
    );
    assert!(matches!(export(&store, &[], std::io::sink()), Err(ExportError::Nothing)));
}

/// Changes one byte of a header and makes its checksum right again.
fn edit_header(archive: &mut [u8], at: f64, value: u8) {
    let headers: Vec<usize> = (0..archive.len() / 512)
        .map(|block| block * 512)
        .filter(|start| &archive[start + 257..start + 262] == b"ustar")
        .collect();
    let at = at * headers.len() as f64;
    let start = headers[at as usize];
    let block = &mut archive[start..start + 512];
    block[(at.fract() * 512.0) as usize] = value;
    let mut header = tar::Header::from_byte_slice(block).clone();
    header.set_cksum();
    block.copy_from_slice(header.as_bytes());
}

proptest! {
    /// Whatever happens to an archive's bytes: an image that comes in is whole and true, and what is refused
    /// leaves nothing.
    #[test]
    fn no_mutation_of_an_archive_gets_a_wrong_blob_in(
        docker in any::<bool>(),
        compress in any::<bool>(),
        edits in prop::collection::vec((0.0..1.0f64, any::<u8>(), 0..5u8), 1..6),
    ) {
        let image = image();
        let items = if docker { image.docker_archive("app:1") } else { image.layout("1") };
        let mut bytes = archive(&items);
        for (at, value, what) in &edits {
            if *what == 4 { edit_header(&mut bytes, *at, *value); }
        }
        if compress { bytes = gzip(&bytes); }
        for (at, value, what) in edits {
            let at = ((bytes.len() as f64) * at) as usize;
            match what {
                0 => bytes[at] ^= value,
                1 => bytes.truncate(at.max(1)),
                2 => { bytes.splice(at..at, std::iter::repeat_n(value, 512)); }
                4 => {}
                _ => { bytes.drain(at..bytes.len().min(at + 512)); }
            }
            if bytes.is_empty() { bytes.push(0); }
        }
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        match take(&store, &bytes) {
            Ok(imported) => {
                for image in &imported.images {
                    for blob in &image.blobs { prop_assert!(store.verify(blob).unwrap()); }
                }
            }
            Err(_) => prop_assert_eq!(store.usage().used, 0),
        }
    }

    #[test]
    fn no_bytes_at_all_make_the_reader_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let dir = tempfile::tempdir().unwrap();
        prop_assert!(take(&open(dir.path()), &bytes).is_err());
    }
}
