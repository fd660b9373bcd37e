//! Requests to origins: schemes, redirects, timeouts, authorization and attempts.

use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::answered::Answered;
use super::auth::{Sessions, current};
use super::clients::{Clients, install_provider};
use super::counted::Remaining;
use super::mirrors::Mirrors;
use super::pace::Paces;
use super::realm::{is_insecure, is_private};
use super::retry::{Failure, retry_after};
use super::scheme::fault_of_error;
use super::{MAX_ERROR_BODY, MAX_REDIRECTS, OriginError, OriginSettings, SettingsError};
use crate::name::{Host, Repository};

/// How long a whole body may take that is read into memory: this long, and as long as the most bytes that it may
/// have need at this pace, in bytes a second. A server that drips cannot keep anybody waiting beyond that.
const BODY_TIME: Duration = Duration::from_secs(60);
const SLOWEST_PACE: usize = 8 << 10;

/// How much of an origin's own words an error quotes, in characters.
const QUOTED: usize = 300;

/// What all operations share.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) settings: OriginSettings,
    pub(super) sessions: Sessions,
    pub(super) answered: Answered,
    pub(super) mirrors: Mirrors,
    pub(super) pace: Paces,
    pub(super) remaining: Remaining,
    pub(super) clients: Clients,
}

/// One thing that is asked of one repository.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) host: &'a Host,
    pub(super) repository: &'a Repository,
    /// What errors call it, such as `manifest library/alpine:latest`.
    pub(super) what: &'a str,
}

impl Target<'_> {
    pub(super) fn unreachable(&self, why: impl Display) -> OriginError {
        let (host, what) = (self.host.to_string(), self.what.to_owned());
        OriginError::Unreachable { host, what, why: why.to_string() }
    }

    pub(super) fn bad(&self, why: impl Display) -> OriginError {
        let (host, what) = (self.host.to_string(), self.what.to_owned());
        OriginError::BadAnswer { host, what, why: why.to_string() }
    }

    pub(super) fn unauthorized(&self, why: impl Display) -> OriginError {
        let (host, what) = (self.host.to_string(), self.what.to_owned());
        OriginError::Unauthorized { host, what, why: why.to_string() }
    }

    fn not_found(&self) -> OriginError {
        OriginError::NotFound { host: self.host.to_string(), what: self.what.to_owned() }
    }

    pub(super) fn limited(&self, retry_after: Option<Duration>) -> OriginError {
        OriginError::RateLimited { host: self.host.to_string(), what: self.what.to_owned(), retry_after }
    }
}

impl Http {
    pub(super) fn new(settings: OriginSettings) -> Result<Self, SettingsError> {
        install_provider();
        Ok(Self {
            clients: Clients::new(&settings)?,
            mirrors: Mirrors::new(&settings),
            pace: Paces::new(&settings),
            remaining: Remaining::default(),
            settings,
            sessions: Sessions::default(),
            answered: Answered::default(),
        })
    }

    /// The scheme that a host is spoken to by.
    pub(super) fn scheme(&self, host: &Host) -> &'static str {
        if self.settings.insecure.contains(host) { "http" } else { "https" }
    }

    /// One attempt at `/v2/REPOSITORY/path` with authorization as far as it is needed and available. The
    /// answer has a status of success.
    pub(super) async fn attempt(
        &self,
        target: Target<'_>,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Failure> {
        if target.host.is_site() {
            return Err(Failure::Final(target.not_found()));
        }
        let (scheme, api) = (self.scheme(target.host), target.host.api_host());
        let url = format!("{scheme}://{api}/v2/{}/{path}", target.repository);
        let url = Url::parse(&url).map_err(|error| target.bad(format!("{url} is no URL: {error}")))?;
        let session = self.sessions.of(target.host, target.repository);
        let mut used = current(&session).await;
        let mut response = self.follow(target, method, &url, headers, used.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED && is_same_server(response.url(), &url) {
            used = Some(self.authenticate(target, &session, used.as_ref(), response).await?);
            response = self.follow(target, method, &url, headers, used.as_ref()).await?;
        }
        let judged = self.judge(target, method, response, used.is_some()).await;
        match &judged {
            Err(Failure::Final(error) | Failure::Passing(error, _)) if error.is_unreachable() => {}
            _ => self.answered.note(target.host),
        }
        judged
    }

    /// Sends a request and follows its redirects.
    pub(super) async fn follow(
        &self,
        target: Target<'_>,
        method: &Method,
        start: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut url = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = reqwest::Request::new(method.clone(), url.clone());
            *request.headers_mut() = headers.clone();
            // A compressed transfer would be other bytes than the digest is of.
            request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(authorization) = authorization
                && is_same_server(&url, start)
            {
                request.headers_mut().insert(AUTHORIZATION, authorization.clone());
            }
            let response = self.send(target, request).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let Some(next) = location.and_then(|location| url.join(location).ok()) else {
                return Err(target.bad("it redirects to nowhere").into());
            };
            self.check_redirect(target, start, &url, &next).await?;
            tracing::debug!(host = %target.host, to = next.host_str(), "redirected");
            url = next;
        }
        Err(target.bad(format_args!("it redirects more than {MAX_REDIRECTS} times")).into())
    }

    pub(super) async fn check_redirect(
        &self,
        target: Target<'_>,
        start: &Url,
        from: &Url,
        to: &Url,
    ) -> Result<(), OriginError> {
        let wrong = |why: &str| {
            Err(target.bad(format_args!("it redirects to {}, {why}", to.host_str().unwrap_or("no host"))))
        };
        if !to.username().is_empty() || to.password().is_some() {
            return wrong("with credentials in the URL");
        }
        match (from.scheme(), to.scheme()) {
            (_, "https") => {}
            ("http", "http") if is_same_server(from, to) || is_insecure(&self.settings, to) => {}
            ("http", "http") => return wrong("in the clear, and that host is not listed as insecure"),
            _ => return wrong("from HTTPS to something else"),
        }
        if self.leads_inside(start, to).await {
            return wrong("an address inside this network, although the origin is outside");
        }
        Ok(())
    }

    /// Whether `to` is an address that only machines near this one reach while `from` is not.
    pub(super) async fn leads_inside(&self, from: &Url, to: &Url) -> bool {
        if from.host_str() == to.host_str() || is_insecure(&self.settings, to) {
            return false;
        }
        let inside = |addresses: Vec<IpAddr>| addresses.into_iter().any(is_private);
        inside(self.addresses(to).await) && !inside(self.addresses(from).await)
    }

    /// The addresses of a URL's host. None if they cannot be found out here, as behind a proxy; the
    /// connection then fails by itself.
    async fn addresses(&self, url: &Url) -> Vec<IpAddr> {
        let port = url.port_or_known_default().unwrap_or(443);
        match url.host() {
            Some(url::Host::Ipv4(ip)) => vec![ip.into()],
            Some(url::Host::Ipv6(ip)) => vec![ip.into()],
            Some(url::Host::Domain(name)) => {
                let lookup = tokio::net::lookup_host((name, port));
                match tokio::time::timeout(self.settings.connect_timeout, lookup).await {
                    Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
                    _ => Vec::new(),
                }
            }
            None => Vec::new(),
        }
    }

    /// Sends one request and waits for the headers of the answer.
    pub(super) async fn send(
        &self,
        target: Target<'_>,
        request: reqwest::Request,
    ) -> Result<Response, Failure> {
        self.send_within(target, request, self.settings.header_timeout).await
    }

    /// The same with another patience.
    pub(super) async fn send_within(
        &self,
        target: Target<'_>,
        request: reqwest::Request,
        limit: Duration,
    ) -> Result<Response, Failure> {
        let client = self.clients.of(target.host, request.url());
        let url = request.url().clone();
        match tokio::time::timeout(limit, client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(match fault_of_error(&url, &error) {
                // It will not learn another scheme while it is waited for.
                Some(why) => Failure::Final(target.unreachable(why)),
                None => Failure::Passing(target.unreachable(causes(&error.without_url())), None),
            }),
            Err(_) => {
                let why = format!("no answer came within {} s", limit.as_secs_f32());
                Err(Failure::Passing(target.unreachable(why), None))
            }
        }
    }

    /// Turns a status that is no success into the error that it means. `method` is what was asked by.
    pub(super) async fn judge(
        &self,
        target: Target<'_>,
        method: &Method,
        response: Response,
        with_credentials: bool,
    ) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let wait = retry_after(response.headers());
        let foreign = response.url().host_str().is_some_and(|name| name != host_name(target.host));
        let url = response.url().clone();
        let body = self.read_capped(response, MAX_ERROR_BODY).await.unwrap_or_default();
        if let Some(why) = self.fault_of_answer(target, method, &url, status, &body).await {
            return Err(Failure::Final(target.unreachable(why)));
        }
        let mut said = error_text(status, &body);
        if foreign {
            said = format!("the server that it redirected to answered {said}");
        }
        Err(match status {
            StatusCode::NOT_FOUND => Failure::Final(target.not_found()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let hint = if with_credentials { "" } else { "; no credentials were sent" };
                Failure::Final(target.unauthorized(format_args!("{said}{hint}")))
            }
            StatusCode::TOO_MANY_REQUESTS => Failure::Passing(target.limited(wait), wait),
            StatusCode::REQUEST_TIMEOUT => Failure::Passing(target.unreachable(said), wait),
            status if status.is_server_error() => Failure::Passing(target.unreachable(said), wait),
            _ => Failure::Final(target.bad(said)),
        })
    }

    /// A whole body, of at most `cap` bytes, within the time that [`BODY_TIME`] allows.
    pub(super) async fn read_capped(&self, response: Response, cap: usize) -> Result<Bytes, ReadError> {
        let limit = BODY_TIME + Duration::from_secs((cap / SLOWEST_PACE) as u64);
        tokio::time::timeout(limit, self.read_pieces(response, cap)).await.unwrap_or_else(|_| {
            Err(ReadError::Broken(format!("it was not there whole after {} s", limit.as_secs())))
        })
    }

    async fn read_pieces(&self, mut response: Response, cap: usize) -> Result<Bytes, ReadError> {
        let announced = response.content_length().unwrap_or(0);
        if announced > cap as u64 {
            return Err(ReadError::TooLong(announced));
        }
        let mut body = BytesMut::with_capacity(announced as usize);
        loop {
            let stall = self.settings.stall_timeout;
            let piece = match tokio::time::timeout(stall, response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => return Ok(body.freeze()),
                Ok(Err(error)) => return Err(ReadError::Broken(causes(&error.without_url()))),
                Err(_) => {
                    return Err(ReadError::Broken(format!("nothing came for {} s", stall.as_secs_f32())));
                }
            };
            if body.len() + piece.len() > cap {
                return Err(ReadError::TooLong((body.len() + piece.len()) as u64));
            }
            body.extend_from_slice(&piece);
        }
    }
}

/// What a failed answer says, shortened: its status and, if its body is the specification's, the messages in there.
fn error_text(status: StatusCode, body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let errors = parsed.as_ref().and_then(|value| value["errors"].as_array());
    let messages: Vec<&str> =
        errors.into_iter().flatten().filter_map(|error| error["message"].as_str()).collect();
    let text = if messages.is_empty() { return status.to_string() } else { messages.join("; ") };
    let text: String = text.chars().filter(|c| !c.is_control()).take(QUOTED).collect();
    format!("{status} ({text})")
}

/// Why a body could not be read whole.
#[derive(Debug)]
pub(super) enum ReadError {
    /// It is longer than allowed: by what is announced or as far as it was read.
    TooLong(u64),
    Broken(String),
}

/// Whether two URLs are of the same scheme, host and port, so that what is meant for one may be sent to the
/// other.
pub(super) fn is_same_server(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// Host and port of a URL, without the port where it is the scheme's own.
pub(super) fn server_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The name of a host's API server.
fn host_name(host: &Host) -> &str {
    if host.is_docker_io() { host.api_host() } else { host.name() }
}

/// An error with all that caused it: what the HTTP client says alone is seldom the reason.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    text
}
