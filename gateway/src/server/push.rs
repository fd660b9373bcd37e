//! What the gateway's server has changed, and who does it.

use std::future::Future;

use bytes::Bytes;
use wherry_proto::{Algorithm, Digest};

use super::{Ask, Incoming, Refusal, RefusalKind};
use crate::name::TagOrDigest;

/// A manifest that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Its digest.
    pub digest: Digest,
    /// The manifest that it is about, which is told to the client so that it need not keep a list itself.
    pub subject: Option<Digest>,
}

/// What is to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A tag, or a manifest with all its tags.
    Manifest(TagOrDigest),
    /// A blob.
    Blob(Digest),
}

/// What a client has sent of an upload.
pub struct Sent {
    /// Which upload.
    pub id: String,
    /// Where in the blob it begins, and how many bytes it has, if the client says so.
    pub range: Option<(u64, u64)>,
    /// The bytes.
    pub body: Incoming,
}

/// Whatever takes in what clients push.
///
/// Each call belongs to one request and is dropped if the client leaves; what came of an upload until then stays, and goes on
/// from there. All of it is refused unless it is provided for.
pub trait Push: Send + Sync + 'static {
    /// Whether a client may push to a repository at all: asked before what it sends is read.
    fn admits(&self, ask: &Ask) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = ask;
        std::future::ready(Err(unsupported()))
    }

    /// Whether a client may remove anything from a repository.
    fn admits_removal(&self, ask: &Ask) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = ask;
        std::future::ready(Err(unsupported()))
    }

    /// Begins an upload, of which the digest will be by this hash: its id, of at most 64 letters and digits.
    fn begin(&self, ask: Ask, algorithm: Algorithm) -> impl Future<Output = Result<String, Refusal>> + Send {
        refused(ask, algorithm)
    }

    /// Makes a blob of another repository one of this repository too; whether that could be done. If not, it is uploaded.
    /// Without `from` any repository of the same origin will do.
    fn mount(
        &self,
        ask: Ask,
        blob: Digest,
        from: Option<Ask>,
    ) -> impl Future<Output = Result<bool, Refusal>> + Send {
        refused(ask, (blob, from))
    }

    /// Adds bytes to an upload: how many it has now. Refused with [`RefusalKind::RangeInvalid`] if they do not begin where
    /// the upload ends.
    fn append(&self, ask: Ask, sent: Sent) -> impl Future<Output = Result<u64, Refusal>> + Send {
        refused(ask, sent)
    }

    /// Adds the last bytes, and makes a blob of it.
    fn finish(
        &self,
        ask: Ask,
        sent: Sent,
        digest: Digest,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        refused(ask, (sent, digest))
    }

    /// How many bytes an upload has.
    fn status(&self, ask: Ask, id: String) -> impl Future<Output = Result<u64, Refusal>> + Send {
        refused(ask, id)
    }

    /// Gives up an upload.
    fn cancel(&self, ask: Ask, id: String) -> impl Future<Output = Result<(), Refusal>> + Send {
        refused(ask, id)
    }

    /// Stores a manifest, with the Content-Type that it came with.
    fn put_manifest(
        &self,
        ask: Ask,
        target: TagOrDigest,
        media_type: Option<String>,
        bytes: Bytes,
    ) -> impl Future<Output = Result<Put, Refusal>> + Send {
        refused(ask, (target, media_type, bytes))
    }

    /// Removes something.
    fn remove(&self, ask: Ask, what: Removal) -> impl Future<Output = Result<(), Refusal>> + Send {
        refused(ask, what)
    }
}

async fn refused<T, U>(_ask: Ask, _of: U) -> Result<T, Refusal> {
    Err(unsupported())
}

fn unsupported() -> Refusal {
    Refusal::new(RefusalKind::Unsupported, "nothing can be pushed to or removed from this registry")
}
