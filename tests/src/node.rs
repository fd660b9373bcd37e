//! A wherry node as its users see it: the `wherry` command, its addresses and its output.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::lab::{Lab, wherry_bin};
use crate::netns::{Space, placed};
use crate::process::{Process, output, run, tool};
use crate::wait::wait_for;

/// How long a node may take to be ready.
const START: Duration = Duration::from_secs(30);

/// How long a node may take to end after SIGTERM: the promise is 10 s.
pub const STOP: Duration = Duration::from_secs(12);

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(180);

/// How a node is started. Every address is on loopback with a free port, unless it has a namespace.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The origin of names that bear none, `HOST:PORT`. It is listed as insecure too.
    pub origin: Option<String>,
    /// Where other nodes are found.
    pub bootstrap: Vec<String>,
    /// More arguments of `wherry up`.
    pub more: Vec<String>,
    /// More environment variables.
    pub environment: Vec<(String, String)>,
    /// The network namespace to live in, on the addresses that a node has by default, and with mDNS.
    pub space: Option<Space>,
}

impl Options {
    /// With this default origin, over plain HTTP.
    pub fn origin(host: impl Into<String>) -> Self {
        Self { origin: Some(host.into()), ..Self::default() }
    }

    /// With one more argument.
    pub fn with(mut self, argument: impl Into<String>) -> Self {
        self.more.push(argument.into());
        self
    }
}

/// Where a node can be reached.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The registry API for runtimes.
    pub gateway: SocketAddr,
    /// Status and metrics.
    pub status: SocketAddr,
    /// What other nodes are given as `--bootstrap`.
    pub peers: Vec<String>,
    /// The node's peer id.
    pub peer_id: String,
}

/// One node.
pub struct Wherry {
    name: String,
    logs: PathBuf,
    data: PathBuf,
    options: Options,
    process: Option<Process>,
    addresses: Option<Addresses>,
}

/// A command of the `wherry` binary that acts on a data folder.
///
/// # Errors
/// When there is no binary.
pub fn command(data: &Path) -> Result<Command> {
    let mut command = tool(wherry_bin()?, LIMIT);
    bare(&mut command, data);
    command.env("WHERRY_DATA", data);
    Ok(command)
}

/// Takes away what the machine says about wherry and registries.
fn bare(command: &mut Command, home: &Path) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WHERRY_") {
            command.env_remove(name);
        }
    }
    for name in ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME"]
    {
        command.env_remove(name);
    }
    command.env("HOME", home);
}

impl Wherry {
    /// A node that does not run yet, with an empty data folder.
    ///
    /// # Errors
    /// When the name was used in this lab.
    pub fn new(lab: &Lab, name: &str, options: Options) -> Result<Self> {
        let data = lab.folder(name)?;
        Ok(Self { name: name.to_owned(), logs: lab.logs(), data, options, process: None, addresses: None })
    }

    /// A node that is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(lab: &Lab, name: &str, options: Options) -> Result<Self> {
        let mut node = Self::new(lab, name, options)?;
        node.up()?;
        Ok(node)
    }

    /// What it is started with; a change counts from the next [`Wherry::up`].
    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Starts it on its data folder and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub fn up(&mut self) -> Result<()> {
        self.launch()?;
        let mut process = self.process.take().context("just launched")?;
        let ready = wait_for(&format!("{} is ready", self.name), START, || {
            ensure!(process.runs()?, "{} ended", self.name);
            self.ask_addresses()
        });
        self.addresses = Some(ready.with_context(|| process.tail())?);
        self.process = Some(process);
        Ok(())
    }

    /// Starts it without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{} runs", self.name);
        let mut arguments: Vec<String> = vec!["up".into()];
        if self.options.space.is_none() {
            arguments.push("--no-mdns".into());
            let is_free = |service: &&str| !self.options.more.iter().any(|given| given == service);
            for service in ["--gateway", "--status", "--peers", "--bulk"].into_iter().filter(is_free) {
                arguments.extend([service.into(), "127.0.0.1:0".into()]);
            }
        }
        if let Some(origin) = &self.options.origin {
            arguments.extend([
                "--default-origin".into(),
                origin.clone(),
                "--insecure".into(),
                origin.clone(),
            ]);
        }
        for peer in &self.options.bootstrap {
            arguments.extend(["--bootstrap".into(), peer.clone()]);
        }
        arguments.extend(self.options.more.iter().cloned());
        let environment = self.options.environment.clone();
        let data = self.data.clone();
        let (program, before) = placed(self.options.space.as_ref(), wherry_bin()?);
        self.process = Some(Process::start(&self.name, &self.logs, Signal::KILL, program, |command| {
            bare(command, &data);
            command.args(before).args(arguments).arg("--data").arg(&data);
            command.env("RUST_BACKTRACE", "1").envs(environment);
        })?);
        Ok(())
    }

    fn ask_addresses(&self) -> Result<Option<Addresses>> {
        let answer = output(command(&self.data)?.args(["status", "--json"]))?;
        if !answer.status.success() {
            return Ok(None);
        }
        let status: Value = serde_json::from_slice(&answer.stdout).context("status --json")?;
        addresses(&status).with_context(|| format!("status --json: {status:#}")).map(Some)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Before it was ready for the first time.
    pub fn addresses(&self) -> Result<&Addresses> {
        self.addresses.as_ref().with_context(|| format!("{} is not up", self.name))
    }

    /// Its gateway.
    ///
    /// # Errors
    /// As [`Wherry::addresses`].
    pub fn gateway(&self) -> Result<SocketAddr> {
        Ok(self.addresses()?.gateway)
    }

    /// Its process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} does not run", self.name))
    }

    /// A command that talks to this node.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn command(&self) -> Result<Command> {
        command(&self.data)
    }

    /// Runs a command of this node and gives what it printed.
    ///
    /// # Errors
    /// When it fails, with all that it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(self.command()?.args(arguments))
    }

    /// Starts a command of this node and leaves it running; `name` is that of its logs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        Process::start(name, &self.logs, Signal::KILL, wherry_bin()?, |command| {
            bare(command, &self.data);
            command.env("WHERRY_DATA", &self.data).args(arguments);
        })
    }

    /// Runs a command with `--json` and gives what it printed.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = run(self.command()?.args(arguments).arg("--json"))?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} --json printed {text}"))
    }

    /// The names of the images that it has whole, as `wherry images` tells them.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn whole_images(&self) -> Result<Vec<String>> {
        let images = self.json(&["images"])?;
        let whole = images.as_array().context("no list")?.iter().filter(|image| image["whole"] == true);
        Ok(whole.filter_map(|image| image["reference"].as_str().map(str::to_owned)).collect())
    }

    /// Runs a command that must fail with status 1, and gives what it wrote to standard error.
    ///
    /// # Errors
    /// When it ends in any other way.
    pub fn fails(&self, arguments: &[&str]) -> Result<String> {
        refused(self.command()?.args(arguments), 1)
    }

    /// Both outputs of the node since it was made.
    ///
    /// # Errors
    /// When the logs cannot be read.
    pub fn log(&self) -> Result<String> {
        let read = |end: &str| std::fs::read(self.logs.join(format!("{}.{end}", self.name)));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(text(read("out")?) + &text(read("err")?))
    }

    /// Ends it at once, as a power cut would.
    ///
    /// # Errors
    /// When it cannot be reaped.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Ends it with SIGTERM and expects success within the time that wherry promises.
    ///
    /// # Errors
    /// When it takes longer or ends otherwise.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let status = process.stop(STOP)?;
        ensure!(status.success(), "{} ended with {status}{}", self.name, process.tail());
        Ok(())
    }
}

/// Runs a command that must fail with this status, in words and without a panic; gives its standard error.
///
/// # Errors
/// When it ends in any other way.
pub fn refused(command: &mut Command, status: i32) -> Result<String> {
    let answer = output(command)?;
    let whole = crate::process::describe(command, &answer);
    ensure!(answer.status.code() == Some(status), "should have ended with status {status}: {whole}");
    let errors = String::from_utf8_lossy(&answer.stderr).into_owned();
    ensure!(!errors.trim().is_empty() && !errors.contains("panicked at"), "should say why: {whole}");
    Ok(errors)
}

fn addresses(status: &Value) -> Result<Addresses> {
    let socket = |key: &str| -> Result<SocketAddr> {
        Ok(status["addresses"][key].as_str().with_context(|| format!("no {key}"))?.parse()?)
    };
    let peers = status["addresses"]["bootstrap"].as_array().context("no bootstrap addresses")?;
    Ok(Addresses {
        gateway: socket("gateway")?,
        status: socket("status")?,
        peers: peers.iter().filter_map(|peer| peer.as_str().map(str::to_owned)).collect(),
        peer_id: status["peer_id"].as_str().context("no peer_id")?.to_owned(),
    })
}
