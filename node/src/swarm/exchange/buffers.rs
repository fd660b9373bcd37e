//! Buffers for chunks, used again: fresh memory for each chunk costs a page fault every 4 KiB.

use std::sync::{Arc, Mutex, PoisonError};

use wherry_proto::MAX_CHUNK_LEN;

/// How many idle buffers are kept: 4 MiB. How many are in use is bounded by whoever takes them.
const MAX_IDLE: usize = 8;

/// Shorter buffers than this come from the allocator, which is quick with them.
const MIN_POOLED: usize = 64 << 10;

/// The capacity of every pooled buffer: the longest chunk, and room for the frame in front of it.
const CAPACITY: usize = MAX_CHUNK_LEN as usize + 64;

/// A pool of buffers that take the longest chunk.
#[derive(Clone, Default)]
pub(in crate::swarm) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// A buffer with room for `len` bytes. What it holds is left over from its last use: clear or overwrite it.
    pub(super) fn take(&self, len: usize) -> Buffer {
        if !(MIN_POOLED..=CAPACITY).contains(&len) {
            return Buffer { bytes: Vec::with_capacity(len), home: None };
        }
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = idle.unwrap_or_else(|| Vec::with_capacity(CAPACITY));
        Buffer { bytes, home: Some(self.clone()) }
    }
}

/// A buffer that goes back to its pool when dropped.
pub(super) struct Buffer {
    pub(super) bytes: Vec<u8>,
    home: Option<Buffers>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = &self.home else { return };
        let mut idle = home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(MIN_POOLED);
        buffer.bytes.extend_from_slice(b"old");
        let place = buffer.bytes.as_ptr();
        drop(buffer);
        let again = buffers.take(CAPACITY);
        assert_eq!(again.bytes.as_ptr(), place);
    }

    #[test]
    fn no_more_than_a_few_idle_buffers_are_kept() {
        let buffers = Buffers::default();
        drop((0..3 * MAX_IDLE).map(|_| buffers.take(CAPACITY)).collect::<Vec<_>>());
        assert_eq!(buffers.0.lock().unwrap().len(), MAX_IDLE);
    }
}
