//! Members of the network that lie: the real swarm, with a store that is not true.
//!
//! Everything that such a node says is signed, admitted and well-formed, as it would be from a machine that somebody
//! took over; only what it claims to hold differs from what it has.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use wherry_node::identity;
use wherry_node::swarm::{self, Holdings, ReadAt, Swarm, SwarmSettings};
use wherry_proto::{Algorithm, ChainBuilder, ChunkMap, Digest, StateChain, TagRecord};

use crate::lab::Lab;
use crate::network::Network;
use crate::node::{Options, Wherry};

/// How a liar treats the one blob that it claims to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Its chain is true, and every chunk but the last is wrong.
    WrongBytes,
    /// It sends the truth until this many bytes were read, and then nothing more, without closing anything.
    FallsSilent(u64),
    /// It says that it holds the blob, and then that it does not.
    HoldsNothing,
    /// The front half of its chain is invented, and so are its chunks: each links to the next, up to the middle.
    InventedChain,
}

/// A lying node. It ends when this value goes.
pub struct Liar {
    peer_id: String,
    addresses: Vec<String>,
    asked: Arc<AtomicU64>,
    silence: Arc<Silence>,
    stop: CancellationToken,
    runtime: Option<Runtime>,
    _swarm: Swarm,
}

impl Liar {
    /// Starts a member of the network that claims to hold the blob of these bytes.
    ///
    /// # Errors
    /// When it cannot be admitted or started.
    pub fn start(
        lab: &Lab,
        network: &Network,
        name: &str,
        truth: &[u8],
        lie: Lie,
        known: &[&Wherry],
    ) -> Result<Self> {
        let folder = Wherry::new(lab, name, Options::default())?;
        network.admit(&folder)?;
        let member = identity::load_or_create(folder.data(), now())?;
        let mut bootstrap = Vec::new();
        for other in known {
            bootstrap.extend(other.addresses()?.peers.iter().cloned());
        }
        let settings = SwarmSettings {
            key: member.key,
            membership: Some(member.certificate),
            min_epoch: 0,
            site: "default".to_owned(),
            peers: "127.0.0.1:0".parse()?,
            bulk: TcpListener::bind("127.0.0.1:0")?,
            bootstrap,
            mdns: false,
            remembered: Vec::new(),
            announce_after: Duration::ZERO,
            clock: Arc::new(now),
        };
        let (asked, silence) = (Arc::new(AtomicU64::new(0)), Arc::new(Silence::default()));
        let store = Arc::new(Pretended::new(truth, lie, asked.clone(), silence.clone())?);
        let digest = store.digest;
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let swarm = runtime.block_on(async {
            let swarm = swarm::start(settings, store, stop.clone()).await?;
            swarm.client().announce(digest).await;
            anyhow::Ok(swarm)
        })?;
        Ok(Self {
            peer_id: swarm.client().me().to_string(),
            addresses: swarm.addresses().peers,
            asked,
            silence,
            stop,
            runtime: Some(runtime),
            _swarm: swarm,
        })
    }

    /// Its peer id, as logs name it.
    pub fn peer_id(&self) -> &str {
        &self.peer_id
    }

    /// Where others reach it.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// How often somebody wanted the chain or a chunk of its blob.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.cancel();
        self.silence.end();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Where reads of a silent liar wait for its end.
#[derive(Default)]
struct Silence {
    over: Mutex<bool>,
    changed: Condvar,
}

impl Silence {
    fn wait(&self) {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        while !*over {
            over = self.changed.wait(over).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

/// A store with one blob that is not as it says.
struct Pretended {
    digest: Digest,
    chain: StateChain,
    bytes: Arc<Bytes>,
    lie: Lie,
    asked: Arc<AtomicU64>,
}

struct Bytes {
    bytes: Vec<u8>,
    silent_after: u64,
    read: AtomicU64,
    asked: Arc<AtomicU64>,
    silence: Arc<Silence>,
}

impl Pretended {
    fn new(truth: &[u8], lie: Lie, asked: Arc<AtomicU64>, silence: Arc<Silence>) -> Result<Self> {
        let map = ChunkMap::new(truth.len() as u64)?;
        let digest = Digest::sha256(truth);
        let mut chain = chain_of(truth, map)?;
        let mut bytes = truth.to_vec();
        match lie {
            Lie::WrongBytes => invert(&mut bytes, map.offset(map.last())),
            Lie::InventedChain => {
                let middle = map.index(map.count() / 2).context("a blob of one chunk has no middle")?;
                invert(&mut bytes, map.offset(middle));
                let invented = chain_of(&bytes, map)?.to_bytes();
                let mut states = chain.to_bytes();
                // State i is the one that chunk i starts from; the one of chunk 0 is SHA-256's own and not listed.
                let false_states = middle.get() as usize * Algorithm::Sha256.output_len();
                states[..false_states].copy_from_slice(&invented[..false_states]);
                chain = StateChain::from_bytes(digest, map, &states)?;
            }
            Lie::FallsSilent(_) | Lie::HoldsNothing => {}
        }
        let silent_after = if let Lie::FallsSilent(after) = lie { after } else { u64::MAX };
        let read = AtomicU64::new(0);
        let bytes = Arc::new(Bytes { bytes, silent_after, read, asked: asked.clone(), silence });
        Ok(Self { digest, chain, bytes, lie, asked })
    }
}

fn chain_of(bytes: &[u8], map: ChunkMap) -> Result<StateChain> {
    let mut builder = ChainBuilder::new(Algorithm::Sha256, map);
    builder.update(bytes)?;
    Ok(builder.finish()?)
}

/// Turns all bits up to an offset.
fn invert(bytes: &mut [u8], end: u64) {
    let end = usize::try_from(end).unwrap_or(bytes.len());
    bytes[..end].iter_mut().for_each(|byte| *byte = !*byte);
}

impl Holdings for Pretended {
    fn held(&self, digest: &Digest) -> Option<u64> {
        (*digest == self.digest).then_some(self.chain.map().size())
    }

    fn chain(&self, digest: &Digest) -> Option<StateChain> {
        if *digest != self.digest {
            return None;
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        (self.lie != Lie::HoldsNothing).then(|| self.chain.clone())
    }

    fn open(&self, digest: &Digest) -> io::Result<Option<Arc<dyn ReadAt>>> {
        let holds = *digest == self.digest && self.lie != Lie::HoldsNothing;
        Ok(holds.then(|| self.bytes.clone() as Arc<dyn ReadAt>))
    }

    fn tag(&self, _reference: &str) -> Option<TagRecord> {
        None
    }
}

impl ReadAt for Bytes {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.read.fetch_add(buf.len() as u64, Ordering::SeqCst) >= self.silent_after {
            self.silence.wait();
        }
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let range = self.bytes.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
