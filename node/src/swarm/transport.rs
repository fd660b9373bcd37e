//! How libp2p connections are made: TCP with TLS and yamux, QUIC, names by DNS, and admission on all of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{
    Boxed, DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent,
    timeout::TransportTimeout,
};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, dns, quic, tcp, tls};

use super::admission::{Doorkeeper, admit};
use super::gate::Gate;
use super::identity::Host;
use super::muxer::{self, MAX_OPENED};
use super::settings::SwarmError;

/// How long it may take to make a connection, admission included.
pub const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How many connections that others make may be in their handshakes, of all transports together. A stranger's may hold a
/// QUIC connection's window, or one yamux stream's.
pub const MAX_HANDSHAKES: usize = 32;

/// How often QUIC shows that an idle connection lives: a few bytes a second.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// After how much silence a QUIC connection counts as lost, in milliseconds: three keep-alives.
const QUIC_IDLE_MS: u32 = 45_000;

/// How much a QUIC peer may send ahead on one stream and on one connection, in bytes: 80 Mbit/s at 100 ms. The same
/// counts for whoever has not been admitted yet.
const QUIC_STREAM_WINDOW: u32 = 1 << 20;
const QUIC_CONNECTION_WINDOW: u32 = 2 << 20;

pub(super) fn build(
    keypair: &Keypair,
    doorkeeper: &Arc<Doorkeeper>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, SwarmError> {
    let tls = tls::Config::new(keypair).map_err(|error| SwarmError::Tls(error.to_string()))?;
    let mut quic = quic::Config::new(keypair);
    // Of those that the peer opens; it waits with further ones.
    quic.max_concurrent_stream_limit = MAX_OPENED as u32;
    quic.keep_alive_interval = QUIC_KEEP_ALIVE;
    quic.max_idle_timeout = QUIC_IDLE_MS;
    quic.max_stream_data = QUIC_STREAM_WINDOW;
    quic.max_connection_data = QUIC_CONNECTION_WINDOW;

    let keeper = Arc::clone(doorkeeper);
    let tcp = NewPort(tcp::tokio::Transport::new(tcp::Config::new().nodelay(true)))
        .upgrade(Version::V1Lazy)
        .authenticate(tls)
        .multiplex(muxer::Upgrade)
        .and_then(move |(peer, muxer), point| admit(keeper, peer, muxer, point))
        .boxed();
    let keeper = Arc::clone(doorkeeper);
    let quic = quic::tokio::Transport::new(quic)
        .and_then(move |(peer, muxer), point| admit(keeper, peer, muxer, point))
        .boxed();
    let either = tcp.or_transport(quic).map(|output, _| output.into_inner()).boxed();
    // Asked of nothing first, since a failure would take the transport with it.
    if let Err(error) = dns::tokio::Transport::system(()) {
        tracing::warn!(%error, "no DNS configuration: addresses by name will not be found");
        return Ok(Gated::new(TransportTimeout::new(either, CONNECT_TIME).boxed()).boxed());
    }
    let named = dns::tokio::Transport::system(either).map_err(SwarmError::Dns)?;
    Ok(Gated::new(TransportTimeout::new(named, CONNECT_TIME).boxed()).boxed())
}

/// A TCP transport that never dials from its listening port.
///
/// If it did, two nodes that dial each other at the same moment would meet in one TCP connection on which both
/// believe to be the dialer, and TLS would fail. From ports of their own they make two connections, and both
/// are good.
struct NewPort<T>(T);

impl<T: Transport + Unpin> Transport for NewPort<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.0.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        self.0.dial(addr, DialOpts { port_use: PortUse::New, ..opts })
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

type Connections = Boxed<(PeerId, StreamMuxerBox)>;

/// A transport whose inbound connections pass the gate, until their peers are admitted.
struct Gated {
    connections: Connections,
    gate: Arc<Gate>,
}

/// Why a connection ended in its handshake.
#[derive(Debug, thiserror::Error)]
#[error("it made way for another: {MAX_HANDSHAKES} connections are in their handshakes")]
struct MadeWay;

impl Gated {
    fn new(connections: Connections) -> Self {
        Self { connections, gate: Gate::new(MAX_HANDSHAKES) }
    }
}

impl Transport for Gated {
    type Output = <Connections as Transport>::Output;
    type Error = <Connections as Transport>::Error;
    type ListenerUpgrade = <Connections as Transport>::ListenerUpgrade;
    type Dial = <Connections as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.connections.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.connections.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        self.connections.dial(addr, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let mut event = std::task::ready!(Pin::new(&mut self.connections).poll(cx));
        // All transports tell the IP address of a connection that comes in.
        if let TransportEvent::Incoming { upgrade, send_back_addr, .. } = &mut event
            && let Some(Host::Ip(address)) = Host::of(send_back_addr)
        {
            let handshake = self.gate.enter(address);
            let work = std::mem::replace(upgrade, std::future::pending().boxed());
            let made_way = || Err(io::Error::new(io::ErrorKind::ConnectionAborted, MadeWay));
            *upgrade = async move { handshake.hold(work).await.unwrap_or_else(made_way) }.boxed();
        }
        Poll::Ready(event)
    }
}
