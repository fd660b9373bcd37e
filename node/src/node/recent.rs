//! What was found out a short time ago, for those who ask how the node is every second.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use wherry_proto::Digest;

use super::Node;
use crate::identity;
use crate::images::COUNT_FOR;
use crate::status::Joined;

/// Images that have each of the blobs that were asked about.
type Users = HashMap<Digest, BTreeSet<String>>;

#[derive(Default)]
pub(super) struct Recent {
    // Under one lock while it is found out, so that many who ask cause one look.
    users: tokio::sync::Mutex<Option<(Instant, Users)>>,
    // With when the certificate was written that it comes from.
    joined: Mutex<Option<(SystemTime, Option<Joined>)>>,
}

impl Node {
    /// The images that each of these blobs belongs to, as it was at most [`COUNT_FOR`] ago: finding out reads every
    /// manifest.
    pub(super) async fn recent_users(&self, blobs: HashSet<Digest>) -> Users {
        if blobs.is_empty() {
            return Users::new();
        }
        let mut known = self.recent.users.lock().await;
        if let Some((when, users)) = &*known
            && when.elapsed() < COUNT_FOR
            && blobs.iter().all(|blob| users.contains_key(blob))
        {
            return users.clone();
        }
        let mut users = self.images.users_of(blobs.clone()).await.unwrap_or_default();
        // That nobody has it is an answer too.
        for blob in blobs {
            users.entry(blob).or_default();
        }
        *known = Some((Instant::now(), users.clone()));
        users
    }

    /// What the data folder says of this node's membership, if that is something new. The files are read when the
    /// certificate has been written since.
    pub(super) async fn joined(&self) -> Option<Joined> {
        let data = self.data.clone();
        let written = tokio::task::spawn_blocking(move || identity::certificate_written(&data)).await;
        let written = written.ok().flatten()?;
        if let Some((when, joined)) = &*self.recent.joined.lock().unwrap_or_else(PoisonError::into_inner)
            && *when == written
        {
            return *joined;
        }
        let data = self.data.clone();
        // What is wrong with these files is for the next start to say.
        let read = tokio::task::spawn_blocking(move || identity::certificate(&data).ok().flatten()).await;
        let certificate = read.ok().flatten().filter(|certificate| *certificate != self.certificate);
        let joined = certificate
            .map(|certificate| Joined { network: certificate.network, expires: certificate.expires });
        *self.recent.joined.lock().unwrap_or_else(PoisonError::into_inner) = Some((written, joined));
        joined
    }
}
