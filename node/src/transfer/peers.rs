//! The swarm as a source of chunks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use wherry_proto::{
    Attempt, BlobName, ChunkIndex, ChunkMap, ClaimError, Digest, Lead, NodeId, SignedStates, StateChain, StatePrefix, Update,
};

use super::planner::NoStates;
use super::{Found, PeerError, Peers, Route};
use crate::swarm::{Client, ExchangeError, LinkClass, Offer, Reach};

/// How long neighbours may take to say whether they hold a blob before an origin is asked.
const SITE_PATIENCE: Duration = Duration::from_millis(750);

/// How long holders elsewhere are searched for.
const NETWORK_PATIENCE: Duration = Duration::from_secs(10);

impl Peers for Client {
    fn me(&self) -> NodeId {
        Client::me(self)
    }

    fn class(&self, node: &NodeId) -> Option<LinkClass> {
        let _ = node;
        None
    }

    fn site(&self) -> Vec<NodeId> {
        let near = self.neighbours().into_iter().filter(|neighbour| neighbour.class == LinkClass::Lan);
        near.map(|neighbour| neighbour.node).collect()
    }

    fn search(&self, digest: Digest) -> BoxStream<'static, Found> {
        let found = |Offer { node, size }| Found::Node { node, class: LinkClass::Lan, size, held: true };
        let near = self.want(digest, Reach::Neighbours, SITE_PATIENCE).map(found);
        let far = self.want(digest, Reach::Everybody, NETWORK_PATIENCE).map(found);
        let asked = |found| stream::once(std::future::ready(found));
        near.chain(asked(Found::SiteAsked)).chain(far).chain(asked(Found::NetworkAsked)).boxed()
    }

    fn follow(
        &self,
        node: NodeId,
        digest: Digest,
        map: ChunkMap,
    ) -> BoxStream<'static, Result<Update, String>> {
        let _ = (node, digest, map);
        stream::empty().boxed()
    }

    fn chain(
        &self,
        node: NodeId,
        digest: Digest,
        size: u64,
        _known: Option<Arc<StateChain>>,
    ) -> BoxFuture<'_, Result<Arc<StateChain>, String>> {
        async move {
            let exchange = self.exchange(node).await.map_err(|error| error.to_string())?;
            let held = exchange.held(digest, size).await;
            let (_, chain) = held.map_err(|error| error.to_string())?;
            Ok(Arc::new(chain))
        }
        .boxed()
    }

    fn states(
        &self,
        node: NodeId,
        digest: Digest,
        attempt: Attempt,
        before: Arc<StatePrefix>,
    ) -> BoxFuture<'_, Result<SignedStates, NoStates>> {
        async move {
            let _ = (node, digest, attempt, before);
            Err(NoStates::None)
        }
        .boxed()
    }

    fn lead(&self, node: NodeId, digest: Digest, size: u64, route: Route) -> BoxFuture<'_, Option<Lead>> {
        async move {
            let _ = (node, digest, size, route);
            None
        }
        .boxed()
    }

    fn chunk(
        &self,
        node: NodeId,
        digest: Digest,
        map: ChunkMap,
        index: ChunkIndex,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        async move {
            let failed = |error: &dyn std::fmt::Display| PeerError::Failed(error.to_string());
            let exchange = self.exchange(node).await.map_err(|error| failed(&error))?;
            exchange.chunk(digest, map, index, |_| {}).await.map_err(|error| match error {
                ExchangeError::Busy(_) => PeerError::Busy,
                other => failed(&other),
            })
        }
        .boxed()
    }

    fn ready(&self, node: NodeId) -> BoxFuture<'_, ()> {
        async move {
            if let Ok(exchange) = self.exchange(node).await {
                exchange.free().await;
            }
        }
        .boxed()
    }

    fn ban<'a>(&'a self, node: NodeId, why: &'a str) -> BoxFuture<'a, ()> {
        Client::ban(self, node, why).boxed()
    }

    fn announce(&self, digest: Digest) -> BoxFuture<'_, ()> {
        Client::announce(self, digest).boxed()
    }
}
