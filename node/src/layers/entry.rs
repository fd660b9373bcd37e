//! What a layer says of one file.

use super::{MAX_PATH, Time, TreeError};
use crate::tarball::{self, Kind};

/// What a file system keeps of a file beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// The permissions, with the bits for set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// The number of the user that owns it.
    pub owner: u32,
    /// The number of the group that owns it.
    pub group: u32,
    /// When it was changed last.
    pub mtime: Time,
    /// Extended attributes, sorted by their names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// Those of a folder that no layer tells of.
    pub fn implied(mtime: Time) -> Self {
        Self { mode: 0o755, owner: 0, group: 0, mtime, xattrs: Vec::new() }
    }
}

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A file of so many bytes, which follow.
    File {
        /// How many bytes.
        size: u64,
    },
    /// A folder.
    Folder,
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// One more name for the file of this name.
    HardLink(Vec<u8>),
    /// A device of which bytes are read one after the other.
    CharDevice {
        /// Which driver.
        major: u32,
        /// Which of its devices.
        minor: u32,
    },
    /// A device of which blocks are read.
    BlockDevice {
        /// Which driver.
        major: u32,
        /// Which of its devices.
        minor: u32,
    },
    /// A pipe with a name.
    Pipe,
}

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name as the layer has it: below the root, whatever it begins with.
    pub name: Vec<u8>,
    /// What it makes.
    pub what: What,
    /// How it is to be.
    pub attributes: Attributes,
}

impl Entry {
    /// Reads what an archive says.
    pub(super) fn new(read: tarball::Entry) -> Result<Self, TreeError> {
        let id = |number: Result<u64, &'static str>| {
            u32::try_from(number.map_err(TreeError::Unreadable)?)
                .map_err(|_| TreeError::Unreadable("an owner beyond 32 bits"))
        };
        let mut attributes = Attributes {
            mode: read.mode().map_err(TreeError::Unreadable)?,
            owner: id(read.owner())?,
            group: id(read.group())?,
            mtime: read.mtime().map_err(TreeError::Unreadable)?,
            xattrs: Vec::new(),
        };
        let device = |numbers: Result<(u32, u32), _>| numbers.map_err(TreeError::Unreadable);
        let what = match read.kind {
            Kind::File => What::File { size: read.size },
            Kind::Folder => What::Folder,
            Kind::Symlink
                if read.link.is_empty() || read.link.len() >= MAX_PATH || read.link.contains(&0) =>
            {
                return Err(TreeError::Target);
            }
            Kind::Symlink => What::Symlink(read.link.clone()),
            Kind::HardLink => What::HardLink(read.link.clone()),
            Kind::CharDevice => {
                let (major, minor) = device(read.device())?;
                What::CharDevice { major, minor }
            }
            Kind::BlockDevice => {
                let (major, minor) = device(read.device())?;
                What::BlockDevice { major, minor }
            }
            Kind::Pipe => What::Pipe,
            Kind::Sparse => return Err(TreeError::Unreadable("a sparse file, which layers do not have")),
            Kind::Other => return Err(TreeError::Unreadable("an entry of a type that is not known")),
        };
        attributes.xattrs = read.xattrs;
        attributes.xattrs.sort();
        attributes.xattrs.dedup_by(|later, earlier| later.0 == earlier.0);
        Ok(Self { name: read.name, what, attributes })
    }

    /// Its name for people.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}
