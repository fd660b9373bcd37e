//! The body of a request, as it comes.

use std::fmt::Display;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt as _};
use http_body::Body;
use tokio::time::timeout;

use super::{Refusal, RefusalKind};

/// How long a client may send nothing of a body before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a body ends before its end. What came before stays right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// The client has left, or what it sends is no body.
    #[error("the request broke off: {0}")]
    Broken(String),
    /// Nothing has come for too long.
    #[error("nothing has come for {} s", PATIENCE.as_secs())]
    Silent,
}

/// What a client sends. Nothing is read from the connection before it is polled, and each piece is what the connection gave
/// at once: some 32 KiB at most. Dropped early, the rest is not read.
pub type Incoming = BoxStream<'static, Result<Bytes, Interrupted>>;

/// The pieces of a request's body.
pub(super) fn incoming<B>(body: B) -> Incoming
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Display,
{
    let pieces = stream::unfold(Some(Box::pin(body)), |body| async move {
        let mut body = body?;
        loop {
            let frame = timeout(PATIENCE, next(body.as_mut())).await;
            match frame {
                Err(_) => return Some((Err(Interrupted::Silent), None)),
                Ok(None) => return None,
                Ok(Some(Err(error))) => return Some((Err(Interrupted::Broken(error.to_string())), None)),
                // Trailers say nothing that is looked at.
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Some((Ok(bytes), Some(body)));
                    }
                }
            }
        }
    });
    pieces.boxed()
}

async fn next<B: Body>(mut body: Pin<&mut B>) -> Option<Result<http_body::Frame<B::Data>, B::Error>> {
    poll_fn(|cx| body.as_mut().poll_frame(cx)).await
}

/// All of a body, if it is no longer than this.
pub(super) async fn collect(mut body: Incoming, most: usize) -> Result<Bytes, Refusal> {
    let mut all = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| Refusal::new(RefusalKind::SizeInvalid, error.to_string()))?;
        if all.len() + piece.len() > most {
            let message = format!("there are more than the {most} bytes that are taken");
            return Err(Refusal::new(RefusalKind::TooLong, message));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}
