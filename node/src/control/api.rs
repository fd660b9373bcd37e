//! What command line and node say to each other.
//!
//! | Request | Answer |
//! |---|---|
//! | `POST /v1/pull` with a [`PullRequest`] | lines: [`PullEvent`]s, then `done` with a [`PullSummary`] or `failed` |
//! | `POST /v1/cancel` with a [`CancelRequest`] | [`CancelSummary`] |
//! | `POST /v1/check` with a [`CheckRequest`] | lines: [`CheckEvent`]s, then `done` with a [`CheckSummary`] or `failed` |
//! | `POST /v1/preload` with a [`PreloadRequest`] | lines: [`PreloadEvent`]s, then `done` with a [`PreloadSummary`] or `failed` |
//! | `POST /v1/publish` with a [`PublishRequest`] | lines: [`PublishEvent`]s, then `done` with a [`PublishSummary`] or `failed` |
//! | `POST /v1/remove` with a [`RemoveRequest`] | [`RemoveSummary`] |
//! | `POST /v1/pin` with a [`PinRequest`] | [`PinSummary`] |
//! | `POST /v1/import[?name=R]` with an archive | lines: [`ImportEvent`]s, then `done` with an [`ImportSummary`] or `failed` |
//! | `GET /v1/export?reference=R` | an archive, with its name in [`EXPORTED`], then the trailer [`OUTCOME`] |
//! | `GET /v1/blob?reference=R[&platform=P]&digest=D` | the blob's bytes, then the trailer [`OUTCOME`] |
//! | `GET /v1/images` | a list of [`ImageSummary`] |
//! | `GET /v1/inspect?reference=R[&platform=P]` | [`ImageDetails`] |
//! | `GET /v1/why?reference=R[&platform=P]` | [`WhyImage`] |
//! | `GET /v1/peers` | a list of [`PeerInfo`] |
//! | `GET /v1/status` | [`NodeStatus`] |
//! | `GET /v1/wan` | [`WanStatus`] |
//! | `POST /v1/wan` with a [`WanRequest`] | [`WanSummary`] |
//!
//! Lines are JSON objects with a field `event`. Whatever fails before an answer has begun is answered with an
//! [`ApiError`] and a status of 400 or above.

use serde::{Deserialize, Serialize};
use wherry_proto::{Digest, NodeId};

pub use super::published::{PublishEvent, PublishRequest, PublishSummary};
pub use super::refused::{ApiError, ErrorCode};
pub use crate::images::Away;
pub use crate::images::inspect::ImageDetails;
pub use crate::limits::{HeldTo, Limit, Limited, WanStatus};
pub use crate::status::{Damage, NodeStatus, Recovery};
pub use crate::transfer::{FailedPeer, Leads, PeerNow, PeerRate, WaitsFor, Why};

/// The longest JSON body of a request, in bytes.
pub const MAX_REQUEST: usize = 64 << 10;

/// The longest line of an answer, in bytes.
pub const MAX_LINE: usize = 64 << 10;

/// The longest JSON body of an answer, in bytes.
pub const MAX_ANSWER: usize = 64 << 20;

/// How many events may wait for a client that reads slowly.
pub const EVENT_QUEUE: usize = 256;

/// The trailer that ends an archive or a blob: `complete`, or an [`ApiError`] as JSON. Without it they are cut off.
pub const OUTCOME: &str = "wherry-outcome";

/// The header of an archive that bears the image's whole name.
pub const EXPORTED: &str = "wherry-image";

/// The value of [`OUTCOME`] after a whole archive.
pub const COMPLETE: &str = "complete";

/// Asks for an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// The image, as people write it: `alpine`, `docker.io/library/alpine:3`, `host:5000/a/b@sha256:…`. Without a
    /// registry it is one of the node's default origin.
    pub reference: String,
    /// Of an index, the image for this platform, as `OS/ARCH[/VARIANT]`; if none is named, for the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Whether the registry is to be asked what the tag means even if it said so a short time ago.
    #[serde(default)]
    pub refresh: bool,
    /// For how many seconds to go on trying while the registry is out of reach and nothing of a blob comes;
    /// [`WAIT`](crate::images::WAIT) if it is not said, and not at all before anything has come of the image; at most
    /// [`MAX_WAIT`](crate::images::MAX_WAIT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<u64>,
}

/// Asks that an image be fetched no further.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// The image, as in [`PullRequest::reference`].
    pub reference: String,
}

/// What became of an image that was to be fetched no further.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelSummary {
    /// The whole reference.
    pub reference: String,
    /// How many pulls of it were stopped, those whose clients had left included.
    pub pulls: usize,
    /// Its blobs that were on their way.
    pub blobs: Vec<CancelledBlob>,
}

/// A blob that was on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelledBlob {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes of it that are here, and stay.
    pub bytes: u64,
    /// What became of it.
    pub state: CancelState,
}

/// What became of a blob that was on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CancelState {
    /// It comes no further; the next pull goes on where it stopped.
    Stopped,
    /// It goes on: a client of the gateway reads it at this moment.
    Read,
    /// It goes on: another image has it too, and is being pulled.
    Pulled,
}

/// Asks that images be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveRequest {
    /// The images, as people write them. All of them are found before the first is removed.
    pub references: Vec<String>,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveSummary {
    /// The images.
    pub removed: Vec<RemovedImage>,
}

/// An image that is not here any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedImage {
    /// Its whole name.
    pub reference: String,
    /// Its manifest.
    pub digest: Digest,
    /// How many blobs were removed that were whole.
    pub blobs: usize,
    /// Of how many others what had arrived was removed.
    #[serde(default)]
    pub partial: usize,
    /// How many bytes all of them had here.
    pub bytes: u64,
    /// How many of its blobs stay, since other images have them too.
    pub shared: usize,
    /// Whether it was pinned.
    #[serde(default)]
    pub pinned: bool,
}

/// Asks that an image stay here whatever the disk budget, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRequest {
    /// The image, as people write it.
    pub reference: String,
    /// Whether it is to be pinned.
    pub pinned: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinSummary {
    /// Its whole name.
    pub reference: String,
    /// Whether it is pinned now.
    pub pinned: bool,
    /// How many blobs that concerns.
    pub blobs: usize,
}

/// Asks that nodes bring images to themselves and pin them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreloadRequest {
    /// The images, as in [`PullRequest::reference`]. Without a registry they are of the default origin of the node that is
    /// asked, on all nodes.
    pub references: Vec<String>,
    /// Of an index, the image for this platform; if none is named, for that of each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Which nodes: by their peer ids, the ends of those, or their addresses. If this is `None`, all of the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<String>>,
}

/// What happens while nodes bring images to themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum PreloadEvent {
    /// How far one image has come at one node. How it ended is told of each.
    Progress(PreloadProgress),
}

/// How far an image has come at a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreloadProgress {
    /// The node's peer id; of one that is not known, the name that was given.
    pub node: String,
    /// The whole reference.
    pub reference: String,
    /// Bytes of it that are there.
    pub bytes: u64,
    /// Bytes of it in all; 0 as long as that is not known.
    pub of_bytes: u64,
    /// How it is.
    pub step: PreloadStep,
    /// Why it waits or has failed.
    pub why: Option<String>,
}

/// How an image is that a node brings to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreloadStep {
    /// On its way.
    Running,
    /// A limit is all that it waits for.
    Waiting,
    /// There, and pinned.
    Done,
    /// It does not come.
    Failed,
}

/// How a preload ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreloadSummary {
    /// How many nodes were meant.
    pub nodes: usize,
    /// How many of them have not got everything.
    pub failed: usize,
    /// How many images were meant.
    pub images: usize,
    /// How long it took.
    pub seconds: f64,
}

/// Asks that stored blobs be read and hashed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// The images, as people write them; if there are none, everything that the store has.
    #[serde(default)]
    pub references: Vec<String>,
}

/// What happens while blobs are checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum CheckEvent {
    /// How far it has come.
    Progress {
        /// Blobs that were checked.
        blobs: usize,
        /// Blobs that are to be checked.
        of_blobs: usize,
        /// Bytes that were hashed.
        bytes: u64,
        /// Bytes that are to be hashed.
        of_bytes: u64,
    },
    /// A blob has other bytes than its digest's, and was set aside.
    Damaged {
        /// The blob.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckSummary {
    /// How many blobs were checked.
    pub blobs: usize,
    /// How many bytes they have.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Those that were damaged and are set aside: the next pull brings them again.
    pub damaged: Vec<DamagedBlob>,
    /// Blobs of the images that were named which are not here.
    pub missing: Vec<Digest>,
    /// Those of the images that were named of which the manifest is damaged, so that what else they need is not known.
    pub unread: Vec<String>,
}

/// A blob that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedBlob {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether nothing is left of its file, since that is gone.
    #[serde(default)]
    pub gone: bool,
    /// The images here that it belongs to.
    pub images: Vec<String>,
}

/// Asks what an image that is here is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectRequest {
    /// The image, as people write it.
    pub reference: String,
    /// Of an index, the image for this platform, as `OS/ARCH[/VARIANT]`; if none is named, for the node's own, or
    /// else the first that is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// Asks for a part of an image that is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRequest {
    /// The image, as people write it.
    pub reference: String,
    /// As in [`InspectRequest::platform`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Its configuration, or one of its layers.
    pub digest: Digest,
}

/// What happens while an image is pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum PullEvent {
    /// The reference has become a manifest.
    Resolved {
        /// The whole reference.
        reference: String,
        /// The manifest of the image.
        digest: Digest,
        /// How many blobs it has, configuration and layers, each counted once.
        blobs: usize,
        /// Bytes of all of them.
        bytes: u64,
    },
    /// A blob is on its way, or was here already; each is reported once.
    LayerStarted {
        /// The blob.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// Whether it is here already, so that nothing has to be carried. No further event names it.
        present: bool,
        /// Bytes of it that were here before this pull: from an earlier one that did not end, or for somebody else.
        here: u64,
    },
    /// More of a blob is here.
    Progress {
        /// The blob.
        digest: Digest,
        /// Bytes of it that are here and linked.
        bytes: u64,
        /// Bytes that came from peers since the pull began.
        from_peers: u64,
        /// Bytes that came from the origin since the pull began.
        from_origin: u64,
    },
    /// Nothing of a blob has come for some seconds; told again every [`STUCK`](crate::images::STUCK) while that is so.
    Stuck {
        /// The blob.
        digest: Digest,
        /// What it waits for.
        waits_for: WaitsFor,
        /// The origin that is read now, or would be; empty if none is known.
        origin: String,
    },
    /// A blob waits until its origin is in reach again; told whenever that was tried in vain.
    Away {
        /// The blob.
        digest: Digest,
        /// The origin, and for how long it is waited for.
        #[serde(flatten)]
        away: Away,
    },
    /// A limit is all that the rest waits for. It goes on when that ends; told again while it holds.
    Waiting {
        /// The limit.
        limited: Limited,
        /// The same in plain words, and what can be done.
        why: String,
    },
    /// A blob is whole and verified.
    LayerDone {
        /// The blob.
        digest: Digest,
        /// Bytes of it that came from peers since the pull began.
        from_peers: u64,
        /// Bytes of it that came from the origin since the pull began.
        from_origin: u64,
    },
}

/// How a pull ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PullSummary {
    /// The whole reference.
    pub reference: String,
    /// The manifest of the image.
    pub digest: Digest,
    /// How long it took.
    pub seconds: f64,
    /// Bytes that came from peers.
    pub from_peers: u64,
    /// Bytes that came from the origin.
    pub from_origin: u64,
    /// Bytes that were here before, those of blobs that were not whole included.
    pub present: u64,
    /// Whether the registry said now what the tag means, to this node or to one of its site. A digest needs no asking.
    pub asked: bool,
    /// Why not.
    pub unasked: Option<String>,
    /// No registry is asked about it on demand either.
    #[serde(default)]
    pub settled: bool,
    /// How long ago it said so, in seconds; unknown for a digest, and for a name that was given at this site.
    pub tag_age_seconds: Option<u64>,
}

/// What happens while an archive is imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum ImportEvent {
    /// A blob was read and verified. It is kept when the whole archive is: nothing of a damaged one stays.
    Blob {
        /// The blob.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// Whether it was here already.
        present: bool,
    },
}

/// What an archive held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSummary {
    /// The images that are here now.
    pub images: Vec<ImportedImage>,
}

/// An image from an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedImage {
    /// Its reference; `None` when the archive names none, so that only the digest leads to it.
    pub reference: Option<String>,
    /// The tag that the archive gives it, where it gives it a tag and no name.
    #[serde(default)]
    pub tag: Option<String>,
    /// Its manifest.
    pub digest: Digest,
    /// Bytes of its configurations and layers, of all platforms that are here, each counted once.
    pub size: u64,
}

/// An image of the node, whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// Its whole name: a reference, by its digest where no tag means it, or `<none>@DIGEST` if it came without a name.
    pub reference: String,
    /// Its manifest.
    pub digest: Digest,
    /// Bytes of its configuration and layers, each counted once.
    pub size: u64,
    /// Bytes of them that are here.
    pub here: u64,
    /// Whether all of them are.
    pub whole: bool,
    /// How many layers it has.
    pub layers: usize,
    /// When it came here, in seconds since 1970, if that is known.
    pub added: Option<u64>,
    /// Whether it is pinned, so that it stays whatever the disk budget.
    pub pinned: bool,
    /// The tags that meant it before they moved.
    pub was: Vec<String>,
    /// What the disk has damaged of it; `None` if it is whole.
    #[serde(default)]
    pub damaged: Option<Damage>,
}

/// Why an image is not here yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyImage {
    /// The whole reference.
    pub reference: String,
    /// How it is with the image.
    pub state: WhyState,
    /// Whether it is pulled: what a runtime wants of it comes without that, and no more than that.
    #[serde(default)]
    pub pulled: bool,
    /// The registry that it comes from; empty if it came here without a name.
    pub registry: String,
    /// Bytes of its blobs that are here.
    pub bytes: u64,
    /// Bytes of all its blobs, if its manifest is here.
    pub of_bytes: Option<u64>,
    /// Bytes a second that come now.
    pub rate: u64,
    /// When all will be here, in seconds, at this rate; unknown if something stands still.
    pub seconds_left: Option<f64>,
    /// The limit that keeps bytes from coming into the site now.
    pub limit: Option<LimitNow>,
    /// The neighbours that have all that is missing; as long as the manifest is not here, those that have that. Looked for
    /// only while nothing of it is on its way.
    pub holders: Vec<NodeId>,
    /// Its configuration and layers, those that are here included.
    pub blobs: Vec<BlobWhy>,
}

/// How it is with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhyState {
    /// All of it is here.
    Here,
    /// It is on its way.
    Coming,
    /// It is pulled, and not known yet what the name means.
    Resolving,
    /// Nobody fetches it.
    Absent,
}

/// A limit that says no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitNow {
    /// Which.
    pub limited: Limited,
    /// The same in plain words, and what can be done.
    pub why: String,
}

/// A blob of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlobWhy {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes of it that are here.
    pub bytes: u64,
    /// What is done for it now; `None` if it is here, or nobody fetches it yet.
    pub transfer: Option<Why>,
    /// The origin that a pull waits for, since it was out of reach when it was tried last.
    #[serde(default)]
    pub away: Option<Away>,
    /// The neighbours that have it; see [`WhyImage::holders`].
    pub holders: Vec<NodeId>,
}

/// A member of the network that the node is connected to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its peer id.
    pub peer_id: NodeId,
    /// Its site.
    pub site: String,
    /// The address by which it is connected.
    pub address: String,
    /// How long it has been connected, in seconds.
    pub connected_seconds: u64,
}

/// Has the site pause, or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WanRequest {
    /// Whether bytes are to cross the border of the site no more.
    pub paused: bool,
}

/// What became of a [`WanRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WanSummary {
    /// The site.
    pub site: String,
    /// How many nodes of the site are connected.
    pub neighbours: usize,
    /// How many of them know of it now; the others hear of it when they can.
    pub agree: usize,
    /// How things are now.
    pub status: WanStatus,
}

/// One line of an answer that takes its time.
#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Line<E, D> {
    Done(D),
    Failed(ApiError),
    #[serde(untagged)]
    Event(E),
}
