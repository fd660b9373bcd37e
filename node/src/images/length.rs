//! How long a blob is of which this node has seen no manifest yet, or a manifest.
//!
//! A length is needed before anything can be stored, and whoever names a false one would have the store make room for
//! bytes that do not exist. So no length is believed because a neighbour says it: the blob's last chunk proves it,
//! since the digest is reached with no other, and until then nothing is reserved.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{Either, ready, select};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::debug;
use wherry_gateway::origin::OriginError;
use wherry_proto::{ChunkMap, Digest, End, NodeId, link};

use super::{ImageError, Images, PEERS_PATIENCE, blocking};
use crate::swarm::LinkClass;
use crate::transfer::planner::Scope;
use crate::transfer::{Found, PeerError, Route};

/// From how many peers at once a last chunk is asked; each takes at most one chunk and one chain of memory.
const PROVERS: usize = 8;

/// How long those of one kind are asked before others are who are farther away: each has its part of [`PEERS_PATIENCE`].
const SCOPE_PATIENCE: Duration = Duration::from_millis(1_500);

/// How long peers are asked before the origin is asked too: nodes of a site answer within milliseconds.
const HEAD_START: Duration = Duration::from_secs(1);

/// How long the origin is waited for while peers may know: clients give up after 10 s.
const ORIGIN_PATIENCE: Duration = Duration::from_secs(4);

impl Images {
    /// The length of a blob of which neighbours say that it belongs to the repository: what a peer proves, or what
    /// the origin says if that comes first.
    pub(super) async fn length(&self, route: &Route, digest: Digest) -> Result<u64, ImageError> {
        let proof = pin!(timeout(PEERS_PATIENCE, self.proven_length(digest, u64::MAX)));
        let origin = pin!(async {
            if let Some(origin) = self.is_down(&route.host, format!("blob {digest}")) {
                return Err(unknown(route, digest, origin));
            }
            sleep(HEAD_START).await;
            timeout(ORIGIN_PATIENCE, self.origins_length(route, digest)).await.unwrap_or_else(|_| {
                let origin = OriginError::Unreachable {
                    host: route.host.to_string(),
                    what: format!("blob {digest}"),
                    why: format!("it gave no answer within {} s", ORIGIN_PATIENCE.as_secs()),
                };
                self.note_down(&route.host, &origin);
                Err(unknown(route, digest, origin))
            })
        });
        match select(proof, origin).await {
            Either::Left((Ok(Some(size)), _)) | Either::Right((Ok(size), _)) => Ok(size),
            Either::Left((_, origin)) => origin.await,
            Either::Right((Err(error), proof)) => proof.await.ok().flatten().ok_or(error),
        }
    }

    /// The blob's length as the origin says.
    pub(super) async fn origins_length(&self, route: &Route, digest: Digest) -> Result<u64, ImageError> {
        let asked = self.0.parts.origins.blob_length(&route.host, &route.repository, &digest).await;
        let told = asked.map_err(|origin| {
            self.note_down(&route.host, &origin);
            unknown(route, digest, origin)
        })?;
        told.ok_or_else(|| {
            let origin = OriginError::BadAnswer {
                host: route.host.to_string(),
                what: format!("blob {digest}"),
                why: "it does not say how long the blob is".to_owned(),
            };
            unknown(route, digest, origin)
        })
    }

    /// The first length, of at most `most` bytes, that a peer proves; `None` when none of them can. Those farther away are asked
    /// once nobody nearer does.
    pub(super) async fn proven_length(&self, digest: Digest, most: u64) -> Option<u64> {
        let limits = self.0.parts.transfers.limits();
        let peers = &self.0.parts.peers;
        for scope in [Scope::Site, Scope::OtherSites, Scope::Network] {
            let offers = peers.search(digest, scope).filter_map(|found| {
                ready(match found {
                    Found { class: LinkClass::Wan, .. } if limits.limited().is_some() => None,
                    Found { node, size, arriving: None, class } if size <= most => Some((node, class, size)),
                    _ => None,
                })
            });
            let proofs = offers.map(async |(node, class, size)| match self.prove(node, digest, size).await {
                Ok(len) => {
                    if class == LinkClass::Wan {
                        limits.count(len);
                    }
                    Some(size)
                }
                Err(why) => {
                    debug!(blob = %digest.short(), peer = %node, size, why, "a peer does not prove the blob's length");
                    None
                }
            });
            let mut proven = pin!(proofs.buffer_unordered(PROVERS).filter_map(ready));
            if let Ok(Some(size)) = timeout(SCOPE_PATIENCE, proven.next()).await {
                return Some(size);
            }
        }
        None
    }

    /// Takes the last chunk of a blob that is said to be of this length, and looks whether it leads to the digest.
    /// Returns how many bytes that took.
    async fn prove(&self, node: NodeId, digest: Digest, size: u64) -> Result<u64, String> {
        let peers = &self.0.parts.peers;
        let map = ChunkMap::new(size).map_err(|error| error.to_string())?;
        let from =
            peers.chain(node, digest, size, None).await.map_err(|error| error.to_string())?.from(map.last());
        let bytes = loop {
            match peers.chunk(node, digest, map, map.last(), oneshot::channel().0).await {
                Ok(bytes) => break bytes,
                Err(PeerError::Busy) => peers.ready(node).await,
                Err(why) => return Err(why.to_string()),
            }
        };
        let linked = blocking(move || Ok(link(&map, map.last(), from, &bytes))).await;
        match linked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?.to {
            End::Digest(reached) if reached == digest => Ok(u64::from(map.len(map.last()))),
            _ => {
                peers.unlinked(node, digest, map, map.last()).await;
                Err("its last chunk does not lead to the digest".to_owned())
            }
        }
    }
}

fn unknown(route: &Route, digest: Digest, origin: OriginError) -> ImageError {
    ImageError::Unknown { what: format!("blob {digest} of {route}"), origin: Box::new(origin) }
}
