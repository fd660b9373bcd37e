//! The client of origins: the cloud registries that images come from.
//!
//! [`Origins`] fetches manifests and blobs from any registry, with whatever credentials this machine's own
//! files have for it. Manifests come back parsed and, if asked for by digest, checked; blobs come back as they
//! are sent, starting exactly where they were asked for, and it is for the caller to verify them and to
//! resume after an interruption.
//!
//! Everything an origin sends is bounded: a manifest ([`MAX_MANIFEST`](crate::manifest::MAX_MANIFEST)), an
//! error ([`MAX_ERROR_BODY`]), a token ([`MAX_TOKEN`]), the redirects ([`MAX_REDIRECTS`]), the silence
//! before an answer and within one, and the attempts. HTTP/1.1 only: blobs that are fetched side by side have
//! connections of their own, so that one lost packet holds up one of them.

mod admits;
mod answered;
mod auth;
mod blob;
mod challenge;
mod clients;
mod counted;
mod credentials;
mod error;
mod http;
mod manifest;
mod mirrors;
mod pace;
mod publish;
mod realm;
mod referrers;
mod retry;
mod scheme;
mod settings;
mod token;

pub use admits::Admission;
pub use blob::BlobStream;
pub use challenge::{Challenge, parse_challenge};
pub use clients::{ClientCertificate, check_authorities, check_client_certificate};
pub use credentials::{Credential, CredentialSources, Login, Secret};
pub use error::OriginError;
pub use manifest::{ManifestHead, describe};
pub use mirrors::{LeftAlone, Mirror};
pub use publish::{Publisher, Publishing};
pub use settings::{HostSettings, OriginSettings, SettingsError};

use crate::name::{Host, Repository};

/// The most of an error's body that is read, in bytes.
pub const MAX_ERROR_BODY: usize = 1 << 20;

/// The longest answer of a token server, in bytes.
pub const MAX_TOKEN: usize = 128 << 10;

/// The most redirects that one request follows.
pub const MAX_REDIRECTS: usize = 10;

/// A client of all origins. Cheap to clone; clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct Origins {
    http: std::sync::Arc<http::Http>,
}

impl Origins {
    /// A client with these settings. Reads the CA files and the system's certificates now; credentials are
    /// read when a registry asks for them, so a later `docker login` counts.
    pub fn new(settings: OriginSettings) -> Result<Self, SettingsError> {
        Ok(Self { http: std::sync::Arc::new(http::Http::new(settings)?) })
    }

    /// Whether the settings name this host, be it for its credentials, its token server, as one that speaks plain
    /// HTTP, or for anything else that is its own.
    pub fn is_configured(&self, host: &Host) -> bool {
        let settings = &self.http.settings;
        settings.insecure.contains(host)
            || settings.credentials.explicit.iter().any(|(known, _)| known == host)
            || settings.credentials.logins.iter().any(|(known, _)| known == host)
            || settings.hosts.iter().any(|(known, _)| known == host)
            || settings.trusted_realms.iter().any(|(registry, _)| registry == host)
    }

    /// When an origin last answered anything, whatever that was, but that it has a fault of its own; `None` if it has not
    /// done so yet, or so many others have since that it is forgotten.
    pub fn answered(&self, host: &Host) -> Option<std::time::Instant> {
        self.http.answered.of(host)
    }

    /// Whether this node's own credentials, or its certificate, would be used for a repository if its registry asked for some. Where a file
    /// or helper cannot be read now, it may hold some.
    pub async fn has_credentials(&self, host: &Host, repository: &Repository) -> bool {
        let settings = &self.http.settings;
        if settings.hosts.iter().any(|(known, its)| known == host && its.client.is_some()) {
            return true;
        }
        let found = settings.credentials.find(host, repository).await;
        found.credential.is_some() || !found.problems.is_empty()
    }

    /// How fast this node reads blobs from an origin, in bytes a second, if that is set.
    pub fn rate(&self, host: &Host) -> Option<u64> {
        let own = self.http.settings.hosts.iter().find(|(known, _)| known == host);
        own.and_then(|(_, its)| its.rate)
    }

    /// How many manifests each origin that counts them still gives, as it said last.
    pub fn remaining(&self) -> Vec<(Host, u64)> {
        self.http.remaining.all()
    }

    /// The mirrors that are left alone now.
    pub fn left_alone(&self) -> Vec<LeftAlone> {
        self.http.mirrors.left_alone()
    }

    /// Something came of a blob that is not what its digest or length says: mirrors are not asked for it next.
    pub fn doubt(&self, host: &Host, digest: &wherry_proto::Digest) {
        self.http.mirrors.doubt(host, digest);
    }
}
