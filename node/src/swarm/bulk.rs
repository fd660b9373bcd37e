//! The bulk plane: a TCP listener of its own, for chunks and nothing else.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wherry_proto::{Certificate, Hello, NodeId};

use super::admission::{AdmissionError, Doorkeeper};
use super::backlog::Backlog;
use super::codec::plainly;
use super::exchange::{self, Uploader};
use super::gate::Gate;
use super::identity::Host;
use super::tls::{Proofs, Tls};
use super::windowed::Windowed;

/// How many bulk connections of admitted peers there may be at a time.
pub const MAX_BULK_CONNECTIONS: usize = 256;

/// How many more may be in their handshakes; the gate chooses who makes way beyond that.
pub const MAX_BULK_HANDSHAKES: usize = 64;

/// How many of the admitted ones one peer may have.
pub const MAX_BULK_PER_PEER: usize = 4;

/// How long connecting and the TLS handshake may take, each.
pub const BULK_HANDSHAKE_TIME: Duration = Duration::from_secs(3);

/// How much is read from the socket at once: a few TLS records, one system call, where rustls alone would make
/// four for each. More of it gained nothing when measured.
const READ_BUFFER: usize = 64 << 10;

/// How many encrypted bytes of a connection may wait for its socket: the longest piece that is written at once, and
/// what rustls adds to it.
const MAX_ENCRYPTED: usize = exchange::MAX_PIECE + (16 << 10);

/// How many bytes may wait in a socket to be sent. The kernel would take a few MiB, whole queues of chunks: an upload
/// slot would be free again before its chunk is on the wire, and all that follows, be it one word, would come late.
const MAX_UNSENT: u32 = 64 << 10;

/// How the kernel counts what is sent on a connection on which this node asks: as what somebody waits for, in the words of
/// Linux `TC_PRIO_INTERACTIVE`. These are requests and acknowledgements. Behind the chunks that this node gives each would wait
/// for as long as two packets of all its connections take, while those whom it asks have nothing to send. `pfifo_fast`, the
/// kernel's own choice of a queue, lets them go first; `fq_codel`, which many distributions choose, does so without being told.
const ASKING_PRIORITY: u32 = 6;

/// A TLS stream whose socket is read in large pieces.
pub(super) type ClientStream = tokio_rustls::client::TlsStream<BufReader<Windowed>>;

type ServerStream = tokio_rustls::server::TlsStream<BufReader<TcpStream>>;

/// Why there is no bulk connection.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    /// The peer does not offer the bulk plane.
    #[error("it has no bulk listener")]
    None,
    /// It cannot be reached.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        error: io::Error,
    },
    /// The TLS handshake failed: perhaps another node answers there.
    #[error("no TLS with {address}: {}", plainly(error))]
    Tls {
        /// Where.
        address: String,
        /// Why not.
        error: io::Error,
    },
    /// One side did not admit the other.
    #[error("not admitted at {address}: {error}")]
    Admission {
        /// Where.
        address: String,
        /// Why not.
        error: AdmissionError,
    },
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    SockRef::from(socket).set_tcp_notsent_lowat(MAX_UNSENT)?;
    // A peer that lost its power is noticed although nothing is asked of it.
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    Ok(())
}

/// Connects to a node's bulk listener, as far as both have admitted each other; the certificate is the node's.
pub(super) async fn dial(
    tls: &Tls,
    doorkeeper: &Doorkeeper,
    node: NodeId,
    host: &Host,
    port: u16,
) -> Result<(ClientStream, Certificate), BulkError> {
    let address = || host.with_port(port);
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let failed = |error| BulkError::Connect { address: address(), error };
    let connect = async {
        match host {
            Host::Ip(ip) => TcpStream::connect((*ip, port)).await,
            Host::Name(name) => TcpStream::connect((name.as_str(), port)).await,
        }
    };
    let socket = timeout(BULK_HANDSHAKE_TIME, connect).await.map_err(|_| failed(late()))?.map_err(failed)?;
    tune(&socket).map_err(failed)?;
    if let Err(error) = SockRef::from(&socket).set_priority(ASKING_PRIORITY) {
        tracing::debug!(peer = %node, %error, "requests wait behind chunks");
    }
    let failed = |error| BulkError::Tls { address: address(), error };
    let config = tls.client(&node).map_err(|error| failed(io::Error::other(error)))?;
    let socket = BufReader::with_capacity(READ_BUFFER, Windowed::new(socket));
    // The name is not sent: the peer is known by its key.
    let name = ServerName::IpAddress(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED).into());
    let connect = TlsConnector::from(config).connect(name, socket);
    let connected = timeout(BULK_HANDSHAKE_TIME, connect).await.map_err(|_| failed(late()))?;
    let mut stream = connected.map_err(failed)?;
    if tls.proofs().peer(stream.get_ref().1) != Some(node) {
        return Err(failed(io::Error::other("the peer does not speak the bulk plane's protocol")));
    }
    let hello = doorkeeper
        .greet(&mut stream, &node, true)
        .await
        .map_err(|error| BulkError::Admission { address: address(), error })?;
    Ok((stream, hello.certificate))
}

/// The connections that peers have here, so that a ban can end them.
#[derive(Default)]
pub(super) struct Inbound(Mutex<HashMap<NodeId, Vec<CancellationToken>>>);

impl Inbound {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Vec<CancellationToken>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more connection of a peer, to be ended by the token; `None` if it has too many.
    pub(super) fn enter(
        self: &Arc<Self>,
        node: NodeId,
        most: usize,
        parent: &CancellationToken,
    ) -> Option<Entered> {
        let mut inbound = self.lock();
        let tokens = inbound.entry(node).or_default();
        if tokens.len() >= most {
            return None;
        }
        let token = parent.child_token();
        tokens.push(token.clone());
        Some(Entered { inbound: Arc::clone(self), node, token })
    }

    /// Ends all connections of a peer.
    pub(super) fn end(&self, node: &NodeId) {
        for token in self.lock().get(node).into_iter().flatten() {
            token.cancel();
        }
    }
}

/// One counted connection.
pub(super) struct Entered {
    inbound: Arc<Inbound>,
    node: NodeId,
    pub(super) token: CancellationToken,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.token.cancel();
        let mut inbound = self.inbound.lock();
        if let Some(tokens) = inbound.get_mut(&self.node) {
            tokens.retain(|token| !token.is_cancelled());
            if tokens.is_empty() {
                inbound.remove(&self.node);
            }
        }
    }
}

/// What the listener hands to each connection.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) doorkeeper: Arc<Doorkeeper>,
    pub(super) tls: TlsAcceptor,
    pub(super) proofs: Proofs,
    pub(super) uploader: Arc<Uploader>,
    pub(super) inbound: Arc<Inbound>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Accepts bulk connections until the server is stopped.
pub(super) async fn listen(server: Server, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_BULK_CONNECTIONS));
    let (handshakes, gate) = (Arc::new(Semaphore::new(MAX_BULK_HANDSHAKES)), Gate::new(MAX_BULK_HANDSHAKES));
    loop {
        let Some(accepted) = server.stop.run_until_cancelled(listener.accept()).await else { return };
        match accepted {
            Ok((socket, address)) => {
                let handshake = gate.enter(address.ip());
                // Whoever makes way has gone in a moment.
                let turn = server.stop.run_until_cancelled(Arc::clone(&handshakes).acquire_owned());
                let Some(Ok(turn)) = turn.await else { return };
                let (server, places) = (server.clone(), Arc::clone(&places));
                let (stop, tasks) = (server.stop.clone(), server.tasks.clone());
                let serve = Box::pin(async move {
                    let admitted = handshake.hold(admit(&server, socket, address)).await;
                    let Some(guest) = admitted.flatten() else { return };
                    drop(turn);
                    let Ok(_place) = places.try_acquire_owned() else {
                        return tracing::info!(%address, "too many bulk connections: one is refused");
                    };
                    connection(server, guest, address).await;
                });
                tasks.spawn(async move {
                    stop.run_until_cancelled(serve).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: others must end before it gets better.
                tracing::warn!(%error, "cannot accept a bulk connection");
                let pause = tokio::time::sleep(Duration::from_millis(200));
                server.stop.run_until_cancelled(pause).await;
            }
        }
    }
}

/// A peer that has been admitted, and its connection.
struct Guest {
    peer: NodeId,
    hello: Hello,
    stream: ServerStream,
    backlog: Backlog,
}

/// Does all that is to be done before a peer counts as one.
async fn admit(server: &Server, socket: TcpStream, address: SocketAddr) -> Option<Guest> {
    let backlog = match tune(&socket).and_then(|()| Backlog::of(&socket)) {
        Ok(backlog) => backlog,
        Err(error) => {
            tracing::debug!(%address, %error, "cannot set up a bulk connection");
            return None;
        }
    };
    let accept = server.tls.accept(BufReader::with_capacity(READ_BUFFER, socket));
    let mut stream = match timeout(BULK_HANDSHAKE_TIME, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => {
            tracing::debug!(%address, %why, "no TLS on a bulk connection");
            return None;
        }
        Err(_) => {
            tracing::debug!(%address, "a bulk connection's TLS took too long");
            return None;
        }
    };
    let Some(peer) = server.proofs.peer(stream.get_ref().1) else {
        tracing::debug!(%address, "not the bulk plane's protocol, or no node's key");
        return None;
    };
    stream.get_mut().1.set_buffer_limit(Some(MAX_ENCRYPTED));
    match server.doorkeeper.greet(&mut stream, &peer, false).await {
        Ok(hello) => Some(Guest { peer, hello, stream, backlog }),
        Err(why) => {
            server.doorkeeper.turned_away(&peer, address.to_string(), false, &why);
            None
        }
    }
}

async fn connection(server: Server, guest: Guest, address: SocketAddr) {
    let Guest { peer, hello, stream, backlog } = guest;
    let Some(entered) = server.inbound.enter(peer, MAX_BULK_PER_PEER, &server.stop) else {
        return tracing::info!(peer = %peer, %address, "too many bulk connections of one peer");
    };
    let serve = Box::pin(exchange::serve(Arc::clone(&server.uploader), peer, stream, Some(backlog)));
    tokio::select! {
        // First, since a ban that came during the greeting did not find this connection among those that it ended.
        biased;
        why = server.doorkeeper.belongs_no_more(&peer, &hello.certificate) => {
            tracing::info!(peer = %peer, %address, %why, "a bulk connection is ended");
        }
        _ = entered.token.run_until_cancelled(serve) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_socket_takes_little_more_than_what_is_on_its_way() {
        // What the taker's own buffer takes is beside the point.
        const TAKER: usize = 256 << 10;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&listener).set_recv_buffer_size(TAKER).unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (giver, accepted) = futures::future::join(connect, listener.accept()).await;
        let (giver, mut taker) = (giver.unwrap(), accepted.unwrap().0);
        tune(&giver).unwrap();
        // The giver's buffers have grown by what was taken before, as they do.
        let much = vec![0; 64 << 20];
        let give = async {
            let mut sent = 0;
            while sent < much.len() {
                giver.writable().await.unwrap();
                sent += giver.try_write(&much[sent..]).unwrap_or(0);
            }
        };
        let mut taken = vec![0; much.len()];
        let ((), read) = futures::future::join(give, taker.read_exact(&mut taken)).await;
        read.unwrap();
        // From now on nothing is taken.
        let mut swallowed = 0;
        while timeout(Duration::from_millis(400), giver.writable()).await.is_ok() {
            swallowed += giver.try_write(&much[..64 << 10]).unwrap_or(0);
        }
        assert!(swallowed < 4 * TAKER, "{swallowed} bytes");
    }
}
