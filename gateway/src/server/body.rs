//! Answers' bodies on their way to hyper.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http_body::{Frame, SizeHint};

use super::log::Exchange;
use super::mapping::Mapping;
use super::pagecache::{PageCache, is_cached};
use super::{Body, Break, StoredFile};

/// How much of a stored file is sent before the next part is looked at, in bytes. Long enough that what comes
/// between costs nothing, short enough that a disk is not asked for much that a leaving client never takes.
const WINDOW: u64 = 1 << 20;

/// What an answer is made of.
pub(super) enum Payload {
    /// One body.
    One(Body),
    /// Several, one after the other; each is asked for when those before it are on their way.
    Many(BoxStream<'static, Result<Section, Break>>),
}

/// One of several bodies.
pub(super) struct Section {
    pub(super) body: Body,
    /// How many bytes it has.
    pub(super) len: u64,
}

/// The body of one answer.
pub(super) struct Outgoing {
    /// A part of a file that is being sent; what `source` has comes after it.
    file: Option<FileBody>,
    source: Source,
    /// Bytes of this section that are not yet given to hyper.
    section: u64,
    /// The sections that follow.
    further: Option<BoxStream<'static, Result<Section, Break>>>,
    /// Bytes that are not yet given to hyper.
    remaining: u64,
    cache: PageCache,
    exchange: Exchange,
}

enum Source {
    /// Nothing, or nothing more.
    Empty,
    Bytes(Bytes),
    Pieces(BoxStream<'static, Result<Piece, Break>>),
    /// The content has stopped; what hyper still holds is let out before the connection closes.
    Parting,
}

/// One piece of a stream.
enum Piece {
    Bytes(Bytes),
    File(StoredFile),
}

struct FileBody {
    stored: StoredFile,
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
    /// An answer of headers alone.
    pub(super) fn empty(cache: PageCache, exchange: Exchange) -> Self {
        Self { file: None, source: Source::Empty, section: 0, further: None, remaining: 0, cache, exchange }
    }

    /// An answer whose body has `len` bytes, unless a stream breaks.
    pub(super) fn new(payload: Payload, len: u64, cache: PageCache, exchange: Exchange) -> Self {
        let mut answer = Self::empty(cache, exchange);
        answer.remaining = len;
        match payload {
            Payload::One(body) => answer.begin(Section { body, len }),
            Payload::Many(sections) => answer.further = Some(sections),
        }
        answer
    }

    fn begin(&mut self, Section { body, len }: Section) {
        self.section = len;
        self.source = match body {
            Body::Bytes(bytes) => Source::Bytes(bytes),
            Body::File(stored) => {
                self.file = Some(FileBody { stored, bringing: None });
                Source::Empty
            }
            Body::Stream(stream) => Source::Pieces(stream.map_ok(Piece::Bytes).boxed()),
            Body::Files(stream) => Source::Pieces(stream.map_ok(Piece::File).boxed()),
        };
    }

    /// The next section, once all of the last one is given to hyper; how the answer ends if there is none.
    fn poll_section(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Break>> {
        // What the last one was read from is needed no more.
        self.source = Source::Empty;
        let Some(further) = &mut self.further else { return Poll::Ready(Err(Break::Stalled)) };
        let section = ready!(further.poll_next_unpin(cx)).unwrap_or(Err(Break::Stalled));
        Poll::Ready(section.and_then(|section| {
            match section.body.len() {
                Some(len) if len != section.len => {
                    tracing::error!("a content gave another length than it was asked for");
                    return Err(Break::Poisoned);
                }
                _ => self.begin(section),
            }
            Ok(())
        }))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            if let Some(file) = &mut self.file {
                let mapping = ready!(file.poll_window(cx, &self.cache));
                return Poll::Ready(Some(match mapping {
                    Ok(mapping) => {
                        if file.stored.len == 0 {
                            file.stored.is_sent();
                            self.file = None;
                        }
                        Ok(self.exchange.wire().announce(mapping))
                    }
                    Err(error) => Err(self.broken(error.into())),
                }));
            }
            if self.section == 0 && !matches!(self.source, Source::Parting) {
                if let Err(outcome) = ready!(self.poll_section(cx))
                    && let Some(error) = self.end(outcome)
                {
                    return Poll::Ready(Some(Err(error)));
                }
                continue;
            }
            let outcome = match &mut self.source {
                Source::Empty => return Poll::Ready(None),
                Source::Bytes(bytes) => {
                    let bytes = std::mem::take(bytes);
                    self.source = Source::Empty;
                    return Poll::Ready((!bytes.is_empty()).then_some(Ok(bytes)));
                }
                Source::Pieces(stream) => match ready!(stream.poll_next_unpin(cx)) {
                    Some(Ok(piece)) if piece.len() > self.section => {
                        tracing::error!("a content yielded more than the length that it had announced");
                        Break::Poisoned
                    }
                    Some(Ok(piece)) if piece.len() == 0 => continue,
                    Some(Ok(Piece::Bytes(bytes))) => return Poll::Ready(Some(Ok(bytes))),
                    Some(Ok(Piece::File(stored))) => {
                        self.file = Some(FileBody { stored, bringing: None });
                        continue;
                    }
                    Some(Err(outcome)) => outcome,
                    None => Break::Stalled,
                },
                Source::Parting => {
                    ready!(self.exchange.wire().poll_flushed(cx));
                    return Poll::Ready(Some(Err(self.broken(Break::Stalled.into()))));
                }
            };
            if let Some(error) = self.end(outcome) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// Ends the answer early: at once with an error, or with `None` once hyper has let out what it still holds.
    fn end(&mut self, outcome: Break) -> Option<BodyError> {
        if outcome == Break::Poisoned {
            self.exchange.wire().poison();
            return Some(self.broken(outcome.into()));
        }
        self.source = Source::Parting;
        None
    }

    fn broken(&mut self, error: BodyError) -> BodyError {
        self.source = Source::Empty;
        self.exchange.why = Some(error.to_string());
        error
    }
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(stored) => stored.len,
        }
    }
}

impl FileBody {
    /// The next part of the file, once it can be sent without waiting for a disk.
    fn poll_window(&mut self, cx: &mut Context<'_>, cache: &PageCache) -> Poll<io::Result<Mapping>> {
        let StoredFile { file, offset, len, .. } = &mut self.stored;
        let window = WINDOW.min(*len);
        if self.bringing.is_none() && !is_cached(file, *offset, window) {
            let bringing = cache.clone().bring_in(Arc::clone(file), *offset, window);
            self.bringing = Some(Box::pin(bringing));
        }
        if let Some(bringing) = &mut self.bringing {
            let brought = ready!(bringing.as_mut().poll(cx));
            self.bringing = None;
            brought?;
        }
        let mapping = Mapping::new(Arc::clone(file), *offset, window as usize)?;
        *offset += window;
        *len -= window;
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
            this.section -= bytes.len() as u64;
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
