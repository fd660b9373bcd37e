//! Why an image, manifest or blob cannot be had, and what a gateway's client is told of it.

use std::sync::Arc;
use std::time::Duration;

use wherry_gateway::manifest::ManifestError;
use wherry_gateway::origin::OriginError;
use wherry_gateway::server::{Refusal, RefusalKind};
use wherry_proto::Digest;

use super::Moved;
use crate::config::units::show_size;
use crate::store::StoreError;
use crate::transfer::TransferError;

/// After how long it is worth asking again for what cannot be had now.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why an image, manifest or blob cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// Neither the site nor the origin has it.
    #[error("{what} cannot be had: {origin}; no other node of the site that can be reached knows it either")]
    Unknown {
        /// What was asked for.
        what: String,
        /// What the origin said.
        origin: Box<OriginError>,
    },
    /// A blob cannot be transferred.
    #[error("{what} cannot be had: {source}")]
    Transfer {
        /// What was asked for.
        what: String,
        /// Why.
        source: TransferError,
    },
    /// A tag has moved to what cannot be had, and what it meant before is here.
    #[error("{source}. {moved}")]
    Moved {
        /// Why what it means now cannot be had.
        source: Box<ImageError>,
        /// What there is instead.
        moved: Box<Moved>,
    },
    /// It was pushed to the site, and no node that can be reached has it.
    #[error(
        "{what} was pushed to this site, and no node that can be reached has {digest} any more: push it once more, or have \
         the nodes come back that had it"
    )]
    Lost {
        /// What was asked for.
        what: String,
        /// What it means.
        digest: Digest,
    },
    /// An origin does not take what is to be published.
    #[error("{what} cannot be published to {to}: {origin}")]
    NotPublished {
        /// A part of the image.
        what: String,
        /// The name that it is to have there.
        to: String,
        /// What the origin said.
        origin: Box<OriginError>,
    },
    /// A tag is to mean something else, and its policy says never.
    #[error(
        "{what} is frozen and means {digest}: give what is new another tag, remove the tag first, or change tag_policy"
    )]
    Frozen {
        /// The tag.
        what: String,
        /// What it means.
        digest: Digest,
    },
    /// What the store holds under this digest is no manifest.
    #[error("{digest} is not a manifest: {source}")]
    NotAManifest {
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A manifest was asked for by the digest of something else.
    #[error("{digest} is not a manifest but of the type '{media_type}': ask for it as a blob")]
    NoManifest {
        /// The blob.
        digest: Digest,
        /// What it is.
        media_type: String,
    },
    /// An index has no image for the platform that was asked for.
    #[error("{what} has no image for {wanted}; it has {has}. Choose one of them with --platform")]
    NoPlatform {
        /// The index.
        what: String,
        /// The platform that was asked for.
        wanted: String,
        /// The platforms that there are.
        has: String,
    },
    /// An image that is alone is not for the platform that was asked for.
    #[error(
        "{what} is one image, for {has}, and none for {wanted}. Leave out --platform, or ask for that one"
    )]
    OtherPlatform {
        /// The image.
        what: String,
        /// The platform that was asked for.
        wanted: String,
        /// The platform that it is for.
        has: String,
    },
    /// An image does not fit into the store, whatever else left it.
    #[error(
        "{what} has {}, more than the whole disk budget of {}: raise --disk-budget", show_size(*size), show_size(*budget)
    )]
    LargerThanBudget {
        /// The image.
        what: String,
        /// Bytes of its blobs.
        size: u64,
        /// The budget in bytes.
        budget: u64,
    },
    /// The store or its index failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// A stored blob could not be read.
    #[error("{digest} could not be read from the store: {why}")]
    Unreadable {
        /// The blob.
        digest: Digest,
        /// Why.
        why: String,
    },
    /// An index leads to more manifests than are brought together.
    #[error(
        "{what} leads to more than {most} manifests, and no more are brought together: bring its parts one by one"
    )]
    TooManyParts {
        /// What was asked for.
        what: String,
        /// How many are.
        most: usize,
    },
    /// It could not be pinned, or its pin not be taken away.
    #[error("what keeps it here could not be changed: {0}")]
    NotKept(String),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Stopped,
}

impl From<StoreError> for ImageError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl ImageError {
    /// What a gateway's client is told, if it asked for a blob rather than a manifest.
    pub fn into_refusal(self, blob: bool) -> Refusal {
        let unknown = if blob { RefusalKind::BlobUnknown } else { RefusalKind::ManifestUnknown };
        let message = self.to_string();
        match self {
            Self::Unknown { origin, .. } if matches!(*origin, OriginError::NotFound { .. }) => {
                Refusal::new(unknown, message)
            }
            Self::Unknown { origin, .. } => {
                let retry = origin.is_unreachable();
                let told = Refusal::from(*origin);
                let refusal = Refusal { message, ..told };
                if retry && refusal.retry_after.is_none() {
                    refusal.retry_after(RETRY_AFTER)
                } else {
                    refusal
                }
            }
            Self::Transfer { source, .. } => transfer_refusal(&source, message),
            Self::Moved { source, .. } => Refusal { message, ..source.into_refusal(blob) },
            // The digest says which bytes, so whoever is asked has no manifest under it either.
            Self::NotAManifest { .. }
            | Self::NoManifest { .. }
            | Self::NoPlatform { .. }
            | Self::OtherPlatform { .. }
            | Self::TooManyParts { .. } => Refusal::new(unknown, message),
            Self::Lost { .. } => Refusal::new(RefusalKind::Unavailable, message).retry_after(RETRY_AFTER),
            Self::LargerThanBudget { .. } => Refusal::new(RefusalKind::NoSpace, message),
            Self::Frozen { .. } => Refusal::new(RefusalKind::Denied, message),
            Self::NotPublished { origin, .. } => Refusal { message, ..Refusal::from(*origin) },
            Self::Store(error) if error.is_no_space() => Refusal::new(RefusalKind::NoSpace, message),
            Self::Store(_) | Self::Unreadable { .. } | Self::NotKept(_) => {
                Refusal::new(RefusalKind::Internal, message)
            }
            Self::Stopped => Refusal::new(RefusalKind::Unavailable, message).retry_after(RETRY_AFTER),
        }
    }
}

fn transfer_refusal(error: &TransferError, message: String) -> Refusal {
    let kind = match error {
        TransferError::Store(error) if error.is_no_space() => RefusalKind::NoSpace,
        TransferError::Store(_) => RefusalKind::Internal,
        TransferError::OriginWrong { .. } | TransferError::TooLarge(_) => RefusalKind::BadOrigin,
        TransferError::Limited { wait, .. } => {
            return Refusal::new(RefusalKind::Unavailable, message).retry_after(*wait);
        }
        TransferError::NoSource { .. }
        | TransferError::Full
        | TransferError::Stopped
        | TransferError::Cancelled => {
            return Refusal::new(RefusalKind::Unavailable, message).retry_after(RETRY_AFTER);
        }
    };
    Refusal::new(kind, message)
}
