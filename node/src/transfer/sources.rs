//! Where chunks come from, as a transfer sees it.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use wherry_gateway::{Host, Repository};
use wherry_proto::{ChunkIndex, ChunkMap, Digest, NodeId, StateChain};

/// What a search for holders of a blob finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// This node says that it holds the blob, and that it has this many bytes.
    Offer(NodeId, u64),
    /// All neighbours have answered or had their time.
    SiteAsked,
    /// So has the rest of the network: nothing more comes.
    NetworkAsked,
}

/// Why a peer gives no chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It has no slot free; it may be asked again soon.
    #[error("it has no slot free")]
    Busy,
    /// It cannot or will not serve, or is silent.
    #[error("{0}")]
    Failed(String),
}

/// The nodes of the network.
pub trait Peers: Send + Sync + 'static {
    /// Looks for holders of a blob. The stream ends after [`Found::NetworkAsked`].
    fn search(&self, digest: Digest) -> BoxStream<'static, Found>;

    /// A holder's claim, its signature checked.
    fn chain(
        &self,
        node: NodeId,
        digest: Digest,
        size: u64,
    ) -> BoxFuture<'_, Result<Arc<StateChain>, String>>;

    /// One chunk of a blob, unverified, of the length that the map says. Fails within seconds when no byte comes.
    fn chunk(
        &self,
        node: NodeId,
        digest: Digest,
        map: ChunkMap,
        index: ChunkIndex,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>>;

    /// Returns when a node that was busy may be asked again.
    fn ready(&self, node: NodeId) -> BoxFuture<'_, ()>;

    /// Closes all connections to a node that provably lied, and takes none from it.
    fn ban<'a>(&'a self, node: NodeId, why: &'a str) -> BoxFuture<'a, ()>;

    /// Tells the network that this node now holds a blob.
    fn announce(&self, digest: Digest) -> BoxFuture<'_, ()>;
}

/// Where an origin has a blob.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// The registry.
    pub host: Host,
    /// The repository there.
    pub repository: Repository,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)
    }
}

/// Why an origin gives nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OriginFailure {
    /// What was tried, and why it failed.
    pub message: String,
    /// Whether reading on from the last byte may help.
    pub retry: bool,
}

/// A blob on its way from an origin.
pub struct OriginBlob {
    /// The whole blob's length in bytes, if the origin says.
    pub total: Option<u64>,
    /// The bytes from the offset that was asked for to the end, unverified.
    pub bytes: BoxStream<'static, Result<Bytes, OriginFailure>>,
}

/// The registries that images come from.
pub trait Origins: Send + Sync + 'static {
    /// Starts to read a blob at an offset.
    fn open(
        &self,
        route: &Route,
        digest: Digest,
        from: u64,
    ) -> BoxFuture<'_, Result<OriginBlob, OriginFailure>>;
}
