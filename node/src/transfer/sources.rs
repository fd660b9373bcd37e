//! Where chunks come from, as a transfer sees it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::oneshot;
use wherry_gateway::{Host, Repository};
use wherry_proto::{
    Attempt, ChunkIndex, ChunkMap, Digest, Lead, NodeId, Role, SignedStates, StateChain, StatePrefix, Update,
};

use super::planner::{NoStates, Scope};
use crate::swarm::LinkClass;

/// A node that says that it has a blob, or will have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The node.
    pub node: NodeId,
    /// How cheaply it is reached.
    pub class: LinkClass,
    /// How many bytes the blob has, as the node says.
    pub size: u64,
    /// What it does with the blob while that is on its way to it; `None` if all of it is there.
    pub arriving: Option<Role>,
}

/// Why a peer gives no chunk, or nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It has no slot free; it may be asked again soon.
    #[error("it has no slot free")]
    Busy,
    /// It has given this chunk, or gives the states that it was asked for, to others.
    #[error("it gives this to others")]
    Elsewhere,
    /// It does not have this chunk or these states, or no longer.
    #[error("it does not have this")]
    NotHere,
    /// It has gone, or has no longer what it had: so it is where machines come and go.
    #[error("{0}")]
    Left(String),
    /// It cannot or will not serve, or is silent.
    #[error("{0}")]
    Failed(String),
}

/// The nodes of the network.
///
/// What has a default is for those who trade while a blob arrives: somebody who only gives what it holds needs none.
pub trait Peers: Send + Sync + 'static {
    /// This node.
    fn me(&self) -> NodeId;

    /// How cheaply a node is reached; `None` if it is not connected.
    fn class(&self, _node: &NodeId) -> Option<LinkClass> {
        None
    }

    /// The nodes of this site that are connected.
    fn site(&self) -> Vec<NodeId> {
        Vec::new()
    }

    /// Whether nodes of this site are about to get images, since they have asked for some in the last seconds.
    fn are_astir(&self) -> bool {
        false
    }

    /// Looks among these for those that hold a blob or are getting it. The stream ends when all have answered or had their
    /// time.
    fn search(&self, digest: Digest, scope: Scope) -> BoxStream<'static, Found>;

    /// What these nodes have to do with a blob at the moment, of those who say so in time.
    fn ask(&self, _nodes: &BTreeSet<NodeId>, _digest: Digest) -> BoxStream<'static, Found> {
        stream::empty().boxed()
    }

    /// What a node has of a blob, now and from now on. The stream ends with why it does, and when it is dropped the
    /// node is followed no more.
    fn follow(
        &self,
        _node: NodeId,
        _digest: Digest,
        _map: ChunkMap,
    ) -> BoxStream<'static, Result<Update, PeerError>> {
        stream::empty().boxed()
    }

    /// A holder's claim, its signature checked. `known` is a chain that is here already, and so need not travel.
    fn chain(
        &self,
        node: NodeId,
        digest: Digest,
        size: u64,
        known: Option<Arc<StateChain>>,
    ) -> BoxFuture<'_, Result<Arc<StateChain>, PeerError>>;

    /// The same of a holder that may have given its chain to several others, who can then be asked for it.
    fn claim(&self, node: NodeId, digest: Digest, size: u64) -> BoxFuture<'_, Result<Claim, PeerError>> {
        async move { Ok(Claim::Chain(self.chain(node, digest, size, None).await?)) }.boxed()
    }

    /// The chain of which a holder has claimed the states that have this digest, from whoever goes by it.
    fn claimed(
        &self,
        _node: NodeId,
        _digest: Digest,
        _size: u64,
        _states: Digest,
    ) -> BoxFuture<'_, Result<Arc<StateChain>, PeerError>> {
        std::future::ready(Err(PeerError::NotHere)).boxed()
    }

    /// The states of a leader's reading from those on that are known, the signature checked.
    fn states(
        &self,
        _node: NodeId,
        _digest: Digest,
        _attempt: Attempt,
        _before: Arc<StatePrefix>,
    ) -> BoxFuture<'_, Result<SignedStates, NoStates>> {
        std::future::ready(Err(NoStates::None)).boxed()
    }

    /// Asks a node to fetch a blob from there; `None` if it does not answer.
    fn lead(&self, _node: NodeId, _digest: Digest, _size: u64, _route: Route) -> BoxFuture<'_, Option<Lead>> {
        std::future::ready(None).boxed()
    }

    /// One chunk of a blob, unverified, of the length that the map says. Fails within seconds when no byte comes. `begun` is
    /// told when some bytes have come, and others are still to.
    fn chunk(
        &self,
        node: NodeId,
        digest: Digest,
        map: ChunkMap,
        index: ChunkIndex,
        begun: oneshot::Sender<()>,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>>;

    /// Returns when a node that was busy may be asked again.
    fn ready(&self, node: NodeId) -> BoxFuture<'_, ()>;

    /// Tells a node that a chunk which it gave does not link, so that it may look at its disk.
    fn unlinked(
        &self,
        _node: NodeId,
        _digest: Digest,
        _map: ChunkMap,
        _index: ChunkIndex,
    ) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    /// Closes all connections to a node that provably lied, and takes none from it.
    fn ban<'a>(&'a self, node: NodeId, why: &'a str) -> BoxFuture<'a, ()>;

    /// Tells the network that this node now holds a blob.
    fn announce(&self, digest: Digest) -> BoxFuture<'_, ()>;
}

/// What a holder says when it is asked for its claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The chain that it has signed.
    Chain(Arc<StateChain>),
    /// It has signed the chain whose states have this digest; they are to be had of others who take the blob from it.
    Elsewhere(Digest),
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
    /// Whether the origin was out of reach, so that it may give the blob at another time.
    pub away: bool,
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

    /// What was read of a blob there is not what its digest or length says: where something stands in for the origin, it is
    /// not to be read next.
    fn doubt(&self, route: &Route, digest: &Digest) {
        let _ = (route, digest);
    }

    /// How fast a blob may come from there, in bytes a second, where that is limited.
    fn rate(&self, route: &Route) -> Option<u64> {
        let _ = route;
        None
    }
}
