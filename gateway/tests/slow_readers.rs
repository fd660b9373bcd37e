//! Memory does not grow with the number of clients nor with the size of what they read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use wherry_gateway::TagOrDigest;
use wherry_gateway::server::{
    Ask, BlobReader, Body, Content, ManifestAnswer, Push, Refusal, RefusalKind, ServerOptions, StoredFile,
    Want, serve,
};
use wherry_proto::Digest;

const CLIENTS: usize = 256;
const SIZE: u64 = 1 << 30;
const LIMIT: u64 = 64 << 20;

/// One blob of zeros, from a file or as a stream.
#[derive(Clone)]
struct Zeros {
    file: Option<Arc<File>>,
}

impl Push for Zeros {}

impl Content for Zeros {
    type Blob = Self;

    async fn manifest(&self, _: Ask, _: TagOrDigest, _: Want) -> Result<ManifestAnswer, Refusal> {
        Err(Refusal::new(RefusalKind::ManifestUnknown, "none here"))
    }

    async fn blob(&self, _: Ask, _: Digest, _: Want) -> Result<Self, Refusal> {
        Ok(self.clone())
    }

    async fn tags(&self, _: Ask) -> Result<Vec<String>, Refusal> {
        Ok(Vec::new())
    }
}

impl BlobReader for Zeros {
    fn size(&self) -> u64 {
        SIZE
    }

    async fn read(&self, range: Range<u64>) -> Result<Body, Refusal> {
        if let Some(file) = &self.file {
            return Ok(Body::File(StoredFile::new(Arc::clone(file), range.start, range.end - range.start)));
        }
        // Each piece is memory of its own, as it would be if it came from a peer.
        let pieces = range.step_by(64 << 10).map(|_| Ok(Bytes::from(vec![1; 64 << 10])));
        Ok(Body::Stream(futures::stream::iter(pieces).boxed()))
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A client that takes what is on its way, a little at a time.
async fn client(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /v2/test/blobs/{} HTTP/1.1\r\nHost: x\r\n\r\n", Digest::sha256(b""));
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn slow_readers_cost_no_memory_whatever_they_read() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    for file in [Some(Arc::new(file)), None] {
        let kind = if file.is_some() { "file" } else { "stream" };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut options = ServerOptions::default();
        options.drain_timeout = std::time::Duration::ZERO;
        let running = tokio::spawn(serve(listener, Arc::new(Zeros { file }), options, shutdown.clone()));
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(client(address).await);
        }
        let mut buffer = vec![0; 256 << 10];
        let mut most = 0;
        for round in 0..10 {
            for stream in &mut clients {
                let n = stream.read(&mut buffer).await.unwrap();
                assert!(n > 0, "the {kind} ended in round {round}");
            }
            most = most.max(resident());
        }
        println!("{kind}: at most {} MiB resident", most >> 20);
        assert!(most <= LIMIT, "{kind}: {} MiB resident", most >> 20);
        shutdown.cancel();
        drop(clients);
        running.await.unwrap();
    }
}
