//! podman with a store of its own.
//!
//! As root, without systemd and on a machine that mounts cgroup versions 1 and 2 side by side, podman runs
//! containers when it is given all of this: runc (crun refuses hybrid cgroups), the cgroupfs manager (there is no
//! systemd to ask), explicit process and file limits (its defaults are above what a sandbox lets even root set), no
//! network (its bridge needs CNI plugins), and no event log (there is no journal).

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::LIMIT;
use crate::lab::{Lab, unmount_below};
use crate::process::{run, tool};

/// podman without the machine's images, containers and registries.
pub struct Podman {
    root: PathBuf,
    /// The configuration of its store, if not what the options say.
    storage: Option<PathBuf>,
}

impl Podman {
    /// A podman for one lab; `name` tells several apart.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        Ok(Self { root: lab.folder(name)?, storage: None })
    }

    /// One that pulls of a layer only the parts that it lacks, where the layer is made for that.
    ///
    /// # Errors
    /// As [`Podman::new`].
    pub fn by_parts(lab: &Lab, name: &str) -> Result<Self> {
        let mut podman = Self::new(lab, name)?;
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n[storage.options]\n\
             pull_options = {{ enable_partial_images = \"true\", use_hard_links = \"false\", ostree_repos = \"\" }}\n",
            podman.root.join("root"),
            podman.root.join("run"),
        );
        let storage = podman.root.join("storage.conf");
        fs::write(&storage, text)?;
        podman.storage = Some(storage);
        Ok(podman)
    }

    /// A podman command without arguments, for what the methods below do not offer.
    pub fn command(&self) -> Command {
        let mut command = tool("podman", LIMIT);
        command.arg("--tmpdir").arg(self.root.join("tmp"));
        command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        command.args(["--log-level", "error"]);
        match &self.storage {
            // Its options about the store would have it ignore the file.
            Some(storage) => _ = command.env("CONTAINERS_STORAGE_CONF", storage),
            None => {
                command.arg("--root").arg(self.root.join("root")).arg("--runroot").arg(self.root.join("run"));
                command.args(["--storage-driver", "overlay"]);
            }
        }
        command.env("HOME", &self.root).env("TMPDIR", &self.root).env_remove("REGISTRY_AUTH_FILE");
        command
    }

    /// Pulls over plain HTTP and gives the image's id, which is its config's digest without the algorithm.
    ///
    /// # Errors
    /// With all that podman said.
    pub fn pull(&self, reference: &str) -> Result<String> {
        let id = run(self.command().args(["pull", "--quiet", "--tls-verify=false", reference]))?;
        Ok(id.trim().to_owned())
    }

    /// The manifest digest that podman keeps for an image.
    ///
    /// # Errors
    /// When it has no such image.
    pub fn digest(&self, reference: &str) -> Result<String> {
        let digest = run(self.command().args(["image", "inspect", "--format", "{{.Digest}}", reference]))?;
        Ok(digest.trim().to_owned())
    }

    /// Loads an archive and gives what podman said, which names the images.
    ///
    /// # Errors
    /// With all that podman said.
    pub fn load(&self, archive: &std::path::Path) -> Result<String> {
        run(self.command().args(["load", "--input"]).arg(archive))
    }

    /// Runs an image that is here already, without a network, and gives what it printed.
    ///
    /// # Errors
    /// With all that podman and the container said.
    pub fn run(&self, reference: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command();
        command.args(["run", "--rm", "--pull", "never", "--network", "none"]);
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", reference]);
        run(command.args(arguments))
    }

    /// Builds a Dockerfile. Its RUN lines use the machine's network and are kept apart by chroot alone.
    ///
    /// # Errors
    /// With all that podman said.
    pub fn build(&self, tag: &str, context: &std::path::Path) -> Result<()> {
        let mut command = self.command();
        command.args([
            "build",
            "--quiet",
            "--tls-verify=false",
            "--network",
            "host",
            "--isolation",
            "chroot",
        ]);
        command.args(["--format", "oci", "--tag", tag]).arg(context);
        run(&mut command).map(drop)
    }

    /// Pushes over plain HTTP, with OCI media types.
    ///
    /// # Errors
    /// With all that podman said.
    pub fn push(&self, image: &str, reference: &str) -> Result<()> {
        let mut command = self.command();
        command.args(["push", "--quiet", "--tls-verify=false", "--format", "oci", image, reference]);
        run(&mut command).map(drop)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        unmount_below(&self.root);
    }
}
