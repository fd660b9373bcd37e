//! What import and export promise together with the tools that people have: archives go both ways between
//! wherry and skopeo, podman, buildah, docker and containerd, and every digest stays what it was.
//!
//! A tool that is not installed is not tested, and the test says so.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends where something is not as it must be"
)]
#![allow(dead_code, unreachable_pub, reason = "test binaries share the module and use parts of it")]

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wherry_node::bundle::{Imported, import, pack_directory};
use wherry_node::store::Store;
use wherry_proto::Digest;

mod bundle_support;
use bundle_support::*;

fn installed(tools: &[&str]) -> bool {
    let missing =
        |tool: &&&str| !Command::new(tool).arg("--version").output().is_ok_and(|it| it.status.success());
    match tools.iter().find(missing) {
        Some(tool) => {
            eprintln!("not tested: {tool} is not installed");
            false
        }
        None => true,
    }
}

/// Runs a tool to its end; what it printed.
fn run(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A folder for one test: a store, an image in it, and room for archives.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    image: Image,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("store"));
        let image = Image::new("amd64", "hello");
        take(&store, &archive(&image.layout("1.0"))).unwrap();
        Self { dir, store, image }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// The image as an archive that wherry wrote.
    fn exported(&self, name: &str) -> String {
        let path = self.path("exported.tar");
        fs::write(&path, give(&self.store, &[name], self.image.digest())).unwrap();
        path
    }

    fn config_digest(&self) -> Digest {
        Digest::sha256(&self.image.config)
    }

    /// Imports a tool's archive into a fresh store.
    fn imported(&self, path: &str) -> (Store, Imported) {
        let store = open(&PathBuf::from(format!("{path}.store")));
        let imported = import(&store, File::open(path).unwrap(), &mut ()).unwrap();
        (store, imported)
    }

    /// Imports an archive and checks that it holds this image, whatever manifest the tool gave it.
    fn check_same_image(&self, path: &str, names: &[&str]) {
        let (store, imported) = self.imported(path);
        let [image] = &imported.images[..] else { panic!("{imported:?}") };
        assert_eq!(image.names, names, "{path}");
        assert!(image.blobs.contains(&self.config_digest()), "{path}: {image:?}");
        for blob in &image.blobs {
            assert!(store.verify(blob).unwrap());
        }
        // And it can be passed on.
        give(&store, names, image.digest);
    }
}

#[test]
fn skopeo_reads_what_wherry_exports() {
    if !installed(&["skopeo"]) {
        return;
    }
    let bench = Bench::new();
    let path = bench.exported("registry.example/app:1.0");
    let raw = run("skopeo", &["inspect", "--raw", &format!("oci-archive:{path}:1.0")]);
    assert_eq!(raw.as_bytes(), bench.image.manifest);
    let raw = run("skopeo", &["inspect", "--raw", &format!("oci-archive:{path}")]);
    assert_eq!(raw.as_bytes(), bench.image.manifest);

    let copy = bench.path("copy");
    run("skopeo", &["copy", "-q", &format!("oci-archive:{path}"), &format!("dir:{copy}")]);
    assert_eq!(fs::read(format!("{copy}/manifest.json")).unwrap(), bench.image.manifest);
    for bytes in [&bench.image.config, &bench.image.packed] {
        assert_eq!(&fs::read(format!("{copy}/{}", Digest::sha256(bytes).hex())).unwrap(), bytes);
    }

    let config = ["inspect", "--config", "--raw"];
    let source = format!("docker-archive:{path}:registry.example/app:1.0");
    assert_eq!(run("skopeo", &[&config[..], &[&source]].concat()).as_bytes(), bench.image.config);
    let layout = bench.path("layout");
    run("skopeo", &["copy", "-q", &source, &format!("oci:{layout}:1.0")]);
    let again = run("skopeo", &[&config[..], &[&format!("oci:{layout}:1.0")]].concat());
    assert_eq!(again.as_bytes(), bench.image.config);
}

#[test]
fn wherry_reads_what_skopeo_writes() {
    if !installed(&["skopeo"]) {
        return;
    }
    let bench = Bench::new();
    let source = format!("oci-archive:{}", bench.exported("registry.example/app:1.0"));
    let oci = bench.path("oci.tar");
    run("skopeo", &["copy", "-q", &source, &format!("oci-archive:{oci}:1.0")]);
    let (_, imported) = bench.imported(&oci);
    assert_eq!(imported.images[0].digest, bench.image.digest());
    assert_eq!(imported.images[0].names, ["1.0"]);

    let docker = bench.path("docker.tar");
    run("skopeo", &["copy", "-q", &source, &format!("docker-archive:{docker}:registry.example/app:1.0")]);
    let (store, imported) = bench.imported(&docker);
    let image = &imported.images[0];
    assert_eq!(image.names, ["registry.example/app:1.0"]);
    // The layers are those of the image, uncompressed.
    assert!(image.blobs.contains(&Digest::sha256(&bench.image.layer)));
    // What was made of it skopeo reads, with the manifest that was made for it.
    let made = bench.path("made.tar");
    fs::write(&made, give(&store, &["registry.example/app:1.0"], image.digest)).unwrap();
    let raw = run("skopeo", &["inspect", "--raw", &format!("oci-archive:{made}")]);
    assert_eq!(Digest::sha256(raw.as_bytes()), image.digest);
    run("skopeo", &["copy", "-q", &format!("oci-archive:{made}"), &format!("dir:{}", bench.path("made"))]);

    let layout = bench.path("layout");
    run("skopeo", &["copy", "-q", &source, &format!("oci:{layout}:1.0")]);
    let packed = bench.path("packed.tar");
    pack_directory(Path::new(&layout), File::create(&packed).unwrap()).unwrap();
    let (_, imported) = bench.imported(&packed);
    assert_eq!(imported.images[0].digest, bench.image.digest());
}

#[test]
fn podman_loads_what_wherry_exports_and_saves_what_wherry_imports() {
    if !installed(&["podman"]) {
        return;
    }
    let bench = Bench::new();
    let (root, runroot) = (bench.path("root"), bench.path("runroot"));
    let podman = |args: &[&str]| {
        let own = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
        run("podman", &[&own[..], args].concat())
    };
    let name = "registry.example/app:1.0";
    podman(&["load", "-q", "-i", &bench.exported(name)]);
    let id = podman(&["image", "inspect", "--format", "{{.Id}}", name]);
    assert_eq!(id.trim(), bench.config_digest().hex());

    let docker = bench.path("docker.tar");
    podman(&["save", "-q", "--format", "docker-archive", "-o", &docker, name]);
    bench.check_same_image(&docker, &[name]);
    let oci = bench.path("oci.tar");
    podman(&["save", "-q", "--format", "oci-archive", "-o", &oci, name]);
    bench.check_same_image(&oci, &[name]);

    // Two images with one layer in common, in one archive.
    podman(&["tag", name, "registry.example/app:2.0"]);
    let many = bench.path("many.tar");
    podman(&["save", "-q", "-m", "-o", &many, name, "registry.example/app:2.0"]);
    let (_, imported) = bench.imported(&many);
    let mut names: Vec<_> = imported.images.iter().flat_map(|image| image.names.clone()).collect();
    names.sort();
    assert_eq!(names, [name, "registry.example/app:2.0"]);
}

#[test]
fn wherry_reads_what_buildah_builds() {
    if !installed(&["buildah"]) {
        return;
    }
    let bench = Bench::new();
    let (root, runroot) = (bench.path("root"), bench.path("runroot"));
    let buildah = |args: &[&str]| {
        let own = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
        run("buildah", &[&own[..], args].concat()).trim().to_owned()
    };
    let container = buildah(&["from", "scratch"]);
    let tool = std::env::current_exe().unwrap();
    buildah(&["copy", "-q", &container, tool.to_str().unwrap(), "/tool"]);
    for (format, target) in [("oci", "oci-archive"), ("docker", "docker-archive")] {
        let path = bench.path(&format!("{target}.tar"));
        let target = format!("{target}:{path}:registry.example/built:1");
        buildah(&["commit", "-q", "--format", format, &container, &target]);
        let (store, imported) = bench.imported(&path);
        for blob in &imported.images[0].blobs {
            assert!(store.verify(blob).unwrap());
        }
        let again = give(&store, &["registry.example/built:1"], imported.images[0].digest);
        let other = open(&PathBuf::from(format!("{path}.again")));
        assert_eq!(take(&other, &again).unwrap().images[0].blobs, imported.images[0].blobs);
    }
}

/// A daemon of this test's own, ended with it.
struct Daemon(Child);

impl Daemon {
    fn start(tool: &str, args: &[&str], socket: &str) -> Self {
        let process =
            Command::new(tool).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Self(process);
        let until = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < until, "{tool} does not start");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        started
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Asked, not killed: it has children and mounts to put away.
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not tested: the daemon needs root");
    }
    root
}

#[test]
fn docker_loads_what_wherry_exports_and_saves_what_wherry_imports() {
    if !installed(&["docker", "dockerd"]) || !is_root() {
        return;
    }
    let bench = Bench::new();
    let socket = bench.path("d.sock");
    let host = format!("unix://{socket}");
    let (data, exec, pid) = (bench.path("data"), bench.path("exec"), bench.path("pid"));
    let args = [
        "--data-root",
        &data,
        "--exec-root",
        &exec,
        "--pidfile",
        &pid,
        "--host",
        &host,
        "--bridge",
        "none",
        "--iptables=false",
        "--ip6tables=false",
        "--storage-driver",
        "vfs",
    ];
    let _daemon = Daemon::start("dockerd", &args, &socket);
    let docker = |args: &[&str]| run("docker", &[&["--host", &host], args].concat());
    let name = "registry.example/app:1.0";
    docker(&["load", "--input", &bench.exported(name)]);
    let id = docker(&["image", "inspect", "--format", "{{.Id}}", name]);
    assert_eq!(id.trim(), bench.config_digest().to_string());
    let saved = bench.path("saved.tar");
    docker(&["save", "--output", &saved, name]);
    bench.check_same_image(&saved, &[name]);
}

#[test]
fn containerd_imports_what_wherry_exports_and_exports_what_wherry_imports() {
    if !installed(&["containerd", "ctr"]) || !is_root() {
        return;
    }
    let bench = Bench::new();
    let (config, root, state, socket) =
        (bench.path("config.toml"), bench.path("root"), bench.path("state"), bench.path("c.sock"));
    let unused =
        r#"["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]"#;
    fs::write(&config, format!("version = 2\ndisabled_plugins = {unused}\n")).unwrap();
    let args = ["--config", &config, "--root", &root, "--state", &state, "--address", &socket];
    let _daemon = Daemon::start("containerd", &args, &socket);
    let ctr = |args: &[&str]| run("ctr", &[&["--address", &socket, "--timeout", "60s"], args].concat());
    let name = "registry.example/app:1.0";
    let exported = bench.exported(name);
    ctr(&["images", "import", "--snapshotter", "native", "--platform", "linux/amd64", &exported]);
    let listed = ctr(&["images", "ls"]);
    let line = listed.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains(&bench.image.digest().to_string()), "{line}");
    let path = bench.path("containerd.tar");
    ctr(&["images", "export", "--platform", "linux/amd64", &path, name]);
    let (_, imported) = bench.imported(&path);
    assert_eq!(imported.images[0].digest, bench.image.digest());
    assert_eq!(imported.images[0].names, [name]);
}
