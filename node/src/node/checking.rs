//! `wherry check`: reads and hashes what the store has, because somebody asked.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use wherry_proto::Digest;

use super::Node;
use super::backend::{image_error, stopping};
use crate::control::Events;
use crate::control::api::{ApiError, CheckEvent, CheckRequest, CheckSummary, DamagedBlob, ErrorCode};
use crate::store::{Store, StoreError};

/// How many bytes are hashed between two words about it, at least.
const TELL_EVERY: u64 = 8 << 20;

/// What was found.
#[derive(Default)]
struct Found {
    blobs: usize,
    bytes: u64,
    // With their lengths, and whether their files are gone.
    damaged: Vec<(Digest, u64, bool)>,
}

impl Node {
    pub(super) async fn check_blobs(
        &self,
        request: CheckRequest,
        events: Events<CheckEvent>,
    ) -> Result<CheckSummary, ApiError> {
        let begun = Instant::now();
        let ToCheck { here: blobs, missing, unread, damaged: known } = self.to_check(&request).await?;
        // Before any is set aside: a manifest that is tells no more of its image.
        let wanted: HashSet<Digest> = blobs.keys().chain(known.keys()).copied().collect();
        let users = self.images.users_of(wanted).await.map_err(image_error)?;
        let (store, broken_off) = (self.store.clone(), CancellationToken::new());
        // The client may leave in the middle.
        let _guard = broken_off.clone().drop_guard();
        let work = move || check_all(&store, blobs, &events, &broken_off);
        let found = tokio::task::spawn_blocking(work).await.map_err(stopping)?;
        let found = found.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
        let blobs = found.blobs + known.len();
        let mut all: BTreeMap<Digest, (u64, bool)> =
            known.into_iter().map(|(digest, size)| (digest, (size, false))).collect();
        all.extend(found.damaged.into_iter().map(|(digest, size, gone)| (digest, (size, gone))));
        let damaged = all.into_iter().map(|(digest, (size, gone))| {
            let images = users.get(&digest).map(|names| names.iter().cloned().collect());
            DamagedBlob { digest, size, gone, images: images.unwrap_or_default() }
        });
        Ok(CheckSummary {
            blobs,
            bytes: found.bytes,
            seconds: begun.elapsed().as_secs_f64(),
            damaged: damaged.collect(),
            missing: missing.into_iter().collect(),
            unread: unread.into_iter().collect(),
        })
    }

    async fn to_check(&self, request: &CheckRequest) -> Result<ToCheck, ApiError> {
        if request.references.is_empty() {
            let here = self.store.blobs().collect();
            return Ok(ToCheck {
                here,
                damaged: self.store.damaged().into_iter().collect(),
                ..ToCheck::default()
            });
        }
        let mut all = ToCheck::default();
        for text in &request.references {
            let known = self.find_known(text).await?;
            let mut parts = self.images.parts(&known).await.map_err(image_error)?;
            match self.images.local_of(&known, None).await.map_err(image_error)? {
                Some(local) => {
                    let needed = local.image.image().into_iter().flat_map(|image| image.blobs());
                    let missing = needed.filter(|blob| !blob.is_foreign()).map(|blob| blob.digest);
                    all.missing.extend(missing.filter(|blob| !self.store.holds(blob)));
                }
                None => {
                    parts.extend(self.unread_parts(&known, &parts).await?);
                    all.unread.insert(known.name.to_string());
                }
            }
            let damaged = self.store.damaged();
            for part in parts {
                if let Some(blob) = self.store.look(&part) {
                    all.here.insert(part, blob.size());
                } else if let Some(size) = damaged.get(&part) {
                    all.damaged.insert(part, *size);
                }
            }
        }
        let ToCheck { here, missing, damaged, .. } = &mut all;
        missing.retain(|blob| !here.contains_key(blob) && !damaged.contains_key(blob));
        Ok(all)
    }
}

/// What is to be looked at.
#[derive(Default)]
struct ToCheck {
    /// Blobs that are here, with their lengths.
    here: BTreeMap<Digest, u64>,
    /// Those that are wanted and not here.
    missing: BTreeSet<Digest>,
    /// Images of which the manifest is damaged.
    unread: BTreeSet<String>,
    /// Those of which it is known already that they are damaged, with their lengths.
    damaged: BTreeMap<Digest, u64>,
}

fn check_all(
    store: &Store,
    blobs: BTreeMap<Digest, u64>,
    events: &Events<CheckEvent>,
    broken_off: &CancellationToken,
) -> Result<Found, StoreError> {
    let (count, total) = (blobs.len(), blobs.values().sum());
    let mut found = Found::default();
    let tell = |found: &Found| {
        let (blobs, bytes) = (found.blobs, found.bytes);
        events.tell_if_free(CheckEvent::Progress { blobs, of_blobs: count, bytes, of_bytes: total });
    };
    tell(&found);
    let mut told = 0;
    for (digest, size) in blobs {
        let before = found.bytes;
        let goes_on = |bytes| {
            found.bytes += bytes;
            if found.bytes - told >= TELL_EVERY {
                told = found.bytes;
                tell(&found);
            }
            if broken_off.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let is_gone = store.look(&digest).is_some_and(|blob| !blob.has_file());
        match store.verify_while(&digest, goes_on) {
            Ok(Some(true)) => {}
            Ok(Some(false)) => {
                found.damaged.push((digest, size, is_gone));
                events.tell_if_free(CheckEvent::Damaged { digest, size });
            }
            Ok(None) => break,
            // It was found out in the meantime, as a manifest is that somebody reads.
            Err(StoreError::NotHeld(_)) if store.is_damaged(&digest) => {
                found.damaged.push((digest, size, is_gone));
                events.tell_if_free(CheckEvent::Damaged { digest, size });
            }
            // It has left.
            Err(StoreError::NotHeld(_)) => {}
            Err(error) => return Err(error),
        }
        found.blobs += 1;
        // As if it had been read to its end, so that all add up.
        found.bytes = before + size;
    }
    tell(&found);
    Ok(found)
}
