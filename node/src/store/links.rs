//! The links of a partial blob: one record of fixed length for each chunk, at a fixed place in a file.
//!
//! A record is written with one `write` after its chunk's bytes. It is never believed when it is read again:
//! the chunk is hashed from the recorded state, so a record that is torn, stale or older than its bytes is
//! dropped, and nothing needs to be synced chunk by chunk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use wherry_proto::{Algorithm, ChunkIndex, ChunkMap, Digest, End, Link, State, StateChain};

const EMPTY: u8 = 0;
const LINKED: u8 = 1;
/// The chunk is not here, and this is the link that it must have: the blob was verified here before it rotted.
const KNOWN: u8 = 2;
/// Only in memory.
const BUSY: u8 = 3;

fn record_len(algorithm: Algorithm) -> usize {
    1 + 2 * algorithm.output_len()
}

/// Bytes of the records of all chunks.
pub(super) fn table_len(algorithm: Algorithm, map: ChunkMap) -> u64 {
    u64::from(map.count()) * record_len(algorithm) as u64
}

fn offset(algorithm: Algorithm, index: ChunkIndex) -> u64 {
    u64::from(index.get()) * record_len(algorithm) as u64
}

fn decode(algorithm: Algorithm, map: ChunkMap, index: ChunkIndex, record: &[u8]) -> Option<Link> {
    let (_, states) = record.split_first()?;
    let (from, to) = states.split_at_checked(algorithm.output_len())?;
    let to = if index == map.last() {
        End::Digest(Digest::from_bytes(algorithm, to)?)
    } else {
        End::State(State::from_bytes(algorithm, to)?)
    };
    Some(Link { from: State::from_bytes(algorithm, from)?, to })
}

/// The link of one chunk, if it is here, from the file of the records.
pub(super) fn read(
    file: &File,
    algorithm: Algorithm,
    map: ChunkMap,
    index: ChunkIndex,
) -> io::Result<Option<Link>> {
    let mut record = vec![0; record_len(algorithm)];
    file.read_exact_at(&mut record, offset(algorithm, index))?;
    Ok(if record[0] == LINKED { decode(algorithm, map, index, &record) } else { None })
}

/// Writes down that a chunk of a blob that was verified here before is not here any more.
pub(super) fn forget(file: &File, algorithm: Algorithm, index: ChunkIndex) -> io::Result<()> {
    file.write_all_at(&[KNOWN], offset(algorithm, index))
}

/// The records of one blob, in memory as they are in the file: up to 8.5 MiB for the largest blob.
pub(super) struct LinkTable {
    algorithm: Algorithm,
    map: ChunkMap,
    bytes: Vec<u8>,
    // The chain of a blob that was verified here before: what is cleared stays known.
    chain: Option<Arc<StateChain>>,
}

impl LinkTable {
    pub(super) fn empty(algorithm: Algorithm, map: ChunkMap) -> Self {
        Self { algorithm, map, bytes: vec![0; table_len(algorithm, map) as usize], chain: None }
    }

    /// The records of a blob that was verified, of which some chunks have rotted since. They count as here until they are
    /// hashed, but for those behind the end of its file, which has `len` bytes now, and the one from which on the chain
    /// that its bytes were found to have is another: what comes behind that may be right.
    pub(super) fn of_damaged(chain: &StateChain, found: Option<&StateChain>, len: u64) -> Self {
        let map = chain.map();
        let mut table = Self::empty(chain.digest().algorithm(), map);
        let found = found.filter(|found| found.map() == map);
        let wrong = found.and_then(|found| map.iter().find(|at| found.link(*at).to != chain.link(*at).to));
        for index in map.iter() {
            if let Some(record) = table.encode(index, &chain.link(index)) {
                table.set(index, &record);
            }
            if Some(index) == wrong || map.offset(index) + u64::from(map.len(index)) > len {
                table.record_mut(index)[0] = KNOWN;
            }
        }
        table
    }

    /// From a file's bytes; what is missing at the end is empty, what is too much is not looked at.
    pub(super) fn from_bytes(algorithm: Algorithm, map: ChunkMap, mut bytes: Vec<u8>) -> Self {
        bytes.resize(table_len(algorithm, map) as usize, 0);
        for record in bytes.chunks_exact_mut(record_len(algorithm)) {
            if !matches!(record[0], LINKED | KNOWN) {
                record[0] = EMPTY;
            }
        }
        Self { algorithm, map, bytes, chain: None }
    }

    /// The blob with this digest was verified here once: if the records still form its chain, that is known from now on.
    pub(super) fn was_verified(&mut self, digest: Digest) {
        let links: Option<Vec<Link>> = self.map.iter().map(|index| self.expected(index)).collect();
        self.chain = links.and_then(|links| StateChain::from_links(digest, self.map, &links)).map(Arc::new);
    }

    /// The chain of the blob, if that was verified here once.
    pub(super) fn chain(&self) -> Option<&Arc<StateChain>> {
        self.chain.as_ref()
    }

    /// The bytes of the file.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where a chunk's record is in the file.
    pub(super) fn offset(&self, index: ChunkIndex) -> u64 {
        offset(self.algorithm, index)
    }

    fn record(&self, index: ChunkIndex) -> &[u8] {
        let len = record_len(self.algorithm);
        &self.bytes[index.get() as usize * len..][..len]
    }

    fn record_mut(&mut self, index: ChunkIndex) -> &mut [u8] {
        let len = record_len(self.algorithm);
        &mut self.bytes[index.get() as usize * len..][..len]
    }

    /// The link of a chunk, if it is here.
    pub(super) fn get(&self, index: ChunkIndex) -> Option<Link> {
        if self.record(index)[0] == LINKED { self.expected(index) } else { None }
    }

    /// The link that a chunk has, or must have.
    fn expected(&self, index: ChunkIndex) -> Option<Link> {
        let record = self.record(index);
        if matches!(record[0], LINKED | KNOWN) {
            decode(self.algorithm, self.map, index, record)
        } else {
            None
        }
    }

    /// Whether no chunk is here.
    pub(super) fn is_empty(&self) -> bool {
        self.map.iter().all(|index| matches!(self.record(index)[0], EMPTY | KNOWN))
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

    /// The chunk is not here. Returns the first byte of its record, the only one that says so in the file.
    pub(super) fn clear(&mut self, index: ChunkIndex) -> u8 {
        let known = self.chain.as_ref().map(|chain| chain.link(index));
        match known.and_then(|link| self.encode(index, &link)) {
            Some(record) => {
                self.set(index, &record);
                self.record_mut(index)[0] = KNOWN;
                KNOWN
            }
            None => {
                self.record_mut(index).fill(0);
                EMPTY
            }
        }
    }

    /// Takes over a record from [`LinkTable::encode`].
    pub(super) fn set(&mut self, index: ChunkIndex, record: &[u8]) {
        self.record_mut(index).copy_from_slice(record);
    }
}
