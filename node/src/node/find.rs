//! What people call an image.

use std::collections::{BTreeMap, BTreeSet};

use wherry_gateway::{NameError, Platform, Reference, TagOrDigest};
use wherry_proto::Digest;

use super::Node;
use super::backend::image_error;
use crate::control::api::{ApiError, ErrorCode};
use crate::images::{ImageName, KnownImage, LocalImage, Wanted};

fn no_name(error: &NameError) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, error.to_string())
        .hint("write it as REGISTRY/REPOSITORY:TAG or @DIGEST, such as debian:12 or quay.io/org/app:1.0")
}

fn unknown(digest: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("no image here has the digest {digest}"))
        .hint("'wherry images' lists what is here; a registry has it by REGISTRY/REPOSITORY@DIGEST")
}

/// What was found by the beginning of a digest, if all of it has the same.
fn only(found: Vec<KnownImage>, beginning: &str) -> Result<Vec<KnownImage>, ApiError> {
    let mut candidates: BTreeMap<Digest, String> = BTreeMap::new();
    for image in &found {
        candidates.entry(image.digest()).or_insert_with(|| image.name.to_string());
    }
    match candidates.len() {
        0 => Err(unknown(beginning)),
        1 => Ok(found),
        _ => {
            let show = |(digest, name): (Digest, String)| match name.ends_with(&digest.to_string()) {
                true => name,
                false => format!("{digest} ({name})"),
            };
            let all: Vec<String> = candidates.into_iter().map(show).collect();
            let message = format!("several images begin with {beginning}: {}", all.join(", "));
            Err(ApiError::new(ErrorCode::BadRequest, message).hint("write more digits"))
        }
    }
}

impl Node {
    /// A name without a registry means the default origin, as it does at the gateway, so that one name means one image.
    pub(super) fn parse(&self, reference: &str) -> Result<Reference, ApiError> {
        Reference::parse_with(reference, self.images.names()).map_err(|error| no_name(&error))
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

    /// The same where a digest alone will do, if the image is here: what can be both is a name if that is known here, else
    /// a digest if one here begins so.
    pub(super) async fn wanted(&self, text: &str) -> Result<Wanted, ApiError> {
        let wanted = Wanted::parse_with(text, self.images.names()).map_err(|error| no_name(&error))?;
        let Wanted::Either(name, digits) = wanted else { return Ok(wanted) };
        let is_known = self.pulls.has(&name)
            || self.images.records().tag(&name).map_err(|error| image_error(error.into()))?.is_some();
        if !is_known {
            let found = self.images.known_by_digest(&digits).await.map_err(image_error)?;
            if !found.is_empty() {
                return Ok(Wanted::Digest(digits));
            }
        }
        Ok(Wanted::Named(name.into()))
    }

    /// An image of which the manifests are here, or were before they were damaged.
    pub(super) async fn find_known(&self, text: &str) -> Result<KnownImage, ApiError> {
        match self.wanted(text).await? {
            Wanted::Named(name @ ImageName::Reference(_)) => self.find_named(&name).await,
            Wanted::Either(reference, _) => self.find_named(&reference.into()).await,
            Wanted::Named(name @ ImageName::Unnamed(digest)) => {
                let mut found = self.find_all(&digest.to_string()).await?;
                // One of several names was meant.
                found.retain(|image| image.name == name);
                found.pop().ok_or_else(|| unknown(&digest.to_string()))
            }
            Wanted::Digest(beginning) => {
                let found = self.find_all(&beginning).await?;
                found.into_iter().next().ok_or_else(|| unknown(&beginning))
            }
        }
    }

    /// An image of which the manifests are here.
    pub(super) async fn find(&self, text: &str, platform: Option<&Platform>) -> Result<LocalImage, ApiError> {
        self.local_of(&self.find_known(text).await?, platform).await
    }

    /// The one image that is known here and whose digest begins like this, in one name after the other.
    async fn find_all(&self, beginning: &str) -> Result<Vec<KnownImage>, ApiError> {
        only(self.images.known_by_digest(beginning).await.map_err(image_error)?, beginning)
    }

    /// The references that lead to an image, which need not be here if it is named: several where a digest is given, and
    /// none to an image that came without a name.
    pub(super) async fn references(&self, text: &str) -> Result<Vec<Reference>, ApiError> {
        let found = match self.wanted(text).await? {
            Wanted::Named(ImageName::Reference(reference)) | Wanted::Either(reference, _) => {
                return Ok(vec![reference]);
            }
            Wanted::Named(ImageName::Unnamed(digest)) => self.find_all(&digest.to_string()).await?,
            Wanted::Digest(beginning) => self.find_all(&beginning).await?,
        };
        let mut references: Vec<Reference> = Vec::new();
        for image in found {
            let digest = image.digest();
            let ImageName::Reference(reference) = image.name else { continue };
            let by_digest = reference.with_target(TagOrDigest::Digest(digest));
            for reference in [reference, by_digest] {
                if !references.contains(&reference) {
                    references.push(reference);
                }
            }
        }
        Ok(references)
    }

    /// What is to be pulled: a name, or an image that is here in part by its digest in its repository.
    pub(super) async fn to_pull(&self, text: &str) -> Result<Reference, ApiError> {
        let references = self.references(text).await?;
        let by_digest = references.iter().find(|reference| reference.target().digest().is_some());
        by_digest.or(references.first()).cloned().ok_or_else(|| {
            let message = format!("{text} came here without a name: no registry is known that has it");
            ApiError::new(ErrorCode::NotFound, message)
                .hint("'wherry import --name REF' brings an archive with a name")
        })
    }

    /// An image that is known where it must be clear which of its names is meant.
    pub(super) async fn find_one(&self, text: &str) -> Result<KnownImage, ApiError> {
        if let Wanted::Digest(beginning) = self.wanted(text).await? {
            let names: BTreeSet<String> =
                self.find_all(&beginning).await?.iter().map(|image| image.name.to_string()).collect();
            if names.len() > 1 {
                let names = names.into_iter().collect::<Vec<_>>().join(", ");
                let message = format!("{beginning} has several names: {names}");
                return Err(ApiError::new(ErrorCode::BadRequest, message).hint("say which, or all of them"));
            }
        }
        self.find_known(text).await
    }

    /// All that bears the name of an image that was found: what has the digest that was asked for may be one image of an
    /// index, and what is done about the name is done to all of them.
    pub(super) async fn all_of(&self, found: KnownImage) -> Result<KnownImage, ApiError> {
        self.find_known(&found.name.to_string()).await
    }

    /// The error with what there is instead, if the name of the image is a tag that has moved to what is not here.
    pub(super) async fn with_moved(&self, name: &ImageName, error: ApiError) -> ApiError {
        let ImageName::Reference(reference) = name else { return error };
        match self.images.moved(reference).await {
            Ok(Some(moved)) => ApiError { message: format!("{}. {moved}", error.message), ..error },
            _ => error,
        }
    }

    async fn find_named(&self, name: &ImageName) -> Result<KnownImage, ApiError> {
        if let Some(known) = self.images.known_image(name).await.map_err(image_error)? {
            return Ok(known);
        }
        let error = ApiError::new(ErrorCode::NotFound, format!("{name} is not here"))
            .hint(format!("bring it here with 'wherry pull {name}'; 'wherry images' lists what is here"));
        Err(self.with_moved(name, error).await)
    }

    /// A known image with its manifests, or the error that says what is wrong with these.
    pub(super) async fn local_of(
        &self,
        known: &KnownImage,
        platform: Option<&Platform>,
    ) -> Result<LocalImage, ApiError> {
        if let Some(local) = self.images.local_of(known, platform).await.map_err(image_error)? {
            return Ok(local);
        }
        let name = &known.name;
        let damaged = self.images.damaged_manifest(known, platform).await.map_err(image_error)?;
        let (of_platform, option) = match platform {
            Some(platform) => (format!("{name} for {platform}"), format!("--platform {platform} ")),
            None => (name.to_string(), String::new()),
        };
        let message = match (damaged, platform) {
            (Some(digest), _) => {
                format!("the manifest of {of_platform}, {digest}, is damaged and was set aside")
            }
            (None, Some(_)) => format!("{of_platform} is not here"),
            // It has left in the meantime.
            (None, None) => format!("the manifest of {name} is not here"),
        };
        let hint = match name {
            ImageName::Reference(_) if damaged.is_none() => {
                format!("bring it here with 'wherry pull {option}{name}'")
            }
            ImageName::Reference(_) => {
                format!(
                    "'wherry pull {option}{name}' brings it again, 'wherry rm {name}' removes what is left"
                )
            }
            ImageName::Unnamed(_) => {
                format!("import the image again, or remove what is left with 'wherry rm {name}'")
            }
        };
        let error = ApiError::new(ErrorCode::NotFound, message).hint(hint);
        Err(self.with_moved(name, error).await)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use wherry_gateway::Manifest;

    use super::*;

    #[test]
    fn digits_with_which_several_images_begin_are_refused_with_all_of_them() {
        let top = |seed: &str| {
            let config =
                format!(r#"{{"mediaType":"c","digest":"{}","size":1}}"#, Digest::sha256(seed.as_bytes()));
            let text = format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[]}}"#
            );
            Manifest::parse(text.into_bytes().into(), None).unwrap()
        };
        let image = |name: &str, seed: &str| {
            let top = top(seed);
            let name = name.replace("DIGEST", &top.digest().to_string()).parse().unwrap();
            LocalImage { name, image: top.clone(), top, whole: true, since: None }.known()
        };
        let (one, other) = (image("r.example/a:1", "one"), image("r.example/b@DIGEST", "other"));
        let again = image("r.example/c:1", "one");
        assert_eq!(only(vec![one.clone(), again], "1849e2c0a7f3").unwrap().len(), 2);
        let told = only(vec![one.clone(), other.clone()], "1849e2c0a7f3").unwrap_err();
        for part in ["1849e2c0a7f3", &format!("{} (r.example/a:1)", one.digest()), &other.name.to_string()] {
            assert!(told.message.contains(part), "{part}: {}", told.message);
        }
        assert!(only(Vec::new(), "1849e2c0a7f3").unwrap_err().message.contains("1849e2c0a7f3"));
    }
}
