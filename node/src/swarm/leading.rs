//! Asking a peer to lead, and taking what leaders sign.

use std::time::Duration;

use tokio::time::timeout;
use wherry_proto::{
    Answer, Attempt, BlobName, CertificateError, ChunkMap, Digest, Lead, NodeId, Question, SignedStates,
    StatePrefix,
};

use super::client::{Client, ConnectError};
use super::exchange::ExchangeError;

/// How long a peer may take to say whether it leads: it may have to ask the origin first.
pub const LEAD_TIME: Duration = Duration::from_secs(8);

/// How long a peer may take to say what an origin says of a reference: it takes no longer where the origin answers at all.
pub const RESOLVE_TIME: Duration = Duration::from_secs(4);

/// Why no signed states were had of a peer.
#[derive(Debug, thiserror::Error)]
pub enum StatesError {
    /// There is no exchange with the peer.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The peer did not give them.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// They are signed by a node that is no member: the peer should not have passed them on.
    #[error("peer {node} passed on what node {signer} signed, which does not belong: {reason}")]
    Signer {
        /// The peer.
        node: NodeId,
        /// The leader.
        signer: NodeId,
        /// Why it does not belong.
        reason: CertificateError,
    },
}

impl Client {
    /// Asks a neighbour to fetch a blob from an origin's repository, which this node cannot do itself. `None` if it does
    /// not answer within [`LEAD_TIME`], is not connected, or if the names are longer than any that are valid.
    pub async fn lead(&self, node: NodeId, blob: BlobName, origin: &str, repository: &str) -> Option<Lead> {
        let (origin, repository) = (origin.parse().ok()?, repository.parse().ok()?);
        let entry = self.0.neighbours.get(&node)?;
        let question = Question::Lead { blob, origin, repository };
        match timeout(LEAD_TIME, entry.ask(question)).await {
            Ok(Some(Answer::Lead(lead))) => Some(lead),
            _ => None,
        }
    }

    /// Takes what the leader of a reading has signed from a peer that follows or leads, with the states behind those of
    /// `before`; see [`Exchange::states`](super::Exchange::states). The leader is a member, be it connected or not.
    pub async fn states(
        &self,
        node: NodeId,
        digest: Digest,
        map: ChunkMap,
        attempt: Attempt,
        before: &StatePrefix,
    ) -> Result<SignedStates, StatesError> {
        let exchange = self.exchange(node).await?;
        let signed = exchange.states(digest, map, attempt, before).await?;
        let signer = signed.claim.signer;
        let door = self.0.door.as_ref().ok_or(ConnectError::NotConnected(node))?;
        let keeper = &door.keeper;
        signed
            .certificate
            .check(&keeper.network, &signer, keeper.now(), keeper.min_epoch)
            .map_err(|reason| StatesError::Signer { node, signer, reason })?;
        Ok(signed)
    }
}
