//! Whether a runtime trusts the certificate that a gateway shows: as one in Go does, by the machine's authorities and by
//! those that it is given.

use std::path::Path;

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};
use wherry_gateway::Host;
use wherry_gateway::origin::check_authorities;

use super::Files;
use super::files::MAX_FILE;
use crate::cli::failure::Failure;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Why a certificate is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Distrust {
    /// No authority that is known vouches for it.
    Stranger,
    /// It is for other names than the gateway is given; the text says which.
    OtherName(String),
    /// Anything else.
    Other(String),
}

impl Distrust {
    /// What is wrong, so that it goes on behind "its certificate".
    pub(in crate::cli) fn why(&self) -> String {
        match self {
            Self::Stranger => "is vouched for by no authority that is known".to_owned(),
            Self::OtherName(why) => format!("is for another name: {why}"),
            Self::Other(why) => format!("is of no use: {why}"),
        }
    }
}

/// What a server shows to prove who it is: its certificate, and those that lead from there to an authority.
pub(in crate::cli) type Chain = Vec<CertificateDer<'static>>;

/// The name that a host has in certificates.
pub(in crate::cli) fn server_name(host: &Host) -> Option<ServerName<'static>> {
    let name = host.name().trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(name.to_owned()).ok()
}

/// The certificates of a PEM text.
pub(in crate::cli) fn certificates(pem: &str) -> Chain {
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect()
}

/// The certificates of a file as a PEM text that holds nothing else: a private key may stand beside them.
pub(in crate::cli) fn authorities(path: &Path) -> Result<String, Failure> {
    check_authorities(path).map_err(|error| {
        Failure::with_hint(
            error.to_string(),
            "give the certificate of the authority that vouches for the gateway's own, as PEM",
        )
    })?;
    let failed = |error: std::io::Error| Failure::new(format!("{} cannot be read: {error}", path.display()));
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE / 2 {
        let message = format!("{} has more than {} bytes", path.display(), MAX_FILE / 2);
        return Err(Failure::with_hint(message, "give the one authority that vouches for the gateway"));
    }
    let text = String::from_utf8_lossy(&std::fs::read(path).map_err(failed)?).into_owned();
    let mut out = String::new();
    for part in text.split(BEGIN).skip(1).filter_map(|part| part.split_once(END)) {
        out += &format!("{BEGIN}{}{END}\n", part.0.replace('\r', ""));
    }
    Ok(out)
}

/// What a folder has for each host: the certificates of all authorities there, as docker and podman read them.
pub(in crate::cli) fn folders(files: &Files, folder: &str) -> Vec<(String, Chain)> {
    let of = |host: String| {
        let names =
            files.names(&format!("{folder}/{host}")).into_iter().filter(|name| name.ends_with(".crt"));
        let texts = names.filter_map(|name| files.read(&format!("{folder}/{host}/{name}")).ok().flatten());
        let all = texts.flat_map(|text| certificates(&text)).collect();
        (host, all)
    };
    files.names(folder).into_iter().map(of).collect()
}

/// Whether a chain is trusted for this host by whoever trusts the machine's authorities and these.
pub(in crate::cli) fn judge(chain: &Chain, host: &Host, more: &Chain) -> Result<(), Distrust> {
    let name =
        server_name(host).ok_or_else(|| Distrust::Other(format!("{host} is no name that it could have")))?;
    let (own, between) = chain.split_first().ok_or_else(|| Distrust::Other("it is not shown".to_owned()))?;
    let certificate = ParsedCertificate::try_from(own).map_err(|error| told(&error))?;
    verify_server_name(&certificate, &name).map_err(|error| told(&error))?;
    let known = rustls_native_certs::load_native_certs().certs;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(known.iter().chain(more).cloned());
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let judged = verify_server_cert_signed_by_trust_anchor(
        &certificate,
        &roots,
        between,
        UnixTime::now(),
        algorithms.all,
    );
    match judged.map_err(|error| told(&error)) {
        // One that vouches for itself is trusted where it is known, though it may be an authority too. Its time was looked
        // at before.
        Err(Distrust::Stranger) if more.contains(own) || known.contains(own) => Ok(()),
        judged => judged,
    }
}

fn told(error: &Error) -> Distrust {
    use CertificateError as Why;
    match error {
        Error::InvalidCertificate(Why::UnknownIssuer | Why::BadSignature) => Distrust::Stranger,
        // A certificate that vouches for itself and is not given.
        Error::InvalidCertificate(Why::Other(why)) if why.to_string().contains("CaUsedAsEndEntity") => {
            Distrust::Stranger
        }
        Error::InvalidCertificate(why @ (Why::NotValidForName | Why::NotValidForNameContext { .. })) => {
            Distrust::OtherName(why.to_string())
        }
        Error::InvalidCertificate(why) => Distrust::Other(why.to_string()),
        other => Distrust::Other(other.to_string()),
    }
}
