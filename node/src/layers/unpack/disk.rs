//! The disk does what the tree of an image's files has decided.
//!
//! Every path here is one of the tree, without symbolic links. It is walked part by part from the root's own handle, and
//! no link is followed at any of them: if one is there all the same, somebody else has put it there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawMode, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use super::{LeftOut, UnpackError, shown};
use crate::layers::entry::Attributes;
use crate::layers::tree::{Inode, InodeId, Kind, Tree};

/// The most that is read of a text file of an image, in bytes.
const MAX_TEXT_FILE: u64 = 1 << 20;

/// A folder is its maker's alone until everything is in it.
const UNFINISHED: Mode = Mode::from_raw_mode(0o700);

/// Attributes that a file system of layers would take for its own words: no layer has business to say them.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// A root file system that is being made.
pub(super) struct Disk {
    root: OwnedFd,
    /// The folder that was used last; entries of one folder mostly follow one another.
    last: Option<(Vec<u8>, OwnedFd)>,
    is_root: bool,
    left_out: LeftOut,
}

impl Disk {
    /// A root file system in a folder that is not there.
    pub(super) fn new(path: &Path, is_root: bool) -> Result<Self, UnpackError> {
        let failed = |errno: Errno| fault(b"", "made", errno);
        mkdirat(CWD, path, UNFINISHED).map_err(failed)?;
        let root = openat(CWD, path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { root: root.map_err(failed)?, last: None, is_root, left_out: LeftOut::default() })
    }

    pub(super) fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// Does something in the folder of a path.
    fn within<T>(
        &mut self,
        path: &[u8],
        what: &'static str,
        act: impl FnOnce(&mut Self, &OwnedFd, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        let opened = match self.last.take() {
            Some((last, opened)) if last == folder => opened,
            _ => self.open(folder).map_err(|errno| fault(path, what, errno))?,
        };
        let done = act(self, &opened, name);
        self.last = Some((folder.to_vec(), opened));
        done.map_err(|errno| fault(path, what, errno))
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut folder = self.root.try_clone().map_err(errno)?;
        for name in path.split(|byte| *byte == b'/').filter(|it| !it.is_empty()) {
            folder = open_folder(&folder, name)?;
        }
        Ok(folder)
    }

    pub(super) fn make_folder(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.within(path, "made", |_, folder, name| mkdirat(folder, name, UNFINISHED))
    }

    /// Begins a file.
    pub(super) fn create(&mut self, path: &[u8]) -> Result<File, UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        self.within(path, "made", |_, folder, name| openat(folder, name, flags, mode)).map(File::from)
    }

    pub(super) fn write(&self, path: &[u8], file: &mut File, bytes: &[u8]) -> Result<(), UnpackError> {
        file.write_all(bytes).map_err(|source| UnpackError::File {
            path: shown(path),
            what: "written",
            source,
        })
    }

    /// Gives a file its attributes, once all is in it.
    pub(super) fn finish(
        &mut self,
        path: &[u8],
        file: &File,
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        self.set(file, attributes).map_err(|errno| fault(path, "given its attributes", errno))
    }

    /// Makes what is no file with content.
    pub(super) fn make(&mut self, path: &[u8], inode: &Inode) -> Result<(), UnpackError> {
        let attributes = &inode.attributes;
        let node = |kind, major, minor| (kind, makedev(major, minor));
        let (kind, device) = match &inode.kind {
            Kind::Folder | Kind::File { .. } => return self.make_folder(path),
            Kind::Symlink(target) => {
                return self.within(path, "made", |disk, folder, name| {
                    symlinkat(target.as_slice(), folder, name)?;
                    disk.set_by_name(folder, name, attributes, false)
                });
            }
            Kind::CharDevice(major, minor) => node(FileType::CharacterDevice, *major, *minor),
            Kind::BlockDevice(major, minor) => node(FileType::BlockDevice, *major, *minor),
            Kind::Pipe => (FileType::Fifo, 0),
        };
        if kind != FileType::Fifo && !self.is_root {
            self.left_out.devices += 1;
            return Ok(());
        }
        self.within(path, "made", |disk, folder, name| {
            match mknodat(folder, name, kind, Mode::from_raw_mode(0o600), device) {
                // A root that may not make devices, as in many a container.
                Err(Errno::PERM) if kind != FileType::Fifo => {
                    disk.left_out.devices += 1;
                    Ok(())
                }
                Err(errno) => Err(errno),
                Ok(()) => disk.set_by_name(folder, name, attributes, true),
            }
        })
    }

    /// Gives a file another name.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8], inode: &Inode) -> Result<(), UnpackError> {
        let (from, old) = match target.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&target[..slash], &target[slash + 1..]),
            None => (&target[..0], target),
        };
        let from = self.open(from).map_err(|errno| fault(target, "linked", errno))?;
        let is_device = matches!(inode.kind, Kind::CharDevice(..) | Kind::BlockDevice(..));
        self.within(path, "linked", |disk, folder, name| {
            match linkat(&from, old, folder, name, AtFlags::empty()) {
                // One that was left out.
                Err(Errno::NOENT) if is_device => {
                    disk.left_out.devices += 1;
                    Ok(())
                }
                linked => linked,
            }
        })
    }

    /// Removes what was at a path, with all that the tree knows to be in it.
    pub(super) fn remove(&mut self, tree: &Tree, path: &[u8], inode: InodeId) -> Result<(), UnpackError> {
        // What is open may be below it.
        self.last = None;
        self.within(path, "removed", |_, folder, name| remove(tree, folder, name, inode))?;
        self.last = None;
        Ok(())
    }

    /// Gives all folders their attributes, those in a folder before itself, and counts all that there is.
    pub(super) fn finish_folders(&mut self, tree: &Tree) -> Result<u64, UnpackError> {
        self.last = None;
        let root = self.root.try_clone().map_err(|error| fault(b"", "opened", errno(error)))?;
        let mut path = Vec::new();
        self.finish_folder(tree, &root, Tree::ROOT, &mut path)
    }

    /// As deep as the tree is, which is bounded.
    fn finish_folder(
        &mut self,
        tree: &Tree,
        folder: &OwnedFd,
        id: InodeId,
        path: &mut Vec<u8>,
    ) -> Result<u64, UnpackError> {
        let mut count = 0;
        for (name, child) in tree.children(id) {
            count += 1;
            if tree.inode(child).kind != Kind::Folder {
                continue;
            }
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let opened =
                openat(folder, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
            let opened = opened.map_err(|errno| fault(path, "opened", errno))?;
            count += self.finish_folder(tree, &opened, child, path)?;
            path.truncate(length);
        }
        let attributes = &tree.inode(id).attributes;
        self.set(folder, attributes).map_err(|errno| fault(path, "given its attributes", errno))?;
        Ok(count)
    }

    /// The beginning of a text file, as text.
    pub(super) fn text(&mut self, path: &[u8]) -> Result<String, UnpackError> {
        // The file's own permissions may keep its owner from reading it.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.within(path, "read", |_, folder, name| openat(folder, name, flags, Mode::empty()))?;
        let mut bytes = Vec::new();
        let read = File::from(file).take(MAX_TEXT_FILE).read_to_end(&mut bytes);
        read.map_err(|source| UnpackError::File { path: shown(path), what: "read", source })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Sets the attributes of a file or folder that is open. The owner comes first, since a change of it takes away others.
    fn set(&mut self, file: impl std::os::fd::AsFd, attributes: &Attributes) -> Result<(), Errno> {
        let file = file.as_fd();
        if self.is_root {
            let owned = fchown(file, Some(uid(attributes)), Some(gid(attributes)));
            self.owner_set(owned)?;
        } else if !is_callers(attributes) {
            self.left_out.owners += 1;
        }
        for (name, value) in &attributes.xattrs {
            let set = match OVERLAY.iter().any(|prefix| name.starts_with(prefix)) {
                true => Err(Errno::OPNOTSUPP),
                false => fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty()),
            };
            match set {
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => self.left_out.attributes += 1,
                set => set?,
            }
        }
        fchmod(file, mode(attributes))?;
        futimens(file, &times(attributes))
    }

    /// The same for what cannot be opened, or had better not be. Links have no permissions.
    fn set_by_name(
        &mut self,
        folder: &OwnedFd,
        name: &[u8],
        attributes: &Attributes,
        has_mode: bool,
    ) -> Result<(), Errno> {
        if self.is_root {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let owned = chownat(folder, name, Some(uid(attributes)), Some(gid(attributes)), flags);
            self.owner_set(owned)?;
        } else if !is_callers(attributes) {
            self.left_out.owners += 1;
        }
        self.left_out.attributes += attributes.xattrs.len() as u64;
        if has_mode {
            chmodat(folder, name, mode(attributes), AtFlags::empty())?;
        }
        utimensat(folder, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// A root of a part of the users alone cannot give files to all of them.
    fn owner_set(&mut self, owned: Result<(), Errno>) -> Result<(), Errno> {
        match owned {
            Err(Errno::PERM | Errno::INVAL) => {
                self.left_out.owners += 1;
                Ok(())
            }
            owned => owned,
        }
    }
}

/// As deep as the tree is, which is bounded.
fn remove(tree: &Tree, folder: &OwnedFd, name: &[u8], id: InodeId) -> Result<(), Errno> {
    if tree.inode(id).kind != Kind::Folder {
        return match unlinkat(folder, name, AtFlags::empty()) {
            // A device that was left out.
            Err(Errno::NOENT) => Ok(()),
            removed => removed,
        };
    }
    let opened = open_folder(folder, name)?;
    for (name, child) in tree.children(id) {
        remove(tree, &opened, name, child)?;
    }
    unlinkat(folder, name, AtFlags::REMOVEDIR)
}

fn open_folder(folder: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder.as_fd(), name, flags, Mode::empty())
}

/// Lets their own user into all folders below one, so that they can be removed. What cannot be opened stays as it is.
pub(super) fn open_folders(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700));
        open_folders(&entry.path());
    }
}

/// Whether whoever unpacks an image for themselves would not miss the owner: what belongs to root of it is theirs.
fn is_callers(attributes: &Attributes) -> bool {
    (attributes.owner, attributes.group) == (0, 0)
}

fn uid(attributes: &Attributes) -> Uid {
    Uid::from_raw(attributes.owner)
}

fn gid(attributes: &Attributes) -> Gid {
    Gid::from_raw(attributes.group)
}

fn mode(attributes: &Attributes) -> Mode {
    Mode::from_raw_mode(attributes.mode as RawMode)
}

fn times(attributes: &Attributes) -> Timestamps {
    let time = Timespec { tv_sec: attributes.mtime.seconds, tv_nsec: attributes.mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn fault(path: &[u8], what: &'static str, errno: Errno) -> UnpackError {
    UnpackError::File { path: shown(path), what, source: errno.into() }
}
