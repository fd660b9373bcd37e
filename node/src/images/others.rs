//! What this node asks an origin on behalf of other nodes, and which origins it asks nothing for them.
//!
//! An origin for which this node has credentials is not asked for others at all, unless its access is
//! [`Members`](super::Access::Members): what it gives to this node is not everybody's.

use tracing::debug;
use wherry_gateway::Reference;
use wherry_gateway::origin::OriginError;
use wherry_proto::{Digest, LeadRefusal, List, MAX_MANIFEST_TOLD, Resolution, TagWord};

use super::{ImageError, Images, blocking};
use crate::transfer::Route;

impl Images {
    /// What a node of the site is told that asked this one to ask the origin. `None` as well for an origin for which this
    /// node has credentials that are not for all members.
    pub async fn resolve_for(&self, reference: &Reference) -> Option<Resolution> {
        let is_for_members = self.is_for_members(reference.host());
        if !is_for_members
            && self.0.parts.origins.has_credentials(reference.host(), reference.repository()).await
        {
            debug!(%reference, "is not resolved for another node: this one has credentials for the origin");
            return None;
        }
        let manifest = match self.resolved(reference, true).await {
            Ok(resolved) => resolved.manifest,
            Err(error) => {
                debug!(%reference, %error, "cannot resolve for another node");
                return None;
            }
        };
        let (images, reference) = (self.clone(), reference.clone());
        let record = tokio::task::spawn_blocking(move || images.vouch(&reference)).await.ok()??;
        // It may mean something else by now, or nothing.
        let is_it = record.word != TagWord::Removed
            && *manifest.digest() == record.digest
            && manifest.raw().len() <= MAX_MANIFEST_TOLD;
        let manifest = is_it.then(|| List::first_of(manifest.raw().iter().copied()));
        Some(Resolution { record, manifest })
    }

    /// Whether this node reads a blob from an origin for another node, and why not. The origin is asked, and nothing is
    /// reserved:
    ///
    /// - The origin is the default one, is configured, or has a repository of this name that this node knows already: a
    ///   member must not send this node anywhere else.
    /// - This node has no credentials for it, or they are for all members.
    /// - It has the blob, of the very length that was asked for: whoever names a false one would have the store make room
    ///   for bytes that do not exist.
    pub async fn may_read_for_others(
        &self,
        route: &Route,
        digest: Digest,
        size: u64,
    ) -> Result<(), LeadRefusal> {
        let Route { host, repository } = route;
        let origins = &self.0.parts.origins;
        let is_known = host == self.default_origin() || origins.is_configured(host) || {
            let (records, route) = (self.0.records.clone(), route.clone());
            let knows = blocking(move || Ok(records.knows(&route.host, &route.repository)?)).await;
            knows.unwrap_or_else(|error| {
                debug!(%error, "the index does not tell whether a repository is known");
                false
            })
        };
        if !is_known {
            return Err(LeadRefusal::NoRoute);
        }
        if !self.is_for_members(host) && origins.has_credentials(host, repository).await {
            return Err(LeadRefusal::NotForYou);
        }
        match self.origins_length(route, digest).await {
            Ok(length) if length == size => Ok(()),
            Ok(length) => {
                debug!(blob = %digest.short(), %route, length, asked = size, "another node asks for a false length");
                Err(LeadRefusal::NoRoute)
            }
            Err(error) => {
                debug!(blob = %digest.short(), %route, %error, "the origin gives nothing for another node");
                Err(match error {
                    ImageError::Unknown { origin, .. }
                        if matches!(*origin, OriginError::Unauthorized { .. }) =>
                    {
                        LeadRefusal::NoCredentials
                    }
                    _ => LeadRefusal::NoRoute,
                })
            }
        }
    }
}
