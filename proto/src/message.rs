//! What nodes say to each other, message by message.
//!
//! Three conversations, each in frames: the **hello** that admits a connection, the **asking** of small
//! questions over one long-lived stream, and the **exchange** of chains and chunks, which has a file of its own.
//! Numbers in front tie an answer to its question: questions are pipelined, and answers may overtake each other.

use bincode::{Decode, Encode};

use crate::frame::{FrameError, List, Message, Text, decode_payload};
use crate::membership::Certificate;
use crate::tag::{MAX_ORIGIN_LEN, MAX_REFERENCE_LEN, MAX_REPOSITORY_LEN, MAX_TAG_LEN};
use crate::{BlobName, Digest, PauseRecord, Role, TagRecord, WanWord};

/// The version that every conversation of this build speaks. Counts up when a message changes its bytes.
///
/// 1: the first. 2: the tags of a repository can be asked for; tag records bear their signer's certificate.
/// 3: blobs are followed while they arrive, for which stream claims cover all states before them; a node can be asked
/// to lead, and to ask an origin what a reference means; whoever asks for a chain says which it has.
/// 4: nodes of a site tell each other of the links that lead out of it; whoever gave a chunk is told that it does not
/// link; nodes can be asked to bring an image to themselves.
/// 5: whoever is asked for a blob that is on its way to it says also whether it leads, or whose reading it goes by, and
/// each says whether its leader is slow; nodes of a site tell each other what a tag means as soon as it means something
/// else; a hello says which life of a node it comes from.
/// 6: whoever is about to read an origin says so.
/// 7: tag records say on whose word a tag means what it means.
/// 8: whoever asks an origin what a reference means for another node gives the manifest with the answer.
/// 9: whoever announces blobs names many of them in one question.
pub const PROTOCOL_VERSION: u16 = 9;

/// The longest name of a site, in bytes.
pub const MAX_SITE_LEN: usize = 64;

/// How many digests one question may name.
pub const MAX_WANT: usize = 64;

/// How many addresses of itself a provider tells.
pub const MAX_PROVIDER_ADDRESSES: usize = 8;

/// The longest of them, in bytes.
pub const MAX_ADDRESS_LEN: usize = 128;

/// How many tags one answer may name; whoever wants more asks for those behind the last.
pub const MAX_TAG_PAGE: usize = 128;

/// The longest manifest that is given with an answer, in bytes. Those of images with seventy layers are shorter, indented too;
/// longer ones are had as all blobs are.
pub const MAX_MANIFEST_TOLD: usize = 16 << 10;

/// The longest name of a platform, `OS/ARCH[/VARIANT]`, in bytes.
pub const MAX_PLATFORM_LEN: usize = 128;

/// The longest reason that is given in words, in bytes.
pub const MAX_WHY_LEN: usize = 1024;

/// A tag's name.
pub type TagName = Text<MAX_TAG_LEN>;

/// The name of a site.
pub type SiteName = Text<MAX_SITE_LEN>;

/// A version, as two bytes big-endian, so that every other version can read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Version([u8; 2]);

impl Version {
    /// [`PROTOCOL_VERSION`].
    pub const OURS: Self = Self(PROTOCOL_VERSION.to_be_bytes());

    /// The number.
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// The first frame on a connection, in both directions: the dialer's first, and the listener's once it has
/// admitted the dialer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: Version,
    /// That it belongs.
    pub certificate: Certificate,
    /// The site that it is at.
    pub site: SiteName,
    /// Where it listens, at the address that the connection comes from.
    pub ports: Ports,
    /// Drawn by lot when the process of the node began: another one with the same key is another machine, or the same
    /// after a restart.
    pub life: u64,
}

/// The ports at which a node listens; 0 where it does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Ports {
    /// Peers over TCP.
    pub tcp: u16,
    /// Peers over QUIC.
    pub quic: u16,
    /// The bulk plane.
    pub bulk: u16,
}

impl Hello {
    /// Reads a payload; one of another version is told apart from a damaged one.
    pub fn read(payload: &[u8]) -> Result<Self, FrameError> {
        match payload.first_chunk().map(|bytes| Version(*bytes)) {
            Some(theirs) if theirs != Version::OURS => {
                Err(FrameError::Version { ours: PROTOCOL_VERSION, theirs: theirs.get() })
            }
            _ => decode_payload(payload),
        }
    }
}

impl Message for Hello {
    const NAME: &'static str = "hello";
    const MAX_LEN: usize = 512;
}

impl Message for Certificate {
    const NAME: &'static str = "certificate";
    const MAX_LEN: usize = 256;
}

impl Message for TagRecord {
    const NAME: &'static str = "tag record";
    const MAX_LEN: usize = 1280;
}

impl Message for PauseRecord {
    const NAME: &'static str = "pause record";
    const MAX_LEN: usize = 512;
}

/// A small question to a neighbour.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Ask {
    /// Chosen by the asker; the reply bears it.
    pub id: u32,
    /// What is asked.
    pub question: Question,
}

/// What can be asked.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Question {
    /// Whether the peer is there.
    Ping,
    /// Which of these blobs the peer has, or will have.
    Want(List<Digest, MAX_WANT>),
    /// What this reference means, as far as the peer knows.
    Tag(Text<MAX_REFERENCE_LEN>),
    /// Which tags of a repository the peer knows.
    Tags {
        /// The origin: `docker.io`, or a host with its port.
        origin: Text<MAX_ORIGIN_LEN>,
        /// The repository: `library/alpine`.
        repository: Text<MAX_REPOSITORY_LEN>,
        /// Only those that sort behind this one: the last that the asker was told.
        after: Option<TagName>,
    },
    /// Whether the peer will lead: fetch this blob from there for the asker, which cannot reach it.
    Lead {
        /// The blob.
        blob: BlobName,
        /// The origin: `docker.io`, or a host with its port.
        origin: Text<MAX_ORIGIN_LEN>,
        /// The repository: `library/alpine`.
        repository: Text<MAX_REPOSITORY_LEN>,
    },
    /// What an origin says that this reference means: the peer asks the origin if nobody did lately.
    Resolve(Text<MAX_REFERENCE_LEN>),
    /// What the peer does with the links that lead out of the site; and what the asker does. Only neighbours of the same
    /// site ask.
    Wan(WanWord),
    /// Whether the peer will bring an image to itself and pin it. One that it is bringing already goes on; how it goes is
    /// told by [`Question::Preloading`]. Every member may ask.
    Preload(WantedImage),
    /// How an image comes that the peer was asked to bring.
    Preloading(WantedImage),
    /// That a tag means something else than the asker knew. Only neighbours of the same site are listened to.
    Moved(TagRecord),
    /// That the asker holds some blobs: the peer is among those who are closest to their keys, and is to name the asker for a while
    /// to whoever looks for their providers.
    Provide(Provide),
}

/// What a node holds, for those who keep that for the network.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Provide {
    /// The blobs.
    pub blobs: List<Digest, MAX_WANT>,
    /// Where the node can be reached, as it says: multiaddrs, in their binary form.
    pub addresses: List<List<u8, MAX_ADDRESS_LEN>, MAX_PROVIDER_ADDRESSES>,
}

/// An image that a node is asked to bring to itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct WantedImage {
    /// The whole reference.
    pub reference: Text<MAX_REFERENCE_LEN>,
    /// Of an index, the image for this platform; if none is named, for that of the node which is asked. `all` is for every
    /// manifest that it leads to.
    pub platform: Option<Text<MAX_PLATFORM_LEN>>,
}

impl Message for Ask {
    const NAME: &'static str = "ask";
    const MAX_LEN: usize = 8 << 10;
}

/// The reply to an [`Ask`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Reply {
    /// That of the question.
    pub id: u32,
    /// The answer.
    pub answer: Answer,
}

/// What can be answered.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Answer {
    /// To [`Question::Ping`].
    Pong,
    /// To [`Question::Want`]: one for each digest, in the same order.
    Want(List<Holding, MAX_WANT>),
    /// To [`Question::Tag`].
    Tag(Option<TagRecord>),
    /// To [`Question::Resolve`].
    Resolved(Option<Resolution>),
    /// To [`Question::Tags`].
    Tags(TagPage),
    /// To [`Question::Lead`].
    Lead(Lead),
    /// To [`Question::Wan`]; `None` to whoever is at another site.
    Wan(Option<WanWord>),
    /// To [`Question::Preload`]: why it will not, if it will not.
    Preload(Result<(), PreloadRefusal>),
    /// To [`Question::Preloading`]; `None` if the peer knows of none, as after a restart.
    Preloading(Option<Preloading>),
    /// To [`Question::Moved`]: whether the peer knows that now, or something newer, or nothing at all of the tag.
    Moved(bool),
    /// To [`Question::Provide`]: the peer has heard it. How much it keeps is bounded, and not told.
    Provided,
}

/// What an origin says that a reference means.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Resolution {
    /// The digest that it means.
    pub record: TagRecord,
    /// The bytes with this digest, if they are at hand and not longer than this. They spare the asker a search and a
    /// connection, and count only if they have the digest.
    pub manifest: Option<List<u8, MAX_MANIFEST_TOLD>>,
}

/// Why a node does not bring an image to itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, thiserror::Error)]
pub enum PreloadRefusal {
    /// It brings as many images as it can at a time.
    #[error("it brings as many images as it can at a time: ask again when some are there")]
    Busy,
    /// It cannot read the name or the platform.
    #[error("it cannot read the name or the platform of the image")]
    Name,
    /// It is shutting down, or starts.
    #[error("it is starting or shutting down: ask again once it is up")]
    Stopping,
}

/// How an image comes to a node.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Preloading {
    /// Bytes of it that are there.
    pub here: u64,
    /// Bytes of it in all; 0 as long as that is not known.
    pub bytes: u64,
    /// How far it has come.
    pub state: PreloadState,
}

/// How far an image has come.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum PreloadState {
    /// It is on its way.
    Running,
    /// A limit is all that it waits for: in words.
    Waiting(Text<MAX_WHY_LEN>),
    /// It is there and pinned.
    Done,
    /// It does not come: why.
    Failed(Text<MAX_WHY_LEN>),
}

/// Whether a node leads as it was asked to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Lead {
    /// It holds the blob already.
    Have,
    /// The blob is on its way to it: chunks may be had by following.
    Leading,
    /// It does not.
    Refuse(LeadRefusal),
}

/// Why a node does not lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, thiserror::Error)]
pub enum LeadRefusal {
    /// It cannot reach the origin either.
    #[error("it cannot reach the origin")]
    NoRoute,
    /// The origin asks for credentials that it does not have.
    #[error("it has no credentials for the origin")]
    NoCredentials,
    /// It has no room for the blob.
    #[error("it has no room for the blob")]
    NoSpace,
    /// Its share of the link is used up, or this is not the time for it.
    #[error("it may not use its link to the origin now")]
    Budget,
    /// The asker may not have what the node's own credentials would fetch.
    #[error("it fetches nothing from there for this node")]
    NotForYou,
}

/// Some of a repository's tags.
///
/// The list is the peer's word alone. What a tag means is told by its signed record, for which each one is asked.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct TagPage {
    /// The first of those that were asked for, in the order of their bytes.
    pub names: List<TagName, MAX_TAG_PAGE>,
    /// Whether there are further ones behind the last of these.
    pub more: bool,
}

/// Whether a peer has a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Holding {
    /// It does not.
    No,
    /// It has verified the blob and can give it.
    Held {
        /// The blob's length in bytes.
        size: u64,
    },
    /// It is on its way here: chunks of it may be had by following.
    Arriving {
        /// The blob's length in bytes, as the peer believes.
        size: u64,
        /// What it has to do with the blob at the moment, as a follower would be told.
        role: Role,
    },
}

impl Message for Reply {
    const NAME: &'static str = "reply";
    const MAX_LEN: usize = 18 << 10;
}
