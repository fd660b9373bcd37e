//! Where things lie in the data folder, and the few file operations that the store is made of.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use wherry_proto::{Algorithm, ChainBuilder, ChunkMap, Digest, StateChain};

use super::StoreError;

/// The paths of one data folder.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Verified blobs.
    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        fan_out(self.blobs(), digest)
    }

    /// State chains of verified blobs that have more than one chunk.
    pub(super) fn chains(&self) -> PathBuf {
        self.root.join("chains")
    }

    pub(super) fn chain(&self, digest: &Digest) -> PathBuf {
        fan_out(self.chains(), digest)
    }

    /// Blobs that are being filled in any order, each with its links.
    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(super) fn partial(&self, digest: &Digest, size: u64) -> PathBuf {
        self.partials().join(partial_name(digest, size))
    }

    pub(super) fn links(&self, digest: &Digest, size: u64) -> PathBuf {
        self.partials().join(partial_name(digest, size) + LINKS)
    }

    /// Blobs that are being written in order; emptied at every start.
    pub(super) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// The last index that could not be read, for a look.
    pub(super) fn bad_index(&self) -> PathBuf {
        self.root.join("index.damaged")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Stands while index and blobs are known to agree, so that a start need not compare them.
    pub(super) fn clean(&self) -> PathBuf {
        self.root.join("clean")
    }
}

const LINKS: &str = ".links";

fn fan_out(parent: PathBuf, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    let mut path = parent.join(digest.algorithm().name());
    path.push(&hex[..2]);
    path.push(hex);
    path
}

fn partial_name(digest: &Digest, size: u64) -> String {
    format!("{}-{}-{size}", digest.algorithm().name(), digest.hex())
}

/// What the name of a file in the partial folder says: digest, length, and whether it holds the links.
pub(super) fn parse_partial_name(name: &str) -> Option<(Digest, u64, bool)> {
    let (name, links) = name.strip_suffix(LINKS).map_or((name, false), |name| (name, true));
    let (digest, size) = name.rsplit_once('-')?;
    let digest = digest.replacen('-', ":", 1).parse().ok()?;
    let size: u64 = size.parse().ok()?;
    // One file, one name: "007" is none.
    (partial_name(&digest, size) == name).then_some((digest, size, links))
}

/// Makes a folder that only its owner may enter; one that exists is left as it is.
pub(super) fn make_dir(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| StoreError::io("make the folder", path, error))
}

/// Makes a file that did not exist, or empties one that did, open for reading and writing.
pub(super) fn create(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| StoreError::io("create", path, error))
}

/// Makes what a folder lists durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| StoreError::io("sync", path, error))
}

/// Makes a file's bytes durable.
pub(super) fn sync_file(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_data()).map_err(|error| StoreError::io("sync", path, error))
}

/// Makes everything durable that lies on the file system of `path`.
pub(super) fn sync_all(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|dir| Ok(rustix::fs::syncfs(dir)?))
        .map_err(|error| StoreError::io("sync the file system of", path, error))
}

/// Removes a file; that it is gone already is no error.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Empties a folder of files and folders.
pub(super) fn empty_dir(path: &Path) -> Result<(), StoreError> {
    for name in list(path)? {
        remove_any(&path.join(name))?;
    }
    Ok(())
}

/// Removes a file, or a folder with all that is in it.
pub(super) fn remove_any(path: &Path) -> Result<(), StoreError> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|data| data.is_dir());
    let done = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    done.map_err(|error| StoreError::io("remove", path, error))
}

/// The names in a folder; none if there is no such folder. Names that are not UTF-8 come out altered, which
/// only foreign files have.
pub(super) fn list(path: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| StoreError::io("list", path, error))?,
    };
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(|error| StoreError::io("list", path, error))
}

/// Makes a blob's file read-only.
pub(super) fn seal(file: &File, path: &Path) -> Result<(), StoreError> {
    file.set_permissions(fs::Permissions::from_mode(0o444))
        .map_err(|error| StoreError::io("protect", path, error))
}

/// Lets a file that was a blob be written to.
pub(super) fn unseal(path: &Path) -> Result<(), StoreError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|error| StoreError::io("unlock", path, error))
}

/// Bytes that the file system of `path` has free for this user.
pub(super) fn free(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// How many bytes are read at once when a whole blob is hashed.
const HASH_BUFFER: usize = 1 << 20;

/// Hashes a file of `map.size()` bytes; a file of another length is an error of kind `InvalidData`.
pub(super) fn hash(file: &mut impl Read, algorithm: Algorithm, map: ChunkMap) -> io::Result<StateChain> {
    // Never breaks, so that there is a chain.
    let chain = hash_while(file, algorithm, map, |_| ControlFlow::Continue(()))?;
    chain.ok_or_else(|| io::ErrorKind::Interrupted.into())
}

/// The same, telling `goes_on` of each piece how many bytes it had; `None` if that said to break off.
pub(super) fn hash_while(
    file: &mut impl Read,
    algorithm: Algorithm,
    map: ChunkMap,
    mut goes_on: impl FnMut(u64) -> ControlFlow<()>,
) -> io::Result<Option<StateChain>> {
    let wrong = |error: wherry_proto::WrongSize| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut builder = ChainBuilder::new(algorithm, map);
    let mut buffer = vec![0; HASH_BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                builder.update(&buffer[..n]).map_err(wrong)?;
                if goes_on(n as u64).is_break() {
                    return Ok(None);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    builder.finish().map(Some).map_err(wrong)
}
