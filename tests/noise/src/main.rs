//! One stream of the usual libp2p stack, TCP with Noise and yamux: what the bulk plane's CPU is measured against.
//!
//! `wherry-noise give FILE` prints `listens MULTIADDR` and gives the file to whoever opens a stream. `wherry-noise take
//! MULTIADDR` connects and prints `ready`; then, for each line of its standard input, it takes the file once, into
//! memory, and prints how many bytes came. `wherry-bench` starts both, and reads their CPU time around each turn.

use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use libp2p_stream::Behaviour;
use tokio::runtime::Runtime;
use tokio::time::timeout;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/wherry-noise/1");

/// What is read and written at once.
const PIECE: usize = 256 * 1024;

/// How long connecting, and taking all once, may last.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = Runtime::new()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["give", file] => runtime.block_on(give(file)),
        ["take", addr] => take(&runtime, addr.parse()?),
        _ => bail!("wherry-noise give FILE | take MULTIADDR"),
    }
}

/// A swarm of one protocol, whose connections stay between two turns.
fn swarm() -> Result<Swarm<Behaviour>> {
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)?
        .with_behaviour(|_| Behaviour::new())?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3600)))
        .build())
}

async fn give(file: &str) -> Result<()> {
    let mut swarm = swarm()?;
    let mut streams = swarm.behaviour().new_control().accept(PROTOCOL)?;
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    loop {
        tokio::select! {
            event = swarm.select_next_some() => if let SwarmEvent::NewListenAddr { address, .. } = event {
                println!("listens {}", address.with(Protocol::P2p(*swarm.local_peer_id())));
            },
            stream = streams.next() => {
                let (_, stream) = stream.context("no streams any more")?;
                let file = File::open(file)?;
                tokio::spawn(async move {
                    if let Err(error) = send(file, stream).await {
                        eprintln!("cannot give: {error:#}");
                    }
                });
            }
        }
    }
}

async fn send(mut file: File, mut stream: Stream) -> Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        // The file is in the page cache, so that this does not wait.
        match file.read(&mut piece)? {
            0 => return Ok(stream.close().await?),
            n => stream.write_all(&piece[..n]).await?,
        }
    }
}

fn take(runtime: &Runtime, addr: Multiaddr) -> Result<()> {
    let Some(Protocol::P2p(peer)) = addr.iter().last() else { bail!("{addr} names no peer") };
    let control = runtime.block_on(async { timeout(LIMIT, connect(addr)).await? })?;
    println!("ready");
    for line in std::io::stdin().lines() {
        line?;
        // In a task: this thread would have to be woken for each piece.
        let control = control.clone();
        let received = runtime.spawn(async move { timeout(LIMIT, receive(control, peer)).await? });
        println!("{}", runtime.block_on(received)??);
    }
    Ok(())
}

/// Connects, and leaves the swarm to a task of its own.
async fn connect(addr: Multiaddr) -> Result<libp2p_stream::Control> {
    let mut swarm = swarm()?;
    let control = swarm.behaviour().new_control();
    swarm.dial(addr)?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { .. } => break,
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    Ok(control)
}

async fn receive(mut control: libp2p_stream::Control, peer: PeerId) -> Result<u64> {
    let mut stream = control.open_stream(peer, PROTOCOL).await?;
    stream.close().await?;
    let mut piece = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        match stream.read(&mut piece).await? {
            0 => return Ok(bytes),
            n => bytes += n as u64,
        }
    }
}
