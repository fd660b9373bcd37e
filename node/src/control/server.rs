//! The node's half.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::header::{CONTENT_TYPE, TE, TRAILER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::{StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::api::{
    ApiError, BlobRequest, COMPLETE, CancelRequest, CheckRequest, EVENT_QUEUE, EXPORTED, ErrorCode,
    InspectRequest, MAX_REQUEST, OUTCOME, PinRequest, PreloadRequest, PublishRequest, PullRequest,
    RemoveRequest, WanRequest,
};
use super::archive::Archive;
use super::backend::{Backend, Events};
use super::lines;
use super::socket::Socket;
use crate::http;

/// Bytes of an archive or a blob that wait between the one who writes it and the client.
const PIPE: usize = 256 << 10;

/// The longest piece of it that is sent at once, in bytes.
const PIECE: usize = 64 << 10;

/// How long archives that are being sent may take to finish once the node is to end.
const GRACE: Duration = Duration::from_secs(8);

struct Control<B> {
    backend: Arc<B>,
    shutdown: CancellationToken,
}

impl<B> Clone for Control<B> {
    fn clone(&self) -> Self {
        Self { backend: Arc::clone(&self.backend), shutdown: self.shutdown.clone() }
    }
}

/// Serves the control socket until `shutdown` is cancelled. Pulls and imports then end with an error that says so;
/// archives that are being sent get 8 s to finish.
///
/// At most 64 connections are served at the same time.
pub async fn serve<B: Backend>(socket: Socket, backend: Arc<B>, shutdown: CancellationToken) {
    let router = Router::new()
        .route("/v1/pull", post(pull::<B>).layer(DefaultBodyLimit::max(MAX_REQUEST)))
        .route("/v1/cancel", post(cancel::<B>).layer(DefaultBodyLimit::max(MAX_REQUEST)))
        .route("/v1/remove", post(remove::<B>).layer(DefaultBodyLimit::max(MAX_REQUEST)))
        .route("/v1/pin", post(pin::<B>).layer(DefaultBodyLimit::max(MAX_REQUEST)))
        .route("/v1/check", post(check::<B>).layer(DefaultBodyLimit::max(MAX_REQUEST)))
        .route("/v1/preload", post(preload::<B>).layer(DefaultBodyLimit::max(MAX_REQUEST)))
        .route("/v1/publish", post(publish::<B>).layer(DefaultBodyLimit::max(MAX_REQUEST)))
        .route("/v1/import", post(import::<B>))
        .route("/v1/export", get(export::<B>))
        .route("/v1/blob", get(blob::<B>))
        .route("/v1/images", get(images::<B>))
        .route("/v1/inspect", get(inspect::<B>))
        .route("/v1/why", get(why::<B>))
        .route("/v1/peers", get(peers::<B>))
        .route("/v1/status", get(status::<B>))
        .route("/v1/wan", get(wan::<B>).post(pause::<B>).layer(DefaultBodyLimit::max(MAX_REQUEST)))
        .fallback(async || no_such_path())
        .with_state(Control { backend, shutdown: shutdown.clone() });
    http::serve(socket, router, shutdown, GRACE).await;
}

#[derive(Deserialize)]
struct Named {
    reference: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self)).into_response()
    }
}

fn bad(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, error.to_string())
}

fn no_such_path() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "this node does not know that command")
        .hint("node and command line may have different versions: restart the node")
}

fn name(query: Result<Query<Named>, QueryRejection>) -> Result<String, ApiError> {
    query.map(|Query(named)| named.reference).map_err(bad)
}

fn json<T: Serialize>(value: Result<T, ApiError>) -> Response {
    value.map(Json).into_response()
}

async fn pull<B: Backend>(
    State(control): State<Control<B>>,
    request: Result<Json<PullRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(bad)?;
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let backend = control.backend;
    let work = async move { backend.pull(request, Events::new(sender)).await };
    Ok(ndjson(lines::body(work, events, None, control.shutdown)))
}

async fn cancel<B: Backend>(
    State(control): State<Control<B>>,
    request: Result<Json<CancelRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(bad)?;
    Ok(json(control.backend.cancel(request).await))
}

async fn remove<B: Backend>(
    State(control): State<Control<B>>,
    request: Result<Json<RemoveRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(bad)?;
    Ok(json(control.backend.remove(request).await))
}

async fn pin<B: Backend>(
    State(control): State<Control<B>>,
    request: Result<Json<PinRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(bad)?;
    Ok(json(control.backend.pin(request).await))
}

async fn check<B: Backend>(
    State(control): State<Control<B>>,
    request: Result<Json<CheckRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(bad)?;
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let backend = control.backend;
    let work = async move { backend.check(request, Events::new(sender)).await };
    Ok(ndjson(lines::body(work, events, None, control.shutdown)))
}

async fn preload<B: Backend>(
    State(control): State<Control<B>>,
    request: Result<Json<PreloadRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(bad)?;
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let backend = control.backend;
    let work = async move { backend.preload(request, Events::new(sender)).await };
    Ok(ndjson(lines::body(work, events, None, control.shutdown)))
}

async fn publish<B: Backend>(
    State(control): State<Control<B>>,
    request: Result<Json<PublishRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(bad)?;
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let backend = control.backend;
    let work = async move { backend.publish(request, Events::new(sender)).await };
    Ok(ndjson(lines::body(work, events, None, control.shutdown)))
}

/// What an archive's image is to be called.
#[derive(Deserialize)]
struct Naming {
    name: Option<String>,
}

async fn import<B: Backend>(
    State(control): State<Control<B>>,
    naming: Result<Query<Naming>, QueryRejection>,
    body: Body,
) -> Result<Response, ApiError> {
    let Query(Naming { name }) = naming.map_err(bad)?;
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let (archive, leftover) = Archive::new(body);
    let backend = control.backend;
    let work = async move { backend.import(name, archive, Events::new(sender)).await };
    Ok(ndjson(lines::body(work, events, Some(leftover), control.shutdown)))
}

fn ndjson(body: Body) -> Response {
    ([(CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

async fn images<B: Backend>(State(control): State<Control<B>>) -> Response {
    json(control.backend.images().await)
}

async fn wan<B: Backend>(State(control): State<Control<B>>) -> Response {
    json(control.backend.wan().await)
}

async fn pause<B: Backend>(
    State(control): State<Control<B>>,
    request: Result<Json<WanRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(bad)?;
    Ok(json(control.backend.pause(request).await))
}

async fn peers<B: Backend>(State(control): State<Control<B>>) -> Response {
    json(control.backend.peers().await)
}

async fn status<B: Backend>(State(control): State<Control<B>>) -> Response {
    json(Ok(control.backend.status().await))
}

async fn inspect<B: Backend>(
    State(control): State<Control<B>>,
    query: Result<Query<InspectRequest>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(request) = query.map_err(bad)?;
    Ok(json(control.backend.inspect(request).await))
}

async fn why<B: Backend>(
    State(control): State<Control<B>>,
    query: Result<Query<InspectRequest>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(request) = query.map_err(bad)?;
    Ok(json(control.backend.why(request).await))
}

async fn export<B: Backend>(
    State(control): State<Control<B>>,
    headers: HeaderMap,
    query: Result<Query<Named>, QueryRejection>,
) -> Result<Response, ApiError> {
    let reference = name(query)?;
    let backend = control.backend;
    let name = HeaderValue::try_from(backend.exported(&reference).await?).map_err(bad)?;
    let (reader, writer) = tokio::io::duplex(PIPE);
    let work = async move { backend.export(&reference, writer).await };
    let body = carried(reader, work, &headers).await?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/x-tar")),
        (TRAILER, HeaderValue::from_static(OUTCOME)),
        (HeaderName::from_static(EXPORTED), name),
    ];
    Ok((headers, body).into_response())
}

async fn blob<B: Backend>(
    State(control): State<Control<B>>,
    headers: HeaderMap,
    query: Result<Query<BlobRequest>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(request) = query.map_err(bad)?;
    let backend = control.backend;
    let (reader, writer) = tokio::io::duplex(PIPE);
    let work = async move { backend.blob(request, writer).await };
    let body = carried(reader, work, &headers).await?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (TRAILER, HeaderValue::from_static(OUTCOME)),
    ];
    Ok((headers, body).into_response())
}

/// What `work` writes, as the body of an answer that ends with how the work ended.
async fn carried(
    reader: DuplexStream,
    work: impl Future<Output = Result<(), ApiError>> + Send + 'static,
    headers: &HeaderMap,
) -> Result<Body, ApiError> {
    let mut work = Box::pin(work);
    let mut pieces = ReaderStream::with_capacity(reader, PIECE);
    let mut outcome = None;
    // The status can tell of a failure only as long as nothing has been sent.
    let first = tokio::select! {
        piece = pieces.next() => piece,
        result = work.as_mut() => {
            result?;
            outcome = Some(Ok(()));
            None
        }
    };
    // A client that cannot read the trailer must still see that something is missing.
    let trailers = headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let first = stream::iter(first.map(|piece| piece.map(Frame::data)));
    let rest = stream::unfold(Some((pieces, work, outcome)), move |state| async move {
        let (mut pieces, mut work, mut outcome) = state?;
        let piece = loop {
            tokio::select! {
                biased;
                piece = pieces.next() => break piece,
                result = work.as_mut(), if outcome.is_none() => outcome = Some(result),
            }
        };
        if let Some(piece) = piece {
            return Some((piece.map(Frame::data), Some((pieces, work, outcome))));
        }
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => work.await,
        };
        Some((end(outcome, trailers), None))
    });
    Ok(Body::new(StreamBody::new(first.chain(rest))))
}

fn end(outcome: Result<(), ApiError>, trailers: bool) -> io::Result<Frame<hyper::body::Bytes>> {
    let value = match outcome {
        Ok(()) => HeaderValue::from_static(COMPLETE),
        Err(error) if !trailers => return Err(io::Error::other(error)),
        Err(error) => {
            // Messages may hold anything; a header takes visible ASCII alone.
            let text = serde_json::to_string(&error).unwrap_or_default();
            let ascii: String = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
            HeaderValue::try_from(ascii).map_err(io::Error::other)?
        }
    };
    let mut trailer = HeaderMap::new();
    trailer.insert(HeaderName::from_static(OUTCOME), value);
    Ok(Frame::trailers(trailer))
}
