//! The tar archive that images come in, compressed with gzip or not.

use std::io::{self, Read};

use super::ImportError;
use crate::tarball::inflate::{Compression, Growth, Inflated, RatioExceeded, buffered, start};
use crate::tarball::{self, TarError};

/// Bytes behind the end of an archive that are read before they are ignored: writers pad, and whoever feeds a
/// pipe wants to be read to the end.
const MAX_PADDING: u64 = 1 << 20;

/// How many times larger than its compressed form an archive may be, once it comes to more than 64 MiB. Layers are mostly
/// compressed already, and file systems as tar come to 3 to 5 times.
const GROWTH: Growth = Growth { ratio: 200, grace: 64 << 20 };

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// With its target.
    Symlink(String),
    /// Whatever else, by its name.
    Other(&'static str),
}

/// An entry's header, with all extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) size: u64,
}

/// An archive that is read once, from start to end.
pub(super) struct Tarball<R>(tarball::Tarball<R>);

impl<R: Read> Tarball<R> {
    pub(super) fn new(input: R) -> Self {
        Self(tarball::Tarball::new(input))
    }

    /// The next entry, behind what is left of the current one; `None` at the archive's end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ImportError> {
        let Some(entry) = self.0.next()? else {
            // What is wrong there is of no concern.
            let _ = io::copy(&mut self.0.input().by_ref().take(MAX_PADDING), &mut io::sink());
            return Ok(None);
        };
        let name = String::from_utf8(entry.name).map_err(|_| self.0.damaged("a name that is not UTF-8"))?;
        let kind = match entry.kind {
            tarball::Kind::File => Kind::File,
            tarball::Kind::Folder => Kind::Folder,
            tarball::Kind::Symlink => Kind::Symlink(String::from_utf8_lossy(&entry.link).into_owned()),
            tarball::Kind::HardLink => Kind::Other("hard link"),
            tarball::Kind::CharDevice | tarball::Kind::BlockDevice => Kind::Other("device"),
            tarball::Kind::Pipe => Kind::Other("pipe"),
            tarball::Kind::Sparse => Kind::Other("sparse file"),
            tarball::Kind::Other => Kind::Other("special file"),
        };
        Ok(Some(Entry { name, kind, size: entry.size }))
    }

    /// Reads bytes of the current entry; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ImportError> {
        Ok(self.0.read(buffer)?)
    }

    /// All that is left of the current entry, if it is at most `limit` bytes.
    pub(super) fn read_all(&mut self, limit: u64) -> Result<Vec<u8>, ImportError> {
        Ok(self.0.read_all(limit)?)
    }
}

impl From<TarError> for ImportError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Truncated { entry } => Self::Truncated { entry },
            TarError::Damaged { entry, why } => Self::Damaged { entry, why },
            TarError::TooLarge { entry, size, limit } => Self::TooLarge { entry, size, limit },
            TarError::Read { source, .. } if RatioExceeded::is_told_by(&source) => {
                Self::Ratio { limit: GROWTH.ratio }
            }
            TarError::Read { entry, source } => Self::Read { entry, source },
        }
    }
}

/// An archive's bytes, decompressed if they are gzip.
pub(super) fn input<R: Read>(reader: R) -> Result<Inflated<R>, ImportError> {
    let mut reader = buffered(reader);
    let start =
        start(&mut reader).map_err(|source| ImportError::Read { entry: "its start".to_owned(), source })?;
    let compression = match (Compression::of(start), start) {
        (_, []) => return Err(ImportError::NotAnArchive("it is empty")),
        (Compression::Zstd, _) => {
            return Err(ImportError::NotAnArchive("it is compressed with zstd: decompress it first"));
        }
        (_, [0x42, 0x5a, 0x68, ..] | [0xfd, 0x37, 0x7a, ..]) => {
            return Err(ImportError::NotAnArchive("it is compressed with bzip2 or xz: decompress it first"));
        }
        (compression, _) => compression,
    };
    Ok(Inflated::new(reader, compression, GROWTH))
}
