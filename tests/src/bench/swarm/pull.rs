//! The client of a node: it asks for a tag, takes all blobs at once as runtimes do, goes on where it stopped when a
//! connection breaks, and counts an image as there when every byte of it is right.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use wherry_proto::{Algorithm, Digest};
use wherry_tests::blobs::{Blob, Image, OCI_MANIFEST};
use wherry_tests::http::Request;

/// How long to rest before asking again after a failure.
const AGAIN: Duration = Duration::from_millis(100);

/// How long a server may be silent before it is asked again for the rest.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is read at once.
const BUFFER: usize = 64 << 10;

/// Little is needed in the threads of clients, of which there are hundreds.
const STACK: usize = 256 << 10;

/// One client's pull.
pub(crate) struct Pull<'a> {
    /// The registry or gateway.
    pub(crate) server: SocketAddr,
    /// What to pull.
    pub(crate) image: &'a Image,
    /// Set when it is not worth going on.
    pub(crate) stop: &'a AtomicBool,
    failures: AtomicUsize,
    last: Mutex<Option<String>>,
}

impl<'a> Pull<'a> {
    /// A pull that has not begun.
    pub(crate) fn new(server: SocketAddr, image: &'a Image, stop: &'a AtomicBool) -> Self {
        Self { server, image, stop, failures: AtomicUsize::new(0), last: Mutex::default() }
    }

    /// Pulls in threads of this thread's namespace; whether everything is there.
    pub(crate) fn run(&self) -> bool {
        if !self.insist(|| self.manifest()) {
            return false;
        }
        std::thread::scope(|scope| {
            let blobs = self.image.blobs();
            let start = |blob: Blob| {
                let name = "pull".to_owned();
                std::thread::Builder::new()
                    .name(name)
                    .stack_size(STACK)
                    .spawn_scoped(scope, move || self.blob(blob))
            };
            let threads: Vec<_> = blobs.into_iter().map(start).collect();
            // Every thread is waited for, also when another has failed.
            threads
                .into_iter()
                .map(|thread| thread.is_ok_and(|thread| thread.join().unwrap_or(false)))
                .fold(true, |a, b| a & b)
        })
    }

    /// How often something had to be asked for again.
    pub(crate) fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    /// What failed last, if anything did.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does something until it succeeds or the pull is to stop.
    fn insist(&self, mut act: impl FnMut() -> Result<()>) -> bool {
        loop {
            let Err(error) = act() else { return true };
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            self.failures.fetch_add(1, Ordering::Relaxed);
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
            std::thread::sleep(AGAIN);
        }
    }

    fn manifest(&self) -> Result<()> {
        let path = format!("/v2/{}/manifests/{}", self.image.repository, self.image.tag);
        let get = Request::new(self.server, "GET", &path).header("Accept", OCI_MANIFEST).patience(PATIENCE);
        let answer = get.send_and_read()?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        ensure!(answer.body == self.image.manifest_bytes, "{path}: another manifest");
        Ok(())
    }

    fn blob(&self, blob: Blob) -> bool {
        let mut taken = Taken { hash: Sha256::new(), bytes: 0 };
        self.insist(|| {
            taken.more(self, blob)?;
            let digest =
                Digest::from_bytes(Algorithm::Sha256, &taken.hash.clone().finalize()).context("32 bytes")?;
            let right = taken.bytes == blob.size && digest == blob.digest;
            if !right {
                taken = Taken { hash: Sha256::new(), bytes: 0 };
            }
            ensure!(right, "{}: wrong bytes", blob.digest);
            Ok(())
        })
    }
}

/// What came of a blob.
struct Taken {
    hash: Sha256,
    bytes: u64,
}

impl Taken {
    /// Reads from where it is to the end.
    fn more(&mut self, pull: &Pull<'_>, blob: Blob) -> Result<()> {
        let path = format!("/v2/{}/blobs/{}", pull.image.repository, blob.digest);
        let mut get = Request::new(pull.server, "GET", &path).patience(PATIENCE);
        if self.bytes > 0 {
            get = get.header("Range", format!("bytes={}-", self.bytes));
        }
        let mut answer = get.open()?;
        match answer.status {
            206 if self.bytes > 0 => {}
            200 => *self = Self { hash: Sha256::new(), bytes: 0 },
            status => anyhow::bail!("{path}: {status}"),
        }
        let mut buffer = vec![0; BUFFER];
        loop {
            match answer.read(&mut buffer).with_context(|| format!("{path} after {} bytes", self.bytes))? {
                0 => return Ok(()),
                n => {
                    self.hash.update(&buffer[..n]);
                    self.bytes += n as u64;
                }
            }
        }
    }
}
