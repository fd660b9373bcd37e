//! What is set for one origin: mirrors, certificates, credentials and a rate of its own.

use std::time::{Duration, Instant};

use wherry_gateway::Host;
use wherry_gateway::origin::{
    ClientCertificate, CredentialSources, HostSettings, Login, OriginError, OriginSettings, Origins, Secret,
};

use crate::registry::{PASSWORD, Registry, USER, check_image};
use crate::tls::Authority;
use crate::{drain, repository, settings, tag};

/// An origin where nobody listens.
fn nobody() -> Host {
    "127.0.0.1:1".parse().unwrap()
}

fn of(host: &Host, its: HostSettings) -> Vec<(Host, HostSettings)> {
    vec![(host.clone(), its)]
}

fn mirrored(insecure: &[&Host], host: &Host, mirrors: &[&str]) -> OriginSettings {
    let mut settings = settings(insecure);
    settings.attempts = 1;
    let mirrors = mirrors.iter().map(|text| text.parse().unwrap()).collect();
    settings.hosts = of(host, HostSettings { mirrors, ..HostSettings::default() });
    settings
}

#[tokio::test]
async fn a_mirror_gives_what_its_origin_has_though_that_is_out_of_reach() {
    let mut registry = Registry::plain();
    let mirror = registry.host.clone();
    let origin = nobody();
    let settings = mirrored(&[&mirror, &origin], &origin, &["127.0.0.1:2", mirror.as_str()]);
    // Asked by the origin's name, of which the mirror knows nothing.
    registry.host = origin.clone();
    let origins = Origins::new(settings).unwrap();
    check_image(&registry, &origins).await;
    let length = origins.blob_length(&origin, &repository(), &registry.layer_digest()).await.unwrap();
    assert_eq!(length, Some(registry.layer.len() as u64));
    assert!(origins.answered(&origin).is_some(), "the origin counts as out of reach");
}

#[tokio::test]
async fn a_mirror_may_have_the_repositories_below_another() {
    let registry = Registry::plain();
    let origin = nobody();
    let below = format!("{}/library", registry.host);
    let origins = Origins::new(mirrored(&[&registry.host, &origin], &origin, &[&below])).unwrap();
    let manifest = origins.manifest(&origin, &"test".parse().unwrap(), &tag("v1")).await.unwrap();
    assert_eq!(*manifest.digest(), registry.manifest_digest());
}

#[tokio::test]
async fn what_no_mirror_has_comes_from_the_origin_and_what_nobody_has_is_its_error() {
    let (registry, empty) = (Registry::plain(), Registry::plain());
    let below = format!("{}/elsewhere", empty.host);
    let insecure = [&registry.host, &empty.host, &nobody()];
    let origins = Origins::new(mirrored(&insecure, &registry.host, &["127.0.0.1:1", &below])).unwrap();
    check_image(&registry, &origins).await;
    let error = origins.manifest(&registry.host, &repository(), &tag("v2")).await.unwrap_err();
    assert!(
        matches!(&error, OriginError::NotFound { host, .. } if *host == registry.host.to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn a_mirror_of_which_wrong_bytes_of_a_blob_came_is_not_asked_for_it_again() {
    let (origin, mirror) = (Registry::plain(), Registry::plain());
    let settings = mirrored(&[&origin.host, &mirror.host], &origin.host, &[mirror.host.as_str()]);
    let (origins, host, digest) =
        (Origins::new(settings).unwrap(), origin.host.clone(), origin.layer_digest());
    drop(origin);
    origins.blob(&host, &repository(), &digest, 0).await.unwrap();
    origins.doubt(&host, &digest);
    let error = origins.blob(&host, &repository(), &digest, 0).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
    origins.manifest(&host, &repository(), &tag("v1")).await.unwrap();
}

#[tokio::test]
async fn a_mirror_that_never_answers_is_waited_for_once_also_by_whoever_gives_up_before_it_would() {
    let registry = Registry::plain();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror: Host = silent.local_addr().unwrap().to_string().parse().unwrap();
    let settings = mirrored(&[&registry.host, &mirror], &registry.host, &[mirror.as_str()]);
    let origins = Origins::new(settings).unwrap();
    let (reference, repository) = (tag("v1"), repository());
    let asking = origins.head(&registry.host, &repository, &reference);
    tokio::time::timeout(Duration::from_millis(900), asking).await.unwrap_err();
    let began = Instant::now();
    let head = origins.head(&registry.host, &repository, &reference).await.unwrap();
    assert!(!head.mirrored && began.elapsed() < Duration::from_millis(700), "{:?}", began.elapsed());
}

#[tokio::test]
async fn blobs_of_an_origin_are_read_no_faster_than_its_rate() {
    let registry = Registry::plain();
    let mut settings = settings(&[&registry.host]);
    let rate = Some(4 * registry.layer.len() as u64);
    settings.hosts = of(&registry.host, HostSettings { rate, ..HostSettings::default() });
    let origins = Origins::new(settings).unwrap();
    let began = Instant::now();
    let blob = origins.blob(&registry.host, &repository(), &registry.layer_digest(), 0).await.unwrap();
    let (bytes, end) = drain(blob).await;
    end.unwrap();
    assert_eq!(bytes.len(), registry.layer.len());
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_registry_that_wants_a_certificate_is_shown_that_which_is_set_for_it() {
    let authority = Authority::new();
    let ca = authority.certificate();
    let client = authority.client();
    let registry = authority.registry_for_members("127.0.0.1");
    let with = |client: Option<ClientCertificate>| {
        let mut settings = settings(&[]);
        let own = HostSettings { ca_files: vec![ca.clone()], client, ..HostSettings::default() };
        settings.hosts = of(&registry.host, own);
        settings.attempts = 1;
        Origins::new(settings)
    };
    check_image(&registry, &with(Some(client.clone())).unwrap()).await;
    let error = with(None).unwrap().manifest(&registry.host, &repository(), &tag("v1")).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
    let without_key = ClientCertificate { key: client.certificate.clone(), ..client };
    let error = with(Some(without_key)).err().unwrap().to_string();
    assert!(error.contains("private key"), "{error}");
}

#[tokio::test]
async fn a_login_that_is_set_for_an_origin_is_read_whenever_it_asks() {
    let registry = Registry::with_password();
    let dir = tempfile::tempdir().unwrap();
    let (secret, keys) = (dir.path().join("password"), dir.path().join("auth.json"));
    let origins = |login| {
        let mut sources = CredentialSources::default();
        sources.logins.push((registry.host.clone(), login));
        registry.origins(sources)
    };
    let by_file = origins(Login::User(USER.to_owned(), Secret::File(secret.clone())));
    let said = by_file.manifest(&registry.host, &repository(), &tag("v1")).await.unwrap_err().to_string();
    assert!(said.contains("password"), "{said}");
    std::fs::write(&secret, format!("{PASSWORD}\n")).unwrap();
    check_image(&registry, &by_file).await;

    let file = serde_json::json!({ "auths": { registry.host.as_str(): { "username": USER, "password": PASSWORD } } });
    std::fs::write(&keys, file.to_string()).unwrap();
    check_image(&registry, &origins(Login::Keys(keys))).await;

    let unset = Login::User(USER.to_owned(), Secret::Variable("WHERRY_TEST_NOBODY_SETS_THIS".to_owned()));
    let error = origins(unset).manifest(&registry.host, &repository(), &tag("v1")).await.unwrap_err();
    assert!(error.to_string().contains("WHERRY_TEST_NOBODY_SETS_THIS"), "{error}");
}
