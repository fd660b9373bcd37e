//! Images as archives: for sites without a network, and for the tools that speak files.
//!
//! **In** come tar streams, compressed with gzip or not, of an OCI image layout, of what `docker save` writes since
//! version 25 (a layout with docker's `manifest.json`), and of the older docker-archive. Entries may come in any
//! order and are read once; memory does not grow with their sizes. Only regular files with the names that these
//! formats have are taken. A blob enters the store under the digest that its bytes have. An import that fails removes
//! what it had stored, and so does one that succeeds with what no image in the archive needs.
//!
//! **Out** goes the union of both formats, which skopeo, podman, docker and containerd read: the same images give
//! the same bytes.
//!
//! Everything here blocks: call it on a thread that may.

mod docker;
mod document;
mod error;
mod export;
mod import;
mod name;
mod pack;
mod resolve;
mod tarball;

pub use error::{ExportError, ImportError, PackError};
pub use export::{ExportImage, export};
pub use import::{Imported, ImportedImage, Progress, import, import_one};
pub use pack::pack_directory;
