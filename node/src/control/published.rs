//! What is said about images that are published.

use serde::{Deserialize, Serialize};
use wherry_proto::Digest;

/// Asks to have an image sent to a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRequest {
    /// The image, by a name.
    pub reference: String,
    /// The name that it is to have at the registry; the same if it is not said.
    pub to: Option<String>,
    /// For how long the registry is tried from the last byte on, in seconds. If it is not said 10 minutes, but not at all
    /// before the registry has answered anything.
    pub wait_seconds: Option<u64>,
}

/// What happens while an image is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum PublishEvent {
    /// A blob that was not here is being brought.
    Brings {
        /// The blob.
        digest: Digest,
        /// Bytes of it that are here.
        here: u64,
    },
    /// So much of a blob is there.
    Sent {
        /// The blob.
        digest: Digest,
        /// Bytes of it that the registry has.
        sent: u64,
        /// Its length in bytes.
        size: u64,
        /// It was there before.
        present: bool,
    },
    /// The registry does not take it now, and is tried again.
    Waits {
        /// Why.
        why: String,
    },
}

/// What has been published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PublishSummary {
    /// The whole name of the image.
    pub reference: String,
    /// The whole name that it has at the registry.
    pub to: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Bytes of blobs that were sent.
    pub sent: u64,
    /// Bytes of blobs that were there already.
    pub present: u64,
    /// How long it took.
    pub seconds: f64,
}
