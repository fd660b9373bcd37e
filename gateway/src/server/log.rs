//! The access log.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::AGE;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use tokio::time::Instant;

use super::answer::SOURCE;
use super::link::Wire;

/// The most of a request's path and query that is logged, in bytes.
const MAX_TARGET: usize = 512;

/// One request and its answer, logged when the answer is complete or given up.
pub(super) struct Exchange {
    wire: Arc<Wire>,
    client: SocketAddr,
    method: Method,
    target: Option<String>,
    started: Instant,
    status: Option<StatusCode>,
    /// Bytes of the body that were given to the connection.
    pub(super) bytes: u64,
    /// The answer ended as its headers had promised.
    pub(super) complete: bool,
    /// Why it did not.
    pub(super) why: Option<String>,
    watcher: Option<Watcher>,
    /// Of a manifest, where it came from and how old the answer about its tag was, as the headers say it.
    source: Option<HeaderValue>,
    age: Option<HeaderValue>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The status of the answer; `None` if the client left before there was one.
    pub status: Option<StatusCode>,
    /// Bytes of the body that were given to the connection.
    pub bytes: u64,
    /// Whether the answer ended as its headers had promised.
    pub complete: bool,
}

/// Who is told how each request ended. Called on the network threads, so it must not block.
pub type Watcher = Arc<dyn Fn(Answered) + Send + Sync>;

impl Exchange {
    pub(super) fn begin(
        wire: Arc<Wire>,
        client: SocketAddr,
        method: &Method,
        uri: &Uri,
        watcher: Option<Watcher>,
    ) -> Self {
        let target = tracing::enabled!(target: "wherry_gateway::access", tracing::Level::INFO).then(|| {
            // A parsed URI is ASCII, so any cut is between characters.
            let text = uri.path_and_query().map_or("", |target| target.as_str());
            text[..text.len().min(MAX_TARGET)].to_owned()
        });
        Self {
            wire,
            client,
            method: method.clone(),
            target,
            started: Instant::now(),
            status: None,
            bytes: 0,
            complete: false,
            why: None,
            watcher,
            source: None,
            age: None,
        }
    }

    pub(super) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status);
        (self.source, self.age) = (headers.get(SOURCE).cloned(), headers.get(AGE).cloned());
    }

    pub(super) fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(watcher) = &self.watcher {
            watcher(Answered { status: self.status, bytes: self.bytes, complete: self.complete });
        }
        self.wire.request_ends();
        let Some(target) = &self.target else { return };
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let status = self.status.map_or(0, |status| status.as_u16());
        let (client, method, bytes) = (self.client, &self.method, self.bytes);
        let source = self.source.as_ref().and_then(|source| source.to_str().ok());
        let age = self.age.as_ref().and_then(|age| age.to_str().ok());
        let end = match &self.why {
            None if self.complete => None,
            None => Some("the client left"),
            Some(why) => Some(why.as_str()),
        };
        tracing::info!(
            target: "wherry_gateway::access",
            %client, %method, path = target.as_str(), status, bytes, ms, source, age, end
        );
    }
}
