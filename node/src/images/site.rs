//! The neighbours as a source of names.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tracing::debug;
use wherry_gateway::{Host, Reference, Repository};
use wherry_proto::{Digest, NodeId, Resolution, TagRecord, rank};

use super::Site;
use crate::swarm::{Client, LinkClass};

/// How long neighbours are waited for. Those that answer later are missed, which costs a question to the origin.
const PATIENCE: Duration = Duration::from_millis(750);

/// How long neighbours are waited for when a repository's tags are listed. Nobody else is asked, so that later answers are
/// missing from the list; many tags come in several answers.
const LIST_PATIENCE: Duration = Duration::from_secs(2);

/// How long the answer about a tag that has moved waits until all neighbours know it. On a LAN it takes a few milliseconds;
/// one that is slower or gone is not worth more, and learns it when it asks.
const TELL_TIME: Duration = Duration::from_millis(200);

/// How many nodes are asked by one that cannot reach an origin itself.
const MAX_RESOLVERS: usize = 4;

/// The nodes of the site that are before this one in the rank for a reference, or all others: highest first.
fn resolvers(client: &Client, reference: &Reference, all: bool) -> impl Iterator<Item = NodeId> + use<> {
    let name = Digest::sha256(reference.to_string().as_bytes());
    let own = rank(&name, &client.me());
    let near = client.neighbours().into_iter().filter(|neighbour| neighbour.class == LinkClass::Lan);
    let mut ranked: Vec<_> = near.map(|neighbour| (rank(&name, &neighbour.node), neighbour.node)).collect();
    ranked.sort_unstable_by(|one, two| two.cmp(one));
    ranked.into_iter().filter(move |(rank, _)| all || *rank > own).map(|(_, node)| node)
}

impl Site for Client {
    fn records(&self, reference: &Reference, class: LinkClass) -> BoxFuture<'_, Vec<TagRecord>> {
        let reference = reference.to_string();
        async move { self.tag(&reference, class, PATIENCE).await }.boxed()
    }

    fn meetings(&self) -> u64 {
        self.meetings()
    }

    fn has_resolver(&self, reference: &Reference) -> bool {
        resolvers(self, reference, false).next().is_some()
    }

    fn resolve(&self, reference: &Reference, anybody: bool) -> BoxFuture<'_, Option<Resolution>> {
        let most = if anybody { MAX_RESOLVERS } else { 1 };
        let nodes: Vec<NodeId> = resolvers(self, reference, anybody).take(most).collect();
        let reference = reference.to_string();
        async move {
            for node in nodes {
                let resolution = self.resolve(node, &reference).await;
                if resolution.is_some() {
                    return resolution;
                }
            }
            None
        }
        .boxed()
    }

    fn moved(&self, record: TagRecord) -> BoxFuture<'_, ()> {
        async move {
            let (neighbours, know) = self.moved(&record, TELL_TIME).await;
            if know < neighbours {
                debug!(reference = %record.reference, neighbours, know, "not all neighbours know yet what the tag means");
            }
        }
        .boxed()
    }

    fn tags(
        &self,
        host: &Host,
        repository: &Repository,
        known: BTreeSet<String>,
    ) -> BoxFuture<'_, BTreeSet<String>> {
        let (host, repository) = (host.to_string(), repository.to_string());
        async move { self.tags(&host, &repository, known, LIST_PATIENCE).await }.boxed()
    }
}
