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
        let recent = known.take().filter(|(when, _)| when.elapsed() < COUNT_FOR);
        let (when, mut users) = recent.unwrap_or_else(|| (Instant::now(), Users::new()));
        let new: HashSet<Digest> = blobs.iter().filter(|blob| !users.contains_key(*blob)).copied().collect();
        if !new.is_empty() {
            // That nobody has it is an answer too.
            users.extend(new.iter().map(|blob| (*blob, BTreeSet::new())));
            users.extend(self.images.users_of(new).await.unwrap_or_default());
        }
        let asked = users.iter().filter(|(blob, _)| blobs.contains(*blob));
        let asked = asked.map(|(blob, names)| (*blob, names.clone())).collect();
        *known = Some((when, users));
        asked
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
