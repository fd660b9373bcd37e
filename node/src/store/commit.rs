//! Makes what entered the store durable, many blobs at a time.
//!
//! A finished blob can be read at once, but its bytes, its name and its record reach the disk on one thread:
//! what piles up while it works is its next batch, so a thousand small blobs cost a few rounds of syncs. A blob
//! is recorded only after its bytes are durable. Until then a power cut may lose it, or leave a file that is not
//! in the index; the next start hashes such a file before it believes it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use wherry_proto::Digest;

use super::shared::{Shared, lock};
use super::{StoreError, files};

/// How many finished blobs may wait to become durable; whoever finishes one more waits.
const MAX_WAITING: usize = 1024;

/// How long changes of the index alone wait for company before they are flushed.
const FLUSH_DELAY: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    work: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct Waiting {
    blobs: Vec<Digest>,
    /// The index has changes that are not flushed.
    touched: bool,
    /// Somebody waits in [`Queue::sync`].
    urgent: bool,
    stop: bool,
    /// Changes handed in, and how many of them are durable.
    submitted: u64,
    committed: u64,
    /// Why the last round failed.
    failure: Option<String>,
}

impl Queue {
    /// Hands in a blob that is held and not yet durable.
    pub(super) fn submit(&self, digest: Digest) {
        let mut waiting = lock(&self.waiting);
        while waiting.blobs.len() >= MAX_WAITING && !waiting.stop {
            waiting = self.done.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.blobs.push(digest);
        waiting.submitted += 1;
        self.work.notify_one();
    }

    /// Tells that the index has changed.
    pub(super) fn touch(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.submitted += 1;
        if !waiting.touched {
            waiting.touched = true;
            self.work.notify_one();
        }
    }

    /// Waits until all that was handed in before is durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let mut waiting = lock(&self.waiting);
        let goal = waiting.submitted;
        waiting.urgent = true;
        self.work.notify_one();
        while waiting.committed < goal {
            waiting = self.done.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        match &waiting.failure {
            Some(why) => Err(StoreError::Commit(why.clone())),
            None => Ok(()),
        }
    }

    /// Whether all that was handed in is durable.
    pub(super) fn is_idle(&self) -> bool {
        let waiting = lock(&self.waiting);
        waiting.committed == waiting.submitted && waiting.failure.is_none()
    }

    /// Lets [`run`] end once nothing waits.
    pub(super) fn stop(&self) {
        lock(&self.waiting).stop = true;
        self.work.notify_one();
    }

    /// Waits for work; `None` when it is time to end.
    fn next(&self) -> Option<(Vec<Digest>, u64)> {
        let mut waiting = lock(&self.waiting);
        loop {
            let ready = !waiting.blobs.is_empty() || (waiting.touched && (waiting.urgent || waiting.stop));
            if ready {
                waiting.touched = false;
                waiting.urgent = false;
                return Some((std::mem::take(&mut waiting.blobs), waiting.submitted));
            }
            if waiting.stop {
                return None;
            }
            if waiting.touched {
                let (guard, timeout) =
                    self.work.wait_timeout(waiting, FLUSH_DELAY).unwrap_or_else(PoisonError::into_inner);
                waiting = guard;
                waiting.urgent |= timeout.timed_out();
            } else {
                waiting = self.work.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn finished(&self, up_to: u64, result: Result<(), StoreError>) {
        let mut waiting = lock(&self.waiting);
        waiting.committed = up_to;
        waiting.failure = result.err().map(|error| {
            tracing::error!(%error, "what entered the store could not be made durable");
            error.to_string()
        });
        self.done.notify_all();
    }
}

/// The committer's thread.
pub(super) fn run(shared: &Arc<Shared>) {
    while let Some((blobs, up_to)) = shared.queue.next() {
        let result = commit(shared, &blobs);
        shared.queue.finished(up_to, result);
    }
}

/// From how many blobs on the whole file system is synced at once: that costs about as much as syncing a few
/// files, of which each waits for the file system's journal.
const SYNC_ALL_FROM: usize = 8;

/// Makes these blobs durable, then their records, then everything else that the index took in.
fn commit(shared: &Shared, blobs: &[Digest]) -> Result<(), StoreError> {
    if blobs.len() >= SYNC_ALL_FROM {
        files::sync_all(shared.layout.root())?;
    } else {
        sync_each(shared, blobs)?;
    }
    {
        // Nothing is removed between the look at the map and the record.
        let _files = lock(&shared.files);
        let changes: Vec<_> = {
            let state = lock(&shared.state);
            let held = |digest: &Digest| Some((*digest, Some(state.blobs.get(digest)?.record())));
            blobs.iter().filter_map(held).collect()
        };
        shared.index.apply(&changes)?;
    }
    shared.index.flush()
}

fn sync_each(shared: &Shared, blobs: &[Digest]) -> Result<(), StoreError> {
    let mut dirs = BTreeSet::new();
    for digest in blobs {
        let path = shared.layout.blob(digest);
        if let Err(error) = files::sync_file(&path) {
            // Evicted meanwhile, or the disk cannot keep it: either way it is not recorded.
            shared.lose(digest, &error.to_string());
            continue;
        }
        dirs.extend(path.ancestors().skip(1).take(3).map(Path::to_owned));
    }
    dirs.iter().try_for_each(|dir| files::sync_dir(dir))
}
