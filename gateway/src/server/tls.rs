//! TLS for clients of the gateway.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// What the gateway shows to its clients. Made once; a certificate that is renewed counts after a restart.
#[derive(Clone)]
pub struct ServerTls(TlsAcceptor);

/// Why a certificate cannot be shown to clients.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has not what it should.
    #[error("{path} cannot be used: {why}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl ServerTls {
    /// With the certificate in one PEM file, those that lead to its authority behind it, and the key in another.
    ///
    /// # Errors
    /// When one cannot be read, or they do not belong together.
    pub fn new(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
        };
        let bad = |path: &Path, why: String| TlsError::Bad { path: path.to_owned(), why };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(certificate)?).collect();
        let chain = chain.map_err(|error| bad(certificate, error.to_string()))?;
        if chain.is_empty() {
            return Err(bad(certificate, "there is no certificate in it".to_owned()));
        }
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
            .map_err(|error| bad(key, format!("there is no private key in it that can be read: {error}")))?;
        // Whoever has installed a provider before has chosen it for the whole process.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(|error| bad(certificate, error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(super) const fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls(…)")
    }
}
