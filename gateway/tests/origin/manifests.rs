//! Manifests from origins that do not do as they should.

use std::time::Duration;

use serde_json::json;
use wherry_gateway::manifest::{MAX_MANIFEST, ManifestError, media_type};
use wherry_gateway::origin::{OriginError, Origins};
use wherry_gateway::server::{Refusal, RefusalKind};
use wherry_gateway::{Host, TagOrDigest};
use wherry_proto::Digest;

use crate::script::{Reply, Script};
use crate::{repository, settings, tag};

fn manifest() -> Vec<u8> {
    let blob = |name: &[u8]| json!({ "mediaType": "x/y", "digest": Digest::sha256(name), "size": 1 });
    let image = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": blob(b"c"),
        "layers": [blob(b"l")],
    });
    serde_json::to_vec(&image).unwrap()
}

fn unacceptable(error: OriginError) -> ManifestError {
    match error {
        OriginError::Manifest { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_manifest_over_four_mebibytes_is_refused_however_it_is_sent() {
    let announced = Script::start(|_, request| {
        let length = (MAX_MANIFEST + 1).to_string();
        let body = if request.method == "HEAD" { "" } else { "{" };
        Reply::Hang(Reply::raw(200, &[("Content-Length", &length)], body))
    })
    .await;
    let endless = Script::start(|_, _| {
        Reply::Hang(Reply::raw(200, &[("Connection", "close")], vec![b' '; MAX_MANIFEST + 2]))
    })
    .await;
    for origin in [announced, endless] {
        let origins = Origins::new(settings(&[&origin.host])).unwrap();
        let error = origins.manifest(&origin.host, &repository(), &tag("v1")).await.unwrap_err();
        assert!(matches!(unacceptable(error), ManifestError::TooLong { .. }));
        assert_eq!(origin.seen().len(), 1, "this is not worth a second attempt");
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
    let digest = Digest::sha256(&manifest());
    let other = Digest::sha256(b"other").to_string();
    type Case = (TagOrDigest, Vec<(&'static str, String)>, Vec<u8>);
    let cases: [Case; 5] = [
        (TagOrDigest::Digest(Digest::sha256(b"other")), vec![], manifest()),
        (TagOrDigest::Digest(digest), vec![], b"{}".to_vec()),
        (tag("v1"), vec![("Docker-Content-Digest", other)], manifest()),
        (tag("v1"), vec![("Content-Type", media_type::OCI_INDEX.to_owned())], manifest()),
        (tag("v1"), vec![("Content-Type", "text/html".to_owned())], b"<html>log in first</html>".to_vec()),
    ];
    for (reference, headers, body) in cases {
        let shown = format!("{reference} {headers:?}");
        let origin = Script::start(move |_, _| {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            Reply::new(200, &headers, &body)
        })
        .await;
        let origins = Origins::new(settings(&[&origin.host])).unwrap();
        let error = origins.manifest(&origin.host, &repository(), &reference).await.unwrap_err();
        let refusal = Refusal::from(error.clone());
        assert_eq!(refusal.kind, RefusalKind::ManifestInvalid);
        let source = unacceptable(error);
        let expected = matches!(
            source,
            ManifestError::Digest { .. } | ManifestError::MediaTypeMismatch { .. } | ManifestError::Json(_)
        );
        assert!(expected, "{shown}: {source}");
    }
}

#[tokio::test]
async fn a_registry_whose_head_says_too_little_is_asked_for_the_manifest() {
    for status in [200, 405] {
        let origin = Script::start(move |_, request| match request.method.as_str() {
            "HEAD" => Reply::Keep(Reply::raw(status, &[("Content-Length", "7")], "")),
            _ => Reply::new(200, &[("Content-Type", media_type::OCI_MANIFEST)], manifest()),
        })
        .await;
        let origins = Origins::new(settings(&[&origin.host])).unwrap();
        let head = origins.head(&origin.host, &repository(), &tag("v1")).await.unwrap();
        assert_eq!((head.digest, head.size), (Digest::sha256(&manifest()), manifest().len() as u64));
        let seen = origin.seen();
        assert_eq!(seen.iter().map(|request| request.method.as_str()).collect::<Vec<_>>(), ["HEAD", "GET"]);
        assert!(seen[0].header("accept").unwrap().contains(media_type::OCI_INDEX));
        assert_eq!(seen[0].target, "/v2/library/test/manifests/v1");
    }
}

#[tokio::test]
async fn a_head_that_names_another_manifest_is_wrong() {
    let origin = Script::start(|_, _| {
        let other = Digest::sha256(b"other").to_string();
        let headers = [("Docker-Content-Digest", other.as_str()), ("Content-Type", media_type::OCI_MANIFEST)];
        Reply::Keep(Reply::raw(200, &[&headers[..], &[("Content-Length", "7")]].concat(), ""))
    })
    .await;
    let origins = Origins::new(settings(&[&origin.host])).unwrap();
    let asked = TagOrDigest::Digest(Digest::sha256(b"asked"));
    let error = origins.head(&origin.host, &repository(), &asked).await.unwrap_err();
    assert!(matches!(error, OriginError::BadAnswer { .. }), "{error}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_no_more_often_than_allowed() {
    for (status, passing) in
        [(500, true), (502, true), (503, true), (504, true), (408, true), (429, true), (400, false)]
    {
        let flaky = Script::start(move |number, _| match number {
            0 | 1 => Reply::new(status, &[], ""),
            _ => Reply::new(200, &[], manifest()),
        })
        .await;
        let mut patient = settings(&[&flaky.host]);
        patient.attempts = 3;
        let found =
            Origins::new(patient.clone()).unwrap().manifest(&flaky.host, &repository(), &tag("v1")).await;
        assert_eq!(found.is_ok(), passing, "{status}");
        assert_eq!(flaky.seen().len(), if passing { 3 } else { 1 }, "{status}");

        let broken = Script::start(move |_, _| Reply::new(status, &[], "")).await;
        patient.insecure = vec![broken.host.clone()];
        let error = Origins::new(patient)
            .unwrap()
            .manifest(&broken.host, &repository(), &tag("v1"))
            .await
            .unwrap_err();
        assert_eq!(error.is_unreachable(), passing, "{error}");
        assert_eq!(broken.seen().len(), if passing { 3 } else { 1 }, "{status}");
    }
}

#[tokio::test]
async fn an_origin_that_asks_for_patience_gets_it_within_reason() {
    let soon = Script::start(|number, _| match number {
        0 => Reply::new(429, &[("Retry-After", "1")], ""),
        _ => Reply::new(200, &[], manifest()),
    })
    .await;
    let origins = Origins::new(settings(&[&soon.host])).unwrap();
    let begun = tokio::time::Instant::now();
    origins.manifest(&soon.host, &repository(), &tag("v1")).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(990), "{:?}", begun.elapsed());

    let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
    let late = Script::start(move |_, _| Reply::new(429, &[("Retry-After", "21600")], body)).await;
    let origins = Origins::new(settings(&[&late.host])).unwrap();
    let error = origins.manifest(&late.host, &repository(), &tag("v1")).await.unwrap_err();
    let OriginError::RateLimited { retry_after, .. } = &error else { panic!("{error}") };
    assert_eq!(*retry_after, Some(Duration::from_secs(21_600)));
    assert_eq!(late.seen().len(), 1);
    assert_eq!(Refusal::from(error).kind, RefusalKind::TooManyRequests);
}

#[tokio::test]
async fn an_origin_that_is_not_there_or_does_not_answer_is_unreachable() {
    let silent = Script::start(|_, _| Reply::Hang(Vec::new())).await;
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed: Host = unused.local_addr().unwrap().to_string().parse().unwrap();
    drop(unused);
    let unknown: Host = "no-such-host.invalid:5000".parse().unwrap();
    for host in [&silent.host, &closed, &unknown] {
        let mut settings = settings(&[host]);
        settings.header_timeout = Duration::from_millis(200);
        settings.attempts = 2;
        let error = Origins::new(settings).unwrap().head(host, &repository(), &tag("v1")).await.unwrap_err();
        assert!(matches!(error, OriginError::Unreachable { .. }), "{error}");
        let refusal = Refusal::from(error);
        assert_eq!(refusal.kind, RefusalKind::Unavailable);
        assert!(refusal.message.contains(host.as_str()), "{}", refusal.message);
    }
    assert_eq!(silent.seen().len(), 2);
}

#[tokio::test]
async fn what_an_origin_says_is_quoted_in_part() {
    let long = "x".repeat(10_000);
    let body =
        json!({ "errors": [{ "code": "DENIED", "message": format!("pay first\n{long}") }] }).to_string();
    let origin = Script::start(move |_, _| Reply::new(403, &[], &body)).await;
    let origins = Origins::new(settings(&[&origin.host])).unwrap();
    let error = origins.manifest(&origin.host, &repository(), &tag("v1")).await.unwrap_err();
    assert!(matches!(error, OriginError::Unauthorized { .. }));
    let text = error.to_string();
    assert!(text.contains("pay first") && !text.contains('\n') && text.len() < 600, "{text}");

    let endless = Script::start(|_, _| {
        Reply::Hang(Reply::raw(404, &[("Connection", "close")], vec![b'x'; (1 << 20) + 1]))
    })
    .await;
    let origins = Origins::new(settings(&[&endless.host])).unwrap();
    let error = origins.manifest(&endless.host, &repository(), &tag("v1")).await.unwrap_err();
    assert!(matches!(error, OriginError::NotFound { .. }), "{error}");
}
