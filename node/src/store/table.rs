//! Tables of typed records, for the rooms that keep something beside blobs.

use std::marker::PhantomData;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bincode::{Decode, Encode};

use super::codec::{self, MAX_RECORD_LEN};
use super::shared::Shared;
use super::{Store, StoreError};

/// The longest key of a table, in bytes.
pub const MAX_KEY_LEN: usize = 1024;

/// A table in the index: keys are bytes, in order, and values are records of at most 64 KiB.
///
/// A change can be seen at once and becomes durable within about half a second, or with [`Table::flush`]: that is
/// what a kill or a power cut may lose. Changes become durable in the order in which they were made.
///
/// A record that cannot be read, since it was written by another version of wherry or is damaged, counts as not there:
/// the log tells, and the next write to its key replaces it.
pub struct Table<V> {
    name: Arc<str>,
    version: u8,
    // Whether the log has told of a record that cannot be read; there may be thousands.
    told: Arc<AtomicBool>,
    tree: sled::Tree,
    // Keeps the index open.
    store: Store,
    records: PhantomData<fn() -> V>,
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        let (name, told) = (Arc::clone(&self.name), Arc::clone(&self.told));
        let (tree, store) = (self.tree.clone(), self.store.clone());
        Self { name, version: self.version, told, tree, store, records: PhantomData }
    }
}

impl<V: Encode + Decode<()>> Table<V> {
    pub(super) fn open(store: &Store, name: &str, version: u8) -> Result<Self, StoreError> {
        let tree = store.shared.index.table(name)?;
        let (name, told, store) = (name.into(), Arc::default(), store.clone());
        Ok(Self { name, version, told, tree, store, records: PhantomData })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.store.shared
    }

    fn failed(&self, what: &'static str) -> impl Fn(sled::Error) -> StoreError + '_ {
        move |error| self.shared().index.table_failed(what, &error)
    }

    fn decode(&self, bytes: &[u8]) -> Option<V> {
        let record = codec::decode(self.version, bytes);
        record
            .inspect_err(|why| {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        table = %self.name, %why,
                        "a record of the index was written by another version of wherry or is damaged: this one, and \
                         all others of the table that are like it, count as unknown until they are learned anew"
                    );
                }
            })
            .ok()
    }

    fn encode(&self, key: &[u8], value: &V) -> Result<Vec<u8>, StoreError> {
        let bytes = codec::encode(self.version, value)
            .map_err(|why| StoreError::Record { table: self.name.to_string(), why })?;
        for (found, limit) in [(key.len(), MAX_KEY_LEN), (bytes.len(), MAX_RECORD_LEN)] {
            if found > limit {
                return Err(StoreError::RecordTooLarge { table: self.name.to_string(), found, limit });
            }
        }
        Ok(bytes)
    }

    /// The record of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<V>, StoreError> {
        Ok(self.tree.get(key).map_err(self.failed("read"))?.and_then(|bytes| self.decode(&bytes)))
    }

    /// Writes a record, over the one that was there.
    pub fn put(&self, key: &[u8], value: &V) -> Result<(), StoreError> {
        let bytes = self.encode(key, value)?;
        self.tree.insert(key, bytes).map_err(self.failed("write"))?;
        self.shared().queue.touch();
        Ok(())
    }

    /// Changes a record in one step: `change` gets what is there and says what is to be there instead, `None`
    /// to leave things as they are. It may be called again if another thread was faster. Says whether anything
    /// was written.
    pub fn update(
        &self,
        key: &[u8],
        mut change: impl FnMut(Option<V>) -> Option<V>,
    ) -> Result<bool, StoreError> {
        loop {
            let old = self.tree.get(key).map_err(self.failed("read"))?;
            let record = old.as_ref().and_then(|bytes| self.decode(bytes));
            let Some(new) = change(record) else { return Ok(false) };
            let bytes = self.encode(key, &new)?;
            let swapped = self.tree.compare_and_swap(key, old, Some(bytes)).map_err(self.failed("write"))?;
            if swapped.is_ok() {
                self.shared().queue.touch();
                return Ok(true);
            }
        }
    }

    /// Removes a record; says whether there was one.
    pub fn remove(&self, key: &[u8]) -> Result<bool, StoreError> {
        let removed = self.tree.remove(key).map_err(self.failed("write"))?.is_some();
        if removed {
            self.shared().queue.touch();
        }
        Ok(removed)
    }

    /// Every record, in the order of their keys, each read when it is its turn: what changes meanwhile may be seen or not.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Vec<u8>, V), StoreError>> + '_ {
        self.range(b"", None)
    }

    /// The first `limit` records whose keys start with `prefix`, in the order of their keys.
    pub fn scan_prefix(&self, prefix: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, V)>, StoreError> {
        self.range(prefix, None).take(limit).collect()
    }

    /// The same, beginning behind the key `after`: for reading page by page.
    pub fn scan_after(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, V)>, StoreError> {
        self.range(prefix, after).take(limit).collect()
    }

    fn range<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<(Vec<u8>, V), StoreError>> + use<'a, V> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let items = self.tree.range::<&[u8], _>((from, Bound::Unbounded));
        let inside =
            items.take_while(move |item| item.as_ref().map_or(true, |(key, _)| key.starts_with(prefix)));
        inside.filter_map(|item| match item {
            Ok((key, value)) => Some(Ok((key.to_vec(), self.decode(&value)?))),
            Err(error) => Some(Err(self.failed("read")(error))),
        })
    }

    /// Waits until everything written so far, to this table or any other, is durable.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.shared().queue.sync()
    }
}

impl<V> std::fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "table {}", self.name)
    }
}
