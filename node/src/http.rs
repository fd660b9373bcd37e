//! Serving a small HTTP API with everything bounded: what `status` and `control` have in common.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Connections that are served at the same time; further ones wait in the kernel.
pub(crate) const MAX_CONNECTIONS: usize = 64;

/// How long a connection may be open without a complete request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest request head, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// How long to wait when the system has no file descriptor for another connection.
const OUT_OF_FILES: Duration = Duration::from_millis(100);

/// Where connections come from.
pub(crate) trait Accept: Send + Sync {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }
}

/// Serves until `shutdown` is cancelled, then lets requests that have begun finish, for at most `grace`.
pub(crate) async fn serve<L: Accept>(
    listener: L,
    router: Router,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // Only a closed semaphore fails, and this one is never closed.
            let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((listener.next().await?, slot))
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, slot)) => {
                let (router, shutdown) = (router.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection(stream, router, shutdown).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                // The listener may stay readable, and without a pause this loop would spin.
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = sleep(OUT_OF_FILES) => {}
                }
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(grace, all).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "connections were cut because they did not end in time"
        );
    }
    connections.shutdown().await;
}

async fn connection<T>(stream: T, router: Router, shutdown: CancellationToken)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connection = Box::pin(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)),
    );
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection ended before its time");
    }
}
