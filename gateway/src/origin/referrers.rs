//! What an origin has about a manifest, such as signatures.

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Method};
use serde::Deserialize;
use wherry_proto::Digest;

use super::http::{Http, ReadError, Target};
use super::retry::Failure;
use super::{OriginError, Origins};
use crate::Descriptor;
use crate::manifest::{MAX_MANIFEST, media_type};
use crate::name::{Host, Repository, Tag, TagOrDigest};
use crate::server::Referrer;

/// The most that are taken of one list.
const MAX_REFERRERS: usize = 512;

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    artifact_type: Option<String>,
    #[serde(flatten)]
    descriptor: Descriptor,
}

impl Origins {
    /// The manifests that an origin says are about this one, at most 512: of its list, or, where it has no such lists, of the
    /// index that clients keep there under a tag made of the digest. Asked once; mirrors are not asked.
    ///
    /// # Errors
    /// When the origin does not say.
    pub async fn referrers(
        &self,
        host: &Host,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<Referrer>, OriginError> {
        let what = format!("what is about {subject}");
        let target = Target { host, repository, what: &what };
        let listed = match self.http.list(target, &format!("referrers/{subject}")).await {
            Err(Failure::Final(OriginError::NotFound { .. } | OriginError::BadAnswer { .. })) => {
                let Some(tag) = fallback(subject) else { return Ok(Vec::new()) };
                match self.http.list(target, &format!("manifests/{tag}")).await {
                    Err(Failure::Final(OriginError::NotFound { .. })) => Ok(Vec::new()),
                    listed => listed,
                }
            }
            listed => listed,
        };
        listed.map_err(|failure| match failure {
            Failure::Final(error) | Failure::Passing(error, _) => error,
        })
    }
}

/// Under which tag clients keep the list that a registry does not.
fn fallback(subject: &Digest) -> Option<TagOrDigest> {
    let text = subject.to_string().replacen(':', "-", 1);
    text.parse::<Tag>().ok().map(TagOrDigest::Tag)
}

impl Http {
    async fn list(&self, target: Target<'_>, path: &str) -> Result<Vec<Referrer>, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        let response = self.attempt(target, &Method::GET, path, &headers).await?;
        let bytes = self.read_capped(response, MAX_MANIFEST).await.map_err(|error| match error {
            ReadError::TooLong(size) => Failure::Final(
                target.bad(format_args!("its list has {size} bytes, and {MAX_MANIFEST} are taken")),
            ),
            ReadError::Broken(why) => Failure::Passing(target.unreachable(why), None),
        })?;
        let list: List = serde_json::from_slice(&bytes)
            .map_err(|error| target.bad(format_args!("its list cannot be read: {error}")))?;
        let entries = list.manifests.into_iter().take(MAX_REFERRERS);
        Ok(entries
            .map(|entry| Referrer { artifact_type: entry.artifact_type, descriptor: entry.descriptor })
            .collect())
    }
}
