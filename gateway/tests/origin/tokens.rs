//! The token flow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use url::form_urlencoded;
use wherry_gateway::origin::{Credential, CredentialSources, MAX_TOKEN, OriginError, Origins};
use wherry_proto::Digest;

use crate::registry::{PASSWORD, Registry, USER, check_image, explicit, password};
use crate::script::{Reply, Request, Script};
use crate::tls::Authority;
use crate::{drain, repository, settings, tag};

fn query(request: &Request) -> BTreeMap<String, String> {
    let (_, query) = request.target.split_once('?').unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A registry whose blobs are all `blob` and which takes the token that `good` gives; and its token server,
/// which answers by `issue`.
async fn pair(
    good: impl Fn() -> String + Send + Sync + 'static,
    issue: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
) -> (Script, Script) {
    let tokens = Script::start(issue).await;
    let challenge =
        format!("Bearer realm=\"http://{}/token\",service=\"the service\",scope=\"evil:*\"", tokens.address);
    let registry = Script::start(move |_, request| match request.header("authorization") {
        Some(sent) if *sent == format!("Bearer {}", good()) => Reply::new(200, &[], "blob"),
        _ => Reply::new(401, &[("WWW-Authenticate", &challenge)], ""),
    })
    .await;
    (registry, tokens)
}

async fn fetch(origins: &Origins, registry: &Script) -> Result<Vec<u8>, OriginError> {
    let blob = origins.blob(&registry.host, &repository(), &Digest::sha256(b"blob"), 0).await?;
    let (bytes, end) = drain(blob).await;
    end.map(|()| bytes)
}

fn origins_with(registry: &Script, credentials: CredentialSources) -> Origins {
    let mut settings = settings(&[&registry.host]);
    settings.credentials = credentials;
    Origins::new(settings).unwrap()
}

#[tokio::test]
async fn an_anonymous_token_is_asked_for_with_the_least_scope_and_used_again() {
    let (registry, tokens) =
        pair(|| "t0".to_owned(), |_, _| Reply::new(200, &[], r#"{"token":"t0","expires_in":300}"#)).await;
    let origins = origins_with(&registry, CredentialSources::default());
    for _ in 0..3 {
        assert_eq!(fetch(&origins, &registry).await.unwrap(), b"blob");
    }
    let seen = tokens.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].method.as_str(), seen[0].header("authorization")), ("GET", None));
    let query = query(&seen[0]);
    assert_eq!(query["service"], "the service");
    assert_eq!(query["scope"], "repository:library/test:pull");
    // One round trip for the challenge, then one for each blob.
    assert_eq!(registry.seen().len(), 4);
}

#[tokio::test]
async fn requests_side_by_side_share_one_token() {
    let (registry, tokens) =
        pair(|| "t0".to_owned(), |_, _| Reply::new(200, &[], r#"{"access_token":"t0"}"#)).await;
    let origins = origins_with(&registry, CredentialSources::default());
    let fetches = (0..20).map(|_| fetch(&origins, &registry));
    for bytes in futures::future::join_all(fetches).await {
        assert_eq!(bytes.unwrap(), b"blob");
    }
    assert_eq!(tokens.seen().len(), 1);
}

#[tokio::test]
async fn a_token_that_is_no_longer_taken_is_replaced_once() {
    let current = Arc::new(AtomicUsize::new(0));
    let (good, issued) = (Arc::clone(&current), Arc::clone(&current));
    let (registry, tokens) = pair(
        move || format!("t{}", good.load(Ordering::SeqCst)),
        move |_, _| {
            let token = json!({ "token": format!("t{}", issued.load(Ordering::SeqCst)), "expires_in": 300 });
            Reply::new(200, &[], token.to_string())
        },
    )
    .await;
    let origins = origins_with(&registry, CredentialSources::default());
    fetch(&origins, &registry).await.unwrap();
    current.store(1, Ordering::SeqCst);
    fetch(&origins, &registry).await.unwrap();
    assert_eq!(tokens.seen().len(), 2);
}

#[tokio::test]
async fn a_registry_that_takes_no_token_is_asked_twice_and_no_more() {
    let (registry, tokens) =
        pair(|| "never".to_owned(), |n, _| Reply::new(200, &[], format!("{{\"token\":\"t{n}\"}}"))).await;
    let origins = origins_with(&registry, CredentialSources::default());
    let error = fetch(&origins, &registry).await.unwrap_err();
    assert!(matches!(error, OriginError::Unauthorized { .. }), "{error}");
    assert_eq!((registry.seen().len(), tokens.seen().len()), (2, 1));
}

#[tokio::test]
async fn passwords_go_to_the_token_server_and_not_to_the_registry() {
    let (registry, tokens) = pair(
        || "t0".to_owned(),
        |_, request| match request.header("authorization") {
            Some(sent) if sent == basic(USER, PASSWORD) => Reply::new(200, &[], r#"{"token":"t0"}"#),
            _ => Reply::new(401, &[], ""),
        },
    )
    .await;
    let origins = origins_with(&registry, explicit(&registry.host, password(USER, PASSWORD)));
    fetch(&origins, &registry).await.unwrap();
    assert!(registry.seen().iter().all(|r| !r.header("authorization").unwrap_or("").starts_with("Basic")));
    assert_eq!(tokens.seen().len(), 1);

    let origins = origins_with(&registry, explicit(&registry.host, password(USER, "wr0ng")));
    let error = fetch(&origins, &registry).await.unwrap_err();
    assert!(matches!(error, OriginError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("log in again") && !error.to_string().contains("wr0ng"), "{error}");
}

#[tokio::test]
async fn identity_tokens_are_traded_by_post_or_by_get_where_post_is_unknown() {
    for with_post in [true, false] {
        let (registry, tokens) = pair(
            || "t0".to_owned(),
            move |_, request| match request.method.as_str() {
                "POST" if with_post => {
                    let form: BTreeMap<String, String> =
                        form_urlencoded::parse(request.body.as_bytes()).into_owned().collect();
                    assert_eq!(form["grant_type"], "refresh_token");
                    assert_eq!(form["refresh_token"], "r+f&h");
                    assert_eq!(form["scope"], "repository:library/test:pull");
                    assert_eq!(
                        (form["service"].as_str(), form["client_id"].as_str()),
                        ("the service", "wherry")
                    );
                    Reply::new(200, &[], r#"{"access_token":"t0"}"#)
                }
                "POST" => Reply::new(405, &[], ""),
                _ if request.header("authorization") == Some(&basic("", "r+f&h")) => {
                    Reply::new(200, &[], r#"{"token":"t0"}"#)
                }
                _ => Reply::new(401, &[], ""),
            },
        )
        .await;
        let origins =
            origins_with(&registry, explicit(&registry.host, Credential::IdentityToken("r+f&h".to_owned())));
        assert_eq!(fetch(&origins, &registry).await.unwrap(), b"blob");
        assert_eq!(tokens.seen().len(), if with_post { 1 } else { 2 });
    }
}

#[tokio::test]
async fn token_servers_that_are_not_the_registrys_get_nothing() {
    let tokens = Script::start(|_, _| Reply::new(200, &[], r#"{"token":"t0"}"#)).await;
    for realm in [
        format!("http://{}/token", tokens.localhost()),
        format!("https://{}/token", tokens.localhost()),
        "http://169.254.169.254/token".to_owned(),
        "https://auth.docker.io/token".to_owned(),
        "token".to_owned(),
    ] {
        let shown = realm.clone();
        let challenge = format!("Bearer realm=\"{realm}\"");
        let registry =
            Script::start(move |_, _| Reply::new(401, &[("WWW-Authenticate", &challenge)], "")).await;
        let origins = origins_with(&registry, explicit(&registry.host, password(USER, PASSWORD)));
        let error = fetch(&origins, &registry).await.unwrap_err();
        assert!(matches!(error, OriginError::BadAnswer { .. }), "{shown}: {error}");
    }
    assert!(tokens.seen().is_empty());
}

#[tokio::test]
async fn token_servers_answers_are_bounded_and_not_followed_elsewhere() {
    let evil = Script::start(|_, _| Reply::new(200, &[], r#"{"token":"t0"}"#)).await;
    let away = format!("http://{}/token", evil.address);
    let answers: [Box<dyn Fn() -> Reply + Send + Sync>; 4] = [
        Box::new(|| Reply::new(200, &[], json!({ "token": "x".repeat(MAX_TOKEN) }).to_string())),
        Box::new(|| Reply::new(200, &[], "no json")),
        Box::new(|| Reply::new(200, &[], r#"{"token":"a\r\nX-Evil: 1"}"#)),
        Box::new(move || Reply::new(302, &[("Location", &away)], "")),
    ];
    for answer in answers {
        let (registry, _tokens) = pair(|| "t0".to_owned(), move |_, _| answer()).await;
        let origins = origins_with(&registry, explicit(&registry.host, password(USER, PASSWORD)));
        let error = fetch(&origins, &registry).await.unwrap_err();
        assert!(matches!(error, OriginError::BadAnswer { .. }), "{error}");
    }
    assert!(evil.seen().is_empty());
}

#[tokio::test]
async fn a_token_server_that_is_busy_is_asked_again() {
    let (registry, tokens) = pair(
        || "t0".to_owned(),
        |number, _| match number {
            0 => Reply::new(503, &[], ""),
            1 => Reply::new(429, &[("Retry-After", "0")], ""),
            _ => Reply::new(200, &[], r#"{"token":"t0"}"#),
        },
    )
    .await;
    let origins = origins_with(&registry, CredentialSources::default());
    assert_eq!(fetch(&origins, &registry).await.unwrap(), b"blob");
    assert_eq!(tokens.seen().len(), 3);
}

/// A token as docker-registry takes it, for what the request's scope asks.
fn signed(authority: &Authority, scope: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut scope = scope.split(':');
    let (kind, name, actions) = (scope.next().unwrap(), scope.next().unwrap(), scope.next().unwrap());
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [STANDARD.encode(authority.der())] });
    let claims = json!({
        "iss": "test issuer", "sub": USER, "aud": "test service", "jti": "1",
        "iat": now, "nbf": now - 60, "exp": now + 300,
        "access": [{ "type": kind, "name": name, "actions": [actions] }],
    });
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(authority.sign(text.as_bytes()));
    format!("{text}.{signature}")
}

#[tokio::test]
async fn a_real_registry_takes_the_tokens_of_its_token_server() {
    let authority = Authority::new();
    let certificate = authority.certificate();
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let tokens = Script::start(move |_, request| {
        *count.lock().unwrap() += 1;
        let query = query(request);
        if query["service"] != "test service"
            || request.header("authorization") != Some(&basic(USER, PASSWORD))
        {
            return Reply::new(401, &[], "");
        }
        let token = json!({ "token": signed(&authority, &query["scope"]), "expires_in": 300 });
        Reply::new(200, &[], token.to_string())
    })
    .await;
    let realm = format!("http://{}/token", tokens.address);
    let registry = Registry::start("", "", |_| {
        format!(
            "auth: {{token: {{realm: '{realm}', service: test service, issuer: test issuer, rootcertbundle: {}}}}}\n",
            certificate.display()
        )
    });
    let origins = registry.origins(explicit(&registry.host, password(USER, PASSWORD)));
    check_image(&registry, &origins).await;
    assert_eq!(*asked.lock().unwrap(), 1, "one token serves the whole image");

    let origins = registry.origins(CredentialSources::default());
    let error = origins.manifest(&registry.host, &repository(), &tag("v1")).await.unwrap_err();
    assert!(matches!(error, OriginError::Unauthorized { .. }), "{error}");
}
