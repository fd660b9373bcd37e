//! Blobs from origins.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures::stream::{self, BoxStream, StreamExt};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Response;
use wherry_proto::Digest;

use super::http::{Http, Target, causes};
use super::mirrors::{BLOB_PATIENCE, Known};
use super::pace::Pace;
use super::retry::{Failure, Retry};
use super::{OriginError, Origins};
use crate::name::{Host, Repository};

/// The bytes of a blob, from where they were asked for to the end, or to that of the part. They are not verified.
///
/// A stream of pieces of a size that the network decides, which ends after the last byte, or with one
/// [`OriginError`] and then ends. [`OriginError::Interrupted`] says where to go on.
pub struct BlobStream {
    from: u64,
    total: Option<u64>,
    pieces: BoxStream<'static, Result<Bytes, OriginError>>,
}

impl BlobStream {
    /// Where in the blob the first byte of the stream belongs: what was asked for.
    pub const fn from(&self) -> u64 {
        self.from
    }

    /// The length of the whole blob in bytes, if the origin tells.
    pub const fn total(&self) -> Option<u64> {
        self.total
    }
}

impl stream::Stream for BlobStream {
    type Item = Result<Bytes, OriginError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.poll_next_unpin(cx)
    }
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream")
            .field("from", &self.from)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Origins {
    /// The length of a blob in bytes, without the blob where the registry tells it so, as all that can be pushed to do;
    /// `None` if it does not tell at all.
    pub async fn blob_length(
        &self,
        host: &Host,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, OriginError> {
        let what = format!("blob {digest} of {repository}");
        let target = Target { host, repository, what: &what };
        for (known, below) in self.http.mirrors_of(target, Some(digest)) {
            let asked = Box::pin(self.http.told_length(known.target(&below, &what), digest));
            if let Some(Some(length)) = self.http.heard(&known, &what, BLOB_PATIENCE, asked).await {
                return Ok(Some(length));
            }
        }
        let mut retry = Retry::new(&self.http.settings);
        loop {
            match Box::pin(self.http.told_length(target, digest)).await {
                Ok(Some(length)) => return Ok(Some(length)),
                Ok(None) => break,
                Err(failure) => retry.after(failure).await?,
            }
        }
        Ok(self.blob(host, repository, digest, 0).await?.total())
    }

    /// Fetches a blob from byte `from` on.
    ///
    /// Attempts are repeated until the origin begins to answer; after that an interruption is the stream's
    /// last item. If `from` is the blob's very length, the stream is empty.
    pub async fn blob(
        &self,
        host: &Host,
        repository: &Repository,
        digest: &Digest,
        from: u64,
    ) -> Result<BlobStream, OriginError> {
        self.open(host, repository, digest, from, None).await
    }

    /// The same for a part of it, which is not empty: no byte behind its end is asked for, so that none crosses the link in
    /// vain.
    pub async fn blob_part(
        &self,
        host: &Host,
        repository: &Repository,
        digest: &Digest,
        part: Range<u64>,
    ) -> Result<BlobStream, OriginError> {
        self.open(host, repository, digest, part.start, Some(part.end)).await
    }

    async fn open(
        &self,
        host: &Host,
        repository: &Repository,
        digest: &Digest,
        from: u64,
        until: Option<u64>,
    ) -> Result<BlobStream, OriginError> {
        let what = format!("blob {digest} of {repository}");
        let target = Target { host, repository, what: &what };
        let mut headers = HeaderMap::new();
        if from > 0 || until.is_some() {
            let last = until.map_or_else(String::new, |until| until.saturating_sub(1).to_string());
            let range = HeaderValue::from_str(&format!("bytes={from}-{last}"));
            headers.insert(RANGE, range.map_err(|error| target.bad(error))?);
        }
        let mut begun = None;
        for (known, below) in self.http.mirrors_of(target, Some(digest)) {
            let asked = Box::pin(self.http.begin(known.target(&below, &what), digest, from, &headers));
            if let Some((response, extent)) = self.http.heard(&known, &what, BLOB_PATIENCE, asked).await {
                begun = Some((response, extent, Some(known)));
                break;
            }
        }
        let mut retry = Retry::new(&self.http.settings);
        let (response, extent, mirror) = loop {
            if let Some(begun) = begun {
                break begun;
            }
            match Box::pin(self.http.begin(target, digest, from, &headers)).await {
                Ok((response, extent)) => begun = Some((response, extent, None)),
                Err(failure) => retry.after(failure).await?,
            }
        };
        let Extent { skip, end, total } = extent;
        if skip > 0 {
            tracing::warn!(%host, %digest, skip, "the origin ignores ranges: the start of the blob is fetched again");
        }
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(BlobStream { from, total, pieces: stream::empty().boxed() });
        }
        let state = Reading {
            response,
            skip,
            at: from,
            until,
            end,
            total,
            stall: self.http.settings.stall_timeout,
            host: host.to_string(),
            what,
            ended: false,
            pace: self.http.pace.of(host).filter(|_| mirror.is_none()),
            mirror,
        };
        let pieces =
            stream::unfold(state, |mut state| async move { state.next().await.map(|item| (item, state)) });
        Ok(BlobStream { from, total, pieces: pieces.boxed() })
    }
}

impl Http {
    /// `None` if the registry does not tell by itself: some know no HEAD here, or send it on to a server that was told of a
    /// GET.
    async fn told_length(&self, target: Target<'_>, digest: &Digest) -> Result<Option<u64>, Failure> {
        match self.attempt(target, &Method::HEAD, &format!("blobs/{digest}"), &HeaderMap::new()).await {
            Ok(response) => {
                let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
                Ok(length.and_then(|length| length.parse().ok()))
            }
            Err(Failure::Final(OriginError::BadAnswer { .. } | OriginError::Unauthorized { .. })) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// An answer that begins, and what it holds.
    async fn begin(
        &self,
        target: Target<'_>,
        digest: &Digest,
        from: u64,
        headers: &HeaderMap,
    ) -> Result<(Response, Extent), Failure> {
        let response = self.attempt(target, &Method::GET, &format!("blobs/{digest}"), headers).await?;
        let coded = response.headers().get(CONTENT_ENCODING);
        if coded.is_some_and(|coding| coding != "identity") {
            return Err(target.bad("it is sent in an encoding that was not asked for").into());
        }
        let extent = Extent::of(&response, from).map_err(|why| target.bad(why))?;
        Ok((response, extent))
    }
}

/// What part of a blob an answer holds.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    /// So many bytes of the answer come before what was asked for.
    skip: u64,
    /// Where in the blob the answer ends, if it tells.
    end: Option<u64>,
    /// The blob's length, if the answer tells.
    total: Option<u64>,
}

impl Extent {
    fn of(response: &Response, from: u64) -> Result<Self, String> {
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let length = match text(CONTENT_LENGTH.as_str()) {
            Some(text) => Some(text.parse().map_err(|_| format!("its Content-Length is '{text}'"))?),
            None => None,
        };
        Self::read(response.status(), text(CONTENT_RANGE.as_str()), length, from)
    }

    fn read(status: StatusCode, range: Option<&str>, length: Option<u64>, from: u64) -> Result<Self, String> {
        match status {
            StatusCode::OK => {
                if length.is_some_and(|length| length < from) {
                    return Err(format!(
                        "it has only {} bytes, and byte {from} was asked for",
                        length.unwrap_or(0)
                    ));
                }
                Ok(Self { skip: from, end: length, total: length })
            }
            StatusCode::PARTIAL_CONTENT => {
                let Some(range) = range else {
                    return Err("it answers with a part and does not say which".to_owned());
                };
                let wrong =
                    || format!("it answers with the part '{range}', and byte {from} onwards was asked for");
                let (part, total) =
                    range.strip_prefix("bytes ").and_then(|r| r.split_once('/')).ok_or_else(wrong)?;
                let (first, last) = part.split_once('-').ok_or_else(wrong)?;
                let first: u64 = first.trim().parse().map_err(|_| wrong())?;
                let last: u64 = last.trim().parse().map_err(|_| wrong())?;
                let end = last.checked_add(1).ok_or_else(wrong)?;
                let total: Option<u64> = match total.trim() {
                    "*" => None,
                    total => Some(total.parse().map_err(|_| wrong())?),
                };
                let fits = first == from
                    && first < end
                    && total.is_none_or(|total| end <= total)
                    && length.is_none_or(|length| length == end - first);
                if fits { Ok(Self { skip: 0, end: Some(end), total }) } else { Err(wrong()) }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let total =
                    range.and_then(|r| r.strip_prefix("bytes */")).and_then(|t| t.trim().parse().ok());
                if from > 0 && total == Some(from) {
                    return Ok(Self { skip: 0, end: total, total });
                }
                Err(format!(
                    "it has no byte {from} ({})",
                    range.unwrap_or("and does not say how many it has")
                ))
            }
            status => Err(format!("its status is {status}")),
        }
    }
}

struct Reading {
    response: Response,
    skip: u64,
    /// Where in the blob the next byte that is passed on belongs.
    at: u64,
    /// Where what was asked for ends, if not with the blob.
    until: Option<u64>,
    end: Option<u64>,
    total: Option<u64>,
    stall: std::time::Duration,
    host: String,
    what: String,
    ended: bool,
    pace: Option<Arc<Pace>>,
    /// From where it comes, if that is not the origin itself.
    mirror: Option<Arc<Known>>,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<Bytes, OriginError>> {
        while !self.ended {
            if self.until.is_some_and(|until| self.at >= until) {
                return None;
            }
            let why = match tokio::time::timeout(self.stall, self.response.chunk()).await {
                Ok(Ok(Some(piece))) => match self.take(piece) {
                    Ok(piece) if piece.is_empty() => continue,
                    Ok(piece) => {
                        if let Some(pace) = &self.pace {
                            pace.took(piece.len()).await;
                        }
                        return Some(Ok(piece));
                    }
                    Err(error) => {
                        self.ended = true;
                        if let Some(mirror) = &self.mirror {
                            mirror.leave_alone(&error);
                        }
                        return Some(Err(error));
                    }
                },
                Ok(Ok(None)) => {
                    self.ended = true;
                    let expected = self.until.or(self.total).or(self.end);
                    if self.skip == 0 && expected.is_none_or(|expected| self.at == expected) {
                        return None;
                    }
                    "the answer ended".to_owned()
                }
                Ok(Err(error)) => causes(&error.without_url()),
                Err(_) => format!("nothing came for {} s", self.stall.as_secs_f32()),
            };
            self.ended = true;
            if let Some(mirror) = &self.mirror {
                mirror.leave_alone(&why);
            }
            return Some(Err(OriginError::Interrupted {
                host: std::mem::take(&mut self.host),
                what: std::mem::take(&mut self.what),
                received: self.at,
                total: self.total,
                why,
            }));
        }
        None
    }

    fn take(&mut self, mut piece: Bytes) -> Result<Bytes, OriginError> {
        let skipped = self.skip.min(piece.len() as u64);
        self.skip -= skipped;
        piece.advance(skipped as usize);
        if let Some(until) = self.until {
            // An origin that ignores ranges, or their ends, goes on.
            piece.truncate(usize::try_from(until - self.at).unwrap_or(usize::MAX));
        }
        let at = self.at + piece.len() as u64;
        if self.end.is_some_and(|end| at > end) {
            let (host, what) = (std::mem::take(&mut self.host), std::mem::take(&mut self.what));
            return Err(OriginError::BadAnswer {
                host,
                what,
                why: "it sends more than it had announced".to_owned(),
            });
        }
        self.at = at;
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PART: StatusCode = StatusCode::PARTIAL_CONTENT;
    const PAST: StatusCode = StatusCode::RANGE_NOT_SATISFIABLE;

    #[test]
    fn an_answer_is_the_part_that_was_asked_for_or_an_error() {
        let extent = |skip, end, total| Ok(Extent { skip, end, total });
        for (status, range, length, from, expected) in [
            (StatusCode::OK, None, Some(10), 0, extent(0, Some(10), Some(10))),
            (StatusCode::OK, None, None, 0, extent(0, None, None)),
            (StatusCode::OK, None, Some(10), 4, extent(4, Some(10), Some(10))),
            (PART, Some("bytes 4-9/10"), Some(6), 4, extent(0, Some(10), Some(10))),
            (PART, Some("bytes 4-9/*"), None, 4, extent(0, Some(10), None)),
            (PART, Some("bytes 4-7/10"), None, 4, extent(0, Some(8), Some(10))),
            (PAST, Some("bytes */10"), None, 10, extent(0, Some(10), Some(10))),
        ] {
            assert_eq!(Extent::read(status, range, length, from), expected, "{status} {range:?} {from}");
        }
        for (status, range, length, from) in [
            (StatusCode::OK, None, Some(3), 4),
            (PART, None, Some(6), 4),
            (PART, Some("bytes 0-9/10"), None, 4),
            (PART, Some("bytes 5-9/10"), None, 4),
            (PART, Some("bytes 4-9/10"), Some(7), 4),
            (PART, Some("bytes 4-9/9"), None, 4),
            (PART, Some("bytes 4-3/10"), None, 4),
            (PART, Some("items 4-9/10"), None, 4),
            (PART, Some("bytes 4-18446744073709551615/*"), None, 4),
            (PAST, Some("bytes */9"), None, 10),
            (PAST, None, None, 10),
            (PAST, Some("bytes */0"), None, 0),
            (StatusCode::NO_CONTENT, None, None, 0),
        ] {
            assert!(Extent::read(status, range, length, from).is_err(), "{status} {range:?} {from}");
        }
    }

    proptest! {
        #[test]
        fn no_content_range_panics(range in "(bytes )?[0-9*/ -]{0,30}|\\PC{0,30}", from in any::<u64>(), length in proptest::option::of(any::<u64>())) {
            for status in [StatusCode::OK, PART, PAST] {
                if let Ok(extent) = Extent::read(status, Some(&range), length, from) {
                    prop_assert!(extent.end.is_none_or(|end| end >= from));
                }
            }
        }
    }
}
