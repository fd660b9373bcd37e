//! What clients push to the site, and what they remove again.
//!
//! A pushed image belongs to the site. Its tag is a record like any other, signed by this node, but on the site's own
//! [word](wherry_proto::TagWord::Pushed), so that nobody asks an origin about it.

mod manifests;
mod tags;
mod uploads;

use std::net::SocketAddr;

use bytes::Bytes;
use futures::future::BoxFuture;
use wherry_gateway::server::{Ask, Push, Put, Refusal, RefusalKind, Removal, Sent};
use wherry_gateway::{Reference, TagOrDigest};
use wherry_proto::{Algorithm, Digest, Roles};

pub(super) use uploads::Uploads;

use super::{ImageError, Images, Right};
use crate::transfer::Route;

/// Which clients of the gateway are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// None.
    Nobody,
    /// Those on this machine.
    Local,
    /// All that reach the gateway.
    Anyone,
}

impl Clients {
    /// How it is written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Local => "local",
            Self::Anyone => "anyone",
        }
    }

    /// Reads what [`Clients::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Nobody, Self::Local, Self::Anyone].into_iter().find(|clients| clients.as_str() == text)
    }

    fn has(self, client: SocketAddr) -> bool {
        match self {
            Self::Nobody => false,
            // An address of IPv4 has a form of its own where it comes to a socket of IPv6.
            Self::Local => client.ip().to_canonical().is_loopback(),
            Self::Anyone => true,
        }
    }

    /// Refuses a client that is not meant; `key` is what decides it, and `what` what it wants.
    pub(super) fn check(self, client: SocketAddr, key: &str, what: &str) -> Result<(), Refusal> {
        if self.has(client) {
            return Ok(());
        }
        Err(match self {
            Self::Nobody => Refusal::new(
                RefusalKind::Unsupported,
                format!("nobody may {what} at this node: start it with --{key} local to change that"),
            ),
            _ => Refusal::new(
                RefusalKind::Denied,
                format!(
                    "only clients on the node's own machine may {what}, and this one is at {}: start the node with \
                     --{key} anyone to change that",
                    client.ip()
                ),
            ),
        })
    }
}

/// Who may change something through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushSettings {
    /// Who may push.
    pub push: Clients,
    /// Who may remove.
    pub delete: Clients,
}

impl Default for PushSettings {
    fn default() -> Self {
        Self { push: Clients::Local, delete: Clients::Nobody }
    }
}

/// Sees to it that what was pushed stays, here and at other nodes.
pub trait Keeper: Send + Sync + 'static {
    /// What has this digest was pushed under this name, and all of it is here: it is not to leave.
    fn keep(&self, name: Reference, digest: Digest) -> BoxFuture<'_, Result<(), ImageError>>;

    /// The name means it from now on, so that others can be given it. Must not wait for them.
    fn spread(&self, name: Reference, digest: Digest) -> BoxFuture<'_, ()>;

    /// What had this name was removed, or is kept under another one.
    fn let_go(&self, name: Reference) -> BoxFuture<'_, Result<(), ImageError>>;
}

impl Images {
    /// Whether a client may push here.
    pub(super) async fn may_push(&self, ask: &Ask) -> bool {
        self.pusher(ask).await.is_ok()
    }

    /// The repository of a request, as all rooms write it.
    pub(super) fn route(&self, ask: &Ask) -> Route {
        let target = TagOrDigest::Tag(wherry_gateway::Tag::latest());
        let reference = Reference::new(self.origin_of(ask), ask.repository.clone(), target);
        Route { host: reference.host().clone(), repository: reference.repository().clone() }
    }

    async fn pusher(&self, ask: &Ask) -> Result<Route, Refusal> {
        self.may_change(ask, Right::Push, self.0.parts.push.push).await?;
        Ok(self.route(ask))
    }
}

impl Push for Images {
    async fn admits(&self, ask: &Ask) -> Result<(), Refusal> {
        self.pusher(ask).await.map(drop)
    }

    async fn admits_removal(&self, ask: &Ask) -> Result<(), Refusal> {
        self.may_change(ask, Right::Delete, self.0.parts.push.delete).await
    }

    async fn begin(&self, ask: Ask, algorithm: Algorithm) -> Result<String, Refusal> {
        let route = self.pusher(&ask).await?;
        self.0.uploads.begin(&self.0.parts.store, route, algorithm).await
    }

    async fn mount(&self, ask: Ask, blob: Digest, from: Option<Ask>) -> Result<bool, Refusal> {
        let route = self.pusher(&ask).await?;
        // Whoever may push need not be able to read from there.
        let from = match from {
            Some(from) if self.may_read(&from).await.is_err() => return Ok(false),
            Some(from) => Some(self.route(&from)),
            None if self.is_verified(&route.host) => Some(route.clone()),
            None => None,
        };
        self.mount_blob(&route, blob, from.as_ref()).await
    }

    async fn append(&self, ask: Ask, sent: Sent) -> Result<u64, Refusal> {
        let route = self.pusher(&ask).await?;
        self.0.uploads.append(&route, sent).await
    }

    async fn finish(&self, ask: Ask, sent: Sent, digest: Digest) -> Result<(), Refusal> {
        let route = self.pusher(&ask).await?;
        let id = sent.id.clone();
        self.0.uploads.append(&route, sent).await?;
        let blob = self.0.uploads.finish(&route, &id, digest).await?;
        self.take_blob(&route, blob).await
    }

    async fn status(&self, ask: Ask, id: String) -> Result<u64, Refusal> {
        let route = self.pusher(&ask).await?;
        self.0.uploads.status(&route, &id)
    }

    async fn cancel(&self, ask: Ask, id: String) -> Result<(), Refusal> {
        let route = self.pusher(&ask).await?;
        self.0.uploads.cancel(&route, &id)
    }

    async fn put_manifest(
        &self,
        ask: Ask,
        target: TagOrDigest,
        media_type: Option<String>,
        bytes: Bytes,
    ) -> Result<Put, Refusal> {
        let route = self.pusher(&ask).await?;
        if target.tag().is_some() && !self.0.parts.certificate.roles.contains(Roles::RESOLVER) {
            let message = "this node may not say what tags mean, so that no other node would believe it: push to one that \
                           the operator has admitted as a resolver, or push by digest";
            return Err(Refusal::new(RefusalKind::Denied, message));
        }
        let reference = Reference::new(route.host.clone(), route.repository.clone(), target);
        self.push_manifest(&route, reference, media_type.as_deref(), bytes).await
    }

    async fn remove(&self, ask: Ask, what: Removal) -> Result<(), Refusal> {
        self.admits_removal(&ask).await?;
        let route = self.route(&ask);
        match what {
            Removal::Manifest(target) => {
                let reference = Reference::new(route.host.clone(), route.repository.clone(), target);
                self.remove_manifest(&route, reference).await
            }
            Removal::Blob(digest) => self.remove_blob(&route, digest).await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    #[test]
    fn local_are_clients_on_this_machine_however_their_address_is_written() {
        let has = |clients: Clients, address: &str| clients.has(address.parse().unwrap());
        for here in ["127.0.0.1:9", "127.8.9.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            assert!(has(Clients::Local, here) && has(Clients::Anyone, here), "{here}");
            assert!(!has(Clients::Nobody, here), "{here}");
        }
        for elsewhere in
            ["192.0.2.1:9", "[2001:db8::1]:9", "[::ffff:192.0.2.1]:9", "0.0.0.0:9", "[fe80::1]:9"]
        {
            assert!(!has(Clients::Local, elsewhere) && has(Clients::Anyone, elsewhere), "{elsewhere}");
        }
        let refusal = Clients::Local.check("192.0.2.1:9".parse().unwrap(), "push", "push").unwrap_err();
        assert!(
            refusal.kind == RefusalKind::Denied && refusal.message.contains("--push anyone"),
            "{refusal}"
        );
    }
}
