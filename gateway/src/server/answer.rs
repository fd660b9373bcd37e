//! One request, one answer.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AGE, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE,
    LINK, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use serde_json::json;
use tokio::sync::Semaphore;
use url::form_urlencoded;
use wherry_proto::Digest;

use super::body::{Outgoing, Payload};
use super::caller::credential;
use super::content::{Ask, BlobReader, Body, Content, Want};
use super::incoming::incoming;
use super::link::Wire;
use super::log::{Exchange, Watcher};
use super::pagecache::PageCache;
use super::parts::Parts;
use super::range::{MAX_RANGES, Span, parse_range};
use super::route::{Change, MAX_TAGS_PAGE, Page, Place, Route};
use super::{Incoming, Push, Refusal, RefusalKind};
use crate::name::{Aliases, TagOrDigest};
use crate::origin::Credential;

pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
pub(super) const SOURCE: HeaderName = HeaderName::from_static("wherry-source");

/// The header of what `/v2/` answers, by which a gateway is told from other registries, refusals included.
pub const GATEWAY_HEADER: &str = "wherry-gateway";
const GATEWAY: HeaderName = HeaderName::from_static(GATEWAY_HEADER);

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// What is sent as `Retry-After` with 503 if the content names no time.
const RETRY: Duration = Duration::from_secs(5);

/// What every connection of a server shares.
pub(super) struct Gateway<C> {
    pub(super) content: Arc<C>,
    pub(super) cache: PageCache,
    pub(super) watcher: Option<Watcher>,
    pub(super) aliases: Aliases,
    /// Taken by each manifest while it comes.
    pub(super) manifests: Semaphore,
}

/// An answer before it has a body that counts and logs.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// What the Content-Length says; a HEAD is answered with it and no body.
    len: u64,
    body: Payload,
}

impl<C: Content + Push> Gateway<C> {
    /// Answers a request; whatever is wrong with it is an answer too.
    pub(super) async fn answer<B>(
        &self,
        wire: Arc<Wire>,
        client: SocketAddr,
        request: Request<B>,
    ) -> Response<Outgoing>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let mut exchange =
            Exchange::begin(wire, client, request.method(), request.uri(), self.watcher.clone());
        let (parts, body) = request.into_parts();
        let want = if parts.method == Method::HEAD { Want::Head } else { Want::Get };
        let mut namespace = None;
        let mut is_base = false;
        let reply = match Route::parse(&parts.method, &parts.uri, &self.aliases) {
            Ok(route) => {
                namespace = route.namespace();
                is_base = route == Route::Base;
                // What is not taken of the body hyper discards, or it closes the connection if that is long.
                match credential(&parts.headers) {
                    Ok(credential) => {
                        let (headers, path) = (&parts.headers, parts.uri.path());
                        let asked = Asked { client, credential, want, headers, path };
                        self.route(route, &asked, incoming(body)).await
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            Err(refusal) => Err(refusal),
        };
        let mut reply = match reply {
            Ok(reply) => reply,
            Err(refusal) => {
                // The access log has the status alone, and clients show their users no more of a server's error.
                match refusal.kind.status().is_server_error() {
                    true => tracing::info!(kind = ?refusal.kind, message = refusal.message, "refused"),
                    false => tracing::debug!(kind = ?refusal.kind, message = refusal.message, "refused"),
                }
                let mut reply = Reply::refused(&refusal);
                if refusal.kind == RefusalKind::Unsupported {
                    insert_text(
                        &mut reply.headers,
                        ALLOW,
                        &self.allowed(client, &parts.headers, &parts.uri).await,
                    );
                }
                reply
            }
        };
        reply.headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        if is_base {
            reply.headers.insert(GATEWAY, HeaderValue::from_static("1"));
        }
        if let Some(namespace) = namespace {
            reply.headers.insert(NAMESPACE, namespace);
        }
        exchange.answered(reply.status, &reply.headers);
        let body = match want {
            Want::Head => Outgoing::empty(self.cache.clone(), exchange),
            Want::Get => Outgoing::new(reply.body, reply.len, self.cache.clone(), exchange),
        };
        let mut response = Response::new(body);
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        if reply.status != StatusCode::NOT_MODIFIED {
            response.headers_mut().insert(CONTENT_LENGTH, reply.len.into());
        }
        response
    }

    /// The methods that this client may use on a target, as the Allow header lists them.
    async fn allowed(&self, client: SocketAddr, headers: &HeaderMap, uri: &Uri) -> String {
        let methods: Vec<_> = Route::methods(uri, &self.aliases).collect();
        let place = methods.iter().find_map(|(_, route)| route.as_ref()?.place());
        let shown = credential(headers).unwrap_or_default();
        let Some(ask) = place.map(|place| ask(client, shown, place.clone())) else {
            return list(methods.iter().map(|(method, _)| method));
        };
        let (pushes, removes) =
            (self.content.admits(&ask).await.is_ok(), self.content.admits_removal(&ask).await.is_ok());
        let admitted = methods.iter().filter(|(method, route)| match route {
            Some(Route::Change(_, Change::DeleteManifest(_) | Change::DeleteBlob(_))) => removes,
            Some(Route::Change(..)) => pushes,
            None if !matches!(*method, Method::GET | Method::HEAD) => pushes,
            _ => true,
        });
        list(admitted.map(|(method, _)| method))
    }

    async fn route(&self, route: Route, asked: &Asked<'_>, body: Incoming) -> Result<Reply, Refusal> {
        let place = route.place().cloned();
        let reply = match route {
            Route::Base => {
                let admitted = self.content.greets(asked.client, asked.credential.clone()).await;
                admitted.map(|()| Reply::json(StatusCode::OK, Bytes::from_static(b"{}")))
            }
            Route::Manifest(place, reference) => self.manifest(place, reference, asked).await,
            Route::Blob(place, digest) => self.blob(place, digest, asked).await,
            Route::Tags(place, page) => self.tags(place, page, asked).await,
            Route::Referrers(place, subject, kind) => self.referrers(place, subject, kind, asked).await,
            Route::Change(place, change) => self.change(place, change, asked, body).await,
        };
        reply.map_err(|refusal| match place {
            Some(place) => place.advise(refusal),
            None => refusal,
        })
    }

    async fn manifest(
        &self,
        place: Place,
        reference: TagOrDigest,
        asked: &Asked<'_>,
    ) -> Result<Reply, Refusal> {
        let answer = self.content.manifest(asked.ask(place), reference, asked.want).await?;
        let media_type = HeaderValue::from_str(&answer.media_type)
            .map_err(|_| internal("the manifest's media type is no header value"))?;
        let mut headers = content_headers(&answer.digest, media_type);
        if let Some(age) = answer.age {
            headers.insert(AGE, age.as_secs().into());
        }
        if let Some(source) = answer.source {
            headers.insert(SOURCE, HeaderValue::from_static(source.as_str()));
        }
        let bytes = answer.bytes;
        let selected = asked.select(headers, &answer.digest, answer.size)?;
        if asked.want == Want::Get && bytes.len() as u64 != answer.size {
            return Err(internal("the manifest's bytes are not as many as its size says"));
        }
        Ok(match selected {
            Selected::Done(reply) => reply,
            Selected::Range(reply, _) if asked.want == Want::Head => reply,
            Selected::Range(reply, range) => {
                let part = bytes.slice(range.start as usize..range.end as usize);
                Reply { body: Payload::One(Body::Bytes(part)), ..reply }
            }
            Selected::Parts(reply, parts) => {
                Reply { body: Payload::One(Body::Bytes(parts.of(&bytes))), ..reply }
            }
        })
    }

    async fn blob(&self, place: Place, digest: Digest, asked: &Asked<'_>) -> Result<Reply, Refusal> {
        let reader = self.content.blob(asked.ask(place), digest, asked.want).await?;
        let size = reader.size();
        let (reply, range, parts) = match asked.select(content_headers(&digest, OCTETS), &digest, size)? {
            Selected::Done(reply) => return Ok(reply),
            Selected::Range(reply, range) => (reply, range, None),
            Selected::Parts(reply, parts) => (reply, parts.first().unwrap_or_default(), Some(parts)),
        };
        if asked.want == Want::Head || range.is_empty() {
            return Ok(reply);
        }
        let len = range.end - range.start;
        let body = self.cache.at_hand(reader.read(range).await?).await;
        let body =
            body.map_err(|error| internal(&format!("the stored blob {digest:?} cannot be read: {error}")))?;
        if body.len().is_some_and(|given| given != len) {
            return Err(internal("the content gave another length than it was asked for"));
        }
        let body = match parts {
            None => Payload::One(body),
            Some(parts) => Payload::Many(parts.read(reader, body, self.cache.clone())),
        };
        Ok(Reply { body, ..reply })
    }

    async fn tags(&self, place: Place, page: Page, asked: &Asked<'_>) -> Result<Reply, Refusal> {
        let namespace = place.by_namespace.then(|| place.origin.clone()).flatten();
        let mut tags = self.content.tags(asked.ask(place)).await?;
        // The specification's order does not tell capitals apart; the second key makes it total.
        tags.sort_unstable_by(|a, b| tag_key(a).cmp(&tag_key(b)));
        tags.dedup();
        if let Some(last) = &page.last {
            let behind = tags.partition_point(|tag| tag_key(tag) <= tag_key(last));
            tags.drain(..behind);
        }
        let n = page.n.unwrap_or(MAX_TAGS_PAGE);
        let more = tags.len() > n;
        tags.truncate(n);
        // The client's own words for the repository, so that what it asks next is answered alike.
        let path = asked.path;
        let name = path.strip_prefix("/v2/").and_then(|rest| rest.strip_suffix("/tags/list")).unwrap_or(path);
        let body = json!({ "name": name, "tags": tags });
        let mut reply = Reply::json(StatusCode::OK, Bytes::from(body.to_string()));
        if let (true, Some(last)) = (more, tags.last()) {
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.append_pair("n", &n.to_string()).append_pair("last", last);
            if let Some(namespace) = namespace {
                query.append_pair("ns", namespace.as_str());
            }
            let link = format!("<{path}?{}>; rel=\"next\"", query.finish());
            let link = HeaderValue::from_str(&link).map_err(|_| internal("a tag is no part of a URL"))?;
            reply.headers.insert(LINK, link);
        }
        Ok(reply)
    }
}

fn list<'a>(methods: impl Iterator<Item = &'a Method>) -> String {
    methods.map(Method::as_str).collect::<Vec<_>>().join(", ")
}

/// The order of tags.
fn tag_key(tag: &str) -> (String, &str) {
    (tag.to_ascii_lowercase(), tag)
}

/// What of a request the answer depends on.
pub(super) struct Asked<'a> {
    client: SocketAddr,
    credential: Option<Credential>,
    want: Want,
    pub(super) headers: &'a HeaderMap,
    pub(super) path: &'a str,
}

fn ask(client: SocketAddr, credential: Option<Credential>, place: Place) -> Ask {
    let Place { origin, repository, by_namespace } = place;
    Ask { client, credential, origin, repository, is_mirror: by_namespace }
}

enum Selected {
    /// The answer needs no content.
    Done(Reply),
    /// The answer is this with these bytes of the content as its body.
    Range(Reply, Range<u64>),
    /// The answer is this with several parts of the content as its body.
    Parts(Reply, Parts),
}

impl Asked<'_> {
    pub(super) fn ask(&self, place: Place) -> Ask {
        ask(self.client, self.credential.clone(), place)
    }

    /// Settles what part of a content of `size` bytes is asked for.
    fn select(&self, mut headers: HeaderMap, digest: &Digest, size: u64) -> Result<Selected, Refusal> {
        let etag = format!("\"{digest}\"");
        if self.matches(IF_NONE_MATCH, &etag) {
            headers.remove(CONTENT_TYPE);
            return Ok(Selected::Done(Reply::new(StatusCode::NOT_MODIFIED, headers, 0)));
        }
        let span = match self.headers.get(RANGE).and_then(|value| value.to_str().ok()) {
            // Ranges are defined for GET alone.
            Some(range) if self.want == Want::Get => {
                let fresh = !self.headers.contains_key(IF_RANGE) || self.if_range(&etag);
                if fresh { parse_range(range, size) } else { Span::Whole }
            }
            _ => Span::Whole,
        };
        Ok(match span {
            Span::Whole => Selected::Range(Reply::new(StatusCode::OK, headers, size), 0..size),
            Span::Part(part) => {
                let value = format!("bytes {}-{}/{size}", part.start, part.end - 1);
                insert_text(&mut headers, CONTENT_RANGE, &value);
                let reply = Reply::new(StatusCode::PARTIAL_CONTENT, headers, part.end - part.start);
                Selected::Range(reply, part)
            }
            Span::Parts(ranges) => {
                let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let parts = Parts::new(ranges, media_type.unwrap_or_default(), size)?;
                insert_text(&mut headers, CONTENT_TYPE, &parts.content_type());
                let reply = Reply::new(StatusCode::PARTIAL_CONTENT, headers, parts.len());
                Selected::Parts(reply, parts)
            }
            Span::Unsatisfiable => {
                let message = format!("the range begins behind the end: there are {size} bytes");
                let mut reply = Reply::refused(&Refusal::new(RefusalKind::RangeInvalid, message));
                insert_text(&mut reply.headers, CONTENT_RANGE, &format!("bytes */{size}"));
                Selected::Done(reply)
            }
            Span::TooMany => {
                // Clients that ask for so many ask for fewer at a time when they hear 400, and give up when they hear 416.
                let message = format!("at most {MAX_RANGES} ranges are taken in one request: ask in several");
                return Err(Refusal::new(RefusalKind::SizeInvalid, message));
            }
        })
    }

    fn matches(&self, header: HeaderName, etag: &str) -> bool {
        let listed = |value: &HeaderValue| {
            let Ok(list) = value.to_str() else { return false };
            list.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == etag)
        };
        self.headers.get_all(header).iter().any(listed)
    }

    /// Only the very same strong tag counts, and a date never does: nothing here has one.
    fn if_range(&self, etag: &str) -> bool {
        self.headers.get(IF_RANGE).is_some_and(|value| value.as_bytes().trim_ascii() == etag.as_bytes())
    }
}

impl Route {
    fn namespace(&self) -> Option<HeaderValue> {
        let place = self.place().filter(|place| place.by_namespace)?;
        HeaderValue::from_str(place.origin.as_ref()?.as_str()).ok()
    }
}

impl Reply {
    pub(super) fn new(status: StatusCode, headers: HeaderMap, len: u64) -> Self {
        Self { status, headers, len, body: Payload::One(Body::Bytes(Bytes::new())) }
    }

    pub(super) fn json(status: StatusCode, body: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, JSON);
        Self { status, headers, len: body.len() as u64, body: Payload::One(Body::Bytes(body)) }
    }

    pub(super) fn refused(refusal: &Refusal) -> Self {
        let mut reply = Self::json(refusal.kind.status(), refusal.body());
        let wait = refusal.retry_after.or((refusal.kind == RefusalKind::Unavailable).then_some(RETRY));
        if let Some(wait) = wait {
            reply.headers.insert(RETRY_AFTER, wait.as_secs().max(1).into());
        }
        if refusal.kind == RefusalKind::Unauthorized {
            reply.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"wherry\""));
        }
        reply
    }
}

fn content_headers(digest: &Digest, media_type: HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, media_type);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert_text(&mut headers, CONTENT_DIGEST, &digest.to_string());
    insert_text(&mut headers, ETAG, &format!("\"{digest}\""));
    headers
}

pub(super) fn insert_text(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

fn internal(message: &str) -> Refusal {
    tracing::error!(message, "an answer could not be given");
    Refusal::new(RefusalKind::Internal, message)
}
