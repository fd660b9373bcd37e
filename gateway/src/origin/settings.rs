//! How origins are reached.

use std::path::PathBuf;
use std::time::Duration;

use super::{ClientCertificate, CredentialSources, Mirror};
use crate::name::Host;

/// How origins are reached. Every field has a default.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OriginSettings {
    /// Hosts that are spoken to over plain HTTP. All others are spoken to over HTTPS, and only so.
    pub insecure: Vec<Host>,
    /// PEM files with certificates of authorities that are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Where credentials are found. Nowhere by default.
    pub credentials: CredentialSources,
    /// Token servers that a registry may send this node's credentials to although they are neither on its own
    /// host nor in its domain: (registry, token server).
    pub trusted_realms: Vec<(Host, Host)>,
    /// What is different for some origins. Of several entries for one the first counts, but for mirrors.
    pub hosts: Vec<(Host, HostSettings)>,
    /// For making a connection. 10 s by default.
    pub connect_timeout: Duration,
    /// From sending a request to the headers of its answer. 30 s by default.
    pub header_timeout: Duration,
    /// How long an answer may pause. 30 s by default.
    pub stall_timeout: Duration,
    /// How often one request is tried in all, if it fails in a way that may pass. 3 by default, at least 1.
    pub attempts: u32,
    /// The first pause between attempts; each further one is twice as long. Up to half of it is taken off at
    /// random, so that nodes that failed together do not come back together. 500 ms by default.
    pub first_retry: Duration,
    /// The longest pause between attempts. If an origin asks for a longer one, the request fails at once and
    /// the error says how long to wait. 10 s by default.
    pub max_retry: Duration,
}

/// What is different for one origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// Registries that are asked before the origin itself, in this order. What they give is checked as everything is; a tag
    /// means what the first of them says that has it.
    pub mirrors: Vec<Mirror>,
    /// PEM files with certificates of authorities that are trusted for this origin, besides all others, and for whatever
    /// it sends on to.
    pub ca_files: Vec<PathBuf>,
    /// What this node shows when the origin asks for a certificate. Nobody else is shown it.
    pub client: Option<ClientCertificate>,
    /// The most bytes of blobs a second that are read from it by this node. Mirrors have their own.
    pub rate: Option<u64>,
}

impl Default for OriginSettings {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            ca_files: Vec::new(),
            credentials: CredentialSources::default(),
            trusted_realms: Vec::new(),
            hosts: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            attempts: 3,
            first_retry: Duration::from_millis(500),
            max_retry: Duration::from_secs(10),
        }
    }
}

/// Why there is no client with such settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A file of certificates cannot be read.
    #[error("the CA file {path} cannot be read: {source}")]
    ReadCa {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has no certificate that can be used.
    #[error("the CA file {path} has no usable certificate ({why}): expected PEM with BEGIN CERTIFICATE")]
    BadCa {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file of a client's certificate cannot be read.
    #[error("the file {path} of a client certificate cannot be read: {source}")]
    ReadIdentity {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The files of a client's certificate are of no use.
    #[error("the client certificate {certificate} with the key {key} cannot be used: {why}")]
    BadIdentity {
        /// The file of the certificate.
        certificate: PathBuf,
        /// That of the key.
        key: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The HTTP client refuses to start.
    #[error("the client of origins cannot be set up: {0}")]
    Client(String),
}
