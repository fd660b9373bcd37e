//! Several ranges of one content in one answer: `multipart/byteranges`, as RFC 9110 has it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};

use super::body::Section;
use super::content::{BlobReader, Body, Break};
use super::pagecache::PageCache;
use super::{Refusal, RefusalKind};

/// What stands between the parts.
#[derive(Debug)]
pub(super) struct Parts {
    boundary: String,
    media_type: String,
    /// How long the content is as a whole.
    size: u64,
    ranges: Vec<Range<u64>>,
}

impl Parts {
    /// These ranges of a content of this type and length.
    pub(super) fn new(
        ranges: Vec<Range<u64>>,
        media_type: impl Into<String>,
        size: u64,
    ) -> Result<Self, Refusal> {
        let mut raw = [0; 16];
        // A boundary that nobody can foresee stands in no content.
        getrandom::fill(&mut raw).map_err(|error| {
            Refusal::new(RefusalKind::Internal, format!("the system gives no random numbers: {error}"))
        })?;
        let boundary = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { boundary, media_type: media_type.into(), size, ranges })
    }

    /// What the whole is, for the Content-Type.
    pub(super) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// How many bytes the whole has.
    pub(super) fn len(&self) -> u64 {
        let parts = self.ranges.iter().enumerate();
        let parts = parts.map(|(at, range)| self.head(at, range).len() as u64 + range.end - range.start);
        parts.sum::<u64>() + self.tail().len() as u64
    }

    /// The first range.
    pub(super) fn first(&self) -> Option<Range<u64>> {
        self.ranges.first().cloned()
    }

    fn head(&self, at: usize, range: &Range<u64>) -> String {
        let break_before = if at == 0 { "" } else { "\r\n" };
        let Self { boundary, media_type, size, .. } = self;
        let (first, last) = (range.start, range.end - 1);
        format!(
            "{break_before}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n"
        )
    }

    fn tail(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    /// The whole, of a content that is in memory.
    pub(super) fn of(&self, content: &Bytes) -> Bytes {
        let mut whole = Vec::with_capacity(usize::try_from(self.len()).unwrap_or_default());
        for (at, range) in self.ranges.iter().enumerate() {
            whole.extend_from_slice(self.head(at, range).as_bytes());
            // Ranges lie within the content, whose length fits into memory.
            whole.extend_from_slice(&content[range.start as usize..range.end as usize]);
        }
        whole.extend_from_slice(self.tail().as_bytes());
        whole.into()
    }

    /// The whole, bit by bit: a part is asked for when what comes before it is on its way to the client. `first` is the body of
    /// the first.
    pub(super) fn read<R: BlobReader>(
        self,
        reader: R,
        first: Body,
        cache: PageCache,
    ) -> BoxStream<'static, Result<Section, Break>> {
        let steps = 0..=2 * self.ranges.len();
        let shared = Arc::new((self, reader, cache));
        let mut first = Some(first);
        let sections = stream::iter(steps).then(move |step| {
            let shared = Arc::clone(&shared);
            let first = if step == 1 { first.take() } else { None };
            async move {
                let (parts, reader, cache) = &*shared;
                let (at, is_head) = (step / 2, step % 2 == 0);
                let Some(range) = parts.ranges.get(at) else { return Ok(text(parts.tail())) };
                if is_head {
                    return Ok(text(parts.head(at, range)));
                }
                let body = match first {
                    Some(body) => Ok(body),
                    None => reader.read(range.clone()).await,
                };
                let body = body.map_err(|refusal| {
                    tracing::debug!(message = refusal.message, "a further part of an answer cannot be had");
                    Break::Stalled
                })?;
                let body = cache.at_hand(body).await.map_err(|error| {
                    tracing::error!(%error, "a stored blob cannot be read");
                    Break::Stalled
                })?;
                Ok(Section { body, len: range.end - range.start })
            }
        });
        sections.boxed()
    }
}

fn text(text: String) -> Section {
    let len = text.len() as u64;
    Section { body: Body::Bytes(text.into()), len }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_as_long_as_it_says_and_reads_as_it_should() {
        let parts = Parts::new(vec![2..4, 0..1, 9..10], "text/plain", 10).unwrap();
        let whole = parts.of(&Bytes::from_static(b"0123456789"));
        assert_eq!(whole.len() as u64, parts.len());
        let boundary = parts.content_type().split_once("boundary=").unwrap().1.to_owned();
        let part = |range: &str, bytes: &str| {
            format!(
                "--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes {range}/10\r\n\r\n{bytes}\r\n"
            )
        };
        let expected = [part("2-3", "23"), part("0-0", "0"), part("9-9", "9"), format!("--{boundary}--\r\n")];
        assert_eq!(std::str::from_utf8(&whole).unwrap(), expected.concat());
        let other = Parts::new(vec![2..4, 0..1], "text/plain", 10).unwrap();
        assert_ne!(other.boundary, parts.boundary);
    }
}
