//! Manifests that are about others, such as signatures: what the gateway lists of them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use tracing::debug;
use wherry_gateway::server::Referrer;
use wherry_gateway::{Descriptor, Host, Manifest, Repository};
use wherry_proto::Digest;

use super::records::read;
use super::{ImageError, Images, blocking};
use crate::store::{Store, StoreError, Table};
use crate::transfer::Route;

/// How many manifests that are about another are listed.
const MAX_REFERRERS: usize = 512;

/// How much the annotations of one may take, in bytes; beyond that none are remembered. All that are listed take a few MiB.
const MAX_ANNOTATIONS: usize = 4 << 10;

/// What a record takes for the lengths of one annotation, in bytes.
const LENGTHS: usize = 16;

/// The version of [`Attachment`]'s layout: it goes up with every change.
const REFERRER_VERSION: u8 = 1;

/// A manifest that is about another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Attachment {
    /// Its length in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// What kind of artifact it is.
    pub artifact_type: Option<String>,
    /// Its free-form notes.
    pub annotations: Vec<(String, String)>,
}

/// Which manifests of a repository are about which, as far as they have come to this node or its origin has said so.
#[derive(Clone)]
pub struct Referrers(Table<Attachment>);

/// Attachments stand beside each other that are about the same manifest.
fn key_of(host: &Host, repository: &Repository, subject: &Digest) -> String {
    format!("{host}/{repository}@{subject}<")
}

/// Annotations, if they are few enough to be remembered.
fn bounded<'a>(notes: impl Iterator<Item = (&'a String, &'a String)> + Clone) -> Vec<(String, String)> {
    let length: usize = notes.clone().map(|(key, value)| key.len() + value.len() + LENGTHS).sum();
    match length <= MAX_ANNOTATIONS {
        true => notes.map(|(key, value)| (key.clone(), value.clone())).collect(),
        false => Vec::new(),
    }
}

/// How many subjects are remembered of which an origin was asked lately; further ones are asked about each time.
const MAX_ASKED: usize = 1024;

/// How long an origin is waited for: what is known already serves.
const PATIENCE: Duration = Duration::from_secs(3);

/// When origins were last asked what is about a manifest.
#[derive(Default)]
pub(super) struct Asked(Mutex<HashMap<(Route, Digest), Instant>>);

impl Images {
    /// What is about a manifest, as far as this node knows, and as its origin says: that is asked at most once per `tag_ttl`,
    /// and what it said is remembered.
    pub(super) async fn attached(
        &self,
        route: &Route,
        subject: Digest,
    ) -> Result<Vec<(Digest, Attachment)>, ImageError> {
        let Route { host, repository } = route.clone();
        let ttl = self.0.parts.tags.ttl_at(&host);
        let key = (route.clone(), subject);
        let is_due = {
            let mut asked = self.0.asked.0.lock().unwrap_or_else(PoisonError::into_inner);
            asked.retain(|_, when| when.elapsed() < ttl);
            !asked.contains_key(&key)
        };
        let mut heard = Vec::new();
        if is_due && !host.is_site() && self.is_down(&host, String::new()).is_none() {
            let asking = self.0.parts.origins.referrers(&host, &repository, &subject);
            match tokio::time::timeout(PATIENCE, asking).await {
                Ok(Ok(all)) => {
                    heard = all;
                    let mut asked = self.0.asked.0.lock().unwrap_or_else(PoisonError::into_inner);
                    if asked.len() < MAX_ASKED {
                        asked.insert(key, Instant::now());
                    }
                }
                Ok(Err(error)) => {
                    self.note_down(&host, &error);
                    debug!(%route, %subject, %error, "the origin does not say what is about a manifest");
                }
                Err(_) => debug!(%route, %subject, "the origin is slow to say what is about a manifest"),
            }
        }
        let records = self.records().clone();
        blocking(move || {
            let referrers = records.referrers();
            for referrer in &heard {
                referrers.heard(&host, &repository, &subject, referrer)?;
            }
            Ok(referrers.of(&host, &repository, &subject)?)
        })
        .await
    }
}

impl Referrers {
    pub(super) fn open(store: &Store) -> Result<Self, StoreError> {
        Ok(Self(store.table("referrers", REFERRER_VERSION)?))
    }

    /// Remembers what another registry says is about a manifest.
    pub(super) fn heard(
        &self,
        host: &Host,
        repository: &Repository,
        subject: &Digest,
        referrer: &Referrer,
    ) -> Result<(), StoreError> {
        let Descriptor { media_type, digest, size, annotations, .. } = &referrer.descriptor;
        let attachment = Attachment {
            size: *size,
            media_type: media_type.clone(),
            artifact_type: referrer.artifact_type.clone(),
            annotations: bounded(annotations.iter().flatten()),
        };
        let key = format!("{}{digest}", key_of(host, repository, subject));
        self.0.put(key.as_bytes(), &attachment)
    }

    /// Remembers that a manifest is about another.
    pub fn add(
        &self,
        host: &Host,
        repository: &Repository,
        subject: &Digest,
        manifest: &Manifest,
    ) -> Result<(), StoreError> {
        let attachment = Attachment {
            size: manifest.size(),
            media_type: manifest.media_type().to_owned(),
            artifact_type: manifest.artifact_type().map(str::to_owned),
            annotations: bounded(manifest.annotations().iter()),
        };
        let key = format!("{}{}", key_of(host, repository, subject), manifest.digest());
        // Whoever asks for a signature time and again writes nothing.
        if self.0.get(key.as_bytes())?.as_ref() == Some(&attachment) {
            return Ok(());
        }
        self.0.put(key.as_bytes(), &attachment)
    }

    /// The manifests of a repository that are about this one; at most 512.
    pub fn of(
        &self,
        host: &Host,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<(Digest, Attachment)>, StoreError> {
        let prefix = key_of(host, repository, subject);
        let found = self.0.scan_prefix(prefix.as_bytes(), MAX_REFERRERS)?;
        let digest = |key: Vec<u8>| read::<Digest>(key.get(prefix.len()..)?.to_vec());
        Ok(found.into_iter().filter_map(|(key, attachment)| Some((digest(key)?, attachment))).collect())
    }

    /// Forgets that a manifest is about another.
    pub(super) fn remove(
        &self,
        host: &Host,
        repository: &Repository,
        subject: &Digest,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        let key = format!("{}{digest}", key_of(host, repository, subject));
        self.0.remove(key.as_bytes()).map(drop)
    }
}
