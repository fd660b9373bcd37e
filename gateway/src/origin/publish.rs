//! Images that are sent on to an origin, by the specification's chunked uploads, which go on where a broken link cut them off.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::sync::Mutex;
use url::Url;
use wherry_proto::Digest;

use super::http::{Target, is_same_server};
use super::retry::Failure;
use super::token::{PUSH, challenges};
use super::{OriginError, Origins};
use crate::manifest::Manifest;
use crate::name::{Host, Repository, TagOrDigest};

/// The slowest link that is waited for, in bytes a second: what is sent may take as long as that beside the usual patience.
const SLOWEST: u64 = 4 << 10;

/// The most that a registry may want in each piece, in bytes: it is held in memory.
const MAX_PIECE: u64 = 16 << 20;

/// How far a registry sends on at most within one request.
const MAX_HOPS: usize = 3;

/// A repository of an origin that takes in an image, with this node's credentials for it.
#[derive(Debug)]
pub struct Publisher {
    origins: Origins,
    host: Host,
    repository: Repository,
    /// What the registry wants to see, once it has said so.
    authorization: Mutex<Option<HeaderValue>>,
}

/// A blob on its way to an origin.
#[derive(Debug)]
pub struct Publishing {
    url: Url,
    at: u64,
    least: u64,
}

impl Publishing {
    /// How many bytes have arrived there.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// The least that each piece but the last has to have, in bytes; 0 if the registry does not mind.
    pub const fn least(&self) -> u64 {
        self.least
    }
}

impl Origins {
    /// The way to publish to a repository. Nothing is asked yet.
    pub fn publisher(&self, host: Host, repository: Repository) -> Publisher {
        Publisher { origins: self.clone(), host, repository, authorization: Mutex::default() }
    }
}

impl Publisher {
    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// When the origin does not say.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, OriginError> {
        self.has(format!("blobs/{digest}"), &format!("blob {digest}")).await
    }

    /// Whether the repository has a manifest.
    ///
    /// # Errors
    /// When the origin does not say.
    pub async fn has_manifest(&self, digest: &Digest) -> Result<bool, OriginError> {
        self.has(format!("manifests/{digest}"), &format!("manifest {digest}")).await
    }

    async fn has(&self, path: String, what: &str) -> Result<bool, OriginError> {
        match self.ask(&Method::HEAD, &self.url(&path, what)?, &HeaderMap::new(), Bytes::new(), what).await {
            Ok(_) => Ok(true),
            Err(Failure::Final(OriginError::NotFound { .. })) => Ok(false),
            Err(Failure::Final(error) | Failure::Passing(error, _)) => Err(error),
        }
    }

    /// Begins to send a blob.
    ///
    /// # Errors
    /// When the origin does not take it.
    pub async fn begin(&self, digest: &Digest) -> Result<Publishing, OriginError> {
        let what = format!("blob {digest}");
        let url = self.url("blobs/uploads/", &what)?;
        let answer = self.asked(&Method::POST, &url, &HeaderMap::new(), Bytes::new(), &what).await?;
        let least = answer.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok());
        let least: u64 = least.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        if least > MAX_PIECE {
            return Err(self.target(&what).bad(format_args!("it wants pieces of {least} bytes")));
        }
        let url = self.next(&url, &answer, &what).await?;
        Ok(Publishing { url, at: 0, least })
    }

    /// Sends the next bytes.
    ///
    /// # Errors
    /// When the origin does not take them. How many it has taken all the same [`Publisher::reached`] says.
    pub async fn send(
        &self,
        publishing: &mut Publishing,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), OriginError> {
        let what = format!("blob {digest}");
        let mut headers = HeaderMap::new();
        let end = publishing.at + bytes.len() as u64;
        let range = format!("{}-{}", publishing.at, end.saturating_sub(1));
        headers.insert(
            CONTENT_RANGE,
            HeaderValue::from_str(&range).map_err(|error| self.target(&what).bad(error))?,
        );
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let answer = self.asked(&Method::PATCH, &publishing.url, &headers, bytes, &what).await?;
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(self.target(&what).unreachable("it has not taken what was sent before"));
        }
        publishing.url = self.next(&publishing.url, &answer, &what).await?;
        publishing.at = end;
        Ok(())
    }

    /// Asks how much of a blob has arrived, after an error.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] when the origin knows nothing of it any more: it is to be begun anew.
    pub async fn reached(&self, publishing: &mut Publishing, digest: &Digest) -> Result<(), OriginError> {
        let what = format!("blob {digest}");
        let answer =
            self.asked(&Method::GET, &publishing.url, &HeaderMap::new(), Bytes::new(), &what).await?;
        let range = answer.headers().get(RANGE).and_then(|value| value.to_str().ok());
        publishing.at = match range.map(|text| text.strip_prefix("bytes=").unwrap_or(text)) {
            // Of nothing some say the same as of a single byte, and no piece is that short.
            None | Some("0-0" | "0--1") => 0,
            Some(range) => {
                range.strip_prefix("0-").and_then(|end| end.parse::<u64>().ok()?.checked_add(1)).ok_or_else(
                    || self.target(&what).bad(format_args!("it says that '{range}' has arrived")),
                )?
            }
        };
        publishing.url = self.next(&publishing.url, &answer, &what).await?;
        Ok(())
    }

    /// All of a blob has been sent.
    ///
    /// # Errors
    /// When the origin does not take it.
    pub async fn finish(&self, publishing: &Publishing, digest: &Digest) -> Result<(), OriginError> {
        let what = format!("blob {digest}");
        let mut url = publishing.url.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        self.asked(&Method::PUT, &url, &HeaderMap::new(), Bytes::new(), &what).await.map(drop)
    }

    /// Has the repository take a manifest, of which it has all that it names.
    ///
    /// # Errors
    /// When the origin does not take it.
    pub async fn manifest(&self, target: &TagOrDigest, manifest: &Manifest) -> Result<(), OriginError> {
        let what = super::describe(&self.repository, target);
        let url = self.url(&format!("manifests/{target}"), &what)?;
        let mut headers = HeaderMap::new();
        let media_type =
            HeaderValue::from_str(manifest.media_type()).map_err(|error| self.target(&what).bad(error))?;
        headers.insert(CONTENT_TYPE, media_type);
        self.asked(&Method::PUT, &url, &headers, manifest.raw().clone(), &what).await.map(drop)
    }

    const fn target<'a>(&'a self, what: &'a str) -> Target<'a> {
        Target { host: &self.host, repository: &self.repository, what }
    }

    fn url(&self, path: &str, what: &str) -> Result<Url, OriginError> {
        let (scheme, api) = (self.origins.http.scheme(&self.host), self.host.api_host());
        let url = format!("{scheme}://{api}/v2/{}/{path}", self.repository);
        Url::parse(&url).map_err(|error| self.target(what).bad(format!("{url} is no URL: {error}")))
    }

    /// Where an upload goes on.
    async fn next(&self, from: &Url, answer: &Response, what: &str) -> Result<Url, OriginError> {
        let target = self.target(what);
        let Some(location) = answer.headers().get(LOCATION) else { return Ok(from.clone()) };
        let next = location.to_str().ok().and_then(|location| from.join(location).ok());
        let next = next.ok_or_else(|| target.bad("it does not say where the upload goes on"))?;
        self.origins.http.check_redirect(target, &self.url("", what)?, from, &next).await?;
        Ok(next)
    }

    async fn asked(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
        what: &str,
    ) -> Result<Response, OriginError> {
        self.ask(method, url, headers, body, what).await.map_err(|failure| match failure {
            Failure::Final(error) | Failure::Passing(error, _) => error,
        })
    }

    async fn ask(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
        what: &str,
    ) -> Result<Response, Failure> {
        let (client, target) = (&self.origins.http, self.target(what));
        if self.host.is_site() {
            return Err(target.bad("it is this site itself, and no registry").into());
        }
        let home = self.url("", what)?;
        let mut url = url.clone();
        let (mut hops, mut logged_in) = (0, false);
        loop {
            let mut request = reqwest::Request::new(method.clone(), url.clone());
            *request.headers_mut() = headers.clone();
            if *method != Method::GET && *method != Method::HEAD {
                request.headers_mut().insert(CONTENT_LENGTH, body.len().into());
            }
            let authorization = self.authorization.lock().await.clone();
            if let Some(authorization) = &authorization
                && is_same_server(&url, &home)
            {
                request.headers_mut().insert(AUTHORIZATION, authorization.clone());
            }
            *request.body_mut() = (!body.is_empty()).then(|| body.clone().into());
            let more = Duration::from_secs(body.len() as u64 / SLOWEST);
            let response = client.send_within(target, request, client.settings.header_timeout + more).await?;
            if response.status() == StatusCode::UNAUTHORIZED && is_same_server(&url, &home) && !logged_in {
                logged_in = true;
                let found = client.settings.credentials.find(&self.host, &self.repository).await;
                let grant = client.grant(target, &challenges(&response), &found, PUSH).await?;
                *self.authorization.lock().await = Some(grant.header);
                continue;
            }
            if matches!(response.status().as_u16(), 301 | 302 | 307 | 308) && hops < MAX_HOPS {
                hops += 1;
                let next = self.next(&url, &response, what).await?;
                url = next;
                continue;
            }
            let judged = client.judge(target, method, response, authorization.is_some() || logged_in).await;
            if !matches!(&judged, Err(Failure::Passing(error, _)) if error.is_unreachable()) {
                client.answered.note(&self.host);
            }
            return judged;
        }
    }
}
