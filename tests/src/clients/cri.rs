//! What a kubelet asks of containerd about images: the ImageService of the Container Runtime Interface.
//!
//! It is gRPC over a Unix socket: a POST of HTTP/2 for each call, one message each way behind five bytes that say how long it
//! is. The messages of these two calls are a few fields of protobuf.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::HeaderMap;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Containerd, LIMIT};

/// The longest answer that is read, in bytes.
const ANSWER_BOUND: usize = 1 << 20;

/// What containerd tells a kubelet of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CriImage {
    /// Its id: the digest of its config.
    pub id: String,
    /// The names with a tag that it has.
    pub tags: Vec<String>,
    /// Its names with the digest of its manifest.
    pub digests: Vec<String>,
}

impl Containerd {
    /// Pulls as a kubelet does, and gives what it would run: the image's id.
    ///
    /// # Errors
    /// With what containerd says, when it cannot.
    pub fn pull_for_kubelet(&self, reference: &str) -> Result<String> {
        let answer = call(&self.socket(), "PullImage", &image_request(reference))?;
        let fields = fields(&answer)?;
        let image = fields.into_iter().find_map(|(number, value)| (number == 1).then_some(value));
        Ok(String::from_utf8(image.context("no image_ref")?.to_vec())?)
    }

    /// What a kubelet is told of an image, if it is there.
    ///
    /// # Errors
    /// When containerd does not tell.
    pub fn status_for_kubelet(&self, reference: &str) -> Result<Option<CriImage>> {
        let answer = call(&self.socket(), "ImageStatus", &image_request(reference))?;
        let Some((_, image)) = fields(&answer)?.into_iter().find(|(number, _)| *number == 1) else {
            return Ok(None);
        };
        let mut found = CriImage::default();
        for (number, value) in fields(image)? {
            let text = || String::from_utf8_lossy(value).into_owned();
            match number {
                1 => found.id = text(),
                2 => found.tags.push(text()),
                3 => found.digests.push(text()),
                _ => {}
            }
        }
        Ok(Some(found))
    }
}

/// `PullImageRequest` and `ImageStatusRequest` alike have an `ImageSpec` for their first field, which has the name for its own.
fn image_request(reference: &str) -> Vec<u8> {
    field(1, &field(1, reference.as_bytes()))
}

/// A field of protobuf with bytes in it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

/// The fields of a message that have bytes in them, each with its number.
fn fields(mut message: &[u8]) -> Result<Vec<(u64, &[u8])>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = number(&mut message)?;
        let skipped = match key & 7 {
            0 => {
                number(&mut message)?;
                continue;
            }
            1 => 8,
            5 => 4,
            2 => usize::try_from(number(&mut message)?)?,
            kind => anyhow::bail!("a field of kind {kind}"),
        };
        let (value, rest) = message.split_at_checked(skipped).context("a field that is cut short")?;
        if key & 7 == 2 {
            found.push((key >> 3, value));
        }
        message = rest;
    }
    Ok(found)
}

fn number(message: &mut &[u8]) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = message.split_first().context("a number that is cut short")?;
        *message = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(number);
        }
    }
    anyhow::bail!("a number that is too long")
}

fn call(socket: &Path, method: &str, request: &[u8]) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { timeout(LIMIT, ask(socket, method, request)).await });
    answer.with_context(|| format!("{method} took longer than {} s", LIMIT.as_secs()))?
}

async fn ask(socket: &Path, method: &str, request: &[u8]) -> Result<Vec<u8>> {
    let stream = UnixStream::connect(socket).await.with_context(|| socket.display().to_string())?;
    let (client, connection) = h2::client::handshake(stream).await?;
    // It ends when the client is dropped.
    tokio::spawn(connection);
    let head = http::Request::post(format!("http://containerd/runtime.v1.ImageService/{method}"));
    let head = head.header("content-type", "application/grpc").header("te", "trailers").body(())?;
    let (answer, mut body) = client.ready().await?.send_request(head, false)?;
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(request.len())?.to_be_bytes());
    message.extend_from_slice(request);
    body.send_data(Bytes::from(message), true)?;

    let (head, mut body) = answer.await?.into_parts();
    let mut answer = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        ensure!(answer.len() + piece.len() <= ANSWER_BOUND, "the answer is too long");
        answer.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    // An answer without a message has no trailers of its own.
    let told = |headers: &HeaderMap, name| {
        headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let tell = |name| told(&trailers, name).or_else(|| told(&head.headers, name)).unwrap_or_default();
    ensure!(tell("grpc-status") == "0", "{method}: status {}: {}", tell("grpc-status"), tell("grpc-message"));
    let length = answer.get(1..5).context("no message")?.try_into().map(u32::from_be_bytes)?;
    ensure!(answer.len() == 5 + length as usize, "a message of {length} bytes in {}", answer.len());
    Ok(answer.split_off(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_numbers_between_are_skipped() -> Result<()> {
        let long = vec![7; 300];
        let mut message = field(3, &long);
        // A number, as the size of an image is one.
        message.extend([0x20, 0xac, 0x02]);
        message.extend(field(1, b"x"));
        assert_eq!(fields(&message)?, [(3, long.as_slice()), (1, b"x".as_slice())]);
        assert!(fields(&message[..message.len() - 1]).is_err());
        Ok(())
    }
}
