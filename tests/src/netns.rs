//! A network of one's own: a namespace whose loopback nobody else uses and that can be made as slow as a thin link, or
//! many with links between them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{feed, run, tool};

const LIMIT: Duration = Duration::from_secs(20);

/// How long a batch of `ip` or `tc` may take.
const BATCH: Duration = Duration::from_secs(120);

/// Where `ip` keeps namespaces by name.
const NAMED: &str = "/var/run/netns";

/// What the names of [`Spaces`] begin with; the id of the process that made them and a word of its own follow.
const PREFIX: &str = "wherry-swarm-";

/// What may leave at once in spite of the rate: more than the largest packet that loopback carries.
const BURST: &str = "256k";

/// A network namespace that this thread lives in, and all threads and processes that it starts from now on. It goes
/// with this value; the thread stays where it is, so make it in a test's own thread and only once.
pub struct Alone {
    name: String,
}

impl Alone {
    /// Moves this thread into a new namespace with nothing but loopback. Make it before anything that has a socket.
    ///
    /// # Errors
    /// Without root.
    pub fn enter() -> Result<Self> {
        let id = fs::read_link("/proc/thread-self")?;
        let name = format!("wherry-lab-{}", id.display().to_string().replace('/', "-"));
        run(tool("ip", LIMIT).args(["netns", "add", &name]))?;
        let alone = Self { name };
        run(tool("ip", LIMIT).args(["-n", &alone.name, "link", "set", "lo", "up"]))?;
        enter(&Path::new(NAMED).join(&alone.name))?;
        Ok(alone)
    }

    /// From now on all of its traffic together is this fast, such as `100mbit`.
    ///
    /// # Errors
    /// Where the kernel cannot shape traffic.
    pub fn shape(&self, rate: &str) -> Result<()> {
        let mut command = tool("tc", LIMIT);
        command.args(["-n", &self.name, "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", rate]);
        run(command.args(["burst", BURST, "latency", "50ms"])).map(drop)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Err(error) = run(tool("ip", LIMIT).args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// Moves this thread into a namespace, and all threads and processes that it starts from now on.
fn enter(path: &Path) -> Result<()> {
    let namespace = File::open(path).with_context(|| format!("namespace {}", path.display()))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter the network namespace {}", path.display()))
}

/// One of several namespaces; see [`Spaces`].
#[derive(Clone, Debug)]
pub struct Space {
    name: String,
}

impl Space {
    /// What `ip` and `tc` call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMED).join(&self.name)
    }

    /// Moves this thread into it, and all threads and processes that it starts from now on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn enter(&self) -> Result<()> {
        enter(&self.path())
    }

    /// Does something in a thread inside it. A socket that is made there stays there, wherever it is used.
    ///
    /// # Errors
    /// When it cannot be entered, and those of `act`.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                act()
            });
            thread.join().ok().with_context(|| format!("a thread in {} panicked", self.name))?
        })
    }

    /// Runs lines of `ip` inside it, all with one call.
    ///
    /// # Errors
    /// At the first line that fails.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        batch("ip", Some(&self.name), lines)
    }

    /// Runs lines of `tc` inside it, all with one call.
    ///
    /// # Errors
    /// At the first line that fails.
    pub fn tc(&self, lines: &[String]) -> Result<()> {
        batch("tc", Some(&self.name), lines)
    }
}

fn batch(program: &str, space: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = tool(program, BATCH);
    if let Some(space) = space {
        command.args(["-n", space]);
    }
    feed(command.args(["-batch", "-"]), &(lines.join("\n") + "\n")).map(drop)
}

/// What to start, and its first arguments, so that a program runs in a namespace: it is still the one process.
pub(crate) fn placed(space: Option<&Space>, program: PathBuf) -> (PathBuf, Vec<OsString>) {
    match space {
        None => (program, Vec::new()),
        Some(space) => {
            let net = format!("--net={}", space.path().display());
            ("nsenter".into(), vec![net.into(), program.into_os_string()])
        }
    }
}

/// Several network namespaces, which go with this value. Those of a run that was killed go when the next one starts.
pub struct Spaces {
    all: Vec<Space>,
}

impl Spaces {
    /// New namespaces with nothing but loopback, one for each of these words, in their order.
    ///
    /// # Errors
    /// Without root.
    pub fn new(words: &[String]) -> Result<Self> {
        sweep()?;
        let name = |word| format!("{PREFIX}{}-{word}", std::process::id());
        let all: Vec<Space> = words.iter().map(|word| Space { name: name(word) }).collect();
        let lines: Vec<String> = all.iter().map(|space| format!("netns add {}", space.name)).collect();
        let spaces = Self { all };
        batch("ip", None, &lines)?;
        Ok(spaces)
    }

    /// All of them.
    pub fn all(&self) -> &[Space] {
        &self.all
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        let names = self
            .all
            .iter()
            .map(|space| space.name.clone())
            .filter(|name| Path::new(NAMED).join(name).exists());
        if let Err(error) = remove(names) {
            eprintln!("{error:#}");
        }
    }
}

/// Removes the namespaces of runs that ended without doing so.
fn sweep() -> Result<()> {
    let Ok(entries) = fs::read_dir(NAMED) else { return Ok(()) };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    remove(names.filter(|name| maker(name, PREFIX).is_some_and(|pid| !runs(pid))))
}

fn remove(names: impl Iterator<Item = String>) -> Result<()> {
    let lines: Vec<String> = names.map(|name| format!("netns del {name}")).collect();
    if lines.is_empty() { Ok(()) } else { batch("ip", None, &lines) }
}

/// The process that made what has this name: prefix, process id, a dash and more.
pub(crate) fn maker(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split('-').next()?.parse().ok()
}

/// Whether a process with this id runs the program that this process runs.
pub(crate) fn runs(pid: u32) -> bool {
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    name(&pid.to_string()).is_some_and(|other| Some(other) == name("self"))
}
