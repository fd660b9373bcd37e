//! What the gateway's server asks for, and what it may be given.

use std::fs::File;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use wherry_proto::Digest;

use super::{Refusal, RefusalKind};
use crate::Descriptor;
use crate::name::{Host, Repository, TagOrDigest};
use crate::origin::Credential;

/// Who asks, and for which repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The client's address.
    pub client: SocketAddr,
    /// What it shows of itself.
    pub credential: Option<Credential>,
    /// The origin that the client named, by `?ns=` or as the first part of the path; `None` means the default
    /// origin.
    pub origin: Option<Host>,
    /// The repository there. On `docker.io` a single part has been moved into `library/`; for the default
    /// origin that is left to whoever knows which it is (see [`Reference::new`](crate::Reference::new)).
    pub repository: Repository,
    /// The origin came as `?ns=`: the client takes this for a mirror of it, and is hardly about to push.
    pub is_mirror: bool,
}

/// Whether the client wants the content or only to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The headers: nothing need be fetched that the headers do not need.
    Head,
    /// The content.
    Get,
}

/// Where an answer came from, for the `Wherry-Source` header and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It was here already.
    Store,
    /// Another node of the network had it.
    Peer,
    /// The origin was asked just now.
    Origin,
}

impl Source {
    /// The header's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Peer => "peer",
            Self::Origin => "origin",
        }
    }
}

/// A manifest, or the knowledge that there is one.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    /// The manifest. May be empty if [`Want::Head`] was asked.
    pub bytes: Bytes,
    /// How many bytes the manifest has.
    pub size: u64,
    /// What it is, for the Content-Type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// How long ago a tag was resolved, for the `Age` header. `None` for what cannot age.
    pub age: Option<Duration>,
    /// Where it came from.
    pub source: Option<Source>,
}

impl ManifestAnswer {
    /// An answer that has the manifest and says nothing of age and source.
    pub fn new(bytes: Bytes, media_type: impl Into<String>, digest: Digest) -> Self {
        let size = bytes.len() as u64;
        Self { bytes, size, media_type: media_type.into(), digest, age: None, source: None }
    }
}

/// Why a blob's stream ends before its length is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// What was already sent may be wrong: the connection is reset, so that the client keeps none of it.
    #[error("what was sent may not be what was asked for")]
    Poisoned,
    /// What was sent is right but nothing more comes for now: the connection is closed cleanly after the last
    /// byte, and clients that can resume do so.
    #[error("nothing more comes for now")]
    Stalled,
}

/// A part of a file that holds exactly the bytes to be sent.
///
/// Nobody may change or shorten the file while it is being served: the part that was already promised could
/// not be taken back. Files that are unlinked go on being served.
#[derive(Clone)]
pub struct StoredFile {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) len: u64,
    sent: Option<Sent>,
}

/// Who is told that all of a file was sent.
type Sent = Arc<dyn Fn() + Send + Sync>;

impl StoredFile {
    /// `len` bytes of `file` from `offset`. The file's own position is neither used nor moved, so one open
    /// file may serve any number of clients.
    pub fn new(file: impl Into<Arc<File>>, offset: u64, len: u64) -> Self {
        Self { file: file.into(), offset, len, sent: None }
    }

    /// Calls this when the last of the bytes is on its way to the client. On the network threads, so it must not block.
    #[must_use]
    pub fn once_sent(self, sent: impl Fn() + Send + Sync + 'static) -> Self {
        Self { sent: Some(Arc::new(sent)), ..self }
    }

    pub(super) fn is_sent(&self) {
        if let Some(sent) = &self.sent {
            sent();
        }
    }
}

/// The bytes of a blob, or of a part of it.
pub enum Body {
    /// They are all in memory.
    Bytes(Bytes),
    /// They are in a file, all of them and verified.
    File(StoredFile),
    /// They arrive bit by bit. The stream is polled only when the last piece is on its way to the client, so
    /// one piece for each client is held in memory, or two; it is for the content to bound their length,
    /// 64 KiB serving well. The stream ends with the last byte of the range, or earlier with a [`Break`];
    /// ending early without one is taken as [`Break::Stalled`]. It is dropped when the client leaves.
    Stream(BoxStream<'static, Result<Bytes, Break>>),
    /// They arrive bit by bit and are in a file by then: as [`Body::Stream`], but no piece is held in memory
    /// and each may be of any length.
    Files(BoxStream<'static, Result<StoredFile, Break>>),
}

impl Body {
    /// How many bytes it has, where that is known before it ends.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::File(stored) => Some(stored.len),
            Self::Stream(_) | Self::Files(_) => None,
        }
    }
}

/// A manifest that is about another.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// Where it is, with its annotations.
    #[serde(flatten)]
    pub descriptor: Descriptor,
    /// What kind of artifact it is; the media type of its configuration where it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// One blob that can be read.
pub trait BlobReader: Send + Sync + 'static {
    /// The blob's length in bytes.
    fn size(&self) -> u64;

    /// The bytes of a range, which is never empty and lies within the blob. What cannot be had is refused
    /// here, before the first header is sent; later there is only [`Break`].
    fn read(&self, range: Range<u64>) -> impl Future<Output = Result<Body, Refusal>> + Send;
}

/// Whatever has the manifests and blobs that a gateway serves.
///
/// Each call belongs to one request and is dropped if the client leaves. Answers should begin well under 10
/// seconds after the call, since several runtimes give up then.
pub trait Content: Send + Sync + 'static {
    /// How this content reads blobs.
    type Blob: BlobReader;

    /// Whether a client may ask for anything at all, which clients ask first: one that is told to log in does so from then on.
    fn greets(
        &self,
        client: SocketAddr,
        credential: Option<Credential>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (client, credential);
        std::future::ready(Ok(()))
    }

    /// The manifest that a tag or digest names.
    fn manifest(
        &self,
        ask: Ask,
        reference: TagOrDigest,
        want: Want,
    ) -> impl Future<Output = Result<ManifestAnswer, Refusal>> + Send;

    /// A blob. With [`Want::Head`] only its [`size`](BlobReader::size) will be asked.
    fn blob(
        &self,
        ask: Ask,
        digest: Digest,
        want: Want,
    ) -> impl Future<Output = Result<Self::Blob, Refusal>> + Send;

    /// The tags that are known of a repository, in any order; the server sorts and pages them.
    fn tags(&self, ask: Ask) -> impl Future<Output = Result<Vec<String>, Refusal>> + Send;

    /// What is known of the manifests that are about this one, in any order. Without such a list the clients look for one
    /// under a tag.
    fn referrers(
        &self,
        ask: Ask,
        subject: Digest,
    ) -> impl Future<Output = Result<Vec<Referrer>, Refusal>> + Send {
        let _ = (ask, subject);
        let message = "there is no list of what is about a manifest";
        std::future::ready(Err(Refusal::new(RefusalKind::NoEndpoint, message)))
    }
}
