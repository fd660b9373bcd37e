//! What people call an image.

use std::collections::BTreeSet;

use wherry_gateway::{NameError, Platform, Reference};

use super::Node;
use super::backend::image_error;
use crate::control::api::{ApiError, ErrorCode};
use crate::images::{ImageName, LocalImage, Wanted};

fn no_name(error: &NameError) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, error.to_string())
        .hint("write it as REGISTRY/REPOSITORY:TAG or @DIGEST, such as debian:12 or quay.io/org/app:1.0")
}

impl Node {
    /// A name without a registry means the default origin, as it does at the gateway, so that one name means one image.
    pub(super) fn parse(&self, reference: &str) -> Result<Reference, ApiError> {
        Reference::parse_at(reference, self.images.default_origin()).map_err(|error| no_name(&error))
    }

    /// A name that can be given to an image.
    pub(super) fn parse_tag(&self, name: &str) -> Result<Reference, ApiError> {
        let reference = self.parse(name)?;
        match reference.target().tag() {
            Some(_) => Ok(reference),
            None => Err(ApiError::new(ErrorCode::BadRequest, format!("{name} is no name for an image"))
                .hint("a digest cannot be given: write REPOSITORY:TAG")),
        }
    }

    /// The same where a digest alone will do, since the image is here.
    pub(super) fn wanted(&self, text: &str) -> Result<Wanted, ApiError> {
        Wanted::parse_at(text, self.images.default_origin()).map_err(|error| no_name(&error))
    }

    /// An image of which the manifests are here.
    pub(super) async fn find(&self, text: &str, platform: Option<&Platform>) -> Result<LocalImage, ApiError> {
        let wanted = self.wanted(text)?;
        let beginning = match wanted.clone() {
            Wanted::Named(ImageName::Reference(reference)) => {
                return self.find_named(&reference, platform).await;
            }
            Wanted::Named(ImageName::Unnamed(digest)) => digest.to_string(),
            Wanted::Digest(beginning) => beginning,
        };
        let mut found = self.images.local_by_digest(&beginning, platform).await.map_err(image_error)?;
        // One of several names was meant.
        if let Wanted::Named(name) = &wanted {
            found.retain(|image| image.name == *name);
        }
        let digests: BTreeSet<_> = found.iter().map(|image| *image.top.digest()).collect();
        if digests.len() > 1 {
            let all: Vec<String> = digests.iter().map(ToString::to_string).collect();
            let message = format!("several images begin with {beginning}: {}", all.join(", "));
            return Err(ApiError::new(ErrorCode::BadRequest, message).hint("write more digits"));
        }
        found.into_iter().next().ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, format!("no image here has the digest {beginning}"))
                .hint("'wherry images' lists what is here")
        })
    }

    /// The same where it must be clear which of an image's names is meant.
    pub(super) async fn find_one(&self, text: &str) -> Result<LocalImage, ApiError> {
        if let Wanted::Digest(beginning) = self.wanted(text)? {
            let found = self.images.local_by_digest(&beginning, None).await.map_err(image_error)?;
            let names: Vec<String> = found.iter().map(|image| image.name.to_string()).collect();
            if names.len() > 1 {
                let message = format!("{beginning} has several names: {}", names.join(", "));
                return Err(ApiError::new(ErrorCode::BadRequest, message).hint("say which, or all of them"));
            }
        }
        self.find(text, None).await
    }

    /// All that bears the name of an image that was found: what has the digest that was asked for may be one image of an
    /// index, and what is done about the name is done to all of them.
    pub(super) async fn all_of(&self, found: LocalImage) -> Result<LocalImage, ApiError> {
        self.find(&found.name.to_string(), None).await
    }

    async fn find_named(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Result<LocalImage, ApiError> {
        let local = self.images.local_image(reference, platform).await.map_err(image_error)?;
        local.ok_or_else(|| match platform {
            Some(platform) => {
                ApiError::new(ErrorCode::NotFound, format!("{reference} for {platform} is not here"))
                    .hint(format!("bring it here with 'wherry pull --platform {platform} {reference}'"))
            }
            None => self.not_here(reference),
        })
    }

    fn not_here(&self, reference: &Reference) -> ApiError {
        let digest = match reference.target().digest() {
            Some(digest) => Some(*digest),
            None => self.images.records().tag(reference).ok().flatten().map(|entry| entry.record.digest),
        };
        if digest.is_some_and(|digest| self.store.is_damaged(&digest)) {
            let message = format!("the manifest of {reference} is damaged and was set aside");
            return ApiError::new(ErrorCode::NotFound, message)
                .hint(format!("'wherry pull {reference}' brings it again"));
        }
        ApiError::new(ErrorCode::NotFound, format!("{reference} is not here"))
            .hint(format!("bring it here with 'wherry pull {reference}'; 'wherry images' lists what is here"))
    }
}
