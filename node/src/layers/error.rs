//! What can be wrong with a layer.

use std::io;

use wherry_proto::Digest;

use super::tree::TreeError;

/// Why a layer was not read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The layer is none.
    #[error(
        "the layer {} is of the type '{media_type:.100}', which is no file system: this may be an artifact that is no container image", layer.short()
    )]
    NotAFileSystem {
        /// The layer.
        layer: Box<Digest>,
        /// What its descriptor says.
        media_type: String,
    },
    /// It could not be had.
    #[error("the layer {} cannot be read: {source}", layer.short())]
    Read {
        /// The layer.
        layer: Box<Digest>,
        /// Why.
        source: io::Error,
    },
    /// Its bytes are not those that its digest means.
    #[error(
        "the bytes of the layer {layer} have the digest {found}: they were damaged, and nothing of them counts"
    )]
    WrongDigest {
        /// The layer.
        layer: Box<Digest>,
        /// The digest that they have.
        found: Box<Digest>,
    },
    /// It has another length than the manifest says.
    #[error("the layer {layer} has {found} bytes, and the image's manifest says {announced}")]
    WrongLength {
        /// The layer.
        layer: Box<Digest>,
        /// Its length; if it is longer than was said, no more of it than one byte was read.
        found: u64,
        /// What the manifest says.
        announced: u64,
    },
    /// What it decompresses to is not what the image's configuration says.
    #[error(
        "the layer {} decompresses to {found}, and the image's configuration says {expected}: the image contradicts itself, whoever built it has to build it again", layer.short()
    )]
    WrongContent {
        /// The layer.
        layer: Box<Digest>,
        /// The digest of what it decompresses to.
        found: Box<Digest>,
        /// What the configuration says.
        expected: Box<Digest>,
    },
    /// It cannot be decompressed.
    #[error("the layer {} cannot be decompressed behind {entry}: {source}", layer.short())]
    Compression {
        /// The layer.
        layer: Box<Digest>,
        /// What was read last.
        entry: String,
        /// Why.
        source: io::Error,
    },
    /// It is no sound tar archive.
    #[error("the layer {} is damaged at {entry}: {why}", layer.short())]
    Archive {
        /// The layer.
        layer: Box<Digest>,
        /// The last entry that was read.
        entry: String,
        /// What is wrong.
        why: String,
    },
    /// An entry asks for what cannot be, or must not be.
    #[error("the layer {} has an entry '{entry}' that is not taken: {source}", layer.short())]
    Entry {
        /// The layer.
        layer: Box<Digest>,
        /// The entry.
        entry: String,
        /// Why.
        source: TreeError,
    },
    /// It grows beyond measure.
    #[error("the layer {} grows more than {limit} times when it is decompressed: it is meant to do harm", layer.short())]
    Ratio {
        /// The layer.
        layer: Box<Digest>,
        /// The bound.
        limit: u64,
    },
    /// There is too much of something.
    #[error("the layers up to {} have more than {limit} {what}, which is as much as is looked at", layer.short())]
    TooMuch {
        /// The layer at which that was so.
        layer: Box<Digest>,
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
}
