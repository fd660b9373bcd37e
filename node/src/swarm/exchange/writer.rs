//! What the giving side writes: small answers, and chunks straight from their files.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wherry_proto::{Digest, Response, encode_frame};

use super::REQUEST_LIMIT;
use super::buffers::{Buffer, Buffers};
use super::server::Slot;
use crate::swarm::codec::WireError;
use crate::swarm::holdings::ReadAt;

/// How many bytes of a chunk are read, encrypted and sent at a time. They stay in the processor's own cache that
/// way, which a whole chunk would not.
const PIECE: usize = 64 << 10;

/// A response with a body.
pub(super) struct Answer {
    pub(super) frame: Vec<u8>,
    pub(super) body: Body,
}

/// The raw bytes behind a frame.
pub(super) enum Body {
    /// The states of a chain.
    States(Vec<u8>),
    /// A part of a blob.
    Piece { blob: Digest, file: Arc<dyn ReadAt>, offset: u64, len: u32 },
}

/// A response that holds a slot until it is written.
pub(super) struct Outgoing {
    pub(super) answer: Answer,
    pub(super) _slot: Slot,
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
                answer = small.recv() => match answer {
                    Some(answer) => timeout(REQUEST_LIMIT, writer.write_all(&encode_frame(&answer)?))
                        .await
                        .map_err(|_| WireError::Silent(REQUEST_LIMIT))??,
                    None => return Err(gone()),
                },
                response = responses.recv() => match response {
                    Some(Outgoing { answer, _slot }) => timeout(REQUEST_LIMIT, send(buffers, &mut writer, answer))
                        .await
                        .map_err(|_| WireError::Silent(REQUEST_LIMIT))??,
                    None => return Err(gone()),
                },
            }
            if small.is_empty() && responses.is_empty() {
                timeout(REQUEST_LIMIT, writer.flush())
                    .await
                    .map_err(|_| WireError::Silent(REQUEST_LIMIT))??;
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

async fn send<S: AsyncWrite>(
    buffers: &Buffers,
    writer: &mut WriteHalf<S>,
    Answer { frame, body }: Answer,
) -> io::Result<()> {
    let (blob, file, offset, len) = match body {
        Body::States(states) => {
            writer.write_all(&frame).await?;
            return writer.write_all(&states).await;
        }
        Body::Piece { blob, file, offset, len } => (blob, file, offset, len as usize),
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
                tracing::warn!(digest = %blob, %error, "a blob that is held cannot be read");
            })?;
        }
        writer.write_all(&buffer.bytes[..end]).await?;
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
