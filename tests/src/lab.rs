//! One test's own corner of the machine: a folder with logs in it, and nothing left behind when it goes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, mount};
use tempfile::TempDir;

use crate::netns::{maker, runs};

/// The environment variable that names the `wherry` binary under test.
pub const WHERRY_BIN: &str = "WHERRY_BIN";

/// The environment variable that, when set, keeps each test's folder for a look at it.
pub const KEEP: &str = "WHERRY_LAB_KEEP";

/// What the folders of labs in memory begin with; the id of the process that made them follows.
const MEMORY_PREFIX: &str = "wherry-swarm-";

/// A temporary folder. What runtimes mount inside it is unmounted before it is removed.
///
/// Make it first in a test: values are dropped in reverse order, so processes end before their folder does.
pub struct Lab {
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Lab {
    /// A new, empty lab below the system's temporary folder (`TMPDIR`).
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new() -> Result<Self> {
        Self::at("wherry-lab-", |_| Ok(()))
    }

    /// A lab in memory, for many nodes that would wait for a disk which in truth each has for itself. On disk after all
    /// when the folder is to be kept. What a killed run left goes first.
    ///
    /// # Errors
    /// When the folder cannot be made or mounted.
    pub fn in_memory() -> Result<Self> {
        sweep();
        Self::at(&format!("{MEMORY_PREFIX}{}-", std::process::id()), |path| {
            if std::env::var_os(KEEP).is_some() {
                return Ok(());
            }
            mount("tmpfs", path, "tmpfs", MountFlags::empty(), None)
                .with_context(|| format!("mount {}", path.display()))
        })
    }

    fn at(prefix: &str, mount: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir().context("a temporary folder")?;
        let path = dir.path().canonicalize()?;
        mount(&path)?;
        fs::create_dir(path.join("logs"))?;
        let lab = Self { dir: Some(dir), path };
        if std::env::var_os(KEEP).is_some() {
            eprintln!("lab: {}", lab.path.display());
        }
        Ok(lab)
    }

    /// The lab's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where processes log to.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// A new folder inside the lab.
    ///
    /// # Errors
    /// When it is there already.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir(&path).with_context(|| format!("folder {}", path.display()))?;
        Ok(path)
    }

    /// A file inside the lab.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, content).with_context(|| format!("file {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        unmount_below(&self.path);
        if std::env::var_os(KEEP).is_some() {
            self.dir.take().map(TempDir::keep);
        } else if let Some(Err(error)) = self.dir.take().map(TempDir::close) {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}

/// Removes the labs in memory of runs that ended without doing so.
fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let left = |name: &str| maker(name, MEMORY_PREFIX).is_some_and(|pid| !runs(pid));
        if entry.file_name().to_str().is_some_and(left) {
            unmount_below(&entry.path());
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                eprintln!("{} could not be removed: {error}", entry.path().display());
            }
        }
    }
}

/// Unmounts whatever is mounted below a folder, innermost first.
pub fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    let mut inside: Vec<&Path> = targets.filter(|target| target.starts_with(folder)).collect();
    inside.sort();
    for target in inside.into_iter().rev() {
        if let Err(error) = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("{} could not be unmounted: {error}", target.display());
        }
    }
}

/// The folder that keeps what is slow to make between runs; not under version control.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache")
}

/// The `wherry` binary under test: `WHERRY_BIN`, or else the one in the target folder of this very build.
///
/// # Errors
/// When there is none; the text says how to make one.
pub fn wherry_bin() -> Result<PathBuf> {
    let named = std::env::var_os(WHERRY_BIN).map(PathBuf::from);
    let beside = || {
        let me = std::env::current_exe().ok()?;
        let profile = me.ancestors().skip(1).find(|dir| !dir.ends_with("deps"))?;
        Some(profile.join("wherry"))
    };
    let path = named.or_else(beside).context("this program's own path")?;
    let path = path.canonicalize().with_context(|| {
        format!("no wherry at {}: build it with `cargo build`, or name one in {WHERRY_BIN}", path.display())
    })?;
    Ok(path)
}
