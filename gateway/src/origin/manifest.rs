//! Manifests from origins.

use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Response;
use wherry_proto::Digest;

use super::http::{Http, ReadError, Target};
use super::mirrors::MANIFEST_PATIENCE;
use super::retry::{Failure, Retry};
use super::{OriginError, Origins};
use crate::manifest::{MAX_MANIFEST, Manifest, ManifestError, media_type};
use crate::name::{Host, Repository, TagOrDigest};

/// The header of every registry that says which manifest it has answered with.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// What an origin says about a manifest without sending it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// Which manifest it is.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it is.
    pub media_type: String,
    /// A mirror says so, which may be behind the origin.
    pub mirrored: bool,
}

impl Origins {
    /// Fetches a manifest. One that is asked for by digest has it; for one that is asked for by tag the
    /// origin's word is taken, and its own digest of what it sent has to agree.
    pub async fn manifest(
        &self,
        host: &Host,
        repository: &Repository,
        reference: &TagOrDigest,
    ) -> Result<Manifest, OriginError> {
        let what = describe(repository, reference);
        let target = Target { host, repository, what: &what };
        for (known, below) in self.http.mirrors_of(target, None) {
            let asked = Box::pin(self.http.manifest(known.target(&below, &what), reference));
            if let Some(manifest) = self.http.heard(&known, &what, MANIFEST_PATIENCE, asked).await {
                return Ok(manifest);
            }
        }
        let mut retry = Retry::new(&self.http.settings);
        loop {
            match Box::pin(self.http.manifest(target, reference)).await {
                Ok(manifest) => return Ok(manifest),
                Err(failure) => retry.after(failure).await?,
            }
        }
    }

    /// Asks which manifest a tag or digest names. Registries that limit manifests do not count this.
    ///
    /// A registry that does not tell digest or length without the manifest is asked for the manifest.
    pub async fn head(
        &self,
        host: &Host,
        repository: &Repository,
        reference: &TagOrDigest,
    ) -> Result<ManifestHead, OriginError> {
        let what = describe(repository, reference);
        let target = Target { host, repository, what: &what };
        for (known, below) in self.http.mirrors_of(target, None) {
            let asked = Box::pin(self.http.head_or_get(known.target(&below, &what), reference));
            if let Some(head) = self.http.heard(&known, &what, MANIFEST_PATIENCE, asked).await {
                return Ok(ManifestHead { mirrored: true, ..head });
            }
        }
        self.head_of_origin(host, repository, reference).await
    }

    /// The same of the origin itself, whatever mirrors it has.
    pub async fn head_of_origin(
        &self,
        host: &Host,
        repository: &Repository,
        reference: &TagOrDigest,
    ) -> Result<ManifestHead, OriginError> {
        let what = describe(repository, reference);
        let target = Target { host, repository, what: &what };
        let mut retry = Retry::new(&self.http.settings);
        loop {
            match Box::pin(self.http.head_or_get(target, reference)).await {
                Ok(head) => return Ok(head),
                Err(failure) => retry.after(failure).await?,
            }
        }
    }
}

/// What errors call a manifest of a repository: `manifest library/alpine:latest`.
pub fn describe(repository: &Repository, reference: &TagOrDigest) -> String {
    match reference {
        TagOrDigest::Tag(tag) => format!("manifest {repository}:{tag}"),
        TagOrDigest::Digest(digest) => format!("manifest {repository}@{digest}"),
    }
}

impl Http {
    async fn ask(
        &self,
        target: Target<'_>,
        method: &Method,
        reference: &TagOrDigest,
    ) -> Result<Response, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(media_type::ACCEPT));
        let response = self.attempt(target, method, &format!("manifests/{reference}"), &headers).await?;
        if response.status() != StatusCode::OK {
            return Err(target.bad(format_args!("its status is {}", response.status())).into());
        }
        let is_configured = self.settings.hosts.iter().any(|(host, _)| host == target.host);
        self.remaining.note(target.host, is_configured, response.headers());
        Ok(response)
    }

    async fn head_or_get(
        &self,
        target: Target<'_>,
        reference: &TagOrDigest,
    ) -> Result<ManifestHead, Failure> {
        if let Some(head) = self.head(target, reference).await? {
            return Ok(head);
        }
        let manifest = self.manifest(target, reference).await?;
        let (digest, size) = (*manifest.digest(), manifest.size());
        Ok(ManifestHead { digest, size, media_type: manifest.media_type().to_owned(), mirrored: false })
    }

    async fn manifest(&self, target: Target<'_>, reference: &TagOrDigest) -> Result<Manifest, Failure> {
        let response = self.ask(target, &Method::GET, reference).await?;
        let told = told_digest(target, &response)?;
        let content_type = text_header(&response, CONTENT_TYPE.as_str());
        let unacceptable = |source| {
            let (host, what) = (target.host.to_string(), target.what.to_owned());
            Failure::Final(OriginError::Manifest { host, what, source })
        };
        let raw = self.read_capped(response, MAX_MANIFEST).await.map_err(|error| match error {
            ReadError::TooLong(size) => unacceptable(ManifestError::TooLong { size }),
            ReadError::Broken(why) => Failure::Passing(target.unreachable(why), None),
        })?;
        let parsed = match reference.digest().or(told.as_ref()) {
            Some(expected) => Manifest::parse_as(raw, content_type.as_deref(), expected),
            None => Manifest::parse(raw, content_type.as_deref()),
        };
        parsed.map_err(unacceptable)
    }

    /// `None` if the registry does not say enough.
    async fn head(
        &self,
        target: Target<'_>,
        reference: &TagOrDigest,
    ) -> Result<Option<ManifestHead>, Failure> {
        let response = match self.ask(target, &Method::HEAD, reference).await {
            Ok(response) => response,
            // Some registries know no HEAD here.
            Err(Failure::Final(OriginError::BadAnswer { .. })) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let told = told_digest(target, &response)?;
        let size = text_header(&response, CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        let media_type = text_header(&response, CONTENT_TYPE.as_str());
        if let (Some(told), Some(asked)) = (&told, reference.digest())
            && told != asked
        {
            return Err(target.bad(format_args!("it says that the manifest is {told}")).into());
        }
        let (Some(digest), Some(size), Some(media_type)) = (told, size, media_type) else { return Ok(None) };
        let media_type = media_type::essence(&media_type);
        if size > MAX_MANIFEST as u64 {
            let (host, what) = (target.host.to_string(), target.what.to_owned());
            let source = ManifestError::TooLong { size };
            return Err(OriginError::Manifest { host, what, source }.into());
        }
        let carried = media_type::is_index(&media_type) || media_type::is_image(&media_type);
        Ok(carried.then_some(ManifestHead { digest, size, media_type, mirrored: false }))
    }
}

fn text_header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// The digest that a registry says its manifest has.
fn told_digest(target: Target<'_>, response: &Response) -> Result<Option<Digest>, OriginError> {
    let Some(text) = text_header(response, CONTENT_DIGEST) else { return Ok(None) };
    text.parse().map(Some).map_err(|error| target.bad(error))
}
