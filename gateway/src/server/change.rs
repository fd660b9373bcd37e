//! Answers to requests that change something, and the list of what is about a manifest.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, ORIGIN, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;
use tokio::time::timeout;
use wherry_proto::Digest;

use super::answer::{Asked, CONTENT_DIGEST, Gateway, Reply, insert_text};
use super::incoming::collect;
use super::push::{Push, Removal, Sent};
use super::route::{Begin, Change, Place};
use super::{Content, Incoming, Refusal, RefusalKind};
use crate::manifest::{MAX_MANIFEST, media_type};
use crate::name::TagOrDigest;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// How long a manifest may take to come: others wait for its place.
const MANIFEST_TIME: Duration = Duration::from_secs(120);

/// The longest list of referrers, in bytes: as long as a manifest may be, which is what clients take it for.
const MAX_REFERRERS: usize = MAX_MANIFEST;

impl<C: Content + Push> Gateway<C> {
    pub(super) async fn change(
        &self,
        place: Place,
        change: Change,
        asked: &Asked<'_>,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        if asked.headers.contains_key(ORIGIN) {
            // Browsers send it with all that changes something: no page is to push from where its reader may.
            let message = "nothing is pushed or removed for a web page: use a registry client";
            return Err(Refusal::new(RefusalKind::Denied, message));
        }
        let ask = || asked.ask(place.clone());
        match change {
            Change::Begin(begin) => self.begin(&place, begin, asked, body).await,
            Change::Append(id) => {
                let sent = asked.sent(id.clone(), body)?;
                let had = self.content.append(ask(), sent).await;
                let had = self.or_where_it_is(&place, &id, asked, had).await?;
                Ok(match had {
                    Ok(len) => asked.upload(&place, StatusCode::ACCEPTED, &id, len),
                    Err(reply) => reply,
                })
            }
            Change::Finish(id, digest) => {
                let sent = asked.sent(id.clone(), body)?;
                let had = self.content.finish(ask(), sent, digest).await;
                Ok(match self.or_where_it_is(&place, &id, asked, had).await? {
                    Ok(()) => asked.stored(&place, "blobs", &digest),
                    Err(reply) => reply,
                })
            }
            Change::Status(id) => {
                let len = self.content.status(ask(), id.clone()).await?;
                Ok(asked.upload(&place, StatusCode::NO_CONTENT, &id, len))
            }
            Change::Cancel(id) => {
                self.content.cancel(ask(), id).await?;
                Ok(Reply::new(StatusCode::NO_CONTENT, HeaderMap::new(), 0))
            }
            Change::PutManifest(target) => self.put_manifest(&place, target, asked, body).await,
            Change::DeleteManifest(target) => self.remove(&place, Removal::Manifest(target), asked).await,
            Change::DeleteBlob(digest) => self.remove(&place, Removal::Blob(digest), asked).await,
        }
    }

    async fn begin(
        &self,
        place: &Place,
        begin: Begin,
        asked: &Asked<'_>,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        if let Some(blob) = begin.mount
            && self
                .content
                .mount(asked.ask(place.clone()), blob, begin.from.map(|from| asked.ask(from)))
                .await?
        {
            return Ok(asked.stored(place, "blobs", &blob));
        }
        let id = self.content.begin(asked.ask(place.clone()), begin.algorithm).await?;
        let Some(digest) = begin.digest else {
            return Ok(asked.upload(place, StatusCode::ACCEPTED, &id, 0));
        };
        let sent = asked.sent(id.clone(), body)?;
        match self.content.finish(asked.ask(place.clone()), sent, digest).await {
            Ok(()) => Ok(asked.stored(place, "blobs", &digest)),
            Err(refusal) => {
                // Its id was told to nobody.
                let _ = self.content.cancel(asked.ask(place.clone()), id).await;
                Err(refusal)
            }
        }
    }

    /// With the refusal of bytes that begin elsewhere comes where the upload is.
    async fn or_where_it_is<T>(
        &self,
        place: &Place,
        id: &str,
        asked: &Asked<'_>,
        had: Result<T, Refusal>,
    ) -> Result<Result<T, Reply>, Refusal> {
        match had {
            Err(refusal) if refusal.kind == RefusalKind::RangeInvalid => {
                let mut reply = Reply::refused(&refusal);
                if let Ok(len) = self.content.status(asked.ask(place.clone()), id.to_owned()).await {
                    reply.headers.extend(asked.upload(place, reply.status, id, len).headers);
                }
                Ok(Err(reply))
            }
            had => had.map(Ok),
        }
    }

    async fn put_manifest(
        &self,
        place: &Place,
        target: TagOrDigest,
        asked: &Asked<'_>,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        self.content.admits(&asked.ask(place.clone())).await?;
        let content_type =
            asked.headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
        if let Some(sent) = content_type.as_deref().map(media_type::essence)
            && !sent.is_empty()
            && !media_type::is_manifest(&sent)
        {
            let sent: String = sent.chars().take(100).collect();
            let message = format!(
                "the manifest was sent with the Content-Type '{sent}', and it has to be one of {}",
                media_type::ACCEPT
            );
            return Err(Refusal::new(RefusalKind::ManifestRefused, message));
        }
        // So that what all of them together take is bounded.
        let _turn = self.manifests.acquire().await;
        let announced = asked.length();
        if announced.is_some_and(|announced| announced > MAX_MANIFEST as u64) {
            return Err(too_long(announced));
        }
        let bytes = timeout(MANIFEST_TIME, collect(body, MAX_MANIFEST)).await;
        let bytes = bytes.unwrap_or_else(|_| Err(too_slow())).map_err(|refusal| match refusal.kind {
            RefusalKind::TooLong => too_long(None),
            _ => refusal,
        })?;
        let content_type = content_type.map(|sent| sent.into_owned());
        let put = self.content.put_manifest(asked.ask(place.clone()), target, content_type, bytes).await?;
        let mut reply = asked.stored(place, "manifests", &put.digest);
        if let Some(subject) = put.subject {
            insert_text(&mut reply.headers, SUBJECT, &subject.to_string());
        }
        Ok(reply)
    }

    async fn remove(&self, place: &Place, what: Removal, asked: &Asked<'_>) -> Result<Reply, Refusal> {
        self.content.remove(asked.ask(place.clone()), what).await?;
        Ok(Reply::new(StatusCode::ACCEPTED, HeaderMap::new(), 0))
    }

    pub(super) async fn referrers(
        &self,
        place: Place,
        subject: Digest,
        artifact_type: Option<String>,
        asked: &Asked<'_>,
    ) -> Result<Reply, Refusal> {
        let mut found = self.content.referrers(asked.ask(place), subject).await?;
        if let Some(wanted) = &artifact_type {
            found.retain(|referrer| referrer.artifact_type.as_ref() == Some(wanted));
        }
        found.sort_by_key(|referrer| referrer.descriptor.digest);
        let mut body = Vec::new();
        // What is beyond is left out: the list is one manifest, and has no pages.
        while body.is_empty() || body.len() > MAX_REFERRERS {
            if !body.is_empty() {
                found.truncate(found.len() / 2);
            }
            let list = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": found });
            body = list.to_string().into_bytes();
        }
        let mut reply = Reply::json(StatusCode::OK, Bytes::from(body));
        reply.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
        if artifact_type.is_some() {
            reply.headers.insert(FILTERS, HeaderValue::from_static("artifactType"));
        }
        Ok(reply)
    }
}

fn too_slow() -> Refusal {
    let message = format!("the manifest has not come within {} s: send it anew", MANIFEST_TIME.as_secs());
    Refusal::new(RefusalKind::SizeInvalid, message)
}

fn too_long(announced: Option<u64>) -> Refusal {
    let announced = announced.map_or_else(|| "more".to_owned(), |announced| format!("{announced} bytes"));
    let message = format!("the manifest has {announced}, and at most {MAX_MANIFEST} bytes are taken");
    Refusal::new(RefusalKind::TooLong, message)
}

impl Asked<'_> {
    /// How long the body is said to be.
    fn length(&self) -> Option<u64> {
        self.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    fn sent(&self, id: String, body: Incoming) -> Result<Sent, Refusal> {
        let Some(value) = self.headers.get(http::header::CONTENT_RANGE) else {
            return Ok(Sent { id, range: None, body });
        };
        let wrong = |message: &str| Refusal::new(RefusalKind::BlobUploadInvalid, message);
        let range = value
            .to_str()
            .ok()
            .and_then(parse_content_range)
            .ok_or_else(|| wrong("the Content-Range is not FIRST-LAST, both counted from 0"))?;
        if self.length().is_some_and(|length| length != range.1) {
            return Err(wrong("Content-Range and Content-Length do not say the same"));
        }
        Ok(Sent { id, range: Some(range), body })
    }

    /// A path under the repository, as the client calls it, so that what it asks next is answered alike.
    fn path(&self, place: &Place, endpoint: &str, last: &str) -> String {
        // The repository may have such a part itself.
        let name = ["/manifests/", "/blobs/"].iter().filter_map(|end| self.path.rfind(end)).max();
        let name = name.map_or("", |end| &self.path[..end]);
        let query = match &place.origin {
            Some(origin) if place.by_namespace => format!("?ns={origin}"),
            _ => String::new(),
        };
        format!("{name}/{endpoint}/{last}{query}")
    }

    fn upload(&self, place: &Place, status: StatusCode, id: &str, len: u64) -> Reply {
        let mut headers = HeaderMap::with_capacity(6);
        insert_text(&mut headers, LOCATION, &self.path(place, "blobs/uploads", id));
        // An upload without a byte has no last one; other registries say the same of it.
        insert_text(&mut headers, RANGE, &format!("0-{}", len.saturating_sub(1)));
        insert_text(&mut headers, UPLOAD_ID, id);
        Reply::new(status, headers, 0)
    }

    fn stored(&self, place: &Place, endpoint: &str, digest: &Digest) -> Reply {
        let mut headers = HeaderMap::with_capacity(6);
        insert_text(&mut headers, LOCATION, &self.path(place, endpoint, &digest.to_string()));
        insert_text(&mut headers, CONTENT_DIGEST, &digest.to_string());
        Reply::new(StatusCode::CREATED, headers, 0)
    }
}

/// Where a piece of an upload begins, and how long it is: the specification writes `FIRST-LAST`, and some clients the form
/// that HTTP has for answers, `bytes FIRST-LAST/LENGTH`.
pub(crate) fn parse_content_range(text: &str) -> Option<(u64, u64)> {
    let text = text.trim();
    let text = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches(['=', ' ']));
    let text = text.split('/').next().unwrap_or(text);
    let (first, last) = text.split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let (first, last) = (number(first)?, number(last)?);
    Some((first, last.checked_sub(first)?.checked_add(1)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_header_is_read_as_a_range_that_is_one_or_as_none(text in "(bytes[= ])?[0-9/-]{0,24}|\\PC{0,24}") {
            crate::hostile::content_ranges(text.as_bytes());
        }
    }

    #[test]
    fn a_content_range_is_read_as_the_specification_and_as_http_write_it() {
        for (text, range) in [
            ("0-0", Some((0, 1))),
            ("10-19", Some((10, 10))),
            ("bytes 10-19/100", Some((10, 10))),
            ("bytes=10-19", Some((10, 10))),
            ("9-3", None),
            ("-3", None),
            ("3-", None),
            ("+1-3", None),
            ("", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(parse_content_range(text), range, "{text:?}");
        }
    }
}
