//! Registries with certificates of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use wherry_gateway::origin::{
    ClientCertificate, CredentialSources, OriginError, OriginSettings, Origins, SettingsError,
};

use crate::registry::{PASSWORD, Registry, USER, check_image, explicit, password};
use crate::{repository, settings, tag};

/// A certificate authority with one certificate, made by the openssl command.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    /// An authority, and a server certificate for 127.0.0.1 and localhost.
    pub(crate) fn new() -> Self {
        let authority = Self { dir: tempfile::tempdir().unwrap() };
        let dir = authority.dir.path();
        std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        // Of version 3, since no other is taken of a client.
        std::fs::write(dir.join("ext"), "extendedKeyUsage=clientAuth\n").unwrap();
        for arguments in [
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-authority -keyout ca.key -out ca.pem",
            "req -newkey rsa:2048 -nodes -subj /CN=test-server -keyout server.key -out server.csr",
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem",
            "x509 -in ca.pem -outform DER -out ca.der",
            "req -newkey rsa:2048 -nodes -subj /CN=test-node -keyout client.key -out client.csr",
            "x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out client.pem",
        ] {
            let mut openssl = Command::new("openssl");
            let openssl = openssl.args(arguments.split(' ')).current_dir(dir);
            let output = openssl.output().expect("openssl must be installed");
            assert!(
                output.status.success(),
                "openssl {arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        authority
    }

    /// What a node may show that the authority vouches for.
    pub(crate) fn client(&self) -> ClientCertificate {
        let at = |name| self.dir.path().join(name);
        ClientCertificate { certificate: at("client.pem"), key: at("client.key") }
    }

    /// A registry that gives nothing to whom the authority does not vouch for.
    pub(crate) fn registry_for_members(&self, name: &str) -> Registry {
        let at = |name| self.dir.path().join(name).display().to_string();
        let (certificate, key, ca) = (at("server.pem"), at("server.key"), at("ca.pem"));
        let http = format!(", tls: {{certificate: {certificate}, key: {key}, clientcas: [{ca}]}}");
        Registry::start(&http, name, |_| String::new())
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("ca.der")).unwrap()
    }

    /// A signature of the authority itself: RSA with SHA-256.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut child = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign", "ca.key"])
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn registry(&self, name: &str, sections: impl Fn(&Path) -> String) -> Registry {
        let (certificate, key) = (self.dir.path().join("server.pem"), self.dir.path().join("server.key"));
        let http = format!(", tls: {{certificate: {}, key: {}}}", certificate.display(), key.display());
        Registry::start(&http, name, sections)
    }
}

fn trusting(authority: &Authority, credentials: CredentialSources) -> Origins {
    let mut settings = settings(&[]);
    settings.ca_files = vec![authority.certificate()];
    settings.credentials = credentials;
    Origins::new(settings).unwrap()
}

#[tokio::test]
async fn an_authority_from_a_file_is_trusted_besides_the_systems() {
    let authority = Authority::new();
    for name in ["127.0.0.1", "localhost"] {
        let registry = authority.registry(name, |_| String::new());
        check_image(&registry, &trusting(&authority, CredentialSources::default())).await;
    }
}

#[tokio::test]
async fn a_registry_that_nobody_vouches_for_is_unreachable_and_the_error_says_why() {
    let (authority, other) = (Authority::new(), Authority::new());
    let registry = authority.registry("127.0.0.1", |_| String::new());
    for origins in [Origins::new(settings(&[])).unwrap(), trusting(&other, CredentialSources::default())] {
        let error = origins.manifest(&registry.host, &repository(), &tag("v1")).await.unwrap_err();
        assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
        assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
    }
}

#[tokio::test]
async fn a_registry_with_tls_is_not_spoken_to_in_the_clear_because_it_is_listed_as_insecure() {
    let authority = Authority::new();
    let registry = authority.registry("127.0.0.1", |_| String::new());
    let mut settings = settings(&[&registry.host]);
    settings.ca_files = vec![authority.certificate()];
    settings.credentials = explicit(&registry.host, password(USER, PASSWORD));
    // The registry answers 400 to plain HTTP on its TLS port.
    let origins = Origins::new(settings).unwrap();
    let told = |error: OriginError| {
        assert!(matches!(error, OriginError::Unreachable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("seems to speak HTTPS")
                && text.contains(&format!("without --insecure {}", registry.host)),
            "{text}"
        );
    };
    told(origins.manifest(&registry.host, &repository(), &tag("v1")).await.unwrap_err());
    // What answers HEAD has no text.
    told(origins.head(&registry.host, &repository(), &tag("v1")).await.unwrap_err());
}

#[test]
fn files_that_are_no_certificates_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let with = |path: PathBuf| {
        let mut settings = OriginSettings::default();
        settings.ca_files = vec![path];
        Origins::new(settings)
    };
    let missing = with(dir.path().join("none.pem"));
    assert!(matches!(missing, Err(SettingsError::ReadCa { .. })), "{missing:?}");
    for (name, text) in [
        ("empty.pem", ""),
        ("key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        ("broken.pem", "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"),
        ("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let error = with(path).err().unwrap_or_else(|| panic!("{name} was taken"));
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test]
async fn a_machine_without_certificates_reaches_plain_origins_and_those_of_its_ca_files() {
    let nowhere = Path::new("/nonexistent");
    let test = "tls::a_machine_without_certificates_reaches_plain_origins_and_those_of_its_ca_files";
    if crate::child::passed_in_child(test, &[("SSL_CERT_FILE", nowhere), ("SSL_CERT_DIR", nowhere)]) {
        return;
    }
    let registry = Registry::plain();
    check_image(&registry, &registry.origins(CredentialSources::default())).await;
    let authority = Authority::new();
    let registry = authority.registry("127.0.0.1", |_| String::new());
    check_image(&registry, &trusting(&authority, CredentialSources::default())).await;
}
