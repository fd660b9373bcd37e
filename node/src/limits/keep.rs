//! What of the limits outlives a restart.

use bincode::{Decode, Encode};
use wherry_proto::{NodeId, PauseRecord};

use super::book::Spent;
use crate::store::{Store, StoreError, Table};

/// The table's name in the index, and the version of its records: it goes up with every change of their layout.
const TABLE: &str = "wan";
const VERSION: u8 = 1;

/// The one key of both tables: there is one site.
const KEY: &[u8] = b"site";

#[derive(Encode, Decode)]
struct SpentRecord {
    day: u32,
    nodes: Vec<(NodeId, u64)>,
    used_up: Option<u64>,
}

/// The tables of the index that hold it. All calls wait for the disk.
pub(super) struct Keep {
    spent: Table<SpentRecord>,
    pause: Table<PauseRecord>,
}

impl Keep {
    pub(super) fn open(store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            spent: store.table(&format!("{TABLE}-spent"), VERSION)?,
            pause: store.table(&format!("{TABLE}-pause"), VERSION)?,
        })
    }

    pub(super) fn spent(&self) -> Result<Spent, StoreError> {
        let record = self.spent.get(KEY)?;
        Ok(record.map_or_else(Spent::default, |SpentRecord { day, nodes, used_up }| Spent {
            day,
            nodes: nodes.into_iter().collect(),
            used_up,
        }))
    }

    pub(super) fn pause(&self) -> Result<Option<PauseRecord>, StoreError> {
        self.pause.get(KEY)
    }

    /// Durable when it returns, or within about half a second if that is soon enough.
    pub(super) fn put_spent(&self, spent: &Spent, at_once: bool) -> Result<(), StoreError> {
        let Spent { day, nodes, used_up } = spent.clone();
        self.spent.put(KEY, &SpentRecord { day, nodes: nodes.into_iter().collect(), used_up })?;
        if at_once { self.spent.flush() } else { Ok(()) }
    }

    /// Durable when it returns: whoever was told that the site pauses may cut the power now.
    pub(super) fn put_pause(&self, record: &PauseRecord) -> Result<(), StoreError> {
        self.pause.put(KEY, record)?;
        self.pause.flush()
    }
}
