//! Real registries: Debian's docker-registry with files of its own.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use wherry_gateway::manifest::media_type;
use wherry_gateway::origin::{Credential, CredentialSources, OriginError, OriginSettings, Origins};
use wherry_gateway::{Host, TagOrDigest};
use wherry_proto::Digest;

use crate::{drain, noise, repository, settings, tag};

/// The user whom [`Registry::with_password`] knows, with her password and what bcrypt makes of it.
pub(crate) const USER: &str = "anna";
pub(crate) const PASSWORD: &str = "s3cret:pass";
const HTPASSWD: &str = "anna:$2y$05$abcdefghijklmnopqrstuuKqhJSfTIYV1SkiVqP0GjQATd/vnrS1a\n";

pub(crate) struct Registry {
    pub(crate) host: Host,
    /// Its only image, `library/test:v1`, and the parts of that.
    pub(crate) manifest: Vec<u8>,
    pub(crate) layer: Vec<u8>,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn plain() -> Self {
        Self::start("", "", |_| String::new())
    }

    pub(crate) fn with_password() -> Self {
        Self::start("", "", |dir| {
            let file = dir.join("htpasswd");
            fs::write(&file, HTPASSWD).unwrap();
            format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display())
        })
    }

    /// A registry with more configuration: further keys of `http`, a host to be known by if it is not the
    /// address, and further sections.
    pub(crate) fn start(http: &str, name: &str, sections: impl Fn(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (manifest, layer) = store_image(dir.path());
        let log = dir.path().join("log");
        // The registry cannot choose a port itself, so another process may take the one that is chosen here.
        for _ in 0..20 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let config = dir.path().join("config.yml");
            let root = dir.path().display();
            let text = format!(
                "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\n\
                 http: {{addr: '{address}'{http}}}\n{}",
                sections(dir.path())
            );
            fs::write(&config, text).unwrap();
            let output = fs::File::create(&log).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdout(output.try_clone().unwrap())
                .stderr(output)
                .stdin(Stdio::null())
                .spawn()
                .expect("docker-registry must be installed");
            let begun = Instant::now();
            loop {
                if TcpStream::connect(address).is_ok() {
                    let name = if name.is_empty() { "127.0.0.1" } else { name };
                    let host = format!("{name}:{}", address.port()).parse().unwrap();
                    return Self { host, manifest, layer, child, _dir: dir };
                }
                if child.try_wait().unwrap().is_some() {
                    let said = fs::read_to_string(&log).unwrap();
                    assert!(said.contains("address already in use"), "docker-registry ended: {said}");
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "docker-registry does not listen");
                std::thread::yield_now();
            }
        }
        panic!("no port stays free long enough");
    }

    pub(crate) fn layer_digest(&self) -> Digest {
        Digest::sha256(&self.layer)
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::sha256(&self.manifest)
    }

    pub(crate) fn origins(&self, credentials: CredentialSources) -> Origins {
        Origins::new(self.settings(credentials)).unwrap()
    }

    pub(crate) fn settings(&self, credentials: CredentialSources) -> OriginSettings {
        let mut settings = settings(&[&self.host]);
        settings.credentials = credentials;
        settings
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts an image into the registry's storage as the registry itself would.
fn store_image(root: &Path) -> (Vec<u8>, Vec<u8>) {
    let base = root.join("docker/registry/v2");
    let repository = base.join("repositories/library/test");
    let put = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        let hex = digest.hex();
        let dir = base.join("blobs/sha256").join(&hex[..2]).join(&hex);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("data"), bytes).unwrap();
        digest
    };
    let link = |path: String, digest: Digest| {
        let dir = repository.join(path);
        fs::create_dir_all(&dir).unwrap();
        fs::File::create(dir.join("link")).unwrap().write_all(digest.to_string().as_bytes()).unwrap();
    };
    let config =
        b"{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[]}}";
    let layer = noise(3_000_000);
    for blob in [&config[..], &layer] {
        let digest = put(blob);
        link(format!("_layers/sha256/{}", digest.hex()), digest);
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::DOCKER_MANIFEST,
        "config": { "mediaType": media_type::DOCKER_CONFIG, "digest": Digest::sha256(config), "size": config.len() },
        "layers": [{
            "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "digest": Digest::sha256(&layer),
            "size": layer.len(),
        }],
    });
    let manifest = serde_json::to_vec_pretty(&manifest).unwrap();
    let digest = put(&manifest);
    link(format!("_manifests/revisions/sha256/{}", digest.hex()), digest);
    link("_manifests/tags/v1/current".to_owned(), digest);
    link(format!("_manifests/tags/v1/index/sha256/{}", digest.hex()), digest);
    (manifest, layer)
}

pub(crate) fn explicit(host: &Host, credential: Credential) -> CredentialSources {
    let mut sources = CredentialSources::default();
    sources.explicit.push((host.clone(), credential));
    sources
}

pub(crate) fn password(username: &str, password: &str) -> Credential {
    Credential::Password { username: username.to_owned(), password: password.to_owned() }
}

/// Everything that can be asked of a registry comes as it is there.
pub(crate) async fn check_image(registry: &Registry, origins: &Origins) {
    let (host, repository) = (&registry.host, repository());
    let digest = registry.manifest_digest();
    for reference in [tag("v1"), TagOrDigest::Digest(digest)] {
        let head = origins.head(host, &repository, &reference).await.unwrap();
        assert_eq!((head.digest, head.size), (digest, registry.manifest.len() as u64));
        assert_eq!(head.media_type, media_type::DOCKER_MANIFEST);
        let manifest = origins.manifest(host, &repository, &reference).await.unwrap();
        assert_eq!((manifest.raw().as_ref(), manifest.digest()), (&registry.manifest[..], &digest));
        assert_eq!(manifest.image().unwrap().layers[0].digest, registry.layer_digest());
    }
    let size = registry.layer.len() as u64;
    for from in [0, 1, 1_234_567, size - 1, size] {
        let blob = origins.blob(host, &repository, &registry.layer_digest(), from).await.unwrap();
        assert_eq!((blob.from(), blob.total()), (from, Some(size)));
        let (bytes, end) = drain(blob).await;
        end.unwrap();
        assert!(bytes == registry.layer[from as usize..], "from {from}");
    }
}

#[tokio::test]
async fn an_open_registry_gives_all_that_it_has() {
    let registry = Registry::plain();
    let origins = registry.origins(CredentialSources::default());
    check_image(&registry, &origins).await;
    for reference in [tag("v2"), TagOrDigest::Digest(Digest::sha256(b"none"))] {
        for error in [
            origins.manifest(&registry.host, &repository(), &reference).await.unwrap_err(),
            origins.head(&registry.host, &repository(), &reference).await.unwrap_err(),
        ] {
            assert!(matches!(error, OriginError::NotFound { .. }), "{error}");
            assert!(error.to_string().contains(&reference.to_string()), "{error}");
        }
    }
    let error = origins.blob(&registry.host, &repository(), &Digest::sha256(b"none"), 0).await.unwrap_err();
    assert!(matches!(error, OriginError::NotFound { .. }), "{error}");
    let size = registry.layer.len() as u64;
    let error =
        origins.blob(&registry.host, &repository(), &registry.layer_digest(), size + 1).await.unwrap_err();
    assert!(matches!(error, OriginError::BadAnswer { .. }), "{error}");
}

#[tokio::test]
async fn a_host_that_is_not_listed_is_never_spoken_to_in_the_clear() {
    let registry = Registry::plain();
    let origins = Origins::new(settings(&[])).unwrap();
    let error = origins.manifest(&registry.host, &repository(), &tag("v1")).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
    // And whoever meant it to be is told how.
    let said = error.to_string();
    assert!(said.contains(&format!("{} seems to speak plain HTTP", registry.host)), "{said}");
    assert!(said.contains(&format!("--insecure {} or", registry.host)), "{said}");
}

#[tokio::test]
async fn a_registry_with_passwords_opens_to_the_right_one() {
    let registry = Registry::with_password();
    let origins = registry.origins(explicit(&registry.host, password(USER, PASSWORD)));
    check_image(&registry, &origins).await;
}

#[tokio::test]
async fn passwords_are_read_from_dockers_file_at_the_time_they_are_needed() {
    let registry = Registry::with_password();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let mut sources = CredentialSources::default();
    sources.files = vec![dir.path().join("none.json"), file.clone()];
    let origins = registry.origins(sources);
    let error = origins.head(&registry.host, &repository(), &tag("v1")).await.unwrap_err();
    assert!(error.to_string().contains("podman login"), "{error}");
    // base64 of the user and her password
    let auth = json!({ "auths": { registry.host.as_str(): { "auth": "YW5uYTpzM2NyZXQ6cGFzcw==" } } });
    fs::write(&file, auth.to_string()).unwrap();
    check_image(&registry, &origins).await;
}

#[tokio::test]
async fn wrong_and_missing_passwords_are_told_apart_from_missing_images() {
    let registry = Registry::with_password();
    for sources in [CredentialSources::default(), explicit(&registry.host, password(USER, "wr0ng"))] {
        let origins = registry.origins(sources);
        let error = origins.manifest(&registry.host, &repository(), &tag("v1")).await.unwrap_err();
        assert!(matches!(error, OriginError::Unauthorized { .. }), "{error}");
        assert!(!error.to_string().contains("wr0ng"), "{error}");
        let error =
            origins.blob(&registry.host, &repository(), &registry.layer_digest(), 0).await.unwrap_err();
        assert!(matches!(error, OriginError::Unauthorized { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_helpers_credentials_are_used() {
    let dir = tempfile::tempdir().unwrap();
    if super::child::passed_in_child(
        "registry::a_helpers_credentials_are_used",
        &[("PATH", &helper(dir.path()))],
    ) {
        return;
    }
    let registry = Registry::with_password();
    let file = dir.path().join("config.json");
    fs::write(&file, r#"{"credsStore":"wherrytest"}"#).unwrap();
    let mut sources = CredentialSources::default();
    sources.files = vec![file];
    check_image(&registry, &registry.origins(sources)).await;
}

/// A search path with a credential helper at its front.
fn helper(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let program = dir.join("docker-credential-wherrytest");
    let script = format!(
        "#!/bin/sh\nread server\n[ \"$1\" = get ] || exit 1\ncase $server in 127.0.0.1:*) ;; *) exit 1;; esac\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    PathBuf::from(format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()))
}
