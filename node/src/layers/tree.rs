//! The files of an image: what its layers make of one another. Pure.
//!
//! It is a file system without contents: folders have names, names mean files, and one file may have several names. What
//! a layer says is done as the image specification has it, and where that leaves something open, as containerd does:
//!
//! - The folder of an entry is looked for inside the image, symbolic links included: where a lower layer has
//!   `bin -> usr/bin`, an entry `bin/sh` is `usr/bin/sh`. No such link leads out of the root. Folders that are missing
//!   are made.
//! - An entry takes the place of what has its name. Only a folder on a folder leaves what is in it.
//! - A whiteout hides what lower layers have, and nothing of its own layer, in whatever order they come.

use std::collections::{BTreeMap, HashSet};

use super::entry::{Attributes, Entry, What};
use super::{MAX_DEPTH, MAX_ENTRIES, MAX_LINKS, MAX_NAME, MAX_PATH, MAX_TEXT, Time};

/// What names of whiteouts begin with.
const WHITEOUT: &[u8] = b".wh.";

/// The rest of the name of a whiteout that hides all that lower layers have in its folder.
const OPAQUE: &[u8] = b".wh..opq";

/// Which file of a tree. Files keep their numbers, also once no name means them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(usize);

/// Where the content of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which layer, the base being 0.
    pub layer: usize,
    /// Which of its entries, the first being 1.
    pub entry: u64,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file with content.
    File {
        /// How many bytes.
        size: u64,
        /// Where they are.
        place: Place,
        /// Their SHA-256, if whoever made the tree has looked.
        sha256: Option<[u8; 32]>,
    },
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A device of which bytes are read one after the other.
    CharDevice(u32, u32),
    /// A device of which blocks are read.
    BlockDevice(u32, u32),
    /// A pipe with a name.
    Pipe,
}

/// A file, by whatever names.
#[derive(Debug, Clone)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// How it is.
    pub attributes: Attributes,
    // Of a folder.
    children: BTreeMap<Box<[u8]>, Child>,
}

/// What a name in a folder means. Layers are counted from 1 here; 0 is none.
#[derive(Debug, Clone, Copy)]
struct Child {
    inode: InodeId,
    /// The last layer with an entry of this name.
    own: usize,
    /// The last layer with an entry below it.
    inside: usize,
}

/// What a name meant and means no more, with all that was below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Where it was, without a slash in front.
    pub path: Vec<u8>,
    /// What was there. The tree goes on knowing what was in it.
    pub inode: InodeId,
}

/// What an entry did. Paths have no slash in front and lead through no symbolic link; the root's is empty.
#[derive(Debug)]
pub struct Applied {
    /// What is gone, before anything else is done.
    pub removed: Vec<Removed>,
    /// Folders that were missing, each below the one before it.
    pub implied: Vec<Vec<u8>>,
    /// What there is now.
    pub done: Done,
}

/// What there is after an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum Done {
    /// A new file.
    Made {
        /// Where.
        path: Vec<u8>,
        /// Which.
        inode: InodeId,
    },
    /// A folder that was there, perhaps with other attributes.
    Folder,
    /// Another name for a file.
    Linked {
        /// Where.
        path: Vec<u8>,
        /// Where the file is too.
        target: Vec<u8>,
        /// Which.
        inode: InodeId,
    },
    /// A whiteout.
    Hid {
        /// What it is about.
        path: Vec<u8>,
        /// Whether it is about all that is in there.
        opaque: bool,
    },
    /// Nothing that was not so before.
    Nothing,
}

/// What was found at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What is there.
    pub inode: InodeId,
    /// The path without symbolic links and without a slash in front.
    pub path: Vec<u8>,
}

/// Why an entry is not taken, or nothing is found at a path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The path goes up.
    #[error("its name has a '..', which would lead out of the image")]
    GoesUp,
    /// The path cannot be one.
    #[error("its name has a byte 0, more than {MAX_PATH} bytes, or more than {MAX_NAME} in one part")]
    Name,
    /// The path is too deep.
    #[error("it is more than {MAX_DEPTH} folders deep")]
    TooDeep,
    /// The root would become something else.
    #[error("it would make the root something else than a folder")]
    Root,
    /// A whiteout of nothing, of its own folder, or of the one above.
    #[error("it is a whiteout of no name")]
    Whiteout,
    /// What should be a folder is none.
    #[error("/{0} is no folder")]
    NotAFolder(String),
    /// There is nothing.
    #[error("there is no /{0}")]
    NotFound(String),
    /// Links lead in a circle, or nearly.
    #[error("more than {MAX_LINKS} symbolic links follow one another")]
    Loop,
    /// A link has no proper target.
    #[error("it is a link to nothing, or to more than {MAX_PATH} bytes")]
    Target,
    /// The file of a hard link is not there.
    #[error("it is a hard link to /{0}, which is not in the image")]
    NoTarget(String),
    /// A folder has one name.
    #[error("it is a hard link to the folder /{0}")]
    LinkToFolder(String),
    /// The archive's header makes no sense.
    #[error("it has {0}")]
    Unreadable(&'static str),
    /// There are too many files.
    #[error("the image has more than {MAX_ENTRIES} files and folders")]
    TooMany,
    /// Names, targets and attributes are too long together.
    #[error("the names, link targets and attributes of the image come to more than {} MiB", MAX_TEXT >> 20)]
    TooMuchText,
}

/// How far a path leads.
struct Walked {
    /// What there is on the way, without the root.
    there: Vec<InodeId>,
    /// Its path.
    path: Vec<u8>,
    /// The names that follow and mean nothing yet.
    missing: Vec<Vec<u8>>,
}

/// The files of an image.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: Vec<Inode>,
    layer: usize,
    text: u64,
    // Folders that this layer has hidden all of: to say it once more costs nothing.
    opaque: HashSet<usize>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// The root of a file system.
    pub const ROOT: InodeId = InodeId(0);

    /// An image without layers: an empty folder.
    pub fn new() -> Self {
        let attributes = Attributes::implied(Time::default());
        let root = Inode { kind: Kind::Folder, attributes, children: BTreeMap::new() };
        Self { inodes: vec![root], layer: 0, text: 0, opaque: HashSet::new() }
    }

    /// Begins a layer. All entries up to the next call are its own.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
        self.opaque.clear();
    }

    /// A file. The number must be one of this tree or of the one that it is a clone of.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0]
    }

    /// What is in a folder, in the order of names; nothing in anything else.
    pub fn children(&self, id: InodeId) -> impl Iterator<Item = (&[u8], InodeId)> {
        self.inodes[id.0].children.iter().map(|(name, child)| (&**name, child.inode))
    }

    /// Says what is in a file.
    pub fn set_content(&mut self, id: InodeId, hash: [u8; 32]) {
        if let Kind::File { sha256, .. } = &mut self.inodes[id.0].kind {
            *sha256 = Some(hash);
        }
    }

    /// What is at a path, symbolic links followed inside the image.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn find(&self, path: &[u8]) -> Result<Found, TreeError> {
        let parts: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|it| !matches!(*it, b"" | b".")).collect();
        let walked = self.walk(&parts, true)?;
        if !walked.missing.is_empty() {
            return Err(TreeError::NotFound(shown(&walked.whole())));
        }
        Ok(Found { inode: walked.there.last().copied().unwrap_or(Self::ROOT), path: walked.path })
    }

    /// Does what an entry of the current layer says; `number` is that of the entry in the layer.
    ///
    /// # Errors
    /// When the entry is not taken. The tree is of no use then.
    pub fn apply(&mut self, entry: &Entry, number: u64) -> Result<Applied, TreeError> {
        let parts = parts(&entry.name)?;
        let Some((name, folders)) = parts.split_last() else {
            let What::Folder = entry.what else { return Err(TreeError::Root) };
            self.count(entry)?;
            self.inodes[Self::ROOT.0].attributes = entry.attributes.clone();
            return Ok(Applied { removed: Vec::new(), implied: Vec::new(), done: Done::Folder });
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.hide(folders, hidden);
        }
        let target = match &entry.what {
            What::HardLink(target) => Some(self.target(target)?),
            _ => None,
        };
        self.count(entry)?;
        let (Found { inode: folder, path: folder_path }, implied) =
            self.make_folders(folders, entry.attributes.mtime)?;
        let path = joined(&folder_path, name);
        let existing = self.inodes[folder.0].children.get(*name).copied();
        let mut removed = Vec::new();
        if let Some(existing) = existing {
            let stays = match (&entry.what, &target) {
                (What::Folder, _) if self.is_folder(existing.inode) => {
                    self.inodes[existing.inode.0].attributes = entry.attributes.clone();
                    Some(Done::Folder)
                }
                (_, Some(target)) if target.inode == existing.inode => Some(Done::Nothing),
                _ => None,
            };
            if let Some(done) = stays {
                self.insert(folder, name, Child { own: self.layer, ..existing });
                return Ok(Applied { removed, implied, done });
            }
            if let Some(target) = &target
                && is_below(&target.path, &path)
            {
                return Err(TreeError::NoTarget(shown(&target.path)));
            }
            removed.push(Removed { path: path.clone(), inode: existing.inode });
        }
        let (inode, done) = match target {
            Some(target) => {
                let Found { inode, path: target } = target;
                (inode, Done::Linked { path, target, inode })
            }
            None => {
                let inode = self.add(self.kind(&entry.what, number), entry.attributes.clone())?;
                (inode, Done::Made { path, inode })
            }
        };
        self.insert(folder, name, Child { inode, own: self.layer, inside: 0 });
        Ok(Applied { removed, implied, done })
    }

    fn kind(&self, what: &What, entry: u64) -> Kind {
        match what {
            What::File { size } => {
                let place = Place { layer: self.layer.saturating_sub(1), entry };
                Kind::File { size: *size, place, sha256: None }
            }
            // A hard link has its target's.
            What::Folder | What::HardLink(_) => Kind::Folder,
            What::Symlink(target) => Kind::Symlink(target.clone()),
            What::CharDevice { major, minor } => Kind::CharDevice(*major, *minor),
            What::BlockDevice { major, minor } => Kind::BlockDevice(*major, *minor),
            What::Pipe => Kind::Pipe,
        }
    }

    /// What a hard link means. The last name is not followed: a symbolic link has several names too.
    fn target(&self, target: &[u8]) -> Result<Found, TreeError> {
        let parts = parts(target)?;
        if parts.is_empty() {
            return Err(TreeError::LinkToFolder(String::new()));
        }
        let walked = self.walk(&parts, false)?;
        let Some(inode) = walked.there.last().filter(|_| walked.missing.is_empty()).copied() else {
            return Err(TreeError::NoTarget(shown(&walked.whole())));
        };
        match self.is_folder(inode) {
            true => Err(TreeError::LinkToFolder(shown(&walked.path))),
            false => Ok(Found { inode, path: walked.path }),
        }
    }

    fn hide(&mut self, folders: &[&[u8]], hidden: &[u8]) -> Result<Applied, TreeError> {
        let opaque = hidden == OPAQUE;
        let mut removed = Vec::new();
        let nothing = |removed, done| Ok(Applied { removed, implied: Vec::new(), done });
        // Other names that begin so are notes of builders to themselves.
        if !opaque && hidden.starts_with(WHITEOUT) {
            return nothing(removed, Done::Nothing);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(TreeError::Whiteout);
        }
        let walked = match self.walk(folders, true) {
            Err(TreeError::NotAFolder(_)) => return nothing(removed, Done::Nothing),
            walked => walked?,
        };
        let folder = walked.there.last().copied().unwrap_or(Self::ROOT);
        let there = walked.missing.is_empty() && self.is_folder(folder);
        let base = walked.whole();
        let names: Vec<Box<[u8]>> = match (there, opaque) {
            (false, _) => Vec::new(),
            (true, true) if !self.opaque.insert(folder.0) => Vec::new(),
            (true, true) => self.inodes[folder.0].children.keys().cloned().collect(),
            (true, false) => vec![hidden.into()],
        };
        for name in names {
            self.hide_child(folder, &name, joined(&base, &name), &mut removed);
        }
        let path = if opaque { base } else { joined(&base, hidden) };
        nothing(removed, Done::Hid { path, opaque })
    }

    /// Hides what lower layers have at a name and below it. As deep as the tree is, which is bounded.
    fn hide_child(&mut self, folder: InodeId, name: &[u8], path: Vec<u8>, removed: &mut Vec<Removed>) {
        let Some(child) = self.inodes[folder.0].children.get(name).copied() else { return };
        if child.own != self.layer && child.inside != self.layer {
            self.inodes[folder.0].children.remove(name);
            removed.push(Removed { path, inode: child.inode });
            return;
        }
        let names: Vec<Box<[u8]>> = self.inodes[child.inode.0].children.keys().cloned().collect();
        for name in names {
            let below = joined(&path, &name);
            self.hide_child(child.inode, &name, below, removed);
        }
        if child.own != self.layer && self.is_folder(child.inode) {
            // What a lower layer said of this folder is hidden with it.
            let inode = &mut self.inodes[child.inode.0];
            inode.attributes = Attributes::implied(inode.attributes.mtime);
        }
    }

    /// The folder of an entry, with those that are missing made, and marked as having something of this layer in it.
    fn make_folders(&mut self, folders: &[&[u8]], mtime: Time) -> Result<(Found, Vec<Vec<u8>>), TreeError> {
        let walked = self.walk(folders, true)?;
        let mut folder = Self::ROOT;
        // Whatever has a name may be in it.
        let names: Vec<&[u8]> = walked.path.split(|byte| *byte == b'/').filter(|it| !it.is_empty()).collect();
        for (name, inode) in names.into_iter().zip(&walked.there) {
            if let Some(child) = self.inodes[folder.0].children.get_mut(name) {
                child.inside = self.layer;
            }
            folder = *inode;
        }
        if !self.is_folder(folder) {
            return Err(TreeError::NotAFolder(shown(&walked.path)));
        }
        let (mut path, mut implied) = (walked.path, Vec::new());
        for name in walked.missing {
            self.text(name.len())?;
            let inode = self.add(Kind::Folder, Attributes::implied(mtime))?;
            self.insert(folder, &name, Child { inode, own: 0, inside: self.layer });
            path = joined(&path, &name);
            implied.push(path.clone());
            folder = inode;
        }
        Ok((Found { inode: folder, path }, implied))
    }

    /// Follows a path from the root, and links on it. Nothing leads above the root.
    fn walk<'a>(&'a self, parts: &[&'a [u8]], follow_last: bool) -> Result<Walked, TreeError> {
        let mut pending: Vec<&'a [u8]> = parts.iter().rev().copied().collect();
        let mut there: Vec<(&'a [u8], InodeId)> = Vec::new();
        let mut missing: Vec<&'a [u8]> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                if missing.pop().is_none() {
                    there.pop();
                }
                continue;
            }
            if !missing.is_empty() {
                missing.push(name);
                continue;
            }
            let folder = there.last().map_or(Self::ROOT, |(_, inode)| *inode);
            if !self.is_folder(folder) {
                let names: Vec<&[u8]> = there.iter().map(|(name, _)| *name).collect();
                return Err(TreeError::NotAFolder(shown(&names.join(&b'/'))));
            }
            let Some(child) = self.inodes[folder.0].children.get(name) else {
                missing.push(name);
                continue;
            };
            match &self.inodes[child.inode.0].kind {
                Kind::Symlink(target) if follow_last || !pending.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(TreeError::Loop);
                    }
                    if target.starts_with(b"/") {
                        there.clear();
                    }
                    let parts = target.split(|byte| *byte == b'/');
                    pending.extend(parts.rev().filter(|it| !matches!(*it, b"" | b".")));
                }
                _ => there.push((name, child.inode)),
            }
        }
        if there.len() + missing.len() > MAX_DEPTH {
            return Err(TreeError::TooDeep);
        }
        if missing.iter().any(|name| name.len() > MAX_NAME) {
            return Err(TreeError::Name);
        }
        let names: Vec<&[u8]> = there.iter().map(|(name, _)| *name).collect();
        Ok(Walked {
            path: names.join(&b'/'),
            there: there.into_iter().map(|(_, inode)| inode).collect(),
            missing: missing.into_iter().map(<[u8]>::to_vec).collect(),
        })
    }

    fn is_folder(&self, id: InodeId) -> bool {
        matches!(self.inodes[id.0].kind, Kind::Folder)
    }

    fn insert(&mut self, folder: InodeId, name: &[u8], child: Child) {
        self.inodes[folder.0].children.insert(name.into(), child);
    }

    fn add(&mut self, kind: Kind, attributes: Attributes) -> Result<InodeId, TreeError> {
        if self.inodes.len() as u64 > MAX_ENTRIES {
            return Err(TreeError::TooMany);
        }
        self.inodes.push(Inode { kind, attributes, children: BTreeMap::new() });
        Ok(InodeId(self.inodes.len() - 1))
    }

    /// Counts what is kept of an entry beside a number or two.
    fn count(&mut self, entry: &Entry) -> Result<(), TreeError> {
        let link = match &entry.what {
            What::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs: usize =
            entry.attributes.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.text(entry.name.len() + link + xattrs)
    }

    fn text(&mut self, length: usize) -> Result<(), TreeError> {
        self.text += length as u64;
        if self.text > MAX_TEXT { Err(TreeError::TooMuchText) } else { Ok(()) }
    }
}

impl Walked {
    /// The path with what is missing of it.
    fn whole(&self) -> Vec<u8> {
        self.missing.iter().fold(self.path.clone(), |path, name| joined(&path, name))
    }
}

/// The parts of a name, if it may be one: it does not matter what it begins with.
fn parts(name: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    if name.len() > MAX_PATH || name.contains(&0) {
        return Err(TreeError::Name);
    }
    let parts: Vec<&[u8]> =
        name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    match () {
        () if parts.contains(&&b".."[..]) => Err(TreeError::GoesUp),
        () if parts.iter().any(|part| part.len() > MAX_NAME) => Err(TreeError::Name),
        () if parts.len() > MAX_DEPTH => Err(TreeError::TooDeep),
        () => Ok(parts),
    }
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
