//! buildah with a store of its own, and without the machine's registries and policy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::LIMIT;
use crate::lab::{Lab, unmount_below};
use crate::process::{run, tool};

/// buildah for one lab.
pub struct Buildah {
    root: PathBuf,
}

impl Buildah {
    /// A buildah with an empty store; `name` tells several apart.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        let root = lab.folder(name)?;
        fs::write(root.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        fs::write(root.join("registries.conf"), "")?;
        Ok(Self { root })
    }

    /// A buildah command without arguments, for what the methods below do not offer.
    pub fn command(&self) -> Command {
        let mut command = tool("buildah", LIMIT);
        command.arg("--root").arg(self.root.join("root")).arg("--runroot").arg(self.root.join("run"));
        command.args(["--storage-driver", "overlay", "--log-level", "error"]);
        command.arg("--registries-conf").arg(self.root.join("registries.conf"));
        command.env("HOME", &self.root).env("TMPDIR", &self.root).env("BUILDAH_ISOLATION", "chroot");
        command.env_remove("REGISTRY_AUTH_FILE");
        command
    }

    /// Has it know these registries and their mirrors, and no others.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn registries(&self, configuration: &str) -> Result<()> {
        Ok(fs::write(self.root.join("registries.conf"), configuration)?)
    }

    /// The digest of the manifest of the image that a working container was made of.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn digest_of_base(&self, container: &str) -> Result<String> {
        let said = run(self.command().args(["inspect", "--format", "{{.FromImageDigest}}", container]))?;
        Ok(said.trim().to_owned())
    }

    fn policy(&self) -> PathBuf {
        self.root.join("policy.json")
    }

    /// Makes a working container of an image, pulled over plain HTTP, and gives its name.
    ///
    /// # Errors
    /// With all that buildah said.
    pub fn from(&self, reference: &str) -> Result<String> {
        let mut command = self.command();
        command.args(["from", "--quiet", "--tls-verify=false", "--signature-policy"]);
        Ok(run(command.arg(self.policy()).arg(reference))?.trim().to_owned())
    }

    /// Runs something in a working container, kept apart by chroot alone, and gives what it printed.
    ///
    /// # Errors
    /// With all that buildah said.
    pub fn run(&self, container: &str, arguments: &[&str]) -> Result<String> {
        run(self.command().args(["run", container, "--"]).args(arguments))
    }

    /// Makes an image of a working container.
    ///
    /// # Errors
    /// With all that buildah said.
    pub fn commit(&self, container: &str, name: &str) -> Result<()> {
        let mut command = self.command();
        command.args(["commit", "--quiet", "--format", "oci", "--signature-policy"]);
        run(command.arg(self.policy()).args([container, name])).map(drop)
    }

    /// Builds a Dockerfile; what it stands on is pulled over plain HTTP.
    ///
    /// # Errors
    /// With all that buildah said.
    pub fn build(&self, name: &str, context: &Path) -> Result<()> {
        let mut command = self.command();
        command.args(["bud", "--quiet", "--tls-verify=false", "--format", "oci", "--tag", name]);
        run(command.arg("--signature-policy").arg(self.policy()).arg(context)).map(drop)
    }

    /// Pushes over plain HTTP.
    ///
    /// # Errors
    /// With all that buildah said.
    pub fn push(&self, image: &str, reference: &str) -> Result<()> {
        let mut command = self.command();
        command.args(["push", "--quiet", "--tls-verify=false", "--signature-policy"]);
        run(command.arg(self.policy()).args([image, &format!("docker://{reference}")])).map(drop)
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        unmount_below(&self.root);
    }
}
