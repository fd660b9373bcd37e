//! Manifests that are about others, such as signatures: what the gateway lists of them.

use bincode::{Decode, Encode};
use wherry_gateway::{Host, Manifest, Repository};
use wherry_proto::Digest;

use super::records::read;
use crate::store::{Store, StoreError, Table};

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

/// Which manifests of a repository are about which, as far as they were pushed to this node.
#[derive(Clone)]
pub struct Referrers(Table<Attachment>);

/// Attachments stand beside each other that are about the same manifest.
fn key_of(host: &Host, repository: &Repository, subject: &Digest) -> String {
    format!("{host}/{repository}@{subject}<")
}

impl Referrers {
    pub(super) fn open(store: &Store) -> Result<Self, StoreError> {
        Ok(Self(store.table("referrers", REFERRER_VERSION)?))
    }

    /// Remembers that a manifest is about another.
    pub fn add(
        &self,
        host: &Host,
        repository: &Repository,
        subject: &Digest,
        manifest: &Manifest,
    ) -> Result<(), StoreError> {
        let notes = manifest.annotations();
        let length: usize = notes.iter().map(|(key, value)| key.len() + value.len() + LENGTHS).sum();
        let attachment = Attachment {
            size: manifest.size(),
            media_type: manifest.media_type().to_owned(),
            artifact_type: manifest.artifact_type().map(str::to_owned),
            annotations: match length <= MAX_ANNOTATIONS {
                true => notes.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
                false => Vec::new(),
            },
        };
        let key = format!("{}{}", key_of(host, repository, subject), manifest.digest());
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
