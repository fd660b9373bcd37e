//! Answers' bodies on their way to hyper.

use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http_body::{Frame, SizeHint};

use super::log::Exchange;
use super::mapping::Mapping;
use super::pagecache::{PageCache, is_cached};
use super::{Break, StoredFile};

/// How much of a stored file is sent before the next part is looked at, in bytes. Long enough that what comes
/// between costs nothing, short enough that a disk is not asked for much that a leaving client never takes.
const WINDOW: u64 = 1 << 20;

/// The body of one answer.
pub(super) struct Outgoing {
    kind: Kind,
    remaining: u64,
    exchange: Exchange,
}

enum Kind {
    /// Nothing, or nothing more.
    Empty,
    Bytes(Bytes),
    File(FileBody),
    Stream(BoxStream<'static, Result<Bytes, Break>>),
    /// The content has stopped; what hyper still holds is let out before the connection closes.
    Parting,
}

struct FileBody {
    file: Arc<File>,
    offset: u64,
    cache: PageCache,
    /// A part that is being brought in from the disk.
    bringing: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
}

/// Why hyper is made to give up a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error(transparent)]
    Break(#[from] Break),
    #[error("a stored blob cannot be read: {0}")]
    Read(#[from] io::Error),
}

impl Outgoing {
    pub(super) fn empty(exchange: Exchange) -> Self {
        Self { kind: Kind::Empty, remaining: 0, exchange }
    }

    pub(super) fn bytes(bytes: Bytes, exchange: Exchange) -> Self {
        Self { remaining: bytes.len() as u64, kind: Kind::Bytes(bytes), exchange }
    }

    pub(super) fn file(stored: StoredFile, cache: PageCache, exchange: Exchange) -> Self {
        let body = FileBody { file: stored.file, offset: stored.offset, cache, bringing: None };
        Self { kind: Kind::File(body), remaining: stored.len, exchange }
    }

    /// A stream of exactly `len` bytes, unless it breaks.
    pub(super) fn stream(
        stream: BoxStream<'static, Result<Bytes, Break>>,
        len: u64,
        exchange: Exchange,
    ) -> Self {
        Self { kind: Kind::Stream(stream), remaining: len, exchange }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Poll::Ready((!bytes.is_empty()).then_some(Ok(bytes)))
            }
            Kind::File(file) => {
                let window = WINDOW.min(self.remaining);
                let mapping = match ready!(file.poll_window(cx, window)) {
                    Ok(mapping) => mapping,
                    Err(error) => return Poll::Ready(Some(Err(self.broken(error.into())))),
                };
                Poll::Ready(Some(Ok(self.exchange.wire().announce(mapping))))
            }
            Kind::Stream(stream) => loop {
                let outcome = match ready!(stream.poll_next_unpin(cx)) {
                    Some(Ok(bytes)) if bytes.is_empty() => continue,
                    Some(Ok(bytes)) if bytes.len() as u64 > self.remaining => {
                        tracing::error!("a content yielded more than the length that it had announced");
                        Break::Poisoned
                    }
                    Some(Ok(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                    Some(Err(outcome)) => outcome,
                    None => Break::Stalled,
                };
                if outcome == Break::Poisoned {
                    self.exchange.wire().poison();
                    return Poll::Ready(Some(Err(self.broken(outcome.into()))));
                }
                self.kind = Kind::Parting;
                return self.poll_next(cx);
            },
            Kind::Parting => {
                ready!(self.exchange.wire().poll_flushed(cx));
                Poll::Ready(Some(Err(self.broken(Break::Stalled.into()))))
            }
        }
    }

    fn broken(&mut self, error: BodyError) -> BodyError {
        self.kind = Kind::Empty;
        self.exchange.why = Some(error.to_string());
        error
    }
}

impl FileBody {
    fn poll_window(&mut self, cx: &mut Context<'_>, len: u64) -> Poll<io::Result<Mapping>> {
        if self.bringing.is_none() && !is_cached(&self.file, self.offset, len) {
            let bringing = self.cache.clone().bring_in(Arc::clone(&self.file), self.offset, len);
            self.bringing = Some(Box::pin(bringing));
        }
        if let Some(bringing) = &mut self.bringing {
            let brought = ready!(bringing.as_mut().poll(cx));
            self.bringing = None;
            brought?;
        }
        let mapping = Mapping::new(Arc::clone(&self.file), self.offset, len as usize)?;
        self.offset += len;
        Poll::Ready(Ok(mapping))
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.remaining == 0 {
            return Poll::Ready(None);
        }
        let frame = ready!(this.poll_next(cx));
        if let Some(Ok(bytes)) = &frame {
            this.remaining -= bytes.len() as u64;
            this.exchange.bytes += bytes.len() as u64;
        }
        Poll::Ready(frame.map(|frame| frame.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // All was handed over; if the client leaves before it has read the last of it, nobody can tell.
        self.exchange.complete = self.remaining == 0;
    }
}
