//! Two nodes' exchange without anything around it: a blob goes from the giver's page cache into the taker's memory,
//! and is neither hashed nor written there.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use wherry_node::swarm::{self, Client, Holdings, ReadAt, Swarm, SwarmSettings};
use wherry_proto::{
    Algorithm, Certificate, ChainBuilder, ChunkMap, Digest, Roles, SecretKey, StateChain, TagRecord,
};

/// How many chunks are under way.
const WINDOW: usize = 8;

/// What is hashed at once, in bytes.
const PIECE: usize = 1 << 20;

/// How a taker reaches its giver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the bulk plane.
    Bulk,
    /// By a libp2p stream, since the bulk plane is where nobody looks for it.
    Stream,
}

impl Way {
    /// The name by which a process is told.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Stream => "stream",
        }
    }

    /// Where the giver has its bulk listener: it is looked for at the address by which libp2p reaches the node.
    fn listener(self) -> [u8; 4] {
        match self {
            Self::Bulk => [127, 0, 0, 1],
            Self::Stream => [127, 0, 0, 2],
        }
    }
}

impl FromStr for Way {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let way = [Self::Bulk, Self::Stream].into_iter().find(|way| way.name() == name);
        way.with_context(|| format!("there is no way '{name}'"))
    }
}

/// The one blob that is held, if any.
struct Shelf(Option<(StateChain, PathBuf)>);

impl Shelf {
    fn find(&self, digest: &Digest) -> Option<&(StateChain, PathBuf)> {
        self.0.as_ref().filter(|(chain, _)| chain.digest() == *digest)
    }
}

impl Holdings for Shelf {
    fn held(&self, digest: &Digest) -> Option<u64> {
        self.find(digest).map(|(chain, _)| chain.map().size())
    }

    fn chain(&self, digest: &Digest) -> Option<StateChain> {
        self.find(digest).map(|(chain, _)| chain.clone())
    }

    fn open(&self, digest: &Digest) -> std::io::Result<Option<Arc<dyn ReadAt>>> {
        let open = |(_, path): &(StateChain, PathBuf)| Ok(Arc::new(File::open(path)?) as Arc<dyn ReadAt>);
        self.find(digest).map(open).transpose()
    }

    fn tag(&self, _: &str) -> Option<TagRecord> {
        None
    }
}

/// Reads a file, so that it is in the page cache, for its chain.
fn chain(path: &Path) -> Result<StateChain> {
    let mut file = File::open(path)?;
    let map = ChunkMap::new(file.metadata()?.len())?;
    let mut builder = ChainBuilder::new(Algorithm::Sha256, map);
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(builder.finish()?),
            n => builder.update(&piece[..n])?,
        }
    }
}

const OPERATOR: u8 = 1;
const GIVER: u8 = 2;
const TAKER: u8 = 3;

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

async fn start(number: u8, way: Way, bootstrap: Vec<String>, shelf: Shelf) -> Result<Swarm> {
    let key = key(number);
    let settings = SwarmSettings {
        membership: Some(Certificate::sign(&self::key(OPERATOR), key.node(), Roles::MEMBER, 0, u64::MAX)),
        key,
        min_epoch: 0,
        site: "bench".to_owned(),
        peers: "127.0.0.1:0".parse()?,
        bulk: TcpListener::bind((IpAddr::from(way.listener()), 0))?,
        bootstrap,
        mdns: false,
        remembered: vec![],
        announce_after: Duration::ZERO,
        clock: Arc::new(|| 0),
    };
    Ok(swarm::start(settings, Arc::new(shelf), CancellationToken::new()).await?)
}

/// The giving process: prints `listens` with an address, a digest and a length, and gives the file to whoever asks.
pub(crate) fn give(way: &str, file: &Path) -> Result<()> {
    let chain = chain(file)?;
    let (digest, size) = (chain.digest(), chain.map().size());
    Runtime::new()?.block_on(async {
        let swarm = start(GIVER, way.parse()?, vec![], Shelf(Some((chain, file.to_owned())))).await?;
        let address = swarm.addresses().peers.into_iter().next().context("the giver listens nowhere")?;
        println!("listens {address} {digest} {size}");
        std::future::pending().await
    })
}

/// The taking process: connects and prints `ready`; then, for each line of its standard input, takes the blob once
/// and prints how many bytes came.
pub(crate) fn take(way: &str, address: &str, digest: &str, size: &str) -> Result<()> {
    let (way, digest, map) = (way.parse()?, digest.parse()?, ChunkMap::new(size.parse()?)?);
    let runtime = Runtime::new()?;
    let swarm = runtime.block_on(async {
        let swarm = start(TAKER, Way::Bulk, vec![address.to_owned()], Shelf(None)).await?;
        let client = swarm.client();
        let mut notices = client.notices();
        while client.neighbours().is_empty() {
            notices.recv().await?;
        }
        anyhow::Ok(swarm)
    })?;
    println!("ready");
    for line in std::io::stdin().lines() {
        line?;
        // In a task, as transfers are: this thread would have to be woken for each chunk.
        let taken = runtime.spawn(take_once(swarm.client(), way, digest, map));
        println!("{}", runtime.block_on(taken)??);
    }
    Ok(())
}

async fn take_once(client: Client, way: Way, digest: Digest, map: ChunkMap) -> Result<u64> {
    let exchange = client.exchange(key(GIVER).node()).await?;
    ensure!(exchange.is_direct() == (way == Way::Bulk), "the exchange does not go by {}", way.name());
    let lengths = stream::iter(map.iter())
        .map(|index| exchange.chunk(digest, map, index, |_| {}))
        .buffered(WINDOW)
        .map_ok(|chunk| chunk.len() as u64);
    Ok(lengths.try_fold(0, |sum, len| async move { Ok(sum + len) }).await?)
}
