//! What goes wrong with origins.

use std::time::Duration;

use crate::manifest::ManifestError;
use crate::server::{Refusal, RefusalKind};

/// Why an origin did not give what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OriginError {
    /// It could not be reached, did not answer in time, or has a fault of its own (5xx): what it holds is
    /// unknown. Every attempt that the settings allow was made.
    #[error("the origin {host} cannot be reached to get {what}: {why}")]
    Unreachable {
        /// The origin.
        host: String,
        /// What was asked for.
        what: String,
        /// Why not.
        why: String,
    },
    /// It wants other credentials than it was given, or any at all.
    #[error("the origin {host} does not give {what} to this node: {why}")]
    Unauthorized {
        /// The origin.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said, and where credentials were looked for.
        why: String,
    },
    /// It does not have it.
    #[error("the origin {host} has no {what}")]
    NotFound {
        /// The origin.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// It was asked too often.
    #[error("the origin {host} limits how often it is asked and did not give {what}{}", wait(.retry_after))]
    RateLimited {
        /// The origin.
        host: String,
        /// What was asked for.
        what: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// It answered with something that the protocol does not allow. Asking again is of no use.
    #[error("the origin {host} gave a wrong answer for {what}: {why}")]
    BadAnswer {
        /// The origin.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// It sent bytes that are not an acceptable manifest.
    #[error("the origin {host} gave an unacceptable {what}: {source}")]
    Manifest {
        /// The origin.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A blob's stream ended or paused for too long before the blob was complete. What was received is good
    /// as far as it goes; ask again from `received`.
    #[error("the origin {host} stopped sending {what} at byte {received}{}: {why}", of(.total))]
    Interrupted {
        /// The origin.
        host: String,
        /// What was asked for.
        what: String,
        /// How far into the blob it got, in bytes from the blob's start.
        received: u64,
        /// The blob's length, if the origin told.
        total: Option<u64>,
        /// What happened.
        why: String,
    },
}

fn wait(retry_after: &Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!(": it asks to wait {} s", wait.as_secs().max(1)),
        None => String::new(),
    }
}

fn of(total: &Option<u64>) -> String {
    total.map_or_else(String::new, |total| format!(" of {total}"))
}

impl OriginError {
    /// Whether nothing is known of what the origin holds, so that an older answer may stand in.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::RateLimited { .. } | Self::Interrupted { .. })
    }
}

/// What a gateway's client is told if an origin's answer was its only hope. [`OriginError::NotFound`] becomes
/// `MANIFEST_UNKNOWN`; for a blob the caller says so itself.
impl From<OriginError> for Refusal {
    fn from(error: OriginError) -> Self {
        let kind = match &error {
            OriginError::Unreachable { .. } | OriginError::Interrupted { .. } => RefusalKind::Unavailable,
            // Not 401: the credentials that the origin wants are this node's, and a client that sent its own
            // would not be helped.
            OriginError::Unauthorized { .. } => RefusalKind::Denied,
            OriginError::NotFound { .. } => RefusalKind::ManifestUnknown,
            OriginError::RateLimited { .. } => RefusalKind::TooManyRequests,
            OriginError::BadAnswer { .. } => RefusalKind::BadOrigin,
            OriginError::Manifest { .. } => RefusalKind::ManifestInvalid,
        };
        let retry_after = match &error {
            OriginError::RateLimited { retry_after, .. } => *retry_after,
            _ => None,
        };
        Self { retry_after, ..Self::new(kind, error.to_string()) }
    }
}
