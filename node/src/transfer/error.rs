//! Why a blob does not come.

use std::sync::Arc;
use std::time::Duration;

use wherry_proto::{Digest, TooLarge};

use super::planner::Failure;
use super::routes::Routes;
use super::{MAX_TRANSFERS, Route};
use crate::limits::{Limited, Limits};
use crate::store::StoreError;

/// Why a blob cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransferError {
    /// Nobody who was asked could give it.
    #[error("{}", no_source_text(.origins, .failure))]
    NoSource {
        /// The origins that should have it.
        origins: Vec<String>,
        /// What they and the peers said.
        failure: Box<Failure>,
        /// The origin that was out of reach, so that it may give the blob at another time, and why.
        away: Option<Box<(Route, String)>>,
    },
    /// The origin sends other bytes than the digest's.
    #[error(
        "{} sent bytes with the digest {found} instead of those that were asked for; nothing of them was kept. \
         The registry or a proxy before it is damaged: try again, or push the image anew",
        .origins.join(", ")
    )]
    OriginWrong {
        /// The origins that were read.
        origins: Vec<String>,
        /// The digest of what they sent.
        found: Digest,
    },
    /// The store cannot take it.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The blob is larger than wherry carries.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// What is missing would have to come from outside the site, and a limit says no. The transfer goes on when it ends.
    #[error("{why}")]
    Limited {
        /// The limit.
        limited: Limited,
        /// The same in plain words, and what can be done.
        why: String,
        /// When it is worth asking again.
        wait: Duration,
    },
    /// There are [`MAX_TRANSFERS`] transfers already.
    #[error("{MAX_TRANSFERS} blobs are on their way already; ask again when some have arrived")]
    Full,
    /// The node is shutting down. What has arrived is kept for the next start.
    #[error("the node is shutting down; what has arrived is kept")]
    Stopped,
    /// Somebody had it stopped. What has arrived is kept.
    #[error("it was stopped by 'wherry cancel'; what has arrived is kept")]
    Cancelled,
}

fn no_source_text(origins: &[String], failure: &Failure) -> String {
    let mut text = match (&failure.origin, origins) {
        (Some(why), _) => format!("{} cannot give it: {why}", origins.join(", ")),
        (None, []) => "no origin is known for it".to_owned(),
        (None, _) => format!("{} cannot give it", origins.join(", ")),
    };
    if failure.peers.is_empty() {
        text.push_str("; no peer that can be reached holds it");
    }
    for (node, why) in &failure.peers {
        text.push_str(&format!("; peer {node}: {why}"));
    }
    text
}

impl TransferError {
    pub(crate) fn store(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }

    /// What a client is told that would have to wait for a limit.
    pub(crate) fn limited(limits: &Limits, limited: Limited) -> Self {
        Self::Limited { limited, why: limits.explain(&limited), wait: limits.wait(&limited) }
    }

    pub(super) fn no_source(routes: &Routes, failure: Failure) -> Self {
        match failure.origin_digest {
            Some(found) if failure.origin.is_none() => {
                Self::OriginWrong { origins: routes.wrong().to_vec(), found }
            }
            wrong => {
                // What has sent wrong bytes is not waited for.
                let away = routes.away().filter(|_| wrong.is_none());
                let away = away.map(|(route, why)| Box::new((route.clone(), why.to_owned())));
                Self::NoSource { origins: routes.names(), failure: Box::new(failure), away }
            }
        }
    }
}
