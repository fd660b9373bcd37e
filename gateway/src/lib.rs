//! The registry protocol, both of its faces: the server that container runtimes talk to, and the client of
//! the cloud registries (origins) that images come from.
//!
//! This crate knows nothing of peers, stores or transfers. The [`server`] asks a [`server::Content`] for what
//! its clients want, and whoever implements it decides where the bytes come from; [`origin`] fetches
//! manifests and blobs and hands them on unverified, with every limit enforced that can be enforced without
//! knowing the whole blob.

#[doc(hidden)]
pub mod hostile;
pub mod manifest;
pub mod name;
pub mod origin;
pub mod server;

pub use manifest::{Descriptor, Manifest, ManifestContent, ManifestError, Platform, json_fault};
pub use name::{Aliases, Host, MAX_ALIASES, NameError, Names, Reference, Repository, Tag, TagOrDigest};
