//! What can be wrong with an archive.

use std::io;
use std::path::PathBuf;

use wherry_proto::Digest;

use crate::store::StoreError;

/// Why an archive was not imported. Nothing of it is in the store then that was not there before.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The bytes are no tar archive, compressed with gzip or not.
    #[error(
        "this is not a tar archive ({0}): give a file made by 'docker save', 'podman save', 'skopeo copy' or 'wherry export'"
    )]
    NotAnArchive(&'static str),
    /// The archive ends before it is complete.
    #[error("the archive ends in the middle of {entry}: it is truncated, copy or make it again")]
    Truncated {
        /// Where it ends.
        entry: String,
    },
    /// The archive's own structure is damaged.
    #[error("the archive is damaged behind {entry} ({why}): copy or make it again")]
    Damaged {
        /// The last entry that was read.
        entry: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The archive could not be read.
    #[error("cannot read the archive at {entry}: {source}")]
    Read {
        /// What was being read.
        entry: String,
        /// Why it failed.
        source: io::Error,
    },
    /// An entry has a name that no image archive has.
    #[error(
        "the archive has an entry '{entry}', which no OCI layout or docker-archive has: it is no image archive, or is meant to do harm"
    )]
    Name {
        /// The entry.
        entry: String,
    },
    /// An entry is no regular file.
    #[error("the entry {entry} is a {kind}: only regular files are taken")]
    Kind {
        /// The entry.
        entry: String,
        /// What it is.
        kind: &'static str,
    },
    /// An entry is there twice.
    #[error("the entry {entry} is there twice: make the archive again")]
    Duplicate {
        /// The entry.
        entry: String,
    },
    /// An entry is larger than what it is may be.
    #[error("{entry} has {size} bytes, at most {limit} are taken")]
    TooLarge {
        /// The entry.
        entry: String,
        /// Its length.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// There are too many entries.
    #[error("the archive has more than {0} entries")]
    TooManyEntries(usize),
    /// The compressed archive grows beyond measure.
    #[error(
        "the archive grows more than {limit} times when it is decompressed: it is meant to do harm, or decompress it yourself first"
    )]
    Ratio {
        /// The bound.
        limit: u64,
    },
    /// An entry's bytes do not have the digest in its name.
    #[error("the bytes of {entry} have the digest {found}: the archive is damaged, copy or make it again")]
    WrongDigest {
        /// The entry.
        entry: String,
        /// The digest they have.
        found: Box<Digest>,
    },
    /// A descriptor tells another length than its blob has.
    #[error("{digest} has {found} bytes, but {by} says {announced}: make the archive again")]
    WrongLength {
        /// The blob.
        digest: Box<Digest>,
        /// Its length.
        found: u64,
        /// What is said of it.
        announced: u64,
        /// Where.
        by: String,
    },
    /// What is referred to is not there.
    #[error(
        "{what}, which {by} needs, is neither in the archive nor in the store: export the image again, whole"
    )]
    Missing {
        /// A digest or a file name.
        what: String,
        /// What refers to it.
        by: String,
    },
    /// A JSON document cannot be read.
    #[error("{entry} cannot be read: {why}")]
    Json {
        /// The entry or digest.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// Manifests are nested too deep, or too many.
    #[error("the archive has more than {limit} {what}")]
    TooMany {
        /// Manifests, levels, or images.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// No image is in the archive.
    #[error(
        "no image is in the archive: it needs an index.json (OCI layout) or a manifest.json (docker-archive)"
    )]
    NoImage,
    /// One image was to be given a name.
    #[error("the archive has {0} images, and a name is for one: nothing was kept")]
    NotOne(usize),
    /// The store refused.
    #[error("cannot store {entry}: {source}")]
    Store {
        /// The entry.
        entry: String,
        /// Why.
        source: StoreError,
    },
}

impl ImportError {
    /// Whether the disk or its budget is what stood in the way.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_no_space())
    }
}

/// Why images were not exported. What was written so far is no archive.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is nothing to export.
    #[error("name at least one image to export")]
    Nothing,
    /// A blob of an image is not in the store.
    #[error("{digest}, which {by} needs, is not in the store: pull the image first")]
    Missing {
        /// The blob.
        digest: Box<Digest>,
        /// What refers to it.
        by: String,
    },
    /// A manifest cannot be read.
    #[error("the manifest {digest} cannot be read: {why}")]
    Manifest {
        /// The manifest.
        digest: Box<Digest>,
        /// What is wrong with it.
        why: String,
    },
    /// A blob could not be read.
    #[error("cannot read {digest} from the store: {source}")]
    Read {
        /// The blob.
        digest: Box<Digest>,
        /// Why.
        source: io::Error,
    },
    /// A blob is damaged, and is no longer held.
    #[error("the stored blob {0} is damaged: its bytes on the disk have another digest. It is set aside")]
    Damaged(Box<Digest>),
    /// The archive could not be written.
    #[error("cannot write the archive: {0}")]
    Write(#[source] io::Error),
}

/// Why a folder was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The folder is no OCI layout.
    #[error("{} is no OCI layout: it has no index.json", .0.display())]
    NotALayout(PathBuf),
    /// Something in the folder is a link, a device or a folder where a file must be.
    #[error("{} is not a regular file: only those are taken", .0.display())]
    Kind(PathBuf),
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive could not be written.
    #[error("cannot write the archive: {0}")]
    Write(#[source] io::Error),
}
