//! The names that images go by: hosts, repositories, tags and references.
//!
//! Every name is validated when it is made, and [`FromStr`](std::str::FromStr) is the way in from text, so a
//! name that exists is safe to put into a path, a URL or a log line.

mod host;
mod names;
mod reference;
mod repository;

pub use host::Host;
pub use names::{Aliases, MAX_ALIASES, Names};
pub use reference::{Reference, TagOrDigest};
pub use repository::{Repository, Tag};

use wherry_proto::DigestError;

/// Why a text is not the name that it was taken for. Each variant quotes at most 80 characters of the text
/// and says what was expected instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The text is no `host` or `host:port`.
    #[error(
        "'{text}' is not a registry host: {why}; expected a name such as docker.io or registry.local:5000"
    )]
    Host {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The text is no repository.
    #[error(
        "'{text}' is not a repository: {why}; expected lowercase parts joined by '/', such as library/alpine"
    )]
    Repository {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The text is no tag.
    #[error(
        "'{text}' is not a tag: {why}; expected letters, digits, '_', '.' and '-', such as 3.20 or latest"
    )]
    Tag {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The text is no reference, although each part by itself might be one.
    #[error("'{text}' is not an image reference: {why}; expected [HOST/]REPOSITORY[:TAG|@DIGEST]")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The text cannot stand for an origin.
    #[error(
        "'{text}' is not an alias of a registry: {why}; expected lowercase letters, digits, '.', '_' and '-', such as lab"
    )]
    Alias {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What follows the `@` is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// As much of a rejected text as an error message quotes.
fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Serialises a name as its text and reads it back through the same validation as `FromStr`.
macro_rules! serde_as_text {
    ($name:ty) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use serde_as_text;
