//! The archive in the body of a request.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, BodyDataStream};
use futures::Stream;
use hyper::body::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

/// An archive as it arrives. An error means that the client went away in the middle.
///
/// When it is dropped the server throws away what the client still sends, so that the client reads the answer instead
/// of failing to send the rest.
pub struct Archive {
    stream: Option<BodyDataStream>,
    chunk: Bytes,
    rest: Option<oneshot::Sender<BodyDataStream>>,
}

impl Archive {
    /// The archive of a body, and where the body goes once the archive is dropped.
    pub(super) fn new(body: Body) -> (Self, oneshot::Receiver<BodyDataStream>) {
        let (rest, leftover) = oneshot::channel();
        (Self { stream: Some(body.into_data_stream()), chunk: Bytes::new(), rest: Some(rest) }, leftover)
    }
}

impl AsyncRead for Archive {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() {
            let Some(stream) = self.stream.as_mut() else { return Poll::Ready(Ok(())) };
            match ready!(Pin::new(stream).poll_next(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)));
                }
                None => {
                    self.stream = None;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let len = self.chunk.len().min(out.remaining());
        out.put_slice(&self.chunk.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let (Some(stream), Some(rest)) = (self.stream.take(), self.rest.take()) {
            // Nobody waits for it when the connection is gone already.
            let _ = rest.send(stream);
        }
    }
}
