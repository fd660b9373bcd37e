//! An image becomes a bundle: a root file system, and the configuration with which an OCI runtime runs it.
//!
//! It is made beside its place and renamed into it once every layer has turned out to be right, so that there is a whole
//! bundle or none.

mod bundle;
mod disk;
mod users;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

pub use bundle::Caller;

use self::disk::Disk;
use super::image::{Blobs, Image, each_piece};
use super::tree::{Done, Kind, Tree};
use super::{ImageConfig, LayerError};

/// What the folder is called in which a bundle is made, with something random behind it.
pub const UNFINISHED: &str = ".wherry-unpack-";

/// Why an image was not unpacked. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A layer is not right.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// There is something where the bundle is to be.
    #[error("{} is there and is no empty folder: name one that is empty, or that is not there", .0.display())]
    Occupied(PathBuf),
    /// The folder in which it is to be cannot be used.
    #[error("nothing can be made in {}: {source}", folder.display())]
    Place {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bundle could not be put in its place.
    #[error("the bundle cannot take the place of {}: {source}", place.display())]
    Rename {
        /// The place.
        place: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be made.
    #[error("/{path} of the image cannot be {what}: {source}")]
    File {
        /// The file, in the image.
        path: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The configuration names a user that the image does not have.
    #[error(
        "the image is to run as '{user}', which its {file} does not have: it has to be built again, with that user or a number"
    )]
    User {
        /// What the configuration says.
        user: String,
        /// Where that should be.
        file: &'static str,
    },
    /// `config.json` could not be written.
    #[error("the bundle's configuration cannot be written: {0}")]
    Config(io::Error),
}

/// What was left out of a bundle, since the caller may not do it or the file system cannot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Files that belong to the caller instead of whom they should belong to.
    pub owners: u64,
    /// Devices that were not made.
    pub devices: u64,
    /// Extended attributes that were not set.
    pub attributes: u64,
}

/// A bundle that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, folders and whatever else there is.
    pub files: u64,
    /// Bytes in its files.
    pub bytes: u64,
    /// What was left out.
    pub left_out: LeftOut,
    /// Whether the image names no program, so that the bundle runs a shell.
    pub no_program: bool,
}

/// Makes a bundle of an image in `place`, which must be an empty folder or not be there. `image` must not have been read.
///
/// # Errors
/// When a layer is not right, or the bundle cannot be made. Nothing is left of it then.
pub fn unpack(
    mut image: Image,
    config: &ImageConfig,
    blobs: &mut dyn Blobs,
    place: &Path,
    caller: Caller,
) -> Result<Unpacked, UnpackError> {
    let place = whereabouts(place)?;
    let occupied = match fs::read_dir(&place) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    if occupied {
        return Err(UnpackError::Occupied(place));
    }
    // Its programs may be set-user-id: nobody but the caller gets at them, unless a folder was there that lets others in.
    let mode = fs::metadata(&place).map_or(0o700, |there| there.permissions().mode() & 0o7777);
    let folder = place.parent().unwrap_or(Path::new("/")).to_owned();
    let making = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&folder);
    let making = Making(Some(making.map_err(|source| UnpackError::Place { folder, source })?));
    let made = fill(&mut image, config, blobs, making.path(), caller)?;
    let misplaced = |source| UnpackError::Rename { place: place.clone(), source };
    fs::set_permissions(making.path(), fs::Permissions::from_mode(mode)).map_err(misplaced)?;
    fs::rename(making.path(), &place).map_err(misplaced)?;
    making.done();
    Ok(made)
}

/// The place without symbolic links, as far as it is there.
fn whereabouts(place: &Path) -> Result<PathBuf, UnpackError> {
    if let Ok(there) = fs::canonicalize(place) {
        return Ok(there);
    }
    // A link to nothing is something.
    let (Some(name), Err(_)) = (place.file_name(), fs::symlink_metadata(place)) else {
        return Err(UnpackError::Occupied(place.to_owned()));
    };
    let folder = place.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = fs::canonicalize(folder)
        .map_err(|source| UnpackError::Place { folder: folder.to_owned(), source })?;
    Ok(folder.join(name))
}

fn fill(
    image: &mut Image,
    config: &ImageConfig,
    blobs: &mut dyn Blobs,
    folder: &Path,
    caller: Caller,
) -> Result<Unpacked, UnpackError> {
    let mut disk = Disk::new(&folder.join("rootfs"), caller.is_root())?;
    let mut bytes = 0;
    image.read(image.layers().len(), blobs, |tree, layer, applied, _| {
        for removed in &applied.removed {
            disk.remove(tree, &removed.path, removed.inode)?;
        }
        for path in &applied.implied {
            disk.make_folder(path)?;
        }
        match &applied.done {
            Done::Linked { path, target, inode } => disk.link(path, target, tree.inode(*inode)),
            Done::Made { path, inode } => {
                let inode = tree.inode(*inode);
                let Kind::File { size, .. } = inode.kind else { return disk.make(path, inode) };
                bytes += size;
                let mut file = disk.create(path)?;
                each_piece(layer, |piece| disk.write(path, &mut file, piece))?;
                disk.finish(path, &file, &inode.attributes)
            }
            Done::Folder | Done::Hid { .. } | Done::Nothing => Ok(()),
        }
    })?;
    let tree = image.tree();
    let text = bundle::config(config, tree, &mut disk, caller)?;
    let files = disk.finish_folders(tree)?;
    let no_program = config.entrypoint.is_empty() && config.cmd.is_empty();
    fs::write(folder.join("config.json"), text).map_err(UnpackError::Config)?;
    Ok(Unpacked { files, bytes, left_out: disk.left_out(), no_program })
}

/// A bundle that is not finished, and is removed with all that is in it unless it gets so far.
struct Making(Option<TempDir>);

impl Making {
    fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new(""), TempDir::path)
    }

    fn done(mut self) {
        // It is elsewhere now.
        self.0.take().map(TempDir::keep);
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let Some(folder) = self.0.take() else { return };
        // Folders may already be closed to their own user.
        disk::open_folders(folder.path());
        if let Err(error) = folder.close() {
            tracing::warn!(%error, "an unfinished bundle could not be removed");
        }
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// What is in a small text file of the image, if it has it.
fn text_of(tree: &Tree, disk: &mut Disk, path: &str) -> Result<String, UnpackError> {
    let Ok(found) = tree.find(path.as_bytes()) else { return Ok(String::new()) };
    match tree.inode(found.inode).kind {
        Kind::File { .. } => disk.text(&found.path),
        _ => Ok(String::new()),
    }
}
