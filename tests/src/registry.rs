//! The origin: Debian's docker-registry with storage, port and access log of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::access::{self, Access};
use crate::lab::Lab;
use crate::netns::{Space, placed};
use crate::process::Process;

/// How long docker-registry may take to listen; it takes about 50 ms.
const START: Duration = Duration::from_secs(30);

/// How long it goes on with what is asked when it is told to end: it writes its log after the answer, and that of
/// the last answer is missing if it leaves at once.
const DRAIN: &str = "300ms";

/// How long it may take to end.
const STOP: Duration = Duration::from_secs(15);

/// The user that a registry with [`Options::password`] lets in.
pub const USER: &str = "skipper";

/// That user's password.
pub const PASSWORD: &str = "thin-link";

/// A line of an htpasswd file for the two above; docker-registry takes bcrypt alone.
pub const HTPASSWD: &str = "skipper:$2b$05$Rg0H0y34h/2Ke72q.JR8fO5ZAQcWVTMFMNBmv052PFur/ITtVawQW\n";

/// How an origin is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where it stores; a folder of its own in the lab if not given. With a folder that is given it only reads.
    pub shared_storage: Option<PathBuf>,
    /// Whether it asks for [`USER`] and [`PASSWORD`].
    pub password: bool,
    /// Whether to leave the access log out, for benchmarks: with it docker-registry cannot use sendfile.
    pub no_access_log: bool,
    /// Where it listens; on a free port of loopback if not given.
    pub listen: Option<SocketAddr>,
    /// The network namespace that it lives in, if not this one.
    pub space: Option<Space>,
    /// The registry that it is a pull-through cache of, `HOST:PORT`; asked over plain HTTP.
    pub cache_of: Option<String>,
}

/// A running (or stopped) docker-registry.
pub struct Registry {
    name: String,
    logs: PathBuf,
    config: PathBuf,
    options: Options,
    storage: PathBuf,
    addr: SocketAddr,
    process: Option<Process>,
}

impl Registry {
    /// Starts a registry.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(lab: &Lab, name: &str, options: Options) -> Result<Self> {
        let storage = match &options.shared_storage {
            Some(shared) => shared.clone(),
            None => lab.folder(&format!("{name}-storage"))?,
        };
        if options.password {
            lab.file(&format!("{name}.htpasswd"), HTPASSWD)?;
        }
        let mut registry = Self {
            config: lab.path().join(format!("{name}.yml")),
            name: name.to_owned(),
            logs: lab.logs(),
            storage,
            addr: options.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            options,
            process: None,
        };
        registry.restart()?;
        Ok(registry)
    }

    /// Where it listens. The same after a restart.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its name in a reference: `HOST:PORT`.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// Where it stores.
    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Whether it listens.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Starts it again after [`Registry::stop`], on the same port with the same content.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        fs::write(&self.config, self.config_text())?;
        let before = self.log().map_or(0, |log| log.len());
        let (program, first) = placed(self.options.space.as_ref(), "docker-registry".into());
        let mut process = Process::start(&self.name, &self.logs, Signal::KILL, program, |command| {
            // Its log goes to standard error and the access log to standard output.
            command.args(first).arg("serve").arg(&self.config).env("OTEL_TRACES_EXPORTER", "none");
        })?;
        let errors = self.logs.join(format!("{}.err", self.name));
        self.addr = process.wait_for_output("that it listens", START, |_| {
            let log = fs::read_to_string(&errors).ok()?;
            let (_, rest) = log.get(before..)?.split_once("msg=\"listening on ")?;
            rest.split(['"', ',']).next()?.parse().ok()
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops it, as if the cloud were cut off: connections are refused from now on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.stop(STOP).map(drop),
            None => Ok(()),
        }
    }

    /// Everything that it was asked so far, restarts included.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn accesses(&self) -> Result<Vec<Access>> {
        let log = self.logs.join(format!("{}.out", self.name));
        Ok(access::parse(&String::from_utf8_lossy(&fs::read(&log).context("the access log")?)))
    }

    fn log(&self) -> Option<String> {
        fs::read_to_string(self.logs.join(format!("{}.err", self.name))).ok()
    }

    fn config_text(&self) -> String {
        let auth = if self.options.password {
            let file = self.config.with_extension("htpasswd");
            format!("auth:\n  htpasswd:\n    realm: lab\n    path: {}\n", file.display())
        } else {
            String::new()
        };
        let cache = match &self.options.cache_of {
            Some(origin) => format!("proxy:\n  remoteurl: http://{origin}\n"),
            None => String::new(),
        };
        format!(
            "version: 0.1\n\
             log:\n  level: info\n  accesslog:\n    disabled: {no_log}\n\
             storage:\n  cache:\n    blobdescriptor: inmemory\n  filesystem:\n    rootdirectory: {storage}\n  \
             maintenance:\n    readonly:\n      enabled: {readonly}\n\
             http:\n  addr: {addr}\n  draintimeout: {DRAIN}\n{auth}{cache}",
            no_log = self.options.no_access_log,
            storage = self.storage.display(),
            readonly = self.options.shared_storage.is_some(),
            addr = self.addr,
        )
    }
}
