//! containerd with a daemon of its own, steered by its `ctr` or as a kubelet does.
//!
//! The daemon runs beside any other: its own root, state and socket, and no plugin but what pulls, pushes and unpacks, and the
//! one that serves kubelets if a test wants it.
//! Layers are unpacked by the native snapshotter, which copies them and needs no overlay.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use wherry_proto::Digest;

use super::LIMIT;
use crate::lab::{Lab, unmount_below};
use crate::process::{Process, run, tool};
use crate::wait::wait_until;

/// How long the daemon may take to answer; it takes about half a second.
const START: Duration = Duration::from_secs(60);

/// How long it may take to end.
const STOP: Duration = Duration::from_secs(30);

/// A running containerd.
pub struct Containerd {
    root: PathBuf,
    daemon: Process,
}

impl Containerd {
    /// Starts a daemon.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(lab: &Lab, name: &str) -> Result<Self> {
        let root = lab.folder(name)?;
        let config = root.join("config.toml");
        fs::write(&config, Self::settings(&root))?;
        Self::start_with(lab, name, &root, &config)
    }

    /// Starts a daemon that serves kubelets too, and has them get images as this configuration says: that of an administrator,
    /// of version 2.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_for_kubelets(lab: &Lab, name: &str, config: &str) -> Result<Self> {
        let root = lab.folder(name)?;
        // As few of the machine's means as images can do with: no overlay, no cgroups, no profiles.
        let cri = "[plugins.\"io.containerd.grpc.v1.cri\"]\ndisable_cgroup = true\ndisable_apparmor = true\n\
                   [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n";
        let (file, base) = (root.join("config.toml"), root.join("base.toml"));
        fs::write(&base, format!("{config}\n{cri}"))?;
        let at = |part: &str| root.join(part).display().to_string();
        let text = format!(
            "version = 2\nimports = [{base:?}]\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
            at("root"),
            at("state"),
            at("socket"),
            at("opt"),
        );
        fs::write(&file, text)?;
        let containerd = Self::start_with(lab, name, &root, &file)?;
        wait_until("containerd's CRI plugin is loaded", START, || {
            let said = run(containerd.ctr().args(["plugins", "list", "id==cri"]))?;
            Ok(said.lines().any(|line| line.trim_end().ends_with("ok")))
        })?;
        Ok(containerd)
    }

    /// What the configuration of a daemon in this folder has to say.
    pub fn settings(root: &Path) -> String {
        let at = |part: &str| root.join(part).display().to_string();
        format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket"),
        )
    }

    /// Starts a daemon with this configuration file, which has its [`settings`](Self::settings) in it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_with(lab: &Lab, name: &str, root: &Path, config: &Path) -> Result<Self> {
        let root = root.to_owned();
        let daemon = Process::start(name, &lab.logs(), Signal::TERM, "containerd", |command| {
            command.arg("--config").arg(config);
        })?;
        let mut containerd = Self { root, daemon };
        wait_until("containerd answers", START, || {
            anyhow::ensure!(containerd.daemon.runs()?, "containerd ended: {}", containerd.daemon.tail());
            Ok(containerd.ctr().arg("version").output()?.status.success())
        })?;
        Ok(containerd)
    }

    /// A `ctr` without arguments, for what the methods below do not offer.
    pub fn ctr(&self) -> Command {
        let mut command = tool("ctr", LIMIT);
        command.arg("--address").arg(self.root.join("socket"));
        command.env_remove("CONTAINERD_ADDRESS").env_remove("CONTAINERD_NAMESPACE");
        command
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.root.join("socket")
    }

    /// Has a registry's images come from these mirrors, in order, and from nowhere else.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mirrors(&self, registry: &str, mirrors: &[SocketAddr]) -> Result<()> {
        let folder = self.root.join("hosts").join(registry);
        fs::create_dir_all(&folder)?;
        let mut hosts = "server = \"http://127.0.0.1:1\"\n".to_owned();
        for mirror in mirrors {
            hosts += &format!("[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        }
        fs::write(folder.join("hosts.toml"), hosts).context("hosts.toml")
    }

    /// Has a registry's images come from a mirror first, and what the mirror does not give from `upstream`, if there is
    /// one: a `hosts.toml` as an administrator writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mirror(&self, registry: &str, mirror: SocketAddr, upstream: Option<&str>) -> Result<()> {
        let folder = self.root.join("hosts").join(registry);
        fs::create_dir_all(&folder)?;
        let server = upstream.unwrap_or("http://127.0.0.1:1");
        let hosts = format!(
            "server = {server:?}\n\n[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(folder.join("hosts.toml"), hosts).context("hosts.toml")
    }

    /// Pulls, by way of the mirrors.
    ///
    /// # Errors
    /// With all that ctr said.
    pub fn pull(&self, reference: &str) -> Result<()> {
        self.pull_by(&self.root.join("hosts"), reference)
    }

    /// Pulls, by way of what the hosts.toml files of this folder say.
    ///
    /// # Errors
    /// With all that ctr said.
    pub fn pull_by(&self, hosts: &Path, reference: &str) -> Result<()> {
        let mut command = self.ctr();
        command.args(["images", "pull", "--snapshotter", "native", "--hosts-dir"]);
        run(command.arg(hosts).arg(reference)).map(drop)
    }

    /// Pulls from the registry that the name says, over plain HTTP.
    ///
    /// # Errors
    /// With all that ctr said.
    pub fn pull_by_name(&self, reference: &str) -> Result<()> {
        let mut command = self.ctr();
        command.args(["images", "pull", "--snapshotter", "native", "--plain-http", reference]);
        run(&mut command).map(drop)
    }

    /// Gives an image another name, and pushes it there over plain HTTP.
    ///
    /// # Errors
    /// With all that ctr said.
    pub fn push(&self, image: &str, reference: &str) -> Result<()> {
        run(self.ctr().args(["images", "tag", "--force", image, reference]))?;
        run(self.ctr().args(["images", "push", "--plain-http", reference])).map(drop)
    }

    /// The digest of what a name means there.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn digest(&self, reference: &str) -> Result<Digest> {
        let listed = run(self.ctr().args(["images", "list", &format!("name=={reference}")]))?;
        let line = listed.lines().find(|line| line.starts_with(reference)).context("no such image")?;
        Ok(line.split_whitespace().nth(2).context("a line without a digest")?.parse()?)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.daemon.stop(STOP) {
            eprintln!("{error:#}");
        }
        unmount_below(&self.root);
    }
}
