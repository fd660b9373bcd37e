//! A content that does as a test says, and a server that serves it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wherry_gateway::server::{
    Ask, BlobReader, Body, Break, Content, Drained, ManifestAnswer, Push, Refusal, RefusalKind,
    ServerOptions, Source, StoredFile, Want, serve,
};
use wherry_gateway::{TagOrDigest, manifest::media_type};
use wherry_proto::Digest;

/// What the repositories `test` and `docker.io/library/test` have.
#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) manifest: Bytes,
    pub(crate) blobs: Mutex<HashMap<Digest, Blob>>,
    pub(crate) tags: Vec<String>,
    /// What every request is refused with.
    pub(crate) refusal: Option<Refusal>,
    /// Every question that was asked.
    pub(crate) asked: Mutex<Vec<(Ask, Option<Want>)>>,
}

#[derive(Clone)]
pub(crate) struct Blob {
    size: u64,
    bytes: Supply,
}

type Arriving = mpsc::Receiver<Result<Bytes, Break>>;

#[derive(Clone)]
enum Supply {
    Memory(Bytes),
    File(Arc<File>),
    Stream(Arc<Mutex<Option<Arriving>>>),
    Files(Arc<File>),
    Wrong(u64),
}

impl Shelf {
    pub(crate) fn memory(&self, bytes: &[u8]) -> Digest {
        self.put(bytes, bytes.len() as u64, Supply::Memory(Bytes::copy_from_slice(bytes)))
    }

    pub(crate) fn file(&self, bytes: &[u8]) -> Digest {
        self.put(bytes, bytes.len() as u64, Supply::File(file_of(bytes)))
    }

    /// A blob that arrives in pieces that are in a file by then.
    pub(crate) fn files(&self, bytes: &[u8]) -> Digest {
        self.put(bytes, bytes.len() as u64, Supply::Files(file_of(bytes)))
    }

    /// A blob of which the file holds only the start.
    pub(crate) fn short_file(&self, bytes: &[u8], size: u64) -> Digest {
        self.put(bytes, size, Supply::File(file_of(bytes)))
    }

    /// A blob that arrives as the test sends it.
    pub(crate) fn stream(&self, name: &[u8], size: u64) -> (Digest, mpsc::Sender<Result<Bytes, Break>>) {
        let (sender, receiver) = mpsc::channel(1);
        (self.put(name, size, Supply::Stream(Arc::new(Mutex::new(Some(receiver))))), sender)
    }

    /// A blob whose content hands out other lengths than it was asked for.
    pub(crate) fn wrong(&self, name: &[u8], size: u64, given: u64) -> Digest {
        self.put(name, size, Supply::Wrong(given))
    }

    fn put(&self, name: &[u8], size: u64, bytes: Supply) -> Digest {
        let digest = Digest::sha256(name);
        self.blobs.lock().unwrap().insert(digest, Blob { size, bytes });
        digest
    }

    fn admit(&self, ask: Ask, want: Option<Want>) -> Result<(), Refusal> {
        let known = ["test", "library/test"].contains(&ask.repository.as_str());
        self.asked.lock().unwrap().push((ask, want));
        match &self.refusal {
            Some(refusal) => Err(refusal.clone()),
            None if known => Ok(()),
            None => Err(Refusal::new(RefusalKind::NameUnknown, "no such repository: check its name")),
        }
    }
}

fn file_of(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

impl Push for Shelf {}

impl Content for Shelf {
    type Blob = Blob;

    async fn manifest(
        &self,
        ask: Ask,
        reference: TagOrDigest,
        want: Want,
    ) -> Result<ManifestAnswer, Refusal> {
        self.admit(ask, Some(want))?;
        let digest = Digest::sha256(&self.manifest);
        let by_tag = reference.tag().is_some_and(|tag| tag.as_str() == "v1");
        if !by_tag && reference.digest() != Some(&digest) {
            return Err(Refusal::new(RefusalKind::ManifestUnknown, "no such manifest"));
        }
        let mut answer = ManifestAnswer::new(self.manifest.clone(), media_type::OCI_MANIFEST, digest);
        answer.age = by_tag.then_some(Duration::from_secs(7));
        answer.source = Some(Source::Peer);
        if want == Want::Head {
            answer.bytes = Bytes::new();
        }
        Ok(answer)
    }

    async fn blob(&self, ask: Ask, digest: Digest, want: Want) -> Result<Blob, Refusal> {
        self.admit(ask, Some(want))?;
        let found = self.blobs.lock().unwrap().get(&digest).cloned();
        found.ok_or_else(|| Refusal::new(RefusalKind::BlobUnknown, "no such blob"))
    }

    async fn tags(&self, ask: Ask) -> Result<Vec<String>, Refusal> {
        self.admit(ask, None)?;
        Ok(self.tags.clone())
    }
}

impl BlobReader for Blob {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, range: Range<u64>) -> Result<Body, Refusal> {
        let len = range.end - range.start;
        Ok(match &self.bytes {
            Supply::Memory(bytes) => Body::Bytes(bytes.slice(range.start as usize..range.end as usize)),
            Supply::File(file) => Body::File(StoredFile::new(Arc::clone(file), range.start, len)),
            Supply::Stream(receiver) => {
                let receiver = receiver.lock().unwrap().take().expect("a stream is read once");
                let receive = |mut r: mpsc::Receiver<_>| async move { r.recv().await.map(|item| (item, r)) };
                Body::Stream(futures::stream::unfold(receiver, receive).boxed())
            }
            Supply::Files(file) => {
                let file = Arc::clone(file);
                let starts = (range.start..range.end).step_by(100_000);
                let pieces = starts
                    .map(move |at| Ok(StoredFile::new(Arc::clone(&file), at, 100_000.min(range.end - at))));
                Body::Files(futures::stream::iter(pieces.collect::<Vec<_>>()).boxed())
            }
            Supply::Wrong(given) => Body::Bytes(Bytes::from(vec![0; *given as usize])),
        })
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<Drained>,
}

pub(crate) async fn start(shelf: Shelf) -> Server {
    start_with(shelf, ServerOptions::default()).await
}

pub(crate) async fn start_with(shelf: Shelf, options: ServerOptions) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shelf = Arc::new(shelf);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(serve(listener, Arc::clone(&shelf), options, shutdown.clone()));
    Server { address, shelf, shutdown, running }
}

/// Bytes of which no two parts are alike.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
    }
    out.truncate(len);
    out
}
