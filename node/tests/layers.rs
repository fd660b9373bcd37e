//! Layers as strangers may have made them: what they do to a disk, and what they cannot do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod layers_support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use layers_support::{Memory, Tar, caller, gzip, listed, place, unpacked, unpacks_to_nothing, zstd};
use proptest::prelude::*;
use tempfile::tempdir;
use wherry_node::layers::unpack::{UnpackError, unpack};
use wherry_node::layers::{Budget, Image, ImageConfig, LayerError, TreeError};
use wherry_proto::Digest;

/// The error of a layer.
fn layer_error(error: UnpackError) -> LayerError {
    match error {
        UnpackError::Layer(error) => error,
        error => panic!("{error}"),
    }
}

fn entry_error(layers: &[Vec<u8>]) -> TreeError {
    match layer_error(unpacks_to_nothing(Memory::of(layers))) {
        LayerError::Entry { source, .. } => source,
        error => panic!("{error}"),
    }
}

#[test]
fn a_bundle_has_the_files_of_all_layers_with_modes_times_links_and_attributes() {
    let base = Tar::new()
        .folder("./", 0o755)
        .folder("etc/", 0o750)
        .file("etc/conf", 0o640, b"old")
        .file("usr/bin/tool", 0o4755, b"#!/bin/sh\n")
        .symlink("bin", "usr/bin")
        .symlink("/etc/far", "/../../outside")
        .hard_link("etc/again", "./etc/conf")
        .pipe("run/pipe")
        .folder("closed/", 0o000)
        .file("closed/in", 0o000, b"x");
    let top = Tar::new()
        .file("bin/.wh.tool", 0o644, b"")
        .file("bin/other", 0o711, b"other")
        .pax(&[("mtime", b"1600000000.125"), ("SCHILY.xattr.user.note", b"a\nb")])
        .file("etc/noted", 0o600, b"n")
        .file("etc/conf", 0o600, b"new")
        .pax(&[("path", "long/".repeat(40).as_bytes())])
        .folder("long/", 0o700);
    let (_home, place, told) = unpacked(&[base.end(), gzip(&top.end())]);
    let rootfs = place.join("rootfs");
    let read = |path: &str| fs::read_to_string(rootfs.join(path)).unwrap();
    let mode = |path: &str| fs::symlink_metadata(rootfs.join(path)).unwrap().mode() & 0o7777;
    assert_eq!((read("etc/conf"), read("etc/again")), ("new".to_owned(), "old".to_owned()));
    assert_eq!((read("usr/bin/other"), mode("usr/bin/other")), ("other".to_owned(), 0o711));
    assert!(!rootfs.join("usr/bin/tool").exists());
    assert_eq!((mode("etc"), mode("etc/again"), mode("closed"), mode("usr")), (0o750, 0o640, 0, 0o755));
    assert_eq!(fs::read_link(rootfs.join("etc/far")).unwrap(), Path::new("/../../outside"));
    let noted = fs::metadata(rootfs.join("etc/noted")).unwrap();
    assert_eq!((noted.mtime(), noted.mtime_nsec()), (1_600_000_000, 125_000_000));
    assert_eq!(fs::metadata(rootfs.join("etc")).unwrap().mtime(), layers_support::MTIME);
    let mut value = [0; 8];
    match rustix::fs::getxattr(rootfs.join("etc/noted"), "user.note", &mut value) {
        Ok(length) => assert_eq!(&value[..length], b"a\nb"),
        // A temporary folder may be on a file system that has none.
        Err(errno) => assert_eq!((errno, told.left_out.attributes), (rustix::io::Errno::NODATA, 1)),
    }
    assert!(rootfs.join("long/".repeat(40)).is_dir());
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o700);
    // Or it could not be removed by whom it is closed to.
    fs::set_permissions(rootfs.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn what_a_program_may_do_outlives_its_owner_and_what_layers_must_not_say_is_left_out() {
    // CAP_NET_RAW, in the second version of its layout. A change of the owner would take it away.
    let held = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Tar::new()
        .pax(&[("uid", b"33"), ("SCHILY.xattr.security.capability", &held)])
        .file("ping", 0o4755, b"x")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .folder("d", 0o755);
    let (_home, place, told) = unpacked(&[layer.end()]);
    let mut value = [0; 64];
    match rustix::fs::getxattr(place.join("rootfs/ping"), "security.capability", &mut value) {
        Ok(length) => assert_eq!((&value[..length], told.left_out.attributes), (&held[..], 1)),
        // Whoever runs the tests may not set it, or their temporary folder cannot have it.
        Err(_) => assert_eq!(told.left_out.attributes, 2),
    }
    rustix::fs::getxattr(place.join("rootfs/d"), "trusted.overlay.opaque", &mut value).unwrap_err();
    let ping = fs::metadata(place.join("rootfs/ping")).unwrap();
    assert_eq!(ping.mode() & 0o7777, 0o4755);
    assert_eq!(ping.uid() == 33, told.left_out.owners == 0);
}

#[test]
fn the_configuration_of_a_bundle_says_what_the_images_says() {
    let layer = Tar::new()
        .file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\nann:x:70:71::/:/bin/sh\n")
        .file("etc/group", 0o644, b"sea:x:72:ann\n");
    let config = ImageConfig {
        entrypoint: vec!["/app".to_owned()],
        cmd: vec!["-v".to_owned(), "a b".to_owned()],
        env: vec!["TIDE=high".to_owned()],
        working_dir: "/srv".to_owned(),
        user: "ann".to_owned(),
        stop_signal: "SIGINT".to_owned(),
        labels: [("by".to_owned(), "ada".to_owned())].into(),
        ..ImageConfig::default()
    };
    let make = |config: &ImageConfig| {
        let (home, mut memory) = (tempdir().unwrap(), Memory::of(&[layer.clone().end()]));
        let place = home.path().join("bundle");
        let told = unpack(memory.image(), config, &mut memory, &place, caller())?;
        let text = fs::read(place.join("config.json")).unwrap();
        Ok::<_, UnpackError>((told, serde_json::from_slice::<serde_json::Value>(&text).unwrap()))
    };
    let (told, made) = make(&config).unwrap();
    assert!(!told.no_program);
    let process = &made["process"];
    assert_eq!(process["args"], serde_json::json!(["/app", "-v", "a b"]));
    assert_eq!(process["cwd"], "/srv");
    assert_eq!((&process["user"]["uid"], &process["user"]["gid"]), (&70.into(), &71.into()));
    assert!(process["env"].as_array().unwrap().contains(&"TIDE=high".into()));
    assert!(process["env"][0].as_str().unwrap().starts_with("PATH="));
    assert_eq!(process["capabilities"]["effective"], serde_json::json!([]), "it is not root");
    assert_eq!(made["root"]["path"], "rootfs");
    assert_eq!(made["annotations"]["by"], "ada");
    assert_eq!(made["annotations"]["org.opencontainers.image.stopSignal"], "SIGINT");

    let (told, made) = make(&ImageConfig::default()).unwrap();
    assert!(told.no_program);
    assert_eq!((&made["process"]["args"][0], &made["process"]["cwd"]), (&"/bin/sh".into(), &"/".into()));
    let nobody = ImageConfig { user: "bob".to_owned(), ..ImageConfig::default() };
    assert!(make(&nobody).is_err_and(|error| error.to_string().contains("'bob'")));
}

#[test]
fn names_that_lead_out_are_refused_and_absolute_ones_begin_at_the_root_of_the_image() {
    for name in ["../outside", "a/../../outside", "..", "/../outside"] {
        assert_eq!(entry_error(&[Tar::new().file(name, 0o644, b"x").end()]), TreeError::GoesUp, "{name}");
        let link = Tar::new().file("f", 0o644, b"x").hard_link("h", name);
        assert_eq!(entry_error(&[link.end()]), TreeError::GoesUp, "{name}");
    }
    let outside = tempdir().unwrap();
    let absolute = outside.path().join("file");
    let name = absolute.to_str().unwrap();
    let (_home, place, _) = unpacked(&[Tar::new().file(name, 0o644, b"x").end()]);
    assert!(!absolute.exists());
    assert!(place.join("rootfs").join(name.trim_start_matches('/')).exists());
}

#[test]
fn nothing_is_written_through_a_link_that_leads_out() {
    let outside = tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    fs::write(outside.path().join("kept"), "kept").unwrap();
    let up = format!("{}{target}", "../".repeat(20));
    for to in [target, up.as_str()] {
        let one = Tar::new().symlink("l", to).file("l/new", 0o644, b"x").file("l/kept", 0o644, b"x");
        let last = Tar::new()
            .symlink("k", &format!("{to}/kept"))
            .file("k", 0o644, b"x")
            .file("l/.wh.kept", 0o644, b"")
            .file("l/.wh..wh..opq", 0o644, b"");
        let (_home, place, _) = unpacked(&[one.end(), last.end()]);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(outside.path().join("kept")).unwrap(), "kept");
        assert!(place.join("rootfs").join(target.trim_start_matches('/')).is_dir());
        assert_eq!(fs::read_to_string(place.join("rootfs/k")).unwrap(), "x");
    }
    // A hard link has its own idea of where a file is.
    let kept = outside.path().join("kept");
    let linked = Tar::new().hard_link("h", kept.to_str().unwrap());
    assert!(matches!(entry_error(&[linked.end()]), TreeError::NoTarget(_)));
    let through = Tar::new().symlink("l", target).hard_link("h", "l/kept");
    assert!(matches!(entry_error(&[through.end()]), TreeError::NoTarget(_)));
    // To a symbolic link itself it may lead.
    let (_home, place, _) =
        unpacked(&[Tar::new().symlink("l", kept.to_str().unwrap()).hard_link("h", "l").end()]);
    assert_eq!(fs::read_link(place.join("rootfs/h")).unwrap(), kept);
    assert_eq!(fs::metadata(&kept).unwrap().nlink(), 1);
}

#[test]
fn devices_are_made_for_root_and_left_out_for_others() {
    let layer =
        Tar::new().device("dev/null", 1, 3).file("dev/x", 0o644, b"").hard_link("dev/zero", "dev/null").end();
    let (_home, place, told) = unpacked(std::slice::from_ref(&layer));
    let null = fs::symlink_metadata(place.join("rootfs/dev/null"));
    match told.left_out.devices {
        0 => assert_eq!(null.unwrap().rdev(), rustix::fs::makedev(1, 3)),
        // A root that may not make devices.
        devices => assert!(devices == 2 && null.is_err()),
    }
    let (home, mut memory) = (tempdir().unwrap(), Memory::of(&[layer]));
    let place = home.path().join("bundle");
    let other = wherry_node::layers::unpack::Caller { uid: 1000, gid: 1000 };
    let told = unpack(memory.image(), &ImageConfig::default(), &mut memory, &place, other).unwrap();
    assert_eq!(told.left_out.devices, 2);
    assert!(!place.join("rootfs/dev/null").exists() && place.join("rootfs/dev/x").exists());
    // One that was left out can be hidden and replaced like any file.
    let layers = [
        Tar::new().device("a", 1, 3).device("d/b", 1, 3).end(),
        Tar::new().file("a", 0o644, b"x").file(".wh.d", 0o644, b"").end(),
    ];
    let (home, mut memory) = (tempdir().unwrap(), Memory::of(&layers));
    let place = home.path().join("bundle");
    unpack(memory.image(), &ImageConfig::default(), &mut memory, &place, other).unwrap();
    assert_eq!(listed(&place.join("rootfs")), ["a x"]);
}

#[test]
fn files_become_folders_and_folders_files_on_the_disk_too() {
    let lower =
        Tar::new().folder("a", 0o500).folder("a/b", 0o000).file("a/b/c", 0o000, b"1").file("f", 0o644, b"2");
    let upper = Tar::new()
        .file("a", 0o644, b"3")
        .folder("f", 0o755)
        .file("f/x", 0o644, b"4")
        .file("f/x", 0o644, b"5");
    let (_home, place, told) = unpacked(&[lower.end(), upper.end()]);
    assert_eq!(listed(&place.join("rootfs")), ["a 3", "f/", "f/x 5"]);
    assert_eq!(told.files, 3);
}

#[test]
fn bombs_are_refused_before_they_go_off() {
    let zeros = Tar::new().zeros("zeros", 64 << 20).end();
    for (bomb, kind) in [(gzip(&zeros), "gzip"), (zstd(&zeros), "zstd")] {
        assert!(zeros.len() / bomb.len() > 300, "{kind}: {}", bomb.len());
        let refused = |budget: Budget| {
            let (home, mut memory) = (tempdir().unwrap(), Memory::of(std::slice::from_ref(&bomb)));
            let image = Image::with_budget(memory.layers(), budget);
            let error =
                unpack(image, &ImageConfig::default(), &mut memory, &place(&home), caller()).unwrap_err();
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "{kind}");
            layer_error(error)
        };
        let budget = Budget { grace: 8 << 20, ..Budget::default() };
        assert!(matches!(refused(budget), LayerError::Ratio { limit: 200, .. }), "{kind}");
        let budget = Budget { bytes: 8 << 20, ..Budget::default() };
        assert!(matches!(refused(budget), LayerError::TooMuch { what: "decompressed bytes", .. }), "{kind}");
    }
    let many = (0..50).fold(Tar::new(), |tar, number| tar.file(&number.to_string(), 0o644, b""));
    let mut memory = Memory::of(&[many.end()]);
    let mut image = Image::with_budget(memory.layers(), Budget { entries: 49, ..Budget::default() });
    let error = image.read_names(&mut memory).unwrap_err();
    assert!(matches!(error, LayerError::TooMuch { what: "entries", .. }), "{error}");
    // A window of zstd that would take more memory than there may be.
    let window = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8][..], &[0; 100]].concat();
    let error = layer_error(unpacks_to_nothing(Memory::of_unknown(&[window])));
    assert!(matches!(error, LayerError::Compression { .. }), "{error}");
}

#[test]
fn layers_that_are_not_what_was_meant_are_not_unpacked() {
    let layer = Tar::new().file("a", 0o644, b"x").file("b", 0o644, &[7; 5000]).end();
    for packed in [layer.clone(), gzip(&layer), zstd(&layer)] {
        let with = |change: &dyn Fn(&mut Memory)| {
            let mut memory = Memory::of_layer(&packed, &layer);
            change(&mut memory);
            layer_error(unpacks_to_nothing(memory))
        };
        let error = with(&|memory| {
            let bytes = memory.bytes(0);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
        assert!(matches!(error, LayerError::WrongDigest { .. }), "{error}");
        let error = with(&|memory| memory.bytes(0).push(0));
        assert!(matches!(error, LayerError::WrongLength { .. }), "{error}");
        for left in [0, 1, 100, packed.len() / 2, packed.len() - 1] {
            let error = with(&|memory| memory.bytes(0).truncate(left));
            assert!(matches!(error, LayerError::WrongLength { .. }), "{left}: {error}");
        }
        let error = with(&|memory| memory.layer(0).diff_id = Some(Digest::sha256(b"else")));
        assert!(matches!(error, LayerError::WrongContent { .. }), "{error}");
        let error = with(&|memory| memory.forget(0));
        assert!(matches!(error, LayerError::Read { .. }), "{error}");
        let error = with(&|memory| memory.layer(0).media_type = "application/vnd.wasm.content".to_owned());
        assert!(matches!(error, LayerError::NotAFileSystem { .. }), "{error}");
        // What it is compressed with the bytes tell.
        for media_type in [
            "",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ] {
            let mut memory = Memory::of_layer(&packed, &layer);
            memory.layer(0).media_type = media_type.to_owned();
            memory.image().read_names(&mut memory).unwrap();
        }
    }
}

#[test]
fn archives_that_were_cut_off_before_they_became_layers_are_refused() {
    let layer = Tar::new().file("a", 0o644, b"x").file("b", 0o644, &[7; 5000]).end();
    for left in [100, 512, 700, 1024, 1536, 3000] {
        let cut = layer[..left].to_vec();
        let whole = left == 1024;
        for packed in [cut.clone(), gzip(&cut), zstd(&cut)] {
            let mut memory = Memory::of_layer(&packed, &cut);
            let read = memory.image().read_names(&mut memory);
            // Where it ends behind an entry it is whole: not every writer puts zeros there.
            assert_eq!(read.is_ok(), whole, "{left}: {read:?}");
        }
        let packed = gzip(&cut);
        let torn = packed[..packed.len() - 9].to_vec();
        let error = layer_error(unpacks_to_nothing(Memory::of_unknown(&[torn])));
        assert!(
            matches!(error, LayerError::Archive { .. } | LayerError::Compression { .. }),
            "{left}: {error}"
        );
    }
    let mut garbage = Memory::of(&[vec![0xa5; 10_000]]);
    assert!(matches!(garbage.image().read_names(&mut garbage), Err(LayerError::Archive { .. })));
    // No bytes at all are no files.
    let mut empty = Memory::of(&[Vec::new()]);
    empty.image().read_names(&mut empty).unwrap();
}

#[test]
fn a_layer_may_come_in_several_parts_of_its_compression() {
    let layer = Tar::new().file("a", 0o644, &[1; 3000]).file("b", 0o644, b"2").end();
    let (one, other) = layer.split_at(2000);
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"notes"].concat();
    for packed in [
        [gzip(one), gzip(other)].concat(),
        [zstd(one), zstd(other)].concat(),
        [skipped.clone(), zstd(one), skipped.clone(), zstd(other), skipped].concat(),
    ] {
        let mut memory = Memory::of_layer(&packed, &layer);
        let mut image = memory.image();
        image.read_names(&mut memory).unwrap();
        assert!(image.tree().find(b"b").is_ok());
    }
    let torn = [zstd(&layer), vec![0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 1]].concat();
    assert!(matches!(
        layer_error(unpacks_to_nothing(Memory::of_unknown(&[torn]))),
        LayerError::Compression { .. }
    ));
}

#[test]
fn entries_that_no_layer_has_are_refused() {
    let unreadable = |error: TreeError| assert!(matches!(error, TreeError::Unreadable(_)), "{error}");
    unreadable(entry_error(&[Tar::new().of_type(b'S', "sparse").end()]));
    unreadable(entry_error(&[Tar::new()
        .pax(&[("GNU.sparse.major", b"1")])
        .file("sparse", 0o644, b"")
        .end()]));
    unreadable(entry_error(&[Tar::new().of_type(b'Z', "odd").end()]));
    unreadable(entry_error(&[Tar::new().pax(&[("uid", b"4294967296")]).file("far", 0o644, b"").end()]));
    assert_eq!(entry_error(&[Tar::new().symlink("l", "").end()]), TreeError::Target);
    assert_eq!(entry_error(&[Tar::new().file(".wh...", 0o644, b"").end()]), TreeError::Whiteout);
    let long = "n".repeat(256);
    assert_eq!(
        entry_error(&[Tar::new().pax(&[("path", long.as_bytes())]).file("x", 0o644, b"").end()]),
        TreeError::Name
    );
    let endless = vec![b'n'; 70_000];
    let error = layer_error(unpacks_to_nothing(Memory::of(&[Tar::new()
        .pax(&[("path", &endless)])
        .file("x", 0o644, b"")
        .end()])));
    assert!(matches!(error, LayerError::Archive { .. }), "{error}");
}

#[test]
fn a_place_that_is_taken_or_cannot_be_reached_stays_as_it_is() {
    let home = tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/x"), "x").unwrap();
    fs::write(at("file"), "x").unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    let unpack_to = |place: &Path| {
        let mut memory = Memory::of(&[Tar::new().file("a", 0o644, b"x").end()]);
        unpack(memory.image(), &ImageConfig::default(), &mut memory, place, caller())
    };
    for taken in ["full", "file", "dangling"] {
        let error = unpack_to(&at(taken)).unwrap_err();
        assert!(matches!(error, UnpackError::Occupied(_)), "{taken}: {error}");
    }
    assert!(matches!(unpack_to(&at("no/such")).unwrap_err(), UnpackError::Place { .. }));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 3);
    // Behind a link is what it leads to.
    fs::create_dir(at("empty")).unwrap();
    std::os::unix::fs::symlink("empty", at("link")).unwrap();
    unpack_to(&at("link")).unwrap();
    assert!(at("empty/rootfs/a").exists());
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
}

#[test]
fn a_file_is_copied_from_the_layer_that_has_it() {
    let lower = Tar::new().file("a", 0o644, b"old").file("b", 0o644, &[7; 200_000]).file("a", 0o644, b"new");
    let upper = Tar::new().file("a", 0o644, b"newest").hard_link("c", "b");
    let mut memory = Memory::of(&[gzip(&lower.end()), zstd(&upper.end())]);
    let mut image = memory.image();
    image.read_names(&mut memory).unwrap();
    for (path, content) in [("a", b"newest".to_vec()), ("b", vec![7; 200_000]), ("c", vec![7; 200_000])] {
        let found = image.tree().find(path.as_bytes()).unwrap();
        let wherry_node::layers::Kind::File { place, .. } = image.tree().inode(found.inode).kind else {
            panic!()
        };
        let mut out = Vec::new();
        image.copy(place, &mut memory, &mut out).unwrap();
        assert!(out == content, "{path}");
    }
}

/// Whatever an archive of this kind may have, in a few bytes.
fn sample() -> Tar {
    Tar::new()
        .folder("d", 0o755)
        .file("d/f", 0o644, b"content")
        .symlink("l", "d")
        .symlink("out", "/tmp/wherry-outside")
        .hard_link("h", "d/f")
        .pax(&[("path", b"out/p"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"v")])
        .file("p", 0o600, b"pax")
        .long_name(&"n".repeat(150), b"long")
        .pipe("pipe")
        .file("d/.wh.g", 0o644, b"")
        .file("l/.wh..wh..opq", 0o644, b"")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_of_an_archive_gets_anything_out_of_the_folder(
        changes in proptest::collection::vec((0usize..8192, any::<u8>()), 1..6),
        mend in any::<bool>(),
        cut in proptest::option::of(0usize..8192),
        packing in 0u8..3,
    ) {
        let mut layer = sample().end();
        for (at, byte) in changes {
            let at = at % layer.len();
            layer[at] = byte;
        }
        if mend {
            // Most changes would be noticed by a checksum alone.
            layers_support::mend(&mut layer);
        }
        if let Some(cut) = cut {
            layer.truncate(cut % layer.len());
        }
        let packed = match packing { 0 => layer.clone(), 1 => gzip(&layer), _ => zstd(&layer) };
        let home = tempdir().unwrap();
        let mut memory = Memory::of_layer(&packed, &layer);
        let image = memory.image();
        let unpacked = unpack(image, &ImageConfig::default(), &mut memory, &place(&home), caller());
        prop_assert!(!Path::new("/tmp/wherry-outside").exists());
        let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        match unpacked {
            Ok(_) => prop_assert_eq!(left, ["bundle"]),
            Err(_) => prop_assert_eq!(left.len(), 0),
        }
    }

    #[test]
    fn no_mutation_of_compressed_bytes_makes_the_reader_fall_over(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        with_zstd in any::<bool>(),
    ) {
        let layer = sample().end();
        let mut packed = if with_zstd { zstd(&layer) } else { gzip(&layer) };
        for (at, byte) in changes {
            let at = at % packed.len();
            packed[at] = byte;
        }
        let mut memory = Memory::of_unknown(&[packed]);
        let _ = memory.image().read_names(&mut memory);
    }
}

#[test]
fn a_bundle_that_is_given_up_half_way_leaves_nothing() {
    // Folders that are closed, also to their own user, are in the way of whoever takes them away again.
    let home = tempdir().unwrap();
    let mut memory =
        Memory::of(&[Tar::new().folder("closed", 0o000).file("closed/a", 0o000, b"x").end(), vec![1; 600]]);
    let error =
        unpack(memory.image(), &ImageConfig::default(), &mut memory, &place(&home), caller()).unwrap_err();
    assert!(matches!(layer_error(error), LayerError::Archive { .. }));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}
