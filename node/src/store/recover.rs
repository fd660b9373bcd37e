//! What a start finds, and what it makes of it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use wherry_proto::{Algorithm, ChunkMap, Digest};

use super::files::{self, Layout};
use super::index::BlobRecord;
use super::shared::{Entry, PartialEntry, Shared, State, entry_charge, lock, partial_charge};
use super::{StoreError, partial};

/// Makes the folders, and empties those that hold nothing worth keeping from one run to the next.
pub(super) fn prepare(layout: &Layout) -> Result<(), StoreError> {
    for dir in [layout.blobs(), layout.chains(), layout.partials(), layout.staging(), layout.damaged()] {
        files::make_dir(&dir)?;
    }
    files::empty_dir(&layout.staging())?;
    files::empty_dir(&layout.damaged())
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
    find_partials(shared, &mut state)?;
    let blobs: u64 = state.blobs.iter().map(|(digest, entry)| entry_charge(digest, entry.size)).sum();
    let partials: u64 = state.partials.values().map(|entry| entry.charge).sum();
    for name in files::list(&shared.layout.damaged())? {
        if let Ok(data) = fs::symlink_metadata(shared.layout.damaged().join(&name)) {
            state.damaged.insert(name, data.len().next_multiple_of(4096));
        }
    }
    state.used = blobs + partials + state.damaged.values().sum::<u64>();
    let last_use = state.blobs.values().map(|entry| entry.record().used).max().unwrap_or(0);
    shared.clock.store(last_use + 1, Ordering::Relaxed);
    *lock(&shared.state) = state;
    partial::make_way(shared)?;
    // A budget that was made smaller is kept from the first moment, as far as pins allow.
    if let Err(error) = shared.reserve(0, 0) {
        tracing::warn!(%error, "the store is over its budget and nothing more can be removed");
    }
    Ok(())
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
                move_away(layout, &dir, &two, "blobs are in folders")?;
                continue;
            }
            for name in files::list(&dir)? {
                let path = dir.join(&name);
                let digest: Option<Digest> = format!("{}:{name}", algorithm.name()).parse().ok();
                let Some(digest) = digest.filter(|digest| layout.blob(digest) == path) else {
                    move_away(layout, &path, &name, "it is not named by a digest")?;
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

/// Looks at one file in the blobs' folder: `None` if it was moved away, else a record if it had none.
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
    let away = |why: &str| move_away(&shared.layout, path, &digest.hex(), why).map(|()| None);
    if !data.is_file() {
        return away("it is not a regular file");
    }
    if recorded.is_some() {
        return away("its length is not the recorded one");
    }
    let Ok(map) = ChunkMap::new(data.len()) else { return away("it is too large") };
    let mut file = File::open(path).map_err(unreadable)?;
    let chain = files::hash(&mut file, digest.algorithm(), map).map_err(unreadable)?;
    if chain.digest() != *digest {
        return away("its bytes have another digest");
    }
    tracing::info!(%digest, "a blob that was not recorded has its digest and is held");
    files::seal(&file, path)?;
    let chain = shared.write_chain(&chain)?;
    Ok(Some(Some(BlobRecord { size: map.size(), used: 0, chain })))
}

fn move_away(layout: &Layout, path: &Path, name: &str, why: &str) -> Result<(), StoreError> {
    let mut to = layout.damaged().join(name);
    let mut number = 0;
    while fs::symlink_metadata(&to).is_ok() {
        number += 1;
        to = layout.damaged().join(format!("{name}.{number}"));
    }
    tracing::warn!(file = %path.display(), moved_to = %to.display(), why, "a file is no blob and is moved away");
    fs::rename(path, &to).map_err(|error| StoreError::io("move away", path, error))
}

/// Removes chains whose blobs are gone.
fn drop_chains(layout: &Layout, state: &State) -> Result<(), StoreError> {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let parent = layout.chains().join(algorithm.name());
        for two in files::list(&parent)? {
            let dir = parent.join(&two);
            if !dir.is_dir() {
                move_away(layout, &dir, &two, "chains are in folders")?;
                continue;
            }
            for name in files::list(&dir)? {
                let path = dir.join(&name);
                if path.is_dir() {
                    move_away(layout, &path, &name, "it is a folder")?;
                    continue;
                }
                let digest = format!("{}:{name}", algorithm.name()).parse::<Digest>().ok();
                if !digest.is_some_and(|digest| state.blobs.contains_key(&digest)) {
                    files::remove(&path)?;
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
                state
                    .partials
                    .insert((digest, map.size()), PartialEntry { open: false, charge, absent, closed });
            }
            Some(_) => files::remove(&path)?,
            None => tracing::warn!(path = %path.display(), "this is no partial blob and is left alone"),
        }
    }
    for (key, path) in lone_links {
        if !state.partials.contains_key(&key) {
            files::remove(&path)?;
        }
    }
    Ok(())
}
