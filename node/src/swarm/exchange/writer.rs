//! What the giving side writes: small answers, and chunks straight from their files.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use wherry_proto::{Digest, Response, encode_frame};

use super::buffers::{Buffer, Buffers};
use crate::swarm::backlog::Backlog;
use crate::swarm::codec::WireError;
use crate::swarm::holdings::ReadAt;

/// How many bytes of a chunk are read, encrypted and sent at a time, on a connection that is not known as quick. They
/// stay in the processor's own cache that way, which a whole chunk would not.
const MIN_PIECE: usize = 64 << 10;

/// The same on a quick connection: there the taker is woken once for each piece, which costs more than the cache saves
/// (8 % of the processor time of both sides, measured over loopback). More gained nothing.
pub(in crate::swarm) const MAX_PIECE: usize = 256 << 10;

/// A connection is quick if it takes a piece within this time.
const QUICK: Duration = Duration::from_millis(10);

/// How long a peer may take to make room for [`MIN_PIECE`] bytes, and for each further one of a piece, before the
/// connection is ended: as long as they take at 18 kbit/s. Whoever reads nothing holds a slot for no longer than for the
/// longest piece.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// How many bytes a socket may hold that are not sent, with what it takes beyond its mark at once.
const IN_SOCKET: usize = 4 * MIN_PIECE;

/// From how many bytes on small answers are written.
const TOGETHER: usize = 4 << 10;

/// How long a peer may take to make room for so many bytes.
const fn patience(len: usize) -> Duration {
    WRITE_TIME.saturating_mul(len.div_ceil(MIN_PIECE) as u32)
}

/// A response with a body.
pub(super) struct Answer {
    pub(super) frame: Vec<u8>,
    pub(super) body: Body,
}

/// The raw bytes behind a frame.
pub(super) enum Body {
    /// Bytes that are at hand.
    Ready(Vec<u8>),
    /// A part of a blob that is still to be read.
    Piece { digest: Digest, file: Arc<dyn ReadAt>, offset: u64, len: u32 },
}

impl Body {
    /// How many bytes it has.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Ready(bytes) => bytes.len(),
            Self::Piece { len, .. } => *len as usize,
        }
    }
}

/// A response with what it holds until it is sent: a place among the chains that are, and its connection's turn, with which
/// others wait for its slot.
pub(super) struct Outgoing {
    pub(super) answer: Answer,
    /// Whether others wait until it is on its way.
    pub(super) waits: bool,
    pub(super) chain: Option<Arc<()>>,
    pub(super) _turn: OwnedSemaphorePermit,
}

/// Writes what comes by the two channels until the connection fails. Small answers go first.
pub(super) async fn write<S: AsyncWrite>(
    buffers: &Buffers,
    writer: WriteHalf<S>,
    backlog: Option<Backlog>,
    mut responses: mpsc::Receiver<Outgoing>,
    mut small: mpsc::Receiver<Response>,
) -> WireError {
    let mut writer = Writer { writer, piece: MIN_PIECE, unflushed: 0 };
    loop {
        let write = async {
            tokio::select! {
                biased;
                answer = small.recv() => {
                    // What is said at the same time goes together: a packet of its own for each costs more than they do.
                    let mut frames = encode_frame(&answer.ok_or_else(gone)?)?;
                    while frames.len() < TOGETHER
                        && let Ok(next) = small.try_recv()
                    {
                        frames.extend(encode_frame(&next)?);
                    }
                    writer.put(&frames).await?;
                    if small.is_empty() && responses.is_empty() {
                        writer.flush().await?;
                    }
                }
                response = responses.recv() => {
                    // A chain that is sent counts no more when the next request is looked at: what stands last here ends first.
                    let Outgoing { answer, waits, _turn, chain: _chain } = response.ok_or_else(gone)?;
                    writer.send(buffers, answer).await?;
                    writer.flush().await?;
                    // What others wait for is on its way before they are let go.
                    if let Some(backlog) = backlog.as_ref().filter(|_| waits) {
                        drain(backlog).await?;
                    }
                }
            }
            Ok(())
        };
        if let Err(why) = write.await {
            return why;
        }
    }
}

/// Returns when a socket has sent what was written, but for what its link takes at once. Else chunks that are shorter than
/// what a socket holds would free their slots at once, and share the link with all that follow them.
async fn drain(backlog: &Backlog) -> Result<(), WireError> {
    let patience = patience(IN_SOCKET);
    timeout(patience, backlog.drained()).await.map_err(|_| WireError::Silent(patience))
}

fn gone() -> WireError {
    WireError::Io(io::ErrorKind::BrokenPipe.into())
}

/// A connection's writing half.
struct Writer<S> {
    writer: WriteHalf<S>,
    /// How many bytes of a chunk are written at a time now.
    piece: usize,
    /// How many bytes were written since the last flush, for which a peer is given time.
    unflushed: usize,
}

impl<S: AsyncWrite> Writer<S> {
    async fn put(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        for part in bytes.chunks(MIN_PIECE) {
            self.put_piece(part).await?;
        }
        Ok(())
    }

    async fn put_piece(&mut self, piece: &[u8]) -> Result<(), WireError> {
        self.unflushed += piece.len();
        let patience = patience(self.unflushed);
        let writing = timeout(patience, self.writer.write_all(piece));
        writing.await.map_err(|_| WireError::Silent(patience))??;
        if self.unflushed >= MIN_PIECE { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), WireError> {
        let patience = patience(self.unflushed.max(1));
        self.unflushed = 0;
        Ok(timeout(patience, self.writer.flush()).await.map_err(|_| WireError::Silent(patience))??)
    }

    async fn send(&mut self, buffers: &Buffers, Answer { frame, body }: Answer) -> Result<(), WireError> {
        let (digest, file, offset, len) = match body {
            Body::Ready(bytes) => {
                self.put(&frame).await?;
                return self.put(&bytes).await;
            }
            Body::Piece { digest, file, offset, len } => (digest, file, offset, len as usize),
        };
        let mut buffer = buffers.take(frame.len() + len);
        // The frame goes with the first piece.
        let mut start = frame.len();
        let mut sent = 0;
        loop {
            let at = offset + sent as u64;
            let mut end = (start + len - sent).min(self.piece);
            // Only what the buffer never had is zeroed.
            buffer.bytes.resize(buffer.bytes.len().max(end), 0);
            if !file.read_cached_at(&mut buffer.bytes[start..end], at) {
                // All that is left at once, by a thread that may wait for the disk.
                end = start + len - sent;
                buffer = read(Arc::clone(&file), buffer, start, end, at).await.inspect_err(|error| {
                    // The length has been promised, so that all that is left is to end the connection.
                    tracing::warn!(%digest, %error, "a blob that is to be given cannot be read");
                })?;
            }
            if sent == 0 {
                buffer.bytes[..start].copy_from_slice(&frame);
            }
            let mut written = 0;
            while written < end {
                let piece = written..end.min(written + self.piece);
                written = piece.end;
                let (whole, begun) = (piece.len() == self.piece, Instant::now());
                self.put_piece(&buffer.bytes[piece]).await?;
                if begun.elapsed() >= QUICK {
                    self.piece = MIN_PIECE;
                } else if whole {
                    // What is shorter proves little: the socket may have had room for it.
                    self.piece = (2 * self.piece).min(MAX_PIECE);
                }
            }
            sent += end - start;
            if sent == len {
                return Ok(());
            }
            start = 0;
        }
    }
}

async fn read(
    file: Arc<dyn ReadAt>,
    mut buffer: Buffer,
    start: usize,
    end: usize,
    offset: u64,
) -> io::Result<Buffer> {
    let read = move || {
        buffer.bytes.resize(buffer.bytes.len().max(end), 0);
        file.read_exact_at(&mut buffer.bytes[start..end], offset).map(|()| buffer)
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}
