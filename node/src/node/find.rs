//! What people call an image.

use wherry_gateway::{Platform, Reference};

use super::Node;
use super::backend::image_error;
use crate::control::api::{ApiError, ErrorCode};
use crate::images::LocalImage;

impl Node {
    /// A name without a registry means the default origin, as it does at the gateway, so that one name means one image.
    pub(super) fn parse(&self, reference: &str) -> Result<Reference, ApiError> {
        Reference::parse_at(reference, self.images.default_origin()).map_err(|error| {
            ApiError::new(ErrorCode::BadRequest, error.to_string()).hint(
                "write it as REGISTRY/REPOSITORY:TAG or @DIGEST, such as debian:12 or quay.io/org/app:1.0",
            )
        })
    }

    /// An image of which the manifests are here.
    pub(super) async fn find(&self, text: &str, platform: Option<&Platform>) -> Result<LocalImage, ApiError> {
        let reference = self.parse(text)?;
        let local = self.images.local_image(&reference, platform).await.map_err(image_error)?;
        local.ok_or_else(|| match platform {
            Some(platform) => {
                ApiError::new(ErrorCode::NotFound, format!("{reference} for {platform} is not here"))
                    .hint(format!("bring it here with 'wherry pull --platform {platform} {reference}'"))
            }
            None => self.not_here(&reference),
        })
    }

    fn not_here(&self, reference: &Reference) -> ApiError {
        let digest = match reference.target().digest() {
            Some(digest) => Some(*digest),
            None => self.images.records().tag(reference).ok().flatten().map(|entry| entry.record.digest),
        };
        if digest.is_some_and(|digest| self.store.is_set_aside(&digest)) {
            let message = format!("the manifest of {reference} is damaged and was set aside");
            return ApiError::new(ErrorCode::NotFound, message)
                .hint(format!("'wherry pull {reference}' brings it again"));
        }
        ApiError::new(ErrorCode::NotFound, format!("{reference} is not here"))
            .hint(format!("bring it here with 'wherry pull {reference}'; 'wherry images' lists what is here"))
    }
}
