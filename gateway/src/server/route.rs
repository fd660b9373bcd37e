//! From a request line to what it asks for.

use http::{Method, Uri};
use url::form_urlencoded;
use wherry_proto::Algorithm;

use super::{Refusal, RefusalKind};
use crate::name::{Aliases, Host, Repository, TagOrDigest};

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
    /// The manifests that are about another, of one type if one is named.
    Referrers(Place, wherry_proto::Digest, Option<String>),
    /// Something is to be changed.
    Change(Place, Change),
}

/// What a client wants to change in a repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Begin an upload.
    Begin(Begin),
    /// Add bytes to one.
    Append(String),
    /// Add the last bytes, if any, and make a blob of it.
    Finish(String, wherry_proto::Digest),
    /// How far it has come.
    Status(String),
    /// Give it up.
    Cancel(String),
    /// Store a manifest.
    PutManifest(TagOrDigest),
    /// Remove a tag, or a manifest with all its tags.
    DeleteManifest(TagOrDigest),
    /// Remove a blob.
    DeleteBlob(wherry_proto::Digest),
}

/// How an upload begins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Begin {
    /// The digest that the body has, which is all of the blob.
    pub(crate) digest: Option<wherry_proto::Digest>,
    /// The blob is in another repository already.
    pub(crate) mount: Option<wherry_proto::Digest>,
    /// In which, if one is named.
    pub(crate) from: Option<Place>,
    /// By which hash the digest will be.
    pub(crate) algorithm: Algorithm,
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
    Uploads,
    Upload(&'a str),
    Referrers(&'a str),
}

impl Route {
    pub(crate) fn parse(method: &Method, uri: &Uri, aliases: &Aliases) -> Result<Self, Refusal> {
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
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                (name, Endpoint::Uploads)
            }
            [name @ .., "blobs", "uploads", id] => (name, Endpoint::Upload(id)),
            [name @ .., "blobs", digest] => (name, Endpoint::Blob(digest)),
            [name @ .., "tags", "list"] => (name, Endpoint::Tags),
            [name @ .., "referrers", digest] => (name, Endpoint::Referrers(digest)),
            _ => return Err(no_endpoint()),
        };
        if name.is_empty() {
            return Err(Refusal::new(RefusalKind::NameInvalid, "the path names no repository"));
        }
        let verb = match *method {
            Method::GET | Method::HEAD => Verb::Read,
            Method::POST => Verb::Post,
            Method::PUT => Verb::Put,
            Method::PATCH => Verb::Patch,
            Method::DELETE => Verb::Delete,
            _ => return Err(wrong_method(method)),
        };
        let query = Query::parse(uri.query().unwrap_or_default())?;
        let place = Place::parse(name, query.namespace.clone(), aliases)?;
        let change = match (endpoint, verb) {
            (Endpoint::Manifest(reference), Verb::Read) => {
                return Ok(Self::Manifest(place, parse_target(reference)?));
            }
            (Endpoint::Blob(digest), Verb::Read) => return Ok(Self::Blob(place, parse_digest(digest)?)),
            (Endpoint::Tags, Verb::Read) => return Ok(Self::Tags(place, query.page)),
            (Endpoint::Referrers(digest), Verb::Read) => {
                return Ok(Self::Referrers(place, parse_digest(digest)?, query.artifact_type));
            }
            (Endpoint::Manifest(reference), Verb::Put) => Change::PutManifest(parse_new_target(reference)?),
            (Endpoint::Manifest(reference), Verb::Delete) => Change::DeleteManifest(parse_target(reference)?),
            (Endpoint::Blob(digest), Verb::Delete) => Change::DeleteBlob(parse_digest(digest)?),
            (Endpoint::Uploads, Verb::Post) => Change::Begin(query.begin(aliases)?),
            (Endpoint::Upload(id), verb) => {
                let id = parse_upload(id)?;
                match verb {
                    Verb::Read => Change::Status(id),
                    Verb::Patch => Change::Append(id),
                    Verb::Put => Change::Finish(id, query.last_digest()?),
                    Verb::Delete => Change::Cancel(id),
                    Verb::Post => return Err(wrong_method(method)),
                }
            }
            _ => return Err(wrong_method(method)),
        };
        Ok(Self::Change(place, change))
    }

    /// The methods that a target knows, and what each asks for, where that can be said without what is missing in this
    /// request.
    pub(super) fn methods(uri: &Uri, aliases: &Aliases) -> impl Iterator<Item = (Method, Option<Self>)> {
        let all =
            [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE].into_iter();
        all.filter_map(|method| match Self::parse(&method, uri, aliases) {
            Ok(route) => Some((method, Some(route))),
            Err(refusal) if refusal.kind == RefusalKind::Unsupported => None,
            Err(_) => Some((method, None)),
        })
    }

    /// The repository that is meant, if one is.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Base => None,
            Self::Manifest(place, _)
            | Self::Blob(place, _)
            | Self::Tags(place, _)
            | Self::Referrers(place, _, _)
            | Self::Change(place, _) => Some(place),
        }
    }
}

impl Place {
    /// `ns` names the origin and leaves the path alone; without it a first part does that is an alias or looks like a host.
    fn parse(name: &[&str], namespace: Option<Host>, aliases: &Aliases) -> Result<Self, Refusal> {
        let invalid = |error: crate::NameError| Refusal::new(RefusalKind::NameInvalid, error.to_string());
        let by_namespace = namespace.is_some();
        let (origin, repository) = match (namespace, name) {
            (Some(host), name) => (Some(host), name),
            (None, [first, rest @ ..]) if !rest.is_empty() => match aliases.host(first).map_err(invalid)? {
                Some(host) => (Some(host), rest),
                None => (None, name),
            },
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
            (None, RefusalKind::ManifestUnknown | RefusalKind::NameUnknown | RefusalKind::Denied) => {
                "the name has no registry in it, so the node's default origin was asked: \
                  'wherry up --default-origin HOST:PORT' sets which that is, and \
                  'wherry up --origin \"HOST:PORT alias=NAME\"' lets it be named as NAME/…"
                    .to_owned()
            }
            (Some(host), RefusalKind::Unavailable)
                if !self.by_namespace && host.port().is_none() && !host.is_docker_io() =>
            {
                format!(
                    "if that registry has a port, which no name can hold there, give it an alias, as with \
                     'wherry up --origin \"{host}:PORT alias=NAME\"', and ask for NAME/{}",
                    self.repository
                )
            }
            _ => return refusal,
        };
        Refusal { message: format!("{}; {advice}", refusal.message), ..refusal }
    }
}

/// What a method asks for.
#[derive(Clone, Copy)]
enum Verb {
    Read,
    Post,
    Put,
    Patch,
    Delete,
}

#[derive(Default)]
struct Query {
    namespace: Option<Host>,
    page: Page,
    artifact_type: Option<String>,
    digest: Option<String>,
    mount: Option<String>,
    from: Option<String>,
    algorithm: Option<String>,
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
                "artifactType" if !value.is_empty() => out.artifact_type = Some(value.into_owned()),
                "digest" => out.digest = Some(value.into_owned()),
                "mount" => out.mount = Some(value.into_owned()),
                "from" => out.from = Some(value.into_owned()),
                "digest-algorithm" => out.algorithm = Some(value.into_owned()),
                _ => {}
            }
        }
        Ok(out)
    }

    fn begin(self, aliases: &Aliases) -> Result<Begin, Refusal> {
        let namespace = self.namespace;
        let digest = self.digest.as_deref().map(parse_digest).transpose()?;
        let algorithm = match (self.algorithm.as_deref(), &digest) {
            (Some(name), _) => name.parse().map_err(|error: wherry_proto::DigestError| {
                Refusal::new(RefusalKind::DigestInvalid, format!("digest-algorithm: {error}"))
            })?,
            (None, Some(digest)) => digest.algorithm(),
            (None, None) => Algorithm::Sha256,
        };
        Ok(Begin {
            digest,
            mount: self.mount.as_deref().map(parse_digest).transpose()?,
            // A name that cannot be one is as good as none: the blob is uploaded then.
            from: self.from.and_then(|from| {
                let parts: Vec<&str> = from.split('/').collect();
                Place::parse(&parts, namespace, aliases).ok()
            }),
            algorithm,
        })
    }

    fn last_digest(self) -> Result<wherry_proto::Digest, Refusal> {
        let digest = self.digest.ok_or_else(|| {
            Refusal::new(RefusalKind::DigestInvalid, "an upload ends with ?digest=, which is missing")
        })?;
        parse_digest(&digest)
    }
}

/// The target of a manifest that is to be stored: what is no tag can be given none.
fn parse_new_target(text: &str) -> Result<TagOrDigest, Refusal> {
    parse_target(text).map_err(|refusal| match refusal.kind {
        RefusalKind::ManifestUnknown => Refusal { kind: RefusalKind::TagInvalid, ..refusal },
        _ => refusal,
    })
}

/// The longest id of an upload; all are made here.
const MAX_UPLOAD_ID: usize = 64;

fn parse_upload(id: &str) -> Result<String, Refusal> {
    let is_one = id.len() <= MAX_UPLOAD_ID && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_one.then(|| id.to_owned()).ok_or_else(|| {
        Refusal::new(RefusalKind::BlobUploadUnknown, "there is no such upload: begin it anew with POST")
    })
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
        "there is no such endpoint: this gateway serves /v2/, manifests, blobs, blobs/uploads, referrers and tags/list",
    )
}

fn wrong_method(method: &Method) -> Refusal {
    let method: String = method.as_str().chars().take(20).collect();
    Refusal::new(RefusalKind::Unsupported, format!("{method} is not supported here"))
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
        Route::parse(&Method::GET, &uri.parse().unwrap(), &Aliases::default())
    }

    fn origin_and_repository(uri: &str) -> (Option<String>, String, bool) {
        match get(uri).unwrap() {
            Route::Manifest(place, _) | Route::Blob(place, _) | Route::Tags(place, _) => {
                (place.origin.map(|host| host.to_string()), place.repository.to_string(), place.by_namespace)
            }
            other => panic!("{uri} asks for {other:?}"),
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
        let change =
            |method, uri: &str| match Route::parse(&method, &uri.parse().unwrap(), &Aliases::default()) {
                Ok(Route::Change(_, change)) => change,
                other => panic!("{other:?}"),
            };
        let digest: wherry_proto::Digest = DIGEST.parse().unwrap();
        let begin = Begin { digest: None, mount: Some(digest), from: None, algorithm: Algorithm::Sha256 };
        let mounting = format!("/v2/a/blobs/uploads/?mount={DIGEST}&from=Not+One");
        assert_eq!(change(Method::POST, &mounting), Change::Begin(begin));
        let id = "0a".to_owned();
        assert_eq!(change(Method::GET, "/v2/a/blobs/uploads/0a?digest=x"), Change::Status(id.clone()));
        assert_eq!(change(Method::PATCH, "/v2/a/blobs/uploads/0a"), Change::Append(id.clone()));
        let last = format!("/v2/a/blobs/uploads/0a?digest={DIGEST}");
        assert_eq!(change(Method::PUT, &last), Change::Finish(id.clone(), digest));
        assert_eq!(change(Method::DELETE, &last), Change::Cancel(id));
        assert_eq!(change(Method::DELETE, &format!("/v2/a/blobs/{DIGEST}")), Change::DeleteBlob(digest));
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
            (Method::GET, "/v2/a/referrers/x", RefusalKind::DigestInvalid),
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
            (Method::TRACE, "/v2/a/manifests/x", RefusalKind::Unsupported),
            (Method::PUT, "/v2/a/blobs/uploads/", RefusalKind::Unsupported),
            (Method::POST, "/v2/a/manifests/x", RefusalKind::Unsupported),
            (Method::DELETE, "/v2/a/tags/list", RefusalKind::Unsupported),
            (Method::PUT, "/v2/a/manifests/.INVALID", RefusalKind::TagInvalid),
            (Method::PUT, "/v2/a/manifests/sha256:bad", RefusalKind::DigestInvalid),
            (Method::PUT, "/v2/a/blobs/uploads/1", RefusalKind::DigestInvalid),
            (Method::POST, "/v2/a/blobs/uploads/?digest=sha256:00", RefusalKind::DigestInvalid),
            (Method::POST, "/v2/a/blobs/uploads/?digest-algorithm=md5", RefusalKind::DigestInvalid),
            (Method::PATCH, "/v2/a/blobs/uploads/..", RefusalKind::BlobUploadUnknown),
            (Method::PATCH, "/v2/a/blobs/uploads/a%2fb", RefusalKind::NoEndpoint),
        ] {
            let refusal = Route::parse(&method, &uri.parse().unwrap(), &Aliases::default()).unwrap_err();
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
