//! How fast one node takes a blob from another over loopback, beside plain TCP: `exchange_speed [MIB [WHAT]]`,
//! where WHAT is a part of the name of the one measurement to make.
//!
//! The giving side is a process of its own, so that both sides' processor time can be told apart.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;
use wherry_node::swarm::{self, Holdings, ReadAt, SwarmSettings};
use wherry_proto::{
    Algorithm, Certificate, ChainBuilder, ChunkMap, Digest, Roles, SecretKey, State, StateChain, TagRecord,
    link,
};

/// How many chunks are under way.
const WINDOW: usize = 8;

/// How many small blobs are taken, and of which length.
const SMALL: (usize, usize) = (1000, 10 << 10);

struct Shelf {
    blobs: Vec<(StateChain, PathBuf)>,
}

impl Shelf {
    fn find(&self, digest: &Digest) -> Option<&(StateChain, PathBuf)> {
        self.blobs.iter().find(|(chain, _)| chain.digest() == *digest)
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

fn make(path: &Path, len: usize, seed: u64) -> Result<StateChain> {
    let map = ChunkMap::new(len as u64)?;
    let mut builder = ChainBuilder::new(Algorithm::Sha256, map);
    let mut file = File::create(path)?;
    let mut state = seed | 1;
    let mut left = len;
    while left > 0 {
        let block: Vec<u8> = (0..(left.min(1 << 20)).div_ceil(8))
            .flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            })
            .take(left.min(1 << 20))
            .collect();
        builder.update(&block)?;
        file.write_all(&block)?;
        left -= block.len();
    }
    Ok(builder.finish()?)
}

fn settings(number: u8, bootstrap: Vec<String>) -> Result<SwarmSettings> {
    let (operator, key) = (SecretKey::from_seed([1; 32]), SecretKey::from_seed([number; 32]));
    Ok(SwarmSettings {
        membership: Some(Certificate::sign(&operator, key.node(), Roles::MEMBER, 0, u64::MAX)),
        key,
        min_epoch: 0,
        site: "bench".to_owned(),
        peers: "127.0.0.1:0".parse()?,
        bulk: TcpListener::bind("127.0.0.1:0")?,
        bootstrap,
        mdns: false,
        remembered: vec![],
        announce_after: Duration::ZERO,
        clock: Arc::new(|| 0),
    })
}

/// The processor time that a process has used, in seconds.
fn cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().context("stat")?;
    let field = |n: usize| rest.split_whitespace().nth(n).and_then(|text| text.parse::<f64>().ok());
    Ok((field(11).context("utime")? + field(12).context("stime")?) / 100.0)
}

fn report(what: &str, bytes: usize, begun: Instant, taker: f64, giver: f64) {
    let (mib, seconds) = (bytes as f64 / f64::from(1 << 20), begun.elapsed().as_secs_f64());
    let gib = mib / 1024.0;
    println!(
        "{what:<42} {:>7.0} MB/s   {:>5.2} s   cpu s/GiB: taker {:.2}, giver {:.2}",
        bytes as f64 / 1e6 / seconds,
        seconds,
        taker / gib,
        giver / gib
    );
}

fn serve_plain(path: &Path) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    loop {
        let (mut socket, _) = listener.accept()?;
        let file = File::open(path)?;
        let mut buffer = vec![0; 512 << 10];
        let mut offset = 0;
        loop {
            let read = file.read_at(&mut buffer, offset)?;
            if read == 0 {
                break;
            }
            offset += read as u64;
            socket.write_all(&buffer[..read])?;
        }
    }
}

async fn serve(dir: &Path, len: usize) -> Result<()> {
    let mut blobs = vec![(make(&dir.join("large"), len, 7)?, dir.join("large"))];
    for n in 0..SMALL.0 {
        let path = dir.join(format!("small{n}"));
        blobs.push((make(&path, SMALL.1, 1000 + n as u64)?, path));
    }
    let shelf = Arc::new(Shelf { blobs: blobs.clone() });
    let swarm = swarm::start(settings(2, vec![])?, shelf.clone(), CancellationToken::new()).await?;
    let first = swarm.addresses().peers;
    // A second node, whose bulk plane nobody finds: it is taken from by a libp2p stream.
    let mut hidden = settings(4, first)?;
    hidden.bulk = TcpListener::bind("127.0.0.2:0")?;
    let hidden = swarm::start(hidden, shelf, CancellationToken::new()).await?;
    println!("{}", swarm.addresses().peers.first().context("no address")?);
    println!("{}", hidden.addresses().peers.first().context("no address")?);
    for (chain, _) in &blobs {
        println!("{} {}", chain.digest(), chain.map().size());
    }
    std::future::pending().await
}

fn spawn(arguments: &[&str]) -> Result<(Child, impl Iterator<Item = std::io::Result<String>> + use<>)> {
    let mut child = Command::new(std::env::current_exe()?).args(arguments).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    Ok((child, lines))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", dir, len] => runtime.block_on(serve(Path::new(dir), len.parse()?)),
        ["serve-plain", dir] => serve_plain(&Path::new(dir).join("large")),
        [] => runtime.block_on(measure(1024, "")),
        [mib] => runtime.block_on(measure(mib.parse()?, "")),
        [mib, what] => runtime.block_on(measure(mib.parse()?, what)),
        _ => bail!("exchange_speed [MIB [WHAT]]"),
    }
}

async fn measure(mib: usize, what: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_str().context("path")?;
    let len = mib << 20;
    let (mut giver, mut lines) = spawn(&["serve", path, &len.to_string()])?;
    let bootstrap = lines.by_ref().take(2).collect::<std::io::Result<Vec<_>>>()?;
    let mut blobs: Vec<(Digest, u64)> = Vec::new();
    for line in lines.by_ref().take(1 + SMALL.0) {
        let line = line?;
        let (digest, size) = line.split_once(' ').context("line")?;
        blobs.push((digest.parse()?, size.parse()?));
    }
    let (mut plain, mut lines) = spawn(&["serve-plain", path])?;
    let plain_address = lines.next().context("no address")??;

    let shelf = Arc::new(Shelf { blobs: vec![] });
    let swarm = swarm::start(settings(3, bootstrap)?, shelf, CancellationToken::new()).await?;
    let client = swarm.client();
    let mut notices = client.notices();
    while client.neighbours().len() < 2 {
        notices.recv().await?;
    }
    let exchange = client.exchange(SecretKey::from_seed([2; 32]).node()).await?;
    let by_stream = client.exchange(SecretKey::from_seed([4; 32]).node()).await?;
    anyhow::ensure!(exchange.is_direct() && !by_stream.is_direct());
    let (digest, size) = blobs[0];
    let (_, chain) = exchange.held(digest, size, None).await?;
    let map = chain.map();
    let out = dir.path().join("out");

    let me = std::process::id();
    for round in 0..3 {
        println!("round {round}");
        const PLAIN: &str = "plain TCP";
        if PLAIN.contains(what) {
            let (begun, before, given) = (Instant::now(), cpu(me)?, cpu(plain.id())?);
            plain_take(&plain_address, &out, false)?;
            report(PLAIN, len, begun, cpu(me)? - before, cpu(plain.id())? - given);
        }
        const PLAIN_STORED: &str = "plain TCP + SHA-256 + write";
        if PLAIN_STORED.contains(what) {
            let (begun, before, given) = (Instant::now(), cpu(me)?, cpu(plain.id())?);
            plain_take(&plain_address, &out, true)?;
            report(PLAIN_STORED, len, begun, cpu(me)? - before, cpu(plain.id())? - given);
        }
        const BULK: &str = "exchange";
        if BULK.contains(what) {
            let (begun, before, given) = (Instant::now(), cpu(me)?, cpu(giver.id())?);
            stream::iter(map.iter())
                .map(|index| exchange.chunk(digest, map, index, |_| {}))
                .buffered(WINDOW)
                .for_each(|chunk| async { drop(chunk) })
                .await;
            report(BULK, len, begun, cpu(me)? - before, cpu(giver.id())? - given);
        }
        const STREAM: &str = "exchange by a libp2p stream (TLS, yamux)";
        if STREAM.contains(what) {
            let (begun, before, given) = (Instant::now(), cpu(me)?, cpu(giver.id())?);
            stream::iter(map.iter())
                .map(|index| by_stream.chunk(digest, map, index, |_| {}))
                .buffered(WINDOW)
                .for_each(|chunk| async { drop(chunk) })
                .await;
            report(STREAM, len, begun, cpu(me)? - before, cpu(giver.id())? - given);
        }
        const BULK_STORED: &str = "exchange + link + write";
        if BULK_STORED.contains(what) {
            let _ = std::fs::remove_file(&out);
            let file = Arc::new(File::create(&out)?);
            let (begun, before, given) = (Instant::now(), cpu(me)?, cpu(giver.id())?);
            let chain = Arc::new(chain.clone());
            stream::iter(map.iter())
                .map(|index| {
                    let (exchange, file, chain) = (exchange.clone(), file.clone(), chain.clone());
                    async move {
                        let bytes = exchange.chunk(digest, map, index, |_| {}).await?;
                        tokio::task::spawn_blocking(move || {
                            if link(&map, index, chain.from(index), &bytes)? != chain.link(index) {
                                bail!("chunk {index} does not link");
                            }
                            Ok(file.write_all_at(&bytes, map.offset(index))?)
                        })
                        .await?
                    }
                })
                .buffered(WINDOW)
                .fold(Ok(()), |all: Result<()>, one| async { all.and(one) })
                .await?;
            report(BULK_STORED, len, begun, cpu(me)? - before, cpu(giver.id())? - given);
        }
        const SMALL_BLOBS: &str = "1,000 blobs of 10 KiB";
        if SMALL_BLOBS.contains(what) {
            let (begun, before, given) = (Instant::now(), cpu(me)?, cpu(giver.id())?);
            stream::iter(&blobs[1..])
                .map(|(digest, size)| {
                    let exchange = &exchange;
                    async move {
                        let map = ChunkMap::new(*size)?;
                        let bytes = exchange.chunk(*digest, map, map.first(), |_| {}).await?;
                        Ok(Digest::sha256(&bytes) == *digest)
                    }
                })
                .buffered(16)
                .fold(Ok(()), |all: Result<()>, one: Result<bool>| async {
                    all.and(one.and_then(|good| if good { Ok(()) } else { bail!("a wrong blob") }))
                })
                .await?;
            report(SMALL_BLOBS, SMALL.0 * SMALL.1, begun, cpu(me)? - before, cpu(giver.id())? - given);
        }
    }
    giver.kill()?;
    plain.kill()?;
    Ok(())
}

fn plain_take(address: &str, out: &Path, keep: bool) -> Result<()> {
    let _ = std::fs::remove_file(out);
    let mut socket = TcpStream::connect(address)?;
    let mut file = File::create(out)?;
    let mut state = State::initial(Algorithm::Sha256);
    let mut buffer = vec![0; 512 << 10];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match socket.read(&mut buffer[filled..])? {
                0 => break,
                some => filled += some,
            }
        }
        if filled == 0 {
            std::hint::black_box(state);
            return Ok(());
        }
        if keep {
            state = state.compress(&buffer[..filled]).0;
            file.write_all(&buffer[..filled])?;
        }
    }
}
