//! The HTTP clients: whom they trust, who they say they are, and by which way they go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Client, Identity, redirect};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use super::http::causes;
use super::realm::is_host;
use super::{OriginSettings, SettingsError};
use crate::name::Host;

/// Idle connections that are kept to each host, and for how long. Registries close theirs after about a
/// minute.
const IDLE_CONNECTIONS: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(45);

/// The variables by which a machine says that the outside is behind a proxy.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// The longest file with a client's certificate or key that is read, in bytes.
const MAX_IDENTITY: u64 = 1 << 20;

/// A file with the certificate that this node shows to an origin, and one with its key, both PEM. They may be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, with those that lead to its authority behind it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    common: Way,
    /// Of origins that have authorities or a certificate of their own.
    own: HashMap<Host, Own>,
}

#[derive(Debug)]
struct Own {
    /// To the origin itself.
    there: Way,
    /// To wherever it sends on: nobody but the origin is shown the certificate.
    onwards: Way,
}

#[derive(Debug)]
struct Way {
    /// For this machine, and for everything if there is no proxy.
    direct: Client,
    /// For everything else if the environment names a proxy.
    proxied: Option<Client>,
}

impl Clients {
    pub(super) fn new(settings: &OriginSettings) -> Result<Self, SettingsError> {
        let common = authorities(&settings.ca_files)?;
        let mut own = HashMap::new();
        for (host, its) in &settings.hosts {
            if its.ca_files.is_empty() && its.client.is_none() {
                continue;
            }
            let mut trusted = common.clone();
            trusted.extend(authorities(&its.ca_files)?);
            let identity = its.client.as_ref().map(identity).transpose()?;
            let onwards = Way::new(settings, &trusted, None)?;
            let there = Way::new(settings, &trusted, identity.as_ref())?;
            own.insert(host.clone(), Own { there, onwards });
        }
        Ok(Self { common: Way::new(settings, &common, None)?, own })
    }

    /// The client for a URL that a request to this origin has led to.
    pub(super) fn of(&self, origin: &Host, url: &Url) -> &Client {
        let near = url.host().is_some_and(|host| match host {
            url::Host::Domain(name) => name == "localhost",
            url::Host::Ipv4(ip) => ip.is_loopback(),
            url::Host::Ipv6(ip) => ip.is_loopback(),
        });
        let way = match self.own.get(origin) {
            Some(own) if url.scheme() == "https" && is_host(origin, url) => &own.there,
            Some(own) => &own.onwards,
            None => &self.common,
        };
        way.proxied.as_ref().filter(|_| !near).unwrap_or(&way.direct)
    }
}

impl Way {
    fn new(
        settings: &OriginSettings,
        trusted: &[reqwest::Certificate],
        identity: Option<&Identity>,
    ) -> Result<Self, SettingsError> {
        let behind_proxy = PROXY_VARIABLES.iter().any(|name| std::env::var_os(name).is_some());
        Ok(Self {
            direct: client(settings, trusted, identity, false)?,
            proxied: behind_proxy.then(|| client(settings, trusted, identity, true)).transpose()?,
        })
    }
}

fn client(
    settings: &OriginSettings,
    trusted: &[reqwest::Certificate],
    identity: Option<&Identity>,
    by_proxy: bool,
) -> Result<Client, SettingsError> {
    let builder = || {
        let builder = Client::builder()
            .user_agent(concat!("wherry/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .http1_only()
            .connect_timeout(settings.connect_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_TIME);
        let builder = match identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        };
        if by_proxy { builder } else { builder.no_proxy() }
    };
    // Without any certificate on the machine there is still plain HTTP, and whatever the CA files vouch for.
    builder().tls_certs_merge(trusted.iter().cloned()).build().or_else(|error| {
        tracing::warn!(
            error = causes(&error),
            "this system's certificate authorities cannot be used: only origins that the CA files vouch for can be \
             reached over HTTPS; install ca-certificates to change that"
        );
        let client = builder().tls_certs_only(trusted.iter().cloned()).build();
        client.map_err(|error| SettingsError::Client(causes(&error)))
    })
}

/// Whether a file has certificates of authorities that can be trusted, and nothing else.
///
/// # Errors
/// When it cannot be read, has none, or one of them is no authority's.
pub fn check_authorities(path: &Path) -> Result<(), SettingsError> {
    read_authorities(path).map(drop)
}

/// Whether the files of a client's certificate can be used.
///
/// # Errors
/// When one cannot be read, or has not what it should.
pub fn check_client_certificate(client: &ClientCertificate) -> Result<(), SettingsError> {
    identity(client).map(drop)
}

fn authorities(paths: &[PathBuf]) -> Result<Vec<reqwest::Certificate>, SettingsError> {
    let mut found = Vec::new();
    for path in paths {
        let bad = |error: reqwest::Error| SettingsError::BadCa { path: path.clone(), why: causes(&error) };
        for certificate in read_authorities(path)? {
            found.push(reqwest::Certificate::from_der(&certificate).map_err(bad)?);
        }
    }
    Ok(found)
}

fn read_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let pem =
        std::fs::read(path).map_err(|source| SettingsError::ReadCa { path: path.to_owned(), source })?;
    let bad = |why: String| SettingsError::BadCa { path: path.to_owned(), why };
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        // Whether it can be trusted as an authority shows here, with its file's name, and not at the first connection.
        RootCertStore::empty().add(certificate.clone()).map_err(|error| bad(causes(&error)))?;
        found.push(certificate);
    }
    if found.is_empty() { Err(bad("it has none".to_owned())) } else { Ok(found) }
}

fn identity(client: &ClientCertificate) -> Result<Identity, SettingsError> {
    let ClientCertificate { certificate, key } = client;
    let mut pem = read_identity(key)?;
    if certificate != key {
        pem.push(b'\n');
        pem.extend(read_identity(certificate)?);
    }
    let bad = |why| SettingsError::BadIdentity { certificate: certificate.clone(), key: key.clone(), why };
    // What the HTTP client says of a missing part is seldom the reason.
    if !CertificateDer::pem_slice_iter(&pem).any(|found| found.is_ok()) {
        return Err(bad("there is no certificate in it".to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| bad(format!("there is no private key in it that can be read: {error}")))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    install_provider();
    // What the HTTP client would say when it is made does not name the files.
    let own = rustls::ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_client_auth_cert(chain, secret);
    own.map_err(|error| bad(error.to_string()))?;
    Identity::from_pem(&pem).map_err(|error| bad(causes(&error)))
}

/// Whoever has installed a provider before has chosen it for the whole process.
pub(super) fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn read_identity(path: &Path) -> Result<Vec<u8>, SettingsError> {
    let unreadable = |source| SettingsError::ReadIdentity { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_IDENTITY {
        return Err(unreadable(std::io::Error::other(format!("it is longer than {MAX_IDENTITY} bytes"))));
    }
    std::fs::read(path).map_err(unreadable)
}
