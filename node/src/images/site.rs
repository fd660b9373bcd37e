//! The neighbours as a source of names.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use wherry_gateway::{Host, Reference, Repository};
use wherry_proto::TagRecord;

use super::Site;
use crate::swarm::Client;

/// How long neighbours are waited for. Those that answer later are missed, which costs a question to the origin.
const PATIENCE: Duration = Duration::from_millis(750);

/// How long neighbours are waited for when a repository's tags are listed. Nobody else is asked, so that later answers are
/// missing from the list; many tags come in several answers.
const LIST_PATIENCE: Duration = Duration::from_secs(2);

impl Site for Client {
    fn records(&self, reference: &Reference) -> BoxFuture<'_, Vec<TagRecord>> {
        let reference = reference.to_string();
        async move { self.tag(&reference, PATIENCE).await }.boxed()
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
