//! Real images: a Debian root file system, what a Dockerfile makes of it, and a second image on the same base.
//!
//! They are slow to make, so they are made once and kept in [`cache`] as the storage of a docker-registry, which every
//! test's origin then serves read-only.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;

use crate::blobs::Image;
use crate::clients::{Docker, Podman};
use crate::lab::{Lab, cache};
use crate::process::{run, tool};
use crate::registry::{Options, Registry};

/// What the teaching image prints when it is run without arguments.
pub const GREETING: &str = "ahoy from the fog";

/// How long making the root file system may take; with a near mirror it takes 15 s.
const BOOTSTRAP: Duration = Duration::from_secs(600);

/// The root file system's time stamps, and so its bytes, do not depend on the day it is made.
const EPOCH: &str = "1700000000";

const RELEASE: &str = "bookworm";

const TEACHING: &str = r#"FROM debian/base:1
LABEL org.opencontainers.image.title="teaching" maintainer="the lab"
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-minimal \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY app.py /opt/app/
WORKDIR /opt/app
EXPOSE 8080
ENTRYPOINT ["python3", "app.py"]
CMD ["ahoy", "from", "the", "fog"]
"#;

const TEACHING_APP: &str = "import sys\nprint(*sys.argv[1:])\n";

const SECOND: &str = r#"FROM BASE
LABEL org.opencontainers.image.title="second"
RUN printf 'built by podman\n' > /etc/second
COPY app.sh /usr/local/bin/app
ENTRYPOINT ["/usr/local/bin/app"]
"#;

const SECOND_APP: &str = "#!/bin/sh\ncat /etc/second\n";

/// The real images, in an origin's storage that must not be written to.
#[derive(Debug)]
pub struct Images {
    storage: PathBuf,
    /// One layer: a Debian minbase root file system. Pushed by docker.
    pub base: Image,
    /// The base and what the field's classic Dockerfile adds. Pushed by docker, with docker's media types.
    pub teaching: Image,
    /// The same, pulled and pushed again by podman, with OCI media types.
    pub by_podman: Image,
    /// Another image on the same base layer, built and pushed by podman.
    pub second: Image,
}

impl Images {
    /// The images, made now if no earlier run left them.
    ///
    /// # Errors
    /// When a tool is missing or fails; making them takes root, a Debian mirror and about a minute.
    pub fn get() -> Result<Self> {
        fs::create_dir_all(cache())?;
        let lock = File::create(cache().join("lock"))?;
        // Tests run in several processes, and the first one there makes the images for all.
        lock.lock().context("the lock of the image cache")?;
        let recipe = [RELEASE, EPOCH, TEACHING, TEACHING_APP, SECOND, SECOND_APP].concat();
        let storage = cache().join(format!("images-{}", Digest::sha256(recipe.as_bytes()).short()));
        if !storage.exists() {
            make(&storage).context("making the images")?;
        }
        let lab = Lab::new()?;
        let options = Options { shared_storage: Some(storage.clone()), ..Options::default() };
        let origin = Registry::start(&lab, "images", options)?;
        let read = |repository: &str| Image::read(origin.addr(), repository, "1");
        let images = Self {
            base: read("debian/base")?,
            teaching: read("library/teaching")?,
            by_podman: read("lab/teaching-by-podman")?,
            second: read("lab/second")?,
            storage,
        };
        ensure!(images.base.layers.len() == 1, "the base should have one layer");
        for image in [&images.teaching, &images.by_podman, &images.second] {
            ensure!(image.layers.len() > 1, "{} should add layers", image.name());
            ensure!(image.layers[0] == images.base.layers[0], "{} should share the base layer", image.name());
        }
        Ok(images)
    }

    /// An origin that serves them.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn origin(&self, lab: &Lab, name: &str) -> Result<Registry> {
        let options = Options { shared_storage: Some(self.storage.clone()), ..Options::default() };
        Registry::start(lab, name, options)
    }
}

fn make(storage: &Path) -> Result<()> {
    let lab = Lab::new()?;
    let rootfs = lab.path().join("rootfs.tar");
    bootstrap(&rootfs)?;

    let origin = Registry::start(&lab, "images", Options::default())?;
    let docker = Docker::start(&lab, "docker", &[])?;
    docker.import(&rootfs, "debian/base:1")?;
    docker.push("debian/base:1", &format!("{}/debian/base:1", origin.host()))?;
    let context = lab.folder("teaching")?;
    fs::write(context.join("Dockerfile"), TEACHING)?;
    fs::write(context.join("app.py"), TEACHING_APP)?;
    docker.build("teaching:1", &context)?;
    let said = docker.run("teaching:1", &[])?;
    ensure!(said.trim() == GREETING, "the teaching image said {said:?}");
    docker.push("teaching:1", &format!("{}/library/teaching:1", origin.host()))?;

    let podman = Podman::new(&lab, "podman")?;
    let teaching = format!("{}/library/teaching:1", origin.host());
    podman.pull(&teaching)?;
    podman.push(&teaching, &format!("{}/lab/teaching-by-podman:1", origin.host()))?;
    let context = lab.folder("second")?;
    let base = format!("{}/debian/base:1", origin.host());
    fs::write(context.join("Dockerfile"), SECOND.replace("BASE", &base))?;
    executable(&context.join("app.sh"), SECOND_APP)?;
    podman.build("localhost/second:1", &context)?;
    podman.push("localhost/second:1", &format!("{}/lab/second:1", origin.host()))?;

    // Earlier recipes are of no use any more.
    for entry in fs::read_dir(cache())? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        }
    }
    // Copied under another name first: what bears the right name is complete.
    let unfinished = cache().join("unfinished");
    run(tool("cp", BOOTSTRAP)
        .args(["--archive", "--no-target-directory"])
        .arg(origin.storage())
        .arg(&unfinished))?;
    fs::rename(&unfinished, storage)?;
    Ok(())
}

fn executable(path: &Path, content: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, content)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Makes a minbase root file system from the mirrors that this machine itself installs from.
fn bootstrap(rootfs: &Path) -> Result<()> {
    let format = "deb $(SITE) $(RELEASE) $(COMPONENT)";
    let lists =
        run(tool("apt-get", BOOTSTRAP).args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let debian = |line: &&str| {
        let mut words = line.split(' ').skip(2);
        words.next().is_some_and(|suite| suite.starts_with(RELEASE)) && words.next() == Some("main")
    };
    let mut sources: Vec<String> = lists.lines().filter(debian).map(str::to_owned).collect();
    sources.sort();
    sources.dedup();
    ensure!(!sources.is_empty(), "apt knows no mirror of Debian {RELEASE}: run `apt-get update`");
    let mut command = tool("mmdebstrap", BOOTSTRAP);
    command.args(["--quiet", "--variant=minbase", "--mode=root", RELEASE]).arg(rootfs).args(&sources);
    run(command.env("SOURCE_DATE_EPOCH", EPOCH).env("LC_ALL", "C")).map(drop)
}
