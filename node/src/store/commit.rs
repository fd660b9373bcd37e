//! Makes what entered the store durable, many blobs at a time.
//!
//! A finished blob can be read at once, but its bytes, its name and its record reach the disk on one thread:
//! what piles up while it works is its next batch, so a thousand small blobs cost a few rounds of syncs. A blob
//! is recorded only after its bytes are durable. Until then a power cut may lose it, or leave a file that is not
//! in the index; the next start hashes such a file before it believes it.

use std::collections::BTreeSet;
use std::io::ErrorKind;
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
    /// What a failed round leaves to the next one.
    again: Vec<Digest>,
    /// Why the last round failed; a round has all that the failed ones before it had.
    failure: Option<String>,
    /// Something will not be tried again, so the failure stays; the next start hashes it.
    gave_up: bool,
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
                let mut blobs = std::mem::take(&mut waiting.again);
                blobs.append(&mut waiting.blobs);
                return Some((blobs, waiting.submitted));
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

    fn finished(&self, up_to: u64, result: Result<(), Undone>) {
        let mut waiting = lock(&self.waiting);
        waiting.committed = up_to;
        match result {
            Ok(()) if waiting.gave_up => {}
            Ok(()) => waiting.failure = None,
            Err(Undone { blobs, error }) => {
                tracing::error!(%error, "what entered the store could not be made durable");
                waiting.failure = Some(error.to_string());
                if waiting.stop || blobs.len() > MAX_WAITING {
                    waiting.gave_up = true;
                } else {
                    // Counted as handed in anew, so that a sync waits for it; tried after FLUSH_DELAY.
                    waiting.again = blobs;
                    waiting.touched = true;
                    waiting.submitted += 1;
                }
            }
        }
        self.done.notify_all();
    }
}

/// What a round could not make durable.
struct Undone {
    blobs: Vec<Digest>,
    error: StoreError,
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
fn commit(shared: &Shared, blobs: &[Digest]) -> Result<(), Undone> {
    let whole = |error| Undone { blobs: blobs.to_vec(), error };
    // The system tells of a failed write once, and not of which file; the files themselves tell that.
    let all = blobs.len() >= SYNC_ALL_FROM && files::sync_all(shared.layout.root()).is_ok();
    let undone = if all { None } else { sync_each(shared, blobs).map_err(whole)? };
    {
        // Nothing is removed between the look at the map and the record.
        let _files = lock(&shared.files);
        let changes: Vec<_> = {
            let state = lock(&shared.state);
            let held = |digest: &Digest| Some((*digest, Some(state.blobs.get(digest)?.record())));
            let durable =
                |digest: &&Digest| undone.as_ref().is_none_or(|undone| !undone.blobs.contains(digest));
            blobs.iter().filter(durable).filter_map(held).collect()
        };
        shared.index.apply(&changes).map_err(whole)?;
    }
    shared.index.flush().map_err(whole)?;
    undone.map_or(Ok(()), Err)
}

/// Makes these blobs durable one by one; returns those for which that may work another time.
fn sync_each(shared: &Shared, blobs: &[Digest]) -> Result<Option<Undone>, StoreError> {
    let mut undone: Option<Undone> = None;
    let mut dirs = BTreeSet::new();
    for digest in blobs {
        let path = shared.layout.blob(digest);
        if let Err(error) = files::sync_file(&path) {
            if is_lost(&error) {
                // Evicted meanwhile, or the disk cannot keep it: either way it is not recorded.
                shared.lose(digest, &error.to_string());
            } else {
                undone.get_or_insert(Undone { blobs: Vec::new(), error }).blobs.push(*digest);
            }
            continue;
        }
        dirs.extend(path.ancestors().skip(1).take(3).map(Path::to_owned));
    }
    dirs.iter().try_for_each(|dir| files::sync_dir(dir))?;
    Ok(undone)
}

/// Whether an error of syncing a file means that its bytes are not there. A full disk does: the system tells of
/// bytes that it could not write out only once, so a second try would seem to succeed. That there are too many
/// open files or too little memory, for one, does not.
fn is_lost(error: &StoreError) -> bool {
    match error {
        StoreError::NoSpace { .. } => true,
        StoreError::Io { source, .. } => {
            source.kind() == ErrorKind::NotFound
                || source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    fn io(error: std::io::Error) -> StoreError {
        StoreError::Io { what: "sync", path: "x".into(), source: error }
    }

    #[test]
    fn only_bytes_that_are_not_there_lose_a_blob() {
        use rustix::io::Errno;
        for errno in [Errno::NOENT, Errno::IO] {
            assert!(is_lost(&io(errno.into())), "{errno}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR, Errno::ACCESS] {
            assert!(!is_lost(&io(errno.into())), "{errno}");
        }
    }

    #[test]
    fn a_failure_lasts_until_what_failed_is_durable() {
        let queue = Queue::default();
        let (first, second) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let failed = |blobs| Err(Undone { blobs, error: io(rustix::io::Errno::MFILE.into()) });
        queue.submit(first);
        let (blobs, up_to) = queue.next().unwrap();
        queue.finished(up_to, failed(blobs));
        assert!(!queue.is_idle());
        // The next round has it again, and only with it done there is no failure.
        queue.submit(second);
        let (blobs, up_to) = queue.next().unwrap();
        assert_eq!(blobs, [first, second]);
        queue.finished(up_to, Ok(()));
        assert!(queue.is_idle());
        // What fails at the end is not tried for ever, and is not forgotten.
        queue.submit(first);
        let (blobs, up_to) = queue.next().unwrap();
        queue.stop();
        queue.finished(up_to, failed(blobs));
        assert!(queue.next().is_none());
        queue.touch();
        let (_, up_to) = queue.next().unwrap();
        queue.finished(up_to, Ok(()));
        assert!(!queue.is_idle());
        assert!(queue.sync().is_err());
    }
}
