//! Images that come and go as archives, and archives that nobody should trust.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tar::{Builder, EntryType, Header};
use wherry_proto::Digest;
use wherry_tests::clients::{Podman, Skopeo};
use wherry_tests::images::{GREETING, Images};
use wherry_tests::lab::Lab;
use wherry_tests::node::{Options, Wherry};

#[test]
fn an_export_is_read_by_podman_and_by_skopeo_in_both_forms() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let mut origin = images.origin(&lab, "origin")?;
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let podman = Podman::new(&lab, "podman")?;
    for (image, name) in [(&images.teaching, "teaching"), (&images.by_podman, "by-podman")] {
        let reference = image.reference(origin.host());
        node.run(&["pull", &reference])?;
        let archive = lab.path().join(format!("{name}.tar"));
        node.run(&["export", &reference, "-o", &archive.display().to_string()])?;
        // The manifest in the oci-layout half is the origin's, byte for byte.
        let copied = lab.path().join(format!("{name}-copied"));
        skopeo.copy(&format!("oci-archive:{}", archive.display()), &format!("dir:{}", copied.display()))?;
        assert_eq!(Digest::sha256(&fs::read(copied.join("manifest.json"))?), image.manifest);
        let inspected = wherry_tests::process::run(
            skopeo
                .command()
                .args(["inspect", "--config"])
                .arg(format!("docker-archive:{}", archive.display())),
        )?;
        assert!(inspected.contains("rootfs"), "{inspected}");
        let said = podman.load(&archive)?;
        assert!(said.contains(&image.name()), "{said}");
        if name == "teaching" {
            assert_eq!(podman.run(&reference, &[])?.trim(), GREETING);
        }
    }
    origin.stop()
}

#[test]
fn an_import_makes_an_image_that_needs_no_cloud() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let from = format!("docker://{}", images.by_podman.reference(origin.host()));
    let layout = lab.path().join("layout");
    let archive = lab.path().join("oci.tar");
    let docker = lab.path().join("docker.tar");
    skopeo.copy(&from, &format!("oci:{}:site.example/lab/layout:1", layout.display()))?;
    skopeo.copy(&from, &format!("oci-archive:{}:site.example/lab/oci:1", archive.display()))?;
    skopeo.copy(&from, &format!("docker-archive:{}:site.example/lab/docker:1", docker.display()))?;
    drop(origin);

    let node = Wherry::start(&lab, "node", Options::default())?;
    for path in [&layout, &archive, &docker] {
        node.run(&["import", &path.display().to_string()])?;
    }
    let listed = node.json(&["images"])?.to_string();
    for name in ["site.example/lab/layout", "site.example/lab/oci", "site.example/lab/docker"] {
        assert!(listed.contains(name), "{name} is not in {listed}");
    }
    // By path prefix, as podman and skopeo are pointed at a gateway.
    let gateway = node.gateway()?;
    for name in ["layout", "oci"] {
        let pulled = skopeo.pull(&format!("{gateway}/site.example/lab/{name}:1"), name)?;
        pulled.check(&images.by_podman)?;
    }
    let pulled = skopeo.pull(&format!("{gateway}/site.example/lab/docker:1"), "docker")?;
    let manifest = fs::read_to_string(pulled.folder().join("manifest.json"))?;
    let config = images.by_podman.config.digest.to_string();
    assert!(manifest.contains(&config), "the config of a docker-archive is the image's id: {manifest}");

    // And through a pipe.
    let other = Wherry::start(&lab, "other", Options::default())?;
    let mut piped = other.command()?;
    piped.args(["import", "-"]).stdin(fs::File::open(&archive)?);
    wherry_tests::process::run(&mut piped)?;
    assert!(other.json(&["images"])?.to_string().contains("site.example/lab/oci"));
    Ok(())
}

#[test]
fn a_layout_that_has_a_tag_and_no_name_gives_its_image_none_and_says_which_flag_does() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let layout = lab.path().join("layout");
    let path = layout.display().to_string();
    let from = format!("docker://{}", images.by_podman.reference(origin.host()));
    skopeo.copy(&from, &format!("oci:{path}:latest"))?;
    let node = Wherry::start(&lab, "node", Options::default())?;
    let mut import = node.begin("import", &["import", &path])?;
    ensure!(import.wait_exit(std::time::Duration::from_secs(60))?.success(), "{}", import.tail());
    let said = import.stderr()?;
    for part in ["the tag latest and no name", &format!("'wherry import --name REPOSITORY:latest {path}'")] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let none = format!("<none>@{}", images.by_podman.manifest);
    assert_eq!(node.whole_images()?, [none.as_str()]);
    let imported = node.json(&["import", "--name", "edge/app:1", &path])?;
    assert_eq!(imported["images"][0]["reference"], "docker.io/edge/app:1", "{imported}");
    Ok(())
}

/// What an archive is made of.
enum Entry<'a> {
    File(&'a str, &'a [u8]),
    Symlink(&'a str, &'a str),
    Hardlink(&'a str, &'a str),
    Device(&'a str),
}

fn archive(path: PathBuf, entries: &[Entry<'_>]) -> Result<PathBuf> {
    let mut builder = Builder::new(fs::File::create(&path)?);
    for entry in entries {
        let mut header = Header::new_ustar();
        header.set_mode(0o644);
        let (name, kind, link, content): (_, _, _, &[u8]) = match *entry {
            Entry::File(name, content) => (name, EntryType::Regular, None, content),
            Entry::Symlink(name, to) => (name, EntryType::Symlink, Some(to), &[]),
            Entry::Hardlink(name, to) => (name, EntryType::Link, Some(to), &[]),
            Entry::Device(name) => (name, EntryType::Char, None, &[]),
        };
        // Written past the library's own care for paths, which is not what is on trial here.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        if let Some(to) = link {
            header.as_mut_bytes()[157..157 + to.len()].copy_from_slice(to.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, content)?;
    }
    builder.into_inner()?;
    Ok(path)
}

#[test]
fn archives_with_tricks_are_refused_and_leave_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", Options::default())?;
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config_name = format!("blobs/sha256/{}", Digest::sha256(config).hex());
    let other_name = format!("blobs/sha256/{}", "0".repeat(64));
    let manifest = |config: &str, layers: &str| {
        format!(r#"[{{"Config":"{config}","RepoTags":["site.example/trick:1"],"Layers":[{layers}]}}]"#)
            .into_bytes()
    };
    let index = |digest: &str| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":2}}]}}"#
        )
        .into_bytes()
    };
    let layout: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let outside = lab.path().join("outside");
    let outside = outside.display().to_string();
    let well = manifest(&config_name, "");
    let missing_layer = manifest(&config_name, "\"layer.tar\"");
    let up = manifest("../../../../etc/passwd", "");
    let huge = vec![b' '; 2 << 20];
    let wrong = index(&format!("sha256:{}", "0".repeat(64)));
    let escape = index("sha256:../../../../etc/passwd");

    let tricks: Vec<(&str, Vec<Entry<'_>>)> = vec![
        ("empty", vec![]),
        ("no manifest", vec![Entry::File(&config_name, config)]),
        ("manifest is no json", vec![Entry::File("manifest.json", b"{")]),
        ("manifest too long", vec![Entry::File("manifest.json", &huge)]),
        ("missing config", vec![Entry::File("manifest.json", &well)]),
        (
            "missing layer",
            vec![Entry::File("manifest.json", &missing_layer), Entry::File(&config_name, config)],
        ),
        ("config above", vec![Entry::File("manifest.json", &up)]),
        ("parent path", vec![Entry::File("../../outside", b"x"), Entry::File("manifest.json", &well)]),
        ("absolute path", vec![Entry::File(&outside, b"x"), Entry::File("manifest.json", &well)]),
        (
            "symbolic link",
            vec![Entry::Symlink(&config_name, "/etc/passwd"), Entry::File("manifest.json", &well)],
        ),
        (
            "hard link",
            vec![Entry::Hardlink(&config_name, "/etc/passwd"), Entry::File("manifest.json", &well)],
        ),
        ("device", vec![Entry::Device(&config_name), Entry::File("manifest.json", &well)]),
        (
            "wrong digest",
            vec![
                Entry::File("oci-layout", layout),
                Entry::File("index.json", &wrong),
                Entry::File(&other_name, b"{}"),
            ],
        ),
        ("digest with a path", vec![Entry::File("oci-layout", layout), Entry::File("index.json", &escape)]),
    ];
    for (name, entries) in tricks {
        let path = archive(lab.path().join(format!("{}.tar", name.replace(' ', "-"))), &entries)?;
        refuses(&node, &path, name)?;
    }
    assert!(!lab.path().join("outside").exists());
    Ok(())
}

#[test]
fn an_archive_that_was_cut_off_anywhere_is_refused_and_the_whole_one_is_taken() -> Result<()> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let skopeo = Skopeo::new(&lab, "skopeo")?;
    let whole = lab.path().join("whole.tar");
    let from = format!("docker://{}", images.second.reference(origin.host()));
    skopeo.copy(&from, &format!("oci-archive:{}:site.example/lab/second:1", whole.display()))?;
    let node = Wherry::start(&lab, "node", Options::default())?;
    let bytes = fs::read(&whole)?;
    for part in [0, 100, 512, 10_000, bytes.len() / 2, bytes.len() * 9 / 10] {
        let path = lab.file("part.tar", &bytes[..part])?;
        refuses(&node, &path, &format!("{part} of {} bytes", bytes.len()))?;
    }
    let garbage = lab.file("garbage", vec![0xa5; 100_000])?;
    refuses(&node, &garbage, "garbage")?;
    refuses(&node, &lab.path().join("no-such-file"), "a missing file")?;
    refuses(&node, &lab.folder("empty-folder")?, "an empty folder")?;
    node.run(&["import", &whole.display().to_string()])?;
    skopeo.pull(&format!("{}/site.example/lab/second:1", node.gateway()?), "pulled")?.check(&images.second)
}

fn refuses(node: &Wherry, path: &Path, what: &str) -> Result<()> {
    let said = node.fails(&["import", &path.display().to_string()])?;
    let images = node.json(&["images"])?;
    let empty = images.as_array().or(images["images"].as_array()).is_some_and(Vec::is_empty);
    ensure!(empty, "{what} left {images}, and said {said}");
    Ok(())
}
