//! Redirects.

use wherry_gateway::origin::{MAX_REDIRECTS, OriginError, Origins};
use wherry_proto::Digest;

use crate::registry::{explicit, password};
use crate::script::{Reply, Script};
use crate::{drain, repository, settings};

fn digest() -> Digest {
    Digest::sha256(b"blob")
}

fn redirect(to: &str) -> Reply {
    Reply::new(307, &[("Location", to)], "")
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let storage = Script::start(|_, _| Reply::new(200, &[], "blob")).await;
    let elsewhere = format!("http://{}/bucket/blob?signed=yes", storage.localhost());
    let origin = Script::start(move |_, request| match request.header("authorization") {
        None => Reply::new(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], ""),
        Some(_) if request.target == "/again" => redirect(&elsewhere),
        Some(_) => redirect("/again"),
    })
    .await;
    let mut settings = settings(&[&origin.host, &storage.localhost()]);
    settings.credentials = explicit(&origin.host, password("anna", "s3cret"));
    let origins = Origins::new(settings).unwrap();
    let (bytes, end) = drain(origins.blob(&origin.host, &repository(), &digest(), 2).await.unwrap()).await;
    end.unwrap();
    assert_eq!(bytes, b"ob");
    // Within the origin they do follow, and so does everything else everywhere.
    let seen = origin.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen[1].header("authorization").is_some() && seen[2].header("authorization").is_some());
    let seen = storage.seen();
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[0].header("range"), Some("bytes=2-"));
    assert_eq!(seen[0].target, "/bucket/blob?signed=yes");
}

#[tokio::test]
async fn a_401_from_another_host_gets_no_credentials() {
    let storage =
        Script::start(|_, _| Reply::new(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], "")).await;
    let elsewhere = format!("http://{}/blob", storage.localhost());
    let origin = Script::start(move |_, _| redirect(&elsewhere)).await;
    let mut settings = settings(&[&origin.host, &storage.localhost()]);
    settings.credentials = explicit(&storage.localhost(), password("anna", "s3cret"));
    settings.credentials.explicit.push((origin.host.clone(), password("anna", "s3cret")));
    let error =
        Origins::new(settings).unwrap().blob(&origin.host, &repository(), &digest(), 0).await.unwrap_err();
    assert!(matches!(error, OriginError::Unauthorized { .. }), "{error}");
    assert!(storage.seen().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn redirects_that_lead_astray_are_wrong_answers() {
    let elsewhere = Script::start(|_, _| Reply::new(200, &[], "blob")).await;
    let unlisted = format!("http://{}/blob", elsewhere.localhost());
    let with_user = format!("http://user:pass@{}/blob", elsewhere.host);
    for to in [unlisted.as_str(), with_user.as_str(), "ftp://a.io/x", "file:///etc/passwd", "http://", ""] {
        let target = to.to_owned();
        let origin = Script::start(move |_, _| match target.as_str() {
            "" => Reply::new(302, &[], ""),
            target => redirect(target),
        })
        .await;
        let origins = Origins::new(settings(&[&origin.host])).unwrap();
        let error = origins.blob(&origin.host, &repository(), &digest(), 0).await.unwrap_err();
        assert!(matches!(error, OriginError::BadAnswer { .. }), "{to}: {error}");
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn redirects_are_counted() {
    for (turns, good) in [(MAX_REDIRECTS, true), (MAX_REDIRECTS + 1, false)] {
        let origin = Script::start(move |number, _| match number {
            n if n < turns => redirect(&format!("/turn/{n}")),
            _ => Reply::new(200, &[], "blob"),
        })
        .await;
        let origins = Origins::new(settings(&[&origin.host])).unwrap();
        let found = origins.blob(&origin.host, &repository(), &digest(), 0).await;
        assert_eq!(found.is_ok(), good, "{turns}");
        assert_eq!(origin.seen().len(), MAX_REDIRECTS + 1);
    }
}
