//! One client's TCP connection, as hyper sees it and as it is.
//!
//! Three things happen here that hyper has no word for: bytes of a mapped file are sent by `sendfile` or, to a program of
//! this machine, as copies, a client that neither reads nor writes is noticed, and a connection can be ended in the two
//! ways that [`Break`](super::Break) tells apart.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::mapping::{Mapping, Shared};

/// How long a closed connection waits for the client's own end, so that what was sent last is not lost to a
/// reset.
const PARTING: Duration = Duration::from_secs(1);

/// How much is copied at a time for a client of this machine, in bytes: it stays in a processor's own cache.
const COPIED: usize = 64 << 10;

thread_local! {
    /// What is copied passes through here. Read and not mapped, since what is read of a mapping counts as memory of this
    /// process for each of many clients that may be slow.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; COPIED]);
}

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

/// What a client has not done in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    Idle,
    Head,
    Write,
}

impl Patience {
    const fn of(&self, overdue: Overdue) -> Duration {
        match overdue {
            Overdue::Idle => self.idle,
            Overdue::Head => self.header,
            Overdue::Write => self.write,
        }
    }
}

/// The connection, shared by hyper's side of it, the body that is being sent, and the task that ends it.
pub(super) struct Wire {
    stream: TcpStream,
    /// The client is a program of this machine, which is sent copies: of a file's own pages it would have to fetch each from
    /// memory by itself, while no network card saves anybody the copy (skopeo pulls 3 to 4 % sooner, as measured).
    is_near: bool,
    state: Mutex<State>,
}

struct State {
    /// Mapped parts that were handed to hyper and are not yet sent to their end, the oldest first. hyper
    /// takes no further frame before the last is written, so there are one or two.
    mappings: VecDeque<Arc<Mapping>>,
    phase: Phase,
    /// Since when the client has taken nothing of what waits for it.
    blocked: Option<Instant>,
    flush: Flush,
    reset: bool,
    /// The file system or socket has turned out not to support it, or the bytes are encrypted on their way.
    no_sendfile: bool,
}

impl State {
    /// The client has taken something.
    fn progress(&mut self) {
        if self.blocked.take().is_some()
            && let Phase::Idle(since) = &mut self.phase
        {
            *since = Instant::now();
        }
    }
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
    /// `encrypts`: what is written here is not what hyper writes.
    pub(super) fn new(stream: TcpStream, encrypts: bool) -> Arc<Self> {
        let state = State {
            mappings: VecDeque::new(),
            phase: Phase::Idle(Instant::now()),
            blocked: None,
            flush: Flush::Unasked,
            reset: false,
            no_sendfile: encrypts,
        };
        let is_near = stream.peer_addr().is_ok_and(|client| client.ip().to_canonical().is_loopback());
        Arc::new(Self { stream, is_near, state: Mutex::new(state) })
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

    /// Ends when the client has tried the server's patience, and says how.
    ///
    /// Runs beside hyper rather than in its reads and writes, since hyper polls those when it sees fit.
    pub(super) async fn overdue(&self, patience: Patience) -> Overdue {
        // Whatever begins after one look is not overdue before the next.
        let shortest = patience.idle.min(patience.header).min(patience.write);
        loop {
            let now = Instant::now();
            let due = match self.waiting() {
                Some((overdue, since)) => {
                    let due = since + patience.of(overdue);
                    if due <= now {
                        return overdue;
                    }
                    due
                }
                None => now + shortest,
            };
            tokio::time::sleep_until(due.min(now + shortest)).await;
        }
    }

    /// What the client is being waited for, and since when.
    fn waiting(&self) -> Option<(Overdue, Instant)> {
        let state = self.state();
        match (state.blocked, state.phase) {
            // The end of an answer may still be on its way when the next request is awaited.
            (Some(since), _) => Some((Overdue::Write, since)),
            (None, Phase::Idle(since)) => Some((Overdue::Idle, since)),
            (None, Phase::Head(since)) => Some((Overdue::Head, since)),
            (None, Phase::Busy) => None,
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
            let sent = match self.is_near {
                true => self.try_copy(&state.mappings[at], first),
                false => self.try_sendfile(&state.mappings[at], first),
            };
            match sent {
                Err(error) if matches!(error.raw_os_error(), Some(EINVAL | ENOSYS)) => {
                    // From here on the mappings are written like any bytes and need not be recognised.
                    state.no_sendfile = true;
                    state.mappings.clear();
                }
                Ok(n) => {
                    if state.mappings[at].ends_with(&first[..n]) {
                        state.mappings.drain(..=at);
                    }
                    state.progress();
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
        state.progress();
        Ok(n)
    }

    fn try_copy(&self, mapping: &Mapping, slice: &[u8]) -> io::Result<usize> {
        let Some((file, offset)) = mapping.locate(slice) else { return Ok(0) };
        SCRATCH.with_borrow_mut(|scratch| {
            let most = slice.len().min(scratch.len());
            let n = self.stream.try_io(Interest::WRITABLE, || {
                let n = file.read_at(&mut scratch[..most], offset)?;
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                let copy = [IoSlice::new(&scratch[..n])];
                Ok(if n == 0 {
                    0
                } else {
                    sendmsg(&self.stream, &copy, &mut SendAncillaryBuffer::default(), flags)?
                })
            })?;
            if n == 0 { Err(shorter()) } else { Ok(n) }
        })
    }

    fn try_sendfile(&self, mapping: &Mapping, slice: &[u8]) -> io::Result<usize> {
        let Some((file, mut offset)) = mapping.locate(slice) else { return Ok(0) };
        let n = self.stream.try_io(Interest::WRITABLE, || {
            Ok(rustix::fs::sendfile(&self.stream, file, Some(&mut offset), slice.len())?)
        })?;
        if n == 0 {
            return Err(shorter());
        }
        Ok(n)
    }
}

fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a stored blob is shorter than recorded")
}

const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();
const ENOSYS: i32 = rustix::io::Errno::NOSYS.raw_os_error();

/// What hyper reads and writes.
pub(super) enum Io {
    Plain(Link),
    Tls(Box<TlsStream<Link>>),
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(link) => Pin::new(link).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(link) => Pin::new(link).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(link) => Pin::new(link).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(link) => Pin::new(link).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(link) => Pin::new(link).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

/// hyper's side of a connection.
pub(super) struct Link {
    wire: Arc<Wire>,
}

impl Link {
    pub(super) const fn new(wire: Arc<Wire>) -> Self {
        Self { wire }
    }
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
        Poll::Pending
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
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        this.wire.state().blocked.get_or_insert_with(Instant::now);
        Poll::Pending
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

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A link, and the other end of its connection.
    async fn pair() -> (Arc<Wire>, Link, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let wire = Wire::new(listener.accept().await.unwrap().0, false);
        (Arc::clone(&wire), Link::new(wire), client)
    }

    /// Ordinary bytes, then two mapped parts of a file, then ordinary bytes, written as hyper does.
    async fn write_all(no_sendfile: bool) {
        let (wire, mut link, mut client) = pair().await;
        wire.state().no_sendfile = no_sendfile;
        let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        file.seek(SeekFrom::Start(17)).unwrap();
        let file = Arc::new(file);
        let map = |offset: u64, len| Mapping::new(Arc::clone(&file), offset, len).unwrap();
        let parts = [
            Bytes::from_static(b"head"),
            wire.announce(map(70_001, 1_500_000)),
            wire.announce(map(1_570_001, 10)),
            Bytes::from_static(b"tail"),
        ];
        let expected = [b"head", &content[70_001..1_570_011], b"tail"].concat();
        let writing = async move {
            let mut at = 0;
            let all: usize = parts.iter().map(Bytes::len).sum();
            while at < all {
                let mut skip = at;
                let mut slices = Vec::new();
                for part in &parts {
                    let skipped = skip.min(part.len());
                    skip -= skipped;
                    if skipped < part.len() {
                        slices.push(IoSlice::new(&part[skipped..]));
                    }
                }
                at += link.write_vectored(&slices).await.unwrap();
            }
            link.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (read, ()) = tokio::join!(client.read_to_end(&mut received), writing);
        read.unwrap();
        assert!(received == expected, "{} bytes came, {} were sent", received.len(), expected.len());
        assert!(wire.state().mappings.is_empty(), "what was sent is still held");
    }

    #[tokio::test]
    async fn bytes_and_files_arrive_in_order() {
        write_all(false).await;
    }

    #[tokio::test]
    async fn files_arrive_without_sendfile_too() {
        write_all(true).await;
    }
}
