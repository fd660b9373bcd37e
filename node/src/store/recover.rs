//! What a start finds, and what it makes of it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use wherry_proto::{Algorithm, ChunkMap, Digest};

use super::files::{self, Layout};
use super::index::BlobRecord;
use super::remains::Left;
use super::shared::{
    Entry, MAX_DAMAGED, PartialEntry, Shared, State, Victim, entry_charge, lock, partial_charge,
};
use super::{StoreError, partial};

/// Makes the folders, empties those that hold nothing worth keeping from one run to the next, and removes that in which
/// earlier versions put damaged blobs.
pub(super) fn prepare(layout: &Layout) -> Result<(), StoreError> {
    for dir in [layout.blobs(), layout.chains(), layout.partials(), layout.staging()] {
        files::make_dir(&dir)?;
    }
    files::empty_dir(&layout.staging())?;
    let damaged = layout.root().join("damaged");
    match fs::remove_dir_all(&damaged) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io("remove", &damaged, error)),
        _ => Ok(()),
    }
}

/// Fills the maps from index and disk. After a clean end the index is taken as it is, if it is the one that the
/// mark was made for; otherwise each blob's file is looked at, and hashed if it is not recorded.
pub(super) fn recover(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let mut state = State::default();
    for (digest, record) in shared.index.blobs()? {
        state.blobs.insert(digest, Arc::new(Entry::new(record)));
    }
    // A damaged index may open as an empty one, so that the mark stands is not enough.
    if fs::read_to_string(shared.layout.clean()).is_ok_and(|mark| mark == state.summary()) {
        shared.clean.store(true, Ordering::Release);
    } else {
        compare(shared, &mut state)?;
    }
    for (_, digest) in shared.index.pins()? {
        *state.pins.entry(digest).or_default() += 1;
    }
    for (digest, size) in shared.index.damaged()? {
        // A record may be older than the blob's return.
        if state.blobs.contains_key(&digest) || state.damaged.len() >= MAX_DAMAGED {
            shared.index.note_damaged(&digest, None)?;
        } else {
            state.damaged.insert(digest, size);
        }
    }
    find_partials(shared, &mut state)?;
    let blobs: u64 = state.blobs.iter().map(|(digest, entry)| entry_charge(digest, entry.size)).sum();
    let partials: u64 = state.partials.values().map(|entry| entry.charge).sum();
    state.used = blobs + partials;
    let last_use = state.blobs.values().map(|entry| entry.record().used).max().unwrap_or(0);
    shared.clock.store(last_use + 1, Ordering::Relaxed);
    *lock(&shared.state) = state;
    partial::make_way(shared)
}

/// Makes index, maps and the blobs' folder agree.
fn compare(shared: &Shared, state: &mut State) -> Result<(), StoreError> {
    let layout = &shared.layout;
    let mut seen = HashSet::new();
    let mut changes = Vec::new();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let parent = layout.blobs().join(algorithm.name());
        for two in files::list(&parent)? {
            let dir = parent.join(&two);
            if !dir.is_dir() {
                leave_alone(&dir);
                continue;
            }
            for name in files::list(&dir)? {
                let path = dir.join(&name);
                let digest: Option<Digest> = format!("{}:{name}", algorithm.name()).parse().ok();
                let Some(digest) = digest.filter(|digest| layout.blob(digest) == path) else {
                    leave_alone(&path);
                    continue;
                };
                if let Some(record) = check(shared, state, &digest, &path)? {
                    seen.insert(digest);
                    if let Some(record) = record {
                        changes.push((digest, Some(record)));
                    }
                }
            }
        }
    }
    let missing: Vec<Digest> = state.blobs.keys().filter(|digest| !seen.contains(digest)).copied().collect();
    for digest in missing {
        tracing::warn!(%digest, "a recorded blob has no file and is no longer held");
        state.blobs.remove(&digest);
        changes.push((digest, None));
    }
    for (digest, record) in &changes {
        if let Some(record) = record {
            state.blobs.insert(*digest, Arc::new(Entry::new(*record)));
        }
    }
    drop_chains(layout, state)?;
    if changes.iter().any(|(_, record)| record.is_some()) {
        files::sync_all(layout.root())?;
    }
    shared.index.apply(&changes)?;
    shared.index.flush()
}

/// Looks at one file in the blobs' folder: `None` if it is no blob, else a record if it had none. What is left of one that
/// was held becomes a partial blob.
fn check(
    shared: &Shared,
    state: &State,
    digest: &Digest,
    path: &Path,
) -> Result<Option<Option<BlobRecord>>, StoreError> {
    let unreadable = |error| StoreError::io("read", path, error);
    let data = fs::symlink_metadata(path).map_err(unreadable)?;
    let recorded = state.blobs.get(digest);
    if data.is_file() && recorded.is_some_and(|entry| entry.size == data.len()) {
        return Ok(Some(None));
    }
    if !data.is_file() {
        leave_alone(path);
        return Ok(None);
    }
    if let Some(entry) = recorded {
        tracing::warn!(%digest, found = data.len(), recorded = entry.size, "a stored blob has another length and is no longer held");
        shared.index.note_damaged(digest, Some(entry.size))?;
        let chain = shared.read_chain(digest, entry).filter(|chain| chain.map().count() > 1);
        if let Some(Err(error)) = chain.map(|chain| shared.make_partial(&chain, None)) {
            tracing::warn!(%digest, %error, "what is left of a damaged blob cannot be kept");
            shared.remove_files(&Victim::Partial((*digest, entry.size)))?;
        }
        return files::remove(path).map(|()| None);
    }
    let mut file = File::open(path).map_err(unreadable)?;
    let chain = match ChunkMap::new(data.len()) {
        Ok(map) => Some(files::hash(&mut file, digest.algorithm(), map).map_err(unreadable)?),
        Err(_) => None,
    };
    let Some(chain) = chain.filter(|chain| chain.digest() == *digest) else {
        // As a power cut leaves one that was not durable yet.
        tracing::warn!(%digest, "a file that was not recorded as a blob has another digest and is removed");
        return files::remove(path).map(|()| None);
    };
    let map = chain.map();
    tracing::info!(%digest, "a blob that was not recorded has its digest and is held");
    files::seal(&file, path)?;
    let chain = shared.write_chain(&chain)?;
    Ok(Some(Some(BlobRecord { size: map.size(), used: 0, chain })))
}

fn leave_alone(path: &Path) {
    tracing::warn!(path = %path.display(), "this is not the store's and is left alone");
}

/// Removes chains whose blobs are gone.
fn drop_chains(layout: &Layout, state: &State) -> Result<(), StoreError> {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let parent = layout.chains().join(algorithm.name());
        for two in files::list(&parent)? {
            let dir = parent.join(&two);
            if !dir.is_dir() {
                leave_alone(&dir);
                continue;
            }
            for name in files::list(&dir)? {
                let path = dir.join(&name);
                let digest = format!("{}:{name}", algorithm.name()).parse::<Digest>().ok();
                match digest.filter(|_| !path.is_dir()) {
                    Some(digest) if state.blobs.contains_key(&digest) => {}
                    Some(_) => files::remove(&path)?,
                    None => leave_alone(&path),
                }
            }
        }
    }
    Ok(())
}

/// Finds the partial blobs that were left; those without a chunk, those whose blob is held, and links that belong to none
/// are removed. What others put there is left alone.
fn find_partials(shared: &Shared, state: &mut State) -> Result<(), StoreError> {
    let dir = shared.layout.partials();
    let mut lone_links = Vec::new();
    for name in files::list(&dir)? {
        let path = dir.join(&name);
        let data = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file);
        let found = files::parse_partial_name(&name)
            .and_then(|(digest, size, links)| Some((digest, ChunkMap::new(size).ok()?, links, data?)));
        match found {
            Some((digest, map, true, _)) => lone_links.push(((digest, map.size()), path)),
            Some((digest, map, false, data))
                if !state.blobs.contains_key(&digest)
                    && fs::metadata(shared.layout.links(&digest, map.size()))
                        .is_ok_and(|it| it.len() > 0) =>
            {
                let closed = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let charge = partial_charge(digest.algorithm(), map);
                let absent = map.size().saturating_sub(data.blocks() * 512);
                state.partials.insert(
                    (digest, map.size()),
                    PartialEntry { open: false, charge, absent, closed, left: Left::default() },
                );
            }
            Some(_) => files::remove(&path)?,
            None => leave_alone(&path),
        }
    }
    for (key, path) in lone_links {
        if !state.partials.contains_key(&key) {
            files::remove(&path)?;
        }
    }
    Ok(())
}
