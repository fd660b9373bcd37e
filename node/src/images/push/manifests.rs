//! Manifests that are pushed and removed, and the blobs that they name.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use tracing::info;
use wherry_gateway::manifest::ManifestError;
use wherry_gateway::server::{Put, Refusal, RefusalKind};
use wherry_gateway::{Descriptor, Manifest, ManifestContent, Reference, TagOrDigest};
use wherry_proto::Digest;

use super::super::{Grant, ImageError, Images, MAX_TAGS, blocking};
use crate::store::{Claim, StoreError};
use crate::transfer::{Fetched, Route};

/// How long what a manifest names may take to come from elsewhere while the client waits; it goes on afterwards.
const BRING_TIME: Duration = Duration::from_secs(60);

fn refuse(error: ImageError) -> Refusal {
    error.into_refusal(false)
}

impl Images {
    /// A blob that has come belongs to a repository from now on.
    pub(super) async fn take_blob(&self, route: &Route, blob: Claim) -> Result<(), Refusal> {
        let (digest, size) = (blob.digest(), blob.size());
        self.0.uploads.hold(route, blob);
        self.grant_blob(route, digest, size).await.map_err(refuse)?;
        self.0.parts.peers.announce(digest).await;
        Ok(())
    }

    async fn grant_blob(&self, route: &Route, digest: Digest, size: u64) -> Result<(), ImageError> {
        let (records, route) = (self.records().clone(), route.clone());
        let grant = Grant::of(size, "");
        blocking(move || Ok(records.add_grant(&route.host, &route.repository, &digest, &grant)?)).await
    }

    /// Has a blob of one repository belong to another too, if it is here; whether it does.
    pub(super) async fn mount_blob(
        &self,
        route: &Route,
        digest: Digest,
        from: Option<&Route>,
    ) -> Result<bool, Refusal> {
        let Some(blob) = self.0.parts.store.claim(&digest) else { return Ok(false) };
        let (records, own, from) = (self.records().clone(), route.clone(), from.cloned());
        // That it is here is no right to it: it has to belong to a repository that the client may read.
        let granted = blocking(move || {
            let mut is_known = records.grant(&own.host, &own.repository, &digest)?.is_some();
            if !is_known {
                is_known = match &from {
                    Some(from) => records.grant(&from.host, &from.repository, &digest)?.is_some(),
                    None => records.is_granted_at(&own.host, &digest)?,
                };
            }
            Ok(is_known)
        });
        if !granted.await.map_err(refuse)? {
            return Ok(false);
        }
        self.take_blob(route, blob).await?;
        Ok(true)
    }

    /// Takes in a manifest, if all that it names is in the repository or can be had from where the repository is.
    pub(super) async fn push_manifest(
        &self,
        route: &Route,
        reference: Reference,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<Put, Refusal> {
        let parsed = match reference.target() {
            TagOrDigest::Digest(digest) => Manifest::parse_as(bytes, media_type, digest),
            TagOrDigest::Tag(_) => Manifest::parse(bytes, media_type),
        };
        let manifest = parsed.map_err(|error| {
            let kind = match error {
                ManifestError::TooLong { .. } => RefusalKind::TooLong,
                ManifestError::Digest { .. } => RefusalKind::DigestInvalid,
                _ => RefusalKind::ManifestRefused,
            };
            Refusal::new(kind, error.to_string())
        })?;
        // None of them leaves before all are pinned.
        let mut claims = Vec::new();
        for descriptor in named(&manifest) {
            claims.push(self.named_blob(route, descriptor).await?);
        }
        // On a task of its own: a client that leaves now leaves nothing half done.
        let (images, route) = (self.clone(), route.clone());
        let taking = async move {
            let put = images.take_manifest(&route, reference, &manifest).await;
            drop(claims);
            put
        };
        tokio::spawn(taking).await.map_err(|_| refuse(ImageError::Stopped))?.map_err(refuse)
    }

    /// Stores a manifest, pins it with all that it names, and says what its tag means now. When this returns, none of it is
    /// lost to a power cut.
    async fn take_manifest(
        &self,
        route: &Route,
        reference: Reference,
        manifest: &Manifest,
    ) -> Result<Put, ImageError> {
        let digest = *manifest.digest();
        self.may_mean(&reference, &digest).await?;
        let _claim = {
            let (store, raw) = (self.0.parts.store.clone(), manifest.raw().clone());
            blocking(move || {
                store.put(&digest, &raw)?;
                Ok(store.claim(&digest))
            })
            .await?
        };
        self.learn(&reference, manifest).await?;
        let subject = manifest.subject().map(|subject| subject.digest);
        self.0.parts.keeper.keep(reference.clone(), digest).await?;
        if let ManifestContent::Index(index) = manifest.content() {
            // They came first, and by their digests; from now on they are kept as parts of this.
            for entry in &index.manifests {
                let part = reference.with_target(TagOrDigest::Digest(entry.digest));
                self.0.parts.keeper.let_go(part).await?;
            }
        }
        if reference.target().tag().is_some() {
            let moved = self.push_tag(&reference, manifest).await?;
            self.tell_site(moved).await;
        }
        self.is_news();
        let store = self.0.parts.store.clone();
        blocking(move || Ok(store.sync()?)).await?;
        self.0.uploads.release(route, named(manifest).iter().map(|descriptor| &descriptor.digest));
        self.0.parts.peers.announce(digest).await;
        self.0.parts.keeper.spread(reference.clone(), digest).await;
        info!(%reference, %digest, bytes = manifest.size(), "a manifest was pushed");
        Ok(Put { digest, subject })
    }

    /// What a manifest names, which is brought here if it is elsewhere.
    async fn named_blob(&self, route: &Route, named: &Descriptor) -> Result<Claim, Refusal> {
        let missing = |why: String| {
            let message = format!(
                "the manifest names {}, which is not in {route}: {why}. Push what it names first",
                named.digest
            );
            Refusal::new(RefusalKind::ManifestBlobUnknown, message)
        };
        let failed = |error: ImageError| {
            let refusal = error.into_refusal(true);
            match refusal.kind {
                RefusalKind::BlobUnknown | RefusalKind::Denied => missing(refusal.message),
                _ => refusal,
            }
        };
        // Only what belongs to the repository counts, and whether it does, that it is here does not tell.
        let blob = self.blob(&route.host, &route.repository, named.digest).await.map_err(failed)?;
        if blob.size() != named.size {
            let message = format!(
                "the manifest says that {} has {} bytes, and it has {}",
                named.digest,
                named.size,
                blob.size()
            );
            return Err(Refusal::new(RefusalKind::ManifestRefused, message));
        }
        let bringing = async {
            if let Fetched::Arriving(transfer) = blob.fetch().await.map_err(failed)? {
                let what = format!("blob {} of {route}", named.digest);
                transfer.wait().await.map_err(|source| failed(ImageError::Transfer { what, source }))?;
            }
            Ok::<(), Refusal>(())
        };
        timeout(BRING_TIME, bringing).await.map_err(|_| {
            let message =
                format!("{} is still on its way here from elsewhere: push the manifest again", named.digest);
            Refusal::new(RefusalKind::Unavailable, message)
        })??;
        self.0
            .parts
            .store
            .claim(&named.digest)
            .ok_or_else(|| missing("it has just left this node".to_owned()))
    }

    /// Removes a tag, or a manifest with all tags that mean it.
    pub(super) async fn remove_manifest(&self, route: &Route, reference: Reference) -> Result<(), Refusal> {
        let unknown = || {
            let message = format!("{reference} is not known here, so there is nothing to remove");
            Refusal::new(RefusalKind::ManifestUnknown, message)
        };
        let Some(digest) = reference.target().digest().copied() else {
            return self.take_back(&reference).await?.then_some(()).ok_or_else(unknown);
        };
        let known = self.records().grant(&route.host, &route.repository, &digest);
        known.map_err(ImageError::from).map_err(refuse)?.ok_or_else(unknown)?;
        let tags = {
            let (records, route) = (self.records().clone(), route.clone());
            blocking(move || {
                let mut meaning = Vec::new();
                for tag in records.tags(&route.host, &route.repository, None, MAX_TAGS)? {
                    let Ok(tag) = tag.parse() else { continue };
                    let tag =
                        Reference::new(route.host.clone(), route.repository.clone(), TagOrDigest::Tag(tag));
                    if records.tag(&tag)?.is_some_and(|entry| entry.record.digest == digest) {
                        meaning.push(tag);
                    }
                }
                Ok(meaning)
            })
        };
        for tag in tags.await.map_err(refuse)? {
            self.take_back(&tag).await?;
        }
        self.0.parts.keeper.let_go(reference.clone()).await.map_err(refuse)?;
        let parts = self.parts_of_name(&reference).await.map_err(refuse)?;
        self.revoke(route, digest).await?;
        self.remove_unused(route, parts).await.map_err(refuse)?;
        info!(%reference, "a manifest was removed");
        Ok(())
    }

    /// Removes from the disk what no image here has any more: nothing would lead to it.
    async fn remove_unused(&self, route: &Route, parts: Vec<Digest>) -> Result<(), ImageError> {
        let users = self.users_of(parts.iter().copied().collect()).await?;
        let (images, route) = (self.clone(), route.clone());
        blocking(move || {
            let store = &images.0.parts.store;
            for part in parts.iter().rev().filter(|part| !users.contains_key(part)) {
                match store.remove(part) {
                    // Another name pins it, or somebody is about to use it.
                    Ok(_) | Err(StoreError::Pinned(_) | StoreError::Claimed(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            images.drop_unneeded(&route.host, &route.repository)
        })
        .await
    }

    /// Takes back what a tag means; whether it meant anything.
    async fn take_back(&self, tag: &Reference) -> Result<bool, Refusal> {
        let Some(record) = self.remove_tag(tag).await.map_err(refuse)? else { return Ok(false) };
        self.tell_site([record]).await;
        self.0.parts.keeper.let_go(tag.clone()).await.map_err(refuse)?;
        info!(reference = %tag, "a tag was removed");
        Ok(true)
    }

    pub(super) async fn remove_blob(&self, route: &Route, digest: Digest) -> Result<(), Refusal> {
        let known = self.records().grant(&route.host, &route.repository, &digest);
        if known.map_err(ImageError::from).map_err(refuse)?.is_none() {
            let message = format!("{digest} is not known to be in {route}, so there is nothing to remove");
            return Err(Refusal::new(RefusalKind::BlobUnknown, message));
        }
        let users = self.users_of([digest].into()).await.map_err(refuse)?;
        let repository = route.to_string();
        let is_here =
            |name: &&String| name.strip_prefix(&repository).is_some_and(|rest| rest.starts_with([':', '@']));
        if let Some(name) = users.get(&digest).and_then(|names| names.iter().find(is_here)) {
            let message = format!("{digest} is a part of {name}: remove that first");
            return Err(Refusal::new(RefusalKind::Denied, message));
        }
        self.revoke(route, digest).await
    }

    /// Something belongs to a repository no more.
    async fn revoke(&self, route: &Route, digest: Digest) -> Result<(), Refusal> {
        self.0.uploads.release(route, [&digest]);
        let (images, route) = (self.clone(), route.clone());
        let revoked = blocking(move || {
            let manifest = images.read_manifest(digest, None).ok().flatten();
            images.records().revoke(&route.host, &route.repository, &digest, manifest.as_ref())?;
            images.is_news();
            Ok(())
        });
        revoked.await.map_err(refuse)
    }
}

/// What has to be there for a manifest to be of use. A digest that is named twice may have a wrong length once.
fn named(manifest: &Manifest) -> Vec<&Descriptor> {
    match manifest.content() {
        ManifestContent::Index(index) => index.manifests.iter().collect(),
        ManifestContent::Image(image) => {
            let layers = image.layers.iter().filter(|layer| !layer.is_foreign());
            std::iter::once(&image.config).chain(layers).collect()
        }
    }
}
