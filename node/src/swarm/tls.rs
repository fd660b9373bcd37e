//! TLS of the bulk plane: both ends prove the node keys that libp2p knows them by.
//!
//! The certificates are libp2p's: self-signed by a fresh key, with the node's key and its signature in an
//! extension. Only TLS 1.3, no resumption, no early data, a protocol name of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use libp2p::identity::Keypair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use wherry_proto::{Digest, NodeId};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use super::identity::{node_of, peer_of};

/// The name of the bulk plane's protocol in the TLS handshake.
const ALPN: &[u8] = b"wherry-bulk/1";

/// The longest certificate that is looked at, in bytes: a node's has about 400.
const MAX_CERTIFICATE_LEN: usize = 2048;

/// How many certificates are remembered that were found good, each with a key that is shorter than it: 2 MiB of these
/// at most.
const MAX_PROOFS: usize = 1024;

/// Makes the configurations of both sides.
pub(super) struct Tls {
    certificate: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    server: Arc<ServerConfig>,
    proofs: Proofs,
}

impl Tls {
    pub(super) fn new(keypair: &Keypair) -> Result<Self, String> {
        let (certificate, key) = libp2p_tls::certificate::generate(keypair).map_err(|e| e.to_string())?;
        let key = ring::sign::any_supported_type(&key).map_err(|e| e.to_string())?;
        Self::with(CertifiedKey::new(vec![certificate], key))
    }

    fn with(certificate: CertifiedKey) -> Result<Self, String> {
        let certificate = Arc::new(certificate);
        let provider = Arc::new(provider());
        let proofs = Proofs::new(&provider);
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| e.to_string())?
            .with_client_cert_verifier(Arc::new(Verifier { expected: None, proofs: proofs.clone() }))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&certificate))));
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.max_early_data_size = 0;
        // The side that accepts decides, by what its processor does best.
        server.ignore_client_order = true;
        Ok(Self { certificate, provider, server: Arc::new(server), proofs })
    }

    pub(super) const fn proofs(&self) -> &Proofs {
        &self.proofs
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
            .with_custom_certificate_verifier(Arc::new(Verifier {
                expected: Some(expected),
                proofs: self.proofs.clone(),
            }))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.certificate))));
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        client.enable_early_data = false;
        client.enable_sni = false;
        Ok(Arc::new(client))
    }
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

/// What a good certificate proves.
#[derive(Debug)]
struct Proof {
    peer: PeerId,
    // The key that its bearer signs the handshake with.
    key: SubjectPublicKeyInfoDer<'static>,
    until: ASN1Time,
}

/// The certificates that were found good, by their digests: each takes two signatures to check, a handshake asks for it three
/// times, and where a site begins at once each node shakes hands with dozens, both ways. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Proofs(Arc<Proven>);

#[derive(Debug)]
struct Proven {
    proofs: Mutex<HashMap<Digest, Arc<Proof>>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Proofs {
    fn new(provider: &CryptoProvider) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self(Arc::new(Proven { proofs: Mutex::default(), algorithms }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Proof>>> {
        self.0.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a certificate of libp2p's proves, if it is good.
    fn of(&self, certificate: &CertificateDer<'_>) -> Result<Arc<Proof>, Error> {
        let bad = || Error::InvalidCertificate(CertificateError::BadEncoding);
        if certificate.len() > MAX_CERTIFICATE_LEN {
            return Err(bad());
        }
        let digest = Digest::sha256(certificate);
        let known = self.lock().get(&digest).cloned();
        if let Some(proof) = known.filter(|proof| ASN1Time::now() <= proof.until) {
            return Ok(proof);
        }
        let peer = libp2p_tls::certificate::parse(certificate).map_err(|_| bad())?.peer_id();
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad())?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw.to_vec());
        let proof = Arc::new(Proof { peer, key, until: parsed.validity().not_after });
        let mut proven = self.lock();
        // Whoever comes with ever new ones makes the others be checked once more, and no worse.
        if proven.len() >= MAX_PROOFS {
            proven.clear();
        }
        proven.insert(digest, Arc::clone(&proof));
        Ok(proof)
    }

    /// The node that a verified TLS session ends at; `None` if the peer has not both proved a key and agreed on the
    /// bulk plane's protocol.
    pub(super) fn peer(&self, session: &rustls::CommonState) -> Option<NodeId> {
        if session.alpn_protocol() != Some(ALPN) {
            return None;
        }
        let [certificate] = session.peer_certificates()? else { return None };
        node_of(&self.of(certificate).ok()?.peer)
    }
}

/// Checks the certificate by which libp2p binds a TLS key to a node's key.
#[derive(Debug)]
struct Verifier {
    expected: Option<PeerId>,
    proofs: Proofs,
}

/// The one scheme of the keys that libp2p's certificates are made with here, and the other that they may have.
const SCHEMES: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519];

impl Verifier {
    fn check(&self, certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !others.is_empty() {
            return Err(Error::General("one certificate was expected, a chain came".into()));
        }
        let peer = self.proofs.of(certificate)?.peer;
        match self.expected {
            Some(expected) if expected != peer => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            _ => Ok(()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !SCHEMES.contains(&signed.scheme) {
            return Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let proof = self.proofs.of(certificate)?;
        verify_tls13_signature_with_raw_key(message, &proof.key, signed, &self.proofs.0.algorithms)
    }
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
        self.check_signature(message, cert, dss)
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
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keypair(seed: u8) -> Keypair {
        Keypair::ed25519_from_bytes([seed; 32]).unwrap()
    }

    fn certificate(seed: u8) -> (PeerId, CertificateDer<'static>) {
        let keypair = keypair(seed);
        (keypair.public().to_peer_id(), libp2p_tls::certificate::generate(&keypair).unwrap().0)
    }

    /// Whom each side finds at the other end, if anybody: the side that accepts, and the one that connects to `node`.
    async fn meet(server: &Tls, client: &Tls, node: NodeId) -> (Option<NodeId>, Option<NodeId>) {
        let (near, far) = tokio::io::duplex(64 << 10);
        let accept = tokio_rustls::TlsAcceptor::from(server.server()).accept(near);
        let config = client.client(&node).unwrap();
        let connect =
            tokio_rustls::TlsConnector::from(config).connect("node.invalid".try_into().unwrap(), far);
        let (accepted, connected) = futures::future::join(Box::pin(accept), Box::pin(connect)).await;
        (
            accepted.ok().and_then(|stream| server.proofs().peer(stream.get_ref().1)),
            connected.ok().and_then(|stream| client.proofs().peer(stream.get_ref().1)),
        )
    }

    #[tokio::test]
    async fn whoever_shows_anothers_certificate_and_has_not_its_key_is_nobody_however_well_that_is_known() {
        let nodes = [1, 2].map(|seed| node_of(&keypair(seed).public().to_peer_id()).unwrap());
        let (one, two) = (Tls::new(&keypair(1)).unwrap(), Tls::new(&keypair(2)).unwrap());
        let certificate = two.certificate.cert.clone();
        let thief = Tls::with(CertifiedKey::new(certificate, Arc::clone(&one.certificate.key))).unwrap();
        for _ in 0..2 {
            assert_eq!(meet(&one, &two, nodes[0]).await, (Some(nodes[1]), Some(nodes[0])));
            assert_eq!(meet(&two, &one, nodes[1]).await, (Some(nodes[0]), Some(nodes[1])));
            assert_eq!(meet(&one, &thief, nodes[0]).await.0, None);
            assert_eq!(meet(&thief, &one, nodes[1]).await.1, None);
        }
    }

    #[test]
    fn a_certificate_that_is_longer_than_any_of_a_node_is_not_looked_at() {
        let proofs = Proofs::new(&provider());
        let (_, mut long) = certificate(1);
        assert!(long.len() < MAX_CERTIFICATE_LEN / 2);
        // What follows a certificate is passed over where it is read.
        long = [long.to_vec(), vec![0; MAX_CERTIFICATE_LEN]].concat().into();
        proofs.of(&long).unwrap_err();
        assert!(proofs.lock().is_empty());
    }

    #[test]
    fn a_certificate_that_is_known_to_be_good_makes_no_other_one_good() {
        let proofs = Proofs::new(&provider());
        let (peer, good) = certificate(1);
        for _ in 0..2 {
            assert_eq!(proofs.of(&good).unwrap().peer, peer);
            for place in [20, good.len() / 2, good.len() - 1] {
                let mut forged = good.to_vec();
                forged[place] ^= 1;
                proofs.of(&forged.into()).unwrap_err();
            }
        }
        assert_eq!(proofs.lock().len(), 1);
    }

    #[test]
    fn what_a_certificate_proved_counts_until_it_expires() {
        let proofs = Proofs::new(&provider());
        let ((peer, good), (other, _)) = (certificate(1), certificate(2));
        let key = proofs.of(&good).unwrap().key.clone();
        let later = proofs.of(&good).unwrap().until;
        for (until, found) in [(later, other), (ASN1Time::from_timestamp(0).unwrap(), peer)] {
            let known = Proof { peer: other, key: key.clone(), until };
            proofs.lock().insert(Digest::sha256(&good), Arc::new(known));
            assert_eq!(proofs.of(&good).unwrap().peer, found);
        }
    }

    #[test]
    fn what_is_known_of_certificates_has_a_bound_however_many_come() {
        let proofs = Proofs::new(&provider());
        let (_, good) = certificate(1);
        let proof = proofs.of(&good).unwrap();
        let mut proven = proofs.lock();
        for number in proven.len()..MAX_PROOFS {
            proven.insert(Digest::sha256(&number.to_be_bytes()), Arc::clone(&proof));
        }
        drop(proven);
        let (peer, next) = certificate(2);
        assert_eq!(proofs.of(&next).unwrap().peer, peer);
        assert!(proofs.lock().len() <= MAX_PROOFS);
    }
}
