//! Layers looked into: what is in an image is what other programs say is in it, and a bundle of it runs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use wherry_proto::Digest;
use wherry_tests::blobs::{Image, OCI_MANIFEST, push_image};
use wherry_tests::clients::Podman;
use wherry_tests::images::Images;
use wherry_tests::lab::{Lab, unmount_below};
use wherry_tests::node::{Options, Wherry};
use wherry_tests::process::{run, tool};
use wherry_tests::registry::Registry;
use wherry_tests::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(180);

const SOON: Duration = Duration::from_secs(60);

/// All that is in a folder, by its path: type and mode, owner, time, and what is in it or where it leads. Times of folders
/// are left out where whoever made them goes on working there.
fn listed(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            let kind = meta.file_type();
            let what = match () {
                () if kind.is_dir() => {
                    folders.push(path.clone());
                    "folder".to_owned()
                }
                () if kind.is_symlink() => format!("-> {}", path.read_link()?.display()),
                () if kind.is_file() => {
                    format!(
                        "{} names, {} {}",
                        meta.nlink(),
                        meta.size(),
                        Digest::sha256(&fs::read(&path)?).short()
                    )
                }
                () if kind.is_char_device() || kind.is_block_device() => format!("device {:x}", meta.rdev()),
                () => "other".to_owned(),
            };
            let line = format!("{:o} {}:{} {} {what}", meta.mode(), meta.uid(), meta.gid(), meta.mtime());
            found.insert(path.strip_prefix(root)?.to_owned(), line);
        }
    }
    Ok(found)
}

/// Says of two listings where they differ.
fn same(ours: &BTreeMap<PathBuf, String>, theirs: &BTreeMap<PathBuf, String>) -> Result<()> {
    let paths = ours.keys().chain(theirs.keys());
    let different: Vec<String> = paths
        .filter(|path| ours.get(*path) != theirs.get(*path))
        .take(20)
        .map(|path| format!("{}: {:?}, there {:?}", path.display(), ours.get(path), theirs.get(path)))
        .collect();
    ensure!(different.is_empty(), "{}", different.join("\n"));
    Ok(())
}

/// The root file system of an image that podman has, mounted.
fn mounted(podman: &Podman, reference: &str) -> Result<PathBuf> {
    Ok(PathBuf::from(run(podman.command().args(["image", "mount", reference]))?.trim()))
}

/// Builds an image with podman and pushes it to a node, as `site.wherry/NAME:1`.
fn built(
    lab: &Lab,
    podman: &Podman,
    node: &Wherry,
    name: &str,
    recipe: &str,
    files: &[(&str, &str)],
) -> Result<String> {
    let context = lab.folder(&format!("context-{name}"))?;
    fs::write(context.join("Dockerfile"), recipe)?;
    for (path, content) in files {
        fs::write(context.join(path), content)?;
    }
    podman.build(&format!("localhost/{name}:1"), &context)?;
    podman.push(&format!("localhost/{name}:1"), &format!("{}/site.wherry/{name}:1", node.gateway()?))?;
    Ok(format!("site.wherry/{name}:1"))
}

/// Runs a bundle.
fn runc(lab: &Lab, bundle: &Path, name: &str) -> Result<String> {
    let mut command = tool("runc", LIMIT);
    command.arg("--root").arg(lab.path().join("runc")).args(["run", "--bundle"]).arg(bundle).arg(name);
    run(&mut command)
}

/// Real images at a registry, and a node that knows it.
fn place() -> Result<(Lab, Images, Registry, Wherry)> {
    let (lab, images) = (Lab::new()?, Images::get()?);
    let origin = images.origin(&lab, "origin")?;
    let node = Wherry::start(&lab, "node", Options::origin(origin.host()))?;
    Ok((lab, images, origin, node))
}

#[test]
fn an_unpacked_image_has_the_files_that_podman_has_of_it_and_runc_runs_it() -> Result<()> {
    let (lab, images, origin, node) = place()?;
    let podman = Podman::new(&lab, "podman")?;
    for (image, name, says) in
        [(&images.teaching, "teaching", "ahoy from the fog"), (&images.second, "second", "built by podman")]
    {
        let reference = image.reference(origin.host());
        node.run(&["pull", &reference])?;
        podman.pull(&reference)?;
        let bundle = lab.path().join(name);
        let told = node.json(&["unpack", &reference, &bundle.display().to_string()])?;
        let ours = listed(&bundle.join("rootfs"))?;
        let theirs = mounted(&podman, &reference)?;
        same(&ours, &listed(&theirs)?)?;
        assert_eq!(told["files"], ours.len(), "{told}");
        assert_eq!(told["left_out"], json!({ "owners": 0, "devices": 0, "attributes": 0 }));
        assert_eq!(fs::metadata(&bundle)?.permissions().mode() & 0o7777, 0o700);
        assert_eq!(runc(&lab, &bundle, &format!("wherry-{name}-{}", std::process::id()))?.trim(), says);
    }
    // What is there is not touched.
    let occupied = lab.path().join("second");
    let said =
        node.fails(&["unpack", &images.second.reference(origin.host()), &occupied.display().to_string()])?;
    assert!(said.contains("no empty folder"), "{said}");
    assert!(occupied.join("config.json").exists());
    // A folder that is empty is filled, and stays as open as it was.
    let empty = lab.folder("empty")?;
    fs::set_permissions(&empty, fs::Permissions::from_mode(0o755))?;
    node.run(&["pull", &images.base.reference(origin.host())])?;
    node.run(&["unpack", &images.base.reference(origin.host()), &empty.display().to_string()])?;
    assert_eq!(fs::metadata(&empty)?.permissions().mode() & 0o7777, 0o755);
    assert!(empty.join("rootfs/etc/debian_version").exists());
    nothing_unfinished(&lab)
}

/// No folder in which a bundle was made is left.
fn nothing_unfinished(lab: &Lab) -> Result<()> {
    for entry in fs::read_dir(lab.path())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(!name.starts_with(".wherry-unpack-"), "{name} is left");
    }
    Ok(())
}

#[test]
fn a_file_of_an_image_is_printed_and_what_is_none_is_refused() -> Result<()> {
    let (lab, images, origin, node) = place()?;
    let reference = images.second.reference(origin.host());
    let file = |path: &str| format!("{reference}:{path}");
    let said = node.fails(&["cat", &file("/etc/second")])?;
    assert!(said.contains("is not here") && said.contains("wherry pull"), "{said}");
    node.run(&["pull", &reference])?;
    assert_eq!(node.run(&["cat", &file("/etc/second")])?, "built by podman\n");
    // From a lower layer, and through links: to a folder, and to a file.
    let bundle = lab.path().join("bundle");
    node.run(&["unpack", &reference, &bundle.display().to_string()])?;
    let rootfs = bundle.join("rootfs");
    for (path, at) in [
        ("/etc/os-release", "usr/lib/os-release"),
        ("/bin/ls", "usr/bin/ls"),
        ("/usr/../../etc/passwd", "etc/passwd"),
    ] {
        let mut command = node.command()?;
        let printed = wherry_tests::process::output(command.args(["cat", &file(path)]))?;
        ensure!(printed.status.success(), "{path}");
        assert!(printed.stdout == fs::read(rootfs.join(at))?, "{path}");
    }
    for (path, why) in [
        ("/etc", "is a folder"),
        ("/", "is a folder"),
        ("/no/such/file", "there is no /no/such/file"),
        ("/etc/passwd/x", "/etc/passwd is no folder"),
    ] {
        let said = node.fails(&["cat", &file(path)])?;
        assert!(said.contains(why), "{path}: {said}");
    }
    Ok(())
}

#[test]
fn images_that_differ_in_one_file_are_told_apart_by_that_file_alone() -> Result<()> {
    let (lab, images, origin, node) = place()?;
    let podman = Podman::new(&lab, "podman")?;
    let reference = images.second.reference(origin.host());
    node.run(&["pull", &reference])?;
    podman.pull(&reference)?;
    // podman compresses layers in its own way, so both are to come from it.
    let second = format!("{}/site.wherry/second:1", node.gateway()?);
    podman.push(&reference, &second)?;
    let recipe = format!("FROM {reference}\nENV TIDE=high\nCOPY second /etc/second\n");
    let other = built(&lab, &podman, &node, "other", &recipe, &[("second", "built again\n")])?;
    let reference = "site.wherry/second:1";

    let told = node.json(&["diff", reference, &other])?;
    assert_eq!((&told["added"], &told["removed"]), (&Value::Array(vec![]), &Value::Array(vec![])), "{told}");
    assert_eq!(told["changed"].as_array().map(Vec::len), Some(1), "{told}");
    let change = &told["changed"][0];
    assert_eq!((&change["path"], &change["changed"]), (&"/etc/second".into(), &json!(["content"])));
    assert_eq!((&change["before"]["size"], &change["after"]["size"]), (&16.into(), &12.into()));
    let shared = told["layers"]["shared"].as_array().context("no layers")?;
    assert_eq!(shared.len(), images.second.layers.len(), "{told}");
    assert_eq!(told["layers"]["only_a"], Value::Array(vec![]));
    assert_eq!(told["layers"]["only_b"].as_array().map(Vec::len), Some(1));
    let settings = told["config"].as_array().context("no configuration")?;
    let tide = settings.iter().find(|it| it["name"] == "env TIDE").context("no TIDE")?;
    assert_eq!((&tide["a"], &tide["b"]), (&Value::Null, &"high".into()));
    let page = node.run(&["diff", reference, &other])?;
    assert!(page.contains("files: 0 added, 1 changed, 0 removed"), "{page}");

    let none = node.json(&["diff", reference, reference])?;
    for list in ["added", "changed", "removed", "config"] {
        assert_eq!(none[list], Value::Array(vec![]), "{list}");
    }
    Ok(())
}

#[test]
fn a_layer_tells_what_it_adds_changes_and_hides() -> Result<()> {
    let (lab, images, origin, node) = place()?;
    let podman = Podman::new(&lab, "podman")?;
    let base = images.base.reference(origin.host());
    podman.pull(&base)?;
    let recipe =
        format!("FROM {base}\nRUN rm -r /usr/share/doc /etc/issue && chmod 0700 /srv && echo x > /srv/new\n");
    let name = built(&lab, &podman, &node, "hides", &recipe, &[])?;
    let details = node.json(&["inspect", &name])?;
    let layers = details["layers"].as_array().context("no layers")?;
    assert_eq!(layers.len(), 2, "{details}");
    let digest = layers[1]["digest"].as_str().context("no digest")?;
    for choice in ["2", digest, &digest["sha256:".len()..][..12]] {
        let told = node.json(&["inspect", "--layer", choice, &name])?;
        let paths = |list: &str| -> Vec<String> {
            let list = told[list].as_array().into_iter().flatten();
            list.filter_map(|it| it["path"].as_str().map(str::to_owned)).collect()
        };
        assert!(paths("added").contains(&"/srv/new".to_owned()), "{told}");
        let changed = told["changed"].as_array().context("no list")?;
        let srv = changed.iter().find(|it| it["path"] == "/srv").context("/srv")?;
        assert_eq!((&srv["before"]["mode"], &srv["after"]["mode"]), (&"0755".into(), &"0700".into()));
        let removed = paths("removed");
        for path in ["/etc/issue", "/usr/share/doc", "/usr/share/doc/base-files/copyright"] {
            assert!(removed.contains(&path.to_owned()), "{path}: {told}");
        }
        let mut whiteouts = paths("whiteouts");
        whiteouts.sort();
        assert_eq!(whiteouts, ["/etc/issue", "/usr/share/doc"], "{told}");
        let doc =
            told["whiteouts"].as_array().into_iter().flatten().find(|it| it["path"] == "/usr/share/doc");
        let hides = doc.and_then(|it| it["hides"].as_u64()).context("no number")?;
        assert_eq!(hides, removed.iter().filter(|it| it.starts_with("/usr/share/doc")).count() as u64);
    }
    let page = node.run(&["inspect", "--layer", "2", &name])?;
    assert!(page.contains("whiteouts") && page.contains("/usr/share/doc"), "{page}");
    let first = node.json(&["inspect", "--layer", "1", &name])?;
    assert_eq!((&first["changed"], &first["removed"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    let said = node.fails(&["inspect", "--layer", "3", &name])?;
    assert!(said.contains("has no layer 3"), "{said}");
    Ok(())
}

#[test]
fn layers_of_zstd_hold_the_same_files() -> Result<()> {
    let (lab, images, origin, node) = place()?;
    let podman = Podman::new(&lab, "podman")?;
    let reference = images.second.reference(origin.host());
    node.run(&["pull", &reference])?;
    podman.pull(&reference)?;
    for (format, name) in [("zstd", "plain"), ("zstd:chunked", "chunked")] {
        let to = format!("{}/site.wherry/{name}:1", node.gateway()?);
        let mut push = podman.command();
        push.args(["push", "--quiet", "--tls-verify=false", "--compression-format", format]);
        if run(push.arg("--force-compression").args([&reference, &to])).is_err() {
            // Older ones do so unasked.
            let mut push = podman.command();
            push.args(["push", "--quiet", "--tls-verify=false", "--compression-format", format]);
            run(push.args([&reference, &to]))?;
        }
        let image = Image::read(node.gateway()?, &format!("site.wherry/{name}"), "1")?;
        assert!(String::from_utf8_lossy(&image.manifest_bytes).contains("tar+zstd"), "{name}");
        let told = node.json(&["diff", &reference, &format!("site.wherry/{name}:1")])?;
        for list in ["added", "changed", "removed"] {
            assert_eq!(told[list], Value::Array(vec![]), "{name}: {list}");
        }
    }
    Ok(())
}

#[test]
fn an_unpack_that_fails_or_is_interrupted_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", Options::default())?;
    // Layers of noise are no archives.
    push_image(node.gateway()?, "site.wherry/noise", "1", 71, &[200_000])?;
    let place = lab.path().join("place");
    let unpack = ["unpack", "site.wherry/noise:1", &place.display().to_string()];
    let said = node.fails(&unpack)?;
    assert!(!place.exists(), "{said}");
    nothing_unfinished(&lab)?;

    let images = Images::get()?;
    let origin = images.origin(&lab, "origin")?;
    let reference = images.teaching.reference(origin.host());
    let said = node.fails(&["unpack", &reference, &place.display().to_string()])?;
    assert!(said.contains("is not here"), "{said}");
    let insecure = Wherry::start(&lab, "other", Options::origin(origin.host()))?;
    insecure.run(&["pull", &reference])?;
    let mut unpacking = insecure.begin("unpacking", &["unpack", &reference, &place.display().to_string()])?;
    let begun = || -> Result<bool> {
        let entries = fs::read_dir(lab.path())?;
        Ok(entries.flatten().any(|it| it.path().join("rootfs/usr").exists()))
    };
    wait_until("the unpacking has begun", SOON, begun)?;
    unpacking.signal(Signal::TERM)?;
    let status = unpacking.wait_exit(SOON)?;
    ensure!(status.code() == Some(143) || status.success(), "{status}{}", unpacking.tail());
    assert_eq!(place.exists(), status.success());
    nothing_unfinished(&lab)
}

#[test]
fn a_layer_that_the_disk_has_damaged_is_not_unpacked() -> Result<()> {
    let (lab, images, origin, node) = place()?;
    let reference = images.second.reference(origin.host());
    node.run(&["pull", &reference])?;
    let hex = images.second.layers[0].digest.hex();
    let path = node.data().join("blobs/sha256").join(&hex[..2]).join(&hex);
    let mut bytes = fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    fs::write(&path, bytes)?;
    let place = lab.path().join("place");
    let said = node.fails(&["unpack", &reference, &place.display().to_string()])?;
    assert!(said.contains("damaged") || said.contains("have the digest"), "{said}");
    assert!(said.contains("hint"), "{said}");
    assert!(!place.exists());
    nothing_unfinished(&lab)?;
    // It is set aside now, and the image is not whole until it is pulled again.
    for command in [&["cat", &format!("{reference}:/etc/second")][..], &["diff", &reference, &reference]] {
        let said = node.fails(command)?;
        for part in ["not all of", "1 layer is missing", &format!("{reference}' brings it")] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    node.run(&["pull", &reference])?;
    node.run(&["unpack", &reference, &place.display().to_string()])?;
    assert_eq!(fs::read_to_string(place.join("rootfs/etc/second"))?, "built by podman\n");
    Ok(())
}

#[test]
fn who_is_not_root_gets_a_bundle_and_is_told_what_was_left_out() -> Result<()> {
    let (lab, images, origin, node) = place()?;
    let reference = images.second.reference(origin.host());
    node.run(&["pull", &reference])?;
    // The socket is handed over, and a folder.
    let (socket, home) = (node.data().join("control.sock"), lab.folder("home")?);
    for path in [&socket, &home] {
        std::os::unix::fs::chown(path, Some(65_534), Some(65_534))?;
    }
    for path in [lab.path(), node.data()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let binary = home.join("wherry");
    fs::copy(wherry_tests::lab::wherry_bin()?, &binary)?;
    let mut command = tool("setpriv", LIMIT);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
    command.arg("unpack").arg("--control").arg(&socket).arg(&reference).arg(home.join("bundle"));
    command.env("HOME", &home);
    let answer = wherry_tests::process::output(&mut command)?;
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    ensure!(answer.status.success(), "{said}");
    assert_eq!(said.matches("you are not root").count(), 1, "{said}");
    assert!(said.contains("did not get their owners"), "{said}");
    let bundle = home.join("bundle");
    assert_eq!(fs::metadata(bundle.join("rootfs/etc/shadow"))?.uid(), 65_534);
    assert_eq!(fs::metadata(bundle.join("rootfs/etc/shadow"))?.permissions().mode() & 0o7777, 0o640);
    let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    assert_eq!(config["linux"]["uidMappings"][0]["hostID"], 65_534);
    let mut command = tool("setpriv", LIMIT);
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "runc", "--root"])
        .arg(home.join("runc"));
    command.args(["run", "--bundle"]).arg(&bundle).arg(format!("wherry-rootless-{}", std::process::id()));
    command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
    assert_eq!(run(&mut command)?.trim(), "built by podman");
    unmount_below(lab.path());
    Ok(())
}

/// An OCI layout in the making.
#[derive(Default)]
struct Layout(BTreeMap<String, Vec<u8>>);

impl Layout {
    /// Adds a blob: its descriptor.
    fn add(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::sha256(bytes);
        self.0.insert(format!("blobs/sha256/{}", digest.hex()), bytes.to_vec());
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Adds an image of one file, `which`: its descriptor.
    fn image(&mut self, architecture: &str, more: Option<Value>) -> Result<Value> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(architecture.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "which", architecture.as_bytes())?;
        let layer = tar.into_inner()?;
        let mut ids = vec![Digest::sha256(&layer).to_string()];
        let mut layers = vec![self.add("application/vnd.oci.image.layer.v1.tar", &layer)];
        if let Some(more) = more {
            ids.push(more["digest"].as_str().context("no digest")?.to_owned());
            layers.push(more);
        }
        let config = json!({ "architecture": architecture, "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } });
        let config = self.add("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
        let mut descriptor = self.add(OCI_MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = json!({ "architecture": architecture, "os": "linux" });
        Ok(descriptor)
    }

    /// Writes it as an archive of one image.
    fn write(mut self, path: &Path, name: &str, mut top: Value) -> Result<()> {
        top["annotations"] = json!({ "io.containerd.image.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [top] });
        self.0.insert("index.json".to_owned(), index.to_string().into_bytes());
        self.0.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        let mut tar = tar::Builder::new(fs::File::create(path)?);
        for (name, bytes) in self.0 {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes.as_slice())?;
        }
        tar.finish()?;
        Ok(())
    }
}

#[test]
fn of_an_image_for_several_platforms_the_one_that_is_named_is_looked_into() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", Options::default())?;
    let mut layout = Layout::default();
    let manifests =
        [layout.image("amd64", None)?, layout.image("arm64", None)?, layout.image("riscv64", None)?];
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    let index = layout.add(media_type, index.to_string().as_bytes());
    let archive = lab.path().join("two.tar");
    layout.write(&archive, "site.example/lab/many:1", index)?;
    node.run(&["import", &archive.display().to_string()])?;
    for architecture in ["arm64", "riscv64", "amd64"] {
        let platform = format!("linux/{architecture}");
        let file = "site.example/lab/many:1:/which";
        assert_eq!(node.run(&["cat", "--platform", &platform, file])?, architecture);
        let place = lab.path().join(architecture).display().to_string();
        node.run(&["unpack", "--platform", &platform, "site.example/lab/many:1", &place])?;
        assert_eq!(fs::read_to_string(lab.path().join(architecture).join("rootfs/which"))?, architecture);
        let digest = manifests.iter().find(|it| it["platform"]["architecture"] == architecture);
        let digest = digest.and_then(|it| it["digest"].as_str()).context("no digest")?;
        assert_eq!(node.run(&["cat", &format!("{digest}:/which")])?, architecture);
        let told =
            node.json(&["inspect", "--layer", "1", "--platform", &platform, "site.example/lab/many:1"])?;
        assert_eq!((&told["manifest"], &told["added"][0]["path"]), (&digest.into(), &"/which".into()));
    }
    let [amd64, arm64, _] = manifests.map(|it| it["digest"].as_str().unwrap_or_default().to_owned());
    let told = node.json(&["diff", &amd64, &arm64])?;
    assert_eq!(told["changed"][0]["path"], "/which", "{told}");
    let said = node.fails(&["cat", "--platform", "linux/s390x", "site.example/lab/many:1:/which"])?;
    assert!(said.contains("linux/s390x"), "{said}");
    Ok(())
}

#[test]
fn a_layer_that_registries_do_not_pass_on_is_named_where_it_is_missing() -> Result<()> {
    let lab = Lab::new()?;
    let node = Wherry::start(&lab, "node", Options::default())?;
    let mut layout = Layout::default();
    let foreign = json!({
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "digest": Digest::sha256(b"far away"),
        "size": 8,
    });
    let image = layout.image("amd64", Some(foreign.clone()))?;
    let archive = lab.path().join("foreign.tar");
    layout.write(&archive, "site.example/lab/foreign:1", image)?;
    node.run(&["import", &archive.display().to_string()])?;
    let said = node.fails(&["cat", "site.example/lab/foreign:1:/which"])?;
    let digest = foreign["digest"].as_str().context("no digest")?;
    for part in [digest, "registries do not pass on"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // The layers below it are here.
    let told = node.json(&["inspect", "--layer", "1", "site.example/lab/foreign:1"])?;
    assert_eq!(told["added"][0]["path"], "/which");
    Ok(())
}
