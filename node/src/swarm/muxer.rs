//! Many streams over one TCP connection, by yamux, with a bound for their number and for what they buffer.
//!
//! libp2p's own binding sets neither a window for the connection nor waits when too many streams are open: it
//! lets a peer have up to 1 GiB sent ahead, and ends the connection at the stream that is too many.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use futures::io::BufWriter;
use futures::task::AtomicWaker;
use futures::{AsyncRead, AsyncWrite, ready};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use yamux::{Connection, ConnectionError, Mode};

/// How many streams each side may have open that it opened itself: one for questions, one for chunks, and those of
/// Kademlia, of which further ones wait. The peer counts on it.
pub(super) const MAX_OPENED: usize = 10;

/// How many streams one connection may have, of both sides: those that may be open, and as many and a few more
/// that one side has ended and the other has not yet. At one more the connection ends.
pub(super) const MAX_STREAMS: usize = 32;

/// How much may be sent ahead on all streams of a connection together, in bytes, once their windows have grown: each
/// may have 256 KiB, and so much more goes to those that are busy on a long line.
const MAX_WINDOW: usize = MAX_STREAMS * (256 << 10) + (4 << 20);

/// What is written together, in bytes: yamux writes a frame's header and its body one after the other, and each would be a
/// packet of its own below. Most questions and answers have room, about a dozen blobs too; in front of longer ones the header goes
/// alone.
const WRITE_BUFFER: usize = 512;

/// Makes yamux connections, as libp2p's transports ask for it.
#[derive(Clone)]
pub(super) struct Upgrade;

impl Upgrade {
    fn start<C: AsyncRead + AsyncWrite + Unpin>(socket: C, mode: Mode) -> Muxer<C> {
        let socket = BufWriter::with_capacity(WRITE_BUFFER, socket);
        let mut config = yamux::Config::default();
        // The window last: it must have room for the streams.
        config.set_max_num_streams(MAX_STREAMS).set_max_connection_receive_window(Some(MAX_WINDOW));
        let connection = Connection::new(socket, config, mode);
        Muxer { connection, arrived: VecDeque::new(), arrival: None, opened: Arc::default() }
    }
}

impl UpgradeInfo for Upgrade {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> InboundConnectionUpgrade<C> for Upgrade {
    type Output = Muxer<C>;
    type Error = Infallible;
    type Future = Ready<Result<Muxer<C>, Infallible>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Self::start(socket, Mode::Server)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> OutboundConnectionUpgrade<C> for Upgrade {
    type Output = Muxer<C>;
    type Error = Infallible;
    type Future = Ready<Result<Muxer<C>, Infallible>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Self::start(socket, Mode::Client)))
    }
}

/// A connection.
pub(super) struct Muxer<C> {
    connection: Connection<BufWriter<C>>,
    // Streams that came while the connection was driven for another reason: at most MAX_STREAMS.
    arrived: VecDeque<yamux::Stream>,
    arrival: Option<Waker>,
    opened: Arc<Opened>,
}

/// How many streams that this side opened are alive, and who waits to open another.
#[derive(Default)]
struct Opened {
    count: AtomicUsize,
    waits: AtomicWaker,
}

/// The place of one stream among them.
struct Place(Arc<Opened>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.waits.wake();
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<yamux::Stream, ConnectionError>> {
        self.connection.poll_next_inbound(cx).map(|stream| stream.unwrap_or(Err(ConnectionError::Closed)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Substream;
    type Error = ConnectionError;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Substream, ConnectionError>> {
        let stream = match self.arrived.pop_front() {
            Some(stream) => stream,
            None => match self.poll_next(cx) {
                Poll::Ready(stream) => stream?,
                Poll::Pending => {
                    self.arrival = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            },
        };
        Poll::Ready(Ok(Substream { stream, _place: None }))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Substream, ConnectionError>> {
        // Before the count is read, so that no stream ends unseen in between.
        self.opened.waits.register(cx.waker());
        if self.opened.count.load(Ordering::Acquire) >= MAX_OPENED {
            return Poll::Pending;
        }
        let stream = ready!(self.connection.poll_new_outbound(cx))?;
        self.opened.count.fetch_add(1, Ordering::AcqRel);
        Poll::Ready(Ok(Substream { stream, _place: Some(Place(Arc::clone(&self.opened))) }))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.connection.poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        let stream = ready!(self.poll_next(cx))?;
        self.arrived.push_back(stream);
        if let Some(waker) = self.arrival.take() {
            waker.wake();
        }
        // There may be more to read; others have their turn first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// One stream of a connection.
pub(super) struct Substream {
    stream: yamux::Stream,
    _place: Option<Place>,
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use libp2p::core::muxing::StreamMuxerExt as _;
    use tokio_util::compat::TokioAsyncReadCompatExt as _;

    use super::*;

    #[test]
    fn a_stream_beyond_the_bound_waits_until_another_ends_and_costs_no_connection() {
        let (ours, _theirs) = tokio::io::duplex(1 << 10);
        let mut muxer = Upgrade::start(ours.compat(), Mode::Client);
        let mut cx = Context::from_waker(Waker::noop());
        let mut open = || match muxer.poll_outbound_unpin(&mut cx) {
            Poll::Ready(stream) => Some(stream.unwrap()),
            Poll::Pending => None,
        };
        let mut streams: Vec<_> = (0..MAX_OPENED).map(|_| open().unwrap()).collect();
        assert!(open().is_none());
        streams.pop();
        assert!(open().is_some());
    }

    /// Keeps how long each piece is that is written, and has nothing to read.
    #[derive(Default)]
    struct Pieces(Vec<usize>);

    impl AsyncRead for &mut Pieces {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for &mut Pieces {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(buf.len());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_is_said_on_a_stream_is_written_in_one_piece_with_its_header() {
        let mut pieces = Pieces::default();
        let mut muxer = Upgrade::start(&mut pieces, Mode::Client);
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(mut stream)) = muxer.poll_outbound_unpin(&mut cx) else { panic!("no stream") };
        assert!(matches!(Pin::new(&mut stream).poll_write(&mut cx, b"a question"), Poll::Ready(Ok(10))));
        assert!(muxer.poll_unpin(&mut cx).is_pending());
        drop((stream, muxer));
        // What yamux says for itself at the beginning goes before.
        assert!(pieces.0.last().is_some_and(|last| *last > b"a question".len()), "in {:?}", pieces.0);
    }
}
