//! The neighbours as a source of names.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use wherry_gateway::Reference;
use wherry_proto::TagRecord;

use super::Site;
use crate::swarm::Client;

/// How long neighbours are waited for. Those that answer later are missed, which costs a question to the origin.
const PATIENCE: Duration = Duration::from_millis(750);

impl Site for Client {
    fn records(&self, reference: &Reference) -> BoxFuture<'_, Vec<TagRecord>> {
        let reference = reference.to_string();
        async move { self.tag(&reference, PATIENCE).await }.boxed()
    }
}
