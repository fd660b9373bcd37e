//! skopeo: copies images and keeps nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use wherry_proto::Digest;

use super::LIMIT;
use crate::blobs::Image;
use crate::lab::Lab;
use crate::process::{run, tool};

/// skopeo without the machine's configuration and credentials.
pub struct Skopeo {
    home: PathBuf,
    policy: PathBuf,
}

impl Skopeo {
    /// A skopeo for one lab; `name` tells several apart.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        let home = lab.folder(name)?;
        let policy = home.join("policy.json");
        fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        Ok(Self { home, policy })
    }

    /// A skopeo command without arguments, for what the methods below do not offer.
    pub fn command(&self) -> Command {
        let mut command = tool("skopeo", LIMIT);
        command.args(["--policy".as_ref(), self.policy.as_os_str()]).env("HOME", &self.home);
        command.env("XDG_RUNTIME_DIR", &self.home).env("TMPDIR", &self.home).env_remove("REGISTRY_AUTH_FILE");
        command
    }

    /// Copies an image, over plain HTTP where a registry is involved.
    ///
    /// # Errors
    /// With all that skopeo said.
    pub fn copy(&self, from: &str, to: &str) -> Result<()> {
        let mut command = self.command();
        command.args(["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", from, to]);
        run(&mut command).map(drop)
    }

    /// Pulls `reference` into a fresh folder, byte by byte as the registry gives it.
    ///
    /// # Errors
    /// With all that skopeo said.
    pub fn pull(&self, reference: &str, name: &str) -> Result<Pulled> {
        self.pull_by(self.command(), reference, name)
    }

    /// The same by a [`command`](Self::command) to which something was added, such as registries of the test's own.
    ///
    /// # Errors
    /// With all that skopeo said.
    pub fn pull_by(&self, mut command: Command, reference: &str, name: &str) -> Result<Pulled> {
        let folder = self.home.join(name);
        command.args(["copy", "--quiet", "--src-tls-verify=false", &format!("docker://{reference}")]);
        run(command.arg(format!("dir:{}", folder.display())))?;
        Ok(Pulled { folder })
    }
}

/// An image in skopeo's `dir:` form.
#[derive(Debug)]
pub struct Pulled {
    folder: PathBuf,
}

impl Pulled {
    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Checks that this is that very image: manifest, config and layers, each against its digest by hashing.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, image: &Image) -> Result<()> {
        let manifest = fs::read(self.folder.join("manifest.json"))?;
        let digest = Digest::sha256(&manifest);
        ensure!(digest == image.manifest, "the manifest is {digest:?} and should be {:?}", image.manifest);
        for blob in image.blobs() {
            let path = self.folder.join(blob.digest.hex());
            let bytes = fs::read(&path).with_context(|| format!("blob {:?}", blob.digest))?;
            if bytes.len() as u64 != blob.size || Digest::sha256(&bytes) != blob.digest {
                bail!("{} does not hold the {} bytes that its name promises", path.display(), blob.size);
            }
        }
        Ok(())
    }
}
