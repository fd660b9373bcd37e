//! How a blob is cut: lengths, indices that cannot be out of range, and sets of chunks.

use std::fmt;

use crate::Run;

/// The largest blob that wherry carries, in bytes (64 GiB): it bounds every chain and chunk set.
pub const MAX_BLOB_LEN: u64 = 64 << 30;

/// The longest chunk, in bytes: it bounds frames and buffers.
pub const MAX_CHUNK_LEN: u32 = 512 << 10;

/// Up to which blob length each chunk length serves. Every node must agree, so length alone decides.
///
/// Short chunks spread faster in a swarm and longer ones keep chains small; the steps follow a simulation of
/// both, and 512 KiB still crosses a 512 kbit/s link in eight seconds, within the patience of registry clients.
const CHUNK_LEN_STEPS: [(u64, u32); 4] =
    [(8 << 20, 32 << 10), (64 << 20, 64 << 10), (256 << 20, 128 << 10), (512 << 20, 256 << 10)];

/// How one blob is cut into chunks. Only this mints a [`ChunkIndex`], so an index out of range cannot exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChunkMap {
    size: u64,
    chunk_len: u32,
    count: u32,
}

/// A blob's length is beyond [`MAX_BLOB_LEN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a blob of {0} bytes is too large: wherry carries up to {MAX_BLOB_LEN}")]
pub struct TooLarge(pub u64);

/// The number of a chunk in its blob, always within the [`ChunkMap`] that made it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkIndex(u32);

impl ChunkIndex {
    /// The position in the blob's list of chunks, from 0.
    pub const fn get(self) -> u32 {
        self.0
    }

    pub(crate) const fn usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ChunkMap {
    /// How the empty blob is cut: into one empty chunk.
    pub(crate) const EMPTY: Self = Self { size: 0, chunk_len: CHUNK_LEN_STEPS[0].1, count: 1 };

    /// Cuts a blob of `size` bytes. An empty blob has one empty chunk.
    pub fn new(size: u64) -> Result<Self, TooLarge> {
        if size > MAX_BLOB_LEN {
            return Err(TooLarge(size));
        }
        let chunk_len = CHUNK_LEN_STEPS
            .iter()
            .find(|(up_to, _)| size <= *up_to)
            .map_or(MAX_CHUNK_LEN, |(_, chunk_len)| *chunk_len);
        // At most 64 GiB / 512 KiB, so it fits.
        let count = size.div_ceil(u64::from(chunk_len)).max(1) as u32;
        Ok(Self { size, chunk_len, count })
    }

    /// The blob's length in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// How many chunks there are, at least one.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The length in bytes of every chunk but the last.
    pub const fn chunk_len(&self) -> u32 {
        self.chunk_len
    }

    /// The chunk of this number, if the blob has one.
    pub fn index(&self, number: u32) -> Option<ChunkIndex> {
        (number < self.count).then_some(ChunkIndex(number))
    }

    /// The first chunk.
    pub const fn first(&self) -> ChunkIndex {
        ChunkIndex(0)
    }

    /// The last chunk.
    pub const fn last(&self) -> ChunkIndex {
        ChunkIndex(self.count - 1)
    }

    /// The chunk after this one.
    pub fn next(&self, index: ChunkIndex) -> Option<ChunkIndex> {
        self.index(index.0.checked_add(1)?)
    }

    /// The chunk that holds the byte at `offset`, if the blob has that byte.
    pub fn at(&self, offset: u64) -> Option<ChunkIndex> {
        (offset < self.size).then(|| ChunkIndex((offset / u64::from(self.chunk_len)) as u32))
    }

    /// Where a chunk starts in the blob.
    pub fn offset(&self, index: ChunkIndex) -> u64 {
        u64::from(index.0) * u64::from(self.chunk_len)
    }

    /// How many bytes a chunk has.
    pub fn len(&self, index: ChunkIndex) -> u32 {
        let rest = self.size - self.offset(index).min(self.size);
        // The minimum of both is at most the u32 `chunk_len`.
        rest.min(u64::from(self.chunk_len)) as u32
    }

    /// All chunks, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = ChunkIndex> + ExactSizeIterator + use<> {
        (0..self.count).map(ChunkIndex)
    }
}

/// A set of chunks of one blob: one bit a chunk.
#[derive(Clone, PartialEq, Eq)]
pub struct ChunkSet {
    map: ChunkMap,
    words: Vec<u64>,
    len: u32,
}

impl ChunkSet {
    /// The set without any chunk.
    pub fn empty(map: ChunkMap) -> Self {
        Self { map, words: vec![0; (map.count as usize).div_ceil(64)], len: 0 }
    }

    /// How the blob is cut that these are chunks of.
    pub const fn map(&self) -> ChunkMap {
        self.map
    }

    /// How many chunks are in the set.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether no chunk is in the set.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every chunk of the blob is in the set.
    pub const fn is_full(&self) -> bool {
        self.len == self.map.count
    }

    /// Whether this chunk is in the set.
    pub fn contains(&self, index: ChunkIndex) -> bool {
        self.words.get(index.usize() / 64).is_some_and(|word| word >> (index.0 % 64) & 1 == 1)
    }

    /// Adds a chunk; says whether it was new.
    pub fn insert(&mut self, index: ChunkIndex) -> bool {
        let new = !self.contains(index);
        if let Some(word) = self.words.get_mut(index.usize() / 64)
            && new
        {
            *word |= 1 << (index.0 % 64);
            self.len += 1;
        }
        new
    }

    /// Takes a chunk out; says whether it was there.
    pub fn remove(&mut self, index: ChunkIndex) -> bool {
        let there = self.contains(index);
        if let Some(word) = self.words.get_mut(index.usize() / 64)
            && there
        {
            *word &= !(1 << (index.0 % 64));
            self.len -= 1;
        }
        there
    }

    /// The chunks of the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = ChunkIndex> {
        self.map.iter().filter(|index| self.contains(*index))
    }

    /// The chunks of the set as runs of neighbours, in order.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        let mut behind = 0;
        std::iter::from_fn(move || {
            let from = self.first_at(behind)?;
            behind = self.first_missing(from).map_or(self.map.count, ChunkIndex::get);
            Some(Run { from: from.0, len: behind - from.0 })
        })
    }

    /// The chunks of this set that are not in `other`, which is of the same blob.
    pub fn without(&self, other: &Self) -> Self {
        let mut words = self.words.clone();
        words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= !other);
        let len = words.iter().map(|word| word.count_ones()).sum();
        Self { map: self.map, words, len }
    }

    /// Adds the chunks of `other`, which is of the same blob.
    pub fn add(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
        self.len = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// The first chunk at or after `from` that is in the set.
    pub fn first_from(&self, from: ChunkIndex) -> Option<ChunkIndex> {
        self.first_at(from.0)
    }

    /// The first chunk at or after the one of this number that is in the set.
    fn first_at(&self, mut number: u32) -> Option<ChunkIndex> {
        while number < self.map.count {
            let zeros = (self.words.get(number as usize / 64)? >> (number % 64)).trailing_zeros();
            let next_word = (number / 64 + 1) * 64;
            if number + zeros < next_word {
                return self.map.index(number + zeros);
            }
            number = next_word;
        }
        None
    }

    /// The first chunk at or after `from` that is not in the set.
    pub fn first_missing(&self, from: ChunkIndex) -> Option<ChunkIndex> {
        let mut number = from.0;
        while number < self.map.count {
            let ones = (self.words.get(number as usize / 64)? >> (number % 64)).trailing_ones();
            let next_word = (number / 64 + 1) * 64;
            if number + ones < next_word {
                return self.map.index(number + ones);
            }
            number = next_word;
        }
        None
    }

    /// How many bytes the chunks of the set have together.
    pub fn bytes(&self) -> u64 {
        let whole = u64::from(self.len) * u64::from(self.map.chunk_len);
        let last = self.map.last();
        if self.contains(last) { whole - u64::from(self.map.chunk_len - self.map.len(last)) } else { whole }
    }
}

impl fmt::Debug for ChunkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} chunks", self.len, self.map.count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_blob_has_one_empty_chunk() {
        let map = ChunkMap::new(0).unwrap();
        assert_eq!((map.count(), map.len(map.first())), (1, 0));
        assert_eq!(map.at(0), None);
    }

    #[test]
    fn a_blob_beyond_the_limit_is_refused_by_its_length() {
        assert!(ChunkMap::new(MAX_BLOB_LEN).is_ok());
        assert_eq!(ChunkMap::new(MAX_BLOB_LEN + 1), Err(TooLarge(MAX_BLOB_LEN + 1)));
    }

    proptest! {
        #[test]
        fn chunks_tile_the_blob(size in 0..MAX_BLOB_LEN, at in 0.0..1.0f64) {
            let map = ChunkMap::new(size).unwrap();
            let last = map.last();
            prop_assert_eq!(map.offset(last) + u64::from(map.len(last)), size);
            prop_assert!(map.chunk_len().is_power_of_two());
            prop_assert_eq!(map.next(last), None);
            prop_assert_eq!(map.index(map.count()), None);
            let offset = (size as f64 * at) as u64;
            if let Some(index) = map.at(offset) {
                prop_assert!(map.offset(index) <= offset);
                prop_assert!(offset < map.offset(index) + u64::from(map.len(index)));
            }
        }

        #[test]
        fn a_set_is_what_was_put_in_and_not_taken_out(
            size in 0..20_000_000u64,
            steps in prop::collection::vec((0..700u32, any::<bool>()), 0..200),
        ) {
            let map = ChunkMap::new(size).unwrap();
            let mut set = ChunkSet::empty(map);
            let mut model = std::collections::BTreeSet::new();
            for (number, add) in steps {
                let Some(index) = map.index(number) else { continue };
                if add {
                    prop_assert_eq!(set.insert(index), model.insert(index));
                } else {
                    prop_assert_eq!(set.remove(index), model.remove(&index));
                }
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len() as usize, model.len());
            prop_assert_eq!(set.bytes(), model.iter().map(|i| u64::from(map.len(*i))).sum::<u64>());
            let runs: Vec<Run> = set.runs().collect();
            let numbers = runs.iter().flat_map(|run| run.from..run.from + run.len);
            prop_assert!(numbers.eq(model.iter().map(|index| index.0)));
            prop_assert!(runs.windows(2).all(|pair| pair[0].from + pair[0].len < pair[1].from));
            let (mut even, mut odd) = (ChunkSet::empty(map), ChunkSet::empty(map));
            for index in &model {
                if index.0 % 2 == 0 { even.insert(*index) } else { odd.insert(*index) };
            }
            prop_assert_eq!(set.without(&odd), even.clone());
            even.add(&odd);
            prop_assert_eq!(&even, &set);
            for from in map.iter().step_by(7) {
                let missing = map.iter().skip(from.usize()).find(|i| !model.contains(i));
                prop_assert_eq!(set.first_missing(from), missing);
                let first = map.iter().skip(from.usize()).find(|i| model.contains(i));
                prop_assert_eq!(set.first_from(from), first);
            }
        }
    }
}
