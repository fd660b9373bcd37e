//! docker with a daemon of its own, which starts a containerd of its own.
//!
//! The daemon runs as root beside any other: its own data, state, socket and pid file, no configuration file but
//! ours, and no bridge and no packet filter rules, so that it changes nothing on the machine. Containers run with the
//! host's network or none; builds use the host's, through the classic builder (BuildKit's client is a package apart).
//! The daemon is pointed at a proxy that does not exist for everything but loopback, so a test that should be
//! answered by a gateway can never be answered by the Hub.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use serde_json::json;

use super::LIMIT;
use crate::lab::{Lab, unmount_below};
use crate::process::{Process, run, tool};
use crate::system::seeing;
use crate::wait::wait_until;

/// How long the daemon may take to answer; it takes about a second.
const START: Duration = Duration::from_secs(60);

/// How long the daemon and its containerd may take to end.
const STOP: Duration = Duration::from_secs(30);

/// Where a daemon's configuration is.
const ETC: &str = "/etc/docker";

/// A proxy that refuses every connection: port 1 of loopback.
const NO_PROXY: &str = "http://127.0.0.1:1";

/// A running docker daemon.
pub struct Docker {
    root: PathBuf,
    daemon: Process,
}

impl Docker {
    /// Starts a daemon; `mirrors` are asked before docker.io, and for nothing but docker.io.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(lab: &Lab, name: &str, mirrors: &[String]) -> Result<Self> {
        let config = json!({ "registry-mirrors": mirrors }).to_string();
        Self::start_with(lab, name, &lab.file(&format!("{name}.json"), config)?)
    }

    /// Starts a daemon with this configuration file.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_with(lab: &Lab, name: &str, config: &Path) -> Result<Self> {
        Self::start_by(lab, name, config, ("dockerd".into(), Vec::new()), "127.0.0.1,localhost")
    }

    /// Starts a daemon that has the configuration of another system, its `daemon.json` and all else. `near` is an address that
    /// is asked as loopback is, by no proxy.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_seeing(lab: &Lab, name: &str, system: &Path, near: &str) -> Result<Self> {
        let (program, mut before) = seeing(system, &[ETC])?;
        before.push("dockerd".into());
        let exempt = format!("127.0.0.1,localhost,{near}");
        Self::start_by(lab, name, &Path::new(ETC).join("daemon.json"), (program, before), &exempt)
    }

    fn start_by(
        lab: &Lab,
        name: &str,
        config: &Path,
        (program, before): (OsString, Vec<OsString>),
        exempt: &str,
    ) -> Result<Self> {
        let root = lab.folder(name)?;
        let daemon = Process::start(name, &lab.logs(), Signal::TERM, program, |command| {
            command.args(before).arg("--config-file").arg(config);
            command.arg("--data-root").arg(root.join("data")).arg("--exec-root").arg(root.join("exec"));
            command.arg("--pidfile").arg(root.join("pid")).arg("--host").arg(socket(&root));
            command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
            for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
                command.env(proxy, NO_PROXY);
            }
            command.env("NO_PROXY", exempt).env("no_proxy", exempt);
        })?;
        let mut docker = Self { root, daemon };
        wait_until("dockerd answers", START, || {
            anyhow::ensure!(docker.daemon.runs()?, "dockerd ended: {}", docker.daemon.tail());
            Ok(docker.command().arg("version").output()?.status.success())
        })?;
        Ok(docker)
    }

    /// Where the daemon listens, as `DOCKER_HOST` has it.
    pub fn host(&self) -> String {
        socket(&self.root)
    }

    /// Has the daemon read its configuration again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn reload(&mut self) -> Result<()> {
        self.daemon.signal(Signal::HUP)
    }

    /// A docker command without arguments, for what the methods below do not offer.
    pub fn command(&self) -> Command {
        let mut command = tool("docker", LIMIT);
        command.arg("--host").arg(socket(&self.root)).arg("--config").arg(self.root.join("client"));
        command.env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT").env("DOCKER_BUILDKIT", "0");
        command
    }

    /// Pulls; registries on loopback may speak plain HTTP.
    ///
    /// # Errors
    /// With all that docker said.
    pub fn pull(&self, reference: &str) -> Result<()> {
        run(self.command().args(["pull", "--quiet", reference])).map(drop)
    }

    /// Pushes; registries on loopback may speak plain HTTP.
    ///
    /// # Errors
    /// With all that docker said.
    pub fn push(&self, image: &str, reference: &str) -> Result<()> {
        run(self.command().args(["tag", image, reference]))?;
        run(self.command().args(["push", "--quiet", reference])).map(drop)
    }

    /// The image's id, which is its config's digest, and the `REPOSITORY@DIGEST` names that it was pulled by.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn digests(&self, reference: &str) -> Result<(String, String)> {
        let inspect = |format| run(self.command().args(["image", "inspect", "--format", format, reference]));
        let id = inspect("{{.Id}}")?.trim().to_owned();
        Ok((id, inspect("{{join .RepoDigests \" \"}}")?.trim().to_owned()))
    }

    /// Makes an image of one layer out of a root file system.
    ///
    /// # Errors
    /// With all that docker said.
    pub fn import(&self, rootfs: &Path, tag: &str) -> Result<()> {
        run(self.command().args(["import", "--change", "CMD [\"bash\"]"]).arg(rootfs).arg(tag)).map(drop)
    }

    /// Builds a Dockerfile with the machine's network, proxy settings included.
    ///
    /// # Errors
    /// With all that docker said.
    pub fn build(&self, tag: &str, context: &Path) -> Result<()> {
        let mut command = self.command();
        command.args(["build", "--network", "host", "--tag", tag]);
        for name in ["http_proxy", "https_proxy", "no_proxy"] {
            if let Ok(value) = std::env::var(name) {
                command.arg("--build-arg").arg(format!("{name}={value}"));
            }
        }
        run(command.arg(context)).map(drop)
    }

    /// Runs an image that is here already, without a network, and gives what it printed.
    ///
    /// # Errors
    /// With all that docker and the container said.
    pub fn run(&self, reference: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command();
        command.args(["run", "--rm", "--pull", "never", "--network", "none", reference]);
        run(command.args(arguments))
    }
}

fn socket(root: &Path) -> String {
    format!("unix://{}", root.join("socket").display())
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Ended politely, so that it takes its containerd and mounts along.
        if let Err(error) = self.daemon.stop(STOP) {
            eprintln!("{error:#}");
        }
        unmount_below(&self.root);
    }
}
