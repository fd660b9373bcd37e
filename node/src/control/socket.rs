//! The socket file.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::http::Accept;

/// The longest path of a Unix socket, in bytes, that Linux and macOS both take.
const MAX_PATH: usize = 103;

/// A socket that listens, and whose file goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that nobody else's is removed.
    file: (u64, u64),
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another node answers on it.
    #[error("a node is running already: it answers at {}", .0.display())]
    Taken(PathBuf),
    /// Something else is in its place.
    #[error("{} is not a socket; move it away or choose another path with --control", .0.display())]
    NoSocket(PathBuf),
    /// The system takes no path of that length.
    #[error(
        "the path of the control socket is too long for the system ({len} bytes, {MAX_PATH} are possible): choose a \
         shorter one with --control",
        len = .0.as_os_str().len()
    )]
    TooLong(PathBuf),
    /// The system refused.
    #[error("the control socket {} could not be made: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens at `path` with mode 0600, making its folder if there is none. A socket that a dead node left behind is
/// replaced.
///
/// # Errors
/// When a node answers at the path, something else stands there, or the system refuses.
pub fn bind(path: &Path) -> Result<Socket, BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    // Bound under another name first: at its own name the socket appears with its final permissions.
    let staging = path.with_file_name(format!(".{}", std::process::id()));
    if path.as_os_str().len().max(staging.as_os_str().len()) > MAX_PATH {
        return Err(BindError::TooLong(path.to_owned()));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NoSocket(path.to_owned()));
        }
        Ok(_) if Probe::connect(path).is_ok() => return Err(BindError::Taken(path.to_owned())),
        // Nobody listens, or there is nothing.
        _ => {}
    }
    remove(&staging).map_err(failed)?;
    let listener = UnixListener::bind(&staging).map_err(failed)?;
    let placed = fs::set_permissions(&staging, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&staging, path))
        .and_then(|()| fs::symlink_metadata(path));
    match placed {
        Ok(metadata) => {
            Ok(Socket { listener, path: path.to_owned(), file: (metadata.dev(), metadata.ino()) })
        }
        Err(error) => {
            let _ = remove(&staging);
            Err(failed(error))
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Socket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Accept for Socket {
    type Io = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours {
            // A file that stays is replaced by the next start.
            let _ = remove(&self.path);
        }
    }
}
