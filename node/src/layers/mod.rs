//! What layers hold: files. Reads layers, makes the tree of an image's files of them, compares two such trees, and unpacks
//! an image into a bundle that an OCI runtime runs.
//!
//! Layers were written by strangers. Each is read once, in order, as a stream; while it is read its bytes are checked
//! against the layer's digest, and what they decompress to against the one that the image's configuration has. What it
//! does is decided by [`Tree`], which is pure; a disk is told by [`unpack`] what the tree has decided, and no link of an
//! image is ever followed there.
//!
//! Memory does not grow with the size of files. What it grows with is bounded:
//!
//! | What | Bound |
//! |---|---|
//! | entries of all layers of an image, and folders that they imply | [`MAX_ENTRIES`] |
//! | names, link targets and extended attributes of all of them | [`MAX_TEXT`] |
//! | a path, a name in it, and how deep it is | [`MAX_PATH`], [`MAX_NAME`], [`MAX_DEPTH`] |
//! | links in a row | [`MAX_LINKS`] |
//! | what all layers of an image decompress to | [`MAX_BYTES`] |
//! | how many times a layer may grow | [`MAX_RATIO`], beyond [`RATIO_GRACE`] |
//! | how far back zstd may refer | 128 MiB |
//! | names and attributes before one entry | 64 KiB in each of 4 records |
//! | the configuration | [`MAX_CONFIG`](crate::images::MAX_CONFIG) |
//!
//! Everything here blocks: call it on a thread that may.

mod changes;
mod config;
mod entry;
mod error;
mod image;
mod layer;
mod tree;
#[cfg(test)]
mod tree_tests;
pub mod unpack;

pub use crate::tarball::Time;
pub use changes::{Aspect, Change, FileState, compare};
pub use config::{ConfigError, ImageConfig};
pub use entry::{Attributes, Entry, What};
pub use error::LayerError;
pub use image::{Blobs, CopyError, Image, ImageLayer, Whiteout};
pub use layer::{Budget, Layer};
pub use tree::{Applied, Done, Found, Inode, InodeId, Kind, Place, Removed, Tree, TreeError};

/// How many entries the layers of an image may have together, with the folders that they imply.
pub const MAX_ENTRIES: u64 = 1_000_000;

/// The bytes of names, link targets and extended attributes that the layers of an image may have together.
pub const MAX_TEXT: u64 = 256 << 20;

/// The longest path and the longest target of a link, in bytes: that of Linux.
pub const MAX_PATH: usize = 4096;

/// The longest name of a file, in bytes: that of Linux.
pub const MAX_NAME: usize = 255;

/// How many folders deep a file may lie.
pub const MAX_DEPTH: usize = 256;

/// How many links may follow one another: as many as Linux follows.
pub const MAX_LINKS: usize = 40;

/// What all layers of an image may decompress to, in bytes.
pub const MAX_BYTES: u64 = 256 << 30;

/// How many times larger than its compressed form a layer may be, beyond [`RATIO_GRACE`]. File systems come to 3 to 5 times,
/// and gzip ends at about 1,000.
pub const MAX_RATIO: u64 = 200;

/// Decompressed bytes of a layer to which no ratio applies.
pub const RATIO_GRACE: u64 = 256 << 20;
