//! From a request line to what it asks for.

use http::{Method, Uri};
use url::form_urlencoded;

use super::{Refusal, RefusalKind};
use crate::name::{Host, Repository, TagOrDigest};

/// The most tags in one page of a listing.
pub(super) const MAX_TAGS_PAGE: usize = 1000;

/// What a well-formed request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`: does this speak the protocol?
    Base,
    /// A manifest.
    Manifest(Place, TagOrDigest),
    /// A blob.
    Blob(Place, wherry_proto::Digest),
    /// A page of the list of tags.
    Tags(Place, Page),
}

/// The repository of a request and how its origin was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) origin: Option<Host>,
    pub(crate) repository: Repository,
    /// The origin came as `?ns=`, which is to be confirmed in the answer.
    pub(crate) by_namespace: bool,
}

/// Which part of a listing is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// At most so many.
    pub(crate) n: Option<usize>,
    /// Only what sorts behind this.
    pub(crate) last: Option<String>,
}

/// The end of a path under `/v2/`, which tells the endpoints apart.
enum Endpoint<'a> {
    Manifest(&'a str),
    Blob(&'a str),
    Tags,
    Push(&'static str),
    Referrers,
}

impl Route {
    pub(crate) fn parse(method: &Method, uri: &Uri) -> Result<Self, Refusal> {
        let path = percent_decode(uri.path())
            .ok_or_else(|| Refusal::new(RefusalKind::NoEndpoint, "the path is not percent-encoded UTF-8"))?;
        let reading = method == Method::GET || method == Method::HEAD;
        let Some(rest) = path.strip_prefix("/v2") else { return Err(no_endpoint()) };
        if rest.is_empty() || rest == "/" {
            return if reading { Ok(Self::Base) } else { Err(wrong_method(method)) };
        }
        let parts: Vec<&str> = rest.strip_prefix('/').ok_or_else(no_endpoint)?.split('/').collect();
        let (name, endpoint) = match parts.as_slice() {
            [name @ .., "manifests", reference] => (name, Endpoint::Manifest(reference)),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", _] => {
                (name, Endpoint::Push("uploading blobs"))
            }
            [name @ .., "blobs", digest] => (name, Endpoint::Blob(digest)),
            [name @ .., "tags", "list"] => (name, Endpoint::Tags),
            [name @ .., "referrers", _] => (name, Endpoint::Referrers),
            _ => return Err(no_endpoint()),
        };
        if name.is_empty() {
            return Err(Refusal::new(RefusalKind::NameInvalid, "the path names no repository"));
        }
        let endpoint = match (endpoint, reading) {
            (Endpoint::Push(what), _) => return Err(no_push(what)),
            (Endpoint::Manifest(_), false) if method == Method::PUT => {
                return Err(no_push("pushing manifests"));
            }
            (_, false) => return Err(wrong_method(method)),
            (endpoint, true) => endpoint,
        };
        let query = Query::parse(uri.query().unwrap_or_default())?;
        let place = Place::parse(name, query.namespace)?;
        match endpoint {
            Endpoint::Manifest(reference) => Ok(Self::Manifest(place, parse_target(reference)?)),
            Endpoint::Blob(digest) => Ok(Self::Blob(place, parse_digest(digest)?)),
            Endpoint::Tags => Ok(Self::Tags(place, query.page)),
            // 404 is how the specification lets a registry say so; clients then look for the fallback tag.
            Endpoint::Referrers | Endpoint::Push(_) => Err(no_endpoint()),
        }
    }

    /// The repository that is meant, if one is.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Base => None,
            Self::Manifest(place, _) | Self::Blob(place, _) | Self::Tags(place, _) => Some(place),
        }
    }
}

impl Place {
    /// `ns` names the origin and leaves the path alone; without it a first part that looks like a host does.
    fn parse(name: &[&str], namespace: Option<Host>) -> Result<Self, Refusal> {
        let invalid = |error: crate::NameError| Refusal::new(RefusalKind::NameInvalid, error.to_string());
        let by_namespace = namespace.is_some();
        let (origin, repository) = match (namespace, name) {
            (Some(host), name) => (Some(host), name),
            (None, [first, rest @ ..]) if !rest.is_empty() && Host::looks_like_host(first) => {
                (Some(first.parse().map_err(invalid)?), rest)
            }
            (None, name) => (None, name),
        };
        let mut repository: Repository = repository.join("/").parse().map_err(invalid)?;
        if origin.as_ref().is_some_and(Host::is_docker_io) {
            repository = repository.with_library();
        }
        Ok(Self { origin, repository, by_namespace })
    }

    /// Adds what helps a client that means a registry with a port: clients take no ':' in the middle of a name, so
    /// they can name it neither in the path nor without a host.
    pub(super) fn advise(&self, refusal: Refusal) -> Refusal {
        let advice = match (&self.origin, refusal.kind) {
            (
                None,
                RefusalKind::ManifestUnknown
                | RefusalKind::NameUnknown
                | RefusalKind::Denied
                | RefusalKind::Unauthorized,
            ) => "the name has no registry in it, so the node's default origin was asked: \
                  'wherry up --default-origin HOST:PORT' sets which that is"
                .to_owned(),
            (Some(host), RefusalKind::Unavailable)
                if !self.by_namespace && host.port().is_none() && !host.is_docker_io() =>
            {
                format!(
                    "if that registry has a port, which no name can hold there, start the node with \
                     'wherry up --default-origin {host}:PORT' and ask for {} alone",
                    self.repository
                )
            }
            _ => return refusal,
        };
        Refusal { message: format!("{}; {advice}", refusal.message), ..refusal }
    }
}

#[derive(Default)]
struct Query {
    namespace: Option<Host>,
    page: Page,
}

impl Query {
    fn parse(query: &str) -> Result<Self, Refusal> {
        let mut out = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "ns" if !value.is_empty() => {
                    out.namespace = Some(value.parse().map_err(|error: crate::NameError| {
                        Refusal::new(RefusalKind::NameInvalid, format!("ns: {error}"))
                    })?);
                }
                // A count that cannot be read is as good as none.
                "n" => out.page.n = value.parse().ok().map(|n: usize| n.min(MAX_TAGS_PAGE)),
                "last" if !value.is_empty() => out.page.last = Some(value.into_owned()),
                _ => {}
            }
        }
        Ok(out)
    }
}

fn parse_target(text: &str) -> Result<TagOrDigest, Refusal> {
    match text.parse() {
        Ok(target) => Ok(target),
        Err(error @ crate::NameError::Digest(_)) => {
            Err(Refusal::new(RefusalKind::DigestInvalid, error.to_string()))
        }
        // There can be no manifest by a name that is no tag, and the specification knows no other answer.
        Err(error) => Err(Refusal::new(RefusalKind::ManifestUnknown, error.to_string())),
    }
}

fn parse_digest(text: &str) -> Result<wherry_proto::Digest, Refusal> {
    text.parse().map_err(|error: wherry_proto::DigestError| {
        Refusal::new(RefusalKind::DigestInvalid, error.to_string())
    })
}

fn no_endpoint() -> Refusal {
    Refusal::new(
        RefusalKind::NoEndpoint,
        "there is no such endpoint: this gateway serves /v2/, manifests, blobs and tags/list",
    )
}

fn no_push(what: &str) -> Refusal {
    Refusal::new(
        RefusalKind::Unsupported,
        format!("{what} is not supported by this gateway: push to the origin and pull through the gateway"),
    )
}

fn wrong_method(method: &Method) -> Refusal {
    let method: String = method.as_str().chars().take(20).collect();
    Refusal::new(RefusalKind::Unsupported, format!("{method} is not supported here: use GET or HEAD"))
}

/// Undoes percent-encoding; `None` if it is malformed or hides something that is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(uri: &str) -> Result<Route, Refusal> {
        Route::parse(&Method::GET, &uri.parse().unwrap())
    }

    fn origin_and_repository(uri: &str) -> (Option<String>, String, bool) {
        match get(uri).unwrap() {
            Route::Manifest(place, _) | Route::Blob(place, _) | Route::Tags(place, _) => {
                (place.origin.map(|host| host.to_string()), place.repository.to_string(), place.by_namespace)
            }
            Route::Base => panic!("{uri} has no place"),
        }
    }

    #[test]
    fn the_origin_is_taken_from_ns_then_from_the_path_then_left_open() {
        for (uri, origin, repository, by_namespace) in [
            ("/v2/library/alpine/manifests/latest", None, "library/alpine", false),
            ("/v2/alpine/manifests/latest", None, "alpine", false),
            ("/v2/library/alpine/manifests/latest?ns=quay.io", Some("quay.io"), "library/alpine", true),
            ("/v2/alpine/manifests/latest?ns=docker.io", Some("docker.io"), "library/alpine", true),
            ("/v2/quay.io/a/b/manifests/latest", Some("quay.io"), "a/b", false),
            ("/v2/docker.io/alpine/tags/list", Some("docker.io"), "library/alpine", false),
            ("/v2/localhost:5000/a/manifests/x", Some("localhost:5000"), "a", false),
            ("/v2/localhost%3A5000/a/manifests/x", Some("localhost:5000"), "a", false),
            ("/v2/a.b/c/manifests/x?ns=quay.io", Some("quay.io"), "a.b/c", true),
            ("/v2/a.b/manifests/x", None, "a.b", false),
            ("/v2/manifests/manifests/x", None, "manifests", false),
        ] {
            let expected = (origin.map(str::to_owned), repository.to_owned(), by_namespace);
            assert_eq!(origin_and_repository(uri), expected, "{uri}");
        }
    }

    #[test]
    fn endpoints_are_told_apart() {
        assert_eq!(get("/v2/").unwrap(), Route::Base);
        assert_eq!(get("/v2").unwrap(), Route::Base);
        assert!(matches!(get(&format!("/v2/a/blobs/{DIGEST}")), Ok(Route::Blob(..))));
        let encoded = DIGEST.replace(':', "%3A");
        assert!(matches!(
            get(&format!("/v2/a/manifests/{encoded}")),
            Ok(Route::Manifest(_, TagOrDigest::Digest(_)))
        ));
        let Ok(Route::Tags(_, page)) = get("/v2/a/tags/list?n=5000&last=x") else { panic!() };
        assert_eq!(page, Page { n: Some(MAX_TAGS_PAGE), last: Some("x".to_owned()) });
    }

    #[test]
    fn what_cannot_be_asked_has_its_own_refusal() {
        for (method, uri, kind) in [
            (Method::GET, "/", RefusalKind::NoEndpoint),
            (Method::GET, "/v1/_ping", RefusalKind::NoEndpoint),
            (Method::GET, "/v2x", RefusalKind::NoEndpoint),
            (Method::GET, "/v2/_catalog", RefusalKind::NoEndpoint),
            (Method::GET, "/v2/a/referrers/x", RefusalKind::NoEndpoint),
            (Method::GET, "/v2/%ff/manifests/x", RefusalKind::NoEndpoint),
            (Method::GET, "/v2/A/manifests/x", RefusalKind::NameInvalid),
            (Method::GET, "/v2/a/../b/manifests/x", RefusalKind::NameInvalid),
            (Method::GET, "/v2/a/%2e%2e/b/manifests/x", RefusalKind::NameInvalid),
            (Method::GET, "/v2/manifests/x", RefusalKind::NameInvalid),
            (Method::GET, "/v2/a..b/c/manifests/x", RefusalKind::NameInvalid),
            (Method::GET, "/v2/a/manifests/x?ns=../x", RefusalKind::NameInvalid),
            (Method::GET, "/v2/a/manifests/.INVALID", RefusalKind::ManifestUnknown),
            (Method::GET, "/v2/a/manifests/sha256:00", RefusalKind::DigestInvalid),
            (Method::GET, "/v2/a/blobs/00", RefusalKind::DigestInvalid),
            (Method::GET, "/v2/a/blobs/sha256:..%2f..%2fetc", RefusalKind::NoEndpoint),
            (Method::POST, "/v2/", RefusalKind::Unsupported),
            (Method::POST, "/v2/a/blobs/uploads/", RefusalKind::Unsupported),
            (Method::PATCH, "/v2/a/blobs/uploads/1", RefusalKind::Unsupported),
            (Method::GET, "/v2/a/blobs/uploads/1", RefusalKind::Unsupported),
            (Method::PUT, "/v2/a/manifests/x", RefusalKind::Unsupported),
            (Method::DELETE, "/v2/a/manifests/x", RefusalKind::Unsupported),
        ] {
            let refusal = Route::parse(&method, &uri.parse().unwrap()).unwrap_err();
            assert_eq!(refusal.kind, kind, "{method} {uri}: {}", refusal.message);
        }
    }

    proptest! {
        #[test]
        fn no_request_line_panics(path in "/v2/[a-z./:%0-9A-F_-]{0,60}", query in "[a-z=&%0-9.]{0,20}") {
            crate::hostile::targets(format!("{path}?{query}").as_bytes());
        }
    }
}
