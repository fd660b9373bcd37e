//! A real HTTP server in front of an origin: it passes everything on, at a pace and up to a gate that tests set, and
//! with the faults that tests choose.
//!
//! What it counts as sent has left for the client, but for a few KiB that its socket buffers.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wherry_proto::Digest;

use crate::http::Request;

/// What is written at once: small, so that pace and gate are exact to a few KiB.
const PIECE: usize = 16 * 1024;

/// The socket's send buffer, so that little of what was 'sent' still sits in this process's kernel.
const SEND_BUFFER: usize = 32 * 1024;

/// The most bytes of a request's head that are read.
const HEAD_BOUND: u64 = 64 * 1024;

/// The most connections at once; more are closed.
const CONNECTIONS: usize = 256;

/// How a blob's answer differs from the truth. Manifests are never touched by these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The byte at this offset of the blob is another; the length is right.
    WrongByte(u64),
    /// A Range is ignored: 200 and the whole blob.
    IgnoresRange,
    /// A Range is confirmed with 206 and the right headers, but the bytes are those from the start of the blob.
    WrongRange,
    /// The answer is this many bytes shorter, and says so in its Content-Length.
    TooFew(u64),
    /// The answer is this many bytes longer, and says so in its Content-Length.
    TooMany(u64),
    /// The connection is closed after this many bytes of each answer, whatever its Content-Length said.
    EndsEarly(u64),
    /// The request is refused with this status.
    Refuses(u16),
}

/// One request that the relay was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The Range header.
    pub range: Option<String>,
}

#[derive(Default)]
struct State {
    faults: HashMap<Digest, Fault>,
    replaced: HashMap<String, (String, Vec<u8>)>,
    asked: Vec<Asked>,
    sent: HashMap<Digest, u64>,
    sent_total: u64,
    gate: Option<u64>,
    held: HashMap<Digest, u64>,
    /// Bytes a second over all connections, and when the next piece may leave.
    pace: Option<(u64, Instant)>,
    clients: Vec<(u64, TcpStream)>,
}

struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    ending: AtomicBool,
}

/// The relay; it ends when this value goes.
pub struct Relay {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts a relay before an origin, without any fault.
    ///
    /// # Errors
    /// When loopback has no free port.
    pub fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            state: Mutex::default(),
            changed: Condvar::new(),
            ending: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Ok(Self { addr, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its name in a reference: `HOST:PORT`.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// From now on this blob is answered with this fault.
    pub fn fault(&self, blob: Digest, fault: Fault) {
        self.shared.lock().faults.insert(blob, fault);
    }

    /// From now on all is answered as the origin does.
    pub fn heal(&self) {
        self.shared.lock().faults.clear();
    }

    /// From now on this path is answered with these bytes, whatever the origin has there.
    pub fn replace(&self, path: &str, media_type: &str, bytes: &[u8]) {
        self.shared.lock().replaced.insert(path.to_owned(), (media_type.to_owned(), bytes.to_owned()));
    }

    /// From now on all blobs together leave at this many bytes a second.
    pub fn pace(&self, bytes_per_second: u64) {
        self.shared.lock().pace = Some((bytes_per_second, Instant::now()));
    }

    /// Holds every blob's answer once this many blob bytes have left in all; connections stay open.
    pub fn gate_at(&self, total: u64) {
        self.shared.lock().gate = Some(total);
        self.shared.changed.notify_all();
    }

    /// Holds the answers about this blob once this many of its bytes have left; those about others pass.
    pub fn hold_at(&self, blob: Digest, bytes: u64) {
        self.shared.lock().held.insert(blob, bytes);
        self.shared.changed.notify_all();
    }

    /// Lets everything pass again.
    pub fn open_gate(&self) {
        let mut state = self.shared.lock();
        state.gate = None;
        state.held.clear();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Cuts every connection that is open.
    pub fn cut(&self) {
        for (_, client) in &self.shared.lock().clients {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// How many blob bytes have left in all.
    pub fn sent_total(&self) -> u64 {
        self.shared.lock().sent_total
    }

    /// How many bytes of this blob have left, all answers together.
    pub fn sent(&self, blob: &Digest) -> u64 {
        self.shared.lock().sent.get(blob).copied().unwrap_or(0)
    }

    /// Everything that it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.lock().asked.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        self.open_gate();
        self.cut();
        // Wakes the acceptor, which then sees that it is to end.
        let _ = TcpStream::connect(self.addr);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Waits for gate and pace, then counts the piece as sent; gives how much of it may leave now.
    fn admit(&self, blob: &Digest, wanted: usize) -> usize {
        let mut state = self.lock();
        let allowed = loop {
            let room = state.gate.map_or(u64::MAX, |gate| gate.saturating_sub(state.sent_total));
            let sent = state.sent.get(blob).copied().unwrap_or(0);
            let room = room.min(state.held.get(blob).map_or(u64::MAX, |held| held.saturating_sub(sent)));
            let allowed = wanted.min(usize::try_from(room).unwrap_or(usize::MAX));
            if allowed > 0 || self.ends() {
                break allowed;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.sent_total += allowed as u64;
        *state.sent.entry(*blob).or_default() += allowed as u64;
        let mut rest = Duration::ZERO;
        if let Some((rate, next)) = &mut state.pace {
            let now = Instant::now();
            rest = next.saturating_duration_since(now);
            *next = (*next).max(now) + Duration::from_secs_f64(allowed as f64 / *rate as f64);
        }
        drop(state);
        if !rest.is_zero() {
            std::thread::sleep(rest);
        }
        allowed
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut next_id = 0;
    for client in listener.incoming() {
        if shared.ends() {
            return;
        }
        let Ok(client) = client else { continue };
        let Ok(handle) = client.try_clone() else { continue };
        let id = next_id;
        next_id += 1;
        {
            let mut state = shared.lock();
            if state.clients.len() >= CONNECTIONS {
                continue;
            }
            state.clients.push((id, handle));
        }
        let shared = shared.clone();
        std::thread::spawn(move || {
            // A client that left, or was cut off, is what many tests are about.
            let _ = serve(&client, &shared);
            let _ = client.shutdown(Shutdown::Both);
            shared.lock().clients.retain(|(other, _)| *other != id);
        });
    }
}

fn serve(client: &TcpStream, shared: &Shared) -> Result<()> {
    client.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_send_buffer_size(client, SEND_BUFFER)?;
    let mut reader = BufReader::new(client);
    while let Some((asked, headers)) = read_request(&mut reader)? {
        shared.lock().asked.push(asked.clone());
        answer(client, shared, &asked, &headers)?;
    }
    Ok(())
}

type Headers = Vec<(String, String)>;

fn read_request(reader: &mut BufReader<&TcpStream>) -> Result<Option<(Asked, Headers)>> {
    let mut head = reader.take(HEAD_BOUND).lines();
    let Some(line) = head.next().transpose()? else { return Ok(None) };
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().context("no path")?.to_owned();
    ensure!(method == "GET" || method == "HEAD", "the relay is for pulls");
    let mut headers = Vec::new();
    for line in head {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let range = headers.iter().find(|(name, _)| name == "range").map(|(_, value)| value.clone());
    let asked = Asked { method, path, range };
    Ok(Some((asked, headers)))
}

fn answer(mut client: &TcpStream, shared: &Shared, asked: &Asked, headers: &Headers) -> Result<()> {
    let replaced = shared.lock().replaced.get(&asked.path).cloned();
    if let Some((media_type, bytes)) = replaced {
        let (length, digest) = (bytes.len(), Digest::sha256(&bytes));
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\
             Docker-Content-Digest: {digest}\r\n\r\n"
        );
        client.write_all(head.as_bytes())?;
        if asked.method == "GET" {
            client.write_all(&bytes)?;
        }
        return Ok(());
    }
    let blob = blob_of(&asked.path);
    let fault = blob.and_then(|blob| shared.lock().faults.get(&blob).cloned());
    if let Some(Fault::Refuses(status)) = fault {
        let head = format!("HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\n\r\n");
        return Ok(client.write_all(head.as_bytes())?);
    }
    let mut request = Request::new(shared.upstream, &asked.method, &asked.path);
    for name in ["accept", "authorization", "range", "user-agent", "if-none-match"] {
        let drop_range = name == "range" && matches!(fault, Some(Fault::IgnoresRange | Fault::WrongRange));
        if let Some((_, value)) = headers.iter().find(|(found, _)| found == name).filter(|_| !drop_range) {
            request = request.header(name, value.clone());
        }
    }
    let mut origin = request.open()?;
    let mut length: u64 = origin.header("Content-Length").context("no Content-Length")?.parse()?;
    let mut content_range = origin.header("Content-Range").map(str::to_owned);
    let mut status = origin.status;
    let asked_range = asked.range.as_deref().and_then(|range| bounds(range, length));
    if let (Some(Fault::WrongRange), Some((first, last)), 200) = (&fault, asked_range, status) {
        (status, content_range) = (206, Some(format!("bytes {first}-{last}/{length}")));
        length = last - first + 1;
    }
    let first = content_range.as_deref().and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    let first: u64 = first.and_then(|first| first.parse().ok()).unwrap_or(0);
    let promised = match fault {
        Some(Fault::TooFew(n)) => length.saturating_sub(n),
        Some(Fault::TooMany(n)) => length + n,
        _ => length,
    };

    let mut head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {promised}\r\n");
    for name in [
        "Content-Type",
        "Docker-Content-Digest",
        "ETag",
        "WWW-Authenticate",
        "Docker-Distribution-Api-Version",
    ] {
        if let Some(value) = origin.header(name) {
            head += &format!("{name}: {value}\r\n");
        }
    }
    if blob.is_some() && status < 300 {
        head += "Accept-Ranges: bytes\r\n";
    }
    if let Some(range) = content_range {
        head += &format!("Content-Range: {range}\r\n");
    }
    client.write_all((head + "\r\n").as_bytes())?;
    if asked.method == "HEAD" {
        return Ok(());
    }
    let mut done = 0;
    let mut piece = [0; PIECE];
    while done < promised {
        let want = usize::try_from(promised - done).unwrap_or(PIECE).min(PIECE);
        let mut have = if done < length { origin.read(&mut piece[..want])? } else { 0 };
        if have == 0 {
            ensure!(promised > length, "the origin ended early");
            piece[..want].fill(0);
            have = want;
        }
        if let Some(Fault::WrongByte(at)) = fault
            && (first + done..first + done + have as u64).contains(&at)
        {
            piece[usize::try_from(at - first - done)?] ^= 1;
        }
        let mut left = &piece[..have];
        while !left.is_empty() {
            let mut now = left.len();
            if let Some(Fault::EndsEarly(after)) = fault {
                now = now.min(usize::try_from(after - done)?);
                ensure!(now > 0, "ended early on purpose");
            }
            if let Some(blob) = blob.as_ref().filter(|_| status < 300) {
                now = shared.admit(blob, now);
                ensure!(now > 0, "the relay ends");
            }
            client.write_all(&left[..now])?;
            left = &left[now..];
            done += now as u64;
        }
    }
    Ok(())
}

fn blob_of(path: &str) -> Option<Digest> {
    path.split('?').next()?.rsplit_once("/blobs/")?.1.parse().ok()
}

/// First and last byte of a single range, as far as such a blob has them.
fn bounds(range: &str, length: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let last = last.parse().unwrap_or(u64::MAX).min(length.checked_sub(1)?);
    let first = first.parse().ok()?;
    (first <= last).then_some((first, last))
}
