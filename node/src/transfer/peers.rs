//! The swarm as a source of chunks.

use std::collections::BTreeSet;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::oneshot;
use wherry_proto::{
    Attempt, BlobName, ChunkIndex, ChunkMap, ClaimError, Digest, Lead, NodeId, Refusal, SignedStates,
    StateChain, StatePrefix, Update,
};

use super::planner::{NoStates, Scope};
use super::{Claim, Found, PeerError, Peers, Route};
use crate::swarm::{Client, ConnectError, ExchangeError, LinkClass, Offer, StatesError};

/// How long neighbours of the site may take to say whether they hold a blob before others are asked.
const SITE_PATIENCE: Duration = Duration::from_millis(750);

/// How long those at other sites may take before this node begins to read an origin: as long as the [roles](ROLE_PATIENCE) of
/// others are waited for meanwhile, and two round trips by way of a geostationary satellite.
const FAR_PATIENCE: Duration = Duration::from_millis(1_500);

/// How long they may take to say what they do before this node begins to lead. Where a whole site begins at once all are
/// busy, and it is worth more to wait than to read twice.
const ROLE_PATIENCE: Duration = Duration::from_millis(1_500);

/// How long holders elsewhere are searched for.
const NETWORK_PATIENCE: Duration = Duration::from_secs(10);

/// How long telling a peer that a chunk of its does not link may take.
const TELL_TIME: Duration = Duration::from_secs(2);

fn found(client: Client) -> impl Fn(Offer) -> Ready<Option<Found>> {
    move |Offer { node, size, arriving }| {
        let class = client.class(&node);
        ready(class.map(|class| Found { node, class, size, arriving }))
    }
}

impl From<ConnectError> for PeerError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::NotConnected(_) => Self::Left(error.to_string()),
            ConnectError::Unreachable { .. } => Self::Failed(error.to_string()),
        }
    }
}

impl From<ExchangeError> for PeerError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Busy(_) => Self::Busy,
            ExchangeError::Elsewhere(_) => Self::Elsewhere,
            ExchangeError::NotHere(_) => Self::NotHere,
            ExchangeError::NotHeld(_)
            | ExchangeError::Closed { .. }
            | ExchangeError::Refused { reason: Refusal::GivesNothing, .. } => Self::Left(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

fn no_states(why: PeerError) -> NoStates {
    match why {
        PeerError::Left(why) => NoStates::Left(why),
        why => NoStates::Failed(why.to_string()),
    }
}

impl Peers for Client {
    fn me(&self) -> NodeId {
        Client::me(self)
    }

    fn class(&self, node: &NodeId) -> Option<LinkClass> {
        Client::class(self, node)
    }

    fn site(&self) -> Vec<NodeId> {
        self.near()
    }

    fn are_astir(&self) -> bool {
        self.are_neighbours_astir()
    }

    fn search(&self, digest: Digest, scope: Scope) -> BoxStream<'static, Found> {
        let offers = match scope {
            Scope::Site => self.want(digest, LinkClass::Lan, SITE_PATIENCE).boxed(),
            Scope::OtherSites => self.want(digest, LinkClass::Wan, FAR_PATIENCE).boxed(),
            Scope::Network => self.want_of_providers(digest, NETWORK_PATIENCE).boxed(),
        };
        offers.filter_map(found(self.clone())).boxed()
    }

    fn ask(&self, nodes: &BTreeSet<NodeId>, digest: Digest) -> BoxStream<'static, Found> {
        self.want_of(nodes, digest, ROLE_PATIENCE).filter_map(found(self.clone())).boxed()
    }

    fn follow(
        &self,
        node: NodeId,
        digest: Digest,
        map: ChunkMap,
    ) -> BoxStream<'static, Result<Update, PeerError>> {
        let client = self.clone();
        let updates = async move {
            let exchange = match client.exchange(node).await {
                Ok(exchange) => exchange,
                Err(error) => return stream::once(ready(Err(error.into()))).boxed(),
            };
            // What is wrong with the connection those are told who ask for chunks on it.
            let ended =
                stream::once(async { Err(PeerError::Left("it tells no more of the blob".to_owned())) });
            exchange.follow(digest, map).map(Ok).chain(ended).boxed()
        };
        stream::once(updates).flatten().boxed()
    }

    fn chain(
        &self,
        node: NodeId,
        digest: Digest,
        size: u64,
        known: Option<Arc<StateChain>>,
    ) -> BoxFuture<'_, Result<Arc<StateChain>, PeerError>> {
        async move {
            let (_, chain) = self.exchange(node).await?.held(digest, size, known.as_deref()).await?;
            Ok(Arc::new(chain))
        }
        .boxed()
    }

    fn claim(&self, node: NodeId, digest: Digest, size: u64) -> BoxFuture<'_, Result<Claim, PeerError>> {
        async move {
            let (claim, chain) = self.exchange(node).await?.claim(digest, size).await?;
            Ok(chain.map_or(Claim::Elsewhere(claim.states), |chain| Claim::Chain(Arc::new(chain))))
        }
        .boxed()
    }

    fn claimed(
        &self,
        node: NodeId,
        digest: Digest,
        size: u64,
        states: Digest,
    ) -> BoxFuture<'_, Result<Arc<StateChain>, PeerError>> {
        async move { Ok(Arc::new(self.exchange(node).await?.claimed(digest, size, states).await?)) }.boxed()
    }

    fn states(
        &self,
        node: NodeId,
        digest: Digest,
        attempt: Attempt,
        before: Arc<StatePrefix>,
    ) -> BoxFuture<'_, Result<SignedStates, NoStates>> {
        async move {
            let map = before.map();
            Client::states(self, node, digest, map, attempt, &before).await.map_err(|error| match error {
                StatesError::Exchange(ExchangeError::NotHere(_)) => NoStates::None,
                StatesError::Exchange(ExchangeError::Claim { reason: ClaimError::OtherStates, .. }) => {
                    NoStates::Others
                }
                StatesError::Exchange(error) => no_states(error.into()),
                StatesError::Connect(error) => no_states(error.into()),
                other => NoStates::Failed(other.to_string()),
            })
        }
        .boxed()
    }

    fn lead(&self, node: NodeId, digest: Digest, size: u64, route: Route) -> BoxFuture<'_, Option<Lead>> {
        async move {
            let blob = BlobName { digest, size };
            Client::lead(self, node, blob, &route.host.to_string(), route.repository.as_str()).await
        }
        .boxed()
    }

    fn chunk(
        &self,
        node: NodeId,
        digest: Digest,
        map: ChunkMap,
        index: ChunkIndex,
        begun: oneshot::Sender<()>,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        let (mut left, mut begun) = (map.len(index) as usize, Some(begun));
        let progress = move |bytes: usize| {
            left = left.saturating_sub(bytes);
            if let Some(begun) = begun.take()
                && left > 0
            {
                // Not everybody wants to know.
                let _ = begun.send(());
            }
        };
        async move { Ok(self.exchange(node).await?.chunk(digest, map, index, progress).await?) }.boxed()
    }

    fn ready(&self, node: NodeId) -> BoxFuture<'_, ()> {
        async move {
            if let Ok(exchange) = self.exchange(node).await {
                exchange.free().await;
            }
        }
        .boxed()
    }

    fn unlinked(&self, node: NodeId, digest: Digest, map: ChunkMap, index: ChunkIndex) -> BoxFuture<'_, ()> {
        async move {
            let told = async {
                if let Ok(exchange) = self.exchange(node).await {
                    exchange.unlinked(digest, map, index).await;
                }
            };
            // It is for its own good, and nobody waits for that any longer.
            let _ = tokio::time::timeout(TELL_TIME, told).await;
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
