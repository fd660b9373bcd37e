//! Nodes in this process, with real sockets on free ports and real files.

#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use std::collections::HashMap;
use std::fs::File;
use std::future::ready;
use std::io::Write as _;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wherry_node::swarm::{self, Arriving, Client, Holdings, Notice, ReadAt, Swarm, SwarmSettings};
use wherry_proto::{
    Algorithm, Attempt, BlobName, Certificate, ChainBuilder, ChunkIndex, ChunkMap, ChunkSet, Digest, Lead,
    LeadRefusal, NodeId, Role, Roles, SecretKey, SignedStates, StateChain, StatePrefix, StreamClaim,
    TagRecord,
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
    // Changes whenever a blob leaves.
    left: watch::Sender<()>,
    tags: Mutex<HashMap<String, TagRecord>>,
    names: Mutex<HashMap<String, Vec<String>>>,
    arriving: Mutex<HashMap<BlobName, Arc<Incoming>>>,
    /// Who asked this node to lead, and where.
    pub asked_to_lead: Mutex<Vec<(NodeId, BlobName, String)>>,
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

    /// It is not held any more.
    pub fn remove(&self, digest: &Digest) {
        self.blobs.lock().unwrap().remove(digest);
        self.left.send_replace(());
    }

    /// Puts a blob on its way, of which nothing is here yet.
    pub fn expect(&self, bytes: &[u8], role: Role) -> Arc<Incoming> {
        let incoming = Arc::new(Incoming::new(bytes, role));
        self.arriving.lock().unwrap().insert(incoming.name(), incoming.clone());
        incoming
    }

    /// It has arrived: first it is held, then it arrives no more.
    pub fn finish(&self, incoming: &Incoming) {
        self.add(&incoming.bytes);
        self.arriving.lock().unwrap().remove(&incoming.name());
        incoming.turn(Role::Held);
    }

    /// It will not arrive.
    pub fn give_up(&self, incoming: &Incoming) {
        self.arriving.lock().unwrap().remove(&incoming.name());
        incoming.turn(Role::Gone);
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

    fn arriving_size(&self, digest: &Digest) -> Option<u64> {
        self.arriving.lock().unwrap().keys().find(|blob| blob.digest == *digest).map(|blob| blob.size)
    }

    fn arriving(&self, blob: &BlobName) -> Option<Arc<dyn Arriving>> {
        Some(self.arriving.lock().unwrap().get(blob)?.clone())
    }

    fn lead<'a>(
        &'a self,
        asker: NodeId,
        blob: BlobName,
        origin: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Lead> {
        self.asked_to_lead.lock().unwrap().push((asker, blob, format!("{origin}/{repository}")));
        let lead = if self.held(&blob.digest).is_some() {
            Lead::Have
        } else if self.arriving_size(&blob.digest).is_some() {
            Lead::Leading
        } else {
            Lead::Refuse(LeadRefusal::NoCredentials)
        };
        ready(lead).boxed()
    }

    fn leaves<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, ()> {
        let mut left = self.left.subscribe();
        async move { drop(left.wait_for(|()| self.held(digest).is_none()).await) }.boxed()
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

/// A blob on its way, of which as much is here as a test says.
pub struct Incoming {
    bytes: Vec<u8>,
    chain: StateChain,
    here: Mutex<ChunkSet>,
    rotten: Mutex<ChunkSet>,
    role: Mutex<Role>,
    changes: watch::Sender<u64>,
    signed: Mutex<Option<SignedStates>>,
    followers: Mutex<Vec<NodeId>>,
}

impl Incoming {
    fn new(bytes: &[u8], role: Role) -> Self {
        let chain = chain_of(bytes);
        Self {
            bytes: bytes.to_vec(),
            here: ChunkSet::empty(chain.map()).into(),
            rotten: ChunkSet::empty(chain.map()).into(),
            chain,
            role: role.into(),
            changes: watch::Sender::new(0),
            signed: None.into(),
            followers: Mutex::default(),
        }
    }

    pub fn name(&self) -> BlobName {
        BlobName { digest: self.chain.digest(), size: self.chain.map().size() }
    }

    pub fn chain(&self) -> &StateChain {
        &self.chain
    }

    pub fn chunk(&self, index: ChunkIndex) -> &[u8] {
        let offset = self.chain.map().offset(index) as usize;
        &self.bytes[offset..offset + self.chain.map().len(index) as usize]
    }

    /// These chunks are linked.
    pub fn link(&self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            self.here.lock().unwrap().insert(self.chain.map().index(number).unwrap());
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// This chunk seems to be here until it is read.
    pub fn rot(&self, number: u32) {
        self.rotten.lock().unwrap().insert(self.chain.map().index(number).unwrap());
    }

    pub fn turn(&self, role: Role) {
        *self.role.lock().unwrap() = role;
        self.changes.send_modify(|count| *count += 1);
    }

    /// The states that are known, true or not.
    pub fn prefix(&self, known: u32) -> StatePrefix {
        let map = self.chain.map();
        let mut prefix = StatePrefix::new(Algorithm::Sha256, map);
        for index in map.iter().skip(1).take(known as usize) {
            prefix.push(self.chain.from(index));
        }
        prefix
    }

    /// Gives these out as what a leader has signed.
    pub fn pass_on(&self, signed: SignedStates) {
        *self.signed.lock().unwrap() = Some(signed);
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn followers(&self) -> Vec<NodeId> {
        self.followers.lock().unwrap().clone()
    }
}

impl ReadAt for Incoming {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let index = self.chain.map().at(offset).unwrap();
        if self.rotten.lock().unwrap().contains(index) {
            self.here.lock().unwrap().remove(index);
            self.changes.send_modify(|count| *count += 1);
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let offset = offset as usize;
        buf.copy_from_slice(&self.bytes[offset..offset + buf.len()]);
        Ok(())
    }
}

impl Arriving for Incoming {
    fn may_fail(&self) -> bool {
        !self.rotten.lock().unwrap().is_empty()
    }

    fn has(&self, index: ChunkIndex) -> bool {
        self.here.lock().unwrap().contains(index)
    }

    fn here(&self) -> ChunkSet {
        self.here.lock().unwrap().clone()
    }

    fn first_hand(&self) -> ChunkSet {
        let leads = matches!(self.role(), Role::Leading { .. });
        if leads { self.here() } else { ChunkSet::empty(self.here().map()) }
    }

    fn no_news_to(&self, _: &NodeId) -> ChunkSet {
        ChunkSet::empty(self.here().map())
    }

    fn role(&self) -> Role {
        *self.role.lock().unwrap()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn states(&self, attempt: &Attempt, from: u32) -> Option<(StreamClaim, Certificate, Vec<u8>)> {
        let signed = self.signed.lock().unwrap().clone()?;
        let known = signed.claim.stream() == *attempt && from <= signed.claim.known;
        known.then(|| (signed.claim, signed.certificate, signed.prefix.states_from(from)))
    }

    fn followed(&self, by: NodeId) {
        self.followers.lock().unwrap().push(by);
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
        announce_after: Duration::ZERO,
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
