//! Parts of files as bytes that need not be read.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A multiple of the page size of every machine that Linux runs on, in bytes.
const ALIGN: u64 = 64 << 10;

/// A part of a file, mapped for reading.
///
/// The server hands these through hyper as ordinary bytes, and the [link](super::link) recognises them by
/// their address and sends the file's bytes. So normally nobody reads the mapping, and it takes
/// address space but no memory; should anybody read it, it holds the right bytes.
pub(super) struct Mapping {
    /// Where the mapping begins: at a page border, at or before the part.
    base: NonNull<u8>,
    /// How far into the mapping the part begins.
    lead: usize,
    /// The part's length; not 0.
    len: usize,
    file: Arc<File>,
    offset: u64,
}

// SAFETY: the mapping is read-only memory that belongs to this value until it is dropped, and no thread-bound
// state is attached to it.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, not 0, of `file` from `offset`.
    pub(super) fn new(file: Arc<File>, offset: u64, len: usize) -> io::Result<Self> {
        let lead = (offset % ALIGN) as usize;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                lead + len,
                ProtFlags::READ,
                MapFlags::SHARED,
                &*file,
                offset - lead as u64,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, lead, len, file, offset })
    }

    /// If `slice` lies in this mapping: the file, and where in it the slice begins.
    pub(super) fn locate(&self, slice: &[u8]) -> Option<(&File, u64)> {
        let start = self.base.as_ptr().addr() + self.lead;
        let inside = slice.as_ptr().addr().checked_sub(start)?;
        (inside + slice.len() <= self.len).then(|| (&*self.file, self.offset + inside as u64))
    }

    /// Whether `slice` reaches to the end of this mapping.
    pub(super) fn ends_with(&self, slice: &[u8]) -> bool {
        slice.as_ptr().addr() + slice.len() == self.base.as_ptr().addr() + self.lead + self.len
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range was mapped for reading by `new` and stays so until drop. That the bytes do not
        // change meanwhile is what `StoredFile` asks of whoever hands over the file.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(self.lead), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped, and nobody holds a reference into it any more.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.lead + self.len) } {
            tracing::error!(%error, "a mapped part of a blob could not be unmapped");
        }
    }
}

/// A shared [`Mapping`] in the shape that [`bytes::Bytes::from_owner`] takes.
pub(super) struct Shared(pub(super) Arc<Mapping>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}
