//! The limit for taking a blob from a peer: plain TCP, SHA-256 and a synced write to the same disk, in two processes,
//! with hashing and writing each in a thread of its own.

use std::fs::File;
use std::io::{Read as _, Write as _, copy};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};
use wherry_tests::blobs::Noise;
use wherry_tests::lab::Lab;
use wherry_tests::process::{Process, run, tool, usage};

use super::table::{Goal, Table, median};

/// What is read and written at once.
const PIECE: usize = 256 * 1024;

/// How many pieces wait for the hash or the disk.
const QUEUE: usize = 16;

const LIMIT: Duration = Duration::from_secs(120);

/// One GiB.
pub(crate) const GIB: u64 = 1 << 30;

/// How often each side of a comparison runs.
pub(crate) const TURNS: usize = 5;

/// The sending process: gives a file to whoever connects.
pub(crate) fn send(file: &Path) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("listens {}", listener.local_addr()?);
    for client in listener.incoming() {
        let mut client = client?;
        let mut file = File::open(file)?;
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece)? {
                0 => break,
                n => client.write_all(&piece[..n])?,
            }
        }
    }
    Ok(())
}

/// The receiving process: takes all, hashes it and writes it, then prints seconds and CPU seconds.
pub(crate) fn receive(addr: SocketAddr, path: &Path) -> Result<()> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(addr)?;
    let (to_hash, hash_pieces) = sync_channel::<Arc<Vec<u8>>>(QUEUE);
    let (to_disk, disk_pieces) = sync_channel::<Arc<Vec<u8>>>(QUEUE);
    let (give_back, used) = sync_channel::<Vec<u8>>(2 * QUEUE + 4);
    let digest = std::thread::scope(|scope| {
        let give_back = &give_back;
        let hash = scope.spawn(move || {
            let mut hash = Sha256::new();
            for piece in hash_pieces {
                hash.update(&*piece);
                reuse(piece, give_back);
            }
            hash.finalize()
        });
        let disk = scope.spawn(move || -> Result<()> {
            let mut file = File::create(path)?;
            for piece in disk_pieces {
                file.write_all(&piece)?;
                reuse(piece, give_back);
            }
            Ok(file.sync_all()?)
        });
        loop {
            let mut piece = used.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
            piece.resize(PIECE, 0);
            let n = stream.read(&mut piece)?;
            if n == 0 {
                break;
            }
            piece.truncate(n);
            let piece = Arc::new(piece);
            to_hash.send(piece.clone())?;
            to_disk.send(piece)?;
        }
        drop((to_hash, to_disk));
        disk.join().ok().context("the writer")??;
        hash.join().ok().context("the hash")
    })?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{seconds} {} {}", usage(std::process::id())?.cpu, digest[0]);
    Ok(())
}

/// Whoever lets a piece go last gives its memory back.
fn reuse(piece: Arc<Vec<u8>>, give_back: &std::sync::mpsc::SyncSender<Vec<u8>>) {
    if let Some(memory) = Arc::into_inner(piece) {
        let _ = give_back.try_send(memory);
    }
}

/// Waits until nothing is being written any more, so that no run pays for the one before it.
pub(crate) fn settle() {
    rustix::fs::sync();
}

/// One measurement: MB/s, and CPU seconds a GiB of both processes together.
#[derive(Clone, Copy)]
pub(crate) struct Carried {
    /// Million bytes a second.
    pub(crate) rate: f64,
    /// CPU seconds of both ends.
    pub(crate) cpu: f64,
}

/// A sender that is ready, with a file in its page cache.
pub(crate) struct Plain {
    sender: Process,
    addr: SocketAddr,
}

impl Plain {
    /// Writes a file of a GiB and starts its sender.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let path = lab.path().join("plain.source");
        copy(&mut Noise::new(77, GIB), &mut File::create(&path)?)?;
        let me = std::env::current_exe()?;
        let mut sender = Process::start("plain-send", &lab.logs(), Signal::KILL, me, |command| {
            command.arg("plain-send").arg(&path);
        })?;
        let addr = sender.wait_for_output("where it listens", LIMIT, |text| {
            text.lines().find_map(|line| line.strip_prefix("listens ")?.parse().ok())
        })?;
        Ok(Self { sender, addr })
    }

    /// Carries the file once.
    pub(crate) fn carry(&self, lab: &Lab) -> Result<Carried> {
        let target = lab.path().join("plain.target");
        settle();
        let before = self.sender.usage()?.cpu;
        let me = std::env::current_exe()?;
        let said = run(tool(me, LIMIT).args(["plain-receive", &self.addr.to_string()]).arg(&target))?;
        let sender = self.sender.usage()?.cpu - before;
        std::fs::remove_file(target)?;
        let mut numbers = said.split_whitespace();
        let mut number = || -> Result<f64> { Ok(numbers.next().context("a number")?.parse()?) };
        let (seconds, receiver) = (number()?, number()?);
        Ok(Carried { rate: GIB as f64 / 1e6 / seconds, cpu: sender + receiver })
    }
}

/// The limit alone.
pub(crate) fn limit(table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let plain = Plain::start(&lab)?;
    let runs: Vec<Carried> = (0..TURNS).map(|_| plain.carry(&lab)).collect::<Result<_>>()?;
    let rate = median(runs.iter().map(|run| run.rate).collect());
    table.figure("plain TCP + SHA-256 + synced write, 1 GiB", rate, "MB/s", Goal::None);
    table.figure("  CPU of both ends", median(runs.iter().map(|run| run.cpu).collect()), "s/GiB", Goal::None);
    Ok(())
}
