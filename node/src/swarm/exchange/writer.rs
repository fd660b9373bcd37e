//! What the giving side writes: small answers, and chunks straight from their files.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use wherry_proto::{Digest, Response, encode_frame};

use super::buffers::{Buffer, Buffers};
use super::slots::Slot;
use crate::swarm::codec::WireError;
use crate::swarm::holdings::ReadAt;

/// How many bytes of a chunk are read, encrypted and sent at a time. They stay in the processor's own cache that
/// way, which a whole chunk would not.
const PIECE: usize = 64 << 10;

/// How many bytes a peer must have made room for within [`WRITE_TIME`]: a piece with its frame is written at once.
const WRITE: usize = 2 * PIECE;

/// How long a peer may take to make room for [`WRITE`] bytes before the connection is ended: as long as they take at
/// 35 kbit/s. Whoever reads nothing holds a slot for no longer.
const WRITE_TIME: Duration = Duration::from_secs(30);

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

/// A response with what it holds until it is written: a slot, and its connection's turn.
pub(super) struct Outgoing {
    pub(super) answer: Answer,
    pub(super) _slot: Option<Slot>,
    pub(super) _turn: OwnedSemaphorePermit,
}

/// Writes what comes by the two channels until the connection fails. Small answers go first.
pub(super) async fn write<S: AsyncWrite>(
    buffers: &Buffers,
    mut writer: WriteHalf<S>,
    mut responses: mpsc::Receiver<Outgoing>,
    mut small: mpsc::Receiver<Response>,
) -> WireError {
    loop {
        let write = async {
            tokio::select! {
                biased;
                answer = small.recv() => {
                    put(&mut writer, &encode_frame(&answer.ok_or_else(gone)?)?).await?;
                    if small.is_empty() && responses.is_empty() {
                        flush(&mut writer).await?;
                    }
                }
                response = responses.recv() => {
                    let Outgoing { answer, _slot, _turn } = response.ok_or_else(gone)?;
                    send(buffers, &mut writer, answer).await?;
                    // What holds a slot is on its way before the slot is given back.
                    flush(&mut writer).await?;
                }
            }
            Ok(())
        };
        if let Err(why) = write.await {
            return why;
        }
    }
}

fn gone() -> WireError {
    WireError::Io(io::ErrorKind::BrokenPipe.into())
}

async fn put<S: AsyncWrite>(writer: &mut WriteHalf<S>, bytes: &[u8]) -> Result<(), WireError> {
    for part in bytes.chunks(WRITE) {
        timeout(WRITE_TIME, writer.write_all(part)).await.map_err(|_| WireError::Silent(WRITE_TIME))??;
    }
    Ok(())
}

async fn flush<S: AsyncWrite>(writer: &mut WriteHalf<S>) -> Result<(), WireError> {
    Ok(timeout(WRITE_TIME, writer.flush()).await.map_err(|_| WireError::Silent(WRITE_TIME))??)
}

async fn send<S: AsyncWrite>(
    buffers: &Buffers,
    writer: &mut WriteHalf<S>,
    Answer { frame, body }: Answer,
) -> Result<(), WireError> {
    let (digest, file, offset, len) = match body {
        Body::Ready(bytes) => {
            put(writer, &frame).await?;
            return put(writer, &bytes).await;
        }
        Body::Piece { digest, file, offset, len } => (digest, file, offset, len as usize),
    };
    let mut buffer = buffers.take(frame.len() + len);
    // Only what the buffer never had is zeroed.
    let most = frame.len() + PIECE.min(len);
    buffer.bytes.resize(buffer.bytes.len().max(most), 0);
    buffer.bytes[..frame.len()].copy_from_slice(&frame);
    // The frame goes with the first piece.
    let mut start = frame.len();
    let mut sent = 0;
    loop {
        let at = offset + sent as u64;
        let mut end = start + PIECE.min(len - sent);
        if !file.read_cached_at(&mut buffer.bytes[start..end], at) {
            // All that is left at once, by a thread that may wait for the disk.
            end = start + len - sent;
            buffer = read(Arc::clone(&file), buffer, start, end, at).await.inspect_err(|error| {
                // The length has been promised, so that all that is left is to end the connection.
                tracing::warn!(%digest, %error, "a blob that is to be given cannot be read");
            })?;
        }
        put(writer, &buffer.bytes[..end]).await?;
        sent += end - start;
        if sent == len {
            return Ok(());
        }
        start = 0;
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
