//! Frames on a byte stream.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use wherry_proto::{FrameError, Message, PREFIX_LEN, decode_payload, encode_frame, payload_len};

/// Why a frame cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The connection failed or ended.
    #[error("{}", plainly(.0))]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Nothing came in time.
    #[error("nothing came within {0:?}")]
    Silent(Duration),
}

/// What became of a connection, in words that do not depend on what it was made of: a peer that was shut down or killed
/// is gone, whatever the layers below miss at its end.
pub(super) fn plainly(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => "the connection has ended".to_owned(),
        io::ErrorKind::TimedOut => "no answer came in time".to_owned(),
        _ => format!("the connection failed: {error}"),
    }
}

/// Reads the payload of one frame.
pub(super) async fn read_payload<M: Message>(
    reader: &mut (impl AsyncRead + Unpin),
) -> Result<Vec<u8>, WireError> {
    let mut prefix = [0; PREFIX_LEN];
    reader.read_exact(&mut prefix).await?;
    read_after_prefix::<M>(reader, prefix).await
}

/// Reads what follows a frame's first bytes.
pub(super) async fn read_after_prefix<M: Message>(
    reader: &mut (impl AsyncRead + Unpin),
    prefix: [u8; PREFIX_LEN],
) -> Result<Vec<u8>, WireError> {
    // Checked before anything is allocated for it.
    let mut payload = vec![0; payload_len::<M>(prefix)?];
    reader.read_exact(&mut payload).await?;
    Ok(payload)
}

/// Reads one message, which must have come whole within `patience`.
pub(super) async fn read_within<M: Message>(
    reader: &mut (impl AsyncRead + Unpin),
    patience: Duration,
) -> Result<M, WireError> {
    let payload =
        timeout(patience, read_payload::<M>(reader)).await.map_err(|_| WireError::Silent(patience))??;
    Ok(decode_payload(&payload)?)
}

/// Writes one message, which must have been taken within `patience`.
pub(super) async fn write_within<M: Message>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &M,
    patience: Duration,
) -> Result<(), WireError> {
    let frame = encode_frame(message)?;
    let write = async {
        writer.write_all(&frame).await?;
        writer.flush().await
    };
    Ok(timeout(patience, write).await.map_err(|_| WireError::Silent(patience))??)
}
