//! The pages.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use super::report::{Report, State};
use crate::http;

const INDEX: &str = "<!doctype html><meta charset=utf-8><title>wherry</title><h1>wherry</h1>\
    <ul><li><a href=healthz>healthz</a> whether this node serves\
    <li><a href=status>status</a> everything about it as JSON\
    <li><a href=metrics>metrics</a> counters for Prometheus</ul>\n";

/// How long requests may take to end with the node: every page is made in no time, so only clients that have sent half
/// a request need longer.
const GRACE: Duration = Duration::from_secs(1);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Pages<R> {
    report: Arc<R>,
    metrics: Metrics,
}

/// Serves the status pages until `shutdown` is cancelled; answers that have begun get a second to
/// finish, which is far more than they take.
///
/// At most 64 connections are served at the same time.
pub async fn serve<R: Report>(
    listener: TcpListener,
    report: Arc<R>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let router = Router::new()
        .route("/", get(async || page(StatusCode::OK, "text/html; charset=utf-8", INDEX.to_owned())))
        .route("/healthz", get(healthz::<R>))
        .route("/status", get(status::<R>))
        .route("/metrics", get(metrics_page::<R>))
        .fallback(async || {
            page(StatusCode::NOT_FOUND, "text/plain", "see /healthz, /status, /metrics\n".into())
        })
        .with_state(Arc::new(Pages { report, metrics }));
    http::serve(listener, router, shutdown, GRACE).await;
}

fn page(status: StatusCode, media_type: &'static str, text: String) -> Response {
    let headers: [(HeaderName, &str); 4] = [
        (CONTENT_TYPE, media_type),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'"),
    ];
    (status, headers, text).into_response()
}

async fn healthz<R: Report>(Shared(pages): Shared<Arc<Pages<R>>>) -> Response {
    match pages.report.state() {
        State::Ready => page(StatusCode::OK, "text/plain", "ready\n".to_owned()),
        State::Stopping => page(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "stopping\n".to_owned()),
    }
}

async fn status<R: Report>(Shared(pages): Shared<Arc<Pages<R>>>) -> Response {
    match serde_json::to_string(&pages.report.status().await) {
        Ok(text) => page(StatusCode::OK, "application/json", text + "\n"),
        Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
    }
}

async fn metrics_page<R: Report>(Shared(pages): Shared<Arc<Pages<R>>>) -> Response {
    match pages.metrics.openmetrics(&pages.report.status().await) {
        Ok(text) => page(StatusCode::OK, OPENMETRICS, text),
        Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
    }
}
