//! What must hold for any text at all that a client or an origin sends: the bodies that fuzz targets and property tests
//! share.
//!
//! Each panics where a promise is broken.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method, Uri};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wherry_proto::Digest;

use crate::manifest::{MAX_BLOB, MAX_INDEX_ENTRIES, MAX_MANIFEST, media_type};
use crate::origin::{Credential, parse_challenge};
use crate::server::{Change, MAX_RANGES, Route, Span, credential, parse_content_range, parse_range};
use crate::{Aliases, Host, Manifest, ManifestContent, Reference, Repository, Tag, TagOrDigest};

/// The longest that an error which tells of hostile text may be, in bytes.
const MAX_ERROR: usize = 1024;

/// What is taken as a name reads back as itself, as text and as JSON, and can be put into a path, a URL or a log line.
fn name<T>(text: &str)
where
    T: FromStr<Err: Display> + Display + Debug + PartialEq + Serialize + DeserializeOwned,
{
    match text.parse::<T>() {
        Ok(name) => {
            let written = name.to_string();
            assert_eq!(written.parse::<T>().ok().as_ref(), Some(&name), "{text:?}");
            assert!(written.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
            assert!(written.split('/').all(|part| !matches!(part, "" | "." | "..")), "{text:?}");
            assert!(!written.contains(['\\', '?', '#', '%']), "{text:?}");
            let json = serde_json::to_string(&name).unwrap_or_default();
            assert_eq!(serde_json::from_str::<T>(&json).ok().as_ref(), Some(&name), "{text:?}");
        }
        Err(error) => assert!(error.to_string().len() <= MAX_ERROR, "{text:?}"),
    }
}

/// Text as the parts of a name.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    name::<Host>(text);
    name::<Repository>(text);
    name::<Tag>(text);
    name::<TagOrDigest>(text);
    if let Ok(host) = text.parse::<Host>() {
        let whole = match host.port() {
            Some(port) => format!("{}:{port}", host.name()),
            None => host.name().to_owned(),
        };
        assert_eq!(whole, host.as_str());
    }
}

/// Text as a reference.
pub fn references(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        name::<Reference>(text);
    }
}

/// Text as a `Range` header, behind the content's length: a part is never empty and always inside, and several are not more than
/// all.
pub fn ranges(bytes: &[u8]) {
    let Some((size, header)) = bytes.split_first_chunk::<8>() else { return };
    let (size, Ok(header)) = (u64::from_le_bytes(*size), std::str::from_utf8(header)) else { return };
    let parts = match parse_range(header, size) {
        Span::Part(part) => vec![part],
        Span::Parts(parts) => parts,
        Span::Whole | Span::Unsatisfiable | Span::TooMany => return,
    };
    assert!(parts.len() <= MAX_RANGES, "{header:?} of {size}");
    for part in &parts {
        assert!(part.start < part.end && part.end <= size, "{header:?} of {size}: {part:?}");
        // What is asked for by its borders alone is what is given.
        let again = parse_range(&format!("bytes={}-{}", part.start, part.end - 1), size);
        assert_eq!(again, Span::Part(part.clone()), "{header:?} of {size}");
    }
    let all = parts.iter().map(|part| u128::from(part.end - part.start)).sum::<u128>();
    assert!(all <= u128::from(size), "{header:?} of {size}");
}

/// Text as a `WWW-Authenticate` header: few challenges, whose schemes can be compared.
pub fn challenges(bytes: &[u8]) {
    let Ok(header) = std::str::from_utf8(bytes) else { return };
    let found = parse_challenge(header);
    assert!(found.len() <= 32, "{header:?}");
    for challenge in found {
        assert!(
            !challenge.scheme.is_empty() && !challenge.scheme.bytes().any(|byte| byte.is_ascii_uppercase())
        );
        let realm = challenge.param("realm");
        assert_eq!(realm, challenge.param("REALM"));
        assert!(realm.is_none_or(|realm| realm.len() <= header.len()), "{header:?}");
    }
}

/// Text as the target of a request.
pub fn targets(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from(bytes) else { return };
    for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        match Route::parse(&method, &uri, &Aliases::default()) {
            Ok(
                Route::Manifest(place, _)
                | Route::Blob(place, _)
                | Route::Tags(place, _)
                | Route::Referrers(place, _, _),
            ) => {
                name::<Repository>(place.repository.as_str());
                assert!(method == Method::GET, "{uri}");
            }
            Ok(Route::Change(place, change)) => {
                name::<Repository>(place.repository.as_str());
                match change {
                    Change::Append(id) | Change::Finish(id, _) | Change::Status(id) | Change::Cancel(id) => {
                        assert!(
                            id.bytes().all(|byte| byte.is_ascii_alphanumeric()) && id.len() <= 64,
                            "{uri}"
                        );
                    }
                    Change::Begin(begin) => {
                        if let Some(from) = begin.from {
                            name::<Repository>(from.repository.as_str());
                        }
                    }
                    Change::PutManifest(_) | Change::DeleteManifest(_) | Change::DeleteBlob(_) => {
                        assert!(method != Method::GET, "{uri}");
                    }
                }
            }
            Ok(Route::Base) => assert!(uri.path().starts_with("/v2"), "{uri}"),
            Err(refusal) => assert!(refusal.message.len() <= MAX_ERROR, "{uri}"),
        }
    }
}

/// Bytes as the `Authorization` header of a client of the gateway: a user has no ':' in its name, and an error says little.
pub fn credentials(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    match credential(&headers) {
        Ok(Some(Credential::Password { username, .. })) => assert!(!username.contains(':'), "{username:?}"),
        Ok(Some(Credential::IdentityToken(token))) => assert!(!token.is_empty()),
        Ok(None) => {}
        Err(refusal) => assert!(refusal.message.len() <= MAX_ERROR),
    }
}

/// Text as the range of a piece of an upload: what is read is not empty, and ends where a number can say.
pub fn content_ranges(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some((first, len)) = parse_content_range(text) {
        assert!(len > 0 && first.checked_add(len - 1).is_some(), "{text:?}");
    }
}

/// Bytes as a manifest: what is accepted says one thing, whoever reads it again, and nothing beyond the bounds.
pub fn manifests(bytes: &[u8]) {
    let raw = Bytes::copy_from_slice(bytes);
    for content_type in [None, Some(media_type::OCI_INDEX), Some(media_type::DOCKER_MANIFEST)] {
        let manifest = match Manifest::parse(raw.clone(), content_type) {
            Ok(manifest) => manifest,
            Err(error) => {
                assert!(error.to_string().len() <= 2 * MAX_ERROR, "{error}");
                continue;
            }
        };
        assert!(manifest.raw() == &raw && raw.len() <= MAX_MANIFEST);
        assert_eq!(manifest.digest(), &Digest::sha256(bytes));
        let again = Manifest::parse_as(raw.clone(), Some(manifest.media_type()), manifest.digest());
        assert_eq!(again.as_ref(), Ok(&manifest));
        match manifest.content() {
            ManifestContent::Index(index) => {
                assert!(index.manifests.len() <= MAX_INDEX_ENTRIES);
                assert!(index.manifests.iter().all(|entry| entry.size <= MAX_BLOB));
            }
            ManifestContent::Image(image) => {
                assert!(image.blobs().all(|blob| blob.size <= MAX_BLOB));
                let mut digests: Vec<_> = image.blobs().map(|blob| blob.digest).collect();
                let count = digests.len();
                digests.sort_unstable();
                digests.dedup();
                assert_eq!(digests.len(), count);
            }
        }
    }
}
