//! How fast the gateway serves what is stored, beside docker-registry serving the same bytes from the same
//! disk, each as a process of its own. `cargo bench -p wherry-gateway` prints a table; `--quick` after `--`
//! takes a tenth of the time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use wherry_gateway::TagOrDigest;
use wherry_gateway::server::{
    Ask, BlobReader, Body, Content, ManifestAnswer, Push, Refusal, RefusalKind, ServerOptions, StoredFile,
    Want, serve,
};
use wherry_proto::Digest;

const BIG: u64 = 1 << 30;
const SMALL: usize = 10 << 10;
const CONNECTIONS: usize = 32;
const ROUNDS: usize = 9;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, serve, way, dir] = &arguments[..]
        && serve == "serve"
    {
        return run_server(way, dir.into());
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let storage = tempfile::tempdir().unwrap();
    let big = store(storage.path(), BIG as usize);
    let small = store(storage.path(), SMALL);
    let rounds = if quick { 2 } else { ROUNDS };
    let mut runs: Vec<Run> = WAYS.iter().map(|way| Run::new(way, storage.path())).collect();
    let mut buffer = vec![0; 1 << 20];
    for run in &runs {
        // The first read of each is not measured: it fills the page cache and the server's pools.
        read(run.server.address, &big, &mut buffer);
    }
    // In turns, so that whatever else the machine does meets all alike.
    for _ in 0..rounds {
        for run in &mut runs {
            let cpu = run.server.cpu();
            run.rates.push(rate(read(run.server.address, &big, &mut buffer)));
            run.cpu += run.server.cpu() - cpu;
            run.discarded.push(rate(discard(run.server.address, &big)));
        }
    }
    for _ in 0..rounds {
        for run in &mut runs {
            run.requests.push(request_rate(run.server.address, &small, Duration::from_secs(1)));
        }
    }
    println!(
        "{:<28}{:>20}{:>12}{:>18}{:>14}{:>10}",
        "", "1 GiB: median, best", "server CPU", "client discards", "10 KiB × 32", "RSS"
    );
    for run in &mut runs {
        let (median, best) = median_and_best(&mut run.rates);
        let (discarded, _) = median_and_best(&mut run.discarded);
        let (requests, _) = median_and_best(&mut run.requests);
        let cpu = run.cpu.as_secs_f64() / rounds as f64;
        let (way, rss) = (run.way, run.server.rss() >> 20);
        println!(
            "{way:<28}{:>8.2} {:>6.2} GB/s{cpu:>10.3} s{:>13.2} GB/s{requests:>12.0}/s{rss:>6} MiB",
            median / 1e9,
            best / 1e9,
            discarded / 1e9
        );
    }
}

const WAYS: [&str; 3] = ["sendfile", "stream of 256 KiB preads", "docker-registry"];

/// One server and what was measured of it.
struct Run {
    way: &'static str,
    server: Server,
    rates: Vec<f64>,
    discarded: Vec<f64>,
    requests: Vec<f64>,
    cpu: Duration,
}

impl Run {
    fn new(way: &'static str, storage: &Path) -> Self {
        let server = Server::start(way, storage);
        Self {
            way,
            server,
            rates: Vec::new(),
            discarded: Vec::new(),
            requests: Vec::new(),
            cpu: Duration::ZERO,
        }
    }
}

fn median_and_best(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() - 1])
}

/// Puts a blob where docker-registry looks for it, and returns its digest.
fn store(root: &Path, size: usize) -> Digest {
    let mut bytes = vec![0; size];
    let mut state = size as u64 | 1;
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    let digest = Digest::sha256(&bytes);
    let path = data_path(root, &digest);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
    let link = root.join(format!("docker/registry/v2/repositories/test/_layers/sha256/{}", digest.hex()));
    fs::create_dir_all(&link).unwrap();
    fs::write(link.join("link"), digest.to_string()).unwrap();
    digest
}

fn data_path(root: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    root.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
}

struct Server {
    child: Child,
    address: SocketAddr,
    _config: tempfile::NamedTempFile,
}

impl Server {
    fn start(way: &str, storage: &Path) -> Self {
        let mut config = tempfile::NamedTempFile::new().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = if way == "docker-registry" {
            let root = storage.display();
            write!(
                config,
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\nhttp: {{addr: '{address}'}}\n"
            )
            .unwrap();
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(config.path());
            command
        } else {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["serve", way]).arg(storage).env("ADDRESS", address.to_string());
            command
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{way} does not listen");
            std::thread::yield_now();
        }
        Self { child, address, _config: config }
    }

    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(digest: &Digest) -> String {
    format!("GET /v2/test/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n")
}

fn rate(time: Duration) -> f64 {
    BIG as f64 / time.as_secs_f64()
}

/// How long a client takes that copies what it gets.
fn read(address: SocketAddr, digest: &Digest, buffer: &mut [u8]) -> Duration {
    take(address, digest, |stream| stream.read(buffer).unwrap())
}

/// How long a client takes that costs as little as can be, so that the server is the limit.
fn discard(address: SocketAddr, digest: &Digest) -> Duration {
    let mut buffer = vec![0; 1 << 20];
    take(address, digest, |stream| {
        let (_, n) = rustix::net::recv(&*stream, &mut buffer[..], rustix::net::RecvFlags::TRUNC).unwrap();
        n
    })
}

fn take(address: SocketAddr, digest: &Digest, mut some: impl FnMut(&mut TcpStream) -> usize) -> Duration {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request(digest).as_bytes()).unwrap();
    let mut total = 0;
    while total < BIG {
        let n = some(&mut stream);
        assert!(n > 0, "closed after {total} bytes");
        total += n as u64;
    }
    begun.elapsed()
}

/// Requests a second over [`CONNECTIONS`] connections that are kept.
fn request_rate(address: SocketAddr, digest: &Digest, time: Duration) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let request = Arc::new(request(digest));
    let total: u64 = runtime.block_on(async {
        let until = tokio::time::Instant::now() + time;
        let clients = (0..CONNECTIONS).map(|_| tokio::spawn(client(address, Arc::clone(&request), until)));
        let counts = futures::future::join_all(clients.collect::<Vec<_>>()).await;
        counts.into_iter().map(Result::unwrap).sum()
    });
    total as f64 / time.as_secs_f64()
}

async fn client(address: SocketAddr, request: Arc<String>, until: tokio::time::Instant) -> u64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut done = 0;
    while tokio::time::Instant::now() < until {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut filled = 0;
        let mut expected = usize::MAX;
        while filled < expected {
            let n = stream.read(&mut buffer[filled..]).await.unwrap();
            assert!(n > 0);
            filled += n;
            if expected == usize::MAX
                && let Some(head) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n")
            {
                assert!(buffer.starts_with(b"HTTP/1.1 200"));
                expected = head + 4 + SMALL;
            }
        }
        done += 1;
    }
    done
}

/// The server's process.
fn run_server(way: &str, root: PathBuf) {
    let streams = way != "sendfile";
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let address: SocketAddr = std::env::var("ADDRESS").unwrap().parse().unwrap();
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        serve(listener, Arc::new(Disk { root, streams }), ServerOptions::default(), CancellationToken::new())
            .await;
    });
}

struct Disk {
    root: PathBuf,
    streams: bool,
}

struct Blob {
    file: Arc<File>,
    size: u64,
    streams: bool,
}

impl Push for Disk {}

impl Content for Disk {
    type Blob = Blob;

    async fn manifest(&self, _: Ask, _: TagOrDigest, _: Want) -> Result<ManifestAnswer, Refusal> {
        Err(Refusal::new(RefusalKind::ManifestUnknown, "none here"))
    }

    async fn blob(&self, _: Ask, digest: Digest, _: Want) -> Result<Blob, Refusal> {
        let file = File::open(data_path(&self.root, &digest)).unwrap();
        let size = file.metadata().unwrap().len();
        Ok(Blob { file: Arc::new(file), size, streams: self.streams })
    }

    async fn tags(&self, _: Ask) -> Result<Vec<String>, Refusal> {
        Ok(Vec::new())
    }
}

impl BlobReader for Blob {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, range: Range<u64>) -> Result<Body, Refusal> {
        let file = Arc::clone(&self.file);
        if !self.streams {
            return Ok(Body::File(StoredFile::new(file, range.start, range.end - range.start)));
        }
        let pieces = futures::stream::unfold(range.start, move |at| {
            let file = Arc::clone(&file);
            let len = (256 << 10).min(range.end - at) as usize;
            async move {
                if len == 0 {
                    return None;
                }
                let read = move || {
                    let mut buffer = vec![0; len];
                    file.read_exact_at(&mut buffer, at).unwrap();
                    Bytes::from(buffer)
                };
                let bytes =
                    if len < 64 << 10 { read() } else { tokio::task::spawn_blocking(read).await.unwrap() };
                Some((Ok(bytes), at + len as u64))
            }
        });
        Ok(Body::Stream(pieces.boxed()))
    }
}
