//! TLS of the bulk plane: both ends prove the node keys that libp2p knows them by.
//!
//! The certificates are libp2p's: self-signed by a fresh key, with the node's key and its signature in an
//! extension. Only TLS 1.3, no resumption, no early data, a protocol name of its own.

use std::sync::Arc;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use wherry_proto::NodeId;

use super::identity::{node_of, peer_of};

/// The name of the bulk plane's protocol in the TLS handshake.
const ALPN: &[u8] = b"wherry-bulk/1";

/// Makes the configurations of both sides.
pub(super) struct Tls {
    certificate: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    server: Arc<ServerConfig>,
}

impl Tls {
    pub(super) fn new(keypair: &Keypair) -> Result<Self, String> {
        let (certificate, key) = libp2p_tls::certificate::generate(keypair).map_err(|e| e.to_string())?;
        let key = ring::sign::any_supported_type(&key).map_err(|e| e.to_string())?;
        let certificate = Arc::new(CertifiedKey::new(vec![certificate], key));
        let provider = Arc::new(provider());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| e.to_string())?
            .with_client_cert_verifier(Arc::new(Verifier { expected: None }))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&certificate))));
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.max_early_data_size = 0;
        // The side that accepts decides, by what its processor does best.
        server.ignore_client_order = true;
        Ok(Self { certificate, provider, server: Arc::new(server) })
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For a connection to this very node.
    pub(super) fn client(&self, node: &NodeId) -> Result<Arc<ClientConfig>, Error> {
        let expected = peer_of(node).ok_or(Error::General("the node's key is impossible".into()))?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { expected: Some(expected) }))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.certificate))));
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        client.enable_early_data = false;
        client.enable_sni = false;
        Ok(Arc::new(client))
    }
}

/// The node that a verified TLS session ends at; `None` if the peer has not both proved a key and agreed on the
/// bulk plane's protocol.
pub(super) fn peer(session: &rustls::CommonState) -> Option<NodeId> {
    if session.alpn_protocol() != Some(ALPN) {
        return None;
    }
    let [certificate] = session.peer_certificates()? else { return None };
    node_of(&libp2p_tls::certificate::parse(certificate).ok()?.peer_id())
}

/// AES first where the processor has instructions for it, ChaCha20 first where not. ring's AES-GCM uses the wide AES
/// instructions of processors without AVX-512 too; of those it encrypts 1.9 times as fast as aws-lc, as measured.
fn provider() -> CryptoProvider {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256 as AES_128, TLS13_AES_256_GCM_SHA384 as AES_256,
        TLS13_CHACHA20_POLY1305_SHA256 as CHACHA20,
    };
    let mut provider = ring::default_provider();
    provider.cipher_suites =
        if has_aes() { vec![AES_128, AES_256, CHACHA20] } else { vec![CHACHA20, AES_128, AES_256] };
    provider
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// Checks the certificate by which libp2p binds a TLS key to a node's key.
#[derive(Debug)]
struct Verifier {
    expected: Option<PeerId>,
}

/// The one scheme of the keys that libp2p's certificates are made with here, and the other that they may have.
const SCHEMES: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519];

impl Verifier {
    fn check(&self, certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !others.is_empty() {
            return Err(Error::General("one certificate was expected, a chain came".into()));
        }
        let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let peer = libp2p_tls::certificate::parse(certificate).map_err(bad)?.peer_id();
        match self.expected {
            Some(expected) if expected != peer => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            _ => Ok(()),
        }
    }
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
    let wrong = |_| Error::InvalidCertificate(CertificateError::BadSignature);
    let certificate = libp2p_tls::certificate::parse(certificate).map_err(bad)?;
    certificate.verify_signature(signed.scheme, message, signed.signature()).map_err(wrong)?;
    Ok(HandshakeSignatureValid::assertion())
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
