//! What the swarm asks of the store.

use std::fs::File;
use std::future::{pending, ready};
use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::io::{ReadWriteFlags, preadv2};
use wherry_proto::{
    BlobName, Digest, Lead, LeadRefusal, NodeId, PreloadRefusal, Preloading, Resolution, StateChain,
    TagRecord, WanWord, WantedImage,
};

use super::arriving::Arriving;

/// What this node can give. Every call may block, and the swarm makes them off the network threads; those that return a
/// future have to wait for an origin and must not block, neither before they return it nor in it.
///
/// The answers are promises: a blob that is said to be held is one whose every byte was verified.
pub trait Holdings: Send + Sync + 'static {
    /// The length in bytes of a blob that is held.
    fn held(&self, digest: &Digest) -> Option<u64>;

    /// The state chain of a blob that is held. The swarm signs it as verified.
    fn chain(&self, digest: &Digest) -> Option<StateChain>;

    /// The bytes of a blob that is held; `None` if it is not.
    ///
    /// They are sent as they are read: to hash each chunk again before it leaves would cost as much as it costs the
    /// taker, for every taker. A disk that rots therefore makes this node send a wrong chunk of a blob which it claims
    /// to hold. The taker asks it for no more of the blob, or bans it for [`BAN_TIME`](super::BAN_TIME) where the chunk
    /// proves it wrong, since rot cannot be told from a lie, and tells it: see [`Holdings::doubted`]. A read that fails
    /// is refused and proves nothing against anybody.
    fn open(&self, digest: &Digest) -> io::Result<Option<Arc<dyn ReadAt>>>;

    /// A member says that a chunk which this node gave it does not link. It may lie: whoever looks at the disk for it
    /// must bound how often. Does not block.
    fn doubted(&self, _by: NodeId, _blob: BlobName, _index: u32) {}

    /// The length in bytes of a blob that is on its way here, as far as this node believes what it was told.
    fn arriving_size(&self, _digest: &Digest) -> Option<u64> {
        None
    }

    /// A blob that is on its way here. Whoever takes nothing in has none.
    fn arriving(&self, _blob: &BlobName) -> Option<Arc<dyn Arriving>> {
        None
    }

    /// Fetches a blob from an origin's repository on behalf of a member that cannot, if this node may and can; says
    /// whether it does before it is done. Whoever leads for nobody has no route. The future is dropped when the asker's
    /// time, [`LEAD_TIME`](super::LEAD_TIME), is over.
    fn lead<'a>(
        &'a self,
        _asker: NodeId,
        _blob: BlobName,
        _origin: &'a str,
        _repository: &'a str,
    ) -> BoxFuture<'a, Lead> {
        ready(Lead::Refuse(LeadRefusal::NoRoute)).boxed()
    }

    /// What an origin says that a reference means, with the manifest if the asker is to have that: asked now, unless it was
    /// lately. Whoever asks no origin knows nothing. The future is dropped when the asker's time,
    /// [`RESOLVE_TIME`](super::RESOLVE_TIME), is over.
    fn resolve<'a>(&'a self, _asker: NodeId, _reference: &'a str) -> BoxFuture<'a, Option<Resolution>> {
        ready(None).boxed()
    }

    /// So many bytes of a manifest went to a neighbour with an answer.
    fn told(&self, _bytes: usize) {}

    /// Whether a peer is given anything now. What it is not given it is not told of either. Does not block.
    fn gives_to(&self, _node: &NodeId) -> bool {
        true
    }

    /// Returns when a peer is given nothing any more: at once where it is given nothing now.
    fn gives_no_more<'a>(&'a self, _node: &'a NodeId) -> BoxFuture<'a, ()> {
        pending().boxed()
    }

    /// Returns when a blob is not held any more: at once where it is not held now. Whoever loses nothing never does.
    fn leaves<'a>(&'a self, _digest: &'a Digest) -> BoxFuture<'a, ()> {
        pending().boxed()
    }

    /// How long it is until bytes may go to a peer. Does not block.
    fn until_giving(&self, _node: &NodeId) -> Duration {
        Duration::ZERO
    }

    /// So many bytes go to a peer now. Does not block.
    fn gave(&self, _node: &NodeId, _bytes: u32) {}

    /// A member tells what it does with the links that lead out of its site; what this node does, if it is the same site.
    fn wan(&self, _asker: NodeId, _word: &WanWord) -> Option<WanWord> {
        None
    }

    /// A member tells what a tag means, which it has just learned; whether that, or something newer, is known now, or
    /// nothing at all of the tag. Nothing of the record has been checked yet.
    fn moved(&self, _asker: NodeId, _record: &TagRecord) -> bool {
        false
    }

    /// Brings an image here and pins it, because a member asks for it; returns as soon as that has begun. Whoever brings
    /// nothing is always starting.
    fn preload(&self, _asker: NodeId, _image: &WantedImage) -> Result<(), PreloadRefusal> {
        Err(PreloadRefusal::Stopping)
    }

    /// How an image comes that a member asked for.
    fn preloading(&self, _image: &WantedImage) -> Option<Preloading> {
        None
    }

    /// What a reference means here, as signed by whoever resolved it.
    fn tag(&self, reference: &str) -> Option<TagRecord>;

    /// The tags of an origin's repository that are known here, without asking anybody: the first `most` of those
    /// that sort behind `after`, in the order of their bytes. Whoever knows no names has none.
    fn tags(&self, _origin: &str, _repository: &str, _after: Option<&str>, _most: usize) -> Vec<String> {
        Vec::new()
    }
}

/// Bytes that are read from any place, as of an open file.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset`; fewer bytes than that are an error.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Whether they may still be given: not once it is known that they are wrong.
    fn is_sound(&self) -> bool {
        true
    }

    /// Fills `buf` from `offset` if that can be done without waiting for a disk; else says `false`, and what is in
    /// `buf` then means nothing.
    fn read_cached_at(&self, _buf: &mut [u8], _offset: u64) -> bool {
        false
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> bool {
        let len = buf.len();
        let read = preadv2(self, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|read| read == len)
    }
}
