//! One client's TCP connection, as hyper sees it and as it is.
//!
//! Three things happen here that hyper has no word for: bytes of a mapped file are sent by `sendfile`, a
//! client that neither reads nor writes is noticed, and a connection can be ended in the two ways that
//! [`Break`](super::Break) tells apart.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::mapping::{Mapping, Shared};

/// How long a closed connection waits for the client's own end, so that what was sent last is not lost to a
/// reset.
const PARTING: Duration = Duration::from_secs(1);

/// The most slices that are gathered into one write.
const MAX_SLICES: usize = 16;

/// How long a client may do nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Between requests.
    pub(super) idle: Duration,
    /// From the first byte of a request to the end of its headers.
    pub(super) header: Duration,
    /// While it takes nothing of an answer.
    pub(super) write: Duration,
}

/// The connection, shared by hyper's side of it, the body that is being sent, and the task that ends it.
pub(super) struct Wire {
    stream: TcpStream,
    state: Mutex<State>,
}

struct State {
    /// Mapped parts that were handed to hyper and are not yet sent to their end, the oldest first. hyper
    /// takes no further frame before the last is written, so there are one or two.
    mappings: VecDeque<Arc<Mapping>>,
    phase: Phase,
    flush: Flush,
    reset: bool,
    /// The file system or socket has turned out not to support it.
    no_sendfile: bool,
}

#[derive(Clone, Copy)]
enum Phase {
    /// No request has begun since then.
    Idle(Instant),
    /// A request began then and its headers are not complete.
    Head(Instant),
    /// An answer is due or on its way; waiting for the client is the writer's business.
    Busy,
}

enum Flush {
    Unasked,
    Asked(Waker),
    Done,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Arc<Self> {
        let state = State {
            mappings: VecDeque::new(),
            phase: Phase::Idle(Instant::now()),
            flush: Flush::Unasked,
            reset: false,
            no_sendfile: false,
        };
        Arc::new(Self { stream, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-changed by a panic in here, since nothing in here can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has been read to the end of its headers.
    pub(super) fn request_begins(&self) {
        self.state().phase = Phase::Busy;
    }

    /// The answer is complete or given up.
    pub(super) fn request_ends(&self) {
        self.state().phase = Phase::Idle(Instant::now());
    }

    /// The client has taken something after a while of not doing so.
    fn restart_idle(&self) {
        if let Phase::Idle(since) = &mut self.state().phase {
            *since = Instant::now();
        }
    }

    /// The bytes of a mapping, to be given to hyper and recognised again when hyper writes them.
    pub(super) fn announce(&self, mapping: Mapping) -> Bytes {
        let mapping = Arc::new(mapping);
        let mut state = self.state();
        if !state.no_sendfile {
            state.mappings.push_back(Arc::clone(&mapping));
        }
        drop(state);
        Bytes::from_owner(Shared(mapping))
    }

    /// Makes the end of the connection a reset: what the client has not yet read is discarded.
    pub(super) fn poison(&self) {
        self.state().reset = true;
        if let Err(error) = self.stream.set_zero_linger() {
            tracing::warn!(%error, "a connection could not be set to be reset, and will be closed instead");
        }
    }

    /// Ready once everything that hyper holds has been written to the socket.
    pub(super) fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if matches!(state.flush, Flush::Done) {
            return Poll::Ready(());
        }
        state.flush = Flush::Asked(cx.waker().clone());
        Poll::Pending
    }

    /// Ends the connection after hyper is through with it: with a reset if it was [poisoned](Self::poison),
    /// otherwise so that the client gets everything that was sent.
    pub(super) async fn part(&self) {
        if self.state().reset {
            return;
        }
        // Closing a socket whose peer's bytes were not all read would reset it.
        if rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write).is_err() {
            return;
        }
        let drained = tokio::time::timeout(PARTING, async {
            let mut sink = [0; 512];
            while self.stream.readable().await.is_ok() {
                match self.stream.try_read(&mut sink) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
        });
        let _ = drained.await;
    }

    /// Writes from the front of `bufs` what one system call takes: a run of ordinary bytes or a piece of a
    /// mapped file.
    fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state();
        let bufs = &bufs[..bufs.len().min(MAX_SLICES)];
        if let Some(first) = bufs.first()
            && let Some(at) = state.mappings.iter().position(|mapping| mapping.locate(first).is_some())
        {
            match self.try_sendfile(&state.mappings[at], first) {
                Err(error) if matches!(error.raw_os_error(), Some(EINVAL | ENOSYS)) => {
                    // From here on the mappings are written like any bytes and need not be recognised.
                    state.no_sendfile = true;
                    state.mappings.clear();
                }
                Ok(n) => {
                    if state.mappings[at].ends_with(&first[..n]) {
                        state.mappings.drain(..=at);
                    }
                    return Ok(n);
                }
                error => return error,
            }
        }
        let is_mapped = |slice: &IoSlice<'_>| state.mappings.iter().any(|m| m.locate(slice).is_some());
        let plain = bufs.iter().position(is_mapped);
        let mut flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if plain.is_some() {
            // What comes next goes into the same packet.
            flags |= SendFlags::MORE;
        }
        let run = &bufs[..plain.unwrap_or(bufs.len())];
        let n = self.stream.try_io(Interest::WRITABLE, || {
            Ok(sendmsg(&self.stream, run, &mut SendAncillaryBuffer::default(), flags)?)
        })?;
        Ok(n)
    }

    fn try_sendfile(&self, mapping: &Mapping, slice: &[u8]) -> io::Result<usize> {
        let Some((file, mut offset)) = mapping.locate(slice) else { return Ok(0) };
        let n = self.stream.try_io(Interest::WRITABLE, || {
            Ok(rustix::fs::sendfile(&self.stream, file, Some(&mut offset), slice.len())?)
        })?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a stored blob is shorter than recorded",
            ));
        }
        Ok(n)
    }
}

const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();
const ENOSYS: i32 = rustix::io::Errno::NOSYS.raw_os_error();

/// hyper's side of a connection.
pub(super) struct Link {
    wire: Arc<Wire>,
    patience: Patience,
    reading: Alarm,
    writing: Alarm,
    /// Since when the client has taken nothing of what waits for it.
    blocked: Option<Instant>,
}

impl Link {
    pub(super) fn new(wire: Arc<Wire>, patience: Patience) -> Self {
        Self { wire, patience, reading: Alarm::default(), writing: Alarm::default(), blocked: None }
    }
}

/// A timer that is moved rarely although its deadline moves all the time.
#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready once `deadline` has passed. The deadline may differ at each call.
    fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline || (sleep.is_elapsed() && sleep.deadline() < deadline) {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while let Poll::Ready(ready) = this.wire.stream.poll_read_ready(cx) {
            ready?;
            match this.wire.stream.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    let mut state = this.wire.state();
                    if n > 0 && matches!(state.phase, Phase::Idle(_)) {
                        state.phase = Phase::Head(Instant::now());
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let phase = this.wire.state().phase;
        let (deadline, what) = match phase {
            Phase::Idle(since) => (since + this.patience.idle, "no further request came"),
            Phase::Head(since) => (since + this.patience.header, "the request's headers did not end"),
            Phase::Busy => return Poll::Pending,
        };
        if this.blocked.is_some() {
            // The last answer is still on its way, and the writer has the clock.
            return Poll::Pending;
        }
        ready!(this.reading.poll(cx, deadline));
        Poll::Ready(Err(timed_out(what)))
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while let Poll::Ready(ready) = this.wire.stream.poll_write_ready(cx) {
            ready?;
            match this.wire.try_write(bufs) {
                Ok(n) => {
                    if this.blocked.take().is_some() {
                        this.wire.restart_idle();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let since = *this.blocked.get_or_insert_with(Instant::now);
        ready!(this.writing.poll(cx, since + this.patience.write));
        this.wire.poison();
        Poll::Ready(Err(timed_out("the client takes nothing of what it asked for")))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once its own buffers are empty, and a socket has none.
        let mut state = self.wire.state();
        if matches!(state.flush, Flush::Asked(_))
            && let Flush::Asked(waker) = std::mem::replace(&mut state.flush, Flush::Done)
        {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wire.state().reset {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Ok(rustix::net::shutdown(&self.wire.stream, rustix::net::Shutdown::Write)?))
    }
}
