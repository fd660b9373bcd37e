//! Answers that take their time: events line by line, then how it ended.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use futures::{Stream, StreamExt as _, stream};
use hyper::body::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::api::{ApiError, ErrorCode, Line};

/// How long a client may take to notice that the rest of its request is not wanted.
const LINGER: Duration = Duration::from_secs(5);

type Work<D> = Pin<Box<dyn Future<Output = Result<D, ApiError>> + Send>>;

enum Lines<E, D> {
    Working { work: Work<D>, events: mpsc::Receiver<E>, leftover: Option<oneshot::Receiver<BodyDataStream>> },
    Ended { leftover: Option<oneshot::Receiver<BodyDataStream>> },
}

/// The body of an answer that tells `events` while `work` runs, and then its outcome. The work runs only while the
/// client reads, and is dropped when the client goes away.
///
/// `leftover` is a request body that the work may leave unread.
pub(super) fn body<E, D>(
    work: impl Future<Output = Result<D, ApiError>> + Send + 'static,
    events: mpsc::Receiver<E>,
    leftover: Option<oneshot::Receiver<BodyDataStream>>,
    shutdown: CancellationToken,
) -> Body
where
    E: Serialize + Send + 'static,
    D: Serialize + Send + 'static,
{
    Body::from_stream(lines(Box::pin(work), events, leftover, shutdown))
}

fn lines<E: Serialize, D: Serialize>(
    work: Work<D>,
    events: mpsc::Receiver<E>,
    leftover: Option<oneshot::Receiver<BodyDataStream>>,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Lines::Working { work, events, leftover }, move |state| {
        let shutdown = shutdown.clone();
        async move {
            let (mut work, mut events, leftover) = match state {
                Lines::Working { work, events, leftover } => (work, events, leftover),
                Lines::Ended { leftover } => {
                    linger(leftover).await;
                    return None;
                }
            };
            let mut out = Vec::new();
            let outcome = tokio::select! {
                biased;
                outcome = work.as_mut() => outcome,
                Some(event) = events.recv() => {
                    put(&mut out, &Line::<E, D>::Event(event));
                    return Some((Ok(out.into()), Lines::Working { work, events, leftover }));
                }
                () = shutdown.cancelled() => Err(stopping()),
            };
            // Gives an archive back before its rest is waited for.
            drop(work);
            // What was told before the end comes before it.
            while let Ok(event) = events.try_recv() {
                put(&mut out, &Line::<E, D>::Event(event));
            }
            put(&mut out, &outcome.map_or_else(Line::<E, D>::Failed, Line::Done));
            Some((Ok(out.into()), Lines::Ended { leftover }))
        }
    })
}

fn put<T: Serialize>(out: &mut Vec<u8>, line: &T) {
    let start = out.len();
    if let Err(error) = serde_json::to_writer(&mut *out, line) {
        // Nothing here has keys that are no strings, the one thing that cannot be written.
        out.truncate(start);
        tracing::error!(%error, "an event could not be written");
        return;
    }
    out.push(b'\n');
}

pub(super) fn stopping() -> ApiError {
    ApiError::new(ErrorCode::Stopping, "the node is stopping")
        .hint("what has arrived is kept: start the node and try again")
}

/// Reads what the client still sends, so that closing the connection does not tear the answer away from it.
async fn linger(leftover: Option<oneshot::Receiver<BodyDataStream>>) {
    let Some(leftover) = leftover else { return };
    let drain = async {
        if let Ok(mut rest) = leftover.await {
            while let Some(Ok(_)) = rest.next().await {}
        }
    };
    if timeout(LINGER, drain).await.is_err() {
        tracing::debug!("a client went on sending what was not wanted");
    }
}
