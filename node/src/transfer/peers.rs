//! The swarm as a source of chunks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use wherry_proto::{ChunkIndex, ChunkMap, Digest, NodeId, StateChain};

use super::{Found, PeerError, Peers};
use crate::swarm::{Client, ExchangeError, Offer, Reach};

/// How long neighbours may take to say whether they hold a blob before an origin is asked.
const SITE_PATIENCE: Duration = Duration::from_millis(750);

/// How long holders elsewhere are searched for.
const NETWORK_PATIENCE: Duration = Duration::from_secs(10);

impl Peers for Client {
    fn search(&self, digest: Digest) -> BoxStream<'static, Found> {
        let offer = |Offer { node, size, arriving }| {
            std::future::ready((!arriving).then_some(Found::Offer(node, size)))
        };
        let near = self.want(digest, Reach::Neighbours, SITE_PATIENCE).filter_map(offer);
        let far = self.want(digest, Reach::Everybody, NETWORK_PATIENCE).filter_map(offer);
        let asked = |found| stream::once(std::future::ready(found));
        near.chain(asked(Found::SiteAsked)).chain(far).chain(asked(Found::NetworkAsked)).boxed()
    }

    fn chain(
        &self,
        node: NodeId,
        digest: Digest,
        size: u64,
    ) -> BoxFuture<'_, Result<Arc<StateChain>, String>> {
        async move {
            let exchange = self.exchange(node).await.map_err(|error| error.to_string())?;
            let (_, chain) = exchange.held(digest, size, None).await.map_err(|error| error.to_string())?;
            Ok(Arc::new(chain))
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
