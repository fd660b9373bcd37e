//! Manifests: the raw bytes that a digest names, and a view of what they say.
//!
//! Parsing is strict where leniency has let two programs see two different images in the same bytes, and
//! lenient about everything that wherry merely carries, such as annotations and fields yet to be invented.

mod descriptor;
mod json;
pub mod media_type;

pub use descriptor::{Descriptor, Platform};
pub use json::json_fault;

use std::collections::BTreeMap;

use bytes::Bytes;
use wherry_proto::Digest;

/// The longest manifest, in bytes: 4 MiB, which the distribution specification asks registries to take.
pub const MAX_MANIFEST: usize = 4 << 20;

/// The most entries of an index.
pub const MAX_INDEX_ENTRIES: usize = 256;

/// The longest blob that a descriptor may announce, in bytes: 16 TiB, beyond any file system of the field.
pub const MAX_BLOB: u64 = 16 << 40;

/// A manifest that was parsed: its bytes exactly as they came, and what they mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    raw: Bytes,
    media_type: String,
    digest: Digest,
    content: ManifestContent,
    annotations: BTreeMap<String, String>,
}

/// What a manifest describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestContent {
    /// Several manifests, usually one for each platform.
    Index(Box<Index>),
    /// One image, or an artifact in the shape of one.
    Image(Box<Image>),
}

/// An OCI image index or a Docker manifest list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The manifests, in the order of the document; at most [`MAX_INDEX_ENTRIES`].
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one is about, if it is an attachment.
    pub subject: Option<Descriptor>,
    /// What kind of artifact this is, if it says so.
    pub artifact_type: Option<String>,
}

/// An OCI image manifest or a Docker schema 2 manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The image's configuration.
    pub config: Descriptor,
    /// The layers, the base first. Some may be [foreign](Descriptor::is_foreign).
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about, if it is an attachment.
    pub subject: Option<Descriptor>,
    /// What kind of artifact this is, if it says so.
    pub artifact_type: Option<String>,
}

impl Image {
    /// Config and layers, each digest once, in the order of the document: what has to be fetched.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let mut seen = std::collections::HashSet::new();
        std::iter::once(&self.config).chain(&self.layers).filter(move |blob| seen.insert(blob.digest))
    }
}

/// Why bytes are not a manifest that wherry carries. None of these is worth a retry with the same origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It is over [`MAX_MANIFEST`].
    #[error("the manifest has {size} bytes, and at most {MAX_MANIFEST} are accepted")]
    TooLong {
        /// Its length in bytes, or as much of it as was read.
        size: u64,
    },
    /// It does not have the digest that it was asked for by.
    #[error("the manifest was asked for as {expected} but its bytes have the digest {found}")]
    Digest {
        /// What it was asked for by.
        expected: Box<Digest>,
        /// What it is.
        found: Box<Digest>,
    },
    /// It is not JSON, or a field that counts has the wrong type, or a key stands there twice.
    #[error("the manifest cannot be read: {0}")]
    Json(String),
    /// It is JSON, but a list, a string or the like.
    #[error(
        "the manifest is {0}, and a JSON object is expected: one with 'config' and 'layers' for an image, with 'manifests' for \
         an index"
    )]
    NotAnObject(&'static str),
    /// A key differs from one that counts only in its capitals, so that some programs would read it.
    #[error("the manifest has the key '{0}', which some programs read as '{expected}'", expected = .0.to_lowercase())]
    AmbiguousKey(String),
    /// The bytes say one media type and the Content-Type another.
    #[error("the manifest says it is '{inside}' but was sent as '{outside}'")]
    MediaTypeMismatch {
        /// Its `mediaType`.
        inside: String,
        /// The Content-Type.
        outside: String,
    },
    /// It is an image and an index at once.
    #[error(
        "the manifest has both 'manifests' and 'layers' or 'config': it would mean different images to different programs"
    )]
    Ambiguous,
    /// It has neither what an image nor what an index must have, or not what its media type calls for.
    #[error("the manifest of type '{media_type}' has no '{missing}'")]
    Missing {
        /// The media type it goes by.
        media_type: String,
        /// What it lacks.
        missing: &'static str,
    },
    /// The media type is that of something else, for example of a manifest of schema 1.
    #[error(
        "'{0}' is not a type of manifest that wherry carries: build or push the image again with a current tool"
    )]
    MediaType(String),
    /// An index has over [`MAX_INDEX_ENTRIES`] entries.
    #[error("the index has {0} entries, and at most {MAX_INDEX_ENTRIES} are accepted")]
    TooManyEntries(usize),
    /// A descriptor announces over [`MAX_BLOB`] bytes.
    #[error("the manifest announces a blob of {0} bytes, and at most {MAX_BLOB} are accepted")]
    BlobTooLong(u64),
}

impl Manifest {
    /// Reads a manifest. `content_type` is the header that it came with, if it came with one; parameters such
    /// as `;charset=` are ignored. The digest is the SHA-256 of the bytes.
    pub fn parse(raw: Bytes, content_type: Option<&str>) -> Result<Self, ManifestError> {
        check_length(&raw)?;
        let digest = Digest::sha256(&raw);
        Self::parse_checked(raw, content_type, digest)
    }

    /// Reads a manifest that was asked for by digest, and makes sure that it is that one.
    pub fn parse_as(
        raw: Bytes,
        content_type: Option<&str>,
        expected: &Digest,
    ) -> Result<Self, ManifestError> {
        check_length(&raw)?;
        let found = Digest::of(expected.algorithm(), &raw);
        if found != *expected {
            return Err(ManifestError::Digest { expected: Box::new(*expected), found: Box::new(found) });
        }
        Self::parse_checked(raw, content_type, found)
    }

    fn parse_checked(raw: Bytes, content_type: Option<&str>, digest: Digest) -> Result<Self, ManifestError> {
        let outside = content_type.map(media_type::essence).filter(|essence| !essence.is_empty());
        let document = json::read(&raw)?;
        if let (Some(inside), Some(outside)) = (&document.media_type, &outside)
            && !inside.eq_ignore_ascii_case(outside)
        {
            return Err(ManifestError::MediaTypeMismatch {
                inside: inside.chars().take(json::QUOTED).collect(),
                outside: outside.clone(),
            });
        }
        let annotations = document.annotations();
        let (media_type, content) = document.into_content(outside)?;
        Ok(Self { raw, media_type, digest, content, annotations })
    }

    /// The bytes that the digest is of.
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The media type to serve it as.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The digest of the bytes.
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.raw.len() as u64
    }

    /// What it says.
    pub const fn content(&self) -> &ManifestContent {
        &self.content
    }

    /// Its free-form notes; one that is no text is left out.
    pub const fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// The manifest that it is about, if it is an attachment.
    pub const fn subject(&self) -> Option<&Descriptor> {
        match &self.content {
            ManifestContent::Index(index) => index.subject.as_ref(),
            ManifestContent::Image(image) => image.subject.as_ref(),
        }
    }

    /// What kind of artifact it is: what it says or, of an image that does not, the type of its configuration.
    pub fn artifact_type(&self) -> Option<&str> {
        let (said, config) = match &self.content {
            ManifestContent::Index(index) => (&index.artifact_type, None),
            ManifestContent::Image(image) => (&image.artifact_type, Some(image.config.media_type.as_str())),
        };
        said.as_deref().filter(|said| !said.is_empty()).or(config)
    }

    /// What it says, if it is an image.
    pub const fn image(&self) -> Option<&Image> {
        match &self.content {
            ManifestContent::Image(image) => Some(image),
            ManifestContent::Index(_) => None,
        }
    }

    /// What it says, if it is an index.
    pub const fn index(&self) -> Option<&Index> {
        match &self.content {
            ManifestContent::Index(index) => Some(index),
            ManifestContent::Image(_) => None,
        }
    }
}

fn check_length(raw: &Bytes) -> Result<(), ManifestError> {
    if raw.len() > MAX_MANIFEST {
        return Err(ManifestError::TooLong { size: raw.len() as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
