//! What a reference comes to, and on whose word.

use std::time::Duration;

use wherry_gateway::Manifest;
use wherry_gateway::server::Source;

use super::TagPolicy;

/// A manifest and how it was come by.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The manifest.
    pub manifest: Manifest,
    /// Where the answer came from.
    pub source: Source,
    /// How long ago an origin confirmed the tag; `None` if none ever did, and for a digest, which cannot age.
    pub age: Option<Duration>,
    /// Why no origin was asked what the tag means, or none said it; `None` if one did, and for a digest.
    pub unasked: Option<Unasked>,
}

/// Why what a tag means does not come from its origin now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// The site asked it a short time ago.
    #[error("the registry was not asked again so soon")]
    Lately,
    /// The site's own word counts, since the image was pushed to it.
    #[error("it was pushed to this site, and no registry is asked about it until the tag is removed")]
    Pushed,
    /// The site's answer is to serve as long as it has one.
    #[error("no registry is asked while the site knows it, by the tag policy {0}")]
    Policy(TagPolicy),
    /// It gives no answer.
    #[error("the registry does not say: {0}")]
    Silent(String),
}

impl Unasked {
    /// Whether no origin is asked on demand either.
    pub const fn is_settled(&self) -> bool {
        matches!(self, Self::Pushed | Self::Policy(TagPolicy::Frozen))
    }
}
