//! The giving side, asked by peers over streams in memory.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wherry_proto::{
    Algorithm, BlobName, ChainBuilder, ChunkMap, Digest, NodeId, Request, Response, SecretKey, StateChain,
    TagRecord, decode_payload, encode_frame,
};

use super::{Buffers, SLOTS_PER_PEER, Uploader, serve};
use crate::swarm::codec::read_payload;
use crate::swarm::holdings::{Holdings, ReadAt};

const PATIENCE: Duration = Duration::from_secs(20);

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

/// One blob of zeros, of which every read is told and then waits until the gate's sender is gone.
#[derive(Clone)]
struct Gated {
    reads: mpsc::Sender<()>,
    gate: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
}

const BLOB: [u8; 100] = [0; 100];

impl Holdings for Gated {
    fn held(&self, _: &Digest) -> Option<u64> {
        Some(BLOB.len() as u64)
    }

    fn chain(&self, _: &Digest) -> Option<StateChain> {
        let mut builder = ChainBuilder::new(Algorithm::Sha256, ChunkMap::new(BLOB.len() as u64).unwrap());
        builder.update(&BLOB).unwrap();
        Some(builder.finish().unwrap())
    }

    fn open(&self, _: &Digest) -> io::Result<Option<Arc<dyn ReadAt>>> {
        Ok(Some(Arc::new(self.clone())))
    }

    fn tag(&self, _: &str) -> Option<TagRecord> {
        None
    }
}

impl ReadAt for Gated {
    fn read_exact_at(&self, buf: &mut [u8], _: u64) -> io::Result<()> {
        self.reads.try_send(()).unwrap();
        let _ = self.gate.lock().unwrap().recv();
        buf.fill(0);
        Ok(())
    }
}

/// A new connection of this peer.
fn connect(uploader: &Arc<Uploader>, peer: NodeId) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(serve(Arc::clone(uploader), peer, ours));
    theirs
}

async fn ask(stream: &mut DuplexStream) {
    let blob = BlobName { digest: Digest::sha256(&BLOB), size: BLOB.len() as u64 };
    stream.write_all(&encode_frame(&Request::Chunk { id: 1, blob, index: 0 }).unwrap()).await.unwrap();
}

async fn response(stream: &mut DuplexStream) -> Response {
    let payload = timeout(PATIENCE, read_payload::<Response>(stream)).await.unwrap().unwrap();
    decode_payload(&payload).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_many_connections_has_no_more_slots_than_one_with_one() {
    let (reads, mut entered) = mpsc::channel(64);
    let (open, gate) = std::sync::mpsc::sync_channel(0);
    let holdings = Gated { reads, gate: Arc::new(Mutex::new(gate)) };
    let uploader = Uploader::new(Arc::new(holdings), key(1), key(9).network(), Buffers::default());
    let greedy = key(2).node();
    let mut first: Vec<_> = (0..SLOTS_PER_PEER).map(|_| connect(&uploader, greedy)).collect();
    for stream in &mut first {
        ask(stream).await;
        timeout(PATIENCE, entered.recv()).await.unwrap().unwrap();
    }
    let mut more: Vec<_> = (0..3).map(|_| connect(&uploader, greedy)).collect();
    for stream in &mut more {
        ask(stream).await;
    }
    // Nothing can be read yet, and slots are free: it is this peer that has enough of them.
    for stream in &mut more {
        assert_eq!(response(stream).await, Response::Busy { id: 1 });
    }
    assert!(entered.try_recv().is_err());
    let mut modest = connect(&uploader, key(3).node());
    ask(&mut modest).await;
    timeout(PATIENCE, entered.recv()).await.unwrap().unwrap();
    // Once its own are free it is told, on each connection that was sent away.
    drop(open);
    for stream in &mut more {
        assert_eq!(response(stream).await, Response::Free);
    }
    for stream in first.iter_mut().chain([&mut modest]) {
        assert_eq!(response(stream).await, Response::Chunk { id: 1, len: BLOB.len() as u32 });
    }
}
