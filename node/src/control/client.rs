//! The command line's half.

use std::io;
use std::marker::PhantomData;
use std::path::PathBuf;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HOST, TE};
use axum::http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_util::io::ReaderStream;
use tokio_util::task::AbortOnDropHandle;

use super::api::{
    ApiError, BlobRequest, COMPLETE, CancelRequest, CancelSummary, CheckEvent, CheckRequest, CheckSummary,
    EXPORTED, ImageDetails, ImageSummary, ImportEvent, ImportSummary, InspectRequest, Line, MAX_ANSWER,
    MAX_LINE, NodeStatus, OUTCOME, PeerInfo, PinRequest, PinSummary, PreloadEvent, PreloadRequest,
    PreloadSummary, PublishEvent, PublishRequest, PublishSummary, PullEvent, PullRequest, PullSummary,
    RemoveRequest, RemoveSummary, WanRequest, WanStatus, WanSummary, WhyImage,
};

/// Talks to the node behind a control socket, with a connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    sockets: Vec<PathBuf>,
}

/// Why a node did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No node answers at any of these sockets.
    #[error("no node is running here: nothing answers at {}", places(.0))]
    NoNode(Vec<PathBuf>),
    /// A socket may not be used.
    #[error(
        "a node may be running here, but its control socket {} belongs to another user{}", places(.sockets), silent(.others)
    )]
    NotAllowed {
        /// The sockets that may not be used.
        sockets: Vec<PathBuf>,
        /// Other sockets that were tried, and at which nothing answers.
        others: Vec<PathBuf>,
    },
    /// The connection failed.
    #[error("the node at {} cannot be reached: {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The node went away in the middle.
    #[error("the node went away before it was done: it was stopped, killed or restarted")]
    Lost,
    /// Whatever answers is no wherry node, or one of another version.
    #[error("the node gave an answer that makes no sense: {0}")]
    Nonsense(String),
    /// The node says why.
    #[error(transparent)]
    Refused(ApiError),
    /// What should be sent could not be read, or what came could not be written.
    #[error("{0}")]
    Local(io::Error),
}

fn places(sockets: &[PathBuf]) -> String {
    sockets.iter().map(|socket| socket.display().to_string()).collect::<Vec<_>>().join(" or ")
}

fn silent(others: &[PathBuf]) -> String {
    if others.is_empty() { String::new() } else { format!("; nothing answers at {}", places(others)) }
}

impl ClientError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoNode(_) => {
                Some("start one with 'wherry up', or say where it is with --data DIR or --control PATH")
            }
            Self::NotAllowed { .. } => Some(
                "run this as the user that runs the node, for instance with sudo, or start a node of your own",
            ),
            Self::Lost => Some(
                "its log says why; start it again if it does not run, and repeat this command: what has arrived is kept",
            ),
            Self::Nonsense(_) => Some("node and command line may have different versions: restart the node"),
            Self::Refused(error) => error.hint.as_deref(),
            Self::Connect { .. } | Self::Local(_) => None,
        }
    }
}

/// What comes next of something that takes its time.
#[derive(Debug, PartialEq)]
pub enum Step<E, D> {
    /// Something happened.
    Event(E),
    /// It is done; nothing follows.
    Done(D),
}

/// Something that takes its time. Dropping it goes away from it.
pub struct Progress<E, D> {
    body: Incoming,
    read: Vec<u8>,
    _connection: AbortOnDropHandle<()>,
    says: PhantomData<fn() -> (E, D)>,
}

/// Bytes that come from the node. Dropping it goes away from them.
pub struct Carried {
    body: Incoming,
    ended: bool,
    _connection: AbortOnDropHandle<()>,
}

impl Carried {
    /// The next piece; `None` after the last one, if the node says that this was all. Only then what came is worth
    /// anything.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while !self.ended {
            let frame = self.body.frame().await.ok_or(ClientError::Lost)?;
            let frame = match frame.map_err(|error| lost(&error))?.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(frame) => frame,
            };
            let Ok(trailers) = frame.into_trailers() else { continue };
            let outcome = trailers.get(OUTCOME).ok_or(ClientError::Lost)?;
            if outcome != COMPLETE {
                return Err(serde_json::from_slice(outcome.as_bytes())
                    .map_or_else(|error| ClientError::Nonsense(error.to_string()), ClientError::Refused));
            }
            self.ended = true;
        }
        Ok(None)
    }
}

impl Client {
    /// A client of the node behind this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::first_of(vec![socket.into()])
    }

    /// A client of the node behind the first of these sockets at which one answers.
    pub const fn first_of(sockets: Vec<PathBuf>) -> Self {
        Self { sockets }
    }

    /// The sockets, in the order in which they are tried.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// Brings an image to the node.
    pub async fn pull(&self, request: &PullRequest) -> Result<Progress<PullEvent, PullSummary>, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Nonsense(error.to_string()))?;
        self.lines("/v1/pull", "application/json", body.into()).await
    }

    /// Has the node fetch an image no further.
    pub async fn cancel(&self, request: &CancelRequest) -> Result<CancelSummary, ClientError> {
        self.post("/v1/cancel", request).await
    }

    /// The links that lead out of the node's site, and what limits them.
    pub async fn wan(&self) -> Result<WanStatus, ClientError> {
        self.json("/v1/wan").await
    }

    /// Has the node's whole site pause, or go on.
    pub async fn pause(&self, request: &WanRequest) -> Result<WanSummary, ClientError> {
        self.post("/v1/wan", request).await
    }

    /// Removes images of the node.
    pub async fn remove(&self, request: &RemoveRequest) -> Result<RemoveSummary, ClientError> {
        self.post("/v1/remove", request).await
    }

    /// Has an image of the node stay, or no longer.
    pub async fn pin(&self, request: &PinRequest) -> Result<PinSummary, ClientError> {
        self.post("/v1/pin", request).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Nonsense(error.to_string()))?;
        let request = Request::builder().method(Method::POST).uri(path);
        let request = request.header(CONTENT_TYPE, "application/json");
        let (answer, _connection) = self.send(request, body.into()).await?;
        parsed(answer.into_body()).await
    }

    /// Has nodes bring images to themselves. They go on when the answer is dropped.
    pub async fn preload(
        &self,
        request: &PreloadRequest,
    ) -> Result<Progress<PreloadEvent, PreloadSummary>, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Nonsense(error.to_string()))?;
        self.lines("/v1/preload", "application/json", body.into()).await
    }

    /// Has the node send an image to a registry.
    pub async fn publish(
        &self,
        request: &PublishRequest,
    ) -> Result<Progress<PublishEvent, PublishSummary>, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Nonsense(error.to_string()))?;
        self.lines("/v1/publish", "application/json", body.into()).await
    }

    /// Has the node check what it has stored.
    pub async fn check(
        &self,
        request: &CheckRequest,
    ) -> Result<Progress<CheckEvent, CheckSummary>, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Nonsense(error.to_string()))?;
        self.lines("/v1/check", "application/json", body.into()).await
    }

    /// Gives the node an archive; with a name one that has a single image, which is called so.
    pub async fn import(
        &self,
        name: Option<&str>,
        archive: impl AsyncRead + Send + 'static,
    ) -> Result<Progress<ImportEvent, ImportSummary>, ClientError> {
        let body = Body::from_stream(ReaderStream::with_capacity(archive, 64 << 10));
        let path = match name {
            Some(name) => {
                let mut pair = url::form_urlencoded::Serializer::new(String::new());
                format!("/v1/import?{}", pair.append_pair("name", name).finish())
            }
            None => "/v1/import".to_owned(),
        };
        self.lines(&path, "application/x-tar", body).await
    }

    /// Takes an image from the node as an archive, and returns its whole name and how many bytes that were. Only if there
    /// is no error what was written is an archive.
    pub async fn export(
        &self,
        reference: &str,
        out: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(String, u64), ClientError> {
        let (answer, _connection) = self.get(&format!("/v1/export?{}", query(reference))).await?;
        let name = answer.headers().get(EXPORTED).and_then(|name| name.to_str().ok());
        let name = name.unwrap_or(reference).to_owned();
        let mut carried = Carried { body: answer.into_body(), ended: false, _connection };
        let mut written = 0;
        while let Some(piece) = carried.next().await? {
            out.write_all(&piece).await.map_err(ClientError::Local)?;
            written += piece.len() as u64;
        }
        out.flush().await.map_err(ClientError::Local)?;
        Ok((name, written))
    }

    /// Takes the configuration or a layer of an image from the node.
    pub async fn blob(&self, request: &BlobRequest) -> Result<Carried, ClientError> {
        let mut pairs = url::form_urlencoded::Serializer::new(String::new());
        pairs.append_pair("reference", &request.reference).append_pair("digest", &request.digest.to_string());
        if let Some(platform) = &request.platform {
            pairs.append_pair("platform", platform);
        }
        let (answer, _connection) = self.get(&format!("/v1/blob?{}", pairs.finish())).await?;
        Ok(Carried { body: answer.into_body(), ended: false, _connection })
    }

    /// The node's images.
    pub async fn images(&self) -> Result<Vec<ImageSummary>, ClientError> {
        self.json("/v1/images").await
    }

    /// What the node knows about one of its images.
    pub async fn inspect(&self, request: &InspectRequest) -> Result<ImageDetails, ClientError> {
        self.json(&format!("/v1/inspect?{}", about(request))).await
    }

    /// Why an image is not here yet.
    pub async fn why(&self, request: &InspectRequest) -> Result<WhyImage, ClientError> {
        self.json(&format!("/v1/why?{}", about(request))).await
    }

    /// Who the node is connected to.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, ClientError> {
        self.json("/v1/peers").await
    }

    /// The state of the node.
    pub async fn status(&self) -> Result<NodeStatus, ClientError> {
        self.json("/v1/status").await
    }

    async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (answer, _connection) = self.get(path).await?;
        parsed(answer.into_body()).await
    }

    async fn lines<E, D>(
        &self,
        path: &str,
        media_type: &str,
        body: Body,
    ) -> Result<Progress<E, D>, ClientError> {
        let request = Request::builder().method(Method::POST).uri(path).header(CONTENT_TYPE, media_type);
        let (answer, connection) = self.send(request, body).await?;
        Ok(Progress {
            body: answer.into_body(),
            read: Vec::new(),
            _connection: connection,
            says: PhantomData,
        })
    }

    async fn get(&self, path: &str) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), ClientError> {
        self.send(Request::builder().uri(path).header(TE, "trailers"), Body::empty()).await
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: Body,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), ClientError> {
        let request = request
            .header(HOST, "wherry")
            .body(body)
            .map_err(|error| ClientError::Nonsense(error.to_string()))?;
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // What went wrong is seen where the answer is read.
            let _ = connection.await;
        }));
        let answer = sender.send_request(request).await.map_err(|error| match local(&error) {
            Some(error) => ClientError::Local(error),
            None => lost(&error),
        })?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok((answer, connection));
        }
        let body = whole(answer.into_body()).await?;
        Err(serde_json::from_slice(&body)
            .map_or_else(|_| ClientError::Nonsense(format!("status {status}")), ClientError::Refused))
    }

    /// Connects to the first socket at which a node answers. One that may not be used is passed over like one at which
    /// nothing answers, and is what is told of if no other does.
    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let (mut silent, mut refused) = (Vec::new(), Vec::new());
        for socket in &self.sockets {
            match UnixStream::connect(socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => silent.push(socket.clone()),
                    io::ErrorKind::PermissionDenied => refused.push(socket.clone()),
                    _ => return Err(ClientError::Connect { socket: socket.clone(), source: error }),
                },
            }
        }
        Err(match refused.is_empty() {
            true => ClientError::NoNode(silent),
            false => ClientError::NotAllowed { sockets: refused, others: silent },
        })
    }
}

impl<E: DeserializeOwned, D: DeserializeOwned> Progress<E, D> {
    /// Waits for what comes next. After an error or [`Step::Done`] nothing does.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Step<E, D>, ClientError> {
        let line = loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                break self.read.drain(..=end).collect::<Vec<_>>();
            }
            if self.read.len() > MAX_LINE {
                return Err(ClientError::Nonsense(format!("a line of more than {MAX_LINE} bytes")));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(|error| lost(&error))?.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                None => return Err(ClientError::Lost),
            }
        };
        match serde_json::from_slice(&line) {
            Ok(Line::Event(event)) => Ok(Step::Event(event)),
            Ok(Line::Done(done)) => Ok(Step::Done(done)),
            Ok(Line::Failed(error)) => Err(ClientError::Refused(error)),
            Err(error) => Err(ClientError::Nonsense(error.to_string())),
        }
    }
}

async fn parsed<T: DeserializeOwned>(body: Incoming) -> Result<T, ClientError> {
    serde_json::from_slice(&whole(body).await?).map_err(|error| ClientError::Nonsense(error.to_string()))
}

async fn whole(body: Incoming) -> Result<Bytes, ClientError> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ClientError::Nonsense(format!("an answer of more than {MAX_ANSWER} bytes")))
        }
        Err(_) => Err(ClientError::Lost),
    }
}

fn lost(error: &hyper::Error) -> ClientError {
    // What the connection's end looked like on the wire helps nobody.
    if error.is_parse() { ClientError::Nonsense(error.to_string()) } else { ClientError::Lost }
}

/// The error of whoever provides the body, if that is what made the request fail.
fn local(error: &hyper::Error) -> Option<io::Error> {
    if !error.is_user() {
        return None;
    }
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref::<io::Error>() {
            return Some(io::Error::new(found.kind(), found.to_string()));
        }
        source = inner.source();
    }
    None
}

fn about(request: &InspectRequest) -> String {
    let mut pairs = url::form_urlencoded::Serializer::new(String::new());
    pairs.append_pair("reference", &request.reference);
    if let Some(platform) = &request.platform {
        pairs.append_pair("platform", platform);
    }
    pairs.finish()
}

fn query(reference: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new()).append_pair("reference", reference).finish()
}
