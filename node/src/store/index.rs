//! The index: which blobs are held, what is pinned, and the tables of other rooms.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use wherry_proto::Digest;

use super::files::{self, Layout};
use super::{StoreError, codec};

/// Bytes that sled may cache. Blobs and pins are in memory anyway, and tables are small.
const CACHE: u64 = 4 << 20;

/// The version of the layouts of blobs and pins. It goes up when either changes; what has another one is not read.
const VERSION: u8 = 1;

/// What is recorded of a held blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(super) struct BlobRecord {
    /// Its length in bytes.
    pub(super) size: u64,
    /// When it was last used, in ticks of the store's own clock.
    pub(super) used: u64,
    /// SHA-256 of the file with its state chain; none if the blob has one chunk and so no file.
    pub(super) chain: Option<[u8; 32]>,
}

pub(super) struct Index {
    dir: PathBuf,
    db: sled::Db,
    blobs: sled::Tree,
    pins: sled::Tree,
    damaged: sled::Tree,
}

/// For how long an index that was just closed is waited for, and how long it is left alone between two looks.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// Whether another handle holds sled's lock, for which it has no kind of error.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

impl Index {
    /// Opens the index. One that is damaged is moved away, over the one before, and begun anew: blobs are then recorded
    /// again from their files, and names and pins are lost.
    pub(super) fn open(layout: &Layout) -> Result<Self, StoreError> {
        match Self::try_open(layout.index()) {
            Ok(index) => Ok(index),
            Err((dir, error @ (sled::Error::Corruption { .. } | sled::Error::ReportableBug(_)))) => {
                let away = layout.bad_index();
                tracing::warn!(
                    index = %dir.display(), moved_to = %away.display(), %error,
                    "the index is damaged and is made anew: blobs are found again, tags and pins are lost"
                );
                files::empty_dir(&away)?;
                fs::rename(&dir, &away).map_err(|error| StoreError::io("move away", &dir, error))?;
                Self::try_open(dir).map_err(|(dir, error)| failed(dir, "open", &error))
            }
            Err((dir, error)) => Err(failed(dir, "open", &error)),
        }
    }

    fn try_open(dir: PathBuf) -> Result<Self, (PathBuf, sled::Error)> {
        let open = || {
            let db = sled::Config::new()
                .path(&dir)
                .cache_capacity(CACHE)
                .mode(sled::Mode::LowSpace)
                // The committer flushes when there is something to flush: an idle store has no timer.
                .flush_every_ms(None)
                .open()?;
            Ok((db.open_tree("blobs")?, db.open_tree("pins")?, db.open_tree("damaged")?, db))
        };
        let since = Instant::now();
        loop {
            match open() {
                Ok((blobs, pins, damaged, db)) => return Ok(Self { dir, db, blobs, pins, damaged }),
                // The folder's own lock says that no other store is open: threads of sled's that write for one that was
                // closed hold this one a moment longer.
                Err(error) if is_locked(&error) && since.elapsed() < PATIENCE => thread::sleep(PAUSE),
                Err(error) => return Err((dir, error)),
            }
        }
    }

    fn failed(&self, what: &'static str) -> impl Fn(sled::Error) -> StoreError + use<> {
        let dir = self.dir.clone();
        move |error| failed(dir.clone(), what, &error)
    }

    /// Every recorded blob. A record that cannot be read is left out: its file is then found as unrecorded.
    pub(super) fn blobs(&self) -> Result<Vec<(Digest, BlobRecord)>, StoreError> {
        let mut found = Vec::new();
        for item in &self.blobs {
            let (key, value) = item.map_err(self.failed("read"))?;
            match (codec::decode(VERSION, &key), codec::decode(VERSION, &value)) {
                (Ok(digest), Ok(record)) => found.push((digest, record)),
                (Err(why), _) | (_, Err(why)) => {
                    tracing::warn!(%why, "a record of the blob index cannot be read and is dropped");
                    self.blobs.remove(&key).map_err(self.failed("write"))?;
                }
            }
        }
        Ok(found)
    }

    /// Records blobs (`Some`) and forgets them (`None`), all or nothing.
    pub(super) fn apply(&self, changes: &[(Digest, Option<BlobRecord>)]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (digest, record) in changes {
            let key = encode("blobs", digest)?;
            match record {
                Some(record) => batch.insert(key, encode("blobs", record)?),
                None => batch.remove(key),
            }
        }
        self.blobs.apply_batch(batch).map_err(self.failed("write"))
    }

    /// Every blob that was found damaged and is not whole again, with its length.
    pub(super) fn damaged(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let mut found = Vec::new();
        for item in &self.damaged {
            let (key, value) = item.map_err(self.failed("read"))?;
            // What cannot be read is fetched like anything that is not here.
            if let (Ok(digest), Ok(size)) = (codec::decode(VERSION, &key), codec::decode(VERSION, &value)) {
                found.push((digest, size));
            }
        }
        Ok(found)
    }

    /// Records that a blob of this length is damaged, or, with `None`, that it is not.
    pub(super) fn note_damaged(&self, digest: &Digest, size: Option<u64>) -> Result<(), StoreError> {
        let key = encode("damaged", digest)?;
        let done = match size {
            Some(size) => self.damaged.insert(key, encode("damaged", &size)?),
            None => self.damaged.remove(key),
        };
        done.map(drop).map_err(self.failed("write"))
    }

    /// Every pin: its name and what it keeps.
    pub(super) fn pins(&self) -> Result<Vec<(String, Digest)>, StoreError> {
        let mut found = Vec::new();
        for item in &self.pins {
            let (_, value) = item.map_err(self.failed("read"))?;
            match codec::decode::<(String, Digest)>(VERSION, &value) {
                Ok(pin) => found.push(pin),
                Err(why) => tracing::warn!(%why, "a pin cannot be read and does not hold"),
            }
        }
        Ok(found)
    }

    /// Records a pin; says whether it is new.
    pub(super) fn pin(&self, name: &str, digest: &Digest) -> Result<bool, StoreError> {
        let value = encode("pins", &(name, digest))?;
        let old = self.pins.insert(pin_key(name, digest)?, value).map_err(self.failed("write"))?;
        Ok(old.is_none())
    }

    /// Removes a pin; says whether it was there.
    pub(super) fn unpin(&self, name: &str, digest: &Digest) -> Result<bool, StoreError> {
        let old = self.pins.remove(pin_key(name, digest)?).map_err(self.failed("write"))?;
        Ok(old.is_some())
    }

    /// What a name pins.
    pub(super) fn pinned_by(&self, name: &str) -> Result<Vec<Digest>, StoreError> {
        let mut prefix = name.as_bytes().to_vec();
        prefix.push(0);
        let mut found = Vec::new();
        for item in self.pins.scan_prefix(prefix) {
            let (_, value) = item.map_err(self.failed("read"))?;
            if let Ok((_, digest)) = codec::decode::<(String, Digest)>(VERSION, &value) {
                found.push(digest);
            }
        }
        Ok(found)
    }

    /// The tree of a table.
    pub(super) fn table(&self, name: &str) -> Result<sled::Tree, StoreError> {
        self.db.open_tree(format!("table:{name}")).map_err(self.failed("open a table"))
    }

    /// Makes all that was written so far durable.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.db.flush().map(|_| ()).map_err(self.failed("write to the disk"))
    }

    pub(super) fn table_failed(&self, what: &'static str, error: &sled::Error) -> StoreError {
        failed(self.dir.clone(), what, error)
    }
}

fn pin_key(name: &str, digest: &Digest) -> Result<Vec<u8>, StoreError> {
    let mut key = name.as_bytes().to_vec();
    key.push(0);
    key.extend(encode("pins", digest)?);
    Ok(key)
}

fn failed(dir: PathBuf, what: &'static str, error: &sled::Error) -> StoreError {
    StoreError::Index { dir, what, why: error.to_string() }
}

fn encode<V: Encode>(table: &str, value: &V) -> Result<Vec<u8>, StoreError> {
    codec::encode(VERSION, value).map_err(|why| StoreError::Record { table: table.to_owned(), why })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    #[test]
    fn a_layout_does_not_change_without_a_new_version() {
        let digest = Digest::sha256(b"blob");
        let blob = encode("blobs", &BlobRecord { size: 1, used: 2, chain: Some([3; 32]) }).unwrap();
        let records = [blob, encode("blobs", &digest).unwrap(), encode("pins", &("name", digest)).unwrap()];
        let written = records.map(|bytes| (bytes[0], bytes.len(), Digest::sha256(&bytes).hex()));
        let as_before = [
            (1, 50, "2bcd8c2b290152b00fb76d459741b8f10b20775162d91e1d9bbdf0ef97426bf6".to_owned()),
            (1, 34, "8f6fe952e2069e26dfcab6ced7ad110b9326b2b757231fb37f2b179bdbe226e0".to_owned()),
            (1, 46, "4428db40fdd856899abdc5124ec8c9e37e2e881878eb331dafe6dddd1db54b8f".to_owned()),
        ];
        assert_eq!(written, as_before, "raise the version, and only then write this anew");
    }
}
