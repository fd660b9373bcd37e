//! The links of a partial blob: one record of fixed length for each chunk, at a fixed place in a file.
//!
//! A record is written with one `write` after its chunk's bytes. It is never believed when it is read again:
//! the chunk is hashed from the recorded state, so a record that is torn, stale or older than its bytes is
//! dropped, and nothing needs to be synced chunk by chunk.

use wherry_proto::{Algorithm, ChunkIndex, ChunkMap, Digest, End, Link, State};

const EMPTY: u8 = 0;
const LINKED: u8 = 1;
/// Only in memory.
const BUSY: u8 = 2;

fn record_len(algorithm: Algorithm) -> usize {
    1 + 2 * algorithm.output_len()
}

/// Bytes of the records of all chunks.
pub(super) fn table_len(algorithm: Algorithm, map: ChunkMap) -> u64 {
    u64::from(map.count()) * record_len(algorithm) as u64
}

/// The records of one blob, in memory as they are in the file: up to 8.5 MiB for the largest blob.
pub(super) struct LinkTable {
    algorithm: Algorithm,
    map: ChunkMap,
    bytes: Vec<u8>,
}

impl LinkTable {
    pub(super) fn empty(algorithm: Algorithm, map: ChunkMap) -> Self {
        Self { algorithm, map, bytes: vec![0; table_len(algorithm, map) as usize] }
    }

    /// From a file's bytes; what is missing at the end is empty, what is too much is not looked at.
    pub(super) fn from_bytes(algorithm: Algorithm, map: ChunkMap, mut bytes: Vec<u8>) -> Self {
        bytes.resize(table_len(algorithm, map) as usize, 0);
        for record in bytes.chunks_exact_mut(record_len(algorithm)) {
            if record[0] != LINKED {
                record[0] = EMPTY;
            }
        }
        Self { algorithm, map, bytes }
    }

    /// Where a chunk's record is in the file.
    pub(super) fn offset(&self, index: ChunkIndex) -> u64 {
        u64::from(index.get()) * record_len(self.algorithm) as u64
    }

    fn record(&self, index: ChunkIndex) -> &[u8] {
        let len = record_len(self.algorithm);
        &self.bytes[index.get() as usize * len..][..len]
    }

    fn record_mut(&mut self, index: ChunkIndex) -> &mut [u8] {
        let len = record_len(self.algorithm);
        &mut self.bytes[index.get() as usize * len..][..len]
    }

    /// The link of a chunk, if it has one.
    pub(super) fn get(&self, index: ChunkIndex) -> Option<Link> {
        let (flag, states) = self.record(index).split_first()?;
        if *flag != LINKED {
            return None;
        }
        let (from, to) = states.split_at(self.algorithm.output_len());
        let to = if index == self.map.last() {
            End::Digest(Digest::from_bytes(self.algorithm, to)?)
        } else {
            End::State(State::from_bytes(self.algorithm, to)?)
        };
        Some(Link { from: State::from_bytes(self.algorithm, from)?, to })
    }

    /// Whether no chunk has a link.
    pub(super) fn is_empty(&self) -> bool {
        self.map.iter().all(|index| self.record(index)[0] == EMPTY)
    }

    pub(super) fn links(&self) -> Vec<Option<Link>> {
        self.map.iter().map(|index| self.get(index)).collect()
    }

    /// The record of a link as the file has it; `None` if the link cannot be this chunk's.
    pub(super) fn encode(&self, index: ChunkIndex, link: &Link) -> Option<Vec<u8>> {
        let to = match link.to {
            End::State(state) if index != self.map.last() => state.to_bytes(),
            End::Digest(digest) if index == self.map.last() => digest.as_bytes().to_vec(),
            _ => return None,
        };
        let mut record = vec![LINKED];
        record.extend(link.from.to_bytes());
        record.extend(to);
        (record.len() == record_len(self.algorithm)).then_some(record)
    }

    pub(super) fn is_busy(&self, index: ChunkIndex) -> bool {
        self.record(index)[0] == BUSY
    }

    /// The chunk's bytes are about to change: it has no link until [`LinkTable::set`].
    pub(super) fn set_busy(&mut self, index: ChunkIndex) {
        self.record_mut(index)[0] = BUSY;
    }

    pub(super) fn clear(&mut self, index: ChunkIndex) {
        self.record_mut(index).fill(0);
    }

    /// Takes over a record from [`LinkTable::encode`].
    pub(super) fn set(&mut self, index: ChunkIndex, record: &[u8]) {
        self.record_mut(index).copy_from_slice(record);
    }
}
