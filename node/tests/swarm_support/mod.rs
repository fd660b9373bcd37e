//! Nodes in this process, with real sockets on free ports and real files.

#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wherry_node::swarm::{self, Client, Holdings, Notice, ReadAt, Swarm, SwarmSettings};
use wherry_proto::{
    Algorithm, Certificate, ChainBuilder, ChunkMap, Digest, NodeId, Roles, SecretKey, StateChain, TagRecord,
};

/// What a test waits at most for something that it expects.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long a test listens for something that must not come.
pub const SILENCE: Duration = Duration::from_millis(400);

/// The time, for all nodes.
pub const NOW: u64 = 1_700_000_000;

pub fn operator() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

pub fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

pub fn certificate(operator: &SecretKey, node: NodeId) -> Certificate {
    Certificate::sign(operator, node, Roles::MEMBER, 1, NOW + 1000)
}

/// The state chain of these bytes.
pub fn chain_of(bytes: &[u8]) -> StateChain {
    let map = ChunkMap::new(bytes.len() as u64).unwrap();
    let mut builder = ChainBuilder::new(Algorithm::Sha256, map);
    builder.update(bytes).unwrap();
    builder.finish().unwrap()
}

/// Bytes that look random and are always the same.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

type Blob = (StateChain, Arc<dyn ReadAt>);

/// Blobs in real files.
#[derive(Default)]
pub struct Shelf {
    blobs: Mutex<HashMap<Digest, Blob>>,
    tags: Mutex<HashMap<String, TagRecord>>,
    names: Mutex<HashMap<String, Vec<String>>>,
}

impl Shelf {
    pub fn add(&self, bytes: &[u8]) -> Digest {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        self.add_file(chain_of(bytes), file)
    }

    pub fn add_file(&self, chain: StateChain, file: File) -> Digest {
        self.add_reader(chain, Arc::new(file))
    }

    pub fn add_reader(&self, chain: StateChain, reader: Arc<dyn ReadAt>) -> Digest {
        let digest = chain.digest();
        self.blobs.lock().unwrap().insert(digest, (chain, reader));
        digest
    }

    pub fn tag(&self, record: TagRecord) {
        self.tags.lock().unwrap().insert(record.reference.to_string(), record);
    }

    /// Tells these as the tags of `origin/repository`, in this order.
    pub fn list(&self, repository: &str, tags: impl IntoIterator<Item = String>) {
        self.names.lock().unwrap().insert(repository.to_owned(), tags.into_iter().collect());
    }
}

impl Holdings for Shelf {
    fn held(&self, digest: &Digest) -> Option<u64> {
        self.blobs.lock().unwrap().get(digest).map(|(chain, _)| chain.map().size())
    }

    fn chain(&self, digest: &Digest) -> Option<StateChain> {
        self.blobs.lock().unwrap().get(digest).map(|(chain, _)| chain.clone())
    }

    fn open(&self, digest: &Digest) -> std::io::Result<Option<Arc<dyn ReadAt>>> {
        Ok(self.blobs.lock().unwrap().get(digest).map(|(_, file)| Arc::clone(file)))
    }

    fn tag(&self, reference: &str) -> Option<TagRecord> {
        self.tags.lock().unwrap().get(reference).cloned()
    }

    fn tags(&self, origin: &str, repository: &str, after: Option<&str>, most: usize) -> Vec<String> {
        let names = self.names.lock().unwrap();
        let Some(names) = names.get(&format!("{origin}/{repository}")) else { return Vec::new() };
        names
            .iter()
            .filter(|name| after.is_none_or(|after| name.as_str() > after))
            .take(most)
            .cloned()
            .collect()
    }
}

/// A node that runs.
pub struct Node {
    pub swarm: Swarm,
    pub shelf: Arc<Shelf>,
    pub stop: CancellationToken,
}

impl Node {
    pub fn client(&self) -> Client {
        self.swarm.client()
    }

    pub fn id(&self) -> NodeId {
        self.client().me()
    }

    /// The address over TCP, or over QUIC.
    pub fn address(&self, quic: bool) -> String {
        let addresses = self.swarm.addresses().peers;
        addresses.into_iter().find(|address| address.contains("quic") == quic).unwrap()
    }

    pub async fn end(self) {
        self.stop.cancel();
        within(self.swarm.join()).await;
    }
}

pub fn settings(key: &SecretKey, bootstrap: &[String]) -> SwarmSettings {
    SwarmSettings {
        key: key.clone(),
        membership: Some(certificate(&operator(), key.node())),
        min_epoch: 0,
        site: "here".to_owned(),
        peers: "127.0.0.1:0".parse().unwrap(),
        bulk: TcpListener::bind("127.0.0.1:0").unwrap(),
        bootstrap: bootstrap.to_vec(),
        mdns: false,
        remembered: vec![],
        clock: Arc::new(|| NOW),
    }
}

pub async fn start(settings: SwarmSettings) -> Node {
    let (shelf, stop) = (Arc::new(Shelf::default()), CancellationToken::new());
    let swarm = swarm::start(settings, shelf.clone(), stop.clone()).await.unwrap();
    Node { swarm, shelf, stop }
}

/// A member of the one network, which joins by these.
pub async fn member(number: u8, bootstrap: &[String]) -> Node {
    start(settings(&key(number), bootstrap)).await
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Waits until a client has this neighbour.
pub async fn meet(client: &Client, node: NodeId) {
    let mut notices = client.notices();
    within(async {
        while client.neighbours().iter().all(|neighbour| neighbour.node != node) {
            notices.recv().await.unwrap();
        }
    })
    .await;
}

/// Waits until a client has this neighbour no more.
pub async fn part(client: &Client, node: NodeId) {
    let mut notices = client.notices();
    within(async {
        while client.neighbours().iter().any(|neighbour| neighbour.node == node) {
            notices.recv().await.unwrap();
        }
    })
    .await;
}

/// Two members that know each other.
pub async fn pair() -> (Node, Node) {
    let a = member(11, &[]).await;
    let b = member(12, &[a.address(false)]).await;
    meet(&b.client(), a.id()).await;
    meet(&a.client(), b.id()).await;
    (a, b)
}

pub fn is_connected(notice: &Notice, node: NodeId) -> bool {
    matches!(notice, Notice::Connected(neighbour) if neighbour.node == node)
}
