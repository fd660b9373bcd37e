//! Reading files without making other connections wait for a disk.
//!
//! The server's tasks share few threads, and a read from a slow disk would stop all connections of one. So a
//! part of a file is used directly only if the page cache has it; otherwise a thread of its own brings it in
//! first.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::Semaphore;

use super::{Body, StoredFile};

/// How many threads bring in parts of files at the same time, over all connections of a server. More would
/// only make a disk seek more.
const DISK_READERS: usize = 8;

/// The kernel reads ahead in pieces of about this length, so if the ends of such a piece are cached, the
/// piece most likely is.
const PROBE_STEP: u64 = 128 << 10;

/// Parts of files up to this length are read and sent with their headers in one write; for longer ones it is
/// cheaper not to touch them. In bytes.
const SMALL: u64 = 16 << 10;

/// Brings parts of files into the page cache.
#[derive(Clone, Debug)]
pub(super) struct PageCache {
    readers: Arc<Semaphore>,
}

impl PageCache {
    pub(super) fn new() -> Self {
        Self { readers: Arc::new(Semaphore::new(DISK_READERS)) }
    }

    /// Waits until a part of a file has been brought in. What is evicted again before it is used costs time,
    /// not correctness.
    pub(super) async fn bring_in(self, file: Arc<File>, offset: u64, len: u64) -> io::Result<()> {
        self.on_a_thread(move || touch(&file, offset, len)).await
    }

    /// The same body, read into memory where it is a short part of a file: that goes out with what is sent around it in one
    /// write.
    pub(super) async fn at_hand(&self, body: Body) -> io::Result<Body> {
        match body {
            Body::File(stored) if stored.len <= SMALL => {
                let StoredFile { file, offset, len, .. } = &stored;
                let bytes = self.read(Arc::clone(file), *offset, *len as usize).await?;
                stored.is_sent();
                Ok(Body::Bytes(bytes))
            }
            body => Ok(body),
        }
    }

    /// A small part of a file.
    async fn read(&self, file: Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; len];
        match read_cached(&file, &mut buffer, offset) {
            Ok(n) if n == len => return Ok(buffer.into()),
            // Cold, short because the rest is cold, or not supported here.
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.on_a_thread(move || file.read_exact_at(&mut buffer, offset).map(|()| buffer.into())).await
    }

    async fn on_a_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let permit = Arc::clone(&self.readers).acquire_owned().await.map_err(io::Error::other)?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        .map_err(io::Error::other)?
    }
}

/// Whether a part of a file can be read without a disk, as far as a few probes tell. File systems that cannot
/// tell count as fast.
pub(super) fn is_cached(file: &File, offset: u64, len: u64) -> bool {
    let probe = |at: u64| !matches!(read_cached(file, &mut [0], at), Err(Errno::AGAIN));
    let last = offset + len.saturating_sub(1);
    (0..len).step_by(PROBE_STEP as usize).all(|step| probe(offset + step)) && probe(last)
}

fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT)
}

fn touch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut scratch = vec![0; PROBE_STEP as usize];
    let mut at = offset;
    let end = offset + len;
    while at < end {
        let want = scratch.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        match file.read_at(&mut scratch[..want], at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => at += n as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
