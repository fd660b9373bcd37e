//! Neighbours that say what they are told to, of tags and of blobs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{oneshot, watch};
use wherry_gateway::{Host, Reference, Repository};
use wherry_node::images::Site;
use wherry_node::swarm::{LinkClass, RESOLVE_TIME};
use wherry_node::transfer::planner::Scope;
use wherry_node::transfer::{Found, PeerError, Peers};
use wherry_proto::{
    ChainBuilder, ChunkIndex, ChunkMap, Digest, NodeId, Resolution, SecretKey, StateChain, TagMeaning,
    TagRecord, TagWord,
};

use super::{Image, NOW, certificate, own_key, until_time};

/// What a neighbour signs whose certificate expires then.
pub fn record_until(reference: &Reference, image: &Image, expires: u64) -> TagRecord {
    let key = SecretKey::from_seed([7; 32]);
    let TagRecord { reference, digest, media_type, size, sequence, time, .. } =
        record(reference, image, NOW, NOW);
    let meaning = TagMeaning { reference, digest, media_type, size, sequence, time, word: TagWord::Resolved };
    TagRecord::sign(&key, &until_time(key.node(), expires), meaning)
}

/// What a neighbour signs that a reference means.
pub fn record(reference: &Reference, image: &Image, sequence: u64, time: u64) -> TagRecord {
    let size = image.bytes.len() as u64;
    signed(reference, image, size, (sequence, time), TagWord::Resolved)
}

/// What one signs to whom it was pushed.
pub fn record_of_push(reference: &Reference, image: &Image, sequence: u64) -> TagRecord {
    let size = image.bytes.len() as u64;
    signed(reference, image, size, (sequence, NOW), TagWord::Pushed)
}

/// What a neighbour signs of a digest.
pub fn record_of(reference: &Reference, image: &Image, size: u64) -> TagRecord {
    signed(reference, image, size, (0, NOW), TagWord::Resolved)
}

fn signed(
    reference: &Reference,
    image: &Image,
    size: u64,
    (sequence, time): (u64, u64),
    word: TagWord,
) -> TagRecord {
    let key = SecretKey::from_seed([7; 32]);
    let meaning = TagMeaning {
        reference: reference.to_string().parse().unwrap(),
        digest: image.digest,
        media_type: image.media_type.parse().unwrap(),
        size,
        sequence,
        time,
        word,
    };
    TagRecord::sign(&key, &certificate(key.node()), meaning)
}

/// What comes of asking the node that is to ask the origin for all.
#[derive(Clone)]
pub enum Resolver {
    /// It says this, after so long.
    Says(Box<Resolution>, Duration),
    /// It says nothing.
    Silent,
}

/// What neighbours say.
#[derive(Default)]
pub struct Said {
    records: Mutex<Vec<TagRecord>>,
    far: Mutex<Vec<TagRecord>>,
    resolver: Mutex<Option<Resolver>>,
    /// What they were told of tags that have moved.
    told: Mutex<Vec<TagRecord>>,
    /// How often the resolver was asked, and how often any other node.
    pub resolving: AtomicUsize,
    pub asking_anybody: AtomicUsize,
    /// How often those at other sites were asked.
    pub asking_afar: AtomicUsize,
    /// How often one of them has come.
    pub meetings: AtomicU64,
}

impl Said {
    pub fn says(&self, record: TagRecord) {
        self.records.lock().unwrap().push(record);
    }

    /// Somebody at another site says so.
    pub fn says_afar(&self, record: TagRecord) {
        self.far.lock().unwrap().push(record);
    }

    /// From now on another node is to ask the origin.
    pub fn has(&self, resolver: Resolver) {
        *self.resolver.lock().unwrap() = Some(resolver);
    }

    /// What they were told, once.
    pub fn was_told(&self) -> Vec<TagRecord> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    pub fn falls_silent(&self) {
        self.records.lock().unwrap().clear();
    }
}

impl Site for Said {
    fn records(&self, reference: &Reference, class: LinkClass) -> BoxFuture<'_, Vec<TagRecord>> {
        let reference = reference.to_string();
        async move {
            let said = match class {
                LinkClass::Lan => self.records.lock().unwrap(),
                LinkClass::Wan => {
                    self.asking_afar.fetch_add(1, Ordering::Relaxed);
                    self.far.lock().unwrap()
                }
            };
            said.iter().filter(|record| record.reference.as_str() == reference).cloned().collect()
        }
        .boxed()
    }

    fn meetings(&self) -> u64 {
        self.meetings.load(Ordering::Relaxed)
    }

    fn has_resolver(&self, _: &Reference) -> bool {
        self.resolver.lock().unwrap().is_some()
    }

    fn resolve(&self, _: &Reference, anybody: bool) -> BoxFuture<'_, Option<Resolution>> {
        let count = if anybody { &self.asking_anybody } else { &self.resolving };
        count.fetch_add(1, Ordering::Relaxed);
        let resolver = self.resolver.lock().unwrap().clone();
        async move {
            match resolver? {
                Resolver::Says(told, after) => {
                    tokio::time::sleep(after).await;
                    Some(*told)
                }
                Resolver::Silent => {
                    tokio::time::sleep(RESOLVE_TIME).await;
                    None
                }
            }
        }
        .boxed()
    }

    fn moved(&self, record: TagRecord) -> BoxFuture<'_, ()> {
        self.told.lock().unwrap().push(record);
        async {}.boxed()
    }

    fn tags(
        &self,
        host: &Host,
        repository: &Repository,
        known: BTreeSet<String>,
    ) -> BoxFuture<'_, BTreeSet<String>> {
        let prefix = format!("{host}/{repository}:");
        async move {
            let said = self.records.lock().unwrap();
            let tag = |record: &TagRecord| record.reference.strip_prefix(&prefix).map(str::to_owned);
            known.into_iter().chain(said.iter().filter_map(tag)).collect()
        }
        .boxed()
    }
}

/// What nodes say that they hold: a digest, and bytes that may be others than the digest's.
pub struct Holders {
    held: Mutex<Vec<(Digest, Bytes)>>,
    /// Whether they give more than each blob's last chunk.
    pub giving: watch::Sender<bool>,
}

impl Default for Holders {
    fn default() -> Self {
        Self { held: Mutex::default(), giving: watch::Sender::new(true) }
    }
}

impl Holders {
    /// One more node holds this, as it says.
    pub fn hold(&self, digest: Digest, bytes: &Bytes) {
        self.held.lock().unwrap().push((digest, bytes.clone()));
    }

    fn node(number: usize) -> NodeId {
        SecretKey::from_seed([100 + number as u8; 32]).node()
    }

    fn of(&self, node: NodeId, digest: Digest, size: u64) -> Option<Bytes> {
        let held = self.held.lock().unwrap();
        let mut numbered = held.iter().enumerate();
        let (_, (_, bytes)) = numbered.find(|(number, (held, bytes))| {
            (Self::node(*number), *held, bytes.len() as u64) == (node, digest, size)
        })?;
        Some(bytes.clone())
    }
}

impl Peers for Holders {
    fn me(&self) -> NodeId {
        own_key().node()
    }

    fn search(&self, digest: Digest, scope: Scope) -> BoxStream<'static, Found> {
        if scope != Scope::Site {
            return stream::empty().boxed();
        }
        let held = self.held.lock().unwrap().clone();
        let offers = held.into_iter().enumerate().filter(move |(_, (held, _))| *held == digest);
        let found = offers.map(|(number, (_, bytes))| Found {
            node: Self::node(number),
            class: LinkClass::Lan,
            size: bytes.len() as u64,
            arriving: None,
        });
        stream::iter(found.collect::<Vec<_>>()).boxed()
    }

    fn chain(
        &self,
        node: NodeId,
        digest: Digest,
        size: u64,
        _: Option<Arc<StateChain>>,
    ) -> BoxFuture<'_, Result<Arc<StateChain>, PeerError>> {
        async move {
            let bytes = self.of(node, digest, size);
            let bytes = bytes.ok_or_else(|| PeerError::Left("it does not hold it".to_owned()))?;
            let map = ChunkMap::new(size).unwrap();
            let mut chain = ChainBuilder::new(digest.algorithm(), map);
            chain.update(&bytes).unwrap();
            // Whatever its bytes are, it claims that they lead to the digest.
            let states = chain.finish().unwrap().to_bytes();
            Ok(Arc::new(StateChain::from_bytes(digest, map, &states).unwrap()))
        }
        .boxed()
    }

    fn chunk(
        &self,
        node: NodeId,
        digest: Digest,
        map: ChunkMap,
        index: ChunkIndex,
        _: oneshot::Sender<()>,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        async move {
            let bytes = self.of(node, digest, map.size());
            let bytes = bytes.ok_or_else(|| PeerError::Failed("it does not hold it".to_owned()))?;
            if index != map.last() {
                let _ = self.giving.subscribe().wait_for(|giving| *giving).await;
            }
            let from = map.offset(index) as usize;
            Ok(bytes.slice(from..from + map.len(index) as usize))
        }
        .boxed()
    }

    fn ready(&self, _: NodeId) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn ban<'a>(&'a self, _: NodeId, _: &'a str) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn announce(&self, _: Digest) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}
